//! Records to publish requests, on the consumer's thread: batches within Pub/Sub's limits, and packs within batches.

use std::collections::VecDeque;

use super::letter::{Reason, Undeliverable};
use super::message::{Coordinates, MAX_MESSAGE_BYTES, MAX_VALUE_BYTES, Options};
use crate::kafka::consumer::Collect;
use crate::kafka::{Receipt, Receipts, Record, RecordRef};
use crate::pubsub::{Request, RequestBuilder, TopicName, message_bytes};

/// Pub/Sub's limit on a publish request (cloud.google.com/pubsub/quotas#resource_limits).
const MAX_MESSAGES: usize = 1_000;
/// A batch goes out at this size, well under the 10 MB that Pub/Sub takes: a larger one costs no less for each byte, but
/// holds more memory and arrives later. Only a single message may be larger.
const FULL_BYTES: usize = 1 << 20;
/// With packs of short values it may hold this many records: what is in flight is bounded in records, too.
const FULL_RECORDS: usize = 20_000;
/// A pack's data: one push, one `serve`, one time limit.
const MAX_PACK_BYTES: usize = 128 << 10;

/// What is published, and ends, as one.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) request: Request,
    /// Of all records, the undeliverable ones included.
    pub(super) receipts: Receipts,
    pub(super) undeliverable: Vec<Undeliverable>,
    /// Headers that no attribute can carry.
    pub(super) dropped_headers: u64,
}

impl Batch {
    /// What it takes of memory, roughly.
    pub(super) fn size_bytes(&self) -> usize {
        let letters: usize = self.undeliverable.iter().map(|letter| letter.record.size_bytes()).sum();
        self.request.size_bytes() + letters
    }
}

/// Makes batches.
pub(super) struct Batcher {
    topic: TopicName,
    coordinates: Coordinates,
    /// How many records make a pack; 1 is none.
    pack_records: usize,
    open: Open,
    /// Batches that were full before they could be taken.
    full: VecDeque<Open>,
}

/// The partition and assignment that a message's records come from.
type Owner = (i32, u64);

/// A batch in the making.
#[derive(Debug)]
struct Open {
    request: RequestBuilder,
    owners: Vec<Owner>,
    receipts: Receipts,
    undeliverable: Vec<(Owner, Undeliverable)>,
    dropped_headers: u64,
    packs: Vec<Pack>,
    records: usize,
}

/// Consecutive records of one partition with equal options, on their way into one message.
#[derive(Debug)]
struct Pack {
    owner: Owner,
    options: Options,
    /// Lines, with CRLF between them.
    data: Vec<u8>,
    records: usize,
    /// First-last ranges that are over, each with a comma behind it, and the one that goes on.
    ranges: String,
    range: (i64, i64),
    timestamp_ms: Option<i64>,
    key: Option<Vec<u8>>,
}

impl Batcher {
    /// Of records of `kafka_topic`, for `topic`; `pack_records` at most share a message.
    pub(super) fn new(kafka_topic: &str, topic: TopicName, pack_records: usize) -> Self {
        let open = Open::new(&topic, 0);
        Self { topic, coordinates: Coordinates::of(kafka_topic), pack_records, open, full: VecDeque::new() }
    }

    fn close(&mut self) {
        self.open.close_packs(&mut self.coordinates);
        // The next batch will most likely be as large as this one.
        let next = Open::new(&self.topic, (self.open.request.size_bytes() * 5 / 4).min(FULL_BYTES));
        let full = std::mem::replace(&mut self.open, next);
        self.full.push_back(full);
    }

