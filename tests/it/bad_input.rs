//! What goes wrong at the start of a role: the exit status, and a message that says where and what to do.

use std::process::Output;

use tempfile::TempDir;

use crate::support::process::{command, finish, run, told};
use crate::support::stand::{Kafka, Pubsub};

const NO_BROKER: &str = "[default]\nbootstrap.servers=127.0.0.1:1\n[consumer]\ngroup.id=g\n";
const TOPIC: &str = "projects/p/topics/warming_urls";

/// Checks the status, and that each of `expected` is said; gives all that was.
fn assert_ends(output: &Output, code: i32, expected: &[&str]) -> String {
    let text = told(output);
    assert_eq!(output.status.code(), Some(code), "{text}");
    for part in expected {
        assert!(text.contains(part), "{part:?} is not in:\n{text}");
    }
    assert!(!text.contains("panicked"), "{text}");
    text
}

fn file(folder: &TempDir, text: &str) -> String {
    let path = folder.path().join("kafka-env");
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

#[tokio::test]
async fn a_kafka_env_that_cannot_be_meant_ends_with_status_2_and_names_the_line() {
    let folder = tempfile::tempdir().unwrap();
    let example = include_str!("../../kafka-env.example");
    for (text, expected) in [
        (example, vec!["kafka-env:", "bootstrap.servers", "placeholder"]),
        ("[default]\nbootstrap.servers=h:1\nfoo.bar=1\n[consumer]\ngroup.id=g\n", vec![":3:", "foo.bar"]),
        ("[defaults]\n", vec![":1:", "[defaults]"]),
        (
            "[default]\nbootstrap.servers=h:1\n[consumer]\ngroup.id=g\nenable.auto.commit=false\n",
            vec![":5:", "enable.auto.commit"],
        ),
    ] {
        let env = file(&folder, text);
        for args in [vec!["bridge", &env, "urls", TOPIC], vec!["consume-direct", &env, "urls"]] {
            assert_ends(&run(&args).await, 2, &expected);
        }
    }
    let missing = folder.path().join("nowhere").display().to_string();
    for args in [vec!["produce", &missing, "urls"], vec!["bridge", &missing, "urls", TOPIC]] {
        assert_ends(&run(&args).await, 2, &["nowhere", "kafka-env.example", "No such file"]);
    }
}

#[tokio::test]
async fn arguments_that_cannot_be_meant_end_with_status_2() {
    let folder = tempfile::tempdir().unwrap();
    let env = file(&folder, NO_BROKER);
    for (args, expected) in [
        (vec!["serve"], "--insecure-accept-unauthenticated"),
        (vec!["bridge", &env, "urls", "warming_urls"], "projects/PROJECT/topics/TOPIC"),
        (vec!["produce", &env, "a/b"], "a Kafka topic's name has 1 to 249 letters"),
        (vec!["produce", &env, "urls", "--header", "warm-colour=red"], "unknown option warm-colour"),
        (vec!["produce", &env, "urls", "--urls", "/nonexistent"], "/nonexistent"),
        (vec!["demo", "--break", "mars"], "europe-west1"),
        (vec!["serve", "--connect-to", "example.com"], "HOST=ADDR or HOST=ADDR:PORT"),
    ] {
        assert_ends(&run(&args).await, 2, &[expected]);
    }
}

#[tokio::test]
async fn a_broker_that_is_away_is_named_after_the_time_that_was_given() {
    let folder = tempfile::tempdir().unwrap();
    let env = file(&folder, NO_BROKER);
    for args in [
        vec!["produce", &env, "urls", "--kafka-timeout", "1"],
        vec!["consume-direct", &env, "urls", "--kafka-timeout", "1"],
    ] {
        assert_ends(&run(&args).await, 1, &["no Kafka broker answered within 1 s", "127.0.0.1:1", &env]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kafka_topic_that_does_not_exist_is_named() {
    let (kafka, pubsub) = tokio::join!(Kafka::start(), Pubsub::start());
    let env = kafka.env(&[]);
    let mut bridge = command(&["bridge", &env, "no-such-topic", &pubsub.topic]);
    bridge.env("PUBSUB_EMULATOR_HOST", &pubsub.host);
    assert_ends(&finish(bridge).await, 1, &["Kafka topic no-such-topic does not exist", &env]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pubsub_topic_that_does_not_exist_is_named() {
    let (kafka, pubsub) = tokio::join!(Kafka::start(), Pubsub::start());
    let mut bridge = command(&["bridge", &kafka.env(&[]), &kafka.topic, "projects/p/topics/no-such-topic"]);
    bridge.env("PUBSUB_EMULATOR_HOST", &pubsub.host);
    assert_ends(&finish(bridge).await, 1, &["projects/p/topics/no-such-topic does not exist", "create it"]);
}

#[tokio::test]
async fn a_pubsub_that_is_away_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let env = file(&folder, NO_BROKER);
    let mut bridge = command(&["bridge", &env, "urls", TOPIC, "--pubsub-timeout", "1"]);
    bridge.env("PUBSUB_EMULATOR_HOST", "127.0.0.1:1");
    assert_ends(&finish(bridge).await, 1, &["127.0.0.1:1", "is the emulator running?"]);
}

#[tokio::test]
async fn missing_credentials_are_explained() {
    let folder = tempfile::tempdir().unwrap();
    let mut bridge = command(&["bridge", &file(&folder, NO_BROKER), "urls", TOPIC]);
    // No key file, no gcloud, no metadata server.
    bridge.env("HOME", folder.path());
    assert_ends(
        &finish(bridge).await,
        1,
        &["application default credentials", "gcloud auth application-default login"],
    );
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let mut serve = command(&["serve", "--listen", "127.0.0.1", "--insecure-accept-unauthenticated"]);
    serve.env("PORT", &port);
    assert_ends(&finish(serve).await, 1, &[&port, "choose another port"]);
}

#[tokio::test]
async fn a_password_is_never_shown() {
    let folder = tempfile::tempdir().unwrap();
    let text = "[default]\nbootstrap.servers=127.0.0.1:1\nsecurity.protocol=SASL_PLAINTEXT\nsasl.mechanisms=PLAIN\n\
                sasl.username=alice\nsasl.password=hunter2\n[consumer]\ngroup.id=g\n";
    let env = file(&folder, text);
    let args = ["--log", "trace", "consume-direct", &env, "urls", "--kafka-timeout", "1"];
    let said = assert_ends(&run(&args).await, 1, &["no Kafka broker answered"]);
    assert!(!said.contains("hunter2"), "{said}");
}
