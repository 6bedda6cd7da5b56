//! What there is in the pretended project, and what each kind of method does to it.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::documents::{Documents, Method};

pub(crate) const PROJECT: &str = "my-project";
pub(crate) const NUMBER: u64 = 123_456_789_012;

/// Requests after which an operation is over, whoever asks for it or not.
const OPERATION_LASTS: usize = 6;

/// Everything.
#[derive(Default)]
pub(crate) struct State {
    /// By API and full name: `run projects/p/locations/r/services/s`.
    pub(crate) objects: BTreeMap<String, Value>,
    pub(crate) policies: BTreeMap<String, Value>,
    pub(crate) enabled: BTreeSet<String>,
    /// The contents of the versions of each secret, by its name.
    pub(crate) versions: BTreeMap<String, Vec<String>>,
    /// What `timeSeries.list` answers, whatever is asked for.
    pub(crate) series: Vec<Value>,
    pub(crate) has_pubsub_agent: bool,
    operations: BTreeMap<String, Operation>,
    requests: usize,
    /// The request that added the newest version of any secret.
    added_at: usize,
    numbers: usize,
}

struct Operation {
    /// Over with this request.
    over_at: usize,
    polls: usize,
    effect: Option<Effect>,
    response: Value,
}

enum Effect {
    Enable(Vec<String>),
    Put(String, Value),
    Agent,
}

/// An HTTP status with a canonical code and a message, or an answer.
pub(crate) type Answer = Result<Value, (u16, &'static str, String)>;

/// A request that was understood.
pub(crate) struct Asked<'a> {
    pub(crate) api: &'a str,
    pub(crate) method: &'a Method,
    /// Without version and action.
    pub(crate) name: &'a str,
    pub(crate) query: &'a [(String, String)],
    pub(crate) body: Value,
}

impl Asked<'_> {
    fn parameter(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(given, _)| given == name).map(|(_, value)| value.as_str())
    }

    fn key(&self) -> String {
        key(self.api, self.name)
    }
}

/// Where an object is kept.
pub(crate) fn key(api: &str, name: &str) -> String {
    format!("{api} {}", name.replace(&format!("projects/{NUMBER}/"), &format!("projects/{PROJECT}/")))
}

fn not_found(what: &str) -> (u16, &'static str, String) {
    (404, "NOT_FOUND", format!("Resource not found: {what}."))
}

fn invalid(why: String) -> (u16, &'static str, String) {
    (400, "INVALID_ARGUMENT", why)
}

impl State {
    /// A project in which these APIs are enabled.
    pub(crate) fn with_apis(hosts: &[&str]) -> Self {
        Self {
            enabled: hosts.iter().map(|host| format!("{host}.googleapis.com")).collect(),
            ..Self::default()
        }
    }

    /// All that can be seen of it from outside, but for what differs between two runs: etags, ids, times.
    pub(crate) fn shown(&self) -> Value {
        let mut policies = self.policies.clone();
        for policy in policies.values_mut() {
            policy.as_object_mut().unwrap().remove("etag");
            for binding in policy["bindings"].as_array_mut().into_iter().flatten() {
                binding["members"].as_array_mut().unwrap().sort_by_key(ToString::to_string);
            }
            if let Some(bindings) = policy["bindings"].as_array_mut() {
                bindings.sort_by_key(ToString::to_string);
            }
        }
        let mut objects: BTreeMap<String, Value> = BTreeMap::new();
        for (key, object) in &self.objects {
            let mut object = object.clone();
            // Where the server chose the name, it is what a person calls it that counts.
            let key = match object["displayName"].as_str().filter(|_| key.starts_with("monitoring")) {
                Some(name) => format!("monitoring {name}"),
                None => key.clone(),
            };
            for field in ["etag", "uid", "id", "name", "resourceName", "latestReadyRevision", "generation"] {
                object.as_object_mut().unwrap().remove(field);
            }
            objects.insert(key, object);
        }
        json!({ "objects": objects, "policies": policies, "enabled": self.enabled, "versions": self.versions })
    }

    /// Lets time pass: every request does.
    pub(crate) fn tick(&mut self) {
        self.requests += 1;
        let now = self.requests;
        let over: Vec<String> =
            self.operations.iter().filter(|(_, o)| o.over_at <= now).map(|(name, _)| name.clone()).collect();
        for name in over {
            self.finish(&name);
        }
    }

