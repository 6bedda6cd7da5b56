//! The one door to origins: a request goes through the guard to the edge, its body is read and dropped, and the
//! response headers say how warm the edge is.
//!
//! [`Warmer`] is the whole of it; `guard`, with `addresses` and `hosts`, says what may be fetched, `names` looks names up,
//! `connect` dials, `redirect` says where a response leads, `cdn` reads the verdict from the headers. Nothing here knows Kafka, Pub/Sub or what is answered to whom.

mod addresses;
pub(crate) mod cdn;
mod connect;
#[cfg(test)]
mod corpora;
mod guard;
mod hosts;
mod names;
mod redirect;
#[cfg(test)]
mod stand;

use clap::builder::BoolishValueParser;
use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use backon::{BackoffBuilder, ExponentialBuilder};
use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, Version, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Body, Incoming};
use hyper_rustls::builderstates::WantsSchemes;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use jiff::Timestamp;

pub(crate) use addresses::{AllowedAddress, ConnectTo};
use connect::{ConnectError, Connector};
use guard::Guard;
pub(crate) use hosts::{AllowedHost, HostPattern, list_item};
use names::{Names, NoAddress};

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
/// GETs for one request, as long as failures are curable.
const ATTEMPTS: usize = 3;

/// How URLs are fetched, as every warming role takes it.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct WarmArgs {
    #[command(flatten)]
    pub(crate) instance: InstanceArgs,

    /// Address block and port that may be fetched although it is not public, for example 10.1.0.0/16:8080
    #[arg(long, value_name = "NET:PORT", env = "CDNWARM_ALLOW_ADDRESS", value_delimiter = ',',
          value_parser = list_item::<AllowedAddress>)]
    pub(crate) allow_address: Vec<Option<AllowedAddress>>,

    /// Host and port that may be fetched wherever its name leads, for example edge.internal.example.com:8080
    #[arg(long, value_name = "HOST:PORT", env = "CDNWARM_ALLOW_HOST", value_delimiter = ',',
          value_parser = list_item::<AllowedHost>)]
    pub(crate) allow_host: Vec<Option<AllowedHost>>,

    /// Warm nothing but these hosts, for example cdn.example.com, or .example.com for every host below it
    #[arg(long, value_name = "HOST", env = "CDNWARM_ONLY_HOSTS", value_delimiter = ',',
          value_parser = list_item::<HostPattern>)]
    pub(crate) only_hosts: Vec<Option<HostPattern>>,

    /// Sends requests for a host to this edge instead of what its name resolves to; Host and SNI stay the host's
    #[arg(long, value_name = "HOST=ADDR:PORT", env = "CDNWARM_CONNECT_TO", value_delimiter = ',',
          value_parser = list_item::<ConnectTo>)]
    pub(crate) connect_to: Vec<Option<ConnectTo>>,

    /// Redirects followed for one URL, each judged like the URL itself; 0 makes every redirect a failure
    #[arg(long, value_name = "COUNT", default_value_t = 5, env = "CDNWARM_FOLLOW_REDIRECTS",
          value_parser = clap::value_parser!(u8).range(0..=10))]
    pub(crate) follow_redirects: u8,

    /// Look again after a fill, and say warm only if the edge then answers from its cache
    #[arg(long, env = "CDNWARM_CERTIFY", value_parser = BoolishValueParser::new())]
    pub(crate) certify: bool,

    /// Seconds for one record or push in all, redirects and retries included; keep it below the subscription's ack deadline
    #[arg(long, value_name = "SECONDS", default_value_t = 60, env = "CDNWARM_TIMEOUT",
          value_parser = clap::value_parser!(u16).range(1..=600))]
    pub(crate) timeout: u16,
}

impl WarmArgs {
    /// For one region of the demo: every host is served by the edge at `edge`, and a fill is looked at again.
    pub(crate) fn for_demo(region: &str, edge: SocketAddr) -> Self {
        Self {
            instance: InstanceArgs { region: Some(region.to_owned()), metadata_host: None },
            connect_to: vec![Some(ConnectTo::every_host(edge))],
            follow_redirects: 5,
            certify: true,
            timeout: 60,
            ..Self::default()
        }
    }

