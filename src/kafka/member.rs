//! The consumer's thread: polls, makes batches, hands them over, commits what is done, and follows the group.
//!
//! It polls whatever happens downstream, so that the group never drops it: where the role does not keep up, partitions
//! are paused.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::ops::ControlFlow;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _, RebalanceProtocol};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::broken::{Broken, Search, is_suspicious};
use super::client::{ClientEvents, wait_for_topic};
use super::consumer::{Collect, ConsumerConfig, Outlet, PartitionState, State};
use super::events::{Event, Events, Failure, Fetched, Records, commit_within, high_watermark};
use super::offsets::Offsets;
use super::start::{LostOffsets, OnLostOffsets, Start, StartAt, Starts};

/// How long a poll may wait, which is also how soon a stop is seen.
const POLL: Duration = Duration::from_millis(50);
/// Records in hand while they are put into a batch.
const RECORDS_AT_ONCE: &str = "1000";
/// Without room downstream for this long, partitions are paused. Pausing drops what was fetched ahead, so not at once.
const PAUSE_AFTER: Duration = Duration::from_secs(1);
/// How often lags and the broker's presence are looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// One line about commits that fail, in this time.
const LOG_INTERVAL: Duration = Duration::from_secs(30);
/// How long a stop waits for records in flight.
const STOP_LIMIT: Duration = Duration::from_secs(7);
/// How long a revoke waits for records in flight; past it they are delivered again by the partition's next owner.
const REVOKE_LIMIT: Duration = Duration::from_secs(30);
/// The same once the process is to stop: what is done by then still has to be committed.
const STOPPED_REVOKE_LIMIT: Duration = Duration::from_secs(3);
/// How long the start of new partitions is asked for; both well under `max.poll.interval.ms`, 300 s by default.
const START_LIMIT: Duration = Duration::from_secs(60);
/// A partition that gives no record for so many looks, although it has some, may have a batch that cannot be read.
const SILENT_LOOKS: u32 = 5;
/// How long a topic that a broker does not know may turn out to be there after all.
const TOPIC_GONE_LIMIT: Duration = Duration::from_secs(3);
/// Each search is a client of its own, with its threads and connections.
const MAX_SEARCHES: usize = 2;
/// How long a partition is asked to go on elsewhere before it is assigned anew.
const SEEK_LIMIT: Duration = Duration::from_secs(3);
/// How long a commit is waited for where nothing can go on without it.
const COMMIT_NOW_LIMIT: Duration = Duration::from_secs(5);
/// An asynchronous commit that was not answered by then is made again.
const COMMIT_LIMIT: Duration = Duration::from_secs(10);

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
    /// The paused partition that was last asked for its end.
    looked: i32,
    /// Whether the topic may have been made anew.
    check_topic_id: bool,
    /// Whether there was nothing to take at some time since the last look.
    drained: bool,
    /// Partitions, paused, that may have a batch that cannot be read.
    ///
    /// Without a search yet where it waits for its turn: paused at once all the same, since librdkafka reads such a batch
    /// again and again, and each time may go astray in it.
    searches: BTreeMap<i32, Option<Search>>,
    /// Whether all partitions are paused, because downstream does not keep up.
    paused: bool,
    client: ClientConfig,
    commit_interval: Duration,
    next_commit: Instant,
    /// When the commit under way was sent.
    committing_since: Option<Instant>,
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
    /// Where it stood at the last look, and for how many looks.
    seen: (i64, u32),
    /// Up to here there is nothing to read, whatever the end says: markers of transactions, for example.
    quiet_until: i64,
}

