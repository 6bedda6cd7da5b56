//! The consumer's thread: polls, makes batches, hands them over, commits what is done, and follows the group.
//!
//! It polls events whatever happens downstream, so that the group never drops it; where the role does not keep up, records
//! wait in librdkafka's queue, which has bounds of its own. What the group asks is in [`group`], what goes wrong at the cluster in [`trouble`], and what becomes of
//! corrupt record batches in [`corrupt`].

mod corrupt;
mod group;
mod trouble;

use std::collections::BTreeMap;
use std::ffi::CString;
use std::ops::ControlFlow;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _, RebalanceProtocol};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::client::{ClientEvents, wait_for_topic};
use super::consumer::{Collect, ConsumerConfig, Outlet, State};
use super::events::{Event, Events, Failure, Fetched, Records, high_watermark};
use super::offsets::Offsets;
use super::start::{Start, Starts};
use corrupt::Corrupt;
use group::{COMMIT_NOW_LIMIT, commit_now, commit_until_idle};

/// How long a poll may wait, which is also how soon a stop is seen.
const POLL: Duration = Duration::from_millis(50);
/// Records in hand while they are put into a batch.
const RECORDS_AT_ONCE: &str = "1000";
/// How often lags and the broker's presence are looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// How long a stop waits for records in flight.
const STOP_LIMIT: Duration = Duration::from_secs(7);
/// How long the start of new partitions is asked for; both well under `max.poll.interval.ms`, 300 s by default.
const START_LIMIT: Duration = Duration::from_secs(60);

/// A member of the group.
pub(super) struct Member<C: Collect> {
    consumer: Arc<BaseConsumer<ClientEvents>>,
    events: Rc<Events<ClientEvents>>,
    fetched: Rc<Records<ClientEvents>>,
    topic: String,
    native_topic: CString,
    source: String,
    starts: Starts,
    offsets: Arc<Offsets>,
    state: Arc<State>,
    out: Outlet<C::Batch>,
    runtime: tokio::runtime::Handle,
    stop: CancellationToken,
    collect: C,
    linger: Duration,
    /// When the first record of the batch was read.
    batch_since: Option<Instant>,
    /// Records read so far.
    records: u64,
    /// The assigned partitions.
    reading: BTreeMap<i32, Reading>,
    /// The partition that was last asked for records.
    asked: i32,
    /// The partition that was last asked for its end.
    looked: i32,
    /// Whether the topic may have been made anew.
    check_topic_id: bool,
    /// Partitions, paused, with a corrupt record batch.
    corrupt: BTreeMap<i32, Corrupt>,
    /// Whether to go on behind corrupt batches.
    skip_corrupt: bool,
    /// Whether downstream does not keep up, so that records wait in librdkafka's queue.
    out_of_room: bool,
    client: ClientConfig,
    commit_interval: Duration,
    next_commit: Instant,
    /// When the commit under way was sent.
    committing: Option<Instant>,
    /// When a commit that failed was last told.
    commit_warned: Option<Instant>,
    next_look: Instant,
    max_poll_interval: Duration,
}

/// Where an assigned partition is read.
#[derive(Debug, Clone, Copy)]
struct Reading {
    assignment: u64,
    next: i64,
}

impl<C: Collect> Member<C> {
    pub(super) fn join(
        config: ConsumerConfig,
        collect: C,
        offsets: Arc<Offsets>,
        state: Arc<State>,
        out: Outlet<C::Batch>,
        runtime: tokio::runtime::Handle,
        stop: CancellationToken,
    ) -> anyhow::Result<Self> {
        let start = Start::from_property(config.client.get("auto.offset.reset"));
        let mut client = config.client();
        // Every partition is assigned with the offset that it starts at. What is left of this property is the case that
        // this offset is not in the topic, which must be heard and not papered over.
        client.set("auto.offset.reset", "error");
        client.set("consume.callback.max.messages", RECORDS_AT_ONCE);
        let max_poll_interval = client.get("max.poll.interval.ms").and_then(|ms| ms.parse().ok());
        let commit_interval = config.commit_interval();
        let ConsumerConfig { topic, source, timeout, linger, reset, on_lost_offsets, skip_corrupt, .. } =
            config;
        let native_topic = CString::new(topic.as_str()).context("the topic's name holds a NUL")?;
        let consumer: BaseConsumer<ClientEvents> = client
            .create_with_context(ClientEvents::default())
            .with_context(|| format!("making a Kafka consumer from {source}"))?;
        let consumer = Arc::new(consumer);
        let events = Events::of(consumer.clone()).context("the consumer has no queue")?;
        let fetched = Records::of(consumer.clone(), &topic).context("no queue for records")?;
        // Nothing is subscribed yet, so a poll brings events alone.
        let hear_events = |time: Duration| {
            let until = Instant::now() + time;
            while let Some(left) = until.checked_duration_since(Instant::now()) {
                events.poll(left);
            }
        };
        let heard = consumer.context().clone();
        wait_for_topic(consumer.client(), hear_events, &heard, &topic, &source, timeout, &stop)?;
        consumer.subscribe(&[&topic]).with_context(|| format!("subscribing to {topic}"))?;
        let now = Instant::now();
        Ok(Self {
            consumer,
            events: Rc::new(events),
            fetched: Rc::new(fetched),
            starts: Starts::new(topic.clone(), start, on_lost_offsets, reset),
            topic,
            native_topic,
            source,
            offsets,
            state,
            out,
            runtime,
            stop,
            collect,
            linger,
            batch_since: None,
            records: 0,
            reading: BTreeMap::new(),
            asked: -1,
            looked: -1,
            check_topic_id: false,
            corrupt: BTreeMap::new(),
            skip_corrupt,
            out_of_room: false,
            client,
            commit_interval,
            next_commit: now,
            committing: None,
            commit_warned: None,
            next_look: now + LOOK_INTERVAL,
            max_poll_interval: Duration::from_millis(max_poll_interval.unwrap_or(300_000)),
        })
    }

