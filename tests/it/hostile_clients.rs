//! `cdnwarm serve` and clients that mean it no good: wrong framing, floods, and all kinds of slowness.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::support::origin::{Origin, cacheable};
use crate::support::process::{Process, command};
use crate::support::{PATIENCE, eventually, setting};

/// Within this every slow client is gone.
const SLOW_LIMIT: Duration = Duration::from_secs(15);
/// What a flood may cost.
const FLOOD_BYTES: usize = 32 << 20;
/// A push of http://example.com/, without an id by which it would be known again.
const PUSH: &str = r#"{"message":{"data":"aHR0cDovL2V4YW1wbGUuY29tLw=="}}"#;
/// What nobody may take for a request of its own.
const HIDDEN: &str = "GET /ready HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";

/// A `serve` before an origin.
struct Target {
    serve: Process,
    addr: SocketAddr,
    origin: Origin,
    http: reqwest::Client,
}

impl Target {
    async fn start(args: &[&str]) -> Self {
        Self::before(Origin::start(&["example.com".to_owned()], |_| cacheable()).await, args).await
    }

    async fn before(origin: Origin, args: &[&str]) -> Self {
        let connect_to = format!("*={}", origin.addr);
        let mut all = vec!["serve", "--listen", "127.0.0.1", "--port", "0"];
        all.extend(["--insecure-accept-unauthenticated", "--connect-to", &connect_to]);
        all.extend(args);
        let mut command = command(&all);
        command.env("SSL_CERT_FILE", origin.ca.path());
        let serve = Process::spawn(command);
        let addr = serve.listening().await.parse().unwrap();
        Self { serve, addr, origin, http: reqwest::Client::builder().no_proxy().build().unwrap() }
    }

    /// A good push; every one of them is answered 204.
    async fn push(&self) {
        let url = format!("http://{}/", self.addr);
        let answer = self.http.post(url).body(PUSH).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), 204);
    }

    /// Sends these bytes on a connection of their own; what comes back until the other side ends it.
    async fn say(&self, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.addr).await.unwrap();
        // It may end the connection before it has read all.
        let _ = stream.write_all(bytes).await;
        let mut answer = Vec::new();
        let read = timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned();
        // A reset ends it too.
        let _ = read
            .unwrap_or_else(|_| panic!("not ended: {shown:?} gave {:?}", String::from_utf8_lossy(&answer)));
        String::from_utf8_lossy(&answer).into_owned()
    }

    async fn statuses(&self, bytes: &[u8]) -> Vec<u16> {
        statuses(&self.say(bytes).await)
    }

    fn rss_bytes(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.serve.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
    }

    /// The most that its memory grows during these floods, beside which good pushes are answered.
    async fn growth_during(&self, floods: Vec<tokio::task::JoinHandle<()>>) -> usize {
        let (before, mut most) = (self.rss_bytes(), 0);
        let mut floods = futures_util::future::join_all(floods);
        let mut tick = interval(Duration::from_millis(50));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                ended = &mut floods => {
                    ended.into_iter().for_each(|flood| flood.unwrap());
                    return most.max(self.rss_bytes()).saturating_sub(before);
                }
                _ = tick.tick() => {
                    most = most.max(self.rss_bytes());
                    self.push().await;
                }
            }
        }
    }

    /// As many good pushes as make it take the memory that it needs for them.
    async fn warm_up(&self) {
        for _ in 0..50 {
            self.push().await;
        }
    }
}

/// The status of each answer in `text`.
fn statuses(text: &str) -> Vec<u16> {
    text.split("HTTP/1.1 ").skip(1).map(|answer| answer[..3].parse().unwrap()).collect()
}

/// A POST with these lines in its head and, beside it, a request that is hidden behind its body.
fn hiding(lines: &str, body: &str) -> Vec<u8> {
    format!("POST / HTTP/1.1\r\nhost: x\r\n{lines}\r\n\r\n{body}{HIDDEN}").into_bytes()
}

fn chunked(body: &str) -> String {
    format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len())
}

