//! The corpora of URLs, addresses, redirects and rebinding names, each row through the code that fetches.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::Response;
use http_body_util::Full;
use ipnet::IpNet;
use url::Url;

use super::WarmArgs;
use super::addresses::check_public;
use super::guard::Guard;
use super::names::NoAddress;
use super::stand::origin::{Answer, Asked, Origin, cacheable, status};
use super::stand::{NameServer, PUBLIC, Stand, addresses, corpus_names, is_refused, rows};
use crate::request::{NotARequest, WarmRequest};

/// The hosts of these URLs, as a certificate names them.
fn hosts<'a>(urls: impl Iterator<Item = &'a str>) -> Vec<String> {
    let url = |text: &str| Some(WarmRequest::parse(text.as_bytes(), []).ok()?.url().clone());
    let mut hosts: Vec<String> = urls
        .filter_map(url)
        .filter_map(|url| Some(url.host_str()?.trim_matches(['[', ']']).trim_end_matches('.').to_owned()))
        .collect();
    hosts.sort();
    hosts.dedup();
    hosts
}

fn closing(mut answer: Answer) -> Answer {
    answer.headers_mut().insert("connection", "close".parse().unwrap());
    answer
}

#[tokio::test]
async fn every_url_of_the_corpus_gets_its_verdict_and_no_refused_one_a_connection() {
    let rows = rows("ssrf_urls.txt");
    assert_eq!(rows.len(), 190);
    let origin = Origin::start(&hosts(rows.iter().map(|row| row[1].as_str())), |_| cacheable()).await;
    let name_server = NameServer::start(corpus_names(), Duration::ZERO).await;
    let stand =
        Stand::new(WarmArgs { follow_redirects: 5, ..WarmArgs::default() }, origin, name_server).await;
    for row in &rows {
        let (outcome, dialled) = stand.warm(row[1].as_bytes()).await;
        let asked = stand.origin.asked();
        stand.origin.forget();
        match row[0].as_str() {
            "allow" => {
                assert_eq!(outcome.verdict.word(), "fetched", "{row:?} gave {}", outcome.verdict);
                assert_eq!(asked.len(), 1, "{row:?}");
            }
            "block" => {
                assert!(is_refused(&outcome), "{row:?} gave {}", outcome.verdict);
                assert_eq!((dialled, asked.len()), (Vec::new(), 0), "{row:?}");
            }
            other => panic!("{other}"),
        }
    }
}

#[tokio::test]
async fn every_redirect_of_the_corpus_gets_its_verdict() {
    for row in rows("ssrf_redirects.txt") {
        let (verdict, start, chain) = (row[0].as_str(), row[1].as_str(), row[2].as_str());
        let hops: Vec<(u16, Option<String>)> = chain
            .split(" > ")
            .filter(|hop| *hop != "...")
            .map(|hop| match hop.split_once(' ') {
                Some((status, location)) => (status.parse().unwrap(), Some(location.to_owned())),
                None => (hop.parse().unwrap(), None),
            })
            .collect();
        if chain.contains('\r') {
            // No header can hold it; on the wire it ends the header, and what is left is judged here.
            let first = WarmRequest::parse(start.as_bytes(), []).unwrap();
            let location = hops[0].1.as_deref().unwrap();
            assert!(first.redirected(location.as_bytes()).is_err(), "{row:?}");
        }
        // A loop starts over; any other chain ends with a whole answer.
        let loops = chain.ends_with("...") || hops[0].1.as_deref() == Some(start);
        let number = AtomicUsize::new(0);
        let number = Arc::new(number);
        let script = hops.clone();
        let hosts = ["start.example.com", "a.example.com", "cdn.example.net", "example.com"];
        let origin = Origin::start(&hosts.map(str::to_owned), move |_: &Asked| {
            let at = number.fetch_add(1, Ordering::Relaxed);
            let Some((code, location)) = script.get(if loops { at % script.len() } else { at }) else {
                return cacheable();
            };
            let mut answer = status(*code);
            if let Some(location) = location {
                let line = location.split(['\r', '\n']).next().unwrap();
                answer.headers_mut().insert("location", line.parse().unwrap());
            }
            answer
        })
        .await;
        let name_server = NameServer::start(corpus_names(), Duration::ZERO).await;
        let args = WarmArgs { follow_redirects: 5, ..WarmArgs::default() };
        let stand = Stand::new(args, origin, name_server).await;
        let (outcome, dialled) = stand.warm(start.as_bytes()).await;
        let said = format!("{row:?} gave {} by way of {dialled:?}", outcome.verdict);
        assert!(dialled.iter().all(|address| address.ip() == PUBLIC), "{said}");
        let gets = stand.origin.asked().len();
        assert_eq!(gets, usize::try_from(outcome.attempts).unwrap(), "{said}");
        match verdict {
            "allow" if hops[0].0 == 304 => {
                assert_eq!(outcome.reason.as_deref(), Some("status 304"), "{said}")
            }
            "allow" => {
                assert_eq!((outcome.verdict.word(), gets), ("fetched", 2), "{said}");
                assert!(outcome.final_url.is_some(), "{said}");
            }
            "block" if loops => assert_eq!((outcome.verdict.word(), gets), ("failed", 6), "{said}"),
            "block" => {
                assert!(is_refused(&outcome), "{said}");
                assert_eq!(gets, 1, "{said}");
            }
            other => panic!("{other}"),
        }
    }
}

