//! From a response's head to how warm the edge is: what the caches on the way say, judged by RFC 9111 and RFC 9211.
//!
//! What a cache may say, and in which header, is data: `table`, of `row`s. `read` finds out who spoke (by `marks`), `cache_status` reads RFC 9211,
//! `freshness` knows RFC 9111, and the verdict is made in one place, [`assess`]. `Age` alone is never evidence: any cache
//! on the way may have set it.

mod cache_status;
mod freshness;
mod headers;
mod marks;
mod read;
mod row;
mod table;
#[cfg(test)]
mod tests;

use std::time::SystemTime;

use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue};
use http_cache_semantics::RequestLike;

use freshness::Freshness;
pub(crate) use freshness::policy;
use headers::{bounded, has_directive, joined, shown};
use read::{Said, Spoken, Word};
use row::{Row, Standing};
pub(crate) use table::CdnName;
use table::ROWS;

use crate::outcome::CacheEvidence;
use crate::verdict::{Obstacle, Unproven, Verdict};

/// Whom to listen to, as the operator says.
#[derive(Debug, Default)]
pub(crate) struct Speakers {
    /// Headers that the edge's owner fills with its status.
    pub(crate) status: Vec<HeaderName>,
    /// Headers that the edge's owner fills with its place.
    pub(crate) pop: Vec<HeaderName>,
    /// The CDNs next to us.
    pub(crate) cdns: Vec<CdnName>,
}

impl Speakers {
    fn names(&self, name: &str) -> bool {
        self.cdns.iter().any(|cdn| cdn.0 == name)
    }

    /// Request headers that make the named CDNs speak.
    pub(crate) fn asks(&self) -> impl Iterator<Item = (HeaderName, HeaderValue)> {
        let rows = ROWS.iter().filter(|row| self.names(row.name));
        rows.flat_map(|row| row.asks)
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
    }
}

/// Whether a response header of this name is of use to caches, or written by one.
pub(crate) fn is_spoken_by_caches(name: &str) -> bool {
    const OF_USE: [&str; 14] = [
        "age",
        "cache-control",
        "cdn-cache-control",
        "content-encoding",
        "date",
        "etag",
        "expires",
        "last-modified",
        "pragma",
        "server",
        "set-cookie",
        "surrogate-control",
        "vary",
        "via",
    ];
    OF_USE.contains(&name)
        || name.contains("cache")
        || ROWS.iter().any(|row| row.status.contains(&name) || row.marks_name(name))
        || name.ends_with("-pop")
}

/// What the head of one response says of the edge.
#[derive(Debug, Clone)]
pub(crate) struct Assessment {
    pub(crate) verdict: Verdict,
    pub(crate) evidence: CacheEvidence,
    /// Whether a further look may find what this one brought, and what it means if not.
    pub(crate) next: Next,
    /// A hit by a header that only counts behind a miss of ours.
    pub(crate) needs_miss: bool,
}

impl From<Verdict> for Assessment {
    /// A verdict that rests on no header, and that a further look would not change.
    fn from(verdict: Verdict) -> Self {
        Self { verdict, evidence: CacheEvidence::default(), next: Next::Same, needs_miss: false }
    }
}

/// What a further look may show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// Nothing new.
    Same,
    /// A hit, where the edge kept what it fetched just now; it did not have it before.
    Absent,
    /// A hit, where the edge renewed what it had.
    Expired,
}

/// Assesses how warm the edge is, from the head of a 2xx response; it counts once the body was read to its end.
///
/// `request` is the one that was sent, `now` the time at which the response's head arrived. Malformed and absent
/// cache headers are the same: no evidence.
pub(crate) fn assess(
    speakers: &Speakers,
    request: &impl RequestLike,
    response: &http::response::Parts,
    now: SystemTime,
) -> Assessment {
    let freshness = Freshness::of(request, response, now);
    let evidence = CacheEvidence {
        age_s: freshness.age.map(|age| age.as_secs()),
        etag: shown(&response.headers, header::ETAG),
        ..CacheEvidence::default()
    };
    let (spoken, known_as) = read::spoken(speakers, &response.headers);
    let Some(Spoken { row, header, said, value, pop }) = spoken else {
        let evidence = CacheEvidence { cdn: known_as.map(str::to_owned), ..evidence };
        return silent(&response.headers, evidence);
    };
    let (cache, ttl_s) = said.as_ref().map_or((None, None), |said| (said.cache.clone(), said.ttl_s));
    let is_named = row.name != table::OWN.name;
    let evidence = CacheEvidence {
        header: Some(header),
        value: Some(value),
        cdn: cache.or_else(|| is_named.then(|| row.name.to_owned())),
        pop,
        ttl_s,
        ..evidence
    };
    let Some(said) = said else {
        return Assessment { evidence, ..Verdict::Fetched(Unproven::UnknownWord).into() };
    };
    let next = match said.word {
        Word::Missed | Word::Shield | Word::Kept => Next::Absent,
        Word::Collapsed | Word::Renewed | Word::Expired | Word::Stale => Next::Expired,
        Word::Hit | Word::Generated | Word::Bypassed | Word::NotEligible => Next::Same,
    };
    let verdict = verdict(&said, &freshness, row);
    let needs_miss = row.standing == Standing::Observed && verdict == Verdict::Fetched(Unproven::Unconfirmed);
    Assessment { verdict, evidence, next, needs_miss }
}

fn verdict(said: &Said, freshness: &Freshness, row: &Row) -> Verdict {
    let may_be_kept = |kept: Verdict| match freshness.why_not_kept {
        Some(obstacle) => Verdict::Uncacheable(obstacle),
        None => kept,
    };
    match said.word {
        Word::Hit => match said.ttl_s {
            Some(..=0) => Verdict::Stale,
            None if freshness.is_over() => Verdict::Stale,
            _ if row.standing != Standing::Confirmed => Verdict::Fetched(Unproven::Unconfirmed),
            None if row.hides_stale && !freshness.is_proven() => Verdict::Fetched(Unproven::UnknownFreshness),
            _ => Verdict::Warm,
        },
        Word::Kept | Word::Renewed => Verdict::Filled,
        Word::Stale => Verdict::Stale,
        Word::Shield => may_be_kept(Verdict::ShieldOnly),
        Word::Missed if said.upper_tier_hit => may_be_kept(Verdict::ShieldOnly),
        Word::Collapsed | Word::Missed | Word::Expired => may_be_kept(Verdict::Filled),
        Word::Generated => Verdict::Fetched(Unproven::Generated),
        // What the headers forbid says more than that it was not done.
        Word::Bypassed => Verdict::Uncacheable(freshness.why_not_kept.unwrap_or(Obstacle::Bypass)),
        Word::NotEligible => Verdict::Uncacheable(freshness.why_not_kept.unwrap_or(Obstacle::NotEligible)),
    }
}

/// No cache spoke: all that can be said is whether the response forbids every shared cache to keep it.
fn silent(headers: &HeaderMap, evidence: CacheEvidence) -> Assessment {
    let forbidden = [Obstacle::NoStore, Obstacle::Private];
    let Some(obstacle) = forbidden.into_iter().find(|obstacle| has_directive(headers, obstacle.text()))
    else {
        return Assessment { evidence, ..Verdict::Fetched(Unproven::NoEvidence).into() };
    };
    let value = bounded(&joined(headers, header::CACHE_CONTROL));
    let evidence = CacheEvidence { header: Some("cache-control".into()), value: Some(value), ..evidence };
    Assessment { evidence, ..Verdict::Uncacheable(obstacle).into() }
}
