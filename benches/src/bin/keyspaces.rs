//! A thousand keyspaces in one engine: what they cost, and whether they sync more often than one under
//! the same load.

use clap::Parser;
use polybolt::{Engine, Error, Keyspace, Options, Pending, PutRequest, PutResponse, Routes};
use polybolt_benches::{Sampler, kubernetes_key, machine, mib, now, pause, resident, value};
use std::collections::VecDeque;
use std::time::Duration;

#[derive(Debug, Parser)]
struct Arguments {
    /// How many keyspaces.
    #[arg(long, default_value_t = 1000)]
    keyspaces: usize,
    /// Keys of each.
    #[arg(long, default_value_t = 200)]
    keys: u64,
    /// Split each as Kubernetes is, instead of one shard each.
    #[arg(long)]
    kubernetes: bool,
    /// Seconds of load, each side three times.
    #[arg(long, default_value_t = 6)]
    seconds: u64,
    /// Puts per second, all keyspaces together.
    #[arg(long, default_value_t = 2000)]
    rate: u64,
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

/// Fills keyspaces; returns handles.
fn fill(engine: &Engine, count: usize, arguments: &Arguments) -> Result<Vec<Keyspace>, Error> {
    let routes = || if arguments.kubernetes { Routes::kubernetes() } else { Routes::single() };
    let keyspaces: Vec<Keyspace> =
        (0..count).map(|n| engine.create_keyspace(&format!("tenant-{n:04}"), routes())).collect::<Result<_, _>>()?;
    let mut pending: VecDeque<Pending<PutResponse>> = VecDeque::new();
    let total = arguments.keys * arguments.keyspaces as u64;
    for n in 0..total {
        let keyspace = &keyspaces[n as usize % count];
        pending.push_back(keyspace.put(PutRequest::new(kubernetes_key(n), value(n, 512))));
        if pending.len() > 2048
            && let Some(oldest) = pending.pop_front()
        {
            oldest.wait()?;
        }
    }
    pending.into_iter().try_for_each(|put| put.wait().map(drop))?;
    Ok(keyspaces)
}

/// Puts at a steady rate, a burst every 10 ms; syncs per second.
fn load(engine: &Engine, keyspaces: &[Keyspace], arguments: &Arguments) -> Result<f64, Error> {
    let before = engine.stats().sync_calls;
    let begun = now();
    let burst = arguments.rate / 100;
    let mut n = 0;
    while begun.elapsed() < Duration::from_secs(arguments.seconds) {
        let pending: Vec<_> = (0..burst)
            .map(|_| {
                n += 1;
                keyspaces[n as usize % keyspaces.len()].put(PutRequest::new(kubernetes_key(n), value(n, 512)))
            })
            .collect();
        pending.into_iter().try_for_each(|put| put.wait().map(drop))?;
        let next = Duration::from_millis(n / burst * 10);
        pause(next.saturating_sub(begun.elapsed()));
    }
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let syncs = (engine.stats().sync_calls - before) as f64;
    Ok(syncs / begun.elapsed().as_secs_f64())
}

fn main() -> Result<(), Error> {
    let arguments = Arguments::parse();
    let scratch = tempfile::tempdir().map_err(|error| {
        Error::Refused(polybolt::Refusal::Invalid { why: format!("no scratch directory: {error}") })
    })?;
    println!(
        "{}; {} keyspaces of {} keys, {}",
        machine(),
        arguments.keyspaces,
        arguments.keys,
        if arguments.kubernetes { "kubernetes routes" } else { "one shard each" }
    );
    let many_dir = scratch.path().join("many");
    let begun = now();
    let engine = Engine::open(&many_dir, Options::default())?;
    let keyspaces = fill(&engine, arguments.keyspaces, &arguments)?;
    println!("create and fill: {:.1} s", begun.elapsed().as_secs_f64());
    drop(keyspaces);
    engine.close()?;

    let before = resident();
    let sampler = Sampler::start("open");
    let begun = now();
    let many = Engine::open(&many_dir, Options::default())?;
    let took = begun.elapsed();
    let peak = sampler.finish();
    let stats = many.stats();
    println!(
        "open: {:.2} s; anonymous memory {} before, at most {}; {} tree files open, {} descriptors",
        took.as_secs_f64(),
        mib(before.anonymous),
        mib(peak.anonymous),
        stats.open_files,
        descriptors()
    );
    let tenants: Vec<Keyspace> = many.keyspaces().iter().map(|name| many.keyspace(name)).collect::<Result<_, _>>()?;

    let one = Engine::open(scratch.path().join("one"), Options::default())?;
    let single = fill(&one, 1, &arguments)?;
    let (mut of_one, mut of_many) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        of_one.push(load(&one, &single, &arguments)?);
        of_many.push(load(&many, &tenants, &arguments)?);
    }
    println!(
        "{} puts/s: syncs/s of one keyspace {of_one:.1?}, of {} keyspaces {of_many:.1?}",
        arguments.rate, arguments.keyspaces
    );
    let now = resident();
    println!(
        "under load: anonymous memory {}, mapped {}; {} descriptors",
        mib(now.anonymous),
        mib(now.file),
        descriptors()
    );
    drop((tenants, single));
    many.close()?;
    one.close()
}
