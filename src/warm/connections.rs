//! The connections of one host: kept while they are of use, shared where they speak HTTP/2, made where there is none.
//!
//! A client of our own, since each host has one anyway: it knows its host, so that a request costs it a lock and no look-up,
//! no parsing of its URL and no task. hyper speaks the protocols.

use std::error::Error;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderValue, Request, Response, Uri, header};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper_util::client::legacy::connect::Connection;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::time::Instant;
use tower_service::Service;

use super::tls::TlsConnector;

/// How often an HTTP/2 connection is asked whether it is still there, and how long it may take to say so: one that died
/// silently would otherwise take every request given to it down to its time-out.
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_LIMIT: Duration = Duration::from_secs(5);
/// Response heads beyond this are not read; those of HTTP/1.1 may have 100 headers, hyper's own limit. It is also the
/// most that a connection of HTTP/1.1 keeps of a body that is being read.
const MAX_HEAD_BYTES: u32 = 32 << 10;
/// What one stream, and all of one connection, may send ahead of its reader: 1,000 connections stay small, and an edge
/// next door is not held up.
const STREAM_WINDOW_BYTES: u32 = 256 << 10;
const CONNECTION_WINDOW_BYTES: u32 = 1 << 20;
/// Connections that are kept for the next request, and for how long.
const MAX_IDLE: usize = 32;
const IDLE_LIMIT: Duration = Duration::from_secs(60);

type Body = Empty<Bytes>;

/// The connections of one host, and the way to more of them.
#[derive(Debug)]
pub(super) struct Connections(Arc<Inner>);

struct Inner {
    connector: TlsConnector,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    /// Of HTTP/1.1, the one used last at the end, with when that was.
    idle: Vec<(http1::SendRequest<Body>, Instant)>,
    http2: Option<Shared>,
    /// Whether somebody looks after those that rest.
    is_swept: bool,
}

struct Shared {
    sender: http2::SendRequest<Body>,
    in_use: usize,
    used_at: Instant,
}

/// A connection, for one request: from its head to the end of its response's body. It must be dropped after the body, and is
/// then kept for the next request, if it is still of use.
pub(super) struct InUse {
    sender: Option<Sender>,
    connections: Weak<Inner>,
}

enum Sender {
    Http1(http1::SendRequest<Body>),
    Http2(http2::SendRequest<Body>),
}

/// Why there is no response.
#[derive(Debug)]
pub(super) enum Unanswered {
    /// There is no connection.
    Connect(Box<dyn Error + Send + Sync>),
    /// The connection broke, or what came over it is not HTTP.
    Http(hyper::Error),
}

impl Connections {
    pub(super) fn new(connector: TlsConnector) -> Self {
        Self(Arc::new(Inner { connector, kept: Mutex::default() }))
    }

    /// Sends a request, whose URI is absolute; to the head of its response.
    ///
    /// # Errors
    /// [`Unanswered`]. A connection that was kept and is closed before it answers is none: another one is used, since GET and
    /// HEAD may be sent twice (RFC 9110, section 9.2.2).
    pub(super) async fn request(
        &self,
        mut request: Request<Body>,
    ) -> Result<(Response<Incoming>, InUse), Unanswered> {
        let uri = request.uri().clone();
        let mut tries = 0;
        loop {
            tries += 1;
            let (mut sender, was_kept) = match self.0.take().await {
                Some(sender) => (sender, tries <= MAX_IDLE),
                // Boxed, since it takes more room than all the rest, and is rare.
                None => (Box::pin(self.0.connect(&uri)).await?, false),
            };
            // What was sent is gone.
            let again = was_kept.then(|| request.clone());
            let in_use = |sender| InUse { sender: Some(sender), connections: Arc::downgrade(&self.0) };
            let sent = match &mut sender {
                Sender::Http1(sender) => {
                    to_origin_form(&mut request, &uri);
                    sender.try_send_request(request).await
                }
                Sender::Http2(sender) => {
                    to_absolute_form(&mut request, &uri);
                    sender.try_send_request(request).await
                }
            };
            match sent {
                Ok(response) => return Ok((response, in_use(sender))),
                Err(error) => {
                    // A stream of HTTP/2 that failed says nothing of the others.
                    if let Sender::Http2(_) = sender {
                        drop(in_use(sender));
                    }
                    request = unanswered(error, again)?;
                }
            }
        }
    }
}

/// The request to send once more, where a kept connection was closed on it.
fn unanswered(
    mut error: TrySendError<Request<Body>>,
    again: Option<Request<Body>>,
) -> Result<Request<Body>, Unanswered> {
    let never_left = error.take_message().is_some();
    let error = error.into_error();
    again.filter(|_| never_left || error.is_incomplete_message()).ok_or(Unanswered::Http(error))
}

/// As HTTP/1.1 has it (RFC 9112, section 3.2.1).
fn to_origin_form(request: &mut Request<Body>, uri: &Uri) {
    let path = uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    *request.uri_mut() = path.into();
    // Every authority is a valid header value.
    let host = uri.authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
    if let Some(host) = host {
        request.headers_mut().insert(header::HOST, host);
    }
}

/// As HTTP/2 has it, where `:authority` stands for Host (RFC 9113, section 8.3.1).
fn to_absolute_form(request: &mut Request<Body>, uri: &Uri) {
    *request.uri_mut() = uri.clone();
    request.headers_mut().remove(header::HOST);
}

