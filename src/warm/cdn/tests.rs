//! Each row of the table as its CDN says it, forged and contradictory; and what RFC 9111 and RFC 9211 say of the rest.

use std::collections::HashMap;
use std::time::Duration;

use http::{Request, Response};
use http_body_util::Full;

use super::cache_status::MAX_CACHE_STATUS_BYTES;
use super::headers::MAX_EVIDENCE_BYTES;
use super::*;
use crate::warm::WarmArgs;
use crate::warm::stand::origin::{Asked, Origin};
use crate::warm::stand::{NameServer, Stand};

/// The verdict for a GET that was answered with this status and these headers.
fn judged_with(request: &[(&str, &str)], status: u16, headers: &[(&str, &str)]) -> (Verdict, CacheEvidence) {
    let mut get = Request::get("/a");
    for (name, value) in request {
        get = get.header(*name, *value);
    }
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    let (response, ()) = response.body(()).unwrap().into_parts();
    let judged = assess(&Speakers::default(), &get.body(()).unwrap(), &response, SystemTime::now());
    (judged.verdict, judged.evidence)
}

fn judged(headers: &[(&str, &str)]) -> (Verdict, CacheEvidence) {
    judged_with(&[], 200, headers)
}

/// The verdict for a storable response with this `Cache-Status`.
fn said(cache_status: &str) -> Verdict {
    judged(&[("Cache-Status", cache_status), ("Cache-Control", "max-age=60")]).0
}

#[test]
fn the_member_nearest_to_us_decides() {
    for (cache_status, verdict) in [
        ("e; hit; ttl=10", Verdict::Warm),
        ("e; hit", Verdict::Warm),
        ("\"Edge 1\"; hit; ttl=1; detail=MEMORY", Verdict::Warm),
        ("s; fwd=uri-miss, e; hit", Verdict::Warm),
        ("e; hit; ttl=0", Verdict::Stale),
        ("e; hit; ttl=-5", Verdict::Stale),
        ("s; hit; ttl=5, e; hit; ttl=-5", Verdict::Stale),
        ("e; fwd=uri-miss; stored", Verdict::Filled),
        ("e; fwd=vary-miss; stored=?1", Verdict::Filled),
        ("e; fwd=stale; stored", Verdict::Filled),
        ("e; fwd=request; stored", Verdict::Filled),
        ("e; fwd=stale; fwd-status=304", Verdict::Filled),
        ("e; fwd=uri-miss; collapsed", Verdict::Filled),
        ("s; hit, e; fwd=uri-miss; collapsed", Verdict::Filled),
        ("s; hit, e; fwd=uri-miss; stored", Verdict::Filled),
        ("e; fwd=uri-miss", Verdict::Filled),
        ("e; fwd=some-day", Verdict::Filled),
        ("s; fwd=uri-miss; stored, e; fwd=uri-miss", Verdict::Filled),
        ("s; hit, e; fwd=uri-miss", Verdict::ShieldOnly),
        ("s; hit, m; fwd=miss, e; fwd=miss; stored=?0", Verdict::ShieldOnly),
        ("s; hit, e; hit=?0", Verdict::ShieldOnly),
        ("e; fwd=bypass", Verdict::Uncacheable(Obstacle::Bypass)),
        ("e; fwd=method", Verdict::Uncacheable(Obstacle::Bypass)),
        ("s; hit, e; fwd=request", Verdict::Uncacheable(Obstacle::Bypass)),
    ] {
        assert_eq!(said(cache_status), verdict, "{cache_status}");
    }
}

#[test]
fn a_malformed_or_mistyped_cache_status_is_no_evidence() {
    let huge = format!("e; hit; detail=\"{}\"", "x".repeat(MAX_CACHE_STATUS_BYTES));
    for cache_status in [
        "",
        " ",
        ",",
        "e; hit,",
        "e; HIT",
        "e; hit; ttl=",
        "e;; hit",
        "\"e; hit",
        "(e); hit",
        "e; hit, (f g)",
        "5; hit",
        "?1; hit",
        "e",
        "e; hit=1",
        "e; hit=\"true\"",
        "e; fwd=\"bypass\"",
        "e; fwd",
        "e; stored",
        "e; ttl=5",
        "é; hit",
        "\u{1F525}",
        "HIT from e",
        &huge,
    ] {
        assert_eq!(said(cache_status), Verdict::Fetched(Unproven::NoEvidence), "{cache_status}");
        assert_eq!(judged(&[("cache-status", cache_status)]).1, CacheEvidence::default(), "{cache_status}");
    }
    let mut latin1 = HeaderMap::new();
    latin1.insert("cache-status", HeaderValue::from_bytes(b"e\xe9; hit").unwrap());
    assert!(cache_status::read(&latin1, None).is_none());
    for (cache_status, verdict) in [
        ("e; hit; ttl=abc", Verdict::Warm),
        ("e; hit; ttl=1.5", Verdict::Warm),
        ("e; hit; fwd=stale", Verdict::Filled),
        ("s; hit; fwd=stale, e; fwd=miss", Verdict::Filled),
        ("e; hit=?0; fwd=3", Verdict::Filled),
        ("e; fwd=stale; fwd-status=\"304\"; stored=1", Verdict::Filled),
    ] {
        assert_eq!(said(cache_status), verdict, "{cache_status}");
    }
}

