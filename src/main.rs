//! Starts the process. All else is in the library.

use std::process::ExitCode;

/// Linked for its `malloc` (its feature `override`), which Rust's allocator calls, and librdkafka, which allocates each record
/// on one thread and frees it on another: what glibc is slow at. The crate's own `MiMalloc` asks for each block by its alignment;
/// beyond a kilobyte that is the long way.
use mimalloc as _;

fn main() -> ExitCode {
    cdnwarm::start(cdnwarm::cli::Cli::from_process())
}
