//! What one subscription has yet to see acknowledged: who holds which message until when, and what comes next.
//!
//! Plain bookkeeping without locks, tasks or a clock of its own; `subscription.rs` drives it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use googleapis_tonic_google_pubsub_v1::google::pubsub::v1::PubsubMessage;
use tokio::time::Instant;

/// The most that one subscription's unacknowledged messages may take, in bytes as [`size_bytes`] counts them.
pub(super) const LIMIT_BYTES: usize = 256 * 1024 * 1024;

/// What is added to each message's own size for everything kept about it, so that a bound in bytes bounds the
/// number of messages too.
const OVERHEAD_BYTES: usize = 512;

/// The most that one delivery hands over, unless a single message is larger: clients refuse 4 MiB by default.
const DELIVERY_BYTES: usize = 2 * 1024 * 1024;

/// The unacknowledged messages of one subscription.
#[derive(Debug)]
pub(super) struct Backlog {
    retention: Duration,
    retry: Option<Retry>,
    /// How often a message is delivered before it is a dead letter, where there is such a policy.
    max_attempts: Option<u32>,
    /// Dead letters that nobody has taken yet.
    dead: Vec<u64>,
    /// By sequence number, so the oldest comes first.
    entries: BTreeMap<u64, Entry>,
    /// What may be delivered now. May name entries that were acknowledged meanwhile; they are skipped.
    ready: VecDeque<u64>,
    /// When a lease or a back-off ends, exactly one for each entry that has one.
    due: BTreeSet<(Instant, u64)>,
    next_sequence: u64,
    bytes: usize,
}

/// A subscription's retry policy: how long a message rests after a negative acknowledgement or an expired deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Retry {
    pub(super) minimum: Duration,
    pub(super) maximum: Duration,
}

/// Somebody who takes messages: a unary pull, a stream or the push loop.
#[derive(Debug)]
pub(super) struct Consumer {
    /// How many messages it may hold unacknowledged.
    pub(super) max_messages: usize,
    /// How many bytes it may hold; one message is delivered even if it alone exceeds this.
    pub(super) max_bytes: usize,
    /// How long it has for each before the message goes to somebody else.
    pub(super) ack_deadline: Duration,
    held: Arc<Held>,
}

/// A message on its way to a consumer.
#[derive(Debug, Clone)]
pub(super) struct Delivery {
    pub(super) id: DeliveryId,
    pub(super) message: Arc<PubsubMessage>,
}

/// Names one delivery of one message of a backlog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DeliveryId {
    pub(super) sequence: u64,
    /// 1 at the first delivery.
    pub(super) attempt: u32,
}

#[derive(Debug)]
struct Entry {
    message: Arc<PubsubMessage>,
    size_bytes: usize,
    expires: Instant,
    attempts: u32,
    state: State,
}

#[derive(Debug)]
enum State {
    Ready,
    BackingOff(Instant),
    /// Ends at the instant; the lease counts against its consumer as long as it lives.
    Leased(Instant, #[expect(dead_code, reason = "held for its Drop")] Lease),
    /// Delivered as often as may be.
    Dead,
}

#[derive(Debug, Default)]
struct Held {
    messages: AtomicUsize,
    bytes: AtomicUsize,
}

#[derive(Debug)]
struct Lease {
    held: Arc<Held>,
    size_bytes: usize,
}

impl Backlog {
    pub(super) fn new(retention: Duration, retry: Option<Retry>, max_attempts: Option<u32>) -> Self {
        Self {
            retention,
            retry,
            max_attempts,
            dead: Vec::new(),
            entries: BTreeMap::new(),
            ready: VecDeque::new(),
            due: BTreeSet::new(),
            next_sequence: 0,
            bytes: 0,
        }
    }

    /// Whether `more` bytes fit.
    pub(super) fn has_room(&self, more: usize) -> bool {
        self.bytes.saturating_add(more) <= LIMIT_BYTES
    }

    /// Adds a message. The caller has asked [`Self::has_room`].
    pub(super) fn add(&mut self, message: Arc<PubsubMessage>, now: Instant) {
        let size_bytes = size_bytes(&message);
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        self.bytes += size_bytes;
        self.ready.push_back(sequence);
        let expires = now + self.retention;
        self.entries
            .insert(sequence, Entry { message, size_bytes, expires, attempts: 0, state: State::Ready });
    }

