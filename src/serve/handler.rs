//! One request from its head to its answer: the only code that maps verdicts to HTTP statuses.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::{Body, Incoming};
use jiff::Timestamp;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use super::auth::{Auth, Reason, Refusal};
use super::body::{Bodies, MAX_BODY_BYTES, Unread, discard};
use super::deliveries::Deliveries;
use super::envelope::{self, Push};
use super::metrics::ServeMetrics;
use super::pack::{self, Line};
use super::{Answers, Malformed, NO_KEYS, Payload, unwrapped};
use crate::outcome::{Outcome, Source, shown_url};
use crate::request::{NotARequest, WarmRequest};
use crate::telemetry::instance::Identity;
use crate::telemetry::outcomes::OutcomeLog;
use crate::telemetry::trace::{self, Trace};
use crate::verdict::Verdict;
use crate::warm::{Attempt, Warmer};

/// URLs of one pack that are warmed at once. The edge next door sees as many connections as from a browser or two; at
/// 50 ms a URL a full pack of 1,600 is over in 10 s, well inside an ack deadline. Pub/Sub brings more pushes at once.
const PACK_CONCURRENCY: usize = 8;

/// How long a push may go on once the server stops: a second and a half before it has to be gone, so that the answer
/// gets out.
const STOP_LIMIT: Duration = Duration::from_secs(8);

type Answer = Response<Full<Bytes>>;

/// Answers every request of one server.
pub(super) struct Handler {
    auth: Auth,
    identity: Identity,
    warmer: Warmer,
    answers: Answers,
    bodies: Bodies,
    in_flight: Arc<Semaphore>,
    deliveries: Deliveries,
    seen: Seen,
    stop: CancellationToken,
}

/// Who hears of outcomes.
pub(super) struct Seen {
    pub(super) metrics: ServeMetrics,
    pub(super) log: OutcomeLog,
    /// Who takes outcomes instead of the log.
    pub(super) outcomes: Option<mpsc::Sender<Outcome>>,
}

impl Handler {
    pub(super) fn new(
        auth: Auth,
        identity: Identity,
        warmer: Warmer,
        answers: Answers,
        in_flight: Arc<Semaphore>,
        seen: Seen,
        stop: CancellationToken,
    ) -> Self {
        let (bodies, deliveries) = (Bodies::default(), Deliveries::new());
        Self { auth, identity, warmer, answers, bodies, in_flight, deliveries, seen, stop }
    }

