//! One region's edge of the demo: a caching reverse proxy that keeps to RFC 9111 and says what it did (RFC 9211).
//!
//! A request's walk is `Proxy::answer`. What is kept is `store.rs`, how the origin is asked `upstream.rs`, how misses
//! for one URL become one GET `collapse.rs`, and what is said of it `status.rs`.

mod collapse;
mod status;
mod store;
mod upstream;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use anyhow::ensure;
use bytes::Bytes;
use http::uri::Authority;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use tokio_util::sync::CancellationToken;

use self::collapse::Fills;
use self::status::Status;
use self::store::{Found, Object, Store};
use self::upstream::{EdgeBody, Failure, Read, Upstream, read_up_to, strip_hop_by_hop};
use crate::http::Server;

/// The largest body that is stored, and so the most that one fill holds; a longer one passes through.
const MAX_OBJECT_BYTES: usize = 8 * 1024 * 1024;

/// How often a request waits for a fill that turns out to be another variant, before it is forwarded by itself.
const MAX_WAITS: usize = 8;

const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// What an edge is to be.
#[derive(Debug, Clone)]
pub struct EdgeConfig {
    /// Where it listens; port 0 takes a free one.
    pub addr: SocketAddr,
    /// The region, and its name in `Cache-Status` and `Via`: a token of RFC 9110.
    pub name: String,
    /// Where it fills from, over HTTP/1.1.
    pub origin: SocketAddr,
    /// Whether it keeps anything; one that does not is how a broken edge looks from outside.
    pub stores: bool,
}

/// A caching edge, HTTP/1.1 and cleartext HTTP/2.
///
/// GET and HEAD are answered from at most 256 MiB of stored responses, each of at most 8 MiB; a GET that misses is
/// read whole before it is answered, where it may be stored. Ranges and conditions pass to the origin and are not
/// stored (`fwd=bypass`), other methods as well (`fwd=method`), and a HEAD that misses.
pub struct Edge {
    server: Server,
    proxy: Proxy,
}

impl Edge {
    /// Listens as `config` says; the origin need not be there yet.
    ///
    /// # Errors
    /// Where the address cannot be listened at, or the name is not a token.
    pub async fn bind(config: EdgeConfig) -> anyhow::Result<Self> {
        let EdgeConfig { addr, name, origin, stores } = config;
        // Header names and the names of proxies in Via have the same grammar.
        ensure!(
            HeaderName::from_bytes(name.as_bytes()).is_ok(),
            "an edge cannot be named {name:?}: not a token"
        );
        let server = Server::bind_for_streams(addr).await?;
        let proxy =
            Proxy { name, stores, store: Store::new(), fills: Fills::new(), upstream: Upstream::new(origin) };
        Ok(Self { server, proxy })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.server.addr()
    }

    /// Answers until `stop`, then what is in flight.
    pub async fn run(self, stop: CancellationToken) {
        let proxy = Arc::new(self.proxy);
        let handler = move |request| proxy.clone().answer(request);
        self.server.run(handler, stop, super::DRAIN_LIMIT).await;
    }
}

/// All that answering takes.
struct Proxy {
    name: String,
    stores: bool,
    store: Store,
    fills: Fills<Filled>,
    upstream: Upstream,
}

/// What a client asked for, in the one form that both versions of HTTP come to.
struct Asked {
    /// Host, path and query.
    key: String,
    method: Method,
    /// Target without authority, `Host` set, nothing hop-by-hop, `Via` added; its method is GET where that of the
    /// client is HEAD, since a stored GET answers both.
    head: Request<()>,
}

/// What came of a fill, for all who waited for it.
#[derive(Clone)]
enum Filled {
    /// It is stored.
    Kept(Arc<Object>, Status),
    /// It may not be shared: only who started the fill takes the response.
    Passed(Arc<Mutex<Option<Response<EdgeBody>>>>),
    Failed(Failure),
}

