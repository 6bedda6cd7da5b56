//! Limits concurrent requests to one server by how it answers: additive increase, multiplicative decrease (RFC 5681).
//!
//! The limit grows with each answer while requests use all of it and answers are about as fast as the fastest of late,
//! shrinks by one while they are slow, and is halved where the server is overloaded. More requests than that would only
//! wait in the server's queues instead of ours.

use std::time::Duration;

use tokio::time::Instant;

/// The mean latency above this many times the lowest mean of late says that requests wait for each other.
const SLOW_FACTOR: f64 = 4.0;
/// The limit is halved once for all requests that fail together.
const HALVING_INTERVAL: Duration = Duration::from_millis(500);

/// How a limit adapts to one kind of server.
#[derive(Debug)]
pub(crate) struct Settings {
    /// The first limit. Below it the limit grows by one for a round of answers, above it by one for each answer.
    start: f64,
    max: f64,
    /// Slow answers alone never lower the limit below this.
    slow_floor: f64,
    /// Whether a limit below `slow_floor` grows while answers are slow.
    grows_while_slow: bool,
    /// Mean latencies up to this are never slow, whatever the lowest is.
    fast_s: f64,
    /// How many answers the mean latency is of.
    mean_of: f64,
    /// For how long the lowest mean latency counts: a server that has been slow for longer than that is just slow.
    memory: Duration,
}

impl Settings {
    /// GETs to one host. Hits and misses come mixed, and a change from one to the other is no overload; answers that take
    /// up to 100 ms may have waited in this process to be read, on a machine that is busy.
    pub(crate) const HOST: Self = Self {
        start: 64.0,
        max: 256.0,
        slow_floor: 16.0,
        grows_while_slow: false,
        fast_s: 0.1,
        mean_of: 20.0,
        memory: Duration::from_secs(60),
    };

    /// Publish calls to Pub/Sub: 16 calls of 1,000 messages at 20 ms are 800,000 messages a second.
    pub(crate) const PUBLISH: Self = Self {
        start: 16.0,
        max: 128.0,
        slow_floor: 16.0,
        grows_while_slow: true,
        fast_s: 0.0,
        mean_of: 1.0,
        memory: Duration::from_secs(30),
    };
}

/// The limit of one server, and what it is computed from.
#[derive(Debug)]
pub(crate) struct AdaptiveLimit {
    settings: &'static Settings,
    limit: f64,
    mean_s: f64,
    /// How many answers `mean_s` is of, up to `Settings::mean_of`.
    answers: f64,
    /// The lowest mean in seconds, and when that was.
    lowest: Option<(f64, Instant)>,
    halved_at: Option<Instant>,
}

impl AdaptiveLimit {
    pub(crate) fn new(settings: &'static Settings) -> Self {
        Self { settings, limit: settings.start, mean_s: 0.0, answers: 0.0, lowest: None, halved_at: None }
    }

