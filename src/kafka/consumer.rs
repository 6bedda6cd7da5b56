//! One member of a consumer group, as a role sees it: batches to receive, receipts to give back, and how it is doing.
//!
//! The member itself is a thread of its own (`kafka::member`), so that librdkafka's waits and its sometimes long good-bye
//! never touch the async runtime, and so that it polls whatever happens downstream.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use rdkafka::config::ClientConfig;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::member::Member;
use super::offsets::{Offsets, Receipt, Receipts};
use super::record::RecordRef;
use super::start::OnLostOffsets;

/// How often it is looked at whether records are still this member's.
const TAKEN_AWAY_INTERVAL: Duration = Duration::from_millis(200);
/// How many batches wait between the thread and the role.
const BATCHES_WAITING: usize = 2;
/// A thread that has not come round to polling for this long never will: an outside call hangs, or a defect of ours.
pub(crate) const STALL_LIMIT: Duration = Duration::from_secs(60);

/// How long a consumer that failed may take to commit what is done and to leave the group.
const GOODBYE_LIMIT: Duration = Duration::from_secs(5);

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
    /// How long the first record of a batch waits for others.
    pub(crate) linger: Duration,
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
        client
    }

    /// `auto.commit.interval.ms`, or our default.
    pub(super) fn commit_interval(&self) -> Duration {
        let set = self.client.get("auto.commit.interval.ms").and_then(|ms| ms.parse().ok());
        set.map_or(COMMIT_INTERVAL, Duration::from_millis)
    }
}

/// Makes batches of records while they are read, on the consumer's thread.
pub(crate) trait Collect: Send + 'static {
    /// What the role receives.
    type Batch: Send + 'static;

    /// Takes one record. May be called although [`Collect::is_full`]: at most once per poll.
    fn add(&mut self, record: &RecordRef<'_>);

    /// Takes note of offsets, first and last, that are skipped because their record batch is corrupt.
    fn add_skipped(&mut self, partition: i32, assignment: u64, offsets: (i64, i64), error: &str);

    /// Whether a batch should go out now.
    fn is_full(&self) -> bool;

    /// Whether there is nothing to take.
    fn is_empty(&self) -> bool;

    /// Gives out one batch, without the records whose receipts `deliver` refuses: another member has those now.
    /// None where nothing is left of it.
    fn take(&mut self, deliver: &mut dyn FnMut(&Receipt) -> bool) -> Option<Self::Batch>;
}

/// The role's end: batches to receive, receipts to give back.
pub(crate) struct Consumer<B> {
    batches: mpsc::Receiver<B>,
    offsets: Arc<Offsets>,
    state: Arc<State>,
    /// Cancelled once there will be no more batches than those that wait already.
    finishing: CancellationToken,
    /// Why it ends, before the last commit and the good-bye.
    failed: oneshot::Receiver<anyhow::Error>,
    /// Sent, or dropped by a panic, once it has ended.
    ended: oneshot::Receiver<anyhow::Result<()>>,
}

/// Gives receipts back; cheap to clone.
#[derive(Clone)]
pub(crate) struct Done {
    offsets: Arc<Offsets>,
}

impl Done {
    /// Without a consumer, for tests of who gives receipts back.
    #[cfg(test)]
    pub(crate) fn to(offsets: Arc<Offsets>) -> Self {
        Self { offsets }
    }

    /// Ends some time after all of these records were taken away, so that their next owner delivers them: to go on with
    /// them is to deliver them twice.
    pub(crate) async fn taken_away(&self, receipts: &Receipts) {
        loop {
            tokio::time::sleep(TAKEN_AWAY_INTERVAL).await;
            if !receipts.as_slice().iter().any(|receipt| self.offsets.is_current(receipt)) {
                return;
            }
        }
    }

    /// Notes that these records are accepted downstream: the offsets at and below them may be committed.
    pub(crate) fn done(&self, receipts: &[Receipt]) {
        self.offsets.done(receipts);
    }

