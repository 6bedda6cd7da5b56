//! Records as the proofs count them, by coordinates: from the broker's receipt to the offsets that the group has.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use futures_util::future::join_all;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer as _};
use rdkafka::{Offset, TopicPartitionList};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::process::{Process, command};
use super::publisher::TOPIC;
use super::stand::Kafka;
use super::{PATIENCE, eventually};

/// Partition and offset.
pub(crate) type Coordinates = (i32, i64);

/// Writes records into a test's topic and remembers where they came to stand.
pub(crate) struct Source<'a> {
    kafka: &'a Kafka,
    producer: FutureProducer,
    partitions: i32,
    /// Everything that was produced here.
    pub(crate) all: BTreeSet<Coordinates>,
}

impl<'a> Source<'a> {
    /// For the topic of `kafka`.
    pub(crate) fn of(kafka: &'a Kafka) -> Self {
        let mut client = kafka.client();
        // The embedded Kafka holds 5 MiB a partition as they come over the wire: a compressible record may be larger.
        client.set("compression.type", "gzip").set("message.max.bytes", "20000000").set("linger.ms", "0");
        let producer: FutureProducer = client.create().unwrap();
        let metadata = producer.client().fetch_metadata(Some(&kafka.topic), PATIENCE).unwrap();
        let partitions = i32::try_from(metadata.topics()[0].partitions().len()).unwrap();
        Self { kafka, producer, partitions, all: BTreeSet::new() }
    }

    /// How many partitions the topic has.
    pub(crate) fn partitions(&self) -> i32 {
        self.partitions
    }

    /// One record, as it is given.
    pub(crate) async fn put(
        &mut self,
        partition: i32,
        value: Option<&[u8]>,
        headers: &[(&str, &[u8])],
    ) -> Coordinates {
        let headers = headers.iter().fold(OwnedHeaders::new(), |all, (name, value)| {
            all.insert(Header { key: name, value: Some(*value) })
        });
        let mut record =
            FutureRecord::<[u8], [u8]>::to(&self.kafka.topic).partition(partition).headers(headers);
        record.payload = value;
        let delivered = self.producer.send(record, PATIENCE).await.map_err(|(error, _)| error).unwrap();
        let at = (delivered.partition, delivered.offset);
        self.all.insert(at);
        at
    }

    /// A record batch with a wrong checksum, as a broker's disk may leave one; gives its first and last offset. No producer
    /// sends such a batch, so this speaks Kafka's protocol itself.
    pub(crate) async fn put_corrupt(&mut self, partition: i32, records: i32) -> (i64, i64) {
        let mut batch = Vec::new();
        for delta in 0..u8::try_from(records).unwrap() {
            let value = b"http://cdn.example.com/corrupt";
            let mut record = vec![0, 0, 2 * delta, 1, 2 * u8::try_from(value.len()).unwrap()];
            record.extend_from_slice(value);
            record.push(0);
            batch.push(2 * u8::try_from(record.len()).unwrap());
            batch.append(&mut record);
        }
        // The record batch's header (kafka.apache.org/documentation/#recordbatch): no checksum has this value but by chance.
        let mut head = Vec::new();
        let after_length = 49 + i32::try_from(batch.len()).unwrap();
        head.extend(0_i64.to_be_bytes());
        head.extend(after_length.to_be_bytes());
        head.extend((-1_i32).to_be_bytes());
        head.push(2);
        head.extend(0x0bad_c0de_u32.to_be_bytes());
        head.extend(0_i16.to_be_bytes());
        head.extend((records - 1).to_be_bytes());
        head.extend([0; 16]);
        head.extend((-1_i64).to_be_bytes());
        head.extend((-1_i16).to_be_bytes());
        head.extend((-1_i32).to_be_bytes());
        head.extend(records.to_be_bytes());
        // A produce request of version 3, which has no fields of flexible size.
        let topic = self.kafka.topic.as_bytes();
        let mut request = Vec::new();
        for number in [0_i16, 3, 0, 17, -1, -1, 1] {
            request.extend(number.to_be_bytes());
        }
        request.extend(10_000_i32.to_be_bytes());
        request.extend(1_i32.to_be_bytes());
        request.extend(i16::try_from(topic.len()).unwrap().to_be_bytes());
        request.extend(topic);
        request.extend(1_i32.to_be_bytes());
        request.extend(partition.to_be_bytes());
        request.extend(i32::try_from(head.len() + batch.len()).unwrap().to_be_bytes());
        request.extend(head);
        request.extend(batch);
        let servers = self.kafka.client();
        let mut stream = TcpStream::connect(servers.get("bootstrap.servers").unwrap()).await.unwrap();
        stream.write_all(&u32::try_from(request.len()).unwrap().to_be_bytes()).await.unwrap();
        stream.write_all(&request).await.unwrap();
        let size = stream.read_u32().await.unwrap();
        let mut answer = vec![0; size as usize];
        stream.read_exact(&mut answer).await.unwrap();
        // Behind the correlation id and the topic, each with a count: partition, error and base offset.
        let answer = &answer[4 + 4 + 2 + topic.len() + 4 + 4..];
        assert_eq!(answer[..2], [0, 0], "the broker takes it");
        let first = i64::from_be_bytes(answer[2..10].try_into().unwrap());
        (first, first + i64::from(records) - 1)
    }

