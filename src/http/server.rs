//! The accept loop: bind, then run until stopped, then let every request under way be answered.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// Connections open at once; further ones wait in the listener's backlog.
const MAX_CONNECTIONS: usize = 4_096;
/// How often an HTTP/2 client is asked whether it is still there, and how long it may take to say so.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_LIMIT: Duration = Duration::from_secs(10);
/// How long a client may take to say anything on a new connection.
const FIRST_BYTE_LIMIT: Duration = Duration::from_secs(10);
/// How long a connection may be idle between requests, and a request's head take: hyper has one timer for both, and a
/// client that sends now and then should not find its connection closed just as it uses it.
const KEEP_ALIVE_LIMIT: Duration = Duration::from_secs(75);

/// A bound listener.
#[derive(Debug)]
pub(crate) struct Server {
    listener: TcpListener,
    addr: SocketAddr,
}

impl Server {
    /// Binds `addr`; port 0 takes any free one.
    ///
    /// # Errors
    /// A port that is taken or not allowed.
    pub(crate) async fn bind(addr: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(addr).await.with_context(|| format!("listening on {addr}"))?;
        let addr = listener.local_addr().context("reading the bound address")?;
        Ok(Self { listener, addr })
    }

    /// Where it listens.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Answers requests with `handler` until `stop`; then takes no new connection, finishes the requests under way
    /// and returns, within `drain_limit`.
    pub(crate) async fn run<H, F, B>(self, handler: H, stop: CancellationToken, drain_limit: Duration)
    where
        H: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
        F: Future<Output = Response<B>> + Send + 'static,
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(KEEP_ALIVE_LIMIT);
        builder
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_LIMIT);
        let connections = GracefulShutdown::new();
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let accept = async {
                let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
                Ok::<_, io::Error>((self.listener.accept().await?.0, place))
            };
            let (stream, place) = tokio::select! {
                accepted = accept => match accepted {
                    Ok(accepted) => accepted,
                    // Out of descriptors, most likely: the next try would fail at once and spin.
                    Err(error) => {
                        tracing::warn!("accepting a connection: {error}");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                },
                () = stop.cancelled() => break,
            };
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!("TCP_NODELAY: {error}");
            }
            let handler = handler.clone();
            let service = service_fn(move |request| {
                let answer = handler(request);
                async move { Ok::<_, Infallible>(answer.await) }
            });
            let (builder, watcher, stop) = (builder.clone(), connections.watcher(), stop.clone());
            tokio::spawn(async move {
                // Which version of HTTP it speaks is told by its first bytes, for which hyper would wait for ever.
                let first_byte = tokio::time::timeout(FIRST_BYTE_LIMIT, stream.readable());
                tokio::select! {
                    spoke = first_byte => if spoke.is_err() { return },
                    () = stop.cancelled() => return,
                }
                let connection = builder.serve_connection(TokioIo::new(stream), service).into_owned();
                if let Err(error) = watcher.watch(connection).await {
                    tracing::debug!("connection: {error}");
                }
                drop(place);
            });
        }
        drop(self.listener);
        if tokio::time::timeout(drain_limit, connections.shutdown()).await.is_err() {
            tracing::warn!("stopped with requests under way");
        }
    }
}
