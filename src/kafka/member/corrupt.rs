//! Partitions with a corrupt record batch: paused for good, or with `--skip-corrupt` until the end of the batch is found.

use std::time::Instant;

use anyhow::Context as _;
use rdkafka::consumer::Consumer as _;

use super::{Member, Reading, list};
use crate::kafka::consumer::Collect;
use crate::kafka::corrupt_batch::{CorruptRange, Search};

/// Each search is a client of its own, with its threads and connections.
const MAX_SEARCHES: usize = 8;

/// How a partition with a corrupt batch goes on; it is paused meanwhile.
pub(super) enum Corrupt {
    /// Not before the partition is assigned again.
    Stopped,
    /// Behind the batch, whose end is to be looked for.
    Waiting,
    Searching(Search),
}

impl<C: Collect> Member<C> {
    /// Pauses a partition that librdkafka cannot read on. It reads such a batch again and again, and may go on at any offset
    /// after it, so that nothing that comes of the partition from here on counts.
    pub(super) fn found_corrupt(&mut self, partition: i32, reason: &str) -> anyhow::Result<()> {
        let Some(Reading { next, .. }) = self.reading.get(&partition).copied() else { return Ok(()) };
        if self.corrupt.contains_key(&partition) {
            return Ok(());
        }
        self.consumer.pause(&list(&self.topic, [(partition, 0)])?).context("pausing a partition")?;
        let topic = &self.topic;
        let advice = if self.skip_corrupt {
            "It is paused until the end of the batch is found"
        } else {
            "It is paused, the others go on; with --skip-corrupt it would go on behind the batch"
        };
        tracing::error!(
            topic,
            partition,
            offset = next,
            "{topic}/{partition} cannot be read from offset {next} on, its record batch is corrupt: {reason}. {advice}"
        );
        self.state.corrupt().insert(partition, next);
        self.corrupt.insert(partition, if self.skip_corrupt { Corrupt::Waiting } else { Corrupt::Stopped });
        self.start_searches()
    }

    /// Starts as many searches as there may be at once.
    fn start_searches(&mut self) -> anyhow::Result<()> {
        let running =
            self.corrupt.values().filter(|corrupt| matches!(corrupt, Corrupt::Searching(_))).count();
        let waiting = self.corrupt.iter_mut().filter(|(_, corrupt)| matches!(corrupt, Corrupt::Waiting));
        for (partition, corrupt) in waiting.take(MAX_SEARCHES.saturating_sub(running)) {
            if let Some(reading) = self.reading.get(partition) {
                let search = Search::start(&self.client, &self.topic, *partition, reading.next)?;
                *corrupt = Corrupt::Searching(search);
            }
        }
        Ok(())
    }

    /// Goes on where a search has ended.
    pub(super) fn end_searches(&mut self) -> anyhow::Result<()> {
        let ended: Vec<_> = self
            .corrupt
            .iter()
            .filter_map(|(partition, corrupt)| match corrupt {
                Corrupt::Searching(search) => Some((*partition, search.result()?)),
                _ => None,
            })
            .collect();
        for (partition, result) in ended {
            match result {
                Ok(range) => self.go_on_behind(partition, range)?,
                Err(error) => {
                    tracing::warn!("{}/{partition}: searching again: {error:#}", self.topic);
                    self.corrupt.insert(partition, Corrupt::Waiting);
                }
            }
        }
        self.start_searches()
    }

    /// Reads a partition on behind the offsets that are skipped, or as before where none are.
    fn go_on_behind(&mut self, partition: i32, range: Option<CorruptRange>) -> anyhow::Result<()> {
        self.forget_corrupt(partition);
        let Some(reading) = self.reading.get_mut(&partition) else { return Ok(()) };
        let topic = &self.topic;
        match range {
            Some(CorruptRange { first, last, error }) => {
                tracing::error!(
                    topic,
                    partition,
                    first,
                    last,
                    "offsets {first} to {last} of {topic}/{partition} are skipped, their record batch is corrupt: {error}"
                );
                reading.next = last + 1;
                self.collect.add_skipped(partition, reading.assignment, (first, last), &error);
                self.batch_since.get_or_insert_with(Instant::now);
                self.state.skipped_batches.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            }
            None => tracing::warn!("{topic}/{partition} can be read again from offset {} on", reading.next),
        }
        let next = reading.next;
        self.go_on_from(partition, next)?;
        self.consumer.resume(&list(&self.topic, [(partition, 0)])?).context("resuming a partition")
    }

    /// The partition is read from elsewhere, or not any more.
    pub(super) fn forget_corrupt(&mut self, partition: i32) {
        self.corrupt.remove(&partition);
        self.state.corrupt().remove(&partition);
    }
}
