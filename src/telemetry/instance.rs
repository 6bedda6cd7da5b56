//! Which region and instance this is: from the arguments, from Google Cloud's metadata server, or made up locally.

use std::sync::Arc;
use std::time::Duration;

use clap::builder::NonEmptyStringValueParser;
use tokio::sync::OnceCell;

/// The metadata server answers in a millisecond or is not there.
const METADATA_LIMIT: Duration = Duration::from_millis(500);

/// Who this is, as operators set it.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct InstanceArgs {
    /// Region that this process warms; on Google Cloud the default is the one it runs in, elsewhere "local"
    #[arg(long, value_name = "NAME", env = "CDNWARM_REGION", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) region: Option<String>,

    /// Host of Google Cloud's metadata server; none where there surely is no such server
    #[arg(
        long,
        value_name = "HOST[:PORT]",
        default_value = "metadata.google.internal",
        env = "GCE_METADATA_HOST",
        hide = true
    )]
    pub(crate) metadata_host: Option<String>,

    /// The Cloud Run service that this is an instance of; Cloud Run itself says so
    #[arg(long, env = "K_SERVICE", hide = true)]
    pub(crate) cloud_run_service: Option<String>,
}

/// Where an outcome was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Instance {
    pub(crate) region: String,
    /// The last eight characters of the instance's id.
    pub(crate) id: String,
}

/// Finds out once, in the background; whoever needs the answer early waits for it, at most half a second.
#[derive(Clone)]
pub(crate) struct Identity {
    args: InstanceArgs,
    found: Arc<OnceCell<Instance>>,
}

impl Identity {
    /// Starts to find out; never delays the caller.
    pub(crate) fn discover(args: InstanceArgs) -> Self {
        let identity = Self { args, found: Arc::default() };
        let background = identity.clone();
        tokio::spawn(async move {
            let Instance { region, id } = background.get().await;
            tracing::debug!(region, instance = id, "this instance");
        });
        identity
    }

    /// Who this is, once that was found out.
    pub(crate) fn known(&self) -> Option<&Instance> {
        self.found.get()
    }

    /// Who this is.
    pub(crate) async fn get(&self) -> &Instance {
        self.found.get_or_init(|| find(&self.args)).await
    }
}

async fn find(args: &InstanceArgs) -> Instance {
    // The host is link-local: no proxy stands before it.
    // It speaks plain HTTP, so reading the system's certificates, which takes milliseconds at start, would be for nothing.
    let client = reqwest::Client::builder().no_proxy().tls_certs_only([]).timeout(METADATA_LIMIT).build();
    let ask = async |path: &str| {
        let host = args.metadata_host.as_ref()?;
        let url = format!("http://{host}/computeMetadata/v1/instance/{path}");
        let request = client.as_ref().ok()?.get(url).header("Metadata-Flavor", "Google");
        let answer = request.send().await.ok()?.error_for_status().ok()?;
        Some(answer.text().await.ok()?.trim().to_owned()).filter(|text| !text.is_empty())
    };
    let (id, region) = match &args.region {
        None => tokio::join!(ask("id"), ask("region")),
        // There every instance has the same host name and process id.
        Some(region) if args.cloud_run_service.is_some() => (ask("id").await, Some(region.clone())),
        // Elsewhere a question would only look like a fetch that nobody wanted.
        Some(region) => (None, Some(region.clone())),
    };
    Instance {
        // The metadata server writes projects/NUMBER/regions/NAME.
        region: region
            .map_or_else(|| "local".to_owned(), |r| r.rsplit('/').next().unwrap_or_default().to_owned()),
        id: last_eight(&id.unwrap_or_else(local_id)),
    }
}

/// Outside Google Cloud: this host and process.
fn local_id() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}-{}", host.trim(), std::process::id())
}

fn last_eight(id: &str) -> String {
    let skip = id.chars().count().saturating_sub(8);
    id.chars().skip(skip).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_shows_the_last_eight_characters_of_its_id() {
        assert_eq!(last_eight("00f8b9c1d2e3a4b5c6d7"), "a4b5c6d7");
        assert_eq!(last_eight("short"), "short");
    }

    #[tokio::test]
    async fn without_a_metadata_server_it_is_local() {
        let nowhere =
            InstanceArgs { metadata_host: Some("127.0.0.1:1".to_owned()), ..InstanceArgs::default() };
        let identity = Identity::discover(nowhere);
        assert_eq!(identity.get().await.region, "local");
        assert!(!identity.get().await.id.is_empty());
    }
}
