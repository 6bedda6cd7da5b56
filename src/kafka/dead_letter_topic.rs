//! A topic that takes records which can go nowhere else: looked at once at start, then one record at a time.

use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use tokio_util::sync::CancellationToken;

use super::Record;
use super::client::{ClientEvents, wait_for_topic};
use super::native::may_write;

/// How long librdkafka tries to write one record before it says why it cannot.
const WRITE_LIMIT: Duration = Duration::from_secs(10);
/// How long one question to the cluster may take.
const CALL_LIMIT: Duration = Duration::from_secs(5);
/// How long the producer's good-bye is waited for: all of a stop has to be over within 10 s.
const GOODBYE_LIMIT: Duration = Duration::from_millis(300);

/// Which topic, and how to reach it.
pub(crate) struct DeadLetterConfig {
    /// kafka-env's properties of a producer.
    pub(crate) client: ClientConfig,
    pub(crate) topic: String,
    /// How long to wait at start for a broker.
    pub(crate) timeout: Duration,
    /// The kafka-env file's name, for messages.
    pub(crate) source: String,
}

/// Writes records to one topic.
pub(crate) struct DeadLetterTopic {
    name: String,
    /// None while it is dropped.
    producer: Option<FutureProducer<ClientEvents>>,
}

/// Why the topic did not take a record.
#[derive(Debug)]
pub(crate) enum NotWritten {
    /// It never will.
    Refused(String),
    /// It may later.
    Failed(String),
}

impl DeadLetterTopic {
    /// Checks that the topic is there and may be written to, then makes the producer.
    ///
    /// The topic is never made by asking for it, whatever `auto.create.topics.enable` says on the brokers.
    ///
    /// # Errors
    /// As for [`wait_for_topic`], no right to write where the cluster tells, and a configuration that librdkafka refuses.
    pub(crate) async fn open(config: DeadLetterConfig, stop: CancellationToken) -> anyhow::Result<Self> {
        // librdkafka's questions block.
        tokio::task::spawn_blocking(move || {
            check(&config, &stop)?;
            let DeadLetterConfig { client, topic, source, .. } = config;
            let producer = producer_of(client).create_with_context(ClientEvents::default());
            let producer = producer
                .with_context(|| format!("making a Kafka producer for dead letters from {source}"))?;
            Ok(Self { name: topic, producer: Some(producer) })
        })
        .await
        .context("the check of the dead letter topic panicked")?
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Writes a record as it was, with `more` headers behind its own; once this returns, every replica in sync has it. A
    /// record that failed may have been written all the same.
    ///
    /// # Errors
    /// What the broker, or librdkafka, has against it.
    pub(crate) async fn write(&self, record: &Record, more: &[(&str, String)]) -> Result<(), NotWritten> {
        let Some(producer) = &self.producer else { return Err(NotWritten::Failed("closed".to_owned())) };
        let own = record.headers.iter().map(|header| (header.name.as_str(), header.value.as_deref()));
        let more = more.iter().map(|(name, value)| (*name, Some(value.as_bytes())));
        let headers =
            own.chain(more).fold(OwnedHeaders::new(), |all, (key, value)| all.insert(Header { key, value }));
        let mut written = FutureRecord::<[u8], [u8]>::to(&self.name).headers(headers);
        written.key = record.key.as_deref();
        written.payload = record.value.as_deref();
        match producer.send(written, WRITE_LIMIT).await {
            Ok(_) => Ok(()),
            Err((error, _)) => Err(match error.rdkafka_error_code() {
                Some(
                    RDKafkaErrorCode::MessageSizeTooLarge
                    | RDKafkaErrorCode::InvalidRecord
                    | RDKafkaErrorCode::InvalidMessageSize,
                ) => NotWritten::Refused(error.to_string()),
                _ => NotWritten::Failed(error.to_string()),
            }),
        }
    }
}

impl Drop for DeadLetterTopic {
    /// librdkafka's good-bye may take long where the cluster is away: it is not waited for to its end.
    fn drop(&mut self) {
        let producer = self.producer.take();
        let (gone, wait) = mpsc::sync_channel::<()>(0);
        let goodbye = move || {
            drop(producer);
            drop(gone);
        };
        if std::thread::Builder::new().name("kafka-goodbye".to_owned()).spawn(goodbye).is_ok() {
            let _ = wait.recv_timeout(GOODBYE_LIMIT);
        }
    }
}

/// # Errors
/// As for [`DeadLetterTopic::open`].
fn check(config: &DeadLetterConfig, stop: &CancellationToken) -> anyhow::Result<()> {
    let DeadLetterConfig { client, topic, timeout, source } = config;
    let mut client = client.clone();
    // A producer's question may make the topic; a consumer's does not, and outside of a group it does nothing else.
    client.set("allow.auto.create.topics", "false").remove("group.id");
    let consumer: BaseConsumer<ClientEvents> = client
        .create_with_context(ClientEvents::default())
        .with_context(|| format!("making a Kafka client from {source}"))?;
    let events = consumer.context().clone();
    let hear_events = |time: Duration| drop(consumer.poll(time));
    wait_for_topic(consumer.client(), hear_events, &events, topic, source, *timeout, stop)?;
    let broker = consumer.fetch_metadata(Some(topic), CALL_LIMIT).map(|metadata| metadata.orig_broker_id());
    // A cluster that does not tell has its say at the first dead letter.
    if let Ok(broker) = broker
        && may_write(&consumer, broker, topic, CALL_LIMIT) == Some(false)
    {
        bail!("no right to write to Kafka topic {topic}: the user in {source} needs the Write right on it");
    }
    Ok(())
}

/// kafka-env's properties with what a dead letter needs.
fn producer_of(mut client: ClientConfig) -> ClientConfig {
    // The same properties by their other names.
    client.remove("delivery.timeout.ms").remove("request.required.acks");
    client.set("message.timeout.ms", WRITE_LIMIT.as_millis().to_string());
    // What one broker has, and then loses, would be lost: its offset is committed.
    client.set("acks", "all");
    // The largest record that any broker takes; what its topic takes, the broker says.
    client.set("message.max.bytes", "1000000000");
    client
}
