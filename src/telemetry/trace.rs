//! Which trace something belongs to: W3C trace context as a message carries it, and as Cloud Logging wants it.
//!
//! <https://www.w3.org/TR/trace-context/#traceparent-header>,
//! <https://cloud.google.com/logging/docs/structured-logging#special-payload-fields>. Spans are not made here.

use serde::{Serialize, Serializer};

/// Where a message may have it: under the standard's name, or as Google's client libraries for Pub/Sub write it.
pub(crate) const ATTRIBUTES: [&str; 2] = [TRACEPARENT, "googclient_traceparent"];
pub(crate) const TRACEPARENT: &str = "traceparent";

/// The span of whoever sent a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Trace<'a> {
    #[serde(rename = "logging.googleapis.com/trace")]
    name: Name<'a>,
    #[serde(rename = "logging.googleapis.com/spanId")]
    span_id: &'a str,
    #[serde(rename = "logging.googleapis.com/trace_sampled")]
    is_sampled: bool,
}

/// A trace's name, in a project where one is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Name<'a> {
    project: Option<&'a str>,
    trace_id: &'a str,
}

impl<'a> Trace<'a> {
    /// Reads a `traceparent`; none where it is not one. `project` is where the trace is kept.
    pub(crate) fn parse(traceparent: &'a str, project: Option<&'a str>) -> Option<Self> {
        let mut parts = traceparent.splitn(5, '-');
        let (version, trace_id) = (parts.next()?, parts.next()?);
        let (span_id, flags) = (parts.next()?, parts.next()?);
        // A later version may have more behind it.
        let is_whole = parts.next().is_none() || version != "00";
        let is_good = is_whole
            && is_hex(version, 2)
            && version != "ff"
            && is_hex(trace_id, 32)
            && is_hex(span_id, 16)
            && is_hex(flags, 2)
            && [trace_id, span_id].iter().all(|id| id.bytes().any(|byte| byte != b'0'));
        let flags = u8::from_str_radix(flags, 16).ok()?;
        is_good.then_some(Self { name: Name { project, trace_id }, span_id, is_sampled: flags & 1 == 1 })
    }
}

/// So many lower-case hexadecimal digits.
fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

impl Serialize for Name<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.project {
            Some(project) => {
                serializer.collect_str(&format_args!("projects/{project}/traces/{}", self.trace_id))
            }
            None => serializer.serialize_str(self.trace_id),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_good_one_is_told_as_cloud_logging_wants_it() {
        let shown = |text, project| serde_json::to_value(Trace::parse(text, project).unwrap()).unwrap();
        assert_eq!(
            shown(GOOD, Some("p")),
            serde_json::json!({
                "logging.googleapis.com/trace": "projects/p/traces/0af7651916cd43dd8448eb211c80319c",
                "logging.googleapis.com/spanId": "b7ad6b7169203331",
                "logging.googleapis.com/trace_sampled": true,
            })
        );
        let other = shown("cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-fe-what-ever", None);
        assert_eq!(other["logging.googleapis.com/trace"], "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(other["logging.googleapis.com/trace_sampled"], false);
    }

    #[test]
    fn what_is_none_is_none() {
        for text in [
            "",
            "00",
            "-",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "0-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b716920333-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-+1",
            "00-0af7651916cd43dd8448eb211c80319\n-b7ad6b7169203331-01",
            " 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319é-b7ad6b7169203331-01",
        ] {
            assert_eq!(Trace::parse(text, None), None, "{text:?}");
        }
    }
}