#[test]
fn lines_and_names_of_the_header_are_read_as_http_has_it() {
    let lines = |first, second| judged(&[("CACHE-STATUS", first), ("Cache-Status", second)]);
    assert_eq!(lines("s; fwd=miss", "e; hit").0, Verdict::Warm);
    assert_eq!(lines("e; hit", "").0, Verdict::Warm);
    assert_eq!(lines("s; hit", "e; fwd=miss").0, Verdict::ShieldOnly);
    let mut many = vec!["s; fwd=uri-miss"; 99].join(", ");
    many.push_str(", e; hit; ttl=7");
    let (verdict, evidence) = judged(&[("cache-status", &many)]);
    assert_eq!((verdict, evidence.cdn.as_deref(), evidence.ttl_s), (Verdict::Warm, Some("e"), Some(7)));
    let value = evidence.value.unwrap();
    assert!(value.starts_with('…') && value.ends_with("s;fwd=uri-miss, e;hit;ttl=7"), "{value}");
    assert!(value.len() <= MAX_EVIDENCE_BYTES);
}

#[test]
fn a_hit_without_ttl_is_stale_only_where_age_proves_it() {
    let hit = |age, cache_control| {
        judged(&[("Cache-Status", "e; hit"), ("Age", age), ("Cache-Control", cache_control)]).0
    };
    assert_eq!(hit("59", "max-age=60"), Verdict::Warm);
    assert_eq!(hit("60", "max-age=60"), Verdict::Stale);
    assert_eq!(hit("60", "MAX-AGE=60"), Verdict::Stale);
    assert_eq!(hit("60", "max-age=60, s-maxage=120"), Verdict::Warm);
    assert_eq!(hit("60", "max-age=60, proxy-revalidate"), Verdict::Stale);
    assert_eq!(
        hit("5", "max-age=0, must-revalidate"),
        Verdict::Warm,
        "the edge keeps it by rules of its own"
    );
    assert_eq!(hit("99", ""), Verdict::Warm);
    for not_an_age in ["", "-1", "1.5", "soon"] {
        assert_eq!(hit(not_an_age, "max-age=1"), Verdict::Warm, "{not_an_age}");
    }
    for beyond_counting in ["18446744073709551615", "99999999999999999999999999"] {
        assert_eq!(hit(beyond_counting, "max-age=60"), Verdict::Stale, "{beyond_counting}");
    }
    let with_ttl = [("Cache-Status", "e; hit; ttl=5"), ("Age", "99"), ("Cache-Control", "max-age=60")];
    assert_eq!(judged(&with_ttl).0, Verdict::Warm, "the cache knows its ttl better than we do");
}

#[test]
fn a_miss_that_no_shared_cache_may_keep_is_uncacheable_with_the_reason() {
    for (headers, reason) in [
        (&[("cache-control", "no-store")][..], Obstacle::NoStore),
        (&[("cache-control", "Max-Age=60"), ("cache-control", "No-Store")], Obstacle::NoStore),
        (&[("cache-control", "private, max-age=60")], Obstacle::Private),
        (&[("cache-control", "PRIVATE=\"x-id\"")], Obstacle::Private),
        (&[("cache-control", "max-age=60"), ("set-cookie", "a=b")], Obstacle::SetCookie),
        (&[("cache-control", "max-age=60"), ("vary", "accept"), ("vary", "*")], Obstacle::VaryAny),
        (&[("cache-control", "no-cache")], Obstacle::NoCache),
        (&[("cache-control", "max-age=0")], Obstacle::ZeroFreshness),
        (&[("cache-control", "max-age=60, s-maxage=0")], Obstacle::ZeroFreshness),
        (&[("cache-control", "max-age=abc")], Obstacle::ZeroFreshness),
        (&[("expires", "0")], Obstacle::ZeroFreshness),
        (&[("pragma", "no-cache")], Obstacle::ZeroFreshness),
        (&[("cache-control", "max-age=60"), ("age", "60")], Obstacle::ExpiredOnArrival),
    ] {
        let mut headers = headers.to_vec();
        headers.push(("cache-status", "s; hit, e; fwd=uri-miss"));
        assert_eq!(judged(&headers).0, Verdict::Uncacheable(reason), "{headers:?}");
        headers.pop();
        headers.push(("cache-status", "e; fwd=uri-miss; collapsed"));
        assert_eq!(judged(&headers).0, Verdict::Uncacheable(reason), "{headers:?}");
        headers.pop();
        headers.push(("cache-status", "e; fwd=uri-miss; stored"));
        assert_eq!(judged(&headers).0, Verdict::Filled, "the cache says that it kept it: {headers:?}");
    }
    let miss = ("cache-status", "e; fwd=uri-miss");
    for headers in [
        &[miss][..],
        &[miss, ("cache-control", "max-age=60, public"), ("set-cookie", "a=b")],
        &[miss, ("cache-control", "max-age=60"), ("vary", "accept-encoding")],
        &[miss, ("cache-control", "max-age=60, proxy-revalidate")],
        &[miss, ("expires", "Fri, 01 Jan 2100 00:00:00 GMT")],
    ] {
        assert_eq!(judged(headers).0, Verdict::Filled, "{headers:?}");
    }
}

