//! The GETs of one URL: retries, redirects, the second look after a fill, and one request with its response. Each function
//! returns its [`Attempt`] by the deadline, with all that was found out by then.

use std::pin::pin;
use std::time::{Duration, SystemTime};

use http::response::Parts;
use http::{Method, StatusCode, header};
use tokio::time::{Instant, sleep_until};

use super::attempt::Attempt;
use super::body::{self, ReadBody, ResponseBody};
use super::cdn::{self, Assessment};
use super::certify::may_have_changed;
use super::client::{Asked, why_no_response};
use super::connections::{Connections, Unanswered};
use super::look::Look;
use super::timer::{StepTimer, TimedOut};
use super::turns::{LATE, Turn};
use super::{Warmer, range, redirect};
use crate::outcome::shown_url;
use crate::request::WarmRequest;
use crate::retry::backoff;
use crate::verdict::{Failure, Unproven, Verdict};
use crate::version::Seen;

/// GETs for one request, as long as failures are curable, and for how long after the first another is begun: what takes
/// longer to fail would keep its place among the pushes under way for as long again, and a redelivery does as well.
const ATTEMPTS: usize = 3;
const RETRY_WITHIN: Duration = Duration::from_secs(10);

/// A response whose body is not read yet.
type Answered = (Parts, ResponseBody);

impl Warmer {
    /// Fetches until another GET would not change the verdict: tries again where that may help, a few times at most, and
    /// looks again where the edge may have been filled and the operator wants proof.
    pub(super) async fn fetch(&self, deadline: Instant, request: &WarmRequest) -> Attempt {
        let mut delays = backoff(Duration::from_millis(200), RETRY_WITHIN).take(ATTEMPTS - 1);
        let retry_until = deadline.min(Instant::now() + RETRY_WITHIN);
        // Boxed: most requests take no room for it.
        let mut failed: Option<Box<Attempt>> = None;
        let first = loop {
            let attempt = self.get(deadline, request).await;
            let is_retryable = attempt.is_retryable();
            let attempt = match failed.take() {
                Some(failed) => failed.retried(attempt),
                None => attempt,
            };
            match delays.next() {
                Some(delay) if is_retryable && Instant::now() + delay < retry_until => {
                    failed = Some(Box::new(attempt));
                    tokio::time::sleep(delay).await;
                }
                _ => break attempt,
            }
        };
        if self.certify && may_have_changed(&first.assessment) {
            // Boxed likewise.
            let second = Box::pin(self.get(deadline, request)).await;
            return first.certified(second).at_expected_pop(&self.expect_pop);
        }
        first.at_expected_pop(&self.expect_pop)
    }

    /// Sends a request, and those that redirects ask for instead.
    async fn get(&self, deadline: Instant, request: &WarmRequest) -> Attempt {
        let (mut attempt, mut next) = self.attempt(deadline, request, 0).await;
        let mut followed = 0;
        while let Some(target) = next {
            followed += 1;
            let (redirected, further) = if Instant::now() < deadline {
                // Boxed: most requests take no room for it.
                Box::pin(self.attempt(deadline, &target, followed)).await
            } else {
                (Attempt::without_request(Verdict::Failed(Failure::TotalTimeout)), None)
            };
            attempt = attempt.redirected(redirected);
            attempt.final_url = Some(shown_url(target.url()));
            next = further;
        }
        attempt
    }

    /// Sends one request, once its host may be asked, and reads its response to the end. Returns beside the result the
    /// request that a redirect leads to, if it is to be followed as others were before it.
    async fn attempt(
        &self,
        deadline: Instant,
        request: &WarmRequest,
        followed: u8,
    ) -> (Attempt, Option<Box<WarmRequest>>) {
        let turn = match self.turns.take(request.url(), deadline).await {
            Ok(turn) => turn,
            Err(failure) => return (Attempt::without_request(Verdict::Failed(failure)), None),
        };
        let asked = Asked::new(request, self.method, &self.common_headers);
        let sleep = pin!(sleep_until(turn.began() + LATE));
        let mut timer = StepTimer::new(&turn, deadline, sleep);
        let answered = {
            let asking = pin!(turn.client().request(&asked));
            timer.run(|| turn.began() + self.first_byte_limit, asking).await
        };
        let ttfb = turn.began().elapsed();
        let (response, body) = match answer(&turn, ttfb, answered) {
            Ok(answered) => answered,
            Err(verdict) => {
                let mut attempt = Attempt::sent(verdict.into());
                attempt.looks.extend(self.look(&asked, None, &attempt, false));
                return (attempt, None);
            }
        };
        let (mut attempt, next) = self.receive(&mut timer, &asked, request, followed, &response, body).await;
        attempt.http_status = Some(response.status.as_u16());
        attempt.ttfb = Some(ttfb);
        attempt.looks.extend(self.look(&asked, Some(&response), &attempt, next.is_some()));
        (attempt, next)
    }