    /// Puts a record where it belongs.
    fn put(&mut self, record: &RecordRef<'_>) -> Result<(), Reason> {
        let value = match record.value {
            None => return Err(Reason::NoValue),
            Some([]) => return Err(Reason::EmptyValue),
            Some(value) => value,
        };
        let options = Options::read(&record.headers)?;
        if self.pack_records > 1 && is_packable(value) && !options.has_content_type {
            self.pack(record, value, options);
            return Ok(());
        }
        let attributes = [self.coordinates.record(record), &options.encoded];
        let size_bytes = message_bytes(value, &attributes);
        if size_bytes > MAX_MESSAGE_BYTES {
            return Err(Reason::TooLarge(size_bytes));
        }
        // Whatever stands in the batch is published before a message that is nearly as large as a request may be.
        if self.open.size_bytes() + size_bytes > MAX_MESSAGE_BYTES {
            self.close();
            return self.put(record);
        }
        self.open.request.add(value, &attributes);
        self.open.dropped_headers += options.dropped;
        self.open.owners.push((record.partition, record.assignment));
        Ok(())
    }

    fn pack(&mut self, record: &RecordRef<'_>, value: &[u8], options: Options) {
        self.open.dropped_headers += options.dropped;
        let owner = (record.partition, record.assignment);
        let open = self.open.packs.iter().position(|pack| pack.owner == owner);
        if let Some(index) = open {
            let pack = &mut self.open.packs[index];
            if pack.records < self.pack_records && pack.takes(record.offset, value, &options) {
                pack.add(record, value);
                return;
            }
            let pack = self.open.packs.swap_remove(index);
            self.open.add_pack(&pack, &mut self.coordinates);
        }
        self.open.packs.push(Pack {
            owner,
            options,
            data: value.to_vec(),
            records: 1,
            ranges: String::new(),
            range: (record.offset, record.offset),
            timestamp_ms: record.timestamp_ms,
            key: record.key.map(<[u8]>::to_vec),
        });
    }
}

impl Collect for Batcher {
    type Batch = Batch;

    fn add(&mut self, record: &RecordRef<'_>) {
        if self.open.is_full() {
            self.close();
        }
        let put = self.put(record);
        let owner = (record.partition, record.assignment);
        self.open.receipts.add(owner.0, owner.1, record.offset);
        self.open.records += 1;
        if let Err(reason) = put {
            let record = record.to_record();
            self.open.undeliverable.push((owner, Undeliverable { record, reason }));
        }
    }

    fn add_skipped(&mut self, partition: i32, assignment: u64, (first, last): (i64, i64), error: &str) {
        self.open.receipts.add_range(partition, assignment, first, last);
        let record = Record {
            partition,
            offset: first,
            timestamp_ms: None,
            key: None,
            value: None,
            headers: Vec::new(),
        };
        let reason = Reason::BrokenBatch { last, error: error.to_owned() };
        self.open.undeliverable.push(((partition, assignment), Undeliverable { record, reason }));
    }

    fn is_full(&self) -> bool {
        !self.full.is_empty() || self.open.is_full()
    }

    fn is_empty(&self) -> bool {
        self.full.is_empty() && self.open.is_empty()
    }

    fn take(&mut self, deliver: &mut dyn FnMut(&Receipt) -> bool) -> Option<Batch> {
        if self.full.is_empty() {
            self.close();
        }
        let Open { request, owners, mut receipts, undeliverable, dropped_headers, .. } =
            self.full.pop_front()?;
        let mut request = request.build();
        let mut undeliverable = undeliverable;
        if !receipts.retain(deliver) {
            request = request.retain(|index| receipts.contains(owners[index].0, owners[index].1));
            undeliverable.retain(|(owner, _)| receipts.contains(owner.0, owner.1));
        }
        if receipts.as_slice().is_empty() {
            return None;
        }
        let undeliverable = undeliverable.into_iter().map(|(_, letter)| letter).collect();
        Some(Batch { request, receipts, undeliverable, dropped_headers })
    }
}

impl Open {
    fn new(topic: &TopicName, capacity_bytes: usize) -> Self {
        Self {
            request: RequestBuilder::new(topic, capacity_bytes),
            owners: Vec::new(),
            receipts: Receipts::default(),
            undeliverable: Vec::new(),
            dropped_headers: 0,
            packs: Vec::new(),
            records: 0,
        }
    }

