//! What `serve` counts, for Prometheus: pushes, verdicts, times, and totals of its hosts.
//!
//! What others count or know anyway (refused tokens, limits, places) is asked for at each scrape and costs a push nothing.

mod states;

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::outcome::Outcome;
use crate::verdict::{Verdict, WORDS};
pub(super) use states::States;

const FIRST_BYTE_SECONDS: [f64; 14] =
    [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0];
const GET_SECONDS: [f64; 14] =
    [0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 60.0, 600.0];
const TIME_TO_WARM_SECONDS: [f64; 15] =
    [0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0, 3_600.0, 21_600.0, 86_400.0];

/// The statuses that pushes are answered with.
const ANSWERS: [StatusCode; 11] = [
    StatusCode::NO_CONTENT,
    StatusCode::BAD_REQUEST,
    StatusCode::UNAUTHORIZED,
    StatusCode::FORBIDDEN,
    StatusCode::REQUEST_TIMEOUT,
    StatusCode::CONFLICT,
    StatusCode::PAYLOAD_TOO_LARGE,
    StatusCode::UNSUPPORTED_MEDIA_TYPE,
    StatusCode::TOO_MANY_REQUESTS,
    StatusCode::INTERNAL_SERVER_ERROR,
    StatusCode::SERVICE_UNAVAILABLE,
];

/// The numbers of one server. Clones share them; every method may be called from any thread.
#[derive(Debug, Clone)]
pub(super) struct ServeMetrics(Arc<Metrics>);

#[derive(Debug)]
struct Metrics {
    pushes: Family<AnswerLabel, Counter>,
    /// Of those, by far the most: looked up once.
    acknowledged: Counter,
    in_flight_pushes: Gauge,
    /// Of bodies that `--skip-warm` left unread.
    bytes_saved: Counter,
    first_byte_seconds: Histogram,
    get_seconds: Histogram,
    time_to_warm_seconds: Histogram,
    verdicts: Verdicts,
}

/// What is counted of URLs that have a verdict. Clones share the counters.
#[derive(Debug, Clone, Default)]
struct Verdicts {
    /// In the order of [`WORDS`].
    urls: [Counter; WORDS.len()],
    body_bytes: Counter,
}

/// A status; `gone` where the client did not wait for one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AnswerLabel {
    answer: String,
}

/// A push that is being handled. Dropped without an answer, its client has gone away, or its handler has panicked, which
/// is answered 500.
#[derive(Debug)]
pub(super) struct PushUnderWay<'a>(&'a Metrics, bool);

impl ServeMetrics {
    /// Registers all of them, once in a registry. `states` is what is asked for at each scrape.
    pub(super) fn register(registry: &mut Registry, states: States) -> Self {
        let registry = registry.sub_registry_with_prefix("cdnwarm_serve");
        let pushes = Family::<AnswerLabel, Counter>::default();
        // A series that appears with its first event hides that event from `increase()`.
        for answer in ANSWERS.iter().map(|status| status.as_str().to_owned()).chain(["gone".to_owned()]) {
            drop(pushes.get_or_create(&AnswerLabel { answer }));
        }
        let acknowledged = AnswerLabel { answer: StatusCode::NO_CONTENT.as_str().to_owned() };
        let acknowledged = pushes.get_or_create_owned(&acknowledged);
        let metrics = Metrics {
            acknowledged,
            pushes,
            in_flight_pushes: Gauge::default(),
            bytes_saved: Counter::default(),
            first_byte_seconds: Histogram::new(FIRST_BYTE_SECONDS),
            get_seconds: Histogram::new(GET_SECONDS),
            time_to_warm_seconds: Histogram::new(TIME_TO_WARM_SECONDS),
            verdicts: Verdicts::default(),
        };
        metrics.register_own(registry);
        registry.register_collector(Box::new(states::Shown { states, verdicts: metrics.verdicts.clone() }));
        Self(Arc::new(metrics))
    }

