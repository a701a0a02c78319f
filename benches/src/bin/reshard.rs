//! What a change of routes costs those who read and write beside it.
//!
//! ```text
//! cargo run --release -p polybolt-benches --bin reshard -- --dir DIR
//! ```
//!
//! A million keys in one shard, puts and gets at a fixed rate. Each round takes a window without a change of routes,
//! then one in which `/registry/events/` is split out, or merged back. Latencies are from when a call was due. In all of
//! them somebody reads the revision from before the first, page by page, and a watcher takes every event since. At the
//! end it is compacted, merged back and opened again: the contents stay the same by hash.

use clap::Parser;
use polybolt::{
    Durability, Engine, Error, Keyspace, Options, PutRequest, RangeRequest, ReshardStage, Routes, Span, WatchItem,
    WatchRequest,
};
use polybolt_benches::dataset::{self, Values};
use polybolt_benches::window::{self, Rates, median, percentiles, put_all, show};
use polybolt_benches::{machine, now, pause};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
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
    let whole = Pager::new(&keyspace, first).read(|| false, Duration::ZERO)?;
    let (done, last) = (AtomicBool::new(false), AtomicI64::new(i64::MAX));
    std::thread::scope(|scope| {
        let events = scope.spawn(|| watch(&keyspace, first + 1, &last));
        let pages = scope.spawn(|| {
            let mut passes = 0;
            while !done.load(Ordering::Relaxed) {
                let mut pager = Pager::new(&keyspace, first);
                let hash = pager.read(|| done.load(Ordering::Relaxed), PAGE_EVERY)?;
                assert!(!pager.is_over || hash == whole, "the contents at {first}, page by page");
                passes += u64::from(pager.is_over);
            }
            Ok::<_, Error>(passes)
        });
        let measured = rounds(args, &engine, &keyspace, &names, first);
        done.store(true, Ordering::Relaxed);
        last.store(keyspace.revision(), Ordering::Relaxed);
        // So that the watcher looks.
        keyspace.put(PutRequest::new(names[0].clone(), "v")).wait()?;
        let (passes, events) = (pages.join().expect("the pager")?, events.join().expect("the watcher")?);
        println!(
            "  {passes} passes over all pages at revision {first}; a watcher has seen {events} revisions, each once"
        );
        measured
    })?;
    compacted(args, engine, keyspace)
}

/// A page of a revision is read so often beside the windows.
const PAGE_EVERY: Duration = Duration::from_millis(20);

/// Reads all of a revision.
struct Pager<'a> {
    keyspace: &'a Keyspace,
    revision: i64,
    /// It came to the end.
    is_over: bool,
}

impl<'a> Pager<'a> {
    fn new(keyspace: &'a Keyspace, revision: i64) -> Self {
        Pager { keyspace, revision, is_over: false }
    }

    /// Page by page with a pause before each, to the end or until `stop`; a hash of what was read.
    fn read(&mut self, stop: impl Fn() -> bool, every: Duration) -> Result<u64, Error> {
        let (mut start, mut hash) = (vec![0], DefaultHasher::new());
        while !stop() {
            pause(every);
            let span = Span::range(start, "\u{7f}");
            let page = RangeRequest { revision: self.revision, limit: 500, ..RangeRequest::new(span) };
            let page = self.keyspace.range(&page)?;
            for kv in &page.kvs {
                (&kv.key, kv.mod_revision, &kv.value).hash(&mut hash);
            }
            let Some(last) = page.kvs.last().filter(|_| page.more) else {
                self.is_over = true;
                break;
            };
            start = [&last.key[..], &[0]].concat();
        }
        Ok(hash.finish())
    }
}

/// Takes every event from a revision on up to `last`, once that is known; how many revisions there were.
fn watch(keyspace: &Keyspace, from: i64, last: &AtomicI64) -> Result<i64, Error> {
    let span = Span::prefix("");
    let request = WatchRequest { span, start_revision: from, no_put: false, no_delete: false, prev_kv: false };
    let mut watcher = keyspace.watch(request)?;
    let mut next = from;
    while next <= last.load(Ordering::Relaxed) {
        let Some(WatchItem::Events { events, .. }) = watcher.recv()? else { panic!("the watch ended at {next}") };
        for event in &events {
            assert_eq!(event.kv().mod_revision, next, "every revision has one event");
            next += 1;
        }
    }
    Ok(next - from)
}

/// The windows, by turns.
fn rounds(args: &Args, engine: &Engine, keyspace: &Keyspace, names: &[String], first: i64) -> Result<(), Error> {
    let hashed = keyspace.hash_kv(first)?.hash;
    let rates = Rates { rate: args.rate, time: Duration::from_secs(args.seconds) };
    let (mut longest, mut p99, mut took): (Vec<f64>, Vec<f64>, Vec<f64>) = Default::default();
    for round in 0..args.rounds {
        println!("round {}", round + 1);
        let (control, ()) = window::run(keyspace, names, rates, 2 * round, || Ok(()))?;
        show("alone", &control);
        let single = keyspace.routes().shards().len() == 1;
        let to = if single { Routes::parse(SPLIT).expect("routes") } else { Routes::single() };
        let (beside, moved) = window::run(keyspace, names, rates, 2 * round + 1, || reshard(engine, keyspace, to))?;
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
    Ok(())
}

/// Compacted, split or merged again, and opened: the same contents.
fn compacted(args: &Args, engine: Engine, keyspace: Keyspace) -> Result<(), Error> {
    if keyspace.routes().shards().len() == 1 {
        reshard(&engine, &keyspace, Routes::parse(SPLIT).expect("routes"))?;
    }
    let revision = keyspace.revision();
    keyspace.compact(revision, true).wait()?;
    let hashed = keyspace.hash_kv(revision)?.hash;
    reshard(&engine, &keyspace, Routes::single())?;
    assert_eq!(keyspace.hash_kv(revision)?.hash, hashed, "compacted and merged back");
    drop(keyspace);
    engine.close()?;
    let engine = Engine::open(&args.dir, Options::default())?;
    let hash = engine.keyspace("default")?.hash_kv(revision)?.hash;
    assert_eq!(hash, hashed, "and opened again");
    println!("  compacted at {revision}, merged back, opened again: hash {hash:08x} each time");
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
