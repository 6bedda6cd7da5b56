//! What may be fetched: the port, the host, and every address, literal or resolved, before anything is dialled.
//!
//! A literal address never reaches a name server, so it is judged from the URL; a name's addresses are judged once they
//! are known, and `connect` dials what was judged. Nothing here asks or dials anybody. The spelling of URLs is
//! `request`'s to judge.

use std::net::{IpAddr, SocketAddr};

use url::Url;

use super::addresses::{AllowedAddress, ConnectTo, check_public};
use super::hosts::{AllowedHost, HostPattern};

/// The rules of one process, as its operator set them; without any, public addresses on ports 80 and 443.
#[derive(Debug, Default)]
pub(crate) struct Guard {
    /// Lift the address and port rules for what is listed.
    pub(super) allowed_addresses: Vec<AllowedAddress>,
    pub(super) allowed_hosts: Vec<AllowedHost>,
    /// Where there are any, nothing else is fetched. They lift nothing.
    pub(super) only_hosts: Vec<HostPattern>,
    /// Hosts sent to a chosen edge, which the operator vouches for.
    pub(super) connect_to: Vec<ConnectTo>,
}

/// Where a host of a URL is to be found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Here and nowhere else; it is judged already.
    At(SocketAddr),
    /// Where its name resolves to; each address is still to be judged, by [`Guard::judge_all`].
    Named,
}

impl Guard {
    /// Judges what a URL says by itself, without a connection or a look-up.
    ///
    /// # Errors
    /// The reason of the refusal.
    pub(crate) fn check(&self, url: &Url) -> Result<(), String> {
        let host = url.host_str().ok_or("host: missing")?;
        if !self.only_hosts.is_empty() && !self.only_hosts.iter().any(|pattern| pattern.covers(host)) {
            return Err(format!("host {host}: not among --only-hosts"));
        }
        let port = url.port_or_known_default().unwrap_or_default();
        let is_listed = self.is_allowed_host(host, port)
            || self.allowed_addresses.iter().any(|allowed| allowed.port() == port);
        if !is_usual(port) && !is_listed {
            return Err(not_this_port(port));
        }
        self.place(host, port).map(drop)
    }

    /// Where to find the host of a URL that passed [`Guard::check`].
    ///
    /// # Errors
    /// The reason why a literal address may not be dialled.
    pub(super) fn place(&self, host: &str, port: u16) -> Result<Place, String> {
        if let Some(edge) = self.edge(host, port) {
            return Ok(Place::At(edge));
        }
        let Ok(ip) = host.trim_matches(['[', ']']).parse::<IpAddr>() else {
            return Ok(Place::Named);
        };
        let address = SocketAddr::new(ip, port);
        self.judge(address).map(|()| Place::At(address))
    }

    /// Judges every address that a host's name resolved to: a name that leads to one that may not be dialled is not to be
    /// trusted with the others either.
    ///
    /// # Errors
    /// The reason of the refusal.
    pub(super) fn judge_all(&self, host: &str, port: u16, found: &[IpAddr]) -> Result<(), String> {
        if self.is_allowed_host(host, port) {
            return Ok(());
        }
        found.iter().try_for_each(|ip| self.judge(SocketAddr::new(*ip, port)))
    }

    fn is_allowed_host(&self, host: &str, port: u16) -> bool {
        self.allowed_hosts.iter().any(|allowed| allowed.covers(host, port))
    }

    fn edge(&self, host: &str, port: u16) -> Option<SocketAddr> {
        // One that names the host goes before one for every host, in whatever order they were given.
        let fitting = self.connect_to.iter().filter(|entry| entry.applies_to(host));
        fitting.min_by_key(|entry| entry.is_for_every_host()).map(|entry| entry.to(port))
    }

    fn judge(&self, address: SocketAddr) -> Result<(), String> {
        if self.allowed_addresses.iter().any(|allowed| allowed.contains(address)) {
            return Ok(());
        }
        if !is_usual(address.port()) {
            return Err(not_this_port(address.port()));
        }
        check_public(address.ip()).map_err(|block| format!("address {}: {block}", address.ip()))
    }
}

fn is_usual(port: u16) -> bool {
    matches!(port, 80 | 443)
}

