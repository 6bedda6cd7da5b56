//! What was seen, as text for people and as JSON for programs.

use std::fmt::Write;

use serde::Serialize;
use url::Url;

use super::Checked;
use super::advice::advice;
use crate::outcome::{CacheEvidence, Outcome, shown_url};
use crate::output::{self, printable};
use crate::verdict::{Obstacle, Unproven, Verdict};
use crate::warm::Look;

/// What is shown of something that is no URL.
const SHOWN_CHARS: usize = 200;

/// An outcome as `schemas/outcome.schema.json` has it, with what was asked and what to do.
#[derive(Serialize)]
struct Told<'a> {
    #[serde(flatten)]
    outcome: &'a Outcome,
    looks: &'a [Look],
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<&'static str>,
}

/// One line.
pub(super) fn json(checked: &Checked) -> anyhow::Result<String> {
    let Checked { outcome, looks } = checked;
    let told = Told { outcome, looks, advice: advice(&outcome.verdict) };
    Ok(serde_json::to_string(&told)? + "\n")
}

/// One URL: its verdict, what was asked and answered, what decided, and what to do.
pub(super) fn block(checked: &Checked) -> String {
    let Checked { outcome, looks } = checked;
    let mut text = format!("{}\n", outcome.url);
    let mut line = |name: &str, value: &str| {
        // Writing to memory cannot fail.
        let _ = writeln!(text, "  {name:<8} {}", printable(value));
    };
    line("verdict", &outcome.verdict.to_string());
    for look in looks {
        line("sent", &format!("{} {} with {}", look.method, look.url, joined(look.sent.iter())));
        if let Some(status) = look.http_status {
            let read = if look.read.is_empty() {
                "nothing of a cache's".to_owned()
            } else {
                joined(look.read.iter())
            };
            line("read", &format!("{status}, {} bytes, {read}", look.bytes));
        }
        if let (Some(verdict), true) = (&look.verdict, looks.len() > 1) {
            line("found", &verdict.to_string());
        }
    }
    if let Some(look) = looks.last() {
        line("decided", &decided(outcome, look));
    }
    if let Some(cache) = &outcome.exchange.cache {
        line("cache", &described(cache));
    }
    if outcome.exchange.bytes_saved > 0 {
        line("unread", &format!("{} bytes, since the edge had them", outcome.exchange.bytes_saved));
    }
    if let Some(advice) = advice(&outcome.verdict) {
        line("advice", advice);
    }
    text.push('\n');
    text
}

/// Returns a table with one line per outcome. URLs, which may be long, are last.
pub(super) fn table(outcomes: &[Outcome]) -> String {
    let heading = ["VERDICT", "CACHE", "POP", "SAYS", "AGE s", "BYTES", "ms", "URL"];
    output::table(heading, outcomes.iter().map(row))
}

fn row(outcome: &Outcome) -> Vec<String> {
    let cache = outcome.exchange.cache.clone().unwrap_or_default();
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let says =
        cache.header.as_ref().map(|name| format!("{name}: {}", cache.value.as_deref().unwrap_or_default()));
    vec![
        outcome.verdict.to_string(),
        or_dash(cache.cdn),
        or_dash(cache.pop),
        or_dash(says),
        or_dash(cache.age_s.map(|age| age.to_string())),
        outcome.exchange.bytes.to_string(),
        format!("{:.1}", outcome.exchange.total_ms),
        outcome.url.clone(),
    ]
}

/// The response headers that made the verdict.
fn decided(outcome: &Outcome, look: &Look) -> String {
    let cache = outcome.exchange.cache.as_ref();
    let says = cache.and_then(|cache| Some((cache.header.as_ref()?.to_string(), cache.value.clone()?)));
    let further = look.read.iter().filter(|(name, _)| {
        also_decides(&outcome.verdict).contains(&name.as_str())
            && says.as_ref().is_none_or(|(says, _)| says != name)
    });
    let all = joined(says.iter().chain(further));
    match (all.is_empty(), look.http_status) {
        (false, _) => all,
        (true, Some(status)) => format!("status {status}, and no header of a cache's"),
        (true, None) => "there was no response".to_owned(),
    }
}

/// Headers that count beside what a cache says of itself.
fn also_decides(verdict: &Verdict) -> &'static [&'static str] {
    const LIFETIME: &[&str] = &["age", "cache-control", "expires"];
    match verdict {
        Verdict::Warm | Verdict::Stale | Verdict::Fetched(Unproven::UnknownFreshness) => LIFETIME,
        Verdict::Uncacheable(obstacle) => match obstacle {
            Obstacle::NoStore | Obstacle::Private | Obstacle::NoCache | Obstacle::Authorization => {
                &["cache-control"]
            }
            Obstacle::SetCookie => &["set-cookie", "cache-control"],
            Obstacle::VaryAny => &["vary"],
            Obstacle::ZeroFreshness => &["cache-control", "expires", "pragma"],
            Obstacle::ExpiredOnArrival => LIFETIME,
            Obstacle::NotKept => &["content-length"],
            Obstacle::Status | Obstacle::Bypass | Obstacle::NotEligible => &[],
        },
        Verdict::WrongVersion(_) => &["etag", "content-length", "content-encoding"],
        Verdict::Filled | Verdict::ShieldOnly => &["cache-control", "expires", "vary"],
        Verdict::Fetched(_) | Verdict::WrongPop(_) | Verdict::Refused(_) | Verdict::Failed(_) => &[],
    }
}

fn described(cache: &CacheEvidence) -> String {
    let named = [("", &cache.cdn), ("POP ", &cache.pop), ("etag ", &cache.etag)];
    let texts = named.iter().filter_map(|(name, text)| Some(format!("{name}{}", text.as_ref()?)));
    let age = cache.age_s.map(|age| format!("age {age} s"));
    let ttl = cache.ttl_s.map(|ttl| format!("fresh for {ttl} s"));
    texts.chain(age).chain(ttl).collect::<Vec<_>>().join(", ")
}

fn joined<'a>(headers: impl Iterator<Item = &'a (String, String)>) -> String {
    headers.map(|(name, value)| format!("{name}: {value}")).collect::<Vec<_>>().join("; ")
}

/// What was given as a URL and is none, as far as it may be shown.
pub(super) fn unparsed(text: &str) -> String {
    if let Ok(mut url) = Url::parse(text) {
        // One without user info refuses to have it taken away.
        let _ = url.set_username("");
        let _ = url.set_password(None);
        return printable(&shown_url(&url));
    }
    // What follows a question mark may be signed, what stands before an @ a password.
    let text = text.split('?').next().unwrap_or_default();
    let text = text.rsplit('@').next().unwrap_or_default();
    printable(&text.chars().take(SHOWN_CHARS).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_url_shows_no_secret() {
        for (text, shown) in [
            ("http://user:pass@example.com/a?sig=abc&b=1", "http://example.com/a?sig=…&b=1"),
            ("http://user:pass@[/a?sig=abc", "[/a"),
            ("no\u{1b}[31mURL", "no\u{fffd}[31mURL"),
        ] {
            assert_eq!(unparsed(text), shown);
        }
    }
}