    /// Decides by the head of a response what becomes of it, reads its body, and says what it is worth.
    async fn receive(
        &self,
        timer: &mut StepTimer<'_, Connections>,
        asked: &Asked<'_>,
        request: &WarmRequest,
        followed: u8,
        response: &Parts,
        body: ResponseBody,
    ) -> (Attempt, Option<Box<WarmRequest>>) {
        let leads_to = redirect::next(&self.guard, self.follow_redirects, followed, request, response);
        let (verdict, next) = match leads_to {
            // The verdict is its target's.
            Ok(Some(next)) => (Some(Verdict::Failed(Failure::Redirect(String::new()))), Some(Box::new(next))),
            Ok(None) => (status_failure(asked, response), None),
            Err(verdict) => (Some(verdict), None),
        };
        if let Some(verdict) = verdict {
            let bytes = body::drain(timer, body).await;
            return (Attempt { bytes, ..Attempt::sent(verdict.into()) }, next);
        }

        let mut assessment = cdn::assess(&self.speakers, asked, response, SystemTime::now());
        let seen = Seen {
            etag: text(response, header::ETAG),
            length_bytes: range::whole_bytes(response),
            encoding: text(response, header::CONTENT_ENCODING),
            sha256: None,
        };
        let is_wanted = assessment.verdict != Verdict::Warm || request.expected().mismatch(&seen).is_some();
        let left_unread = if self.skip_warm && !is_wanted { body::worth_leaving(&body) } else { None };
        let read = match left_unread {
            None if asked.method == Method::GET => {
                let (stall, is_hashed) = (self.stall_limit, request.expected().needs_hash());
                Some(body::read(timer, body, self.max_body_bytes, || Instant::now() + stall, is_hashed).await)
            }
            // A response to HEAD tells of a body that does not come.
            _ => None,
        };
        if let Some(verdict) = overruled(&assessment.verdict, asked, request, response, seen, read.as_ref()) {
            assessment = Assessment { evidence: assessment.evidence, ..verdict.into() };
        }
        let is_failed = matches!(assessment.verdict, Verdict::Failed(_));
        let attempt = Attempt {
            bytes: read.map_or(0, |read| read.bytes),
            bytes_saved: left_unread.filter(|_| !is_failed).unwrap_or(0),
            ..Attempt::sent(assessment)
        };
        (attempt, None)
    }

    /// What is kept of a request for those who want to see it.
    fn look(
        &self,
        asked: &Asked<'_>,
        response: Option<&Parts>,
        attempt: &Attempt,
        is_followed: bool,
    ) -> Option<Look> {
        self.shows_looks.then(|| Look::new(asked, response, attempt, is_followed))
    }
}

/// The head and body of a response, or the verdict where there is none; the host's limits learn of either.
fn answer(
    turn: &Turn<Connections>,
    ttfb: Duration,
    answered: Result<Result<Answered, Unanswered>, TimedOut>,
) -> Result<Answered, Verdict> {
    let verdict = match answered {
        Ok(Ok((response, body))) => {
            turn.answered(ttfb, response.status, &response.headers);
            return Ok((response, body));
        }
        Ok(Err(error)) => why_no_response(&error),
        Err(TimedOut::Step) => Verdict::Failed(Failure::FirstByteTimeout),
        // The host had less time than it may take.
        Err(TimedOut::Deadline) => return Err(Verdict::Failed(Failure::TotalTimeout)),
    };
    turn.unanswered(&verdict);
    Err(verdict)
}

/// What the status alone says against the response, if anything.
fn status_failure(asked: &Asked<'_>, response: &Parts) -> Option<Verdict> {
    // Part of a body that was asked for whole is none.
    let is_part =
        response.status == StatusCode::PARTIAL_CONTENT && !asked.headers.contains_key(header::RANGE);
    let is_whole = response.status.is_success() && !is_part;
    (!is_whole).then(|| Verdict::Failed(Failure::Status(response.status.as_u16())))
}

/// The verdict that stands instead of the one by the head: where the body was not read as it should be, where it is not the
/// expected version, or where HEAD leaves it open. `read` is none where it was left unread.
fn overruled(
    by_head: &Verdict,
    asked: &Asked<'_>,
    request: &WarmRequest,
    response: &Parts,
    mut seen: Seen<'_>,
    read: Option<&ReadBody>,
) -> Option<Verdict> {
    if asked.method == Method::GET {
        if let Some(Err(failure)) = read.map(|read| &read.end) {
            return Some(Verdict::Failed(failure.clone()));
        }
        let part_bytes = match range::part_bytes(&asked.headers, response) {
            Ok(part_bytes) => part_bytes,
            Err(failure) => return Some(Verdict::Failed(failure)),
        };
        if let Some(read) = read {
            if part_bytes.is_some_and(|bytes| bytes != read.bytes) {
                return Some(Verdict::Failed(Failure::OtherRange));
            }
            if response.status != StatusCode::PARTIAL_CONTENT {
                seen.length_bytes = Some(read.bytes);
            }
            seen.sha256 = read.sha256;
        }
    }
    let may_mismatch = !matches!(by_head, Verdict::Uncacheable(_));
    if let Some(reason) = request.expected().mismatch(&seen).filter(|_| may_mismatch) {
        return Some(Verdict::WrongVersion(reason));
    }
    // Whether the edge fetched more than a head is not known.
    let is_open = *by_head == Verdict::Filled && asked.method == Method::HEAD;
    is_open.then_some(Verdict::Fetched(Unproven::Head))
}

fn text(response: &Parts, name: header::HeaderName) -> Option<&str> {
    response.headers.get(name)?.to_str().ok()
}
