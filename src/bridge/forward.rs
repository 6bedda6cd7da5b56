//! Batches to publish calls: bounded in flight, tried until Pub/Sub has answered, each record's end reported.
//!
//! A record ends in one of two ways: Pub/Sub accepted it, or it can never be accepted and is a dead letter. Everything
//! else (Pub/Sub away, topic missing, rights missing) holds its offset and is tried again.

use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::{join, join_all};
use futures_util::stream::FuturesUnordered;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;
use tonic::{Code, Status};

use super::batch::{Batch, Encoder};
use super::dead_letter::DeadLetters;
use super::letter::{Reason, Undeliverable, record_of};
use super::metrics::{BridgeMetrics, InFlight, Published};
use super::parts::{Parts, unpack};
use super::retry::{CALL_LIMIT, Fate, advice, call_limit, delays, fate};
use crate::adaptive_limit::{AdaptiveLimit, Settings};
use crate::kafka::consumer::{CommitHandle, Consumer};
use crate::pubsub::{Publish, Request, TopicName};
use crate::telemetry::health::Condition;

/// Records received and not committable yet: what comes again after a crash, and what a batch that Pub/Sub does not
/// accept may hold back.
const MAX_RECORDS: u64 = 200_000;
/// Bytes in flight.
const MAX_BYTES: u64 = 32 << 20;
/// How long calls under way are waited for once there are no more records.
const DRAIN_LIMIT: Duration = Duration::from_secs(7);
/// One line about a failure that goes on, in this time.
const LOG_INTERVAL: Duration = Duration::from_secs(30);
/// Failing for this long without a success is not being ready; a hiccup is none.
const TROUBLE_AFTER: Duration = Duration::from_secs(5);
/// Without an accepted call for this long the first one is news to all that wait, which then try within so long.
const OUTAGE: Duration = Duration::from_secs(1);
const RECOVERY_SPREAD: Duration = Duration::from_millis(50);
/// Calls at once for the parts of a batch that was refused.
const PARTS_AT_ONCE: usize = 16;

/// Moves batches to a publisher.
pub(super) struct Forwarder<P> {
    topic: TopicName,
    publisher: P,
    dead_letters: DeadLetters,
    commit: CommitHandle,
    metrics: BridgeMetrics,
    alarm: Alarm,
    limit: Mutex<AdaptiveLimit>,
    parts: Semaphore,
    large: Semaphore,
    /// Notified whenever a call is accepted.
    answered: Notify,
    /// Notified once a call is accepted after some time without one.
    recovered: Notify,
    /// Batches under way, each a call or what is left of one, and their bytes.
    calls: AtomicUsize,
    bytes: AtomicU64,
    published: AtomicU64,
    undeliverable: AtomicU64,
    dropped_headers: AtomicU64,
}

/// What became of the records so far.
pub(super) struct Counts {
    pub(super) published: u64,
    pub(super) undeliverable: u64,
    pub(super) dropped_headers: u64,
}

impl<P: Publish> Forwarder<P> {
    pub(super) fn new(
        topic: TopicName,
        publisher: P,
        dead_letters: DeadLetters,
        commit: CommitHandle,
        metrics: BridgeMetrics,
        health: Condition,
    ) -> Self {
        Self {
            topic,
            publisher,
            dead_letters,
            commit,
            alarm: Alarm { state: Mutex::default(), metrics: metrics.clone(), health },
            metrics,
            limit: Mutex::new(AdaptiveLimit::new(&Settings::PUBLISH)),
            parts: Semaphore::new(PARTS_AT_ONCE),
            large: Semaphore::new(PARTS_AT_ONCE),
            answered: Notify::new(),
            recovered: Notify::new(),
            calls: AtomicUsize::new(0),
            bytes: AtomicU64::new(0),
            published: AtomicU64::new(0),
            undeliverable: AtomicU64::new(0),
            dropped_headers: AtomicU64::new(0),
        }
    }

