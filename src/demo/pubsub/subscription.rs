//! One subscription: its settings, its filter and its backlog, and the waiting until there is something to deliver.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use googleapis_tonic_google_pubsub_v1::google::pubsub::v1 as pb;
use pb::push_config::{AuthenticationMethod, NoWrapper, Wrapper};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::backlog::{Backlog, Consumer, Delivery, DeliveryId, Retry};
use super::checks;
use super::filter::Filter;

/// What a subscription's topic is called once it is deleted.
const DELETED_TOPIC: &str = "_deleted-topic_";

/// A subscription, shared by whoever publishes, pulls and pushes.
#[derive(Debug)]
pub(super) struct Subscription {
    resource: pb::Subscription,
    filter: Option<Filter>,
    /// Part of each ack id, so that those of another or an earlier subscription mean nothing here.
    number: u64,
    topic_deleted: AtomicBool,
    backlog: Mutex<Backlog>,
    /// Something became ready, or a consumer's hands became free.
    changed: Notify,
    deleted: CancellationToken,
}

impl Subscription {
    /// Takes settings that [`checks::subscription`] has passed and completed.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` where the filter is malformed.
    pub(super) fn new(resource: pb::Subscription, number: u64) -> Result<Self, Status> {
        let retry = resource.retry_policy.as_ref().map(checks::retry_policy).transpose()?;
        let retry = retry.map(|(minimum, maximum)| Retry { minimum, maximum });
        let retention = checks::retention(&resource)?;
        let policy = resource.dead_letter_policy.as_ref();
        let max_attempts = policy.and_then(|policy| u32::try_from(policy.max_delivery_attempts).ok());
        Ok(Self {
            filter: Filter::parse(&resource.filter)?,
            resource,
            number,
            topic_deleted: AtomicBool::new(false),
            backlog: Mutex::new(Backlog::new(retention, retry, max_attempts)),
            changed: Notify::new(),
            deleted: CancellationToken::new(),
        })
    }

    /// The settings as a client sees them.
    pub(super) fn resource(&self) -> pb::Subscription {
        let mut resource = self.resource.clone();
        if self.topic_deleted.load(Ordering::Relaxed) {
            DELETED_TOPIC.clone_into(&mut resource.topic);
        }
        resource
    }

    pub(super) fn name(&self) -> &str {
        &self.resource.name
    }

    pub(super) fn topic(&self) -> &str {
        &self.resource.topic
    }

    /// Where messages are pushed, or `None` where they are pulled.
    pub(super) fn push_endpoint(&self) -> Option<&str> {
        let endpoint = self.resource.push_config.as_ref().map(|push| push.push_endpoint.as_str());
        endpoint.filter(|endpoint| !endpoint.is_empty())
    }

    /// The account and the audience of the tokens that pushes carry, if they carry any.
    pub(super) fn oidc_token(&self) -> Option<(&str, &str)> {
        let push = self.resource.push_config.as_ref()?;
        let AuthenticationMethod::OidcToken(token) = push.authentication_method.as_ref()?;
        let audience = if token.audience.is_empty() { &push.push_endpoint } else { &token.audience };
        Some((&token.service_account_email, audience))
    }

    /// How messages are pushed unwrapped, where they are.
    pub(super) fn no_wrapper(&self) -> Option<&NoWrapper> {
        match self.resource.push_config.as_ref()?.wrapper.as_ref()? {
            Wrapper::NoWrapper(no_wrapper) => Some(no_wrapper),
            Wrapper::PubsubWrapper(_) => None,
        }
    }

    /// The number of a delivery, which is told only with a dead letter policy.
    pub(super) fn told_attempt(&self, id: DeliveryId) -> Option<u32> {
        self.resource.dead_letter_policy.as_ref().map(|_| id.attempt)
    }

    pub(super) fn ack_deadline(&self) -> Duration {
        Duration::from_secs(u64::try_from(self.resource.ack_deadline_seconds).unwrap_or_default())
    }

    /// Whether the filter lets `message` through.
    pub(super) fn keeps(&self, message: &pb::PubsubMessage) -> bool {
        self.filter.as_ref().is_none_or(|filter| filter.keeps(&message.attributes))
    }

    /// The backlog, locked. After a change that may concern consumers, call [`Self::wake`]. Never await with it.
    pub(super) fn backlog(&self) -> MutexGuard<'_, Backlog> {
        // The bookkeeping has no step that panics half-way, so a poisoned lock would protect nothing.
        self.backlog.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets every waiting consumer look again.
    pub(super) fn wake(&self) {
        self.changed.notify_waiters();
    }

    /// Waits until there is at least one message for `consumer`, and leases it. Cancelling loses nothing.
    pub(super) async fn next(&self, consumer: &Consumer) -> Vec<Delivery> {
        self.wait_for(|backlog, now| backlog.lease(consumer, now)).await
    }

    /// Waits until there is at least one dead letter, and takes all.
    pub(super) async fn next_dead(&self) -> Vec<Delivery> {
        self.wait_for(Backlog::take_dead).await
    }

    /// Takes deliveries as soon as there are any.
    async fn wait_for(&self, take: impl Fn(&mut Backlog, Instant) -> Vec<Delivery>) -> Vec<Delivery> {
        loop {
            // Registered before looking, so that no change goes unseen between looking and waiting.
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            let due = {
                let mut backlog = self.backlog();
                let deliveries = take(&mut backlog, Instant::now());
                if !deliveries.is_empty() {
                    return deliveries;
                }
                backlog.next_due()
            };
            tokio::select! {
                () = changed => {}
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
            }
        }
    }

