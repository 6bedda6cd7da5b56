//! Answers the Publisher's calls: accepts, counts and writes down, or breaks as the rules say.

use std::fmt;
use std::io::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{BufMut, Bytes};
use hyper::body::Incoming;
use hyper::{Request, Response};
use tokio_util::sync::CancellationToken;

use crate::faults::{Fate, Fault, Faults};
use crate::grpc::{self, Body, Status};
use crate::record::Recorder;
use crate::scan::{self, Count};
use crate::stats::Stats;

/// What Pub/Sub takes at most in one call.
const MAX_BATCH_MESSAGES: u64 = 1_000;
/// Digits of a message id; Pub/Sub's own are of 16 or 17.
const ID_DIGITS: usize = 16;

/// All that the sink knows. The locks are uncontended: one thread does everything.
#[derive(Debug)]
pub struct Sink {
    /// How long every call takes at least.
    latency: Duration,
    stats: Mutex<Stats>,
    faults: Mutex<Faults>,
    recorder: Option<Mutex<Recorder>>,
    next_id: Mutex<Id>,
    /// Ends the connections that are open; another takes its place when it was used.
    connections: Mutex<CancellationToken>,
}

impl Sink {
    /// A sink that has taken nothing yet.
    pub fn new(latency: Duration, recorder: Option<Recorder>) -> Self {
        Self {
            latency,
            stats: Mutex::default(),
            faults: Mutex::default(),
            recorder: recorder.map(Mutex::new),
            next_id: Mutex::new(Id::of_now()),
            connections: Mutex::default(),
        }
    }

    /// The totals.
    pub fn stats(&self) -> MutexGuard<'_, Stats> {
        lock(&self.stats)
    }

    /// The rules.
    pub fn faults(&self) -> MutexGuard<'_, Faults> {
        lock(&self.faults)
    }

    /// The file of messages, if one is kept.
    pub fn recorder(&self) -> Option<MutexGuard<'_, Recorder>> {
        self.recorder.as_ref().map(lock)
    }

    /// Ends with the next [`close_connections`](Self::close_connections).
    pub fn connection_token(&self) -> CancellationToken {
        lock(&self.connections).child_token()
    }

    /// Drops every open connection.
    pub fn close_connections(&self) {
        std::mem::take(&mut *lock(&self.connections)).cancel();
    }

    /// Answers one call on a connection that ends with `connection`.
    ///
    /// # Errors
    /// The stream is to be reset.
    pub async fn call(
        self: Arc<Self>,
        request: Request<Incoming>,
        connection: CancellationToken,
    ) -> Result<Response<Body>, ResetStream> {
        let (head, body) = request.into_parts();
        let answered = match head.uri.path() {
            "/google.pubsub.v1.Publisher/Publish" => {
                let _open = OpenCall::begin(&self);
                self.publish(body, &connection).await?
            }
            "/google.pubsub.v1.Publisher/GetTopic" => get_topic(body).await,
            path => Err(Status::new(12, format!("{path} is not offered"))),
        };
        Ok(answered.unwrap_or_else(Status::into_response))
    }

    async fn publish(
        &self,
        body: Incoming,
        connection: &CancellationToken,
    ) -> Result<Result<Response<Body>, Status>, ResetStream> {
        let read = grpc::read_message(body).await.and_then(|request| Ok((check(&request)?, request)));
        let (count, request) = match read {
            Ok(read) => read,
            Err(status) => return Ok(Err(self.not_accepted(status))),
        };
        let Fate { delay, fault } = self.faults().fate(&request);
        let mut ids = count.messages;
        match &fault {
            None | Some(Fault::LostAnswer) => {}
            Some(Fault::ShortIds) => ids = ids.saturating_sub(1),
            Some(_) => self.stats().calls_not_accepted += 1,
        }
        if matches!(fault, None | Some(Fault::LostAnswer | Fault::ShortIds)) {
            // Accepted before the wait: a client that gives up has published all the same, as with Pub/Sub.
            self.accept(count, &request);
        }
        drop(request);
        let wait = self.latency + delay;
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        match fault {
            None | Some(Fault::ShortIds) => Ok(Ok(self.publish_response(ids))),
            Some(Fault::Status(status)) => Ok(Err(status)),
            Some(Fault::Hang) => std::future::pending().await,
            Some(Fault::Reset | Fault::LostAnswer) => Err(ResetStream),
            Some(Fault::Close) => {
                connection.cancel();
                Err(ResetStream)
            }
        }
    }

    fn accept(&self, count: Count, request: &Bytes) {
        if let Some(mut recorder) = self.recorder() {
            for message in scan::messages(request).map_while(Result::ok) {
                if let Err(error) = recorder.add(message) {
                    warn(format_args!("a message could not be written down: {error}"));
                }
            }
        }
        self.stats().accept(count, request.len());
    }

    fn not_accepted(&self, status: Status) -> Status {
        self.stats().calls_not_accepted += 1;
        status
    }

    /// A `PublishResponse` with so many ids, none of which was ever given before.
    fn publish_response(&self, ids: u64) -> Response<Body> {
        let capacity = usize::try_from(ids).unwrap_or_default() * (2 + ID_DIGITS);
        let mut frame = grpc::begin(capacity);
        let mut id = lock(&self.next_id);
        for _ in 0..ids {
            // message_ids, 16 bytes
            frame.put_slice(&[0x0a, 0x10]);
            frame.put_slice(&id.digits);
            id.advance();
        }
        grpc::respond(frame)
    }
}

