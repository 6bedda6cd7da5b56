//! The keys that `cdnwarm.toml` may have, taken from its JSON schema, and what was meant by one that is none.

use serde_json::Value;

/// The description of the file, for editors and for this.
const SCHEMA: &str = include_str!("../../schemas/setup.schema.json");

/// The first key that the schema does not know, with what may have been meant.
pub(super) fn unknown(table: &toml::Table) -> Option<String> {
    let schema: Value = serde_json::from_str(SCHEMA).expect("the schema is JSON, which a test proves");
    unknown_in(table, &schema, &schema, "")
}

fn unknown_in(table: &toml::Table, schema: &Value, root: &Value, at: &str) -> Option<String> {
    let schema = match schema["$ref"].as_str() {
        Some(reference) => root.pointer(reference.trim_start_matches('#')).unwrap_or(&Value::Null),
        None => schema,
    };
    let known = schema["properties"].as_object();
    for (key, value) in table {
        let here = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
        let inner = match known.and_then(|known| known.get(key)) {
            Some(inner) => inner,
            // A table whose keys are the operator's own, such as the regions.
            None if schema["additionalProperties"].is_object() => &schema["additionalProperties"],
            None => return Some(mistake(key, &here, known.into_iter().flat_map(|known| known.keys()))),
        };
        if let Some(mistake) = value.as_table().and_then(|table| unknown_in(table, inner, root, &here)) {
            return Some(mistake);
        }
    }
    None
}

fn mistake<'a>(key: &str, here: &str, known: impl Iterator<Item = &'a String>) -> String {
    let known: Vec<&str> = known.map(String::as_str).collect();
    let nearest = known
        .iter()
        .map(|other| (strsim::jaro_winkler(key, other), other))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0));
    match nearest {
        Some((_, other)) => format!("unknown key {here}; did you mean {other}?"),
        None => format!("unknown key {here}; there are {}", known.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(schema: &Value, all: &mut Vec<String>) {
        for (key, inner) in schema["properties"].as_object().into_iter().flatten() {
            all.push(key.clone());
            keys(inner, all);
        }
    }

    /// Panics where a value is not of the schema's type, none of its values, or outside of its limits.
    fn check(value: &Value, schema: &Value, at: &str) {
        let root: Value = serde_json::from_str(SCHEMA).unwrap();
        let schema = match schema["$ref"].as_str() {
            Some(reference) => root.pointer(reference.trim_start_matches('#')).unwrap(),
            None => schema,
        };
        let fits = match schema["type"].as_str().unwrap_or_else(|| panic!("{at} has no type: {schema}")) {
            "object" => value.is_object(),
            "array" => value.is_array(),
            "string" => value.is_string(),
            "boolean" => value.is_boolean(),
            "integer" => value.is_u64(),
            other => panic!("{at}: {other}"),
        };
        assert!(fits, "{at}: {value} is no {}", schema["type"]);
        let allowed = schema["enum"].as_array();
        assert!(
            allowed.is_none_or(|allowed| allowed.contains(value)),
            "{at}: {value} is none of {allowed:?}"
        );
        if let Some(number) = value.as_u64() {
            let limit = |name: &str| schema[name].as_u64();
            assert!(limit("minimum").is_none_or(|least| number >= least), "{at}: {number} is too little");
            assert!(limit("maximum").is_none_or(|most| number <= most), "{at}: {number} is too much");
        }
        for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            assert!(!value[name].is_null(), "{at} has no {name}");
        }
        for item in value.as_array().into_iter().flatten() {
            check(item, &schema["items"], at);
        }
        for (key, inner) in value.as_object().into_iter().flatten() {
            let known = schema["properties"].get(key).unwrap_or(&schema["additionalProperties"]);
            check(inner, known, &format!("{at}.{key}"));
        }
    }

    #[test]
    fn the_example_is_as_the_schema_says() {
        let example: toml::Table = include_str!("../../cdnwarm.toml.example").parse().unwrap();
        let example = serde_json::to_value(example).unwrap();
        check(&example, &serde_json::from_str(SCHEMA).unwrap(), "");
    }

    #[test]
    fn the_example_shows_every_key_of_the_schema() {
        let schema: Value = serde_json::from_str(SCHEMA).unwrap();
        let mut all = Vec::new();
        keys(&schema, &mut all);
        keys(&schema["$defs"]["service"], &mut all);
        assert!(all.len() > 50, "{all:?}");
        let example = include_str!("../../cdnwarm.toml.example");
        for key in all {
            let line = |line: &str| {
                let line = line.trim_start_matches("# ");
                line.starts_with(&format!("{key} = "))
                    || line.starts_with(&format!("[{key}"))
                    || line.contains(&format!(".{key}]"))
            };
            assert!(example.lines().any(line), "cdnwarm.toml.example does not show {key}");
        }
    }
}
