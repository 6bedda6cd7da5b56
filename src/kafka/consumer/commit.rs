//! Commits what is accepted downstream: in intervals while records move, and at once where nothing can go on without it.

use std::time::{Duration, Instant};

use rdkafka::error::RDKafkaErrorCode;

use super::super::offsets::Offsets;
use super::group_client::GroupClient;
use super::state::State;
use super::thread::Poller;

/// How long a commit is waited for where nothing can go on without it.
pub(super) const COMMIT_TIMEOUT: Duration = Duration::from_secs(5);
/// The same while something else is waited for, too.
const COMMIT_WHILE_WAITING_TIMEOUT: Duration = Duration::from_secs(1);
/// An asynchronous commit that was not answered by then is sent again.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// One line about commits that fail, in this time.
const LOG_INTERVAL: Duration = Duration::from_secs(30);

/// A partition and the next offset to read of it.
pub(super) type NextOffset = (i32, i64);

/// Decides when to send which offsets, and what an answer means. It sends nothing itself.
#[derive(Debug)]
pub(super) struct Committer {
    interval: Duration,
    next: Instant,
    unanswered: Option<Unanswered>,
    warned: Option<Instant>,
}

#[derive(Debug)]
struct Unanswered {
    since: Instant,
    partitions: Vec<i32>,
}

/// What an answer means.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Answer {
    /// What the group has by now.
    pub(super) committed: Vec<NextOffset>,
    /// Why a partition was not committed, where that is worth a line now.
    pub(super) failed: Option<(NextOffset, RDKafkaErrorCode)>,
}

impl Committer {
    /// The first commit is due `interval` after `now`.
    pub(super) fn new(interval: Duration, now: Instant) -> Self {
        Self { interval, next: now + interval, unanswered: None, warned: None }
    }

    /// Returns the offsets to send now: nothing before the interval is over, while a commit has no answer yet, and where
    /// nothing has moved.
    pub(super) fn on_tick(&mut self, now: Instant, offsets: &Offsets) -> Vec<NextOffset> {
        if now < self.next {
            return Vec::new();
        }
        self.next = now + self.interval;
        if self.unanswered.as_ref().is_some_and(|commit| now.duration_since(commit.since) < ANSWER_TIMEOUT) {
            return Vec::new();
        }
        self.forget_unanswered(offsets);
        let moved = offsets.take_committable();
        if !moved.is_empty() {
            let partitions = moved.iter().map(|(partition, _)| *partition).collect();
            self.unanswered = Some(Unanswered { since: now, partitions });
        }
        moved
    }

    /// Notes that offsets without an answer, or that could not be sent, are not committed: the next commit has them again.
    pub(super) fn forget_unanswered(&mut self, offsets: &Offsets) {
        for partition in self.unanswered.take().into_iter().flat_map(|commit| commit.partitions) {
            offsets.not_committed(partition);
        }
    }

    /// Takes the answer to a commit: each offset with its error, if any.
    pub(super) fn on_answer(
        &mut self,
        now: Instant,
        answer: &[(i32, i64, Option<RDKafkaErrorCode>)],
        offsets: &Offsets,
    ) -> Answer {
        self.unanswered = None;
        let mut result = Answer::default();
        for &(partition, offset, error) in answer {
            let Some(error) = error else {
                result.committed.push((partition, offset));
                continue;
            };
            offsets.not_committed(partition);
            let is_quiet = self.warned.is_some_and(|at| now.duration_since(at) < LOG_INTERVAL);
            if !is_rebalancing(error) && !is_quiet {
                self.warned = Some(now);
                result.failed = Some(((partition, offset), error));
            }
        }
        result
    }
}

impl Poller {
    pub(super) fn on_committed(&mut self, answer: &[(i32, i64, Option<RDKafkaErrorCode>)]) {
        let Answer { committed, failed } = self.committer.on_answer(Instant::now(), answer, &self.offsets);
        self.state.committed(&committed);
        if !committed.is_empty() {
            *self.state.trouble() = None;
        }
        if let Some(((partition, offset), error)) = failed {
            tracing::warn!(partition, offset, "not committed, trying again: {error}");
            *self.state.trouble() = Some(format!("offsets cannot be committed: {error}"));
        }
    }
}

/// Whether the group has already moved on to its next assignment.
pub(super) fn is_rebalancing(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::RebalanceInProgress
            | RDKafkaErrorCode::IllegalGeneration
            | RDKafkaErrorCode::UnknownMemberId
    )
}

