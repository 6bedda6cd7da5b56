//! `cdnwarm setup` against Google's own description of its APIs. Each test needs `CDNWARM_DISCOVERY`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::support::contract::Google;
use crate::support::contract::state::{NUMBER, PROJECT, State};
use crate::support::process::told;
use crate::support::setup::Setup;
use crate::support::stand::Kafka;

/// What a new project has.
pub(crate) const AT_FIRST: [&str; 3] = ["serviceusage", "logging", "monitoring"];

/// Everything that can be asked for: two regions, a bridge with its secret, a trigger.
pub(crate) fn full(kafka: &Kafka) -> String {
    let env = kafka.env(&[]);
    let topic = &kafka.topic;
    format!(
        "project = \"{PROJECT}\"\n[kafka]\nenv-file = \"{env}\"\ntopic = \"{topic}\"\n\
         [trigger]\nrepository = \"projects/{PROJECT}/locations/us-central1/connections/c/repositories/r\"\n\
         [regions.europe-west1]\n[regions.us-central1]\nmax-instances = 20\n"
    )
}

/// The file of `docs/deploy.md`.
const SMALL: &str = r#"project = "my-project"

[regions.europe-west1]
[regions.us-central1]
[regions.asia-northeast1]

[kafka]
env-file = "kafka-env"
topic = "warming_urls"

[bridge]
kind = "worker-pool"
region = "europe-west1"
"#;

/// Three regions, and no bridge.
const NEWCOMER: &str = "project = \"my-project\"\n\n[bridge]\nkind = \"none\"\n\n[regions.europe-west1]\n[regions.us-central1]\n[regions.asia-northeast1]\n";

const NOTHING: [String; 0] = [];

#[tokio::test]
#[ignore = "needs Google's discovery documents"]
async fn an_empty_project_is_set_up_once_and_again_changes_nothing() {
    let (kafka, google) = (Kafka::start_embedded(), Google::start(State::with_apis(&AT_FIRST)).await);
    let setup = Setup::of(&google, &full(&kafka));
    let planned = setup.changes(&[]).await;
    assert!(planned.len() > 25 && !google.take_calls().iter().any(|call| call.writes), "{planned:#?}");
    setup.ok(&["apply", "--yes"]).await;
    assert_eq!(setup.changes(&[]).await, NOTHING);
    google.take_calls();
    setup.ok(&["apply", "--yes"]).await;
    let wrote: Vec<_> = google.take_calls().into_iter().filter(|call| call.writes).collect();
    assert!(wrote.is_empty(), "{wrote:#?}");
    let status = setup.ok(&["status"]).await;
    assert!(
        status.contains(&format!("https://cdn-prewarm-us-central1-{NUMBER}.us-central1.run.app")),
        "{status}"
    );
}

#[tokio::test]
#[ignore = "needs Google's discovery documents"]
async fn a_private_service_trusts_cloud_run_and_a_public_one_does_not() {
    let google = Google::start(State::with_apis(&AT_FIRST)).await;
    let setup = Setup::of(&google, NEWCOMER);
    setup.ok(&["apply", "--yes"]).await;
    let service = format!("run projects/{PROJECT}/locations/us-central1/services/cdn-prewarm-us-central1");
    let args =
        |google: &Google| google.state().objects[&service]["template"]["containers"][0]["args"].clone();
    let trusts = |args: &Value| args.as_array().unwrap().contains(&json!("--trust-platform-auth"));
    assert!(trusts(&args(&google)), "{}", args(&google));
    let open =
        NEWCOMER.replace("[regions.us-central1]\n", "[regions.us-central1]\nallow-unauthenticated = true\n");
    setup.write(&open);
    setup.ok(&["apply", "--yes"]).await;
    assert!(!trusts(&args(&google)), "{}", args(&google));
    let invokers = google.state().policies[&service].to_string();
    assert!(invokers.contains("allUsers"), "{invokers}");
    // And back: who may call it is private again, or anybody's tokens would be believed.
    setup.write(NEWCOMER);
    setup.ok(&["apply", "--yes"]).await;
    assert!(trusts(&args(&google)));
    let invokers = google.state().policies[&service].to_string();
    assert!(!invokers.contains("allUsers"), "{invokers}");
    google.take_calls();
}

