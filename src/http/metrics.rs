//! The endpoint for scrapers and probes: the metrics, whether the process is ready, whether it is live.
//!
//! Plain HTTP, for a trusted network: it gives away no record and takes no order.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::Server;
use crate::telemetry::health::Health;
use crate::telemetry::logs::on_one_line;

/// What this crate's encoder writes. Every scraper of today reads it, so that there is nothing to negotiate.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PLAIN: &str = "text/plain; charset=utf-8";
const PATHS: &str = "/metrics\n/ready\n/live\n";
/// How long answers under way are waited for at the end; each takes a millisecond.
const DRAIN_LIMIT: Duration = Duration::from_secs(1);

/// Where metrics and health are shown.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct MetricsArgs {
    /// Show /metrics, /ready and /live by plain HTTP on this IP address (IPv6 in brackets) and port [default: off]
    #[arg(long, value_name = "ADDR:PORT", env = "CDNWARM_METRICS_ADDR")]
    pub(crate) metrics_addr: Option<SocketAddr>,
}

impl MetricsArgs {
    /// Answers at the address, where one is given, until the returned guard is dropped. Keep it to the end of the role, so
    /// that the end of the work can be watched too.
    ///
    /// # Errors
    /// As for [`MetricsServer::bind`].
    pub(crate) async fn show(&self, registry: Registry, health: Health) -> anyhow::Result<DropGuard> {
        let shown = CancellationToken::new();
        if let Some(addr) = self.metrics_addr {
            let server = MetricsServer::bind(addr).await?;
            tracing::info!("metrics at http://{}/metrics", server.addr());
            tokio::spawn(server.run(registry, health, shown.clone()));
        }
        Ok(shown.drop_guard())
    }
}

/// A bound endpoint, not yet answering.
#[derive(Debug)]
pub(crate) struct MetricsServer(Server);

impl MetricsServer {
    /// Binds `addr`; port 0 takes any free one.
    ///
    /// # Errors
    /// A port that is taken or not allowed.
    pub(crate) async fn bind(addr: SocketAddr) -> anyhow::Result<Self> {
        Ok(Self(Server::bind(addr).await?))
    }

    /// Where it listens.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.0.addr()
    }

    /// Answers until `stop`. Hand it a token that is cancelled last, so that the end of the work can be watched too.
    pub(crate) async fn run(self, registry: Registry, health: Health, stop: CancellationToken) {
        let shown = Arc::new((registry, health));
        let answer = move |request: Request<_>| {
            let (registry, health) = &*shown;
            std::future::ready(answer(&request, registry, health))
        };
        self.0.run(answer, stop, DRAIN_LIMIT).await;
    }
}

fn answer<B>(request: &Request<B>, registry: &Registry, health: &Health) -> Response<Full<Bytes>> {
    let known = PATHS.lines().any(|path| path == request.uri().path());
    if known && !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response =
            text(request, StatusCode::METHOD_NOT_ALLOWED, PLAIN, "only GET and HEAD\n".to_owned());
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match request.uri().path() {
        "/metrics" => {
            let mut body = String::new();
            match encode(&mut body, registry) {
                Ok(()) => text(request, StatusCode::OK, OPENMETRICS, body),
                Err(error) => text(request, StatusCode::INTERNAL_SERVER_ERROR, PLAIN, format!("{error}\n")),
            }
        }
        "/ready" => state(request, "ready", &health.problems()),
        "/live" => state(request, "live", &health.deadly_problems()),
        _ => text(request, StatusCode::NOT_FOUND, PLAIN, PATHS.to_owned()),
    }
}

/// The word where there is no problem, one line a problem otherwise.
fn state<B>(request: &Request<B>, word: &str, problems: &[String]) -> Response<Full<Bytes>> {
    if problems.is_empty() {
        return text(request, StatusCode::OK, PLAIN, format!("{word}\n"));
    }
    let lines = problems.iter().map(|problem| format!("{}\n", on_one_line(problem))).collect();
    text(request, StatusCode::SERVICE_UNAVAILABLE, PLAIN, lines)
}

