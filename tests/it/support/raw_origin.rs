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

/// A frame of HTTP/2 (RFC 9113, section 4.1).
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Takes an HTTP/2 connection to where requests come: preface and settings.
pub(crate) async fn accept_h2(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> std::io::Result<()> {
    let mut preface = [0; 24];
    stream.read_exact(&mut preface).await?;
    stream.write_all(&[frame(4, 0, 0, &[]), frame(4, 1, 0, &[])].concat()).await?;
    stream.flush().await
}

/// Waits for the next request of an HTTP/2 connection, and gives the number of its stream. Pings are answered.
pub(crate) async fn next_h2_request(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
) -> std::io::Result<u32> {
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        stream.read_exact(&mut payload).await?;
        if (head[3], head[4]) == (6, 0) {
            stream.write_all(&frame(6, 1, 0, &payload)).await?;
            stream.flush().await?;
        }
        if head[3] == 1 {
            return Ok(u32::from_be_bytes([head[5], head[6], head[7], head[8]]));
        }
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
