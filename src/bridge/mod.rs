//! `cdnwarm bridge`: every record of a Kafka topic becomes a Pub/Sub message, at least once, whatever dies and whenever.
//!
//! A record's way: `kafka::consumer` -> [`message`] -> [`forward`] -> `pubsub::Publish` -> its receipt back to the
//! consumer, which commits it. Order is not kept.

mod forward;
mod message;
#[allow(dead_code, reason = "not wired yet")]
mod metrics;

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::kafka::KafkaArgs;
use crate::kafka::consumer::{Consumer, ConsumerConfig};
use crate::kafka::env::KafkaEnv;
use crate::pubsub::{Connection, GrpcPublisher, PubsubArgs, TopicName};
use crate::usage::UsageError;
use forward::Forwarder;

/// How long a stop may take in all; what is not accepted downstream by then is delivered again by the next start.
const STOP_LIMIT: Duration = Duration::from_millis(9_500);

/// Arguments of `cdnwarm bridge`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    kafka: KafkaArgs,

    /// Pub/Sub topic, written projects/PROJECT/topics/TOPIC
    #[arg(value_name = "PUBSUB_TOPIC", env = "CDNWARM_PUBSUB_TOPIC")]
    pubsub_topic: TopicName,

    #[command(flatten)]
    pubsub: PubsubArgs,
}

impl Args {
    /// From a kafka-env file to an embedded Pub/Sub.
    ///
    /// # Errors
    /// A topic's name that is none.
    pub(crate) fn for_demo(
        kafka_env: &Path,
        kafka_topic: &str,
        pubsub_topic: &str,
        pubsub: SocketAddr,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            kafka: KafkaArgs::new(kafka_env, kafka_topic),
            pubsub_topic: pubsub_topic.parse().map_err(anyhow::Error::msg)?,
            pubsub: PubsubArgs { pubsub_emulator_host: Some(pubsub.to_string()), ..PubsubArgs::default() },
        })
    }

    /// What to consume; everything in the kafka-env file is checked here, before the first socket opens.
    fn consumer(&self) -> anyhow::Result<ConsumerConfig> {
        let env = KafkaEnv::read(&self.kafka.kafka_env)?;
        Ok(ConsumerConfig {
            client: env.consumer()?,
            topic: self.kafka.topic.clone(),
            reset: false,
            timeout: self.kafka.timeout(),
            source: env.path().display().to_string(),
        })
    }
}

/// Moves records until `stop`, then finishes what is in flight, commits and leaves the group within 10 s.
///
/// # Errors
/// A configuration that cannot be meant, and whatever ends the consumer: broker, topic or rights missing. What
/// Pub/Sub refuses for now is waited for and is no error.
pub(crate) async fn run(args: Args, stop: CancellationToken) -> anyhow::Result<()> {
    let config = args.consumer().map_err(UsageError::new)?;
    let opened = async {
        let connection = Connection::open(&args.pubsub).await?;
        let publisher = GrpcPublisher::new(connection, args.pubsub_topic.clone());
        publisher.check_topic().await?;
        anyhow::Ok(publisher)
    };
    let publisher = tokio::select! {
        publisher = opened => publisher?,
        () = stop.cancelled() => return Ok(()),
    };
    tracing::info!(kafka_topic = config.topic, pubsub_topic = %args.pubsub_topic, "bridge started");

    let topic = config.topic.clone();
    let mut consumer = Consumer::start(config, stop.clone())?;
    let forwarder = Forwarder::new(topic, publisher, consumer.acknowledger());
    let work = async {
        forwarder.run(&mut consumer).await;
        consumer.ended().await
    };
    let late = async {
        stop.cancelled().await;
        tokio::time::sleep(STOP_LIMIT).await;
    };
    let ended = tokio::select! {
        ended = work => ended,
        () = late => {
            tracing::warn!("stopped in the middle of its work: records not accepted yet will be delivered again");
            Ok(())
        }
    };
    let counts = forwarder.counts();
    tracing::info!(
        published = counts.published,
        undeliverable = counts.undeliverable,
        dropped_headers = counts.dropped_headers,
        "bridge stopped: {} records published, {} undeliverable",
        counts.published,
        counts.undeliverable
    );
    match ended {
        // A stop during start-up is a stop, not a failure.
        Err(error) if stop.is_cancelled() => {
            tracing::warn!("while stopping: {error:#}");
            Ok(())
        }
        ended => ended,
    }
}
