//! When a request must be over, and its time limits without a timer for each: most are over long before, and to set a timer
//! and take it back costs as much as to parse a line of headers.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;

use tokio::time::{Instant, timeout_at};

/// When one request must be over. Its limits are watched from [`Deadline::watch`] on, which whoever does its work calls as
/// soon as it takes long.
pub(super) struct Deadline {
    at: Instant,
    is_watched: AtomicBool,
}

impl Deadline {
    /// Not watched yet.
    pub(super) fn new(at: std::time::Instant) -> Self {
        Self { at: at.into(), is_watched: AtomicBool::new(false) }
    }

    pub(super) fn at(&self) -> Instant {
        self.at
    }

    /// Has limits watched from now on. For the work itself, while it is polled: nobody is woken by it.
    pub(super) fn watch(&self) {
        self.is_watched.store(true, Ordering::Relaxed);
    }

    /// Does `work`; none where it goes on beyond `limit` and limits are watched by then.
    pub(super) async fn until<T>(
        &self,
        limit: Instant,
        mut work: Pin<&mut impl Future<Output = T>>,
    ) -> Option<T> {
        let soon = poll_fn(|context| match work.as_mut().poll(context) {
            Poll::Ready(done) => Poll::Ready(Some(done)),
            Poll::Pending if self.is_watched.load(Ordering::Relaxed) => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        });
        match soon.await {
            Some(done) => Some(done),
            None => timeout_at(limit, work).await.ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::time::Duration;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    async fn sleep(seconds: u32) -> u32 {
        tokio::time::sleep(SECOND * seconds).await;
        seconds
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_has_limits_watched_ends_at_its_limit() {
        let deadline = Deadline::new((Instant::now() + 10 * SECOND).into_std());
        let work = async {
            sleep(1).await;
            deadline.watch();
            sleep(20).await
        };
        assert_eq!(deadline.until(deadline.at(), pin!(work)).await, None);
        assert_eq!(Instant::now(), deadline.at());
    }

    #[tokio::test(start_paused = true)]
    async fn an_inner_limit_comes_first() {
        let deadline = Deadline::new((Instant::now() + 10 * SECOND).into_std());
        let work = async {
            deadline.watch();
            let inner = deadline.until(Instant::now() + 2 * SECOND, pin!(sleep(5))).await;
            (inner, sleep(3).await)
        };
        assert_eq!(deadline.until(deadline.at(), pin!(work)).await, Some((None, 3)));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_over_in_time_is_not_cut_off() {
        let deadline = Deadline::new((Instant::now() + 10 * SECOND).into_std());
        deadline.watch();
        assert_eq!(deadline.until(deadline.at(), pin!(sleep(9))).await, Some(9));
    }
}
