//! Changes what there is: creates, changes and deletes one resource, by one call or a few. Called once; whoever wants it
//! again looks first.

use http::Method;
use serde_json::{Map, Value, json};
use tokio::time::{Instant, sleep};

use super::api::{Api, ApiError, encoded};
use super::diff::{Difference, merged, remove, without_nulls};
use super::live::{Live, policy};
use super::resource::{Create, How, Resource, Spec, Target, Update};
use super::secret;

/// Pub/Sub's own account in a project is made when it is first needed, or asked for.
const PUBSUB_AGENT: &str = "@gcp-sa-pubsub.iam.gserviceaccount.com";
/// Draining a job finishes what it has read.
const DRAIN_LIMIT: std::time::Duration = std::time::Duration::from_secs(15 * 60);
const DRAIN_POLL: std::time::Duration = std::time::Duration::from_secs(5);

impl Live {
    /// Makes what is not there.
    ///
    /// # Errors
    /// What the API says, or Kafka.
    pub(super) async fn create(&self, resource: &Resource) -> anyhow::Result<()> {
        let want = self.wanted(resource, None);
        match &resource.how {
            How::Object(spec) => self.create_object(spec, resource, &want).await?,
            How::Policy(target) => self.set_members(*target, resource).await?,
            How::Apis => {
                self.enable(resource, resource.fields.as_object().into_iter().flatten().map(|(host, _)| host))
                    .await?
            }
            How::SecretVersion(payload) => self.add_version(resource, payload).await?,
            How::KafkaTopic(wanted) => wanted.create().await?,
            How::Job(launch) => {
                let path = resource.collection().trim_end_matches("/jobs").to_owned();
                let path = format!("v1b3/{path}/flexTemplates:launch");
                self.client.call_once(Api::Dataflow, Method::POST, &path, Some(launch)).await?;
            }
        }
        Ok(())
    }

    /// Repairs the fields that differ, and leaves all others as they are.
    ///
    /// # Errors
    /// As for [`Live::create`].
    pub(super) async fn change(
        &self,
        resource: &Resource,
        live: &Value,
        differences: &[Difference],
    ) -> anyhow::Result<()> {
        match &resource.how {
            How::Object(spec) => self.change_object(spec, resource, live, differences).await?,
            How::Policy(target) => self.set_members(*target, resource).await?,
            How::Apis => self.enable(resource, differences.iter().filter_map(|d| d.path.first())).await?,
            How::SecretVersion(payload) => self.add_version(resource, payload).await?,
            // Neither has a field that can be changed.
            How::KafkaTopic(_) | How::Job(_) => {}
        }
        Ok(())
    }

    /// Deletes what is there; what is gone already counts as deleted. APIs, Kafka's topics and versions stay.
    ///
    /// # Errors
    /// As for [`Live::create`].
    pub(super) async fn delete(&self, resource: &Resource, live: &Value) -> anyhow::Result<()> {
        match &resource.how {
            How::Object(spec) => {
                let path = format!("{}/{}", spec.version, name(resource, live));
                match self.client.call(spec.api, Method::DELETE, &path, None).await {
                    Ok(begun) if spec.long => {
                        self.client.finished(spec.api, spec.version, begun).await?;
                    }
                    Ok(_) => {}
                    Err(error) if error.is_not_found() => {}
                    Err(error) => return Err(error.into()),
                }
            }
            How::Policy(target) => self.set_members(*target, &without_members(resource)).await?,
            How::Job(_) => self.drain(resource, live).await?,
            How::Apis | How::SecretVersion(_) | How::KafkaTopic(_) => {}
        }
        Ok(())
    }

