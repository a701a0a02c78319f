//! Every peer answers what the model says, through every row, before and after a compaction.

use polybolt_peers::callers::{self, Pairs, Until};
use polybolt_peers::dataset::Data;
use polybolt_peers::later::Later;
use polybolt_peers::peer::{self, Kind, Mode, MvccPeer, Result};
use polybolt_peers::plan::{Model, PHASES, Plan};
use polybolt_peers::rows::{Expected, READS};
use polybolt_peers::{beside, durable, writes};
use std::path::Path;
use std::time::Duration;

const KEYS: usize = 2000;
const INSTANT: Duration = Duration::from_millis(1);

/// Every row that writes into a store which is full; its revision then.
fn written(peer: &dyn MvccPeer, later: &Later, dir: &Path, mode: Mode) -> Result<u64> {
    let pair = |at| later.pair(at);
    let (pairs, until) = (Pairs { count: later.keys(), pair: &pair }, Until { time: INSTANT, puts: 3 });
    match mode {
        Mode::Batch => {
            beside::gets(peer, later, INSTANT)?;
            beside::ranges(peer, later, INSTANT)?;
            beside::history(peer, later, later.plan.older() + 1, INSTANT)?;
            callers::overwrites(peer, pairs, until)?;
        }
        Mode::Sync => {
            durable::alternating(peer, later, dir)?;
            durable::trickle(peer, later, INSTANT)?;
            callers::durable(peer, pairs, INSTANT)?;
            callers::journal(peer, pairs, until)?;
        }
    }
    (0..later.keys()).try_for_each(|at| later.get(at, peer).map(drop))?;
    peer.revision()
}

fn holds(kind: Kind, data: Data) -> Result<String> {
    let dir = tempfile::tempdir()?;
    let plan = Plan::new(KEYS, data);
    let mut model = Model::new(&plan);
    peer::with(kind, dir.path(), Mode::Batch, &mut |peer| {
        PHASES.into_iter().try_for_each(|phase| writes::phase(peer, &plan, &mut model, phase).map(drop))
    })?;

    let expected = Expected::new(KEYS, data, INSTANT);
    let mut hash = String::new();
    peer::with(kind, dir.path(), Mode::Sync, &mut |peer| {
        hash = expected.check(peer, 2)?;
        READS.into_iter().try_for_each(|row| expected.measure(row, peer).map(drop))
    })?;
    peer::with(kind, dir.path(), Mode::Sync, &mut |peer| {
        peer.compact(expected.older())?;
        expected.check(peer, expected.older() + 1).map(drop)
    })?;
    let later = Later::new(plan);
    for mode in [Mode::Batch, Mode::Sync] {
        let mut revision = 0;
        peer::with(kind, dir.path(), mode, &mut |peer| {
            revision = written(peer, &later, dir.path(), mode)?;
            Ok(())
        })?;
        peer::with(kind, dir.path(), Mode::Sync, &mut |peer| {
            assert_eq!(peer.revision()?, revision, "after puts and a reopen");
            (0..later.keys()).try_for_each(|at| later.get(at, peer).map(drop))
        })?;
    }
    Ok(hash)
}

fn all_hold(data: Data) {
    let hash = |kind: Kind| holds(kind, data).unwrap_or_else(|error| panic!("{}: {error}", kind.name()));
    let hashes: Vec<String> = Kind::built().into_iter().map(hash).collect();
    assert!(hashes.iter().all(|hash| *hash == hashes[0]), "{hashes:?}");
}

#[test]
fn all_peers_answer_the_same() {
    all_hold(Data::Flat);
}

#[test]
fn also_of_objects() {
    all_hold(Data::Objects);
}
