//! Long-running operations: what a call has begun, and how it ended.

use std::time::Duration;

use http::Method;
use serde_json::Value;
use tokio::time::Instant;

use super::{Api, ApiError, Client};

/// The first wait is short, since most operations are; the longest is what a person still finds prompt.
const FIRST_POLL: Duration = Duration::from_millis(200);
const SLOWEST_POLL: Duration = Duration::from_secs(5);
/// Making a service pulls an image and waits for its probes; more than this is no progress any more.
const LIMIT: Duration = Duration::from_secs(15 * 60);

impl Client {
    /// Waits for what `begun`, an operation, is doing. Dropping this leaves the operation running.
    ///
    /// # Errors
    /// How it failed, or that it takes longer than 15 minutes.
    pub(in crate::setup) async fn finished(
        &self,
        api: Api,
        version: &str,
        begun: Value,
    ) -> Result<Value, ApiError> {
        let deadline = Instant::now() + LIMIT;
        let mut operation = begun;
        let mut wait = FIRST_POLL;
        loop {
            let name = operation["name"].as_str().unwrap_or_default().to_owned();
            if operation["done"] == true || name.is_empty() {
                return match operation.get("error").filter(|error| !error.is_null()) {
                    Some(error) => Err(ApiError::failed_operation(api, &name, error)),
                    None => Ok(operation["response"].take()),
                };
            }
            if Instant::now() > deadline {
                return Err(ApiError::late(api, &name, LIMIT));
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 3 / 2).min(SLOWEST_POLL);
            operation = self.call(api, Method::GET, &format!("{version}/{name}"), None).await?;
        }
    }
}
