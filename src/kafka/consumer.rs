//! One member of a consumer group on a thread of its own: records go out in chunks, offsets follow what is done.
//!
//! The thread polls whatever happens downstream, so that the group never drops it: where the role does not keep up,
//! partitions are paused. librdkafka's callbacks and its sometimes long good-bye never touch the async runtime.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::client::wait_for_topic;
use super::group::{Group, Start, commit_done, store_done};
use super::offsets::Offsets;
use super::{Receipt, Record};

/// A chunk goes out as soon as there is room; while there is none it grows up to these.
const CHUNK_RECORDS: usize = 1_000;
const CHUNK_BYTES: usize = 3 << 20;
/// How many chunks wait between the thread and the role.
const CHUNKS_WAITING: usize = 1;
/// Without room for this long, partitions are paused. Pausing drops what was fetched ahead, so not at once.
const PAUSE_AFTER: Duration = Duration::from_secs(1);
/// How long a poll may wait, which is also how soon a finished record's offset is stored.
const POLL: Duration = Duration::from_millis(50);
/// How long a stop waits for records in flight.
const STOP_LIMIT: Duration = Duration::from_secs(7);

/// What to consume, and as whom.
pub(crate) struct ConsumerConfig {
    pub(crate) client: ClientConfig,
    pub(crate) topic: String,
    /// Start at the beginning of every partition on its first assignment.
    pub(crate) reset: bool,
    /// How long to wait at start for a broker.
    pub(crate) timeout: Duration,
    /// The kafka-env file's name, for messages.
    pub(crate) source: String,
}

/// The role's end: records to receive, receipts to give back.
pub(crate) struct Consumer {
    chunks: mpsc::Receiver<Vec<Record>>,
    offsets: Arc<Offsets>,
    ended: oneshot::Receiver<anyhow::Result<()>>,
}

/// Gives receipts back; cheap to clone.
#[derive(Clone)]
pub(crate) struct Done(Arc<Offsets>);

impl Done {
    /// Without a consumer, for tests of who gives receipts back.
    #[cfg(test)]
    pub(crate) fn to(offsets: Arc<Offsets>) -> Self {
        Self(offsets)
    }

    /// Notes that these records are accepted downstream: the offsets at and below them may be committed.
    pub(crate) fn done(&self, receipts: impl IntoIterator<Item = Receipt>) {
        self.0.done(receipts);
    }
}

impl Consumer {
    /// Joins the group on a new thread. Connection problems come out of [`Consumer::ended`].
    ///
    /// # Errors
    /// Where the thread cannot be started.
    pub(crate) fn start(config: ConsumerConfig, stop: CancellationToken) -> anyhow::Result<Self> {
        let (sender, chunks) = mpsc::channel(CHUNKS_WAITING);
        let (result, ended) = oneshot::channel();
        let offsets = Arc::new(Offsets::default());
        let runtime = tokio::runtime::Handle::current();
        let thread_offsets = offsets.clone();
        // A plain thread: the runtime would wait for one of its own blocking threads at the end of the process.
        std::thread::Builder::new()
            .name("kafka-consumer".to_owned())
            .spawn(move || {
                let outcome =
                    Member::join(config, thread_offsets, sender, runtime, stop).and_then(Member::run);
                // Nobody listens any more only where the role is gone already.
                let _ = result.send(outcome);
            })
            .context("starting the Kafka thread")?;
        Ok(Self { chunks, offsets, ended })
    }

    /// The next records, of any partitions; none once the consumer stops. Cancel safe.
    pub(crate) async fn next(&mut self) -> Option<Vec<Record>> {
        self.chunks.recv().await
    }

    /// Where to give receipts back.
    pub(crate) fn acknowledger(&self) -> Done {
        Done(self.offsets.clone())
    }

    /// Waits until offsets are committed and the group is left. To be called once [`Consumer::next`] has ended and
    /// the role is done with its records.
    ///
    /// # Errors
    /// What ended the consumer, if it was not the stop token.
    pub(crate) async fn ended(self) -> anyhow::Result<()> {
        drop(self.chunks);
        self.ended.await.context("the Kafka thread panicked")?
    }
}

