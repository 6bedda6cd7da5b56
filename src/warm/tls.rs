//! TLS to origins: the system's CA certificates, HTTP/2 or HTTP/1.1 by ALPN, and a limit to the handshake.

use std::error::Error;
use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, Error as TlsError, PeerIncompatible, RootCertStore,
};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;
use url::Url;

use super::connect::{ConnectError, Connector};

/// A connection, without TLS or with it.
pub(super) type Stream = Either<TcpStream, Box<TlsStream<TcpStream>>>;

/// The most that is told of a reason which has no words of ours.
const MAX_REASON_CHARS: usize = 200;

/// Connects to `http` and `https` URLs through [`Connector`]; a handshake is over within its limit.
#[derive(Clone)]
pub(super) struct TlsConnector {
    tcp: Connector,
    config: Arc<ClientConfig>,
    limit: Duration,
}

/// TLS that trusts the system's CA certificates, or those of `SSL_CERT_FILE`, which are read once.
///
/// # Errors
/// Where the system has no CA certificates at all.
pub(crate) fn system_config() -> anyhow::Result<ClientConfig> {
    static ROOTS: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    let roots = match ROOTS.get() {
        Some(roots) => roots.clone(),
        None => {
            let roots = Arc::new(system_roots()?);
            ROOTS.get_or_init(|| roots).clone()
        }
    };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

fn system_roots() -> anyhow::Result<RootCertStore> {
    #[expect(clippy::disallowed_methods, reason = "not ours: every TLS library reads it")]
    let is_folder_named = std::env::var_os("SSL_CERT_DIR").is_some();
    // A system has a folder with the same in it, file by file, which would take ten times as long.
    let file = openssl_probe::probe().cert_file.filter(|_| !is_folder_named);
    let found = match file {
        Some(file) => rustls_native_certs::load_certs_from_paths(Some(&file), None),
        None => rustls_native_certs::load_native_certs(),
    };
    let mut roots = RootCertStore::empty();
    let (usable, _) = roots.add_parsable_certificates(found.certs);
    if usable == 0 {
        let why = found.errors.first().map_or_else(|| "there are none".to_owned(), ToString::to_string);
        anyhow::bail!("reading CA certificates: {why}; install ca-certificates or set SSL_CERT_FILE");
    }
    Ok(roots)
}

impl TlsConnector {
    /// `limit` is for the handshake; `tcp` has its own for what is before.
    pub(super) fn new(tcp: Connector, mut config: ClientConfig, limit: Duration) -> Self {
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Self { tcp, config: Arc::new(config), limit }
    }

    /// A connection to the URL's host, and whether it speaks HTTP/2.
    ///
    /// # Errors
    /// [`ConnectError`], or what TLS says.
    pub(super) async fn connect(&self, url: &Url) -> Result<(Stream, bool), Box<dyn Error + Send + Sync>> {
        let tcp = self.tcp.connect(url).await?;
        if url.scheme() != "https" {
            return Ok((Stream::Left(tcp), false));
        }
        // An IPv6 address has brackets in a URL alone.
        let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
        let name = ServerName::try_from(host.to_owned())?;
        let handshake = tokio_rustls::TlsConnector::from(self.config.clone()).connect(name, tcp);
        let tls: io::Result<_> =
            tokio::time::timeout(self.limit, handshake).await.map_err(|_| ConnectError::TlsTimeout)?;
        let tls = tls?;
        let is_http2 = tls.get_ref().1.alpn_protocol() == Some(b"h2");
        Ok((Stream::Right(Box::new(tls)), is_http2))
    }
}

/// Why a handshake failed, in the same words each time: rustls tells times and names, which differ with every URL.
pub(super) fn reason(error: &TlsError) -> String {
    let words = match error {
        TlsError::InvalidCertificate(error) => match error {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => "certificate expired",
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "certificate not valid yet"
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "certificate for another name"
            }
            CertificateError::UnknownIssuer => "certificate of an unknown issuer",
            CertificateError::Revoked => "certificate revoked",
            CertificateError::BadSignature => "certificate with a bad signature",
            _ => "certificate not valid",
        },
        TlsError::PeerIncompatible(
            PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig,
        )
        | TlsError::AlertReceived(AlertDescription::ProtocolVersion) => "protocol older than TLS 1.2",
        TlsError::InvalidMessage(_) => "not a TLS answer",
        other => return other.to_string().chars().take(MAX_REASON_CHARS).collect(),
    };
    words.to_owned()
}
