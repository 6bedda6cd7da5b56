//! Kafka, as the roles use it: records with their offsets, and the arguments that name a cluster.
//!
//! `env` reads the kafka-env file, `consumer` reads records (`record`) with exact offsets (`group` and `offsets` are its
//! parts), `batch` writes many at once, `client` hears what librdkafka says on its own account and waits for a cluster at
//! start. Nothing here knows Pub/Sub or HTTP.

pub(crate) mod batch;
pub(crate) mod client;
pub(crate) mod consumer;
pub(crate) mod env;
mod group;
mod offsets;
mod record;

use std::path::{Path, PathBuf};
use std::time::Duration;

#[cfg(test)]
pub(crate) use offsets::Offsets;
pub(crate) use offsets::Receipt;
#[cfg(test)]
pub(crate) use record::Header;
pub(crate) use record::Record;

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