#[test]
fn the_request_and_the_status_count_too() {
    let miss = ("cache-status", "e; fwd=uri-miss");
    let secret = [("authorization", "Basic abc")];
    let fresh = [miss, ("cache-control", "max-age=60")];
    assert_eq!(judged_with(&secret, 200, &fresh).0, Verdict::Uncacheable(Obstacle::Authorization));
    assert_eq!(
        judged_with(&secret, 200, &[miss, ("cache-control", "public, max-age=60")]).0,
        Verdict::Filled
    );
    assert_eq!(
        judged_with(&[("cache-control", "no-store")], 200, &fresh).0,
        Verdict::Uncacheable(Obstacle::NoStore)
    );
    assert_eq!(judged_with(&[], 206, &fresh).0, Verdict::Filled);
    assert_eq!(judged_with(&[], 202, &fresh).0, Verdict::Uncacheable(Obstacle::Status));
}

#[test]
fn without_any_cache_only_a_prohibition_is_evidence() {
    assert_eq!(judged(&[]), (Verdict::Fetched(Unproven::NoEvidence), CacheEvidence::default()));
    let (verdict, evidence) = judged(&[("age", "5"), ("etag", "W/\"1\""), ("cache-control", "max-age=0")]);
    assert_eq!(verdict, Verdict::Fetched(Unproven::NoEvidence), "Age alone proves nothing");
    assert_eq!(
        (evidence.age_s, evidence.etag.as_deref(), evidence.header.as_deref()),
        (Some(5), Some("W/\"1\""), None)
    );
    for (value, reason) in [("no-store", Obstacle::NoStore), ("max-age=9, Private", Obstacle::Private)] {
        let (verdict, evidence) = judged(&[("Cache-Control", value)]);
        assert_eq!(verdict, Verdict::Uncacheable(reason));
        assert_eq!(
            (evidence.header.as_deref(), evidence.value.as_deref()),
            (Some("cache-control"), Some(value))
        );
    }
}

#[test]
fn evidence_is_bounded_and_shows_no_cache_key() {
    let cache_status =
        "s; hit; key=\"/a?sig=s3cret\", \"My Edge\"; fwd=uri-miss; stored; key=\"/?sig=s3cret\"";
    let evidence = judged(&[("Cache-Status", cache_status)]).1;
    assert_eq!(evidence.header.as_deref(), Some("cache-status"));
    assert_eq!(evidence.value.as_deref(), Some("s;hit, \"My Edge\";fwd=uri-miss;stored"));
    assert_eq!(evidence.cdn.as_deref(), Some("My Edge"));
    let long = "é".repeat(1000);
    let long_name = format!("\"{}\"; hit", "n".repeat(1000));
    let evidence = judged(&[("etag", &long), ("cache-status", &long_name)]).1;
    for text in [evidence.etag, evidence.cdn, evidence.value] {
        assert!(text.as_ref().is_some_and(|text| text.len() <= MAX_EVIDENCE_BYTES), "{text:?}");
    }
}
/// A response as some CDN sends it: its marks, one way of saying something, and what follows from it.
struct Case {
    cdn: &'static str,
    marks: &'static [(&'static str, &'static str)],
    header: &'static str,
    /// What it says, and the verdict for a response that may be kept for a minute and is 5 s old.
    says: &'static [(&'static str, &'static str)],
    pop: Option<&'static str>,
}

