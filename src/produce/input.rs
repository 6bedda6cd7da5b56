//! The URLs to produce: a sample, or the lines of a file or of standard input.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use anyhow::Context;

use super::outlet::{Outlet, POLL, Record};
use crate::request::{MAX_URL_BYTES, WarmRequest};

/// The sample: any of these keys with any of these files.
const SAMPLE_KEYS: [&str; 6] = ["0001", "0002", "0003", "0014", "0050", "0024"];
const SAMPLE_FILES: [&str; 5] = [
    "houseofdragonsS01E01-001.ts",
    "stateoftheunion20231004.mp4",
    "mlb-bluejays-v-redsox-GAME1011.mpeg",
    "jeffcorwinexpS12E01-050.mp4",
    "tonysoprano-intro-012.ts",
];
const SAMPLE_PREFIX: &str = "http://postman-echo.com/get?file=";

/// How much is read at once, and how many such blocks wait: enough that neither side waits for the other.
const BLOCK_BYTES: usize = 64 << 10;
const BLOCKS_WAITING: usize = 4;
/// What is kept of a line: more than any URL has, so that a longer one is seen to be too long.
const MAX_LINE_BYTES: usize = MAX_URL_BYTES + 1024;

/// `count` records of random keys and files.
pub(super) fn sample(count: u64, outlet: &mut Outlet<'_>) -> anyhow::Result<()> {
    for _ in 0..count {
        let (key, file) = (fastrand::choice(SAMPLE_KEYS), fastrand::choice(SAMPLE_FILES));
        let url = format!("{SAMPLE_PREFIX}{}", file.unwrap_or_default());
        outlet.send(&[Record { line: 0, key, value: url.as_bytes() }])?;
    }
    Ok(())
}

/// The sample's URLs, for `demo`.
pub(crate) fn sample_urls() -> impl Iterator<Item = String> {
    SAMPLE_FILES.iter().map(|file| format!("{SAMPLE_PREFIX}{file}"))
}

/// The input's name in messages.
pub(super) fn name(path: &Path) -> String {
    if is_standard_input(path) { "standard input".to_owned() } else { path.display().to_string() }
}

fn is_standard_input(path: &Path) -> bool {
    path == Path::new("-")
}

/// Sends the URLs of the input, one a line. A line that is no URL counts as failed and is named; the others go on.
///
/// The input is read on a thread of its own: a quiet pipe must not keep deliveries from being heard, nor a stop.
///
/// # Errors
/// An input that cannot be read, and those of [`Outlet::send`].
pub(super) fn lines(path: &Path, outlet: &mut Outlet<'_>) -> anyhow::Result<()> {
    let (sender, blocks) = sync_channel(BLOCKS_WAITING);
    let input = (!is_standard_input(path)).then(|| path.to_owned());
    std::thread::Builder::new()
        .name("input".to_owned())
        .spawn(move || send_blocks(input.as_deref(), &sender))
        .context("starting the thread that reads the input")?;
    let mut line = 0;
    loop {
        let block = match blocks.recv_timeout(POLL) {
            Ok(block) => block.with_context(|| format!("reading {}", name(path)))?,
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
            Err(RecvTimeoutError::Timeout) => {
                outlet.wait(Duration::ZERO)?;
                continue;
            }
        };
        let mut records = Vec::new();
        for text in lines_of(&block) {
            line += 1;
            let value = text.trim_ascii();
            let is_cut = text.len() >= MAX_LINE_BYTES;
            if (value.is_empty() && !is_cut) || value.starts_with(b"#") {
                continue;
            }
            match WarmRequest::check(value) {
                Ok(()) => records.push(Record { line, key: None, value }),
                Err(not_a_request) => outlet.bad_line(line, &not_a_request.reason()),
            }
        }
        outlet.send(&records)?;
    }
}

/// The lines of a block; the last one may lack its end.
fn lines_of(block: &[u8]) -> impl Iterator<Item = &[u8]> {
    block.split_inclusive(|byte| *byte == b'\n')
}

fn send_blocks(path: Option<&Path>, blocks: &SyncSender<io::Result<Vec<u8>>>) {
    let input: io::Result<Box<dyn Read>> = match path {
        None => Ok(Box::new(io::stdin())),
        Some(path) => File::open(path).map(|file| Box::new(file) as Box<dyn Read>),
    };
    let result = input.and_then(|input| {
        read_blocks(BufReader::with_capacity(BLOCK_BYTES, input), |block| blocks.send(Ok(block)).is_ok())
    });
    if let Err(error) = result {
        // Nobody listens any more only once the program has stopped.
        drop(blocks.send(Err(error)));
    }
}

/// Gives the input in blocks of whole lines, each as soon as it is there, until `take` wants no more. Of a line longer
/// than any URL only the start is kept.
fn read_blocks(mut input: impl BufRead, mut take: impl FnMut(Vec<u8>) -> bool) -> io::Result<()> {
    // The start of a line whose end has not come.
    let mut open = Vec::new();
    loop {
        let read = match input.fill_buf() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read?,
        };
        let read_bytes = read.len();
        if read_bytes == 0 {
            if !open.is_empty() {
                take(open);
            }
            return Ok(());
        }
        let is_end = |byte: &u8| *byte == b'\n';
        let first_end = read.iter().position(is_end);
        let (of_open_line, behind) = read.split_at(first_end.unwrap_or(read_bytes));
        let room = MAX_LINE_BYTES.saturating_sub(open.len());
        open.extend_from_slice(&of_open_line[..of_open_line.len().min(room)]);
        if first_end.is_some() {
            let whole = behind.iter().rposition(is_end).map_or(0, |at| at + 1);
            let (whole, next) = behind.split_at(whole);
            let mut block = std::mem::take(&mut open);
            block.extend_from_slice(whole);
            open.extend_from_slice(&next[..next.len().min(MAX_LINE_BYTES)]);
            if !take(block) {
                return Ok(());
            }
        }
        input.consume(read_bytes);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The lines that come out of `input`, read this many bytes at a time.
    fn read(input: &[u8], buffer_bytes: usize) -> Vec<Vec<u8>> {
        let mut lines = Vec::new();
        read_blocks(BufReader::with_capacity(buffer_bytes, input), |block| {
            lines.extend(lines_of(&block).map(<[u8]>::to_vec));
            true
        })
        .unwrap();
        lines
    }

    #[test]
    fn of_a_line_that_is_too_long_the_start_is_kept_and_the_next_is_whole() {
        let long = "x".repeat(3 * MAX_LINE_BYTES);
        let lines = read(format!("a\n{long}\nb\n").as_bytes(), 1000);
        assert_eq!(lines.iter().map(Vec::len).collect::<Vec<_>>(), [2, MAX_LINE_BYTES + 1, 2]);
        assert_eq!(lines[2], b"b\n");
        assert_eq!(read(long.as_bytes(), 1000)[0].len(), MAX_LINE_BYTES, "at the end of the input too");
    }

    proptest! {
        #[test]
        fn each_line_comes_out_whole_however_it_was_read(input in "[ab\n]{0,60}", buffer_bytes in 1_usize..20) {
            let expected: Vec<Vec<u8>> =
                input.as_bytes().split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
            prop_assert_eq!(read(input.as_bytes(), buffer_bytes), expected);
        }
    }
}
