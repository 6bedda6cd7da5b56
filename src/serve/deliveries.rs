//! The verdicts of recent deliveries: a message that is delivered again gets its verdict again, without a GET.
//!
//! Pub/Sub delivers at least once, and a pack comes again as a whole where one of its lines failed.

use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::time::Duration;

use moka::policy::EvictionPolicy;
use moka::sync::Cache;

use super::envelope::Push;
use crate::outcome::Outcome;
use crate::request::WarmRequest;
use crate::verdict::Verdict;
use crate::warm::Attempt;

/// How long a verdict is repeated. Past it the edge may have lost the object, and a GET is worth its cost.
const REMEMBER_FOR: Duration = Duration::from_secs(600);
/// How many deliveries are remembered at most.
const MAX_REMEMBERED: u64 = 16_384;

/// The verdicts of the last ten minutes that a redelivery would not change, in bounded memory.
pub(super) struct Deliveries {
    /// Of a secret key, so that nobody can make two deliveries that look the same.
    hasher: RandomState,
    /// A second one, so that no two do so by chance.
    other_hasher: foldhash::quality::RandomState,
    known: Cache<Delivery, Remembered, foldhash::fast::RandomState>,
}

/// What an [`Attempt`] came to, in less room.
#[derive(Debug, Clone)]
struct Remembered {
    verdict: Verdict,
    http_status: Option<u16>,
}

/// One URL of one message of one subscription, by a hash of all that: no two have the same.
///
/// The URL and its options belong to it: whoever gives two messages the same id gets a GET for each all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Delivery([u64; 2]);

impl Deliveries {
    pub(super) fn new() -> Self {
        Self::remembering(MAX_REMEMBERED, REMEMBER_FOR)
    }

    fn remembering(at_most: u64, time_to_live: Duration) -> Self {
        // Least recently used: moka's default policy may reject a new entry.
        let builder = Cache::builder().max_capacity(at_most).eviction_policy(EvictionPolicy::lru());
        Self {
            hasher: RandomState::new(),
            other_hasher: foldhash::quality::RandomState::default(),
            known: builder
                .time_to_live(time_to_live)
                .build_with_hasher(foldhash::fast::RandomState::default()),
        }
    }

    /// `line` is the id of one among several; none where the message has no id by which it could be known again.
    pub(super) fn delivery(
        &self,
        push: &Push<'_>,
        line: Option<&str>,
        request: &WarmRequest,
    ) -> Option<Delivery> {
        push.message_id.as_ref()?;
        let hashes = [hash(&self.hasher, push, line, request), hash(&self.other_hasher, push, line, request)];
        Some(Delivery(hashes))
    }

    /// Returns what an earlier delivery came to.
    pub(super) fn known(&self, delivery: Delivery) -> Option<Attempt> {
        let Remembered { verdict, http_status } = self.known.get(&delivery)?;
        Some(Attempt { http_status, ..Attempt::without_request(verdict) })
    }

    /// Remembers an outcome, unless a later GET may go better or it is known without one.
    pub(super) fn remember(&self, delivery: Delivery, outcome: &Outcome) {
        if !outcome.verdict.is_curable() && !matches!(outcome.verdict, Verdict::Refused(_)) {
            let known =
                Remembered { verdict: outcome.verdict.clone(), http_status: outcome.exchange.http_status };
            self.known.insert(delivery, known);
        }
    }
}