    /// How many records were received whose offsets may not be committed yet: done or not, they come again after a crash.
    pub(crate) fn uncommittable(&self) -> u64 {
        self.offsets.uncommittable()
    }
}

impl<B: Send + 'static> Consumer<B> {
    /// Joins the group on a new thread. Connection problems come out of [`Consumer::ended`].
    ///
    /// # Errors
    /// Where the thread cannot be started.
    pub(crate) fn start(
        config: ConsumerConfig,
        collect: impl Collect<Batch = B>,
        stop: CancellationToken,
    ) -> anyhow::Result<Self> {
        let (sender, batches) = mpsc::channel(BATCHES_WAITING);
        let (result, ended) = oneshot::channel();
        let (failure, failed) = oneshot::channel();
        let finishing = CancellationToken::new();
        let guard = finishing.clone().drop_guard();
        let (offsets, state) = (Arc::new(Offsets::default()), Arc::new(State::default()));
        let runtime = tokio::runtime::Handle::current();
        let (its_offsets, its_state) = (offsets.clone(), state.clone());
        // A plain thread: the runtime would wait for one of its own blocking threads at the end of the process.
        std::thread::Builder::new()
            .name("kafka-consumer".to_owned())
            .spawn(move || {
                let out = Outlet { batches: sender, _finishing: guard };
                let outcome = Member::join(config, collect, its_offsets, its_state, out, runtime, stop)
                    .map(|member| member.run(failure));
                // Nobody listens any more only where the role is gone already.
                let _ = result.send(outcome);
            })
            .context("starting the Kafka thread")?;
        Ok(Self { batches, offsets, state, finishing, failed, ended })
    }

    /// The next records, of any partitions; none once the consumer stops. Cancel safe.
    pub(crate) async fn next(&mut self) -> Option<B> {
        self.batches.recv().await
    }

    /// Where to give receipts back.
    pub(crate) fn acknowledger(&self) -> Done {
        Done { offsets: self.offsets.clone() }
    }

    /// Is cancelled once [`Consumer::next`] gives only what waits already: the consumer was stopped, or has failed.
    pub(crate) fn finishing(&self) -> CancellationToken {
        self.finishing.clone()
    }

    /// How the consumer is doing.
    pub(crate) fn watch(&self) -> Watch {
        Watch(self.state.clone())
    }

    /// Waits until offsets are committed and the group is left. To be called once [`Consumer::next`] has ended and
    /// the role is done with its records.
    ///
    /// # Errors
    /// What ended the consumer, if it was not the stop token.
    pub(crate) async fn ended(self) -> anyhow::Result<()> {
        let Self { batches, mut ended, failed, .. } = self;
        drop(batches);
        let panicked = || anyhow::anyhow!("the Kafka thread panicked");
        tokio::select! {
            biased;
            Ok(failure) = failed => {
                // The good-bye may take long where the cluster is what failed.
                let _ = tokio::time::timeout(GOODBYE_LIMIT, &mut ended).await;
                Err(failure)
            }
            ended = &mut ended => ended.map_err(|_| panicked())?,
        }
    }
}

/// The thread's end: where batches go.
pub(super) struct Outlet<B> {
    pub(super) batches: mpsc::Sender<B>,
    pub(super) _finishing: DropGuard,
}

/// Looks at a consumer from outside its thread; cheap to clone.
#[derive(Clone)]
pub(crate) struct Watch(Arc<State>);

/// How a consumer is doing.
#[derive(Debug, Clone, Default)]
pub(crate) struct Snapshot {
    /// Records read so far.
    pub(crate) records: u64,
    /// How often partitions were assigned, revoked, and lost: taken away without being asked for first.
    pub(crate) assigned: u64,
    pub(crate) revoked: u64,
    pub(crate) lost: u64,
    /// The assigned partitions.
    pub(crate) partitions: BTreeMap<i32, PartitionState>,
    /// Partitions that are paused at a corrupt record batch, and the next offset of each.
    pub(crate) corrupt: BTreeMap<i32, i64>,
    /// Corrupt record batches that were skipped.
    pub(crate) skipped_batches: u64,
    /// Why it cannot move, if so.
    pub(crate) trouble: Option<String>,
}

