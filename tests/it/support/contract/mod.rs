//! Google Cloud's control plane for tests: every request is checked against Google's own discovery documents, a state is
//! kept, long operations take several polls, and anything can be made to go wrong.

mod documents;
pub(crate) mod state;

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Notify;

use documents::Documents;
use state::{Asked, State};

/// What goes wrong with one request.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fault {
    /// This answer instead of doing it.
    Instead(u16, &'static str),
    /// It is done, and the connection is cut before the answer.
    DoneAndCut,
    /// The connection is cut before it is done.
    Cut,
    /// It is done, later.
    Slow(Duration),
    /// It is done, never answered, and [`Google::hung`] says so: the moment to kill whoever asked.
    DoneAndHung,
}

/// A request that was understood.
#[derive(Debug, Clone)]
#[expect(dead_code, reason = "shown where a test fails")]
pub(crate) struct Call {
    pub(crate) method: String,
    pub(crate) name: String,
    /// Whether it changes something.
    pub(crate) writes: bool,
}

/// The server.
pub(crate) struct Google {
    pub(crate) addr: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    documents: Documents,
    inner: Mutex<Inner>,
    hung: Notify,
}

struct Inner {
    state: State,
    calls: Vec<Call>,
    /// What was refused as no request of the API: every one is a mistake of whoever asked.
    mistakes: Vec<String>,
    /// By the number of the write, from 0.
    faults: BTreeMap<usize, Fault>,
    /// Methods that the caller has no right to.
    denied: BTreeSet<String>,
    writes: usize,
}

impl Google {
    /// A server for a project in this state.
    pub(crate) async fn start(state: State) -> Self {
        let (calls, mistakes, faults, denied) = Default::default();
        let inner = Mutex::new(Inner { state, calls, mistakes, faults, denied, writes: 0 });
        let shared = Arc::new(Shared { documents: Documents::read(), inner, hung: Notify::new() });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let server = shared.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let server = server.clone();
                let service = service_fn(move |request| answer(server.clone(), request));
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        Self { addr, shared }
    }

    /// The state, to look at it or to change it by hand.
    pub(crate) fn state(&self) -> StateGuard<'_> {
        StateGuard(self.shared.inner.lock().unwrap())
    }

    /// Makes the write of this number, counted from 0 from now on, go wrong.
    pub(crate) fn fail_write(&self, number: usize, fault: Fault) {
        let mut inner = self.shared.inner.lock().unwrap();
        inner.writes = 0;
        inner.faults.insert(number, fault);
    }

    /// Nothing goes wrong any more.
    pub(crate) fn heal(&self) {
        let mut inner = self.shared.inner.lock().unwrap();
        inner.faults.clear();
        inner.denied.clear();
    }

    /// Takes the right to a method away.
    pub(crate) fn deny(&self, method: &str) {
        self.shared.inner.lock().unwrap().denied.insert(method.to_owned());
    }

    /// The calls so far, which are then forgotten. Panics on any that no API would take.
    pub(crate) fn take_calls(&self) -> Vec<Call> {
        let mut inner = self.shared.inner.lock().unwrap();
        assert!(inner.mistakes.is_empty(), "{:#?}", inner.mistakes);
        std::mem::take(&mut inner.calls)
    }

    /// Until a request was done that is never answered.
    pub(crate) async fn hung(&self) {
        self.shared.hung.notified().await;
    }

    /// What `--endpoint` takes for all APIs.
    pub(crate) fn endpoints(&self) -> String {
        let words = [
            "artifactregistry",
            "cloudbuild",
            "cloudresourcemanager",
            "dataflow",
            "iam",
            "logging",
            "monitoring",
            "pubsub",
            "run",
            "secretmanager",
            "serviceusage",
        ];
        words.map(|word| format!("{word}=http://{}/{word}", self.addr)).join(",")
    }
}

/// The state, locked.
pub(crate) struct StateGuard<'a>(MutexGuard<'a, Inner>);

impl std::ops::Deref for StateGuard<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        &self.0.state
    }
}

impl std::ops::DerefMut for StateGuard<'_> {
    fn deref_mut(&mut self) -> &mut State {
        &mut self.0.state
    }
}

