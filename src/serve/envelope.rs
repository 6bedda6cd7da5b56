//! The body of a wrapped Pub/Sub push: from bytes to the one message in it, or to why there is none.
//!
//! Only the envelope is judged here. Whether the decoded data is a URL is `WarmRequest::parse`'s to say, since the two
//! failures are answered differently: a body that is no push always gets 400, bad data goes by `--malformed`.
//! The shape is that of <https://cloud.google.com/pubsub/docs/push>.
//!
//! One pass over the text finds the members that matter; their values are kept as JSON text and decoded afterwards.
//! Next to read: `request.rs`.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use base64::{DecodeError, Engine as _};
use jiff::Timestamp;
use serde::Deserializer;
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

/// The one message of a push. Text borrows from the body wherever JSON did not escape it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Push<'a> {
    /// What was published, decoded; empty where the message has none.
    pub(crate) data: Vec<u8>,
    /// By name, so that the order in which options are read, and with it the first refusal, is always the same.
    pub(crate) attributes: BTreeMap<Cow<'a, str>, Cow<'a, str>>,
    pub(crate) message_id: Option<Cow<'a, str>>,
    /// When Pub/Sub accepted the message.
    pub(crate) publish_time: Option<Timestamp>,
    pub(crate) ordering_key: Option<Cow<'a, str>>,
    /// The full name, `projects/P/subscriptions/S`.
    pub(crate) subscription: Option<Cow<'a, str>>,
    /// From 1; sent only where the subscription has a dead-letter policy.
    pub(crate) delivery_attempt: Option<u32>,
}

/// Why a body is no push. Says what is wrong and where; never repeats the body.
#[derive(Debug)]
pub(crate) enum EnvelopeError {
    /// Bytes that are not UTF-8, from this offset on.
    NotUtf8(usize),
    ByteOrderMark,
    /// A bare URL: the subscription sends what it unwrapped.
    Unwrapped,
    /// A wrapped push where unwrapped ones are expected.
    Wrapped,
    /// An unwrapped push's attribute, by its name.
    HeaderNotUtf8(String),
    /// Holds a syntax error, with its line and column, never one that quotes a value.
    NotJson(serde_json::Error),
    NotAnObject,
    NoMessage,
    MessageTwice,
    MessageNotAnObject,
    /// No data, and nothing either that Pub/Sub puts beside it.
    MessageEmpty,
    DataTwice,
    DataNotAString,
    /// The offset of the first character that does not fit; the length where one is missing.
    DataNotBase64(usize),
}

/// Reads the body of one push request.
///
/// The body is exactly one JSON object in UTF-8 whose `message` is an object. `data` is base64 of either alphabet,
/// with or without padding and with nothing else in it. A message without data (absent, null or empty) is a push as
/// long as it has an id, a publish time or attributes: Pub/Sub allows messages of attributes alone, and one that was
/// answered like a foreign body could never be acknowledged.
///
/// A second `message` or `data` is an error: two parsers could see two different messages. Every other member is used
/// if its value is usable and skipped if it is not, whether it is unknown, of another type or deeply nested. Members are
/// read in camel case and in snake case: Pub/Sub sends both at once, and camel case wins.
///
/// # Errors
/// [`EnvelopeError`] for every other body. The size is not checked; the caller has read no more than it allows.
pub(crate) fn parse(body: &[u8]) -> Result<Push<'_>, EnvelopeError> {
    // Up front and for the whole body, because the JSON parser does not look into the strings that it skips.
    let text = std::str::from_utf8(body).map_err(|error| EnvelopeError::NotUtf8(error.valid_up_to()))?;
    let mut reader = Reader::default();
    let mut json = serde_json::Deserializer::from_str(text);
    let read = json.deserialize_map(&mut reader).and_then(|()| json.end());
    read.map_err(|error| reader.reason(text, error))?;
    reader.finish()
}

impl Push<'_> {
    /// The attributes, as `WarmRequest::parse` takes them.
    pub(crate) fn options(&self) -> impl Iterator<Item = (&str, &str)> {
        self.attributes.iter().map(|(name, value)| (name.as_ref(), value.as_ref()))
    }
}

/// The state of one pass over a body; as a visitor it reads the outer object.
#[derive(Default)]
struct Reader<'a> {
    push: Push<'a>,
    messages: u32,
    data: Once<'a>,
}

