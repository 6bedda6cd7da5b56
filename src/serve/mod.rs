//! `cdnwarm serve`: one region's push endpoint. A push becomes a GET through the edge next door, a verdict, an answer.
//!
//! A push's way: `http::server` -> [`handler`] -> [`auth`] -> [`body`] -> [`envelope`], or [`unwrapped`] (-> [`pack`]) -> `WarmRequest::parse` -> `warm::Warmer` -> status.

mod auth;
mod body;
mod deliveries;
mod envelope;
mod handler;
mod metrics;
mod pack;
mod unwrapped;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZero;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::ValueEnum;
use prometheus_client::registry::Registry;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use crate::http::{MetricsArgs, MetricsServer, Server, Workers};
use crate::outcome::Outcome;
use crate::telemetry::health::Health;
use crate::telemetry::instance::{Identity, InstanceArgs};
use crate::telemetry::metrics::registry;
use crate::telemetry::outcomes::{OutcomeLog, OutcomeLogArgs};
use crate::warm::{WarmArgs, Warmer};
use auth::Auth;
pub(crate) use auth::AuthArgs;
use handler::{Handler, Seen};
use metrics::{ServeMetrics, States};

/// How long a stop waits for pushes under way; Cloud Run kills after 10 s.
const DRAIN_LIMIT: Duration = Duration::from_millis(9_500);

/// An unwrapped push has 100 attributes beside what every request has.
const MAX_UNWRAPPED_HEADERS: usize = 128;

/// Why it is not ready before it has keys.
const NO_KEYS: &str = "no key set yet to check push tokens with";

/// Arguments of `cdnwarm serve`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Port to listen on
    #[arg(long, default_value_t = 8080, env = "PORT")]
    port: u16,

    /// Address to listen on
    #[arg(long, value_name = "ADDR", default_value_t = IpAddr::V4(Ipv4Addr::UNSPECIFIED), env = "CDNWARM_LISTEN")]
    listen: IpAddr,

    #[command(flatten)]
    auth: AuthArgs,

    #[command(flatten)]
    answers: Answers,

    #[command(flatten)]
    metrics: MetricsArgs,

    #[command(flatten)]
    log: OutcomeLogArgs,

    #[command(flatten)]
    instance: InstanceArgs,

    #[command(flatten)]
    warm: WarmArgs,
}

impl Args {
    /// For one region of the demo, on a free port of loopback, before the edge at `edge`.
    pub(crate) fn for_demo(region: &str, edge: SocketAddr, auth: AuthArgs) -> Self {
        Self {
            port: 0,
            listen: IpAddr::V4(Ipv4Addr::LOCALHOST),
            auth,
            answers: Answers {
                malformed: Malformed::Ack,
                max_delivery_attempts: 5,
                retry_for: 600,
                max_in_flight: 1000,
                payload: Payload::Wrapped,
            },
            metrics: MetricsArgs::default(),
            log: OutcomeLogArgs::default(),
            instance: InstanceArgs { region: Some(region.to_owned()), ..InstanceArgs::default() },
            warm: WarmArgs::for_demo(edge),
        }
    }
}

/// What is answered where no answer is right for everybody.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Answers {
    /// Data that is no URL: nack (400) for a subscription with a dead-letter topic, ack (204, refused) for one without
    #[arg(long, value_enum, default_value_t = Malformed::Nack, env = "CDNWARM_MALFORMED")]
    malformed: Malformed,

    /// Deliveries of one message before a failure that may pass is acknowledged all the same
    #[arg(long, value_name = "COUNT", default_value_t = 5, env = "CDNWARM_MAX_DELIVERY_ATTEMPTS")]
    max_delivery_attempts: u32,

    /// Seconds since publishing after which such a failure is acknowledged, where Pub/Sub does not count deliveries
    #[arg(long, value_name = "SECONDS", default_value_t = 600, env = "CDNWARM_RETRY_FOR")]
    retry_for: u32,

    /// Pushes, or URLs of theirs, handled at once; more pushes are answered 429 at once, and Pub/Sub sends them again
    #[arg(long, value_name = "COUNT", default_value_t = 1000, env = "CDNWARM_MAX_IN_FLIGHT",
          value_parser = clap::value_parser!(u32).range(1..))]
    max_in_flight: u32,

    /// How the subscription pushes: wrapped in JSON, or unwrapped, with write-metadata on, its message as the body alone
    #[arg(long, value_enum, default_value_t = Payload::Wrapped, env = "CDNWARM_PAYLOAD")]
    payload: Payload,
}

