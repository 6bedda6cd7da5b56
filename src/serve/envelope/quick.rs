//! The usual push, read in one pass; whatever is odd about a body, this gives nothing for it.
//!
//! It knows no errors and decides nothing: where it gives a push, the thorough reading would give the same one.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::Deserializer;
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, Visitor};

use super::{MessageMember, OuterMember, Push, Spelling, decode, non_empty};

/// The push that `text` is: an object with one message, which is an object with data.
///
/// Nothing for what is no JSON, for members that matter and are of another type than they should be or are there twice,
/// for lone surrogates outside what is skipped, and for messages without data.
pub(super) fn read(text: &str) -> Option<Push<'_>> {
    let mut json = serde_json::Deserializer::from_str(text);
    let push = json.deserialize_map(Outer).ok()?;
    json.end().ok()?;
    Some(push)
}

/// The outer object. Like all visitors here it knows maps only, so that no array stands for an object.
struct Outer;

impl<'de> Visitor<'de> for Outer {
    type Value = Push<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Push<'de>, A::Error> {
        let mut push = Push::default();
        let mut has_message = false;
        while let Some(member) = members.next_key_seed(Named(OuterMember::named))? {
            match member {
                OuterMember::Message if has_message => return Err(odd()),
                OuterMember::Message => {
                    members.next_value_seed(Message(&mut push))?;
                    has_message = true;
                }
                OuterMember::Subscription => {
                    let text = members.next_value_seed(Text)?;
                    Spelling::Camel.fill(&mut push.subscription, || non_empty(text));
                }
                OuterMember::DeliveryAttempt(spelling) if spelling.counts(&push.delivery_attempt) => {
                    push.delivery_attempt = Some(members.next_value()?);
                }
                OuterMember::DeliveryAttempt(_) | OuterMember::Other => skip(&mut members)?,
            }
        }
        if has_message { Ok(push) } else { Err(odd()) }
    }
}

/// The message; fills the push.
struct Message<'a, 'de>(&'a mut Push<'de>);

impl<'de> DeserializeSeed<'de> for Message<'_, 'de> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Message<'_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a message")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        let push = self.0;
        let mut has_attributes = false;
        while let Some(member) = members.next_key_seed(Named(MessageMember::named))? {
            match member {
                // Empty data needs a second look, and so takes the other way.
                MessageMember::Data if push.data.is_empty() => {
                    let text = members.next_value_seed(Text)?;
                    push.data = decode(&text).map_err(|_| odd())?;
                    if push.data.is_empty() {
                        return Err(odd());
                    }
                }
                MessageMember::Attributes if !has_attributes => {
                    push.attributes = members.next_value_seed(Attributes)?;
                    has_attributes = true;
                }
                MessageMember::Data | MessageMember::Attributes => return Err(odd()),
                MessageMember::Id(spelling) if spelling.counts(&push.message_id) => {
                    let text = members.next_value_seed(Text)?;
                    spelling.fill(&mut push.message_id, || non_empty(text));
                }
                MessageMember::PublishTime(spelling) if spelling.counts(&push.publish_time) => {
                    let text = members.next_value_seed(Text)?;
                    spelling.fill(&mut push.publish_time, || text.parse().ok());
                }
                MessageMember::OrderingKey(spelling) if spelling.counts(&push.ordering_key) => {
                    let text = members.next_value_seed(Text)?;
                    spelling.fill(&mut push.ordering_key, || non_empty(text));
                }
                MessageMember::Id(_)
                | MessageMember::PublishTime(_)
                | MessageMember::OrderingKey(_)
                | MessageMember::Other => skip(&mut members)?,
            }
        }
        if push.data.is_empty() { Err(odd()) } else { Ok(()) }
    }
}

fn skip<'de, A: MapAccess<'de>>(members: &mut A) -> Result<(), A::Error> {
    members.next_value::<IgnoredAny>().map(|_| ())
}

/// Ends the reading; nobody sees what it says.
fn odd<E: serde::de::Error>() -> E {
    E::custom("odd")
}

/// An object of texts.
struct Attributes;

impl<'de> DeserializeSeed<'de> for Attributes {
    type Value = BTreeMap<Cow<'de, str>, Cow<'de, str>>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Attributes {
    type Value = BTreeMap<Cow<'de, str>, Cow<'de, str>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of texts")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self::Value, A::Error> {
        let mut attributes = BTreeMap::new();
        while let Some((name, value)) = members.next_entry_seed(Text, Text)? {
            attributes.insert(name, value);
        }
        Ok(attributes)
    }
}

/// A text, borrowed wherever JSON did not escape it.
struct Text;

impl<'de> DeserializeSeed<'de> for Text {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Cow<'de, str>, D::Error> {
        json.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Text {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Cow<'de, str>, E> {
        Ok(Cow::Borrowed(text))
    }

