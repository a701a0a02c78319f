//! What a compaction costs those who read and write beside it.
//!
//! ```text
//! cargo run --release -p polybolt-benches --bin compaction -- --dir DIR
//! ```
//!
//! A million keys; each round overwrites half as many, takes a window of puts and gets at a fixed rate without a
//! compaction, then one with it. Latencies are from when a call was due. Medians are of the rounds' ratios.

use clap::Parser;
use polybolt::{Durability, Engine, Error, Options, Routes};
use polybolt_benches::dataset::{self, Numbers, Values};
use polybolt_benches::window::{self, Rates, median, percentiles, put_all, show};
use polybolt_benches::{etcd_core, machine, now, pause};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// What a compaction costs those beside it.
#[derive(Debug, Parser)]
struct Args {
    /// Keys, shaped as in Kubernetes, with values of 512 bytes.
    #[arg(long, default_value_t = 1_000_000)]
    keys: usize,
    /// Overwrites before each compaction.
    #[arg(long, default_value_t = 500_000)]
    overwrites: usize,
    /// Where the store is; filled if it is empty, and kept.
    #[arg(long)]
    dir: PathBuf,
    /// Seconds of a window.
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Puts a second, and as many gets.
    #[arg(long, default_value_t = 2000)]
    rate: u32,
    /// Pairs of windows.
    #[arg(long, default_value_t = 5)]
    rounds: u64,
    /// A put is answered once synced, not in groups of up to 100 ms.
    #[arg(long)]
    sync: bool,
    /// etcd's own core, as a program that has the workload `compact`: run beside, once a round.
    #[arg(long)]
    etcd_core: Option<PathBuf>,
    /// In so many of the rounds, the first ones.
    #[arg(long, default_value_t = u64::MAX, hide_default_value = true)]
    etcd_rounds: u64,
}

fn options(args: &Args) -> Options {
    let batch = Durability::Batch { interval: Duration::from_millis(100), limit: 10_000 };
    Options { durability: if args.sync { Durability::Sync } else { batch }, ..Options::default() }
}

/// The compaction of one window.
#[derive(Debug, Clone, Copy)]
struct Sweep {
    removed: u64,
    took: Duration,
}

fn run(args: &Args) -> Result<(), Error> {
    let engine = Engine::open(&args.dir, options(args))?;
    let names = dataset::keys(args.keys);
    let values = Values::new();
    let keyspace = if engine.keyspaces().is_empty() {
        let keyspace = engine.create_keyspace("default", Routes::kubernetes())?;
        let puts = dataset::scattered(args.keys).zip(0..);
        put_all(&keyspace, puts.map(|(key, at)| (names[key].clone(), values.of(at).to_vec())))?;
        keyspace
    } else {
        engine.keyspace("default")?
    };
    println!("{}; {} keys at revision {}", machine(), args.keys, keyspace.revision());
    let rates = Rates { rate: args.rate, time: Duration::from_secs(args.seconds) };
    let mut ratios: [Vec<f64>; 4] = Default::default();
    let mut sweeps = Vec::new();
    for round in 0..args.rounds {
        let mut numbers = Numbers::new(round + 17);
        let random = (0..args.overwrites).map(|at| (numbers.below(args.keys), (round << 32) + at as u64));
        put_all(&keyspace, random.map(|(key, value)| (names[key].clone(), values.of(value).to_vec())))?;
        // The checkpoints of these are not part of either window.
        pause(Duration::from_secs(6));
        println!("round {}", round + 1);
        let (control, ()) = window::run(&keyspace, &names, rates, 2 * round, || Ok(()))?;
        show("alone", &control);
        let (beside, sweep) = window::run(&keyspace, &names, rates, 2 * round + 1, || {
            let (before, begun) = (keyspace.stats().swept, now());
            keyspace.compact(keyspace.revision(), true).wait()?;
            Ok(Sweep { removed: keyspace.stats().swept - before, took: begun.elapsed() })
        })?;
        show("compacted", &beside);
        let stats = keyspace.stats();
        #[expect(clippy::cast_precision_loss, reason = "for people")]
        let rate = sweep.removed as f64 / sweep.took.as_secs_f64();
        println!(
            "  {} revisions removed in {:.1} s, {rate:.0} a second; steps so far: index {:?} each, trees {:?} each",
            sweep.removed,
            sweep.took.as_secs_f64(),
            stats.index_steps.total / u32::try_from(stats.index_steps.count()).unwrap_or(1).max(1),
            stats.tree_steps.total / u32::try_from(stats.tree_steps.count()).unwrap_or(1).max(1),
        );
        sweeps.push(rate);
        let both = [(&control.puts, &beside.puts), (&control.gets, &beside.gets)];
        for (at, (alone, beside)) in both.into_iter().enumerate() {
            let (alone, beside) = (percentiles(alone), percentiles(beside));
            ratios[2 * at].push(beside[1] / alone[1]);
            ratios[2 * at + 1].push(beside[2] / alone[2]);
        }
        if let Some(program) = args.etcd_core.as_ref().filter(|_| round < args.etcd_rounds) {
            etcd(program, args, round);
        }
    }
    let [put99, put999, get99, get999] = ratios.map(median);
    println!("beside a compaction over alone, medians of {} rounds:", args.rounds);
    println!("  puts p99 {put99:.2}x, p99.9 {put999:.2}x; gets p99 {get99:.2}x, p99.9 {get999:.2}x");
    println!("  {:.0} revisions a second", median(sweeps));
    drop(keyspace);
    engine.close()
}

/// Its lines are printed as they come.
fn etcd(program: &Path, args: &Args, round: u64) {
    let dir = args.dir.with_extension("etcd");
    let (store, overwritten) = (dir.join("store"), dir.join("overwritten"));
    let seconds = format!("{}s", args.seconds);
    let core = |arguments: &[&str]| etcd_core(program, args.keys, &[&["-dur", &seconds], arguments].concat());
    if std::fs::create_dir_all(&dir).is_err() {
        return;
    }
    let (store, overwritten) = (store.to_string_lossy(), overwritten.to_string_lossy());
    if round == 0 {
        core(&["-w", "load", "-db", &store]);
    }
    core(&["-w", "overwrite", "-src", &store, "-db", &overwritten, "-g", "64"]);
    print!("{}", core(&["-w", "compact", "-db", &overwritten]));
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("compaction: {error}");
            ExitCode::FAILURE
        }
    }
}