impl<'a> Visitor<'a> for &mut Reader<'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut members: A) -> Result<(), A::Error> {
        while let Some(name) = members.next_key::<&'a RawValue>()? {
            match string(name.get()).as_deref() {
                Some("message") => {
                    self.messages = self.messages.saturating_add(1);
                    if self.messages == 1 {
                        let read = |name: Cow<'a, str>, value| self.message_member(&name, value);
                        members.next_value_seed(Members(read))?;
                    } else {
                        members.next_value::<IgnoredAny>()?;
                    }
                }
                Some(name) => self.outer_member(name, members.next_value::<&'a RawValue>()?.get()),
                None => _ = members.next_value::<IgnoredAny>()?,
            }
        }
        Ok(())
    }
}

impl<'a> Reader<'a> {
    fn outer_member(&mut self, name: &str, value: &'a str) {
        let push = &mut self.push;
        match name {
            "subscription" => Spelling::Camel.fill(&mut push.subscription, || non_empty_string(value)),
            "deliveryAttempt" => Spelling::Camel.fill(&mut push.delivery_attempt, || count(value)),
            "delivery_attempt" => Spelling::Snake.fill(&mut push.delivery_attempt, || count(value)),
            _ => {}
        }
    }

    fn message_member(&mut self, name: &str, value: &'a str) {
        let push = &mut self.push;
        match name {
            "data" => self.data.set(value),
            "attributes" => {
                if let Some(attributes) = attributes(value) {
                    push.attributes = attributes;
                }
            }
            "messageId" => Spelling::Camel.fill(&mut push.message_id, || non_empty_string(value)),
            "message_id" => Spelling::Snake.fill(&mut push.message_id, || non_empty_string(value)),
            "publishTime" => Spelling::Camel.fill(&mut push.publish_time, || time(value)),
            "publish_time" => Spelling::Snake.fill(&mut push.publish_time, || time(value)),
            "orderingKey" => Spelling::Camel.fill(&mut push.ordering_key, || non_empty_string(value)),
            "ordering_key" => Spelling::Snake.fill(&mut push.ordering_key, || non_empty_string(value)),
            _ => {}
        }
    }

    /// What the body is instead of JSON of the right shape; called on failure only.
    fn reason(&self, text: &str, error: serde_json::Error) -> EnvelopeError {
        if text.starts_with('\u{feff}') {
            EnvelopeError::ByteOrderMark
        } else if text.trim_start().starts_with("http") {
            EnvelopeError::Unwrapped
        } else if !error.is_data() {
            EnvelopeError::NotJson(error)
        } else if self.messages == 0 {
            EnvelopeError::NotAnObject
        } else {
            EnvelopeError::MessageNotAnObject
        }
    }

    /// Judges what was read and decodes the data.
    fn finish(self) -> Result<Push<'a>, EnvelopeError> {
        let mut push = self.push;
        match self.messages {
            0 => return Err(EnvelopeError::NoMessage),
            1 => {}
            _ => return Err(EnvelopeError::MessageTwice),
        }
        push.data = match self.data {
            Once::Absent | Once::Present("null") => Vec::new(),
            Once::Present(value) if value.starts_with('"') => {
                // It is no text where it holds a lone surrogate, which is no base64 either.
                decode(&string(value).ok_or(EnvelopeError::DataNotBase64(0))?)?
            }
            Once::Present(_) => return Err(EnvelopeError::DataNotAString),
            Once::Repeated => return Err(EnvelopeError::DataTwice),
        };
        let is_empty = push.data.is_empty()
            && push.message_id.is_none()
            && push.publish_time.is_none()
            && push.attributes.is_empty();
        if is_empty { Err(EnvelopeError::MessageEmpty) } else { Ok(push) }
    }
}

/// Which of its two spellings a member's name has.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Spelling {
    Camel,
    Snake,
}

impl Spelling {
    /// Fills the field with the value if that is usable, and if no value in camel case is there already.
    fn fill<T>(self, field: &mut Option<T>, value: impl FnOnce() -> Option<T>) {
        if (self == Self::Camel || field.is_none())
            && let Some(value) = value()
        {
            *field = Some(value);
        }
    }
}

