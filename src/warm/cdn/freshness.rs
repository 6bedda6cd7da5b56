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
