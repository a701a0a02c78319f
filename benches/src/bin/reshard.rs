//! What a change of routes costs those who read and write beside it.
//!
//! ```text
//! cargo run --release -p polybolt-benches --bin reshard -- --dir DIR
//! ```
//!
//! A million keys in one shard, puts and gets at a fixed rate. Each round takes a window without a change of routes,
//! then one in which `/registry/events/` is split out, or merged back. Latencies are from when a call was due.

use clap::Parser;
use polybolt::{Durability, Engine, Error, Keyspace, Options, ReshardStage, Routes};
use polybolt_benches::dataset::{self, Values};
use polybolt_benches::window::{self, Rates, median, percentiles, put_all, show};
use polybolt_benches::{machine, now, pause};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// What a change of routes costs those beside it.
#[derive(Debug, Parser)]
struct Args {
    /// Keys, shaped as in Kubernetes, with values of 512 bytes.
    #[arg(long, default_value_t = 1_000_000)]
    keys: usize,
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
    #[arg(long, default_value_t = 6)]
    rounds: u64,
    /// A put is answered in groups of up to 100 ms, not once synced.
    #[arg(long)]
    batch: bool,
}

const SPLIT: &str = "events=/registry/events/";

/// How long the writers waited for the switch, and all of it took.
struct Moved {
    took: Duration,
    switch: Duration,
}

fn reshard(engine: &Engine, keyspace: &Keyspace, to: Routes) -> Result<Moved, Error> {
    let begun = now();
    let mut switching = None;
    engine
        .reshard(keyspace.name(), to, |progress| {
            if progress.stage == ReshardStage::Switch {
                switching = Some(now());
            }
        })?
        .wait()?;
    Ok(Moved { took: begun.elapsed(), switch: switching.map_or(Duration::ZERO, |at| at.elapsed()) })
}

fn run(args: &Args) -> Result<(), Error> {
    let batch = Durability::Batch { interval: Duration::from_millis(100), limit: 10_000 };
    let durability = if args.batch { batch } else { Durability::Sync };
    let engine = Engine::open(&args.dir, Options { durability, ..Options::default() })?;
    let names = dataset::keys(args.keys);
    let values = Values::new();
    let keyspace = if engine.keyspaces().is_empty() {
        let keyspace = engine.create_keyspace("default", Routes::single())?;
        let puts = dataset::scattered(args.keys).zip(0..);
        put_all(&keyspace, puts.map(|(key, at)| (names[key].clone(), values.of(at).to_vec())))?;
        keyspace
    } else {
        engine.keyspace("default")?
    };
    pause(Duration::from_secs(6));
    println!("{}; {} keys at revision {}", machine(), args.keys, keyspace.revision());
    let first = keyspace.revision();
    let hashed = keyspace.hash_kv(first)?.hash;
    let rates = Rates { rate: args.rate, time: Duration::from_secs(args.seconds) };
    let (mut longest, mut p99, mut took): (Vec<f64>, Vec<f64>, Vec<f64>) = Default::default();
    for round in 0..args.rounds {
        println!("round {}", round + 1);
        let (control, ()) = window::run(&keyspace, &names, rates, 2 * round, || Ok(()))?;
        show("alone", &control);
        let single = keyspace.routes().shards().len() == 1;
        let to = if single { Routes::parse(SPLIT).expect("routes") } else { Routes::single() };
        let (beside, moved) = window::run(&keyspace, &names, rates, 2 * round + 1, || reshard(&engine, &keyspace, to))?;
        show("beside", &beside);
        assert_eq!(keyspace.hash_kv(first)?.hash, hashed, "the contents at {first}");
        println!(
            "  {} in {:.1} s; the switch {:.0} ms",
            if single { "split" } else { "merged" },
            moved.took.as_secs_f64(),
            moved.switch.as_secs_f64() * 1000.0
        );
        let (alone, beside) = (percentiles(&control.puts), percentiles(&beside.puts));
        longest.push(beside[3] / alone[3]);
        p99.push(beside[1] / alone[1]);
        took.push(moved.took.as_secs_f64());
    }
    let [longest, p99, took] = [longest, p99, took].map(median);
    println!("beside a change of routes over alone, medians of {} rounds:", args.rounds);
    println!("  longest put {longest:.2}x, p99 {p99:.2}x; {took:.1} s each; no request failed, the same contents");
    drop(keyspace);
    engine.close()
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("reshard: {error}");
            ExitCode::FAILURE
        }
    }
}
