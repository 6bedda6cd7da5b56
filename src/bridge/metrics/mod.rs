//! What `bridge` counts, for Prometheus and for the status line.
//!
//! Methods take what happened to a whole batch, never to one record: at a million records a second a batch costs a few
//! atomic additions and two locks that nobody else holds but a scrape.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use tonic::Code;

use crate::kafka::metrics::ConsumerMetrics;
use crate::telemetry::health::Health;
use crate::telemetry::status::Status;

const BATCH_MESSAGES: [f64; 10] = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1_000.0];
const PUBLISH_SECONDS: [f64; 16] =
    [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0];

/// The numbers of one running bridge. Clones share them; every method may be called from any thread.
#[derive(Debug, Clone)]
pub(super) struct BridgeMetrics(Arc<Metrics>);

#[derive(Debug)]
struct Metrics {
    consumer: ConsumerMetrics,
    records_published: Counter,
    messages_published: Counter,
    published_bytes: Counter,
    publish_failures: Family<CodeLabel, Counter>,
    dead_letters: Family<DeadLetterLabels, Counter>,
    dead_letter_failures: Counter,
    headers_dropped: Counter,
    in_flight_records: Gauge,
    in_flight_bytes: Gauge,
    in_flight_calls: Gauge,
    in_flight_calls_limit: Gauge,
    batch_messages: Histogram,
    publish_seconds: Histogram,
    publishing_refused: Gauge,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CodeLabel {
    code: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DeadLetterLabels {
    reason: &'static str,
    to: &'static str,
}

/// One publish call that Pub/Sub accepted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Published {
    /// Records whose end this is; more than the messages where records were packed.
    pub(super) records: u64,
    pub(super) messages: u64,
    /// Of the messages as they are written on the wire.
    pub(super) bytes: u64,
    /// From the call to its answer, of this try alone.
    pub(super) latency: Duration,
}

/// What is between Kafka and an answer of Pub/Sub at this moment.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct InFlight {
    /// Read and not yet ended, waiting for a call included.
    pub(super) records: u64,
    pub(super) bytes: u64,
    /// Publish calls without an answer.
    pub(super) calls: u64,
    /// How many of them there may be now.
    pub(super) calls_limit: u64,
}

/// Why a record became a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DeadLetterReason {
    NoValue,
    EmptyValue,
    TooLarge,
    /// Too many attributes, or one over its size.
    Attributes,
    /// A `warm-` option that no attribute can carry.
    InvalidOption,
    RefusedByPubsub,
    /// A batch of records in Kafka that cannot be read.
    BrokenBatch,
}

impl DeadLetterReason {
    const ALL: [Self; 7] = [
        Self::NoValue,
        Self::EmptyValue,
        Self::TooLarge,
        Self::Attributes,
        Self::InvalidOption,
        Self::RefusedByPubsub,
        Self::BrokenBatch,
    ];

    /// As the label `reason` has it.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::NoValue => "no_value",
            Self::EmptyValue => "empty_value",
            Self::TooLarge => "too_large",
            Self::Attributes => "attributes",
            Self::InvalidOption => "invalid_option",
            Self::RefusedByPubsub => "refused_by_pubsub",
            Self::BrokenBatch => "broken_batch",
        }
    }
}

/// Where a dead letter went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DeadLetterTarget {
    Pubsub,
    Kafka,
    Log,
}

impl DeadLetterTarget {
    const ALL: [Self; 3] = [Self::Pubsub, Self::Kafka, Self::Log];

    fn as_str(self) -> &'static str {
        match self {
            Self::Pubsub => "pubsub",
            Self::Kafka => "kafka",
            Self::Log => "log",
        }
    }
}

