//! The GETs of one request: tried again while that may help, redirected, judged, looked at again, and hurried by nobody.

use std::ops::ControlFlow;
use std::pin::pin;
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{Context, SHA256};
use http::response::Parts;
use http::{Method, StatusCode, header};
use tokio::time::Instant;

use super::body::{ResponseBody, drain, read_and_drop, worth_leaving};
use super::cdn::{self, Assessment};
use super::certify::{Found, conclude};
use super::client::{Asked, why_no_response};
use super::connections::Connections;
use super::deadline::Deadline;
use super::look::Look;
use super::turns::Turn;
use super::{Progress, Warmer, milliseconds, range, redirect};
use crate::outcome::{CacheEvidence, Exchange, shown_url};
use crate::request::WarmRequest;
use crate::retry::backoff;
use crate::verdict::{Failure, Unproven, Verdict};
use crate::version::Seen;

/// GETs for one request, as long as failures are curable, and for how long after the first another is begun: what takes
/// longer to fail would keep its place among the pushes under way for as long again, and a redelivery does as well.
const ATTEMPTS: usize = 3;
const RETRY_WITHIN: Duration = Duration::from_secs(10);

impl Warmer {
    /// Fetches until there is a verdict that trying again would not change, a few times at most.
    pub(super) async fn fetch_with_retries(
        &self,
        deadline: &Deadline,
        request: &WarmRequest,
        progress: &mut Progress,
    ) -> Verdict {
        let mut delays = backoff(Duration::from_millis(200), RETRY_WITHIN).take(ATTEMPTS - 1);
        let last = deadline.at().min(Instant::now() + RETRY_WITHIN);
        loop {
            let verdict = self.fetch(deadline, request, progress).await;
            if matches!(verdict, Verdict::Failed(Failure::CircuitOpen | Failure::HostBusy)) {
                // The host is not to be asked now: why the try before failed says more, and another is no use.
                return progress.so_far.take().unwrap_or(verdict);
            }
            match delays.next() {
                Some(delay) if verdict.is_curable() && Instant::now() + delay < last => {
                    progress.so_far = Some(verdict);
                    tokio::time::sleep(delay).await;
                }
                _ => return verdict,
            }
        }
    }

    /// One GET, and a second look where the first may have filled the edge and the operator wants proof.
    async fn fetch(&self, deadline: &Deadline, request: &WarmRequest, progress: &mut Progress) -> Verdict {
        let first = self.get(deadline, request, progress).await;
        let verdict = if self.certify && first.may_have_changed() {
            // Boxed: most requests take no room for it.
            Box::pin(self.certified(first, deadline, request, progress)).await
        } else {
            first.verdict
        };
        let pop = progress.exchange.cache.as_ref().and_then(|cache| cache.pop.as_deref());
        match (verdict, pop) {
            (Verdict::Warm, Some(pop)) if !self.is_expected_pop(pop) => {
                Verdict::WrongPop(format!("{pop} instead of {}", self.expect_pop.join(",")))
            }
            (verdict, _) => verdict,
        }
    }

    /// Looks again, and says what both looks do.
    async fn certified(
        &self,
        first: Found,
        deadline: &Deadline,
        request: &WarmRequest,
        progress: &mut Progress,
    ) -> Verdict {
        let (http_status, cache) = (progress.exchange.http_status, progress.exchange.cache.clone());
        progress.so_far = Some(first.verdict.clone());
        let second = self.get(deadline, request, progress).await;
        let before = cache.clone().unwrap_or_default();
        let concluded =
            conclude(&first, &before, &second, progress.exchange.cache.as_ref().unwrap_or(&before));
        concluded.unwrap_or_else(|| {
            // What it rests on goes with it.
            (progress.exchange.http_status, progress.exchange.cache) = (http_status, cache);
            first.verdict
        })
    }

    /// Where none is expected every one is.
    fn is_expected_pop(&self, pop: &str) -> bool {
        let begins = |expected: &String| {
            pop.get(..expected.len()).is_some_and(|start| start.eq_ignore_ascii_case(expected))
        };
        self.expect_pop.is_empty() || self.expect_pop.iter().any(begins)
    }

    /// One GET, and those that redirects ask for instead.
    async fn get(&self, deadline: &Deadline, request: &WarmRequest, progress: &mut Progress) -> Found {
        let mut next: Option<WarmRequest> = None;
        let mut followed = 0;
        loop {
            match self.hop(deadline, next.as_ref().unwrap_or(request), followed, progress).await {
                ControlFlow::Continue(redirected) => {
                    progress.final_url = Some(shown_url(redirected.url()));
                    next = Some(redirected);
                    followed += 1;
                }
                ControlFlow::Break(found) => {
                    if followed == 0 {
                        // Another try, before, may have been redirected.
                        progress.final_url = None;
                    }
                    return found;
                }
            }
        }
    }

    /// One GET, once its host may be asked: to what it found, or to the request that it leads to after `followed` redirects.
    async fn hop(
        &self,
        deadline: &Deadline,
        request: &WarmRequest,
        followed: u8,
        progress: &mut Progress,
    ) -> ControlFlow<Found, WarmRequest> {
        let turn = match self.turns.take(request.url(), deadline.at()).await {
            Ok(turn) => turn,
            Err(failure) => return ControlFlow::Break(Verdict::Failed(failure).into()),
        };
        let asked = Asked::new(request, self.method, &self.common_headers);
        let before = progress.exchange.bytes;
        if self.shows_looks {
            progress.looks.push(Look::new(&asked));
        }
        let found = {
            let asking = pin!(self.ask(deadline, &turn, &asked, request, followed, progress));
            turn.spend(deadline, asking).await
        };
        if self.shows_looks
            && let Some(look) = progress.looks.last_mut()
        {
            let found = match &found {
                ControlFlow::Break(found) => Some(found),
                ControlFlow::Continue(_) => None,
            };
            look.ended(found, &progress.exchange, before);
        }
        found
    }

