//! A million Kubernetes-shaped keys: load, memory at every second, reopen, one range over everything.

use clap::Parser;
use peak_alloc::PeakAlloc;
use polybolt::{Durability, Engine, Error, Options, Pending, PutRequest, PutResponse, RangeRequest, Routes, Span};
use polybolt_benches::{Sampler, kubernetes_key, machine, mib, now, value};
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::time::Duration;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

#[derive(Debug, Parser)]
struct Arguments {
    /// How many keys.
    #[arg(long, default_value_t = 1_000_000)]
    keys: u64,
    /// Bytes of a value.
    #[arg(long, default_value_t = 512)]
    value_bytes: usize,
    /// Puts under way at a time.
    #[arg(long, default_value_t = 2048)]
    window: usize,
    /// Sync in batches instead of each put.
    #[arg(long)]
    batch: bool,
    /// Where; a new directory under the system's if not given.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Open what is in --dir and read it, instead of loading it.
    #[arg(long, requires = "dir")]
    open: bool,
}

fn invalid(why: String) -> Error {
    Error::Refused(polybolt::Refusal::Invalid { why })
}

fn main() -> Result<(), Error> {
    let arguments = Arguments::parse();
    let batch = Durability::Batch { interval: Duration::from_millis(100), limit: 10_000 };
    let durability = if arguments.batch { batch } else { Durability::Sync };
    let options = Options { durability, ..Options::default() };
    let scratch = tempfile::tempdir().map_err(|error| invalid(format!("no scratch directory: {error}")))?;
    let dir = arguments.dir.clone().unwrap_or_else(|| scratch.path().join("data"));
    if arguments.open {
        return open(&dir, options);
    }
    println!("{}; {} keys, values of {} bytes, {durability:?}", machine(), arguments.keys, arguments.value_bytes);
    load(&arguments, &dir, &options)?;
    // A process of its own: what the load had allocated is not the opener's.
    let this = std::env::current_exe().map_err(|error| invalid(error.to_string()))?;
    let mut opener = std::process::Command::new(this);
    opener.arg("--open").arg("--dir").arg(&dir);
    if arguments.batch {
        opener.arg("--batch");
    }
    match opener.status() {
        Ok(status) if status.success() => Ok(()),
        other => Err(invalid(format!("the opener failed: {other:?}"))),
    }
}

fn load(arguments: &Arguments, dir: &Path, options: &Options) -> Result<(), Error> {
    let engine = Engine::open(dir, options.clone())?;
    let keyspace = engine.create_keyspace("default", Routes::kubernetes())?;
    let sampler = Sampler::start("load");
    let begun = now();
    let mut pending: VecDeque<Pending<PutResponse>> = VecDeque::new();
    for n in 0..arguments.keys {
        if pending.len() >= arguments.window
            && let Some(oldest) = pending.pop_front()
        {
            oldest.wait()?;
        }
        pending.push_back(keyspace.put(PutRequest::new(kubernetes_key(n), value(n, arguments.value_bytes))));
    }
    for put in pending {
        put.wait()?;
    }
    let took = begun.elapsed();
    let peak = sampler.finish();
    let status = keyspace.status();
    let index: u64 = status.shards.iter().map(|shard| shard.index_bytes).sum();
    let stats = engine.stats();
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let rate = arguments.keys as f64 / took.as_secs_f64();
    println!(
        "load: {:.1} s, {rate:.0} keys/s; {} journal groups, {} checkpoints",
        took.as_secs_f64(),
        stats.journal_groups,
        stats.checkpoints
    );
    let budget = index + options.buffer_bytes;
    println!(
        "load: anonymous memory at most {}; index {} + write buffers {} + 64 MiB = {}",
        mib(peak.anonymous),
        mib(index),
        mib(options.buffer_bytes),
        mib(budget + (64 << 20))
    );
    drop(keyspace);
    engine.close()
}

fn open(dir: &Path, options: Options) -> Result<(), Error> {
    let sampler = Sampler::start("open");
    let begun = now();
    let engine = Engine::open(dir, options)?;
    let keyspace = engine.keyspace("default")?;
    let took = begun.elapsed();
    let peak = sampler.finish();
    let index: u64 = keyspace.status().shards.iter().map(|shard| shard.index_bytes).sum();
    println!(
        "open: {:.2} s, anonymous memory at most {}; index {} + 64 MiB = {}",
        took.as_secs_f64(),
        mib(peak.anonymous),
        mib(index),
        mib(index + (64 << 20))
    );
    for shard in keyspace.status().shards {
        println!(
            "  {:>8}: {:>7} keys, {:>10} file, {:>10} in use, depth {}, {:>10} index ({} bytes a key)",
            shard.name,
            shard.keys,
            mib(shard.size),
            mib(shard.size_in_use),
            shard.depth,
            mib(shard.index_bytes),
            shard.index_bytes / shard.keys.max(1)
        );
    }

    let before = ALLOCATOR.current_usage();
    ALLOCATOR.reset_peak_usage();
    let begun = now();
    let (mut keys, mut bytes) = (0, 0);
    for chunk in keyspace.range_stream(&RangeRequest::new(Span::prefix("")))? {
        let chunk = chunk?;
        keys += chunk.len();
        bytes += chunk.iter().map(|kv| kv.key.len() + kv.value.len()).sum::<usize>();
    }
    let took = begun.elapsed();
    let extra = (ALLOCATOR.peak_usage() - before) as u64;
    println!(
        "range: {keys} keys, {} in {:.2} s, at most {} allocated on top",
        mib(bytes as u64),
        took.as_secs_f64(),
        mib(extra)
    );
    drop(keyspace);
    engine.close()
}
