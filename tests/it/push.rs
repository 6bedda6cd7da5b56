//! `cdnwarm serve` from outside: what is answered to which push, and what reaches the origin.

use std::path::Path;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::support::eventually;
use crate::support::origin::{Answer, Asked, Origin, cacheable, status};
use crate::support::process::{Process, command};

/// A `serve` before an origin.
pub(crate) struct Served {
    pub(crate) serve: Process,
    pub(crate) url: String,
    pub(crate) http: reqwest::Client,
}

impl Served {
    /// Every host is the origin; these further arguments come first.
    pub(crate) async fn before(origin: &Origin, args: &[&str]) -> Self {
        let connect_to = format!("*={}", origin.addr);
        let mut all =
            vec!["serve", "--listen", "127.0.0.1", "--port", "0", "--insecure-accept-unauthenticated"];
        all.extend(["--region", "europe-west1", "--connect-to", &connect_to]);
        all.extend(args);
        let mut command = command(&all);
        command.env("SSL_CERT_FILE", origin.ca.path());
        Self::of(command).await
    }

    pub(crate) async fn of(command: tokio::process::Command) -> Self {
        let serve = Process::spawn(command);
        let url = format!("http://{}/", serve.listening().await);
        // `serve` closes the connection of whoever had no 2xx after a rest of 12 s, maybe while the next push is on its way.
        let http = reqwest::Client::builder().no_proxy().pool_idle_timeout(Duration::from_secs(5));
        Self { serve, url, http: http.build().unwrap() }
    }

    pub(crate) async fn post(&self, body: impl Into<reqwest::Body>) -> u16 {
        self.http.post(&self.url).body(body).send().await.unwrap().status().as_u16()
    }

    /// Pushes `data` with these attributes as Pub/Sub does, a moment ago; `more` goes beside the message.
    pub(crate) async fn push(&self, data: &[u8], attributes: &Value, more: &Value) -> u16 {
        let published = jiff::Timestamp::now().to_string();
        let mut envelope = json!({
            "message": {
                "data": STANDARD.encode(data), "attributes": attributes,
                "messageId": "7", "message_id": "7", "publishTime": published, "publish_time": published,
            },
            "subscription": "projects/p/subscriptions/s",
        });
        for (name, value) in more.as_object().unwrap() {
            envelope[name] = value.clone();
        }
        self.post(envelope.to_string()).await
    }

    /// Pushes a URL without attributes.
    pub(crate) async fn push_url(&self, url: &str) -> u16 {
        self.push(url.as_bytes(), &json!({}), &json!({})).await
    }

    /// The only outcome so far.
    pub(crate) async fn outcome(&self) -> Value {
        eventually("an outcome", async || self.serve.outcomes().first().cloned()).await
    }
}

async fn plain_origin<F: Fn(&Asked) -> Answer + Clone + Send + Sync + 'static>(answer: F) -> Origin {
    Origin::start(&["example.com".to_owned()], answer).await
}

#[tokio::test]
async fn every_row_of_the_envelope_corpus_is_answered_as_it_says() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpora/push_envelopes");
    let manifest = std::fs::read_to_string(folder.join("manifest.tsv")).unwrap();
    let rows: Vec<Vec<&str>> =
        manifest.lines().filter(|l| !l.starts_with('#')).map(|l| l.split('\t').collect()).collect();
    assert_eq!(rows.len(), 79);
    let hosts: Vec<String> = rows
        .iter()
        .filter(|row| row[1] == "accept")
        .map(|row| url::Url::parse(row[2]).unwrap().host_str().unwrap().to_owned())
        .collect();
    let origin = Origin::start(&hosts, |_| cacheable()).await;
    let mut served = Served::before(&origin, &[]).await;
    for row in &rows {
        let (file, expected) = (row[0], row[1]);
        if expected == "accept" {
            // One of its own: the rows share a message id, and a redelivery makes no GET.
            served = Served::before(&origin, &[]).await;
        }
        let answer = served.post(std::fs::read(folder.join(file)).unwrap()).await;
        let asked: Vec<String> = origin.asked().into_iter().map(|asked| asked.url).collect();
        if expected == "accept" {
            assert!([200, 201, 202, 204].contains(&answer), "{file}: {answer}");
            assert_eq!(asked, [row[2]], "{file}");
        } else {
            assert_eq!(answer, 400, "{file}: {}", row[2]);
            assert_eq!(asked, [""; 0], "{file}");
        }
        origin.forget();
    }
}

