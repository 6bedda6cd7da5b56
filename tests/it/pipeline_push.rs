//! The contract between Pub/Sub's push and `serve`, on the embedded one or Google's emulator: unwrapped pushes, and
//! where a message ends that is never acknowledged.

use std::collections::BTreeSet;

use serde_json::json;

use crate::support::eventually;
use crate::support::origin::{Origin, cacheable};
use crate::support::process::{Process, command};
use crate::support::stand::Pubsub;

async fn serve(origin: &Origin, more: &[&str]) -> (Process, String) {
    let connect_to = format!("*={}", origin.addr);
    let listen = ["serve", "--listen", "127.0.0.1", "--port", "0", "--insecure-accept-unauthenticated"];
    let mut command = command(&[&listen[..], &["--connect-to", &connect_to], more].concat());
    command.env("SSL_CERT_FILE", origin.ca.path());
    let serve = Process::spawn(command);
    let addr = serve.listening().await;
    (serve, addr)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unwrapped_push_is_warmed_with_its_options() {
    let pubsub = Pubsub::start().await;
    let origin = Origin::start(&["cdn.example.com".to_owned()], |_| cacheable()).await;
    let (serve, addr) = serve(&origin, &["--payload", "unwrapped"]).await;
    pubsub.push_to_with(&addr, json!({"noWrapper": {"writeMetadata": true}}), json!({})).await;
    let coordinates =
        |offset: &str| json!({"kafka-topic": "urls", "kafka-partition": "3", "kafka-offset": offset});
    let mut one = coordinates("17");
    one["warm-header-accept-language"] = json!("de");
    pubsub.publish(b"http://cdn.example.com/one", &one).await;
    let mut pack = coordinates("20-21");
    pack["content-type"] = json!("text/uri-list");
    pubsub.publish(b"http://cdn.example.com/a\r\nhttp://cdn.example.com/b", &pack).await;
    pubsub.publish(b"http://cdn.example.com/never", &json!({"warm-colour": "red"})).await;

    let outcomes = eventually("four outcomes", async || {
        let outcomes = serve.outcomes();
        (outcomes.len() == 4).then_some(outcomes)
    })
    .await;
    let of = |url: &str| outcomes.iter().find(|outcome| outcome["url"] == url);
    for (path, id) in [("one", "urls/3/17"), ("a", "urls/3/20"), ("b", "urls/3/21")] {
        let outcome = of(&format!("http://cdn.example.com/{path}")).unwrap();
        assert_eq!((&outcome["id"], &outcome["verdict"]), (&json!(id), &json!("fetched")));
        assert!(outcome["publish_time"].is_string(), "{outcome}");
    }
    assert!(outcomes.iter().any(|outcome| outcome["reason"] == "unknown option warm-colour"), "{outcomes:?}");
    let asked = origin.asked();
    let one = asked.iter().find(|asked| asked.url.ends_with("/one")).unwrap();
    assert_eq!(one.headers["accept-language"], "de");
    assert_eq!(asked.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn data_that_is_no_url_ends_in_the_dead_letter_topic() {
    let pubsub = Pubsub::start().await;
    let origin = Origin::start(&["cdn.example.com".to_owned()], |_| cacheable()).await;
    let (_serve, addr) = serve(&origin, &[]).await;
    let dead = pubsub.another_topic().await;
    let mut morgue = pubsub.subscribe_to(&dead).await;
    let policy = json!({"deadLetterPolicy": {"deadLetterTopic": dead, "maxDeliveryAttempts": 5}});
    let subscription = pubsub.push_to_with(&addr, json!({}), policy).await;
    pubsub.publish(b"not a URL", &json!({"kafka-offset": "17"})).await;
    pubsub.publish(b"http://cdn.example.com/good", &json!({})).await;
    morgue.until(&BTreeSet::from(["not a URL".to_owned()])).await;
    assert_eq!(morgue.seen.len(), 1);
    let (_, attributes) = &morgue.seen[0];
    for (name, value) in [
        ("kafka-offset", "17"),
        ("CloudPubSubDeadLetterSourceDeliveryCount", "5"),
        ("CloudPubSubDeadLetterSourceSubscription", &subscription),
        ("CloudPubSubDeadLetterSourceSubscriptionProject", &pubsub.project),
    ] {
        assert_eq!(attributes[name], value, "{attributes}");
    }
    assert_eq!(origin.asked().len(), 1);
}
