//! A panic in a request of the real `serve`. No input makes it panic, so a clock does that says what no calendar holds.
//!
//! On the release binary, whose profile is its own: `CDNWARM_TEST_BINARY=target/release/cdnwarm cargo test --test it panic`.

use std::path::Path;
use std::sync::Arc;

use tokio::io::AsyncWriteExt;
use tokio::sync::{Barrier, Semaphore};

use crate::push::Served;
use crate::support::eventually;
use crate::support::process::command;
use crate::support::raw_origin::{RawOrigin, Wire};

/// Builds the library that turns the clock of whoever preloads it.
fn wild_clock(folder: &Path) -> String {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/support/wild_clock.c");
    let library = folder.join("wild_clock.so");
    let built = std::process::Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-D_GNU_SOURCE", "-o"])
        .args([&library, &source])
        .status();
    assert!(built.unwrap().success());
    library.to_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_panic_in_one_request_ends_neither_the_process_nor_any_answer() {
    let (gate, waiting) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let (held, reached) = (gate.clone(), waiting.clone());
    let first = 4 * std::thread::available_parallelism().unwrap().get();
    let together = Arc::new(Barrier::new(first));
    let origin = RawOrigin::start(move |name, mut wire: Box<dyn Wire>| {
        let (held, reached, together) = (held.clone(), reached.clone(), together.clone());
        async move {
            if name == "first" {
                together.wait().await;
            }
            if name.starts_with("held") {
                reached.add_permits(1);
                let _ = held.acquire().await;
            }
            wire.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello").await
        }
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let wild = folder.path().join("wild");
    let connect_to = format!("*={}", origin.addr);
    let mut args = vec!["serve", "--listen", "127.0.0.1", "--port", "0", "--insecure-accept-unauthenticated"];
    args.extend(["--region", "here", "--malformed", "ack", "--connect-to", &connect_to]);
    let mut command = command(&args);
    command.env("LD_PRELOAD", wild_clock(folder.path())).env("WILD_CLOCK", &wild);
    let served = Served::of(command).await;
    // The server reads the clock too, once for each thread: these leave that behind for all of them.
    let urls: Vec<_> = (0..first).map(|n| format!("http://first.example.com/{n}")).collect();
    let answers = futures_util::future::join_all(urls.iter().map(|url| served.push_url(url))).await;
    assert_eq!(answers, vec![204; first]);

    let other = served.push_url("http://held.example.com/");
    let panicking = async {
        waiting.acquire().await.unwrap().forget();
        std::fs::write(&wild, "").unwrap();
        let answered = served.push_url("no URL").await;
        assert!(!wild.exists(), "it has panicked");
        gate.add_permits(1);
        answered
    };
    assert_eq!(tokio::join!(other, panicking), (204, 500));

    let told = async || {
        let mut errors = served.serve.logged().into_iter().filter(|line| line["severity"] == "ERROR");
        errors.find(|line| line["message"].as_str().is_some_and(|text| text.contains("panicked")))
    };
    eventually("the log tells of it", told).await;
    assert_eq!(served.push_url("http://example.com/after").await, 204);
}
