//! Partitions with a corrupt record batch: paused for good, or with `--skip-corrupt` until the end of the batch is found.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use rdkafka::config::ClientConfig;

use super::super::corrupt_batch::{CorruptRange, Search};
use super::assignment::Reading;
use super::batch::SkippedRange;
use super::thread::Poller;

/// Each search is a client of its own, with its threads and connections.
const MAX_SEARCHES: usize = 8;

/// The partitions that are paused, and whether and how they go on.
#[derive(Default)]
pub(super) struct CorruptPartitions {
    partitions: BTreeMap<i32, Corrupt>,
    /// Of which clients are made that look for the end of a batch; none without `--skip-corrupt`.
    search_with: Option<ClientConfig>,
}

/// How a partition goes on.
enum Corrupt {
    /// Not before it is assigned again.
    Stopped,
    /// Behind the batch, whose end is to be looked for.
    Waiting,
    Searching(Search),
}

impl CorruptPartitions {
    /// `search_with` is what clients are made of that look for the end of a corrupt batch; none to stop partitions there.
    pub(super) fn new(search_with: Option<ClientConfig>) -> Self {
        Self { partitions: BTreeMap::new(), search_with }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.partitions.is_empty()
    }

    pub(super) fn contains(&self, partition: i32) -> bool {
        self.partitions.contains_key(&partition)
    }

    fn insert(&mut self, partition: i32) {
        let corrupt = if self.search_with.is_some() { Corrupt::Waiting } else { Corrupt::Stopped };
        self.partitions.insert(partition, corrupt);
    }

    /// The partitions whose search is to start now: as many as there may be at once.
    fn to_search(&self) -> Vec<i32> {
        let is_running = |corrupt: &&Corrupt| matches!(corrupt, Corrupt::Searching(_));
        let free = MAX_SEARCHES.saturating_sub(self.partitions.values().filter(is_running).count());
        let waiting = self.partitions.iter().filter(|(_, corrupt)| matches!(corrupt, Corrupt::Waiting));
        waiting.map(|(partition, _)| *partition).take(free).collect()
    }

    /// The searches that have ended since.
    fn ended(&self) -> Vec<(i32, anyhow::Result<Option<CorruptRange>>)> {
        let ended = self.partitions.iter().filter_map(|(partition, corrupt)| match corrupt {
            Corrupt::Searching(search) => Some((*partition, search.result()?)),
            Corrupt::Stopped | Corrupt::Waiting => None,
        });
        ended.collect()
    }
}

impl Poller {
    /// Pauses a partition that librdkafka cannot read on. It reads such a batch again and again, and may go on at any offset
    /// after it, so that nothing that comes of the partition from here on counts.
    pub(super) fn on_corrupt(&mut self, partition: i32, reason: &str) -> anyhow::Result<()> {
        let Some(Reading { next, .. }) = self.assignment.get(partition) else { return Ok(()) };
        if self.corrupt.contains(partition) {
            return Ok(());
        }
        self.group.pause(partition)?;
        let topic = &self.group.topic;
        let what_happens = if self.corrupt.search_with.is_some() {
            "It is paused until the end of the batch is found"
        } else {
            "It is paused, the others go on; with --skip-corrupt it would go on behind the batch"
        };
        tracing::error!(
            topic,
            partition,
            offset = next,
            "{topic}/{partition} cannot be read from offset {next} on, its record batch is corrupt: {reason}. \
             {what_happens}"
        );
        self.state.corrupt().insert(partition, next);
        self.corrupt.insert(partition);
        self.start_searches()
    }

    fn start_searches(&mut self) -> anyhow::Result<()> {
        for partition in self.corrupt.to_search() {
            if let (Some(client), Some(reading)) = (&self.corrupt.search_with, self.assignment.get(partition))
            {
                let search = Search::start(client, &self.group.topic, partition, reading.next)?;
                self.corrupt.partitions.insert(partition, Corrupt::Searching(search));
            }
        }
        Ok(())
    }

    /// Goes on where a search has ended.
    pub(super) fn end_searches(&mut self) -> anyhow::Result<()> {
        for (partition, result) in self.corrupt.ended() {
            match result {
                Ok(range) => self.go_on_behind(partition, range)?,
                Err(error) => {
                    tracing::warn!("{}/{partition}: searching again: {error:#}", self.group.topic);
                    self.corrupt.partitions.insert(partition, Corrupt::Waiting);
                }
            }
        }
        self.start_searches()
    }

    /// Reads a partition on behind the offsets that are skipped, or as before where none are.
    fn go_on_behind(&mut self, partition: i32, range: Option<CorruptRange>) -> anyhow::Result<()> {
        self.forget_corrupt(partition);
        let Some(Reading { assignment, next }) = self.assignment.get(partition) else { return Ok(()) };
        let topic = &self.group.topic;
        let next = match range {
            Some(CorruptRange { first, last, error }) => {
                tracing::error!(
                    topic,
                    partition,
                    first,
                    last,
                    "offsets {first} to {last} of {topic}/{partition} are skipped, their record batch is corrupt: {error}"
                );
                self.sender.add_skipped(SkippedRange { partition, assignment, first, last, error });
                self.state.skipped_batches.fetch_add(1, Ordering::Relaxed);
                last + 1
            }
            None => {
                tracing::warn!("{topic}/{partition} can be read again from offset {next} on");
                next
            }
        };
        self.assignment.seek(partition, next);
        self.group.seek(partition, next, self.assignment.positions())?;
        self.group.resume(partition)
    }

    /// Forgets that a partition is paused: it is read from elsewhere, or not any more. Returns whether it was.
    pub(super) fn forget_corrupt(&mut self, partition: i32) -> bool {
        self.state.corrupt().remove(&partition);
        self.corrupt.partitions.remove(&partition).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_skip_corrupt_nothing_is_searched_for() {
        let mut corrupt = CorruptPartitions::new(None);
        corrupt.insert(3);
        assert!(corrupt.contains(3) && !corrupt.is_empty());
        assert!(corrupt.to_search().is_empty() && corrupt.ended().is_empty());
    }

    #[test]
    fn so_many_searches_run_at_once() {
        let mut corrupt = CorruptPartitions::new(Some(ClientConfig::new()));
        for partition in 0..20 {
            corrupt.insert(partition);
        }
        assert_eq!(corrupt.to_search(), (0..8).collect::<Vec<_>>());
    }
}
