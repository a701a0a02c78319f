//! Memory under all that can stall at once: writers without a pause on a slow disk, watchers, snapshots,
//! streams of ranges and answers that nobody reads. Against the real command, over gRPC.
//!
//! Every second the server's memory and gauges are taken; the bound is its own gauge
//! `polybolt_memory_bound_bytes`. Afterwards the clients go, and within a minute all has to be back at its
//! size before.

mod raw;
mod clients;
mod server;
mod report;

use clap::Parser;
use clients::{Counts, Stalled};
use indicatif::{ProgressBar, ProgressStyle};
use polybolt_benches::{machine, mib, now};
use polybolt_frontend::proto::etcdserverpb as pb;
use polybolt_frontend::proto::etcdserverpb::kv_client::KvClient;
use polybolt_frontend::proto::etcdserverpb::maintenance_client::MaintenanceClient;
use server::{Sample, Server, Slow};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

#[derive(Debug, Parser)]
struct Arguments {
    /// How long.
    #[arg(long, default_value_t = 30.0)]
    minutes: f64,
    /// The command; beside this one if not given.
    #[arg(long)]
    server: Option<PathBuf>,
    /// Where the samples and curves go.
    #[arg(long, default_value = "target/soak")]
    out: PathBuf,
    /// Where the data goes; a new directory under the system's if not given.
    #[arg(long)]
    dir: Option<PathBuf>,
    #[command(flatten)]
    load: Load,
}

/// What the clients do, and what the server may take.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Load {
    /// Connections that write.
    #[arg(long, default_value_t = 16)]
    writers: u64,
    /// Writes under way on each.
    #[arg(long, default_value_t = 250)]
    ahead: usize,
    /// How many keys there are.
    #[arg(long, default_value_t = 5000)]
    keys: u64,
    /// Bytes of a value.
    #[arg(long, default_value_t = 4096)]
    value_bytes: usize,
    /// Clients of each kind that read nothing: watchers, snapshots, streams of ranges, ranges.
    #[arg(long, default_value_t = 4)]
    stalled: u64,
    /// How long each holds on before it begins anew.
    #[arg(long, default_value = "150", value_parser = seconds)]
    stall: Duration,
    /// Keys of a range that is not read.
    #[arg(long, default_value_t = 1000)]
    range_keys: i64,
    /// What every sync of the disk takes longer, in milliseconds.
    #[arg(long, default_value_t = 20)]
    sync_delay: u64,
    /// What every write takes longer.
    #[arg(long, default_value_t = 60)]
    write_delay: u64,
    /// --buffer-bytes of the server.
    #[arg(long, default_value_t = 32 << 20)]
    buffer_bytes: u64,
    /// --unread-bytes-max of the server.
    #[arg(long, default_value_t = 16 << 20)]
    unread_bytes: u64,
    /// --pin-age-max of the server, in seconds.
    #[arg(long, default_value_t = 120)]
    pin_age: u64,
    /// --pin-revisions-max of the server.
    #[arg(long, default_value_t = 100_000)]
    pin_revisions: u64,
    /// --auto-compaction-retention of the server, in seconds.
    #[arg(long, default_value_t = 10)]
    retention: u64,
}

fn seconds(text: &str) -> Result<Duration, String> {
    text.parse().map(Duration::from_secs_f64).map_err(|error| format!("{error}: seconds are needed"))
}

/// How long everything has to be back at its size before.
const SETTLE: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let outcome = runtime.map_err(|error| error.to_string()).and_then(|runtime| runtime.block_on(run(&arguments)));
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("the soak could not be run: {error}");
            ExitCode::from(2)
        }
    }
}

fn flags(load: &Load) -> Vec<String> {
    let flag = |name: &str, value: String| [format!("--{name}"), value];
    [
        flag("buffer-bytes", load.buffer_bytes.to_string()),
        flag("unread-bytes-max", load.unread_bytes.to_string()),
        flag("pin-age-max", format!("{}s", load.pin_age)),
        flag("pin-revisions-max", load.pin_revisions.to_string()),
        flag("auto-compaction-retention", format!("{}s", load.retention)),
        flag("quota-backend-bytes", "-1".to_owned()),
    ]
    .concat()
}

