//! Pub/Sub and the regions: topics, who pushes, a service and a subscription for each region.

use serde_json::{Value, json};

use super::{Project, account_key, days, label_value, object, policy, seconds};
use crate::setup::config::RegionService;
use crate::setup::kinds;
use crate::setup::resource::{Part, Resource};

/// As whom `serve` runs; it has no rights at all.
const SERVE_ACCOUNT: &str = "cdnwarm-serve";
const PORT: u16 = 8080;

/// What all regions share.
pub(super) fn shared(project: &Project<'_>) -> Vec<Resource> {
    let config = project.config;
    let pusher = config.push.account.as_str();
    let mut all = vec![
        project.account(
            pusher,
            "Cloud Run Pub/Sub Invoker",
            "Pub/Sub pushes to cdnwarm serve as this account",
        ),
        project.account(
            SERVE_ACCOUNT,
            "cdnwarm serve",
            "cdnwarm serve runs as this account, without any rights",
        ),
        object(&kinds::TOPIC, Part::Topics, &config.topic.name, &project.topic(), topic(project), Vec::new()),
    ];
    let tokens = [("roles/iam.serviceAccountTokenCreator", project.pubsub_agent(), true)];
    let name = project.path(&format!("serviceAccounts/{}", project.email(pusher)));
    let label = format!("service account {pusher}");
    all.push(policy(kinds::ACCOUNT_POLICY, &label, &name, &tokens, vec![account_key(pusher)]));
    all.extend(dead_letters(project));
    all
}

fn topic(project: &Project<'_>) -> Value {
    let regions = &project.config.topic.allowed_regions;
    let mut fields = json!({});
    if !regions.is_empty() {
        fields["messageStoragePolicy"] = json!({ "allowedPersistenceRegions": regions });
    }
    fields
}

fn dead_letters(project: &Project<'_>) -> Vec<Resource> {
    let Some(name) = project.config.dead_letter_topic() else { return Vec::new() };
    let topic = project.path(&format!("topics/{name}"));
    let key = format!("topic {name}");
    let kept = json!({
        "topic": topic,
        "ackDeadlineSeconds": 60,
        "messageRetentionDuration": days(project.config.dead_letter.retention_days),
        // Never: an idle dead-letter subscription would be gone when it is needed.
        "expirationPolicy": { "ttl": null },
    });
    let publisher = [("roles/pubsub.publisher", project.pubsub_agent(), true)];
    vec![
        object(&kinds::TOPIC, Part::Topics, &name, &topic, json!({}), Vec::new()),
        policy(kinds::TOPIC_POLICY, &key, &topic, &publisher, vec![key.clone()]),
        object(
            &kinds::SUBSCRIPTION,
            Part::Topics,
            &name,
            &project.path(&format!("subscriptions/{name}")),
            kept,
            vec![key.clone()],
        ),
    ]
}

/// One region's service and subscription.
pub(super) fn region(project: &Project<'_>, service: &RegionService) -> Vec<Resource> {
    let label = format!("{}/{}", service.region, service.name);
    let name = project.path(&format!("locations/{}/services/{}", service.region, service.name));
    let key = format!("{} {label}", kinds::SERVICE.noun);
    let after = vec![account_key(SERVE_ACCOUNT)];
    let run = object(&kinds::SERVICE, Part::Services, &label, &name, run(project, service), after);

    let invoker = "roles/run.invoker";
    let open = service.allow_unauthenticated;
    let members = [
        (invoker, project.member(&project.config.push.account), true),
        // A private service believes Cloud Run's front end, which lets nobody else in: nothing may undo that.
        (invoker, "allUsers".to_owned(), open),
        (invoker, "allAuthenticatedUsers".to_owned(), false),
    ];
    let after = vec![key.clone(), account_key(&project.config.push.account)];
    let invoked = policy(kinds::SERVICE_POLICY, &key, &name, &members, after);

    let mut all = vec![run, invoked];
    all.extend(subscription(project, service, key));
    for resource in &mut all {
        resource.region = Some(service.region.clone());
    }
    all
}

fn labels(project: &Project<'_>, service: &RegionService) -> Value {
    json!({ "cdnwarm-region": service.region, "cdnwarm-topic": label_value(&project.config.topic.name) })
}

