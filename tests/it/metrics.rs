//! What an operator watches: metrics, readiness and liveness of the built binary, and that the document tells of all of it.

use std::io::{Read as _, Write as _};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use tonic::Code;

use crate::support::endpoint::{DOCUMENT, Endpoint, Metrics, OF_ANY_ROLE, documented, documented_of};
use crate::support::monitoring::{self, BRIDGE_LAG, assert_grafana_is_answered, assert_line_is_counted};
use crate::support::origin::{Origin, cacheable};
use crate::support::process::{Process, command};
use crate::support::publisher::{Fault, Publisher, TOPIC, When};
use crate::support::records::{Source, bridge, logged_letters};
use crate::support::stand::Kafka;
use crate::support::{PATIENCE, eventually};

const EARLIEST: (&str, &str) = ("auto.offset.reset", "earliest");
const SHOWN: [&str; 2] = ["--metrics-addr", "127.0.0.1:0"];
const DEAD: &str = "projects/p/topics/dead";

/// Waits until every partition has no lag and this committed offset, under these names; gives that scrape.
async fn caught_up(endpoint: &Endpoint, role: &str, topic: &str, offsets: &[i64]) -> Metrics {
    eventually("lag 0", async || {
        let shown = endpoint.metrics().await;
        let of = |name: &str, partition: usize| {
            shown.value(&format!("{role}_{name}{{topic=\"{topic}\",partition=\"{partition}\"}}"))
        };
        let done = |(partition, offset): (usize, &i64)| {
            of("partition_lag_records", partition) == 0
                && of("partition_committed_offset", partition) == *offset
        };
        offsets.iter().enumerate().all(done).then_some(shown)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_tells_how_it_is() {
    let (kafka, publisher) = (Kafka::start_embedded(), Publisher::start().await);
    let env = kafka.env(&[EARLIEST]);
    let mut source = Source::of(&kafka);
    let mut bridge = bridge(&kafka, &env, publisher.addr(), &SHOWN);
    let endpoint = Endpoint::of(&bridge).await;
    endpoint.ready(200, "").await;
    publisher.script(When::Always, &[Fault::Code(Code::PermissionDenied)]);
    source.urls(120).await;
    endpoint.ready(503, "PermissionDenied").await;
    assert_eq!(publisher.records(), 0);
    let shown = endpoint.metrics().await;
    let failures = shown.value("cdnwarm_bridge_publish_failures_total{code=\"PERMISSION_DENIED\"}");
    assert!(failures > 0, "{}", shown.0);
    publisher.be_well();
    endpoint.ready(200, "").await;
    publisher.until(&source.all).await;
    source.all_committed(&env).await;

    let shown = caught_up(&endpoint, "cdnwarm_bridge", &kafka.topic, &[40, 40, 40]).await;
    assert_eq!(shown.value("cdnwarm_bridge_records_read_total"), 120, "{}", shown.0);
    assert_eq!(shown.value("cdnwarm_bridge_records_published_total"), 120, "{}", shown.0);
    assert_eq!(shown.value("cdnwarm_bridge_in_flight_records"), 0, "{}", shown.0);
    assert_eq!(shown.names(), documented_of("cdnwarm_bridge_"));
    assert_grafana_is_answered("cdnwarm_bridge_", &shown);
    let line = bridge.says("records wait in Kafka topic").await;
    assert_line_is_counted(BRIDGE_LAG, &serde_json::from_str(&line).unwrap());
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_topic_that_fails_is_told_and_counted() {
    let (kafka, publisher) = (Kafka::start_embedded(), Publisher::start().await);
    let env = kafka.env(&[EARLIEST]);
    let mut source = Source::of(&kafka);
    let more = [&SHOWN[..], &["--dead-letter", DEAD]].concat();
    let mut bridge = bridge(&kafka, &env, publisher.addr(), &more);
    let endpoint = Endpoint::of(&bridge).await;
    endpoint.ready(200, "").await;
    let to = |metrics: &Metrics, to: &str| {
        metrics.value(&format!("cdnwarm_bridge_dead_letters_total{{reason=\"empty_value\",to=\"{to}\"}}"))
    };

    publisher.script(When::Always, &[Fault::Code(Code::NotFound)]);
    source.put(0, Some(b""), &[]).await;
    endpoint.ready(503, "dead-letter: projects/p/topics/dead does not take dead letters: NotFound").await;
    publisher.be_well();
    endpoint.ready(200, "").await;
    assert_eq!(publisher.accepted(DEAD).len(), 1);
    let shown = endpoint.metrics().await;
    assert_eq!((to(&shown, "pubsub"), to(&shown, "log")), (1, 0), "{}", shown.0);
    assert_eq!(shown.value("cdnwarm_bridge_dead_letter_failures_total"), 0, "{}", shown.0);

    publisher.script(When::Always, &[Fault::Code(Code::NotFound)]);
    let lost = source.put(1, Some(b""), &[]).await;
    endpoint.ready(503, "dead-letter: ").await;
    bridge.says("undeliverable record").await;
    endpoint.ready(200, "").await;
    let shown = endpoint.metrics().await;
    assert_eq!((to(&shown, "pubsub"), to(&shown, "log")), (1, 1), "{}", shown.0);
    assert_eq!(shown.value("cdnwarm_bridge_dead_letter_failures_total"), 1, "{}", shown.0);
    assert_eq!(logged_letters(&bridge), [lost]);
    source.all_committed(&env).await;
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn consume_direct_tells_how_it_is() {
    let kafka = Kafka::start_embedded();
    let origin = Origin::start(&["cdn.example.com".to_owned()], |_| cacheable()).await;
    let env = kafka.env(&[EARLIEST]);
    let mut source = Source::of(&kafka);
    source.urls(60).await;
    source.put(2, None, &[]).await;
    let connect_to = format!("cdn.example.com={}", origin.addr);
    let args = ["consume-direct", &env, &kafka.topic, "--connect-to", &connect_to];
    let mut direct = Process::start(&[&args[..], &SHOWN].concat());
    let endpoint = Endpoint::of(&direct).await;
    endpoint.ready(200, "").await;
    let shown = caught_up(&endpoint, "cdnwarm_consume_direct", &kafka.topic, &[20, 20, 21]).await;
    for (series, expected) in [
        ("records_read_total", 61),
        ("verdicts_total{verdict=\"fetched\"}", 60),
        ("verdicts_total{verdict=\"refused\"}", 1),
        ("verdicts_total{verdict=\"failed\"}", 0),
        ("in_flight_records", 0),
        ("in_flight_gets", 0),
        ("get_duration_seconds_count", 60),
        ("rebalances_total{event=\"lost\"}", 0),
    ] {
        assert_eq!(
            shown.value(&format!("cdnwarm_consume_direct_{series}")),
            expected,
            "{series}: {}",
            shown.0
        );
    }
    assert!(shown.value("cdnwarm_consume_direct_rebalances_total{event=\"assigned\"}") > 0, "{}", shown.0);
    assert_eq!(shown.names(), documented_of("cdnwarm_consume_direct_"));
    assert_grafana_is_answered("cdnwarm_consume_direct_", &shown);
    assert_eq!(endpoint.get("/live").await, (200, "live\n".to_owned()));
    direct.stop().await;
    direct.says("consume-direct stopped: 60 fetched, 1 refused").await;
}

#[test]
fn the_grafana_dashboard_asks_each_role_and_nobody_else() {
    let prefixes = ["cdnwarm_bridge_", "cdnwarm_consume_direct_", "cdnwarm_serve_"];
    let asked = monitoring::asked();
    for prefix in prefixes {
        assert!(asked.keys().any(|name| name.starts_with(prefix)), "nothing of {prefix}");
    }
    for name in asked.keys() {
        let is_any = OF_ANY_ROLE.contains(&name.as_str());
        assert!(is_any || prefixes.iter().any(|prefix| name.starts_with(prefix)), "{name}");
    }
}

#[test]
fn the_document_names_no_other_metric() {
    let documented = documented();
    let words = DOCUMENT.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    for name in words.filter(|word| word.starts_with("cdnwarm_") && !word.ends_with('_')) {
        let family = name.trim_end_matches("_bucket").trim_end_matches("_count").trim_end_matches("_sum");
        assert!(documented.contains(family), "{name} is in the document and in none of its tables");
    }
}

/// The thread that polls hangs in the one thing of an operator's that it waits for: writing a log line that nobody reads.
#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_whose_consumer_hangs_is_not_live_and_leaves() {
    const LIMIT: Duration = Duration::from_secs(60);
    let (kafka, publisher) = (Kafka::start_embedded(), Publisher::start().await);
    let env = kafka.env(&[EARLIEST]);
    let (output, input) = std::io::pipe().unwrap();
    let junk = input.try_clone().unwrap();
    let mut command = command(&[&["bridge", &env, &kafka.topic, TOPIC], &SHOWN[..]].concat());
    command.env("PUBSUB_EMULATOR_HOST", publisher.addr().to_string()).stdout(input);
    let mut hangs = command.spawn().unwrap();
    drop(command);
    let said = Said::of(output);
    said.until("partitions assigned").await;
    let line = said.until("metrics at http").await;
    let line: Value = serde_json::from_str(&line).unwrap();
    let endpoint = Endpoint::told(line["message"].as_str().unwrap());
    endpoint.ready(200, "").await;

    said.reading.store(false, Ordering::Relaxed);
    full(junk).await;
    // A second member: the first has to tell of the rebalance, on the thread that polls.
    let mut other = bridge(&kafka, &env, publisher.addr(), &[]);
    let not_live = async {
        while endpoint.get("/live").await.0 == 200 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(LIMIT + PATIENCE, not_live).await.expect("it is seen that the thread hangs");
    let why = "polling: Kafka was not polled for 60 s";
    assert!(endpoint.get("/live").await.1.contains(why));
    assert!(endpoint.get("/ready").await.1.contains(why));

    said.reading.store(true, Ordering::Relaxed);
    let status = tokio::time::timeout(PATIENCE, hangs.wait()).await.expect("it ends in time").unwrap();
    assert_eq!(status.code(), Some(1));
    let last = said.until("the thread that does hangs").await;
    assert!(last.contains("ERROR"), "{last}");

    let mut source = Source::of(&kafka);
    source.urls(30).await;
    publisher.until(&source.all).await;
    other.stop().await;
}

/// What a process says, read by a thread that can be told not to.
struct Said {
    text: Arc<Mutex<Vec<u8>>>,
    reading: Arc<AtomicBool>,
}

impl Said {
    fn of(mut output: std::io::PipeReader) -> Self {
        let said = Self { text: Arc::default(), reading: Arc::new(AtomicBool::new(true)) };
        let (text, reading) = (said.text.clone(), said.reading.clone());
        std::thread::spawn(move || {
            let mut some = [0; 4096];
            loop {
                if !reading.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_millis(20));
                    continue;
                }
                match output.read(&mut some) {
                    Ok(count @ 1..) => {
                        text.lock().unwrap().extend(some[..count].iter().filter(|byte| **byte != 0))
                    }
                    _ => return,
                }
            }
        });
        said
    }

    /// Waits for a line with this text.
    async fn until(&self, text: &str) -> String {
        eventually(text, async || {
            let said = String::from_utf8_lossy(&self.text.lock().unwrap()).into_owned();
            said.lines().find(|line| line.contains(text)).map(str::to_owned)
        })
        .await
    }
}

/// Fills a pipe that nobody reads.
async fn full(mut pipe: std::io::PipeWriter) {
    const MORE_THAN_ANY: usize = 1 << 20;
    let written = Arc::new(AtomicUsize::new(0));
    let count = written.clone();
    std::thread::spawn(move || {
        // Ends early only where the test has ended.
        while count.load(Ordering::Relaxed) < MORE_THAN_ANY && pipe.write_all(&[0; 512]).is_ok() {
            count.fetch_add(512, Ordering::Relaxed);
        }
    });
    let mut before = 0;
    eventually("a full pipe", async || {
        let now = written.load(Ordering::Relaxed);
        (now > 0 && std::mem::replace(&mut before, now) == now).then_some(())
    })
    .await;
}
