//! One client for all APIs: who calls, where to, and again where an answer was lost or says to come back.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use google_cloud_auth::credentials::impersonated;
use google_cloud_auth::credentials::{Builder, CacheableResource, Credentials};
use http::{Extensions, Method, header};
use serde_json::Value;
use tokio::sync::OnceCell;
use tokio::time::Instant;

use super::{Api, ApiError, Endpoint};
use crate::retry::{backoff, retry_after};

const SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform";
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
const CALL_LIMIT: Duration = Duration::from_secs(60);
/// The longest `Retry-After` that is kept to.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);
/// The most of an answer that is read; a page of any list is far below it.
const MAX_ANSWER_BYTES: usize = 32 << 20;
/// Pages of one list, so that a server that never ends one ends nobody else's patience.
const MAX_PAGES: usize = 1_000;

/// Who calls, and where to.
#[derive(Debug, Clone, clap::Args)]
pub(in crate::setup) struct ClientArgs {
    /// Act as this service account, which you must be allowed to do (roles/iam.serviceAccountTokenCreator on it)
    #[arg(long, value_name = "EMAIL", global = true, env = "CDNWARM_IMPERSONATE_SERVICE_ACCOUNT")]
    impersonate_service_account: Option<String>,

    /// Another place for an API (run, pubsub, iam...); one with http:// is spoken to without credentials
    #[arg(long, value_name = "API=URL", global = true, value_delimiter = ',', env = "CDNWARM_ENDPOINT")]
    endpoint: Vec<Endpoint>,

    /// Seconds for which a failure that may pass is tried again
    #[arg(
        long,
        value_name = "SECONDS",
        global = true,
        default_value_t = 180,
        env = "CDNWARM_SETUP_RETRY_FOR"
    )]
    retry_for: u16,
}

impl ClientArgs {
    /// For how long a failure that may pass is tried again.
    pub(in crate::setup) fn retry_for(&self) -> Duration {
        Duration::from_secs(self.retry_for.into())
    }
}

/// Speaks to every API.
pub(in crate::setup) struct Client {
    http: reqwest::Client,
    args: ClientArgs,
    endpoints: HashMap<Api, String>,
    /// Found with the first call that needs them.
    credentials: OnceCell<Credentials>,
}

