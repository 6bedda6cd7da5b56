//! From the file to the list of what there must be, in the order in which a plan shows it.
//!
//! `road` has Pub/Sub and the regions' services, `build` the image's repository and trigger, `bridge` what moves
//! records, `monitoring` dashboards and alerts. Nothing here asks or changes anything.

mod bridge;
mod build;
mod monitoring;
mod road;

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::api::Api;
use super::config::{BridgeKind, Config, RegionService};
use super::kinds;
use super::resource::{How, Part, Resource, Spec, Target};
use super::secret::Payload;

/// The file with what it takes to name things in the project.
pub(super) struct Project<'a> {
    pub(super) config: &'a Config,
    pub(super) number: u64,
    /// The kafka-env file, where one is named and a bridge needs it.
    pub(super) payload: Option<Arc<Payload>>,
}

/// All that must be there.
pub(super) fn resources(project: &Project<'_>) -> Vec<Resource> {
    let mut all = vec![project.apis()];
    all.extend(road::shared(project));
    all.extend(build::resources(project));
    all.extend(bridge::resources(project));
    for service in project.config.services() {
        all.extend(road::region(project, &service));
    }
    all.extend(project.project_policy());
    all.extend(monitoring::resources(project));
    // Without its API nothing is made.
    let apis = all[0].key();
    for resource in all.iter_mut().skip(1) {
        resource.after.push(apis.clone());
    }
    all
}

/// What other forms of this file would have, apart from what another file in this project may have too.
pub(super) fn earlier(project: &Project<'_>) -> Vec<Resource> {
    let mut all = bridge::earlier(project);
    all.extend(monitoring::earlier(project));
    all
}

/// The secret of Kafka's credentials.
pub(super) fn secret(project: &Project<'_>) -> Resource {
    bridge::managed_secret(project)
}

impl Project<'_> {
    fn id(&self) -> &str {
        &self.config.project
    }

    /// `projects/ID/REST`.
    fn path(&self, rest: &str) -> String {
        format!("projects/{}/{rest}", self.id())
    }

    fn email(&self, account: &str) -> String {
        format!("{account}@{}.iam.gserviceaccount.com", self.id())
    }

    fn member(&self, account: &str) -> String {
        format!("serviceAccount:{}", self.email(account))
    }

    /// Pub/Sub's own account in this project, which makes tokens and moves dead letters.
    fn pubsub_agent(&self) -> String {
        format!("serviceAccount:service-{}@gcp-sa-pubsub.iam.gserviceaccount.com", self.number)
    }

    /// The URL of a service that is known before there is one.
    pub(super) fn url(&self, service: &RegionService) -> String {
        format!("https://{}-{}.{}.run.app", service.name, self.number, service.region)
    }

    /// The full name of the topic.
    pub(super) fn topic(&self) -> String {
        self.path(&format!("topics/{}", self.config.topic.name))
    }

    /// The name of a region's subscription.
    pub(super) fn subscription(&self, service: &RegionService) -> String {
        format!("{}{}", self.config.push.subscription_prefix, service.region)
    }

    fn apis(&self) -> Resource {
        let config = self.config;
        let mut apis = vec![Api::Iam, Api::Logging, Api::Monitoring, Api::Pubsub, Api::Run];
        if config.registry.uses.is_none() {
            apis.push(Api::ArtifactRegistry);
        }
        if config.trigger.is_some() {
            apis.push(Api::CloudBuild);
        }
        // For the project's policy alone.
        if !self.project_grants().is_empty() {
            apis.push(Api::ResourceManager);
        }
        if config.bridge.kind != BridgeKind::None {
            apis.push(Api::SecretManager);
        }
        let mut hosts: Map<String, Value> =
            apis.into_iter().map(|api| (api.host(), json!("ENABLED"))).collect();
        if config.bridge.kind == BridgeKind::Dataflow {
            for host in [Api::Dataflow.host(), "compute.googleapis.com".to_owned()] {
                hosts.insert(host, json!("ENABLED"));
            }
        }
        Resource {
            part: Part::Apis,
            region: None,
            how: How::Apis,
            label: format!("of {}", self.id()),
            name: format!("projects/{}", self.number),
            fields: Value::Object(hosts),
            after: Vec::new(),
        }
    }

    /// What accounts may do in the whole project: only what cannot be given on one thing alone.
    fn project_grants(&self) -> Vec<(&'static str, &'static str)> {
        let mut grants = Vec::new();
        if self.config.trigger.is_some() {
            grants.push(("roles/logging.logWriter", build::ACCOUNT));
        }
        if self.config.bridge.kind == BridgeKind::Dataflow {
            grants.push(("roles/dataflow.worker", bridge::ACCOUNT));
        }
        grants
    }

    fn project_policy(&self) -> Option<Resource> {
        let grants = self.project_grants();
        let members: Vec<_> =
            grants.iter().map(|(role, account)| (*role, self.member(account), true)).collect();
        let after = grants.iter().map(|(_, account)| account_key(account)).collect();
        let name = format!("projects/{}", self.id());
        (!members.is_empty())
            .then(|| policy(kinds::PROJECT_POLICY, &format!("project {}", self.id()), &name, &members, after))
    }

    fn account(&self, id: &str, display: &str, description: &str) -> Resource {
        let name = self.path(&format!("serviceAccounts/{}", self.email(id)));
        let fields = json!({ "displayName": display, "description": description });
        object(&kinds::SERVICE_ACCOUNT, Part::Accounts, id, &name, fields, Vec::new())
    }
}

