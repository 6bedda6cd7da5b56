//! Reads a `PublishRequest` where it lies: counts its messages and finds their parts, without decoding any of it.
//!
//! Decoding with generated types makes a map of attributes for every message, which costs more than all else that a
//! sink does; a walk over the field lengths costs a few nanoseconds a message.

use std::fmt;

/// The bytes are no protobuf message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

impl fmt::Display for Malformed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("not a protobuf message")
    }
}

impl std::error::Error for Malformed {}

/// What a request holds.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Count {
    /// Messages.
    pub messages: u64,
    /// One for a plain message, the lines for a packed one (`text/uri-list`).
    pub urls: u64,
}

/// Counts the messages of a `PublishRequest` and the URLs in them.
///
/// # Errors
/// The bytes are no protobuf message, as far as they had to be looked at.
pub fn count(request: &[u8]) -> Result<Count, Malformed> {
    let mut count = Count::default();
    for message in messages(request) {
        count.messages += 1;
        count.urls += message?.urls()?;
    }
    Ok(count)
}

/// The messages of a `PublishRequest`, in order; after an error nothing follows.
pub fn messages(request: &[u8]) -> impl Iterator<Item = Result<Message<'_>, Malformed>> {
    Fields { rest: request }.filter_map(|field| match field {
        Ok(Field { number: 2, payload: Some(message) }) => Some(Ok(Message { fields: message })),
        Ok(_) => None,
        Err(malformed) => Some(Err(malformed)),
    })
}

/// One `PubsubMessage`, undecoded.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    fields: &'a [u8],
}

impl<'a> Message<'a> {
    /// Its data; empty if it has none.
    ///
    /// Of a repeated field the first counts, though protobuf says the last: encoders write it once, and first of all.
    ///
    /// # Errors
    /// No protobuf message.
    pub fn data(self) -> Result<&'a [u8], Malformed> {
        Ok(find(self.fields, 1)?.unwrap_or_default())
    }

    /// The value of the first attribute of that name.
    ///
    /// # Errors
    /// No protobuf message.
    pub fn attribute(self, name: &str) -> Result<Option<&'a [u8]>, Malformed> {
        for field in (Fields { rest: self.fields }) {
            let field = field?;
            if let Field { number: 2, payload: Some(entry) } = field
                && find(entry, 1)?.unwrap_or_default() == name.as_bytes()
            {
                return Ok(Some(find(entry, 2)?.unwrap_or_default()));
            }
        }
        Ok(None)
    }

    /// How many URLs it carries: the lines of a `text/uri-list` that are neither empty nor comments, else one.
    fn urls(self) -> Result<u64, Malformed> {
        let data = self.data()?;
        // Only a message with a line feed can be a pack of more than one: the others need no look at their attributes.
        if memchr::memchr(b'\n', data).is_none() || self.attribute("content-type")? != Some(b"text/uri-list")
        {
            return Ok(1);
        }
        let lines = data.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
        let urls = lines.filter(|line| line.first().is_some_and(|first| *first != b'#')).count();
        Ok(urls as u64)
    }
}

/// The payload of the first length-delimited field of that number.
fn find(fields: &[u8], number: u64) -> Result<Option<&[u8]>, Malformed> {
    for field in (Fields { rest: fields }) {
        let field = field?;
        if field.number == number && field.payload.is_some() {
            return Ok(field.payload);
        }
    }
    Ok(None)
}

/// One field: its number and, if it is length-delimited, its payload.
struct Field<'a> {
    number: u64,
    payload: Option<&'a [u8]>,
}

/// The fields of a message, in order.
struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>, Malformed>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.rest = &[];
        }
        Some(field.ok_or(Malformed))
    }
}

