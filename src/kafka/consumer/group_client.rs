//! The Kafka client of a group's member, for one topic, in plain values.

use std::ffi::CString;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rdkafka::client::Client;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _, RebalanceProtocol};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{Offset, TopicPartitionList};

use super::super::client::ClientEvents;
use super::super::native::{Events, Records, commit_within, high_watermark};
use super::commit::NextOffset;

/// How long a partition is asked to go on elsewhere before it is assigned again.
const SEEK_TIMEOUT: Duration = Duration::from_secs(3);

/// A consumer with its two queues.
pub(super) struct GroupClient {
    pub(super) consumer: Arc<BaseConsumer<ClientEvents>>,
    pub(super) events: Events<ClientEvents>,
    pub(super) records: Records<ClientEvents>,
    pub(super) topic: String,
    native_topic: CString,
}

impl GroupClient {
    /// Makes a client that is subscribed to nothing yet. `source` is the kafka-env file, for messages.
    ///
    /// # Errors
    /// Properties that librdkafka refuses.
    pub(super) fn new(client: &ClientConfig, topic: &str, source: &str) -> anyhow::Result<Self> {
        let native_topic = CString::new(topic).context("the topic's name holds a NUL")?;
        let consumer: BaseConsumer<ClientEvents> = client
            .create_with_context(ClientEvents::default())
            .with_context(|| format!("making a Kafka consumer from {source}"))?;
        let consumer = Arc::new(consumer);
        let events = Events::of(consumer.clone()).context("the consumer has no queue")?;
        let records = Records::of(consumer.clone(), topic).context("no queue for records")?;
        Ok(Self { consumer, events, records, topic: topic.to_owned(), native_topic })
    }

    pub(super) fn client(&self) -> &Client<ClientEvents> {
        self.consumer.client()
    }

    /// Reads these partitions, from these offsets on, beside those that are assigned already.
    pub(super) fn assign(&self, starts: &[NextOffset]) -> anyhow::Result<()> {
        for (partition, _) in starts {
            self.records.route(*partition);
        }
        let list = self.list(starts.iter().copied())?;
        let assigned = match self.consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => self.consumer.incremental_assign(&list),
            _ => self.consumer.assign(&list),
        };
        assigned.context("taking the assigned partitions")?;
        // A partition that was paused when it was revoked would otherwise stay paused.
        self.consumer.resume(&list).context("resuming the assigned partitions")
    }

    /// Gives these partitions up: those alone, or all, as the group's protocol wants it.
    pub(super) fn unassign(&self, partitions: &[i32]) -> anyhow::Result<()> {
        let unassigned = match self.consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => {
                self.consumer.incremental_unassign(&self.list(partitions.iter().map(|p| (*p, 0)))?)
            }
            _ => self.consumer.unassign(),
        };
        unassigned.context("giving partitions up")
    }

    /// Gives all partitions up.
    pub(super) fn unassign_all(&self) -> Result<(), KafkaError> {
        match self.consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => {
                self.consumer.incremental_unassign(&self.consumer.assignment()?)
            }
            _ => self.consumer.unassign(),
        }
    }

    pub(super) fn pause(&self, partition: i32) -> anyhow::Result<()> {
        self.consumer.pause(&self.list([(partition, 0)])?).context("pausing a partition")
    }

    pub(super) fn resume(&self, partition: i32) -> anyhow::Result<()> {
        self.consumer.resume(&self.list([(partition, 0)])?).context("resuming a partition")
    }

    /// Has an assigned partition read from elsewhere. `positions` are those of all assigned partitions.
    pub(super) fn seek(
        &self,
        partition: i32,
        offset: i64,
        positions: impl Iterator<Item = NextOffset>,
    ) -> anyhow::Result<()> {
        let deadline = Instant::now() + SEEK_TIMEOUT;
        loop {
            let to = Offset::Offset(offset);
            match self.consumer.seek(&self.topic, partition, to, Duration::from_secs(1)) {
                Ok(()) => return Ok(()),
                Err(error) if Instant::now() < deadline => {
                    tracing::debug!("{}/{partition} cannot go on from {offset} yet: {error}", self.topic);
                    std::thread::sleep(Duration::from_millis(50));
                }
                Err(_) => break,
            }
        }
        // A partition that has come to a stop takes no seek.
        match self.consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => {
                let one = self.list([(partition, offset)])?;
                self.consumer.incremental_unassign(&one)?;
                self.consumer.incremental_assign(&one)?;
            }
            _ => {
                let moved = |(other, next)| (other, if other == partition { offset } else { next });
                self.consumer.assign(&self.list(positions.map(moved))?)?;
            }
        }
        Ok(())
    }

    /// Sends offsets to be committed with `metadata` beside each; the answer comes as an event.
    pub(super) fn commit(&self, offsets: &[NextOffset], metadata: &str) -> Result<(), RDKafkaErrorCode> {
        self.commit_list(offsets, metadata).and_then(|list| self.events.commit(&list))
    }

    /// The same, and waits for the answer at most `limit`; `waiting` is called ten times a second.
    pub(super) fn commit_within(
        &self,
        offsets: &[NextOffset],
        metadata: &str,
        limit: Duration,
        waiting: &dyn Fn(),
    ) -> Result<(), RDKafkaErrorCode> {
        let list = self.commit_list(offsets, metadata)?;
        commit_within(&self.consumer, &list, limit, waiting)
    }

    /// The end of a partition as the last fetch reported it; none before the first.
    pub(super) fn high_watermark(&self, partition: i32) -> Option<i64> {
        high_watermark(&self.consumer, &self.native_topic, partition)
    }

    /// The end of a partition as a broker says; none where it does not answer within `limit`.
    pub(super) fn ask_high_watermark(&self, partition: i32, limit: Duration) -> Option<i64> {
        self.consumer.fetch_watermarks(&self.topic, partition, limit).ok().map(|(_, high)| high)
    }

    /// Whether a broker answers within `limit` that knows the topic.
    pub(super) fn knows_topic(&self, limit: Duration) -> bool {
        let metadata = self.client().fetch_metadata(Some(&self.topic), limit);
        metadata.is_ok_and(|metadata| metadata.topics().first().is_some_and(|topic| topic.error().is_none()))
    }

    fn list(&self, offsets: impl IntoIterator<Item = NextOffset>) -> Result<TopicPartitionList, KafkaError> {
        let mut list = TopicPartitionList::new();
        for (partition, offset) in offsets {
            list.add_partition_offset(&self.topic, partition, Offset::Offset(offset))?;
        }
        Ok(list)
    }

    fn commit_list(
        &self,
        offsets: &[NextOffset],
        metadata: &str,
    ) -> Result<TopicPartitionList, RDKafkaErrorCode> {
        let list = self
            .list(offsets.iter().copied())
            .map_err(|error| error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail))?;
        for mut element in list.elements() {
            element.set_metadata(metadata);
        }
        Ok(list)
    }
}
