//! Starts, stops, deaths and companions of a bridge, as its operator sees them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use rdkafka::mocking::MockCluster;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

use crate::support::eventually;
use crate::support::origin::{Origin, cacheable};
use crate::support::process::{Process, command};
use crate::support::publisher::{Publisher, TOPIC};
use crate::support::records::{Coordinates, Source, bridge};
use crate::support::stand::{Kafka, Pubsub};

const EARLIEST: (&str, &str) = ("auto.offset.reset", "earliest");
/// What every stop is promised to take at most.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// SIGTERM, and a clean end in time.
async fn stops_in_time(bridge: &mut Process) {
    let asked = Instant::now();
    bridge.stop().await;
    assert!(asked.elapsed() < STOP_LIMIT, "it took {:?}", asked.elapsed());
}

/// How many records [`produce_ahead`] produces at once.
const AT_ONCE: usize = 100;

/// Produces `count` records in all, always a little ahead of what was published.
async fn produce_ahead(source: &mut Source<'_>, publisher: &Publisher, count: usize, ahead: usize) {
    while source.all.len() < count {
        let produced = source.all.len();
        eventually("room to produce", async || (produced < publisher.records() + ahead).then_some(())).await;
        source.urls(AT_ONCE).await;
    }
}

async fn published(publisher: &Publisher, count: usize) {
    eventually(&format!("{count} records"), async || (publisher.records() >= count).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stops_in_the_middle_of_the_work_deliver_each_record_exactly_once() {
    const RECORDS: usize = 20_000;
    const STOPS: usize = 5;
    let (kafka, publisher) = (Kafka::start_embedded(), Publisher::start().await);
    let env = kafka.env(&[EARLIEST, ("session.timeout.ms", "1500"), ("heartbeat.interval.ms", "200")]);
    // Calls are under way whenever it is asked to stop.
    publisher.delay(Duration::from_millis(50));
    let mut source = Source::of(&kafka);
    let start = || bridge(&kafka, &env, publisher.addr(), &[]);
    let stopping = async {
        for stop in 1..=STOPS {
            let mut bridge = start();
            // What the one before has published may be enough; a process that does not catch signals yet just dies.
            bridge.says("bridge started").await;
            published(&publisher, stop * RECORDS / (STOPS + 1)).await;
            stops_in_time(&mut bridge).await;
        }
        start()
    };
    let (mut last, ()) = tokio::join!(stopping, produce_ahead(&mut source, &publisher, RECORDS, 3_000));
    publisher.until(&source.all).await;
    stops_in_time(&mut last).await;
    let times = publisher.times();
    assert_eq!(times.keys().copied().collect::<BTreeSet<_>>(), source.all);
    let twice: Vec<_> = times.iter().filter(|(_, times)| **times != 1).collect();
    assert!(twice.is_empty(), "{} records came more than once: {twice:?}", twice.len());
    source.all_committed(&env).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_at_any_moment_of_a_start_is_a_clean_end() {
    const CYCLES: usize = 40;
    const MOMENTS: [&str; 4] =
        ["metrics at http", "bridge started", "partitions without a committed offset", "partitions assigned"];
    let (kafka, publisher) = (Kafka::start_embedded(), Publisher::start().await);
    let mut source = Source::of(&kafka);
    source.urls(30).await;
    for cycle in 0..CYCLES / MOMENTS.len() {
        // The last one comes to a stop while its first records are on their way.
        publisher.delay(Duration::from_millis(u64::try_from(cycle).unwrap() * 20));
        let at = async |moment: &str| {
            let env = kafka.env(&[EARLIEST]);
            let mut bridge = bridge(&kafka, &env, publisher.addr(), &["--metrics-addr", "127.0.0.1:0"]);
            bridge.says(moment).await;
            stops_in_time(&mut bridge).await;
        };
        tokio::join!(at(MOMENTS[0]), at(MOMENTS[1]), at(MOMENTS[2]), at(MOMENTS[3]));
    }
    // Whatever was stopped where, nothing is left behind that a new group would stumble over.
    let env = kafka.env(&[EARLIEST]);
    let mut bridge = bridge(&kafka, &env, publisher.addr(), &[]);
    source.all_committed(&env).await;
    stops_in_time(&mut bridge).await;
    publisher.until(&source.all).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_while_the_broker_is_away_is_a_clean_end() {
    let cycles = async |is_away_at_start: bool| {
        let (kafka, publisher) = (Kafka::start_embedded(), Publisher::start().await);
        kafka.embedded().create_topic("dead", 1).unwrap();
        // Its producer has a good-bye of its own; with the broker away at the start there would be none.
        let more: &[&str] = if is_away_at_start { &[] } else { &["--dead-letter", "dead"] };
        for _ in 0..5 {
            kafka.embedded().set_available(!is_away_at_start).unwrap();
            let mut bridge = bridge(&kafka, &kafka.env(&[EARLIEST]), publisher.addr(), more);
            if is_away_at_start {
                bridge.says("bridge started").await;
            } else {
                bridge.says("partitions assigned").await;
                kafka.embedded().set_available(false).unwrap();
                bridge.says("brokers are down").await;
            }
            stops_in_time(&mut bridge).await;
        }
    };
    tokio::join!(cycles(true), cycles(false));
}

#[tokio::test(flavor = "multi_thread")]
async fn packs_hold_each_record_once_and_each_line_is_where_its_range_says() {
    let (kafka, publisher) = (Kafka::start_embedded(), Publisher::start().await);
    let mut source = Source::of(&kafka);
    let mut values = BTreeMap::new();
    for n in 0..400 {
        let value = format!("http://cdn.example.com/{n}");
        // Some have other options, and so break the pack of their partition.
        let headers: &[(&str, &[u8])] = if n % 70 == 9 { &[("warm-range", b"bytes=0-1")] } else { &[] };
        values.insert(source.put(n % 3, Some(value.as_bytes()), headers).await, value);
    }
    let alone = source.put(0, Some(b"# a comment"), &[]).await;
    values.insert(alone, "# a comment".to_owned());
    let mut bridge = start_packing(&kafka, &publisher.addr().to_string(), TOPIC);
    publisher.until(&source.all).await;
    bridge.stop().await;

    let mut lines: BTreeMap<Coordinates, String> = BTreeMap::new();
    let messages = publisher.accepted(TOPIC);
    for message in &messages {
        let records = message.coordinates();
        let data = String::from_utf8(message.data.clone()).unwrap();
        let is_pack = message.attributes.get("content-type").is_some_and(|kind| kind == "text/uri-list");
        assert_eq!(is_pack, records.len() > 1, "{:?}", message.attributes);
        assert!(records.len() <= 50 && (records.len() == 1 || !records.contains(&alone)));
        assert_eq!(data.split("\r\n").count(), records.len());
        let taken = records.into_iter().zip(data.split("\r\n").map(str::to_owned));
        taken.for_each(|(at, line)| assert_eq!(lines.insert(at, line), None, "{at:?} came twice"));
    }
    assert_eq!(lines, values);
    assert!(messages.len() < values.len() / 10, "{} messages", messages.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn packs_are_warmed_url_by_url_at_the_end_of_the_road() {
    let (kafka, pubsub) = (Kafka::start_embedded(), Pubsub::start().await);
    let origin = Origin::start(&["cdn.example.com".to_owned()], |_| cacheable()).await;
    let mut source = Source::of(&kafka);
    source.urls(300).await;
    let connect_to = format!("cdn.example.com={}", origin.addr);
    let listen = ["--listen", "127.0.0.1", "--port", "0", "--insecure-accept-unauthenticated"];
    let mut serve = Process::start(&[&["serve", "--connect-to", &connect_to], &listen[..]].concat());
    pubsub.push_to(&serve.listening().await).await;
    let mut bridge = start_packing(&kafka, &pubsub.host, &pubsub.topic);
    eventually("300 outcomes", async || (serve.outcomes().len() >= 300).then_some(())).await;
    bridge.stop().await;
    serve.stop().await;
    let mut ids: Vec<String> =
        serve.outcomes().iter().map(|outcome| outcome["id"].as_str().unwrap().to_owned()).collect();
    ids.sort_unstable();
    let expected =
        source.all.iter().map(|(partition, offset)| format!("{}/{partition}/{offset}", kafka.topic));
    let mut expected: Vec<String> = expected.collect();
    expected.sort_unstable();
    assert_eq!(ids, expected);
    let summary = bridge.says("bridge stopped").await;
    assert!(summary.contains("300 records published"), "{summary}");
}

fn start_packing(kafka: &Kafka, pubsub: &str, topic: &str) -> Process {
    let env = kafka.env(&[EARLIEST]);
    let mut command = command(&["bridge", &env, &kafka.topic, topic, "--pack", "50", "--linger-ms", "300"]);
    command.env("PUBSUB_EMULATOR_HOST", pubsub);
    Process::spawn(command)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_is_killed_leaves_nothing_undone_to_the_others() {
    tokio::join!(one_of_two_is_killed("range"), one_of_two_is_killed("cooperative-sticky"));
}

async fn one_of_two_is_killed(strategy: &str) {
    const AHEAD: usize = 500;
    let (kafka, publisher) = (Kafka::start_embedded(), Publisher::start().await);
    let env = kafka.env(&[EARLIEST, ("partition.assignment.strategy", strategy)]);
    // Calls are under way when it is killed.
    publisher.delay(Duration::from_millis(20));
    let mut source = Source::of(&kafka);
    let start = || bridge(&kafka, &env, publisher.addr(), &[]);
    let (mut stays, mut killed) = (start(), start());
    let had_partitions = |bridge: &Process| {
        let logged = bridge.logged();
        let mut assigned = logged.iter().filter(|line| line["message"] == "partitions assigned");
        assigned.any(|line| line["partitions"] != "[]")
    };
    let both = async || (had_partitions(&stays) && had_partitions(&killed)).then_some(());
    eventually("both have partitions", both).await;
    let killing = async {
        published(&publisher, 1_000).await;
        // Long enough for a bridge to commit, if it did so without an answer to its calls.
        publisher.delay(Duration::from_secs(1));
        tokio::time::sleep(Duration::from_millis(500)).await;
        killed.kill_hard().await;
        publisher.delay(Duration::from_millis(20));
    };
    tokio::join!(killing, produce_ahead(&mut source, &publisher, 4_000, AHEAD));
    publisher.until(&source.all).await;
    // Only what was in flight when it was killed; all else was committed several intervals before.
    let twice: u64 = publisher.times().values().map(|times| times - 1).sum();
    let in_flight = AHEAD + AT_ONCE;
    assert!(twice <= in_flight as u64, "{twice} records came twice; {in_flight} were in flight");
    stops_in_time(&mut stays).await;
    source.all_committed(&env).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_later_than_a_commit_interval_delivers_nothing_twice() {
    let (kafka, publisher) = (Kafka::start_embedded(), Publisher::start().await);
    let env = kafka.env(&[EARLIEST]);
    let mut source = Source::of(&kafka);
    let mut killed = bridge(&kafka, &env, publisher.addr(), &[]);
    source.urls(2_000).await;
    publisher.until(&source.all).await;
    source.all_committed(&env).await;
    killed.kill_hard().await;
    let mut successor = bridge(&kafka, &env, publisher.addr(), &[]);
    source.urls(30).await;
    publisher.until(&source.all).await;
    stops_in_time(&mut successor).await;
    let times = publisher.times();
    assert!(times.values().all(|times| *times == 1), "a committed record came again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_whose_instance_id_another_has_taken_ends_and_explains() {
    // The embedded Kafka does not fence by itself: its coordinator is told to answer as Kafka's does then.
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic("urls", 1, 1).unwrap();
    let publisher = Publisher::start().await;
    let folder = tempfile::tempdir().unwrap();
    let env = folder.path().join("kafka-env");
    let servers = cluster.bootstrap_servers();
    let text = format!(
        "[default]\nbootstrap.servers={servers}\n[consumer]\ngroup.id=g\nsession.timeout.ms=6000\n\
         heartbeat.interval.ms=300\n"
    );
    std::fs::write(&env, text).unwrap();
    let env = env.display().to_string();
    let mut command = command(&["bridge", &env, "urls", TOPIC, "--group-instance-id", "bridge-1"]);
    command.env("PUBSUB_EMULATOR_HOST", publisher.addr().to_string());
    let mut bridge = Process::spawn(command);
    bridge.says("partitions assigned").await;
    cluster.request_errors(
        RDKafkaApiKey::Heartbeat,
        &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID; 10],
    );
    assert_eq!(bridge.ends().await, Some(1), "{}", bridge.lines().join("\n"));
    bridge.says("same --group-instance-id").await;
}
