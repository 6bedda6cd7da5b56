//! Which offset of each partition may be committed: that of the lowest record that is not done yet, per assignment.
//!
//! Pure bookkeeping behind a lock; it knows no Kafka client. `kafka::consumer` feeds it, roles report what is done. It
//! counts in runs, one per partition of a batch, so that its cost is per batch and not per record.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Records of one partition, read one after the other under one assignment; given back to [`Offsets::done`].
///
/// Offsets may be missing in between, where the log is compacted or holds markers of transactions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Receipt {
    pub(crate) partition: i32,
    /// Which assignment of the partition the records were read under.
    pub(crate) assignment: u64,
    pub(crate) first: i64,
    pub(crate) last: i64,
    /// How many records these are.
    pub(crate) records: u32,
}

impl Receipt {
    /// Of one record.
    pub(crate) fn one(partition: i32, assignment: u64, offset: i64) -> Self {
        Self { partition, assignment, first: offset, last: offset, records: 1 }
    }
}

/// The receipts of a batch that ends as one: records of one partition and assignment, in the order they were read.
#[derive(Debug, Default)]
pub(crate) struct Receipts(Vec<Receipt>);

impl Receipts {
    /// Adds a record behind those of its partition, to the receipt that they share.
    pub(crate) fn add(&mut self, partition: i32, assignment: u64, offset: i64) {
        // Records come in runs of one partition, so the last one looked at is nearly always the right one.
        let same = |r: &&mut Receipt| r.partition == partition && r.assignment == assignment;
        match self.0.iter_mut().rev().find(same) {
            Some(receipt) => {
                debug_assert!(receipt.last < offset);
                receipt.last = offset;
                receipt.records += 1;
            }
            None => self.0.push(Receipt::one(partition, assignment, offset)),
        }
    }

    /// Adds a receipt behind those of its partition.
    pub(crate) fn push(&mut self, receipt: Receipt) {
        self.0.push(receipt);
    }

    /// Keeps those that `keep` says; true where all were kept.
    pub(crate) fn retain(&mut self, keep: impl FnMut(&Receipt) -> bool) -> bool {
        let before = self.0.len();
        self.0.retain(keep);
        self.0.len() == before
    }

    /// Whether records of this partition and assignment are among them.
    pub(crate) fn contains(&self, partition: i32, assignment: u64) -> bool {
        self.0.iter().any(|receipt| receipt.partition == partition && receipt.assignment == assignment)
    }

    /// How many records these are.
    pub(crate) fn records(&self) -> u64 {
        self.0.iter().map(|receipt| u64::from(receipt.records)).sum()
    }

    /// One for each partition.
    pub(crate) fn as_slice(&self) -> &[Receipt] {
        &self.0
    }
}

/// The records in flight of all assigned partitions.
#[derive(Debug, Default)]
pub(crate) struct Offsets {
    partitions: Mutex<HashMap<i32, Partition>>,
    /// How many assignments there were, of all partitions.
    assignments: AtomicU64,
    /// Records delivered that may not be committed yet, over all partitions.
    uncommittable: AtomicU64,
    /// Signalled whenever a partition has nothing in flight any more.
    idle: Condvar,
}

#[derive(Debug)]
struct Partition {
    assignment: u64,
    /// Runs delivered and not below the committable offset, ascending, each with whether it is done.
    window: VecDeque<(Receipt, bool)>,
    /// Everything below is done.
    committable: i64,
    /// What [`Offsets::take_committable`] last gave out; none where the group does not have it yet.
    taken: Option<i64>,
}

impl Offsets {
    /// Starts the partition afresh: receipts of earlier assignments are void from here on. `start` is the next offset to
    /// read; `committed` tells whether the group has it already, otherwise it is the first to be committed.
    /// Returns the assignment's number.
    pub(crate) fn assign(&self, partition: i32, start: i64, committed: bool) -> u64 {
        let assignment = self.assignments.fetch_add(1, Ordering::Relaxed) + 1;
        let taken = committed.then_some(start);
        let fresh = Partition { assignment, window: VecDeque::new(), committable: start, taken };
        let before = self.lock().insert(partition, fresh);
        self.forget(before);
        assignment
    }