#[tokio::test]
#[ignore = "needs Google's discovery documents"]
async fn what_was_changed_by_hand_is_repaired_and_nothing_else_is_touched() {
    let (kafka, google) = (Kafka::start_embedded(), Google::start(State::with_apis(&AT_FIRST)).await);
    let setup = Setup::of(&google, &full(&kafka));
    setup.ok(&["apply", "--yes"]).await;
    let before = google.state().shown();
    let service = format!("run projects/{PROJECT}/locations/us-central1/services/cdn-prewarm-us-central1");
    let subscription = format!("pubsub projects/{PROJECT}/subscriptions/us-central1");
    {
        let mut state = google.state();
        let object = state.objects.get_mut(&service).unwrap();
        object["template"]["maxInstanceRequestConcurrency"] = json!(80);
        object["labels"]["team"] = json!("video");
        object["template"]["annotations"] = json!({ "theirs": "kept" });
        state.objects.get_mut(&subscription).unwrap()["expirationPolicy"] = json!({ "ttl": "2678400s" });
        let policy = state.policies.get_mut(&service).unwrap();
        let members = policy["bindings"][0]["members"].as_array_mut().unwrap();
        members.clear();
        members.push(json!("user:a@example.com"));
    }
    google.take_calls();
    let steps = setup.changes(&[]).await;
    let expected = [
        "change service us-central1/cdn-prewarm-us-central1",
        "change access to service us-central1/cdn-prewarm-us-central1",
        "change subscription us-central1",
    ];
    assert_eq!(steps, expected);
    let plan = setup.ok(&["plan"]).await;
    assert!(plan.contains("template.maxInstanceRequestConcurrency: 80 -> 250"), "{plan}");
    google.take_calls();
    setup.ok(&["apply", "--yes"]).await;
    let writes = google.take_calls().into_iter().filter(|call| call.writes).count();
    assert_eq!(writes, 3);
    let mut after = google.state().shown();
    let object = &mut after["objects"][&service];
    assert_eq!(object["labels"].as_object_mut().unwrap().remove("team"), Some(json!("video")));
    assert_eq!(
        object["template"].as_object_mut().unwrap().remove("annotations"),
        Some(json!({ "theirs": "kept" }))
    );
    let members = after["policies"][&service]["bindings"][0]["members"].as_array_mut().unwrap();
    members.retain(|member| member != "user:a@example.com");
    assert_eq!(after, before);
}

#[tokio::test]
#[ignore = "needs Google's discovery documents"]
async fn destroy_leaves_what_is_not_its_own() {
    let (kafka, google) = (
        Kafka::start_embedded(),
        Google::start(State::with_apis(&["run", "pubsub", "iam", "logging", "monitoring"])).await,
    );
    {
        let mut state = google.state();
        for (key, object) in [
            ("pubsub topics/theirs", json!({ "name": "t", "labels": { "managed-by": "hand" } })),
            ("pubsub topics/warming_urls", json!({ "name": "t" })),
            ("iam serviceAccounts/theirs@my-project.iam.gserviceaccount.com", json!({ "name": "a" })),
            ("run locations/europe-west1/services/theirs", json!({ "name": "s" })),
        ] {
            let (api, name) = key.split_once(' ').unwrap();
            state.objects.insert(format!("{api} projects/{PROJECT}/{name}"), object);
        }
        let topic = format!("pubsub projects/{PROJECT}/topics/warming_urls");
        let theirs = json!([{ "role": "roles/pubsub.publisher", "members": ["user:a@example.com"] }]);
        state.policies.insert(topic, json!({ "etag": "AAA=", "bindings": theirs }));
    }
    let before = google.state().shown();
    let setup = Setup::of(&google, &full(&kafka));
    let plan = setup.ok(&["plan"]).await;
    assert!(plan.contains("= use      topic warming_urls"), "{plan}");
    setup.ok(&["apply", "--yes"]).await;
    setup.ok(&["destroy", "--project", PROJECT]).await;
    let mut after = google.state().shown();
    // APIs stay enabled: others may use them by now. A policy that was written stays, empty or not.
    after["enabled"] = before["enabled"].clone();
    let policies = after["policies"].as_object_mut().unwrap();
    policies.retain(|_, policy| policy["bindings"].as_array().is_some_and(|bindings| !bindings.is_empty()));
    assert_eq!(after, before);
    google.take_calls();
}

