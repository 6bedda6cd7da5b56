//! The result of one GET, by value; several for one URL add up to one of the same type.

use std::time::Duration;

use jiff::Timestamp;

use super::cdn::Assessment;
use super::certify::conclude;
use super::look::Look;
use crate::outcome::{CacheEvidence, Exchange, Outcome, Source};
use crate::telemetry::instance::Instance;
use crate::verdict::{Failure, Verdict};

/// What became of one request, or of all requests for one URL together.
#[derive(Debug, Clone)]
pub(crate) struct Attempt {
    /// The verdict with its evidence. A failure keeps the evidence that arrived before it.
    pub(crate) assessment: Assessment,
    /// Status of the last response; none where there was none.
    pub(crate) http_status: Option<u16>,
    /// Requests that were sent.
    pub(crate) requests: u32,
    /// Body bytes that were read, as they came (not decoded).
    pub(crate) bytes: u64,
    /// Body bytes that were left unread, since the edge had them.
    pub(crate) bytes_saved: u64,
    /// From the first answered request to the head of its response.
    pub(crate) ttfb: Option<Duration>,
    /// From the call to its end, the wait for the host included; zero until then.
    pub(crate) total: Duration,
    /// Target of the last redirect that was followed, as it may be shown.
    pub(crate) final_url: Option<String>,
    /// What was sent and read, one for each request; empty unless the warmer keeps it.
    pub(crate) looks: Vec<Look>,
}

impl Attempt {
    /// A verdict without a request: refused, out of time, or known from an earlier GET.
    pub(crate) fn without_request(verdict: Verdict) -> Self {
        Self {
            assessment: verdict.into(),
            http_status: None,
            requests: 0,
            bytes: 0,
            bytes_saved: 0,
            ttfb: None,
            total: Duration::ZERO,
            final_url: None,
            looks: Vec::new(),
        }
    }

    /// A request that was sent; `assessment` says what became of it.
    pub(super) fn sent(assessment: Assessment) -> Self {
        Self { assessment, requests: 1, ..Self::without_request(Verdict::Failed(Failure::TotalTimeout)) }
    }

    pub(crate) fn verdict(&self) -> &Verdict {
        &self.assessment.verdict
    }

    /// Whether another try within the same push may go better. Not where the host is not to be asked now.
    pub(super) fn is_retryable(&self) -> bool {
        self.verdict().is_curable() && !self.is_unasked()
    }

    /// Whether the time or the host did not allow an answer: what was known before says more.
    fn is_unasked(&self) -> bool {
        matches!(
            self.verdict(),
            Verdict::Failed(Failure::CircuitOpen | Failure::HostBusy | Failure::TotalTimeout)
        )
    }

    /// Adds the request that a redirect led to: its result stands.
    pub(super) fn redirected(self, target: Self) -> Self {
        self.followed_by(target, true)
    }

    /// Adds another try after a failure: its result stands, unless it was not allowed an answer.
    pub(super) fn retried(self, retry: Self) -> Self {
        let stands = !retry.is_unasked();
        self.followed_by(retry, stands)
    }

    /// Adds a second look after a fill: both are weighed, and this result stands where the second look says nothing.
    pub(super) fn certified(self, second: Self) -> Self {
        match conclude(&self.assessment, &second.assessment) {
            None => self.followed_by(second, false),
            Some(verdict) => {
                let mut both = self.followed_by(second, true);
                both.assessment.verdict = verdict;
                both
            }
        }
    }

    /// Adds up what both cost. `later_stands` says whose verdict and evidence is the result.
    fn followed_by(mut self, later: Self, later_stands: bool) -> Self {
        self.requests += later.requests;
        self.bytes += later.bytes;
        self.bytes_saved += later.bytes_saved;
        self.ttfb = self.ttfb.or(later.ttfb);
        self.looks.extend(later.looks);
        if later_stands {
            let Assessment { evidence, .. } = self.assessment;
            self.assessment = later.assessment;
            self.final_url = later.final_url;
            match later.http_status {
                Some(status) => self.http_status = Some(status),
                // The evidence of the last response goes with its status.
                None => self.assessment.evidence = evidence,
            }
        }
        self
    }

    /// As [`Verdict::WrongPop`] where a warm edge is at none of the `expected` points of presence, or those whose names
    /// begin so. Where none is expected every one is.
    pub(super) fn at_expected_pop(mut self, expected: &[String]) -> Self {
        if let (Verdict::Warm, Some(pop)) = (self.verdict(), &self.assessment.evidence.pop)
            && !is_expected(pop, expected)
        {
            let reason = format!("{pop} instead of {}", expected.join(","));
            self.assessment.verdict = Verdict::WrongPop(reason);
        }
        self
    }

    /// The result for a caller that shared the GET of an equal request: what was sent and read is counted once.
    pub(super) fn shared(self) -> Self {
        Self { requests: 0, bytes: 0, bytes_saved: 0, ..self }
    }

