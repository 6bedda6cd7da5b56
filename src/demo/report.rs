//! The demo's score: which URL is how warm in which region, how long it took, and what the origin saw of it.

use std::collections::HashMap;
use std::io::{self, IsTerminal};
use std::iter;

use anyhow::bail;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tokio::sync::mpsc;

use crate::outcome::Outcome;
use crate::output;
use crate::telemetry::logs::on_one_line;
use crate::verdict::Verdict;

/// The longest table that a person reads; of a longer one only what went wrong is shown.
const ROWS_SHOWN: usize = 40;

/// GETs that the origin saw, by URL without its scheme and by the edge that asked.
type Gets = HashMap<(String, String), u64>;

/// What is known of each URL in each region.
pub(super) struct Report {
    urls: Vec<String>,
    regions: Vec<String>,
    /// By URL and region; the last outcome counts.
    outcomes: HashMap<(String, String), Outcome>,
    /// How many pairs of URL and region have no verdict yet that stays.
    open: usize,
    bars: Vec<ProgressBar>,
}

impl Report {
    pub(super) fn new(urls: &[String], regions: &[String]) -> Self {
        Self {
            urls: urls.to_vec(),
            regions: regions.to_vec(),
            outcomes: HashMap::new(),
            open: urls.len() * regions.len(),
            bars: bars(urls.len(), regions),
        }
    }

    /// Notes an outcome. Of one that a redelivery may change, the redelivery's counts.
    pub(super) fn add(&mut self, outcome: Outcome) {
        let region = self.regions.iter().position(|region| *region == outcome.region);
        let key = (outcome.url.clone(), outcome.region.clone());
        let is_final = !outcome.verdict.is_curable();
        let before = self.outcomes.insert(key, outcome);
        let was_final = before.is_some_and(|before| !before.verdict.is_curable());
        if is_final && !was_final {
            self.open = self.open.saturating_sub(1);
            if let Some(bar) = region.and_then(|region| self.bars.get(region)) {
                bar.inc(1);
            }
        }
    }

    /// Whether every URL has its verdict in every region.
    pub(super) fn is_complete(&self) -> bool {
        self.open == 0
    }

