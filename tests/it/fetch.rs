//! How `serve` fetches: what is sent, what is shared, what is asked again, and who waits for whom.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http::{Method, Response, Version};
use http_body_util::Full;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use crate::push::Served;
use crate::support::eventually;
use crate::support::origin::{Asked, Origin, cacheable, status};
use crate::support::process::{command, command_by};
use crate::support::raw_origin::{RawOrigin, Wire, until_closed};

/// An origin for a few hosts that takes a second for each answer, so that what is asked meanwhile finds it under way.
async fn slow_origin() -> Origin {
    Origin::start_slow(&[], Duration::from_secs(1), |_| cacheable()).await
}

async fn origin<F: Fn(&Asked) -> crate::support::origin::Answer + Clone + Send + Sync + 'static>(
    answer: F,
) -> Origin {
    Origin::start(&["example.com".to_owned()], answer).await
}

/// A push of this URL under a message id.
async fn push_as(served: &Served, message_id: &str, data: &str, attributes: Value, attempt: u32) -> u16 {
    use base64::Engine;
    let data = base64::engine::general_purpose::STANDARD.encode(data);
    let message = json!({"data": data, "attributes": attributes, "messageId": message_id});
    let subscription = "projects/p/subscriptions/s";
    let envelope = json!({"message": message, "subscription": subscription, "deliveryAttempt": attempt});
    served.post(envelope.to_string()).await
}

/// Waits for so many outcomes.
async fn outcomes(served: &Served, count: usize) -> Vec<Value> {
    eventually(&format!("{count} outcomes"), async || {
        let outcomes = served.serve.outcomes();
        (outcomes.len() == count).then_some(outcomes)
    })
    .await
}

fn texts<'a>(outcomes: &'a [Value], name: &str) -> Vec<&'a str> {
    outcomes.iter().map(|outcome| outcome[name].as_str().unwrap_or_default()).collect()
}

#[tokio::test]
async fn http2_by_alpn_and_http1_both_use_their_connections_again() {
    let origin = origin(|_| cacheable()).await;
    let served = Served::before(&origin, &[]).await;
    for (scheme, version) in [("https", Version::HTTP_2), ("http", Version::HTTP_11)] {
        let before = origin.connections();
        for n in 0..10 {
            assert_eq!(served.push_url(&format!("{scheme}://example.com/{n}")).await, 204);
        }
        assert_eq!(origin.connections() - before, 1, "{scheme}");
        let asked = origin.asked();
        assert!(asked.len() == 10 && asked.iter().all(|asked| asked.version == version), "{asked:?}");
        origin.forget();
    }
    assert!(texts(&outcomes(&served, 20).await, "verdict").iter().all(|verdict| *verdict == "fetched"));
}

#[tokio::test]
async fn an_origin_whose_ca_the_system_does_not_know_is_not_believed() {
    let (known, unknown) = tokio::join!(origin(|_| cacheable()), origin(|_| cacheable()));
    let connect_to = format!("*={}", unknown.addr);
    let args = ["serve", "--listen", "127.0.0.1", "--port", "0", "--insecure-accept-unauthenticated"];
    let mut command = command(&[&args[..], &["--connect-to", &connect_to]].concat());
    command.env("SSL_CERT_FILE", known.ca.path());
    let served = Served::of(command).await;
    assert_eq!(served.push_url("https://example.com/").await, 204);
    assert_eq!(served.outcome().await["reason"], "tls: certificate of an unknown issuer");
    assert!(unknown.asked().is_empty());
}

#[tokio::test]
#[ignore = "needs root, for a mount that nobody else sees; .ci/run runs it"]
async fn an_origin_whose_ca_the_system_knows_is_believed() {
    let origin = origin(|_| cacheable()).await;
    let connect_to = format!("*={}", origin.addr);
    let bundle = origin.ca.path().to_str().unwrap();
    let mount = "mount --bind \"$0\" /etc/ssl/certs/ca-certificates.crt && exec \"$@\"";
    let args = ["serve", "--listen", "127.0.0.1", "--port", "0", "--insecure-accept-unauthenticated"];
    let mut command = command_by(
        &["unshare", "--mount", "sh", "-c", mount, bundle],
        &[&args[..], &["--connect-to", &connect_to]].concat(),
    );
    command.env_remove("SSL_CERT_DIR");
    let served = Served::of(command).await;
    assert_eq!(served.push_url("https://example.com/").await, 204);
    assert_eq!(served.outcome().await["verdict"], "fetched");
}