    fn visit_str<E>(self, text: &str) -> Result<Cow<'de, str>, E> {
        Ok(Cow::Owned(text.to_owned()))
    }
}

/// A member's name, seen by a function that tells what it stands for.
struct Named<F>(F);

impl<'de, M, F: FnOnce(&str) -> M> DeserializeSeed<'de> for Named<F> {
    type Value = M;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<M, D::Error> {
        json.deserialize_str(self)
    }
}

impl<M, F: FnOnce(&str) -> M> Visitor<'_> for Named<F> {
    type Value = M;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E>(self, name: &str) -> Result<M, E> {
        Ok((self.0)(name))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::path::Path;

    use proptest::prelude::*;
    use proptest::sample::{Index, select};
    use proptest::test_runner::TestRunner;

    use super::super::thorough;
    use super::*;

    /// As Google sends it.
    const USUAL: &str = r#"{"deliveryAttempt":3,"message":{"attributes":{"kafka-key":"k\"","kafka-offset":"7"},"data":"aHR0cHM6Ly9leGFtcGxlLmNvbS8=","messageId":"2070443601311540","message_id":"2070443601311540","orderingKey":"k","ordering_key":"k","publishTime":"2026-02-26T19:13:55.749Z","publish_time":"2026-02-26T19:13:55.749Z"},"subscription":"projects/p-1/subscriptions/s-1"}"#;

    /// Whether it is read here; what is read is what the thorough reading finds.
    fn is_read(text: &str) -> Result<bool, TestCaseError> {
        let Some(push) = read(text) else { return Ok(false) };
        match thorough(text) {
            Ok(expected) => prop_assert_eq!(push, expected, "{}", text),
            Err(error) => prop_assert!(false, "{}: {}", text, error),
        }
        Ok(true)
    }

    /// The bodies that were collected, as far as they are UTF-8.
    fn collected() -> Vec<String> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpora/push_envelopes");
        let files = std::fs::read_dir(folder).unwrap();
        files.filter_map(|file| std::fs::read_to_string(file.unwrap().path()).ok()).collect()
    }

    #[test]
    fn what_the_service_sends_is_read_here() {
        assert!(is_read(USUAL).unwrap());
        let push = read(USUAL).unwrap();
        assert!(matches!(push.message_id, Some(Cow::Borrowed("2070443601311540"))));
        assert!(matches!(push.subscription, Some(Cow::Borrowed(_))));
        assert_eq!((push.delivery_attempt, push.attributes.len()), (Some(3), 2));
    }

    #[test]
    fn what_was_collected_is_read_alike() {
        let bodies = collected();
        let read = bodies.iter().filter(|body| is_read(body).unwrap()).count();
        assert!(read >= 20 && read < bodies.len(), "{read} of {}", bodies.len());
    }

    #[test]
    fn what_is_odd_is_left_to_the_thorough_reading() {
        for body in [
            r#"[{"data":"YQ=="}]"#,
            r#"{"message":["YQ=="]}"#,
            r#"{"message":{"data":"YQ=="}} {}"#,
            r#"{"message":{"data":"YQ=="},"message":{"data":"YQ=="}}"#,
            r#"{"message":{"data":"YQ==","d\u0061ta":"YQ=="}}"#,
            r#"{"message":{"data":"YQ==","attributes":{},"attributes":{}}}"#,
            r#"{"message":{"data":"YQ==","attributes":["a","b"]}}"#,
            r#"{"message":{"data":"YQ==","attributes":{"a":null}}}"#,
            r#"{"message":{"data":"YQ==","attributes":{"a":"\ud800"}}}"#,
            r#"{"message":{"data":"YQ==","messageId":7}}"#,
            r#"{"message":{"data":"","messageId":"7"}}"#,
            r#"{"message":{"data":"Y"}}"#,
            r#"{"message":{"data":"YQ=="},"subscription":null}"#,
            r#"{"message":{"data":"YQ=="},"deliveryAttempt":"5"}"#,
            r#"{"message":{"data":"YQ=="},"deliveryAttempt":5.0}"#,
            r#"{"message":{"data":"YQ=="},"deliveryAttempt":4294967296}"#,
        ] {
            assert_eq!(read(body), None, "{body}");
        }
    }

    #[test]
    fn of_what_is_made_up_each_is_read_alike_or_left() {
        let (read, left) = (Cell::new(0), Cell::new(0));
        let config = ProptestConfig { cases: 4_096, failure_persistence: None, ..ProptestConfig::default() };
        TestRunner::new(config)
            .run(&outer_object(), |text| {
                let count = if is_read(&text)? { &read } else { &left };
                count.set(count.get() + 1);
                Ok(())
            })
            .unwrap();
        assert!(read.get() > 300 && left.get() > 300, "{} read, {} left", read.get(), left.get());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_048))]
        #[test]
        fn of_what_is_damaged_each_is_read_alike_or_left(
            body in select([collected(), vec![USUAL.to_owned(); 40]].concat()),
            damage in proptest::collection::vec((any::<Index>(), damage()), 0..4),
        ) {
            let mut body = body.chars().take(4_096).collect::<Vec<_>>();
            for (at, new) in damage {
                let at = at.index(body.len().max(1));
                body.splice(at.min(body.len())..(at + 1).min(body.len()), new.chars());
            }
            is_read(&body.into_iter().collect::<String>())?;
        }
    }

    /// What stands in place of one character.
    fn damage() -> impl Strategy<Value = &'static str> {
        select(vec![
            "",
            " ",
            "\"",
            "\\",
            "\\u0061",
            "\\ud800",
            "{",
            "}",
            "[",
            "]",
            ",",
            ":",
            "-",
            "=",
            "0",
            "a",
            "_",
            "é",
            "\n",
            "\"a\":1,",
            ",\"data\":\"YQ==\"",
            "null",
        ])
    }

    fn outer_object() -> impl Strategy<Value = String> {
        let names =
            ["subscription", "deliveryAttempt", "delivery_attempt", "x", "data", "message", "m\\u0065ssage"];
        object(("message", message()), &names)
    }

    fn message() -> BoxedStrategy<String> {
        let names = [
            "attributes",
            "messageId",
            "message_id",
            "messag\\u0065Id",
            "publishTime",
            "publish_time",
            "orderingKey",
            "ordering_key",
            "message",
            "x",
            "\\ud800",
            "data",
            "d\\u0061ta",
        ];
        let texts = ["YQ==", "YQ", "-_8A", "+/8", "\\u0059Q==", "Y Q", "", "YR==", "\\ud800"];
        let data = prop_oneof![
            4 => "([A-Za-z0-9+/]{4}){1,20}",
            1 => select(texts.to_vec()).prop_map(str::to_owned),
        ];
        let message = object(("data", data.prop_map(|text| format!("\"{text}\"")).boxed()), &names);
        prop_oneof![19 => message, 1 => any_value()].boxed()
    }

    /// An object with the one member somewhere among others, whose names are some of these.
    fn object(
        (name, value): (&'static str, BoxedStrategy<String>),
        names: &[&'static str],
    ) -> BoxedStrategy<String> {
        let other =
            proptest::strategy::Union::new(names.iter().map(|name| (Just(*name), value_of(name)).boxed()));
        let others = proptest::collection::vec(other, 0..4);
        (value, others, any::<Index>(), select(vec!["", "", "", " ", "\n\t"]))
            .prop_map(move |(value, mut others, at, space)| {
                others.insert(at.index(others.len() + 1), (name, value));
                let members =
                    others.iter().map(|(name, value)| format!("{space}\"{name}\"{space}:{space}{value}"));
                format!("{space}{{{}{space}}}{space}", members.collect::<Vec<_>>().join(","))
            })
            .boxed()
    }

    /// Mostly a value of the type that a member of this name has.
    fn value_of(name: &str) -> BoxedStrategy<String> {
        let fitting = match name {
            "attributes" => {
                let pair = (select(vec!["a", "b", "\\u0061", "data"]), text());
                proptest::collection::vec(pair.prop_map(|(name, text)| format!("\"{name}\":{text}")), 0..3)
                    .prop_map(|members| format!("{{{}}}", members.join(",")))
                    .boxed()
            }
            "deliveryAttempt" | "delivery_attempt" => number(),
            "x" => any_value(),
            _ => text(),
        };
        prop_oneof![9 => fitting, 1 => any_value()].boxed()
    }

    fn text() -> BoxedStrategy<String> {
        let texts =
            ["a", "", "7", "é", "a\\nb", "\\u00e9\\ud83d\\ude00", "2026-02-26T19:13:55.749Z", "5", "+5"];
        prop_oneof![20 => select(texts.to_vec()), 1 => Just("\\ud800")]
            .prop_map(|text| format!("\"{text}\""))
            .boxed()
    }

    fn number() -> BoxedStrategy<String> {
        let odd = ["-0", "5.0", "1.5e3", "1e999", "4294967296", "-1", "01"];
        prop_oneof![4 => any::<u32>().prop_map(|n| n.to_string()), 1 => select(odd.to_vec()).prop_map(str::to_owned)]
            .boxed()
    }

    fn any_value() -> BoxedStrategy<String> {
        let others = select(vec!["null", "true", "["]).prop_map(str::to_owned);
        prop_oneof![text(), number(), others]
            .prop_recursive(4, 16, 3, |inner| {
                prop_oneof![
                    proptest::collection::vec(inner.clone(), 0..3)
                        .prop_map(|all| format!("[{}]", all.join(","))),
                    (select(vec!["a", "data", "message", "\\udc00"]), inner)
                        .prop_map(|(name, value)| format!("{{\"{name}\":{value}}}")),
                ]
            })
            .boxed()
    }
}