    /// Polls until stopped, then lets the role finish, commits and leaves the group. What ends it otherwise is told first.
    pub(super) fn run(mut self, failure: oneshot::Sender<anyhow::Error>) {
        let ended = self.poll_until_stopped();
        let failed = ended.is_err();
        if let Err(error) = ended {
            // Nobody listens any more only where the role is gone already.
            let _ = failure.send(error);
        }
        self.forget_unanswered_commit();
        let Self { consumer, events, fetched, offsets, out, starts, state, .. } = self;
        drop(out);
        let deadline = Instant::now() + STOP_LIMIT;
        let left = commit_until_idle(&consumer, &offsets, &starts, &state, None, || deadline);
        if left > 0 {
            tracing::warn!(records = left, "stopped with records in flight; they will be delivered again");
        }
        // What is not committed is delivered again by the next start.
        let _ = commit_now(&consumer, &offsets, &starts, &state, COMMIT_NOW_LIMIT);
        if failed {
            // A rebalance that was not answered would hold up the good-bye.
            let given_up = match consumer.rebalance_protocol() {
                RebalanceProtocol::Cooperative => {
                    consumer.assignment().and_then(|all| consumer.incremental_unassign(&all))
                }
                _ => consumer.unassign(),
            };
            if let Err(error) = given_up {
                tracing::debug!("giving partitions up: {error}");
            }
        }
        drop((events, fetched));
        // Leaves the group; the assignment is given up on the way, with nothing left to say about it.
        drop(consumer);
    }

    fn poll_until_stopped(&mut self) -> anyhow::Result<()> {
        while !self.is_over() {
            self.come_round()?;
            if self.is_due() && !self.send_if_room() {
                self.wait_for_room()?;
                continue;
            }
            let wait = match self.batch_since {
                Some(since) => self.linger.saturating_sub(since.elapsed()).min(POLL),
                None => POLL,
            };
            self.fill(wait)?;
        }
        Ok(())
    }

    fn is_over(&self) -> bool {
        self.stop.is_cancelled() || self.out.batches.is_closed()
    }

    /// What is to be done now and then, whatever else goes on.
    fn come_round(&mut self) -> anyhow::Result<()> {
        self.state.rounds.fetch_add(1, Ordering::Relaxed);
        self.state.records.store(self.records, Ordering::Relaxed);
        let now = Instant::now();
        if now >= self.next_commit {
            self.next_commit = now + self.commit_interval;
            self.commit();
            for partition in self.reading.keys() {
                self.fetched.route(*partition);
            }
        }
        if now >= self.next_look {
            self.next_look = now + LOOK_INTERVAL;
            self.look();
            self.notice_a_topic_made_anew()?;
        }
        if self.corrupt.is_empty() { Ok(()) } else { self.end_searches() }
    }

    fn is_due(&self) -> bool {
        self.collect.is_full() || self.batch_since.is_some_and(|since| since.elapsed() >= self.linger)
    }

    /// Takes the records that are there, up to a batch, and one event; waits at most `wait` for either.
    fn fill(&mut self, wait: Duration) -> anyhow::Result<()> {
        let mut failures = Vec::new();
        // The next partition each time: the way to all records must not depend on the state of one.
        let after = self.reading.range(self.asked + 1..).next().or_else(|| self.reading.iter().next());
        let wait_for_event = match after.map(|(partition, _)| *partition) {
            Some(partition) => {
                self.asked = partition;
                let fetched = self.fetched.clone();
                fetched.take(partition, wait, &mut |fetched| self.take(fetched, &mut failures));
                Duration::ZERO
            }
            // Without partitions only an event can come.
            None => wait,
        };
        for failure in failures {
            self.failed(failure)?;
        }
        if let Some(event) = self.events.clone().poll(wait_for_event) {
            self.handle(event)?;
        }
        Ok(())
    }