#[tokio::test]
#[ignore = "needs Google's discovery documents"]
async fn what_the_original_left_is_refused_and_then_adopted() {
    let google = Google::start(State::with_apis(&["serviceusage", "run", "pubsub", "iam"])).await;
    let service = format!("run projects/{PROJECT}/locations/us-central1/services/cdn-prewarm-us-central1");
    let topic = format!("projects/{PROJECT}/topics/warming_urls");
    {
        let mut state = google.state();
        let container =
            json!({ "image": "python", "command": ["gunicorn"], "ports": [{ "containerPort": 8080 }] });
        let template = json!({ "containers": [container], "revision": "cdn-prewarm-us-central1-00007-xyz" });
        state.objects.insert(
            service.clone(),
            json!({ "template": template, "terminalCondition": { "state": "CONDITION_SUCCEEDED" } }),
        );
        state.policies.insert(
            service.clone(),
            json!({ "etag": "AAA=", "bindings": [{ "role": "roles/run.invoker", "members": ["allUsers"] }] }),
        );
        state.objects.insert(format!("pubsub {topic}"), json!({ "name": topic }));
        let push = json!({ "pushEndpoint": "https://cdn-prewarm-xyz-uc.a.run.app/", "noWrapper": { "writeMetadata": true } });
        let subscription =
            json!({ "topic": topic, "pushConfig": push, "expirationPolicy": { "ttl": "2678400s" } });
        state.objects.insert(format!("pubsub projects/{PROJECT}/subscriptions/us-central1"), subscription);
    }
    let setup = Setup::of(&google, NEWCOMER);
    let said = setup.fails(&["apply", "--yes"]).await;
    assert!(said.contains("! foreign  service us-central1/cdn-prewarm-us-central1"), "{said}");
    assert!(said.contains("2 of these are not cdnwarm's; nothing was changed"), "{said}");
    assert!(!google.take_calls().iter().any(|call| call.writes));
    let plan = setup.ok(&["plan", "--adopt"]).await;
    assert!(
        plan.contains("± replace  subscription us-central1") && plan.contains("its backlog goes"),
        "{plan}"
    );
    setup.ok(&["apply", "--yes", "--adopt"]).await;
    assert_eq!(setup.changes(&[]).await, NOTHING);
    let state = google.state();
    assert_eq!(state.objects[&service]["template"]["containers"][0]["command"], Value::Null);
    assert!(!state.policies[&service].to_string().contains("allUsers"));
}

#[tokio::test]
#[ignore = "needs Google's discovery documents"]
async fn a_region_that_leaves_the_file_leaves_the_project() {
    let google = Google::start(State::with_apis(&AT_FIRST)).await;
    let setup = Setup::of(&google, NEWCOMER);
    setup.ok(&["apply", "--yes"]).await;
    setup.write(&NEWCOMER.replace("[regions.us-central1]\n", ""));
    let steps = setup.changes(&[]).await;
    assert_eq!(
        steps,
        ["delete service us-central1/cdn-prewarm-us-central1", "delete subscription us-central1"]
    );
    setup.ok(&["apply", "--yes"]).await;
    assert_eq!(setup.changes(&[]).await, NOTHING);
    assert!(!google.state().shown().to_string().contains("cdn-prewarm-us-central1"));
    google.take_calls();
}

