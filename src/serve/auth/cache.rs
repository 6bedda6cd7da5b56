//! The key server's keys, kept: fetched seldom, by one at a time, and never because strangers make up key ids.
//!
//! There is no timer. Whoever needs keys starts the fetch that is due, in the background where what is there will do:
//! an instance without requests needs no keys, and on Cloud Run it has no CPU to fetch them with either.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, SystemTime};

use anyhow::Context;
use http_cache_semantics::{CacheOptions, CachePolicy};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use url::Url;

use super::key_set::KeySet;
use crate::warm::system_tls_config;

/// The least time between the starts of two fetches, however they end.
const FETCH_INTERVAL: Duration = Duration::from_secs(30);

/// How long a fetch may take in all.
const FETCH_LIMIT: Duration = Duration::from_secs(5);

/// The most of an answer that is read. Google's has 1 KiB.
const MAX_SET_BYTES: usize = 1 << 20;

/// For how long a key set counts as fresh, whatever its answer says.
const FRESH_AT_LEAST: Duration = Duration::from_secs(5 * 60);
const FRESH_AT_MOST: Duration = Duration::from_secs(24 * 60 * 60);

/// For how long a stale key set is used where no newer one can be had.
const STALE_AT_MOST: Duration = Duration::from_secs(24 * 60 * 60);

/// Requests that wait for one fetch. Those beyond it go on with what there is: strangers who make up key ids while the
/// key server hangs must not gather here.
const MAX_WAITING: usize = 1_000;

/// The keys of one key server. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct KeyCache(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    client: reqwest::Client,
    url: Url,
    held: RwLock<Held>,
    waiting: Semaphore,
    stop: CancellationToken,
}

/// What is known of the key server.
#[derive(Debug)]
struct Held {
    keys: Option<Keys>,
    last_start: Option<Instant>,
    last_failure: Option<Instant>,
    /// Cancelled when the last fetch that was started is over.
    over: CancellationToken,
}

#[derive(Debug)]
struct Keys {
    set: Arc<KeySet>,
    /// From then on the next fetch is due, in the background.
    due: Instant,
    stale: Instant,
}

impl Held {
    fn may_start(&self, now: Instant) -> bool {
        self.last_start.is_none_or(|start| now >= start + FETCH_INTERVAL)
    }
}

/// No key set was ever had, or not for too long.
#[derive(Debug)]
pub(super) struct NoKeys;

impl KeyCache {
    /// An empty one; nothing is asked for yet. Fetches end on `stop`.
    ///
    /// # Errors
    /// A system without CA certificates, where the URL is an https one.
    pub(super) fn new(url: Url, stop: CancellationToken) -> anyhow::Result<Self> {
        let builder = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            // The next fetch is hours away.
            .pool_max_idle_per_host(0);
        // Reading the system's certificates takes milliseconds, and the warming needs them too.
        let builder = match url.scheme() {
            "http" => builder.tls_certs_only([]),
            _ => builder.tls_backend_preconfigured(system_tls_config()?),
        };
        let client = builder.build().context("preparing to fetch the key set of --push-jwks-url")?;
        let over = CancellationToken::new();
        over.cancel();
        Ok(Self(Arc::new(Shared {
            client,
            url,
            held: RwLock::new(Held { keys: None, last_start: None, last_failure: None, over }),
            waiting: Semaphore::new(MAX_WAITING),
            stop,
        })))
    }

    /// The key set, where a request whose key is in it need not wait: a fresh one, or a stale one once it was asked for
    /// a newer one in vain. Starts the fetch that is due, and never waits for it.
    pub(super) fn current(&self) -> Option<Arc<KeySet>> {
        let now = Instant::now();
        let (current, is_due) = {
            let held = self.read();
            let current = held.keys.as_ref().filter(|keys| {
                let asked_in_vain = held.last_failure.is_some_and(|failure| failure >= keys.due);
                now < keys.stale || asked_in_vain && now < keys.stale + STALE_AT_MOST
            });
            let is_due = held.keys.as_ref().is_none_or(|keys| keys.due <= now) && held.may_start(now);
            (current.map(|keys| keys.set.clone()), is_due)
        };
        if is_due {
            self.fetch();
        }
        current
    }

