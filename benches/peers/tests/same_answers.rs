//! Every peer answers what the model says, through every row, before and after a compaction.

use polybolt_peers::peer::{self, Kind, Mode, MvccPeer, Result};
use polybolt_peers::plan::{Model, PHASES, Plan};
use polybolt_peers::rows::{Expected, READS};
use polybolt_peers::writes::{self, SYNCS};
use std::time::Duration;

const KEYS: usize = 2000;
const INSTANT: Duration = Duration::from_millis(1);

fn holds(kind: Kind) -> Result<String> {
    let dir = tempfile::tempdir()?;
    let plan = Plan::new(KEYS);
    let mut model = Model::new(&plan);
    peer::with(kind, dir.path(), Mode::Batch, &mut |peer| {
        PHASES.into_iter().try_for_each(|phase| writes::phase(peer, &plan, &mut model, phase).map(drop))
    })?;

    let expected = Expected::new(KEYS, INSTANT);
    let mut hash = String::new();
    peer::with(kind, dir.path(), Mode::Sync, &mut |peer| {
        hash = expected.check(peer, 2)?;
        READS.into_iter().try_for_each(|row| expected.measure(row, peer).map(drop))
    })?;
    peer::with(kind, dir.path(), Mode::Sync, &mut |peer| {
        peer.compact(expected.older())?;
        expected.check(peer, expected.older() + 1).map(drop)
    })?;
    let durable = |peer: &dyn MvccPeer| {
        expected.check(peer, expected.older() + 1)?;
        SYNCS.into_iter().try_for_each(|row| writes::sync(row, peer, &plan, dir.path(), INSTANT).map(drop))?;
        peer.revision()
    };
    let mut revision = 0;
    peer::with(kind, dir.path(), Mode::Sync, &mut |peer| {
        revision = durable(peer)?;
        Ok(())
    })?;
    peer::with(kind, dir.path(), Mode::Sync, &mut |peer| {
        assert_eq!(peer.revision()?, revision, "after durable puts and a reopen");
        Ok(())
    })?;
    Ok(hash)
}

#[test]
fn all_peers_answer_the_same() {
    let kinds = [Kind::Polybolt, Kind::Lmdb, Kind::Redb, Kind::Fjall, Kind::Sqlite];
    let hashes: Vec<String> =
        kinds.into_iter().map(|kind| holds(kind).unwrap_or_else(|error| panic!("{}: {error}", kind.name()))).collect();
    assert!(hashes.iter().all(|hash| *hash == hashes[0]), "{hashes:?}");
}
