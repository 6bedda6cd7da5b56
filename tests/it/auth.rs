//! Who may push to `cdnwarm serve`: every token of the case list, and a key server at its worst.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use cdnwarm::demo::pubsub::EmbeddedPubsub;
use http::Response;
use http_body_util::Full;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::support::eventually;
use crate::support::origin::{Answer, Origin, cacheable, status};
use crate::support::process::{Process, command, run, told};
use crate::support::tokens::{ACCOUNT, AUDIENCE, Keys};

/// A `serve` that checks tokens, before an origin, with a key server.
struct Guarded {
    serve: Process,
    addr: String,
    origin: Origin,
    key_server: Origin,
    http: reqwest::Client,
}

impl Guarded {
    /// With a key server that takes this long to give this answer.
    async fn start<F>(delay: Duration, keys: F) -> Self
    where
        F: Fn() -> Answer + Clone + Send + Sync + 'static,
    {
        let key_server = Origin::start_slow(&[], delay, move |_| keys()).await;
        let url = format!("http://{}/certs", key_server.addr);
        let origin = Origin::start(&[], |_| cacheable()).await;
        let serve = serve(&origin, &["--push-jwks-url", &url]);
        let addr = serve.listening().await;
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { serve, addr, origin, key_server, http }
    }

    /// The status of a push of a URL with this path, sent with these header lines as they are.
    async fn push_raw(&self, path: &str, lines: &[Vec<u8>]) -> u16 {
        let body = envelope(path);
        let mut head =
            format!("POST / HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n", self.addr).into_bytes();
        for line in lines {
            head.extend_from_slice(line);
            head.extend_from_slice(b"\r\n");
        }
        head.extend_from_slice(format!("content-length: {}\r\n\r\n{body}", body.len()).as_bytes());
        let mut stream = TcpStream::connect(&self.addr).await.unwrap();
        stream.write_all(&head).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        let answer = String::from_utf8_lossy(&answer);
        let code = answer
            .strip_prefix("HTTP/1.1 ")
            .and_then(|rest| rest.get(..3))
            .and_then(|code| code.parse().ok());
        let code = code.unwrap_or_else(|| panic!("{path}: {answer:?}"));
        let challenged = answer.to_lowercase().contains("\r\nwww-authenticate: bearer");
        assert_eq!(challenged, code == 401, "{path}: {answer}");
        code
    }

    /// The status of a push with this token.
    async fn push(&self, path: &str, token: &str) -> u16 {
        let request =
            self.http.post(format!("http://{}/", self.addr)).bearer_auth(token).body(envelope(path));
        request.send().await.unwrap().status().as_u16()
    }

    async fn ready(&self) -> u16 {
        self.http.get(format!("http://{}/ready", self.addr)).send().await.unwrap().status().as_u16()
    }

    /// The paths that the origin was asked for since the last time.
    fn fetched(&self) -> Vec<String> {
        let asked = self.origin.asked().into_iter();
        let paths =
            asked.map(|asked| asked.url.trim_start_matches("http://example.com/").to_owned()).collect();
        self.origin.forget();
        paths
    }
}

/// Starts `serve` for the tests' audience and account, with every host at `origin`.
fn serve(origin: &Origin, args: &[&str]) -> Process {
    let connect_to = format!("*={}", origin.addr);
    let mut all = vec!["serve", "--listen", "127.0.0.1", "--port", "0", "--region", "europe-west1"];
    all.extend(["--push-audience", AUDIENCE, "--push-service-account", ACCOUNT, "--connect-to", &connect_to]);
    all.extend(args);
    Process::start(&all)
}

fn envelope(path: &str) -> String {
    let url = format!("http://example.com/{path}");
    json!({"message": {"data": BASE64_STANDARD.encode(url)}, "subscription": "projects/p/subscriptions/s"})
        .to_string()
}

fn key_set(text: String) -> Answer {
    Response::builder().header("cache-control", "public, max-age=19800").body(Full::from(text)).unwrap()
}

/// One case of the list.
struct Case {
    name: String,
    accepted: bool,
    stage: u8,
}

fn cases() -> Vec<Case> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpora/jwt_cases.md");
    let mut accepted = false;
    let mut cases = Vec::new();
    for line in std::fs::read_to_string(path).unwrap().lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            accepted = heading.starts_with("Accepted");
            assert!(accepted || heading.contains("all refused"), "{heading}");
        } else if let Some(case) = line.strip_prefix("- `") {
            let (name, rest) = case.split_once('`').unwrap();
            let stage = if rest.starts_with(" (stage 2)") { 2 } else { 1 };
            cases.push(Case { name: name.to_owned(), accepted, stage });
        }
    }
    cases
}