#[tokio::test]
async fn a_name_that_rebinds_never_leads_where_it_must_not() {
    let rows = rows("ssrf_rebind.txt");
    assert_eq!(rows.len(), 7);
    let names: HashMap<String, Vec<Vec<IpAddr>>> = rows
        .iter()
        .map(|row| {
            let host = Url::parse(&row[0]).unwrap().host_str().unwrap().to_owned();
            (host, row[1].split('|').map(addresses).collect())
        })
        .collect();
    let origin = Origin::start(&[], |_| closing(cacheable())).await;
    let name_server = NameServer::start(names, Duration::ZERO).await;
    let stand = Stand::new(WarmArgs::default(), origin, name_server).await;
    for row in &rows {
        let never: IpAddr = row[2].parse().unwrap();
        let mut refused = 0;
        for _ in 0..4 {
            let (outcome, dialled) = stand.warm(row[0].as_bytes()).await;
            let allowed = |at: &SocketAddr| at.ip().to_canonical() != never && check_public(at.ip()).is_ok();
            assert!(dialled.iter().all(allowed), "{row:?} dialled {dialled:?}");
            assert_eq!(dialled.is_empty(), is_refused(&outcome), "{row:?} gave {}", outcome.verdict);
            refused += u32::from(is_refused(&outcome));
        }
        assert!(refused > 0, "{row:?}: the script got as far as the bad answer");
    }
}

#[tokio::test]
async fn a_name_that_leads_to_any_special_block_is_refused() {
    let blocks: Vec<IpNet> = rows("special_ips.txt").iter().map(|row| row[0].parse().unwrap()).collect();
    assert_eq!(blocks.len(), 57);
    let ends: Vec<IpAddr> = blocks.iter().flat_map(|net| [net.network(), net.broadcast()]).collect();
    let names = ends.iter().enumerate();
    // Beside a public address, which makes it no better.
    let names = names.map(|(n, ip)| (format!("n{n}.example.com"), vec![vec![PUBLIC, *ip]])).collect();
    let name_server = NameServer::start(names, Duration::ZERO).await;
    let origin = Origin::start(&[], |_| cacheable()).await;
    let stand = Stand::new(WarmArgs::default(), origin, name_server).await;
    for (number, ip) in ends.iter().enumerate() {
        let (outcome, dialled) = stand.warm(format!("http://n{number}.example.com/").as_bytes()).await;
        assert!(is_refused(&outcome) && dialled.is_empty(), "{ip}: {}, {dialled:?}", outcome.verdict);
        assert!(outcome.reason.unwrap().contains(&format!("address {ip}: ")), "{ip}");
    }
}

