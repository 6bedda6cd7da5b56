//! What happens when the consumer group hands partitions over: pin the start of new ones, finish and commit lost ones.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, Rebalance};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::{Offset, TopicPartitionList};
use tokio_util::sync::CancellationToken;

use super::client::ClientEvents;
use super::offsets::Offsets;

/// How long one question to the cluster may take inside a rebalance.
const CALL_LIMIT: Duration = Duration::from_secs(10);
/// How long pinning is tried; well under `max.poll.interval.ms` (300 s by default), after which the group drops us.
const PIN_LIMIT: Duration = Duration::from_secs(60);
/// How long a revoke waits for records in flight; past it they are delivered again by the partition's next owner.
const REVOKE_LIMIT: Duration = Duration::from_secs(30);

/// The same once the process is to stop: what is done by then still has to be committed.
const STOPPED_REVOKE_LIMIT: Duration = Duration::from_secs(3);

/// Where a partition starts that has no committed offset.
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

/// Hears the group's rebalances on the consumer's thread.
pub(super) struct Group {
    pub(super) events: ClientEvents,
    pub(super) offsets: Arc<Offsets>,
    pub(super) start: Start,
    /// Partitions not yet seen start at their beginning, whatever is committed (`--reset`).
    pub(super) reset: bool,
    pub(super) stop: CancellationToken,
    /// Set once the consumer has waited for what is in flight, so that leaving the group does not wait again.
    pub(super) closing: AtomicBool,
    reset_done: Mutex<Vec<i32>>,
    failure: Mutex<Option<anyhow::Error>>,
}

impl Group {
    pub(super) fn new(offsets: Arc<Offsets>, start: Start, reset: bool, stop: CancellationToken) -> Self {
        Self {
            events: ClientEvents::default(),
            offsets,
            start,
            reset,
            stop,
            closing: AtomicBool::new(false),
            reset_done: Mutex::default(),
            failure: Mutex::default(),
        }
    }

    /// What went wrong in a rebalance and must end the consumer, once.
    pub(super) fn take_failure(&self) -> Option<anyhow::Error> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn assigned(&self, consumer: &BaseConsumer<Self>, partitions: &TopicPartitionList) {
        if partitions.count() > 0
            && let Err(error) = self.pin_with_retries(consumer, partitions)
        {
            *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            return;
        }
        for partition in numbers(partitions) {
            self.offsets.assign(partition);
        }
        tracing::info!(partitions = ?numbers(partitions), "partitions assigned");
    }

    fn revoked(&self, consumer: &BaseConsumer<Self>, partitions: &TopicPartitionList) {
        let revoked = numbers(partitions);
        // A lost partition already has another owner: nothing that we could commit would count.
        if !consumer.assignment_lost() {
            let closing = self.closing.load(Ordering::Relaxed);
            let left = if closing { 0 } else { self.wait_for(&revoked) };
            if left > 0 {
                tracing::warn!(
                    records = left,
                    "revoked with records in flight; their next owner delivers them again"
                );
            }
            commit_done(consumer, &self.offsets, partitions);
        }
        for partition in &revoked {
            self.offsets.revoke(*partition);
        }
        tracing::info!(partitions = ?revoked, "partitions revoked");
    }

    /// Waits for what is in flight on these partitions; not as long once the process is to stop.
    fn wait_for(&self, revoked: &[i32]) -> usize {
        let mut deadline = Instant::now() + REVOKE_LIMIT;
        let mut stopping = false;
        loop {
            let left = self.offsets.wait_idle(Some(revoked), Duration::from_millis(100));
            if self.stop.is_cancelled() && !stopping {
                stopping = true;
                deadline = deadline.min(Instant::now() + STOPPED_REVOKE_LIMIT);
            }
            if left == 0 || Instant::now() >= deadline {
                return left;
            }
        }
    }

