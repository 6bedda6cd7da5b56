//! Pub/Sub, as the roles use it: which endpoint and whose credentials, topic names, and publishing.
//!
//! Administration is `setup`'s; receiving is `serve`'s, by push. Nothing here knows Kafka.

mod connection;
mod publisher;
mod wire;

use std::fmt;
use std::str::FromStr;

pub(crate) use connection::Connection;
pub(crate) use publisher::{GrpcPublisher, Publish};
pub(crate) use wire::{Request, RequestBuilder, message_bytes, put_attribute};

/// Which Pub/Sub is spoken to.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct PubsubArgs {
    /// HOST:PORT of a Pub/Sub emulator, spoken to in plain text and without credentials, as Google's clients do
    #[arg(long, value_name = "HOST:PORT", env = "PUBSUB_EMULATOR_HOST")]
    pub(crate) pubsub_emulator_host: Option<String>,

    /// Another endpoint of the real Pub/Sub, for example a regional one; an emulator, if one is named, goes first
    #[arg(
        long,
        value_name = "URL",
        default_value = "https://pubsub.googleapis.com",
        env = "CDNWARM_PUBSUB_ENDPOINT"
    )]
    pub(crate) pubsub_endpoint: String,

    /// Seconds to wait at start for Pub/Sub to answer
    #[arg(long, value_name = "SECONDS", default_value_t = 30, env = "CDNWARM_PUBSUB_TIMEOUT",
          value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) pubsub_timeout: u16,
}

/// The full name of a topic, `projects/PROJECT/topics/TOPIC`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TopicName(String);

impl TopicName {
    /// The full name.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TopicName {
    type Err = String;

    /// Checks the form, and the topic's name by Pub/Sub's rules: 3 to 255 characters that start with a letter, of
    /// letters, digits and `-._~+%`, not starting with `goog` (cloud.google.com/pubsub/docs/pubsub-basics).
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts: Vec<&str> = text.split('/').collect();
        let ["projects", project, "topics", topic] = parts[..] else {
            return Err("a topic is written projects/PROJECT/topics/TOPIC".to_owned());
        };
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-._~+%".contains(c);
        if project.is_empty() {
            return Err("the project is missing in projects/PROJECT/topics/TOPIC".to_owned());
        }
        if !(3..=255).contains(&topic.len())
            || !topic.starts_with(|c: char| c.is_ascii_alphabetic())
            || !topic.chars().all(allowed)
            || topic.to_ascii_lowercase().starts_with("goog")
        {
            return Err(format!(
                "{topic:?} cannot name a topic: 3 to 255 letters, digits and -._~+%, starting with a letter, not with goog"
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for TopicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_is_named_in_full() {
        assert!("projects/p/topics/warming_urls".parse::<TopicName>().is_ok());
        for text in [
            "warming_urls",
            "projects/p/topics/",
            "projects//topics/abc",
            "projects/p/topics/ab",
            "projects/p/topics/1abc",
            "projects/p/topics/googly",
            "projects/p/topics/a b c",
            "projects/p/subscriptions/abc",
            "projects/p/topics/abc/x",
            "/projects/p/topics/abc",
        ] {
            assert!(text.parse::<TopicName>().is_err(), "{text}");
        }
    }
}
