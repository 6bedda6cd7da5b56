//! A Pub/Sub Publisher on a bad day: it keeps what it accepts and answers as a script says.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::future::pending;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, TryFutureExt};
use googleapis_tonic_google_pubsub_v1::google::pubsub::v1 as pb;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message as _;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;
use tonic::body::Body;
use tonic::server::{Grpc, UnaryService};
use tonic::{Code, Status};
use tonic_prost::ProstCodec;

use super::records::Coordinates;
use super::{PATIENCE, eventually};

/// The topic that a test publishes to, unless it says otherwise; this Publisher has every topic.
pub(crate) const TOPIC: &str = "projects/p/topics/urls";
/// Pub/Sub's limits on one call.
const MAX_MESSAGES: usize = 1_000;
const MAX_BYTES: usize = 10_000_000;

/// What the script has for a publish call, instead of taking its messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    Code(Code),
    /// The call's stream is reset.
    Reset,
    /// Never answered.
    Hang,
    /// The messages are taken, and then the stream is reset.
    LostAnswer,
    /// The messages are taken, and the answer lacks an id.
    TooFewIds,
}

/// Which calls go wrong, counted from when the script is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    First,
    Every(u64),
    /// This long from the first call on.
    Window(Duration),
    Always,
}

/// One message that was accepted.
#[derive(Debug, Clone)]
pub(crate) struct Accepted {
    pub(crate) topic: String,
    pub(crate) data: Vec<u8>,
    pub(crate) attributes: HashMap<String, String>,
}

impl Accepted {
    /// Of all its records, in the order of its lines; nothing where it names none.
    pub(crate) fn coordinates(&self) -> Vec<Coordinates> {
        let of = |name: &str| self.attributes.get(name).map(String::as_str);
        let Some(partition) = of("kafka-partition").and_then(|text| text.parse().ok()) else {
            return Vec::new();
        };
        let ranges = of("kafka-offset").unwrap_or_default().split(',').flat_map(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            first.parse().unwrap_or(0)..=last.parse().unwrap_or(-1)
        });
        ranges.map(|offset| (partition, offset)).collect()
    }
}

/// A running Publisher, gone with this value.
pub(crate) struct Publisher {
    addr: SocketAddr,
    state: Arc<Mutex<State>>,
    _accepting: AbortOnDropHandle<()>,
}

#[derive(Default)]
struct State {
    accepted: Vec<Accepted>,
    /// How often each record of [`TOPIC`] was accepted.
    times: BTreeMap<Coordinates, u64>,
    script: Option<(When, Vec<Fault>)>,
    calls: u64,
    first_call: Option<Instant>,
    faults: usize,
    refused: Option<(String, Vec<u8>)>,
    delay: Duration,
}

impl Publisher {
    /// Listens on a free port of loopback and accepts everything.
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (addr, state) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(State::default())));
        let accepting = accept(listener, state.clone());
        Self { addr, state, _accepting: AbortOnDropHandle::new(tokio::spawn(accepting)) }
    }

    /// The value for `PUBSUB_EMULATOR_HOST`.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// From now on these calls go wrong, with these faults in turn. Counts from zero again.
    pub(crate) fn script(&self, when: When, faults: &[Fault]) {
        let mut state = self.state();
        (state.script, state.calls) = (Some((when, faults.to_vec())), 0);
        (state.first_call, state.faults) = (None, 0);
    }

    /// Every call is well from now on.
    pub(crate) fn be_well(&self) {
        self.state().script = None;
    }

    /// Every call to `topic` with a message whose data hold `text` is an `INVALID_ARGUMENT`.
    pub(crate) fn refuse(&self, topic: &str, text: &str) {
        self.state().refused = Some((topic.to_owned(), text.as_bytes().to_vec()));
    }

    /// Every answer takes this long.
    pub(crate) fn delay(&self, delay: Duration) {
        self.state().delay = delay;
    }

    /// How many calls the script has spoilt.
    pub(crate) fn faults(&self) -> usize {
        self.state().faults
    }

    /// All messages so far, of this topic.
    pub(crate) fn accepted(&self, topic: &str) -> Vec<Accepted> {
        self.state().accepted.iter().filter(|message| message.topic == topic).cloned().collect()
    }

    /// How often each record was accepted on [`TOPIC`].
    pub(crate) fn times(&self) -> BTreeMap<Coordinates, u64> {
        self.state().times.clone()
    }

    /// How many records were accepted on [`TOPIC`], each counted once.
    pub(crate) fn records(&self) -> usize {
        self.state().times.len()
    }

    /// Waits until all of these were accepted on [`TOPIC`].
    pub(crate) async fn until(&self, expected: &BTreeSet<Coordinates>) {
        let missing = || {
            let state = self.state();
            expected.iter().filter(|record| !state.times.contains_key(*record)).copied().collect::<Vec<_>>()
        };
        let all = async { eventually("all records", async || missing().is_empty().then_some(())).await };
        // The shorter limit is this one, which can say what is missing.
        if tokio::time::timeout(PATIENCE - Duration::from_secs(1), all).await.is_err() {
            let missing = missing();
            let some = &missing[..missing.len().min(10)];
            panic!("{} of {} records are missing, such as {some:?}", missing.len(), expected.len());
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl State {
    /// What is wrong with this call, if anything.
    fn fault(&mut self) -> Option<Fault> {
        self.calls += 1;
        let began = *self.first_call.get_or_insert_with(Instant::now);
        let (when, faults) = self.script.as_ref()?;
        let wrong = match *when {
            When::First => self.calls == 1,
            When::Every(nth) => self.calls.is_multiple_of(nth),
            When::Window(time) => began.elapsed() < time,
            When::Always => true,
        };
        let fault = faults[self.faults % faults.len()];
        self.faults += usize::from(wrong);
        wrong.then_some(fault)
    }

    /// Pub/Sub's own objections.
    fn check(&self, request: &pb::PublishRequest) -> Result<(), Status> {
        if request.messages.len() > MAX_MESSAGES || request.encoded_len() > MAX_BYTES {
            return Err(Status::invalid_argument("more than a publish call may have"));
        }
        let refused = |message: &pb::PubsubMessage| {
            let (topic, text) = self.refused.as_ref()?;
            (*topic == request.topic && memchr::memmem::find(&message.data, text).is_some()).then_some(())
        };
        match request.messages.iter().find_map(refused) {
            Some(()) => Err(Status::invalid_argument("a message that this topic's schema does not allow")),
            None => Ok(()),
        }
    }

    fn take(&mut self, request: pb::PublishRequest) -> Vec<String> {
        let first = self.accepted.len();
        for message in request.messages {
            let pb::PubsubMessage { data, attributes, .. } = message;
            let message = Accepted { topic: request.topic.clone(), data: data.to_vec(), attributes };
            if message.topic == TOPIC {
                for record in message.coordinates() {
                    *self.times.entry(record).or_default() += 1;
                }
            }
            self.accepted.push(message);
        }
        (first..self.accepted.len()).map(|id| id.to_string()).collect()
    }
}

/// Why a call's stream is reset.
#[derive(Debug)]
struct Broken;

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("reset by the script")
    }
}

