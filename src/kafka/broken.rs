//! Finds where a record batch ends that cannot be read: damaged on disk, so that its checksum or its content is wrong.
//!
//! librdkafka 2.12.1 does not get past such a batch by itself: it reads it again for ever, goes astray to an offset out of
//! nowhere, or falls silent (confluentinc/librdkafka#5581). So a second consumer, outside the group, is asked about single
//! offsets until the first that can be read behind the batch is found; the member then goes on from there.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::{Offset, TopicPartitionList};

use super::client::ClientEvents;
use super::events::{Event, Events, Failure, Records};

/// How long an answer is waited for; a batch whose records are cut wrongly gives none at all.
const FIRST_ANSWER_LIMIT: Duration = Duration::from_secs(3);
/// The same once the silence is known.
const ANSWER_LIMIT: Duration = Duration::from_millis(500);
/// Before silence is believed, both ends of it are asked again for this long.
const LAST_ANSWER_LIMIT: Duration = Duration::from_secs(8);
/// A wait of 20 ms that took this long: the process stood still, and nothing can be said.
const STANDSTILL: Duration = Duration::from_secs(1);
/// How often an answer that means nothing is asked for again.
const TRIES: usize = 6;

/// Errors that may come from a broken batch.
pub(super) fn is_suspicious(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::BadMessage | RDKafkaErrorCode::BadCompression | RDKafkaErrorCode::NotImplemented
    )
}

/// Offsets of a partition that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Broken {
    pub(super) first: i64,
    /// The first offset that can be read again, or the end of the partition.
    pub(super) end: i64,
    pub(super) error: String,
}

/// What a search has found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    Broken(Broken),
    /// Nothing is wrong: there is a record, and this search could read it.
    Readable,
    /// Nothing is wrong: there is no record.
    End,
}

/// A search under way, on a thread of its own; given up when dropped.
pub(super) struct Search {
    found: mpsc::Receiver<anyhow::Result<Found>>,
    given_up: Arc<AtomicBool>,
}

impl Drop for Search {
    fn drop(&mut self) {
        self.given_up.store(true, Ordering::Relaxed);
    }
}

impl Search {
    /// Looks at `partition` from offset `next` on.
    ///
    /// # Errors
    /// Where no thread or no consumer can be had.
    pub(super) fn start(
        client: &ClientConfig,
        topic: &str,
        partition: i32,
        next: i64,
    ) -> anyhow::Result<Self> {
        let mut client = client.clone();
        client.remove("group.instance.id");
        for (name, value) in [
            ("auto.offset.reset", "error"),
            ("enable.auto.commit", "false"),
            ("enable.partition.eof", "true"),
            ("fetch.wait.max.ms", "50"),
        ] {
            client.set(name, value);
        }
        let (sender, found) = mpsc::sync_channel(1);
        let given_up = Arc::new(AtomicBool::new(false));
        let (topic, stop) = (topic.to_owned(), given_up.clone());
        std::thread::Builder::new()
            .name("kafka-search".to_owned())
            .spawn(move || {
                let found = Probe::new(&client, topic, partition, stop).and_then(|probe| probe.search(next));
                // Nobody waits for it any more only where the partition is gone.
                let _ = sender.send(found);
            })
            .context("starting the thread that looks for the end of a broken batch")?;
        Ok(Self { found, given_up })
    }

    /// What was found, once; none while the search goes on.
    pub(super) fn found(&self) -> Option<anyhow::Result<Found>> {
        match self.found.try_recv() {
            Ok(found) => Some(found),
            Err(mpsc::TryRecvError::Empty) => None,
            Err(mpsc::TryRecvError::Disconnected) => Some(Err(anyhow::anyhow!("the search panicked"))),
        }
    }
}

struct Probe {
    consumer: Arc<BaseConsumer<ClientEvents>>,
    events: Events<ClientEvents>,
    fetched: Records<ClientEvents>,
    topic: String,
    partition: i32,
    stop: Arc<AtomicBool>,
}

/// What is at an offset.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Answer {
    /// A record here, or behind it where this one is no longer kept.
    Readable,
    /// The end of the partition.
    End,
    Broken(String),
    /// No answer at all.
    Silent,
}

impl Probe {
    fn new(
        client: &ClientConfig,
        topic: String,
        partition: i32,
        stop: Arc<AtomicBool>,
    ) -> anyhow::Result<Self> {
        let consumer: BaseConsumer<ClientEvents> = client
            .create_with_context(ClientEvents::default())
            .context("making a consumer that looks for the end of a broken batch")?;
        let consumer = Arc::new(consumer);
        let events = Events::of(consumer.clone()).context("the consumer has no queue")?;
        let fetched = Records::of(consumer.clone(), &topic).context("no queue for records")?;
        Ok(Self { consumer, events, fetched, topic, partition, stop })
    }