const UNCONFIRMED: &str = "fetched (unconfirmed header)";
const UNKNOWN: &str = "fetched (unknown word)";
const GENERATED: &str = "fetched (generated)";
const NOT_ELIGIBLE: &str = "uncacheable (not eligible)";
const BYPASS: &str = "uncacheable (bypass)";

const CASES: &[Case] = &[
    Case {
        cdn: "cloudflare",
        marks: &[("server", "cloudflare"), ("cf-ray", "8f2b1c9d0e3a4b5c-FRA")],
        header: "CF-Cache-Status",
        says: &[
            ("HIT", "warm"),
            ("REVALIDATED", "warm"),
            ("MISS", "filled"),
            ("EXPIRED", "filled"),
            ("UPDATING", "stale"),
            ("STALE", "stale"),
            ("BYPASS", BYPASS),
            ("DYNAMIC", NOT_ELIGIBLE),
            ("NONE", NOT_ELIGIBLE),
            ("UNKNOWN", NOT_ELIGIBLE),
            ("HITS", UNKNOWN),
            ("HIT, MISS", "filled"),
        ],
        pop: Some("FRA"),
    },
    Case {
        cdn: "cloudfront",
        marks: &[("x-amz-cf-id", "abc=="), ("x-amz-cf-pop", "SIN52-P1")],
        header: "X-Cache",
        says: &[
            ("Hit from cloudfront", "warm"),
            ("RefreshHit from cloudfront", "warm"),
            ("Miss from cloudfront", "filled"),
            ("Error from cloudfront", GENERATED),
            ("LambdaGeneratedResponse from cloudfront", GENERATED),
            ("FunctionGeneratedResponse from cloudfront", GENERATED),
            ("Hit", UNKNOWN),
            ("OriginShieldHit from cloudfront", UNKNOWN),
        ],
        pop: Some("SIN52-P1"),
    },
    Case {
        cdn: "fastly",
        marks: &[("x-served-by", "cache-iad-kiad7000025-IAD, cache-fra-etou8220059-FRA")],
        header: "X-Cache",
        says: &[
            ("MISS, HIT", "warm"),
            ("HIT", "warm"),
            ("HIT, MISS", "shield-only"),
            ("MISS, MISS", "filled"),
            ("MISS", "filled"),
            ("HIT, HIT-STALE", UNKNOWN),
        ],
        pop: Some("FRA"),
    },
    Case {
        cdn: "akamai",
        marks: &[],
        header: "X-Cache",
        says: &[
            ("TCP_HIT from a23-1-2-3.deploy.akamaitechnologies.com (AkamaiGHost/11.5) (-)", "warm"),
            ("TCP_MEM_HIT from a23-1-2-3.deploy.akamaitechnologies.com", "warm"),
            ("TCP_REFRESH_HIT from a23-1-2-3.deploy.akamaitechnologies.com", "warm"),
            ("TCP_IMS_HIT from a23-1-2-3.deploy.akamaitechnologies.com", "warm"),
            ("TCP_MISS from a23-1-2-3.deploy.akamaitechnologies.com", "filled"),
            ("TCP_REFRESH_MISS from a23-1-2-3.deploy.akamaitechnologies.com", "filled"),
            ("TCP_REFRESH_FAIL_HIT from a23-1-2-3.deploy.akamaitechnologies.com", "stale"),
            ("TCP_NEGATIVE_HIT from a23-1-2-3.deploy.akamaitechnologies.com", GENERATED),
            ("TCP_DENIED from a23-1-2-3.deploy.akamaitechnologies.com", UNKNOWN),
        ],
        pop: None,
    },
    Case {
        cdn: "akamai",
        marks: &[("x-cache-remote", "TCP_HIT from a96.deploy.akamaitechnologies.com")],
        header: "X-Cache",
        says: &[
            ("TCP_MISS from a23.deploy.akamaitechnologies.com", "shield-only"),
            ("TCP_HIT from a23.deploy.akamaitechnologies.com", "warm"),
        ],
        pop: None,
    },
    Case {
        cdn: "akamai",
        marks: &[],
        header: "Akamai-Cache-Status",
        says: &[
            ("Hit from child", "warm"),
            ("RefreshHit from child", "warm"),
            ("Miss from child", "filled"),
            ("Miss from child, Hit from parent", "shield-only"),
            ("Hit from child, Miss from parent", "warm"),
            ("HitStale from child", "stale"),
            ("NotCacheable from child", NOT_ELIGIBLE),
            ("Constructed from child", GENERATED),
            ("Redirect from child", GENERATED),
            ("Error from child", GENERATED),
        ],
        pop: None,
    },
    Case {
        cdn: "azure",
        marks: &[(
            "x-azure-ref",
            "0zxV+XAAAAABKMMOjBv2NT4TY6SQVjC0zV1NURURHRTA2MTkANDM3YzgyY2QtMzYwYS00YTU0LTk0YzMtNWZmNzA3NjQ3Nzgz",
        )],
        header: "X-Cache",
        says: &[
            ("TCP_HIT", "warm"),
            ("TCP_REMOTE_HIT", "shield-only"),
            ("TCP_MISS", "filled"),
            ("PRIVATE_NOSTORE", NOT_ELIGIBLE),
            ("CONFIG_NOCACHE", NOT_ELIGIBLE),
            ("N/A", GENERATED),
        ],
        pop: Some("WSTEDGE0619"),
    },
    Case {
        cdn: "azure",
        marks: &[("x-azure-ref", "20241021T130000Z-r1a2b3c4")],
        header: "X-Cache",
        says: &[("TCP_HIT", "warm")],
        pop: None,
    },
    Case {
        cdn: "edgio",
        marks: &[],
        header: "X-EC-Cache",
        says: &[
            ("TCP_HIT from (fra/1234)", UNCONFIRMED),
            ("TCP_MISS from (fra/1234)", "filled"),
            ("TCP_EXPIRED_HIT from (fra/1234)", "stale"),
            ("CONFIG_NOCACHE from (fra/1234)", NOT_ELIGIBLE),
            ("NONE from (fra/1234)", NOT_ELIGIBLE),
        ],
        pop: None,
    },
    Case {
        cdn: "bunny",
        marks: &[("server", "BunnyCDN-DE1-1047")],
        header: "CDN-Cache",
        says: &[("HIT", UNCONFIRMED), ("MISS", "filled"), ("EXPIRED", "filled"), ("BYPASS", BYPASS)],
        pop: Some("DE1"),
    },
    Case {
        cdn: "cdn77",
        marks: &[("server", "CDN77-Turbo"), ("x-77-pop", "frankfurtDE")],
        header: "X-77-Cache",
        says: &[
            ("HIT", UNCONFIRMED),
            ("MISS", "filled"),
            ("EXPIRED", "filled"),
            ("BYPASS", BYPASS),
            ("STALE", "stale"),
            ("UPDATING", "stale"),
        ],
        pop: Some("frankfurtDE"),
    },
    Case {
        cdn: "vercel",
        marks: &[("x-vercel-id", "fra1::abc")],
        header: "X-Vercel-Cache",
        says: &[
            ("HIT", "warm"),
            ("PRERENDER", "warm"),
            ("MISS", "filled"),
            ("REVALIDATED", "filled"),
            ("STALE", "stale"),
            ("BYPASS", BYPASS),
        ],
        pop: None,
    },
    Case {
        cdn: "Netlify Edge",
        marks: &[],
        header: "Cache-Status",
        says: &[
            ("\"Netlify Edge\"; hit", UNCONFIRMED),
            ("\"Netlify Durable\"; hit; ttl=60, \"Netlify Edge\"; fwd=miss", "shield-only"),
            ("\"Netlify Edge\"; fwd=miss, \"Netlify Durable\"; hit; ttl=60", "shield-only"),
            ("\"Netlify Edge\"; fwd=miss; stored", "filled"),
            ("\"Netlify Edge\"; fwd=stale", "filled"),
            ("\"Netlify Edge\"; fwd=bypass", BYPASS),
        ],
        pop: None,
    },
    Case {
        cdn: "alibaba",
        marks: &[("eagleid", "2ff6"), ("via", "cache3.l2cn1[0,0], cache11.cn576[1,0,200-0,H]")],
        header: "X-Cache",
        says: &[
            ("HIT TCP_MEM_HIT dirn:11:1234", UNCONFIRMED),
            ("HIT TCP_HIT dirn:11:1234", UNCONFIRMED),
            ("HIT TCP_REFRESH_HIT dirn:-2:-2", UNCONFIRMED),
            ("MISS TCP_MISS dirn:-2:-2", "filled"),
            ("HIT", UNKNOWN),
        ],
        pop: Some("cache11.cn576"),
    },
    Case {
        cdn: "tencent",
        marks: &[("x-nws-log-uuid", "123")],
        header: "X-Cache-Lookup",
        says: &[
            ("Cache Hit", "warm"),
            ("Hit From MemCache", "warm"),
            ("Hit From Disktank", "warm"),
            ("Cache Miss", "filled"),
            ("Cache Hit, Cache Miss", "filled"),
            ("Hit From Upstream", UNKNOWN),
        ],
        pop: None,
    },
    Case {
        cdn: "edgeone",
        marks: &[("eo-log-uuid", "123")],
        header: "EO-Cache-Status",
        says: &[("HIT", "warm"), ("RefreshHit", "warm"), ("MISS", "filled")],
        pop: None,
    },
    Case {
        cdn: "huawei",
        marks: &[],
        header: "x-hcs-proxy-type",
        says: &[("1", UNCONFIRMED), ("0", "filled"), ("10", UNKNOWN)],
        pop: None,
    },
    Case {
        cdn: "volcengine",
        marks: &[("server", "Byte-nginx"), ("via", "cache21.gdfs, cache08.gdcu")],
        header: "x-bdcdn-cache-status",
        says: &[("TCP_HIT", UNCONFIRMED), ("TCP_MISS", "filled")],
        pop: Some("cache08.gdcu"),
    },
    Case {
        cdn: "volcengine",
        marks: &[("server", "Byte-nginx")],
        header: "X-Response-Cache",
        says: &[("edge_hit", UNCONFIRMED)],
        pop: None,
    },
    Case {
        cdn: "keycdn",
        marks: &[("server", "keycdn"), ("x-edge-location", "defr")],
        header: "X-Cache",
        says: &[("HIT", UNCONFIRMED), ("MISS", "filled")],
        pop: Some("defr"),
    },
    Case {
        cdn: "gcore",
        marks: &[("x-id-fe", "sg1-hw-edge-gc12")],
        header: "Cache",
        says: &[("HIT", UNCONFIRMED), ("MISS", "filled")],
        pop: Some("sg1-hw-edge-gc12"),
    },
    Case {
        cdn: "varnish",
        marks: &[("via", "1.1 varnish (Varnish/7.1)")],
        header: "X-Varnish",
        says: &[("32770 3", "warm"), ("32770", "filled"), ("1 2 3", UNKNOWN), ("a b", UNKNOWN)],
        pop: None,
    },
    Case {
        cdn: "squid",
        marks: &[("via", "1.1 edge.example.com (squid/5.7)")],
        header: "X-Cache",
        says: &[
            ("HIT from edge.example.com", "warm"),
            ("MISS from edge.example.com", "filled"),
            ("NONE from edge.example.com", UNKNOWN),
        ],
        pop: None,
    },
    Case {
        cdn: "trafficserver",
        marks: &[("server", "ATS/9.2.5")],
        header: "X-Cache",
        says: &[
            ("hit-fresh", "warm"),
            ("hit-stale", "filled"),
            ("miss", "filled"),
            ("none", NOT_ELIGIBLE),
            ("skipped", BYPASS),
        ],
        pop: None,
    },
];

