//! The API's messages as JSON (the proto3 mapping): for REST, and for the envelope that pushes carry.
//!
//! Reading accepts both `camelCase` and `snake_case`, as Google's front ends do; writing leaves out what is default.

use std::collections::{BTreeMap, HashMap};

use base64::Engine;
use base64::alphabet::STANDARD as STANDARD_ALPHABET;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use base64::prelude::BASE64_STANDARD;
use googleapis_tonic_google_pubsub_v1::google::pubsub::v1 as pb;
use pb::push_config::{AuthenticationMethod, NoWrapper, Wrapper};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use tonic::Status;

use super::checks;

/// The body of a push of `message`. Both spellings of the id and of the time are there, as production sends them; an
/// attempt is told only with a dead letter policy.
pub(super) fn envelope(
    message: &pb::PubsubMessage,
    subscription: &str,
    delivery_attempt: Option<u32>,
) -> Vec<u8> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Envelope<'a> {
        #[serde(skip_serializing_if = "Option::is_none")]
        delivery_attempt: Option<u32>,
        message: MessageOut<'a>,
        subscription: &'a str,
    }
    let mut message = MessageOut::from(message);
    message.message_id_again = Some(message.message_id);
    message.publish_time_again = message.publish_time.clone();
    write(&Envelope { delivery_attempt, message, subscription })
}

/// Any of this module's types as text.
pub(super) fn write(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("strings, numbers and maps with text keys always have a JSON form")
}

/// Reads a body; an empty one is an empty object.
pub(super) fn read<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Status> {
    serde_json::from_slice(if body.is_empty() { b"{}" } else { body })
        .map_err(|error| Status::invalid_argument(format!("Invalid JSON payload received: {error}.")))
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MessageOut<'a> {
    #[serde(skip_serializing_if = "String::is_empty")]
    data: String,
    #[serde(skip_serializing_if = "HashMap::is_empty")]
    attributes: &'a HashMap<String, String>,
    message_id: &'a str,
    #[serde(rename = "message_id", skip_serializing_if = "Option::is_none")]
    message_id_again: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    publish_time: Option<String>,
    #[serde(rename = "publish_time", skip_serializing_if = "Option::is_none")]
    publish_time_again: Option<String>,
    #[serde(skip_serializing_if = "str::is_empty")]
    ordering_key: &'a str,
}

impl<'a> From<&'a pb::PubsubMessage> for MessageOut<'a> {
    fn from(message: &'a pb::PubsubMessage) -> Self {
        Self {
            data: BASE64_STANDARD.encode(&message.data),
            attributes: &message.attributes,
            message_id: &message.message_id,
            message_id_again: None,
            publish_time: message.publish_time.map(|time| time.to_string()),
            publish_time_again: None,
            ordering_key: &message.ordering_key,
        }
    }
}

/// What a pull returns.
pub(super) fn pull_response(response: &pb::PullResponse) -> Vec<u8> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Response<'a> {
        #[serde(skip_serializing_if = "Vec::is_empty")]
        received_messages: Vec<Received<'a>>,
    }
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Received<'a> {
        ack_id: &'a str,
        message: Option<MessageOut<'a>>,
        #[serde(skip_serializing_if = "Option::is_none")]
        delivery_attempt: Option<i32>,
    }
    let received = response.received_messages.iter().map(|received| Received {
        ack_id: &received.ack_id,
        delivery_attempt: Some(received.delivery_attempt).filter(|attempt| *attempt > 0),
        message: received.message.as_ref().map(MessageOut::from),
    });
    write(&Response { received_messages: received.collect() })
}

