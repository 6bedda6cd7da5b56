//! How many publish calls may be under way at once: as many as keep the road full at the latency that calls have.
//!
//! Additive increase while answers come as fast as ever, halved when Pub/Sub says that it is too much, as TCP does
//! (RFC 5681). More calls than that only wait in Pub/Sub's queues instead of ours.

use std::time::{Duration, Instant};

/// Where it starts, and what slow answers alone never push it below: 1,000 messages each at 20 ms are 800,000 a second.
const START: f64 = 16.0;
const MAX: f64 = 128.0;
/// Answers that take this many times as long as the quickest of late say that calls wait for each other.
const CROWDED: f64 = 4.0;
/// For how long the quickest answer counts.
const MEMORY: Duration = Duration::from_secs(30);
/// The limit is halved once for all calls that fail together.
const HALVING_INTERVAL: Duration = Duration::from_millis(500);

/// The limit, and what it goes by.
#[derive(Debug)]
pub(super) struct CallLimit {
    limit: f64,
    quickest: Option<(Duration, Instant)>,
    halved_at: Option<Instant>,
}

impl CallLimit {
    pub(super) fn new() -> Self {
        Self { limit: START, quickest: None, halved_at: None }
    }

    /// How many calls may be under way.
    pub(super) fn calls(&self) -> usize {
        // Between 1 and 128.
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "within bounds by construction"
        )]
        let calls = self.limit as usize;
        calls
    }

    /// A call was accepted after `latency`, with `under_way` calls at its start, itself included.
    pub(super) fn accepted(&mut self, latency: Duration, under_way: usize, now: Instant) {
        let quickest = match self.quickest {
            Some((quickest, at)) if latency >= quickest && now.duration_since(at) < MEMORY => quickest,
            _ => {
                self.quickest = Some((latency, now));
                latency
            }
        };
        let crowded = latency.as_secs_f64() > CROWDED * quickest.as_secs_f64();
        if crowded && self.limit > START {
            self.limit = (self.limit - 1.0).max(START);
        } else if under_way >= self.calls() && (!crowded || self.limit < START) {
            // After a halving, one more for each round; otherwise one more for each answer.
            self.limit = (self.limit + if self.limit < START { 1.0 / self.limit } else { 1.0 }).min(MAX);
        }
    }

    /// Pub/Sub said that it is too much, or did not come to answer.
    pub(super) fn overloaded(&mut self, now: Instant) {
        if self.halved_at.is_none_or(|at| now.duration_since(at) >= HALVING_INTERVAL) {
            self.halved_at = Some(now);
            self.limit = (self.limit / 2.0).max(1.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_while_every_call_is_in_use_and_answers_stay_quick() {
        let (mut limit, now) = (CallLimit::new(), Instant::now());
        for _ in 0..1_000 {
            limit.accepted(Duration::from_millis(20), 1, now);
        }
        assert_eq!(limit.calls(), 16, "nobody waits for a call");
        for _ in 0..1_000 {
            limit.accepted(Duration::from_millis(20), limit.calls(), now);
        }
        assert_eq!(limit.calls(), 128);
    }

    #[test]
    fn it_falls_back_where_calls_wait_for_each_other() {
        let (mut limit, now) = (CallLimit::new(), Instant::now());
        limit.accepted(Duration::from_millis(1), 1, now);
        for _ in 0..1_000 {
            limit.accepted(
                Duration::from_micros(100) * u32::try_from(limit.calls()).unwrap(),
                limit.calls(),
                now,
            );
        }
        assert!((32..48).contains(&limit.calls()), "about where ten calls take 1 ms: {}", limit.calls());
    }

    #[test]
    fn it_is_halved_once_for_calls_that_fail_together_and_recovers() {
        let (mut limit, mut now) = (CallLimit::new(), Instant::now());
        for _ in 0..16 {
            limit.overloaded(now);
        }
        assert_eq!(limit.calls(), 8);
        for _ in 0..100 {
            now += HALVING_INTERVAL;
            limit.overloaded(now);
        }
        assert_eq!(limit.calls(), 1);
        for _ in 0..1_000 {
            limit.accepted(Duration::from_millis(20), limit.calls(), now);
        }
        assert_eq!(limit.calls(), 128);
    }
}
