//! What RFC 9111 says of a response from where a shared cache stands: whether it may be kept, and for how long it is fresh.

use std::time::{Duration, SystemTime};

use http::header;
use http::{HeaderMap, HeaderValue, StatusCode};
use http_cache_semantics::{CacheOptions, CachePolicy, RequestLike};

use super::headers::{has_directive, joined, members};
use crate::verdict::Obstacle;

/// The greatest `Age` that is believed, in seconds: RFC 9111, section 1.2.2.
const MAX_AGE_S: u64 = 1 << 31;

/// What RFC 9111 says of a response, from where a shared cache stands.
pub(super) struct Freshness {
    pub(super) age: Option<Duration>,
    /// How long it is fresh, where the response itself says so; zero where it says: not at all.
    lifetime: Option<Duration>,
    /// Why a shared cache that keeps to RFC 9111 does not keep it; `None` where it may.
    pub(super) why_not_kept: Option<Obstacle>,
}

impl Freshness {
    pub(super) fn of(request: &impl RequestLike, response: &http::response::Parts, now: SystemTime) -> Self {
        let age = age(&response.headers).map(Duration::from_secs);
        let (lifetime, why_not_kept) = match plain_lifetime(request.headers(), response) {
            Some(lifetime) => (lifetime, None),
            None => by_policy(request, response, now),
        };
        let mut freshness = Self { age, lifetime, why_not_kept };
        if freshness.why_not_kept.is_none() {
            // A response that says nothing of its freshness may be kept for as long as the edge sees fit (RFC 9111,
            // section 4.2.2), and many edges have a default.
            freshness.why_not_kept = match freshness.lifetime {
                Some(Duration::ZERO) => Some(Obstacle::ZeroFreshness),
                Some(_) if freshness.is_over() => Some(Obstacle::ExpiredOnArrival),
                _ => None,
            };
        }
        freshness
    }

    /// Whether `Age` proves that the response is no longer fresh.
    ///
    /// A lifetime of zero beside a hit proves nothing: the edge keeps it by rules of its own, and the zero is meant
    /// for browsers.
    pub(super) fn is_over(&self) -> bool {
        match (self.age, self.lifetime) {
            (Some(age), Some(lifetime)) => !lifetime.is_zero() && age >= lifetime,
            _ => false,
        }
    }

    /// Whether it is known to be fresh: both `Age` and the lifetime are there, and say so.
    pub(super) fn is_proven(&self) -> bool {
        matches!((self.age, self.lifetime), (Some(age), Some(lifetime)) if age < lifetime)
    }
}

/// The lifetime of a response in which nothing is to be weighed, as most objects of a CDN are: one `Cache-Control` of directives
/// that allow, and nothing beside it that counts. Of others, which take ten times as long, nothing is said.
fn plain_lifetime(request: &HeaderMap, response: &http::response::Parts) -> Option<Option<Duration>> {
    let headers = &response.headers;
    let is_common = matches!(response.status, StatusCode::OK | StatusCode::PARTIAL_CONTENT);
    let counts_too = [header::EXPIRES, header::PRAGMA, header::SET_COOKIE];
    if !is_common
        || request.contains_key(header::CACHE_CONTROL)
        || request.contains_key(header::AUTHORIZATION)
        || counts_too.iter().any(|name| headers.contains_key(name))
        || headers.get_all(header::VARY).iter().any(|value| value.as_bytes().contains(&b'*'))
    {
        return None;
    }
    let mut lines = headers.get_all(header::CACHE_CONTROL).iter();
    let (Some(line), None) = (lines.next(), lines.next()) else { return None };
    let (mut max_age_s, mut shared_max_age_s) = (None, None);
    for directive in line.to_str().ok()?.split(',').map(str::trim) {
        let seconds = |text: &str| -> Option<u64> {
            // Longer numbers may be none.
            let is_number = text.len() <= 18 && text.bytes().all(|byte| byte.is_ascii_digit());
            is_number.then(|| text.parse().ok())?
        };
        match directive.split_once('=') {
            None if matches!(directive, "public" | "immutable" | "must-revalidate" | "no-transform") => {}
            Some(("max-age", value)) if max_age_s.is_none() => max_age_s = Some(seconds(value)?),
            Some(("s-maxage", value)) if shared_max_age_s.is_none() => {
                shared_max_age_s = Some(seconds(value)?)
            }
            Some(("stale-while-revalidate" | "stale-if-error", value)) => drop(seconds(value)?),
            _ => return None,
        }
    }
    Some(shared_max_age_s.or(max_age_s).map(Duration::from_secs))
}