#[tokio::test]
async fn different_messages_share_a_get_only_while_it_is_under_way_and_only_with_equal_options() {
    let origin = slow_origin().await;
    let served = Served::before(&origin, &[]).await;
    let german = json!({"warm-header-accept-language": "de"});
    let pushes = (0..20).map(|n| {
        let attributes = if n % 2 == 0 { json!({}) } else { german.clone() };
        let (served, id) = (&served, n.to_string());
        async move { push_as(served, &id, "http://example.com/a", attributes, 1).await }
    });
    assert!(join_all(pushes).await.iter().all(|status| *status == 204));
    assert_eq!(origin.asked().len(), 2, "one for each set of options");
    let told = outcomes(&served, 20).await;
    assert_eq!(told.iter().map(|outcome| outcome["attempts"].as_u64().unwrap()).sum::<u64>(), 2);
    assert_eq!(told.iter().map(|outcome| outcome["bytes"].as_u64().unwrap()).sum::<u64>(), 2 * 5);
    assert!(texts(&told, "verdict").iter().all(|verdict| *verdict == "fetched"), "{told:?}");

    assert_eq!(push_as(&served, "later", "http://example.com/a", json!({}), 1).await, 204);
    assert_eq!(origin.asked().len(), 3, "what is over is not shared");
}

#[tokio::test]
async fn a_redelivery_gets_the_verdict_again_without_a_get() {
    let origin = slow_origin().await;
    let served = Served::before(&origin, &[]).await;
    let url = "http://example.com/a";
    // The second comes while the first is under way.
    let (first, second) =
        tokio::join!(push_as(&served, "1", url, json!({}), 1), push_as(&served, "1", url, json!({}), 2));
    assert_eq!((first, second), (204, 204));
    assert_eq!(push_as(&served, "1", url, json!({}), 3).await, 204);
    assert_eq!(origin.asked().len(), 1);
    let told = outcomes(&served, 3).await;
    let third = told.iter().find(|outcome| outcome["delivery_attempt"] == 3).unwrap();
    assert_eq!((&third["verdict"], &third["attempts"]), (&json!("fetched"), &json!(0)), "{third}");

    assert_eq!(push_as(&served, "2", url, json!({}), 1).await, 204);
    assert_eq!(origin.asked().len(), 2, "another message is another request");
}

#[tokio::test]
async fn what_may_be_cured_is_fetched_again_on_redelivery_and_the_other_lines_of_its_pack_are_not() {
    let failures = Arc::new(AtomicUsize::new(0));
    let count = failures.clone();
    let origin = origin(move |asked| match asked.url.as_str() {
        "http://example.com/bad" if count.fetch_add(1, Ordering::Relaxed) < 3 => status(500),
        "http://example.com/gone" => status(404),
        _ => cacheable(),
    })
    .await;
    let served = Served::before(&origin, &[]).await;
    let pack =
        "http://example.com/a\r\nhttp://example.com/bad\r\nhttp://example.com/gone\r\nhttp://example.com/a";
    let attributes = json!({"content-type": "text/uri-list"});
    assert_eq!(push_as(&served, "1", pack, attributes.clone(), 1).await, 503);
    origin.forget();
    assert_eq!(push_as(&served, "1", pack, attributes, 2).await, 204);
    let asked: Vec<String> = origin.asked().into_iter().map(|asked| asked.url).collect();
    assert_eq!(asked, ["http://example.com/bad"], "each other line has its verdict");
    let told = outcomes(&served, 8).await;
    let mut again: Vec<(&str, &str, u64)> = told[4..]
        .iter()
        .map(|line| {
            let text = |name: &str| line[name].as_str().unwrap();
            (text("id"), text("verdict"), line["attempts"].as_u64().unwrap())
        })
        .collect();
    again.sort_unstable();
    assert_eq!(
        again,
        [("1#1", "fetched", 0), ("1#2", "fetched", 1), ("1#3", "failed", 0), ("1#4", "fetched", 0)]
    );
}

