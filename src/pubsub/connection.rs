//! gRPC connections to Pub/Sub, or to an emulator, with the credentials that belong to them.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use google_cloud_auth::credentials::{Builder, CacheableResource, Credentials};
use http::Extensions;
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};
use tonic::{Request, Status};

use super::PubsubArgs;

/// The OAuth scope of Pub/Sub (developers.google.com/identity/protocols/oauth2/scopes#pubsub).
const SCOPE: &str = "https://www.googleapis.com/auth/pubsub";
/// How soon an endpoint that does not answer at start is tried again.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);
/// How long finding credentials, and connecting, may each take at start.
const START_LIMIT: Duration = Duration::from_secs(10);

/// One connection carries at most 100 calls at once on Google's side, and one flow-control window for all of them.
const CHANNELS: usize = 4;

/// Channels that reconnect by themselves, and whom to be on them. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Connection {
    channels: Arc<Channels>,
    /// None for an emulator.
    credentials: Option<Credentials>,
    /// How messages call the other side.
    pub(crate) endpoint: String,
}

struct Channels {
    endpoint: Endpoint,
    /// Each with how often it was replaced.
    slots: [Mutex<(Channel, u64)>; CHANNELS],
    next: AtomicUsize,
}

/// The use of one channel for one call.
pub(crate) struct Lease {
    channels: Arc<Channels>,
    slot: usize,
    channel: Channel,
    replaced: u64,
}

impl Lease {
    /// The channel to call on.
    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// The call got no answer in its time: later calls go over a new connection, as the old one may be dead without a
    /// word (a firewall that forgot it, a host that is gone).
    pub(crate) fn give_up(self) {
        let mut slot = self.channels.slots[self.slot].lock().unwrap_or_else(PoisonError::into_inner);
        if slot.1 == self.replaced {
            *slot = (self.channels.endpoint.connect_lazy(), self.replaced + 1);
        }
    }
}

impl Connection {
    /// Connects to the emulator if one is named, otherwise to the endpoint with application default credentials.
    ///
    /// # Errors
    /// An endpoint that is no URL, no credentials within 10 s, nothing that answers within the time for it.
    pub(crate) async fn open(args: &PubsubArgs) -> anyhow::Result<Self> {
        let limit = Duration::from_secs(args.pubsub_timeout.into());
        // An empty variable is an unset one, as for Google's clients.
        match args.pubsub_emulator_host.as_deref().filter(|host| !host.is_empty()) {
            Some(host) => {
                let url = if host.contains("://") { host.to_owned() } else { format!("http://{host}") };
                let channels = connect(Endpoint::from_shared(url.clone()), &url, limit)
                    .await
                    .context("PUBSUB_EMULATOR_HOST is set; is the emulator running?")?;
                Ok(Self { channels, credentials: None, endpoint: url })
            }
            None => {
                let credentials = application_default_credentials().await?;
                let url = args.pubsub_endpoint.clone();
                let mut endpoint = Endpoint::from_shared(url.clone());
                if url.starts_with("https://") {
                    endpoint =
                        endpoint.and_then(|e| e.tls_config(ClientTlsConfig::new().with_native_roots()));
                }
                let channels = connect(endpoint, &url, limit).await?;
                Ok(Self { channels, credentials: Some(credentials), endpoint: url })
            }
        }
    }

    /// A channel for one call; they take turns.
    pub(crate) fn lease(&self) -> Lease {
        let number = self.channels.next.fetch_add(1, Ordering::Relaxed) % CHANNELS;
        let (channel, replaced) =
            self.channels.slots[number].lock().unwrap_or_else(PoisonError::into_inner).clone();
        Lease { channels: self.channels.clone(), slot: number, channel, replaced }
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

/// Opens one connection, to see that somebody answers; the others open with their first call.
async fn connect(
    endpoint: Result<Endpoint, tonic::transport::Error>,
    url: &str,
    limit: Duration,
) -> anyhow::Result<Arc<Channels>> {
    let endpoint = endpoint
        .map_err(|error| anyhow!("Pub/Sub endpoint {url}: {}", chain(&error)))?
        .connect_timeout(START_LIMIT)
        .http2_keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(10))
        .keep_alive_while_idle(true);
    let deadline = Instant::now() + limit;
    let mut tries = 0_u32;
    let first = loop {
        match endpoint.connect().await {
            Ok(channel) => break channel,
            Err(error) if Instant::now() < deadline => {
                let error = chain(&error);
                if tries.is_multiple_of(10) {
                    tracing::warn!("Pub/Sub at {url} does not answer yet, trying again: {error}");
                }
                tries += 1;
                tokio::time::sleep(RETRY_INTERVAL).await;
            }
            Err(error) => bail!("no Pub/Sub at {url} within {} s: {}", limit.as_secs(), chain(&error)),
        }
    };
    let slots = std::array::from_fn(|index| {
        let channel = if index == 0 { first.clone() } else { endpoint.connect_lazy() };
        Mutex::new((channel, 0))
    });
    Ok(Arc::new(Channels { endpoint, slots, next: AtomicUsize::new(0) }))
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
