//! `cdnwarm produce`: URLs into a Kafka topic, the sample's or a file's, and what became of each.
//!
//! `input` has the URLs, `outlet` hands them to librdkafka and hears what became of them.

mod input;
mod outlet;

use std::io::{self, IsTerminal, Write};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::builder::BoolishValueParser;
use indicatif::{ProgressBar, ProgressStyle};
use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, Producer};
use tokio_util::sync::CancellationToken;

use crate::kafka::KafkaArgs;
use crate::kafka::client::wait_for_topic;
use crate::kafka::env::KafkaEnv;
use crate::request::WarmRequest;
use crate::usage::UsageError;
pub(crate) use input::sample_urls;
use outlet::{Deliveries, Outlet, wait_and_hear};

/// What kafka-env may override: safe against duplicates by retries, in full batches, bounded in memory (librdkafka's own
/// bound is 1 GiB). Compression is the operator's choice: it costs the CPU of a third more records.
const DEFAULTS: [(&str, &str); 3] =
    [("enable.idempotence", "true"), ("linger.ms", "20"), ("queue.buffering.max.kbytes", "32768")];

/// How long a stop waits for records that were handed over.
const STOP_LIMIT: Duration = Duration::from_secs(7);
/// How often the end looks whether all are delivered: a program of a few milliseconds is not to take much longer.
const END_WAIT: Duration = Duration::from_millis(5);

/// Arguments of `cdnwarm produce`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    kafka: KafkaArgs,

    /// How many sample records to produce
    #[arg(value_name = "COUNT", default_value_t = 10, env = "CDNWARM_COUNT", conflicts_with = "urls")]
    count: u64,

    /// Produce the URLs of this file, one a line, instead of the sample; - reads standard input
    ///
    /// Blank lines and lines starting with # are skipped. A line that is no URL is reported and the others go on.
    #[arg(long, value_name = "FILE", env = "CDNWARM_URLS")]
    urls: Option<PathBuf>,

    /// Header of every record, such as warm-regions=europe-west1 (repeatable)
    #[arg(long = "header", value_name = "NAME=VALUE", env = "CDNWARM_HEADER")]
    headers: Vec<RecordHeader>,

    /// Records to produce a second [default: as fast as they go]
    #[arg(long, value_name = "N", env = "CDNWARM_RATE")]
    rate: Option<NonZeroU32>,

    /// Print a line for each record once it is delivered
    #[arg(long, short, env = "CDNWARM_VERBOSE", value_parser = BoolishValueParser::new())]
    verbose: bool,

    /// Neither bar nor summary: the demo has its own.
    #[arg(skip)]
    quiet: bool,
}

impl Args {
    /// The URLs of a file, to an embedded Kafka.
    pub(crate) fn for_demo(kafka_env: &Path, topic: &str, urls: &Path, rate: Option<NonZeroU32>) -> Self {
        Self {
            kafka: KafkaArgs::new(kafka_env, topic),
            count: 0,
            urls: Some(urls.to_owned()),
            headers: Vec::new(),
            rate,
            verbose: false,
            quiet: true,
        }
    }
}

/// One Kafka header of the records to produce.
#[derive(Debug, Clone)]
struct RecordHeader {
    name: String,
    value: String,
}

impl FromStr for RecordHeader {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('=') {
            Some((name, value)) if !name.is_empty() => {
                Ok(Self { name: name.to_owned(), value: value.to_owned() })
            }
            _ => Err("a header is written NAME=VALUE".to_owned()),
        }
    }
}

/// What was produced.
#[derive(Debug)]
struct Summary {
    delivered: u64,
    failed: u64,
    /// Why not everything was sent, if so.
    cut_short: Option<anyhow::Error>,
}

