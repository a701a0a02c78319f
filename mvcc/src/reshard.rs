//! Splitting a live keyspace otherwise.
//!
//! ```text
//! copy     a snapshot into a space of the next generation that has the new routes, unfinished: a crash leaves the
//!          old one, and the next open drops it
//! index    its rows, as at open
//! follow   what was written meanwhile, in rounds that get shorter; reads and writes of the old one go on
//! freeze   the old one: writes stand in line
//! rest     what the last round left, of rows and of metadata
//! finish   one manifest commit in which the new space is not unfinished: from here a restart finds it
//! commit   the other manifest slot too
//! swap     handles, the line, watchers, leases and their deadlines go over to the new one
//! ```
//!
//! Both spaces hold one history, so nothing that a client sees tells them apart: rows are copied with their
//! revisions, and what a watcher was fed out of one it need not be fed out of the other.

use crate::core::{Core, Current, Shard};
use crate::error::{Error, Refusal, Result};
use crate::fill::Filling;
use crate::install::{Half, Replacement};
use crate::options::Options;
use crate::record::State;
use crate::reopen::{self, Heir, Rows as Whose, Shared};
use crate::routes::Routes;
use crate::row::{self, NewPut, NewRow};
use crate::rows::{Rows, StoredRow};
use crate::snapshot::{Snapshot, SnapshotReader};
use bytes::Bytes;
use polybolt_engine::defect::{Defect, is_on};
use polybolt_engine::sync::Mutex;
use polybolt_engine::{Edit, SpaceInfo, SpaceSpec, TreeEdit, TreeId};
use std::collections::BTreeMap;
use std::io::Read;
use std::ops::Bound;
use std::sync::Arc;

/// Once a round was of so few revisions the rest is left to the moment of the switch.
const FEW: u64 = 256;
/// After so many rounds it is given up if they do not get short.
const ROUNDS_MAX: usize = 64;

/// What a change of routes is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReshardStage {
    /// Rows are copied.
    Copy,
    /// The new index is made.
    Index,
    /// What was written meanwhile is copied.
    Follow,
    /// Writes wait for the switch.
    Switch,
}

/// How far a change of routes is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReshardProgress {
    /// What it is at.
    pub stage: ReshardStage,
    /// Rows that were copied.
    pub rows: u64,
    /// About as many as there are.
    pub of: u64,
}

/// A snapshot as a stream, and why it ended early.
struct Frames {
    snapshot: Snapshot,
    frame: Bytes,
    failed: Arc<Mutex<Option<Error>>>,
}

impl Read for Frames {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        while self.frame.is_empty() {
            match self.snapshot.next() {
                None => return Ok(0),
                Some(Ok(frame)) => self.frame = frame,
                Some(Err(error)) => {
                    *self.failed.lock() = Some(error);
                    return Err(std::io::ErrorKind::Other.into());
                }
            }
        }
        let len = buf.len().min(self.frame.len());
        buf[..len].copy_from_slice(&self.frame.split_to(len));
        Ok(len)
    }
}

/// A change of routes on its way. Does nothing until it is waited for or polled; polling reads the disk, so a task
/// should leave it to a thread that may block. Dropped before its end, the keyspace stays as it was.
pub type Reshard<'a> = Replacement<'a, ()>;

pub(crate) fn reshard<'a>(
    shared: Shared,
    current: Arc<Current>,
    routes: Routes,
    progress: impl FnMut(ReshardProgress) + Send + 'a,
) -> Reshard<'a> {
    Replacement::new(async move { run(&shared, &current, &routes, progress).await })
}

