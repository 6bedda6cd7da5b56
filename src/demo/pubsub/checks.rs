//! What production refuses, and what only this server does not serve: names, limits and settings of requests.

use std::time::Duration;

use googleapis_tonic_google_pubsub_v1::google::pubsub::v1 as pb;
use http::Uri;
use pb::push_config::AuthenticationMethod;
use prost::Message;
use tonic::Status;

/// The most that one publish request may take, in bytes on the wire.
pub(super) const MAX_PUBLISH_BYTES: usize = 10_485_760;

const MAX_PUBLISH_MESSAGES: usize = 1_000;
const MAX_ATTRIBUTES: usize = 100;
const MAX_ATTRIBUTE_KEY_BYTES: usize = 256;
const MAX_ATTRIBUTE_VALUE_BYTES: usize = 1_024;
const MAX_ORDERING_KEY_BYTES: usize = 1_024;
const MAX_SECONDS: u64 = 600;
const DAY_SECONDS: i64 = 24 * 60 * 60;

pub(super) fn not_found(name: &str) -> Status {
    Status::not_found(format!("Resource not found (resource={}).", last_part(name)))
}

pub(super) fn already_exists(name: &str) -> Status {
    Status::already_exists(format!("Resource already exists in the project (resource={}).", last_part(name)))
}

pub(super) fn unserved(what: &str) -> Status {
    Status::unimplemented(format!("{what} is not served by the embedded Pub/Sub."))
}

/// Checks `projects/P/KIND/ID` as for a new resource: the id has 3 to 255 characters, starts with a letter and not
/// with `goog`.
pub(super) fn name(name: &str, kind: &str) -> Result<(), Status> {
    let bad = || {
        Status::invalid_argument(format!(
            "Invalid resource name given (name={name}): projects/PROJECT/{kind}/ID is wanted, with an ID of 3 to 255 \
             letters, digits and -_.~+% that starts with a letter and not with goog."
        ))
    };
    let rest = name.strip_prefix("projects/").ok_or_else(bad)?;
    let (project, rest) = rest.split_once('/').ok_or_else(bad)?;
    let id = rest.strip_prefix(kind).and_then(|rest| rest.strip_prefix('/')).ok_or_else(bad)?;
    let valid = !project.is_empty()
        && (3..=255).contains(&id.len())
        && id.starts_with(|c: char| c.is_ascii_alphabetic())
        && id.chars().all(|c| c.is_ascii_alphanumeric() || "-_.~+%".contains(c))
        && !id.starts_with("goog");
    if valid { Ok(()) } else { Err(bad()) }
}

/// Checks everything about a publish request but whether the topic exists.
pub(super) fn publish(request: &pb::PublishRequest) -> Result<(), Status> {
    let bad = |why: String| Err(Status::invalid_argument(why));
    if request.messages.is_empty() {
        return bad("The publish request has no messages.".to_owned());
    }
    if request.messages.len() > MAX_PUBLISH_MESSAGES {
        return bad(format!(
            "The publish request has {} messages; at most {MAX_PUBLISH_MESSAGES} are allowed.",
            request.messages.len()
        ));
    }
    if request.encoded_len() > MAX_PUBLISH_BYTES {
        return bad(format!("Request payload size exceeds the limit: {MAX_PUBLISH_BYTES} bytes."));
    }
    let ordering_key = &request.messages[0].ordering_key;
    if request.messages.iter().any(|message| message.ordering_key != *ordering_key) {
        return bad("All messages in a publish request must have the same ordering key.".to_owned());
    }
    if ordering_key.len() > MAX_ORDERING_KEY_BYTES {
        return bad(format!("The ordering key exceeds {MAX_ORDERING_KEY_BYTES} bytes."));
    }
    for (index, message) in request.messages.iter().enumerate() {
        if message.data.is_empty() && message.attributes.is_empty() {
            return bad(
                "One or more messages in the publish request is empty. Each message must contain either \
                        non-empty data, or at least one attribute."
                    .to_owned(),
            );
        }
        if message.attributes.len() > MAX_ATTRIBUTES {
            return bad(format!("Message {index} has more than {MAX_ATTRIBUTES} attributes."));
        }
        for (key, value) in &message.attributes {
            if !(1..=MAX_ATTRIBUTE_KEY_BYTES).contains(&key.len()) {
                return bad(format!(
                    "Message {index}: an attribute key has not 1 to {MAX_ATTRIBUTE_KEY_BYTES} bytes."
                ));
            }
            if value.len() > MAX_ATTRIBUTE_VALUE_BYTES {
                return bad(format!(
                    "Message {index}: the value of attribute {key} exceeds {MAX_ATTRIBUTE_VALUE_BYTES} bytes."
                ));
            }
        }
    }
    Ok(())
}

