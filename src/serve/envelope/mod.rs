//! The body of a wrapped Pub/Sub push: from bytes to the one message in it, or to why there is none.
//!
//! Only the envelope is judged here. Whether the decoded data is a URL is `WarmRequest::parse`'s to say, since the two
//! failures are answered differently: a body that is no push always gets 400, bad data goes by `--malformed`.
//! The shape is that of <https://cloud.google.com/pubsub/docs/push>.
//!
//! What is usual is read in one pass, by `quick`; all else, and every error, is for the thorough reading here. Next to
//! read: `request.rs`.

mod quick;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use base64::{DecodeError, Engine as _};
use jiff::Timestamp;
use serde::Deserializer as _;
use serde::de::{MapAccess, Visitor};
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
pub(crate) enum NotAPush {
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
/// Everything else is taken where it is usable and passed over where it is not, unknown or of the wrong type, however
/// deeply nested. Fields are read in camel case and in snake case: Pub/Sub sends both at once, and camel case wins.
///
/// # Errors
/// [`NotAPush`] for every other body. Size is not looked at; the caller has read no more than it allows.
pub(crate) fn parse(body: &[u8]) -> Result<Push<'_>, NotAPush> {
    // Up front and for the whole body, since the JSON parser does not look into the strings that it skips.
    let text = std::str::from_utf8(body).map_err(|error| NotAPush::NotUtf8(error.valid_up_to()))?;
    quick(text).map_or_else(|| thorough(text), Ok)
}

/// The push that `text` is, if it is a usual one; the very one then that [`thorough`] finds.
pub(crate) fn quick(text: &str) -> Option<Push<'_>> {
    quick::read(text)
}

/// Reads every body, each level by a scan of its own.
///
/// # Errors
/// As [`parse`].
pub(crate) fn thorough(text: &str) -> Result<Push<'_>, NotAPush> {
    let mut push = Push::default();
    let mut message = Once::Absent;
    for_each_member(text, |name, value| match OuterMember::named(&name) {
        OuterMember::Message => message.set(value),
        OuterMember::Subscription => {
            Spelling::Camel.fill(&mut push.subscription, || non_empty_string(value));
        }
        OuterMember::DeliveryAttempt(spelling) => spelling.fill(&mut push.delivery_attempt, || count(value)),
        OuterMember::Other => {}
    })
    .map_err(|error| not_an_object(text, error))?;

    match message {
        Once::Absent => Err(NotAPush::NoMessage),
        Once::Present(message) => read_message(message, push),
        Once::Repeated => Err(NotAPush::MessageTwice),
    }
}

impl Push<'_> {
    /// The attributes, as `WarmRequest::parse` takes them.
    pub(crate) fn options(&self) -> impl Iterator<Item = (&str, &str)> {
        self.attributes.iter().map(|(name, value)| (name.as_ref(), value.as_ref()))
    }
}

/// What a member of the outer object is, by its name.
#[derive(Debug, Clone, Copy)]
enum OuterMember {
    Message,
    Subscription,
    DeliveryAttempt(Spelling),
    Other,
}

impl OuterMember {
    fn named(name: &str) -> Self {
        match name {
            "message" => Self::Message,
            "subscription" => Self::Subscription,
            "deliveryAttempt" => Self::DeliveryAttempt(Spelling::Camel),
            "delivery_attempt" => Self::DeliveryAttempt(Spelling::Snake),
            _ => Self::Other,
        }
    }
}

/// What a member of the message is, by its name.
#[derive(Debug, Clone, Copy)]
enum MessageMember {
    Data,
    Attributes,
    Id(Spelling),
    PublishTime(Spelling),
    OrderingKey(Spelling),
    Other,
}

impl MessageMember {
    fn named(name: &str) -> Self {
        match name {
            "data" => Self::Data,
            "attributes" => Self::Attributes,
            "messageId" => Self::Id(Spelling::Camel),
            "message_id" => Self::Id(Spelling::Snake),
            "publishTime" => Self::PublishTime(Spelling::Camel),
            "publish_time" => Self::PublishTime(Spelling::Snake),
            "orderingKey" => Self::OrderingKey(Spelling::Camel),
            "ordering_key" => Self::OrderingKey(Spelling::Snake),
            _ => Self::Other,
        }
    }
}

/// How a name is written that has two spellings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spelling {
    Camel,
    Snake,
}

impl Spelling {
    /// Whether a value under this spelling is looked at where the field is filled like this so far.
    fn counts<T>(self, field: &Option<T>) -> bool {
        self == Self::Camel || field.is_none()
    }

    /// Fills the field with the value, if that is usable and counts.
    fn fill<T>(self, field: &mut Option<T>, value: impl FnOnce() -> Option<T>) {
        if self.counts(field)
            && let Some(value) = value()
        {
            *field = Some(value);
        }
    }
}

