//! One line at the foot of a terminal that says how the work goes.
//!
//! A service logs to stdout and the line is on stderr; where both are the same terminal, [`AboveStatusLine`] takes the
//! line away for as long as a log line is written. Where stderr is no terminal, there is no line.

use std::collections::VecDeque;
use std::io::{self, IsTerminal, Write};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use indicatif::{HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::logs::on_one_line;

const REDRAW_INTERVAL: Duration = Duration::from_millis(500);
/// Samples of the count that make up the rate: the last second.
const RATE_SAMPLES: usize = 3;

/// The line that is shown now. One in a process, as there is one terminal and one subscriber of log events.
static SHOWN: Mutex<Option<ProgressBar>> = Mutex::new(None);

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

/// A shown line; it is cleared when this is dropped.
#[derive(Debug)]
pub(crate) struct StatusLine(Option<(SyncSender<()>, JoinHandle<()>)>);

impl StatusLine {
    /// Shows what `status` says, twice a second, on a thread of its own: it goes on where the runtime is stuck, and
    /// writing to a slow terminal takes none of the runtime's threads. Shows nothing where stderr is no terminal.
    pub(crate) fn start(status: impl Fn() -> Status + Send + 'static) -> Self {
        if !io::stderr().is_terminal() {
            return Self(None);
        }
        Self::start_on(ProgressDrawTarget::stderr(), status)
    }

    fn start_on(target: ProgressDrawTarget, status: impl Fn() -> Status + Send + 'static) -> Self {
        let (sender, ended) = sync_channel(0);
        let show = move || {
            let style = ProgressStyle::with_template("{spinner} {wide_msg}");
            let bar = ProgressBar::with_draw_target(None, target)
                .with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            *SHOWN.lock().unwrap_or_else(PoisonError::into_inner) = Some(bar.clone());
            let mut rate = Rate::default();
            loop {
                let status = status();
                bar.set_message(line(&status, rate.after(status.records_done)));
                bar.tick();
                match ended.recv_timeout(REDRAW_INTERVAL) {
                    Err(RecvTimeoutError::Timeout) => {}
                    Ok(()) | Err(RecvTimeoutError::Disconnected) => break,
                }
            }
            let mut shown = SHOWN.lock().unwrap_or_else(PoisonError::into_inner);
            bar.finish_and_clear();
            shown.take();
        };
        // Without a thread there is no line, and the work goes on.
        let thread = std::thread::Builder::new().name("status-line".to_owned()).spawn(show);
        Self(thread.ok().map(|thread| (sender, thread)))
    }
}

impl Drop for StatusLine {
    fn drop(&mut self) {
        if let Some((sender, thread)) = self.0.take() {
            drop(sender);
            // A panic of the line's is no reason for another one.
            let _ = thread.join();
        }
    }
}

/// Writes log lines to `W`, which is the terminal that may show a status line too, so that neither tears the other.
pub(super) struct AboveStatusLine<W>(pub(super) W);

impl<W: Write> Write for AboveStatusLine<W> {
    /// The whole of `bytes`, which is one log line.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Held until the line is written, so that no status line comes up in the middle of it.
        let shown = SHOWN.lock().unwrap_or_else(PoisonError::into_inner);
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

/// Records a second over the last second.
#[derive(Debug, Default)]
struct Rate(VecDeque<(Instant, u64)>);

impl Rate {
    /// With one more sample, taken now.
    fn after(&mut self, count: u64) -> u64 {
        self.at(Instant::now(), count)
    }

    fn at(&mut self, now: Instant, count: u64) -> u64 {
        self.0.push_back((now, count));
        if self.0.len() > RATE_SAMPLES {
            self.0.pop_front();
        }
        let (began, count_then) = self.0.front().copied().unwrap_or((now, count));
        let seconds = (now - began).as_secs_f64();
        if seconds > 0.0 { (count.saturating_sub(count_then) as f64 / seconds).round() as u64 } else { 0 }
    }
}

/// What matters most comes first: a narrow terminal cuts the end off.
fn line(status: &Status, records_per_second: u64) -> String {
    let problems = match &status.problems[..] {
        [] => String::new(),
        problems => format!("not ready: {} | ", on_one_line(&problems.join("; "))),
    };
    let lag = status.lag_records.map_or_else(|| "unknown".to_owned(), |lag| HumanCount(lag).to_string());
    format!(
        "{problems}{} records/s, lag {lag}, {} in flight in {} {}, {} {}",
        HumanCount(records_per_second),
        HumanCount(status.records_in_flight),
        status.calls_in_flight,
        status.calls,
        HumanCount(status.records_done),
        status.done,
    )
}

#[cfg(test)]
mod tests {
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
            line(&status, 1_234_567),
            "1,234,567 records/s, lag 1,000, 9,000 in flight in 12 calls, 12,345,678 published"
        );
        status.problems = vec!["kafka: away\u{1b}[2J".to_owned(), "pubsub: NOT_FOUND".to_owned()];
        status.lag_records = None;
        assert_eq!(
            line(&status, 0),
            "not ready: kafka: away\\u{1b}[2J; pubsub: NOT_FOUND | 0 records/s, lag unknown, 9,000 in flight in 12 \
             calls, 12,345,678 published"
        );
    }

    #[test]
    fn the_rate_is_that_of_the_last_second() {
        let (mut rate, start) = (Rate::default(), Instant::now());
        let mut at = |ms, count| rate.at(start + Duration::from_millis(ms), count);
        assert_eq!(at(0, 1_000_000), 0, "one sample has no rate");
        assert_eq!(at(500, 1_000_500), 1_000);
        assert_eq!(at(1_000, 1_002_000), 2_000);
        assert_eq!(at(1_500, 1_002_500), 2_000, "what is older than a second does not count");
        assert_eq!(at(2_000, 1_002_000), 0, "and nothing makes it negative");
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
            std::thread::yield_now();
        }
        let lines: Vec<String> = (0..200).map(|n| format!("log line {n} of some length")).collect();
        std::thread::scope(|scope| {
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
