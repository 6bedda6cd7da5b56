//! Kafka and Pub/Sub for a test: embedded ones, or real ones where the environment names them.
//!
//! `CDNWARM_TEST_KAFKA_ENV` is a kafka-env file of a real cluster, `CDNWARM_TEST_PUBSUB_EMULATOR` the HOST:PORT of
//! Google's emulator. The same tests hold on both; every test has topics of its own.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use base64::Engine;
use cdnwarm::demo::kafka::EmbeddedKafka;
use cdnwarm::demo::pubsub::EmbeddedPubsub;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::{PATIENCE, eventually, setting};

const PARTITIONS: i32 = 3;

/// A Kafka with one topic.
pub(crate) struct Kafka {
    embedded: Option<EmbeddedKafka>,
    folder: TempDir,
    properties: Vec<(String, String)>,
    pub(crate) topic: String,
}

impl Kafka {
    /// A topic of its own, on the embedded Kafka or the real one.
    pub(crate) async fn start() -> Self {
        match setting("CDNWARM_TEST_KAFKA_ENV") {
            None => Self::start_embedded(),
            Some(path) => {
                let topic = unique("urls");
                let properties = properties(&std::fs::read_to_string(path).unwrap());
                let client: ClientConfig = properties.iter().cloned().collect();
                let admin: AdminClient<DefaultClientContext> = client.create().unwrap();
                let new = NewTopic::new(&topic, PARTITIONS, TopicReplication::Fixed(1));
                for made in admin.create_topics(&[new], &AdminOptions::new()).await.unwrap() {
                    made.unwrap();
                }
                Self { embedded: None, folder: tempfile::tempdir().unwrap(), properties, topic }
            }
        }
    }

    /// The embedded Kafka, for what only that can be made to do.
    pub(crate) fn embedded(&self) -> &EmbeddedKafka {
        self.embedded.as_ref().expect("this test is for the embedded Kafka")
    }

    /// A topic on an embedded Kafka, whatever the environment says.
    pub(crate) fn start_embedded() -> Self {
        Self::start_embedded_with(PARTITIONS)
    }

    /// As [`Kafka::start_embedded`], with so many partitions.
    pub(crate) fn start_embedded_with(partitions: i32) -> Self {
        let topic = unique("urls");
        let embedded = EmbeddedKafka::start().unwrap();
        embedded.create_topic(&topic, partitions).unwrap();
        let servers = embedded.bootstrap_servers().unwrap();
        let properties = vec![("bootstrap.servers".to_owned(), servers)];
        Self { embedded: Some(embedded), folder: tempfile::tempdir().unwrap(), properties, topic }
    }

    /// Every client from here on has this property, too.
    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.properties.push((name.to_owned(), value.to_owned()));
    }

    /// What any client needs in order to connect.
    pub(crate) fn client(&self) -> ClientConfig {
        self.properties.iter().cloned().collect()
    }

    /// A kafka-env file with a group of its own and these further consumer properties.
    pub(crate) fn env(&self, consumer: &[(&str, &str)]) -> String {
        let mut text = "[default]\n".to_owned();
        for (name, value) in &self.properties {
            text.push_str(&format!("{name}={value}\n"));
        }
        text.push_str(&format!("[consumer]\ngroup.id={}\n", unique("group")));
        // The death of a killed member is noticed sooner than after 45 s: as soon as a real broker allows, and sooner
        // on the embedded one, which makes each new member wait nearly as long for one that has left. It also answers a
        // fetch that found nothing only when its time is over, whatever has come in between.
        let (session_timeout, fetch_wait) =
            if self.embedded.is_some() { ("3000", "20") } else { ("6000", "500") };
        let quick = [
            ("session.timeout.ms", session_timeout),
            ("heartbeat.interval.ms", "300"),
            ("fetch.wait.max.ms", fetch_wait),
        ];
        let quick = quick.iter().filter(|(name, _)| consumer.iter().all(|(other, _)| other != name));
        for (name, value) in quick.chain(consumer) {
            text.push_str(&format!("{name}={value}\n"));
        }
        let path = self.folder.path().join(unique("kafka-env"));
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    /// Writes URLs to a file for `produce --urls`.
    pub(crate) fn file(&self, lines: &[String]) -> String {
        let path = self.folder.path().join(unique("lines"));
        std::fs::write(&path, lines.join("\n")).unwrap();
        path.display().to_string()
    }

    /// Produces one record as any client would, whatever is in it.
    pub(crate) async fn produce(&self, value: Option<&[u8]>, headers: &[(&str, &[u8])]) {
        let mut client = self.client();
        client.set("message.max.bytes", "20000000");
        let producer: FutureProducer = client.create().unwrap();
        let all = headers.iter().fold(OwnedHeaders::new(), |all, (name, value)| {
            all.insert(Header { key: name, value: Some(*value) })
        });
        let mut record: FutureRecord<'_, [u8], [u8]> = FutureRecord::to(&self.topic).headers(all);
        if let Some(value) = value {
            record = record.payload(value);
        }
        producer.send(record, PATIENCE).await.map_err(|(error, _)| error).unwrap();
    }
}

/// A Pub/Sub with one topic.
pub(crate) struct Pubsub {
    pub(crate) host: String,
    pub(crate) topic: String,
    pub(crate) project: String,
    http: reqwest::Client,
    _stop: tokio_util::sync::DropGuard,
}

