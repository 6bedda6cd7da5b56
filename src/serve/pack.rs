//! A message of several URLs (`text/uri-list`, RFC 2483): which lines it has, and which Kafka record each of them was.

use std::ops::RangeInclusive;

use super::envelope::Push;

/// What a message's `content-type` is where its data is a list.
const URI_LIST: &str = "text/uri-list";

/// One URL's line of a pack; whether it is a URL is `WarmRequest::parse`'s to say.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Line<'a> {
    /// `topic/partition/offset` of the record that it was, else `MESSAGEID#NUMBER`.
    pub(super) id: String,
    pub(super) data: &'a [u8],
}

/// Whether the message's data is a list of URLs, as its `content-type` says in whatever case and with whatever
/// parameters.
pub(super) fn is_pack(push: &Push<'_>) -> bool {
    push.attributes.get("content-type").is_some_and(|content_type| {
        let media_type = content_type.split(';').next().unwrap_or_default();
        media_type.trim().eq_ignore_ascii_case(URI_LIST)
    })
}

/// The lines of a pack that stand for a URL, in their order; none where there is no such line.
///
/// A line ends with CRLF, or LF alone; the last one may lack its end. Lines without a byte and lines whose first byte
/// is `#` are comments and stand for no record: `bridge` packs no such value, another sender may write them. A line of
/// white space alone is none of them, since `bridge` may have packed such a value: it is a URL's line, and malformed.
///
/// `kafka-offset` lists the lines' offsets as ranges, such as `5-9,12`. They count only where there is exactly one for
/// each line, beside a topic and a partition; else no line has a record, and its id is made of the message's id and
/// the line's number, comments included, from 1.
pub(super) fn lines<'a>(push: &'a Push<'_>) -> impl Iterator<Item = Line<'a>> {
    let mut coordinates = coordinates(push);
    let message_id = push.message_id.as_deref().unwrap_or_default();
    numbered(&push.data).map(move |(number, data)| {
        let id = match &mut coordinates {
            Some((partition, offsets)) => offsets.next().map(|offset| format!("{partition}/{offset}")),
            None => None,
        };
        Line { id: id.unwrap_or_else(|| format!("{message_id}#{number}")), data }
    })
}

/// The lines that stand for a URL, each with its number among all.
fn numbered(data: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let lines = data.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    (1..).zip(lines).filter(|(_, line)| !line.is_empty() && !line.starts_with(b"#"))
}

/// `topic/partition` and the offset of each line, where the message has them for all of its lines.
fn coordinates<'a>(push: &'a Push<'_>) -> Option<(String, impl Iterator<Item = i64>)> {
    let attribute = |name: &str| push.attributes.get(name).map(AsRef::as_ref);
    let (topic, partition): (&str, &str) = (attribute("kafka-topic")?, attribute("kafka-partition")?);
    let offsets: &'a str = attribute("kafka-offset")?;
    let lines = i64::try_from(numbered(&push.data).count()).ok()?;
    // Counted before any is listed: a few bytes can name more offsets than there is memory.
    let listed = ranges(offsets).try_fold(0_i64, |listed, range| {
        let (first, last) = range?.into_inner();
        listed.checked_add(last - first)?.checked_add(1).filter(|listed| *listed <= lines)
    })?;
    (listed == lines).then(|| (format!("{topic}/{partition}"), ranges(offsets).flatten().flatten()))
}