/// The key of a service account's resource.
fn account_key(id: &str) -> String {
    format!("{} {id}", kinds::SERVICE_ACCOUNT.noun)
}

fn object(
    spec: &'static Spec,
    part: Part,
    label: &str,
    name: &str,
    fields: Value,
    after: Vec<String>,
) -> Resource {
    let (label, name) = (label.to_owned(), name.to_owned());
    Resource { part, region: None, how: How::Object(spec), label, name, fields, after }
}

/// Members that must be in a policy, or must not.
fn policy(
    target: Target,
    label: &str,
    name: &str,
    members: &[(&str, String, bool)],
    after: Vec<String>,
) -> Resource {
    let mut roles = Map::new();
    for (role, member, wanted) in members {
        let of_role = roles.entry((*role).to_owned()).or_insert_with(|| json!({}));
        of_role[member] = if *wanted { json!(true) } else { Value::Null };
    }
    let (label, name) = (label.to_owned(), name.to_owned());
    let fields = Value::Object(roles);
    Resource { part: Part::Access, region: None, how: How::Policy(target), label, name, fields, after }
}

/// A duration as Google writes it.
fn seconds(seconds: u32) -> String {
    format!("{seconds}s")
}

fn days(days: u32) -> String {
    seconds(days * 24 * 60 * 60)
}

/// A name as a label's value may be: lower-case letters, digits, - and _, at most 63.
pub(super) fn label_value(name: &str) -> String {
    let allowed = |c: char| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '-' };
    name.chars().map(|c| allowed(c.to_ascii_lowercase())).take(63).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: &str = "project = \"my-project\"\n[regions.us-east1]\n[regions.us-west1]\nallow-unauthenticated = true\n\
                       [trigger]\nrepository = \"projects/my-project/locations/us-east1/connections/c/repositories/r\"\n";

    fn all(text: &str) -> Vec<Resource> {
        let config = Config::parse(text).unwrap();
        resources(&Project { config: &config, number: 123, payload: None })
    }

    fn of_kind<'a>(all: &'a [Resource], noun: &str) -> Vec<&'a Resource> {
        all.iter().filter(|resource| resource.noun() == noun).collect()
    }

    #[test]
    fn each_resource_has_a_name_of_its_own_and_waits_for_what_comes_before_it() {
        let all = all(ALL);
        let mut seen: Vec<String> = Vec::new();
        for resource in &all {
            assert!(!seen.contains(&resource.key()), "{} twice", resource.key());
            seen.push(resource.key());
        }
        for resource in &all {
            for needed in &resource.after {
                assert!(seen.contains(needed), "{} waits for {needed}, which there is not", resource.key());
            }
        }
    }

    #[test]
    fn trusting_the_platform_and_being_open_to_all_are_never_combined() {
        for service in of_kind(&all(ALL), "service") {
            let args = service.fields["template"]["containers"][0]["args"].to_string();
            let private = service.fields["ingress"] == "INGRESS_TRAFFIC_INTERNAL_ONLY";
            assert_eq!(args.contains("--trust-platform-auth"), private, "{}", service.label);
            assert!(args.contains("--push-audience") && args.contains("--push-service-account"));
            assert_eq!(private, service.label == "us-east1/cdn-prewarm-us-east1");
        }
        for access in
            of_kind(&all(ALL), "access to").iter().filter(|access| access.label.starts_with("service us-"))
        {
            let open = access.fields["roles/run.invoker"]["allUsers"] == true;
            assert_eq!(open, access.label.contains("us-west1"), "{}", access.label);
        }
    }

    #[test]
    fn no_subscription_expires_and_each_pushes_to_its_own_region() {
        let all = all(ALL);
        for subscription in of_kind(&all, "subscription") {
            assert_eq!(
                subscription.fields["expirationPolicy"],
                json!({ "ttl": null }),
                "{}",
                subscription.label
            );
        }
        let east = of_kind(&all, "subscription").into_iter().find(|s| s.label == "us-east1").unwrap();
        let url = "https://cdn-prewarm-us-east1-123.us-east1.run.app";
        assert_eq!(east.fields["pushConfig"]["pushEndpoint"], url);
        assert_eq!(east.fields["pushConfig"]["oidcToken"]["audience"], url);
    }
}