    fn is_empty(&self) -> bool {
        self.receipts.as_slice().is_empty()
    }

    fn is_full(&self) -> bool {
        self.request.len() + self.packs.len() >= MAX_MESSAGES
            || self.size_bytes() >= FULL_BYTES
            || self.records >= FULL_RECORDS
            || self.undeliverable.len() >= MAX_MESSAGES
    }

    fn size_bytes(&self) -> usize {
        let packs: usize = self.packs.iter().map(|pack| pack.data.len() + pack.options.encoded.len()).sum();
        let letters: usize = self.undeliverable.iter().map(|(_, letter)| letter.record.size_bytes()).sum();
        self.request.size_bytes() + packs + letters
    }

    fn close_packs(&mut self, coordinates: &mut Coordinates) {
        for pack in std::mem::take(&mut self.packs) {
            self.add_pack(&pack, coordinates);
        }
    }

    fn add_pack(&mut self, pack: &Pack, coordinates: &mut Coordinates) {
        let (first, last) = pack.range;
        let coordinates = if pack.records == 1 {
            // Alone after all: an ordinary message.
            coordinates.record(&RecordRef {
                partition: pack.owner.0,
                offset: first,
                assignment: pack.owner.1,
                timestamp_ms: pack.timestamp_ms,
                key: pack.key.as_deref(),
                value: None,
                headers: Vec::new(),
            })
        } else {
            let ranges = format!("{}{}", pack.ranges, range(first, last));
            coordinates.pack(pack.owner.0, &ranges, pack.timestamp_ms)
        };
        self.request.add(&pack.data, &[coordinates, &pack.options.encoded]);
        self.owners.push(pack.owner);
    }
}

impl Pack {
    /// Whether this record may share the message.
    fn takes(&self, offset: i64, value: &[u8], options: &Options) -> bool {
        let (first, last) = self.range;
        let ranges_bytes = if offset == last + 1 {
            self.ranges.len() + range_bytes(first, offset)
        } else {
            self.ranges.len() + range_bytes(first, last) + 1 + range_bytes(offset, offset)
        };
        ranges_bytes <= MAX_VALUE_BYTES
            && self.data.len() + LINE_END.len() + value.len() <= MAX_PACK_BYTES
            && self.options.encoded == options.encoded
    }

    fn add(&mut self, record: &RecordRef<'_>, value: &[u8]) {
        self.data.extend_from_slice(LINE_END);
        self.data.extend_from_slice(value);
        self.records += 1;
        self.timestamp_ms = self.timestamp_ms.min(record.timestamp_ms).or(self.timestamp_ms);
        let (first, last) = self.range;
        if record.offset == last + 1 {
            self.range.1 = record.offset;
        } else {
            self.ranges.push_str(&range(first, last));
            self.ranges.push(',');
            self.range = (record.offset, record.offset);
        }
    }
}

/// What stands between the lines of a pack (RFC 2483 section 5).
pub(super) const LINE_END: &[u8] = b"\r\n";

fn range(first: i64, last: i64) -> String {
    if first == last { first.to_string() } else { format!("{first}-{last}") }
}

/// How long that text is, without making it: asked for each record of a pack.
fn range_bytes(first: i64, last: i64) -> usize {
    let digits = |offset: i64| 1 + offset.checked_ilog10().unwrap_or_default() as usize;
    digits(first) + if first == last { 0 } else { 1 + digits(last) }
}