    /// A key set with this key, if there is one: waits for a fetch only where the key is not at hand.
    ///
    /// # Errors
    /// There is no key set to look into.
    pub(super) async fn with(&self, kid: &str) -> Result<Arc<KeySet>, NoKeys> {
        if let Some(set) = self.current().filter(|set| set.has(kid)) {
            return Ok(set);
        }
        if let Some(over) = self.fetch()
            && let Ok(_place) = self.0.waiting.try_acquire()
        {
            over.cancelled().await;
        }
        self.usable().ok_or(NoKeys)
    }

    /// Whether there is a key set. Starts a fetch where one is due.
    pub(super) fn is_ready(&self) -> bool {
        self.current().is_some() || self.usable().is_some()
    }

    /// Any key set that is not too old.
    fn usable(&self) -> Option<Arc<KeySet>> {
        let now = Instant::now();
        let held = self.read();
        held.keys.as_ref().filter(|keys| now < keys.stale + STALE_AT_MOST).map(|keys| keys.set.clone())
    }

    /// The end of the fetch that is under way, or of one that this starts; `None` where it is too early for one.
    fn fetch(&self) -> Option<CancellationToken> {
        let now = Instant::now();
        let mut held = self.write();
        if !held.over.is_cancelled() {
            return Some(held.over.clone());
        }
        if !held.may_start(now) || self.0.stop.is_cancelled() {
            return None;
        }
        held.last_start = Some(now);
        held.over = CancellationToken::new();
        let over = held.over.clone();
        // A task of its own: whoever started it may go away, and others wait for it. Its end is told however it ends.
        let (this, ended) = (self.clone(), over.clone().drop_guard());
        tokio::spawn(async move {
            let _ended = ended;
            tokio::select! {
                fetched = this.0.get() => this.fetched(fetched),
                () = this.0.stop.cancelled() => {}
            }
        });
        Some(over)
    }