impl<'a> Fields<'a> {
    #[inline]
    fn field(&mut self) -> Option<Field<'a>> {
        let tag = self.varint()?;
        let (number, wire_type) = (tag >> 3, tag & 7);
        let payload = match wire_type {
            0 => {
                self.varint()?;
                None
            }
            1 => {
                self.take(8)?;
                None
            }
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                Some(self.take(length)?)
            }
            5 => {
                self.take(4)?;
                None
            }
            // Groups, which proto3 does not have, and what does not exist.
            _ => return None,
        };
        (number > 0).then_some(Field { number, payload })
    }

    #[inline]
    fn varint(&mut self) -> Option<u64> {
        let (&first, rest) = self.rest.split_first()?;
        // Nearly all tags and most lengths are one byte.
        if first < 0x80 {
            self.rest = rest;
            return Some(u64::from(first));
        }
        let mut value = 0u64;
        for (index, &byte) in self.rest.iter().take(10).enumerate() {
            value |= u64::from(byte & 0x7f) << (7 * index);
            if byte < 0x80 {
                self.rest = &self.rest[index + 1..];
                return Some(value);
            }
        }
        None
    }

    #[inline]
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        Some(taken)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;

    #[derive(Clone, PartialEq, prost::Message)]
    struct PublishRequest {
        #[prost(string, tag = "1")]
        topic: String,
        #[prost(message, repeated, tag = "2")]
        messages: Vec<PubsubMessage>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    struct PubsubMessage {
        #[prost(bytes, tag = "1")]
        data: Vec<u8>,
        #[prost(map = "string, string", tag = "2")]
        attributes: HashMap<String, String>,
        #[prost(string, tag = "3")]
        message_id: String,
        #[prost(string, tag = "5")]
        ordering_key: String,
    }

    prop_compose! {
        fn any_message()(
            data in prop::collection::vec(any::<u8>(), 0..300),
            attributes in prop::collection::hash_map("[a-z-]{0,20}", ".{0,150}", 0..5),
            message_id in "[0-9]{0,5}",
            ordering_key in ".{0,9}",
        ) -> PubsubMessage {
            PubsubMessage { data, attributes, message_id, ordering_key }
        }
    }

    proptest! {
        #[test]
        fn finds_what_was_encoded(
            topic in ".{0,200}",
            encoded in prop::collection::vec(any_message(), 0..20),
        ) {
            let request = PublishRequest { topic, messages: encoded.clone() };
            let bytes = request.encode_to_vec();

            let found: Vec<Message> = messages(&bytes).collect::<Result<_, _>>()?;
            prop_assert_eq!(found.len(), encoded.len());
            for (found, encoded) in found.iter().zip(&encoded) {
                prop_assert_eq!(found.data()?, &encoded.data);
                for (name, value) in &encoded.attributes {
                    prop_assert_eq!(found.attribute(name)?, Some(value.as_bytes()));
                }
                prop_assert_eq!(found.attribute("ABSENT")?, None);
            }
            prop_assert_eq!(count(&bytes)?.messages, encoded.len() as u64);
        }

        #[test]
        fn takes_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            for message in messages(&bytes).map_while(Result::ok) {
                let _ = (message.data(), message.attribute("content-type"));
            }
            let _ = count(&bytes);
        }

        #[test]
        fn a_cut_request_is_malformed_or_shorter(cut in 1usize..60) {
            let message = PubsubMessage { data: vec![b'x'; 60], ..PubsubMessage::default() };
            let bytes = PublishRequest { topic: String::new(), messages: vec![message] }.encode_to_vec();
            prop_assert_eq!(count(&bytes[..bytes.len() - cut]), Err(Malformed));
        }
    }

    fn urls(data: &str, content_type: Option<&str>) -> u64 {
        let attributes =
            content_type.map(|value| ("content-type".to_owned(), value.to_owned())).into_iter().collect();
        let message =
            PubsubMessage { data: data.as_bytes().to_vec(), attributes, ..PubsubMessage::default() };
        let bytes = PublishRequest { topic: "t".to_owned(), messages: vec![message] }.encode_to_vec();
        count(&bytes).unwrap().urls
    }

    #[test]
    fn a_pack_counts_its_lines() {
        let packed = Some("text/uri-list");
        assert_eq!(urls("http://a/\r\nhttp://b/\r\n# no\r\n\r\nhttp://c/", packed), 3);
        assert_eq!(urls("http://a/", packed), 1);
        assert_eq!(urls("http://a/\r\nhttp://b/", None), 1);
        assert_eq!(urls("http://a/", None), 1);
    }
}