impl Client {
    /// Opens nothing yet.
    ///
    /// # Errors
    /// A system without CA certificates.
    pub(in crate::setup) fn new(args: ClientArgs) -> anyhow::Result<Self> {
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_LIMIT)
            .timeout(CALL_LIMIT)
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .build()
            .context("preparing HTTPS")?;
        let endpoints = args.endpoint.iter().map(|endpoint| (endpoint.api, endpoint.url.clone())).collect();
        Ok(Self { http, args, endpoints, credentials: OnceCell::new() })
    }

    /// For how long a failure that may pass is tried again.
    pub(in crate::setup) fn retry_for(&self) -> Duration {
        self.args.retry_for()
    }

    /// Reads; None where there is nothing, or where the API is not enabled and so can hold nothing.
    ///
    /// # Errors
    /// All else than an answer, after patience.
    pub(in crate::setup) async fn find(&self, api: Api, path: &str) -> Result<Option<Value>, ApiError> {
        match self.call(api, Method::GET, path, None).await {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.is_not_found() || error.is_not_enabled() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Reads all pages of a list; `items` is the member that holds them.
    ///
    /// # Errors
    /// As for [`Client::find`].
    pub(in crate::setup) async fn list(
        &self,
        api: Api,
        path: &str,
        items: &str,
    ) -> Result<Vec<Value>, ApiError> {
        let mut all = Vec::new();
        let mut token = String::new();
        for _ in 0..MAX_PAGES {
            let sign = if path.contains('?') { '&' } else { '?' };
            let page = match token.as_str() {
                "" => path.to_owned(),
                token => format!("{path}{sign}pageToken={}", encoded(token)),
            };
            let Some(mut found) = self.find(api, &page).await? else { break };
            if let Value::Array(found) = found[items].take() {
                all.extend(found);
            }
            match found["nextPageToken"].as_str() {
                Some(next) if !next.is_empty() => token = next.to_owned(),
                _ => break,
            }
        }
        Ok(all)
    }

    /// Calls what may be called twice, again where the answer is lost or says to come back, for as long as is allowed.
    ///
    /// # Errors
    /// What the API says.
    pub(in crate::setup) async fn call(
        &self,
        api: Api,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, ApiError> {
        let deadline = Instant::now() + self.retry_for();
        let mut delays = delays();
        loop {
            match self.call_once(api, method.clone(), path, body).await {
                Err(error) if error.is_transient() => {
                    let delay = delays.next().unwrap_or_default().max(error.retry_after.unwrap_or_default());
                    if Instant::now() + delay >= deadline {
                        return Err(error);
                    }
                    tracing::debug!("again in {} ms: {error}", delay.as_millis());
                    tokio::time::sleep(delay).await;
                }
                done => return done,
            }
        }
    }

    /// Calls once: for what must not happen twice. Whoever calls looks before calling again.
    ///
    /// # Errors
    /// What the API says, or that it said nothing.
    pub(in crate::setup) async fn call_once(
        &self,
        api: Api,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, ApiError> {
        let call = format!("{method} {}", path.split('?').next().unwrap_or_default());
        let base = self.endpoints.get(&api).cloned().unwrap_or_else(|| format!("https://{}", api.host()));
        let no_answer = |why: String| ApiError::no_answer(api, &call, why);
        let mut request = self.http.request(method, format!("{base}/{path}"));
        // A token never travels in plain text.
        if base.starts_with("https://") {
            let headers = self.headers().await;
            let headers = headers.map_err(|error| ApiError::nobody(api, &call, format!("{error:#}")))?;
            request = request.headers(headers);
        }
        // Also without a body: the Pub/Sub emulator takes no request without it.
        request = request.header(header::CONTENT_TYPE, "application/json");
        if let Some(body) = body {
            request = request.body(body.to_string());
        }
        let mut answer = request.send().await.map_err(|error| no_answer(chain(error.without_url())))?;
        let status = answer.status();
        let retry_after = retry_after(answer.headers(), SystemTime::now());
        let mut bytes = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(|error| no_answer(chain(error.without_url())))? {
            if bytes.len() + chunk.len() > MAX_ANSWER_BYTES {
                return Err(no_answer("its answer is too long".to_owned()));
            }
            bytes.extend_from_slice(&chunk);
        }
        if status.is_success() {
            if bytes.is_empty() {
                return Ok(Value::Null);
            }
            return serde_json::from_slice(&bytes).map_err(|error| no_answer(format!("no JSON: {error}")));
        }
        let mut error = ApiError::refused(api, &call, status, &bytes);
        error.retry_after = retry_after.map(|delay| delay.min(MAX_RETRY_AFTER));
        Err(error)
    }

    async fn headers(&self) -> anyhow::Result<http::HeaderMap> {
        const ADVICE: &str = "run `gcloud auth application-default login`, or point GOOGLE_APPLICATION_CREDENTIALS at a \
                              key file";
        let credentials = self
            .credentials
            .get_or_try_init(async || -> anyhow::Result<Credentials> {
                let own = Builder::default().with_scopes([SCOPE]).build();
                let own = own.with_context(|| format!("no application default credentials: {ADVICE}"))?;
                match &self.args.impersonate_service_account {
                    None => Ok(own),
                    Some(email) => impersonated::Builder::from_source_credentials(own)
                        .with_target_principal(email)
                        .with_scopes([SCOPE])
                        .build()
                        .with_context(|| format!("acting as {email}")),
                }
            })
            .await?;
        match credentials.headers(Extensions::new()).await.context("no access token")? {
            CacheableResource::New { data, .. } => Ok(data),
            // Only an answer to a request that named an earlier token, which ours does not.
            CacheableResource::NotModified => anyhow::bail!("no token in the answer"),
        }
    }
}

/// Returns the delays between tries: from a quarter of a second up to 15 s, with jitter, without end.
pub(in crate::setup) fn delays() -> impl Iterator<Item = Duration> {
    backoff(Duration::from_millis(250), Duration::from_secs(15))
}

/// What may stand in a query or as one part of a path.
pub(in crate::setup) fn encoded(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>().replace('+', "%20")
}

/// An error with all that caused it; reqwest's own text stops at "error sending request".
fn chain(error: reqwest::Error) -> String {
    format!("{:#}", anyhow::Error::from(error))
}
