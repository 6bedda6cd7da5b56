//! An origin without manners: what it does with each connection is a script's to say, byte by byte.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::LazyConfigAcceptor;
use tokio_util::task::AbortOnDropHandle;

use super::origin::{Authority, server};

/// A connection after TLS, if there is any.
pub(crate) trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Wire for T {}

/// A running origin, for http and https on one port. The first label of a host says what it does with TLS: `expired`,
/// `misnamed`, `self-signed`, `untrusted`, `tls-stall`, `tls-old`, `tls-refuses`, `tls-reset`, `tls-garbage`; those that start
/// with `h2-` speak HTTP/2, in so far as they do.
pub(crate) struct RawOrigin {
    pub(crate) addr: SocketAddr,
    pub(crate) authority: Authority,
    _accepting: AbortOnDropHandle<()>,
}

impl RawOrigin {
    /// Runs `script` for each connection, with the first label of the host that was asked for.
    pub(crate) async fn start<F, R>(script: F) -> Self
    where
        F: Fn(String, Box<dyn Wire>) -> R + Clone + Send + Sync + 'static,
        R: Future<Output = std::io::Result<()>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let authority = Authority::new();
        let certificates = Arc::new(Certificates::new(&authority));
        let accepting = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (script, certificates) = (script.clone(), certificates.clone());
                // However it ends: the other side may be gone.
                tokio::spawn(async move { connection(stream, &certificates, script).await });
            }
        });
        Self { addr, authority, _accepting: AbortOnDropHandle::new(accepting) }
    }
}

/// What each kind of host shows.
struct Certificates {
    good: Arc<ServerConfig>,
    good_h2: Arc<ServerConfig>,
    expired: Arc<ServerConfig>,
    misnamed: Arc<ServerConfig>,
    self_signed: Arc<ServerConfig>,
    untrusted: Arc<ServerConfig>,
}

impl Certificates {
    fn new(authority: &Authority) -> Self {
        let params = |name: &str| CertificateParams::new(vec![name.to_owned()]).unwrap();
        let good = params("*.example.com");
        let mut expired = good.clone();
        (expired.not_before, expired.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1));
        let mut good_h2 = authority.server(&good);
        good_h2.alpn_protocols = vec![b"h2".to_vec()];
        let key = KeyPair::generate().unwrap();
        Self {
            expired: Arc::new(authority.server(&expired)),
            misnamed: Arc::new(authority.server(&params("elsewhere.example.net"))),
            self_signed: Arc::new(server(&good.self_signed(&key).unwrap(), &key)),
            untrusted: Arc::new(Authority::new().server(&good)),
            good_h2: Arc::new(good_h2),
            good: Arc::new(authority.server(&good)),
        }
    }
}

async fn connection<F, R>(
    mut stream: TcpStream,
    certificates: &Certificates,
    script: F,
) -> std::io::Result<()>
where
    F: Fn(String, Box<dyn Wire>) -> R,
    R: Future<Output = std::io::Result<()>>,
{
    // A TLS connection starts with a handshake record, type 22; HTTP with a letter.
    let mut first = [0];
    if stream.peek(&mut first).await? == 0 {
        return Ok(());
    }
    if first[0] != 22 {
        let head = read_head(&mut stream).await?;
        let host = head.lines().find_map(|line| line.strip_prefix("host: ")).unwrap_or_default().to_owned();
        let name = first_label(&host);
        if name.starts_with("reset-") {
            // A connection that is closed like this is reset.
            stream.set_zero_linger()?;
        }
        return script(name, Box::new(stream)).await;
    }
    let mut client_hello = vec![0; 16 << 10];
    let peeked = stream.peek(&mut client_hello).await?;
    let name = ["tls-stall", "tls-old", "tls-refuses", "tls-reset", "tls-garbage"].into_iter().find(|name| {
        String::from_utf8_lossy(&client_hello[..peeked]).contains(&format!("{name}.example.com"))
    });
    if let Some(name) = name {
        stream.read_exact(&mut client_hello[..peeked]).await?;
        return without_tls(name, stream).await;
    }
    let start = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream).await?;
    let name = first_label(start.client_hello().server_name().unwrap_or_default());
    let config = match name.as_str() {
        "expired" => &certificates.expired,
        "misnamed" => &certificates.misnamed,
        "self-signed" => &certificates.self_signed,
        "untrusted" => &certificates.untrusted,
        name if name.starts_with("h2-") => &certificates.good_h2,
        _ => &certificates.good,
    };
    let mut stream = start.into_stream(config.clone()).await?;
    if !name.starts_with("h2-") {
        read_head(&mut stream).await?;
    }
    script(name, Box::new(stream)).await
}

