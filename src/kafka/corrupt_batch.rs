//! Finds the end of a corrupt record batch, so that `--skip-corrupt` can read on behind it.
//!
//! librdkafka 2.12.1 reports where a corrupt batch begins, but not where it ends, and cannot read on behind it by itself
//! (confluentinc/librdkafka#5581). A broker answers a fetch with the whole batch that holds the offset asked for, so an
//! offset is in the batch exactly if reading from it fails at the same place.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::{Offset, TopicPartitionList};

use super::client::ClientEvents;
use super::native::{Events, Failure, Records};

/// How long a read waits before it looks whether it is still wanted.
const POLL: Duration = Duration::from_millis(50);

/// Whether librdkafka reports a batch with this error that it could read, but not understand: a wrong checksum, a content
/// that cannot be decompressed, an unknown codec or format.
pub(super) fn is_corrupt(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::BadMessage | RDKafkaErrorCode::BadCompression | RDKafkaErrorCode::NotImplemented
    )
}

/// Offsets of a partition that are in a corrupt batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CorruptRange {
    pub(super) first: i64,
    pub(super) last: i64,
    pub(super) error: String,
}

/// What comes first where a read starts.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Content {
    /// A record, at the offset or behind it.
    Record,
    /// The end of the partition, or no such offset.
    End,
    /// A corrupt batch: the offset that librdkafka reports it at, and the error.
    Corrupt { at: i64, error: String },
}

/// Returns the offsets from `next` on that are in one corrupt batch; none where `next` can be read.
///
/// `read` says what a read from an offset on gives first. It is asked about 2 log2(n) times for a batch of n records. A batch
/// behind this one that is corrupt, too, is not part of the range.
///
/// # Errors
/// Those of `read`.
fn find_range(
    next: i64,
    mut read: impl FnMut(i64) -> anyhow::Result<Content>,
) -> anyhow::Result<Option<CorruptRange>> {
    let Content::Corrupt { at, error } = read(next)? else { return Ok(None) };
    let mut is_inside =
        |offset| anyhow::Ok(matches!(read(offset)?, Content::Corrupt { at: other, .. } if other == at));
    // Doubles the distance until an offset is outside, then halves the interval between the two.
    let (mut inside, mut step) = (next, 1);
    let mut outside = loop {
        let offset = next.saturating_add(step);
        if !is_inside(offset)? {
            break offset;
        }
        (inside, step) = (offset, step.saturating_mul(2));
    };
    while outside - inside > 1 {
        let middle = inside + (outside - inside) / 2;
        if is_inside(middle)? {
            inside = middle;
        } else {
            outside = middle;
        }
    }
    Ok(Some(CorruptRange { first: next, last: inside, error }))
}

/// A search under way, on a thread of its own; given up when dropped.
pub(super) struct Search {
    found: mpsc::Receiver<anyhow::Result<Option<CorruptRange>>>,
    given_up: Arc<AtomicBool>,
}

impl Drop for Search {
    fn drop(&mut self) {
        self.given_up.store(true, Ordering::Relaxed);
    }
}

impl Search {
    /// Searches `partition` from offset `next` on, with clients made from `client` that join no group.
    ///
    /// # Errors
    /// Where no thread can be started.
    pub(super) fn start(
        client: &ClientConfig,
        topic: &str,
        partition: i32,
        next: i64,
    ) -> anyhow::Result<Self> {
        let mut client = client.clone();
        client.remove("group.instance.id");
        for (name, value) in [
            ("auto.offset.reset", "error"),
            ("enable.auto.commit", "false"),
            ("enable.partition.eof", "true"),
        ] {
            client.set(name, value);
        }
        let (sender, found) = mpsc::sync_channel(1);
        let given_up = Arc::new(AtomicBool::new(false));
        let (topic, stop) = (topic.to_owned(), given_up.clone());
        std::thread::Builder::new()
            .name("kafka-search".to_owned())
            .spawn(move || {
                let found = find_range(next, |offset| read_from(&client, &topic, partition, offset, &stop));
                // The receiver is gone only where the partition is.
                let _ = sender.send(found);
            })
            .context("starting the thread that looks for the end of a corrupt batch")?;
        Ok(Self { found, given_up })
    }

    /// Returns the result, once; none while the search goes on.
    pub(super) fn result(&self) -> Option<anyhow::Result<Option<CorruptRange>>> {
        match self.found.try_recv() {
            Ok(found) => Some(found),
            Err(mpsc::TryRecvError::Empty) => None,
            Err(mpsc::TryRecvError::Disconnected) => Some(Err(anyhow::anyhow!("the search panicked"))),
        }
    }
}

