//! What the fuzz targets call: cdnwarm's parsers of outside input, from its own source files.
//!
//! The files are taken one by one, so that a target builds in seconds and without librdkafka; each stands in a module of
//! the same name as there. A new target is a function here, a file in `fuzz_targets/` and its `[[bin]]` in `Cargo.toml`.
#![allow(dead_code, unused_imports, reason = "each target needs a part of what the files hold")]

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, header};
use serde_json::Value;
use url::Host;

use request::WarmRequest;
use warm::guard::Guard;

#[path = "../../src/outcome.rs"]
mod outcome;
#[path = "../../src/redact.rs"]
mod redact;
#[path = "../../src/request.rs"]
mod request;
#[path = "../../src/verdict.rs"]
mod verdict;
#[path = "../../src/version.rs"]
mod version;

#[path = "."]
mod serve {
    #[path = "."]
    pub(crate) mod auth {
        #[path = "../../src/serve/auth/refusal.rs"]
        mod refusal;
        #[path = "../../src/serve/auth/token.rs"]
        mod token;

        /// The claims of a token that wants nothing but a signature, or why it is refused.
        pub(crate) fn judge(
            headers: &http::HeaderMap,
            audience: &str,
            service_account: &str,
            now_s: f64,
        ) -> Result<String, String> {
            let expected = token::Expected {
                audience: audience.to_owned(),
                service_account: service_account.to_owned(),
            };
            let judged = || {
                let text = token::bearer(headers)?;
                let token = token::Unverified::parse(text)?;
                let (signed, signature) = text.rsplit_once('.').expect("three parts");
                assert_eq!(token.signature, signature);
                token.check_algorithm()?;
                token.key_id()?;
                token.claims.check(&expected, now_s)?;
                Ok(signed.to_owned())
            };
            judged().map_err(|refusal: refusal::Refusal| refusal.detail)
        }
    }
    #[path = "../../src/serve/envelope.rs"]
    pub(crate) mod envelope;
    #[path = "../../src/serve/pack.rs"]
    mod pack;

    /// The data of each URL in a push, as the handler sees it.
    pub(crate) fn lines<'a>(push: &'a envelope::Push<'_>) -> Vec<&'a [u8]> {
        if pack::is_pack(push) { pack::lines(push).map(|line| line.data).collect() } else { vec![&push.data] }
    }
}

#[path = "."]
mod warm {
    #[path = "../../src/warm/addresses.rs"]
    pub(crate) mod addresses;
    #[path = "../../src/warm/cdn/mod.rs"]
    pub(crate) mod cdn;
    #[path = "../../src/warm/http1/framing.rs"]
    mod framing;
    #[path = "../../src/warm/guard.rs"]
    pub(crate) mod guard;
    #[path = "../../src/warm/hosts.rs"]
    mod hosts;

    /// What became of a content.
    #[derive(Debug, PartialEq, Eq)]
    pub(crate) struct Taken {
        pub(crate) is_chunked: bool,
        pub(crate) data: Vec<u8>,
        /// Whether it ended, and how many bytes came behind its end; or why it is none.
        pub(crate) end: Result<(bool, usize), &'static str>,
    }

    /// Takes a response's content as it comes in these pieces; none where its head allows no framing.
    pub(crate) fn take<'a>(
        headers: &http::HeaderMap,
        pieces: impl Iterator<Item = &'a [u8]>,
    ) -> Option<Taken> {
        let (mut response, ()) = http::Response::new(()).into_parts();
        response.headers = headers.clone();
        let (mut framing, _) = framing::Framing::of(&http::Method::GET, &mut response).ok()?;
        let is_chunked = matches!(framing, framing::Framing::Chunked(_));
        let (mut data, mut left) = (Vec::new(), 0);
        for mut piece in pieces {
            let (before, came) = (data.len(), piece.len());
            match framing.take(&mut piece, |bytes| data.extend_from_slice(bytes)) {
                Ok(told) => assert_eq!(told, (data.len() - before) as u64, "what is told is what was shown"),
                Err(bad) => return Some(Taken { is_chunked, data, end: Err(bad.0) }),
            }
            assert!(data.len() - before + piece.len() <= came, "no more than came");
            assert!(piece.is_empty() || framing.is_at_end(), "all is taken up to the end");
            left += piece.len();
        }
        Some(Taken { is_chunked, data, end: Ok((framing.is_at_end(), left)) })
    }
}

