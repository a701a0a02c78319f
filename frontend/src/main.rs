//! The `polybolt` command.
#![forbid(unsafe_code)]

mod serve;
mod offline;
mod report;
mod check;
mod status;

use clap::{Parser, Subcommand};
use std::process::ExitCode;
use tikv_jemallocator::Jemalloc;

// Buffers are filled by some threads and let go by others; what is free has to go back to the system.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// An etcd-compatible server on an engine of several B+tree files.
#[derive(Debug, Parser)]
#[command(name = "polybolt", version, disable_version_flag = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serves the etcd v3 API.
    Serve(Box<serve::Serve>),
    /// Shows sizes and counts shard by shard, of a server or of a data directory.
    Status(status::Status),
    /// Lists all that is wrong with a data directory, and salvages what is not.
    #[command(alias = "verify")]
    Check(check::Check),
    /// Works with snapshots.
    #[command(subcommand)]
    Snapshot(offline::Snapshot),
    /// Loads a server, polybolt or etcd, and shows how fast it answers.
    Bench(Box<polybolt_frontend::bench::Bench>),
    /// Shows the version.
    Version,
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Serve(serve) => serve.run(),
        Command::Status(status) => status.run(),
        Command::Check(check) => return check.run(),
        Command::Snapshot(snapshot) => snapshot.run(),
        Command::Bench(bench) => bench.run(),
        Command::Version => {
            let api = polybolt_frontend::server::ETCD_VERSION;
            println!("polybolt {} (etcd API {api})", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("polybolt: {error}");
            ExitCode::FAILURE
        }
    }
}