    /// A push has come.
    pub(super) fn push(&self) -> PushUnderWay<'_> {
        self.0.in_flight_pushes.inc();
        PushUnderWay(&self.0, false)
    }

    /// A URL has its verdict.
    pub(super) fn outcome(&self, outcome: &Outcome) {
        let (exchange, verdicts) = (&outcome.exchange, &self.0.verdicts);
        let word = outcome.verdict.word();
        if let Some(index) = WORDS.iter().position(|known| *known == word) {
            verdicts.urls[index].inc();
        }
        verdicts.body_bytes.inc_by(exchange.bytes);
        if exchange.bytes_saved > 0 {
            self.0.bytes_saved.inc_by(exchange.bytes_saved);
        }
        if outcome.attempts > 0 {
            if let Some(ttfb_ms) = exchange.ttfb_ms {
                self.0.first_byte_seconds.observe(ttfb_ms / 1_000.0);
            }
            self.0.get_seconds.observe(exchange.total_ms / 1_000.0);
        }
        if let Some(kafka_timestamp) = outcome.source.kafka_timestamp
            && matches!(outcome.verdict, Verdict::Warm | Verdict::Filled)
        {
            let took_ms = outcome.finished_at.as_millisecond().saturating_sub(kafka_timestamp);
            let took = Duration::from_millis(u64::try_from(took_ms).unwrap_or_default());
            self.0.time_to_warm_seconds.observe(took.as_secs_f64());
        }
    }
}

impl PushUnderWay<'_> {
    /// It is answered.
    pub(super) fn answered(mut self, status: StatusCode) {
        self.1 = true;
        if status == StatusCode::NO_CONTENT {
            self.0.acknowledged.inc();
        } else {
            self.count(status.as_str());
        }
    }

    fn count(&self, answer: &str) {
        self.0.pushes.get_or_create(&AnswerLabel { answer: answer.to_owned() }).inc();
    }
}

impl Drop for PushUnderWay<'_> {
    fn drop(&mut self) {
        self.0.in_flight_pushes.dec();
        if !self.1 {
            self.count(if std::thread::panicking() { "500" } else { "gone" });
        }
    }
}

