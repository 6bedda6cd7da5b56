//! `cdnwarm check` against a scripted CDN: what it says, what it sends, what it leaves unread, and how it ends.

use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::Response;
use http_body_util::Full;
use serde_json::{Value, json};

use crate::support::origin::{Answer, Asked, Origin, cacheable};
use crate::support::process::{command, finish, run, told};

const LARGE_BYTES: usize = 1 << 20;

/// A CDN that says these headers beside its body.
fn saying(headers: &[(&str, &str)], body_bytes: usize) -> Answer {
    let mut response = Response::builder().header("cache-control", "public, max-age=60").header("age", "5");
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    response.body(Full::from(Bytes::from(vec![b'x'; body_bytes]))).unwrap()
}

async fn cdn<F: Fn(&Asked) -> Answer + Clone + Send + Sync + 'static>(answer: F) -> Origin {
    Origin::start(&["example.com".to_owned()], answer).await
}

async fn check(origin: &Origin, args: &[&str]) -> Output {
    let connect_to = format!("*={}", origin.addr);
    let mut command = command(&[&["check", "--connect-to", &connect_to], args].concat());
    command.env("SSL_CERT_FILE", origin.ca.path());
    finish(command).await
}

/// What `--json` printed, and whether the exit status says that all is warm.
fn outcomes(output: &Output) -> (Vec<Value>, bool) {
    let text = String::from_utf8_lossy(&output.stdout);
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(!lines.is_empty() && matches!(output.status.code(), Some(0 | 1)), "{}", told(output));
    (lines, output.status.success())
}

fn verdicts(lines: &[Value]) -> Vec<&str> {
    lines.iter().map(|line| line["verdict"].as_str().unwrap()).collect()
}

/// `$first` for the first request of each URL, then `then`.
fn first_then(first: &'static str, then: &'static str) -> impl Fn(&Asked) -> Answer + Clone + Send + Sync {
    let seen = Arc::new(AtomicUsize::new(0));
    move |_| {
        let says = if seen.fetch_add(1, Ordering::Relaxed) == 0 { first } else { then };
        saying(&[("server", "BunnyCDN-DE1-1047"), ("cdn-cache", says)], 5)
    }
}

#[tokio::test]
async fn a_page_for_people_shows_what_was_sent_what_decided_and_what_to_do() {
    let origin = cdn(|asked| match asked.url.rsplit('/').next().unwrap().split('?').next().unwrap() {
        "warm" => saying(
            &[("x-amz-cf-id", "1"), ("x-amz-cf-pop", "FRA56-P1"), ("x-cache", "Hit from cloudfront")],
            5,
        ),
        _ => Response::builder().header("cache-control", "no-store").body(Full::from("x")).unwrap(),
    })
    .await;
    let urls = ["http://example.com/warm", "http://example.com/secret?Signature=c0ffee&b=1"];
    let output = check(&origin, &[&urls[..], &["--header", "Cookie=c0ffee"]].concat()).await;
    let text = told(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    for part in [
        "accept-encoding: gzip, deflate, br, zstd",
        "cookie: …",
        "decided  x-cache: Hit from cloudfront; cache-control: public, max-age=60; age: 5",
        "POP FRA56-P1",
        "verdict  uncacheable (no-store)",
        "advice   Take no-store out of the origin's Cache-Control",
        "http://example.com/secret?Signature=…&b=1",
        "1 of 2 URLs are not warm",
    ] {
        assert!(text.contains(part) || text.replace('\n', " ").contains(part), "{part}: {text}");
    }
    assert!(!text.contains("c0ffee"), "{text}");
    assert!(check(&origin, &urls[..1]).await.status.success());
}

#[tokio::test]
async fn what_cannot_be_meant_is_usage_and_what_is_no_url_is_not_warm() {
    let origin = cdn(|_| cacheable()).await;
    for args in [
        &[][..],
        &["http://example.com/", "--header", "novalue"],
        &["http://example.com/", "--option", "cold=1"],
        &["http://example.com/", "--cdn", "clodflare"],
        &["http://example.com/", "--repeat", "0"],
        &["--urls", "/nonexistent"],
    ] {
        assert_eq!(check(&origin, args).await.status.code(), Some(2), "{args:?}");
    }
    let (lines, warm) = outcomes(&check(&origin, &["--json", "no url", "http://10.0.0.1:99/"]).await);
    assert_eq!((verdicts(&lines), warm), (vec!["refused"; 2], false));
    assert!(lines.iter().all(|line| line["advice"].is_string()), "{lines:?}");
    assert!(origin.asked().is_empty(), "the guard is the same as everywhere");
    let guarded = run(&["check", "--json", "http://127.0.0.1/"]).await;
    assert_eq!(outcomes(&guarded).0[0]["verdict"], "refused");
}

#[tokio::test]
async fn urls_come_from_standard_input_and_files_and_are_told_in_their_order() {
    let origin = cdn(|_| cacheable()).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "# two\nhttp://example.com/b\n\nhttp://example.com/c\n").unwrap();
    let path = file.path().to_str().unwrap();
    let (lines, _) = outcomes(&check(&origin, &["--json", "http://example.com/a", "--urls", path]).await);
    let urls: Vec<&str> = lines.iter().map(|line| line["url"].as_str().unwrap()).collect();
    assert_eq!(urls, ["http://example.com/a", "http://example.com/b", "http://example.com/c"]);
}

