//! `polybolt serve` beside etcd: the same load on both, by turns, with their data on a disk and in memory.
//!
//! Each server is a process of its own, with flags that mean the same; the generator is this process. A turn is
//! short, and after each turn it is the next server's, so that what else the machine does falls on all of them.
//! Before the first round all keys are put and both servers are closed and opened again. A third server answers
//! without a store: what the generator reaches there is the most that could be measured here.
//! Exit status 1 if polybolt is not as much better as it has to be (`rows.rs`), 2 if it could not be measured.

mod rows;
mod idle;
mod turn;
mod report;

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use polybolt_benches::machine;
use polybolt_benches::server::{Program, Server, Side, version};
use report::{Measured, Place, Report, short};
use rows::{ROWS, Row, Shape};
use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use turn::{fill, turn};

#[derive(Debug, Parser)]
struct Arguments {
    #[command(flatten)]
    shape: Shape,
    /// How often each server has its turn, in each row.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    rounds: u64,
    /// Rows to measure, separated by commas; all if not given.
    #[arg(long, value_delimiter = ',', value_parser = ROWS.map(|row| row.name))]
    rows: Vec<String>,
    /// A directory on a disk.
    #[arg(long, default_value = "target/servers")]
    disk: PathBuf,
    /// A directory in memory.
    #[arg(long, default_value = "/dev/shm")]
    tmpfs: PathBuf,
    /// Where to measure, separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "disk,tmpfs", value_parser = ["disk", "tmpfs"])]
    places: Vec<String>,
    /// The etcd to compare with; without it only polybolt is measured.
    #[arg(long, default_value = "etcd")]
    etcd: PathBuf,
    /// The polybolt command; beside this one if not given.
    #[arg(long)]
    polybolt: Option<PathBuf>,
    /// Write all that was measured to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Be the server that does nothing, on this port.
    #[arg(long, hide = true)]
    idle: Option<u16>,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|error| format!("{error}: seconds are needed"))?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

/// A quota that no run reaches.
const QUOTA: &str = "--quota-backend-bytes=17179869184";
/// For what a turn has left to do in the background.
const BETWEEN: Duration = Duration::from_millis(200);

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let outcome = runtime.map_err(|error| error.to_string()).and_then(|runtime| {
        runtime.block_on(async {
            match arguments.idle {
                Some(port) => idle::serve(port, arguments.shape.value_bytes).await.map(|()| true),
                None => run(&arguments).await,
            }
        })
    });
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("the servers could not be compared: {error}");
            ExitCode::from(2)
        }
    }
}

/// Who is measured, with versions.
fn programs(arguments: &Arguments) -> Result<(Vec<Program>, BTreeMap<&'static str, String>), String> {
    let this = std::env::current_exe().map_err(|error| error.to_string())?;
    let polybolt = arguments.polybolt.clone().unwrap_or_else(|| this.with_file_name("polybolt"));
    let mut versions = BTreeMap::new();
    let ours = version(&polybolt, "version").ok_or_else(|| {
        let build = "cargo build --release -p polybolt-frontend";
        format!("{} cannot be run: build it with `{build}`, or name it with --polybolt", polybolt.display())
    })?;
    versions.insert(Side::Polybolt.name(), ours.trim_start_matches("polybolt ").to_owned());
    let flags = |flags: &[&str]| flags.iter().map(|flag| (*flag).to_owned()).collect::<Vec<_>>();
    let polybolt_flags = flags(&["serve", QUOTA, "--durability=sync", "--log-level=error"]);
    let mut programs = vec![Program { side: Side::Polybolt, path: polybolt, flags: polybolt_flags }];
    match version(&arguments.etcd, "--version") {
        Some(version) => {
            versions.insert(Side::Etcd.name(), version.trim_start_matches("etcd ").to_owned());
            let etcd_flags = flags(&["--name=default", QUOTA, "--log-level=error"]);
            programs.push(Program { side: Side::Etcd, path: arguments.etcd.clone(), flags: etcd_flags });
        }
        None => println!("{} cannot be run: only polybolt is measured", arguments.etcd.display()),
    }
    let value_bytes = vec![format!("--value-bytes={}", arguments.shape.value_bytes)];
    programs.push(Program { side: Side::Idle, path: this, flags: value_bytes });
    Ok((programs, versions))
}

