//! What may be fetched: the port, and every address, literal or resolved, before anything is dialled.
//!
//! A literal address never reaches a resolver, so it is judged from the URL; a name's addresses are judged where they
//! are resolved, and the connection goes to one that was judged. The spelling of URLs is `request`'s to judge.

use std::net::{IpAddr, SocketAddr};

use url::{Host, Url};

use super::addresses::{AllowedAddress, ConnectTo, check_public};
use super::connect::ConnectError;

/// The rules of one process.
#[derive(Debug, Default)]
pub(crate) struct Guard {
    /// Lifts the address and port rules for what is listed.
    allowed: Vec<AllowedAddress>,
    /// Hosts sent to a chosen edge, which the operator vouches for.
    connect_to: Vec<ConnectTo>,
}

impl Guard {
    pub(crate) fn new(allowed: Vec<AllowedAddress>, connect_to: Vec<ConnectTo>) -> Self {
        Self { allowed, connect_to }
    }

    /// Judges what a URL says by itself, without a connection or a look-up.
    ///
    /// # Errors
    /// The reason of the refusal.
    pub(crate) fn check(&self, url: &Url) -> Result<(), String> {
        let port = url.port_or_known_default().unwrap_or_default();
        let usual_port = matches!(port, 80 | 443);
        match url.host() {
            None => Err("host: missing".to_owned()),
            Some(Host::Domain(_)) if usual_port => Ok(()),
            Some(Host::Domain(_)) if self.allowed.iter().any(|allowed| allowed.port() == port) => Ok(()),
            Some(Host::Domain(_)) => Err(not_this_port(port)),
            Some(Host::Ipv4(ip)) => self.check_literal(url, SocketAddr::new(ip.into(), port)),
            Some(Host::Ipv6(ip)) => self.check_literal(url, SocketAddr::new(ip.into(), port)),
        }
    }

    /// The addresses to dial for a host of a URL that passed [`Guard::check`], each of them judged.
    ///
    /// # Errors
    /// A name that does not resolve, and a name any of whose addresses may not be dialled: such a name is not to be
    /// trusted with the others either.
    pub(crate) async fn resolve(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, ConnectError> {
        if let Some(edge) = self.edge(host) {
            return Ok(vec![edge]);
        }
        if let Ok(ip) = host.trim_matches(['[', ']']).parse::<IpAddr>() {
            let address = SocketAddr::new(ip, port);
            return self.judge(address).map(|()| vec![address]).map_err(ConnectError::Refused);
        }
        let found = tokio::net::lookup_host((host, port)).await.map_err(ConnectError::Dns)?;
        let addresses: Vec<SocketAddr> = found.collect();
        for address in &addresses {
            self.judge(*address).map_err(ConnectError::Refused)?;
        }
        if addresses.is_empty() {
            return Err(ConnectError::Dns(std::io::Error::other("no addresses")));
        }
        Ok(addresses)
    }

    fn check_literal(&self, url: &Url, address: SocketAddr) -> Result<(), String> {
        match url.host_str().and_then(|host| self.edge(host)) {
            Some(_) if matches!(address.port(), 80 | 443) => Ok(()),
            Some(_) => Err(not_this_port(address.port())),
            None => self.judge(address),
        }
    }

    fn edge(&self, host: &str) -> Option<SocketAddr> {
        // One that names the host goes before one for every host, in whatever order they were given.
        let fitting = self.connect_to.iter().filter(|entry| entry.applies_to(host));
        fitting.min_by_key(|entry| entry.is_for_every_host()).map(ConnectTo::to)
    }

    fn judge(&self, address: SocketAddr) -> Result<(), String> {
        if self.allowed.iter().any(|allowed| allowed.contains(address)) {
            return Ok(());
        }
        if !matches!(address.port(), 80 | 443) {
            return Err(not_this_port(address.port()));
        }
        check_public(address.ip()).map_err(|block| format!("address {}: {block}", address.ip()))
    }
}

fn not_this_port(port: u16) -> String {
    format!("port {port}: only 80 and 443, or what --allow-address lists")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_edge_named_for_a_host_goes_before_the_one_for_every_host() {
        let edges = ["*=127.0.0.1:1", "example.com=127.0.0.1:2"].map(|text| text.parse().unwrap());
        let guard = Guard::new(Vec::new(), edges.to_vec());
        for (host, port) in [("example.com", 2), ("other.example.com", 1)] {
            assert_eq!(
                guard.resolve(host, 443).await.unwrap(),
                [SocketAddr::from(([127, 0, 0, 1], port))],
                "{host}"
            );
        }
    }

    #[tokio::test]
    async fn a_name_that_resolves_to_what_is_not_public_is_refused() {
        // The resolver of any machine knows this one without asking anybody.
        let refused = Guard::default().resolve("localhost", 80).await;
        assert!(
            matches!(&refused, Err(ConnectError::Refused(reason)) if reason.contains("Loopback")),
            "{refused:?}"
        );
    }
}
