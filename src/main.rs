//! Starts the process. All else is in the library.

use std::process::ExitCode;

/// Also for librdkafka, which allocates each record on one thread and frees it on another: what glibc is slow at.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cdnwarm::start(cdnwarm::cli::Cli::from_process())
}
