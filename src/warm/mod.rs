//! The one door to origins: a request goes through the guard to the edge, its body is read and dropped, and the
//! response headers say how warm the edge is.
//!
//! [`Warmer`] is the whole of it; `guard` and `addresses` say what may be fetched, `flights` lets equal requests share a
//! GET, `turns` (with `limit` and `breaker`) says when a host may be asked, `client`, `tls` and `connect` ask, `body` reads,
//! `range` and `cdn` judge. Nothing here knows Kafka, Pub/Sub or what is answered to whom.

mod addresses;
mod body;
mod breaker;
pub(crate) mod cdn;
mod client;
mod connect;
mod flights;
mod guard;
mod limit;
mod range;
mod tls;
mod turns;

use clap::builder::BoolishValueParser;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use backon::{BackoffBuilder, ExponentialBuilder};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::Empty;
use hyper::body::Incoming;
use jiff::Timestamp;
use url::Url;

pub(crate) use addresses::{AllowedAddress, ConnectTo};
use body::{BodyLimits, drain, read_and_drop};
pub(crate) use client::WarmMethod;
use client::{HttpClient, http_client, http_request, too_many_interim_responses, why_no_response};
use connect::Connector;
use flights::Flights;
use guard::Guard;
use tls::TlsConnector;
use turns::{Turn, Turns};

use crate::outcome::{CacheEvidence, Exchange, Outcome, Source, shown_url};
use crate::request::WarmRequest;
use crate::telemetry::instance::{Identity, InstanceArgs};
use crate::verdict::{Failure, Verdict};

/// How much of a redirect's target is told.
const SHOWN_TARGET_CHARS: usize = 512;
/// GETs for one request, as long as failures are curable, and for how long after the first another is begun: what takes
/// longer to fail would keep its place among the pushes under way for as long again, and a redelivery does as well.
const ATTEMPTS: usize = 3;
const RETRY_WITHIN: Duration = Duration::from_secs(10);

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

    /// Seconds for a connection, over all addresses of a host, and as many again for its TLS handshake
    #[arg(long, value_name = "SECONDS", default_value_t = 5, env = "CDNWARM_CONNECT_TIMEOUT",
          value_parser = clap::value_parser!(u16).range(1..=600))]
    pub(crate) connect_timeout: u16,

    /// Seconds from a request to the head of its response, connecting included
    #[arg(long, value_name = "SECONDS", default_value_t = 20, env = "CDNWARM_FIRST_BYTE_TIMEOUT",
          value_parser = clap::value_parser!(u16).range(1..=600))]
    pub(crate) first_byte_timeout: u16,

    /// Seconds that a body may pause before it counts as stalled
    #[arg(long, value_name = "SECONDS", default_value_t = 20, env = "CDNWARM_STALL_TIMEOUT",
          value_parser = clap::value_parser!(u16).range(1..=600))]
    pub(crate) stall_timeout: u16,

    /// Bytes of the longest body that is read, as it comes and not as it unpacks
    #[arg(long, value_name = "BYTES", default_value_t = 16 << 30, env = "CDNWARM_MAX_BODY_BYTES")]
    pub(crate) max_body_bytes: u64,

    /// Method of requests; head looks without filling, for edges that store nothing without a body
    #[arg(long, value_enum, default_value_t, env = "CDNWARM_METHOD")]
    pub(crate) method: WarmMethod,

    /// Send Authorization where a record asks for it (warm-header-authorization), over http too; refused otherwise
    #[arg(long, env = "CDNWARM_ALLOW_AUTHORIZATION", value_parser = BoolishValueParser::new())]
    pub(crate) allow_authorization: bool,
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
            connect_timeout: 5,
            first_byte_timeout: 20,
            stall_timeout: 20,
            max_body_bytes: 16 << 30,
            method: WarmMethod::Get,
            allow_authorization: false,
        }
    }
}

/// Warms one edge. Cheap to clone; clones share connections.
#[derive(Clone)]
pub(crate) struct Warmer {
    turns: Arc<Turns<HttpClient>>,
    flights: Arc<Flights<(Verdict, Progress)>>,
    guard: Arc<Guard>,
    identity: Identity,
    certify: bool,
    method: WarmMethod,
    allow_authorization: bool,
    limit: Duration,
    first_byte_limit: Duration,
    body_limits: BodyLimits,
}