#[tokio::test]
async fn every_token_of_the_case_list_is_judged_as_it_says() {
    let keys = Arc::new(Keys::new());
    let stage = Arc::new(AtomicU8::new(1));
    let canary = Origin::start(&[], |_| status(404)).await;
    let canary_url = format!("http://{}/keys", canary.addr);
    let guarded = {
        let (keys, stage) = (keys.clone(), stage.clone());
        Guarded::start(Duration::ZERO, move || key_set(keys.published(stage.load(Ordering::Relaxed)))).await
    };
    let judge = async |case: &Case| {
        let code = guarded.push_raw(&case.name, &keys.lines(&case.name, &canary_url)).await;
        if case.accepted {
            assert_eq!((code, guarded.fetched()), (204, vec![case.name.clone()]), "{}", case.name);
        } else {
            assert!([401, 403, 431].contains(&code), "{}: {code}", case.name);
            assert!(guarded.fetched().is_empty(), "{}", case.name);
        }
        let after = format!("after-{}", case.name);
        assert_eq!(guarded.push_raw(&after, &keys.lines("ok-key-b", &canary_url)).await, 204, "{after}");
        assert_eq!(guarded.fetched(), [after]);
    };
    let (first, second): (Vec<Case>, Vec<Case>) = cases().into_iter().partition(|case| case.stage == 1);
    assert_eq!((first.len(), second.len()), (145, 3));
    for case in &first {
        judge(case).await;
    }
    assert!(guarded.key_server.asked().len() <= 2, "unknown keys are asked for once in 30 s at most");

    stage.store(2, Ordering::Relaxed);
    let rotated = Instant::now();
    while guarded.push_raw("rotation", &keys.lines("ok-rotated-in", &canary_url)).await != 204 {
        assert!(rotated.elapsed() < Duration::from_secs(35), "the new key is seen within 30 s");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    guarded.fetched();
    for case in &second {
        judge(case).await;
    }
    assert!(canary.asked().is_empty(), "no key is fetched from where a token says");
    let lines = guarded.serve.lines();
    assert!(!lines.iter().any(|line| line.contains("panicked")), "{}", lines.join("\n"));
    assert_eq!(
        guarded.serve.logged().len(),
        lines.len(),
        "every line is one JSON object:\n{}",
        lines.join("\n")
    );
    assert!(lines.iter().all(|line| line.len() < 2_000), "what comes from outside is cut");
}

#[tokio::test]
async fn the_first_pushes_wait_for_one_fetch_of_the_keys() {
    let keys = Arc::new(Keys::new());
    let published = keys.published(1);
    // Long enough that most of them come before the keys; one fetch is right whenever they come.
    let guarded = Guarded::start(Duration::from_secs(1), move || key_set(published.clone())).await;
    let tokens: Vec<String> = (0..200).map(|number| keys.good(number)).collect();
    let codes = futures_util::future::join_all(tokens.iter().map(|token| guarded.push("first", token))).await;
    assert!(codes.iter().all(|code| *code == 204), "{codes:?}");
    assert_eq!(guarded.key_server.asked().len(), 1);
    assert_eq!(guarded.ready().await, 200);
}

#[tokio::test]
async fn without_any_keys_pushes_are_answered_503_and_bad_ones_401() {
    let keys = Keys::new();
    let guarded = Guarded::start(Duration::ZERO, || status(503)).await;
    eventually("the first fetch", async || (!guarded.key_server.asked().is_empty()).then_some(())).await;
    assert_eq!(guarded.push("a", &keys.good(0)).await, 503);
    assert_eq!(guarded.push("b", "a.b.c").await, 401);
    assert_eq!(guarded.push_raw("c", &keys.lines("aud-wrong", "")).await, 401);
    assert_eq!(guarded.ready().await, 503);
    let health = guarded.http.get(format!("http://{}/health", guarded.addr)).send().await.unwrap();
    assert_eq!(health.status(), 200, "it lives, and may become ready");
    assert!(guarded.fetched().is_empty());
    assert_eq!(guarded.key_server.asked().len(), 1);
}

/// Pushes with made-up key ids, over this time, beside good ones that all must be answered.
async fn flood(count: usize, over: Duration) {
    const CONNECTIONS: usize = 16;
    let keys = Arc::new(Keys::new());
    let published = keys.published(1);
    let guarded = Guarded::start(Duration::ZERO, move || key_set(published.clone())).await;
    assert_eq!(guarded.push("warm", &keys.good(0)).await, 204);
    let began = Instant::now();
    let each = count / CONNECTIONS;
    let bad = futures_util::future::join_all((0..CONNECTIONS).map(async |connection| {
        let template = keys.with_kid("KID");
        let (_, rest) = template.split_once('.').unwrap();
        for number in 0..each {
            let due = over.mul_f64(number as f64 / each as f64);
            tokio::time::sleep(due.saturating_sub(began.elapsed())).await;
            let header =
                json!({"alg": "RS256", "kid": format!("{connection}-{number}"), "typ": "JWT"}).to_string();
            let token = format!("{}.{rest}", base64::prelude::BASE64_URL_SAFE_NO_PAD.encode(header));
            assert_eq!(guarded.push("bad", &token).await, 401);
        }
    }));
    let good = async {
        let mut sent = 0;
        while sent < 20 || began.elapsed() < over {
            sent += 1;
            assert_eq!(guarded.push(&format!("good-{sent}"), &keys.good(sent)).await, 204);
        }
        sent
    };
    let (_, good) = tokio::join!(bad, good);
    let took = began.elapsed();
    let fetches = guarded.key_server.asked().len();
    println!(
        "{} made-up key ids in {took:.1?}, {good} good pushes answered 204, {fetches} fetches",
        each * CONNECTIONS
    );
    assert!(fetches <= 1 + 1 + took.as_secs() as usize / 30, "{fetches} fetches");
    assert_eq!(guarded.fetched().len(), good + 1);
    let refused: usize = guarded.serve.lines().iter().filter(|line| line.contains("push refused")).count();
    assert!(refused <= took.as_secs() as usize + 2, "the log is not flooded: {refused} lines");
}

#[tokio::test]
async fn made_up_key_ids_cost_at_most_one_fetch_and_no_good_push() {
    flood(2_000, Duration::ZERO).await;
}

/// `cargo test --release --test it fifty_thousand -- --ignored --nocapture`
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes half a minute; the short form is above"]
async fn fifty_thousand_made_up_key_ids_in_thirty_seconds() {
    flood(50_000, Duration::from_secs(30)).await;
}

#[tokio::test]
async fn on_a_private_service_only_tokens_without_their_signature_are_taken() {
    let keys = Keys::new();
    let origin = Origin::start(&[], |_| cacheable()).await;
    let serve = serve(&origin, &["--trust-platform-auth"]);
    let addr = serve.listening().await;
    let key_server = Origin::start(&[], |_| status(404)).await;
    let guarded = Guarded {
        serve,
        addr,
        origin,
        key_server,
        http: reqwest::Client::builder().no_proxy().build().unwrap(),
    };
    assert_eq!(guarded.ready().await, 200, "it needs no keys");
    let now = jiff::Timestamp::now().as_second();
    for _ in 0..2 {
        assert_eq!(guarded.push("good", &keys.without_signature(&json!({}))).await, 204);
    }
    for change in [
        json!({"aud": "https://other.example.com/"}),
        json!({"iss": "https://issuer.example.com"}),
        json!({"email": "push@project-2.iam.gserviceaccount.com"}),
        json!({"email_verified": "true"}),
        json!({"exp": now - 120}),
        json!({"iat": now + 3_600}),
    ] {
        assert_eq!(guarded.push("bad", &keys.without_signature(&change)).await, 401, "{change}");
    }
    let token = keys.without_signature(&json!({}));
    let (signed, _) = token.rsplit_once('.').unwrap();
    for signature in ["", "signature_removed_by_google", "SIGNATURE_REMOVED_BY_GOOGLE_", "c2lnbmF0dXJl"] {
        assert_eq!(guarded.push("bad", &format!("{signed}.{signature}")).await, 401, "{signature}");
    }
    assert_eq!(guarded.push("bad", &keys.good(0)).await, 401, "nobody has checked this one");
    for case in ["alg-none-old-signature", "two-headers-bad-last", "no-header"] {
        assert_eq!(guarded.push_raw("bad", &keys.lines(case, "")).await, 401, "{case}");
    }
    assert_eq!(guarded.fetched(), ["good", "good"]);
}

#[tokio::test]
async fn settings_that_believe_nobody_or_contradict_each_other_end_with_status_2() {
    let account = ["--push-service-account", ACCOUNT];
    let audience = ["--push-audience", AUDIENCE];
    let insecure = ["--insecure-accept-unauthenticated"];
    let trust = ["--trust-platform-auth"];
    let keys = ["--push-jwks-url", "http://127.0.0.1:1/certs"];
    for (args, expected) in [
        (vec![], "--push-audience and --push-service-account"),
        (vec![&audience[..]], "--push-audience and --push-service-account"),
        (vec![&account[..]], "--push-audience and --push-service-account"),
        (vec![&trust[..]], "--push-audience and --push-service-account"),
        (vec![&insecure[..], &audience], "--push-audience does not"),
        (vec![&insecure[..], &account], "--push-service-account does not"),
        (vec![&insecure[..], &trust], "--trust-platform-auth does not"),
        (vec![&insecure[..], &keys], "--push-jwks-url does not"),
        (vec![&trust[..], &audience, &account, &keys], "--push-jwks-url has no use"),
        (vec![&account[..], &["--push-audience", ""]], "it is empty, or has white space around it"),
        (vec![&account[..], &["--push-audience", " x"]], "it is empty, or has white space around it"),
        (vec![&audience[..], &["--push-service-account", "push"]], "an e-mail address such as"),
        (vec![&audience[..], &account, &["--push-jwks-url", "file:///keys"]], "an http or https URL"),
        (vec![&audience[..], &account, &["--push-jwks-url", "keys"]], "--push-jwks-url"),
    ] {
        let args: Vec<&str> = [&["serve"][..]].into_iter().chain(args).flatten().copied().collect();
        let output = run(&args).await;
        let text = told(&output);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {text}");
        assert!(text.contains(expected), "{expected:?} is not in:\n{text}");
    }
}

#[tokio::test]
async fn a_flag_that_is_off_in_the_environment_contradicts_nothing() {
    let origin = Origin::start(&[], |_| cacheable()).await;
    let mut command = command(&["serve", "--listen", "127.0.0.1", "--port", "0"]);
    command.env("CDNWARM_PUSH_AUDIENCE", AUDIENCE).env("CDNWARM_PUSH_SERVICE_ACCOUNT", ACCOUNT);
    command.env("CDNWARM_PUSH_JWKS_URL", format!("http://{}/", origin.addr));
    command.env("CDNWARM_INSECURE_ACCEPT_UNAUTHENTICATED", "false").env("CDNWARM_TRUST_PLATFORM_AUTH", "0");
    Process::spawn(command).listening().await;
}

#[tokio::test]
async fn pushes_of_the_embedded_pubsub_carry_the_token_that_their_subscription_asks_for() {
    let pubsub = EmbeddedPubsub::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let (api, keys_url) = (format!("http://{}/v1/projects/p", pubsub.addr()), pubsub.keys_url());
    let stop = CancellationToken::new();
    let _stopped = stop.clone().drop_guard();
    tokio::spawn(pubsub.run(stop));
    let origin = Origin::start(&[], |_| cacheable()).await;
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let put = async |name: &str, body: serde_json::Value| {
        let answer = http.put(format!("{api}/{name}")).body(body.to_string()).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{}", answer.text().await.unwrap());
    };
    put("topics/urls", json!({})).await;
    // Its own audience, the endpoint where it has none, another one, and another account.
    let serves: Vec<Process> = (0..4).map(|_| serve(&origin, &["--push-jwks-url", &keys_url])).collect();
    let endpoint = async |serve: &Process| format!("http://{}/", serve.listening().await);
    let oidc = [
        json!({"serviceAccountEmail": ACCOUNT, "audience": AUDIENCE}),
        json!({"serviceAccountEmail": ACCOUNT}),
        json!({"serviceAccountEmail": "other@project-1.iam.gserviceaccount.com", "audience": AUDIENCE}),
    ];
    for (number, oidc) in oidc.into_iter().enumerate() {
        let push = json!({"pushEndpoint": endpoint(&serves[number]).await, "oidcToken": oidc});
        let subscription = json!({"topic": "projects/p/topics/urls", "pushConfig": push});
        put(&format!("subscriptions/sub-{number}"), subscription).await;
    }
    let push = json!({"pushEndpoint": endpoint(&serves[3]).await});
    put("subscriptions/sub-3", json!({"topic": "projects/p/topics/urls", "pushConfig": push})).await;

    let message = json!({"messages": [{"data": BASE64_STANDARD.encode("http://example.com/a")}]}).to_string();
    let published = http.post(format!("{api}/topics/urls:publish")).body(message).send().await.unwrap();
    assert_eq!(published.status(), 200);
    serves[0].verdicts(&["http://example.com/a".to_owned()], "fetched").await;
    serves[1].says("push refused (audience)").await;
    serves[2].says("push refused (account)").await;
    serves[3].says("push refused (no-token)").await;
    for refused in &serves[1..] {
        assert!(refused.outcomes().is_empty());
    }
    let token_shown = |serve: &Process| serve.lines().iter().any(|line| line.contains("eyJ"));
    assert!(!serves.iter().any(token_shown), "no token is logged");
    let found = http.get(format!("{api}/subscriptions/sub-0")).send().await.unwrap().text().await.unwrap();
    assert!(found.contains(ACCOUNT) && found.contains(AUDIENCE), "{found}");
}
