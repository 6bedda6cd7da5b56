//! The `Cache-Status` header (RFC 9211): its members, and what the one that counts says.

use http::{HeaderMap, HeaderValue};
use sfv::{BareItem, FieldType, Item, List, ListEntry, Parser};

use super::headers::bounded;
use super::read::{Said, Word};

/// Fields longer than this, all lines together, count as malformed; real ones are a few hundred bytes.
pub(super) const MAX_CACHE_STATUS_BYTES: usize = 16 * 1024;

/// What the cache of this name says, or the last member's, which is nearest to us; none where that makes no sense.
pub(super) fn read(headers: &HeaderMap, named: Option<&str>) -> Option<Said> {
    let lines: Vec<&[u8]> = headers
        .get_all("cache-status")
        .iter()
        .map(HeaderValue::as_bytes)
        .filter(|line| !line.is_empty())
        .collect();
    let field = lines.join(&b", "[..]);
    if field.len() > MAX_CACHE_STATUS_BYTES {
        return None;
    }
    let mut members = Vec::new();
    for entry in Parser::new(&field).parse::<List>().ok()? {
        let ListEntry::Item(item) = entry else { return None };
        let name = cache_name(&item)?;
        members.push((name, item));
    }
    let at = members.iter().rposition(|(name, _)| named.is_none_or(|named| name == named))?;
    let (name, member) = &members[at];
    let mut others = members.iter().enumerate().filter(|(other, _)| *other != at);
    Some(Said {
        word: what_was_done(member)?,
        upper_tier_hit: others.any(|(_, (_, item))| is_hit(item)),
        cache: Some(bounded(name)),
        ttl_s: member.params.get("ttl").and_then(BareItem::as_integer).map(i64::from),
        value: shown_members(members.into_iter().map(|(_, item)| item)),
    })
}

fn cache_name(member: &Item) -> Option<String> {
    let token = member.bare_item.as_token().map(|token| token.as_str().to_owned());
    token.or_else(|| member.bare_item.as_string().map(|string| string.as_str().to_owned()))
}

/// `None` where the member says neither. A parameter of another type than RFC 9211 gives it counts as absent.
fn what_was_done(member: &Item) -> Option<Word> {
    let flag = |name| member.params.get(name).and_then(BareItem::as_boolean);
    let forwarded = member.params.get("fwd").and_then(BareItem::as_token);
    let reason = forwarded.map(|reason| reason.as_str());
    // A stored object that the next hop just confirmed is kept, whether or not the cache says so.
    let validated =
        member.params.get("fwd-status").and_then(BareItem::as_integer).map(i64::from) == Some(304);
    let stored = flag("stored") == Some(true);
    Some(match reason {
        None if is_hit(member) => Word::Hit,
        None if flag("hit").is_none() => return None,
        Some("stale") if stored || validated => Word::Renewed,
        Some(_) if stored => Word::Kept,
        Some("bypass" | "method" | "request") => Word::Bypassed,
        _ if flag("collapsed") == Some(true) => Word::Collapsed,
        Some("stale") => Word::Expired,
        _ => Word::Missed,
    })
}

/// A member that claims both a hit and a forward contradicts itself (RFC 9211, section 2.1): that is no hit.
fn is_hit(member: &Item) -> bool {
    member.params.get("hit").and_then(BareItem::as_boolean) == Some(true)
        && !member.params.contains_key("fwd")
}

/// The members as text, without their cache keys: those hold the URL, whose query may be signed.
fn shown_members(members: impl Iterator<Item = Item>) -> String {
    let shown: List = members
        .map(|mut member| {
            member.params.shift_remove("key");
            ListEntry::Item(member)
        })
        .collect();
    bounded(&shown.serialize().unwrap_or_default())
}
