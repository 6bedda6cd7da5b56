//! What an error of librdkafka means for the consumer.

use anyhow::anyhow;
use rdkafka::error::RDKafkaErrorCode;

use super::super::corrupt_batch::is_corrupt;
use super::super::native::Failure;
use super::lost_offsets::Lost;
use super::thread::{Move, Poller};

/// What to do about an error.
#[derive(Debug)]
pub(super) enum Reaction {
    /// librdkafka goes on by itself: broker away, coordinator moving, connection lost.
    Ignore,
    /// A broker does not know the topic.
    TopicUnknown,
    /// The offset to read next is not in the partition; librdkafka asked for `offset`.
    OffsetLost { partition: i32, offset: i64, reason: String },
    /// A record batch of the partition is corrupt.
    CorruptBatch { partition: i32, reason: String },
    /// Nothing moves, but may again.
    Trouble(String),
    /// Ends the consumer.
    End(anyhow::Error),
}

/// Returns what to do about `failure`, for a consumer of `topic` with the kafka-env file `source`. `is_stopped` says whether
/// a partition is paused at a corrupt batch already, behind which librdkafka may report anything.
pub(super) fn reaction(
    failure: Failure,
    topic: &str,
    source: &str,
    is_stopped: impl Fn(i32) -> bool,
) -> Reaction {
    let Failure { code, reason, fatal, at } = failure;
    match code {
        RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic => Reaction::TopicUnknown,
        RDKafkaErrorCode::TopicAuthorizationFailed => Reaction::End(anyhow!(
            "no access to Kafka topic {topic}: the user in {source} needs the Read right on it"
        )),
        RDKafkaErrorCode::GroupAuthorizationFailed => Reaction::End(anyhow!(
            "no access to the consumer group: the user in {source} needs the Read right on its group.id"
        )),
        RDKafkaErrorCode::AutoOffsetReset => match at {
            Some((partition, _)) if is_stopped(partition) => Reaction::Ignore,
            Some((partition, offset)) => Reaction::OffsetLost { partition, offset, reason },
            None => Reaction::End(anyhow!("{topic}: {reason}")),
        },
        RDKafkaErrorCode::FencedInstanceId => Reaction::End(anyhow!(
            "another member of the group has the same --group-instance-id and took its place: give each bridge an id \
             of its own, and start the next with the same id only once the last has ended"
        )),
        RDKafkaErrorCode::UnreleasedInstanceId => Reaction::End(anyhow!(
            "the group still has a member with the same --group-instance-id: start again once that one's session is \
             over"
        )),
        _ if is_corrupt(code) => match at {
            Some((partition, _)) => Reaction::CorruptBatch { partition, reason },
            None => Reaction::Ignore,
        },
        _ if fatal => Reaction::End(anyhow!("Kafka ended the consumer: {reason}")),
        RDKafkaErrorCode::AllBrokersDown => Reaction::Trouble("no Kafka broker answers".to_owned()),
        _ => {
            tracing::debug!(?at, ?code, "kafka: {reason}");
            Reaction::Ignore
        }
    }
}

impl Poller {
    pub(super) fn on_failure(&mut self, failure: Failure) -> anyhow::Result<()> {
        let corrupt = &self.corrupt;
        match reaction(failure, &self.group.topic, &self.source, |partition| corrupt.contains(partition)) {
            Reaction::Ignore => Ok(()),
            Reaction::TopicUnknown => self.on_unknown_topic(),
            Reaction::CorruptBatch { partition, reason } => self.on_corrupt(partition, &reason),
            Reaction::OffsetLost { partition, offset, reason } => {
                self.moves.push_back(Move::Lost(Lost { partition, at: Some(offset), reason }));
                Ok(())
            }
            Reaction::Trouble(trouble) => {
                *self.state.trouble() = Some(trouble);
                Ok(())
            }
            Reaction::End(error) => Err(error),
        }
    }
}

/// Says what to do about offsets that are lost.
pub(super) fn with_advice(error: &anyhow::Error) -> anyhow::Error {
    anyhow!(
        "{error}. Records may be missing downstream. Start again with --on-lost-offsets earliest to go on from the \
         beginning, or set the group's offsets with kafka-consumer-groups --reset-offsets"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(code: RDKafkaErrorCode, fatal: bool, at: Option<(i32, i64)>) -> String {
        let failure = Failure { code, reason: "why".to_owned(), fatal, at };
        format!("{:?}", reaction(failure, "urls", "kafka-env", |partition| partition == 7))
    }

    #[test]
    fn each_error_has_its_reaction() {
        use RDKafkaErrorCode as Code;
        let (here, stopped) = (Some((1, 5)), Some((7, 5)));
        for (code, at, expected) in [
            (Code::BrokerTransportFailure, None, "Ignore"),
            (Code::NotCoordinator, here, "Ignore"),
            (Code::UnknownTopicOrPartition, here, "TopicUnknown"),
            (Code::UnknownTopic, None, "TopicUnknown"),
            (
                Code::TopicAuthorizationFailed,
                here,
                "End(no access to Kafka topic urls: the user in kafka-env",
            ),
            (Code::GroupAuthorizationFailed, None, "End(no access to the consumer group"),
            (Code::AutoOffsetReset, here, "OffsetLost { partition: 1, offset: 5, reason: \"why\" }"),
            (Code::AutoOffsetReset, stopped, "Ignore"),
            (Code::AutoOffsetReset, None, "End(urls: why"),
            (Code::FencedInstanceId, None, "End(another member"),
            (Code::UnreleasedInstanceId, None, "End(the group still has"),
            (Code::BadMessage, here, "CorruptBatch { partition: 1, reason: \"why\" }"),
            (Code::BadCompression, here, "CorruptBatch { partition: 1"),
            (Code::NotImplemented, here, "CorruptBatch { partition: 1"),
            (Code::BadMessage, None, "Ignore"),
            (Code::AllBrokersDown, None, "Trouble(\"no Kafka broker answers\")"),
        ] {
            let reaction = told(code, false, at);
            assert!(reaction.starts_with(expected), "{code:?} {at:?}: {reaction}");
        }
        assert!(told(Code::Fail, true, None).starts_with("End(Kafka ended the consumer: why"));
        assert!(
            told(Code::FencedInstanceId, true, None).starts_with("End(another member"),
            "with its advice"
        );
    }
}
