//! One fill at a time for each key: who comes while it runs waits for it and shares what it brings.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, WeakShared};

type Running<T> = Shared<BoxFuture<'static, T>>;

/// The fills that run. They run inside those who wait for them: when the last one leaves, its fill is dropped.
///
/// There are never more of them than requests being answered.
pub(super) struct Fills<T>(Arc<Mutex<Table<T>>>);

struct Table<T> {
    running: HashMap<String, (u64, WeakShared<BoxFuture<'static, T>>)>,
    started: u64,
}

impl<T: Clone + Send + Sync + 'static> Fills<T> {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(Table { running: HashMap::new(), started: 0 })))
    }

    /// The fill that runs for `key`, or else `fill`; and whether it is the latter.
    pub(super) fn join(
        &self,
        key: &str,
        fill: impl Future<Output = T> + Send + 'static,
    ) -> (Running<T>, bool) {
        let mut table = lock(&self.0);
        if let Some(running) = table.running.get(key).and_then(|(_, running)| running.upgrade()) {
            return (running, false);
        }
        table.started += 1;
        let number = table.started;
        let entry = Entry { table: self.0.clone(), key: key.to_owned(), number };
        let fill = async move {
            let _entry = entry;
            fill.await
        };
        let running = fill.boxed().shared();
        if let Some(weak) = running.downgrade() {
            table.running.insert(key.to_owned(), (number, weak));
        }
        (running, true)
    }
}

/// Takes its fill off the table when that ends or is dropped.
struct Entry<T> {
    table: Arc<Mutex<Table<T>>>,
    key: String,
    number: u64,
}

impl<T> Drop for Entry<T> {
    fn drop(&mut self) {
        let mut table = lock(&self.table);
        // A fill that was dropped may have a successor by now.
        if table.running.get(&self.key).is_some_and(|(number, _)| *number == self.number) {
            table.running.remove(&self.key);
        }
    }
}

fn lock<T>(table: &Mutex<Table<T>>) -> MutexGuard<'_, Table<T>> {
    // Nothing that holds it can leave it half changed.
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_comes_while_a_fill_runs_shares_it_and_who_comes_after_does_not() {
        let fills = Fills::new();
        let (first, led) = fills.join("k", async { 1 });
        let (second, led_too) = fills.join("k", async { 2 });
        let (other, led_other) = fills.join("other", async { 3 });
        assert_eq!((led, led_too, led_other), (true, false, true));
        assert_eq!((second.await, first.await, other.await), (1, 1, 3));
        let (third, led) = fills.join("k", async { 4 });
        assert_eq!((third.await, led), (4, true));
        assert!(lock(&fills.0).running.is_empty());
    }

    #[tokio::test]
    async fn a_fill_that_nobody_waits_for_any_more_is_dropped() {
        let fills = Fills::new();
        let (first, _) = fills.join("k", std::future::pending::<u8>());
        assert_eq!(first.clone().now_or_never(), None);
        drop(first);
        assert!(lock(&fills.0).running.is_empty());
        let (next, led) = fills.join("k", async { 5 });
        assert_eq!((next.await, led), (5, true));
    }
}
