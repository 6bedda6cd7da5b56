//! Kafka, as the roles use it: what a [`Record`] is, the arguments that name a cluster, and the start-up check.
//!
//! `env` reads the kafka-env file, `consumer` reads records with exact offsets (`group` and `offsets` are its parts),
//! `client` hears what librdkafka says on its own account. Nothing here knows Pub/Sub or HTTP.

pub(crate) mod client;
pub(crate) mod consumer;
pub(crate) mod env;
mod group;
mod offsets;

use std::path::{Path, PathBuf};
use std::time::Duration;

pub(crate) use offsets::Receipt;

/// Which cluster and topic, as every Kafka role takes them.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct KafkaArgs {
    /// File with the librdkafka properties of the cluster, in its sections default and consumer; see kafka-env.example
    #[arg(value_name = "KAFKA_ENV", env = "CDNWARM_KAFKA_ENV")]
    pub(crate) kafka_env: PathBuf,

    /// Kafka topic
    #[arg(value_name = "TOPIC", env = "CDNWARM_KAFKA_TOPIC")]
    pub(crate) topic: String,

    /// Seconds to wait at start for a broker to answer
    #[arg(long, value_name = "SECONDS", default_value_t = 30, env = "CDNWARM_KAFKA_TIMEOUT",
          value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) kafka_timeout: u16,
}

impl KafkaArgs {
    /// With defaults for all else.
    pub(crate) fn new(kafka_env: &Path, topic: &str) -> Self {
        Self { kafka_env: kafka_env.to_owned(), topic: topic.to_owned(), kafka_timeout: 30 }
    }

    /// How long to wait at start for a broker to answer.
    pub(crate) fn timeout(&self) -> Duration {
        Duration::from_secs(self.kafka_timeout.into())
    }
}

/// What Kafka holds: one value with its options, and where it stands.
#[derive(Debug)]
pub(crate) struct Record {
    /// Where it stands; given back once it is done.
    pub(crate) receipt: Receipt,
    /// When it was produced (or appended, as the topic is set), Unix milliseconds.
    pub(crate) timestamp_ms: Option<i64>,
    pub(crate) key: Option<Vec<u8>>,
    /// None is a tombstone.
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) headers: Vec<Header>,
}

/// One header of a record; the same name may come more than once.
#[derive(Debug)]
pub(crate) struct Header {
    pub(crate) name: String,
    pub(crate) value: Option<Vec<u8>>,
}

impl Record {
    /// What it takes of memory, roughly: what bounds on bytes in flight count.
    fn size_bytes(&self) -> usize {
        let optional = |bytes: &Option<Vec<u8>>| bytes.as_ref().map_or(0, Vec::len);
        let headers: usize = self.headers.iter().map(|h| h.name.len() + optional(&h.value)).sum();
        size_of::<Self>() + optional(&self.key) + optional(&self.value) + headers
    }
}
