//! The one door to origins: a request goes through the guard to the edge, its body is read and dropped, and the
//! response headers say how warm the edge is.
//!
//! [`Warmer`] is the whole of it; `guard` and `addresses` say what may be fetched, `connect` dials, `cdn` reads the
//! verdict from the headers. Nothing here knows Kafka, Pub/Sub or what is answered to whom.

mod addresses;
pub(crate) mod cdn;
mod connect;
mod guard;

use clap::builder::BoolishValueParser;
use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use backon::{BackoffBuilder, ExponentialBuilder};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, StatusCode, Version, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Body, Incoming};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use jiff::Timestamp;
use url::Url;

pub(crate) use addresses::{AllowedAddress, ConnectTo};
use connect::{ConnectError, Connector};
use guard::Guard;

use crate::outcome::{CacheEvidence, Exchange, Outcome, Source, shown_url};
use crate::request::WarmRequest;
use crate::telemetry::instance::{Identity, InstanceArgs};
use crate::verdict::{Failure, Verdict};

/// How long a host may take to accept a connection, over all its addresses.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// How long a response may keep its head to itself, connecting and TLS included.
const FIRST_BYTE_LIMIT: Duration = Duration::from_secs(20);
/// A body this short is read, if it comes this fast, even where its status made the verdict already: the connection can
/// then be used again.
const DRAINED_BYTES: u64 = 64 << 10;
const DRAIN_LIMIT: Duration = Duration::from_secs(1);
/// How often an HTTP/2 connection is asked whether it is still there, and how long it may take to say so: one that died
/// silently would otherwise take every request given to it down to its time-out.
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_LIMIT: Duration = Duration::from_secs(5);
/// How much of a redirect's target is told.
const SHOWN_TARGET_CHARS: usize = 512;
/// GETs for one request, as long as failures are curable.
const ATTEMPTS: usize = 3;

/// How URLs are fetched, as every warming role takes it.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct WarmArgs {
    #[command(flatten)]
    pub(crate) instance: InstanceArgs,

    /// Address block and port that may be fetched although it is not public, for example 10.1.0.0/16:8080
    #[arg(long, value_name = "NET:PORT", env = "CDNWARM_ALLOW_ADDRESS", value_delimiter = ',')]
    pub(crate) allow_address: Vec<AllowedAddress>,

    /// Sends requests for a host to this edge instead of what its name resolves to; Host and SNI stay the host's
    #[arg(long, value_name = "HOST=ADDR:PORT", env = "CDNWARM_CONNECT_TO", value_delimiter = ',')]
    pub(crate) connect_to: Vec<ConnectTo>,

    /// Look again after a fill, and say warm only if the edge then answers from its cache
    #[arg(long, env = "CDNWARM_CERTIFY", value_parser = BoolishValueParser::new())]
    pub(crate) certify: bool,

    /// Seconds for one record or push in all, retries included; keep it below the subscription's ack deadline
    #[arg(long, value_name = "SECONDS", default_value_t = 60, env = "CDNWARM_TIMEOUT",
          value_parser = clap::value_parser!(u16).range(1..=600))]
    pub(crate) timeout: u16,
}

impl WarmArgs {
    /// For one region of the demo: every host is served by the edge at `edge`, and a fill is looked at again.
    pub(crate) fn for_demo(region: &str, edge: SocketAddr) -> Self {
        Self {
            instance: InstanceArgs { region: Some(region.to_owned()), metadata_host: None },
            allow_address: Vec::new(),
            connect_to: vec![ConnectTo::every_host(edge)],
            certify: true,
            timeout: 60,
        }
    }
}

type HttpClient = Client<HttpsConnector<Connector>, Empty<Bytes>>;

/// Warms one edge. Cheap to clone; clones share connections.
#[derive(Clone)]
pub(crate) struct Warmer {
    client: HttpClient,
    guard: Arc<Guard>,
    identity: Identity,
    certify: bool,
    limit: Duration,
}

impl Warmer {
    /// Reads the system's CA certificates (or `SSL_CERT_FILE`'s), which takes some milliseconds: after binding.
    ///
    /// # Errors
    /// Where the system has no CA certificates at all.
    pub(crate) fn new(args: WarmArgs) -> anyhow::Result<Self> {
        let guard = Arc::new(Guard::new(args.allow_address, args.connect_to));
        let connector = HttpsConnectorBuilder::new()
            .with_provider_and_native_roots(rustls::crypto::aws_lc_rs::default_provider())
            .map_err(|error| {
                anyhow::anyhow!(
                    "reading CA certificates: {error}; install ca-certificates or set SSL_CERT_FILE"
                )
            })?
            .https_or_http()
            .enable_all_versions()
            .wrap_connector(Connector::new(guard.clone(), CONNECT_LIMIT));
        let client = Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .http2_keep_alive_interval(PING_INTERVAL)
            .http2_keep_alive_timeout(PING_LIMIT)
            .pool_idle_timeout(Duration::from_secs(60))
            .build(connector);
        Ok(Self {
            client,
            guard,
            identity: Identity::discover(args.instance),
            certify: args.certify,
            limit: Duration::from_secs(args.timeout.into()),
        })
    }

