//! Publish requests as they go over the wire, built message by message without values in between.
//!
//! The fields are those of `google.pubsub.v1.PublishRequest` (topic 1, messages 2) and `PubsubMessage` (data 1,
//! attributes 2), encoded as Protocol Buffers say (protobuf.dev/programming-guides/encoding). A request that is kept in
//! this form is tried again without being copied or encoded anew.

use std::ops::Range;

use bytes::{BufMut, Bytes};
use googleapis_tonic_google_pubsub_v1::google::pubsub::v1::PubsubMessage;
use prost::Message as _;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};

use super::TopicName;

/// A publish request in the making.
#[derive(Debug)]
pub(crate) struct RequestBuilder {
    bytes: Vec<u8>,
    head_bytes: usize,
    ends: Vec<usize>,
}

/// A publish request that is ready to go.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    /// Field `topic`, then the messages.
    bytes: Bytes,
    head_bytes: usize,
    /// Where each message ends.
    ends: Vec<usize>,
}

impl RequestBuilder {
    /// Without messages yet, with memory for so many bytes.
    pub(crate) fn new(topic: &TopicName, capacity_bytes: usize) -> Self {
        let mut bytes = Vec::with_capacity(capacity_bytes);
        prost::encoding::string::encode(1, &topic.as_str().to_owned(), &mut bytes);
        Self { head_bytes: bytes.len(), bytes, ends: Vec::new() }
    }

    /// Adds a message of these data and of attributes that [`put_attribute`] has encoded, in pieces.
    pub(crate) fn add(&mut self, data: &[u8], attributes: &[&[u8]]) {
        let message_bytes = message_bytes(data, attributes);
        self.bytes.reserve(message_bytes + 12);
        encode_key(2, WireType::LengthDelimited, &mut self.bytes);
        encode_varint(message_bytes as u64, &mut self.bytes);
        if !data.is_empty() {
            put_bytes(&mut self.bytes, 1, data);
        }
        for piece in attributes {
            self.bytes.put_slice(piece);
        }
        self.ends.push(self.bytes.len());
    }

    /// How many messages it has.
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// How large it is on the wire.
    pub(crate) fn size_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Ends it.
    pub(crate) fn build(self) -> Request {
        Request { bytes: self.bytes.into(), head_bytes: self.head_bytes, ends: self.ends }
    }
}

impl Request {
    /// How many messages it has.
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// How large it is on the wire.
    pub(crate) fn size_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The request of these messages alone; all of them without a copy.
    pub(crate) fn part(&self, messages: Range<usize>) -> Bytes {
        if messages == (0..self.len()) {
            return self.bytes.clone();
        }
        let (start, end) = (self.start(messages.start), self.start(messages.end));
        [&self.bytes[..self.head_bytes], &self.bytes[start..end]].concat().into()
    }

    /// One message, decoded; none where there is no such message.
    pub(crate) fn message(&self, index: usize) -> Option<PubsubMessage> {
        let mut bytes = self.bytes.get(self.start(index)..*self.ends.get(index)?)?;
        prost::encoding::decode_key(&mut bytes).ok()?;
        PubsubMessage::decode_length_delimited(bytes).ok()
    }

    fn start(&self, index: usize) -> usize {
        index.checked_sub(1).map_or(self.head_bytes, |before| self.ends[before])
    }
}

/// How large a message is, without the key and length that stand before it in a request (at most 6 bytes).
pub(crate) fn message_bytes(data: &[u8], attributes: &[&[u8]]) -> usize {
    let data_bytes = match data.len() {
        0 => 0,
        len => key_len(1) + encoded_len_varint(len as u64) + len,
    };
    data_bytes + attributes.iter().map(|piece| piece.len()).sum::<usize>()
}