    fn finish(&mut self, name: &str) {
        let Some(operation) = self.operations.get_mut(name) else { return };
        operation.over_at = 0;
        match operation.effect.take() {
            Some(Effect::Enable(hosts)) => self.enabled.extend(hosts),
            Some(Effect::Put(key, object)) => {
                self.objects.insert(key, object);
            }
            Some(Effect::Agent) => self.has_pubsub_agent = true,
            None => {}
        }
    }

    /// Does what is asked.
    pub(crate) fn answer(&mut self, asked: &Asked<'_>) -> Answer {
        let what = asked.method.id.rsplit('.').next().unwrap_or_default();
        let host = format!("{}.googleapis.com", asked.api);
        // In a new project this one is enabled, or nothing could be.
        if asked.api != "serviceusage" && !self.enabled.contains(&host) {
            let why = format!("{host} has not been used in project {NUMBER} before or it is disabled.");
            return Err((403, "SERVICE_DISABLED", why));
        }
        if asked.name.contains("operations/") {
            return self.poll(asked.name);
        }
        match (asked.api, what) {
            (_, "getIamPolicy") => self.get_policy(asked),
            (_, "setIamPolicy") => self.set_policy(asked),
            ("serviceusage", "get") => Ok(self.service(asked.name)),
            ("serviceusage", "batchGet") => Ok(self.services(asked)),
            ("serviceusage", "batchEnable") => {
                let hosts = texts(&asked.body["serviceIds"]);
                Ok(self.begin("operations", Some(Effect::Enable(hosts)), json!({})))
            }
            ("serviceusage", "generateServiceIdentity") => {
                Ok(self.begin("operations", Some(Effect::Agent), json!({})))
            }
            ("secretmanager", "addVersion") => self.add_version(asked),
            ("secretmanager", "access") => self.access(asked),
            ("dataflow", "launch") => self.launch(asked),
            ("monitoring", "list") if asked.name.ends_with("timeSeries") => {
                let metric = asked.parameter("filter").unwrap_or_default();
                let wanted =
                    |series: &&Value| metric.contains(series["metric"]["type"].as_str().unwrap_or("?"));
                Ok(json!({ "timeSeries": self.series.iter().filter(wanted).collect::<Vec<_>>() }))
            }
            (_, "get") => self.objects.get(&asked.key()).cloned().ok_or_else(|| not_found(asked.name)),
            (_, "list") => Ok(self.list(asked)),
            (_, "create") => self.create(asked),
            (_, "patch" | "update") => self.update(asked),
            (_, "delete") => self.delete(asked),
            _ => Err((501, "UNIMPLEMENTED", asked.method.id.clone())),
        }
    }

    fn begin(&mut self, parent: &str, effect: Option<Effect>, response: Value) -> Value {
        self.numbers += 1;
        let name = format!("{parent}/{}", self.numbers).replace("operations/operations", "operations");
        let over_at = self.requests + OPERATION_LASTS;
        self.operations.insert(name.clone(), Operation { over_at, polls: 0, effect, response });
        json!({ "name": name, "done": false })
    }

    fn poll(&mut self, name: &str) -> Answer {
        let operation = self.operations.get_mut(name).ok_or_else(|| not_found(name))?;
        operation.polls += 1;
        if operation.polls >= 2 {
            self.finish(name);
        }
        let operation = &self.operations[name];
        Ok(match operation.over_at {
            0 => json!({ "name": name, "done": true, "response": operation.response }),
            _ => json!({ "name": name, "done": false }),
        })
    }

    fn services(&self, asked: &Asked<'_>) -> Value {
        let services: Vec<Value> = asked
            .query
            .iter()
            .filter(|(name, _)| name == "names")
            .map(|(_, name)| self.service(name))
            .collect();
        json!({ "services": services })
    }

    fn service(&self, name: &str) -> Value {
        let host = name.rsplit('/').next().unwrap();
        let parent = format!("projects/{NUMBER}");
        let state = if self.enabled.contains(host) { "ENABLED" } else { "DISABLED" };
        json!({ "name": format!("{parent}/services/{host}"), "parent": parent, "state": state })
    }

