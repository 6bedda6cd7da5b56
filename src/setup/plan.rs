//! What would be done: each resource's wanted state against its live one.

use anyhow::bail;
use futures_util::{StreamExt, stream};
use serde_json::Value;

use super::api::{Api, ApiError};
use super::diff::{Difference, all, differences};
use super::live::Live;
use super::resource::{How, Resource};

/// Reads under way at once; Google's quotas for reading are far above it.
pub(super) const READS: usize = 16;

/// What becomes of a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Create,
    Change,
    /// Deleted and made anew, since what differs cannot be changed.
    Replace,
    Delete,
    Keep,
    /// It is somebody else's, and just as it must be: used, and left alone.
    Use,
    /// It is somebody else's, and not as it must be: nothing is done until it is taken over or renamed.
    Foreign,
}

impl Action {
    /// The word for it, in text and JSON.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Change => "change",
            Self::Replace => "replace",
            Self::Delete => "delete",
            Self::Keep => "keep",
            Self::Use => "use",
            Self::Foreign => "foreign",
        }
    }

    /// Whether something is done.
    pub(super) fn changes(self) -> bool {
        matches!(self, Self::Create | Self::Change | Self::Replace | Self::Delete)
    }
}

/// A resource with what becomes of it.
#[derive(Debug, Clone)]
pub(super) struct Step {
    pub(super) resource: Resource,
    pub(super) action: Action,
    pub(super) differences: Vec<Difference>,
    pub(super) live: Option<Value>,
}

/// All steps, in the order of the resources.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) steps: Vec<Step>,
}

impl Plan {
    /// Reads what there is, and compares. With `adopt`, what is somebody else's is taken over.
    ///
    /// # Errors
    /// What cannot be read: all of it at once, with every role that is missing.
    pub(super) async fn make(live: &Live, resources: Vec<Resource>, adopt: bool) -> anyhow::Result<Self> {
        let found = read_all(live, &resources).await?;
        let steps: Vec<Step> = resources
            .into_iter()
            .zip(found)
            .map(|(resource, found)| step(live, resource, found, adopt))
            .collect();
        let plan = Self { steps };
        plan.check_targets()?;
        Ok(plan)
    }

    /// What is to be deleted: all of ours among `resources`, the last one first.
    ///
    /// # Errors
    /// As for [`Plan::make`].
    pub(super) async fn of_deletion(live: &Live, resources: Vec<Resource>) -> anyhow::Result<Self> {
        // Who may log in to Kafka, and what its topic is like, is no matter here.
        let resources: Vec<Resource> = resources
            .into_iter()
            .filter(|resource| {
                !matches!(resource.how, How::KafkaTopic(_) | How::SecretVersion(_) | How::Apis)
            })
            .collect();
        let found = read_all(live, &resources).await?;
        let going: Vec<String> = resources
            .iter()
            .zip(&found)
            .filter(|(resource, found)| {
                !matches!(resource.how, How::Policy(_))
                    && found.as_ref().is_some_and(|found| resource.is_ours(found))
            })
            .map(|(resource, _)| resource.name.clone())
            .collect();
        let steps = resources.into_iter().zip(found).filter_map(|(resource, found)| {
            let found = found?;
            let action = match resource.how {
                // A policy goes with what it belongs to.
                How::Policy(_) if going.contains(&resource.name) => return None,
                How::Policy(_) if has_members(&resource, &found) => Action::Delete,
                How::Policy(_) => return None,
                _ if resource.is_ours(&found) => Action::Delete,
                _ => Action::Keep,
            };
            Some(Step { resource, action, differences: Vec::new(), live: Some(found) })
        });
        let mut steps: Vec<Step> = steps.collect();
        steps.reverse();
        Ok(Self { steps: turned_round(steps) })
    }

    /// How many steps there are of each action.
    pub(super) fn count(&self, action: Action) -> usize {
        self.steps.iter().filter(|step| step.action == action).count()
    }

    /// Whether there is anything to do.
    pub(super) fn changes(&self) -> bool {
        self.steps.iter().any(|step| step.action.changes())
    }

