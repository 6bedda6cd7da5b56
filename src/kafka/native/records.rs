//! The queue of a consumer's records, taken in bulk.

use std::any::Any;
use std::borrow::Cow;
use std::ffi::{CString, c_int, c_void};
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::time::Duration;

use rdkafka::bindings as sys;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};

use super::events::Failure;
use super::{bytes_at, is_error, lossy_text_at, text_at};

/// A record, or what is there instead of one, while it is librdkafka's.
#[derive(Clone, Copy)]
pub(in crate::kafka) struct Fetched<'a>(&'a sys::rd_kafka_message_t);

/// The records of the partitions of one topic that are routed to it. It keeps its consumer alive.
pub(in crate::kafka) struct Records<C: ConsumerContext> {
    consumer: Arc<BaseConsumer<C>>,
    name: CString,
    topic: NonNull<sys::rd_kafka_topic_t>,
    queue: NonNull<sys::rd_kafka_queue_t>,
}

impl<C: ConsumerContext> Records<C> {
    /// A queue that nothing is routed to yet. `consume.callback.max.messages` of the consumer bounds what one call of
    /// [`Records::take`] holds in hand; more than that would be hidden from librdkafka's own bounds.
    pub(in crate::kafka) fn of(consumer: Arc<BaseConsumer<C>>, topic: &str) -> Option<Self> {
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
    /// is set again the partition's records wait where they are, in their order.
    pub(in crate::kafka) fn route(&self, partition: i32) {
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
    pub(in crate::kafka) fn take(
        &self,
        partition: i32,
        wait: Duration,
        take: &mut dyn FnMut(Fetched<'_>) -> ControlFlow<()>,
    ) -> bool {
        // Rounded up: what is shorter than a millisecond would be asked for again and again.
        let wait_ms = c_int::try_from(wait.as_micros().div_ceil(1_000)).unwrap_or(c_int::MAX);
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
    pub(in crate::kafka) fn position(&self) -> (i32, i64) {
        (self.0.partition, self.0.offset)
    }

    /// What is there instead of a record, if so.
    pub(in crate::kafka) fn failure(&self) -> Option<Failure> {
        is_error(self.0.err).then(|| Failure {
            code: self.0.err.into(),
            // SAFETY: librdkafka keeps a text for every error, or with the message.
            reason: unsafe { text_at(sys::rd_kafka_message_errstr(self.0)) },
            fatal: false,
            at: Some(self.position()),
        })
    }

    /// The value; none is a tombstone.
    pub(in crate::kafka) fn value(&self) -> Option<&'a [u8]> {
        // SAFETY: librdkafka keeps `len` bytes at `payload`, unless that is null, as long as the message lives.
        unsafe { bytes_at(self.0.payload.cast(), self.0.len) }
    }

    /// The key, if any.
    pub(in crate::kafka) fn key(&self) -> Option<&'a [u8]> {
        // SAFETY: librdkafka keeps `key_len` bytes at `key`, unless that is null, as long as the message lives.
        unsafe { bytes_at(self.0.key.cast(), self.0.key_len) }
    }

    /// When the record was produced or appended, Unix milliseconds.
    pub(in crate::kafka) fn timestamp_ms(&self) -> Option<i64> {
        let mut kind = sys::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        // SAFETY: the message lives; the call fills in the variable, which may be ignored.
        let timestamp_ms = unsafe { sys::rd_kafka_message_timestamp(self.0, &mut kind) };
        (timestamp_ms >= 0).then_some(timestamp_ms)
    }

    /// Gives each header to `take`: its name, in which U+FFFD stands for what is not UTF-8, and its value.
    pub(in crate::kafka) fn headers(&self, mut take: impl FnMut(Cow<'_, str>, Option<&[u8]>)) {
        let mut native = ptr::null_mut();
        // SAFETY: the message lives; librdkafka parses its headers at the first call and keeps them with it.
        let error = unsafe { sys::rd_kafka_message_headers(self.0, &mut native) };
        if is_error(error) || native.is_null() {
            return;
        }
        for index in 0.. {
            let (mut name, mut value, mut size) = (ptr::null(), ptr::null(), 0);
            // SAFETY: the headers live as long as the message; the call only fills in the three variables.
            let error =
                unsafe { sys::rd_kafka_header_get_all(native, index, &mut name, &mut value, &mut size) };
            if is_error(error) || name.is_null() {
                break;
            }
            // SAFETY: librdkafka ends names with a NUL, and keeps `size` bytes at `value` unless that is null.
            let (name, value) = unsafe { (lossy_text_at(name), bytes_at(value.cast(), size)) };
            take(name, value);
        }
    }
}
