//! Log lines: text for people, one JSON object a line for Cloud Logging.
//!
//! Events are here; outcomes, which are many, are `outcomes`', and both meet in `log_queue`.
//!
//! The JSON has the fields that Cloud Logging reads (cloud.google.com/logging/docs/structured-logging): `severity`,
//! `message`, `time`; the values of an event stand beside them under their own names.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, IsTerminal};
use std::sync::OnceLock;
use std::time::Duration;

use clap::ValueEnum;
use jiff::Timestamp;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::{FmtContext, MakeWriter};
use tracing_subscriber::registry::LookupSpan;

use super::log_queue::LogQueue;
use super::status::AboveStatusLine;

/// The target under which outcomes are logged.
pub(super) const OUTCOME: &str = "cdnwarm::outcome";

/// The queue of log lines; adding a line never blocks. One per process, as there is one standard output.
static LOG: OnceLock<Log> = OnceLock::new();

/// The queue of log lines, and their format.
pub(super) struct Log {
    pub(super) queue: LogQueue,
    pub(super) json: bool,
}

/// How and how much is logged.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Logging")]
pub(crate) struct LogArgs {
    /// How log lines look: JSON is for Cloud Logging; auto is text for a person, JSON for a service without a terminal
    #[arg(long, value_enum, default_value_t = LogFormat::Auto, env = "CDNWARM_LOG_FORMAT", global = true)]
    pub(crate) log_format: LogFormat,

    /// What is logged: a level (error, warn, info, debug, trace) or tracing directives such as info,cdnwarm::kafka=debug
    /// [default: info for services, warn for tools]
    #[arg(long, value_name = "LEVEL", env = "CDNWARM_LOG", global = true)]
    pub(crate) log: Option<String>,
}

/// The look of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// Text on a terminal and for tools, JSON for services elsewhere.
    Auto,
    /// One line of text.
    Text,
    /// One JSON object.
    Json,
}

/// Where a role's lines go: a service's are its product, on stdout; a tool's stdout is for its results.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Its events may be all that is left of a record: it waits until they are written.
    Service,
    /// Somebody waits for its answers: it never waits for its log.
    Server,
    Tool,
}

/// Sends all events to stdout or stderr from here on.
///
/// # Errors
/// Directives that do not parse.
pub(crate) fn init(args: &LogArgs, role: Role) -> anyhow::Result<()> {
    let directives = args.log.as_deref().unwrap_or(match role {
        Role::Service | Role::Server => "info",
        Role::Tool => "warn",
    });
    // Libraries speak only where something is wrong, unless they are asked to: of two directives the later one counts.
    let filter = EnvFilter::try_new(format!("hyper=warn,h2=warn,rustls=warn,{directives}"))
        .map_err(|error| anyhow::anyhow!("--log {directives}: {error}"))?;
    let is_terminal = io::stdout().is_terminal();
    let json = match (args.log_format, role) {
        (LogFormat::Json, _) => true,
        (LogFormat::Text, _) | (LogFormat::Auto, Role::Tool) => false,
        (LogFormat::Auto, Role::Service | Role::Server) => !is_terminal,
    };
    if role == Role::Tool {
        install(filter, json, io::stderr().is_terminal(), io::stderr);
        return Ok(());
    }
    // A second call, as in tests that run roles in one process, keeps the first queue.
    let log = LOG.get_or_init(|| {
        let queue = match is_terminal {
            true => LogQueue::start(AboveStatusLine(io::stdout())),
            false => LogQueue::start(io::stdout()),
        };
        Log { queue, json }
    });
    match role {
        Role::Server => install(filter, json, is_terminal, move || &log.queue),
        _ if is_terminal => install(filter, json, true, || AboveStatusLine(io::stdout())),
        _ => install(filter, json, false, io::stdout),
    }
    Ok(())
}

/// Waits until the queued lines are written, no longer than `limit`, and queues no more.
pub(crate) fn finish(limit: Duration) {
    if let Some(log) = LOG.get() {
        log.queue.finish(limit);
    }
}

/// Returns the number of lines that were never written, because their reader was too slow or gone.
pub(crate) fn lines_lost() -> u64 {
    LOG.get().map_or(0, |log| log.queue.lost_lines())
}

/// Returns where outcomes go; none in a tool.
pub(super) fn outcome_log() -> Option<&'static Log> {
    LOG.get()
}

fn install<W: for<'w> MakeWriter<'w> + Send + Sync + 'static>(
    filter: EnvFilter,
    json: bool,
    ansi: bool,
    writer: W,
) {
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(ansi)
        .with_writer(writer)
        // A line that cannot be written is lost. Saying so on stderr panics where whoever read both streams is gone.
        .log_internal_errors(false);
    // A second call, as in tests that run roles in one process, keeps the first subscriber.
    let _ = if json {
        builder.event_format(CloudLogging).try_init()
    } else {
        builder.event_format(Text).try_init()
    };
}

/// One JSON object a line.
struct CloudLogging;

impl<S, N> FormatEvent<S, N> for CloudLogging
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let fields = Fields::of(event);
        let severity = match *event.metadata().level() {
            Level::ERROR => "ERROR",
            Level::WARN => "WARNING",
            Level::INFO => "INFO",
            Level::DEBUG | Level::TRACE => "DEBUG",
        };
        let mut line = Map::new();
        line.insert("severity".to_owned(), severity.into());
        line.insert("time".to_owned(), Timestamp::now().to_string().into());
        line.insert("message".to_owned(), fields.message.into());
        line.insert("target".to_owned(), event.metadata().target().into());
        line.extend(fields.values);
        writeln!(writer, "{}", Value::Object(line))
    }
}

/// Time, level, message and values.
struct Text;

impl<S, N> FormatEvent<S, N> for Text
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let fields = Fields::of(event);
        let level = event.metadata().level();
        let now = Timestamp::now();
        let (on, off) = match (writer.has_ansi_escapes(), *level) {
            (true, Level::ERROR) => ("\x1b[31m", "\x1b[0m"),
            (true, Level::WARN) => ("\x1b[33m", "\x1b[0m"),
            _ => ("", ""),
        };
        write!(writer, "{now:.3} {on}{level:>5}{off} {}", on_one_line(&fields.message))?;
        for (name, value) in &fields.values {
            write!(writer, " {name}={}", on_one_line(&value.to_string()))?;
        }
        writeln!(writer)
    }
}

/// Control characters written as escapes: what came from outside cannot forge a line or steer a terminal.
pub(crate) fn on_one_line(text: &str) -> Cow<'_, str> {
    if !text.contains(char::is_control) {
        return Cow::Borrowed(text);
    }
    let escaped = |c: char| if c.is_control() { c.escape_debug().to_string() } else { c.to_string() };
    Cow::Owned(text.chars().map(escaped).collect())
}

/// The values of one event.
#[derive(Default)]
struct Fields {
    message: String,
    values: Map<String, Value>,
}

impl Fields {
    fn of(event: &Event<'_>) -> Self {
        let mut fields = Self::default();
        event.record(&mut fields);
        fields
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            value.clone_into(&mut self.message);
        } else {
            self.values.insert(field.name().to_owned(), value.into());
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.values.insert(field.name().to_owned(), value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.values.insert(field.name().to_owned(), value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.values.insert(field.name().to_owned(), value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.values.insert(field.name().to_owned(), value.into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_from_outside_stays_on_one_line() {
        assert_eq!(on_one_line("plain ü"), "plain ü");
        assert_eq!(on_one_line("a\nINFO forged\u{1b}[2J\u{9b}"), "a\\nINFO forged\\u{1b}[2J\\u{9b}");
    }
}