impl Reading {
    fn at(assignment: u64, next: i64) -> Self {
        Self { assignment, next, seen: (next, 0), quiet_until: 0 }
    }
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
        let ConsumerConfig { topic, source, timeout, linger, reset, on_lost_offsets, .. } = config;
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
            drained: false,
            searches: BTreeMap::new(),
            paused: false,
            client,
            commit_interval,
            next_commit: now,
            committing_since: None,
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
        let left = offsets.wait_idle(None, STOP_LIMIT);
        if left > 0 {
            tracing::warn!(records = left, "stopped with records in flight; they will be delivered again");
        }
        // What is not committed is delivered again by the next start.
        let _ = commit_now(&consumer, &offsets, &starts, &state);
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
            self.find_silent()?;
        }
        if self.searches.is_empty() { Ok(()) } else { self.end_searches() }
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
                let any = fetched.take(partition, wait, &mut |fetched| self.take(fetched, &mut failures));
                self.drained |= !any;
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
        // What comes of a partition that is looked into may come from anywhere.
        if !self.searches.is_empty() && self.searches.contains_key(&partition) {
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

    /// Waits until there is room downstream; after a while with paused partitions and polling, as the group demands.
    fn wait_for_room(&mut self) -> anyhow::Result<()> {
        let started = Instant::now();
        let mut paused = false;
        while !self.is_over() {
            let slice = if paused { Duration::ZERO } else { POLL };
            let batches = &self.out.batches;
            let reserve = async { tokio::time::timeout(slice, batches.reserve()).await.is_ok() };
            if self.runtime.block_on(reserve) {
                break;
            }
            self.come_round()?;
            if started.elapsed() < PAUSE_AFTER {
                continue;
            }
            if !paused {
                tracing::info!("downstream does not keep up; partitions paused");
                self.paused = true;
            }
            // Again each time: a rebalance may have brought partitions that are not paused yet.
            self.consumer.pause(&self.assignment()?).context("pausing partitions")?;
            paused = true;
            // A record that comes now was fetched before the pause reached its partition; it waits in the queue.
            if let Some(event) = self.events.clone().poll(POLL) {
                self.handle(event)?;
            }
        }
        if paused {
            self.paused = false;
            // Those that are looked into stay as they are.
            let others = self.reading.keys().filter(|partition| !self.searches.contains_key(partition));
            let others = list(&self.topic, others.map(|partition| (*partition, 0)))?;
            self.consumer.resume(&others).context("resuming partitions")?;
            tracing::info!("partitions resumed");
        }
        Ok(())
    }

    fn assignment(&self) -> anyhow::Result<TopicPartitionList> {
        self.consumer.assignment().context("reading the assignment")
    }

    fn assign(&mut self, partitions: &[i32]) -> anyhow::Result<()> {
        let starts = self.find_starts(partitions)?;
        for StartAt { partition, offset, committed } in &starts {
            let assignment = self.offsets.assign(*partition, *offset, *committed);
            self.reading.insert(*partition, Reading::at(assignment, *offset));
            let state = PartitionState { committed: *offset, high_watermark: None };
            self.state.partitions().insert(*partition, state);
        }
        let new: Vec<i32> =
            starts.iter().filter(|start| !start.committed).map(|start| start.partition).collect();
        if !new.is_empty() {
            // Before the first record is read: a process that dies now must not leave its successor to start elsewhere.
            self.pin()?;
            tracing::info!(partitions = ?new, "start of partitions without a committed offset pinned");
        }
        for partition in partitions {
            self.fetched.route(*partition);
        }
        let list = list(&self.topic, starts.iter().map(|start| (start.partition, start.offset)))?;
        let assigned = match self.consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => self.consumer.incremental_assign(&list),
            _ => self.consumer.assign(&list),
        };
        assigned.context("taking the assigned partitions")?;
        // One that was paused when it was taken away would stay paused for ever.
        self.consumer.resume(&list).context("resuming the assigned partitions")?;
        self.state.assigned.fetch_add(1, Ordering::Relaxed);
        self.state.joined.store(true, Ordering::Relaxed);
        tracing::info!(?partitions, "partitions assigned");
        Ok(())
    }

    /// Commits where new partitions start, and tries until the group has it, or is about to assign them anew.
    fn pin(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + START_LIMIT.min(self.max_poll_interval / 2);
        loop {
            match commit_now(&self.consumer, &self.offsets, &self.starts, &self.state) {
                Ok(()) => return Ok(()),
                Err(error) if is_rebalancing(error) || self.is_over() => return Ok(()),
                Err(error) if Instant::now() > deadline => {
                    bail!("where {} starts cannot be committed: {error}", self.topic)
                }
                Err(_) => std::thread::sleep(Duration::from_millis(300)),
            }
        }
    }

    /// Asks until the cluster answers: in the middle of a rebalance a coordinator or a leader may be moving, too.
    fn find_starts(&mut self, partitions: &[i32]) -> anyhow::Result<Vec<StartAt>> {
        if partitions.is_empty() {
            return Ok(Vec::new());
        }
        let deadline = Instant::now() + START_LIMIT.min(self.max_poll_interval / 2);
        loop {
            match self.starts.find(&self.consumer, partitions) {
                Ok(starts) => return Ok(starts),
                Err(error) if error.is::<LostOffsets>() => return Err(lost(&error)),
                Err(error) if self.is_over() || Instant::now() > deadline => return Err(error),
                Err(error)
                    if self.starts.start == Start::Refuse && error.downcast_ref::<KafkaError>().is_none() =>
                {
                    return Err(error);
                }
                Err(error) => tracing::warn!("trying again: {error:#}"),
            }
            self.state.rounds.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(300));
        }
    }

    fn revoke(&mut self, partitions: &[i32]) -> anyhow::Result<()> {
        // A lost partition already has another owner: nothing that we could commit would count.
        if self.consumer.assignment_lost() {
            self.state.lost.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(?partitions, "partitions lost: the group went on without this member");
        } else {
            let left = self.wait_for(partitions);
            if left > 0 {
                tracing::warn!(
                    records = left,
                    "revoked with records in flight; their next owner delivers them again"
                );
            }
            self.forget_unanswered_commit();
            // What is not committed is delivered again by the partitions' next owner.
            let _ = commit_now(&self.consumer, &self.offsets, &self.starts, &self.state);
            self.state.revoked.fetch_add(1, Ordering::Relaxed);
        }
        for partition in partitions {
            self.offsets.revoke(*partition);
            self.reading.remove(partition);
            self.searches.remove(partition);
            self.state.partitions().remove(partition);
        }
        let given_up = match self.consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => {
                self.consumer.incremental_unassign(&list(&self.topic, partitions.iter().map(|p| (*p, 0)))?)
            }
            _ => self.consumer.unassign(),
        };
        given_up.context("giving partitions up")?;
        tracing::info!(?partitions, "partitions revoked");
        Ok(())
    }

    /// Waits for what is in flight on these partitions; not as long once the process is to stop.
    fn wait_for(&self, revoked: &[i32]) -> u64 {
        let mut deadline = Instant::now() + REVOKE_LIMIT.min(self.max_poll_interval / 2);
        let mut stopping = false;
        loop {
            let left = self.offsets.wait_idle(Some(revoked), Duration::from_millis(100));
            self.state.rounds.fetch_add(1, Ordering::Relaxed);
            if self.stop.is_cancelled() && !stopping {
                stopping = true;
                deadline = deadline.min(Instant::now() + STOPPED_REVOKE_LIMIT);
            }
            if left == 0 || Instant::now() >= deadline {
                return left;
            }
        }
    }

    /// Sends what is done and not committed yet, unless a commit is under way.
    fn commit(&mut self) {
        if self.committing_since.is_some_and(|since| since.elapsed() < COMMIT_LIMIT) {
            return;
        }
        self.forget_unanswered_commit();
        let moved = self.offsets.take_committable();
        if moved.is_empty() {
            return;
        }
        let sent = match commit_list(&self.topic, &moved, &self.starts) {
            Ok(list) => self.events.commit(&list),
            Err(error) => Err(error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail)),
        };
        match sent {
            Ok(()) => self.committing_since = Some(Instant::now()),
            Err(error) => {
                tracing::debug!("commit not sent: {error}");
                for (partition, _) in moved {
                    self.offsets.not_committed(partition);
                }
            }
        }
    }

    /// What a commit without an answer holds counts as not committed: the next one has it again.
    fn forget_unanswered_commit(&mut self) {
        if self.committing_since.take().is_some() {
            for partition in self.reading.keys() {
                self.offsets.not_committed(*partition);
            }
        }
    }

    fn committed(&mut self, partitions: &[(i32, i64, Option<RDKafkaErrorCode>)]) {
        self.committing_since = None;
        for &(partition, offset, error) in partitions {
            match error {
                None => {
                    if let Some(state) = self.state.partitions().get_mut(&partition) {
                        state.committed = state.committed.max(offset);
                    }
                    *self.state.trouble() = None;
                }
                Some(error) => {
                    self.offsets.not_committed(partition);
                    if is_rebalancing(error) {
                        tracing::debug!(partition, offset, "not committed: {error}");
                    } else if self.commit_warned.is_none_or(|at| at.elapsed() >= LOG_INTERVAL) {
                        self.commit_warned = Some(Instant::now());
                        tracing::warn!(partition, offset, "not committed, trying again: {error}");
                        *self.state.trouble() = Some(format!("offsets cannot be committed: {error}"));
                    }
                }
            }
        }
    }

    /// Notes how far the ends of the partitions are, and whether a broker that was away is back.
    fn look(&mut self) {
        // Paused partitions are not fetched, so nothing tells where they end: one of them is asked each time.
        let asked = self
            .paused
            .then(|| self.reading.range(self.looked + 1..).chain(self.reading.iter()).next())
            .flatten();
        if let Some(partition) = asked.map(|(partition, _)| *partition) {
            self.looked = partition;
            let range = self.consumer.fetch_watermarks(&self.topic, partition, LOOK_INTERVAL);
            if let (Ok((_, high)), Some(state)) = (range, self.state.partitions().get_mut(&partition)) {
                state.high_watermark = Some(high);
            }
        }
        for (partition, state) in self.state.partitions().iter_mut().filter(|_| !self.paused) {
            if let Some(high) = high_watermark(&self.consumer, &self.native_topic, *partition) {
                state.high_watermark = Some(high);
            }
        }
        let troubled = self.state.trouble().is_some();
        if troubled && self.knows_topic() {
            *self.state.trouble() = None;
            self.check_topic_id = true;
        }
    }

    /// Goes on after what passes by itself, and ends with an explanation after what does not.
    fn failed(&mut self, failure: Failure) -> anyhow::Result<()> {
        let Failure { code, reason, fatal, at } = failure;
        let (topic, source) = (&self.topic, &self.source);
        match code {
            RDKafkaErrorCode::NoError => match at {
                Some((partition, offset)) => self.went_back(partition, offset),
                None => Ok(()),
            },
            RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic => {
                let gone = format!("Kafka topic {topic} is gone from the cluster of {source}");
                // One broker of several may not have heard of it yet, or not any more.
                if self.is_there(TOPIC_GONE_LIMIT) {
                    self.check_topic_id = true;
                    return Ok(());
                }
                if self.starts.on_lost == OnLostOffsets::Stop {
                    bail!("{gone}. With --on-lost-offsets earliest it is waited for");
                }
                tracing::error!("{gone}; waiting for it to be made again");
                *self.state.trouble() = Some(gone);
                Ok(())
            }
            RDKafkaErrorCode::TopicAuthorizationFailed => {
                bail!("no access to Kafka topic {topic}: the user in {source} needs the Read right on it")
            }
            RDKafkaErrorCode::GroupAuthorizationFailed => bail!(
                "no access to the consumer group: the user in {source} needs the Read right on its group.id"
            ),
            RDKafkaErrorCode::AutoOffsetReset => match at {
                // librdkafka went astray in a broken batch.
                Some((partition, _)) if self.searches.contains_key(&partition) => Ok(()),
                Some((partition, offset)) => self.lost(partition, offset, &reason),
                None => bail!("{topic}: {reason}"),
            },
            RDKafkaErrorCode::FencedInstanceId => bail!(
                "another member of the group has the same --group-instance-id and took its place: give each \
                 bridge an id of its own, and start the next with the same id only once the last has ended"
            ),
            _ if is_suspicious(code) => match at {
                Some((partition, _)) => self.suspect(partition, &reason),
                None => Ok(()),
            },
            RDKafkaErrorCode::UnreleasedInstanceId => bail!(
                "the group still has a member with the same --group-instance-id: it is let in once that one's session is over"
            ),
            _ if fatal => bail!("Kafka ended the consumer: {reason}"),
            RDKafkaErrorCode::AllBrokersDown => {
                *self.state.trouble() = Some("no Kafka broker answers".to_owned());
                Ok(())
            }
            // Broker away, coordinator moving, connection lost: librdkafka reconnects, and `ClientEvents` has logged why.
            _ => {
                tracing::debug!(?at, ?code, "kafka: {reason}");
                Ok(())
            }
        }
    }

    /// Whether a broker answers that knows the topic.
    fn knows_topic(&self) -> bool {
        let metadata = self.consumer.client().fetch_metadata(Some(&self.topic), LOOK_INTERVAL);
        metadata.is_ok_and(|metadata| metadata.topics().first().is_some_and(|topic| topic.error().is_none()))
    }

    /// Whether the cluster knows the topic, asked until it does or `limit` is over.
    fn is_there(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline && !self.is_over() {
            self.state.rounds.fetch_add(1, Ordering::Relaxed);
            if self.knows_topic() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        false
    }

    /// The offset to read next is not in the partition, says librdkafka.
    fn lost(&mut self, partition: i32, at: i64, reason: &str) -> anyhow::Result<()> {
        let Some(Reading { next, assignment, .. }) = self.reading.get(&partition).copied() else {
            return Ok(());
        };
        let made_anew = self.starts.is_made_anew(&self.consumer);
        let (low, high) = self.range(partition)?;
        if !made_anew && at >= 0 && at != next && (low..=high).contains(&next) {
            // It asked for another offset than we did.
            tracing::warn!(
                "{}/{partition}: {reason}, at offset {at} out of nowhere; going on from {next}",
                self.topic
            );
            return self.go_on_from(partition, next);
        }
        let anew = if made_anew { "the topic was made anew, and " } else { "" };
        let what = format!("{anew}it holds {low} to {high} now ({reason})");
        let lost_offsets = LostOffsets { topic: self.topic.clone(), partition, next, what };
        if self.starts.on_lost == OnLostOffsets::Stop {
            return Err(lost(&lost_offsets.into()));
        }
        tracing::error!("{lost_offsets}; going on from {low}");
        // What was read before belongs to the assignment that ends here, and goes out under it.
        while !self.collect.is_empty() && !self.is_over() && !self.send_if_room() {
            self.wait_for_room()?;
        }
        // While there was no room, a rebalance may have taken the partition away.
        if self.reading.get(&partition).is_none_or(|reading| reading.assignment != assignment) {
            return Ok(());
        }
        let assignment = self.offsets.assign(partition, low, false);
        self.reading.insert(partition, Reading::at(assignment, low));
        self.go_on_from(partition, low)
    }

    /// The first and the next offset of a partition, asked for until the cluster answers.
    fn range(&self, partition: i32) -> anyhow::Result<(i64, i64)> {
        let deadline = Instant::now() + START_LIMIT.min(self.max_poll_interval / 2);
        loop {
            self.state.rounds.fetch_add(1, Ordering::Relaxed);
            match self.starts.range(&self.consumer, partition) {
                Err(error) if Instant::now() < deadline && !self.is_over() => {
                    tracing::warn!("trying again: {error:#}")
                }
                answer => return answer,
            }
            std::thread::sleep(Duration::from_millis(300));
        }
    }

    /// Has an assigned partition read from elsewhere.
    fn go_on_from(&mut self, partition: i32, offset: i64) -> anyhow::Result<()> {
        let deadline = Instant::now() + SEEK_LIMIT;
        loop {
            let sought =
                self.consumer.seek(&self.topic, partition, Offset::Offset(offset), Duration::from_secs(1));
            match sought {
                Ok(()) => return Ok(()),
                Err(error) if Instant::now() < deadline => {
                    tracing::debug!("{}/{partition} cannot go on from {offset} yet: {error}", self.topic);
                    std::thread::sleep(Duration::from_millis(50));
                }
                Err(_) => break,
            }
        }
        // A partition that has come to a stop takes no seek.
        match self.consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => {
                let one = list(&self.topic, [(partition, offset)])?;
                self.consumer.incremental_unassign(&one)?;
                self.consumer.incremental_assign(&one)?;
            }
            _ => {
                let all = self.reading.iter().map(|(number, reading)| {
                    (*number, if *number == partition { offset } else { reading.next })
                });
                self.consumer.assign(&list(&self.topic, all)?)?;
            }
        }
        Ok(())
    }

    /// A partition may have a batch that cannot be read: it is paused while that is looked into.
    fn suspect(&mut self, partition: i32, reason: &str) -> anyhow::Result<()> {
        let Some(Reading { next, .. }) = self.reading.get(&partition).copied() else { return Ok(()) };
        if self.searches.contains_key(&partition) {
            return Ok(());
        }
        tracing::warn!(
            "{}/{partition} cannot be read from offset {next} on, looking into it: {reason}",
            self.topic
        );
        self.consumer.pause(&list(&self.topic, [(partition, 0)])?).context("pausing a partition")?;
        self.searches.insert(partition, None);
        self.start_searches()
    }

    /// Starts as many searches as there may be at once.
    fn start_searches(&mut self) -> anyhow::Result<()> {
        let free = MAX_SEARCHES.saturating_sub(self.searches.values().flatten().count());
        for (partition, search) in self.searches.iter_mut().filter(|(_, search)| search.is_none()).take(free)
        {
            if let Some(reading) = self.reading.get(partition) {
                *search = Some(Search::start(&self.client, &self.topic, *partition, reading.next)?);
            }
        }
        Ok(())
    }

    /// After any trouble the topic may be another one, with more records than this member had read of the last.
    fn notice_a_topic_made_anew(&mut self) -> anyhow::Result<()> {
        if !std::mem::take(&mut self.check_topic_id) || !self.starts.is_made_anew(&self.consumer) {
            return Ok(());
        }
        let partitions: Vec<i32> = self.reading.keys().copied().collect();
        for partition in partitions {
            self.lost(partition, -1, "its id has changed")?;
        }
        self.starts.forget_the_last_topic();
        Ok(())
    }

    /// Partitions that have records and give none.
    fn find_silent(&mut self) -> anyhow::Result<()> {
        // Where records wait to be taken, a partition may be quiet because its turn has not come.
        let drained = std::mem::take(&mut self.drained);
        if self.state.trouble().is_some() || self.paused || !drained {
            self.reading.values_mut().for_each(|reading| reading.seen.1 = 0);
            return Ok(());
        }
        let ends: BTreeMap<i32, i64> = self
            .state
            .partitions()
            .iter()
            .filter_map(|(partition, state)| Some((*partition, state.high_watermark?)))
            .collect();
        let mut silent = Vec::new();
        for (partition, reading) in &mut self.reading {
            let looks = if reading.seen.0 == reading.next { reading.seen.1 + 1 } else { 0 };
            reading.seen = (reading.next, looks);
            let end = ends.get(partition).copied().unwrap_or_default();
            if looks >= SILENT_LOOKS && end > reading.next.max(reading.quiet_until) {
                reading.seen.1 = 0;
                silent.push(*partition);
            }
        }
        for partition in silent {
            self.suspect(partition, "it has records and gives none")?;
        }
        Ok(())
    }

    /// Goes on where a search has ended: behind what is broken, or as before.
    fn end_searches(&mut self) -> anyhow::Result<()> {
        let ended: Vec<_> = self
            .searches
            .iter()
            .filter_map(|(partition, search)| Some((*partition, search.as_ref()?.found()?)))
            .collect();
        for (partition, found) in ended {
            self.searches.remove(&partition);
            let Some(reading) = self.reading.get_mut(&partition) else { continue };
            match found {
                Ok(Some(Broken { first, end, error })) => {
                    reading.next = end;
                    self.collect.add_broken(partition, reading.assignment, (first, end - 1), &error);
                    self.batch_since.get_or_insert_with(Instant::now);
                }
                Ok(None) => {
                    let state = self.state.partitions().get(&partition).copied();
                    reading.quiet_until = state.and_then(|state| state.high_watermark).unwrap_or_default();
                }
                Err(error) => tracing::warn!("{}/{partition}: trying again: {error:#}", self.topic),
            }
            let next = reading.next;
            self.go_on_from(partition, next)?;
            self.consumer.resume(&list(&self.topic, [(partition, 0)])?).context("resuming a partition")?;
        }
        self.start_searches()
    }

    /// A record came whose offset was passed already: said twice, or another record in a topic made anew.
    fn went_back(&mut self, partition: i32, offset: i64) -> anyhow::Result<()> {
        let (_, high) = self.range(partition)?;
        match self.reading.get(&partition) {
            Some(reading) if high < reading.next || self.starts.is_made_anew(&self.consumer) => {
                self.lost(partition, offset, "an offset came that was passed already")
            }
            _ => Ok(()),
        }
    }
}

