//! `cdnwarm bridge`: every record of a Kafka topic becomes a Pub/Sub message, at least once, whatever dies and whenever.
//!
//! A record's way: `kafka::consumer` -> [`batch`] and [`message`], which put it into a publish request -> [`forward`],
//! which has it accepted (`pubsub::Publish`, [`retry`], `adaptive_limit`) or brings it to [`dead_letter`] (which writes a
//! [`letter`]) -> its receipt back to the consumer, which commits it. Order is not kept.

mod batch;
mod dead_letter;
mod forward;
mod letter;
mod message;
mod metrics;
mod parts;
mod retry;

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio_util::sync::CancellationToken;

use crate::http::MetricsArgs;
use crate::kafka::ConsumerArgs;
use crate::kafka::consumer::{BatchLimits, Consumer, ConsumerConfig};
use crate::kafka::dead_letter_topic::{DeadLetterConfig, DeadLetterTopic};
use crate::kafka::env::KafkaEnv;
use crate::kafka::metrics::ConsumerConditions;
use crate::pubsub::{Connection, GrpcPublisher, PubsubArgs, TopicName};
use crate::telemetry::health::{Condition, Health};
use crate::telemetry::metrics::registry;
use crate::telemetry::status::StatusLine;
use crate::usage::UsageError;
use batch::{Encoder, MAX_MESSAGES};
use dead_letter::{DeadLetterPlace, DeadLetters, Target};
use forward::Forwarder;
use metrics::BridgeMetrics;

/// How long a stop may take in all; what is not accepted downstream by then is delivered again by the next start.
const STOP_LIMIT: Duration = Duration::from_millis(9_500);

/// A batch goes out at this size, well under the 10 MB that Pub/Sub takes: a larger one costs no less for each byte, but
/// holds more memory and arrives later. Only a single record may be larger.
const MAX_BATCH_BYTES: usize = 1 << 20;
/// With packs of short values it may hold this many records: what is in flight is bounded in records, too.
const MAX_PACKED_RECORDS: usize = 20_000;

/// Arguments of `cdnwarm bridge`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    consumer: ConsumerArgs,

    /// Pub/Sub topic, written projects/PROJECT/topics/TOPIC
    #[arg(value_name = "PUBSUB_TOPIC", env = "CDNWARM_PUBSUB_TOPIC")]
    pubsub_topic: TopicName,

    /// Where records go that no message can carry: projects/PROJECT/topics/TOPIC, or a topic of the same Kafka cluster
    ///
    /// Without one they are logged, up to 64 KiB of each, credentials among their headers left out.
    #[arg(long, value_name = "TOPIC", env = "CDNWARM_DEAD_LETTER")]
    dead_letter: Option<DeadLetterPlace>,

    /// Put up to N consecutive URLs of a partition that have the same options into one message; 1 is off
    ///
    /// One push then warms N URLs, for the price of one request. `serve` warms eight of them at once and all within its
    /// --timeout, so N / 8 times the seconds that one URL takes must stay below that and below the subscription's ack deadline.
    #[arg(long, value_name = "N", default_value_t = 1, env = "CDNWARM_PACK",
          value_parser = clap::value_parser!(u16).range(1..=1000))]
    pack: u16,

    /// Milliseconds that a record waits for others to share its publish call
    #[arg(long, value_name = "MS", default_value_t = 10, env = "CDNWARM_LINGER_MS",
          value_parser = clap::value_parser!(u16).range(..=10_000))]
    linger_ms: u16,

    #[command(flatten)]
    metrics: MetricsArgs,

    #[command(flatten)]
    pubsub: PubsubArgs,

    /// No status line: the demo has its own.
    #[arg(skip)]
    quiet: bool,
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
            consumer: ConsumerArgs::new(kafka_env, kafka_topic),
            pubsub_topic: pubsub_topic.parse().map_err(anyhow::Error::msg)?,
            dead_letter: None,
            pack: 1,
            linger_ms: 10,
            metrics: MetricsArgs::default(),
            pubsub: PubsubArgs { pubsub_emulator_host: Some(pubsub.to_string()), ..PubsubArgs::default() },
            quiet: true,
        })
    }

    /// What to consume and where dead letters go; everything in the kafka-env file is checked here, before the first
    /// socket opens.
    fn checked(&self) -> anyhow::Result<(ConsumerConfig, Letters)> {
        let batches = BatchLimits {
            records: if self.pack > 1 { MAX_PACKED_RECORDS } else { MAX_MESSAGES },
            bytes: MAX_BATCH_BYTES,
            linger: Duration::from_millis(self.linger_ms.into()),
            own_receipts: false,
        };
        let config = self.consumer.config(batches)?;
        let letters = match &self.dead_letter {
            Some(DeadLetterPlace::Kafka(topic)) if *topic == config.topic => {
                bail!(
                    "--dead-letter {topic} is the topic that is read: its dead letters would come round for ever"
                )
            }
            Some(DeadLetterPlace::Pubsub(topic)) if *topic == self.pubsub_topic => {
                bail!(
                    "--dead-letter {topic} is the topic that is published to: subscribers would get dead letters"
                )
            }
            Some(DeadLetterPlace::Kafka(topic)) => {
                let env = KafkaEnv::read(&self.consumer.kafka.kafka_env)?;
                Letters::Kafka(DeadLetterConfig {
                    client: env.producer()?,
                    topic: topic.clone(),
                    timeout: self.consumer.kafka.timeout(),
                    source: env.path().display().to_string(),
                })
            }
            Some(DeadLetterPlace::Pubsub(topic)) => Letters::Pubsub(topic.clone()),
            None => Letters::Log,
        };
        Ok((config, letters))
    }
}

