//! The edge's memory: responses with their RFC 9111 policy, a few variants for each key, bounded by bytes.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use http_cache_semantics::{BeforeRequest, CachePolicy};
use moka::policy::EvictionPolicy;
use moka::sync::Cache;

/// What all stored responses of one edge may weigh, bodies, heads and keys.
const MAX_STORE_BYTES: u64 = 256 * 1024 * 1024;

/// How many responses to different request headers (`Vary`) are held for one key; the oldest goes first.
const MAX_VARIANTS: usize = 8;

/// What a stored response weighs beside its body: its head, its policy with both heads, the store's own books.
const OBJECT_OVERHEAD_BYTES: usize = 4096;

/// A stored response.
#[derive(Debug)]
pub(super) struct Object {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
    policy: CachePolicy,
    lifetime: Duration,
}

impl Object {
    /// The response to `request` that arrived `now`, where a shared cache may keep it and it is still fresh.
    pub(super) fn new(
        request: &Request<()>,
        status: StatusCode,
        headers: HeaderMap,
        body: Bytes,
        now: SystemTime,
    ) -> Option<Self> {
        let policy = crate::warm::cdn::policy(request, status, headers.clone(), now);
        let fresh_for = policy.time_to_live(now);
        if !policy.is_storable() || fresh_for.is_zero() {
            return None;
        }
        let lifetime = fresh_for + policy.age(now);
        Some(Self { status, headers, body, policy, lifetime })
    }

    /// This object after the origin confirmed it with a 304 of these headers (RFC 9111, section 4.3.4).
    ///
    /// `None` where the confirmed response may no longer be kept.
    pub(super) fn confirmed(
        &self,
        request: &Request<()>,
        update: &HeaderMap,
        now: SystemTime,
    ) -> Option<Self> {
        let mut headers = self.headers.clone();
        headers.remove(header::AGE);
        let describes_the_body = [header::CONTENT_LENGTH, header::CONTENT_ENCODING, header::CONTENT_RANGE];
        for name in update.keys().filter(|name| !describes_the_body.contains(name)) {
            headers.remove(name);
            for value in update.get_all(name) {
                headers.append(name, value.clone());
            }
        }
        Self::new(request, self.status, headers, self.body.clone(), now)
    }

    /// Asks in `request` for a 304 where the origin still has this very object; without validators, does nothing.
    pub(super) fn make_conditional(&self, request: &mut HeaderMap) {
        for (validator, condition) in
            [(header::ETAG, header::IF_NONE_MATCH), (header::LAST_MODIFIED, header::IF_MODIFIED_SINCE)]
        {
            if let Some(value) = self.headers.get(validator) {
                request.insert(condition, value.clone());
            }
        }
    }

    /// Whether `request` may be answered with it as it is.
    pub(super) fn answers(&self, request: &Request<()>, now: SystemTime) -> bool {
        matches!(self.policy.before_request(request, now), BeforeRequest::Fresh(_))
    }

    /// How much longer it is fresh, in seconds rounded up; negative once it is not.
    pub(super) fn ttl_s(&self, now: SystemTime) -> i64 {
        let age = self.policy.age(now);
        let seconds = |duration: Duration| i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
        match self.lifetime.checked_sub(age) {
            Some(left) => seconds(left).saturating_add(i64::from(left.subsec_nanos() > 0)),
            None => -seconds(age.saturating_sub(self.lifetime)),
        }
    }

    /// The response as it is answered `now`, without a body to HEAD.
    pub(super) fn response(&self, method: &Method, now: SystemTime) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::default());
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers.clone();
        response.headers_mut().insert(header::AGE, HeaderValue::from(self.policy.age(now).as_secs()));
        if method == Method::HEAD {
            response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(self.body.len()));
        } else {
            *response.body_mut() = Full::new(self.body.clone());
        }
        response
    }

    fn weight_bytes(&self) -> usize {
        let head: usize = self.headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        OBJECT_OVERHEAD_BYTES + 2 * head + self.body.len()
    }
}

/// What the store has for a request.
pub(super) enum Found {
    /// This answers it.
    Usable(Arc<Object>),
    /// The origin must be asked, for this reason in RFC 9211's words.
    Forward {
        /// A token for `fwd`.
        why: &'static str,
        /// What the origin may confirm with a 304.
        stale: Option<Arc<Object>>,
    },
}

/// The stored responses of one edge.
pub(super) struct Store(Cache<String, Arc<[Arc<Object>]>>);

impl Store {
    pub(super) fn new() -> Self {
        let weigher = |key: &String, variants: &Arc<[Arc<Object>]>| {
            let bytes = key.len() + variants.iter().map(|object| object.weight_bytes()).sum::<usize>();
            u32::try_from(bytes).unwrap_or(u32::MAX)
        };
        // Least recently used, where moka's default may refuse a newcomer: an edge that says `stored` must have it.
        let policy = EvictionPolicy::lru();
        Self(Cache::builder().max_capacity(MAX_STORE_BYTES).weigher(weigher).eviction_policy(policy).build())
    }

