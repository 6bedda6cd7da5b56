//! HTTP/1.1 as far as warming needs it (RFC 9112): a request without content goes out, a head comes back, and the content
//! behind it is counted and dropped.
//!
//! hyper would hand the content over in pieces, by way of a task and three queues. Here one buffer takes it, or none: what is
//! only counted is dropped by the system before it is copied. httparse reads heads, as it does for hyper.

use std::cell::RefCell;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use aws_lc_rs::digest;
use bytes::BytesMut;
use http::response::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, Version};
use httparse::{Header, ParserConfig, Status};
use memchr::memmem;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, Interest, ReadBuf};
use tokio::net::TcpStream;

use super::client::{Asked, MAX_INTERIM_RESPONSES};
use super::framing::{BadFraming, Framing};
use super::tls::Stream;
use crate::verdict::Failure;

/// Response heads beyond this are not read.
pub(super) const MAX_HEAD_BYTES: usize = 32 << 10;
const MAX_HEADERS: usize = 100;
/// What is read at once of a head; a small object comes along with it.
const HEAD_BYTES: usize = 8 << 10;
/// What is read at once of a content.
const CONTENT_BYTES: usize = 64 << 10;
/// What the system drops at once of one that is only counted.
const DROPPED_BYTES: usize = 1 << 20;