/// How a message travels in a push.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Payload {
    /// A JSON object with the message in it, which is Pub/Sub's default.
    Wrapped,
    /// Data is the body, attributes are headers.
    Unwrapped,
}

/// What becomes of data that is no URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Malformed {
    /// 400: Pub/Sub sends it again, until its dead-letter policy takes it.
    Nack,
    /// 204: it is gone, with verdict refused.
    Ack,
}

impl Answers {
    fn retry_for(&self) -> Duration {
        Duration::from_secs(self.retry_for.into())
    }
}

/// A server that is bound and not yet answering.
pub(crate) struct Serve {
    server: Server,
    handler: Handler,
    metrics: Option<MetricsServer>,
    registry: Registry,
    health: Health,
}

impl Serve {
    /// Checks the arguments and binds. Outcomes go to `outcomes`, if there is one, or to the log.
    ///
    /// # Errors
    /// Arguments that cannot be meant, a port that is taken, a system without CA certificates.
    pub(crate) async fn bind(
        args: Args,
        outcomes: Option<mpsc::Sender<Outcome>>,
        stop: CancellationToken,
    ) -> anyhow::Result<Self> {
        let auth = Auth::new(args.auth, stop.clone())?;
        let mut server = Server::bind(SocketAddr::new(args.listen, args.port))
            .await
            .context("choose another port with --port or PORT, or end what uses this one")?;
        if args.answers.payload == Payload::Unwrapped {
            server = server.with_max_headers(MAX_UNWRAPPED_HEADERS);
        }
        let metrics_server = match args.metrics.metrics_addr {
            Some(addr) => Some(MetricsServer::bind(addr).await.context("--metrics-addr")?),
            None => None,
        };
        let log = OutcomeLog { which: args.log.log_outcomes, method: args.warm.method.as_str() };
        let warmer = Warmer::new(args.warm)?;
        let identity = Identity::discover(args.instance);
        auth.prepare();
        let max_in_flight = args.answers.max_in_flight;
        let in_flight = Arc::new(Semaphore::new(max_in_flight as usize));
        let health = health(&auth, &stop);
        let mut registry = registry(&health);
        let states = States {
            auth: auth.clone(),
            identity: identity.clone(),
            warmer: warmer.clone(),
            in_flight: in_flight.clone(),
            max_in_flight,
        };
        let metrics = ServeMetrics::register(&mut registry, states);
        let seen = Seen { metrics, log, outcomes };
        let handler = Handler::new(auth, identity, warmer, args.answers, in_flight, seen, stop);
        Ok(Self { server, handler, metrics: metrics_server, registry, health })
    }

    /// Where it listens.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.server.addr()
    }

    /// Answers until `stop`, then what is under way, within 10 s.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let handler = Arc::new(self.handler);
        // Shown until the end, so that a stop can be watched too.
        let shown = CancellationToken::new();
        let _shown_until_the_end = shown.clone().drop_guard();
        if let Some(metrics) = self.metrics {
            tokio::spawn(metrics.run(self.registry, self.health, shown));
        }
        self.server
            .run(
                move |request| {
                    let handler = handler.clone();
                    // It is large: made where it stays, not copied there.
                    let place = Box::new_uninit();
                    Box::into_pin(Box::write(place, async move { handler.answer(request).await }))
                },
                stop,
                DRAIN_LIMIT,
            )
            .await;
    }
}

/// What it takes to answer pushes.
fn health(auth: &Auth, stop: &CancellationToken) -> Health {
    let health = Health::default();
    let (auth, stop) = (auth.clone(), stop.clone());
    health.ask("push-keys", move || (!auth.is_ready()).then(|| NO_KEYS.to_owned()));
    health.ask("stopping", move || stop.is_cancelled().then(|| "draining".to_owned()));
    health
}

/// Binds, says where, and answers until `stop`.
///
/// # Errors
/// As for binding.
pub(crate) async fn run(args: Args, stop: CancellationToken) -> anyhow::Result<()> {
    let mut serve = Serve::bind(args, None, stop.clone()).await?;
    // A thread for each core, this one included.
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    let workers = Workers::start(cores - 1).context("starting a thread for each core")?;
    serve.server = serve.server.with_workers(workers);
    if let Some(metrics) = &serve.metrics {
        tracing::info!("metrics at http://{}/metrics", metrics.addr());
    }
    let addr = serve.addr();
    tracing::info!(addr = %addr, "listening on {addr}");
    serve.run(stop).await;
    tracing::info!("serve stopped");
    Ok(())
}
