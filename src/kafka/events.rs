//! librdkafka's two queues of one consumer: records, taken in bulk, and everything else, one event at a time.
//!
//! rdkafka's own `BaseConsumer::poll` gives records one by one, at twice the processor time, drops the partition and offset
//! of an error, and runs rebalances inside a callback. Here a rebalance is an event like any other.

#![expect(unsafe_code, reason = "librdkafka's event interface is C")]

use std::any::Any;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::bindings as sys;
use rdkafka::client::ClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use sys::rd_kafka_resp_err_t as ErrorCode;

use super::record::{Header, RecordRef};

/// The queue of a consumer, which it keeps alive.
pub(super) struct Events<C: ConsumerContext> {
    consumer: Arc<BaseConsumer<C>>,
    queue: NonNull<sys::rd_kafka_queue_t>,
}

/// What came out of the queue of events.
pub(super) enum Event {
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
pub(super) struct Failure {
    pub(super) code: RDKafkaErrorCode,
    pub(super) reason: String,
    /// The consumer is at its end.
    pub(super) fatal: bool,
    /// Partition and offset, where it speaks of one.
    pub(super) at: Option<(i32, i64)>,
}

/// A record, or what is there instead of one, while it is librdkafka's.
#[derive(Clone, Copy)]
pub(super) struct Fetched<'a>(&'a sys::rd_kafka_message_t);

/// The records of the partitions of one topic that are routed to it. It keeps its consumer alive.
pub(super) struct Records<C: ConsumerContext> {
    consumer: Arc<BaseConsumer<C>>,
    name: CString,
    topic: NonNull<sys::rd_kafka_topic_t>,
    queue: NonNull<sys::rd_kafka_queue_t>,
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
    pub(super) fn of(consumer: Arc<BaseConsumer<C>>) -> Option<Self> {
        // SAFETY: the client lives as long as the consumer, which `self` keeps.
        let queue = unsafe { sys::rd_kafka_queue_get_consumer(consumer.client().native_ptr()) };
        Some(Self { queue: NonNull::new(queue)?, consumer })
    }

