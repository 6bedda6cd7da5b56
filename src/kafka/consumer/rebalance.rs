//! Rebalances: where assigned partitions start, and what is waited for before partitions are given up.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::bail;
use rdkafka::consumer::Consumer as _;
use rdkafka::error::KafkaError;

use super::super::start_offsets::{LostOffsets, Start, StartOffset};
use super::assignment::Reading;
use super::commit::{COMMIT_TIMEOUT, commit_now, commit_until_idle, is_rebalancing};
use super::errors::with_advice;
use super::state::PartitionState;
use super::thread::{Poller, START_TIMEOUT};

/// How long a revoke waits for records in flight; past it they are delivered again by the partition's next owner.
const REVOKE_TIMEOUT: Duration = Duration::from_secs(30);
/// The same once the process is to stop: what is accepted by then still has to be committed.
const STOPPED_REVOKE_TIMEOUT: Duration = Duration::from_secs(3);
/// Between two tries of a question to the cluster.
const RETRY_INTERVAL: Duration = Duration::from_millis(300);

impl Poller {
    pub(super) fn on_assign(&mut self, partitions: &[i32]) -> anyhow::Result<()> {
        let starts = self.find_starts(partitions)?;
        for StartOffset { partition, offset, committed } in &starts {
            let assignment = self.offsets.assign(*partition, *offset, *committed);
            self.assignment.insert(*partition, Reading { assignment, next: *offset });
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
        self.group.assign(&starts.iter().map(|start| (start.partition, start.offset)).collect::<Vec<_>>())?;
        self.state.assigned.fetch_add(1, Ordering::Relaxed);
        self.state.joined.store(true, Ordering::Relaxed);
        tracing::info!(?partitions, "partitions assigned");
        Ok(())
    }

    /// Commits where new partitions start, and tries until the group has it, or is about to assign them again.
    fn pin(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + START_TIMEOUT.min(self.max_poll_interval / 2);
        loop {
            let metadata = self.starts.metadata();
            match commit_now(&self.group, &self.offsets, &metadata, &self.state, COMMIT_TIMEOUT) {
                Ok(()) => return Ok(()),
                Err(error) if is_rebalancing(error) || self.is_over() => return Ok(()),
                Err(error) if Instant::now() > deadline => {
                    bail!("where {} starts cannot be committed: {error}", self.group.topic)
                }
                Err(_) => std::thread::sleep(RETRY_INTERVAL),
            }
        }
    }

    /// Asks until the cluster answers: in the middle of a rebalance a coordinator or a leader may be moving, too.
    fn find_starts(&mut self, partitions: &[i32]) -> anyhow::Result<Vec<StartOffset>> {
        if partitions.is_empty() {
            return Ok(Vec::new());
        }
        let deadline = Instant::now() + START_TIMEOUT.min(self.max_poll_interval / 2);
        loop {
            match self.starts.find(&self.group.consumer, partitions) {
                Ok(starts) => return Ok(starts),
                Err(error) if error.is::<LostOffsets>() => return Err(with_advice(&error)),
                Err(error) if self.is_over() || Instant::now() > deadline => return Err(error),
                Err(error)
                    if self.starts.start == Start::Refuse && error.downcast_ref::<KafkaError>().is_none() =>
                {
                    return Err(error);
                }
                Err(error) => tracing::warn!("trying again: {error:#}"),
            }
            self.state.come_round();
            std::thread::sleep(RETRY_INTERVAL);
        }
    }

    pub(super) fn on_revoke(&mut self, partitions: &[i32]) -> anyhow::Result<()> {
        // A lost partition already has another owner: nothing that we could commit would count.
        if self.group.consumer.assignment_lost() {
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
            let metadata = self.starts.metadata();
            // What is not committed is delivered again by the partitions' next owner.
            let _ = commit_now(&self.group, &self.offsets, &metadata, &self.state, COMMIT_TIMEOUT);
            self.state.revoked.fetch_add(1, Ordering::Relaxed);
        }
        for partition in partitions {
            self.offsets.revoke(*partition);
            self.assignment.remove(*partition);
            self.forget_corrupt(*partition);
            self.state.partitions().remove(partition);
        }
        self.group.unassign(partitions)?;
        tracing::info!(?partitions, "partitions revoked");
        Ok(())
    }

    /// Waits for what is in flight on these partitions; not as long once the process is to stop.
    fn wait_for(&mut self, revoked: &[i32]) -> u64 {
        self.committer.forget_unanswered(&self.offsets);
        let timeout = REVOKE_TIMEOUT.min(self.max_poll_interval / 2);
        let mut limit = RevokeDeadline { limit: Instant::now() + timeout, stopped: None };
        let deadline = || limit.at(Instant::now(), self.stop.is_cancelled());
        let metadata = self.starts.metadata();
        commit_until_idle(&self.group, &self.offsets, &metadata, &self.state, Some(revoked), deadline)
    }
}

/// Until when a revoke waits for what is in flight.
struct RevokeDeadline {
    limit: Instant,
    /// The same once the process is to stop.
    stopped: Option<Instant>,
}

impl RevokeDeadline {
    /// Returns the deadline as it is now: it moves when the process is to stop, and only then.
    fn at(&mut self, now: Instant, is_stopped: bool) -> Instant {
        if is_stopped {
            self.stopped.get_or_insert(now + STOPPED_REVOKE_TIMEOUT);
        }
        self.stopped.map_or(self.limit, |stopped| self.limit.min(stopped))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revoke_waits_less_once_the_process_is_to_stop() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let mut deadline = RevokeDeadline { limit: start + REVOKE_TIMEOUT, stopped: None };
        assert_eq!(deadline.at(start + second, false), start + REVOKE_TIMEOUT);
        assert_eq!(deadline.at(start + 2 * second, true), start + 2 * second + STOPPED_REVOKE_TIMEOUT);
        assert_eq!(deadline.at(start + 4 * second, true), start + 2 * second + STOPPED_REVOKE_TIMEOUT);
        let mut late = RevokeDeadline { limit: start + REVOKE_TIMEOUT, stopped: None };
        assert_eq!(late.at(start + REVOKE_TIMEOUT - second, true), start + REVOKE_TIMEOUT, "never longer");
    }
}
