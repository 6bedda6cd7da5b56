//! Publishing whole requests: one gRPC call, its own deadline, no retries (what a failure means is `bridge`'s to decide).

use std::time::Duration;

use anyhow::bail;
use bytes::{Buf, BufMut, Bytes};
use googleapis_tonic_google_pubsub_v1::google::pubsub::v1::GetTopicRequest;
use googleapis_tonic_google_pubsub_v1::google::pubsub::v1::publisher_client::PublisherClient;
use http::uri::PathAndQuery;
use prost::encoding::{DecodeContext, decode_key, skip_field};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Code, Status};

use super::{Connection, TopicName};

/// Takes publish requests; the seam at which tests fail.
pub(crate) trait Publish: Send + Sync {
    /// Publishes all of a request's `messages`, or none, within `limit`.
    ///
    /// # Errors
    /// The call's gRPC status, `DEADLINE_EXCEEDED` past the limit.
    fn publish(
        &self,
        request: Bytes,
        messages: usize,
        limit: Duration,
    ) -> impl Future<Output = Result<(), Status>> + Send;
}

/// Publishes to one topic. Cheap to clone.
#[derive(Clone)]
pub(crate) struct GrpcPublisher {
    connection: Connection,
    topic: TopicName,
}

impl GrpcPublisher {
    pub(crate) fn new(connection: Connection, topic: TopicName) -> Self {
        Self { connection, topic }
    }

    /// Which topic it publishes to.
    pub(crate) fn topic(&self) -> &TopicName {
        &self.topic
    }

    /// Asks for the topic, so that a mistyped name is found before a record moves.
    ///
    /// # Errors
    /// No such topic, or credentials that are refused. An account that may publish but not look is fine, and so is no answer
    /// just now: the first publish will tell.
    pub(crate) async fn check_topic(&self) -> anyhow::Result<()> {
        let name = self.topic.as_str();
        let endpoint = &self.connection.endpoint;
        let ask = async {
            let request = GetTopicRequest { topic: name.to_owned() };
            let request = self.connection.request(request, ("topic", name)).await?;
            PublisherClient::new(self.connection.lease().channel()).get_topic(request).await
        };
        let status = match tokio::time::timeout(Duration::from_secs(10), ask).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(status)) => status,
            Err(_) => Status::deadline_exceeded("no answer within 10 s"),
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
            code @ (Code::Unauthenticated | Code::InvalidArgument | Code::Unimplemented) => {
                bail!("asking Pub/Sub at {endpoint} for {name}: {code:?}: {}", status.message())
            }
            code => {
                let text = status.message();
                tracing::warn!(
                    "asking Pub/Sub at {endpoint} for {name}: {code:?}: {text}; publishing will tell"
                );
                Ok(())
            }
        }
    }
}

impl Publish for GrpcPublisher {
    async fn publish(&self, request: Bytes, messages: usize, limit: Duration) -> Result<(), Status> {
        const PATH: PathAndQuery = PathAndQuery::from_static("/google.pubsub.v1.Publisher/Publish");
        let lease = self.connection.lease();
        let call = async {
            let request = self.connection.request(request, ("topic", self.topic.as_str())).await?;
            let mut client = tonic::client::Grpc::new(lease.channel());
            let not_ready = |error: tonic::transport::Error| Status::unavailable(error.to_string());
            client.ready().await.map_err(not_ready)?;
            client.unary(request, PATH, RawPublish).await
        };
        let Ok(answer) = tokio::time::timeout(limit, call).await else {
            // Whatever holds the answer back may hold back every other on this connection.
            lease.give_up();
            return Err(Status::deadline_exceeded(format!("no answer within {} s", limit.as_secs())));
        };
        let ids = answer?.into_inner();
        if ids == messages {
            Ok(())
        } else {
            Err(Status::internal(format!("{ids} message ids came back for {messages} messages")))
        }
    }
}

/// Sends a request that is encoded already, and counts the ids in the answer instead of keeping them.
#[derive(Clone, Copy, Default)]
struct RawPublish;

impl Codec for RawPublish {
    type Encode = Bytes;
    type Decode = usize;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for RawPublish {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, request: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(request);
        Ok(())
    }
}

impl Decoder for RawPublish {
    type Item = usize;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<usize>, Status> {
        let ids = count_ids(buffer)
            .map_err(|error| Status::internal(format!("an answer that is no PublishResponse: {error}")))?;
        Ok(Some(ids))
    }
}

/// How many `message_ids` (field 1) a `PublishResponse` has.
fn count_ids(buffer: &mut impl Buf) -> Result<usize, prost::DecodeError> {
    let mut ids = 0;
    while buffer.has_remaining() {
        let (number, kind) = decode_key(buffer)?;
        if number == 1 {
            ids += 1;
        }
        skip_field(kind, number, buffer, DecodeContext::default())?;
    }
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use googleapis_tonic_google_pubsub_v1::google::pubsub::v1::PublishResponse;
    use prost::Message as _;

    use super::*;

    #[test]
    fn ids_are_counted_as_the_generated_code_reads_them() {
        for message_ids in [vec![], vec![String::new()], vec!["17".to_owned(); 300], vec!["x".repeat(300)]] {
            let count = message_ids.len();
            let encoded = PublishResponse { message_ids }.encode_to_vec();
            assert_eq!(count_ids(&mut &encoded[..]).unwrap(), count);
        }
        assert!(count_ids(&mut &b"\x0a\x05ab"[..]).is_err(), "cut off");
        assert!(count_ids(&mut &b"\x0a"[..]).is_err(), "no length");
        assert_eq!(count_ids(&mut &b"\x10\x01\x0a\x01a"[..]).unwrap(), 1, "an unknown field is skipped");
    }
}
