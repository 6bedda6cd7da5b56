//! The HTTP client under the warming: its limits, what it sends, and what its errors mean.

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use clap::ValueEnum;
use http::{HeaderName, HeaderValue, Method, Request, header};
use http_body_util::Empty;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::sync::Notify;

use super::connect::ConnectError;
use super::names::NoAddress;
use super::tls::{self, TlsConnector};
use crate::request::WarmRequest;
use crate::verdict::{Failure, Verdict};

/// How often an HTTP/2 connection is asked whether it is still there, and how long it may take to say so: one that died
/// silently would otherwise take every request given to it down to its time-out.
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_LIMIT: Duration = Duration::from_secs(5);
/// Response heads beyond this are not read; those of HTTP/1.1 may have 100 headers, hyper's own limit. It is also the
/// most that a connection of HTTP/1.1 keeps of a body that is being read.
const MAX_HEAD_BYTES: u32 = 32 << 10;
/// Interim responses (1xx) before the one that counts; more are taken for an attack, since each costs time and none ends.
const MAX_INTERIM_RESPONSES: u32 = 16;
/// What one stream, and all of one connection, may send ahead of its reader: 1,000 connections stay small, and an edge
/// next door is not held up.
const STREAM_WINDOW_BYTES: u32 = 256 << 10;
const CONNECTION_WINDOW_BYTES: u32 = 1 << 20;
/// Connections to one host that are kept for its next request, and for how long.
const MAX_IDLE_CONNECTIONS: usize = 32;
const IDLE_LIMIT: Duration = Duration::from_secs(60);

/// What URLs are asked with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum WarmMethod {
    /// The whole object, as a viewer asks for it.
    #[default]
    Get,
    /// Its headers alone.
    Head,
}

impl WarmMethod {
    /// As HTTP writes it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
        }
    }
}

pub(super) type HttpClient = Client<TlsConnector, Empty<Bytes>>;

/// The connections of one host.
pub(super) fn http_client(connector: TlsConnector) -> HttpClient {
    Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_LIMIT)
        .pool_max_idle_per_host(MAX_IDLE_CONNECTIONS)
        .http1_max_buf_size(MAX_HEAD_BYTES as usize)
        .http2_max_header_list_size(MAX_HEAD_BYTES)
        .http2_initial_stream_window_size(STREAM_WINDOW_BYTES)
        .http2_initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_keep_alive_interval(PING_INTERVAL)
        .http2_keep_alive_timeout(PING_LIMIT)
        .build(connector)
}

/// The GET as a viewer's player would send it, with what makes the edge speak, and what the request asks for on top.
pub(super) fn http_request(
    request: &WarmRequest,
    method: WarmMethod,
    asks: &[(HeaderName, HeaderValue)],
) -> Request<Empty<Bytes>> {
    let mut get = Request::new(Empty::new());
    if method == WarmMethod::Head {
        *get.method_mut() = Method::HEAD;
    }
    // Every URL of the url crate is a valid request target once it is serialized.
    *get.uri_mut() = request.url().as_str().parse().expect("a serialized URL is a URI");
    let headers = get.headers_mut();
    headers.insert(header::ACCEPT, HeaderValue::from_static("*/*"));
    headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("gzip, deflate, br, zstd"));
    headers
        .insert(header::USER_AGENT, HeaderValue::from_static(concat!("cdnwarm/", env!("CARGO_PKG_VERSION"))));
    for (name, value) in asks.iter().map(|(name, value)| (name, value)).chain(request.headers()) {
        headers.insert(name, value.clone());
    }
    get
}

/// From the client's error, which wraps ours, rustls' and hyper's, to the one word that helps.
pub(super) fn why_no_response(error: &hyper_util::client::legacy::Error) -> Verdict {
    tracing::debug!("no response: {error:?}");
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(current) = cause {
        if let Some(connect) = current.downcast_ref::<ConnectError>() {
            return match connect {
                ConnectError::Refused(reason) => Verdict::Refused(reason.clone()),
                ConnectError::Name(NoAddress::NotFound) => Verdict::Failed(Failure::Dns),
                ConnectError::Name(NoAddress::Timeout) => Verdict::Failed(Failure::DnsTimeout),
                ConnectError::Connect(_) => Verdict::Failed(Failure::Connect),
                ConnectError::Timeout => Verdict::Failed(Failure::ConnectTimeout),
                ConnectError::TlsTimeout => Verdict::Failed(Failure::TlsTimeout),
            };
        }
        // An io::Error's `source` skips the error inside it.
        let inside = current.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if let Some(tls) = inside.and_then(|inside| inside.downcast_ref::<rustls::Error>()) {
            return Verdict::Failed(Failure::Tls(tls::reason(tls)));
        }
        if current.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_parse_too_large) {
            return Verdict::Failed(Failure::HeadTooLarge);
        }
        cause = match inside {
            Some(inside) => Some(inside),
            None => current.source(),
        };
    }
    Verdict::Failed(if error.is_connect() { Failure::Connect } else { Failure::Protocol })
}

/// Waits until the response to this request has more interim responses before it than are put up with.
pub(super) fn too_many_interim_responses(
    request: &mut Request<Empty<Bytes>>,
) -> impl Future<Output = ()> + use<> {
    let too_many = Arc::new(Notify::new());
    let (teller, count) = (too_many.clone(), AtomicU32::new(0));
    hyper::ext::on_informational(request, move |_| {
        if count.fetch_add(1, Ordering::Relaxed) == MAX_INTERIM_RESPONSES {
            teller.notify_one();
        }
    });
    async move { too_many.notified().await }
}
