//! What a role shows on `--metrics-addr`, and what `docs/metrics.md` says about it.

use std::collections::BTreeSet;

use serde_json::Value;

use super::eventually;
use super::process::Process;

/// The document that lists all metrics.
pub(crate) const DOCUMENT: &str = include_str!("../../../docs/metrics.md");

/// The endpoint of a running role.
pub(crate) struct Endpoint {
    url: String,
    http: reqwest::Client,
}

impl Endpoint {
    /// Of a role that was started with `--metrics-addr 127.0.0.1:0`.
    pub(crate) async fn of(role: &Process) -> Self {
        let told: Value = serde_json::from_str(&role.says("metrics at http").await).unwrap();
        Self::told(told["message"].as_str().unwrap())
    }

    /// As the log line names it.
    pub(crate) fn told(message: &str) -> Self {
        let url = message.trim_start_matches("metrics at ").trim_end_matches("/metrics").to_owned();
        Self { url, http: reqwest::Client::builder().no_proxy().build().unwrap() }
    }

    /// Status and text of the answer.
    pub(crate) async fn get(&self, path: &str) -> (u16, String) {
        let answer = self.http.get(format!("{}{path}", self.url)).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    }

    /// Waits until `/ready` answers so, for this reason.
    pub(crate) async fn ready(&self, expected: u16, why: &str) {
        eventually(&format!("/ready {expected} {why}"), async || {
            let (status, text) = self.get("/ready").await;
            (status == expected && text.contains(why)).then_some(())
        })
        .await;
    }

    /// All metrics now.
    pub(crate) async fn metrics(&self) -> Metrics {
        Metrics(self.get("/metrics").await.1)
    }
}

/// The text of one scrape.
pub(crate) struct Metrics(pub(crate) String);

impl Metrics {
    /// A series' value; -1 where it is not there.
    pub(crate) fn value(&self, series: &str) -> i64 {
        let found = self.0.lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok());
        found.unwrap_or(-1)
    }

    /// The names of all metrics.
    pub(crate) fn names(&self) -> BTreeSet<String> {
        let types = self.0.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
        types
            .map(|(name, kind)| if kind == "counter" { format!("{name}_total") } else { name.to_owned() })
            .collect()
    }
}

/// The names in the tables of the document.
pub(crate) fn documented() -> BTreeSet<String> {
    let rows = DOCUMENT.lines().filter_map(|line| line.strip_prefix("| `cdnwarm_")?.split_once('`'));
    rows.map(|(name, _)| format!("cdnwarm_{name}")).collect()
}

/// What every role shows.
pub(crate) const OF_ANY_ROLE: [&str; 3] =
    ["cdnwarm_build_info", "cdnwarm_log_lines_lost_total", "cdnwarm_ready"];

/// Those that a role shows: its own, and those of any role.
pub(crate) fn documented_of(prefix: &str) -> BTreeSet<String> {
    let is_shown = |name: &String| name.starts_with(prefix) || OF_ANY_ROLE.contains(&name.as_str());
    documented().into_iter().filter(is_shown).collect()
}