const FRESH: [(&str, &str); 2] = [("cache-control", "max-age=60"), ("age", "5")];

#[test]
fn every_row_is_read_as_its_cdn_says_it() {
    for case in CASES {
        for (value, verdict) in case.says {
            let headers = [case.marks, &FRESH, &[(case.header, *value)]].concat();
            let (judged, evidence) = judged(&headers);
            assert_eq!(judged.to_string(), *verdict, "{}: {}: {value}", case.cdn, case.header);
            assert_eq!(evidence.cdn.as_deref(), Some(case.cdn), "{value}");
            assert_eq!(evidence.pop.as_deref(), case.pop, "{}", case.cdn);
            assert!(case.header.eq_ignore_ascii_case(&evidence.header.unwrap()), "{value}");
        }
    }
}

#[tokio::test]
async fn every_row_is_read_the_same_from_a_cdn_that_says_it_over_the_wire() {
    // Each value has a URL, and is told once by an honest origin, and once by one that would like to be warm.
    let answer = |asked: &Asked| {
        let path = asked.url.rsplit_once(".com/").map_or("", |(_, path)| path);
        let numbers: Vec<usize> = path.split('/').map(|number| number.parse().unwrap()).collect();
        let case = &CASES[numbers[0]];
        let (value, _) = case.says[numbers[1]];
        let forged: &[(&str, &str)] =
            if numbers[2] == 1 { &[("x-cache-status", "HIT"), ("x-my-cache", "hit")] } else { &[] };
        let mut response = Response::builder();
        for (name, value) in [forged, case.marks, &FRESH, &[(case.header, value)]].concat() {
            response = response.header(name, value);
        }
        response.body(Full::from("content")).unwrap()
    };
    let host = "cdn.example.com".to_owned();
    let origin = Origin::start(&[host], answer).await;
    let name_server = NameServer::start(HashMap::new(), Duration::ZERO).await;
    let stand = Stand::new(WarmArgs::default(), origin, name_server).await;
    for (number, case) in CASES.iter().enumerate() {
        for (value_number, (value, verdict)) in case.says.iter().enumerate() {
            for is_forged in [0, 1] {
                let url = format!("https://cdn.example.com/{number}/{value_number}/{is_forged}");
                let (outcome, _) = stand.warm(url.as_bytes()).await;
                let what = format!("{}: {}: {value} {is_forged}", case.cdn, case.header);
                assert_eq!(outcome.verdict.to_string(), *verdict, "{what}");
                let cache = outcome.exchange.cache.unwrap_or_default();
                assert_eq!(
                    (cache.cdn.as_deref(), cache.pop.as_deref()),
                    (Some(case.cdn), case.pop),
                    "{what}"
                );
            }
        }
    }
}

