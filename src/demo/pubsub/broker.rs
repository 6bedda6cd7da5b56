//! Topics and subscriptions, and every method of the API on them but the stream: gRPC and REST both end here.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use googleapis_tonic_google_pubsub_v1::google::pubsub::v1 as pb;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;

use super::backlog::{Consumer, LIMIT_BYTES, size_bytes};
use super::checks::{self, already_exists, not_found};
use super::oidc::{Bearer, Signer};
use super::subscription::Subscription;
use super::{dead_letter, push};

/// The most topics, and the most subscriptions, that are kept.
const MAX_RESOURCES: usize = 1_000;

/// The most messages that one pull returns.
const MAX_PULL_MESSAGES: usize = 1_000;

/// How long a pull waits for a first message before it returns none: well below clients' usual time-outs.
const PULL_WAIT: Duration = Duration::from_secs(20);

/// The state behind every connection.
#[derive(Debug)]
pub(super) struct Broker {
    state: Arc<Mutex<State>>,
    push_client: push::Client,
    /// Made when it is first needed.
    signer: OnceLock<Arc<Signer>>,
    /// A task for each push subscription, and one for each with a dead letter policy.
    pub(super) tasks: TaskTracker,
    /// Ends pulls, streams and pushes.
    pub(super) closing: CancellationToken,
}

#[derive(Debug, Default)]
struct State {
    topics: BTreeMap<String, Topic>,
    subscriptions: BTreeMap<String, Arc<Subscription>>,
    last_message_id: u64,
    last_subscription: u64,
}

#[derive(Debug)]
struct Topic {
    resource: pb::Topic,
    subscriptions: BTreeMap<String, Arc<Subscription>>,
}

impl Broker {
    pub(super) fn new() -> Self {
        Self {
            state: Arc::default(),
            push_client: push::client(),
            signer: OnceLock::new(),
            tasks: TaskTracker::new(),
            closing: CancellationToken::new(),
        }
    }

    pub(super) fn create_topic(&self, topic: pb::Topic) -> Result<pb::Topic, Status> {
        let resource = checks::topic(topic)?;
        let mut state = self.state();
        if state.topics.contains_key(&resource.name) {
            return Err(already_exists(&resource.name));
        }
        has_room(state.topics.len(), "topics")?;
        let topic = Topic { resource: resource.clone(), subscriptions: BTreeMap::new() };
        state.topics.insert(resource.name.clone(), topic);
        Ok(resource)
    }

    pub(super) fn get_topic(&self, request: &pb::GetTopicRequest) -> Result<pb::Topic, Status> {
        let state = self.state();
        state
            .topics
            .get(&request.topic)
            .map(|topic| topic.resource.clone())
            .ok_or_else(|| not_found(&request.topic))
    }

    pub(super) fn list_topics(
        &self,
        request: &pb::ListTopicsRequest,
    ) -> Result<pb::ListTopicsResponse, Status> {
        let state = self.state();
        let prefix = format!("{}/", request.project);
        let (topics, next_page_token) = page(&state.topics, &prefix, request.page_size, &request.page_token)?;
        let topics = topics.into_iter().map(|topic| topic.resource.clone()).collect();
        Ok(pb::ListTopicsResponse { topics, next_page_token })
    }

    pub(super) fn list_topic_subscriptions(
        &self,
        request: &pb::ListTopicSubscriptionsRequest,
    ) -> Result<pb::ListTopicSubscriptionsResponse, Status> {
        let state = self.state();
        let topic = state.topics.get(&request.topic).ok_or_else(|| not_found(&request.topic))?;
        let (found, next_page_token) =
            page(&topic.subscriptions, "", request.page_size, &request.page_token)?;
        let subscriptions = found.into_iter().map(|subscription| subscription.name().to_owned()).collect();
        Ok(pb::ListTopicSubscriptionsResponse { subscriptions, next_page_token })
    }

    /// Deletes a topic; its subscriptions stay, with what they have, and belong to `_deleted-topic_`.
    pub(super) fn delete_topic(&self, request: &pb::DeleteTopicRequest) -> Result<(), Status> {
        let topic = self.state().topics.remove(&request.topic).ok_or_else(|| not_found(&request.topic))?;
        topic.subscriptions.values().for_each(|subscription| subscription.topic_was_deleted());
        Ok(())
    }

