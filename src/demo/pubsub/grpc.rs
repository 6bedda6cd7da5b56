//! The API over gRPC: a path to the method behind it.

use std::future::{Future, ready};
use std::pin::Pin;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, Stream, TryFutureExt};
use googleapis_tonic_google_pubsub_v1::google::pubsub::v1 as pb;
use http::{Request, Response};
use hyper::body::Incoming;
use prost::Message;
use tonic::Status;
use tonic::body::Body;
use tonic::server::{Grpc, StreamingService, UnaryService};
use tonic_prost::ProstCodec;

use super::broker::Broker;
use super::{MAX_REQUEST_BYTES, checks, streaming_pull};

/// Answers one call. Methods that are not served answer `UNIMPLEMENTED`.
pub(super) async fn serve(broker: Arc<Broker>, request: Request<Incoming>) -> Response<Body> {
    let path = request.uri().path();
    let Some(method) = path.strip_prefix("/google.pubsub.v1.") else {
        return checks::unserved(path).into_http();
    };
    match method {
        "Publisher/CreateTopic" => unary(request, |topic| ready(broker.create_topic(topic))).await,
        "Publisher/GetTopic" => unary(request, |message| ready(broker.get_topic(&message))).await,
        "Publisher/ListTopics" => unary(request, |message| ready(broker.list_topics(&message))).await,
        "Publisher/ListTopicSubscriptions" => {
            unary(request, |message| ready(broker.list_topic_subscriptions(&message))).await
        }
        "Publisher/DeleteTopic" => unary(request, |message| ready(broker.delete_topic(&message))).await,
        "Publisher/Publish" => unary(request, |message| ready(broker.publish(message))).await,
        "Subscriber/CreateSubscription" => {
            unary(request, |subscription| ready(broker.create_subscription(subscription))).await
        }
        "Subscriber/GetSubscription" => {
            unary(request, |message| ready(broker.get_subscription(&message))).await
        }
        "Subscriber/ListSubscriptions" => {
            unary(request, |message| ready(broker.list_subscriptions(&message))).await
        }
        "Subscriber/DeleteSubscription" => {
            unary(request, |message| ready(broker.delete_subscription(&message))).await
        }
        "Subscriber/Acknowledge" => unary(request, |message| ready(broker.acknowledge(&message))).await,
        "Subscriber/ModifyAckDeadline" => {
            unary(request, |message| ready(broker.modify_ack_deadline(&message))).await
        }
        "Subscriber/Pull" => {
            let pull = |message| {
                let broker = Arc::clone(&broker);
                async move { broker.pull(message).await }
            };
            unary(request, pull).await
        }
        "Subscriber/StreamingPull" => grpc().streaming(StreamingPull(broker), request).await,
        _ => checks::unserved(method).into_http(),
    }
}

fn grpc<Req, Res>() -> Grpc<ProstCodec<Res, Req>>
where
    Req: Message + Default + 'static,
    Res: Message + 'static,
{
    Grpc::new(ProstCodec::default()).max_decoding_message_size(MAX_REQUEST_BYTES)
}

async fn unary<Req, Res, Answer>(
    request: Request<Incoming>,
    method: impl FnMut(Req) -> Answer,
) -> Response<Body>
where
    Req: Message + Default + 'static,
    Res: Message + 'static,
    Answer: Future<Output = Result<Res, Status>> + Send + 'static,
{
    grpc().unary(Unary(method), request).await
}

struct Unary<F>(F);

impl<F, Req, Res, Answer> UnaryService<Req> for Unary<F>
where
    F: FnMut(Req) -> Answer,
    Res: 'static,
    Answer: Future<Output = Result<Res, Status>> + Send + 'static,
{
    type Response = Res;
    type Future = BoxFuture<'static, Result<tonic::Response<Res>, Status>>;

    fn call(&mut self, request: tonic::Request<Req>) -> Self::Future {
        (self.0)(request.into_inner()).map_ok(tonic::Response::new).boxed()
    }
}

struct StreamingPull(Arc<Broker>);

impl StreamingService<pb::StreamingPullRequest> for StreamingPull {
    type Response = pb::StreamingPullResponse;
    type ResponseStream = Pin<Box<dyn Stream<Item = Result<pb::StreamingPullResponse, Status>> + Send>>;
    type Future = BoxFuture<'static, Result<tonic::Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, requests: tonic::Request<tonic::Streaming<pb::StreamingPullRequest>>) -> Self::Future {
        let broker = Arc::clone(&self.0);
        async move {
            let responses = streaming_pull::open(&broker, requests.into_inner()).await?;
            Ok(tonic::Response::new(Box::pin(responses) as Self::ResponseStream))
        }
        .boxed()
    }
}