async fn run(arguments: &Arguments) -> Result<bool, String> {
    let (programs, versions) = programs(arguments)?;
    let rows: Vec<&Row> = ROWS.iter().filter(|row| is_named(&arguments.rows, row.name)).collect();
    #[expect(clippy::disallowed_methods, reason = "a report says when it was made")]
    let begun = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned();
    let flags = programs.iter().map(|program| (program.side.name(), program.flags.clone())).collect();
    let mut report = Report {
        machine: machine(),
        kernel,
        begun,
        versions,
        flags,
        shape: arguments.shape.clone(),
        seconds: arguments.shape.seconds(),
        rounds: arguments.rounds,
        places: Vec::new(),
    };
    for (name, dir) in [("disk", &arguments.disk), ("tmpfs", &arguments.tmpfs)] {
        if is_named(&arguments.places, name) {
            report.places.push(place(name, dir, &programs, &rows, arguments).await?);
        }
    }
    report.print();
    if let Some(path) = &arguments.json {
        report.write(path)?;
    }
    Ok(report.is_enough())
}

fn is_named(names: &[String], name: &str) -> bool {
    names.is_empty() || names.iter().any(|named| named == name)
}

/// All turns with the data under `dir`.
async fn place(
    name: &'static str,
    dir: &Path,
    programs: &[Program],
    rows: &[&Row],
    arguments: &Arguments,
) -> Result<Place, String> {
    let failed = |error: std::io::Error| format!("{}: {error}", dir.display());
    std::fs::create_dir_all(dir).map_err(failed)?;
    let scratch = tempfile::Builder::new().prefix("servers-").tempdir_in(dir).map_err(failed)?;
    let file_system = file_system(scratch.path()).unwrap_or_default();
    let mut servers = start(programs, scratch.path())?;
    for server in servers.iter().filter(|server| server.side != Side::Idle) {
        for row in rows {
            fill(row, &arguments.shape, server, &bar(&format!("{name}, {}", server.side.name()))).await?;
        }
    }
    // What is measured is what a store reads from its files.
    servers.into_iter().try_for_each(Server::stop)?;
    servers = start(programs, scratch.path())?;
    let mut measured: Vec<Measured> =
        rows.iter().map(|row| Measured { row: row.name, turns: BTreeMap::new() }).collect();
    for round in 0..arguments.rounds {
        for (row, measured) in rows.iter().zip(&mut measured) {
            // Whoever comes first in one round comes later in the next.
            let first = usize::try_from(round).unwrap_or(0) % servers.len();
            for server in servers[first..].iter().chain(&servers[..first]) {
                tokio::time::sleep(BETWEEN).await;
                let label = format!(
                    "{name}, round {} of {}, {}: {}",
                    round + 1,
                    arguments.rounds,
                    row.name,
                    server.side.name()
                );
                let turn = turn(row, &arguments.shape, server, round + 1, &bar(&label)).await?;
                println!(
                    "{label:40} {} requests/s, p50 {} ms, p99 {} ms, {} us CPU",
                    short(turn.per_second),
                    short(turn.p50 / 1000.0),
                    short(turn.p99 / 1000.0),
                    short(turn.server_cpu)
                );
                measured.turns.entry(server.side).or_default().push(turn);
            }
        }
    }
    servers.into_iter().try_for_each(Server::stop)?;
    Ok(Place { name, file_system, rows: measured })
}

fn start(programs: &[Program], dir: &Path) -> Result<Vec<Server>, String> {
    programs.iter().map(|program| program.start(dir)).collect()
}

/// Shown only where somebody looks.
fn bar(label: &str) -> ProgressBar {
    if !std::io::stdout().is_terminal() || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{prefix} {elapsed} [{bar:30}] {msg}");
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar())).with_prefix(label.to_owned())
}

/// The kind of file system that a directory is on.
fn file_system(dir: &Path) -> Option<String> {
    let dir = dir.canonicalize().ok()?;
    let mounts = std::fs::read_to_string("/proc/mounts").ok()?;
    let mounts = mounts.lines().filter_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        Some((fields.next()?, fields.next()?))
    });
    let (_, kind) = mounts.filter(|(at, _)| dir.starts_with(at)).max_by_key(|(at, _)| at.len())?;
    Some(kind.to_owned())
}
