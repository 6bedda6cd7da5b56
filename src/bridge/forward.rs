//! Chunks of records to publish calls: bounded in flight, tried until Pub/Sub has answered, each record's end reported.
//!
//! A record ends in one of two ways: Pub/Sub accepted it, or it can never be accepted and is logged as undeliverable.
//! Everything else (Pub/Sub away, topic missing, rights missing) holds its offset and is tried again.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBuilder};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use googleapis_tonic_google_pubsub_v1::google::pubsub::v1::PubsubMessage;
use tonic::{Code, Status};

use super::message::{MAX_MESSAGE_BYTES, message};
use crate::kafka::consumer::{Consumer, Done};
use crate::kafka::{Receipt, Record};
use crate::pubsub::Publish;

/// Publish calls under way at once; with chunks of at most 1,000 records and 3 MiB this bounds what is in flight.
const MAX_CALLS: usize = 16;
/// How long calls under way are waited for once there are no more records.
const DRAIN_LIMIT: Duration = Duration::from_secs(7);
/// One line about a failure that goes on, in this time.
const LOG_INTERVAL: Duration = Duration::from_secs(30);

/// Moves records of one topic to a publisher.
pub(super) struct Forwarder<P> {
    topic: String,
    publisher: P,
    done: Done,
    published: AtomicU64,
    undeliverable: AtomicU64,
    dropped_headers: AtomicU64,
    alarm: Alarm,
}

/// What became of the records so far.
pub(super) struct Counts {
    pub(super) published: u64,
    pub(super) undeliverable: u64,
    pub(super) dropped_headers: u64,
}

type Batch = Vec<(Receipt, PubsubMessage)>;

impl<P: Publish> Forwarder<P> {
    pub(super) fn new(topic: String, publisher: P, done: Done) -> Self {
        Self {
            topic,
            publisher,
            done,
            published: AtomicU64::new(0),
            undeliverable: AtomicU64::new(0),
            dropped_headers: AtomicU64::new(0),
            alarm: Alarm::default(),
        }
    }

    /// Forwards until the consumer has no more; then waits for the calls under way, a few seconds at most: what Pub/Sub
    /// has not accepted by then is delivered again.
    pub(super) async fn run(&self, consumer: &mut Consumer) {
        let mut calls = FuturesUnordered::new();
        loop {
            tokio::select! {
                chunk = consumer.next(), if calls.len() < MAX_CALLS => match chunk {
                    Some(chunk) => calls.extend(self.batches(chunk).into_iter().map(|batch| self.publish(batch))),
                    None => break,
                },
                Some(()) = calls.next() => {}
            }
        }
        let drained = async { while calls.next().await.is_some() {} };
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

    /// Messages of one chunk, cut where a publish request would exceed Pub/Sub's 10 MB.
    fn batches(&self, chunk: Vec<Record>) -> Vec<Batch> {
        let mut batches = Vec::new();
        let (mut batch, mut batch_bytes) = (Vec::with_capacity(chunk.len()), 0);
        for record in chunk {
            let receipt = record.receipt;
            match message(&self.topic, record) {
                Ok((message, dropped)) => {
                    self.dropped_headers.fetch_add(dropped as u64, Ordering::Relaxed);
                    // Field tag and length stand before each message in the request.
                    let size_bytes = prost::Message::encoded_len(&message) + 8;
                    if batch_bytes + size_bytes > MAX_MESSAGE_BYTES && !batch.is_empty() {
                        batches.push(std::mem::take(&mut batch));
                        batch_bytes = 0;
                    }
                    batch_bytes += size_bytes;
                    batch.push((receipt, message));
                }
                Err(reason) => self.give_up(receipt, &reason),
            }
        }
        if !batch.is_empty() {
            batches.push(batch);
        }
        batches
    }

    /// Publishes a batch; one that is refused as a whole is halved until the message at fault stands alone.
    async fn publish(&self, batch: Batch) {
        let mut batches = vec![batch];
        while let Some(mut batch) = batches.pop() {
            match self.publish_until_answered(&batch).await {
                Ok(()) => {
                    self.published.fetch_add(batch.len() as u64, Ordering::Relaxed);
                    self.done.done(batch.iter().map(|(receipt, _)| *receipt));
                }
                Err(refused) if batch.len() == 1 => {
                    self.give_up(batch[0].0, &format!("Pub/Sub refuses it: {}", refused.message()));
                }
                Err(_) => {
                    let second_half = batch.split_off(batch.len() / 2);
                    batches.extend([second_half, batch]);
                }
            }
        }
    }

    /// Tries again, at least once a second, until the batch is accepted or refused for what is in it.
    async fn publish_until_answered(&self, batch: &Batch) -> Result<(), Status> {
        let mut delays = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(100))
            // The jitter adds up to as much again.
            .with_max_delay(Duration::from_millis(500))
            .without_max_times()
            .with_jitter()
            .build();
        loop {
            let messages = batch.iter().map(|(_, message)| message.clone()).collect();
            match self.publisher.publish(messages).await {
                Ok(()) => {
                    self.alarm.over();
                    return Ok(());
                }
                // OUT_OF_RANGE and INVALID_ARGUMENT speak of the request; all other codes of the moment or the set-up.
                Err(status) if matches!(status.code(), Code::InvalidArgument | Code::OutOfRange) => {
                    return Err(status);
                }
                Err(status) => self.alarm.raise(&status),
            }
            tokio::time::sleep(delays.next().unwrap_or(Duration::from_secs(1))).await;
        }
    }