    /// Publishes to all subscriptions of a topic, or where one of them is full to none.
    pub(super) fn publish(&self, request: pb::PublishRequest) -> Result<pb::PublishResponse, Status> {
        checks::publish(&request)?;
        publish(&self.state, request)
    }

    /// Creates a subscription and, where it has an endpoint, starts to push.
    pub(super) fn create_subscription(
        &self,
        subscription: pb::Subscription,
    ) -> Result<pb::Subscription, Status> {
        let resource = checks::subscription(subscription)?;
        let mut state = self.state();
        if state.subscriptions.contains_key(&resource.name) {
            return Err(already_exists(&resource.name));
        }
        has_room(state.subscriptions.len(), "subscriptions")?;
        if let Some(policy) = &resource.dead_letter_policy
            && !state.topics.contains_key(&policy.dead_letter_topic)
        {
            return Err(not_found(&policy.dead_letter_topic));
        }
        let number = state.last_subscription + 1;
        let topic = state.topics.get_mut(&resource.topic).ok_or_else(|| not_found(&resource.topic))?;
        let subscription = Arc::new(Subscription::new(resource.clone(), number)?);
        topic.subscriptions.insert(resource.name.clone(), Arc::clone(&subscription));
        state.subscriptions.insert(resource.name.clone(), Arc::clone(&subscription));
        state.last_subscription = number;
        drop(state);
        if let Some(policy) = resource.dead_letter_policy.clone() {
            let (state, closing) = (Arc::clone(&self.state), self.closing.clone());
            let publish = move |request| publish(&state, request);
            self.tasks.spawn(dead_letter::run(Arc::clone(&subscription), policy, publish, closing));
        }
        if let Some(endpoint) = subscription.push_endpoint().and_then(|endpoint| endpoint.parse().ok()) {
            let (client, closing) = (self.push_client.clone(), self.closing.clone());
            let bearer = subscription
                .oidc_token()
                .map(|(account, audience)| Bearer::new(Arc::clone(self.signer()), account, audience));
            self.tasks.spawn(push::run(subscription, endpoint, bearer, client, closing));
        }
        Ok(resource)
    }

    pub(super) fn get_subscription(
        &self,
        request: &pb::GetSubscriptionRequest,
    ) -> Result<pb::Subscription, Status> {
        self.subscription(&request.subscription).map(|subscription| subscription.resource())
    }

    pub(super) fn list_subscriptions(
        &self,
        request: &pb::ListSubscriptionsRequest,
    ) -> Result<pb::ListSubscriptionsResponse, Status> {
        let state = self.state();
        let prefix = format!("{}/", request.project);
        let (found, next_page_token) =
            page(&state.subscriptions, &prefix, request.page_size, &request.page_token)?;
        let subscriptions = found.into_iter().map(|subscription| subscription.resource()).collect();
        Ok(pb::ListSubscriptionsResponse { subscriptions, next_page_token })
    }

    pub(super) fn delete_subscription(&self, request: &pb::DeleteSubscriptionRequest) -> Result<(), Status> {
        let mut state = self.state();
        let name = &request.subscription;
        let subscription = state.subscriptions.remove(name).ok_or_else(|| not_found(name))?;
        // A topic deleted and created anew under the same name has other subscriptions.
        if let Some(topic) = state.topics.get_mut(subscription.topic()) {
            topic.subscriptions.remove(name);
        }
        drop(state);
        subscription.delete();
        Ok(())
    }

    pub(super) fn acknowledge(&self, request: &pb::AcknowledgeRequest) -> Result<(), Status> {
        let subscription = self.pulled_subscription(&request.subscription)?;
        not_empty(&request.ack_ids)?;
        subscription.acknowledge(&request.ack_ids)
    }

    pub(super) fn modify_ack_deadline(&self, request: &pb::ModifyAckDeadlineRequest) -> Result<(), Status> {
        let subscription = self.pulled_subscription(&request.subscription)?;
        not_empty(&request.ack_ids)?;
        subscription.modify_ack_deadline(&request.ack_ids, request.ack_deadline_seconds)
    }

