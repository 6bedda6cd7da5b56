//! Reads the body of one response: counts its bytes and drops them, and says whether the connection may be used again.
//!
//! hyper would hand the body over in pieces, by way of a task and three queues. Here one buffer takes it, or none: the
//! system drops what is only counted before it is copied.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use aws_lc_rs::digest;
use bytes::BytesMut;
use socket2::SockRef;
use tokio::io::{AsyncRead, Interest, ReadBuf};
use tokio::net::TcpStream;

use super::framing::{BadFraming, Framing};
use super::{Http1, SCRATCH, SCRATCH_BYTES};
use crate::verdict::Failure;
use crate::warm::tls::Stream;

/// Bytes that one read of a body asks for where they are copied.
const READ_BYTES: usize = 64 << 10;

/// A connection behind the head of a response. It may be used again once its body was read to the end.
pub(in crate::warm) struct BodyReader {
    stream: Stream,
    framing: Framing,
    persists: bool,
    /// What arrived with the head.
    received: BytesMut,
}

impl BodyReader {
    pub(super) fn new(stream: Stream, framing: Framing, persists: bool, received: BytesMut) -> Self {
        Self { stream, framing, persists, received }
    }

    /// How many bytes of the body are to come, where the head says so.
    pub(in crate::warm) fn remaining_bytes(&self) -> Option<u64> {
        match self.framing {
            Framing::Length(left) => Some(left),
            Framing::Chunked(_) | Framing::UntilClose => None,
        }
    }

    /// Reads on. Returns how many bytes of the body that were, never 0, and shows them to `hash`; none at the end.
    ///
    /// # Errors
    /// [`Failure::Truncated`] or [`Failure::BadChunk`] where the body does not end as its framing says; nothing more can
    /// be read then.
    pub(in crate::warm) fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        mut hash: Option<&mut digest::Context>,
    ) -> Poll<Result<Option<u64>, Failure>> {
        while !self.framing.is_at_end() {
            let count = if !self.received.is_empty() {
                let received = std::mem::take(&mut self.received);
                self.take(&received, &mut hash)?
            } else if let (Framing::Length(left), None, Stream::Left(tcp)) =
                (&mut self.framing, &hash, &self.stream)
            {
                let count = ready!(poll_drop(tcp, *left, context)).map_err(truncated)?;
                *left = left.saturating_sub(count);
                count
            } else {
                ready!(self.poll_copy(context, &mut hash))?
            };
            // A piece may be all framing.
            if count > 0 {
                return Poll::Ready(Ok(Some(count)));
            }
        }
        Poll::Ready(Ok(None))
    }

    fn poll_copy(
        &mut self,
        context: &mut Context<'_>,
        hash: &mut Option<&mut digest::Context>,
    ) -> Poll<Result<u64, Failure>> {
        SCRATCH.with_borrow_mut(|scratch| {
            let mut piece = ReadBuf::uninit(&mut scratch[..READ_BYTES]);
            ready!(Pin::new(&mut self.stream).poll_read(context, &mut piece)).map_err(truncated)?;
            if !piece.filled().is_empty() {
                return Poll::Ready(self.take(piece.filled(), hash));
            }
            Poll::Ready(match self.framing {
                Framing::UntilClose => {
                    self.framing = Framing::Length(0);
                    Ok(0)
                }
                _ => Err(truncated(io::ErrorKind::UnexpectedEof.into())),
            })
        })
    }

    /// Returns how many of these bytes, which are the next, belong to the body.
    fn take(&mut self, mut bytes: &[u8], hash: &mut Option<&mut digest::Context>) -> Result<u64, Failure> {
        let taken = self.framing.take(&mut bytes, |data| {
            if let Some(hash) = hash {
                hash.update(data);
            }
        });
        // Bytes behind the body belong to no request of ours.
        self.persists &= bytes.is_empty();
        taken.map_err(|BadFraming(why)| {
            tracing::debug!("body: {why}");
            Failure::BadChunk
        })
    }

    /// Returns the connection where it may be used again: the body was read to its end, and nothing came behind it.
    pub(in crate::warm) fn into_idle(self) -> Option<Http1> {
        let is_reusable = self.persists && self.framing.is_at_end() && self.received.is_empty();
        is_reusable.then(|| Http1(self.stream))
    }
}

fn truncated(error: io::Error) -> Failure {
    tracing::debug!("body: {error}");
    Failure::Truncated
}

/// Has the system drop the next bytes of the body, `left` at most. Returns how many.
fn poll_drop(tcp: &TcpStream, left: u64, context: &mut Context<'_>) -> Poll<io::Result<u64>> {
    let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(SCRATCH_BYTES);
    loop {
        ready!(tcp.poll_read_ready(context))?;
        // Linux drops the bytes of a stream that is read so, and writes nothing (tcp(7), MSG_TRUNC); others write them.
        let read = tcp.try_io(Interest::READABLE, || {
            SCRATCH.with_borrow_mut(|scratch| {
                SockRef::from(tcp).recv_with_flags(&mut scratch[..wanted], libc::MSG_TRUNC)
            })
        });
        match read {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Ok(0) => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
            read => return Poll::Ready(read.map(|read| read as u64)),
        }
    }
}
