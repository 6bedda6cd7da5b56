//! `cdnwarm consume-direct`: Kafka straight to GET, without Pub/Sub, for one region and an operator's eyes.
//!
//! Same verdicts as `serve`. Its consumer group is its own, so that it never takes a partition from `bridge`.

use clap::builder::BoolishValueParser;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio_util::sync::CancellationToken;

use crate::kafka::consumer::{Consumer, ConsumerConfig};
use crate::kafka::env::KafkaEnv;
use crate::kafka::{KafkaArgs, Record};
use crate::outcome::{Outcome, Source};
use crate::request::WarmRequest;
use crate::telemetry::logs::log_outcome;
use crate::usage::UsageError;
use crate::warm::{WarmArgs, Warmer};

/// How long a stop may take in all; GETs not over by then are made again by the next start.
const STOP_LIMIT: Duration = Duration::from_millis(9_500);

/// Arguments of `cdnwarm consume-direct`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    kafka: KafkaArgs,

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
    warm: WarmArgs,
}

impl Args {
    fn consumer(&self) -> anyhow::Result<ConsumerConfig> {
        let env = KafkaEnv::read(&self.kafka.kafka_env)?;
        let mut client = env.consumer()?;
        let group = match &self.group {
            Some(group) => group.clone(),
            None => format!("{}-direct", client.get("group.id").unwrap_or_default()),
        };
        client.set("group.id", group);
        Ok(ConsumerConfig {
            client,
            topic: self.kafka.topic.clone(),
            reset: self.reset,
            timeout: self.kafka.timeout(),
            source: env.path().display().to_string(),
        })
    }
}

/// Warms what the topic brings until `stop`, then finishes the GETs under way, commits and leaves within 10 s.
///
/// # Errors
/// A configuration that cannot be meant, and whatever ends the consumer.
pub(crate) async fn run(args: Args, stop: CancellationToken) -> anyhow::Result<()> {
    let config = args.consumer().map_err(UsageError::new)?;
    let warmer = Warmer::new(args.warm)?;
    let (topic, group) = (config.topic.clone(), config.client.get("group.id").unwrap_or_default().to_owned());
    tracing::info!(topic, group, "consume-direct started as group {group}");
    let mut consumer = Consumer::start(config, stop.clone())?;
    let work = async {
        warm_all(&mut consumer, &warmer, &topic, args.concurrency.into()).await;
        consumer.ended().await
    };
    let late = async {
        stop.cancelled().await;
        tokio::time::sleep(STOP_LIMIT).await;
    };
    tokio::select! {
        ended = work => match ended {
            Err(error) if stop.is_cancelled() => {
                tracing::warn!("while stopping: {error:#}");
                Ok(())
            }
            ended => ended,
        },
        () = late => {
            tracing::warn!("stopped with GETs under way: they will be made again");
            Ok(())
        }
    }
}

/// Warms records, `concurrency` at a time, and gives each back once its verdict stands.
async fn warm_all(consumer: &mut Consumer, warmer: &Warmer, topic: &str, concurrency: usize) {
    let done = consumer.acknowledger();
    let mut under_way = FuturesUnordered::new();
    let mut waiting = VecDeque::new();
    let mut open = true;
    loop {
        while under_way.len() < concurrency
            && let Some(record) = waiting.pop_front()
        {
            under_way.push(async {
                let Record { receipt, .. } = record;
                log_outcome(&warm(warmer, topic, record).await);
                receipt
            });
        }
        tokio::select! {
            Some(receipt) = under_way.next() => done.done([receipt]),
            chunk = consumer.next(), if open && waiting.is_empty() => match chunk {
                Some(chunk) => waiting.extend(chunk),
                None => open = false,
            },
            else => return,
        }
    }
}

async fn warm(warmer: &Warmer, topic: &str, record: Record) -> Outcome {
    let id = format!("{topic}/{}/{}", record.receipt.partition, record.receipt.offset);
    let source = Source { kafka_timestamp: record.timestamp_ms, ..Source::default() };
    // As bridge and serve do: of a repeated header the last counts, null is empty, foreign binary ones are no option.
    let mut options = BTreeMap::new();
    for header in &record.headers {
        match std::str::from_utf8(header.value.as_deref().unwrap_or_default()) {
            Ok(value) => drop(options.insert(header.name.as_str(), value)),
            Err(_) if header.name.starts_with("warm-") => {
                return warmer.refused(format!("option {}: not UTF-8", header.name), id, source).await;
            }
            Err(_) => {}
        }
    }
    match WarmRequest::parse(record.value.as_deref().unwrap_or_default(), options) {
        Ok(request) => warmer.warm(&request, id, source).await,
        Err(not_a_request) => warmer.refused(not_a_request.reason(), id, source).await,
    }
}
