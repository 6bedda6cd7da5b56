//! A null Pub/Sub: the far end of the bridge's benches and fault runs.
//!
//! It speaks `google.pubsub.v1.Publisher` (`Publish` and `GetTopic`) over plain-text HTTP/2, counts, acknowledges, and
//! fails where it is told to. [`server`] takes connections and [`service`] answers calls; [`scan`] reads a request
//! without decoding it; [`stats`], [`record`] and [`faults`] are what it counts, writes down and breaks; [`control`] is
//! the HTTP/1.1 side by which a harness reads and steers it.

pub mod control;
pub mod faults;
pub mod grpc;
pub mod record;
pub mod scan;
pub mod server;
pub mod service;
pub mod stats;
