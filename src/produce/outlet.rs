//! The way out: records to librdkafka's producer, at their pace, and what became of each.

use std::io::{self, Write};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use indicatif::ProgressBar;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, ProducerContext};
use tokio_util::sync::CancellationToken;

use crate::kafka::client::ClientEvents;

/// How often a wait looks at deliveries and at whether it is to stop.
pub(super) const POLL: Duration = Duration::from_millis(50);

/// Where records go out.
pub(super) struct Outlet<'a> {
    pub(super) producer: &'a BaseProducer<Deliveries>,
    pub(super) topic: &'a str,
    pub(super) headers: OwnedHeaders,
    pub(super) deliveries: &'a Deliveries,
    pub(super) pace: Option<Pace>,
    pub(super) stop: &'a CancellationToken,
}

impl Outlet<'_> {
    /// Hands one record over, waiting while the producer's queue is full.
    ///
    /// # Errors
    /// A record that librdkafka does not take, and a stop.
    pub(super) fn send(&mut self, key: Option<&str>, value: &str) -> anyhow::Result<()> {
        if let Some(pace) = &mut self.pace {
            while let Some(wait) = pace.wait() {
                wait_hearing(self.producer, self.stop, wait.min(POLL))?;
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
            self.wait(POLL)?;
            record = unsent;
        }
        self.wait(Duration::ZERO)
    }

    /// Hears deliveries for a while.
    ///
    /// # Errors
    /// A stop.
    pub(super) fn wait(&self, time: Duration) -> anyhow::Result<()> {
        wait_hearing(self.producer, self.stop, time)
    }

    /// Counts a line that is no URL as failed, and names it.
    pub(super) fn bad_line(&self, name: &str, number: u64, reason: &str) {
        self.deliveries.failed.fetch_add(1, Ordering::Relaxed);
        self.deliveries.progress.suspend(|| eprintln!("{name}:{number}: {reason}"));
    }
}

fn wait_hearing(
    producer: &BaseProducer<Deliveries>,
    stop: &CancellationToken,
    time: Duration,
) -> anyhow::Result<()> {
    producer.poll(time);
    ensure!(!stop.is_cancelled(), "stopped before everything was produced");
    Ok(())
}

/// When the next record is due.
pub(super) struct Pace {
    started: Instant,
    sent: u64,
    per_second: f64,
}

impl Pace {
    pub(super) fn new(per_second: NonZeroU32) -> Self {
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

/// Hears what became of each record.
pub(super) struct Deliveries {
    /// From here on what is reported is no delivery, but what is thrown away at the end.
    closed: AtomicBool,
    verbose: bool,
    delivered: AtomicU64,
    failed: AtomicU64,
    progress: ProgressBar,
    events: ClientEvents,
}

impl Deliveries {
    pub(super) fn new(verbose: bool, progress: ProgressBar) -> Self {
        Self {
            closed: AtomicBool::new(false),
            verbose,
            delivered: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            progress,
            events: ClientEvents::default(),
        }
    }

    pub(super) fn events(&self) -> &ClientEvents {
        &self.events
    }

    /// Stops listening; gives how many records were delivered, and how many were not.
    pub(super) fn close(&self) -> (u64, u64) {
        self.closed.store(true, Ordering::Relaxed);
        (self.delivered.load(Ordering::Relaxed), self.failed.load(Ordering::Relaxed))
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
        if self.closed.load(Ordering::Relaxed) {
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