struct Member {
    consumer: BaseConsumer<Group>,
    topic: String,
    source: String,
    offsets: Arc<Offsets>,
    chunks: mpsc::Sender<Vec<Record>>,
    runtime: tokio::runtime::Handle,
    stop: CancellationToken,
    chunk: Vec<Record>,
    chunk_bytes: usize,
}

impl Member {
    fn join(
        config: ConsumerConfig,
        offsets: Arc<Offsets>,
        chunks: mpsc::Sender<Vec<Record>>,
        runtime: tokio::runtime::Handle,
        stop: CancellationToken,
    ) -> anyhow::Result<Self> {
        let start = Start::from_property(config.client.get("auto.offset.reset"));
        let mut client = config.client;
        // Every partition has a committed offset once it is assigned. What is left of this property is the case that the
        // committed offset is no longer in the topic, where `latest` would skip what still is.
        if start != Start::Refuse {
            client.set("auto.offset.reset", "earliest");
        }
        let group = Group::new(offsets.clone(), start, config.reset, stop.clone());
        let consumer: BaseConsumer<Group> = client
            .create_with_context(group)
            .with_context(|| format!("making a Kafka consumer from {}", config.source))?;
        let events = &consumer.context().events;
        // Nothing is subscribed yet, so a poll brings events alone.
        let hear_events = |time: Duration| {
            let until = Instant::now() + time;
            while let Some(left) = until.checked_duration_since(Instant::now()) {
                consumer.poll(left);
            }
        };
        let (topic, source) = (&config.topic, &config.source);
        wait_for_topic(consumer.client(), hear_events, events, topic, source, config.timeout, &stop)?;
        consumer.subscribe(&[&config.topic]).with_context(|| format!("subscribing to {}", config.topic))?;
        let ConsumerConfig { topic, source, .. } = config;
        Ok(Self {
            consumer,
            topic,
            source,
            offsets,
            chunks,
            runtime,
            stop,
            chunk: Vec::new(),
            chunk_bytes: 0,
        })
    }

    /// Polls until stopped, then lets the role finish, commits and leaves the group.
    fn run(mut self) -> anyhow::Result<()> {
        let result = self.poll_until_stopped();
        let Self { consumer, offsets, chunks, .. } = self;
        drop(chunks);
        let left = offsets.wait_idle(None, STOP_LIMIT);
        if left > 0 {
            tracing::warn!(records = left, "stopped with records in flight; they will be delivered again");
        }
        if let Ok(assignment) = consumer.assignment() {
            commit_done(&consumer, &offsets, &assignment);
        }
        consumer.context().closing.store(true, Ordering::Relaxed);
        drop(consumer);
        result
    }

    fn poll_until_stopped(&mut self) -> anyhow::Result<()> {
        while !self.stop.is_cancelled() && !self.chunks.is_closed() {
            if let Some(failure) = self.consumer.context().take_failure() {
                return Err(failure);
            }
            store_done(&self.consumer, &self.offsets, &self.topic);
            if self.is_full() {
                self.wait_for_room()?;
            } else {
                self.fill(if self.chunk.is_empty() { POLL } else { POLL / 5 })?;
            }
            self.send_if_room();
        }
        Ok(())
    }

    fn is_full(&self) -> bool {
        self.chunk.len() >= CHUNK_RECORDS || self.chunk_bytes >= CHUNK_BYTES
    }

    /// Waits for one record, then takes what else is there already.
    fn fill(&mut self, wait: Duration) -> anyhow::Result<()> {
        let mut wait = wait;
        while !self.is_full() {
            match self.consumer.poll(wait) {
                None => break,
                Some(Err(error)) => {
                    explain(error, &self.topic, &self.source)?;
                    break;
                }
                Some(Ok(message)) => {
                    keep(&message, &self.offsets, &mut self.chunk, &mut self.chunk_bytes, &self.consumer);
                }
            }
            wait = Duration::ZERO;
        }
        Ok(())
    }

    fn send_if_room(&mut self) {
        if self.chunk.is_empty() {
            return;
        }
        if let Ok(room) = self.chunks.try_reserve() {
            let mut chunk = std::mem::take(&mut self.chunk);
            self.chunk_bytes = 0;
            // A rebalance may have taken partitions away since the records were read.
            chunk.retain(|record| self.offsets.deliver(record.receipt));
            if !chunk.is_empty() {
                room.send(chunk);
            }
        }
    }

