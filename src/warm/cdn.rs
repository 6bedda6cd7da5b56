//! From a response's head to how warm the edge is: what the caches on the way say, judged by RFC 9111 and RFC 9211.
//!
//! What a cache may say, and in which header, is data: one row of `SOURCES` per way of saying it. A row only reads;
//! the verdict is made in one place, `judge`. `Age` alone is never evidence: any cache on the way may have set it.

use std::time::{Duration, SystemTime};

use http::header::{self, AsHeaderName};
use http::{HeaderMap, HeaderValue, StatusCode};
use http_cache_semantics::{CacheOptions, CachePolicy, RequestLike};
use sfv::{BareItem, FieldType, Item, List, ListEntry, Parser};

use crate::outcome::CacheEvidence;
use crate::verdict::Verdict;

/// The most text of one header that evidence holds, in bytes.
const MAX_EVIDENCE_BYTES: usize = 256;

/// `Cache-Status` fields longer than this, all lines together, count as malformed; real ones are a few hundred bytes.
const MAX_CACHE_STATUS_BYTES: usize = 16 * 1024;

/// The greatest `Age` that is believed, in seconds: RFC 9111, section 1.2.2.
const MAX_AGE_S: u64 = 1 << 31;

/// One way in which caches say what they did.
///
/// `read` must first make sure that the response came through such a cache, since an origin may send any header.
struct Source {
    /// The header that `read` rests on, in lower case.
    header: &'static str,
    read: fn(&HeaderMap) -> Option<Said>,
}

/// The ways that are known; the first that reads something decides.
const SOURCES: [Source; 1] = [Source { header: "cache-status", read: cache_status }];

/// What the cache nearest to us said that it did.
struct Said {
    what: What,
    /// Which cache spoke.
    cdn: Option<String>,
    pop: Option<String>,
    ttl_s: Option<i64>,
    /// The header's text, for the evidence.
    value: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    /// Answered from what it holds.
    Hit,
    /// Forwarded the request and kept the response.
    Kept,
    /// Shared the response to another forwarded request; whether it was kept is not said.
    Collapsed,
    /// Forwarded the request and does not say that it kept the response.
    Missed { upper_tier_hit: bool },
    /// Forwarded the request because of how it is configured, or of how it was asked.
    Bypassed,
}

/// How warm the edge is, from a 2xx response whose body was read to its end, and the headers that say so.
///
/// `request` is the one that was sent, `now` the time at which the response's head arrived. Malformed and absent
/// cache headers are the same: no evidence.
pub(crate) fn judge(
    request: &impl RequestLike,
    response: &http::response::Parts,
    now: SystemTime,
) -> (Verdict, CacheEvidence) {
    let freshness = Freshness::of(request, response, now);
    let evidence = CacheEvidence {
        age_s: freshness.age.map(|age| age.as_secs()),
        etag: response
            .headers
            .get(header::ETAG)
            .map(|value| bounded(&String::from_utf8_lossy(value.as_bytes()))),
        ..CacheEvidence::default()
    };
    let said = SOURCES.iter().find_map(|source| Some((source.header, (source.read)(&response.headers)?)));
    let Some((header, said)) = said else {
        return without_evidence(&response.headers, evidence);
    };
    let verdict = match said.what {
        What::Hit if said.ttl_s.is_some_and(|ttl_s| ttl_s <= 0) => Verdict::Stale,
        What::Hit if said.ttl_s.is_none() && freshness.is_over() => Verdict::Stale,
        What::Hit => Verdict::Warm,
        What::Kept => Verdict::Filled,
        What::Bypassed => Verdict::Uncacheable("bypass"),
        What::Collapsed | What::Missed { .. } => match (freshness.why_not_kept, said.what) {
            (Some(reason), _) => Verdict::Uncacheable(reason),
            (None, What::Missed { upper_tier_hit: true }) => Verdict::ShieldOnly,
            (None, _) => Verdict::Filled,
        },
    };
    let evidence = CacheEvidence {
        header: Some(header),
        value: Some(said.value),
        cdn: said.cdn,
        pop: said.pop,
        ttl_s: said.ttl_s,
        ..evidence
    };
    (verdict, evidence)
}

