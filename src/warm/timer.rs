//! The time limits of one GET's steps, with one timer for all of them: most steps are over long before, and to set a timer
//! and take it back costs as much as to parse a line of headers.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Poll, ready};

use tokio::task::coop::unconstrained;
use tokio::time::{Instant, Sleep};

use super::turns::{LATE, Turn};

/// Runs the steps of one GET, each within its limit and all before the request's deadline. A step that is cut off is
/// dropped; what the steps before it returned is the caller's.
///
/// Where the GET takes long, it gives its place among those of its host to others.
pub(super) struct StepTimer<'a, C: Send + Sync + 'static> {
    turn: &'a Turn<C>,
    deadline: Instant,
    /// Fires at the earliest of what is waited for, or before that.
    sleep: Pin<&'a mut Sleep>,
    /// When the place is given up, or that is tried again; none once it was.
    gives_way_at: Option<Instant>,
}

/// Which time was over first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TimedOut {
    /// The step's own.
    Step,
    /// The request's.
    Deadline,
}

impl<'a, C: Send + Sync + 'static> StepTimer<'a, C> {
    /// `sleep` is one that nobody waits for yet; when it ends does not matter.
    pub(super) fn new(turn: &'a Turn<C>, deadline: Instant, sleep: Pin<&'a mut Sleep>) -> Self {
        Self { turn, deadline, sleep, gives_way_at: Some(turn.began() + LATE) }
    }

    /// Runs a step to its end. `limit` is asked for once, when the step has to wait.
    ///
    /// # Errors
    /// [`TimedOut`] where the step is not done at its limit or the deadline.
    pub(super) async fn run<T>(
        &mut self,
        limit: impl FnOnce() -> Instant,
        mut step: Pin<&mut impl Future<Output = T>>,
    ) -> Result<T, TimedOut> {
        let (mut limit, mut ends_at) = (Some(limit), self.deadline);
        poll_fn(|context| {
            if let Poll::Ready(done) = step.as_mut().poll(context) {
                return Poll::Ready(Ok(done));
            }
            if let Some(limit) = limit.take() {
                ends_at = limit().min(self.deadline);
            }
            loop {
                let wakes_at = self.gives_way_at.map_or(ends_at, |at| at.min(ends_at));
                if self.sleep.is_elapsed() || wakes_at < self.sleep.deadline() {
                    self.sleep.as_mut().reset(wakes_at);
                }
                // A step that used up the task's budget, as a body does that is always there, still has its limits.
                ready!(Pin::new(&mut unconstrained(self.sleep.as_mut())).poll(context));
                let now = Instant::now();
                if now >= ends_at {
                    let is_deadline = ends_at == self.deadline;
                    return Poll::Ready(Err(if is_deadline { TimedOut::Deadline } else { TimedOut::Step }));
                }
                if self.gives_way_at.is_some_and(|at| now >= at) {
                    self.gives_way_at = if self.turn.give_way() { None } else { Some(now + LATE) };
                }
            }
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::time::Duration;

    use tokio::time::sleep_until;
    use url::Url;

    use super::*;
    use crate::warm::turns::Turns;

    const SECOND: Duration = Duration::from_secs(1);

    /// Waits for so many tenths of a second.
    async fn tenths(count: u32) -> u32 {
        tokio::time::sleep(SECOND / 10 * count).await;
        count
    }

    /// Runs steps with these limits and lengths, in tenths of a second, before a deadline; what each came to and when the
    /// last one was over.
    async fn run(deadline: u32, steps: &[(u32, u32)]) -> (Vec<Result<u32, TimedOut>>, u32) {
        let started = Instant::now();
        let deadline = started + SECOND / 10 * deadline;
        let url = Url::parse("https://example.com/").unwrap();
        let turn = Turns::new(|| ()).take(&url, deadline).await.ok().unwrap();
        let sleep = pin!(sleep_until(started));
        let mut timer = StepTimer::new(&turn, deadline, sleep);
        let mut ended = Vec::new();
        for &(limit, length) in steps {
            let limit = || Instant::now() + SECOND / 10 * limit;
            ended.push(timer.run(limit, pin!(tenths(length))).await);
        }
        (ended, (started.elapsed().as_secs_f64() * 10.0).round() as u32)
    }

    #[tokio::test(start_paused = true)]
    async fn step_ends_at_its_limit_or_at_the_deadline() {
        let (step, deadline) = (Err(TimedOut::Step), Err(TimedOut::Deadline));
        for (deadline, steps, ended) in [
            (100, &[(50, 3)][..], (vec![Ok(3)], 3)),
            (100, &[(50, 60)], (vec![step], 50)),
            (100, &[(3, 60)], (vec![step], 3)),
            (100, &[(200, 130)], (vec![deadline], 100)),
            (5, &[(200, 130)], (vec![deadline], 5)),
            (100, &[(50, 40), (50, 40), (50, 40)], (vec![Ok(40), Ok(40), deadline], 100)),
            (100, &[(50, 15), (2, 9), (30, 40), (30, 29)], (vec![Ok(15), step, step, Ok(29)], 76)),
            (0, &[(50, 1), (50, 1)], (vec![deadline, deadline], 0)),
        ] {
            assert_eq!(run(deadline, steps).await, ended, "{steps:?}");
        }
    }
    #[tokio::test]
    async fn step_that_never_waits_ends_at_the_deadline() {
        let deadline = Instant::now() + SECOND / 20;
        let url = Url::parse("https://example.com/").unwrap();
        let turn = Turns::new(|| ()).take(&url, deadline).await.ok().unwrap();
        let sleep = pin!(sleep_until(deadline + SECOND));
        let mut timer = StepTimer::new(&turn, deadline, sleep);
        let busy = async || {
            while Instant::now() < deadline + 10 * SECOND {
                tokio::task::coop::consume_budget().await;
            }
        };
        let ended = timer.run(|| deadline + SECOND, pin!(busy())).await;
        assert_eq!(ended, Err(TimedOut::Deadline));
    }
}