#[tokio::test]
async fn a_range_is_asked_for_and_only_that_range_counts() {
    let origin = origin(|asked| {
        let part = |range: &str, bytes: usize| {
            let body = Full::from(Bytes::from(vec![b'x'; bytes]));
            Response::builder().status(206).header("content-range", range).body(body).unwrap()
        };
        match asked.url.rsplit('/').next().unwrap() {
            "right" => part("bytes 10-19/100", 10),
            "other" => part("bytes 0-9/100", 10),
            "short" => part("bytes 10-19/100", 9),
            "whole" => cacheable(),
            _ => status(416),
        }
    })
    .await;
    let served = Served::before(&origin, &[]).await;
    let cases = [
        ("right", "fetched", ""),
        ("other", "failed", "another range than asked for"),
        ("short", "failed", "another range than asked for"),
        ("whole", "fetched", ""),
        ("beyond", "failed", "status 416"),
    ];
    for (n, (path, verdict, reason)) in cases.into_iter().enumerate() {
        let url = format!("http://example.com/{path}");
        let range = json!({"warm-range": "bytes=10-19"});
        assert_eq!(push_as(&served, path, &url, range, 1).await, 204, "{path}");
        let outcome = &outcomes(&served, n + 1).await[n];
        assert_eq!(
            (&outcome["verdict"], outcome["reason"].as_str().unwrap_or_default()),
            (&json!(verdict), reason)
        );
    }
    assert!(origin.asked().iter().all(|asked| asked.headers["range"] == "bytes=10-19"));
}

#[tokio::test]
async fn authorization_is_sent_where_the_operator_allows_it_and_shown_nowhere() {
    let origin = origin(|_| cacheable()).await;
    let asks = json!({"warm-header-authorization": "Bearer s3cret", "warm-header-cookie": "s3cret=1"});
    let strict = Served::before(&origin, &["--log", "trace"]).await;
    assert_eq!(push_as(&strict, "1", "http://example.com/", asks.clone(), 1).await, 204);
    let outcome = strict.outcome().await;
    assert_eq!(outcome["verdict"], "refused");
    assert!(outcome["reason"].as_str().unwrap().contains("warm-header-authorization"), "{outcome}");
    assert!(origin.asked().is_empty());
    let allowing = Served::before(&origin, &["--allow-authorization", "--log", "debug"]).await;
    assert_eq!(push_as(&allowing, "1", "https://example.com/", asks, 1).await, 204);
    let asked = origin.asked();
    assert_eq!(asked[0].headers["authorization"], "Bearer s3cret");
    assert_eq!(asked[0].headers["cookie"], "s3cret=1");
    assert_eq!(allowing.outcome().await["verdict"], "fetched");
    for served in [strict, allowing] {
        assert!(!served.serve.lines().join("\n").contains("s3cret"));
    }
}

#[tokio::test]
async fn head_is_asked_by_choice_and_certifies_nothing() {
    let origin = origin(|asked| {
        let length = if asked.version == Version::HTTP_2 { "100" } else { "5" };
        let answer = Response::builder().header("cache-status", "edge; fwd=uri-miss; stored");
        let answer = answer.header("cache-control", "max-age=60");
        match asked.method {
            Method::HEAD => answer.header("content-length", length).body(Full::default()).unwrap(),
            _ => answer.body(Full::from("hello")).unwrap(),
        }
    })
    .await;
    let served = Served::before(&origin, &["--method", "head", "--certify"]).await;
    for url in ["http://example.com/", "https://example.com/"] {
        assert_eq!(served.push_url(url).await, 204);
    }
    assert_eq!(texts(&outcomes(&served, 2).await, "verdict"), ["fetched", "fetched"]);
    let methods: Vec<Method> = origin.asked().into_iter().map(|asked| asked.method).collect();
    assert_eq!(methods, [Method::HEAD, Method::HEAD]);
}