    /// The answer to any request.
    pub(super) async fn answer(&self, request: Request<Incoming>) -> Answer {
        let (mut head, body) = request.into_parts();
        let answer = match (head.uri.path(), &head.method) {
            ("/", &Method::POST) => {
                let under_way = self.seen.metrics.push();
                let answer = tokio::select! {
                    biased;
                    answer = self.push(&mut head, body) => answer,
                    () = self.last_moment() => {
                        tracing::warn!("a push was not warm when the time to stop was over; answered 503");
                        closing(say(StatusCode::SERVICE_UNAVAILABLE, "stopped before it was warm"))
                    }
                };
                under_way.answered(answer.status());
                return answer;
            }
            ("/", _) => {
                let text = "this is a Pub/Sub push endpoint: POST a push message here";
                with_header(say(StatusCode::METHOD_NOT_ALLOWED, text), header::ALLOW, "POST")
            }
            // Cloud Run's front end answers paths that end in z by itself; the aliases are for everywhere else.
            ("/health" | "/healthz", &Method::GET | &Method::HEAD) => say(StatusCode::OK, "ok"),
            ("/ready" | "/readyz", &Method::GET | &Method::HEAD) if self.stop.is_cancelled() => {
                say(StatusCode::SERVICE_UNAVAILABLE, "draining")
            }
            ("/ready" | "/readyz", &Method::GET | &Method::HEAD) if !self.auth.is_ready() => {
                say(StatusCode::SERVICE_UNAVAILABLE, NO_KEYS)
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
        before_body(&head, body, answer)
    }

    /// A push: who sent it, take it in, read it, warm, answer. Each step may end it.
    async fn push(&self, head: &mut Parts, mut incoming: Incoming) -> Answer {
        // 1. What cannot be taken now is answered at once; whoever is not believed gets nothing done.
        if self.stop.is_cancelled() {
            return closing(say(StatusCode::SERVICE_UNAVAILABLE, "draining"));
        }
        let too_many = || say(StatusCode::TOO_MANY_REQUESTS, "too many pushes in flight");
        if self.in_flight.available_permits() == 0 {
            return before_body(head, incoming, too_many());
        }
        if let Err(refusal) = self.auth.check(&head.headers).await {
            return before_body(head, incoming, refused(&refusal));
        }

        // 2. The body, up to its limits. One that stalls takes nobody's place yet.
        if let Some(coding) = head.headers.get(header::CONTENT_ENCODING)
            && !coding.as_bytes().eq_ignore_ascii_case(b"identity")
        {
            let text = "a push is not compressed";
            let answer = say(StatusCode::UNSUPPORTED_MEDIA_TYPE, text);
            return closing(with_header(answer, header::ACCEPT_ENCODING, "identity"));
        }
        let body = match self.bodies.read(&mut incoming).await {
            Ok(body) => body,
            Err(Unread::TooLarge) => return self.too_large().await,
            Err(Unread::NoRoom) => return before_body(head, incoming, too_many()),
            Err(Unread::TooSlow) => {
                return closing(say(StatusCode::REQUEST_TIMEOUT, "the body took too long"));
            }
            Err(Unread::Broken(error)) => {
                tracing::debug!("push body: {error}");
                return closing(say(StatusCode::BAD_REQUEST, "the body could not be read to its end"));
            }
        };

        // 3. A place.
        let Ok(_place) = self.in_flight.try_acquire() else { return too_many() };

        // 4. The message. Headers are pieces of the buffer that hyper reads into; where one is left it needs another.
        let headers = std::mem::take(&mut head.headers);
        let of_request = traceparent(&headers);
        let parsed = match self.answers.payload {
            Payload::Wrapped => {
                drop(headers);
                envelope::parse(&body.bytes)
            }
            Payload::Unwrapped => unwrapped::parse(&headers, &body.bytes),
        };
        let push = match parsed {
            Ok(push) => push,
            Err(error) => {
                tracing::warn!("{error}");
                return say(StatusCode::BAD_REQUEST, &error.to_string());
            }
        };

        // 5. What is in it: one URL, or a line for each of several.
        let pushed = Pushed { push: &push, trace: trace(of_request.as_deref(), &push) };
        let warmed =
            if pack::is_pack(&push) { self.warm_pack(pushed).await } else { self.warm_one(pushed).await };

        // 6. The answer.
        match warmed {
            Ok(curable) => say(status(curable, &push, &self.answers, Timestamp::now), ""),
            Err(malformed) => say(StatusCode::BAD_REQUEST, &malformed.reason()),
        }
    }

    /// When a stop can wait no longer.
    async fn last_moment(&self) {
        self.stop.cancelled().await;
        tokio::time::sleep(STOP_LIMIT).await;
    }

    /// Warms a push of one URL; true where a later delivery may go better.
    ///
    /// # Errors
    /// Malformed data that the operator wants nacked.
    async fn warm_one(&self, pushed: Pushed<'_>) -> Result<bool, NotARequest> {
        let push = pushed.push;
        let request = match WarmRequest::parse(&push.data, push.options()) {
            Ok(request) => request,
            Err(not_a_request) => return self.refuse(not_a_request, pushed).await,
        };
        let outcome = self.warm(&request, push, None, self.warmer.deadline()).await;
        Ok(self.report(outcome, pushed.trace.as_ref()).await)
    }

    /// Fetches one URL of a push, unless an earlier delivery of the message did and a GET would change nothing. `line`
    /// is its id where the push has several.
    async fn warm(
        &self,
        request: &WarmRequest,
        push: &Push<'_>,
        line: Option<String>,
        deadline: Instant,
    ) -> Box<Outcome> {
        let instance = self.identity.get().await;
        let delivery = self.deliveries.delivery(push, line.as_deref(), request);
        let known = delivery.and_then(|delivery| self.deliveries.known(delivery));
        let is_known = known.is_some();
        let attempt = match known {
            Some(attempt) => attempt,
            None => self.warmer.warm(request, &instance.region, deadline).await,
        };
        let id = line.unwrap_or_else(|| id(push));
        let outcome = attempt.into_outcome(instance, shown_url(request.url()), id, source(push));
        if let Some(delivery) = delivery.filter(|_| !is_known) {
            self.deliveries.remember(delivery, &outcome);
        }
        outcome
    }

    /// The outcome of what never became a request.
    async fn refused(&self, reason: String, id: String, source: Source) -> Box<Outcome> {
        let attempt = Attempt::without_request(Verdict::Refused(reason));
        attempt.into_outcome(self.identity.get().await, String::new(), id, source)
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
    async fn warm_pack(&self, pushed: Pushed<'_>) -> Result<bool, NotARequest> {
        let deadline = self.warmer.deadline();
        let mut lines = pack::lines(pushed.push).peekable();
        if lines.peek().is_none() {
            return self.refuse(NotARequest::Malformed("a list without a URL".to_owned()), pushed).await;
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
                    self.warm_line(line, pushed, deadline).await
                });
            }
            match under_way.next().await {
                Some(line_is_curable) => curable |= line_is_curable,
                None => return Ok(curable),
            }
        }
    }