    async fn create_object(&self, spec: &Spec, resource: &Resource, want: &Value) -> Result<(), ApiError> {
        let want = without_nulls(want);
        let collection = format!("{}/{}", spec.version, resource.collection());
        let (method, path, body) = match spec.create {
            Create::Put => (Method::PUT, format!("{}/{}", spec.version, resource.name), want),
            Create::Post => (Method::POST, collection, want),
            Create::PostId(parameter) => {
                (Method::POST, format!("{collection}?{parameter}={}", encoded(resource.id())), want)
            }
            Create::PostWrapped { id, object } => {
                // The id of an account is what stands before the @.
                let own = resource.id().split('@').next().unwrap_or_default();
                (Method::POST, collection, json!({ id: own, object: want }))
            }
        };
        let begun = self.client.call_once(spec.api, method, &path, Some(&body)).await?;
        if spec.long {
            self.client.finished(spec.api, spec.version, begun).await?;
        }
        Ok(())
    }

    async fn change_object(
        &self,
        spec: &Spec,
        resource: &Resource,
        live: &Value,
        differences: &[Difference],
    ) -> Result<(), ApiError> {
        let mut whole = merged(&self.wanted(resource, Some(live)), live);
        for path in spec.unsent {
            remove(&mut whole, path);
        }
        let mut changed: Vec<&str> =
            differences.iter().filter_map(|d| d.path.first().map(String::as_str)).collect();
        changed.dedup();
        let mut part: Map<String, Value> = Map::new();
        for field in &changed {
            // What must go is named by the mask, and not in the body.
            if let Some(value) = whole.get(*field) {
                part.insert((*field).to_owned(), value.clone());
            }
        }
        let mask = changed.join(",");
        let path = format!("{}/{}", spec.version, name(resource, live));
        let (method, path, body) = match &spec.update {
            Update::Masked => (Method::PATCH, format!("{path}?updateMask={mask}"), Value::Object(part)),
            Update::Wrapped(object) => {
                part.insert("name".to_owned(), json!(resource.name));
                (Method::PATCH, path, json!({ *object: part, "updateMask": mask }))
            }
            Update::Whole(method) => (method.clone(), path, whole),
        };
        let begun = self.client.call_once(spec.api, method, &path, Some(&body)).await?;
        if spec.long {
            self.client.finished(spec.api, spec.version, begun).await?;
        }
        Ok(())
    }

    /// Reads a policy, puts members in and out, and writes it with its etag: if somebody else was faster, that fails.
    async fn set_members(&self, target: Target, resource: &Resource) -> Result<(), ApiError> {
        let path = format!("{}/{}:setIamPolicy", target.version, resource.name);
        let Some(mut policy) = policy(&self.client, target, &resource.name).await? else {
            let gives = resource.fields.as_object().into_iter().flatten().any(|(_, members)| {
                members.as_object().into_iter().flatten().any(|(_, wanted)| !wanted.is_null())
            });
            // Where there is nothing to have rights on, there are none to take either.
            return if gives { Err(ApiError::absent(target.api, &path)) } else { Ok(()) };
        };
        for (role, members) in resource.fields.as_object().into_iter().flatten() {
            for (member, wanted) in members.as_object().into_iter().flatten() {
                put_member(&mut policy, role, member, !wanted.is_null());
            }
        }
        let body = json!({ "policy": policy });
        match self.client.call_once(target.api, Method::POST, &path, Some(&body)).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_unknown_principal() && body.to_string().contains(PUBSUB_AGENT) => {
                self.make_pubsub_agent(resource).await?;
                Err(error)
            }
            Err(error) => Err(error),
        }
    }

    async fn make_pubsub_agent(&self, resource: &Resource) -> Result<(), ApiError> {
        let project = resource.name.split('/').nth(1).unwrap_or_default();
        let service = format!("v1beta1/projects/{project}/services/pubsub.googleapis.com");
        let path = format!("{service}:generateServiceIdentity");
        let begun = self.client.call(Api::ServiceUsage, Method::POST, &path, None).await?;
        self.client.finished(Api::ServiceUsage, "v1beta1", begun).await.map(|_| ())
    }

    async fn enable(
        &self,
        resource: &Resource,
        hosts: impl Iterator<Item = &String>,
    ) -> Result<(), ApiError> {
        let path = format!("v1/{}/services:batchEnable", resource.name);
        let body = json!({ "serviceIds": hosts.collect::<Vec<_>>() });
        let begun = self.client.call(Api::ServiceUsage, Method::POST, &path, Some(&body)).await?;
        self.client.finished(Api::ServiceUsage, "v1", begun).await.map(|_| ())
    }

    /// Adds a version, and keeps its number for whoever runs with it.
    async fn add_version(&self, resource: &Resource, payload: &secret::Payload) -> Result<(), ApiError> {
        let number = secret::add(&self.client, &resource.name, payload).await?;
        self.set_secret_version(Some(number));
        Ok(())
    }

    async fn drain(&self, resource: &Resource, live: &Value) -> Result<(), ApiError> {
        let id = live["id"].as_str().unwrap_or_default();
        let path = format!("v1b3/{}/{id}", resource.collection());
        let asked = json!({ "requestedState": "JOB_STATE_DRAINED" });
        self.client.call(Api::Dataflow, Method::PUT, &path, Some(&asked)).await?;
        let deadline = Instant::now() + DRAIN_LIMIT;
        let mut wait = std::time::Duration::from_millis(200);
        loop {
            let job = self.client.call(Api::Dataflow, Method::GET, &path, None).await?;
            let over = ["DRAINED", "DONE", "FAILED", "CANCELLED", "UPDATED"];
            let state = job["currentState"].as_str().unwrap_or_default();
            if over.contains(&state.trim_start_matches("JOB_STATE_")) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(ApiError::late(Api::Dataflow, &path, DRAIN_LIMIT));
            }
            sleep(wait).await;
            wait = (wait * 2).min(DRAIN_POLL);
        }
    }
}

