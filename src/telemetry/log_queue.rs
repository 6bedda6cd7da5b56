//! The log queue: hands log lines to `tracing-appender`'s thread, so that no request waits for the reader of the log.
//!
//! A line is written whole or not at all. `tracing-appender` has the thread, but bounds the number of lines alone and ends
//! within a second. This file adds a bound in bytes, the count of lost lines, large writes, and an end with a limit.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};

/// Limit of the lines that wait, including those being written: about 8,000 outcomes.
const MAX_BYTES: usize = 8 << 20;
/// What a line counts for at least. It bounds the lines that wait, for which `tracing-appender` allocates 32 bytes each.
const MIN_CHARGE_BYTES: usize = 1 << 10;
/// Limit of one write. Only a longer line exceeds it.
const MAX_WRITE_BYTES: usize = 64 << 10;
/// The pause after each write, in which lines gather: waking the thread for each line would cost more than writing does.
const GATHER_INTERVAL: Duration = Duration::from_millis(5);
/// How often lost lines are reported at most.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);
/// How long [`LogQueue::finish`] waits for an output that takes nothing. On a busy machine its thread may wait that long
/// for its turn.
const STALL_TIMEOUT: Duration = Duration::from_secs(2);
/// How often [`LogQueue::finish`] looks whether all is written.
const FINISH_POLL_INTERVAL: Duration = Duration::from_millis(1);

/// Takes lines from any thread and never waits for the output.
#[derive(Debug)]
pub(super) struct LogQueue {
    lines: NonBlocking,
    /// Ends the thread when dropped.
    _worker: WorkerGuard,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Charges of the lines that are taken and not yet written.
    waiting_bytes: AtomicUsize,
    lost_lines: AtomicU64,
    finishing: AtomicBool,
}

impl LogQueue {
    /// Starts the thread that writes to `output`. It panics where no thread can be started.
    pub(super) fn start(output: impl Write + Send + 'static) -> Self {
        let shared = Arc::new(Shared::default());
        let (lines, worker) = NonBlockingBuilder::default()
            .buffered_lines_limit(MAX_BYTES / MIN_CHARGE_BYTES)
            .thread_name("log-lines")
            .finish(BatchWriter::new(output, shared.clone()));
        Self { lines, _worker: worker, shared }
    }

    /// Takes a line, with its line end. One that finds no room is lost and counted.
    pub(super) fn push(&self, line: &[u8]) {
        let charge = charge(line);
        let waiting = self.shared.waiting_bytes.fetch_add(charge, Ordering::Relaxed);
        if waiting + charge > MAX_BYTES || self.shared.finishing.load(Ordering::Relaxed) {
            self.shared.waiting_bytes.fetch_sub(charge, Ordering::Relaxed);
            self.shared.lost_lines.fetch_add(1, Ordering::Relaxed);
            return;
        }
        // Never fails: what it cannot take it counts.
        let _ = self.lines.clone().write_all(line);
    }

    /// Returns the number of lines that were never written.
    pub(super) fn lost_lines(&self) -> u64 {
        // The appender drops lines itself only where its thread has ended.
        let dropped = self.lines.error_counter().dropped_lines() as u64;
        self.shared.lost_lines.load(Ordering::Relaxed) + dropped
    }

    /// Waits until all taken lines are written, and takes no more. Gives up after `limit`, or where the output takes nothing
    /// for [`STALL_TIMEOUT`]; the thread then ends with the process.
    pub(super) fn finish(&self, limit: Duration) {
        self.shared.finishing.store(true, Ordering::Relaxed);
        let start = Instant::now();
        let (mut last_waiting, mut last_progress) = (usize::MAX, start);
        loop {
            let waiting = self.shared.waiting_bytes.load(Ordering::Acquire);
            if waiting < last_waiting {
                (last_waiting, last_progress) = (waiting, Instant::now());
            }
            if waiting == 0 || start.elapsed() >= limit || last_progress.elapsed() >= STALL_TIMEOUT {
                return;
            }
            thread::sleep(FINISH_POLL_INTERVAL);
        }
    }
}

impl Write for &LogQueue {
    /// Takes all of `bytes`, which is one line.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.push(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn charge(line: &[u8]) -> usize {
    line.len().max(MIN_CHARGE_BYTES)
}

/// Writes lines to an output in batches, on the appender's thread, which flushes whenever no line waits.
struct BatchWriter<W> {
    output: W,
    shared: Arc<Shared>,
    batch: Vec<u8>,
    batch_lines: u64,
    batch_charge: usize,
    reported_lost: u64,
    reported_at: Option<Instant>,
}

impl<W: Write> BatchWriter<W> {
    fn new(output: W, shared: Arc<Shared>) -> Self {
        let (batch, batch_lines, batch_charge) = (Vec::new(), 0, 0);
        Self { output, shared, batch, batch_lines, batch_charge, reported_lost: 0, reported_at: None }
    }

    fn write_batch(&mut self) {
        if self.output.write_all(&self.batch).and_then(|()| self.output.flush()).is_err() {
            // The reader is gone, or the disk is full.
            self.shared.lost_lines.fetch_add(self.batch_lines, Ordering::Relaxed);
        }
        self.shared.waiting_bytes.fetch_sub(self.batch_charge, Ordering::Release);
        self.batch.clear();
        self.batch.shrink_to(MAX_WRITE_BYTES);
        (self.batch_lines, self.batch_charge) = (0, 0);
        self.report_lost();
    }

    fn report_lost(&mut self) {
        let lost = self.shared.lost_lines.load(Ordering::Relaxed);
        if lost > self.reported_lost && self.reported_at.is_none_or(|at| at.elapsed() >= REPORT_INTERVAL) {
            tracing::warn!(lost, "{lost} log lines are lost so far: their reader is too slow, or gone");
            (self.reported_lost, self.reported_at) = (lost, Some(Instant::now()));
        }
    }
}