#[tokio::test]
async fn a_redirect_takes_range_and_method_along_and_its_chain_is_shared() {
    let origin = Origin::start_slow(&[], Duration::from_secs(1), |asked| {
        if asked.url.contains("//a.example.com/") {
            let to = "http://b.example.com/2";
            return Response::builder().status(302).header("location", to).body(Full::default()).unwrap();
        }
        let part = Response::builder().status(206).header("content-range", "bytes 10-14/100");
        part.body(Full::from("hello")).unwrap()
    })
    .await;
    for (method, word) in [(Method::GET, "get"), (Method::HEAD, "head")] {
        let served = Served::before(&origin, &["--method", word]).await;
        let range = json!({"warm-range": "bytes=10-14"});
        let pushes =
            ["1", "2", "3"].map(|id| push_as(&served, id, "http://a.example.com/1", range.clone(), 1));
        assert_eq!(join_all(pushes).await, [204; 3]);
        let told = outcomes(&served, 3).await;
        assert_eq!(texts(&told, "verdict"), ["fetched"; 3]);
        assert_eq!(texts(&told, "final_url"), ["http://b.example.com/2"; 3]);
        assert_eq!(told.iter().map(|outcome| outcome["attempts"].as_u64().unwrap()).sum::<u64>(), 2);
        let asked = origin.asked();
        let urls: Vec<&str> = asked.iter().map(|asked| asked.url.as_str()).collect();
        assert_eq!(urls, ["http://a.example.com/1", "http://b.example.com/2"]);
        assert!(asked.iter().all(|asked| asked.method == method && asked.headers["range"] == "bytes=10-14"));
        origin.forget();
    }
}

#[tokio::test]
async fn a_redirect_is_held_up_by_the_host_that_it_leads_to_and_counts_against_no_other() {
    let origin = Origin::start(&[], |asked| match asked.url.as_str() {
        "http://good.example.com/" => cacheable(),
        url if url.contains("//good.example.com/") => {
            let to = "http://bad.example.com/";
            Response::builder().status(302).header("location", to).body(Full::default()).unwrap()
        }
        _ => status(500),
    })
    .await;
    let served = Served::before(&origin, &[]).await;
    let mut number = 0;
    let open = eventually("an open circuit", async || {
        number += 1;
        served.push_url(&format!("http://good.example.com/{number}")).await;
        served.serve.outcomes().into_iter().find(|outcome| outcome["reason"] == "circuit open")
    })
    .await;
    assert_eq!(open["final_url"], "http://bad.example.com/", "{open}");
    assert_eq!(open["attempts"], 1, "only the first host was asked, and once: {open}");
    assert_eq!(served.push_url("http://good.example.com/").await, 204);
}

#[tokio::test]
async fn a_host_that_asks_for_a_pause_gets_it_and_no_other_host_waits() {
    let first = Arc::new(AtomicUsize::new(0));
    let origin = Origin::start(&[], move |asked| {
        if asked.url.contains("busy.") && first.fetch_add(1, Ordering::Relaxed) == 0 {
            let answer = Response::builder().status(429).header("retry-after", "3");
            return answer.body(Full::default()).unwrap();
        }
        cacheable()
    })
    .await;
    let served = Served::before(&origin, &[]).await;
    let busy = async {
        let pushes = (0..10).map(|n| {
            let (served, origin) = (&served, &origin);
            async move {
                // The first one's refusal is there before any other asks.
                if n > 0 {
                    eventually("the first", async || (!origin.asked().is_empty()).then_some(())).await;
                }
                push_as(served, &n.to_string(), &format!("http://busy.example.com/{n}"), json!({}), 1).await
            }
        });
        join_all(pushes).await
    };
    let others = async {
        eventually("the refusal", async || (!origin.asked().is_empty()).then_some(())).await;
        for n in 0..20 {
            assert_eq!(served.push_url(&format!("http://good.example.com/{n}")).await, 204);
        }
    };
    tokio::pin!(busy);
    tokio::select! {
        () = others => {}
        _ = &mut busy => panic!("the busy host's were answered before the others"),
    }
    assert!(busy.await.iter().all(|status| *status == 204));
    let asked = origin.asked();
    let busy: Vec<_> = asked.iter().filter(|asked| asked.url.contains("busy.")).collect();
    assert_eq!(busy.len(), 11, "one was turned away, and all were answered in the end");
    // Those that were on their way before the refusal came back are no breach of it.
    let after =
        busy.iter().filter(|asked| asked.at.duration_since(busy[0].at) >= Duration::from_secs(3)).count();
    assert!(after >= 1, "the one that was turned away");
}

