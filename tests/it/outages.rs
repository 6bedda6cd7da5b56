//! The far ends of the wire go away and come back, or say nothing, on embedded parts.

use std::collections::BTreeSet;
use std::process::Stdio;

use nix::sys::signal::Signal;

use crate::support::process::{Process, command, run, told};
use crate::support::stand::{Kafka, Pubsub};

async fn produce(kafka: &Kafka, urls: &BTreeSet<String>) {
    let lines: Vec<String> = urls.iter().cloned().collect();
    let output = run(&["produce", &kafka.env(&[]), &kafka.topic, "--urls", &kafka.file(&lines)]).await;
    assert!(output.status.success(), "{}", told(&output));
}

fn urls(name: &str) -> BTreeSet<String> {
    (0..50).map(|n| format!("http://cdn.example.com/{name}/{n}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_goes_and_comes_back_is_no_end() {
    let (kafka, pubsub) = (Kafka::start_embedded(), Pubsub::start().await);
    let mut pull = pubsub.subscribe().await;
    let env = kafka.env(&[("auto.offset.reset", "earliest"), ("reconnect.backoff.max.ms", "500")]);
    let mut command = command(&["bridge", &env, &kafka.topic, &pubsub.topic]);
    command.env("PUBSUB_EMULATOR_HOST", &pubsub.host);
    let mut bridge = Process::spawn(command);
    let before = urls("before");
    produce(&kafka, &before).await;
    pull.until(&before).await;
    kafka.embedded().set_available(false).unwrap();
    bridge.says("brokers are down").await;
    kafka.embedded().set_available(true).unwrap();
    let after = urls("after");
    produce(&kafka, &after).await;
    pull.until(&after).await;
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_while_the_broker_or_pubsub_is_away_is_still_a_clean_end() {
    let (kafka, pubsub) = (Kafka::start_embedded(), Pubsub::start().await);
    for broker_is_away in [true, false] {
        let env = kafka.env(&[("auto.offset.reset", "earliest")]);
        let mut command = command(&["bridge", &env, &kafka.topic, &pubsub.topic]);
        command.env("PUBSUB_EMULATOR_HOST", &pubsub.host);
        let mut bridge = Process::spawn(command);
        bridge.says("partitions assigned").await;
        if broker_is_away {
            kafka.embedded().set_available(false).unwrap();
            bridge.says("brokers are down").await;
        } else {
            pubsub.delete_topic().await;
            produce(&kafka, &urls("held")).await;
            bridge.says("publishing is refused").await;
        }
        bridge.stop().await;
        kafka.embedded().set_available(true).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_project_is_spoken_to_with_application_default_credentials() {
    let (kafka, pubsub) = (Kafka::start_embedded(), Pubsub::start().await);
    let mut pull = pubsub.subscribe().await;
    // A service account's key signs its tokens itself, so that nobody has to be asked for one.
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap();
    let account = serde_json::json!({
        "type": "service_account",
        "project_id": "p",
        "private_key_id": "1",
        "private_key": key.serialize_pem(),
        "client_email": "bridge@p.iam.gserviceaccount.com",
        "client_id": "1",
        "token_uri": "http://127.0.0.1:1/token",
    });
    let file = kafka.file(&[account.to_string()]);
    let env = kafka.env(&[("auto.offset.reset", "earliest")]);
    let endpoint = format!("http://{}", pubsub.host);
    let args = ["bridge", &env, &kafka.topic, &pubsub.topic, "--pubsub-endpoint", &endpoint];
    let mut command = command(&args);
    command.env("GOOGLE_APPLICATION_CREDENTIALS", &file).env("PUBSUB_EMULATOR_HOST", "");
    let mut bridge = Process::spawn(command);
    let urls = urls("adc");
    produce(&kafka, &urls).await;
    pull.until(&urls).await;
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_produce_that_waits_for_its_input_hears_a_stop_and_says_that_it_was_cut_short() {
    let kafka = Kafka::start_embedded();
    let mut command = command(&["produce", &kafka.env(&[]), &kafka.topic, "--urls", "-", "--verbose"]);
    command.stdin(Stdio::piped());
    let mut produce = Process::spawn(command);
    produce.write(b"http://cdn.example.com/first\n").await;
    produce.says("Message to topic").await;
    produce.signal(Signal::SIGTERM);
    assert_eq!(produce.ends().await, Some(1));
    produce.says("1 records delivered").await;
    produce.says("stopped before everything was produced").await;
}
