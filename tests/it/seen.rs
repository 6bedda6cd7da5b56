//! What an operator sees of `cdnwarm serve`: metrics, trace and log fields, and that no push waits for whoever reads the log.

use std::io::{Read as _, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::Response;
use http_body_util::Full;
use serde_json::{Value, json};

use crate::push::Served;
use crate::support::endpoint::{Endpoint, documented_of};
use crate::support::eventually;
use crate::support::monitoring::{NOT_WARM, assert_grafana_is_answered, assert_line_is_counted};
use crate::support::origin::{Asked, Origin, cacheable, status};
use crate::support::process::command;

const SHOWN: [&str; 2] = ["--metrics-addr", "127.0.0.1:0"];
const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

async fn served(args: &[&str]) -> (Origin, Served) {
    let hosts = ["example.com".to_owned(), "bad.example.com".to_owned()];
    let answer = |asked: &Asked| if asked.url.contains("bad.") { status(404) } else { cacheable() };
    let origin = Origin::start(&hosts, answer).await;
    let served = Served::before(&origin, args).await;
    (origin, served)
}

/// A push of `url` with an id of its own.
fn push(number: usize, url: &str) -> String {
    let data = STANDARD.encode(url);
    let message =
        json!({"data": data, "messageId": number.to_string(), "attributes": {"kafka-timestamp": "1"}});
    json!({"message": message, "subscription": "projects/p/subscriptions/s"}).to_string()
}

#[tokio::test]
async fn a_serve_tells_how_it_is_and_names_no_host() {
    let (_origin, served) = served(&SHOWN).await;
    let endpoint = Endpoint::of(&served.serve).await;
    endpoint.ready(200, "").await;
    for (number, (url, expected)) in [
        ("http://example.com/a", 204),
        ("http://example.com/b", 204),
        ("http://bad.example.com/", 204),
        ("http://user@10.0.0.1/", 204),
        ("http://user:pw@refused.example.com/", 204),
        ("no URL", 400),
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(served.post(push(number, url)).await, expected, "{url}");
    }
    let shown = endpoint.metrics().await;
    let place = "region=\"europe-west1\"";
    for (series, expected) in [
        ("pushes_total{answer=\"204\"}".to_owned(), 5),
        ("pushes_total{answer=\"400\"}".to_owned(), 1),
        ("pushes_total{answer=\"429\"}".to_owned(), 0),
        ("in_flight_pushes".to_owned(), 0),
        ("in_flight_urls".to_owned(), 0),
        ("in_flight_urls_limit".to_owned(), 1_000),
        (format!("verdicts_total{{{place},verdict=\"fetched\"}}"), 2),
        (format!("verdicts_total{{{place},verdict=\"failed\"}}"), 1),
        (format!("verdicts_total{{{place},verdict=\"refused\"}}"), 2),
        ("get_duration_seconds_count".to_owned(), 3),
        ("first_byte_seconds_count".to_owned(), 3),
        ("hosts".to_owned(), 2),
        ("hosts_circuit_open".to_owned(), 0),
        ("hosts_paused".to_owned(), 0),
        ("gets_in_flight".to_owned(), 0),
    ] {
        assert_eq!(shown.value(&format!("cdnwarm_serve_{series}")), expected, "{series}: {}", shown.0);
    }
    assert!(!shown.0.contains("example.com") && !shown.0.contains("10.0.0.1"), "{}", shown.0);
    assert_eq!(shown.names(), documented_of("cdnwarm_serve_"));
    assert_grafana_is_answered("cdnwarm_serve_", &shown);
    assert_eq!(endpoint.get("/live").await, (200, "live\n".to_owned()));
}

#[tokio::test]
async fn hosts_that_are_backed_off_are_counted_and_named_once_in_the_log() {
    let hosts = ["busy.example.com".to_owned(), "dead.example.com".to_owned()];
    let answer = |asked: &Asked| {
        if asked.url.contains("dead.") {
            return status(500);
        }
        let answer = Response::builder().status(429).header("retry-after", "60");
        answer.body(Full::default()).unwrap()
    };
    let origin = Origin::start(&hosts, answer).await;
    // A pause that is longer than the time for a URL is not waited for.
    let served = Served::before(&origin, &[&SHOWN[..], &["--timeout", "30"]].concat()).await;
    let endpoint = Endpoint::of(&served.serve).await;
    for number in 0..2 {
        served.post(push(number, &format!("http://busy.example.com/{number}"))).await;
    }
    let mut number = 2;
    eventually("an open circuit", async || {
        number += 1;
        served.post(push(number, &format!("http://dead.example.com/{number}"))).await;
        let shown = endpoint.metrics().await;
        assert_eq!(shown.value("cdnwarm_serve_hosts_paused"), 1, "{}", shown.0);
        (shown.value("cdnwarm_serve_hosts_circuit_open") == 1).then_some(())
    })
    .await;
    served.serve.says("circuit of http://dead.example.com open").await;
    let said = |text: &str| {
        let lines = served.serve.logged().into_iter();
        lines.filter(|line| line["message"].as_str().unwrap_or_default().contains(text)).collect::<Vec<_>>()
    };
    let [backed_off] = &said("backed off")[..] else { panic!("{:?}", said("backed off")) };
    assert_eq!(backed_off["message"], "http://busy.example.com backed off for 60000 ms: it answered 429");
    assert_eq!(backed_off["severity"], "WARNING");
    assert_eq!(backed_off["host"], "http://busy.example.com");
    assert_eq!((&backed_off["status"], &backed_off["pause_ms"]), (&json!(429), &json!(60_000)));
    assert_eq!(said("circuit of").len(), 1);
}

#[tokio::test]
async fn a_line_has_the_trace_of_its_message_and_the_form_of_cloud_logging() {
    let (_origin, served) = served(&[]).await;
    let url = "http://example.com/a?file=1&X-Goog-Signature=secret";
    let attributes = json!({"googclient_traceparent": TRACEPARENT, "traceparent": "nonsense"});
    assert_eq!(served.push(url.as_bytes(), &attributes, &json!({})).await, 204);
    let line = served.outcome().await;
    assert_eq!(line["severity"], "INFO");
    assert_eq!(line["time"], line["finished_at"]);
    assert_eq!(line["logging.googleapis.com/trace"], "projects/p/traces/0af7651916cd43dd8448eb211c80319c");
    assert_eq!(line["logging.googleapis.com/spanId"], "b7ad6b7169203331");
    assert_eq!(line["logging.googleapis.com/trace_sampled"], true);
    let request = &line["httpRequest"];
    assert_eq!(request["requestUrl"], "http://example.com/a?file=1&X-Goog-Signature=…");
    assert_eq!((&request["requestMethod"], &request["status"]), (&json!("GET"), &json!(200)));
    assert_eq!(request["responseSize"], line["bytes"].to_string());
    assert!(request["latency"].as_str().unwrap().ends_with('s'), "{line}");
    assert!(!line.to_string().contains("secret"), "{line}");
    assert_line_is_counted(NOT_WARM, &line);
}

#[tokio::test]
async fn only_the_outcomes_that_are_wanted_are_logged() {
    for (which, expected) in [("off", 0), ("not-warm", 3), ("all", 3)] {
        let (_origin, served) = served(&["--log-outcomes", which]).await;
        for (number, url) in
            ["http://example.com/a", "http://bad.example.com/", "http://10.0.0.1/"].iter().enumerate()
        {
            assert_eq!(served.post(push(number, url)).await, 204);
        }
        let mut serve = served.serve;
        serve.stop().await;
        serve.says("serve stopped").await;
        assert_eq!(serve.outcomes().len(), expected, "{which}: {:?}", serve.lines());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_push_waits_for_a_log_that_nobody_reads_and_at_the_end_nothing_that_had_room_is_lost() {
    const PUSHES: usize = 600;
    let mut unread = Unread::start().await;
    for number in 0..PUSHES {
        unread.push(number).await;
    }
    // The reader is back, and then it stops.
    unread.filler.store(true, Ordering::Relaxed);
    let mut output = unread.output;
    let text = Arc::new(Mutex::new(String::new()));
    let reading = {
        let text = text.clone();
        std::thread::spawn(move || output.read_to_string(&mut text.lock().unwrap()))
    };
    terminate(&unread.serve);
    assert!(unread.serve.wait().await.unwrap().success());
    reading.join().unwrap().unwrap();
    let text = text.lock().unwrap();
    let lines: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let outcomes = lines.iter().filter(|line| line.get("verdict").is_some()).count();
    assert_eq!(outcomes, PUSHES);
    assert!(text.contains("serve stopped"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_nobody_reads_does_not_delay_the_exit_beyond_its_limit() {
    // More than the pipe holds.
    const PUSHES: usize = 200;
    let mut unread = Unread::start().await;
    for number in 0..PUSHES {
        unread.push(number).await;
    }
    terminate(&unread.serve);
    let status = tokio::time::timeout(Duration::from_secs(10), unread.serve.wait()).await;
    assert!(status.expect("it ends within 10 s").unwrap().success());
}

/// A `serve` whose log is a full pipe that nobody reads.
struct Unread {
    serve: tokio::process::Child,
    output: std::io::PipeReader,
    /// Set to end the thread that fills the pipe.
    filler: Arc<AtomicBool>,
    http: reqwest::Client,
    url: String,
    _origin: Origin,
}

impl Unread {
    async fn start() -> Self {
        let origin = Origin::start(&["example.com".to_owned()], |_| cacheable()).await;
        let (output, input) = std::io::pipe().unwrap();
        let mut junk = input.try_clone().unwrap();
        let port = free_port();
        let (connect_to, port_text) = (format!("*={}", origin.addr), port.to_string());
        let mut command = command(&[
            "serve",
            "--listen",
            "127.0.0.1",
            "--port",
            &port_text,
            "--insecure-accept-unauthenticated",
            "--connect-to",
            &connect_to,
            "--region",
            "r",
        ]);
        command.stdout(input);
        let serve = command.spawn().unwrap();
        drop(command);
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let url = format!("http://127.0.0.1:{port}/");
        eventually("it listens", async || http.get(format!("{url}health")).send().await.ok().map(drop)).await;
        // From here on nothing more fits into the pipe than it holds now.
        let filler = Arc::new(AtomicBool::new(false));
        let full = filler.clone();
        std::thread::spawn(move || {
            // Ends with the pipe, at the latest.
            while junk.write_all(b"\n").is_ok() && !full.load(Ordering::Relaxed) {}
        });
        Self { serve, output, filler, http, url, _origin: origin }
    }

    async fn push(&self, number: usize) {
        let body = push(number, &format!("http://example.com/{number}"));
        let answer = self.http.post(&self.url).body(body).send().await.unwrap();
        assert_eq!(answer.status(), 204);
    }
}

fn terminate(process: &tokio::process::Child) {
    let pid = nix::unistd::Pid::from_raw(process.id().unwrap().try_into().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
}

/// A port that was free a moment ago: the log, which would name one, is not read here.
fn free_port() -> u16 {
    std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}
