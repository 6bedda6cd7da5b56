//! Pushes envelopes at an endpoint as Pub/Sub does, each with a URL of its own, as fast as it answers; says how fast that was.
//!
//! HTTP/1.1 and h2c (with prior knowledge) are spoken by hand, one thread for all: what it takes is a few microseconds a
//! push, so that it is not what is measured. It takes any answer with a Content-Length, or none, and counts statuses.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail, ensure};
use clap::Parser;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Pushes distinct URLs and prints what came of it as one line of JSON.
#[derive(Debug, Parser)]
struct Args {
    /// Where to push to
    addr: SocketAddr,
    /// Beginning of every URL; a number of 12 digits follows
    url: String,
    /// Connections
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Speak HTTP/2 with so many streams on each connection, instead of HTTP/1.1
    #[arg(long)]
    streams: Option<usize>,
    /// Seconds before counting begins
    #[arg(long, default_value_t = 1.0)]
    warm_up: f64,
    /// Seconds that are counted
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Instead of seconds: so many pushes in all, all of them counted
    #[arg(long)]
    pushes: Option<u64>,
    /// File with the bearer token
    #[arg(long)]
    token: Option<PathBuf>,
    /// Processes whose CPU time is taken while it counts
    #[arg(long, value_delimiter = ',')]
    pids: Vec<u32>,
}

/// What all connections share.
struct Load {
    authority: String,
    token: String,
    /// The envelope around the numbers.
    envelope: [Vec<u8>; 4],
    limit: Option<u64>,
    seen: std::cell::RefCell<Seen>,
}

#[derive(Default)]
struct Seen {
    sent: u64,
    counting: bool,
    ended: bool,
    answers: u64,
    statuses: BTreeMap<u16, u64>,
    /// By microseconds up to a second, and all that took longer.
    latencies: Vec<u32>,
}

const LATENCIES: usize = 1_000_000;

fn main() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, run(Args::parse()))
}

async fn run(args: Args) -> anyhow::Result<()> {
    let token = match &args.token {
        Some(path) => std::fs::read_to_string(path).context("--token")?.trim().to_owned(),
        None => "none".to_owned(),
    };
    let seen = Seen { latencies: vec![0; LATENCIES + 1], counting: args.pushes.is_some(), ..Seen::default() };
    let load = Rc::new(Load {
        authority: args.addr.to_string(),
        token,
        envelope: envelope(&args.url),
        limit: args.pushes,
        seen: seen.into(),
    });
    let cpu = || args.pids.iter().map(|pid| cpu_seconds(*pid)).sum::<f64>();
    let (mut began, mut cpu_began) = (Instant::now(), cpu());
    let tasks: Vec<_> = (0..args.connections)
        .map(|_| {
            let (load, streams) = (load.clone(), args.streams);
            tokio::task::spawn_local(async move {
                match streams {
                    None => http1(&load, args.addr).await,
                    Some(streams) => http2(&load, connect(args.addr).await?, streams).await,
                }
            })
        })
        .collect();
    if args.pushes.is_none() {
        tokio::time::sleep(Duration::from_secs_f64(args.warm_up)).await;
        load.seen.borrow_mut().counting = true;
        (began, cpu_began) = (Instant::now(), cpu());
        tokio::time::sleep(Duration::from_secs_f64(args.seconds)).await;
        let mut seen = load.seen.borrow_mut();
        (seen.counting, seen.ended) = (false, true);
    }
    let mut took = began.elapsed();
    let mut cpu_took = cpu() - cpu_began;
    for task in tasks {
        task.await??;
    }
    if args.pushes.is_some() {
        (took, cpu_took) = (began.elapsed(), cpu() - cpu_began);
    }
    let seen = load.seen.borrow();
    ensure!(seen.answers > 0, "no push was answered");
    let rank = |share: f64| {
        let mut left = (seen.answers as f64 * share).ceil() as i64;
        let at = seen.latencies.iter().position(|count| {
            left -= i64::from(*count);
            left <= 0
        });
        at.unwrap_or(LATENCIES) as f64 / 1_000.0
    };
    let result = serde_json::json!({
        "pushes": seen.answers, "seconds": took.as_secs_f64(), "per_s": seen.answers as f64 / took.as_secs_f64(),
        "p50_ms": rank(0.5), "p99_ms": rank(0.99), "statuses": seen.statuses,
        "cpu_us": cpu_took * 1e6 / seen.answers as f64, "own_cpu_us": cpu_seconds(std::process::id()) * 1e6 / seen.sent as f64,
    });
    println!("{result}");
    Ok(())
}

impl Load {
    /// The next push's body; none once there are enough.
    fn next(&self, body: &mut Vec<u8>) -> bool {
        let mut seen = self.seen.borrow_mut();
        if seen.ended || self.limit.is_some_and(|limit| seen.sent >= limit) {
            return false;
        }
        seen.sent += 1;
        let digits = format!("{:012}", seen.sent);
        body.clear();
        let [start, offset, data, id] = &self.envelope;
        body.extend_from_slice(start);
        body.extend_from_slice(digits.as_bytes());
        body.extend_from_slice(offset);
        base64(digits.as_bytes(), body);
        body.extend_from_slice(data);
        body.extend_from_slice(digits.as_bytes());
        body.extend_from_slice(id);
        true
    }