/// The JSON text of a member that may be there once.
#[derive(Clone, Copy, Default)]
enum Once<'a> {
    #[default]
    Absent,
    Present(&'a str),
    Repeated,
}

impl<'a> Once<'a> {
    fn set(&mut self, value: &'a str) {
        *self = match self {
            Self::Absent => Self::Present(value),
            Self::Present(_) | Self::Repeated => Self::Repeated,
        };
    }
}

/// Passes each member of a JSON object to a function: its name, unescaped, and the JSON text of its value.
///
/// Values are checked against the grammar and skipped without recursion, so that no nesting is too deep. Names are
/// taken as raw JSON too: a lone surrogate is valid JSON (RFC 8259, section 8.2) but no `str`, and such a member is
/// skipped. The visitor knows maps only: a derived one would let an array stand for an object, in field order.
struct Members<F>(F);

impl<'a, F: FnMut(Cow<'a, str>, &'a str)> Visitor<'a> for Members<F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'a>>(mut self, mut members: A) -> Result<(), A::Error> {
        while let Some((name, value)) = members.next_entry::<&'a RawValue, &'a RawValue>()? {
            if let Some(name) = string(name.get()) {
                (self.0)(name, value.get());
            }
        }
        Ok(())
    }
}

impl<'a, F: FnMut(Cow<'a, str>, &'a str)> DeserializeSeed<'a> for Members<F> {
    type Value = ();

    fn deserialize<D: Deserializer<'a>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_map(self)
    }
}

/// The string that a JSON value's text stands for; `None` for other types and for lone surrogates.
fn string(value: &str) -> Option<Cow<'_, str>> {
    let inner = value.strip_prefix('"')?.strip_suffix('"')?;
    if inner.contains('\\') {
        serde_json::from_str(value).ok().map(Cow::Owned)
    } else {
        Some(Cow::Borrowed(inner))
    }
}

fn non_empty_string(value: &str) -> Option<Cow<'_, str>> {
    string(value).filter(|text| !text.is_empty())
}

fn time(value: &str) -> Option<Timestamp> {
    string(value)?.parse().ok()
}

/// A whole number, also one written as a string.
fn count(value: &str) -> Option<u32> {
    string(value).as_deref().unwrap_or(value).parse().ok()
}

/// The members whose values are strings; of a repeated name the last one. `None` where the value is no object.
fn attributes(value: &str) -> Option<BTreeMap<Cow<'_, str>, Cow<'_, str>>> {
    let mut attributes = BTreeMap::new();
    let add = |name, value| {
        if let Some(value) = string(value) {
            attributes.insert(name, value);
        }
    };
    serde_json::Deserializer::from_str(value).deserialize_map(Members(add)).ok()?;
    Some(attributes)
}

/// Each of the four engines takes one alphabet and one way to end, so that mixtures and half a padding are errors.
fn decode(text: &str) -> Result<Vec<u8>, EnvelopeError> {
    let is_padded = text.ends_with('=');
    // The usual alphabet is tried before it is looked for: what decodes holds nothing of the other one.
    if let Ok(data) = if is_padded { STANDARD.decode(text) } else { STANDARD_NO_PAD.decode(text) } {
        return Ok(data);
    }
    let engine = match (text.contains(['-', '_']), is_padded) {
        (false, true) => STANDARD,
        (false, false) => STANDARD_NO_PAD,
        (true, true) => URL_SAFE,
        (true, false) => URL_SAFE_NO_PAD,
    };
    engine.decode(text).map_err(|error| {
        EnvelopeError::DataNotBase64(match error {
            DecodeError::InvalidByte(at, _) | DecodeError::InvalidLastSymbol(at, _) => at,
            DecodeError::InvalidLength(_) | DecodeError::InvalidPadding => text.len(),
        })
    })
}

