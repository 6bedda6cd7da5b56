//! The edge's side towards the origin: one pooled client, and bodies that are read up to a limit.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, stream};
use http::{HeaderMap, Request, Response, StatusCode, Uri, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, BodyStream, StreamBody};
use hyper::body::{Body, Frame, Incoming};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};

/// How long the origin may take to answer with a head, and again for a body that is stored.
const ORIGIN_TIMEOUT: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A body on its way through the edge.
pub(super) type EdgeBody = UnsyncBoxBody<Bytes, hyper::Error>;

/// The origin did not answer as it should.
#[derive(Debug, Clone, Copy)]
pub(super) struct Failure {
    /// What the edge answers for it.
    pub(super) status: StatusCode,
    /// What `Cache-Status` says of it, a token.
    pub(super) detail: &'static str,
}

const TIMED_OUT: Failure = Failure { status: StatusCode::GATEWAY_TIMEOUT, detail: "origin-timeout" };
const UNREACHABLE: Failure = Failure { status: StatusCode::BAD_GATEWAY, detail: "origin-unreachable" };
const BROKEN: Failure = Failure { status: StatusCode::BAD_GATEWAY, detail: "origin-broken" };
const TRUNCATED: Failure = Failure { status: StatusCode::BAD_GATEWAY, detail: "origin-truncated" };

/// A client of one origin.
pub(super) struct Upstream {
    origin: SocketAddr,
    client: Client<HttpConnector, EdgeBody>,
}

impl Upstream {
    pub(super) fn new(origin: SocketAddr) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(connector);
        Self { origin, client }
    }

    /// Sends `request`, whose target is a path, and strips the response of what was meant for this connection alone.
    pub(super) async fn send(&self, mut request: Request<EdgeBody>) -> Result<Response<Incoming>, Failure> {
        let path = request.uri().path_and_query().map_or("/", |path_and_query| path_and_query.as_str());
        *request.uri_mut() = Uri::builder()
            .scheme("http")
            .authority(self.origin.to_string())
            .path_and_query(path)
            .build()
            .map_err(|_| Failure { status: StatusCode::BAD_REQUEST, detail: "target" })?;
        let sent = tokio::time::timeout(ORIGIN_TIMEOUT, self.client.request(request)).await;
        let mut response = sent.map_err(|_| TIMED_OUT)?.map_err(|error| {
            tracing::debug!(%error, origin = %self.origin, "the origin did not answer");
            if error.is_connect() { UNREACHABLE } else { BROKEN }
        })?;
        strip_hop_by_hop(response.headers_mut());
        Ok(response)
    }
}

/// A body of at most the limit, or one that turned out longer, whole again.
pub(super) enum Read {
    Whole(Bytes),
    Longer(EdgeBody),
}

/// Reads `body` to its end where that comes within `limit_bytes`; trailers are dropped.
pub(super) async fn read_up_to(mut body: Incoming, limit_bytes: usize) -> Result<Read, Failure> {
    if body.size_hint().lower() > limit_bytes as u64 {
        return Ok(Read::Longer(body.boxed_unsync()));
    }
    let reading = async {
        let mut read = BytesMut::with_capacity(usize::try_from(body.size_hint().lower()).unwrap_or(0));
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(|_| TRUNCATED)?.into_data() else { continue };
            read.extend_from_slice(&data);
            if read.len() > limit_bytes {
                let start = stream::iter([Ok(Frame::data(read.freeze()))]);
                return Ok(Read::Longer(StreamBody::new(start.chain(BodyStream::new(body))).boxed_unsync()));
            }
        }
        // A buffer that grew may be twice as large as what it holds, and would be kept so.
        let whole = if read.capacity() > read.len() { Bytes::copy_from_slice(&read) } else { read.freeze() };
        Ok(Read::Whole(whole))
    };
    tokio::time::timeout(ORIGIN_TIMEOUT, reading).await.map_err(|_| TIMED_OUT)?
}

/// Removes what is meant for one connection alone (RFC 9110, section 7.6.1).
pub(super) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<String> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(',').map(|name| name.trim().to_ascii_lowercase()))
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in [
        header::CONNECTION,
        header::PROXY_AUTHENTICATE,
        header::PROXY_AUTHORIZATION,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
    ] {
        headers.remove(name);
    }
    headers.remove("keep-alive");
    headers.remove("proxy-connection");
}