    /// Returns what is there; where that is nothing, waits a while for a first message.
    pub(super) async fn pull(&self, request: pb::PullRequest) -> Result<pb::PullResponse, Status> {
        let subscription = self.pulled_subscription(&request.subscription)?;
        let max_messages =
            usize::try_from(request.max_messages).ok().filter(|max| *max > 0).ok_or_else(|| {
                Status::invalid_argument(format!(
                    "max_messages must be positive (max_messages={}).",
                    request.max_messages
                ))
            })?;
        let consumer =
            Consumer::new(max_messages.min(MAX_PULL_MESSAGES), usize::MAX, subscription.ack_deadline());
        #[expect(deprecated, reason = "clients still send it")]
        let wait = if request.return_immediately { Duration::ZERO } else { PULL_WAIT };
        let deliveries = tokio::select! {
            biased;
            deliveries = subscription.next(&consumer) => deliveries,
            () = subscription.deleted() => return Err(not_found(&request.subscription)),
            () = self.closing.cancelled() => return Err(stopping()),
            () = sleep(wait) => Vec::new(),
        };
        let received_messages =
            deliveries.into_iter().map(|delivery| subscription.received(delivery)).collect();
        Ok(pb::PullResponse { received_messages })
    }

    /// Who signs the tokens of pushes.
    pub(super) fn signer(&self) -> &Arc<Signer> {
        self.signer.get_or_init(|| Arc::new(Signer::generate()))
    }

    /// A subscription that is pulled from, not pushed.
    pub(super) fn pulled_subscription(&self, name: &str) -> Result<Arc<Subscription>, Status> {
        let subscription = self.subscription(name)?;
        if subscription.push_endpoint().is_some() {
            return Err(Status::failed_precondition(
                "This method is not supported for this subscription type.",
            ));
        }
        Ok(subscription)
    }

