//! The dashboard, the alerts, and the log-based metrics that they read: the JSON files of `monitoring/`, as they are.

use serde_json::Value;

use super::{Project, object};
use crate::setup::kinds;
use crate::setup::resource::{Part, Resource, Spec};

/// Each file with the kind of what it describes.
const FILES: &[(&Spec, &str)] = &[];

/// All of them. Metrics come first: an alert on a metric that is not there is refused.
pub(super) fn resources(project: &Project<'_>) -> Vec<Resource> {
    let mut metrics = Vec::new();
    let mut all = Vec::new();
    for (spec, text) in FILES {
        let fields: Value = serde_json::from_str(text).expect("the files are JSON, which a test proves");
        let resource = file(project, spec, fields, metrics.clone());
        if spec.noun == kinds::LOG_METRIC.noun {
            metrics.push(resource.key());
        }
        all.push(resource);
    }
    all
}

fn file(project: &Project<'_>, spec: &'static Spec, mut fields: Value, after: Vec<String>) -> Resource {
    let id = fields[if spec.noun == kinds::LOG_METRIC.noun { "name" } else { "displayName" }].clone();
    let id = id.as_str().unwrap_or_default().to_owned();
    let collection = match spec.noun {
        noun if noun == kinds::LOG_METRIC.noun => "metrics",
        noun if noun == kinds::ALERT.noun => "alertPolicies",
        _ => "dashboards",
    };
    if spec.noun == kinds::ALERT.noun {
        fields["notificationChannels"] = project.config.monitoring.notification_channels.clone().into();
    }
    object(spec, Part::Monitoring, &id, &project.path(&format!("{collection}/{id}")), fields, after)
}