/// An address in eight notations, as the host of a URL.
fn notations(address: IpAddr) -> [String; 8] {
    match address {
        IpAddr::V4(ip) => {
            let [a, b, c, d] = ip.octets();
            let bits = u32::from(ip);
            let full_width = |text: String| {
                text.chars().map(|c| char::from_u32(c as u32 + 0xfee0).unwrap()).collect::<String>()
            };
            [
                format!("{ip}"),
                format!("{bits}"),
                format!("0x{bits:X}"),
                format!("0{a:o}.0{b:o}.0{c:o}.0{d:o}"),
                format!("0x{a:x}.{b}.0{:o}", u32::from(c) << 8 | u32::from(d)),
                format!("%{:02x}{}.{b}.{c}.{d}.", format!("{a}").as_bytes()[0], &format!("{a}")[1..]),
                full_width(format!("{ip}")),
                format!("[::ffff:{ip}]"),
            ]
        }
        IpAddr::V6(ip) => {
            let [a, b, c, d, e, f, g, h] = ip.segments();
            let [.., w, x, y, z] = ip.octets();
            let last = Ipv4Addr::new(w, x, y, z);
            let padded = format!("{a:04x}:{b:04x}:{c:04x}:{d:04x}:{e:04x}:{f:04x}");
            [
                format!("[{ip}]"),
                format!("[{}]", ip.to_string().to_uppercase()),
                format!("[{a:x}:{b:x}:{c:x}:{d:x}:{e:x}:{f:x}:{g:x}:{h:x}]"),
                format!("[{padded}:{g:04x}:{h:04x}]"),
                format!("[{}:{g:04X}:{h:04X}]", padded.to_uppercase()),
                format!("[{a:x}:{b:x}:{c:x}:{d:x}:{e:x}:{f:x}:{last}]"),
                format!("[{padded}:{last}]"),
                format!("[{ip}]:443"),
            ]
        }
    }
}

/// An address drawn evenly from a block.
fn drawn(net: IpNet, random: &mut fastrand::Rng) -> IpAddr {
    match net {
        IpNet::V4(net) => {
            Ipv4Addr::from(u32::from(net.network()) | random.u32(..) & u32::from(net.hostmask())).into()
        }
        IpNet::V6(net) => {
            Ipv6Addr::from(u128::from(net.network()) | random.u128(..) & u128::from(net.hostmask())).into()
        }
    }
}

/// Draws this many special addresses and asks the guard about each in every notation.
fn refuse_special_addresses(count: usize) {
    let rows = rows("special_ips.txt");
    let blocks: Vec<IpNet> = rows.iter().map(|row| row[0].parse().unwrap()).collect();
    let of_ipv4: Vec<IpNet> = blocks.iter().copied().filter(|net| net.addr().is_ipv4()).collect();
    let guard = Guard::default();
    let mut random = fastrand::Rng::with_seed(20_261_122);
    for _ in 0..count {
        let at = random.usize(..rows.len());
        let mut address = drawn(blocks[at], &mut random);
        if let (IpAddr::V6(ip), "embedded") = (address, rows[at][8].as_str()) {
            // What stands for a public address may be fetched; here it stands for a special one.
            let IpAddr::V4(inner) = drawn(of_ipv4[random.usize(..of_ipv4.len())], &mut random) else {
                unreachable!("a block of IPv4")
            };
            address = Ipv6Addr::from(u128::from(ip) >> 32 << 32 | u128::from(u32::from(inner))).into();
        }
        for host in notations(address) {
            let request = match WarmRequest::parse(format!("http://{host}/").as_bytes(), []) {
                Ok(request) => request,
                Err(error @ (NotARequest::Malformed(_) | NotARequest::Refused(_))) => {
                    panic!("{host} of {address} is no URL: {error:?}")
                }
            };
            let reason = guard.check(request.url()).expect_err(&host);
            assert!(reason.starts_with("address "), "{host}: {reason}");
        }
    }
}

