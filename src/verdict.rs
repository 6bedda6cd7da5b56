//! How warm an edge is for one URL: the verdict, its reasons, and whether trying again could change it.
//!
//! Plain values; nothing here knows how a verdict is reached (see `warm`) or what is answered for it (see `serve::handler`).

use std::fmt;

/// How warm the edge is, judged from the response that it gave.
///
/// A failed GET is a verdict, not an error: `Err` is left for "this process cannot do its work".
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The edge answered with a fresh hit: found warm, or certified by a second look after our fill.
    Warm,
    /// A miss that the edge may store (RFC 9111, section 3); not certified.
    Filled,
    /// 2xx and the whole body was read, without evidence from any cache.
    Fetched,
    /// A hit, but on an expired object.
    Stale,
    /// Only an upper tier had it; the edge did not keep it.
    ShieldOnly,
    /// The edge will not keep it; the reason says why.
    Uncacheable(&'static str),
    /// Never fetched, and a redelivery would not change that; the reason says why.
    Refused(String),
    /// The GET did not end with a whole 2xx response.
    Failed(Failure),
}

/// Why a GET failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The response's status was not 2xx.
    Status(u16),
    /// The response was a redirect that is not followed; the text is its target and, where there is more to say, why.
    /// Empty without `Location`.
    Redirect(String),
    /// The host name could not be resolved.
    Dns,
    /// No name server answered within the look-up time-out.
    DnsTimeout,
    /// No connection within the connect time-out.
    ConnectTimeout,
    /// The connection was refused or reset before a request was sent.
    Connect,
    /// The TLS handshake failed; the text says why, in words that do not change with the time of day.
    Tls(String),
    /// The TLS handshake was not over within the connect time-out.
    TlsTimeout,
    /// No response head within the first-byte time-out.
    FirstByteTimeout,
    /// The exchange was not over within the total time-out.
    TotalTimeout,
    /// The response head could not be read as HTTP, or the connection ended before it was whole.
    Protocol,
    /// The response head has more headers, or more bytes, than are read, or too many interim responses before it.
    HeadTooLarge,
    /// The body ended before its declared or framed end.
    Truncated,
    /// The body is chunked, and not as RFC 9112, section 7.1, says.
    BadChunk,
    /// No byte of the body came within the stall time-out.
    Stalled,
    /// The body is longer than the operator lets one be.
    TooLarge,
    /// A 206 that is not the range that was asked for, or not of the length that it says.
    OtherRange,
    /// The host failed so often of late that it is left alone for a moment; no GET was made.
    CircuitOpen,
    /// The host is slow, or asked for fewer requests, and this one's turn would come too late; no GET was made.
    HostBusy,
}

/// The word of every verdict, best first.
pub(crate) const WORDS: [&str; 8] =
    ["warm", "filled", "fetched", "stale", "shield-only", "uncacheable", "refused", "failed"];

