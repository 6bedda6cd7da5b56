//! The settings of the warming roles: what may be fetched, and within which limits.

use std::net::SocketAddr;

use clap::builder::BoolishValueParser;
use http::HeaderName;

use super::addresses::{AllowedAddress, ConnectTo};
use super::cdn::{CdnName, Speakers};
use super::client::WarmMethod;
use super::guard::Guard;
use super::hosts::{AllowedHost, HostPattern, list_item};

/// How URLs are fetched, as every warming role takes it.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct WarmArgs {
    /// Address block and port that may be fetched although it is not public, for example 10.1.0.0/16:8080
    #[arg(long, value_name = "NET:PORT", env = "CDNWARM_ALLOW_ADDRESS", value_delimiter = ',',
          value_parser = list_item::<AllowedAddress>)]
    pub(crate) allow_address: Vec<Option<AllowedAddress>>,

    /// Host and port that may be fetched wherever its name leads, for example edge.internal.example.com:8080
    #[arg(long, value_name = "HOST:PORT", env = "CDNWARM_ALLOW_HOST", value_delimiter = ',',
          value_parser = list_item::<AllowedHost>)]
    pub(crate) allow_host: Vec<Option<AllowedHost>>,

    /// Warm nothing but these hosts, for example cdn.example.com, or .example.com for every host below it
    #[arg(long, value_name = "HOST", env = "CDNWARM_ONLY_HOSTS", value_delimiter = ',',
          value_parser = list_item::<HostPattern>)]
    pub(crate) only_hosts: Vec<Option<HostPattern>>,

    /// Sends requests for a host to this edge instead of what its name resolves to, on the URL's port where it says none;
    /// Host and SNI stay the host's
    #[arg(long, value_name = "HOST=ADDR[:PORT]", env = "CDNWARM_CONNECT_TO", value_delimiter = ',',
          value_parser = list_item::<ConnectTo>)]
    pub(crate) connect_to: Vec<Option<ConnectTo>>,

    /// Redirects followed for one URL, each judged like the URL itself; 0 makes every redirect a failure
    #[arg(long, value_name = "COUNT", default_value_t = 5, env = "CDNWARM_FOLLOW_REDIRECTS",
          value_parser = clap::value_parser!(u8).range(0..=10))]
    pub(crate) follow_redirects: u8,

    /// Look again after a fill, and say warm only if the edge then answers from its cache
    #[arg(long, env = "CDNWARM_CERTIFY", value_parser = BoolishValueParser::new())]
    pub(crate) certify: bool,

    /// Leave the body unread where the head of the response already says warm; what is short is read all the same
    #[arg(long, env = "CDNWARM_SKIP_WARM", value_parser = BoolishValueParser::new())]
    pub(crate) skip_warm: bool,

    /// CDN or cache next to this process: it counts where several speak, and is sent the headers that make it speak
    ///
    /// Names are in docs/verdicts.md: akamai, cloudfront, fastly...
    #[arg(long, value_name = "NAME", env = "CDNWARM_CDN", value_delimiter = ',', value_parser = list_item::<CdnName>)]
    pub(crate) cdn: Vec<Option<CdnName>>,

    /// Response header that the edge is configured to fill with its cache status: Cloud CDN's {cdn_cache_status}, nginx's
    /// $upstream_cache_status
    #[arg(long, value_name = "HEADER", env = "CDNWARM_CACHE_STATUS_HEADER", value_delimiter = ',',
          value_parser = list_item::<HeaderName>)]
    pub(crate) cache_status_header: Vec<Option<HeaderName>>,

    /// Response header that the edge is configured to fill with its place, such as Cloud CDN's {cdn_cache_id}
    #[arg(long, value_name = "HEADER", env = "CDNWARM_POP_HEADER", value_delimiter = ',',
          value_parser = list_item::<HeaderName>)]
    pub(crate) pop_header: Vec<Option<HeaderName>>,

    /// Points of presence, or how their names begin, that count as warm; others make it wrong-pop
    #[arg(long, value_name = "POP", env = "CDNWARM_EXPECT_POP", value_delimiter = ',')]
    pub(crate) expect_pop: Vec<String>,

    /// Seconds for one record or push in all, redirects and retries included; keep it below the subscription's ack deadline
    #[arg(long, value_name = "SECONDS", default_value_t = 60, env = "CDNWARM_TIMEOUT",
          value_parser = clap::value_parser!(u16).range(1..=600))]
    pub(crate) timeout: u16,

    /// Seconds for a connection, over all addresses of a host, and as many again for its TLS handshake
    #[arg(long, value_name = "SECONDS", default_value_t = 5, env = "CDNWARM_CONNECT_TIMEOUT",
          value_parser = clap::value_parser!(u16).range(1..=600))]
    pub(crate) connect_timeout: u16,

    /// Seconds from a request to the head of its response, connecting included
    #[arg(long, value_name = "SECONDS", default_value_t = 20, env = "CDNWARM_FIRST_BYTE_TIMEOUT",
          value_parser = clap::value_parser!(u16).range(1..=600))]
    pub(crate) first_byte_timeout: u16,

    /// Seconds that a body may pause before it counts as stalled
    #[arg(long, value_name = "SECONDS", default_value_t = 20, env = "CDNWARM_STALL_TIMEOUT",
          value_parser = clap::value_parser!(u16).range(1..=600))]
    pub(crate) stall_timeout: u16,

    /// Bytes of the longest body that is read, as it comes and not as it unpacks
    #[arg(long, value_name = "BYTES", default_value_t = 16 << 30, env = "CDNWARM_MAX_BODY_BYTES")]
    pub(crate) max_body_bytes: u64,

    /// Method of requests; head looks without filling, for edges that store nothing without a body
    #[arg(long, value_enum, default_value_t, env = "CDNWARM_METHOD")]
    pub(crate) method: WarmMethod,

    /// Send Authorization where a record asks for it (warm-header-authorization), over http too; refused otherwise
    #[arg(long, env = "CDNWARM_ALLOW_AUTHORIZATION", value_parser = BoolishValueParser::new())]
    pub(crate) allow_authorization: bool,
}

impl WarmArgs {
    /// For one region of the demo: every host is served by the edge at `edge`, and a fill is looked at again.
    pub(crate) fn for_demo(edge: SocketAddr) -> Self {
        Self {
            connect_to: vec![Some(ConnectTo::every_host(edge))],
            follow_redirects: 5,
            certify: true,
            timeout: 60,
            connect_timeout: 5,
            first_byte_timeout: 20,
            stall_timeout: 20,
            max_body_bytes: 16 << 30,
            method: WarmMethod::Get,
            allow_authorization: false,
            ..Self::default()
        }
    }

    /// Whom to listen to; its lists are empty then.
    pub(super) fn speakers(&mut self) -> Speakers {
        Speakers {
            status: given(&mut self.cache_status_header),
            pop: given(&mut self.pop_header),
            cdns: given(&mut self.cdn),
        }
    }

    /// The rules of its lists, which it no longer has then.
    pub(super) fn guard(&mut self) -> Guard {
        Guard {
            allowed_addresses: given(&mut self.allow_address),
            allowed_hosts: given(&mut self.allow_host),
            only_hosts: given(&mut self.only_hosts),
            connect_to: given(&mut self.connect_to),
        }
    }
}

/// What a list holds, without its empty items; it holds nothing then.
fn given<T>(list: &mut Vec<Option<T>>) -> Vec<T> {
    std::mem::take(list).into_iter().flatten().collect()
}