impl Warmer {
    /// Reads the system's CA certificates (or `SSL_CERT_FILE`'s), which takes some milliseconds: after binding.
    ///
    /// # Errors
    /// Where the system has no CA certificates at all.
    pub(crate) fn new(args: WarmArgs) -> anyhow::Result<Self> {
        let seconds = |seconds: u16| Duration::from_secs(seconds.into());
        let guard = Arc::new(Guard::new(args.allow_address, args.connect_to));
        let connect_limit = seconds(args.connect_timeout);
        let connector = TlsConnector::new(Connector::new(guard.clone(), connect_limit), connect_limit)?;
        // Two descriptors for each push under way are more than the usual 1,024 have room for.
        if let Err(error) = rlimit::increase_nofile_limit(u64::MAX) {
            tracing::debug!("raising the limit on open files: {error}");
        }
        Ok(Self {
            turns: Arc::new(Turns::new(move || http_client(connector.clone()))),
            flights: Arc::new(Flights::new()),
            guard,
            identity: Identity::discover(args.instance),
            certify: args.certify,
            method: args.method,
            allow_authorization: args.allow_authorization,
            limit: seconds(args.timeout),
            first_byte_limit: seconds(args.first_byte_timeout),
            body_limits: BodyLimits { stall: seconds(args.stall_timeout), bytes: args.max_body_bytes },
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
        let (verdict, progress) = match self.refusal(request, region) {
            Some(reason) => (Verdict::Refused(reason), Progress::default()),
            None if Instant::now() >= deadline => {
                (Verdict::Failed(Failure::TotalTimeout), Progress::default())
            }
            None => self.share(deadline, request).await,
        };
        self.outcome(verdict, shown_url(request.url()), id, source, progress).await
    }

    /// Why this is not to be fetched at all, if so.
    fn refusal(&self, request: &WarmRequest, region: &str) -> Option<String> {
        if let Some(reason) = request.refusal(region, Timestamp::now()) {
            return Some(reason);
        }
        if !self.allow_authorization && request.headers().contains_key(header::AUTHORIZATION) {
            return Some("option warm-header-authorization: not allowed by the operator".to_owned());
        }
        self.guard.check(request.url()).err()
    }

    /// Fetches, or waits for what an equal request has under way already.
    async fn share(&self, deadline: Instant, request: &WarmRequest) -> (Verdict, Progress) {
        let started = Instant::now();
        let (flight, is_own) = self.flights.join(request, || {
            let (warmer, request) = (self.clone(), request.clone());
            async move { warmer.fetch_until(deadline, &request).await }
        });
        // Another's may have begun later, and end later.
        let landed = tokio::time::timeout_at(deadline.into(), flight).await;
        let (verdict, mut progress) =
            landed.unwrap_or_else(|_| (Verdict::Failed(Failure::TotalTimeout), Progress::default()));
        if !is_own {
            // What was read is told once.
            progress.attempts = 0;
            progress.exchange.bytes = 0;
        }
        progress.exchange.total_ms = milliseconds(started.elapsed());
        (verdict, progress)
    }

    /// Fetches within the time that there is.
    async fn fetch_until(&self, deadline: Instant, request: &WarmRequest) -> (Verdict, Progress) {
        let mut progress = Progress::default();
        let work = self.fetch_with_retries(deadline, request, &mut progress);
        let in_time = tokio::time::timeout_at(deadline.into(), work).await.ok();
        // What takes too long does not unsay what is known: that it was filled, or why the tries before failed.
        let verdict = in_time.or(progress.so_far.take());
        (verdict.unwrap_or(Verdict::Failed(Failure::TotalTimeout)), progress)
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
    async fn fetch_with_retries(
        &self,
        deadline: Instant,
        request: &WarmRequest,
        progress: &mut Progress,
    ) -> Verdict {
        let mut delays = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(200))
            .with_max_times(ATTEMPTS - 1)
            .with_jitter()
            .build();
        let last = deadline.min(Instant::now() + RETRY_WITHIN);
        loop {
            let made = progress.attempts;
            let verdict = self.fetch(deadline, request, progress).await;
            if progress.attempts == made {
                // The host is not to be asked now: why the try before failed says more, and another is no use.
                return progress.so_far.take().unwrap_or(verdict);
            }
            match delays.next() {
                Some(delay) if verdict.is_curable() && Instant::now() + delay < last => {
                    progress.so_far = Some(verdict);
                    tokio::time::sleep(delay).await;
                }
                _ => return verdict,
            }
        }
    }

    /// One GET, and a second look where the first filled the edge and the operator wants proof.
    async fn fetch(&self, deadline: Instant, request: &WarmRequest, progress: &mut Progress) -> Verdict {
        let first = self.get(deadline, request, progress).await;
        if first == Verdict::Filled && self.certify {
            progress.so_far = Some(first.clone());
            match self.get(deadline, request, progress).await {
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

    /// One GET, once the host may be asked.
    async fn get(&self, deadline: Instant, request: &WarmRequest, progress: &mut Progress) -> Verdict {
        match self.turns.take(request.url(), deadline.into()).await {
            Ok(turn) => turn.spend(self.ask(&turn, request, progress)).await,
            Err(failure) => Verdict::Failed(failure),
        }
    }

    /// One GET, to the end of its body.
    async fn ask(&self, turn: &Turn<HttpClient>, request: &WarmRequest, progress: &mut Progress) -> Verdict {
        let url = request.url();
        let request = http_request(request, self.method);
        let (asked, _) = request.clone().into_parts();
        progress.attempts += 1;
        let (response, body) = match self.head(turn, request, &mut progress.exchange).await {
            Ok(response) => response.into_parts(),
            Err(verdict) => return verdict,
        };
        let exchange = &mut progress.exchange;
        if let Some(failure) = failure(url, &asked, &response) {
            drain(body, &mut exchange.bytes).await;
            return Verdict::Failed(failure);
        }
        // A response to HEAD tells of a body that does not come.
        if asked.method != Method::HEAD {
            let before = exchange.bytes;
            let read = read_and_drop(body, response.version, self.body_limits, &mut exchange.bytes).await;
            let part_bytes = range::part_bytes(&asked.headers, &response);
            match read.and(part_bytes) {
                Ok(None) => {}
                Ok(Some(bytes)) if bytes == exchange.bytes - before => {}
                Ok(Some(_)) => return Verdict::Failed(Failure::OtherRange),
                Err(failure) => return Verdict::Failed(failure),
            }
        }
        let (verdict, evidence) = cdn::judge(&asked, &response, SystemTime::now());
        exchange.cache = Some(evidence).filter(|evidence| *evidence != CacheEvidence::default());
        match verdict {
            // Whether the edge fetched more than a head is not known.
            Verdict::Filled if asked.method == Method::HEAD => Verdict::Fetched,
            verdict => verdict,
        }
    }

    /// The head of the response, in time; what the host said by it goes into its turn.
    async fn head(
        &self,
        turn: &Turn<HttpClient>,
        mut request: Request<Empty<Bytes>>,
        exchange: &mut Exchange,
    ) -> Result<Response<Incoming>, Verdict> {
        let started = Instant::now();
        let too_many = too_many_interim_responses(&mut request);
        let asking = tokio::time::timeout(self.first_byte_limit, turn.client().request(request));
        let answered = tokio::select! {
            // A flood is read in so large pieces that the time may be over by the time that it is seen.
            biased;
            () = too_many => return Err(Verdict::Failed(Failure::HeadTooLarge)),
            answered = asking => answered,
        };
        let verdict = match answered {
            Ok(Ok(response)) => {
                let ttfb = started.elapsed();
                turn.answered(ttfb, response.status(), response.headers());
                exchange.ttfb_ms.get_or_insert(milliseconds(ttfb));
                exchange.http_status = Some(response.status().as_u16());
                return Ok(response);
            }
            Ok(Err(error)) => why_no_response(&error),
            Err(_) => Verdict::Failed(Failure::FirstByteTimeout),
        };
        turn.unanswered(&verdict);
        Err(verdict)
    }
}

/// What was done for one request so far; kept outside the futures, so that a time-out does not lose it.
#[derive(Clone, Default)]
struct Progress {
    exchange: Exchange,
    attempts: u32,
    /// The verdict that stands where what is under way does not end in time.
    so_far: Option<Verdict>,
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

fn milliseconds(duration: Duration) -> f64 {
    // Microseconds are as exact as the clock is worth.
    duration.as_micros() as f64 / 1000.0
}