    /// The end of a record that no message can carry: an error line that says where to read it again.
    fn give_up(&self, receipt: Receipt, reason: &str) {
        let (topic, Receipt { partition, offset, .. }) = (&self.topic, receipt);
        self.undeliverable.fetch_add(1, Ordering::Relaxed);
        tracing::error!(
            topic,
            partition,
            offset,
            reason,
            "undeliverable record {topic}/{partition}/{offset}: {reason}. It is skipped; read it again with \
             kcat -C -t {topic} -p {partition} -o {offset} -c 1"
        );
        self.done.done([receipt]);
    }
}

/// Says that publishing fails and why, without repeating itself, and that it works again.
#[derive(Default)]
struct Alarm(std::sync::Mutex<Option<(Code, Instant)>>);

impl Alarm {
    fn raise(&self, status: &Status) {
        let mut raised = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let now = Instant::now();
        let (code, text) = (status.code(), status.message());
        if raised.is_some_and(|(last, at)| last == code && now - at < LOG_INTERVAL) {
            return;
        }
        *raised = Some((code, now));
        let advice = match code {
            Code::NotFound => "the topic is gone: create it again",
            Code::PermissionDenied => "grant roles/pubsub.publisher on the topic to this account",
            Code::Unauthenticated => "check this account's credentials",
            _ => {
                tracing::warn!(code = ?code, "publishing fails, trying again: {text}");
                return;
            }
        };
        tracing::error!(code = ?code, "publishing is refused: {text}; {advice}. Records are held and tried again");
    }

    fn over(&self) {
        if self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take().is_some() {
            tracing::info!("publishing works again");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::kafka::Offsets;

    /// Answers each call as `answer` says, from its number (from 0) and its messages.
    struct Fake<F> {
        answer: F,
        calls: AtomicU64,
        accepted: Mutex<Vec<String>>,
    }

    impl<F: Fn(u64, &[PubsubMessage]) -> Code + Send + Sync> Publish for Fake<F> {
        async fn publish(&self, messages: Vec<PubsubMessage>) -> Result<(), Status> {
            match (self.answer)(self.calls.fetch_add(1, Ordering::Relaxed), &messages) {
                Code::Ok => {
                    let texts = messages.iter().map(|m| String::from_utf8_lossy(&m.data).into_owned());
                    self.accepted.lock().unwrap().extend(texts);
                    Ok(())
                }
                code => Err(Status::new(code, "as told")),
            }
        }
    }

    /// Publishes one batch of messages with these texts, from offset 0 on; gives what was accepted, in order of
    /// offsets, how many were given up, and the offset that may be committed.
    async fn published<F>(texts: &[&str], answer: F) -> (Vec<String>, u64, Vec<(i32, i64)>)
    where
        F: Fn(u64, &[PubsubMessage]) -> Code + Send + Sync,
    {
        let offsets = Arc::new(Offsets::default());
        offsets.assign(0);
        let batch = texts.iter().zip(0..).map(|(text, offset)| {
            let receipt = offsets.read(0, offset).unwrap().receipt;
            assert!(offsets.deliver(receipt));
            (receipt, PubsubMessage { data: (*text).to_owned().into(), ..PubsubMessage::default() })
        });
        let fake = Fake { answer, calls: AtomicU64::new(0), accepted: Mutex::default() };
        let forwarder = Forwarder::new("urls".to_owned(), fake, Done::to(offsets.clone()));
        forwarder.publish(batch.collect()).await;
        let mut accepted = forwarder.publisher.accepted.lock().unwrap().clone();
        accepted.sort();
        (accepted, forwarder.counts().undeliverable, offsets.take_committable())
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_is_halved_until_the_message_at_fault_stands_alone() {
        let texts = ["a", "bad", "c", "d", "e", "f", "g", "worse"];
        let refuses = |_, messages: &[PubsubMessage]| {
            let at_fault = messages.iter().any(|m| matches!(&m.data[..], b"bad" | b"worse"));
            if at_fault { Code::InvalidArgument } else { Code::Ok }
        };
        let (accepted, given_up, committable) = published(&texts, refuses).await;
        assert_eq!(accepted, ["a", "c", "d", "e", "f", "g"]);
        assert_eq!((given_up, committable), (2, vec![(0, 8)]));
    }

    #[tokio::test(start_paused = true)]
    async fn whatever_else_is_answered_the_records_are_held_and_tried_again() {
        for code in
            (1..=16).map(Code::from_i32).filter(|c| !matches!(c, Code::InvalidArgument | Code::OutOfRange))
        {
            let away_for_a_while = |call, _: &[PubsubMessage]| if call < 50 { code } else { Code::Ok };
            let (accepted, given_up, committable) = published(&["a", "b"], away_for_a_while).await;
            assert_eq!((accepted.len(), given_up, committable), (2, 0, vec![(0, 2)]), "{code:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_may_be_committed_while_pubsub_does_not_accept() {
        let offsets = Arc::new(Offsets::default());
        offsets.assign(0);
        let receipt = offsets.read(0, 7).unwrap().receipt;
        assert!(offsets.deliver(receipt));
        let fake = Fake {
            answer: |_, _: &[_]| Code::PermissionDenied,
            calls: AtomicU64::new(0),
            accepted: Mutex::default(),
        };
        let forwarder = Forwarder::new("urls".to_owned(), fake, Done::to(offsets.clone()));
        let publishing = forwarder.publish(vec![(receipt, PubsubMessage::default())]);
        assert!(tokio::time::timeout(Duration::from_secs(3600), publishing).await.is_err());
        assert!(forwarder.publisher.calls.load(Ordering::Relaxed) >= 3600, "at least once a second");
        assert_eq!(offsets.take_committable(), []);
    }
}