impl<W: Write> Write for BatchWriter<W> {
    /// Takes all of `line`.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if !self.batch.is_empty() && self.batch.len() + line.len() > MAX_WRITE_BYTES {
            self.write_batch();
        }
        self.batch.extend_from_slice(line);
        self.batch_lines += 1;
        self.batch_charge += charge(line);
        Ok(line.len())
    }

    /// Writes what is there, then lets lines gather.
    fn flush(&mut self) -> io::Result<()> {
        if !self.batch.is_empty() {
            self.write_batch();
            thread::sleep(GATHER_INTERVAL);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    /// What an output took, one entry per write.
    type Took = Arc<Mutex<Vec<Vec<u8>>>>;

    /// An output that takes a write only when it is told to.
    struct Slow {
        may: Receiver<io::Result<()>>,
        took: Took,
    }

    impl Slow {
        fn new() -> (Self, SyncSender<io::Result<()>>, Took) {
            let (sender, may) = sync_channel(1);
            let took = Took::default();
            (Self { may, took: took.clone() }, sender, took)
        }
    }

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.may.recv().unwrap_or(Ok(()))?;
            self.took.lock().unwrap().push(bytes.to_vec());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn line(number: usize) -> Vec<u8> {
        format!("{{\"line\":{number},\"text\":\"{}\"}}\n", "x".repeat(number % 700)).into_bytes()
    }

    #[test]
    fn finish_writes_every_line_once_and_whole_in_few_writes() {
        let (slow, may, took) = Slow::new();
        let queue = LogQueue::start(slow);
        thread::scope(|scope| {
            for half in 0..2 {
                let queue = &queue;
                scope.spawn(move || (0..2_500).for_each(|number| queue.push(&line(2 * number + half))));
            }
        });
        drop(may);
        queue.finish(LIMIT);
        let took = took.lock().unwrap();
        let all = took.concat();
        let mut lines: Vec<_> = all.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
        let mut expected: Vec<_> = (0..5_000).map(line).collect();
        lines.sort();
        expected.sort();
        assert!(lines == expected, "{} lines", lines.len());
        assert_eq!(queue.lost_lines(), 0);
        assert!(took.iter().all(|write| write.ends_with(b"\n") && write.len() <= MAX_WRITE_BYTES));
        assert!(took.len() <= 2 + all.len() / (MAX_WRITE_BYTES - 1_000), "{} writes", took.len());
    }

    #[test]
    fn a_blocked_output_delays_no_caller_and_lost_lines_are_counted() {
        let (slow, may, took) = Slow::new();
        let queue = LogQueue::start(slow);
        let long = vec![b'x'; 1 << 20];
        for _ in 0..20 {
            queue.push(&[&long[..], b"\n"].concat());
        }
        let lost = queue.lost_lines();
        assert_eq!(lost, 13, "of 20 lines of a mebibyte and a byte, 7 have room");
        drop(may);
        queue.finish(LIMIT);
        assert_eq!(took.lock().unwrap().concat().len(), 7 * ((1 << 20) + 1));
        queue.push(b"late\n");
        assert_eq!(queue.lost_lines(), lost + 1);
    }

    #[test]
    fn short_lines_are_bounded_too_and_none_is_lost_by_the_appender() {
        let (slow, may, took) = Slow::new();
        let queue = LogQueue::start(slow);
        for _ in 0..10_000 {
            queue.push(b"x\n");
        }
        assert_eq!(queue.lost_lines(), 10_000 - 8_192);
        assert_eq!(queue.lines.error_counter().dropped_lines(), 0);
        drop(may);
        queue.finish(LIMIT);
        assert_eq!(took.lock().unwrap().concat().len(), 2 * 8_192);
    }

    #[test]
    fn the_end_does_not_wait_for_an_output_that_hangs() {
        let (slow, _may, took) = Slow::new();
        let queue = LogQueue::start(slow);
        queue.push(b"a\n");
        let start = Instant::now();
        queue.finish(Duration::from_millis(50));
        assert!(start.elapsed() < STALL_TIMEOUT, "the limit counts");
        queue.finish(LIMIT);
        assert!(start.elapsed() < LIMIT, "and so does the stall");
        assert!(took.lock().unwrap().is_empty());
    }

    #[test]
    fn the_end_waits_for_an_output_that_is_slower_than_the_stall_timeout_but_moves() {
        let (slow, may, took) = Slow::new();
        let queue = LogQueue::start(slow);
        // Each is a write of its own.
        let lines: Vec<Vec<u8>> =
            (0..2).map(|_| [&[b'x'; MAX_WRITE_BYTES - 1][..], b"\n"].concat()).collect();
        lines.iter().for_each(|line| queue.push(line));
        let reader = thread::spawn(move || {
            for _ in 0..2 {
                thread::sleep(STALL_TIMEOUT * 3 / 5);
                may.send(Ok(())).unwrap();
            }
        });
        queue.finish(LIMIT);
        assert_eq!(*took.lock().unwrap(), lines);
        reader.join().unwrap();
    }

    #[test]
    fn a_reader_that_is_gone_costs_its_lines_alone() {
        let (slow, may, took) = Slow::new();
        may.send(Err(io::ErrorKind::BrokenPipe.into())).unwrap();
        let queue = LogQueue::start(slow);
        queue.push(b"a\n");
        while queue.lost_lines() == 0 {
            thread::yield_now();
        }
        drop(may);
        queue.push(b"b\n");
        queue.finish(LIMIT);
        assert_eq!((queue.lost_lines(), took.lock().unwrap().concat()), (1, b"b\n".to_vec()));
    }
}
