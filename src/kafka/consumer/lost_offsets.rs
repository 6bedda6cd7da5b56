//! Offsets that are gone from the topic: retention, truncation, and a topic that was deleted and created again.

use std::time::{Duration, Instant};

use anyhow::bail;

use super::super::start_offsets::{LostOffsets, OnLostOffsets};
use super::assignment::Reading;
use super::errors::with_advice;
use super::thread::{LOOK_INTERVAL, Poller, START_TIMEOUT};

/// How long a topic that a broker does not know may turn out to be there after all.
const TOPIC_GONE_TIMEOUT: Duration = Duration::from_secs(3);

/// Why a partition cannot be read on from its next offset.
#[derive(Debug)]
pub(super) struct Lost {
    pub(super) partition: i32,
    /// The offset that librdkafka asked for or that came; none where it is the topic's id that has changed.
    pub(super) at: Option<i64>,
    pub(super) reason: String,
}

impl Poller {
    /// A broker does not know the topic. One of several may not have heard of it yet, or not any more.
    pub(super) fn on_unknown_topic(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + TOPIC_GONE_TIMEOUT;
        while Instant::now() < deadline && !self.is_over() {
            self.state.come_round();
            if self.group.knows_topic(LOOK_INTERVAL) {
                self.check_topic_id = true;
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        let gone = format!("Kafka topic {} is gone from the cluster of {}", self.group.topic, self.source);
        if self.starts.on_lost == OnLostOffsets::Stop {
            bail!("{gone}. With --on-lost-offsets earliest it is waited for");
        }
        tracing::error!("{gone}; waiting for it to be created again");
        *self.state.trouble() = Some(gone);
        Ok(())
    }

    /// Returns whether the topic is another one by now, possibly with more records than this member had read of the last. Asked
    /// for after any trouble. Without partitions nothing goes on from elsewhere: the next assignment looks at the id again.
    pub(super) fn detect_recreated_topic(&mut self) -> bool {
        std::mem::take(&mut self.check_topic_id)
            && self.starts.is_recreated(&self.group.consumer)
            && !self.assignment.is_empty()
    }

    /// Goes on with all partitions of a topic that was recreated, as [`Self::on_lost`].
    pub(super) fn on_recreated_topic(&mut self) -> anyhow::Result<()> {
        for partition in self.assignment.numbers() {
            self.on_lost(Lost { partition, at: None, reason: "its id has changed".to_owned() })?;
        }
        self.starts.forget_the_last_topic();
        Ok(())
    }

    /// A record came whose offset was passed already: it comes again, or is another record in a topic that was recreated.
    pub(super) fn on_went_back(&mut self, partition: i32, offset: i64) -> anyhow::Result<()> {
        let Some(reading) = self.assignment.get(partition) else { return Ok(()) };
        let (_, high) = self.range(partition)?;
        if high < reading.next || self.starts.is_recreated(&self.group.consumer) {
            let reason = "an offset came that was passed already".to_owned();
            return self.on_lost(Lost { partition, at: Some(offset), reason });
        }
        Ok(())
    }

    /// Goes on from the beginning of a partition, or ends with advice, as `--on-lost-offsets` says. To be called with an empty
    /// batch: what was read before belongs to the assignment that ends here.
    pub(super) fn on_lost(&mut self, lost: Lost) -> anyhow::Result<()> {
        let Lost { partition, at, reason } = lost;
        let Some(Reading { next, .. }) = self.assignment.get(partition) else { return Ok(()) };
        let recreated = self.starts.is_recreated(&self.group.consumer);
        let (low, high) = self.range(partition)?;
        let topic = &self.group.topic;
        if !recreated && is_mistaken(next, at, low, high) {
            tracing::warn!(?at, "{topic}/{partition}: {reason}, at another offset; going on from {next}");
            return self.group.seek(partition, next, self.assignment.positions());
        }
        let anew = if recreated { "the topic was recreated, and " } else { "" };
        let what = format!("{anew}it holds {low} to {high} now ({reason})");
        let lost_offsets = LostOffsets { topic: topic.clone(), partition, next, what };
        if self.starts.on_lost == OnLostOffsets::Stop {
            return Err(with_advice(&lost_offsets.into()));
        }
        tracing::error!("{lost_offsets}; going on from {low}");
        let assignment = self.offsets.assign(partition, low, false);
        self.assignment.insert(partition, Reading { assignment, next: low });
        self.state.committed(&[(partition, low)]);
        self.group.seek(partition, low, self.assignment.positions())?;
        if self.forget_corrupt(partition) {
            self.group.resume(partition)?;
        }
        Ok(())
    }

    /// The first and the next offset of a partition, asked for until the cluster answers.
    fn range(&self, partition: i32) -> anyhow::Result<(i64, i64)> {
        let deadline = Instant::now() + START_TIMEOUT.min(self.max_poll_interval / 2);
        loop {
            self.state.come_round();
            match self.starts.range(&self.group.consumer, partition) {
                Err(error) if Instant::now() < deadline && !self.is_over() => {
                    tracing::warn!("trying again: {error:#}")
                }
                answer => return answer,
            }
            std::thread::sleep(Duration::from_millis(300));
        }
    }
}

/// Whether librdkafka asked for another offset (`at`) than the next one, which is still in the partition, from `low` to `high`.
fn is_mistaken(next: i64, at: Option<i64>, low: i64, high: i64) -> bool {
    at.is_some_and(|at| at >= 0 && at != next) && (low..=high).contains(&next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offset_is_lost_unless_it_is_there_and_another_was_asked_for() {
        for (next, at, low, high, expected) in [
            // Out of nowhere, while ours is there: in the middle, or the next to come.
            (5, Some(900), 0, 10, true),
            (10, Some(900), 0, 10, true),
            // The answer is for our request, or names no partition.
            (5, Some(5), 0, 10, false),
            (5, Some(-1), 0, 10, false),
            (5, None, 0, 10, false),
            // Retention, and a log that was truncated.
            (5, Some(4), 6, 10, false),
            (11, Some(12), 0, 10, false),
        ] {
            assert_eq!(is_mistaken(next, at, low, high), expected, "{next} {at:?} {low} {high}");
        }
    }
}
