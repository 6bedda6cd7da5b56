//! The URLs to produce: a sample, or the lines of a file or of standard input.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use anyhow::Context;

use super::outlet::{Outlet, POLL};
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

/// Lines read ahead.
const LINES_WAITING: usize = 1_024;
/// What is kept of a line: more than any URL has, so that a longer one is seen to be too long.
const MAX_LINE_BYTES: u64 = MAX_URL_BYTES as u64 + 1024;

/// `count` records of random keys and files.
pub(super) fn sample(count: u64, outlet: &mut Outlet<'_>) -> anyhow::Result<()> {
    for _ in 0..count {
        let (key, file) = (fastrand::choice(SAMPLE_KEYS), fastrand::choice(SAMPLE_FILES));
        outlet.send(key, &format!("{SAMPLE_PREFIX}{}", file.unwrap_or_default()))?;
    }
    Ok(())
}

/// The sample's URLs, for `demo`.
pub(crate) fn sample_urls() -> impl Iterator<Item = String> {
    SAMPLE_FILES.iter().map(|file| format!("{SAMPLE_PREFIX}{file}"))
}

/// The URLs of the input, one a line. A line that is no URL counts as failed and is named; the others go on.
///
/// The input is read on a thread of its own: a quiet pipe must not keep deliveries from being heard, nor a stop.
pub(super) fn lines(path: &Path, outlet: &mut Outlet<'_>) -> anyhow::Result<()> {
    let (sender, lines) = sync_channel(LINES_WAITING);
    let (name, input) = match path.to_str() {
        Some("-") => ("standard input".to_owned(), None),
        _ => (path.display().to_string(), Some(path.to_owned())),
    };
    std::thread::Builder::new()
        .name("input".to_owned())
        .spawn(move || read_lines(input.as_deref(), &sender))
        .context("starting the thread that reads the input")?;
    for number in 1.. {
        let line = loop {
            match lines.recv_timeout(POLL) {
                Ok(line) => break line.with_context(|| format!("reading {name}"))?,
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
                Err(RecvTimeoutError::Timeout) => outlet.wait(Duration::ZERO)?,
            }
        };
        let text = line.trim_ascii();
        if text.is_empty() || text.starts_with(b"#") {
            continue;
        }
        match (WarmRequest::parse(text, []), std::str::from_utf8(text)) {
            (Ok(_), Ok(url)) => outlet.send(None, url)?,
            (Err(not_a_request), _) => outlet.bad_line(&name, number, &not_a_request.reason()),
            (Ok(_), Err(_)) => outlet.bad_line(&name, number, "not UTF-8"),
        }
    }
    Ok(())
}

/// Sends each line of the file, or of standard input. Of a line longer than any URL only the start is kept.
fn read_lines(path: Option<&Path>, lines: &SyncSender<io::Result<Vec<u8>>>) {
    let input: io::Result<Box<dyn BufRead>> = match path {
        None => Ok(Box::new(BufReader::new(io::stdin()))),
        Some(path) => File::open(path).map(|file| Box::new(BufReader::new(file)) as Box<dyn BufRead>),
    };
    let mut input = match input {
        Ok(input) => input,
        // Nobody listens any more only once the program has stopped; so below.
        Err(error) => return drop(lines.send(Err(error))),
    };
    loop {
        let mut line = Vec::new();
        let read = input.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut line);
        let read = match read {
            Ok(_) if line.len() as u64 == MAX_LINE_BYTES && !line.ends_with(b"\n") => {
                input.skip_until(b'\n').map(|_| 1)
            }
            read => read,
        };
        match read {
            Ok(0) => return,
            Ok(_) if lines.send(Ok(line)).is_err() => return,
            Ok(_) => {}
            Err(error) => return drop(lines.send(Err(error))),
        }
    }
}
