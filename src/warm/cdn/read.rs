//! Who a response came through and what they say they did, by the rows of `table`.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderName};

use super::Speakers;
use super::cache_status;
use super::headers::{bounded, joined, members, shown};
use super::marks;
use super::row::{Form, Pop, Row, Tier};
use super::table::OWN;

/// What a cache says that it did; the later, the less it is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Word {
    /// Answered from what it holds.
    Hit,
    /// Held it, had it confirmed or fetched it anew, and kept it.
    Renewed,
    /// Held it, found it expired and fetched it anew; whether that was kept is not said.
    Expired,
    /// Forwarded the request and kept the response.
    Kept,
    /// Shared the response to another forwarded request; whether it was kept is not said.
    Collapsed,
    /// Forwarded the request and does not say that it kept the response.
    Missed,
    /// An upper tier answered from what it holds.
    Shield,
    /// Answered from what it holds, which had expired.
    Stale,
    /// Made the response itself.
    Generated,
    /// Went round its cache because of how it is configured, or of how it was asked.
    Bypassed,
    /// Is not set up to keep this.
    NotEligible,
}

/// What one cache said.
#[derive(Debug)]
pub(super) struct Said {
    pub(super) word: Word,
    /// Whether a cache behind it answered from what it holds.
    pub(super) upper_tier_hit: bool,
    /// What the cache calls itself, where it does.
    pub(super) cache: Option<String>,
    pub(super) ttl_s: Option<i64>,
    /// The header's text, for the evidence.
    pub(super) value: String,
}

/// What a response tells of the edge.
#[derive(Debug)]
pub(super) struct Spoken {
    pub(super) row: &'static Row,
    pub(super) header: Cow<'static, str>,
    /// None where the row does not know what was said.
    pub(super) said: Option<Said>,
    pub(super) value: String,
    pub(super) pop: Option<String>,
}

/// What the edge said of this response; none where nobody spoke whom the table knows.
///
/// The operator's own header goes first. Of CDNs that are known by their marks, whoever `--cdn` names counts, else all of
/// them, and else all caches: where they disagree, one of them may be forged or stand behind the edge, so the worst word
/// counts. What no row of a known CDN is about is not looked at.
pub(super) fn spoken(speakers: &Speakers, headers: &HeaderMap) -> (Option<Spoken>, Option<&'static str>) {
    if let Some(own) = speakers.status.iter().find(|name| headers.contains_key(*name)) {
        return (Some(own_word(speakers, own, headers)), None);
    }
    let marked: Vec<&'static Row> = marks::rows(headers).collect();
    let of = |tier| marked.iter().copied().filter(|row| row.tier == tier).collect::<Vec<_>>();
    let mut rows = of(Tier::Cdn);
    if rows.is_empty() {
        rows = of(Tier::Cache);
    }
    let named: Vec<&'static Row> = marked.iter().copied().filter(|row| speakers.names(row.name)).collect();
    if !named.is_empty() {
        rows = named;
    }
    let known_as = rows.iter().find(|row| row.tier == Tier::Cdn).map(|row| row.name);
    let spoken = rows.into_iter().filter_map(|row| read(row, speakers, headers));
    // What is not understood goes last, but before silence.
    let worst_of_known = |spoken: &Spoken| match &spoken.said {
        Some(said) => (true, Some(said.word)),
        None => (false, None),
    };
    (spoken.max_by_key(worst_of_known), known_as)
}

fn own_word(speakers: &Speakers, own: &HeaderName, headers: &HeaderMap) -> Spoken {
    let said = read_members(&OWN, own.as_str(), headers);
    let value = said.as_ref().map_or_else(|| bounded(&joined(headers, own)), |said| said.value.clone());
    let pop = own_pop(speakers, headers);
    Spoken { row: &OWN, header: own.as_str().to_owned().into(), said, value, pop }
}

fn own_pop(speakers: &Speakers, headers: &HeaderMap) -> Option<String> {
    speakers.pop.iter().find_map(|name| shown(headers, name))
}

/// What this row says of the response; none where its headers are not there.
fn read(row: &'static Row, speakers: &Speakers, headers: &HeaderMap) -> Option<Spoken> {
    let header = *row.status.iter().find(|name| headers.contains_key(**name))?;
    let said = match row.form {
        Form::CacheStatus(named) => Some(cache_status::read(headers, named)?),
        Form::VarnishIds => varnish_ids(&joined(headers, header)),
        Form::One | Form::EdgeFirst | Form::EdgeLast => read_members(row, header, headers),
    };
    let said = said.map(|said| Said { ttl_s: said.ttl_s.or_else(|| fastly_ttl(row, headers)), ..said });
    let value = said.as_ref().map_or_else(|| bounded(&joined(headers, header)), |said| said.value.clone());
    let pop = own_pop(speakers, headers).or_else(|| pop(row.pop?, headers));
    Some(Spoken { row, header: header.into(), said, value, pop })
}

