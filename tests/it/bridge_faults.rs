//! Whatever Pub/Sub answers, or does not, and whatever the wire does: every record arrives or is accounted for by itself.

use std::collections::BTreeSet;
use std::time::Duration;

use tonic::Code;

use crate::support::eventually;
use crate::support::process::Process;
use crate::support::proxy::Proxy;
use crate::support::publisher::{Fault, Publisher, When};
use crate::support::records::{Coordinates, Source, bridge, logged_letters};
use crate::support::stand::Kafka;

/// All that are errors (grpc.io/docs/guides/status-codes).
const CODES: [Code; 16] = [
    Code::Cancelled,
    Code::Unknown,
    Code::InvalidArgument,
    Code::DeadlineExceeded,
    Code::NotFound,
    Code::AlreadyExists,
    Code::PermissionDenied,
    Code::ResourceExhausted,
    Code::FailedPrecondition,
    Code::Aborted,
    Code::OutOfRange,
    Code::Unimplemented,
    Code::Internal,
    Code::Unavailable,
    Code::DataLoss,
    Code::Unauthenticated,
];
const WINDOW: Duration = Duration::from_secs(1);

/// These say that something is wrong with what was sent, so what is refused alone is not sent again.
fn refuses(code: Code) -> bool {
    matches!(code, Code::InvalidArgument | Code::OutOfRange)
}

fn faults(codes: &[Code]) -> Vec<Fault> {
    codes.iter().copied().map(Fault::Code).collect()
}

/// Kafka, and a kafka-env file for a group that starts at the beginning.
fn kafka() -> (Kafka, String) {
    let kafka = Kafka::start_embedded();
    let env = kafka.env(&[("auto.offset.reset", "earliest")]);
    (kafka, env)
}

/// Waits until each of these records was either accepted or logged as one that cannot be.
async fn accounted_for(what: &str, records: &BTreeSet<Coordinates>, publisher: &Publisher, bridge: &Process) {
    eventually(what, async || {
        let (times, letters) = (publisher.times(), logged_letters(bridge));
        records.iter().all(|record| times.contains_key(record) || letters.contains(record)).then_some(())
    })
    .await;
}

