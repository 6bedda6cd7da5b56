//! Origins that break every rule: each gets a verdict of its own by its deadline, and leaves nothing behind.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use crate::push::Served;
use crate::support::process::command;
use crate::support::raw_origin::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, H2, HEADERS, RESET, RawOrigin, WINDOW_UPDATE, Wire,
    frame, until_closed, without_end,
};
use crate::support::{eventually, setting};

/// More than `--max-body-bytes` of these tests.
const HUGE: &str = "HTTP/1.1 200 OK\r\ncontent-length: 1099511627776\r\n\r\n";

/// Host, whether it is asked over TLS, and what must be said of it: verdict, reason, and whether a redelivery may cure it.
const HOSTILE: [(&str, &str, &str, &str, bool); 46] = [
    ("good", "http", "fetched", "", false),
    ("good", "https", "fetched", "", false),
    ("h2-good", "https", "fetched", "", false),
    // Time.
    ("silent", "http", "failed", "first byte timeout", true),
    ("slow-head", "http", "failed", "first byte timeout", true),
    ("stall", "http", "failed", "stalled", true),
    ("trickle", "http", "failed", "total timeout", true),
    ("flood-1xx", "http", "failed", "response head too large", false),
    ("h2-silent", "https", "failed", "first byte timeout", true),
    ("h2-stall", "https", "failed", "stalled", true),
    ("tls-stall", "https", "failed", "tls timeout", true),
    // Size.
    ("endless", "http", "failed", "body too large", false),
    ("endless-chunks", "https", "failed", "body too large", false),
    ("h2-endless", "https", "failed", "body too large", false),
    ("huge", "http", "failed", "body too large", false),
    ("many-headers", "http", "failed", "response head too large", false),
    ("long-header", "http", "failed", "response head too large", false),
    ("endless-head", "http", "failed", "response head too large", false),
    ("h2-continuation", "https", "failed", "not a whole HTTP response", true),
    ("bomb", "http", "fetched", "", false),
    // Framing.
    ("short", "http", "failed", "truncated", true),
    ("short-chunks", "https", "failed", "truncated", true),
    ("longer", "http", "fetched", "", false),
    ("bad-chunk", "http", "failed", "bad chunk", true),
    ("long-chunk", "http", "failed", "bad chunk", true),
    ("two-lengths", "http", "failed", "not a whole HTTP response", true),
    ("garbage", "http", "failed", "not a whole HTTP response", true),
    ("obs-fold", "http", "warm", "", false),
    ("switching", "http", "failed", "status 101", false),
    ("h2-short", "https", "failed", "truncated", true),
    ("h2-window", "https", "failed", "truncated", true),
    ("h2-long-frame", "https", "failed", "truncated", true),
    // Resets.
    ("reset-before-head", "http", "failed", "not a whole HTTP response", true),
    ("reset-in-head", "http", "failed", "not a whole HTTP response", true),
    ("reset-in-body", "http", "failed", "truncated", true),
    ("h2-reset", "https", "failed", "truncated", true),
    ("h2-refused", "https", "failed", "not a whole HTTP response", true),
    ("h2-goaway", "https", "failed", "truncated", true),
    // TLS.
    ("expired", "https", "failed", "tls: certificate expired", false),
    ("misnamed", "https", "failed", "tls: certificate for another name", false),
    ("self-signed", "https", "failed", "tls: certificate of an unknown issuer", false),
    ("untrusted", "https", "failed", "tls: certificate of an unknown issuer", false),
    ("tls-old", "https", "failed", "tls: protocol older than TLS 1.2", false),
    ("tls-refuses", "https", "failed", "tls: protocol older than TLS 1.2", false),
    ("tls-garbage", "https", "failed", "tls: not a TLS answer", false),
    ("tls-reset", "https", "failed", "connect", true),
];

/// What may be said of `h2-flood`, which keeps to no window of HTTP/2, and whether a redelivery may cure it. What comes first
/// is a matter of speed: the flood's overrunning of the windows, or the limit of a client that empties them as fast. Where a
/// stream's window alone was overrun its connection goes on, flooded: another try on it ends with that, or is never answered.
const OF_A_FLOOD: [(&str, bool); 4] = [
    ("truncated", true),
    ("body too large", false),
    ("not a whole HTTP response", true),
    ("first byte timeout", true),
];

