//! A record as a message: the value becomes the data, headers and coordinates become attributes.
//!
//! Pure, and the only place that knows Pub/Sub's limits on a message. It never looks inside a value.

use super::letter::Reason;
use crate::kafka::{Headers, RecordRef};
use crate::pubsub::put_attribute;

/// Pub/Sub's limits on one message (cloud.google.com/pubsub/quotas#resource_limits).
pub(super) const MAX_ATTRIBUTES: usize = 100;
pub(super) const MAX_NAME_BYTES: usize = 256;
pub(super) const MAX_VALUE_BYTES: usize = 1024;
/// 10 MB for a whole publish request, of which the message may be one; some of it is left for the request's own frame.
pub(super) const MAX_MESSAGE_BYTES: usize = 10_000_000 - 4096;

/// The attributes that a record's headers become.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Options {
    /// Encoded, in the order of their names: equal options are equal bytes.
    pub(super) encoded: Vec<u8>,
    /// How many foreign headers no attribute can carry.
    pub(super) dropped: u64,
    /// Whether the record says itself what its value is.
    pub(super) has_content_type: bool,
}

impl Options {
    /// Reads headers. Of a repeated one the last counts. Incoming `kafka-` and `warm-region-` headers are dropped, so that
    /// no producer can forge what is added later.
    ///
    /// # Errors
    /// An option that is not UTF-8; names, values or a number of attributes beyond Pub/Sub's limits.
    pub(super) fn read(headers: Headers<'_>) -> Result<Self, Reason> {
        if headers.is_empty() {
            return Ok(Self::default());
        }
        let mut attributes: Vec<(&str, &str)> = Vec::with_capacity(headers.len());
        let mut dropped = 0;
        for (name, value) in headers.iter() {
            if name.starts_with("kafka-") || name.starts_with("warm-region-") {
                continue;
            }
            let ours = name.starts_with("warm-");
            match std::str::from_utf8(value.unwrap_or_default()) {
                Ok(value) if ours || is_attribute_name(name) => attributes.push((name, value)),
                Err(_) if ours => return Err(Reason::InvalidOption(format!("header {name} is not UTF-8"))),
                _ => dropped += 1,
            }
        }
        // A stable sort: of equal names the last one stays last, and is the one that is kept.
        attributes.sort_by_key(|(name, _)| *name);
        attributes.reverse();
        attributes.dedup_by_key(|(name, _)| *name);
        let has_content_type = attributes.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-type"));
        let marks = region_marks(&attributes);
        let all = || attributes.iter().copied().chain(marks.iter().map(|mark| (mark.as_str(), "1")));
        for (name, value) in all() {
            within_limits(name, value)?;
        }
        let count = all().count();
        if count + COORDINATES > MAX_ATTRIBUTES {
            return Err(Reason::Attributes(format!(
                "{} attributes; Pub/Sub takes {MAX_ATTRIBUTES}",
                count + COORDINATES
            )));
        }
        let mut encoded = Vec::with_capacity(64 * count);
        for (name, value) in all() {
            put_attribute(&mut encoded, name, value);
        }
        Ok(Self { encoded, dropped, has_content_type })
    }
}

/// How many attributes [`Coordinates`] adds at most.
const COORDINATES: usize = 5;

/// One mark for each region that is named, for subscriptions to filter by. Without any region there is no subscription to
/// filter for: all get the message, and each will refuse it by name.
fn region_marks(attributes: &[(&str, &str)]) -> Vec<String> {
    let Some((_, regions)) = attributes.iter().find(|(name, _)| *name == "warm-regions") else {
        return Vec::new();
    };
    let mut regions: Vec<&str> =
        regions.split(',').map(str::trim).filter(|region| !region.is_empty()).collect();
    regions.sort_unstable();
    regions.dedup();
    let mut marks: Vec<String> = regions.iter().map(|region| format!("warm-region-{region}")).collect();
    if !marks.is_empty() && !regions.contains(&"filtered") {
        marks.push("warm-region-filtered".to_owned());
    }
    marks
}

/// Encodes where records come from, as attributes.
#[derive(Debug)]
pub(super) struct Coordinates {
    topic: Vec<u8>,
    /// Which partition `encoded` starts with: records come in runs of one.
    partition: i32,
    /// How much of `encoded` is the topic and the partition.
    shared_bytes: usize,
    encoded: Vec<u8>,
}

