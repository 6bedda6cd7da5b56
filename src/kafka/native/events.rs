//! The queue of a consumer's events: rebalances, answers to commits, errors.

use std::ffi::{CStr, c_int};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::bindings as sys;
use rdkafka::client::ClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use sys::rd_kafka_resp_err_t as ErrorCode;

use super::{is_error, partitions, text_at};

/// The queue of a consumer, which it keeps alive.
pub(in crate::kafka) struct Events<C: ConsumerContext> {
    consumer: Arc<BaseConsumer<C>>,
    queue: NonNull<sys::rd_kafka_queue_t>,
}

/// What came out of the queue of events.
pub(in crate::kafka) enum Event {
    /// Something went wrong, with one partition or the whole client.
    Failed(Failure),
    /// The group gives these partitions.
    Assign(Vec<i32>),
    /// The group takes these partitions back.
    Revoke(Vec<i32>),
    /// An asynchronous commit has ended; with the error of the whole or of each partition, if any.
    Committed(Vec<(i32, i64, Option<RDKafkaErrorCode>)>),
    /// Said on librdkafka's own account, and passed on already.
    Handled,
}

/// An error event.
#[derive(Debug)]
pub(in crate::kafka) struct Failure {
    pub(in crate::kafka) code: RDKafkaErrorCode,
    pub(in crate::kafka) reason: String,
    /// The consumer is at its end.
    pub(in crate::kafka) fatal: bool,
    /// Partition and offset, where it speaks of one.
    pub(in crate::kafka) at: Option<(i32, i64)>,
}

/// An event, destroyed when dropped.
struct Owned(NonNull<sys::rd_kafka_event_t>);

impl Drop for Owned {
    fn drop(&mut self) {
        // SAFETY: this is the only owner of an event that the queue gave out.
        unsafe { sys::rd_kafka_event_destroy(self.0.as_ptr()) }
    }
}

impl<C: ConsumerContext> Events<C> {
    /// None for a consumer without a group.
    pub(in crate::kafka) fn of(consumer: Arc<BaseConsumer<C>>) -> Option<Self> {
        // SAFETY: the client lives as long as the consumer, which `self` keeps.
        let queue = unsafe { sys::rd_kafka_queue_get_consumer(consumer.client().native_ptr()) };
        Some(Self { queue: NonNull::new(queue)?, consumer })
    }

    /// The next event, waited for at most `wait`. What librdkafka says on its own account goes to the consumer's context.
    pub(in crate::kafka) fn poll(&self, wait: Duration) -> Option<Event> {
        let context = &**self.consumer.context();
        let wait_ms = c_int::try_from(wait.as_millis()).unwrap_or(c_int::MAX);
        // SAFETY: the queue is ours until it is dropped; an event that comes out of it belongs to us.
        let event = Owned(NonNull::new(unsafe { sys::rd_kafka_queue_poll(self.queue.as_ptr(), wait_ms) })?);
        let raw = event.0.as_ptr();
        // SAFETY: each function is called on a live event of the kind that it is made for, and what it returns is
        // copied before the event is destroyed.
        Some(unsafe {
            match sys::rd_kafka_event_type(raw) {
                // Every partition is routed elsewhere before it is assigned. A record here would be lost in silence.
                sys::RD_KAFKA_EVENT_FETCH => Event::Failed(Failure {
                    code: RDKafkaErrorCode::Fail,
                    reason: "a record came outside of its queue".to_owned(),
                    fatal: true,
                    at: None,
                }),
                sys::RD_KAFKA_EVENT_ERROR => failed(raw, context),
                sys::RD_KAFKA_EVENT_REBALANCE => {
                    let list = partitions(sys::rd_kafka_event_topic_partition_list(raw));
                    let numbers = list.iter().map(|partition| partition.partition).collect();
                    match sys::rd_kafka_event_error(raw) {
                        ErrorCode::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => Event::Assign(numbers),
                        // Whatever else it says, librdkafka waits for the assignment to be given up.
                        _ => Event::Revoke(numbers),
                    }
                }
                sys::RD_KAFKA_EVENT_OFFSET_COMMIT => {
                    let whole = sys::rd_kafka_event_error(raw);
                    let list = partitions(sys::rd_kafka_event_topic_partition_list(raw));
                    let ended = list.iter().map(|partition| {
                        let error = if is_error(whole) { whole } else { partition.err };
                        (partition.partition, partition.offset, is_error(error).then(|| error.into()))
                    });
                    Event::Committed(ended.collect())
                }
                _ => Event::Handled,
            }
        })
    }
}