impl std::error::Error for Broken {}

async fn accept(listener: TcpListener, state: Arc<Mutex<State>>) {
    // Connections end with it.
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let state = state.clone();
        let service = service_fn(move |request| answer(state.clone(), request));
        let connection =
            http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service);
        // The other side may close in the middle; that is its business.
        connections.spawn(async { drop(connection.await) });
        while connections.try_join_next().is_some() {}
    }
}

async fn answer(state: Arc<Mutex<State>>, request: Request<Incoming>) -> Result<Response<Body>, Broken> {
    match request.uri().path() {
        "/google.pubsub.v1.Publisher/GetTopic" => {
            let topic = |asked: pb::GetTopicRequest| async move {
                Ok::<_, Status>(pb::Topic { name: asked.topic, ..pb::Topic::default() })
            };
            Ok(unary(request, topic).await)
        }
        "/google.pubsub.v1.Publisher/Publish" => {
            let reset = Arc::new(AtomicBool::new(false));
            let publish = |request| publish(state.clone(), request, reset.clone());
            let response = unary(request, publish).await;
            if reset.load(Ordering::Relaxed) { Err(Broken) } else { Ok(response) }
        }
        other => Ok(Status::unimplemented(other.to_owned()).into_http()),
    }
}

async fn publish(
    state: Arc<Mutex<State>>,
    request: pb::PublishRequest,
    reset: Arc<AtomicBool>,
) -> Result<pb::PublishResponse, Status> {
    let (fault, delay) = {
        let mut state = state.lock().unwrap();
        state.check(&request)?;
        (state.fault(), state.delay)
    };
    tokio::time::sleep(delay).await;
    let take = || state.lock().unwrap().take(request);
    let message_ids = match fault {
        None => take(),
        Some(Fault::Code(code)) => return Err(Status::new(code, "by the script")),
        Some(Fault::Hang) => pending().await,
        Some(Fault::Reset) => {
            reset.store(true, Ordering::Relaxed);
            Vec::new()
        }
        Some(Fault::LostAnswer) => {
            reset.store(true, Ordering::Relaxed);
            take()
        }
        Some(Fault::TooFewIds) => take().split_off(1),
    };
    Ok(pb::PublishResponse { message_ids })
}

async fn unary<Req, Res, Answer>(
    request: Request<Incoming>,
    method: impl FnMut(Req) -> Answer,
) -> Response<Body>
where
    Req: prost::Message + Default + 'static,
    Res: prost::Message + 'static,
    Answer: Future<Output = Result<Res, Status>> + Send + 'static,
{
    Grpc::new(ProstCodec::<Res, Req>::default())
        .max_decoding_message_size(2 * MAX_BYTES)
        .unary(Unary(method), request)
        .await
}

struct Unary<F>(F);

impl<F, Req, Res, Answer> UnaryService<Req> for Unary<F>
where
    F: FnMut(Req) -> Answer,
    Res: 'static,
    Answer: Future<Output = Result<Res, Status>> + Send + 'static,
{
    type Response = Res;
    type Future = BoxFuture<'static, Result<tonic::Response<Res>, Status>>;

    fn call(&mut self, request: tonic::Request<Req>) -> Self::Future {
        (self.0)(request.into_inner()).map_ok(tonic::Response::new).boxed()
    }
}