#[tokio::test]
async fn a_large_envelope_works_and_a_huge_one_is_refused_unread() {
    let origin = plain_origin(|_| cacheable()).await;
    let served = Served::before(&origin, &[]).await;
    let padding = |size: usize| {
        let url = STANDARD.encode("http://example.com/large");
        format!(r#"{{"message":{{"data":"{url}","messageId":"1"}},"padding":"{}"}}"#, "x".repeat(size))
    };
    assert_eq!(served.post(padding(256 << 10)).await, 204);
    assert_eq!(origin.asked().len(), 1);
    assert_eq!(served.post(padding(2 << 20)).await, 413);
    assert_eq!(served.push_url("http://example.com/next").await, 204, "the next one works");
}

#[tokio::test]
async fn one_json_line_tells_the_outcome_with_its_evidence() {
    let origin = plain_origin(|_| {
        Response::builder()
            .header("cache-control", "max-age=60")
            .header("cache-status", "frankfurt; hit; ttl=42")
            .header("age", "18")
            .body(Full::from("0123456789"))
            .unwrap()
    })
    .await;
    let served = Served::before(&origin, &[]).await;
    let attributes = json!({"kafka-topic": "urls", "kafka-partition": "3", "kafka-offset": "17",
        "kafka-timestamp": "1700000000000", "warm-header-accept-language": "de"});
    let url = b"http://example.com/a?file=b&X-Amz-Signature=c0ffee";
    assert_eq!(served.push(url, &attributes, &json!({"deliveryAttempt": 2})).await, 204);
    let outcome = served.outcome().await;
    for (name, value) in [
        ("id", json!("urls/3/17")),
        ("url", json!("http://example.com/a?file=b&X-Amz-Signature=…")),
        ("region", json!("europe-west1")),
        ("verdict", json!("warm")),
        ("http_status", json!(200)),
        ("bytes", json!(10)),
        ("attempts", json!(1)),
        ("kafka_timestamp", json!(1_700_000_000_000_u64)),
        ("delivery_attempt", json!(2)),
        ("severity", json!("INFO")),
    ] {
        assert_eq!(outcome[name], value, "{name} of {outcome}");
    }
    let evidence = &outcome["cache"];
    assert_eq!(
        (&evidence["cdn"], &evidence["ttl_s"], &evidence["age_s"]),
        (&json!("frankfurt"), &json!(42), &json!(18))
    );
    assert!(outcome["instance"].as_str().unwrap().len() <= 8);
    assert!(!served.serve.lines().join("\n").contains("c0ffee"), "signatures are not shown");

    let headers = origin.asked()[0].headers.clone();
    let header = |name: &str| headers[name].to_str().unwrap().to_owned();
    assert_eq!(header("accept"), "*/*");
    assert_eq!(header("accept-encoding"), "gzip, deflate, br, zstd");
    assert_eq!(header("user-agent"), concat!("cdnwarm/", env!("CARGO_PKG_VERSION")));
    assert_eq!(header("accept-language"), "de");
}

#[tokio::test]
async fn certify_looks_again_after_a_fill() {
    let fills_then_hits = {
        let seen = std::sync::Arc::new(std::sync::Mutex::new(std::collections::HashSet::new()));
        move |asked: &Asked| {
            let first = seen.lock().unwrap().insert(asked.url.clone());
            let keeps = asked.url.ends_with("/kept");
            let said = if first || !keeps { "edge; fwd=uri-miss; stored" } else { "edge; hit; ttl=59" };
            Response::builder()
                .header("cache-control", "max-age=60")
                .header("cache-status", said)
                .body(Full::from("x"))
                .unwrap()
        }
    };
    let origin = plain_origin(fills_then_hits).await;
    let served = Served::before(&origin, &["--certify"]).await;
    for path in ["kept", "forgotten"] {
        let url = format!("http://example.com/{path}");
        assert_eq!(served.push_url(&url).await, 204);
    }
    served.serve.verdicts(&["http://example.com/kept".to_owned()], "warm").await;
    served.serve.verdicts(&["http://example.com/forgotten".to_owned()], "uncacheable").await;
    assert_eq!(origin.asked().len(), 4);
}

#[tokio::test]
async fn what_a_redelivery_may_cure_is_nacked_while_attempts_are_left() {
    let origin = plain_origin(|asked| {
        let code = asked.url.rsplit('/').next().unwrap().parse().unwrap();
        status(code)
    })
    .await;
    let served = Served::before(&origin, &[]).await;
    for (code, attempt, answer) in [(503, 1, 503), (503, 5, 204), (404, 1, 204), (302, 1, 204), (429, 1, 503)]
    {
        let url = format!("http://example.com/{code}");
        let more = json!({"deliveryAttempt": attempt});
        assert_eq!(
            served.push(url.as_bytes(), &json!({}), &more).await,
            answer,
            "{code} at attempt {attempt}"
        );
    }
}

#[tokio::test]
async fn no_connection_is_opened_to_what_is_not_public() {
    let origin = plain_origin(|_| cacheable()).await;
    // No --connect-to, and one port of loopback allowed: the origin's.
    let allow = format!("127.0.0.0/8:{}", origin.addr.port());
    let args = ["serve", "--listen", "127.0.0.1", "--port", "0", "--insecure-accept-unauthenticated"];
    let strict = Served::of(command(&args)).await;
    let refused = format!("http://{}/secret", origin.addr);
    for url in [
        refused.as_str(),
        "http://2130706433/",
        "http://[::ffff:127.0.0.1]/",
        "http://169.254.169.254/computeMetadata/v1/",
        "http://user:password@example.com/",
        "http://localhost/",
    ] {
        assert_eq!(strict.push_url(url).await, 204, "{url}");
    }
    eventually("six refusals", async || (strict.serve.outcomes().len() == 6).then_some(())).await;
    for outcome in strict.serve.outcomes() {
        assert_eq!(outcome["verdict"], "refused", "{outcome}");
        assert_eq!(outcome["attempts"], 0, "{outcome}");
    }
    assert!(origin.asked().is_empty());
    assert!(!strict.serve.lines().join("\n").contains("password"), "user info is not shown");

    let mut allowing = args.to_vec();
    allowing.extend(["--allow-address", &allow]);
    let allowed = Served::of(command(&allowing)).await;
    assert_eq!(allowed.push_url(&refused).await, 204);
    assert_eq!(allowed.outcome().await["verdict"], "fetched");
    assert_eq!(origin.asked().len(), 1);
}

#[tokio::test]
async fn a_body_that_ends_early_is_no_success() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let connect_to = format!("*={}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            let mut request = [0; 1024];
            let _ = stream.read(&mut request).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nonly this").await;
        }
    });
    let args = [
        "serve",
        "--listen",
        "127.0.0.1",
        "--port",
        "0",
        "--insecure-accept-unauthenticated",
        "--connect-to",
    ];
    let served = Served::of(command(&[&args[..], &[&connect_to]].concat())).await;
    assert_eq!(served.push_url("http://example.com/").await, 503);
    let outcome = served.outcome().await;
    assert_eq!((&outcome["verdict"], &outcome["reason"]), (&json!("failed"), &json!("truncated")));
    assert_eq!(outcome["attempts"], 3, "tried again before Pub/Sub has to");
}

