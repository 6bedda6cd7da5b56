//! `cdnwarm serve`: one region's push endpoint. A push becomes a GET through the edge next door, a verdict, an answer.
//!
//! A push's way: `http::server` -> [`handler`] -> [`envelope`] (-> [`pack`]) -> `WarmRequest::parse` -> `warm::Warmer` -> status.

mod deliveries;
mod envelope;
mod handler;
mod pack;

use clap::builder::BoolishValueParser;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::Context;
use clap::ValueEnum;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::http::Server;
use crate::outcome::Outcome;
use crate::usage::UsageError;
use crate::warm::{WarmArgs, Warmer};
use handler::Handler;

/// How long a stop waits for pushes under way; Cloud Run kills after 10 s.
const DRAIN_LIMIT: Duration = Duration::from_millis(9_500);

/// Arguments of `cdnwarm serve`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Port to listen on
    #[arg(long, default_value_t = 8080, env = "PORT")]
    port: u16,

    /// Address to listen on
    #[arg(long, value_name = "ADDR", default_value_t = IpAddr::V4(Ipv4Addr::UNSPECIFIED), env = "CDNWARM_LISTEN")]
    listen: IpAddr,

    /// Believe every request, whoever sent it; required, since this version does not check push tokens
    #[arg(long, env = "CDNWARM_INSECURE_ACCEPT_UNAUTHENTICATED", value_parser = BoolishValueParser::new())]
    insecure_accept_unauthenticated: bool,

    #[command(flatten)]
    answers: Answers,

    #[command(flatten)]
    warm: WarmArgs,
}

impl Args {
    /// For one region of the demo, on a free port of loopback, before the edge at `edge`.
    pub(crate) fn for_demo(region: &str, edge: SocketAddr) -> Self {
        Self {
            port: 0,
            listen: IpAddr::V4(Ipv4Addr::LOCALHOST),
            insecure_accept_unauthenticated: true,
            answers: Answers {
                malformed: Malformed::Ack,
                max_delivery_attempts: 5,
                retry_for: 600,
                max_in_flight: 1000,
            },
            warm: WarmArgs::for_demo(region, edge),
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
        if !args.insecure_accept_unauthenticated {
            return Err(UsageError::new(anyhow::anyhow!(
                "this version does not check who sends a push: put something before it that does (a private Cloud Run \
                 service checks tokens itself), and say so with --insecure-accept-unauthenticated"
            ))
            .into());
        }
        let server = Server::bind(SocketAddr::new(args.listen, args.port))
            .await
            .context("choose another port with --port or PORT, or end what uses this one")?;
        let warmer = Warmer::new(args.warm)?;
        Ok(Self { server, handler: Handler::new(warmer, args.answers, outcomes, stop) })
    }

    /// Where it listens.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.server.addr()
    }

    /// Answers until `stop`, then what is under way, within 10 s.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let handler = self.handler;
        self.server
            .run(
                move |request| {
                    let handler = handler.clone();
                    async move { handler.answer(request).await }
                },
                stop,
                DRAIN_LIMIT,
            )
            .await;
    }
}

/// Binds, says where, and answers until `stop`.
///
/// # Errors
/// As for binding.
pub(crate) async fn run(args: Args, stop: CancellationToken) -> anyhow::Result<()> {
    let serve = Serve::bind(args, None, stop.clone()).await?;
    let addr = serve.addr();
    tracing::info!(addr = %addr, "listening on {addr}");
    serve.run(stop).await;
    tracing::info!("serve stopped");
    Ok(())
}
