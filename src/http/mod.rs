//! HTTP as it is served: one listener for HTTP/1.1 and h2c, bounded, and drained at the end.
//!
//! It knows nothing of what the requests mean. Requests to origins are `warm`'s.

mod server;

pub(crate) use server::Server;
