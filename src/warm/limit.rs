//! How many GETs one host may have under way at once: as many as it answers without letting them wait.
//!
//! One more for each answer while answers come about as fast as ever, one less while they do not, half where the host
//! says that it is too much (additive increase, multiplicative decrease, as TCP does: RFC 5681).

use std::time::Duration;

use tokio::time::Instant;

/// Where it starts.
const START: f64 = 64.0;
const MAX: f64 = 256.0;
/// What slow answers alone never push it below: a change from hits to misses slows answers, too, without any crowd.
const SLOW_FLOOR: f64 = 16.0;
/// Answers that take this many times as long as the quickest of late say that requests wait for each other.
const CROWDED: f64 = 4.0;
/// Answers that take no longer than this are quick, whatever the quickest took: they may as well have waited here, to be
/// read, on a machine that is busy or that its host takes away for moments.
const QUICK_S: f64 = 0.1;
/// For how long the quickest counts: what has been slow for longer than that is just slow.
const MEMORY: Duration = Duration::from_secs(60);
/// The answers over which the mean goes that counts: hits and misses come mixed.
const MEAN_OF: f64 = 20.0;
/// The limit is halved once for all requests that are turned away together.
const HALVING_INTERVAL: Duration = Duration::from_millis(500);

/// The limit, and what it goes by.
#[derive(Debug)]
pub(super) struct Limit {
    limit: f64,
    /// Seconds to a response's head, of late, and how many answers it knows, up to [`MEAN_OF`].
    mean_s: f64,
    answers: f64,
    /// The lowest such mean, and when that was.
    quickest: Option<(f64, Instant)>,
    halved_at: Option<Instant>,
}

impl Limit {
    pub(super) fn new() -> Self {
        Self { limit: START, mean_s: 0.0, answers: 0.0, quickest: None, halved_at: None }
    }

    /// How many GETs may be under way; at least 1.
    pub(super) fn places(&self) -> usize {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "between 1 and 256 by construction"
        )]
        let places = self.limit as usize;
        places
    }

    /// A response's head came after `ttfb`, with so many GETs under way, itself included.
    pub(super) fn answered(&mut self, ttfb: Duration, under_way: usize, now: Instant) {
        self.answers = (self.answers + 1.0).min(MEAN_OF);
        self.mean_s += (ttfb.as_secs_f64() - self.mean_s) / self.answers;
        let mean_s = self.mean_s;
        let quickest_s = match self.quickest {
            // A few answers are no measure.
            _ if self.answers < MEAN_OF => mean_s,
            Some((quickest_s, at)) if mean_s >= quickest_s && now.duration_since(at) < MEMORY => quickest_s,
            _ => {
                self.quickest = Some((mean_s, now));
                mean_s
            }
        };
        let crowded = mean_s > QUICK_S && mean_s > CROWDED * quickest_s;
        if crowded && self.limit > SLOW_FLOOR {
            self.limit = (self.limit - 1.0).max(SLOW_FLOOR);
        } else if under_way >= self.places() && !crowded {
            // After a halving, one more for each round; otherwise one more for each answer.
            self.limit = (self.limit + if self.limit < START { 1.0 / self.limit } else { 1.0 }).min(MAX);
        }
    }

    /// The host said that it is too much, or did not come to answer.
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

    const QUICK: Duration = Duration::from_millis(20);

    fn in_full_use(limit: &mut Limit, ttfb: Duration, answers: usize, now: Instant) {
        for _ in 0..answers {
            limit.answered(ttfb, limit.places(), now);
        }
    }

    #[test]
    fn it_grows_only_while_it_is_in_use() {
        let (mut limit, now) = (Limit::new(), Instant::now());
        for _ in 0..10_000 {
            limit.answered(QUICK, 1, now);
        }
        assert_eq!(limit.places(), 64, "nobody waits for a place");
        in_full_use(&mut limit, QUICK, 1_000, now);
        assert_eq!(limit.places(), 256);
    }

    #[test]
    fn rising_latency_takes_it_down_and_what_lasts_is_no_crowd() {
        let (mut limit, now) = (Limit::new(), Instant::now());
        in_full_use(&mut limit, QUICK, 1_000, now);
        in_full_use(&mut limit, QUICK * 20, 1_000, now);
        assert_eq!(limit.places(), 16, "slow answers alone take it no lower");
        in_full_use(&mut limit, QUICK * 20, 10_000, now + MEMORY);
        assert_eq!(limit.places(), 256, "the way is longer");
    }

    #[test]
    fn answers_that_only_waited_here_are_no_crowd() {
        let (mut limit, now) = (Limit::new(), Instant::now());
        in_full_use(&mut limit, Duration::from_millis(1), 1_000, now);
        in_full_use(&mut limit, Duration::from_millis(100), 1_000, now);
        assert_eq!(limit.places(), 256);
        in_full_use(&mut limit, Duration::from_millis(101), 1_000, now);
        assert_eq!(limit.places(), 16);
    }

    #[test]
    fn hits_and_misses_mixed_are_no_crowd() {
        let (mut limit, now) = (Limit::new(), Instant::now());
        for _ in 0..10_000 {
            let ttfb = if fastrand::bool() { QUICK / 4 } else { QUICK * 4 };
            limit.answered(ttfb, limit.places(), now);
        }
        assert!(limit.places() > 128, "{}", limit.places());
    }

    #[test]
    fn where_requests_only_queue_it_settles_between() {
        let (mut limit, now) = (Limit::new(), Instant::now());
        for _ in 0..50 {
            limit.answered(QUICK, 1, now);
        }
        for _ in 0..20_000 {
            // The host does 16 at a time; what is above waits there.
            let places = limit.places();
            limit.answered(QUICK.mul_f64((places as f64 / 16.0).max(1.0)), places, now);
        }
        assert!((32..128).contains(&limit.places()), "{}", limit.places());
    }

    #[test]
    fn it_is_halved_once_for_requests_turned_away_together_and_recovers_slowly() {
        let (mut limit, mut now) = (Limit::new(), Instant::now());
        for _ in 0..64 {
            limit.overloaded(now);
        }
        assert_eq!(limit.places(), 32);
        for _ in 0..20 {
            now += HALVING_INTERVAL;
            limit.overloaded(now);
        }
        assert_eq!(limit.places(), 1);
        in_full_use(&mut limit, QUICK, 50, now);
        assert!((5..16).contains(&limit.places()), "{}", limit.places());
        in_full_use(&mut limit, QUICK * 20, 1_000, now);
        assert!(limit.places() < 16, "a crowd does not lift it: {}", limit.places());
    }
}
