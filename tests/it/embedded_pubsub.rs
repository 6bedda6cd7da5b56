//! The embedded Pub/Sub, seen from the wire: by Google's own SDK, by raw gRPC and REST clients, and by push endpoints.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use cdnwarm::demo::pubsub::EmbeddedPubsub;
use google_cloud_auth::credentials::anonymous;
use google_cloud_pubsub::client::{Publisher, Subscriber, SubscriptionAdmin, TopicAdmin};
use google_cloud_pubsub::model::Message;
use googleapis_tonic_google_pubsub_v1::google::pubsub::v1 as pb;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use pb::publisher_client::PublisherClient;
use pb::subscriber_client::SubscriberClient;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Status};

const PROJECT: &str = "projects/test";
const TOPIC: &str = "projects/test/topics/urls";

/// Far above what anything here takes, even on a busy machine.
const DEADLINE: Duration = Duration::from_secs(30);

struct Server {
    addr: SocketAddr,
    publisher: PublisherClient<Channel>,
    subscriber: SubscriberClient<Channel>,
    stop: CancellationToken,
    running: JoinHandle<()>,
}

impl Server {
    /// A running server with one topic.
    async fn start() -> Self {
        let server = EmbeddedPubsub::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
        let (addr, stop) = (server.addr(), CancellationToken::new());
        let running = tokio::spawn(server.run(stop.clone()));
        let channel = Channel::from_shared(format!("http://{addr}")).unwrap().connect().await.unwrap();
        let mut publisher = PublisherClient::new(channel.clone());
        publisher.create_topic(pb::Topic { name: TOPIC.to_owned(), ..Default::default() }).await.unwrap();
        Self { addr, publisher, subscriber: SubscriberClient::new(channel), stop, running }
    }

    async fn subscribe(
        &mut self,
        id: &str,
        change: impl FnOnce(&mut pb::Subscription),
    ) -> Result<String, Status> {
        let name = format!("{PROJECT}/subscriptions/{id}");
        let mut request =
            pb::Subscription { name: name.clone(), topic: TOPIC.to_owned(), ..Default::default() };
        change(&mut request);
        self.subscriber.create_subscription(request).await.map(|_| name)
    }

    async fn subscribe_push(&mut self, id: &str, endpoint: &Endpoint) -> String {
        let push_endpoint = format!("http://{}/push?token=t", endpoint.addr);
        let push_config = Some(pb::PushConfig { push_endpoint, ..Default::default() });
        self.subscribe(id, |request| request.push_config = push_config).await.unwrap()
    }

    async fn publish(&mut self, messages: Vec<pb::PubsubMessage>) -> Result<Vec<String>, Status> {
        let request = pb::PublishRequest { topic: TOPIC.to_owned(), messages };
        self.publisher.publish(request).await.map(|response| response.into_inner().message_ids)
    }

    async fn pull(
        &mut self,
        subscription: &str,
        max_messages: i32,
    ) -> Result<Vec<pb::ReceivedMessage>, Status> {
        self.pull_within(subscription, max_messages, false).await
    }

    async fn pull_within(
        &mut self,
        subscription: &str,
        max_messages: i32,
        at_once: bool,
    ) -> Result<Vec<pb::ReceivedMessage>, Status> {
        #[expect(deprecated, reason = "the way to see that there is nothing without waiting for it")]
        let request = pb::PullRequest {
            subscription: subscription.to_owned(),
            return_immediately: at_once,
            max_messages,
        };
        let response = timeout(DEADLINE, self.subscriber.pull(request)).await.expect("no answer to a pull");
        response.map(|response| response.into_inner().received_messages)
    }

    async fn acknowledge(
        &mut self,
        subscription: &str,
        received: &[pb::ReceivedMessage],
    ) -> Result<(), Status> {
        let ack_ids = received.iter().map(|received| received.ack_id.clone()).collect();
        let request = pb::AcknowledgeRequest { subscription: subscription.to_owned(), ack_ids };
        self.subscriber.acknowledge(request).await.map(|_| ())
    }

    async fn modify(
        &mut self,
        subscription: &str,
        ack_id: &str,
        ack_deadline_seconds: i32,
    ) -> Result<(), Status> {
        let (subscription, ack_ids) = (subscription.to_owned(), vec![ack_id.to_owned()]);
        let request = pb::ModifyAckDeadlineRequest { subscription, ack_ids, ack_deadline_seconds };
        self.subscriber.modify_ack_deadline(request).await.map(|_| ())
    }

