//! The push endpoint.
pub(crate) mod envelope;
