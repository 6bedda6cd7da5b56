//! Whether the group still counts this member in, as far as is known: whoever was given up hands nothing over.
//!
//! What is delivered while the group's coordinator cannot be reached is delivered twice if it does not come back before the
//! session is over, since the offset cannot be committed; so is what a member delivers that was frozen and does not know yet
//! that the group went on without it. An answer to a commit proves that the member still belongs, and that what it covers is
//! safe. Beyond a few records, delivery waits for such a proof.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// So many records may be delivered without a proof: whoever has little to deliver never waits for the coordinator.
const UNPROVEN_RECORDS: u64 = 200;
/// How old the question may be whose answer is the proof.
const LIMIT: Duration = Duration::from_millis(500);
/// Records that may be delivered, but not known to be committed, before more is: this, or so many times as many as the last
/// proof brought, or half of what it was before. Who is fast commits often, and is not held up; a burst after a silence goes
/// in steps.
const BURST_RECORDS: u64 = 4_000;
const BURST_GROWTH: u64 = 8;

/// The member's proof, renewed by its thread and asked for by whoever delivers.
#[derive(Debug)]
pub(super) struct Lease {
    base: Instant,
    limit_ms: AtomicU64,
    /// When the coordinator was asked what it has answered.
    asked_ms: AtomicU64,
    /// Of the records ever committable, how many the group has.
    proven: AtomicU64,
    /// How many may be committable beyond those.
    burst: AtomicU64,
    /// Records let through on an old proof.
    unproven: AtomicU64,
    wanted: AtomicBool,
    renewed: Notify,
}

impl Default for Lease {
    fn default() -> Self {
        let [limit_ms, asked_ms, proven, unproven] = [0; 4].map(AtomicU64::new);
        let lease = Self {
            base: Instant::now(),
            limit_ms,
            asked_ms,
            proven,
            burst: BURST_RECORDS.into(),
            unproven,
            wanted: false.into(),
            renewed: Notify::new(),
        };
        lease.with_commits_every(Duration::ZERO);
        lease
    }
}

impl Lease {
    /// One that allows everything, for as long as a test takes.
    #[cfg(test)]
    pub(super) fn for_ever() -> Self {
        let lease = Self { proven: (u64::MAX / 2).into(), ..Self::default() };
        lease.renew(Instant::now() + Duration::from_secs(3600), u64::MAX / 2);
        lease
    }

    /// Proofs come with commits, so they cannot be asked to be newer than those.
    pub(super) fn with_commits_every(&self, interval: Duration) {
        self.limit_ms.store(millis(LIMIT.max(2 * interval)), Ordering::Relaxed);
    }

    /// The coordinator has answered what it was asked then; it has so many of the records that were ever committable.
    pub(super) fn renew(&self, asked: Instant, committed: u64) {
        self.asked_ms.store(millis(asked.saturating_duration_since(self.base)), Ordering::Relaxed);
        let before = self.proven.fetch_max(committed, Ordering::Relaxed);
        let brought = committed.saturating_sub(before).saturating_mul(BURST_GROWTH);
        // Only the member's thread gets here.
        let burst = brought.max(self.burst.load(Ordering::Relaxed) / 2).max(BURST_RECORDS);
        self.burst.store(burst, Ordering::Relaxed);
        self.unproven.store(0, Ordering::Relaxed);
        self.wanted.store(false, Ordering::Relaxed);
        self.renewed.notify_waiters();
    }

    /// A new proof is wanted, before anybody has to wait for it.
    pub(super) fn ask(&self) {
        self.wanted.store(true, Ordering::Relaxed);
    }

    /// Whether somebody waits for a proof.
    pub(super) fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed)
    }

    /// How many of the records that were ever `committable` are not known to be committed.
    pub(super) fn owes(&self, committable: u64) -> u64 {
        committable.saturating_sub(self.proven.load(Ordering::Relaxed))
    }

    /// Whether so many records may be delivered now, with so many ever `committable`; if not, a proof is asked for. What was
    /// `held` is let through in small steps, however much was proven at once before.
    pub(super) fn allows(&self, records: u64, held: bool, committable: u64) -> bool {
        let age_ms = millis(self.base.elapsed()).saturating_sub(self.asked_ms.load(Ordering::Relaxed));
        let allowed = if age_ms < self.limit_ms.load(Ordering::Relaxed) {
            let burst = if held { BURST_RECORDS } else { self.burst.load(Ordering::Relaxed) };
            self.owes(committable) <= burst
        } else {
            let add = |now: u64| now.checked_add(records).filter(|sum| *sum <= UNPROVEN_RECORDS);
            self.unproven.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).is_ok()
        };
        if !allowed {
            self.ask();
        }
        allowed
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

    fn a_minute_old() -> Lease {
        Lease { base: Instant::now().checked_sub(Duration::from_secs(60)).unwrap(), ..Lease::default() }
    }

    #[test]
    fn few_records_need_no_proof_and_many_need_a_new_one() {
        let lease = a_minute_old();
        assert!(lease.allows(150, false, 0) && lease.allows(50, true, 0));
        assert!(!lease.is_wanted());
        assert!(!lease.allows(1, false, 0));
        assert!(lease.is_wanted());
        // An answer to a question that is too old proves nothing about now, but a few more may go.
        lease.renew(Instant::now().checked_sub(Duration::from_secs(30)).unwrap(), 0);
        assert!(!lease.is_wanted());
        assert!(!lease.allows(201, false, 0) && lease.allows(200, false, 0) && !lease.allows(1, false, 0));
        lease.renew(Instant::now(), 0);
        assert!(lease.allows(1_000_000, false, 0));
    }

    #[test]
    fn a_proof_lasts_for_two_commit_intervals() {
        let lease = a_minute_old();
        lease.renew(Instant::now().checked_sub(Duration::from_secs(8)).unwrap(), 0);
        assert!(!lease.allows(2_000, false, 0));
        lease.with_commits_every(Duration::from_secs(5));
        assert!(lease.allows(2_000, false, 0));
    }

    #[test]
    fn more_is_let_through_the_more_the_last_proof_brought() {
        let lease = a_minute_old();
        lease.renew(Instant::now(), 1_000);
        assert!(lease.allows(1_000, false, 9_000));
        assert!(!lease.allows(1, false, 9_001), "8,000 delivered that nobody knows to be committed");
        assert!(lease.is_wanted());
        let mut committed = 9_001;
        lease.renew(Instant::now(), committed);
        for burst in [8 * 8_001, 4 * 8_001, 2 * 8_001, 8_001, 4_000, 4_000] {
            assert!(lease.allows(1, false, committed + burst));
            assert!(!lease.allows(1, false, committed + burst + 1), "{burst}");
            // A proof that brings next to nothing.
            committed += 1;
            lease.renew(Instant::now(), committed);
        }
    }

    #[test]
    fn what_was_held_goes_out_in_steps() {
        let lease = a_minute_old();
        lease.renew(Instant::now(), 100_000);
        assert!(lease.allows(1_000, true, 104_000) && !lease.allows(1_000, true, 104_001));
        assert!(lease.allows(1_000, false, 104_001));
        lease.renew(Instant::now(), 104_001);
        assert!(lease.allows(1_000, true, 104_001));
    }
}
