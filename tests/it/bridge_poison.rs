//! Records that no message can carry: each ends once, with its coordinates and the reason, and holds up no other.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rdkafka::Message as _;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::Headers as _;
use rdkafka::{Offset, TopicPartitionList};
use serde_json::Value;

use crate::support::endpoint::Endpoint;
use crate::support::eventually;
use crate::support::origin::{Origin, cacheable};
use crate::support::process::{Process, run, told};
use crate::support::publisher::{Publisher, TOPIC};
use crate::support::records::{Coordinates, Source, bridge, logged_letters};
use crate::support::stand::{Kafka, unique};

const DEAD: &str = "projects/p/topics/dead";
const REFUSED: &str = "refuse me";
const GOOD: &[u8] = b"http://cdn.example.com/good";
const SECRET: &str = "Bearer 0123456789abcdef";

/// A dead letter's value, and its attributes or headers.
type Letter = (Option<Vec<u8>>, HashMap<String, Vec<u8>>);

/// A kind of poison, and what its dead letter says about it.
struct Poison {
    value: Option<Vec<u8>>,
    headers: Vec<(String, Vec<u8>)>,
    reason: &'static str,
    error: &'static str,
}

fn kinds() -> Vec<Poison> {
    let url = || Some(b"http://cdn.example.com/".to_vec());
    let header = |name: &str, value: &[u8]| vec![(name.to_owned(), value.to_vec())];
    let of = |value, headers, reason, error| Poison { value, headers, reason, error };
    vec![
        of(None, vec![], "no_value", "tombstone"),
        of(Some(vec![]), vec![], "empty_value", "empty value"),
        of(Some(vec![b'x'; 10_000_001]), vec![], "too_large", "Pub/Sub takes 10 MB"),
        of(url(), header("warm-header-accept", b"\xff"), "invalid_option", "warm-header-accept is not UTF-8"),
        of(url(), (0..101).map(|n| (format!("h{n}"), vec![])).collect(), "attributes", "Pub/Sub takes 100"),
        of(url(), header("note", &[b'v'; 1_025]), "attributes", "attribute note of 1025 bytes"),
        of(url(), header(&"n".repeat(257), b""), "attributes", "name of 257 bytes"),
        of(Some(REFUSED.into()), vec![], "refused_by_pubsub", "schema does not allow"),
    ]
}

/// A Kafka whose topic has each kind of poison first, in the middle and last in a partition of its own.
struct Poisoned {
    kafka: Kafka,
    env: String,
    poison: BTreeMap<Coordinates, Poison>,
    good: BTreeSet<Coordinates>,
}

impl Poisoned {
    async fn start() -> Self {
        const PLACES: [usize; 3] = [0, 2, 4];
        let count = i32::try_from(PLACES.len() * kinds().len()).unwrap();
        let mut kafka = Kafka::start_embedded_with(count);
        // So that the embedded Kafka takes a large record as a dead letter, too.
        kafka.set("compression.type", "gzip");
        let env = kafka.env(&[("auto.offset.reset", "earliest")]);
        let mut source = Source::of(&kafka);
        let (mut poison, mut good) = (BTreeMap::new(), BTreeSet::new());
        let all = PLACES.into_iter().flat_map(|place| kinds().into_iter().map(move |kind| (place, kind)));
        for (partition, (place, kind)) in (0..).zip(all) {
            for _ in 0..place {
                good.insert(source.put(partition, Some(GOOD), &[]).await);
            }
            let headers: Vec<(&str, &[u8])> =
                kind.headers.iter().map(|(name, value)| (name.as_str(), &value[..])).collect();
            let secret = [("warm-header-authorization", SECRET.as_bytes())];
            let at = source.put(partition, kind.value.as_deref(), &[&headers[..], &secret].concat()).await;
            poison.insert(at, kind);
            for _ in place..4 {
                good.insert(source.put(partition, Some(GOOD), &[]).await);
            }
        }
        Self { kafka, env, poison, good }
    }

    /// Waits until all is over, and checks what holds wherever dead letters go.
    async fn is_over(&self, mut bridge: Process, publisher: &Publisher) {
        publisher.until(&self.good).await;
        let mut source = Source::of(&self.kafka);
        source.all = self.poison.keys().chain(&self.good).copied().collect();
        source.all_committed(&self.env).await;
        bridge.stop().await;
        let times = publisher.times();
        assert!(times.values().all(|times| *times == 1), "no record came twice: {times:?}");
        assert_eq!(times.into_keys().collect::<BTreeSet<_>>(), self.good, "no poison came");
        bridge
            .says(&format!("{} records published, {} undeliverable", self.good.len(), self.poison.len()))
            .await;
        let said = bridge.lines().join("\n");
        assert!(!said.contains(SECRET) && !said.contains(&BASE64.encode(SECRET)), "a secret in the log");
    }

