//! The embedded Kafka: librdkafka's own mock cluster, reachable by any client over TCP.
//!
//! It speaks the real protocol, consumer groups included, but it is a test double: plain text only, at most 5 MiB a
//! partition (the oldest records go silently), and all of it is gone with the process. Once a member has left a group,
//! the next to join waits nearly its `session.timeout.ms`; a real broker lets it in at once.

use anyhow::Context;
use rdkafka::ClientConfig;
use rdkafka::bindings::{rd_kafka_handle_mock_cluster, rd_kafka_mock_group_initial_rebalance_delay_ms};
use rdkafka::producer::{BaseProducer, Producer};
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

/// What clients ask a broker for, from the first request of a connection on.
const REQUESTS: [RDKafkaApiKey; 10] = [
    RDKafkaApiKey::ApiVersion,
    RDKafkaApiKey::Metadata,
    RDKafkaApiKey::Produce,
    RDKafkaApiKey::Fetch,
    RDKafkaApiKey::FindCoordinator,
    RDKafkaApiKey::JoinGroup,
    RDKafkaApiKey::SyncGroup,
    RDKafkaApiKey::Heartbeat,
    RDKafkaApiKey::OffsetCommit,
    RDKafkaApiKey::LeaveGroup,
];

/// One broker that lives as long as this value.
pub struct EmbeddedKafka {
    /// librdkafka hangs the cluster on a client.
    client: BaseProducer,
}

impl EmbeddedKafka {
    /// Starts the broker on a free port of loopback.
    ///
    /// # Errors
    /// Where librdkafka cannot start it.
    pub fn start() -> anyhow::Result<Self> {
        let client: BaseProducer = ClientConfig::new()
            .set("test.mock.num.brokers", "1")
            // The cluster belongs to this client, which itself has nothing to say.
            .set("log_level", "0")
            .create()
            .context("starting the embedded Kafka")?;
        join_without_delay(&client);
        Ok(Self { client })
    }

    /// Makes a topic.
    ///
    /// # Errors
    /// A name or a number of partitions that Kafka does not take.
    pub fn create_topic(&self, topic: &str, partitions: i32) -> anyhow::Result<()> {
        self.cluster()?
            .create_topic(topic, partitions, 1)
            .with_context(|| format!("making topic {topic} in the embedded Kafka"))
    }

    /// Where clients connect, as `bootstrap.servers` has it.
    ///
    /// # Errors
    /// Never, as long as the cluster lives.
    pub fn bootstrap_servers(&self) -> anyhow::Result<String> {
        Ok(self.cluster()?.bootstrap_servers())
    }

    /// Takes the broker away, or brings it back: in between it breaks every connection at its next request.
    ///
    /// librdkafka's own way closes the listener and binds its port again later, which fails, and ends the process, where
    /// somebody else has taken the port since.
    ///
    /// # Errors
    /// Never, as long as the cluster lives.
    pub fn set_available(&self, available: bool) -> anyhow::Result<()> {
        let cluster = self.cluster()?;
        for request in REQUESTS {
            cluster.clear_request_errors(request);
            if !available {
                // More than the requests of any outage that a test waits for.
                cluster.request_errors(request, &[RDKafkaRespErr::RD_KAFKA_RESP_ERR__TRANSPORT; 10_000]);
            }
        }
        Ok(())
    }

    fn cluster(&self) -> anyhow::Result<rdkafka::mocking::MockCluster<'_, impl rdkafka::ClientContext>> {
        self.client.client().mock_cluster().context("the embedded Kafka is gone")
    }
}

/// A group's first member would otherwise wait three seconds for others.
#[expect(unsafe_code, reason = "rdkafka has no safe function for this setting of the mock cluster")]
fn join_without_delay(client: &BaseProducer) {
    // SAFETY: the client lives, and so does the cluster that it was created with; both calls only read their
    // arguments, and librdkafka locks the cluster by itself.
    unsafe {
        let cluster = rd_kafka_handle_mock_cluster(client.client().native_ptr());
        rd_kafka_mock_group_initial_rebalance_delay_ms(cluster, 0);
    }
}