    /// The outcome at this instance; `url` is as it may be shown. Boxed, since it goes through many hands.
    pub(crate) fn into_outcome(
        self,
        instance: &Instance,
        url: String,
        id: String,
        source: Source,
    ) -> Box<Outcome> {
        let Assessment { verdict, evidence, .. } = self.assessment;
        Box::new(Outcome {
            id,
            url,
            final_url: self.final_url,
            region: instance.region.clone(),
            instance: instance.id.clone(),
            reason: verdict.reason(),
            verdict,
            exchange: Exchange {
                http_status: self.http_status,
                cache: Some(evidence).filter(|evidence| *evidence != CacheEvidence::default()),
                bytes: self.bytes,
                bytes_saved: self.bytes_saved,
                ttfb_ms: self.ttfb.map(milliseconds),
                total_ms: milliseconds(self.total),
            },
            attempts: self.requests,
            source,
            finished_at: Timestamp::now(),
        })
    }
}

fn is_expected(pop: &str, expected: &[String]) -> bool {
    let begins = |expected: &String| {
        pop.get(..expected.len()).is_some_and(|start| start.eq_ignore_ascii_case(expected))
    };
    expected.is_empty() || expected.iter().any(begins)
}

fn milliseconds(duration: Duration) -> f64 {
    // Microseconds are as exact as the clock is worth.
    duration.as_micros() as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::warm::cdn::Next;

    fn attempt(verdict: Verdict, http_status: Option<u16>) -> Attempt {
        let evidence = CacheEvidence { age_s: http_status.map(u64::from), ..CacheEvidence::default() };
        Attempt {
            http_status,
            bytes: 10,
            ttfb: http_status.map(|status| Duration::from_millis(status.into())),
            ..Attempt::sent(Assessment { evidence, ..verdict.into() })
        }
    }

    fn facts(attempt: &Attempt) -> (String, Option<u16>, Option<u64>) {
        (attempt.verdict().to_string(), attempt.http_status, attempt.assessment.evidence.age_s)
    }

    #[test]
    fn retry_without_an_answer_keeps_why_the_try_before_failed() {
        for why in [Failure::CircuitOpen, Failure::HostBusy, Failure::TotalTimeout] {
            let first = attempt(Verdict::Failed(Failure::Status(503)), Some(503));
            assert!(first.is_retryable());
            let retry = attempt(Verdict::Failed(why.clone()), None);
            assert!(!retry.is_retryable());
            let both = first.retried(retry);
            assert_eq!(facts(&both), ("failed (status 503)".to_owned(), Some(503), Some(503)), "{why}");
            assert_eq!((both.requests, both.bytes, both.ttfb), (2, 20, Some(Duration::from_millis(503))));
        }
    }

    #[test]
    fn retry_with_an_answer_stands_and_the_last_response_is_shown() {
        let failed = || attempt(Verdict::Failed(Failure::Status(503)), Some(503));
        let warm = failed().retried(attempt(Verdict::Warm, Some(200)));
        assert_eq!(facts(&warm), ("warm".to_owned(), Some(200), Some(200)));
        let gone = failed().retried(attempt(Verdict::Failed(Failure::Connect), None));
        assert_eq!(facts(&gone), ("failed (connect)".to_owned(), Some(503), Some(503)));
    }

    #[test]
    fn second_look_that_says_nothing_leaves_the_first_with_its_evidence() {
        let filled = || {
            let mut filled = attempt(Verdict::Filled, Some(200));
            filled.assessment.next = Next::Absent;
            filled
        };
        let both = filled().certified(attempt(Verdict::Failed(Failure::TotalTimeout), Some(206)));
        assert_eq!(facts(&both), ("filled".to_owned(), Some(200), Some(200)));
        assert_eq!((both.requests, both.bytes), (2, 20));
        let both = filled().certified(attempt(Verdict::Warm, Some(206)));
        assert_eq!(facts(&both), ("warm".to_owned(), Some(206), Some(206)));
    }

    #[test]
    fn target_of_a_redirect_stands_and_time_to_first_byte_is_the_first_one() {
        let redirect = attempt(Verdict::Failed(Failure::Redirect(String::new())), Some(302));
        let late = attempt(Verdict::Failed(Failure::TotalTimeout), None);
        let both = redirect.redirected(late);
        assert_eq!(facts(&both), ("failed (total timeout)".to_owned(), Some(302), Some(302)));
        assert_eq!(both.ttfb, Some(Duration::from_millis(302)));
    }

    #[test]
    fn warm_elsewhere_is_the_wrong_pop() {
        let at = |pop: &str, expected: &[&str]| {
            let mut warm = attempt(Verdict::Warm, Some(200));
            warm.assessment.evidence.pop = Some(pop.to_owned());
            let expected: Vec<String> = expected.iter().map(|&pop| pop.to_owned()).collect();
            warm.at_expected_pop(&expected).verdict().to_string()
        };
        assert_eq!(at("FRA50-C1", &["fra", "MUC"]), "warm");
        assert_eq!(at("FRA50-C1", &[]), "warm");
        assert_eq!(at("SIN2", &["FRA", "MUC"]), "wrong-pop (SIN2 instead of FRA,MUC)");
    }
}