#[test]
fn special_addresses_are_refused_in_every_notation() {
    refuse_special_addresses(2_000);
}

/// The long form: `cargo test --release --lib a_million_special -- --ignored`.
#[test]
#[ignore = "takes a minute"]
fn a_million_special_addresses_are_refused_in_every_notation() {
    refuse_special_addresses(1_000_000);
}

#[tokio::test]
async fn a_thousand_gets_to_one_host_at_once_are_one_look_up() {
    let name_server = NameServer::start(HashMap::new(), Duration::from_millis(50)).await;
    let names = name_server.names(Duration::from_secs(5));
    let look_ups = (0..1000).map(|_| names.look_up("cdn.example.com"));
    for found in futures_util::future::join_all(look_ups).await {
        assert_eq!(found.unwrap()[..], [PUBLIC]);
    }
    // One for each kind of address.
    assert_eq!(name_server.asked.load(Ordering::Relaxed), 2);
    assert_eq!(names.look_up("CDN.example.com").await.unwrap()[..], [PUBLIC], "in any case of letters");
    assert_eq!(name_server.asked.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn the_hosts_file_goes_before_the_name_server() {
    let name_server = NameServer::start(HashMap::new(), Duration::ZERO).await;
    let names = name_server.names(Duration::from_secs(5));
    let found = names.look_up("only.hosts.example.com").await.unwrap();
    assert_eq!(found[..], [IpAddr::from([10, 1, 1, 1])]);
    assert_eq!(name_server.asked.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_name_server_that_is_silent_about_one_name_does_not_hold_up_the_others() {
    let silent = (0..300).map(|n| (format!("silent{n}.example.com"), Vec::new())).collect();
    let name_server = NameServer::start(silent, Duration::ZERO).await;
    let names = Arc::new(name_server.names(Duration::from_secs(5)));
    let waiting: Vec<_> = (0..300)
        .map(|n| {
            let names = names.clone();
            tokio::spawn(async move { names.look_up(&format!("silent{n}.example.com")).await })
        })
        .collect();
    // Most of them are asked about before the one that is answered. A flood may lose a packet or two.
    let asked = async {
        while name_server.asked.load(Ordering::Relaxed) < 300 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), asked).await.unwrap();
    assert_eq!(names.look_up("cdn.example.com").await.unwrap()[..], [PUBLIC]);
    assert!(waiting.iter().any(|look_up| !look_up.is_finished()), "it did not wait for the others");
    for look_up in waiting {
        assert_eq!(look_up.await.unwrap(), Err(NoAddress::Timeout));
    }
}

/// A stand whose origin answers by URL: another URL to redirect to, or what it can be warmed with.
async fn redirecting(args: WarmArgs, redirects: &[(&str, &str)]) -> Stand {
    let redirects: HashMap<String, String> =
        redirects.iter().map(|(from, to)| ((*from).to_owned(), (*to).to_owned())).collect();
    let hosts = ["a.example.com", "b.example.com"].map(str::to_owned);
    let origin = Origin::start(&hosts, move |asked| match redirects.get(&asked.url) {
        Some(to) => Response::builder().status(302).header("location", to).body(Full::default()).unwrap(),
        None => cacheable(),
    })
    .await;
    let name_server = NameServer::start(corpus_names(), Duration::ZERO).await;
    Stand::new(args, origin, name_server).await
}

fn following(follow_redirects: u8) -> WarmArgs {
    WarmArgs { follow_redirects, ..WarmArgs::default() }
}

#[tokio::test]
async fn a_redirect_is_followed_to_the_final_response_and_shown() {
    let chain = [
        ("http://a.example.com/1", "https://a.example.com/2"),
        ("https://a.example.com/2", "//b.example.com/3?token=secret"),
    ];
    let stand = redirecting(following(2), &chain).await;
    let (outcome, dialled) = stand.warm(b"http://a.example.com/1").await;
    assert_eq!((outcome.verdict.word(), outcome.attempts), ("fetched", 3));
    assert_eq!(outcome.exchange.http_status, Some(200));
    assert_eq!(outcome.url, "http://a.example.com/1");
    assert_eq!(outcome.final_url.as_deref(), Some("https://b.example.com/3?token=…"));
    assert_eq!(dialled.len(), 3);
    assert_eq!(stand.name_server.asked.load(Ordering::Relaxed), 6, "a look-up of its own for each hop");

    let stand = redirecting(following(1), &chain).await;
    let (outcome, _) = stand.warm(b"http://a.example.com/1").await;
    let reason = "redirect to https://b.example.com/3?token=…: more than 1";
    assert_eq!((outcome.reason.as_deref(), outcome.attempts), (Some(reason), 2));
}

#[tokio::test]
async fn without_redirects_the_target_is_told() {
    let stand = redirecting(following(0), &[("http://a.example.com/1", "http://10.0.0.1/2")]).await;
    let (outcome, _) = stand.warm(b"http://a.example.com/1").await;
    assert_eq!(outcome.verdict.to_string(), "failed (redirect to http://10.0.0.1/2)");
    assert_eq!((outcome.attempts, outcome.final_url), (1, None));
}

#[tokio::test]
async fn a_redirect_is_judged_by_the_operators_lists() {
    let chain = [("http://a.example.com/1", "http://b.example.com/2")];
    let args = WarmArgs { only_hosts: vec!["a.example.com".parse().ok()], ..following(5) };
    let stand = redirecting(args, &chain).await;
    let (outcome, _) = stand.warm(b"http://a.example.com/1").await;
    let reason = "redirect to http://b.example.com/2: host b.example.com: not among --only-hosts";
    assert_eq!(outcome.reason.as_deref(), Some(reason));
    assert_eq!(stand.origin.asked().len(), 1);

    let chain = [("http://a.example.com/1", "http://private-a.example.com:8080/2")];
    let args = WarmArgs { allow_host: vec!["private-a.example.com:8080".parse().ok()], ..following(5) };
    let stand = redirecting(args, &chain).await;
    let (outcome, dialled) = stand.warm(b"http://a.example.com/1").await;
    assert_eq!(outcome.verdict.word(), "fetched");
    assert_eq!(dialled[1], "10.0.0.5:8080".parse().unwrap());
}

#[tokio::test]
async fn a_credential_goes_to_the_first_origin_alone() {
    let chain = [
        ("https://a.example.com/1", "/2"),
        ("https://a.example.com/2", "https://b.example.com/3"),
        ("https://b.example.com/3", "https://a.example.com/4"),
    ];
    let stand = redirecting(following(5), &chain).await;
    let options = [("warm-header-cookie", "session=secret"), ("warm-header-accept-language", "de")];
    let (outcome, _) = stand.warm_with(b"https://a.example.com/1", &options).await;
    assert_eq!(outcome.attempts, 4);
    let seen: Vec<_> = stand
        .origin
        .asked()
        .iter()
        .map(|asked| (asked.headers.contains_key("cookie"), asked.headers.contains_key("accept-language")))
        .collect();
    assert_eq!(seen, [(true, true), (true, true), (false, true), (false, true)]);
}

#[tokio::test]
async fn every_hop_shares_the_time_for_one_url() {
    let asked = Arc::new(Mutex::new(0));
    let count = asked.clone();
    let origin = Origin::start_slow(&[], Duration::from_millis(700), move |_| {
        *count.lock().unwrap() += 1;
        Response::builder().status(302).header("location", "/on").body(Full::default()).unwrap()
    })
    .await;
    let name_server = NameServer::start(HashMap::new(), Duration::ZERO).await;
    let mut stand = Stand::new(following(10), origin, name_server).await;
    stand.warmer.limit = Duration::from_secs(2);
    let (outcome, _) = stand.warm(b"http://a.example.com/1").await;
    assert_eq!(outcome.verdict.to_string(), "failed (total timeout)");
    assert!((1..5).contains(&*asked.lock().unwrap()), "some hops, and not all of them");
}
