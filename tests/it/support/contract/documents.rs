//! Google's discovery documents: which method a request means, and whether its query and body are as the schema says.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use crate::support::setting;

/// The documents of each API, by the word that stands first in a request's path.
const APIS: [(&str, &[&str]); 11] = [
    ("artifactregistry", &["artifactregistry.v1"]),
    ("cloudbuild", &["cloudbuild.v1"]),
    ("cloudresourcemanager", &["cloudresourcemanager.v3"]),
    ("dataflow", &["dataflow.v1b3"]),
    ("iam", &["iam.v1"]),
    ("logging", &["logging.v2"]),
    ("monitoring", &["monitoring.v1", "monitoring.v3"]),
    ("pubsub", &["pubsub.v1"]),
    ("run", &["run.v2"]),
    ("secretmanager", &["secretmanager.v1"]),
    ("serviceusage", &["serviceusage.v1", "serviceusage.v1beta1"]),
];

/// Parameters that every method takes.
const FOR_ALL: [&str; 3] = ["alt", "fields", "prettyPrint"];

/// All methods of all APIs.
pub(crate) struct Documents {
    methods: BTreeMap<&'static str, Vec<Method>>,
    documents: Vec<Value>,
}

/// One method of an API.
pub(crate) struct Method {
    /// As Google calls it: `run.projects.locations.services.create`.
    pub(crate) id: String,
    pub(crate) verb: String,
    segments: Vec<String>,
    /// What stands behind a colon at the end.
    action: String,
    description: Value,
    document: usize,
    /// How many segments stand before the resource's name: those of the version.
    pub(crate) version: String,
}

impl Documents {
    /// From the folder that `CDNWARM_DISCOVERY` names; `scripts/discovery-documents.sh` fills one.
    pub(crate) fn read() -> Self {
        let folder = setting("CDNWARM_DISCOVERY").expect(
            "CDNWARM_DISCOVERY must name a folder with Google's discovery documents; \
             scripts/discovery-documents.sh FOLDER fetches them",
        );
        let mut all = Self { methods: BTreeMap::new(), documents: Vec::new() };
        for (api, names) in APIS {
            for name in names {
                let path = Path::new(&folder).join(format!("{name}.json"));
                let text =
                    std::fs::read_to_string(&path).unwrap_or_else(|why| panic!("{}: {why}", path.display()));
                let document: Value = serde_json::from_str(&text).unwrap();
                let number = all.documents.len();
                let methods = all.methods.entry(api).or_default();
                collect(&document["resources"], document["servicePath"].as_str().unwrap(), number, methods);
                all.documents.push(document);
            }
        }
        all
    }

    /// The method that this request means. `path` has no leading slash.
    pub(crate) fn find(&self, api: &str, verb: &str, path: &str) -> Option<&Method> {
        let (segments, action) = split(path);
        self.methods.get(api)?.iter().find(|method| {
            method.verb == verb
                && method.action == action
                && method.segments.len() == segments.len()
                && method.segments.iter().zip(&segments).all(|(template, segment)| {
                    template == segment || (template.starts_with('{') && !segment.is_empty())
                })
        })
    }

    /// Whether the query has only what the method takes, of the right type, and all that it must have.
    pub(crate) fn check_query(&self, method: &Method, query: &[(String, String)]) -> Result<(), String> {
        let parameters = &method.description["parameters"];
        for (name, value) in query {
            let parameter = &parameters[name];
            if FOR_ALL.contains(&name.as_str()) {
                continue;
            }
            if parameter["location"] != "query" {
                return Err(format!("Unknown name {name:?}: Cannot bind query parameter."));
            }
            check_text(parameter, value).map_err(|why| format!("{name}: {why}"))?;
        }
        for (name, parameter) in parameters.as_object().into_iter().flatten() {
            let needed = parameter["location"] == "query" && parameter["required"] == true;
            if needed && !query.iter().any(|(given, _)| given == name) {
                return Err(format!("{name} is required."));
            }
        }
        Ok(())
    }

    /// Whether the body is of the schema that the method takes.
    pub(crate) fn check_body(&self, method: &Method, body: Option<&Value>) -> Result<(), String> {
        match (method.description["request"]["$ref"].as_str(), body) {
            (None, None) => Ok(()),
            (None, Some(_)) => Err("this method takes no body".to_owned()),
            (Some(_), None) => Err("this method takes a body".to_owned()),
            (Some(schema), Some(body)) => {
                let schemas = &self.documents[method.document]["schemas"];
                check_object(schemas, &schemas[schema], body, schema)?;
                check_mask(schemas, schema, body)
            }
        }
    }

    /// Whether each field of a mask in the query is one of the object.
    pub(crate) fn check_query_mask(&self, method: &Method, mask: &str) -> Result<(), String> {
        let schema = method.description["request"]["$ref"].as_str().unwrap_or_default();
        check_fields(&self.documents[method.document]["schemas"][schema], mask)
    }