#[tokio::test]
async fn no_framing_makes_two_requests_of_one() {
    let target = Target::start(&[]).await;
    let (length, good) = (PUSH.len(), chunked(PUSH));
    // RFC 9112, section 6.3: chunked wins, and the connection closes behind it.
    for lines in [
        format!("content-length: {length}\r\ntransfer-encoding: chunked"),
        "transfer-encoding: chunked\r\ncontent-length: 0".to_owned(),
        "transfer-encoding: CHUNKED\r\ncontent-length: 3".to_owned(),
    ] {
        assert_eq!(target.statuses(&hiding(&lines, &good)).await, [204], "{lines}");
    }
    for lines in [
        "content-length: 4\r\ncontent-length: 5",
        "content-length: 5, 5",
        "content-length: +5",
        "content-length: -5",
        "content-length: 0x5",
        "content-length: 5 5",
        "content-length: five",
        "content-length: 99999999999999999999999",
        "content-length:",
        "content-length : 5",
        "content-length\t: 5",
        " content-length: 5",
        "x: a\r\n content-length: 5",
        "transfer-encoding: xchunked",
        "transfer-encoding: chunked, chunked",
        "transfer-encoding: chunked\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked, identity",
        "transfer-encoding: identity, chunked",
        "transfer-encoding: gzip, chunked",
        "transfer-encoding: chunked;q=1",
        "transfer-encoding: \"chunked\"",
        "transfer-encoding:\x0bchunked",
        "transfer-encoding: chunked\x00",
        "transfer-encoding:\r\n chunked",
        "transfer-encoding : chunked",
        "transfer-encoding:",
        "x: a\rb: c",
        "x: a\x00b",
        "no colon",
        ": no name",
        "host: other",
    ] {
        assert_eq!(target.statuses(&hiding(lines, &good)).await, [400], "{lines:?}");
    }
    let chunks = |text: &str| hiding("transfer-encoding: chunked", text);
    for body in [
        "-1\r\nx\r\n0\r\n\r\n",
        "+1\r\nx\r\n0\r\n\r\n",
        "0x1\r\nx\r\n0\r\n\r\n",
        "1 1\r\nx\r\n0\r\n\r\n",
        "\r\n0\r\n\r\n",
        "fffffffffffffffff\r\nx",
        "1\r\nxy\r\n0\r\n\r\n",
        "1\r\nx0\r\n\r\n",
        "1\nx\n0\n\n",
        &format!("1;{}\r\nx\r\n0\r\n\r\n", "e".repeat(20_000)),
    ] {
        assert_eq!(target.statuses(&chunks(body)).await, [400], "{body:?}");
    }
    let old = format!("POST / HTTP/1.0\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n{good}{HIDDEN}");
    assert_eq!(target.say(old.as_bytes()).await.matches("HTTP/1.").count(), 1);
    let no_host = format!("POST / HTTP/1.1\r\ncontent-length: {length}\r\n\r\n{PUSH}{HIDDEN}");
    assert_eq!(target.statuses(no_host.as_bytes()).await, [400]);
    target.push().await;
}

#[tokio::test]
async fn what_has_one_reading_only_is_read_so() {
    let target = Target::start(&[]).await;
    let length = PUSH.len();
    // The same length twice is one length, and what follows is a second request by right.
    let lines = format!("content-length: {length}\r\ncontent-length: {length}");
    assert_eq!(target.statuses(&hiding(&lines, PUSH)).await, [204, 200]);
    assert_eq!(target.statuses(&hiding("transfer-encoding: chunked", &chunked(PUSH))).await, [204, 200]);
    // RFC 9112, section 2.2: a line may end with LF alone.
    let bare = format!("POST / HTTP/1.1\nhost: x\nconnection: close\ncontent-length: {length}\n\n{PUSH}");
    assert_eq!(target.statuses(bare.as_bytes()).await, [204]);
    let many = format!("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n{PUSH}").repeat(20);
    assert_eq!(
        target.statuses(format!("{many}{HIDDEN}").as_bytes()).await,
        [&[204; 20][..], &[200]].concat()
    );
}

