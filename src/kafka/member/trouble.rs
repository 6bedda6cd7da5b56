//! What goes wrong at the cluster: what passes by itself, what ends the member, and offsets that are gone.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rdkafka::Offset;
use rdkafka::consumer::{Consumer as _, RebalanceProtocol};
use rdkafka::error::RDKafkaErrorCode;

use super::{LOOK_INTERVAL, Member, Reading, START_LIMIT, list};
use crate::kafka::consumer::Collect;
use crate::kafka::corrupt_batch::is_corrupt;
use crate::kafka::events::Failure;
use crate::kafka::start::{LostOffsets, OnLostOffsets};

/// How long a topic that a broker does not know may turn out to be there after all.
const TOPIC_GONE_LIMIT: Duration = Duration::from_secs(3);
/// How long a partition is asked to go on elsewhere before it is assigned anew.
const SEEK_LIMIT: Duration = Duration::from_secs(3);

impl<C: Collect> Member<C> {
    /// Goes on after what passes by itself, and ends with an explanation after what does not.
    pub(super) fn failed(&mut self, failure: Failure) -> anyhow::Result<()> {
        let Failure { code, reason, fatal, at } = failure;
        let (topic, source) = (&self.topic, &self.source);
        match code {
            RDKafkaErrorCode::NoError => match at {
                Some((partition, offset)) => self.went_back(partition, offset),
                None => Ok(()),
            },
            RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic => {
                let gone = format!("Kafka topic {topic} is gone from the cluster of {source}");
                // One broker of several may not have heard of it yet, or not any more.
                if self.is_there(TOPIC_GONE_LIMIT) {
                    self.check_topic_id = true;
                    return Ok(());
                }
                if self.starts.on_lost == OnLostOffsets::Stop {
                    bail!("{gone}. With --on-lost-offsets earliest it is waited for");
                }
                tracing::error!("{gone}; waiting for it to be made again");
                *self.state.trouble() = Some(gone);
                Ok(())
            }
            RDKafkaErrorCode::TopicAuthorizationFailed => {
                bail!("no access to Kafka topic {topic}: the user in {source} needs the Read right on it")
            }
            RDKafkaErrorCode::GroupAuthorizationFailed => bail!(
                "no access to the consumer group: the user in {source} needs the Read right on its group.id"
            ),
            RDKafkaErrorCode::AutoOffsetReset => match at {
                // librdkafka went astray behind a corrupt batch.
                Some((partition, _)) if self.corrupt.contains_key(&partition) => Ok(()),
                Some((partition, offset)) => self.lost(partition, offset, &reason),
                None => bail!("{topic}: {reason}"),
            },
            RDKafkaErrorCode::FencedInstanceId => bail!(
                "another member of the group has the same --group-instance-id and took its place: give each \
                 bridge an id of its own, and start the next with the same id only once the last has ended"
            ),
            _ if is_corrupt(code) => match at {
                Some((partition, _)) => self.found_corrupt(partition, &reason),
                None => Ok(()),
            },
            RDKafkaErrorCode::UnreleasedInstanceId => bail!(
                "the group still has a member with the same --group-instance-id: start again once that one's \
                 session is over"
            ),
            _ if fatal => bail!("Kafka ended the consumer: {reason}"),
            RDKafkaErrorCode::AllBrokersDown => {
                *self.state.trouble() = Some("no Kafka broker answers".to_owned());
                Ok(())
            }
            // Broker away, coordinator moving, connection lost: librdkafka reconnects, and `ClientEvents` has logged why.
            _ => {
                tracing::debug!(?at, ?code, "kafka: {reason}");
                Ok(())
            }
        }
    }

    /// Whether a broker answers that knows the topic.
    pub(super) fn knows_topic(&self) -> bool {
        let metadata = self.consumer.client().fetch_metadata(Some(&self.topic), LOOK_INTERVAL);
        metadata.is_ok_and(|metadata| metadata.topics().first().is_some_and(|topic| topic.error().is_none()))
    }