    /// Whether the method answers with a long-running operation.
    pub(crate) fn is_long(method: &Method) -> bool {
        method.description["response"]["$ref"].as_str().is_some_and(|name| name.ends_with("Operation"))
    }
}

/// The same where the mask is in the body, beside the object.
fn check_mask(schemas: &Value, schema: &str, body: &Value) -> Result<(), String> {
    let Some(mask) = body["updateMask"].as_str() else { return Ok(()) };
    let inner = schemas[schema]["properties"].as_object().into_iter().flatten();
    let object = inner.filter_map(|(_, property)| property["$ref"].as_str()).next().unwrap_or_default();
    check_fields(&schemas[object], mask)
}

fn check_fields(schema: &Value, mask: &str) -> Result<(), String> {
    for field in mask.split(',') {
        let first = field.split('.').next().unwrap_or_default();
        if schema["properties"][first].is_null() {
            return Err(format!("Invalid field mask: {field:?}"));
        }
    }
    Ok(())
}

fn collect(resources: &Value, service_path: &str, document: usize, methods: &mut Vec<Method>) {
    for (_, resource) in resources.as_object().into_iter().flatten() {
        for (_, description) in resource["methods"].as_object().into_iter().flatten() {
            let path = description["flatPath"].as_str().or(description["path"].as_str()).unwrap();
            let path = format!("{service_path}{path}");
            let (segments, action) = split(&path);
            methods.push(Method {
                id: description["id"].as_str().unwrap().to_owned(),
                verb: description["httpMethod"].as_str().unwrap().to_owned(),
                version: segments[0].clone(),
                segments,
                action,
                description: description.clone(),
                document,
            });
        }
        collect(&resource["resources"], service_path, document, methods);
    }
}

fn split(path: &str) -> (Vec<String>, String) {
    let last = path.rfind('/').map_or(0, |at| at + 1);
    let (path, action) = match path[last..].rfind(':') {
        Some(colon) => (&path[..last + colon], path[last + colon + 1..].to_owned()),
        None => (path, String::new()),
    };
    (path.split('/').map(str::to_owned).collect(), action)
}

fn check(schemas: &Value, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
    if schema["readOnly"] == true {
        return Err(format!("{at} is output only"));
    }
    if let Some(name) = schema["$ref"].as_str() {
        return check_object(schemas, &schemas[name], value, at);
    }
    let wrong = || Err(format!("Invalid value at '{at}' ({}): {value}", schema["type"]));
    match schema["type"].as_str().unwrap_or("any") {
        "any" => Ok(()),
        "object" => check_object(schemas, schema, value, at),
        "array" => {
            let Some(items) = value.as_array() else { return wrong() };
            items.iter().enumerate().try_for_each(|(index, item)| {
                check(schemas, &schema["items"], item, &format!("{at}[{index}]"))
            })
        }
        "boolean" if value.is_boolean() => Ok(()),
        "integer" if value.is_i64() || value.is_u64() => Ok(()),
        "number" if value.is_number() => Ok(()),
        "string" if value.is_string() => {
            check_text(schema, value.as_str().unwrap()).map_err(|why| format!("{at}: {why}"))
        }
        // 64-bit integers travel as text, and numbers are taken too.
        "string" if schema["format"] == "int64" && value.is_i64() => Ok(()),
        _ => wrong(),
    }
}

fn check_object(schemas: &Value, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
    let Some(fields) = value.as_object() else { return Err(format!("Invalid value at '{at}': {value}")) };
    for (name, value) in fields {
        let here = format!("{at}.{name}");
        match (&schema["properties"][name], &schema["additionalProperties"]) {
            (Value::Null, Value::Null) => {
                return Err(format!(
                    "Invalid JSON payload received. Unknown name {name:?} at '{at}': Cannot find field."
                ));
            }
            (Value::Null, any) => check(schemas, any, value, &here)?,
            (known, _) => check(schemas, known, value, &here)?,
        }
    }
    Ok(())
}

/// Text of a query or a body, by its format and its enum.
fn check_text(schema: &Value, text: &str) -> Result<(), String> {
    let wrong = || {
        Err(format!(
            "{text:?} is no {}",
            schema["format"].as_str().or(schema["type"].as_str()).unwrap_or("?")
        ))
    };
    if let Some(allowed) = schema["enum"].as_array()
        && !allowed.iter().any(|value| value == text)
    {
        return Err(format!("{text:?} is none of {allowed:?}"));
    }
    let fine =
        match (schema["type"].as_str().unwrap_or_default(), schema["format"].as_str().unwrap_or_default()) {
            ("integer", _) | (_, "int64") => text.parse::<i64>().is_ok(),
            ("boolean", _) => ["true", "false"].contains(&text),
            (_, "google-duration") => {
                text.strip_suffix('s').is_some_and(|seconds| seconds.parse::<f64>().is_ok())
            }
            (_, "google-datetime") => text.parse::<jiff::Timestamp>().is_ok(),
            (_, "byte") => base64::Engine::decode(&base64::engine::general_purpose::STANDARD, text).is_ok(),
            _ => true,
        };
    if fine { Ok(()) } else { wrong() }
}
