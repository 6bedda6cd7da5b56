//! What is seen from outside: log lines, who this instance is, health, the status line, and where every role's
//! metrics begin.

#[allow(dead_code, reason = "no role shows it yet")]
pub(crate) mod health;
pub(crate) mod instance;
pub(crate) mod logs;
#[allow(dead_code, reason = "no role shows it yet")]
pub(crate) mod metrics;
#[allow(dead_code, reason = "no role shows it yet")]
pub(crate) mod status;
