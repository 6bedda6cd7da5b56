//! The connector under the warming client: resolves through the guard and dials an address that was judged.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tower_service::Service;

use super::guard::Guard;

/// Dials origins; the only code that does.
#[derive(Clone)]
pub(crate) struct Connector {
    guard: Arc<Guard>,
    /// For all addresses of a host together.
    limit: Duration,
}

/// Why there is no connection.
#[derive(Debug)]
pub(crate) enum ConnectError {
    /// The guard does not allow it.
    Refused(String),
    /// The name could not be resolved.
    Dns(io::Error),
    /// Every address was tried; this was the last answer.
    Connect(io::Error),
    /// No address answered in time.
    Timeout,
    /// There was a connection, but no TLS on it in time.
    TlsTimeout,
}

impl Connector {
    pub(crate) fn new(guard: Arc<Guard>, limit: Duration) -> Self {
        Self { guard, limit }
    }

    async fn connect(self, uri: Uri) -> Result<TokioIo<TcpStream>, ConnectError> {
        let host = uri.host().unwrap_or_default();
        let default_port = if uri.scheme_str() == Some("https") { 443 } else { 80 };
        let addresses = self.guard.resolve(host, uri.port_u16().unwrap_or(default_port)).await?;
        // One address that swallows everything must not take the time of those behind it.
        let each = self.limit / u32::try_from(addresses.len()).unwrap_or(u32::MAX).max(1);
        let mut last = ConnectError::Timeout;
        for address in addresses {
            match tokio::time::timeout(each, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => {
                    // Requests are small and go out whole.
                    stream.set_nodelay(true).map_err(ConnectError::Connect)?;
                    return Ok(TokioIo::new(stream));
                }
                Ok(Err(error)) => last = ConnectError::Connect(error),
                Err(_) => last = ConnectError::Timeout,
            }
        }
        Err(last)
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TcpStream>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move {
            let limit = connector.limit;
            tokio::time::timeout(limit, connector.connect(uri)).await.unwrap_or(Err(ConnectError::Timeout))
        })
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(reason) => write!(f, "refused: {reason}"),
            Self::Dns(error) => write!(f, "resolving: {error}"),
            Self::Connect(error) => write!(f, "connecting: {error}"),
            Self::Timeout => write!(f, "connecting took too long"),
            Self::TlsTimeout => write!(f, "the TLS handshake took too long"),
        }
    }
}

impl std::error::Error for ConnectError {}
