//! `cdnwarm setup` without Google's documents: what it refuses, and the Pub/Sub part against a Pub/Sub that works.

use std::time::Duration;

use cdnwarm::demo::pubsub::EmbeddedPubsub;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::support::process::told;
use crate::support::setting;
use crate::support::setup::Setup;

const FILE: &str = "project = \"my-project\"\nproject-number = 123456789012\n\
                    [regions.europe-west1]\n[regions.us-central1]\n[bridge]\nkind = \"none\"\n";

/// Where nothing listens.
const NOWHERE: &str = "pubsub=http://127.0.0.1:1";

/// An embedded Pub/Sub, and a client that speaks REST to it.
struct Rest {
    base: String,
    client: reqwest::Client,
    stop: CancellationToken,
}

impl Rest {
    async fn start() -> Self {
        let server = EmbeddedPubsub::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
        let (addr, stop) = (server.addr(), CancellationToken::new());
        tokio::spawn(server.run(stop.clone()));
        Self { base: format!("http://{addr}"), client: client(), stop }
    }

    async fn ask(&self, method: http::Method, path: &str, body: Value) -> Value {
        let request = self.client.request(method, format!("{}/v1/projects/my-project/{path}", self.base));
        let answer = request.header("content-type", "application/json").body(body.to_string()).send().await;
        serde_json::from_str(&answer.unwrap().text().await.unwrap()).unwrap()
    }
}

impl Drop for Rest {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn client() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().tls_certs_only([]).timeout(Duration::from_secs(20)).build().unwrap()
}

#[tokio::test]
async fn a_file_that_cannot_be_meant_is_refused_before_anything_is_asked() {
    let setup = Setup::new("project = \"my-project\"\nregoins = {}\n", NOWHERE.to_owned());
    for args in [&["plan"][..], &["apply", "--yes"], &["status"], &["destroy", "--project", "my-project"]] {
        let output = setup.run(args).await;
        assert_eq!(output.status.code(), Some(2), "{}", told(&output));
        assert!(told(&output).contains("unknown key regoins; did you mean regions?"), "{}", told(&output));
    }
}

#[tokio::test]
async fn an_endpoint_that_does_not_answer_is_named_and_nothing_is_asked_for_ever() {
    let setup = Setup::new(FILE, NOWHERE.to_owned());
    let said = setup.fails(&["plan", "--only", "topics", "--retry-for", "1"]).await;
    assert!(said.contains("pubsub does not answer GET v1/projects/my-project/topics/warming_urls"), "{said}");
}

#[tokio::test]
async fn topics_are_made_once_and_go_when_they_are_ours() {
    let rest = Rest::start().await;
    let setup = Setup::new(FILE, format!("pubsub={}", rest.base));
    let only = ["--only", "topics"];
    assert_eq!(setup.changes(&only).await.len(), 3);
    setup.ok(&["apply", "--yes", "--only", "topics"]).await;
    assert_eq!(setup.changes(&only).await, Vec::<String>::new());
    let kept = rest.ask(http::Method::GET, "subscriptions/warming_urls-dead-letter", Value::Null).await;
    assert_eq!(kept["expirationPolicy"], json!({}), "it never expires: {kept}");
    rest.ask(http::Method::PUT, "topics/theirs", json!({})).await;
    setup.ok(&["destroy", "--project", "my-project", "--only", "topics"]).await;
    let left = rest.ask(http::Method::GET, "topics", Value::Null).await;
    assert_eq!(left["topics"].as_array().unwrap().len(), 1, "{left}");
}

#[tokio::test]
async fn a_topic_of_somebody_else_is_used_as_it_is_and_taken_over_only_on_demand() {
    let rest = Rest::start().await;
    rest.ask(http::Method::PUT, "topics/warming_urls", json!({ "labels": { "team": "video" } })).await;
    let setup = Setup::new(FILE, format!("pubsub={}", rest.base));
    let steps = setup.changes(&["--only", "topics"]).await;
    assert_eq!(steps[0], "use topic warming_urls");
    setup.ok(&["apply", "--yes", "--only", "topics"]).await;
    setup.ok(&["destroy", "--project", "my-project", "--only", "topics"]).await;
    let left = rest.ask(http::Method::GET, "topics/warming_urls", Value::Null).await;
    assert_eq!(left["labels"], json!({ "team": "video" }));
    let steps = setup.changes(&["--only", "topics", "--adopt"]).await;
    assert_eq!(steps[0], "change topic warming_urls");
}

#[tokio::test]
async fn nobody_destroys_a_project_by_another_name() {
    let rest = Rest::start().await;
    let setup = Setup::new(FILE, format!("pubsub={}", rest.base));
    setup.ok(&["apply", "--yes", "--only", "topics"]).await;
    for args in [&["destroy", "--only", "topics"][..], &["destroy", "--only", "topics", "--project", "other"]]
    {
        let output = setup.run(args).await;
        assert_eq!(output.status.code(), Some(2), "{}", told(&output));
    }
    assert_eq!(setup.changes(&["--only", "topics"]).await, Vec::<String>::new());
}