    /// The next event, waited for at most `wait`. What librdkafka says on its own account goes to the consumer's context.
    pub(super) fn poll(&self, wait: Duration) -> Option<Event> {
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
    pub(super) fn commit(&self, offsets: &TopicPartitionList) -> Result<(), RDKafkaErrorCode> {
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
pub(super) fn commit_within<C: ConsumerContext>(
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
pub(super) fn high_watermark<C: ConsumerContext>(
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

impl<C: ConsumerContext> Records<C> {
    /// A queue that nothing is routed to yet. `consume.callback.max.messages` of the consumer bounds what one call of
    /// [`Records::take`] holds in hand; more than that would be hidden from librdkafka's own bounds.
    pub(super) fn of(consumer: Arc<BaseConsumer<C>>, topic: &str) -> Option<Self> {
        let name = CString::new(topic).ok()?;
        let client = consumer.client().native_ptr();
        // SAFETY: the client lives as long as the consumer, which `self` keeps, and copies the name.
        let (topic, queue) = unsafe {
            (sys::rd_kafka_topic_new(client, name.as_ptr(), ptr::null_mut()), sys::rd_kafka_queue_new(client))
        };
        Some(Self { topic: NonNull::new(topic)?, queue: NonNull::new(queue)?, name, consumer })
    }

    /// Has the records of a partition come here. To be called before the partition is assigned, so that none of them comes
    /// elsewhere, and again from time to time: a stop of the partition that ends late takes the route away, and until it
    /// is set anew the partition's records wait where they are, in their order.
    pub(super) fn route(&self, partition: i32) {
        // SAFETY: the client lives; the partition's queue is a reference of ours, given up at once.
        unsafe {
            let client = self.consumer.client().native_ptr();
            let queue = sys::rd_kafka_queue_get_partition(client, self.name.as_ptr(), partition);
            if !queue.is_null() {
                sys::rd_kafka_queue_forward(queue, self.queue.as_ptr());
                sys::rd_kafka_queue_destroy(queue);
            }
        }
    }

    /// Gives records that are there to `take`, until it breaks off; waits at most `wait` for the first. They are those of
    /// all partitions; `partition` is any that is routed here. False where there was none.
    pub(super) fn take(
        &self,
        partition: i32,
        wait: Duration,
        take: &mut dyn FnMut(Fetched<'_>) -> ControlFlow<()>,
    ) -> bool {
        let wait_ms = c_int::try_from(wait.as_millis()).unwrap_or(c_int::MAX);
        let mut call = Call { take, panic: None };
        // SAFETY: the topic is ours. `give` is called before this returns, never after, with what is lent here. Of
        // librdkafka's calls that take records in bulk, it is the one with a bound; it follows the partition's route.
        let served = unsafe {
            sys::rd_kafka_consume_callback(
                self.topic.as_ptr(),
                partition,
                wait_ms,
                Some(give),
                ptr::from_mut(&mut call).cast(),
            )
        };
        if let Some(panic) = call.panic {
            resume_unwind(panic);
        }
        served > 0
    }
}

impl<C: ConsumerContext> Drop for Records<C> {
    fn drop(&mut self) {
        // SAFETY: the references that were given to us.
        unsafe {
            sys::rd_kafka_queue_destroy(self.queue.as_ptr());
            sys::rd_kafka_topic_destroy(self.topic.as_ptr());
        }
    }
}

/// What a call of [`Records::take`] lends to its callback.
struct Call<'a> {
    take: &'a mut dyn FnMut(Fetched<'_>) -> ControlFlow<()>,
    /// A panic must not pass through librdkafka.
    panic: Option<Box<dyn Any + Send>>,
}

/// # Safety
/// Called by librdkafka, inside [`Records::take`], with a message of its own and the call.
unsafe extern "C" fn give(message: *mut sys::rd_kafka_message_t, call: *mut c_void) {
    // SAFETY: as above; the message lives until this returns.
    let (message, call) = unsafe { (&*message, &mut *call.cast::<Call<'_>>()) };
    let given = if call.panic.is_some() {
        ControlFlow::Break(())
    } else {
        catch_unwind(AssertUnwindSafe(|| (call.take)(Fetched(message)))).unwrap_or_else(|panic| {
            call.panic = Some(panic);
            ControlFlow::Break(())
        })
    };
    if given.is_break() {
        // SAFETY: only sets a flag of this thread: what was not given yet goes back to the head of the queue.
        unsafe { sys::rd_kafka_yield(ptr::null_mut()) }
    }
}

impl<'a> Fetched<'a> {
    /// Partition and offset.
    pub(super) fn position(&self) -> (i32, i64) {
        (self.0.partition, self.0.offset)
    }

    /// What is there instead of a record, if so.
    pub(super) fn failure(&self) -> Option<Failure> {
        is_error(self.0.err).then(|| Failure {
            code: self.0.err.into(),
            // SAFETY: librdkafka keeps a text for every error, or with the message.
            reason: unsafe { text_at(sys::rd_kafka_message_errstr(self.0)) },
            fatal: false,
            at: Some(self.position()),
        })
    }

    /// The record; only its headers are copied.
    pub(super) fn record(&self, assignment: u64) -> RecordRef<'a> {
        let message = self.0;
        // SAFETY: librdkafka keeps `len` bytes at `payload` and `key_len` at `key`, unless they are null, as long as the
        // message lives; the timestamp's kind may be ignored.
        let (value, key, timestamp_ms) = unsafe {
            let mut kind = sys::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
            let timestamp_ms = sys::rd_kafka_message_timestamp(message, &mut kind);
            (
                bytes_at(message.payload.cast(), message.len),
                bytes_at(message.key.cast(), message.key_len),
                timestamp_ms,
            )
        };
        RecordRef {
            partition: message.partition,
            offset: message.offset,
            assignment,
            timestamp_ms: (timestamp_ms >= 0).then_some(timestamp_ms),
            key,
            value,
            headers: self.headers(),
        }
    }

    fn headers(&self) -> Vec<Header> {
        let mut native = ptr::null_mut();
        // SAFETY: the message lives; librdkafka parses its headers at the first call and keeps them with it.
        let error = unsafe { sys::rd_kafka_message_headers(self.0, &mut native) };
        if is_error(error) || native.is_null() {
            return Vec::new();
        }
        let mut all = Vec::new();
        for index in 0.. {
            let (mut name, mut value, mut size) = (ptr::null(), ptr::null(), 0);
            // SAFETY: the headers live as long as the message; the call only fills in the three variables.
            let error =
                unsafe { sys::rd_kafka_header_get_all(native, index, &mut name, &mut value, &mut size) };
            if is_error(error) || name.is_null() {
                break;
            }
            // SAFETY: librdkafka ends names with a NUL, and keeps `size` bytes at `value` unless that is null.
            let (name, value) = unsafe { (text_at(name), bytes_at(value.cast(), size)) };
            all.push(Header { name, value: value.map(<[u8]>::to_vec) });
        }
        all
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

/// # Safety
/// `list` is null or a list that lives for `'a`.
unsafe fn partitions<'a>(
    list: *const sys::rd_kafka_topic_partition_list_t,
) -> &'a [sys::rd_kafka_topic_partition_t] {
    // SAFETY: librdkafka keeps `cnt` elements at `elems`.
    match unsafe { list.as_ref() } {
        Some(list) if list.cnt > 0 => unsafe {
            std::slice::from_raw_parts(list.elems, usize::try_from(list.cnt).unwrap_or_default())
        },
        _ => &[],
    }
}

/// # Safety
/// `text` is null or ends with a NUL. What is not UTF-8 becomes U+FFFD.
unsafe fn text_at(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: as the caller says.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// # Safety
/// `bytes` is null, or `size` bytes stand there for `'a`.
unsafe fn bytes_at<'a>(bytes: *const u8, size: usize) -> Option<&'a [u8]> {
    // SAFETY: as the caller says.
    (!bytes.is_null()).then(|| unsafe { std::slice::from_raw_parts(bytes, size) })
}

fn is_error(code: ErrorCode) -> bool {
    code != ErrorCode::RD_KAFKA_RESP_ERR_NO_ERROR
}
