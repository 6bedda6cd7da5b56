//! One GET as somebody sees it who asks what was sent and what was read: kept only where it is asked for.

use http::{HeaderMap, HeaderName, HeaderValue};
use serde::{Serialize, Serializer};
use url::Url;

use super::attempt::Attempt;
use super::cdn::{self, Assessment};
use super::client::Asked;
use crate::outcome::{CacheEvidence, shown_url};
use crate::redact::{REDACTED, is_secret_name};
use crate::verdict::Verdict;

/// What is shown of one header, in bytes.
const SHOWN_BYTES: usize = 256;

/// One request and what came of it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Look {
    pub(crate) method: String,
    /// Values of signature-like query parameters are an ellipsis.
    pub(crate) url: String,
    /// Request headers.
    #[serde(serialize_with = "as_map")]
    pub(crate) sent: Headers,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) http_status: Option<u16>,
    /// Response headers that are of use to caches, or were written by them.
    #[serde(serialize_with = "as_map")]
    pub(crate) read: Headers,
    /// None for a redirect that is followed.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "shown_verdict")]
    pub(crate) verdict: Option<Verdict>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cache: Option<CacheEvidence>,
    pub(crate) bytes: u64,
}

/// Names with their values, one for each line.
pub(crate) type Headers = Vec<(String, String)>;

impl Look {
    /// What was sent, what was read, and what `attempt` says of it. `is_followed` is for a redirect that leads on.
    pub(super) fn new(
        asked: &Asked<'_>,
        response: Option<&http::response::Parts>,
        attempt: &Attempt,
        is_followed: bool,
    ) -> Self {
        let Assessment { verdict, evidence, .. } = &attempt.assessment;
        let is_of_use = |name: &str| {
            cdn::is_spoken_by_caches(name) || ["location", "content-length", "content-range"].contains(&name)
        };
        Self {
            method: asked.method.to_string(),
            url: shown_url(asked.url),
            sent: shown(&asked.headers, |_| true),
            http_status: response.map(|response| response.status.as_u16()),
            read: response.map(|response| shown(&response.headers, is_of_use)).unwrap_or_default(),
            verdict: (!is_followed).then(|| verdict.clone()),
            cache: Some(evidence.clone()).filter(|evidence| *evidence != CacheEvidence::default()),
            bytes: attempt.bytes,
        }
    }
}

fn shown(headers: &HeaderMap, is_wanted: impl Fn(&str) -> bool) -> Headers {
    let wanted = headers.iter().filter(|(name, _)| is_wanted(name.as_str()));
    wanted.map(|(name, value)| (name.as_str().to_owned(), shown_value(name, value))).collect()
}

fn shown_value(name: &HeaderName, value: &HeaderValue) -> String {
    if value.is_sensitive() || is_secret_name(name.as_str()) {
        return REDACTED.to_owned();
    }
    let text = String::from_utf8_lossy(value.as_bytes());
    // A redirect's target is a URL like another.
    let text = match Url::parse(&text) {
        Ok(url) if name == "location" => shown_url(&url),
        _ => text.into_owned(),
    };
    if text.len() <= SHOWN_BYTES {
        return text;
    }
    format!("{}…", &text[..text.floor_char_boundary(SHOWN_BYTES)])
}

/// As an object; lines of one name are joined, as RFC 9110, section 5.3, has it.
fn as_map<S: Serializer>(headers: &Headers, serializer: S) -> Result<S::Ok, S::Error> {
    let mut map = serde_json::Map::new();
    for (name, value) in headers {
        let text = match map.get(name).and_then(serde_json::Value::as_str) {
            Some(before) => format!("{before}, {value}"),
            None => value.clone(),
        };
        map.insert(name.clone(), text.into());
    }
    map.serialize(serializer)
}

fn shown_verdict<S: Serializer>(verdict: &Option<Verdict>, serializer: S) -> Result<S::Ok, S::Error> {
    verdict.as_ref().map(ToString::to_string).serialize(serializer)
}