    fn list(&self, asked: &Asked<'_>) -> Value {
        let items = asked.name.rsplit('/').next().unwrap_or_default();
        let start = format!("{}/", asked.key());
        let inside = |key: &str| key.strip_prefix(&start).is_some_and(|rest| !rest.contains('/'));
        let wanted = |object: &&Value| asked.parameter("name").is_none_or(|name| object["name"] == name);
        let all = self.objects.iter().filter(|(key, _)| inside(key)).map(|(_, object)| object).filter(wanted);
        // Jobs that are over are not active.
        let all = all.filter(|object| object["currentState"] != "JOB_STATE_DRAINED");
        // Two to a page, so that pages are turned.
        let skip: usize =
            asked.parameter("pageToken").and_then(|token| token.parse().ok()).unwrap_or_default();
        let all: Vec<&Value> = all.collect();
        let page: Vec<&Value> = all.iter().skip(skip).take(2).copied().collect();
        let mut answer = json!({ items: page });
        if all.len() > skip + 2 {
            answer["nextPageToken"] = json!((skip + 2).to_string());
        }
        answer
    }

    fn create(&mut self, asked: &Asked<'_>) -> Answer {
        let (name, object) = self.created(asked)?;
        let key = key(asked.api, &name);
        let pending =
            |operation: &Operation| matches!(&operation.effect, Some(Effect::Put(other, _)) if *other == key);
        if self.objects.contains_key(&key) || self.operations.values().any(pending) {
            return Err((409, "ALREADY_EXISTS", format!("Resource already exists: {name}.")));
        }
        self.check_references(&object)?;
        let mut object = dressed(asked.api, &name, without_defaults(object));
        self.numbers += 1;
        if object["etag"].is_null() && asked.api != "pubsub" {
            object["etag"] = json!(format!("e{}", self.numbers));
        }
        if !Documents::is_long(asked.method) {
            self.objects.insert(key, object.clone());
            return Ok(object);
        }
        let parent = name.rsplitn(3, '/').nth(2).unwrap_or_default().to_owned() + "/operations";
        if asked.api == "run" {
            // A service is there at once, and ready later.
            self.objects.insert(key, object.clone());
            return Ok(self.begin(&parent, None, object));
        }
        let effect = Effect::Put(key, object.clone());
        Ok(self.begin(&parent, Some(effect), object))
    }

    /// The full name and the fields of what is to be made.
    fn created(&mut self, asked: &Asked<'_>) -> Result<(String, Value), (u16, &'static str, String)> {
        let body = asked.body.clone();
        if asked.method.verb == "PUT" {
            return Ok((asked.name.to_owned(), body));
        }
        if let Some((_, id)) = asked.query.iter().find(|(name, _)| name.ends_with("Id")) {
            return Ok((format!("{}/{id}", asked.name), body));
        }
        if asked.api == "iam" {
            let id = body["accountId"].as_str().unwrap_or_default();
            let email = format!("{id}@{PROJECT}.iam.gserviceaccount.com");
            return Ok((format!("{}/{email}", asked.name), body["serviceAccount"].clone()));
        }
        self.numbers += 1;
        match body["name"].as_str() {
            Some(name) => Ok((format!("{}/{}", asked.name, name.rsplit('/').next().unwrap()), body)),
            None => Ok((format!("{}/{}", asked.name, self.numbers), body)),
        }
    }

    /// What another thing is named by must be there.
    fn check_references(&self, object: &Value) -> Result<(), (u16, &'static str, String)> {
        let there = |api: &str, name: &Value| match name.as_str() {
            Some(name) if !self.objects.contains_key(&key(api, name)) => Err(not_found(name)),
            _ => Ok(()),
        };
        there("pubsub", &object["topic"])?;
        there("pubsub", &object["deadLetterPolicy"]["deadLetterTopic"])?;
        let account = object["template"]["serviceAccount"].as_str().unwrap_or_default();
        if !account.is_empty() && !self.has_account(account) {
            return Err(invalid(format!("Service account {account} does not exist.")));
        }
        for volume in object["template"]["volumes"].as_array().into_iter().flatten() {
            let secret = volume["secret"]["secret"].as_str().unwrap_or_default();
            let name = format!("projects/{PROJECT}/secrets/{secret}");
            let version = volume["secret"]["items"][0]["version"].as_str().unwrap_or_default();
            let versions = self.versions.get(&name).map_or(0, Vec::len);
            let fine = if version == "latest" {
                versions > 0
            } else {
                version.parse().is_ok_and(|v: usize| (1..=versions).contains(&v))
            };
            if !fine {
                return Err(invalid(format!("Secret {secret}, version {version}, was not found")));
            }
        }
        Ok(())
    }

