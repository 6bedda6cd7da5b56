//! The demo's origin: a small body for any URL, and a count of the GETs that reached it, by URL and edge.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use tokio_util::sync::CancellationToken;

use crate::http::Server;

/// The size of a body where [`Origin::with_body_bytes`] does not say otherwise.
const BODY_BYTES: usize = 16 * 1024;

/// How many bytes of URLs and edge names are kept for counting.
const MAX_COUNTED_BYTES: usize = 64 * 1024 * 1024;

/// An HTTP origin, HTTP/1.1 and cleartext HTTP/2, that has something for every URL.
///
/// GET and HEAD of any path are answered with text that depends on host, path and query alone, fresh for an hour,
/// with a strong `ETag`; hyper adds `Date`. A matching `If-None-Match` is answered with 304, other methods with 405.
#[derive(Debug)]
pub struct Origin {
    server: Server,
    body_bytes: usize,
    counts: Counts,
}

impl Origin {
    /// Listens at `addr`; port 0 takes a free one.
    ///
    /// # Errors
    /// Where `addr` cannot be listened at.
    pub async fn bind(addr: SocketAddr) -> anyhow::Result<Self> {
        let server = Server::bind_for_streams(addr).await?;
        Ok(Self { server, body_bytes: BODY_BYTES, counts: Counts::default() })
    }

    /// Makes every body this long instead of 16 KiB. A body is built in memory for each GET.
    pub fn with_body_bytes(self, body_bytes: usize) -> Self {
        Self { body_bytes, ..self }
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.server.addr()
    }

    /// The counts, which go on while it runs and stay readable after.
    pub fn counts(&self) -> Counts {
        self.counts.clone()
    }

    /// Answers until `stop`, then what is in flight.
    pub async fn run(self, stop: CancellationToken) {
        let Self { server, body_bytes, counts } = self;
        let handler = move |request: Request<_>| {
            let response = answer(&request, body_bytes, &counts);
            async move { response }
        };
        server.run(handler, stop, super::DRAIN_LIMIT).await;
    }
}

/// How many GETs came for each URL through each edge; a cheap handle, clones count together.
///
/// At most 64 MiB of URLs and names are kept. A GET for a further URL is counted in [`Counts::not_kept`] alone, so a
/// demo that finds it above zero cannot claim to know every URL.
#[derive(Debug, Clone, Default)]
pub struct Counts(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    gets: HashMap<(String, String), u64>,
    bytes: usize,
    not_kept: u64,
}

impl Counts {
    /// GETs by URL (host, path and query, without scheme) and edge, as the last member of `Via` names it; the name is
    /// empty where there was no `Via`.
    pub fn gets(&self) -> HashMap<(String, String), u64> {
        self.table().gets.clone()
    }

    /// How many GETs are not in [`Counts::gets`], since the table was full.
    pub fn not_kept(&self) -> u64 {
        self.table().not_kept
    }

    fn count(&self, url: String, via: String) {
        let mut table = self.table();
        let key = (url, via);
        if let Some(gets) = table.gets.get_mut(&key) {
            *gets += 1;
            return;
        }
        let bytes = table.bytes + key.0.len() + key.1.len();
        if bytes > MAX_COUNTED_BYTES {
            table.not_kept += 1;
            return;
        }
        table.bytes = bytes;
        table.gets.insert(key, 1);
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Every change is whole before anything can panic, so a poisoned table is as good as any.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn answer<B>(request: &Request<B>, body_bytes: usize, counts: &Counts) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    if request.method() != Method::GET && request.method() != Method::HEAD {
        *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    let url = url(request);
    let etag = etag(&url, body_bytes);
    let same = request.headers().get(header::IF_NONE_MATCH).is_some_and(|wanted| wanted == etag.as_str());
    if request.method() == Method::GET {
        counts.count(url.clone(), nearest_via(request.headers()).to_owned());
    }
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=3600"));
    if let Ok(etag) = HeaderValue::from_str(&etag) {
        headers.insert(header::ETAG, etag);
    }
    if same {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        return response;
    }
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    if request.method() == Method::HEAD {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body_bytes));
    } else {
        *response.body_mut() = Full::new(body(&url, body_bytes));
    }
    response
}

