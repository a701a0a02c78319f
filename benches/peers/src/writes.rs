//! The rows that fill a store, one caller, `Batch`: the clock stops once everything is durable.

use crate::figure::{Figure, Unit};
use crate::measure::now;
use crate::peer::{Commit, MvccPeer, Next, Result};
use crate::plan::{Model, Phase, Plan, Step};

/// These rows.
pub const FILLS: [u32; 3] = [10, 11, 14];

/// Writes one phase of the plan; each answer is checked. Operations a second.
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

/// One of [`FILLS`], and what has to come before the next one.
pub fn fill(row: u32, peer: &dyn MvccPeer, plan: &Plan, model: &mut Model) -> Result<Vec<Figure>> {
    let (of, what) = match row {
        10 => (Phase::Load, "load, random order, Batch"),
        11 => (Phase::Overwrite, "overwrites, Batch, 1 caller"),
        14 => (Phase::Compare, "compare-and-swap txns, Batch, 1 caller"),
        _ => return Err(format!("row {row} fills no store").into()),
    };
    let rate = phase(peer, plan, model, of)?;
    if of == Phase::Overwrite {
        phase(peer, plan, model, Phase::Churn)?;
    }
    Ok(vec![Figure::new(row, what, Unit::PerSecond, rate)])
}