impl Coordinates {
    pub(super) fn of(topic: &str) -> Self {
        let mut encoded = Vec::new();
        put_attribute(&mut encoded, "kafka-topic", topic);
        Self { topic: encoded, partition: -1, shared_bytes: 0, encoded: Vec::with_capacity(256) }
    }

    /// What was encoded last.
    pub(super) fn encoded(&self) -> &[u8] {
        &self.encoded
    }

    /// Of one record. A key that is not UTF-8, or too long for an attribute, is left out.
    pub(super) fn record(&mut self, record: &RecordRef<'_>) -> &[u8] {
        self.start(record.partition);
        put_attribute(&mut self.encoded, "kafka-offset", itoa::Buffer::new().format(record.offset));
        self.finish(record.timestamp_ms, record.key.and_then(attribute_key))
    }

    /// Of several records of one partition: `offsets` lists first-last ranges, the timestamp is the oldest one's.
    pub(super) fn pack(&mut self, partition: i32, offsets: &str, timestamp_ms: Option<i64>) -> &[u8] {
        self.start(partition);
        put_attribute(&mut self.encoded, "kafka-offset", offsets);
        put_attribute(&mut self.encoded, "content-type", URI_LIST);
        self.finish(timestamp_ms, None)
    }

    fn start(&mut self, partition: i32) {
        if self.partition != partition {
            self.partition = partition;
            self.encoded.clear();
            self.encoded.extend_from_slice(&self.topic);
            put_attribute(&mut self.encoded, "kafka-partition", itoa::Buffer::new().format(partition));
            self.shared_bytes = self.encoded.len();
        }
        self.encoded.truncate(self.shared_bytes);
    }

    fn finish(&mut self, timestamp_ms: Option<i64>, key: Option<&str>) -> &[u8] {
        if let Some(timestamp_ms) = timestamp_ms {
            put_attribute(&mut self.encoded, "kafka-timestamp", itoa::Buffer::new().format(timestamp_ms));
        }
        if let Some(key) = key {
            put_attribute(&mut self.encoded, "kafka-key", key);
        }
        &self.encoded
    }
}

/// The media type of several URLs in one message (RFC 2483 section 5).
pub(super) const URI_LIST: &str = "text/uri-list";

/// A key as an attribute, where it can be one.
fn attribute_key(key: &[u8]) -> Option<&str> {
    std::str::from_utf8(key).ok().filter(|key| key.len() <= MAX_VALUE_BYTES)
}

/// Whether a foreign header can be an attribute: Pub/Sub keeps `goog` for itself, and a name that was not UTF-8 (it
/// holds U+FFFD now) would not be the same name.
fn is_attribute_name(name: &str) -> bool {
    !name.is_empty() && !name.starts_with("goog") && !name.contains(char::REPLACEMENT_CHARACTER)
}

