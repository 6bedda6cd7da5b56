//! One gRPC connection to Pub/Sub, or to an emulator, with the credentials that belong to it.

use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use google_cloud_auth::credentials::{Builder, CacheableResource, Credentials};
use http::Extensions;
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};
use tonic::{Request, Status};

use super::PubsubArgs;

/// The OAuth scope of Pub/Sub (developers.google.com/identity/protocols/oauth2/scopes#pubsub).
const SCOPE: &str = "https://www.googleapis.com/auth/pubsub";
/// How long finding credentials, and connecting, may each take at start.
const START_LIMIT: Duration = Duration::from_secs(10);

/// A channel that reconnects by itself, and whom to be on it. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Connection {
    pub(crate) channel: Channel,
    /// None for an emulator.
    credentials: Option<Credentials>,
    /// How messages call the other side.
    pub(crate) endpoint: String,
}

impl Connection {
    /// Connects to the emulator if one is named, otherwise to the endpoint with application default credentials.
    ///
    /// # Errors
    /// An endpoint that is no URL, no credentials within 10 s, nothing that answers within 10 s.
    pub(crate) async fn open(args: &PubsubArgs) -> anyhow::Result<Self> {
        // An empty variable is an unset one, as for Google's clients.
        match args.pubsub_emulator_host.as_deref().filter(|host| !host.is_empty()) {
            Some(host) => {
                let url = if host.contains("://") { host.to_owned() } else { format!("http://{host}") };
                let channel = connect(Endpoint::from_shared(url.clone()), &url)
                    .await
                    .context("PUBSUB_EMULATOR_HOST is set; is the emulator running?")?;
                Ok(Self { channel, credentials: None, endpoint: url })
            }
            None => {
                let credentials = application_default_credentials().await?;
                let url = args.pubsub_endpoint.clone();
                let mut endpoint = Endpoint::from_shared(url.clone());
                if url.starts_with("https://") {
                    endpoint =
                        endpoint.and_then(|e| e.tls_config(ClientTlsConfig::new().with_native_roots()));
                }
                let channel = connect(endpoint, &url).await?;
                Ok(Self { channel, credentials: Some(credentials), endpoint: url })
            }
        }
    }

    /// Wraps a message for sending: authorization, and the resource that it is routed by.
    ///
    /// # Errors
    /// `UNAUTHENTICATED` where no token can be had just now.
    pub(crate) async fn request<T>(&self, message: T, resource: (&str, &str)) -> Result<Request<T>, Status> {
        let mut request = Request::new(message);
        if let Some(credentials) = &self.credentials {
            let headers = headers(credentials)
                .await
                .map_err(|error| Status::unauthenticated(format!("no access token: {error:#}")))?;
            *request.metadata_mut() = MetadataMap::from_headers(headers);
        }
        // Google routes by this header (google.aip.dev/client-libraries/4222); slashes need no escape in it.
        if let Ok(routing) = format!("{}={}", resource.0, resource.1).parse() {
            request.metadata_mut().insert("x-goog-request-params", routing);
        }
        Ok(request)
    }
}

async fn connect(endpoint: Result<Endpoint, tonic::transport::Error>, url: &str) -> anyhow::Result<Channel> {
    let endpoint = endpoint
        .map_err(|error| anyhow!("Pub/Sub endpoint {url}: {}", chain(&error)))?
        .connect_timeout(START_LIMIT)
        .http2_keep_alive_interval(Duration::from_secs(30))
        .keep_alive_while_idle(true);
    endpoint.connect().await.map_err(|error| anyhow!("connecting to Pub/Sub at {url}: {}", chain(&error)))
}

/// Finds credentials and proves them by asking for a token.
async fn application_default_credentials() -> anyhow::Result<Credentials> {
    const ADVICE: &str = "run `gcloud auth application-default login`, point GOOGLE_APPLICATION_CREDENTIALS at a key \
                          file, or run where a service account is attached; for an emulator set PUBSUB_EMULATOR_HOST";
    let credentials = Builder::default()
        .with_scopes([SCOPE])
        .build()
        .with_context(|| format!("no application default credentials: {ADVICE}"))?;
    match tokio::time::timeout(START_LIMIT, headers(&credentials)).await {
        Ok(Ok(_)) => Ok(credentials),
        Ok(Err(error)) => {
            Err(error.context(format!("application default credentials give no access token: {ADVICE}")))
        }
        Err(_) => bail!(
            "application default credentials gave no access token within {} s: {ADVICE}",
            START_LIMIT.as_secs()
        ),
    }
}

async fn headers(credentials: &Credentials) -> anyhow::Result<http::HeaderMap> {
    match credentials.headers(Extensions::new()).await? {
        CacheableResource::New { data, .. } => Ok(data),
        // Only an answer to a request that named an earlier token, which ours does not.
        CacheableResource::NotModified => bail!("no token in the answer"),
    }
}

/// An error with all that caused it; tonic's own text is only "transport error".
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