    /// Ends the server and says how long that took.
    async fn stop(self) -> Duration {
        let begin = Instant::now();
        self.stop.cancel();
        timeout(DEADLINE, self.running).await.expect("the server does not stop").unwrap();
        begin.elapsed()
    }
}

fn message(data: &str) -> pb::PubsubMessage {
    pb::PubsubMessage { data: data.to_owned().into(), ..Default::default() }
}

fn with_attributes(data: &str, attributes: &[(&str, &str)]) -> pb::PubsubMessage {
    let attributes = attributes.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    pb::PubsubMessage { attributes, ..message(data) }
}

fn texts(received: &[pb::ReceivedMessage]) -> Vec<String> {
    let text = |received: &pb::ReceivedMessage| {
        String::from_utf8(received.message.as_ref().unwrap().data.to_vec()).unwrap()
    };
    let mut texts: Vec<_> = received.iter().map(text).collect();
    texts.sort();
    texts
}

/// A push endpoint that answers what `answer` says for the number of the push, from 0, and hands the pushes out.
struct Endpoint {
    addr: SocketAddr,
    pushes: mpsc::Receiver<Push>,
    serving: JoinHandle<()>,
}

struct Push {
    at: Instant,
    head: http::request::Parts,
    body: Value,
}

impl Endpoint {
    async fn start(answer: impl Fn(usize, &Value) -> u16 + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (sender, pushes) = mpsc::channel(10_000);
        let (answer, count) = (Arc::new(answer), Arc::new(AtomicUsize::new(0)));
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (sender, answer, count) = (sender.clone(), Arc::clone(&answer), Arc::clone(&count));
                let service = service_fn(move |request: Request<Incoming>| {
                    let (sender, answer, count) = (sender.clone(), Arc::clone(&answer), Arc::clone(&count));
                    async move {
                        let (head, body) = request.into_parts();
                        let body = body.collect().await.unwrap().to_bytes();
                        // An unwrapped push is plain text.
                        let body: Value = serde_json::from_slice(&body)
                            .unwrap_or_else(|_| String::from_utf8_lossy(&body).into());
                        let status = answer(count.fetch_add(1, Ordering::SeqCst), &body);
                        let _ = sender.send(Push { at: Instant::now(), head, body }).await;
                        if status == 0 {
                            std::future::pending::<()>().await;
                        }
                        let mut response = Response::new(Empty::<Bytes>::new());
                        *response.status_mut() = StatusCode::from_u16(status).unwrap();
                        Ok::<_, Infallible>(response)
                    }
                });
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        Self { addr, pushes, serving }
    }