/// The body of a push, down to whether its URLs would be fetched.
pub fn envelope(body: &[u8]) {
    let Ok(push) = serve::envelope::parse(body) else { return };
    // Decoded a second time, in another way.
    if let Ok(value) = serde_json::from_slice::<Value>(body) {
        let text = value["message"]["data"].as_str().unwrap_or_default();
        let mut engines = [STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD].into_iter();
        assert!(engines.any(|engine| engine.decode(text).as_deref() == Ok(&push.data)), "{value}");
    }
    let options = || push.attributes.iter().map(|(name, value)| (name.as_ref(), value.as_ref()));
    for data in serve::lines(&push) {
        match WarmRequest::parse(data, options()) {
            Ok(request) => {
                assert!(WarmRequest::check(data).is_ok(), "checking says what parsing says");
                let _ = Guard::default().check(request.url());
                let _ = request.refusal("here", || jiff::Timestamp::UNIX_EPOCH);
            }
            Err(error) => drop(error.reason()),
        }
    }
}

/// A URL, and behind a line feed a redirect's target.
pub fn url_and_guard(data: &[u8]) {
    let (data, location) = match data.iter().position(|byte| *byte == b'\n') {
        Some(at) => (&data[..at], Some(&data[at + 1..])),
        None => (data, None),
    };
    let parsed = WarmRequest::parse(data, []);
    assert_eq!(parsed.is_ok(), WarmRequest::check(data).is_ok(), "checking says what parsing says");
    let Ok(request) = parsed else { return };
    judge(&request);
    if let Some(Ok(next)) = location.map(|location| request.redirected(location)) {
        judge(&next);
    }
}

/// What holds for whatever the guard lets pass, found out in other ways than the guard's.
fn judge(request: &WarmRequest) {
    let url = request.url();
    let text = url.as_str();
    let again = WarmRequest::parse(text.as_bytes(), []).unwrap_or_else(|error| panic!("{text}: {error:?}"));
    assert_eq!(again.url(), url, "a URL that was parsed is parsed to itself");
    let _ = outcome::shown_url(url);
    if Guard::default().check(url).is_err() {
        return;
    }
    assert!(matches!(url.scheme(), "http" | "https"), "{text}");
    assert!(matches!(url.port_or_known_default(), Some(80 | 443)), "{text}");
    assert!(url.username().is_empty() && url.password().is_none() && !text.contains('\\'), "{text}");
    // What a client would dial, which parses the host for itself.
    let uri: http::Uri = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
    let host = uri.host().unwrap_or_default();
    assert_eq!(Some(host), url.host_str(), "{text}: both see one host");
    match url.host() {
        Some(Host::Domain(name)) => {
            assert!(host.parse::<IpAddr>().is_err() && name.contains('.'), "{text}");
        }
        Some(Host::Ipv4(ip)) => assert!(!is_private(ip.into()), "{text}"),
        Some(Host::Ipv6(ip)) => assert!(!is_private(ip.into()), "{text}"),
        None => panic!("{text}"),
    }
}

/// The best known of the addresses that are never dialled.
fn is_private(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => {
            ip.is_private()
                || ip.is_loopback()
                || ip.is_link_local()
                || ip.is_multicast()
                || ip.is_broadcast()
                || ip.is_unspecified()
                || ip.is_documentation()
        }
        IpAddr::V6(ip) => {
            ip.is_loopback()
                || ip.is_unspecified()
                || ip.is_multicast()
                || ip.is_unique_local()
                || ip.is_unicast_link_local()
        }
    }
}

/// The `Authorization` headers of a push, a line each; or, in three lines that start with a brace, what a token is made of:
/// its header, its claims and its signature.
pub fn token(data: &[u8]) {
    let lines: Vec<&[u8]> = data.split(|byte| *byte == b'\n').collect();
    let mut headers = HeaderMap::new();
    let values = match lines[..] {
        [parameters, claims, signature] if data.starts_with(b"{") => {
            let [parameters, claims] = [parameters, claims].map(|part| URL_SAFE_NO_PAD.encode(part));
            let token = format!("Bearer {parameters}.{claims}.");
            vec![[token.as_bytes(), signature].concat()]
        }
        _ => lines.into_iter().map(<[u8]>::to_vec).collect(),
    };
    for value in values.into_iter().filter_map(|value| HeaderValue::from_bytes(&value).ok()) {
        headers.append(header::AUTHORIZATION, value);
    }
    let (audience, account, now_s) = ("https://warm.example.com/", "push@p.iam.gserviceaccount.com", 1.8e9);
    match serve::auth::judge(&headers, audience, account, now_s) {
        Err(detail) => assert!(!detail.contains(char::is_control), "{detail:?} is for the log"),
        Ok(signed) => {
            // Decoded a second time, in another way.
            let (parameters, claims) = signed.split_once('.').expect("two parts");
            let object = |part: &str| -> Value {
                serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).expect("base64url")).expect("JSON")
            };
            let (parameters, claims) = (object(parameters), object(claims));
            assert_eq!(headers.len(), 1);
            assert!(parameters["alg"] == "RS256" && parameters["kid"].is_string(), "{parameters}");
            assert!(parameters.get("crit").is_none(), "{parameters}");
            assert!(claims["aud"] == audience && claims["email"] == account, "{claims}");
            assert!(claims["email_verified"] == true, "{claims}");
            assert!(claims["exp"].as_f64().is_some_and(|expiry_s| expiry_s > now_s - 60.0), "{claims}");
        }
    }
}