    /// Forgets the partition.
    pub(crate) fn revoke(&self, partition: i32) {
        let before = self.lock().remove(&partition);
        self.forget(before);
    }

    fn forget(&self, partition: Option<Partition>) {
        if let Some(partition) = partition {
            let records = partition.window.iter().map(|(receipt, _)| u64::from(receipt.records)).sum();
            self.uncommittable.fetch_sub(records, Ordering::Relaxed);
        }
        self.idle.notify_all();
    }

    /// The number of the partition's assignment; none where it is not assigned.
    #[cfg(test)]
    pub(crate) fn assignment(&self, partition: i32) -> Option<u64> {
        self.lock().get(&partition).map(|partition| partition.assignment)
    }

    /// Notes that the records go to the role; false where their assignment is over, and they must not go.
    pub(crate) fn deliver(&self, receipt: &Receipt) -> bool {
        let mut partitions = self.lock();
        let Some(partition) = partitions.get_mut(&receipt.partition) else { return false };
        if partition.assignment != receipt.assignment {
            return false;
        }
        debug_assert!(partition.window.back().is_none_or(|(last, _)| last.last < receipt.first));
        partition.window.push_back((*receipt, false));
        self.uncommittable.fetch_add(receipt.records.into(), Ordering::Relaxed);
        true
    }

    /// Whether the records still belong to an assignment.
    pub(crate) fn is_current(&self, receipt: &Receipt) -> bool {
        self.lock()
            .get(&receipt.partition)
            .is_some_and(|partition| partition.assignment == receipt.assignment)
    }

    /// Notes that the records are accepted downstream. Receipts of earlier assignments change nothing.
    pub(crate) fn done(&self, receipts: &[Receipt]) {
        let mut partitions = self.lock();
        let mut any_idle = false;
        for receipt in receipts {
            let Some(partition) = partitions.get_mut(&receipt.partition) else { continue };
            if partition.assignment == receipt.assignment {
                let records = partition.done(receipt);
                self.uncommittable.fetch_sub(records, Ordering::Relaxed);
                any_idle |= partition.window.is_empty();
            }
        }
        if any_idle {
            self.idle.notify_all();
        }
    }

    /// How many records were delivered whose offset may not be committed yet: after a crash, these come again.
    pub(crate) fn uncommittable(&self) -> u64 {
        self.uncommittable.load(Ordering::Relaxed)
    }

    /// The next offset to commit of each partition where that moved since the last call.
    pub(crate) fn take_committable(&self) -> Vec<(i32, i64)> {
        let mut moved = Vec::new();
        for (number, partition) in self.lock().iter_mut() {
            if partition.taken != Some(partition.committable) {
                partition.taken = Some(partition.committable);
                moved.push((*number, partition.committable));
            }
        }
        moved
    }

    /// What was taken could not be committed: [`Offsets::take_committable`] gives it out again, or what it is by then.
    pub(crate) fn not_committed(&self, partition: i32) {
        if let Some(partition) = self.lock().get_mut(&partition) {
            partition.taken = None;
        }
    }

