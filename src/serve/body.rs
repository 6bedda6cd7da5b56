//! Reading what a client sends: up to its limits in bytes and time, and with bounded memory for all pushes together.

use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::poll;
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

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
    Broken(Box<dyn std::error::Error + Send + Sync>),
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
    pub(super) async fn read<B>(&self, incoming: &mut B) -> Result<ReadBody, Unread>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        if incoming.size_hint().lower() > MAX_BODY_BYTES as u64 {
            return Err(Unread::TooLarge);
        }
        let mut reading = pin!(self.read_all(incoming));
        match poll!(reading.as_mut()) {
            // Most come with their heads, and need no clock.
            Poll::Ready(read) => read,
            Poll::Pending => timeout(BODY_LIMIT, reading).await.unwrap_or(Err(Unread::TooSlow)),
        }
    }

    async fn read_all<B>(&self, incoming: &mut B) -> Result<ReadBody, Unread>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let mut bytes = BytesMut::new();
        let mut room: Option<OwnedSemaphorePermit> = None;
        while let Some(frame) = incoming.frame().await {
            let Ok(data) = frame.map_err(|error| Unread::Broken(error.into()))?.into_data() else { continue };
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
    let _ = timeout(DISCARD_LIMIT, reading).await;
}

#[cfg(test)]
mod tests {
    use std::io;

    use http_body::Frame;
    use http_body_util::{Full, StreamBody};
    use tokio::sync::mpsc;
    use tokio::time::Instant;

    use super::*;

    type Piece = Result<Frame<Bytes>, io::Error>;

    /// A body without a said length, and where its pieces go in.
    fn piecemeal() -> (mpsc::Sender<Piece>, impl Body<Data = Bytes, Error = io::Error> + Unpin) {
        let (pieces, receiver) = mpsc::channel::<Piece>(8);
        let stream = futures_util::stream::unfold(receiver, |mut receiver| async move {
            receiver.recv().await.map(|piece| (piece, receiver))
        });
        (pieces, StreamBody::new(Box::pin(stream)))
    }

    fn data(bytes: usize) -> Piece {
        Ok(Frame::data(vec![b'x'; bytes].into()))
    }

    #[tokio::test]
    async fn a_body_up_to_the_limit_is_read_and_a_longer_one_is_not() {
        let bodies = Bodies::default();
        let read = bodies.read(&mut Full::from(vec![b'x'; MAX_BODY_BYTES])).await.unwrap();
        assert_eq!(read.bytes.len(), MAX_BODY_BYTES);
        let said = bodies.read(&mut Full::from(vec![b'x'; MAX_BODY_BYTES + 1])).await;
        assert!(matches!(said, Err(Unread::TooLarge)));
        let (pieces, mut body) = piecemeal();
        pieces.send(data(MAX_BODY_BYTES)).await.unwrap();
        pieces.send(data(1)).await.unwrap();
        assert!(matches!(bodies.read(&mut body).await, Err(Unread::TooLarge)), "without waiting for its end");
    }

    #[tokio::test]
    async fn bodies_share_what_there_is_for_as_long_as_they_live() {
        let bodies = Bodies(Arc::new(Semaphore::new(10)));
        let first = bodies.read(&mut Full::from("123456")).await.unwrap();
        assert!(matches!(bodies.read(&mut Full::from("12345")).await, Err(Unread::NoRoom)));
        let second = bodies.read(&mut Full::from("1234")).await.unwrap();
        assert!(matches!(bodies.read(&mut Full::from("1")).await, Err(Unread::NoRoom)));
        drop((first, second));
        let (pieces, mut body) = piecemeal();
        for _ in 0..5 {
            pieces.send(data(2)).await.unwrap();
        }
        drop(pieces);
        let whole = bodies.read(&mut body).await.unwrap();
        assert_eq!((whole.bytes.len(), bodies.0.available_permits()), (10, 0));
        drop(whole);
        assert_eq!(bodies.0.available_permits(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_trickles_is_given_up_and_one_that_breaks_says_so() {
        let bodies = Bodies::default();
        let (pieces, mut body) = piecemeal();
        tokio::spawn(async move {
            while pieces.send(data(1)).await.is_ok() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
        let started = Instant::now();
        assert!(matches!(bodies.read(&mut body).await, Err(Unread::TooSlow)));
        assert_eq!(started.elapsed(), BODY_LIMIT);
        assert_eq!(bodies.0.available_permits(), MAX_BYTES, "nothing is kept of it");
        let (pieces, mut body) = piecemeal();
        pieces.send(Err(io::ErrorKind::ConnectionReset.into())).await.unwrap();
        assert!(matches!(bodies.read(&mut body).await, Err(Unread::Broken(_))));
    }
}
