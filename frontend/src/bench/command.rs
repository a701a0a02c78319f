//! `polybolt bench`: flags with the names of etcd's own benchmark where it has them.

use super::options::{Load, Options};
use super::run::run;
use super::schedule::Rate;
use super::tally::{Latency, Report};
use clap::{Args, Subcommand, ValueEnum};
use comfy_table::{CellAlignment, Table, presets};
use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Asks a server of the etcd v3 API, polybolt or etcd, for as much as it can answer or at a rate, and shows how
/// fast it answered. Every answer is checked. Exit status 1 if any request failed.
#[derive(Debug, Args)]
pub struct Bench {
    #[command(subcommand)]
    load: Subject,
}

#[derive(Debug, Subcommand)]
enum Subject {
    /// Puts keys, which may be new.
    Put(Common),
    /// Puts keys that are all there; those that are not are put first.
    Overwrite(Common),
    /// Gets one key with each request.
    Range {
        #[command(flatten)]
        reading: Reading,
        #[command(flatten)]
        common: Common,
    },
    /// Lists keys of a prefix with each request, values included.
    List {
        /// How many keys a prefix has.
        #[arg(long, default_value_t = 500)]
        list_keys: u64,
        /// The most that are listed, beside the count of all; 0 is all.
        #[arg(long, default_value_t = 0)]
        limit: u32,
        #[command(flatten)]
        reading: Reading,
        #[command(flatten)]
        common: Common,
    },
    /// Updates keys by compare-and-swap, as Kubernetes does.
    Txn(Common),
    /// Puts keys under watchers of all of them; an event's latency is from when its put was due to its arrival.
    Watch {
        /// Streams of watchers.
        #[arg(long, default_value_t = 10)]
        streams: u64,
        /// Watchers on each stream.
        #[arg(long, default_value_t = 10)]
        watch_per_stream: u64,
        #[command(flatten)]
        common: Common,
    },
    /// Does what a Kubernetes API server does: of 100 requests, 50 get a key, 10 list a prefix, 30 update a key
    /// by compare-and-swap, 5 create one and 5 delete it; beside a few watchers.
    Mixed {
        /// How many keys a listed prefix has.
        #[arg(long, default_value_t = 50)]
        list_keys: u64,
        /// Streams of watchers.
        #[arg(long, default_value_t = 2)]
        streams: u64,
        /// Watchers on each stream.
        #[arg(long, default_value_t = 2)]
        watch_per_stream: u64,
        #[command(flatten)]
        common: Common,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Consistency {
    /// Linearizable: the newest, whoever wrote it.
    L,
    /// Serializable: what the asked member has.
    S,
}

#[derive(Debug, Args)]
struct Reading {
    /// What an answer has to be.
    #[arg(long, value_enum, default_value = "l")]
    consistency: Consistency,
}

impl Reading {
    fn serializable(&self) -> bool {
        self.consistency == Consistency::S
    }
}

#[derive(Debug, Args)]
struct Common {
    /// Servers to ask, separated by commas; connections go to them by turns.
    #[arg(long, default_value = "127.0.0.1:2379", value_delimiter = ',', env = "ETCDCTL_ENDPOINTS")]
    endpoints: Vec<String>,
    /// Who asks, as name:password, if the server has users.
    #[arg(long, env = "ETCDCTL_USER", hide_env_values = true)]
    user: Option<String>,
    /// Clients; each has one request under way.
    #[arg(long, default_value_t = 1)]
    clients: u64,
    /// Connections that the clients share.
    #[arg(long, default_value_t = 1)]
    conns: u64,
    /// Requests to make after the warm-up; 10000 if there is no --duration. The run ends by the first of both.
    #[arg(long)]
    total: Option<u64>,
    /// How long to make requests after the warm-up.
    #[arg(long, value_parser = humantime::parse_duration)]
    duration: Option<Duration>,
    /// How long to make requests before that are not counted.
    #[arg(long, default_value = "0s", value_parser = humantime::parse_duration)]
    warmup: Duration,
    /// Requests a second of all clients together; 0 is as fast as answers come. With a rate the load is open:
    /// requests are due at even distances whatever the server does, and a latency counts from when its request
    /// was due, also if all clients were busy then. So a server that stalls does not hide the wait of others
    /// (no coordinated omission). Give enough --clients for rate times latency.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=10_000_000))]
    rate: u32,
    /// Bytes of a key, prefix included.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u64).range(..=1 << 20))]
    key_size: u64,
    /// Bytes of a value.
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u64).range(..=256 << 20))]
    val_size: u64,
    /// How many different keys there are.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(..=1_000_000_000))]
    key_space_size: u64,
    /// Take keys by turns, not at random.
    #[arg(long)]
    sequential_keys: bool,
    /// What all keys begin with.
    #[arg(long, default_value = "/bench/")]
    prefix: String,
    /// The seed of random keys and values.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How long an answer may take.
    #[arg(long, default_value = "30s", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// Write all that was measured to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl Common {
    fn options(self, load: Load) -> Options {
        let size = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
        Options {
            load,
            endpoints: self.endpoints,
            user: self.user,
            clients: self.clients,
            conns: self.conns,
            total: self.total.or_else(|| self.duration.is_none().then_some(10_000)),
            duration: self.duration,
            warmup: self.warmup,
            rate: Rate::new(self.rate),
            key_size: size(self.key_size),
            val_size: size(self.val_size),
            key_space_size: self.key_space_size,
            sequential_keys: self.sequential_keys,
            prefix: self.prefix,
            seed: self.seed,
            timeout: self.timeout,
            check: true,
        }
    }
}

