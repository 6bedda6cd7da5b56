//! TLS to origins: the system's CA certificates, HTTP/2 or HTTP/1.1 by ALPN, and a limit to the handshake.

use std::error::Error;
use std::future::{Future, Ready, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_rustls::{ConfigBuilderExt, HttpsConnector, MaybeHttpsStream};
use hyper_util::rt::TokioIo;
use rustls::{AlertDescription, CertificateError, ClientConfig, Error as TlsError, PeerIncompatible};
use tokio::net::TcpStream;
use tower_service::Service;

use super::connect::{ConnectError, Connector};

/// The most that is told of a reason which has no words of ours.
const MAX_REASON_CHARS: usize = 200;

/// Connects to `http` and `https` URLs through [`Connector`]; a handshake is over within its limit.
#[derive(Clone)]
pub(super) struct TlsConnector {
    tcp: Connector,
    config: Arc<ClientConfig>,
    limit: Duration,
}

/// TLS that trusts the system's CA certificates, or those of `SSL_CERT_FILE`.
///
/// # Errors
/// Where the system has no CA certificates at all.
pub(super) fn system_config() -> anyhow::Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let config = config.with_native_roots().map_err(|error| {
        anyhow::anyhow!("reading CA certificates: {error}; install ca-certificates or set SSL_CERT_FILE")
    })?;
    Ok(config.with_no_client_auth())
}

impl TlsConnector {
    /// `limit` is for the handshake; `tcp` has its own for what is before.
    pub(super) fn new(tcp: Connector, mut config: ClientConfig, limit: Duration) -> Self {
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Self { tcp, config: Arc::new(config), limit }
    }
}

impl Service<Uri> for TlsConnector {
    type Response = MaybeHttpsStream<TokioIo<TcpStream>>;
    type Error = Box<dyn Error + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.tcp.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let (config, limit) = (self.config.clone(), self.limit);
        let connecting = self.tcp.call(uri.clone());
        Box::pin(async move {
            let mut tls = HttpsConnector::from((Connected(Some(connecting.await?)), config));
            let handshake = tokio::time::timeout(limit, tls.call(uri));
            handshake.await.unwrap_or_else(|_| Err(ConnectError::TlsTimeout.into()))
        })
    }
}

/// A connection that is there already, for what wants to make it by itself.
struct Connected(Option<TokioIo<TcpStream>>);

impl Service<Uri> for Connected {
    type Response = TokioIo<TcpStream>;
    type Error = ConnectError;
    type Future = Ready<Result<Self::Response, ConnectError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        ready(self.0.take().ok_or(ConnectError::Timeout))
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
