//! What the files of `monitoring/` ask for, to be held against what the roles export and log.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::endpoint::{Metrics, OF_ANY_ROLE};

const GRAFANA: &str = include_str!("../../../monitoring/grafana.json");
/// Log-based metrics, by what they count.
pub(crate) const BRIDGE_LAG: &str = include_str!("../../../monitoring/log-metrics/bridge-lag.json");
pub(crate) const NOT_WARM: &str = include_str!("../../../monitoring/log-metrics/not-warm.json");

/// Every series of the Grafana dashboard, with the labels that it is asked for by.
pub(crate) fn asked() -> BTreeMap<String, BTreeSet<String>> {
    let dashboard: Value = serde_json::from_str(GRAFANA).unwrap();
    let mut asked: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for text in texts(&dashboard) {
        let mut rest = text.as_str();
        while let Some(at) = rest.find("cdnwarm_") {
            rest = &rest[at..];
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
            let (name, after) = rest.split_at(end);
            let selector =
                after.strip_prefix('{').and_then(|after| after.split_once('}')).map_or("", |(s, _)| s);
            let labels = selector.split(',').filter_map(|matcher| matcher.split(['=', '!']).next());
            let labels = labels.map(|label| label.trim().to_owned()).filter(|label| !label.is_empty());
            asked.entry(name.to_owned()).or_default().extend(labels.chain(grouped_by(&text)));
            rest = after;
        }
    }
    asked
}

/// The names in `by (...)` of an expression, but for what every series has once Prometheus has read it.
fn grouped_by(expression: &str) -> Vec<String> {
    const OF_PROMETHEUS: [&str; 2] = ["job", "instance"];
    let groups = expression.split("by (").skip(1).filter_map(|rest| rest.split_once(')'));
    let names = groups.flat_map(|(names, _)| names.split(',')).map(|name| name.trim().to_owned());
    names.filter(|name| !OF_PROMETHEUS.contains(&name.as_str())).collect()
}

/// All text in it that may be an expression.
fn texts(value: &Value) -> Vec<String> {
    match value {
        Value::String(text) if text.contains("cdnwarm_") => vec![text.clone()],
        Value::Array(items) => items.iter().flat_map(texts).collect(),
        Value::Object(items) => items.values().flat_map(texts).collect(),
        _ => Vec::new(),
    }
}

/// What the dashboard asks this role for must be there, with the labels that it is asked for by. Series that come with their
/// first event may be missing from a scrape, but not from its types.
pub(crate) fn assert_grafana_is_answered(prefix: &str, shown: &Metrics) {
    let names = shown.names();
    let asked = asked();
    let of_this = asked.iter().filter(|(s, _)| s.starts_with(prefix) || OF_ANY_ROLE.contains(&s.as_str()));
    for (series, labels) in of_this {
        let family = series.trim_end_matches("_bucket");
        assert!(
            names.contains(family),
            "grafana.json asks for {series}, which is not exported:\n{}",
            shown.0
        );
        let samples = shown.0.lines().filter(|line| {
            line.strip_prefix(series.as_str()).is_some_and(|rest| rest.starts_with(['{', ' ']))
        });
        for sample in samples {
            for label in labels {
                let named = [format!("{{{label}=\""), format!(",{label}=\"")];
                assert!(
                    named.iter().any(|text| sample.contains(text)),
                    "grafana.json asks for {series} by {label}: {sample}"
                );
            }
        }
    }
}

/// A log-based metric must find in this line every field that it reads.
pub(crate) fn assert_line_is_counted(metric: &str, line: &Value) {
    let metric: Value = serde_json::from_str(metric).unwrap();
    let text = metric.to_string();
    let fields: BTreeSet<&str> = text
        .split("jsonPayload.")
        .skip(1)
        .filter_map(|rest| rest.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next())
        .collect();
    assert!(!fields.is_empty(), "{metric}");
    for field in fields {
        assert!(!line[field].is_null(), "{} reads {field}: {line}", metric["name"]);
    }
    if let Some(extractor) = metric["valueExtractor"].as_str() {
        let field = extractor.trim_start_matches("EXTRACT(jsonPayload.").trim_end_matches(')');
        assert!(line[field].is_number(), "{} takes {field} for a number: {line}", metric["name"]);
    }
}