impl Pubsub {
    /// A topic of its own, on the embedded Pub/Sub or on the emulator.
    pub(crate) async fn start() -> Self {
        let stop = CancellationToken::new();
        let host = match setting("CDNWARM_TEST_PUBSUB_EMULATOR") {
            Some(host) => host,
            None => {
                let server = EmbeddedPubsub::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
                let host = server.addr().to_string();
                tokio::spawn(server.run(stop.clone()));
                host
            }
        };
        let project = unique("project");
        let topic = format!("projects/{project}/topics/warming_urls");
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let pubsub = Self { host, topic, project, http, _stop: stop.drop_guard() };
        pubsub.create_topic().await;
        pubsub
    }

    /// Makes the topic; a test may have deleted it.
    pub(crate) async fn create_topic(&self) {
        self.put(&self.topic, &json!({})).await;
    }

    /// Deletes the topic.
    pub(crate) async fn delete_topic(&self) {
        let url = format!("http://{}/v1/{}", self.host, self.topic);
        self.http.delete(url).send().await.unwrap().error_for_status().unwrap();
    }

    /// Makes a further topic.
    pub(crate) async fn another_topic(&self) -> String {
        let topic = format!("projects/{}/topics/{}", self.project, unique("topic"));
        self.put(&topic, &json!({})).await;
        topic
    }

    /// Publishes one message to the topic.
    pub(crate) async fn publish(&self, data: &[u8], attributes: &Value) {
        let data = base64::engine::general_purpose::STANDARD.encode(data);
        let url = format!("http://{}/v1/{}:publish", self.host, self.topic);
        let message = json!({"data": data, "attributes": attributes});
        self.call(self.http.post(url), &json!({"messages": [message]})).await;
    }

    /// A subscription that pushes to this address.
    pub(crate) async fn push_to(&self, addr: &str) {
        self.push_to_with(addr, json!({}), json!({})).await;
    }

    /// The same with more in its push configuration, and beside that; gives the subscription's id.
    pub(crate) async fn push_to_with(&self, addr: &str, push: Value, more: Value) -> String {
        let id = unique("push");
        let mut config = json!({
            "topic": self.topic,
            "pushConfig": {"pushEndpoint": format!("http://{addr}/")},
            "ackDeadlineSeconds": 60,
        });
        let members = |value: Value| value.as_object().cloned().unwrap();
        config.as_object_mut().unwrap().extend(members(more));
        config["pushConfig"].as_object_mut().unwrap().extend(members(push));
        self.put(&format!("projects/{}/subscriptions/{id}", self.project), &config).await;
        id
    }

    /// A subscription to pull from.
    pub(crate) async fn subscribe(&self) -> Pull<'_> {
        self.subscribe_to(&self.topic).await
    }

    /// A subscription to pull from a further topic.
    pub(crate) async fn subscribe_to(&self, topic: &str) -> Pull<'_> {
        let name = format!("projects/{}/subscriptions/{}", self.project, unique("pull"));
        self.put(&name, &json!({"topic": topic, "ackDeadlineSeconds": 600})).await;
        Pull { pubsub: self, name, seen: Vec::new() }
    }

    async fn put(&self, name: &str, body: &Value) {
        self.call(self.http.put(format!("http://{}/v1/{name}", self.host)), body).await;
    }

    async fn call(&self, request: reqwest::RequestBuilder, body: &Value) -> Value {
        let request = request.header("content-type", "application/json").body(body.to_string());
        let answer = request.timeout(PATIENCE).send().await.unwrap();
        let (status, text) = (answer.status(), answer.text().await.unwrap());
        assert!(status.is_success(), "{status}: {text}");
        serde_json::from_str(&text).unwrap()
    }
}

/// A pull subscription, and what came from it.
pub(crate) struct Pull<'a> {
    pubsub: &'a Pubsub,
    name: String,
    /// Each message's data and attributes.
    pub(crate) seen: Vec<(String, Value)>,
}

impl Pull<'_> {
    /// Pulls until these are all there; more may come with them.
    pub(crate) async fn until(&mut self, data: &BTreeSet<String>) {
        let what = format!("{} messages", data.len());
        eventually(&what, async || {
            self.pull().await;
            let seen: BTreeSet<&String> = self.seen.iter().map(|(data, _)| data).collect();
            data.iter().all(|data| seen.contains(data)).then_some(())
        })
        .await;
    }

    async fn pull(&mut self) {
        let url = |verb: &str| format!("http://{}/v1/{}:{verb}", self.pubsub.host, self.name);
        let body = json!({"maxMessages": 1000, "returnImmediately": true});
        let answer = self.pubsub.call(self.pubsub.http.post(url("pull")), &body).await;
        let received = answer["receivedMessages"].as_array().cloned().unwrap_or_default();
        if received.is_empty() {
            return;
        }
        let ids: Vec<&Value> = received.iter().map(|message| &message["ackId"]).collect();
        self.pubsub.call(self.pubsub.http.post(url("acknowledge")), &json!({"ackIds": ids})).await;
        for message in &received {
            let text = message["message"]["data"].as_str().unwrap_or_default();
            let data = base64::engine::general_purpose::STANDARD.decode(text).unwrap();
            self.seen.push((
                String::from_utf8_lossy(&data).into_owned(),
                message["message"]["attributes"].clone(),
            ));
        }
    }
}

/// A name that no other test, and no other run against the same cluster, uses.
pub(crate) fn unique(what: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    format!("{what}-{}-{}-{}", std::process::id(), now.as_millis(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// The `[default]` section of a kafka-env file.
fn properties(text: &str) -> Vec<(String, String)> {
    let section = text.split('[').find_map(|section| section.strip_prefix("default]")).unwrap();
    let lines = section.lines().filter(|line| !line.starts_with('#'));
    let pairs = lines.filter_map(|line| line.split_once('='));
    pairs.map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned())).collect()
}