#[tokio::test]
async fn malformed_data_goes_by_the_operators_choice() {
    let origin = plain_origin(|_| cacheable()).await;
    let served = Served::before(&origin, &["--malformed", "ack"]).await;
    for data in [&b""[..], b"not a URL", b"\xff\xfe"] {
        assert_eq!(served.push(data, &json!({}), &json!({})).await, 204);
    }
    assert_eq!(served.post("{").await, 400, "what is no push at all is never acknowledged");
    assert_eq!(
        served.post(vec![b' '; 2 << 20]).await,
        204,
        "too large to be read, and it would come for ever"
    );
    eventually("four refusals", async || (served.serve.outcomes().len() == 4).then_some(())).await;
    for outcome in served.serve.outcomes() {
        assert_eq!(outcome["verdict"], "refused");
        assert!(outcome["reason"].as_str().unwrap().starts_with("malformed data"), "{outcome}");
    }
    assert!(origin.asked().is_empty());
}

#[tokio::test]
async fn options_decide_where_and_until_when() {
    let origin = plain_origin(|_| cacheable()).await;
    let served = Served::before(&origin, &[]).await;
    for (attributes, reason) in [
        (json!({"warm-regions": "us-central1"}), "not for this region"),
        (json!({"warm-not-after": "2020-01-01T00:00:00Z"}), "expired"),
        (json!({"warm-colour": "red"}), "unknown option warm-colour"),
    ] {
        assert_eq!(served.push(b"http://example.com/", &attributes, &json!({})).await, 204);
        let last = eventually("its outcome", async || {
            served
                .serve
                .outcomes()
                .into_iter()
                .find(|o| o["reason"].as_str().is_some_and(|r| r.contains(reason)))
        });
        assert_eq!(last.await["verdict"], "refused");
    }
    assert!(origin.asked().is_empty());
    let here = json!({"warm-regions": "us-central1,europe-west1", "warm-not-after": "2999-01-01T00:00:00Z"});
    assert_eq!(served.push(b"http://example.com/", &here, &json!({})).await, 204);
    assert_eq!(origin.asked().len(), 1);
}

