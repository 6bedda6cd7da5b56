//! The limits on slow clients that hyper lacks, and how a connection ends when the server stops.
//!
//! hyper limits the size of a head (`max_buf_size`, `max_headers`), HTTP/2 streams, windows and header lists, resets
//! (`max_local_error_reset_streams`, `max_pending_accept_reset_streams`) and, by PING, the time until it notices that an
//! HTTP/2 client is gone; `server.rs` sets these. It has no equivalent for what is here:
//!
//! - Time for a head apart from the rest between requests. `header_read_timeout` counts both, so that it would end every
//!   kept connection after the time of one head.
//! - Time between requests, and less of it for clients without a good push and while few places are left.
//! - Clients that do not read: over HTTP/1.1 a write that waits, over HTTP/2 a window that stays closed.
//! - An end that waits for the client's: a socket that is closed with unread data is reset (RFC 9112, section 9.6).
//!
//! [`Watched`] observes the stream below hyper, [`Exchange`] the requests above it.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http_body::{Body, Frame, SizeHint};
use hyper_util::server::graceful::GracefulConnection;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Semaphore;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

/// How long the first request's head may take from the connection's start, and each further one's from its first byte.
const HEAD_LIMIT: Duration = Duration::from_secs(10);
/// How long a connection may rest once a POST on it has been answered well. Google's front ends keep theirs for 600 s,
/// and whoever closes first may lose the request that is on its way.
const IDLE_LIMIT: Duration = Duration::from_secs(620);
/// How long any other connection may rest. Longer than the common interval of probes.
const STRANGER_IDLE_LIMIT: Duration = Duration::from_secs(12);
/// How long a client may take to read what is sent to it.
const READ_LIMIT: Duration = Duration::from_secs(6);
/// The same limits where places are short: for strangers and late heads, and for those who have proved themselves.
const CROWDED_LIMIT: Duration = Duration::from_secs(2);
const CROWDED_IDLE_LIMIT: Duration = Duration::from_secs(12);
/// How long, and for how many bytes, the client may go on sending what nobody wants any more.
const LINGER_LIMIT: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 4 << 20;
/// How long an idle connection stays open once its client was asked to close it: HTTP/2 clients close it themselves.
const GOODBYE_LIMIT: Duration = Duration::from_secs(2);
/// How often the limits are checked.
const TICK: Duration = Duration::from_secs(1);

/// What is known about one connection. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Life(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    /// Whether a request has come.
    used: bool,
    is_http2: bool,
    /// Whether a POST was answered well.
    proven: bool,
    /// Requests whose answers are not sent to their end.
    under_way: usize,
    /// Those among them with a piece of the answer that the wire has not taken.
    unsent: usize,
    /// When one of these pieces was last made, or taken.
    unsent_since: Instant,
    /// The start, or the end of the latest request.
    since: Instant,
    /// When the first byte of the head that is awaited came.
    head_since: Option<Instant>,
    /// Since when the wire takes nothing more.
    blocked_since: Option<Instant>,
    /// Since when only the client's end is awaited.
    lingering_since: Option<Instant>,
}

