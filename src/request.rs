//! One URL with its options: the only way from a record's or message's bytes to something that may be warmed.
//!
//! [`WarmRequest::parse`] applies every rule that needs no network: the text, the URL, the host's spelling, the
//! options. Which addresses and ports may be dialled is `warm::guard`'s to say. Next to read: `warm/mod.rs`.

use std::hash::{Hash, Hasher};

use http::{HeaderMap, HeaderName, HeaderValue};
use jiff::Timestamp;
use url::{Host, Url};

use crate::redact::is_secret_name;
use crate::version::Expected;

/// The longest URL that is accepted, in bytes, after white space around it is removed.
pub const MAX_URL_BYTES: usize = 16_384;

/// More than any host name of 253 bytes takes, with each of them written as a percent escape, and the port. The URL parser's
/// time for IDNA grows with the square of a name's length.
const MAX_AUTHORITY_BYTES: usize = 1024;

/// The most `warm-` options beside one URL: as many as Pub/Sub has attributes.
const MAX_OPTIONS: usize = 100;

/// One URL to warm, with the options that came beside it. Only [`WarmRequest::parse`] makes one.
///
/// Two are equal where URL and options are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WarmRequest {
    url: Url,
    headers: HeaderMap,
    regions: Option<Vec<String>>,
    not_after: Option<Timestamp>,
    expected: Expected,
}

/// Why some bytes and options are no [`WarmRequest`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotARequest {
    /// The data is no URL at all; whoever produced it made a mistake.
    Malformed(String),
    /// A URL that is never warmed, or an option that is not understood.
    Refused(String),
}

impl WarmRequest {
    /// Reads a record's value, or a message's data, and the options beside it.
    ///
    /// White space around the URL is removed; the rest must be UTF-8 of at most [`MAX_URL_BYTES`] without control
    /// characters that parses, as the WHATWG URL standard says, to an absolute http or https URL. Of `options` only
    /// names starting with `warm-` count; `bridge`'s own `warm-region-` marks are for subscription filters alone.
    ///
    /// # Errors
    /// [`NotARequest::Malformed`] where the data is no such URL; [`NotARequest::Refused`] where it is one that holds
    /// user info, a backslash or a host that no public name can have, and where an option is unknown or its value
    /// does not parse. Reasons name the option, and never show user info.
    pub fn parse<'a>(
        data: &[u8],
        options: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, NotARequest> {
        let mut request = Self {
            url: parse_url(data)?,
            headers: HeaderMap::new(),
            regions: None,
            not_after: None,
            expected: Expected::default(),
        };
        for (number, (name, value)) in
            options.into_iter().filter(|(name, _)| name.starts_with("warm-")).enumerate()
        {
            if number == MAX_OPTIONS {
                return Err(NotARequest::Refused(format!("more than {MAX_OPTIONS} options")));
            }
            request.set_option(name, value)?;
        }
        if request.expected.needs_hash() && request.headers.contains_key(http::header::RANGE) {
            let why = "option warm-expect-sha256: a part, by warm-range, has no hash of the whole";
            return Err(NotARequest::Refused(why.to_owned()));
        }
        Ok(request)
    }

    /// Whether [`WarmRequest::parse`] takes this data without options, in a tenth of its time for URLs of the common kind.
    ///
    /// # Errors
    /// As for parsing.
    pub fn check(data: &[u8]) -> Result<(), NotARequest> {
        if is_plain_url(data) { Ok(()) } else { Self::parse(data, []).map(drop) }
    }

    /// What to GET. The fragment, which is never sent, is already gone.
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// The request headers that were asked for with `warm-header-NAME` and `warm-range`.
    pub fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// The version that must be in the cache.
    pub fn expected(&self) -> &Expected {
        &self.expected
    }

    /// Why this request is not to be fetched here and now, if so: past its `warm-not-after`, or for other regions.
    pub fn refusal(&self, region: &str, now: impl FnOnce() -> Timestamp) -> Option<String> {
        if self.not_after.is_some_and(|limit| now() > limit) {
            return Some("expired".to_owned());
        }
        match &self.regions {
            Some(regions) if !regions.iter().any(|r| r == region) => {
                Some(format!("not for this region: warm-regions is {}", regions.join(",")))
            }
            _ => None,
        }
    }

