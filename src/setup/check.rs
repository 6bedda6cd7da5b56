//! What values of `cdnwarm.toml` may mean together: Google's limits, and the rules that keep a service safe.

use anyhow::{anyhow, bail, ensure};

use super::config::{BridgeKind, Config, RegionService};
use crate::kafka::topic_name;
use crate::pubsub::TopicName;

/// What the setup decides for `serve`: the first two must fit the service's access, the others its limits.
const SERVES_OWN: [&str; 10] = [
    "--trust-platform-auth",
    "--insecure-accept-unauthenticated",
    "--push-audience",
    "--push-service-account",
    "--malformed",
    "--max-delivery-attempts",
    "--max-in-flight",
    "--region",
    "--timeout",
    "--port",
];

/// Cloud Run's own names end in a DNS label: SERVICE-PROJECT_NUMBER, of which a number takes up to 12.
const MAX_SERVICE_NAME: usize = 63 - 13;

/// Checks one whole file.
///
/// # Errors
/// The first thing that cannot be meant, with its key.
pub(super) fn check(config: &Config) -> anyhow::Result<()> {
    let project = &config.project;
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    ensure!(
        (6..=30).contains(&project.len())
            && project.starts_with(|c: char| c.is_ascii_lowercase())
            && !project.ends_with('-')
            && project.chars().all(allowed),
        "project: {project:?} is no project id (6 to 30 lower-case letters, digits and -)"
    );
    topic(project, "topic.name", &config.topic.name)?;
    if let Some(name) = config.dead_letter_topic() {
        topic(project, "dead-letter.topic", &name)?;
        ensure!(name != config.topic.name, "dead-letter.topic: it must not be the topic itself");
    }
    ensure!(!config.regions.is_empty(), "regions: name at least one, for example [regions.us-central1]");
    for service in config.services() {
        check_service(&service)?;
    }
    for (key, name) in names(config) {
        plain(key, name)?;
    }
    check_push(config)?;
    account("push.account", &config.push.account)?;
    check_bridge(config)?;
    if let Some(trigger) = &config.trigger {
        trigger_location(&trigger.repository)?;
    }
    Ok(())
}

/// The region of a repository linked to Cloud Build: its triggers live there too.
///
/// # Errors
/// Another form of name.
pub(super) fn trigger_location(repository: &str) -> anyhow::Result<&str> {
    match repository.split('/').collect::<Vec<_>>()[..] {
        ["projects", _, "locations", location, "connections", _, "repositories", _] => Ok(location),
        _ => bail!(
            "trigger.repository: {repository:?} is not written \
             projects/PROJECT/locations/REGION/connections/CONNECTION/repositories/REPOSITORY"
        ),
    }
}

fn topic(project: &str, key: &str, name: &str) -> anyhow::Result<()> {
    let full = format!("projects/{project}/topics/{name}");
    full.parse::<TopicName>().map(|_| ()).map_err(|why| anyhow!("{key}: {why}"))
}

/// The names that become a part of a path.
fn names(config: &Config) -> Vec<(&'static str, &str)> {
    let (registry, bridge) = (&config.registry, &config.bridge);
    let mut names = vec![
        ("registry.location", registry.location.as_str()),
        ("registry.repository", &registry.repository),
        ("kafka.secret", &config.kafka.secret),
        ("bridge.region", &bridge.region),
    ];
    if !config.push.subscription_prefix.is_empty() {
        names.push(("push.subscription-prefix", &config.push.subscription_prefix));
    }
    names.extend(bridge.dataflow.iter().map(|dataflow| ("bridge.dataflow.job", dataflow.job.as_str())));
    names.extend(config.trigger.iter().map(|trigger| ("trigger.name", trigger.name.as_str())));
    names
}

fn plain(key: &str, name: &str) -> anyhow::Result<()> {
    ensure!(
        name.starts_with(|c: char| c.is_ascii_alphabetic())
            && name.len() <= 255
            && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)),
        "{key}: {name:?} is no name (a letter, then letters, digits, -, _ and .)"
    );
    Ok(())
}

