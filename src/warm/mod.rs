//! The one door to origins: a request goes through the guard to the edge, its body is read and dropped, and the
//! response headers say how warm the edge is.
//!
//! [`Warmer`] is the whole of it, by its `args`; `guard`, with `addresses` and `hosts`, says what may be fetched, `flights`
//! lets equal requests share a GET, `fetch` makes the GETs of one, `turns` (with `adaptive_limit` and `breaker`) says when a host may be asked, `client`, `connections`, `http1`, `tls`,
//! `connect` and `names` ask, `deadline` says how long, `redirect` says where a response leads, `body` reads, `range` and `cdn` judge, `certify` weighs two looks, and `look` keeps what was asked for those who want to know. Nothing here
//! knows Kafka, Pub/Sub or what is answered to whom.

mod addresses;
mod args;
mod body;
mod breaker;
pub(crate) mod cdn;
mod certify;
mod client;
mod connect;
mod connections;
#[cfg(test)]
mod corpora;
mod deadline;
mod fetch;
mod flights;
mod guard;
mod hosts;
mod http1;
mod look;
mod names;
mod range;
mod redirect;
#[cfg(test)]
mod stand;
mod tls;
mod turns;

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderMap, header};
use jiff::Timestamp;
use rustls::ClientConfig;

pub(crate) use args::WarmArgs;
use body::BodyLimits;
use cdn::Speakers;
use client::{WarmMethod, common_headers};
use connect::Connector;
use connections::Connections;
use deadline::Deadline;
use flights::Flights;
use guard::Guard;
pub(crate) use look::Look;
use names::Names;
use tls::TlsConnector;
pub(crate) use tls::system_config as system_tls_config;
use turns::{HostTotals, Turns};

use crate::outcome::{Exchange, Outcome, Source, shown_url};
use crate::request::WarmRequest;
use crate::telemetry::instance::{Identity, Instance};
use crate::verdict::{Failure, Verdict};

