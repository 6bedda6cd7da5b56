//! Log lines on their way out: a bounded buffer and the thread that empties it, so that no request waits for whoever reads
//! the log.
//!
//! A line is taken whole or not at all. What finds no room is lost, counted and told of; at the end everything taken is
//! written, as long as the output moves.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What may wait, the lines being written included: about 8,000 outcomes.
const MAX_BYTES: usize = 8 << 20;
/// What is written at once; lines are not torn unless one alone is longer.
const PIECE_BYTES: usize = 64 << 10;
/// The memory that is kept for the next lines.
const KEPT_BYTES: usize = 1 << 20;
/// How long lines gather after the first: a thread that wakes for each of them would cost more than the writing does.
const GATHER: Duration = Duration::from_millis(5);
/// How often losses are told of at most.
const TOLD_EVERY: Duration = Duration::from_secs(1);
/// At the end: how long an output may stand still. On a busy machine the thread itself may wait for its turn that long.
const STILL_LIMIT: Duration = Duration::from_secs(2);

/// Takes lines from any thread without ever waiting for the output.
#[derive(Debug)]
pub(super) struct LineWriter {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// There are lines, or the end has come.
    more: Condvar,
    /// A piece is out, or the thread is over.
    out: Condvar,
    lost: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    lines: Vec<u8>,
    /// Bytes that the thread has taken and not yet written.
    being_written: usize,
    pieces: u64,
    ending: bool,
    over: bool,
}

impl LineWriter {
    /// Writes to `output` on a thread of its own.
    ///
    /// # Errors
    /// Where no thread can be had.
    pub(super) fn start(output: impl Write + Send + 'static) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let thread = std::thread::Builder::new().name("log-lines".to_owned());
        let thread = {
            let shared = shared.clone();
            thread.spawn(move || shared.write_all_to(output))?
        };
        Ok(Self { shared, thread: Mutex::new(Some(thread)) })
    }

