//! What the edge says of itself: its member of `Cache-Status` (RFC 9211).
//!
//! The cache key is left out on purpose: it is the URL, whose query may be signed.

use http::HeaderValue;
use sfv::{
    ItemSerializer, KeyRef, ParameterSerializer, RefBareItem, StringRef, TokenRef, key_ref, token_ref,
};

/// What was done for one request.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Status {
    /// Why the request went to the origin, a token of RFC 9211, section 2.2; `None` for a hit.
    pub(super) forwarded: Option<&'static str>,
    /// The origin's status, where it is not the one that is answered.
    pub(super) forward_status: Option<u16>,
    /// How much longer the stored response is fresh, seconds.
    pub(super) ttl_s: Option<i64>,
    pub(super) stored: bool,
    pub(super) collapsed: bool,
    /// A token that says more, where something went wrong.
    pub(super) detail: Option<&'static str>,
}

impl Status {
    pub(super) fn hit(ttl_s: i64) -> Self {
        Self { ttl_s: Some(ttl_s), ..Self::default() }
    }

    pub(super) fn forwarded(why: &'static str) -> Self {
        Self { forwarded: Some(why), ..Self::default() }
    }

    /// The member, named `name`: as a token where that is one, else as a string.
    ///
    /// `None` where the name is not ASCII or holds control characters.
    pub(super) fn member(&self, name: &str) -> Option<HeaderValue> {
        let name = match TokenRef::from_str(name) {
            Ok(token) => RefBareItem::Token(token),
            Err(_) => RefBareItem::String(StringRef::from_str(name).ok()?),
        };
        let mut item = ItemSerializer::new().bare_item(name);
        item = match self.forwarded {
            None => item.parameter(key_ref("hit"), true),
            Some(why) => with_token(item, key_ref("fwd"), why),
        };
        if let Some(status) = self.forward_status {
            item = item.parameter(key_ref("fwd-status"), sfv::Integer::from(status));
        }
        if let Some(ttl_s) = self.ttl_s.and_then(|ttl_s| sfv::Integer::try_from(ttl_s).ok()) {
            item = item.parameter(key_ref("ttl"), ttl_s);
        }
        for (name, flag) in [("collapsed", self.collapsed), ("stored", self.stored)] {
            if flag {
                item = item.parameter(key_ref(name), true);
            }
        }
        if let Some(detail) = self.detail {
            item = with_token(item, key_ref("detail"), detail);
        }
        HeaderValue::try_from(item.finish()).ok()
    }
}

fn with_token(
    item: ParameterSerializer<String>,
    key: &KeyRef,
    token: &'static str,
) -> ParameterSerializer<String> {
    item.parameter(key, token_ref(token))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(name: &str, status: Status) -> Option<String> {
        status.member(name).map(|value| value.to_str().unwrap().to_owned())
    }

    #[test]
    fn a_name_is_a_token_where_it_can_be_and_else_a_string() {
        let hit = Status { ttl_s: Some(-5), ..Status::default() };
        assert_eq!(text("europe-west1", hit).as_deref(), Some("europe-west1;hit;ttl=-5"));
        assert_eq!(text("1st \"edge\"", hit).as_deref(), Some("\"1st \\\"edge\\\"\";hit;ttl=-5"));
        assert_eq!(text("zürich", hit), None);
    }

    #[test]
    fn every_parameter_is_written_as_its_type_has_it() {
        let all = Status {
            forwarded: Some("stale"),
            forward_status: Some(304),
            ttl_s: Some(60),
            stored: true,
            collapsed: true,
            detail: Some("origin-timeout"),
        };
        let member = "e;fwd=stale;fwd-status=304;ttl=60;collapsed;stored;detail=origin-timeout";
        assert_eq!(text("e", all).as_deref(), Some(member));
    }
}
