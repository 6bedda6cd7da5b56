//! What moves records from Kafka to Pub/Sub: a worker pool that runs `cdnwarm bridge`, or a Dataflow job of a template.

use std::collections::BTreeSet;
use std::sync::Arc;

use aws_lc_rs::digest;
use serde_json::{Value, json};

use super::{Project, account_key, object, policy};
use crate::setup::config::{Bridge, BridgeKind, Dataflow};
use crate::setup::kafka::Wanted;
use crate::setup::kinds;
use crate::setup::resource::{How, Part, Resource};
use crate::setup::secret;

/// As whom the bridge runs.
pub(super) const ACCOUNT: &str = "cdnwarm-bridge";
const FOLDER: &str = "/etc/cdnwarm";
const FILE: &str = "kafka-env";

/// Kafka's topic and credentials, the account, and the bridge itself; nothing where there is to be none.
pub(super) fn resources(project: &Project<'_>) -> Vec<Resource> {
    let config = project.config;
    if config.bridge.kind == BridgeKind::None {
        return Vec::new();
    }
    let mut all = vec![project.account(
        ACCOUNT,
        "cdnwarm bridge",
        "Moves records from Kafka to Pub/Sub as this account",
    )];
    let topic_key = format!("topic {}", config.topic.name);
    let publisher = [("roles/pubsub.publisher", project.member(ACCOUNT), true)];
    let needs = vec![topic_key.clone(), account_key(ACCOUNT)];
    all.push(policy(kinds::TOPIC_POLICY, &topic_key, &project.topic(), &publisher, needs));
    let access = format!("access to {topic_key}");
    let mut after = kafka(project, &mut all);
    after.extend([account_key(ACCOUNT), access]);
    all.extend(secret(project, &mut after));
    all.push(match (&config.bridge.dataflow, config.bridge.kind) {
        (Some(dataflow), BridgeKind::Dataflow) => job(project, dataflow, after),
        _ => worker_pool(project, &config.bridge.region, after),
    });
    all
}

/// Where a bridge of an earlier form of this file may stand: in another region, or of another kind. It goes once the one
/// that is wanted stands.
pub(super) fn earlier(project: &Project<'_>) -> Vec<Resource> {
    let bridge = &project.config.bridge;
    let after: Vec<String> = resources(project).last().map(Resource::key).into_iter().collect();
    let default = Bridge::default().region;
    let mut regions: BTreeSet<&String> =
        project.config.regions.keys().chain([&bridge.region, &default]).collect();
    if bridge.kind == BridgeKind::WorkerPool {
        regions.remove(&bridge.region);
    }
    let mut all: Vec<Resource> =
        regions.into_iter().map(|region| worker_pool(project, region, after.clone())).collect();
    if bridge.kind != BridgeKind::Dataflow {
        all.extend(bridge.dataflow.iter().map(|dataflow| job(project, dataflow, after.clone())));
    }
    all
}

/// The topic, which is looked at where the file says how to reach it.
fn kafka(project: &Project<'_>, all: &mut Vec<Resource>) -> Vec<String> {
    let kafka = &project.config.kafka;
    let Some(env_file) = &kafka.env_file else { return Vec::new() };
    let wanted = Arc::new(Wanted {
        env_file: env_file.clone(),
        topic: kafka.topic.clone(),
        create: kafka.create_topic,
        partitions: kafka.partitions,
        replication: kafka.replication,
    });
    let topic = Resource {
        part: Part::Topics,
        region: None,
        fields: wanted.fields(),
        how: How::KafkaTopic(wanted),
        label: kafka.topic.clone(),
        name: kafka.topic.clone(),
        after: Vec::new(),
    };
    let key = topic.key();
    all.push(topic);
    vec![key]
}

/// The secret itself.
pub(super) fn managed_secret(project: &Project<'_>) -> Resource {
    let label = &project.config.kafka.secret;
    let name = project.path(&format!("secrets/{label}"));
    let fields = json!({ "replication": { "automatic": {} } });
    object(&kinds::SECRET, Part::Bridge, label, &name, fields, Vec::new())
}

