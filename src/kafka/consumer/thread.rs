//! The consumer's thread: polls records and events, hands batches over, sends commits, and leaves the group at the end.
//!
//! It polls events whatever happens downstream, which is what `max.poll.interval.ms` asks for. Where the role does not keep
//! up, records wait in librdkafka's queue, which has bounds of its own, and nothing is paused.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rdkafka::consumer::Consumer as _;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::super::client::wait_for_topic;
use super::super::native::{Event, Failure};
use super::super::offsets::Offsets;
use super::super::start_offsets::{Start, StartOffsets};
use super::assignment::{Arrival, Assignment};
use super::batch_sender::BatchSender;
use super::commit::{COMMIT_TIMEOUT, Committer, commit_now, commit_until_idle};
use super::config::ConsumerConfig;
use super::corrupt::CorruptPartitions;
use super::group_client::GroupClient;
use super::lost_offsets::Lost;
use super::state::State;

/// How long a poll may wait, which is also how soon a stop is seen.
const POLL: Duration = Duration::from_millis(50);
/// How often the records of each partition are routed to our queue: librdkafka may take the route away.
const ROUTE_INTERVAL: Duration = Duration::from_millis(100);
/// How often lags and the broker's presence are looked at.
pub(super) const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// How long a stop waits for records in flight.
const STOP_TIMEOUT: Duration = Duration::from_secs(7);
/// How long the start of new partitions is asked for; well under `max.poll.interval.ms`, 300 s by default.
pub(super) const START_TIMEOUT: Duration = Duration::from_secs(60);

/// A member of the group, as its thread has it.
pub(super) struct Poller {
    pub(super) group: GroupClient,
    pub(super) assignment: Assignment,
    pub(super) starts: StartOffsets,
    pub(super) committer: Committer,
    pub(super) corrupt: CorruptPartitions,
    pub(super) sender: BatchSender,
    pub(super) offsets: Arc<Offsets>,
    pub(super) state: Arc<State>,
    pub(super) stop: CancellationToken,
    /// The kafka-env file's name, for messages.
    pub(super) source: String,
    pub(super) max_poll_interval: Duration,
    /// Whether the topic may have been deleted and created again.
    pub(super) check_topic_id: bool,
    /// What may move a partition elsewhere, once the batch is handed over: what was read before belongs to the assignment that
    /// ends then.
    pub(super) moves: VecDeque<Move>,
    runtime: tokio::runtime::Handle,
    pub(super) turns: Turns,
}

/// What may move a partition elsewhere.
pub(super) enum Move {
    Lost(Lost),
    TopicRecreated,
    WentBack { partition: i32, offset: i64 },
}

/// Whose turn it was, and what is due.
pub(super) struct Turns {
    /// The partition that was last asked for records, and the one that was last asked for its end.
    asked: i32,
    pub(super) looked: i32,
    next_look: Instant,
    next_route: Instant,
    /// Since when the batch waits for room downstream.
    pub(super) out_of_room: Option<Instant>,
}

impl Poller {
    /// Waits for the topic and joins the group.
    ///
    /// # Errors
    /// Properties that librdkafka refuses, no broker or topic within the configured time, or a stop.
    pub(super) fn join(
        config: ConsumerConfig,
        offsets: Arc<Offsets>,
        state: Arc<State>,
        sender: BatchSender,
        runtime: tokio::runtime::Handle,
        stop: CancellationToken,
    ) -> anyhow::Result<Self> {
        let start = Start::from_property(config.client.get("auto.offset.reset"));
        let client = config.client();
        let (commit_interval, max_poll_interval) = (config.commit_interval(), config.max_poll_interval());
        let ConsumerConfig { topic, source, timeout, reset, on_lost_offsets, skip_corrupt, .. } = config;
        let group = GroupClient::new(&client, &topic, &source)?;
        // Nothing is subscribed yet, so a poll brings events alone.
        let hear_events = |time: Duration| {
            let until = Instant::now() + time;
            while let Some(left) = until.checked_duration_since(Instant::now()) {
                group.events.poll(left);
            }
        };
        let heard = group.consumer.context().clone();
        wait_for_topic(group.client(), hear_events, &heard, &topic, &source, timeout, &stop)?;
        group.consumer.subscribe(&[&topic]).with_context(|| format!("subscribing to {topic}"))?;
        let now = Instant::now();
        Ok(Self {
            group,
            assignment: Assignment::default(),
            starts: StartOffsets::new(topic, start, on_lost_offsets, reset),
            committer: Committer::new(commit_interval, now),
            corrupt: CorruptPartitions::new(skip_corrupt.then_some(client)),
            sender,
            offsets,
            state,
            stop,
            source,
            max_poll_interval,
            check_topic_id: false,
            moves: VecDeque::new(),
            runtime,
            turns: Turns {
                asked: -1,
                looked: -1,
                next_look: now + LOOK_INTERVAL,
                next_route: now,
                out_of_room: None,
            },
        })
    }