    /// Waits for room in the channel; after a while with paused partitions and polling, as the group demands.
    fn wait_for_room(&mut self) -> anyhow::Result<()> {
        let started = Instant::now();
        let mut paused = false;
        while !self.stop.is_cancelled() && !self.chunks.is_closed() {
            let slice = if paused { Duration::ZERO } else { POLL };
            let reserve = async { tokio::time::timeout(slice, self.chunks.reserve()).await.is_ok() };
            if self.runtime.block_on(reserve) {
                break;
            }
            store_done(&self.consumer, &self.offsets, &self.topic);
            if started.elapsed() < PAUSE_AFTER {
                continue;
            }
            if !paused {
                tracing::info!("downstream does not keep up; partitions paused");
            }
            // Again each time: a rebalance may have brought partitions that are not paused yet.
            let assignment = self.consumer.assignment().context("reading the assignment")?;
            self.consumer.pause(&assignment).context("pausing partitions")?;
            paused = true;
            match self.consumer.poll(POLL) {
                None => {}
                Some(Err(error)) => explain(error, &self.topic, &self.source)?,
                // Fetched for a partition that was assigned a moment ago, before the pause reached it.
                Some(Ok(message)) => {
                    keep(&message, &self.offsets, &mut self.chunk, &mut self.chunk_bytes, &self.consumer);
                }
            }
            if let Some(failure) = self.consumer.context().take_failure() {
                return Err(failure);
            }
        }
        if paused {
            let assignment = self.consumer.assignment().context("reading the assignment")?;
            self.consumer.resume(&assignment).context("resuming partitions")?;
            tracing::info!("partitions resumed");
        }
        Ok(())
    }
}

/// Goes on after what passes by itself, and ends with an explanation after what does not.
fn explain(error: KafkaError, topic: &str, source: &str) -> anyhow::Result<()> {
    let code = error.rdkafka_error_code();
    match code {
        Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => {
            bail!("Kafka topic {topic} is gone from the cluster of {source}")
        }
        Some(RDKafkaErrorCode::TopicAuthorizationFailed) => {
            bail!("no access to Kafka topic {topic}: the user in {source} needs the Read right on it")
        }
        Some(RDKafkaErrorCode::GroupAuthorizationFailed) => {
            bail!(
                "no access to the consumer group: the user in {source} needs the Read right on its group.id"
            )
        }
        Some(RDKafkaErrorCode::AutoOffsetReset) => {
            bail!("{topic}: {error}; the committed offset is gone from the topic and auto.offset.reset=error")
        }
        _ if matches!(error, KafkaError::MessageConsumptionFatal(_)) => {
            bail!("Kafka ended the consumer: {error}")
        }
        // Broker away, coordinator moving, connection lost: librdkafka reconnects, and `ClientEvents` has logged why.
        _ => {
            tracing::debug!("kafka: {error}");
            Ok(())
        }
    }
}

/// Adds a record to the chunk, unless its partition is no longer ours: then its new owner reads it.
fn keep(
    message: &BorrowedMessage<'_>,
    offsets: &Offsets,
    chunk: &mut Vec<Record>,
    chunk_bytes: &mut usize,
    consumer: &BaseConsumer<Group>,
) {
    let (topic, partition, offset) = (message.topic(), message.partition(), message.offset());
    let Some(read) = offsets.read(partition, offset) else { return };
    if let Some(before) = read.went_back_from {
        tracing::error!(
            "offsets of {topic}/{partition} went back from {before} to {offset}: the topic was made anew or its log \
             truncated; going on from {offset}"
        );
        let mut start = TopicPartitionList::new();
        let committed = start
            .add_partition_offset(topic, partition, Offset::Offset(offset))
            .and_then(|()| consumer.commit(&start, CommitMode::Async));
        if let Err(error) = committed {
            tracing::warn!("committing where {topic}/{partition} goes on: {error}");
        }
    }
    let record = Record::new(message, read.receipt);
    *chunk_bytes += record.size_bytes();
    chunk.push(record);
}
