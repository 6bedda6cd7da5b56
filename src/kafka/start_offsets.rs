//! Where a partition starts to be read: at its committed offset, or where a first assignment pins it.
//!
//! Beside its offsets the group commits when it began, how many partitions the topic had then, and which topic that was.
//! So a partition that was added since starts at its beginning, one whose first assignment was cut short starts where
//! the group did, and a topic that was made anew under the same name is seen, whatever its offsets are by now.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::{Offset, TopicPartitionList};

use super::group_metadata::GroupMetadata;
use super::native::{metadata_of, topic_id};

/// How long one question to the cluster may take inside a rebalance.
const CALL_LIMIT: Duration = Duration::from_secs(5);

/// What to do where records that were not read yet are no longer in the topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(crate) enum OnLostOffsets {
    /// Stop with an error, and touch nothing
    #[default]
    Stop,
    /// Go on from the earliest record that is still there
    Earliest,
}

/// Where a partition starts that has no committed offset, in a group that begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    Earliest,
    Latest,
    /// `auto.offset.reset=error`: a missing offset ends the process.
    Refuse,
}

impl Start {
    /// Reads `auto.offset.reset`, whose default is `latest`, with librdkafka's synonyms and in any case.
    pub(super) fn from_property(value: Option<&str>) -> Self {
        match value.map(str::to_ascii_lowercase).as_deref() {
            Some("earliest" | "smallest" | "beginning") => Self::Earliest,
            Some("error") => Self::Refuse,
            _ => Self::Latest,
        }
    }
}

/// Where one partition starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct StartOffset {
    pub(super) partition: i32,
    pub(super) offset: i64,
    /// Whether the group has this offset already.
    pub(super) committed: bool,
}

/// Finds where partitions start.
pub(super) struct StartOffsets {
    pub(super) topic: String,
    pub(super) start: Start,
    pub(super) on_lost: OnLostOffsets,
    /// Partitions not assigned before start at their beginning, whatever is committed (`--reset`).
    pub(super) reset: bool,
    reset_done: Vec<i32>,
    began: Option<GroupMetadata>,
}

impl StartOffsets {
    pub(super) fn new(topic: String, start: Start, on_lost: OnLostOffsets, reset: bool) -> Self {
        Self { topic, start, on_lost, reset, reset_done: Vec::new(), began: None }
    }

    /// What to commit beside each offset.
    pub(super) fn metadata(&self) -> String {
        self.began.as_ref().map(GroupMetadata::to_text).unwrap_or_default()
    }

    /// Asks the cluster where each of these partitions starts.
    ///
    /// # Errors
    /// [`LostOffsets`] where the topic was made anew and nobody said to go on; no offset where one is demanded; and what
    /// the cluster fails to answer, which may be asked again.
    pub(super) fn find<C: ConsumerContext>(
        &mut self,
        consumer: &BaseConsumer<C>,
        assigned: &[i32],
    ) -> anyhow::Result<Vec<StartOffset>> {
        let metadata = consumer
            .fetch_metadata(Some(&self.topic), CALL_LIMIT)
            .with_context(|| format!("asking for the partitions of {}", self.topic))?;
        let count = metadata.topics().first().map_or(0, |topic| topic.partitions().len());
        let count = i32::try_from(count).unwrap_or(i32::MAX);
        let topic_id = topic_id(consumer, metadata.orig_broker_id(), &self.topic, CALL_LIMIT);
        let mut all = TopicPartitionList::new();
        for partition in 0..count.max(assigned.iter().max().map_or(0, |last| last + 1)) {
            all.add_partition(&self.topic, partition);
        }
        let committed =
            consumer.committed_offsets(all, CALL_LIMIT).context("reading the group's committed offsets")?;
        let mut offsets = Vec::new();
        let mut began: Option<GroupMetadata> = None;
        for (index, element) in committed.elements().iter().enumerate() {
            let partition = element.partition();
            element
                .error()
                .with_context(|| format!("reading the committed offset of {}/{partition}", self.topic))?;
            if let Offset::Offset(offset) = element.offset() {
                offsets.push((partition, offset));
                let same = GroupMetadata::parse(&metadata_of(&committed, index));
                began = match (began, same) {
                    (Some(a), Some(b)) if b.since_ms < a.since_ms => Some(b),
                    (None, b) => b,
                    (a, _) => a,
                };
            }
        }
        // With the topic its committed offsets are deleted, too; but this process may have known it before.
        let began = began.or_else(|| self.began.clone());
        let recreated = match (&began, &topic_id) {
            (Some(GroupMetadata { topic_id: Some(before), .. }), Some(now)) => before != now,
            _ => false,
        };
        let mut starts = Vec::new();
        for &partition in assigned {
            let offset = offsets.iter().find(|(number, _)| *number == partition).map(|(_, offset)| *offset);
            let reset = self.reset && !self.reset_done.contains(&partition);
            let start = match offset {
                _ if reset => self.low(consumer, partition)?,
                Some(offset) if recreated => self.on_recreated(consumer, partition, offset)?,
                Some(offset) => {
                    starts.push(StartOffset { partition, offset, committed: true });
                    continue;
                }
                None if recreated => self.on_recreated(consumer, partition, 0)?,
                None if offsets.is_empty() && began.is_none() => self.first(consumer, partition)?,
                None => self.later(consumer, partition, began.as_ref())?,
            };
            starts.push(StartOffset { partition, offset: start, committed: false });
        }
        let fresh = GroupMetadata { since_ms: now_ms(), partitions: count, topic_id };
        self.began = Some(began.filter(|_| !recreated).unwrap_or(fresh));
        self.reset_done.extend(assigned);
        Ok(starts)
    }

