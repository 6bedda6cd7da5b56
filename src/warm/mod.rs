//! Fetches URLs through an edge and says how warm it is: a request passes the guard, its response is read and dropped, and
//! the response headers are assessed.
//!
//! [`Warmer::warm`] returns an [`Attempt`]; its way to the socket is `Warmer::fetch` (retries, the second look), `get`
//! (redirects), `attempt` (one request), `StepTimer::run`, `Connections::request` and `Http1::exchange`; a body goes from
//! `attempt` by `receive`, `body::read` and `StepTimer::run`.
//!
//! - What may be fetched: `guard`, with `addresses` and `hosts`. The settings: `args`.
//! - When: `flights` shares the GET of equal requests, `turns` (with `adaptive_limit` and `breaker`) limits each host, `timer` each step.
//! - How: `client`, `connections`, `http1`, `tls`, `connect`, `names`; `redirect` says where a response leads, `body` reads.
//! - What it means: `cdn` assesses a response, `range` checks a part, `certify` weighs two looks; `look` keeps what was sent
//!   and read for those who want to see it.
//!
//! Nothing here knows Kafka, Pub/Sub, which instance this is, or what is answered to whom.

mod addresses;
mod args;
mod attempt;
mod body;
mod breaker;
pub(crate) mod cdn;
mod certify;
mod client;
mod connect;
mod connections;
#[cfg(test)]
mod corpora;
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
mod timer;
mod tls;
mod turns;

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderMap, header};
use jiff::Timestamp;
use rustls::ClientConfig;
use tokio::time::timeout_at;

pub(crate) use args::WarmArgs;
pub(crate) use attempt::Attempt;
use cdn::Speakers;
use client::{WarmMethod, common_headers};
use connect::Connector;
use connections::Connections;
use flights::Flights;
use guard::Guard;
pub(crate) use look::Look;
use names::Names;
use tls::TlsConnector;
pub(crate) use tls::system_config as system_tls_config;
use turns::{HostTotals, Turns};

use crate::request::WarmRequest;
use crate::verdict::{Failure, Verdict};

/// Warms one edge. Cheap to clone; clones share connections.
#[derive(Clone)]
pub(crate) struct Warmer {
    turns: Arc<Turns<Connections>>,
    flights: Arc<Flights<Attempt>>,
    guard: Arc<Guard>,
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
    /// Until the next bytes of a body.
    stall_limit: Duration,
    max_body_bytes: u64,
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
            stall_limit: seconds(args.stall_timeout),
            max_body_bytes: args.max_body_bytes,
        }
    }

    /// Keeps what is sent and read, in [`Attempt::looks`].
    pub(crate) fn keeping_looks(self) -> Self {
        Self { shows_looks: true, ..self }
    }

    /// Returns what the hosts that were asked of late do now, all together.
    pub(crate) fn host_totals(&self) -> HostTotals {
        self.turns.totals()
    }

    /// When something that starts now must be over, be it one URL or several.
    pub(crate) fn deadline(&self) -> Instant {
        Instant::now() + self.limit
    }

    /// Fetches the URL, or waits for an equal request that is under way, and says what became of it by `deadline`; past it
    /// nothing is asked for any more. `region` is where this is, for requests that only some regions warm.
    pub(crate) async fn warm(&self, request: &WarmRequest, region: &str, deadline: Instant) -> Attempt {
        let started = Instant::now();
        if let Some(reason) = self.refusal(request, region) {
            return Attempt::without_request(Verdict::Refused(reason));
        }
        let out_of_time = || Attempt::without_request(Verdict::Failed(Failure::TotalTimeout));
        if started >= deadline {
            return out_of_time();
        }
        let flight = self.flights.join(request);
        let (is_first, mut is_own) = (flight.is_first(), false);
        let in_time = {
            // Pinned here, so that it is not moved about: it is large.
            let fetch = pin!(self.fetch(deadline.into(), request));
            let landing = pin!(flight.cell().get_or_init(|| {
                is_own = true;
                fetch
            }));
            if is_first {
                // It ends in time by itself.
                landing.await;
                true
            } else {
                // Another's may have begun later, and end later.
                timeout_at(deadline.into(), landing).await.is_ok()
            }
        };
        let attempt = match in_time {
            true => flight.into_result().unwrap_or_else(out_of_time),
            false => out_of_time(),
        };
        let attempt = if is_own { attempt } else { attempt.shared() };
        Attempt { total: started.elapsed(), ..attempt }
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
}
