//! `cdnwarm.toml`: what was written, read into types. `check` says what it may mean together.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use serde::Deserialize;

use super::{check, keys};

/// The whole file; see `cdnwarm.toml.example` for what each line means.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Config {
    pub(super) project: String,
    pub(super) project_number: Option<u64>,
    #[serde(default)]
    pub(super) topic: Topic,
    #[serde(default)]
    pub(super) registry: Registry,
    #[serde(default)]
    pub(super) service: Service,
    pub(super) regions: BTreeMap<String, Service>,
    #[serde(default)]
    pub(super) push: Push,
    #[serde(default)]
    pub(super) dead_letter: DeadLetter,
    #[serde(default)]
    pub(super) kafka: Kafka,
    #[serde(default)]
    pub(super) bridge: Bridge,
    pub(super) trigger: Option<Trigger>,
    #[serde(default)]
    pub(super) monitoring: Monitoring,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Topic {
    pub(super) name: String,
    pub(super) allowed_regions: Vec<String>,
}

impl Default for Topic {
    fn default() -> Self {
        Self { name: "warming_urls".to_owned(), allowed_regions: Vec::new() }
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Registry {
    pub(super) location: String,
    pub(super) repository: String,
    pub(super) image: String,
    pub(super) tag: String,
    /// An image that is somewhere else.
    pub(super) uses: Option<String>,
}

impl Default for Registry {
    fn default() -> Self {
        Self {
            location: "us-central1".to_owned(),
            repository: "registry-docker".to_owned(),
            image: "cdn-prewarm-pubsub".to_owned(),
            tag: "latest".to_owned(),
            uses: None,
        }
    }
}

/// The options of a region's service. All are optional, since a region says only what is different there.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Service {
    prefix: Option<String>,
    min_instances: Option<u32>,
    max_instances: Option<u32>,
    cpu: Option<u32>,
    memory_mib: Option<u32>,
    concurrency: Option<u32>,
    max_in_flight: Option<u32>,
    timeout_seconds: Option<u32>,
    warm_timeout_seconds: Option<u32>,
    allow_unauthenticated: Option<bool>,
    serve_args: Option<Vec<String>>,
}

/// The same, with nothing left open.
#[derive(Debug, Clone)]
pub(super) struct RegionService {
    pub(super) region: String,
    /// The service's name.
    pub(super) name: String,
    pub(super) min_instances: u32,
    pub(super) max_instances: u32,
    pub(super) cpu: u32,
    pub(super) memory_mib: u32,
    pub(super) concurrency: u32,
    pub(super) max_in_flight: u32,
    pub(super) timeout_seconds: u32,
    pub(super) warm_timeout_seconds: u32,
    pub(super) allow_unauthenticated: bool,
    pub(super) serve_args: Vec<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Push {
    /// The account's id, before the @.
    pub(super) account: String,
    /// Before the region's name in a subscription's.
    pub(super) subscription_prefix: String,
    pub(super) ack_deadline_seconds: u32,
    pub(super) retention_days: u32,
    pub(super) min_backoff_seconds: u32,
    pub(super) max_backoff_seconds: u32,
    pub(super) max_delivery_attempts: u32,
    pub(super) filter: bool,
}

impl Default for Push {
    fn default() -> Self {
        Self {
            account: "cloudrun-pubsub-invoker".to_owned(),
            subscription_prefix: String::new(),
            ack_deadline_seconds: 600,
            retention_days: 7,
            min_backoff_seconds: 10,
            max_backoff_seconds: 600,
            max_delivery_attempts: 5,
            filter: true,
        }
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct DeadLetter {
    pub(super) enabled: bool,
    pub(super) topic: Option<String>,
    pub(super) retention_days: u32,
}

impl Default for DeadLetter {
    fn default() -> Self {
        Self { enabled: true, topic: None, retention_days: 7 }
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Kafka {
    pub(super) env_file: Option<PathBuf>,
    pub(super) secret: String,
    pub(super) topic: String,
    pub(super) create_topic: bool,
    pub(super) partitions: u16,
    pub(super) replication: u16,
}

impl Default for Kafka {
    fn default() -> Self {
        Self {
            env_file: None,
            secret: "kafka-env".to_owned(),
            topic: "warming_urls".to_owned(),
            create_topic: false,
            partitions: 6,
            replication: 3,
        }
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Bridge {
    pub(super) kind: BridgeKind,
    pub(super) region: String,
    pub(super) instances: u32,
    pub(super) cpu: u32,
    pub(super) memory_mib: u32,
    pub(super) bridge_args: Vec<String>,
    pub(super) dataflow: Option<Dataflow>,
}

impl Default for Bridge {
    fn default() -> Self {
        Self {
            kind: BridgeKind::WorkerPool,
            region: "us-central1".to_owned(),
            instances: 1,
            cpu: 1,
            memory_mib: 1024,
            bridge_args: Vec::new(),
            dataflow: None,
        }
    }
}

/// What moves records from Kafka to Pub/Sub.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum BridgeKind {
    WorkerPool,
    Dataflow,
    None,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Dataflow {
    pub(super) template: String,
    #[serde(default = "Dataflow::job")]
    pub(super) job: String,
    pub(super) staging: String,
    #[serde(default = "Dataflow::max_workers")]
    pub(super) max_workers: u32,
    #[serde(default = "Dataflow::prime")]
    pub(super) prime: bool,
    #[serde(default)]
    pub(super) parameters: BTreeMap<String, String>,
}

impl Dataflow {
    fn job() -> String {
        "cdnwarm-bridge".to_owned()
    }

    fn max_workers() -> u32 {
        3
    }

    fn prime() -> bool {
        true
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Trigger {
    #[serde(default = "Trigger::name")]
    pub(super) name: String,
    pub(super) repository: String,
    #[serde(default = "Trigger::branch")]
    pub(super) branch: String,
    #[serde(default = "Trigger::filename")]
    pub(super) filename: String,
}

impl Trigger {
    fn name() -> String {
        "cdn-prewarm-build".to_owned()
    }

    fn branch() -> String {
        "^main$".to_owned()
    }

    fn filename() -> String {
        "cloudbuild.yaml".to_owned()
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Monitoring {
    pub(super) enabled: bool,
    pub(super) notification_channels: Vec<String>,
}

impl Default for Monitoring {
    fn default() -> Self {
        Self { enabled: true, notification_channels: Vec::new() }
    }
}

impl Config {
    /// Reads and checks the file at `path`; a relative path in it counts from where the file is.
    ///
    /// # Errors
    /// A file that cannot be read or meant; each error names the file and the key.
    pub(super) fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| {
            format!("reading {} (cdnwarm.toml.example shows what it holds)", path.display())
        })?;
        let mut config = Self::parse(&text).with_context(|| path.display().to_string())?;
        if let (Some(file), Some(folder)) = (&mut config.kafka.env_file, path.parent()) {
            *file = folder.join(&*file);
        }
        Ok(config)
    }

    /// Reads and checks `text`.
    ///
    /// # Errors
    /// What is no TOML, an unknown key with the nearest one that is known, a value of another type, or values that
    /// contradict each other.
    pub(super) fn parse(text: &str) -> anyhow::Result<Self> {
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| anyhow!("{error}"))?;
        if let Some(mistake) = keys::unknown(&table) {
            bail!("{mistake}");
        }
        let config: Self = toml::from_str(text).map_err(|error| anyhow!("{error}"))?;
        check::check(&config)?;
        Ok(config)
    }

    /// The services of all regions, in the order of the regions' names.
    pub(super) fn services(&self) -> Vec<RegionService> {
        self.regions.iter().map(|(region, own)| own.over(&self.service, region)).collect()
    }

    /// The image that all run.
    pub(super) fn image(&self) -> String {
        let registry = &self.registry;
        registry.uses.clone().unwrap_or_else(|| {
            let Registry { location, repository, image, tag, .. } = registry;
            // A digest is written behind an @, a tag behind a colon.
            let sign = if tag.starts_with("sha256:") { '@' } else { ':' };
            format!("{location}-docker.pkg.dev/{}/{repository}/{image}{sign}{tag}", self.project)
        })
    }

    /// The dead-letter topic's name, where there is one.
    pub(super) fn dead_letter_topic(&self) -> Option<String> {
        let name = || format!("{}-dead-letter", self.topic.name);
        self.dead_letter.enabled.then(|| self.dead_letter.topic.clone().unwrap_or_else(name))
    }
}

impl Service {
    /// What `self`, a region, says, then what all regions share, then the defaults.
    fn over(&self, shared: &Self, region: &str) -> RegionService {
        macro_rules! pick {
            ($field:ident, $default:expr) => {
                self.$field.clone().or_else(|| shared.$field.clone()).unwrap_or_else(|| $default)
            };
        }
        let concurrency = pick!(concurrency, 250);
        RegionService {
            region: region.to_owned(),
            name: format!("{}-{region}", pick!(prefix, "cdn-prewarm".to_owned())),
            min_instances: pick!(min_instances, 1),
            max_instances: pick!(max_instances, 10),
            cpu: pick!(cpu, 1),
            memory_mib: pick!(memory_mib, 512),
            concurrency,
            max_in_flight: pick!(max_in_flight, concurrency.max(1000)),
            timeout_seconds: pick!(timeout_seconds, 600),
            warm_timeout_seconds: pick!(warm_timeout_seconds, 570),
            allow_unauthenticated: pick!(allow_unauthenticated, false),
            serve_args: pick!(serve_args, Vec::new()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = include_str!("../../cdnwarm.toml.example");

    #[test]
    fn the_example_parses_and_shows_the_defaults() {
        let example = Config::parse(EXAMPLE).unwrap();
        let least = Config::parse("project = \"my-project\"\n[regions.europe-west1]\n[regions.us-central1]\nmax-instances = 20\n[regions.asia-northeast1]\n").unwrap();
        assert_eq!(format!("{example:?}").replace("Some(", "("), {
            // What the example's [service] spells out is what a file without it gets.
            let mut least = least.clone();
            least.service = example.service.clone();
            format!("{least:?}").replace("Some(", "(")
        });
        assert_eq!(format!("{:?}", example.services()), format!("{:?}", least.services()));
    }

    #[test]
    fn what_the_example_leaves_out_behind_a_number_sign_parses_too() {
        let all: String = EXAMPLE
            .lines()
            .map(|line| match line.strip_prefix("# ") {
                Some(rest) if rest.starts_with('[') || is_setting(rest) => rest,
                _ => line,
            })
            .filter(|line| !line.starts_with('#'))
            .flat_map(|line| [line, "\n"])
            .collect();
        let all = all.replace("kind = \"worker-pool\"", "kind = \"dataflow\"");
        let config = Config::parse(&all).unwrap_or_else(|error| panic!("{error:#}\n{all}"));
        assert!(
            config.bridge.dataflow.is_some() && config.trigger.is_some() && config.registry.uses.is_some()
        );
    }

    /// `name = value`, and no sentence.
    fn is_setting(line: &str) -> bool {
        let name = line.split_once(" = ").map_or("", |(name, _)| name);
        !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c == '-')
    }

    #[test]
    fn a_region_overrides_what_all_share() {
        let config = Config::parse(
            "project = \"my-project\"\n[service]\ncpu = 2\nconcurrency = 2000\n[regions.us-east1]\ncpu = 4\n[regions.us-west1]\n",
        );
        // Cloud Run takes at most 1,000.
        assert!(format!("{:#}", config.unwrap_err()).contains("concurrency"));
        let config = Config::parse(
            "project = \"my-project\"\n[service]\ncpu = 2\nmemory-mib = 2048\n[regions.us-east1]\ncpu = 4\n[regions.us-west1]\n",
        )
        .unwrap();
        let cpus: Vec<u32> = config.services().iter().map(|service| service.cpu).collect();
        assert_eq!(cpus, [4, 2]);
    }

    #[test]
    fn an_unknown_key_is_named_with_the_one_that_was_meant() {
        for (text, expected) in [
            ("project = \"p\"\nregoins = {}\n", "unknown key regoins; did you mean regions?"),
            (
                "project = \"p\"\n[regions.us-east1]\nmax-instance = 1\n",
                "unknown key regions.us-east1.max-instance; did you mean max-instances?",
            ),
            ("project = \"p\"\n[bridge.dataflow]\ntemplte = \"x\"\n", "did you mean template?"),
            ("project = \"p\"\nxyzzy = 1\n", "unknown key xyzzy; there are"),
        ] {
            let error = format!("{:#}", Config::parse(text).unwrap_err());
            assert!(error.contains(expected), "{text:?} gave {error:?}");
        }
    }
}