    pub(super) fn find(&self, key: &str, request: &Request<()>, now: SystemTime) -> Found {
        let Some(variants) = self.0.get(key) else {
            return Found::Forward { why: "uri-miss", stale: None };
        };
        let mut forward = Found::Forward { why: "vary-miss", stale: None };
        for object in variants.iter() {
            match object.policy.before_request(request, now) {
                BeforeRequest::Fresh(_) => return Found::Usable(object.clone()),
                BeforeRequest::Stale { matches: false, .. } => {}
                BeforeRequest::Stale { matches: true, .. } => {
                    // Still fresh, so the request itself does not want it: `Cache-Control: no-cache` and the like.
                    let why = if object.policy.is_stale(now) { "stale" } else { "request" };
                    forward = Found::Forward { why, stale: Some(object.clone()) };
                }
            }
        }
        forward
    }

    /// Keeps `object`, in place of any that `request` would have selected.
    pub(super) fn keep(&self, key: String, request: &Request<()>, object: Arc<Object>, now: SystemTime) {
        self.0.entry(key).and_upsert_with(|old| {
            let old = old.map(|entry| entry.into_value());
            let others = old.iter().flat_map(|variants| variants.iter()).filter(|other| {
                matches!(
                    other.policy.before_request(request, now),
                    BeforeRequest::Stale { matches: false, .. }
                )
            });
            std::iter::once(object).chain(others.cloned()).take(MAX_VARIANTS).collect()
        });
    }

    pub(super) fn forget(&self, key: &str) {
        self.0.invalidate(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn get(encoding: &str) -> Request<()> {
        Request::get("/a").header("host", "e.com").header("accept-encoding", encoding).body(()).unwrap()
    }

    fn object(request: &Request<()>, headers: &[(&str, &str)], now: SystemTime) -> Option<Object> {
        let mut response = Response::builder();
        for (name, value) in headers {
            response = response.header(*name, *value);
        }
        let headers = response.body(()).unwrap().into_parts().0.headers;
        Object::new(request, StatusCode::OK, headers, Bytes::from_static(b"body"), now)
    }

    fn why(found: Found) -> &'static str {
        match found {
            Found::Usable(_) => "usable",
            Found::Forward { why, .. } => why,
        }
    }

    #[test]
    fn variants_are_held_beside_each_other_and_bounded() {
        let (store, now) = (Store::new(), SystemTime::now());
        let encodings: Vec<String> = (0..=MAX_VARIANTS).map(|n| format!("x-{n}")).collect();
        for encoding in &encodings {
            let request = get(encoding);
            let headers = [("cache-control", "max-age=60"), ("vary", "accept-encoding")];
            assert_eq!(
                why(store.find("k", &request, now)),
                if encoding == "x-0" { "uri-miss" } else { "vary-miss" }
            );
            for _ in 0..2 {
                store.keep("k".to_owned(), &request, Arc::new(object(&request, &headers, now).unwrap()), now);
            }
        }
        assert_eq!(store.0.get("k").unwrap().len(), MAX_VARIANTS);
        assert_eq!(why(store.find("k", &get("x-0"), now)), "vary-miss", "the oldest had to go");
        assert_eq!(why(store.find("k", &get("x-1"), now)), "usable");
        store.forget("k");
        assert_eq!(why(store.find("k", &get("x-1"), now)), "uri-miss");
    }

    #[test]
    fn age_and_ttl_go_on_while_an_object_is_stored() {
        let (store, now) = (Store::new(), SystemTime::now());
        let request = get("br");
        let kept =
            object(&request, &[("cache-control", "max-age=60"), ("age", "50"), ("etag", "\"1\"")], now)
                .unwrap();
        assert_eq!(
            (kept.ttl_s(now), kept.ttl_s(now + 4 * SECOND), kept.ttl_s(now + 15 * SECOND)),
            (10, 6, -5)
        );
        assert_eq!(kept.response(&Method::GET, now + 4 * SECOND).headers()["age"], "54");
        store.keep("k".to_owned(), &request, Arc::new(kept), now);
        assert_eq!(why(store.find("k", &request, now + 9 * SECOND)), "usable");
        let Found::Forward { why: "stale", stale: Some(stale) } =
            store.find("k", &request, now + 10 * SECOND)
        else {
            panic!("expired");
        };
        let mut conditional = HeaderMap::new();
        stale.make_conditional(&mut conditional);
        assert_eq!(conditional["if-none-match"], "\"1\"");
        let later = now + 20 * SECOND;
        let confirmed = stale.confirmed(&request, &HeaderMap::new(), later).unwrap();
        assert_eq!(confirmed.ttl_s(later), 60, "a 304 without Age is as fresh as a new response");
        let no_store = HeaderMap::from_iter([(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))]);
        assert!(stale.confirmed(&request, &no_store, later).is_none());
    }

    #[test]
    fn a_huge_age_neither_overflows_nor_is_kept() {
        let now = SystemTime::now();
        assert!(
            object(&get("br"), &[("cache-control", "max-age=60"), ("age", "18446744073709551615")], now)
                .is_none()
        );
        let lasting = [("cache-control", "max-age=18446744073709551615"), ("age", "18446744073709551615")];
        let kept = object(&get("br"), &lasting, now).unwrap();
        assert!(kept.ttl_s(now + SECOND) > 0);
    }
}
