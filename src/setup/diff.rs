//! What differs between the wanted fields of a resource and the live ones, and the body that makes them the same.
//!
//! Only wanted fields count: Google adds defaults, and operators have their own. A wanted null means that there must be
//! nothing. What JSON leaves out (false, 0, "") equals what is wanted as such.

use serde_json::{Map, Value};

/// One field that is not as it should be.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Difference {
    /// The way to it, from the top.
    pub(super) path: Vec<String>,
    /// None where there is nothing.
    pub(super) old: Option<Value>,
    pub(super) new: Option<Value>,
}

impl Difference {
    /// The field as a person reads it: a list's index in brackets, all else with dots.
    pub(super) fn field(&self) -> String {
        let mut text = String::new();
        for part in &self.path {
            if !text.is_empty() && !part.starts_with('[') {
                text.push('.');
            }
            text.push_str(part);
        }
        text
    }
}

/// All differences, in the order of the fields' names.
pub(super) fn differences(want: &Value, live: &Value) -> Vec<Difference> {
    let mut found = Vec::new();
    compare(want, live, &mut Vec::new(), &mut found);
    found
}

/// Everything wanted, as differences to nothing: also what is the default, which is a choice here.
pub(super) fn all(want: &Value) -> Vec<Difference> {
    let mut found = Vec::new();
    flatten(want, &mut Vec::new(), &mut found);
    found
}

/// `live` with everything wanted in it: what is sent where a whole field, or the whole object, is replaced.
pub(super) fn merged(want: &Value, live: &Value) -> Value {
    match (want, live) {
        (Value::Object(want), live) => {
            let mut all = live.as_object().cloned().unwrap_or_default();
            for (key, value) in want {
                if value.is_null() {
                    all.remove(key);
                } else {
                    let live = all.get(key).cloned().unwrap_or_default();
                    all.insert(key.clone(), merged(value, &live));
                }
            }
            Value::Object(all)
        }
        (Value::Array(want), Value::Array(live)) if want.len() == live.len() => {
            want.iter().zip(live).map(|(want, live)| merged(want, live)).collect()
        }
        (Value::Array(want), _) => want.iter().map(|want| merged(want, &Value::Null)).collect(),
        _ => want.clone(),
    }
}

/// The wanted fields alone, without what must not be there: what an object is created from.
pub(super) fn without_nulls(want: &Value) -> Value {
    merged(want, &Value::Null)
}

/// Takes the field at a dotted path away.
pub(super) fn remove(value: &mut Value, path: &str) {
    match path.split_once('.') {
        Some((first, rest)) => {
            if let Some(inner) = value.get_mut(first) {
                remove(inner, rest);
            }
        }
        None => {
            value.as_object_mut().map(|object: &mut Map<String, Value>| object.remove(path));
        }
    }
}

fn compare(want: &Value, live: &Value, path: &mut Vec<String>, found: &mut Vec<Difference>) {
    let before = found.len();
    match (want, live) {
        (Value::Object(want_fields), _) => {
            for (key, value) in want_fields {
                path.push(key.clone());
                compare(value, live.get(key).unwrap_or(&Value::Null), path, found);
                path.pop();
            }
            // An object that is to be there although there is nothing in it that must be.
            if !live.is_object() && found.len() == before {
                found.push(difference(path, live, want));
            }
        }
        (Value::Array(want_items), Value::Array(live_items))
            if want_items.len() == live_items.len() && want_items.iter().all(Value::is_object) =>
        {
            for (index, (want, live)) in want_items.iter().zip(live_items).enumerate() {
                path.push(format!("[{index}]"));
                compare(want, live, path, found);
                path.pop();
            }
        }
        _ if is_same(want, live) => {}
        _ => found.push(difference(path, live, want)),
    }
}

fn flatten(want: &Value, path: &mut Vec<String>, found: &mut Vec<Difference>) {
    let before = found.len();
    match want {
        Value::Object(fields) => {
            for (key, value) in fields {
                path.push(key.clone());
                flatten(value, path, found);
                path.pop();
            }
        }
        Value::Array(items) if items.iter().all(Value::is_object) => {
            for (index, item) in items.iter().enumerate() {
                path.push(format!("[{index}]"));
                flatten(item, path, found);
                path.pop();
            }
        }
        Value::Null => return,
        _ => {}
    }
    if found.len() == before && !path.is_empty() {
        found.push(difference(path, &Value::Null, want));
    }
}

fn difference(path: &[String], live: &Value, want: &Value) -> Difference {
    let shown = |value: &Value| Some(value.clone()).filter(|value| !is_empty(value));
    let new = Some(without_nulls(want)).filter(|value| !value.is_null());
    Difference { path: path.to_vec(), old: shown(live), new }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(value) => value.as_f64() == Some(0.0),
        Value::String(value) => value.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
    }
}