impl Proxy {
    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Response<EdgeBody> {
        let (head, body) = request.into_parts();
        let Some(asked) = asked(head, &self.name) else {
            let failure = Failure { status: StatusCode::BAD_REQUEST, detail: "target" };
            return self.failed(Status::forwarded("bypass"), failure);
        };
        // 1. What is never stored passes through.
        if asked.method != Method::GET && asked.method != Method::HEAD {
            return self.forward_method(&asked, body).await;
        }
        if let Some(detail) = passes_through(asked.head.headers()) {
            let status = Status { detail: Some(detail), ..Status::forwarded("bypass") };
            return self.forward(&asked, empty(), status).await;
        }
        if !self.stores {
            return self.forward(&asked, empty(), Status::forwarded("uri-miss")).await;
        }
        // 2. What is stored answers; what is not is filled, once for all who ask meanwhile.
        let mut why = "uri-miss";
        for _ in 0..MAX_WAITS {
            let now = SystemTime::now();
            match self.store.find(&asked.key, &asked.head, now) {
                Found::Usable(object) => {
                    return self.stored(&object, &asked.method, Status::hit(object.ttl_s(now)));
                }
                Found::Forward { why: found, .. } => why = found,
            }
            if asked.method == Method::HEAD {
                break;
            }
            let fill = self.clone().fill(asked.key.clone(), asked.head.clone());
            let (filled, led) = self.fills.join(&asked.key, fill);
            match filled.await {
                Filled::Kept(object, status) if led => return self.stored(&object, &asked.method, status),
                Filled::Kept(object, status) if object.answers(&asked.head, SystemTime::now()) => {
                    let collapsed = status.forwarded.is_some();
                    return self.stored(&object, &asked.method, Status { collapsed, ..status });
                }
                // Another variant, or the client wants it straight from the origin: look again.
                Filled::Kept(..) => {}
                Filled::Passed(response) if led => {
                    let response = response.lock().unwrap_or_else(PoisonError::into_inner).take();
                    let response =
                        response.expect("only the one who started the fill takes its response, once");
                    return self.named(response, Status::forwarded(why));
                }
                Filled::Passed(_) => break,
                Filled::Failed(failure) => {
                    return self.failed(Status { collapsed: !led, ..Status::forwarded(why) }, failure);
                }
            }
        }
        // 3. What could not be shared is fetched for this client alone.
        self.forward(&asked, empty(), Status::forwarded(why)).await
    }

    /// Asks the origin for what is to be stored, or for its word that what is stored is still good.
    async fn fill(self: Arc<Self>, key: String, head: Request<()>) -> Filled {
        // Between this request's first look and the start of its fill, another fill may have ended: look again, or
        // the origin would see a second GET.
        let now = SystemTime::now();
        let (why, stale) = match self.store.find(&key, &head, now) {
            Found::Usable(object) => {
                let status = Status::hit(object.ttl_s(now));
                return Filled::Kept(object, status);
            }
            Found::Forward { why, stale } => (why, stale),
        };
        let mut request = head.clone();
        if let Some(stale) = &stale {
            stale.make_conditional(request.headers_mut());
        }
        let response = match self.upstream.send(request.map(|()| empty())).await {
            Ok(response) => response,
            Err(failure) => return Filled::Failed(failure),
        };
        let now = SystemTime::now();
        let (parts, body) = response.into_parts();
        if let Some(stale) = stale.filter(|_| parts.status == StatusCode::NOT_MODIFIED) {
            let status = Status { forward_status: Some(parts.status.as_u16()), ..Status::forwarded(why) };
            return match stale.confirmed(&head, &parts.headers, now) {
                Some(object) => self.keep(key, &head, object, status, now),
                // It was confirmed for this once, and may not be kept any longer.
                None => {
                    self.store.forget(&key);
                    passed(stale.response(&Method::GET, now).map(full))
                }
            };
        }
        if Object::new(&head, parts.status, parts.headers.clone(), Bytes::new(), now).is_none() {
            return passed(Response::from_parts(parts, body.boxed_unsync()));
        }
        match read_up_to(body, MAX_OBJECT_BYTES).await {
            Err(failure) => Filled::Failed(failure),
            Ok(Read::Longer(body)) => passed(Response::from_parts(parts, body)),
            Ok(Read::Whole(body)) => {
                match Object::new(&head, parts.status, parts.headers.clone(), body.clone(), now) {
                    Some(object) => self.keep(key, &head, object, Status::forwarded(why), now),
                    None => passed(Response::from_parts(parts, full(Full::new(body)))),
                }
            }
        }
    }

    fn keep(
        &self,
        key: String,
        head: &Request<()>,
        object: Object,
        status: Status,
        now: SystemTime,
    ) -> Filled {
        let object = Arc::new(object);
        self.store.keep(key, head, object.clone(), now);
        Filled::Kept(object, Status { stored: true, ..status })
    }