    /// Waits until nothing of `partitions` (all of them where none are named) is in flight, at most `limit`.
    /// Returns how many records still were.
    pub(crate) fn wait_idle(&self, partitions: Option<&[i32]>, limit: Duration) -> u64 {
        let deadline = Instant::now() + limit;
        let in_flight = |all: &HashMap<i32, Partition>| -> u64 {
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

    /// Every method leaves the map whole, so a panic elsewhere while it was held changes nothing.
    fn lock(&self) -> MutexGuard<'_, HashMap<i32, Partition>> {
        self.partitions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Partition {
    /// Marks one run; returns how many records became committable.
    fn done(&mut self, receipt: &Receipt) -> u64 {
        if let Ok(index) = self.window.binary_search_by_key(&receipt.first, |(run, _)| run.first) {
            self.window[index].1 = true;
        }
        let mut records = 0;
        while let Some((run, true)) = self.window.front() {
            self.committable = run.last + 1;
            records += u64::from(run.records);
            self.window.pop_front();
        }
        records
    }

    fn in_flight(&self) -> u64 {
        self.window.iter().filter(|(_, done)| !done).map(|(run, _)| u64::from(run.records)).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Hands records of partition 0 to the role.
    fn delivered(offsets: &Offsets, first: i64, last: i64) -> Receipt {
        let assignment = offsets.assignment(0).unwrap();
        let records = u32::try_from(last - first + 1).unwrap();
        let receipt = Receipt { partition: 0, assignment, first, last, records };
        assert!(offsets.deliver(&receipt));
        receipt
    }

    #[test]
    fn the_committable_offset_waits_for_the_lowest_record() {
        let offsets = Offsets::default();
        offsets.assign(0, 5, true);
        let [five, six, nine] =
            [(5, 5), (6, 8), (9, 9)].map(|(first, last)| delivered(&offsets, first, last));
        assert_eq!(offsets.uncommittable(), 5);
        offsets.done(&[six, nine]);
        assert_eq!(offsets.take_committable(), []);
        assert_eq!(offsets.uncommittable(), 5, "done, but they would come again");
        offsets.done(&[five]);
        assert_eq!(offsets.take_committable(), [(0, 10)]);
        assert_eq!(offsets.take_committable(), [], "only what moved");
        assert_eq!(offsets.uncommittable(), 0);
        offsets.not_committed(0);
        assert_eq!(offsets.take_committable(), [(0, 10)], "and what could not be committed");
    }

    #[test]
    fn a_start_that_the_group_does_not_have_yet_is_committed_first() {
        let offsets = Offsets::default();
        offsets.assign(0, 5, false);
        offsets.assign(1, 7, true);
        assert_eq!(offsets.take_committable(), [(0, 5)]);
    }

    #[test]
    fn receipts_of_an_earlier_assignment_are_void() {
        let offsets = Offsets::default();
        let first = offsets.assign(0, 5, true);
        let old = delivered(&offsets, 5, 5);
        let waiting = Receipt::one(0, first, 6);
        offsets.revoke(0);
        assert_eq!(offsets.uncommittable(), 0);
        assert!(!offsets.deliver(&waiting));
        assert_eq!(offsets.assignment(0), None);
        offsets.assign(0, 5, true);
        assert!(!offsets.deliver(&waiting));
        let new = delivered(&offsets, 5, 5);
        offsets.done(&[old]);
        assert_eq!(offsets.take_committable(), []);
        offsets.done(&[new]);
        assert_eq!(offsets.take_committable(), [(0, 6)]);
    }

    #[test]
    fn a_batch_has_one_receipt_for_each_partition_and_assignment() {
        let mut receipts = Receipts::default();
        for (partition, assignment, offset) in [(0, 1, 5), (1, 2, 8), (0, 1, 6), (0, 1, 9), (0, 3, 2)] {
            receipts.add(partition, assignment, offset);
        }
        let expected = [
            Receipt { partition: 0, assignment: 1, first: 5, last: 9, records: 3 },
            Receipt::one(1, 2, 8),
            Receipt::one(0, 3, 2),
        ];
        assert_eq!(receipts.as_slice(), expected);
        assert_eq!(receipts.records(), 5);
        assert!(receipts.contains(1, 2) && !receipts.contains(1, 1));
    }

    #[test]
    fn waiting_ends_when_the_last_record_is_done_or_time_is_up() {
        let offsets = Offsets::default();
        offsets.assign(0, 5, true);
        let receipt = delivered(&offsets, 5, 5);
        assert_eq!(offsets.wait_idle(None, Duration::from_millis(1)), 1);
        assert_eq!(offsets.wait_idle(Some(&[7]), Duration::from_secs(60)), 0, "another partition");
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| offsets.wait_idle(Some(&[0]), Duration::from_secs(60)));
            offsets.done(&[receipt]);
            assert_eq!(waiting.join().unwrap(), 0);
        });
    }

    /// What the tracker must agree with: single offsets, in plain sets.
    #[derive(Default)]
    struct Model {
        assignment: Option<u64>,
        /// The next offset to read, and offsets delivered and not done.
        next: i64,
        open: BTreeSet<i64>,
        committed: i64,
    }

    /// Deliver, done, done late (of an assignment that is over), revoke, assign (with or without a revoke before; at the
    /// committed offset, or lower where that was lost) and commits that may fail, on three partitions, in any order.
    fn happen_in_any_order(random: &mut fastrand::Rng) {
        let offsets = Offsets::default();
        let mut models: [Model; 3] = std::array::from_fn(|_| Model::default());
        let (mut in_flight, mut late) = (Vec::<Receipt>::new(), Vec::<Receipt>::new());
        for _ in 0..random.usize(1..60) {
            let partition = random.i32(0..3);
            let model = &mut models[partition as usize];
            match random.u8(0..16) {
                0..6 => {
                    let (first, records) = (model.next + random.i64(0..3), random.u32(1..5));
                    let last = first + i64::from(records) - 1;
                    let assignment = model.assignment.unwrap_or(u64::MAX);
                    let receipt = Receipt { partition, assignment, first, last, records };
                    assert_eq!(offsets.deliver(&receipt), model.assignment.is_some());
                    if model.assignment.is_some() {
                        model.next = last + 1;
                        model.open.extend(first..=last);
                        in_flight.push(receipt);
                    }
                }
                6..11 if !in_flight.is_empty() => {
                    let receipt = in_flight.swap_remove(random.usize(0..in_flight.len()));
                    offsets.done(&[receipt]);
                    let open = &mut models[receipt.partition as usize].open;
                    open.retain(|offset| !(receipt.first..=receipt.last).contains(offset));
                }
                11 if !late.is_empty() => offsets.done(&[late[random.usize(0..late.len())]]),
                12 => {
                    offsets.revoke(partition);
                    model.assignment = None;
                    model.open.clear();
                    late.extend(in_flight.extract_if(.., |receipt| receipt.partition == partition));
                }
                13 => {
                    let rewind = random.i64(0..4);
                    model.committed = (model.committed - rewind).max(0);
                    model.next = model.committed;
                    model.open.clear();
                    model.assignment = Some(offsets.assign(partition, model.next, rewind == 0));
                    late.extend(in_flight.extract_if(.., |receipt| receipt.partition == partition));
                }
                14.. => commit(&offsets, &mut models, random.bool()),
                _ => {}
            }
            let open: usize = models.iter().map(|model| model.open.len()).sum();
            assert!(offsets.uncommittable() >= open as u64);
        }
        let open: usize = models.iter().map(|model| model.open.len()).sum();
        assert_eq!(offsets.wait_idle(None, Duration::ZERO), open as u64);
    }

    fn commit(offsets: &Offsets, models: &mut [Model; 3], fails: bool) {
        for (partition, offset) in offsets.take_committable() {
            let model = &mut models[partition as usize];
            assert!(model.assignment.is_some());
            let lowest = model.open.first().copied().unwrap_or(model.next);
            assert!(offset <= lowest, "{offset} is past {lowest}");
            if fails {
                offsets.not_committed(partition);
            } else {
                assert!(offset >= model.committed, "never back within an assignment");
                model.committed = offset;
            }
        }
        for model in models {
            if model.assignment.is_some() && model.open.is_empty() && !fails {
                assert_eq!(model.committed, model.next, "all of it is done");
            }
        }
    }

    /// Whatever the order: what is committed never passes a record of the assignment that is not done, late receipts change
    /// nothing, and with nothing in flight all is committed. A failure names the seed of its order.
    #[test]
    fn never_committed_past_a_record_in_flight_in_100_000_random_orders() {
        for seed in 0..100_000 {
            let order = || happen_in_any_order(&mut fastrand::Rng::with_seed(seed));
            assert!(std::panic::catch_unwind(order).is_ok(), "seed {seed}");
        }
    }
}
