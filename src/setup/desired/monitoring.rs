//! The dashboard, the alerts, and the log-based metrics that they read: the JSON files of `monitoring/`, with this
//! project's names in the place of their words.

use serde_json::{Value, json};

use super::{Project, object};
use crate::setup::config::BridgeKind;
use crate::setup::kinds::{ALERT, DASHBOARD, LOG_METRIC};
use crate::setup::resource::{Part, Resource, Spec};

/// A file with the kind of what it describes, and what there must be for it to make sense.
type File = (&'static Spec, Needs, &'static str);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Needs {
    Nothing,
    WorkerPool,
    DeadLetters,
}

macro_rules! monitoring {
    ($file:literal) => {
        include_str!(concat!("../../../monitoring/", $file))
    };
}

/// Metrics come first: an alert on a metric that is not there is refused.
static FILES: [File; 8] = [
    (&LOG_METRIC, Needs::WorkerPool, monitoring!("log-metrics/bridge-lag.json")),
    (&LOG_METRIC, Needs::Nothing, monitoring!("log-metrics/not-warm.json")),
    (&DASHBOARD, Needs::Nothing, monitoring!("dashboard.json")),
    (&ALERT, Needs::WorkerPool, monitoring!("alerts/bridge-lag.json")),
    (&ALERT, Needs::DeadLetters, monitoring!("alerts/dead-letters.json")),
    (&ALERT, Needs::Nothing, monitoring!("alerts/not-warm.json")),
    (&ALERT, Needs::Nothing, monitoring!("alerts/oldest-unacked.json")),
    (&ALERT, Needs::Nothing, monitoring!("alerts/push-errors.json")),
];

/// All that make sense here; none where none is wanted.
pub(super) fn resources(project: &Project<'_>) -> Vec<Resource> {
    let mut metrics = Vec::new();
    let mut all = Vec::new();
    for (spec, _, text) in FILES.iter().filter(|(_, needs, _)| makes_sense(project, *needs)) {
        let resource = resource(project, spec, &filled(project, text), metrics.clone());
        if spec.noun == LOG_METRIC.noun {
            metrics.push(resource.key());
        }
        all.push(resource);
    }
    all
}

/// The dashboard and alerts of this topic that make no sense here. The metrics may be read by another topic's alerts.
pub(super) fn earlier(project: &Project<'_>) -> Vec<Resource> {
    FILES
        .iter()
        .filter(|(spec, needs, _)| spec.noun != LOG_METRIC.noun && !makes_sense(project, *needs))
        .map(|(spec, _, text)| resource(project, spec, &filled(project, text), Vec::new()))
        .collect()
}

fn makes_sense(project: &Project<'_>, needs: Needs) -> bool {
    let config = project.config;
    config.monitoring.enabled
        && match needs {
            Needs::Nothing => true,
            Needs::WorkerPool => config.bridge.kind == BridgeKind::WorkerPool,
            Needs::DeadLetters => config.dead_letter.enabled,
        }
}

/// The text with names for words. All of them are names of Google's, in which nothing needs an escape in JSON.
fn filled(project: &Project<'_>, text: &str) -> String {
    let mut services: Vec<String> = project
        .config
        .services()
        .iter()
        .map(|service| format!("{}.*", service.name.strip_suffix(&service.region).unwrap_or(&service.name)))
        .collect();
    services.sort();
    services.dedup();
    text.replace("DEAD_LETTER_TOPIC_ID", &project.config.dead_letter_topic().unwrap_or_default())
        .replace("TOPIC_ID", &project.config.topic.name)
        .replace("PROJECT_ID", project.id())
        .replace("SERVICE_NAMES", &services.join("|"))
}

fn resource(project: &Project<'_>, spec: &'static Spec, text: &str, after: Vec<String>) -> Resource {
    let mut fields: Value = serde_json::from_str(text).expect("the files are JSON, which a test proves");
    let (field, collection) = match spec.noun {
        noun if noun == LOG_METRIC.noun => ("name", "metrics"),
        noun if noun == ALERT.noun => ("displayName", "alertPolicies"),
        _ => ("displayName", "dashboards"),
    };
    let mut id = fields[field].as_str().unwrap_or_default().to_owned();
    if spec.noun == ALERT.noun {
        // By its name it is found again: another topic's alert must have another.
        id = format!("{id} ({})", project.config.topic.name);
        fields[field] = json!(id);
        fields["notificationChannels"] = json!(project.config.monitoring.notification_channels);
    }
    // STRING is what a label is unless something else is said, and so not told by the API.
    for label in
        fields.pointer_mut("/metricDescriptor/labels").and_then(Value::as_array_mut).into_iter().flatten()
    {
        if label["valueType"] == "STRING"
            && let Some(label) = label.as_object_mut()
        {
            label.remove("valueType");
        }
    }
    object(spec, Part::Monitoring, &id, &project.path(&format!("{collection}/{id}")), fields, after)
}
