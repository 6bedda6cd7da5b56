//! A record as a message: the value becomes the data, headers and coordinates become attributes.
//!
//! Pure, and the only place that knows Pub/Sub's limits on a message. It never looks inside a value.

use std::collections::HashMap;

use googleapis_tonic_google_pubsub_v1::google::pubsub::v1::PubsubMessage;

use crate::kafka::Record;

/// Pub/Sub's limits on one message (cloud.google.com/pubsub/quotas#resource_limits).
const MAX_ATTRIBUTES: usize = 100;
const MAX_NAME_BYTES: usize = 256;
const MAX_VALUE_BYTES: usize = 1024;
/// 10 MB for a whole publish request, of which the message may be one; some of it is left for the request's own frame.
pub(super) const MAX_MESSAGE_BYTES: usize = 10_000_000 - 4096;

/// Turns one record of `topic` into a message; the count is of foreign headers that no attribute can carry.
///
/// Incoming `kafka-` and `warm-region-` headers are dropped before ours are added, so that no producer can forge them.
///
/// # Errors
/// Why no message can carry the record: it has no data, or its attributes or size break Pub/Sub's limits.
pub(super) fn message(topic: &str, record: Record) -> Result<(PubsubMessage, usize), String> {
    let data = match record.value {
        None => return Err("no value (a tombstone)".to_owned()),
        Some(value) if value.is_empty() => return Err("empty value".to_owned()),
        Some(value) => value,
    };
    let mut attributes = HashMap::with_capacity(8);
    let mut dropped = 0;
    for header in record.headers {
        if header.name.starts_with("kafka-") || header.name.starts_with("warm-region-") {
            continue;
        }
        let ours = header.name.starts_with("warm-");
        match String::from_utf8(header.value.unwrap_or_default()) {
            Ok(value) if ours || is_attribute_name(&header.name) => {
                attributes.insert(header.name, value);
            }
            Err(_) if ours => return Err(format!("header {} is not UTF-8", header.name)),
            _ => dropped += 1,
        }
    }
    if let Some(regions) = attributes.get("warm-regions") {
        let marks: Vec<String> = regions
            .split(',')
            .map(str::trim)
            .filter(|region| !region.is_empty())
            .map(|region| format!("warm-region-{region}"))
            .collect();
        // Without any region there is no subscription to filter for: all get it, and each will refuse it by name.
        if !marks.is_empty() {
            attributes.extend(marks.into_iter().map(|mark| (mark, "1".to_owned())));
            attributes.insert("warm-region-filtered".to_owned(), "1".to_owned());
        }
    }
    attributes.insert("kafka-topic".to_owned(), topic.to_owned());
    attributes.insert("kafka-partition".to_owned(), record.receipt.partition.to_string());
    attributes.insert("kafka-offset".to_owned(), record.receipt.offset.to_string());
    if let Some(timestamp_ms) = record.timestamp_ms {
        attributes.insert("kafka-timestamp".to_owned(), timestamp_ms.to_string());
    }
    if let Some(key) =
        record.key.and_then(|key| String::from_utf8(key).ok()).filter(|key| key.len() <= MAX_VALUE_BYTES)
    {
        attributes.insert("kafka-key".to_owned(), key);
    }
    within_limits(&attributes)?;
    let message = PubsubMessage { data: data.into(), attributes, ..PubsubMessage::default() };
    let size_bytes = prost::Message::encoded_len(&message);
    if size_bytes > MAX_MESSAGE_BYTES {
        return Err(format!("{size_bytes} bytes as a message; Pub/Sub takes 10 MB"));
    }
    Ok((message, dropped))
}

/// Whether a foreign header can be an attribute: Pub/Sub keeps `goog` for itself, and a name that was not UTF-8 (it
/// holds U+FFFD now) would not be the same name.
fn is_attribute_name(name: &str) -> bool {
    !name.is_empty() && !name.starts_with("goog") && !name.contains(char::REPLACEMENT_CHARACTER)
}