    /// Returns how many requests may be in flight; at least 1.
    pub(crate) fn get(&self) -> usize {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "between 1 and `Settings::max` by construction"
        )]
        let limit = self.limit as usize;
        limit
    }

    /// Records an answer that came after `latency`, with `in_flight` requests, itself included.
    pub(crate) fn record_answer(&mut self, latency: Duration, in_flight: usize, now: Instant) {
        let Settings { start, max, slow_floor, grows_while_slow, .. } = *self.settings;
        let is_slow = self.is_slow(latency, now);
        if is_slow && self.limit > slow_floor {
            self.limit = (self.limit - 1.0).max(slow_floor);
        } else if in_flight >= self.get() && (!is_slow || grows_while_slow && self.limit < slow_floor) {
            self.limit = (self.limit + if self.limit < start { 1.0 / self.limit } else { 1.0 }).min(max);
        }
    }

    /// Records that the server said it is overloaded, or did not answer in time.
    pub(crate) fn record_overload(&mut self, now: Instant) {
        if self.halved_at.is_none_or(|at| now.duration_since(at) >= HALVING_INTERVAL) {
            self.halved_at = Some(now);
            self.limit = (self.limit / 2.0).max(1.0);
        }
    }

    /// Adds a latency to the mean, and returns whether that is slow now.
    fn is_slow(&mut self, latency: Duration, now: Instant) -> bool {
        let Settings { fast_s, mean_of, memory, .. } = *self.settings;
        self.answers = (self.answers + 1.0).min(mean_of);
        self.mean_s += (latency.as_secs_f64() - self.mean_s) / self.answers;
        let mean_s = self.mean_s;
        let lowest_s = match self.lowest {
            // A few answers are no measure.
            _ if self.answers < mean_of => mean_s,
            Some((lowest_s, at)) if mean_s >= lowest_s && now.duration_since(at) < memory => lowest_s,
            _ => {
                self.lowest = Some((mean_s, now));
                mean_s
            }
        };
        mean_s > fast_s && mean_s > SLOW_FACTOR * lowest_s
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUICK: Duration = Duration::from_millis(20);
    const MEMORY: Duration = Settings::HOST.memory;

    fn host() -> AdaptiveLimit {
        AdaptiveLimit::new(&Settings::HOST)
    }

    fn publish() -> AdaptiveLimit {
        AdaptiveLimit::new(&Settings::PUBLISH)
    }

    fn in_full_use(limit: &mut AdaptiveLimit, latency: Duration, answers: usize, now: Instant) {
        for _ in 0..answers {
            limit.record_answer(latency, limit.get(), now);
        }
    }

    #[test]
    fn it_grows_only_while_it_is_in_use() {
        let (mut limit, now) = (host(), Instant::now());
        for _ in 0..10_000 {
            limit.record_answer(QUICK, 1, now);
        }
        assert_eq!(limit.get(), 64, "no request waits for a permit");
        in_full_use(&mut limit, QUICK, 1_000, now);
        assert_eq!(limit.get(), 256);
    }

    #[test]
    fn rising_latency_takes_it_down_and_what_lasts_is_no_crowd() {
        let (mut limit, now) = (host(), Instant::now());
        in_full_use(&mut limit, QUICK, 1_000, now);
        in_full_use(&mut limit, QUICK * 20, 1_000, now);
        assert_eq!(limit.get(), 16, "slow answers alone take it no lower");
        in_full_use(&mut limit, QUICK * 20, 10_000, now + MEMORY);
        assert_eq!(limit.get(), 256, "the way is longer");
    }

    #[test]
    fn answers_that_only_waited_here_are_no_crowd() {
        let (mut limit, now) = (host(), Instant::now());
        in_full_use(&mut limit, Duration::from_millis(1), 1_000, now);
        in_full_use(&mut limit, Duration::from_millis(100), 1_000, now);
        assert_eq!(limit.get(), 256);
        in_full_use(&mut limit, Duration::from_millis(101), 1_000, now);
        assert_eq!(limit.get(), 16);
    }

    #[test]
    fn one_fast_answer_at_first_makes_later_answers_not_slow() {
        let (mut limit, now) = (host(), Instant::now());
        in_full_use(&mut limit, Duration::from_millis(1), 1, now);
        in_full_use(&mut limit, Duration::from_millis(150), 1_000, now);
        assert_eq!(limit.get(), 256, "one answer is not the lowest mean");
    }

    #[test]
    fn hits_and_misses_mixed_are_no_crowd() {
        let (mut limit, now) = (host(), Instant::now());
        for _ in 0..10_000 {
            let ttfb = if fastrand::bool() { QUICK / 4 } else { QUICK * 4 };
            limit.record_answer(ttfb, limit.get(), now);
        }
        assert!(limit.get() > 128, "{}", limit.get());
    }

    #[test]
    fn where_requests_only_queue_it_settles_between() {
        let (mut limit, now) = (host(), Instant::now());
        for _ in 0..50 {
            limit.record_answer(QUICK, 1, now);
        }
        for _ in 0..20_000 {
            // The host does 16 at a time; what is above waits there.
            let places = limit.get();
            limit.record_answer(QUICK.mul_f64((places as f64 / 16.0).max(1.0)), places, now);
        }
        assert!((32..128).contains(&limit.get()), "{}", limit.get());
    }

    #[test]
    fn it_is_halved_once_for_requests_turned_away_together_and_recovers_slowly() {
        let (mut limit, mut now) = (host(), Instant::now());
        for _ in 0..64 {
            limit.record_overload(now);
        }
        assert_eq!(limit.get(), 32);
        for _ in 0..20 {
            now += HALVING_INTERVAL;
            limit.record_overload(now);
        }
        assert_eq!(limit.get(), 1);
        in_full_use(&mut limit, QUICK, 50, now);
        assert!((5..16).contains(&limit.get()), "{}", limit.get());
        in_full_use(&mut limit, QUICK * 20, 1_000, now);
        assert!(limit.get() < 16, "a crowd does not lift it: {}", limit.get());
    }

    #[test]
    fn publish_limit_grows_while_every_call_is_in_use_and_answers_stay_quick() {
        let (mut limit, now) = (publish(), Instant::now());
        for _ in 0..1_000 {
            limit.record_answer(QUICK, 1, now);
        }
        assert_eq!(limit.get(), 16, "no batch waits for a call");
        in_full_use(&mut limit, QUICK, 1_000, now);
        assert_eq!(limit.get(), 128);
    }

    #[test]
    fn publish_limit_falls_back_where_calls_wait_for_each_other() {
        let (mut limit, now) = (publish(), Instant::now());
        limit.record_answer(Duration::from_millis(1), 1, now);
        for _ in 0..1_000 {
            let calls = limit.get();
            limit.record_answer(Duration::from_micros(100) * u32::try_from(calls).unwrap(), calls, now);
        }
        assert!((32..48).contains(&limit.get()), "about where ten calls take 1 ms: {}", limit.get());
    }

    #[test]
    fn publish_limit_is_halved_once_for_calls_that_fail_together_and_recovers() {
        let (mut limit, mut now) = (publish(), Instant::now());
        for _ in 0..16 {
            limit.record_overload(now);
        }
        assert_eq!(limit.get(), 8);
        for _ in 0..100 {
            now += HALVING_INTERVAL;
            limit.record_overload(now);
        }
        assert_eq!(limit.get(), 1);
        in_full_use(&mut limit, QUICK, 1_000, now);
        assert_eq!(limit.get(), 128);
    }

    #[test]
    fn publish_limit_recovers_from_a_halving_although_answers_are_slow() {
        let (mut limit, now) = (publish(), Instant::now());
        in_full_use(&mut limit, QUICK, 1, now);
        limit.record_overload(now);
        in_full_use(&mut limit, QUICK * 20, 1_000, now);
        assert_eq!(limit.get(), 16, "slow answers lift it no higher");
    }
}