/// Moves records until `stop`, then finishes what is in flight, commits and leaves the group within 10 s.
///
/// # Errors
/// A configuration that cannot be meant, whatever ends the consumer (broker, topic or rights missing, offsets lost), and a
/// consumer that stopped polling. What Pub/Sub refuses for now is waited for and is no error.
pub(crate) async fn run(args: Args, stop: CancellationToken) -> anyhow::Result<()> {
    let (config, letters) = args.checked().map_err(UsageError::new)?;
    let health = Health::default();
    let mut registry = registry(&health);
    let metrics = BridgeMetrics::register(&mut registry, &config.topic);
    // Named from the start, so that the endpoint says what is missing.
    let conditions = Conditions::of(&health);
    let _shown_until_the_end = args.metrics.show(registry, health.clone()).await?;
    let _status = (!args.quiet).then(|| {
        let (metrics, health) = (metrics.clone(), health.clone());
        StatusLine::start(move || metrics.status(&health))
    });
    let opened = async {
        let connection = Connection::open(&args.pubsub).await?;
        let publisher = GrpcPublisher::new(connection.clone(), args.pubsub_topic.clone());
        publisher.check_topic().await?;
        let target = letters.open(connection, stop.clone()).await.context("--dead-letter")?;
        anyhow::Ok((publisher, target))
    };
    let (publisher, target) = tokio::select! {
        opened = opened => opened?,
        () = stop.cancelled() => return Ok(()),
    };
    conditions.pubsub.ok();
    conditions.dead_letter.ok();
    tracing::info!(kafka_topic = config.topic, pubsub_topic = %args.pubsub_topic, "bridge started");

    let topic = config.topic.clone();
    let encoder = Encoder::new(&topic, args.pubsub_topic.clone(), args.pack.into());
    let mut consumer = Consumer::start(config, stop.clone())?;
    let watch = consumer.watch();
    let letters = DeadLetters::new(topic, target, metrics.clone(), conditions.dead_letter);
    let commit = consumer.commit_handle();
    let forwarder =
        Forwarder::new(args.pubsub_topic, publisher, letters, commit, metrics.clone(), conditions.pubsub);
    let work = async {
        forwarder.run(&mut consumer, encoder).await;
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
        stalled = metrics.consumer().follow(&watch, &conditions.consumer) => Err(stalled),
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

/// Where dead letters are to go, checked for form.
enum Letters {
    Pubsub(TopicName),
    Kafka(DeadLetterConfig),
    Log,
}

impl Letters {
    /// Looks whether the topic is there.
    ///
    /// # Errors
    /// A topic that is missing, or not ours to use, where the account or user may know that.
    async fn open(self, connection: Connection, stop: CancellationToken) -> anyhow::Result<Target> {
        Ok(match self {
            Self::Log => Target::Log,
            Self::Pubsub(topic) => {
                let publisher = GrpcPublisher::new(connection, topic);
                publisher.check_topic().await?;
                Target::Pubsub(publisher)
            }
            Self::Kafka(config) => Target::Kafka(DeadLetterTopic::open(config, stop).await?),
        })
    }
}

/// What must hold for a bridge to do its work.
struct Conditions {
    consumer: ConsumerConditions,
    pubsub: Condition,
    dead_letter: Condition,
}

impl Conditions {
    fn of(health: &Health) -> Self {
        Self {
            consumer: ConsumerConditions::of(health),
            pubsub: health.condition("pubsub"),
            dead_letter: health.condition("dead-letter"),
        }
    }
}
