//! What `consume-direct` counts, for Prometheus, for the status line and for the summary at its end.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::kafka::metrics::ConsumerMetrics;
use crate::outcome::Outcome;
use crate::telemetry::health::Health;
use crate::telemetry::status::Status;
use crate::verdict::WORDS;

const GET_SECONDS: [f64; 14] =
    [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 600.0];

/// The numbers of one running `consume-direct`. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct DirectMetrics {
    consumer: ConsumerMetrics,
    verdicts: Family<VerdictLabel, Counter>,
    in_flight_records: Gauge,
    in_flight_gets: Gauge,
    get_seconds: Histogram,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VerdictLabel {
    verdict: &'static str,
}

impl DirectMetrics {
    /// Registers all of them, once in a registry, for a consumer of `topic`.
    pub(super) fn register(registry: &mut Registry, topic: &str) -> Self {
        let registry = registry.sub_registry_with_prefix("cdnwarm_consume_direct");
        let metrics = Self {
            consumer: ConsumerMetrics::register(registry, topic),
            verdicts: Family::default(),
            in_flight_records: Gauge::default(),
            in_flight_gets: Gauge::default(),
            get_seconds: Histogram::new(GET_SECONDS),
        };
        // A series that appears with its first event hides that event from `increase()`.
        for verdict in WORDS {
            drop(metrics.verdicts.get_or_create(&VerdictLabel { verdict }));
        }
        registry.register("verdicts", "Records that have a verdict, by verdict", metrics.verdicts.clone());
        registry.register(
            "in_flight_records",
            "Records read that are not committable yet",
            metrics.in_flight_records.clone(),
        );
        registry.register("in_flight_gets", "Records that are being fetched", metrics.in_flight_gets.clone());
        registry.register_with_unit(
            "get_duration",
            "Time from the first GET for a record to its verdict, further tries and a second look included",
            Unit::Seconds,
            metrics.get_seconds.clone(),
        );
        metrics
    }

    /// Those of its consumer.
    pub(super) fn consumer(&self) -> &ConsumerMetrics {
        &self.consumer
    }

    /// A record has its verdict.
    pub(super) fn outcome(&self, outcome: &Outcome) {
        self.verdicts.get_or_create(&VerdictLabel { verdict: outcome.verdict.word() }).inc();
        if outcome.attempts > 0 {
            let total = Duration::try_from_secs_f64(outcome.exchange.total_ms / 1_000.0).unwrap_or_default();
            self.get_seconds.observe(total.as_secs_f64());
        }
    }

    /// What is in flight now.
    pub(super) fn in_flight(&self, records: u64, gets: usize) {
        self.in_flight_records.set(i64::try_from(records).unwrap_or(i64::MAX));
        self.in_flight_gets.set(i64::try_from(gets).unwrap_or(i64::MAX));
    }

    /// All of it in short, for a person who watches.
    pub(super) fn status(&self, health: &Health) -> Status {
        let now = |gauge: &Gauge| u64::try_from(gauge.get()).unwrap_or_default();
        Status {
            records_done: self.verdicts().map(|(_, count)| count).sum(),
            done: "with a verdict",
            records_in_flight: now(&self.in_flight_records),
            calls_in_flight: now(&self.in_flight_gets),
            calls: "GETs",
            lag_records: self.consumer.lag_records(),
            problems: health.problems(),
        }
    }

    /// How many records have each verdict, those that occurred.
    pub(super) fn verdicts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let count = |verdict| self.verdicts.get_or_create(&VerdictLabel { verdict }).get();
        WORDS.into_iter().map(move |verdict| (verdict, count(verdict))).filter(|(_, count)| *count > 0)
    }
}