    /// Leases to `consumer` what is ready, as far as its limits allow.
    pub(super) fn lease(&mut self, consumer: &Consumer, now: Instant) -> Vec<Delivery> {
        self.advance(now);
        let mut deliveries = Vec::new();
        let mut delivered_bytes = 0;
        while let Some(&sequence) = self.ready.front() {
            let Some(entry) = self.entries.get_mut(&sequence) else {
                self.ready.pop_front();
                continue;
            };
            let over_delivery = !deliveries.is_empty() && delivered_bytes + entry.size_bytes > DELIVERY_BYTES;
            if over_delivery || !consumer.has_room(entry.size_bytes) {
                break;
            }
            self.ready.pop_front();
            delivered_bytes += entry.size_bytes;
            entry.attempts += 1;
            let due = now + consumer.ack_deadline;
            entry.state = State::Leased(due, Lease::new(&consumer.held, entry.size_bytes));
            self.due.insert((due, sequence));
            let id = DeliveryId { sequence, attempt: entry.attempts };
            deliveries.push(Delivery { id, message: Arc::clone(&entry.message) });
        }
        deliveries
    }

    /// Removes a message for good. Which of its deliveries is acknowledged does not matter, nor whether that one
    /// is still in time: work that was done need not be done again.
    pub(super) fn acknowledge(&mut self, id: DeliveryId) {
        if let Some(entry) = self.entries.remove(&id.sequence) {
            self.bytes -= entry.size_bytes;
            self.forget_due(&entry.state, id.sequence);
        }
    }

    /// Lets a lease end `extension` from now; zero is a negative acknowledgement. A delivery that is no longer the
    /// latest, or no longer leased, is left alone.
    pub(super) fn modify_deadline(&mut self, id: DeliveryId, extension: Duration, now: Instant) {
        let Some(entry) = self.entries.get_mut(&id.sequence) else { return };
        let State::Leased(due, _) = &mut entry.state else { return };
        if entry.attempts != id.attempt {
            return;
        }
        self.due.remove(&(*due, id.sequence));
        if extension.is_zero() {
            self.give_back(id.sequence, now);
        } else {
            *due = now + extension;
            self.due.insert((*due, id.sequence));
        }
    }

    /// Takes the dead letters; each is to be acknowledged, or revived.
    pub(super) fn take_dead(&mut self, now: Instant) -> Vec<Delivery> {
        self.advance(now);
        let taken = std::mem::take(&mut self.dead).into_iter();
        let delivery = |sequence| {
            let entry = self.entries.get(&sequence)?;
            let id = DeliveryId { sequence, attempt: entry.attempts };
            Some(Delivery { id, message: Arc::clone(&entry.message) })
        };
        taken.filter_map(delivery).collect()
    }

    /// Delivers a dead letter once more, unless it was acknowledged after all.
    pub(super) fn revive(&mut self, id: DeliveryId, now: Instant) {
        if self.entries.get(&id.sequence).is_some_and(|entry| matches!(entry.state, State::Dead)) {
            self.deliver_again(id.sequence, now);
        }
    }

    /// When the next lease or back-off ends by itself.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|(due, _)| *due)
    }

    /// Ends what is due: leases, back-offs and retention.
    fn advance(&mut self, now: Instant) {
        while let Some(oldest) = self.entries.first_entry().filter(|oldest| oldest.get().expires <= now) {
            let (sequence, entry) = oldest.remove_entry();
            self.bytes -= entry.size_bytes;
            self.forget_due(&entry.state, sequence);
        }
        while let Some(&(due, sequence)) = self.due.first().filter(|(due, _)| *due <= now) {
            self.due.remove(&(due, sequence));
            match self.entries.get_mut(&sequence) {
                Some(entry) if matches!(entry.state, State::BackingOff(_)) => {
                    entry.state = State::Ready;
                    self.ready.push_back(sequence);
                }
                _ => self.give_back(sequence, now),
            }
        }
    }

    /// What becomes of a message that was leased: it is delivered again, or it is a dead letter.
    fn give_back(&mut self, sequence: u64, now: Instant) {
        let Some(entry) = self.entries.get_mut(&sequence) else { return };
        if self.max_attempts.is_some_and(|max| entry.attempts >= max) {
            entry.state = State::Dead;
            self.dead.push(sequence);
        } else {
            self.deliver_again(sequence, now);
        }
    }

    /// Makes a message ready again, at once or after the retry policy's back-off. It goes behind what is ready already,
    /// so that one that always fails does not keep the others from their turn.
    fn deliver_again(&mut self, sequence: u64, now: Instant) {
        let Some(entry) = self.entries.get_mut(&sequence) else { return };
        match self.retry.map(|retry| retry.after(entry.attempts)).filter(|delay| !delay.is_zero()) {
            Some(delay) => {
                entry.state = State::BackingOff(now + delay);
                self.due.insert((now + delay, sequence));
            }
            None => {
                entry.state = State::Ready;
                self.ready.push_back(sequence);
            }
        }
    }

