//! Whether this process can do its work (ready) and whether it is worth keeping (live), condition by condition.
//!
//! Nothing here logs: who finds a condition broken says so, once and with its own words.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;

/// All conditions of one process. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Health(Arc<Conditions>);

#[derive(Debug, Default)]
struct Conditions {
    ready: Mutex<Vec<Condition>>,
    live: Mutex<Vec<Condition>>,
    asked: Mutex<Vec<Asked>>,
}

/// What is found out whenever somebody asks.
struct Asked {
    name: &'static str,
    problem: Box<dyn Fn() -> Option<String> + Send + Sync>,
}

impl fmt::Debug for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl Health {
    /// The condition of this name that the process needs in order to do its work. It starts broken ("starting"), so
    /// that nothing is ready by omission. Asking again gives the same condition.
    pub(crate) fn condition(&self, name: &'static str) -> Condition {
        find_or_add(&self.0.ready, name, Some("starting"))
    }

    /// The condition of this name without which only a restart helps. It starts kept: a process that takes its time to
    /// start must not be restarted for it.
    pub(crate) fn live_condition(&self, name: &'static str) -> Condition {
        find_or_add(&self.0.live, name, None)
    }

    /// One more condition that the process needs in order to do its work: `problem`, which is to be quick, says why it is
    /// broken, if so, whenever somebody asks.
    pub(crate) fn ask(
        &self,
        name: &'static str,
        problem: impl Fn() -> Option<String> + Send + Sync + 'static,
    ) {
        lock(&self.0.asked).push(Asked { name, problem: Box::new(problem) });
    }

    /// Why this process is not ready, one line a condition; nothing where it is. What is not live is not ready either.
    pub(crate) fn problems(&self) -> Vec<String> {
        let (ready, asked) = (lock(&self.0.ready), lock(&self.0.asked));
        if ready.is_empty() && asked.is_empty() {
            return vec!["starting".to_owned()];
        }
        let told =
            ready.iter().chain(lock(&self.0.live).iter()).filter_map(Condition::problem).collect::<Vec<_>>();
        let asked =
            asked.iter().filter_map(|Asked { name, problem }| Some(format!("{name}: {}", problem()?)));
        told.into_iter().chain(asked).collect()
    }

    /// Why this process should be restarted, one line a condition; nothing where it should not.
    pub(crate) fn deadly_problems(&self) -> Vec<String> {
        lock(&self.0.live).iter().filter_map(Condition::problem).collect()
    }
}

/// As a collector it shows whether the process is ready, under the registry's prefix.
impl Collector for Health {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let ready = ConstGauge::new(i64::from(self.problems().is_empty()));
        let help = "Whether this process can do its work: 1 where GET /ready answers 200, else 0.";
        ready.encode(encoder.encode_descriptor("ready", help, None, MetricType::Gauge)?)
    }
}

/// One condition. Clones are the same condition; all of them may be set from any thread.
#[derive(Debug, Clone)]
pub(crate) struct Condition(Arc<State>);

#[derive(Debug)]
struct State {
    name: &'static str,
    broken: Mutex<Option<String>>,
}

impl Condition {
    /// From here on it is kept. Cheap where it is already.
    pub(crate) fn ok(&self) {
        lock(&self.0.broken).take();
    }

    /// From here on it is broken, for this reason.
    pub(crate) fn not_ok(&self, reason: impl Into<String>) {
        let reason = reason.into();
        *lock(&self.0.broken) = Some(reason);
    }

    fn problem(&self) -> Option<String> {
        lock(&self.0.broken).as_ref().map(|reason| format!("{}: {reason}", self.0.name))
    }
}

fn find_or_add(conditions: &Mutex<Vec<Condition>>, name: &'static str, broken: Option<&str>) -> Condition {
    let mut conditions = lock(conditions);
    if let Some(known) = conditions.iter().find(|condition| condition.0.name == name) {
        return known.clone();
    }
    let condition = Condition(Arc::new(State { name, broken: Mutex::new(broken.map(str::to_owned)) }));
    conditions.push(condition.clone());
    condition
}

/// A thread that panicked with the lock has left a whole value behind: each is written in one step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_ready_once_every_condition_is_kept_and_only_while_all_are() {
        let health = Health::default();
        assert_eq!(health.problems(), ["starting"], "nothing has said what it needs yet");
        let (kafka, pubsub) = (health.condition("kafka"), health.condition("pubsub"));
        assert_eq!(health.problems(), ["kafka: starting", "pubsub: starting"]);
        kafka.ok();
        assert_eq!(health.problems(), ["pubsub: starting"]);
        pubsub.ok();
        assert!(health.problems().is_empty());
        kafka.not_ok("no broker");
        kafka.not_ok("no partition");
        assert_eq!(health.problems(), ["kafka: no partition"]);
        kafka.ok();
        assert!(health.problems().is_empty());
    }

    #[test]
    fn it_lives_from_the_start_and_what_does_not_live_is_not_ready() {
        let health = Health::default();
        let (ready, live) = (health.condition("kafka"), health.live_condition("poll"));
        assert!(health.deadly_problems().is_empty());
        ready.ok();
        assert!(health.problems().is_empty());
        live.not_ok("has not polled for 60 s");
        assert_eq!(health.deadly_problems(), ["poll: has not polled for 60 s"]);
        assert_eq!(health.problems(), ["poll: has not polled for 60 s"]);
        ready.not_ok("away");
        live.ok();
        assert!(health.deadly_problems().is_empty(), "what is not ready may live");
    }

    #[test]
    fn what_is_asked_for_counts_as_it_is_at_that_moment() {
        let health = Health::default();
        let kept = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let seen = kept.clone();
        let problem =
            move || (!seen.load(std::sync::atomic::Ordering::Relaxed)).then(|| "none yet".to_owned());
        health.ask("keys", problem);
        assert_eq!(health.problems(), ["keys: none yet"]);
        kept.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(health.problems().is_empty());
    }

    #[test]
    fn a_name_is_one_condition_from_every_clone_and_thread() {
        let health = Health::default();
        let first = health.condition("kafka");
        let again = health.clone().condition("kafka");
        std::thread::scope(|scope| {
            scope.spawn(|| again.ok());
        });
        assert!(health.problems().is_empty());
        first.not_ok("away");
        assert_eq!(health.problems().len(), 1);
    }
}