    fn has_account(&self, email: &str) -> bool {
        self.objects.contains_key(&key("iam", &format!("projects/{PROJECT}/serviceAccounts/{email}")))
    }

    fn update(&mut self, asked: &Asked<'_>) -> Answer {
        let key = asked.key();
        let live = self.objects.get(&key).cloned().ok_or_else(|| not_found(asked.name))?;
        let mut body = asked.body.clone();
        if asked.api == "dataflow" {
            let mut job = live;
            job["currentState"] = body["requestedState"].clone();
            self.objects.insert(key, job.clone());
            return Ok(job);
        }
        let in_body = body["updateMask"].as_str().map(str::to_owned);
        let mask = in_body.or(asked.parameter("updateMask").map(str::to_owned));
        if !body["updateMask"].is_null() {
            let fields = body.as_object_mut().unwrap();
            fields.remove("updateMask");
            let object = fields.values().next().cloned();
            body = object.unwrap_or_default();
        }
        let mut object = match &mask {
            None => body,
            Some(mask) => {
                let mut object = live.clone();
                for field in mask.split(',') {
                    if asked.api == "pubsub"
                        && ["filter", "topic", "enableMessageOrdering", "name"].contains(&field)
                    {
                        return Err(invalid(format!("{field} cannot be changed")));
                    }
                    object[field] = body[field].clone();
                }
                object
            }
        };
        self.check_references(&object)?;
        for field in [
            "name",
            "uri",
            "email",
            "uniqueId",
            "projectId",
            "resourceName",
            "id",
            "terminalCondition",
            "latestReadyRevision",
        ] {
            if !live[field].is_null() {
                object[field] = live[field].clone();
            }
        }
        let object = without_defaults(object);
        self.objects.insert(key, object.clone());
        if Documents::is_long(asked.method) {
            let parent = asked.name.rsplitn(3, '/').nth(2).unwrap_or_default().to_owned() + "/operations";
            return Ok(self.begin(&parent, None, object));
        }
        Ok(object)
    }

    fn delete(&mut self, asked: &Asked<'_>) -> Answer {
        let key = asked.key();
        self.objects.remove(&key).ok_or_else(|| not_found(asked.name))?;
        self.policies.remove(&key);
        self.versions.remove(asked.name);
        // Google marks what a deleted topic leaves behind.
        for object in self.objects.values_mut() {
            if object["topic"] == asked.name {
                object["topic"] = json!("_deleted-topic_");
            }
        }
        if Documents::is_long(asked.method) {
            let parent = asked.name.rsplitn(3, '/').nth(2).unwrap_or_default().to_owned() + "/operations";
            return Ok(self.begin(&parent, None, json!({})));
        }
        Ok(json!({}))
    }

    fn get_policy(&self, asked: &Asked<'_>) -> Answer {
        let key = asked.key();
        if asked.api != "cloudresourcemanager" && !self.objects.contains_key(&key) {
            return Err(not_found(asked.name));
        }
        Ok(self.policies.get(&key).cloned().unwrap_or_else(|| json!({ "etag": "AAA=", "version": 1 })))
    }

    fn set_policy(&mut self, asked: &Asked<'_>) -> Answer {
        let live = self.get_policy(asked)?;
        let mut policy = asked.body["policy"].clone();
        if policy["etag"].is_null() {
            return Err(invalid("a policy without an etag overwrites what others did".to_owned()));
        }
        if policy["etag"] != live["etag"] {
            return Err((409, "ABORTED", "There were concurrent policy changes.".to_owned()));
        }
        for binding in policy["bindings"].as_array().into_iter().flatten() {
            for member in texts(&binding["members"]) {
                let Some(email) = member.strip_prefix("serviceAccount:") else { continue };
                let agent = email.ends_with("@gcp-sa-pubsub.iam.gserviceaccount.com");
                let own = email.ends_with(&format!("@{PROJECT}.iam.gserviceaccount.com"));
                if (agent && !self.has_pubsub_agent) || (own && !self.has_account(email)) {
                    return Err(invalid(format!("Service account {email} does not exist.")));
                }
            }
        }
        self.numbers += 1;
        policy["etag"] = json!(STANDARD.encode(self.numbers.to_string()));
        self.policies.insert(asked.key(), policy.clone());
        Ok(policy)
    }

