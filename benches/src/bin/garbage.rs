//! What a compaction costs by what it removes: nothing, a hundredth of the revisions, and ten of eleven.
//!
//! ```text
//! cargo run --release -p polybolt-benches --bin garbage -- --dir DIR
//! ```
//!
//! Nobody reads or writes beside it, and it goes as fast as it can. A compaction ends when all that it does is durable.
//! Bytes read are counted where the file is read by `pread`.

use clap::Parser;
use polybolt::{CompactionPace, Durability, Engine, Error, Keyspace, Options, Routes};
use polybolt_benches::dataset::{self, Numbers, Values};
use polybolt_benches::window::{median, put_all};
use polybolt_benches::{etcd_core, machine, mib, now, pause};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// What a compaction costs by what it removes.
#[derive(Debug, Parser)]
struct Args {
    /// Keys, shaped as in Kubernetes, with values of 512 bytes.
    #[arg(long, default_value_t = 1_000_000)]
    keys: usize,
    /// An empty directory.
    #[arg(long)]
    dir: PathBuf,
    /// How often a hundredth, and all of them ten times, are superseded.
    #[arg(long, default_value_t = 3)]
    rounds: u64,
    /// The share of a leaf that has to be dead before it is written without that.
    #[arg(long, default_value_t = Options::default().reclaim_percent)]
    reclaim_percent: u8,
    /// etcd's own core, as a program that has the workloads `load`, `overwrite` and `compact`: run beside, once a round.
    #[arg(long)]
    etcd_core: Option<PathBuf>,
    /// In so many of the rounds, the first ones.
    #[arg(long, default_value_t = u64::MAX, hide_default_value = true)]
    etcd_rounds: u64,
}

fn options(args: &Args, read_cache_bytes: Option<u64>) -> Options {
    Options {
        durability: Durability::Batch { interval: Duration::from_millis(100), limit: 10_000 },
        compaction_pace: CompactionPace {
            batch_limit: 10_000,
            sleep_interval: Duration::ZERO,
            budget_percent: None,
            deadline: None,
        },
        reclaim_percent: args.reclaim_percent,
        read_cache_bytes,
        ..Options::default()
    }
}

/// Bytes that the process has read by system calls.
fn bytes_read() -> u64 {
    let counts = std::fs::read_to_string("/proc/self/io").unwrap_or_default();
    let read = counts.lines().find_map(|line| line.strip_prefix("rchar: "));
    read.and_then(|count| count.parse().ok()).unwrap_or(0)
}

struct Store {
    engine: Engine,
    keyspace: Keyspace,
    names: Vec<String>,
    values: Values,
}

impl Store {
    fn put(&self, keys: impl Iterator<Item = usize>, round: u64) -> Result<(), Error> {
        let puts = keys.zip(round << 40..);
        put_all(&self.keyspace, puts.map(|(key, at)| (self.names[key].clone(), self.values.of(at).to_vec())))?;
        // Not a part of what is measured.
        (0..2).try_for_each(|_| self.engine.flush())
    }

    /// Compacts to now; microseconds for each revision that was removed, if any was.
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    fn compact(&self, what: &str) -> Result<Option<f64>, Error> {
        let (before, pages, read, begun) =
            (self.keyspace.stats().swept, self.engine.stats().page_bytes, bytes_read(), now());
        self.keyspace.compact(self.keyspace.revision(), true).wait()?;
        let (took, stats) = (begun.elapsed(), self.keyspace.stats());
        let removed = stats.swept - before;
        let each = (removed > 0).then(|| took.as_secs_f64() * 1e6 / removed as f64);
        println!(
            "{what:>8}: {removed} revisions removed in {:.3} s, {:.2} us each; {} left in leaves; pages written {}, \
             {:.0} bytes a revision; read {} of {}",
            took.as_secs_f64(),
            each.unwrap_or_default(),
            stats.lingering,
            mib(self.engine.stats().page_bytes - pages),
            (self.engine.stats().page_bytes - pages) as f64 / removed.max(1) as f64,
            mib(bytes_read() - read),
            mib(self.keyspace.status().size),
        );
        Ok(each)
    }
}

fn run(args: &Args) -> Result<(), Error> {
    println!("{}; {} keys", machine(), args.keys);
    let open = |read_cache_bytes| Engine::open(&args.dir, options(args, read_cache_bytes));
    // What is read is counted with pread: of a mapping nobody knows.
    let engine = open(Some(64 << 20))?;
    let keyspace = engine.create_keyspace("default", Routes::kubernetes())?;
    let mut store = Store { engine, keyspace, names: dataset::keys(args.keys), values: Values::new() };
    store.put(dataset::scattered(args.keys), 1)?;
    store.compact("created")?;
    let mut numbers = Numbers::new(17);
    let (mut sparse, mut dense) = (Vec::new(), Vec::new());
    for round in 0..args.rounds {
        // An open has looked at each leaf once, as the first one who reads it does.
        drop(store.keyspace);
        store.engine.close()?;
        store.engine = open(None)?;
        store.keyspace = store.engine.keyspace("default")?;
        // Also the file system has nothing left to do, once gigabytes were cut off.
        pause(Duration::from_secs(10));
        store.put((0..args.keys / 100).map(|_| numbers.below(args.keys)), 100 * round + 2)?;
        sparse.extend(store.compact("sparse")?);
        for time in 0..10 {
            store.put(dataset::scattered(args.keys), 100 * round + 10 + time)?;
        }
        dense.extend(store.compact("dense")?);
        store.keyspace.defragment()?;
        if let Some(program) = args.etcd_core.as_ref().filter(|_| round < args.etcd_rounds) {
            etcd(program, args, round);
        }
    }
    let (sparse, dense) = (median(sparse), median(dense));
    println!(
        "a revision removed, medians of {} rounds: {sparse:.2} us where a hundredth is dead, {dense:.2} us where each key \
         was superseded ten times: {:.2}x (bar 2x)",
        args.rounds,
        sparse.max(dense) / sparse.min(dense)
    );
    drop(store.keyspace);
    store.engine.close()
}

/// Its lines are printed as they come.
fn etcd(program: &Path, args: &Args, round: u64) {
    let dir = args.dir.with_extension("etcd");
    if std::fs::create_dir_all(&dir).is_err() {
        return;
    }
    let place = |name: &str| dir.join(name).to_string_lossy().into_owned();
    let core = |arguments: &[&str]| etcd_core(program, args.keys, arguments);
    if round == 0 {
        core(&["-w", "load", "-db", &place("store")]);
    }
    for (tag, many) in [("sparse", args.keys / 100), ("dense", args.keys * 10)] {
        core(&[
            "-w",
            "overwrite",
            "-src",
            &place("store"),
            "-db",
            &place("overwritten"),
            "-g",
            "64",
            "-n",
            &many.to_string(),
        ]);
        print!("{}", core(&["-w", "compact", "-noload", "-tag", tag, "-db", &place("overwritten")]));
    }
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("garbage: {error}");
            ExitCode::FAILURE
        }
    }
}
