//! The end of `cdnwarm serve`: every request that reached it is answered, whoever is slow.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http_body_util::Full;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use nix::sys::signal::Signal;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::support::eventually;
use crate::support::origin::{Origin, cacheable};
use crate::support::process::{Process, command};

/// A `serve` whose every host is an origin that takes this long.
async fn serve(delay: Duration) -> (Process, SocketAddr, Origin) {
    let origin = Origin::start_slow(&["example.com".to_owned()], delay, |_| cacheable()).await;
    let connect_to = format!("*={}", origin.addr);
    let args = ["serve", "--listen", "127.0.0.1", "--port", "0", "--insecure-accept-unauthenticated"];
    let mut command = command(&[&args[..], &["--connect-to", &connect_to]].concat());
    command.env("SSL_CERT_FILE", origin.ca.path());
    let serve = Process::spawn(command);
    let addr = serve.listening().await.parse().unwrap();
    (serve, addr, origin)
}

/// A push without an id by which it would be known again.
fn envelope(url: &str) -> String {
    let published = jiff::Timestamp::now().to_string();
    json!({"message": {"data": STANDARD.encode(url), "publishTime": published}}).to_string()
}

/// One kept connection, over which pushes go.
struct Kept(BufReader<TcpStream>);

impl Kept {
    async fn open(addr: SocketAddr) -> Self {
        Self(BufReader::new(TcpStream::connect(addr).await.unwrap()))
    }

    /// Pushes a URL; the status, and whether more may follow. Panics where there is no answer.
    async fn push(&mut self, url: &str) -> (u16, bool) {
        use tokio::io::AsyncBufReadExt;
        let body = envelope(url);
        let head = format!("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
        self.0.get_mut().write_all(format!("{head}{body}").as_bytes()).await.expect("a request is taken");
        let (mut status, mut goes_on, mut length) = (0, true, 0);
        loop {
            let mut line = String::new();
            let read = self.0.read_line(&mut line).await.expect("a request is answered");
            assert_ne!(read, 0, "a request got no answer");
            let line = line.trim_end().to_lowercase();
            if let Some(rest) = line.strip_prefix("http/1.1 ") {
                status = rest[..3].parse().unwrap();
            } else if let Some(bytes) = line.strip_prefix("content-length: ") {
                length = bytes.parse().unwrap();
            } else if line == "connection: close" {
                goes_on = false;
            } else if line.is_empty() {
                break;
            }
        }
        self.0.read_exact(&mut vec![0; length]).await.expect("an answer is whole");
        (status, goes_on)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_pushes_in_flight_are_all_answered() {
    let (mut serve, addr, origin) = serve(Duration::from_secs(4)).await;
    let pushes: Vec<_> = (0..200)
        .map(|number| {
            // No host is asked for so much at once that some would wait for others to be answered.
            let url = format!("http://{}.example.com/{number}", number % 8);
            tokio::spawn(async move { Kept::open(addr).await.push(&url).await })
        })
        .collect();
    eventually("200 GETs", async || (origin.asked().len() == 200).then_some(())).await;
    serve.signal(Signal::SIGTERM);
    for push in pushes {
        assert_eq!(push.await.unwrap(), (204, false));
    }
    assert_eq!(serve.ends().await, Some(0));
}

#[tokio::test]
async fn a_push_that_takes_too_long_for_a_stop_is_told_to_come_again() {
    let (mut serve, addr, origin) = serve(Duration::from_secs(60)).await;
    let push = tokio::spawn(async move { Kept::open(addr).await.push("http://example.com/").await });
    eventually("the GET", async || (origin.asked().len() == 1).then_some(())).await;
    let started = Instant::now();
    serve.signal(Signal::SIGTERM);
    assert_eq!(push.await.unwrap(), (503, false));
    assert_eq!(serve.ends().await, Some(0));
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_kept_connection_under_load_loses_a_request() {
    let (mut serve, addr, origin) = serve(Duration::ZERO).await;
    let clients: Vec<_> = (0..16_u64)
        .map(|number| {
            tokio::spawn(async move {
                let mut connection = Kept::open(addr).await;
                let mut pushed = 0;
                loop {
                    let (status, goes_on) = connection.push("http://example.com/").await;
                    pushed += 1;
                    match (status, goes_on) {
                        (204, true) => {}
                        // Whatever the last one is, it is an answer.
                        (204 | 503, false) => return pushed,
                        other => panic!("{other:?}"),
                    }
                    // Half of them never rest, the others find their connection idle at the signal.
                    tokio::time::sleep(Duration::from_millis((number % 2) * 100 * number)).await;
                }
            })
        })
        .collect();
    eventually("load", async || (origin.asked().len() > 500).then_some(())).await;
    let started = Instant::now();
    serve.signal(Signal::SIGTERM);
    for client in clients {
        assert!(client.await.unwrap() > 0);
    }
    assert_eq!(serve.ends().await, Some(0));
    assert!(started.elapsed() < Duration::from_secs(9), "{:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_http2_a_stop_loses_no_request_either() {
    let (mut serve, addr, origin) = serve(Duration::ZERO).await;
    let clients: Vec<_> = (0..4)
        .map(|_| {
            tokio::spawn(async move {
                let client = Client::builder(TokioExecutor::new()).http2_only(true).build_http();
                loop {
                    let body = Full::<bytes::Bytes>::from(envelope("http://example.com/"));
                    let request = http::Request::post(format!("http://{addr}/")).body(body).unwrap();
                    match client.request(request).await {
                        Ok(answer) => assert!([204, 503].contains(&answer.status().as_u16())),
                        // Not sent at all.
                        Err(error) if error.is_connect() => return,
                        // GOAWAY names the last request that counts, and this one came after it: it goes on another
                        // connection (RFC 9113, section 6.8).
                        Err(error) if format!("{error:?}").contains("GoAway(b\"\", NO_ERROR, Remote)") => {}
                        Err(error) => panic!("{error:?}"),
                    }
                }
            })
        })
        .collect();
    eventually("load", async || (origin.asked().len() > 200).then_some(())).await;
    serve.signal(Signal::SIGTERM);
    assert_eq!(serve.ends().await, Some(0));
    for client in clients {
        client.await.unwrap();
    }
}

#[tokio::test]
async fn while_it_drains_a_push_is_told_to_come_again_at_once() {
    let (mut serve, addr, origin) = serve(Duration::from_secs(3)).await;
    let slow = tokio::spawn(async move { Kept::open(addr).await.push("http://example.com/slow").await });
    let mut idle = Kept::open(addr).await;
    assert_eq!(idle.push("not a URL").await, (400, true));
    eventually("the GET", async || (origin.asked().len() == 1).then_some(())).await;
    serve.signal(Signal::SIGTERM);
    serve.says("stopping").await;
    assert_eq!(idle.push("http://example.com/").await, (503, false));
    assert_eq!(
        Kept::open(addr).await.push("http://example.com/").await,
        (503, false),
        "a new connection too"
    );
    assert_eq!(slow.await.unwrap(), (204, false));
    assert_eq!(origin.asked().len(), 1);
    assert_eq!(serve.ends().await, Some(0));
}
