//! Starts the process. All else is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    cdnwarm::start(cdnwarm::cli::Cli::from_process())
}