/// Reads from `offset` on until something comes, however long that takes: silence is no sign of corruption.
///
/// Each read has a client of its own, so that nothing that an earlier read has left behind is taken for its answer.
///
/// # Errors
/// No client, or `stop`.
fn read_from(
    client: &ClientConfig,
    topic: &str,
    partition: i32,
    offset: i64,
    stop: &AtomicBool,
) -> anyhow::Result<Content> {
    let consumer: BaseConsumer<ClientEvents> = client
        .create_with_context(ClientEvents::default())
        .context("making a consumer that looks for the end of a corrupt batch")?;
    let consumer = Arc::new(consumer);
    let events = Events::of(consumer.clone()).context("the consumer has no queue")?;
    let records = Records::of(consumer.clone(), topic).context("no queue for records")?;
    let mut start = TopicPartitionList::new();
    start.add_partition_offset(topic, partition, Offset::Offset(offset))?;
    records.route(partition);
    consumer.assign(&start)?;
    while !stop.load(Ordering::Relaxed) {
        records.route(partition);
        let mut content = None;
        records.take(partition, POLL, &mut |fetched| {
            content = match fetched.failure() {
                None if fetched.position().1 >= offset => Some(Content::Record),
                None => None,
                Some(failure) => content_of(failure),
            };
            if content.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        if let Some(content) = content {
            return Ok(content);
        }
        // Brokers that are away and the like: librdkafka goes on by itself.
        events.poll(Duration::ZERO);
    }
    bail!("given up")
}

/// What an error of a partition says of the offset that is read; none where it says nothing.
fn content_of(failure: Failure) -> Option<Content> {
    match failure {
        Failure { code: RDKafkaErrorCode::PartitionEOF | RDKafkaErrorCode::AutoOffsetReset, .. } => {
            Some(Content::End)
        }
        Failure { code, at: Some((_, at)), reason, .. } if is_corrupt(code) => {
            Some(Content::Corrupt { at, error: reason })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A partition whose offsets are in batches of these lengths, corrupt or not, one after the other.
    fn search(batches: &[(i64, bool)], next: i64) -> (Option<CorruptRange>, usize) {
        let mut reads = 0;
        let found = find_range(next, |offset| {
            reads += 1;
            let mut first = 0;
            for &(records, corrupt) in batches {
                if (first..first + records).contains(&offset) {
                    let error = "failed CRC32C check".to_owned();
                    return Ok(if corrupt { Content::Corrupt { at: first, error } } else { Content::Record });
                }
                first += records;
            }
            Ok(Content::End)
        });
        (found.unwrap(), reads)
    }

    fn range(first: i64, last: i64) -> Option<CorruptRange> {
        Some(CorruptRange { first, last, error: "failed CRC32C check".to_owned() })
    }

    #[test]
    fn the_range_is_the_rest_of_the_batch_whatever_its_length() {
        for records in 1..70 {
            for next in 5..5 + records {
                let batches = [(5, false), (records, true), (1, false), (40, true)];
                assert_eq!(search(&batches, next).0, range(next, 4 + records), "{records} from {next}");
                let at_the_end = [(5, false), (records, true)];
                assert_eq!(search(&at_the_end, next).0, range(next, 4 + records), "{records} from {next}");
            }
        }
    }

    #[test]
    fn good_records_between_corrupt_batches_are_never_skipped() {
        // Reads at distances 1, 2, 4, 8... land in the later batch, which is as corrupt as the first.
        for good in 1..40 {
            for corrupt in 1..20 {
                let batches = [(corrupt, true), (good, false), (1_000, true)];
                assert_eq!(search(&batches, 0).0, range(0, corrupt - 1), "{corrupt} corrupt, {good} good");
            }
        }
        assert_eq!(search(&[(10, true), (10, true)], 0).0, range(0, 9), "the next batch is another range");
    }

    #[test]
    fn what_can_be_read_after_all_is_not_skipped() {
        assert_eq!(search(&[(10, false)], 3), (None, 1));
        assert_eq!(search(&[(10, false)], 10), (None, 1));
    }

    #[test]
    fn a_large_batch_takes_few_reads() {
        let (found, reads) = search(&[(1_000_000, true), (5, false)], 0);
        assert_eq!(found, range(0, 999_999));
        assert!(reads <= 42, "{reads}");
    }

    #[test]
    fn an_error_of_a_read_ends_the_search() {
        let failing = find_range(0, |offset| {
            if offset > 2 {
                bail!("given up")
            }
            Ok(Content::Corrupt { at: 0, error: String::new() })
        });
        assert!(failing.is_err());
    }
}
