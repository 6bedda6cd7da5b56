//! The end of a record that no message can carry: a Pub/Sub topic, a Kafka topic, or a log line to replay it from.

use std::fmt;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use googleapis_tonic_google_pubsub_v1::google::pubsub::v1::PubsubMessage;
use rdkafka::ClientConfig;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::message::{Header as KafkaHeader, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use tokio::sync::Semaphore;
use tonic::Code;

use super::message::{MAX_ATTRIBUTES, MAX_MESSAGE_BYTES, MAX_NAME_BYTES, MAX_VALUE_BYTES};
use super::metrics::{BridgeMetrics, DeadLetterReason, DeadLetterTarget};
use super::retry::{Fate, call_limit, delays, fate};
use crate::kafka::Record;
use crate::pubsub::{GrpcPublisher, Publish, RequestBuilder, TopicName, put_attribute};

/// A log line has at most this much of a record; Cloud Logging takes 256 KiB an entry.
const MAX_LOGGED_BYTES: usize = 64 << 10;
/// How much of a reason is told; an attribute takes 1,024 bytes.
const MAX_REASON_BYTES: usize = 512;
/// How long a dead letter topic may fail before the record is logged instead: its partition waits for it.
const LETTER_LIMIT: Duration = Duration::from_secs(20);
/// Letters on their way at once.
const LETTERS_AT_ONCE: usize = 32;

/// Why no message can carry a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reason {
    /// A tombstone.
    NoValue,
    EmptyValue,
    /// So many bytes as a message.
    TooLarge(usize),
    /// Attributes that break Pub/Sub's limits.
    Attributes(String),
    /// An option that no attribute can carry.
    InvalidOption(String),
    /// What Pub/Sub said to the message alone.
    Refused(String),
    /// A record batch that cannot be read, from this record to the offset given.
    BrokenBatch {
        last: i64,
        error: String,
    },
}

impl Reason {
    fn class(&self) -> DeadLetterReason {
        match self {
            Self::NoValue => DeadLetterReason::NoValue,
            Self::EmptyValue => DeadLetterReason::EmptyValue,
            Self::TooLarge(_) => DeadLetterReason::TooLarge,
            Self::Attributes(_) => DeadLetterReason::Attributes,
            Self::InvalidOption(_) => DeadLetterReason::InvalidOption,
            Self::Refused(_) => DeadLetterReason::RefusedByPubsub,
            Self::BrokenBatch { .. } => DeadLetterReason::BrokenBatch,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoValue => f.write_str("no value (a tombstone)"),
            Self::EmptyValue => f.write_str("empty value"),
            Self::TooLarge(bytes) => write!(f, "{bytes} bytes as a message; Pub/Sub takes 10 MB"),
            Self::Attributes(what) | Self::InvalidOption(what) => f.write_str(what),
            Self::Refused(what) => write!(f, "Pub/Sub refuses it: {what}"),
            Self::BrokenBatch { last, error } => {
                write!(f, "a record batch that cannot be read, up to offset {last}: {error}")
            }
        }
    }
}

/// A record, and why it cannot go on.
#[derive(Debug, Clone)]
pub(super) struct Undeliverable {
    pub(super) record: Record,
    pub(super) reason: Reason,
}

/// Where dead letters go, as an operator says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum DeadLetterTopic {
    Pubsub(TopicName),
    Kafka(String),
}

impl FromStr for DeadLetterTopic {
    type Err = String;

