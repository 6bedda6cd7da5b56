//! Hands records to librdkafka's producer at the requested rate, and counts and reports their deliveries.

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
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};
use tokio_util::sync::CancellationToken;

use crate::kafka::client::ClientEvents;

/// How often a wait looks at deliveries and at whether it is to stop.
pub(super) const POLL: Duration = Duration::from_millis(50);

/// The shortest wait, for room in a full queue above all: a small part of what the queue holds. What is due in between
/// goes out together.
const SHORTEST_WAIT: Duration = Duration::from_millis(1);

/// One record to produce.
pub(super) struct Record<'a> {
    /// The line of the input that it comes from, counted from 1; 0 where there is no input.
    pub(super) line: usize,
    pub(super) key: Option<&'a str>,
    pub(super) value: &'a [u8],
}

/// Where records go out.
pub(super) struct Outlet<'a> {
    producer: &'a BaseProducer<Deliveries>,
    topic: &'a str,
    headers: Option<OwnedHeaders>,
    pace: Option<Pace>,
    stop: &'a CancellationToken,
}

impl<'a> Outlet<'a> {
    /// To this topic, each record with these headers.
    pub(super) fn new(
        producer: &'a BaseProducer<Deliveries>,
        topic: &'a str,
        headers: Option<OwnedHeaders>,
        per_second: Option<NonZeroU32>,
        stop: &'a CancellationToken,
    ) -> Self {
        Self { producer, topic, headers, pace: per_second.map(Pace::new), stop }
    }

    /// Hands records over, each when it is due, and waits while the producer's queue is full.
    ///
    /// # Errors
    /// A record that librdkafka rejects for another reason than its size, and a stop.
    pub(super) fn send(&mut self, records: &[Record<'_>]) -> anyhow::Result<()> {
        let mut rest = records;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(self.due(rest.len())?);
            for record in now {
                self.send_one(record)?;
            }
            self.wait(Duration::ZERO)?;
            rest = later;
        }
        Ok(())
    }

    /// Waits until a record is due; gives how many of `wanted` are.
    fn due(&mut self, wanted: usize) -> anyhow::Result<usize> {
        loop {
            match self.pace.as_mut().map_or(Ok(wanted), |pace| pace.due(wanted)) {
                Ok(due) => return Ok(due),
                Err(wait) => self.wait(wait.clamp(SHORTEST_WAIT, POLL))?,
            }
        }
    }

    fn send_one(&self, &Record { line, key, value }: &Record<'_>) -> anyhow::Result<()> {
        let mut record = BaseRecord::<str, [u8], usize>::with_opaque_to(self.topic, line).payload(value);
        record.key = key;
        record.headers.clone_from(&self.headers);
        while let Err((error, unsent)) = self.producer.send(record) {
            match error.rdkafka_error_code() {
                Some(RDKafkaErrorCode::QueueFull) => self.wait(SHORTEST_WAIT)?,
                Some(RDKafkaErrorCode::MessageSizeTooLarge) => {
                    self.producer.context().fail(&error, line, value);
                    return Ok(());
                }
                _ => return Err(error).context("handing a record to the producer"),
            }
            record = unsent;
        }
        Ok(())
    }

    /// Waits for a while, and hears what became of records.
    ///
    /// # Errors
    /// A stop.
    pub(super) fn wait(&self, time: Duration) -> anyhow::Result<()> {
        wait_and_hear(self.producer, time);
        ensure!(!self.stop.is_cancelled(), "stopped before everything was produced");
        Ok(())
    }

    /// Counts a line that is no URL as failed, and names it.
    pub(super) fn bad_line(&self, line: usize, reason: &str) {
        self.producer.context().fail_with(line, reason);
    }
}

/// Waits for a while, then hears all that there is to hear, and moves the bar.
///
/// The wait is not the producer's poll, which counts in whole milliseconds and spins through what is left of one.
pub(super) fn wait_and_hear(producer: &BaseProducer<Deliveries>, time: Duration) {
    if !time.is_zero() {
        std::thread::sleep(time);
    }
    let deliveries = producer.context();
    let mut before = deliveries.told();
    loop {
        // One event: a batch of deliveries, or an error.
        producer.poll(Duration::ZERO);
        let told = deliveries.told();
        if told == before {
            break;
        }
        before = told;
    }
    if !deliveries.progress.is_hidden() {
        deliveries.progress.set_position(before);
    }
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

    /// How many of `wanted` records are due now, which then count as sent; or how long until the next one is.
    fn due(&mut self, wanted: usize) -> Result<usize, Duration> {
        self.due_after(self.started.elapsed(), wanted)
    }

    fn due_after(&mut self, elapsed: Duration, wanted: usize) -> Result<usize, Duration> {
        let elapsed_s = elapsed.as_secs_f64();
        // The first one is due at once.
        let due = (elapsed_s * self.per_second) as u64 + 1;
        match due.saturating_sub(self.sent) {
            0 => Err(Duration::from_secs_f64((self.sent as f64 / self.per_second - elapsed_s).max(0.0))),
            due => {
                let due = usize::try_from(due).unwrap_or(usize::MAX).min(wanted);
                self.sent += due as u64;
                Ok(due)
            }
        }
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
    /// The input's name, where records come from one.
    input: Option<String>,
    events: ClientEvents,
}

impl Deliveries {
    /// Counts deliveries. `input` is the name of the input in messages about its lines; `verbose` prints each delivery.
    pub(super) fn new(verbose: bool, progress: ProgressBar, input: Option<String>) -> Self {
        Self {
            closed: AtomicBool::new(false),
            verbose,
            delivered: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            progress,
            input,
            events: ClientEvents::default(),
        }
    }

    pub(super) fn events(&self) -> &ClientEvents {
        &self.events
    }

    /// Counts a record as failed, and reports it with its value.
    fn fail(&self, error: &KafkaError, line: usize, value: &[u8]) {
        let value = String::from_utf8_lossy(value);
        self.fail_with(line, &format!("ERROR: Message failed delivery: {error}: {value}"));
    }

    /// Counts a line as failed, and reports why with the name of the input and the line's number.
    fn fail_with(&self, line: usize, reason: &str) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        self.progress.suspend(|| match &self.input {
            Some(input) => eprintln!("{input}:{line}: {reason}"),
            None => eprintln!("{reason}"),
        });
    }

    /// How many records it is known of what became of them.
    fn told(&self) -> u64 {
        self.delivered.load(Ordering::Relaxed) + self.failed.load(Ordering::Relaxed)
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
    /// The record's line of the input.
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, line: usize) {
        if self.closed.load(Ordering::Relaxed) {
            return;
        }
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
            Err((error, message)) => self.fail(error, line, message.payload().unwrap_or_default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_record_is_due_before_its_time_and_all_are_at_theirs() {
        let mut pace = Pace::new(NonZeroU32::new(1_000).unwrap());
        let at = Duration::from_micros;
        assert_eq!(pace.due_after(at(0), 5), Ok(1), "the first at once");
        assert_eq!(pace.due_after(at(0), 5), Err(at(1_000)));
        assert_eq!(pace.due_after(at(999), 5), Err(at(1)));
        assert_eq!(pace.due_after(at(1_000), 5), Ok(1));
        assert_eq!(pace.due_after(at(10_500), 5), Ok(5), "no more than there are");
        assert_eq!(pace.due_after(at(10_500), 100), Ok(4), "those that were late");
        assert_eq!(pace.due_after(at(10_500), 100), Err(at(500)));
        assert_eq!(pace.due_after(Duration::from_secs(3_600), usize::MAX), Ok(3_600_001 - 11));
    }
}