fn run(project: &Project<'_>, service: &RegionService) -> Value {
    let url = project.url(service);
    json!({
        "labels": labels(project, service),
        "ingress": if service.allow_unauthenticated { "INGRESS_TRAFFIC_ALL" } else { "INGRESS_TRAFFIC_INTERNAL_ONLY" },
        "invokerIamDisabled": false,
        // Cloud Run takes a token for either of a service's two URLs, but only the other one is listed for sure.
        "customAudiences": [url],
        "template": {
            "serviceAccount": project.email(SERVE_ACCOUNT),
            "timeout": seconds(service.timeout_seconds),
            "maxInstanceRequestConcurrency": service.concurrency,
            "scaling": { "minInstanceCount": service.min_instances, "maxInstanceCount": service.max_instances },
            "containers": [{
                "image": project.config.image(),
                // The image's own.
                "command": null,
                "args": serve_args(project, service, &url),
                // h2c: pushes stay HTTP/2 up to the process.
                "ports": [{ "name": "h2c", "containerPort": PORT }],
                "resources": {
                    "limits": { "cpu": service.cpu.to_string(), "memory": format!("{}Mi", service.memory_mib) },
                    "cpuIdle": false,
                    "startupCpuBoost": true,
                },
                "startupProbe": {
                    "httpGet": { "path": "/ready", "port": PORT },
                    "periodSeconds": 2, "timeoutSeconds": 2, "failureThreshold": 30,
                },
                "livenessProbe": {
                    "httpGet": { "path": "/health", "port": PORT },
                    "periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 3,
                },
            }],
        },
    })
}

/// `serve` believes Cloud Run's check of a token on a private service, and checks it itself on a public one. Which of the
/// two it is follows from the access alone, so that they are never combined.
fn serve_args(project: &Project<'_>, service: &RegionService, url: &str) -> Vec<String> {
    let push = &project.config.push;
    let mut args: Vec<String> = vec!["serve".to_owned()];
    if !service.allow_unauthenticated {
        args.push("--trust-platform-auth".to_owned());
    }
    for (name, value) in [
        ("--push-audience", url.to_owned()),
        ("--push-service-account", project.email(&push.account)),
        ("--region", service.region.clone()),
        ("--malformed", "ack".to_owned()),
        ("--timeout", service.warm_timeout_seconds.to_string()),
        ("--max-in-flight", service.max_in_flight.to_string()),
        ("--max-delivery-attempts", push.max_delivery_attempts.to_string()),
    ] {
        args.extend([name.to_owned(), value]);
    }
    args.extend(service.serve_args.iter().cloned());
    args
}

fn subscription(project: &Project<'_>, service: &RegionService, service_key: String) -> Vec<Resource> {
    let push = &project.config.push;
    let url = project.url(service);
    let label = project.subscription(service);
    let name = project.path(&format!("subscriptions/{label}"));
    let key = format!("{} {label}", kinds::SUBSCRIPTION.noun);
    let dead_letter_topic = project.config.dead_letter_topic();
    let dead_letter = dead_letter_topic.as_ref().map(|topic| {
        json!({
            "deadLetterTopic": project.path(&format!("topics/{topic}")),
            "maxDeliveryAttempts": push.max_delivery_attempts,
        })
    });
    let filter =
        format!(r#"NOT attributes:"warm-region-filtered" OR attributes:"warm-region-{}""#, service.region);
    let fields = json!({
        "topic": project.topic(),
        "labels": labels(project, service),
        "pushConfig": {
            "pushEndpoint": url,
            "oidcToken": { "serviceAccountEmail": project.email(&push.account), "audience": url },
            "noWrapper": null,
        },
        "ackDeadlineSeconds": push.ack_deadline_seconds,
        "messageRetentionDuration": days(push.retention_days),
        // Never: a topic may be idle for months, and its regions must not be lost meanwhile.
        "expirationPolicy": { "ttl": null },
        "retryPolicy": {
            "minimumBackoff": seconds(push.min_backoff_seconds),
            "maximumBackoff": seconds(push.max_backoff_seconds),
        },
        "deadLetterPolicy": dead_letter,
        "filter": if push.filter { filter } else { String::new() },
        "enableMessageOrdering": false,
    });
    // It pushes as soon as it is there: whoever is to be pushed to, and whoever may push, come first.
    let mut after = vec![
        format!("topic {}", project.config.topic.name),
        service_key.clone(),
        format!("access to {service_key}"),
        account_key(&push.account),
    ];
    after.extend(dead_letter_topic.as_ref().map(|topic| format!("topic {topic}")));
    let mut all = vec![object(&kinds::SUBSCRIPTION, Part::Subscriptions, &label, &name, fields, after)];
    if dead_letter_topic.is_some() {
        let subscriber = [("roles/pubsub.subscriber", project.pubsub_agent(), true)];
        all.push(policy(kinds::SUBSCRIPTION_POLICY, &key, &name, &subscriber, vec![key.clone()]));
    }
    all
}
