//! The accept loop: bind, then run until stopped, then let every request under way be answered.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use futures_util::FutureExt;
use http::header::{CONNECTION, HOST, TRANSFER_ENCODING};
use http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body::Body;
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::connection::{Answered, Ending, Life, Watched, drive};
use super::workers::Workers;

/// Connections open at once; further ones wait in the listener's backlog.
const MAX_CONNECTIONS: usize = 4_096;
const BACKLOG: u32 = 1_024;
/// What the system keeps for one connection and direction. By itself it would go up to megabytes, for each client that
/// sends what is not read, or does not read.
const RECEIVE_BUFFER_BYTES: u32 = 64 << 10;
const SEND_BUFFER_BYTES: u32 = 16 << 10;
/// The most that the target of a request may take: a push's is its path and a token of the operator's.
const MAX_TARGET_BYTES: usize = 8_192;
/// What a head may take in all, and what is read ahead of a body.
const MAX_HEAD_BYTES: usize = 64 << 10;
/// Requests of one HTTP/2 connection that are under way at once.
const MAX_STREAMS: u32 = 200;
/// What an HTTP/2 client may send of one body, and of all bodies of a connection, before it is read.
const STREAM_WINDOW_BYTES: u32 = 64 << 10;
const CONNECTION_WINDOW_BYTES: u32 = 256 << 10;
/// How often an HTTP/2 client is asked whether it is still there, and how long it may take to say so.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_LIMIT: Duration = Duration::from_secs(10);
/// How long, at the end, connections that rest stay open, and new ones are taken, so that no request is lost that is on
/// its way: whoever is answered hears that it was the connection's last. At most half of the time there is.
const LINGER: Duration = Duration::from_secs(5);

/// A bound listener.
#[derive(Debug)]
pub(crate) struct Server {
    listener: TcpListener,
    addr: SocketAddr,
    max_headers: Option<usize>,
    workers: Workers,
}

impl Server {
    /// Binds `addr` for requests and answers of some kilobytes; port 0 takes any free one.
    ///
    /// # Errors
    /// A port that is taken or not allowed.
    pub(crate) async fn bind(addr: SocketAddr) -> anyhow::Result<Self> {
        Self::bound(addr, listen(addr))
    }

    /// The same for large bodies, with as much memory for each connection as the system likes.
    pub(crate) async fn bind_for_streams(addr: SocketAddr) -> anyhow::Result<Self> {
        Self::bound(addr, TcpListener::bind(addr).await)
    }

    fn bound(addr: SocketAddr, listener: io::Result<TcpListener>) -> anyhow::Result<Self> {
        let listener = listener.with_context(|| format!("listening on {addr}"))?;
        let addr = listener.local_addr().context("reading the bound address")?;
        Ok(Self { listener, addr, max_headers: None, workers: Workers::own() })
    }

    /// Takes so many headers of a request, instead of 100. hyper then keeps them on the heap, which costs each request more.
    pub(crate) fn with_max_headers(self, max_headers: usize) -> Self {
        Self { max_headers: Some(max_headers), ..self }
    }

    /// Shares its connections out among these, instead of having all on the runtime that it runs on.
    pub(crate) fn with_workers(self, workers: Workers) -> Self {
        Self { workers, ..self }
    }

