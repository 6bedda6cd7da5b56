//! One request from its head to its answer: the only code that maps verdicts to HTTP statuses.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body, Incoming};
use jiff::Timestamp;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use super::deliveries::{Deliveries, Delivery};
use super::envelope::{self, Push};
use super::pack::{self, Line};
use super::{Answers, Malformed};
use crate::outcome::{Outcome, Source};
use crate::request::{NotARequest, WarmRequest};
use crate::telemetry::logs::log_outcome;
use crate::warm::Warmer;

/// Pub/Sub's largest push that holds one URL is about 150 KiB; 100 attributes at their limits are most of it. The 128 KiB
/// of URLs that `bridge` packs add 175 KiB.
const MAX_BODY_BYTES: usize = 1 << 20;

/// URLs of one pack that are warmed at once. The edge next door sees as many connections as from a browser or two; at
/// 50 ms a URL a full pack of 1,600 is over in 10 s, well inside an ack deadline. Pub/Sub brings more pushes at once.
const PACK_CONCURRENCY: usize = 8;

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
    deliveries: Deliveries,
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
        Self { warmer, answers, in_flight, deliveries: Deliveries::new(), outcomes, stop }
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

        // 4. What is in it: one URL, or a line for each of several.
        let warmed =
            if pack::is_pack(&push) { self.warm_pack(&push).await } else { self.warm_one(&push).await };

        // 5. The answer.
        match warmed {
            Ok(curable) => say(status(curable, &push, &self.answers, Timestamp::now()), ""),
            Err(malformed) => say(StatusCode::BAD_REQUEST, &malformed.reason()),
        }
    }

    /// Warms a push of one URL; true where a later delivery may go better.
    ///
    /// # Errors
    /// Malformed data that the operator wants nacked.
    async fn warm_one(&self, push: &Push<'_>) -> Result<bool, NotARequest> {
        let request = match WarmRequest::parse(&push.data, push.options()) {
            Ok(request) => request,
            Err(not_a_request) => return self.refuse(not_a_request, push).await,
        };
        let outcome = self.warm(&request, push, None, self.warmer.deadline()).await;
        Ok(self.report(outcome).await)
    }

    /// Fetches one URL of a push, unless an earlier delivery of the message did and a GET would change nothing. `line`
    /// is its id where the push has several.
    async fn warm(
        &self,
        request: &WarmRequest,
        push: &Push<'_>,
        line: Option<String>,
        deadline: Instant,
    ) -> Outcome {
        let delivery = Delivery::of(push, line.as_deref(), request);
        if let Some(delivery) = &delivery
            && let Some(outcome) = self.deliveries.repeated(delivery, source(push))
        {
            return outcome;
        }
        let id = line.unwrap_or_else(|| id(push));
        let outcome = self.warmer.warm_until(deadline, request, id, source(push)).await;
        if let Some(delivery) = delivery {
            self.deliveries.remember(delivery, &outcome);
        }
        outcome
    }

    /// Warms every line of a pack; true where a later delivery may go better for any of them.
    ///
    /// The first line under way has the push's place, each further one needs a place of its own: `--max-in-flight` bounds
    /// GETs, and a pack goes on with one at a time where there is no room. All share the time for one push, so that it
    /// is answered before its ack deadline: a line that is not warm by then has failed, and the redelivery finds those
    /// before it warm.
    ///
    /// # Errors
    /// A pack without a URL, where the operator wants malformed data nacked.
    async fn warm_pack(&self, push: &Push<'_>) -> Result<bool, NotARequest> {
        let deadline = self.warmer.deadline();
        let mut lines = pack::lines(push).peekable();
        if lines.peek().is_none() {
            return self.refuse(NotARequest::Malformed("a list without a URL".to_owned()), push).await;
        }
        let mut under_way = FuturesUnordered::new();
        let mut curable = false;
        loop {
            while under_way.len() < PACK_CONCURRENCY {
                let place = if under_way.is_empty() {
                    None
                } else {
                    let Ok(place) = self.in_flight.try_acquire() else { break };
                    Some(place)
                };
                let Some(line) = lines.next() else { break };
                under_way.push(async move {
                    let _place = place;
                    self.warm_line(line, push, deadline).await
                });
            }
            match under_way.next().await {
                Some(line_is_curable) => curable |= line_is_curable,
                None => return Ok(curable),
            }
        }
    }

    /// Warms one line of a pack; true where a later delivery may go better. What is no URL never spoils the others.
    async fn warm_line(&self, line: Line<'_>, push: &Push<'_>, deadline: Instant) -> bool {
        // Lines that need no network would keep the thread to themselves.
        tokio::task::coop::consume_budget().await;
        let outcome = match WarmRequest::parse(line.data, push.options()) {
            Ok(request) => self.warm(&request, push, Some(line.id), deadline).await,
            Err(not_a_request) => self.warmer.refused(not_a_request.reason(), line.id, source(push)).await,
        };
        self.report(outcome).await
    }

    /// What is not warmed: gone with verdict refused, or, where the data itself is at fault, as the operator wants.
    async fn refuse(&self, not_a_request: NotARequest, push: &Push<'_>) -> Result<bool, NotARequest> {
        let (id, reason) = (id(push), not_a_request.reason());
        if matches!(not_a_request, NotARequest::Malformed(_)) && self.answers.malformed == Malformed::Nack {
            tracing::warn!(id, "{reason}; answered 400 (--malformed ack drops such messages)");
            return Err(not_a_request);
        }
        let outcome = self.warmer.refused(reason, id, source(push)).await;
        Ok(self.report(outcome).await)
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

    /// Tells the outcome; true where a later delivery may go better.
    async fn report(&self, outcome: Outcome) -> bool {
        let curable = outcome.verdict.is_curable();
        match &self.outcomes {
            None => log_outcome(&outcome),
            // Whoever listened is gone at the end of a demo.
            Some(outcomes) => drop(outcomes.send(outcome).await),
        }
        curable
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
fn status(curable: bool, push: &Push<'_>, answers: &Answers, now: Timestamp) -> StatusCode {
    let deliveries_left = match (push.delivery_attempt, push.publish_time) {
        (Some(attempt), _) => attempt < answers.max_delivery_attempts,
        (None, Some(published)) => {
            let age = Duration::try_from(now.duration_since(published)).unwrap_or_default();
            age < answers.retry_for()
        }
        // Not from Pub/Sub, which always says when: nobody would ever stop sending it again.
        (None, None) => false,
    };
    if curable && deliveries_left { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::NO_CONTENT }
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

    fn answered(curable: bool, delivery_attempt: Option<u32>, published: Option<&str>) -> u16 {
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
        status(curable, &push, &answers, now).as_u16()
    }

    #[test]
    fn what_a_redelivery_may_cure_is_nacked_while_deliveries_are_left() {
        assert_eq!(answered(true, Some(1), None), 503);
        assert_eq!(
            answered(true, Some(4), Some("2026-11-01T00:00:00Z")),
            503,
            "the count decides where there is one"
        );
        assert_eq!(answered(true, Some(5), Some("2026-11-22T11:59:59Z")), 204);
        assert_eq!(answered(true, None, Some("2026-11-22T11:50:01Z")), 503);
        assert_eq!(answered(true, None, Some("2026-11-22T12:00:05Z")), 503, "clocks differ");
        assert_eq!(answered(true, None, Some("2026-11-22T11:49:59Z")), 204);
        assert_eq!(answered(true, None, None), 204);
    }

    #[test]
    fn what_no_redelivery_cures_is_acknowledged() {
        assert_eq!(answered(false, Some(1), None), 204);
    }
}
