//! Calls that Pub/Sub has not accepted for a while, in the order of their records: the oldest are tried, the others wait.
//!
//! An offset is committed once all before it are done. When Pub/Sub is back, what is accepted out of order is delivered
//! twice if this process is gone, or its partitions are, before the gap behind it is closed.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Calls are tried while there are no more records than this in those before them.
const TRIED_RECORDS: u64 = 4_000;

/// The calls that wait, and the numbers of all.
#[derive(Default)]
pub(super) struct Held {
    numbers: AtomicU64,
    /// Records of each.
    calls: Mutex<BTreeMap<u64, u64>>,
    left: Notify,
}

/// A call's place among them, until it is dropped.
pub(super) struct Place<'a> {
    held: &'a Held,
    number: u64,
}

impl Held {
    /// Numbers a call; to be done in the order of their records.
    pub(super) fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// The call of this number waits from now on.
    pub(super) fn join(&self, number: u64, records: u64) -> Place<'_> {
        self.calls().insert(number, records);
        Place { held: self, number }
    }

    fn calls(&self) -> MutexGuard<'_, BTreeMap<u64, u64>> {
        // Nothing panics while it is held.
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place<'_> {
    /// Ends once the call may be tried.
    pub(super) async fn turn(&self) {
        loop {
            let mut left = pin!(self.held.left.notified());
            // From here on no notification is missed.
            left.as_mut().enable();
            let before: u64 = self.held.calls().range(..self.number).map(|(_, records)| records).sum();
            if before < TRIED_RECORDS {
                return;
            }
            left.await;
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.held.calls().remove(&self.number);
        self.held.left.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn the_oldest_go_first_whenever_they_joined() {
        let held = Held::default();
        let numbers: Vec<u64> = (0..6).map(|_| held.number()).collect();
        let place = |index: usize| held.join(numbers[index], 2_000);
        let [last, fourth] = [place(5), place(3)];
        assert!(last.turn().now_or_never().is_some(), "2,000 records before it");
        let [first, second] = [place(0), place(1)];
        assert!(first.turn().now_or_never().is_some() && second.turn().now_or_never().is_some());
        let mut waits = pin!(fourth.turn());
        assert!(waits.as_mut().now_or_never().is_none() && last.turn().now_or_never().is_none());
        drop(first);
        assert!(waits.now_or_never().is_some());
        assert!(last.turn().now_or_never().is_none());
    }
}