    /// Where it listens.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Answers requests with `handler` until `stop`; then lets every connection know with its next answer that it was the
    /// last one, closes those that rest, finishes the requests under way and returns, within `drain_limit`.
    ///
    /// The handler goes on being asked after `stop`. Where it panics the client gets 500, and nobody else notices.
    pub(crate) async fn run<H, F, B>(self, handler: H, stop: CancellationToken, drain_limit: Duration)
    where
        H: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
        F: Future<Output = Response<B>> + Send + 'static,
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let builder = builder(self.max_headers);
        let workers = self.workers;
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let ending = Ending { draining: stop.clone(), closing: CancellationToken::new() };
        let serve = |stream: TcpStream, place| {
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!("TCP_NODELAY: {error}");
            }
            let life = Life::new();
            let (handler, draining, requests) = (handler.clone(), stop.clone(), life.clone());
            let service = service_fn(move |request| {
                answer(request, handler.clone(), requests.clone(), draining.clone()).map(Ok::<_, Infallible>)
            });
            let (builder, places, ending) = (builder.clone(), places.clone(), ending.clone());
            workers.spawn(stream, move |stream| async move {
                let stream = TokioIo::new(Watched::new(stream, life.clone()));
                // Made where it stays: it is large.
                let connection = pin!(builder.serve_connection(stream, service));
                drive(connection, life, &places, MAX_CONNECTIONS, ending).await;
                drop(place);
            });
        };
        let accept = async || {
            let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
            Ok::<_, io::Error>((self.listener.accept().await?.0, place))
        };

        // 1. Until told to stop; 2. until nobody is connected, or has had the time to hear of it.
        let linger = async {
            stop.cancelled().await;
            let _ = tokio::time::timeout(LINGER.min(drain_limit / 2), workers.wait()).await;
        };
        tokio::pin!(linger);
        loop {
            tokio::select! {
                biased;
                () = &mut linger => break,
                accepted = accept() => match accepted {
                    Ok((stream, place)) => serve(stream, place),
                    // Out of descriptors, most likely: the next try would fail at once and spin.
                    Err(error) => {
                        tracing::warn!("accepting a connection: {error}");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
            }
        }

        // 3. Who is in the backlog has sent a request, perhaps; then what is under way is finished.
        while let Some(Ok((stream, place))) = accept().now_or_never() {
            serve(stream, place);
        }
        drop(self.listener);
        ending.closing.cancel();
        let left = drain_limit.saturating_sub(LINGER.min(drain_limit / 2));
        if tokio::time::timeout(left, workers.wait()).await.is_err() {
            tracing::warn!("stopped with {} connections open", workers.connections());
        }
    }
}

/// Listens with buffers of a set size, which connections inherit.
fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A restarted server takes its port again at once.
    socket.set_reuseaddr(true)?;
    socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
    socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES)?;
    socket.bind(addr)?;
    socket.listen(BACKLOG)
}

/// The limits of both versions of HTTP. Of the rest h2's own are right: it ends a connection on a flood of resets or of
/// CONTINUATION frames.
fn builder(max_headers: Option<usize>) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        // It would count the time between requests too; `connection.rs` has both limits.
        .header_read_timeout(None)
        // What a client asked for is done even where it leaves meanwhile: a push that is given up comes again, and finds its URL
        // warm. Nor is each step of each request held up to look whether the client is still there.
        .half_close(true)
        // Answers are small: one piece costs less to send than two.
        .writev(false)
        .max_buf_size(MAX_HEAD_BYTES);
    if let Some(max_headers) = max_headers {
        builder.http1().max_headers(max_headers);
    }
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_LIMIT)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEAD_BYTES as u32)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
    builder
}

