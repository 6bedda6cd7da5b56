//! Which addresses may be connected to: the public ones, and what the operator adds or steers elsewhere.
//!
//! Plain judgements on values; who asks, and when, is `warm::guard`'s business. Next to read: `warm/guard.rs`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::LazyLock;

use ipnet::{IpNet, Ipv6Net};
use url::Host;

use self::Rule::{JudgeLast32Bits, Refuse};

/// Whether `address` is one that a public web server can have.
///
/// Every special-purpose block is refused, also the few that are globally reachable: they serve protocols, never URLs.
/// An IPv6 address that stands for an IPv4 one (mapped, NAT64) is judged as that one. A NAT64 prefix of a
/// network's own (RFC 6052, section 2.2) cannot be told from other global unicast addresses, and is judged as one.
///
/// # Errors
/// The name of the block that `address` is in, for the refusal's reason.
pub(crate) fn check_public(address: IpAddr) -> Result<(), &'static str> {
    match (BLOCKS.iter().find(|block| block.net.contains(&address)), address) {
        (Some(Block { rule: JudgeLast32Bits, .. }), IpAddr::V6(address)) => {
            let [.., a, b, c, d] = address.octets();
            check_public(Ipv4Addr::new(a, b, c, d).into())
        }
        (Some(block), _) => Err(block.name),
        (None, IpAddr::V6(address)) if !GLOBAL_UNICAST.contains(&address) => Err("Not global unicast"),
        (None, _) => Ok(()),
    }
}

/// `--allow-address NET:PORT`: a block, or a single address, that may be connected to on one port though not public.
///
/// Written `10.1.2.3:80`, `127.0.0.0/8:8080`, `[::1]:8080` or `[fd00::/8]:443`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AllowedAddress {
    net: IpNet,
    port: u16,
}

impl AllowedAddress {
    /// The one port that it opens.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Whether it covers `address`; an IPv4-mapped one also where it covers the IPv4 address that it stands for.
    pub(crate) fn contains(&self, address: SocketAddr) -> bool {
        let ip = address.ip();
        self.port == address.port() && (self.net.contains(&ip) || self.net.contains(&ip.to_canonical()))
    }
}

impl FromStr for AllowedAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (net, port) = text.rsplit_once(':').ok_or_else(|| {
            format!("{text:?} has no port: write NET:PORT, such as 10.1.2.3:80 or 127.0.0.0/8:8080")
        })?;
        let net = match net.strip_prefix('[').and_then(|net| net.strip_suffix(']')) {
            Some(net) if net.contains(':') => net,
            None if !net.contains(':') => net,
            _ => {
                return Err(format!(
                    "{text:?}: brackets go round IPv6, such as [::1]:8080 or [fd00::/8]:443"
                ));
            }
        };
        let single = |net: &str| net.parse::<IpAddr>().ok().map(IpNet::from);
        let net: IpNet = (net.parse().ok())
            .or_else(|| single(net))
            .ok_or_else(|| format!("{net:?} is neither an address nor a block such as 10.0.0.0/8"))?;
        // A mistyped block would open more than was meant.
        if net != net.trunc() {
            return Err(format!(
                "{net} has bits behind its prefix; for the whole block write {}",
                net.trunc()
            ));
        }
        Ok(Self { net, port: parse_port(port)? })
    }
}

/// As it is written on the command line.
impl fmt::Display for AllowedAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { net, port } = self;
        match net {
            _ if net.prefix_len() == net.max_prefix_len() => {
                write!(f, "{}", SocketAddr::new(net.addr(), *port))
            }
            IpNet::V4(net) => write!(f, "{net}:{port}"),
            IpNet::V6(net) => write!(f, "[{net}]:{port}"),
        }
    }
}

/// `--connect-to HOST=ADDR[:PORT]`: where to connect for a host, instead of looking its name up.
///
/// Written `cdn.example.com=10.1.2.3:8080` or `cdn.example.com=[fd00::7]:443`; `*` as HOST stands for every host. Without a
/// port it is that of the URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ConnectTo {
    /// As the URL parser writes hosts, without a final dot; none for every host.
    host: Option<String>,
    ip: IpAddr,
    port: Option<u16>,
}

