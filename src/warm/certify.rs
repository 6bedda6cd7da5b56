//! What two looks at one URL say together, where the first may have filled the edge.

use super::cdn::{Assessment, Next};
use crate::outcome::CacheEvidence;
use crate::verdict::{Obstacle, Verdict};
use crate::version::opaque;

/// Whether a second look is worth its cost: the edge may hold now what it did not hold then.
pub(super) fn may_have_changed(first: &Assessment) -> bool {
    let is_judged = matches!(
        first.verdict,
        Verdict::Filled | Verdict::ShieldOnly | Verdict::Stale | Verdict::Uncacheable(_)
    );
    is_judged && first.next != Next::Same
}

/// Returns the verdict of both looks; none where the first one's stands, since the second one says nothing.
pub(super) fn conclude(first: &Assessment, second: &Assessment) -> Option<Verdict> {
    let (before, now) = (&first.evidence, &second.evidence);
    let is_confirmed_by_miss = second.needs_miss
        && first.next == Next::Absent
        && before.header == now.header
        && before.cdn == now.cdn;
    match &second.verdict {
        Verdict::Failed(_) | Verdict::Refused(_) => None,
        Verdict::Warm => Some(of_this_version(before, now)),
        Verdict::Fetched(_) if is_confirmed_by_miss => Some(of_this_version(before, now)),
        Verdict::Fetched(_) => None,
        // What the headers forbid says more than that the edge keeps to it.
        _ if second.next == Next::Absent && matches!(first.verdict, Verdict::Uncacheable(_)) => None,
        // It asked again for what it had fetched a moment ago.
        Verdict::Filled if second.next == Next::Absent => Some(Verdict::Uncacheable(Obstacle::NotKept)),
        verdict => Some(verdict.clone()),
    }
}

/// Warm, unless the edge holds something else than what went through it a moment ago.
fn of_this_version(before: &CacheEvidence, now: &CacheEvidence) -> Verdict {
    match (&before.etag, &now.etag) {
        (Some(before), Some(now)) if opaque(before) != opaque(now) => {
            Verdict::WrongVersion(format!("etag {now} on the second look, {before} on the first"))
        }
        _ => Verdict::Warm,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::{Failure, Unproven};

    fn evidence(etag: &str) -> CacheEvidence {
        CacheEvidence {
            header: Some("x-cache".into()),
            cdn: Some("somebody".to_owned()),
            etag: (!etag.is_empty()).then(|| etag.to_owned()),
            ..CacheEvidence::default()
        }
    }

    fn found(verdict: Verdict, next: Next) -> Assessment {
        Assessment { next, evidence: evidence(""), ..verdict.into() }
    }

    #[test]
    fn the_second_look_decides_what_became_of_the_fill() {
        let filled = || found(Verdict::Filled, Next::Absent);
        let no_store = || found(Verdict::Uncacheable(Obstacle::NoStore), Next::Absent);
        let not_kept = Verdict::Uncacheable(Obstacle::NotKept);
        let fetched = || Verdict::Fetched(Unproven::NoEvidence);
        for (first, second, verdict) in [
            (filled(), found(Verdict::Warm, Next::Same), Some(Verdict::Warm)),
            (filled(), filled(), Some(not_kept)),
            (filled(), found(Verdict::Filled, Next::Expired), Some(Verdict::Filled)),
            (filled(), found(Verdict::ShieldOnly, Next::Absent), Some(Verdict::ShieldOnly)),
            (filled(), no_store(), Some(Verdict::Uncacheable(Obstacle::NoStore))),
            (filled(), found(fetched(), Next::Same), None),
            (filled(), found(Verdict::Failed(Failure::Truncated), Next::Same), None),
            (no_store(), no_store(), None),
            (no_store(), filled(), None),
            (no_store(), found(Verdict::Warm, Next::Same), Some(Verdict::Warm)),
            (found(Verdict::Stale, Next::Expired), found(Verdict::Warm, Next::Same), Some(Verdict::Warm)),
            (
                found(Verdict::Stale, Next::Expired),
                found(Verdict::Stale, Next::Expired),
                Some(Verdict::Stale),
            ),
        ] {
            assert!(may_have_changed(&first));
            assert_eq!(conclude(&first, &second), verdict, "{first:?}, {second:?}");
        }
    }

    #[test]
    fn what_a_second_look_cannot_change_is_looked_at_once() {
        for verdict in [
            Verdict::Warm,
            Verdict::Fetched(Unproven::NoEvidence),
            Verdict::WrongVersion(String::new()),
            Verdict::Failed(Failure::Dns),
        ] {
            assert!(!may_have_changed(&found(verdict, Next::Absent)));
        }
        assert!(!may_have_changed(&found(Verdict::Uncacheable(Obstacle::Bypass), Next::Same)));
    }

    #[test]
    fn a_hit_of_another_version_than_the_fill_is_not_warm() {
        let concluded = |before, now| {
            let filled = Assessment { evidence: evidence(before), ..found(Verdict::Filled, Next::Absent) };
            let hit = Assessment { evidence: evidence(now), ..found(Verdict::Warm, Next::Same) };
            conclude(&filled, &hit).unwrap()
        };
        assert_eq!(concluded("\"1\"", "W/\"1\""), Verdict::Warm);
        assert_eq!(concluded("", "\"1\""), Verdict::Warm);
        let reason = "etag \"1\" on the second look, \"2\" on the first".to_owned();
        assert_eq!(concluded("\"2\"", "\"1\""), Verdict::WrongVersion(reason));
    }

    #[test]
    fn a_header_that_was_only_seen_counts_behind_a_miss_of_its_own() {
        let unconfirmed = Verdict::Fetched(Unproven::Unconfirmed);
        let hit = |needs_miss| Assessment { needs_miss, ..found(unconfirmed.clone(), Next::Same) };
        let missed = found(Verdict::Filled, Next::Absent);
        let expired = found(Verdict::Filled, Next::Expired);
        let elsewhere = CacheEvidence { header: Some("other".into()), ..evidence("") };
        let missed_elsewhere = Assessment { evidence: elsewhere, ..missed.clone() };
        assert_eq!(conclude(&missed, &hit(true)), Some(Verdict::Warm));
        assert_eq!(conclude(&missed, &hit(false)), None);
        assert_eq!(conclude(&missed_elsewhere, &hit(true)), None);
        assert_eq!(conclude(&expired, &hit(true)), None);
    }
}