    /// One GET, to the end of its body.
    async fn ask(
        &self,
        deadline: &Deadline,
        turn: &Turn<Connections>,
        asked: &Asked<'_>,
        request: &WarmRequest,
        followed: u8,
        progress: &mut Progress,
    ) -> ControlFlow<Found, WarmRequest> {
        progress.attempts += 1;
        let Progress { exchange, looks, .. } = progress;
        let (response, mut content) = match self.head(deadline, turn, asked, exchange).await {
            Ok(answered) => answered,
            Err(verdict) => return ControlFlow::Break(verdict.into()),
        };
        if self.shows_looks
            && let Some(look) = looks.last_mut()
        {
            look.heard(&response);
        }
        let leads_on = redirect::next(&self.guard, self.follow_redirects, followed, request, &response);
        if let Some(decided) = leads_on.transpose().or_else(|| failure(asked, &response).map(Err)) {
            drain(&mut content, &mut exchange.bytes).await;
            return match decided {
                Ok(next) => ControlFlow::Continue(next),
                Err(verdict) => ControlFlow::Break(verdict.into()),
            };
        }
        ControlFlow::Break(self.judge(asked, &response, &mut content, request, exchange).await)
    }

    /// Reads the body of a response that counts, and says what it was worth.
    async fn judge(
        &self,
        asked: &Asked<'_>,
        response: &Parts,
        content: &mut ResponseBody,
        request: &WarmRequest,
        exchange: &mut Exchange,
    ) -> Found {
        let Assessment { verdict, evidence, next, needs_miss } =
            cdn::assess(&self.speakers, asked, response, SystemTime::now());
        exchange.cache = Some(evidence).filter(|evidence| *evidence != CacheEvidence::default());
        let text = |name| response.headers.get(name).and_then(|value| value.to_str().ok());
        let mut seen = Seen {
            etag: text(header::ETAG),
            length_bytes: range::whole_bytes(response),
            encoding: text(header::CONTENT_ENCODING),
            sha256: None,
        };
        let is_wanted = verdict != Verdict::Warm || request.expected().mismatch(&seen).is_some();
        let left = worth_leaving(content).filter(|_| self.skip_warm && !is_wanted);
        match left {
            // A response to HEAD tells of a body that does not come.
            _ if asked.method == Method::HEAD => {}
            Some(left) => match range::part_bytes(&asked.headers, response) {
                Ok(_) => exchange.bytes_saved += left,
                Err(failure) => return Verdict::Failed(failure).into(),
            },
            None => {
                let mut hash = request.expected().needs_hash().then(|| Context::new(&SHA256));
                let length = match self.read(asked, response, content, hash.as_mut(), exchange).await {
                    Ok(length) => length,
                    Err(failure) => return Verdict::Failed(failure).into(),
                };
                if response.status != StatusCode::PARTIAL_CONTENT {
                    seen.length_bytes = Some(length);
                }
                seen.sha256 = hash.and_then(|hash| hash.finish().as_ref().try_into().ok());
            }
        }
        let may_mismatch = !matches!(verdict, Verdict::Uncacheable(_));
        if let Some(reason) = request.expected().mismatch(&seen).filter(|_| may_mismatch) {
            return Verdict::WrongVersion(reason).into();
        }
        match verdict {
            // Whether the edge fetched more than a head is not known.
            Verdict::Filled if asked.method == Method::HEAD => Verdict::Fetched(Unproven::Head).into(),
            verdict => Found { verdict, next, needs_miss },
        }
    }

    /// Reads a body to its end; gives its length.
    async fn read(
        &self,
        asked: &Asked<'_>,
        response: &Parts,
        content: &mut ResponseBody,
        hash: Option<&mut Context>,
        exchange: &mut Exchange,
    ) -> Result<u64, Failure> {
        let before = exchange.bytes;
        read_and_drop(content, self.body_limits, &mut exchange.bytes, hash).await?;
        let length = exchange.bytes - before;
        match range::part_bytes(&asked.headers, response)? {
            Some(bytes) if bytes != length => Err(Failure::OtherRange),
            _ => Ok(length),
        }
    }

    /// The head of the response, in time; what the host said by it goes into its turn.
    async fn head(
        &self,
        deadline: &Deadline,
        turn: &Turn<Connections>,
        asked: &Asked<'_>,
        exchange: &mut Exchange,
    ) -> Result<(Parts, ResponseBody), Verdict> {
        let limit = turn.began() + self.first_byte_limit;
        let answered = deadline.until(limit, pin!(turn.client().request(asked))).await;
        let verdict = match answered {
            Some(Ok((response, content))) => {
                let ttfb = turn.began().elapsed();
                turn.answered(ttfb, response.status, &response.headers);
                exchange.ttfb_ms.get_or_insert(milliseconds(ttfb));
                exchange.http_status = Some(response.status.as_u16());
                return Ok((response, content));
            }
            Some(Err(error)) => why_no_response(&error),
            None => Verdict::Failed(Failure::FirstByteTimeout),
        };
        turn.unanswered(&verdict);
        Err(verdict)
    }
}

/// What the status alone says against the response, if anything.
fn failure(asked: &Asked<'_>, response: &Parts) -> Option<Verdict> {
    // Part of a body that was asked for whole is none.
    let is_part =
        response.status == StatusCode::PARTIAL_CONTENT && !asked.headers.contains_key(header::RANGE);
    let is_whole = response.status.is_success() && !is_part;
    (!is_whole).then(|| Verdict::Failed(Failure::Status(response.status.as_u16())))
}