    /// Forwards until the consumer has no more; then waits for the calls under way, a few seconds at most: what Pub/Sub
    /// has not accepted by then is delivered again.
    pub(super) async fn run(&self, consumer: &mut Consumer, mut encoder: Encoder) {
        let mut calls = FuturesUnordered::new();
        let finishing = consumer.finishing();
        loop {
            let room = self.has_room();
            tokio::select! {
                // Answers first: they make room.
                biased;
                Some(()) = calls.next(), if !calls.is_empty() => {}
                // Seen without room, too: a consumer that has failed must not wait for Pub/Sub.
                () = finishing.cancelled() => break,
                records = consumer.next(), if room => match records {
                    Some(records) => calls.push(self.forward(encoder.encode(records))),
                    None => break,
                },
            }
        }
        // A few that wait already.
        while let Some(records) = consumer.next().await {
            calls.push(self.forward(encoder.encode(records)));
        }
        let drained = async {
            while calls.next().await.is_some() {
                self.has_room();
            }
        };
        if tokio::time::timeout(DRAIN_LIMIT, drained).await.is_err() {
            tracing::warn!("Pub/Sub does not answer; what it has not accepted will be delivered again");
        }
    }

    pub(super) fn counts(&self) -> Counts {
        Counts {
            published: self.published.load(Ordering::Relaxed),
            undeliverable: self.undeliverable.load(Ordering::Relaxed),
            dropped_headers: self.dropped_headers.load(Ordering::Relaxed),
        }
    }