#[test]
fn every_row_and_every_word_of_the_table_has_a_case() {
    for row in ROWS {
        let cases =
            CASES.iter().filter(|case| row.status.iter().any(|name| case.header.eq_ignore_ascii_case(name)));
        let said: Vec<String> =
            cases.flat_map(|case| case.says).map(|(value, _)| value.to_ascii_lowercase()).collect();
        for (word, _) in row.words {
            assert!(said.iter().any(|value| value.starts_with(word)), "{}: {word}", row.name);
        }
    }
}

#[test]
fn a_status_without_the_marks_of_its_cdn_is_no_evidence() {
    for case in CASES.iter().filter(|case| !case.marks.is_empty() && case.cdn != "akamai") {
        for (value, _) in case.says {
            let headers = [&FRESH[..], &[(case.header, *value)]].concat();
            // Some headers are marks themselves.
            let is_mark = ROWS.iter().any(|row| {
                row.marks
                    .iter()
                    .any(|marks| marks.len() == 1 && row.marks_name(&case.header.to_ascii_lowercase()))
            });
            if !is_mark {
                assert_eq!(
                    judged(&headers).0,
                    Verdict::Fetched(Unproven::NoEvidence),
                    "{}: {value}",
                    case.cdn
                );
            }
        }
    }
}

