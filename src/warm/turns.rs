//! Who may ask a host now: its limit, its breaker, the time it asked for, and a bounded queue before them; a table of hosts.
//!
//! Each host has a client of its own, and with it its connections: one that is slow or dead holds up nobody else, and a
//! host that leaves the table takes its idle connections along.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use http::{HeaderMap, StatusCode};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use url::{Position, Url};

use super::breaker::{Admission, Breaker};
use crate::adaptive_limit::{AdaptiveLimit, Settings};
use crate::retry::retry_after;
use crate::verdict::{Failure, Verdict};

/// Hosts that are known at once. For a further one, the host leaves that was asked the longest ago, of those without a
/// request; where every host has a request, the table grows with the requests.
const MAX_HOSTS: usize = 1_024;
/// How long a host is known that nobody asks.
const IDLE_LIMIT: Duration = Duration::from_secs(5 * 60);
/// Requests that wait for a turn with one host; further ones are turned away at once. With those under way it is well
/// below what `serve` takes in at once, so that one host alone cannot fill it.
const MAX_WAITING: usize = 384;
/// A request that takes longer than this no longer counts against its host's limit, as long as the host answers others:
/// a few URLs that hang, or long bodies, would otherwise leave no room for the rest. So many of them do not count. No time
/// limit of a request is shorter.
pub(super) const LATE: Duration = Duration::from_secs(1);
const MAX_LATE: usize = 256;
/// How long ago an answer may be that shows a host alive.
const ALIVE: Duration = Duration::from_secs(20);
/// How long a host that says "too much" without a time is left alone: at first, and at most, each time twice as long.
const PAUSE: Duration = Duration::from_millis(50);
const MAX_PAUSE: Duration = Duration::from_secs(5);
/// How long after its last pause a host that answers well is reported as no longer backed off.
const RECOVERED_AFTER: Duration = Duration::from_secs(10);
/// The longest `Retry-After` that is believed.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(600);

/// The hosts of one process. `C` is the client that each has for itself.
pub(super) struct Turns<C> {
    /// By scheme, host and port, as a URL begins.
    hosts: Mutex<HashMap<Box<str>, Known<C>>>,
    new_client: Box<dyn Fn() -> C + Send + Sync>,
}

struct Known<C> {
    host: Arc<Host<C>>,
    asked_at: Instant,
}

struct Host<C> {
    /// Scheme, host and port.
    name: Box<str>,
    client: C,
    /// As many permits as `State::places`, less those that are out.
    permits: Arc<Semaphore>,
    waiting: AtomicUsize,
    state: Mutex<State>,
}

struct State {
    limit: AdaptiveLimit,
    breaker: Breaker,
    /// Permits that there are; follows the limit, downwards as they come back.
    places: usize,
    paused_until: Option<Instant>,
    /// Pauses in a row.
    pauses: u32,
    /// Whether the log has a line that the host is backed off, and none that it is over.
    is_reported: bool,
    answered_at: Option<Instant>,
    /// Requests under way that do not count.
    late: usize,
}

/// What all hosts together do at a moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct HostTotals {
    /// Hosts that were asked within five minutes.
    pub(crate) hosts: usize,
    pub(crate) circuits_open: usize,
    /// Hosts that are backed off.
    pub(crate) paused: usize,
    /// Requests under way.
    pub(crate) in_flight: usize,
    /// Requests that wait for a turn.
    pub(crate) waiting: usize,
}

/// One request's turn with its host. Dropping it makes room for the next.
pub(super) struct Turn<C: Send + Sync + 'static> {
    host: Arc<Host<C>>,
    began: Instant,
    held: Mutex<Held>,
}

struct Held {
    /// None once it was given up, being late.
    permit: Option<OwnedSemaphorePermit>,
    /// Until it told something.
    is_probe: bool,
}