impl fmt::Display for EnvelopeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wrapped => {
                return f.write_str("not an unwrapped push: it is wrapped; use --payload wrapped");
            }
            Self::HeaderNotUtf8(name) => {
                return write!(f, "not an unwrapped push: header {name} is not UTF-8");
            }
            _ => f.write_str("not a push envelope: ")?,
        }
        match self {
            Self::Wrapped | Self::HeaderNotUtf8(_) => Ok(()),
            Self::NotUtf8(at) => write!(f, "the body is not UTF-8 from byte {at} on"),
            Self::ByteOrderMark => f.write_str("the body starts with a byte-order mark"),
            Self::Unwrapped => {
                f.write_str("the body is a bare URL; use --payload unwrapped, or switch unwrapping off")
            }
            Self::NotJson(error) => write!(f, "the body is not JSON: {error}"),
            Self::NotAnObject => f.write_str("the body is not a JSON object"),
            Self::NoMessage => f.write_str("there is no message"),
            Self::MessageTwice => f.write_str("message is there twice"),
            Self::MessageNotAnObject => f.write_str("message is not an object"),
            Self::MessageEmpty => {
                f.write_str("message has no data, and no id, publish time or attributes either")
            }
            Self::DataTwice => f.write_str("message.data is there twice"),
            Self::DataNotAString => f.write_str("message.data is not a string"),
            Self::DataNotBase64(at) => write!(f, "message.data is not base64 from character {at} on"),
        }
    }
}