/// How the API calls what is there: where it chose the name itself, by that.
fn name<'a>(resource: &'a Resource, live: &'a Value) -> &'a str {
    match (&resource.how, live["name"].as_str()) {
        (How::Object(Spec { find: super::resource::Find::Listed { .. }, .. }), Some(name)) => name,
        _ => &resource.name,
    }
}

/// The same members, none of whom is to be there.
fn without_members(resource: &Resource) -> Resource {
    let mut without = resource.clone();
    for (_, members) in without.fields.as_object_mut().into_iter().flatten() {
        for (_, wanted) in members.as_object_mut().into_iter().flatten() {
            *wanted = Value::Null;
        }
    }
    without
}

/// Puts a member into the binding without a condition, or out of it; a binding without members goes.
fn put_member(policy: &mut Value, role: &str, member: &str, wanted: bool) {
    if !policy["bindings"].is_array() {
        policy["bindings"] = json!([]);
    }
    let Some(bindings) = policy["bindings"].as_array_mut() else { return };
    let of_role = |binding: &Value| binding["role"] == role && binding["condition"].is_null();
    if wanted && !bindings.iter().any(of_role) {
        bindings.push(json!({ "role": role, "members": [] }));
    }
    for binding in bindings.iter_mut().filter(|binding| of_role(binding)) {
        let Some(members) = binding["members"].as_array_mut() else { continue };
        members.retain(|other| other != member);
        if wanted {
            members.push(json!(member));
        }
    }
    bindings.retain(|binding| binding["members"].as_array().is_some_and(|members| !members.is_empty()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_keeps_what_others_put_into_it() {
        let theirs = json!({"role": "r", "members": ["user:a"], "condition": {"title": "t"}});
        let mut policy = json!({"etag": "x", "bindings": [theirs, {"role": "r", "members": ["user:b"]}]});
        put_member(&mut policy, "r", "user:c", true);
        put_member(&mut policy, "s", "user:c", true);
        put_member(&mut policy, "s", "user:nobody", false);
        let both = json!({"role": "r", "members": ["user:b", "user:c"]});
        let new = json!({"role": "s", "members": ["user:c"]});
        assert_eq!(policy, json!({"etag": "x", "bindings": [theirs, both, new]}));
        put_member(&mut policy, "r", "user:c", false);
        put_member(&mut policy, "s", "user:c", false);
        assert_eq!(policy["bindings"], json!([theirs, {"role": "r", "members": ["user:b"]}]));
    }
}