fn not_this_port(port: u16) -> String {
    format!("port {port}: only 80 and 443, or what --allow-address and --allow-host list")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(guard: &Guard, url: &str) -> Result<(), String> {
        guard.check(&Url::parse(url).unwrap())
    }

    #[test]
    fn an_edge_named_for_a_host_goes_before_the_one_for_every_host() {
        let edges = ["*=127.0.0.1:1", "example.com=127.0.0.1:2"].map(|text| text.parse().unwrap());
        let guard = Guard { connect_to: edges.to_vec(), ..Guard::default() };
        for (host, port) in [("example.com", 2), ("other.example.com", 1), ("10.0.0.1", 1), ("[::1]", 1)] {
            assert_eq!(
                guard.place(host, 443),
                Ok(Place::At(SocketAddr::from(([127, 0, 0, 1], port)))),
                "{host}"
            );
        }
        assert!(check(&guard, "http://example.com:8080/").is_err(), "an edge opens no port");
    }

    #[test]
    fn a_name_with_one_address_that_is_not_public_is_refused() {
        let found = ["93.184.215.14", "::1"].map(|ip| ip.parse().unwrap());
        let reason = Guard::default().judge_all("example.com", 80, &found).unwrap_err();
        assert_eq!(reason, "address ::1: Loopback Address");
        assert_eq!(Guard::default().judge_all("example.com", 80, &found[..1]), Ok(()));
    }

    #[test]
    fn an_allowed_host_lifts_the_rules_for_itself_on_its_port() {
        let allowed_hosts = vec!["edge.example.com:8080".parse().unwrap()];
        let guard = Guard { allowed_hosts, ..Guard::default() };
        let private = ["10.0.0.1".parse().unwrap()];
        assert_eq!(check(&guard, "http://edge.example.com:8080/"), Ok(()));
        assert_eq!(guard.judge_all("edge.example.com", 8080, &private), Ok(()));
        assert!(guard.judge_all("edge.example.com", 80, &private).is_err());
        assert!(guard.judge_all("other.example.com", 8080, &private).is_err());
        for url in
            ["http://other.example.com:8080/", "http://edge.example.com:8081/", "http://10.0.0.1:8080/"]
        {
            assert!(check(&guard, url).is_err(), "{url}");
        }
    }

    #[test]
    fn an_allowed_address_lifts_the_rules_for_names_that_lead_there() {
        let allowed_addresses = vec!["10.0.0.0/8:8080".parse().unwrap()];
        let guard = Guard { allowed_addresses, ..Guard::default() };
        for url in ["http://10.0.0.1:8080/", "http://edge.example.com:8080/"] {
            assert_eq!(check(&guard, url), Ok(()), "{url}");
        }
        for url in ["http://10.0.0.1/", "http://11.0.0.1:8080/", "http://127.0.0.1:8080/", "http://a.b:81/"] {
            assert!(check(&guard, url).is_err(), "{url}");
        }
        let judged = |ip: &str| guard.judge_all("edge.example.com", 8080, &[ip.parse().unwrap()]);
        assert_eq!(judged("10.0.0.1"), Ok(()));
        assert!(judged("93.184.215.14").is_err(), "the port is open for what is listed alone");
    }

    #[test]
    fn only_hosts_narrows_and_lifts_nothing() {
        let only_hosts = ["cdn.example.com", ".example.net", "127.0.0.1"].map(|text| text.parse().unwrap());
        let allowed_addresses = vec!["10.0.0.1:80".parse().unwrap()];
        let guard = Guard { only_hosts: only_hosts.to_vec(), allowed_addresses, ..Guard::default() };
        for url in ["http://cdn.example.com/", "https://CDN.example.com./", "http://a.b.example.net/"] {
            assert_eq!(check(&guard, url), Ok(()), "{url}");
        }
        for url in ["http://example.com/", "http://example.net/", "http://10.0.0.1/", "http://8.8.8.8/"] {
            assert!(check(&guard, url).unwrap_err().contains("--only-hosts"), "{url}");
        }
        for url in ["http://127.0.0.1/", "http://cdn.example.com:8080/"] {
            assert!(check(&guard, url).is_err(), "{url}");
        }
        assert!(guard.judge_all("cdn.example.com", 80, &["127.0.0.1".parse().unwrap()]).is_err());
    }
}