impl Life {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self(Arc::new(Mutex::new(State {
            used: false,
            is_http2: false,
            proven: false,
            under_way: 0,
            unsent: 0,
            unsent_since: now,
            since: now,
            head_since: None,
            blocked_since: None,
            lingering_since: None,
        })))
    }

    /// Notes that a request's head is there.
    pub(super) fn exchange(&self, is_http2: bool, is_post: bool) -> Exchange {
        let mut state = self.state();
        state.used = true;
        state.is_http2 = is_http2;
        state.under_way += 1;
        Exchange { life: self.clone(), is_post, is_unsent: false }
    }

    /// Waits until the server's end is this connection's too. HTTP/2 clients get GOAWAY as soon as the server
    /// drains. Another connection is closed only once it rests at the end; a new one, perhaps out of the backlog, has a
    /// second for the request that it came for. Its state is looked at when this is called, not while it waits.
    async fn ended(&self, ending: &Ending) {
        let (is_http2, may_be_closed) = {
            let state = self.state();
            (state.is_http2, state.used || state.since.elapsed() >= TICK)
        };
        match (is_http2, may_be_closed) {
            (true, _) => ending.draining.cancelled().await,
            (false, true) => ending.closing.cancelled().await,
            (false, false) => std::future::pending().await,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Plain numbers: no step leaves them half-way.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// What the client is late with, if so.
    fn overdue(&self, is_crowded: bool, now: Instant) -> Option<Late> {
        let past = |since: Instant, limit| now.saturating_duration_since(since) >= limit;
        let is_past = |since: Option<Instant>, limit| since.is_some_and(|since| past(since, limit));
        let (head_limit, idle_limit) = match (is_crowded, self.proven) {
            (false, true) => (HEAD_LIMIT, IDLE_LIMIT),
            (false, false) => (HEAD_LIMIT, STRANGER_IDLE_LIMIT),
            (true, true) => (CROWDED_LIMIT, CROWDED_IDLE_LIMIT),
            (true, false) => (CROWDED_LIMIT, CROWDED_LIMIT),
        };
        if self.lingering_since.is_some() {
            return is_past(self.lingering_since, LINGER_LIMIT).then_some(Late::Hopeless("goes on sending"));
        }
        let is_unread = self.unsent > 0 && past(self.unsent_since, READ_LIMIT);
        if is_unread || is_past(self.blocked_since, READ_LIMIT) {
            return Some(Late::Hopeless("does not read its answers"));
        }
        if self.under_way > 0 {
            return None;
        }
        if !self.used {
            return past(self.since, head_limit).then_some(Late::Hopeless("sent no request"));
        }
        if !self.is_http2 && is_past(self.head_since, head_limit) {
            return Some(Late::Hopeless("sent half a request's head"));
        }
        past(self.since, idle_limit).then_some(Late::Idle)
    }
}

/// Why a connection is closed.
#[derive(Debug, PartialEq, Eq)]
enum Late {
    /// It only rests: HTTP/2 says goodbye first.
    Idle,
    /// Nothing that is said would be heard.
    Hopeless(&'static str),
}

/// One request of a connection, from its head until its answer is sent, or until nobody waits for it any more.
#[derive(Debug)]
pub(super) struct Exchange {
    life: Life,
    is_post: bool,
    is_unsent: bool,
}

impl Exchange {
    /// Puts the exchange behind the answer's body, so that it ends with that.
    pub(super) fn answered<B>(mut self, status: StatusCode, body: B) -> Answered<B> {
        self.life.state().proven |= self.is_post && status.is_success();
        self.set_unsent(true);
        Answered { body, exchange: self }
    }

    fn set_unsent(&mut self, is_unsent: bool) {
        let (mut state, now) = (self.life.state(), Instant::now());
        state.unsent -= usize::from(std::mem::replace(&mut self.is_unsent, is_unsent));
        state.unsent += usize::from(is_unsent);
        state.unsent_since = now;
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let (mut state, now) = (self.life.state(), Instant::now());
        state.unsent -= usize::from(self.is_unsent);
        state.unsent_since = now;
        state.under_way -= 1;
        state.since = now;
        state.head_since = None;
    }
}

/// An answer's body. hyper asks for its next piece only once the client has room for it, so that a piece after which
/// nobody asks is one that the client does not take.
#[derive(Debug)]
pub(super) struct Answered<B> {
    body: B,
    exchange: Exchange,
}

impl<B: Body<Data = Bytes> + Unpin> Body for Answered<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        self.exchange.set_unsent(frame.is_ready());
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A stream whose reads and writes are noted in its [`Life`], and whose end waits for the client's: a connection that is
/// closed on unread data is reset, and the client may lose the answer with it (RFC 9112, section 9.6).
#[derive(Debug)]
pub(super) struct Watched<S> {
    stream: S,
    life: Life,
    lingered_bytes: usize,
}

impl<S> Watched<S> {
    pub(super) fn new(stream: S, life: Life) -> Self {
        Self { stream, life, lingered_bytes: 0 }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let filled = buf.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > filled {
            let mut state = self.life.state();
            if state.under_way == 0 {
                state.head_since.get_or_insert_with(Instant::now);
            }
        }
        result
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, buf);
        let mut state = self.life.state();
        if result.is_ready() {
            state.blocked_since = None;
        } else {
            state.blocked_since.get_or_insert_with(Instant::now);
        }
        drop(state);
        result
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.life.state().lingering_since.is_none() {
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
            self.life.state().lingering_since = Some(Instant::now());
        }
        let mut unwanted = [0; 4096];
        loop {
            let mut buf = ReadBuf::new(&mut unwanted);
            // A client that is gone is as good as one that has ended.
            let read = ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buf));
            self.lingered_bytes += buf.filled().len();
            if read.is_err() || buf.filled().is_empty() || self.lingered_bytes > LINGER_BYTES {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

/// The stages of a server's end.
#[derive(Debug, Clone)]
pub(super) struct Ending {
    /// Every answer is its connection's last one; HTTP/2 says goodbye.
    pub(super) draining: CancellationToken,
    /// What rests is closed.
    pub(super) closing: CancellationToken,
}

/// Runs a connection until it ends, its client is late, or the server has ended. `places` tells whether it is crowded.
pub(super) async fn drive<C>(
    mut connection: Pin<&mut C>,
    life: Life,
    places: &Semaphore,
    max_places: usize,
    ending: Ending,
) where
    C: GracefulConnection,
    C::Error: std::fmt::Display,
{
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut goodbye_since = None;
    loop {
        tokio::select! {
            biased;
            ended = &mut connection => {
                if let Err(error) = ended {
                    tracing::debug!("connection: {error}");
                }
                return;
            }
            () = life.ended(&ending), if goodbye_since.is_none() => {
                goodbye_since = Some(Instant::now());
                connection.as_mut().graceful_shutdown();
            }
            _ = tick.tick() => {
                let is_crowded = places.available_permits() < max_places / 8;
                let now = Instant::now();
                // Not in the match: it would stay locked while the connection ends what it has.
                let late = life.state().overdue(is_crowded, now);
                match (late, goodbye_since) {
                    (None, _) => {}
                    (Some(Late::Idle), None) => {
                        goodbye_since = Some(now);
                        connection.as_mut().graceful_shutdown();
                    }
                    (Some(Late::Idle), Some(since)) if now.duration_since(since) <= GOODBYE_LIMIT => {}
                    (Some(Late::Idle), Some(_)) => return,
                    (Some(Late::Hopeless(why)), _) => {
                        tracing::debug!("closing a connection whose client {why}");
                        return;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// How many seconds pass until the client is late, at most 1,000, and why.
    fn late_after(life: &Life, is_crowded: bool) -> (u32, Option<Late>) {
        let now = Instant::now();
        let mut seconds = (1..=1_000).map(|n| (n, life.state().overdue(is_crowded, now + SECOND * n)));
        seconds.find(|(_, late)| late.is_some()).unwrap_or((1_000, None))
    }

    fn answered(life: &Life, is_post: bool, status: StatusCode) {
        drop(life.exchange(false, is_post).answered(status, ()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_first_head_has_ten_seconds_whether_bytes_come_or_not() {
        let life = Life::new();
        assert_eq!(late_after(&life, false), (10, Some(Late::Hopeless("sent no request"))));
        assert_eq!(late_after(&life, true).0, 2);
        let (mut client, server) = duplex(100);
        let mut server = Watched::new(server, life.clone());
        tokio::time::advance(9 * SECOND).await;
        client.write_all(b"G").await.unwrap();
        server.read_u8().await.unwrap();
        assert_eq!(late_after(&life, false).0, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_proven_connection_may_rest_and_a_further_head_counts_from_its_first_byte() {
        let life = Life::new();
        answered(&life, true, StatusCode::NO_CONTENT);
        assert_eq!(late_after(&life, false), (620, Some(Late::Idle)));
        assert_eq!(late_after(&life, true), (12, Some(Late::Idle)));
        tokio::time::advance(300 * SECOND).await;
        let (mut client, server) = duplex(100);
        let mut server = Watched::new(server, life.clone());
        client.write_all(b"POST").await.unwrap();
        server.read_u8().await.unwrap();
        tokio::time::advance(5 * SECOND).await;
        server.read_u8().await.unwrap();
        assert_eq!(late_after(&life, false), (5, Some(Late::Hopeless("sent half a request's head"))));
        let exchange = life.exchange(false, true);
        assert_eq!(late_after(&life, false), (1_000, None), "the handler has its own limits");
        drop(exchange);
        assert_eq!(late_after(&life, false), (620, Some(Late::Idle)));
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_was_never_answered_well_may_not_rest_for_long() {
        let life = Life::new();
        answered(&life, true, StatusCode::UNAUTHORIZED);
        answered(&life, false, StatusCode::OK);
        assert_eq!(late_after(&life, false), (12, Some(Late::Idle)));
        answered(&life, true, StatusCode::OK);
        answered(&life, true, StatusCode::BAD_REQUEST);
        assert_eq!(late_after(&life, false).0, 620, "one bad push does not spoil a good client");
    }

    #[tokio::test(start_paused = true)]
    async fn over_http2_bytes_are_no_head() {
        let life = Life::new();
        drop(life.exchange(true, true).answered(StatusCode::OK, ()));
        let (mut client, server) = duplex(100);
        let mut server = Watched::new(server, life.clone());
        client.write_all(b"ping").await.unwrap();
        server.read_u8().await.unwrap();
        assert_eq!(late_after(&life, false), (620, Some(Late::Idle)));
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_read_is_late_and_who_waits_for_an_answer_is_not() {
        let life = Life::new();
        let (mut client, server) = duplex(4);
        let mut server = Watched::new(server, life.clone());
        let _exchange = life.exchange(false, true);
        let mut writing = Box::pin(async {
            server.write_all(b"12345").await.unwrap();
            server.flush().await.unwrap();
        });
        assert!(futures_util::poll!(&mut writing).is_pending());
        let late = Some(Late::Hopeless("does not read its answers"));
        assert_eq!(late_after(&life, false), (6, late));
        client.read_u8().await.unwrap();
        writing.await;
        assert_eq!(late_after(&life, false), (1_000, None));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_whose_next_piece_nobody_asks_for_is_not_taken() {
        use http_body_util::{BodyExt, StreamBody};
        let life = Life::new();
        let (pieces, receiver) = tokio::sync::mpsc::channel(1);
        let stream = futures_util::stream::unfold(receiver, |mut receiver| async move {
            let piece: Option<Bytes> = receiver.recv().await;
            piece.map(|piece| (Ok::<_, io::Error>(Frame::data(piece)), receiver))
        });
        let body = StreamBody::new(Box::pin(stream));
        let mut answer = life.exchange(true, true).answered(StatusCode::OK, body);
        let late = || Some(Late::Hopeless("does not read its answers"));
        assert_eq!(late_after(&life, false), (6, late()), "not even the first one");
        pieces.send(Bytes::from_static(b"a")).await.unwrap();
        answer.frame().await.unwrap().unwrap();
        assert_eq!(late_after(&life, false), (6, late()));
        assert!(futures_util::poll!(answer.frame()).is_pending());
        assert_eq!(late_after(&life, false), (1_000, None), "now it is ours to say more");
        drop(answer);
        let state = life.state();
        assert_eq!((state.under_way, state.unsent), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_shutdown_waits_for_the_clients_end_but_not_for_long() {
        let life = Life::new();
        let (mut client, server) = duplex(10);
        let mut server = Watched::new(server, life.clone());
        client.write_all(b"unwanted").await.unwrap();
        let mut end = Box::pin(server.shutdown());
        assert!(futures_util::poll!(&mut end).is_pending());
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0, "it hears of the end");
        assert_eq!(late_after(&life, false), (2, Some(Late::Hopeless("goes on sending"))));
        drop(client);
        end.await.unwrap();
    }
}