    /// So many URLs, round all partitions, at once.
    pub(crate) async fn urls(&mut self, count: usize) -> BTreeSet<Coordinates> {
        let from = self.all.len();
        let values: Vec<String> =
            (from..from + count).map(|n| format!("http://cdn.example.com/{n}")).collect();
        let sending = values.iter().zip((0..self.partitions).cycle()).map(|(value, partition)| {
            let record = FutureRecord::<[u8], str>::to(&self.kafka.topic).partition(partition).payload(value);
            self.producer.send(record, PATIENCE)
        });
        let delivered = join_all(sending).await.into_iter().map(|sent| {
            let delivery = sent.map_err(|(error, _)| error).unwrap();
            (delivery.partition, delivery.offset)
        });
        let delivered: BTreeSet<_> = delivered.collect();
        self.all.extend(&delivered);
        delivered
    }

    /// Waits until the group of this kafka-env file has committed everything that was produced here.
    pub(crate) async fn all_committed(&self, env: &str) {
        let mut ends = BTreeMap::new();
        for (partition, offset) in &self.all {
            ends.insert(*partition, offset + 1);
        }
        let text = std::fs::read_to_string(env).unwrap();
        let group = text.lines().find_map(|line| line.strip_prefix("group.id=")).unwrap();
        let consumer: BaseConsumer = self.kafka.client().set("group.id", group).create().unwrap();
        eventually("everything is committed", async || {
            let committed = tokio::task::block_in_place(|| committed(&consumer, &self.kafka.topic, &ends));
            assert!(committed.iter().all(|(partition, offset)| offset <= &ends[partition]), "{committed:?}");
            (committed == ends).then_some(())
        })
        .await;
    }
}

/// The group's offsets of these partitions, where it has one.
fn committed(consumer: &BaseConsumer, topic: &str, partitions: &BTreeMap<i32, i64>) -> BTreeMap<i32, i64> {
    let mut asked = TopicPartitionList::new();
    for partition in partitions.keys() {
        asked.add_partition(topic, *partition);
    }
    let answer = consumer.committed_offsets(asked, PATIENCE).unwrap();
    let known = answer.elements().into_iter().filter_map(|element| match element.offset() {
        Offset::Offset(offset) => Some((element.partition(), offset)),
        _ => None,
    });
    known.collect()
}

/// A bridge from this Kafka to the Publisher at `pubsub`, with further arguments.
pub(crate) fn bridge(kafka: &Kafka, env: &str, pubsub: SocketAddr, more: &[&str]) -> Process {
    let mut command = command(&[&["bridge", env, &kafka.topic, TOPIC], more].concat());
    command.env("PUBSUB_EMULATOR_HOST", pubsub.to_string());
    Process::spawn(command)
}

/// The records that a bridge logged instead of publishing them, each as often as it did.
pub(crate) fn logged_letters(bridge: &Process) -> Vec<Coordinates> {
    let lines = bridge.logged().into_iter().filter(|line| {
        line["message"].as_str().is_some_and(|message| message.starts_with("undeliverable record "))
    });
    let number = |value: &serde_json::Value| value.as_i64().unwrap();
    lines.map(|line| (i32::try_from(number(&line["partition"])).unwrap(), number(&line["offset"]))).collect()
}