    /// Adds a record to the batch, unless its partition is no longer ours: then its new owner reads it. Breaks off once the
    /// batch is full, or something is there instead of a record.
    fn take(&mut self, fetched: Fetched<'_>, failures: &mut Vec<Failure>) -> ControlFlow<()> {
        let (partition, offset) = fetched.position();
        if let Some(failure) = fetched.failure() {
            failures.push(failure);
            return ControlFlow::Break(());
        }
        let Some(reading) = self.reading.get_mut(&partition) else { return ControlFlow::Continue(()) };
        // What comes behind a corrupt batch may come from anywhere.
        if !self.corrupt.is_empty() && self.corrupt.contains_key(&partition) {
            return ControlFlow::Continue(());
        }
        if offset < reading.next {
            failures.push(Failure {
                code: RDKafkaErrorCode::NoError,
                reason: "an offset came that was passed already".to_owned(),
                fatal: false,
                at: Some((partition, offset)),
            });
            return ControlFlow::Break(());
        }
        reading.next = offset + 1;
        self.collect.add(&fetched.record(reading.assignment));
        self.records += 1;
        if self.batch_since.is_none() {
            self.batch_since = Some(Instant::now());
        }
        if self.collect.is_full() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn handle(&mut self, event: Event) -> anyhow::Result<()> {
        match event {
            Event::Failed(failure) => self.failed(failure)?,
            Event::Assign(partitions) => self.assign(&partitions)?,
            Event::Revoke(partitions) => self.revoke(&partitions)?,
            Event::Committed(partitions) => self.committed(&partitions),
            Event::Handled => {}
        }
        Ok(())
    }

    /// Hands the batch over where there is room for it; false where there is none.
    fn send_if_room(&mut self) -> bool {
        let Ok(room) = self.out.batches.try_reserve() else { return false };
        let offsets = &self.offsets;
        // A rebalance may have taken partitions away since the records were read.
        let batch = self.collect.take(&mut |receipt| offsets.deliver(receipt));
        self.batch_since = (!self.collect.is_empty()).then(Instant::now);
        if let Some(batch) = batch {
            room.send(batch);
        }
        true
    }

    /// Waits until there is room downstream, and follows the group meanwhile: commits are sent and their answers handled,
    /// and so are rebalances, errors and a stop. Polling events is what `max.poll.interval.ms` asks for.
    fn wait_for_room(&mut self) -> anyhow::Result<()> {
        self.out_of_room = true;
        while !self.is_over() {
            let batches = &self.out.batches;
            let reserve = async { tokio::time::timeout(POLL, batches.reserve()).await.is_ok() };
            if self.runtime.block_on(reserve) {
                break;
            }
            self.come_round()?;
            while let Some(event) = self.events.clone().poll(Duration::ZERO) {
                self.handle(event)?;
            }
        }
        self.out_of_room = false;
        Ok(())
    }

    /// Notes how far the ends of the partitions are, and whether a broker that was away is back.
    fn look(&mut self) {
        for (partition, state) in self.state.partitions().iter_mut().filter(|_| !self.out_of_room) {
            if let Some(high) = high_watermark(&self.consumer, &self.native_topic, *partition) {
                state.high_watermark = Some(high);
            }
        }
        // While the queue is full, or the partition paused, nothing is fetched, so nothing tells where partitions end: one
        // of them is asked each time.
        let is_unknown =
            |(partition, _): &(&i32, &Reading)| self.out_of_room || self.corrupt.contains_key(partition);
        let asked = self.reading.range(self.looked + 1..).chain(self.reading.iter()).find(is_unknown);
        if let Some(partition) = asked.map(|(partition, _)| *partition) {
            self.looked = partition;
            let range = self.consumer.fetch_watermarks(&self.topic, partition, LOOK_INTERVAL / 2);
            if let (Ok((_, high)), Some(state)) = (range, self.state.partitions().get_mut(&partition)) {
                state.high_watermark = Some(high);
            }
        }
        let troubled = self.state.trouble().is_some();
        if troubled && self.knows_topic() {
            *self.state.trouble() = None;
            self.check_topic_id = true;
        }
    }
}

fn list(
    topic: &str,
    offsets: impl IntoIterator<Item = (i32, i64)>,
) -> Result<TopicPartitionList, KafkaError> {
    let mut list = TopicPartitionList::new();
    for (partition, offset) in offsets {
        list.add_partition_offset(topic, partition, Offset::Offset(offset))?;
    }
    Ok(list)
}
