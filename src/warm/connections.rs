//! The connections of one host: kept while they are of use, shared where they speak HTTP/2, made where there is none.
//!
//! A client of our own, since each host has one anyway: it knows its host, so that a request costs it a lock and no look-up,
//! no parsing of its URL and no task. `http1` speaks the common protocol, hyper speaks HTTP/2.

use std::error::Error;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http::response::Parts;
use http_body_util::Empty;
use http_cache_semantics::RequestLike;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use thread_local::ThreadLocal;
use tokio::sync::Notify;
use tokio::time::Instant;
use url::Url;

use super::body::ResponseBody;
use super::client::{Asked, MAX_INTERIM_RESPONSES};
use super::http1::{HeadError, Http1, MAX_HEAD_BYTES};
use super::tls::TlsConnector;

/// How often an HTTP/2 connection is asked whether it is still there, and how long it may take to say so: one that died
/// silently would otherwise take every request given to it down to its time-out.
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_LIMIT: Duration = Duration::from_secs(5);
/// What one stream, and all of one connection, may send ahead of its reader: 1,000 connections stay small, and an edge
/// next door is not held up.
const STREAM_WINDOW_BYTES: u32 = 256 << 10;
const CONNECTION_WINDOW_BYTES: u32 = 1 << 20;
/// Connections that are kept for the next request, as many as may be in use after a burst, and for how long.
const MAX_IDLE: usize = 256;
const IDLE_LIMIT: Duration = Duration::from_secs(60);

type Http2 = http2::SendRequest<Empty<Bytes>>;

/// The connections of one host, and the way to more of them.
#[derive(Debug)]
pub(super) struct Connections(Arc<Inner>);

struct Inner {
    connector: TlsConnector,
    /// By thread: where a server's threads have a runtime each, a connection is of most use on the one that waits for it.
    kept: ThreadLocal<Mutex<Kept>>,
    /// Whether somebody looks after those that rest.
    is_swept: AtomicBool,
}

#[derive(Default)]
struct Kept {
    /// Of HTTP/1.1, the one used last at the end.
    idle: Vec<Idle>,
    http2: Option<Shared>,
}

struct Idle {
    http1: Http1,
    used_at: Instant,
}

struct Shared {
    sender: Http2,
    in_use: usize,
    used_at: Instant,
}

/// Where a connection came from, and goes back to.
pub(super) struct Home(Weak<Inner>);

/// One use of a connection that is shared.
pub(super) struct InUse(Home);

enum Connection {
    Http1(Http1),
    Http2(Http2),
}

/// Why there is no response.
#[derive(Debug)]
pub(super) enum Unanswered {
    /// There is no connection.
    Connect(Box<dyn Error + Send + Sync>),
    /// The connection broke, or what came over it is not HTTP.
    Http1(HeadError),
    Http2(hyper::Error),
    /// More interim responses than are put up with, over HTTP/2.
    TooManyInterimResponses,
}

impl Connections {
    pub(super) fn new(connector: TlsConnector) -> Self {
        Self(Arc::new(Inner { connector, kept: ThreadLocal::new(), is_swept: AtomicBool::new(false) }))
    }

    /// Sends a request; to the head of its response, and its content.
    ///
    /// # Errors
    /// [`Unanswered`]. A connection that was kept and is closed before it answers is none: another one is used, since GET and
    /// HEAD may be sent twice (RFC 9110, section 9.2.2).
    pub(super) async fn request(&self, asked: &Asked<'_>) -> Result<(Parts, ResponseBody), Unanswered> {
        let mut tries = 0;
        loop {
            tries += 1;
            let (connection, was_kept) = match self.0.take() {
                Some(connection) => (connection, tries <= MAX_IDLE),
                // Boxed, since it takes more room than all the rest, and is rare.
                None => (Box::pin(self.0.connect(asked.url)).await?, false),
            };
            let home = Home(Arc::downgrade(&self.0));
            match connection {
                Connection::Http1(http1) => match http1.exchange(asked).await {
                    Ok((head, reader)) => return Ok((head, ResponseBody::http1(reader, home))),
                    Err(HeadError::Gone(_)) if was_kept => {}
                    Err(error) => return Err(Unanswered::Http1(error)),
                },
                // Boxed likewise.
                Connection::Http2(sender) => {
                    if let Some(answered) = Box::pin(ask_http2(sender, asked, InUse(home), was_kept)).await? {
                        return Ok(answered);
                    }
                }
            }
        }
    }
}