    /// Whether the cluster knows the topic, asked until it does or `limit` is over.
    fn is_there(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline && !self.is_over() {
            self.state.rounds.fetch_add(1, Ordering::Relaxed);
            if self.knows_topic() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        false
    }

    /// After any trouble the topic may be another one, with more records than this member had read of the last.
    pub(super) fn notice_a_topic_made_anew(&mut self) -> anyhow::Result<()> {
        if !std::mem::take(&mut self.check_topic_id) || !self.starts.is_made_anew(&self.consumer) {
            return Ok(());
        }
        // Without partitions nothing goes on from elsewhere yet; the next assignment looks at the id again.
        if self.reading.is_empty() {
            return Ok(());
        }
        let partitions: Vec<i32> = self.reading.keys().copied().collect();
        for partition in partitions {
            self.lost(partition, -1, "its id has changed")?;
        }
        self.starts.forget_the_last_topic();
        Ok(())
    }

    /// A record came whose offset was passed already: said twice, or another record in a topic made anew.
    fn went_back(&mut self, partition: i32, offset: i64) -> anyhow::Result<()> {
        let (_, high) = self.range(partition)?;
        match self.reading.get(&partition) {
            Some(reading) if high < reading.next || self.starts.is_made_anew(&self.consumer) => {
                self.lost(partition, offset, "an offset came that was passed already")
            }
            _ => Ok(()),
        }
    }

    /// The offset to read next is not in the partition, says librdkafka.
    fn lost(&mut self, partition: i32, at: i64, reason: &str) -> anyhow::Result<()> {
        let Some(Reading { next, assignment }) = self.reading.get(&partition).copied() else {
            return Ok(());
        };
        let made_anew = self.starts.is_made_anew(&self.consumer);
        let (low, high) = self.range(partition)?;
        if !made_anew && at >= 0 && at != next && (low..=high).contains(&next) {
            // It asked for another offset than we did.
            tracing::warn!(
                "{}/{partition}: {reason}, at offset {at} out of nowhere; going on from {next}",
                self.topic
            );
            return self.go_on_from(partition, next);
        }
        let anew = if made_anew { "the topic was made anew, and " } else { "" };
        let what = format!("{anew}it holds {low} to {high} now ({reason})");
        let lost_offsets = LostOffsets { topic: self.topic.clone(), partition, next, what };
        if self.starts.on_lost == OnLostOffsets::Stop {
            return Err(what_to_do(&lost_offsets.into()));
        }
        tracing::error!("{lost_offsets}; going on from {low}");
        // What was read before belongs to the assignment that ends here, and goes out under it.
        while !self.collect.is_empty() && !self.is_over() && !self.send_if_room() {
            self.wait_for_room()?;
        }
        // While there was no room, a rebalance may have taken the partition away.
        if self.reading.get(&partition).is_none_or(|reading| reading.assignment != assignment) {
            return Ok(());
        }
        let assignment = self.offsets.assign(partition, low, false);
        self.reading.insert(partition, Reading { assignment, next: low });
        self.go_on_from(partition, low)?;
        if self.corrupt.contains_key(&partition) {
            self.forget_corrupt(partition);
            self.consumer.resume(&list(&self.topic, [(partition, 0)])?).context("resuming a partition")?;
        }
        Ok(())
    }

    /// The first and the next offset of a partition, asked for until the cluster answers.
    fn range(&self, partition: i32) -> anyhow::Result<(i64, i64)> {
        let deadline = Instant::now() + START_LIMIT.min(self.max_poll_interval / 2);
        loop {
            self.state.rounds.fetch_add(1, Ordering::Relaxed);
            match self.starts.range(&self.consumer, partition) {
                Err(error) if Instant::now() < deadline && !self.is_over() => {
                    tracing::warn!("trying again: {error:#}")
                }
                answer => return answer,
            }
            std::thread::sleep(Duration::from_millis(300));
        }
    }

    /// Has an assigned partition read from elsewhere.
    pub(super) fn go_on_from(&mut self, partition: i32, offset: i64) -> anyhow::Result<()> {
        let deadline = Instant::now() + SEEK_LIMIT;
        loop {
            let sought =
                self.consumer.seek(&self.topic, partition, Offset::Offset(offset), Duration::from_secs(1));
            match sought {
                Ok(()) => return Ok(()),
                Err(error) if Instant::now() < deadline => {
                    tracing::debug!("{}/{partition} cannot go on from {offset} yet: {error}", self.topic);
                    std::thread::sleep(Duration::from_millis(50));
                }
                Err(_) => break,
            }
        }
        // A partition that has come to a stop takes no seek.
        match self.consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => {
                let one = list(&self.topic, [(partition, offset)])?;
                self.consumer.incremental_unassign(&one)?;
                self.consumer.incremental_assign(&one)?;
            }
            _ => {
                let all = self.reading.iter().map(|(number, reading)| {
                    (*number, if *number == partition { offset } else { reading.next })
                });
                self.consumer.assign(&list(&self.topic, all)?)?;
            }
        }
        Ok(())
    }
}

/// What to do about it.
pub(super) fn what_to_do(error: &anyhow::Error) -> anyhow::Error {
    anyhow::anyhow!(
        "{error}. Records may be missing downstream. Start again with --on-lost-offsets earliest to go on from the \
         beginning, or set the group's offsets with kafka-consumer-groups --reset-offsets"
    )
}