    /// The request that a redirect's `Location` asks for instead of this one (RFC 9110, section 10.2.2), by the rules
    /// of [`WarmRequest::parse`].
    ///
    /// Options go along. To another origin (RFC 6454) no request header goes that may be a credential: `Authorization`,
    /// `Cookie`, and what is named like a token or a key.
    ///
    /// # Errors
    /// Why the target is never warmed; user info is not shown.
    pub fn redirected(&self, location: &[u8]) -> Result<Self, String> {
        let url = trimmed(location).and_then(|text| judge_url(text, Some(&self.url)));
        let url = url.map_err(|(NotARequest::Malformed(reason) | NotARequest::Refused(reason))| reason)?;
        let mut next = Self { url, ..self.clone() };
        if next.url.origin() != self.url.origin() {
            for name in self.headers.keys().filter(|name| is_secret_name(name.as_str())) {
                next.headers.remove(name);
            }
        }
        Ok(next)
    }

    fn set_option(&mut self, name: &str, value: &str) -> Result<(), NotARequest> {
        let Some(option) = name.strip_prefix("warm-") else {
            return Ok(());
        };
        let bad_value = |why: &str| NotARequest::Refused(format!("option {name}: {why}"));
        if let Some(header) = option.strip_prefix("header-") {
            let header_name = HeaderName::from_bytes(header.as_bytes())
                .ok()
                .filter(may_be_sent)
                .ok_or_else(|| bad_value("this header cannot be asked for"))?;
            let mut header_value =
                HeaderValue::from_str(value).map_err(|_| bad_value("not a valid header value"))?;
            // Nor is it shown by `Debug`, or kept in the tables of HTTP/2's header compression.
            header_value.set_sensitive(is_secret_name(header_name.as_str()));
            self.headers.insert(header_name, header_value);
            return Ok(());
        }
        match option {
            "regions" => {
                let regions: Vec<String> = value
                    .split(',')
                    .map(|region| region.trim().to_owned())
                    .filter(|r| !r.is_empty())
                    .collect();
                if regions.is_empty() {
                    return Err(bad_value("no region is named"));
                }
                self.regions = Some(regions);
            }
            "range" => {
                let range =
                    byte_range(value).ok_or_else(|| bad_value("not a byte range such as bytes=0-1023"))?;
                self.headers.insert(http::header::RANGE, range);
            }
            "not-after" => {
                self.not_after = Some(value.trim().parse().map_err(|_| bad_value("not an RFC 3339 time"))?);
            }
            "expect-etag" | "expect-length" | "expect-sha256" => {
                let what = option.trim_start_matches("expect-");
                self.expected.set(what, value).map_err(bad_value)?;
            }
            "region-filtered" => {}
            _ if option.starts_with("region-") => {}
            _ => return Err(NotARequest::Refused(format!("unknown option {name}"))),
        }
        Ok(())
    }
}

impl Hash for WarmRequest {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.url.hash(state);
        // A sum, since the order of headers is nothing that equality looks at.
        let names = self.headers.keys().map(|name| name.as_str().len());
        state.write_usize(names.sum());
        for value in self.headers.values() {
            state.write_usize(value.len());
        }
    }
}

/// The text of a URL, without the white space around it and of a length and characters that a URL may have.
fn trimmed(data: &[u8]) -> Result<&str, NotARequest> {
    let malformed = |why: &str| NotARequest::Malformed(why.to_owned());
    let text = std::str::from_utf8(data).map_err(|_| malformed("not UTF-8"))?;
    let text = text.trim_matches([' ', '\t', '\r', '\n']);
    if text.is_empty() {
        return Err(malformed("empty"));
    }
    if text.len() > MAX_URL_BYTES {
        return Err(malformed("longer than 16384 bytes"));
    }
    if text.chars().any(char::is_control) {
        return Err(malformed("control character"));
    }
    Ok(text)
}

