//! Reading what a client sends: up to its limits in bytes and time, and with bounded memory for all pushes together.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Pub/Sub's largest push that holds one URL is about 150 KiB; 100 attributes at their limits are most of it. The 128 KiB
/// of URLs that `bridge` packs add 175 KiB.
pub(super) const MAX_BODY_BYTES: usize = 1 << 20;

/// What all bodies may take together while they are read and used: 64 of the largest, or 16,000 of the common size.
const MAX_BYTES: usize = 64 * MAX_BODY_BYTES;

/// How long a body may take.
const BODY_LIMIT: Duration = Duration::from_secs(10);

/// How much of a body that is not wanted is still read, and for how long.
const DISCARD_BYTES: usize = 4 << 20;
const DISCARD_LIMIT: Duration = Duration::from_secs(2);

/// The memory for bodies. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Bodies(Arc<Semaphore>);

/// A body that was read to its end; it takes its share of the memory for as long as it lives.
#[derive(Debug)]
pub(super) struct ReadBody {
    pub(super) bytes: Bytes,
    _room: Option<OwnedSemaphorePermit>,
}

/// Why a body was not read to its end.
#[derive(Debug)]
pub(super) enum Unread {
    /// More than [`MAX_BODY_BYTES`], said or sent.
    TooLarge,
    /// All bodies together take what they may.
    NoRoom,
    TooSlow,
    /// The client broke it off, or its framing is wrong.
    Broken(hyper::Error),
}

impl Default for Bodies {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MAX_BYTES)))
    }
}

impl Bodies {
    /// Reads a body. What does not come takes no memory, whatever length was said.
    ///
    /// # Errors
    /// [`Unread`]; what is left of the body can then still be discarded.
    pub(super) async fn read(&self, incoming: &mut Incoming) -> Result<ReadBody, Unread> {
        if incoming.size_hint().lower() > MAX_BODY_BYTES as u64 {
            return Err(Unread::TooLarge);
        }
        tokio::time::timeout(BODY_LIMIT, self.read_all(incoming)).await.unwrap_or(Err(Unread::TooSlow))
    }

    async fn read_all(&self, incoming: &mut Incoming) -> Result<ReadBody, Unread> {
        let mut bytes = BytesMut::new();
        let mut room: Option<OwnedSemaphorePermit> = None;
        while let Some(frame) = incoming.frame().await {
            let Ok(data) = frame.map_err(Unread::Broken)?.into_data() else { continue };
            if bytes.len() + data.len() > MAX_BODY_BYTES {
                return Err(Unread::TooLarge);
            }
            let more = self.0.clone().try_acquire_many_owned(data.len() as u32);
            let more = more.map_err(|_| Unread::NoRoom)?;
            match &mut room {
                Some(room) => room.merge(more),
                None => room = Some(more),
            }
            bytes.extend_from_slice(&data);
        }
        Ok(ReadBody { bytes: bytes.freeze(), _room: room })
    }
}

/// Reads what nobody wants, for a moment.
pub(super) async fn discard(mut body: Incoming) {
    let reading = async {
        let mut left = DISCARD_BYTES;
        while let Some(Ok(frame)) = body.frame().await {
            left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
            if left == 0 {
                break;
            }
        }
    };
    // Past it the client has had its chance.
    let _ = tokio::time::timeout(DISCARD_LIMIT, reading).await;
}
