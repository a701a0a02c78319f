//! What files take beside what they hold, and what it costs to keep them short.
//!
//! ```text
//! cargo run --release -p polybolt-benches --bin space -- --dir DIR
//! ```
//!
//! First rounds of overwriting half of the keys (in every other round: deleting them and putting others) and
//! compacting, with the vacuum on and nobody asking for a defragmentation. Then pairs of windows of puts and gets at
//! a fixed rate: one beside the vacuum of files with as many holes and one after it; and, with the vacuum off, one alone
//! and one beside a defragmentation.

use clap::Parser;
use hdrhistogram::Histogram;
use polybolt::{DeleteRequest, Durability, Engine, Error, Keyspace, Options, PutRequest, Routes, Span};
use polybolt_benches::dataset::{self, Numbers, VALUE_BYTES, Values};
use polybolt_benches::window::{self, Rates, show};
use polybolt_benches::{machine, mib, now, pause};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// What files take beside what they hold.
#[derive(Debug, Parser)]
struct Args {
    /// Keys, shaped as in Kubernetes, with values of 512 bytes.
    #[arg(long, default_value_t = 1_000_000)]
    keys: usize,
    /// Rounds.
    #[arg(long, default_value_t = 10)]
    rounds: u64,
    /// An empty directory.
    #[arg(long)]
    dir: PathBuf,
    /// Seconds of a window.
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Puts a second, and as many gets.
    #[arg(long, default_value_t = 2000)]
    rate: u32,
    /// Bytes that the vacuum moves in a second; 0 is none.
    #[arg(long, default_value_t = Options::default().vacuum_bytes_per_second)]
    vacuum_bytes_per_second: u64,
    /// Pairs of windows beside the vacuum, and as many beside a defragmentation.
    #[arg(long, default_value_t = 5)]
    pairs: u64,
    /// A put is answered once synced, not in groups of up to 100 ms.
    #[arg(long)]
    sync: bool,
}

fn options(args: &Args, vacuum: bool) -> Options {
    let batch = Durability::Batch { interval: Duration::from_millis(100), limit: 10_000 };
    let durability = if args.sync { Durability::Sync } else { batch };
    let vacuum_bytes_per_second = if vacuum { args.vacuum_bytes_per_second } else { 0 };
    Options { durability, vacuum_bytes_per_second, ..Options::default() }
}

/// Waits for all of these, a thousand under way.
fn all<T>(answers: impl Iterator<Item = polybolt::Pending<T>>) -> Result<(), Error> {
    let mut under_way = std::collections::VecDeque::new();
    for answer in answers {
        under_way.push_back(answer);
        if under_way.len() > 1000 {
            under_way.pop_front().map(polybolt::Pending::wait).transpose()?;
        }
    }
    under_way.into_iter().try_for_each(|answer| answer.wait().map(drop))
}

/// The keys that are there, and what was put so far.
struct Store {
    engine: Engine,
    keyspace: Keyspace,
    names: Vec<String>,
    spare: Vec<String>,
    values: Values,
    numbers: Numbers,
    put: u64,
}

impl Store {
    fn put(&mut self, places: &[usize], value: u64) -> Result<(), Error> {
        let (keyspace, names, values) = (&self.keyspace, &self.names, &self.values);
        all(places
            .iter()
            .zip(value..)
            .map(|(place, value)| keyspace.put(PutRequest::new(names[*place].clone(), values.of(value).to_vec()))))?;
        self.put += places.iter().map(|place| (self.names[*place].len() + VALUE_BYTES) as u64).sum::<u64>();
        Ok(())
    }

    /// Changes half of the keys, and forgets how they were.
    fn change(&mut self, round: u64) -> Result<(), Error> {
        let half: Vec<usize> = (0..self.names.len()).filter(|_| self.numbers.below(2) == 0).collect();
        if round % 2 == 1 {
            let (keyspace, names) = (&self.keyspace, &self.names);
            let delete = |place: &usize| DeleteRequest { span: Span::key(names[*place].clone()), prev_kv: false };
            all(half.iter().map(|place| keyspace.delete_range(delete(place))))?;
            for place in &half {
                let spare = self.numbers.below(self.spare.len());
                std::mem::swap(&mut self.names[*place], &mut self.spare[spare]);
            }
        }
        self.put(&half, (round + 1) << 32)
    }