/// What each of them does once it was asked.
async fn hostile(name: String, mut wire: Box<dyn Wire>) -> std::io::Result<()> {
    let ok = "HTTP/1.1 200 OK\r\n";
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    let filling = [b'x'; 16 << 10];
    let nothing = Duration::ZERO;
    // Sent, and then silence.
    let said = match name.as_str() {
        _ if name.starts_with("h2-") => return hostile_h2(&name, wire).await,
        "good" => format!("{ok}content-length: 5\r\n\r\nhello"),
        "stall" => format!("{ok}content-length: 100\r\n\r\nhello"),
        "huge" => HUGE.to_owned(),
        "many-headers" => format!("{ok}{}\r\n", "a: b\r\n".repeat(10_000)),
        "long-header" => format!("{ok}a: {}\r\n\r\n", "b".repeat(1 << 20)),
        // Whoever unpacked this would find that it is no gzip.
        "bomb" => {
            format!("{ok}content-encoding: gzip\r\ncontent-length: 4096\r\n\r\n{}", "\x1f".repeat(4096))
        }
        "longer" => format!("{ok}content-length: 5\r\n\r\nhello{HUGE}"),
        "bad-chunk" => format!("{chunked}5\r\nhello\r\nzz\r\n"),
        "long-chunk" => format!("{chunked}fffffffffffffffffff\r\n"),
        "two-lengths" => format!("{ok}content-length: 5\r\ncontent-length: 6\r\n\r\nhello!"),
        // Obsolete line folding is read as a space (RFC 9112, section 5.2), and the field is evidence like another.
        "obs-fold" => {
            format!("{ok}cache-status: edge;\r\n hit;\r\n\tttl=60\r\ncontent-length: 5\r\n\r\nhello")
        }
        "garbage" => "SSH-2.0-OpenSSH_9.2\r\n".to_owned(),
        "switching" => {
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n".to_owned()
        }
        _ => String::new(),
    };
    wire.write_all(said.as_bytes()).await?;
    match name.as_str() {
        "slow-head" => {
            wire.write_all(ok.as_bytes()).await?;
            without_end(&mut wire, b"a: b\r\n", Duration::from_secs(1)).await
        }
        "trickle" => {
            wire.write_all(format!("{ok}content-length: 1000\r\n\r\n").as_bytes()).await?;
            without_end(&mut wire, b"x", Duration::from_secs(1)).await
        }
        "flood-1xx" => {
            let hint = format!("HTTP/1.1 103 Early Hints\r\nlink: <{}>\r\n\r\n", "a".repeat(1000));
            without_end(&mut wire, hint.as_bytes(), nothing).await
        }
        "endless" => {
            wire.write_all(format!("{ok}\r\n").as_bytes()).await?;
            without_end(&mut wire, &filling, nothing).await
        }
        "endless-chunks" => {
            wire.write_all(chunked.as_bytes()).await?;
            without_end(&mut wire, &[b"4000\r\n", &filling[..], b"\r\n"].concat(), nothing).await
        }
        "endless-head" => {
            wire.write_all(format!("{ok}a: ").as_bytes()).await?;
            without_end(&mut wire, &filling, nothing).await
        }
        "short" => wire.write_all(format!("{ok}content-length: 100\r\n\r\nhello").as_bytes()).await,
        "short-chunks" => {
            wire.write_all(format!("{chunked}5\r\nhello\r\n").as_bytes()).await?;
            wire.shutdown().await
        }
        "reset-before-head" => Ok(()),
        "reset-in-head" => wire.write_all(ok.as_bytes()).await,
        "reset-in-body" => {
            wire.write_all(format!("{ok}content-length: 100000\r\n\r\n").as_bytes()).await?;
            wire.write_all(&[b'x'; 50_000]).await?;
            // The client is to have some of it before the reset takes the rest away.
            tokio::time::sleep(Duration::from_millis(100)).await;
            Ok(())
        }
        _ => until_closed(&mut wire).await,
    }
}

