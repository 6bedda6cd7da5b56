//! `cdnwarm demo`: the whole road on one machine, in one process, without an account, Docker, Java or a network.
//!
//! Kafka is librdkafka's mock cluster ([`kafka`]), Pub/Sub an embedded server of its gRPC and REST API ([`pubsub`]);
//! each region has a caching [`edge`] before one [`origin`]. The roles are the real ones and speak real protocols to
//! them over loopback. Each part stands on its own, for tests. Next to read: `demo/report.rs`, which keeps the score.

pub mod edge;
pub mod kafka;
pub mod origin;
pub mod pubsub;
mod report;

use clap::builder::BoolishValueParser;
use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::pin::pin;
use std::str::FromStr;
use std::time::Duration;

use anyhow::Context;
use googleapis_tonic_google_pubsub_v1::google::pubsub::v1::publisher_client::PublisherClient;
use googleapis_tonic_google_pubsub_v1::google::pubsub::v1::push_config::{AuthenticationMethod, OidcToken};
use googleapis_tonic_google_pubsub_v1::google::pubsub::v1::subscriber_client::SubscriberClient;
use googleapis_tonic_google_pubsub_v1::google::pubsub::v1::{PushConfig, Subscription, Topic};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::transport::Endpoint;
use url::Url;

use crate::outcome::Outcome;
use crate::usage::UsageError;
use crate::{bridge, produce, serve};
use edge::{Edge, EdgeConfig};
use kafka::EmbeddedKafka;
use origin::Origin;
use pubsub::EmbeddedPubsub;
use report::Report;

/// The Kafka topic, as the sample files call it.
const KAFKA_TOPIC: &str = "warming_urls";
const PARTITIONS: i32 = 6;
const PUBSUB_TOPIC: &str = "projects/demo/topics/warming_urls";
/// Whose tokens pushes carry.
const PUSH_ACCOUNT: &str = "push@demo.iam.gserviceaccount.com";
/// How long nothing may become of any URL, once all are produced, before the demo gives up.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long the roles may take to leave at the end.
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// How long the demo's own servers wait for requests under way at the end.
const DRAIN_LIMIT: Duration = Duration::from_secs(1);
/// Outcomes that wait to be counted.
const OUTCOMES_WAITING: usize = 1024;

/// Arguments of `cdnwarm demo`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Regions: how many, or their names separated by commas
    #[arg(long, value_name = "N|NAMES", default_value = "3", env = "CDNWARM_DEMO_REGIONS")]
    regions: Regions,

    /// How many URLs to produce
    #[arg(long, value_name = "N", default_value_t = 10, env = "CDNWARM_DEMO_COUNT",
          value_parser = clap::value_parser!(u32).range(1..=100_000))]
    count: u32,

    /// How many URLs to produce a second [default: as fast as they go]
    #[arg(long, value_name = "N", env = "CDNWARM_DEMO_RATE")]
    rate: Option<NonZeroU32>,

    /// Keep running after the table and warm what other programs produce, until Ctrl-C
    #[arg(long, env = "CDNWARM_DEMO_KEEP", value_parser = BoolishValueParser::new())]
    keep: bool,

    /// Break one region: its edge never stores, so the demo fails and names it
    #[arg(long = "break", value_name = "REGION", env = "CDNWARM_DEMO_BREAK")]
    broken: Option<String>,
}

/// The names of the demo's regions.
#[derive(Debug, Clone)]
struct Regions(Vec<String>);

impl FromStr for Regions {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const NAMES: [&str; 8] = [
            "europe-west1",
            "us-central1",
            "asia-northeast1",
            "southamerica-east1",
            "australia-southeast1",
            "africa-south1",
            "me-central1",
            "asia-south1",
        ];
        if let Ok(count) = text.parse::<usize>() {
            if !(1..=NAMES.len()).contains(&count) {
                return Err(format!("1 to {} regions, or their names separated by commas", NAMES.len()));
            }
            return Ok(Self(NAMES[..count].iter().map(|name| (*name).to_owned()).collect()));
        }
        let mut names: Vec<String> = text.split(',').map(|name| name.trim().to_owned()).collect();
        let is_name = |name: &String| {
            name.starts_with(|c: char| c.is_ascii_lowercase())
                && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
        };
        if !names.iter().all(is_name) {
            return Err(
                "a region's name has lower-case letters, digits and hyphens, such as europe-west1".to_owned()
            );
        }
        let mut seen = HashSet::new();
        names.retain(|name| seen.insert(name.clone()));
        Ok(Self(names))
    }
}

