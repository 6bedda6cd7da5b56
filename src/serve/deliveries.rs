//! What became of messages that were delivered a moment ago: one that comes again gets its verdict again, without a GET.
//!
//! Pub/Sub delivers at least once, and a pack comes again as a whole where one of its lines failed.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::mem;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::envelope::Push;
use crate::outcome::Outcome;
use crate::request::WarmRequest;
use crate::verdict::Verdict;
use crate::warm::Attempt;

/// How long a verdict is repeated. Past it the edge may have lost the object, and a GET is worth its cost.
const WINDOW: Duration = Duration::from_secs(600);
/// The latest deliveries that are remembered for sure. Those before them are for as long as these fill their room again, so
/// that twice as many take 2 MiB at most. It is what a hash table of 16,384 places holds.
const SURELY_KNOWN: usize = 14_336;

/// The verdicts of the last ten minutes that a redelivery would not change, in bounded memory.
pub(super) struct Deliveries {
    /// Of a secret key, so that nobody can make two deliveries that look the same.
    hasher: RandomState,
    /// A second one, so that no two do so by chance.
    other_hasher: foldhash::quality::RandomState,
    known: Mutex<Table>,
    started: Instant,
}

/// Two tables, so that what is old goes all at once: no delivery need be found and moved for its age.
#[derive(Debug, Default)]
struct Table {
    latest: HashMap<Delivery, Remembered, foldhash::fast::RandomState>,
    before: HashMap<Delivery, Remembered, foldhash::fast::RandomState>,
}

/// What an [`Attempt`] came to, in less room.
#[derive(Debug)]
struct Remembered {
    verdict: Verdict,
    http_status: Option<u16>,
    /// Since the start.
    at_s: u32,
}

/// One URL of one message of one subscription, by a hash of all that: no two have the same.
///
/// The URL and its options belong to it: whoever gives two messages the same id gets a GET for each all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Delivery([u64; 2]);

impl Deliveries {
    pub(super) fn new() -> Self {
        Self {
            hasher: RandomState::new(),
            other_hasher: foldhash::quality::RandomState::default(),
            // It grows as it is used.
            known: Mutex::default(),
            started: Instant::now(),
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

    /// What an earlier delivery came to.
    pub(super) fn known(&self, delivery: Delivery) -> Option<Attempt> {
        let table = self.table();
        let found = table.latest.get(&delivery).or_else(|| table.before.get(&delivery))?;
        let is_recent = Duration::from_secs(self.now_s().saturating_sub(found.at_s).into()) < WINDOW;
        is_recent.then(|| Attempt {
            http_status: found.http_status,
            ..Attempt::without_request(found.verdict.clone())
        })
    }

    /// Remembers an outcome, unless a later GET may go better or it is known without one.
    pub(super) fn remember(&self, delivery: Delivery, outcome: &Outcome) {
        if !outcome.verdict.is_curable() && !matches!(outcome.verdict, Verdict::Refused(_)) {
            let (verdict, http_status) = (outcome.verdict.clone(), outcome.exchange.http_status);
            self.table().put(delivery, Remembered { verdict, http_status, at_s: self.now_s() });
        }
    }

    /// Seconds since the start; enough for a century.
    fn now_s(&self) -> u32 {
        u32::try_from(self.started.elapsed().as_secs()).unwrap_or(u32::MAX)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Nothing panics while it is held.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn put(&mut self, delivery: Delivery, remembered: Remembered) {
        if self.latest.len() >= SURELY_KNOWN {
            mem::swap(&mut self.latest, &mut self.before);
            self.latest.clear();
        }
        self.latest.insert(delivery, remembered);
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

    use jiff::Timestamp;

    use super::*;
    use crate::outcome::{Exchange, Source};
    use crate::verdict::Failure;

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

    #[tokio::test(start_paused = true)]
    async fn a_verdict_is_forgotten_in_time() {
        let known = Deliveries::new();
        let message = delivery(&known, "1", None, "https://example.com/a");
        known.remember(message, &outcome(Verdict::Warm));
        tokio::time::advance(WINDOW - Duration::from_secs(1)).await;
        assert!(known.known(message).is_some());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(known.known(message).is_none());
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
        let line = |n: usize| delivery(&known, "1", Some(&n.to_string()), "https://example.com/a");
        let last = 4 * SURELY_KNOWN;
        for n in 0..=last {
            known.remember(line(n), &outcome(Verdict::Filled));
        }
        assert!((last - SURELY_KNOWN..=last).all(|n| known.known(line(n)).is_some()));
        assert!((0..=last - 2 * SURELY_KNOWN).all(|n| known.known(line(n)).is_none()));
        let table = known.table();
        let room_bytes =
            (table.latest.capacity() + table.before.capacity()) * size_of::<(Delivery, Remembered)>();
        assert!(room_bytes <= 2 << 20, "{room_bytes} bytes");
    }
}
