//! Which rows' marks a response bears: each of its headers is looked up once, not each mark of the table.

use std::collections::HashMap;
use std::sync::LazyLock;

use http::HeaderMap;

use super::row::{Mark, Row};
use super::table::ROWS;

/// The marks of all rows, each with a bit of its own.
struct Index {
    by_header: HashMap<&'static str, Vec<(Bits, Mark)>>,
    /// For each row what it is known by: all bits of any of these.
    rows: Vec<Vec<Bits>>,
}

type Bits = u128;

static INDEX: LazyLock<Index> = LazyLock::new(|| {
    let mut index = Index { by_header: HashMap::new(), rows: Vec::new() };
    let mut next: Bits = 1;
    for row in ROWS {
        let mut ways = Vec::new();
        for marks in row.marks {
            let mut way = 0;
            for mark in *marks {
                index.by_header.entry(mark.header()).or_default().push((next, *mark));
                way |= next;
                // A table with more marks than bits is noticed by every test that reads it.
                next = next.checked_mul(2).expect("as many marks as bits");
            }
            ways.push(way);
        }
        index.rows.push(ways);
    }
    index
});

/// The rows whose marks are there, in the table's order.
pub(super) fn rows(headers: &HeaderMap) -> impl Iterator<Item = &'static Row> {
    let mut found: Bits = 0;
    for name in headers.keys() {
        for (bit, mark) in INDEX.by_header.get(name.as_str()).into_iter().flatten() {
            if holds(mark, headers) {
                found |= bit;
            }
        }
    }
    let known = move |ways: &Vec<Bits>| ways.iter().any(|way| found & way == *way);
    ROWS.iter().zip(&INDEX.rows).filter(move |(_, ways)| known(ways)).map(|(row, _)| row)
}

fn holds(mark: &Mark, headers: &HeaderMap) -> bool {
    match mark {
        Mark::Has(name) => headers.contains_key(*name),
        Mark::Starts(name, text) => headers.get(*name).is_some_and(|value| {
            value
                .as_bytes()
                .get(..text.len())
                .is_some_and(|start| start.eq_ignore_ascii_case(text.as_bytes()))
        }),
        Mark::Contains(name, text) => headers.get_all(*name).iter().any(|value| {
            value.as_bytes().windows(text.len()).any(|part| part.eq_ignore_ascii_case(text.as_bytes()))
        }),
    }
}
