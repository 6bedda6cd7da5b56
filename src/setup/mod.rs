//! `cdnwarm setup`: every region of a real project from one file.
//!
//! `config` reads `cdnwarm.toml` (`keys` and `check` refuse what cannot be meant), `desired` makes a list of `resource`s
//! of it, `live` reads what there is, `plan` compares (`diff`; `left_over` finds what an
//! earlier form of the file made), `show` prints, `apply` does it by `change`, `status` looks.
//! `api` speaks to Google Cloud, and is the only part that does. What is a kind of object is a row in `kinds`.

mod api;
mod apply;
mod change;
mod check;
mod config;
mod desired;
mod diff;
mod kafka;
mod keys;
mod kinds;
mod left_over;
mod live;
mod plan;
mod progress;
mod resource;
mod secret;
mod show;
mod status;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail};
use http::Method;
use tokio_util::sync::CancellationToken;

use crate::output::print;
use crate::usage::UsageError;
use api::{Api, Client, ClientArgs};
use config::{BridgeKind, Config};
use desired::Project;
use live::Live;
use plan::{Action, Plan};
use progress::Progress;
use resource::{Part, Resource};
use secret::Payload;

/// Arguments of `cdnwarm setup`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// File that says what there is to be; cdnwarm.toml.example shows what it holds
    #[arg(
        short,
        long,
        value_name = "FILE",
        default_value = "cdnwarm.toml",
        global = true,
        env = "CDNWARM_SETUP_FILE"
    )]
    file: PathBuf,

    /// Only these parts, separated by commas
    #[arg(long, value_name = "PART", value_enum, value_delimiter = ',', global = true)]
    only: Vec<Part>,

    /// Only what belongs to these regions of the file, separated by commas
    #[arg(long = "only-region", value_name = "NAME", value_delimiter = ',', global = true)]
    only_region: Vec<String>,

    /// Print JSON
    #[arg(long, global = true)]
    json: bool,

    #[command(flatten)]
    client: ClientArgs,

    #[command(subcommand)]
    action: What,
}