/// Of all that makes a delivery what it is.
fn hash(hasher: &impl BuildHasher, push: &Push<'_>, line: Option<&str>, request: &WarmRequest) -> u64 {
    let mut state = hasher.build_hasher();
    (push.subscription.as_deref(), push.message_id.as_deref(), line, request.url().as_str()).hash(&mut state);
    push.options().filter(|(name, _)| name.starts_with("warm-")).for_each(|option| option.hash(&mut state));
    state.finish()
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;
    use std::time::Instant;

    use jiff::Timestamp;

    use super::*;
    use crate::outcome::{Exchange, Source};
    use crate::verdict::Failure;

    const PATIENCE: Duration = Duration::from_secs(10);

    fn delivery(known: &Deliveries, message_id: &'static str, line: Option<&str>, url: &str) -> Delivery {
        with_option(known, message_id, line, url, None)
    }

    fn with_option(
        known: &Deliveries,
        message_id: &'static str,
        line: Option<&str>,
        url: &str,
        option: Option<(&'static str, &'static str)>,
    ) -> Delivery {
        let attributes = option.into_iter().map(|(name, value)| (Cow::Borrowed(name), Cow::Borrowed(value)));
        let push = Push {
            message_id: Some(Cow::Borrowed(message_id)),
            attributes: attributes.collect(),
            ..Push::default()
        };
        let request = WarmRequest::parse(url.as_bytes(), push.options()).unwrap();
        known.delivery(&push, line, &request).unwrap()
    }

    fn outcome(verdict: Verdict) -> Outcome {
        Outcome {
            id: "urls/3/17".to_owned(),
            url: "https://example.com/a".to_owned(),
            final_url: None,
            region: "eu".to_owned(),
            instance: "a".to_owned(),
            reason: verdict.reason(),
            verdict,
            exchange: Exchange { http_status: Some(200), bytes: 10, total_ms: 5.0, ..Exchange::default() },
            attempts: 1,
            source: Source { delivery_attempt: Some(1), ..Source::default() },
            finished_at: Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn a_verdict_is_known_for_the_same_message_line_and_request_alone() {
        let known = Deliveries::new();
        let same = || delivery(&known, "1", Some("a"), "https://example.com/a");
        known.remember(same(), &outcome(Verdict::Filled));
        let found = known.known(same()).unwrap();
        assert_eq!((found.verdict(), found.http_status), (&Verdict::Filled, Some(200)));
        let option = |value| with_option(&known, "1", Some("a"), "https://example.com/a", Some(value));
        assert_eq!(option(("kafka-offset", "1")), same(), "only options belong to the request");
        for other in [
            delivery(&known, "2", Some("a"), "https://example.com/a"),
            delivery(&known, "1", Some("b"), "https://example.com/a"),
            delivery(&known, "1", None, "https://example.com/a"),
            delivery(&known, "1", Some("a"), "https://example.com/b"),
            option(("warm-header-accept", "image/webp")),
        ] {
            assert!(known.known(other).is_none(), "{other:?}");
        }
    }

    #[test]
    fn a_verdict_is_forgotten_in_time() {
        let time_to_live = Duration::from_millis(100);
        let known = Deliveries::remembering(10, time_to_live);
        let message = delivery(&known, "1", None, "https://example.com/a");
        let before = Instant::now();
        known.remember(message, &outcome(Verdict::Warm));
        while known.known(message).is_some() {
            assert!(before.elapsed() < time_to_live + PATIENCE, "it is never forgotten");
            std::thread::yield_now();
        }
        assert!(before.elapsed() >= time_to_live, "not before its time");
    }

    #[test]
    fn what_a_later_get_may_cure_is_not_remembered() {
        let known = Deliveries::new();
        let message = delivery(&known, "1", None, "https://example.com/a");
        known.remember(message, &outcome(Verdict::Failed(Failure::Status(503))));
        assert!(known.known(message).is_none());
        known.remember(message, &outcome(Verdict::Failed(Failure::Status(404))));
        assert!(known.known(message).is_some());
    }

    #[test]
    fn a_message_without_an_id_is_nobody_that_could_come_again() {
        let request = WarmRequest::parse(b"https://example.com/", []).unwrap();
        assert_eq!(Deliveries::new().delivery(&Push::default(), None, &request), None);
    }

    #[test]
    fn it_is_bounded_and_the_latest_stay() {
        let known = Deliveries::new();
        let line = |n: u64| delivery(&known, "1", Some(&n.to_string()), "https://example.com/a");
        let last = 4 * MAX_REMEMBERED;
        for n in 1..=last {
            known.remember(line(n), &outcome(Verdict::Filled));
        }
        known.known.run_pending_tasks();
        assert_eq!(known.known.entry_count(), MAX_REMEMBERED);
        let first_kept = last - MAX_REMEMBERED + 1;
        assert!((first_kept..=last).all(|n| known.known(line(n)).is_some()));
        assert!((1..first_kept).all(|n| known.known(line(n)).is_none()));
    }
}
