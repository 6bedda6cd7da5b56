//! What Kafka holds: one value with its options, and where it stands.

/// One record as it was read, still in librdkafka's memory.
pub(crate) struct RecordRef<'a> {
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    /// Which assignment of the partition it was read under.
    pub(crate) assignment: u64,
    /// When it was produced (or appended, as the topic is set), Unix milliseconds.
    pub(crate) timestamp_ms: Option<i64>,
    pub(crate) key: Option<&'a [u8]>,
    /// None is a tombstone.
    pub(crate) value: Option<&'a [u8]>,
    pub(crate) headers: Vec<Header>,
}

/// One record, whatever is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    /// When it was produced (or appended, as the topic is set), Unix milliseconds.
    pub(crate) timestamp_ms: Option<i64>,
    pub(crate) key: Option<Vec<u8>>,
    /// None is a tombstone.
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) headers: Vec<Header>,
}

/// One header of a record; the same name may come more than once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    /// What is not UTF-8 in it stands as U+FFFD.
    pub(crate) name: String,
    pub(crate) value: Option<Vec<u8>>,
}

impl RecordRef<'_> {
    /// A copy that stays.
    pub(crate) fn to_record(&self) -> Record {
        Record {
            partition: self.partition,
            offset: self.offset,
            timestamp_ms: self.timestamp_ms,
            key: self.key.map(<[u8]>::to_vec),
            value: self.value.map(<[u8]>::to_vec),
            headers: self.headers.clone(),
        }
    }
}

impl Record {
    /// What it takes of memory, roughly: what bounds on bytes in flight count.
    pub(crate) fn size_bytes(&self) -> usize {
        let optional = |bytes: &Option<Vec<u8>>| bytes.as_ref().map_or(0, Vec::len);
        let headers: usize =
            self.headers.iter().map(|h| size_of::<Header>() + h.name.len() + optional(&h.value)).sum();
        size_of::<Self>() + optional(&self.key) + optional(&self.value) + headers
    }
}