/// The secret, with its content where there is a file for it, and who may read it.
fn secret(project: &Project<'_>, after: &mut Vec<String>) -> Vec<Resource> {
    let label = &project.config.kafka.secret;
    let name = project.path(&format!("secrets/{label}"));
    let key = format!("{} {label}", kinds::SECRET.noun);
    let mut needs = vec![account_key(ACCOUNT)];
    let mut all = Vec::new();
    if let Some(payload) = &project.payload {
        all.push(managed_secret(project));
        let version = Resource {
            part: Part::Bridge,
            region: None,
            fields: payload.fields(),
            how: How::SecretVersion(payload.clone()),
            label: label.clone(),
            name: name.clone(),
            after: vec![key.clone()],
        };
        after.push(version.key());
        needs.push(key.clone());
        all.push(version);
    }
    let accessor = [("roles/secretmanager.secretAccessor", project.member(ACCOUNT), true)];
    let access = policy(kinds::SECRET_POLICY, &key, &name, &accessor, needs);
    after.push(access.key());
    all.push(access);
    all
}

fn worker_pool(project: &Project<'_>, region: &str, after: Vec<String>) -> Resource {
    let config = project.config;
    let bridge = &config.bridge;
    let mut args: Vec<String> =
        vec!["bridge".to_owned(), format!("{FOLDER}/{FILE}"), config.kafka.topic.clone(), project.topic()];
    args.extend(bridge.bridge_args.iter().cloned());
    // A version of its own, so that new credentials make a new revision. Where the content is not ours: the newest.
    let version = if project.payload.is_some() { secret::VERSION } else { "latest" };
    let fields = json!({
        "scaling": { "manualInstanceCount": bridge.instances },
        "template": {
            "serviceAccount": project.email(ACCOUNT),
            "containers": [{
                "image": config.image(),
                "command": null,
                "args": args,
                "resources": {
                    "limits": { "cpu": bridge.cpu.to_string(), "memory": format!("{}Mi", bridge.memory_mib) },
                },
                "volumeMounts": [{ "name": "kafka", "mountPath": FOLDER }],
            }],
            "volumes": [{
                "name": "kafka",
                "secret": { "secret": config.kafka.secret, "items": [{ "path": FILE, "version": version }] },
            }],
        },
    });
    let label = format!("{region}/cdnwarm-bridge");
    let name = project.path(&format!("locations/{region}/workerPools/cdnwarm-bridge"));
    object(&kinds::WORKER_POOL, Part::Bridge, &label, &name, fields, after)
}

fn job(project: &Project<'_>, dataflow: &Dataflow, after: Vec<String>) -> Resource {
    let region = &project.config.bridge.region;
    let experiments: &[&str] = if dataflow.prime { &["enable_prime"] } else { &[] };
    let mut launch = json!({
        "jobName": dataflow.job,
        "containerSpecGcsPath": dataflow.template,
        "parameters": dataflow.parameters,
        "environment": {
            "serviceAccountEmail": project.email(ACCOUNT),
            "stagingLocation": dataflow.staging,
            "tempLocation": dataflow.staging,
            "maxWorkers": dataflow.max_workers,
            "enableStreamingEngine": true,
            "additionalExperiments": experiments,
        },
    });
    // How a running job is known to be this one: its parameters are not all told by the API.
    let labels = json!({ "cdnwarm-launch": digest_of(&launch) });
    launch["environment"]["additionalUserLabels"] = labels.clone();
    launch["environment"]["additionalUserLabels"]["managed-by"] = json!("cdnwarm");
    Resource {
        part: Part::Bridge,
        region: None,
        how: How::Job(Box::new(json!({ "launchParameter": launch }))),
        label: format!("{region}/{}", dataflow.job),
        name: project.path(&format!("locations/{region}/jobs/{}", dataflow.job)),
        fields: json!({ "labels": labels }),
        after,
    }
}

/// 32 bits: enough to see a change, too little to learn a parameter from.
fn digest_of(launch: &Value) -> String {
    let digest = digest::digest(&digest::SHA256, launch.to_string().as_bytes());
    digest.as_ref()[..4].iter().map(|byte| format!("{byte:02x}")).collect()
}