/// Whether a value may be a line among others. The only look inside a value.
fn is_packable(value: &[u8]) -> bool {
    !value.starts_with(b"#")
        && value.len() <= MAX_PACK_BYTES
        && !value.iter().any(|byte| matches!(byte, b'\r' | b'\n'))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::bridge::message::URI_LIST;
    use crate::kafka::Header;

    pub(in crate::bridge) fn record(
        partition: i32,
        offset: i64,
        value: Option<&[u8]>,
        headers: &[(&str, Option<&[u8]>)],
    ) -> Record {
        Record {
            partition,
            offset,
            timestamp_ms: Some(1_700_000_000_000 + 17 - offset),
            key: Some(b"0014".to_vec()),
            value: value.map(<[u8]>::to_vec),
            headers: headers
                .iter()
                .map(|(name, value)| Header { name: (*name).to_owned(), value: value.map(<[u8]>::to_vec) })
                .collect(),
        }
    }

    /// Adds a record that was read under assignment 1.
    fn add(batcher: &mut Batcher, record: &Record) {
        batcher.add(&RecordRef {
            partition: record.partition,
            offset: record.offset,
            assignment: 1,
            timestamp_ms: record.timestamp_ms,
            key: record.key.as_deref(),
            value: record.value.as_deref(),
            headers: record.headers.clone(),
        });
    }

    fn batcher(pack_records: usize) -> Batcher {
        Batcher::new("urls", "projects/p/topics/urls".parse().unwrap(), pack_records)
    }

    pub(in crate::bridge) fn batch_of(pack_records: usize, records: &[Record]) -> Batch {
        let mut batcher = batcher(pack_records);
        records.iter().for_each(|record| add(&mut batcher, record));
        batcher.take(&mut |_| true).unwrap()
    }

    /// Data and offsets of each message, and whether it is a list, in the order of partitions and offsets.
    fn messages(batch: &Batch) -> Vec<(String, String, bool)> {
        let mut all: Vec<_> = (0..batch.request.len())
            .map(|index| {
                let message = batch.request.message(index).unwrap();
                let data = String::from_utf8_lossy(&message.data).into_owned();
                let is_list = message.attributes.get("content-type").is_some_and(|kind| kind == URI_LIST);
                let at = format!(
                    "{}/{}",
                    message.attributes["kafka-partition"], message.attributes["kafka-offset"]
                );
                assert_eq!(is_list, !message.attributes.contains_key("kafka-key"), "{message:?}");
                (at, data, is_list)
            })
            .collect();
        all.sort();
        all
    }

    fn expect(batch: &Batch, expected: &[(&str, &str, bool)]) {
        let expected: Vec<_> =
            expected.iter().map(|(at, data, list)| ((*at).to_owned(), (*data).to_owned(), *list)).collect();
        assert_eq!(messages(batch), expected);
    }

    #[test]
    fn consecutive_records_of_a_partition_with_equal_options_share_a_message() {
        let region: [(&str, Option<&[u8]>); 1] = [("warm-regions", Some(b"eu"))];
        let batch = batch_of(
            3,
            &[
                record(0, 5, Some(b"a"), &[]),
                record(1, 70, Some(b"x"), &[]),
                record(0, 6, Some(b"b"), &[]),
                record(0, 9, Some(b"c"), &[]),
                record(0, 10, Some(b"d"), &[]),
                record(1, 71, Some(b"y"), &region),
                record(1, 72, Some(b"z"), &region),
            ],
        );
        expect(
            &batch,
            &[
                ("0/10", "d", false),
                ("0/5-6,9", "a\r\nb\r\nc", true),
                ("1/70", "x", false),
                ("1/71-72", "y\r\nz", true),
            ],
        );
        assert_eq!(batch.receipts.records(), 7);
        let pack =
            (0..4).map(|index| batch.request.message(index).unwrap()).find(|m| m.data.len() == 7).unwrap();
        assert_eq!(pack.attributes["kafka-timestamp"], "1700000000008", "of the oldest");
    }

    #[test]
    fn what_cannot_be_a_line_among_others_travels_alone() {
        let own_type: [(&str, Option<&[u8]>); 1] = [("Content-Type", Some(b"text/plain"))];
        let batch = batch_of(
            10,
            &[
                record(0, 1, Some(b"a"), &[]),
                record(0, 2, Some(b"b\nc"), &[]),
                record(0, 3, Some(b"d\r"), &[]),
                record(0, 4, Some(b"# e"), &[]),
                record(0, 5, Some(b"f"), &own_type),
                record(0, 6, Some(b"g"), &[]),
                record(0, 7, Some(b""), &[]),
            ],
        );
        expect(
            &batch,
            &[
                ("0/1,6", "a\r\ng", true),
                ("0/2", "b\nc", false),
                ("0/3", "d\r", false),
                ("0/4", "# e", false),
                ("0/5", "f", false),
            ],
        );
        assert_eq!(batch.undeliverable.len(), 1, "an empty value is never published");
    }

    #[test]
    fn a_pack_ends_before_its_data_or_its_offsets_grow_too_long() {
        let value = vec![b'x'; 50 << 10];
        let batch = batch_of(10, &[1, 2, 3].map(|offset| record(0, offset, Some(&value), &[])));
        let sizes: Vec<usize> = messages(&batch).iter().map(|(_, data, _)| data.len()).collect();
        assert_eq!(sizes, [(100 << 10) + 2, 50 << 10]);
        // Every second offset is missing, so each takes a range of its own.
        let records: Vec<Record> = (0..400).map(|n| record(0, 1_000_000 + 2 * n, Some(b"u"), &[])).collect();
        let batch = batch_of(1_000, &records);
        assert!(batch.request.len() > 1);
        for index in 0..batch.request.len() {
            let attributes = batch.request.message(index).unwrap().attributes;
            assert!(attributes["kafka-offset"].len() <= 1024);
        }
    }

    #[test]
    fn a_range_is_as_long_as_it_is_said_to_be() {
        for (first, last) in [(0, 0), (0, 9), (9, 10), (99, 1_000), (i64::MAX - 1, i64::MAX), (17, 17)] {
            assert_eq!(range_bytes(first, last), range(first, last).len(), "{first} {last}");
        }
    }

    #[test]
    fn batches_stay_within_pubsubs_limits() {
        let mut small = batcher(1);
        for offset in 0..2_500 {
            assert_eq!(small.is_full(), offset > 0 && offset % 1_000 == 0 || offset > 1_000, "{offset}");
            add(&mut small, &record(0, offset, Some(b"u"), &[]));
        }
        let sizes: Vec<usize> =
            std::iter::from_fn(|| small.take(&mut |_| true)).map(|b| b.request.len()).collect();
        assert_eq!(sizes, [1_000, 1_000, 500]);

        let (half, nearly_all) = (vec![b'x'; 500_000], vec![b'x'; 9_900_000]);
        let mut large = batcher(1);
        for (offset, value) in (0..).zip([&half, &nearly_all, &half, &half, &half, &half]) {
            add(&mut large, &record(0, offset, Some(value), &[]));
        }
        let batches: Vec<Batch> = std::iter::from_fn(|| large.take(&mut |_| true)).collect();
        let sizes: Vec<usize> = batches.iter().map(|batch| batch.request.len()).collect();
        assert_eq!(sizes, [1, 1, 3, 1]);
        assert!(batches.iter().all(|batch| batch.request.size_bytes() <= 10_000_000));
    }

    #[test]
    fn records_that_another_member_has_by_now_are_taken_out() {
        let records = [
            record(0, 5, Some(b"a"), &[]),
            record(1, 70, Some(b"x"), &[]),
            record(1, 71, None, &[]),
            record(0, 6, None, &[]),
            record(0, 7, Some(b"b"), &[]),
        ];
        let mut batcher = batcher(1);
        records.iter().for_each(|record| add(&mut batcher, record));
        let batch = batcher.take(&mut |receipt| receipt.partition == 0).unwrap();
        expect(&batch, &[("0/5", "a", false), ("0/7", "b", false)]);
        assert_eq!(batch.undeliverable.len(), 1);
        assert_eq!(batch.undeliverable[0].record.offset, 6);
        assert_eq!(batch.receipts.records(), 3);
        add(&mut batcher, &records[0]);
        assert!(batcher.take(&mut |_| false).is_none());
        assert!(batcher.is_empty());
    }
}