/// Builds the road, produces, shows what becomes of each URL in each region, and keeps running where asked to.
///
/// # Errors
/// Any URL that is not warm in every region, or that an edge asked the origin for more than once.
pub(crate) async fn run(args: Args, stop: CancellationToken) -> anyhow::Result<()> {
    let regions = args.regions.0.clone();
    if let Some(broken) = args.broken.as_ref().filter(|broken| !regions.contains(broken)) {
        let names = regions.join(", ");
        return Err(UsageError::new(anyhow::anyhow!("--break {broken}: the regions are {names}")).into());
    }
    let files = Files::create()?;
    let (sender, outcomes) = mpsc::channel(OUTCOMES_WAITING);
    // The roles stop when the demo is over, not when somebody asks it to stop: it still has to print its table.
    let roles_stop = CancellationToken::new();
    let (road, mut parts) = Road::build(&args, &files, sender, &roles_stop).await?;
    road.print();

    let urls = urls(args.count);
    let result = tokio::select! {
        result = warm_everywhere(&args, &files, &urls, outcomes, &road, &stop) => result,
        ended = parts.first_to_end() => ended,
    };
    roles_stop.cancel();
    parts.ended().await;
    result
}

/// Produces the URLs, watches their outcomes, prints the table and judges it.
async fn warm_everywhere(
    args: &Args,
    files: &Files,
    urls: &[String],
    mut outcomes: mpsc::Receiver<Outcome>,
    road: &Road,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    std::fs::write(&files.urls, urls.join("\n")).context("writing the demo's URLs")?;
    let producing = produce::run(
        produce::Args::for_demo(&files.kafka_env, KAFKA_TOPIC, &files.urls, args.rate),
        stop.child_token(),
    );
    let mut report = Report::new(urls, &args.regions.0);
    let mut producing = pin!(producing);
    let mut produced = false;
    while !report.is_complete() {
        tokio::select! {
            result = &mut producing, if !produced => {
                result?;
                produced = true;
            }
            Some(outcome) = outcomes.recv() => report.add(outcome),
            () = tokio::time::sleep(PATIENCE), if produced => break,
            () = stop.cancelled() => break,
        }
    }
    if !produced {
        producing.await?;
    }
    let origin_gets = road.origin_counts.gets();
    report.print(&origin_gets)?;
    let judged = report.judge(&origin_gets);
    if args.keep && !stop.is_cancelled() {
        road.print_keep(files);
        if let Err(error) = &judged {
            eprintln!("cdnwarm: {error:#}");
        }
        tokio::select! {
            () = stop.cancelled() => {}
            followed = report::follow(&mut outcomes) => followed?,
        }
    }
    judged
}

/// The sample's URLs; beyond those, the sample's with a part number, so that each is another object.
fn urls(count: u32) -> Vec<String> {
    let sample: Vec<String> = produce::sample_urls().collect();
    (0..count as usize)
        .map(|n| {
            let url = &sample[n % sample.len()];
            match n / sample.len() {
                0 => url.clone(),
                part => format!("{url}&part={part}"),
            }
        })
        .collect()
}

/// Everything that runs, and where.
struct Road {
    /// Ends with this value.
    _kafka: EmbeddedKafka,
    addresses: Vec<(String, String)>,
    origin_counts: origin::Counts,
}

