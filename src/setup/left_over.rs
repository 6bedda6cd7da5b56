//! What an earlier form of the file made, and this one has no more: regions, a bridge elsewhere or of another kind, alerts
//! on it. Only what is cdnwarm's, and of this topic.

use anyhow::bail;
use futures_util::{StreamExt, stream};
use serde_json::Value;

use super::api::{Api, ApiError};
use super::desired::{self, Project};
use super::kinds;
use super::live::Live;
use super::plan::{Action, READS, Step};
use super::resource::{How, LABEL, Part, Resource, Spec};

/// All of it, as steps that delete it.
///
/// # Errors
/// What cannot be read, or a stop.
pub(super) async fn left_over(live: &Live, project: &Project<'_>) -> anyhow::Result<Vec<Step>> {
    tokio::select! {
        found = find(live, project) => found,
        () = live.stop.cancelled() => bail!("stopped before all was read; nothing was changed"),
    }
}

async fn find(live: &Live, project: &Project<'_>) -> anyhow::Result<Vec<Step>> {
    let mut steps = regions(live, project).await?;
    let looks = desired::earlier(project).into_iter().map(async |resource| {
        let found = live.read(&resource).await;
        (resource, found)
    });
    for (resource, found) in stream::iter(looks).buffered(READS).collect::<Vec<_>>().await {
        match found {
            Ok(Some(there)) if resource.is_ours(&there) && is_of(project, &resource, &there) => {
                steps.push(deletion(resource, there));
            }
            Ok(_) => {}
            // A region may know no worker pools, and whoever wants no bridge need have no right to look for one.
            Err(error) if is_refused(&error) => {
                tracing::debug!("{} is not looked for: {error:#}", resource.key())
            }
            Err(error) => return Err(error),
        }
    }
    Ok(steps)
}

fn is_refused(error: &anyhow::Error) -> bool {
    error.downcast_ref::<ApiError>().is_some_and(|error| !error.passes_with_time())
}

/// A bridge in this project may move another topic, by another file.
fn is_of(project: &Project<'_>, resource: &Resource, there: &Value) -> bool {
    let pool = matches!(resource.how, How::Object(spec) if spec.noun == kinds::WORKER_POOL.noun);
    let args = there["template"]["containers"][0]["args"].as_array();
    !pool || args.into_iter().flatten().any(|arg| *arg == project.topic())
}

/// Services and subscriptions, found by their labels. The subscription, by which they are found, goes last.
async fn regions(live: &Live, project: &Project<'_>) -> anyhow::Result<Vec<Step>> {
    let path = format!("v1/projects/{}/subscriptions", project.config.project);
    let all = live.client.list(Api::Pubsub, &path, "subscriptions").await?;
    let services = project.config.services();
    let wanted: Vec<String> = services.iter().map(|service| project.subscription(service)).collect();
    let mut steps = Vec::new();
    for found in all {
        let name = found["name"].as_str().unwrap_or_default().to_owned();
        let label = name.rsplit('/').next().unwrap_or_default().to_owned();
        let is_ours = found["labels"][LABEL.0] == LABEL.1 && found["topic"] == project.topic();
        let Some(region) = found["labels"]["cdnwarm-region"].as_str().filter(|_| is_ours) else { continue };
        if wanted.contains(&label) {
            continue;
        }
        let mut after = Vec::new();
        let url = found["pushConfig"]["pushEndpoint"].as_str().unwrap_or_default();
        if let Some(service) = service_of(project, region, url)
            && let Some(there) = live.read(&service).await?
            && service.is_ours(&there)
        {
            after.push(service.key());
            steps.push(deletion(service, there));
        }
        let subscription = left(Part::Subscriptions, &kinds::SUBSCRIPTION, label, name, region, after);
        steps.push(deletion(subscription, found));
    }
    Ok(steps)
}

fn deletion(resource: Resource, live: Value) -> Step {
    Step { resource, action: Action::Delete, differences: Vec::new(), live: Some(live) }
}

/// `https://SERVICE-NUMBER.REGION.run.app` names the service.
fn service_of(project: &Project<'_>, region: &str, url: &str) -> Option<Resource> {
    let end = format!("-{}.{region}.run.app", project.number);
    let service = url.strip_prefix("https://")?.strip_suffix(end.as_str())?;
    let name = format!("projects/{}/locations/{region}/services/{service}", project.config.project);
    let label = format!("{region}/{service}");
    Some(left(Part::Services, &kinds::SERVICE, label, name, region, Vec::new()))
}

fn left(
    part: Part,
    spec: &'static Spec,
    label: String,
    name: String,
    region: &str,
    after: Vec<String>,
) -> Resource {
    let region = Some(region.to_owned());
    Resource {
        part,
        region,
        how: How::Object(spec),
        label,
        name,
        fields: Value::Object(Default::default()),
        after,
    }
}
