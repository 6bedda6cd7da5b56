//! Everything with a socket or a process, as one test binary: librdkafka is linked once.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail like tests")]

mod auth;
mod bad_input;
mod bridge_faults;
mod bridge_life;
mod bridge_poison;
mod check;
mod demo;
mod edge;
mod embedded_pubsub;
mod fetch;
mod hostile_clients;
mod hostile_origins;
mod house;
mod json_parsing;
mod metrics;
mod outages;
mod panic;
mod pipeline;
mod pipeline_push;
mod produce;
mod proxy;
mod push;
mod seen;
mod serve_stop;
mod setup;
mod setup_contract;
mod setup_faults;
mod setup_person;
mod support;