#[tokio::test]
async fn heads_and_bodies_have_limits_with_answers_of_their_own() {
    let target = Target::start(&[]).await;
    let get =
        |target: &str, lines: &str| format!("GET {target} HTTP/1.1\r\nhost: x\r\n{lines}\r\n").into_bytes();
    let long = |bytes: usize| format!("/{}", "a".repeat(bytes - 1));
    let lines = |count: usize| "x: y\r\n".repeat(count);
    let close = "connection: close\r\n";
    for (request, status) in [
        (get(&long(8_192), close), 404),
        (get(&long(8_193), ""), 414),
        (get(&long(60_000), ""), 414),
        (get(&long(200_000), ""), 431),
        (get("/ready", &format!("{close}{}", lines(98))), 200),
        (get("/ready", &lines(100)), 431),
        (get("/ready", &format!("x: {}\r\n", "y".repeat(70_000))), 431),
        (get("/ready", &lines(100_000)), 431),
    ] {
        let shown = String::from_utf8_lossy(&request[..60]).into_owned();
        assert_eq!(target.statuses(&request).await, [status], "{shown}");
    }

    // Attributes may be a hundred more.
    let unwrapped = Target::start(&["--payload", "unwrapped"]).await;
    for (request, status) in
        [(get("/ready", &format!("{close}{}", lines(126))), 200), (get("/ready", &lines(128)), 431)]
    {
        assert_eq!(unwrapped.statuses(&request).await, [status]);
    }

    // Neither waits for the rest, which never comes.
    let mib = "x".repeat(1 << 20);
    for (lines, body, status) in [
        ("content-length: 1048577", "", 413),
        ("transfer-encoding: chunked", format!("200000\r\n{mib}x").as_str(), 413),
        ("content-length: 3\r\ncontent-encoding: gzip", "", 415),
        ("content-length: 9999999\r\nexpect: 100-continue", "", 413),
    ] {
        let request = format!("POST / HTTP/1.1\r\nhost: x\r\n{lines}\r\n\r\n{body}");
        let text = target.say(request.as_bytes()).await;
        assert_eq!(statuses(&text), [status], "{lines}");
    }
    let asked = format!(
        "POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\nexpect: 100-continue\r\ncontent-length: {}\r\n\r\n",
        PUSH.len()
    );
    let mut stream = TcpStream::connect(target.addr).await.unwrap();
    stream.write_all(asked.as_bytes()).await.unwrap();
    let mut go_on = [0; 25];
    stream.read_exact(&mut go_on).await.unwrap();
    assert_eq!(&go_on, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(PUSH.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 204 "), "{answer}");
    target.push().await;
}

#[tokio::test]
async fn unusual_requests_get_sane_answers() {
    let target = Target::start(&[]).await;
    let length = PUSH.len();
    let post = |line: &str, more: &str| {
        format!("{line}\r\nhost: x\r\nconnection: close\r\n{more}content-length: {length}\r\n\r\n{PUSH}")
    };
    let bare = |line: &str| format!("{line}\r\nhost: x\r\nconnection: close\r\n\r\n");
    for (request, status) in [
        (post("POST http://example.org/ HTTP/1.1", ""), 204),
        (post("POST /?token=t HTTP/1.1", ""), 204),
        (post("POST / HTTP/1.1", "upgrade: websocket\r\nconnection: upgrade\r\n"), 204),
        (post("POST / HTTP/1.1", "upgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n"), 204),
        (post("POST / HTTP/1.1", "expect: magic\r\n"), 204),
        (post("POST / HTTP/1.1", "content-encoding: identity\r\n"), 204),
        (post("PUT / HTTP/1.1", ""), 405),
        (bare("OPTIONS * HTTP/1.1"), 404),
        (bare("HEAD / HTTP/1.1"), 405),
        (bare("TRACE / HTTP/1.1"), 405),
        (bare("CONNECT example.com:443 HTTP/1.1"), 404),
        (bare("G\u{e9}T / HTTP/1.1"), 400),
        (bare("GET / HTTP/9.9"), 400),
        (bare("GET  / HTTP/1.1"), 400),
        (bare("GET /\u{1} HTTP/1.1"), 400),
        ("\x16\x03\x01\x02\x00\x01\x00\x01\u{fc}\x03\x03\r\n\r\n".to_owned(), 400),
        ("PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n".to_owned(), 400),
    ] {
        let text = target.say(request.as_bytes()).await;
        assert_eq!(statuses(&text), [status], "{request:?} gave {text:?}");
        if request.starts_with("HEAD") {
            assert!(text.ends_with("\r\n\r\n"), "no body: {text:?}");
        }
    }
    let old = target.say(b"GET /ready HTTP/1.0\r\n\r\n").await;
    assert!(old.starts_with("HTTP/1.0 200 ") && old.ends_with("ready"), "{old}");
}

#[derive(Clone, Copy, Debug)]
enum Slow {
    Silent,
    Head,
    Body,
    Deaf,
}

/// How long a slow client is kept.
async fn kept(addr: SocketAddr, slow: Slow) -> Duration {
    let socket = TcpSocket::new_v4().unwrap();
    if matches!(slow, Slow::Deaf) {
        socket.set_recv_buffer_size(4096).unwrap();
    }
    let mut stream = socket.connect(addr).await.unwrap();
    let started = Instant::now();
    let head = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n";
    if matches!(slow, Slow::Deaf) {
        let requests = "GET /ready HTTP/1.1\r\nhost: x\r\n\r\n".repeat(1000);
        while stream.write_all(requests.as_bytes()).await.is_ok() {}
        return started.elapsed();
    }
    if matches!(slow, Slow::Body) {
        stream.write_all(head).await.unwrap();
    }
    let (mut reader, mut writer) = stream.split();
    let ended = async {
        let mut answer = Vec::new();
        let _ = reader.read_to_end(&mut answer).await;
    };
    let trickle = async {
        let mut second = interval(Duration::from_secs(1));
        let bytes: &[u8] = if matches!(slow, Slow::Head) { head } else { b" " };
        for byte in bytes.iter().cycle() {
            second.tick().await;
            if matches!(slow, Slow::Silent) || writer.write_all(&[*byte]).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    tokio::select! {
        () = ended => {}
        () = trickle => {}
    }
    started.elapsed()
}

/// 2,000 of them are the long form: `CDNWARM_TEST_SLOW_CLIENTS=2000`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_clients_are_closed_in_time_and_good_pushes_are_all_answered() {
    let asked = setting("CDNWARM_TEST_SLOW_CLIENTS");
    let count = asked.as_ref().map_or(200, |count| count.parse().unwrap());
    let target = Arc::new(Target::start(&["--max-in-flight", "100"]).await);
    let slow: Vec<_> = (0..count)
        .map(|number| {
            let slow = [Slow::Silent, Slow::Head, Slow::Body, Slow::Deaf][number % 4];
            let addr = target.addr;
            tokio::spawn(async move { (slow, timeout(2 * PATIENCE, kept(addr, slow)).await) })
        })
        .collect();
    let (done, pushed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let pushing = {
        let (target, done, pushed) = (target.clone(), done.clone(), pushed.clone());
        tokio::spawn(async move {
            while !done.load(Ordering::Relaxed) {
                target.push().await;
                pushed.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
    };
    let mut longest = Duration::ZERO;
    for client in slow {
        let (slow, kept) = client.await.unwrap();
        let kept = kept.unwrap_or_else(|_| panic!("{slow:?} was never closed"));
        // By the clock only where somebody asked for it: a busy machine is late with everything.
        assert!(asked.is_none() || kept < SLOW_LIMIT, "{slow:?} was kept for {kept:?}");
        longest = longest.max(kept);
    }
    done.store(true, Ordering::Relaxed);
    pushing.await.unwrap();
    let pushed = pushed.load(Ordering::Relaxed);
    println!("{count} slow clients, the last one closed after {longest:?}; {pushed} good pushes, all 204");
    assert!(pushed > 50);
    assert!(target.origin.asked().len() >= pushed);
}

/// One HTTP/2 frame (RFC 9113, section 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// `:method: POST`, `:scheme: http`, `:path: /`, and `:authority: x` (RFC 7541, appendix A).
const POST: [u8; 6] = [0x83, 0x86, 0x84, 0x01, 0x01, b'x'];
/// `:method: GET` instead.
const GET: [u8; 6] = [0x82, 0x86, 0x84, 0x01, 0x01, b'x'];

/// What an HTTP/2 client says first.
fn preface(settings: &[u8]) -> Vec<u8> {
    [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &frame(SETTINGS, 0, 0, settings)[..]].concat()
}

/// Writes `frames` on a connection of their own until there are none or nobody takes them, and reads whatever comes.
async fn flood(addr: SocketAddr, frames: impl Iterator<Item = Vec<u8>>) {
    let (mut reader, mut writer) = TcpStream::connect(addr).await.unwrap().into_split();
    let reading = tokio::spawn(async move {
        let mut bytes = vec![0; 64 << 10];
        while reader.read(&mut bytes).await.is_ok_and(|read| read > 0) {}
    });
    for frame in std::iter::once(preface(&[])).chain(frames) {
        if writer.write_all(&frame).await.is_err() {
            break;
        }
    }
    drop(writer);
    timeout(PATIENCE, reading).await.expect("the connection ends").unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_resets_costs_little_and_stops_nobody() {
    let target = Target::start(&[]).await;
    target.warm_up().await;
    let addr = target.addr;
    let floods = (0..8).map(|_| {
        tokio::spawn(async move {
            for _ in 0..5 {
                let frames = (0..20_000_u32).map(|number| {
                    let stream = 2 * number + 1;
                    let mut both = frame(HEADERS, END_HEADERS, stream, &POST);
                    both.extend(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
                    both
                });
                flood(addr, frames).await;
            }
        })
    });
    let grown = target.growth_during(floods.collect()).await;
    println!("grown by {} KiB", grown >> 10);
    assert!(grown <= FLOOD_BYTES, "{grown}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_continuations_costs_little_and_stops_nobody() {
    let target = Target::start(&[]).await;
    target.warm_up().await;
    let addr = target.addr;
    // A field of 256 bytes that is never indexed, over and over.
    let field = [&[0x10, 1, b'a', 0x7f, 0x81, 0x01][..], &[b'v'; 256]].concat();
    let floods = (0..16).map(|_| {
        let block = field.repeat(60);
        tokio::spawn(async move {
            let first = || std::iter::once(frame(HEADERS, END_STREAM, 1, &POST));
            flood(addr, first().chain((0..4_000).map(|_| frame(CONTINUATION, 0, 1, &block)))).await;
            // Empty ones cost nothing but time.
            flood(addr, first().chain((0..100_000).map(|_| frame(CONTINUATION, 0, 1, &[])))).await;
        })
    });
    let grown = target.growth_during(floods.collect()).await;
    println!("grown by {} KiB", grown >> 10);
    assert!(grown <= FLOOD_BYTES, "{grown}");
}

#[tokio::test]
async fn an_http2_client_that_takes_no_answer_is_closed_too() {
    let target = Target::start(&[]).await;
    // SETTINGS_INITIAL_WINDOW_SIZE: 0
    let mut stream = TcpStream::connect(target.addr).await.unwrap();
    stream.write_all(&preface(&[0, 4, 0, 0, 0, 0])).await.unwrap();
    for stream_id in [1, 3, 5] {
        stream.write_all(&frame(HEADERS, END_HEADERS | END_STREAM, stream_id, &GET)).await.unwrap();
    }
    let mut bytes = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("the connection ends");
    target.push().await;
}

#[tokio::test]
async fn a_large_body_over_http2_is_refused_before_its_end() {
    let target = Target::start(&[]).await;
    let client = hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new())
        .http2_only(true)
        .build_http::<http_body_util::Full<bytes::Bytes>>();
    let ask = async |body: Vec<u8>| {
        let request = http::Request::post(format!("http://{}/", target.addr)).body(body.into()).unwrap();
        client.request(request).await.unwrap().status().as_u16()
    };
    assert_eq!(ask(vec![b' '; 2 << 20]).await, 413);
    assert_eq!(ask(PUSH.into()).await, 204, "on the same connection");
}

#[tokio::test]
async fn a_body_that_stalls_takes_nobodys_place() {
    let target = Target::start(&["--max-in-flight", "1"]).await;
    let mut stalled = TcpStream::connect(target.addr).await.unwrap();
    let head = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\nexpect: 100-continue\r\n\r\n";
    stalled.write_all(head).await.unwrap();
    // It says so when it starts to read the body.
    let mut go_on = [0; 25];
    stalled.read_exact(&mut go_on).await.unwrap();
    assert_eq!(&go_on, b"HTTP/1.1 100 Continue\r\n\r\n");
    stalled.write_all(b"{").await.unwrap();
    target.push().await;
    let mut answer = String::new();
    stalled.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
}

#[tokio::test]
async fn a_push_whose_client_leaves_or_has_no_more_to_say_is_warmed_all_the_same() {
    let names = ["example.com".to_owned()];
    let origin = Origin::start_slow(&names, Duration::from_secs(1), |_| cacheable()).await;
    let target = Target::before(origin, &[]).await;
    let push = format!("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{PUSH}", PUSH.len());
    for is_gone in [true, false] {
        let before = target.serve.outcomes().len();
        let mut client = TcpStream::connect(target.addr).await.unwrap();
        client.write_all(push.as_bytes()).await.unwrap();
        eventually("the GET", async || (target.origin.asked().len() > before).then_some(())).await;
        client.shutdown().await.unwrap();
        if is_gone {
            drop(client);
        } else {
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.unwrap();
            assert_eq!(statuses(&answer), [204]);
        }
        let outcome = eventually("the outcome", async || target.serve.outcomes().get(before).cloned()).await;
        assert_eq!(
            (&outcome["url"], outcome["bytes"].as_u64() > Some(0)),
            (&"http://example.com/".into(), true)
        );
    }
}

#[tokio::test]
async fn strangers_who_fill_the_table_of_connections_do_not_keep_good_clients_out() {
    rlimit::increase_nofile_limit(u64::MAX).unwrap();
    let target = Target::start(&[]).await;
    target.push().await;
    let mut strangers = Vec::new();
    for _ in 0..4_500 {
        strangers.push(TcpStream::connect(target.addr).await.unwrap());
    }
    // The good client's connection is kept; a further one has to wait behind those in the backlog, but not for long.
    target.push().await;
    let body = format!(
        "POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{PUSH}",
        PUSH.len()
    );
    assert_eq!(target.statuses(body.as_bytes()).await, [204]);
}

#[tokio::test]
async fn pushes_are_answered_where_nobody_reads_the_log_any_more() {
    let origin = Origin::start(&["example.com".to_owned()], |_| cacheable()).await;
    let connect_to = format!("*={}", origin.addr);
    let args = ["serve", "--listen", "127.0.0.1", "--port", "0", "--insecure-accept-unauthenticated"];
    let mut command = command(&[&args[..], &["--connect-to", &connect_to]].concat());
    let mut serve = command.spawn().unwrap();
    let mut log = BufReader::new(serve.stdout.take().unwrap());
    let mut line = String::new();
    log.read_line(&mut line).await.unwrap();
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    let addr = line["addr"].as_str().unwrap().to_owned();
    drop((log, serve.stderr.take()));
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    for body in [PUSH, "{", PUSH] {
        let answer = http.post(format!("http://{addr}/")).body(body).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), if body == PUSH { 204 } else { 400 });
    }
    assert_eq!(origin.asked().len(), 2);
}
