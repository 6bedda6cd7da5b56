//! What every consuming role shows of its consumer: records read, rebalances, how far each partition is, and whether it moves.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::Registry;
use tokio::time::{Instant, MissedTickBehavior};

use super::consumer::{PartitionState, STALL_TIMEOUT, Snapshot, Watch};
use crate::telemetry::health::{Condition, Health};

/// How often metrics and health follow the consumer.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);
/// How often the log tells the lag, for those who measure by the log: `monitoring/log-metrics/bridge-lag.json` does.
const LAG_LOG_INTERVAL: Duration = Duration::from_secs(60);

/// The numbers of one consumer. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct ConsumerMetrics {
    records_read: Counter,
    rebalances: Family<RebalanceLabel, Counter>,
    corrupt_partitions: Gauge,
    skipped_corrupt_batches: Counter,
    partitions: Arc<Partitions>,
}

/// `assigned`, `revoked`, or `lost`: taken away without a chance to commit.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RebalanceLabel {
    event: &'static str,
}

/// What must hold for a consumer to do its work.
pub(crate) struct ConsumerConditions {
    kafka: Condition,
    /// Without it only a restart helps.
    polling: Condition,
}

impl ConsumerConditions {
    /// To be asked for before anything starts, so that an endpoint can say what is missing.
    pub(crate) fn of(health: &Health) -> Self {
        Self { kafka: health.condition("kafka"), polling: health.live_condition("polling") }
    }
}

impl ConsumerMetrics {
    /// Registers all of them, for a consumer of `topic`, in a role's registry. Once in a registry: the same name twice
    /// would make the whole text invalid.
    pub(crate) fn register(registry: &mut Registry, topic: &str) -> Self {
        let partitions = Partitions { topic: topic.to_owned(), known: Mutex::default() };
        let metrics = Self {
            records_read: Counter::default(),
            rebalances: Family::default(),
            corrupt_partitions: Gauge::default(),
            skipped_corrupt_batches: Counter::default(),
            partitions: Arc::new(partitions),
        };
        // A series that appears with its first event hides that event from `increase()`.
        metrics.rebalances(&Snapshot::default(), &Snapshot::default());
        registry.register("records_read", "Records read from Kafka", metrics.records_read.clone());
        registry.register(
            "rebalances",
            "Rebalances of the consumer group that this member heard of, by what they did to it",
            metrics.rebalances.clone(),
        );
        registry.register(
            "corrupt_partitions",
            "Partitions of this member that are paused at a corrupt record batch",
            metrics.corrupt_partitions.clone(),
        );
        registry.register(
            "skipped_corrupt_batches",
            "Corrupt record batches that were skipped",
            metrics.skipped_corrupt_batches.clone(),
        );
        registry.register_collector(Box::new(metrics.partitions.clone()));
        metrics
    }

    /// Shows how the consumer is doing, until it does not poll any more; then with what to say about that.
    pub(crate) async fn follow(&self, watch: &Watch, conditions: &ConsumerConditions) -> anyhow::Error {
        tokio::select! {
            never = self.follow_for_ever(watch, &conditions.kafka) => match never {},
            () = watch.stalled(STALL_TIMEOUT) => {
                let seconds = STALL_TIMEOUT.as_secs();
                conditions.polling.not_ok(format!("Kafka was not polled for {seconds} s"));
                anyhow::anyhow!(
                    "Kafka was not polled for {seconds} s: the thread that does hangs. Leaving, so that a new start can go \
                     on from what is committed"
                )
            }
        }
    }

    async fn follow_for_ever(&self, watch: &Watch, kafka: &Condition) -> Infallible {
        let mut ticks = tokio::time::interval(WATCH_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut before = Snapshot::default();
        let mut logged: Option<Instant> = None;
        loop {
            ticks.tick().await;
            let now = watch.snapshot();
            self.show(&before, &now);
            if logged.is_none_or(|at| at.elapsed() >= LAG_LOG_INTERVAL)
                && let Some(lag_records) = self.lag_records()
            {
                let topic = &self.partitions.topic;
                tracing::info!(lag_records, topic, "{lag_records} records wait in Kafka topic {topic}");
                logged = Some(Instant::now());
            }
            match &now.trouble {
                None => kafka.ok(),
                Some(trouble) => kafka.not_ok(trouble),
            }
            before = now;
        }
    }

    /// Shows what is now, and adds what happened since `before`.
    pub(crate) fn show(&self, before: &Snapshot, now: &Snapshot) {
        self.records_read.inc_by(now.records - before.records);
        self.rebalances(before, now);
        self.corrupt_partitions.set(i64::try_from(now.corrupt_partitions).unwrap_or(i64::MAX));
        self.skipped_corrupt_batches.inc_by(now.skipped_batches - before.skipped_batches);
        self.partitions.known().clone_from(&now.partitions);
    }

    /// Of all partitions of this member together, as far as it is known.
    pub(crate) fn lag_records(&self) -> Option<u64> {
        self.partitions.known().values().filter_map(PartitionState::lag).reduce(u64::saturating_add)
    }

    fn rebalances(&self, before: &Snapshot, now: &Snapshot) {
        for (event, times) in [
            ("assigned", now.assigned - before.assigned),
            ("revoked", now.revoked - before.revoked),
            ("lost", now.lost - before.lost),
        ] {
            self.rebalances.get_or_create(&RebalanceLabel { event }).inc_by(times);
        }
    }
}

/// The partitions that this member has; those of others are not ours to show. A collector of its own, so that the gauges of
/// a partition come and go with it.
#[derive(Debug)]
struct Partitions {
    topic: String,
    known: Mutex<BTreeMap<i32, PartitionState>>,
}

impl Partitions {
    fn known(&self) -> MutexGuard<'_, BTreeMap<i32, PartitionState>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One gauge of all partitions that have a value for it; without any, the gauge is not shown.
    fn encode_gauge(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        (name, help): (&str, &str),
        value: impl Fn(&PartitionState) -> Option<i64>,
    ) -> fmt::Result {
        let known = self.known();
        let mut values = known.iter().filter_map(|(id, state)| Some((id, value(state)?))).peekable();
        if values.peek().is_none() {
            return Ok(());
        }
        let mut gauge = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (partition, value) in values {
            let labels = [("topic", self.topic.clone()), ("partition", partition.to_string())];
            ConstGauge::new(value).encode(gauge.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

impl Collector for Partitions {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let lag = (
            "partition_lag_records",
            "Records between the committed offset and the high watermark of a partition of this member.",
        );
        self.encode_gauge(&mut encoder, lag, |state| Some(i64::try_from(state.lag()?).unwrap_or(i64::MAX)))?;
        let committed = (
            "partition_committed_offset",
            "Committed offset of a partition of this member: the next to read.",
        );
        self.encode_gauge(&mut encoder, committed, |state| Some(state.committed))
    }
}
