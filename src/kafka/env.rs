//! The `kafka-env` file: sections of librdkafka properties, kept with their lines so that errors can name them.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;

/// What every role reads; a section for consumers overrides it.
const DEFAULT: &str = "default";
const CONSUMER: &str = "consumer";

/// Properties that decide when a record counts as done, each with what a file may say and what librdkafka is told.
/// They are this program's own: [`KafkaEnv::consumer`] sets them, and refuses a file that wants something else. Offsets are
/// committed without anybody's doing, as `true` asks for, but by us and not by librdkafka.
const OWNED: [(&str, &str, &str); 3] = [
    ("enable.auto.commit", "true", "false"),
    ("enable.auto.offset.store", "false", "false"),
    ("enable.partition.eof", "false", "false"),
];

/// One `kafka-env` file, read and checked for form; librdkafka checks names and values later.
///
/// Values, some of which are secrets, never appear in errors or in `Debug`.
pub(crate) struct KafkaEnv {
    path: PathBuf,
    properties: Vec<Property>,
}

struct Property {
    section: &'static str,
    name: String,
    value: String,
    line: usize,
}

impl KafkaEnv {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// Where it cannot be read, and as for [`KafkaEnv::parse`].
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let bytes = std::fs::read(path).with_context(|| {
            format!("reading kafka-env at {} (kafka-env.example shows what it holds)", path.display())
        })?;
        let text = String::from_utf8(bytes).map_err(|error| {
            let line =
                error.as_bytes()[..error.utf8_error().valid_up_to()].split(|byte| *byte == b'\n').count();
            anyhow::anyhow!("{}:{line}: not UTF-8 text", path.display())
        })?;
        Self::parse(path, &text)
    }

    /// Reads `text`, naming `path` and the line in errors.
    ///
    /// Lines are `[default]`, `[consumer]`, `name=value`, blank, or comments starting with `#` or `;`. A value is
    /// everything behind the first `=`, literally, without the white space around it.
    ///
    /// # Errors
    /// An unknown section, a line of another form, a property outside a section or given twice in one, a placeholder
    /// of kafka-env.example left in, and a file without `bootstrap.servers`.
    pub(crate) fn parse(path: &Path, text: &str) -> anyhow::Result<Self> {
        let mut properties: Vec<Property> = Vec::new();
        let mut section = None;
        for (index, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
            let at = Line { path, number: index + 1 };
            let line = line.trim();
            if line.is_empty() || line.starts_with(['#', ';']) {
                continue;
            }
            if let Some(name) = line.strip_prefix('[') {
                section = Some(section_named(name, &at)?);
                continue;
            }
            let property = property(line, section, &at)?;
            if let Some(first) = properties
                .iter()
                .find(|other| other.section == property.section && other.name == property.name)
            {
                bail!("{at}: {} is already set on line {}; remove one of the two", property.name, first.line);
            }
            properties.push(property);
        }
        ensure!(
            properties.iter().any(|property| property.name == "bootstrap.servers"),
            "{}: bootstrap.servers is missing; add bootstrap.servers=HOST:PORT under [default]",
            path.display()
        );
        Ok(Self { path: path.to_owned(), properties })
    }

    /// The configuration of a producer: `[default]`.
    ///
    /// # Errors
    /// A property that librdkafka refuses, with its line.
    pub(crate) fn producer(&self) -> anyhow::Result<ClientConfig> {
        self.client(|property| property.section == DEFAULT)
    }

    /// The configuration of a consumer: `[default]`, overridden by `[consumer]`, with the owned properties set.
    ///
    /// # Errors
    /// A property that librdkafka refuses, another value for an owned property, and a missing `group.id`.
    pub(crate) fn consumer(&self) -> anyhow::Result<ClientConfig> {
        for (name, accepted, _) in OWNED {
            if let Some(property) = self.properties.iter().find(|p| p.name == name && p.value != accepted) {
                bail!(
                    "{}: {name} is cdnwarm's own and always {accepted}: offsets are committed once records have arrived; \
                     remove this line",
                    self.at(property)
                );
            }
        }
        let mut config = self.client(|_| true)?;
        ensure!(
            config.get("group.id").is_some_and(|group| !group.is_empty()),
            "{}: group.id is missing; add group.id=NAME under [consumer]",
            self.path.display()
        );
        for (name, _, ours) in OWNED {
            config.set(name, ours);
        }
        Ok(config)
    }

    /// The file that this was read from, for messages.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// `[default]` first, so that what stands in `[consumer]` overrides it.
    fn client(&self, wanted: impl Fn(&Property) -> bool) -> anyhow::Result<ClientConfig> {
        let mut config = ClientConfig::new();
        config.set("client.id", "cdnwarm");
        for section in [DEFAULT, CONSUMER] {
            for property in self.properties.iter().filter(|p| p.section == section && wanted(p)) {
                self.check(property)?;
                config.set(&property.name, &property.value);
            }
        }
        // The vendored OpenSSL would look for CA certificates where it was built to, which is nowhere; "probe" finds
        // the system's store (fede1024/rust-rdkafka#594).
        let uses_tls =
            config.get("security.protocol").is_some_and(|p| p.to_ascii_lowercase().contains("ssl"));
        if uses_tls && config.get("ssl.ca.location").is_none() && config.get("ssl.ca.pem").is_none() {
            config.set("ssl.ca.location", "probe");
        }
        Ok(config)
    }

    /// Asks librdkafka about one property alone, so that a refusal can be put down to its line.
    fn check(&self, property: &Property) -> anyhow::Result<()> {
        let mut alone = ClientConfig::new();
        alone.set(&property.name, &property.value);
        match alone.create_native_config() {
            Ok(_) => Ok(()),
            // librdkafka's description names the property and never a string value, such as a password.
            Err(KafkaError::ClientConfig(_, description, _, _)) => {
                bail!("{}: Kafka property {}: {description}", self.at(property), property.name)
            }
            Err(_) => bail!("{}: Kafka property {} is refused", self.at(property), property.name),
        }
    }

    fn at<'a>(&'a self, property: &Property) -> Line<'a> {
        Line { path: &self.path, number: property.line }
    }
}

