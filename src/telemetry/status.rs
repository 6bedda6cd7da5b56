//! The status line of a service: one line at the bottom of a terminal, drawn by `indicatif`.
//!
//! A service logs to stdout and the status line is on stderr. Where both are the same terminal, [`AboveStatusLine`] removes
//! the status line while a log line is written. Without a terminal there is no status line.

use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use indicatif::{HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::logs::on_one_line;

const REDRAW_INTERVAL: Duration = Duration::from_millis(500);

/// The status line that is shown now. One per process, as there is one terminal and one log.
static SHOWN: Mutex<Option<ProgressBar>> = Mutex::new(None);

fn shown() -> MutexGuard<'static, Option<ProgressBar>> {
    SHOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How the work goes at one moment.
#[derive(Debug, Clone, Default)]
pub(crate) struct Status {
    /// Since the start.
    pub(crate) records_done: u64,
    /// What was done with them, in a word.
    pub(crate) done: &'static str,
    pub(crate) records_in_flight: u64,
    pub(crate) calls_in_flight: u64,
    /// What such a call is, in a word.
    pub(crate) calls: &'static str,
    /// None while it is not known.
    pub(crate) lag_records: Option<u64>,
    /// Why the process is not ready, if so.
    pub(crate) problems: Vec<String>,
}

/// The handle of a status line, which disappears when this is dropped.
#[derive(Debug)]
pub(crate) struct StatusLine(Option<ProgressBar>);

impl StatusLine {
    /// Shows what `status` returns, twice a second. A thread of its own draws: it continues while the runtime is stuck, and
    /// a slow terminal blocks none of the runtime's threads. Shows nothing where stderr is no terminal.
    pub(crate) fn start(status: impl Fn() -> Status + Send + 'static) -> Self {
        if !io::stderr().is_terminal() {
            return Self(None);
        }
        Self::start_on(ProgressDrawTarget::stderr(), status)
    }

    fn start_on(target: ProgressDrawTarget, status: impl Fn() -> Status + Send + 'static) -> Self {
        let style = ProgressStyle::with_template("{spinner} {wide_msg}");
        let bar = ProgressBar::with_draw_target(None, target)
            .with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
        *shown() = Some(bar.clone());
        let drawn = bar.clone();
        let draw = move || {
            while !drawn.is_finished() {
                let status = status();
                drawn.set_position(status.records_done);
                drawn.set_message(line(&status, drawn.per_sec()));
                drawn.tick();
                thread::sleep(REDRAW_INTERVAL);
            }
        };
        // Without a thread there is no status line, and the work continues.
        let _ = thread::Builder::new().name("status-line".to_owned()).spawn(draw);
        Self(Some(bar))
    }
}

impl Drop for StatusLine {
    fn drop(&mut self) {
        if let Some(bar) = self.0.take() {
            let mut shown = shown();
            bar.finish_and_clear();
            shown.take();
        }
    }
}

/// Writes log lines to `W`, which is the terminal that may show a status line too, so that neither tears the other.
pub(super) struct AboveStatusLine<W>(pub(super) W);

impl<W: Write> Write for AboveStatusLine<W> {
    /// The whole of `bytes`, which is one log line.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Held until the line is written, so that no status line comes up in the middle of it.
        let shown = shown();
        match &*shown {
            Some(bar) => bar.suspend(|| self.0.write_all(bytes))?,
            None => self.0.write_all(bytes)?,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// What matters most comes first: a narrow terminal cuts the end off.
fn line(status: &Status, records_per_second: f64) -> String {
    let problems = match &status.problems[..] {
        [] => String::new(),
        problems => format!("not ready: {} | ", on_one_line(&problems.join("; "))),
    };
    let lag = status.lag_records.map_or_else(|| "unknown".to_owned(), |lag| HumanCount(lag).to_string());
    format!(
        "{problems}{} records/s, lag {lag}, {} in flight in {} {}, {} {}",
        HumanCount(records_per_second.round() as u64),
        HumanCount(status.records_in_flight),
        status.calls_in_flight,
        status.calls,
        HumanCount(status.records_done),
        status.done,
    )
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use indicatif::{InMemoryTerm, TermLike};

    use super::*;

    #[test]
    fn the_line_says_how_the_work_goes_and_first_what_is_wrong() {
        let mut status = Status {
            records_done: 12_345_678,
            done: "published",
            records_in_flight: 9_000,
            calls_in_flight: 12,
            calls: "calls",
            lag_records: Some(1_000),
            problems: Vec::new(),
        };
        assert_eq!(
            line(&status, 1_234_567.4),
            "1,234,567 records/s, lag 1,000, 9,000 in flight in 12 calls, 12,345,678 published"
        );
        status.problems = vec!["kafka: away\u{1b}[2J".to_owned(), "pubsub: NOT_FOUND".to_owned()];
        status.lag_records = None;
        assert_eq!(
            line(&status, 0.0),
            "not ready: kafka: away\\u{1b}[2J; pubsub: NOT_FOUND | 0 records/s, lag unknown, 9,000 in flight in 12 \
             calls, 12,345,678 published"
        );
    }

    /// A terminal as a log's writer.
    struct Screen(InMemoryTerm);

    impl Write for Screen {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            for line in std::str::from_utf8(bytes).unwrap().lines() {
                self.0.write_line(line)?;
            }
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn log_lines_stay_whole_above_the_line_which_leaves_nothing_behind() {
        let terminal = InMemoryTerm::new(500, 120);
        let target = ProgressDrawTarget::term_like(Box::new(terminal.clone()));
        let shown = StatusLine::start_on(target, || Status {
            records_done: 7,
            done: "published",
            ..Status::default()
        });
        let deadline = Instant::now() + Duration::from_secs(10);
        while !terminal.contents().contains("7 published") {
            assert!(Instant::now() < deadline, "it is shown: {:?}", terminal.contents());
            thread::yield_now();
        }
        let lines: Vec<String> = (0..200).map(|n| format!("log line {n} of some length")).collect();
        thread::scope(|scope| {
            for half in lines.chunks(100) {
                let terminal = terminal.clone();
                scope.spawn(move || {
                    let mut log = AboveStatusLine(Screen(terminal));
                    for line in half {
                        log.write_all(format!("{line}\n").as_bytes()).unwrap();
                    }
                });
            }
        });
        drop(shown);
        let (contents, mut expected) = (terminal.contents(), lines);
        let mut seen: Vec<&str> = contents.lines().collect();
        seen.sort_unstable();
        expected.sort_unstable();
        assert_eq!(seen, expected);
    }
}