/// The body of `:publish`; the three after it are those of the other actions.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct PublishIn {
    messages: Vec<MessageIn>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct MessageIn {
    data: String,
    attributes: HashMap<String, String>,
    #[serde(alias = "ordering_key")]
    ordering_key: String,
    // A publisher may send them back as it got them; the server sets its own.
    #[serde(alias = "message_id", rename = "messageId")]
    _message_id: Option<String>,
    #[serde(alias = "publish_time", rename = "publishTime")]
    _publish_time: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct PullIn {
    #[serde(alias = "max_messages", deserialize_with = "int32")]
    pub(super) max_messages: i32,
    #[serde(alias = "return_immediately")]
    pub(super) return_immediately: bool,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct AcknowledgeIn {
    #[serde(alias = "ack_ids")]
    pub(super) ack_ids: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct ModifyAckDeadlineIn {
    #[serde(alias = "ack_ids")]
    pub(super) ack_ids: Vec<String>,
    #[serde(alias = "ack_deadline_seconds", deserialize_with = "int32")]
    pub(super) ack_deadline_seconds: i32,
}

impl PublishIn {
    pub(super) fn messages(self) -> Result<Vec<pb::PubsubMessage>, Status> {
        let message = |message: MessageIn| {
            let MessageIn { attributes, ordering_key, .. } = message;
            let data = bytes(&message.data)?.into();
            Ok(pb::PubsubMessage { data, attributes, ordering_key, ..pb::PubsubMessage::default() })
        };
        self.messages.into_iter().map(message).collect()
    }
}

#[derive(Serialize, Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Topic {
    name: String,
    #[serde(skip_serializing_if = "HashMap::is_empty")]
    labels: HashMap<String, String>,
    #[serde(alias = "message_retention_duration", skip_serializing_if = "Option::is_none")]
    message_retention_duration: Option<String>,
    #[serde(skip_deserializing)]
    state: &'static str,
    /// What is not served, or not known at all.
    #[serde(flatten, skip_serializing)]
    others: BTreeMap<String, Value>,
}

impl From<pb::Topic> for Topic {
    fn from(topic: pb::Topic) -> Self {
        Self {
            state: topic.state().as_str_name(),
            name: topic.name,
            labels: topic.labels,
            message_retention_duration: topic.message_retention_duration.map(|duration| duration.to_string()),
            others: BTreeMap::new(),
        }
    }
}

impl Topic {
    /// As created at `name`, the one of the path.
    pub(super) fn named(self, name: String) -> Result<pb::Topic, Status> {
        all_served("Topic", &self.others)?;
        let message_retention_duration = duration(self.message_retention_duration)?;
        Ok(pb::Topic { name, labels: self.labels, message_retention_duration, ..pb::Topic::default() })
    }
}

#[derive(Serialize, Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Subscription {
    name: String,
    topic: String,
    #[serde(alias = "push_config")]
    push_config: PushConfig,
    #[serde(alias = "ack_deadline_seconds", deserialize_with = "int32")]
    ack_deadline_seconds: i32,
    #[serde(alias = "message_retention_duration", skip_serializing_if = "Option::is_none")]
    message_retention_duration: Option<String>,
    #[serde(skip_serializing_if = "HashMap::is_empty")]
    labels: HashMap<String, String>,
    #[serde(alias = "expiration_policy", skip_serializing_if = "Option::is_none")]
    expiration_policy: Option<ExpirationPolicy>,
    #[serde(skip_serializing_if = "String::is_empty")]
    filter: String,
    #[serde(alias = "dead_letter_policy", skip_serializing_if = "Option::is_none")]
    dead_letter_policy: Option<DeadLetterPolicy>,
    #[serde(alias = "retry_policy", skip_serializing_if = "Option::is_none")]
    retry_policy: Option<RetryPolicy>,
    #[serde(skip_deserializing)]
    state: &'static str,
    /// What is not served, or not known at all.
    #[serde(flatten, skip_serializing)]
    others: BTreeMap<String, Value>,
}

#[derive(Serialize, Deserialize, Default)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct PushConfig {
    #[serde(alias = "push_endpoint", skip_serializing_if = "String::is_empty")]
    push_endpoint: String,
    #[serde(skip_serializing_if = "HashMap::is_empty")]
    attributes: HashMap<String, String>,
    #[serde(alias = "oidc_token", skip_serializing_if = "Option::is_none")]
    oidc_token: Option<OidcToken>,
    #[serde(alias = "no_wrapper", skip_serializing_if = "Option::is_none")]
    no_wrapper: Option<Unwrapped>,
    #[serde(alias = "pubsub_wrapper", rename = "pubsubWrapper", skip_serializing)]
    _pubsub_wrapper: Option<Value>,
}

