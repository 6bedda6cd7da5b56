//! What the warming asks origins, and what it means where they do not answer.

use std::borrow::Cow;
use std::error::Error;
use std::io;

use clap::ValueEnum;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header};
use http_cache_semantics::RequestLike;
use url::{Position, Url};

use super::connect::ConnectError;
use super::connections::Unanswered;
use super::http1::HeadError;
use super::names::NoAddress;
use super::tls;
use crate::request::WarmRequest;
use crate::verdict::{Failure, Verdict};

/// Interim responses (1xx) before the one that counts; more are taken for an attack, since each costs time and none ends.
pub(super) const MAX_INTERIM_RESPONSES: u32 = 16;

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

/// One request as it is sent.
#[derive(Debug, Clone)]
pub(super) struct Asked<'a> {
    pub(super) method: &'static Method,
    pub(super) url: &'a Url,
    /// All but Host.
    pub(super) headers: Cow<'a, HeaderMap>,
}

/// What every request is asked with: as a viewer's player would, and with what makes the edge speak.
pub(super) fn common_headers(asks: impl Iterator<Item = (HeaderName, HeaderValue)>) -> HeaderMap {
    const USER_AGENT: &str = concat!("cdnwarm/", env!("CARGO_PKG_VERSION"));
    let mut headers = HeaderMap::new();
    headers.insert(header::ACCEPT, HeaderValue::from_static("*/*"));
    headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("gzip, deflate, br, zstd"));
    headers.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
    headers.extend(asks);
    headers
}

impl<'a> Asked<'a> {
    /// With the headers that the request asks for on top of the common ones.
    pub(super) fn new(request: &'a WarmRequest, method: WarmMethod, common: &'a HeaderMap) -> Self {
        let mut headers = Cow::Borrowed(common);
        for (name, value) in request.headers() {
            headers.to_mut().insert(name, value.clone());
        }
        let method = match method {
            WarmMethod::Get => &Method::GET,
            WarmMethod::Head => &Method::HEAD,
        };
        Self { method, url: request.url(), headers }
    }

    /// In origin form (RFC 9112, section 3.2.1).
    pub(super) fn target(&self) -> &'a str {
        &self.url[Position::BeforePath..Position::AfterQuery]
    }

    /// What Host says.
    pub(super) fn authority(&self) -> &'a str {
        &self.url[Position::BeforeHost..Position::AfterPort]
    }
}

impl RequestLike for Asked<'_> {
    fn uri(&self) -> Uri {
        // Every URL of the url crate is a valid request target once it is serialized.
        self.url.as_str().parse().expect("a serialized URL is a URI")
    }

    fn is_same_uri(&self, other: &Uri) -> bool {
        self.uri() == *other
    }

    fn method(&self) -> &Method {
        self.method
    }

    fn headers(&self) -> &HeaderMap {
        &self.headers
    }
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
        if matches!(current.downcast_ref(), Some(HeadError::TooLarge)) {
            return Verdict::Failed(Failure::HeadTooLarge);
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
        Unanswered::Http1(_) | Unanswered::Http2(_) => Failure::Protocol,
        Unanswered::TooManyInterimResponses => Failure::HeadTooLarge,
    })
}
