//! What is seen from outside: log lines and who this instance is. Metrics and health beyond HTTP come here too.

pub(crate) mod instance;
pub(crate) mod logs;
