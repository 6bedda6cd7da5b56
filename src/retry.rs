//! When to try again: exponential backoff, and the time that a server asks for.

use std::time::{Duration, SystemTime};

use backon::{BackoffBuilder, ExponentialBuilder};
use http::{HeaderMap, header};

/// Returns the delays between tries, without end: `first`, then each time twice as long up to `longest`. Jitter adds up to
/// as much again to each, so that calls that failed together do not come back together.
pub(crate) fn backoff(first: Duration, longest: Duration) -> impl Iterator<Item = Duration> + Send {
    ExponentialBuilder::new()
        .with_min_delay(first)
        .with_max_delay(longest)
        .without_max_times()
        .with_jitter()
        .build()
}

/// Returns how long after `now` `Retry-After` asks to wait, in either of its forms (RFC 9110, section 10.2.3); zero for a
/// date that is past, [`Duration::MAX`] for a number of seconds without bound, None without a valid value.
pub(crate) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(text.parse().map_or(Duration::MAX, Duration::from_secs));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn delays_double_up_to_the_longest_and_jitter_at_most_doubles_them() {
        let (first, longest) = (Duration::from_millis(50), Duration::from_millis(500));
        let delays: Vec<Duration> = backoff(first, longest).take(1_000).collect();
        for (delay, base_ms) in delays.iter().zip([50, 100, 200, 400, 500, 500]) {
            let base = Duration::from_millis(base_ms);
            assert!((base..=base * 2).contains(delay), "{delay:?} for {base:?}");
        }
        assert!(delays.iter().all(|delay| *delay <= longest * 2));
    }

    #[test]
    fn retry_after_is_read_in_both_forms_and_nothing_else_is() {
        // Sun, 06 Nov 1994 08:49:37 GMT
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        for (value, expected) in [
            ("7", seconds(7)),
            (" 0 ", seconds(0)),
            ("99999999999999999999", Some(Duration::MAX)),
            ("Sun, 06 Nov 1994 08:49:47 GMT", seconds(10)),
            ("Sunday, 06-Nov-94 08:49:47 GMT", seconds(10)),
            ("Sun Nov  6 08:49:47 1994", seconds(10)),
            ("Sun, 06 Nov 1994 08:49:27 GMT", seconds(0)),
            ("", None),
            ("-1", None),
            ("+1", None),
            ("1.5", None),
            ("soon", None),
            ("caf\u{e9}", None),
        ] {
            let headers =
                HeaderMap::from_iter([(header::RETRY_AFTER, HeaderValue::from_str(value).unwrap())]);
            assert_eq!(retry_after(&headers, now), expected, "{value:?}");
        }
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }
}