async fn run(arguments: &Arguments) -> Result<bool, String> {
    let load = &arguments.load;
    let failed = |error: std::io::Error| error.to_string();
    let scratch = tempfile::tempdir().map_err(failed)?;
    let dir = arguments.dir.clone().unwrap_or_else(|| scratch.path().to_owned()).join("data");
    std::fs::create_dir_all(&dir).map_err(failed)?;
    std::fs::create_dir_all(&arguments.out).map_err(failed)?;
    let beside = std::env::current_exe().map_err(failed)?.with_file_name("polybolt");
    let program = arguments.server.clone().unwrap_or(beside);
    let slow = Slow { sync: Duration::from_millis(load.sync_delay), write: Duration::from_millis(load.write_delay) };
    println!("{}; {:.0} minutes; {load:?}", machine(), arguments.minutes);
    println!("every write of the disk {:?} slower, every sync {:?}", slow.write, slow.sync);
    let server = Server::start(&program, &dir, slow, &flags(load))?;
    let begun = now();
    clients::fill(server.port, load, |_| ()).await?;
    settle_files(server.port).await?;
    let before = server.sample(begun, "before")?;
    println!("{} keys are in, {} of files, {} allocated", load.keys, mib(before.files), mib(before.anonymous));

    let counts = Arc::new(Counts::default());
    let tasks = press(server.port, load, &counts);
    let mut samples = vec![before.clone()];
    let soak = Duration::from_secs_f64(arguments.minutes * 60.0);
    sample(&server, begun, soak, "soak", &counts, &mut samples, |_| false).await?;
    let compact_to = samples.last().map_or(0.0, |sample| sample.gauge("etcd_debugging_mvcc_current_revision"));

    tasks.iter().for_each(JoinHandle::abort);
    for task in tasks {
        drop(task.await);
    }
    println!("the clients are gone, at revision {compact_to}; the disk is as slow as before");
    let port = server.port;
    let settling = tokio::spawn(async move { settle_files(port).await });
    let back = |now: &Sample| report::left_over(&before, now).is_empty();
    sample(&server, begun, SETTLE, "after", &counts, &mut samples, |now| settling.is_finished() && back(now)).await?;
    settling.await.map_err(|error| error.to_string())??;
    let left = report::left_over(&before, samples.last().unwrap_or(&before));
    let json = serde_json::to_vec(&samples).map_err(|error| error.to_string())?;
    std::fs::write(arguments.out.join("samples.json"), json).map_err(failed)?;
    report::curves(&arguments.out, &samples)?;
    report::table(&samples);
    let fine = report::verdict(&samples, &counts, load, &left);
    println!("samples and curves: {}", arguments.out.display());
    Ok(server.stop() && fine)
}

/// Everybody at once.
fn press(port: u16, load: &Load, counts: &Arc<Counts>) -> Vec<JoinHandle<()>> {
    let mut tasks = vec![tokio::spawn(clients::watch(port, Arc::clone(counts)))];
    for writer in 0..load.writers {
        tasks.push(tokio::spawn(clients::write(port, load.clone(), Arc::clone(counts), writer)));
    }
    for _ in 0..load.stalled {
        for kind in [Stalled::Watch, Stalled::Snapshot, Stalled::RangeStream, Stalled::Range] {
            tasks.push(tokio::spawn(clients::stall(port, kind, load.clone(), Arc::clone(counts))));
        }
    }
    tasks
}

/// What an operator does: compact to the current revision, wait until that is swept, and defragment.
async fn settle_files(port: u16) -> Result<(), String> {
    let refused = |status: tonic::Status| status.message().to_owned();
    let channel = clients::connect(port).await.map_err(|error| error.to_string())?;
    let mut kv = KvClient::new(channel.clone());
    // A revision that nothing else compacts at.
    let put = loop {
        match kv.put(pb::PutRequest { key: clients::key(0).into(), ..Default::default() }).await {
            // The line of writes is as long as the clients left it.
            Err(status) if clients::come_back(&status) => tokio::time::sleep(Duration::from_millis(50)).await,
            answered => break answered.map_err(refused)?,
        }
    };
    let revision = put.into_inner().header.map_or(0, |header| header.revision);
    kv.compact(pb::CompactionRequest { revision, physical: true }).await.map_err(refused)?;
    MaintenanceClient::new(channel).defragment(pb::DefragmentRequest {}).await.map_err(refused)?;
    Ok(())
}

/// A sample every second, for `time` or until `done`.
async fn sample(
    server: &Server,
    begun: Instant,
    time: Duration,
    phase: &'static str,
    counts: &Counts,
    samples: &mut Vec<Sample>,
    done: impl Fn(&Sample) -> bool,
) -> Result<(), String> {
    let bar = ProgressBar::new(time.as_secs());
    let style = ProgressStyle::with_template("{prefix} [{elapsed}/{len}s] {bar:30} {msg}");
    bar.set_style(style.map_err(|error| error.to_string())?);
    bar.set_prefix(phase);
    let started = now();
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    while started.elapsed() < time {
        tick.tick().await;
        let taken = tokio::task::block_in_place(|| server.sample(begun, phase))?;
        bar.set_position(started.elapsed().as_secs());
        bar.set_message(format!(
            "{} of {}; {} written, {} waiting, {} pins",
            mib(taken.anonymous),
            mib(taken.bound),
            counts.written.load(Ordering::Relaxed),
            taken.gauge("polybolt_writes_waiting"),
            taken.gauge("etcd_mvcc_db_open_read_transactions"),
        ));
        let done = done(&taken);
        samples.push(taken);
        if done {
            break;
        }
    }
    bar.finish_and_clear();
    Ok(())
}
