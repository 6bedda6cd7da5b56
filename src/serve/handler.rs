//! One request from its head to its answer: the only code that maps verdicts to HTTP statuses.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body, Incoming};
use jiff::Timestamp;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use super::envelope::{self, Push};
use super::{Answers, Malformed};
use crate::outcome::{Outcome, Source};
use crate::request::{NotARequest, WarmRequest};
use crate::telemetry::logs::log_outcome;
use crate::warm::Warmer;

/// Pub/Sub's largest push that can hold a URL is about 150 KiB; 100 attributes at their limits are most of it.
const MAX_BODY_BYTES: usize = 1 << 20;

/// How long a body may take; it holds a place among the pushes in flight.
const BODY_LIMIT: Duration = Duration::from_secs(10);

/// How much of a body is still read once the answer is clear, and for how long.
const LINGER_BYTES: usize = 4 << 20;
const LINGER_LIMIT: Duration = Duration::from_secs(2);

type Answer = Response<Full<Bytes>>;

/// Answers every request of one server. Cheap to clone.
#[derive(Clone)]
pub(super) struct Handler {
    warmer: Warmer,
    answers: Answers,
    in_flight: Arc<Semaphore>,
    /// Who takes outcomes instead of the log.
    outcomes: Option<mpsc::Sender<Outcome>>,
    stop: CancellationToken,
}

impl Handler {
    pub(super) fn new(
        warmer: Warmer,
        answers: Answers,
        outcomes: Option<mpsc::Sender<Outcome>>,
        stop: CancellationToken,
    ) -> Self {
        let in_flight = Arc::new(Semaphore::new(answers.max_in_flight as usize));
        Self { warmer, answers, in_flight, outcomes, stop }
    }

    /// The answer to any request.
    pub(super) async fn answer(&self, request: Request<Incoming>) -> Answer {
        let (head, body) = request.into_parts();
        let answer = match (head.uri.path(), &head.method) {
            ("/", &Method::POST) => return self.push(body).await,
            ("/", _) => {
                let text = "this is a Pub/Sub push endpoint: POST a push message here";
                with_header(say(StatusCode::METHOD_NOT_ALLOWED, text), header::ALLOW, "POST")
            }
            // Cloud Run's front end answers paths that end in z by itself; the aliases are for everywhere else.
            ("/health" | "/healthz", &Method::GET | &Method::HEAD) => say(StatusCode::OK, "ok"),
            ("/ready" | "/readyz", &Method::GET | &Method::HEAD) if self.stop.is_cancelled() => {
                say(StatusCode::SERVICE_UNAVAILABLE, "draining")
            }
            ("/ready" | "/readyz", &Method::GET | &Method::HEAD) => say(StatusCode::OK, "ready"),
            ("/health" | "/healthz" | "/ready" | "/readyz", _) => {
                with_header(say(StatusCode::METHOD_NOT_ALLOWED, "GET or HEAD"), header::ALLOW, "GET, HEAD")
            }
            _ => say(
                StatusCode::NOT_FOUND,
                "POST / takes pushes; GET /health and /ready tell how this server is",
            ),
        };
        before_body(body, answer)
    }

    /// A push: take it in, read it, warm, answer. Each step may end it.
    async fn push(&self, mut incoming: Incoming) -> Answer {
        // 1. What cannot be taken now is answered at once; Pub/Sub sends it again.
        if self.stop.is_cancelled() {
            return before_body(incoming, closing(say(StatusCode::SERVICE_UNAVAILABLE, "draining")));
        }
        let Ok(_place) = self.in_flight.try_acquire() else {
            return before_body(incoming, say(StatusCode::TOO_MANY_REQUESTS, "too many pushes in flight"));
        };

        // 2. The body, up to its limit.
        if incoming.size_hint().lower() > MAX_BODY_BYTES as u64 {
            return self.too_large(incoming).await;
        }
        let collected = Limited::new(&mut incoming, MAX_BODY_BYTES).collect();
        let body = match tokio::time::timeout(BODY_LIMIT, collected).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) if error.is::<LengthLimitError>() => return self.too_large(incoming).await,
            Ok(Err(error)) => {
                tracing::debug!("push body: {error}");
                return closing(say(StatusCode::BAD_REQUEST, "the body could not be read to its end"));
            }
            Err(_) => return closing(say(StatusCode::REQUEST_TIMEOUT, "the body took too long")),
        };

        // 3. The envelope.
        let push = match envelope::parse(&body) {
            Ok(push) => push,
            Err(error) => {
                tracing::warn!("{error}");
                return say(StatusCode::BAD_REQUEST, &error.to_string());
            }
        };
        let (id, source) = (id(&push), source(&push));

        // 4. The request in it.
        let outcome = match WarmRequest::parse(&push.data, push.options()) {
            Ok(request) => self.warmer.warm(&request, id, source).await,
            Err(malformed @ NotARequest::Malformed(_)) if self.answers.malformed == Malformed::Nack => {
                tracing::warn!(
                    id,
                    "{}; answered 400 (--malformed ack drops such messages)",
                    malformed.reason()
                );
                return say(StatusCode::BAD_REQUEST, &malformed.reason());
            }
            Err(not_a_request) => self.warmer.refused(not_a_request.reason(), id, source).await,
        };

        // 5. The answer.
        let status = status(&outcome, &push, &self.answers, Timestamp::now());
        self.report(outcome).await;
        say(status, "")
    }

    /// No message that holds a URL is this large.
    async fn too_large(&self, body: Incoming) -> Answer {
        let reason = format!("malformed data: a push of more than {MAX_BODY_BYTES} bytes");
        if self.answers.malformed == Malformed::Nack {
            tracing::warn!("{reason}; answered 413 (--malformed ack drops such messages)");
            return before_body(body, closing(say(StatusCode::PAYLOAD_TOO_LARGE, &reason)));
        }
        let outcome = self.warmer.refused(reason, String::new(), Source::default()).await;
        self.report(outcome).await;
        before_body(body, closing(say(StatusCode::NO_CONTENT, "")))
    }

    async fn report(&self, outcome: Outcome) {
        match &self.outcomes {
            None => log_outcome(&outcome),
            // Whoever listened is gone at the end of a demo.
            Some(outcomes) => drop(outcomes.send(outcome).await),
        }
    }
}

