//! The Kafka side of a setup: that the credentials work and the topic is there, before anything is built on them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::bail;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::kafka::admin;
use crate::kafka::env::KafkaEnv;

const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// The topic that the bridge will read.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) env_file: PathBuf,
    pub(super) topic: String,
    pub(super) create: bool,
    pub(super) partitions: u16,
    pub(super) replication: u16,
}

impl Wanted {
    /// What must hold.
    pub(super) fn fields(&self) -> Value {
        json!({ "exists": true })
    }

    /// Logs in, and looks for the topic. None where it is not there and may be made.
    ///
    /// # Errors
    /// No login, no answer, or no topic that may be made.
    pub(super) async fn read(&self, stop: &CancellationToken) -> anyhow::Result<Option<Value>> {
        let env = self.env()?;
        if admin::topic_exists(&env, &self.topic, ANSWER_LIMIT, stop).await? {
            return Ok(Some(json!({ "exists": true })));
        }
        if !self.create {
            bail!(
                "Kafka topic {} does not exist on the cluster of {}: check kafka.topic, create it, or set \
                 kafka.create-topic = true",
                self.topic,
                self.env_file.display()
            );
        }
        Ok(None)
    }

    /// Makes the topic.
    ///
    /// # Errors
    /// What the cluster says against it.
    pub(super) async fn create(&self) -> anyhow::Result<()> {
        admin::create_topic(&self.env()?, &self.topic, self.partitions, self.replication).await
    }

    fn env(&self) -> anyhow::Result<KafkaEnv> {
        KafkaEnv::read(Path::new(&self.env_file))
    }
}
