//! Takes connections and serves the Publisher on them, with windows so large that flow control never holds a call up.

use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::record::FLUSH_EVERY;
use crate::service::{Sink, warn};
use crate::stats::SAMPLE_EVERY;

const STREAM_WINDOW_BYTES: u32 = 16 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 64 << 20;

/// Serves until `stop`, then writes out what is buffered. Data frames may have up to `max_frame_bytes`.
pub async fn serve(listener: TcpListener, sink: Arc<Sink>, max_frame_bytes: u32, stop: CancellationToken) {
    let mut sample = tokio::time::interval(SAMPLE_EVERY);
    let mut flush = tokio::time::interval(FLUSH_EVERY);
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                // Dropped at once: Pub/Sub is away.
                Ok(_) if sink.faults().refuse_connections() => {}
                Ok((stream, _)) => {
                    tokio::spawn(connection(stream, sink.clone(), max_frame_bytes, stop.child_token()));
                }
                Err(error) => {
                    // Out of descriptors, as a rule: it passes, and a loop without a pause would not help.
                    warn(format_args!("no connection could be taken: {error}"));
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            },
            _ = sample.tick() => sink.stats().sample(),
            _ = flush.tick() => flush_recorder(&sink),
            () = stop.cancelled() => break,
        }
    }
    flush_recorder(&sink);
}

async fn connection(stream: TcpStream, sink: Arc<Sink>, max_frame_bytes: u32, stop: CancellationToken) {
    let token = sink.connection_token();
    // Without it a small answer may wait for an acknowledgement; the sink works all the same.
    let _ = stream.set_nodelay(true);
    let service = service_fn(|request| sink.clone().call(request, token.clone()));
    let serving = http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(max_frame_bytes)
        .max_concurrent_streams(10_000)
        // Clients that are told to give up calls reset many streams; that is no attack here.
        .max_pending_accept_reset_streams(100_000)
        .max_local_error_reset_streams(None)
        .serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        // A client that goes away is none of the sink's business.
        _ = serving => {}
        () = token.cancelled() => {}
        () = stop.cancelled() => {}
    }
}

fn flush_recorder(sink: &Sink) {
    if let Some(mut recorder) = sink.recorder()
        && let Err(error) = recorder.flush()
    {
        warn(format_args!("the messages could not be written out: {error}"));
    }
}