/// The filters that the plan shows, on subscriptions of a Pub/Sub that applies them, which Google's emulator does not.
#[tokio::test]
async fn a_region_gets_what_is_for_all_and_what_names_it_and_nothing_else() {
    let rest = Rest::start().await;
    let setup = Setup::new(FILE, format!("pubsub={}", rest.base));
    setup.ok(&["apply", "--yes", "--only", "topics"]).await;
    let plan: Value =
        serde_json::from_str(&setup.ok(&["plan", "--json", "--only", "subscriptions"]).await).unwrap();
    let regions = ["europe-west1", "us-central1"];
    for region in regions {
        let step = plan["steps"].as_array().unwrap().iter().find(|step| step["label"] == region).unwrap();
        let fields = step["differences"].as_array().unwrap();
        let filter = &fields.iter().find(|field| field["field"] == "filter").unwrap()["new"];
        let body = json!({ "topic": "projects/my-project/topics/warming_urls", "filter": filter });
        rest.ask(http::Method::PUT, &format!("subscriptions/{region}"), body).await;
    }
    let messages = json!([
        { "data": "YWxs" },
        { "data": "ZXU=", "attributes": { "warm-region-filtered": "1", "warm-region-europe-west1": "1" } },
        { "data": "YXM=", "attributes": { "warm-region-filtered": "1", "warm-region-asia-east1": "1" } },
    ]);
    rest.ask(http::Method::POST, "topics/warming_urls:publish", json!({ "messages": messages })).await;
    for (region, expected) in regions.into_iter().zip([vec!["YWxs", "ZXU="], vec!["YWxs"]]) {
        let pull = json!({ "maxMessages": 10, "returnImmediately": true });
        let pulled = rest.ask(http::Method::POST, &format!("subscriptions/{region}:pull"), pull).await;
        let mut data: Vec<&str> = pulled["receivedMessages"]
            .as_array()
            .unwrap()
            .iter()
            .map(|received| received["message"]["data"].as_str().unwrap())
            .collect();
        data.sort_unstable();
        assert_eq!(data, expected, "{region}");
    }
}

/// What also holds on a real Kafka, where one is named.
mod pipeline {
    use rdkafka::admin::AdminClient;
    use rdkafka::client::DefaultClientContext;

    use super::*;
    use crate::support::PATIENCE;
    use crate::support::stand::Kafka;

    #[tokio::test]
    async fn a_kafka_topic_that_is_missing_stops_everything_or_is_made() {
        let (kafka, rest) = (Kafka::start().await, Rest::start().await);
        let topic = format!("made-{}", std::process::id());
        let file = format!(
            "project = \"my-project\"\nproject-number = 123456789012\n[regions.europe-west1]\n[kafka]\n\
             env-file = \"{}\"\ntopic = \"{topic}\"\nreplication = 1\n",
            kafka.env(&[])
        );
        let setup = Setup::new(&file, format!("pubsub={}", rest.base));
        let said = setup.fails(&["apply", "--yes", "--only", "topics"]).await;
        assert!(said.contains(&format!("Kafka topic {topic} does not exist")), "{said}");
        assert_eq!(rest.ask(http::Method::GET, "topics", Value::Null).await["topics"], json!([]));
        setup.write(&file.replace("replication", "create-topic = true\nreplication"));
        let steps = setup.changes(&["--only", "topics"]).await;
        assert!(steps.contains(&format!("create Kafka topic {topic}")), "{steps:#?}");
        // The embedded Kafka makes topics for its owner alone.
        if setting("CDNWARM_TEST_KAFKA_ENV").is_some() {
            setup.ok(&["apply", "--yes", "--only", "topics"]).await;
            assert_eq!(setup.changes(&["--only", "topics"]).await, Vec::<String>::new());
            let admin: AdminClient<DefaultClientContext> = kafka.client().create().unwrap();
            let found = admin.inner().fetch_metadata(Some(&topic), PATIENCE).unwrap();
            assert_eq!(found.topics()[0].partitions().len(), 6);
        }
    }
}

/// Topics and subscriptions, push and all, on Google's own emulator.
#[tokio::test]
#[ignore = "needs Google's emulator, named by CDNWARM_TEST_SETUP_EMULATOR"]
async fn the_pubsub_part_stands_on_googles_emulator() {
    let Some(host) = setting("CDNWARM_TEST_SETUP_EMULATOR") else {
        panic!("CDNWARM_TEST_SETUP_EMULATOR names no emulator");
    };
    let file = FILE.replace("my-project", &format!("project-{}", std::process::id()));
    let setup = Setup::new(&file, format!("pubsub=http://{host}"));
    let only = ["--only", "topics,subscriptions"];
    assert_eq!(setup.changes(&only).await.len(), 5);
    setup.ok(&[&["apply", "--yes"], &only[..]].concat()).await;
    assert_eq!(setup.changes(&only).await, Vec::<String>::new());
    // A field that can be changed, and one that cannot.
    setup.write(&file.replace("[bridge]", "[push]\nack-deadline-seconds = 590\n[bridge]"));
    setup.ok(&[&["apply", "--yes"], &only[..]].concat()).await;
    assert_eq!(setup.changes(&only).await, Vec::<String>::new());
    setup.write(&file.replace("[bridge]", "[push]\nfilter = false\n[bridge]"));
    let steps = setup.changes(&only).await;
    assert_eq!(steps, ["replace subscription europe-west1", "replace subscription us-central1"]);
    setup.ok(&[&["apply", "--yes"], &only[..]].concat()).await;
    assert_eq!(setup.changes(&only).await, Vec::<String>::new());
    let project = file.split('"').nth(1).unwrap().to_owned();
    setup.ok(&[&["destroy", "--project", &project], &only[..]].concat()).await;
    assert_eq!(setup.changes(&only).await.len(), 5);
}
