//! What to consume, and as whom.

use std::time::Duration;

use rdkafka::config::ClientConfig;

use super::super::start_offsets::OnLostOffsets;
use super::batch_sender::BatchLimits;

/// What kafka-env may override: fast and frugal at full speed, quick to come back after an outage.
const DEFAULTS: [(&str, &str); 9] = [
    // Read ahead enough to keep a million small records a second flowing, and no more: what waits here is memory. With less
    // the queues run dry while the broker answers; with 1 MiB a fetch it is 15 MiB more, and no faster.
    ("queued.min.messages", "30000"),
    ("queued.max.messages.kbytes", "16384"),
    ("fetch.message.max.bytes", "786432"),
    // How soon a full queue is looked at again; librdkafka's default of a second starves a fast reader.
    ("fetch.queue.backoff.ms", "2"),
    ("fetch.error.backoff.ms", "100"),
    ("reconnect.backoff.max.ms", "1000"),
    // How soon new partitions are seen.
    ("topic.metadata.refresh.interval.ms", "30000"),
    // A record batch that is corrupt must be noticed, not forwarded.
    ("check.crcs", "true"),
    ("socket.nagle.disable", "true"),
];
/// How soon the group notices a member that was killed: the least that brokers allow by default. The protocol of KIP-848
/// leaves both to the broker.
const SESSION: [(&str, &str); 2] = [("session.timeout.ms", "6000"), ("heartbeat.interval.ms", "2000")];
/// Records that are accepted downstream and not committed come again after a crash.
const COMMIT_INTERVAL: Duration = Duration::from_millis(100);
/// `max.poll.interval.ms` of librdkafka.
const MAX_POLL_INTERVAL: Duration = Duration::from_secs(300);
/// Records in hand while they are put into a batch: more would be hidden from librdkafka's own bounds.
const RECORDS_AT_ONCE: &str = "1000";

/// What to consume, and as whom.
pub(crate) struct ConsumerConfig {
    /// kafka-env's properties.
    pub(crate) client: ClientConfig,
    pub(crate) topic: String,
    /// Start at the beginning of every partition on its first assignment.
    pub(crate) reset: bool,
    pub(crate) on_lost_offsets: OnLostOffsets,
    /// Go on behind record batches that are corrupt, instead of stopping their partitions.
    pub(crate) skip_corrupt: bool,
    /// Static membership (KIP-345).
    pub(crate) group_instance_id: Option<String>,
    pub(crate) batches: BatchLimits,
    /// How long to wait at start for a broker.
    pub(crate) timeout: Duration,
    /// The kafka-env file's name, for messages.
    pub(crate) source: String,
}

impl ConsumerConfig {
    /// kafka-env's properties with our defaults for those that it does not set.
    pub(super) fn client(&self) -> ClientConfig {
        let mut client = self.client.clone();
        let own_session = SESSION.iter().any(|(name, _)| client.get(name).is_some());
        let by_broker = client.get("group.protocol").is_some_and(|p| p.eq_ignore_ascii_case("consumer"));
        let session = if own_session || by_broker { &[][..] } else { &SESSION[..] };
        for (name, value) in DEFAULTS.iter().chain(session) {
            if client.get(name).is_none() {
                client.set(*name, *value);
            }
        }
        if let Some(id) = &self.group_instance_id {
            client.set("group.instance.id", id);
        }
        // Every partition is assigned with the offset that it starts at. What is left of this property is the case that
        // this offset is not in the topic, which must be heard and not papered over.
        client.set("auto.offset.reset", "error");
        client.set("consume.callback.max.messages", RECORDS_AT_ONCE);
        client
    }

    /// `auto.commit.interval.ms`, or our default.
    pub(super) fn commit_interval(&self) -> Duration {
        self.milliseconds("auto.commit.interval.ms", COMMIT_INTERVAL)
    }

    /// `max.poll.interval.ms`, or librdkafka's default.
    pub(super) fn max_poll_interval(&self) -> Duration {
        self.milliseconds("max.poll.interval.ms", MAX_POLL_INTERVAL)
    }

    fn milliseconds(&self, property: &str, default: Duration) -> Duration {
        let set = self.client.get(property).and_then(|ms| ms.parse().ok());
        set.map_or(default, Duration::from_millis)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(properties: &[(&str, &str)]) -> ConsumerConfig {
        let mut client = ClientConfig::new();
        for (name, value) in properties {
            client.set(*name, *value);
        }
        ConsumerConfig {
            client,
            topic: "urls".to_owned(),
            reset: false,
            on_lost_offsets: OnLostOffsets::Stop,
            skip_corrupt: false,
            group_instance_id: Some("bridge-1".to_owned()),
            batches: BatchLimits { records: 1, bytes: 1, linger: Duration::ZERO, own_receipts: false },
            timeout: Duration::from_secs(30),
            source: "kafka-env".to_owned(),
        }
    }

    #[test]
    fn kafka_env_overrides_our_defaults_but_not_what_offsets_rest_on() {
        let plain = config(&[]);
        let of = |config: &ConsumerConfig, name: &str| config.client().get(name).map(str::to_owned);
        assert_eq!(of(&plain, "session.timeout.ms").as_deref(), Some("6000"));
        assert_eq!(of(&plain, "check.crcs").as_deref(), Some("true"));
        assert_eq!(of(&plain, "group.instance.id").as_deref(), Some("bridge-1"));
        assert_eq!(plain.commit_interval(), Duration::from_millis(100));
        assert_eq!(plain.max_poll_interval(), Duration::from_secs(300));
        let own = config(&[
            ("auto.offset.reset", "earliest"),
            ("auto.commit.interval.ms", "5000"),
            ("check.crcs", "false"),
            ("session.timeout.ms", "45000"),
        ]);
        assert_eq!(of(&own, "auto.offset.reset").as_deref(), Some("error"));
        assert_eq!(of(&own, "check.crcs").as_deref(), Some("false"));
        assert_eq!(of(&own, "heartbeat.interval.ms"), None, "a session of its own");
        assert_eq!(own.commit_interval(), Duration::from_secs(5));
        assert_eq!(of(&config(&[("group.protocol", "consumer")]), "session.timeout.ms"), None, "KIP-848");
    }
}