impl Metrics {
    /// The encoder adds `_total`, a unit, and the full stop of each help text.
    fn register_own(&self, registry: &mut Registry) {
        registry.register(
            "pushes",
            "Pushes that are over, by the status that they were answered with; gone where the client did not wait",
            self.pushes.clone(),
        );
        registry.register("in_flight_pushes", "Pushes without an answer", self.in_flight_pushes.clone());
        registry.register_with_unit(
            "saved_body",
            "Response bodies left unread since the edge had them (--skip-warm)",
            Unit::Bytes,
            self.bytes_saved.clone(),
        );
        registry.register_with_unit(
            "first_byte",
            "Time from a GET to the head of its response, of each URL's first GET",
            Unit::Seconds,
            self.first_byte_seconds.clone(),
        );
        registry.register_with_unit(
            "get_duration",
            "Time from the first GET for a URL to its verdict, further tries and a second look included",
            Unit::Seconds,
            self.get_seconds.clone(),
        );
        registry.register_with_unit(
            "time_to_warm",
            "Time from a record's Kafka timestamp to its verdict, of those that are warm or filled",
            Unit::Seconds,
            self.time_to_warm_seconds.clone(),
        );
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use prometheus_client::encoding::text::encode;
    use tokio::sync::Semaphore;
    use tokio_util::sync::CancellationToken;
    use url::Url;

    use super::*;
    use crate::outcome::{Exchange, Source};
    use crate::serve::auth::{Auth, AuthArgs};
    use crate::telemetry::health::Health;
    use crate::telemetry::instance::{Identity, InstanceArgs};
    use crate::telemetry::metrics::{assert_format, registry};
    use crate::verdict::Failure;
    use crate::warm::{WarmArgs, Warmer};

    async fn registered() -> (Registry, ServeMetrics) {
        let mut registry = registry(&Health::default());
        let keys = Url::parse("http://127.0.0.1:1/").unwrap();
        let auth = Auth::new(AuthArgs::for_demo("a", "b@c", keys), CancellationToken::new()).unwrap();
        let edge = SocketAddr::from(([127, 0, 0, 1], 1));
        let warmer = Warmer::new(WarmArgs::for_demo(edge)).unwrap();
        let region = Some("europe-west1".to_owned());
        let identity = Identity::discover(InstanceArgs { region, ..InstanceArgs::default() });
        identity.get().await;
        let in_flight = Arc::new(Semaphore::new(7));
        let states = States { auth, identity, warmer, in_flight, max_in_flight: 10 };
        let metrics = ServeMetrics::register(&mut registry, states);
        (registry, metrics)
    }

    fn outcome(verdict: Verdict, ttfb_ms: Option<f64>) -> Outcome {
        Outcome {
            id: String::new(),
            url: String::new(),
            final_url: None,
            region: String::new(),
            instance: String::new(),
            reason: None,
            verdict,
            exchange: Exchange {
                http_status: ttfb_ms.map(|_| 200),
                bytes: 10,
                bytes_saved: 5,
                ttfb_ms,
                ..Exchange::default()
            },
            attempts: u32::from(ttfb_ms.is_some()),
            source: Source { kafka_timestamp: Some(1_000), ..Source::default() },
            finished_at: "1970-01-01T00:00:03Z".parse().unwrap(),
        }
    }

    #[tokio::test]
    async fn what_happened_is_what_is_shown_in_the_format() {
        let (registry, metrics) = registered().await;
        let open = metrics.push();
        metrics.push().answered(StatusCode::NO_CONTENT);
        metrics.push().answered(StatusCode::TOO_MANY_REQUESTS);
        drop(metrics.push());
        metrics.outcome(&outcome(Verdict::Warm, Some(30.0)));
        metrics.outcome(&outcome(Verdict::Refused("no".to_owned()), None));
        metrics.outcome(&outcome(Verdict::Refused("no".to_owned()), None));
        metrics.outcome(&outcome(Verdict::Failed(Failure::Dns), None));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        assert_format(&text);
        for line in [
            "pushes_total{answer=\"204\"} 1",
            "pushes_total{answer=\"429\"} 1",
            "pushes_total{answer=\"503\"} 0",
            "pushes_total{answer=\"gone\"} 1",
            "in_flight_pushes 1",
            "saved_body_bytes_total 20",
            "in_flight_urls 3",
            "in_flight_urls_limit 10",
            "verdicts_total{region=\"europe-west1\",verdict=\"refused\"} 2",
            "verdicts_total{region=\"europe-west1\",verdict=\"warm\"} 1",
            "verdicts_total{region=\"europe-west1\",verdict=\"stale\"} 0",
            "body_bytes_total{region=\"europe-west1\"} 40",
            "first_byte_seconds_count 1",
            "first_byte_seconds_bucket{le=\"0.02\"} 0",
            "first_byte_seconds_bucket{le=\"0.05\"} 1",
            "get_duration_seconds_count 1",
            "time_to_warm_seconds_sum 2.0",
            "tokens_total{checked=\"known\"} 0",
            "push_refusals_total{reason=\"no-keys\"} 0",
            "hosts 0",
        ] {
            assert!(text.contains(&format!("\ncdnwarm_serve_{line}\n")), "{line} in {text}");
        }
        open.answered(StatusCode::NO_CONTENT);
    }

    #[tokio::test]
    async fn a_panic_counts_as_the_500_that_it_is_answered_with() {
        let (registry, metrics) = registered().await;
        let panicking = metrics.clone();
        let panicked = tokio::spawn(async move {
            let _under_way = panicking.push();
            panic!("as asked");
        });
        panicked.await.unwrap_err();
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        assert!(text.contains("cdnwarm_serve_pushes_total{answer=\"500\"} 1\n"), "{text}");
    }
}
