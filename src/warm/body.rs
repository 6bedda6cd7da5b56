//! Reads the body of a response to its end and drops it, piece by piece, so that its size does not matter.

use std::error::Error;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use aws_lc_rs::digest;
use bytes::Bytes;
use hyper::body::{Body, Incoming};
use tokio::time::Instant;

use super::connections::{Home, InUse};
use super::http1::BodyReader;
use super::timer::{StepTimer, TimedOut};
use crate::verdict::Failure;

/// A body this short is read, if it comes this fast, even where its status made the verdict already: the connection can
/// then be used again.
const DRAINED_BYTES: u64 = 64 << 10;
const DRAIN_LIMIT: Duration = Duration::from_secs(1);

/// What was read of a body.
#[derive(Debug)]
pub(super) struct ReadBody {
    pub(super) bytes: u64,
    /// Of these bytes, where it was asked for.
    pub(super) sha256: Option<[u8; 32]>,
    /// Why it was not read to its end: it is longer than it may be, took too long, or does not end as its framing says.
    pub(super) end: Result<(), Failure>,
}

/// The body of a response. Dropping it gives its connection back where that may be used again; else it closes the
/// connection under HTTP/1.1, and resets the stream under HTTP/2.
pub(super) struct ResponseBody(Protocol);

enum Protocol {
    Http1(Http1Body),
    /// Dropping a body that has not ended resets its stream.
    Http2(Incoming, #[expect(dead_code, reason = "ends with the body")] InUse),
}

struct Http1Body {
    /// Until it is dropped.
    reader: Option<BodyReader>,
    home: Home,
}

impl Drop for Http1Body {
    fn drop(&mut self) {
        if let Some(http1) = self.reader.take().and_then(BodyReader::into_idle) {
            self.home.keep(http1);
        }
    }
}

impl ResponseBody {
    pub(super) fn http1(reader: BodyReader, home: Home) -> Self {
        Self(Protocol::Http1(Http1Body { reader: Some(reader), home }))
    }

    pub(super) fn http2(incoming: Incoming, in_use: InUse) -> Self {
        Self(Protocol::Http2(incoming, in_use))
    }

    /// How many bytes are to come, where that is known.
    fn remaining_bytes(&self) -> Option<u64> {
        match &self.0 {
            Protocol::Http1(http1) => http1.reader.as_ref()?.remaining_bytes(),
            Protocol::Http2(incoming, _) => incoming.size_hint().exact(),
        }
    }

    /// Reads on, undecoded. Returns how many bytes that were, and shows them to `hash`; none at the end.
    ///
    /// # Errors
    /// Where the body does not end as its framing says.
    pub(super) fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        hash: Option<&mut digest::Context>,
    ) -> Poll<Result<Option<u64>, Failure>> {
        match &mut self.0 {
            Protocol::Http1(http1) => match &mut http1.reader {
                Some(reader) => reader.poll_read(context, hash),
                None => Poll::Ready(Ok(None)),
            },
            Protocol::Http2(incoming, _) => poll_http2(incoming, context, hash),
        }
    }
}

fn poll_http2(
    incoming: &mut Incoming,
    context: &mut Context<'_>,
    hash: Option<&mut digest::Context>,
) -> Poll<Result<Option<u64>, Failure>> {
    let Some(frame) = ready!(Pin::new(&mut *incoming).poll_frame(context)) else {
        // A stream that is reset with NO_ERROR ends like a whole one, but without its END_STREAM and maybe short of its
        // declared length.
        let is_whole = incoming.size_hint().lower() == 0 && incoming.is_end_stream();
        return Poll::Ready(if is_whole { Ok(None) } else { Err(Failure::Truncated) });
    };
    let frame = frame.map_err(|error| why_broken_off(&error))?;
    if let (Some(hash), Some(data)) = (hash, frame.data_ref()) {
        hash.update(data);
    }
    Poll::Ready(Ok(Some(frame.data_ref().map_or(0, Bytes::len) as u64)))
}

/// How many bytes are left unread where a body is dropped now: none where it is so short that reading it costs less than
/// another connection, or where its length is not known.
pub(super) fn worth_leaving(body: &ResponseBody) -> Option<u64> {
    body.remaining_bytes().filter(|length| *length > DRAINED_BYTES)
}

/// Reads a body to its end and drops it. `limit` says when its next bytes are to be there; `is_hashed` asks for its SHA-256.
pub(super) async fn read<C: Send + Sync>(
    timer: &mut StepTimer<'_, C>,
    mut body: ResponseBody,
    max_bytes: u64,
    limit: impl Fn() -> Instant,
    is_hashed: bool,
) -> ReadBody {
    let mut hash = is_hashed.then(|| digest::Context::new(&digest::SHA256));
    let mut bytes = 0;
    // One that says so beforehand need not be read.
    let mut left = max_bytes.checked_sub(body.remaining_bytes().unwrap_or(0)).map(|_| max_bytes);
    let end = loop {
        let Some(allowed) = left else { break Err(Failure::TooLarge) };
        let reading = pin!(poll_fn(|context| body.poll_read(context, hash.as_mut())));
        match timer.run(&limit, reading).await {
            Ok(Ok(Some(length))) => {
                bytes += length;
                left = allowed.checked_sub(length);
            }
            Ok(Ok(None)) => break Ok(()),
            Ok(Err(failure)) => break Err(failure),
            Err(TimedOut::Step) => break Err(Failure::Stalled),
            Err(TimedOut::Deadline) => break Err(Failure::TotalTimeout),
        }
    };
    ReadBody { bytes, sha256: hash.and_then(|hash| hash.finish().as_ref().try_into().ok()), end }
}

/// Reads a body that does not matter, if it is short and there soon. Returns how many bytes it read.
pub(super) async fn drain<C: Send + Sync>(timer: &mut StepTimer<'_, C>, body: ResponseBody) -> u64 {
    if body.remaining_bytes().is_none_or(|left| left > DRAINED_BYTES) {
        return 0;
    }
    let limit = Instant::now() + DRAIN_LIMIT;
    // Nothing depends on how it ends; the connection is closed where it does not.
    read(timer, body, DRAINED_BYTES, || limit, false).await.bytes
}

/// An end before the end, or what is no HTTP/2.
fn why_broken_off(error: &hyper::Error) -> Failure {
    tracing::debug!("body: {error:?}");
    let cause = error.source().and_then(|source| source.downcast_ref::<io::Error>());
    match cause.map(io::Error::kind) {
        Some(io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData) => Failure::BadChunk,
        _ => Failure::Truncated,
    }
}