/// The ranges of `kafka-offset`; none in the place of what is no range.
fn ranges(offsets: &str) -> impl Iterator<Item = Option<RangeInclusive<i64>>> {
    // Digits alone: the number parser would also take a sign.
    let number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?;
    offsets.split(',').map(move |range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let range = number(first)?..=number(last)?;
        (!range.is_empty()).then_some(range)
    })
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use proptest::prelude::*;

    use super::*;

    fn push(data: &[u8], attributes: &[(&'static str, &str)]) -> Push<'static> {
        let owned = |text: &str| Cow::Owned(text.to_owned());
        Push {
            data: data.to_vec(),
            attributes: attributes.iter().map(|(name, value)| (Cow::Borrowed(*name), owned(value))).collect(),
            message_id: Some(Cow::Borrowed("m")),
            ..Push::default()
        }
    }

    fn from_kafka(data: &[u8], offsets: &str) -> Push<'static> {
        push(data, &[("kafka-topic", "urls"), ("kafka-partition", "3"), ("kafka-offset", offsets)])
    }

    fn ids(push: &Push<'_>) -> Vec<String> {
        lines(push).map(|line| line.id).collect()
    }

    #[test]
    fn the_content_type_alone_decides_whatever_its_case_and_parameters() {
        let says = |content_type: &str| is_pack(&push(b"", &[("content-type", content_type)]));
        for content_type in
            ["text/uri-list", "Text/URI-List", "text/uri-list; charset=utf-8", " text/uri-list ;"]
        {
            assert!(says(content_type), "{content_type:?}");
        }
        for content_type in
            ["", "text/plain", "text/uri-lists", "x; text/uri-list", "text/uri-list, text/plain"]
        {
            assert!(!says(content_type), "{content_type:?}");
        }
        assert!(!is_pack(&push(b"a\r\nb", &[])));
    }

    #[test]
    fn each_line_is_the_record_that_it_was() {
        let push = from_kafka(b"http://a/\r\nhttp://b/\r\n \r\n #x\r\n", "5-7,12");
        let lines: Vec<Line<'_>> = lines(&push).collect();
        let expected = [("5", &b"http://a/"[..]), ("6", b"http://b/"), ("7", b" "), ("12", b" #x")];
        assert_eq!(
            lines,
            expected.map(|(offset, data)| Line { id: format!("urls/3/{offset}"), data }),
            "white space before its end makes a line a URL's"
        );
    }

    #[test]
    fn another_senders_comments_and_blank_lines_are_no_records() {
        let data = b"# a list\r\nhttp://a/\n\n\r\n#\r\nhttp://b/";
        assert_eq!(ids(&from_kafka(data, "5,9")), ["urls/3/5", "urls/3/9"]);
        assert_eq!(ids(&push(data, &[])), ["m#2", "m#6"]);
        assert_eq!(ids(&from_kafka(b"#\r\n\r\n", "5")), [""; 0]);
        assert_eq!(ids(&from_kafka(b"", "5")), [""; 0]);
    }

    #[test]
    fn offsets_that_do_not_fit_the_lines_are_nobodys() {
        for offsets in [
            "",
            "5",
            "5-7",
            "5,6,7",
            "6-5",
            "5-",
            "-5",
            "5-6,",
            ",5-6",
            "5 - 6",
            "+5-6",
            "5-6-7",
            "a,b",
            "0-9223372036854775807",
            "0-9223372036854775807,0-9223372036854775807",
            "99999999999999999999,1",
        ] {
            assert_eq!(ids(&from_kafka(b"a\r\nb", offsets)), ["m#1", "m#2"], "{offsets:?}");
        }
        let last = i64::MAX.to_string();
        assert_eq!(ids(&from_kafka(b"a", &last)), [format!("urls/3/{last}")]);
        let no_topic = push(b"a\r\nb", &[("kafka-partition", "3"), ("kafka-offset", "5-6")]);
        assert_eq!(ids(&no_topic), ["m#1", "m#2"]);
    }

    /// As `bridge` writes them: ascending offsets as ranges.
    fn as_ranges(offsets: &[i64]) -> String {
        let runs = offsets.chunk_by(|before, after| before + 1 == *after);
        let shown = runs.map(|run| match run {
            [only] => only.to_string(),
            run => format!("{}-{}", run[0], run[run.len() - 1]),
        });
        shown.collect::<Vec<_>>().join(",")
    }

    proptest! {
        #[test]
        fn every_packed_value_comes_out_with_its_own_offset(
            first in 0_i64..1 << 40,
            records in proptest::collection::vec(("[^#\r\n][^\r\n]{0,20}", 1_i64..4), 1..50),
            ends_with_a_line_end: bool,
        ) {
            let mut offset = first;
            let offsets: Vec<i64> = records.iter().map(|(_, step)| { offset += step; offset }).collect();
            let values: Vec<&str> = records.iter().map(|(value, _)| value.as_str()).collect();
            let mut data = values.join("\r\n");
            if ends_with_a_line_end {
                data.push_str("\r\n");
            }
            let push = from_kafka(data.as_bytes(), &as_ranges(&offsets));
            let lines: Vec<(String, &str)> = lines(&push)
                .map(|line| (line.id, std::str::from_utf8(line.data).unwrap()))
                .collect();
            let expected: Vec<(String, &str)> =
                offsets.iter().map(|offset| format!("urls/3/{offset}")).zip(values).collect();
            prop_assert_eq!(lines, expected);
        }

        #[test]
        fn whatever_comes_each_url_line_has_an_id_of_its_own_kind(
            data in "[a#\r\n]{0,30}", offsets in "[0-9,-]{0,12}",
        ) {
            let push = from_kafka(data.as_bytes(), &offsets);
            let ids = ids(&push);
            let from_kafka = ids.iter().filter(|id| id.starts_with("urls/3/")).count();
            prop_assert!(from_kafka == 0 || from_kafka == ids.len(), "{:?}", ids);
        }
    }
}
