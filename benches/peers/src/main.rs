//! The command: a run, or one of the children that a run starts.

use clap::{Parser, Subcommand};
use polybolt_peers::{arguments, child, peer, plot, run};

#[derive(Debug, Parser)]
#[command(version, about, args_conflicts_with_subcommands = true, after_help = arguments::HELP)]
struct Command {
    #[command(subcommand)]
    child: Option<Role>,
    #[command(flatten)]
    run: arguments::Arguments,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// One peer in a process of its own; a run starts these.
    #[command(hide = true)]
    Child(child::Arguments),
    /// Draws the plots of docs/benchmarks.md from the JSON of runs.
    Plot(plot::Arguments),
}

fn main() -> peer::Result<()> {
    match Command::parse() {
        Command { child: Some(Role::Child(arguments)), .. } => child::run(&arguments),
        Command { child: Some(Role::Plot(arguments)), .. } => plot::run(&arguments),
        Command { run, .. } => run::run(&run),
    }
}