    fn pin_with_retries(
        &self,
        consumer: &BaseConsumer<Self>,
        partitions: &TopicPartitionList,
    ) -> anyhow::Result<()> {
        let deadline = Instant::now() + PIN_LIMIT;
        loop {
            match self.pin(consumer, partitions) {
                Ok(()) => return Ok(()),
                Err(error) if is_rebalancing(&error) => {
                    tracing::debug!("start not pinned, the group is rebalancing again: {error:#}");
                    return Ok(());
                }
                Err(error) if self.stop.is_cancelled() || Instant::now() > deadline => return Err(error),
                Err(error) => tracing::warn!("trying again: {error:#}"),
            }
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    /// Commits where each partition without a committed offset starts.
    ///
    /// Without this, a process that dies before its first commit leaves nothing behind, and with
    /// `auto.offset.reset=latest` its successor skips what arrived in between.
    fn pin(&self, consumer: &BaseConsumer<Self>, partitions: &TopicPartitionList) -> anyhow::Result<()> {
        let committed = consumer
            .committed_offsets(partitions.clone(), CALL_LIMIT)
            .context("reading the group's committed offsets")?;
        let mut resets = self.reset_done.lock().unwrap_or_else(PoisonError::into_inner);
        let mut pins = TopicPartitionList::new();
        for element in committed.elements() {
            element
                .error()
                .with_context(|| format!("reading the committed offset of {}", element.partition()))?;
            let reset = self.reset && !resets.contains(&element.partition());
            if matches!(element.offset(), Offset::Offset(_)) && !reset {
                continue;
            }
            let (topic, partition) = (element.topic(), element.partition());
            let (low, high) = consumer
                .fetch_watermarks(topic, partition, CALL_LIMIT)
                .with_context(|| format!("asking where {topic}/{partition} starts and ends"))?;
            let offset = match self.start {
                _ if reset => low,
                Start::Earliest => low,
                Start::Latest => high,
                Start::Refuse => bail!(
                    "{topic}/{partition} has no committed offset and auto.offset.reset=error: set it to earliest or latest"
                ),
            };
            pins.add_partition_offset(topic, partition, Offset::Offset(offset))?;
        }
        if pins.count() > 0 {
            consumer.commit(&pins, CommitMode::Sync).context("committing where new partitions start")?;
            tracing::info!(partitions = ?numbers(&pins), "start of partitions without a committed offset pinned");
        }
        resets.extend(numbers(partitions));
        Ok(())
    }
}

impl ClientContext for Group {
    fn error(&self, error: KafkaError, reason: &str) {
        self.events.error(error, reason);
    }

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.events.log(level, facility, message);
    }
}

impl ConsumerContext for Group {
    fn pre_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        match rebalance {
            Rebalance::Assign(partitions) => self.assigned(consumer, partitions),
            Rebalance::Revoke(partitions) => self.revoked(consumer, partitions),
            Rebalance::Error(error) => tracing::warn!("rebalance: {error}"),
        }
    }

    fn commit_callback(&self, result: KafkaResult<()>, _offsets: &TopicPartitionList) {
        match result {
            Ok(()) | Err(KafkaError::ConsumerCommit(RDKafkaErrorCode::NoOffset)) => {}
            Err(error) => tracing::warn!("offsets not committed, trying again with the next ones: {error}"),
        }
    }
}

/// Stores what is done, and waits until the group has it.
pub(super) fn commit_done(
    consumer: &BaseConsumer<Group>,
    offsets: &Offsets,
    partitions: &TopicPartitionList,
) {
    let Some(topic) = partitions.elements().first().map(|element| element.topic().to_owned()) else { return };
    store_done(consumer, offsets, &topic);
    match consumer.commit_consumer_state(CommitMode::Sync) {
        Ok(()) | Err(KafkaError::ConsumerCommit(RDKafkaErrorCode::NoOffset)) => {}
        Err(error) => tracing::warn!("offsets not committed, their records are delivered again: {error}"),
    }
}

/// Hands what is done to librdkafka, which commits it every `auto.commit.interval.ms`.
pub(super) fn store_done(consumer: &BaseConsumer<Group>, offsets: &Offsets, topic: &str) {
    for (partition, offset) in offsets.take_committable() {
        let mut one = TopicPartitionList::new();
        let stored = one
            .add_partition_offset(topic, partition, Offset::Offset(offset))
            .and_then(|()| consumer.store_offsets(&one));
        // A partition may be gone since: its new owner starts at what was committed.
        if let Err(error) = stored {
            tracing::debug!(partition, offset, "offset not stored: {error}");
        }
    }
}

fn numbers(partitions: &TopicPartitionList) -> Vec<i32> {
    partitions.elements().iter().map(|element| element.partition()).collect()
}

/// Whether the group has already moved on to its next assignment, which will be pinned in its turn.
fn is_rebalancing(error: &anyhow::Error) -> bool {
    let code = error.chain().find_map(|cause| cause.downcast_ref::<KafkaError>()?.rdkafka_error_code());
    matches!(
        code,
        Some(
            RDKafkaErrorCode::RebalanceInProgress
                | RDKafkaErrorCode::IllegalGeneration
                | RDKafkaErrorCode::UnknownMemberId
        )
    )
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
}