    /// A slash makes it a Pub/Sub topic: no name of a Kafka topic has one.
    fn from_str(text: &str) -> Result<Self, String> {
        if text.contains('/') {
            return text.parse().map(Self::Pubsub);
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if text.is_empty() || text.len() > 249 || !text.chars().all(allowed) {
            return Err("neither projects/PROJECT/topics/TOPIC nor the name of a Kafka topic".to_owned());
        }
        Ok(Self::Kafka(text.to_owned()))
    }
}

/// Sends dead letters, and counts them.
pub(super) struct DeadLetters {
    /// Where the records come from.
    kafka_topic: String,
    target: Target,
    metrics: BridgeMetrics,
    places: Semaphore,
}

pub(super) enum Target {
    Pubsub(GrpcPublisher),
    Kafka { producer: FutureProducer, topic: String },
    Log,
}

impl Target {
    /// A topic of the cluster that `client` names.
    ///
    /// # Errors
    /// A configuration that librdkafka refuses.
    pub(super) fn kafka(mut client: ClientConfig, topic: String) -> anyhow::Result<Self> {
        // The largest record that any broker takes; what its topic takes, the broker says.
        client.set("message.max.bytes", "1000000000");
        client.set("message.timeout.ms", LETTER_LIMIT.as_millis().to_string());
        let producer = client.create().context("making a Kafka producer for dead letters")?;
        Ok(Self::Kafka { producer, topic })
    }
}

impl DeadLetters {
    pub(super) fn new(kafka_topic: String, target: Target, metrics: BridgeMetrics) -> Self {
        Self { kafka_topic, target, metrics, places: Semaphore::new(LETTERS_AT_ONCE) }
    }

    /// Brings a record to its end. What the dead letter topic refuses, or does not take in time, is logged.
    pub(super) async fn send(&self, letter: &Undeliverable) {
        let Record { partition, offset, .. } = letter.record;
        let (topic, reason) = (&self.kafka_topic, &letter.reason);
        // Never closed; without a place there are only more letters at once.
        let _place = self.places.acquire().await;
        let last_error = Mutex::new(String::new());
        let send = async {
            match &self.target {
                Target::Log => Err("no --dead-letter topic".to_owned()),
                Target::Pubsub(publisher) => self.publish(publisher, letter, &last_error).await,
                Target::Kafka { producer, topic } => self.produce(producer, topic, letter, &last_error).await,
            }
        };
        let sent = tokio::time::timeout(LETTER_LIMIT, send).await.unwrap_or_else(|_| {
            let last = last_error.lock().unwrap_or_else(PoisonError::into_inner);
            Err(format!("the dead letter topic did not take it within {} s: {last}", LETTER_LIMIT.as_secs()))
        });
        let to = match (sent, &self.target) {
            (Ok(()), target) => {
                tracing::warn!(topic, partition, offset, %reason, "dead letter {topic}/{partition}/{offset}: {reason}");
                if matches!(target, Target::Kafka { .. }) {
                    DeadLetterTarget::Kafka
                } else {
                    DeadLetterTarget::Pubsub
                }
            }
            (Err(why), _) => {
                self.log(letter, &why);
                DeadLetterTarget::Log
            }
        };
        self.metrics.dead_letters(reason.class(), to, 1);
    }

    /// An error line with all of the record, or with as much of it as a line takes.
    fn log(&self, letter: &Undeliverable, why: &str) {
        let Undeliverable { record, reason } = letter;
        let (topic, Record { partition, offset, .. }) = (&self.kafka_topic, record);
        tracing::error!(
            topic,
            partition,
            offset,
            %reason,
            record = %as_json(record),
            "undeliverable record {topic}/{partition}/{offset}: {reason}. It is skipped and logged ({why}); while Kafka \
             has it, kcat -C -t {topic} -p {partition} -o {offset} -c 1 reads it again"
        );
    }

    /// # Errors
    /// Why this topic will never take it.
    async fn publish(
        &self,
        publisher: &GrpcPublisher,
        letter: &Undeliverable,
        last_error: &Mutex<String>,
    ) -> Result<(), String> {
        let mut request = RequestBuilder::new(publisher.topic(), 0);
        let attributes = attributes(&self.kafka_topic, letter);
        let attributes_bytes: usize = attributes.iter().map(Vec::len).sum();
        let mut value = letter.record.value.as_deref().unwrap_or_default();
        if value.len() + attributes_bytes > MAX_MESSAGE_BYTES {
            // Without its value it is still found again in Kafka by its coordinates.
            value = &[];
        }
        request.add(value, &attributes.iter().map(Vec::as_slice).collect::<Vec<_>>());
        let bytes = request.build().part(0..1);
        let (mut delays, mut unanswered) = (delays(), 0);
        loop {
            match publisher.publish(bytes.clone(), 1, call_limit(bytes.len(), unanswered)).await {
                Ok(()) => return Ok(()),
                Err(status) if fate(status.code()) == Fate::Refused => {
                    return Err(format!("{} refuses it: {}", publisher.topic(), status.message()));
                }
                Err(status) => {
                    unanswered += u32::from(status.code() == Code::DeadlineExceeded);
                    note(last_error, &format!("{:?}: {}", status.code(), status.message()));
                }
            }
            tokio::time::sleep(delays.next().unwrap_or(Duration::from_secs(1))).await;
        }
    }

