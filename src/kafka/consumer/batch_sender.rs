//! The batch that is being filled, and the bounded queue that the role takes batches from.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio_util::sync::DropGuard;

use super::super::native::Fetched;
use super::super::offsets::Offsets;
use super::batch::{Position, RecordBatch, SkippedRange};

/// How large a batch grows, and how long it waits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BatchLimits {
    pub(crate) records: usize,
    /// Of keys, values and headers; the record that reaches the limit is the last.
    pub(crate) bytes: usize,
    /// How long the first record waits for others.
    pub(crate) linger: Duration,
    /// Whether the role gives back each record by itself, instead of all records of a partition in the batch together.
    pub(crate) own_receipts: bool,
}

/// The thread's end of the queue.
pub(super) struct BatchSender {
    sender: mpsc::Sender<RecordBatch>,
    /// Tells the role, once dropped, that there will be no more batches than those that wait already.
    _finishing: Option<DropGuard>,
    limits: BatchLimits,
    batch: RecordBatch,
    /// When the first record of the batch was read.
    since: Option<Instant>,
}

impl BatchSender {
    pub(super) fn new(
        sender: mpsc::Sender<RecordBatch>,
        finishing: Option<DropGuard>,
        limits: BatchLimits,
    ) -> Self {
        Self { sender, _finishing: finishing, limits, batch: RecordBatch::default(), since: None }
    }

    /// Copies a record into the batch.
    pub(super) fn add(&mut self, record: Fetched<'_>, assignment: u64) {
        let (partition, offset) = record.position();
        let at = Position { partition, assignment, offset };
        self.batch.add(at, record.timestamp_ms(), record.key(), record.value(), self.limits.own_receipts);
        record.headers(|name, value| self.batch.add_header(&name, value));
        self.since.get_or_insert_with(Instant::now);
    }

    pub(super) fn add_skipped(&mut self, range: SkippedRange) {
        self.batch.add_skipped(range);
        self.since.get_or_insert_with(Instant::now);
    }

    pub(super) fn is_full(&self) -> bool {
        self.batch.len() >= self.limits.records || self.batch.content_bytes() >= self.limits.bytes
    }

    /// How long the batch still waits for further records; none where there is no batch.
    pub(super) fn due_in(&self, now: Instant) -> Option<Duration> {
        let waited = now.duration_since(self.since?);
        Some(if self.is_full() { Duration::ZERO } else { self.limits.linger.saturating_sub(waited) })
    }

    /// Hands the batch over, without the records that are assigned to another member by now; false where there is no room.
    pub(super) fn send(&mut self, offsets: &Offsets) -> bool {
        let Ok(room) = self.sender.try_reserve() else { return false };
        // The next batch will most likely be as large as this one.
        let next = self.batch.new_like();
        let mut batch = std::mem::replace(&mut self.batch, next);
        self.since = None;
        batch.retain(|receipt| offsets.deliver(receipt));
        if !batch.is_empty() {
            room.send(batch);
        }
        true
    }

    /// Waits until there is room, at most `limit`; false where there is none by then.
    pub(super) fn wait_for_room(&self, runtime: &tokio::runtime::Handle, limit: Duration) -> bool {
        let room = async { tokio::time::timeout(limit, self.sender.reserve()).await.is_ok() };
        runtime.block_on(room)
    }

    /// Whether the role is gone.
    pub(super) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINGER: Duration = Duration::from_millis(10);

    fn stand(records: usize, bytes: usize) -> (BatchSender, mpsc::Receiver<RecordBatch>, Offsets) {
        let (sender, receiver) = mpsc::channel(1);
        let limits = BatchLimits { records, bytes, linger: LINGER, own_receipts: false };
        let offsets = Offsets::default();
        assert_eq!(offsets.assign(0, 0, true), 1);
        (BatchSender::new(sender, None, limits), receiver, offsets)
    }

    fn skipped(partition: i32, offset: i64) -> SkippedRange {
        SkippedRange { partition, assignment: 1, first: offset, last: offset, error: String::new() }
    }

    fn add(sender: &mut BatchSender, offset: i64, value: &[u8]) {
        let at = Position { partition: 0, assignment: 1, offset };
        sender.batch.add(at, None, None, Some(value), false);
        sender.since.get_or_insert_with(Instant::now);
    }

    #[test]
    fn a_batch_is_due_once_it_is_full_or_has_waited() {
        let (mut sender, _receiver, _) = stand(2, 10);
        assert_eq!(sender.due_in(Instant::now()), None);
        add(&mut sender, 0, b"a");
        let since = sender.since.unwrap();
        assert_eq!(sender.due_in(since), Some(LINGER));
        assert_eq!(sender.due_in(since + LINGER), Some(Duration::ZERO));
        add(&mut sender, 1, b"b");
        assert_eq!(sender.due_in(since), Some(Duration::ZERO), "two records");
        let (mut sender, _receiver, _) = stand(20, 10);
        add(&mut sender, 0, b"0123456789");
        assert!(sender.is_full(), "ten bytes");
    }

    #[test]
    fn a_batch_stays_until_there_is_room_and_counts_as_delivered_from_then_on() {
        let (mut sender, mut receiver, offsets) = stand(2, 10);
        add(&mut sender, 0, b"a");
        assert!(sender.send(&offsets));
        add(&mut sender, 1, b"b");
        assert!(!sender.send(&offsets), "the queue holds one");
        assert_eq!(offsets.uncommittable(), 1);
        assert_eq!(receiver.try_recv().unwrap().len(), 1);
        assert!(sender.send(&offsets));
        assert_eq!(offsets.uncommittable(), 2);
        assert!(sender.batch.is_empty() && sender.due_in(Instant::now()).is_none());
        assert!(!sender.is_closed());
        drop(receiver);
        assert!(sender.is_closed());
    }

    #[test]
    fn what_is_no_longer_assigned_is_not_handed_over() {
        let (mut sender, mut receiver, offsets) = stand(2, 10);
        add(&mut sender, 0, b"a");
        sender.add_skipped(skipped(1, 0));
        offsets.revoke(0);
        assert!(sender.send(&offsets));
        assert!(receiver.try_recv().is_err(), "nothing is left of it");
        assert_eq!(offsets.uncommittable(), 0);
    }
}