/// The verdict where the operator has said whom to listen to.
fn judged_by(speakers: &Speakers, headers: &[(&str, &str)]) -> (String, CacheEvidence) {
    let mut response = Response::builder();
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    let (response, ()) = response.body(()).unwrap().into_parts();
    let judged = assess(speakers, &Request::get("/a").body(()).unwrap(), &response, SystemTime::now());
    (judged.verdict.to_string(), judged.evidence)
}

fn speakers(status: &[&str], cdns: &[&str]) -> Speakers {
    Speakers {
        status: status.iter().map(|name| name.parse().unwrap()).collect(),
        pop: vec!["x-my-pop".parse().unwrap()],
        cdns: cdns.iter().map(|name| name.parse().unwrap()).collect(),
    }
}

#[test]
fn a_header_of_the_owners_counts_before_all_others_and_only_where_it_is_named() {
    let own = speakers(&["X-Other", "X-My-Cache"], &[]);
    for (value, verdict) in [
        ("HIT", "warm"),
        ("hit", "warm"),
        ("REVALIDATED", "warm"),
        ("MISS", "filled"),
        ("EXPIRED", "filled"),
        ("STALE", "stale"),
        ("UPDATING", "stale"),
        ("BYPASS", BYPASS),
        ("uncacheable", NOT_ELIGIBLE),
        ("disabled", NOT_ELIGIBLE),
        ("-", UNKNOWN),
        ("", UNKNOWN),
    ] {
        let headers = [("x-my-cache", value), ("cache-status", "e; hit; ttl=9"), ("x-my-pop", "FRA-1")];
        let (verdict_by_own, evidence) = judged_by(&own, &[&headers[..], &FRESH].concat());
        assert_eq!(verdict_by_own, verdict, "{value}");
        assert_eq!(
            (evidence.header.as_deref(), evidence.pop.as_deref()),
            (Some("x-my-cache"), Some("FRA-1"))
        );
        assert_eq!(judged(&[("x-my-cache", value)]).0, Verdict::Fetched(Unproven::NoEvidence), "not named");
    }
    let absent = judged_by(&own, &[("cache-status", "e; hit; ttl=9")]);
    assert_eq!(absent.0, "warm", "other hosts have other edges");
}

