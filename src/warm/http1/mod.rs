//! The HTTP/1.1 client: sends one request without content, reads the head of its response, and counts and drops the body
//! behind it (RFC 9112).
//!
//! `head` writes requests and parses response heads, `framing` finds the end of a body, [`body`] reads it. What is
//! accepted and refused, the limits, and why this is not hyper stand in docs/http1.md. HTTP/2 is not here.

mod body;
mod framing;
mod head;

use std::cell::RefCell;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use bytes::BytesMut;
use http::StatusCode;
use http::response::Parts;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};

pub(super) use body::BodyReader;
use framing::{BadFraming, Framing};

use super::client::{Asked, MAX_INTERIM_RESPONSES};
use super::tls::Stream;

/// Bytes of the longest response head that is read, its status line and last empty line included.
pub(super) const MAX_HEAD_BYTES: usize = 32 << 10;
/// Bytes that one read of a head asks for; a small body comes along with it.
const HEAD_READ_BYTES: usize = 8 << 10;
/// Bytes of the buffer that each thread reads into.
const SCRATCH_BYTES: usize = 1 << 20;

thread_local! {
    /// Where responses are read to, each read over the one before. Most of it stays address space alone: what the system
    /// drops is not written.
    static SCRATCH: RefCell<Box<[MaybeUninit<u8>]>> = RefCell::new(Box::new_uninit_slice(SCRATCH_BYTES));
    /// Where request heads are written.
    static REQUEST: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A connection on which no request is under way.
pub(super) struct Http1(Stream);

/// Why there is no response head.
#[derive(Debug)]
pub(super) enum HeadError {
    /// The connection was closed or broke before a byte of the response arrived.
    Gone(io::Error),
    /// It was closed or broke within the head.
    Broken(io::Error),
    /// The head is longer than [`MAX_HEAD_BYTES`], has too many fields, or follows too many interim responses.
    TooLarge,
    /// What arrived is not HTTP/1, or two readers may disagree on where its body ends.
    NotHttp(&'static str),
}

impl Http1 {
    pub(super) fn new(stream: Stream) -> Self {
        Self(stream)
    }

    /// Whether the connection may take a request, as far as can be seen: nothing arrived while it was idle, not even its end.
    pub(super) fn is_quiet(&mut self) -> bool {
        let mut byte = [0];
        match &mut self.0 {
            Stream::Left(tcp) => {
                tcp.try_read(&mut byte).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
            }
            Stream::Right(tls) => {
                let mut context = Context::from_waker(Waker::noop());
                Pin::new(tls).poll_read(&mut context, &mut ReadBuf::new(&mut byte)).is_pending()
            }
        }
    }

    /// Sends a request and reads the head of its response. Skips interim responses (1xx) but 101, behind which comes no
    /// other response. Has no time limit of its own.
    ///
    /// # Errors
    /// [`HeadError`]; the connection is closed then.
    pub(super) async fn exchange(mut self, request: &Asked<'_>) -> Result<(Parts, BodyReader), HeadError> {
        let unsent = poll_fn(|context| self.poll_send(context, request)).await.map_err(HeadError::Gone)?;
        self.0.write_all(&unsent).await.map_err(HeadError::Gone)?;
        self.0.flush().await.map_err(HeadError::Gone)?;
        let mut received = BytesMut::new();
        let (mut interim, mut searched) = (0, 0);
        let mut response = loop {
            let Some(end) = head::end(&received, &mut searched) else {
                if !head::may_begin(&received) {
                    return Err(HeadError::NotHttp("not an HTTP/1 response"));
                }
                if received.len() >= MAX_HEAD_BYTES {
                    return Err(HeadError::TooLarge);
                }
                let read = poll_fn(|context| self.poll_receive(context, &mut received)).await;
                let is_first = received.is_empty() && interim == 0;
                match read {
                    Ok(0) if is_first => return Err(HeadError::Gone(io::ErrorKind::UnexpectedEof.into())),
                    Ok(0) => return Err(HeadError::Broken(io::ErrorKind::UnexpectedEof.into())),
                    Ok(_) => continue,
                    Err(error) if received.is_empty() => return Err(HeadError::Gone(error)),
                    Err(error) => return Err(HeadError::Broken(error)),
                }
            };
            let head = head::parse(&mut received, end)?;
            if !head.status.is_informational() || head.status == StatusCode::SWITCHING_PROTOCOLS {
                break head;
            }
            interim += 1;
            searched = 0;
            if interim > MAX_INTERIM_RESPONSES {
                return Err(HeadError::TooLarge);
            }
        };
        let (framing, persists) =
            Framing::of(request.method, &mut response).map_err(|BadFraming(why)| HeadError::NotHttp(why))?;
        Ok((response, BodyReader::new(self.0, framing, persists, received)))
    }

    /// Writes the request to the connection; returns the bytes that it did not take at once, which are seldom any.
    fn poll_send(&mut self, context: &mut Context<'_>, request: &Asked<'_>) -> Poll<io::Result<Vec<u8>>> {
        REQUEST.with_borrow_mut(|bytes| {
            bytes.clear();
            head::write(request, bytes);
            Poll::Ready(match Pin::new(&mut self.0).poll_write(context, bytes) {
                Poll::Ready(sent) => sent.map(|sent| bytes.split_off(sent)),
                Poll::Pending => Ok(bytes.clone()),
            })
        })
    }

    /// Appends what arrives next to `received`; returns how many bytes, 0 at the end of the stream.
    fn poll_receive(
        &mut self,
        context: &mut Context<'_>,
        received: &mut BytesMut,
    ) -> Poll<io::Result<usize>> {
        SCRATCH.with_borrow_mut(|scratch| {
            let mut piece = ReadBuf::uninit(&mut scratch[..HEAD_READ_BYTES]);
            ready!(Pin::new(&mut self.0).poll_read(context, &mut piece))?;
            received.extend_from_slice(piece.filled());
            Poll::Ready(Ok(piece.filled().len()))
        })
    }
}

impl fmt::Display for HeadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone(error) => write!(f, "closed before an answer: {error}"),
            Self::Broken(error) => write!(f, "broken off in the head: {error}"),
            Self::TooLarge => f.write_str("the head is too large"),
            Self::NotHttp(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for HeadError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Gone(error) | Self::Broken(error) => Some(error),
            Self::TooLarge | Self::NotHttp(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use aws_lc_rs::digest;
    use http::{HeaderMap, Method};
    use tokio::io::AsyncReadExt;
    use tokio::net::{TcpListener, TcpStream};
    use url::Url;

    use super::*;
    use crate::verdict::Failure;

    /// What became of one response: its status, its content's length, and whether the connection is of use again.
    type Came = Result<(u16, Result<u64, Failure>, bool), HeadError>;

    /// A response that comes in these pieces, each once the one before was on its way, and then the end unless it `stays`.
    async fn came(pieces: &[&[u8]], stays: bool, is_hashed: bool) -> Came {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut edge, _) = listener.accept().await.unwrap();
        edge.set_nodelay(true).unwrap();
        let url = Url::parse("http://example.com/a?b#c").unwrap();
        let asked = Asked { method: &Method::GET, url: &url, headers: Cow::Owned(HeaderMap::new()) };
        let sending = async {
            let mut request = vec![0; 1024];
            let length = edge.read(&mut request).await.unwrap();
            assert_eq!(&request[..length], b"GET /a?b HTTP/1.1\r\nhost: example.com\r\n\r\n");
            for piece in pieces {
                // Whoever has enough leaves.
                let _ = edge.write_all(piece).await;
                tokio::task::yield_now().await;
            }
            if !stays {
                edge.shutdown().await.unwrap();
            }
            edge
        };
        let reading = async {
            let (head, mut reading) = Http1::new(Stream::Left(tcp)).exchange(&asked).await?;
            let mut hash = is_hashed.then(|| digest::Context::new(&digest::SHA256));
            let mut length = 0;
            let content = loop {
                match poll_fn(|context| reading.poll_read(context, hash.as_mut())).await {
                    Ok(Some(count)) => length += count,
                    Ok(None) => break Ok(length),
                    Err(failure) => break Err(failure),
                }
            };
            let is_of_use = reading.into_idle().is_some_and(|mut http1| http1.is_quiet());
            Ok((head.status.as_u16(), content, is_of_use))
        };
        // The edge is held until all was read.
        tokio::join!(sending, reading).1
    }

    async fn came_whole(response: &[u8]) -> Came {
        came(&[response], true, false).await
    }

    #[tokio::test]
    async fn a_response_is_the_same_in_whatever_pieces_it_comes() {
        let long = [&b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n"[..], &[b'x'; 100_000]].concat();
        let hints =
            b"HTTP/1.1 103 Early Hints\r\nlink: <a>\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi";
        let chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nt: u\r\n\r\n";
        let bare = b"HTTP/1.1 200\ncontent-length: 3\n\nabc";
        for (response, length) in [(&long[..], 100_000), (hints, 2), (chunked, 5), (bare, 3)] {
            for piece_bytes in [1, 7, 60, 1 << 20] {
                let pieces: Vec<&[u8]> = match response.len() / piece_bytes {
                    ..2_000 => response.chunks(piece_bytes).collect(),
                    _ => continue,
                };
                for is_hashed in [false, true] {
                    let came = came(&pieces, true, is_hashed).await;
                    assert!(
                        matches!(came, Ok((200, Ok(told), true)) if told == length),
                        "{length} {piece_bytes} {came:?}"
                    );
                }
            }
        }
    }

    #[tokio::test]
    async fn a_connection_is_of_use_again_where_nothing_is_left_on_it() {
        let head = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n";
        for (response, is_of_use) in [
            (format!("{head}\r\nhi"), true),
            (format!("{head}connection: close\r\n\r\nhi"), false),
            (format!("{head}\r\nhi!"), false),
            (format!("{head}transfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"), false),
            ("HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nhi".to_owned(), false),
            ("HTTP/1.1 204 No Content\r\n\r\n".to_owned(), true),
        ] {
            let came = came_whole(response.as_bytes()).await;
            assert!(matches!(&came, Ok((_, Ok(_), told)) if *told == is_of_use), "{response:?}: {came:?}");
        }
        let ended = came(&[b"HTTP/1.1 200 OK\r\n\r\nto the end"], false, false).await;
        assert!(matches!(ended, Ok((200, Ok(10), false))), "{ended:?}");
    }

    #[tokio::test]
    async fn what_is_no_response_or_too_much_of_one_is_told_apart_at_once() {
        let ok = "HTTP/1.1 200 OK\r\n";
        // The connection stays open: none of these is waited for.
        for (response, why) in [
            ("SSH-2.0-OpenSSH_9.2\r\n".to_owned(), "not an HTTP/1 response"),
            ("HTTP/2 200\r\n".to_owned(), "not an HTTP/1 response"),
            (format!("{ok}no colon\r\n\r\n"), "not an HTTP/1 response"),
            (format!("{ok} a: b\r\n\r\n"), "not an HTTP/1 response"),
            ("\r\n\r\nHTTP/1.1 200 OK\r\n\r\n".to_owned(), "empty lines before it"),
            (format!("{ok}content-length: 1\r\ncontent-length: 2\r\n\r\n"), "two lengths"),
            (format!("{ok}a: {}\r\n\r\n", "b".repeat(MAX_HEAD_BYTES)), "the head is too large"),
            (format!("{ok}{}\r\n", "a: b\r\n".repeat(head::MAX_FIELDS + 1)), "the head is too large"),
            ("HTTP/1.1 103 Hm\r\n\r\n".repeat(20), "the head is too large"),
        ] {
            let told = came_whole(response.as_bytes()).await.map_err(|error| error.to_string());
            assert_eq!(told.err().as_deref(), Some(why), "{response:.60}");
        }
        let switched = came_whole(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: h2c\r\n\r\n\0\0").await;
        assert!(matches!(switched, Ok((101, Ok(0), false))), "{switched:?}");
    }

    #[tokio::test]
    async fn an_end_too_soon_is_none() {
        let cut = |response: &'static [u8]| async move { came(&[response], false, false).await };
        assert!(matches!(cut(b"").await, Err(HeadError::Gone(_))));
        assert!(matches!(cut(b"HTTP/1.1 200 OK\r\n").await, Err(HeadError::Broken(_))));
        assert!(matches!(cut(b"HTTP/1.1 103 Hm\r\n\r\n").await, Err(HeadError::Broken(_))));
        let head = "HTTP/1.1 200 OK\r\n";
        for content in ["content-length: 5\r\n\r\nhell", "transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n"] {
            for is_hashed in [false, true] {
                let came = came(&[head.as_bytes(), content.as_bytes()], false, is_hashed).await;
                assert!(matches!(came, Ok((200, Err(Failure::Truncated), false))), "{content:?}: {came:?}");
            }
        }
        let bad = came_whole(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n").await;
        assert!(matches!(bad, Ok((200, Err(Failure::BadChunk), false))), "{bad:?}");
    }
}