    fn forget_due(&mut self, state: &State, sequence: u64) {
        if let State::BackingOff(due) | State::Leased(due, _) = state {
            self.due.remove(&(*due, sequence));
        }
    }
}

impl Retry {
    /// The rest after so many attempts: the minimum, doubling up to the maximum.
    fn after(self, attempts: u32) -> Duration {
        let factor = 1_u32.checked_shl(attempts.saturating_sub(1)).unwrap_or(u32::MAX);
        self.minimum.saturating_mul(factor).min(self.maximum)
    }
}

impl Consumer {
    pub(super) fn new(max_messages: usize, max_bytes: usize, ack_deadline: Duration) -> Self {
        Self { max_messages, max_bytes, ack_deadline, held: Arc::default() }
    }

    /// How many messages it holds unacknowledged.
    pub(super) fn held_messages(&self) -> usize {
        self.held.messages.load(Ordering::Relaxed)
    }

    fn has_room(&self, size_bytes: usize) -> bool {
        let (messages, bytes) = (self.held_messages(), self.held.bytes.load(Ordering::Relaxed));
        messages < self.max_messages && (messages == 0 || bytes.saturating_add(size_bytes) <= self.max_bytes)
    }
}

impl Lease {
    fn new(held: &Arc<Held>, size_bytes: usize) -> Self {
        held.messages.fetch_add(1, Ordering::Relaxed);
        held.bytes.fetch_add(size_bytes, Ordering::Relaxed);
        Self { held: Arc::clone(held), size_bytes }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.held.messages.fetch_sub(1, Ordering::Relaxed);
        self.held.bytes.fetch_sub(self.size_bytes, Ordering::Relaxed);
    }
}