/// The same by all the rules, and why a shared cache that keeps to RFC 9111 does not keep it.
fn by_policy(
    request: &impl RequestLike,
    response: &http::response::Parts,
    now: SystemTime,
) -> (Option<Duration>, Option<Obstacle>) {
    let mut headers = response.headers.clone();
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
    let lifetime = says_so.then(|| policy.time_to_live(now));
    (lifetime, why_not_storable(request.headers(), &response.headers, &policy))
}

/// What in the two heads keeps a shared cache from storing the response, the plainest reason first.
fn why_not_storable(request: &HeaderMap, response: &HeaderMap, policy: &CachePolicy) -> Option<Obstacle> {
    if has_directive(request, "no-store") || has_directive(response, "no-store") {
        Some(Obstacle::NoStore)
    } else if has_directive(response, "private") {
        Some(Obstacle::Private)
    } else if !policy.is_storable() {
        Some(match request.contains_key(header::AUTHORIZATION) {
            true => Obstacle::Authorization,
            false => Obstacle::Status,
        })
    } else if members(response, header::VARY).any(|name| name == "*") {
        Some(Obstacle::VaryAny)
    } else if has_directive(response, "no-cache") {
        Some(Obstacle::NoCache)
    } else if response.contains_key(header::SET_COOKIE)
        && !["public", "immutable"].iter().any(|name| has_directive(response, name))
    {
        // RFC 9111, section 7.3, leaves it to the cache; the large CDNs do not keep such a response.
        Some(Obstacle::SetCookie)
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

#[cfg(test)]
mod tests {
    use http::{HeaderName, Request, Response};
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const DIRECTIVES: [&str; 22] = [
        "public",
        "immutable",
        "must-revalidate",
        "no-transform",
        "max-age=0",
        "max-age=60",
        "max-age=60",
        "max-age=\"60\"",
        "max-age = 60",
        "max-age",
        "max-age=-1",
        "max-age=99999999999999999999",
        "s-maxage=0",
        "s-maxage=30",
        "stale-while-revalidate=30",
        "stale-if-error=x",
        "no-store",
        "private",
        "no-cache",
        "proxy-revalidate",
        "Max-Age=60",
        "",
    ];

    fn header() -> impl Strategy<Value = (HeaderName, String)> {
        let value = vec(proptest::sample::select(&DIRECTIVES[..]), 0..4).prop_map(|list| list.join(", "));
        let cache_control = value.prop_map(|value| (header::CACHE_CONTROL, value));
        let other = proptest::sample::select(vec![
            (header::VARY, "accept-encoding"),
            (header::VARY, "*"),
            (header::SET_COOKIE, "a=b"),
            (header::PRAGMA, "no-cache"),
            (header::EXPIRES, "0"),
            (header::AGE, "10"),
            (header::LAST_MODIFIED, "Mon, 01 Jan 2024 00:00:00 GMT"),
        ]);
        let other = other.prop_map(|(name, value)| (name, value.to_owned()));
        prop_oneof![3 => cache_control, 1 => other]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        #[test]
        fn the_short_way_says_what_the_policy_says(
            headers in vec(header(), 0..4),
            asked in proptest::option::weighted(0.2, prop_oneof![
                Just((header::AUTHORIZATION, "Bearer a")), Just((header::CACHE_CONTROL, "no-store"))]),
            status in proptest::sample::select(vec![200, 206, 203, 302]),
        ) {
            let mut response = Response::builder().status(status);
            for (name, value) in headers {
                response = response.header(name, value);
            }
            let (response, ()) = response.body(()).unwrap().into_parts();
            let mut request = Request::builder().uri("https://example.com/");
            if let Some((name, value)) = asked {
                request = request.header(name, value);
            }
            let (request, ()) = request.body(()).unwrap().into_parts();
            if let Some(lifetime) = plain_lifetime(&request.headers, &response) {
                prop_assert_eq!((lifetime, None), by_policy(&request, &response, SystemTime::now()));
            }
        }
    }
}
