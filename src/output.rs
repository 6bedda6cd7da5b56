//! Standard output of the tools: writes results and lays out tables.

use std::io::{self, Write};

use anyhow::{Context, bail};
use comfy_table::{Table, presets};

/// Spaces between two columns.
const COLUMN_GAP: u16 = 2;

/// Writes `text` to standard output and flushes it.
///
/// # Errors
/// The output cannot be written, or its reader has closed it.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => bail!("nobody reads the output any more"),
        written => written.context("writing the output"),
    }
}

/// Returns a table without borders: the heading, then one line per row, two spaces between columns, no white space at
/// line ends. Replaces control characters, so that no cell breaks a line or steers a terminal.
pub(crate) fn table<'a>(
    heading: impl IntoIterator<Item = &'a str>,
    rows: impl IntoIterator<Item = Vec<String>>,
) -> String {
    let rows = rows.into_iter().map(|row| row.iter().map(|cell| printable(cell)).collect::<Vec<_>>());
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(heading).add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, COLUMN_GAP));
    }
    table.trim_fmt() + "\n"
}

/// Returns `text` with each control character replaced by U+FFFD.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_have_no_trailing_space() {
        let rows = [["a", "long cell", "1"], ["dü", "", ""]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(table(["NAME", "WHAT", "N"], rows), "NAME  WHAT       N\na     long cell  1\ndü\n");
        assert_eq!(table(["NAME", "WHAT"], []), "NAME  WHAT\n");
    }

    #[test]
    fn control_characters_neither_break_a_line_nor_reach_the_terminal() {
        let row = vec!["a\nb\tc\u{1b}[31m".to_owned(), "x".to_owned()];
        assert_eq!(table(["A", "B"], [row]), "A           B\na\u{fffd}b\u{fffd}c\u{fffd}[31m  x\n");
    }

    #[test]
    fn cells_of_any_length_are_shown_whole() {
        let long = "x".repeat(60_000);
        let text = table(["A", "B"], [vec![long.clone(), long.clone()]]);
        assert!(text.ends_with(&format!("\n{long}  {long}\n")));
    }
}