/// Commits what is accepted, with `metadata` beside each offset, and waits for the answer, at most `limit`.
///
/// # Errors
/// Why the group does not have it, as far as is known; it is logged already.
pub(super) fn commit_now(
    group: &GroupClient,
    offsets: &Offsets,
    metadata: &str,
    state: &State,
    limit: Duration,
) -> Result<(), RDKafkaErrorCode> {
    let moved = offsets.take_committable();
    if moved.is_empty() {
        return Ok(());
    }
    let committed = group.commit_within(&moved, metadata, limit, &|| state.come_round());
    match committed {
        Ok(()) => {
            tracing::debug!("committed {moved:?}");
            state.committed(&moved);
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

/// Waits until nothing of these partitions is in flight, or of all where none are named; at most until the deadline, which
/// may move. Returns how many records still are. What is accepted meanwhile is committed: the group may lose patience.
pub(super) fn commit_until_idle(
    group: &GroupClient,
    offsets: &Offsets,
    metadata: &str,
    state: &State,
    partitions: Option<&[i32]>,
    mut deadline: impl FnMut() -> Instant,
) -> u64 {
    let mut next_commit = Instant::now();
    loop {
        let left = offsets.wait_idle(partitions, Duration::from_millis(20));
        state.come_round();
        if left == 0 || Instant::now() >= deadline() {
            return left;
        }
        if Instant::now() >= next_commit {
            let committed = commit_now(group, offsets, metadata, state, COMMIT_WHILE_WAITING_TIMEOUT);
            let pause = if committed.is_ok() { Duration::ZERO } else { COMMIT_WHILE_WAITING_TIMEOUT };
            next_commit = Instant::now() + pause;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::Receipt;

    const INTERVAL: Duration = Duration::from_millis(100);

    struct Stand {
        start: Instant,
        offsets: Offsets,
        committer: Committer,
        next: i64,
    }

    impl Stand {
        fn new() -> Self {
            let start = Instant::now();
            let offsets = Offsets::default();
            assert_eq!(offsets.assign(0, 0, true), 1);
            Self { start, offsets, committer: Committer::new(INTERVAL, start), next: 0 }
        }

        /// One more record is accepted.
        fn accept(&mut self) {
            let receipt = Receipt::one(0, 1, self.next);
            assert!(self.offsets.deliver(&receipt));
            self.offsets.done(&[receipt]);
            self.next += 1;
        }

        fn tick(&mut self, at_ms: u64) -> Vec<NextOffset> {
            self.committer.on_tick(self.start + Duration::from_millis(at_ms), &self.offsets)
        }

        fn answer(&mut self, at_ms: u64, offset: i64, error: Option<RDKafkaErrorCode>) -> Answer {
            let now = self.start + Duration::from_millis(at_ms);
            self.committer.on_answer(now, &[(0, offset, error)], &self.offsets)
        }
    }

    #[test]
    fn what_is_accepted_is_sent_once_in_an_interval() {
        let mut stand = Stand::new();
        stand.accept();
        assert_eq!(stand.tick(99), []);
        assert_eq!(stand.tick(100), [(0, 1)]);
        assert_eq!(stand.answer(105, 1, None), Answer { committed: vec![(0, 1)], failed: None });
        assert_eq!(stand.tick(300), [], "nothing has moved");
        stand.accept();
        stand.accept();
        assert_eq!(stand.tick(399), []);
        assert_eq!(stand.tick(400), [(0, 3)]);
    }

    #[test]
    fn a_commit_without_an_answer_is_sent_again_after_a_while() {
        let mut stand = Stand::new();
        stand.accept();
        assert_eq!(stand.tick(100), [(0, 1)]);
        stand.accept();
        assert_eq!(stand.tick(10_000), [], "one at a time");
        assert_eq!(stand.tick(10_200), [(0, 2)]);
        stand.committer.forget_unanswered(&stand.offsets);
        assert_eq!(stand.tick(10_300), [(0, 2)], "could not be sent");
    }

    #[test]
    fn what_was_not_committed_is_sent_again_and_logged_once_in_thirty_seconds() {
        let mut stand = Stand::new();
        stand.accept();
        let mut told = 0;
        for round in 1..=400 {
            assert_eq!(stand.tick(round * 100), [(0, 1)], "{round}");
            let error = Some(RDKafkaErrorCode::CoordinatorNotAvailable);
            let answer = stand.answer(round * 100 + 1, 1, error);
            assert_eq!(answer.committed, []);
            told += usize::from(answer.failed.is_some());
        }
        assert_eq!(told, 2, "40 s");
        stand.tick(50_000);
        let rebalancing = stand.answer(90_000, 1, Some(RDKafkaErrorCode::IllegalGeneration));
        assert_eq!(rebalancing, Answer::default(), "a rebalance is no failure");
        assert_eq!(stand.tick(90_100), [(0, 1)]);
    }
}
