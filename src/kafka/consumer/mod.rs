//! One member of a consumer group: batches to receive, receipts to give back, and how it is doing.
//!
//! The member is a thread of its own, so that librdkafka's waits and its sometimes long good-bye never touch the async
//! runtime. [`thread`] polls a [`group_client`]; [`assignment`] knows where each partition is read, [`rebalance`] follows
//! the group, [`commit`] decides what is committed and when, [`errors`] what an error means, [`lost_offsets`] and
//! [`corrupt`] what becomes of a partition that cannot be read on, [`lag`] how far its end is. [`batch_sender`] fills a
//! [`batch`] and hands it over, and [`state`] tells how it goes.

mod assignment;
mod batch;
mod batch_sender;
mod commit;
mod config;
mod corrupt;
mod errors;
mod group_client;
mod lag;
mod lost_offsets;
mod rebalance;
mod state;
mod thread;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::offsets::{Offsets, Receipt, Receipts};
use batch_sender::BatchSender;
use state::State;
use thread::Poller;

#[cfg(test)]
pub(crate) use batch::Position;
pub(crate) use batch::{RecordBatch, SkippedRange};
pub(crate) use batch_sender::BatchLimits;
pub(crate) use config::ConsumerConfig;
pub(crate) use state::{PartitionState, STALL_TIMEOUT, Snapshot, Watch};

/// How often it is looked at whether records are still this member's.
const TAKEN_AWAY_INTERVAL: Duration = Duration::from_millis(200);
/// How many batches wait between the thread and the role.
const MAX_WAITING_BATCHES: usize = 2;
/// How long a consumer that failed may take to commit what is accepted and to leave the group.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(5);

/// The role's end.
pub(crate) struct Consumer {
    batches: mpsc::Receiver<RecordBatch>,
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
pub(crate) struct CommitHandle {
    offsets: Arc<Offsets>,
}

impl CommitHandle {
    /// For a consumer that counts in `offsets`.
    pub(crate) fn new(offsets: Arc<Offsets>) -> Self {
        Self { offsets }
    }

    /// Notes that these records are accepted downstream: offsets are committed up to the lowest record that is not. Receipts
    /// of an earlier assignment change nothing.
    pub(crate) fn accepted(&self, receipts: &[Receipt]) {
        self.offsets.done(receipts);
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

    /// How many records were received whose offsets may not be committed yet: accepted or not, they come again after a crash.
    pub(crate) fn uncommittable(&self) -> u64 {
        self.offsets.uncommittable()
    }
}

impl Consumer {
    /// Joins the group on a new thread. Connection problems come out of [`Consumer::ended`].
    ///
    /// # Errors
    /// Where the thread cannot be started.
    pub(crate) fn start(config: ConsumerConfig, stop: CancellationToken) -> anyhow::Result<Self> {
        let (sender, batches) = mpsc::channel(MAX_WAITING_BATCHES);
        let (result, ended) = oneshot::channel();
        let (failure, failed) = oneshot::channel();
        let finishing = CancellationToken::new();
        let sender = BatchSender::new(sender, Some(finishing.clone().drop_guard()), config.batches);
        let (offsets, state) = (Arc::new(Offsets::default()), Arc::new(State::default()));
        let runtime = tokio::runtime::Handle::current();
        let (its_offsets, its_state) = (offsets.clone(), state.clone());
        // A plain thread: the runtime would wait for one of its own blocking threads at the end of the process.
        std::thread::Builder::new()
            .name("kafka-consumer".to_owned())
            .spawn(move || {
                let outcome = Poller::join(config, its_offsets, its_state, sender, runtime, stop)
                    .map(|poller| poller.run(failure));
                // Nobody listens any more only where the role is gone already.
                let _ = result.send(outcome);
            })
            .context("starting the Kafka thread")?;
        Ok(Self { batches, offsets, state, finishing, failed, ended })
    }

    /// The next records, of any partitions; none once the consumer stops. Cancel safe.
    pub(crate) async fn next(&mut self) -> Option<RecordBatch> {
        self.batches.recv().await
    }

    /// Where to give receipts back.
    pub(crate) fn commit_handle(&self) -> CommitHandle {
        CommitHandle::new(self.offsets.clone())
    }

    /// Is cancelled once [`Consumer::next`] gives only what waits already: the consumer was stopped, or has failed.
    pub(crate) fn finishing(&self) -> CancellationToken {
        self.finishing.clone()
    }

