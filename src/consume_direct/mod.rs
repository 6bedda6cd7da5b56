//! `cdnwarm consume-direct`: Kafka straight to GET, without Pub/Sub, for one region and an operator's eyes.
//!
//! Same verdicts as `serve`. Its consumer group is its own, so that it never takes a partition from `bridge`.

mod metrics;

use clap::builder::BoolishValueParser;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio_util::sync::CancellationToken;

use crate::http::MetricsArgs;
use crate::kafka::consumer::{BatchLimits, CommitHandle, Consumer, ConsumerConfig};
use crate::kafka::metrics::ConsumerConditions;
use crate::kafka::{ConsumerArgs, Receipt, Record, RecordBatch, RecordRef, SkippedRange};
use crate::outcome::{Outcome, Source, shown_url};
use crate::request::WarmRequest;
use crate::telemetry::health::Health;
use crate::telemetry::instance::{Identity, InstanceArgs};
use crate::telemetry::metrics::registry;
use crate::telemetry::outcomes::{OutcomeLog, OutcomeLogArgs};
use crate::telemetry::status::StatusLine;
use crate::telemetry::trace::{self, Trace};
use crate::usage::UsageError;
use crate::verdict::Verdict;
use crate::warm::{Attempt, WarmArgs, Warmer};
use metrics::DirectMetrics;

/// How long a stop may take in all; GETs not over by then are made again by the next start.
const STOP_LIMIT: Duration = Duration::from_millis(9_500);

/// Arguments of `cdnwarm consume-direct`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    consumer: ConsumerArgs,

    /// Accepted for scripts that still give it, and ignored
    #[arg(value_name = "PROJECT_ID", env = "CDNWARM_PROJECT_ID")]
    project_id: Option<String>,

    /// Start at the beginning of every partition, whatever is committed
    #[arg(long, env = "CDNWARM_RESET", value_parser = BoolishValueParser::new())]
    reset: bool,

    /// Consumer group [default: the group.id of KAFKA_ENV with -direct behind it]
    #[arg(long, value_name = "GROUP", env = "CDNWARM_GROUP")]
    group: Option<String>,

    /// GETs under way at once
    #[arg(long, value_name = "COUNT", default_value_t = 64, env = "CDNWARM_CONCURRENCY",
          value_parser = clap::value_parser!(u16).range(1..))]
    concurrency: u16,

    #[command(flatten)]
    metrics: MetricsArgs,

    #[command(flatten)]
    log: OutcomeLogArgs,

    #[command(flatten)]
    instance: InstanceArgs,

    #[command(flatten)]
    warm: WarmArgs,
}

impl Args {
    fn config(&self) -> anyhow::Result<ConsumerConfig> {
        let mut config = self.consumer.config(BATCHES)?;
        let group = match &self.group {
            Some(group) => group.clone(),
            None => format!("{}-direct", config.client.get("group.id").unwrap_or_default()),
        };
        config.client.set("group.id", group);
        config.reset = self.reset;
        Ok(config)
    }
}

/// A few records are handed over as soon as there is room; what a batch may grow to while there is none.
const BATCHES: BatchLimits =
    BatchLimits { records: 256, bytes: 4 << 20, linger: Duration::ZERO, own_receipts: true };

/// Warms what the topic brings until `stop`, then finishes the GETs under way, commits and leaves within 10 s.
///
/// # Errors
/// A configuration that cannot be meant, and whatever ends the consumer.
pub(crate) async fn run(args: Args, stop: CancellationToken) -> anyhow::Result<()> {
    let config = args.config().map_err(UsageError::new)?;
    let health = Health::default();
    let mut registry = registry(&health);
    let metrics = DirectMetrics::register(&mut registry, &config.topic);
    // Named from the start, so that the endpoint says what is missing.
    let conditions = ConsumerConditions::of(&health);
    let _shown_until_the_end = args.metrics.show(registry, health.clone()).await?;
    let log = OutcomeLog { which: args.log.log_outcomes, method: args.warm.method.as_str() };
    let warmer = (Warmer::new(args.warm)?, Identity::discover(args.instance));
    let (topic, group) = (config.topic.clone(), config.client.get("group.id").unwrap_or_default().to_owned());
    tracing::info!(topic, group, "consume-direct started as group {group}");
    let mut consumer = Consumer::start(config, stop.clone())?;
    let watch = consumer.watch();
    let _status = {
        let metrics = metrics.clone();
        StatusLine::start(move || metrics.status(&health))
    };
    let work = async {
        warm_all(&mut consumer, &warmer, (&metrics, log), &topic, args.concurrency.into()).await;
        consumer.ended().await
    };
    let late = async {
        stop.cancelled().await;
        tokio::time::sleep(STOP_LIMIT).await;
    };
    let ended = tokio::select! {
        ended = work => ended,
        () = late => {
            tracing::warn!("stopped with GETs under way: they will be made again");
            Ok(())
        }
        stalled = metrics.consumer().follow(&watch, &conditions) => Err(stalled),
    };
    let verdicts: Vec<String> =
        metrics.verdicts().map(|(verdict, count)| format!("{count} {verdict}")).collect();
    let verdicts = if verdicts.is_empty() { "no record".to_owned() } else { verdicts.join(", ") };
    tracing::info!(verdicts, "consume-direct stopped: {verdicts}");
    match ended {
        // A stop during start-up is a stop, not a failure.
        Err(error) if stop.is_cancelled() => {
            tracing::warn!("while stopping: {error:#}");
            Ok(())
        }
        ended => ended,
    }
}