    /// The first and the next offset of a partition.
    pub(super) fn range<C: ConsumerContext>(
        &self,
        consumer: &BaseConsumer<C>,
        partition: i32,
    ) -> anyhow::Result<(i64, i64)> {
        consumer
            .fetch_watermarks(&self.topic, partition, CALL_LIMIT)
            .with_context(|| format!("asking where {}/{partition} starts and ends", self.topic))
    }

    /// Whether the topic is another one by now than the one that the group began with.
    pub(super) fn is_recreated<C: ConsumerContext>(&self, consumer: &BaseConsumer<C>) -> bool {
        let Some(GroupMetadata { topic_id: Some(before), .. }) = &self.began else { return false };
        let broker = consumer.fetch_metadata(Some(&self.topic), CALL_LIMIT).map(|m| m.orig_broker_id());
        let now = broker.ok().and_then(|broker| topic_id(consumer, broker, &self.topic, CALL_LIMIT));
        now.is_some_and(|now| now != *before)
    }

    /// What is committed from here on belongs to the topic as it is now; its id is learnt at the next assignment.
    pub(super) fn forget_the_last_topic(&mut self) {
        if let Some(began) = &mut self.began {
            began.topic_id = None;
        }
    }

    /// Where to go on in a topic that was made anew.
    fn on_recreated<C: ConsumerContext>(
        &self,
        consumer: &BaseConsumer<C>,
        partition: i32,
        next: i64,
    ) -> anyhow::Result<i64> {
        let what = "the topic was deleted and made anew under the same name".to_owned();
        let lost = LostOffsets { topic: self.topic.clone(), partition, next, what };
        if self.on_lost == OnLostOffsets::Stop {
            return Err(lost.into());
        }
        tracing::error!("{lost}; going on from the beginning");
        self.low(consumer, partition)
    }

    fn low<C: ConsumerContext>(&self, consumer: &BaseConsumer<C>, partition: i32) -> anyhow::Result<i64> {
        Ok(self.range(consumer, partition)?.0)
    }

    /// In a group that has not committed anything yet.
    fn first<C: ConsumerContext>(&self, consumer: &BaseConsumer<C>, partition: i32) -> anyhow::Result<i64> {
        let (low, high) = self.range(consumer, partition)?;
        match self.start {
            Start::Earliest => Ok(low),
            Start::Latest => Ok(high),
            Start::Refuse => bail!(
                "{}/{partition} has no committed offset and auto.offset.reset=error: set it to earliest or latest",
                self.topic
            ),
        }
    }

    /// In a group that knows the topic already.
    fn later<C: ConsumerContext>(
        &self,
        consumer: &BaseConsumer<C>,
        partition: i32,
        began: Option<&GroupMetadata>,
    ) -> anyhow::Result<i64> {
        match began {
            // There from the start, but whoever was to pin it then did not come to it.
            Some(began) if partition < began.partitions && self.start == Start::Latest => {
                let mut since = TopicPartitionList::new();
                since.add_partition_offset(&self.topic, partition, Offset::Offset(began.since_ms))?;
                let found = consumer
                    .offsets_for_times(since, CALL_LIMIT)
                    .with_context(|| format!("asking what {}/{partition} had got by then", self.topic))?;
                match found.elements().first().map(|element| element.offset()) {
                    Some(Offset::Offset(offset)) => Ok(offset),
                    _ => Ok(self.range(consumer, partition)?.1),
                }
            }
            _ => {
                tracing::info!("{}/{partition} is new to the group: from its beginning", self.topic);
                self.low(consumer, partition)
            }
        }
    }
}

/// Records that were not read yet are no longer in the topic.
#[derive(Debug)]
pub(super) struct LostOffsets {
    pub(super) topic: String,
    pub(super) partition: i32,
    pub(super) next: i64,
    pub(super) what: String,
}

impl std::fmt::Display for LostOffsets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { topic, partition, next, what } = self;
        write!(f, "offsets of {topic}/{partition} are lost: the next to read is {next}, but {what}")
    }
}

impl std::error::Error for LostOffsets {}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_is_read_as_librdkafka_reads_it() {
        for (value, start) in [
            (None, Start::Latest),
            (Some("latest"), Start::Latest),
            (Some("END"), Start::Latest),
            (Some("Earliest"), Start::Earliest),
            (Some("smallest"), Start::Earliest),
            (Some("Error"), Start::Refuse),
        ] {
            assert_eq!(Start::from_property(value), start, "{value:?}");
        }
    }

    #[test]
    fn nothing_of_a_topic_is_skipped_by_a_member_that_has_read_it_before() {
        use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};

        let cluster = rdkafka::mocking::MockCluster::new(1).unwrap();
        cluster.create_topic("urls", 1, 1).unwrap();
        let mut config = rdkafka::ClientConfig::new();
        config.set("bootstrap.servers", cluster.bootstrap_servers()).set("group.id", "g");
        let producer: BaseProducer = config.create().unwrap();
        producer.send(BaseRecord::<(), _>::to("urls").payload("https://example.com/")).ok().unwrap();
        producer.flush(Duration::from_secs(30)).unwrap();
        let consumer: BaseConsumer = config.create().unwrap();
        let mut starts = StartOffsets::new("urls".to_owned(), Start::Latest, OnLostOffsets::Earliest, false);
        let offset = |starts: &mut StartOffsets| starts.find(&consumer, &[0]).unwrap()[0].offset;
        assert_eq!(offset(&mut starts), 1, "a group that begins, by auto.offset.reset=latest");
        // Its offsets went with the topic that was deleted; whether the id is another one may not be known any more.
        starts.began = Some(GroupMetadata { since_ms: 0, partitions: 0, topic_id: None });
        assert_eq!(offset(&mut starts), 0);
    }
}
