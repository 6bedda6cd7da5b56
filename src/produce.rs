//! `cdnwarm produce`: URLs into a Kafka topic, the sample's or a file's, and what became of each.

use clap::builder::BoolishValueParser;
use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal, Read, Write};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};
use tokio_util::sync::CancellationToken;

use crate::kafka::KafkaArgs;
use crate::kafka::client::{ClientEvents, wait_for_topic};
use crate::kafka::env::KafkaEnv;
use crate::request::{MAX_URL_BYTES, WarmRequest};
use crate::usage::UsageError;

/// The sample: any of these keys with any of these files.
const SAMPLE_KEYS: [&str; 6] = ["0001", "0002", "0003", "0014", "0050", "0024"];
const SAMPLE_FILES: [&str; 5] = [
    "houseofdragonsS01E01-001.ts",
    "stateoftheunion20231004.mp4",
    "mlb-bluejays-v-redsox-GAME1011.mpeg",
    "jeffcorwinexpS12E01-050.mp4",
    "tonysoprano-intro-012.ts",
];
const SAMPLE_PREFIX: &str = "http://postman-echo.com/get?file=";

/// What kafka-env may override: safe against duplicates by retries, small on the wire.
const DEFAULTS: [(&str, &str); 3] =
    [("enable.idempotence", "true"), ("compression.type", "zstd"), ("linger.ms", "20")];

/// How often a wait looks at deliveries and at whether it is to stop.
const POLL: Duration = Duration::from_millis(50);
/// How long a stop waits for records that were handed over.
const STOP_LIMIT: Duration = Duration::from_secs(7);
/// Lines read ahead.
const LINES_WAITING: usize = 1_024;
/// What is kept of a line: more than any URL has, so that a longer one is seen to be too long.
const MAX_LINE_BYTES: u64 = MAX_URL_BYTES as u64 + 1024;
const STOPPED: &str = "stopped before everything was produced";

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
    let topic = args.kafka.topic.clone();
    // librdkafka's producer blocks where its queue is full.
    let summary = tokio::task::spawn_blocking(move || produce(&args, &config, &source, &stop))
        .await
        .context("the producing thread panicked")??;
    let Summary { delivered, failed, cut_short } = summary;
    let seconds = started.elapsed().as_secs_f64();
    // A closed pipe is the reader's choice and changes nothing for the records.
    let _ =
        writeln!(io::stdout(), "{delivered} records delivered to {topic} in {seconds:.1} s, {failed} failed");
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
    let deliveries = Deliveries {
        closing: AtomicBool::new(false),
        verbose: args.verbose,
        delivered: AtomicU64::new(0),
        failed: AtomicU64::new(0),
        progress: progress.clone(),
        events: ClientEvents::default(),
    };
    let producer: BaseProducer<Deliveries> = config
        .create_with_context(deliveries)
        .with_context(|| format!("making a Kafka producer from {source}"))?;
    let deliveries = producer.context().clone();
    let topic = &args.kafka.topic;
    let hear_events = |time: Duration| producer.poll(time);
    wait_for_topic(
        producer.client(),
        hear_events,
        &deliveries.events,
        topic,
        source,
        args.kafka.timeout(),
        stop,
    )?;

    let headers = args.headers.iter().fold(OwnedHeaders::new(), |headers, RecordHeader { name, value }| {
        headers.insert(Header { key: name, value: Some(value) })
    });
    let mut outlet = Outlet {
        producer: &producer,
        topic,
        headers,
        deliveries: &deliveries,
        pace: args.rate.map(Pace::new),
        stop,
    };
    let sent = match &args.urls {
        None => sample(args.count, &mut outlet),
        Some(path) => lines(path, &mut outlet),
    };
    // A record's own time limit (delivery.timeout.ms) ends the wait where the broker is away; a stop ends it sooner.
    let mut deadline = None;
    while producer.in_flight_count() > 0 && deadline.is_none_or(|deadline| Instant::now() < deadline) {
        producer.poll(POLL);
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
    // What is dropped with the producer is reported as failed, record by record; it is counted already.
    deliveries.closing.store(true, Ordering::Relaxed);
    Ok(Summary {
        delivered: deliveries.delivered.load(Ordering::Relaxed),
        failed: deliveries.failed.load(Ordering::Relaxed) + unknown,
        cut_short: sent.err(),
    })
}

