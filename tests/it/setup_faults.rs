//! `cdnwarm setup` where something goes wrong: cut after every step, refused, slow, or without a right.

use std::collections::BTreeSet;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::setup_contract::{AT_FIRST, full};
use crate::support::PATIENCE;
use crate::support::contract::state::State;
use crate::support::contract::{Fault, Google};
use crate::support::process::told;
use crate::support::setup::Setup;
use crate::support::stand::Kafka;

/// The end state, and how many writes it took.
async fn undisturbed(kafka_file: &str) -> (serde_json::Value, usize) {
    let google = Google::start(State::with_apis(&AT_FIRST)).await;
    Setup::of(&google, kafka_file).ok(&["apply", "--yes"]).await;
    let writes = google.take_calls().into_iter().filter(|call| call.writes).count();
    (google.state().shown(), writes)
}

#[tokio::test]
#[ignore = "needs Google's discovery documents; takes a minute"]
async fn killed_after_any_step_and_run_again_it_ends_in_the_same_state() {
    let kafka = Kafka::start_embedded();
    let file = full(&kafka);
    let (expected, writes) = undisturbed(&file).await;
    for number in 0..writes {
        let google = Google::start(State::with_apis(&AT_FIRST)).await;
        let setup = Setup::of(&google, &file);
        google.fail_write(number, Fault::DoneAndHung);
        let mut command = setup.command(&["apply", "--yes"]);
        let mut child = command.spawn().unwrap();
        tokio::select! {
            () = google.hung() => child.kill().await.unwrap(),
            // Where writes come in another order than before, there may be one less.
            _ = child.wait() => {}
            () = tokio::time::sleep(PATIENCE) => panic!("write {number} never came"),
        }
        google.heal();
        setup.ok(&["apply", "--yes"]).await;
        assert_eq!(google.state().shown(), expected, "killed at write {number}");
        google.take_calls();
    }
    println!("killed after each of {writes} writes");
}

#[tokio::test]
#[ignore = "needs Google's discovery documents; takes a minute"]
async fn an_answer_that_is_lost_or_says_to_wait_at_any_step_changes_nothing_in_the_end() {
    let kafka = Kafka::start_embedded();
    let file = full(&kafka);
    let (expected, writes) = undisturbed(&file).await;
    let faults = [
        Fault::DoneAndCut,
        Fault::Cut,
        Fault::Instead(429, "RESOURCE_EXHAUSTED"),
        Fault::Instead(409, "ABORTED"),
        Fault::Instead(500, "INTERNAL"),
        Fault::Instead(503, "UNAVAILABLE"),
        Fault::Slow(Duration::from_millis(300)),
    ];
    // Each fault once in a run, all over it; each write meets every fault in some run.
    for first in 0..faults.len() {
        let google = Google::start(State::with_apis(&AT_FIRST)).await;
        for number in 0..writes {
            google.fail_write(number, faults[(first + number) % faults.len()]);
        }
        let setup = Setup::of(&google, &file);
        setup.ok(&["apply", "--yes"]).await;
        assert_eq!(google.state().shown(), expected, "{:?} first", faults[first]);
        google.heal();
        google.take_calls();
    }
}

#[tokio::test]
#[ignore = "needs Google's discovery documents; takes a minute"]
async fn each_missing_right_is_named_with_the_role_to_ask_for() {
    let kafka = Kafka::start_embedded();
    let file = full(&kafka);
    let google = Google::start(State::with_apis(&AT_FIRST)).await;
    Setup::of(&google, &file).ok(&["apply", "--yes"]).await;
    let calls = google.take_calls().into_iter();
    let methods: BTreeSet<String> =
        calls.map(|call| call.method).filter(|method| !method.contains("operations")).collect();
    assert!(methods.len() > 20, "{methods:#?}");
    for method in &methods {
        let google = Google::start(State::with_apis(&AT_FIRST)).await;
        // What is read where nothing is yet is only read in the second run.
        let setup = Setup::of(&google, &file);
        google.deny(method);
        let first = setup.run(&["apply", "--yes"]).await;
        let said = match first.status.code() {
            Some(1) => told(&first),
            _ => setup.fails(&["apply", "--yes"]).await,
        };
        assert!(said.contains("ask for roles/"), "without {method}: {said}");
        google.heal();
        setup.ok(&["apply", "--yes"]).await;
    }
    println!("{} rights, one missing at a time: {methods:#?}", methods.len());
}

#[tokio::test]
#[ignore = "needs Google's discovery documents"]
async fn a_stop_ends_it_soon_and_the_next_run_goes_on() {
    let kafka = Kafka::start_embedded();
    let file = full(&kafka);
    let (expected, _) = undisturbed(&file).await;
    let google = Google::start(State::with_apis(&AT_FIRST)).await;
    google.fail_write(5, Fault::DoneAndHung);
    let setup = Setup::of(&google, &file);
    let child = setup.command(&["apply", "--yes"]).spawn().unwrap();
    let pid = Pid::from_raw(child.id().unwrap().cast_signed());
    google.hung().await;
    kill(pid, Signal::SIGINT).unwrap();
    let output = tokio::time::timeout(Duration::from_secs(10), child.wait_with_output()).await;
    let output = output.expect("it ends within 10 s").unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", told(&output));
    setup.ok(&["apply", "--yes"]).await;
    assert_eq!(google.state().shown(), expected);
}