impl std::error::Error for EnvelopeError {}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::request::WarmRequest;

    const DATA: &str = "aHR0cHM6Ly9leGFtcGxlLmNvbS8=";
    const URL: &[u8] = b"https://example.com/";

    fn reason(body: &str) -> String {
        parse(body.as_bytes()).unwrap_err().to_string()
    }

    /// A push of `DATA` whose message holds `more`, and whose outer object holds `outside`, each starting with a comma.
    fn push_with(more: &str, outside: &str) -> String {
        format!(r#"{{"message":{{"data":"{DATA}"{more}}}{outside}}}"#)
    }

    #[test]
    fn every_row_of_the_corpus_is_judged_as_its_manifest_says() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpora/push_envelopes");
        let manifest = std::fs::read_to_string(folder.join("manifest.tsv")).unwrap();
        let mut rows = 0;
        for row in manifest.lines().filter(|row| !row.starts_with("# ")) {
            let [file, expected, detail] = row.split('\t').collect::<Vec<_>>()[..] else { panic!("{row:?}") };
            let body = std::fs::read(folder.join(file)).unwrap();
            let warmed = parse(&body).map_err(|error| error.to_string()).and_then(|push| {
                WarmRequest::parse(&push.data, push.options()).map_err(|error| error.reason())
            });
            match (expected, warmed) {
                ("accept", Ok(request)) => assert_eq!(request.url().as_str(), detail, "{file}"),
                ("reject", Err(reason)) => {
                    assert!(!reason.contains("aHR0c"), "{file} repeats the body: {reason}")
                }
                (_, warmed) => panic!("{file} is to be {expected}ed ({detail}), got {warmed:?}"),
            }
            rows += 1;
        }
        assert_eq!(rows, 79);
    }

    #[test]
    fn a_body_as_the_service_sends_it_is_read_whole() {
        let body = format!(
            r#"{{"deliveryAttempt":3,"message":{{"attributes":{{"kafka-offset":"7","kafka-topic":"urls"}},
            "data":"{DATA}","messageId":"2070443601311540","message_id":"2070443601311540",
            "orderingKey":"k","publishTime":"2026-02-26T19:13:55.749Z","publish_time":"2026-02-26T19:13:55.749Z"}},
            "subscription":"projects/p-1/subscriptions/s-1"}}"#
        );
        let push = parse(body.as_bytes()).unwrap();
        assert_eq!(push.data, URL);
        assert_eq!(push.options().collect::<Vec<_>>(), [("kafka-offset", "7"), ("kafka-topic", "urls")]);
        assert_eq!(push.message_id.as_deref(), Some("2070443601311540"));
        assert_eq!(push.publish_time, Some("2026-02-26T19:13:55.749Z".parse().unwrap()));
        assert_eq!(push.ordering_key.as_deref(), Some("k"));
        assert_eq!(push.subscription.as_deref(), Some("projects/p-1/subscriptions/s-1"));
        assert_eq!(push.delivery_attempt, Some(3));
        assert!(matches!(push.message_id, Some(Cow::Borrowed(_))), "nothing is copied that is not escaped");
    }

    #[test]
    fn a_message_of_attributes_alone_is_a_push_with_empty_data() {
        for message in [
            r#"{"messageId":"1"}"#,
            r#"{"data":"","message_id":"1"}"#,
            r#"{"data":null,"publishTime":"2026-01-01T00:00:00Z"}"#,
            r#"{"attributes":{"a":"b"}}"#,
        ] {
            let body = format!(r#"{{"message":{message}}}"#);
            assert_eq!(parse(body.as_bytes()).unwrap().data, b"", "{body}");
        }
        for message in
            ["{}", r#"{"data":""}"#, r#"{"messageId":1}"#, r#"{"attributes":{"a":1},"publishTime":"soon"}"#]
        {
            let body = format!(r#"{{"message":{message}}}"#);
            assert!(matches!(parse(body.as_bytes()), Err(EnvelopeError::MessageEmpty)), "{body}");
        }
    }

    #[test]
    fn what_is_no_push_is_told_why_without_repeating_it() {
        for (body, expected) in [
            ("", "not JSON: EOF while parsing a value at line 1 column 0"),
            ("\u{feff}{}", "byte-order mark"),
            (" https://example.com/secret", "unwrapping"),
            ("{\n\"message\" {}}", "expected `:` at line 2 column 11"),
            ("\"secret\"", "not a JSON object"),
            ("[{\"message\":{}}]", "not a JSON object"),
            ("{} {}", "trailing characters"),
            ("{\"message\":{},}", "trailing comma"),
            ("{\"a\nb\":1}", "control character"),
            ("{}", "no message"),
            (r#"{"message":"secret"}"#, "message is not an object"),
            (r#"{"message":[["secret"]]}"#, "message is not an object"),
            (r#"{"message":{"data":"YQ=="},"mess\u0061ge":{"data":"Yg=="}}"#, "message is there twice"),
            (r#"{"message":{"data":"YQ==","d\u0061ta":null}}"#, "data is there twice"),
            (r#"{"message":{"data":["secret"]}}"#, "data is not a string"),
            (r#"{"message":{"data":7}}"#, "data is not a string"),
            (r#"{"message":{"data":"YWJj secret"}}"#, "from character 4"),
            (r#"{"message":{"data":"\ud800secret"}}"#, "data is not base64"),
        ] {
            let reason = reason(body);
            assert!(
                reason.starts_with("not a push envelope: ") && reason.contains(expected),
                "{body:?}: {reason}"
            );
            assert!(!reason.contains("secret"), "{reason}");
        }
        // In a string that is skipped, where the JSON parser would not notice.
        let broken = b"{\"x\":\"\xff\",\"message\":{\"data\":\"YQ==\"}}";
        assert!(matches!(parse(broken), Err(EnvelopeError::NotUtf8(6))));
    }

    #[test]
    fn base64_has_one_alphabet_at_a_time_and_all_of_its_padding_or_none() {
        let data = |text: &str| {
            parse(format!(r#"{{"message":{{"data":"{text}"}}}}"#).as_bytes()).map(|push| push.data)
        };
        for text in ["+/8A", "-_8A", "-_8", "-_8=", "+/8", "+/8=", "YQ", "YQ==", r"\u002b\u002f8="] {
            assert!(data(text).is_ok(), "{text}");
        }
        for text in [
            "+_8A", "-/8A", "YQ=", "YQ===", "=", "====", "Y", "YR==", "YQ==YQ==", "YWJ j", r"YWJj\n",
            " YWJj", "YWé=",
        ] {
            assert!(matches!(data(text), Err(EnvelopeError::DataNotBase64(_))), "{text}");
        }
    }

    #[test]
    fn what_is_not_needed_never_rejects_whatever_it_holds() {
        for more in [
            r#","attributes":[1],"messageId":{},"publishTime":"soon","orderingKey":7"#,
            r#","messageId":"1","messageId":2,"message_id":null,"attributes":{},"attributes":null"#,
            r#","a\ud800b":1,"x":"\udfff","attributes":{"\ud800":"a","b":"\ud800"}"#,
            r#","x":1e999,"y":-0.0E-9,"Data":[],"message":{"data":"b"}"#,
        ] {
            let body = push_with(
                more,
                r#","subscription":[[]],"deliveryAttempt":-1.5e3,"data":"YQ==","x":{"a":1,"a":2}"#,
            );
            let push = parse(body.as_bytes()).unwrap_or_else(|error| panic!("{body}: {error}"));
            assert_eq!(
                (push.data.as_slice(), push.subscription, push.delivery_attempt),
                (URL, None, None),
                "{body}"
            );
            assert_eq!(
                (push.publish_time, push.ordering_key, push.attributes.len()),
                (None, None, 0),
                "{body}"
            );
        }
    }

    #[test]
    fn no_nesting_is_too_deep_where_it_does_not_matter() {
        let (open, close) = ("[".repeat(10_000), "]".repeat(10_000));
        let objects = format!("{}1{}", r#"{"a":"#.repeat(10_000), "}".repeat(10_000));
        let more =
            format!(r#","x":{open}{close},"attributes":{{"a":{objects},"b":"c"}},"messageId":{open}{close}"#);
        let body = push_with(&more, &format!(r#","y":{objects},"subscription":{open}{close}"#));
        let push = parse(body.as_bytes()).unwrap();
        assert_eq!((push.data.as_slice(), push.options().collect::<Vec<_>>()), (URL, vec![("b", "c")]));
        assert!(matches!(parse(open.as_bytes()), Err(EnvelopeError::NotAnObject)));
        let data = format!(r#"{{"message":{{"data":{open}{close}}}}}"#);
        assert!(matches!(parse(data.as_bytes()), Err(EnvelopeError::DataNotAString)));
    }

    #[test]
    fn camel_case_wins_where_it_is_usable_whichever_comes_first() {
        for (more, id) in [
            (r#","messageId":"camel","message_id":"snake""#, "camel"),
            (r#","message_id":"snake","messageId":"camel""#, "camel"),
            (r#","message_id":"snake","messageId":7"#, "snake"),
            (r#","messageId":"","message_id":"snake""#, "snake"),
        ] {
            assert_eq!(
                parse(push_with(more, "").as_bytes()).unwrap().message_id.as_deref(),
                Some(id),
                "{more}"
            );
        }
        for (outside, attempt) in [
            (r#","deliveryAttempt":5"#, Some(5)),
            (r#","deliveryAttempt":"5""#, Some(5)),
            (r#","delivery_attempt":4,"deliveryAttempt":"5""#, Some(5)),
            (r#","deliveryAttempt":null,"delivery_attempt":4"#, Some(4)),
            (r#","deliveryAttempt":4294967296"#, None),
        ] {
            assert_eq!(
                parse(push_with("", outside).as_bytes()).unwrap().delivery_attempt,
                attempt,
                "{outside}"
            );
        }
    }

    #[test]
    fn of_a_repeated_attribute_the_last_string_counts() {
        let body = push_with(r#","attributes":{"a":"1","b":true,"a":"2","\u0061":"\u00fc","a":null}"#, "");
        assert_eq!(parse(body.as_bytes()).unwrap().options().collect::<Vec<_>>(), [("a", "ü")]);
    }

    /// Up to seven members with these names, each with a value of any type.
    fn members(names: &[&'static str]) -> impl Strategy<Value = Vec<(&'static str, &'static str)>> {
        let values = vec![
            r#""YQ==""#,
            r#""\u0059Q==""#,
            r#""aHR0cDovL2E=""#,
            r#""""#,
            r#""Y Q""#,
            r#""\ud800""#,
            "7",
            "-0.5e3",
            "1e999",
            "null",
            "true",
            "[]",
            r#"[{"data":"YQ=="}]"#,
            r#"{"a":{"data":1}}"#,
        ];
        let member = (proptest::sample::select(names.to_vec()), proptest::sample::select(values));
        proptest::collection::vec(member, 0..7)
    }

    fn object(members: &[(&str, &str)]) -> String {
        let members: Vec<String> =
            members.iter().map(|(name, value)| format!("\"{name}\" : {value}")).collect();
        format!("{{ {} }}", members.join(",\n"))
    }

    /// A member's name; empty where it is no text.
    fn unescaped(name: &str) -> String {
        serde_json::from_str(&format!("\"{name}\"")).unwrap_or_default()
    }

    proptest! {
        #[test]
        fn a_damaged_body_never_panics(
            damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>(), 0..3_u8), 1..8),
        ) {
            let outside = r#","subscription":"s","deliveryAttempt":"5","x":[1,{"y":"\u00e9"}]"#;
            let mut body = push_with(
                r#","attributes":{"a":"b\n"},"messageId":"1","publishTime":"2026-01-01T00:00:00Z""#,
                outside,
            )
            .into_bytes();
            for (at, byte, kind) in damage {
                let at = at.index(body.len());
                match kind {
                    0 => body[at] = byte,
                    1 => body.insert(at, byte),
                    _ => body.truncate(at.max(1)),
                }
            }
            if let Err(error) = parse(&body) {
                prop_assert!(!error.to_string().is_empty());
            }
        }

        #[test]
        fn members_in_any_order_and_number_are_judged_by_the_rules(
            outer in members(&["subscription", "deliveryAttempt", "delivery_attempt", "x", "data", "\\ud800"]),
            message in members(&[
                "data", "d\\u0061ta", "messageId", "message_id", "messag\\u0065Id", "orderingKey", "ordering_key",
                "message", "x", "\\udc00",
            ]),
            at in any::<proptest::sample::Index>(),
            again in proptest::option::weighted(0.1, any::<proptest::sample::Index>()),
        ) {
            let text = object(&message);
            let mut all: Vec<(&str, &str)> = outer.clone();
            all.insert(at.index(outer.len() + 1), ("message", &text));
            if let Some(again) = again {
                all.insert(again.index(outer.len() + 2), ("mess\\u0061ge", "{}"));
            }
            let body = object(&all);
            // The last usable value in camel case, else the first one in snake case.
            let text_of = |members: &[(&str, &str)], camel: &str, snake: &str| {
                let usable = |name: &str| {
                    let named = members.iter().filter(|(found, _)| unescaped(found) == name);
                    let texts = named.filter_map(|(_, value)| serde_json::from_str::<String>(value).ok());
                    texts.filter(|text| !text.is_empty()).collect::<Vec<_>>()
                };
                usable(camel).pop().or(usable(snake).into_iter().next())
            };
            let data: Vec<&str> = message
                .iter()
                .filter(|(name, _)| unescaped(name) == "data")
                .map(|(_, value)| *value)
                .collect();
            let id = text_of(&message, "messageId", "message_id");
            match parse(body.as_bytes()) {
                Err(EnvelopeError::MessageTwice) => prop_assert!(again.is_some()),
                Err(EnvelopeError::DataTwice) => prop_assert!(data.len() > 1),
                Err(EnvelopeError::DataNotAString) => prop_assert!(!data[0].starts_with('"')),
                Err(EnvelopeError::DataNotBase64(_)) => {
                    let text = serde_json::from_str::<String>(data[0]).unwrap_or("no text".to_owned());
                    prop_assert!(STANDARD.decode(&text).is_err(), "{}", body);
                }
                Err(EnvelopeError::MessageEmpty) => prop_assert!(id.is_none()),
                Err(error) => prop_assert!(false, "{}: {}", body, error),
                Ok(push) => {
                    prop_assert!(again.is_none() && data.len() <= 1, "{}", body);
                    let text = data.first().and_then(|data| serde_json::from_str::<String>(data).ok());
                    prop_assert_eq!(STANDARD.decode(text.unwrap_or_default()).ok(), Some(push.data));
                    prop_assert_eq!(push.message_id.map(Cow::into_owned), id);
                    let key = text_of(&message, "orderingKey", "ordering_key");
                    prop_assert_eq!(push.ordering_key.map(Cow::into_owned), key);
                    let subscription = text_of(&outer, "subscription", "subscription");
                    prop_assert_eq!(push.subscription.map(Cow::into_owned), subscription);
                }
            }
        }

        #[test]
        fn what_was_published_comes_out_again(
            data in proptest::collection::vec(any::<u8>(), 1..200),
            attributes in proptest::collection::btree_map(any::<String>(), any::<String>(), 0..10),
            id in "[0-9]{1,20}",
            attempt in proptest::option::of(any::<u32>()),
        ) {
            for engine in [STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD] {
                let body = json!({
                    "message": {"data": engine.encode(&data), "attributes": attributes, "messageId": id},
                    "deliveryAttempt": attempt,
                })
                .to_string();
                let push = parse(body.as_bytes()).unwrap();
                prop_assert_eq!(&push.data, &data);
                prop_assert!(push.options().eq(attributes.iter().map(|(name, value)| (name.as_str(), value.as_str()))));
                prop_assert_eq!(push.message_id.as_deref(), Some(id.as_str()));
                prop_assert_eq!(push.delivery_attempt, attempt);
            }
        }
    }
}
