//! The JSON line of an outcome: the object of `schemas/outcome.schema.json` behind the fields that Cloud Logging reads.
//!
//! Those are `severity`, `time`, `message`, `httpRequest` and, where one is known, the trace
//! (<https://cloud.google.com/logging/docs/structured-logging>).

use jiff::Timestamp;
use serde::{Serialize, Serializer};

use super::trace::Trace;
use crate::outcome::Outcome;
use crate::verdict::Verdict;

/// The members of the line, in their order.
#[derive(Serialize)]
pub(super) struct OutcomeLine<'a> {
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

/// Cloud Logging's form of a request. It shows the URL, so the message does not repeat it.
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

impl<'a> OutcomeLine<'a> {
    /// Returns the line of `outcome`, whose URL was requested with `method`. Size and latency are absent where no GET was
    /// made, `httpRequest` where there is no URL.
    pub(super) fn new(outcome: &'a Outcome, trace: Option<&'a Trace<'a>>, method: &'static str) -> Self {
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

/// Writes a 64-bit number as text, as Cloud Logging reads it.
fn decimal<S: Serializer>(number: &Option<u64>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&number.unwrap_or_default())
}

/// Writes a duration as seconds followed by `s`.
fn seconds<S: Serializer>(seconds: &Option<f64>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{:.6}s", seconds.unwrap_or_default()))
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::select;
    use serde_json::{Value, json};

    use super::*;
    use crate::outcome::{CacheEvidence, Exchange, Source};
    use crate::verdict::Failure;

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

    fn text(outcome: &Outcome, trace: Option<&Trace<'_>>) -> String {
        serde_json::to_string(&OutcomeLine::new(outcome, trace, "GET")).unwrap()
    }

    fn line(outcome: &Outcome, trace: Option<&Trace<'_>>) -> Value {
        serde_json::from_str(&text(outcome, trace)).unwrap()
    }

    #[test]
    fn members_have_their_order_and_number_formats() {
        let trace =
            Trace::parse("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", Some("p")).unwrap();
        let mut outcome = outcome(Verdict::Stale);
        outcome.exchange.bytes_saved = u64::MAX;
        outcome.source.publish_time = Some(outcome.finished_at);
        assert_eq!(
            text(&outcome, Some(&trace)),
            concat!(
                r#"{"severity":"INFO","time":"2026-11-22T12:00:00.5Z","message":"stale in europe-west1","#,
                r#""httpRequest":{"requestMethod":"GET","requestUrl":"https://example.com/a?b=\"c\"","status":200,"#,
                r#""responseSize":"1234","latency":"0.002500s","cacheHit":true},"#,
                r#""logging.googleapis.com/trace":"projects/p/traces/0af7651916cd43dd8448eb211c80319c","#,
                r#""logging.googleapis.com/spanId":"b7ad6b7169203331","logging.googleapis.com/trace_sampled":true,"#,
                r#""id":"urls/3/17","url":"https://example.com/a?b=\"c\"","region":"europe-west1","#,
                r#""instance":"a1b2c3d4","verdict":"stale","http_status":200,"cache":{"value":"edge; hit"},"#,
                r#""bytes":1234,"bytes_saved":18446744073709551615,"ttfb_ms":1.5,"total_ms":2.5,"attempts":1,"#,
                r#""kafka_timestamp":1,"publish_time":"2026-11-22T12:00:00.5Z","#,
                r#""finished_at":"2026-11-22T12:00:00.5Z"}"#,
            )
        );
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

    proptest! {
        #[test]
        fn any_outcome_is_one_line_of_json_that_keeps_its_texts(
            texts in vec(any_text(), 4),
            total_ms in any::<f64>(),
        ) {
            let mut outcome = outcome(Verdict::Refused(texts[0].clone()));
            outcome.url.clone_from(&texts[1]);
            outcome.region.clone_from(&texts[2]);
            outcome.exchange.cache = Some(CacheEvidence { value: Some(texts[3].clone()), ..Default::default() });
            outcome.exchange.total_ms = total_ms;
            prop_assert!(!text(&outcome, None).contains('\n'));
            let line = line(&outcome, None);
            prop_assert_eq!(&line["message"], &format!("refused ({}) in {}", texts[0], texts[2]));
            prop_assert_eq!((&line["reason"], &line["url"]), (&json!(texts[0]), &json!(texts[1])));
            prop_assert_eq!((&line["region"], &line["cache"]["value"]), (&json!(texts[2]), &json!(texts[3])));
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
}
