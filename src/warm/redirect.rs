//! Whether a response leads elsewhere, and whether that is gone after.
//!
//! A redirect's target is judged by every rule again, as if it had been pushed; what its name resolves to is judged when
//! it is connected to, like any name's.

use http::{HeaderMap, StatusCode, header};
use url::Url;

use super::guard::Guard;
use crate::outcome::shown_url;
use crate::request::WarmRequest;
use crate::verdict::{Failure, Verdict};

/// How much of a redirect's target is told.
const SHOWN_TARGET_CHARS: usize = 512;

/// The request to make instead of `request`, of which `response` is the answer; none where that answer is a final one.
///
/// `followed` redirects, of `limit` at most, led to it. From https none leads to http: whoever reads along there could
/// change what is warmed.
///
/// # Errors
/// The verdict on a redirect that is not followed.
pub(super) fn next(
    guard: &Guard,
    limit: u8,
    followed: u8,
    request: &WarmRequest,
    response: &http::response::Parts,
) -> Result<Option<WarmRequest>, Verdict> {
    if !is_redirect(response.status) {
        return Ok(None);
    }
    let Some(location) = response.headers.get(header::LOCATION).filter(|_| limit > 0) else {
        return Err(Verdict::Failed(Failure::Redirect(target(request.url(), &response.headers))));
    };
    let next = request.redirected(location.as_bytes());
    let next = next.map_err(|reason| Verdict::Refused(format!("redirect: {reason}")))?;
    let to = shown(next.url());
    guard.check(next.url()).map_err(|reason| Verdict::Refused(format!("redirect to {to}: {reason}")))?;
    if followed == limit {
        return Err(Verdict::Failed(Failure::Redirect(format!("{to}: more than {limit}"))));
    }
    if request.url().scheme() == "https" && next.url().scheme() == "http" {
        return Err(Verdict::Refused(format!("redirect to {to}: from https to http")));
    }
    Ok(Some(next))
}

/// The statuses that ask for a GET of another URL (RFC 9110, section 15.4). 300 leaves the choice to a person.
fn is_redirect(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::MOVED_PERMANENTLY
            | StatusCode::FOUND
            | StatusCode::SEE_OTHER
            | StatusCode::TEMPORARY_REDIRECT
            | StatusCode::PERMANENT_REDIRECT
    )
}

/// Where a redirect leads, unjudged, as it may be shown; empty without a usable `Location`.
fn target(url: &Url, headers: &HeaderMap) -> String {
    let location = headers.get(header::LOCATION).and_then(|location| location.to_str().ok());
    let Some(mut target) = location.and_then(|location| url.join(location).ok()) else {
        return String::new();
    };
    // A URL that has no user info refuses to have it taken away.
    let _ = target.set_username("");
    let _ = target.set_password(None);
    shown(&target)
}

fn shown(url: &Url) -> String {
    shown_url(url).chars().take(SHOWN_TARGET_CHARS).collect()
}
