//! What a group commits beside its offsets: how it began, and with which topic.

/// When the group began, how many partitions the topic had then, and which topic that was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct GroupMetadata {
    pub(super) since_ms: i64,
    pub(super) partitions: i32,
    /// None where the cluster does not tell.
    pub(super) topic_id: Option<String>,
}

impl GroupMetadata {
    /// Returns none for text that another program has committed.
    pub(super) fn parse(metadata: &str) -> Option<Self> {
        let fields = metadata.strip_prefix("cdnwarm ")?;
        let field = |name: &str| {
            fields
                .split(' ')
                .find_map(|field| field.split_once('=').filter(|(key, _)| *key == name))
                .map(|f| f.1)
        };
        Some(Self {
            since_ms: field("since_ms")?.parse().ok()?,
            partitions: field("partitions")?.parse().ok()?,
            topic_id: field("topic_id").map(str::to_owned),
        })
    }

    /// Returns what [`Self::parse`] reads.
    pub(super) fn to_text(&self) -> String {
        let Self { since_ms, partitions, topic_id } = self;
        let mut text = format!("cdnwarm since_ms={since_ms} partitions={partitions}");
        if let Some(id) = topic_id {
            text.push_str(" topic_id=");
            text.push_str(id);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_is_read_as_it_was_written() {
        for topic_id in [None, Some("gLGXU5ZsQ7qnTtI5bpGGnQ".to_owned())] {
            let metadata = GroupMetadata { since_ms: 1_700_000_000_000, partitions: 6, topic_id };
            assert_eq!(GroupMetadata::parse(&metadata.to_text()), Some(metadata));
        }
        for foreign in
            ["", "cdnwarm", "cdnwarm since_ms=x partitions=6", "partitions=6 since_ms=1", "\u{fffd}"]
        {
            assert_eq!(GroupMetadata::parse(foreign), None, "{foreign}");
        }
    }
}
