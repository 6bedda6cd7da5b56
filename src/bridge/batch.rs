//! Records to publish requests within Pub/Sub's limits, and packs within requests.

use super::letter::{Reason, Undeliverable};
use super::message::{Coordinates, MAX_MESSAGE_BYTES, MAX_VALUE_BYTES, Options};
use crate::kafka::{Headers, Receipts, Record, RecordBatch, RecordRef, SkippedRange};
use crate::pubsub::{Request, RequestBuilder, TopicName, message_bytes};

/// Pub/Sub's limit on a publish request (cloud.google.com/pubsub/quotas#resource_limits).
pub(super) const MAX_MESSAGES: usize = 1_000;
/// A pack's data: one push, one `serve`, one time limit.
const MAX_PACK_BYTES: usize = 128 << 10;

/// What ends as one: nearly always one request.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) requests: Vec<Request>,
    /// Of all records, the undeliverable ones included.
    pub(super) receipts: Receipts,
    pub(super) undeliverable: Vec<Undeliverable>,
    /// Headers that no attribute can carry.
    pub(super) dropped_headers: u64,
}

impl Batch {
    /// What it takes of memory, roughly.
    pub(super) fn size_bytes(&self) -> usize {
        let requests: usize = self.requests.iter().map(Request::size_bytes).sum();
        let letters: usize = self.undeliverable.iter().map(|letter| letter.record.size_bytes()).sum();
        requests + letters
    }
}

/// Encodes batches; what it holds in between is memory to write to.
pub(super) struct Encoder {
    topic: TopicName,
    coordinates: Coordinates,
    /// How many records make a pack; 1 is none.
    pack_records: usize,
    /// How large the last request was.
    last_bytes: usize,
}

/// A batch while it is being encoded.
struct Open {
    request: RequestBuilder,
    /// Requests that are full.
    full: Vec<Request>,
    packs: Vec<Pack>,
    undeliverable: Vec<Undeliverable>,
    dropped_headers: u64,
}

/// Consecutive records of one partition with equal options, on their way into one message.
#[derive(Debug)]
struct Pack {
    partition: i32,
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

impl Encoder {
    /// Of records of `kafka_topic`, for `topic`; `pack_records` at most share a message.
    pub(super) fn new(kafka_topic: &str, topic: TopicName, pack_records: usize) -> Self {
        Self { topic, coordinates: Coordinates::of(kafka_topic), pack_records, last_bytes: 0 }
    }

    /// Encodes all records of a batch, each into a message or as undeliverable.
    pub(super) fn encode(&mut self, records: RecordBatch) -> Batch {
        // The next batch will most likely be as large as the last one.
        let request = RequestBuilder::new(&self.topic, self.last_bytes * 5 / 4);
        let mut open = Open {
            request,
            full: Vec::new(),
            packs: Vec::new(),
            undeliverable: Vec::new(),
            dropped_headers: 0,
        };
        for record in records.iter() {
            if let Err(reason) = self.put(&mut open, &record) {
                open.undeliverable.push(Undeliverable { record: record.to_record(), reason });
            }
        }
        open.undeliverable.extend(records.skipped().iter().map(undeliverable));
        for pack in std::mem::take(&mut open.packs) {
            self.add_pack(&mut open, &pack);
        }
        self.last_bytes = open.request.size_bytes();
        self.close(&mut open);
        let Open { full: requests, undeliverable, dropped_headers, .. } = open;
        Batch { requests, receipts: records.into_receipts(), undeliverable, dropped_headers }
    }

    /// Puts a record where it belongs.
    fn put(&mut self, open: &mut Open, record: &RecordRef<'_>) -> Result<(), Reason> {
        let value = match record.value {
            None => return Err(Reason::NoValue),
            Some([]) => return Err(Reason::EmptyValue),
            Some(value) => value,
        };
        let options = Options::read(record.headers)?;
        if self.pack_records > 1 && is_packable(value) && !options.has_content_type {
            self.pack(open, record, value, options);
            return Ok(());
        }
        let size_bytes = message_bytes(value, &[self.coordinates.record(record), &options.encoded]);
        if size_bytes > MAX_MESSAGE_BYTES {
            return Err(Reason::TooLarge(size_bytes));
        }
        self.make_room(open, size_bytes);
        open.request.add(value, &[self.coordinates.encoded(), &options.encoded]);
        open.dropped_headers += options.dropped;
        Ok(())
    }

    fn pack(&mut self, open: &mut Open, record: &RecordRef<'_>, value: &[u8], options: Options) {
        open.dropped_headers += options.dropped;
        let last = open.packs.iter().position(|pack| pack.partition == record.partition);
        if let Some(index) = last {
            let pack = &mut open.packs[index];
            if pack.records < self.pack_records && pack.takes(record.offset, value, &options) {
                pack.add(record, value);
                return;
            }
            let pack = open.packs.swap_remove(index);
            self.add_pack(open, &pack);
        }
        open.packs.push(Pack {
            partition: record.partition,
            options,
            data: value.to_vec(),
            records: 1,
            ranges: String::new(),
            range: (record.offset, record.offset),
            timestamp_ms: record.timestamp_ms,
            key: record.key.map(<[u8]>::to_vec),
        });
    }