#[derive(Serialize, Deserialize, Default)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct OidcToken {
    #[serde(alias = "service_account_email")]
    service_account_email: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    audience: String,
}

#[derive(Serialize, Deserialize, Default)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Unwrapped {
    #[serde(alias = "write_metadata")]
    write_metadata: bool,
}

#[derive(Serialize, Deserialize, Default)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct DeadLetterPolicy {
    #[serde(alias = "dead_letter_topic")]
    dead_letter_topic: String,
    #[serde(alias = "max_delivery_attempts", deserialize_with = "int32")]
    max_delivery_attempts: i32,
}

#[derive(Serialize, Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct ExpirationPolicy {
    #[serde(skip_serializing_if = "Option::is_none")]
    ttl: Option<String>,
}

#[derive(Serialize, Deserialize, Default)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct RetryPolicy {
    #[serde(alias = "minimum_backoff", skip_serializing_if = "Option::is_none")]
    minimum_backoff: Option<String>,
    #[serde(alias = "maximum_backoff", skip_serializing_if = "Option::is_none")]
    maximum_backoff: Option<String>,
}

impl From<pb::Subscription> for Subscription {
    fn from(subscription: pb::Subscription) -> Self {
        let text = |duration: Option<prost_types::Duration>| duration.map(|duration| duration.to_string());
        let push = subscription.push_config.clone().unwrap_or_default();
        Self {
            state: subscription.state().as_str_name(),
            name: subscription.name,
            topic: subscription.topic,
            push_config: PushConfig {
                push_endpoint: push.push_endpoint,
                attributes: push.attributes,
                oidc_token: push.authentication_method.map(|AuthenticationMethod::OidcToken(token)| {
                    OidcToken { service_account_email: token.service_account_email, audience: token.audience }
                }),
                no_wrapper: match push.wrapper {
                    Some(Wrapper::NoWrapper(NoWrapper { write_metadata, .. })) => {
                        Some(Unwrapped { write_metadata })
                    }
                    Some(Wrapper::PubsubWrapper(_)) | None => None,
                },
                ..PushConfig::default()
            },
            ack_deadline_seconds: subscription.ack_deadline_seconds,
            message_retention_duration: text(subscription.message_retention_duration),
            labels: subscription.labels,
            expiration_policy: subscription
                .expiration_policy
                .map(|policy| ExpirationPolicy { ttl: text(policy.ttl) }),
            filter: subscription.filter,
            dead_letter_policy: subscription.dead_letter_policy.map(|policy| DeadLetterPolicy {
                dead_letter_topic: policy.dead_letter_topic,
                max_delivery_attempts: policy.max_delivery_attempts,
            }),
            retry_policy: subscription.retry_policy.map(|policy| RetryPolicy {
                minimum_backoff: text(policy.minimum_backoff),
                maximum_backoff: text(policy.maximum_backoff),
            }),
            others: BTreeMap::new(),
        }
    }
}

impl Subscription {
    /// As created at `name`, the one of the path.
    pub(super) fn named(self, name: String) -> Result<pb::Subscription, Status> {
        all_served("Subscription", &self.others)?;
        let policy =
            |policy: ExpirationPolicy| Ok::<_, Status>(pb::ExpirationPolicy { ttl: duration(policy.ttl)? });
        let retry = |retry: RetryPolicy| {
            let (minimum_backoff, maximum_backoff) =
                (duration(retry.minimum_backoff)?, duration(retry.maximum_backoff)?);
            Ok::<_, Status>(pb::RetryPolicy { minimum_backoff, maximum_backoff })
        };
        let push = self.push_config;
        Ok(pb::Subscription {
            name,
            topic: self.topic,
            push_config: Some(pb::PushConfig {
                push_endpoint: push.push_endpoint,
                attributes: push.attributes,
                authentication_method: push.oidc_token.map(|token| {
                    let OidcToken { service_account_email, audience } = token;
                    AuthenticationMethod::OidcToken(pb::push_config::OidcToken {
                        service_account_email,
                        audience,
                    })
                }),
                wrapper: push
                    .no_wrapper
                    .map(|Unwrapped { write_metadata }| Wrapper::NoWrapper(NoWrapper { write_metadata })),
            }),
            ack_deadline_seconds: self.ack_deadline_seconds,
            message_retention_duration: duration(self.message_retention_duration)?,
            labels: self.labels,
            expiration_policy: self.expiration_policy.map(policy).transpose()?,
            filter: self.filter,
            dead_letter_policy: self.dead_letter_policy.map(|policy| pb::DeadLetterPolicy {
                dead_letter_topic: policy.dead_letter_topic,
                max_delivery_attempts: policy.max_delivery_attempts,
            }),
            retry_policy: self.retry_policy.map(retry).transpose()?,
            ..pb::Subscription::default()
        })
    }
}

