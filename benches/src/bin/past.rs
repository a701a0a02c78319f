//! What the past costs: opening what was written, history for a watcher that is behind, pages at an older revision.
//!
//! ```text
//! cargo run --release -p polybolt-benches --bin past -- --dir /dev/shm/past
//! ```
//!
//! The directory is filled if it is empty, and kept: two builds can be compared on the same one, by turns.

use clap::Parser;
use peak_alloc::PeakAlloc;
use polybolt::{
    DeleteRequest, Durability, Engine, Error, EventKind, Keyspace, Options, PutRequest, RangeRequest, Routes, Span,
    WatchItem, WatchRequest,
};
use polybolt_benches::dataset::{self, Numbers, Values};
use polybolt_benches::{machine, now};
use std::path::{Path, PathBuf};
use std::time::Duration;

#[global_allocator]
static ALLOCATED: PeakAlloc = PeakAlloc;

/// What the past costs.
#[derive(Debug, Parser)]
struct Args {
    /// Keys, shaped as in Kubernetes; half as many are overwritten, and a twentieth goes while as many come.
    #[arg(long, default_value_t = 1_000_000)]
    keys: usize,
    /// Where the store is.
    #[arg(long)]
    dir: PathBuf,
    /// One shard, instead of those for Kubernetes.
    #[arg(long)]
    one_shard: bool,
    /// Watch with the version before.
    #[arg(long)]
    prev_kv: bool,
    /// How often everything is measured.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

const PAGE: i64 = 500;
const PODS: &str = "/registry/pods/";

fn options() -> Options {
    let batch = Durability::Batch { interval: Duration::from_millis(100), limit: 10_000 };
    Options { durability: batch, ..Options::default() }
}

fn fill(args: &Args) -> Result<(), Error> {
    let engine = Engine::open(&args.dir, options())?;
    let routes = if args.one_shard { Routes::single() } else { Routes::kubernetes() };
    let keyspace = engine.create_keyspace("default", routes)?;
    let (keys, values) = (args.keys, Values::new());
    let names = dataset::keys(keys + keys / 20);
    let put = |key: usize, value: u64| {
        let value = values.of(value).to_vec();
        keyspace.put(PutRequest::new(names[key].clone(), value)).wait().map(drop)
    };
    for (key, at) in dataset::scattered(keys).zip(0..) {
        put(key, at)?;
    }
    let mut numbers = Numbers::new(1);
    for at in 0..keys / 2 {
        put(numbers.below(keys), (keys + at) as u64)?;
    }
    for (at, gone) in dataset::scattered(keys).take(keys / 20).enumerate() {
        keyspace.delete_range(DeleteRequest { span: Span::key(names[gone].clone()), prev_kv: false }).wait()?;
        put(keys + at, (2 * keys + at) as u64)?;
    }
    drop(keyspace);
    engine.close()
}

fn cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.cast_unsigned(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Runs, and says what one of `count` things took.
fn timed<T>(what: &str, count: impl Fn(&T) -> usize, run: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    ALLOCATED.reset_peak_usage();
    let (before, begun, cpu_begun) = (ALLOCATED.current_usage(), now(), cpu());
    let done = run()?;
    let (took, cpu) = (begun.elapsed(), cpu() - cpu_begun);
    let count = count(&done).max(1);
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
    println!(
        "{what:<28} {:>7.3} s, {:>7.3} s of CPU, {:>8} ns each of {count}; {:.1} MiB kept, {:.1} at most",
        took.as_secs_f64(),
        cpu.as_secs_f64(),
        took.as_nanos() / count as u128,
        mib(ALLOCATED.current_usage().saturating_sub(before)),
        mib(ALLOCATED.peak_usage().saturating_sub(before)),
    );
    Ok(done)
}

fn history(args: &Args, keyspace: &Keyspace) -> Result<usize, Error> {
    let start_revision = i64::try_from(args.keys).unwrap_or(0) + 2;
    let request =
        WatchRequest { span: Span::prefix(""), start_revision, no_put: false, no_delete: false, prev_kv: args.prev_kv };
    let upto = keyspace.revision();
    let mut watcher = keyspace.watch(request)?;
    let (mut seen, mut next, mut bytes) = (0, start_revision, 0);
    while next <= upto {
        let Some(WatchItem::Events { events, .. }) = watcher.recv()? else { break };
        for event in &events {
            assert_eq!(event.kv().mod_revision, next, "every revision has one event");
            next += 1;
            seen += 1;
            let prev = event.prev_kv().map_or(0, |kv| usize::from(kv.value[0]));
            bytes += prev + if event.kind() == EventKind::Put { usize::from(event.kv().value[511]) } else { 0 };
        }
    }
    std::hint::black_box(bytes);
    Ok(seen)
}

fn pages(args: &Args, keyspace: &Keyspace) -> Result<usize, Error> {
    let (mut pages, mut shown, mut left) = (0, 0, None);
    let mut start = PODS.as_bytes().to_vec();
    loop {
        let mut request = RangeRequest::new(Span::range(start, "/registry/pods0"));
        request.limit = PAGE;
        request.revision = i64::try_from(args.keys + args.keys / 2).unwrap_or(0) + 1;
        let response = keyspace.range(&request)?;
        let expected = left.unwrap_or(response.count);
        assert_eq!(response.count, expected, "pages count down");
        pages += 1;
        shown += response.kvs.len();
        left = Some(response.count - i64::try_from(response.kvs.len()).unwrap_or(0));
        match response.kvs.last() {
            Some(last) if response.more => start = [&last.key[..], b"\0"].concat(),
            _ => break,
        }
    }
    assert_eq!((left, shown), (Some(0), args.keys / 100 * 60), "every pod was shown");
    Ok(pages)
}

fn is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).map_or(true, |mut entries| entries.next().is_none())
}

fn main() -> Result<(), Error> {
    let args = Args::parse();
    println!("{}; {} keys", machine(), args.keys);
    if is_empty(&args.dir) {
        timed("fill", |()| args.keys, || fill(&args))?;
    }
    for _ in 0..args.rounds {
        let opened = timed(
            "open",
            |_| args.keys * 8 / 5,
            || {
                let engine = Engine::open(&args.dir, options())?;
                let keyspace = engine.keyspace("default")?;
                Ok((engine, keyspace))
            },
        );
        let (engine, keyspace) = opened?;
        timed("history", |seen| *seen, || history(&args, &keyspace))?;
        timed("pages of 500, with the count", |pages| *pages, || pages(&args, &keyspace))?;
        drop(keyspace);
        engine.close()?;
    }
    Ok(())
}
