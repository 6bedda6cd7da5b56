//! The ceiling of publishing: the same full batch again and again, so many calls in flight, nothing else.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use clap::Parser;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::client::conn::http2::{self, SendRequest};
use hyper::header::CONTENT_TYPE;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

/// Publishes full batches that were encoded once, and prints as JSON how fast that went.
#[derive(Debug, Parser)]
struct Args {
    /// Where the Publisher listens, in plain text.
    target: SocketAddr,
    /// Calls in flight.
    #[arg(long, value_name = "N", default_value_t = 16)]
    in_flight: usize,
    /// Messages to publish.
    #[arg(long, value_name = "N", default_value_t = 5_000_000)]
    messages: u64,
    /// Messages a call.
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..=1_000))]
    batch: u64,
    /// Bytes of data a message; the attributes that the bridge sets come on top.
    #[arg(long, value_name = "N", default_value_t = 80)]
    data_bytes: usize,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let frame = publish_request(args.batch, args.data_bytes);
    let stream =
        TcpStream::connect(args.target).await.with_context(|| format!("connecting to {}", args.target))?;
    stream.set_nodelay(true)?;
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(16 << 20)
        .initial_connection_window_size(64 << 20)
        .max_send_buf_size(16 << 20)
        .handshake(TokioIo::new(stream))
        .await?;
    tokio::spawn(connection);

    let left = Arc::new(AtomicU64::new(args.messages.div_ceil(args.batch)));
    let url = format!("http://{}/google.pubsub.v1.Publisher/Publish", args.target);
    let started = Instant::now();
    let callers: Vec<_> = (0..args.in_flight)
        .map(|_| tokio::spawn(calls(sender.clone(), url.clone(), frame.clone(), left.clone())))
        .collect();
    let mut calls = 0;
    for caller in callers {
        calls += caller.await??;
    }
    let seconds = started.elapsed().as_secs_f64();
    let messages = calls * args.batch;
    #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52 messages")]
    let messages_per_s = messages as f64 / seconds;
    let request_bytes = frame.len();
    println!(
        "{}",
        serde_json::json!({
            "messages": messages, "calls": calls, "request_bytes": request_bytes, "seconds": seconds,
            "messages_per_s": messages_per_s, "cpu_s": cpu_seconds()?,
        })
    );
    Ok(())
}

/// Makes one call after the other while any are left, and says how many.
async fn calls(
    mut sender: SendRequest<Full<Bytes>>,
    url: String,
    frame: Bytes,
    left: Arc<AtomicU64>,
) -> anyhow::Result<u64> {
    let mut calls = 0;
    while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
        let request = Request::post(&url)
            .header(CONTENT_TYPE, "application/grpc")
            .header("te", "trailers")
            .body(Full::new(frame.clone()))?;
        sender.ready().await?;
        let answer = sender.send_request(request).await?.into_body().collect().await?;
        let status = answer.trailers().and_then(|trailers| trailers.get("grpc-status"));
        ensure!(status.is_some_and(|status| status == "0"), "the batch was not accepted: {status:?}");
        ensure!(!answer.to_bytes().is_empty(), "no ids came back");
        calls += 1;
    }
    Ok(calls)
}

/// A framed `PublishRequest` with messages as the bridge makes them.
fn publish_request(messages: u64, data_bytes: usize) -> Bytes {
    let mut request = Vec::new();
    field(&mut request, 1, b"projects/bench/topics/bench");
    let mut data = b"https://www.example.com/".to_vec();
    data.resize(data_bytes, b'a');
    for offset in 0..messages {
        let mut message = Vec::new();
        field(&mut message, 1, &data);
        for (name, value) in [
            ("kafka-topic", "bench"),
            ("kafka-partition", "3"),
            ("kafka-offset", &(100_000 + offset).to_string()),
            ("kafka-timestamp", "1700000000000"),
        ] {
            let mut entry = Vec::new();
            field(&mut entry, 1, name.as_bytes());
            field(&mut entry, 2, value.as_bytes());
            field(&mut message, 2, &entry);
        }
        field(&mut request, 2, &message);
    }
    let length = u32::try_from(request.len()).expect("at most 1,000 messages of some bytes");
    let mut frame = vec![0];
    frame.extend(length.to_be_bytes());
    frame.extend(request);
    frame.into()
}

/// Appends a length-delimited field.
fn field(message: &mut Vec<u8>, number: u8, payload: &[u8]) {
    message.push(number << 3 | 2);
    let mut length = payload.len();
    while length >= 0x80 {
        message.push(u8::try_from(length & 0x7f).expect("seven bits") | 0x80);
        length >>= 7;
    }
    message.push(u8::try_from(length).expect("seven bits"));
    message.extend_from_slice(payload);
}

/// What this process has used so far, in user and system mode.
fn cpu_seconds() -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // The name in brackets may hold anything; behind it utime and stime are the 12th and 13th, in 1/100 s.
    let (_, fields) = stat.rsplit_once(')').context("/proc/self/stat has a name in brackets")?;
    let ticks: u32 = fields.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse().unwrap_or(0)).sum();
    Ok(f64::from(ticks) / 100.0)
}