/// Text to URL, by the rules that need no network; relative to `base`, where there is one.
fn judge_url(text: &str, base: Option<&Url>) -> Result<Url, NotARequest> {
    let refused = |why: &str| NotARequest::Refused(why.to_owned());
    // The WHATWG parser reads a backslash as a slash, other parsers do not: the two disagree about the host.
    if text.contains('\\') {
        return Err(refused("backslash"));
    }
    let authority = authority(text);
    if authority.len() > MAX_AUTHORITY_BYTES {
        return Err(refused("host: not a public host name"));
    }
    let parsed = Url::options().base_url(base).parse(text);
    let mut url = parsed.map_err(|error| NotARequest::Malformed(format!("not a URL: {error}")))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(refused("scheme: only http and https"));
    }
    // The text is looked at too: an empty user info (`http://@host/`) leaves no trace in the parsed URL.
    if !url.username().is_empty() || url.password().is_some() || authority.contains('@') {
        return Err(refused("user info"));
    }
    if let Some(Host::Domain(host)) = url.host()
        && !is_public_name_syntax(host)
    {
        return Err(refused("host: not a public host name"));
    }
    url.set_fragment(None);
    Ok(url)
}

/// What was pushed or produced, which has no base to be relative to.
fn parse_url(data: &[u8]) -> Result<Url, NotARequest> {
    let plain = str::from_utf8(data).ok().filter(|_| is_plain_url(data));
    if let Some(mut url) = plain.and_then(|text| Url::parse(text).ok()) {
        url.set_fragment(None);
        return Ok(url);
    }
    let text = trimmed(data)?;
    if !is_http(text) {
        return Err(NotARequest::Malformed("not an absolute http or https URL".to_owned()));
    }
    judge_url(text, None)
}

/// Whether this is a URL in which nothing is to be decided: printable ASCII, a lower-case scheme, a lower-case host name
/// that is neither an address nor internationalised, and no port. Such a URL always parses; of others nothing is said.
fn is_plain_url(data: &[u8]) -> bool {
    let after_scheme = data.strip_prefix(b"https://").or_else(|| data.strip_prefix(b"http://"));
    let Some(rest) = after_scheme.filter(|_| data.len() <= MAX_URL_BYTES) else {
        return false;
    };
    let host_len = rest.iter().position(|byte| b"/?#".contains(byte)).unwrap_or(rest.len());
    let (host, behind) = rest.split_at(host_len);
    // Without a way out of the loop the compiler looks at many bytes at once.
    let is_printable =
        behind.iter().fold(true, |so_far, byte| so_far & matches!(byte, b'!'..=b'~') & (*byte != b'\\'));
    is_printable && is_plain_host(host)
}

/// Two labels or more of lower-case letters, digits, `-` and `_`. A last label that starts with a letter makes no
/// address; one that starts with `xn--` is for IDNA to judge.
fn is_plain_host(host: &[u8]) -> bool {
    let is_plain =
        |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_');
    let mut labels = 0;
    let mut last: &[u8] = &[];
    for label in host.split(|byte| *byte == b'.') {
        if !(1..=63).contains(&label.len()) || !label.iter().all(is_plain) || label.starts_with(b"xn--") {
            return false;
        }
        labels += 1;
        last = label;
    }
    labels >= 2 && host.len() <= 253 && last.first().is_some_and(u8::is_ascii_lowercase)
}

fn is_http(text: &str) -> bool {
    let scheme = text.split(':').next().unwrap_or_default();
    text.len() > scheme.len() && (scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https"))
}

/// What stands between the slashes after the scheme and the path, as it was written; empty where there are neither.
fn authority(text: &str) -> &str {
    let is_scheme =
        |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
    let after_scheme = match (text.strip_prefix("//"), text.split_once(':')) {
        (Some(relative), _) => relative,
        (None, Some((scheme, rest))) if is_scheme(scheme) => rest,
        (None, _) => "",
    };
    let after_scheme = after_scheme.trim_start_matches('/');
    after_scheme.split(['/', '?', '#']).next().unwrap_or_default()
}

/// Letters, digits, `-`, `_` and `.`; labels of 1 to 63 bytes, at least two of them; 253 bytes; one final dot at most.
///
/// `host` is what the URL parser made of it, after IDNA.
fn is_public_name_syntax(host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host);
    let label_ok = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    host.len() <= 253 && host.contains('.') && host.split('.').all(label_ok)
}