fn account(key: &str, id: &str) -> anyhow::Result<()> {
    ensure!(
        (6..=30).contains(&id.len())
            && id.starts_with(|c: char| c.is_ascii_lowercase())
            && id.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'),
        "{key}: {id:?} is no service account's id (6 to 30 lower-case letters, digits and -, without the @)"
    );
    Ok(())
}

fn range(at: &str, value: u32, allowed: std::ops::RangeInclusive<u32>) -> anyhow::Result<()> {
    let (from, to) = (allowed.start(), allowed.end());
    ensure!(allowed.contains(&value), "{at}: {value} is not between {from} and {to}");
    Ok(())
}

fn check_service(service: &RegionService) -> anyhow::Result<()> {
    let at = |key: &str| format!("regions.{}: {key}", service.region);
    let region = &service.region;
    ensure!(
        region.len() <= 40
            && region.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
            && region.ends_with(|c: char| c.is_ascii_digit()),
        "regions: {region:?} is no region of Google Cloud"
    );
    ensure!(
        service.name.len() <= MAX_SERVICE_NAME
            && service.name.starts_with(|c: char| c.is_ascii_lowercase())
            && service.name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'),
        "{}: {:?} cannot name a service (at most {MAX_SERVICE_NAME} lower-case letters, digits and -)",
        at("prefix"),
        service.name
    );
    range(&at("concurrency"), service.concurrency, 1..=1000)?;
    range(&at("timeout-seconds"), service.timeout_seconds, 2..=3600)?;
    range(&at("max-instances"), service.max_instances, service.min_instances.max(1)..=1000)?;
    cpu_and_memory(&at("cpu"), service.cpu, service.memory_mib)?;
    ensure!(
        service.warm_timeout_seconds > 0 && service.warm_timeout_seconds < service.timeout_seconds,
        "{} must be below timeout-seconds ({}), so that serve answers before Cloud Run does",
        at("warm-timeout-seconds"),
        service.timeout_seconds
    );
    ensure!(
        service.max_in_flight >= service.concurrency,
        "{} must be at least the concurrency ({}), or serve refuses what Cloud Run hands it",
        at("max-in-flight"),
        service.concurrency
    );
    for argument in &service.serve_args {
        let name = argument.split('=').next().unwrap_or_default();
        ensure!(
            !SERVES_OWN.contains(&name),
            "{}: {name} is decided by the setup: a private service trusts Cloud Run's check of a token, a public one \
             checks it itself, and the limits follow from the service's",
            at("serve-args")
        );
    }
    Ok(())
}

fn cpu_and_memory(at: &str, cpu: u32, memory_mib: u32) -> anyhow::Result<()> {
    ensure!([1, 2, 4, 8].contains(&cpu), "{at}: Cloud Run has 1, 2, 4 or 8 CPUs, not {cpu}");
    let least = if cpu >= 8 {
        4096
    } else if cpu >= 4 {
        2048
    } else {
        512
    };
    ensure!((least..=32768).contains(&memory_mib), "{at}: {cpu} CPUs take {least} to 32768 memory-mib");
    Ok(())
}

fn check_push(config: &Config) -> anyhow::Result<()> {
    let push = &config.push;
    range("push.ack-deadline-seconds", push.ack_deadline_seconds, 10..=600)?;
    range("push.retention-days", push.retention_days, 1..=31)?;
    range("dead-letter.retention-days", config.dead_letter.retention_days, 1..=31)?;
    range("push.max-delivery-attempts", push.max_delivery_attempts, 5..=100)?;
    range("push.max-backoff-seconds", push.max_backoff_seconds, push.min_backoff_seconds..=600)?;
    for service in config.services() {
        ensure!(
            service.warm_timeout_seconds < push.ack_deadline_seconds,
            "regions.{}: warm-timeout-seconds must be below push.ack-deadline-seconds ({}), after which Pub/Sub \
             sends a message again",
            service.region,
            push.ack_deadline_seconds
        );
    }
    Ok(())
}