    /// How the consumer is doing.
    pub(crate) fn watch(&self) -> Watch {
        Watch::of(self.state.clone())
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
                let _ = tokio::time::timeout(GOODBYE_TIMEOUT, &mut ended).await;
                Err(failure)
            }
            ended = &mut ended => ended.map_err(|_| panicked())?,
        }
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::ClientConfig;
    use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};

    use super::*;
    use crate::demo::kafka::EmbeddedKafka;
    use crate::kafka::OnLostOffsets;

    /// A Kafka with one partition of `urls`, and a consumer whose batches hold one record each.
    struct Stand {
        _kafka: EmbeddedKafka,
        producer: BaseProducer,
        consumer: Consumer,
        stop: CancellationToken,
    }

    impl Stand {
        fn start(records: usize, properties: &[(&str, &str)]) -> Self {
            let kafka = EmbeddedKafka::start().unwrap();
            kafka.create_topic("urls", 1).unwrap();
            let mut client = ClientConfig::new();
            client.set("bootstrap.servers", kafka.bootstrap_servers().unwrap());
            let producer: BaseProducer = client.create().unwrap();
            client.set("group.id", "g").set("auto.offset.reset", "earliest");
            client.extend(properties.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
            let limits =
                BatchLimits { records: 1, bytes: 1 << 20, linger: Duration::ZERO, own_receipts: false };
            let config = ConsumerConfig {
                client,
                topic: "urls".to_owned(),
                reset: false,
                on_lost_offsets: OnLostOffsets::Stop,
                skip_corrupt: false,
                group_instance_id: None,
                batches: limits,
                timeout: Duration::from_secs(30),
                source: "kafka-env".to_owned(),
            };
            let stop = CancellationToken::new();
            let consumer = Consumer::start(config, stop.clone()).unwrap();
            let stand = Self { _kafka: kafka, producer, consumer, stop };
            stand.produce(records);
            stand
        }

        fn produce(&self, records: usize) {
            for _ in 0..records {
                self.producer.send(BaseRecord::<(), _>::to("urls").payload("https://example.com/")).unwrap();
            }
            self.producer.flush(Duration::from_secs(10)).unwrap();
        }

        async fn ends(self) {
            self.stop.cancel();
            self.consumer.ended().await.unwrap();
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn commits_are_sent_and_answered_while_the_role_takes_no_batch() {
        /// Nothing was committed for a second before.
        const LIMIT: Duration = Duration::from_millis(900);
        let mut stand = Stand::start(20, &[]);
        let (watch, handle) = (stand.consumer.watch(), stand.consumer.commit_handle());
        // A busy machine may be slow once, but not each time.
        for last_try in [false, false, true] {
            let receipts = stand.consumer.next().await.unwrap().into_receipts();
            let offset = receipts.as_slice()[0].last;
            handle.accepted(receipts.as_slice());
            let committed = async {
                while watch.snapshot().partitions[&0].committed <= offset {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            match tokio::time::timeout(LIMIT, committed).await {
                Ok(()) => break,
                Err(_) => assert!(!last_try, "nothing was committed while the queue was full"),
            }
        }
        stand.ends().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_consumer_polls_and_stays_in_its_group_while_idle_and_while_no_batch_is_taken() {
        const MAX_POLL_INTERVAL: Duration = Duration::from_secs(3);
        let limits = [
            ("session.timeout.ms", "3000"),
            ("heartbeat.interval.ms", "300"),
            ("max.poll.interval.ms", "3000"),
        ];
        let mut stand = Stand::start(0, &limits);
        let watch = stand.consumer.watch();
        while watch.snapshot().trouble.is_some() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let stalled =
            async |time| tokio::time::timeout(time, watch.stalled(Duration::from_millis(600))).await;
        assert!(stalled(Duration::from_secs(2)).await.is_err(), "quiet, and polling");
        stand.produce(20);
        while watch.snapshot().records < 3 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(
            stalled(MAX_POLL_INTERVAL + Duration::from_secs(2)).await.is_err(),
            "out of room, and polling"
        );
        // Taken away, it would be noticed now at the latest.
        for _ in 0..20 {
            stand.consumer.next().await.unwrap();
        }
        let Snapshot { assigned, lost, .. } = watch.snapshot();
        assert_eq!((assigned, lost), (1, 0));
        stand.ends().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_accepted_last_is_committed_before_the_consumer_ends() {
        let mut stand = Stand::start(5, &[]);
        let (watch, handle) = (stand.consumer.watch(), stand.consumer.commit_handle());
        for _ in 0..5 {
            handle.accepted(stand.consumer.next().await.unwrap().into_receipts().as_slice());
        }
        stand.ends().await;
        assert_eq!(watch.snapshot().partitions[&0].committed, 5);
    }
}
