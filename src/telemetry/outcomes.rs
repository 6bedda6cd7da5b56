//! Outcomes as log lines, which no request waits for.
//!
//! What a line costs at Cloud Logging is in `docs/logs.md`. Next to read: `outcome_line.rs`, its JSON.

use std::fmt::Write as _;

use clap::ValueEnum;
use tracing::Level;

use super::logs::{OUTCOME, on_one_line, outcome_log};
use super::outcome_line::OutcomeLine;
use super::trace::Trace;
use crate::outcome::Outcome;
use crate::verdict::Verdict;

/// Of which URLs the log tells.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub(crate) struct OutcomeLogArgs {
    /// URLs whose outcome is logged; metrics count all of them in any case
    #[arg(long, value_enum, default_value_t, env = "CDNWARM_LOG_OUTCOMES")]
    pub(crate) log_outcomes: LogOutcomes,
}

/// Which outcomes are logged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogOutcomes {
    /// One line for each URL.
    #[default]
    All,
    /// None for those whose verdict is warm.
    NotWarm,
    /// None.
    Off,
}

/// How outcomes of one role are logged.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OutcomeLog {
    pub(crate) which: LogOutcomes,
    /// What URLs are asked for with.
    pub(crate) method: &'static str,
}

/// Room for most lines, so that the buffer grows once at most.
const LINE_BYTES: usize = 1 << 10;

impl OutcomeLog {
    /// Logs an outcome, if it is one that is to be logged. Never waits; what finds no room is lost and counted.
    pub(crate) fn log(self, outcome: &Outcome, trace: Option<&Trace<'_>>) {
        let is_wanted = match self.which {
            LogOutcomes::All => true,
            LogOutcomes::NotWarm => outcome.verdict != Verdict::Warm,
            LogOutcomes::Off => false,
        };
        if !is_wanted || !tracing::enabled!(target: OUTCOME, Level::INFO) {
            return;
        }
        let Some(log) = outcome_log() else { return };
        let mut line = Vec::with_capacity(LINE_BYTES);
        if log.json {
            // Serializing plain values into memory cannot fail.
            let _ = serde_json::to_writer(&mut line, &OutcomeLine::new(outcome, trace, self.method));
            line.push(b'\n');
        } else {
            line.extend_from_slice(text_line(outcome).as_bytes());
        }
        log.queue.push(&line);
    }
}

/// One outcome for a person.
fn text_line(outcome: &Outcome) -> String {
    let said = format!("{} {} in {}", outcome.verdict, outcome.url, outcome.region);
    let mut line = format!("{:.3}  INFO {}", outcome.finished_at, on_one_line(&said));
    // Writing into memory cannot fail.
    let _ = writeln!(line, " {:.1} ms", outcome.exchange.total_ms);
    line
}

#[cfg(test)]
mod tests {
    use super::super::outcome_line::tests::outcome;
    use super::*;

    #[test]
    fn a_person_reads_one_line() {
        let mut outcome = outcome(Verdict::Refused("a\nb\u{1b}[2J".to_owned()));
        outcome.url = "https://example.com/".to_owned();
        let expected = "2026-11-22T12:00:00.500Z  INFO refused (a\\nb\\u{1b}[2J) https://example.com/ in europe-west1 2.5 ms\n";
        assert_eq!(text_line(&outcome), expected);
    }
}