async fn run(
    shared: &Shared,
    current: &Current,
    routes: &Routes,
    mut progress: impl FnMut(ReshardProgress) + Send,
) -> Result<()> {
    reopen::check_routes(&shared.options, routes)?;
    let mut half = Half::begin(shared, current)?;
    let old = Arc::clone(&current.core());
    old.check_open()?;
    if *old.routes == *routes {
        return Ok(());
    }
    let stats = || old.shards.iter().filter_map(|shard| shared.store.tree_stats(shard.tree).ok());
    let rows = stats().map(|stats| stats.entries).sum();
    let bytes = stats().map(|stats| stats.in_use).sum();
    let mut at = ReshardProgress { stage: ReshardStage::Copy, rows: 0, of: rows };
    let mut tell = |stage, rows: u64| {
        at = ReshardProgress { stage, rows, of: at.of.max(rows) };
        progress(at);
    };

    let snapshot = Snapshot::new(&old)?;
    let mut upto = snapshot.revision().cast_unsigned();
    // What comes after stays until it was copied too.
    let mut held = old.pin(upto);
    let failed = Arc::default();
    let (reader, head) = SnapshotReader::new(Frames { snapshot, frame: Bytes::new(), failed: Arc::clone(&failed) })?;
    let mut state = State { floors: head.floors_for(routes), unfinished: true, reserve: 0, ..head.state };
    let info = shared.store.create_space(SpaceSpec {
        name: reopen::next_space(&shared.store, &current.name),
        config: routes.encode(),
        state: state.encode(),
        trees: routes.trees(),
    })?;
    half.space = Some(info.id);
    let filling = Filling::new(shared, &info, routes).beside(rate(&shared.options, bytes));
    let mut rows = 0;
    let filled = filling.fill(&state, reader, |done| {
        rows = done;
        tell(ReshardStage::Copy, rows);
    });
    if let Err(error) = filled.await {
        return Err(failed.lock().take().unwrap_or(error));
    }
    filling.flush().await?;

    tell(ReshardStage::Index, rows);
    let finished = SpaceInfo { state: State { unfinished: false, ..state.clone() }.encode(), ..info.clone() };
    let opened =
        reopen::open_keyspaces(shared, &[finished], Whose::Ours, 1, Some(Heir { of: &old, leases: true }))?.pop();
    let new = opened.ok_or(Refusal::Closed)?;
    let copy = Copy { old: &old, new: &new, filling: &filling, state: &state };

    let (mut few, mut flushed) = (false, false);
    // Each round is faster than the one before: else it never gets behind those who write faster.
    filling.hurry();
    for _ in 0..ROUNDS_MAX {
        let visible = old.publisher.visible();
        rows += copy.rows(upto + 1, visible).await?;
        few = visible - upto <= FEW;
        let next = old.pin(visible);
        if !held.holds() {
            return Err(Refusal::Compacted { revision: old.publisher.compacted() }.into());
        }
        (upto, held) = (visible, next);
        tell(ReshardStage::Follow, rows);
        filling.hurry();
        if few && flushed {
            break;
        }
        if few {
            // So that little is left to be written while writes wait, and then what came in meanwhile.
            flushed = true;
            copy.meta(upto).await?;
            filling.checkpoint().await?;
        }
    }
    if !few {
        let why = format!("keys of {:?} are written faster than they are copied: try again later", current.name);
        return Err(Refusal::Invalid { why }.into());
    }

    tell(ReshardStage::Switch, rows);
    filling.let_go();
    half.freeze(&old, |_| Ok(()))?;
    let (last, durable) = {
        let writer = old.writer.lock();
        (writer.state.clone(), old.answer_at(writer.last))
    };
    durable.await?;
    copy.rows(upto + 1, last.main).await?;
    if !held.holds() {
        return Err(Refusal::Compacted { revision: old.publisher.compacted() }.into());
    }
    copy.meta(last.main).await?;
    state = State { floors: routes.floors_from(&old.routes, &last.floors), unfinished: false, ..last };
    state.reserve = reopen::first_reserve(&shared.options, routes.any_volatile(), state.main);
    filling.finish(&state).await?;
    half.swap(&old, &new, |from, to| {
        (to.reserved, to.last) = (state.reserve, from.last);
        new.publisher.follow(state.main, state.compacted, &state.floors);
        to.state = state;
        std::mem::swap(&mut *old.hashes.lock(), &mut *new.hashes.lock());
    });
    Ok(())
}

/// How fast so many bytes are copied: what the copy reads may be let go if it takes longer than a pin may.
fn rate(options: &Options, bytes: u64) -> u64 {
    match options.reshard_bytes_per_second {
        0 => 0,
        rate => rate.max(bytes / (options.pin_age_max.as_secs() / 3).max(1)),
    }
}

/// What follows the snapshot on its way from one core to the other, which nobody sees yet.
struct Copy<'a> {
    old: &'a Core,
    new: &'a Core,
    filling: &'a Filling<'a>,
    state: &'a State,
}

