//! Why a push was refused: a stable word for each reason, and a log that a flood of bad tokens cannot fill.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often one reason is told at most: each telling says how many there were.
const TOLD_EVERY: Duration = Duration::from_secs(1);

/// The most of a claim that is told, in characters.
const SHOWN_CHARS: usize = 80;

/// What was wrong with who knocked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// No `Authorization` header.
    NoToken,
    /// More than one header, another scheme, or too long.
    Header,
    /// Not three parts of base64url that hold JSON objects.
    Malformed,
    /// Another algorithm than RS256, or an extension that must be understood.
    Algorithm,
    Issuer,
    Audience,
    /// Another account, or one whose e-mail address is not verified.
    Account,
    /// Expired, or without an expiry.
    Expired,
    /// Not valid yet, or issued in the future.
    Early,
    /// A key that is not in the key set.
    UnknownKey,
    Signature,
    /// There is no key set to check it with: the one reason that may pass.
    NoKeys,
}

impl Reason {
    const ALL: [Self; 12] = [
        Self::NoToken,
        Self::Header,
        Self::Malformed,
        Self::Algorithm,
        Self::Issuer,
        Self::Audience,
        Self::Account,
        Self::Expired,
        Self::Early,
        Self::UnknownKey,
        Self::Signature,
        Self::NoKeys,
    ];

    /// The reason's name for logs and metrics; never changes.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::NoToken => "no-token",
            Self::Header => "header",
            Self::Malformed => "malformed",
            Self::Algorithm => "algorithm",
            Self::Issuer => "issuer",
            Self::Audience => "audience",
            Self::Account => "account",
            Self::Expired => "expired",
            Self::Early => "early",
            Self::UnknownKey => "unknown-key",
            Self::Signature => "signature",
            Self::NoKeys => "no-keys",
        }
    }
}

/// A push that is not believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) reason: Reason,
    /// For the log alone: whoever knocks is not told what would have been right.
    pub(super) detail: String,
}

impl Refusal {
    pub(super) fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into() }
    }
}

/// Text from outside as a log may show it: escaped, and cut.
pub(super) fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(SHOWN_CHARS).flat_map(char::escape_default).collect();
    if text.chars().nth(SHOWN_CHARS).is_some() {
        shown.push('…');
    }
    shown
}

/// Counts refusals by reason, and tells of them.
#[derive(Debug, Default)]
pub(super) struct Refusals([Mutex<Tally>; Reason::ALL.len()]);

#[derive(Debug, Default, Clone, Copy)]
struct Tally {
    refused: u64,
    told: Option<Instant>,
}

impl Refusals {
    /// How many there were of each reason.
    pub(super) fn counts(&self) -> [(&'static str, u64); Reason::ALL.len()] {
        Reason::ALL.map(|reason| (reason.as_str(), self.tally(reason).refused))
    }

    /// Counts one, and logs it unless one of the same reason was logged within the last second.
    pub(super) fn add(&self, refusal: &Refusal) {
        let now = Instant::now();
        let refused = {
            let mut tally = self.tally(refusal.reason);
            tally.refused += 1;
            if tally.told.is_some_and(|told| now.duration_since(told) < TOLD_EVERY) {
                return;
            }
            tally.told = Some(now);
            tally.refused
        };
        let reason = refusal.reason.as_str();
        tracing::warn!(reason, refused, "push refused ({reason}): {}", refusal.detail);
    }

    fn tally(&self, reason: Reason) -> MutexGuard<'_, Tally> {
        // Nothing panics while it is held.
        self.0[reason as usize].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_from_outside_is_escaped_and_cut() {
        assert_eq!(shown("a\r\nb\u{202e}\u{0}\"c"), r#"a\r\nb\u{202e}\u{0}\"c"#);
        assert_eq!(shown(&"x".repeat(80)), "x".repeat(80));
        assert_eq!(shown(&"x".repeat(81)), format!("{}…", "x".repeat(80)));
    }

    #[test]
    fn every_reason_has_a_word_of_its_own() {
        let words: std::collections::BTreeSet<&str> =
            Reason::ALL.iter().map(|reason| reason.as_str()).collect();
        assert_eq!(words.len(), Reason::NoKeys as usize + 1);
        assert!((0..).zip(Reason::ALL).all(|(number, reason)| reason as usize == number));
    }

    #[test]
    fn a_flood_is_counted_and_told_once_a_second() {
        let refusals = Refusals::default();
        for _ in 0..1_000 {
            refusals.add(&Refusal::new(Reason::Signature, ""));
        }
        assert!(refusals.counts().contains(&("signature", 1_000)));
        let tally = *refusals.0[Reason::Signature as usize].lock().unwrap();
        assert_eq!(tally.refused, 1_000);
        assert!(tally.told.is_some());
        assert!(refusals.0[Reason::Issuer as usize].lock().unwrap().told.is_none());
    }
}
