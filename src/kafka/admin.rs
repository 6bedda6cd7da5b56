//! A topic of a cluster, looked for and made: what a setup does, and no role.

use std::time::Duration;

use anyhow::{Context, anyhow};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::consumer::{BaseConsumer, Consumer};
use tokio_util::sync::CancellationToken;

use super::client::{ClientEvents, NoSuchTopic, wait_for_topic};
use super::env::KafkaEnv;

/// How long a broker may take to make a topic.
const CREATE_LIMIT: Duration = Duration::from_secs(30);

/// Logs in as the kafka-env file says, and looks whether the topic is there.
///
/// # Errors
/// No broker within `limit`, credentials refused, no right to see the topic, or `stop`.
pub(crate) async fn topic_exists(
    env: &KafkaEnv,
    topic: &str,
    limit: Duration,
    stop: &CancellationToken,
) -> anyhow::Result<bool> {
    // Whatever stands in the consumer's section is checked with it.
    let mut client = env.consumer()?;
    // To look for a topic must not make it, and outside of a group a consumer does nothing else.
    client.set("allow.auto.create.topics", "false").remove("group.id");
    let (topic, source, stop) = (topic.to_owned(), env.path().display().to_string(), stop.clone());
    let looked = tokio::task::spawn_blocking(move || {
        let consumer: BaseConsumer<ClientEvents> =
            client.create_with_context(ClientEvents::default()).context("preparing a Kafka client")?;
        let events = consumer.context().clone();
        let hear_events = |time: Duration| drop(consumer.poll(time));
        wait_for_topic(consumer.client(), hear_events, &events, &topic, &source, limit, &stop)
    })
    .await
    .context("looking for a Kafka topic")?;
    match looked {
        Ok(()) => Ok(true),
        Err(error) if error.is::<NoSuchTopic>() => Ok(false),
        Err(error) => Err(error),
    }
}

/// Makes a topic; one that is there already is left as it is.
///
/// # Errors
/// What the cluster says against it.
pub(crate) async fn create_topic(
    env: &KafkaEnv,
    topic: &str,
    partitions: u16,
    replication: u16,
) -> anyhow::Result<()> {
    let admin: AdminClient<ClientEvents> =
        env.producer()?.create_with_context(ClientEvents::default()).context("preparing a Kafka client")?;
    let new = NewTopic::new(topic, partitions.into(), TopicReplication::Fixed(replication.into()));
    let options =
        AdminOptions::new().operation_timeout(Some(CREATE_LIMIT)).request_timeout(Some(CREATE_LIMIT));
    let made = admin.create_topics(&[new], &options).await.context("asking Kafka for a topic")?;
    for result in made {
        match result {
            Ok(_) | Err((_, rdkafka::types::RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((_, code)) => return Err(anyhow!("Kafka does not make topic {topic}: {code}")),
        }
    }
    Ok(())
}