/// Refuses a field that is there and says something. `state` is for the server to say, whoever sends it.
fn all_served(what: &str, others: &BTreeMap<String, Value>) -> Result<(), Status> {
    let says_nothing = |value: &Value| match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(value) => value.as_f64() == Some(0.0),
        Value::String(value) => value.is_empty(),
        Value::Array(values) => values.is_empty(),
        Value::Object(_) => false,
    };
    match others.iter().find(|(name, value)| *name != "state" && !says_nothing(value)) {
        Some((name, _)) => Err(checks::unserved(&format!("{what}.{name}"))),
        None => Ok(()),
    }
}

fn duration(text: Option<String>) -> Result<Option<prost_types::Duration>, Status> {
    let parse = |text: String| {
        let wrong = |_| {
            Status::invalid_argument(format!("Invalid duration ({text}): seconds such as 1.5s are wanted."))
        };
        text.parse().map_err(wrong)
    };
    text.map(parse).transpose()
}

/// Base64 as the proto3 mapping reads it: either alphabet, with or without padding.
fn bytes(text: &str) -> Result<Vec<u8>, Status> {
    const EITHER_PADDING: GeneralPurpose = GeneralPurpose::new(
        &STANDARD_ALPHABET,
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
    );
    EITHER_PADDING
        .decode(text.replace('-', "+").replace('_', "/"))
        .map_err(|error| Status::invalid_argument(format!("Message data is not base64: {error}.")))
}