impl BridgeMetrics {
    /// Registers all of them, for a bridge that reads `topic`. Once in a registry: the same name twice would make the
    /// whole text invalid.
    pub(super) fn register(registry: &mut Registry, topic: &str) -> Self {
        let registry = registry.sub_registry_with_prefix("cdnwarm_bridge");
        let metrics = Metrics {
            consumer: ConsumerMetrics::register(registry, topic),
            records_published: Counter::default(),
            messages_published: Counter::default(),
            published_bytes: Counter::default(),
            publish_failures: Family::default(),
            dead_letters: Family::default(),
            dead_letter_failures: Counter::default(),
            headers_dropped: Counter::default(),
            in_flight_records: Gauge::default(),
            in_flight_bytes: Gauge::default(),
            in_flight_calls: Gauge::default(),
            in_flight_calls_limit: Gauge::default(),
            batch_messages: Histogram::new(BATCH_MESSAGES),
            publish_seconds: Histogram::new(PUBLISH_SECONDS),
            publishing_refused: Gauge::default(),
        };
        metrics.begin_at_zero();
        metrics.register_counters(registry);
        metrics.register_the_rest(registry);
        Self(Arc::new(metrics))
    }

    /// Those of its consumer.
    pub(super) fn consumer(&self) -> &ConsumerMetrics {
        &self.0.consumer
    }

    /// Pub/Sub accepted a call.
    pub(super) fn published(&self, call: Published) {
        let Published { records, messages, bytes, latency } = call;
        self.0.records_published.inc_by(records);
        self.0.messages_published.inc_by(messages);
        self.0.published_bytes.inc_by(bytes);
        self.0.batch_messages.observe(messages as f64);
        self.0.publish_seconds.observe(latency.as_secs_f64());
    }

    /// Pub/Sub did not accept a call, which may be tried again.
    pub(super) fn publish_failed(&self, code: Code) {
        self.0.publish_failures.get_or_create(&CodeLabel { code: code_name(code) }).inc();
    }

    /// Records became dead letters.
    pub(super) fn dead_letters(&self, reason: DeadLetterReason, to: DeadLetterTarget, count: u64) {
        let labels = DeadLetterLabels { reason: reason.as_str(), to: to.as_str() };
        self.0.dead_letters.get_or_create(&labels).inc_by(count);
    }

    /// A dead letter went into the log because its topic did not take it.
    pub(super) fn dead_letter_failed(&self) {
        self.0.dead_letter_failures.inc();
    }

    /// Headers were left out, because no attribute can carry them.
    pub(super) fn headers_dropped(&self, count: u64) {
        self.0.headers_dropped.inc_by(count);
    }

    /// What is in flight now.
    pub(super) fn in_flight(&self, now: InFlight) {
        self.0.in_flight_records.set(gauge(now.records));
        self.0.in_flight_bytes.set(gauge(now.bytes));
        self.0.in_flight_calls.set(gauge(now.calls));
        self.0.in_flight_calls_limit.set(gauge(now.calls_limit));
    }

    /// Whether records are held because Pub/Sub refuses this topic or account, which only an operator can cure.
    pub(super) fn publishing_refused(&self, is_refused: bool) {
        self.0.publishing_refused.set(i64::from(is_refused));
    }

    /// All of it in short, for a person who watches.
    pub(super) fn status(&self, health: &Health) -> Status {
        let now = |gauge: &Gauge| u64::try_from(gauge.get()).unwrap_or_default();
        Status {
            records_done: self.0.records_published.get(),
            done: "published",
            records_in_flight: now(&self.0.in_flight_records),
            calls_in_flight: now(&self.0.in_flight_calls),
            calls: "calls",
            lag_records: self.0.consumer.lag_records(),
            problems: health.problems(),
        }
    }
}

impl Metrics {
    /// A series that appears with its first event hides that event from `increase()`: those that are few are there from
    /// the start.
    fn begin_at_zero(&self) {
        for reason in DeadLetterReason::ALL {
            for to in DeadLetterTarget::ALL {
                let labels = DeadLetterLabels { reason: reason.as_str(), to: to.as_str() };
                drop(self.dead_letters.get_or_create(&labels));
            }
        }
    }