    /// Checks that these are the dead letters, each once and with all that it should say.
    fn are_all(&self, letters: &[Letter]) {
        let mut seen = BTreeSet::new();
        for (value, attributes) in letters {
            let text = |name: &str| {
                let value = attributes.get(name).unwrap_or_else(|| panic!("{name} is not in {attributes:?}"));
                String::from_utf8(value.clone()).unwrap()
            };
            let at = (text("kafka-partition").parse().unwrap(), text("kafka-offset").parse().unwrap());
            assert!(seen.insert(at), "{at:?} came twice");
            let kind = self.poison.get(&at).unwrap_or_else(|| panic!("{at:?} is no poison"));
            assert_eq!(text("kafka-topic"), self.kafka.topic);
            assert_eq!(text("dead-letter-reason"), kind.reason);
            assert!(text("dead-letter-error").contains(kind.error), "{}", text("dead-letter-error"));
            // What is replayed from a dead letter must be what it was.
            assert_eq!(text("warm-header-authorization"), SECRET, "{}", kind.reason);
            if kind.reason != "too_large" {
                assert_eq!(value.as_deref().unwrap_or_default(), kind.value.as_deref().unwrap_or_default());
            }
        }
        assert_eq!(seen.len(), self.poison.len());
    }
}

/// Refuses the one kind of poison that only Pub/Sub objects to.
async fn publisher() -> Publisher {
    let publisher = Publisher::start().await;
    publisher.refuse(TOPIC, REFUSED);
    publisher
}