/// Checks a topic to be created and completes it.
pub(super) fn topic(mut topic: pb::Topic) -> Result<pb::Topic, Status> {
    name(&topic.name, "topics")?;
    for (set, what) in [
        (topic.message_storage_policy.is_some(), "message_storage_policy"),
        (!topic.kms_key_name.is_empty(), "kms_key_name"),
        (topic.schema_settings.is_some(), "schema_settings"),
        (topic.ingestion_data_source_settings.is_some(), "ingestion_data_source_settings"),
        (!topic.message_transforms.is_empty(), "message_transforms"),
    ] {
        if set {
            return Err(unserved(&format!("Topic.{what}")));
        }
    }
    topic.state = pb::topic::State::Active.into();
    Ok(topic)
}

/// Checks a subscription to be created, but for its filter and whether its topic exists, and completes it with
/// production's defaults.
pub(super) fn subscription(mut subscription: pb::Subscription) -> Result<pb::Subscription, Status> {
    name(&subscription.name, "subscriptions")?;
    for (set, what) in [
        (subscription.enable_message_ordering, "enable_message_ordering"),
        (subscription.enable_exactly_once_delivery, "enable_exactly_once_delivery"),
        (subscription.retain_acked_messages, "retain_acked_messages"),
        (subscription.bigquery_config.is_some(), "bigquery_config"),
        (subscription.cloud_storage_config.is_some(), "cloud_storage_config"),
        (subscription.bigtable_config.is_some(), "bigtable_config"),
        (!subscription.message_transforms.is_empty(), "message_transforms"),
    ] {
        if set {
            return Err(unserved(&format!("Subscription.{what}")));
        }
    }
    match subscription.ack_deadline_seconds {
        0 => subscription.ack_deadline_seconds = 10,
        10..=600 => {}
        seconds => {
            return Err(Status::invalid_argument(format!(
                "Invalid ack deadline given (ack_deadline_seconds={seconds}): 10 to 600 seconds are allowed."
            )));
        }
    }
    retention(&subscription)?;
    subscription.retry_policy.as_ref().map(retry_policy).transpose()?;
    subscription.dead_letter_policy.as_mut().map(dead_letter_policy).transpose()?;
    push_config(subscription.push_config.get_or_insert_default())?;
    let days = |days| prost_types::Duration { seconds: days * DAY_SECONDS, nanos: 0 };
    subscription.message_retention_duration.get_or_insert(days(7));
    subscription.expiration_policy.get_or_insert(pb::ExpirationPolicy { ttl: Some(days(31)) });
    subscription.state = pb::subscription::State::Active.into();
    subscription.detached = false;
    Ok(subscription)
}

/// How long a subscription keeps what is not acknowledged: 10 minutes to 31 days, 7 days where it does not say.
pub(super) fn retention(subscription: &pb::Subscription) -> Result<Duration, Status> {
    let (low, high) = (Duration::from_secs(600), Duration::from_secs(31 * DAY_SECONDS.unsigned_abs()));
    let Some(retention) = subscription.message_retention_duration else {
        return Ok(Duration::from_secs(7 * DAY_SECONDS.unsigned_abs()));
    };
    Duration::try_from(retention).ok().filter(|retention| (low..=high).contains(retention)).ok_or_else(|| {
        Status::invalid_argument(format!(
            "Invalid message_retention_duration ({retention}): 10 minutes to 31 days."
        ))
    })
}

/// A retry policy's minimum and maximum back-off, 10 and 600 seconds where it does not say.
pub(super) fn retry_policy(policy: &pb::RetryPolicy) -> Result<(Duration, Duration), Status> {
    let checked = |backoff: Option<prost_types::Duration>, default: u64, what: &str| {
        let Some(backoff) = backoff else { return Ok(Duration::from_secs(default)) };
        let limit = Duration::from_secs(MAX_SECONDS);
        Duration::try_from(backoff).ok().filter(|backoff| *backoff <= limit).ok_or_else(|| {
            Status::invalid_argument(format!(
                "Invalid retry_policy.{what} ({backoff}): 0 to 600 seconds are allowed."
            ))
        })
    };
    let minimum = checked(policy.minimum_backoff, 10, "minimum_backoff")?;
    let maximum = checked(policy.maximum_backoff, MAX_SECONDS, "maximum_backoff")?;
    if minimum > maximum {
        return Err(Status::invalid_argument("retry_policy.minimum_backoff exceeds maximum_backoff."));
    }
    Ok((minimum, maximum))
}