    /// The encoder adds `_total`, a unit, and the full stop of each help text.
    fn register_counters(&self, registry: &mut Registry) {
        registry.register(
            "records_published",
            "Records that Pub/Sub has accepted, each in a message of its own or packed",
            self.records_published.clone(),
        );
        registry.register(
            "messages_published",
            "Messages that Pub/Sub has accepted",
            self.messages_published.clone(),
        );
        registry.register_with_unit(
            "published",
            "Size of the messages that Pub/Sub has accepted, attributes included",
            Unit::Bytes,
            self.published_bytes.clone(),
        );
        registry.register(
            "publish_failures",
            "Publish calls that failed, by gRPC code; they are tried again or lead to dead letters",
            self.publish_failures.clone(),
        );
        registry.register(
            "dead_letters",
            "Records that no message can carry, by reason and by where they went instead",
            self.dead_letters.clone(),
        );
        registry.register(
            "dead_letter_failures",
            "Dead letters that their topic refused or did not take in time, and that are in the log instead",
            self.dead_letter_failures.clone(),
        );
        registry.register(
            "headers_dropped",
            "Kafka headers that were left out of a message",
            self.headers_dropped.clone(),
        );
    }

    fn register_the_rest(&self, registry: &mut Registry) {
        registry.register(
            "in_flight_records",
            "Records read that have no end yet",
            self.in_flight_records.clone(),
        );
        registry.register_with_unit(
            "in_flight",
            "Size of the records read that have no end yet",
            Unit::Bytes,
            self.in_flight_bytes.clone(),
        );
        registry.register("in_flight_calls", "Publish calls without an answer", self.in_flight_calls.clone());
        registry.register(
            "in_flight_calls_limit",
            "How many publish calls may be without an answer now; it follows their latency",
            self.in_flight_calls_limit.clone(),
        );
        registry.register_with_unit(
            "publish_batch",
            "Messages in each accepted publish call",
            Unit::Other("messages".to_owned()),
            self.batch_messages.clone(),
        );
        registry.register_with_unit(
            "publish_duration",
            "Time from a publish call to its acceptance, failed tries not counted",
            Unit::Seconds,
            self.publish_seconds.clone(),
        );
        registry.register(
            "publishing_refused",
            "Whether records are held because Pub/Sub refuses the topic or this account: 1 or 0",
            self.publishing_refused.clone(),
        );
    }
}