/// No cache spoke: all that can be said is whether the response forbids every shared cache to keep it.
fn without_evidence(headers: &HeaderMap, evidence: CacheEvidence) -> (Verdict, CacheEvidence) {
    let Some(reason) = ["no-store", "private"].into_iter().find(|name| has_directive(headers, name)) else {
        return (Verdict::Fetched, evidence);
    };
    let value = bounded(&joined(headers, header::CACHE_CONTROL));
    (
        Verdict::Uncacheable(reason),
        CacheEvidence { header: Some("cache-control"), value: Some(value), ..evidence },
    )
}

/// What RFC 9111 says of a response, from where a shared cache stands.
struct Freshness {
    age: Option<Duration>,
    /// How long it is fresh, where the response itself says so; zero where it says: not at all.
    lifetime: Option<Duration>,
    /// Why a shared cache that keeps to RFC 9111 does not keep it; `None` where it may.
    why_not_kept: Option<&'static str>,
}

impl Freshness {
    fn of(request: &impl RequestLike, response: &http::response::Parts, now: SystemTime) -> Self {
        let mut headers = response.headers.clone();
        let age = age(&headers).map(Duration::from_secs);
        // Without it, the time to live that the policy gives is the whole lifetime.
        headers.remove(header::AGE);
        // A part of an object may be kept where the whole may; that caches need not understand 206 (RFC 9111,
        // section 3.3) is theirs to say.
        let status = match response.status {
            StatusCode::PARTIAL_CONTENT => StatusCode::OK,
            other => other,
        };
        let policy = policy(request, status, headers, now);
        let says_so =
            ["max-age", "s-maxage", "no-cache"].iter().any(|name| has_directive(&response.headers, name))
                || response.headers.contains_key(header::EXPIRES)
                || response.headers.contains_key(header::PRAGMA);
        let mut freshness = Self {
            age,
            lifetime: says_so.then(|| policy.time_to_live(now)),
            why_not_kept: why_not_storable(request.headers(), &response.headers, &policy),
        };
        if freshness.why_not_kept.is_none() {
            // A response that says nothing of its freshness may be kept for as long as the edge sees fit (RFC 9111,
            // section 4.2.2), and many edges have a default.
            freshness.why_not_kept = match freshness.lifetime {
                Some(Duration::ZERO) => Some("zero freshness"),
                Some(_) if freshness.is_over() => Some("expired on arrival"),
                _ => None,
            };
        }
        freshness
    }

    /// Whether `Age` proves that the response is no longer fresh.
    ///
    /// A lifetime of zero beside a hit proves nothing: the edge keeps it by rules of its own, and the zero is meant
    /// for browsers.
    fn is_over(&self) -> bool {
        match (self.age, self.lifetime) {
            (Some(age), Some(lifetime)) => !lifetime.is_zero() && age >= lifetime,
            _ => false,
        }
    }
}

/// What in the two heads keeps a shared cache from storing the response, the plainest reason first.
fn why_not_storable(request: &HeaderMap, response: &HeaderMap, policy: &CachePolicy) -> Option<&'static str> {
    if has_directive(request, "no-store") || has_directive(response, "no-store") {
        Some("no-store")
    } else if has_directive(response, "private") {
        Some("private")
    } else if !policy.is_storable() {
        Some(if request.contains_key(header::AUTHORIZATION) { "authorization" } else { "status" })
    } else if members(response, header::VARY).any(|name| name == "*") {
        Some("vary *")
    } else if has_directive(response, "no-cache") {
        Some("no-cache")
    } else if response.contains_key(header::SET_COOKIE)
        && !["public", "immutable"].iter().any(|name| has_directive(response, name))
    {
        // RFC 9111, section 7.3, leaves it to the cache; the large CDNs do not keep such a response.
        Some("set-cookie")
    } else {
        None
    }
}

/// The policy of a shared cache for this response, which arrived `now`: whether to keep it, and how long it is fresh.
///
/// `http-cache-semantics` knows directives in lower case only, adds up `Age` without looking for overflow, and takes
/// `proxy-revalidate` for "never fresh", where RFC 9111, section 5.2.2.8, means `must-revalidate` by it. This is
/// where such headers are put right, so policies are made nowhere else.
pub(crate) fn policy(
    request: &impl RequestLike,
    status: StatusCode,
    mut headers: HeaderMap,
    now: SystemTime,
) -> CachePolicy {
    if headers.contains_key(header::CACHE_CONTROL) {
        let directives = joined(&headers, header::CACHE_CONTROL)
            .to_ascii_lowercase()
            .replace("proxy-revalidate", "must-revalidate");
        match HeaderValue::from_str(&directives) {
            Ok(directives) => headers.insert(header::CACHE_CONTROL, directives),
            Err(_) => headers.remove(header::CACHE_CONTROL),
        };
    }
    match age(&headers) {
        Some(age_s) => headers.insert(header::AGE, HeaderValue::from(age_s)),
        None => headers.remove(header::AGE),
    };
    let mut response = http::Response::new(());
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    CachePolicy::new_options(request, &response, now, CacheOptions::default())
}