/// An answer that goes out before the body was read. What is left of the body is read beside it for a moment: a
/// connection that is closed on unread data is reset, and the client may lose the answer, or its next request, with it
/// (RFC 9112, section 9.6).
fn before_body(body: Incoming, answer: Answer) -> Answer {
    if !body.is_end_stream() {
        tokio::spawn(linger(body));
    }
    answer
}

async fn linger(mut body: Incoming) {
    let reading = async {
        let mut left = LINGER_BYTES;
        while let Some(Ok(frame)) = body.frame().await {
            left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
            if left == 0 {
                break;
            }
        }
    };
    // Past it the client has had its chance.
    let _ = tokio::time::timeout(LINGER_LIMIT, reading).await;
}

/// 503 where a later delivery may go better and there are some left, 204 for all else: never 202, which Google's
/// emulator takes for a nack, and never a nack for ever, which slows the whole region.
fn status(outcome: &Outcome, push: &Push<'_>, answers: &Answers, now: Timestamp) -> StatusCode {
    let deliveries_left = match (push.delivery_attempt, push.publish_time) {
        (Some(attempt), _) => attempt < answers.max_delivery_attempts,
        (None, Some(published)) => {
            let age = Duration::try_from(now.duration_since(published)).unwrap_or_default();
            age < answers.retry_for()
        }
        // Not from Pub/Sub, which always says when: nobody would ever stop sending it again.
        (None, None) => false,
    };
    if outcome.verdict.is_curable() && deliveries_left {
        StatusCode::SERVICE_UNAVAILABLE
    } else {
        StatusCode::NO_CONTENT
    }
}

/// The Kafka coordinates that `bridge` gave the message, or its id.
fn id(push: &Push<'_>) -> String {
    let attribute = |name: &str| push.attributes.get(name);
    match (attribute("kafka-topic"), attribute("kafka-partition"), attribute("kafka-offset")) {
        (Some(topic), Some(partition), Some(offset)) => format!("{topic}/{partition}/{offset}"),
        _ => push.message_id.as_deref().unwrap_or_default().to_owned(),
    }
}

fn source(push: &Push<'_>) -> Source {
    Source {
        kafka_timestamp: push.attributes.get("kafka-timestamp").and_then(|text| text.parse().ok()),
        publish_time: push.publish_time,
        delivery_attempt: push.delivery_attempt,
    }
}

fn say(status: StatusCode, text: &str) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::copy_from_slice(text.as_bytes())));
    *answer.status_mut() = status;
    if !text.is_empty() {
        return with_header(answer, header::CONTENT_TYPE, "text/plain; charset=utf-8");
    }
    answer
}

fn with_header(mut answer: Answer, name: header::HeaderName, value: &'static str) -> Answer {
    answer.headers_mut().insert(name, HeaderValue::from_static(value));
    answer
}

/// What is left of the request will not be read, so the connection cannot be used again.
fn closing(answer: Answer) -> Answer {
    with_header(answer, header::CONNECTION, "close")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::Exchange;
    use crate::verdict::{Failure, Verdict};

    fn answered(verdict: Verdict, delivery_attempt: Option<u32>, published: Option<&str>) -> u16 {
        let now: Timestamp = "2026-11-22T12:00:00Z".parse().unwrap();
        let answers = Answers {
            malformed: Malformed::Nack,
            max_delivery_attempts: 5,
            retry_for: 600,
            max_in_flight: 1,
        };
        let push = Push {
            delivery_attempt,
            publish_time: published.map(|time| time.parse().unwrap()),
            ..Push::default()
        };
        let outcome = Outcome {
            id: String::new(),
            url: String::new(),
            region: String::new(),
            instance: String::new(),
            reason: None,
            verdict,
            exchange: Exchange::default(),
            attempts: 1,
            source: Source::default(),
            finished_at: now,
        };
        status(&outcome, &push, &answers, now).as_u16()
    }

    #[test]
    fn what_a_redelivery_may_cure_is_nacked_while_deliveries_are_left() {
        let down = || Verdict::Failed(Failure::Status(503));
        assert_eq!(answered(down(), Some(1), None), 503);
        assert_eq!(
            answered(down(), Some(4), Some("2026-11-01T00:00:00Z")),
            503,
            "the count decides where there is one"
        );
        assert_eq!(answered(down(), Some(5), Some("2026-11-22T11:59:59Z")), 204);
        assert_eq!(answered(down(), None, Some("2026-11-22T11:50:01Z")), 503);
        assert_eq!(answered(down(), None, Some("2026-11-22T12:00:05Z")), 503, "clocks differ");
        assert_eq!(answered(down(), None, Some("2026-11-22T11:49:59Z")), 204);
        assert_eq!(answered(down(), None, None), 204);
    }

    #[test]
    fn what_no_redelivery_cures_is_acknowledged() {
        for verdict in [
            Verdict::Warm,
            Verdict::Filled,
            Verdict::Uncacheable("no-store"),
            Verdict::Refused("expired".to_owned()),
            Verdict::Failed(Failure::Status(404)),
            Verdict::Failed(Failure::Redirect(String::new())),
        ] {
            assert_eq!(answered(verdict.clone(), Some(1), None), 204, "{verdict}");
        }
    }
}
