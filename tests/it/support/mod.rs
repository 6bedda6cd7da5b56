//! What the tests stand on: the built binary as a process, and the far ends of its wires.

pub(crate) mod contract;
pub(crate) mod endpoint;
pub(crate) mod monitoring;
pub(crate) mod origin;
pub(crate) mod process;
pub(crate) mod proxy;
pub(crate) mod publisher;
pub(crate) mod raw_origin;
pub(crate) mod records;
pub(crate) mod setup;
pub(crate) mod stand;
pub(crate) mod tokens;

use std::time::Duration;

/// How long anything may take before a test says that it did not happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `check` gives something, at most [`PATIENCE`]; panics with `what` otherwise.
pub(crate) async fn eventually<T>(what: &str, mut check: impl AsyncFnMut() -> Option<T>) -> T {
    let waiting = async {
        loop {
            if let Some(found) = check().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    match tokio::time::timeout(PATIENCE, waiting).await {
        Ok(found) => found,
        Err(_) => panic!("not within {PATIENCE:?}: {what}"),
    }
}

/// A variable of the environment.
#[expect(
    clippy::disallowed_methods,
    reason = "these choose what tests run against, and for how long, not what the program does"
)]
pub(crate) fn setting(name: &str) -> Option<String> {
    std::env::var(name).ok()
}
