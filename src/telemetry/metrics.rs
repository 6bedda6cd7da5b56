//! Where every role's metrics begin: the registry with what is true of any role, to which a role adds its own.

use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::health::Health;

/// A registry with the version and whether the process is ready. Made once in a process, and handed to the role's own
/// metrics, each of which registers itself once: the same name twice would make the whole text invalid.
pub(crate) fn registry(health: &Health) -> Registry {
    let mut registry = Registry::default();
    let common = registry.sub_registry_with_prefix("cdnwarm");
    common.register_collector(Box::new(health.clone()));
    // A gauge, as most programs have it: readers of the older text format know no type "info".
    common.sub_registry_with_label(("version".into(), env!("CARGO_PKG_VERSION").into())).register(
        "build_info",
        "The version that is running; always 1",
        ConstGauge::new(1_i64),
    );
    registry
}
