//! What librdkafka says on its own account: the last error, for messages that must explain a silence, and its log lines.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail};
use rdkafka::client::{Client, ClientContext};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tokio_util::sync::CancellationToken;

/// librdkafka repeats itself with every reconnect; one line in this time is enough.
const LOG_INTERVAL: Duration = Duration::from_secs(30);

/// Remembers the last error that librdkafka reported, and logs it without repeating it.
#[derive(Debug, Default)]
pub(crate) struct ClientEvents {
    last_error: Mutex<Option<Reported>>,
}

#[derive(Debug, Clone)]
struct Reported {
    code: RDKafkaErrorCode,
    reason: String,
    logged_at: Instant,
}

impl ClientContext for ClientEvents {
    fn error(&self, error: KafkaError, reason: &str) {
        let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail);
        let now = Instant::now();
        let mut last = self.last_error.lock().unwrap_or_else(PoisonError::into_inner);
        // "All brokers down" only sums up the errors of the single brokers, which say why.
        if code == RDKafkaErrorCode::AllBrokersDown && last.is_some() {
            return;
        }
        let known = last.as_ref().filter(|last| last.code == code && now - last.logged_at < LOG_INTERVAL);
        let logged_at = match known {
            Some(last) => last.logged_at,
            None => {
                tracing::warn!(code = ?code, "kafka: {reason}");
                now
            }
        };
        *last = Some(Reported { code, reason: reason.to_owned(), logged_at });
    }

    /// Errors come through [`ClientContext::error`] as well; the lines themselves are detail.
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        match level {
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
                tracing::error!(target: "librdkafka", facility, "{message}");
            }
            // A committed offset that is no longer in the topic, above all.
            RDKafkaLogLevel::Warning if facility == "OFFSET" => {
                tracing::warn!(target: "librdkafka", facility, "{message}");
            }
            _ => tracing::debug!(target: "librdkafka", facility, "{message}"),
        }
    }
}

/// Rebalances are events to `kafka::member`; only those of a consumer's end come here, and need nothing.
impl ConsumerContext for ClientEvents {}

impl ClientEvents {
    /// The last error's text, ready to end a sentence.
    pub(crate) fn last_error(&self) -> String {
        self.last().map_or_else(|| "no answer".to_owned(), |last| last.reason)
    }

    /// An error that no waiting cures: the broker does not believe who we are, or we do not believe the broker.
    fn refused(&self) -> Option<Reported> {
        self.last()
            .filter(|last| matches!(last.code, RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SSL))
    }

    fn last(&self) -> Option<Reported> {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The cluster answers, and has no such topic.
#[derive(Debug)]
pub(crate) struct NoSuchTopic {
    topic: String,
    source: String,
}

impl fmt::Display for NoSuchTopic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { topic, source } = self;
        write!(
            f,
            "Kafka topic {topic} does not exist on the cluster of {source}: check its name, or create it"
        )
    }
}

impl std::error::Error for NoSuchTopic {}

/// Waits until a broker answers and knows the topic; blocks its thread.
///
/// # Errors
/// No broker within `limit`, credentials or certificate refused, [`NoSuchTopic`], no access to it, or `stop`: each says
/// what to look at. `source` is the kafka-env file; `hear_events` polls the client for a while, which then
/// tells `events` why it cannot connect.
pub(crate) fn wait_for_topic<C: ClientContext>(
    client: &Client<C>,
    hear_events: impl Fn(Duration),
    events: &ClientEvents,
    topic: &str,
    source: &str,
    limit: Duration,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + limit;
    // A topic made a moment ago may not be known to every broker yet.
    let mut unknown_since = None;
    while !stop.is_cancelled() {
        match client.fetch_metadata(Some(topic), Duration::from_secs(1)) {
            Ok(metadata) => match metadata.topics().first().and_then(|topic| topic.error()) {
                None => return Ok(()),
                Some(error) => match RDKafkaErrorCode::from(error) {
                    RDKafkaErrorCode::TopicAuthorizationFailed => bail!(
                        "no access to Kafka topic {topic}: the user in {source} needs the Describe right on it, and \
                         Read to consume or Write to produce"
                    ),
                    RDKafkaErrorCode::InvalidTopic => bail!("{topic:?} cannot be the name of a Kafka topic"),
                    RDKafkaErrorCode::UnknownTopic | RDKafkaErrorCode::UnknownTopicOrPartition
                        if unknown_since.get_or_insert_with(Instant::now).elapsed()
                            > Duration::from_secs(2) =>
                    {
                        return Err(NoSuchTopic { topic: topic.to_owned(), source: source.to_owned() }.into());
                    }
                    _ => {}
                },
            },
            Err(error) => tracing::debug!("waiting for Kafka: {error}"),
        }
        hear_events(Duration::from_millis(100));
        if let Some(refused) = events.refused() {
            bail!(
                "Kafka refuses the connection: {}. Check security.protocol, sasl.username, sasl.password and the CA \
                 certificate in {source}",
                refused.reason
            );
        }
        if Instant::now() > deadline {
            return Err(anyhow!(
                "no Kafka broker answered within {} s ({}). Check bootstrap.servers and security.protocol in {source}, \
                 and that this machine reaches the broker",
                limit.as_secs(),
                events.last_error(),
            ));
        }
    }
    bail!("stopped before Kafka answered")
}