    fn add_pack(&mut self, open: &mut Open, pack: &Pack) {
        let (first, last) = pack.range;
        if pack.records == 1 {
            // Alone after all: an ordinary message.
            self.coordinates.record(&RecordRef {
                partition: pack.partition,
                offset: first,
                assignment: 0,
                timestamp_ms: pack.timestamp_ms,
                key: pack.key.as_deref(),
                value: None,
                headers: Headers::default(),
            });
        } else {
            let ranges = format!("{}{}", pack.ranges, range(first, last));
            self.coordinates.pack(pack.partition, &ranges, pack.timestamp_ms);
        }
        let size_bytes = message_bytes(&pack.data, &[self.coordinates.encoded(), &pack.options.encoded]);
        self.make_room(open, size_bytes);
        open.request.add(&pack.data, &[self.coordinates.encoded(), &pack.options.encoded]);
    }

    /// Begins another request where this one cannot take a further message of this size.
    fn make_room(&mut self, open: &mut Open, message_bytes: usize) {
        if open.request.len() >= MAX_MESSAGES || open.request.size_bytes() + message_bytes > MAX_MESSAGE_BYTES
        {
            self.close(open);
        }
    }

    fn close(&mut self, open: &mut Open) {
        if open.request.len() > 0 {
            let full = std::mem::replace(&mut open.request, RequestBuilder::new(&self.topic, 0));
            open.full.push(full.build());
        }
    }
}

/// Offsets that were skipped, as one dead letter.
fn undeliverable(range: &SkippedRange) -> Undeliverable {
    let record = Record {
        partition: range.partition,
        offset: range.first,
        timestamp_ms: None,
        key: None,
        value: None,
        headers: Vec::new(),
    };
    Undeliverable { record, reason: Reason::BrokenBatch { last: range.last, error: range.error.clone() } }
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
    use googleapis_tonic_google_pubsub_v1::google::pubsub::v1::PubsubMessage;

    use super::*;
    use crate::bridge::message::URI_LIST;
    use crate::kafka::Header;
    use crate::kafka::consumer::Position;

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

    /// As they come from a consumer, read under assignment 1.
    fn records(records: &[Record]) -> RecordBatch {
        let mut batch = RecordBatch::default();
        for record in records {
            let at = Position { partition: record.partition, assignment: 1, offset: record.offset };
            batch.add(at, record.timestamp_ms, record.key.as_deref(), record.value.as_deref(), false);
            for Header { name, value } in &record.headers {
                batch.add_header(name, value.as_deref());
            }
        }
        batch
    }

    pub(in crate::bridge) fn batch_of(pack_records: usize, all: &[Record]) -> Batch {
        let topic = "projects/p/topics/urls".parse().unwrap();
        Encoder::new("urls", topic, pack_records).encode(records(all))
    }

    fn decoded(batch: &Batch) -> impl Iterator<Item = PubsubMessage> {
        let of =
            |request: &Request| (0..request.len()).map(|i| request.message(i).unwrap()).collect::<Vec<_>>();
        batch.requests.iter().flat_map(of).collect::<Vec<_>>().into_iter()
    }

    /// Data and offsets of each message, and whether it is a list, in the order of partitions and offsets.
    fn messages(batch: &Batch) -> Vec<(String, String, bool)> {
        let mut all: Vec<_> = decoded(batch)
            .map(|message| {
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
        let pack = decoded(&batch).find(|m| m.data.len() == 7).unwrap();
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
        assert!(batch.requests[0].len() > 1);
        assert!(decoded(&batch).all(|message| message.attributes["kafka-offset"].len() <= 1024));
    }

    #[test]
    fn a_range_is_as_long_as_it_is_said_to_be() {
        for (first, last) in [(0, 0), (0, 9), (9, 10), (99, 1_000), (i64::MAX - 1, i64::MAX), (17, 17)] {
            assert_eq!(range_bytes(first, last), range(first, last).len(), "{first} {last}");
        }
    }

    #[test]
    fn requests_stay_within_pubsubs_limits() {
        let small: Vec<Record> = (0..2_500).map(|offset| record(0, offset, Some(b"u"), &[])).collect();
        for pack_records in [1, 2] {
            let batch = batch_of(pack_records, &small);
            let sizes: Vec<usize> = batch.requests.iter().map(Request::len).collect();
            let expected = if pack_records == 1 { vec![1_000, 1_000, 500] } else { vec![1_000, 250] };
            assert_eq!(sizes, expected);
        }
        let (half, nearly_all) = (vec![b'x'; 500_000], vec![b'x'; 9_900_000]);
        let large: Vec<Record> = (0..)
            .zip([&half, &nearly_all, &half, &half, &half, &half])
            .map(|(offset, value)| record(0, offset, Some(value), &[]))
            .collect();
        let batch = batch_of(1, &large);
        let sizes: Vec<usize> = batch.requests.iter().map(Request::len).collect();
        assert_eq!(sizes, [1, 1, 4]);
        assert!(batch.requests.iter().all(|request| request.size_bytes() <= 10_000_000));
        assert_eq!(batch.receipts.records(), 6);
    }

    #[test]
    fn a_skipped_range_is_one_dead_letter_and_a_batch_may_have_no_request() {
        let mut skipped = records(&[record(0, 5, None, &[])]);
        let range = SkippedRange { partition: 0, assignment: 1, first: 6, last: 9, error: "CRC".to_owned() };
        skipped.add_skipped(range);
        let topic = "projects/p/topics/urls".parse().unwrap();
        let batch = Encoder::new("urls", topic, 1).encode(skipped);
        assert!(batch.requests.is_empty());
        let letters: Vec<_> = batch
            .undeliverable
            .iter()
            .map(|letter| (letter.record.offset, letter.reason.to_string()))
            .collect();
        assert_eq!(letters.len(), 2);
        assert_eq!(letters[1], (6, "a record batch that cannot be read, up to offset 9: CRC".to_owned()));
        assert_eq!(batch.receipts.records(), 2);
    }
}
