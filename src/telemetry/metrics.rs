//! Where every role's metrics begin: the registry with what is true of any role, to which a role adds its own.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::health::Health;
use super::logs::lines_lost;

/// A registry with the version, lost log lines and whether the process is ready. Made once in a process, and handed to the role's own
/// metrics, each of which registers itself once: the same name twice would make the whole text invalid.
pub(crate) fn registry(health: &Health) -> Registry {
    let mut registry = Registry::default();
    let common = registry.sub_registry_with_prefix("cdnwarm");
    common.register_collector(Box::new(health.clone()));
    common.register_collector(Box::new(LogLines));
    // A gauge, as most programs have it: readers of the older text format know no type "info".
    common.sub_registry_with_label(("version".into(), env!("CARGO_PKG_VERSION").into())).register(
        "build_info",
        "The version that is running; always 1",
        ConstGauge::new(1_i64),
    );
    registry
}

/// The log of this process, which is one.
#[derive(Debug)]
struct LogLines;

impl Collector for LogLines {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Log lines that were never written, because their reader was too slow or gone.";
        let encoder = encoder.encode_descriptor("log_lines_lost", help, None, MetricType::Counter)?;
        ConstCounter::new(lines_lost()).encode(encoder)
    }
}

/// For the tests of roles' metrics: every line is one of the format's, every sample belongs to the family above it, and no family comes twice.
#[cfg(test)]
pub(crate) fn assert_format(text: &str) {
    let lines = text.strip_suffix("# EOF\n").expect("it ends with the end mark").lines();
    let (mut families, mut kind) = (Vec::new(), "");
    for line in lines {
        if let Some(rest) = line.strip_prefix("# ") {
            let [keyword, name, value] = rest.splitn(3, ' ').collect::<Vec<_>>()[..] else {
                panic!("{line}")
            };
            match keyword {
                "HELP" => families.push(name),
                "TYPE" => kind = value,
                "UNIT" => assert!(name.ends_with(&format!("_{value}")), "{line}"),
                _ => panic!("{line}"),
            }
            assert_eq!(families.last(), Some(&name), "{line}");
            continue;
        }
        let (series, value) = line.rsplit_once(' ').unwrap();
        value.parse::<f64>().unwrap();
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        assert!(labels.ends_with('}'), "{line}");
        let suffix = name.strip_prefix(families.last().unwrap()).unwrap();
        let allowed: &[&str] = match kind {
            "counter" => &["_total"],
            "gauge" => &[""],
            "histogram" => &["_sum", "_count", "_bucket"],
            _ => panic!("{line}"),
        };
        assert!(allowed.contains(&suffix), "{line}");
    }
    let names: std::collections::BTreeSet<_> = families.iter().collect();
    assert_eq!(names.len(), families.len(), "a name is registered twice: {families:?}");
}