/// One assigned partition.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PartitionState {
    /// What the group has committed, or the start where that is on its way.
    pub(crate) committed: i64,
    /// The end of the partition; none before the first fetch.
    pub(crate) high_watermark: Option<i64>,
}

impl PartitionState {
    /// Records between the committed offset and the end of the partition.
    pub(crate) fn lag(&self) -> Option<u64> {
        self.high_watermark.map(|high| u64::try_from(high - self.committed).unwrap_or_default())
    }
}

impl Watch {
    /// How it is doing now; lags and trouble are at most a second old.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let state = &self.0;
        let joining =
            || (!state.joined.load(Ordering::Relaxed)).then(|| "joining the consumer group".to_owned());
        let corrupt = state.corrupt().clone();
        let stopped = corrupt.first_key_value().map(|(partition, offset)| {
            let others = match corrupt.len() {
                0 | 1 => String::new(),
                all => format!(" and {} other partitions", all - 1),
            };
            format!("a corrupt record batch stops partition {partition} at offset {offset}{others}")
        });
        let trouble = state.trouble().clone().or(stopped);
        Snapshot {
            records: state.records.load(Ordering::Relaxed),
            assigned: state.assigned.load(Ordering::Relaxed),
            revoked: state.revoked.load(Ordering::Relaxed),
            lost: state.lost.load(Ordering::Relaxed),
            partitions: state.partitions().clone(),
            corrupt,
            skipped_batches: state.skipped_batches.load(Ordering::Relaxed),
            trouble: trouble.or_else(joining),
        }
    }

    /// Ends once the thread has not come round to polling for `limit`.
    ///
    /// Counted in ticks and not by the clock, which goes on while the whole process is stopped (SIGSTOP, a frozen
    /// virtual machine) and the thread is not to blame.
    pub(crate) async fn stalled(&self, limit: Duration) {
        const TICKS: u32 = 60;
        let (mut last, mut quiet) = (None, 0);
        while quiet < TICKS {
            tokio::time::sleep(limit / TICKS).await;
            let now = Some(self.0.rounds.load(Ordering::Relaxed));
            quiet = if now == last { quiet + 1 } else { 0 };
            last = now;
        }
    }
}

/// What the thread tells.
#[derive(Debug, Default)]
pub(super) struct State {
    /// Grows whenever the thread comes round.
    pub(super) rounds: AtomicU64,
    pub(super) records: AtomicU64,
    pub(super) assigned: AtomicU64,
    pub(super) revoked: AtomicU64,
    pub(super) lost: AtomicU64,
    pub(super) joined: AtomicBool,
    pub(super) skipped_batches: AtomicU64,
    trouble: Mutex<Option<String>>,
    partitions: Mutex<BTreeMap<i32, PartitionState>>,
    corrupt: Mutex<BTreeMap<i32, i64>>,
}

impl State {
    pub(super) fn trouble(&self) -> MutexGuard<'_, Option<String>> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn partitions(&self) -> MutexGuard<'_, BTreeMap<i32, PartitionState>> {
        self.partitions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn corrupt(&self) -> MutexGuard<'_, BTreeMap<i32, i64>> {
        self.corrupt.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::mpsc as blocking;

    use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};

    use super::*;
    use crate::demo::kafka::EmbeddedKafka;

    /// Blocks in the middle of the consumer's loop, until it is told to go on.
    struct Blocks(blocking::Receiver<()>, bool);

    impl Collect for Blocks {
        type Batch = ();

        fn add(&mut self, _: &RecordRef<'_>) {
            let _ = self.0.recv();
            self.1 = true;
        }

        fn add_skipped(&mut self, _: i32, _: u64, _: (i64, i64), _: &str) {}

        fn is_full(&self) -> bool {
            self.1
        }

        fn is_empty(&self) -> bool {
            !self.1
        }