#[tokio::test]
#[ignore = "needs Google's discovery documents"]
async fn a_bridge_that_moves_or_is_no_more_wanted_leaves_nothing_that_runs_or_alerts() {
    let (kafka, google) = (Kafka::start_embedded(), Google::start(State::with_apis(&AT_FIRST)).await);
    let file = full(&kafka);
    let setup = Setup::of(&google, &file);
    setup.ok(&["apply", "--yes"]).await;
    // Another file's bridge in the same project, for another topic.
    let pools =
        |region: &str| format!("run projects/{PROJECT}/locations/{region}/workerPools/cdnwarm-bridge");
    let mut other = google.state().objects[&pools("us-central1")].clone();
    other["template"]["containers"][0]["args"][3] = json!(format!("projects/{PROJECT}/topics/other"));
    google.state().objects.insert(pools("europe-west9"), other);
    let moved = format!("{file}[regions.europe-west9]\n[bridge]\nregion = \"europe-west1\"\n");
    setup.write(&moved);
    let steps = setup.changes(&["--only", "bridge"]).await;
    assert_eq!(steps, ["create worker pool europe-west1/cdnwarm-bridge"]);
    let steps = setup.changes(&[]).await;
    assert_eq!(steps.last().unwrap(), "delete worker pool us-central1/cdnwarm-bridge", "{steps:#?}");
    setup.ok(&["apply", "--yes"]).await;
    assert_eq!(setup.changes(&[]).await, NOTHING);
    setup.write(&moved.replace("[bridge]\n", "[bridge]\nkind = \"none\"\n"));
    let steps = setup.changes(&[]).await;
    let alert = "alert policy cdnwarm: the bridge falls behind, or is silent (warming_urls)";
    assert_eq!(steps, ["delete worker pool europe-west1/cdnwarm-bridge", &format!("delete {alert}")]);
    setup.ok(&["apply", "--yes"]).await;
    assert_eq!(setup.changes(&[]).await, NOTHING);
    let left: Vec<String> =
        google.state().objects.keys().filter(|key| key.contains("workerPools")).cloned().collect();
    assert_eq!(left, [pools("europe-west9")]);
    // Whoever wants no bridge needs no right to look for one.
    google.deny("run.projects.locations.workerPools.get");
    assert_eq!(setup.changes(&[]).await, NOTHING);
    google.take_calls();
}

#[tokio::test]
#[ignore = "needs Google's discovery documents"]
async fn new_credentials_are_a_new_version_and_a_new_revision_and_are_never_shown() {
    let (mut kafka, google) = (Kafka::start_embedded(), Google::start(State::with_apis(&AT_FIRST)).await);
    kafka.set("sasl.password", "hunter2");
    let setup = Setup::of(&google, &full(&kafka));
    let mut said = told(&setup.run(&["apply", "--yes"]).await);
    let secret = format!("projects/{PROJECT}/secrets/kafka-env");
    let newest = |google: &Google| {
        let versions = google.state().versions[&secret].clone();
        (versions.len(), String::from_utf8(STANDARD.decode(versions.last().unwrap()).unwrap()).unwrap())
    };
    assert!(newest(&google).0 == 1 && newest(&google).1.contains("hunter2"));
    kafka.set("sasl.username", "rotated");
    setup.write(&full(&kafka));
    let steps = setup.changes(&[]).await;
    assert_eq!(steps, ["change secret's content kafka-env", "change worker pool us-central1/cdnwarm-bridge"]);
    said += &told(&setup.run(&["plan", "--json"]).await);
    said += &told(&setup.run(&["apply", "--yes"]).await);
    assert!(newest(&google).0 == 2 && newest(&google).1.contains("rotated"));
    let pool = format!("run projects/{PROJECT}/locations/us-central1/workerPools/cdnwarm-bridge");
    let items = google.state().objects[&pool]["template"]["volumes"][0]["secret"]["items"].clone();
    assert_eq!(items, json!([{ "path": "kafka-env", "version": "2" }]));
    said += &told(&setup.run(&["destroy", "--project", PROJECT]).await);
    assert!(!said.contains("hunter2"), "{said}");
    google.take_calls();
}

#[tokio::test]
#[ignore = "needs Google's discovery documents"]
async fn a_dataflow_job_is_launched_drained_and_launched_anew() {
    let google = Google::start(State::with_apis(&AT_FIRST)).await;
    let file = |workers: u32| {
        let bridge = format!(
            "[bridge]\nkind = \"dataflow\"\n[bridge.dataflow]\ntemplate = \"gs://b/t.json\"\nstaging = \"gs://b/s\"\n\
             max-workers = {workers}\nparameters = {{ kafkaTopic = \"warming_urls\" }}\n"
        );
        NEWCOMER.replace("[bridge]\nkind = \"none\"\n", &bridge)
    };
    let setup = Setup::of(&google, &file(3));
    // The secret is the operator's own, and must be there.
    let said = setup.fails(&["apply", "--yes"]).await;
    assert!(said.contains("secret kafka-env does not exist"), "{said}");
    google.state().objects.insert(format!("secretmanager projects/{PROJECT}/secrets/kafka-env"), json!({}));
    google.state().enabled.insert("secretmanager.googleapis.com".to_owned());
    setup.ok(&["apply", "--yes"]).await;
    assert_eq!(setup.changes(&[]).await, NOTHING);
    let status = setup.ok(&["status"]).await;
    assert!(status.contains("JOB_STATE_RUNNING"), "{status}");
    setup.write(&file(5));
    assert_eq!(setup.changes(&[]).await, ["replace Dataflow job us-central1/cdnwarm-bridge"]);
    setup.ok(&["apply", "--yes"]).await;
    assert_eq!(setup.changes(&[]).await, NOTHING);
    setup.ok(&["destroy", "--project", PROJECT]).await;
    let states: Vec<Value> = google
        .state()
        .objects
        .iter()
        .filter(|(key, _)| key.starts_with("dataflow"))
        .map(|(_, job)| job["currentState"].clone())
        .collect();
    assert_eq!(states, [json!("JOB_STATE_DRAINED"), json!("JOB_STATE_DRAINED")]);
    google.take_calls();
}

