//! What a refused request is made of: messages with their records, and packs with their lines.

use googleapis_tonic_google_pubsub_v1::google::pubsub::v1::PubsubMessage;

use super::batch::LINE_END;
use super::message::URI_LIST;
use crate::pubsub::{Request, RequestBuilder, TopicName, put_attribute};

/// A request that was refused, with what its parts hold.
pub(super) struct Parts<'a> {
    pub(super) request: &'a Request,
    /// Of each message.
    pub(super) records: Vec<u64>,
}

impl<'a> Parts<'a> {
    /// `records` are those of the whole request.
    pub(super) fn of(request: &'a Request, records: u64) -> Self {
        let messages = request.len();
        let records =
            if records == messages as u64 { vec![1; messages] } else { records_of(request).collect() };
        Self { request, records }
    }

    /// How many records a request holds.
    pub(super) fn count_records(request: &Request) -> u64 {
        records_of(request).sum()
    }
}

/// How many records each message of a request holds.
fn records_of(request: &Request) -> impl Iterator<Item = u64> {
    let of = |message: PubsubMessage| packed_offsets(&message).map_or(1, |all| all.count() as u64);
    (0..request.len()).map(move |index| request.message(index).map_or(1, of))
}

/// The offsets of a pack of ours, in the order of its lines; none where it is no pack.
fn packed_offsets(message: &PubsubMessage) -> Option<impl Iterator<Item = i64>> {
    let ranges = message.attributes.get("kafka-offset")?;
    if message.attributes.get("content-type")? != URI_LIST || !ranges.contains(['-', ',']) {
        return None;
    }
    Some(ranges.split(',').flat_map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        first.parse().unwrap_or(0_i64)..=last.parse().unwrap_or(-1)
    }))
}

/// The lines of a pack of ours as messages of their own; none where it is no pack.
pub(super) fn unpack(topic: &TopicName, message: &PubsubMessage) -> Option<Request> {
    let offsets = packed_offsets(message)?;
    let mut shared = Vec::new();
    let kept = message
        .attributes
        .iter()
        .filter(|(name, _)| !matches!(name.as_str(), "kafka-offset" | "content-type"));
    for (name, value) in kept {
        put_attribute(&mut shared, name, value);
    }
    let mut request = RequestBuilder::new(topic, 0);
    let mut data = &message.data[..];
    for offset in offsets {
        let end = data.windows(LINE_END.len()).position(|bytes| bytes == LINE_END).unwrap_or(data.len());
        let mut own = Vec::new();
        put_attribute(&mut own, "kafka-offset", &offset.to_string());
        request.add(&data[..end], &[&shared, &own]);
        data = data.get(end + LINE_END.len()..).unwrap_or_default();
    }
    Some(request.build())
}
