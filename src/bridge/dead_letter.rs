//! Where the record goes that no message can carry: a Pub/Sub topic, a Kafka topic, or a log line to replay it from.

use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::Semaphore;
use tonic::Code;

use super::letter::{Undeliverable, as_json, attributes, coordinates};
use super::message::MAX_MESSAGE_BYTES;
use super::metrics::{BridgeMetrics, DeadLetterTarget};
use super::retry::{Fate, call_limit, delays, fate};
use crate::kafka::dead_letter_topic::{DeadLetterTopic, NotWritten};
use crate::kafka::{Record, topic_name};
use crate::pubsub::{GrpcPublisher, Publish, RequestBuilder, TopicName};
use crate::telemetry::health::Condition;

/// How long a dead letter topic may fail before the record is logged instead: its partition waits for it.
const LETTER_LIMIT: Duration = Duration::from_secs(20);
/// Letters on their way at once.
const LETTERS_AT_ONCE: usize = 32;
/// One line about a topic that goes on failing, in this time.
const LOG_INTERVAL: Duration = Duration::from_secs(30);

/// Where dead letters go, as an operator says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum DeadLetterPlace {
    Pubsub(TopicName),
    Kafka(String),
}

impl FromStr for DeadLetterPlace {
    type Err = String;

    /// A slash makes it a Pub/Sub topic: no name of a Kafka topic has one.
    fn from_str(text: &str) -> Result<Self, String> {
        if text.contains('/') {
            return text.parse().map(Self::Pubsub);
        }
        let name = topic_name(text);
        name.map(Self::Kafka).map_err(|why| format!("not projects/PROJECT/topics/TOPIC; {why}"))
    }
}

/// Sends dead letters, and counts them.
pub(super) struct DeadLetters {
    /// Where the records come from.
    kafka_topic: String,
    target: Target,
    metrics: BridgeMetrics,
    places: Semaphore,
    alarm: Alarm,
}

pub(super) enum Target {
    Pubsub(GrpcPublisher),
    Kafka(DeadLetterTopic),
    Log,
}

impl DeadLetters {
    /// `health` is broken for as long as letters wait for a topic that fails.
    pub(super) fn new(
        kafka_topic: String,
        target: Target,
        metrics: BridgeMetrics,
        health: Condition,
    ) -> Self {
        let alarm = Alarm { state: Mutex::default(), health };
        Self { kafka_topic, target, metrics, places: Semaphore::new(LETTERS_AT_ONCE), alarm }
    }

    /// Brings a record to its end. What the dead letter topic refuses, or does not take in time, is logged.
    pub(super) async fn send(&self, letter: &Undeliverable) {
        let Record { partition, offset, .. } = letter.record;
        let (topic, reason) = (&self.kafka_topic, &letter.reason);
        // Never closed; without a place there are only more letters at once.
        let _place = self.places.acquire().await;
        let to = match Ready::of(topic, letter, &self.target) {
            None => {
                self.log(letter, "no --dead-letter topic");
                DeadLetterTarget::Log
            }
            Some(ready) => match self.until_taken(&ready).await {
                Ok(()) => {
                    tracing::warn!(topic, partition, offset, %reason, "dead letter {topic}/{partition}/{offset}: {reason}");
                    ready.to()
                }
                Err(why) => {
                    self.metrics.dead_letter_failed();
                    self.log(letter, &why);
                    DeadLetterTarget::Log
                }
            },
        };
        self.metrics.dead_letters(reason.class(), to, 1);
    }

    /// # Errors
    /// Why its topic will never take it, or did not in time.
    async fn until_taken(&self, ready: &Ready<'_>) -> Result<(), String> {
        let mut failing: Option<Failing<'_>> = None;
        let trying = async {
            let (mut delays, mut unanswered) = (delays(), 0);
            loop {
                match ready.try_once(&mut unanswered).await {
                    Ok(()) => return Ok(()),
                    Err(NotTaken::Refused(why)) => {
                        return Err(format!("{} refuses it: {why}", ready.topic()));
                    }
                    Err(NotTaken::Failed(why)) => match &mut failing {
                        Some(failing) => failing.last = why,
                        None => failing = Some(self.alarm.raise(ready.topic(), why)),
                    },
                }
                tokio::time::sleep(delays.next().unwrap_or(Duration::from_secs(1))).await;
            }
        };
        tokio::time::timeout(LETTER_LIMIT, trying).await.unwrap_or_else(|_| {
            let last = failing.as_ref().map_or("no answer", |failing| &failing.last);
            Err(format!("{} did not take it within {} s: {last}", ready.topic(), LETTER_LIMIT.as_secs()))
        })
    }

