//! What is seen from outside: log lines, who this instance is, health, and where every role's metrics begin.

#[allow(dead_code, reason = "no role shows it yet")]
pub(crate) mod health;
pub(crate) mod instance;
pub(crate) mod logs;
#[allow(dead_code, reason = "no role shows it yet")]
pub(crate) mod metrics;