    /// A method that changes things also makes what is stored doubtful (RFC 9111, section 4.4).
    async fn forward_method(&self, asked: &Asked, body: Incoming) -> Response<EdgeBody> {
        if asked.method == Method::CONNECT {
            let failure = Failure { status: StatusCode::NOT_IMPLEMENTED, detail: "method" };
            return self.failed(Status::forwarded("method"), failure);
        }
        let response = self.forward(asked, body.boxed_unsync(), Status::forwarded("method")).await;
        if !asked.method.is_safe() && (response.status().is_success() || response.status().is_redirection()) {
            self.store.forget(&asked.key);
        }
        response
    }

    /// Passes one request to the origin and streams what it answers; nothing is stored.
    async fn forward(&self, asked: &Asked, body: EdgeBody, status: Status) -> Response<EdgeBody> {
        let mut request = asked.head.clone().map(|()| body);
        *request.method_mut() = asked.method.clone();
        match self.upstream.send(request).await {
            Ok(response) => self.named(response.map(BodyExt::boxed_unsync), status),
            Err(failure) => self.failed(status, failure),
        }
    }

    fn stored(&self, object: &Object, method: &Method, status: Status) -> Response<EdgeBody> {
        self.named(object.response(method, SystemTime::now()).map(full), status)
    }

    fn failed(&self, status: Status, failure: Failure) -> Response<EdgeBody> {
        let mut response = Response::new(full(Full::from(format!("{}: {}\n", self.name, failure.detail))));
        *response.status_mut() = failure.status;
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        self.named(response, Status { detail: Some(failure.detail), ..status })
    }

    /// Adds what this edge says of itself, behind what caches before it said.
    fn named(&self, mut response: Response<EdgeBody>, status: Status) -> Response<EdgeBody> {
        if let Some(member) = status.member(&self.name) {
            response.headers_mut().append(CACHE_STATUS, member);
        }
        if let Ok(via) = HeaderValue::try_from(format!("1.1 {}", self.name)) {
            response.headers_mut().append(header::VIA, via);
        }
        response
    }
}

/// `None` where the request has no host that a URL could have.
fn asked(head: http::request::Parts, edge: &str) -> Option<Asked> {
    let host = match head.uri.authority() {
        Some(authority) => authority.as_str(),
        None => head.headers.get(header::HOST)?.to_str().ok()?,
    };
    let host =
        host.to_ascii_lowercase().parse::<Authority>().ok().filter(|host| !host.as_str().contains('@'))?;
    let target = head.uri.path_and_query().map_or("/", |path_and_query| path_and_query.as_str());
    let version = match head.version {
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        _ => "1.1",
    };
    let key = format!("{host}{target}");
    let mut canonical = Request::new(());
    *canonical.uri_mut() = Uri::try_from(target).ok()?;
    *canonical.method_mut() = if head.method == Method::HEAD { Method::GET } else { head.method.clone() };
    let mut headers = head.headers;
    strip_hop_by_hop(&mut headers);
    headers.insert(header::HOST, HeaderValue::try_from(host.as_str()).ok()?);
    headers.append(header::VIA, HeaderValue::try_from(format!("{version} {edge}")).ok()?);
    *canonical.headers_mut() = headers;
    Some(Asked { key, method: head.method, head: canonical })
}

/// What in a GET makes its answer one that is not stored, as a detail for `Cache-Status`.
///
/// The origin evaluates ranges and conditions itself: that costs a GET where the store could have answered, and never
/// gives a wrong answer.
fn passes_through(headers: &HeaderMap) -> Option<&'static str> {
    let conditions =
        [header::IF_NONE_MATCH, header::IF_MODIFIED_SINCE, header::IF_MATCH, header::IF_UNMODIFIED_SINCE];
    if headers.contains_key(header::RANGE) {
        Some("range")
    } else if conditions.iter().any(|name| headers.contains_key(name)) {
        Some("condition")
    } else {
        None
    }
}

fn passed(response: Response<EdgeBody>) -> Filled {
    Filled::Passed(Arc::new(Mutex::new(Some(response))))
}

fn full(body: Full<Bytes>) -> EdgeBody {
    body.map_err(|never| match never {}).boxed_unsync()
}

fn empty() -> EdgeBody {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}
