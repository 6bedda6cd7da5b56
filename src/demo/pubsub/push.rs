//! Push delivery: one loop for each push subscription, which POSTs messages, wrapped in JSON or not, and takes the
//! status for the acknowledgement.
//!
//! [`Pace`] models what production does to endpoints: slow start, and a back-off of the whole subscription when
//! messages are not acknowledged.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use googleapis_tonic_google_pubsub_v1::google::pubsub::v1 as pb;
use http::{HeaderName, HeaderValue, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::backlog::{Consumer, Delivery, DeliveryId};
use super::json;
use super::oidc::Bearer;
use super::subscription::Subscription;

/// Sends pushes; clones share their connections.
pub(super) type Client = hyper_util::client::legacy::Client<HttpConnector, Full<Bytes>>;

/// How long pushes that are under way may go on once the server stops.
const GRACE: Duration = Duration::from_millis(500);

/// What a lease lasts longer than its push: the push's own time-out decides, never the lease.
const LEASE_MARGIN: Duration = Duration::from_secs(5);

/// The most of an answer's body that is read, in bytes and time, so that the connection can be used again.
const ANSWER_BYTES: usize = 64 * 1024;
const ANSWER_TIME: Duration = Duration::from_secs(1);

/// Attributes that cannot be headers, since these are the request's own.
const STEERING: [HeaderName; 7] = [
    header::AUTHORIZATION,
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::EXPECT,
    header::HOST,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

pub(super) fn client() -> Client {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    hyper_util::client::legacy::Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .build(connector)
}

/// Pushes until the subscription is deleted, when what is under way is dropped, or until `closing`, when it has
/// [`GRACE`] to end.
pub(super) async fn run(
    subscription: Arc<Subscription>,
    endpoint: Uri,
    mut bearer: Option<Bearer>,
    client: Client,
    closing: CancellationToken,
) {
    let mut pace = Pace::new(Instant::now());
    let mut consumer = Consumer::new(0, usize::MAX, subscription.ack_deadline() + LEASE_MARGIN);
    let mut under_way = FuturesUnordered::new();
    loop {
        consumer.max_messages = pace.max_in_flight(under_way.len());
        let next = async {
            sleep_until(pace.next_push).await;
            subscription.next(&consumer).await
        };
        tokio::select! {
            biased;
            () = subscription.deleted() => return,
            () = closing.cancelled() => break,
            Some(pushed) = under_way.next() => settle(&subscription, &mut pace, &pushed),
            deliveries = next, if under_way.len() < consumer.max_messages => {
                pace.pushing(Instant::now());
                for delivery in deliveries {
                    let authorization = bearer.as_mut().map(Bearer::value);
                    under_way.push(push(&client, &endpoint, authorization, &subscription, delivery));
                }
            }
        }
    }
    let finish = async {
        while let Some(pushed) = under_way.next().await {
            settle(&subscription, &mut pace, &pushed);
        }
    };
    // Whatever is dropped here would be delivered again by a server that went on.
    let _ = timeout(GRACE, finish).await;
}

/// How one push ended.
struct Pushed {
    id: DeliveryId,
    sent: Instant,
    acknowledged: bool,
}

async fn push(
    client: &Client,
    endpoint: &Uri,
    authorization: Option<HeaderValue>,
    subscription: &Subscription,
    delivery: Delivery,
) -> Pushed {
    let sent = Instant::now();
    let mut request = match subscription.no_wrapper() {
        Some(no_wrapper) => unwrapped(&delivery.message, subscription.name(), no_wrapper.write_metadata),
        None => {
            let attempt = subscription.told_attempt(delivery.id);
            let envelope = json::envelope(&delivery.message, subscription.name(), attempt);
            let mut request = Request::new(Full::from(envelope));
            request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            request
        }
    };
    *request.method_mut() = http::Method::POST;
    *request.uri_mut() = endpoint.clone();
    request.headers_mut().insert(header::USER_AGENT, HeaderValue::from_static("CloudPubSub-Google"));
    request.headers_mut().extend(authorization.map(|value| (header::AUTHORIZATION, value)));
    let acknowledged = match timeout(subscription.ack_deadline(), client.request(request)).await {
        Ok(Ok(answer)) => {
            let acknowledged = is_acknowledgement(answer.status());
            tracing::debug!(
                subscription = subscription.name(),
                status = answer.status().as_u16(),
                "pushed a message"
            );
            drain(answer.into_body()).await;
            acknowledged
        }
        Ok(Err(error)) => {
            tracing::debug!(
                subscription = subscription.name(),
                error = &error as &dyn std::error::Error,
                "a push failed"
            );
            false
        }
        Err(_) => {
            tracing::debug!(
                subscription = subscription.name(),
                "a push had no answer within the ack deadline"
            );
            false
        }
    };
    Pushed { id: delivery.id, sent, acknowledged }
}

/// A push of the data alone; metadata and attributes become headers where they are wanted.
fn unwrapped(message: &pb::PubsubMessage, subscription: &str, write_metadata: bool) -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::new(message.data.clone()));
    let headers = request.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
    if !write_metadata {
        return request;
    }
    for (name, value) in &message.attributes {
        let name = HeaderName::try_from(name).ok().filter(|name| !STEERING.contains(name));
        if let (Some(name), Ok(value)) = (name, HeaderValue::from_bytes(value.as_bytes())) {
            headers.insert(name, value);
        }
    }
    let publish_time = message.publish_time.map(|time| time.to_string()).unwrap_or_default();
    for (name, value) in [
        ("x-goog-pubsub-subscription-name", subscription),
        ("x-goog-pubsub-message-id", &message.message_id),
        ("x-goog-pubsub-publish-time", &publish_time),
        ("x-goog-pubsub-ordering-key", &message.ordering_key),
    ] {
        if let Some(value) = HeaderValue::from_str(value).ok().filter(|value| !value.is_empty()) {
            headers.insert(name, value);
        }
    }
    request
}

