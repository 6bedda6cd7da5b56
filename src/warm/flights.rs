//! GETs under way, so that equal requests share one: from its start to its end, and not a moment longer.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use foldhash::fast::RandomState;
use tokio::sync::OnceCell;

use crate::request::WarmRequest;

/// What is under way, by request. Holds no more than its callers wait for.
pub(super) struct Flights<T>(Mutex<HashMap<WarmRequest, Weak<OnceCell<T>>, RandomState>>);

/// One caller's place in a flight, which comes off the table once it has landed, or its last caller is gone.
pub(super) struct Flight<'a, T> {
    flights: &'a Flights<T>,
    request: &'a WarmRequest,
    /// Until the caller leaves.
    cell: Option<Arc<OnceCell<T>>>,
    is_first: bool,
}

impl<T> Flights<T> {
    pub(super) fn new() -> Self {
        Self(Mutex::default())
    }

    /// The flight of an equal request that is under way, or else a new one.
    pub(super) fn join<'a>(&'a self, request: &'a WarmRequest) -> Flight<'a, T> {
        let mut table = self.table();
        let known = table.entry(request.clone()).or_default();
        let under_way = known.upgrade().filter(|cell| !cell.initialized());
        let is_first = under_way.is_none();
        let cell = under_way.unwrap_or_default();
        if is_first {
            *known = Arc::downgrade(&cell);
        }
        Flight { flights: self, request, cell: Some(cell), is_first }
    }

    fn table(&self) -> MutexGuard<'_, HashMap<WarmRequest, Weak<OnceCell<T>>, RandomState>> {
        // Nothing panics while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Flight<'_, T> {
    /// Whether nobody else is on it yet.
    pub(super) fn is_first(&self) -> bool {
        self.is_first
    }

    /// Where its result goes: one caller makes it, and the others wait. Where the caller leaves that makes it, the next one
    /// begins anew.
    pub(super) fn cell(&self) -> &OnceCell<T> {
        self.cell.as_ref().expect("only the end takes it")
    }

    fn leave(&mut self) -> Option<Arc<OnceCell<T>>> {
        let cell = self.cell.take()?;
        let mut table = self.flights.table();
        let is_over = cell.initialized() || Arc::strong_count(&cell) == 1;
        // Most are alone and over, and looked for once.
        if let Some((request, known)) = is_over.then(|| table.remove_entry(self.request)).flatten()
            && known.as_ptr() != Arc::as_ptr(&cell)
        {
            table.insert(request, known);
        }
        drop(table);
        Some(cell)
    }
}

impl<T: Clone> Flight<'_, T> {
    /// Ends it; the result, if there is one.
    pub(super) fn into_result(mut self) -> Option<T> {
        match Arc::try_unwrap(self.leave()?) {
            Ok(alone) => alone.into_inner(),
            Err(shared) => shared.get().cloned(),
        }
    }
}

impl<T> Drop for Flight<'_, T> {
    fn drop(&mut self) {
        self.leave();
    }
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
        let fetch = async move {
            let number = started.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_secs(1)).await;
            number
        };
        let flight = flights.join(request);
        flight.cell().get_or_init(|| fetch).await;
        flight.into_result().unwrap()
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
        assert!(flights.table().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_caller_begins_anew_where_the_first_leaves_and_it_ends_with_the_last() {
        let (flights, started) = (Flights::new(), Arc::default());
        let plain = request("https://example.com/a", &[]);
        let half = Duration::from_millis(500);
        let first = tokio::time::timeout(half, fly(&flights, &plain, &started));
        let (first, second, third) =
            tokio::join!(first, fly(&flights, &plain, &started), fly(&flights, &plain, &started));
        assert!(first.is_err());
        assert_eq!((second, third), (1, 1), "one of them does, for both");
        assert!(tokio::time::timeout(half, fly(&flights, &plain, &started)).await.is_err());
        assert!(flights.table().is_empty(), "nobody waits, so nothing is kept");
        assert_eq!(fly(&flights, &plain, &started).await, 3);
    }
}