    /// Polls until stopped, then lets the role finish, commits and leaves the group. Any other end is reported first.
    pub(super) fn run(mut self, failure: oneshot::Sender<anyhow::Error>) {
        let ended = self.poll_until_stopped();
        let failed = ended.is_err();
        if let Err(error) = ended {
            // Nobody listens any more only where the role is gone already.
            let _ = failure.send(error);
        }
        self.committer.forget_unanswered(&self.offsets);
        let Self { group, offsets, sender, starts, state, .. } = self;
        drop(sender);
        let metadata = starts.metadata();
        let deadline = Instant::now() + STOP_TIMEOUT;
        let left = commit_until_idle(&group, &offsets, &metadata, &state, None, || deadline);
        if left > 0 {
            tracing::warn!(records = left, "stopped with records in flight; they will be delivered again");
        }
        // What is not committed is delivered again by the next start.
        let _ = commit_now(&group, &offsets, &metadata, &state, COMMIT_TIMEOUT);
        // A rebalance that was not answered would hold up the good-bye.
        if failed && let Err(error) = group.unassign_all() {
            tracing::debug!("giving partitions up: {error}");
        }
        // Leaves the group; the assignment is given up on the way, with nothing left to say about it.
        drop(group);
    }

    fn poll_until_stopped(&mut self) -> anyhow::Result<()> {
        while !self.is_over() {
            self.tick()?;
            let due_in = self.sender.due_in(Instant::now());
            let is_due = due_in.is_some_and(|wait| wait.is_zero() || !self.moves.is_empty());
            if is_due && !self.sender.send(&self.offsets) {
                self.turns.out_of_room.get_or_insert_with(Instant::now);
                self.wait_for_room()?;
                continue;
            }
            self.turns.out_of_room = None;
            self.make_moves()?;
            self.poll(if is_due { POLL } else { due_in.unwrap_or(POLL).min(POLL) })?;
        }
        Ok(())
    }

    pub(super) fn is_over(&self) -> bool {
        self.stop.is_cancelled() || self.sender.is_closed()
    }

    /// Does what is due now and then, whatever else goes on.
    fn tick(&mut self) -> anyhow::Result<()> {
        self.state.come_round();
        let now = Instant::now();
        let moved = self.committer.on_tick(now, &self.offsets);
        if !moved.is_empty()
            && let Err(error) = self.group.commit(&moved, &self.starts.metadata())
        {
            tracing::debug!("commit not sent: {error}");
            self.committer.forget_unanswered(&self.offsets);
        }
        if now >= self.turns.next_route {
            self.turns.next_route = now + ROUTE_INTERVAL;
            for (partition, _) in self.assignment.positions() {
                self.group.records.route(partition);
            }
        }
        if now >= self.turns.next_look {
            self.turns.next_look = now + LOOK_INTERVAL;
            self.look();
            if self.detect_recreated_topic() {
                self.moves.push_back(Move::TopicRecreated);
            }
        }
        if self.corrupt.is_empty() { Ok(()) } else { self.end_searches() }
    }

    /// Waits until there is room downstream, at most [`POLL`], and follows the group meanwhile.
    fn wait_for_room(&mut self) -> anyhow::Result<()> {
        if self.sender.wait_for_room(&self.runtime, POLL) {
            return Ok(());
        }
        while let Some(event) = self.group.events.poll(Duration::ZERO) {
            self.on_event(event)?;
        }
        Ok(())
    }

    /// Takes the records that are there, up to a batch, and one event; waits at most `wait` for either.
    fn poll(&mut self, wait: Duration) -> anyhow::Result<()> {
        // The next partition each time: the way to all records must not depend on the state of one.
        let wait_for_event = match self.assignment.next_after(self.turns.asked, |_| true) {
            Some(partition) => {
                self.turns.asked = partition;
                if let Some(failure) = self.take_records(partition, wait) {
                    self.on_failure(failure)?;
                }
                Duration::ZERO
            }
            // Without partitions only an event can come.
            None => wait,
        };
        match self.group.events.poll(wait_for_event) {
            Some(event) => self.on_event(event),
            None => Ok(()),
        }
    }

    /// Adds records to the batch until it is full, or something is there instead of a record; returns the error, if that is it.
    fn take_records(&mut self, partition: i32, wait: Duration) -> Option<Failure> {
        let Self { group, assignment, corrupt, sender, moves, .. } = self;
        let (mut records, mut failure) = (0, None);
        group.records.take(partition, wait, &mut |fetched| {
            failure = fetched.failure();
            if failure.is_some() {
                return ControlFlow::Break(());
            }
            let (partition, offset) = fetched.position();
            // What comes behind a corrupt batch may come from anywhere.
            if !corrupt.is_empty() && corrupt.contains(partition) {
                return ControlFlow::Continue(());
            }
            match assignment.arrive(partition, offset) {
                Arrival::NotAssigned => return ControlFlow::Continue(()),
                Arrival::WentBack => {
                    moves.push_back(Move::WentBack { partition, offset });
                    return ControlFlow::Break(());
                }
                Arrival::Read { assignment } => sender.add(fetched, assignment),
            }
            records += 1;
            if sender.is_full() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        self.state.records.fetch_add(records, Ordering::Relaxed);
        failure
    }

    fn on_event(&mut self, event: Event) -> anyhow::Result<()> {
        match event {
            Event::Failed(failure) => return self.on_failure(failure),
            Event::Assign(partitions) => return self.on_assign(&partitions),
            Event::Revoke(partitions) => return self.on_revoke(&partitions),
            Event::Committed(answer) => self.on_committed(&answer),
            Event::Handled => {}
        }
        Ok(())
    }

    /// To be called with an empty batch where there are any.
    fn make_moves(&mut self) -> anyhow::Result<()> {
        while let Some(next) = self.moves.pop_front() {
            match next {
                Move::Lost(lost) => self.on_lost(lost)?,
                Move::TopicRecreated => self.on_recreated_topic()?,
                Move::WentBack { partition, offset } => self.on_went_back(partition, offset)?,
            }
        }
        Ok(())
    }
}