impl<C: Send + Sync + 'static> Turns<C> {
    pub(super) fn new(new_client: impl Fn() -> C + Send + Sync + 'static) -> Self {
        Self { hosts: Mutex::default(), new_client: Box::new(new_client) }
    }

    /// Waits for a turn with the URL's host, until `deadline` at most.
    ///
    /// # Errors
    /// [`Failure::CircuitOpen`] at once, and [`Failure::HostBusy`]: at once where the queue is full or the host asked to
    /// be left alone beyond the deadline, else at the deadline.
    pub(super) async fn take(&self, url: &Url, deadline: Instant) -> Result<Turn<C>, Failure> {
        let now = Instant::now();
        let host = self.host(&url[..Position::BeforePath], now);
        host.turn(deadline, now).await
    }

    /// Returns what all hosts together do now.
    pub(super) fn totals(&self) -> HostTotals {
        let now = Instant::now();
        let mut totals = HostTotals::default();
        for known in self.known().values() {
            known.host.add_to(&mut totals, now);
        }
        totals
    }

    fn host(&self, key: &str, now: Instant) -> Arc<Host<C>> {
        let mut hosts = self.known();
        if let Some(known) = hosts.get_mut(key) {
            known.asked_at = now;
            return known.host.clone();
        }
        hosts.retain(|_, known| now.duration_since(known.asked_at) < IDLE_LIMIT || known.is_in_use());
        if hosts.len() >= MAX_HOSTS {
            let idle = hosts.iter().filter(|(_, known)| !known.is_in_use());
            if let Some(oldest) = idle.min_by_key(|(_, known)| known.asked_at).map(|(key, _)| key.clone()) {
                hosts.remove(&oldest);
            }
        }
        let host = Arc::new(Host::new(key, (self.new_client)()));
        hosts.insert(key.into(), Known { host: host.clone(), asked_at: now });
        host
    }

    fn known(&self) -> MutexGuard<'_, HashMap<Box<str>, Known<C>>> {
        lock(&self.hosts)
    }
}

impl<C> Known<C> {
    /// Returns whether a request has, or waits for, a turn with this host.
    fn is_in_use(&self) -> bool {
        // Only the table's lock, which the caller holds, lets the count rise from 1.
        Arc::strong_count(&self.host) > 1
    }
}