/// Sends a request over HTTP/2; none where it is to be sent once more, since a kept connection was closed on it.
async fn ask_http2(
    mut sender: Http2,
    asked: &Asked<'_>,
    in_use: InUse,
    was_kept: bool,
) -> Result<Option<(Parts, ResponseBody)>, Unanswered> {
    let mut request = Request::new(Empty::new());
    *request.method_mut() = asked.method.clone();
    // Its authority becomes `:authority`, which stands for Host (RFC 9113, section 8.3.1).
    *request.uri_mut() = asked.uri();
    *request.headers_mut() = asked.headers.clone().into_owned();
    let too_many = Arc::new(Notify::new());
    let (teller, count) = (too_many.clone(), AtomicU32::new(0));
    hyper::ext::on_informational(&mut request, move |_| {
        if count.fetch_add(1, Ordering::Relaxed) == MAX_INTERIM_RESPONSES {
            teller.notify_one();
        }
    });
    let sent = tokio::select! {
        // A flood is read in so large pieces that the time may be over by the time that it is seen.
        biased;
        () = too_many.notified() => return Err(Unanswered::TooManyInterimResponses),
        sent = sender.try_send_request(request) => sent,
    };
    match sent {
        Ok(response) => {
            let (head, incoming) = response.into_parts();
            Ok(Some((head, ResponseBody::http2(incoming, in_use))))
        }
        Err(mut error) => {
            let never_left = error.take_message().is_some();
            let error = error.into_error();
            let is_again = was_kept && (never_left || error.is_incomplete_message());
            if is_again { Ok(None) } else { Err(Unanswered::Http2(error)) }
        }
    }
}

impl Inner {
    /// A kept connection that can take a request.
    fn take(&self) -> Option<Connection> {
        let mut kept = self.kept();
        if let Some(sender) = kept.shared() {
            return Some(Connection::Http2(sender));
        }
        while let Some(mut idle) = kept.idle.pop() {
            if idle.is_of_use() {
                return Some(Connection::Http1(idle.http1));
            }
        }
        None
    }

    async fn connect(&self, url: &Url) -> Result<Connection, Unanswered> {
        let (stream, is_http2) = self.connector.connect(url).await.map_err(Unanswered::Connect)?;
        if !is_http2 {
            return Ok(Connection::Http1(Http1::new(stream)));
        }
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .max_header_list_size(MAX_HEAD_BYTES as u32)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_LIMIT);
        let (sender, connection) =
            builder.handshake(TokioIo::new(stream)).await.map_err(Unanswered::Http2)?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!("connection to an edge: {error:?}");
            }
        });
        // Of several that were made at once the first is kept, and the others end with their request.
        Ok(Connection::Http2(self.kept().share(sender)))
    }

    /// What this thread keeps.
    fn kept(&self) -> MutexGuard<'_, Kept> {
        lock(self.kept.get_or_default())
    }

    /// Closes what has rested for too long, or was closed by the host; true where something is left.
    fn sweep(&self) -> bool {
        // Whoever keeps one from here on may find it true again, and not look after it.
        self.is_swept.store(false, Ordering::SeqCst);
        let is_rest = self.kept.iter().fold(false, |is_rest, kept| lock(kept).sweep() | is_rest);
        is_rest && !self.is_swept.swap(true, Ordering::SeqCst)
    }
}

impl Home {
    /// Keeps a connection for the next request, if there is room.
    pub(super) fn keep(&self, http1: Http1) {
        self.change(|kept| {
            if kept.idle.len() < MAX_IDLE {
                kept.idle.push(Idle { http1, used_at: Instant::now() });
            }
        });
    }