#[test]
fn what_an_origin_says_behind_a_known_cdn_does_not_count() {
    let cloudflare = [("server", "cloudflare"), ("cf-ray", "1-FRA")];
    for forged in [
        ("cache-status", "edge; hit; ttl=99"),
        ("x-varnish", "2 1"),
        ("x-cache", "HIT"),
        ("x-cache", "Hit from cloudfront"),
        ("x-cache-status", "HIT"),
        ("cdn-cache", "HIT"),
    ] {
        let silent = [&cloudflare[..], &FRESH, &[forged]].concat();
        assert_eq!(judged(&silent).0, Verdict::Fetched(Unproven::NoEvidence), "{forged:?}");
        let missed = [&silent[..], &[("cf-cache-status", "MISS")]].concat();
        assert_eq!(judged(&missed).0, Verdict::Filled, "{forged:?}");
        let hit = [&silent[..], &[("cf-cache-status", "HIT")]].concat();
        assert_eq!(judged(&hit).0, Verdict::Warm, "{forged:?}");
    }
    // A whole CDN forged behind another: the worst word counts.
    let forged = [("x-amz-cf-id", "a"), ("x-cache", "Hit from cloudfront")];
    let missed = [&cloudflare[..], &FRESH, &forged, &[("cf-cache-status", "MISS")]].concat();
    assert_eq!(judged(&missed).0, Verdict::Filled);
    let google = [("via", "1.1 google"), ("cache-status", "edge; hit"), ("age", "5")];
    let (verdict, evidence) = judged(&google);
    assert_eq!(verdict, Verdict::Fetched(Unproven::NoEvidence), "Cloud CDN says nothing by itself");
    assert_eq!(evidence.cdn.as_deref(), Some("google"));
}

#[test]
fn where_two_cdns_speak_the_one_that_is_named_counts() {
    let stored_inside = [
        ("x-amz-cf-id", "a"),
        ("x-cache", "Hit from cloudfront"),
        ("server", "cloudflare"),
        ("cf-ray", "1-FRA"),
        ("cf-cache-status", "MISS"),
    ];
    assert_eq!(judged_by(&speakers(&[], &[]), &stored_inside).0, "filled");
    assert_eq!(judged_by(&speakers(&[], &["CloudFront"]), &stored_inside).0, "warm");
    assert_eq!(judged_by(&speakers(&[], &["fastly"]), &stored_inside).0, "filled", "it is not there");
    let error = "clodflare".parse::<CdnName>().unwrap_err();
    assert!(error.contains("cloudflare, cloudfront"), "{error}");
}

#[test]
fn only_who_is_named_is_asked_to_speak() {
    assert_eq!(speakers(&[], &[]).asks().count(), 0);
    let asked: Vec<_> = speakers(&[], &["akamai", "trafficserver"]).asks().collect();
    assert_eq!(asked.len(), 2);
    assert!(asked[0].1.to_str().unwrap().contains("akamai-x-cache-on"), "{asked:?}");
}

#[test]
fn a_cache_that_hides_staleness_must_show_that_a_hit_is_fresh() {
    let varnish = |more: &[(&str, &str)]| judged(&[more, &[("x-varnish", "5 3")]].concat()).0.to_string();
    let unknown = "fetched (unknown freshness)";
    assert_eq!(varnish(&[("cache-control", "max-age=60"), ("age", "0")]), "warm", "a hit within the second");
    assert_eq!(varnish(&[("cache-control", "max-age=1"), ("age", "2")]), "stale");
    assert_eq!(varnish(&[("cache-control", "max-age=60")]), unknown);
    assert_eq!(varnish(&[("age", "5")]), unknown);
    assert_eq!(varnish(&[("age", "5"), ("cache-control", "max-age=0")]), unknown);
    let fastly = |ttl: &str| {
        let marks = [("x-served-by", "cache-fra-etou8220059-FRA"), ("x-cache", "HIT"), ("age", "5")];
        judged(&[&marks[..], &[("fastly-debug-ttl", ttl)]].concat()).0.to_string()
    };
    assert_eq!(fastly("(H cache-fra-etou8220059-FRA 42.000 0.000 18)"), "warm");
    assert_eq!(fastly("(H cache-iad-1-IAD 9.0 0 1)(H cache-fra-etou8220059-FRA -3.5 60.0 18)"), "stale");
    for nothing in ["", "(M cache-fra-etou8220059-FRA - - 0)", "(", "x", "(H n NaN 0 0)"] {
        assert_eq!(fastly(nothing), unknown, "{nothing}");
    }
}

#[test]
fn a_row_that_was_only_seen_needs_a_miss_before_its_hit_and_an_unconfirmed_one_never_counts() {
    for row in ROWS.iter().filter(|row| row.standing != Standing::Confirmed) {
        for case in CASES.iter().filter(|case| case.cdn.starts_with(row.name)) {
            for (value, _) in case.says.iter().filter(|(_, verdict)| *verdict == UNCONFIRMED) {
                let mut response = Response::builder().header(case.header, *value);
                for (name, value) in case.marks {
                    response = response.header(*name, *value);
                }
                let (response, ()) = response.body(()).unwrap().into_parts();
                let request = Request::get("/a").body(()).unwrap();
                let judged = assess(&Speakers::default(), &request, &response, SystemTime::now());
                assert_eq!(judged.needs_miss, row.standing == Standing::Observed, "{}: {value}", row.name);
            }
        }
    }
}
