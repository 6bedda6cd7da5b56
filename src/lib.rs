//! The map.
#![allow(dead_code, missing_docs)]
pub mod demo;
pub mod outcome;
pub mod request;
pub mod serve;
pub mod shutdown;
pub mod usage;
pub mod verdict;
pub mod warm;
