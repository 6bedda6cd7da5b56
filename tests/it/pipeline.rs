//! The contract of the road: Kafka to Pub/Sub to serve, on embedded parts or real ones (see `support/stand.rs`).

use std::collections::BTreeSet;

use serde_json::json;

use crate::support::eventually;
use crate::support::origin::{Origin, cacheable};
use crate::support::process::{Process, command, run, told};
use crate::support::stand::{Kafka, Pubsub};

fn urls(name: &str, count: usize) -> Vec<String> {
    (0..count).map(|n| format!("http://cdn.example.com/{name}/{n}")).collect()
}

fn set(urls: &[String]) -> BTreeSet<String> {
    urls.iter().cloned().collect()
}

fn bridge(kafka: &Kafka, env: &str, pubsub: &Pubsub) -> Process {
    let mut command = command(&["bridge", env, &kafka.topic, &pubsub.topic]);
    command.env("PUBSUB_EMULATOR_HOST", &pubsub.host);
    Process::spawn(command)
}

async fn produce(kafka: &Kafka, urls: &[String], more: &[&str]) {
    let (env, file) = (kafka.env(&[]), kafka.file(urls));
    let output = run(&[&["produce", &env, &kafka.topic, "--urls", &file], more].concat()).await;
    assert!(output.status.success(), "{}", told(&output));
}

