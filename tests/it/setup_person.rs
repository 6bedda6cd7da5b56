//! Who runs `cdnwarm setup`: as whom it calls, whom it asks, and that it tells nobody its tokens.

use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::process::Stdio;

use bytes::Bytes;
use cdnwarm::demo::pubsub::EmbeddedPubsub;
use http::Response;
use http_body_util::Full;
use nix::pty::openpty;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::support::origin::{Answer, Asked, Origin};
use crate::support::process::{finish, told};
use crate::support::setup::Setup;

const FILE: &str = "project = \"my-project\"\nproject-number = 123456789012\n[regions.europe-west1]\n\
                    [bridge]\nkind = \"none\"\n";

const OWN: &str = "token-of-the-machine";
const THEIRS: &str = "token-of-the-deployer";
const DEPLOYER: &str = "deployer@my-project.iam.gserviceaccount.com";

/// A metadata server, and in Google's place an empty Pub/Sub and the API that gives other accounts' tokens.
async fn google() -> Origin {
    let hosts = ["pubsub.googleapis.com", "iamcredentials.googleapis.com"].map(str::to_owned);
    Origin::start(&hosts, |asked: &Asked| {
        let (status, body) = if asked.url.contains("/token") {
            (200, json!({ "access_token": OWN, "expires_in": 3600, "token_type": "Bearer" }))
        } else if asked.url.contains(":generateAccessToken") {
            (200, json!({ "accessToken": THEIRS, "expireTime": "2099-01-01T00:00:00Z" }))
        } else {
            (404, json!({ "error": { "code": 404, "status": "NOT_FOUND", "message": "not there" } }))
        };
        answer(status, &body)
    })
    .await
}

fn answer(status: u16, body: &Value) -> Answer {
    let response = Response::builder().status(status).header("content-type", "application/json");
    response.body(Full::from(Bytes::from(body.to_string()))).unwrap()
}

/// A proxy that leads every CONNECT to `origin`.
async fn proxy_to(origin: SocketAddr) -> (SocketAddr, AbortOnDropHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await?);
                }
                assert!(head.starts_with(b"CONNECT "), "{}", String::from_utf8_lossy(&head));
                stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
                copy_bidirectional(&mut stream, &mut TcpStream::connect(origin).await?).await
            });
        }
    });
    (addr, AbortOnDropHandle::new(task))
}

/// With the machine's own account, where Google's hosts are behind that proxy.
fn at_google(mut command: Command, google: &Origin, proxy: SocketAddr) -> Command {
    command.env_remove("NO_PROXY").env_remove("no_proxy");
    command.env("HTTPS_PROXY", format!("http://{proxy}"));
    command.env("SSL_CERT_FILE", google.ca.path());
    command.env("GCE_METADATA_HOST", google.addr.to_string());
    // Nobody's own credentials.
    command.env("HOME", "/nonexistent");
    command
}

/// The URLs that were asked for over TLS, with the tokens that they carried.
fn calls(google: &Origin) -> Vec<(String, String)> {
    let token = |asked: &Asked| asked.headers["authorization"].to_str().unwrap().to_owned();
    let calls = google.asked().into_iter().filter(|asked| asked.url.starts_with("https://"));
    calls.map(|asked| (asked.url.clone(), token(&asked))).collect()
}

#[tokio::test]
async fn calls_carry_the_machines_own_token_or_that_of_the_account_it_acts_as() {
    let google = google().await;
    let (proxy, _proxy) = proxy_to(google.addr).await;
    let setup = Setup::new(FILE, String::new());
    let plan = ["plan", "--only", "topics", "--log", "trace"];
    let output = finish(at_google(setup.command(&plan), &google, proxy)).await;
    let mut said = told(&output);
    assert!(output.status.success() && said.contains("+ create   topic warming_urls"), "{said}");
    let own = calls(&google);
    let topic = "https://pubsub.googleapis.com/v1/projects/my-project/topics/warming_urls";
    assert!(own.iter().any(|(url, _)| url == topic), "{own:#?}");
    assert!(own.iter().all(|(_, token)| *token == format!("Bearer {OWN}")), "{own:#?}");
    google.forget();
    let plan = [&plan[..], &["--impersonate-service-account", DEPLOYER]].concat();
    let output = finish(at_google(setup.command(&plan), &google, proxy)).await;
    said += &told(&output);
    assert!(output.status.success(), "{said}");
    for (url, token) in calls(&google) {
        let expected = if url.starts_with("https://iamcredentials.googleapis.com/") {
            assert!(url.contains(DEPLOYER), "{url}");
            OWN
        } else {
            THEIRS
        };
        assert_eq!(token, format!("Bearer {expected}"), "{url}");
    }
    assert!(calls(&google).len() > 3);
    assert!(!said.contains(OWN) && !said.contains(THEIRS), "{said}");
}

#[tokio::test]
async fn nobody_in_particular_is_told_how_to_become_somebody() {
    let setup = Setup::new(FILE, String::new());
    let mut command = setup.command(&["plan", "--only", "topics"]);
    command.env("GOOGLE_APPLICATION_CREDENTIALS", "/nonexistent/key.json");
    let output = finish(command).await;
    let said = told(&output);
    assert!(
        output.status.code() == Some(1) && said.contains("gcloud auth application-default login"),
        "{said}"
    );
}

#[tokio::test]
async fn apply_asks_a_person_and_does_nothing_without_a_yes() {
    let server = EmbeddedPubsub::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
    let (addr, stop) = (server.addr(), CancellationToken::new());
    let _stop = stop.clone().drop_guard();
    tokio::spawn(server.run(stop));
    let setup = Setup::new(FILE, format!("pubsub=http://{addr}"));
    let apply = ["apply", "--only", "topics"];
    let output = setup.run(&apply).await;
    assert!(output.status.code() == Some(2) && told(&output).contains("give --yes"), "{}", told(&output));
    for (typed, status, left) in [("no\n", 1, 3), ("yes\n", 0, 0)] {
        let terminal = openpty(None, None).unwrap();
        let mut keyboard = File::from(terminal.master);
        keyboard.write_all(typed.as_bytes()).unwrap();
        let mut command = setup.command(&apply);
        command.stdin(Stdio::from(terminal.slave));
        let output = finish(command).await;
        assert_eq!(output.status.code(), Some(status), "{}", told(&output));
        assert!(told(&output).contains("Do this? (yes/no)"), "{}", told(&output));
        assert_eq!(setup.changes(&apply[1..]).await.len(), left, "after {typed:?}");
    }
}
