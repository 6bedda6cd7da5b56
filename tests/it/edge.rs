//! The demo's edge and origin over the wire: what is kept, what is said of it, and how often the origin is asked.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use cdnwarm::demo::edge::{Edge, EdgeConfig};
use cdnwarm::demo::origin::{Counts, Origin};
use futures_util::future::join_all;
use futures_util::{StreamExt, stream};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio_util::sync::{CancellationToken, DropGuard};

const DEADLINE: Duration = Duration::from_secs(20);
const ANY_PORT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// What came back, with the body read to its end.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    fn header(&self, name: &str) -> String {
        let lines: Vec<&str> =
            self.headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect();
        lines.join(", ")
    }

    fn cache_status(&self) -> String {
        self.header("cache-status")
    }
}

/// An edge that runs until this is dropped.
struct RunningEdge {
    addr: SocketAddr,
    client: Client<HttpConnector, Full<Bytes>>,
    _stop: DropGuard,
}

impl RunningEdge {
    async fn start(origin: SocketAddr) -> Self {
        Self::start_as("eu", origin, true).await
    }

    async fn start_as(name: &str, origin: SocketAddr, stores: bool) -> Self {
        let config = EdgeConfig { addr: ANY_PORT, name: name.to_owned(), origin, stores };
        let edge = Edge::bind(config).await.unwrap();
        let (addr, stop) = (edge.addr(), CancellationToken::new());
        tokio::spawn(edge.run(stop.clone()));
        let client = Client::builder(TokioExecutor::new()).build_http();
        Self { addr, client, _stop: stop.drop_guard() }
    }

    async fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &[]).await
    }

    async fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.try_ask(method, path, headers).await.unwrap()
    }

    async fn try_ask(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Result<Answer, String> {
        let mut request = Request::builder().method(method).uri(format!("http://{}{path}", self.addr));
        if !headers.iter().any(|(name, _)| *name == "host") {
            request = request.header("host", "example.com");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::default()).unwrap();
        let exchange = async {
            let response = self.client.request(request).await.map_err(|e| e.to_string())?;
            let (head, body) = response.into_parts();
            let body = body.collect().await.map_err(|e| e.to_string())?.to_bytes();
            Ok(Answer { status: head.status, headers: head.headers, body })
        };
        tokio::time::timeout(DEADLINE, exchange).await.map_err(|_| "no answer in time".to_owned())?
    }
}

async fn start_origin() -> (SocketAddr, Counts, DropGuard) {
    let origin = Origin::bind(ANY_PORT).await.unwrap();
    let (addr, counts, stop) = (origin.addr(), origin.counts(), CancellationToken::new());
    tokio::spawn(origin.run(stop.clone()));
    (addr, counts, stop.drop_guard())
}

/// An origin that answers as its script says and remembers the heads of what it was asked.
struct Scripted {
    addr: SocketAddr,
    asked: Arc<Mutex<Vec<Request<()>>>>,
    _task: tokio::task::JoinSet<()>,
}

