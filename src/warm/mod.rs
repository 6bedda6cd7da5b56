//! The one door to origins: a request goes through the guard to the edge, its body is read and dropped, and the
//! response headers say how warm the edge is.
//!
//! [`Warmer`] is the whole of it, by its `args`; `guard`, with `addresses` and `hosts`, says what may be fetched, `flights`
//! lets equal requests share a GET, `turns` (with `limit` and `breaker`) says when a host may be asked, `client`, `tls`,
//! `connect` and `names` ask, `redirect` says where a response leads, `body` reads, `range` and `cdn` judge. Nothing here
//! knows Kafka, Pub/Sub or what is answered to whom.

mod addresses;
mod args;
mod body;
mod breaker;
pub(crate) mod cdn;
mod client;
mod connect;
#[cfg(test)]
mod corpora;
mod flights;
mod guard;
mod hosts;
mod limit;
mod names;
mod range;
mod redirect;
#[cfg(test)]
mod stand;
mod tls;
mod turns;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use backon::{BackoffBuilder, ExponentialBuilder};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Empty;
use hyper::body::Incoming;
use jiff::Timestamp;
use rustls::ClientConfig;

pub(crate) use args::WarmArgs;
use body::{BodyLimits, drain, read_and_drop};
use client::{
    HttpClient, WarmMethod, http_client, http_request, too_many_interim_responses, why_no_response,
};
use connect::Connector;
use flights::Flights;
use guard::Guard;
use names::Names;
use tls::TlsConnector;
pub(crate) use turns::HostState;
use turns::{Turn, Turns};

use crate::outcome::{CacheEvidence, Exchange, Outcome, Source, shown_url};
use crate::request::WarmRequest;
use crate::telemetry::instance::Identity;
use crate::verdict::{Failure, Verdict};

/// GETs for one request, as long as failures are curable, and for how long after the first another is begun: what takes
/// longer to fail would keep its place among the pushes under way for as long again, and a redelivery does as well.
const ATTEMPTS: usize = 3;
const RETRY_WITHIN: Duration = Duration::from_secs(10);

