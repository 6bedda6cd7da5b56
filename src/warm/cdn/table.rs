//! What each CDN and cache says of itself, one row for each way of saying it: data, which `read` reads.
//!
//! Vendors change these. Each row says where it is from, and how far it may be trusted; what is known of a row only by
//! hearsay never makes a URL warm by itself.

use std::str::FromStr;

use super::read::Word::{Bypassed, Expired, Generated, Hit, Missed, NotEligible, Shield, Stale};
use super::row::Mark::{Contains, Has, Starts};
use super::row::{Form, Pop, Row, Standing, Tier};

/// What most rows have.
const ROW: Row = Row {
    name: "",
    tier: Tier::Cdn,
    marks: &[],
    status: &[],
    form: Form::One,
    words: &[],
    parent: None,
    pop: None,
    asks: &[],
    standing: Standing::Confirmed,
    hides_stale: false,
};

/// For headers that the operator of an edge names and fills: nginx's `$upstream_cache_status` (measured, 1.22.1) and
/// Cloud CDN's `{cdn_cache_status}` (cloud.google.com/load-balancing/docs/custom-headers).
pub(super) const OWN: Row = Row {
    name: "own",
    words: &[
        ("hit", Hit),
        ("revalidated", Hit),
        ("miss", Missed),
        ("expired", Expired),
        ("stale", Stale),
        ("updating", Stale),
        ("bypass", Bypassed),
        ("uncacheable", NotEligible),
        ("disabled", NotEligible),
    ],
    ..ROW
};