/// One request's answer: the handler's, unless HTTP itself forbids to ask it, or it panics.
async fn answer<H, F, B>(
    request: Request<Incoming>,
    handler: H,
    life: Life,
    draining: CancellationToken,
) -> Response<Answered<Either<B, Full<Bytes>>>>
where
    H: Fn(Request<Incoming>) -> F,
    F: Future<Output = Response<B>>,
{
    let is_http2 = request.version() == Version::HTTP_2;
    let exchange = life.exchange(is_http2, request.method() == Method::POST);
    let mut response = match refusal(&request) {
        Some((status, why)) => plain(status, why).map(Either::Right),
        None => {
            let handling = AssertUnwindSafe(async move { handler(request).await });
            match handling.catch_unwind().await {
                Ok(response) => response.map(Either::Left),
                Err(panic) => {
                    let why = panic.downcast_ref::<String>().map(String::as_str);
                    let why = why.or(panic.downcast_ref::<&str>().copied()).unwrap_or("it does not say why");
                    tracing::error!("a request's handler panicked, which is a defect of cdnwarm: {why}");
                    plain(StatusCode::INTERNAL_SERVER_ERROR, "a defect of this server").map(Either::Right)
                }
            }
        }
    };
    if is_http2 {
        // There it says GOAWAY.
        response.headers_mut().remove(CONNECTION);
    } else if draining.is_cancelled() {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    let status = response.status();
    response.map(|body| exchange.answered(status, body))
}

/// What HTTP/1.1 wants refused and hyper lets pass, with the status and the reason.
fn refusal<B>(request: &Request<B>) -> Option<(StatusCode, &'static str)> {
    let headers = request.headers();
    if request.version() == Version::HTTP_11 && headers.get_all(HOST).iter().count() != 1 {
        return Some((StatusCode::BAD_REQUEST, "one Host is wanted"));
    }
    // hyper takes any list that ends with chunked. Other codings are not undone here, and a list with chunked twice is
    // one that two servers may read differently.
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next()
        && !(coding.as_bytes().eq_ignore_ascii_case(b"chunked") && codings.next().is_none())
    {
        return Some((StatusCode::BAD_REQUEST, "no transfer coding but chunked, once, is understood"));
    }
    let target_bytes = request.uri().path_and_query().map_or(0, |target| target.as_str().len());
    (target_bytes > MAX_TARGET_BYTES).then_some((StatusCode::URI_TOO_LONG, "the request target is too long"))
}

/// An answer after which nothing more is read from the connection.
fn plain(status: StatusCode, why: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(why.as_bytes())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use hyper_util::client::legacy::Client;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Where a handler that panics on `/panic`, and says `fine` else, listens.
    async fn panicking() -> (SocketAddr, tokio_util::sync::DropGuard) {
        let server = Server::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let (addr, stop) = (server.addr(), CancellationToken::new());
        let handler = |request: Request<Incoming>| async move {
            assert_ne!(request.uri().path(), "/panic", "as asked");
            Response::new(Full::new(Bytes::from_static(b"fine")))
        };
        tokio::spawn(server.run(handler, stop.clone(), Duration::from_secs(1)));
        (addr, stop.drop_guard())
    }

    #[tokio::test]
    async fn a_panic_is_answered_and_the_connections_other_requests_too() {
        let (addr, _stop) = panicking().await;
        for h2 in [false, true] {
            let client = Client::builder(TokioExecutor::new()).http2_only(h2).build_http();
            let ask = async |path: &str| {
                let uri = format!("http://{addr}{path}");
                let request = Request::builder().uri(uri).body(Full::<Bytes>::default()).unwrap();
                let answer = client.request(request).await.unwrap();
                (answer.status().as_u16(), answer.into_body().collect().await.unwrap().to_bytes())
            };
            let (one, other) = tokio::join!(ask("/panic"), ask("/"));
            assert_eq!((one.0, other.0, &other.1[..]), (500, 200, &b"fine"[..]));
            assert!(!one.1.windows(8).any(|text| text == b"as asked"), "what it says is for the log");
            assert_eq!(ask("/").await.0, 200);
        }
    }

    #[tokio::test]
    async fn after_a_stop_each_connection_hears_that_its_answer_was_the_last() {
        let (addr, stop) = panicking().await;
        let mut client = TcpStream::connect(addr).await.unwrap();
        let mut ask = async || {
            client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
            let mut answer = vec![0; 1024];
            let mut length = 0;
            while !answer[..length].ends_with(b"fine") {
                let read = client.read(&mut answer[length..]).await.unwrap();
                assert_ne!(read, 0, "an answer is whole");
                length += read;
            }
            String::from_utf8_lossy(&answer[..length]).to_lowercase()
        };
        assert!(!ask().await.contains("connection: close"));
        drop(stop);
        assert!(ask().await.contains("connection: close"));
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    }
}
