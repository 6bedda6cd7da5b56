//! Kafka, as the roles use it: records with their offsets, and the arguments that name a cluster.
//!
//! `env` reads the kafka-env file. `consumer` is a member of a consumer group: it gives batches of `record`s, finds where
//! partitions start (`start_offsets`, `group_metadata`), commits what `offsets` allows, and goes on behind a
//! `corrupt_batch`; `metrics` is what an operator sees of it. `admin` looks for a topic and makes it, `dead_letter_topic`
//! writes single records, `client` hears what librdkafka says on its own account and waits for a
//! cluster at start. `native` is where librdkafka's own functions are called. Nothing here knows Pub/Sub or HTTP.

pub(crate) mod admin;
pub(crate) mod client;
pub(crate) mod consumer;
mod corrupt_batch;
pub(crate) mod dead_letter_topic;
pub(crate) mod env;
mod group_metadata;
pub(crate) mod metrics;
mod native;
mod offsets;
mod record;
mod start_offsets;

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::builder::BoolishValueParser;

pub(crate) use consumer::{RecordBatch, SkippedRange};
#[cfg(test)]
pub(crate) use offsets::Offsets;
pub(crate) use offsets::{Receipt, Receipts};
pub(crate) use record::{Header, Headers, Record, RecordRef};
pub(crate) use start_offsets::OnLostOffsets;

use consumer::{BatchLimits, ConsumerConfig};
use env::KafkaEnv;

/// Which cluster and topic, as every Kafka role takes them.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct KafkaArgs {
    /// File with the librdkafka properties of the cluster, in its sections default and consumer; see kafka-env.example
    #[arg(value_name = "KAFKA_ENV", env = "CDNWARM_KAFKA_ENV")]
    pub(crate) kafka_env: PathBuf,

    /// Kafka topic
    #[arg(value_name = "TOPIC", env = "CDNWARM_KAFKA_TOPIC", value_parser = topic_name)]
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

/// How a role consumes its topic.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ConsumerArgs {
    #[command(flatten)]
    pub(crate) kafka: KafkaArgs,

    /// What to do where records that were not read yet are gone: retention, a truncated log, a topic made anew
    #[arg(long, value_name = "ACTION", value_enum, default_value_t, env = "CDNWARM_ON_LOST_OFFSETS")]
    pub(crate) on_lost_offsets: OnLostOffsets,

    /// Go on behind a record batch that is corrupt in Kafka, reporting its offsets, instead of stopping its partition
    #[arg(long, env = "CDNWARM_SKIP_CORRUPT", value_parser = BoolishValueParser::new())]
    pub(crate) skip_corrupt: bool,

    /// Static membership: an id of its own for each process, kept over restarts, which then cause no rebalance
    #[arg(long, value_name = "ID", env = "CDNWARM_GROUP_INSTANCE_ID")]
    pub(crate) group_instance_id: Option<String>,
}

impl ConsumerArgs {
    /// With defaults for all else.
    pub(crate) fn new(kafka_env: &Path, topic: &str) -> Self {
        Self {
            kafka: KafkaArgs::new(kafka_env, topic),
            on_lost_offsets: OnLostOffsets::default(),
            skip_corrupt: false,
            group_instance_id: None,
        }
    }

    /// What to consume, in which batches; everything in the kafka-env file is checked here.
    ///
    /// # Errors
    /// A kafka-env file that cannot be meant.
    pub(crate) fn config(&self, batches: BatchLimits) -> anyhow::Result<ConsumerConfig> {
        let env = KafkaEnv::read(&self.kafka.kafka_env)?;
        Ok(ConsumerConfig {
            client: env.consumer()?,
            topic: self.kafka.topic.clone(),
            reset: false,
            on_lost_offsets: self.on_lost_offsets,
            skip_corrupt: self.skip_corrupt,
            group_instance_id: self.group_instance_id.clone().filter(|id| !id.is_empty()),
            batches,
            timeout: self.kafka.timeout(),
            source: env.path().display().to_string(),
        })
    }
}

/// Parses the name of a Kafka topic: 1 to 249 ASCII letters, digits, `.`, `_` and `-`, and neither `.` nor `..`, as Kafka's
/// own `Topic.validate` has it.
///
/// # Errors
/// Which names there are.
pub(crate) fn topic_name(text: &str) -> Result<String, String> {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if (1..=249).contains(&text.len()) && text.chars().all(is_allowed) && !matches!(text, "." | "..") {
        Ok(text.to_owned())
    } else {
        Err("a Kafka topic's name has 1 to 249 letters, digits, ., _ and -".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::topic_name;

    #[test]
    fn topic_names_are_those_that_kafka_allows() {
        let (longest, too_long) = ("x".repeat(249), "x".repeat(250));
        for name in ["urls", "a.b_c-D9", "...", longest.as_str()] {
            assert_eq!(topic_name(name).as_deref(), Ok(name));
        }
        for name in ["", ".", "..", "a b", "a/b", "caf\u{e9}", "a\0", too_long.as_str()] {
            assert!(topic_name(name).is_err(), "{name:?}");
        }
    }
}
