//! Publishing whole batches: one gRPC call, its own deadline, no retries (what a failure means is `bridge`'s to decide).

use std::time::Duration;

use anyhow::bail;
use googleapis_tonic_google_pubsub_v1::google::pubsub::v1::publisher_client::PublisherClient;
use googleapis_tonic_google_pubsub_v1::google::pubsub::v1::{GetTopicRequest, PublishRequest, PubsubMessage};
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::{Connection, TopicName};

/// How long one call may take; Google's own clients use the same for Publish.
const CALL_LIMIT: Duration = Duration::from_secs(60);

/// Takes a batch of messages; the seam at which tests fail.
pub(crate) trait Publish: Send + Sync {
    /// Publishes all of `messages`, at most 1,000 and 10 MB, or none.
    ///
    /// # Errors
    /// The call's gRPC status.
    fn publish(&self, messages: Vec<PubsubMessage>) -> impl Future<Output = Result<(), Status>> + Send;
}

/// Publishes to one topic.
#[derive(Clone)]
pub(crate) struct GrpcPublisher {
    connection: Connection,
    client: PublisherClient<Channel>,
    topic: TopicName,
}

impl GrpcPublisher {
    pub(crate) fn new(connection: Connection, topic: TopicName) -> Self {
        let client = PublisherClient::new(connection.channel.clone());
        Self { connection, client, topic }
    }

    /// Asks for the topic, so that a mistyped name is found before a record moves.
    ///
    /// # Errors
    /// No such topic, no credentials, or no answer. An account that may publish but not look is fine: the first
    /// publish will tell.
    pub(crate) async fn check_topic(&self) -> anyhow::Result<()> {
        let name = self.topic.as_str();
        let endpoint = &self.connection.endpoint;
        let ask = async {
            let request = GetTopicRequest { topic: name.to_owned() };
            let request = self.connection.request(request, ("topic", name)).await?;
            self.client.clone().get_topic(request).await
        };
        let status = match tokio::time::timeout(Duration::from_secs(10), ask).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(status)) => status,
            Err(_) => bail!("Pub/Sub at {endpoint} did not answer within 10 s"),
        };
        match status.code() {
            Code::PermissionDenied => {
                tracing::debug!("not allowed to look at {name}; publishing may be allowed all the same");
                Ok(())
            }
            Code::NotFound => bail!(
                "Pub/Sub topic {name} does not exist at {endpoint}: check the name, or create it with \
                 `gcloud pubsub topics create`"
            ),
            code => bail!("asking Pub/Sub at {endpoint} for {name}: {code:?}: {}", status.message()),
        }
    }
}

impl Publish for GrpcPublisher {
    async fn publish(&self, messages: Vec<PubsubMessage>) -> Result<(), Status> {
        let topic = self.topic.as_str();
        let count = messages.len();
        let request = PublishRequest { topic: topic.to_owned(), messages };
        let call = async {
            let request = self.connection.request(request, ("topic", topic)).await?;
            self.client.clone().publish(request).await
        };
        let response = tokio::time::timeout(CALL_LIMIT, call).await.map_err(|_| {
            Status::deadline_exceeded(format!("no answer within {} s", CALL_LIMIT.as_secs()))
        })??;
        let ids = response.into_inner().message_ids.len();
        if ids == count {
            Ok(())
        } else {
            Err(Status::internal(format!("{ids} message ids came back for {count} messages")))
        }
    }
}
