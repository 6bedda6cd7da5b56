//! Reads what there is: each resource's live state as fields that can be compared with the wanted ones.

use std::sync::{Mutex, PoisonError};

use http::Method;
use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;

use super::api::{Api, ApiError, Client, encoded};
use super::resource::{Find, How, Resource, Spec, Target};
use super::secret;

/// What all steps share.
pub(super) struct Live {
    pub(super) client: Client,
    pub(super) stop: CancellationToken,
    /// The number of the secret's newest version, once it is known and as the file.
    secret_version: Mutex<Option<String>>,
}

impl Live {
    /// Reads by `client`, until `stop`.
    pub(super) fn new(client: Client, stop: CancellationToken) -> Self {
        Self { client, stop, secret_version: Mutex::default() }
    }

    /// What there is of a resource now; None where there is nothing.
    ///
    /// # Errors
    /// What the API says, or Kafka.
    pub(super) async fn read(&self, resource: &Resource) -> anyhow::Result<Option<Value>> {
        let client = &self.client;
        let found = match &resource.how {
            How::Object(spec) => self.object(spec, resource).await?,
            How::Policy(target) => policy(client, *target, &resource.name).await?.as_ref().map(members),
            How::Apis => Some(self.apis(resource).await?),
            How::Job(_) => self.job(resource).await?,
            How::KafkaTopic(wanted) => wanted.read(&self.stop).await?,
            How::SecretVersion(payload) => {
                let found = secret::read(client, &resource.name, payload).await?;
                let current = found.as_ref().filter(|live| live["content"] == resource.fields["content"]);
                let number = current.and_then(|live| live["number"].as_str()).map(str::to_owned);
                self.set_secret_version(number);
                found
            }
        };
        Ok(found)
    }

    /// From now on this is the version that the file's content has; None: there is none yet.
    pub(super) fn set_secret_version(&self, number: Option<String>) {
        *self.secret_version.lock().unwrap_or_else(PoisonError::into_inner) = number;
    }

    /// What must hold of a resource, with the mark, and with the secret's version where that is known by now.
    pub(super) fn wanted(&self, resource: &Resource, live: Option<&Value>) -> Value {
        let mut fields = resource.marked(live);
        let version = self.secret_version.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(version) = version.as_deref() {
            put_version(&mut fields, version);
        }
        fields
    }

    async fn object(&self, spec: &Spec, resource: &Resource) -> Result<Option<Value>, ApiError> {
        match spec.find {
            Find::Named => self.client.find(spec.api, &format!("{}/{}", spec.version, resource.name)).await,
            Find::Listed { by } => {
                let path = format!("{}/{}", spec.version, resource.collection());
                let items = resource.collection().rsplit('/').next().unwrap_or_default().to_owned();
                let mut all = self.client.list(spec.api, &path, &items).await?;
                all.retain(|live| live[by] == resource.fields[by]);
                // Such a name is not unique: if several have it, ours counts.
                let ours = all.iter().position(|live| resource.is_ours(live)).unwrap_or_default();
                Ok((!all.is_empty()).then(|| all.swap_remove(ours)))
            }
        }
    }

    async fn apis(&self, resource: &Resource) -> Result<Value, ApiError> {
        let parent = &resource.name;
        let hosts = resource.fields.as_object().into_iter().flatten();
        let names: Vec<String> = hosts.map(|(host, _)| format!("names={parent}/services/{host}")).collect();
        let path = format!("v1/{parent}/services:batchGet?{}", names.join("&"));
        let found = self.client.call(Api::ServiceUsage, Method::GET, &path, None).await?;
        let mut states = Map::new();
        for service in found["services"].as_array().into_iter().flatten() {
            let host = service["name"].as_str().and_then(|name| name.rsplit('/').next()).unwrap_or_default();
            states.insert(host.to_owned(), service["state"].clone());
        }
        Ok(Value::Object(states))
    }

    /// The job of that name that has not ended; lists have no labels, so it is read once more by its id.
    async fn job(&self, resource: &Resource) -> Result<Option<Value>, ApiError> {
        let jobs = format!("v1b3/{}", resource.collection());
        let path = format!("{jobs}?filter=ACTIVE&name={}", encoded(resource.id()));
        let all = self.client.list(Api::Dataflow, &path, "jobs").await?;
        let Some(id) = all.iter().find(|job| job["name"] == resource.id()).and_then(|job| job["id"].as_str())
        else {
            return Ok(None);
        };
        self.client.find(Api::Dataflow, &format!("{jobs}/{id}?view=JOB_VIEW_DESCRIPTION")).await
    }
}

/// A resource's policy as its API has it; None where the resource is not there.
pub(super) async fn policy(client: &Client, target: Target, name: &str) -> Result<Option<Value>, ApiError> {
    let path = format!("{}/{name}:getIamPolicy", target.version);
    // Version 3 is asked for, or conditions would be lost with the next write.
    let found = if target.api == Api::ResourceManager {
        let body = json!({ "options": { "requestedPolicyVersion": 3 } });
        client.call(target.api, Method::POST, &path, Some(&body)).await
    } else {
        let path = format!("{path}?options.requestedPolicyVersion=3");
        let method = if target.read_by_post { Method::POST } else { Method::GET };
        client.call(target.api, method, &path, None).await
    };
    match found {
        Ok(policy) => Ok(Some(policy)),
        Err(error) if error.is_not_found() || error.is_not_enabled() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Who has which role without a condition, as fields: role, then member.
fn members(policy: &Value) -> Value {
    let mut roles = Map::new();
    for binding in policy["bindings"].as_array().into_iter().flatten() {
        let Some(role) = binding["role"].as_str().filter(|_| binding["condition"].is_null()) else {
            continue;
        };
        let of_role = roles.entry(role.to_owned()).or_insert_with(|| json!({}));
        for member in binding["members"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            of_role[member] = json!(true);
        }
    }
    Value::Object(roles)
}

fn put_version(fields: &mut Value, version: &str) {
    match fields {
        Value::String(text) if text == secret::VERSION => version.clone_into(text),
        Value::Array(items) => items.iter_mut().for_each(|item| put_version(item, version)),
        Value::Object(items) => items.values_mut().for_each(|item| put_version(item, version)),
        _ => {}
    }
}
