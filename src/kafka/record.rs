//! What Kafka holds: one value with its options, and where it stands.

use std::ffi::CStr;
use std::ptr;

use rdkafka::bindings::{rd_kafka_header_get_all, rd_kafka_headers_t, rd_kafka_resp_err_t};
use rdkafka::message::{BorrowedHeaders, BorrowedMessage, Headers, Message};

use super::offsets::Receipt;

/// One record, whatever is in it.
#[derive(Debug)]
pub(crate) struct Record {
    /// Where it stands; given back once it is done.
    pub(crate) receipt: Receipt,
    /// When it was produced (or appended, as the topic is set), Unix milliseconds.
    pub(crate) timestamp_ms: Option<i64>,
    pub(crate) key: Option<Vec<u8>>,
    /// None is a tombstone.
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) headers: Vec<Header>,
}

/// One header of a record; the same name may come more than once.
#[derive(Debug)]
pub(crate) struct Header {
    /// What is not UTF-8 in it stands as U+FFFD.
    pub(crate) name: String,
    pub(crate) value: Option<Vec<u8>>,
}

impl Record {
    /// Copies a message out of librdkafka's memory.
    pub(super) fn new(message: &BorrowedMessage<'_>, receipt: Receipt) -> Self {
        Self {
            receipt,
            timestamp_ms: message.timestamp().to_millis(),
            key: message.key().map(<[u8]>::to_vec),
            value: message.payload().map(<[u8]>::to_vec),
            headers: message.headers().map_or_else(Vec::new, headers),
        }
    }

    /// What it takes of memory, roughly: what bounds on bytes in flight count.
    pub(super) fn size_bytes(&self) -> usize {
        let optional = |bytes: &Option<Vec<u8>>| bytes.as_ref().map_or(0, Vec::len);
        let headers: usize =
            self.headers.iter().map(|h| size_of::<Header>() + h.name.len() + optional(&h.value)).sum();
        size_of::<Self>() + optional(&self.key) + optional(&self.value) + headers
    }
}

/// All headers. rdkafka's own accessor panics where a name is not UTF-8, which any producer may write.
#[expect(unsafe_code, reason = "rdkafka's accessor panics on a header name that is not UTF-8")]
fn headers(headers: &BorrowedHeaders) -> Vec<Header> {
    let native: *const rd_kafka_headers_t = ptr::from_ref(headers).cast();
    let mut all = Vec::with_capacity(headers.count());
    for index in 0..headers.count() {
        let (mut name, mut value, mut size) = (ptr::null(), ptr::null(), 0);
        // SAFETY: a `BorrowedHeaders` is a pointer to librdkafka's headers, which live as long as the message that it is
        // borrowed from; the call only fills in the three variables.
        let result = unsafe { rd_kafka_header_get_all(native, index, &mut name, &mut value, &mut size) };
        if result != rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR || name.is_null() {
            break;
        }
        // SAFETY: librdkafka ends names with a NUL, and keeps `size` bytes at `value` unless that is null.
        let (name, value) = unsafe {
            let value: Option<&[u8]> =
                (!value.is_null()).then(|| std::slice::from_raw_parts(value.cast(), size));
            (CStr::from_ptr(name), value)
        };
        all.push(Header { name: name.to_string_lossy().into_owned(), value: value.map(<[u8]>::to_vec) });
    }
    all
}