fn serve_args(connect_to: &str) -> Vec<&str> {
    let listen = ["--listen", "127.0.0.1", "--port", "0", "--insecure-accept-unauthenticated"];
    [&["serve"], &listen[..], &["--connect-to", connect_to]].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_becomes_a_message_with_its_options_and_coordinates() {
    let (kafka, pubsub) = tokio::join!(Kafka::start(), Pubsub::start());
    let mut pull = pubsub.subscribe().await;
    let mut bridge = bridge(&kafka, &kafka.env(&[("auto.offset.reset", "earliest")]), &pubsub);
    let urls = urls("one", 1);
    produce(&kafka, &urls, &["--header", "warm-regions=eu,us", "--header", "x-note=a b"]).await;
    pull.until(&set(&urls)).await;
    let (_, attributes) = &pull.seen[0];
    for (name, value) in [
        ("kafka-topic", json!(kafka.topic)),
        ("kafka-offset", json!("0")),
        ("warm-regions", json!("eu,us")),
        ("warm-region-eu", json!("1")),
        ("warm-region-us", json!("1")),
        ("warm-region-filtered", json!("1")),
        ("x-note", json!("a b")),
    ] {
        assert_eq!(attributes[name], value, "{name} of {attributes}");
    }
    assert!(attributes["kafka-timestamp"].as_str().unwrap().parse::<i64>().unwrap() > 1_700_000_000_000);
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_url_is_fetched_by_every_region() {
    let (kafka, pubsub) = tokio::join!(Kafka::start(), Pubsub::start());
    let origin = Origin::start(&["cdn.example.com".to_owned()], |_| cacheable()).await;
    let connect_to = format!("cdn.example.com={}", origin.addr);
    let mut regions = Vec::new();
    for region in ["eu", "us"] {
        let serve = Process::start(&[&serve_args(&connect_to)[..], &["--region", region]].concat());
        pubsub.push_to(&serve.listening().await).await;
        regions.push(serve);
    }
    let mut bridge = bridge(&kafka, &kafka.env(&[("auto.offset.reset", "earliest")]), &pubsub);
    let urls = urls("all", 200);
    produce(&kafka, &urls, &[]).await;
    for serve in &mut regions {
        serve.verdicts(&urls, "fetched").await;
        serve.stop().await;
    }
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_killed_before_or_after_its_first_commit_loses_nothing_although_it_starts_at_latest() {
    for commit_interval_ms in ["60000", "100"] {
        let (kafka, pubsub) = tokio::join!(Kafka::start(), Pubsub::start());
        let mut pull = pubsub.subscribe().await;
        let env =
            kafka.env(&[("auto.offset.reset", "latest"), ("auto.commit.interval.ms", commit_interval_ms)]);
        let mut first = bridge(&kafka, &env, &pubsub);
        first.says("partitions assigned").await;
        let early = urls("early", 300);
        produce(&kafka, &early, &[]).await;
        first.kill_hard().await;
        let late = urls("late", 300);
        produce(&kafka, &late, &[]).await;
        let mut second = bridge(&kafka, &env, &pubsub);
        pull.until(&set(&[early, late].concat())).await;
        second.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clean_restart_delivers_each_record_once() {
    let (kafka, pubsub) = tokio::join!(Kafka::start(), Pubsub::start());
    let mut pull = pubsub.subscribe().await;
    let env = kafka.env(&[("auto.offset.reset", "earliest")]);
    let mut all = Vec::new();
    for round in ["a", "b", "c"] {
        let mut bridge = bridge(&kafka, &env, &pubsub);
        let urls = urls(round, 100);
        produce(&kafka, &urls, &[]).await;
        all.extend(urls);
        pull.until(&set(&all)).await;
        bridge.stop().await;
    }
    assert_eq!(pull.seen.len(), all.len(), "no record came twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_message_or_url_can_be_made_of_stops_nothing_else() {
    let (kafka, pubsub) = tokio::join!(Kafka::start(), Pubsub::start());
    let origin = Origin::start(&["cdn.example.com".to_owned()], |_| cacheable()).await;
    let connect_to = format!("cdn.example.com={}", origin.addr);
    let mut serve = Process::start(&[&serve_args(&connect_to)[..], &["--malformed", "ack"]].concat());
    pubsub.push_to(&serve.listening().await).await;
    let mut bridge = bridge(&kafka, &kafka.env(&[("auto.offset.reset", "earliest")]), &pubsub);

    let megabyte = vec![b'x'; 900_000];
    kafka.produce(None, &[]).await;
    kafka.produce(Some(b""), &[]).await;
    kafka.produce(Some(b"http://cdn.example.com/binary-option"), &[("warm-header-cookie", b"\xff")]).await;
    kafka.produce(Some(b"not a URL"), &[]).await;
    kafka.produce(Some(b"\xff\xfe\x00"), &[]).await;
    kafka.produce(Some(&megabyte), &[]).await;
    kafka.produce(Some(b"http://cdn.example.com/good"), &[("trace", b"\xff"), ("goog-x", b"y")]).await;

    serve.verdicts(&["http://cdn.example.com/good".to_owned()], "fetched").await;
    eventually("three undeliverable records", async || {
        let lines = bridge.logged();
        let given_up = lines
            .iter()
            .filter(|line| line["message"].as_str().is_some_and(|m| m.contains("undeliverable record")));
        (given_up.count() == 3).then_some(())
    })
    .await;
    eventually("three refusals", async || {
        (serve.outcomes().iter().filter(|outcome| outcome["verdict"] == "refused").count() >= 3).then_some(())
    })
    .await;
    bridge.stop().await;
    let summary = bridge.says("bridge stopped").await;
    assert!(summary.contains("3 undeliverable") && summary.contains(r#""dropped_headers":2"#), "{summary}");
    serve.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_goes_and_comes_back_costs_no_record() {
    let (kafka, pubsub) = tokio::join!(Kafka::start(), Pubsub::start());
    let mut bridge = bridge(&kafka, &kafka.env(&[("auto.offset.reset", "earliest")]), &pubsub);
    bridge.says("partitions assigned").await;
    pubsub.delete_topic().await;
    let urls = urls("held", 50);
    produce(&kafka, &urls, &[]).await;
    let alarm = bridge.says("publishing is refused").await;
    assert!(alarm.contains("create it again"), "{alarm}");
    pubsub.create_topic().await;
    let mut pull = pubsub.subscribe().await;
    // What was tried between the two lines above went to a topic without a subscription; Pub/Sub keeps none of that.
    let more = self::urls("after", 50);
    bridge.says("publishing works again").await;
    produce(&kafka, &more, &[]).await;
    pull.until(&set(&more)).await;
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn consume_direct_gives_the_same_verdicts_and_takes_nothing_from_the_bridge() {
    let (kafka, pubsub) = tokio::join!(Kafka::start(), Pubsub::start());
    let origin = Origin::start(&["cdn.example.com".to_owned()], |_| cacheable()).await;
    let mut pull = pubsub.subscribe().await;
    // One file for both, as an operator has it.
    let env = kafka.env(&[("auto.offset.reset", "earliest")]);
    let connect_to = format!("cdn.example.com={}", origin.addr);
    let direct = ["consume-direct", &env, &kafka.topic, "some-project", "--connect-to", &connect_to];
    let mut bridge = bridge(&kafka, &env, &pubsub);
    let mut consumer = Process::start(&direct);
    bridge.says("partitions assigned").await;
    consumer.says("partitions assigned").await;
    let urls = urls("both", 100);
    produce(&kafka, &urls, &[]).await;
    pull.until(&set(&urls)).await;
    consumer.verdicts(&urls, "fetched").await;
    consumer.stop().await;
    bridge.stop().await;

    // Its offsets are committed: a further start has nothing to do, unless it is told to begin again.
    let mut idle = Process::start(&direct);
    idle.says("partitions assigned").await;
    idle.stop().await;
    assert_eq!(idle.outcomes().len(), 0);
    let mut again = Process::start(&[&direct[..], &["--reset"]].concat());
    again.verdicts(&urls, "fetched").await;
    again.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn produce_tells_each_delivery_and_counts_what_it_could_not_use() {
    let kafka = Kafka::start().await;
    let env = kafka.env(&[]);
    let output = run(&["produce", &env, &kafka.topic, "7", "--verbose"]).await;
    let text = told(&output);
    assert!(output.status.success(), "{text}");
    let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("Message to topic ")).collect();
    assert_eq!(lines.len(), 7, "{text}");
    for line in lines {
        assert!(line.contains(": key = 00"), "{line}");
        assert!(line.contains(" value = http://postman-echo.com/get?file="), "{line}");
    }
    assert!(text.contains("7 records delivered"), "{text}");

    let file =
        kafka.file(&["# comment".into(), String::new(), "http://a.example.com/".into(), "nonsense".into()]);
    let output = run(&["produce", &env, &kafka.topic, "--urls", &file]).await;
    let text = told(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains(&format!("{file}:4: malformed data")), "{text}");
    assert!(text.contains("1 records delivered") && text.contains("1 failed"), "{text}");
}