    /// An error line with all of the record, or with as much of it as a line takes.
    fn log(&self, letter: &Undeliverable, why: &str) {
        let Undeliverable { record, reason } = letter;
        let (topic, Record { partition, offset, .. }) = (&self.kafka_topic, record);
        tracing::error!(
            topic,
            partition,
            offset,
            %reason,
            record = %as_json(record),
            "undeliverable record {topic}/{partition}/{offset}: {reason}. It is skipped and logged ({why}); while Kafka \
             has it, kcat -C -t {topic} -p {partition} -o {offset} -c 1 reads it again"
        );
    }
}

/// A letter in the form that its topic takes.
enum Ready<'a> {
    Pubsub { publisher: &'a GrpcPublisher, request: Bytes },
    Kafka { topic: &'a DeadLetterTopic, record: &'a Record, headers: Vec<(&'static str, String)> },
}

/// Why a topic did not take a letter.
enum NotTaken {
    /// It never will.
    Refused(String),
    /// It may later.
    Failed(String),
}

impl<'a> Ready<'a> {
    /// None where there is no topic.
    fn of(kafka_topic: &str, letter: &'a Undeliverable, target: &'a Target) -> Option<Self> {
        match target {
            Target::Log => None,
            Target::Pubsub(publisher) => {
                let mut request = RequestBuilder::new(publisher.topic(), 0);
                let attributes = attributes(kafka_topic, letter);
                let attributes_bytes: usize = attributes.iter().map(Vec::len).sum();
                let mut value = letter.record.value.as_deref().unwrap_or_default();
                if value.len() + attributes_bytes > MAX_MESSAGE_BYTES {
                    // Without its value it is still found again in Kafka by its coordinates.
                    value = &[];
                }
                request.add(value, &attributes.iter().map(Vec::as_slice).collect::<Vec<_>>());
                Some(Self::Pubsub { publisher, request: request.build().part(0..1) })
            }
            Target::Kafka(topic) => {
                let headers = coordinates(kafka_topic, &letter.record, &letter.reason);
                Some(Self::Kafka { topic, record: &letter.record, headers })
            }
        }
    }

    fn topic(&self) -> &str {
        match self {
            Self::Pubsub { publisher, .. } => publisher.topic().as_str(),
            Self::Kafka { topic, .. } => topic.name(),
        }
    }

    fn to(&self) -> DeadLetterTarget {
        match self {
            Self::Pubsub { .. } => DeadLetterTarget::Pubsub,
            Self::Kafka { .. } => DeadLetterTarget::Kafka,
        }
    }

    /// `unanswered` counts the tries that had no answer in their time.
    async fn try_once(&self, unanswered: &mut u32) -> Result<(), NotTaken> {
        match self {
            Self::Pubsub { publisher, request } => {
                let limit = call_limit(request.len(), *unanswered);
                let Err(status) = publisher.publish(request.clone(), 1, limit).await else { return Ok(()) };
                *unanswered += u32::from(status.code() == Code::DeadlineExceeded);
                Err(match fate(status.code()) {
                    Fate::Refused => NotTaken::Refused(status.message().to_owned()),
                    Fate::Held => NotTaken::Failed(format!(
                        "{:?}: {}; it must exist, and this account needs roles/pubsub.publisher on it",
                        status.code(),
                        status.message()
                    )),
                    Fate::Again | Fate::Overloaded => {
                        NotTaken::Failed(format!("{:?}: {}", status.code(), status.message()))
                    }
                })
            }
            Self::Kafka { topic, record, headers } => {
                topic.write(record, headers).await.map_err(|error| match error {
                    NotWritten::Refused(why) => NotTaken::Refused(why),
                    NotWritten::Failed(why) => NotTaken::Failed(why),
                })
            }
        }
    }
}

/// Says that letters wait for a topic that fails, without repeating itself.
struct Alarm {
    state: Mutex<AlarmState>,
    health: Condition,
}

#[derive(Default)]
struct AlarmState {
    /// Letters that wait.
    waiting: usize,
    logged: Option<Instant>,
}

/// One letter whose topic fails, for as long as it waits.
struct Failing<'a> {
    alarm: &'a Alarm,
    last: String,
}

impl Alarm {
    fn raise(&self, topic: &str, why: String) -> Failing<'_> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.waiting += 1;
        self.health.not_ok(format!("{topic} does not take dead letters: {why}"));
        let now = Instant::now();
        if state.logged.is_none_or(|at| now - at >= LOG_INTERVAL) {
            state.logged = Some(now);
            let seconds = LETTER_LIMIT.as_secs();
            tracing::error!(
                "{topic} does not take dead letters: {why}. Each is tried again for {seconds} s, and then logged"
            );
        }
        Failing { alarm: self, last: why }
    }
}

impl Drop for Failing<'_> {
    fn drop(&mut self) {
        let mut state = self.alarm.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.waiting -= 1;
        if state.waiting == 0 {
            self.alarm.health.ok();
        }
    }
}