    fn change(&self, change: impl FnOnce(&mut Kept)) {
        let Some(connections) = self.0.upgrade() else { return };
        change(&mut connections.kept());
        if !connections.is_swept.swap(true, Ordering::SeqCst) {
            tokio::spawn(sweep(self.0.clone()));
        }
    }
}

impl Idle {
    fn is_of_use(&mut self) -> bool {
        self.used_at.elapsed() < IDLE_LIMIT && self.http1.is_quiet()
    }
}

impl Kept {
    /// One more use of the shared connection, if there is one.
    fn shared(&mut self) -> Option<Http2> {
        let shared = self.http2.as_mut().filter(|shared| !shared.sender.is_closed())?;
        shared.in_use += 1;
        Some(shared.sender.clone())
    }

    /// The shared connection: this one, unless there is one already.
    fn share(&mut self, sender: Http2) -> Http2 {
        if let Some(sender) = self.shared() {
            return sender;
        }
        self.http2 = Some(Shared { sender: sender.clone(), in_use: 1, used_at: Instant::now() });
        sender
    }

    fn unshare(&mut self) {
        if let Some(shared) = &mut self.http2 {
            // A connection may have taken the place of the one that was used.
            shared.in_use = shared.in_use.saturating_sub(1);
            shared.used_at = Instant::now();
        }
    }

    /// Closes what has rested for too long, or was closed by the host; true where something is left.
    fn sweep(&mut self) -> bool {
        self.idle.retain_mut(Idle::is_of_use);
        self.http2.take_if(|shared| {
            shared.sender.is_closed() || (shared.in_use == 0 && shared.used_at.elapsed() >= IDLE_LIMIT)
        });
        !self.idle.is_empty() || self.http2.is_some()
    }
}

fn lock(kept: &Mutex<Kept>) -> MutexGuard<'_, Kept> {
    // Nothing panics while it is held.
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Looks after the connections that rest, for as long as there are any.
async fn sweep(connections: Weak<Inner>) {
    loop {
        tokio::time::sleep(IDLE_LIMIT / 4).await;
        match connections.upgrade() {
            Some(connections) if connections.sweep() => {}
            _ => return,
        }
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.0.change(Kept::unshare);
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connections").finish_non_exhaustive()
    }
}

impl fmt::Display for Unanswered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(error) => write!(f, "no connection: {error}"),
            Self::Http1(error) => write!(f, "no response: {error}"),
            Self::Http2(error) => write!(f, "no response: {error}"),
            Self::TooManyInterimResponses => f.write_str("no response: too many interim responses"),
        }
    }
}

impl Error for Unanswered {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Connect(error) => Some(&**error),
            Self::Http1(error) => Some(error),
            Self::Http2(error) => Some(error),
            Self::TooManyInterimResponses => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;
    use std::collections::HashMap;
    use std::net::SocketAddr;
    use std::sync::LazyLock;

    use http::HeaderMap;
    use http::Method;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::sync::mpsc;

    use super::*;
    use crate::warm::connect::Connector;
    use crate::warm::guard::Guard;
    use crate::warm::stand::NameServer;

    /// Connections to a listener, with those that it accepts.
    async fn connections() -> (Connections, mpsc::Receiver<TcpStream>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr: SocketAddr = listener.local_addr().unwrap();
        let (taken, streams) = mpsc::channel(64);
        tokio::spawn(async move { while taken.send(listener.accept().await.unwrap().0).await.is_ok() {} });
        let connect_to = vec![format!("*={addr}").parse().unwrap()];
        let guard = Arc::new(Guard { connect_to, ..Guard::default() });
        let names = NameServer::start(HashMap::new(), Duration::ZERO).await.names(Duration::from_nanos(1));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let tls = tls.unwrap().with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
        let limit = Duration::from_secs(3_600);
        (Connections::new(TlsConnector::new(Connector::new(guard, names, limit), tls, limit)), streams)
    }

    static URL: LazyLock<Url> = LazyLock::new(|| Url::parse("http://example.com/a?b").unwrap());

