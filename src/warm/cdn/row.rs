//! What a row of the table can say.

use super::read::Word;

/// One way in which a CDN or cache says what it did.
#[derive(Debug)]
pub(super) struct Row {
    /// Its name in arguments, evidence and documents. Two rows of one name are two ways of the same CDN.
    pub(super) name: &'static str,
    pub(super) tier: Tier,
    /// How a response that came through it is known: by all marks of any of these. An origin can forge them, and what
    /// they say; that only helps where nobody else speaks.
    pub(super) marks: &'static [&'static [Mark]],
    /// The headers that say it; the first that is there counts.
    pub(super) status: &'static [&'static str],
    pub(super) form: Form,
    /// What it says, in lower case, and what that means. A text goes on behind its words, or ends with them.
    pub(super) words: &'static [(&'static str, Word)],
    /// Where the cache behind it says the same of itself, if in a header of its own.
    pub(super) parent: Option<&'static str>,
    pub(super) pop: Option<Pop>,
    /// Request headers without which it says nothing, or less. Sent where `--cdn` names it: elsewhere they may have
    /// another meaning (nginx configurations often bypass their cache for any `Pragma`).
    pub(super) asks: &'static [(&'static str, &'static str)],
    pub(super) standing: Standing,
    /// It calls objects hits that are served past their lifetime.
    pub(super) hides_stale: bool,
}

/// A CDN knows itself to be between the origin's caches and us, so where one is known these no longer count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tier {
    Cdn,
    Cache,
}

/// How far a row may be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// The vendor documents it, or it was measured.
    Confirmed,
    /// Seen in responses, and nothing more: a hit counts only where a miss of ours went before it.
    Observed,
    /// Not even that: a hit never counts.
    Unconfirmed,
}

/// Something in a response's head that shows who it came through; all texts are compared without regard to case.
#[derive(Debug, Clone, Copy)]
pub(super) enum Mark {
    Has(&'static str),
    Starts(&'static str, &'static str),
    Contains(&'static str, &'static str),
}

/// How a status header is put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// One cache speaks. Of several lines or members, which contradict each other then, the worst counts.
    One,
    /// A member for each cache, the edge's first.
    EdgeFirst,
    /// A member for each cache, the edge's last.
    EdgeLast,
    /// RFC 9211; the last member, or the last that is named so.
    CacheStatus(Option<&'static str>),
    /// One transaction id for a miss, two for a hit.
    VarnishIds,
}

/// Where the point of presence is named.
#[derive(Debug, Clone, Copy)]
pub(super) enum Pop {
    Whole(&'static str),
    /// Behind the last `-` of the last member.
    BehindDash(&'static str),
    /// Between this prefix and the next `-`.
    BehindPrefix(&'static str, &'static str),
    /// The last node: what stands before the last `[`, or the last member.
    LastNode(&'static str),
    /// The node in an Azure reference of the old form.
    AzureReference,
}

impl Row {
    /// Whether one of its marks is in the header of this name.
    pub(super) fn marks_name(&self, name: &str) -> bool {
        self.marks.iter().copied().flatten().any(|mark| mark.header() == name)
    }
}

impl Mark {
    /// The header that it is in.
    pub(super) fn header(&self) -> &'static str {
        let (Self::Has(name) | Self::Starts(name, _) | Self::Contains(name, _)) = self;
        name
    }
}