impl ConnectTo {
    /// `*=ADDR:PORT`.
    pub(crate) fn every_host(to: SocketAddr) -> Self {
        Self { host: None, ip: to.ip(), port: Some(to.port()) }
    }

    /// Whether it is for `host`, which is a URL's host; neither case nor one final dot makes a difference.
    pub(crate) fn applies_to(&self, host: &str) -> bool {
        self.host.as_deref().is_none_or(|own| own.eq_ignore_ascii_case(without_final_dot(host)))
    }

    /// Whether it is the one that names no host.
    pub(crate) fn is_for_every_host(&self) -> bool {
        self.host.is_none()
    }

    /// The address to connect to for a URL with this port.
    pub(crate) fn to(&self, url_port: u16) -> SocketAddr {
        SocketAddr::new(self.ip, self.port.unwrap_or(url_port))
    }
}

impl FromStr for ConnectTo {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (host, to) = text.split_once('=').ok_or_else(|| {
            format!("{text:?} has no equals sign: write HOST=ADDR or HOST=ADDR:PORT, such as cdn.example.com=10.1.2.3:443")
        })?;
        let host = if host == "*" { None } else { Some(parse_host(host)?) };
        let (ip, port) = match (to.parse::<SocketAddr>(), parse_plain_address(to)) {
            (Ok(to), _) => (to.ip(), Some(to.port())),
            (Err(_), Some(ip)) => (ip, None),
            (Err(_), None) => {
                return Err(format!(
                    "{to:?} is neither ADDR nor ADDR:PORT: the address is a literal one, such as 10.1.2.3:443 or [fd00::7]"
                ));
            }
        };
        if port == Some(0) {
            return Err(PORT_ZERO.to_owned());
        }
        Ok(Self { host, ip, port })
    }
}

/// As it is written on the command line.
impl fmt::Display for ConnectTo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = self.host.as_deref().unwrap_or("*");
        match (self.ip, self.port) {
            (ip, Some(port)) => write!(f, "{host}={}", SocketAddr::new(ip, port)),
            (IpAddr::V4(ip), None) => write!(f, "{host}={ip}"),
            (IpAddr::V6(ip), None) => write!(f, "{host}=[{ip}]"),
        }
    }
}

/// An address without a port, one of IPv6 in brackets: without them its end looks like a port.
fn parse_plain_address(text: &str) -> Option<IpAddr> {
    match text.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']')?.parse().ok().map(IpAddr::V6),
        None => text.parse().ok().map(IpAddr::V4),
    }
}

const PORT_ZERO: &str = "port 0 cannot be connected to";

pub(super) fn parse_port(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(0) => Err(PORT_ZERO.to_owned()),
        Ok(port) => Ok(port),
        Err(_) => Err(format!("{text:?} is not a port")),
    }
}

/// The host as the URL parser spells it (case, IDNA, short addresses), since its hosts are what this is compared with.
pub(super) fn parse_host(text: &str) -> Result<String, String> {
    // To the URL parser an asterisk is a character like others; whoever writes one means a pattern.
    Host::parse(text)
        .ok()
        .map(|host| without_final_dot(&host.to_string()).to_owned())
        .filter(|host| !host.is_empty() && !host.contains('*'))
        .ok_or_else(|| {
            format!("{text:?} is no host: write a name without scheme and port, or * for every host")
        })
}

pub(super) fn without_final_dot(host: &str) -> &str {
    host.strip_suffix('.').unwrap_or(host)
}

/// A row of the table below, ready for look-ups.
struct Block {
    net: IpNet,
    name: &'static str,
    rule: Rule,
}

#[derive(Clone, Copy)]
enum Rule {
    Refuse,
    /// The address stands for the IPv4 address in its last 32 bits.
    JudgeLast32Bits,
}

/// What IANA has handed out for unicast on the Internet (RFC 4291, section 2.4): no IPv6 address outside is public.
const GLOBAL_UNICAST: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);