/// The attributes of a pack as `bridge` sends it.
fn packed(offsets: &str) -> Value {
    json!({"content-type": "text/uri-list", "kafka-topic": "urls", "kafka-partition": "3", "kafka-offset": offsets})
}

#[tokio::test]
async fn a_pack_warms_each_line_and_tells_of_each_by_its_own_record() {
    let origin = plain_origin(|_| cacheable()).await;
    let served = Served::before(&origin, &[]).await;
    let data = b"http://example.com/a\r\nnot a URL\r\n\xff\r\n \r\nhttp://me@example.com/\r\nhttp://example.com/b\r\n";
    let mut attributes = packed("5-8,12,20");
    attributes["kafka-timestamp"] = json!("1700000000000");
    attributes["warm-header-accept-language"] = json!("de");
    assert_eq!(served.push(data, &attributes, &json!({"deliveryAttempt": 1})).await, 204);
    let mut told: Vec<(String, String, String)> = eventually("an outcome for each line", async || {
        let outcomes = served.serve.outcomes();
        (outcomes.len() == 6).then_some(outcomes)
    })
    .await
    .iter()
    .map(|outcome| {
        assert_eq!(outcome["kafka_timestamp"], 1_700_000_000_000_u64, "{outcome}");
        assert_eq!(outcome["delivery_attempt"], 1, "{outcome}");
        let text = |name: &str| outcome[name].as_str().unwrap_or_default().to_owned();
        (text("id"), text("verdict"), text("reason"))
    })
    .collect();
    told.sort();
    let line = |id: &str, verdict: &str, reason: &str| (id.to_owned(), verdict.to_owned(), reason.to_owned());
    assert_eq!(
        told,
        [
            line("urls/3/12", "refused", "user info"),
            line("urls/3/20", "fetched", ""),
            line("urls/3/5", "fetched", ""),
            line("urls/3/6", "refused", "malformed data: not an absolute http or https URL"),
            line("urls/3/7", "refused", "malformed data: not UTF-8"),
            line("urls/3/8", "refused", "malformed data: empty"),
        ]
    );
    let asked = origin.asked();
    assert_eq!(asked.len(), 2);
    assert!(asked.iter().all(|asked| asked.headers["accept-language"] == "de"), "options are every line's");
}

