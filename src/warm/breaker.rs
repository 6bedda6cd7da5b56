//! A host that fails every time is left alone for a moment, then asked by one request alone whether it is back.

use std::time::Duration;

use tokio::time::Instant;

/// Failures in a row that open it: more than the tries of a few requests for one bad URL.
const FAILURES: u32 = 10;
/// How long it is open at first, and at most after probes that failed.
const OPEN: Duration = Duration::from_secs(1);
const MAX_OPEN: Duration = Duration::from_secs(30);

/// The circuit breaker of one host: closed, open until a time, or half open with a probe under way.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    failures: u32,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    until: Instant,
    lasts: Duration,
    probing: bool,
}

/// Whether a request may be made.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Admission {
    Yes,
    /// As the one that finds out; its end must be told.
    Probe,
    No,
}

impl Breaker {
    /// Whether a request would be turned away now.
    pub(super) fn is_open(&self, now: Instant) -> bool {
        self.open.as_ref().is_some_and(|open| open.probing || now < open.until)
    }

    /// Lets a request through, or not.
    pub(super) fn admit(&mut self, now: Instant) -> Admission {
        match &mut self.open {
            None => Admission::Yes,
            Some(open) if open.probing || now < open.until => Admission::No,
            Some(open) => {
                open.probing = true;
                Admission::Probe
            }
        }
    }

    /// Records that the host answered, and not with a failure of its own. Returns whether that closed the circuit.
    pub(super) fn succeeded(&mut self) -> bool {
        std::mem::take(self).open.is_some()
    }

    /// Records that the host did not answer, or with a failure of its own. Returns whether that opened the circuit, which a
    /// failed probe does not: it was open.
    pub(super) fn failed(&mut self, was_probe: bool, now: Instant) -> bool {
        self.failures = self.failures.saturating_add(1);
        match &mut self.open {
            None if self.failures >= FAILURES => {
                self.open = Some(Open { until: now + OPEN, lasts: OPEN, probing: false });
                return true;
            }
            Some(open) if was_probe => {
                open.lasts = (open.lasts * 2).min(MAX_OPEN);
                open.until = now + open.lasts;
                open.probing = false;
            }
            // Of requests that were under way when it opened nothing new is learnt.
            _ => {}
        }
        false
    }

    /// A probe ended without telling anything: the next request is the probe.
    pub(super) fn probe_told_nothing(&mut self) {
        if let Some(open) = &mut self.open {
            open.probing = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(now: Instant) -> Breaker {
        let mut breaker = Breaker::default();
        for _ in 0..FAILURES {
            assert_eq!(breaker.admit(now), Admission::Yes);
            let has_opened = breaker.failed(false, now);
            assert_eq!(has_opened, breaker.is_open(now));
        }
        assert!(breaker.is_open(now));
        breaker
    }

    #[test]
    fn only_failures_in_a_row_open_it() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        for _ in 0..100 {
            for _ in 1..FAILURES {
                breaker.failed(false, now);
            }
            breaker.succeeded();
        }
        assert_eq!(breaker.admit(now), Admission::Yes);
    }

    #[test]
    fn after_a_while_one_probe_decides() {
        let now = Instant::now();
        let mut breaker = opened(now);
        assert_eq!(breaker.admit(now), Admission::No);
        assert_eq!(breaker.admit(now + OPEN), Admission::Probe);
        assert_eq!(breaker.admit(now + OPEN), Admission::No, "one alone");
        assert!(!breaker.failed(true, now + OPEN), "it was open before");
        assert_eq!(breaker.admit(now + 2 * OPEN), Admission::No, "twice as long");
        assert_eq!(breaker.admit(now + 3 * OPEN), Admission::Probe);
        assert!(breaker.succeeded());
        assert!(!breaker.succeeded(), "it was closed before");
        assert_eq!(breaker.admit(now + 3 * OPEN), Admission::Yes);
    }

    #[test]
    fn late_failures_and_lost_probes_do_not_keep_it_open() {
        let now = Instant::now();
        let mut breaker = opened(now);
        breaker.failed(false, now + OPEN / 2);
        assert_eq!(breaker.admit(now + OPEN), Admission::Probe);
        breaker.probe_told_nothing();
        assert_eq!(breaker.admit(now + OPEN), Admission::Probe);
        for _ in 0..100 {
            breaker.failed(true, now);
            assert!(breaker.open.as_ref().unwrap().lasts <= MAX_OPEN);
        }
    }
}