impl<C: Send + Sync + 'static> Host<C> {
    fn new(name: &str, client: C) -> Self {
        let limit = AdaptiveLimit::new(&Settings::HOST);
        let places = limit.get();
        let state = State {
            limit,
            breaker: Breaker::default(),
            places,
            paused_until: None,
            pauses: 0,
            is_reported: false,
            answered_at: None,
            late: 0,
        };
        Self {
            name: name.into(),
            client,
            permits: Arc::new(Semaphore::new(places)),
            waiting: AtomicUsize::new(0),
            state: Mutex::new(state),
        }
    }

    fn add_to(&self, totals: &mut HostTotals, now: Instant) {
        let state = self.state();
        totals.hosts += 1;
        totals.circuits_open += usize::from(state.breaker.is_open(now));
        totals.paused += usize::from(state.paused_until.is_some_and(|until| until > now));
        totals.in_flight += state.places.saturating_sub(self.permits.available_permits()) + state.late;
        totals.waiting += self.waiting.load(Ordering::Relaxed);
    }

    async fn turn(self: Arc<Self>, deadline: Instant, mut now: Instant) -> Result<Turn<C>, Failure> {
        let mut waiting = None;
        loop {
            let pause = {
                let state = self.state();
                if state.breaker.is_open(now) {
                    return Err(Failure::CircuitOpen);
                }
                state.paused_until.filter(|until| *until > now)
            };
            let permit = match pause {
                None => self.permits.clone().try_acquire_owned().ok(),
                Some(until) if until >= deadline => return Err(Failure::HostBusy),
                Some(_) => None,
            };
            if let Some(permit) = permit {
                match self.clone().admit(permit, now)? {
                    Some(turn) => return Ok(turn),
                    None => continue,
                }
            }
            if waiting.is_none() {
                waiting = Some(Waiting::join(&self.waiting).ok_or(Failure::HostBusy)?);
            }
            if let Some(until) = pause {
                tokio::time::sleep_until(until).await;
                now = Instant::now();
                continue;
            }
            let permit = tokio::time::timeout_at(deadline, self.permits.clone().acquire_owned());
            let permit = permit.await.map_err(|_| Failure::HostBusy)?;
            let permit = permit.expect("the semaphore is never closed");
            now = Instant::now();
            if let Some(turn) = self.clone().admit(permit, now)? {
                return Ok(turn);
            }
        }
    }

    /// From a permit to a turn; none where things changed while it was waited for.
    fn admit(
        self: Arc<Self>,
        permit: OwnedSemaphorePermit,
        now: Instant,
    ) -> Result<Option<Turn<C>>, Failure> {
        let mut state = self.state();
        if state.places > state.limit.get() {
            state.places -= 1;
            permit.forget();
            return Ok(None);
        }
        if state.paused_until.is_some_and(|until| until > now) {
            return Ok(None);
        }
        let admission = state.breaker.admit(now);
        drop(state);
        match admission {
            Admission::No => Err(Failure::CircuitOpen),
            admission => {
                let held = Held { permit: Some(permit), is_probe: admission == Admission::Probe };
                Ok(Some(Turn { host: self, began: now, held: Mutex::new(held) }))
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn report_open_circuit(&self) {
        let host = &*self.name;
        tracing::warn!(host, "circuit of {host} open: it fails every time");
    }

    /// Takes a permit back, or out of the world where there are too many.
    fn take_back(&self, state: &mut State, permit: OwnedSemaphorePermit) {
        if state.places > state.limit.get() {
            state.places -= 1;
            permit.forget();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while it is held.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<C: Send + Sync + 'static> Turn<C> {
    /// What to ask with.
    pub(super) fn client(&self) -> &C {
        &self.host.client
    }

    /// Makes room for the next request; false where that would not be wise now.
    pub(super) fn give_way(&self) -> bool {
        let (mut state, mut held) = (self.host.state(), lock(&self.held));
        let is_alive = state.answered_at.is_some_and(|at| at.elapsed() < ALIVE);
        if !is_alive || state.late >= MAX_LATE {
            return false;
        }
        if let Some(permit) = held.permit.take() {
            state.late += 1;
            self.host.take_back(&mut state, permit);
        }
        true
    }

    /// When it began, which is when it is asked.
    pub(super) fn began(&self) -> Instant {
        self.began
    }

    /// The head of a response is here, so long after the turn began.
    pub(super) fn answered(&self, ttfb: Duration, status: StatusCode, headers: &HeaderMap) {
        let now = self.began + ttfb;
        let (mut state, was_probe) = (self.host.state(), self.was_probe());
        let has_failed = status.is_server_error();
        let circuit_changed =
            if has_failed { state.breaker.failed(was_probe, now) } else { state.breaker.succeeded() };
        let (mut backed_off, mut recovered) = (None, false);
        if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            state.limit.record_overload(now);
            backed_off = state.pause(retry_after(headers, SystemTime::now()), now);
        } else {
            recovered = state.recover(now);
            state.answered_at = Some(now);
            let under_way = state.places.saturating_sub(self.host.permits.available_permits());
            state.limit.record_answer(ttfb, under_way, now);
            let wanted = state.limit.get();
            if wanted > state.places {
                self.host.permits.add_permits(wanted - state.places);
                state.places = wanted;
            }
        }
        // Whoever writes a log line may wait, and other requests of the host with it.
        drop(state);
        let host = &*self.host.name;
        match circuit_changed {
            true if has_failed => self.host.report_open_circuit(),
            true => tracing::info!(host, "circuit of {host} closed: it answers again"),
            false => {}
        }
        if let Some(pause) = backed_off {
            let status = status.as_u16();
            // At most MAX_RETRY_AFTER.
            let pause_ms = pause.as_millis() as u64;
            tracing::warn!(
                host,
                status,
                pause_ms,
                "{host} backed off for {pause_ms} ms: it answered {status}"
            );
        }
        if recovered {
            tracing::info!(host, "{host} is no longer backed off");
        }
    }

    /// There is no response, and this verdict instead.
    pub(super) fn unanswered(&self, verdict: &Verdict) {
        let Verdict::Failed(failure) = verdict else { return };
        if !verdict.is_curable() {
            return;
        }
        let now = Instant::now();
        let (mut state, was_probe) = (self.host.state(), self.was_probe());
        // Where others were answered meanwhile it is this URL that hangs, and not the host.
        if *failure == Failure::FirstByteTimeout && state.answered_at.is_none_or(|at| at < self.began) {
            state.limit.record_overload(now);
        }
        let has_opened = state.breaker.failed(was_probe, now);
        drop(state);
        if has_opened {
            self.host.report_open_circuit();
        }
    }

    /// Whether this was the probe, which has told by now.
    fn was_probe(&self) -> bool {
        std::mem::take(&mut lock(&self.held).is_probe)
    }
}

impl<C: Send + Sync + 'static> Drop for Turn<C> {
    fn drop(&mut self) {
        let (mut state, mut held) = (self.host.state(), lock(&self.held));
        if held.is_probe {
            state.breaker.probe_told_nothing();
        }
        match held.permit.take() {
            Some(permit) => self.host.take_back(&mut state, permit),
            None => state.late -= 1,
        }
    }
}

impl State {
    /// Leaves the host alone for as long as it asked, or a little longer each time. Returns for how long where that is to
    /// be reported, which is once until [`State::recover`].
    fn pause(&mut self, asked: Option<Duration>, now: Instant) -> Option<Duration> {
        // Those that were under way together are turned away together, and are one.
        if asked.is_none() && self.paused_until.is_some_and(|until| until > now) {
            return None;
        }
        let pause = asked.map_or_else(
            || (PAUSE * (1 << self.pauses.min(16))).min(MAX_PAUSE).mul_f64(0.5 + fastrand::f64() / 2.0),
            |asked| asked.min(MAX_RETRY_AFTER),
        );
        self.pauses = self.pauses.saturating_add(1);
        self.paused_until = self.paused_until.max(Some(now + pause));
        (!std::mem::replace(&mut self.is_reported, true)).then_some(pause)
    }

    /// Records a good answer. Returns whether the end of the pauses is to be reported: not before the host has gone for a
    /// while without one, so that a host that answers both ways fills no log.
    fn recover(&mut self, now: Instant) -> bool {
        self.pauses = 0;
        let is_well = self.paused_until.is_none_or(|until| until + RECOVERED_AFTER <= now);
        is_well && std::mem::take(&mut self.is_reported)
    }
}

/// A place in a host's queue.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn join(count: &'a AtomicUsize) -> Option<Self> {
        let place = Self(count);
        (count.fetch_add(1, Ordering::Relaxed) < MAX_WAITING).then_some(place)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;
    use crate::warm::timer::StepTimer;

    fn turns() -> Turns<()> {
        Turns::new(|| ())
    }

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    fn in_seconds(seconds: u64) -> Instant {
        Instant::now() + Duration::from_secs(seconds)
    }

    fn says(turn: &Turn<()>, status: u16, headers: &[(&'static str, &str)]) {
        let headers = headers.iter().map(|(name, value)| {
            (http::HeaderName::from_static(name), http::HeaderValue::from_str(value).unwrap())
        });
        let status = StatusCode::from_u16(status).unwrap();
        turn.answered(turn.began().elapsed(), status, &headers.collect());
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_that_is_full_holds_up_nobody_else_and_its_queue_is_bounded() {
        let turns = Arc::new(turns());
        let slow = url("https://slow.example.com/");
        let mut held = Vec::new();
        for _ in 0..64 {
            held.push(turns.take(&slow, in_seconds(60)).await.ok().unwrap());
        }
        let waiting: Vec<_> = (0..MAX_WAITING)
            .map(|_| {
                let (turns, slow) = (turns.clone(), slow.clone());
                tokio::spawn(async move { turns.take(&slow, in_seconds(60)).await.err() })
            })
            .collect();
        let host = turns.host("https://slow.example.com", Instant::now());
        while host.waiting.load(Ordering::Relaxed) < MAX_WAITING {
            tokio::task::yield_now().await;
        }
        let started = Instant::now();
        assert_eq!(turns.take(&slow, in_seconds(60)).await.err(), Some(Failure::HostBusy));
        assert!(turns.take(&url("https://good.example.com/"), in_seconds(60)).await.is_ok());
        assert!(turns.take(&url("https://slow.example.com:8443/"), in_seconds(60)).await.is_ok());
        assert_eq!(started.elapsed(), Duration::ZERO, "nobody waited");
        drop(held.pop());
        let mut told = Vec::new();
        for turn in waiting {
            told.push(turn.await.unwrap());
        }
        assert_eq!(started.elapsed(), Duration::ZERO, "one place is enough for all, one after another");
        assert!(told.iter().all(Option::is_none), "{told:?}");
        drop(held.pop());
        drop(held);
    }

    #[tokio::test(start_paused = true)]
    async fn urls_that_hang_leave_room_for_the_others_of_a_host_that_answers_and_only_there() {
        for is_alive in [true, false] {
            let (turns, host) = (Arc::new(turns()), url("https://example.com/"));
            if is_alive {
                says(&turns.take(&host, in_seconds(60)).await.ok().unwrap(), 200, &[]);
            }
            for _ in 0..64 {
                let turn = turns.take(&host, in_seconds(60)).await.ok().unwrap();
                tokio::spawn(async move {
                    let sleep = pin!(tokio::time::sleep(LATE));
                    let mut timer = StepTimer::new(&turn, in_seconds(60), sleep);
                    let hangs = pin!(tokio::time::sleep(Duration::from_secs(15)));
                    timer.run(|| in_seconds(60), hangs).await.unwrap();
                });
            }
            let started = Instant::now();
            let mut waited = Vec::new();
            for _ in 0..100 {
                drop(turns.take(&host, in_seconds(60)).await.ok().unwrap());
                waited.push(started.elapsed().as_secs());
            }
            assert_eq!(waited[99], if is_alive { 1 } else { 15 }, "alive: {is_alive}");
            tokio::time::sleep(Duration::from_secs(20)).await;
            let known = turns.host("https://example.com", Instant::now());
            assert_eq!((known.state().late, known.permits.available_permits()), (0, 64), "all is given back");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_gets_no_turn_in_time_is_told_so_at_the_deadline() {
        let (turns, slow) = (turns(), url("https://slow.example.com/"));
        let mut held = Vec::new();
        for _ in 0..64 {
            held.push(turns.take(&slow, in_seconds(60)).await.ok().unwrap());
        }
        let started = Instant::now();
        assert_eq!(turns.take(&slow, in_seconds(3)).await.err(), Some(Failure::HostBusy));
        assert_eq!(started.elapsed(), Duration::from_secs(3));
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_is_left_alone_for_as_long_as_it_asks_in_either_form() {
        let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(20));
        for (status, value, shortest, longest) in [
            (429, "7", 7, 7),
            (503, "7", 7, 7),
            (503, date.as_str(), 18, 20),
            (429, "99999999999999999999", 600, 600),
        ] {
            let (turns, host) = (turns(), url("https://example.com/"));
            says(&turns.take(&host, in_seconds(5)).await.ok().unwrap(), status, &[("retry-after", value)]);
            let started = Instant::now();
            assert_eq!(turns.take(&host, in_seconds(5)).await.err(), Some(Failure::HostBusy));
            assert_eq!(started.elapsed(), Duration::ZERO, "nothing to wait for within the deadline");
            assert!(turns.take(&url("https://other.example.com/"), in_seconds(5)).await.is_ok());
            assert!(turns.take(&host, in_seconds(1_000)).await.is_ok());
            let waited = started.elapsed().as_secs_f64().round() as u64;
            assert!((shortest..=longest).contains(&waited), "{status} {value}: {waited} s");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_is_reported_once_until_the_host_has_been_well_for_a_while() {
        let turns = turns();
        let host = turns.host("https://example.com", Instant::now());
        let mut state = host.state();
        let mut now = Instant::now();
        assert!(!state.recover(now), "there was no pause");
        let asked = Some(Duration::from_secs(3));
        assert_eq!(state.pause(asked, now), asked);
        for _ in 0..5 {
            now += RECOVERED_AFTER;
            assert!(!state.recover(now), "it was paused a moment ago");
            assert_eq!(state.pause(asked, now), None, "it was reported");
        }
        now += RECOVERED_AFTER + Duration::from_secs(3);
        assert!(state.recover(now));
        assert!(!state.recover(now), "that was reported");
        assert_eq!(state.pause(asked, now), asked);
    }

    #[tokio::test(start_paused = true)]
    async fn totals_count_hosts_and_their_requests() {
        let (turns, host) = (turns(), url("https://example.com/"));
        let held = turns.take(&host, in_seconds(60)).await.ok().unwrap();
        assert_eq!(turns.totals(), HostTotals { hosts: 1, in_flight: 1, ..HostTotals::default() });
        says(&held, 429, &[("retry-after", "7")]);
        drop(held);
        let dead = turns.take(&url("https://dead.example.com/"), in_seconds(60)).await.ok().unwrap();
        for _ in 0..10 {
            dead.unanswered(&Verdict::Failed(Failure::ConnectTimeout));
        }
        drop(dead);
        let totals = HostTotals { hosts: 2, circuits_open: 1, paused: 1, ..HostTotals::default() };
        assert_eq!(turns.totals(), totals);
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_time_the_pauses_grow_until_an_answer_is_good() {
        let (turns, host) = (turns(), url("https://example.com/"));
        let mut waits = Vec::new();
        for _ in 0..9 {
            let started = Instant::now();
            says(&turns.take(&host, in_seconds(60)).await.ok().unwrap(), 429, &[]);
            waits.push(started.elapsed());
        }
        assert!(waits[8] > 20 * waits[1] && waits[8] < MAX_PAUSE, "{waits:?}");
        says(&turns.take(&host, in_seconds(60)).await.ok().unwrap(), 200, &[]);
        says(&turns.take(&host, in_seconds(60)).await.ok().unwrap(), 429, &[]);
        let started = Instant::now();
        assert!(turns.take(&host, in_seconds(60)).await.is_ok());
        assert!(started.elapsed() <= PAUSE, "{:?}", started.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_that_fails_every_time_is_left_alone_and_then_asked_once() {
        let (turns, dead) = (turns(), url("https://dead.example.com/"));
        for _ in 0..10 {
            let turn = turns.take(&dead, in_seconds(5)).await.ok().unwrap();
            turn.unanswered(&Verdict::Failed(Failure::ConnectTimeout));
        }
        assert_eq!(turns.take(&dead, in_seconds(5)).await.err(), Some(Failure::CircuitOpen));
        tokio::time::sleep(Duration::from_secs(1)).await;
        let probe = turns.take(&dead, in_seconds(5)).await.ok().unwrap();
        assert_eq!(turns.take(&dead, in_seconds(5)).await.err(), Some(Failure::CircuitOpen));
        drop(probe);
        let probe = turns.take(&dead, in_seconds(5)).await.ok().unwrap();
        says(&probe, 404, &[]);
        assert!(turns.take(&dead, in_seconds(5)).await.is_ok(), "a 404 is an answer");
    }

    #[tokio::test(start_paused = true)]
    async fn those_in_the_queue_go_when_the_circuit_opens() {
        let (turns, dead) = (Arc::new(turns()), url("https://dead.example.com/"));
        let mut held = Vec::new();
        for _ in 0..64 {
            held.push(turns.take(&dead, in_seconds(60)).await.ok().unwrap());
        }
        let (waiter, host) = (turns.clone(), dead.clone());
        let waiting = tokio::spawn(async move { waiter.take(&host, in_seconds(60)).await.err() });
        tokio::task::yield_now().await;
        for turn in held {
            turn.unanswered(&Verdict::Failed(Failure::ConnectTimeout));
        }
        assert_eq!(waiting.await.unwrap(), Some(Failure::CircuitOpen));
    }

    #[tokio::test(start_paused = true)]
    async fn after_many_refusals_one_request_at_a_time_goes_out() {
        let (turns, host) = (turns(), url("https://example.com/"));
        for _ in 0..8 {
            tokio::time::sleep(Duration::from_secs(10)).await;
            says(&turns.take(&host, in_seconds(60)).await.ok().unwrap(), 429, &[]);
        }
        let only = turns.take(&host, in_seconds(60)).await.ok().unwrap();
        assert_eq!(turns.take(&host, in_seconds(1)).await.err(), Some(Failure::HostBusy));
        drop(only);
        assert!(turns.take(&host, in_seconds(1)).await.is_ok());
    }

    #[tokio::test]
    async fn the_table_is_bounded_whatever_hosts_come() {
        let turns = turns();
        for n in 0..5_000 {
            turns.take(&url(&format!("https://h{n}.example.com/")), in_seconds(60)).await.ok().unwrap();
        }
        let known = turns.known();
        assert_eq!(known.len(), MAX_HOSTS);
        assert!(known.contains_key("https://h4999.example.com"));
        assert!(!known.contains_key("https://h3975.example.com"), "the oldest went first");
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_that_nobody_asks_is_forgotten_with_the_next_new_one() {
        let turns = turns();
        for _ in 0..2 {
            drop(turns.take(&url("https://a.example.com/"), in_seconds(60)).await.ok().unwrap());
            tokio::time::advance(IDLE_LIMIT / 2).await;
            drop(turns.take(&url("https://b.example.com/"), in_seconds(60)).await.ok().unwrap());
        }
        tokio::time::advance(IDLE_LIMIT / 2).await;
        drop(turns.take(&url("https://c.example.com:8443/"), in_seconds(60)).await.ok().unwrap());
        let mut known: Vec<_> = turns.known().keys().map(ToString::to_string).collect();
        known.sort();
        assert_eq!(known, ["https://b.example.com", "https://c.example.com:8443"]);
    }

    #[tokio::test(start_paused = true)]
    async fn hosts_with_a_request_never_leave_the_table() {
        let turns = turns();
        let name = |n: usize| url(&format!("https://h{n}.example.com/"));
        let mut held = Vec::new();
        for n in 0..MAX_HOSTS {
            held.push(turns.take(&name(n), in_seconds(60)).await.ok().unwrap());
        }
        tokio::time::advance(2 * IDLE_LIMIT).await;
        for n in 0..MAX_HOSTS {
            drop(turns.take(&name(MAX_HOSTS + n), in_seconds(60)).await.ok().unwrap());
        }
        let known = turns.known();
        assert_eq!(known.len(), MAX_HOSTS + 1, "those with a request, and one without");
        for (n, turn) in held.iter().enumerate() {
            let known = &known[&*format!("https://h{n}.example.com")];
            assert!(Arc::ptr_eq(&known.host, &turn.host));
        }
    }
}