async fn hostile_h2(name: &str, wire: Box<dyn Wire>) -> std::io::Result<()> {
    let mut h2 = H2::accept(wire).await?;
    // Tries after the first may come on the same connection.
    loop {
        let stream = h2.next_request().await?;
        // :status 200, and content-length 100 in a literal without indexing.
        let head = frame(HEADERS, END_HEADERS, stream, &[&[0x88, 0x0f, 0x0d, 3][..], b"100"].concat());
        let part = [head.clone(), frame(DATA, 0, stream, b"hello")].concat();
        let reset = |code: u32| frame(RESET, 0, stream, &code.to_be_bytes());
        let said = match name {
            "h2-good" => [head, frame(DATA, END_STREAM, stream, &[b'x'; 100])].concat(),
            "h2-stall" => part,
            "h2-short" => [part, reset(0)].concat(),
            "h2-reset" => [part, reset(2)].concat(),
            "h2-refused" => reset(7),
            "h2-goaway" => [part, frame(GOAWAY, 0, 0, &[0, 0, 0, 0, 0, 0, 0, 2])].concat(),
            // More than a window may hold (section 6.9.1), and than a frame may (section 4.2).
            "h2-window" => [part, frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff])].concat(),
            "h2-long-frame" => [part, frame(DATA, 0, stream, &[b'x'; (16 << 10) + 1])].concat(),
            "h2-endless" | "h2-flood" => frame(HEADERS, END_HEADERS, stream, &[0x88]),
            "h2-continuation" => frame(HEADERS, 0, stream, &[0x88]),
            _ => Vec::new(),
        };
        h2.wire.write_all(&said).await?;
        h2.wire.flush().await?;
        match name {
            "h2-endless" => h2.fill().await?,
            "h2-flood" => {
                let data = frame(DATA, 0, stream, &[b'x'; 16 << 10]);
                without_end(&mut h2.wire, &data, Duration::ZERO).await?;
            }
            "h2-continuation" => {
                let header = [&[0x00, 1, b'a', 127, 0x81, 0x0f][..], &[b'b'; 2048]].concat();
                let continuation = frame(CONTINUATION, 0, stream, &header);
                without_end(&mut h2.wire, &continuation, Duration::ZERO).await?;
            }
            _ => {}
        }
    }
}

/// A `serve` with short deadlines.
async fn serve(origin: &RawOrigin, args: &[&str]) -> Served {
    let connect_to = format!("*={}", origin.addr);
    let mut all = vec!["serve", "--listen", "127.0.0.1", "--port", "0", "--insecure-accept-unauthenticated"];
    all.extend(["--connect-to", &connect_to]);
    all.extend(args);
    let mut command = command(&all);
    command.env("SSL_CERT_FILE", origin.authority.file.path());
    Served::of(command).await
}

/// Asks all of them at once; what became of each.
async fn ask_all(served: &Served, round: usize) -> BTreeMap<String, (u16, Value)> {
    let url = |name: &str, scheme: &str| format!("{scheme}://{name}.example.com/{round}");
    let names = HOSTILE.iter().map(|(name, scheme, ..)| (*name, *scheme)).chain([("h2-flood", "https")]);
    let pushes = names.map(|(name, scheme)| {
        let url = url(name, scheme);
        async move {
            let status = served.push(url.as_bytes(), &json!({}), &json!({"deliveryAttempt": 1})).await;
            (url, status)
        }
    });
    let answers = futures_util::future::join_all(pushes).await;
    let mut told = BTreeMap::new();
    for (url, status) in answers {
        let outcome = eventually("its outcome", async || {
            served.serve.outcomes().into_iter().find(|outcome| outcome["url"] == url.as_str())
        });
        told.insert(url.clone(), (status, outcome.await));
    }
    told
}

#[tokio::test]
async fn each_hostile_origin_has_its_own_verdict_by_its_deadline_and_leaves_nothing_behind() {
    let origin = RawOrigin::start(hostile).await;
    let served = serve(
        &origin,
        &[
            "--timeout",
            "9",
            "--connect-timeout",
            "1",
            "--first-byte-timeout",
            "3",
            "--stall-timeout",
            "2",
            "--max-body-bytes",
            // More than the windows of HTTP/2, and not so much that a busy machine takes long.
            "2000000",
        ],
    )
    .await;
    let mut before = None;
    for round in 0..3 {
        let told = ask_all(&served, round).await;
        for (name, scheme, verdict, reason, is_curable) in HOSTILE {
            let (status, outcome) = &told[&format!("{scheme}://{name}.example.com/{round}")];
            let found =
                (outcome["verdict"].as_str().unwrap(), outcome["reason"].as_str().unwrap_or_default());
            assert_eq!(found, (verdict, reason), "{scheme} {name}: {outcome}");
            assert_eq!(*status, if is_curable { 503 } else { 204 }, "{scheme} {name}");
            if ["fetched", "warm"].contains(&verdict) {
                let bytes = match name {
                    "bomb" => 4096,
                    "h2-good" => 100,
                    _ => 5,
                };
                assert_eq!(outcome["bytes"], bytes, "{name}");
            }
            if ["stall", "trickle", "h2-stall"].contains(&name) {
                let is_known = outcome["bytes"].as_u64() > Some(0) && outcome["ttfb_ms"].is_number();
                assert!(
                    is_known && outcome["http_status"] == 200,
                    "what came before the time-out: {outcome}"
                );
            }
            if name == "obs-fold" {
                assert_eq!(outcome["cache"]["value"], "edge;hit;ttl=60", "{outcome}");
            }
        }
        let (status, outcome) = &told[&format!("https://h2-flood.example.com/{round}")];
        let allowed = OF_A_FLOOD.iter().find(|(reason, _)| outcome["reason"] == *reason);
        let (_, is_curable) = allowed.unwrap_or_else(|| panic!("https h2-flood: {outcome}"));
        assert_eq!(outcome["verdict"], "failed", "{outcome}");
        assert_eq!(*status, if *is_curable { 503 } else { 204 }, "{outcome}");
        // The first round makes what there is to be made once.
        let (memory, descriptors) = *before.get_or_insert_with(|| served.serve.footprint());
        eventually("memory and descriptors as before", async || {
            let (memory_now, descriptors_now) = served.serve.footprint();
            (memory_now < memory + (16 << 20) && descriptors_now <= descriptors + 4).then_some(())
        })
        .await;
    }
}

