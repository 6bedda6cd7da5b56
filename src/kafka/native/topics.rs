//! What a cluster tells of a topic beside its partitions: the id that it gives each when it is made (KIP-516), by which one
//! is told from another of the same name, and whether we may write to it.

use std::ffi::{CStr, CString, c_int};
use std::ptr::NonNull;
use std::time::Duration;

use rdkafka::bindings as sys;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};

/// The topic's id in base64; none where `broker` does not tell within `limit`: it is too old, or may not be asked.
pub(in crate::kafka) fn topic_id<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    broker: i32,
    topic: &str,
    limit: Duration,
) -> Option<String> {
    // SAFETY: the description is librdkafka's, and lives until this returns.
    describe(consumer, broker, topic, limit, |description| unsafe {
        let uuid = sys::rd_kafka_TopicDescription_topic_id(description);
        let text = sys::rd_kafka_Uuid_base64str(NonNull::new(uuid.cast_mut())?.as_ptr());
        let text = CStr::from_ptr(NonNull::new(text.cast_mut())?.as_ptr()).to_str().ok()?;
        // Brokers that know no ids leave it at zero.
        (!text.is_empty() && text.bytes().any(|byte| byte != b'A')).then(|| text.to_owned())
    })
}

/// Whether we may write to the topic; none where `broker` does not tell within `limit`.
pub(in crate::kafka) fn may_write<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    broker: i32,
    topic: &str,
    limit: Duration,
) -> Option<bool> {
    use sys::rd_kafka_AclOperation_t::{RD_KAFKA_ACL_OPERATION_ALL, RD_KAFKA_ACL_OPERATION_WRITE};
    // SAFETY: the description is librdkafka's, and lives until this returns; so does its list, of the length that it says.
    describe(consumer, broker, topic, limit, |description| unsafe {
        let mut count = 0;
        let allowed = sys::rd_kafka_TopicDescription_authorized_operations(description, &mut count);
        // Whoever may describe it has one right at least: an empty list is none.
        let allowed = NonNull::new(allowed.cast_mut()).filter(|_| count > 0)?;
        let allowed = std::slice::from_raw_parts(allowed.as_ptr(), count);
        let enough =
            |operation: &_| matches!(operation, RD_KAFKA_ACL_OPERATION_WRITE | RD_KAFKA_ACL_OPERATION_ALL);
        Some(allowed.iter().any(enough))
    })
}

/// Asks `broker` about the topic and reads the answer.
fn describe<C: ConsumerContext, T>(
    consumer: &BaseConsumer<C>,
    broker: i32,
    topic: &str,
    limit: Duration,
    read: impl FnOnce(*const sys::rd_kafka_TopicDescription_t) -> Option<T>,
) -> Option<T> {
    let topic = CString::new(topic).ok()?;
    let limit_ms = c_int::try_from(limit.as_millis()).unwrap_or(c_int::MAX);
    let client = consumer.client().native_ptr();
    // SAFETY: the client lives. The collection copies the name, and the request copies the collection. What comes out of
    // our own queue is an event of ours, which owns all that is read from it until it is destroyed.
    unsafe {
        let queue = Owned(NonNull::new(sys::rd_kafka_queue_new(client))?, sys::rd_kafka_queue_destroy);
        let mut names = [topic.as_ptr()];
        let topics = sys::rd_kafka_TopicCollection_of_topic_names(names.as_mut_ptr(), names.len());
        let topics = Owned(NonNull::new(topics)?, sys::rd_kafka_TopicCollection_destroy);
        let kind = sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS;
        let options = sys::rd_kafka_AdminOptions_new(client, kind);
        let options = Owned(NonNull::new(options)?, sys::rd_kafka_AdminOptions_destroy);
        let mut reason = [0; 128];
        sys::rd_kafka_AdminOptions_set_request_timeout(
            options.0.as_ptr(),
            limit_ms,
            reason.as_mut_ptr(),
            reason.len(),
        );
        // Any broker knows. Left to itself, librdkafka waits for the controller, which may be far away or gone.
        sys::rd_kafka_AdminOptions_set_broker(options.0.as_ptr(), broker, reason.as_mut_ptr(), reason.len());
        let refused = sys::rd_kafka_AdminOptions_set_include_authorized_operations(options.0.as_ptr(), 1);
        drop(NonNull::new(refused).map(|error| Owned(error, sys::rd_kafka_error_destroy)));
        sys::rd_kafka_DescribeTopics(client, topics.0.as_ptr(), options.0.as_ptr(), queue.0.as_ptr());

        let event = NonNull::new(sys::rd_kafka_queue_poll(queue.0.as_ptr(), limit_ms))?;
        let event = Owned(event, sys::rd_kafka_event_destroy);
        let result = sys::rd_kafka_event_DescribeTopics_result(event.0.as_ptr());
        let mut count = 0;
        let descriptions = NonNull::new(sys::rd_kafka_DescribeTopics_result_topics(
            NonNull::new(result.cast_mut())?.as_ptr(),
            &mut count,
        ))?;
        if count == 0 { None } else { read(*descriptions.as_ptr()) }
    }
}

/// Something of librdkafka's that is destroyed when dropped.
struct Owned<T>(NonNull<T>, unsafe extern "C" fn(*mut T));

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        // SAFETY: made with the function that destroys it, and destroyed only here.
        unsafe { (self.1)(self.0.as_ptr()) }
    }
}
