//! Everything with a socket, as one test binary.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail like tests")]

mod embedded_pubsub;
