//! TLS to origins: the system's CA certificates, HTTP/2 or HTTP/1.1 by ALPN, and a limit to the handshake.

use std::error::Error;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use rustls::{AlertDescription, CertificateError, Error as TlsError, PeerIncompatible};
use tower_service::Service;

use super::connect::{ConnectError, Connector};

/// The most that is told of a reason which has no words of ours.
const MAX_REASON_CHARS: usize = 200;

/// Connects to `http` and `https` URLs through [`Connector`]; each connection is whole within its limit.
#[derive(Clone)]
pub(super) struct TlsConnector {
    inner: HttpsConnector<Connector>,
    limit: Duration,
}

impl TlsConnector {
    /// Reads the system's CA certificates, or those of `SSL_CERT_FILE`. `limit` is for the handshake.
    ///
    /// # Errors
    /// Where the system has no CA certificates at all.
    pub(super) fn new(tcp: Connector, limit: Duration) -> anyhow::Result<Self> {
        let inner = HttpsConnectorBuilder::new()
            .with_provider_and_native_roots(rustls::crypto::aws_lc_rs::default_provider())
            .map_err(|error| {
                anyhow::anyhow!(
                    "reading CA certificates: {error}; install ca-certificates or set SSL_CERT_FILE"
                )
            })?
            .https_or_http()
            .enable_all_versions()
            .wrap_connector(tcp);
        Ok(Self { inner, limit })
    }
}

impl Service<Uri> for TlsConnector {
    type Response = <HttpsConnector<Connector> as Service<Uri>>::Response;
    type Error = Box<dyn Error + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        // What is before the handshake has limits of its own, and the same time again is more than both need.
        let connecting = tokio::time::timeout(2 * self.limit, self.inner.call(uri));
        Box::pin(async move { connecting.await.unwrap_or_else(|_| Err(ConnectError::TlsTimeout.into())) })
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