    /// When something that starts now must be over, be it one URL or several.
    pub(crate) fn deadline(&self) -> Instant {
        Instant::now() + self.limit
    }

    /// Fetches the URL and says what became of it, within the time for one URL.
    pub(crate) async fn warm(&self, request: &WarmRequest, id: String, source: Source) -> Outcome {
        self.warm_until(self.deadline(), request, id, source).await
    }

    /// As [`Warmer::warm`], but over by this `deadline`; past it nothing is asked for any more.
    pub(crate) async fn warm_until(
        &self,
        deadline: Instant,
        request: &WarmRequest,
        id: String,
        source: Source,
    ) -> Outcome {
        let region = &self.identity.get().await.region;
        let refusal = match request.refusal(region, Timestamp::now()) {
            Some(reason) => Some(reason),
            None => self.guard.check(request.url()).err(),
        };
        let mut progress = Progress::default();
        let verdict = match refusal {
            Some(reason) => Verdict::Refused(reason),
            None if Instant::now() >= deadline => Verdict::Failed(Failure::TotalTimeout),
            None => {
                let started = Instant::now();
                let work = self.fetch_with_retries(request, &mut progress);
                let in_time = tokio::time::timeout_at(deadline.into(), work).await.ok();
                // A second look that takes too long does not unsay what the first one saw.
                let verdict = in_time.or(progress.filled.then_some(Verdict::Filled));
                let verdict = verdict.unwrap_or(Verdict::Failed(Failure::TotalTimeout));
                progress.exchange.total_ms = milliseconds(started.elapsed());
                verdict
            }
        };
        self.outcome(verdict, shown_url(request.url()), id, source, progress).await
    }

    /// The outcome of something that never became a request.
    pub(crate) async fn refused(&self, reason: String, id: String, source: Source) -> Outcome {
        self.outcome(Verdict::Refused(reason), String::new(), id, source, Progress::default()).await
    }

    async fn outcome(
        &self,
        verdict: Verdict,
        url: String,
        id: String,
        source: Source,
        progress: Progress,
    ) -> Outcome {
        let instance = self.identity.get().await;
        Outcome {
            id,
            url,
            region: instance.region.clone(),
            instance: instance.id.clone(),
            reason: verdict.reason(),
            verdict,
            exchange: progress.exchange,
            attempts: progress.attempts,
            source,
            finished_at: Timestamp::now(),
        }
    }

    /// Fetches until there is a verdict that trying again would not change, a few times at most.
    async fn fetch_with_retries(&self, request: &WarmRequest, progress: &mut Progress) -> Verdict {
        let mut delays = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(200))
            .with_max_times(ATTEMPTS - 1)
            .with_jitter()
            .build();
        loop {
            let verdict = self.fetch(request, progress).await;
            match delays.next() {
                Some(delay) if verdict.is_curable() => tokio::time::sleep(delay).await,
                _ => return verdict,
            }
        }
    }

    /// One GET, and a second look where the first filled the edge and the operator wants proof.
    async fn fetch(&self, request: &WarmRequest, progress: &mut Progress) -> Verdict {
        let first = self.get(request, progress).await;
        if first == Verdict::Filled && self.certify {
            progress.filled = true;
            match self.get(request, progress).await {
                // The edge itself says that it kept nothing: what it said of storing stands uncertified.
                second @ (Verdict::Failed(_) | Verdict::Refused(_)) => {
                    tracing::debug!("second look failed: {second}");
                    return first;
                }
                second => return second,
            }
        }
        first
    }

    async fn get(&self, request: &WarmRequest, progress: &mut Progress) -> Verdict {
        let url = request.url();
        let request = http_request(request);
        let (asked, _) = request.clone().into_parts();
        let started = Instant::now();
        progress.attempts += 1;
        let response = match tokio::time::timeout(FIRST_BYTE_LIMIT, self.client.request(request)).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return why_no_response(&error),
            Err(_) => return Verdict::Failed(Failure::FirstByteTimeout),
        };
        let exchange = &mut progress.exchange;
        exchange.ttfb_ms.get_or_insert(milliseconds(started.elapsed()));
        exchange.http_status = Some(response.status().as_u16());
        let (response, body) = response.into_parts();
        if let Some(failure) = failure(url, &asked, &response) {
            drain(body, &mut exchange.bytes).await;
            return Verdict::Failed(failure);
        }
        if !read_and_drop(body, response.version, &mut exchange.bytes).await {
            return Verdict::Failed(Failure::Truncated);
        }
        let (verdict, evidence) = cdn::judge(&asked, &response, SystemTime::now());
        exchange.cache = Some(evidence).filter(|evidence| *evidence != CacheEvidence::default());
        verdict
    }
}