impl Copy<'_> {
    /// Copies the rows of revisions `from..=to`, which are pinned; how many those were.
    async fn rows(&self, from: u64, to: u64) -> Result<u64> {
        let state = self.state_at(to);
        let mut rows = Rows::of_shards(self.old, (0..self.old.shards.len()).collect(), from, to);
        let (mut edits, mut bytes, mut count) = (Vec::new(), 0, 0);
        while let Some(row) = rows.next_row()? {
            if row.tombstone && is_on(Defect::BringBackOverOldRows) {
                continue;
            }
            let shard = &self.new.shards[self.new.routes.shard_of(&row.kv.key)];
            let edit = edit(shard.tree, &row);
            bytes += edit.key.len() + edit.edit.len();
            edits.push(edit);
            count += 1;
            learn(shard, &row);
            if self.filling.is_batch(bytes) {
                bytes = 0;
                self.filling.batch(std::mem::take(&mut edits), &state).await?;
            }
        }
        self.filling.batch(edits, &state).await?;
        Ok(count)
    }

    /// Of what has rows up to `main`: a check of what a kill leaves finds none above its revision.
    fn state_at(&self, main: u64) -> State {
        State { main: main.max(self.state.main), ..self.state.clone() }
    }

    /// Makes the metadata of the new one, which has rows up to `upto`, that of the old one.
    async fn meta(&self, upto: u64) -> Result<()> {
        let mut before = meta(self.new)?;
        let tree = self.new.meta;
        let mut edits = Vec::new();
        for (key, value) in meta(self.old)? {
            if before.remove(&key).is_none_or(|before| before != value) {
                edits.push(TreeEdit { tree, key, edit: Edit::Put { head: Bytes::new(), body: value } });
            }
        }
        edits.extend(before.into_keys().map(|key| TreeEdit { tree, key, edit: Edit::Remove }));
        self.filling.batch(edits, &self.state_at(upto)).await
    }
}

fn learn(shard: &Shard, row: &StoredRow) {
    if row.tombstone {
        shard.keys.tombstone(&row.kv.key, row.at);
    } else {
        let life = shard.keys.put(&row.kv.key, row.at);
        debug_assert_eq!(life.version, row.kv.version.cast_unsigned());
    }
}

fn meta(core: &Core) -> Result<BTreeMap<Bytes, Bytes>> {
    let mut all = BTreeMap::new();
    core.store.view(core.meta)?.ascend(Bound::Unbounded, &mut |key, _, body| {
        all.insert(Bytes::copy_from_slice(key), body.load()?);
        Ok(true)
    })?;
    Ok(all)
}

fn edit(tree: TreeId, row: &StoredRow) -> TreeEdit {
    let put = (!row.tombstone).then_some(NewPut {
        value: &row.kv.value,
        created: row.kv.create_revision.cast_unsigned(),
        version: row.kv.version.cast_unsigned(),
        lease: row.kv.lease,
    });
    let mut bytes = Vec::with_capacity(row.kv.key.len() + row.kv.value.len() + 64);
    let place = row::encode_row(&mut bytes, NewRow { at: row.at, key: &row.kv.key, put });
    let bytes = Bytes::from(bytes);
    TreeEdit { tree, key: place.key(&bytes), edit: Edit::Put { head: place.head(&bytes), body: place.body(&bytes) } }
}

#[cfg(test)]
mod tests {
    use super::rate;
    use crate::engine::Engine;
    use crate::options::Options;
    use crate::request::PutRequest;
    use crate::routes::Routes;
    use std::sync::Arc;

    #[test]
    fn what_is_large_is_copied_before_a_pin_is_let_go() {
        let options = Options { reshard_bytes_per_second: 1000, ..Options::default() };
        let seconds = options.pin_age_max.as_secs();
        assert_eq!((rate(&options, 1000 * seconds / 4), rate(&options, 1000 * seconds)), (1000, 3000));
        assert_eq!(rate(&Options { reshard_bytes_per_second: 0, ..options }, u64::MAX), 0);
    }

    /// Whoever has begun on the old core renews leases of the new one, and what is counted does not go back.
    #[test]
    fn leases_and_counters_are_those_of_before() {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::open(dir.path(), Default::default()).unwrap();
        let ks = engine.create_keyspace("ks", Routes::single()).unwrap();
        ks.lease_grant(5, 60).wait().unwrap();
        ks.put(PutRequest { lease: 5, ..PutRequest::new("e1", "v") }).wait().unwrap();
        let (old, put_bytes) = (Arc::clone(&ks.core()), ks.stats().put_bytes);
        engine.reshard("ks", Routes::parse("e=e").unwrap(), |_| ()).unwrap().wait().unwrap();
        assert!(!Arc::ptr_eq(&old, &ks.core()) && Arc::ptr_eq(&old.lessor, &ks.core().lessor));
        assert_eq!(
            (ks.stats().put_bytes, ks.lease_time_to_live(5, true).unwrap().keys),
            (put_bytes, vec!["e1".into()])
        );
    }
}
