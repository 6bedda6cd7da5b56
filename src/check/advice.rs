//! What to do about a URL that is not warm: one advice for each reason, so that none is without.

use crate::verdict::{Failure, Obstacle, Unproven, Verdict};

/// What to change, and where; none for what is warm.
pub(super) fn advice(verdict: &Verdict) -> Option<&'static str> {
    Some(match verdict {
        Verdict::Warm => return None,
        Verdict::Filled => {
            "It was not there, and the edge may have kept it now: look again, by --certify or --repeat 2."
        }
        Verdict::Fetched(unproven) => for_unproven(*unproven),
        Verdict::Stale => {
            "The edge served an object past its lifetime, as stale-while-revalidate, stale-if-error or its configuration \
             lets it: look again once it is refreshed, see that the origin answers the edge, or give the object a longer \
             max-age."
        }
        Verdict::ShieldOnly => {
            "An upper tier had it, and the edge had to ask there: look again, by --certify. If it stays so, the edge keeps \
             nothing of what the tier sends: compare the lifetimes and rules of both."
        }
        Verdict::Uncacheable(obstacle) => for_obstacle(*obstacle),
        Verdict::WrongVersion(_) => {
            "Purge the URL at the edge, or wait until its lifetime is over, and warm it again; see that every origin server \
             has the new version first. Better still, give each version a URL of its own."
        }
        Verdict::WrongPop(_) => {
            "Run this in the region of the expected points of presence, or send requests there with --connect-to."
        }
        Verdict::Refused(reason) => for_refusal(reason),
        Verdict::Failed(failure) => for_failure(failure),
    })
}

fn for_unproven(unproven: Unproven) -> &'static str {
    match unproven {
        Unproven::NoEvidence => {
            "No cache said a word. If the edge is nginx, add_header X-Cache-Status $upstream_cache_status always; if it is \
             Cloud CDN, add a custom response header with {cdn_cache_status}; then name that header by \
             --cache-status-header. Akamai, Fastly, Azure and Traffic Server speak, or say more, once --cdn names them."
        }
        Unproven::UnknownWord => {
            "The header is known, what it says is not. If two CDNs stand one behind the other, name the edge's by --cdn; if \
             the edge's owner made the header up, name it by --cache-status-header."
        }
        Unproven::Unconfirmed => {
            "It says hit, but nobody has confirmed what that CDN means by it. Where a miss was seen before, by --certify, the \
             hit counts, unless docs/verdicts.md calls the row unconfirmed. A header of your own, named by \
             --cache-status-header, always counts."
        }
        Unproven::UnknownFreshness => {
            "A hit, but this cache says so of stale objects too: let the origin send Cache-Control: max-age, against which \
             Age can be held, or, at Fastly, give --cdn fastly, so that the edge tells its own time."
        }
        Unproven::Generated => {
            "The edge made this response itself, at a function or for an error of the origin's: only what comes from the \
             origin can be kept."
        }
        Unproven::Head => "HEAD may not fill an edge: use --method get, or look again to see whether it did.",
    }
}

fn for_obstacle(obstacle: Obstacle) -> &'static str {
    match obstacle {
        Obstacle::NoStore => {
            "Take no-store out of the origin's Cache-Control, for example: Cache-Control: public, max-age=3600. What must \
             stay out of browsers alone is max-age=0, s-maxage=3600."
        }
        Obstacle::Private => {
            "Cache-Control: private keeps the response out of every shared cache: send public, max-age=3600 for what is the \
             same for everybody."
        }
        Obstacle::SetCookie => {
            "Send the object without Set-Cookie: caches take a response with a cookie for one person's. Cookies belong to \
             pages, not to what everybody gets."
        }
        Obstacle::VaryAny => {
            "Vary: * makes every request a different one: name the request headers that matter, such as Vary: \
             Accept-Encoding, or none."
        }
        Obstacle::NoCache => {
            "no-cache lets the edge keep the object and ask the origin each time all the same: send max-age=3600 instead."
        }
        Obstacle::ZeroFreshness => {
            "The response is never fresh: send Cache-Control: max-age=3600 instead of max-age=0 or a past Expires, or \
             s-maxage=3600 for shared caches alone."
        }
        Obstacle::ExpiredOnArrival => {
            "Its Age is past its max-age when it gets here: a cache between the edge and the origin holds it too long. Let \
             that cache go, or give the object a longer max-age."
        }
        Obstacle::Authorization => {
            "What is asked for with Authorization is one person's, unless the response says public, s-maxage or \
             must-revalidate (RFC 9111, section 3.5): add public, or ask without the header."
        }
        Obstacle::Status => {
            "This status is none that caches keep, unless the response gives it a lifetime: answer 200, or send \
             Cache-Control: max-age."
        }
        Obstacle::Bypass => {
            "The edge went round its cache: look for a rule on this path, on cookies, on Authorization, or on request \
             headers such as Cache-Control and Pragma, and take this URL out of it."
        }
        Obstacle::NotEligible => {
            "The edge is not set up to keep this URL: make it eligible. At Cloudflare that is a cache rule (by default only \
             certain file extensions are kept), at Azure caching on the route, at Google Cloud CDN on the backend."
        }
        Obstacle::NotKept => {
            "The response may be kept, and the second look did not find it. Is it larger than the edge keeps (compare its \
             bytes with the edge's limit, such as Squid's maximum_object_size or Traffic Server's max_doc_size), kept only \
             after several requests (nginx's proxy_cache_min_uses), or is there more than one cache behind this address?"
        }
    }
}

