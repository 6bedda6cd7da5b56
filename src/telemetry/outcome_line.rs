//! An outcome's JSON line, written by hand: there is one for every URL, and derived code takes three times the
//! instructions for it.
//!
//! The line is the object of `schemas/outcome.schema.json` behind the fields that Cloud Logging reads
//! (cloud.google.com/logging/docs/structured-logging): `severity`, `time`, `message`, `httpRequest`, and the trace where
//! one is known. Byte for byte it is what `serde_json` would write; the tests hold the two together.

use std::io::Write as _;
use std::ops::Range;

use jiff::Timestamp;
use jiff::fmt::temporal::DateTimePrinter;

use super::trace::Trace;
use crate::outcome::{CacheEvidence, Exchange, Outcome};
use crate::verdict::Verdict;

/// Appends the line of one outcome, with the line feed behind it. `method` is what the URL was asked for with.
pub(super) fn append(line: &mut Vec<u8>, outcome: &Outcome, trace: Option<&Trace<'_>>, method: &'static str) {
    let mut object = Object(line);
    let time = object.time(br#"{"severity":"INFO","time":""#, outcome.finished_at);
    let region = object.message(&outcome.verdict, &outcome.region);
    let url = (!outcome.url.is_empty()).then(|| object.http_request(outcome, method));
    if let Some(trace) = trace {
        object.members_of(trace);
    }
    object.text(br#","id":""#, &outcome.id);
    object.again(br#","url":""#, url.unwrap_or(0..0));
    object.optional_text(br#","final_url":""#, outcome.final_url.as_deref());
    object.again(br#","region":""#, region);
    object.text(br#","instance":""#, &outcome.instance);
    object.plain(br#","verdict":""#, outcome.verdict.word());
    object.optional_text(br#","reason":""#, outcome.reason.as_deref());
    object.exchange(&outcome.exchange);
    object.number(br#","attempts":"#, outcome.attempts);
    object.optional_number(br#","kafka_timestamp":"#, outcome.source.kafka_timestamp);
    if let Some(publish_time) = outcome.source.publish_time {
        object.time(br#","publish_time":""#, publish_time);
    }
    object.optional_number(br#","delivery_attempt":"#, outcome.source.delivery_attempt);
    object.again(br#","finished_at":""#, time);
    line.extend_from_slice(b"}\n");
}

/// The object as far as it is written. Each key is given as it stands in the line, from the comma before it to the
/// opening quote of a value that is text.
struct Object<'a>(&'a mut Vec<u8>);

impl Object<'_> {
    /// Returns where the region stands in it.
    fn message(&mut self, verdict: &Verdict, region: &str) -> Range<usize> {
        self.0.extend_from_slice(br#","message":""#);
        self.0.extend_from_slice(verdict.word().as_bytes());
        if let Some(reason) = verdict.reason() {
            self.0.extend_from_slice(b" (");
            self.escaped(&reason);
            self.0.push(b')');
        }
        self.text(b" in ", region)
    }

    /// Cloud Logging's own form for a request; it shows the URL from here, so that the message has no third copy of it.
    /// Returns where the URL stands.
    fn http_request(&mut self, outcome: &Outcome, method: &'static str) -> Range<usize> {
        self.plain(br#","httpRequest":{"requestMethod":""#, method);
        let url = self.text(br#","requestUrl":""#, &outcome.url);
        self.optional_number(br#","status":"#, outcome.exchange.http_status);
        if outcome.attempts > 0 {
            // Cloud Logging takes 64-bit numbers as text.
            self.number(br#","responseSize":""#, outcome.exchange.bytes);
            self.0.extend_from_slice(br#"","latency":""#);
            self.seconds(outcome.exchange.total_ms / 1_000.0);
            self.0.extend_from_slice(br#"s""#);
        }
        if matches!(outcome.verdict, Verdict::Warm | Verdict::Stale) {
            self.0.extend_from_slice(br#","cacheHit":true"#);
        }
        self.0.push(b'}');
        url
    }

    fn exchange(&mut self, exchange: &Exchange) {
        self.optional_number(br#","http_status":"#, exchange.http_status);
        if let Some(cache) = &exchange.cache {
            self.cache(cache);
        }
        self.number(br#","bytes":"#, exchange.bytes);
        self.optional_number(
            br#","bytes_saved":"#,
            (exchange.bytes_saved > 0).then_some(exchange.bytes_saved),
        );
        if let Some(ttfb_ms) = exchange.ttfb_ms {
            self.float(br#","ttfb_ms":"#, ttfb_ms);
        }
        self.float(br#","total_ms":"#, exchange.total_ms);
    }

    fn cache(&mut self, cache: &CacheEvidence) {
        self.0.extend_from_slice(br#","cache":"#);
        let start = self.0.len();
        self.optional_text(br#","header":""#, cache.header.as_deref());
        self.optional_text(br#","value":""#, cache.value.as_deref());
        self.optional_text(br#","cdn":""#, cache.cdn.as_deref());
        self.optional_text(br#","pop":""#, cache.pop.as_deref());
        self.optional_number(br#","age_s":"#, cache.age_s);
        self.optional_number(br#","ttl_s":"#, cache.ttl_s);
        self.optional_text(br#","etag":""#, cache.etag.as_deref());
        // The first member's comma, whichever that is, becomes the brace.
        match self.0.get_mut(start) {
            Some(comma) => *comma = b'{',
            None => self.0.push(b'{'),
        }
        self.0.push(b'}');
    }

    /// Takes in the members of a trace; not every message has one.
    fn members_of(&mut self, trace: &Trace<'_>) {
        let start = self.0.len();
        // Serializing plain values into memory cannot fail.
        let _ = serde_json::to_writer(&mut *self.0, trace);
        self.0[start] = b',';
        self.0.pop();
    }

    /// Returns where the text, escaped, stands.
    fn text(&mut self, key: &[u8], text: &str) -> Range<usize> {
        self.0.extend_from_slice(key);
        let start = self.0.len();
        self.escaped(text);
        let end = self.0.len();
        self.0.push(b'"');
        start..end
    }

    fn optional_text(&mut self, key: &[u8], text: Option<&str>) {
        if let Some(text) = text {
            self.text(key, text);
        }
    }

    /// A text of ours, which has nothing to escape.
    fn plain(&mut self, key: &[u8], text: &'static str) {
        self.0.extend_from_slice(key);
        self.0.extend_from_slice(text.as_bytes());
        self.0.push(b'"');
    }

    /// A text that stands in the line already.
    fn again(&mut self, key: &[u8], text: Range<usize>) {
        self.0.extend_from_slice(key);
        self.0.extend_from_within(text);
        self.0.push(b'"');
    }

    /// Returns where the time stands.
    fn time(&mut self, key: &[u8], time: Timestamp) -> Range<usize> {
        self.0.extend_from_slice(key);
        let start = self.0.len();
        // Writing into memory cannot fail.
        let _ = DateTimePrinter::new().print_timestamp(&time, &mut *self.0);
        let end = self.0.len();
        self.0.push(b'"');
        start..end
    }

    fn number(&mut self, key: &[u8], number: impl itoa::Integer) {
        self.0.extend_from_slice(key);
        self.0.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
    }

    fn optional_number(&mut self, key: &[u8], number: Option<impl itoa::Integer>) {
        if let Some(number) = number {
            self.number(key, number);
        }
    }

    fn float(&mut self, key: &[u8], number: f64) {
        self.0.extend_from_slice(key);
        let _ = serde_json::to_writer(&mut *self.0, &number);
    }

    /// Seconds with six decimals, as `{:.6}` has them.
    fn seconds(&mut self, seconds: f64) {
        const MICROS_PER_SECOND: u64 = 1_000_000;
        let micros = seconds * MICROS_PER_SECOND as f64;
        // What is far from the middle between two is rounded alike by everyone; and clocks say whole microseconds.
        let is_clear = (0.0..1e12).contains(&micros) && (micros.fract() - 0.5).abs() > 0.01;
        if !is_clear || seconds.is_sign_negative() {
            let _ = write!(self.0, "{seconds:.6}");
            return;
        }
        let micros = micros.round() as u64;
        self.number(b"", micros / MICROS_PER_SECOND);
        // The one in front keeps the zeros behind it.
        let decimals = self.0.len();
        self.number(b"", MICROS_PER_SECOND + micros % MICROS_PER_SECOND);
        self.0[decimals] = b'.';
    }

    /// The text as it stands between quotes.
    fn escaped(&mut self, text: &str) {
        if is_plain(text.as_bytes()) {
            self.0.extend_from_slice(text.as_bytes());
            return;
        }
        let start = self.0.len();
        let _ = serde_json::to_writer(&mut *self.0, text);
        self.0.pop();
        self.0.remove(start);
    }
}

/// Whether JSON takes the text as it is: neither quotes, backslashes nor control characters.
fn is_plain(text: &[u8]) -> bool {
    are_plain_chunks::<32>(text)
        .or_else(|| are_plain_chunks::<8>(text))
        .unwrap_or_else(|| text.iter().all(|byte| is_plain_byte(*byte)))
}

/// Looks at so many bytes at once; the last so many overlap what was seen. Nothing for shorter texts.
fn are_plain_chunks<const N: usize>(text: &[u8]) -> Option<bool> {
    // No end before a chunk's end, so that a compiler can look at all its bytes in a few instructions.
    let is_plain_chunk =
        |chunk: &[u8; N]| chunk.iter().fold(true, |plain, byte| plain & is_plain_byte(*byte));
    let last = text.last_chunk::<N>()?;
    let (chunks, _) = text.as_chunks::<N>();
    Some(chunks.iter().all(is_plain_chunk) && is_plain_chunk(last))
}

fn is_plain_byte(byte: u8) -> bool {
    (byte >= 0x20) & (byte != b'"') & (byte != b'\\')
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fmt::Arguments;

    use proptest::collection::vec;
    use proptest::option::of;
    use proptest::prelude::*;
    use proptest::sample::select;
    use serde::{Serialize, Serializer};
    use serde_json::{Value, json};

    use super::*;
    use crate::outcome::Source;
    use crate::verdict::Failure;
    use crate::verdict::tests::every_verdict;

    pub(crate) fn outcome(verdict: Verdict) -> Outcome {
        Outcome {
            id: "urls/3/17".to_owned(),
            url: "https://example.com/a?b=\"c\"".to_owned(),
            final_url: None,
            region: "europe-west1".to_owned(),
            instance: "a1b2c3d4".to_owned(),
            reason: verdict.reason(),
            verdict,
            exchange: Exchange {
                http_status: Some(200),
                cache: Some(CacheEvidence {
                    value: Some("edge; hit".to_owned()),
                    ..CacheEvidence::default()
                }),
                bytes: 1_234,
                bytes_saved: 0,
                ttfb_ms: Some(1.5),
                total_ms: 2.5,
            },
            attempts: 1,
            source: Source { kafka_timestamp: Some(1), ..Source::default() },
            finished_at: "2026-11-22T12:00:00.5Z".parse().unwrap(),
        }
    }

    fn line(outcome: &Outcome, trace: Option<&Trace<'_>>) -> Value {
        let mut line = b"before".to_vec();
        append(&mut line, outcome, trace, "GET");
        let expected = serde_json::to_string(&JsonLine::of(outcome, trace, "GET")).unwrap();
        let line = String::from_utf8(line).unwrap();
        assert_eq!(line, format!("before{expected}\n"));
        serde_json::from_str(&expected).unwrap()
    }

    #[test]
    fn a_line_is_the_outcome_with_what_cloud_logging_reads_beside_it() {
        let outcome = outcome(Verdict::Warm);
        let trace =
            Trace::parse("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", Some("p")).unwrap();
        let mut expected = serde_json::to_value(&outcome).unwrap();
        let more = json!({
            "severity": "INFO",
            "time": "2026-11-22T12:00:00.5Z",
            "message": "warm in europe-west1",
            "httpRequest": {
                "requestMethod": "GET", "requestUrl": "https://example.com/a?b=\"c\"", "status": 200,
                "responseSize": "1234", "latency": "0.002500s", "cacheHit": true,
            },
            "logging.googleapis.com/trace": "projects/p/traces/0af7651916cd43dd8448eb211c80319c",
            "logging.googleapis.com/spanId": "b7ad6b7169203331",
            "logging.googleapis.com/trace_sampled": true,
        });
        expected.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        assert_eq!(line(&outcome, Some(&trace)), expected);
        let text = line(&outcome, None).to_string();
        assert!(!text.contains("googleapis.com"), "{text}");
    }

    #[test]
    fn what_was_not_asked_for_has_no_size_and_no_latency() {
        let mut refused = outcome(Verdict::Failed(Failure::CircuitOpen));
        refused.attempts = 0;
        refused.exchange = Exchange::default();
        assert_eq!(
            line(&refused, None)["httpRequest"],
            json!({"requestMethod": "GET", "requestUrl": "https://example.com/a?b=\"c\""})
        );
        assert_eq!(line(&refused, None)["message"], "failed (circuit open) in europe-west1");
        refused.url = String::new();
        assert_eq!(line(&refused, None).get("httpRequest"), None);
    }

    #[test]
    fn every_length_of_text_is_searched_to_its_end() {
        for length in 0..100 {
            let mut text = vec![b'a'; length];
            assert!(is_plain(&text));
            for at in 0..length {
                for byte in 0..=0xff {
                    text[at] = byte;
                    assert_eq!(is_plain(&text), byte >= 0x20 && byte != b'"' && byte != b'\\', "{text:?}");
                }
                text[at] = b'a';
            }
        }
    }

    #[test]
    fn seconds_are_rounded_as_the_standard_library_rounds_them() {
        let said = |seconds: f64| {
            let mut line = Vec::new();
            Object(&mut line).seconds(seconds);
            String::from_utf8(line).unwrap()
        };
        let odd =
            [0.0, -0.0, 5e-7, 1.5e-6, 0.999_999_5, 1e-300, 1e6, 1e12, 1e300, -1.5, f64::NAN, f64::INFINITY];
        let middles = (0..100_000).map(|half_micros| f64::from(half_micros) / 2e6);
        let clocks = (0..200_000_u32).map(|micros| f64::from(micros * 7) / 1_000.0 / 1_000.0);
        for seconds in odd.into_iter().chain(middles).chain(clocks) {
            assert_eq!(said(seconds), format!("{seconds:.6}"), "{seconds}");
        }
    }

    proptest! {
        #[test]
        fn of_every_outcome_the_line_is_what_the_derived_code_writes(
            outcome in any_outcome(),
            project in of(any_text()),
            has_trace in any::<bool>(),
        ) {
            let trace = Trace::parse("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", project.as_deref());
            // Compares.
            let line = line(&outcome, trace.as_ref().filter(|_| has_trace));
            prop_assert_eq!(&line["url"], &outcome.url);
        }
    }

    /// Texts short and long, with and without what JSON escapes.
    fn any_text() -> impl Strategy<Value = String> {
        let odd =
            ["\"", "\\", "\n", "\u{0}", "\u{1f}", "\u{7f}", "\u{2028}", "é", "😀", "a", "/", "</script>"];
        prop_oneof![
            "[ -~]{0,80}",
            "[a-z0-9/:.-]{0,80}",
            any::<String>(),
            vec(select(odd.to_vec()), 0..80).prop_map(|parts| parts.concat()),
        ]
    }

    fn any_milliseconds() -> impl Strategy<Value = f64> {
        prop_oneof![
            (0..100_000_000_u32).prop_map(|micros| f64::from(micros) / 1_000.0),
            any::<f64>(),
            select(vec![0.0, -0.0, f64::NAN, f64::INFINITY, 0.000_5, 1e21]),
        ]
    }

    fn any_verdict() -> impl Strategy<Value = Verdict> {
        prop_oneof![
            4 => select(every_verdict()),
            1 => any_text().prop_map(Verdict::Refused),
            1 => any_text().prop_map(|text| Verdict::Failed(Failure::Tls(text))),
        ]
    }

    fn any_exchange() -> impl Strategy<Value = Exchange> {
        let texts = (of(any_text()), of(any_text()), of(any_text()), of(any_text()), of(any_text()));
        let cache = (texts, of(any::<u64>()), of(any::<i64>())).prop_map(
            |((header, value, cdn, pop, etag), age_s, ttl_s)| {
                let header = header.map(Into::into);
                CacheEvidence { header, value, cdn, pop, age_s, ttl_s, etag }
            },
        );
        let cache = prop_oneof![4 => of(cache), 1 => Just(Some(CacheEvidence::default()))];
        let sizes = (any::<u64>(), prop_oneof![Just(0), any::<u64>()]);
        (of(any::<u16>()), cache, sizes, of(any_milliseconds()), any_milliseconds()).prop_map(
            |(http_status, cache, (bytes, bytes_saved), ttfb_ms, total_ms)| Exchange {
                http_status,
                cache,
                bytes,
                bytes_saved,
                ttfb_ms,
                total_ms,
            },
        )
    }

    fn any_time() -> impl Strategy<Value = Timestamp> {
        let second = prop_oneof![4 => 0..4_000_000_000_i64, 1 => -377_705_000_000..253_402_000_000_i64];
        let nanosecond = prop_oneof![0..1_000_000_000, Just(0), (0..1_000).prop_map(|ms| ms * 1_000_000)];
        (second, nanosecond).prop_map(|(second, nanosecond)| Timestamp::new(second, nanosecond).unwrap())
    }

    fn any_outcome() -> impl Strategy<Value = Outcome> {
        let texts =
            (any_text(), prop_oneof![4 => any_text(), 1 => Just(String::new())], any_text(), any_text());
        let source = (of(any::<i64>()), of(any_time()), of(any::<u32>()));
        let verdict = (any_verdict(), of(any_text()), any::<bool>());
        (texts, of(any_text()), verdict, any_exchange(), 0..3_u32, source, any_time()).prop_map(
            |(texts, final_url, (verdict, other_reason, is_own), exchange, attempts, source, finished_at)| {
                let (id, url, region, instance) = texts;
                let (kafka_timestamp, publish_time, delivery_attempt) = source;
                Outcome {
                    id,
                    url,
                    final_url,
                    region,
                    instance,
                    reason: if is_own { verdict.reason() } else { other_reason },
                    verdict,
                    exchange,
                    attempts,
                    source: Source { kafka_timestamp, publish_time, delivery_attempt },
                    finished_at,
                }
            },
        )
    }

    /// The line as derived code writes it.
    #[derive(Serialize)]
    struct JsonLine<'a> {
        severity: &'static str,
        time: Timestamp,
        #[serde(serialize_with = "message")]
        message: &'a Outcome,
        #[serde(rename = "httpRequest", skip_serializing_if = "Option::is_none")]
        http_request: Option<HttpRequest<'a>>,
        #[serde(flatten)]
        trace: Option<&'a Trace<'a>>,
        #[serde(flatten)]
        outcome: &'a Outcome,
    }

    /// Cloud Logging's own form for a request; it shows the URL from here, so that the message has no third copy of it.
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct HttpRequest<'a> {
        request_method: &'static str,
        request_url: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        status: Option<u16>,
        #[serde(skip_serializing_if = "Option::is_none", serialize_with = "decimal")]
        response_size: Option<u64>,
        #[serde(skip_serializing_if = "Option::is_none", serialize_with = "seconds")]
        latency: Option<f64>,
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        cache_hit: bool,
    }

    impl<'a> JsonLine<'a> {
        fn of(outcome: &'a Outcome, trace: Option<&'a Trace<'a>>, method: &'static str) -> Self {
            let exchange = &outcome.exchange;
            let was_asked = outcome.attempts > 0;
            let http_request = HttpRequest {
                request_method: method,
                request_url: &outcome.url,
                status: exchange.http_status,
                response_size: was_asked.then_some(exchange.bytes),
                latency: was_asked.then_some(exchange.total_ms / 1_000.0),
                cache_hit: matches!(outcome.verdict, Verdict::Warm | Verdict::Stale),
            };
            Self {
                severity: "INFO",
                time: outcome.finished_at,
                message: outcome,
                http_request: (!outcome.url.is_empty()).then_some(http_request),
                trace,
                outcome,
            }
        }
    }

    fn message<S: Serializer>(outcome: &Outcome, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{} in {}", outcome.verdict, outcome.region))
    }

    /// Cloud Logging takes 64-bit numbers as text.
    fn decimal<S: Serializer>(number: &Option<u64>, serializer: S) -> Result<S::Ok, S::Error> {
        collect(serializer, format_args!("{}", number.unwrap_or_default()))
    }

    /// And durations as seconds with an `s` behind.
    fn seconds<S: Serializer>(seconds: &Option<f64>, serializer: S) -> Result<S::Ok, S::Error> {
        collect(serializer, format_args!("{:.6}s", seconds.unwrap_or_default()))
    }

    fn collect<S: Serializer>(serializer: S, text: Arguments<'_>) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&text)
    }
}
