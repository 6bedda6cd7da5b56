//! The sink as a process: arguments, the line that says where it listens, signals.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use null_pubsub::record::Recorder;
use null_pubsub::service::Sink;
use null_pubsub::{control, server};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// A Pub/Sub over plain-text gRPC that counts, acknowledges and fails on demand.
///
/// Prints `listening HOST:PORT control HOST:PORT` once it serves. The control side answers GET /stats, GET /totals,
/// POST /reset and POST /faults.
#[derive(Debug, Parser)]
struct Args {
    /// Where the Publisher listens.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Where the control side listens.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    control: SocketAddr,
    /// Milliseconds that every call takes at least.
    #[arg(long, value_name = "N", default_value_t = 0)]
    latency_ms: u64,
    /// Append a line `PARTITION OFFSETS DATA` to this file for each accepted message.
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// Largest data frame that clients may send, in bytes. HTTP/2 servers that say nothing take 16384; larger ones make
    /// a sink and its client some 5 % cheaper, which Pub/Sub would not.
    #[arg(long, value_name = "N", default_value_t = 16_384, value_parser = clap::value_parser!(u32).range(16_384..=16_777_215))]
    max_frame_bytes: u32,
}

// One thread serves everything: what it leaves of two cores is the publisher's.
#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let recorder = match &args.record {
        Some(path) => Some(Recorder::open(path).with_context(|| format!("opening {}", path.display()))?),
        None => None,
    };
    let sink = Arc::new(Sink::new(Duration::from_millis(args.latency_ms), recorder));
    let publisher = listen(args.listen).await?;
    let steering = listen(args.control).await?;
    let stop = CancellationToken::new();
    let (mut terminated, mut interrupted) =
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);

    let (publisher_address, control_address) = (publisher.local_addr()?, steering.local_addr()?);
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "listening {publisher_address} control {control_address}")?;
    stdout.flush()?;
    drop(stdout);

    tokio::spawn(control::serve(steering, sink.clone(), stop.clone()));
    let signalled = async {
        tokio::select! {
            _ = terminated.recv() => {}
            _ = interrupted.recv() => {}
        }
        stop.cancel();
    };
    tokio::join!(server::serve(publisher, sink, args.max_frame_bytes, stop.clone()), signalled);
    Ok(())
}

async fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("listening on {address}"))
}
