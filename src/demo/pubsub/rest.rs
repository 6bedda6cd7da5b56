//! The API over REST: a verb and a path to the method behind it, errors as Google's front ends write them.

use bytes::Bytes;
use googleapis_tonic_google_pubsub_v1::google::pubsub::v1 as pb;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use serde_json::json;
use tonic::body::Body;
use tonic::{Code, Status};
use url::form_urlencoded;

use super::broker::Broker;
use super::{MAX_REQUEST_BYTES, checks, json, oidc};

/// Answers one request. A content type is not asked for; methods that are not served answer `UNIMPLEMENTED`.
pub(super) async fn serve(broker: &Broker, request: Request<Incoming>) -> Response<Body> {
    if request.method() == Method::GET && request.uri().path() == oidc::KEYS_PATH {
        return keys(broker);
    }
    let (status, body) = match answer(broker, request).await {
        Ok(body) => (StatusCode::OK, body),
        Err(error) => {
            let (status, word) = http_status(error.code());
            let error = json!({ "code": status.as_u16(), "message": error.message(), "status": word });
            (status, json::write(&json!({ "error": error })))
        }
    };
    let mut response = json_response(body);
    *response.status_mut() = status;
    response
}

/// The keys that tokens can be checked with.
fn keys(broker: &Broker) -> Response<Body> {
    let mut response = json_response(json::write(&broker.signer().keys()));
    let fresh = HeaderValue::from_static(oidc::KEYS_CACHE_CONTROL);
    response.headers_mut().insert(header::CACHE_CONTROL, fresh);
    response
}

fn json_response(body: Vec<u8>) -> Response<Body> {
    let mut response = Response::new(Body::new(Full::new(Bytes::from(body))));
    let json_type = HeaderValue::from_static("application/json; charset=UTF-8");
    response.headers_mut().insert(header::CONTENT_TYPE, json_type);
    response
}

async fn answer(broker: &Broker, request: Request<Incoming>) -> Result<Vec<u8>, Status> {
    let method = request.method().clone();
    let path = decoded(request.uri().path());
    let query = Query::of(request.uri().query().unwrap_or_default())?;
    let body = Limited::new(request.into_body(), MAX_REQUEST_BYTES).collect().await;
    let body =
        body.map_err(|error| Status::invalid_argument(format!("The request could not be read: {error}.")))?;
    let body = body.to_bytes();

    let unknown = || Status::not_found(format!("There is no {method} {path}."));
    let name = path.strip_prefix("/v1/").ok_or_else(unknown)?;
    // A project may have a colon, the last part of a name has none.
    let last = name.rfind('/').map_or(0, |slash| slash + 1);
    let (name, action) = match name[last..].find(':') {
        Some(colon) => (&name[..last + colon], &name[last + colon + 1..]),
        None => (name, ""),
    };
    let parts: Vec<&str> = name.split('/').collect();
    match (method.as_str(), parts.as_slice(), action) {
        (_, ["projects", _, "topics", ..], _) => {
            topics(broker, method.as_str(), &parts, action, query, &body)
        }
        (_, ["projects", _, "subscriptions", ..], _) => {
            subscriptions(broker, method.as_str(), &parts, action, query, &body).await
        }
        (_, ["projects", ..], _) => Err(checks::unserved(&format!("{method} {path}"))),
        _ => Err(unknown()),
    }
}

fn topics(
    broker: &Broker,
    method: &str,
    parts: &[&str],
    action: &str,
    query: Query,
    body: &[u8],
) -> Result<Vec<u8>, Status> {
    let name = parts.join("/");
    let Query { page_size, page_token } = query;
    match (method, &parts[3..], action) {
        ("GET", [], "") => {
            let project = parts[..2].join("/");
            let found = broker.list_topics(&pb::ListTopicsRequest { project, page_size, page_token })?;
            let topics = found.topics.into_iter().map(json::Topic::from).collect();
            Ok(page("topics", topics, &found.next_page_token))
        }
        ("PUT", [_], "") => {
            let topic = json::read::<json::Topic>(body)?.named(name)?;
            broker.create_topic(topic).map(|topic| json::write(&json::Topic::from(topic)))
        }
        ("GET", [_], "") => {
            let topic = broker.get_topic(&pb::GetTopicRequest { topic: name })?;
            Ok(json::write(&json::Topic::from(topic)))
        }
        ("DELETE", [_], "") => broker.delete_topic(&pb::DeleteTopicRequest { topic: name }).map(empty),
        ("POST", [_], "publish") => {
            let messages = json::read::<json::PublishIn>(body)?.messages()?;
            let published = broker.publish(pb::PublishRequest { topic: name, messages })?;
            Ok(json::write(&json!({ "messageIds": published.message_ids })))
        }
        ("GET", [_, "subscriptions"], "") => {
            let topic = parts[..4].join("/");
            let request = pb::ListTopicSubscriptionsRequest { topic, page_size, page_token };
            let found = broker.list_topic_subscriptions(&request)?;
            Ok(page("subscriptions", found.subscriptions, &found.next_page_token))
        }
        _ => Err(unserved(method, &name, action)),
    }
}