/// Warms one edge. Cheap to clone; clones share connections.
#[derive(Clone)]
pub(crate) struct Warmer {
    turns: Arc<Turns<Connections>>,
    flights: Arc<Flights<Box<Landed>>>,
    guard: Arc<Guard>,
    identity: Identity,
    certify: bool,
    skip_warm: bool,
    speakers: Arc<Speakers>,
    /// What every request is asked with.
    common_headers: Arc<HeaderMap>,
    expect_pop: Arc<[String]>,
    /// Whether looks are kept.
    shows_looks: bool,
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
        let (tls, names) = (system_tls_config()?, Names::of_system()?);
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
        let speakers = args.speakers();
        let connect_limit = seconds(args.connect_timeout);
        let connector = TlsConnector::new(connector(guard.clone(), connect_limit), tls, connect_limit);
        Self {
            turns: Arc::new(Turns::new(move || Connections::new(connector.clone()))),
            flights: Arc::new(Flights::new()),
            guard,
            identity: Identity::discover(args.instance),
            certify: args.certify,
            skip_warm: args.skip_warm,
            common_headers: Arc::new(common_headers(speakers.asks())),
            speakers: Arc::new(speakers),
            expect_pop: args.expect_pop.into_iter().filter(|pop| !pop.is_empty()).collect(),
            shows_looks: false,
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

    /// Returns what the hosts that were asked of late do now, all together.
    pub(crate) fn host_totals(&self) -> HostTotals {
        self.turns.totals()
    }

    /// When something that starts now must be over, be it one URL or several.
    pub(crate) fn deadline(&self) -> Instant {
        Instant::now() + self.limit
    }

    /// Fetches the URL and says what became of it, within the time for one URL.
    pub(crate) async fn warm(&self, request: &WarmRequest, id: String, source: Source) -> Box<Outcome> {
        self.warm_until(self.deadline(), request, id, source).await
    }

    /// As [`Warmer::warm`], but over by this `deadline`; past it nothing is asked for any more.
    pub(crate) async fn warm_until(
        &self,
        deadline: Instant,
        request: &WarmRequest,
        id: String,
        source: Source,
    ) -> Box<Outcome> {
        self.look_until(deadline, request, id, source).await.0
    }

    /// As [`Warmer::warm`], with all that was asked on the way.
    pub(crate) async fn look(&self, request: &WarmRequest, id: String) -> (Box<Outcome>, Vec<Look>) {
        let warmer = Self { shows_looks: true, ..self.clone() };
        warmer.look_until(self.deadline(), request, id, Source::default()).await
    }

    async fn look_until(
        &self,
        deadline: Instant,
        request: &WarmRequest,
        id: String,
        source: Source,
    ) -> (Box<Outcome>, Vec<Look>) {
        let instance = self.identity.get().await;
        let now = Instant::now();
        let mut landed = match self.refusal(request, &instance.region) {
            Some(reason) => Landed::at_once(Verdict::Refused(reason)),
            None if now >= deadline => Landed::at_once(Verdict::Failed(Failure::TotalTimeout)),
            None => self.share(now, deadline, request).await,
        };
        let looks = std::mem::take(&mut landed.progress.looks);
        (outcome(instance, landed, shown_url(request.url()), id, source), looks)
    }

    /// Why this is not to be fetched at all, if so.
    fn refusal(&self, request: &WarmRequest, region: &str) -> Option<String> {
        if let Some(reason) = request.refusal(region, Timestamp::now) {
            return Some(reason);
        }
        if !self.allow_authorization && request.headers().contains_key(header::AUTHORIZATION) {
            return Some("option warm-header-authorization: not allowed by the operator".to_owned());
        }
        if self.method == WarmMethod::Head && request.expected().needs_hash() {
            return Some("option warm-expect-sha256: --method head reads no body".to_owned());
        }
        self.guard.check(request.url()).err()
    }

    /// Fetches, or waits for what an equal request has under way already.
    async fn share(&self, started: Instant, deadline: Instant, request: &WarmRequest) -> Box<Landed> {
        let flight = self.flights.join(request);
        let is_first = flight.is_first();
        let fetch = pin!(self.fetch_until(deadline, request));
        let landing = pin!(flight.land(fetch));
        let landed = match is_first {
            // It ends in time by itself.
            true => Ok(landing.await),
            // Another's may have begun later, and end later.
            false => tokio::time::timeout_at(deadline.into(), landing).await,
        };
        let timed_out = || (Landed::at_once(Verdict::Failed(Failure::TotalTimeout)), false);
        let (mut landed, is_own) = landed.unwrap_or_else(|_| timed_out());
        let progress = &mut landed.progress;
        if !is_own {
            // What was read is told once.
            progress.attempts = 0;
            progress.exchange.bytes = 0;
            progress.exchange.bytes_saved = 0;
        }
        progress.exchange.total_ms = milliseconds(started.elapsed());
        landed
    }

    /// Fetches within the time that there is.
    async fn fetch_until(&self, deadline: Instant, request: &WarmRequest) -> Box<Landed> {
        let mut landed = Landed::at_once(Verdict::Failed(Failure::TotalTimeout));
        let in_time = {
            // Pinned here, so that it is not moved about: it is large.
            let deadline = Deadline::new(deadline);
            let work = pin!(self.fetch_with_retries(&deadline, request, &mut landed.progress));
            deadline.until(deadline.at(), work).await
        };
        // What takes too long does not unsay what is known: that it was filled, or why the tries before failed.
        if let Some(verdict) = in_time.or(landed.progress.so_far.take()) {
            landed.verdict = verdict;
        }
        landed
    }

    /// The outcome of what is known without a GET, from an earlier one.
    pub(crate) async fn known(
        &self,
        request: &WarmRequest,
        verdict: Verdict,
        http_status: Option<u16>,
        id: String,
        source: Source,
    ) -> Box<Outcome> {
        let mut known = Landed::at_once(verdict);
        known.progress.exchange.http_status = http_status;
        outcome(self.identity.get().await, known, shown_url(request.url()), id, source)
    }

    /// The outcome of something that never became a request.
    pub(crate) async fn refused(&self, reason: String, id: String, source: Source) -> Box<Outcome> {
        let refused = Landed::at_once(Verdict::Refused(reason));
        outcome(self.identity.get().await, refused, String::new(), id, source)
    }
}

/// Boxed, since it goes through many hands.
fn outcome(
    instance: &Instance,
    landed: Box<Landed>,
    url: String,
    id: String,
    source: Source,
) -> Box<Outcome> {
    let Landed { verdict, progress } = *landed;
    Box::new(Outcome {
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
    })
}

/// What became of one request, and what was done for it. Boxed, since it goes through many hands.
#[derive(Clone)]
struct Landed {
    verdict: Verdict,
    progress: Progress,
}

impl Landed {
    fn at_once(verdict: Verdict) -> Box<Self> {
        Box::new(Self { verdict, progress: Progress::default() })
    }
}

/// What was done for one request so far; kept outside the futures, so that a time-out does not lose it.
#[derive(Clone, Default)]
struct Progress {
    exchange: Exchange,
    attempts: u32,
    /// Where the redirects of the last GET led.
    final_url: Option<String>,
    /// What was asked, where that is of interest.
    looks: Vec<Look>,
    /// The verdict that stands where what is under way does not end in time.
    so_far: Option<Verdict>,
}

fn milliseconds(duration: Duration) -> f64 {
    // Microseconds are as exact as the clock is worth.
    duration.as_micros() as f64 / 1000.0
}
