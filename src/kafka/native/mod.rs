//! What rdkafka has no safe or no sufficient function for: the one place with `unsafe` for Kafka.
//!
//! rdkafka's own `BaseConsumer::poll` gives records one by one, at twice the processor time, drops the partition and offset
//! of an error, and runs rebalances inside a callback. Here records come in bulk from a queue of their own ([`Records`]), and
//! a rebalance is an event like any other ([`Events`]). librdkafka's own batch call, `rd_kafka_consume_batch_queue`, is not
//! used: in the bundled version it has defects that 2.13.2 and 2.14.2 cure.

#![expect(unsafe_code, reason = "librdkafka's interface is C")]

mod events;
mod records;
mod topics;

use std::borrow::Cow;
use std::ffi::{CStr, c_char};

use rdkafka::TopicPartitionList;
use rdkafka::bindings as sys;
use sys::rd_kafka_resp_err_t as ErrorCode;

pub(super) use events::{Event, Events, Failure, commit_within, high_watermark};
pub(super) use records::{Fetched, Records};
pub(super) use topics::{may_write, topic_id};

/// The metadata of one element. rdkafka's own accessor panics where it is not UTF-8, as another program's may be.
pub(in crate::kafka) fn metadata_of(list: &TopicPartitionList, index: usize) -> String {
    // SAFETY: the list lives and has `cnt` elements, each with `metadata_size` bytes of metadata unless that is null.
    unsafe {
        let native = &*list.ptr();
        if index >= usize::try_from(native.cnt).unwrap_or_default() {
            return String::new();
        }
        let element = &*native.elems.add(index);
        if element.metadata.is_null() {
            return String::new();
        }
        let bytes = std::slice::from_raw_parts(element.metadata.cast::<u8>(), element.metadata_size);
        String::from_utf8_lossy(bytes).into_owned()
    }
}

/// # Safety
/// `list` is null or a list that lives for `'a`.
unsafe fn partitions<'a>(
    list: *const sys::rd_kafka_topic_partition_list_t,
) -> &'a [sys::rd_kafka_topic_partition_t] {
    // SAFETY: as the caller says.
    let Some(list) = (unsafe { list.as_ref() }) else { return &[] };
    match usize::try_from(list.cnt) {
        Ok(count) if count > 0 => {
            // SAFETY: librdkafka keeps `cnt` elements at `elems`, as long as the list lives.
            unsafe { std::slice::from_raw_parts(list.elems, count) }
        }
        _ => &[],
    }
}

/// # Safety
/// `text` is null or ends with a NUL, and lives for `'a`. What is not UTF-8 becomes U+FFFD.
unsafe fn lossy_text_at<'a>(text: *const c_char) -> Cow<'a, str> {
    if text.is_null() {
        return Cow::Borrowed("");
    }
    // SAFETY: as the caller says.
    unsafe { CStr::from_ptr(text) }.to_string_lossy()
}

/// # Safety
/// As [`lossy_text_at`], of which this is a copy.
unsafe fn text_at(text: *const c_char) -> String {
    // SAFETY: as the caller says.
    unsafe { lossy_text_at(text) }.into_owned()
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