/// `Age` in seconds; one that is no number counts as absent (RFC 9111, section 5.1), one beyond counting as the limit.
fn age(headers: &HeaderMap) -> Option<u64> {
    let first = members(headers, header::AGE).next()?;
    let is_number = !first.is_empty() && first.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| first.parse::<u64>().unwrap_or(MAX_AGE_S).min(MAX_AGE_S))
}

/// Reads `Cache-Status` (RFC 9211): the last member is the cache nearest to us.
fn cache_status(headers: &HeaderMap) -> Option<Said> {
    let lines: Vec<&[u8]> = headers
        .get_all("cache-status")
        .iter()
        .map(HeaderValue::as_bytes)
        .filter(|line| !line.is_empty())
        .collect();
    let field = lines.join(&b", "[..]);
    if field.len() > MAX_CACHE_STATUS_BYTES {
        return None;
    }
    let mut members = Vec::new();
    for entry in Parser::new(&field).parse::<List>().ok()? {
        let ListEntry::Item(item) = entry else { return None };
        let name = cache_name(&item)?;
        members.push((name, item));
    }
    let (name, last) = members.last()?;
    let upper_tiers = &members[..members.len() - 1];
    Some(Said {
        what: what_was_done(last, upper_tiers.iter().any(|(_, item)| is_hit(item)))?,
        cdn: Some(bounded(name)),
        pop: None,
        ttl_s: last.params.get("ttl").and_then(BareItem::as_integer).map(i64::from),
        value: shown_members(members.into_iter().map(|(_, item)| item)),
    })
}

fn cache_name(member: &Item) -> Option<String> {
    let token = member.bare_item.as_token().map(|token| token.as_str().to_owned());
    token.or_else(|| member.bare_item.as_string().map(|string| string.as_str().to_owned()))
}

/// `None` where the member says neither. A parameter of another type than RFC 9211 gives it counts as absent.
fn what_was_done(member: &Item, upper_tier_hit: bool) -> Option<What> {
    let flag = |name| member.params.get(name).and_then(BareItem::as_boolean);
    let forwarded = member.params.get("fwd").and_then(BareItem::as_token);
    // A stored object that the next hop just confirmed is kept, whether or not the cache says so.
    let validated =
        member.params.get("fwd-status").and_then(BareItem::as_integer).map(i64::from) == Some(304);
    Some(match forwarded.map(|reason| reason.as_str()) {
        None if is_hit(member) => What::Hit,
        None if flag("hit").is_none() => return None,
        Some(_) if flag("stored") == Some(true) => What::Kept,
        Some("stale") if validated => What::Kept,
        Some("bypass" | "method" | "request") => What::Bypassed,
        _ if flag("collapsed") == Some(true) => What::Collapsed,
        _ => What::Missed { upper_tier_hit },
    })
}

/// A member that claims both a hit and a forward contradicts itself (RFC 9211, section 2.1): that is no hit.
fn is_hit(member: &Item) -> bool {
    member.params.get("hit").and_then(BareItem::as_boolean) == Some(true)
        && !member.params.contains_key("fwd")
}

/// The members as text, without their cache keys: those hold the URL, whose query may be signed.
fn shown_members(members: impl Iterator<Item = Item>) -> String {
    let shown: List = members
        .map(|mut member| {
            member.params.shift_remove("key");
            ListEntry::Item(member)
        })
        .collect();
    bounded(&shown.serialize().unwrap_or_default())
}

/// The end of `text`, at most [`MAX_EVIDENCE_BYTES`] of it: in a list of caches the last one decides.
fn bounded(text: &str) -> String {
    const ELLIPSIS: &str = "…";
    if text.len() <= MAX_EVIDENCE_BYTES {
        return text.to_owned();
    }
    let start = text.ceil_char_boundary(text.len() - (MAX_EVIDENCE_BYTES - ELLIPSIS.len()));
    format!("{ELLIPSIS}{}", &text[start..])
}

/// All lines of a header in one, as RFC 9110, section 5.3, joins them; lines that are not ASCII are left out.
fn joined(headers: &HeaderMap, name: impl AsHeaderName) -> String {
    let lines: Vec<&str> = headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).collect();
    lines.join(", ")
}