/// Commits what is done, and waits until the group has it, a few seconds at most.
///
/// # Errors
/// Why the group does not have it, as far as is known; it is said already.
fn commit_now(
    consumer: &BaseConsumer<ClientEvents>,
    offsets: &Offsets,
    starts: &Starts,
    state: &State,
) -> Result<(), RDKafkaErrorCode> {
    let moved = offsets.take_committable();
    if moved.is_empty() {
        return Ok(());
    }
    let waiting = || {
        state.rounds.fetch_add(1, Ordering::Relaxed);
    };
    let committed = commit_list(&starts.topic, &moved, starts)
        .map_err(|error| error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail))
        .and_then(|list| commit_within(consumer, &list, COMMIT_NOW_LIMIT, &waiting));
    match committed {
        Ok(()) => {
            let mut partitions = state.partitions();
            for (partition, offset) in moved {
                if let Some(state) = partitions.get_mut(&partition) {
                    state.committed = offset;
                }
            }
        }
        Err(error) => {
            for (partition, _) in moved {
                offsets.not_committed(partition);
            }
            // The group has moved on to its next assignment; there the start is found again.
            if is_rebalancing(error) {
                tracing::debug!("offsets not committed, the group is rebalancing: {error}");
            } else {
                tracing::warn!("offsets not committed yet: {error}");
            }
        }
    }
    committed
}

fn commit_list(
    topic: &str,
    offsets: &[(i32, i64)],
    starts: &Starts,
) -> Result<TopicPartitionList, KafkaError> {
    let list = list(topic, offsets.iter().copied())?;
    let metadata = starts.metadata();
    for mut element in list.elements() {
        element.set_metadata(&metadata);
    }
    Ok(list)
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

/// What to do about it.
fn lost(error: &anyhow::Error) -> anyhow::Error {
    anyhow::anyhow!(
        "{error}. Records may be missing downstream. Start again with --on-lost-offsets earliest to go on from the \
         beginning, or set the group's offsets with kafka-consumer-groups --reset-offsets"
    )
}

/// Whether the group has already moved on to its next assignment.
fn is_rebalancing(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::RebalanceInProgress
            | RDKafkaErrorCode::IllegalGeneration
            | RDKafkaErrorCode::UnknownMemberId
    )
}