    fn fetched(&self, fetched: anyhow::Result<(KeySet, Duration)>) {
        let now = Instant::now();
        let mut held = self.write();
        match fetched {
            Ok((set, fresh_for)) => {
                tracing::debug!(keys = set.len(), fresh_for_s = fresh_for.as_secs(), "fetched the key set");
                // Where the keys are the same, what was verified with them stays so.
                let set = match held.keys.take() {
                    Some(keys) if keys.set.is_same(&set) => keys.set,
                    _ => Arc::new(set),
                };
                held.keys = Some(Keys { set, due: now + fresh_for / 5 * 4, stale: now + fresh_for });
                held.last_failure = None;
            }
            Err(error) => {
                held.last_failure = Some(now);
                let usable_for =
                    held.keys.as_ref().map(|keys| (keys.stale + STALE_AT_MOST).duration_since(now));
                match usable_for.filter(|time| !time.is_zero()) {
                    Some(time) => tracing::warn!(
                        usable_for_s = time.as_secs(),
                        "no new key set from {}: {error:#}; the old one stays in use",
                        self.0.url
                    ),
                    None => tracing::error!(
                        "no key set from {}: {error:#}; pushes are answered 503 until there is one",
                        self.0.url
                    ),
                }
            }
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Held> {
        // Nothing panics between two changes that belong together.
        self.0.held.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Held> {
        self.0.held.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    /// One GET: the key set, and how long it is fresh.
    async fn get(&self) -> anyhow::Result<(KeySet, Duration)> {
        let got = tokio::time::timeout(FETCH_LIMIT, async {
            let mut answer =
                self.client.get(self.url.clone()).send().await.map_err(reqwest::Error::without_url)?;
            let status = answer.status();
            anyhow::ensure!(status == http::StatusCode::OK, "the key server answered {status}");
            let fresh_for = fresh_for(answer.headers());
            let mut body = Vec::new();
            while let Some(chunk) = answer.chunk().await.map_err(reqwest::Error::without_url)? {
                anyhow::ensure!(
                    body.len() + chunk.len() <= MAX_SET_BYTES,
                    "the answer has more than {MAX_SET_BYTES} bytes"
                );
                body.extend_from_slice(&chunk);
            }
            Ok((KeySet::parse(&body)?, fresh_for))
        });
        got.await.unwrap_or_else(|_| anyhow::bail!("no answer within {} s", FETCH_LIMIT.as_secs()))
    }
}

/// What is left of `max-age` when the answer comes (RFC 9111, section 4.2), within bounds.
fn fresh_for(headers: &http::HeaderMap) -> Duration {
    let mut response = http::Response::new(());
    response.headers_mut().clone_from(headers);
    let options = CacheOptions { shared: false, cache_heuristic: 0.0, ..CacheOptions::default() };
    let now = SystemTime::now();
    let policy = CachePolicy::new_options(&http::Request::new(()), &response, now, options);
    policy.time_to_live(now).clamp(FRESH_AT_LEAST, FRESH_AT_MOST)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use serde_json::json;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);
    const HOUR: Duration = Duration::from_secs(60 * 60);

    /// A key server that gives one answer until it is told another.
    struct Server {
        url: Url,
        asked: Arc<AtomicUsize>,
        answer: Arc<Mutex<Answer>>,
    }

    #[derive(Clone)]
    enum Answer {
        /// Head and body.
        Text(String),
        /// Nothing, while the connection stays open.
        Silence,
        /// A good head, and then bytes for ever.
        Endless,
    }

    impl Server {
        async fn start() -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("http://{}/certs", listener.local_addr().unwrap()).parse().unwrap();
            let server = Self { url, asked: Arc::default(), answer: Arc::new(Mutex::new(keys(&["a", "b"]))) };
            let (asked, answer) = (server.asked.clone(), server.answer.clone());
            tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    asked.fetch_add(1, Ordering::Relaxed);
                    let answer = answer.lock().unwrap().clone();
                    tokio::spawn(give(stream, answer));
                }
            });
            server
        }

        fn cache(&self) -> KeyCache {
            KeyCache::new(self.url.clone(), CancellationToken::new()).unwrap()
        }

        fn asked(&self) -> usize {
            self.asked.load(Ordering::Relaxed)
        }