    async fn push(&mut self) -> Push {
        timeout(DEADLINE, self.pushes.recv()).await.expect("no push in time").unwrap()
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

#[tokio::test]
async fn google_s_sdk_creates_publishes_receives_and_acknowledges() {
    let server = Server::start().await;
    let endpoint = format!("http://{}", server.addr);
    let credentials = || anonymous::Builder::new().build();
    let topics =
        TopicAdmin::builder().with_endpoint(&endpoint).with_credentials(credentials()).build().await.unwrap();
    let topic = topics.create_topic().set_name("projects/sdk/topics/greetings").send().await.unwrap();
    assert_eq!(topics.get_topic().set_topic(&topic.name).send().await.unwrap().name, topic.name);
    let listed = topics.list_topics().set_project("projects/sdk").send().await.unwrap();
    assert_eq!(listed.topics.len(), 1);
    let again = topics.create_topic().set_name(&topic.name).send().await.unwrap_err();
    assert_eq!(
        again.status().unwrap().message,
        "Resource already exists in the project (resource=greetings)."
    );

    let admin = SubscriptionAdmin::builder()
        .with_endpoint(&endpoint)
        .with_credentials(credentials())
        .build()
        .await
        .unwrap();
    let subscription = admin
        .create_subscription()
        .set_name("projects/sdk/subscriptions/reader")
        .set_topic(&topic.name)
        .set_filter("attributes:wanted")
        .set_ack_deadline_seconds(20)
        .send()
        .await
        .unwrap();
    assert_eq!((subscription.ack_deadline_seconds, subscription.filter.as_str()), (20, "attributes:wanted"));

    let publisher = Publisher::builder(&topic.name)
        .with_endpoint(&endpoint)
        .with_credentials(credentials())
        .build()
        .await
        .unwrap();
    publisher.publish(Message::new().set_data("unwanted")).await.unwrap();
    for number in 0..20 {
        let message = Message::new().set_data(format!("hello {number}")).set_attributes([("wanted", "yes")]);
        publisher.publish(message).await.unwrap();
    }

    let subscriber =
        Subscriber::builder().with_endpoint(&endpoint).with_credentials(credentials()).build().await.unwrap();
    let mut stream = subscriber.subscribe(&subscription.name).build();
    let mut received = Vec::new();
    let mut given_back = false;
    while received.len() < 20 {
        let (message, handler) =
            timeout(DEADLINE, stream.next()).await.expect("no message in time").unwrap().unwrap();
        if given_back {
            received.push(String::from_utf8(message.data.to_vec()).unwrap());
            handler.ack();
        } else {
            given_back = true;
            handler.nack();
        }
    }
    received.sort();
    let mut expected: Vec<_> = (0..20).map(|number| format!("hello {number}")).collect();
    expected.sort();
    assert_eq!(received, expected);
    stream.shutdown_token().shutdown().await;

    admin.delete_subscription().set_subscription(&subscription.name).send().await.unwrap();
    topics.delete_topic().set_topic(&topic.name).send().await.unwrap();
    assert!(topics.get_topic().set_topic(&topic.name).send().await.is_err());
    server.stop().await;
}

#[tokio::test]
async fn every_subscription_gets_each_message_once_it_is_acknowledged_never_again() {
    let mut server = Server::start().await;
    let one = server.subscribe("one", |_| {}).await.unwrap();
    let two = server.subscribe("two", |_| {}).await.unwrap();
    let ids = server.publish(vec![message("a"), message("b"), message("c")]).await.unwrap();
    assert_eq!(ids.len(), 3);
    for subscription in [&one, &two] {
        let received = server.pull(subscription, 10).await.unwrap();
        assert_eq!(texts(&received), ["a", "b", "c"]);
        let first = received[0].message.as_ref().unwrap();
        assert!(ids.contains(&first.message_id) && first.publish_time.is_some());
        assert_eq!(received[0].delivery_attempt, 0, "told only with a dead letter policy");
        server.acknowledge(subscription, &received[1..]).await.unwrap();
        server.modify(subscription, &received[0].ack_id, 0).await.unwrap();
        let again = server.pull(subscription, 10).await.unwrap();
        assert_eq!(texts(&again), texts(&received[..1]), "given back, so delivered again");
        server.acknowledge(subscription, &again).await.unwrap();
        assert!(server.pull_within(subscription, 10, true).await.unwrap().is_empty());
    }
    server.stop().await;
}

#[tokio::test]
async fn an_expired_deadline_delivers_again() {
    let mut server = Server::start().await;
    let subscription = server.subscribe("sub", |_| {}).await.unwrap();
    server.publish(vec![message("a")]).await.unwrap();
    let first = server.pull(&subscription, 1).await.unwrap();
    server.modify(&subscription, &first[0].ack_id, 1).await.unwrap();
    let begin = Instant::now();
    let second = server.pull(&subscription, 1).await.unwrap();
    assert!(begin.elapsed() > Duration::from_millis(900), "not before the second was over");
    assert_eq!(texts(&second), ["a"]);
    assert_ne!(first[0].ack_id, second[0].ack_id);
    server.stop().await;
}

#[tokio::test]
async fn a_filter_decides_what_a_subscription_gets() {
    let mut server = Server::start().await;
    let filter = |region: &str| {
        format!("NOT attributes:\"warm-region-filtered\" OR attributes:\"warm-region-{region}\"")
    };
    let eu = server.subscribe("eu1", |request| request.filter = filter("eu")).await.unwrap();
    let us = server.subscribe("us1", |request| request.filter = filter("us")).await.unwrap();
    let only_us = [("warm-region-filtered", "1"), ("warm-region-us", "1")];
    server.publish(vec![message("all"), with_attributes("us", &only_us)]).await.unwrap();
    assert_eq!(texts(&server.pull(&eu, 10).await.unwrap()), ["all"]);
    assert_eq!(texts(&server.pull(&us, 10).await.unwrap()), ["all", "us"]);
    let malformed =
        server.subscribe("bad", |request| request.filter = "attributes".to_owned()).await.unwrap_err();
    assert_eq!(malformed.code(), Code::InvalidArgument);
    server.stop().await;
}

#[tokio::test]
async fn publish_limits_hold_on_the_wire() {
    let mut server = Server::start().await;
    server.subscribe("sub", |_| {}).await.unwrap();
    let megabytes = |count: usize| message(&"x".repeat(count * 1024 * 1024));
    server.publish((0..1_000).map(|_| message("x")).collect()).await.unwrap();
    server.publish(vec![megabytes(9)]).await.unwrap();
    for (messages, why) in [
        ((0..1_001).map(|_| message("x")).collect(), "1001 messages"),
        (vec![megabytes(5), megabytes(5)], "exceeds the limit: 10485760 bytes"),
        (vec![message("")], "empty"),
        (vec![with_attributes("x", &[("", "v")])], "attribute key"),
        (vec![with_attributes("x", &[("k", &"v".repeat(1_025))])], "attribute k exceeds"),
        (
            vec![message("x"), pb::PubsubMessage { ordering_key: "k".to_owned(), ..message("x") }],
            "ordering key",
        ),
    ] {
        let error = server.publish(messages).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument);
        assert!(error.message().contains(why), "{error}");
    }
    let request =
        pb::PublishRequest { topic: format!("{PROJECT}/topics/none"), messages: vec![message("x")] };
    let error = server.publisher.publish(request).await.unwrap_err();
    assert_eq!((error.code(), error.message()), (Code::NotFound, "Resource not found (resource=none)."));
    server.stop().await;
}

#[tokio::test]
async fn administration_answers_as_production_does() {
    let mut server = Server::start().await;
    let name = server.subscribe("sub", |_| {}).await.unwrap();
    assert_eq!(server.subscribe("sub", |_| {}).await.unwrap_err().code(), Code::AlreadyExists);
    assert_eq!(server.subscribe("go", |_| {}).await.unwrap_err().code(), Code::InvalidArgument);
    let no_topic = server.subscribe("none", |request| request.topic = format!("{PROJECT}/topics/none")).await;
    assert_eq!(no_topic.unwrap_err().message(), "Resource not found (resource=none).");
    for (id, change) in [
        ("ordered", (|request| request.enable_message_ordering = true) as fn(&mut pb::Subscription)),
        ("once", |request| request.enable_exactly_once_delivery = true),
    ] {
        assert_eq!(server.subscribe(id, change).await.unwrap_err().code(), Code::Unimplemented, "{id}");
    }
    let dead_letters = |topic: &str, max_delivery_attempts| {
        let dead_letter_topic = format!("{PROJECT}/topics/{topic}");
        Some(pb::DeadLetterPolicy { dead_letter_topic, max_delivery_attempts })
    };
    for (topic, attempts, code) in [
        ("none", 5, Code::NotFound),
        ("urls", 4, Code::InvalidArgument),
        ("urls", 101, Code::InvalidArgument),
    ] {
        let policy = dead_letters(topic, attempts);
        let error =
            server.subscribe("dead", |request| request.dead_letter_policy = policy).await.unwrap_err();
        assert_eq!(error.code(), code, "{topic} {attempts}");
    }
    let https = server.subscribe("tls", |request| {
        request.push_config =
            Some(pb::PushConfig { push_endpoint: "https://example.com/".to_owned(), ..Default::default() });
    });
    assert_eq!(https.await.unwrap_err().code(), Code::InvalidArgument);
    let request = pb::ListTopicSubscriptionsRequest { topic: TOPIC.to_owned(), ..Default::default() };
    let listed = server.publisher.list_topic_subscriptions(request).await.unwrap().into_inner();
    assert_eq!(listed.subscriptions, std::slice::from_ref(&name));
    let unserved = server.publisher.update_topic(pb::UpdateTopicRequest::default()).await.unwrap_err();
    assert_eq!(unserved.code(), Code::Unimplemented);

    server.publish(vec![message("kept")]).await.unwrap();
    server.publisher.delete_topic(pb::DeleteTopicRequest { topic: TOPIC.to_owned() }).await.unwrap();
    let request = pb::GetSubscriptionRequest { subscription: name.clone() };
    assert_eq!(
        server.subscriber.get_subscription(request).await.unwrap().into_inner().topic,
        "_deleted-topic_"
    );
    assert_eq!(texts(&server.pull(&name, 1).await.unwrap()), ["kept"]);
    let mut waiting = server.subscriber.clone();
    #[expect(deprecated, reason = "a request has this field")]
    let request = pb::PullRequest { subscription: name.clone(), return_immediately: false, max_messages: 1 };
    let pull = tokio::spawn(async move { waiting.pull(request).await });
    server
        .subscriber
        .delete_subscription(pb::DeleteSubscriptionRequest { subscription: name })
        .await
        .unwrap();
    assert_eq!(timeout(DEADLINE, pull).await.unwrap().unwrap().unwrap_err().code(), Code::NotFound);
    server.stop().await;
}

#[tokio::test]
async fn a_stream_respects_its_limit_and_takes_acknowledgements_and_ends_with_the_server() {
    let mut server = Server::start().await;
    let subscription = server.subscribe("sub", |_| {}).await.unwrap();
    server.publish((0..5).map(|number| message(&number.to_string())).collect()).await.unwrap();
    let (requests, receiver) = mpsc::channel(8);
    let first = pb::StreamingPullRequest {
        subscription: subscription.clone(),
        stream_ack_deadline_seconds: 10,
        max_outstanding_messages: 2,
        ..Default::default()
    };
    requests.send(first).await.unwrap();
    let outgoing = futures_util::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|request| (request, receiver))
    });
    let mut responses = server.subscriber.streaming_pull(outgoing).await.unwrap().into_inner();
    let mut next = async || timeout(DEADLINE, responses.message()).await.expect("no response in time");
    let held = next().await.unwrap().unwrap().received_messages;
    assert_eq!(texts(&held), ["0", "1"]);
    let answer = pb::StreamingPullRequest {
        ack_ids: vec![held[0].ack_id.clone()],
        modify_deadline_ack_ids: vec![held[1].ack_id.clone()],
        modify_deadline_seconds: vec![0],
        ..Default::default()
    };
    requests.send(answer).await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < 4 {
        let received = next().await.unwrap().unwrap().received_messages;
        seen.extend(texts(&received));
        let ack_ids = received.into_iter().map(|received| received.ack_id).collect();
        requests.send(pb::StreamingPullRequest { ack_ids, ..Default::default() }).await.unwrap();
    }
    seen.sort();
    assert_eq!(seen, ["1", "2", "3", "4"], "0 was acknowledged, 1 given back");
    server.stop.cancel();
    assert_eq!(next().await.unwrap_err().code(), Code::Unavailable);
    assert!(server.stop().await < Duration::from_secs(5));
}