impl Inner {
    /// A kept connection that can take a request.
    async fn take(&self) -> Option<Sender> {
        loop {
            let (mut sender, used_at) = {
                let mut kept = self.kept();
                if let Some(sender) = kept.shared() {
                    return Some(Sender::Http2(sender));
                }
                kept.idle.pop()?
            };
            // At once, or as soon as the connection has seen the end of the body before; an error where it is closed.
            if used_at.elapsed() < IDLE_LIMIT && sender.ready().await.is_ok() {
                return Some(Sender::Http1(sender));
            }
        }
    }

    async fn connect(&self, uri: &Uri) -> Result<Sender, Unanswered> {
        let stream = self.connector.clone().call(uri.clone()).await.map_err(Unanswered::Connect)?;
        if stream.connected().is_negotiated_h2() {
            let mut builder = http2::Builder::new(TokioExecutor::new());
            builder
                .timer(TokioTimer::new())
                .max_header_list_size(MAX_HEAD_BYTES)
                .initial_stream_window_size(STREAM_WINDOW_BYTES)
                .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
                .keep_alive_interval(PING_INTERVAL)
                .keep_alive_timeout(PING_LIMIT);
            let (sender, connection) = builder.handshake(stream).await.map_err(Unanswered::Http)?;
            spawn(connection);
            // Of several that were made at once the first is kept, and the others end with their request.
            return Ok(Sender::Http2(self.kept().share(sender)));
        }
        let mut builder = http1::Builder::new();
        builder.max_buf_size(MAX_HEAD_BYTES as usize);
        let (mut sender, connection) = builder.handshake(stream).await.map_err(Unanswered::Http)?;
        spawn(connection);
        sender.ready().await.map_err(Unanswered::Http)?;
        Ok(Sender::Http1(sender))
    }

    fn give_back(self: Arc<Self>, sender: Sender) {
        let mut kept = self.kept();
        match sender {
            Sender::Http1(sender) if sender.is_closed() || kept.idle.len() >= MAX_IDLE => return,
            Sender::Http1(sender) => kept.idle.push((sender, Instant::now())),
            Sender::Http2(_) => kept.unshare(),
        }
        if !std::mem::replace(&mut kept.is_swept, true) {
            drop(kept);
            tokio::spawn(sweep(Arc::downgrade(&self)));
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        // Nothing panics while it is held.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    /// One more use of the shared connection, if there is one.
    fn shared(&mut self) -> Option<http2::SendRequest<Body>> {
        let shared = self.http2.as_mut().filter(|shared| !shared.sender.is_closed())?;
        shared.in_use += 1;
        Some(shared.sender.clone())
    }

    /// The shared connection: this one, unless there is one already.
    fn share(&mut self, sender: http2::SendRequest<Body>) -> http2::SendRequest<Body> {
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

    /// Closes what has rested for too long; true where something is left.
    fn sweep(&mut self) -> bool {
        self.idle.retain(|(sender, used_at)| !sender.is_closed() && used_at.elapsed() < IDLE_LIMIT);
        self.http2.take_if(|shared| {
            shared.sender.is_closed() || (shared.in_use == 0 && shared.used_at.elapsed() >= IDLE_LIMIT)
        });
        self.is_swept = !self.idle.is_empty() || self.http2.is_some();
        self.is_swept
    }
}

/// Looks after the connections that rest, for as long as there are any.
async fn sweep(connections: Weak<Inner>) {
    loop {
        tokio::time::sleep(IDLE_LIMIT / 4).await;
        match connections.upgrade() {
            Some(connections) if connections.kept().sweep() => {}
            _ => return,
        }
    }
}

fn spawn(connection: impl Future<Output = hyper::Result<()>> + Send + 'static) {
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!("connection to an edge: {error:?}");
        }
    });
}

impl Drop for InUse {
    fn drop(&mut self) {
        if let (Some(sender), Some(connections)) = (self.sender.take(), self.connections.upgrade()) {
            connections.give_back(sender);
        }
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
            Self::Http(error) => write!(f, "no response: {error}"),
        }
    }
}

impl Error for Unanswered {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Connect(error) => Some(&**error),
            Self::Http(error) => Some(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::net::SocketAddr;

    use http_body_util::BodyExt;
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

    fn get() -> Request<Body> {
        Request::builder().uri("http://example.com/a?b").body(Empty::new()).unwrap()
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
            let (response, _in_use) = connections.request(get()).await.unwrap();
            assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "xxxxx");
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
    async fn a_connection_with_a_body_left_on_it_is_not_used_again() {
        let (connections, mut streams) = connections().await;
        let (mut first, ()) = tokio::join!(
            async {
                let mut stream = streams.recv().await.unwrap();
                answer(&mut stream, 1 << 30, 10).await;
                stream
            },
            async {
                let (response, in_use) = connections.request(get()).await.unwrap();
                drop(response);
                drop(in_use);
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
                connections.request(get())
            );
            accepted.push(stream);
            in_use.push(asked.unwrap().1);
        }
        drop(in_use);
        assert_eq!(connections.0.kept().idle.len(), MAX_IDLE);
        tokio::time::pause();
        tokio::time::advance(IDLE_LIMIT / 2).await;
        assert!(connections.0.take().await.is_some(), "it rests for longer than that");
        tokio::time::advance(IDLE_LIMIT).await;
        for mut stream in accepted {
            assert_eq!(stream.read(&mut [0]).await.unwrap_or(0), 0, "it is closed");
        }
        assert!(!connections.0.kept().is_swept, "nobody looks after nothing");
    }
}