#[tokio::test(flavor = "multi_thread")]
async fn poison_goes_to_a_pubsub_topic() {
    let (poisoned, publisher) = tokio::join!(Poisoned::start(), publisher());
    let bridge = bridge(&poisoned.kafka, &poisoned.env, publisher.addr(), &["--dead-letter", DEAD]);
    poisoned.is_over(bridge, &publisher).await;
    let letters = publisher.accepted(DEAD).into_iter().map(|message| {
        let attributes = message.attributes.into_iter().map(|(name, value)| (name, value.into_bytes()));
        (Some(message.data), attributes.collect())
    });
    poisoned.are_all(&letters.collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn poison_goes_to_a_kafka_topic_as_it_was() {
    let (poisoned, publisher) = tokio::join!(Poisoned::start(), publisher());
    let dead = unique("dead");
    poisoned.kafka.embedded().create_topic(&dead, 1).unwrap();
    let bridge = bridge(&poisoned.kafka, &poisoned.env, publisher.addr(), &["--dead-letter", &dead]);
    poisoned.is_over(bridge, &publisher).await;
    let letters = tokio::task::block_in_place(|| read_all(&poisoned.kafka, &dead, poisoned.poison.len()));
    for (value, headers) in &letters {
        let at = |name: &str| std::str::from_utf8(&headers[name]).unwrap();
        let at = (at("kafka-partition").parse().unwrap(), at("kafka-offset").parse().unwrap());
        let kind = &poisoned.poison[&at];
        assert!(*value == kind.value, "the value of {} is as it was", kind.reason);
        for (name, value) in &kind.headers {
            assert_eq!(&headers[name], value, "{name}");
        }
    }
    poisoned.are_all(&letters);
}

#[tokio::test(flavor = "multi_thread")]
async fn poison_without_a_dead_letter_topic_is_logged_whole() {
    let (poisoned, publisher) = tokio::join!(Poisoned::start(), publisher());
    let bridge = bridge(&poisoned.kafka, &poisoned.env, publisher.addr(), &["--log", "debug"]);
    publisher.until(&poisoned.good).await;
    eventually("all poison", async || (logged_letters(&bridge).len() >= poisoned.poison.len()).then_some(()))
        .await;
    let logged: Vec<Value> = bridge.logged().into_iter().filter(|line| line["record"].is_string()).collect();
    poisoned.is_over(bridge, &publisher).await;
    assert_eq!(logged.len(), poisoned.poison.len());
    for line in logged {
        let at =
            (i32::try_from(line["partition"].as_i64().unwrap()).unwrap(), line["offset"].as_i64().unwrap());
        let kind = &poisoned.poison[&at];
        assert_eq!(line["topic"], poisoned.kafka.topic.as_str());
        assert!(line["reason"].as_str().unwrap().contains(kind.error), "{}", line["reason"]);
        let record: Value = serde_json::from_str(line["record"].as_str().unwrap()).unwrap();
        // Of a large value only so much that the line can be kept.
        let value = kind.value.as_ref().map(|value| &value[..value.len().min(64 << 10)]);
        assert_eq!(record["value_base64"].as_str(), value.map(|value| BASE64.encode(value)).as_deref());
        for (name, value) in &kind.headers {
            // Of a long name only so much as an attribute could have.
            let name = &name[..name.len().min(256)];
            let header = record["headers"].as_array().unwrap().iter().find(|header| header["name"] == name);
            assert_eq!(header.unwrap()["value_base64"], BASE64.encode(value), "{name}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_dead_letter_topic_refuses_is_logged_and_what_just_fits_is_published() {
    let kafka = Kafka::start_embedded();
    let env = kafka.env(&[("auto.offset.reset", "earliest")]);
    let publisher = Publisher::start().await;
    publisher.refuse(DEAD, "");
    let mut source = Source::of(&kafka);
    let poison = source.put(0, Some(b""), &[]).await;
    let large = source.put(0, Some(&vec![b'x'; 9_990_000]), &[("note", b"fits")]).await;
    let good = source.put(1, Some(GOOD), &[("trace", b"\xff"), ("googclient", b"x")]).await;
    let mut bridge = bridge(&kafka, &env, publisher.addr(), &["--dead-letter", DEAD]);
    publisher.until(&BTreeSet::from([large, good])).await;
    let why = bridge.says("undeliverable record").await;
    assert!(why.contains(&format!("{DEAD} refuses it")), "{why}");
    source.all_committed(&env).await;
    bridge.stop().await;
    assert_eq!(logged_letters(&bridge), [poison]);
    assert_eq!(publisher.records(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_that_would_come_round_again_are_an_error_of_usage() {
    let kafka = Kafka::start_embedded();
    let env = kafka.env(&[]);
    for (dead, expected) in
        [(kafka.topic.as_str(), "topic that is read"), (TOPIC, "topic that is published to")]
    {
        let output = run(&["bridge", &env, &kafka.topic, TOPIC, "--dead-letter", dead]).await;
        assert_eq!(output.status.code(), Some(2), "{}", told(&output));
        assert!(told(&output).contains(expected), "{}", told(&output));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_topic_that_does_not_exist_is_named_before_a_record_moves_and_is_not_made() {
    let (kafka, publisher) = (Kafka::start_embedded(), Publisher::start().await);
    let env = kafka.env(&[("auto.offset.reset", "earliest")]);
    let mut source = Source::of(&kafka);
    source.urls(3).await;
    let mut bridge = bridge(&kafka, &env, publisher.addr(), &["--dead-letter", "no-such-topic"]);
    assert_eq!(bridge.ends().await, Some(1), "{}", bridge.lines().join("\n"));
    bridge.says("--dead-letter: Kafka topic no-such-topic does not exist").await;
    assert_eq!(publisher.records(), 0);
    let client: BaseConsumer = kafka.client().create().unwrap();
    let all = client.fetch_metadata(None, crate::support::PATIENCE).unwrap();
    let names: Vec<&str> = all.topics().iter().map(rdkafka::metadata::MetadataTopic::name).collect();
    assert!(names.contains(&kafka.topic.as_str()) && !names.contains(&"no-such-topic"), "{names:?}");
}

/// Five good records, a corrupt batch of seven, and five good records again in partition 0, and some in partition 1. Gives
/// what stands before the corrupt batch or beside it, and all that is good.
async fn with_corrupt_batch(source: &mut Source<'_>) -> (BTreeSet<Coordinates>, BTreeSet<Coordinates>) {
    let mut readable = BTreeSet::new();
    for partition in [0, 0, 0, 0, 0, 1, 1] {
        readable.insert(source.put(partition, Some(GOOD), &[]).await);
    }
    assert_eq!(source.put_corrupt(0, 7).await, (5, 11));
    let mut good = readable.clone();
    for _ in 0..5 {
        good.insert(source.put(0, Some(GOOD), &[]).await);
    }
    (readable, good)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrupt_batch_stops_its_partition_alone_until_it_is_to_be_skipped() {
    let (kafka, publisher) = (Kafka::start_embedded(), Publisher::start().await);
    let env = kafka.env(&[("auto.offset.reset", "earliest")]);
    let mut source = Source::of(&kafka);
    let (readable, mut good) = with_corrupt_batch(&mut source).await;
    let shown = ["--metrics-addr", "127.0.0.1:0"];
    let mut stopped = bridge(&kafka, &env, publisher.addr(), &shown);
    let endpoint = Endpoint::of(&stopped).await;
    publisher.until(&readable).await;
    endpoint.ready(503, "a corrupt record batch stops partition 0 at offset 5").await;
    let shown_now = endpoint.metrics().await;
    assert_eq!(shown_now.value("cdnwarm_bridge_corrupt_partitions"), 1, "{}", shown_now.0);
    // The others go on, and this one does not, however long it lasts.
    for _ in 0..20 {
        let beside = source.put(1, Some(GOOD), &[]).await;
        good.insert(beside);
        publisher.until(&BTreeSet::from([beside])).await;
    }
    assert!(publisher.times().keys().all(|(partition, offset)| *partition != 0 || *offset < 5));
    let said = |bridge: &Process, what: &str| -> Vec<Value> {
        let logged = bridge.logged().into_iter();
        logged.filter(|line| line["message"].as_str().is_some_and(|text| text.contains(what))).collect()
    };
    let errors = said(&stopped, "its record batch is corrupt");
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert_eq!((&errors[0]["partition"], &errors[0]["offset"]), (&0.into(), &5.into()), "{errors:?}");
    stopped.stop().await;

    let mut skipping = bridge(&kafka, &env, publisher.addr(), &[&shown[..], &["--skip-corrupt"]].concat());
    let endpoint = Endpoint::of(&skipping).await;
    publisher.until(&good).await;
    source.all_committed(&env).await;
    endpoint.ready(200, "").await;
    let shown_now = endpoint.metrics().await;
    assert_eq!(shown_now.value("cdnwarm_bridge_corrupt_partitions"), 0, "{}", shown_now.0);
    assert_eq!(shown_now.value("cdnwarm_bridge_skipped_corrupt_batches_total"), 1, "{}", shown_now.0);
    let skipped = said(&skipping, "are skipped");
    assert_eq!(skipped.len(), 1, "{skipped:?}");
    assert_eq!((&skipped[0]["first"], &skipped[0]["last"]), (&5.into(), &11.into()), "{skipped:?}");
    skipping.stop().await;
    assert_eq!(logged_letters(&skipping), [(0, 5)]);
    let letter = skipping.says("undeliverable record").await;
    assert!(letter.contains("up to offset 11"), "{letter}");
    assert_eq!(publisher.times(), good.into_iter().map(|record| (record, 1)).collect::<BTreeMap<_, _>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrupt_batch_is_found_again_after_a_restart_and_skipped_by_consume_direct() {
    let kafka = Kafka::start_embedded();
    let origin = Origin::start(&["cdn.example.com".to_owned()], |_| cacheable()).await;
    let env = kafka.env(&[("auto.offset.reset", "earliest")]);
    let mut source = Source::of(&kafka);
    let (_, good) = with_corrupt_batch(&mut source).await;
    let connect_to = format!("cdn.example.com={}", origin.addr);
    let args = ["consume-direct", &env, &kafka.topic, "--connect-to", &connect_to];
    for _ in 0..2 {
        let mut stopped = Process::start(&args);
        stopped.says("its record batch is corrupt").await;
        stopped.stop().await;
    }
    let mut skipping = Process::start(&[&args[..], &["--skip-corrupt"]].concat());
    skipping.says("offsets 5 to 11").await;
    let last = good.iter().filter(|(partition, _)| *partition == 0).max().unwrap().1;
    let id = format!("{}/0/{last}", kafka.topic);
    eventually("the record behind it", async || {
        skipping.outcomes().iter().any(|outcome| outcome["id"] == id.as_str()).then_some(())
    })
    .await;
    skipping.stop().await;
}

/// All records of a topic with one partition, which has so many: as letters.
fn read_all(kafka: &Kafka, topic: &str, count: usize) -> Vec<Letter> {
    let consumer: BaseConsumer = kafka.client().set("group.id", "reader").create().unwrap();
    let mut start = TopicPartitionList::new();
    start.add_partition_offset(topic, 0, Offset::Beginning).unwrap();
    consumer.assign(&start).unwrap();
    let (_, end) = consumer.fetch_watermarks(topic, 0, crate::support::PATIENCE).unwrap();
    assert_eq!(usize::try_from(end).unwrap(), count, "records in {topic}");
    let read = (0..count).map(|_| {
        let record = consumer.poll(crate::support::PATIENCE).expect("a record in time").unwrap();
        let headers = record.headers().unwrap().iter();
        let headers = headers
            .map(|header| (header.key.to_owned(), header.value.unwrap_or_default().to_vec()))
            .collect();
        (record.payload().map(<[u8]>::to_vec), headers)
    });
    read.collect()
}