#[tokio::test]
async fn a_bad_first_request_or_the_end_of_the_clients_side_ends_a_stream() {
    let mut server = Server::start().await;
    let subscription = server.subscribe("sub", |_| {}).await.unwrap();
    let request = |subscription: &str, stream_ack_deadline_seconds| pb::StreamingPullRequest {
        subscription: subscription.to_owned(),
        stream_ack_deadline_seconds,
        ..Default::default()
    };
    for (request, code) in [
        (request("projects/test/subscriptions/none", 10), Code::NotFound),
        (request(&subscription, 9), Code::InvalidArgument),
    ] {
        let requests = futures_util::stream::iter([request]);
        assert_eq!(server.subscriber.streaming_pull(requests).await.unwrap_err().code(), code);
    }
    let requests = futures_util::stream::iter([request(&subscription, 10)]);
    let mut responses = server.subscriber.streaming_pull(requests).await.unwrap().into_inner();
    assert_eq!(timeout(DEADLINE, responses.message()).await.unwrap().unwrap(), None);
    server.stop().await;
}

#[tokio::test]
async fn a_push_is_wrapped_and_a_204_acknowledges_it() {
    let mut server = Server::start().await;
    let mut endpoint = Endpoint::start(|_, _| 204).await;
    let subscription = server.subscribe_push("push", &endpoint).await;
    let published =
        pb::PubsubMessage { ordering_key: "key".to_owned(), ..with_attributes("hi", &[("k", "v")]) };
    let ids = server.publish(vec![published]).await.unwrap();
    let Push { head, body, .. } = endpoint.push().await;
    assert_eq!((head.method.as_str(), head.uri.to_string()), ("POST", "/push?token=t".to_owned()));
    assert_eq!(head.headers["content-type"], "application/json");
    assert!(!head.headers.contains_key("authorization"));
    let time = body["message"]["publishTime"].clone();
    assert!(time.as_str().unwrap().ends_with('Z'));
    let expected = json!({
        "message": {
            "data": "aGk=", "attributes": { "k": "v" }, "orderingKey": "key", "messageId": ids[0], "message_id": ids[0],
            "publishTime": time, "publish_time": time,
        },
        "subscription": subscription,
    });
    assert_eq!(body, expected);
    let pulled = server.pull(&subscription, 1).await.unwrap_err();
    assert_eq!(pulled.code(), Code::FailedPrecondition);
    let ids = server.publish(vec![message("next")]).await.unwrap();
    assert_eq!(
        endpoint.push().await.body["message"]["messageId"],
        ids[0],
        "the first one is not pushed again"
    );
    server.stop().await;
}

