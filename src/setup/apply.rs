//! Does what a plan says: independent steps side by side, each again as long as its failure may pass.
//!
//! A step reads before it tries again, so that an answer that was lost on its way does nothing twice, and a run that was
//! cut is finished by the next one.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use anyhow::{Context, bail};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use serde_json::Value;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::api::{ApiError, delays};
use super::live::Live;
use super::plan::{Action, Step, all_of, step};
use super::progress::Progress;
use super::resource::Resource;
use crate::usage::UsageError;

/// Steps under way at once. Cloud Run takes some tens of writes a minute and region; each region has its own.
const AT_ONCE: usize = 12;

type Running<'a> = Pin<Box<dyn Future<Output = (usize, anyhow::Result<()>)> + 'a>>;

/// What became of a plan.
#[derive(Debug, Default)]
pub(super) struct Applied {
    pub(super) done: usize,
    /// Steps that were not begun, since what they need failed, or because of a stop.
    pub(super) left: usize,
}

/// Does all steps that change something, each after those that it needs.
///
/// # Errors
/// All failures together; what did not need the failed steps is done all the same. A stop ends it after the calls that
/// are under way.
pub(super) async fn apply(
    live: &Live,
    steps: &[Step],
    adopt: bool,
    progress: &Progress,
) -> anyhow::Result<Applied> {
    let changing: Vec<&Step> = steps.iter().filter(|step| step.action.changes()).collect();
    let mut waiting = needs(&changing);
    let mut running: FuturesUnordered<Running<'_>> = FuturesUnordered::new();
    let (mut applied, mut errors) = (Applied::default(), Vec::new());
    loop {
        let stopping = live.stop.is_cancelled();
        let ready: Vec<usize> = if stopping { Vec::new() } else { ready(&waiting, AT_ONCE - running.len()) };
        for number in ready {
            waiting.remove(&number);
            let step = changing[number];
            progress.begins(step);
            running.push(Box::pin(async move { (number, one(live, step, adopt).await) }));
        }
        let Some((number, result)) = running.next().await else { break };
        progress.ends(changing[number], &result);
        match result {
            Ok(()) => {
                applied.done += 1;
                for needs in waiting.values_mut() {
                    needs.remove(&number);
                }
            }
            Err(error) => errors.push(error.context(changing[number].resource.key())),
        }
    }
    applied.left = waiting.len();
    if !errors.is_empty() {
        let left = applied.left;
        let after = if left > 0 { format!("\n{left} more steps wait for these") } else { String::new() };
        bail!("{}{after}\nRun the same command again once that is cured.", all_of(&errors));
    }
    if live.stop.is_cancelled() && applied.left > 0 {
        bail!("stopped with {} steps to do; run the same command again to go on", applied.left);
    }
    Ok(applied)
}

/// What each step still waits for.
fn needs(steps: &[&Step]) -> HashMap<usize, HashSet<usize>> {
    let numbers: HashMap<String, usize> =
        steps.iter().enumerate().map(|(number, step)| (step.resource.key(), number)).collect();
    let of = |step: &Step| step.resource.after.iter().filter_map(|key| numbers.get(key).copied()).collect();
    steps.iter().enumerate().map(|(number, step)| (number, of(step))).collect()
}

/// The first of those that wait for nothing, in the plan's order.
fn ready(waiting: &HashMap<usize, HashSet<usize>>, most: usize) -> Vec<usize> {
    let mut free: Vec<usize> =
        waiting.iter().filter(|(_, needs)| needs.is_empty()).map(|(number, _)| *number).collect();
    free.sort_unstable();
    free.truncate(most);
    free
}

async fn one(live: &Live, planned: &Step, adopt: bool) -> anyhow::Result<()> {
    if planned.action == Action::Delete {
        return delete(live, planned).await;
    }
    let deadline = Instant::now() + live.client.retry_for();
    let mut delays = delays();
    // The plan's own look is recent enough for the first try, but not where an earlier step changed what is wanted here.
    let mut now = step(live, planned.resource.clone(), planned.live.clone(), adopt);
    loop {
        may_do(planned, &now)?;
        match unless_stopped(live, act(live, &now)).await {
            Ok(()) if now.action == Action::Replace => {
                // Deleted; now it is to be made.
                now = look(live, &planned.resource, adopt).await?;
                if now.action == Action::Keep {
                    return Ok(());
                }
            }
            Ok(()) => return Ok(()),
            Err(error) if passes(&error) => {
                let asked_for = error.downcast_ref::<ApiError>().and_then(ApiError::retry_after);
                let delay = delays.next().unwrap_or_default().max(asked_for.unwrap_or_default());
                tracing::debug!("again in {} ms: {}: {error:#}", delay.as_millis(), planned.resource.key());
                pause(live, delay, deadline, error).await?;
                now = look(live, &planned.resource, adopt).await?;
            }
            Err(error) => return Err(error),
        }
    }
}

