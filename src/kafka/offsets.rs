//! Which offset of each partition may be committed: the lowest record that is not done yet, per assignment.
//!
//! Pure bookkeeping behind a lock; it knows no Kafka client. `kafka::consumer` feeds it, roles report what is done.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Identifies one record of one assignment of its partition; given back to [`Offsets::done`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Receipt {
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    /// Which assignment of the partition the record was read under.
    pub(crate) assignment: u64,
}

/// A record's receipt, and the offset that its partition had already reached where that was not below this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Read {
    pub(crate) receipt: Receipt,
    pub(crate) went_back_from: Option<i64>,
}

/// The records in flight of all assigned partitions.
#[derive(Debug, Default)]
pub(crate) struct Offsets {
    partitions: Mutex<HashMap<i32, Partition>>,
    /// How many assignments there were, of all partitions.
    assignments: AtomicU64,
    /// Signalled whenever a partition has nothing in flight any more.
    idle: Condvar,
}

#[derive(Debug)]
struct Partition {
    assignment: u64,
    /// The last offset read under this assignment.
    last_read: Option<i64>,
    /// Offsets delivered and not below the committable one, ascending, each with whether it is done.
    window: VecDeque<(i64, bool)>,
    /// Everything below is done; none until the first record is.
    committable: Option<i64>,
    /// What [`Offsets::take_committable`] last gave out.
    taken: Option<i64>,
}

impl Offsets {
    /// Starts the partition afresh: receipts of earlier assignments are void from here on.
    pub(crate) fn assign(&self, partition: i32) {
        let fresh = self.fresh();
        self.lock().insert(partition, fresh);
    }

    /// Forgets the partition.
    pub(crate) fn revoke(&self, partition: i32) {
        self.lock().remove(&partition);
        self.idle.notify_all();
    }

    /// Notes that a record was read; none where its partition is not assigned.
    ///
    /// Offsets only ever rise, unless the topic was made anew or its log truncated: then the partition starts afresh,
    /// since an offset no longer means the record that it did.
    pub(crate) fn read(&self, partition: i32, offset: i64) -> Option<Read> {
        let mut partitions = self.lock();
        let current = partitions.get_mut(&partition)?;
        let went_back_from = current.last_read.filter(|last| offset <= *last);
        if went_back_from.is_some() {
            *current = self.fresh();
        }
        current.last_read = Some(offset);
        Some(Read { receipt: Receipt { partition, offset, assignment: current.assignment }, went_back_from })
    }

    /// Notes that the record goes to the role; false where its assignment is over, and it must not go.
    pub(crate) fn deliver(&self, receipt: Receipt) -> bool {
        let mut partitions = self.lock();
        let Some(partition) = partitions.get_mut(&receipt.partition) else { return false };
        if partition.assignment != receipt.assignment {
            return false;
        }
        debug_assert!(partition.window.back().is_none_or(|(last, _)| *last < receipt.offset));
        partition.window.push_back((receipt.offset, false));
        true
    }

    /// Notes that the records are accepted downstream. Receipts of earlier assignments change nothing.
    pub(crate) fn done(&self, receipts: impl IntoIterator<Item = Receipt>) {
        let mut partitions = self.lock();
        let mut any_idle = false;
        for receipt in receipts {
            let Some(partition) = partitions.get_mut(&receipt.partition) else { continue };
            if partition.assignment == receipt.assignment {
                any_idle |= partition.done(receipt.offset);
            }
        }
        if any_idle {
            self.idle.notify_all();
        }
    }

    /// The next offset to commit of each partition where that moved since the last call.
    pub(crate) fn take_committable(&self) -> Vec<(i32, i64)> {
        let mut moved = Vec::new();
        for (number, partition) in self.lock().iter_mut() {
            if let Some(offset) = partition.committable.filter(|offset| partition.taken != Some(*offset)) {
                partition.taken = Some(offset);
                moved.push((*number, offset));
            }
        }
        moved
    }