/// Where records go out.
struct Outlet<'a> {
    producer: &'a BaseProducer<Deliveries>,
    topic: &'a str,
    headers: OwnedHeaders,
    deliveries: &'a Deliveries,
    pace: Option<Pace>,
    stop: &'a CancellationToken,
}

impl Outlet<'_> {
    /// Hands one record over, waiting while the producer's queue is full.
    ///
    /// # Errors
    /// A record that librdkafka does not take, and a stop.
    fn send(&mut self, key: Option<&str>, value: &str) -> anyhow::Result<()> {
        if let Some(pace) = &mut self.pace {
            while let Some(wait) = pace.wait() {
                ensure!(!self.stop.is_cancelled(), STOPPED);
                self.producer.poll(wait.min(POLL));
            }
        }
        let mut record = BaseRecord::<str, str>::to(self.topic).payload(value).headers(self.headers.clone());
        if let Some(key) = key {
            record = record.key(key);
        }
        while let Err((error, unsent)) = self.producer.send(record) {
            if error.rdkafka_error_code() != Some(RDKafkaErrorCode::QueueFull) {
                return Err(error).context("handing a record to the producer");
            }
            ensure!(!self.stop.is_cancelled(), STOPPED);
            self.producer.poll(POLL);
            record = unsent;
        }
        self.producer.poll(Duration::ZERO);
        ensure!(!self.stop.is_cancelled(), STOPPED);
        Ok(())
    }
}

/// When the next record is due.
struct Pace {
    started: Instant,
    sent: u64,
    per_second: f64,
}

impl Pace {
    fn new(per_second: NonZeroU32) -> Self {
        Self { started: Instant::now(), sent: 0, per_second: per_second.get().into() }
    }

    /// How long until the next record, or none where it is due; then it counts as sent.
    fn wait(&mut self) -> Option<Duration> {
        let due = self.started + Duration::from_secs_f64(self.sent as f64 / self.per_second);
        let wait = due.checked_duration_since(Instant::now()).filter(|wait| !wait.is_zero());
        if wait.is_none() {
            self.sent += 1;
        }
        wait
    }
}

/// `count` records of random keys and files.
fn sample(count: u64, outlet: &mut Outlet<'_>) -> anyhow::Result<()> {
    let mut random = Choices(jiff::Timestamp::now().as_nanosecond() as u64);
    for _ in 0..count {
        let url = format!("{SAMPLE_PREFIX}{}", random.one_of(&SAMPLE_FILES));
        outlet.send(Some(random.one_of(&SAMPLE_KEYS)), &url)?;
    }
    Ok(())
}

/// The sample's URLs, for `demo`.
pub(crate) fn sample_urls() -> impl Iterator<Item = String> {
    SAMPLE_FILES.iter().map(|file| format!("{SAMPLE_PREFIX}{file}"))
}

