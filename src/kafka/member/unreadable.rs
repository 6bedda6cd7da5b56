//! Partitions that cannot be read on: paused while a search looks for the end of what is broken, then led past it.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context as _, bail};
use rdkafka::consumer::Consumer as _;

use super::{Member, Reading, list};
use crate::kafka::broken::{Broken, Found, Search};
use crate::kafka::consumer::Collect;

/// A partition that gives no record for so many looks, although it has some, may have a batch that cannot be read.
pub(super) const SILENT_LOOKS: u32 = 5;
/// So many times in a row a partition may be found to have a record that others can read and this member does not get.
const MAX_STUCK: u32 = 3;
/// Each search is a client of its own, with its threads and connections.
const MAX_SEARCHES: usize = 8;

impl<C: Collect> Member<C> {
    /// Partitions that have records and give none.
    pub(super) fn find_silent(&mut self) -> anyhow::Result<()> {
        // Where records wait to be taken, a partition may be quiet because its turn has not come.
        let drained = std::mem::take(&mut self.drained);
        if self.state.trouble().is_some() || !drained {
            self.reading.values_mut().for_each(|reading| reading.seen.1 = 0);
            return Ok(());
        }
        let ends: BTreeMap<i32, i64> = self
            .state
            .partitions()
            .iter()
            .filter_map(|(partition, state)| Some((*partition, state.high_watermark?)))
            .collect();
        let mut silent = Vec::new();
        for (partition, reading) in &mut self.reading {
            let looks = if reading.seen.0 == reading.next { reading.seen.1 + 1 } else { 0 };
            reading.seen = (reading.next, looks);
            let end = ends.get(partition).copied().unwrap_or_default();
            if looks >= SILENT_LOOKS && end > reading.next.max(reading.quiet_until) {
                reading.seen.1 = 0;
                silent.push(*partition);
            }
        }
        for partition in silent {
            self.suspect(partition, "it has records and gives none")?;
        }
        Ok(())
    }

    /// A partition may have a batch that cannot be read: it is paused while that is looked into.
    pub(super) fn suspect(&mut self, partition: i32, reason: &str) -> anyhow::Result<()> {
        let Some(Reading { next, .. }) = self.reading.get(&partition).copied() else { return Ok(()) };
        if self.searches.contains_key(&partition) {
            return Ok(());
        }
        tracing::warn!(
            "{}/{partition} cannot be read from offset {next} on, looking into it: {reason}",
            self.topic
        );
        self.consumer.pause(&list(&self.topic, [(partition, 0)])?).context("pausing a partition")?;
        self.searches.insert(partition, None);
        self.start_searches()
    }

    /// Starts as many searches as there may be at once.
    fn start_searches(&mut self) -> anyhow::Result<()> {
        let free = MAX_SEARCHES.saturating_sub(self.searches.values().flatten().count());
        for (partition, search) in self.searches.iter_mut().filter(|(_, search)| search.is_none()).take(free)
        {
            if let Some(reading) = self.reading.get(partition) {
                *search = Some(Search::start(&self.client, &self.topic, *partition, reading.next)?);
            }
        }
        Ok(())
    }

    /// Goes on where a search has ended: behind what is broken, or as before.
    pub(super) fn end_searches(&mut self) -> anyhow::Result<()> {
        let ended: Vec<_> = self
            .searches
            .iter()
            .filter_map(|(partition, search)| Some((*partition, search.as_ref()?.found()?)))
            .collect();
        for (partition, found) in ended {
            self.searches.remove(&partition);
            let Some(reading) = self.reading.get_mut(&partition) else { continue };
            match found {
                Ok(Found::Broken(Broken { first, end, error })) => {
                    reading.next = end;
                    self.collect.add_broken(partition, reading.assignment, (first, end - 1), &error);
                    self.batch_since.get_or_insert_with(Instant::now);
                }
                Ok(Found::Readable) => {
                    reading.stuck += 1;
                    if reading.stuck >= MAX_STUCK {
                        bail!(
                            "{}/{partition} gives no record from offset {} on, although it has some; leaving, so that a \
                             new start can go on",
                            self.topic,
                            reading.next
                        );
                    }
                }
                Ok(Found::End) => {
                    let state = self.state.partitions().get(&partition).copied();
                    reading.quiet_until = state.and_then(|state| state.high_watermark).unwrap_or_default();
                }
                Err(error) => tracing::warn!("{}/{partition}: trying again: {error:#}", self.topic),
            }
            let Reading { next, stuck, .. } = *reading;
            if stuck > 1 {
                self.assign_from(partition, next)?;
            } else {
                self.go_on_from(partition, next)?;
            }
            self.consumer.resume(&list(&self.topic, [(partition, 0)])?).context("resuming a partition")?;
        }
        self.start_searches()
    }
}
