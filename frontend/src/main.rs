//! The `polybolt` command.
#![forbid(unsafe_code)]

mod serve;
mod offline;
mod report;
mod check;
mod status;
mod reshard;
mod pace;

use clap::{Parser, Subcommand};
use std::process::ExitCode;
use tikv_jemalloc_ctl::{Access, AsName};
use tikv_jemallocator::Jemalloc;

// Buffers are filled by some threads and let go by others; what is free has to go back to the system.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// How long the allocator keeps pages that are free, in milliseconds. Its default of ten seconds keeps as much
/// as all write buffers hold, at a high rate of writes (the soak in `benches` shows it).
const FREE_PAGES_MS: isize = 1000;

/// Of the arena of this thread, and of those that come.
fn give_free_pages_back_soon() {
    for name in [b"arena.0.dirty_decay_ms\0".as_slice(), b"arenas.dirty_decay_ms\0".as_slice()] {
        // Without it the server is as right, only larger.
        name.name().write(FREE_PAGES_MS).ok();
    }
}

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
    /// Changes how keys are split into files, of a server while it serves or of a data directory.
    Reshard(reshard::Reshard),
    /// Shows how fast a server takes out what compactions leave behind, and changes it until its next start.
    CompactionPace(pace::Pace),
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
    give_free_pages_back_soon();
    let outcome = match Arguments::parse().command {
        Command::Serve(serve) => serve.run(),
        Command::Status(status) => status.run(),
        Command::Reshard(reshard) => reshard.run(),
        Command::CompactionPace(pace) => pace.run(),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_pages_go_back_within_a_second() {
        give_free_pages_back_soon();
        for name in [b"arena.0.dirty_decay_ms\0".as_slice(), b"arenas.dirty_decay_ms\0".as_slice()] {
            let kept: isize = name.name().read().expect("the allocator's setting");
            assert_eq!(kept, FREE_PAGES_MS);
        }
    }
}