/// Whether a caller may set this request header: never what frames the message, steers the connection or names the host.
///
/// Whether Authorization is sent is the operator's to say, in `warm`. Range has an option of its own.
fn may_be_sent(name: &HeaderName) -> bool {
    use http::header;
    ![
        header::HOST,
        header::CONNECTION,
        header::CONTENT_LENGTH,
        header::EXPECT,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        header::PROXY_AUTHORIZATION,
        header::PROXY_AUTHENTICATE,
        header::RANGE,
    ]
    .contains(name)
        && !["keep-alive", "proxy-connection", "http2-settings"].contains(&name.as_str())
}

/// One range of RFC 9110, section 14.1.2: `bytes=0-1023`, `bytes=1024-` or `bytes=-512`.
fn byte_range(value: &str) -> Option<HeaderValue> {
    let value = value.trim();
    let (first, last) = value.strip_prefix("bytes=")?.split_once('-')?;
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()) && text.len() <= 19;
    let ordered = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) => first <= last,
        (Ok(_), Err(_)) => last.is_empty(),
        (Err(_), Ok(_)) => first.is_empty(),
        (Err(_), Err(_)) => false,
    };
    (digits(first) && digits(last) && ordered).then(|| HeaderValue::from_str(value).ok())?
}

impl NotARequest {
    /// The reason of the verdict `refused` that this leads to; no secret is in it.
    pub fn reason(&self) -> String {
        match self {
            Self::Malformed(reason) => format!("malformed data: {reason}"),
            Self::Refused(reason) => reason.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<WarmRequest, NotARequest> {
        WarmRequest::parse(text.as_bytes(), [])
    }

    fn with_option(name: &str, value: &str) -> Result<WarmRequest, NotARequest> {
        WarmRequest::parse(b"https://example.com/a", [(name, value)])
    }

    #[test]
    fn a_url_is_trimmed_normalised_and_loses_its_fragment() {
        let request = parse(" \r\n https://EXAMPLE.com:443/a b?q#frag\t").unwrap();
        assert_eq!(request.url().as_str(), "https://example.com/a%20b?q");
    }

    #[test]
    fn what_is_no_http_url_is_malformed() {
        let too_long = format!("https://example.com/{}", "a".repeat(MAX_URL_BYTES));
        for text in [
            "",
            " \n",
            "example.com",
            "/path",
            "ftp://example.com/",
            "http",
            "javascript:alert(1)",
            "http://",
            "http://exa\tmple.com/",
            "http://example.com/\u{85}",
            "https://example.com:99999/",
            "http://[::1",
            &too_long,
        ] {
            assert!(matches!(parse(text), Err(NotARequest::Malformed(_))), "{text:?} gave {:?}", parse(text));
        }
        assert!(matches!(WarmRequest::parse(b"http://example.com/\xff", []), Err(NotARequest::Malformed(_))));
    }

    #[test]
    fn a_url_that_no_edge_serves_is_refused() {
        for text in [
            "http://user@example.com/",
            "http://user:pw@example.com/",
            "http://@example.com/",
            "http://:@example.com/",
            "http:\\\\example.com\\",
            "http://example.com\\@evil.test/",
            "http://localhost/",
            "http://intranet/",
            "http://a..example.com/",
            "http://example.com../",
            "http://exa+mple.com/",
            "http://ex*mple.com/",
            &format!("http://{}.com/", "ü".repeat(512)),
        ] {
            assert!(matches!(parse(text), Err(NotARequest::Refused(_))), "{text:?} gave {:?}", parse(text));
        }
        assert!(
            parse("http://example.com./@at/sign@path").is_ok(),
            "one final dot and an @ in the path are fine"
        );
    }

    #[test]
    fn a_refusal_never_shows_user_info() {
        let reason = parse("http://alice:s3cret@example.com/").unwrap_err().reason();
        assert!(!reason.contains("s3cret") && !reason.contains("alice"), "{reason}");
    }

    #[test]
    fn asked_for_headers_are_sent_but_never_those_that_frame_or_steer() {
        let request = with_option("warm-header-Accept-Encoding", "br").unwrap();
        assert_eq!(request.headers()["accept-encoding"], "br");
        for name in [
            "Host",
            "connection",
            "Transfer-Encoding",
            "Content-Length",
            "Expect",
            "TE",
            "Trailer",
            "Upgrade",
            "Keep-Alive",
            "Proxy-Connection",
            "Proxy-Authorization",
            "HTTP2-Settings",
            "Range",
            "bad name",
            ":path",
            "",
        ] {
            let result = with_option(&format!("warm-header-{name}"), "x");
            assert!(matches!(result, Err(NotARequest::Refused(_))), "{name}");
        }
        for value in ["a\r\nb: c", "a\nb", "a\0", "a\u{7f}"] {
            assert!(with_option("warm-header-cookie", value).is_err(), "header injection: {value:?}");
        }
        let secret = with_option("warm-header-authorization", "Bearer s3cret").unwrap();
        assert!(!format!("{secret:?}").contains("s3cret"), "{secret:?}");
    }

    #[test]
    fn an_unknown_option_or_value_is_refused_by_name_and_foreign_attributes_are_ignored() {
        for (name, value) in [
            ("warm-colour", "red"),
            ("warm-", ""),
            ("warm-not-after", "soon"),
            ("warm-range", "bytes=9-1"),
            ("warm-range", "bytes=-"),
            ("warm-range", "0-1"),
            ("warm-range", "bytes=0-1,3-4"),
            ("warm-regions", " , "),
        ] {
            let reason = with_option(name, value).unwrap_err().reason();
            assert!(reason.contains(name), "{reason}");
        }
        assert!(with_option("kafka-offset", "7").is_ok());
        assert!(with_option("warm-region-europe-west1", "1").is_ok());
        assert!(with_option("warm-region-filtered", "1").is_ok());
        assert_eq!(with_option("warm-range", "bytes=0-9").unwrap().headers()["range"], "bytes=0-9");
    }

    #[test]
    fn a_flood_of_options_is_refused() {
        let names: Vec<String> = (0..50_000).map(|n| format!("warm-header-x-{n}")).collect();
        let options = |count: usize| names.iter().take(count).map(|name| (name.as_str(), "v"));
        assert!(WarmRequest::parse(b"https://example.com/", options(100)).is_ok());
        let reason = WarmRequest::parse(b"https://example.com/", options(50_000)).unwrap_err().reason();
        assert_eq!(reason, "more than 100 options");
    }

    #[test]
    fn a_request_past_its_time_or_for_other_regions_is_not_fetched() {
        let now: Timestamp = "2026-11-22T12:00:00Z".parse().unwrap();
        let late = with_option("warm-not-after", "2026-11-22T11:59:59Z").unwrap();
        assert_eq!(late.refusal("eu", || now).as_deref(), Some("expired"));
        let in_time = with_option("warm-not-after", "2026-11-22T13:00:01+01:00").unwrap();
        assert_eq!(in_time.refusal("eu", || now), None);
        let elsewhere = with_option("warm-regions", "us, asia").unwrap();
        assert!(elsewhere.refusal("eu", || now).unwrap().contains("us,asia"));
        assert_eq!(elsewhere.refusal("asia", || now), None);
    }

    #[test]
    fn a_common_url_needs_no_parser_and_any_other_is_left_to_it() {
        for text in [
            "https://cdn.example.com/vod/0001/segment-0000001.ts?token=cd0e&x=%2F#f",
            "http://a.b",
            "http://a-1_b.example.com?q",
            "http://0001.example.com/@me:80//..%5c/[]{}|^`'<>\"",
        ] {
            assert!(is_plain_url(text.as_bytes()), "{text}");
        }
        for text in [
            "",
            "http://",
            "HTTP://a.b/",
            "http://A.b/",
            "http://a.b:80/",
            "http://a@b.c/",
            "http://localhost/",
            "http://a.b./",
            "http://a..b/",
            "http://1.2.3.4/",
            "http://1.2.3.0x4/",
            "http://xn--a.example.com/",
            "http://a.b/ c",
            "http://a.b/\\",
            "http://a.b/ü",
            "ftp://a.b/",
        ] {
            assert!(!is_plain_url(text.as_bytes()), "{text}");
        }
        let long = |bytes: usize| format!("http://a.b/{}", "x".repeat(bytes - 11));
        assert!(
            is_plain_url(long(MAX_URL_BYTES).as_bytes()) && !is_plain_url(long(MAX_URL_BYTES + 1).as_bytes())
        );
        assert_eq!(WarmRequest::check(b" http://a.b:80/ "), Ok(()));
        assert!(matches!(WarmRequest::check(b"http://localhost/"), Err(NotARequest::Refused(_))));
    }

    #[test]
    fn a_redirect_is_resolved_and_judged_like_any_url() {
        let first = parse("https://example.com/a/b?c").unwrap();
        for (location, target) in [
            ("d", "https://example.com/a/d"),
            ("/d?e#f", "https://example.com/d?e"),
            ("?e", "https://example.com/a/b?e"),
            ("//example.net/@d", "https://example.net/@d"),
            (" http://EXAMPLE.net:80/ü ", "http://example.net/%C3%BC"),
        ] {
            assert_eq!(first.redirected(location.as_bytes()).unwrap().url().as_str(), target, "{location}");
        }
        let long = format!("file://{}/", "a".repeat(1025));
        for (location, why) in [
            (&b""[..], "empty"),
            (b"\xff", "UTF-8"),
            (b"/a\x00b", "control"),
            (b"http://example.com/\r\nX: 1", "control"),
            (b"\\\\127.0.0.1\\x", "backslash"),
            (b"/a\\b", "backslash"),
            (b"file:///etc/passwd", "scheme"),
            (b"javascript:alert(1)", "scheme"),
            (b"http://[::1", "not a URL"),
            (b"http://alice:s3cret@example.com/", "user info"),
            (b"//alice@example.com/", "user info"),
            (b"//@example.com/", "user info"),
            (b"http://localhost/", "host"),
            (long.as_bytes(), "host"),
        ] {
            let reason = first.redirected(location).unwrap_err();
            assert!(reason.contains(why), "{}: {reason}", location.escape_ascii());
            assert!(!reason.contains("alice") && !reason.contains("s3cret"), "{reason}");
        }
    }

    #[test]
    fn no_credential_follows_a_redirect_to_another_origin() {
        let names = ["authorization", "cookie", "x-api-key", "x-auth-token", "accept", "user-agent"];
        let options: Vec<String> = names.iter().map(|name| format!("warm-header-{name}")).collect();
        let options = options.iter().map(|name| (name.as_str(), "v")).chain([("warm-range", "bytes=0-9")]);
        let first = WarmRequest::parse(b"https://example.com/", options).unwrap();
        let sent = |request: &WarmRequest| {
            let mut names: Vec<_> = request.headers().keys().map(|name| name.as_str().to_owned()).collect();
            names.sort();
            names
        };
        assert_eq!(sent(&first.redirected(b"/b").unwrap()), sent(&first));
        for other in ["https://www.example.com/", "http://example.com/", "https://example.com:8443/"] {
            let next = first.redirected(other.as_bytes()).unwrap();
            assert_eq!(sent(&next), ["accept", "range", "user-agent"], "{other}");
            let back = next.redirected(b"https://example.com/").unwrap();
            assert_eq!(sent(&back), ["accept", "range", "user-agent"], "what is gone stays gone");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]
        #[test]
        fn what_needs_no_parser_would_pass_it(
            scheme in "https?://",
            labels in proptest::collection::vec("[a-z0-9_-]{1,4}|xn--[a-z0-9-]{0,5}|0x[0-9a-f]{0,3}|[a-z0-9-]{60,64}", 1..7),
            behind in "([/?#][ -~]{0,12}){0,3}",
        ) {
            let text = format!("{scheme}{}{behind}", labels.join("."));
            if is_plain_url(text.as_bytes()) {
                prop_assert_eq!(parse_url(text.as_bytes()), judge_url(&text, None), "{}", text);
                prop_assert!(parse(&text).is_ok(), "{text}: {:?}", parse(&text));
            }
        }

        #[test]
        fn checking_says_what_parsing_says(text in "[a-z:/.@\\\\ #?%0-9ü\t-]{0,30}|https?://[a-z0-9.@:/%_-]{0,30}") {
            prop_assert_eq!(WarmRequest::check(text.as_bytes()), parse(&text).map(drop));
        }
    }
}
