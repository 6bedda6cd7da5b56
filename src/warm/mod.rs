//! The one door to origins.
pub mod addresses;