/// 102 is in production's list too, but an interim status is not an answer yet, and the one after it decides.
fn is_acknowledgement(status: StatusCode) -> bool {
    matches!(status.as_u16(), 102 | 200 | 201 | 202 | 204)
}

async fn drain(body: Incoming) {
    let _ = timeout(ANSWER_TIME, Limited::new(body, ANSWER_BYTES).collect()).await;
}

fn settle(subscription: &Subscription, pace: &mut Pace, pushed: &Pushed) {
    let now = Instant::now();
    let mut backlog = subscription.backlog();
    if pushed.acknowledged {
        backlog.acknowledge(pushed.id);
        pace.acknowledged(now - pushed.sent);
    } else {
        backlog.modify_deadline(pushed.id, Duration::ZERO, now);
        pace.not_acknowledged(pushed.sent, now);
    }
    drop(backlog);
    // It may be a dead letter now.
    subscription.wake();
}

/// How many pushes may be under way, and when the next one may start.
///
/// Production documents bounds and two examples, not a formula: a delay of 100 ms to 60 s, exponential, for the whole
/// subscription; at 5 messages a second and 1 failure a second one delivery about every 500 ms, at 5 failures a second
/// one every 30 to 60 s. A rate that halves with each failure and grows by a third of a message a second with each
/// success does both, and is stable where some succeed and some fail.
#[derive(Debug)]
struct Pace {
    window: usize,
    /// While backing off: messages a second.
    rate: Option<f64>,
    next_push: Instant,
    /// When a failure last counted. Pushes that were under way then say nothing new when they fail too.
    slowed: Instant,
}

impl Pace {
    const FIRST_WINDOW: usize = 5;
    /// Below production's 3,000: every push in flight is a connection, and in a demo both its ends count against
    /// one process's open files.
    const MAX_WINDOW: usize = 200;
    /// Slower endpoints do not get a larger window.
    const FAST: Duration = Duration::from_secs(1);
    /// One message a minute.
    const MIN_RATE: f64 = 1.0 / 60.0;
    /// The first failure lets one message pass each 100 ms; at twice that rate the back-off is over.
    const FIRST_RATE: f64 = 10.0;
    const GROWTH: f64 = 1.0 / 3.0;

    fn new(now: Instant) -> Self {
        Self { window: Self::FIRST_WINDOW, rate: None, next_push: now, slowed: now }
    }

    fn max_in_flight(&self, in_flight: usize) -> usize {
        // While backing off, messages go one by one.
        if self.rate.is_none() { self.window } else { self.window.min(in_flight + 1) }
    }

    fn pushing(&mut self, now: Instant) {
        self.next_push = now + self.backoff();
    }