    /// Warms one line of a pack; true where a later delivery may go better. What is no URL never spoils the others.
    async fn warm_line(&self, line: Line<'_>, pushed: Pushed<'_>, deadline: Instant) -> bool {
        let push = pushed.push;
        // Lines that need no network would keep the thread to themselves.
        tokio::task::coop::consume_budget().await;
        let request = WarmRequest::parse(line.data, push.options());
        let outcome = match &request {
            Ok(request) => self.warm(request, push, Some(line.id), deadline).await,
            Err(not_a_request) => self.refused(not_a_request.reason(), line.id, source(push)).await,
        };
        self.report(outcome, pushed.trace.as_ref()).await
    }

    /// What is not warmed: gone with verdict refused, or, where the data itself is at fault, as the operator wants.
    async fn refuse(&self, not_a_request: NotARequest, pushed: Pushed<'_>) -> Result<bool, NotARequest> {
        let push = pushed.push;
        let (id, reason) = (id(push), not_a_request.reason());
        if matches!(not_a_request, NotARequest::Malformed(_)) && self.answers.malformed == Malformed::Nack {
            tracing::warn!(id, "{reason}; answered 400 (--malformed ack drops such messages)");
            return Err(not_a_request);
        }
        let outcome = self.refused(reason, id, source(push)).await;
        Ok(self.report(outcome, pushed.trace.as_ref()).await)
    }

    /// No message that holds a URL is this large.
    async fn too_large(&self) -> Answer {
        let reason = format!("malformed data: a push of more than {MAX_BODY_BYTES} bytes");
        if self.answers.malformed == Malformed::Nack {
            tracing::warn!("{reason}; answered 413 (--malformed ack drops such messages)");
            return closing(say(StatusCode::PAYLOAD_TOO_LARGE, &reason));
        }
        let outcome = self.refused(reason, String::new(), Source::default()).await;
        self.report(outcome, None).await;
        closing(say(StatusCode::NO_CONTENT, ""))
    }

    /// Counts and logs the outcome; true where a later delivery may go better.
    async fn report(&self, outcome: Box<Outcome>, trace: Option<&Trace<'_>>) -> bool {
        let curable = outcome.verdict.is_curable();
        self.seen.metrics.outcome(&outcome);
        match &self.seen.outcomes {
            None => self.seen.log.log(&outcome, trace),
            // Whoever listened is gone at the end of a demo.
            Some(outcomes) => drop(outcomes.send(*outcome).await),
        }
        curable
    }
}