/// What was done for one request so far; kept outside the futures, so that a time-out does not lose it.
#[derive(Default)]
struct Progress {
    exchange: Exchange,
    attempts: u32,
    /// The verdict `filled` stands, and only its certificate is looked for.
    filled: bool,
}

/// The GET as a viewer's player would send it, with what the request asks for on top.
fn http_request(request: &WarmRequest) -> Request<Empty<Bytes>> {
    let mut get = Request::new(Empty::new());
    // Every URL of the url crate is a valid request target once it is serialized.
    *get.uri_mut() = request.url().as_str().parse().expect("a serialized URL is a URI");
    let headers = get.headers_mut();
    headers.insert(header::ACCEPT, HeaderValue::from_static("*/*"));
    headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("gzip, deflate, br, zstd"));
    headers
        .insert(header::USER_AGENT, HeaderValue::from_static(concat!("cdnwarm/", env!("CARGO_PKG_VERSION"))));
    for (name, value) in request.headers() {
        headers.insert(name, value.clone());
    }
    get
}

/// What the status alone says against the response, if anything.
fn failure(url: &Url, asked: &http::request::Parts, response: &http::response::Parts) -> Option<Failure> {
    match response.status {
        StatusCode::MOVED_PERMANENTLY
        | StatusCode::FOUND
        | StatusCode::SEE_OTHER
        | StatusCode::TEMPORARY_REDIRECT
        | StatusCode::PERMANENT_REDIRECT => Some(Failure::Redirect(target(url, &response.headers))),
        // Part of a body that was asked for whole.
        status @ StatusCode::PARTIAL_CONTENT if !asked.headers.contains_key(header::RANGE) => {
            Some(Failure::Status(status.as_u16()))
        }
        status if status.is_success() => None,
        status => Some(Failure::Status(status.as_u16())),
    }
}

/// Where a redirect leads, as it may be shown; empty without a usable `Location`.
fn target(url: &Url, headers: &HeaderMap) -> String {
    let location = headers.get(header::LOCATION).and_then(|location| location.to_str().ok());
    let Some(mut target) = location.and_then(|location| url.join(location).ok()) else {
        return String::new();
    };
    // A URL that has no user info refuses to have it taken away.
    let _ = target.set_username("");
    let _ = target.set_password(None);
    shown_url(&target).chars().take(SHOWN_TARGET_CHARS).collect()
}

/// Reads a body to its end, a frame at a time and each dropped at once, so that its size does not matter; false where
/// it broke off.
async fn read_and_drop(mut body: Incoming, version: Version, bytes: &mut u64) -> bool {
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => *bytes += frame.data_ref().map_or(0, Bytes::len) as u64,
            Err(error) => {
                tracing::debug!("body: {error}");
                return false;
            }
        }
    }
    // An HTTP/2 stream that is reset with NO_ERROR ends like a whole one, but without its END_STREAM and maybe short
    // of its declared length.
    body.size_hint().lower() == 0 && (version != Version::HTTP_2 || body.is_end_stream())
}

/// Reads a body that does not matter, if it is short and there soon.
async fn drain(body: Incoming, bytes: &mut u64) {
    if body.size_hint().upper().is_some_and(|upper| upper <= DRAINED_BYTES) {
        // Nothing depends on it; the connection is closed where it does not end.
        let _ = tokio::time::timeout(DRAIN_LIMIT, read_and_drop(body, Version::HTTP_11, bytes)).await;
    }
}

/// From the client's error, which wraps ours, rustls' and hyper's, to the one word that helps.
fn why_no_response(error: &hyper_util::client::legacy::Error) -> Verdict {
    tracing::debug!("no response: {error:?}");
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(current) = cause {
        if let Some(connect) = current.downcast_ref::<ConnectError>() {
            return match connect {
                ConnectError::Refused(reason) => Verdict::Refused(reason.clone()),
                ConnectError::Dns(_) => Verdict::Failed(Failure::Dns),
                ConnectError::Connect(_) => Verdict::Failed(Failure::Connect),
                ConnectError::Timeout => Verdict::Failed(Failure::ConnectTimeout),
            };
        }
        // An io::Error's `source` skips the error inside it.
        let inside = current.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if let Some(tls) = inside.and_then(|inside| inside.downcast_ref::<rustls::Error>()) {
            return Verdict::Failed(Failure::Tls(tls.to_string()));
        }
        cause = match inside {
            Some(inside) => Some(inside),
            None => current.source(),
        };
    }
    Verdict::Failed(if error.is_connect() { Failure::Connect } else { Failure::Protocol })
}

fn milliseconds(duration: Duration) -> f64 {
    // Microseconds are as exact as the clock is worth.
    duration.as_micros() as f64 / 1000.0
}