    /// Access to what is not there and is not made either could be given to nobody, and only after a long wait.
    fn check_targets(&self) -> anyhow::Result<()> {
        for step in &self.steps {
            let made = || {
                self.steps.iter().any(|other| {
                    matches!(other.resource.how, How::Object(_)) && other.resource.name == step.resource.name
                })
            };
            // The project is there, even where its own API is not enabled yet.
            let project =
                matches!(step.resource.how, How::Policy(target) if target.api == Api::ResourceManager);
            if matches!(step.resource.how, How::Policy(_)) && !project && step.live.is_none() && !made() {
                let advice = match step.resource.name.contains("/secrets/") {
                    true => ": create it, or name kafka.env-file and have it made",
                    false => "",
                };
                bail!("{} does not exist, and is not made here{advice}", step.resource.label);
            }
        }
        Ok(())
    }
}

/// What a resource of ours, live or not, calls for.
pub(super) fn step(live: &Live, resource: Resource, found: Option<Value>, adopt: bool) -> Step {
    let is_ours = found.as_ref().is_some_and(|found| resource.is_ours(found));
    let wanted = match &found {
        // Whoever made it need not have put our mark on it.
        Some(_) if !is_ours && !adopt => resource.fields.clone(),
        found => live.wanted(&resource, found.as_ref()),
    };
    let differences = match &found {
        Some(found) => differences(&wanted, found),
        None => all(&wanted),
    };
    let action = match &found {
        None => Action::Create,
        Some(_) if !is_ours && !adopt && differences.is_empty() => Action::Use,
        Some(_) if !is_ours && !adopt => Action::Foreign,
        Some(_) if differences.is_empty() => Action::Keep,
        Some(_) if is_fixed(&resource, &differences) => Action::Replace,
        Some(_) => Action::Change,
    };
    Step { resource, action, differences, live: found }
}

fn is_fixed(resource: &Resource, differences: &[Difference]) -> bool {
    let fixed = match &resource.how {
        How::Object(spec) => spec.fixed,
        How::Job(_) => return true,
        _ => return false,
    };
    differences.iter().any(|d| d.path.first().is_some_and(|field| fixed.contains(&field.as_str())))
}

async fn read_all(live: &Live, resources: &[Resource]) -> anyhow::Result<Vec<Option<Value>>> {
    let reads = resources.iter().map(|resource| live.read(resource));
    let reads = stream::iter(reads).buffered(READS).collect::<Vec<_>>();
    let read = tokio::select! {
        read = reads => read,
        () = live.stop.cancelled() => bail!("stopped before all was read; nothing was changed"),
    };
    let mut found = Vec::with_capacity(read.len());
    let mut errors = Vec::new();
    for result in read {
        match result {
            Ok(state) => found.push(state),
            Err(error) => errors.push(error),
        }
    }
    if errors.is_empty() { Ok(found) } else { Err(all_of(&errors)) }
}

/// One error for many: each thing once, and the missing roles together, since they are asked for together.
pub(super) fn all_of(errors: &[anyhow::Error]) -> anyhow::Error {
    let mut lines: Vec<String> = errors.iter().map(|error| format!("{error:#}")).collect();
    lines.sort();
    lines.dedup();
    let denied = |error: &anyhow::Error| {
        error.downcast_ref::<ApiError>().filter(|error| error.is_denied()).map(ApiError::role)
    };
    let mut roles: Vec<&str> = errors.iter().filter_map(denied).collect();
    roles.sort_unstable();
    roles.dedup();
    if roles.len() > 1 {
        lines.push(format!("all missing roles: {}", roles.join(", ")));
    }
    anyhow::anyhow!("{}", lines.join("\n"))
}

fn has_members(resource: &Resource, live: &Value) -> bool {
    resource.fields.as_object().into_iter().flatten().any(|(role, members)| {
        members
            .as_object()
            .into_iter()
            .flatten()
            .any(|(member, wanted)| !wanted.is_null() && live[role][member] == true)
    })
}

/// What came after another now comes before it.
fn turned_round(mut steps: Vec<Step>) -> Vec<Step> {
    let needs: Vec<(String, Vec<String>)> =
        steps.iter().map(|step| (step.resource.key(), step.resource.after.clone())).collect();
    for step in &mut steps {
        let key = step.resource.key();
        step.resource.after =
            needs.iter().filter(|(_, after)| after.contains(&key)).map(|(other, _)| other.clone()).collect();
    }
    steps
}