fn is_same(want: &Value, live: &Value) -> bool {
    match (want, live) {
        // There must be nothing, not even an empty object, which is a choice in some places (`noWrapper: {}`).
        (Value::Null, live) => live.is_null() || (!live.is_object() && is_empty(live)),
        (want, Value::Null) => is_empty(want),
        // 64-bit numbers travel as text.
        (Value::String(text), Value::Number(number)) | (Value::Number(number), Value::String(text)) => {
            *text == number.to_string()
        }
        (Value::String(want), Value::String(live)) => {
            let same_as =
                |read: fn(&str) -> Option<f64>| read(want).is_some_and(|want| Some(want) == read(live));
            want == live || same_as(seconds) || same_as(quantity)
        }
        // 1 is 1.0.
        (Value::Number(want), Value::Number(live)) => want.as_f64() == live.as_f64(),
        _ => want == live,
    }
}

/// A duration's seconds: 600s is 600.000s.
fn seconds(text: &str) -> Option<f64> {
    text.strip_suffix('s')?.parse().ok()
}

/// An amount of CPU: 1 is 1000m.
fn quantity(text: &str) -> Option<f64> {
    match text.strip_suffix('m') {
        Some(thousandths) => thousandths.parse::<f64>().ok().map(|number| number / 1000.0),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_wanted_and_there_is_no_difference() {
        for (want, live) in [
            (json!({"a": 1}), json!({"a": 1, "theirs": 2})),
            (json!({"a": false, "b": 0, "c": "", "d": []}), json!({})),
            (json!({"a": null}), json!({})),
            (json!({"a": {"ttl": null}}), json!({"a": {}})),
            (json!({"a": "600s"}), json!({"a": "600.000s"})),
            (json!({"a": 7}), json!({"a": "7"})),
            (json!({"a": 7}), json!({"a": 7.0})),
            (json!({"cpu": "2"}), json!({"cpu": "2000m"})),
            (json!({"a": [{"b": 1}]}), json!({"a": [{"b": 1, "theirs": 2}]})),
        ] {
            assert_eq!(differences(&want, &live), [], "{want} and {live}");
            assert_eq!(differences(&want, &merged(&want, &live)), []);
        }
    }

    #[test]
    fn what_is_not_as_wanted_is_told_with_old_and_new() {
        let told = |want: Value, live: Value| -> Vec<String> {
            let found = differences(&want, &live);
            // What is sent repairs it.
            assert_eq!(differences(&want, &merged(&want, &live)), [], "{want} over {live}");
            found
                .iter()
                .map(|d| format!("{} {:?} {:?}", d.field(), d.old, d.new).replace("Some", ""))
                .collect()
        };
        assert_eq!(told(json!({"a": {"b": 2}}), json!({"a": {"b": 1}})), ["a.b (Number(1)) (Number(2))"]);
        assert_eq!(told(json!({"a": null}), json!({"a": {}})), ["a None None"]);
        assert_eq!(told(json!({"a": {}}), json!({})), ["a None (Object {})"]);
        assert_eq!(told(json!({"a": {"ttl": null}}), json!({})), ["a None (Object {})"]);
        assert_eq!(
            told(json!({"a": [{"b": 1}]}), json!({"a": [{"b": 2, "c": 3}]})),
            ["a[0].b (Number(2)) (Number(1))"]
        );
        assert_eq!(told(json!({"a": ["x"]}), json!({"a": ["x", "y"]})).len(), 1);
        assert_eq!(told(json!({"a": [{}]}), json!({"a": [{}, {}]})).len(), 1);
    }

    #[test]
    fn all_that_is_made_is_told_defaults_too_and_what_must_not_be_there_is_not() {
        let want = json!({"a": [{"b": false, "c": null}], "d": {"ttl": null}, "e": ["x", "y"]});
        let fields: Vec<String> =
            all(&want).iter().map(|d| format!("{} {}", d.field(), d.new.clone().unwrap())).collect();
        assert_eq!(fields, ["a[0].b false", "d {}", "e [\"x\",\"y\"]"]);
    }

    #[test]
    fn what_others_set_survives_a_merge_and_what_must_go_goes() {
        let live = json!({"keep": 1, "labels": {"theirs": "x"}, "push": {"noWrapper": {}, "url": "old"}});
        let want = json!({"labels": {"ours": "y"}, "push": {"noWrapper": null, "url": "new"}});
        let expected = json!({"keep": 1, "labels": {"theirs": "x", "ours": "y"}, "push": {"url": "new"}});
        assert_eq!(merged(&want, &live), expected);
        assert_eq!(without_nulls(&want), json!({"labels": {"ours": "y"}, "push": {"url": "new"}}));
    }
}