impl<C: ConsumerContext> Events<C> {
    /// Sends these offsets to be committed; the answer comes as [`Event::Committed`].
    pub(in crate::kafka) fn commit(&self, offsets: &TopicPartitionList) -> Result<(), RDKafkaErrorCode> {
        let client = self.consumer.client().native_ptr();
        // SAFETY: client and queue live, librdkafka copies the offsets, and without a callback the answer is an event.
        let error = unsafe {
            sys::rd_kafka_commit_queue(client, offsets.ptr(), self.queue.as_ptr(), None, ptr::null_mut())
        };
        if is_error(error) { Err(error.into()) } else { Ok(()) }
    }
}

/// Has offsets committed, and waits for the answer at most `limit`; `waiting` is called ten times a second. librdkafka's own
/// synchronous commit waits for as long as its coordinator is away.
///
/// # Errors
/// Why they are not committed, as far as is known.
pub(in crate::kafka) fn commit_within<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    offsets: &TopicPartitionList,
    limit: Duration,
    waiting: &dyn Fn(),
) -> Result<(), RDKafkaErrorCode> {
    const SLICE_MS: c_int = 100;
    let deadline = Instant::now() + limit;
    let client = consumer.client().native_ptr();
    // SAFETY: the client lives, librdkafka copies the offsets, and without a callback the answer is an event on the queue
    // that is made and given up here; an answer that comes later finds it closed.
    unsafe {
        let queue = NonNull::new(sys::rd_kafka_queue_new(client)).ok_or(RDKafkaErrorCode::Fail)?;
        let sent = sys::rd_kafka_commit_queue(client, offsets.ptr(), queue.as_ptr(), None, ptr::null_mut());
        let mut answer =
            if is_error(sent) { Err(sent.into()) } else { Err(RDKafkaErrorCode::OperationTimedOut) };
        while !is_error(sent) && Instant::now() < deadline {
            if let Some(event) = NonNull::new(sys::rd_kafka_queue_poll(queue.as_ptr(), SLICE_MS)) {
                let event = Owned(event);
                let whole = sys::rd_kafka_event_error(event.0.as_ptr());
                let list = partitions(sys::rd_kafka_event_topic_partition_list(event.0.as_ptr()));
                let errors = std::iter::once(whole).chain(list.iter().map(|partition| partition.err));
                answer = errors
                    .filter(|error| is_error(*error))
                    .map(RDKafkaErrorCode::from)
                    .next()
                    .map_or(Ok(()), Err);
                break;
            }
            waiting();
        }
        sys::rd_kafka_queue_destroy(queue.as_ptr());
        answer
    }
}

/// The end of a partition as the last fetch reported it, without asking the broker; none before the first.
pub(in crate::kafka) fn high_watermark<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    topic: &CStr,
    partition: i32,
) -> Option<i64> {
    let (mut low, mut high) = (0, 0);
    // SAFETY: the client lives; the call reads what librdkafka keeps, and fills in the two variables.
    let error = unsafe {
        let client = consumer.client().native_ptr();
        sys::rd_kafka_get_watermark_offsets(client, topic.as_ptr(), partition, &mut low, &mut high)
    };
    (!is_error(error) && high >= 0).then_some(high)
}

impl<C: ConsumerContext> Drop for Events<C> {
    fn drop(&mut self) {
        // SAFETY: the reference that `rd_kafka_queue_get_consumer` gave us; the queue itself stays the consumer's.
        unsafe { sys::rd_kafka_queue_destroy(self.queue.as_ptr()) }
    }
}

/// # Safety
/// `raw` is a live error event.
unsafe fn failed(raw: *mut sys::rd_kafka_event_t, context: &impl ClientContext) -> Event {
    // SAFETY: as the caller says; the partition is a copy, which we destroy.
    let failure = unsafe {
        let at = NonNull::new(sys::rd_kafka_event_topic_partition(raw)).map(|partition| {
            let at = (partition.as_ref().partition, partition.as_ref().offset);
            sys::rd_kafka_topic_partition_destroy(partition.as_ptr());
            at
        });
        Failure {
            code: sys::rd_kafka_event_error(raw).into(),
            reason: text_at(sys::rd_kafka_event_error_string(raw)),
            fatal: sys::rd_kafka_event_error_is_fatal(raw) != 0,
            at,
        }
    };
    if failure.at.is_none() {
        context.error(KafkaError::Global(failure.code), &failure.reason);
    }
    Event::Failed(failure)
}