    /// # Errors
    /// Why this topic will never take it.
    async fn produce(
        &self,
        producer: &FutureProducer,
        topic: &str,
        letter: &Undeliverable,
        last_error: &Mutex<String>,
    ) -> Result<(), String> {
        let Undeliverable { record, reason } = letter;
        let coordinates = coordinates(&self.kafka_topic, record, reason);
        let mut headers = OwnedHeaders::new_with_capacity(record.headers.len() + coordinates.len());
        for header in &record.headers {
            headers = headers.insert(KafkaHeader { key: &header.name, value: header.value.as_ref() });
        }
        for (name, value) in &coordinates {
            headers = headers.insert(KafkaHeader { key: name, value: Some(value) });
        }
        let mut delays = delays();
        loop {
            let mut dead = FutureRecord::<[u8], [u8]>::to(topic).headers(headers.clone());
            dead.key = record.key.as_deref();
            dead.payload = record.value.as_deref();
            match producer.send(dead, LETTER_LIMIT).await {
                Ok(_) => return Ok(()),
                Err((error, _)) => match error.rdkafka_error_code() {
                    Some(
                        RDKafkaErrorCode::MessageSizeTooLarge
                        | RDKafkaErrorCode::InvalidRecord
                        | RDKafkaErrorCode::InvalidMessageSize,
                    ) => return Err(format!("{topic} refuses it: {error}")),
                    _ => note(last_error, &error.to_string()),
                },
            }
            tokio::time::sleep(delays.next().unwrap_or(Duration::from_secs(1))).await;
        }
    }
}

/// Keeps why a try failed, for the end.
fn note(last_error: &Mutex<String>, error: &str) {
    tracing::debug!("dead letter not taken, trying again: {error}");
    error.clone_into(&mut last_error.lock().unwrap_or_else(PoisonError::into_inner));
}

/// Attributes, encoded one by one: coordinates and reason, then the record's own headers as far as they fit.
fn attributes(kafka_topic: &str, letter: &Undeliverable) -> Vec<Vec<u8>> {
    let mut names: Vec<String> = Vec::new();
    let mut encoded = Vec::new();
    let mut dropped = 0_usize;
    let coordinates = coordinates(kafka_topic, &letter.record, &letter.reason);
    let own = coordinates.iter().map(|(name, value)| ((*name).to_owned(), Some(value.as_bytes())));
    // Of a repeated header the last counts, so they are looked at from the end; options before foreign headers.
    let headers = |options: bool| {
        let wanted =
            letter.record.headers.iter().rev().filter(move |h| h.name.starts_with("warm-") == options);
        wanted.map(|h| (h.name.clone(), h.value.as_deref()))
    };
    let headers = headers(true).chain(headers(false));
    for (name, value) in own.chain(headers) {
        let value = std::str::from_utf8(value.unwrap_or_default());
        let fits = names.len() < MAX_ATTRIBUTES - 1
            && !name.is_empty()
            && !name.starts_with("goog")
            && name.len() <= MAX_NAME_BYTES;
        match value {
            Ok(value) if fits && value.len() <= MAX_VALUE_BYTES => {
                if !names.contains(&name) {
                    let mut one = Vec::new();
                    put_attribute(&mut one, &name, value);
                    encoded.push(one);
                    names.push(name);
                }
            }
            _ => dropped += 1,
        }
    }
    if dropped > 0 {
        let mut one = Vec::new();
        put_attribute(&mut one, "dead-letter-dropped-headers", &dropped.to_string());
        encoded.push(one);
    }
    encoded
}

/// Where a dead letter comes from, and why it is one.
fn coordinates(kafka_topic: &str, record: &Record, reason: &Reason) -> Vec<(&'static str, String)> {
    let mut text = reason.to_string();
    text.truncate(text.floor_char_boundary(MAX_REASON_BYTES));
    let mut all = vec![
        ("kafka-topic", kafka_topic.to_owned()),
        ("kafka-partition", record.partition.to_string()),
        ("kafka-offset", record.offset.to_string()),
        ("dead-letter-reason", reason.class().as_str().to_owned()),
        ("dead-letter-error", text),
        ("dead-letter-value-bytes", record.value.as_ref().map_or("null".to_owned(), |v| v.len().to_string())),
    ];
    if let Some(timestamp_ms) = record.timestamp_ms {
        all.push(("kafka-timestamp", timestamp_ms.to_string()));
    }
    if let Some(key) = record.key.as_ref().and_then(|key| String::from_utf8(key.clone()).ok())
        && key.len() <= MAX_VALUE_BYTES
    {
        all.push(("kafka-key", key));
    }
    all
}

/// What in a header's name tells that its value is a credential.
const SECRET_WORDS: [&str; 9] =
    ["auth", "cookie", "token", "key", "secret", "password", "signature", "credential", "session"];

/// All of a record, bytes in base64, as far as a log line takes it; credentials among its headers are left out.
fn as_json(record: &Record) -> serde_json::Value {
    let mut room = MAX_LOGGED_BYTES;
    let mut cut = |bytes: &[u8]| {
        let taken = &bytes[..bytes.len().min(room)];
        room -= taken.len();
        BASE64.encode(taken)
    };
    let key = record.key.as_deref().map(&mut cut);
    let value = record.value.as_deref().map(&mut cut);
    let headers: Vec<_> = record
        .headers
        .iter()
        .map(|header| {
            let name = header.name.to_ascii_lowercase();
            let bytes = header.value.as_ref().map(Vec::len);
            let shown = &header.name[..header.name.floor_char_boundary(MAX_NAME_BYTES)];
            if SECRET_WORDS.iter().any(|word| name.contains(word)) {
                serde_json::json!({ "name": shown, "value_bytes": bytes, "left_out": true })
            } else {
                let value = header.value.as_deref().map(&mut cut);
                serde_json::json!({ "name": shown, "value_bytes": bytes, "value_base64": value })
            }
        })
        .collect();
    serde_json::json!({
        "partition": record.partition,
        "offset": record.offset,
        "timestamp_ms": record.timestamp_ms,
        "key_bytes": record.key.as_ref().map(Vec::len),
        "key_base64": key,
        "value_bytes": record.value.as_ref().map(Vec::len),
        "value_base64": value,
        "headers": headers,
    })
}

/// A message that was refused, as the record that it was made of.
pub(super) fn record_of(message: PubsubMessage) -> Record {
    let PubsubMessage { data, mut attributes, .. } = message;
    let mut take = |name: &str| attributes.remove(name);
    let partition = take("kafka-partition").and_then(|text| text.parse().ok()).unwrap_or(-1);
    let offset = take("kafka-offset").and_then(|text| text.parse().ok()).unwrap_or(-1);
    let timestamp_ms = take("kafka-timestamp").and_then(|text| text.parse().ok());
    let key = take("kafka-key").map(String::into_bytes);
    take("kafka-topic");
    let mut headers: Vec<_> = attributes
        .into_iter()
        .filter(|(name, _)| !name.starts_with("warm-region-"))
        .map(|(name, value)| crate::kafka::Header { name, value: Some(value.into_bytes()) })
        .collect();
    headers.sort_by(|a, b| a.name.cmp(&b.name));
    Record { partition, offset, timestamp_ms, key, value: Some(data.into()), headers }
}
