//! The embedded Pub/Sub: google.pubsub.v1 over gRPC and REST on one port, in memory, for `demo` and for tests.
//!
//! Clients use it unchanged: Google's SDKs with their emulator settings, or plain HTTP. Read on in `broker.rs` (the
//! methods), `subscription.rs` and `backlog.rs` (delivery), `push.rs` (push), `filter.rs` (filters).
//!
//! It keeps to production's rules, also where Google's emulator (0.8.20) does not:
//! - 202 acknowledges a push, 203 does not; a push has the ack deadline as its time-out.
//! - A push carries `orderingKey`, and no `data` where there is none.
//! - The whole subscription backs off after pushes that are not acknowledged, and many pushes are under way at once,
//!   from a few up to 200, where the emulator has two and tries again each second.
//! - Filters are checked when a subscription is created, and applied.
//! - More than 100 attributes are refused.
//! - REST needs no `Content-Type`.
//!
//! Where it differs from production:
//! - Everything is gone when it stops. A subscription keeps at most 256 MiB (each message counting 512 bytes more
//!   than its own); publishing to a full one answers `RESOURCE_EXHAUSTED`. At most 1,000 topics and subscriptions.
//! - `UNIMPLEMENTED` for updates, snapshots, seeking, detaching, schemas, dead letters, ordering, exactly-once
//!   delivery, unwrapped pushes, pushes with an OIDC token (nobody here could sign one) and exports. Ordering keys are
//!   carried, not honoured.
//! - Pushes go to plain http endpoints only, and an interim 102 does not end a push.
//! - No authentication, no quotas, no rate limit for an ordering key, no expiry of idle subscriptions.

mod backlog;
mod broker;
mod checks;
mod filter;
mod grpc;
mod json;
mod push;
mod rest;
mod streaming_pull;
mod subscription;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use http::{Request, Response, header};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tonic::body::Body;

use self::broker::Broker;

/// The most that a request may take on the wire: a publish request of the largest size as JSON, where base64 adds a
/// third. The exact limit is checked, and told, behind it.
const MAX_REQUEST_BYTES: usize = checks::MAX_PUBLISH_BYTES / 2 * 3;

/// The most connections at once; more wait in the listener's queue.
const MAX_CONNECTIONS: usize = 1_024;

/// How long connections and pushes may take to end.
const GRACE: Duration = Duration::from_secs(1);

/// How long to wait after a failed accept, most likely for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A Pub/Sub server that is bound but not running yet. It starts without topics.
#[derive(Debug)]
pub struct EmbeddedPubsub {
    listener: TcpListener,
    addr: SocketAddr,
    broker: Arc<Broker>,
}

impl EmbeddedPubsub {
    /// Listens at `addr`; port 0 takes a free one.
    ///
    /// # Errors
    /// Where the address cannot be listened at.
    pub async fn bind(addr: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(addr)
            .await
            .with_context(|| format!("listening for Pub/Sub clients at {addr}"))?;
        let addr = listener.local_addr().context("reading the Pub/Sub listener's address")?;
        Ok(Self { listener, addr, broker: Arc::new(Broker::new()) })
    }

    /// Where it listens: the value for `PUBSUB_EMULATOR_HOST`.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Serves until `stop`; then ends pulls and streams with `UNAVAILABLE`, gives pushes that are under way half a
    /// second and connections one second, and returns.
    pub async fn run(self, stop: CancellationToken) {
        // Whether told to stop or dropped: nothing goes on behind the caller's back.
        let _closing = self.broker.closing.clone().drop_guard();
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let graceful = GracefulShutdown::new();
        let mut connections = JoinSet::new();
        loop {
            let accept = async {
                let slot = Arc::clone(&slots).acquire_owned().await.expect("the semaphore is never closed");
                (slot, self.listener.accept().await)
            };
            tokio::select! {
                () = stop.cancelled() => break,
                Some(_) = connections.join_next() => {}
                (slot, accepted) = accept => match accepted {
                    Ok((stream, _)) => {
                        let connection = serve_connection(stream, Arc::clone(&self.broker), graceful.watcher());
                        connections.spawn(async move {
                            connection.await;
                            drop(slot);
                        });
                    }
                    Err(error) => {
                        tracing::warn!(%error, "accepting a Pub/Sub client failed");
                        sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
        drop(self.listener);
        self.broker.closing.cancel();
        self.broker.pushes.close();
        // What does not end in time is aborted when the set is dropped.
        let _ = timeout(GRACE, async { tokio::join!(graceful.shutdown(), self.broker.pushes.wait()) }).await;
    }
}

async fn serve_connection(
    stream: TcpStream,
    broker: Arc<Broker>,
    watcher: hyper_util::server::graceful::Watcher,
) {
    // Small answers should not wait for more to send; where this fails, they do.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| {
        let broker = Arc::clone(&broker);
        async move { Ok::<_, Infallible>(serve(broker, request).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new());
    builder.http2().timer(TokioTimer::new());
    let connection = builder.serve_connection(TokioIo::new(stream), service).into_owned();
    if let Err(error) = watcher.watch(connection).await {
        tracing::debug!(error, "a Pub/Sub client's connection broke");
    }
}

async fn serve(broker: Arc<Broker>, request: Request<Incoming>) -> Response<Body> {
    let content_type = request.headers().get(header::CONTENT_TYPE).map_or(&[][..], |value| value.as_bytes());
    if content_type.starts_with(b"application/grpc") {
        grpc::serve(broker, request).await
    } else {
        rest::serve(&broker, request).await
    }
}