        fn take(&mut self, _: &mut dyn FnMut(&Receipt) -> bool) -> Option<()> {
            std::mem::take(&mut self.1).then_some(())
        }
    }

    /// A Kafka with one partition of `urls`, a producer and the configuration of a consumer.
    fn stand() -> (EmbeddedKafka, BaseProducer, ConsumerConfig) {
        let kafka = EmbeddedKafka::start().unwrap();
        kafka.create_topic("urls", 1).unwrap();
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", kafka.bootstrap_servers().unwrap());
        let producer: BaseProducer = client.create().unwrap();
        client.set("group.id", "g").set("auto.offset.reset", "earliest");
        let config = ConsumerConfig {
            client,
            topic: "urls".to_owned(),
            reset: false,
            on_lost_offsets: OnLostOffsets::Stop,
            skip_corrupt: false,
            group_instance_id: None,
            linger: Duration::ZERO,
            timeout: Duration::from_secs(30),
            source: "kafka-env".to_owned(),
        };
        (kafka, producer, config)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_loop_that_is_blocked_is_seen_from_outside_and_a_quiet_one_is_not() {
        let (_kafka, producer, config) = stand();
        let (go_on, blocked) = blocking::sync_channel(1);
        let stop = CancellationToken::new();
        let mut consumer = Consumer::start(config, Blocks(blocked, false), stop.clone()).unwrap();
        let watch = consumer.watch();
        while watch.snapshot().trouble.is_some() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let (limit, seconds) = (Duration::from_millis(600), Duration::from_secs(3));
        assert!(tokio::time::timeout(seconds, watch.stalled(limit)).await.is_err(), "quiet, and polling");
        producer.send(BaseRecord::<(), _>::to("urls").payload("https://example.com/")).unwrap();
        producer.flush(Duration::from_secs(10)).unwrap();
        tokio::time::timeout(Duration::from_secs(30), watch.stalled(limit)).await.expect("blocked");
        go_on.send(()).unwrap();
        assert_eq!(consumer.next().await, Some(()));
        stop.cancel();
        consumer.ended().await.unwrap();
    }

    /// Makes a batch of each record.
    #[derive(Default)]
    struct Single(VecDeque<Receipt>);

    impl Collect for Single {
        type Batch = Receipt;

        fn add(&mut self, record: &RecordRef<'_>) {
            self.0.push_back(Receipt::one(record.partition, record.assignment, record.offset));
        }

        fn add_skipped(&mut self, _: i32, _: u64, _: (i64, i64), _: &str) {}

        fn is_full(&self) -> bool {
            !self.0.is_empty()
        }

        fn is_empty(&self) -> bool {
            self.0.is_empty()
        }

        fn take(&mut self, deliver: &mut dyn FnMut(&Receipt) -> bool) -> Option<Receipt> {
            self.0.pop_front().filter(|receipt| deliver(receipt))
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn commits_are_sent_and_answered_while_the_role_takes_no_batch() {
        /// Less than the second after which partitions were paused, which hid that nothing was handled before.
        const LIMIT: Duration = Duration::from_millis(900);
        let (_kafka, producer, config) = stand();
        for _ in 0..20 {
            producer.send(BaseRecord::<(), _>::to("urls").payload("https://example.com/")).unwrap();
        }
        producer.flush(Duration::from_secs(10)).unwrap();
        let stop = CancellationToken::new();
        let mut consumer = Consumer::start(config, Single::default(), stop.clone()).unwrap();
        let (watch, done) = (consumer.watch(), consumer.acknowledger());
        // A busy machine may be slow once, but not each time.
        for last_try in [false, false, true] {
            let receipt = consumer.next().await.unwrap();
            done.done(&[receipt]);
            let committed = async {
                while watch.snapshot().partitions[&0].committed <= receipt.last {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            match tokio::time::timeout(LIMIT, committed).await {
                Ok(()) => break,
                Err(_) => assert!(!last_try, "nothing was committed while the queue was full"),
            }
        }
        stop.cancel();
        drop(done);
        consumer.ended().await.unwrap();
    }
}