fn within_limits(attributes: &HashMap<String, String>) -> Result<(), String> {
    if attributes.len() > MAX_ATTRIBUTES {
        return Err(format!("{} attributes; Pub/Sub takes {MAX_ATTRIBUTES}", attributes.len()));
    }
    for (name, value) in attributes {
        if name.len() > MAX_NAME_BYTES {
            return Err(format!("an attribute name of {} bytes; Pub/Sub takes {MAX_NAME_BYTES}", name.len()));
        }
        if value.len() > MAX_VALUE_BYTES {
            return Err(format!(
                "attribute {name} of {} bytes; Pub/Sub takes {MAX_VALUE_BYTES}",
                value.len()
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::{Header, Receipt};

    fn record(value: Option<&[u8]>, headers: &[(&str, Option<&[u8]>)]) -> Record {
        Record {
            receipt: Receipt { partition: 3, offset: 17, assignment: 1 },
            timestamp_ms: Some(1_700_000_000_000),
            key: Some(b"0014".to_vec()),
            value: value.map(<[u8]>::to_vec),
            headers: headers
                .iter()
                .map(|(name, value)| Header { name: (*name).to_owned(), value: value.map(<[u8]>::to_vec) })
                .collect(),
        }
    }

    fn attributes(headers: &[(&str, Option<&[u8]>)]) -> HashMap<String, String> {
        message("urls", record(Some(b"https://e.com/"), headers)).unwrap().0.attributes
    }

    fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    const COORDINATES: [(&str, &str); 5] = [
        ("kafka-topic", "urls"),
        ("kafka-partition", "3"),
        ("kafka-offset", "17"),
        ("kafka-timestamp", "1700000000000"),
        ("kafka-key", "0014"),
    ];

    #[test]
    fn the_value_is_the_data_and_the_coordinates_are_attributes() {
        let (message, dropped) = message("urls", record(Some(b"\xffany bytes"), &[])).unwrap();
        assert_eq!(&message.data[..], b"\xffany bytes");
        assert_eq!(message.attributes, map(&COORDINATES));
        assert_eq!((dropped, message.ordering_key.as_str()), (0, ""));
    }

    #[test]
    fn headers_become_attributes_and_of_a_repeated_one_the_last_counts() {
        let got = attributes(&[
            ("warm-range", Some(b"bytes=0-1")),
            ("x", None),
            ("warm-range", Some(b"bytes=0-9")),
        ]);
        let mut expected = map(&COORDINATES);
        expected.extend(map(&[("warm-range", "bytes=0-9"), ("x", "")]));
        assert_eq!(got, expected);
    }

    #[test]
    fn regions_are_marked_for_subscription_filters_and_cannot_be_forged() {
        let got = attributes(&[
            ("kafka-offset", Some(b"0")),
            ("warm-region-asia", Some(b"1")),
            ("warm-region-filtered", Some(b"0")),
            ("warm-regions", Some(b"eu, us")),
        ]);
        let mut expected = map(&COORDINATES);
        expected.extend(map(&[
            ("warm-regions", "eu, us"),
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
        let (message, dropped) = message("urls", record(Some(b"u"), &headers)).unwrap();
        assert_eq!(dropped, 4);
        assert_eq!(message.attributes["kept"], "y");
        assert_eq!(message.attributes.len(), COORDINATES.len() + 1);
    }

    #[test]
    fn a_key_that_is_binary_or_too_long_is_left_out() {
        for key in [b"\xff".to_vec(), vec![b'k'; 1025]] {
            let mut record = record(Some(b"u"), &[]);
            record.key = Some(key);
            assert!(!message("urls", record).unwrap().0.attributes.contains_key("kafka-key"));
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
            let reason = message("urls", record(value, &headers)).unwrap_err();
            assert!(reason.contains(expected), "{reason}");
        }
    }
}