/// The IANA Special-Purpose Address Registries of August 2026, with their names and RFCs, and what they leave out:
/// <https://www.iana.org/assignments/iana-ipv4-special-registry>,
/// <https://www.iana.org/assignments/iana-ipv6-special-registry>.
const TABLE: &[(&str, &str, Rule)] = &[
    // The IPv4 registry.
    ("0.0.0.0/8", "This network", Refuse),                      // RFC 791
    ("0.0.0.0/32", "This host on this network", Refuse),        // RFC 1122
    ("10.0.0.0/8", "Private-Use", Refuse),                      // RFC 1918
    ("100.64.0.0/10", "Shared Address Space", Refuse),          // RFC 6598
    ("127.0.0.0/8", "Loopback", Refuse),                        // RFC 1122
    ("169.254.0.0/16", "Link Local", Refuse),                   // RFC 3927
    ("172.16.0.0/12", "Private-Use", Refuse),                   // RFC 1918
    ("192.0.0.0/24", "IETF Protocol Assignments", Refuse),      // RFC 6890
    ("192.0.0.0/29", "IPv4 Service Continuity Prefix", Refuse), // RFC 7335
    ("192.0.0.8/32", "IPv4 dummy address", Refuse),             // RFC 7600
    ("192.0.0.9/32", "Port Control Protocol Anycast", Refuse),  // RFC 7723, globally reachable
    ("192.0.0.10/32", "Traversal Using Relays around NAT Anycast", Refuse), // RFC 8155, globally reachable
    ("192.0.0.170/32", "NAT64/DNS64 Discovery", Refuse),        // RFC 8880, RFC 7050
    ("192.0.0.171/32", "NAT64/DNS64 Discovery", Refuse),        // RFC 8880, RFC 7050
    ("192.0.2.0/24", "Documentation (TEST-NET-1)", Refuse),     // RFC 5737
    ("192.31.196.0/24", "AS112-v4", Refuse),                    // RFC 7535, globally reachable
    ("192.52.193.0/24", "AMT", Refuse),                         // RFC 7450, globally reachable
    ("192.88.99.0/24", "Deprecated (6to4 Relay Anycast)", Refuse), // RFC 7526
    ("192.88.99.2/32", "6a44-relay anycast address", Refuse),   // RFC 6751
    ("192.168.0.0/16", "Private-Use", Refuse),                  // RFC 1918
    ("192.175.48.0/24", "Direct Delegation AS112 Service", Refuse), // RFC 7534, globally reachable
    ("198.18.0.0/15", "Benchmarking", Refuse),                  // RFC 2544
    ("198.51.100.0/24", "Documentation (TEST-NET-2)", Refuse),  // RFC 5737
    ("203.0.113.0/24", "Documentation (TEST-NET-3)", Refuse),   // RFC 5737
    ("240.0.0.0/4", "Reserved", Refuse),                        // RFC 1112
    ("255.255.255.255/32", "Limited Broadcast", Refuse),        // RFC 8190, RFC 919
    // The IPv6 registry.
    ("::1/128", "Loopback Address", Refuse),   // RFC 4291
    ("::/128", "Unspecified Address", Refuse), // RFC 4291
    ("::ffff:0:0/96", "IPv4-mapped Address", JudgeLast32Bits), // RFC 4291
    // On a network with IPv6 alone, DNS64 answers with these for every site that has IPv4 alone.
    ("64:ff9b::/96", "IPv4-IPv6 Translation", JudgeLast32Bits), // RFC 6052
    ("64:ff9b:1::/48", "IPv4-IPv6 Translation (local use)", Refuse), // RFC 8215
    ("100::/64", "Discard-Only Address Block", Refuse),         // RFC 6666
    ("100:0:0:1::/64", "Dummy IPv6 Prefix", Refuse),            // RFC 9780
    ("2001::/23", "IETF Protocol Assignments", Refuse),         // RFC 2928
    ("2001::/32", "TEREDO", Refuse),                            // RFC 4380, RFC 8190
    ("2001:1::1/128", "Port Control Protocol Anycast", Refuse), // RFC 7723, globally reachable
    ("2001:1::2/128", "Traversal Using Relays around NAT Anycast", Refuse), // RFC 8155, globally reachable
    ("2001:1::3/128", "DNS-SD Service Registration Protocol Anycast", Refuse), // RFC 9665, globally reachable
    ("2001:2::/48", "Benchmarking", Refuse),                    // RFC 5180
    ("2001:3::/32", "AMT", Refuse),                             // RFC 7450, globally reachable
    ("2001:4:112::/48", "AS112-v6", Refuse),                    // RFC 7535, globally reachable
    ("2001:10::/28", "Deprecated (previously ORCHID)", Refuse), // RFC 4843
    ("2001:20::/28", "ORCHIDv2", Refuse),                       // RFC 7343, globally reachable
    ("2001:30::/28", "Drone Remote ID Protocol Entity Tags", Refuse), // RFC 9374, globally reachable
    ("2001:db8::/32", "Documentation", Refuse),                 // RFC 3849
    ("2002::/16", "6to4", Refuse),                              // RFC 3056
    ("2620:4f:8000::/48", "Direct Delegation AS112 Service", Refuse), // RFC 7534, globally reachable
    ("3fff::/20", "Documentation", Refuse),                     // RFC 9637
    ("5f00::/16", "Segment Routing (SRv6) SIDs", Refuse),       // RFC 9602
    ("fc00::/7", "Unique-Local", Refuse),                       // RFC 4193, RFC 8190
    ("fe80::/10", "Link-Local Unicast", Refuse),                // RFC 4291
    // In neither.
    ("224.0.0.0/4", "Multicast", Refuse),                  // RFC 5771
    ("168.63.129.16/32", "Azure WireServer", Refuse),      // a host-local service on a public-looking address
    ("::/96", "IPv4-compatible (deprecated)", Refuse),     // RFC 4291
    ("::ffff:0:0:0/96", "IPv4-translated (SIIT)", Refuse), // RFC 2765
    ("fec0::/10", "Site-local (deprecated)", Refuse),      // RFC 3879
    ("ff00::/8", "Multicast", Refuse),                     // RFC 4291
];

