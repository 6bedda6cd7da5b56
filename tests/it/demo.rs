//! `cdnwarm demo` as a newcomer runs it.

use nix::sys::signal::Signal;

use crate::support::eventually;
use crate::support::process::{Process, run, told};

#[tokio::test]
async fn the_demo_ends_with_every_url_warm_in_every_region() {
    let output = run(&["demo"]).await;
    let text = told(&output);
    assert!(output.status.success(), "{text}");
    let rows: Vec<&str> = text.lines().filter(|line| line.starts_with("http://postman-echo.com/")).collect();
    assert_eq!(rows.len(), 10, "{text}");
    for row in rows {
        assert_eq!(row.split_whitespace().skip(1).collect::<Vec<_>>(), ["warm"; 3], "{row}");
    }
    assert!(text.contains("the origin saw 30 GETs for 30 pairs"), "{text}");
    assert!(text.contains("p99"), "{text}");
}

#[tokio::test]
async fn a_broken_region_fails_the_demo_and_is_named() {
    let output = run(&["demo", "--regions", "north,south", "--count", "3", "--break", "south"]).await;
    let text = told(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("not warm everywhere: south"), "{text}");
    assert!(text.contains("north                3 of 3 warm"), "{text}");
}

#[tokio::test]
async fn a_demo_that_keeps_running_takes_urls_from_other_programs() {
    let mut demo = Process::start(&["demo", "--keep", "--count", "2", "--rate", "50"]);
    let hint = demo.says("cdnwarm produce ").await;
    let words: Vec<&str> = hint.split_whitespace().collect();
    let (env, topic) = (words[2], words[3]);
    let output = run(&["produce", env, topic, "--urls", "-"]).await;
    assert!(output.status.success(), "nothing on standard input is nothing to do: {}", told(&output));

    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "http://news.example.com/breaking\n").unwrap();
    let output = run(&["produce", env, topic, "--urls", file.path().to_str().unwrap()]).await;
    assert!(output.status.success(), "{}", told(&output));
    for region in ["europe-west1", "us-central1", "asia-northeast1"] {
        eventually(region, async || {
            let lines = demo.lines();
            let warm = |line: &String| {
                line.starts_with(region) && line.contains("warm http://news.example.com/breaking")
            };
            lines.iter().any(warm).then_some(())
        })
        .await;
    }
    demo.signal(Signal::SIGINT);
    assert_eq!(demo.ends().await, Some(0));
    assert!(!std::path::Path::new(env).exists(), "it leaves nothing behind");
}