    fn answered(&self, status: u16, began: Instant) {
        let mut seen = self.seen.borrow_mut();
        if seen.counting {
            seen.answers += 1;
            *seen.statuses.entry(status).or_default() += 1;
            let took = (began.elapsed().as_micros() as usize).min(LATENCIES);
            seen.latencies[took] += 1;
        }
    }
}

/// What stands before, between and behind the offset, the URL's number and the message's id.
fn envelope(url: &str) -> [Vec<u8>; 4] {
    let mut url = url.to_owned();
    // Three bytes are four characters: the number's are always the same ones.
    while !url.len().is_multiple_of(3) {
        url.push('x');
    }
    let mut data = Vec::new();
    base64(url.as_bytes(), &mut data);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let data = String::from_utf8_lossy(&data).into_owned();
    // The message's id differs from run to run: a server may know those of the last minutes.
    [
        r#"{"message":{"attributes":{"kafka-topic":"urls","kafka-partition":"3","kafka-offset":""#.to_owned(),
        format!(r#"","kafka-timestamp":"{now}"}},"data":"{data}"#),
        format!(r#"","messageId":"{now}"#),
        r#"","publishTime":"2026-11-22T12:00:00.123Z"},"subscription":"projects/bench/subscriptions/serve"}"#
            .to_owned(),
    ]
    .map(String::into_bytes)
}

/// Without padding: the length is a multiple of three.
fn base64(bytes: &[u8], into: &mut Vec<u8>) {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for three in bytes.chunks_exact(3) {
        let bits = u32::from(three[0]) << 16 | u32::from(three[1]) << 8 | u32::from(three[2]);
        into.extend([18, 12, 6, 0].map(|shift| ALPHABET[(bits >> shift & 63) as usize]));
    }
}

/// User and system time of a process so far.
fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok()).unwrap_or_default();
    // The kernel counts in hundredths for user space, whatever it ticks in.
    (ticks(11) + ticks(12)) / 100.0
}

async fn connect(addr: SocketAddr) -> anyhow::Result<TcpStream> {
    let stream = TcpStream::connect(addr).await.context("connecting")?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// One push after the other; on a new connection where the server closes the old one with its answer.
async fn http1(load: &Load, addr: SocketAddr) -> anyhow::Result<()> {
    let mut stream = connect(addr).await?;
    let (mut body, mut request, mut buffer) = (Vec::new(), Vec::new(), vec![0_u8; 64 << 10]);
    while load.next(&mut body) {
        request.clear();
        let head = format!(
            "POST / HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\n\
             User-Agent: APIs-Google\r\nContent-Length: {}\r\n\r\n",
            load.authority,
            load.token,
            body.len()
        );
        request.extend_from_slice(head.as_bytes());
        request.extend_from_slice(&body);
        let began = Instant::now();
        stream.write_all(&request).await?;
        let mut filled = 0;
        let (head, mut left) = loop {
            let read = stream.read(&mut buffer[filled..]).await?;
            ensure!(read > 0, "the connection ended before an answer");
            filled += read;
            if let Some(end) = find(&buffer[..filled], b"\r\n\r\n") {
                let head = head_of(&buffer[..end])?;
                let left = head.length.saturating_sub(filled - end - 4);
                break (head, left);
            }
            ensure!(filled < buffer.len(), "an answer's head is too long");
        };
        while left > 0 {
            let read = stream.read(&mut buffer).await?;
            ensure!(read > 0, "the connection ended within an answer");
            left = left.saturating_sub(read);
        }
        load.answered(head.status, began);
        if head.closes {
            stream = connect(addr).await?;
        }
    }
    Ok(())
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    memchr::memmem::find(text, what)
}

/// What of an answer's head counts here.
struct Head {
    status: u16,
    /// Of the body.
    length: usize,
    closes: bool,
}

fn head_of(head: &[u8]) -> anyhow::Result<Head> {
    let head = std::str::from_utf8(head).context("an answer's head")?;
    let mut lines = head.split("\r\n");
    let status =
        lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).context("a status line")?;
    let (mut length, mut closes) = (0, false);
    for line in lines {
        let Some((name, value)) = line.split_once(':') else { continue };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().context("Content-Length")?;
        } else if name.eq_ignore_ascii_case("connection") {
            closes = value.trim().eq_ignore_ascii_case("close");
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            bail!("a chunked answer, which this client does not read");
        }
    }
    Ok(Head { status, length, closes })
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// What is read before the peer hears of it.
const WINDOW_STEP: u32 = 1 << 20;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8], into: &mut Vec<u8>) {
    into.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
    into.extend_from_slice(&[kind, flags]);
    into.extend_from_slice(&stream.to_be_bytes());
    into.extend_from_slice(payload);
}