    /// Tells what is in flight, and whether another batch may be.
    fn has_room(&self) -> bool {
        let calls_limit = self.limit().get();
        let records = self.commit.uncommittable();
        let (calls, bytes) = (self.calls.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed));
        self.metrics.in_flight(InFlight {
            records,
            bytes,
            calls: calls as u64,
            calls_limit: calls_limit as u64,
        });
        // Without a call under way nothing else would make room.
        calls == 0 || calls < calls_limit && bytes < MAX_BYTES && records < MAX_RECORDS
    }

    /// Brings a batch to its end.
    async fn forward(&self, batch: Batch) {
        let bytes = batch.size_bytes() as u64;
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let calls = self.calls.fetch_add(1, Ordering::Relaxed) + 1;
        self.dropped_headers.fetch_add(batch.dropped_headers, Ordering::Relaxed);
        self.metrics.headers_dropped(batch.dropped_headers);
        let records = batch.receipts.records() - batch.undeliverable.len() as u64;
        let letters = async {
            for some in batch.undeliverable.chunks(PARTS_AT_ONCE) {
                join_all(some.iter().map(|letter| self.give_up(letter))).await;
            }
        };
        let requests = async {
            match &batch.requests[..] {
                [] => 0,
                [request] => self.publish(request, records, calls).await,
                all => self.publish_all(all, calls).await,
            }
        };
        let published = tokio::select! {
            biased;
            (given_up, ()) = join(requests, letters) => records - given_up,
            // Their next owner publishes them.
            () = self.commit.taken_away(&batch.receipts) => 0,
        };
        self.published.fetch_add(published, Ordering::Relaxed);
        self.commit.accepted(batch.receipts.as_slice());
        self.calls.fetch_sub(1, Ordering::Relaxed);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Publishes a whole request; one that is refused is taken apart until the message at fault stands alone. Returns how
    /// many of its records were given up.
    async fn publish(&self, request: &Request, records: u64, calls: usize) -> u64 {
        let call = Call { bytes: request.part(0..request.len()), messages: request.len(), records };
        match self.until_answered(&call, Some(calls)).await {
            Ok(()) => 0,
            Err(refused) => {
                let parts = Parts::of(request, records);
                self.take_apart(&parts, 0..request.len(), &refused).await
            }
        }
    }

    /// Publishes the requests of a batch that is too large for one; a few at once. Returns how many records were given up.
    async fn publish_all(&self, requests: &[Request], calls: usize) -> u64 {
        let publish = async |request: &Request| {
            // Never closed; without a permit there are only more calls at once.
            let _permit = self.large.acquire().await;
            self.publish(request, Parts::count_records(request), calls).await
        };
        join_all(requests.iter().map(publish)).await.into_iter().sum()
    }

    /// Deals with messages that were refused together.
    fn take_apart<'a>(
        &'a self,
        parts: &'a Parts<'a>,
        messages: Range<usize>,
        refused: &'a Status,
    ) -> Pin<Box<dyn Future<Output = u64> + Send + 'a>> {
        Box::pin(async move {
            if messages.len() == 1 {
                let Some(message) = parts.request.message(messages.start) else { return 0 };
                return match unpack(&self.topic, &message) {
                    Some(lines) => {
                        let lines = Parts::of(&lines, lines.len() as u64);
                        self.publish_part(&lines, 0..lines.request.len()).await
                    }
                    None => {
                        let reason = Reason::Refused(refused.message().to_owned());
                        self.give_up(&Undeliverable { record: record_of(message), reason }).await;
                        1
                    }
                };
            }
            let middle = messages.start + messages.len() / 2;
            let halves = join(
                self.publish_part(parts, messages.start..middle),
                self.publish_part(parts, middle..messages.end),
            );
            let (first, second) = halves.await;
            first + second
        })
    }

    async fn publish_part(&self, parts: &Parts<'_>, messages: Range<usize>) -> u64 {
        let answer = {
            // Never closed; without a permit there are only more calls at once.
            let _permit = self.parts.acquire().await;
            let records = parts.records[messages.clone()].iter().sum();
            let call =
                Call { bytes: parts.request.part(messages.clone()), messages: messages.len(), records };
            self.until_answered(&call, None).await
        };
        match answer {
            Ok(()) => 0,
            Err(refused) => self.take_apart(parts, messages, &refused).await,
        }
    }

    /// Tries again, at least once a second, until the call is accepted or refused for what is in it.
    async fn until_answered(&self, call: &Call, calls: Option<usize>) -> Result<(), Status> {
        let mut delays = delays();
        let mut unanswered = 0;
        loop {
            let limit = call_limit(call.bytes.len(), unanswered);
            let started = Instant::now();
            let answer = tokio::select! {
                answer = self.publisher.publish(call.bytes.clone(), call.messages, limit) => answer,
                () = self.answered_elsewhere(unanswered) => {
                    Err(Status::deadline_exceeded("no answer, while others are answered again"))
                }
            };
            let status = match answer {
                Ok(()) => {
                    let latency = started.elapsed();
                    if let Some(calls) = calls {
                        self.limit().record_answer(latency, calls, Instant::now());
                    }
                    self.metrics.published(Published {
                        records: call.records,
                        messages: call.messages as u64,
                        bytes: call.bytes.len() as u64,
                        latency,
                    });
                    self.answered.notify_waiters();
                    if self.alarm.over() >= OUTAGE {
                        self.recovered.notify_waiters();
                    }
                    return Ok(());
                }
                Err(status) => status,
            };
            self.metrics.publish_failed(status.code());
            let fate = fate(status.code());
            if fate == Fate::Refused {
                // An answer all the same: what failed before is over.
                self.alarm.over();
                return Err(status);
            }
            if fate == Fate::Overloaded {
                self.limit().record_overload(Instant::now());
            }
            if status.code() == Code::DeadlineExceeded {
                unanswered += 1;
            }
            self.alarm.raise(&status, fate);
            self.wait(delays.next().unwrap_or(Duration::from_secs(1))).await;
        }
    }

    /// Waits before the next try, but not as long once Pub/Sub is back: what is behind this call may be accepted by then, and
    /// its offsets cannot be committed before this call's.
    async fn wait(&self, delay: Duration) {
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            () = self.recovered.notified() => {
                tokio::time::sleep(RECOVERY_SPREAD.mul_f64(fastrand::f64()).min(delay)).await;
            }
        }
    }

    /// Ends once another call is accepted while this one, after one without an answer, has none for the usual time: what
    /// swallowed it is over.
    async fn answered_elsewhere(&self, unanswered: u32) {
        if unanswered == 0 {
            return std::future::pending().await;
        }
        tokio::time::sleep(CALL_LIMIT).await;
        self.answered.notified().await;
    }

    async fn give_up(&self, letter: &Undeliverable) {
        self.undeliverable.fetch_add(1, Ordering::Relaxed);
        self.dead_letters.send(letter).await;
    }

    fn limit(&self) -> std::sync::MutexGuard<'_, AdaptiveLimit> {
        self.limit.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One publish call.
struct Call {
    bytes: bytes::Bytes,
    messages: usize,
    records: u64,
}

/// Says that publishing fails and why, without repeating itself, and that it works again.
struct Alarm {
    state: Mutex<AlarmState>,
    metrics: BridgeMetrics,
    health: Condition,
}

#[derive(Default)]
struct AlarmState {
    /// Since when no call was accepted.
    raised: Option<Instant>,
    /// Kept over the end of a failure: one that comes and goes is told once in a while, too.
    logged: Option<(Code, Instant)>,
    /// Whether somebody was told, or asked, about this failure in a way that its end is worth a line.
    serious: bool,
}

