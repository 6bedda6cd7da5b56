//! How a consumer is doing, as its thread tells it and others see it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::commit::NextOffset;

/// A thread that has not come round to polling for this long never will: an outside call hangs, or a defect of ours.
pub(crate) const STALL_TIMEOUT: Duration = Duration::from_secs(60);

/// Looks at a consumer from outside its thread; cheap to clone.
#[derive(Clone)]
pub(crate) struct Watch(Arc<State>);

/// How a consumer is doing.
#[derive(Debug, Clone, Default)]
pub(crate) struct Snapshot {
    /// Records read so far.
    pub(crate) records: u64,
    /// How often partitions were assigned, revoked, and lost: taken away without being asked for first.
    pub(crate) assigned: u64,
    pub(crate) revoked: u64,
    pub(crate) lost: u64,
    /// The assigned partitions.
    pub(crate) partitions: BTreeMap<i32, PartitionState>,
    /// Partitions that are paused at a corrupt record batch.
    pub(crate) corrupt_partitions: usize,
    /// Corrupt record batches that were skipped.
    pub(crate) skipped_batches: u64,
    /// Why it cannot move, if so.
    pub(crate) trouble: Option<String>,
}

/// One assigned partition.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PartitionState {
    /// What the group has committed, or the start where that is on its way.
    pub(crate) committed: i64,
    /// The end of the partition; none before the first fetch.
    pub(crate) high_watermark: Option<i64>,
}

impl PartitionState {
    /// Records between the committed offset and the end of the partition.
    pub(crate) fn lag(&self) -> Option<u64> {
        self.high_watermark.map(|high| u64::try_from(high - self.committed).unwrap_or_default())
    }
}

impl Watch {
    pub(super) fn of(state: Arc<State>) -> Self {
        Self(state)
    }

    /// How it is doing now; lags and trouble are at most a second old.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let state = &self.0;
        let joining =
            || (!state.joined.load(Ordering::Relaxed)).then(|| "joining the consumer group".to_owned());
        let corrupt = state.corrupt();
        let stopped = corrupt.first_key_value().map(|(partition, offset)| {
            let others = match corrupt.len() {
                0 | 1 => String::new(),
                all => format!(" and {} other partitions", all - 1),
            };
            format!("a corrupt record batch stops partition {partition} at offset {offset}{others}")
        });
        let trouble = state.trouble().clone();
        Snapshot {
            records: state.records.load(Ordering::Relaxed),
            assigned: state.assigned.load(Ordering::Relaxed),
            revoked: state.revoked.load(Ordering::Relaxed),
            lost: state.lost.load(Ordering::Relaxed),
            partitions: state.partitions().clone(),
            corrupt_partitions: corrupt.len(),
            skipped_batches: state.skipped_batches.load(Ordering::Relaxed),
            trouble: trouble.or(stopped).or_else(joining),
        }
    }

    /// Ends once the thread has not come round to polling for `limit`.
    ///
    /// Counted in ticks and not by the clock, which goes on while the whole process is stopped (SIGSTOP, a frozen
    /// virtual machine) and the thread is not to blame.
    pub(crate) async fn stalled(&self, limit: Duration) {
        const TICKS: u32 = 60;
        let (mut last, mut quiet) = (None, 0);
        while quiet < TICKS {
            tokio::time::sleep(limit / TICKS).await;
            let now = Some(self.0.rounds.load(Ordering::Relaxed));
            quiet = if now == last { quiet + 1 } else { 0 };
            last = now;
        }
    }
}

/// What the thread tells.
#[derive(Debug, Default)]
pub(super) struct State {
    rounds: AtomicU64,
    pub(super) records: AtomicU64,
    pub(super) assigned: AtomicU64,
    pub(super) revoked: AtomicU64,
    pub(super) lost: AtomicU64,
    pub(super) joined: AtomicBool,
    pub(super) skipped_batches: AtomicU64,
    trouble: Mutex<Option<String>>,
    partitions: Mutex<BTreeMap<i32, PartitionState>>,
    corrupt: Mutex<BTreeMap<i32, i64>>,
}

impl State {
    /// Notes that the thread comes round: called wherever it may stay for long.
    pub(super) fn come_round(&self) {
        self.rounds.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes what the group has by now.
    pub(super) fn committed(&self, offsets: &[NextOffset]) {
        let mut partitions = self.partitions();
        for (partition, offset) in offsets {
            if let Some(state) = partitions.get_mut(partition) {
                state.committed = *offset;
            }
        }
    }

    pub(super) fn trouble(&self) -> MutexGuard<'_, Option<String>> {
        lock(&self.trouble)
    }

    pub(super) fn partitions(&self) -> MutexGuard<'_, BTreeMap<i32, PartitionState>> {
        lock(&self.partitions)
    }

    /// The partitions that are paused at a corrupt record batch, and the next offset of each.
    pub(super) fn corrupt(&self) -> MutexGuard<'_, BTreeMap<i32, i64>> {
        lock(&self.corrupt)
    }
}

/// Whoever holds one of these leaves it whole, so a panic elsewhere changes nothing.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_consumer_tells_why_it_does_not_move() {
        let state = Arc::new(State::default());
        let watch = Watch::of(state.clone());
        let trouble = || watch.snapshot().trouble;
        assert_eq!(trouble().unwrap(), "joining the consumer group");
        state.joined.store(true, Ordering::Relaxed);
        assert_eq!(trouble(), None);
        state.corrupt().insert(3, 17);
        assert_eq!(trouble().unwrap(), "a corrupt record batch stops partition 3 at offset 17");
        state.corrupt().insert(4, 0);
        assert_eq!(
            trouble().unwrap(),
            "a corrupt record batch stops partition 3 at offset 17 and 1 other partitions"
        );
        assert_eq!(watch.snapshot().corrupt_partitions, 2);
        *state.trouble() = Some("no Kafka broker answers".to_owned());
        assert_eq!(trouble().unwrap(), "no Kafka broker answers");
    }

    #[test]
    fn only_partitions_that_are_assigned_have_a_lag() {
        let state = Arc::new(State::default());
        state.partitions().insert(0, PartitionState { committed: 0, high_watermark: Some(12) });
        state.committed(&[(0, 5), (1, 5)]);
        let partitions = Watch::of(state).snapshot().partitions;
        assert_eq!(partitions.len(), 1);
        assert_eq!(partitions[&0].lag(), Some(7));
    }

    #[tokio::test(start_paused = true)]
    async fn a_thread_that_does_not_come_round_is_stalled() {
        let state = Arc::new(State::default());
        let watch = Watch::of(state.clone());
        let polling = async {
            loop {
                state.come_round();
                tokio::time::sleep(Duration::from_millis(400)).await;
            }
        };
        let hour = tokio::time::timeout(Duration::from_secs(3_600), watch.stalled(STALL_TIMEOUT));
        tokio::select! {
            stalled = hour => assert!(stalled.is_err(), "it comes round"),
            () = polling => {}
        }
        let blocked = tokio::time::timeout(2 * STALL_TIMEOUT, watch.stalled(STALL_TIMEOUT));
        assert!(blocked.await.is_ok());
    }
}