    fn add_version(&mut self, asked: &Asked<'_>) -> Answer {
        if !self.objects.contains_key(&asked.key()) {
            return Err(not_found(asked.name));
        }
        let data = asked.body["payload"]["data"].as_str().unwrap_or_default().to_owned();
        self.added_at = self.requests;
        let versions = self.versions.entry(asked.name.to_owned()).or_default();
        versions.push(data);
        Ok(json!({ "name": format!("{}/versions/{}", asked.name, versions.len()), "state": "ENABLED" }))
    }

    fn access(&self, asked: &Asked<'_>) -> Answer {
        let secret = asked.name.split("/versions/").next().unwrap_or_default();
        let versions = self.versions.get(secret).filter(|versions| !versions.is_empty());
        let versions = versions.ok_or_else(|| not_found(asked.name))?;
        // What is the latest becomes known a little later.
        let latest = versions.len() - usize::from(self.added_at + 1 == self.requests);
        let Some(data) = latest.checked_sub(1).map(|last| &versions[last]) else {
            return Err(not_found(asked.name));
        };
        let name = format!("{}/versions/{latest}", secret.replace(PROJECT, &NUMBER.to_string()));
        Ok(json!({ "name": name, "payload": { "data": data } }))
    }

    fn launch(&mut self, asked: &Asked<'_>) -> Answer {
        let launch = &asked.body["launchParameter"];
        let name = launch["jobName"].as_str().unwrap_or_default();
        let jobs = format!("{}/jobs", asked.name.trim_end_matches("/flexTemplates"));
        let active =
            |object: &&Value| object["name"] == name && object["currentState"] == "JOB_STATE_RUNNING";
        if self.objects.values().any(|object| active(&object)) {
            return Err((409, "ALREADY_EXISTS", format!("There is an active job named {name}.")));
        }
        self.numbers += 1;
        let id = format!("job-{}", self.numbers);
        let job = json!({
            "id": id, "name": name, "currentState": "JOB_STATE_RUNNING", "type": "JOB_TYPE_STREAMING",
            "labels": launch["environment"]["additionalUserLabels"],
        });
        self.objects.insert(key("dataflow", &format!("{jobs}/{id}")), job.clone());
        Ok(json!({ "job": job }))
    }
}

fn texts(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// As JSON of protocol buffers is: without what is false, 0, empty text or an empty list.
fn without_defaults(value: Value) -> Value {
    let empty = |value: &Value| match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(_) => false,
    };
    match value {
        Value::Object(fields) => {
            let fields = fields.into_iter().map(|(name, value)| (name, without_defaults(value)));
            Value::Object(fields.filter(|(_, value)| !empty(value)).collect::<Map<_, _>>())
        }
        Value::Array(items) => items.into_iter().map(without_defaults).collect(),
        other => other,
    }
}

/// What Google adds of its own.
fn dressed(api: &str, name: &str, mut object: Value) -> Value {
    let id = name.rsplit('/').next().unwrap_or_default();
    match api {
        "run" => {
            object["name"] = json!(name);
            object["launchStage"] = json!("GA");
            object["latestReadyRevision"] = json!(format!("{name}/revisions/{id}-00001-abc"));
            object["terminalCondition"] = json!({ "type": "Ready", "state": "CONDITION_SUCCEEDED" });
            for container in object["template"]["containers"].as_array_mut().into_iter().flatten() {
                container["name"] = json!("worker-1");
            }
        }
        "iam" => {
            object["name"] = json!(name);
            object["email"] = json!(id);
            object["projectId"] = json!(PROJECT);
        }
        "cloudbuild" => object["resourceName"] = json!(name),
        "logging" => object["resourceName"] = json!(name),
        "secretmanager" => object["name"] = json!(name.replace(PROJECT, &NUMBER.to_string())),
        "pubsub" => {
            object["name"] = json!(name);
            object["state"] = json!("ACTIVE");
        }
        _ => object["name"] = json!(name),
    }
    object
}
