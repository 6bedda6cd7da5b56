//! The operator's lists of hosts: what may be fetched wherever it leads, and what alone may be warmed.
//!
//! Plain judgements on values, like those on `addresses`. Next to read: `warm/guard.rs`.

use std::fmt;
use std::str::FromStr;

use url::Host;

use super::addresses::{parse_host, parse_port, without_final_dot};

/// `--allow-host HOST:PORT`: a host that may be fetched on one port, whatever address its name resolves to.
///
/// Written `edge.internal.example.com:8080`. A literal address is for `--allow-address`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AllowedHost {
    /// As the URL parser writes hosts, without a final dot.
    host: String,
    port: u16,
}

impl AllowedHost {
    /// Whether it lists `host`, which is a URL's host, on `port`; neither case nor one final dot makes a difference.
    pub(crate) fn covers(&self, host: &str, port: u16) -> bool {
        self.port == port && self.host.eq_ignore_ascii_case(without_final_dot(host))
    }
}

impl FromStr for AllowedHost {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (host, port) = text.rsplit_once(':').ok_or_else(|| {
            format!("{text:?} has no port: write HOST:PORT, such as edge.internal.example.com:8080")
        })?;
        let host = parse_host(host)?;
        if matches!(Host::parse(&host), Ok(Host::Ipv4(_) | Host::Ipv6(_))) {
            return Err(format!("{host} is an address, which --allow-address takes"));
        }
        if !host.contains('.') {
            return Err(format!("{host} is no URL's host: a host name has at least two labels"));
        }
        Ok(Self { host, port: parse_port(port)? })
    }
}

/// As it is written on the command line.
impl fmt::Display for AllowedHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// `--only-hosts`: a host, or with a leading dot every host below a domain.
///
/// Written `cdn.example.com`, or `.example.com` (also `*.example.com`), which is not `example.com` itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostPattern {
    /// As the URL parser writes hosts, without a final dot; with a leading one for every host below.
    pattern: String,
}

impl HostPattern {
    /// Whether `host`, which is a URL's host, is meant; neither case nor one final dot makes a difference.
    pub(crate) fn covers(&self, host: &str) -> bool {
        let host = without_final_dot(host).to_ascii_lowercase();
        if self.pattern.starts_with('.') { host.ends_with(&self.pattern) } else { host == self.pattern }
    }
}

impl FromStr for HostPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let below = text.strip_prefix("*.").or_else(|| text.strip_prefix('.'));
        let host = parse_host(below.unwrap_or(text))
            .map_err(|_| format!("{text:?} is neither a host nor a domain such as .example.com"))?;
        let pattern = match below {
            // Nothing is below an address; the last number of another one would be.
            Some(_) if matches!(Host::parse(&host), Ok(Host::Ipv4(_) | Host::Ipv6(_))) => {
                return Err(format!("{text:?}: there is no host below an address"));
            }
            Some(_) => format!(".{host}"),
            None => host,
        };
        Ok(Self { pattern })
    }
}

/// As it is written on the command line.
impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.pattern)
    }
}

/// An item of a list on the command line or in a variable; none where the text is empty, as an empty variable is.
///
/// # Errors
/// As for the item.
pub(crate) fn list_item<T: FromStr>(text: &str) -> Result<Option<T>, T::Err> {
    let text = text.trim();
    if text.is_empty() { Ok(None) } else { text.parse().map(Some) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_allowed_host_is_itself_on_its_port_alone() {
        let allowed: AllowedHost = "Edge.internal.example.com.:8080".parse().unwrap();
        assert_eq!(allowed.to_string(), "edge.internal.example.com:8080");
        assert!(allowed.covers("edge.internal.example.com", 8080));
        assert!(allowed.covers("EDGE.internal.example.com.", 8080));
        for (host, port) in [
            ("edge.internal.example.com", 80),
            ("internal.example.com", 8080),
            ("a.edge.internal.example.com", 8080),
            ("edge.internal.example.com..", 8080),
            ("", 8080),
        ] {
            assert!(!allowed.covers(host, port), "{host}:{port}");
        }
        assert_eq!(
            "bücher.example:80".parse::<AllowedHost>().unwrap().to_string(),
            "xn--bcher-kva.example:80"
        );
    }

    #[test]
    fn what_is_no_allowed_host_is_told_why() {
        for (text, why) in [
            ("", "no port"),
            ("edge.example.com", "no port"),
            ("edge.example.com:", "not a port"),
            ("edge.example.com:0", "port 0"),
            ("http://edge.example.com:80", "is no host"),
            ("*.example.com:80", "is no host"),
            (":80", "is no host"),
            ("10.0.0.1:80", "--allow-address"),
            ("0x7f.1:80", "--allow-address"),
            ("[::1]:80", "--allow-address"),
            ("localhost:80", "two labels"),
        ] {
            let error = text.parse::<AllowedHost>().unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn a_host_pattern_is_one_host_or_all_below_a_domain() {
        for (text, covered, not_covered) in [
            ("CDN.example.com", "cdn.example.com.", ["a.cdn.example.com", "example.com"]),
            (".example.com", "a.b.EXAMPLE.com", ["example.com", "badexample.com"]),
            ("*.example.com.", "a.example.com.", ["example.com", "example.com.evil.test"]),
            (".bücher.example", "a.xn--bcher-kva.example", ["xn--bcher-kva.example", "a.example"]),
            ("192.0.2.1", "192.0.2.1", ["192.0.2.10", "1.192.0.2.1"]),
            ("[FD00:0::1]", "[fd00::1]", ["[fd00::2]", "fd00::1"]),
        ] {
            let pattern: HostPattern = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert!(pattern.covers(covered), "{covered} by {text}");
            for host in not_covered {
                assert!(!pattern.covers(host), "{host} by {text}");
            }
            assert_eq!(pattern.to_string().parse(), Ok(pattern), "{text} written again");
        }
        for text in ["", "*", ".", "*.", "a.*", "https://example.com", "example.com:443", ".10.0.0.1", "a b"]
        {
            assert!(text.parse::<HostPattern>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_empty_item_of_a_list_is_none() {
        assert_eq!(list_item::<HostPattern>(" "), Ok(None));
        assert!(list_item::<HostPattern>(" a.example ").unwrap().is_some());
        assert!(list_item::<HostPattern>("*").is_err());
    }
}
