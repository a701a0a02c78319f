//! The rows that write: the clock stops once everything is as durable as the mode says.

use crate::combine;
use crate::dataset::Numbers;
use crate::figure::{Figure, Unit, median};
use crate::measure::now;
use crate::peer::{Commit, MvccPeer, Next, Result};
use crate::plan::{Model, Phase, Plan, Step};
use crate::raw::Preallocated;
use std::path::Path;
use std::time::Duration;

/// The rows in `Batch`.
pub const BATCHES: [u32; 3] = [10, 11, 14];
/// The rows in `Sync`.
pub const SYNCS: [u32; 2] = [12, 13];
const CALLERS: usize = 64;
const PUTS: usize = 200;

/// Writes one phase of the plan, one caller, `Batch`; each answer is checked. Operations a second.
pub fn phase(peer: &dyn MvccPeer, plan: &Plan, model: &mut Model, phase: Phase) -> Result<f64> {
    let mut steps = plan.steps(phase).peekable();
    let (mut operations, begun) = (0u64, now());
    peer.session(Commit::Batch, &mut |session| {
        let Some(step) = steps.next() else { return Ok(Next::Done) };
        operations += 1;
        let revision = match step {
            Step::Put(key, value) => Some(session.put(plan.key(key), plan.values.of(value))?),
            Step::Delete(key) => Some(session.delete(plan.key(key))?),
            Step::Compare(key, value, stale) => {
                session.compare_and_put(plan.key(key), model.expected(key, stale), plan.values.of(value))?
            }
        };
        let changed = model.apply(step);
        if revision != changed.then_some(model.revision) {
            return Err(format!("{step:?} answers {revision:?}, not revision {}", model.revision).into());
        }
        Ok(if steps.peek().is_some() { Next::More } else { Next::Done })
    })?;
    Ok(operations as f64 / begun.elapsed().as_secs_f64())
}

/// A row of [`BATCHES`], and what has to come before the next one.
pub fn batch(row: u32, peer: &dyn MvccPeer, plan: &Plan, model: &mut Model) -> Result<Vec<Figure>> {
    let (of, what) = match row {
        10 => (Phase::Load, "load, random order, Batch"),
        11 => (Phase::Overwrite, "overwrites, Batch, 1 caller"),
        14 => (Phase::Compare, "compare-and-swap txns, Batch, 1 caller"),
        _ => return Err(format!("row {row} is not in Batch").into()),
    };
    let rate = phase(peer, plan, model, of)?;
    if of == Phase::Overwrite {
        phase(peer, plan, model, Phase::Churn)?;
    }
    Ok(vec![Figure::new(row, what, Unit::PerSecond, rate)])
}

/// One durable put.
pub fn durable_put(peer: &dyn MvccPeer, key: &[u8], value: &[u8]) -> Result<()> {
    let mut put = false;
    peer.session(Commit::Each, &mut |session| {
        put = session.put(key, value)? > 0;
        Ok(Next::Done)
    })?;
    if put { Ok(()) } else { Err("a put was not done".into()) }
}

/// A row of [`SYNCS`].
pub fn sync(row: u32, peer: &dyn MvccPeer, plan: &Plan, dir: &Path, time: Duration) -> Result<Vec<Figure>> {
    match row {
        12 => alternating(peer, plan, dir),
        13 => callers(peer, plan, time),
        _ => Err(format!("row {row} is not in Sync").into()),
    }
}

/// Puts and bare syncs of as many bytes, by turns.
fn alternating(peer: &dyn MvccPeer, plan: &Plan, dir: &Path) -> Result<Vec<Figure>> {
    let mut raw = Preallocated::create(&dir.join("raw"), 16 << 20)?;
    let mut numbers = Numbers::new(12);
    let (mut puts, mut syncs) = (Vec::new(), Vec::new());
    for at in 0..PUTS {
        let key = plan.key(numbers.below(plan.keys));
        let value = plan.values.of(at as u64);
        let begun = now();
        durable_put(peer, key, value)?;
        puts.push(begun.elapsed().as_secs_f64());
        let bytes = [key, value].concat();
        let begun = now();
        raw.write_synced(&bytes)?;
        syncs.push(begun.elapsed().as_secs_f64());
    }
    std::fs::remove_file(dir.join("raw"))?;
    Ok(vec![
        Figure::new(12, "durable put, 1 caller", Unit::Us, median(&puts) * 1e6),
        Figure::new(12, "... a bare fdatasync by turns", Unit::Us, median(&syncs) * 1e6),
        Figure::new(12, "... of it", Unit::Times, median(&puts) / median(&syncs)),
    ])
}

/// 64 threads that each put one after the other; with what groups them, and without.
fn callers(peer: &dyn MvccPeer, plan: &Plan, time: Duration) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    let syncs = peer.syncs();
    let alone = threads(plan, time, &|_, key, value| durable_put(peer, key, value))?;
    let grouped = if peer.groups() {
        if let (Some(before), Some(after)) = (syncs, peer.syncs()) {
            let each = alone.0 as f64 / (after - before).max(1) as f64;
            figures.push(Figure::new(13, "... puts a sync", Unit::Times, each));
        }
        alone
    } else {
        figures.push(Figure::new(13, "... without a combining writer", Unit::PerSecond, alone.1));
        let (puts, taken) = combine::channel();
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| combine::write(peer, &taken));
            let callers: Vec<combine::Caller> = (0..CALLERS).map(|_| combine::caller(&puts)).collect();
            let combined = threads(plan, time, &|at, key, value| callers[at].put(key, value).map(drop));
            drop((puts, callers));
            writer.join().map_err(|_| "the writer panicked")??;
            combined
        })?
    };
    figures.insert(0, Figure::new(13, "durable puts, 64 callers, grouped", Unit::PerSecond, grouped.1));
    Ok(figures)
}

type PutBy<'a> = &'a (dyn Fn(usize, &[u8], &[u8]) -> Result<()> + Sync);

fn threads(plan: &Plan, time: Duration, put: PutBy<'_>) -> Result<(u64, f64)> {
    let begun = now();
    let caller = |at: usize| {
        let mut numbers = Numbers::new(1300 + at as u64);
        let mut puts = 0;
        while begun.elapsed() < time {
            put(at, plan.key(numbers.below(plan.keys)), plan.values.of(numbers.next_u64()))?;
            puts += 1;
        }
        Ok::<u64, Box<dyn std::error::Error + Send + Sync>>(puts)
    };
    let puts = std::thread::scope(|scope| {
        let caller = &caller;
        let callers: Vec<_> = (0..CALLERS).map(|at| scope.spawn(move || caller(at))).collect();
        let mut puts = 0;
        for caller in callers {
            puts += caller.join().map_err(|_| "a caller panicked")??;
        }
        Ok::<u64, Box<dyn std::error::Error + Send + Sync>>(puts)
    })?;
    Ok((puts, puts as f64 / begun.elapsed().as_secs_f64()))
}
