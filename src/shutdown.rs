//! Signals to one `CancellationToken`: the first SIGTERM or SIGINT asks for a clean stop, a second one leaves at once.

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The two signals, caught from the moment this is made.
#[derive(Debug)]
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Starts to catch SIGTERM and SIGINT, which from here on no longer end the process by themselves.
    ///
    /// # Errors
    /// Where the operating system refuses the handlers.
    pub(crate) fn catch() -> anyhow::Result<Self> {
        let caught = |kind| signal(kind).context("installing a signal handler");
        Ok(Self { terminate: caught(SignalKind::terminate())?, interrupt: caught(SignalKind::interrupt())? })
    }

    /// Cancels `stop` at the first signal and returns at the second, when the caller is to leave at once.
    pub(crate) async fn drive(mut self, stop: CancellationToken) {
        self.next().await;
        tracing::info!("stopping: finishing what is in flight; a second signal leaves at once");
        stop.cancel();
        self.next().await;
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
