//! How warm an edge is for one URL: the verdict, its reasons, and whether trying again could change it.
//!
//! Plain values; nothing here knows how a verdict is reached (see `warm`) or what is answered for it (see `serve::handler`).

use std::fmt;

/// An enum of reasons without further values: each with its text, and all of them in a list, so that none is forgotten.
macro_rules! reasons {
    ($(#[$about:meta])* $name:ident { $($(#[$why:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name { $($(#[$why])* $variant,)* }

        impl $name {
            /// Every one.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The reason as outcomes have it.
            pub fn text(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }
    };
}

reasons! {
    /// Why an edge does not keep a response that it passed on.
    Obstacle {
        /// `Cache-Control: no-store`, in the response or the request.
        NoStore = "no-store",
        /// `Cache-Control: private`.
        Private = "private",
        /// A `Set-Cookie` that is not declared public.
        SetCookie = "set-cookie",
        /// `Vary: *`.
        VaryAny = "vary *",
        /// `Cache-Control: no-cache`: kept by some, and asked for again each time.
        NoCache = "no-cache",
        /// The response is never fresh.
        ZeroFreshness = "zero freshness",
        /// Its `Age` is past its lifetime already.
        ExpiredOnArrival = "expired on arrival",
        /// The request had `Authorization`, and the response does not say that it is for everybody.
        Authorization = "authorization",
        /// The status is none that may be kept.
        Status = "status",
        /// The edge went round its cache.
        Bypass = "bypass",
        /// The edge is not set up to keep this URL.
        NotEligible = "not eligible",
        /// The edge did not have it on the second look, though the response may be kept: too large, or a rule of its own.
        NotKept = "not kept",
    }
}

reasons! {
    /// Why a 2xx says nothing of warmth.
    Unproven {
        /// No cache that is known said anything.
        NoEvidence = "no evidence",
        /// The cache said something that is not in its row of the table.
        UnknownWord = "unknown word",
        /// A hit, by a header whose meaning nobody has confirmed.
        Unconfirmed = "unconfirmed header",
        /// A hit from a cache that calls stale objects hits too, and nothing shows that this one is fresh.
        UnknownFreshness = "unknown freshness",
        /// The edge made the response itself.
        Generated = "generated",
        /// A miss on HEAD: whether the edge fetched more than a head is not known.
        Head = "head",
    }
}

/// How warm the edge is, judged from the response that it gave.
///
/// A failed GET is a verdict, not an error: `Err` is left for "this process cannot do its work".
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The edge answered with a fresh hit: found warm, or certified by a second look after our fill.
    Warm,
    /// A miss that the edge may store (RFC 9111, section 3); not certified.
    Filled,
    /// 2xx and the whole body was read, without evidence from any cache; the reason says what was missing.
    Fetched(Unproven),
    /// A hit, but on an expired object.
    Stale,
    /// Only an upper tier had it; the edge did not keep it.
    ShieldOnly,
    /// The edge will not keep it; the reason says why.
    Uncacheable(Obstacle),
    /// Not the version that was asked for, or another one on the second look; the reason says which.
    WrongVersion(String),
    /// Warm, but not in a point of presence that was asked for; the reason names it.
    WrongPop(String),
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
pub(crate) const WORDS: [&str; 10] = [
    "warm",
    "filled",
    "fetched",
    "stale",
    "shield-only",
    "uncacheable",
    "wrong-version",
    "wrong-pop",
    "refused",
    "failed",
];

impl Verdict {
    /// The one word for this verdict in logs, tables and outcomes.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Warm => "warm",
            Self::Filled => "filled",
            Self::Fetched(_) => "fetched",
            Self::Stale => "stale",
            Self::ShieldOnly => "shield-only",
            Self::Uncacheable(_) => "uncacheable",
            Self::WrongVersion(_) => "wrong-version",
            Self::WrongPop(_) => "wrong-pop",
            Self::Refused(_) => "refused",
            Self::Failed(_) => "failed",
        }
    }

    /// The reason beside the word, for the verdicts that have one.
    pub fn reason(&self) -> Option<String> {
        match self {
            // What the word means already.
            Self::Fetched(Unproven::NoEvidence) => None,
            Self::Fetched(unproven) => Some(unproven.text().to_owned()),
            Self::Uncacheable(obstacle) => Some(obstacle.text().to_owned()),
            Self::WrongVersion(reason) | Self::WrongPop(reason) | Self::Refused(reason) => {
                Some(reason.clone())
            }
            Self::Failed(failure) => Some(failure.to_string()),
            Self::Warm | Self::Filled | Self::Stale | Self::ShieldOnly => None,
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
pub(crate) mod tests {
    use super::*;

    /// The failure behind this one, so that none can be forgotten.
    fn next(failure: &Failure) -> Option<Failure> {
        Some(match failure {
            Failure::Status(404) => Failure::Status(503),
            Failure::Status(503) => Failure::Status(206),
            Failure::Status(_) => Failure::Redirect("https://example.com/".to_owned()),
            Failure::Redirect(_) => Failure::Dns,
            Failure::Dns => Failure::DnsTimeout,
            Failure::DnsTimeout => Failure::ConnectTimeout,
            Failure::ConnectTimeout => Failure::Connect,
            Failure::Connect => Failure::Tls("certificate expired".to_owned()),
            Failure::Tls(_) => Failure::TlsTimeout,
            Failure::TlsTimeout => Failure::FirstByteTimeout,
            Failure::FirstByteTimeout => Failure::TotalTimeout,
            Failure::TotalTimeout => Failure::Protocol,
            Failure::Protocol => Failure::HeadTooLarge,
            Failure::HeadTooLarge => Failure::Truncated,
            Failure::Truncated => Failure::BadChunk,
            Failure::BadChunk => Failure::Stalled,
            Failure::Stalled => Failure::TooLarge,
            Failure::TooLarge => Failure::OtherRange,
            Failure::OtherRange => Failure::CircuitOpen,
            Failure::CircuitOpen => Failure::HostBusy,
            Failure::HostBusy => return None,
        })
    }

    /// One of each verdict with each of its reasons; of refusals, one.
    pub(crate) fn every_verdict() -> Vec<Verdict> {
        let mut all = vec![Verdict::Warm, Verdict::Filled, Verdict::Stale, Verdict::ShieldOnly];
        all.extend(Unproven::ALL.iter().map(|unproven| Verdict::Fetched(*unproven)));
        all.extend(Obstacle::ALL.iter().map(|obstacle| Verdict::Uncacheable(*obstacle)));
        all.push(Verdict::WrongVersion("etag \"1\" instead of \"2\"".to_owned()));
        all.push(Verdict::WrongPop("SIN instead of FRA".to_owned()));
        all.push(Verdict::Refused("user info".to_owned()));
        let failures = std::iter::successors(Some(Failure::Status(404)), next);
        all.extend(failures.map(Verdict::Failed));
        all
    }

    #[test]
    fn the_page_of_verdicts_explains_every_word_and_reason() {
        let page = include_str!("../docs/verdicts.md");
        for verdict in every_verdict() {
            let named = |text: &str| page.contains(&format!("`{text}`"));
            assert!(named(verdict.word()), "{verdict}");
            let reason = match &verdict {
                Verdict::Failed(Failure::Status(_)) => Some("status N".to_owned()),
                Verdict::Failed(Failure::Redirect(_)) => Some("redirect to URL".to_owned()),
                Verdict::Failed(Failure::Tls(_)) => Some("tls: REASON".to_owned()),
                Verdict::Fetched(unproven) => Some(unproven.text().to_owned()),
                Verdict::Failed(_) | Verdict::Uncacheable(_) => verdict.reason(),
                _ => None,
            };
            if let Some(reason) = reason {
                assert!(named(&reason), "{reason}");
            }
        }
    }

    #[test]
    fn every_word_is_listed() {
        let all = [
            Verdict::Warm,
            Verdict::Filled,
            Verdict::Fetched(Unproven::NoEvidence),
            Verdict::Stale,
            Verdict::ShieldOnly,
            Verdict::Uncacheable(Obstacle::Private),
            Verdict::WrongVersion(String::new()),
            Verdict::WrongPop(String::new()),
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
            Verdict::Uncacheable(Obstacle::NoStore),
            Verdict::WrongVersion("etag \"1\" instead of \"2\"".to_owned()),
            Verdict::WrongPop("SIN".to_owned()),
            Verdict::Warm,
            Verdict::Filled,
            Verdict::Fetched(Unproven::NoEvidence),
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