fn within_limits(name: &str, value: &str) -> Result<(), Reason> {
    if name.len() > MAX_NAME_BYTES {
        return Err(Reason::Attributes(format!(
            "an attribute name of {} bytes; Pub/Sub takes {MAX_NAME_BYTES}",
            name.len()
        )));
    }
    if value.len() > MAX_VALUE_BYTES {
        return Err(Reason::Attributes(format!(
            "attribute {name} of {} bytes; Pub/Sub takes {MAX_VALUE_BYTES}",
            value.len()
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::bridge::batch::tests::{batch_of, record};

    fn attributes(headers: &[(&str, Option<&[u8]>)]) -> HashMap<String, String> {
        let batch = batch_of(1, &[record(0, 17, Some(b"https://e.com/"), headers)]);
        batch.requests[0].message(0).unwrap().attributes
    }

    fn reason(value: Option<&[u8]>, headers: &[(&str, Option<&[u8]>)]) -> String {
        let batch = batch_of(1, &[record(0, 17, value, headers)]);
        assert!(batch.requests.is_empty(), "published");
        batch.undeliverable[0].reason.to_string()
    }

    fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    const OF_17: [(&str, &str); 5] = [
        ("kafka-topic", "urls"),
        ("kafka-partition", "0"),
        ("kafka-offset", "17"),
        ("kafka-timestamp", "1700000000000"),
        ("kafka-key", "0014"),
    ];

    #[test]
    fn the_value_is_the_data_and_the_coordinates_are_attributes() {
        let batch = batch_of(1, &[record(0, 17, Some(b"\xffany bytes"), &[])]);
        let message = batch.requests[0].message(0).unwrap();
        assert_eq!(&message.data[..], b"\xffany bytes");
        assert_eq!(message.attributes, map(&OF_17));
        assert_eq!((batch.dropped_headers, message.ordering_key.as_str()), (0, ""));
    }

    #[test]
    fn headers_become_attributes_and_of_a_repeated_one_the_last_counts() {
        let got = attributes(&[
            ("warm-range", Some(b"bytes=0-1")),
            ("x", None),
            ("warm-range", Some(b"bytes=0-9")),
        ]);
        let mut expected = map(&OF_17);
        expected.extend(map(&[("warm-range", "bytes=0-9"), ("x", "")]));
        assert_eq!(got, expected);
    }

    #[test]
    fn regions_are_marked_for_subscription_filters_and_cannot_be_forged() {
        let got = attributes(&[
            ("kafka-offset", Some(b"0")),
            ("warm-region-asia", Some(b"1")),
            ("warm-region-filtered", Some(b"0")),
            ("warm-regions", Some(b"eu, us,eu")),
        ]);
        let mut expected = map(&OF_17);
        expected.extend(map(&[
            ("warm-regions", "eu, us,eu"),
            ("warm-region-eu", "1"),
            ("warm-region-us", "1"),
            ("warm-region-filtered", "1"),
        ]));
        assert_eq!(got, expected);
    }

    #[test]
    fn regions_that_name_none_reach_every_region_which_can_then_say_so() {
        for regions in [&b""[..], b" , "] {
            let got = attributes(&[("warm-regions", Some(regions))]);
            assert!(got.contains_key("warm-regions") && !got.contains_key("warm-region-filtered"), "{got:?}");
        }
    }

    #[test]
    fn foreign_headers_that_no_attribute_carries_are_dropped_and_counted() {
        let headers: [(&str, Option<&[u8]>); 5] = [
            ("trace", Some(b"\xff")),
            ("googclient", Some(b"x")),
            ("", Some(b"x")),
            ("tr\u{fffd}ce", Some(b"x")),
            ("kept", Some(b"y")),
        ];
        let batch = batch_of(1, &[record(0, 17, Some(b"u"), &headers)]);
        assert_eq!(batch.dropped_headers, 4);
        let attributes = batch.requests[0].message(0).unwrap().attributes;
        assert_eq!(attributes["kept"], "y");
        assert_eq!(attributes.len(), OF_17.len() + 1);
    }

    #[test]
    fn a_key_that_is_binary_or_too_long_is_left_out() {
        for key in [b"\xff".to_vec(), vec![b'k'; 1025]] {
            let mut record = record(0, 17, Some(b"u"), &[]);
            record.key = Some(key);
            let batch = batch_of(1, &[record]);
            assert!(!batch.requests[0].message(0).unwrap().attributes.contains_key("kafka-key"));
        }
    }

    #[test]
    fn what_no_message_can_carry_is_named() {
        let many: Vec<(String, Option<&[u8]>)> = (0..96).map(|n| (format!("h{n}"), None)).collect();
        let many: Vec<(&str, Option<&[u8]>)> =
            many.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        let long_name = "n".repeat(257);
        let big = vec![b'x'; MAX_MESSAGE_BYTES + 1];
        let long = vec![b'x'; 1025];
        for (value, headers, expected) in [
            (None, vec![], "tombstone"),
            (Some(&b""[..]), vec![], "empty value"),
            (
                Some(&b"u"[..]),
                vec![("warm-header-cookie", Some(&b"\xff"[..]))],
                "warm-header-cookie is not UTF-8",
            ),
            (Some(&b"u"[..]), many, "101 attributes"),
            (Some(&b"u"[..]), vec![(long_name.as_str(), None)], "name of 257 bytes"),
            (Some(&b"u"[..]), vec![("warm-x", Some(&long[..]))], "attribute warm-x of 1025 bytes"),
            (Some(&big[..]), vec![], "Pub/Sub takes 10 MB"),
        ] {
            let reason = reason(value, &headers);
            assert!(reason.contains(expected), "{reason}");
        }
    }
}
