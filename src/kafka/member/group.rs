//! What the group asks of its member: partitions that come and go, and the offsets committed for them.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, Consumer as _, RebalanceProtocol};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::trouble::what_to_do;
use super::{Member, Reading, START_LIMIT, list};
use crate::kafka::client::ClientEvents;
use crate::kafka::consumer::{Collect, PartitionState, State};
use crate::kafka::events::commit_within;
use crate::kafka::offsets::Offsets;
use crate::kafka::start::{LostOffsets, Start, StartAt, Starts};

/// One line about commits that fail, in this time.
const LOG_INTERVAL: Duration = Duration::from_secs(30);
/// How long a revoke waits for records in flight; past it they are delivered again by the partition's next owner.
const REVOKE_LIMIT: Duration = Duration::from_secs(30);
/// The same once the process is to stop: what is done by then still has to be committed.
const STOPPED_REVOKE_LIMIT: Duration = Duration::from_secs(3);
/// How long a commit is waited for where nothing can go on without it.
pub(super) const COMMIT_NOW_LIMIT: Duration = Duration::from_secs(5);
/// The same while something else is waited for, too.
const COMMIT_WHILE_WAITING_LIMIT: Duration = Duration::from_secs(1);
/// An asynchronous commit that was not answered by then is made again.
const COMMIT_LIMIT: Duration = Duration::from_secs(10);

impl<C: Collect> Member<C> {
    pub(super) fn assign(&mut self, partitions: &[i32]) -> anyhow::Result<()> {
        let starts = self.find_starts(partitions)?;
        for StartAt { partition, offset, committed } in &starts {
            let assignment = self.offsets.assign(*partition, *offset, *committed);
            self.reading.insert(*partition, Reading { assignment, next: *offset });
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
            match commit_now(&self.consumer, &self.offsets, &self.starts, &self.state, COMMIT_NOW_LIMIT) {
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
                Err(error) if error.is::<LostOffsets>() => return Err(what_to_do(&error)),
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

    pub(super) fn revoke(&mut self, partitions: &[i32]) -> anyhow::Result<()> {
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
            let _ = commit_now(&self.consumer, &self.offsets, &self.starts, &self.state, COMMIT_NOW_LIMIT);
            self.state.revoked.fetch_add(1, Ordering::Relaxed);
        }
        for partition in partitions {
            self.offsets.revoke(*partition);
            self.reading.remove(partition);
            self.forget_corrupt(*partition);
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
    fn wait_for(&mut self, revoked: &[i32]) -> u64 {
        self.forget_unanswered_commit();
        let limit = Instant::now() + REVOKE_LIMIT.min(self.max_poll_interval / 2);
        let mut stopped = None;
        let deadline = || {
            if self.stop.is_cancelled() {
                stopped.get_or_insert_with(|| Instant::now() + STOPPED_REVOKE_LIMIT);
            }
            stopped.map_or(limit, |stopped| limit.min(stopped))
        };
        commit_until_idle(&self.consumer, &self.offsets, &self.starts, &self.state, Some(revoked), deadline)
    }

    /// Sends what is done and not committed yet, unless a commit is under way.
    pub(super) fn commit(&mut self) {
        if self.committing.is_some_and(|since| since.elapsed() < COMMIT_LIMIT) {
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
            Ok(()) => self.committing = Some(Instant::now()),
            Err(error) => {
                tracing::debug!("commit not sent: {error}");
                for (partition, _) in moved {
                    self.offsets.not_committed(partition);
                }
            }
        }
    }

    /// What a commit without an answer holds counts as not committed: the next one has it again.
    pub(super) fn forget_unanswered_commit(&mut self) {
        if self.committing.take().is_some() {
            for partition in self.reading.keys() {
                self.offsets.not_committed(*partition);
            }
        }
    }

    pub(super) fn committed(&mut self, partitions: &[(i32, i64, Option<RDKafkaErrorCode>)]) {
        self.committing = None;
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
}

/// Waits until nothing of these partitions is in flight, or of all where none are named; at most until the deadline, which
/// may move. Returns how many records still are.
///
/// What gets done meanwhile is committed: the group may lose patience.
pub(super) fn commit_until_idle(
    consumer: &BaseConsumer<ClientEvents>,
    offsets: &Offsets,
    starts: &Starts,
    state: &State,
    partitions: Option<&[i32]>,
    mut deadline: impl FnMut() -> Instant,
) -> u64 {
    let mut next_commit = Instant::now();
    loop {
        let left = offsets.wait_idle(partitions, Duration::from_millis(20));
        state.rounds.fetch_add(1, Ordering::Relaxed);
        if left == 0 || Instant::now() >= deadline() {
            return left;
        }
        if Instant::now() >= next_commit {
            let committed = commit_now(consumer, offsets, starts, state, COMMIT_WHILE_WAITING_LIMIT);
            let pause = if committed.is_ok() { Duration::ZERO } else { COMMIT_WHILE_WAITING_LIMIT };
            next_commit = Instant::now() + pause;
        }
    }
}

/// Commits what is done, and waits until the group has it, at most `limit`.
///
/// # Errors
/// Why the group does not have it, as far as is known; it is said already.
pub(super) fn commit_now(
    consumer: &BaseConsumer<ClientEvents>,
    offsets: &Offsets,
    starts: &Starts,
    state: &State,
    limit: Duration,
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
        .and_then(|list| commit_within(consumer, &list, limit, &waiting));
    match committed {
        Ok(()) => {
            tracing::debug!("committed {moved:?}");
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

/// Whether the group has already moved on to its next assignment.
fn is_rebalancing(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::RebalanceInProgress
            | RDKafkaErrorCode::IllegalGeneration
            | RDKafkaErrorCode::UnknownMemberId
    )
}
