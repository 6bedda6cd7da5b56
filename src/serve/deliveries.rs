//! What became of messages that were delivered a moment ago: one that comes again gets its verdict again, without a GET.
//!
//! Pub/Sub delivers at least once, and a pack comes again as a whole where one of its lines failed.

use std::time::Duration;

use jiff::Timestamp;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;

use super::envelope::Push;
use crate::outcome::{Outcome, Source};
use crate::request::WarmRequest;
use crate::verdict::Verdict;

/// How long a verdict is repeated. Past it the edge may have lost the object, and a GET is worth its cost.
const WINDOW: Duration = Duration::from_secs(600);
/// For all that is remembered together; an outcome is some hundreds of bytes, and its URL.
const MAX_BYTES: u64 = 32 << 20;
/// Beside its texts: the values themselves, and the table's own.
const ENTRY_BYTES: usize = 512;

/// The verdicts of the last ten minutes that a redelivery would not change, in bounded memory.
#[derive(Clone)]
pub(super) struct Deliveries(Cache<Delivery, Known>);

/// One URL of one message of one subscription.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Delivery {
    subscription: String,
    message_id: String,
    line: Option<String>,
    /// Whoever gives two messages the same id gets a GET for each all the same.
    request: WarmRequest,
}

type Known = std::sync::Arc<Outcome>;

impl Deliveries {
    pub(super) fn new() -> Self {
        Self::with_capacity(MAX_BYTES)
    }

    fn with_capacity(bytes: u64) -> Self {
        let known = Cache::builder()
            .max_capacity(bytes)
            .weigher(|delivery: &Delivery, outcome: &Known| delivery.weight(outcome))
            .time_to_live(WINDOW)
            // Under moka's default a newcomer might be refused for what nobody asks for again.
            .eviction_policy(EvictionPolicy::lru())
            .build();
        Self(known)
    }

    /// The outcome of an earlier delivery, told for this one.
    pub(super) fn repeated(&self, delivery: &Delivery, source: Source) -> Option<Outcome> {
        let mut outcome = Outcome::clone(&*self.0.get(delivery)?);
        outcome.attempts = 0;
        outcome.exchange.bytes = 0;
        outcome.exchange.total_ms = 0.0;
        outcome.source = source;
        outcome.finished_at = Timestamp::now();
        Some(outcome)
    }

    /// Remembers an outcome, unless a later GET may go better or it is known without one.
    pub(super) fn remember(&self, delivery: Delivery, outcome: &Outcome) {
        if !outcome.verdict.is_curable() && !matches!(outcome.verdict, Verdict::Refused(_)) {
            self.0.insert(delivery, Known::new(outcome.clone()));
        }
    }
}

impl Delivery {
    /// `line` is the id of one among several; none where the message has no id by which it could be known again.
    pub(super) fn of(push: &Push<'_>, line: Option<&str>, request: &WarmRequest) -> Option<Self> {
        Some(Self {
            subscription: push.subscription.as_deref().unwrap_or_default().to_owned(),
            message_id: push.message_id.as_deref()?.to_owned(),
            line: line.map(str::to_owned),
            request: request.clone(),
        })
    }

    fn weight(&self, outcome: &Outcome) -> u32 {
        let headers: usize =
            self.request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum();
        let line = self.line.as_ref().map_or(0, String::len);
        let evidence = outcome.exchange.cache.as_ref().map_or(0, |_| 1024);
        let texts = self.subscription.len()
            + self.message_id.len()
            + line
            + self.request.url().as_str().len()
            + outcome.id.len()
            + outcome.url.len()
            + outcome.final_url.as_ref().map_or(0, String::len)
            + outcome.reason.as_ref().map_or(0, String::len);
        u32::try_from(ENTRY_BYTES + texts + headers + evidence).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;
    use crate::outcome::Exchange;
    use crate::verdict::Failure;

    fn delivery(message_id: &'static str, line: Option<&str>, url: &str) -> Delivery {
        let push = Push { message_id: Some(Cow::Borrowed(message_id)), ..Push::default() };
        let request = WarmRequest::parse(url.as_bytes(), []).unwrap();
        Delivery::of(&push, line, &request).unwrap()
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
    fn a_verdict_is_repeated_for_the_same_message_line_and_request_alone() {
        let known = Deliveries::new();
        known.remember(delivery("1", Some("a"), "https://example.com/a"), &outcome(Verdict::Filled));
        let again = Source { delivery_attempt: Some(2), ..Source::default() };
        let same = delivery("1", Some("a"), "https://example.com/a");
        let repeated = known.repeated(&same, again).unwrap();
        assert_eq!((repeated.verdict, repeated.attempts), (Verdict::Filled, 0));
        assert_eq!((repeated.exchange.http_status, repeated.exchange.bytes), (Some(200), 0));
        assert_eq!(repeated.source.delivery_attempt, Some(2));
        for other in [
            delivery("2", Some("a"), "https://example.com/a"),
            delivery("1", Some("b"), "https://example.com/a"),
            delivery("1", None, "https://example.com/a"),
            delivery("1", Some("a"), "https://example.com/b"),
        ] {
            assert!(known.repeated(&other, Source::default()).is_none(), "{other:?}");
        }
    }

    #[test]
    fn what_a_later_get_may_cure_is_not_remembered() {
        let known = Deliveries::new();
        let message = delivery("1", None, "https://example.com/a");
        known.remember(message.clone(), &outcome(Verdict::Failed(Failure::Status(503))));
        assert!(known.repeated(&message, Source::default()).is_none());
        known.remember(message.clone(), &outcome(Verdict::Failed(Failure::Status(404))));
        assert!(known.repeated(&message, Source::default()).is_some());
    }

    #[test]
    fn a_message_without_an_id_is_nobody_that_could_come_again() {
        let request = WarmRequest::parse(b"https://example.com/", []).unwrap();
        assert_eq!(Delivery::of(&Push::default(), None, &request), None);
    }

    #[test]
    fn memory_is_bounded_by_bytes_and_the_latest_stay() {
        let known = Deliveries::with_capacity(100_000);
        for n in 0..2_000 {
            let line = n.to_string();
            known.remember(delivery("1", Some(&line), "https://example.com/a"), &outcome(Verdict::Filled));
            assert!(
                known
                    .repeated(&delivery("1", Some(&line), "https://example.com/a"), Source::default())
                    .is_some()
            );
        }
        known.0.run_pending_tasks();
        assert!((100..200).contains(&known.0.entry_count()), "{}", known.0.entry_count());
        assert!(known.0.weighted_size() <= 100_000);
    }
}
