//! Dead letters: what was delivered as often as its subscription's policy allows is published to another topic.

use std::sync::Arc;

use googleapis_tonic_google_pubsub_v1::google::pubsub::v1 as pb;
use jiff::Timestamp;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::backlog::Delivery;
use super::subscription::Subscription;

/// Hands dead letters to `publish` until the subscription is deleted, or until `closing`. A message that cannot be
/// published is delivered once more, as in production.
pub(super) async fn run(
    subscription: Arc<Subscription>,
    policy: pb::DeadLetterPolicy,
    publish: impl Fn(pb::PublishRequest) -> Result<pb::PublishResponse, Status>,
    closing: CancellationToken,
) {
    loop {
        let dead = tokio::select! {
            biased;
            () = subscription.deleted() => return,
            () = closing.cancelled() => return,
            dead = subscription.next_dead() => dead,
        };
        for delivery in dead {
            let topic = policy.dead_letter_topic.clone();
            let messages = vec![letter(&delivery, subscription.name())];
            let published = publish(pb::PublishRequest { topic, messages });
            let mut backlog = subscription.backlog();
            match published {
                Ok(_) => backlog.acknowledge(delivery.id),
                Err(error) => {
                    tracing::debug!(subscription = subscription.name(), "a dead letter stays: {error}");
                    backlog.revive(delivery.id, Instant::now());
                }
            }
        }
        subscription.wake();
    }
}

/// The message as production forwards it: the same, with four attributes more.
fn letter(delivery: &Delivery, subscription: &str) -> pb::PubsubMessage {
    let message = pb::PubsubMessage::clone(&delivery.message);
    let mut parts = subscription.split('/').skip(1).step_by(2);
    let (project, id) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let published = message.publish_time.unwrap_or_default();
    let published = Timestamp::new(published.seconds, published.nanos).unwrap_or_default();
    let added = [
        ("DeliveryCount", delivery.id.attempt.to_string()),
        ("Subscription", id.to_owned()),
        ("SubscriptionProject", project.to_owned()),
        ("TopicPublishTime", published.strftime("%Y-%m-%dT%H:%M:%S.%3f+00:00").to_string()),
    ];
    let mut attributes = message.attributes;
    attributes
        .extend(added.into_iter().map(|(name, value)| (format!("CloudPubSubDeadLetterSource{name}"), value)));
    pb::PubsubMessage { attributes, ..message }
}

#[cfg(test)]
mod tests {
    use super::super::backlog::DeliveryId;
    use super::*;

    #[test]
    fn a_letter_says_where_it_comes_from() {
        let message = pb::PubsubMessage {
            data: "x".into(),
            attributes: [("k".to_owned(), "v".to_owned())].into(),
            publish_time: Some(prost_types::Timestamp { seconds: 1_660_319_789, nanos: 732_000_000 }),
            ..pb::PubsubMessage::default()
        };
        let delivery = Delivery { id: DeliveryId { sequence: 3, attempt: 5 }, message: Arc::new(message) };
        let letter = letter(&delivery, "projects/p-1/subscriptions/s-1");
        assert_eq!(&letter.data[..], b"x");
        let mut attributes: Vec<(&str, &str)> =
            letter.attributes.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        attributes.sort_unstable();
        assert_eq!(
            attributes,
            [
                ("CloudPubSubDeadLetterSourceDeliveryCount", "5"),
                ("CloudPubSubDeadLetterSourceSubscription", "s-1"),
                ("CloudPubSubDeadLetterSourceSubscriptionProject", "p-1"),
                ("CloudPubSubDeadLetterSourceTopicPublishTime", "2022-08-12T15:56:29.732+00:00"),
                ("k", "v"),
            ]
        );
    }
}
