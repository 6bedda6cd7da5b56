//! The kafka-env file as the content of a secret: uploaded and compared, never shown.

use std::fmt;
use std::path::Path;

use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use serde_json::{Value, json};

use super::api::{Api, ApiError, Client};
use crate::kafka::env::KafkaEnv;

/// What the live content is compared by, in words: the content itself is in no field.
const AS_THE_FILE: &str = "as the file";

/// Stands in the fields of a resource for the number of the secret's newest version, which may not be made yet.
pub(super) const VERSION: &str = "(the secret's newest version)";

/// The bytes of a checked kafka-env file. `Debug` shows none of them.
pub(super) struct Payload(Vec<u8>);

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Payload")
    }
}

impl Payload {
    /// Reads the file, which must be what the bridge can start with.
    ///
    /// # Errors
    /// A file that cannot be read or meant; values are in no error.
    pub(super) fn read(path: &Path) -> anyhow::Result<Self> {
        KafkaEnv::read(path)?.consumer()?;
        std::fs::read(path).with_context(|| format!("reading {}", path.display())).map(Self)
    }

    /// What must hold of the newest version.
    pub(super) fn fields(&self) -> Value {
        json!({ "content": AS_THE_FILE })
    }
}

/// The newest version: whether it is as the file, and its number. None where there is none that can be read.
///
/// # Errors
/// What the API says; without `secretmanager.versions.access` nothing can be compared.
pub(super) async fn read(
    client: &Client,
    secret: &str,
    payload: &Payload,
) -> Result<Option<Value>, ApiError> {
    let path = format!("v1/{secret}/versions/latest:access");
    let found = match client.find(Api::SecretManager, &path).await {
        Ok(found) => found,
        // A version that was disabled or destroyed holds nothing any more.
        Err(error) if error.is_failed_precondition() => None,
        Err(error) => return Err(error),
    };
    let Some(found) = found else { return Ok(None) };
    let live = found["payload"]["data"].as_str().and_then(|data| STANDARD.decode(data).ok());
    let same = live.is_some_and(|live| live == payload.0);
    Ok(Some(json!({ "content": if same { AS_THE_FILE } else { "another" }, "number": number(&found) })))
}

/// Adds a version, and gives its number; earlier ones stay, for whoever still reads them. By its number a version is there
/// at once, while `latest` may still mean the one before.
///
/// # Errors
/// What the API says.
pub(super) async fn add(client: &Client, secret: &str, payload: &Payload) -> Result<String, ApiError> {
    let body = json!({ "payload": { "data": STANDARD.encode(&payload.0) } });
    let path = format!("v1/{secret}:addVersion");
    let added = client.call_once(Api::SecretManager, Method::POST, &path, Some(&body)).await?;
    Ok(number(&added).to_owned())
}

/// The last part of a version's name.
fn number(version: &Value) -> &str {
    version["name"].as_str().and_then(|name| name.rsplit('/').next()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_the_content_is_shown() {
        let payload = Payload(b"sasl.password=hunter2".to_vec());
        assert!(!format!("{payload:?} {}", payload.fields()).contains("hunter2"));
    }
}
