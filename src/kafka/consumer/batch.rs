//! Records that a role receives together, copied once into memory that the batch owns.

use super::super::offsets::{Receipt, Receipts};
use super::super::record::{Headers, RecordRef, Span};

/// Records of any partitions, those of one partition in the order of their offsets, with their receipts.
///
/// The bytes of all records are in one buffer: a batch costs a few allocations, and a record without headers none.
#[derive(Debug, Default)]
pub(crate) struct RecordBatch {
    bytes: Vec<u8>,
    headers: Vec<(Span, Span)>,
    records: Vec<Entry>,
    skipped: Vec<SkippedRange>,
    receipts: Receipts,
}

/// Where a record was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) partition: i32,
    /// Which assignment of the partition.
    pub(crate) assignment: u64,
    pub(crate) offset: i64,
}

/// Offsets that were skipped because their record batch is corrupt. A range counts as one record in its receipt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SkippedRange {
    pub(crate) partition: i32,
    pub(crate) assignment: u64,
    pub(crate) first: i64,
    pub(crate) last: i64,
    pub(crate) error: String,
}

#[derive(Debug)]
struct Entry {
    at: Position,
    timestamp_ms: Option<i64>,
    key: Span,
    value: Span,
    /// Where its headers begin and how many there are.
    headers: (u32, u32),
}

impl RecordBatch {
    /// Returns an empty batch with memory for one as large as this.
    pub(super) fn new_like(&self) -> Self {
        Self {
            bytes: Vec::with_capacity(self.bytes.len()),
            records: Vec::with_capacity(self.records.len()),
            ..Self::default()
        }
    }

    /// Adds a record behind those of its partition, without headers. `own_receipt` gives it a receipt that no other record
    /// shares.
    pub(crate) fn add(
        &mut self,
        at: Position,
        timestamp_ms: Option<i64>,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        own_receipt: bool,
    ) {
        let key = Span::append(&mut self.bytes, key);
        let value = Span::append(&mut self.bytes, value);
        let headers = (u32::try_from(self.headers.len()).unwrap_or(u32::MAX), 0);
        self.records.push(Entry { at, timestamp_ms, key, value, headers });
        let Position { partition, assignment, offset } = at;
        if own_receipt {
            self.receipts.push(Receipt::one(partition, assignment, offset));
        } else {
            self.receipts.add(partition, assignment, offset);
        }
    }

    /// Adds a header to the record that was added last.
    pub(crate) fn add_header(&mut self, name: &str, value: Option<&[u8]>) {
        if let Some(record) = self.records.last_mut() {
            let name = Span::append(&mut self.bytes, Some(name.as_bytes()));
            let value = Span::append(&mut self.bytes, value);
            self.headers.push((name, value));
            record.headers.1 += 1;
        }
    }

    /// Adds a range that was skipped, behind the records of its partition.
    pub(crate) fn add_skipped(&mut self, range: SkippedRange) {
        let SkippedRange { partition, assignment, first, last, .. } = range;
        self.receipts.push(Receipt { partition, assignment, first, last, records: 1 });
        self.skipped.push(range);
    }

    /// Keeps the records and ranges whose receipts `keep` accepts.
    pub(super) fn retain(&mut self, keep: impl FnMut(&Receipt) -> bool) {
        if !self.receipts.retain(keep) {
            let receipts = &self.receipts;
            self.records.retain(|record| receipts.contains(record.at.partition, record.at.assignment));
            self.skipped.retain(|range| receipts.contains(range.partition, range.assignment));
        }
    }