/// Checks a dead letter policy, but for whether its topic exists, and completes it.
fn dead_letter_policy(policy: &mut pb::DeadLetterPolicy) -> Result<(), Status> {
    name(&policy.dead_letter_topic, "topics")?;
    match policy.max_delivery_attempts {
        0 => policy.max_delivery_attempts = 5,
        5..=100 => {}
        attempts => {
            return Err(Status::invalid_argument(format!(
                "Invalid dead_letter_policy.max_delivery_attempts ({attempts}): 5 to 100 are allowed."
            )));
        }
    }
    Ok(())
}

/// A new deadline of 0 to 600 seconds.
pub(super) fn ack_deadline_extension(seconds: i32) -> Result<Duration, Status> {
    u64::try_from(seconds).ok().filter(|seconds| *seconds <= MAX_SECONDS).map(Duration::from_secs).ok_or_else(
        || {
            Status::invalid_argument(format!(
                "Invalid ack deadline given (ack_deadline_seconds={seconds}): 0 to 600 seconds are allowed."
            ))
        },
    )
}

/// The deadline of a stream, 10 to 600 seconds.
pub(super) fn stream_ack_deadline(seconds: i32) -> Result<Duration, Status> {
    let deadline = u64::try_from(seconds).ok().filter(|seconds| (10..=MAX_SECONDS).contains(seconds));
    deadline.map(Duration::from_secs).ok_or_else(|| {
        Status::invalid_argument(format!(
            "Invalid stream_ack_deadline_seconds given ({seconds}): 10 to 600 seconds are allowed."
        ))
    })
}

fn push_config(push: &pb::PushConfig) -> Result<(), Status> {
    if let Some(AuthenticationMethod::OidcToken(token)) = &push.authentication_method
        && !token.service_account_email.contains('@')
    {
        return Err(Status::invalid_argument(format!(
            "Invalid service account given (service_account_email={}).",
            token.service_account_email
        )));
    }
    for (key, value) in &push.attributes {
        if key != "x-goog-version" || !matches!(value.as_str(), "v1" | "v1beta2") {
            return Err(unserved(&format!("PushConfig.attributes with {key}={value}")));
        }
    }
    let endpoint = &push.push_endpoint;
    if endpoint.is_empty() {
        return Ok(());
    }
    let bad =
        |why| Status::invalid_argument(format!("Invalid push endpoint given (endpoint={endpoint}): {why}."));
    let uri: Uri = endpoint.parse().map_err(|_| bad("it is no URL"))?;
    match uri.scheme_str() {
        Some("http") if uri.host().is_some_and(|host| !host.is_empty()) => Ok(()),
        Some("https") => Err(bad("the embedded Pub/Sub pushes over plain http only")),
        _ => Err(bad("an absolute http URL is wanted")),
    }
}