impl Bench {
    /// Runs the load and prints its report; an error in words that say what to do.
    pub fn run(self) -> Result<(), String> {
        let (load, common) = match self.load {
            Subject::Put(common) => (Load::Put, common),
            Subject::Overwrite(common) => (Load::Overwrite, common),
            Subject::Range { reading, common } => (Load::Range { serializable: reading.serializable() }, common),
            Subject::List { list_keys, limit, reading, common } => {
                (Load::List { list_keys, limit: limit.into(), serializable: reading.serializable() }, common)
            }
            Subject::Txn(common) => (Load::Txn, common),
            Subject::Watch { streams, watch_per_stream, common } => (Load::Watch { streams, watch_per_stream }, common),
            Subject::Mixed { list_keys, streams, watch_per_stream, common } => {
                (Load::Mixed { list_keys, streams, watch_per_stream }, common)
            }
        };
        let json = common.json.clone();
        let options = common.options(load);
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
        let runtime = runtime.map_err(|error| format!("the system gives no threads: {error}"))?;
        let report = runtime.block_on(async {
            let stop = CancellationToken::new();
            let stopping = stop.clone();
            tokio::spawn(async move {
                if tokio::signal::ctrl_c().await.is_ok() {
                    stopping.cancel();
                }
            });
            run(&options, &bar(), &stop).await.map_err(|error| error.to_string())
        })?;
        if let Some(path) = json {
            let text = serde_json::to_string_pretty(&report).map_err(|error| error.to_string())?;
            std::fs::write(&path, text + "\n").map_err(|error| format!("--json {}: {error}", path.display()))?;
        }
        print(&report);
        verdict(&report)
    }
}

/// Shown only where somebody looks.
fn bar() -> ProgressBar {
    if !std::io::stdout().is_terminal() || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{elapsed} [{bar:40}] {msg}");
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn print(report: &Report) {
    let options = &report.options;
    let paced = options.rate.map(|rate| format!(" at {} a second", HumanCount(rate.per_second().into())));
    println!(
        "{}{}: {} clients on {} connections to {} (version {}); {} keys were put before",
        options.load.name(),
        paced.unwrap_or_default(),
        HumanCount(options.clients),
        HumanCount(options.conns),
        options.endpoints.join(", "),
        if report.server.is_empty() { "unknown" } else { &report.server },
        HumanCount(report.filled),
    );
    println!(
        "{} requests in {:.2} s: {:.0} a second; {} failed, {} updates in conflict",
        HumanCount(report.requests),
        report.seconds,
        report.per_second,
        HumanCount(report.failed),
        HumanCount(report.conflicts),
    );
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(["latency in ms", "count", "min", "mean", "p50", "p90", "p99", "p99.9", "max"]);
    for (operation, latency) in &report.operations {
        table.add_row(row(&format!("{operation:?}").to_lowercase(), latency));
    }
    if report.operations.len() > 1 {
        table.add_row(row("all", &report.latency));
    }
    if let Some(watch) = &report.watch {
        table.add_row(row("event", &watch.latency));
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    println!("{table}");
    if let Some(watch) = &report.watch {
        println!(
            "{} watchers got {} events; {} are missing, {} came out of order",
            HumanCount(watch.watchers),
            HumanCount(watch.events),
            HumanCount(watch.missing),
            HumanCount(watch.disorder),
        );
    }
    for (code, failures) in &report.errors {
        println!("{code}: {}, the first: {}", HumanCount(failures.count), failures.first);
    }
}

fn row(name: &str, latency: &Latency) -> Vec<String> {
    let Latency { count, min, mean, p50, p90, p99, p999, max } = *latency;
    let millis = [min, mean, p50, p90, p99, p999, max].map(|micros| format!("{:.3}", micros / 1000.0));
    [name.to_owned(), HumanCount(count).to_string()].into_iter().chain(millis).collect()
}

/// An error if the numbers are not those of a server that did what was asked.
fn verdict(report: &Report) -> Result<(), String> {
    let endpoints = report.options.endpoints.join(", ");
    if let Some((code, first)) = report.errors.iter().next() {
        return Err(format!(
            "{endpoints}: {} of {} requests failed, or a watch did; {code}: {}",
            report.failed,
            report.failed + report.requests + report.warmup_requests,
            first.first
        ));
    }
    if report.unsent > 0 {
        return Err(format!(
            "{endpoints} does not keep up with --rate: {} requests were due and never sent, so latencies are higher \
             than shown; give a lower --rate, or more --clients if the server has room",
            report.unsent
        ));
    }
    match &report.watch {
        Some(watch) if watch.missing + watch.disorder > 0 => Err(format!(
            "{endpoints}: watchers miss {} events, and {} came out of order",
            watch.missing, watch.disorder
        )),
        _ => Ok(()),
    }
}