    fn live(&self) -> u64 {
        self.names.iter().map(|name| (name.len() + VALUE_BYTES) as u64).sum()
    }

    /// Waits until the files have not become shorter for a while.
    fn settle(&self) {
        let mut before = (0, 0);
        for _ in 0..60 {
            let stats = self.engine.stats();
            let state = (stats.vacuum_rounds, stats.vacuum_cuts);
            if state == before {
                return;
            }
            before = state;
            pause(Duration::from_secs(3));
        }
    }

    /// Closes and opens it; the same content has to be there.
    fn reopen(self, args: &Args, vacuum: bool) -> Result<Self, Error> {
        let Store { engine, keyspace, names, spare, values, numbers, put } = self;
        let hash = keyspace.hash_kv(0)?;
        drop(keyspace);
        engine.close()?;
        let engine = Engine::open(&args.dir, options(args, vacuum))?;
        let keyspace = engine.keyspace("default")?;
        assert_eq!(keyspace.hash_kv(0)?, hash, "the same content");
        Ok(Store { engine, keyspace, names, spare, values, numbers, put })
    }
}

/// Bytes of the tree files, as the file system has them.
fn files(dir: &Path) -> u64 {
    let length = |entry: std::io::Result<std::fs::DirEntry>| {
        let entry = entry.ok()?;
        let kind = entry.file_type().ok()?;
        if kind.is_dir() {
            return Some(files(&entry.path()));
        }
        entry.path().extension().filter(|name| *name == "tree").and_then(|_| Some(entry.metadata().ok()?.len()))
    };
    std::fs::read_dir(dir).map_or(0, |entries| entries.filter_map(length).sum())
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn ratio(a: u64, b: u64) -> f64 {
    a as f64 / b.max(1) as f64
}

#[expect(clippy::cast_precision_loss, reason = "milliseconds for people")]
fn millis(histogram: &Histogram<u64>, percentile: f64) -> f64 {
    histogram.value_at_percentile(percentile) as f64 / 1000.0
}

fn rounds(args: &Args, mut store: Store) -> Result<Store, Error> {
    let (mut written_in_all, mut put_in_all, mut widest) = (0, 0, 0.0_f64);
    for round in 0..args.rounds {
        let (before, put_before) = (store.engine.stats(), store.put);
        store.change(round)?;
        let changed = store.engine.stats();
        store.keyspace.compact(store.keyspace.revision(), true).wait()?;
        let compacted = store.engine.stats();
        store.settle();
        let (stats, live, size, put) = (store.engine.stats(), store.live(), files(&args.dir), store.put - put_before);
        let written = stats.page_bytes - before.page_bytes;
        let cut = stats.vacuum_cut_bytes - before.vacuum_cut_bytes;
        println!(
            "round {:>2}: files {} of which {} in use / live {} = {:.3}; put {}, pages written {} ({:.2}x: changes {}, \
             compaction {}, rest {}), vacuum moved {}, gave back {} ({:.2} a byte written)",
            round + 1,
            mib(size),
            mib(store.keyspace.status().size_in_use),
            mib(live),
            ratio(size, live),
            mib(put),
            mib(written),
            ratio(written, put),
            mib(changed.page_bytes - before.page_bytes),
            mib(compacted.page_bytes - changed.page_bytes),
            mib(stats.page_bytes - compacted.page_bytes),
            mib(stats.vacuum_moved_bytes - before.vacuum_moved_bytes),
            mib(cut),
            ratio(cut, written),
        );
        (written_in_all, put_in_all) = (written_in_all + written, put_in_all + put);
        widest = widest.max(ratio(size, live));
        store = store.reopen(args, true)?;
    }
    println!(
        "{} rounds: files at most {widest:.3} of what is live (bar 1.35), {:.2} bytes of pages written a byte put (bar 4)",
        args.rounds,
        ratio(written_in_all, put_in_all)
    );
    Ok(store)
}

fn vacuums(args: &Args, mut store: Store, rates: Rates) -> Result<Store, Error> {
    let mut added = Vec::new();
    for pair in 0..args.pairs {
        store.change(2 * pair + 50)?;
        store.keyspace.compact(store.keyspace.revision(), true).wait()?;
        let before = store.engine.stats().vacuum_moved_bytes;
        let (beside, ()) = window::run(&store.keyspace, &store.names, rates, 500 + 2 * pair, || Ok(()))?;
        let moved = store.engine.stats().vacuum_moved_bytes - before;
        store.settle();
        let (control, ()) = window::run(&store.keyspace, &store.names, rates, 501 + 2 * pair, || Ok(()))?;
        println!("vacuum {}: {} moved beside", pair + 1, mib(moved));
        show("alone", &control);
        show("vacuumed", &beside);
        added.push(millis(&beside.puts, 99.9) - millis(&control.puts, 99.9));
    }
    added.sort_unstable_by(f64::total_cmp);
    if let Some(median) = added.get(added.len() / 2) {
        println!("p99.9 of puts beside the vacuum less that alone, median: {median:.2} ms (bar 5)");
    }
    Ok(store)
}

fn defragmentations(args: &Args, mut store: Store, rates: Rates) -> Result<(), Error> {
    store = store.reopen(args, false)?;
    let mut ratios = [Vec::new(), Vec::new()];
    for pair in 0..args.pairs {
        store.change(2 * pair + 100)?;
        store.keyspace.compact(store.keyspace.revision(), true).wait()?;
        pause(Duration::from_secs(6));
        let (control, ()) = window::run(&store.keyspace, &store.names, rates, 1000 + 2 * pair, || Ok(()))?;
        let before = files(&args.dir);
        let (beside, took) = window::run(&store.keyspace, &store.names, rates, 1001 + 2 * pair, || {
            let begun = now();
            store.keyspace.defragment()?;
            Ok((begun.elapsed(), files(&args.dir)))
        })?;
        let ((took, after), live) = (took, store.live());
        println!(
            "defragmentation {}: {} to {} in {:.1} s, {:.3} of what is live",
            pair + 1,
            mib(before),
            mib(after),
            took.as_secs_f64(),
            ratio(after, live)
        );
        show("alone", &control);
        show("defragmented", &beside);
        for (ratios, (beside, alone)) in
            ratios.iter_mut().zip([(&beside.puts, &control.puts), (&beside.gets, &control.gets)])
        {
            ratios.push(millis(beside, 100.0) / millis(alone, 100.0));
        }
    }
    for (kind, mut ratios) in ["put", "get"].into_iter().zip(ratios) {
        ratios.sort_unstable_by(f64::total_cmp);
        if let Some(median) = ratios.get(ratios.len() / 2) {
            println!("longest {kind} beside a defragmentation over alone, median: {median:.2}x");
        }
    }
    drop(store.keyspace);
    store.engine.close()
}

fn run(args: &Args) -> Result<(), Error> {
    let engine = Engine::open(&args.dir, options(args, true))?;
    let keyspace = engine.create_keyspace("default", Routes::kubernetes())?;
    let mut names = dataset::keys(2 * args.keys);
    let mut numbers = Numbers::new(11);
    for at in (1..names.len()).rev() {
        names.swap(at, numbers.below(at + 1));
    }
    let spare = names.split_off(args.keys);
    let mut store = Store { engine, keyspace, names, spare, values: Values::new(), numbers, put: 0 };
    store.put(&(0..args.keys).collect::<Vec<_>>(), 0)?;
    pause(Duration::from_secs(6));
    println!("{}; {} keys, live {}, files {}", machine(), args.keys, mib(store.live()), mib(files(&args.dir)));
    let rates = Rates { rate: args.rate, time: Duration::from_secs(args.seconds) };
    let store = rounds(args, store)?;
    let store = vacuums(args, store, rates)?;
    defragmentations(args, store, rates)
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("space: {error}");
            ExitCode::FAILURE
        }
    }
}
