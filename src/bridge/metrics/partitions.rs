//! Lag and committed offset of each partition that this member has, as gauges that go with the partition.
//!
//! A collector of its own, so that both values of a partition come and go together and the status line can add them up.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;

/// The partitions that this member has; those of others are not ours to show.
#[derive(Debug)]
pub(super) struct Partitions {
    topic: String,
    known: Mutex<BTreeMap<i32, Progress>>,
}

/// How far a partition is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Progress {
    pub(super) committed: i64,
    /// None until the high watermark is known.
    pub(super) lag_records: Option<u64>,
}

impl Partitions {
    /// None yet, of this topic.
    pub(super) fn of(topic: &str) -> Self {
        Self { topic: topic.to_owned(), known: Mutex::default() }
    }

    pub(super) fn set(&self, partition: i32, progress: Progress) {
        self.known().insert(partition, progress);
    }

    pub(super) fn remove(&self, partition: i32) {
        self.known().remove(&partition);
    }

    /// Of all partitions together, as far as it is known.
    pub(super) fn lag_records(&self) -> Option<u64> {
        self.known().values().filter_map(|progress| progress.lag_records).reduce(u64::saturating_add)
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<i32, Progress>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One gauge of all partitions that have a value for it; without any, the gauge is not shown.
    fn encode_gauge(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        (name, help): (&str, &str),
        value: impl Fn(&Progress) -> Option<i64>,
    ) -> fmt::Result {
        let known = self.known();
        let mut values = known.iter().filter_map(|(id, progress)| Some((id, value(progress)?))).peekable();
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
        self.encode_gauge(&mut encoder, lag, |progress| progress.lag_records.map(super::gauge))?;
        let committed = (
            "partition_committed_offset",
            "Committed offset of a partition of this member: the next to read.",
        );
        self.encode_gauge(&mut encoder, committed, |progress| Some(progress.committed))
    }
}