        fn answers(&self, answer: Answer) {
            *self.answer.lock().unwrap() = answer;
        }
    }

    async fn give(mut stream: TcpStream, answer: Answer) {
        let mut request = [0; 4096];
        let _ = stream.read(&mut request).await;
        match answer {
            Answer::Text(text) => drop(stream.write_all(text.as_bytes()).await),
            Answer::Silence => std::future::pending().await,
            Answer::Endless => {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
                while stream.write_all(&[b' '; 4096]).await.is_ok() {}
            }
        }
    }

    /// Keys with these ids, fresh for an hour.
    fn keys(kids: &[&str]) -> Answer {
        let n = format!("{}w", "_".repeat(341));
        let keys: Vec<_> =
            kids.iter().map(|kid| json!({"kty": "RSA", "kid": kid, "n": n, "e": "AQAB"})).collect();
        text("200 OK", "cache-control: public, max-age=3600\r\n", &json!({ "keys": keys }).to_string())
    }

    fn text(status: &str, headers: &str, body: &str) -> Answer {
        let length = body.len();
        Answer::Text(format!(
            "HTTP/1.1 {status}\r\n{headers}content-length: {length}\r\nconnection: close\r\n\r\n{body}"
        ))
    }

    /// Lets this much time pass at once; sockets take the time that they take.
    async fn later(time: Duration) {
        tokio::time::pause();
        tokio::time::advance(time).await;
        tokio::time::resume();
    }

    /// Waits for the end of the fetch that is under way, if one is.
    async fn settled(cache: &KeyCache) {
        let over = cache.read().over.clone();
        over.cancelled().await;
    }

    async fn has(cache: &KeyCache, kid: &str) -> Option<bool> {
        cache.with(kid).await.ok().map(|set| set.has(kid))
    }

    #[tokio::test]
    async fn the_first_requests_wait_for_one_fetch() {
        let server = Server::start().await;
        let cache = server.cache();
        assert!(!cache.is_ready());
        let requests = (0..200).map(|_| has(&cache, "a"));
        assert!(futures_util::future::join_all(requests).await.iter().all(|has| *has == Some(true)));
        assert_eq!(server.asked(), 1);
        assert!(cache.is_ready());
    }

    #[tokio::test]
    async fn made_up_key_ids_cause_one_fetch_in_thirty_seconds_and_known_keys_never_wait() {
        let server = Server::start().await;
        let cache = server.cache();
        assert_eq!(has(&cache, "a").await, Some(true));
        for n in 0..1_000 {
            assert_eq!(has(&cache, &n.to_string()).await, Some(false));
        }
        assert_eq!(server.asked(), 1, "the set is younger than 30 s");
        later(FETCH_INTERVAL).await;
        server.answers(Answer::Silence);
        let unknown = tokio::spawn({
            let cache = cache.clone();
            async move {
                let names: Vec<String> = (0..2_000).map(|n| n.to_string()).collect();
                futures_util::future::join_all(names.iter().map(|name| has(&cache, name))).await
            }
        });
        while server.asked() < 2 {
            tokio::task::yield_now().await;
        }
        assert!(!unknown.is_finished(), "they wait for the fetch");
        assert!(cache.0.waiting.try_acquire().is_err(), "but not all of them");
        assert_eq!(has(&cache, "b").await, Some(true), "known keys do not");
        later(FETCH_LIMIT).await;
        assert!(unknown.await.unwrap().iter().all(|has| *has == Some(false)));
        assert_eq!(server.asked(), 2);
    }

    #[tokio::test]
    async fn a_rotation_is_seen_by_the_first_token_of_the_new_key() {
        let server = Server::start().await;
        let cache = server.cache();
        let before = cache.with("a").await.unwrap();
        server.answers(keys(&["b", "c"]));
        assert_eq!(has(&cache, "c").await, Some(false));
        later(FETCH_INTERVAL).await;
        assert_eq!(has(&cache, "c").await, Some(true));
        assert_eq!(has(&cache, "a").await, Some(false));
        assert!(
            !Arc::ptr_eq(&before, &cache.current().unwrap()),
            "what was verified with the old set is forgotten"
        );
        assert_eq!(server.asked(), 2);
    }

    #[tokio::test]
    async fn a_set_is_refreshed_in_the_background_before_it_is_stale() {
        let server = Server::start().await;
        let cache = server.cache();
        let first = cache.with("a").await.unwrap();
        later(HOUR - 13 * MINUTE).await;
        assert!(cache.current().is_some());
        settled(&cache).await;
        assert_eq!(server.asked(), 1, "not yet");
        later(MINUTE).await;
        assert!(Arc::ptr_eq(&first, &cache.current().unwrap()));
        settled(&cache).await;
        assert_eq!(server.asked(), 2);
        assert!(
            Arc::ptr_eq(&first, &cache.current().unwrap()),
            "the same keys keep what was verified with them"
        );
        later(HOUR - 13 * MINUTE).await;
        assert!(cache.current().is_some(), "fresh for another hour");
        assert_eq!(server.asked(), 2);
    }

    #[tokio::test]
    async fn whoever_finds_a_stale_set_waits_once_for_a_new_one() {
        let server = Server::start().await;
        let cache = server.cache();
        assert_eq!(has(&cache, "a").await, Some(true));
        server.answers(keys(&["b"]));
        later(2 * HOUR).await;
        assert_eq!(has(&cache, "a").await, Some(false), "the old key is gone");
        assert_eq!(server.asked(), 2);
    }

    #[tokio::test]
    async fn whatever_a_key_server_answers_the_old_set_stays_for_a_day() {
        let server = Server::start().await;
        let huge = " ".repeat(MAX_SET_BYTES + 1);
        let other = Server::start().await;
        for bad in [
            text("503 Service Unavailable", "", ""),
            text("500 Oops", "", &json!({"keys": []}).to_string()),
            text("302 Found", &format!("location: {}\r\n", other.url), ""),
            text("200 OK", "", "<html>"),
            text("200 OK", "", r#"{"keys":[]}"#),
            text("200 OK", "", &huge),
            Answer::Text("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{".to_owned()),
            Answer::Text("SSH-2.0-OpenSSH\r\n".to_owned()),
            Answer::Text(String::new()),
            Answer::Endless,
            Answer::Silence,
        ] {
            server.answers(keys(&["a", "b"]));
            let cache = server.cache();
            assert_eq!(has(&cache, "a").await, Some(true));
            server.answers(bad.clone());
            // In the background first, with nobody waiting; when it is stale, nobody waits either.
            for time in [50 * MINUTE, HOUR, 22 * HOUR] {
                later(time).await;
                let asked = server.asked();
                assert!(cache.current().is_some(), "the old set will do at once");
                assert!(cache.current().is_some());
                while server.asked() == asked {
                    tokio::task::yield_now().await;
                }
                if matches!(bad, Answer::Silence) {
                    later(FETCH_LIMIT).await;
                }
                settled(&cache).await;
                assert_eq!(server.asked(), asked + 1);
                assert!(cache.read().last_failure.is_some());
                assert_eq!(has(&cache, "a").await, Some(true));
            }
            later(2 * HOUR).await;
            server.answers(text("503 Service Unavailable", "", ""));
            assert_eq!(has(&cache, "a").await, None, "a day is over");
            assert!(!cache.is_ready());
            server.answers(keys(&["a"]));
            assert_eq!(has(&cache, "a").await, None, "not asked again at once");
            later(FETCH_INTERVAL).await;
            assert_eq!(has(&cache, "a").await, Some(true));
        }
        assert_eq!(other.asked(), 0, "redirects are not followed");
    }

    #[tokio::test]
    async fn fetches_end_with_the_process() {
        let server = Server::start().await;
        server.answers(Answer::Silence);
        let stop = CancellationToken::new();
        let cache = KeyCache::new(server.url.clone(), stop.clone()).unwrap();
        let (found, ()) = tokio::join!(has(&cache, "a"), async {
            while server.asked() == 0 {
                tokio::task::yield_now().await;
            }
            stop.cancel();
        });
        assert_eq!(found, None);
        assert!(cache.fetch().is_none(), "no further one is started");
    }

    #[test]
    fn freshness_is_what_is_left_of_max_age_within_bounds() {
        let fresh_for = |headers: &[(&'static str, &str)]| {
            let headers = headers.iter().map(|(name, value)| {
                (http::HeaderName::from_static(name), http::HeaderValue::from_str(value).unwrap())
            });
            fresh_for(&headers.collect()).as_secs()
        };
        let max_age = |value| fresh_for(&[("cache-control", value)]);
        assert_eq!(max_age("public, max-age=19800, must-revalidate, no-transform"), 19_800);
        assert_eq!(fresh_for(&[("cache-control", "max-age=19800"), ("age", "800")]), 19_000);
        for few in ["max-age=0", "max-age=1", "no-store", "no-cache", "max-age=soon", "max-age=-5", ""] {
            assert_eq!(max_age(few), 300, "{few}");
        }
        assert_eq!(fresh_for(&[]), 300);
        assert_eq!(max_age("max-age=864000"), 86_400);
    }
}
