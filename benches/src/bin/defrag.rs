//! What `etcdctl defrag` costs those who put and get meanwhile, on `polybolt serve` and on etcd.
//!
//! ```text
//! cargo build --release -p polybolt-frontend
//! cargo run --release -p polybolt-benches --bin defrag -- --dir DIR
//! ```
//!
//! A store of about 1 GB. Each pair overwrites a part of it and compacts that, takes a window of puts and gets at a fixed
//! rate, and then one in which `etcdctl defrag` runs. Latencies are from when a call was due. Medians are of the pairs'
//! ratios; what is live are the keys and values of all revisions that are kept.

use clap::Parser;
use indicatif::ProgressBar;
use polybolt_benches::server::{Program, Server, Side, version};
use polybolt_benches::window::median;
use polybolt_benches::{machine, mib, now};
use polybolt_frontend::bench::{Latency, Load, Options, Rate, Report, prepare, run};
use polybolt_frontend::proto::etcdserverpb as pb;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tonic::transport::Endpoint;

/// What a defragmentation costs those beside it.
#[derive(Debug, Parser)]
struct Args {
    /// Keys of 56 bytes, with values of 512 bytes.
    #[arg(long, default_value_t = 1_750_000)]
    keys: u64,
    /// An empty directory for the data of each server.
    #[arg(long)]
    dir: PathBuf,
    /// Seconds of a window.
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Puts a second, and as many gets.
    #[arg(long, default_value_t = 500)]
    rate: u32,
    /// Percent of the keys that are overwritten before each pair of windows.
    #[arg(long, default_value_t = 30)]
    percent: u64,
    /// Pairs of windows of polybolt.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    pairs: u64,
    /// Those of etcd; 0 is no etcd.
    #[arg(long, default_value_t = 3)]
    etcd_pairs: u64,
    /// The etcd to compare with.
    #[arg(long, default_value = "etcd")]
    etcd: PathBuf,
    /// The client that asks for the defragmentation.
    #[arg(long, default_value = "etcdctl")]
    etcdctl: PathBuf,
    /// The polybolt command; beside this one if not given.
    #[arg(long)]
    polybolt: Option<PathBuf>,
}

const KEY_BYTES: usize = 56;
const VALUE_BYTES: usize = 512;
/// For what a compaction leaves to do in the background.
const SETTLES: Duration = Duration::from_secs(8);
/// When in its window the defragmentation begins.
const BEFORE: Duration = Duration::from_secs(2);
/// How long it may take.
const LONGEST: &str = "--command-timeout=300s";
const QUOTA: &str = "--quota-backend-bytes=17179869184";

type Outcome<T> = Result<T, String>;

/// A server and who asks it.
struct Target<'a> {
    args: &'a Args,
    server: Server,
    endpoint: String,
    /// At what it was compacted last.
    compacted: i64,
}

/// What a window saw.
struct Window {
    puts: Report,
    gets: Report,
}

impl Window {
    /// The longest put and get, in microseconds.
    fn longest(&self) -> [f64; 2] {
        [self.puts.latency.max, self.gets.latency.max]
    }
}