/// An error here cuts the connection.
async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, String> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map_err(|error| error.to_string())?.to_bytes();
    let verb = parts.method.as_str().to_owned();
    let path = percent_decoded(parts.uri.path());
    let query: Vec<(String, String)> =
        url::form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes()).into_owned().collect();
    let (fault, answer) = handle(&shared, &verb, &path, &query, &body);
    match fault {
        Some(Fault::DoneAndCut | Fault::Cut) => return Err("cut".to_owned()),
        Some(Fault::Slow(time)) => tokio::time::sleep(time).await,
        Some(Fault::DoneAndHung) => {
            shared.hung.notify_one();
            std::future::pending::<Infallible>().await;
        }
        Some(Fault::Instead(..)) | None => {}
    }
    let (status, body) = answer;
    let mut response = Response::builder().status(status).header("content-type", "application/json");
    if status == 429 {
        response = response.header("retry-after", "1");
    }
    Ok(response.body(Full::from(body.to_string())).unwrap())
}

fn handle(
    shared: &Shared,
    verb: &str,
    path: &str,
    query: &[(String, String)],
    body: &[u8],
) -> (Option<Fault>, (u16, Value)) {
    let mut inner = shared.inner.lock().unwrap();
    let inner = &mut *inner;
    inner.state.tick();
    let (api, rest) = path.trim_start_matches('/').split_once('/').unwrap_or_default();
    let Some(method) = shared.documents.find(api, verb, rest) else {
        inner.mistakes.push(format!("{verb} {path}: no such method"));
        return (None, error(404, "NOT_FOUND", &format!("{verb} {path}"), None));
    };
    let body: Option<Value> = if body.is_empty() { None } else { serde_json::from_slice(body).ok() };
    let checked = shared
        .documents
        .check_query(method, query)
        .and_then(|()| shared.documents.check_body(method, body.as_ref()))
        .and_then(|()| match query.iter().find(|(name, _)| name == "updateMask") {
            Some((_, mask)) => shared.documents.check_query_mask(method, mask),
            None => Ok(()),
        });
    if let Err(why) = checked {
        inner.mistakes.push(format!("{verb} {path}: {why}"));
        return (None, error(400, "INVALID_ARGUMENT", &why, None));
    }
    let name = rest.trim_start_matches(&method.version).trim_start_matches('/');
    let last = name.rfind('/').map_or(0, |at| at + 1);
    let name = name[last..].rfind(':').map_or(name, |colon| &name[..last + colon]);
    let reads = ["get", "list", "getIamPolicy", "batchGet", "access"];
    let writes = !reads.contains(&method.id.rsplit('.').next().unwrap_or_default());
    inner.calls.push(Call { method: method.id.clone(), name: name.to_owned(), writes });
    if inner.denied.contains(&method.id) {
        let permission = permission(&method.id);
        let why = format!("Permission '{permission}' denied on resource (or it may not exist).");
        return (None, error(403, "PERMISSION_DENIED", &why, Some(&permission)));
    }
    let mut fault = None;
    if writes {
        fault = inner.faults.remove(&inner.writes);
        inner.writes += 1;
    }
    match fault {
        Some(Fault::Instead(status, code)) => {
            return (fault, error(status, code, "as the test wants it", None));
        }
        Some(Fault::Cut) => return (fault, (500, Value::Null)),
        _ => {}
    }
    let asked = Asked { api, method, name, query, body: body.unwrap_or_default() };
    let answer = match inner.state.answer(&asked) {
        Ok(answer) => (200, answer),
        Err((status, "SERVICE_DISABLED", why)) => error(status, "PERMISSION_DENIED", &why, None),
        Err((status, code, why)) => error(status, code, &why, None),
    };
    (fault, answer)
}

/// An error as Google's front ends write it.
fn error(status: u16, code: &str, message: &str, permission: Option<&str>) -> (u16, Value) {
    let info = |reason: &str, metadata: Value| json!([{ "@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason, "metadata": metadata }]);
    let details = match permission {
        Some(permission) => info("IAM_PERMISSION_DENIED", json!({ "permission": permission })),
        None if message.contains("has not been used in project") => info("SERVICE_DISABLED", json!({})),
        None => json!([]),
    };
    let error = json!({ "code": status, "message": message, "status": code, "details": details });
    (status, json!({ "error": error }))
}

/// `run.projects.locations.services.create` needs `run.services.create`.
fn permission(method: &str) -> String {
    match method {
        "cloudresourcemanager.projects.getIamPolicy" => "resourcemanager.projects.getIamPolicy".to_owned(),
        "cloudresourcemanager.projects.setIamPolicy" => "resourcemanager.projects.setIamPolicy".to_owned(),
        "secretmanager.projects.secrets.versions.access" => "secretmanager.versions.access".to_owned(),
        other => other.replace(".projects", "").replace(".locations", ""),
    }
}

fn percent_decoded(path: &str) -> String {
    let form = path.replace('+', "%2B");
    url::form_urlencoded::parse(form.as_bytes()).next().map(|(path, _)| path.into_owned()).unwrap_or_default()
}
