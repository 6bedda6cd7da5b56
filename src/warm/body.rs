//! Reads a response's body to its end and drops it, frame by frame, so that its size does not matter.

use std::error::Error;
use std::io;
use std::time::Duration;

use aws_lc_rs::digest;
use bytes::Bytes;
use http::Version;
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};

use crate::verdict::Failure;

/// A body this short is read, if it comes this fast, even where its status made the verdict already: the connection can
/// then be used again.
const DRAINED_BYTES: u64 = 64 << 10;
const DRAIN_LIMIT: Duration = Duration::from_secs(1);

/// What a body may be.
#[derive(Debug, Clone, Copy)]
pub(super) struct BodyLimits {
    /// How long it may take until its next bytes come.
    pub(super) stall: Duration,
    pub(super) bytes: u64,
}

/// How many bytes are left unread where a body is: none where it is so short that reading it costs less than another
/// connection, or where its length is not known.
///
/// Dropping a body that has not ended closes its connection under HTTP/1.1, and resets its stream under HTTP/2.
pub(super) fn worth_leaving(body: &Incoming) -> Option<u64> {
    body.size_hint().exact().filter(|length| *length > DRAINED_BYTES)
}

/// Reads a body to its end, undecoded; `bytes` counts on, and `hash` gets all of them.
///
/// # Errors
/// Where it is longer than its limit, comes to a halt, or does not end as its framing says.
pub(super) async fn read_and_drop(
    mut body: Incoming,
    version: Version,
    limits: BodyLimits,
    bytes: &mut u64,
    mut hash: Option<&mut digest::Context>,
) -> Result<(), Failure> {
    // One that says so beforehand need not be read.
    let mut left = limits.bytes.checked_sub(body.size_hint().lower()).map(|_| limits.bytes);
    while let Some(allowed) = left {
        let frame = tokio::time::timeout(limits.stall, body.frame()).await.map_err(|_| Failure::Stalled)?;
        let Some(frame) = frame else {
            // An HTTP/2 stream that is reset with NO_ERROR ends like a whole one, but without its END_STREAM and maybe
            // short of its declared length.
            let whole = body.size_hint().lower() == 0 && (version != Version::HTTP_2 || body.is_end_stream());
            return if whole { Ok(()) } else { Err(Failure::Truncated) };
        };
        let frame = frame.map_err(|error| why_broken_off(&error))?;
        let length = frame.data_ref().map_or(0, Bytes::len) as u64;
        *bytes += length;
        if let (Some(hash), Some(data)) = (&mut hash, frame.data_ref()) {
            hash.update(data);
        }
        left = allowed.checked_sub(length);
    }
    Err(Failure::TooLarge)
}

/// Reads a body that does not matter, if it is short and there soon.
pub(super) async fn drain(body: Incoming, bytes: &mut u64) {
    if body.size_hint().upper().is_some_and(|upper| upper <= DRAINED_BYTES) {
        let limits = BodyLimits { stall: DRAIN_LIMIT, bytes: DRAINED_BYTES };
        let reading = read_and_drop(body, Version::HTTP_11, limits, bytes, None);
        // Nothing depends on it; the connection is closed where it does not end.
        let _ = tokio::time::timeout(DRAIN_LIMIT, reading).await;
    }
}

/// A chunk that makes no sense, or an end before the end.
fn why_broken_off(error: &hyper::Error) -> Failure {
    tracing::debug!("body: {error:?}");
    let cause = error.source().and_then(|source| source.downcast_ref::<io::Error>());
    match cause.map(io::Error::kind) {
        Some(io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData) => Failure::BadChunk,
        _ => Failure::Truncated,
    }
}
