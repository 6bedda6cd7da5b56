//! The assigned partitions, and where each of them is read.

use std::collections::BTreeMap;

/// Plain values: it knows no Kafka client.
#[derive(Debug, Default)]
pub(super) struct Assignment {
    partitions: BTreeMap<i32, Reading>,
}

/// Where a partition is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reading {
    /// The number of its assignment.
    pub(super) assignment: u64,
    /// The next offset.
    pub(super) next: i64,
}

/// What becomes of a record that has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arrival {
    /// It is read under this assignment.
    Read { assignment: u64 },
    /// Its partition is no longer assigned: the new owner reads it.
    NotAssigned,
    /// Its offset was read already: it comes again, or the topic is another one.
    WentBack,
}

impl Assignment {
    pub(super) fn is_empty(&self) -> bool {
        self.partitions.is_empty()
    }

    pub(super) fn numbers(&self) -> Vec<i32> {
        self.partitions.keys().copied().collect()
    }

    pub(super) fn get(&self, partition: i32) -> Option<Reading> {
        self.partitions.get(&partition).copied()
    }

    /// Each partition with its next offset.
    pub(super) fn positions(&self) -> impl Iterator<Item = (i32, i64)> + '_ {
        self.partitions.iter().map(|(partition, reading)| (*partition, reading.next))
    }

    pub(super) fn insert(&mut self, partition: i32, reading: Reading) {
        self.partitions.insert(partition, reading);
    }

    pub(super) fn remove(&mut self, partition: i32) {
        self.partitions.remove(&partition);
    }

    /// Goes on behind what was skipped; nothing for a partition that is not assigned.
    pub(super) fn seek(&mut self, partition: i32, next: i64) {
        if let Some(reading) = self.partitions.get_mut(&partition) {
            reading.next = next;
        }
    }

    /// Notes that a record has come.
    pub(super) fn arrive(&mut self, partition: i32, offset: i64) -> Arrival {
        let Some(reading) = self.partitions.get_mut(&partition) else { return Arrival::NotAssigned };
        if offset < reading.next {
            return Arrival::WentBack;
        }
        reading.next = offset + 1;
        Arrival::Read { assignment: reading.assignment }
    }

    /// Returns the next partition behind `last` that `fits`, round all of them; none where none fits.
    pub(super) fn next_after(&self, last: i32, fits: impl Fn(i32) -> bool) -> Option<i32> {
        let after = self.partitions.range(last.saturating_add(1)..).chain(self.partitions.iter());
        after.map(|(partition, _)| *partition).find(|partition| fits(*partition))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assignment(partitions: &[i32]) -> Assignment {
        let mut all = Assignment::default();
        for partition in partitions {
            all.insert(*partition, Reading { assignment: 7, next: 5 });
        }
        all
    }

    #[test]
    fn records_are_read_once_and_only_of_assigned_partitions() {
        let mut all = assignment(&[0]);
        let read = Arrival::Read { assignment: 7 };
        for (partition, offset, expected) in [
            (0, 4, Arrival::WentBack),
            (0, 5, read),
            (0, 5, Arrival::WentBack),
            // Compaction and markers of transactions leave gaps.
            (0, 9, read),
            (1, 0, Arrival::NotAssigned),
        ] {
            assert_eq!(all.arrive(partition, offset), expected, "{partition}/{offset}");
        }
        assert_eq!(all.get(0).unwrap().next, 10);
        all.seek(0, 20);
        all.seek(1, 20);
        assert_eq!(all.positions().collect::<Vec<_>>(), [(0, 20)]);
        all.remove(0);
        assert_eq!(all.arrive(0, 30), Arrival::NotAssigned);
    }

    #[test]
    fn partitions_take_turns() {
        let all = assignment(&[0, 3, 7]);
        for (last, expected) in [(-1, 0), (0, 3), (3, 7), (7, 0), (5, 7)] {
            assert_eq!(all.next_after(last, |_| true), Some(expected), "{last}");
        }
        assert_eq!(all.next_after(3, |partition| partition == 3), Some(3), "alone");
        assert_eq!(all.next_after(3, |partition| partition == 9), None);
        assert_eq!(assignment(&[]).next_after(-1, |_| true), None);
    }
}