#[tokio::test]
async fn an_unwrapped_push_is_the_data_alone_with_metadata_and_attributes_as_headers() {
    let mut server = Server::start().await;
    let (mut plain, mut telling) = (Endpoint::start(|_, _| 204).await, Endpoint::start(|_, _| 204).await);
    for (id, endpoint, write_metadata) in [("plain", &plain, false), ("telling", &telling, true)] {
        let push_config = pb::PushConfig {
            push_endpoint: format!("http://{}/", endpoint.addr),
            wrapper: Some(pb::push_config::Wrapper::NoWrapper(pb::push_config::NoWrapper { write_metadata })),
            ..Default::default()
        };
        server.subscribe(id, |request| request.push_config = Some(push_config)).await.unwrap();
    }
    let attributes = [
        ("warm-regions", "eu"),
        ("kafka-key", "ü"),
        ("Host", "evil"),
        ("no name", "x"),
        ("broken", "a\r\nb: c"),
    ];
    let published = pb::PubsubMessage {
        ordering_key: "k".to_owned(),
        ..with_attributes("http://a.example/", &attributes)
    };
    let ids = server.publish(vec![published]).await.unwrap();

    let Push { head, body, .. } = plain.push().await;
    assert_eq!(body, "http://a.example/");
    assert_eq!(head.headers["content-type"], "application/x-www-form-urlencoded");
    assert!(!head.headers.keys().any(|name| name.as_str().starts_with("x-goog") || name == "warm-regions"));

    let Push { head, body, .. } = telling.push().await;
    assert_eq!(body, "http://a.example/");
    let header = |name: &str| String::from_utf8_lossy(head.headers[name].as_bytes()).into_owned();
    assert_eq!(header("x-goog-pubsub-message-id"), ids[0]);
    assert_eq!(header("x-goog-pubsub-subscription-name"), "projects/test/subscriptions/telling");
    assert_eq!(header("x-goog-pubsub-ordering-key"), "k");
    assert!(header("x-goog-pubsub-publish-time").ends_with('Z'));
    assert_eq!((header("warm-regions"), header("kafka-key")), ("eu".to_owned(), "ü".to_owned()));
    assert_eq!(header("host"), telling.addr.to_string(), "no attribute steers the request");
    assert!(!head.headers.contains_key("broken") && !head.headers.contains_key("b"));
    server.stop().await;
}

