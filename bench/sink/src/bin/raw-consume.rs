//! The ceiling of consuming: librdkafka reads a topic from its start and every record is dropped at once.

use std::ffi::c_void;
use std::ptr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use clap::{Parser, ValueEnum};
use rdkafka::bindings as sys;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{Offset, TopicPartitionList};

/// Reads a topic once, from its start and without a group, and prints as JSON how fast that went.
#[derive(Debug, Parser)]
struct Args {
    /// Broker, HOST:PORT.
    broker: String,
    /// Topic.
    topic: String,
    /// Records to read.
    records: u64,
    /// How records are taken from librdkafka.
    #[arg(long, value_enum, default_value_t = Way::Poll)]
    way: Way,
    /// A librdkafka property NAME=VALUE; may be given again.
    #[arg(short = 'X', value_name = "NAME=VALUE")]
    property: Vec<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Way {
    /// `BaseConsumer::poll` of rdkafka.
    Poll,
    /// `rd_kafka_consumer_poll`, one record a call.
    CPoll,
    /// `rd_kafka_consume_batch_queue`, up to 10,000 records a call.
    CBatch,
    /// `rd_kafka_consume_callback_queue`: all that is queued at once, one call back a record.
    CCallback,
}

/// No record for so long is a failure.
const PATIENCE: Duration = Duration::from_secs(30);

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let started = Instant::now();
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", &args.broker).set("group.id", "raw-consume");
    config.set("enable.auto.commit", "false");
    for property in &args.property {
        let (name, value) =
            property.split_once('=').with_context(|| format!("{property}: NAME=VALUE is wanted"))?;
        config.set(name, value);
    }
    let consumer: BaseConsumer = config.create()?;
    let metadata = consumer.fetch_metadata(Some(&args.topic), Duration::from_secs(10))?;
    let mut assignment = TopicPartitionList::new();
    for partition in metadata.topics().iter().flat_map(|topic| topic.partitions()) {
        assignment.add_partition_offset(&args.topic, partition.id(), Offset::Beginning)?;
    }
    ensure!(assignment.count() > 0, "{} has no partitions", args.topic);
    consumer.assign(&assignment)?;

    let mut meter = Meter::new(args.records);
    match args.way {
        Way::Poll => poll(&consumer, &mut meter)?,
        Way::CPoll => c_poll(&consumer, &mut meter)?,
        Way::CBatch => c_batch(&consumer, &mut meter)?,
        Way::CCallback => c_callback(&consumer, &mut meter)?,
    }
    println!("{}", meter.report(started)?);
    Ok(())
}

fn poll(consumer: &BaseConsumer, meter: &mut Meter) -> anyhow::Result<()> {
    while !meter.is_done() {
        let Some(record) = consumer.poll(PATIENCE) else { bail!("no record for {PATIENCE:?}") };
        meter.add(1, record?.payload_len());
    }
    Ok(())
}

#[expect(unsafe_code, reason = "measures librdkafka below the crate that makes it safe")]
fn c_poll(consumer: &BaseConsumer, meter: &mut Meter) -> anyhow::Result<()> {
    let client = consumer.client().native_ptr();
    while !meter.is_done() {
        // SAFETY: the client outlives the call; a message that is not null is ours until it is destroyed, once.
        let (error, length) = unsafe {
            let record = sys::rd_kafka_consumer_poll(client, timeout_ms());
            ensure!(!record.is_null(), "no record for {PATIENCE:?}");
            let taken = ((*record).err as i32, (*record).len);
            sys::rd_kafka_message_destroy(record);
            taken
        };
        ensure!(error == 0, "librdkafka's error {error}");
        meter.add(1, length);
    }
    Ok(())
}

#[expect(unsafe_code, reason = "measures librdkafka below the crate that makes it safe")]
fn c_batch(consumer: &BaseConsumer, meter: &mut Meter) -> anyhow::Result<()> {
    let mut records = vec![ptr::null_mut(); 10_000];
    // SAFETY: the client outlives the queue, which is let go below.
    let queue = unsafe { sys::rd_kafka_queue_get_consumer(consumer.client().native_ptr()) };
    while !meter.is_done() {
        // SAFETY: there is room for as many pointers as are announced, and what comes back is how many were written.
        let taken = unsafe {
            sys::rd_kafka_consume_batch_queue(queue, timeout_ms(), records.as_mut_ptr(), records.len())
        };
        let taken = usize::try_from(taken).unwrap_or_default();
        ensure!(taken > 0, "no record for {PATIENCE:?}");
        for record in &records[..taken] {
            // SAFETY: the first `taken` pointers are messages of ours until they are destroyed, once.
            let (error, length) = unsafe {
                let taken = ((**record).err as i32, (**record).len);
                sys::rd_kafka_message_destroy(*record);
                taken
            };
            ensure!(error == 0, "librdkafka's error {error}");
            meter.add(1, length);
        }
    }
    // SAFETY: the queue is ours and nobody uses it any more.
    unsafe { sys::rd_kafka_queue_destroy(queue) };
    Ok(())
}

