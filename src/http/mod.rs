//! HTTP as it is served: one listener for HTTP/1.1 and h2c, bounded, and drained at the end; and the endpoint for scrapers
//! and probes, which is the same in every role.
//!
//! It knows nothing of what a role's own requests mean. Requests to origins are `warm`'s.

mod connection;
mod metrics;
mod server;
mod workers;

pub(crate) use metrics::{MetricsArgs, MetricsServer};
pub(crate) use server::Server;
pub(crate) use workers::Workers;