/// The call ends without an answer: HTTP/2 resets its stream.
#[derive(Debug)]
pub struct ResetStream;

impl fmt::Display for ResetStream {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("the stream is reset")
    }
}

impl std::error::Error for ResetStream {}

/// Writes a line for the person who runs the sink.
pub(crate) fn warn(what: fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stderr(), "{what}");
}

/// `GetTopicRequest` and `Topic` both have the name as their first field: the request is the answer.
async fn get_topic(body: Incoming) -> Result<Response<Body>, Status> {
    let request = grpc::read_message(body).await?;
    let mut frame = grpc::begin(request.len());
    frame.put(request);
    Ok(grpc::respond(frame))
}

fn check(request: &[u8]) -> Result<Count, Status> {
    let count = scan::count(request).map_err(|error| Status::new(13, error.to_string()))?;
    match count.messages {
        0 => Err(Status::new(3, "You have passed no messages.")),
        1..=MAX_BATCH_MESSAGES => Ok(count),
        messages => Err(Status::new(3, format!("{messages} messages; {MAX_BATCH_MESSAGES} are the limit"))),
    }
}

/// A call that counts as open until it is dropped.
struct OpenCall<'a>(&'a Sink);

impl<'a> OpenCall<'a> {
    fn begin(sink: &'a Sink) -> Self {
        sink.stats().begin_call();
        Self(sink)
    }
}

impl Drop for OpenCall<'_> {
    fn drop(&mut self) {
        self.0.stats().end_call();
    }
}

/// A message id: a number kept as its digits, which is all that is ever needed of it.
#[derive(Debug)]
struct Id {
    digits: [u8; ID_DIGITS],
}

impl Id {
    /// The time in microseconds: a sink that is started again goes on above, unless it gave over a million ids a second
    /// all its life.
    fn of_now() -> Self {
        let now_us = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
        let mut digits = [b'0'; ID_DIGITS];
        for (digit, character) in digits.iter_mut().zip(format!("{now_us:0>16}").bytes()) {
            *digit = character;
        }
        Self { digits }
    }

    fn advance(&mut self) {
        for digit in self.digits.iter_mut().rev() {
            if *digit < b'9' {
                *digit += 1;
                return;
            }
            *digit = b'0';
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_carry_over() {
        let mut id = Id { digits: *b"1234567890129998" };
        id.advance();
        assert_eq!(&id.digits, b"1234567890129999");
        id.advance();
        assert_eq!(&id.digits, b"1234567890130000");
    }
}
