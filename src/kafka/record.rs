//! What Kafka holds: one value with its options, and where it stands.

/// One record, in the memory of its [`super::RecordBatch`].
#[derive(Debug, Clone, Copy)]
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
    pub(crate) headers: Headers<'a>,
}

/// The headers of one record, in their order.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Headers<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) spans: &'a [(Span, Span)],
}

/// Where bytes stand in the memory of a batch; or that there are none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    start: u32,
    /// [`Span::NONE`] where there are no bytes, not even an empty value.
    len: u32,
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

impl Span {
    const NONE: u32 = u32::MAX;

    /// Appends `part` to `bytes` and returns where it stands. Kafka's sizes are 31 bits, so no part is too long, and a batch
    /// ends long before its memory exceeds what a span can say; what would is left out.
    pub(super) fn append(bytes: &mut Vec<u8>, part: Option<&[u8]>) -> Self {
        let Some(part) = part else { return Self { start: 0, len: Self::NONE } };
        let (Ok(start), Ok(len)) = (u32::try_from(bytes.len()), u32::try_from(part.len())) else {
            return Self { start: 0, len: Self::NONE };
        };
        bytes.extend_from_slice(part);
        Self { start, len }
    }

    pub(super) fn of<'a>(&self, bytes: &'a [u8]) -> Option<&'a [u8]> {
        if self.len == Self::NONE {
            return None;
        }
        bytes.get(self.start as usize..)?.get(..self.len as usize)
    }
}

impl<'a> Headers<'a> {
    pub(crate) fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// Names and values. What is not UTF-8 in a name stands as U+FFFD.
    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = (&'a str, Option<&'a [u8]>)> + use<'a> {
        let bytes = self.bytes;
        self.spans.iter().map(move |(name, value)| {
            (
                name.of(bytes).and_then(|name| std::str::from_utf8(name).ok()).unwrap_or_default(),
                value.of(bytes),
            )
        })
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.spans.len()
    }
}

impl RecordRef<'_> {
    /// A copy that outlives the batch.
    pub(crate) fn to_record(self) -> Record {
        let headers = self
            .headers
            .iter()
            .map(|(name, value)| Header { name: name.to_owned(), value: value.map(<[u8]>::to_vec) });
        Record {
            partition: self.partition,
            offset: self.offset,
            timestamp_ms: self.timestamp_ms,
            key: self.key.map(<[u8]>::to_vec),
            value: self.value.map(<[u8]>::to_vec),
            headers: headers.collect(),
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