impl Verdict {
    /// The one word for this verdict in logs, tables and outcomes.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Warm => "warm",
            Self::Filled => "filled",
            Self::Fetched => "fetched",
            Self::Stale => "stale",
            Self::ShieldOnly => "shield-only",
            Self::Uncacheable(_) => "uncacheable",
            Self::Refused(_) => "refused",
            Self::Failed(_) => "failed",
        }
    }

    /// The reason beside the word, for the verdicts that have one.
    pub fn reason(&self) -> Option<String> {
        match self {
            Self::Uncacheable(reason) => Some((*reason).to_owned()),
            Self::Refused(reason) => Some(reason.clone()),
            Self::Failed(failure) => Some(failure.to_string()),
            Self::Warm | Self::Filled | Self::Fetched | Self::Stale | Self::ShieldOnly => None,
        }
    }

    /// Whether the same request may end otherwise a little later, without anybody changing anything.
    ///
    /// Origin 5xx, 408, 425 and 429, time-outs, broken connections, name service failures and a host that is left alone
    /// for a moment pass; a refusal, a 404 or a bad certificate does not.
    pub fn is_curable(&self) -> bool {
        match self {
            Self::Failed(failure) => match failure {
                Failure::Status(status) => matches!(status, 408 | 425 | 429 | 500..=599),
                Failure::Dns
                | Failure::DnsTimeout
                | Failure::ConnectTimeout
                | Failure::Connect
                | Failure::FirstByteTimeout
                | Failure::TotalTimeout
                | Failure::TlsTimeout
                | Failure::Protocol
                | Failure::Truncated
                | Failure::BadChunk
                | Failure::Stalled
                | Failure::CircuitOpen
                | Failure::HostBusy => true,
                Failure::Redirect(_)
                | Failure::Tls(_)
                | Failure::HeadTooLarge
                | Failure::TooLarge
                | Failure::OtherRange => false,
            },
            _ => false,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "status {status}"),
            Self::Redirect(target) if target.is_empty() => write!(f, "redirect without Location"),
            Self::Redirect(target) => write!(f, "redirect to {target}"),
            Self::Dns => write!(f, "dns"),
            Self::DnsTimeout => write!(f, "dns timeout"),
            Self::ConnectTimeout => write!(f, "connect timeout"),
            Self::Connect => write!(f, "connect"),
            Self::Tls(reason) => write!(f, "tls: {reason}"),
            Self::TlsTimeout => write!(f, "tls timeout"),
            Self::FirstByteTimeout => write!(f, "first byte timeout"),
            Self::TotalTimeout => write!(f, "total timeout"),
            Self::Protocol => write!(f, "not a whole HTTP response"),
            Self::HeadTooLarge => write!(f, "response head too large"),
            Self::Truncated => write!(f, "truncated"),
            Self::BadChunk => write!(f, "bad chunk"),
            Self::Stalled => write!(f, "stalled"),
            Self::TooLarge => write!(f, "body too large"),
            Self::OtherRange => write!(f, "another range than asked for"),
            Self::CircuitOpen => write!(f, "circuit open"),
            Self::HostBusy => write!(f, "host busy"),
        }
    }
}

/// The word, and the reason in brackets where there is one.
impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.reason() {
            Some(reason) => write!(f, "{} ({reason})", self.word()),
            None => f.write_str(self.word()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_listed() {
        let all = [
            Verdict::Warm,
            Verdict::Filled,
            Verdict::Fetched,
            Verdict::Stale,
            Verdict::ShieldOnly,
            Verdict::Uncacheable("private"),
            Verdict::Refused(String::new()),
            Verdict::Failed(Failure::Dns),
        ];
        assert_eq!(all.each_ref().map(Verdict::word), WORDS);
    }

    #[test]
    fn only_what_may_pass_by_itself_is_curable() {
        let curable = [
            Failure::Status(500),
            Failure::Status(503),
            Failure::Status(429),
            Failure::Status(408),
            Failure::Dns,
            Failure::DnsTimeout,
            Failure::Connect,
            Failure::ConnectTimeout,
            Failure::FirstByteTimeout,
            Failure::TotalTimeout,
            Failure::TlsTimeout,
            Failure::Truncated,
            Failure::BadChunk,
            Failure::Stalled,
            Failure::Protocol,
            Failure::CircuitOpen,
            Failure::HostBusy,
        ];
        for failure in curable {
            assert!(Verdict::Failed(failure.clone()).is_curable(), "{failure}");
        }
        let final_ones = [
            Verdict::Failed(Failure::Status(404)),
            Verdict::Failed(Failure::Status(403)),
            Verdict::Failed(Failure::Redirect("https://example.com/".to_owned())),
            Verdict::Failed(Failure::Tls("certificate expired".to_owned())),
            Verdict::Failed(Failure::HeadTooLarge),
            Verdict::Failed(Failure::TooLarge),
            Verdict::Failed(Failure::OtherRange),
            Verdict::Refused("expired".to_owned()),
            Verdict::Uncacheable("no-store"),
            Verdict::Warm,
            Verdict::Filled,
            Verdict::Fetched,
            Verdict::Stale,
            Verdict::ShieldOnly,
        ];
        for verdict in final_ones {
            assert!(!verdict.is_curable(), "{verdict}");
        }
    }

    #[test]
    fn a_verdict_reads_as_its_word_and_its_reason() {
        assert_eq!(Verdict::Failed(Failure::Status(404)).to_string(), "failed (status 404)");
        assert_eq!(Verdict::ShieldOnly.to_string(), "shield-only");
    }
}
