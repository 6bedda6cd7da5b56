//! `cdnwarm serve`: one region's push endpoint. A push becomes a GET through the edge next door, a verdict, an answer.
//!
//! A push's way: `http::server` -> [`handler`] -> [`envelope`] -> `WarmRequest::parse` -> `warm::Warmer` -> status.

mod envelope;
mod handler;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use clap::ValueEnum;
use tokio_util::sync::CancellationToken;

use crate::http::Server;
use crate::usage::UsageError;
use crate::warm::{WarmArgs, Warmer};
use handler::Handler;

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
    #[arg(long, env = "CDNWARM_INSECURE_ACCEPT_UNAUTHENTICATED")]
    insecure_accept_unauthenticated: bool,

    #[command(flatten)]
    answers: Answers,

    #[command(flatten)]
    warm: WarmArgs,
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

    /// Pushes handled at once; more are answered 429 at once, and Pub/Sub sends them again
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
    /// Checks the arguments and binds.
    ///
    /// # Errors
    /// Arguments that cannot be meant, a port that is taken, a system without CA certificates.
    pub(crate) async fn bind(args: Args, stop: CancellationToken) -> anyhow::Result<Self> {
        if !args.insecure_accept_unauthenticated {
            return Err(UsageError::new(anyhow::anyhow!(
                "this version does not check who sends a push: put something before it that does (a private Cloud Run \
                 service checks tokens itself), and say so with --insecure-accept-unauthenticated"
            ))
            .into());
        }
        let server = Server::bind(SocketAddr::new(args.listen, args.port)).await?;
        let warmer = Warmer::new(args.warm)?;
        Ok(Self { server, handler: Handler::new(warmer, args.answers, stop) })
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
            )
            .await;
    }
}

/// Binds, says where, and answers until `stop`.
///
/// # Errors
/// As for binding.
pub(crate) async fn run(args: Args, stop: CancellationToken) -> anyhow::Result<()> {
    let serve = Serve::bind(args, stop.clone()).await?;
    let addr = serve.addr();
    tracing::info!(addr = %addr, "listening on {addr}");
    serve.run(stop).await;
    tracing::info!("serve stopped");
    Ok(())
}