    /// The records, in the order they were read.
    pub(crate) fn iter(&self) -> impl Iterator<Item = RecordRef<'_>> {
        self.records.iter().map(|record| {
            let (first, count) = record.headers;
            let spans = self.headers.get(first as usize..).and_then(|spans| spans.get(..count as usize));
            RecordRef {
                partition: record.at.partition,
                offset: record.at.offset,
                assignment: record.at.assignment,
                timestamp_ms: record.timestamp_ms,
                key: record.key.of(&self.bytes),
                value: record.value.of(&self.bytes),
                headers: Headers { bytes: &self.bytes, spans: spans.unwrap_or_default() },
            }
        })
    }

    /// The ranges that were skipped.
    pub(crate) fn skipped(&self) -> &[SkippedRange] {
        &self.skipped
    }

    /// Returns what the role gives back once it is done with all of the batch.
    pub(crate) fn into_receipts(self) -> Receipts {
        self.receipts
    }

    /// How many records it has.
    pub(crate) fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether it has neither records nor skipped ranges.
    pub(super) fn is_empty(&self) -> bool {
        self.records.is_empty() && self.skipped.is_empty()
    }

    /// How many bytes keys, values and headers take.
    pub(super) fn content_bytes(&self) -> usize {
        self.bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::{Header, Record};

    fn at(partition: i32, assignment: u64, offset: i64) -> Position {
        Position { partition, assignment, offset }
    }

    fn batch() -> RecordBatch {
        let mut batch = RecordBatch::default();
        batch.add(at(0, 1, 5), Some(17), Some(b"key"), Some(b"value"), false);
        batch.add_header("a", Some(b"1"));
        batch.add_header("b", None);
        batch.add(at(1, 2, 70), None, None, None, false);
        batch.add(at(0, 1, 6), None, Some(b""), Some(b""), false);
        batch.add_header("c\u{fffd}", Some(b"\xff"));
        batch
    }

    fn offsets(batch: &RecordBatch) -> Vec<(i32, i64)> {
        batch.iter().map(|record| (record.partition, record.offset)).collect()
    }

    #[test]
    fn records_are_what_was_added() {
        let batch = batch();
        let header = |name: &str, value: Option<&[u8]>| Header {
            name: name.to_owned(),
            value: value.map(<[u8]>::to_vec),
        };
        let record = |partition, offset, timestamp_ms, key: Option<&[u8]>, value: Option<&[u8]>, headers| {
            let (key, value) = (key.map(<[u8]>::to_vec), value.map(<[u8]>::to_vec));
            Record { partition, offset, timestamp_ms, key, value, headers }
        };
        let expected = [
            record(
                0,
                5,
                Some(17),
                Some(b"key"),
                Some(b"value"),
                vec![header("a", Some(b"1")), header("b", None)],
            ),
            record(1, 70, None, None, None, vec![]),
            record(0, 6, None, Some(b""), Some(b""), vec![header("c\u{fffd}", Some(b"\xff"))]),
        ];
        assert_eq!(batch.iter().map(RecordRef::to_record).collect::<Vec<_>>(), expected);
        assert_eq!(batch.len(), 3);
        let receipts =
            [Receipt { partition: 0, assignment: 1, first: 5, last: 6, records: 2 }, Receipt::one(1, 2, 70)];
        assert_eq!(batch.into_receipts().as_slice(), receipts);
    }

    #[test]
    fn records_have_receipts_of_their_own_where_that_is_asked_for() {
        let mut batch = RecordBatch::default();
        for offset in 5..7 {
            batch.add(at(0, 1, offset), None, None, None, true);
        }
        assert_eq!(batch.into_receipts().as_slice(), [Receipt::one(0, 1, 5), Receipt::one(0, 1, 6)]);
    }

    #[test]
    fn a_skipped_range_ends_the_receipt_before_it() {
        let mut batch = RecordBatch::default();
        batch.add(at(0, 1, 5), None, None, None, false);
        let range = SkippedRange { partition: 0, assignment: 1, first: 6, last: 9, error: String::new() };
        batch.add_skipped(range.clone());
        batch.add(at(0, 1, 10), None, None, None, false);
        assert_eq!(batch.skipped(), [range]);
        let receipts = batch.into_receipts();
        assert_eq!(receipts.records(), 3);
        let all: Vec<(i64, i64)> = receipts.as_slice().iter().map(|r| (r.first, r.last)).collect();
        assert!(all.windows(2).all(|pair| pair[0].1 < pair[1].0), "ascending: {all:?}");
        assert_eq!((all[0].0, all.last().unwrap().1), (5, 10));
    }

    #[test]
    fn what_another_member_has_by_now_is_taken_out() {
        let mut batch = batch();
        batch.add_skipped(SkippedRange {
            partition: 1,
            assignment: 2,
            first: 71,
            last: 80,
            error: String::new(),
        });
        batch.retain(|receipt| receipt.partition == 0);
        assert_eq!(offsets(&batch), [(0, 5), (0, 6)]);
        assert!(batch.skipped().is_empty() && !batch.is_empty());
        assert_eq!(batch.iter().last().unwrap().headers.iter().count(), 1);
        batch.retain(|_| false);
        assert!(batch.is_empty());
    }
}