impl Scripted {
    async fn start<F>(script: F) -> Self
    where
        F: Fn(&Request<()>) -> Response<Body> + Send + Sync + 'static,
    {
        let listener = TcpListener::bind(ANY_PORT).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (script, log) = (Arc::new(script), asked.clone());
        let mut task = tokio::task::JoinSet::new();
        task.spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (script, log) = (script.clone(), log.clone());
                let service = service_fn(move |request: Request<Incoming>| {
                    let head = request.map(|_| ());
                    let response = script(&head);
                    log.lock().unwrap().push(head);
                    async move { Ok::<_, Infallible>(response) }
                });
                connections.spawn(async move {
                    let builder = auto::Builder::new(TokioExecutor::new());
                    // A broken connection is what some scripts are for.
                    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { addr, asked, _task: task }
    }

    /// One that always answers 200 with these headers and the body `body`.
    async fn answering(headers: &'static [(&'static str, &'static str)]) -> Self {
        Self::start(move |_| with_headers(headers, "body")).await
    }

    fn gets(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

fn with_headers(headers: &[(&str, &str)], body: &'static str) -> Response<Body> {
    let mut response = Response::builder();
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    response.body(Full::from(body).map_err(|never| match never {}).boxed_unsync()).unwrap()
}

/// A body of `chunks` times 64 KiB.
fn long_body(chunks: usize) -> Body {
    let chunk = Bytes::from(vec![b'x'; 64 * 1024]);
    StreamBody::new(stream::iter((0..chunks).map(move |_| Ok(Frame::data(chunk.clone()))))).boxed_unsync()
}

#[tokio::test]
async fn a_miss_is_stored_and_the_next_get_is_a_hit() {
    let (origin, counts, _stop) = start_origin().await;
    let edge = RunningEdge::start(origin).await;
    let miss = edge.get("/a?b=c").await;
    assert_eq!(miss.cache_status(), "eu;fwd=uri-miss;stored");
    let hit = edge.get("/a?b=c").await;
    assert!(hit.cache_status().starts_with("eu;hit;ttl="), "{}", hit.cache_status());
    assert_eq!((miss.body.len(), &miss.body), (16 * 1024, &hit.body));
    for name in ["etag", "date", "content-type", "content-length", "cache-control"] {
        assert_eq!(miss.header(name), hit.header(name), "{name}");
        assert!(!hit.header(name).is_empty(), "{name}");
    }
    assert_eq!((hit.header("via").as_str(), hit.header("age").is_empty()), ("1.1 eu", false));
    let once = HashMap::from([(("example.com/a?b=c".to_owned(), "eu".to_owned()), 1)]);
    assert_eq!((counts.gets(), counts.not_kept()), (once, 0));
    edge.get("/a?b=d").await;
    assert_eq!(counts.gets().len(), 2, "the query is part of the key");
}

#[tokio::test]
async fn http1_and_http2_share_what_is_stored() {
    let (origin, counts, _stop) = start_origin().await;
    let edge = RunningEdge::start(origin).await;
    let client = Client::builder(TokioExecutor::new()).http2_only(true).build_http::<Empty<Bytes>>();
    for (method, said, body_bytes) in
        [("GET", "fwd=uri-miss", 16_384), ("GET", "hit;", 16_384), ("HEAD", "hit;", 0)]
    {
        let request = Request::builder().method(method).uri(format!("http://{}/a", edge.addr));
        let response = client.request(request.body(Empty::new()).unwrap()).await.unwrap();
        assert_eq!(response.version(), http::Version::HTTP_2);
        let cache_status = response.headers()["cache-status"].to_str().unwrap().to_owned();
        assert!(cache_status.starts_with(&format!("eu;{said}")), "{method}: {cache_status}");
        assert_eq!(response.headers()["content-length"], "16384");
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes().len(), body_bytes);
    }
    let answer = edge.ask("GET", "/a", &[("host", &edge.addr.to_string())]).await;
    assert!(answer.cache_status().starts_with("eu;hit;"), "{}", answer.cache_status());
    assert_eq!(counts.gets().values().sum::<u64>(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn fifty_concurrent_misses_make_one_get_in_each_region() {
    let (origin, counts, _stop) = start_origin().await;
    let regions =
        [RunningEdge::start_as("eu", origin, true).await, RunningEdge::start_as("us", origin, true).await];
    for round in 0..10 {
        let path = format!("/{round}");
        for (region, name) in regions.iter().zip(["eu", "us"]) {
            let answers = join_all((0..50).map(|_| region.get(&path))).await;
            let of = |suffix: &str| {
                answers.iter().filter(|answer| answer.cache_status().ends_with(suffix)).count()
            };
            let hits = answers.iter().filter(|answer| answer.cache_status().contains(";hit;")).count();
            assert_eq!(of(";fwd=uri-miss;stored"), 1, "one led");
            assert_eq!(of(";fwd=uri-miss;collapsed;stored") + hits, 49, "all others waited or came late");
            assert!(answers.iter().all(|answer| answer.body == answers[0].body));
            assert_eq!(counts.gets()[&(format!("example.com{path}"), name.to_owned())], 1);
        }
    }
    assert_eq!(counts.gets().len(), 20);
}

#[tokio::test]
async fn who_waits_for_a_fill_is_not_given_what_may_not_be_shared() {
    let nth = AtomicUsize::new(0);
    let origin = Scripted::start(move |_| {
        let secret = ["for one", "for two", "for three", "for four"][nth.fetch_add(1, Ordering::SeqCst) % 4];
        with_headers(&[("cache-control", "private, max-age=60")], secret)
    })
    .await;
    let edge = RunningEdge::start(origin.addr).await;
    let answers = join_all((0..4).map(|_| edge.get("/mine"))).await;
    let mut bodies: Vec<_> = answers.iter().map(|answer| answer.body.clone()).collect();
    bodies.sort();
    bodies.dedup();
    assert_eq!((bodies.len(), origin.gets()), (4, 4));
}

#[tokio::test]
async fn a_broken_edge_never_stores() {
    let (origin, counts, _stop) = start_origin().await;
    let edge = RunningEdge::start_as("broken", origin, false).await;
    for _ in 0..3 {
        let answer = edge.get("/a").await;
        assert_eq!((answer.cache_status().as_str(), answer.body.len()), ("broken;fwd=uri-miss", 16 * 1024));
    }
    assert_eq!(counts.gets()[&("example.com/a".to_owned(), "broken".to_owned())], 3);
}

#[tokio::test]
async fn what_a_shared_cache_may_not_keep_is_not_kept() {
    for headers in [
        &[("cache-control", "no-store")][..],
        &[("cache-control", "Private, max-age=60")],
        &[("cache-control", "max-age=0")],
        &[("cache-control", "max-age=60"), ("vary", "*")],
        &[("cache-control", "max-age=60"), ("set-cookie", "a=b")],
        &[("cache-control", "max-age=60"), ("age", "60")],
        &[],
    ] {
        let origin = Scripted::answering(headers).await;
        let edge = RunningEdge::start(origin.addr).await;
        for _ in 0..2 {
            let answer = edge.get("/a").await;
            assert_eq!(answer.cache_status(), "eu;fwd=uri-miss", "{headers:?}");
            assert_eq!(answer.body, "body");
        }
        assert_eq!(origin.gets(), 2, "{headers:?}");
    }
}

#[tokio::test]
async fn each_variant_is_stored_for_those_who_ask_alike() {
    let origin = Scripted::answering(&[("cache-control", "max-age=60"), ("vary", "accept-encoding")]).await;
    let edge = RunningEdge::start(origin.addr).await;
    for (encoding, said) in
        [("br", "fwd=uri-miss"), ("gzip", "fwd=vary-miss"), ("br", "hit"), ("gzip", "hit")]
    {
        let answer = edge.ask("GET", "/a", &[("accept-encoding", encoding)]).await;
        assert!(
            answer.cache_status().starts_with(&format!("eu;{said}")),
            "{encoding}: {}",
            answer.cache_status()
        );
    }
    assert_eq!(origin.gets(), 2);
}

#[tokio::test]
async fn what_has_expired_is_confirmed_or_fetched_anew() {
    // One second of freshness is left, as the first answer is 59 seconds old.
    let origin = Scripted::start(|request| match request.headers().get("if-none-match") {
        Some(etag) if etag == "\"1\"" => {
            let mut response = with_headers(&[("cache-control", "max-age=60"), ("x-new", "yes")], "");
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            response
        }
        _ if request.uri().path() == "/etag" => {
            with_headers(&[("cache-control", "max-age=60"), ("age", "59"), ("etag", "\"1\"")], "body")
        }
        _ => with_headers(&[("cache-control", "max-age=60"), ("age", "59")], "body"),
    })
    .await;
    let edge = RunningEdge::start(origin.addr).await;
    for (path, said) in [("/etag", "eu;fwd=stale;fwd-status=304;stored"), ("/plain", "eu;fwd=stale;stored")] {
        assert_eq!(edge.get(path).await.cache_status(), "eu;fwd=uri-miss;stored");
        let expired = async {
            loop {
                let answer = edge.get(path).await;
                if !answer.cache_status().contains(";hit") {
                    return answer;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let expired = tokio::time::timeout(DEADLINE, expired).await.unwrap();
        assert_eq!((expired.cache_status().as_str(), &expired.body[..]), (said, &b"body"[..]));
        assert!(edge.get(path).await.cache_status().starts_with("eu;hit;ttl="));
    }
    assert_eq!(edge.get("/etag").await.header("x-new"), "yes");
}

#[tokio::test]
async fn a_client_that_wants_no_stored_answer_gets_a_new_one() {
    let (origin, counts, _stop) = start_origin().await;
    let edge = RunningEdge::start(origin).await;
    edge.get("/a").await;
    let answer = edge.ask("GET", "/a", &[("cache-control", "no-cache")]).await;
    assert_eq!(answer.cache_status(), "eu;fwd=request;fwd-status=304;stored");
    assert_eq!((answer.status, answer.body.len()), (StatusCode::OK, 16 * 1024));
    assert_eq!(counts.gets().values().sum::<u64>(), 2);
}

#[tokio::test]
async fn a_large_object_is_streamed_and_not_stored() {
    const CHUNKS: usize = 512;
    let origin = Scripted::start(|request| {
        let mut response = with_headers(&[("cache-control", "max-age=60")], "").map(|_| long_body(CHUNKS));
        if request.uri().path() == "/sized" {
            response.headers_mut().insert("content-length", (CHUNKS * 64 * 1024).into());
        }
        response
    })
    .await;
    let edge = RunningEdge::start(origin.addr).await;
    for path in ["/sized", "/chunked", "/sized", "/chunked"] {
        let answer = edge.get(path).await;
        assert_eq!(answer.cache_status(), "eu;fwd=uri-miss", "{path}");
        assert_eq!(answer.body.len(), CHUNKS * 64 * 1024);
        assert!(answer.body.iter().all(|byte| *byte == b'x'));
    }
    assert_eq!(origin.gets(), 4);
}

#[tokio::test]
async fn a_body_without_end_passes_in_constant_memory() {
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = sent.clone();
    let origin = Scripted::start(move |_| {
        let (chunk, sent) = (Bytes::from(vec![b'x'; 64 * 1024]), counted.clone());
        let endless = stream::repeat_with(move || {
            sent.fetch_add(chunk.len(), Ordering::SeqCst);
            Ok(Frame::data(chunk.clone()))
        });
        with_headers(&[("cache-control", "max-age=60")], "").map(|_| StreamBody::new(endless).boxed_unsync())
    })
    .await;
    let edge = RunningEdge::start(origin.addr).await;
    let request = Request::get(format!("http://{}/endless", edge.addr)).body(Full::default()).unwrap();
    let mut body = edge.client.request(request).await.unwrap().into_body();
    let (mut read, mut most_ahead) = (0, 0);
    while read < 64 * 1024 * 1024 {
        let frame = tokio::time::timeout(DEADLINE, body.frame()).await.unwrap().unwrap().unwrap();
        read += frame.into_data().unwrap().len();
        most_ahead = most_ahead.max(sent.load(Ordering::SeqCst) - read);
    }
    assert!(most_ahead < 32 * 1024 * 1024, "{most_ahead} bytes were in flight");
}

#[tokio::test]
async fn without_an_origin_the_answer_is_502_and_what_is_stored_still_serves() {
    let (origin, _, stop) = start_origin().await;
    let edge = RunningEdge::start(origin).await;
    edge.get("/stored").await;
    drop(stop);
    let down = async {
        loop {
            let path = format!("/{}", std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos());
            let answer = edge.get(&path).await;
            if answer.status != StatusCode::OK {
                return answer;
            }
        }
    };
    let down = tokio::time::timeout(DEADLINE, down).await.unwrap();
    assert_eq!(down.status, StatusCode::BAD_GATEWAY);
    assert!(down.cache_status().starts_with("eu;fwd=uri-miss;detail=origin-"), "{}", down.cache_status());
    assert_eq!(edge.get("/new").await.cache_status(), "eu;fwd=uri-miss;detail=origin-unreachable");
    assert!(edge.get("/stored").await.cache_status().starts_with("eu;hit"));
}

#[tokio::test]
async fn a_truncated_body_is_never_stored_nor_passed_off_as_whole() {
    let origin = Scripted::start(|request| {
        let cut = async {
            // hyper writes what it has before it looks again.
            tokio::task::yield_now().await;
            Err(std::io::Error::other("cut"))
        };
        let body = stream::iter([Ok(Frame::data(Bytes::from_static(b"half")))]).chain(stream::once(cut));
        let cache_control = if request.uri().path() == "/kept" { "max-age=60" } else { "no-store" };
        let mut response = with_headers(&[("cache-control", cache_control)], "");
        *response.body_mut() = StreamBody::new(body).boxed_unsync();
        response.headers_mut().insert("content-length", 100.into());
        response
    })
    .await;
    let edge = RunningEdge::start(origin.addr).await;
    for _ in 0..2 {
        let answer = edge.get("/kept").await;
        assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
        assert_eq!(answer.cache_status(), "eu;fwd=uri-miss;detail=origin-truncated");
    }
    assert!(
        edge.try_ask("GET", "/passed", &[]).await.is_err(),
        "a stream that breaks must break for the client too"
    );
}

#[tokio::test]
async fn ranges_conditions_and_other_methods_pass_through() {
    let origin = Scripted::answering(&[("cache-control", "max-age=60"), ("etag", "\"1\"")]).await;
    let edge = RunningEdge::start(origin.addr).await;
    let said = async |method, headers| edge.ask(method, "/a", headers).await.cache_status();
    assert_eq!(said("HEAD", &[]).await, "eu;fwd=uri-miss");
    assert_eq!(said("GET", &[]).await, "eu;fwd=uri-miss;stored");
    assert_eq!(said("GET", &[("range", "bytes=0-1")]).await, "eu;fwd=bypass;detail=range");
    assert_eq!(said("GET", &[("if-none-match", "\"1\"")]).await, "eu;fwd=bypass;detail=condition");
    let head = edge.ask("HEAD", "/a", &[]).await;
    assert!(head.cache_status().starts_with("eu;hit"), "{}", head.cache_status());
    assert_eq!((head.header("content-length").as_str(), head.body.len()), ("4", 0));
    assert_eq!(said("OPTIONS", &[]).await, "eu;fwd=method");
    assert!(said("GET", &[]).await.starts_with("eu;hit"), "a safe method changes nothing");
    assert_eq!(said("POST", &[]).await, "eu;fwd=method");
    assert_eq!(said("GET", &[]).await, "eu;fwd=uri-miss;stored", "what a POST may have changed is forgotten");
}

#[tokio::test]
async fn caches_before_the_edge_are_named_before_it_and_nothing_hop_by_hop_passes() {
    let headers = &[
        ("cache-control", "max-age=60"),
        ("cache-status", "shield; hit"),
        ("cache-status", "mid; fwd=miss"),
        ("via", "1.1 shield"),
        ("connection", "x-hop"),
        ("x-hop", "1"),
    ];
    let origin = Scripted::answering(headers).await;
    let edge = RunningEdge::start(origin.addr).await;
    for own in ["eu;fwd=uri-miss;stored", "eu;hit;ttl="] {
        let answer =
            edge.ask("GET", "/a", &[("connection", "x-mine"), ("x-mine", "1"), ("via", "1.1 lb")]).await;
        let said = answer.cache_status();
        assert!(said.starts_with(&format!("shield; hit, mid; fwd=miss, {own}")), "{said}");
        assert_eq!(
            (answer.header("via").as_str(), answer.header("x-hop").as_str()),
            ("1.1 shield, 1.1 eu", "")
        );
    }
    let asked = origin.asked.lock().unwrap();
    let via: Vec<_> = asked[0].headers().get_all("via").iter().collect();
    assert_eq!(via, ["1.1 lb", "1.1 eu"]);
    assert!(!asked[0].headers().contains_key("x-mine"));
    assert_eq!(asked[0].headers()["host"], "example.com");
}

#[tokio::test]
async fn a_name_that_is_no_token_is_refused() {
    for name in ["", "a b", "a\"", "zürich"] {
        let config = EdgeConfig { addr: ANY_PORT, name: name.to_owned(), origin: ANY_PORT, stores: true };
        assert!(Edge::bind(config).await.is_err(), "{name:?}");
    }
}

#[tokio::test]
async fn stopping_ends_idle_connections_and_frees_the_port() {
    let (origin, _, _stop) = start_origin().await;
    let config = EdgeConfig { addr: ANY_PORT, name: "eu".to_owned(), origin, stores: true };
    let edge = Edge::bind(config).await.unwrap();
    let (addr, stop, over) = (edge.addr(), CancellationToken::new(), Arc::new(Notify::new()));
    let (token, done) = (stop.clone(), over.clone());
    tokio::spawn(async move {
        edge.run(token).await;
        done.notify_one();
    });
    let idle = tokio::net::TcpStream::connect(addr).await.unwrap();
    let client = Client::builder(TokioExecutor::new()).build_http::<Empty<Bytes>>();
    let response =
        client.request(Request::get(format!("http://{addr}/a")).body(Empty::new()).unwrap()).await.unwrap();
    response.into_body().collect().await.unwrap();
    stop.cancel();
    tokio::time::timeout(Duration::from_secs(4), over.notified()).await.expect("well within the grace time");
    TcpListener::bind(addr).await.expect("the port is free again");
    drop(idle);
}
