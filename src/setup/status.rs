//! How the road stands: each region's URL, revision, readiness and backlog, and the bridge.

use std::collections::HashMap;

use futures_util::{StreamExt, TryStreamExt, stream};
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use serde_json::Value;

use super::api::{Api, ApiError, encoded};
use super::config::{BridgeKind, RegionService};
use super::desired::Project;
use super::live::Live;
use super::plan::READS;
use super::resource::{How, Resource};
use crate::output;

/// Pub/Sub's metrics are some minutes late.
const LOOKED_BACK: SignedDuration = SignedDuration::from_mins(10);

/// One region.
#[derive(Debug, Serialize)]
pub(super) struct Region {
    region: String,
    /// None where there is no service.
    url: Option<String>,
    revision: Option<String>,
    ready: bool,
    /// Why it is not ready.
    problem: Option<String>,
    subscription: bool,
    /// None where the metric has no value (yet).
    backlog: Option<i64>,
    oldest_unacked_s: Option<i64>,
}

/// The bridge.
#[derive(Debug, Serialize)]
pub(super) struct Bridge {
    name: String,
    ready: bool,
    state: String,
}

/// All of it.
#[derive(Debug, Serialize)]
pub(super) struct Status {
    regions: Vec<Region>,
    bridge: Option<Bridge>,
}

impl Status {
    /// Asks for all of it.
    ///
    /// # Errors
    /// What cannot be read.
    pub(super) async fn read(live: &Live, project: &Project<'_>, all: &[Resource]) -> anyhow::Result<Self> {
        let (backlog, oldest) = tokio::try_join!(
            newest(live, project, "num_undelivered_messages"),
            newest(live, project, "oldest_unacked_message_age"),
        )?;
        let services = project.config.services();
        let regions = services.iter().map(async |service| {
            let mut region = region(live, project, service).await?;
            let subscription = project.subscription(service);
            region.backlog = backlog.get(&subscription).copied();
            region.oldest_unacked_s = oldest.get(&subscription).copied();
            Ok::<_, ApiError>(region)
        });
        let regions = stream::iter(regions).buffered(READS).try_collect().await?;
        Ok(Self { regions, bridge: bridge(live, project, all).await? })
    }

    /// What is not as it should be: how many.
    pub(super) fn problems(&self) -> usize {
        let bridge = self.bridge.as_ref().is_some_and(|bridge| !bridge.ready);
        self.regions.iter().filter(|region| !region.ready || !region.subscription).count()
            + usize::from(bridge)
    }

    /// Returns a table of the regions, then a line for the bridge and for each problem.
    pub(super) fn text(&self) -> String {
        let heading = ["REGION", "READY", "REVISION", "BACKLOG", "OLDEST s", "URL"];
        let mut text = output::table(heading, self.regions.iter().map(Region::row));
        if let Some(bridge) = &self.bridge {
            text.push_str(&format!("bridge: {}, {}\n", bridge.name, bridge.state));
        }
        for region in &self.regions {
            if let Some(problem) = &region.problem {
                text.push_str(&format!("{}: {problem}\n", region.region));
            }
            if !region.subscription {
                text.push_str(&format!("{}: no subscription\n", region.region));
            }
        }
        text
    }
}

impl Region {
    fn row(&self) -> Vec<String> {
        let text = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        let number = |number: Option<i64>| text(&number.map(|number| number.to_string()));
        vec![
            self.region.clone(),
            if self.ready { "yes" } else { "no" }.to_owned(),
            text(&self.revision),
            number(self.backlog),
            number(self.oldest_unacked_s),
            text(&self.url),
        ]
    }
}

/// One region's service and subscription; their metrics are asked for once for all.
async fn region(live: &Live, project: &Project<'_>, service: &RegionService) -> Result<Region, ApiError> {
    let id = &project.config.project;
    let run = format!("v2/projects/{id}/locations/{}/services/{}", service.region, service.name);
    let subscription = format!("v1/projects/{id}/subscriptions/{}", project.subscription(service));
    let (run, subscription) =
        tokio::try_join!(live.client.find(Api::Run, &run), live.client.find(Api::Pubsub, &subscription))?;
    let condition = run.as_ref().map(|run| &run["terminalCondition"]);
    let ready = condition.is_some_and(|condition| condition["state"] == "CONDITION_SUCCEEDED");
    Ok(Region {
        region: service.region.clone(),
        url: run.as_ref().map(|_| project.url(service)),
        revision: run.as_ref().and_then(|run| last_part(&run["latestReadyRevision"])),
        ready,
        problem: if ready { None } else { Some(problem(condition)) },
        subscription: subscription.is_some(),
        backlog: None,
        oldest_unacked_s: None,
    })
}

fn problem(condition: Option<&Value>) -> String {
    let Some(condition) = condition else { return "no service".to_owned() };
    let message = condition["message"].as_str().or_else(|| condition["state"].as_str());
    message.unwrap_or("its state is not known").to_owned()
}

fn last_part(name: &Value) -> Option<String> {
    Some(name.as_str()?.rsplit('/').next()?.to_owned()).filter(|name| !name.is_empty())
}

async fn bridge(live: &Live, project: &Project<'_>, all: &[Resource]) -> anyhow::Result<Option<Bridge>> {
    let is_bridge = |resource: &&Resource| match &resource.how {
        How::Object(spec) => spec.noun == super::kinds::WORKER_POOL.noun,
        How::Job(_) => true,
        _ => false,
    };
    if project.config.bridge.kind == BridgeKind::None {
        return Ok(None);
    }
    let Some(resource) = all.iter().find(is_bridge) else { return Ok(None) };
    let found = live.read(resource).await?;
    let (ready, state) = match (&found, &resource.how) {
        (None, _) => (false, "not there".to_owned()),
        (Some(job), How::Job(_)) => {
            let state = job["currentState"].as_str().unwrap_or("its state is not known");
            (state == "JOB_STATE_RUNNING", state.to_owned())
        }
        (Some(pool), _) => {
            let condition = &pool["terminalCondition"];
            let ready = condition["state"] == "CONDITION_SUCCEEDED";
            let instances = pool["scaling"]["manualInstanceCount"].as_i64().unwrap_or_default();
            (ready, if ready { format!("{instances} instances") } else { problem(Some(condition)) })
        }
    };
    Ok(Some(Bridge { name: resource.key(), ready, state }))
}

/// The newest value of one of Pub/Sub's metrics, by subscription.
async fn newest(live: &Live, project: &Project<'_>, metric: &str) -> Result<HashMap<String, i64>, ApiError> {
    let filter = format!(r#"metric.type = "pubsub.googleapis.com/subscription/{metric}""#);
    let now = Timestamp::now();
    let path = format!(
        "v3/projects/{}/timeSeries?filter={}&interval.startTime={}&interval.endTime={}",
        project.config.project,
        encoded(&filter),
        encoded(&(now - LOOKED_BACK).to_string()),
        encoded(&now.to_string()),
    );
    let mut newest = HashMap::new();
    for series in live.client.list(Api::Monitoring, &path, "timeSeries").await? {
        let Some(subscription) = series["resource"]["labels"]["subscription_id"].as_str() else { continue };
        // The newest point comes first.
        let value = &series["points"][0]["value"]["int64Value"];
        if let Some(value) = value.as_str().and_then(|value| value.parse().ok()).or_else(|| value.as_i64()) {
            newest.insert(subscription.to_owned(), value);
        }
    }
    Ok(newest)
}