/// The URLs of the input, one a line. A line that is no URL counts as failed and is named; the others go on.
///
/// The input is read on a thread of its own: a quiet pipe must not keep deliveries from being heard, nor a stop.
fn lines(path: &Path, outlet: &mut Outlet<'_>) -> anyhow::Result<()> {
    let (sender, lines) = sync_channel(LINES_WAITING);
    let (name, input) = match path.to_str() {
        Some("-") => ("standard input".to_owned(), None),
        _ => (path.display().to_string(), Some(path.to_owned())),
    };
    std::thread::Builder::new()
        .name("input".to_owned())
        .spawn(move || read_lines(input.as_deref(), &sender))
        .context("starting the thread that reads the input")?;
    for number in 1.. {
        let line = loop {
            match lines.recv_timeout(POLL) {
                Ok(line) => break line.with_context(|| format!("reading {name}"))?,
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
                Err(RecvTimeoutError::Timeout) if outlet.stop.is_cancelled() => bail!(STOPPED),
                Err(RecvTimeoutError::Timeout) => outlet.producer.poll(Duration::ZERO),
            }
        };
        let text = line.trim_ascii();
        if text.is_empty() || text.starts_with(b"#") {
            continue;
        }
        match (WarmRequest::parse(text, []), std::str::from_utf8(text)) {
            (Ok(_), Ok(url)) => outlet.send(None, url)?,
            (Err(not_a_request), _) => outlet.deliveries.bad_line(&name, number, &not_a_request.reason()),
            (Ok(_), Err(_)) => outlet.deliveries.bad_line(&name, number, "not UTF-8"),
        }
    }
    Ok(())
}

/// Sends each line of the file, or of standard input. Of a line longer than any URL only the start is kept.
fn read_lines(path: Option<&Path>, lines: &SyncSender<io::Result<Vec<u8>>>) {
    let input: io::Result<Box<dyn BufRead>> = match path {
        None => Ok(Box::new(BufReader::new(io::stdin()))),
        Some(path) => File::open(path).map(|file| Box::new(BufReader::new(file)) as Box<dyn BufRead>),
    };
    let mut input = match input {
        Ok(input) => input,
        // Nobody listens any more only once the program has stopped; so below.
        Err(error) => return drop(lines.send(Err(error))),
    };
    loop {
        let mut line = Vec::new();
        let read = input.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut line);
        let read = match read {
            Ok(_) if line.len() as u64 == MAX_LINE_BYTES && !line.ends_with(b"\n") => {
                input.skip_until(b'\n').map(|_| 1)
            }
            read => read,
        };
        match read {
            Ok(0) => return,
            Ok(_) if lines.send(Ok(line)).is_err() => return,
            Ok(_) => {}
            Err(error) => return drop(lines.send(Err(error))),
        }
    }
}

/// Hears what became of each record.
struct Deliveries {
    closing: AtomicBool,
    verbose: bool,
    delivered: AtomicU64,
    failed: AtomicU64,
    progress: ProgressBar,
    events: ClientEvents,
}

impl Deliveries {
    fn bad_line(&self, name: &str, number: u64, reason: &str) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        self.progress.suspend(|| eprintln!("{name}:{number}: {reason}"));
    }
}

impl ClientContext for Deliveries {
    fn error(&self, error: KafkaError, reason: &str) {
        self.events.error(error, reason);
    }

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.events.log(level, facility, message);
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if self.closing.load(Ordering::Relaxed) {
            return;
        }
        self.progress.inc(1);
        match result {
            Ok(message) => {
                self.delivered.fetch_add(1, Ordering::Relaxed);
                if self.verbose {
                    let text = |bytes: Option<&[u8]>| {
                        String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned()
                    };
                    let (topic, key, value) = (message.topic(), text(message.key()), text(message.payload()));
                    self.progress.suspend(|| {
                        let _ =
                            writeln!(io::stdout(), "Message to topic {topic}: key = {key} value = {value}");
                    });
                }
            }
            Err((error, _)) => {
                self.failed.fetch_add(1, Ordering::Relaxed);
                self.progress.suspend(|| eprintln!("ERROR: Message failed delivery: {error}"));
            }
        }
    }
}

/// A bar on a terminal, nothing in a pipe.
fn progress(args: &Args) -> ProgressBar {
    if !io::stderr().is_terminal() {
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

/// Random enough to pick samples (splitmix64).
struct Choices(u64);

impl Choices {
    fn one_of<'a>(&mut self, choices: &[&'a str]) -> &'a str {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^= mixed >> 31;
        choices[(mixed % choices.len() as u64) as usize]
    }
}