/// Every row; of two that fit one response, none goes before the other.
pub(super) const ROWS: &[Row] = &[
    // developers.cloudflare.com/cache/concepts/cache-responses
    Row {
        name: "cloudflare",
        marks: &[&[Starts("server", "cloudflare"), Has("cf-ray")]],
        status: &["cf-cache-status"],
        words: &[
            ("hit", Hit),
            ("revalidated", Hit),
            ("miss", Missed),
            ("expired", Expired),
            ("updating", Stale),
            ("stale", Stale),
            ("bypass", Bypassed),
            ("dynamic", NotEligible),
            ("none", NotEligible),
            ("unknown", NotEligible),
        ],
        pop: Some(Pop::BehindDash("cf-ray")),
        ..ROW
    },
    // repost.aws: cloudfront-custom-object-caching; generated responses were seen only.
    Row {
        name: "cloudfront",
        marks: &[&[Has("x-amz-cf-id")]],
        status: &["x-cache"],
        words: &[
            ("hit from cloudfront", Hit),
            ("refreshhit from cloudfront", Hit),
            ("miss from cloudfront", Missed),
            ("error from cloudfront", Generated),
            ("lambdageneratedresponse from cloudfront", Generated),
            ("functiongeneratedresponse from cloudfront", Generated),
        ],
        pop: Some(Pop::Whole("x-amz-cf-pop")),
        ..ROW
    },
    // fastly.com/documentation: X-Cache, X-Served-By, Fastly-Debug-TTL. A PASS says MISS too, a stale object HIT.
    Row {
        name: "fastly",
        marks: &[&[Starts("x-served-by", "cache-")]],
        status: &["x-cache"],
        form: Form::EdgeLast,
        words: &[("hit", Hit), ("miss", Missed)],
        pop: Some(Pop::BehindDash("x-served-by")),
        asks: &[("fastly-debug", "1")],
        hides_stale: true,
        ..ROW
    },
    // techdocs.akamai.com/edge-diagnostics/docs/pragma-headers; an owner may have disabled them.
    Row {
        name: "akamai",
        marks: &[&[Contains("x-cache", "akamai")]],
        status: &["x-cache"],
        words: &[
            ("tcp_hit", Hit),
            ("tcp_mem_hit", Hit),
            ("tcp_refresh_hit", Hit),
            ("tcp_ims_hit", Hit),
            ("tcp_miss", Missed),
            ("tcp_refresh_miss", Expired),
            ("tcp_refresh_fail_hit", Stale),
            ("tcp_negative_hit", Generated),
        ],
        parent: Some("x-cache-remote"),
        asks: &[("pragma", "akamai-x-cache-on, akamai-x-cache-remote-on, akamai-x-check-cacheable")],
        ..ROW
    },
    // techdocs.akamai.com/property-mgr: return-cache-status, with its default name.
    Row {
        name: "akamai",
        marks: &[&[Has("akamai-cache-status")]],
        status: &["akamai-cache-status"],
        form: Form::EdgeFirst,
        words: &[
            ("hit", Hit),
            ("refreshhit", Hit),
            ("miss", Missed),
            ("hitstale", Stale),
            ("notcacheable", NotEligible),
            ("constructed", Generated),
            ("redirect", Generated),
            ("error", Generated),
        ],
        ..ROW
    },
    // It says nothing unless its owner names a header for it: then that header counts, before every row.
    Row { name: "google", marks: &[&[Contains("via", "1.1 google")]], ..ROW },
    // learn.microsoft.com/azure: front-door-http-headers-protocol, cdn-msft-http-debug-headers
    Row {
        name: "azure",
        marks: &[&[Has("x-azure-ref")]],
        status: &["x-cache"],
        words: &[
            ("tcp_hit", Hit),
            ("tcp_remote_hit", Shield),
            ("tcp_miss", Missed),
            ("private_nostore", NotEligible),
            ("config_nocache", NotEligible),
            ("n/a", Generated),
        ],
        pop: Some(Pop::AzureReference),
        asks: &[("x-azure-debuginfo", "1")],
        ..ROW
    },
    // learn.microsoft.com/azure/cdn: cdn-http-debug-headers; what its values mean nobody confirms any more.
    Row {
        name: "edgio",
        marks: &[&[Has("x-ec-cache")]],
        status: &["x-ec-cache"],
        words: &[
            ("tcp_hit", Hit),
            ("tcp_miss", Missed),
            ("tcp_expired_hit", Stale),
            ("config_nocache", NotEligible),
            ("none", NotEligible),
        ],
        parent: Some("x-ec-cache-remote"),
        asks: &[("x-ec-debug", "x-ec-cache,x-ec-cache-remote,x-ec-check-cacheable")],
        standing: Standing::Unconfirmed,
        ..ROW
    },
    // docs.bunny.net: run-traceroute, for the server's name; the words were seen only.
    Row {
        name: "bunny",
        marks: &[&[Starts("server", "BunnyCDN-")]],
        status: &["cdn-cache"],
        words: &[("hit", Hit), ("miss", Missed), ("expired", Expired), ("bypass", Bypassed)],
        pop: Some(Pop::BehindPrefix("server", "BunnyCDN-")),
        standing: Standing::Observed,
        ..ROW
    },
    // client.cdn77.com: which-headers-does-cdn77-add, for the older names; the newer ones were seen only.
    Row {
        name: "cdn77",
        marks: &[&[Starts("server", "CDN77")]],
        status: &["x-77-cache", "x-cache"],
        words: &[
            ("hit", Hit),
            ("miss", Missed),
            ("expired", Expired),
            ("bypass", Bypassed),
            ("stale", Stale),
            ("updating", Stale),
        ],
        pop: Some(Pop::Whole("x-77-pop")),
        standing: Standing::Observed,
        ..ROW
    },
    // vercel.com/docs/caching/cache-status
    Row {
        name: "vercel",
        marks: &[&[Has("x-vercel-id"), Has("x-vercel-cache")]],
        status: &["x-vercel-cache"],
        words: &[
            ("hit", Hit),
            ("prerender", Hit),
            ("miss", Missed),
            ("revalidated", Missed),
            ("stale", Stale),
            ("bypass", Bypassed),
        ],
        ..ROW
    },
    // RFC 9211, with names that were seen only.
    Row {
        name: "netlify",
        marks: &[&[Contains("cache-status", "\"Netlify Edge\"")]],
        status: &["cache-status"],
        form: Form::CacheStatus(Some("Netlify Edge")),
        standing: Standing::Observed,
        ..ROW
    },
    // Seen only.
    Row {
        name: "alibaba",
        marks: &[&[Has("eagleid")]],
        status: &["x-cache"],
        words: &[
            ("hit tcp_mem_hit", Hit),
            ("hit tcp_hit", Hit),
            ("hit tcp_refresh_hit", Hit),
            ("miss tcp_miss", Missed),
        ],
        pop: Some(Pop::LastNode("via")),
        standing: Standing::Observed,
        ..ROW
    },
    // Its FAQ; it may repeat the header, once for each cache.
    Row {
        name: "tencent",
        marks: &[&[Has("x-nws-log-uuid")]],
        status: &["x-cache-lookup"],
        words: &[
            ("cache hit", Hit),
            ("hit from memcache", Hit),
            ("hit from disktank", Hit),
            ("cache miss", Missed),
        ],
        ..ROW
    },
    // tencentcloud.com/document/product/1145: 54212, 56206
    Row {
        name: "edgeone",
        marks: &[&[Has("eo-cache-status")]],
        status: &["eo-cache-status"],
        words: &[("hit", Hit), ("refreshhit", Hit), ("miss", Missed)],
        asks: &[("eo-debug-headers", "all")],
        ..ROW
    },
    // Seen only.
    Row {
        name: "huawei",
        marks: &[&[Has("x-hcs-proxy-type")]],
        status: &["x-hcs-proxy-type"],
        words: &[("1", Hit), ("0", Missed)],
        standing: Standing::Observed,
        ..ROW
    },
    // Seen only.
    Row {
        name: "volcengine",
        marks: &[&[Starts("server", "Byte-nginx")]],
        status: &["x-bdcdn-cache-status", "x-response-cache"],
        words: &[("tcp_hit", Hit), ("edge_hit", Hit), ("tcp_miss", Missed)],
        pop: Some(Pop::LastNode("via")),
        standing: Standing::Observed,
        ..ROW
    },
    // No page of the vendor's was found for these two.
    Row {
        name: "keycdn",
        marks: &[&[Starts("server", "keycdn")]],
        status: &["x-cache"],
        words: &[("hit", Hit), ("miss", Missed)],
        pop: Some(Pop::Whole("x-edge-location")),
        standing: Standing::Unconfirmed,
        ..ROW
    },
    Row {
        name: "gcore",
        marks: &[&[Has("x-id-fe")]],
        status: &["cache"],
        words: &[("hit", Hit), ("miss", Missed)],
        pop: Some(Pop::Whole("x-id-fe")),
        standing: Standing::Unconfirmed,
        ..ROW
    },
    // RFC 9211
    Row {
        name: "cache-status",
        tier: Tier::Cache,
        marks: &[&[Has("cache-status")]],
        status: &["cache-status"],
        form: Form::CacheStatus(None),
        ..ROW
    },
    // Measured, 7.1.1. Two ids in grace look like two ids before it.
    Row {
        name: "varnish",
        tier: Tier::Cache,
        marks: &[&[Has("x-varnish")]],
        status: &["x-varnish"],
        form: Form::VarnishIds,
        hides_stale: true,
        ..ROW
    },
    // Measured, 5.7. What it could not confirm with the origin it may call a hit too.
    Row {
        name: "squid",
        tier: Tier::Cache,
        marks: &[&[Contains("via", "(squid")]],
        status: &["x-cache"],
        words: &[("hit from", Hit), ("miss from", Missed)],
        hides_stale: true,
        ..ROW
    },
    // docs.trafficserver.apache.org: xdebug.en.html
    Row {
        name: "trafficserver",
        tier: Tier::Cache,
        marks: &[&[Starts("server", "ATS/")], &[Contains("via", "ApacheTrafficServer")]],
        status: &["x-cache"],
        words: &[
            ("hit-fresh", Hit),
            ("hit-stale", Expired),
            ("miss", Missed),
            ("none", NotEligible),
            ("skipped", Bypassed),
        ],
        asks: &[("x-debug", "x-cache")],
        ..ROW
    },
];

/// A CDN or cache by its name, as an argument has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CdnName(pub(super) &'static str);

impl FromStr for CdnName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = ROWS.iter().find(|row| row.name.eq_ignore_ascii_case(text));
        known.map(|row| Self(row.name)).ok_or_else(|| {
            let mut names: Vec<&str> = ROWS.iter().map(|row| row.name).collect();
            names.dedup();
            format!("known are {}", names.join(", "))
        })
    }
}
