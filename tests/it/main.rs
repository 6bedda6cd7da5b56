//! Everything with a socket, as one test binary.

mod embedded_pubsub;