fn text<B>(
    request: &Request<B>,
    status: StatusCode,
    content_type: &'static str,
    body: String,
) -> Response<Full<Bytes>> {
    let length = HeaderValue::from(body.len());
    // The answer to HEAD has the head of the answer to GET, its length included.
    let body = if request.method() == Method::HEAD { String::new() } else { body };
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CONTENT_LENGTH, length);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use hyper_util::client::legacy::Client;
    use hyper_util::client::legacy::connect::HttpConnector;
    use hyper_util::rt::TokioExecutor;

    use super::*;
    use crate::telemetry::metrics::registry;

    /// A running endpoint and clients for both versions of HTTP.
    struct Endpoint {
        addr: SocketAddr,
        health: Health,
        clients: [Client<HttpConnector, Full<Bytes>>; 2],
        stop: CancellationToken,
        ended: tokio::task::JoinHandle<()>,
    }

    impl Endpoint {
        async fn start(addr: &str) -> Self {
            let server = MetricsServer::bind(addr.parse().unwrap()).await.unwrap();
            let (addr, health, stop) = (server.addr(), Health::default(), CancellationToken::new());
            let ended = tokio::spawn(server.run(registry(&health), health.clone(), stop.clone()));
            let client = |h2| Client::builder(TokioExecutor::new()).http2_only(h2).build_http();
            Self { addr, health, clients: [client(false), client(true)], stop, ended }
        }

        /// Status, headers and text of the answer, which is the same over both versions of HTTP.
        async fn ask(&self, method: Method, path: &str) -> (StatusCode, http::HeaderMap, String) {
            let mut answers = Vec::new();
            for client in &self.clients {
                let uri = format!("http://{}{path}", self.addr);
                let request = Request::builder().method(&method).uri(uri).body(Full::default()).unwrap();
                let (head, body) = client.request(request).await.unwrap().into_parts();
                let body = body.collect().await.unwrap().to_bytes();
                answers.push((head.status, head.headers, String::from_utf8(body.to_vec()).unwrap()));
            }
            let (answer, other) = (answers.pop().unwrap(), answers.pop().unwrap());
            assert_eq!((answer.0, &answer.2), (other.0, &other.2));
            answer
        }
    }

    #[tokio::test]
    async fn it_shows_metrics_and_health_until_it_is_stopped() {
        let endpoint = Endpoint::start("127.0.0.1:0").await;
        let kafka = endpoint.health.condition("kafka");

        let (status, headers, text) = endpoint.ask(Method::GET, "/ready").await;
        assert_eq!((status, text.as_str()), (StatusCode::SERVICE_UNAVAILABLE, "kafka: starting\n"));
        assert_eq!(headers[CACHE_CONTROL], "no-store");
        let (status, _, text) = endpoint.ask(Method::GET, "/live").await;
        assert_eq!((status, text.as_str()), (StatusCode::OK, "live\n"));
        let (status, headers, text) = endpoint.ask(Method::GET, "/metrics?name%5B%5D=x").await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(headers[CONTENT_TYPE], OPENMETRICS);
        assert!(text.contains("\ncdnwarm_ready 0\n") && text.ends_with("\n# EOF\n"), "{text}");
        assert!(text.contains(concat!(
            "\ncdnwarm_build_info{version=\"",
            env!("CARGO_PKG_VERSION"),
            "\"} 1\n"
        )));

        kafka.ok();
        let (status, _, text) = endpoint.ask(Method::GET, "/ready").await;
        assert_eq!((status, text.as_str()), (StatusCode::OK, "ready\n"));
        assert!(endpoint.ask(Method::GET, "/metrics").await.2.contains("\ncdnwarm_ready 1\n"));

        endpoint.stop.cancel();
        endpoint.ended.await.unwrap();
        assert!(tokio::net::TcpStream::connect(endpoint.addr).await.is_err());
    }

    #[tokio::test]
    async fn each_broken_condition_is_one_line_whatever_its_reason_holds() {
        let endpoint = Endpoint::start("127.0.0.1:0").await;
        endpoint.health.condition("kafka").not_ok("away\nready");
        endpoint.health.live_condition("poll").not_ok("stuck");
        let (status, _, text) = endpoint.ask(Method::GET, "/ready").await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(text, "kafka: away\\nready\npoll: stuck\n");
        let (status, _, text) = endpoint.ask(Method::GET, "/live").await;
        assert_eq!((status, text.as_str()), (StatusCode::SERVICE_UNAVAILABLE, "poll: stuck\n"));
    }

    #[tokio::test]
    async fn it_takes_get_and_head_on_its_paths_and_names_them_elsewhere() {
        let endpoint = Endpoint::start("127.0.0.1:0").await;
        for path in PATHS.lines() {
            let (status, get, text) = endpoint.ask(Method::GET, path).await;
            let (head_status, head, no_text) = endpoint.ask(Method::HEAD, path).await;
            assert_eq!((status, no_text.as_str()), (head_status, ""));
            assert_eq!(head[CONTENT_LENGTH], text.len().to_string());
            assert_eq!(head[CONTENT_TYPE], get[CONTENT_TYPE]);
            for method in [Method::POST, Method::OPTIONS, Method::DELETE] {
                let (status, headers, _) = endpoint.ask(method, path).await;
                assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED);
                assert_eq!(headers[ALLOW], "GET, HEAD");
            }
        }
        for path in ["/", "/metrics/", "/healthz", "/ready2", "//metrics"] {
            let (status, _, text) = endpoint.ask(Method::GET, path).await;
            assert_eq!((status, text.as_str()), (StatusCode::NOT_FOUND, PATHS));
        }
    }

    #[tokio::test]
    async fn it_listens_on_ipv6_too_and_says_where_a_port_is_taken() {
        let endpoint = Endpoint::start("[::1]:0").await;
        assert_eq!(endpoint.ask(Method::GET, "/live").await.0, StatusCode::OK);
        let error = MetricsServer::bind(endpoint.addr).await.unwrap_err();
        assert!(format!("{error:#}").contains(&endpoint.addr.to_string()), "{error:#}");
    }
}
