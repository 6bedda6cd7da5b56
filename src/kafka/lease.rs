//! Whether the group still counts this member in, as far as is known: whoever was given up hands nothing over.
//!
//! What is delivered while the group's coordinator cannot be reached is delivered twice if it does not come back before the
//! session is over, since the offset cannot be committed; so is what a member delivers that was frozen and does not know yet
//! that the group went on without it. An answer to a commit proves that the member still belongs. Beyond a few records,
//! delivery waits for such a proof.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// So many records may be delivered without a proof: whoever has little to deliver never waits for the coordinator.
const UNPROVEN_RECORDS: u64 = 200;
/// How old the question may be whose answer is the proof.
const LIMIT: Duration = Duration::from_millis(500);

/// The member's proof, renewed by its thread and asked for by whoever delivers.
#[derive(Debug)]
pub(super) struct Lease {
    base: Instant,
    limit_ms: AtomicU64,
    /// When the coordinator was asked what it has answered.
    asked_ms: AtomicU64,
    /// Records let through since the last proof.
    unproven: AtomicU64,
    wanted: AtomicBool,
    renewed: Notify,
}

impl Default for Lease {
    fn default() -> Self {
        let [limit_ms, asked_ms, unproven] = [0; 3].map(AtomicU64::new);
        let lease = Self {
            base: Instant::now(),
            limit_ms,
            asked_ms,
            unproven,
            wanted: false.into(),
            renewed: Notify::new(),
        };
        lease.with_commits_every(Duration::ZERO);
        lease
    }
}

impl Lease {
    /// Proofs come with commits, so they cannot be asked to be newer than those.
    pub(super) fn with_commits_every(&self, interval: Duration) {
        self.limit_ms.store(millis(LIMIT.max(2 * interval)), Ordering::Relaxed);
    }

    /// The coordinator has answered what it was asked then.
    pub(super) fn renew(&self, asked: Instant) {
        self.asked_ms.store(millis(asked.saturating_duration_since(self.base)), Ordering::Relaxed);
        self.unproven.store(0, Ordering::Relaxed);
        self.wanted.store(false, Ordering::Relaxed);
        self.renewed.notify_waiters();
    }

    /// Whether somebody waits for a proof.
    pub(super) fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed)
    }

    /// Whether so many records may be delivered now; if not, a proof is asked for.
    pub(super) fn allows(&self, records: u64) -> bool {
        let age_ms = millis(self.base.elapsed()).saturating_sub(self.asked_ms.load(Ordering::Relaxed));
        if age_ms < self.limit_ms.load(Ordering::Relaxed) {
            return true;
        }
        if self.unproven.fetch_add(records, Ordering::Relaxed) + records <= UNPROVEN_RECORDS {
            return true;
        }
        self.unproven.fetch_sub(records, Ordering::Relaxed);
        self.wanted.store(true, Ordering::Relaxed);
        false
    }

    /// Ends soon after the next proof, or after a while without one.
    pub(super) async fn renewed(&self) {
        // One that comes between the question and this wait is not heard, but the wait is short.
        let _ = tokio::time::timeout(Duration::from_millis(100), self.renewed.notified()).await;
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_records_need_no_proof_and_many_need_a_new_one() {
        let lease =
            Lease { base: Instant::now().checked_sub(Duration::from_secs(60)).unwrap(), ..Lease::default() };
        assert!(lease.allows(150) && lease.allows(50));
        assert!(!lease.is_wanted());
        assert!(!lease.allows(1));
        assert!(lease.is_wanted());
        // An answer to a question that is too old proves nothing about now, but a few more may go.
        lease.renew(Instant::now().checked_sub(Duration::from_secs(30)).unwrap());
        assert!(!lease.is_wanted());
        assert!(!lease.allows(201) && lease.allows(200) && !lease.allows(1));
        lease.renew(Instant::now());
        assert!(lease.allows(1_000_000));
    }

    #[test]
    fn a_proof_lasts_for_two_commit_intervals() {
        let lease =
            Lease { base: Instant::now().checked_sub(Duration::from_secs(60)).unwrap(), ..Lease::default() };
        lease.renew(Instant::now().checked_sub(Duration::from_secs(8)).unwrap());
        assert!(!lease.allows(2_000));
        lease.with_commits_every(Duration::from_secs(5));
        assert!(lease.allows(2_000));
    }
}