/// Longest prefix first, so that the first match is the most specific one.
static BLOCKS: LazyLock<Vec<Block>> = LazyLock::new(|| {
    let mut blocks: Vec<Block> = TABLE
        .iter()
        .map(|&(net, name, rule)| Block {
            net: net.parse().expect("the table holds valid blocks"),
            name,
            rule,
        })
        .collect();
    blocks.sort_by_key(|block| std::cmp::Reverse(block.net.prefix_len()));
    blocks
});

#[cfg(test)]
mod tests {
    use super::super::stand::rows;
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// One address before and one behind a block, where there is one.
    fn neighbours(net: IpNet) -> Vec<IpAddr> {
        match net {
            IpNet::V4(net) => {
                [u32::from(net.network()).checked_sub(1), u32::from(net.broadcast()).checked_add(1)]
                    .into_iter()
                    .flatten()
                    .map(|bits| Ipv4Addr::from(bits).into())
                    .collect()
            }
            IpNet::V6(net) => {
                [u128::from(net.network()).checked_sub(1), u128::from(net.broadcast()).checked_add(1)]
                    .into_iter()
                    .flatten()
                    .map(|bits| Ipv6Addr::from(bits).into())
                    .collect()
            }
        }
    }

    #[test]
    fn the_table_holds_exactly_the_blocks_of_the_corpus() {
        let mut ours: Vec<_> = BLOCKS.iter().map(|block| block.net).collect();
        let mut theirs: Vec<IpNet> =
            rows("special_ips.txt").iter().map(|row| row[0].parse().unwrap()).collect();
        ours.sort_unstable();
        theirs.sort_unstable();
        assert_eq!(ours, theirs);
        assert!(ours.iter().all(|net| *net == net.trunc()), "a network address each");
    }