    fn subscription(&self, name: &str) -> Result<Arc<Subscription>, Status> {
        self.state().subscriptions.get(name).cloned().ok_or_else(|| not_found(name))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // No method panics between two changes that belong together.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Publishes what is checked already.
fn publish(state: &Mutex<State>, request: pb::PublishRequest) -> Result<pb::PublishResponse, Status> {
    let (subscriptions, first_id) = {
        let mut state = lock(state);
        let topic = state.topics.get(&request.topic).ok_or_else(|| not_found(&request.topic))?;
        let subscriptions: Vec<_> = topic.subscriptions.values().cloned().collect();
        let first_id = state.last_message_id + 1;
        state.last_message_id += request.messages.len() as u64;
        (subscriptions, first_id)
    };
    let publish_time = Some(SystemTime::now().into());
    let messages: Vec<_> = (first_id..)
        .zip(request.messages)
        .map(|(id, message)| {
            // A copy of its own: what was decoded shares one buffer with the whole request, and the last message
            // to be acknowledged would keep all of it.
            let data = Bytes::copy_from_slice(&message.data);
            Arc::new(pb::PubsubMessage { data, message_id: id.to_string(), publish_time, ..message })
        })
        .collect();
    deliver(&subscriptions, &messages)?;
    let message_ids = messages.iter().map(|message| message.message_id.clone()).collect();
    Ok(pb::PublishResponse { message_ids })
}

/// What pulls and streams are told when the server stops: a code that clients try again on.
pub(super) fn stopping() -> Status {
    Status::unavailable("The embedded Pub/Sub is stopping.")
}

/// Adds `messages` to the backlogs of those subscriptions whose filters keep them, or to none.
fn deliver(subscriptions: &[Arc<Subscription>], messages: &[Arc<pb::PubsubMessage>]) -> Result<(), Status> {
    let kept: Vec<Vec<_>> = subscriptions
        .iter()
        .map(|subscription| messages.iter().filter(|message| subscription.keeps(message)).collect())
        .collect();
    // All at once, so that "all or none" holds. They come in order of name, and nothing else takes two of these
    // locks, so nobody waits in a circle.
    let mut backlogs: Vec<_> = subscriptions.iter().map(|subscription| subscription.backlog()).collect();
    for ((subscription, backlog), kept) in subscriptions.iter().zip(&backlogs).zip(&kept) {
        if !backlog.has_room(kept.iter().map(|message| size_bytes(message)).sum()) {
            return Err(Status::resource_exhausted(format!(
                "The backlog of {} is full: the embedded Pub/Sub keeps {LIMIT_BYTES} bytes for each subscription.",
                subscription.name()
            )));
        }
    }
    let now = Instant::now();
    for (backlog, kept) in backlogs.iter_mut().zip(&kept) {
        kept.iter().for_each(|message| backlog.add(Arc::clone(message), now));
    }
    drop(backlogs);
    subscriptions.iter().for_each(|subscription| subscription.wake());
    Ok(())
}

fn not_empty(ack_ids: &[String]) -> Result<(), Status> {
    if ack_ids.is_empty() { Err(Status::invalid_argument("The request has no ack_ids.")) } else { Ok(()) }
}

fn has_room(resources: usize, what: &str) -> Result<(), Status> {
    if resources < MAX_RESOURCES {
        return Ok(());
    }
    Err(Status::resource_exhausted(format!("The embedded Pub/Sub keeps at most {MAX_RESOURCES} {what}.")))
}

/// The values whose names start with `prefix`, one page of them after `token`, with the token of the next page.
fn page<'a, T>(
    all: &'a BTreeMap<String, T>,
    prefix: &str,
    page_size: i32,
    token: &str,
) -> Result<(Vec<&'a T>, String), Status> {
    let size = usize::try_from(page_size).map_err(|_| Status::invalid_argument("page_size is negative."))?;
    let size = if size == 0 { MAX_RESOURCES } else { size };
    let after = if token.is_empty() { Bound::Included(prefix) } else { Bound::Excluded(token) };
    let rest =
        all.range::<str, _>((after, Bound::Unbounded)).take_while(|(name, _)| name.starts_with(prefix));
    let mut found: Vec<_> = rest.take(size.saturating_add(1)).collect();
    let more = found.len() > size;
    found.truncate(size);
    let next = found.last().filter(|_| more).map_or_else(String::new, |(name, _)| (*name).clone());
    Ok((found.into_iter().map(|(_, value)| value).collect(), next))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_follow_each_other_and_stay_in_their_project() {
        let names = [
            "projects/a/topics/one",
            "projects/a/topics/three",
            "projects/a/topics/two",
            "projects/ab/topics/x",
        ];
        let all: BTreeMap<String, &str> = names.iter().map(|name| ((*name).to_owned(), *name)).collect();
        let (first, token) = page(&all, "projects/a/", 2, "").unwrap();
        assert_eq!((first, token.as_str()), (vec![&names[0], &names[1]], names[1]));
        let (second, token) = page(&all, "projects/a/", 2, &token).unwrap();
        assert_eq!((second, token.as_str()), (vec![&names[2]], ""));
        assert_eq!(page(&all, "projects/b/", 0, "").unwrap().0.len(), 0);
        assert!(page(&all, "projects/a/", -1, "").is_err());
    }

    #[tokio::test]
    async fn a_full_backlog_refuses_a_publish_for_every_subscription() {
        let broker = Broker::new();
        let topic = "projects/p/topics/topic".to_owned();
        broker.create_topic(pb::Topic { name: topic.clone(), ..pb::Topic::default() }).unwrap();
        for (id, filter) in [("all", ""), ("few", "attributes:x")] {
            let name = format!("projects/p/subscriptions/{id}");
            let (topic, filter) = (topic.clone(), filter.to_owned());
            let resource = pb::Subscription { name, topic, filter, ..pb::Subscription::default() };
            broker.create_subscription(resource).unwrap();
        }
        let publish = |attributes: &[(&str, &str)]| {
            let attributes =
                attributes.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            let data = vec![0; 8 * 1024 * 1024].into();
            let message = pb::PubsubMessage { data, attributes, ..pb::PubsubMessage::default() };
            broker.publish(pb::PublishRequest { topic: topic.clone(), messages: vec![message] })
        };
        let accepted = (0..40).take_while(|_| publish(&[]).is_ok()).count();
        assert_eq!(accepted, 31);
        assert_eq!(publish(&[("x", "1")]).unwrap_err().code(), tonic::Code::ResourceExhausted);
        let pull = |subscription: &str| {
            let subscription = format!("projects/p/subscriptions/{subscription}");
            #[expect(deprecated, reason = "clients still send it")]
            broker.pull(pb::PullRequest { subscription, max_messages: 1, return_immediately: true })
        };
        assert!(pull("few").await.unwrap().received_messages.is_empty(), "none where one is full");
        let held = pull("all").await.unwrap().received_messages.remove(0);
        let request = pb::AcknowledgeRequest {
            subscription: "projects/p/subscriptions/all".to_owned(),
            ack_ids: vec![held.ack_id],
        };
        broker.acknowledge(&request).unwrap();
        publish(&[("x", "1")]).unwrap();
        assert_eq!(pull("few").await.unwrap().received_messages.len(), 1);
    }
}