    fn guard(&mut self) -> Guard {
        fn given<T>(list: &mut Vec<Option<T>>) -> Vec<T> {
            std::mem::take(list).into_iter().flatten().collect()
        }
        Guard {
            allowed_addresses: given(&mut self.allow_address),
            allowed_hosts: given(&mut self.allow_host),
            only_hosts: given(&mut self.only_hosts),
            connect_to: given(&mut self.connect_to),
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
    follow_redirects: u8,
    limit: Duration,
}

impl Warmer {
    /// Reads the system's CA certificates (or `SSL_CERT_FILE`'s), which takes some milliseconds: after binding.
    ///
    /// # Errors
    /// Where the system has no CA certificates at all.
    pub(crate) fn new(args: WarmArgs) -> anyhow::Result<Self> {
        let tls = HttpsConnectorBuilder::new()
            .with_provider_and_native_roots(rustls::crypto::aws_lc_rs::default_provider())
            .map_err(|error| {
                anyhow::anyhow!(
                    "reading CA certificates: {error}; install ca-certificates or set SSL_CERT_FILE"
                )
            })?;
        let names = Names::of_system()?;
        Ok(Self::build(args, tls, |guard| Connector::new(guard, names, CONNECT_LIMIT)))
    }

    /// The rest of it, from what a test brings along: CA certificates, and how names and addresses are found.
    fn build(
        mut args: WarmArgs,
        tls: HttpsConnectorBuilder<WantsSchemes>,
        connector: impl FnOnce(Arc<Guard>) -> Connector,
    ) -> Self {
        let guard = Arc::new(args.guard());
        let connector = tls.https_or_http().enable_all_versions().wrap_connector(connector(guard.clone()));
        let client = Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .http2_keep_alive_interval(PING_INTERVAL)
            .http2_keep_alive_timeout(PING_LIMIT)
            .pool_idle_timeout(Duration::from_secs(60))
            .build(connector);
        Self {
            client,
            guard,
            identity: Identity::discover(args.instance),
            certify: args.certify,
            follow_redirects: args.follow_redirects,
            limit: Duration::from_secs(args.timeout.into()),
        }
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
            final_url: progress.final_url,
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

    /// One GET, and those that redirects ask for instead.
    async fn get(&self, request: &WarmRequest, progress: &mut Progress) -> Verdict {
        progress.final_url = None;
        let mut next: Option<WarmRequest> = None;
        let mut followed = 0;
        loop {
            match self.ask(next.as_ref().unwrap_or(request), followed, progress).await {
                ControlFlow::Break(verdict) => return verdict,
                ControlFlow::Continue(redirected) => {
                    progress.final_url = Some(shown_url(redirected.url()));
                    next = Some(redirected);
                    followed += 1;
                }
            }
        }
    }

    /// One GET, to its verdict or to the request that it leads to after `followed` redirects.
    async fn ask(
        &self,
        request: &WarmRequest,
        followed: u8,
        progress: &mut Progress,
    ) -> ControlFlow<Verdict, WarmRequest> {
        let get = http_request(request);
        let (asked, _) = get.clone().into_parts();
        let started = Instant::now();
        progress.attempts += 1;
        let response = match tokio::time::timeout(FIRST_BYTE_LIMIT, self.client.request(get)).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return ControlFlow::Break(why_no_response(&error)),
            Err(_) => return ControlFlow::Break(Verdict::Failed(Failure::FirstByteTimeout)),
        };
        let exchange = &mut progress.exchange;
        exchange.ttfb_ms.get_or_insert(milliseconds(started.elapsed()));
        exchange.http_status = Some(response.status().as_u16());
        let (response, body) = response.into_parts();
        let leads_on = redirect::next(&self.guard, self.follow_redirects, followed, request, &response);
        if let Some(decided) = leads_on.transpose().or_else(|| failure(&asked, &response).map(Err)) {
            drain(body, &mut exchange.bytes).await;
            return match decided {
                Ok(next) => ControlFlow::Continue(next),
                Err(verdict) => ControlFlow::Break(verdict),
            };
        }
        if !read_and_drop(body, response.version, &mut exchange.bytes).await {
            return ControlFlow::Break(Verdict::Failed(Failure::Truncated));
        }
        let (verdict, evidence) = cdn::judge(&asked, &response, SystemTime::now());
        exchange.cache = Some(evidence).filter(|evidence| *evidence != CacheEvidence::default());
        ControlFlow::Break(verdict)
    }
}

/// What was done for one request so far; kept outside the futures, so that a time-out does not lose it.
#[derive(Default)]
struct Progress {
    exchange: Exchange,
    attempts: u32,
    /// Where the redirects of the last GET led.
    final_url: Option<String>,
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
fn failure(asked: &http::request::Parts, response: &http::response::Parts) -> Option<Verdict> {
    // Part of a body that was asked for whole is none.
    let is_part =
        response.status == StatusCode::PARTIAL_CONTENT && !asked.headers.contains_key(header::RANGE);
    let is_whole = response.status.is_success() && !is_part;
    (!is_whole).then(|| Verdict::Failed(Failure::Status(response.status.as_u16())))
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
                ConnectError::Name(NoAddress::NotFound) => Verdict::Failed(Failure::Dns),
                ConnectError::Name(NoAddress::Timeout) => Verdict::Failed(Failure::DnsTimeout),
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