/// How refusals begin, and what to do about them; the first that fits counts.
const REFUSALS: [(&str, &str); 14] = [
    ("malformed data", "Give an absolute http or https URL, percent-encoded, of at most 16,384 bytes."),
    ("user info", "Take user and password out of the URL; credentials go into a header."),
    (
        "backslash",
        "Write the URL with slashes, or %5C where a backslash is meant: programs read it in two ways.",
    ),
    ("scheme", "Only http and https are warmed."),
    ("host", "The host is no public name, or not among --only-hosts: correct the URL, or the list."),
    ("port", "Ports but 80 and 443 are opened by --allow-address or --allow-host."),
    (
        "address",
        "Addresses that are not public are opened by --allow-address or --allow-host; --connect-to sends a host's \
         requests to an edge that you vouch for.",
    ),
    ("redirect", "See where the origin redirects to, and warm that URL itself, or none."),
    ("unknown option", "See the README for the options that there are; a newer cdnwarm may know more."),
    ("option", "Correct the option's value, or have the operator allow it: the reason says which."),
    ("more than 100 options", "Give fewer options."),
    ("expired", "warm-not-after is past: produce the URL again with a later one."),
    ("not for this region", "Give warm-regions this region too, or leave it out."),
    ("", "The reason says what is not allowed."),
];

fn for_refusal(reason: &str) -> &'static str {
    let fitting = REFUSALS.iter().find(|(begin, _)| reason.starts_with(begin));
    fitting.map_or("", |(_, advice)| advice)
}

fn for_failure(failure: &Failure) -> &'static str {
    match failure {
        Failure::Status(400..=499) => {
            "The origin, or the edge, does not give this URL out: see that it exists, and that what it needs (signature, \
             cookie, header) is sent."
        }
        Failure::Status(500..=599) => "The origin, or the edge on its way there, fails: see their logs.",
        Failure::Status(_) => {
            "Only a 2xx with its body can be kept for the next viewer: see why this is another status."
        }
        Failure::Redirect(_) => {
            "Warm the redirect's target instead; how many redirects are followed is said by --follow-redirects."
        }
        Failure::Dns => "The host's name is not known: correct the URL, or the name's records.",
        Failure::DnsTimeout => "No name server answered in time: see the machine's resolver.",
        Failure::ConnectTimeout => {
            "Nothing answers there: see the edge's address, its firewall, and --connect-timeout."
        }
        Failure::Connect => "Nothing listens there, or it hangs up: see the edge's address and port.",
        Failure::Tls(_) => {
            "The certificate is none for this host, or nobody known has signed it: correct it, or add its CA by \
             SSL_CERT_FILE."
        }
        Failure::TlsTimeout => {
            "The edge accepts connections and does not shake hands: see its load and --connect-timeout."
        }
        Failure::FirstByteTimeout => {
            "The origin is slow to begin its answer: see its logs, or raise --first-byte-timeout."
        }
        Failure::TotalTimeout => {
            "It took longer than --timeout in all: raise it, or see why the body is slow."
        }
        Failure::Protocol => {
            "What came is no HTTP, or ended in the middle of the head: see what listens there."
        }
        Failure::HeadTooLarge => {
            "More than 100 headers, or 32 KiB of them, or many interim responses: send fewer."
        }
        Failure::Truncated => "The body ended before its end: see whether origin or edge cut it off.",
        Failure::BadChunk => {
            "The body's chunks are broken: see what the origin, or a proxy before it, sends."
        }
        Failure::Stalled => "The body came to a halt: see the origin, or raise --stall-timeout.",
        Failure::TooLarge => "The body is longer than --max-body-bytes: raise that.",
        Failure::OtherRange => {
            "The 206 is not the range that was asked for: see whether the edge slices its objects."
        }
        Failure::CircuitOpen => {
            "The host failed so often that it is left alone for a moment: try again later."
        }
        Failure::HostBusy => "The host asked for fewer requests, or has too many waiting: try again later.",
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::verdict::tests::every_verdict;

    #[test]
    fn every_reason_has_an_advice_of_its_own() {
        let mut given: Vec<&str> = Vec::new();
        for verdict in every_verdict().into_iter().filter(|verdict| *verdict != Verdict::Warm) {
            let advice = advice(&verdict).unwrap();
            assert!(advice.len() > 20 && advice.ends_with(['.', '?']), "{verdict}: {advice}");
            assert!(!given.contains(&advice), "{verdict} has another's advice: {advice}");
            given.push(advice);
        }
        assert_eq!(advice(&Verdict::Warm), None);
    }

    #[test]
    fn every_refusal_of_the_corpora_is_advised_on() {
        let mut refused = 0;
        for file in ["ssrf_urls.txt", "ssrf_redirects.txt"] {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpora").join(file);
            for url in
                std::fs::read_to_string(path).unwrap().lines().filter_map(|line| line.split('\t').next())
            {
                let Err(error) = crate::request::WarmRequest::parse(url.as_bytes(), []) else { continue };
                let (last, _) = REFUSALS.last().unwrap();
                let reason = error.reason();
                let found = REFUSALS.iter().find(|(begin, _)| reason.starts_with(begin)).unwrap();
                assert_ne!(found.0, *last, "{reason}");
                refused += 1;
            }
        }
        assert!(refused > 20, "{refused}");
    }
}