/// Names only: values may be secrets.
impl fmt::Debug for KafkaEnv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.properties.iter().map(|property| property.name.as_str()).collect();
        f.debug_struct("KafkaEnv").field("path", &self.path).field("properties", &names).finish()
    }
}

struct Line<'a> {
    path: &'a Path,
    number: usize,
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.path.display(), self.number)
    }
}

fn section_named(name_and_bracket: &str, at: &Line<'_>) -> anyhow::Result<&'static str> {
    match name_and_bracket.strip_suffix(']').map(str::trim) {
        Some(DEFAULT) => Ok(DEFAULT),
        Some(CONSUMER) => Ok(CONSUMER),
        Some(other) => bail!("{at}: unknown section [{other}]; there are [default] and [consumer]"),
        None => bail!("{at}: a section is written [default] or [consumer]"),
    }
}

fn property(line: &str, section: Option<&'static str>, at: &Line<'_>) -> anyhow::Result<Property> {
    let Some((name, value)) = line.split_once('=') else {
        bail!("{at}: neither [section], name=value nor a comment");
    };
    let (name, value) = (name.trim(), value.trim());
    ensure!(!name.is_empty(), "{at}: a property's name is missing before the =");
    let Some(section) = section else {
        bail!("{at}: {name} stands before any section; put [default] above it");
    };
    ensure!(
        !(value.starts_with('{') && value.ends_with('}')),
        "{at}: {name} is still the placeholder of kafka-env.example; put your cluster's own value there"
    );
    Ok(Property { section, name: name.to_owned(), value: value.to_owned(), line: at.number })
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = include_str!("../../kafka-env.example");

    fn parse(text: &str) -> anyhow::Result<KafkaEnv> {
        KafkaEnv::parse(Path::new("kafka-env"), text)
    }

    fn error(text: &str) -> String {
        match parse(text).and_then(|env| env.consumer()) {
            Ok(_) => panic!("accepted: {text}"),
            Err(error) => format!("{error:#}"),
        }
    }

    #[test]
    fn the_example_parses_once_its_placeholders_are_filled_in() {
        assert!(
            error(EXAMPLE).starts_with("kafka-env:9: bootstrap.servers is still the placeholder"),
            "{}",
            error(EXAMPLE)
        );
        let filled = EXAMPLE
            .replace("{ Kafka Server and Port here }", "localhost:9092")
            .replace("{ Kafka Username here }", "user")
            .replace("{ Kafka Password here }", "password");
        let config = parse(&filled).unwrap().consumer().unwrap();
        for (name, value) in [
            ("bootstrap.servers", "localhost:9092"),
            ("sasl.username", "user"),
            ("sasl.password", "password"),
            ("security.protocol", "SASL_SSL"),
            ("sasl.mechanisms", "PLAIN"),
            ("group.id", "cdn_prewarm_group"),
            ("auto.offset.reset", "latest"),
            ("ssl.ca.location", "probe"),
            ("enable.auto.offset.store", "false"),
        ] {
            assert_eq!(config.get(name), Some(value), "{name}");
        }
    }

    #[test]
    fn values_are_literal() {
        let password = r#"a%b\\c#d=;"e"#;
        let text = format!("[default]\nbootstrap.servers = h:1 \n sasl.password=  {password}\t\r\n");
        let config = parse(&text).unwrap().producer().unwrap();
        assert_eq!(config.get("sasl.password"), Some(password));
        assert_eq!(config.get("bootstrap.servers"), Some("h:1"));
        let interpolated = parse("[default]\nbootstrap.servers=h:1\nsasl.username=%(x)s ${HOME}\n").unwrap();
        assert_eq!(interpolated.producer().unwrap().get("sasl.username"), Some("%(x)s ${HOME}"));
    }

    #[test]
    fn mistakes_are_named_with_file_and_line() {
        for (text, expected) in [
            ("[default]\nbootstrap.servers=h:1\n[produce]\n", "kafka-env:3: unknown section [produce]"),
            ("[default\n", "kafka-env:1: a section is written"),
            ("bootstrap.servers=h:1\n", "kafka-env:1: bootstrap.servers stands before any section"),
            ("[default]\n\nbootstrap.servers\n", "kafka-env:3: neither"),
            ("[default]\n=x\n", "kafka-env:2: a property's name is missing"),
            (
                "[default]\nbootstrap.servers=h:1\nbootstrap.servers=h:2\n",
                "kafka-env:3: bootstrap.servers is already set on line 2",
            ),
            ("[default]\nclient.id=x\n", "bootstrap.servers is missing"),
            ("", "bootstrap.servers is missing"),
            ("[default]\nbootstrap.servers=h:1\n", "group.id is missing"),
            (
                "[default]\nbootstrap.servers=h:1\nsasl.pasword=hunter2\n",
                "kafka-env:3: Kafka property sasl.pasword: No such configuration property",
            ),
            (
                "[default]\nbootstrap.servers=h:1\nsecurity.protocol=SASL\n",
                "kafka-env:3: Kafka property security.protocol: Invalid value",
            ),
            (
                "[default]\nbootstrap.servers=h:1\n[consumer]\ngroup.id=g\nenable.auto.offset.store=true\n",
                "kafka-env:5: enable.auto.offset.store is cdnwarm's own",
            ),
            (
                "[default]\nbootstrap.servers=h:1\nenable.auto.commit=false\n",
                "kafka-env:3: enable.auto.commit is cdnwarm's own",
            ),
            (
                "[default]\nbootstrap.servers=h:1\nenable.partition.eof=true\n",
                "kafka-env:3: enable.partition.eof is cdnwarm's own",
            ),
        ] {
            let message = error(text);
            assert!(message.contains(expected), "{text:?} gave {message:?}");
            assert!(!message.contains("hunter2"), "{message}");
        }
    }

    #[test]
    fn the_consumer_section_overrides_the_default_one_for_consumers_only() {
        let text = "[consumer]\nclient.id=c\ngroup.id=g\n[default]\nbootstrap.servers=h:1\nclient.id=d\n";
        let env = parse(text).unwrap();
        assert_eq!(env.consumer().unwrap().get("client.id"), Some("c"));
        assert_eq!(env.producer().unwrap().get("client.id"), Some("d"));
        assert_eq!(env.producer().unwrap().get("group.id"), None);
    }

    #[test]
    fn a_ca_that_is_named_is_used_and_plaintext_needs_none() {
        let with_ca = "[default]\nbootstrap.servers=h:1\nsecurity.protocol=ssl\nssl.ca.location=/ca.pem\n";
        assert_eq!(parse(with_ca).unwrap().producer().unwrap().get("ssl.ca.location"), Some("/ca.pem"));
        let plaintext = "[default]\nbootstrap.servers=h:1\n";
        assert_eq!(parse(plaintext).unwrap().producer().unwrap().get("ssl.ca.location"), None);
    }

    #[test]
    fn secrets_are_not_in_debug_output() {
        let env = parse("[default]\nbootstrap.servers=h:1\nsasl.password=hunter2\n").unwrap();
        assert!(!format!("{env:?}").contains("hunter2"));
    }
}
