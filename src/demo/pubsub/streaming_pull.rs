//! `StreamingPull`: messages one way, acknowledgements and new deadlines the other, until either side has enough.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, stream};
use googleapis_tonic_google_pubsub_v1::google::pubsub::v1 as pb;
use pb::streaming_pull_response::SubscriptionProperties;
use pb::{StreamingPullRequest, StreamingPullResponse};
use tokio::time::{Instant, Interval, interval_at};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::backlog::{Consumer, Delivery};
use super::broker::{Broker, stopping};
use super::checks;
use super::subscription::Subscription;

/// How often a client that understands them gets an empty response, so that it knows the stream lives.
const HEARTBEAT: Duration = Duration::from_secs(30);

/// Opens a stream with its first request.
///
/// # Errors
/// `INVALID_ARGUMENT` for a bad first request, and what [`Broker::pulled_subscription`] says. The stream itself ends
/// with `NOT_FOUND` when the subscription is deleted, `UNAVAILABLE` when the server stops, and well when the client
/// has no more requests.
pub(super) async fn open(
    broker: &Broker,
    mut requests: Streaming<StreamingPullRequest>,
) -> Result<impl Stream<Item = Result<StreamingPullResponse, Status>> + use<>, Status> {
    let first =
        requests.message().await?.ok_or_else(|| Status::invalid_argument("The stream has no request."))?;
    let subscription = broker.pulled_subscription(&first.subscription)?;
    let limit = |max: i64| usize::try_from(max).ok().filter(|max| *max > 0).unwrap_or(usize::MAX);
    let mut open = Open {
        consumer: Consumer::new(
            limit(first.max_outstanding_messages),
            limit(first.max_outstanding_bytes),
            checks::stream_ack_deadline(first.stream_ack_deadline_seconds)?,
        ),
        closing: broker.closing.clone(),
        heartbeats: first.protocol_version >= 1,
        heartbeat: interval_at(Instant::now() + HEARTBEAT, HEARTBEAT),
        subscription,
        requests,
    };
    open.apply(&StreamingPullRequest { subscription: String::new(), ..first })?;
    Ok(stream::try_unfold(open, |mut open| async move {
        let response = open.next().await?;
        Ok(response.map(|response| (response, open)))
    }))
}

struct Open {
    subscription: Arc<Subscription>,
    consumer: Consumer,
    requests: Streaming<StreamingPullRequest>,
    closing: CancellationToken,
    heartbeats: bool,
    heartbeat: Interval,
}

impl Open {
    /// The next response, or `None` where the client has ended its side.
    async fn next(&mut self) -> Result<Option<StreamingPullResponse>, Status> {
        loop {
            tokio::select! {
                biased;
                () = self.closing.cancelled() => return Err(stopping()),
                () = self.subscription.deleted() => return Err(checks::not_found(self.subscription.name())),
                request = self.requests.message() => match request? {
                    Some(request) => self.apply(&request)?,
                    None => return Ok(None),
                },
                deliveries = self.subscription.next(&self.consumer) => return Ok(Some(self.response(deliveries))),
                _ = self.heartbeat.tick(), if self.heartbeats => return Ok(Some(self.response(Vec::new()))),
            }
        }
    }

    /// Does what a request after the first one asks for; an empty one only keeps the stream alive.
    fn apply(&mut self, request: &StreamingPullRequest) -> Result<(), Status> {
        if !request.subscription.is_empty() {
            return Err(Status::invalid_argument(
                "Only the first request of a stream may name the subscription.",
            ));
        }
        if request.stream_ack_deadline_seconds != 0 {
            self.consumer.ack_deadline = checks::stream_ack_deadline(request.stream_ack_deadline_seconds)?;
        }
        let (ack_ids, seconds) = (&request.modify_deadline_ack_ids, &request.modify_deadline_seconds);
        if ack_ids.len() != seconds.len() {
            return Err(Status::invalid_argument(format!(
                "The request has {} modify_deadline_ack_ids and {} modify_deadline_seconds.",
                ack_ids.len(),
                seconds.len()
            )));
        }
        if !request.ack_ids.is_empty() {
            self.subscription.acknowledge(&request.ack_ids)?;
        }
        for (ack_id, seconds) in ack_ids.iter().zip(seconds) {
            self.subscription.modify_ack_deadline(std::slice::from_ref(ack_id), *seconds)?;
        }
        Ok(())
    }

    fn response(&self, deliveries: Vec<Delivery>) -> StreamingPullResponse {
        StreamingPullResponse {
            received_messages: deliveries
                .into_iter()
                .map(|delivery| self.subscription.received(delivery))
                .collect(),
            subscription_properties: Some(SubscriptionProperties::default()),
            ..StreamingPullResponse::default()
        }
    }
}
