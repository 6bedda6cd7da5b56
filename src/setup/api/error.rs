//! What Google answers where it does not do what it was asked, and what an operator can do about it.

use std::fmt;
use std::time::Duration;

use http::StatusCode;
use serde_json::Value;

use super::Api;

/// A call that failed: refused by the API, or without an answer.
#[derive(Debug, Clone)]
pub(in crate::setup) struct ApiError {
    pub(super) api: Api,
    /// What was called: verb and path.
    pub(super) call: String,
    /// None where no answer came.
    pub(super) status: Option<StatusCode>,
    /// The canonical code, such as `ALREADY_EXISTS`.
    pub(super) code: String,
    pub(super) message: String,
    /// `google.rpc.ErrorInfo`'s reason, and the permission that was missing, where they are told.
    reason: Option<String>,
    permission: Option<String>,
    /// How long to wait, where the answer says it.
    pub(super) retry_after: Option<Duration>,
}

impl ApiError {
    /// No answer, or one that cannot be read.
    pub(super) fn no_answer(api: Api, call: &str, why: String) -> Self {
        Self::new(api, call, None, "UNAVAILABLE", why)
    }

    /// What was begun is not over within `limit`, and goes on at Google's side.
    pub(in crate::setup) fn late(api: Api, call: &str, limit: Duration) -> Self {
        let why = format!("not done within {} minutes", limit.as_secs() / 60);
        Self::new(api, call, None, "DEADLINE_EXCEEDED", why)
    }

    /// Nobody to be: no call was made.
    pub(super) fn nobody(api: Api, call: &str, why: String) -> Self {
        Self::new(api, call, None, "UNAUTHENTICATED", why)
    }

    /// What is to be changed is not there.
    pub(in crate::setup) fn absent(api: Api, call: &str) -> Self {
        Self::new(api, call, Some(StatusCode::NOT_FOUND), "NOT_FOUND", "it is not there (yet)".to_owned())
    }

    /// An answer that says no.
    pub(super) fn refused(api: Api, call: &str, status: StatusCode, body: &[u8]) -> Self {
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        let code = body["error"]["status"].as_str().unwrap_or_default();
        let message = body["error"]["message"].as_str().unwrap_or("no reason was given");
        let mut error = Self::new(api, call, Some(status), code, message.to_owned());
        error.read_details(&body["error"]["details"]);
        error
    }

    /// A long operation that ended badly; its error has a number for a code (google/rpc/code.proto).
    pub(super) fn failed_operation(api: Api, call: &str, error: &Value) -> Self {
        let (code, status) = match error["code"].as_i64() {
            Some(6) => ("ALREADY_EXISTS", Some(StatusCode::CONFLICT)),
            Some(7) => ("PERMISSION_DENIED", Some(StatusCode::FORBIDDEN)),
            Some(8) => ("RESOURCE_EXHAUSTED", Some(StatusCode::TOO_MANY_REQUESTS)),
            Some(10) => ("ABORTED", Some(StatusCode::CONFLICT)),
            Some(13) => ("INTERNAL", Some(StatusCode::INTERNAL_SERVER_ERROR)),
            Some(14) => ("UNAVAILABLE", Some(StatusCode::SERVICE_UNAVAILABLE)),
            _ => ("FAILED_PRECONDITION", Some(StatusCode::BAD_REQUEST)),
        };
        let message = error["message"].as_str().unwrap_or("no reason was given");
        let mut failed = Self::new(api, call, status, code, message.to_owned());
        failed.read_details(&error["details"]);
        failed
    }

    fn new(api: Api, call: &str, status: Option<StatusCode>, code: &str, message: String) -> Self {
        let (call, code) = (call.to_owned(), code.to_owned());
        Self { api, call, status, code, message, reason: None, permission: None, retry_after: None }
    }

    fn read_details(&mut self, details: &Value) {
        let info = details.as_array().into_iter().flatten().find(|detail| {
            detail["@type"].as_str().is_some_and(|kind| kind.ends_with("google.rpc.ErrorInfo"))
        });
        if let Some(info) = info {
            self.reason = info["reason"].as_str().map(str::to_owned);
            self.permission = info["metadata"]["permission"].as_str().map(str::to_owned);
        }
    }

    /// The thing is not there.
    pub(in crate::setup) fn is_not_found(&self) -> bool {
        self.status == Some(StatusCode::NOT_FOUND)
    }

    /// It is in a state in which this cannot be done.
    pub(in crate::setup) fn is_failed_precondition(&self) -> bool {
        self.code == "FAILED_PRECONDITION"
    }