#[expect(unsafe_code, reason = "measures librdkafka below the crate that makes it safe")]
fn c_callback(consumer: &BaseConsumer, meter: &mut Meter) -> anyhow::Result<()> {
    // SAFETY: librdkafka hands in a valid message, which stays its own, and the meter that is lent below.
    unsafe extern "C" fn add(record: *mut sys::rd_kafka_message_t, meter: *mut c_void) {
        unsafe {
            if (*record).err as i32 == 0 {
                (*meter.cast::<Meter>()).add(1, (*record).len);
            }
        }
    }
    // SAFETY: the client outlives the queue, which is let go below.
    let queue = unsafe { sys::rd_kafka_queue_get_consumer(consumer.client().native_ptr()) };
    while !meter.is_done() {
        let lent = ptr::from_mut(meter).cast();
        // SAFETY: the callback is done with the meter when the call returns.
        let served = unsafe { sys::rd_kafka_consume_callback_queue(queue, timeout_ms(), Some(add), lent) };
        ensure!(served > 0, "no record for {PATIENCE:?}");
    }
    // SAFETY: the queue is ours and nobody uses it any more.
    unsafe { sys::rd_kafka_queue_destroy(queue) };
    Ok(())
}

fn timeout_ms() -> i32 {
    i32::try_from(PATIENCE.as_millis()).expect("half a minute")
}

/// Notes when the first record and each percent of the records came.
struct Meter {
    wanted: u64,
    records: u64,
    bytes: usize,
    next_mark: u64,
    first: Option<(Instant, f64)>,
    /// The time at 10 % and at 90 %, between which the rate is steady.
    marks: Vec<Instant>,
}

impl Meter {
    fn new(wanted: u64) -> Self {
        let next_mark = wanted / 10;
        Self { wanted, records: 0, bytes: 0, next_mark, first: None, marks: Vec::with_capacity(2) }
    }

    fn is_done(&self) -> bool {
        self.records >= self.wanted
    }

    #[inline]
    fn add(&mut self, records: u64, bytes: usize) {
        self.records += records;
        self.bytes += bytes;
        if self.first.is_none() {
            self.first = Some((Instant::now(), cpu_seconds().unwrap_or_default()));
        }
        if self.records == self.next_mark {
            self.marks.push(Instant::now());
            self.next_mark = if self.marks.len() == 1 { self.wanted - self.wanted / 10 } else { u64::MAX };
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52 records")]
    fn report(&self, started: Instant) -> anyhow::Result<serde_json::Value> {
        let (first, cpu_at_first) = self.first.context("at least one record was asked for")?;
        let [tenth, nine_tenths] = self.marks[..] else { bail!("ten records at least are wanted") };
        let between = self.wanted - 2 * (self.wanted / 10);
        let millions = self.records as f64 / 1e6;
        Ok(serde_json::json!({
            "records": self.records,
            "bytes": self.bytes,
            "steady_per_s": between as f64 / nine_tenths.duration_since(tenth).as_secs_f64(),
            "from_start_per_s": self.records as f64 / started.elapsed().as_secs_f64(),
            "cpu_s_per_million": (cpu_seconds()? - cpu_at_first) / millions,
            "first_message_s": first.duration_since(started).as_secs_f64(),
            "rss_peak_mib": peak_rss_mib()?,
        }))
    }
}

fn cpu_seconds() -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // The name in brackets may hold anything; behind it utime and stime are the 12th and 13th, in 1/100 s.
    let (_, fields) = stat.rsplit_once(')').context("/proc/self/stat has a name in brackets")?;
    let ticks: u32 = fields.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse().unwrap_or(0)).sum();
    Ok(f64::from(ticks) / 100.0)
}

fn peak_rss_mib() -> anyhow::Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line =
        status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("VmHWM is always there")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024.0)
}