/// What answers a client's hello, and is no handshake.
async fn without_tls(name: &str, mut stream: TcpStream) -> std::io::Result<()> {
    match name {
        "tls-stall" => {}
        "tls-old" => {
            // TLS 1.1, and a cipher suite of its time.
            let mut hello = vec![22, 3, 2, 0, 42, 2, 0, 0, 38, 3, 2];
            hello.extend([7; 32]);
            hello.extend([0, 0xc0, 0x14, 0]);
            stream.write_all(&hello).await?;
        }
        // A fatal alert: protocol version.
        "tls-refuses" => stream.write_all(&[21, 3, 1, 0, 2, 2, 70]).await?,
        "tls-reset" => {
            stream.set_zero_linger()?;
            return Ok(());
        }
        _ => stream.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await?,
    }
    until_closed(&mut stream).await
}

/// Holds a connection open, in silence, for as long as the other side does.
pub(crate) async fn until_closed(stream: &mut (impl AsyncRead + Unpin)) -> std::io::Result<()> {
    let mut ignored = [0; 1024];
    while stream.read(&mut ignored).await? > 0 {}
    Ok(())
}

/// Writes `bytes` again and again until the other side has had enough.
pub(crate) async fn without_end(
    stream: &mut (impl AsyncWrite + Unpin),
    bytes: &[u8],
    pause: Duration,
) -> std::io::Result<()> {
    loop {
        stream.write_all(bytes).await?;
        stream.flush().await?;
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
    }
}

/// Types of HTTP/2's frames, and flags of theirs (RFC 9113, section 6).
pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
const ACK: u8 = 1;

/// A frame of HTTP/2 (RFC 9113, section 4.1).
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// An HTTP/2 connection whose other side is a client, and what that allows to be sent (RFC 9113, section 6.9).
pub(crate) struct H2 {
    pub(crate) wire: Box<dyn Wire>,
    connection_bytes: i64,
    /// On a stream that begins.
    initial_bytes: i64,
    /// The stream of the request that came last, and what is allowed on it.
    stream: u32,
    stream_bytes: i64,
}

impl H2 {
    /// Takes a connection to where requests come: preface and settings.
    pub(crate) async fn accept(mut wire: Box<dyn Wire>) -> std::io::Result<Self> {
        let mut preface = [0; 24];
        wire.read_exact(&mut preface).await?;
        wire.write_all(&[frame(SETTINGS, 0, 0, &[]), frame(SETTINGS, ACK, 0, &[])].concat()).await?;
        wire.flush().await?;
        let (connection_bytes, initial_bytes) = (65_535, 65_535);
        Ok(Self { wire, connection_bytes, initial_bytes, stream: 0, stream_bytes: 0 })
    }

    /// Waits for the next request, and gives the number of its stream.
    pub(crate) async fn next_request(&mut self) -> std::io::Result<u32> {
        while self.next_frame().await? != HEADERS {}
        Ok(self.stream)
    }

    /// Fills the stream of the last request with DATA, as much and as fast as its windows allow, until that is reset.
    pub(crate) async fn fill(&mut self) -> std::io::Result<()> {
        let filling = vec![b'x'; 16 << 10];
        loop {
            let allowed = self.connection_bytes.min(self.stream_bytes).min(16 << 10);
            match usize::try_from(allowed) {
                Ok(length @ 1..) => {
                    self.wire.write_all(&frame(DATA, 0, self.stream, &filling[..length])).await?;
                    self.wire.flush().await?;
                    self.connection_bytes -= allowed;
                    self.stream_bytes -= allowed;
                }
                _ if self.next_frame().await? == RESET => return Ok(()),
                _ => {}
            }
        }
    }

    /// Reads a frame, and does what it asks for; gives its type.
    async fn next_frame(&mut self) -> std::io::Result<u8> {
        let mut head = [0; 9];
        self.wire.read_exact(&mut head).await?;
        let [_, _, _, kind, flags, stream @ ..] = head;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        self.wire.read_exact(&mut payload).await?;
        let number = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().unwrap());
        match kind {
            HEADERS => (self.stream, self.stream_bytes) = (u32::from_be_bytes(stream), self.initial_bytes),
            // SETTINGS_INITIAL_WINDOW_SIZE; the client says it once, before it asks for anything.
            SETTINGS => {
                for setting in payload.chunks_exact(6).filter(|setting| setting[..2] == [0, 4]) {
                    self.initial_bytes = number(&setting[2..]).into();
                }
            }
            PING if flags == 0 => {
                self.wire.write_all(&frame(PING, ACK, 0, &payload)).await?;
                self.wire.flush().await?;
            }
            WINDOW_UPDATE => match u32::from_be_bytes(stream) {
                0 => self.connection_bytes += i64::from(number(&payload)),
                stream if stream == self.stream => self.stream_bytes += i64::from(number(&payload)),
                _ => {}
            },
            _ => {}
        }
        Ok(kind)
    }
}

/// The request's head, in lower case.
async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> std::io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    Ok(String::from_utf8_lossy(&head).to_lowercase())
}

fn first_label(host: &str) -> String {
    host.split('.').next().unwrap_or_default().to_owned()
}