/// Ends a bridge and checks that none of its records has two ends, and that the group has them all behind it: a further
/// start delivers what came later and nothing else.
async fn ends_with_everything_committed(
    mut bridge: Process,
    source: &mut Source<'_>,
    publisher: &Publisher,
    again: impl FnOnce() -> Process,
    env: &str,
) {
    bridge.stop().await;
    let letters = logged_letters(&bridge);
    let once: BTreeSet<_> = letters.iter().copied().collect();
    assert_eq!(letters.len(), once.len(), "no record is logged twice");
    let times = publisher.times();
    assert!(once.iter().all(|letter| !times.contains_key(letter)), "a logged record was accepted, too");
    source.all_committed(env).await;
    let mut again = again();
    let marks = source.urls(usize::try_from(source.partitions()).unwrap()).await;
    publisher.until(&marks).await;
    let after = publisher.times();
    let came: BTreeSet<_> = after.keys().filter(|record| !times.contains_key(*record)).copied().collect();
    assert_eq!(came, marks);
    assert!(times.iter().all(|(record, before)| after[record] == *before), "a committed record came again");
    again.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn any_code_at_a_first_call_costs_no_record() {
    let ((kafka, env), publisher) = (kafka(), Publisher::start().await);
    let mut source = Source::of(&kafka);
    let start = || bridge(&kafka, &env, publisher.addr(), &["--linger-ms", "50"]);
    let running = start();
    running.says("partitions assigned").await;
    for code in CODES {
        publisher.script(When::First, &faults(&[code]));
        let before = logged_letters(&running).len();
        let records = source.urls(20).await;
        accounted_for(&format!("{code:?}"), &records, &publisher, &running).await;
        assert_eq!(publisher.faults(), 1, "{code:?}");
        // At most the one record that was first, if it went alone.
        assert!(logged_letters(&running).len() - before <= usize::from(refuses(code)), "{code:?}");
    }
    ends_with_everything_committed(running, &mut source, &publisher, start, &env).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn any_code_at_every_tenth_call_costs_no_record() {
    let ((kafka, env), publisher) = (kafka(), Publisher::start().await);
    let mut source = Source::of(&kafka);
    let start = || bridge(&kafka, &env, publisher.addr(), &["--linger-ms", "0"]);
    let running = start();
    running.says("partitions assigned").await;
    publisher.script(When::Every(10), &faults(&CODES));
    eventually("each code twice", async || {
        source.urls(3).await;
        (publisher.faults() >= 2 * CODES.len()).then_some(())
    })
    .await;
    accounted_for("all records", &source.all, &publisher, &running).await;
    publisher.be_well();
    ends_with_everything_committed(running, &mut source, &publisher, start, &env).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_of_any_code_costs_no_record() {
    // Side by side, as each second is mostly waited for.
    let quarter = CODES.len() / 4;
    let codes: Vec<&[Code]> = CODES.chunks(quarter).collect();
    tokio::join!(windows(codes[0]), windows(codes[1]), windows(codes[2]), windows(codes[3]));
}

async fn windows(codes: &[Code]) {
    let ((kafka, env), publisher) = (kafka(), Publisher::start().await);
    let mut source = Source::of(&kafka);
    let mut running = bridge(&kafka, &env, publisher.addr(), &[]);
    running.says("partitions assigned").await;
    for code in codes {
        publisher.script(When::Window(WINDOW), &faults(&[*code]));
        let letters_before = logged_letters(&running).len();
        let records = source.urls(50).await;
        accounted_for(&format!("{code:?}"), &records, &publisher, &running).await;
        assert!(publisher.faults() > 1, "{code:?} was tried again");
        let letters = logged_letters(&running).len() - letters_before;
        assert!(refuses(*code) || letters == 0, "{code:?} gave {letters} records up");
    }
    publisher.be_well();
    running.stop().await;
    source.all_committed(&env).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_are_reset_or_lost_or_answered_by_half_cost_no_record() {
    let ((kafka, env), publisher) = (kafka(), Publisher::start().await);
    let mut source = Source::of(&kafka);
    let start = || bridge(&kafka, &env, publisher.addr(), &["--linger-ms", "0"]);
    let running = start();
    running.says("partitions assigned").await;
    let all = [Fault::Reset, Fault::LostAnswer, Fault::TooFewIds];
    for fault in all {
        publisher.script(When::First, &[fault]);
        let records = source.urls(20).await;
        publisher.until(&records).await;
        assert_eq!(publisher.faults(), 1, "{fault:?}");
        publisher.script(When::Window(WINDOW / 2), &[fault]);
        let records = source.urls(20).await;
        publisher.until(&records).await;
        // What was taken without a whole answer is sent again.
        let twice = |times: u64| matches!(fault, Fault::Reset) || times > 1;
        eventually(&format!("{fault:?}"), async || {
            let times = publisher.times();
            records.iter().all(|record| twice(times[record])).then_some(())
        })
        .await;
    }
    publisher.script(When::Every(10), &all);
    eventually("each ten times", async || {
        source.urls(3).await;
        (publisher.faults() >= 10 * all.len()).then_some(())
    })
    .await;
    publisher.until(&source.all).await;
    publisher.be_well();
    assert_eq!(logged_letters(&running), [], "nothing is given up");
    // The last of them may still be under way.
    source.all_committed(&env).await;
    ends_with_everything_committed(running, &mut source, &publisher, start, &env).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_are_never_answered_are_made_again_and_hold_up_no_others() {
    let ((kafka, env), publisher) = (kafka(), Publisher::start().await);
    let mut source = Source::of(&kafka);
    let mut running = bridge(&kafka, &env, publisher.addr(), &["--linger-ms", "0"]);
    running.says("partitions assigned").await;
    publisher.script(When::First, &[Fault::Hang]);
    let held = source.urls(1).await;
    eventually("the call that hangs", async || (publisher.faults() == 1).then_some(())).await;
    publisher.script(When::Every(10), &[Fault::Hang]);
    let mut others = BTreeSet::new();
    eventually("a few more", async || {
        others.extend(source.urls(3).await);
        (publisher.faults() == 3).then_some(())
    })
    .await;
    publisher.be_well();
    let hanging = others.len() - others.iter().filter(|r| publisher.times().contains_key(*r)).count();
    assert!(hanging < others.len() / 2, "{hanging} of {} wait for a call that hangs", others.len());
    publisher.until(&held).await;
    publisher.until(&source.all).await;
    running.says("no answer within 5 s").await;
    running.stop().await;
    source.all_committed(&env).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wire_that_is_cut_or_slow_or_dead_for_longer_than_a_call_may_take_costs_no_record() {
    let ((kafka, env), publisher) = (kafka(), Publisher::start().await);
    let mut source = Source::of(&kafka);
    let proxy = Proxy::start(publisher.addr());
    let mut running = bridge(&kafka, &env, proxy.addr(), &["--linger-ms", "0"]);
    running.says("partitions assigned").await;
    for _ in 0..3 {
        source.urls(50).await;
        proxy.cut().await;
        source.urls(50).await;
        running.says("publishing fails").await;
        proxy.restore();
        publisher.until(&source.all).await;
    }
    proxy.half_close_client_side();
    source.urls(50).await;
    publisher.until(&source.all).await;
    proxy.delay(Duration::from_millis(200));
    source.urls(50).await;
    publisher.until(&source.all).await;
    proxy.delay(Duration::ZERO);
    proxy.stall(true);
    source.urls(50).await;
    running.says("no answer within 5 s").await;
    proxy.stall(false);
    publisher.until(&source.all).await;
    assert_eq!(logged_letters(&running), [], "nothing is given up");
    running.stop().await;
    source.all_committed(&env).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_held_is_published_while_the_group_cannot_be_reached_and_at_most_once_more_afterwards() {
    const RECORDS: usize = 20_000;
    let (kafka, publisher) = (Kafka::start_embedded(), Publisher::start().await);
    let env = kafka.env(&[("auto.offset.reset", "earliest"), ("session.timeout.ms", "6000")]);
    let mut source = Source::of(&kafka);
    publisher.script(When::Always, &[Fault::Code(Code::PermissionDenied)]);
    let mut bridge = bridge(&kafka, &env, publisher.addr(), &[]);
    source.urls(RECORDS).await;
    bridge.says("publishing is refused").await;
    kafka.embedded().set_available(false).unwrap();
    bridge.says("brokers are down").await;
    publisher.be_well();
    // Nothing that delivers waits for the coordinator, whatever is held.
    eventually("delivery", async || (publisher.records() >= 1_000).then_some(())).await;
    kafka.embedded().set_available(true).unwrap();
    publisher.until(&source.all).await;
    // What was sent before the session timed out may come again; nothing makes it come a third time.
    let times = publisher.times();
    assert!(times.values().all(|times| *times <= 2), "a record came three times");
    bridge.stop().await;
    source.all_committed(&env).await;
}