#[tokio::test]
async fn the_last_of_several_looks_counts() {
    let count = Arc::new(AtomicUsize::new(0));
    let origin = cdn(move |_| {
        let says = if count.fetch_add(1, Ordering::Relaxed) == 0 {
            "e; fwd=uri-miss; stored"
        } else {
            "e; hit; ttl=9"
        };
        saying(&[("cache-status", says)], 5)
    })
    .await;
    let (lines, warm) = outcomes(&check(&origin, &["--json", "--repeat", "2", "http://example.com/"]).await);
    assert_eq!((verdicts(&lines), warm), (vec!["filled", "warm"], true));
}

#[tokio::test]
async fn a_cdn_that_was_only_seen_is_believed_behind_a_miss() {
    for (first, then, verdict) in [
        ("MISS", "HIT", "warm"),
        ("HIT", "HIT", "fetched"),
        ("MISS", "MISS", "uncacheable"),
        ("EXPIRED", "HIT", "filled"),
    ] {
        let origin = cdn(first_then(first, then)).await;
        let (lines, _) = outcomes(&check(&origin, &["--json", "--certify", "http://example.com/"]).await);
        assert_eq!(verdicts(&lines), [verdict], "{first}, {then}");
        assert_eq!(lines[0]["cache"]["pop"], "DE1");
    }
}

#[tokio::test]
async fn a_version_that_changes_in_mid_run_is_not_warm() {
    // The edge fills with the old version; by the second look it has the new one, or the other way round.
    for (first, then) in [("1", "2"), ("2", "1")] {
        let count = Arc::new(AtomicUsize::new(0));
        let origin = cdn(move |_| match count.fetch_add(1, Ordering::Relaxed) {
            0 => saying(&[("cache-status", "e; fwd=uri-miss; stored"), ("etag", &format!("\"{first}\""))], 5),
            _ => saying(&[("cache-status", "e; hit; ttl=9"), ("etag", &format!("\"{then}\""))], 5),
        })
        .await;
        let (lines, warm) = outcomes(&check(&origin, &["--json", "--certify", "http://example.com/"]).await);
        assert_eq!((verdicts(&lines), warm), (vec!["wrong-version"], false), "{lines:?}");
    }
}