impl Target<'_> {
    fn load(&self, load: Load) -> Options {
        Options {
            load,
            endpoints: vec![self.endpoint.clone()],
            key_size: KEY_BYTES,
            val_size: VALUE_BYTES,
            key_space_size: self.args.keys,
            timeout: Duration::from_secs(120),
            clients: 64,
            conns: 4,
            total: None,
            ..Options::default()
        }
    }

    fn failed(&self, error: &dyn std::fmt::Display) -> String {
        format!("{}: {error}", self.server.side.name())
    }

    /// A load that has to be answered whole.
    async fn run(&self, options: &Options) -> Outcome<()> {
        let report = run(options, &ProgressBar::hidden(), &CancellationToken::new()).await;
        let report = report.map_err(|error| self.failed(&error))?;
        match report.errors.iter().next() {
            Some((code, failures)) => Err(format!("{} times {code}, at first: {}", failures.count, failures.first)),
            None => Ok(()),
        }
    }

    /// Overwrites some keys, all of them before the first time, and compacts that.
    async fn change(&mut self, seed: u64) -> Outcome<()> {
        let total = Some(self.args.keys * self.args.percent / 100);
        self.run(&Options { total, clients: 256, seed, ..self.load(Load::Overwrite) }).await?;
        self.compacted = self.status().await?.header.map_or(0, |header| header.revision);
        self.etcdctl(&["compact", "--physical", &self.compacted.to_string()]).await?;
        tokio::time::sleep(SETTLES).await;
        Ok(())
    }

    /// A window of puts and gets; `meanwhile` begins with them.
    async fn window<T>(&self, seed: u64, meanwhile: impl Future<Output = Outcome<T>>) -> Outcome<(Window, T)> {
        let duration = Some(Duration::from_secs(self.args.seconds));
        let rate = Rate::new(self.args.rate);
        let puts = Options { duration, rate, seed, ..self.load(Load::Overwrite) };
        let gets = Options { duration, rate, seed: seed + 1, ..self.load(Load::Range { serializable: false }) };
        let (bar, stop) = (ProgressBar::hidden(), CancellationToken::new());
        let puts = prepare(&puts, &bar, &stop).await.map_err(|error| self.failed(&error))?;
        let gets = prepare(&gets, &bar, &stop).await.map_err(|error| self.failed(&error))?;
        let (puts, gets, done) = tokio::join!(puts.run(&bar, &stop), gets.run(&bar, &stop), meanwhile);
        Ok((Window { puts, gets }, done?))
    }

    async fn status(&self) -> Outcome<pb::StatusResponse> {
        let endpoint =
            Endpoint::from_shared(format!("http://{}", self.endpoint)).map_err(|error| self.failed(&error))?;
        let channel = endpoint.connect().await.map_err(|error| self.failed(&error))?;
        let mut client = pb::maintenance_client::MaintenanceClient::new(channel);
        let status = client.status(pb::StatusRequest {}).await.map_err(|error| self.failed(&error))?;
        Ok(status.into_inner())
    }

    /// Bytes of keys and values of all revisions that are kept.
    fn live(&self, status: &pb::StatusResponse) -> u64 {
        let now = status.header.as_ref().map_or(0, |header| header.revision);
        (self.args.keys + (now - self.compacted).unsigned_abs()) * (KEY_BYTES + VALUE_BYTES) as u64
    }

    /// How long it took.
    async fn etcdctl(&self, words: &[&str]) -> Outcome<Duration> {
        let mut command = Command::new(&self.args.etcdctl);
        command.env("ETCDCTL_API", "3").arg(format!("--endpoints={}", self.endpoint)).arg(LONGEST).args(words);
        command.stdin(Stdio::null());
        let run = move || {
            let begun = now();
            command.output().map(|output| (output, begun.elapsed()))
        };
        let output = tokio::task::spawn_blocking(run).await.map_err(|error| error.to_string())?;
        let (output, took) = output.map_err(|error| format!("etcdctl: {error}"))?;
        let said = String::from_utf8_lossy(&output.stderr);
        if output.status.success() { Ok(took) } else { Err(format!("etcdctl {}: {}", words.join(" "), said.trim())) }
    }

    /// A window in which the server is defragmented: with how long that took.
    async fn defragmented(&self, seed: u64) -> Outcome<(Window, Duration)> {
        let defragment = async {
            tokio::time::sleep(BEFORE).await;
            self.etcdctl(&["defrag"]).await
        };
        let (window, took) = self.window(seed, defragment).await?;
        if took + BEFORE > Duration::from_secs(self.args.seconds) {
            println!("  the defragmentation took {:.1} s, longer than its window: --seconds", took.as_secs_f64());
        }
        Ok((window, took))
    }
}