#[tokio::test]
async fn what_fails_as_often_as_may_be_goes_to_the_dead_letter_topic() {
    let mut server = Server::start().await;
    let dead = format!("{PROJECT}/topics/dead");
    server.publisher.create_topic(pb::Topic { name: dead.clone(), ..Default::default() }).await.unwrap();
    let morgue = server.subscribe("morgue", |request| request.topic = dead.clone()).await.unwrap();
    let policy = Some(pb::DeadLetterPolicy { dead_letter_topic: dead.clone(), max_delivery_attempts: 5 });

    let mut endpoint =
        Endpoint::start(|_, body| if body["message"]["data"] == "YmFk" { 400 } else { 204 }).await;
    let push_endpoint = format!("http://{}/", endpoint.addr);
    let push_config = Some(pb::PushConfig { push_endpoint, ..Default::default() });
    server
        .subscribe("push", |request| {
            (request.push_config, request.dead_letter_policy) = (push_config, policy.clone());
        })
        .await
        .unwrap();
    server.publish(vec![with_attributes("bad", &[("k", "v")]), message("good")]).await.unwrap();
    let mut attempts = Vec::new();
    while attempts.len() < 5 {
        let body = endpoint.push().await.body;
        if body["message"]["data"] == "YmFk" {
            attempts.push(body["deliveryAttempt"].as_u64().unwrap());
        } else {
            assert_eq!(body["deliveryAttempt"], 1);
        }
    }
    assert_eq!(attempts, [1, 2, 3, 4, 5]);
    let received = server.pull(&morgue, 10).await.unwrap();
    assert_eq!(texts(&received), ["bad"]);
    let attributes = &received[0].message.as_ref().unwrap().attributes;
    for (name, value) in [
        ("k", "v"),
        ("CloudPubSubDeadLetterSourceDeliveryCount", "5"),
        ("CloudPubSubDeadLetterSourceSubscription", "push"),
        ("CloudPubSubDeadLetterSourceSubscriptionProject", "test"),
    ] {
        assert_eq!(attributes[name], value);
    }
    assert!(attributes["CloudPubSubDeadLetterSourceTopicPublishTime"].ends_with("+00:00"));

    // The same by pulling, where each delivery tells its number.
    let pulled = server.subscribe("pull", |request| request.dead_letter_policy = policy).await.unwrap();
    server.publish(vec![message("again")]).await.unwrap();
    for attempt in 1..=5 {
        let received = server.pull(&pulled, 1).await.unwrap();
        assert_eq!(received[0].delivery_attempt, attempt);
        server.modify(&pulled, &received[0].ack_id, 0).await.unwrap();
    }
    assert_eq!(texts(&server.pull(&morgue, 10).await.unwrap()), ["again"]);
    assert!(server.pull_within(&pulled, 1, true).await.unwrap().is_empty());
    server.stop().await;
}

