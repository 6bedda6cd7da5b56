//! `cdnwarm demo`: the whole road on one machine.

pub mod pubsub;
