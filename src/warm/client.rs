//! What the warming asks origins, and what it means where they do not answer.

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use clap::ValueEnum;
use http::{HeaderName, HeaderValue, Method, Request, header};
use http_body_util::Empty;
use tokio::sync::Notify;

use super::connect::ConnectError;
use super::connections::Unanswered;
use super::names::NoAddress;
use super::tls;
use crate::request::WarmRequest;
use crate::verdict::{Failure, Verdict};

/// Interim responses (1xx) before the one that counts; more are taken for an attack, since each costs time and none ends.
const MAX_INTERIM_RESPONSES: u32 = 16;
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
pub(super) fn why_no_response(error: &Unanswered) -> Verdict {
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
    Verdict::Failed(match error {
        Unanswered::Connect(_) => Failure::Connect,
        Unanswered::Http(_) => Failure::Protocol,
    })
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