#[tokio::test]
async fn only_the_expected_version_is_warm() {
    let origin = cdn(|_| saying(&[("cache-status", "e; hit; ttl=9"), ("etag", "\"v1\"")], LARGE_BYTES)).await;
    let of_body = "sha256sum of 1 MiB of x";
    let hash: String = {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &vec![b'x'; LARGE_BYTES]);
        digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    };
    let length = LARGE_BYTES.to_string();
    for (option, value, verdict) in [
        ("warm-expect-etag", "v1", "warm"),
        ("warm-expect-etag", "v2", "wrong-version"),
        ("warm-expect-length", &length, "warm"),
        ("warm-expect-length", "5", "wrong-version"),
        ("warm-expect-sha256", &hash, "warm"),
        ("warm-expect-sha256", &"0".repeat(64), "wrong-version"),
        ("warm-expect-sha256", of_body, "refused"),
    ] {
        for skip in [&[][..], &["--skip-warm"]] {
            let pair = format!("{option}={value}");
            let args = [&["--json", "--option", &pair, "http://example.com/"][..], skip].concat();
            let (lines, _) = outcomes(&check(&origin, &args).await);
            assert_eq!(verdicts(&lines), [verdict], "{pair} {skip:?}: {lines:?}");
            let leaves = verdict == "warm" && !skip.is_empty() && option != "warm-expect-sha256";
            assert_eq!(lines[0].get("bytes_saved").is_some(), leaves, "{pair}: {lines:?}");
        }
    }
}

#[tokio::test]
async fn a_warm_body_is_left_unread_and_any_other_is_read() {
    let origin = cdn(|asked| match asked.url.rsplit('/').next().unwrap() {
        "hit" => saying(&[("cache-status", "e; hit; ttl=9")], LARGE_BYTES),
        "short" => saying(&[("cache-status", "e; hit; ttl=9")], 500),
        _ => saying(&[("cache-status", "e; fwd=uri-miss; stored")], LARGE_BYTES),
    })
    .await;
    for scheme in ["http", "https"] {
        for (path, verdict, bytes, saved) in [
            ("hit", "warm", json!(0), json!(LARGE_BYTES)),
            ("short", "warm", json!(500), Value::Null),
            ("miss", "filled", json!(LARGE_BYTES), Value::Null),
        ] {
            let url = format!("{scheme}://example.com/{path}");
            let (lines, _) = outcomes(&check(&origin, &["--json", "--skip-warm", &url]).await);
            let line = &lines[0];
            assert_eq!(
                (&line["verdict"], &line["bytes"], &line["bytes_saved"]),
                (&json!(verdict), &bytes, &saved),
                "{url}"
            );
            assert_eq!(line["attempts"], 1, "the GET is the probe");
        }
    }
}

#[tokio::test]
async fn another_point_of_presence_than_expected_is_not_warm() {
    let origin = cdn(|_| {
        saying(&[("x-amz-cf-id", "1"), ("x-amz-cf-pop", "SIN52-P1"), ("x-cache", "Hit from cloudfront")], 5)
    })
    .await;
    for (expected, verdict) in [("FRA,sin", "warm"), ("FRA", "wrong-pop")] {
        let args = ["--json", "--expect-pop", expected, "http://example.com/"];
        let (lines, _) = outcomes(&check(&origin, &args).await);
        assert_eq!(verdicts(&lines), [verdict], "{expected}");
    }
}

#[tokio::test]
async fn headers_that_make_a_cdn_speak_are_sent_where_it_is_named_alone() {
    let origin = cdn(|asked| {
        let host = "TCP_HIT from a23.deploy.akamaitechnologies.com";
        let headers = [("x-cache", host)];
        saying(if asked.headers.contains_key("pragma") { &headers } else { &[] }, 5)
    })
    .await;
    for (args, verdict) in [(&[][..], "fetched"), (&["--cdn", "akamai"], "warm")] {
        let (lines, _) =
            outcomes(&check(&origin, &[&["--json", "http://example.com/"], args].concat()).await);
        assert_eq!(verdicts(&lines), [verdict]);
        assert_eq!(lines[0]["looks"][0]["sent"].get("pragma").is_some(), verdict == "warm", "{lines:?}");
    }
}