/// Warms records, `concurrency` at a time, and gives each back once its verdict stands.
async fn warm_all(
    consumer: &mut Consumer,
    warmer: &(Warmer, Identity),
    (metrics, log): (&DirectMetrics, OutcomeLog),
    topic: &str,
    concurrency: usize,
) {
    let commit = consumer.commit_handle();
    let mut under_way = FuturesUnordered::new();
    let mut waiting = VecDeque::new();
    let mut open = true;
    loop {
        while under_way.len() < concurrency
            && let Some((receipt, record)) = waiting.pop_front()
        {
            under_way.push(async move {
                let outcome = warm(warmer, topic, &record).await;
                metrics.outcome(&outcome);
                log.log(&outcome, trace(&record).as_ref());
                receipt
            });
        }
        metrics.in_flight(commit.uncommittable(), under_way.len());
        tokio::select! {
            Some(receipt) = under_way.next() => commit.accepted(&[receipt]),
            batch = consumer.next(), if open && waiting.is_empty() => match batch {
                Some(batch) => waiting.extend(records(&batch, &commit)),
                None => open = false,
            },
            else => return,
        }
    }
}

/// Copies of a batch's records with their receipts. Ranges that were skipped, which the consumer has logged, count as accepted at once.
fn records(batch: &RecordBatch, commit: &CommitHandle) -> Vec<(Receipt, Record)> {
    for SkippedRange { partition, assignment, first, last, .. } in batch.skipped() {
        let (partition, assignment, first, last) = (*partition, *assignment, *first, *last);
        commit.accepted(&[Receipt { partition, assignment, first, last, records: 1 }]);
    }
    let receipt = |record: &RecordRef<'_>| Receipt::one(record.partition, record.assignment, record.offset);
    batch.iter().map(|record| (receipt(&record), record.to_record())).collect()
}

/// The trace that the record's headers name.
fn trace(record: &Record) -> Option<Trace<'_>> {
    let header = record.headers.iter().rev().find(|header| header.name == trace::TRACEPARENT)?;
    Trace::parse(std::str::from_utf8(header.value.as_deref()?).ok()?, None)
}

/// Warms what a record asks for, at this instance.
async fn warm((warmer, identity): &(Warmer, Identity), topic: &str, record: &Record) -> Box<Outcome> {
    let instance = identity.get().await;
    let (attempt, url) = match request(record) {
        Ok(request) => {
            let attempt = warmer.warm(&request, &instance.region, warmer.deadline()).await;
            (attempt, shown_url(request.url()))
        }
        Err(reason) => (Attempt::without_request(Verdict::Refused(reason)), String::new()),
    };
    let id = format!("{topic}/{}/{}", record.partition, record.offset);
    let source = Source { kafka_timestamp: record.timestamp_ms, ..Source::default() };
    attempt.into_outcome(instance, url, id, source)
}

/// Reads the request in a record.
///
/// # Errors
/// The reason of the refusal.
fn request(record: &Record) -> Result<WarmRequest, String> {
    // As bridge and serve do: of a repeated header the last counts, null is empty, foreign binary ones are no option.
    let mut options = BTreeMap::new();
    for header in &record.headers {
        match std::str::from_utf8(header.value.as_deref().unwrap_or_default()) {
            Ok(value) => drop(options.insert(header.name.as_str(), value)),
            Err(_) if header.name.starts_with("warm-") => {
                return Err(format!("option {}: not UTF-8", header.name));
            }
            Err(_) => {}
        }
    }
    let value = record.value.as_deref().unwrap_or_default();
    WarmRequest::parse(value, options).map_err(|not_a_request| not_a_request.reason())
}