/// So many pushes at once on one connection (RFC 9113).
async fn http2(load: &Load, mut connection: TcpStream, streams: usize) -> anyhow::Result<()> {
    let (mut out, mut body) = (Vec::new(), Vec::new());
    out.extend_from_slice(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    // SETTINGS_INITIAL_WINDOW_SIZE, and as much for the connection.
    frame(SETTINGS, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff], &mut out);
    frame(WINDOW_UPDATE, 0, 0, &(0x7fff_ffff_u32 - 65_535).to_be_bytes(), &mut out);
    let (mut buffer, mut filled) = (vec![0_u8; 256 << 10], 0);
    let mut under_way: BTreeMap<u32, (Instant, u16)> = BTreeMap::new();
    let (mut next_stream, mut window, mut unreported, mut over) = (1_u32, 65_535_i64, 0_u32, false);
    loop {
        // An envelope has the same length each time.
        while !over && under_way.len() < streams && window >= body.len().max(1) as i64 {
            over = !load.next(&mut body);
            if over {
                break;
            }
            frame(HEADERS, END_HEADERS, next_stream, &head(load, body.len(), next_stream == 1), &mut out);
            frame(DATA, END_STREAM, next_stream, &body, &mut out);
            window -= body.len() as i64;
            under_way.insert(next_stream, (Instant::now(), 0));
            next_stream += 2;
        }
        connection.write_all(&out).await?;
        out.clear();
        if over && under_way.is_empty() {
            return Ok(());
        }
        let read = connection.read(&mut buffer[filled..]).await?;
        ensure!(read > 0, "the connection ended before an answer");
        filled += read;
        let mut at = 0;
        while filled - at >= 9 {
            let length = u32::from_be_bytes([0, buffer[at], buffer[at + 1], buffer[at + 2]]) as usize;
            if filled - at < 9 + length {
                break;
            }
            let (kind, flags) = (buffer[at + 3], buffer[at + 4]);
            let stream = u32::from_be_bytes([buffer[at + 5], buffer[at + 6], buffer[at + 7], buffer[at + 8]]);
            let payload = &buffer[at + 9..at + 9 + length];
            at += 9 + length;
            match kind {
                HEADERS => {
                    if let Some((_, status)) = under_way.get_mut(&stream) {
                        *status = status_of(payload).context("a status that this client does not read")?;
                    }
                }
                DATA => unreported += length as u32,
                SETTINGS if flags & 1 == 0 => frame(SETTINGS, 1, 0, &[], &mut out),
                PING if flags & 1 == 0 => frame(PING, 1, 0, payload, &mut out),
                WINDOW_UPDATE if stream == 0 => {
                    window += i64::from(u32::from_be_bytes(payload.try_into().context("WINDOW_UPDATE")?));
                }
                RST_STREAM => bail!("a stream was reset: {payload:?}"),
                GOAWAY => bail!("the connection is going away: {payload:?}"),
                _ => {}
            }
            if matches!(kind, HEADERS | DATA)
                && flags & END_STREAM != 0
                && let Some((began, status)) = under_way.remove(&stream)
            {
                load.answered(status, began);
            }
        }
        buffer.copy_within(at..filled, 0);
        filled -= at;
        if unreported >= WINDOW_STEP {
            frame(WINDOW_UPDATE, 0, 0, &unreported.to_be_bytes(), &mut out);
            unreported = 0;
        }
    }
}

/// A request's head (RFC 7541): in full at first, by the indices that it then has.
fn head(load: &Load, length: usize, first: bool) -> Vec<u8> {
    // :method POST, :scheme http, :path /
    let mut block = vec![0x83, 0x86, 0x84];
    if !first {
        // The newest entry is 62; pseudo-fields come first.
        block.extend([66, 65, 64, 63, 62].map(|index: u8| 0x80 | index));
        return block;
    }
    let (token, length) = (format!("Bearer {}", load.token), length.to_string());
    // Names of the static table, each entry added to the dynamic one.
    for (name, value) in [
        (1, load.authority.as_str()),
        (23, &token),
        (31, "application/json"),
        (58, "APIs-Google"),
        (28, &length),
    ] {
        block.push(0x40 | name);
        // A length in 7 bits, or beyond.
        if value.len() < 127 {
            block.push(value.len() as u8);
        } else {
            block.push(127);
            let mut rest = value.len() - 127;
            while rest >= 128 {
                block.push((rest % 128 + 128) as u8);
                rest /= 128;
            }
            block.push(rest as u8);
        }
        block.extend_from_slice(value.as_bytes());
    }
    block
}

/// The status is the first field; its index tells it, but for rare ones that are written out.
fn status_of(block: &[u8]) -> Option<u16> {
    // A change of the table's size may come before it.
    let block = if block.first()? & 0xe0 == 0x20 { &block[1..] } else { block };
    let first = *block.first()?;
    Some(match first {
        0x88 => 200,
        0x89 => 204,
        0x8a => 206,
        0x8b => 304,
        0x8c => 400,
        0x8d => 404,
        0x8e => 500,
        // Another one, literal or indexed: an answer all the same.
        _ => 999,
    })
}