/// What a message counts for in a backlog.
pub(super) fn size_bytes(message: &PubsubMessage) -> usize {
    let attributes: usize = message.attributes.iter().map(|(key, value)| key.len() + value.len()).sum();
    OVERHEAD_BYTES + message.data.len() + attributes + message.ordering_key.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEADLINE: Duration = Duration::from_secs(10);
    const SECOND: Duration = Duration::from_secs(1);

    fn backlog(retry: Option<Retry>, messages: usize, now: Instant) -> Backlog {
        let mut backlog = Backlog::new(Duration::from_secs(600), retry, None);
        for number in 0..messages {
            let message = PubsubMessage { message_id: number.to_string(), ..PubsubMessage::default() };
            backlog.add(Arc::new(message), now);
        }
        backlog
    }

    fn consumer(max_messages: usize) -> Consumer {
        Consumer::new(max_messages, usize::MAX, DEADLINE)
    }

    fn ids(deliveries: &[Delivery]) -> Vec<&str> {
        deliveries.iter().map(|delivery| delivery.message.message_id.as_str()).collect()
    }

    #[test]
    fn a_message_is_leased_to_one_consumer_until_acknowledged() {
        let now = Instant::now();
        let mut backlog = backlog(None, 3, now);
        let (one, two) = (consumer(2), consumer(2));
        let first = backlog.lease(&one, now);
        assert_eq!(ids(&first), ["0", "1"]);
        assert_eq!(ids(&backlog.lease(&two, now)), ["2"]);
        assert!(backlog.lease(&one, now).is_empty(), "one is full and nothing is left");
        backlog.acknowledge(first[0].id);
        assert_eq!(one.held_messages(), 1);
        assert!(backlog.lease(&two, now + DEADLINE - SECOND).is_empty());
        assert_eq!(
            ids(&backlog.lease(&consumer(9), now + DEADLINE)),
            ["1", "2"],
            "what was not acknowledged"
        );
    }

    #[test]
    fn an_expired_lease_may_still_be_acknowledged_but_not_extended() {
        let now = Instant::now();
        let mut backlog = backlog(None, 1, now);
        let (one, two) = (consumer(1), consumer(1));
        let first = backlog.lease(&one, now);
        let second = backlog.lease(&two, now + DEADLINE);
        assert_eq!((first[0].id.attempt, second[0].id.attempt), (1, 2));
        assert_eq!(one.held_messages(), 0);
        backlog.modify_deadline(first[0].id, Duration::ZERO, now + DEADLINE);
        assert!(backlog.lease(&one, now + DEADLINE).is_empty(), "the second delivery is untouched");
        backlog.acknowledge(first[0].id);
        assert!(backlog.lease(&one, now + DEADLINE * 9).is_empty());
        assert_eq!((backlog.bytes, backlog.next_due()), (0, None));
    }

    #[test]
    fn a_deadline_can_be_extended_and_given_back() {
        let now = Instant::now();
        let mut backlog = backlog(None, 2, now);
        let one = consumer(2);
        let leased = backlog.lease(&one, now);
        backlog.modify_deadline(leased[0].id, DEADLINE * 2, now);
        backlog.modify_deadline(leased[1].id, Duration::ZERO, now);
        assert_eq!(ids(&backlog.lease(&one, now)), ["1"]);
        assert_eq!(ids(&backlog.lease(&consumer(9), now + DEADLINE)), ["1"]);
        assert_eq!(ids(&backlog.lease(&consumer(9), now + DEADLINE * 2)), ["0", "1"]);
    }

    #[test]
    fn a_retry_policy_lets_a_message_rest_twice_as_long_each_time() {
        let now = Instant::now();
        let mut backlog = backlog(Some(Retry { minimum: SECOND, maximum: SECOND * 3 }), 1, now);
        let one = consumer(1);
        let mut at = now;
        for rest in [SECOND, SECOND * 2, SECOND * 3, SECOND * 3] {
            let leased = backlog.lease(&one, at);
            backlog.modify_deadline(leased[0].id, Duration::ZERO, at);
            assert!(backlog.lease(&one, at + rest - Duration::from_millis(1)).is_empty());
            assert_eq!(backlog.next_due(), Some(at + rest));
            at += rest;
        }
        assert_eq!(backlog.lease(&one, at)[0].id.attempt, 5);
        assert_eq!(Retry { minimum: SECOND, maximum: DEADLINE }.after(1_000), DEADLINE);
    }

    #[test]
    fn a_message_is_dead_after_its_last_attempt_however_it_fails() {
        let now = Instant::now();
        let mut backlog = backlog(None, 3, now);
        backlog.max_attempts = Some(2);
        let one = consumer(3);
        let first = backlog.lease(&one, now);
        first.iter().for_each(|delivery| backlog.modify_deadline(delivery.id, Duration::ZERO, now));
        assert!(backlog.take_dead(now).is_empty());
        let second = backlog.lease(&one, now);
        backlog.modify_deadline(second[0].id, Duration::ZERO, now);
        assert_eq!(ids(&backlog.take_dead(now)), ["0"]);
        let dead = backlog.take_dead(now + DEADLINE);
        assert_eq!((ids(&dead), dead[0].id.attempt), (vec!["1", "2"], 2), "their deadlines passed");
        assert!(backlog.lease(&one, now + DEADLINE).is_empty());
        backlog.acknowledge(second[0].id);
        backlog.acknowledge(dead[0].id);
        backlog.revive(dead[0].id, now + DEADLINE);
        backlog.revive(dead[1].id, now + DEADLINE);
        let third = backlog.lease(&one, now + DEADLINE);
        assert_eq!((ids(&third), third[0].id.attempt), (vec!["2"], 3));
        backlog.modify_deadline(third[0].id, Duration::ZERO, now + DEADLINE);
        assert_eq!(ids(&backlog.take_dead(now + DEADLINE)), ["2"], "and once more");
    }

    #[test]
    fn bytes_are_bounded_for_the_backlog_a_consumer_and_a_delivery() {
        let now = Instant::now();
        let mut backlog = Backlog::new(Duration::from_secs(600), None, None);
        for _ in 0..3 {
            let data = vec![0; DELIVERY_BYTES - OVERHEAD_BYTES].into();
            backlog.add(Arc::new(PubsubMessage { data, ..PubsubMessage::default() }), now);
        }
        assert_eq!(backlog.lease(&consumer(9), now).len(), 1, "a delivery is bounded");
        let small = Consumer::new(9, 1, DEADLINE);
        assert_eq!(backlog.lease(&small, now).len(), 1, "one message always passes");
        assert_eq!(backlog.lease(&small, now).len(), 0);
        assert!(backlog.has_room(LIMIT_BYTES - 3 * DELIVERY_BYTES));
        assert!(!backlog.has_room(LIMIT_BYTES - 3 * DELIVERY_BYTES + 1));
    }

    #[test]
    fn a_message_is_dropped_when_its_retention_ends() {
        let now = Instant::now();
        let mut backlog = backlog(None, 2, now);
        let long = Consumer::new(1, usize::MAX, Duration::from_secs(6_000));
        assert_eq!(backlog.lease(&long, now).len(), 1);
        assert!(backlog.lease(&consumer(9), now + Duration::from_secs(600)).is_empty());
        assert_eq!(
            (backlog.bytes, backlog.entries.len(), backlog.due.len(), long.held_messages()),
            (0, 0, 0, 0)
        );
    }
}