thread_local! {
    /// Where contents are read to, each piece over the one before. Most of it is address space alone: what the system drops is
    /// not written.
    static SCRATCH: RefCell<Box<[MaybeUninit<u8>]>> = RefCell::new(Box::new_uninit_slice(DROPPED_BYTES));
    /// Where requests are written out.
    static REQUEST: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A connection on which nothing is under way.
pub(super) struct Http1(Stream);

/// A connection behind the head of a response. It is of use again once its content was read to the end.
pub(super) struct Reading {
    stream: Stream,
    framing: Framing,
    persists: bool,
    /// What came with the head.
    received: BytesMut,
}

/// Why there is no head.
#[derive(Debug)]
pub(super) enum NoHead {
    /// The connection was gone before anything came.
    Gone(io::Error),
    /// It was gone in the middle.
    Broken(io::Error),
    /// The head, or those of interim responses before it, are beyond what is read.
    TooLarge,
    /// What came is not HTTP/1.
    NotHttp(&'static str),
}

impl Http1 {
    pub(super) fn new(stream: Stream) -> Self {
        Self(stream)
    }

    /// Whether it may take a request, as far as that can be told: nothing came while it rested, not even its end.
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

    /// Sends a request and reads the head of its response. Interim responses are passed over.
    ///
    /// # Errors
    /// [`NoHead`].
    pub(super) async fn ask(mut self, asked: &Asked<'_>) -> Result<(Parts, Reading), NoHead> {
        self.send(asked).await.map_err(NoHead::Gone)?;
        let mut received = BytesMut::new();
        let (mut interim, mut searched) = (0, 0);
        let mut response = loop {
            let Some(end) = end_of_head(&received, &mut searched) else {
                if !may_begin_head(&received) {
                    return Err(NoHead::NotHttp("not an HTTP/1 response"));
                }
                match self.more_of_head(&mut received).await? {
                    0 if received.is_empty() && interim == 0 => {
                        return Err(NoHead::Gone(io::ErrorKind::UnexpectedEof.into()));
                    }
                    0 => return Err(NoHead::Broken(io::ErrorKind::UnexpectedEof.into())),
                    _ => continue,
                }
            };
            let head = parse(&mut received, end)?;
            // Behind a switch comes no other response.
            if !head.status.is_informational() || head.status == StatusCode::SWITCHING_PROTOCOLS {
                break head;
            }
            interim += 1;
            searched = 0;
            if interim > MAX_INTERIM_RESPONSES {
                return Err(NoHead::TooLarge);
            }
        };
        let (framing, persists) =
            Framing::of(asked.method, &mut response).map_err(|BadFraming(why)| NoHead::NotHttp(why))?;
        Ok((response, Reading { stream: self.0, framing, persists, received }))
    }

    async fn more_of_head(&mut self, received: &mut BytesMut) -> Result<usize, NoHead> {
        if received.len() >= MAX_HEAD_BYTES {
            return Err(NoHead::TooLarge);
        }
        let read = poll_fn(|context| {
            SCRATCH.with_borrow_mut(|scratch| {
                let mut piece = ReadBuf::uninit(&mut scratch[..HEAD_BYTES]);
                let read = ready!(Pin::new(&mut self.0).poll_read(context, &mut piece));
                received.extend_from_slice(piece.filled());
                Poll::Ready(read.map(|()| piece.filled().len()))
            })
        });
        let read = read.await;
        read.map_err(|error| if received.is_empty() { NoHead::Gone(error) } else { NoHead::Broken(error) })
    }

    async fn send(&mut self, asked: &Asked<'_>) -> io::Result<()> {
        // Most go out at once, and are kept nowhere.
        let unsent = poll_fn(|context| {
            REQUEST.with_borrow_mut(|request| {
                request.clear();
                write(asked, request);
                Poll::Ready(match Pin::new(&mut self.0).poll_write(context, request) {
                    Poll::Ready(sent) => sent.map(|sent| request.split_off(sent)),
                    Poll::Pending => Ok(request.clone()),
                })
            })
        });
        let unsent = unsent.await?;
        self.0.write_all(&unsent).await?;
        self.0.flush().await
    }
}

/// Writes the request out as it is sent.
fn write(asked: &Asked<'_>, head: &mut Vec<u8>) {
    let mut put = |parts: &[&[u8]]| parts.iter().for_each(|part| head.extend_from_slice(part));
    put(&[asked.method.as_str().as_bytes(), b" ", asked.target().as_bytes()]);
    put(&[b" HTTP/1.1\r\nhost: ", asked.authority().as_bytes(), b"\r\n"]);
    for (name, value) in &*asked.headers {
        put(&[name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"]);
    }
    put(&[b"\r\n"]);
}

/// Whether these may be the first bytes of a head: what is none is not waited for.
fn may_begin_head(received: &[u8]) -> bool {
    const BEGINNING: &[u8] = b"HTTP/1.";
    let behind_empty_lines =
        received.iter().position(|byte| !b"\r\n".contains(byte)).unwrap_or(received.len());
    received[behind_empty_lines..].iter().zip(BEGINNING).all(|(byte, wanted)| byte == wanted)
}

/// Where the first empty line ends; `searched` bytes hold none.
fn end_of_head(received: &[u8], searched: &mut usize) -> Option<usize> {
    let from = searched.saturating_sub(3);
    *searched = received.len();
    // Line feeds alone are taken for ends of lines (RFC 9112, section 2.2).
    let with_return = memmem::find(&received[from..], b"\n\r\n").map(|at| from + at + 3);
    let behind = with_return.map_or(received.len(), |end| end - 1);
    let without = memmem::find(&received[from..behind], b"\n\n").map(|at| from + at + 2);
    without.or(with_return)
}

/// Takes a head of so many bytes off what has come.
fn parse(received: &mut BytesMut, end: usize) -> Result<Parts, NoHead> {
    if end > MAX_HEAD_BYTES {
        return Err(NoHead::TooLarge);
    }
    let bytes = received.split_to(end).freeze();
    let mut lines = [const { MaybeUninit::<Header<'_>>::uninit() }; MAX_HEADERS];
    let mut head = httparse::Response::new(&mut []);
    let parsed = ParserConfig::default().parse_response_with_uninit_headers(&mut head, &bytes, &mut lines);
    match parsed {
        Ok(Status::Complete(_)) => {}
        Ok(Status::Partial) => return Err(NoHead::NotHttp("empty lines before it")),
        Err(httparse::Error::TooManyHeaders) => return Err(NoHead::TooLarge),
        Err(_) => return Err(NoHead::NotHttp("not an HTTP/1 response")),
    }
    let mut headers = HeaderMap::with_capacity(head.headers.len());
    for line in &*head.headers {
        let name = HeaderName::from_bytes(line.name.as_bytes());
        let value = HeaderValue::from_maybe_shared(bytes.slice_ref(line.value));
        let (Ok(name), Ok(value)) = (name, value) else {
            return Err(NoHead::NotHttp("a header that is none"));
        };
        headers.append(name, value);
    }
    let status = head.code.and_then(|code| StatusCode::from_u16(code).ok());
    let mut response = Response::new(()).into_parts().0;
    response.status = status.ok_or(NoHead::NotHttp("a status that is none"))?;
    response.version = if head.version == Some(0) { Version::HTTP_10 } else { Version::HTTP_11 };
    response.headers = headers;
    Ok(response)
}

impl Reading {
    /// How many bytes of content are to come, where that is known.
    pub(super) fn left_bytes(&self) -> Option<u64> {
        match self.framing {
            Framing::Length(left) => Some(left),
            Framing::Chunked(_) | Framing::UntilClose => None,
        }
    }

    /// Reads on. How many bytes of content it was, which `hash` gets; none at the end.
    ///
    /// # Errors
    /// Where it does not end as its framing says; nothing more can be read then.
    pub(super) async fn read(
        &mut self,
        mut hash: Option<&mut digest::Context>,
    ) -> Result<Option<u64>, Failure> {
        while !self.framing.is_at_end() {
            let count = if !self.received.is_empty() {
                let received = std::mem::take(&mut self.received);
                self.take(&received, &mut hash)?
            } else if let (Framing::Length(left), None, Stream::Left(tcp)) =
                (&mut self.framing, &hash, &self.stream)
            {
                let count = drop_some(tcp, *left).await.map_err(broken_off)?;
                *left = left.saturating_sub(count);
                count
            } else {
                poll_fn(|context| self.poll_some(context, &mut hash)).await?
            };
            // A piece may be all framing.
            if count > 0 {
                return Ok(Some(count));
            }
        }
        Ok(None)
    }

    fn poll_some(
        &mut self,
        context: &mut Context<'_>,
        hash: &mut Option<&mut digest::Context>,
    ) -> Poll<Result<u64, Failure>> {
        SCRATCH.with_borrow_mut(|scratch| {
            let mut piece = ReadBuf::uninit(&mut scratch[..CONTENT_BYTES]);
            ready!(Pin::new(&mut self.stream).poll_read(context, &mut piece)).map_err(broken_off)?;
            if !piece.filled().is_empty() {
                return Poll::Ready(self.take(piece.filled(), hash));
            }
            Poll::Ready(match self.framing {
                Framing::UntilClose => {
                    self.framing = Framing::Length(0);
                    Ok(0)
                }
                _ => Err(broken_off(io::ErrorKind::UnexpectedEof.into())),
            })
        })
    }

    /// How many of these bytes, which are the next, are content.
    fn take(&mut self, mut bytes: &[u8], hash: &mut Option<&mut digest::Context>) -> Result<u64, Failure> {
        let taken = self.framing.take(&mut bytes, |data| {
            if let Some(hash) = hash {
                hash.update(data);
            }
        });
        // What comes behind the content nobody asked for.
        self.persists &= bytes.is_empty();
        taken.map_err(|BadFraming(why)| {
            tracing::debug!("content: {why}");
            Failure::BadChunk
        })
    }

    /// The connection, where it may be used again: the content was read to its end, and nothing came behind it.
    pub(super) fn into_rested(self) -> Option<Http1> {
        let is_of_use = self.persists && self.framing.is_at_end() && self.received.is_empty();
        is_of_use.then(|| Http1(self.stream))
    }
}

fn broken_off(error: io::Error) -> Failure {
    tracing::debug!("content: {error}");
    Failure::Truncated
}

/// Waits for content and has the system drop it. Gives how many bytes it was.
async fn drop_some(tcp: &TcpStream, left: u64) -> io::Result<u64> {
    let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(DROPPED_BYTES);
    let read = tcp.async_io(Interest::READABLE, || {
        // Linux drops the bytes of a stream that is read so, and writes nothing (tcp(7), MSG_TRUNC); others write them.
        let read = |scratch: &mut Box<[_]>| {
            SockRef::from(tcp).recv_with_flags(&mut scratch[..wanted], libc::MSG_TRUNC)
        };
        SCRATCH.with_borrow_mut(read)
    });
    match read.await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        read => Ok(read as u64),
    }
}

impl fmt::Display for NoHead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone(error) => write!(f, "closed before an answer: {error}"),
            Self::Broken(error) => write!(f, "broken off in the head: {error}"),
            Self::TooLarge => f.write_str("the head is too large"),
            Self::NotHttp(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for NoHead {
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

    use http::{HeaderMap, Method};
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;
    use url::Url;

    use super::*;

    /// What became of one response: its status, its content's length, and whether the connection is of use again.
    type Came = Result<(u16, Result<u64, Failure>, bool), NoHead>;

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
            let (head, mut reading) = Http1::new(Stream::Left(tcp)).ask(&asked).await?;
            let mut hash = is_hashed.then(|| digest::Context::new(&digest::SHA256));
            let mut length = 0;
            let content = loop {
                match reading.read(hash.as_mut()).await {
                    Ok(Some(count)) => length += count,
                    Ok(None) => break Ok(length),
                    Err(failure) => break Err(failure),
                }
            };
            let is_of_use = reading.into_rested().is_some_and(|mut http1| http1.is_quiet());
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
            (format!("{ok}a: b\r\n c\r\n\r\n"), "not an HTTP/1 response"),
            ("\r\n\r\nHTTP/1.1 200 OK\r\n\r\n".to_owned(), "empty lines before it"),
            (format!("{ok}content-length: 1\r\ncontent-length: 2\r\n\r\n"), "two lengths"),
            (format!("{ok}a: {}\r\n\r\n", "b".repeat(MAX_HEAD_BYTES)), "the head is too large"),
            (format!("{ok}{}\r\n", "a: b\r\n".repeat(MAX_HEADERS + 1)), "the head is too large"),
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
        assert!(matches!(cut(b"").await, Err(NoHead::Gone(_))));
        assert!(matches!(cut(b"HTTP/1.1 200 OK\r\n").await, Err(NoHead::Broken(_))));
        assert!(matches!(cut(b"HTTP/1.1 103 Hm\r\n\r\n").await, Err(NoHead::Broken(_))));
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