impl Alarm {
    fn raise(&self, status: &Status, fate: Fate) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let (code, text) = (status.code(), status.message());
        let since = *state.raised.get_or_insert(now);
        if fate == Fate::Held || now - since >= TROUBLE_AFTER {
            state.serious = true;
            self.health.not_ok(format!("publishing fails: {code:?}: {text}"));
        }
        self.metrics.publishing_refused(fate == Fate::Held);
        if state.logged.is_some_and(|(last, at)| last == code && now - at < LOG_INTERVAL) {
            return;
        }
        state.logged = Some((code, now));
        if fate == Fate::Held {
            let advice = advice(code);
            tracing::error!(code = ?code, "publishing is refused: {text}; {advice}. Records are held and tried again");
        } else {
            tracing::warn!(code = ?code, "publishing fails, trying again: {text}");
        }
    }

    /// Gives for how long it was raised.
    fn over(&self) -> Duration {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(since) = state.raised.take() else { return Duration::ZERO };
        self.metrics.publishing_refused(false);
        self.health.ok();
        if std::mem::take(&mut state.serious) {
            tracing::info!("publishing works again");
        }
        since.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use googleapis_tonic_google_pubsub_v1::google::pubsub::v1::{PublishRequest, PubsubMessage};
    use prost::Message as _;

    use super::*;
    use crate::bridge::batch::tests::{batch_of, record};
    use crate::bridge::dead_letter::Target;
    use crate::kafka::{Offsets, Receipt, Record};
    use crate::telemetry::health::Health;
    use crate::telemetry::metrics::registry;

    /// Answers each call as `answer` says, from its number (from 0) and its messages.
    struct Fake<F> {
        answer: F,
        calls: AtomicU64,
        accepted: Mutex<Vec<(String, String)>>,
    }

    impl<F: Fn(u64, &[PubsubMessage]) -> Code + Send + Sync> Publish for Fake<F> {
        async fn publish(&self, request: bytes::Bytes, messages: usize, _: Duration) -> Result<(), Status> {
            let request = PublishRequest::decode(request).unwrap();
            assert_eq!(request.topic, "projects/p/topics/urls");
            assert_eq!(request.messages.len(), messages);
            match (self.answer)(self.calls.fetch_add(1, Ordering::Relaxed), &request.messages) {
                Code::Ok => {
                    let accepted = request.messages.iter().map(|message| {
                        let data = String::from_utf8_lossy(&message.data).into_owned();
                        (message.attributes["kafka-offset"].clone(), data)
                    });
                    self.accepted.lock().unwrap().extend(accepted);
                    Ok(())
                }
                code => Err(Status::new(code, "as told")),
            }
        }
    }

    struct Stand<F> {
        offsets: Arc<Offsets>,
        forwarder: Forwarder<Fake<F>>,
        health: Health,
    }

    impl<F: Fn(u64, &[PubsubMessage]) -> Code + Send + Sync> Stand<F> {
        fn new(answer: F) -> Self {
            let offsets = Arc::new(Offsets::default());
            assert_eq!(offsets.assign(0, 0, true), 1);
            let health = Health::default();
            let metrics = BridgeMetrics::register(&mut registry(&health), "urls");
            let letters = health.condition("dead-letter");
            letters.ok();
            let letters = DeadLetters::new("urls".to_owned(), Target::Log, metrics.clone(), letters);
            let fake = Fake { answer, calls: AtomicU64::new(0), accepted: Mutex::default() };
            let (topic, commit) =
                ("projects/p/topics/urls".parse().unwrap(), CommitHandle::new(offsets.clone()));
            let condition = health.condition("pubsub");
            condition.ok();
            let forwarder = Forwarder::new(topic, fake, letters, commit, metrics, condition);
            Self { offsets, forwarder, health }
        }

        /// Records of these values from offset 0 on, `pack_records` in a message.
        fn batch(&self, pack_records: usize, values: &[&str]) -> Batch {
            self.batch_from(0, pack_records, values)
        }

        fn batch_from(&self, first: i64, pack_records: usize, values: &[&str]) -> Batch {
            let value = |text: &&str| (!text.is_empty()).then(|| text.as_bytes().to_vec());
            let records: Vec<Record> = (first..)
                .zip(values)
                .map(|(offset, text)| record(0, offset, value(text).as_deref(), &[]))
                .collect();
            let batch = batch_of(pack_records, &records);
            assert!(batch.receipts.as_slice().iter().all(|receipt| self.offsets.deliver(receipt)));
            batch
        }

        fn accepted(&self) -> Vec<(String, String)> {
            let mut accepted = self.forwarder.publisher.accepted.lock().unwrap().clone();
            accepted.sort();
            accepted
        }
    }

    fn values(accepted: &[(String, String)]) -> Vec<&str> {
        accepted.iter().map(|(_, value)| value.as_str()).collect()
    }

    fn refuses_bad(_: u64, messages: &[PubsubMessage]) -> Code {
        let bad = |message: &PubsubMessage| message.data.windows(3).any(|bytes| bytes == b"bad");
        if messages.iter().any(bad) { Code::InvalidArgument } else { Code::Ok }
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_is_halved_until_the_message_at_fault_stands_alone() {
        let stand = Stand::new(refuses_bad);
        let batch = stand.batch(1, &["a", "bad", "c", "d", "e", "f", "g", "badder", ""]);
        stand.forwarder.forward(batch).await;
        assert_eq!(values(&stand.accepted()), ["a", "c", "d", "e", "f", "g"]);
        let counts = stand.forwarder.counts();
        assert_eq!((counts.published, counts.undeliverable), (6, 3));
        assert_eq!(stand.offsets.take_committable(), [(0, 9)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pack_that_is_refused_is_taken_apart() {
        let stand = Stand::new(refuses_bad);
        let batch = stand.batch(3, &["a", "bad", "c", "d", "e"]);
        stand.forwarder.forward(batch).await;
        let expected = [("0", "a"), ("2", "c"), ("3-4", "d\r\ne")].map(|(o, v)| (o.to_owned(), v.to_owned()));
        assert_eq!(stand.accepted(), expected);
        let counts = stand.forwarder.counts();
        assert_eq!((counts.published, counts.undeliverable), (4, 1));
        let status = stand.forwarder.metrics.status(&stand.health);
        assert_eq!(status.records_done, 4, "records and not messages: 3-4 is one message");
        assert_eq!(stand.offsets.take_committable(), [(0, 5)]);
    }

    #[tokio::test(start_paused = true)]
    async fn whatever_else_is_answered_the_records_are_held_and_tried_again() {
        for code in (1..=16).map(Code::from_i32).filter(|code| fate(*code) != Fate::Refused) {
            let stand = Stand::new(move |call, _: &[PubsubMessage]| if call < 50 { code } else { Code::Ok });
            let batch = stand.batch(1, &["a", "b"]);
            stand.forwarder.forward(batch).await;
            assert_eq!(values(&stand.accepted()), ["a", "b"], "{code:?}");
            assert_eq!(stand.offsets.take_committable(), [(0, 2)], "{code:?}");
            assert!(stand.health.problems().is_empty(), "{code:?}: ready again");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn once_pubsub_is_back_all_that_waits_tries_at_once() {
        let (started, accepted) = (Instant::now(), Arc::new(Mutex::new(Vec::new())));
        let times = accepted.clone();
        let stand = Stand::new(move |_, _: &[PubsubMessage]| {
            let now = started.elapsed();
            if now < Duration::from_secs(10) {
                return Code::Unavailable;
            }
            times.lock().unwrap().push(now);
            Code::Ok
        });
        let batches = (0..50).map(|first| stand.forwarder.forward(stand.batch_from(first, 1, &["a"])));
        join_all(batches).await;
        let accepted = accepted.lock().unwrap();
        assert_eq!(accepted.len(), 50);
        let took = *accepted.last().unwrap() - accepted[0];
        assert!(took <= RECOVERY_SPREAD + Duration::from_millis(5), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_may_be_committed_while_pubsub_does_not_accept() {
        let stand = Stand::new(|_, _: &[PubsubMessage]| Code::PermissionDenied);
        let batch = stand.batch(1, &["a"]);
        let forward = stand.forwarder.forward(batch);
        assert!(tokio::time::timeout(Duration::from_secs(3600), forward).await.is_err());
        let calls = stand.forwarder.publisher.calls.load(Ordering::Relaxed);
        assert!(calls >= 3600, "at least once a second: {calls}");
        assert_eq!(stand.offsets.take_committable(), []);
        let problems = stand.health.problems();
        assert!(problems.iter().any(|problem| problem.contains("PermissionDenied")), "{problems:?}");
        assert!(!stand.offsets.deliver(&Receipt::one(7, 1, 0)), "another partition");
    }
}