    #[test]
    fn each_special_block_is_refused_from_its_first_address_to_its_last_and_not_beyond() {
        let rows = rows("special_ips.txt");
        let blocks: Vec<IpNet> = rows.iter().map(|row| row[0].parse().unwrap()).collect();
        let mut outside = 0;
        for (block, row) in blocks.iter().zip(&rows) {
            for address in [block.network(), block.broadcast()] {
                match row[8].as_str() {
                    // Both ends of these stand for IPv4 addresses that are refused.
                    "block" | "either" | "embedded" => {
                        assert!(check_public(address).is_err(), "{address} in {block}")
                    }
                    other => panic!("{other}"),
                }
            }
            for address in neighbours(*block) {
                if !blocks.iter().any(|other| other.contains(&address)) {
                    let public = IpNet::from(GLOBAL_UNICAST).contains(&address) || address.is_ipv4();
                    assert_eq!(check_public(address).is_ok(), public, "{address} beside {block}");
                    outside += 1;
                }
            }
        }
        assert!(outside > 50, "only {outside} neighbours were looked at");
    }

    #[test]
    fn the_most_specific_block_gives_the_reason() {
        for (text, name) in [
            ("192.0.0.8", "IPv4 dummy address"),
            ("192.0.0.20", "IETF Protocol Assignments"),
            ("255.255.255.255", "Limited Broadcast"),
            ("168.63.129.16", "Azure WireServer"),
            ("::1", "Loopback Address"),
            ("::7f00:1", "IPv4-compatible (deprecated)"),
            ("2001:1::1", "Port Control Protocol Anycast"),
            ("2001:5::", "IETF Protocol Assignments"),
            ("1fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "Not global unicast"),
            ("4000::", "Not global unicast"),
        ] {
            assert_eq!(check_public(address(text)), Err(name), "{text}");
        }
    }

    #[test]
    fn an_address_that_stands_for_an_ipv4_address_is_judged_as_that_one() {
        for (text, verdict) in [
            ("::ffff:169.254.169.254", Err("Link Local")),
            ("64:ff9b::10.0.0.1", Err("Private-Use")),
            ("::ffff:8.8.8.8", Ok(())),
            ("64:ff9b::8.8.8.8", Ok(())),
            ("64:ff9b:1::8.8.8.8", Err("IPv4-IPv6 Translation (local use)")),
            ("64:ff9b::1:808:808", Err("Not global unicast")),
            ("2002:808:808::", Err("6to4")),
        ] {
            assert_eq!(check_public(address(text)), verdict, "{text}");
        }
    }

    #[test]
    fn an_allowed_address_covers_its_block_on_its_port_alone() {
        for (text, covered, not_covered) in [
            ("10.1.2.3:80", "10.1.2.3:80", ["10.1.2.3:81", "10.1.2.4:80"]),
            ("10.1.2.3:80", "[::ffff:10.1.2.3]:80", ["[::10.1.2.3]:80", "[64:ff9b::10.1.2.3]:80"]),
            ("127.0.0.0/8:8080", "127.255.255.255:8080", ["128.0.0.0:8080", "[::1]:8080"]),
            ("[::1]:8080", "[::1]:8080", ["[::2]:8080", "127.0.0.1:8080"]),
            ("[fd00::/8]:443", "[fdff::1]:443", ["[fc00::1]:443", "[fdff::1]:80"]),
            ("[::ffff:10.0.0.0/104]:80", "[::ffff:10.1.1.1]:80", ["10.1.1.1:80", "[::ffff:11.1.1.1]:80"]),
            ("0.0.0.0/0:65535", "8.8.8.8:65535", ["8.8.8.8:1", "[2606:4700::1]:65535"]),
        ] {
            let allowed: AllowedAddress = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert!(allowed.contains(covered.parse().unwrap()), "{covered} by {text}");
            for not_covered in not_covered {
                assert!(!allowed.contains(not_covered.parse().unwrap()), "{not_covered} by {text}");
            }
            assert_eq!(allowed.to_string().parse(), Ok(allowed), "{text} written again");
        }
        assert_eq!("127.0.0.0/8:8080".parse::<AllowedAddress>().unwrap().to_string(), "127.0.0.0/8:8080");
        assert_eq!("[fd00::/8]:443".parse::<AllowedAddress>().unwrap().to_string(), "[fd00::/8]:443");
        assert_eq!("10.1.2.3/32:80".parse::<AllowedAddress>().unwrap().to_string(), "10.1.2.3:80");
        assert_eq!("[::1]:80".parse::<AllowedAddress>().unwrap().to_string(), "[::1]:80");
    }

    #[test]
    fn what_is_no_allowed_address_is_told_why() {
        for (text, why) in [
            ("", "no port"),
            ("10.0.0.0", "no port"),
            ("10.0.0.0/8", "no port"),
            ("10.0.0.0/8:", "not a port"),
            ("10.0.0.0/8:http", "not a port"),
            ("10.0.0.0/8:65536", "not a port"),
            ("10.0.0.0/8:0", "port 0"),
            ("10.0.0.0/33:80", "neither an address nor a block"),
            ("10.0.0:80", "neither an address nor a block"),
            ("localhost:80", "neither an address nor a block"),
            (":80", "neither an address nor a block"),
            ("10.1.2.3/8:80", "write 10.0.0.0/8"),
            ("::1:80", "brackets"),
            ("fd00::/8", "brackets"),
            ("[fd00::]/8:443", "brackets"),
            ("[127.0.0.1]:80", "brackets"),
            ("[::1]", "brackets"),
        ] {
            let error = text.parse::<AllowedAddress>().unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn connect_to_applies_to_its_host_in_any_spelling() {
        for (text, host, to, written) in [
            ("CDN.example.com=10.1.2.3:80", "cdn.example.com", "10.1.2.3:80", "cdn.example.com=10.1.2.3:80"),
            ("cdn.example.com.=10.1.2.3:80", "CDN.example.com", "10.1.2.3:80", "cdn.example.com=10.1.2.3:80"),
            ("cdn.example.com=[::1]:80", "cdn.example.com.", "[::1]:80", "cdn.example.com=[::1]:80"),
            (
                "bücher.example=10.1.2.3:80",
                "xn--bcher-kva.example",
                "10.1.2.3:80",
                "xn--bcher-kva.example=10.1.2.3:80",
            ),
            ("[FD00:0::1]=[::1]:80", "[fd00::1]", "[::1]:80", "[fd00::1]=[::1]:80"),
            ("192.0.2.1=10.1.2.3:80", "192.0.2.1", "10.1.2.3:80", "192.0.2.1=10.1.2.3:80"),
            ("*=127.0.0.1:8080", "any.example", "127.0.0.1:8080", "*=127.0.0.1:8080"),
            ("cdn.example.com=10.1.2.3", "cdn.example.com", "10.1.2.3:443", "cdn.example.com=10.1.2.3"),
            ("*=[fd00::7]", "any.example", "[fd00::7]:443", "*=[fd00::7]"),
        ] {
            let connect_to: ConnectTo = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert!(connect_to.applies_to(host), "{host} by {text}");
            assert_eq!(connect_to.to(443), to.parse().unwrap());
            assert_eq!(connect_to.to_string(), written);
            assert_eq!(written.parse(), Ok(connect_to.clone()));
            let every = text.starts_with('*');
            for other in ["example.com", "a.cdn.example.com", "cdn.example.com..", ""] {
                assert_eq!(connect_to.applies_to(other), every, "{other} by {text}");
            }
        }
    }

    #[test]
    fn what_is_no_connect_to_is_told_why() {
        for (text, why) in [
            ("", "no equals sign"),
            ("cdn.example.com:10.1.2.3:80", "no equals sign"),
            ("=10.1.2.3:80", "is no host"),
            (".=10.1.2.3:80", "is no host"),
            ("cdn.example.com:443=10.1.2.3:80", "is no host"),
            ("https://cdn.example.com=10.1.2.3:80", "is no host"),
            ("*.example.com=10.1.2.3:80", "is no host"),
            ("::1=10.1.2.3:80", "is no host"),
            ("cdn.example.com=10.1.2.3:", "neither ADDR nor"),
            ("cdn.example.com=::1:80", "neither ADDR nor"),
            ("cdn.example.com=::1", "neither ADDR nor"),
            ("cdn.example.com=[10.1.2.3]", "neither ADDR nor"),
            ("cdn.example.com=edge:80", "neither ADDR nor"),
            ("cdn.example.com=edge", "neither ADDR nor"),
            ("cdn.example.com=", "neither ADDR nor"),
            ("cdn.example.com=10.1.2.3:0", "port 0"),
        ] {
            let error = text.parse::<ConnectTo>().unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