fn show(what: &str, window: &Window) {
    for (kind, report) in [("puts", &window.puts), ("gets", &window.gets)] {
        let latency: Latency = report.latency;
        let [p50, p99, p999, max] = [latency.p50, latency.p99, latency.p999, latency.max].map(|micros| micros / 1000.0);
        println!(
            "  {what:<13} {kind}: p50 {p50:>8.3} ms, p99 {p99:>8.3}, p99.9 {p999:>8.3}, longest {max:>8.3}; {}",
            latency.count
        );
        if report.failed + report.unsent > 0 {
            println!("  {what:<13} {kind}: {} failed, {} could not be sent in time", report.failed, report.unsent);
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn share(bytes: i64, live: u64) -> f64 {
    bytes as f64 / live as f64
}

async fn measure(args: &Args, program: &Program, pairs: u64) -> Outcome<()> {
    let server = program.start(&args.dir)?;
    let endpoint = format!("127.0.0.1:{}", server.port);
    let mut target = Target { args, server, endpoint, compacted: 0 };
    println!("{}: {}", program.side.name(), version(&program.path, version_word(program.side)).unwrap_or_default());
    let (mut puts, mut gets, mut sizes, mut longest) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for pair in 0..pairs {
        target.change(10 * pair + 1).await?;
        let (control, ()) = target.window(10 * pair + 2, async { Ok(()) }).await?;
        let before = target.status().await?;
        let (beside, took) = target.defragmented(10 * pair + 4).await?;
        let after = target.status().await?;
        let (was, is) = (share(before.db_size, target.live(&before)), share(after.db_size, target.live(&after)));
        println!(
            " pair {}: {} of {} live ({was:.3}) to {} of {} ({is:.3}) in {:.1} s",
            pair + 1,
            mib(before.db_size.unsigned_abs()),
            mib(target.live(&before)),
            mib(after.db_size.unsigned_abs()),
            mib(target.live(&after)),
            took.as_secs_f64()
        );
        show("alone", &control);
        show("defragmented", &beside);
        let ([put, get], [put_alone, get_alone]) = (beside.longest(), control.longest());
        puts.push(put / put_alone);
        gets.push(get / get_alone);
        longest.push(put.max(get) / 1000.0);
        sizes.push(is);
    }
    println!(
        "{}, medians of {pairs} pairs: longest put {:.2}x, longest get {:.2}x (bar 2), longest of both {:.1} ms; file {:.3} \
         of what is live (bar 1.1)",
        program.side.name(),
        median(puts),
        median(gets),
        median(longest),
        median(sizes)
    );
    target.server.stop()
}

fn version_word(side: Side) -> &'static str {
    if side == Side::Etcd { "--version" } else { "version" }
}

async fn compare(args: &Args) -> Outcome<()> {
    let this = std::env::current_exe().map_err(|error| error.to_string())?;
    let polybolt = args.polybolt.clone().unwrap_or_else(|| this.with_file_name("polybolt"));
    let flags = |flags: &[&str]| flags.iter().map(|flag| (*flag).to_owned()).collect::<Vec<_>>();
    // Else the vacuum does before and in the control window what the defragmentation is asked for.
    let ours = ["serve", QUOTA, "--durability=sync", "--log-level=error", "--vacuum-bytes-per-second=0"];
    let theirs = ["--name=default", QUOTA, "--log-level=error"];
    println!("{}; {} keys, {} puts and as many gets a second", machine(), args.keys, args.rate);
    std::fs::create_dir_all(&args.dir).map_err(|error| format!("{}: {error}", args.dir.display()))?;
    measure(args, &Program { side: Side::Polybolt, path: polybolt, flags: flags(&ours) }, args.pairs).await?;
    if args.etcd_pairs == 0 {
        return Ok(());
    }
    if !is_there(&args.etcd) {
        println!("{} cannot be run: only polybolt is measured", args.etcd.display());
        return Ok(());
    }
    measure(args, &Program { side: Side::Etcd, path: args.etcd.clone(), flags: flags(&theirs) }, args.etcd_pairs).await
}

fn is_there(etcd: &Path) -> bool {
    version(etcd, "--version").is_some()
}

fn main() -> ExitCode {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    match runtime.map_err(|error| error.to_string()).and_then(|runtime| runtime.block_on(compare(&args))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("defrag: {error}");
            ExitCode::FAILURE
        }
    }
}