fn last_part(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_documented_rules() {
        for good in ["abc", "a-_.~+%9", "Goog", &"a".repeat(255)] {
            assert!(name(&format!("projects/p/topics/{good}"), "topics").is_ok(), "{good}");
        }
        let too_long = format!("projects/p/topics/{}", "a".repeat(256));
        for bad in [
            "",
            "abc",
            "projects/p/topics/ab",
            "projects/p/topics/9bc",
            "projects/p/topics/googabc",
            "projects//topics/abc",
            "projects/p/topics/a bc",
            "projects/p/topics/abc/d",
            "projects/p/subscriptions/abc",
            "projects/p/topics/äbc",
            "/projects/p/topics/abc",
            "projects/p/topicsabc",
            "projects/p/topics/",
            &too_long,
        ] {
            assert_eq!(name(bad, "topics").expect_err(bad).code(), tonic::Code::InvalidArgument);
        }
    }

    fn request(change: impl FnOnce(&mut pb::PublishRequest)) -> Result<(), Status> {
        let message = pb::PubsubMessage { data: "x".into(), ..pb::PubsubMessage::default() };
        let mut request = pb::PublishRequest { topic: String::new(), messages: vec![message] };
        change(&mut request);
        publish(&request)
    }

    fn attribute(key_bytes: usize, value_bytes: usize) -> Result<(), Status> {
        let (key, value) = ("k".repeat(key_bytes), "v".repeat(value_bytes));
        request(|request| drop(request.messages[0].attributes.insert(key, value)))
    }

    fn repeated(messages: usize) -> Result<(), Status> {
        request(|request| request.messages = vec![request.messages[0].clone(); messages])
    }

    fn attributes(count: usize) -> Result<(), Status> {
        request(|request| {
            request.messages[0].attributes = (0..count).map(|i| (i.to_string(), String::new())).collect()
        })
    }

    fn data(bytes: usize) -> Result<(), Status> {
        request(|request| request.messages[0].data = vec![0; bytes].into())
    }

    #[test]
    fn publish_limits_hold_to_the_byte() {
        for good in [attribute(1, 0), attribute(256, 1_024), repeated(1_000), attributes(100)] {
            good.unwrap();
        }
        data(MAX_PUBLISH_BYTES - 10).unwrap();
        request(|request| {
            request.messages[0].data.clear();
            request.messages[0].attributes.insert("k".to_owned(), String::new());
        })
        .unwrap();
        let mixed = request(|request| {
            let keyed = pb::PubsubMessage { ordering_key: "k".to_owned(), ..request.messages[0].clone() };
            request.messages.push(keyed);
        });
        for bad in [
            attribute(0, 1),
            attribute(257, 1),
            attribute(1, 1_025),
            repeated(0),
            repeated(1_001),
            attributes(101),
            data(0),
            data(MAX_PUBLISH_BYTES),
            mixed,
        ] {
            assert_eq!(bad.unwrap_err().code(), tonic::Code::InvalidArgument);
        }
    }

    fn created(change: impl FnOnce(&mut pb::Subscription)) -> Result<pb::Subscription, Status> {
        let name = "projects/p/subscriptions/sub".to_owned();
        let mut resource = pb::Subscription { name, ..pb::Subscription::default() };
        change(&mut resource);
        subscription(resource)
    }

    #[test]
    fn a_subscription_is_completed_with_defaults() {
        let resource = created(|_| {}).unwrap();
        assert_eq!(resource.ack_deadline_seconds, 10);
        assert_eq!(resource.message_retention_duration.unwrap().seconds, 604_800);
        assert_eq!(resource.expiration_policy.unwrap().ttl.unwrap().seconds, 2_678_400);
        let never = created(|resource| resource.expiration_policy = Some(pb::ExpirationPolicy { ttl: None }))
            .unwrap();
        assert_eq!(never.expiration_policy.unwrap().ttl, None);
        assert_eq!(retry_policy(&pb::RetryPolicy::default()).unwrap().0.as_secs(), 10);
    }

    #[test]
    fn settings_out_of_range_are_invalid_and_unserved_ones_are_never_ignored() {
        let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
        let endpoint = |endpoint: &str| {
            let push = pb::PushConfig { push_endpoint: endpoint.to_owned(), ..pb::PushConfig::default() };
            created(|resource| resource.push_config = Some(push))
        };
        let retry = |minimum, maximum| {
            let policy =
                pb::RetryPolicy { minimum_backoff: seconds(minimum), maximum_backoff: seconds(maximum) };
            created(|resource| resource.retry_policy = Some(policy))
        };
        let signed = |service_account_email: &str| {
            let service_account_email = service_account_email.to_owned();
            let token = pb::push_config::OidcToken { service_account_email, audience: String::new() };
            created(|resource| {
                let push = resource.push_config.get_or_insert_default();
                push.authentication_method = Some(AuthenticationMethod::OidcToken(token));
            })
        };
        let dead_letters = |topic: &str, max_delivery_attempts| {
            let dead_letter_topic = topic.to_owned();
            let policy = pb::DeadLetterPolicy { dead_letter_topic, max_delivery_attempts };
            created(|resource| resource.dead_letter_policy = Some(policy))
        };
        let defaulted = dead_letters("projects/p/topics/dead", 0).unwrap().dead_letter_policy.unwrap();
        assert_eq!(defaulted.max_delivery_attempts, 5);
        for good in [
            signed("a@b"),
            endpoint(""),
            endpoint("http://127.0.0.1:1/push?token=x"),
            retry(0, 0),
            retry(600, 600),
            dead_letters("projects/p/topics/dead", 5),
            dead_letters("projects/p/topics/dead", 100),
        ] {
            good.unwrap();
        }
        for bad in [
            created(|resource| resource.ack_deadline_seconds = 9),
            created(|resource| resource.ack_deadline_seconds = 601),
            created(|resource| resource.message_retention_duration = seconds(599)),
            retry(-1, 1),
            retry(1, 601),
            retry(2, 1),
            endpoint("https://example.com/"),
            endpoint("example.com"),
            endpoint("/push"),
            endpoint("ftp://a/"),
            signed(""),
            endpoint(" "),
            dead_letters("projects/p/topics/dead", 4),
            dead_letters("projects/p/topics/dead", 101),
            dead_letters("dead", 5),
            dead_letters("", 0),
        ] {
            assert_eq!(bad.unwrap_err().code(), tonic::Code::InvalidArgument);
        }
        for unserved in [
            created(|resource| resource.enable_message_ordering = true),
            created(|resource| resource.enable_exactly_once_delivery = true),
        ] {
            assert_eq!(unserved.unwrap_err().code(), tonic::Code::Unimplemented);
        }
    }
}
