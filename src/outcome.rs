//! What became of one request in one region: the verdict with its evidence, as the JSON of `schemas/outcome.schema.json`.
//!
//! The same serialized form is the log line, the demo's table row and, later, the message on an outcomes topic.

use std::borrow::Cow;

pub use crate::redact::shown_url;
use crate::verdict::Verdict;
use jiff::Timestamp;
use serde::{Serialize, Serializer};

/// A verdict with its evidence, for one request in one region.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// `topic/partition/offset` of the Kafka record, or the Pub/Sub message id where it came from elsewhere; with `#` and
    /// the line's number behind it where the message had several.
    pub id: String,
    /// What was asked for; values of signature-like query parameters are an ellipsis.
    pub url: String,
    /// Where redirects led: the target of the last one that was followed, shown likewise; absent where none was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub final_url: Option<String>,
    /// Where it was warmed.
    pub region: String,
    /// The last eight characters of the id of the instance that did it.
    pub instance: String,
    /// One word; see [`Verdict::word`].
    #[serde(serialize_with = "word")]
    pub verdict: Verdict,
    /// Why, for the verdicts that have a reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What the exchange showed; absent where nothing was fetched.
    #[serde(flatten)]
    pub exchange: Exchange,
    /// How many GETs were made, redirects followed and a second look included; none for one that shares another's.
    pub attempts: u32,
    /// Where the request came from and when.
    #[serde(flatten)]
    pub source: Source,
    /// When the verdict stood, RFC 3339.
    pub finished_at: Timestamp,
}

/// What one or more GETs for one request showed.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Exchange {
    /// The status of the last response.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http_status: Option<u16>,
    /// What a cache said in the last response.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<CacheEvidence>,
    /// Body bytes read, as they came (not decoded), over all GETs.
    pub bytes: u64,
    /// Body bytes that were left unread, since the edge had them; what was on its way already came all the same.
    #[serde(skip_serializing_if = "is_zero")]
    pub bytes_saved: u64,
    /// From the first request's start to its response head, milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttfb_ms: Option<f64>,
    /// From the first request's start to the last body's end, milliseconds.
    pub total_ms: f64,
}

/// The response headers that a verdict rests on.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct CacheEvidence {
    /// The deciding header's name, in lower case.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub header: Option<Cow<'static, str>>,
    /// The deciding header's value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Which cache said so: a CDN's name, or the cache's own name in `Cache-Status`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cdn: Option<String>,
    /// The point of presence, as the CDN spells it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pop: Option<String>,
    /// `Age`, seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub age_s: Option<u64>,
    /// How much longer the edge will serve it as fresh, seconds; negative when expired.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl_s: Option<i64>,
    /// `ETag`, as sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
}

/// Where a request came from and when, as far as that is known.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Source {
    /// The Kafka record's timestamp, Unix milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kafka_timestamp: Option<i64>,
    /// When Pub/Sub accepted the message, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub publish_time: Option<Timestamp>,
    /// Pub/Sub's count of this delivery, from 1; known only with a dead-letter policy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delivery_attempt: Option<u32>,
}

fn is_zero(bytes: &u64) -> bool {
    *bytes == 0
}

fn word<S: Serializer>(verdict: &Verdict, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(verdict.word())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::{Obstacle, Unproven};

    fn full() -> Outcome {
        Outcome {
            id: "urls/3/17".to_owned(),
            url: "https://example.com/a".to_owned(),
            final_url: Some("https://example.com/b".to_owned()),
            region: "europe-west1".to_owned(),
            instance: "a1b2c3d4".to_owned(),
            verdict: Verdict::Uncacheable(Obstacle::NoStore),
            reason: Some("no-store".to_owned()),
            exchange: Exchange {
                http_status: Some(200),
                cache: Some(CacheEvidence {
                    header: Some("cache-status".into()),
                    value: Some("edge; hit".to_owned()),
                    cdn: Some("edge".to_owned()),
                    pop: Some("FRA".to_owned()),
                    age_s: Some(1),
                    ttl_s: Some(59),
                    etag: Some("\"1\"".to_owned()),
                }),
                bytes: 10,
                bytes_saved: 5,
                ttfb_ms: Some(1.5),
                total_ms: 2.5,
            },
            attempts: 1,
            source: Source {
                kafka_timestamp: Some(1),
                publish_time: Some(Timestamp::UNIX_EPOCH),
                delivery_attempt: Some(1),
            },
            finished_at: Timestamp::UNIX_EPOCH,
        }
    }

    /// Every path of the JSON object, nested ones with a dot.
    fn paths(value: &serde_json::Value, at: &str) -> Vec<String> {
        let Some(object) = value.as_object() else { return vec![at.to_owned()] };
        let mut all: Vec<String> = object
            .iter()
            .flat_map(|(name, value)| {
                paths(value, &if at.is_empty() { name.clone() } else { format!("{at}.{name}") })
            })
            .collect();
        all.sort();
        all
    }

    #[test]
    fn the_schema_names_exactly_the_fields_of_an_outcome() {
        let schema: serde_json::Value =
            serde_json::from_str(include_str!("../schemas/outcome.schema.json")).unwrap();
        let mut described = Vec::new();
        for (name, property) in schema["properties"].as_object().unwrap() {
            match property["properties"].as_object() {
                Some(nested) => described.extend(nested.keys().map(|inner| format!("{name}.{inner}"))),
                None => described.push(name.clone()),
            }
        }
        described.sort();
        assert_eq!(paths(&serde_json::to_value(full()).unwrap(), ""), described);
    }

    #[test]
    fn the_schema_lists_every_verdict() {
        let schema: serde_json::Value =
            serde_json::from_str(include_str!("../schemas/outcome.schema.json")).unwrap();
        let words: Vec<&str> = schema["properties"]["verdict"]["enum"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|word| word.as_str())
            .collect();
        let all = [
            Verdict::Warm,
            Verdict::Filled,
            Verdict::Fetched(Unproven::NoEvidence),
            Verdict::Stale,
            Verdict::ShieldOnly,
            Verdict::Uncacheable(Obstacle::NoStore),
            Verdict::WrongVersion(String::new()),
            Verdict::WrongPop(String::new()),
            Verdict::Refused(String::new()),
            Verdict::Failed(crate::verdict::Failure::Dns),
        ];
        assert_eq!(all.map(|verdict| verdict.word()).to_vec(), words);
    }
}
