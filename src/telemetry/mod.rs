//! What is seen from outside: log lines, who this instance is, health, the status line, and where every role's
//! metrics begin.

pub(crate) mod health;
pub(crate) mod instance;
mod log_queue;
pub(crate) mod logs;
pub(crate) mod metrics;
mod outcome_line;
pub(crate) mod outcomes;
pub(crate) mod status;
pub(crate) mod trace;
