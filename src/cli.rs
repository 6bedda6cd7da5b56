//! The command line: one variant and one help line per role.

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::telemetry::logs::LogArgs;
use crate::{bridge, check, consume_direct, demo, produce, serve, setup};

/// Warms every CDN edge: from a Kafka record, through Pub/Sub, to a GET in each region, with the evidence.
///
/// Every option can also be given as the environment variable shown beside it; an option wins over its variable.
/// Exit status: 0 done, 1 failed, 2 usage.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true)]
pub struct Cli {
    #[command(flatten)]
    pub(crate) logs: LogArgs,

    #[command(subcommand)]
    pub(crate) command: Command,
}

impl Cli {
    /// Reads the command line and the environment; prints help, version or what is wrong and leaves where that is due.
    pub fn from_process() -> Self {
        let matches = Self::help_without_values().get_matches();
        // Both sides are derived from the same types, so this only fails where `get_matches` has already left.
        Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
    }

    /// Help names the environment's variables and keeps their values, among which there may be secrets, to itself.
    fn help_without_values() -> clap::Command {
        Self::command()
            .mut_args(|arg| arg.hide_env_values(true))
            .mut_subcommands(|role| role.mut_args(|arg| arg.hide_env_values(true)))
    }
}

/// The roles of this program.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Produce URLs to a Kafka topic: a sample, or a file's
    Produce(produce::Args),
    /// Move every record of a Kafka topic to a Pub/Sub topic, at least once
    Bridge(bridge::Args),
    /// Take Pub/Sub pushes and GET their URLs through the CDN edge next door
    Serve(serve::Args),
    /// GET the URLs of a Kafka topic directly, without Pub/Sub
    ConsumeDirect(consume_direct::Args),
    /// GET URLs through an edge from here, and say how warm it is, what shows it, and what to change
    Check(check::Args),
    /// Set up every region of a Google Cloud project from one file: show, do, look, undo
    Setup(Box<setup::Args>),
    /// Run the whole road on this machine: Kafka, Pub/Sub, regions with their edges, and an origin
    Demo(demo::Args),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::help_without_values().debug_assert();
    }
}
