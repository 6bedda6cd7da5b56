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
//! - A push carries the OIDC token that its subscription asks for.
//!
//! Where it differs from production:
//! - Everything is gone when it stops. A subscription keeps at most 256 MiB (each message counting 512 bytes more
//!   than its own); publishing to a full one answers `RESOURCE_EXHAUSTED`. At most 1,000 topics and subscriptions.
//! - `UNIMPLEMENTED` for updates, snapshots, seeking, detaching, schemas, ordering, exactly-once delivery and exports.
//!   Ordering keys are carried, not honoured.
//! - The OIDC tokens of pushes are signed by a key of this process; `GET /oauth2/v3/certs` has its public half, where
//!   production's is at www.googleapis.com. Any account is believed to exist.
//! - Dead letters are exact, where production does its best; no right to publish them has to be given.
//! - An unwrapped push leaves out attributes that are no header of HTTP, or one that frames or steers the request.
//! - Pushes go to plain http endpoints only, and an interim 102 does not end a push.
//! - No authentication, no quotas, no rate limit for an ordering key, no expiry of idle subscriptions.

mod backlog;
mod broker;
mod checks;
mod dead_letter;
mod filter;
mod grpc;
mod json;
mod oidc;
mod push;
mod rest;
mod streaming_pull;
mod subscription;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response, header};
use hyper::body::Incoming;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;

use self::broker::Broker;
use crate::http::Server;

/// The most that a request may take on the wire: a publish request of the largest size as JSON, where base64 adds a
/// third. The exact limit is checked, and told, behind it.
const MAX_REQUEST_BYTES: usize = checks::MAX_PUBLISH_BYTES / 2 * 3;

/// How long connections and pushes may take to end.
const GRACE: Duration = Duration::from_secs(1);

/// A Pub/Sub server that is bound but not running yet. It starts without topics.
#[derive(Debug)]
pub struct EmbeddedPubsub {
    server: Server,
    broker: Arc<Broker>,
}

impl EmbeddedPubsub {
    /// Listens at `addr`; port 0 takes a free one.
    ///
    /// # Errors
    /// Where the address cannot be listened at.
    pub async fn bind(addr: SocketAddr) -> anyhow::Result<Self> {
        Ok(Self { server: Server::bind_for_streams(addr).await?, broker: Arc::new(Broker::new()) })
    }

    /// Where it listens: the value for `PUBSUB_EMULATOR_HOST`.
    pub fn addr(&self) -> SocketAddr {
        self.server.addr()
    }

    /// Where the keys of the tokens that pushes carry can be fetched.
    pub fn keys_url(&self) -> String {
        format!("http://{}{}", self.addr(), oidc::KEYS_PATH)
    }

    /// Serves until `stop`; then ends pulls and streams with `UNAVAILABLE`, gives pushes and connections that are
    /// under way one second, and returns.
    pub async fn run(self, stop: CancellationToken) {
        let Self { server, broker } = self;
        // Whether told to stop or dropped: nothing goes on behind the caller's back.
        let _closing = broker.closing.clone().drop_guard();
        let answering = Arc::clone(&broker);
        let handler = move |request| serve(Arc::clone(&answering), request);
        let pushing = async {
            stop.cancelled().await;
            broker.closing.cancel();
            broker.tasks.close();
            // What does not end in time is left behind with its connection.
            let _ = timeout(GRACE, broker.tasks.wait()).await;
        };
        tokio::join!(server.run(handler, stop.clone(), GRACE), pushing);
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