/// Where a URL came from.
#[derive(Clone, Copy)]
struct Pushed<'a> {
    push: &'a Push<'a>,
    trace: Option<Trace<'a>>,
}

/// An answer that goes out before the body was read. What is left of it is read beside, for a moment, so that the
/// connection can be used again; unless the client waits to be asked for it, and then may go on with something else.
fn before_body(head: &Parts, body: Incoming, answer: Answer) -> Answer {
    if head.headers.contains_key(header::EXPECT) {
        return closing(answer);
    }
    if !body.is_end_stream() {
        tokio::spawn(discard(body));
    }
    answer
}

/// 503 where a later delivery may go better and there are some left, 204 for all else: never 202, which Google's
/// emulator takes for a nack, and never a nack for ever, which slows the whole region.
fn status(curable: bool, push: &Push<'_>, answers: &Answers, now: impl FnOnce() -> Timestamp) -> StatusCode {
    let deliveries_left = || match (push.delivery_attempt, push.publish_time) {
        (Some(attempt), _) => attempt < answers.max_delivery_attempts,
        (None, Some(published)) => {
            let age = Duration::try_from(now().duration_since(published)).unwrap_or_default();
            age < answers.retry_for()
        }
        // Not from Pub/Sub, which always says when: nobody would ever stop sending it again.
        (None, None) => false,
    };
    if curable && deliveries_left() { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::NO_CONTENT }
}

/// 401 with a challenge (RFC 6750, section 3), the same for whatever is wrong with a token; 503 where that cannot be told.
fn refused(refusal: &Refusal) -> Answer {
    let challenge = match refusal.reason {
        Reason::NoKeys => return say(StatusCode::SERVICE_UNAVAILABLE, "no keys to check the token with yet"),
        Reason::NoToken => "Bearer",
        _ => "Bearer error=\"invalid_token\"",
    };
    with_header(say(StatusCode::UNAUTHORIZED, "push refused"), header::WWW_AUTHENTICATE, challenge)
}

/// The Kafka coordinates that `bridge` gave the message, or its id.
fn id(push: &Push<'_>) -> String {
    let attribute = |name: &str| push.attributes.get(name);
    match (attribute("kafka-topic"), attribute("kafka-partition"), attribute("kafka-offset")) {
        (Some(topic), Some(partition), Some(offset)) => [topic.as_ref(), partition, offset].join("/"),
        _ => push.message_id.as_deref().unwrap_or_default().to_owned(),
    }
}

/// The trace that the request itself names.
fn traceparent(headers: &HeaderMap) -> Option<String> {
    let mut named = trace::ATTRIBUTES.iter().filter_map(|name| headers.get(*name)?.to_str().ok());
    named.find(|text| Trace::parse(text, None).is_some()).map(str::to_owned)
}

/// The trace that the message's attributes name, else the one `of_request`. Where it is kept is a guess: the subscription's
/// project.
fn trace<'a>(of_request: Option<&'a str>, push: &'a Push<'_>) -> Option<Trace<'a>> {
    let project =
        || push.subscription.as_deref().and_then(|name| name.strip_prefix("projects/")?.split('/').next());
    let of_message =
        trace::ATTRIBUTES.iter().filter_map(|name| push.attributes.get(*name).map(AsRef::as_ref));
    of_message.chain(of_request).find_map(|traceparent| Trace::parse(traceparent, project()))
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

/// Nothing more of the request is read, so the connection cannot be used again.
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
            payload: Payload::Wrapped,
        };
        let push = Push {
            delivery_attempt,
            publish_time: published.map(|time| time.parse().unwrap()),
            ..Push::default()
        };
        status(curable, &push, &answers, || now).as_u16()
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