    /// Prints the table, the times, and what the origin and the edges were asked for.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub(super) fn print(&self, origin: &Gets) -> anyhow::Result<()> {
        for bar in &self.bars {
            bar.finish_and_clear();
        }
        let asked: u32 = self.cells().filter_map(|(_, _, outcome)| Some(outcome?.attempts)).sum();
        let total: u64 = self.cells().map(|(url, region, _)| gets(origin, url, region)).sum();
        let cells = self.urls.len() * self.regions.len();
        output::print(&format!(
            "{}\n{}\nThe edges were asked {asked} times, a second look after each fill included; the origin saw {total} GETs \
             for {cells} pairs of URL and region.\n",
            self.verdicts(),
            self.times(),
        ))
    }

    /// Whether the demo did what it is for.
    ///
    /// # Errors
    /// Names the regions where a URL is not warm, or the URL that an edge fetched more than once.
    pub(super) fn judge(&self, origin: &Gets) -> anyhow::Result<()> {
        let not_warm = |region: &&String| {
            self.urls
                .iter()
                .any(|url| self.outcome(url, region).is_none_or(|outcome| outcome.verdict != Verdict::Warm))
        };
        let cold: Vec<&str> = self.regions.iter().filter(not_warm).map(String::as_str).collect();
        if !cold.is_empty() {
            bail!("not warm everywhere: {}", cold.join(", "));
        }
        for (url, region, _) in self.cells() {
            let gets = gets(origin, url, region);
            if gets != 1 {
                bail!("{region} asked the origin {gets} times for {url}, not once");
            }
        }
        Ok(())
    }

    /// Returns the table of verdicts by URL and region.
    fn verdicts(&self) -> String {
        let is_fine = |url: &String| {
            self.regions.iter().all(|r| self.outcome(url, r).is_some_and(|o| o.verdict == Verdict::Warm))
        };
        let rows: Vec<&String> = match self.urls.len() {
            0..=ROWS_SHOWN => self.urls.iter().collect(),
            _ => self.urls.iter().filter(|url| !is_fine(url)).take(ROWS_SHOWN).collect(),
        };
        let heading = iter::once("URL").chain(self.regions.iter().map(String::as_str));
        let row = |url: &&String| {
            let verdicts = self.regions.iter().map(|region| self.cell(url, region));
            iter::once((*url).clone()).chain(verdicts).collect()
        };
        let mut text = output::table(heading, rows.iter().map(row));
        if rows.len() < self.urls.len() {
            text.push_str(&format!(
                "({} of {} URLs are warm in every region and not listed)\n",
                self.urls.iter().filter(|url| is_fine(url)).count(),
                self.urls.len()
            ));
        }
        text
    }

    /// Time from the Kafka record's timestamp to the standing verdict, of what is warm.
    fn times(&self) -> String {
        let mut text = String::new();
        for region in &self.regions {
            let mut times_ms: Vec<i64> = self
                .urls
                .iter()
                .filter_map(|url| self.outcome(url, region))
                .filter(|outcome| outcome.verdict == Verdict::Warm)
                .filter_map(|o| Some((o.finished_at.as_millisecond() - o.source.kafka_timestamp?).max(0)))
                .collect();
            times_ms.sort_unstable();
            let warm = times_ms.len();
            let total = self.urls.len();
            text.push_str(&format!("{region:<20} {warm} of {total} warm"));
            if let (Some(p50), Some(p99)) = (quantile(&times_ms, 0.50), quantile(&times_ms, 0.99)) {
                text.push_str(&format!(", time to warm p50 {p50} ms, p99 {p99} ms"));
            }
            text.push('\n');
        }
        text
    }

    fn cells(&self) -> impl Iterator<Item = (&str, &str, Option<&Outcome>)> {
        let pairs = self.urls.iter().flat_map(|url| self.regions.iter().map(move |region| (url, region)));
        pairs.map(|(url, region)| (url.as_str(), region.as_str(), self.outcome(url, region)))
    }

    fn cell(&self, url: &str, region: &str) -> String {
        self.outcome(url, region)
            .map_or_else(|| "no outcome".to_owned(), |outcome| outcome.verdict.to_string())
    }

    fn outcome(&self, url: &str, region: &str) -> Option<&Outcome> {
        self.outcomes.get(&(url.to_owned(), region.to_owned()))
    }
}

/// Prints outcomes as they come, until there are no more.
///
/// # Errors
/// Standard output cannot be written.
pub(super) async fn follow(outcomes: &mut mpsc::Receiver<Outcome>) -> anyhow::Result<()> {
    while let Some(outcome) = outcomes.recv().await {
        let Outcome { region, verdict, url, exchange, .. } = outcome;
        let line = format!("{region:<20} {verdict} {url} ({:.1} ms)", exchange.total_ms);
        output::print(&format!("{}\n", on_one_line(&line)))?;
    }
    Ok(())
}

/// How often `region`'s edge asked the origin for `url`.
fn gets(origin: &Gets, url: &str, region: &str) -> u64 {
    let without_scheme = url.split_once("://").map_or(url, |(_, rest)| rest);
    origin.get(&(without_scheme.to_owned(), region.to_owned())).copied().unwrap_or(0)
}

/// The nearest-rank quantile of sorted values.
fn quantile(sorted: &[i64], share: f64) -> Option<i64> {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied()
}

/// A bar per region on a terminal, nothing in a pipe.
fn bars(urls: usize, regions: &[String]) -> Vec<ProgressBar> {
    if !io::stderr().is_terminal() {
        return Vec::new();
    }
    let all = MultiProgress::new();
    let style = ProgressStyle::with_template("{prefix:20} {bar:40} {pos}/{len}");
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = |region: &String| {
        let bar = ProgressBar::new(urls as u64).with_style(style.clone()).with_prefix(region.clone());
        let bar = all.add(bar);
        bar.tick();
        bar
    };
    regions.iter().map(bar).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_the_nearest_rank() {
        assert_eq!(quantile(&[], 0.5), None);
        assert_eq!(quantile(&[7], 0.99), Some(7));
        assert_eq!(quantile(&[1, 2, 3, 4], 0.5), Some(2));
        assert_eq!(quantile(&(1..=100).collect::<Vec<_>>(), 0.99), Some(99));
    }
}
