//! Starts the process. All else is in the library.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    cdnwarm::start(cdnwarm::cli::Cli::parse())
}