#[tokio::test]
async fn a_list_from_elsewhere_may_have_comments_and_needs_no_coordinates() {
    let origin = plain_origin(|_| cacheable()).await;
    let served = Served::before(&origin, &[]).await;
    let data = b"# tonight\nhttp://example.com/a\n\nhttp://example.com/b";
    let attributes = json!({"content-type": "Text/URI-List; charset=utf-8"});
    assert_eq!(served.push(data, &attributes, &json!({})).await, 204);
    let outcomes = eventually("two outcomes", async || {
        let outcomes = served.serve.outcomes();
        (outcomes.len() == 2).then_some(outcomes)
    });
    let mut ids: Vec<String> =
        outcomes.await.iter().map(|outcome| outcome["id"].as_str().unwrap().to_owned()).collect();
    ids.sort();
    assert_eq!(ids, ["7#2", "7#4"]);

    let only = b"http://example.com/only\r\n";
    assert_eq!(served.push(only, &packed("9"), &json!({})).await, 204);
    eventually("the record of the only line", async || {
        served.serve.outcomes().iter().any(|outcome| outcome["id"] == "urls/3/9").then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_pack_is_nacked_once_all_lines_are_done_where_one_of_them_may_be_cured() {
    let origin = plain_origin(|asked| match asked.url.rsplit('/').next().unwrap().parse() {
        Ok(code) => status(code),
        Err(_) => cacheable(),
    })
    .await;
    let served = Served::before(&origin, &[]).await;
    let data = b"http://example.com/503\r\nhttp://example.com/404\r\nhttp://example.com/a";
    for (attempt, answer) in [(1, 503), (5, 204)] {
        let more = json!({"deliveryAttempt": attempt});
        assert_eq!(served.push(data, &packed("0-2"), &more).await, answer, "at attempt {attempt}");
        eventually("each line's outcome", async || {
            let of_this = |outcome: &&Value| outcome["delivery_attempt"] == attempt;
            (served.serve.outcomes().iter().filter(of_this).count() == 3).then_some(())
        })
        .await;
    }
    let curable_is_gone = b"http://example.com/404\r\nnot a URL\r\nhttp://example.com/a";
    assert_eq!(served.push(curable_is_gone, &packed("0-2"), &json!({"deliveryAttempt": 1})).await, 204);
}

#[tokio::test]
async fn what_a_pack_has_not_warmed_in_the_time_for_one_push_has_failed() {
    let origin =
        Origin::start_slow(&["example.com".to_owned()], Duration::from_millis(700), |_| cacheable()).await;
    let served = Served::before(&origin, &["--timeout", "1"]).await;
    let urls: Vec<String> = (0..40).map(|n| format!("http://example.com/{n}")).collect();
    let data = urls.join("\r\n");
    assert_eq!(served.push(data.as_bytes(), &packed("0-39"), &json!({"deliveryAttempt": 1})).await, 503);
    let outcomes = eventually("each line's outcome", async || {
        let outcomes = served.serve.outcomes();
        (outcomes.len() == 40).then_some(outcomes)
    })
    .await;
    let never_asked = |outcome: &&Value| outcome["attempts"] == 0;
    assert!(outcomes.iter().filter(never_asked).count() >= 24, "{outcomes:?}");
    for outcome in outcomes.iter().filter(never_asked) {
        assert_eq!((&outcome["verdict"], &outcome["reason"]), (&json!("failed"), &json!("total timeout")));
    }
}

#[tokio::test]
async fn the_lines_of_a_pack_count_against_the_cap() {
    let slow = Duration::from_millis(500);
    let origin = Origin::start_slow(&["example.com".to_owned()], slow, |_| cacheable()).await;
    let served = Served::before(&origin, &["--max-in-flight", "2"]).await;
    let data = (0..6).map(|n| format!("http://example.com/{n}")).collect::<Vec<_>>().join("\r\n");
    let started = std::time::Instant::now();
    let (attributes, nothing) = (packed("0-5"), json!({}));
    let (first, second) = tokio::join!(served.push(data.as_bytes(), &attributes, &nothing), async {
        eventually("two GETs", async || (origin.asked().len() == 2).then_some(())).await;
        served.push_url("http://example.com/other").await
    });
    assert_eq!((first, second), (204, 429));
    assert!(started.elapsed() >= 3 * slow, "two at a time: {:?}", started.elapsed());
    assert_eq!(origin.asked().len(), 6);
}

#[tokio::test]
async fn a_list_without_a_url_is_malformed() {
    let origin = plain_origin(|_| cacheable()).await;
    let list = json!({"content-type": "text/uri-list"});
    for (choice, answer) in [("nack", 400), ("ack", 204)] {
        let served = Served::before(&origin, &["--malformed", choice]).await;
        for data in [&b""[..], b"\r\n\r\n", b"# nothing\r\n"] {
            assert_eq!(served.push(data, &list, &json!({})).await, answer);
        }
        if choice == "ack" {
            eventually("three refusals", async || (served.serve.outcomes().len() == 3).then_some(())).await;
            assert_eq!(served.outcome().await["reason"], "malformed data: a list without a URL");
        }
    }
    assert!(origin.asked().is_empty());
}

#[tokio::test]
async fn other_requests_are_told_what_this_is() {
    let origin = plain_origin(|_| cacheable()).await;
    let served = Served::before(&origin, &[]).await;
    let get = async |path: &str| {
        let answer = served.http.get(format!("{}{path}", served.url)).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    let (code, text) = get("").await;
    assert_eq!(code, 405);
    assert!(text.contains("POST"), "{text}");
    assert_eq!(get("nowhere").await.0, 404);
    for path in ["health", "ready", "healthz", "readyz"] {
        assert_eq!(get(path).await.0, 200, "{path}");
    }
}

#[tokio::test]
async fn pushes_over_cleartext_http2_work() {
    let origin = plain_origin(|_| cacheable()).await;
    let served = Served::before(&origin, &[]).await;
    let client = Client::builder(TokioExecutor::new()).http2_only(true).build_http();
    let envelope = json!({"message": {"data": STANDARD.encode("http://example.com/h2"), "messageId": "1"}});
    let request = Request::post(&served.url).body(Full::<Bytes>::from(envelope.to_string())).unwrap();
    let answer = client.request(request).await.unwrap();
    assert_eq!((answer.status().as_u16(), answer.version()), (204, http::Version::HTTP_2));
    assert_eq!(origin.asked().len(), 1);
}

#[tokio::test]
async fn sigterm_answers_what_is_in_flight_and_ends() {
    let origin =
        Origin::start_slow(&["example.com".to_owned()], Duration::from_secs(2), |_| cacheable()).await;
    let mut served = Served::before(&origin, &[]).await;
    let (answer, ()) = tokio::join!(served.push_url("http://example.com/slow"), async {
        eventually("the GET", async || (!origin.asked().is_empty()).then_some(())).await;
        served.serve.signal(Signal::SIGTERM);
    });
    assert_eq!(answer, 204);
    assert_eq!(served.serve.ends().await, Some(0));
}

#[tokio::test]
async fn more_pushes_than_the_cap_are_answered_at_once() {
    let origin =
        Origin::start_slow(&["example.com".to_owned()], Duration::from_secs(2), |_| cacheable()).await;
    let served = Served::before(&origin, &["--max-in-flight", "1"]).await;
    let (first, second) = tokio::join!(served.push_url("http://example.com/1"), async {
        eventually("the GET", async || (!origin.asked().is_empty()).then_some(())).await;
        served.push_url("http://example.com/2").await
    });
    assert_eq!((first, second), (204, 429));
}

#[tokio::test]
async fn a_redirect_is_told_without_its_credentials() {
    let origin = plain_origin(|_| {
        let target = "https://alice:hunter2@b.example.com/x?X-Amz-Signature=c0ffee&part=1";
        Response::builder().status(302).header("location", target).body(Full::default()).unwrap()
    })
    .await;
    for (follow, verdict, reason) in [
        ("0", "failed", "redirect to https://b.example.com/x?X-Amz-Signature=…&part=1"),
        ("5", "refused", "redirect: user info"),
    ] {
        let served = Served::before(&origin, &["--follow-redirects", follow]).await;
        assert_eq!(served.push_url("http://example.com/a").await, 204);
        let outcome = served.outcome().await;
        assert_eq!((&outcome["verdict"], &outcome["reason"]), (&json!(verdict), &json!(reason)));
    }
}

#[tokio::test]
async fn a_redirect_is_followed_and_its_end_is_named() {
    let origin = plain_origin(|asked| {
        if asked.url.ends_with("/b") {
            return cacheable();
        }
        Response::builder().status(301).header("location", "/b").body(Full::default()).unwrap()
    })
    .await;
    let served = Served::before(&origin, &[]).await;
    assert_eq!(served.push_url("http://example.com/a").await, 204);
    let outcome = served.outcome().await;
    assert_eq!((&outcome["verdict"], &outcome["attempts"]), (&json!("fetched"), &json!(2)));
    assert_eq!(outcome["final_url"], "http://example.com/b");
}

#[tokio::test]
async fn an_empty_variable_for_a_list_counts_as_unset() {
    let origin = plain_origin(|_| cacheable()).await;
    let mut command =
        command(&["serve", "--listen", "127.0.0.1", "--port", "0", "--insecure-accept-unauthenticated"]);
    for name in ["ALLOW_ADDRESS", "ALLOW_HOST", "ONLY_HOSTS"] {
        command.env(format!("CDNWARM_{name}"), "");
    }
    command.env("CDNWARM_CONNECT_TO", format!(",*={} ,", origin.addr));
    let served = Served::of(command).await;
    assert_eq!(served.push_url("http://example.com/a").await, 204);
    assert_eq!(origin.asked().len(), 1);
}

#[tokio::test]
async fn region_and_instance_come_from_the_metadata_server_where_they_are_not_given() {
    let metadata = Origin::start(&["metadata.example.com".to_owned()], |asked| {
        let known = asked.headers.get("metadata-flavor").is_some_and(|flavor| flavor == "Google");
        let text = match asked.url.rsplit_once("/computeMetadata/v1/instance/") {
            Some((_, "id")) if known => "00f8b9c1d2e3a4b5c6d7",
            Some((_, "region")) if known => "projects/123/regions/europe-north1",
            _ => return status(403),
        };
        Response::new(Full::from(text))
    })
    .await;
    let origin = plain_origin(|_| cacheable()).await;
    let connect_to = format!("*={}", origin.addr);
    let mut args = vec!["serve", "--listen", "127.0.0.1", "--port", "0", "--insecure-accept-unauthenticated"];
    args.extend(["--connect-to", &connect_to]);
    let outcome = async |args: &[&str], on_cloud_run: bool| {
        let mut command = command(args);
        command.env("GCE_METADATA_HOST", metadata.addr.to_string());
        if on_cloud_run {
            command.env("K_SERVICE", "cdnwarm-serve");
        }
        let served = Served::of(command).await;
        assert_eq!(served.push_url("http://example.com/a").await, 204);
        let outcome = served.outcome().await;
        (outcome["region"].clone(), outcome["instance"].clone())
    };
    assert_eq!(outcome(&args, false).await, (json!("europe-north1"), json!("a4b5c6d7")));
    assert_eq!(metadata.asked().len(), 2);

    metadata.forget();
    args.extend(["--region", "here"]);
    assert_eq!(outcome(&args, true).await, (json!("here"), json!("a4b5c6d7")));
    assert_eq!(metadata.asked().len(), 1, "for the id, which nobody gave");

    metadata.forget();
    let (region, instance) = outcome(&args, false).await;
    assert_eq!(region, "here");
    assert_ne!(instance, "a4b5c6d7");
    assert_eq!(metadata.asked().len(), 0, "nobody is asked for what is given");
}