    /// Takes a line, with its line end.
    pub(super) fn write(&self, line: &[u8]) {
        let mut state = self.shared.state();
        if state.ending || state.lines.len() + state.being_written + line.len() > MAX_BYTES {
            drop(state);
            self.shared.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let was_empty = state.lines.is_empty();
        state.lines.extend_from_slice(line);
        drop(state);
        if was_empty {
            self.shared.more.notify_one();
        }
    }

    /// Lines that were never written.
    pub(super) fn lost(&self) -> u64 {
        self.shared.lost.load(Ordering::Relaxed)
    }

    /// Writes what was taken, and takes nothing more. Waits for an output that moves, not for one that stands still, and
    /// no longer than `limit`.
    pub(super) fn finish(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        let mut state = self.shared.state();
        state.ending = true;
        self.shared.more.notify_one();
        while !state.over {
            let pieces = state.pieces;
            let left = deadline.saturating_duration_since(Instant::now()).min(STILL_LIMIT);
            let waited = self.shared.out.wait_timeout(state, left);
            let (now, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            state = now;
            if timeout.timed_out() && state.pieces == pieces || Instant::now() >= deadline {
                // The thread hangs in the output; it ends with the process.
                return;
            }
        }
        drop(state);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // A panic of the writer's is no reason for another one.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_all_to(&self, mut output: impl Write) {
        let mut taken = Vec::new();
        let (mut told, mut told_at) = (0, None);
        while self.take(&mut taken) {
            for piece in pieces(&taken) {
                if output.write_all(piece).and_then(|()| output.flush()).is_err() {
                    // Whoever read it is gone, or the disk is full.
                    let lines = piece.iter().filter(|byte| **byte == b'\n').count() as u64;
                    self.lost.fetch_add(lines, Ordering::Relaxed);
                }
                let mut state = self.state();
                state.being_written -= piece.len();
                state.pieces += 1;
                self.out.notify_all();
            }
            // A burst must not keep its memory for ever.
            if taken.capacity() > KEPT_BYTES {
                taken = Vec::new();
            }
            let lost = self.lost.load(Ordering::Relaxed);
            if lost > told && told_at.is_none_or(|at: Instant| at.elapsed() >= TOLD_EVERY) {
                tracing::warn!(lost, "{lost} log lines are lost so far: their reader is too slow, or gone");
                (told, told_at) = (lost, Some(Instant::now()));
            }
        }
        self.state().over = true;
        self.out.notify_all();
    }

    /// Waits for lines and takes all there are into `taken`; false once it has ended and there are none.
    fn take(&self, taken: &mut Vec<u8>) -> bool {
        taken.clear();
        let mut state = self.state();
        while state.lines.is_empty() {
            if state.ending {
                return false;
            }
            state = self.more.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if !state.ending {
            drop(state);
            std::thread::sleep(GATHER);
            state = self.state();
        }
        std::mem::swap(&mut state.lines, taken);
        state.being_written = taken.len();
        true
    }
}

/// `lines` in pieces that end where a line does.
fn pieces(mut lines: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        if lines.is_empty() {
            return None;
        }
        let most = lines.len().min(PIECE_BYTES);
        let end = match memchr::memrchr(b'\n', &lines[..most]) {
            Some(last) => last + 1,
            None => memchr::memchr(b'\n', lines).map_or(lines.len(), |first| first + 1),
        };
        let (piece, rest) = lines.split_at(end);
        lines = rest;
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    type Took = Arc<Mutex<Vec<u8>>>;

    /// An output that takes a write only when it is told to; and what it took.
    struct Slow {
        may: Receiver<io::Result<()>>,
        took: Took,
    }

    impl Slow {
        fn new() -> (Self, SyncSender<io::Result<()>>, Took) {
            let (sender, may) = sync_channel(1);
            let took = Arc::new(Mutex::new(Vec::new()));
            (Self { may, took: took.clone() }, sender, took)
        }
    }

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.may.recv().unwrap_or(Ok(()))?;
            self.took.lock().unwrap().extend_from_slice(bytes);
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
    fn at_the_end_every_line_that_was_taken_is_out_once_and_whole() {
        let (slow, may, took) = Slow::new();
        drop(may);
        let writer = LineWriter::start(slow).unwrap();
        std::thread::scope(|scope| {
            for half in 0..2 {
                let writer = &writer;
                scope.spawn(move || (0..2_500).for_each(|number| writer.write(&line(2 * number + half))));
            }
        });
        writer.finish(LIMIT);
        let took = took.lock().unwrap();
        let mut lines: Vec<_> = took.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
        let mut expected: Vec<_> = (0..5_000).map(line).collect();
        lines.sort();
        expected.sort();
        assert!(lines == expected, "{} lines", lines.len());
        assert_eq!(writer.lost(), 0);
    }

    #[test]
    fn an_output_that_stands_still_holds_up_nobody_and_what_is_lost_is_counted() {
        let (slow, may, took) = Slow::new();
        let writer = LineWriter::start(slow).unwrap();
        let long = vec![b'x'; 1 << 20];
        for _ in 0..20 {
            writer.write(&[&long[..], b"\n"].concat());
        }
        let lost = writer.lost();
        assert_eq!(lost, 13, "of 20 lines of a mebibyte and a byte, 7 have room");
        drop(may);
        writer.finish(LIMIT);
        assert_eq!(took.lock().unwrap().len(), 7 * ((1 << 20) + 1));
        writer.write(b"late\n");
        assert_eq!(writer.lost(), lost + 1);
    }

    #[test]
    fn the_end_does_not_wait_for_an_output_that_hangs() {
        let (slow, _may, took) = Slow::new();
        let writer = LineWriter::start(slow).unwrap();
        writer.write(b"a\n");
        writer.finish(Duration::from_millis(50));
        assert!(took.lock().unwrap().is_empty());
    }

    #[test]
    fn a_reader_that_is_gone_costs_its_lines_alone() {
        let (slow, may, took) = Slow::new();
        may.send(Err(io::ErrorKind::BrokenPipe.into())).unwrap();
        let writer = LineWriter::start(slow).unwrap();
        writer.write(b"a\nb\n");
        while writer.lost() == 0 {
            std::thread::yield_now();
        }
        drop(may);
        writer.write(b"c\n");
        writer.finish(LIMIT);
        assert_eq!((writer.lost(), &took.lock().unwrap()[..]), (2, &b"c\n"[..]));
    }

    #[test]
    fn pieces_end_where_lines_do() {
        let lines: Vec<u8> = (0..1_000).flat_map(line).chain(vec![b'y'; 3 * PIECE_BYTES]).collect();
        let cut: Vec<&[u8]> = pieces(&lines).collect();
        assert_eq!(cut.concat(), lines);
        let (last, whole) = cut.split_last().unwrap();
        assert!(whole.iter().all(|piece| piece.ends_with(b"\n") && piece.len() <= PIECE_BYTES));
        assert!(last.ends_with(b"y"));
        assert_eq!(pieces(b"").count(), 0);
    }
}