/// A number, or a number as text.
fn int32<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i32, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Number<'a> {
        Number(i32),
        Text(std::borrow::Cow<'a, str>),
    }
    match Number::deserialize(deserializer)? {
        Number::Number(number) => Ok(number),
        Number::Text(text) => text.parse().map_err(serde::de::Error::custom),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subscription(json: &str) -> Result<pb::Subscription, Status> {
        read::<Subscription>(json.as_bytes())?.named("projects/p/subscriptions/s".to_owned())
    }

    #[test]
    fn either_spelling_and_either_kind_of_number_is_read() {
        let camel = r#"{"topic":"t","ackDeadlineSeconds":30,"pushConfig":{"pushEndpoint":"http://e/"},
            "messageRetentionDuration":"600s","retryPolicy":{"minimumBackoff":"1.5s"},"expirationPolicy":{},
            "filter":"f","deadLetterPolicy":{"deadLetterTopic":"d","maxDeliveryAttempts":7}}"#;
        let snake = r#"{"topic":"t","ack_deadline_seconds":"30","push_config":{"push_endpoint":"http://e/"},
            "dead_letter_policy":{"dead_letter_topic":"d","max_delivery_attempts":"7"},
            "message_retention_duration":"600s","retry_policy":{"minimum_backoff":"1.500s"},"expiration_policy":{},
            "filter":"f","name":"ignored","state":2,"detached":false,"enableMessageOrdering":false}"#;
        let read = subscription(camel).unwrap();
        assert_eq!(read, subscription(snake).unwrap());
        let backoff = read.retry_policy.unwrap().minimum_backoff.unwrap();
        assert_eq!((read.ack_deadline_seconds, backoff.seconds, backoff.nanos), (30, 1, 500_000_000));
    }

    #[test]
    fn what_is_written_is_read_back() {
        let written =
            checks::subscription(subscription(r#"{"topic":"t","retryPolicy":{}}"#).unwrap()).unwrap_err();
        assert_eq!(written.code(), tonic::Code::InvalidArgument, "the id s is too short");
        let resource = pb::Subscription {
            name: "projects/p/subscriptions/sub".to_owned(),
            dead_letter_policy: Some(pb::DeadLetterPolicy {
                dead_letter_topic: "projects/p/topics/dead".to_owned(),
                max_delivery_attempts: 9,
            }),
            push_config: Some(pb::PushConfig {
                wrapper: Some(Wrapper::NoWrapper(NoWrapper { write_metadata: true })),
                ..pb::PushConfig::default()
            }),
            ..pb::Subscription::default()
        };
        let resource = checks::subscription(resource).unwrap();
        let text = write(&Subscription::from(resource.clone()));
        let again = read::<Subscription>(&text).unwrap().named(resource.name.clone()).unwrap();
        assert_eq!(checks::subscription(again).unwrap(), resource);
        let text: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(text["messageRetentionDuration"], "604800s");
        assert_eq!(text["state"], "ACTIVE");
    }

    #[test]
    fn what_is_not_served_or_not_known_is_refused_by_name() {
        for field in ["bigqueryConfig", "bigquery_config", "nonsense"] {
            let error = subscription(&format!("{{{field:?}:{{}}}}")).unwrap_err();
            assert_eq!(error.code(), tonic::Code::Unimplemented);
            assert!(error.message().contains(field), "{error}");
        }
        assert_eq!(
            subscription(r#"{"enableMessageOrdering":true}"#).unwrap_err().code(),
            tonic::Code::Unimplemented
        );
        let resource = subscription(r#"{"name":"x","pushConfig":{"oidcToken":{}}}"#).unwrap();
        let resource = pb::Subscription { name: "projects/p/subscriptions/sub".to_owned(), ..resource };
        assert_eq!(checks::subscription(resource).unwrap_err().code(), tonic::Code::InvalidArgument);
        for malformed in
            ["[]", "{", r#"{"ackDeadlineSeconds":"ten"}"#, r#"{"retryPolicy":{"minimumBackoff":"10"}}"#]
        {
            assert_eq!(
                subscription(malformed).unwrap_err().code(),
                tonic::Code::InvalidArgument,
                "{malformed}"
            );
        }
    }

    #[test]
    fn base64_is_read_in_every_form() {
        for text in ["+/+/", "-_-_"] {
            assert_eq!(bytes(text).unwrap(), [0xfb, 0xff, 0xbf]);
        }
        assert_eq!(bytes("YQ==").unwrap(), bytes("YQ").unwrap());
        assert!(bytes("Y").is_err() && bytes("a b").is_err());
    }

    #[test]
    fn an_envelope_has_both_spellings_and_leaves_out_what_is_empty() {
        let publish_time = Some(prost_types::Timestamp { seconds: 0, nanos: 1_000_000 });
        let mut message = pb::PubsubMessage {
            data: "hi".into(),
            message_id: "7".to_owned(),
            publish_time,
            ..pb::PubsubMessage::default()
        };
        let text = |message: &pb::PubsubMessage| {
            String::from_utf8(envelope(message, "projects/p/subscriptions/s", None)).unwrap()
        };
        assert_eq!(
            text(&message),
            concat!(
                r#"{"message":{"data":"aGk=","messageId":"7","message_id":"7","#,
                r#""publishTime":"1970-01-01T00:00:00.001Z","#,
                r#""publish_time":"1970-01-01T00:00:00.001Z"},"subscription":"projects/p/subscriptions/s"}"#
            )
        );
        message.data.clear();
        message.attributes.insert("k".to_owned(), "v".to_owned());
        message.ordering_key = "o".to_owned();
        let json: Value = serde_json::from_str(&text(&message)).unwrap();
        assert_eq!(json["message"]["attributes"]["k"], "v");
        assert_eq!(json["message"]["orderingKey"], "o");
        assert_eq!(json["message"].get("data"), None);
        let json: Value = serde_json::from_slice(&envelope(&message, "s", Some(3))).unwrap();
        assert_eq!(json["deliveryAttempt"], 3);
    }
}