async fn subscriptions(
    broker: &Broker,
    method: &str,
    parts: &[&str],
    action: &str,
    query: Query,
    body: &[u8],
) -> Result<Vec<u8>, Status> {
    let name = parts.join("/");
    match (method, &parts[3..], action) {
        ("GET", [], "") => {
            let Query { page_size, page_token } = query;
            let project = parts[..2].join("/");
            let found = broker.list_subscriptions(&pb::ListSubscriptionsRequest {
                project,
                page_size,
                page_token,
            })?;
            let subscriptions = found.subscriptions.into_iter().map(json::Subscription::from).collect();
            Ok(page("subscriptions", subscriptions, &found.next_page_token))
        }
        ("PUT", [_], "") => {
            let subscription = json::read::<json::Subscription>(body)?.named(name)?;
            let created = broker.create_subscription(subscription)?;
            Ok(json::write(&json::Subscription::from(created)))
        }
        ("GET", [_], "") => {
            let found = broker.get_subscription(&pb::GetSubscriptionRequest { subscription: name })?;
            Ok(json::write(&json::Subscription::from(found)))
        }
        ("DELETE", [_], "") => {
            broker.delete_subscription(&pb::DeleteSubscriptionRequest { subscription: name }).map(empty)
        }
        ("POST", [_], "pull") => {
            let json::PullIn { max_messages, return_immediately } = json::read(body)?;
            #[expect(deprecated, reason = "clients still send it")]
            let request = pb::PullRequest { subscription: name, return_immediately, max_messages };
            broker.pull(request).await.map(|response| json::pull_response(&response))
        }
        ("POST", [_], "acknowledge") => {
            let json::AcknowledgeIn { ack_ids } = json::read(body)?;
            broker.acknowledge(&pb::AcknowledgeRequest { subscription: name, ack_ids }).map(empty)
        }
        ("POST", [_], "modifyAckDeadline") => {
            let json::ModifyAckDeadlineIn { ack_ids, ack_deadline_seconds } = json::read(body)?;
            let request = pb::ModifyAckDeadlineRequest { subscription: name, ack_ids, ack_deadline_seconds };
            broker.modify_ack_deadline(&request).map(empty)
        }
        _ => Err(unserved(method, &name, action)),
    }
}

/// What every list takes. Other parameters, such as `$alt`, change nothing: there is only JSON.
struct Query {
    page_size: i32,
    page_token: String,
}

impl Query {
    fn of(query: &str) -> Result<Self, Status> {
        let mut found = Self { page_size: 0, page_token: String::new() };
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            match &*name {
                "pageSize" | "page_size" => {
                    let wrong =
                        |_| Status::invalid_argument(format!("Invalid value at 'page_size' ({value})."));
                    found.page_size = value.parse().map_err(wrong)?;
                }
                "pageToken" | "page_token" => found.page_token = value.into_owned(),
                _ => {}
            }
        }
        Ok(found)
    }
}

fn page<T: serde::Serialize>(what: &str, found: Vec<T>, next_page_token: &str) -> Vec<u8> {
    if next_page_token.is_empty() {
        json::write(&json!({ what: found }))
    } else {
        json::write(&json!({ what: found, "nextPageToken": next_page_token }))
    }
}

fn empty((): ()) -> Vec<u8> {
    b"{}".to_vec()
}

fn unserved(method: &str, name: &str, action: &str) -> Status {
    let colon = if action.is_empty() { "" } else { ":" };
    checks::unserved(&format!("{method} /v1/{name}{colon}{action}"))
}

/// The path with its percent-encoding undone. A `+` stands for itself in a path, unlike in a form; `&` and `=` are in
/// no name, so what follows them cannot match either.
fn decoded(path: &str) -> String {
    let form = path.replace('+', "%2B");
    form_urlencoded::parse(form.as_bytes()).next().map(|(path, _)| path.into_owned()).unwrap_or_default()
}

/// The HTTP status and the word for a gRPC code, from google/rpc/code.proto.
fn http_status(code: Code) -> (StatusCode, &'static str) {
    let (status, word) = match code {
        Code::InvalidArgument => (400, "INVALID_ARGUMENT"),
        Code::FailedPrecondition => (400, "FAILED_PRECONDITION"),
        Code::NotFound => (404, "NOT_FOUND"),
        Code::AlreadyExists => (409, "ALREADY_EXISTS"),
        Code::ResourceExhausted => (429, "RESOURCE_EXHAUSTED"),
        Code::Unimplemented => (501, "UNIMPLEMENTED"),
        Code::Unavailable => (503, "UNAVAILABLE"),
        // No method answers with another one.
        _ => (500, "INTERNAL"),
    };
    (StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_decoded_as_a_path() {
        assert_eq!(decoded("/v1/projects/p/topics/a%25b+c~%7E"), "/v1/projects/p/topics/a%b+c~~");
    }

    #[test]
    fn a_query_gives_the_page_and_ignores_the_rest() {
        let query = Query::of("$alt=json;enum-encoding=int&pageSize=7&pageToken=a%2Fb").unwrap();
        assert_eq!((query.page_size, query.page_token.as_str()), (7, "a/b"));
        assert!(Query::of("pageSize=x").is_err());
    }
}