/// Warms one edge. Cheap to clone; clones share connections.
#[derive(Clone)]
pub(crate) struct Warmer {
    turns: Arc<Turns<HttpClient>>,
    flights: Arc<Flights<(Verdict, Progress)>>,
    guard: Arc<Guard>,
    identity: Identity,
    certify: bool,
    follow_redirects: u8,
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
        // Two descriptors for each push under way are more than the usual 1,024 have room for.
        if let Err(error) = rlimit::increase_nofile_limit(u64::MAX) {
            tracing::debug!("raising the limit on open files: {error}");
        }
        let (tls, names) = (tls::system_config()?, Names::of_system()?);
        Ok(Self::build(args, tls, |guard, limit| Connector::new(guard, names, limit)))
    }

    /// The rest of it, from what a test brings along: CA certificates, and how names and addresses are found.
    fn build(
        mut args: WarmArgs,
        tls: ClientConfig,
        connector: impl FnOnce(Arc<Guard>, Duration) -> Connector,
    ) -> Self {
        let seconds = |seconds: u16| Duration::from_secs(seconds.into());
        let guard = Arc::new(args.guard());
        let connect_limit = seconds(args.connect_timeout);
        let connector = TlsConnector::new(connector(guard.clone(), connect_limit), tls, connect_limit);
        Self {
            turns: Arc::new(Turns::new(move || http_client(connector.clone()))),
            flights: Arc::new(Flights::new()),
            guard,
            identity: Identity::discover(args.instance),
            certify: args.certify,
            follow_redirects: args.follow_redirects,
            method: args.method,
            allow_authorization: args.allow_authorization,
            limit: seconds(args.timeout),
            first_byte_limit: seconds(args.first_byte_timeout),
            body_limits: BodyLimits { stall: seconds(args.stall_timeout), bytes: args.max_body_bytes },
        }
    }

    /// Where this is, once that is known.
    pub(crate) fn region(&self) -> Option<&str> {
        self.identity.known().map(|instance| instance.region.as_str())
    }

    /// How the hosts are that were asked of late.
    pub(crate) fn hosts(&self) -> Vec<HostState> {
        self.turns.states()
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
            let verdict = self.fetch(deadline, request, progress).await;
            if matches!(verdict, Verdict::Failed(Failure::CircuitOpen | Failure::HostBusy)) {
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

    /// One GET, and those that redirects ask for instead.
    async fn get(&self, deadline: Instant, request: &WarmRequest, progress: &mut Progress) -> Verdict {
        let mut next: Option<WarmRequest> = None;
        let mut followed = 0;
        loop {
            match self.hop(deadline, next.as_ref().unwrap_or(request), followed, progress).await {
                ControlFlow::Continue(redirected) => {
                    progress.final_url = Some(shown_url(redirected.url()));
                    next = Some(redirected);
                    followed += 1;
                }
                ControlFlow::Break(verdict) => {
                    if followed == 0 {
                        // Another try, before, may have been redirected.
                        progress.final_url = None;
                    }
                    return verdict;
                }
            }
        }
    }

    /// One GET, once its host may be asked: to its verdict, or to the request that it leads to after `followed` redirects.
    async fn hop(
        &self,
        deadline: Instant,
        request: &WarmRequest,
        followed: u8,
        progress: &mut Progress,
    ) -> ControlFlow<Verdict, WarmRequest> {
        match self.turns.take(request.url(), deadline.into()).await {
            Ok(turn) => turn.spend(self.ask(&turn, request, followed, progress)).await,
            Err(failure) => ControlFlow::Break(Verdict::Failed(failure)),
        }
    }

    /// One GET, to the end of its body.
    async fn ask(
        &self,
        turn: &Turn<HttpClient>,
        request: &WarmRequest,
        followed: u8,
        progress: &mut Progress,
    ) -> ControlFlow<Verdict, WarmRequest> {
        let get = http_request(request, self.method);
        let (asked, _) = get.clone().into_parts();
        progress.attempts += 1;
        let exchange = &mut progress.exchange;
        let (response, body) = match self.head(turn, get, exchange).await {
            Ok(response) => response.into_parts(),
            Err(verdict) => return ControlFlow::Break(verdict),
        };
        let leads_on = redirect::next(&self.guard, self.follow_redirects, followed, request, &response);
        if let Some(decided) = leads_on.transpose().or_else(|| failure(&asked, &response).map(Err)) {
            drain(body, &mut exchange.bytes).await;
            return match decided {
                Ok(next) => ControlFlow::Continue(next),
                Err(verdict) => ControlFlow::Break(verdict),
            };
        }
        ControlFlow::Break(self.judge(&asked, &response, body, exchange).await)
    }

    /// Reads the body of a response that counts, and says what it was worth.
    async fn judge(
        &self,
        asked: &http::request::Parts,
        response: &http::response::Parts,
        body: Incoming,
        exchange: &mut Exchange,
    ) -> Verdict {
        // A response to HEAD tells of a body that does not come.
        if asked.method != Method::HEAD {
            let before = exchange.bytes;
            let read = read_and_drop(body, response.version, self.body_limits, &mut exchange.bytes).await;
            let part_bytes = range::part_bytes(&asked.headers, response);
            match read.and(part_bytes) {
                Ok(None) => {}
                Ok(Some(bytes)) if bytes == exchange.bytes - before => {}
                Ok(Some(_)) => return Verdict::Failed(Failure::OtherRange),
                Err(failure) => return Verdict::Failed(failure),
            }
        }
        let (verdict, evidence) = cdn::judge(asked, response, SystemTime::now());
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
    /// Where the redirects of the last GET led.
    final_url: Option<String>,
    /// The verdict that stands where what is under way does not end in time.
    so_far: Option<Verdict>,
}

/// What the status alone says against the response, if anything.
fn failure(asked: &http::request::Parts, response: &http::response::Parts) -> Option<Verdict> {
    // Part of a body that was asked for whole is none.
    let is_part =
        response.status == StatusCode::PARTIAL_CONTENT && !asked.headers.contains_key(header::RANGE);
    let is_whole = response.status.is_success() && !is_part;
    (!is_whole).then(|| Verdict::Failed(Failure::Status(response.status.as_u16())))
}

fn milliseconds(duration: Duration) -> f64 {
    // Microseconds are as exact as the clock is worth.
    duration.as_micros() as f64 / 1000.0
}
