//! Outcomes as log lines: each is put into words once, and handed to whom no request waits for.
//!
//! The JSON is the object of `schemas/outcome.schema.json` beside the fields that Cloud Logging reads
//! (cloud.google.com/logging/docs/structured-logging): `severity`, `time`, `message`, `httpRequest`, and the trace where
//! one is known. What a line costs there is in `docs/logs.md`.

use std::cell::RefCell;
use std::fmt::{Arguments, Write as _};

use clap::ValueEnum;
use jiff::Timestamp;
use serde::{Serialize, Serializer};
use tracing::Level;

use super::logs::{OUTCOME, on_one_line, outcome_lines};
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

thread_local! {
    /// The memory of the last line.
    static LINE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The longest memory that is kept for the next line.
const MAX_KEPT_BYTES: usize = 64 << 10;

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
        let Some(lines) = outcome_lines() else { return };
        LINE.with_borrow_mut(|line| {
            line.clear();
            if lines.json {
                // Serializing plain values into memory cannot fail.
                let _ = serde_json::to_writer(&mut *line, &JsonLine::of(outcome, trace, self.method));
                line.push(b'\n');
            } else {
                line.extend_from_slice(text_line(outcome).as_bytes());
            }
            lines.writer.write(line);
            if line.capacity() > MAX_KEPT_BYTES {
                *line = Vec::new();
            }
        });
    }
}

/// One outcome as Cloud Logging reads it.
#[derive(Serialize)]
struct JsonLine<'a> {
    severity: &'static str,
    time: Timestamp,
    #[serde(serialize_with = "message")]
    message: &'a Outcome,
    #[serde(rename = "httpRequest", skip_serializing_if = "Option::is_none")]
    http_request: Option<HttpRequest<'a>>,
    #[serde(flatten)]
    trace: Option<&'a Trace<'a>>,
    #[serde(flatten)]
    outcome: &'a Outcome,
}

/// Cloud Logging's own form for a request; it shows the URL from here, so that the message has no third copy of it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct HttpRequest<'a> {
    request_method: &'static str,
    request_url: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "decimal")]
    response_size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "seconds")]
    latency: Option<f64>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    cache_hit: bool,
}

impl<'a> JsonLine<'a> {
    fn of(outcome: &'a Outcome, trace: Option<&'a Trace<'a>>, method: &'static str) -> Self {
        let exchange = &outcome.exchange;
        let was_asked = outcome.attempts > 0;
        let http_request = HttpRequest {
            request_method: method,
            request_url: &outcome.url,
            status: exchange.http_status,
            response_size: was_asked.then_some(exchange.bytes),
            latency: was_asked.then_some(exchange.total_ms / 1_000.0),
            cache_hit: matches!(outcome.verdict, Verdict::Warm | Verdict::Stale),
        };
        Self {
            severity: "INFO",
            time: outcome.finished_at,
            message: outcome,
            http_request: (!outcome.url.is_empty()).then_some(http_request),
            trace,
            outcome,
        }
    }
}

fn message<S: Serializer>(outcome: &Outcome, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{} in {}", outcome.verdict, outcome.region))
}

/// Cloud Logging takes 64-bit numbers as text.
fn decimal<S: Serializer>(number: &Option<u64>, serializer: S) -> Result<S::Ok, S::Error> {
    collect(serializer, format_args!("{}", number.unwrap_or_default()))
}

/// And durations as seconds with an `s` behind.
fn seconds<S: Serializer>(seconds: &Option<f64>, serializer: S) -> Result<S::Ok, S::Error> {
    collect(serializer, format_args!("{:.6}s", seconds.unwrap_or_default()))
}

fn collect<S: Serializer>(serializer: S, text: Arguments<'_>) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&text)
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
    use serde_json::{Value, json};

    use super::*;
    use crate::outcome::{CacheEvidence, Exchange, Source};
    use crate::verdict::Failure;

    fn outcome(verdict: Verdict) -> Outcome {
        Outcome {
            id: "urls/3/17".to_owned(),
            url: "https://example.com/a?b=\"c\"".to_owned(),
            final_url: None,
            region: "europe-west1".to_owned(),
            instance: "a1b2c3d4".to_owned(),
            reason: verdict.reason(),
            verdict,
            exchange: Exchange {
                http_status: Some(200),
                cache: Some(CacheEvidence {
                    value: Some("edge; hit".to_owned()),
                    ..CacheEvidence::default()
                }),
                bytes: 1_234,
                bytes_saved: 0,
                ttfb_ms: Some(1.5),
                total_ms: 2.5,
            },
            attempts: 1,
            source: Source { kafka_timestamp: Some(1), ..Source::default() },
            finished_at: "2026-11-22T12:00:00.5Z".parse().unwrap(),
        }
    }

    fn line(outcome: &Outcome, trace: Option<&Trace<'_>>) -> Value {
        serde_json::to_value(JsonLine::of(outcome, trace, "GET")).unwrap()
    }

    #[test]
    fn a_line_is_the_outcome_with_what_cloud_logging_reads_beside_it() {
        let outcome = outcome(Verdict::Warm);
        let trace =
            Trace::parse("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", Some("p")).unwrap();
        let mut expected = serde_json::to_value(&outcome).unwrap();
        let more = json!({
            "severity": "INFO",
            "time": "2026-11-22T12:00:00.5Z",
            "message": "warm in europe-west1",
            "httpRequest": {
                "requestMethod": "GET", "requestUrl": "https://example.com/a?b=\"c\"", "status": 200,
                "responseSize": "1234", "latency": "0.002500s", "cacheHit": true,
            },
            "logging.googleapis.com/trace": "projects/p/traces/0af7651916cd43dd8448eb211c80319c",
            "logging.googleapis.com/spanId": "b7ad6b7169203331",
            "logging.googleapis.com/trace_sampled": true,
        });
        expected.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        assert_eq!(line(&outcome, Some(&trace)), expected);
        let text = serde_json::to_string(&JsonLine::of(&outcome, None, "GET")).unwrap();
        assert!(!text.contains("googleapis.com") && !text.contains('\n'), "{text}");
    }

    #[test]
    fn what_was_not_asked_for_has_no_size_and_no_latency() {
        let mut refused = outcome(Verdict::Failed(Failure::CircuitOpen));
        refused.attempts = 0;
        refused.exchange = Exchange::default();
        assert_eq!(
            line(&refused, None)["httpRequest"],
            json!({"requestMethod": "GET", "requestUrl": "https://example.com/a?b=\"c\""})
        );
        assert_eq!(line(&refused, None)["message"], "failed (circuit open) in europe-west1");
        refused.url = String::new();
        assert_eq!(line(&refused, None).get("httpRequest"), None);
    }

    #[test]
    fn a_person_reads_one_line() {
        let mut outcome = outcome(Verdict::Refused("a\nb\u{1b}[2J".to_owned()));
        outcome.url = "https://example.com/".to_owned();
        let expected = "2026-11-22T12:00:00.500Z  INFO refused (a\\nb\\u{1b}[2J) https://example.com/ in europe-west1 2.5 ms\n";
        assert_eq!(text_line(&outcome), expected);
    }
}