/// The headers of a response, a line each, judged as an edge's.
pub fn cache_headers(data: &[u8]) {
    let Some(headers) = headers(data) else { return };
    let (asked, ()) = Request::get("https://example.com/a").body(()).expect("a valid request").into_parts();
    let (mut response, ()) = Response::new(()).into_parts();
    response.headers = headers;
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    for cdns in ["", "akamai", "fastly", "azure", "varnish"] {
        let speakers = warm::cdn::Speakers {
            status: vec![HeaderName::from_static("x-cache-status")],
            pop: vec![HeaderName::from_static("x-cache-id")],
            cdns: cdns.parse().into_iter().collect(),
        };
        let assessment = warm::cdn::assess(&speakers, &asked, &response, now);
        if assessment.verdict == verdict::Verdict::Warm {
            assert!(
                assessment.evidence.header.is_some() && assessment.evidence.value.is_some(),
                "{assessment:?}"
            );
        }
        let texts = [
            assessment.evidence.value,
            assessment.evidence.cdn,
            assessment.evidence.pop,
            assessment.evidence.etag,
        ];
        assert!(texts.iter().flatten().all(|text| text.len() <= 256), "{texts:?}");
        let _ = assessment.verdict.to_string();
    }
}

/// Headers, a line each; none where they are too many.
fn headers(lines: &[u8]) -> Option<HeaderMap> {
    let mut headers = HeaderMap::new();
    for line in lines.split(|byte| *byte == b'\n') {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let name = HeaderName::from_bytes(&line[..colon]);
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.try_append(name, value).ok()?;
        }
    }
    Some(headers)
}

/// A line whose bytes say how long the pieces are, again and again; the headers of a response, a line each; an empty line;
/// and what comes behind its head.
pub fn framing(data: &[u8]) {
    let Some(line) = data.iter().position(|byte| *byte == b'\n') else { return };
    // From the line feed on: there may be no headers.
    let (lengths, rest) = data.split_at(line);
    let Some(empty) = rest.windows(2).position(|bytes| bytes == b"\n\n") else { return };
    let (head, content) = (&rest[..empty], &rest[empty + 2..]);
    let Some(headers) = headers(head) else { return };
    let Some(whole) = warm::take(&headers, std::iter::once(content)) else { return };
    // With a piece of one byte after all of them there is no standing still.
    let mut lengths = lengths.iter().map(|byte| usize::from(*byte)).chain([1]).cycle();
    let mut left = content;
    let pieces = std::iter::from_fn(|| {
        let length = lengths.next().unwrap_or(1).min(left.len());
        let piece = left.split_off(..length);
        piece.filter(|piece| !piece.is_empty() || !left.is_empty())
    });
    assert_eq!(warm::take(&headers, pieces).as_ref(), Some(&whole), "pieces are taken as the whole is");
    match whole.end {
        Ok((is_at_end, _)) if whole.is_chunked => {
            if is_at_end {
                assert_eq!(whole.data, put_together(content));
            }
        }
        Ok((is_at_end, left)) => {
            let (taken, behind) = content.split_at(whole.data.len());
            assert!(whole.data == taken && left == behind.len() && (is_at_end || left == 0));
        }
        Err(_) => assert!(whole.is_chunked && content.len() >= whole.data.len()),
    }
}

/// The data of a chunked content that is whole, found out in another way.
fn put_together(mut content: &[u8]) -> Vec<u8> {
    let mut data = Vec::new();
    loop {
        let line = content.windows(2).position(|bytes| bytes == b"\r\n").expect("a line for each chunk");
        let digits = content.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
        let digits = std::str::from_utf8(&content[..digits]).expect("digits are ASCII");
        let size = usize::from_str_radix(digits, 16).expect("a size before each chunk");
        if size == 0 {
            return data;
        }
        let (chunk, rest) = content[line + 2..].split_at(size);
        data.extend_from_slice(chunk);
        content = rest.strip_prefix(b"\r\n").expect("a line's end behind each chunk");
    }
}