/// Produces, waits until each record is delivered or has failed, and prints a summary.
///
/// # Errors
/// A configuration that cannot be meant, no broker, no topic, or any record that was not delivered.
pub(crate) async fn run(args: Args, stop: CancellationToken) -> anyhow::Result<()> {
    let (config, source) = checked(&args).map_err(UsageError::new)?;
    let started = Instant::now();
    let (topic, quiet) = (args.kafka.topic.clone(), args.quiet);
    // librdkafka's producer blocks where its queue is full.
    let summary = tokio::task::spawn_blocking(move || produce(&args, &config, &source, &stop))
        .await
        .context("the producing thread panicked")??;
    let Summary { delivered, failed, cut_short } = summary;
    let seconds = started.elapsed().as_secs_f64();
    if !quiet {
        let summary = format!("{delivered} records delivered to {topic} in {seconds:.1} s, {failed} failed");
        // A closed pipe is the reader's choice and changes nothing for the records.
        let _ = writeln!(io::stdout(), "{summary}");
    }
    if let Some(error) = cut_short {
        return Err(error);
    }
    ensure!(failed == 0, "{failed} of {} records were not delivered", delivered + failed);
    Ok(())
}

/// Everything that can be wrong before the first socket opens.
fn checked(args: &Args) -> anyhow::Result<(ClientConfig, String)> {
    let env = KafkaEnv::read(&args.kafka.kafka_env)?;
    let mut config = env.producer()?;
    for (name, value) in DEFAULTS {
        if config.get(name).is_none() {
            config.set(name, value);
        }
    }
    // Options are checked with a URL that is surely fine, so that only they can be at fault.
    let options = args.headers.iter().map(|header| (header.name.as_str(), header.value.as_str()));
    if let Err(not_a_request) = WarmRequest::parse(b"https://example.com/", options) {
        bail!("--header: {}", not_a_request.reason());
    }
    if let Some(path) = args.urls.as_deref().filter(|path| *path != Path::new("-")) {
        path.metadata().with_context(|| format!("looking at --urls {}", path.display()))?;
    }
    Ok((config, env.path().display().to_string()))
}

fn produce(
    args: &Args,
    config: &ClientConfig,
    source: &str,
    stop: &CancellationToken,
) -> anyhow::Result<Summary> {
    let progress = progress(args);
    let deliveries = Deliveries::new(args.verbose, progress.clone(), args.urls.as_deref().map(input::name));
    let producer: BaseProducer<Deliveries> = config
        .create_with_context(deliveries)
        .with_context(|| format!("making a Kafka producer from {source}"))?;
    let deliveries = producer.context().clone();
    let topic = &args.kafka.topic;
    let hear_events = |time: Duration| producer.poll(time);
    wait_for_topic(
        producer.client(),
        hear_events,
        deliveries.events(),
        topic,
        source,
        args.kafka.timeout(),
        stop,
    )?;

    let headers = (!args.headers.is_empty()).then(|| {
        args.headers.iter().fold(OwnedHeaders::new(), |headers, RecordHeader { name, value }| {
            headers.insert(Header { key: name, value: Some(value) })
        })
    });
    let mut outlet = Outlet::new(&producer, topic, headers, args.rate, stop);
    let sent = match &args.urls {
        None => input::sample(args.count, &mut outlet),
        Some(path) => input::lines(path, &mut outlet),
    };
    // A record's own time limit (delivery.timeout.ms) ends the wait where the broker is away; a stop ends it sooner.
    let mut deadline = None;
    while producer.in_flight_count() > 0 && deadline.is_none_or(|deadline| Instant::now() < deadline) {
        wait_and_hear(&producer, END_WAIT);
        if stop.is_cancelled() {
            deadline.get_or_insert_with(|| Instant::now() + STOP_LIMIT);
        }
    }
    progress.finish_and_clear();
    let unknown = u64::try_from(producer.in_flight_count()).unwrap_or_default();
    if unknown > 0 {
        eprintln!(
            "stopped: whether the last {unknown} records were delivered is not known; they count as failed"
        );
    }
    let (delivered, failed) = deliveries.close();
    Ok(Summary { delivered, failed: failed + unknown, cut_short: sent.err() })
}

/// A bar on a terminal, nothing in a pipe.
fn progress(args: &Args) -> ProgressBar {
    if args.quiet || !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    match args.urls {
        None => {
            ProgressBar::new(args.count).with_style(style("{bar:40} {pos}/{len} records {per_sec} {eta}"))
        }
        Some(_) => ProgressBar::no_length().with_style(style("{spinner} {pos} records {per_sec}")),
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
