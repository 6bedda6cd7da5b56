//! GETs under way, so that equal requests share one: from its start to its end, and not a moment longer.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use futures_util::future::{Shared, WeakShared};

use crate::request::WarmRequest;

/// What is under way, by request. Holds no more than its callers wait for.
pub(super) struct Flights<T: Clone>(Arc<Mutex<Table<T>>>);

type Work<T> = Pin<Box<dyn Future<Output = T> + Send>>;
type Flight<T> = Shared<Work<T>>;

struct Table<T: Clone> {
    /// Weak: a GET whose last caller is gone ends.
    flights: HashMap<WarmRequest, (u64, WeakShared<Work<T>>)>,
    /// Numbers them, so that the end of one does not take away the next for the same request.
    next: u64,
}

impl<T: Clone + Send + Sync + 'static> Flights<T> {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(Table { flights: HashMap::new(), next: 0 })))
    }

    /// The flight for this request: the one under way, or `start`'s. True where it is `start`'s.
    ///
    /// Whoever waits for it drives it: it goes on where the first caller left, and ends with the last.
    pub(super) fn join<F>(&self, request: &WarmRequest, start: impl FnOnce() -> F) -> (Flight<T>, bool)
    where
        F: Future<Output = T> + Send + 'static,
    {
        let mut table = lock(&self.0);
        if let Some(flight) = table.flights.get(request).and_then(|(_, flight)| flight.upgrade()) {
            return (flight, false);
        }
        let number = table.next;
        table.next += 1;
        let landing = Landing { table: self.0.clone(), request: request.clone(), number };
        // Unlike a block of its own, which would keep room for the work twice.
        let whole = start().map(move |done| {
            drop(landing);
            done
        });
        let flight = whole.boxed().shared();
        if let Some(weak) = flight.downgrade() {
            table.flights.insert(request.clone(), (number, weak));
        }
        (flight, true)
    }
}

/// Takes a flight off the table at its end, however it ends.
struct Landing<T: Clone> {
    table: Arc<Mutex<Table<T>>>,
    request: WarmRequest,
    number: u64,
}

impl<T: Clone> Drop for Landing<T> {
    fn drop(&mut self) {
        let mut table = lock(&self.table);
        if table.flights.get(&self.request).is_some_and(|(number, _)| *number == self.number) {
            table.flights.remove(&self.request);
        }
    }
}

fn lock<T: Clone>(table: &Mutex<Table<T>>) -> MutexGuard<'_, Table<T>> {
    // Nothing panics while it is held.
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use super::*;

    fn request(url: &str, options: &[(&str, &str)]) -> WarmRequest {
        WarmRequest::parse(url.as_bytes(), options.iter().copied()).unwrap()
    }

    /// Joins a flight of a second, counting those that start.
    async fn fly(flights: &Flights<u32>, request: &WarmRequest, started: &Arc<AtomicU32>) -> u32 {
        let started = started.clone();
        let (flight, _) = flights.join(request, || async move {
            let number = started.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_secs(1)).await;
            number
        });
        flight.await
    }

    #[tokio::test(start_paused = true)]
    async fn equal_requests_share_one_while_it_is_under_way_and_others_do_not() {
        let (flights, started) = (Flights::new(), Arc::default());
        let plain = request("https://example.com/a", &[]);
        let other = request("https://example.com/b", &[]);
        let part = request("https://example.com/a", &[("warm-range", "bytes=0-9")]);
        let (a, b, c, d) = tokio::join!(
            fly(&flights, &plain, &started),
            fly(&flights, &plain, &started),
            fly(&flights, &other, &started),
            fly(&flights, &part, &started),
        );
        assert_eq!((a, b, c, d), (0, 0, 1, 2));
        assert_eq!(fly(&flights, &plain, &started).await, 3, "what has ended is not shared");
        assert!(lock(&flights.0).flights.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn it_goes_on_without_the_first_caller_and_ends_with_the_last() {
        let (flights, started) = (Flights::new(), Arc::default());
        let plain = request("https://example.com/a", &[]);
        let half = Duration::from_millis(500);
        let first = tokio::time::timeout(half, fly(&flights, &plain, &started));
        let (first, second) = tokio::join!(first, fly(&flights, &plain, &started));
        assert!(first.is_err());
        assert_eq!(second, 0);
        assert!(tokio::time::timeout(half, fly(&flights, &plain, &started)).await.is_err());
        assert!(lock(&flights.0).flights.is_empty(), "nobody waits, so nothing is kept");
        assert_eq!(fly(&flights, &plain, &started).await, 2);
    }
}