    /// One more for each success doubles the window each time it was used up.
    fn acknowledged(&mut self, latency: Duration) {
        if latency < Self::FAST {
            self.window = (self.window + 1).min(Self::MAX_WINDOW);
        }
        self.rate = self.rate.map(|rate| rate + Self::GROWTH).filter(|rate| *rate < 2.0 * Self::FIRST_RATE);
    }

    fn not_acknowledged(&mut self, sent: Instant, now: Instant) {
        if sent < self.slowed {
            return;
        }
        self.window = (self.window / 2).max(Self::FIRST_WINDOW);
        let halved = self.rate.map(|rate| (rate / 2.0).clamp(Self::MIN_RATE, Self::FIRST_RATE));
        self.rate = halved.or(Some(Self::FIRST_RATE));
        self.next_push = now + self.backoff();
        self.slowed = now;
    }

    fn backoff(&self) -> Duration {
        self.rate.map_or(Duration::ZERO, |rate| Duration::from_secs_f64(1.0 / rate))
    }
}

#[cfg(test)]
mod tests {
    use super::super::checks;
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn failures_double_the_back_off_up_to_a_minute_and_successes_end_it() {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        let mut backoffs = Vec::new();
        for _ in 0..12 {
            let sent = now;
            now += MS;
            pace.not_acknowledged(sent, now);
            assert_eq!(pace.next_push, now + pace.backoff());
            backoffs.push(pace.backoff().as_millis());
            now = pace.next_push;
        }
        assert_eq!(backoffs, [100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 51200, 60000, 60000]);
        assert_eq!(pace.max_in_flight(0), 1, "one by one while backing off");
        let successes = (1..).find(|_| {
            pace.acknowledged(MS);
            pace.rate.is_none()
        });
        assert_eq!(successes, Some(60));
        pace.pushing(now);
        assert_eq!(pace.next_push, now);
    }

    #[test]
    fn failures_of_one_round_count_once() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        for later in 1..=5 {
            pace.not_acknowledged(now, now + MS * later);
        }
        assert_eq!(pace.backoff(), 100 * MS);
    }

    #[test]
    fn the_window_doubles_with_fast_successes_alone_and_is_bounded() {
        let mut pace = Pace::new(Instant::now());
        (0..5).for_each(|_| pace.acknowledged(MS));
        assert_eq!(pace.max_in_flight(0), 10);
        (0..5).for_each(|_| pace.acknowledged(Pace::FAST));
        assert_eq!(pace.max_in_flight(0), 10);
        (0..1_000).for_each(|_| pace.acknowledged(MS));
        assert_eq!(pace.max_in_flight(0), Pace::MAX_WINDOW);
    }

    #[test]
    fn one_failure_in_five_slows_delivery_to_about_two_a_second() {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        let started = now;
        for number in 0..1_000 {
            pace.pushing(now);
            now += 10 * MS;
            if number % 5 == 0 {
                pace.not_acknowledged(now - 10 * MS, now)
            } else {
                pace.acknowledged(10 * MS)
            }
            now = now.max(pace.next_push);
        }
        let each = (now - started) / 1_000;
        assert!((400 * MS..600 * MS).contains(&each), "{each:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn no_answer_within_the_ack_deadline_is_no_acknowledgement() {
        // Connections wait in its queue, and nobody ever reads.
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}/", silent.local_addr().unwrap()).parse().unwrap();
        let resource = pb::Subscription {
            name: "projects/p/subscriptions/sub".to_owned(),
            ack_deadline_seconds: 17,
            ..pb::Subscription::default()
        };
        let subscription = Subscription::new(checks::subscription(resource).unwrap(), 1).unwrap();
        let delivery = Delivery { id: DeliveryId { sequence: 0, attempt: 1 }, message: Arc::default() };
        let pushed = push(&client(), &endpoint, None, &subscription, delivery).await;
        assert!(!pushed.acknowledged);
        assert_eq!(pushed.sent.elapsed().as_secs(), 17);
    }

    #[test]
    fn only_production_s_codes_acknowledge() {
        let codes = (100..1_000).filter(|code| is_acknowledgement(StatusCode::from_u16(*code).unwrap()));
        assert_eq!(codes.collect::<Vec<_>>(), [102, 200, 201, 202, 204]);
    }
}