    /// Acknowledges; ids that are expired or of other subscriptions have no effect, as in production.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` where an id was never given out by any subscription; nothing is acknowledged then.
    pub(super) fn acknowledge(&self, ack_ids: &[String]) -> Result<(), Status> {
        let ids = self.delivery_ids(ack_ids)?;
        let mut backlog = self.backlog();
        ids.into_iter().for_each(|id| backlog.acknowledge(id));
        drop(backlog);
        self.wake();
        Ok(())
    }

    /// Sets deadlines anew, `seconds` from now; 0 gives the messages back.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for an id as in [`Self::acknowledge`], or seconds outside 0 to 600; nothing changes then.
    pub(super) fn modify_ack_deadline(&self, ack_ids: &[String], seconds: i32) -> Result<(), Status> {
        let extension = checks::ack_deadline_extension(seconds)?;
        let ids = self.delivery_ids(ack_ids)?;
        let mut backlog = self.backlog();
        let now = Instant::now();
        ids.into_iter().for_each(|id| backlog.modify_deadline(id, extension, now));
        drop(backlog);
        self.wake();
        Ok(())
    }

    /// A delivery as pulling clients get it.
    pub(super) fn received(&self, delivery: Delivery) -> pb::ReceivedMessage {
        let told_attempt = self.told_attempt(delivery.id);
        let DeliveryId { sequence, attempt } = delivery.id;
        pb::ReceivedMessage {
            ack_id: format!("{}-{sequence}-{attempt}", self.number),
            message: Some(Arc::unwrap_or_clone(delivery.message)),
            delivery_attempt: told_attempt.and_then(|attempt| i32::try_from(attempt).ok()).unwrap_or(0),
        }
    }

    pub(super) fn topic_was_deleted(&self) {
        self.topic_deleted.store(true, Ordering::Relaxed);
    }

    /// Ends all deliveries.
    pub(super) fn delete(&self) {
        self.deleted.cancel();
    }

    /// Resolves once the subscription is deleted.
    pub(super) async fn deleted(&self) {
        self.deleted.cancelled().await;
    }

    fn delivery_ids(&self, ack_ids: &[String]) -> Result<Vec<DeliveryId>, Status> {
        let mut ids = Vec::with_capacity(ack_ids.len());
        for ack_id in ack_ids {
            let (number, id) = parse_ack_id(ack_id).ok_or_else(|| {
                Status::invalid_argument(format!(
                    "You have passed an invalid ack ID to the service (ack_id={ack_id})."
                ))
            })?;
            if number == self.number {
                ids.push(id);
            }
        }
        Ok(ids)
    }
}

fn parse_ack_id(ack_id: &str) -> Option<(u64, DeliveryId)> {
    let mut parts = ack_id.splitn(3, '-');
    let number = parts.next()?.parse().ok()?;
    let sequence = parts.next()?.parse().ok()?;
    let attempt = parts.next()?.parse().ok()?;
    Some((number, DeliveryId { sequence, attempt }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subscription(number: u64) -> Subscription {
        let resource = pb::Subscription {
            name: "projects/p/subscriptions/sub".to_owned(),
            topic: "projects/p/topics/topic".to_owned(),
            ..pb::Subscription::default()
        };
        Subscription::new(checks::subscription(resource).unwrap(), number).unwrap()
    }

    fn publish(subscription: &Subscription) {
        subscription.backlog().add(Arc::new(pb::PubsubMessage::default()), Instant::now());
        subscription.wake();
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiting_consumer_wakes_for_a_message_and_for_an_expired_deadline() {
        let subscription = subscription(1);
        let consumer = Consumer::new(9, usize::MAX, subscription.ack_deadline());
        let (first, ()) = tokio::join!(subscription.next(&consumer), async { publish(&subscription) });
        assert_eq!(first[0].id.attempt, 1);
        let waited = Instant::now();
        let second = subscription.next(&consumer).await;
        assert_eq!(second[0].id.attempt, 2);
        assert_eq!(waited.elapsed().as_secs(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_consumer_wakes_when_it_acknowledges() {
        let subscription = subscription(1);
        let consumer = Consumer::new(1, usize::MAX, subscription.ack_deadline());
        publish(&subscription);
        publish(&subscription);
        let first = subscription.next(&consumer).await.remove(0);
        let ack_id = subscription.received(first).ack_id;
        let (second, ()) = tokio::join!(subscription.next(&consumer), async {
            subscription.acknowledge(&[ack_id]).unwrap();
        });
        assert_eq!((second[0].id.sequence, second[0].id.attempt), (1, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn ack_ids_are_checked_and_those_of_other_subscriptions_have_no_effect() {
        let (one, two) = (subscription(1), subscription(2));
        let consumer = Consumer::new(1, usize::MAX, one.ack_deadline());
        publish(&one);
        publish(&two);
        let leased = one.next(&consumer).await.remove(0);
        let foreign = one.received(leased).ack_id;
        two.acknowledge(&[foreign]).unwrap();
        assert_eq!(two.next(&Consumer::new(1, usize::MAX, two.ack_deadline())).await.len(), 1);
        for bad in ["", "1", "1-0", "1-0-x", "1-0-1-1", "x-0-1", "-1-0-1"] {
            assert!(one.acknowledge(&[bad.to_owned()]).is_err(), "{bad}");
        }
        for seconds in [-1, 601] {
            assert!(one.modify_ack_deadline(&[], seconds).is_err(), "{seconds}");
        }
    }
}