    /// Its API is not enabled in the project, or was so a moment ago.
    pub(in crate::setup) fn is_not_enabled(&self) -> bool {
        self.reason.as_deref() == Some("SERVICE_DISABLED")
    }

    /// The caller may not do this.
    pub(in crate::setup) fn is_denied(&self) -> bool {
        self.status == Some(StatusCode::FORBIDDEN) && !self.is_not_enabled()
    }

    /// The same call may well succeed a moment later.
    pub(super) fn is_transient(&self) -> bool {
        match self.status {
            None => self.code == "UNAVAILABLE",
            Some(status) => matches!(status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504),
        }
    }

    /// The same step may succeed once the live state was read again: somebody else was faster, or what was just made
    /// is not known everywhere yet (accounts, APIs and metrics take up to minutes for that).
    pub(in crate::setup) fn passes_with_time(&self) -> bool {
        self.is_transient()
            || self.is_not_enabled()
            || self.is_not_found()
            || self.is_unknown_principal()
            || self.status == Some(StatusCode::CONFLICT)
    }

    /// A policy names an account that is not known, or not known everywhere yet: the one place where the code alone,
    /// `INVALID_ARGUMENT`, does not tell what may pass from what will not.
    pub(in crate::setup) fn is_unknown_principal(&self) -> bool {
        self.code == "INVALID_ARGUMENT" && self.message.contains("does not exist")
    }

    /// How long the API asks to wait, where it does.
    pub(in crate::setup) fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// The role to ask for.
    pub(in crate::setup) fn role(&self) -> &'static str {
        let permission = self.permission.as_deref().unwrap_or_default();
        match permission {
            "secretmanager.versions.access" => "roles/secretmanager.secretAccessor",
            "iam.serviceAccounts.actAs" => "roles/iam.serviceAccountUser",
            _ if self.message.to_ascii_lowercase().contains("serviceaccounts.actas") => {
                "roles/iam.serviceAccountUser"
            }
            _ => self.api.role(),
        }
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { api, call, message, .. } = self;
        if self.is_denied() {
            let permission = self.permission.as_deref().unwrap_or(call);
            return write!(f, "no right to {permission}: ask for {} ({api}: {message})", self.role());
        }
        match self.status {
            Some(status) => write!(f, "{api} answers {} {} to {call}: {message}", status.as_u16(), self.code),
            None if self.code == "UNAUTHENTICATED" => write!(f, "{message}"),
            None if self.code == "DEADLINE_EXCEEDED" => write!(f, "{api} has begun {call}: {message}"),
            None => write!(f, "{api} does not answer {call}: {message}"),
        }
    }
}

impl std::error::Error for ApiError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_right_names_the_role_that_has_it() {
        let body =
            br#"{"error":{"code":403,"status":"PERMISSION_DENIED","message":"Permission denied on resource",
            "details":[{"@type":"type.googleapis.com/google.rpc.ErrorInfo","reason":"IAM_PERMISSION_DENIED",
            "metadata":{"permission":"iam.serviceAccounts.actAs"}}]}}"#;
        let error = ApiError::refused(Api::Run, "POST x", StatusCode::FORBIDDEN, body);
        assert!(error.is_denied() && !error.passes_with_time());
        assert!(error.to_string().contains("ask for roles/iam.serviceAccountUser"), "{error}");
        let plain = ApiError::refused(Api::Run, "POST x", StatusCode::FORBIDDEN, b"not JSON");
        assert!(plain.to_string().contains("ask for roles/run.admin"), "{plain}");
    }

    #[test]
    fn what_may_pass_is_told_from_what_will_not() {
        for (status, code, transient, passes) in [
            (429, "RESOURCE_EXHAUSTED", true, true),
            (500, "INTERNAL", true, true),
            (503, "UNAVAILABLE", true, true),
            (409, "ALREADY_EXISTS", false, true),
            (409, "ABORTED", false, true),
            (404, "NOT_FOUND", false, true),
            (400, "INVALID_ARGUMENT", false, false),
            (403, "PERMISSION_DENIED", false, false),
        ] {
            let body = format!(r#"{{"error":{{"status":"{code}","message":"no"}}}}"#);
            let status = StatusCode::from_u16(status).unwrap();
            let error = ApiError::refused(Api::Iam, "GET x", status, body.as_bytes());
            assert_eq!(
                (error.is_transient(), error.passes_with_time()),
                (transient, passes),
                "{status} {code}"
            );
        }
        let unknown =
            br#"{"error":{"status":"INVALID_ARGUMENT","message":"Service account a@b does not exist."}}"#;
        assert!(ApiError::refused(Api::Iam, "POST x", StatusCode::BAD_REQUEST, unknown).passes_with_time());
    }
}