#[tokio::test]
async fn a_host_that_never_works_is_soon_left_alone() {
    let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let connect_to = format!("dead.example.com={}", nobody.local_addr().unwrap());
    drop(nobody);
    let origin = origin(|_| cacheable()).await;
    let served = Served::before(&origin, &["--connect-to", &connect_to]).await;
    let mut told = Vec::new();
    for n in 0..8 {
        let url = format!("http://dead.example.com/{n}");
        assert_eq!(push_as(&served, &n.to_string(), &url, json!({}), 1).await, 503);
        told.push(outcomes(&served, n + 1).await.remove(n));
    }
    let reasons = texts(&told, "reason");
    assert!(reasons[..3].iter().all(|reason| *reason == "connect"), "{reasons:?}");
    assert!(reasons.contains(&"circuit open"), "{reasons:?}");
    let spared = told.iter().find(|outcome| outcome["reason"] == "circuit open").unwrap();
    assert_eq!(spared["attempts"], 0, "{spared}");
    assert_eq!(served.push_url("http://example.com/").await, 204);
}

/// An origin where hosts named `dead...` take a request and never answer.
async fn with_dead_hosts() -> RawOrigin {
    RawOrigin::start(|name, mut wire: Box<dyn Wire>| async move {
        if !name.starts_with("dead") {
            wire.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello").await?;
            return Ok(());
        }
        until_closed(&mut wire).await
    })
    .await
}

async fn before(origin: &RawOrigin, args: &[&str]) -> Served {
    let connect_to = format!("*={}", origin.addr);
    let fixed = ["serve", "--listen", "127.0.0.1", "--port", "0", "--insecure-accept-unauthenticated"];
    Served::of(command(&[&fixed[..], &["--connect-to", &connect_to], args].concat())).await
}

#[tokio::test]
async fn one_dead_url_in_a_hundred_and_one_malformed_hold_up_none_of_the_others() {
    let origin = with_dead_hosts().await;
    let served = Arc::new(before(&origin, &["--malformed", "ack"]).await);
    // More of them than one host may have under way.
    let dead: Vec<_> = (0..100)
        .map(|n| {
            let served = served.clone();
            tokio::spawn(async move { served.push_url(&format!("http://dead.example.com/{n}")).await })
        })
        .collect();
    // With the dead ones fewer than `--max-in-flight`.
    let good = (0..800).map(|n| {
        let (served, host) = (&served, n % 50);
        async move {
            match n % 100 {
                0 => served.push(b"no URL", &json!({}), &json!({})).await,
                _ => served.push_url(&format!("http://h{host}.example.com/{n}")).await,
            }
        }
    });
    assert!(join_all(good).await.iter().all(|status| *status == 204));
    assert!(dead.iter().all(|push| !push.is_finished()), "the dead ones still hang");
    let told = outcomes(&served, 800).await;
    assert_eq!(told.iter().filter(|outcome| outcome["verdict"] == "fetched").count(), 792);
    for push in dead {
        push.abort();
    }
}

#[tokio::test]
async fn one_dead_line_holds_up_no_other_line_of_its_pack() {
    let origin = with_dead_hosts().await;
    let served = before(&origin, &["--timeout", "600"]).await;
    let lines: Vec<String> = (0..200)
        .map(|n| format!("http://{}.example.com/{n}", if n % 100 == 0 { "dead" } else { "good" }))
        .collect();
    let attributes = json!({"content-type": "text/uri-list"});
    let pack = lines.join("\r\n");
    let push = push_as(&served, "1", &pack, attributes, 1);
    tokio::select! {
        status = push => panic!("answered {status} before its dead lines were over"),
        told = outcomes(&served, 198) => {
            assert!(texts(&told, "verdict").iter().all(|verdict| *verdict == "fetched"), "{told:?}");
        }
    }
}
