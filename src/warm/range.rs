//! Whether a 206 is the part that was asked for (RFC 9110, sections 14.4 and 15.3.7).

use http::{HeaderMap, StatusCode, header};

use crate::verdict::Failure;

/// How many bytes the body has to have, where the response says that it is part of something.
///
/// A server may answer a range with the whole, in which case there is nothing to check, and may leave the end off.
///
/// # Errors
/// A 206 of several parts, of another range than the one asked for, or that does not say which.
pub(super) fn part_bytes(
    asked: &HeaderMap,
    response: &http::response::Parts,
) -> Result<Option<u64>, Failure> {
    if response.status != StatusCode::PARTIAL_CONTENT {
        return Ok(None);
    }
    let text = |headers: &HeaderMap, name| headers.get(name)?.to_str().ok().map(str::to_owned);
    let asked = text(asked, header::RANGE).unwrap_or_default();
    let answered = text(&response.headers, header::CONTENT_RANGE).unwrap_or_default();
    is_part_of(&asked, &answered).map(Some).ok_or(Failure::OtherRange)
}

/// How long the whole object is, as the head of its response says; none where it does not.
pub(super) fn whole_bytes(response: &http::response::Parts) -> Option<u64> {
    let text = |name| response.headers.get(name)?.to_str().ok();
    if response.status == StatusCode::PARTIAL_CONTENT {
        return text(header::CONTENT_RANGE)?.rsplit_once('/')?.1.trim().parse().ok();
    }
    text(header::CONTENT_LENGTH)?.trim().parse().ok()
}

/// The length of the part that `Content-Range` names, where that is what `Range` asked for or begins like it.
fn is_part_of(asked: &str, answered: &str) -> Option<u64> {
    let (unit, answered) = answered.trim().split_once(' ')?;
    let (part, whole) = answered.split_once('/')?;
    let (first, last) = part.split_once('-')?;
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    let whole: Option<u64> = if whole == "*" { None } else { Some(whole.parse().ok()?) };
    let bytes = last.checked_sub(first)?.checked_add(1)?;
    let fits = unit.eq_ignore_ascii_case("bytes") && whole.is_none_or(|whole| last < whole);
    let (asked_first, asked_last) = asked.trim().strip_prefix("bytes=")?.split_once('-')?;
    let is_asked_for = match (asked_first.parse::<u64>(), asked_last.parse::<u64>()) {
        (Ok(asked_first), Ok(asked_last)) => first == asked_first && last <= asked_last,
        (Ok(asked_first), Err(_)) => first == asked_first,
        // The last so many bytes.
        (Err(_), Ok(length)) => match whole {
            Some(whole) => first == whole.saturating_sub(length) && last + 1 == whole,
            None => bytes <= length,
        },
        (Err(_), Err(_)) => false,
    };
    (fits && is_asked_for).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_part_that_was_asked_for_counts() {
        for (asked, answered, bytes) in [
            ("bytes=0-9", "bytes 0-9/100", Some(10)),
            ("bytes=0-9", "bytes 0-9/*", Some(10)),
            ("bytes=0-9", "bytes 0-4/5", Some(5)),
            ("bytes=90-", "bytes 90-99/100", Some(10)),
            ("bytes=-10", "bytes 90-99/100", Some(10)),
            ("bytes=-10", "bytes 0-4/5", Some(5)),
            ("bytes=0-9", "bytes 1-9/100", None),
            ("bytes=0-9", "bytes 0-10/100", None),
            ("bytes=0-9", "bytes 0-9/9", None),
            ("bytes=0-9", "bytes 9-0/100", None),
            ("bytes=0-9", "bytes */100", None),
            ("bytes=0-9", "lines 0-9/100", None),
            ("bytes=0-9", "bytes 0-9", None),
            ("bytes=0-", "bytes 0-18446744073709551615/*", None),
            ("bytes=-10", "bytes 80-89/100", None),
            ("bytes=0-9", "", None),
            ("", "bytes 0-9/100", None),
        ] {
            assert_eq!(is_part_of(asked, answered), bytes, "{asked} answered with {answered}");
        }
    }
}