async fn look(live: &Live, resource: &Resource, adopt: bool) -> anyhow::Result<Step> {
    let found = live.read(resource).await?;
    Ok(step(live, resource.clone(), found, adopt))
}

async fn act(live: &Live, step: &Step) -> anyhow::Result<()> {
    let none = Value::Null;
    let there = step.live.as_ref().unwrap_or(&none);
    match step.action {
        Action::Create => live.create(&step.resource).await,
        Action::Change => live.change(&step.resource, there, &step.differences).await,
        Action::Replace => live.delete(&step.resource, there).await,
        Action::Delete | Action::Keep | Action::Use | Action::Foreign => Ok(()),
    }
}

async fn delete(live: &Live, step: &Step) -> anyhow::Result<()> {
    let deadline = Instant::now() + live.client.retry_for();
    let mut delays = delays();
    let mut found = step.live.clone();
    loop {
        // Somebody may have made another of this name since the plan was shown.
        let Some(there) = found.filter(|there| step.resource.is_ours(there)) else { return Ok(()) };
        match unless_stopped(live, live.delete(&step.resource, &there)).await {
            Ok(()) => return Ok(()),
            Err(error) if passes(&error) => {
                pause(live, delays.next().unwrap_or_default(), deadline, error).await?;
                found = live.read(&step.resource).await?;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Waits before the next try, unless that would be too late or a stop comes: then the failure stands.
async fn pause(live: &Live, delay: Duration, deadline: Instant, error: anyhow::Error) -> anyhow::Result<()> {
    if Instant::now() + delay > deadline {
        return Err(error);
    }
    tokio::select! {
        () = sleep(delay) => Ok(()),
        () = live.stop.cancelled() => Err(error),
    }
}

/// Calls that change something are not cut off by a stop; waiting for them to take effect is.
async fn unless_stopped(live: &Live, acting: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::select! {
        acted = acting => acted,
        () = stopped_for_long(live) => bail!("stopped while it was under way; it may yet be done"),
    }
}

/// What was agreed to is what is done: never more than the plan showed.
fn may_do(planned: &Step, now: &Step) -> anyhow::Result<()> {
    match now.action {
        Action::Foreign => {
            bail!("it exists by now, is not cdnwarm's and not as it must be; see the plan again")
        }
        Action::Replace if planned.action != Action::Replace => {
            bail!("it changed since the plan was made, and would have to be made anew; see the plan again")
        }
        _ => Ok(()),
    }
}

fn passes(error: &anyhow::Error) -> bool {
    error.downcast_ref::<ApiError>().is_some_and(ApiError::passes_with_time)
}

/// As long as a call may take after a stop; what is begun at Google's side goes on there.
async fn stopped_for_long(live: &Live) {
    live.stop.cancelled().await;
    sleep(Duration::from_secs(5)).await;
}

/// Asks a person, who must be there.
///
/// # Errors
/// Nobody to ask, another answer, or `stop`.
pub(super) async fn ask(
    question: &str,
    wanted: &[&str],
    instead: &str,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    use std::io::{IsTerminal, Write};
    if !std::io::stdin().is_terminal() {
        let why = anyhow::anyhow!("nobody is here to ask ({question}): {instead}");
        return Err(UsageError::new(why).into());
    }
    eprint!("{question} ");
    std::io::stderr().flush().context("asking")?;
    // A thread of its own: Ctrl-C must work while nobody answers.
    let line = tokio::task::spawn_blocking(|| {
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer).map(|_| answer)
    });
    let answer = tokio::select! {
        line = line => line.context("asking")?.context("reading the answer")?,
        () = stop.cancelled() => bail!("stopped; nothing was changed"),
    };
    if !wanted.contains(&answer.trim()) {
        bail!("nothing was changed");
    }
    Ok(())
}