/// 10 GiB are the long form: `CDNWARM_TEST_BODY_MIB=10240`.
#[tokio::test]
async fn a_long_body_takes_no_more_memory_than_a_short_one() {
    let body_mib: u64 = setting("CDNWARM_TEST_BODY_MIB").map_or(512, |mib| mib.parse().unwrap());
    let body_bytes = body_mib << 20;
    let origin = RawOrigin::start(move |name: String, mut wire: Box<dyn Wire>| async move {
        let length = if name == "long" { body_bytes } else { 1 << 20 };
        wire.write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n").as_bytes()).await?;
        let filling = vec![b'x'; 1 << 20];
        for _ in 0..length >> 20 {
            wire.write_all(&filling).await?;
        }
        until_closed(&mut wire).await
    })
    .await;
    let served = serve(&origin, &["--timeout", "600"]).await;
    assert_eq!(served.push_url("http://short.example.com/").await, 204);
    let (before, _) = served.serve.footprint();
    let push = served.push_url("http://long.example.com/");
    tokio::pin!(push);
    let mut most = 0;
    loop {
        tokio::select! {
            status = &mut push => {
                assert_eq!(status, 204);
                break;
            }
            () = tokio::time::sleep(Duration::from_millis(20)) => most = most.max(served.serve.footprint().0),
        }
    }
    let outcome = eventually("both outcomes", async || served.serve.outcomes().get(1).cloned()).await;
    assert_eq!(outcome["bytes"], body_bytes);
    println!("{body_mib} MiB in one fetch: from {before} to {most} bytes of memory");
    assert!(most > 0 && most <= before + (8 << 20), "from {before} to {most} bytes");
}

#[tokio::test]
async fn a_thousand_fetches_at_once_fit_into_256_mib() {
    const FETCHES: usize = 1_000;
    rlimit::increase_nofile_limit(u64::MAX).unwrap();
    let asked = std::sync::Arc::new(tokio::sync::Barrier::new(FETCHES));
    let origin = RawOrigin::start(move |_, mut wire: Box<dyn Wire>| {
        let asked = asked.clone();
        async move {
            let part = vec![b'x'; 256 << 10];
            wire.write_all(
                format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", 2 * part.len()).as_bytes(),
            )
            .await?;
            wire.write_all(&part).await?;
            // All of them are under way.
            asked.wait().await;
            wire.write_all(&part).await?;
            until_closed(&mut wire).await
        }
    })
    .await;
    // A busy machine takes long to bring a thousand pushes under way.
    let served =
        serve(&origin, &["--first-byte-timeout", "60", "--stall-timeout", "60", "--timeout", "120"]).await;
    let mut most = 0;
    let pushes = (0..FETCHES).map(|n| {
        let url = format!("http://h{}.example.com/{n}", n % 20);
        let served = &served;
        async move { served.push_url(&url).await }
    });
    let pushes = futures_util::future::join_all(pushes);
    tokio::pin!(pushes);
    let answers = loop {
        tokio::select! {
            answers = &mut pushes => break answers,
            () = tokio::time::sleep(Duration::from_millis(20)) => most = most.max(served.serve.footprint().0),
        }
    };
    assert!(answers.iter().all(|status| *status == 204), "{answers:?}");
    println!("{FETCHES} fetches at once in {most} bytes of memory");
    assert!(most > 0 && most <= 256 << 20, "{most} bytes");
}