/// The words of a header that is one text, or a list.
fn read_members(row: &Row, header: &str, headers: &HeaderMap) -> Option<Said> {
    let words: Vec<Option<Word>> = members(headers, header).map(|text| word(row, text)).collect();
    let (edge, others) = match row.form {
        Form::EdgeFirst => words.split_first()?,
        Form::EdgeLast => words.split_last()?,
        _ => {
            let all: Option<Vec<Word>> = words.iter().copied().collect();
            (&all?.into_iter().max(), &[][..])
        }
    };
    let parent =
        row.parent.map(|name| members(headers, name).map(|text| word(row, text)).collect::<Vec<_>>());
    let mut uppers = others.iter().chain(parent.iter().flatten());
    Some(Said {
        word: (*edge)?,
        upper_tier_hit: uppers.any(|word| *word == Some(Word::Hit)),
        cache: None,
        ttl_s: None,
        value: bounded(&joined(headers, header)),
    })
}

/// What a text means: that of the longest of the row's words that it begins with.
fn word(row: &Row, text: &str) -> Option<Word> {
    let fits = |word: &str| {
        let start = text.get(..word.len()).filter(|start| start.eq_ignore_ascii_case(word));
        let goes_on = |c: char| c.is_alphanumeric() || c == '_' || c == '-';
        start.is_some() && !text[word.len()..].starts_with(goes_on)
    };
    let fitting = row.words.iter().filter(|(word, _)| fits(word));
    fitting.max_by_key(|(word, _)| word.len()).map(|(_, meaning)| *meaning)
}

fn varnish_ids(text: &str) -> Option<Said> {
    let ids: Vec<&str> = text.split_ascii_whitespace().collect();
    if !ids.iter().all(|id| id.bytes().all(|byte| byte.is_ascii_digit())) {
        return None;
    }
    let word = match ids.len() {
        1 => Word::Missed,
        2 => Word::Hit,
        // Two of them, one behind the other: which is the edge is not said.
        _ => return None,
    };
    Some(Said { word, upper_tier_hit: false, cache: None, ttl_s: None, value: bounded(text) })
}

/// What is left of the lifetime, by the edge's own account: `(H cache-fra-etou8220059-FRA 42.000 0.000 18)`, the edge last.
fn fastly_ttl(row: &Row, headers: &HeaderMap) -> Option<i64> {
    if row.name != "fastly" {
        return None;
    }
    let text = joined(headers, "fastly-debug-ttl");
    let (_, edge) = text.rsplit_once('(')?;
    let ttl_s: f64 = edge.split_ascii_whitespace().nth(2)?.parse().ok()?;
    // As good as whole seconds; a cast of what is beyond counting ends at the limits.
    ttl_s.is_finite().then(|| ttl_s.ceil() as i64)
}

fn pop(pop: Pop, headers: &HeaderMap) -> Option<String> {
    let last = |name: &str| members(headers, name).last().map(str::to_owned);
    let text = match pop {
        Pop::Whole(name) => last(name)?,
        Pop::BehindDash(name) => last(name)?.rsplit_once('-')?.1.to_owned(),
        Pop::BehindPrefix(name, prefix) => {
            let text = last(name)?;
            text.get(prefix.len()..)?.split('-').next()?.to_owned()
        }
        Pop::LastNode(name) => {
            let text = joined(headers, name);
            let nodes = text.rfind('[').map_or(&*text, |end| &text[..end]);
            nodes.rsplit([',', ' ']).next()?.to_owned()
        }
        Pop::AzureReference => azure_node(&last("x-azure-ref")?)?,
    };
    Some(bounded(&text)).filter(|text| !text.is_empty())
}

/// The node's name behind the time and the id in what the old form of references encodes, up to a NUL; the new form,
/// which starts with a date, has none.
fn azure_node(reference: &str) -> Option<String> {
    const TIME_AND_ID_BYTES: usize = 8 + 16;
    let bytes = STANDARD.decode(reference.strip_prefix('0')?).ok()?;
    let node = bytes.get(TIME_AND_ID_BYTES..)?.split(|byte| *byte == 0).next()?;
    let is_name = |byte: &u8| byte.is_ascii_uppercase() || byte.is_ascii_digit();
    node.iter().all(is_name).then(|| String::from_utf8_lossy(node).into_owned())
}