#[tokio::test]
async fn a_202_acknowledges_and_a_203_does_not() {
    let mut server = Server::start().await;
    let mut endpoint = Endpoint::start(|number, _| [202, 203, 200][number.min(2)]).await;
    server.subscribe_push("push", &endpoint).await;
    server.publish(vec![message("accepted")]).await.unwrap();
    let accepted = endpoint.push().await.body;
    server.publish(vec![message("other")]).await.unwrap();
    let other = endpoint.push().await.body;
    assert_ne!(other["message"]["messageId"], accepted["message"]["messageId"]);
    let again = endpoint.push().await.body;
    assert_eq!(again["message"]["messageId"], other["message"]["messageId"]);
    server.stop().await;
    assert!(endpoint.pushes.try_recv().is_err());
}

#[tokio::test]
async fn failing_pushes_are_repeated_with_a_back_off_of_the_whole_subscription() {
    let mut server = Server::start().await;
    let mut endpoint = Endpoint::start(|number, _| if number < 4 { 503 } else { 200 }).await;
    server.subscribe_push("push", &endpoint).await;
    server.publish(vec![message("a")]).await.unwrap();
    let mut pushed = vec![endpoint.push().await.at];
    // Another message does not go round the back-off.
    server.publish(vec![message("b")]).await.unwrap();
    for _ in 0..5 {
        pushed.push(endpoint.push().await.at);
    }
    let gaps: Vec<u128> = pushed.windows(2).map(|pair| (pair[1] - pair[0]).as_millis()).collect();
    for (gap, least) in gaps.iter().zip([100, 200, 400, 800, 500]) {
        assert!(*gap >= least - 10, "{gaps:?}");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_thousand_messages_reach_three_endpoints_each_exactly_once_when_all_is_well() {
    let mut server = Server::start().await;
    let mut endpoints = Vec::new();
    for region in ["eu1", "us1", "asia1"] {
        let endpoint = Endpoint::start(|_, _| 204).await;
        server.subscribe_push(region, &endpoint).await;
        endpoints.push(endpoint);
    }
    server.publish((0..1_000).map(|number| message(&number.to_string())).collect()).await.unwrap();
    for endpoint in &mut endpoints {
        let mut ids = std::collections::HashSet::new();
        for _ in 0..1_000 {
            ids.insert(endpoint.push().await.body["message"]["messageId"].as_str().unwrap().to_owned());
        }
        assert_eq!(ids.len(), 1_000);
    }
    server.stop().await;
}

#[tokio::test]
async fn deleting_a_subscription_ends_its_pushes_and_stopping_does_not_wait_for_them() {
    let mut server = Server::start().await;
    let mut silent = Endpoint::start(|_, _| 0).await;
    let name = server.subscribe_push("push", &silent).await;
    let mut other = Endpoint::start(|_, _| 0).await;
    server.subscribe_push("other", &other).await;
    server.publish(vec![message("a")]).await.unwrap();
    silent.push().await;
    other.push().await;
    server
        .subscriber
        .delete_subscription(pb::DeleteSubscriptionRequest { subscription: name })
        .await
        .unwrap();
    server.publish(vec![message("b")]).await.unwrap();
    other.push().await;
    assert!(silent.pushes.try_recv().is_err());
    let took = server.stop().await;
    assert!(took < Duration::from_secs(5), "{took:?}");
}

type RestClient = hyper_util::client::legacy::Client<
    hyper_util::client::legacy::connect::HttpConnector,
    http_body_util::Full<Bytes>,
>;

async fn rest(client: &RestClient, addr: SocketAddr, method: &str, path: &str, body: &str) -> (u16, Value) {
    let request = Request::builder().method(method).uri(format!("http://{addr}{path}"));
    let response = client.request(request.body(body.to_owned().into()).unwrap()).await.unwrap();
    let status = response.status().as_u16();
    (status, serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap())
}

#[tokio::test]
async fn rest_does_what_grpc_does_on_the_same_port() {
    let server = Server::start().await;
    let client: RestClient = hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build_http();
    let rest =
        async |method: &str, path: &str, body: &str| rest(&client, server.addr, method, path, body).await;
    let sub = "/v1/projects/test/subscriptions/sub";
    let created = rest("PUT", "/v1/projects/test/topics/other", "").await;
    assert_eq!(created, (200, json!({ "name": "projects/test/topics/other", "state": "ACTIVE" })));
    let (status, created) =
        rest("PUT", sub, &json!({ "topic": TOPIC, "ack_deadline_seconds": 60 }).to_string()).await;
    assert_eq!((status, &created["ackDeadlineSeconds"], &created["topic"]), (200, &json!(60), &json!(TOPIC)));
    assert_eq!(rest("GET", sub, "").await, (200, created));
    let (_, topics) = rest("GET", "/v1/projects/test/topics?pageSize=1", "").await;
    assert_eq!(topics["topics"].as_array().unwrap().len(), 1);
    assert_eq!(topics["nextPageToken"], "projects/test/topics/other");
    let messages = json!({ "messages": [{ "data": "aGk=", "attributes": { "k": "v" } }] }).to_string();
    let (status, published) = rest("POST", "/v1/projects/test/topics/urls:publish", &messages).await;
    assert_eq!((status, published["messageIds"].as_array().unwrap().len()), (200, 1));
    let (_, pulled) = rest("POST", &format!("{sub}:pull"), r#"{"maxMessages":"10"}"#).await;
    let received = &pulled["receivedMessages"][0];
    assert_eq!(
        (&received["message"]["data"], &received["message"]["attributes"]["k"]),
        (&json!("aGk="), &json!("v"))
    );
    let ids = |more: &str| format!("{{\"ackIds\":[{}]{more}}}", received["ackId"]);
    let modify = ids(",\"ackDeadlineSeconds\":30");
    assert_eq!(rest("POST", &format!("{sub}:modifyAckDeadline"), &modify).await, (200, json!({})));
    assert_eq!(rest("POST", &format!("{sub}:acknowledge"), &ids("")).await, (200, json!({})));
    let (_, pulled) =
        rest("POST", &format!("{sub}:pull"), r#"{"maxMessages":1,"returnImmediately":true}"#).await;
    assert_eq!(pulled, json!({}));
    assert_eq!(rest("DELETE", sub, "").await, (200, json!({})));
    let (status, missing) = rest("GET", sub, "").await;
    let error =
        json!({ "code": 404, "message": "Resource not found (resource=sub).", "status": "NOT_FOUND" });
    assert_eq!((status, missing), (404, json!({ "error": error })));
    for (method, path, body, expected) in [
        ("PATCH", sub, "{}", 501),
        ("POST", "/v1/projects/test/subscriptions/sub:seek", "{}", 501),
        ("GET", "/v1/projects/test/snapshots", "", 501),
        ("GET", "/", "", 404),
        ("PUT", "/v1/projects/test/topics/urls", "", 409),
        ("PUT", "/v1/projects/test/topics/a", "", 400),
        ("POST", "/v1/projects/test/topics/urls:publish", "{", 400),
        ("POST", "/v1/projects/test/topics/urls:publish", r#"{"messages":[{"data":"?"}]}"#, 400),
        ("PUT", sub, r#"{"topic":"projects/test/topics/urls","deadLetterPolicy":{}}"#, 400),
        ("PUT", sub, r#"{"topic":"projects/test/topics/urls","enableMessageOrdering":true}"#, 501),
    ] {
        let (status, answer) = rest(method, path, body).await;
        assert_eq!(
            (status, &answer["error"]["code"]),
            (expected, &json!(expected)),
            "{method} {path}: {answer}"
        );
    }
    server.stop().await;
}