    /// Waits until nothing of `partitions` (all of them where none are named) is in flight, at most `limit`.
    /// Returns how many records still were.
    pub(crate) fn wait_idle(&self, partitions: Option<&[i32]>, limit: Duration) -> usize {
        let deadline = Instant::now() + limit;
        let in_flight = |all: &HashMap<i32, Partition>| -> usize {
            let counts = |number: &i32| partitions.is_none_or(|wanted| wanted.contains(number));
            all.iter().filter(|(number, _)| counts(number)).map(|(_, partition)| partition.in_flight()).sum()
        };
        let mut all = self.lock();
        loop {
            let remaining = in_flight(&all);
            let left = deadline.saturating_duration_since(Instant::now());
            if remaining == 0 || left.is_zero() {
                return remaining;
            }
            all = self.idle.wait_timeout(all, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn fresh(&self) -> Partition {
        let assignment = self.assignments.fetch_add(1, Ordering::Relaxed) + 1;
        Partition { assignment, last_read: None, window: VecDeque::new(), committable: None, taken: None }
    }

    /// Every method leaves the map whole, so a panic elsewhere while it was held changes nothing.
    fn lock(&self) -> MutexGuard<'_, HashMap<i32, Partition>> {
        self.partitions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Partition {
    /// Marks one offset; true where nothing is in flight any more.
    fn done(&mut self, offset: i64) -> bool {
        if let Ok(index) = self.window.binary_search_by_key(&offset, |(offset, _)| *offset) {
            self.window[index].1 = true;
        }
        while let Some((offset, true)) = self.window.front() {
            self.committable = Some(offset + 1);
            self.window.pop_front();
        }
        self.window.is_empty()
    }

    fn in_flight(&self) -> usize {
        self.window.iter().filter(|(_, done)| !done).count()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Reads a record of partition 0 and hands it to the role.
    fn delivered(offsets: &Offsets, offset: i64) -> Receipt {
        let receipt = offsets.read(0, offset).unwrap().receipt;
        assert!(offsets.deliver(receipt));
        receipt
    }

    #[test]
    fn the_committable_offset_waits_for_the_lowest_record() {
        let offsets = Offsets::default();
        offsets.assign(0);
        let [five, six, nine] = [5, 6, 9].map(|offset| delivered(&offsets, offset));
        offsets.done([six, nine]);
        assert_eq!(offsets.take_committable(), []);
        offsets.done([five]);
        assert_eq!(offsets.take_committable(), [(0, 10)]);
        assert_eq!(offsets.take_committable(), [], "only what moved");
    }

    #[test]
    fn receipts_of_an_earlier_assignment_are_void() {
        let offsets = Offsets::default();
        offsets.assign(0);
        let old = delivered(&offsets, 5);
        let waiting = offsets.read(0, 6).unwrap().receipt;
        offsets.revoke(0);
        assert!(!offsets.deliver(waiting));
        assert_eq!(offsets.read(0, 7), None);
        offsets.assign(0);
        assert!(!offsets.deliver(waiting));
        let new = delivered(&offsets, 5);
        offsets.done([old]);
        assert_eq!(offsets.take_committable(), []);
        offsets.done([new]);
        assert_eq!(offsets.take_committable(), [(0, 6)]);
    }

    #[test]
    fn offsets_that_go_back_start_the_partition_afresh() {
        let offsets = Offsets::default();
        offsets.assign(0);
        let old = delivered(&offsets, 500);
        let read = offsets.read(0, 0).unwrap();
        assert_eq!(read.went_back_from, Some(500));
        assert!(offsets.deliver(read.receipt));
        offsets.done([old]);
        assert_eq!(offsets.take_committable(), [], "the old record 500 says nothing of the new topic");
        offsets.done([read.receipt]);
        assert_eq!(offsets.take_committable(), [(0, 1)]);
    }

    #[test]
    fn waiting_ends_when_the_last_record_is_done_or_time_is_up() {
        let offsets = Offsets::default();
        offsets.assign(0);
        let receipt = delivered(&offsets, 5);
        assert_eq!(offsets.wait_idle(None, Duration::from_millis(1)), 1);
        assert_eq!(offsets.wait_idle(Some(&[7]), Duration::from_secs(60)), 0, "another partition");
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| offsets.wait_idle(Some(&[0]), Duration::from_secs(60)));
            offsets.done([receipt]);
            assert_eq!(waiting.join().unwrap(), 0);
        });
    }

    proptest! {
        /// Whatever the order of deliveries and acknowledgements, with gaps in the offsets and a re-assignment in
        /// the middle, nothing at or above the lowest record in flight becomes committable.
        #[test]
        fn never_committable_past_a_record_in_flight(steps in prop::collection::vec((0u8..10, 0usize..20), 1..200)) {
            let offsets = Offsets::default();
            offsets.assign(0);
            let (mut next, mut in_flight, mut old) = (0i64, Vec::new(), Vec::new());
            for (step, pick) in steps {
                match step {
                    0..5 => {
                        next += 1 + (pick as i64 % 3);
                        in_flight.push(delivered(&offsets, next));
                    }
                    5..8 if !in_flight.is_empty() => {
                        let done = in_flight.remove(pick % in_flight.len());
                        offsets.done([done]);
                    }
                    8 if !old.is_empty() => offsets.done([old[pick % old.len()]]),
                    9 if pick == 0 => {
                        offsets.revoke(0);
                        old.append(&mut in_flight);
                        next = 0;
                        offsets.assign(0);
                    }
                    _ => {}
                }
                let lowest = in_flight.iter().map(|receipt| receipt.offset).min();
                for (_, committable) in offsets.take_committable() {
                    prop_assert!(committable <= lowest.unwrap_or(next + 1));
                    if lowest.is_none() {
                        prop_assert_eq!(committable, next + 1);
                    }
                }
            }
            prop_assert_eq!(offsets.wait_idle(None, Duration::ZERO), in_flight.len());
        }
    }
}