fn read_message<'a>(message: &'a str, mut push: Push<'a>) -> Result<Push<'a>, NotAPush> {
    let mut data = Once::Absent;
    for_each_member(message, |name, value| match MessageMember::named(&name) {
        MessageMember::Data => data.set(value),
        MessageMember::Attributes => {
            push.attributes = attributes(value).unwrap_or_else(|| std::mem::take(&mut push.attributes))
        }
        MessageMember::Id(spelling) => spelling.fill(&mut push.message_id, || non_empty_string(value)),
        MessageMember::PublishTime(spelling) => spelling.fill(&mut push.publish_time, || time(value)),
        MessageMember::OrderingKey(spelling) => {
            spelling.fill(&mut push.ordering_key, || non_empty_string(value));
        }
        MessageMember::Other => {}
    })
    .map_err(|_| NotAPush::MessageNotAnObject)?;

    push.data = match data {
        Once::Absent | Once::Present("null") => Vec::new(),
        Once::Present(value) if value.starts_with('"') => {
            // Without text it holds a lone surrogate, which is no base64 either.
            decode(&string(value).ok_or(NotAPush::DataNotBase64(0))?)?
        }
        Once::Present(_) => return Err(NotAPush::DataNotAString),
        Once::Repeated => return Err(NotAPush::DataTwice),
    };
    let says_nothing = push.message_id.is_none() && push.publish_time.is_none() && push.attributes.is_empty();
    if push.data.is_empty() && says_nothing { Err(NotAPush::MessageEmpty) } else { Ok(push) }
}

/// A field that may be there once. Two of one name are two messages to two parsers, so none of them is taken.
#[derive(Clone, Copy)]
enum Once<'a> {
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

/// Shows `see` each member of the JSON object that `text` is: its name, unescaped, and its value's JSON text.
///
/// Values are checked against the grammar and skipped, without recursion, so that no nesting is too deep; each level
/// that matters is then read by another call. Names are taken as raw JSON too, since a lone surrogate in one that
/// does not concern us is valid JSON (RFC 8259, section 8.2) but no `str`.
///
/// # Errors
/// A syntax error; or, where it is an error of data, `text` is JSON of another type than object.
fn for_each_member<'a>(text: &'a str, see: impl FnMut(Cow<'a, str>, &'a str)) -> serde_json::Result<()> {
    /// Knows maps only: a derived visitor would let an array stand for an object, in field order.
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

    let mut json = serde_json::Deserializer::from_str(text);
    json.deserialize_map(Members(see))?;
    json.end()
}

/// The string that a JSON value's text stands for; nothing for other types and for lone surrogates.
fn string(value: &str) -> Option<Cow<'_, str>> {
    let inner = value.strip_prefix('"')?.strip_suffix('"')?;
    if inner.contains('\\') {
        serde_json::from_str(value).ok().map(Cow::Owned)
    } else {
        Some(Cow::Borrowed(inner))
    }
}

fn non_empty_string(value: &str) -> Option<Cow<'_, str>> {
    string(value).and_then(non_empty)
}

fn non_empty(text: Cow<'_, str>) -> Option<Cow<'_, str>> {
    (!text.is_empty()).then_some(text)
}

fn time(value: &str) -> Option<Timestamp> {
    string(value)?.parse().ok()
}

/// A whole number, also one written as a string.
fn count(value: &str) -> Option<u32> {
    match string(value) {
        Some(text) => text.parse().ok(),
        None => value.parse().ok(),
    }
}

/// The members that are strings; of a repeated name the last one.
fn attributes(value: &str) -> Option<BTreeMap<Cow<'_, str>, Cow<'_, str>>> {
    let mut attributes = BTreeMap::new();
    for_each_member(value, |name, value| {
        if let Some(value) = string(value) {
            attributes.insert(name, value);
        }
    })
    .ok()?;
    Some(attributes)
}

/// Each of the four engines takes one alphabet and one way to end, so that mixtures and half a padding are errors.
fn decode(text: &str) -> Result<Vec<u8>, NotAPush> {
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
        NotAPush::DataNotBase64(match error {
            DecodeError::InvalidByte(at, _) | DecodeError::InvalidLastSymbol(at, _) => at,
            DecodeError::InvalidLength(_) | DecodeError::InvalidPadding => text.len(),
        })
    })
}

/// What it is instead; called on failure only.
fn not_an_object(text: &str, error: serde_json::Error) -> NotAPush {
    if text.starts_with('\u{feff}') {
        NotAPush::ByteOrderMark
    } else if text.trim_start().starts_with("http") {
        NotAPush::Unwrapped
    } else if error.is_data() {
        NotAPush::NotAnObject
    } else {
        NotAPush::NotJson(error)
    }
}

impl fmt::Display for NotAPush {
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

impl std::error::Error for NotAPush {}

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
            assert!(matches!(parse(body.as_bytes()), Err(NotAPush::MessageEmpty)), "{body}");
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
        assert!(matches!(parse(broken), Err(NotAPush::NotUtf8(6))));
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
            assert!(matches!(data(text), Err(NotAPush::DataNotBase64(_))), "{text}");
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
        assert!(matches!(parse(open.as_bytes()), Err(NotAPush::NotAnObject)));
        let data = format!(r#"{{"message":{{"data":{open}{close}}}}}"#);
        assert!(matches!(parse(data.as_bytes()), Err(NotAPush::DataNotAString)));
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
