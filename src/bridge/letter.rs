//! What a dead letter says: the record, where it comes from and why it is one, as attributes, headers or a log line.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use googleapis_tonic_google_pubsub_v1::google::pubsub::v1::PubsubMessage;

use super::message::{MAX_ATTRIBUTES, MAX_NAME_BYTES, MAX_VALUE_BYTES};
use super::metrics::DeadLetterReason;
use crate::kafka::Record;
use crate::pubsub::put_attribute;
use crate::redact::is_secret_name;

/// A log line has at most this much of a record; Cloud Logging takes 256 KiB an entry.
const MAX_LOGGED_BYTES: usize = 64 << 10;
/// How much of a reason is told; an attribute takes 1,024 bytes.
const MAX_REASON_BYTES: usize = 512;

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
    pub(super) fn class(&self) -> DeadLetterReason {
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

/// Attributes, encoded one by one: coordinates and reason, then the record's own headers as far as they fit.
pub(super) fn attributes(kafka_topic: &str, letter: &Undeliverable) -> Vec<Vec<u8>> {
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
pub(super) fn coordinates(
    kafka_topic: &str,
    record: &Record,
    reason: &Reason,
) -> Vec<(&'static str, String)> {
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

/// All of a record, bytes in base64, as far as a log line takes it; credentials among its headers are left out.
pub(super) fn as_json(record: &Record) -> serde_json::Value {
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
            let bytes = header.value.as_ref().map(Vec::len);
            let shown = &header.name[..header.name.floor_char_boundary(MAX_NAME_BYTES)];
            if is_secret_name(&header.name) {
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