/// Every part's task, by its name.
struct Parts(JoinSet<(&'static str, anyhow::Result<()>)>);

impl Road {
    /// Binds and starts every part, from the origin up to the bridge, so that nothing is asked for before it is there.
    async fn build(
        args: &Args,
        files: &Files,
        outcomes: mpsc::Sender<Outcome>,
        stop: &CancellationToken,
    ) -> anyhow::Result<(Self, Parts)> {
        let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let mut tasks = JoinSet::new();

        let kafka = EmbeddedKafka::start()?;
        kafka.create_topic(KAFKA_TOPIC, PARTITIONS)?;
        let bootstrap_servers = kafka.bootstrap_servers()?;
        files.write_kafka_env(&bootstrap_servers)?;

        let pubsub = EmbeddedPubsub::bind(loopback).await?;
        let pubsub_addr = pubsub.addr();
        let keys = Url::parse(&pubsub.keys_url()).context("the embedded Pub/Sub's keys")?;
        let pubsub_stop = stop.clone();
        tasks.spawn(async move {
            pubsub.run(pubsub_stop).await;
            ("Pub/Sub", Ok(()))
        });

        let origin = Origin::bind(loopback).await?;
        let (origin_addr, origin_counts) = (origin.addr(), origin.counts());
        let origin_stop = stop.clone();
        tasks.spawn(async move {
            origin.run(origin_stop).await;
            ("origin", Ok(()))
        });

        let mut addresses = vec![
            ("Kafka".to_owned(), format!("{bootstrap_servers}  topic {KAFKA_TOPIC}")),
            ("Pub/Sub".to_owned(), format!("{pubsub_addr}  topic {PUBSUB_TOPIC}")),
            ("origin".to_owned(), origin_addr.to_string()),
        ];
        let mut endpoints = Vec::new();
        for region in &args.regions.0 {
            let stores = args.broken.as_ref() != Some(region);
            let config = EdgeConfig { addr: loopback, name: region.clone(), origin: origin_addr, stores };
            let edge = Edge::bind(config).await?;
            let edge_addr = edge.addr();
            let auth = serve::AuthArgs::for_demo(region, PUSH_ACCOUNT, keys.clone());
            let serve = serve::Args::for_demo(region, edge_addr, auth);
            let serve = serve::Serve::bind(serve, Some(outcomes.clone()), stop.clone()).await?;
            addresses.push((region.clone(), format!("serve {}  edge {edge_addr}", serve.addr())));
            endpoints.push((region.clone(), serve.addr()));
            let (edge_stop, serve_stop) = (stop.clone(), stop.clone());
            tasks.spawn(async move {
                edge.run(edge_stop).await;
                ("edge", Ok(()))
            });
            tasks.spawn(async move {
                serve.run(serve_stop).await;
                ("serve", Ok(()))
            });
        }
        subscribe(pubsub_addr, &endpoints).await.context("setting the embedded Pub/Sub up")?;

        let bridge = bridge::Args::for_demo(&files.kafka_env, KAFKA_TOPIC, PUBSUB_TOPIC, pubsub_addr)?;
        let bridge_stop = stop.clone();
        tasks.spawn(async move { ("bridge", bridge::run(bridge, bridge_stop).await) });
        Ok((Self { _kafka: kafka, addresses, origin_counts }, Parts(tasks)))
    }

    fn print(&self) {
        for (what, address) in &self.addresses {
            println!("{what:<20} {address}");
        }
        println!();
    }

    fn print_keep(&self, files: &Files) {
        println!();
        self.print();
        println!("Running on; from another shell, for example:");
        println!("  cdnwarm produce {} {KAFKA_TOPIC} 5", files.kafka_env.display());
        println!("Ctrl-C ends it.");
    }
}

impl Parts {
    /// Waits for a part that ends by itself, which none should, and says which.
    async fn first_to_end(&mut self) -> anyhow::Result<()> {
        match self.0.join_next().await {
            Some(Ok((what, result))) => {
                result.with_context(|| format!("the demo's {what}"))?;
                anyhow::bail!("the demo's {what} ended before the demo")
            }
            Some(Err(error)) => Err(error).context("a part of the demo panicked"),
            None => std::future::pending().await,
        }
    }

    /// Waits for every part to leave.
    async fn ended(mut self) {
        let all = async {
            while let Some(part) = self.0.join_next().await {
                match part {
                    Ok((_, Ok(()))) => {}
                    Ok((what, Err(error))) => tracing::warn!("the demo's {what}: {error:#}"),
                    Err(error) => tracing::error!("a part of the demo panicked: {error}"),
                }
            }
        };
        if tokio::time::timeout(STOP_LIMIT, all).await.is_err() {
            tracing::warn!("parts of the demo did not end in time");
        }
    }
}

/// The topic, and a push subscription per region with the filter that a real one has.
async fn subscribe(pubsub: SocketAddr, endpoints: &[(String, SocketAddr)]) -> anyhow::Result<()> {
    let channel = Endpoint::from_shared(format!("http://{pubsub}"))?.connect().await?;
    let mut publisher = PublisherClient::new(channel.clone());
    publisher.create_topic(Topic { name: PUBSUB_TOPIC.to_owned(), ..Topic::default() }).await?;
    let mut subscriber = SubscriberClient::new(channel);
    for (region, endpoint) in endpoints {
        subscriber
            .create_subscription(Subscription {
                name: format!("projects/demo/subscriptions/warm-{region}"),
                topic: PUBSUB_TOPIC.to_owned(),
                push_config: Some(PushConfig {
                    push_endpoint: format!("http://{endpoint}/"),
                    // The endpoint's port is known only once `serve` runs, so its audience is the region's name.
                    authentication_method: Some(AuthenticationMethod::OidcToken(OidcToken {
                        service_account_email: PUSH_ACCOUNT.to_owned(),
                        audience: region.clone(),
                    })),
                    ..PushConfig::default()
                }),
                ack_deadline_seconds: 600,
                filter: format!(
                    "NOT attributes:\"warm-region-filtered\" OR attributes:\"warm-region-{region}\""
                ),
                ..Subscription::default()
            })
            .await?;
    }
    Ok(())
}

/// The demo's folder, for this user alone, gone with this value.
struct Files {
    _folder: TempDir,
    kafka_env: PathBuf,
    urls: PathBuf,
}

impl Files {
    fn create() -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("cdnwarm-demo-")
            .tempdir()
            .context("making a temporary folder")?;
        Ok(Self {
            kafka_env: folder.path().join("kafka-env"),
            urls: folder.path().join("urls.txt"),
            _folder: folder,
        })
    }

    /// What the bridge reads, and any other program that wants to produce.
    fn write_kafka_env(&self, bootstrap_servers: &str) -> anyhow::Result<()> {
        let text = format!(
            "# The Kafka of the demo that is running as process {}.\n[default]\nbootstrap.servers={bootstrap_servers}\n\
             # An idempotent producer waits half a second for its id before it sends anything.\n\
             enable.idempotence=false\n\n\
             [consumer]\ngroup.id=cdn_prewarm_group\nauto.offset.reset=earliest\n\
             # The embedded Kafka answers a fetch only when this is over, not when a record comes,\n\
             fetch.wait.max.ms=20\n\
             # and lets a new member wait nearly this long for one that has left.\n\
             session.timeout.ms=3000\nheartbeat.interval.ms=300\n",
            std::process::id()
        );
        std::fs::write(&self.kafka_env, text).with_context(|| format!("writing {}", self.kafka_env.display()))
    }
}
