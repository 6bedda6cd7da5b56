//! Writes down every accepted message, so that runs can be compared by set of records and not by totals.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::time::Duration;

use crate::scan::{Malformed, Message};

/// How often [`Recorder::flush`] is to be called.
pub const FLUSH_EVERY: Duration = Duration::from_millis(200);
const BUFFER_BYTES: usize = 1 << 20;

/// A file with one line a message: `PARTITION OFFSETS DATA`.
///
/// The first two are the attributes `kafka-partition` and `kafka-offset` as they came (of a pack, ranges such as
/// `5-9,12`), or `kafka.partition` and `kafka.offset`, as Google's Kafka connector calls them, or `-`. Line breaks in
/// the data become `|`.
#[derive(Debug)]
pub struct Recorder {
    file: BufWriter<File>,
}

impl Recorder {
    /// Appends to the file, which is made if it does not exist.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).create(true).open(path)?;
        Ok(Self { file: BufWriter::with_capacity(BUFFER_BYTES, file) })
    }

    /// Adds one message.
    ///
    /// # Errors
    /// The message is malformed, and nothing was written; or the disk failed.
    pub fn add(&mut self, message: Message<'_>) -> io::Result<()> {
        let invalid = |error: Malformed| io::Error::new(io::ErrorKind::InvalidData, error);
        let partition = first_of(message, ["kafka-partition", "kafka.partition"]).map_err(invalid)?;
        let offsets = first_of(message, ["kafka-offset", "kafka.offset"]).map_err(invalid)?;
        let data = message.data().map_err(invalid)?;

        self.file.write_all(partition)?;
        self.file.write_all(b" ")?;
        self.file.write_all(offsets)?;
        self.file.write_all(b" ")?;
        let mut rest = data;
        while let Some(at) = memchr::memchr2(b'\r', b'\n', rest) {
            self.file.write_all(&rest[..at])?;
            self.file.write_all(b"|")?;
            let break_bytes = if rest[at..].starts_with(b"\r\n") { 2 } else { 1 };
            rest = &rest[at + break_bytes..];
        }
        self.file.write_all(rest)?;
        self.file.write_all(b"\n")
    }

    /// Hands what is buffered to the system.
    ///
    /// # Errors
    /// The disk failed.
    pub fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// The value of the first of these attributes that there is, or `-`.
fn first_of<'a>(message: Message<'a>, names: [&str; 2]) -> Result<&'a [u8], Malformed> {
    for name in names {
        if let Some(value) = message.attribute(name)? {
            return Ok(value);
        }
    }
    Ok(b"-")
}