/// What to do.
#[derive(Debug, Clone, clap::Subcommand)]
enum What {
    /// Show what would be done, and change nothing
    Plan {
        /// Take over what exists and is not cdnwarm's
        #[arg(long)]
        adopt: bool,

        /// Exit with status 1 where there is something to do
        #[arg(long)]
        check: bool,
    },
    /// Show it, ask, and do it; run again, it changes nothing
    Apply {
        /// Take over what exists and is not cdnwarm's
        #[arg(long)]
        adopt: bool,

        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Show each region's URL, revision, readiness and backlog; status 1 where something is not ready
    Status,
    /// Delete all that is cdnwarm's, and nothing else
    Destroy {
        /// The project's id once more, instead of being asked for it
        #[arg(long, value_name = "PROJECT")]
        project: Option<String>,
    },
}

/// Does what was asked for.
///
/// # Errors
/// A file that cannot be meant, rights that are missing (with the roles to ask for), what Google or Kafka say.
pub(crate) async fn run(args: Args, stop: CancellationToken) -> anyhow::Result<()> {
    let config = Config::read(&args.file).map_err(UsageError::new)?;
    let unknown = args.only_region.iter().find(|region| !config.regions.contains_key(*region));
    if let Some(region) = unknown {
        let known: Vec<&str> = config.regions.keys().map(String::as_str).collect();
        let why = anyhow::anyhow!("--only-region {region}: the file has {}", known.join(", "));
        return Err(UsageError::new(why).into());
    }
    let live = Live::new(Client::new(args.client.clone())?, stop.clone());
    let number = tokio::select! {
        number = project_number(&live, &config) => number?,
        () = stop.cancelled() => bail!("stopped; nothing was changed"),
    };
    let payload = match (&config.kafka.env_file, &args.action) {
        // What is only looked at or deleted needs no credentials of Kafka's.
        (Some(file), What::Plan { .. } | What::Apply { .. }) if config.bridge.kind != BridgeKind::None => {
            Some(Arc::new(Payload::read(file).map_err(UsageError::new)?))
        }
        _ => None,
    };
    let project = Project { config: &config, number, payload };
    match args.action.clone() {
        What::Plan { adopt, check } => {
            let plan = plan(&live, &project, &args, adopt).await?;
            print_plan(&plan, &project, &args)?;
            if check && plan.changes() {
                bail!("there is something to do");
            }
            Ok(())
        }
        What::Apply { adopt, yes } => {
            let plan = plan(&live, &project, &args, adopt).await?;
            print_plan(&plan, &project, &args)?;
            if plan.count(Action::Foreign) > 0 {
                bail!("{} of these are not cdnwarm's; nothing was changed", plan.count(Action::Foreign));
            }
            if plan.changes() && !yes {
                apply::ask("Do this? (yes/no)", &["y", "yes"], "give --yes", &live.stop).await?;
            }
            carry_out(&live, &plan, adopt).await
        }
        What::Status => {
            let resources = desired::resources(&project);
            let status = status::Status::read(&live, &project, &resources);
            let status = tokio::select! {
                status = status => status?,
                () = stop.cancelled() => bail!("stopped"),
            };
            print(&if args.json { pretty(&serde_json::to_value(&status)?) } else { status.text() })?;
            match status.problems() {
                0 => Ok(()),
                problems => bail!("{problems} not ready"),
            }
        }
        What::Destroy { project: named } => destroy(&live, &project, &args, named).await,
    }
}

async fn plan(live: &Live, project: &Project<'_>, args: &Args, adopt: bool) -> anyhow::Result<Plan> {
    let resources: Vec<Resource> =
        desired::resources(project).into_iter().filter(|resource| args.wants(resource)).collect();
    let mut plan = Plan::make(live, resources, adopt).await?;
    if args.only.is_empty() && args.only_region.is_empty() {
        plan.steps.extend(left_over::left_over(live, project).await?);
    }
    Ok(plan)
}

async fn destroy(
    live: &Live,
    project: &Project<'_>,
    args: &Args,
    named: Option<String>,
) -> anyhow::Result<()> {
    let resources: Vec<Resource> = desired::resources(project)
        .into_iter()
        .chain(managed_secret(project))
        .filter(|r| args.wants(r))
        .collect();
    let mut plan = Plan::of_deletion(live, resources).await?;
    if args.only.is_empty() && args.only_region.is_empty() {
        plan.steps.extend(left_over::left_over(live, project).await?);
    }
    print_plan(&plan, project, args)?;
    if !plan.changes() {
        return Ok(());
    }
    let id = &project.config.project;
    match named {
        Some(named) if named == *id => {}
        Some(named) => {
            let why = anyhow::anyhow!("--project {named}: the file is about {id}; nothing was changed");
            return Err(UsageError::new(why).into());
        }
        None => {
            let question = format!("This cannot be undone. The project's id, to go on ({id}):");
            apply::ask(&question, &[id], &format!("give --project {id}"), &live.stop).await?;
        }
    }
    carry_out(live, &plan, false).await
}

/// The secret, which is ours or not whatever the file at hand is.
fn managed_secret(project: &Project<'_>) -> Option<Resource> {
    (project.config.bridge.kind != BridgeKind::None).then(|| desired::secret(project))
}

async fn carry_out(live: &Live, plan: &Plan, adopt: bool) -> anyhow::Result<()> {
    let steps = plan.steps.iter().filter(|step| step.action.changes()).count();
    if steps == 0 {
        return Ok(());
    }
    let progress = Progress::new(steps);
    let applied = apply::apply(live, &plan.steps, adopt, &progress).await?;
    drop(progress);
    eprintln!("{} done.", applied.done);
    Ok(())
}

impl Args {
    fn wants(&self, resource: &Resource) -> bool {
        let region = |region: &String| self.only_region.contains(region);
        (self.only.is_empty() || self.only.contains(&resource.part))
            && (self.only_region.is_empty() || resource.region.as_ref().is_some_and(region))
    }
}

/// The project's number, by which Google's accounts and the services' URLs are named. Service Usage knows it too, and is
/// the API that is enabled in a project in which nothing else is.
async fn project_number(live: &Live, config: &Config) -> anyhow::Result<u64> {
    if let Some(number) = config.project_number {
        return Ok(number);
    }
    let path = format!("v1/projects/{}/services/{}", config.project, Api::ServiceUsage.host());
    let found = live.client.call(Api::ServiceUsage, Method::GET, &path, None).await;
    let found = found.with_context(|| {
        format!("looking up the number of project {} (or set project-number in the file)", config.project)
    })?;
    let number = found["parent"].as_str().and_then(|parent| parent.strip_prefix("projects/")?.parse().ok());
    number.with_context(|| format!("project {} has no number", config.project))
}

fn print_plan(plan: &Plan, project: &Project<'_>, args: &Args) -> anyhow::Result<()> {
    if args.json {
        return print(&pretty(&show::json(plan, &project.config.project)));
    }
    let regions = project.config.regions.len();
    let heading = format!(
        "Project {} ({}), topic {}, {regions} {}:",
        project.config.project,
        project.number,
        project.config.topic.name,
        if regions == 1 { "region" } else { "regions" }
    );
    print(&show::text(plan, &heading))
}

fn pretty(value: &serde_json::Value) -> String {
    format!("{value:#}\n")
}
