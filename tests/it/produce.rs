//! `cdnwarm produce` from outside: what arrives in the topic, and what is said of what does not.

use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};

use crate::support::PATIENCE;
use crate::support::process::{Process, command, run, told};
use crate::support::stand::Kafka;

/// A kafka-env file with these further properties for producers.
fn env(kafka: &Kafka, properties: &str) -> String {
    let path = kafka.env(&[]);
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("[default]\n", &format!("[default]\n{properties}"))).unwrap();
    path
}

/// How many records are in the topic.
fn count(kafka: &Kafka) -> i64 {
    let servers = kafka.embedded().bootstrap_servers().unwrap();
    let consumer: BaseConsumer = ClientConfig::new().set("bootstrap.servers", servers).create().unwrap();
    let metadata = consumer.fetch_metadata(Some(&kafka.topic), PATIENCE).unwrap();
    let partitions = metadata.topics()[0].partitions();
    let ends = partitions
        .iter()
        .map(|partition| consumer.fetch_watermarks(&kafka.topic, partition.id(), PATIENCE).unwrap().1);
    ends.sum()
}

fn urls(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("http://cdn.example.com/{number}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_is_full_all_the_time_loses_and_doubles_nothing() {
    let kafka = Kafka::start_embedded();
    let env = env(&kafka, "queue.buffering.max.messages=10\nlinger.ms=0\n");
    let file = kafka.file(&urls(2_000));
    let output = run(&["produce", &env, &kafka.topic, "--urls", &file]).await;
    let text = told(&output);
    assert!(output.status.success() && text.contains("2000 records delivered"), "{text}");
    assert_eq!(count(&kafka), 2_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_produced_is_named_and_the_rest_arrives() {
    let kafka = Kafka::start_embedded();
    let env = env(&kafka, "message.max.bytes=1000\n");
    let mut lines = urls(1_500);
    lines[7] = "no URL".to_owned();
    lines[700] = format!("http://cdn.example.com/long?{}", "x".repeat(1_000));
    lines[1_400] = "http://localhost/".to_owned();
    let file = kafka.file(&lines);
    for more in [&[][..], &["--header", "warm-regions=eu"]] {
        let output = run(&[&["produce", &env, &kafka.topic, "--urls", &file], more].concat()).await;
        let text = told(&output);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains("1497 records delivered") && text.contains("3 failed"), "{text}");
        assert!(text.contains(&format!("{file}:8: malformed data")), "{text}");
        assert!(text.contains(&format!("{file}:1401: host")), "{text}");
        let failed = format!("{file}:701: ERROR: Message failed delivery");
        assert!(text.contains(&failed) && text.contains("/long?xxx"), "{text}");
    }
    assert_eq!(count(&kafka), 2 * 1_497);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_delivery_is_reported_with_its_line() {
    let kafka = Kafka::start_embedded();
    let env = env(&kafka, "enable.idempotence=false\nmessage.timeout.ms=3000\n");
    let mut command = command(&["produce", &env, &kafka.topic, "--urls", "-", "--verbose"]);
    command.stdin(Stdio::piped());
    let mut produce = Process::spawn(command);
    produce.write(b"http://cdn.example.com/1\n").await;
    produce.says("value = http://cdn.example.com/1").await;
    kafka.embedded().set_available(false).unwrap();
    produce.write(b"# a comment\nhttp://cdn.example.com/3\n").await;
    let failed = produce.says("ERROR: Message failed delivery").await;
    assert!(failed.starts_with("standard input:3: ") && failed.ends_with("/3"), "{failed}");
    produce.signal(Signal::SIGTERM);
    assert_eq!(produce.ends().await, Some(1));
    produce.says("1 records delivered").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_is_never_exceeded() {
    let kafka = Kafka::start_embedded();
    let file = kafka.file(&urls(501));
    let started = Instant::now();
    let output = run(&["produce", &kafka.env(&[]), &kafka.topic, "--urls", &file, "--rate", "1000"]).await;
    assert!(output.status.success(), "{}", told(&output));
    assert!(started.elapsed() >= Duration::from_millis(500), "{:?}", started.elapsed());
    assert_eq!(count(&kafka), 501);
}
