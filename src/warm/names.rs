//! Names to addresses: `/etc/hosts`, then the name servers of `/etc/resolv.conf`, without a thread for each question.
//!
//! `getaddrinfo` blocks a thread for as long as a name server likes, and cannot be called off: a few hundred slow names
//! would leave no thread for the others. Search domains are not used: a URL's host is a whole name already.
//! Which of the addresses may be dialled is `guard`'s to say.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use hickory_resolver::config::{
    LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::op::Query;
use hickory_resolver::proto::rr::{Name, RecordType};
use hickory_resolver::{Hosts, TokioResolver, system_conf};
use moka::future::Cache;

/// For one look-up, all servers and tries together.
const LOOK_UP_LIMIT: Duration = Duration::from_secs(5);
/// How long one server may take before it, or the next, is asked again; resolv.conf may say less.
const TRY_LIMIT: Duration = Duration::from_secs(2);
/// How long addresses are used again, whatever their TTL: many GETs to one host at once are one look-up, and whoever
/// moves a name sees it followed at once.
const KEPT: Duration = Duration::from_secs(5);
const MAX_KEPT: u64 = 4096;

/// Looks names up. Cheap to clone; clones share what was found.
#[derive(Clone)]
pub(super) struct Names {
    resolver: TokioResolver,
    hosts: Arc<Hosts>,
    found: Cache<String, Arc<[IpAddr]>>,
}

/// Why there are no addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoAddress {
    /// The name servers say that there is none, or answer with an error.
    NotFound,
    /// No name server answered in time.
    Timeout,
}

impl Names {
    /// As the system is configured; read once.
    ///
    /// # Errors
    /// A resolver that cannot be had.
    pub(super) fn of_system() -> anyhow::Result<Self> {
        let (config, options) = system_conf::read_system_conf().unwrap_or_else(|error| {
            // What resolv.conf(5) says of no file and of one without a name server.
            tracing::info!(
                "/etc/resolv.conf: {error}; asking the name server on this machine, if there is one"
            );
            let here = NameServerConfig::udp_and_tcp(Ipv4Addr::LOCALHOST.into());
            (ResolverConfig::from_parts(None, Vec::new(), vec![here]), ResolverOpts::default())
        });
        Self::new(config, options, Hosts::from_system().unwrap_or_default(), KEPT)
    }

    pub(super) fn new(
        config: ResolverConfig,
        mut options: ResolverOpts,
        hosts: Hosts,
        kept: Duration,
    ) -> anyhow::Result<Self> {
        // A server that answers for IPv4 alone costs the time of both tries, and then is believed.
        options.timeout = options.timeout.min(TRY_LIMIT);
        options.attempts = 1;
        // One server after the other, as getaddrinfo does it: a flood of slow names takes two sockets for each.
        options.num_concurrent_reqs = 1;
        // Every address of a name is judged.
        options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
        // A name of the hosts file has no further addresses in the name servers, and one cache is enough.
        options.use_hosts_file = ResolveHosts::Never;
        options.cache_size = 0;
        let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        *builder.options_mut() = options;
        let resolver = builder.build().context("preparing name look-ups")?;
        let found = Cache::builder().max_capacity(MAX_KEPT).time_to_live(kept).build();
        Ok(Self { resolver, hosts: Arc::new(hosts), found })
    }

    /// Every address of this name, IPv4 before IPv6; at least one.
    ///
    /// The same name is looked up once at a time, however many ask.
    ///
    /// # Errors
    /// Where there is none to be had. Errors are not kept.
    pub(super) async fn look_up(&self, host: &str) -> Result<Arc<[IpAddr]>, NoAddress> {
        let host = host.to_ascii_lowercase();
        let found = self.found.try_get_with_by_ref(host.as_str(), self.ask(&host));
        found.await.map_err(|error| *error)
    }

    async fn ask(&self, host: &str) -> Result<Arc<[IpAddr]>, NoAddress> {
        let mut name = Name::from_ascii(host).map_err(|_| NoAddress::NotFound)?;
        name.set_fqdn(true);
        let mut addresses: Vec<IpAddr> = [RecordType::A, RecordType::AAAA]
            .into_iter()
            .filter_map(|record| self.hosts.lookup_static_host(&Query::query(name.clone(), record)))
            .flat_map(|lookup| lookup.answers().iter().filter_map(|r| r.data.ip_addr()).collect::<Vec<_>>())
            .collect();
        if addresses.is_empty() {
            let asked = tokio::time::timeout(LOOK_UP_LIMIT, self.resolver.lookup_ip(name)).await;
            addresses = match asked {
                Ok(Ok(found)) => found.iter().collect(),
                Ok(Err(NetError::Timeout)) | Err(_) => return Err(NoAddress::Timeout),
                Ok(Err(error)) => {
                    tracing::debug!(host, "look-up: {error}");
                    return Err(NoAddress::NotFound);
                }
            };
        }
        // Where a network has no IPv6, or a broken one, the addresses that work come first.
        addresses.sort_by_key(IpAddr::is_ipv6);
        if addresses.is_empty() { Err(NoAddress::NotFound) } else { Ok(addresses.into()) }
    }
}