#[tokio::test]
#[ignore = "needs Google's discovery documents"]
async fn twenty_regions_stand_and_say_how_they_are() {
    let (kafka, google) = (Kafka::start_embedded(), Google::start(State::with_apis(&AT_FIRST)).await);
    let regions: String = (1..=20).map(|number| format!("[regions.europe-west{number}]\n")).collect();
    let file = full(&kafka)
        .replace("[regions.europe-west1]\n", "")
        .replace("[regions.us-central1]\nmax-instances = 20\n", &regions);
    let setup = Setup::of(&google, &file);
    setup.ok(&["apply", "--yes"]).await;
    assert_eq!(setup.changes(&[]).await, NOTHING);
    {
        let mut state = google.state();
        for (metric, value) in [("num_undelivered_messages", "42"), ("oldest_unacked_message_age", "7")] {
            state.series.push(json!({
                "metric": { "type": format!("pubsub.googleapis.com/subscription/{metric}") },
                "resource": { "labels": { "subscription_id": "europe-west13" } },
                "points": [{ "value": { "int64Value": value } }],
            }));
        }
        let service =
            format!("run projects/{PROJECT}/locations/europe-west7/services/cdn-prewarm-europe-west7");
        let broken = json!({ "state": "CONDITION_FAILED", "message": "the image was not found" });
        state.objects.get_mut(&service).unwrap()["terminalCondition"] = broken;
    }
    let output = setup.run(&["status"]).await;
    let said = told(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("europe-west7: the image was not found"), "{said}");
    let line = said.lines().find(|line| line.starts_with("europe-west13")).unwrap();
    let cells: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(&cells[1..5], ["yes", "cdn-prewarm-europe-west13-00001-abc", "42", "7"], "{said}");
    let json: Value = serde_json::from_slice(&setup.run(&["status", "--json"]).await.stdout).unwrap();
    assert_eq!(json["regions"].as_array().unwrap().len(), 20);
    google.take_calls();
}

/// The plan that `docs/deploy.md` shows. After a wanted change: `CDNWARM_OVERWRITE=1`.
#[tokio::test]
#[ignore = "needs Google's discovery documents"]
async fn a_newcomers_plan_is_what_the_documents_show() {
    let (kafka, google) = (Kafka::start_embedded(), Google::start(State::with_apis(&AT_FIRST)).await);
    kafka.embedded().create_topic("warming_urls", 6).unwrap();
    let setup = Setup::of(&google, SMALL);
    setup.add("kafka-env", &std::fs::read_to_string(kafka.env(&[])).unwrap());
    let plan = setup.ok(&["plan"]).await;
    // What comes first there, so that an image can be built.
    let first = ["--only", "apis,registry"];
    setup.ok(&[&["apply", "--yes"], &first[..]].concat()).await;
    assert_eq!(setup.changes(&first).await, NOTHING);
    google.take_calls();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/deploy.md");
    let document = std::fs::read_to_string(path).unwrap();
    assert!(document.contains(&format!("```toml\n{SMALL}```")), "{path} shows another file");
    let (before, rest) = document.split_once("<!-- plan -->\n").unwrap();
    let (_, after) = rest.split_once("<!-- end -->\n").unwrap();
    let expected = format!("{before}<!-- plan -->\n```text\n{plan}```\n<!-- end -->\n{after}");
    if crate::support::setting("CDNWARM_OVERWRITE").is_some() {
        std::fs::write(path, expected).unwrap();
    } else {
        assert!(document == expected, "{path} has another plan than\n{plan}");
    }
}