/// The members of a header that is a comma list, over all its lines.
fn members(headers: &HeaderMap, name: impl AsHeaderName) -> impl Iterator<Item = &str> {
    let lines = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    lines.flat_map(|line| line.split(',').map(str::trim))
}

fn has_directive(headers: &HeaderMap, name: &str) -> bool {
    members(headers, header::CACHE_CONTROL).any(|directive| {
        directive.split('=').next().is_some_and(|found| found.trim().eq_ignore_ascii_case(name))
    })
}

#[cfg(test)]
mod tests {
    use http::{Request, Response};

    use super::*;

    /// The verdict for a GET that was answered with this status and these headers.
    fn judged_with(
        request: &[(&str, &str)],
        status: u16,
        headers: &[(&str, &str)],
    ) -> (Verdict, CacheEvidence) {
        let mut get = Request::get("/a");
        for (name, value) in request {
            get = get.header(*name, *value);
        }
        let mut response = Response::builder().status(status);
        for (name, value) in headers {
            response = response.header(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        judge(&get.body(()).unwrap(), &response.body(()).unwrap().into_parts().0, SystemTime::now())
    }

    fn judged(headers: &[(&str, &str)]) -> (Verdict, CacheEvidence) {
        judged_with(&[], 200, headers)
    }

    /// The verdict for a storable response with this `Cache-Status`.
    fn said(cache_status: &str) -> Verdict {
        judged(&[("Cache-Status", cache_status), ("Cache-Control", "max-age=60")]).0
    }

    #[test]
    fn the_member_nearest_to_us_decides() {
        for (cache_status, verdict) in [
            ("e; hit; ttl=10", Verdict::Warm),
            ("e; hit", Verdict::Warm),
            ("\"Edge 1\"; hit; ttl=1; detail=MEMORY", Verdict::Warm),
            ("s; fwd=uri-miss, e; hit", Verdict::Warm),
            ("e; hit; ttl=0", Verdict::Stale),
            ("e; hit; ttl=-5", Verdict::Stale),
            ("s; hit; ttl=5, e; hit; ttl=-5", Verdict::Stale),
            ("e; fwd=uri-miss; stored", Verdict::Filled),
            ("e; fwd=vary-miss; stored=?1", Verdict::Filled),
            ("e; fwd=stale; stored", Verdict::Filled),
            ("e; fwd=request; stored", Verdict::Filled),
            ("e; fwd=stale; fwd-status=304", Verdict::Filled),
            ("e; fwd=uri-miss; collapsed", Verdict::Filled),
            ("s; hit, e; fwd=uri-miss; collapsed", Verdict::Filled),
            ("s; hit, e; fwd=uri-miss; stored", Verdict::Filled),
            ("e; fwd=uri-miss", Verdict::Filled),
            ("e; fwd=some-day", Verdict::Filled),
            ("s; fwd=uri-miss; stored, e; fwd=uri-miss", Verdict::Filled),
            ("s; hit, e; fwd=uri-miss", Verdict::ShieldOnly),
            ("s; hit, m; fwd=miss, e; fwd=miss; stored=?0", Verdict::ShieldOnly),
            ("s; hit, e; hit=?0", Verdict::ShieldOnly),
            ("e; fwd=bypass", Verdict::Uncacheable("bypass")),
            ("e; fwd=method", Verdict::Uncacheable("bypass")),
            ("s; hit, e; fwd=request", Verdict::Uncacheable("bypass")),
        ] {
            assert_eq!(said(cache_status), verdict, "{cache_status}");
        }
    }

    #[test]
    fn a_malformed_or_mistyped_cache_status_is_no_evidence() {
        let huge = format!("e; hit; detail=\"{}\"", "x".repeat(MAX_CACHE_STATUS_BYTES));
        for cache_status in [
            "",
            " ",
            ",",
            "e; hit,",
            "e; HIT",
            "e; hit; ttl=",
            "e;; hit",
            "\"e; hit",
            "(e); hit",
            "e; hit, (f g)",
            "5; hit",
            "?1; hit",
            "e",
            "e; hit=1",
            "e; hit=\"true\"",
            "e; fwd=\"bypass\"",
            "e; fwd",
            "e; stored",
            "e; ttl=5",
            "é; hit",
            "\u{1F525}",
            "HIT from e",
            &huge,
        ] {
            assert_eq!(said(cache_status), Verdict::Fetched, "{cache_status}");
            assert_eq!(
                judged(&[("cache-status", cache_status)]).1,
                CacheEvidence::default(),
                "{cache_status}"
            );
        }
        let mut latin1 = HeaderMap::new();
        latin1.insert("cache-status", HeaderValue::from_bytes(b"e\xe9; hit").unwrap());
        assert!(cache_status(&latin1).is_none());
        for (cache_status, verdict) in [
            ("e; hit; ttl=abc", Verdict::Warm),
            ("e; hit; ttl=1.5", Verdict::Warm),
            ("e; hit; fwd=stale", Verdict::Filled),
            ("s; hit; fwd=stale, e; fwd=miss", Verdict::Filled),
            ("e; hit=?0; fwd=3", Verdict::Filled),
            ("e; fwd=stale; fwd-status=\"304\"; stored=1", Verdict::Filled),
        ] {
            assert_eq!(said(cache_status), verdict, "{cache_status}");
        }
    }

    #[test]
    fn lines_and_names_of_the_header_are_read_as_http_has_it() {
        let lines = |first, second| judged(&[("CACHE-STATUS", first), ("Cache-Status", second)]);
        assert_eq!(lines("s; fwd=miss", "e; hit").0, Verdict::Warm);
        assert_eq!(lines("e; hit", "").0, Verdict::Warm);
        assert_eq!(lines("s; hit", "e; fwd=miss").0, Verdict::ShieldOnly);
        let mut many = vec!["s; fwd=uri-miss"; 99].join(", ");
        many.push_str(", e; hit; ttl=7");
        let (verdict, evidence) = judged(&[("cache-status", &many)]);
        assert_eq!((verdict, evidence.cdn.as_deref(), evidence.ttl_s), (Verdict::Warm, Some("e"), Some(7)));
        let value = evidence.value.unwrap();
        assert!(value.starts_with('…') && value.ends_with("s;fwd=uri-miss, e;hit;ttl=7"), "{value}");
        assert!(value.len() <= MAX_EVIDENCE_BYTES);
    }

    #[test]
    fn a_hit_without_ttl_is_stale_only_where_age_proves_it() {
        let hit = |age, cache_control| {
            judged(&[("Cache-Status", "e; hit"), ("Age", age), ("Cache-Control", cache_control)]).0
        };
        assert_eq!(hit("59", "max-age=60"), Verdict::Warm);
        assert_eq!(hit("60", "max-age=60"), Verdict::Stale);
        assert_eq!(hit("60", "MAX-AGE=60"), Verdict::Stale);
        assert_eq!(hit("60", "max-age=60, s-maxage=120"), Verdict::Warm);
        assert_eq!(hit("60", "max-age=60, proxy-revalidate"), Verdict::Stale);
        assert_eq!(
            hit("5", "max-age=0, must-revalidate"),
            Verdict::Warm,
            "the edge keeps it by rules of its own"
        );
        assert_eq!(hit("99", ""), Verdict::Warm);
        for not_an_age in ["", "-1", "1.5", "soon"] {
            assert_eq!(hit(not_an_age, "max-age=1"), Verdict::Warm, "{not_an_age}");
        }
        for beyond_counting in ["18446744073709551615", "99999999999999999999999999"] {
            assert_eq!(hit(beyond_counting, "max-age=60"), Verdict::Stale, "{beyond_counting}");
        }
        let with_ttl = [("Cache-Status", "e; hit; ttl=5"), ("Age", "99"), ("Cache-Control", "max-age=60")];
        assert_eq!(judged(&with_ttl).0, Verdict::Warm, "the cache knows its ttl better than we do");
    }

    #[test]
    fn a_miss_that_no_shared_cache_may_keep_is_uncacheable_with_the_reason() {
        for (headers, reason) in [
            (&[("cache-control", "no-store")][..], "no-store"),
            (&[("cache-control", "Max-Age=60"), ("cache-control", "No-Store")], "no-store"),
            (&[("cache-control", "private, max-age=60")], "private"),
            (&[("cache-control", "PRIVATE=\"x-id\"")], "private"),
            (&[("cache-control", "max-age=60"), ("set-cookie", "a=b")], "set-cookie"),
            (&[("cache-control", "max-age=60"), ("vary", "accept"), ("vary", "*")], "vary *"),
            (&[("cache-control", "no-cache")], "no-cache"),
            (&[("cache-control", "max-age=0")], "zero freshness"),
            (&[("cache-control", "max-age=60, s-maxage=0")], "zero freshness"),
            (&[("cache-control", "max-age=abc")], "zero freshness"),
            (&[("expires", "0")], "zero freshness"),
            (&[("pragma", "no-cache")], "zero freshness"),
            (&[("cache-control", "max-age=60"), ("age", "60")], "expired on arrival"),
        ] {
            let mut headers = headers.to_vec();
            headers.push(("cache-status", "s; hit, e; fwd=uri-miss"));
            assert_eq!(judged(&headers).0, Verdict::Uncacheable(reason), "{headers:?}");
            headers.pop();
            headers.push(("cache-status", "e; fwd=uri-miss; collapsed"));
            assert_eq!(judged(&headers).0, Verdict::Uncacheable(reason), "{headers:?}");
            headers.pop();
            headers.push(("cache-status", "e; fwd=uri-miss; stored"));
            assert_eq!(judged(&headers).0, Verdict::Filled, "the cache says that it kept it: {headers:?}");
        }
        let miss = ("cache-status", "e; fwd=uri-miss");
        for headers in [
            &[miss][..],
            &[miss, ("cache-control", "max-age=60, public"), ("set-cookie", "a=b")],
            &[miss, ("cache-control", "max-age=60"), ("vary", "accept-encoding")],
            &[miss, ("cache-control", "max-age=60, proxy-revalidate")],
            &[miss, ("expires", "Fri, 01 Jan 2100 00:00:00 GMT")],
        ] {
            assert_eq!(judged(headers).0, Verdict::Filled, "{headers:?}");
        }
    }

    #[test]
    fn the_request_and_the_status_count_too() {
        let miss = ("cache-status", "e; fwd=uri-miss");
        let secret = [("authorization", "Basic abc")];
        let fresh = [miss, ("cache-control", "max-age=60")];
        assert_eq!(judged_with(&secret, 200, &fresh).0, Verdict::Uncacheable("authorization"));
        assert_eq!(
            judged_with(&secret, 200, &[miss, ("cache-control", "public, max-age=60")]).0,
            Verdict::Filled
        );
        assert_eq!(
            judged_with(&[("cache-control", "no-store")], 200, &fresh).0,
            Verdict::Uncacheable("no-store")
        );
        assert_eq!(judged_with(&[], 206, &fresh).0, Verdict::Filled);
        assert_eq!(judged_with(&[], 202, &fresh).0, Verdict::Uncacheable("status"));
    }

    #[test]
    fn without_any_cache_only_a_prohibition_is_evidence() {
        assert_eq!(judged(&[]), (Verdict::Fetched, CacheEvidence::default()));
        let (verdict, evidence) =
            judged(&[("age", "5"), ("etag", "W/\"1\""), ("cache-control", "max-age=0")]);
        assert_eq!(verdict, Verdict::Fetched, "Age alone proves nothing");
        assert_eq!(
            (evidence.age_s, evidence.etag.as_deref(), evidence.header),
            (Some(5), Some("W/\"1\""), None)
        );
        for (value, reason) in [("no-store", "no-store"), ("max-age=9, Private", "private")] {
            let (verdict, evidence) = judged(&[("Cache-Control", value)]);
            assert_eq!(verdict, Verdict::Uncacheable(reason));
            assert_eq!((evidence.header, evidence.value.as_deref()), (Some("cache-control"), Some(value)));
        }
    }

    #[test]
    fn evidence_is_bounded_and_shows_no_cache_key() {
        let cache_status =
            "s; hit; key=\"/a?sig=s3cret\", \"My Edge\"; fwd=uri-miss; stored; key=\"/?sig=s3cret\"";
        let evidence = judged(&[("Cache-Status", cache_status)]).1;
        assert_eq!(evidence.header, Some("cache-status"));
        assert_eq!(evidence.value.as_deref(), Some("s;hit, \"My Edge\";fwd=uri-miss;stored"));
        assert_eq!(evidence.cdn.as_deref(), Some("My Edge"));
        let long = "é".repeat(1000);
        let long_name = format!("\"{}\"; hit", "n".repeat(1000));
        let evidence = judged(&[("etag", &long), ("cache-status", &long_name)]).1;
        for text in [evidence.etag, evidence.cdn, evidence.value] {
            assert!(text.as_ref().is_some_and(|text| text.len() <= MAX_EVIDENCE_BYTES), "{text:?}");
        }
    }
}