    /// Gallops until an offset can be read, then narrows down to the first one that can.
    ///
    /// Silence alone proves nothing: a slow disk is silent, too. It counts only beside records that can be read, and only
    /// where it goes on when it is listened to for long.
    fn search(&self, next: i64) -> anyhow::Result<Found> {
        let mut silent = false;
        let mut is_broken = |answer: Answer| match answer {
            Answer::Broken(error) => Some(error),
            Answer::Silent => {
                silent = true;
                Some("its records cannot be told apart, though its frame is whole".to_owned())
            }
            Answer::Readable | Answer::End => None,
        };
        let first = self.ask(next, FIRST_ANSWER_LIMIT)?;
        let is_end = first == Answer::End;
        let Some(error) = is_broken(first) else {
            return Ok(if is_end { Found::End } else { Found::Readable });
        };
        let (mut broken, mut step) = (next, 1);
        let (mut readable, mut behind) = loop {
            let offset = next + step;
            let answer = self.ask(offset, ANSWER_LIMIT)?;
            if is_broken(answer.clone()).is_none() {
                break (offset, answer);
            }
            broken = offset;
            step = step * 2 + 1;
        };
        while readable - broken > 1 {
            let middle = broken + (readable - broken) / 2;
            let answer = self.ask(middle, ANSWER_LIMIT)?;
            if is_broken(answer.clone()).is_none() {
                (readable, behind) = (middle, answer);
            } else {
                broken = middle;
            }
        }
        let end = readable.min(self.high()?);
        if silent {
            // Nothing behind it can be read: then what stands before it must be, as quickly as ever.
            if behind != Answer::Readable && self.ask(next - 1, ANSWER_LIMIT)? != Answer::Readable {
                bail!(
                    "{}/{} is silent from offset {next} to its end, which may be slowness",
                    self.topic,
                    self.partition
                );
            }
            for offset in [next, end - 1] {
                if matches!(self.ask(offset, LAST_ANSWER_LIMIT)?, Answer::Readable | Answer::End) {
                    bail!("{}/{} answers at offset {offset} after all", self.topic, self.partition);
                }
            }
        }
        Ok(Found::Broken(Broken { first: next, end, error }))
    }

    /// # Errors
    /// No answer that means something, or nobody wants to know any more.
    fn ask(&self, offset: i64, limit: Duration) -> anyhow::Result<Answer> {
        if offset >= self.high()? {
            return Ok(Answer::End);
        }
        for _ in 0..TRIES {
            if let Some(answer) = self.ask_once(offset, limit)? {
                return Ok(answer);
            }
        }
        bail!("no clear answer about {}/{} at offset {offset}", self.topic, self.partition)
    }

    fn ask_once(&self, offset: i64, limit: Duration) -> anyhow::Result<Option<Answer>> {
        let mut at = TopicPartitionList::new();
        at.add_partition_offset(&self.topic, self.partition, Offset::Offset(offset))?;
        self.consumer.unassign()?;
        self.fetched.route(self.partition);
        self.consumer.assign(&at)?;
        let deadline = Instant::now() + limit;
        let mut away = false;
        while Instant::now() < deadline {
            if self.stop.load(Ordering::Relaxed) {
                bail!("given up");
            }
            self.fetched.route(self.partition);
            let mut first = None;
            let turn = Instant::now();
            self.fetched.take(self.partition, Duration::from_millis(20), &mut |fetched| {
                let (_, found) = fetched.position();
                first = Some(fetched.failure().map_or(Ok(found), Err));
                ControlFlow::Break(())
            });
            let said = match (first, self.events.poll(Duration::ZERO)) {
                (Some(Ok(found)), _) => return Ok((found >= offset).then_some(Answer::Readable)),
                (Some(Err(failure)), _) | (None, Some(Event::Failed(failure))) => failure,
                (None, _) if turn.elapsed() >= STANDSTILL => return Ok(None),
                (None, _) => continue,
            };
            match said {
                Failure { code: RDKafkaErrorCode::PartitionEOF, .. } => return Ok(Some(Answer::End)),
                Failure { code, at: Some((_, from)), reason, .. }
                    if is_suspicious(code) && (0..=offset).contains(&from) =>
                {
                    return Ok(Some(Answer::Broken(reason)));
                }
                // An echo of the offset that was asked for before, or one that librdkafka made up.
                Failure { at: Some(_), .. } => return Ok(None),
                // A broker that is away explains a silence.
                Failure { at: None, .. } => away = true,
            }
        }
        Ok((!away).then_some(Answer::Silent))
    }

    fn high(&self) -> anyhow::Result<i64> {
        let (_, high) = self
            .consumer
            .fetch_watermarks(&self.topic, self.partition, Duration::from_secs(5))
            .with_context(|| format!("asking where {}/{} ends", self.topic, self.partition))?;
        Ok(high)
    }
}
