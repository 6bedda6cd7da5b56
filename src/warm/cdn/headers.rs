//! How headers are read whatever their name: lists over several lines, directives, and as much of them as is shown.

use std::borrow::Cow;

use http::HeaderMap;
use http::header::{self, AsHeaderName};

/// The most text of one header that evidence holds, in bytes.
pub(super) const MAX_EVIDENCE_BYTES: usize = 256;

/// The end of `text`, at most [`MAX_EVIDENCE_BYTES`] of it: in a list of caches the last one decides.
pub(super) fn bounded(text: &str) -> String {
    const ELLIPSIS: &str = "…";
    if text.len() <= MAX_EVIDENCE_BYTES {
        return text.to_owned();
    }
    let start = text.ceil_char_boundary(text.len() - (MAX_EVIDENCE_BYTES - ELLIPSIS.len()));
    format!("{ELLIPSIS}{}", &text[start..])
}

/// All lines of a header in one, as RFC 9110, section 5.3, joins them; lines that are not ASCII are left out.
pub(super) fn joined(headers: &HeaderMap, name: impl AsHeaderName) -> Cow<'_, str> {
    let mut lines = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    let first = Cow::Borrowed(lines.next().unwrap_or_default());
    lines.fold(first, |so_far, line| Cow::Owned(so_far.into_owned() + ", " + line))
}

/// The members of a header that is a comma list, over all its lines.
pub(super) fn members(headers: &HeaderMap, name: impl AsHeaderName) -> impl Iterator<Item = &str> {
    let lines = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    lines.flat_map(|line| line.split(',').map(str::trim))
}

pub(super) fn has_directive(headers: &HeaderMap, name: &str) -> bool {
    members(headers, header::CACHE_CONTROL).any(|directive| {
        directive.split('=').next().is_some_and(|found| found.trim().eq_ignore_ascii_case(name))
    })
}

/// The first line of a header, as evidence shows it.
pub(super) fn shown(headers: &HeaderMap, name: impl AsHeaderName) -> Option<String> {
    headers.get(name).map(|value| bounded(&String::from_utf8_lossy(value.as_bytes())))
}