    fn get() -> Asked<'static> {
        Asked { method: &Method::GET, url: &URL, headers: Cow::Owned(HeaderMap::new()) }
    }

    /// Answers one request with so many bytes of those that it says.
    async fn answer(stream: &mut TcpStream, said: usize, sent: usize) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {said}\r\n\r\n{}", "x".repeat(sent));
        stream.write_all(answer.as_bytes()).await.unwrap();
        String::from_utf8(head).unwrap().to_lowercase()
    }

    async fn read(body: &mut ResponseBody) -> Option<u64> {
        std::future::poll_fn(|context| body.poll_read(context, None)).await.unwrap()
    }

    /// Sends a request, which this answers, and reads the answer.
    async fn whole(connections: &Connections, stream: impl Future<Output = TcpStream>) -> TcpStream {
        let answered = async {
            let mut stream = stream.await;
            let head = answer(&mut stream, 5, 5).await;
            assert!(
                head.starts_with("get /a?b http/1.1\r\n") && head.contains("\r\nhost: example.com\r\n"),
                "{head}"
            );
            stream
        };
        let asked = async {
            let (_, mut body) = connections.request(&get()).await.unwrap();
            assert_eq!(read(&mut body).await, Some(5));
            assert_eq!(read(&mut body).await, None);
        };
        tokio::join!(answered, asked).0
    }

    #[tokio::test]
    async fn a_connection_that_was_closed_while_it_rested_costs_no_request() {
        let (connections, mut streams) = connections().await;
        let mut first = whole(&connections, async { streams.recv().await.unwrap() }).await;
        for _ in 0..3 {
            first = whole(&connections, async { first }).await;
        }
        assert!(streams.try_recv().is_err(), "one is enough");
        drop(first);
        whole(&connections, async { streams.recv().await.unwrap() }).await;
    }

    #[tokio::test]
    async fn a_connection_rests_on_the_thread_that_waits_for_it() {
        let (connections, mut streams) = connections().await;
        let _stream = whole(&connections, async { streams.recv().await.unwrap() }).await;
        let elsewhere =
            std::thread::scope(|scope| scope.spawn(|| connections.0.take().is_some()).join().unwrap());
        assert!(!elsewhere);
        assert!(connections.0.take().is_some());
    }

    #[tokio::test]
    async fn a_connection_with_a_body_left_on_it_is_not_used_again() {
        let (connections, mut streams) = connections().await;
        let (mut first, ()) = tokio::join!(
            async {
                let mut stream = streams.recv().await.unwrap();
                answer(&mut stream, 1 << 30, 10).await;
                stream
            },
            async {
                drop(connections.request(&get()).await.unwrap());
            }
        );
        whole(&connections, async { streams.recv().await.unwrap() }).await;
        assert_eq!(first.read(&mut [0]).await.unwrap_or(0), 0, "it is closed");
    }

    #[tokio::test]
    async fn as_many_are_kept_as_may_rest_and_for_as_long() {
        let (connections, mut streams) = connections().await;
        let mut accepted = Vec::new();
        let mut in_use = Vec::new();
        for _ in 0..MAX_IDLE + 5 {
            let (stream, asked) = tokio::join!(
                async {
                    let mut stream = streams.recv().await.unwrap();
                    answer(&mut stream, 0, 0).await;
                    stream
                },
                async { connections.request(&get()).await }
            );
            accepted.push(stream);
            in_use.push(asked.unwrap().1);
        }
        drop(in_use);
        assert_eq!(connections.0.kept().idle.len(), MAX_IDLE);
        tokio::time::pause();
        tokio::time::advance(IDLE_LIMIT / 2).await;
        assert!(connections.0.take().is_some(), "it rests for longer than that");
        tokio::time::advance(IDLE_LIMIT).await;
        for mut stream in accepted {
            let ended =
                tokio::time::timeout(IDLE_LIMIT, async { stream.read(&mut [0]).await.unwrap_or(0) }).await;
            assert_eq!(ended, Ok(0), "it is closed");
        }
        assert!(!connections.0.is_swept.load(Ordering::Relaxed), "nobody looks after nothing");
    }
}