fn check_bridge(config: &Config) -> anyhow::Result<()> {
    let bridge = &config.bridge;
    cpu_and_memory("bridge.cpu", bridge.cpu, bridge.memory_mib)?;
    let kafka = &config.kafka;
    topic_name(&kafka.topic).map_err(|why| anyhow!("kafka.topic: {:?}: {why}", kafka.topic))?;
    ensure!(
        !kafka.create_topic || kafka.env_file.is_some(),
        "kafka.create-topic needs kafka.env-file, to know how to reach Kafka"
    );
    ensure!(kafka.partitions > 0 && kafka.replication > 0, "kafka: partitions and replication start at 1");
    match (&bridge.dataflow, bridge.kind) {
        (None, BridgeKind::Dataflow) => bail!("bridge.kind is dataflow, and [bridge.dataflow] is missing"),
        (Some(dataflow), BridgeKind::Dataflow) => {
            for (key, path) in [("template", &dataflow.template), ("staging", &dataflow.staging)] {
                ensure!(path.starts_with("gs://"), "bridge.dataflow.{key}: {path:?} is no gs:// path");
            }
            let template = dataflow.template.to_ascii_lowercase().replace(['-', '_'], "");
            ensure!(
                !(template.contains("dataflowtemplates") && template.contains("kafkatopubsub")),
                "bridge.dataflow.template: Google's own Kafka to Pub/Sub template takes user and password from Vault \
                 alone, and drops Kafka headers, which carry the options of a record. Use kind = \"worker-pool\", or \
                 a template of yours"
            );
        }
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::config::Config;

    #[test]
    fn what_cannot_be_meant_is_refused_by_name() {
        let least = "project = \"my-project\"\n[regions.us-east1]\n";
        assert!(Config::parse(least).is_ok());
        for (text, expected) in [
            ("project = \"My\"\n[regions.us-east1]\n", "project: \"My\""),
            ("project = \"my-project\"\n[regions]\n", "name at least one"),
            ("project = \"my-project\"\n[regions.moon]\n", "no region"),
            (
                &format!("{least}timeout-seconds = 500\n"),
                "warm-timeout-seconds must be below timeout-seconds",
            ),
            (&format!("{least}max-in-flight = 10\n"), "max-in-flight must be at least the concurrency (250)"),
            (&format!("{least}cpu = 4\n"), "4 CPUs take 2048 to 32768 memory-mib"),
            (
                &format!("{least}allow-unauthenticated = true\nserve-args = [\"--trust-platform-auth\"]\n"),
                "--trust-platform-auth is decided by the setup",
            ),
            (
                &format!("{least}serve-args = [\"--insecure-accept-unauthenticated=true\"]\n"),
                "--insecure-accept-unauthenticated is decided",
            ),
            (&format!("{least}[push]\nack-deadline-seconds = 60\n"), "below push.ack-deadline-seconds (60)"),
            (&format!("{least}[dead-letter]\ntopic = \"warming_urls\"\n"), "must not be the topic itself"),
            (&format!("{least}[bridge]\nkind = \"dataflow\"\n"), "[bridge.dataflow] is missing"),
            (
                &format!(
                    "{least}[bridge]\nkind = \"dataflow\"\n[bridge.dataflow]\nstaging = \"gs://b/s\"\n\
                     template = \"gs://dataflow-templates-us-central1/latest/flex/Kafka_to_PubSub\"\n"
                ),
                "Vault",
            ),
            (&format!("{least}[trigger]\nrepository = \"owner/name\"\n"), "trigger.repository"),
            (&format!("{least}[kafka]\ncreate-topic = true\n"), "kafka.create-topic needs kafka.env-file"),
            (&format!("{least}[kafka]\ntopic = \"a/b\"\n"), "kafka.topic: \"a/b\": a Kafka topic"),
            (&format!("{least}[kafka]\nsecret = \"a/b\"\n"), "kafka.secret: \"a/b\" is no name"),
            (&format!("{least}[push]\nsubscription-prefix = \"a?\"\n"), "push.subscription-prefix: \"a?\""),
            (&format!("{least}[bridge]\nregion = \"\"\n"), "bridge.region: \"\" is no name"),
        ] {
            let error = format!("{:#}", Config::parse(text).expect_err(text));
            assert!(error.contains(expected), "{text:?} gave {error:?}");
        }
    }
}
