//! A scripted origin that takes http and https on one port and remembers what it was asked.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rcgen::{CertificateParams, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tempfile::NamedTempFile;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// What a script makes of a request.
pub(crate) type Answer = Response<Full<Bytes>>;

/// One request as the origin saw it.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    /// Scheme, host, path and query as they were asked for.
    pub(crate) url: String,
    pub(crate) method: http::Method,
    pub(crate) version: http::Version,
    pub(crate) at: Instant,
    pub(crate) headers: http::HeaderMap,
}

/// A running origin, gone with this value.
pub(crate) struct Origin {
    pub(crate) addr: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
    connections: Arc<AtomicUsize>,
    /// The CA that signed its certificate, as `SSL_CERT_FILE` takes it.
    pub(crate) ca: NamedTempFile,
    task: tokio::task::JoinHandle<()>,
}

impl Origin {
    /// Answers every request with `answer`, over TLS for these host names.
    pub(crate) async fn start<F>(hosts: &[String], answer: F) -> Self
    where
        F: Fn(&Asked) -> Answer + Clone + Send + Sync + 'static,
    {
        Self::start_slow(hosts, Duration::ZERO, answer).await
    }

    /// As [`Origin::start`], but every answer takes this long.
    pub(crate) async fn start_slow<F>(hosts: &[String], delay: Duration, answer: F) -> Self
    where
        F: Fn(&Asked) -> Answer + Clone + Send + Sync + 'static,
    {
        let (tls, ca) = tls(hosts);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let connections = Arc::new(AtomicUsize::new(0));
        let (seen, count) = (asked.clone(), connections.clone());
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                count.fetch_add(1, Ordering::Relaxed);
                let (tls, seen, answer) = (tls.clone(), seen.clone(), answer.clone());
                tokio::spawn(async move {
                    // A TLS connection starts with a handshake record, type 22; HTTP with a letter.
                    let mut first = [0];
                    if stream.peek(&mut first).await.unwrap_or(0) == 0 {
                        return;
                    }
                    if first[0] == 22 {
                        if let Ok(stream) = tls.accept(stream).await {
                            serve(stream, "https", delay, seen, answer).await;
                        }
                    } else {
                        serve::<TcpStream, _>(stream, "http", delay, seen, answer).await;
                    }
                });
            }
        });
        Self { addr, asked, connections, ca, task }
    }

    /// What it was asked so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// How many connections it has taken so far.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Forgets what it was asked.
    pub(crate) fn forget(&self) {
        self.asked.lock().unwrap().clear();
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A short 200 that any cache may keep.
pub(crate) fn cacheable() -> Answer {
    Response::builder().header("cache-control", "public, max-age=3600").body(Full::from("hello")).unwrap()
}

/// An answer with this status and no body.
pub(crate) fn status(status: u16) -> Answer {
    Response::builder().status(status).body(Full::default()).unwrap()
}

async fn serve<S, F>(
    stream: S,
    scheme: &'static str,
    delay: Duration,
    seen: Arc<Mutex<Vec<Asked>>>,
    answer: F,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Fn(&Asked) -> Answer + Clone + Send + Sync + 'static,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let host = request.headers().get("host").and_then(|host| host.to_str().ok()).unwrap_or_default();
        let host = request.uri().authority().map_or(host, |authority| authority.as_str());
        let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
        let asked = Asked {
            url: format!("{scheme}://{host}{target}"),
            method: request.method().clone(),
            version: request.version(),
            at: Instant::now(),
            headers: request.headers().clone(),
        };
        let response = answer(&asked);
        seen.lock().unwrap().push(asked);
        async move {
            tokio::time::sleep(delay).await;
            Ok::<_, std::convert::Infallible>(response)
        }
    });
    // The other side may close in the middle; that is its business.
    let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
}

/// A certificate for these hosts, and the CA that signed it; HTTP/2 for who asks for it by ALPN.
fn tls(hosts: &[String]) -> (TlsAcceptor, NamedTempFile) {
    let authority = Authority::new();
    let mut config = authority.server(&CertificateParams::new(hosts.to_vec()).unwrap());
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    (TlsAcceptor::from(Arc::new(config)), authority.file)
}

/// A CA made for one test.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its certificate, as `SSL_CERT_FILE` takes it.
    pub(crate) file: NamedTempFile,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut ca = CertificateParams::new(Vec::new()).unwrap();
        // Else every CA of every test would have the same name, and be taken for each other.
        let name = format!("ca-{:x}", fastrand::u128(..));
        ca.distinguished_name.push(rcgen::DnType::CommonName, name);
        ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let file = NamedTempFile::new().unwrap();
        std::fs::write(file.path(), ca.self_signed(&key).unwrap().pem()).unwrap();
        Self { issuer: Issuer::new(ca, key), file }
    }

    /// A server's side of TLS, with a certificate that this CA has signed.
    pub(crate) fn server(&self, certificate: &CertificateParams) -> ServerConfig {
        let key = KeyPair::generate().unwrap();
        server(&certificate.signed_by(&key, &self.issuer).unwrap(), &key)
    }
}

/// A server's side of TLS.
pub(crate) fn server(certificate: &rcgen::Certificate, key: &KeyPair) -> ServerConfig {
    ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        )
        .unwrap()
}
