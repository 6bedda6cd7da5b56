//! The connector under the warming client: finds a host's addresses, has them judged and dials one of them.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use url::Url;

use super::guard::{Guard, Place};
use super::names::{Names, NoAddress};

/// Dials origins; the only code that does.
#[derive(Clone)]
pub(crate) struct Connector {
    guard: Arc<Guard>,
    names: Names,
    /// For all addresses of a host together.
    limit: Duration,
    #[cfg(test)]
    pub(super) detour: Option<Arc<super::stand::Detour>>,
}

/// Why there is no connection.
#[derive(Debug)]
pub(crate) enum ConnectError {
    /// The guard does not allow it.
    Refused(String),
    /// The name has no addresses.
    Name(NoAddress),
    /// Every address was tried; this was the last answer.
    Connect(io::Error),
    /// No address answered in time.
    Timeout,
    /// There was a connection, but no TLS on it in time.
    TlsTimeout,
}

impl Connector {
    pub(crate) fn new(guard: Arc<Guard>, names: Names, limit: Duration) -> Self {
        Self {
            guard,
            names,
            limit,
            #[cfg(test)]
            detour: None,
        }
    }

    /// A connection to the URL's host.
    ///
    /// # Errors
    /// [`ConnectError`], but for [`ConnectError::TlsTimeout`].
    pub(super) async fn connect(&self, url: &Url) -> Result<TcpStream, ConnectError> {
        let addresses = self.addresses(url).await?;
        tokio::time::timeout(self.limit, self.dial_any(&addresses))
            .await
            .unwrap_or(Err(ConnectError::Timeout))
    }

    /// Where to connect for this URL: judged, and looked up for this very connection or a moment ago.
    async fn addresses(&self, url: &Url) -> Result<Vec<SocketAddr>, ConnectError> {
        let host = url.host_str().unwrap_or_default();
        let port = url.port_or_known_default().unwrap_or(443);
        match self.guard.place(host, port).map_err(ConnectError::Refused)? {
            Place::At(address) => Ok(vec![address]),
            Place::Named => {
                let found = self.names.look_up(host).await.map_err(ConnectError::Name)?;
                self.guard.judge_all(host, port, &found).map_err(ConnectError::Refused)?;
                Ok(found.iter().map(|ip| SocketAddr::new(*ip, port)).collect())
            }
        }
    }

    /// The first of these that answers.
    async fn dial_any(&self, addresses: &[SocketAddr]) -> Result<TcpStream, ConnectError> {
        // One address that swallows everything must not take the time of those behind it.
        let each = self.limit / u32::try_from(addresses.len()).unwrap_or(u32::MAX).max(1);
        let mut last = ConnectError::Timeout;
        for address in addresses {
            match tokio::time::timeout(each, self.dial(*address)).await {
                Ok(Ok(stream)) => {
                    // Requests are small and go out whole.
                    stream.set_nodelay(true).map_err(ConnectError::Connect)?;
                    return Ok(stream);
                }
                Ok(Err(error)) => last = ConnectError::Connect(error),
                Err(_) => last = ConnectError::Timeout,
            }
        }
        Err(last)
    }

    async fn dial(&self, address: SocketAddr) -> io::Result<TcpStream> {
        #[cfg(test)]
        if let Some(detour) = &self.detour {
            return detour.dial(address).await;
        }
        TcpStream::connect(address).await
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(reason) => write!(f, "refused: {reason}"),
            Self::Name(NoAddress::NotFound) => write!(f, "the name has no addresses"),
            Self::Name(NoAddress::Timeout) => write!(f, "looking the name up took too long"),
            Self::Connect(error) => write!(f, "connecting: {error}"),
            Self::Timeout => write!(f, "connecting took too long"),
            Self::TlsTimeout => write!(f, "the TLS handshake took too long"),
        }
    }
}

impl std::error::Error for ConnectError {}