/// Host, path and query; the host from `:authority` or an absolute target, else from `Host`.
fn url<B>(request: &Request<B>) -> String {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    let host = request.uri().authority().map_or(host.unwrap_or_default(), |authority| authority.as_str());
    let path_and_query = request.uri().path_and_query().map_or("/", |path_and_query| path_and_query.as_str());
    format!("{}{path_and_query}", host.to_ascii_lowercase())
}

/// The name in the last member of `Via`, which is the proxy nearest to the origin: `1.1 NAME`.
fn nearest_via(headers: &HeaderMap) -> &str {
    let last_line = headers.get_all(header::VIA).iter().next_back().and_then(|line| line.to_str().ok());
    let last_member = last_line.and_then(|line| line.rsplit(',').next()).unwrap_or_default();
    last_member.split_whitespace().nth(1).unwrap_or_default()
}

fn body(url: &str, body_bytes: usize) -> Bytes {
    format!("{url}\n").into_bytes().into_iter().cycle().take(body_bytes).collect()
}

fn etag(url: &str, body_bytes: usize) -> String {
    let mut hasher = DefaultHasher::new();
    (url, body_bytes).hash(&mut hasher);
    format!("\"{:016x}\"", hasher.finish())
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    fn get(url: &str, via: &[&str]) -> Request<()> {
        let mut request = Request::get(url).header("host", "Example.com");
        for line in via {
            request = request.header("via", *line);
        }
        request.body(()).unwrap()
    }

    #[tokio::test]
    async fn a_body_depends_on_host_path_and_query_alone() {
        let counts = Counts::default();
        let mut answers = Vec::new();
        for url in ["/a?b", "/a?b", "http://example.com/a?b", "/a?c", "http://other.com/a?b"] {
            let response = answer(&get(url, &[]), 1000, &counts);
            let etag = response.headers()["etag"].clone();
            let body = response.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(body.len(), 1000);
            answers.push((etag, body));
        }
        assert!(answers[0] == answers[1] && answers[0] == answers[2]);
        assert!(answers[3] != answers[0] && answers[4] != answers[0]);
    }

    #[test]
    fn gets_are_counted_by_url_and_nearest_edge() {
        let counts = Counts::default();
        for via in [&["1.1 eu"][..], &["1.1 eu"], &["2 x, 1.1 shield (y)"], &["2 x", "1.1 eu"], &[], &["odd"]]
        {
            answer(&get("/a", via), 10, &counts);
        }
        let mut head = get("/a", &[]);
        *head.method_mut() = Method::HEAD;
        answer(&head, 10, &counts);
        let via = |name: &str| counts.gets().get(&("example.com/a".to_owned(), name.to_owned())).copied();
        assert_eq!((via("eu"), via("shield"), via("")), (Some(3), Some(1), Some(2)));
    }

    #[test]
    fn the_table_of_counts_is_bounded_and_says_what_it_left_out() {
        let counts = Counts::default();
        counts.count("a".repeat(MAX_COUNTED_BYTES), String::new());
        counts.count("b".to_owned(), String::new());
        assert_eq!((counts.gets().len(), counts.not_kept()), (1, 1));
    }

    #[test]
    fn a_matching_validator_is_confirmed_and_a_post_refused() {
        let counts = Counts::default();
        let mut request = get("/a", &[]);
        let etag = answer(&request, 10, &counts).headers()["etag"].clone();
        request.headers_mut().insert("if-none-match", etag);
        assert_eq!(answer(&request, 10, &counts).status(), StatusCode::NOT_MODIFIED);
        *request.method_mut() = Method::POST;
        assert_eq!(answer(&request, 10, &counts).status(), StatusCode::METHOD_NOT_ALLOWED);
    }
}