/// Gauges are signed.
fn gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The name that gRPC's own documentation and Google's have for it.
fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;

    use super::*;
    use crate::kafka::consumer::{PartitionState, Snapshot};
    use crate::telemetry::metrics::{assert_format, registry};

    const UNKNOWN_LAG: PartitionState = PartitionState { committed: 500, high_watermark: None };

    fn text(registry: &Registry) -> String {
        let mut text = String::new();
        encode(&mut text, registry).unwrap();
        text
    }

    /// Everything that can happen has happened once.
    fn busy() -> (Registry, BridgeMetrics, Health) {
        let health = Health::default();
        let mut registry = registry(&health);
        let metrics = BridgeMetrics::register(&mut registry, "urls \"of\" \\ all");
        let partitions =
            [(0, PartitionState { committed: 1_500, high_watermark: Some(2_000) }), (5, UNKNOWN_LAG)];
        let now = Snapshot { records: 2_100, lost: 1, partitions: partitions.into(), ..Snapshot::default() };
        metrics.consumer().show(&Snapshot::default(), &now);
        let latency = Duration::from_millis(20);
        metrics.published(Published { records: 2_000, messages: 1_000, bytes: 120_000, latency });
        metrics.publish_failed(Code::Unavailable);
        metrics.dead_letters(DeadLetterReason::TooLarge, DeadLetterTarget::Log, 3);
        metrics.dead_letter_failed();
        metrics.headers_dropped(4);
        metrics.in_flight(InFlight { records: 97, bytes: 9_000, calls: 2, calls_limit: 16 });
        metrics.publishing_refused(true);
        (registry, metrics, health)
    }

    #[test]
    fn what_happened_is_what_is_shown() {
        let (registry, metrics, _) = busy();
        let shown = text(&registry);
        for line in [
            "records_read_total 2100",
            "records_published_total 2000",
            "messages_published_total 1000",
            "published_bytes_total 120000",
            "publish_failures_total{code=\"UNAVAILABLE\"} 1",
            "dead_letters_total{reason=\"too_large\",to=\"log\"} 3",
            "dead_letters_total{reason=\"no_value\",to=\"pubsub\"} 0",
            "dead_letter_failures_total 1",
            "headers_dropped_total 4",
            "in_flight_records 97",
            "in_flight_bytes 9000",
            "in_flight_calls 2",
            "in_flight_calls_limit 16",
            "publish_batch_messages_bucket{le=\"500.0\"} 0",
            "publish_batch_messages_bucket{le=\"1000.0\"} 1",
            "publish_duration_seconds_bucket{le=\"0.01\"} 0",
            "publish_duration_seconds_bucket{le=\"0.02\"} 1",
            "publish_duration_seconds_count 1",
            "publishing_refused 1",
            "rebalances_total{event=\"lost\"} 1",
            "rebalances_total{event=\"assigned\"} 0",
            "partition_lag_records{topic=\"urls \\\"of\\\" \\\\ all\",partition=\"0\"} 500",
            "partition_committed_offset{topic=\"urls \\\"of\\\" \\\\ all\",partition=\"5\"} 500",
        ] {
            assert!(shown.contains(&format!("\ncdnwarm_bridge_{line}\n")), "{line} is not in\n{shown}");
        }
        assert!(
            !shown.contains("partition_lag_records{topic=\"urls \\\"of\\\" \\\\ all\",partition=\"5\"}"),
            "an unknown lag is not shown"
        );
        metrics.publishing_refused(false);
        assert!(text(&registry).contains("\ncdnwarm_bridge_publishing_refused 0\n"));
    }

    #[test]
    fn a_partition_that_is_gone_is_not_shown() {
        let (registry, metrics, health) = busy();
        let shows = |partitions: &[(i32, PartitionState)]| {
            let now = Snapshot { partitions: partitions.iter().copied().collect(), ..Snapshot::default() };
            metrics.consumer().show(&Snapshot::default(), &now);
            (metrics.status(&health).lag_records, text(&registry))
        };
        let seven = (1, PartitionState { committed: 10, high_watermark: Some(17) });
        let (lag, shown) = shows(&[seven, (5, UNKNOWN_LAG)]);
        assert_eq!(lag, Some(7));
        assert!(!shown.contains("partition=\"0\"") && shown.contains("partition=\"5\""), "{shown}");
        assert_eq!(shows(&[(5, UNKNOWN_LAG)]).0, None);
        let (lag, shown) = shows(&[]);
        assert_eq!(lag, None);
        assert!(!shown.contains("cdnwarm_bridge_partition"), "{shown}");
    }

    #[test]
    fn the_status_line_has_the_same_numbers() {
        let (_registry, metrics, health) = busy();
        health.condition("kafka").not_ok("away");
        let status = metrics.status(&health);
        assert_eq!((status.records_done, status.records_in_flight, status.calls_in_flight), (2_000, 97, 2));
        assert_eq!(status.problems, ["kafka: away"]);
    }

    #[test]
    fn every_code_has_the_name_that_grpc_gives_it() {
        for number in 0..=16 {
            let code = Code::from(number);
            // CamelCase against SCREAMING_SNAKE_CASE.
            let name = code_name(code).replace('_', "").to_ascii_lowercase();
            assert_eq!(name, format!("{code:?}").to_ascii_lowercase());
        }
    }

    #[test]
    fn the_text_keeps_to_the_format() {
        let (registry, _, _) = busy();
        assert_format(&text(&registry));
    }
}