/// Adds one attribute of a message: an entry of the map `attributes` (field 2) with its key (1) and value (2).
#[inline]
pub(crate) fn put_attribute(buffer: &mut Vec<u8>, name: &str, value: &str) {
    // Most lengths fit into one byte, and most of a bridge's work beside librdkafka's is done here.
    const ONE_BYTE: usize = 0x7f;
    let entry_bytes = 4 + name.len() + value.len();
    if entry_bytes > ONE_BYTE || name.is_empty() || value.is_empty() {
        put_long_attribute(buffer, name, value);
        return;
    }
    #[expect(clippy::cast_possible_truncation, reason = "no longer than `entry_bytes`, which was looked at")]
    let [entry, name_bytes, value_bytes] = [entry_bytes, name.len(), value.len()].map(|length| length as u8);
    buffer.reserve(2 + entry_bytes);
    buffer.extend_from_slice(&[0x12, entry, 0x0a, name_bytes]);
    buffer.extend_from_slice(name.as_bytes());
    buffer.extend_from_slice(&[0x12, value_bytes]);
    buffer.extend_from_slice(value.as_bytes());
}

fn put_long_attribute(buffer: &mut Vec<u8>, name: &str, value: &str) {
    let field_bytes =
        |text: &str| if text.is_empty() { 0 } else { 1 + encoded_len_varint(text.len() as u64) + text.len() };
    encode_key(2, WireType::LengthDelimited, buffer);
    encode_varint((field_bytes(name) + field_bytes(value)) as u64, buffer);
    for (number, text) in [(1, name), (2, value)] {
        if !text.is_empty() {
            put_bytes(buffer, number, text.as_bytes());
        }
    }
}

fn put_bytes(buffer: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    encode_key(number, WireType::LengthDelimited, buffer);
    encode_varint(bytes.len() as u64, buffer);
    buffer.put_slice(bytes);
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use googleapis_tonic_google_pubsub_v1::google::pubsub::v1::PublishRequest;
    use proptest::prelude::*;

    use super::*;

    fn built(messages: &[(Vec<u8>, HashMap<String, String>)]) -> Request {
        let mut builder = RequestBuilder::new(&"projects/p/topics/urls".parse().unwrap(), 0);
        for (data, attributes) in messages {
            let mut encoded = Vec::new();
            for (name, value) in attributes {
                put_attribute(&mut encoded, name, value);
            }
            let (first, second) = encoded.split_at(encoded.len() / 2);
            builder.add(data, &[first, second]);
        }
        builder.build()
    }

    proptest! {
        /// What is built by hand is what the generated code reads, whole, in part, and one by one.
        #[test]
        fn requests_are_read_as_they_were_built(
            messages in prop::collection::vec(
                (prop::collection::vec(any::<u8>(), 0..300), prop::collection::hash_map(".{0,40}", ".{0,200}", 0..4)),
                1..12,
            ),
            cut in any::<prop::sample::Index>(),
        ) {
            let request = built(&messages);
            let expected: Vec<PubsubMessage> = messages
                .iter()
                .map(|(data, attributes)| PubsubMessage {
                    data: data.clone().into(),
                    attributes: attributes.clone(),
                    ..PubsubMessage::default()
                })
                .collect();
            let read = |bytes: Bytes| PublishRequest::decode(bytes).unwrap();
            let whole = read(request.part(0..request.len()));
            prop_assert_eq!(whole.topic, "projects/p/topics/urls");
            prop_assert_eq!(&whole.messages, &expected);
            prop_assert_eq!(request.size_bytes(), request.part(0..request.len()).len());
            let cut = cut.index(messages.len());
            let part = read(request.part(cut..messages.len()));
            prop_assert_eq!(part.topic, "projects/p/topics/urls");
            prop_assert_eq!(&part.messages[..], &expected[cut..]);
            for (index, message) in expected.into_iter().enumerate() {
                prop_assert_eq!(request.message(index), Some(message));
            }
            prop_assert_eq!(request.message(messages.len()), None);
        }
    }
}
