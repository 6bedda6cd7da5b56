//! The map. `cdnwarm` is one executable whose subcommand is its role; this library is all of it but `main`.
//!
//! # One URL's walk
//!
//! `produce` puts it into a Kafka topic. `bridge` reads the record (`kafka::consumer`), puts it into a publish request
//! (`bridge::batch`, `bridge::message`), has that accepted (`bridge::forward`, `pubsub::publisher`) and gives the offset
//! free (`kafka::offsets`). Pub/Sub pushes the message to each region's `serve`, where `http::server` takes the request,
//! `serve::auth` checks its token, `serve::envelope` reads the push, [`request::WarmRequest`] reads the URL and its options, `warm` GETs it through
//! the edge next door and judges the answer (`warm::cdn`), and `serve::handler` logs the [`outcome::Outcome`] and
//! answers. `consume-direct` goes from `kafka::consumer` straight to `warm`, `check` from the shell. `demo` runs all of it on one machine, `setup` makes
//! it stand in a project of Google Cloud.
//!
//! # Imports point one way
//!
//! `main` → `cli` → roles (`bridge`, `serve`, `produce`, `consume_direct`, `check`, `setup`, `demo`) → `kafka`, `pubsub`, `http`, `warm`,
//! `telemetry` → plain values (`request`, `version`, `verdict`, `outcome`, `output`, `redact`, `usage`,
//! `adaptive_limit`, `retry`). Roles do not import roles, except `demo`,
//! which runs them; `kafka`, `pubsub`, `http` and `warm` do not import each other. A test keeps it so.
//!
//! # Invariants
//!
//! - Only [`request::WarmRequest::parse`] makes a warm request, and a redirect another of it by the same rules.
//! - Only `warm` opens connections to origins, behind one guard that judges the literal address or every resolved
//!   one, on every hop of a redirect, and dials an address that was judged.
//! - Only `serve::handler` maps verdicts to HTTP statuses.
//! - An offset is committed only after everything at and below it on its partition is accepted downstream.
//! - Every queue has a bound, and the bound is ours.
//! - `bridge` never looks inside a value, but for what decides whether it may be packed.

mod adaptive_limit;
mod bridge;
mod check;
pub mod cli;
mod consume_direct;
pub mod demo;
mod http;
mod kafka;
pub mod outcome;
mod output;
mod produce;
mod pubsub;
mod redact;
pub mod request;
mod retry;
mod serve;
mod setup;
mod shutdown;
mod telemetry;
mod usage;
pub mod verdict;
pub mod version;
mod warm;

use std::io;
use std::process::ExitCode;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Runtime};
use tokio_util::sync::CancellationToken;

use cli::{Cli, Command};
use shutdown::Signals;
use telemetry::logs::{self, Role};
use usage::UsageError;

/// What a stop may take in all, writing the rest of the log included; Cloud Run kills after 10 s.
const STOP_LIMIT: Duration = Duration::from_millis(9_900);

/// Runs one role from its command line to the process's exit status: 0 done, 1 failed, 2 usage.
pub fn start(cli: Cli) -> ExitCode {
    let role = match cli.command {
        Command::Bridge(_) | Command::ConsumeDirect(_) => Role::Service,
        Command::Serve(_) => Role::Server,
        Command::Produce(_) | Command::Check(_) | Command::Setup(_) | Command::Demo(_) => Role::Tool,
    };
    if let Err(error) = logs::init(&cli.logs, role) {
        eprintln!("cdnwarm: {error:#}");
        return ExitCode::from(2);
    }
    // A push and its GET take a connection each: more than the common soft limit of 1,024 files allows.
    if let Err(error) = rlimit::increase_nofile_limit(u64::MAX) {
        tracing::debug!("raising the limit on open files: {error}");
    }
    let runtime = match runtime(&cli.command) {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("cdnwarm: starting the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let stopping_since = OnceLock::new();
    let result = runtime.block_on(run_until_signalled(cli.command, &stopping_since));
    // Nothing of value is left on it; a blocked thread must not keep the process.
    runtime.shutdown_timeout(Duration::from_millis(100));
    let status = match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            match role {
                Role::Service | Role::Server => tracing::error!("{error:#}"),
                Role::Tool => eprintln!("cdnwarm: {error:#}"),
            }
            let usage = error.chain().any(|cause| cause.is::<UsageError>());
            if usage { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
    };
    logs::finish(STOP_LIMIT.saturating_sub(stopping_since.get().map_or(Duration::ZERO, Instant::elapsed)));
    status
}

/// Returns the runtime of a role. `serve` starts its threads by itself, each with a runtime of its own. `bridge` encodes
/// records on the first thread and does all else on one more: with one for each core, calls and answers go through more
/// hands, which took 1.1 times the CPU time (`bench/bridge`); librdkafka's threads do the rest.
fn runtime(command: &Command) -> io::Result<Runtime> {
    let mut builder = match command {
        Command::Serve(_) => Builder::new_current_thread(),
        _ => Builder::new_multi_thread(),
    };
    if matches!(command, Command::Bridge(_)) {
        builder.worker_threads(1);
    }
    builder.enable_all().build()
}

/// Runs one role, and says since when it has been stopping.
async fn run_until_signalled(command: Command, stopping_since: &OnceLock<Instant>) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    let signals = Signals::catch()?;
    let told = async {
        stop.cancelled().await;
        stopping_since.get_or_init(Instant::now);
        std::future::pending().await
    };
    tokio::select! {
        result = run(command, stop.clone()) => result,
        never = told => never,
        () = signals.drive(stop.clone()) => Err(anyhow::anyhow!("left at the second signal")),
    }
}

/// Runs one role until it is done or `stop` is cancelled.
async fn run(command: Command, stop: CancellationToken) -> anyhow::Result<()> {
    match command {
        Command::Produce(args) => produce::run(args, stop).await,
        Command::Bridge(args) => bridge::run(args, stop).await,
        Command::Serve(args) => serve::run(args, stop).await,
        Command::ConsumeDirect(args) => consume_direct::run(args, stop).await,
        Command::Check(args) => check::run(args, stop).await,
        Command::Setup(args) => setup::run(*args, stop).await,
        Command::Demo(args) => demo::run(args, stop).await,
    }
}
