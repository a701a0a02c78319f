//! Opening: journal records back to edits, rows back to indexes.

use crate::change::Scratch;
use crate::check::{self, Life};
use crate::core::{Core, Gate, Shard, Sweep, Writer};
use crate::counts::Counts;
use crate::error::Result;
use crate::keys::Keys;
use crate::lease::Lessor;
use crate::meta::{self, StoredLease};
use crate::options::{Durability, Face, Options};
use crate::pace::{Beside, CompactionPace, Paces};
use crate::publish::Publisher;
use crate::record::{Record, State};
use crate::routes::Routes;
use crate::row::{RowHead, row_revision};
use crate::watch::Hub;
use bytes::Bytes;
use polybolt_engine::defect::{Defect, is_on};
use polybolt_engine::run::{Clock, Signal};
use polybolt_engine::store::Store;
use polybolt_engine::sync::Mutex;
use polybolt_engine::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use polybolt_engine::{
    Damage, Error as EngineError, Place, Position, Replay, Replayed, SpaceInfo, TreeClass, TreeId, TreeSpec, Watermark,
};
use polybolt_index::{Batch, Index, LoadError, Loader, Revision, Row};
use std::collections::HashMap;
use std::ops::Bound;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::Duration;

/// A core that another has replaced, whose files stay while somebody reads them.
pub(crate) struct Retired {
    pub(crate) core: Arc<Core>,
    pub(crate) since: Duration,
}

/// What every keyspace of an engine shares.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) store: Arc<Store>,
    pub(crate) options: Arc<Options>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) work: Signal,
    pub(crate) closed: Arc<AtomicBool>,
    /// False where somebody steps the jobs.
    pub(crate) threads: bool,
    pub(crate) retired: Arc<Mutex<Vec<Retired>>>,
    /// Of keyspaces that are opened next.
    pub(crate) pace: Arc<Mutex<CompactionPace>>,
}

/// The keyspace and the generation that a space's name tells. A snapshot that is installed goes into a space
/// of the next generation, which takes over with the one manifest commit in which it is not unfinished.
pub(crate) fn keyspace_of(space: &str) -> (&str, u64) {
    match space.split_once('+') {
        Some((name, generation)) => (name, generation.parse().unwrap_or(0)),
        None => (space, 1),
    }
}

/// The name of a keyspace's next space.
pub(crate) fn next_space(store: &Store, name: &str) -> String {
    let spaces = store.spaces();
    let known = spaces.iter().map(|space| keyspace_of(&space.name)).filter(|(of, _)| *of == name);
    format!("{name}+{}", known.map(|(_, generation)| generation).max().unwrap_or(0) + 1)
}

/// Splits spaces into those that hold a keyspace now and what is left over: restores and installs that
/// were not finished, and what an install replaced.
pub(crate) fn current_spaces(spaces: Vec<SpaceInfo>) -> (Vec<SpaceInfo>, Vec<SpaceInfo>) {
    let unfinished = |space: &SpaceInfo| State::decode(&space.state).is_ok_and(|state| state.unfinished);
    let finished = spaces.iter().filter(|space| !unfinished(space)).map(|space| keyspace_of(&space.name));
    let mut newest: HashMap<String, u64> = HashMap::new();
    for (name, generation) in finished {
        let highest = newest.entry(name.to_owned()).or_default();
        *highest = generation.max(*highest);
    }
    spaces.into_iter().partition(|space| {
        let (name, generation) = keyspace_of(&space.name);
        !unfinished(space) && newest.get(name) == Some(&generation)
    })
}

/// Turns journal records back into edits.
pub(crate) struct Replayer<'a> {
    pub(crate) options: &'a Options,
    routes: HashMap<u32, Routes>,
}

impl<'a> Replayer<'a> {
    pub(crate) fn new(options: &'a Options) -> Self {
        Replayer { options, routes: HashMap::new() }
    }

    fn routes(&mut self, space: &SpaceInfo) -> Result<&Routes, EngineError> {
        match self.routes.entry(space.id.0) {
            std::collections::hash_map::Entry::Occupied(known) => Ok(known.into_mut()),
            std::collections::hash_map::Entry::Vacant(unknown) => Ok(unknown.insert(decode_routes(space)?)),
        }
    }
}

impl Replay for Replayer<'_> {
    fn replay(&mut self, space: &SpaceInfo, state: &[u8], record: &[u8]) -> Result<Replayed, EngineError> {
        let damaged = |damage| damaged(space, damage);
        let mut state = State::decode(state).map_err(damaged)?;
        let mut record = Record::decode(record).map_err(damaged)?;
        if is_on(Defect::ForgetFloorInReplay) {
            record.head.floor = None;
        }
        if !record.follows(state.history) {
            return Err(damaged(Damage::Malformed { what: "a record does not follow from the history before it" }));
        }
        state.follow(&record.head).map_err(damaged)?;
        let trees: Vec<TreeId> = space.trees.iter().map(|tree| tree.id).collect();
        let mut edits = record.edits(self.routes(space)?, &trees).map_err(damaged)?;
        if is_on(Defect::ForgetMetaInReplay) {
            edits.retain(|edit| trees.last() != Some(&edit.tree));
        }
        Ok(Replayed { edits, state: state.encode() })
    }

    fn settled(&mut self, space: &SpaceInfo, state: &[u8], clean: bool) -> Result<Option<Bytes>, EngineError> {
        let mut state = State::decode(state).map_err(|damage| damaged(space, damage))?;
        let options = self.options;
        let routes = self.routes(space)?;
        if state.floors.len() != routes.shards().len() {
            let (expected, found) = (routes.shards().len() as u64, state.floors.len() as u64);
            return Err(damaged(space, Damage::Mismatch { field: "count of floors", expected, found }));
        }
        check_routes(options, routes)?;
        let volatile = |at: usize| routes.shards()[at].volatile;
        let batch = options.durability != Durability::Sync;
        let any_volatile = (0..routes.shards().len()).any(volatile);
        // A Volatile shard that could not be written is empty after a clean stop too.
        let emptied = |at: usize| volatile(at) && (!clean || space.trees[at].emptied);
        let any_emptied = (0..state.floors.len()).any(emptied);
        let jumps = !is_on(Defect::LoseReserve) && options.face == Face::Standalone;
        if jumps && (!clean || any_emptied) && state.reserve >= state.main {
            // Anything up to the reserve may have been shown to somebody (R3, R4).
            let all = state.reserve > state.main && !clean && (batch || !any_volatile);
            // Above it: the state at the reserve itself may have been seen, and is another one now.
            state.main = state.reserve + 1;
            for (at, floor) in state.floors.iter_mut().enumerate() {
                if all || emptied(at) {
                    *floor = state.main;
                }
            }
        }
        state.reserve = first_reserve(options, any_volatile, state.main);
        Ok(Some(state.encode()))
    }
}

/// Up to where a keyspace at `main` has to reserve, 0 if it need not.
pub(crate) fn first_reserve(options: &Options, any_volatile: bool, main: u64) -> u64 {
    let batch = options.durability != Durability::Sync;
    if options.face == Face::Standalone && (batch || any_volatile) { main + options.reserve_ahead } else { 0 }
}

/// Refuses routes that the engine's face cannot have (R4).
pub(crate) fn check_routes(options: &Options, routes: &Routes) -> Result<(), EngineError> {
    let volatile = routes.shards().iter().find(|shard| shard.volatile);
    match volatile {
        Some(shard) if options.face == Face::Replayed => Err(EngineError::invalid(format!(
            "shard {:?} is volatile, which a replayed engine cannot have: nothing refills it",
            shard.name
        ))),
        _ => Ok(()),
    }
}

fn decode_routes(space: &SpaceInfo) -> Result<Routes, EngineError> {
    let specs: Vec<TreeSpec> = space.trees.iter().map(|tree| tree.spec.clone()).collect();
    Routes::decode(&space.config, &specs).map_err(|damage| damaged(space, damage))
}

fn meta_tree(space: &SpaceInfo) -> Result<TreeId, EngineError> {
    let last = space.trees.last().map(|tree| tree.id);
    last.ok_or_else(|| damaged(space, Damage::Malformed { what: "a keyspace without trees" }))
}

fn damaged(space: &SpaceInfo, damage: Damage) -> EngineError {
    EngineError::corrupt(Path::new(&format!("the state of keyspace {:?}", space.name)), Place::File, damage)
}

/// What the opening scan of a shard found.
struct Scanned {
    keys: Keys,
    leased: Leased,
}

/// Keys whose newest version names a lease.
type Leased = HashMap<Bytes, i64>;

/// Whose rows are opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rows {
    /// What this engine wrote.
    Ours,
    /// Those of a snapshot: each has to follow from the one of its key before, as `check` demands.
    Foreign,
}

/// What a core has in common with the one whose place it is to take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heir<'a> {
    pub(crate) of: &'a Core,
    /// Its leases too, as they are: both hold one history.
    pub(crate) leases: bool,
}

/// Opens keyspaces: scans every tree once, all processors at work. The hub of an heir is the other's to feed, until this
/// one is told to.
pub(crate) fn open_keyspaces(
    shared: &Shared,
    spaces: &[SpaceInfo],
    rows: Rows,
    threads: usize,
    heir: Option<Heir<'_>>,
) -> Result<Vec<Arc<Core>>> {
    let routes: Vec<Routes> = spaces.iter().map(decode_routes).collect::<Result<_, _>>()?;
    let mut tasks: Vec<(usize, usize)> = spaces
        .iter()
        .enumerate()
        .flat_map(|(space, info)| (0..info.trees.len().saturating_sub(1)).map(move |shard| (space, shard)))
        .collect();
    if threads > 1 {
        // The largest first, or all wait for one in the end.
        let rows = |&(space, shard): &(usize, usize)| {
            shared.store.tree_stats(spaces[space].trees[shard].id).map_or(0, |stats| stats.entries)
        };
        tasks.sort_by_cached_key(|task| std::cmp::Reverse(rows(task)));
    }
    let lanes = threads.min(tasks.len()).max(1);
    // Two batches of each lane: what was replayed has left the write buffers, and half of their room is enough.
    let buffers = usize::try_from(shared.options.buffer_bytes).unwrap_or(usize::MAX);
    let lane = Lane { batch_bytes: buffers / 4 / lanes, aside: threads > 1 };
    let next = AtomicUsize::new(0);
    let found: Mutex<HashMap<(usize, usize), Scanned>> = Mutex::default();
    let failed: Mutex<Option<crate::error::Error>> = Mutex::default();
    let run = || {
        while let Some(&(space, shard)) = tasks.get(next.fetch_add(1, Ordering::Relaxed)) {
            match scan(&shared.store, &spaces[space], &routes[space], shard, rows, lane) {
                Ok((index, leased)) => {
                    let keys = Keys::new(index, shared.store.id() as u64, shared.options.hash_index_from);
                    found.lock().insert((space, shard), Scanned { keys, leased });
                }
                Err(error) => {
                    failed.lock().get_or_insert(error);
                    return;
                }
            }
        }
    };
    if lanes == 1 {
        run();
    } else {
        std::thread::scope(|scope| {
            for _ in 1..lanes {
                scope.spawn(run);
            }
            run();
        });
    }
    if let Some(error) = failed.into_inner() {
        return Err(error);
    }
    let mut found = found.into_inner();
    let mut cores = Vec::with_capacity(spaces.len());
    for (at, (info, routes)) in spaces.iter().zip(routes).enumerate() {
        let scanned = (0..info.trees.len() - 1).filter_map(|shard| found.remove(&(at, shard))).collect();
        cores.push(open_keyspace(shared, info, routes, scanned, heir)?);
    }
    Ok(cores)
}

/// How a shard is scanned.
#[derive(Debug, Clone, Copy)]
struct Lane {
    /// Bytes of rows that are taken into the index together.
    batch_bytes: usize,
    /// The index of many rows is built on a thread of its own while they are read.
    aside: bool,
}

/// Reads a shard's rows into an index.
fn scan(
    store: &Store,
    space: &SpaceInfo,
    routes: &Routes,
    shard: usize,
    rows: Rows,
    lane: Lane,
) -> Result<(Index, Leased)> {
    let Lane { batch_bytes, aside } = lane;
    let scan = |take: &mut Take<'_>| scan_rows(store, space, routes, shard, take);
    if rows == Rows::Foreign {
        let state = State::decode(&space.state).map_err(|damage| damaged(space, damage))?;
        let floor = state.floors.get(shard).copied().unwrap_or(0).max(state.compacted.max(0).cast_unsigned());
        let mut loader = Loader::new();
        let leased = scan(&mut |key, at, row| {
            let before = loader.newest(key).map(|(at, created, version)| Life { at, created, version });
            let life = Life { at, created: row.created, version: row.version };
            match check::wrong(before, life, floor) {
                Some(what) => Err(Damage::Malformed { what }),
                None => loader.row(key, at, kind_of(row)).map_err(not_allowed),
            }
        })?;
        return Ok((loader.finish(), leased));
    }
    if !aside || store.tree_stats(space.trees[shard].id)?.entries < ROWS_ASIDE {
        let (mut loader, mut batch) = (Loader::new(), Batch::default());
        let leased = scan(&mut |key, at, row| {
            if batch.bytes() >= loader.batch_bytes(batch_bytes) {
                loader.batch(&mut batch).map_err(not_allowed)?;
            }
            batch.row(key, at, kind_of(row)).map_err(not_allowed)
        })?;
        loader.batch(&mut batch).map_err(|error| damaged(space, not_allowed(error)))?;
        return Ok((loader.finish(), leased));
    }
    std::thread::scope(|scope| {
        let (full, batches) = mpsc::sync_channel::<Batch>(0);
        let (emptied, empty) = mpsc::channel();
        let reader = scope.spawn(move || -> Result<_> {
            // Two batches: one fills while the other is taken in.
            let (mut batch, mut spare, mut bytes_max) = (Batch::default(), Some(Batch::default()), batch_bytes);
            let gone = |_| Damage::Malformed { what: "an index could not be built" };
            let leased = scan(&mut |key, at, row| {
                if batch.bytes() >= bytes_max {
                    let next = spare.take().map_or_else(|| empty.recv(), |next| Ok((next, bytes_max)));
                    let (next, bytes) = next.map_err(|_| gone(()))?;
                    bytes_max = bytes;
                    // Here, where less is done than on the other side.
                    batch.sort();
                    full.send(std::mem::replace(&mut batch, next)).map_err(|_| gone(()))?;
                }
                batch.row(key, at, kind_of(row)).map_err(not_allowed)
            })?;
            batch.sort();
            full.send(batch).map_err(|_| damaged(space, gone(())))?;
            Ok(leased)
        });
        // On this thread the index, so that it takes memory that the replay before it has let go.
        let mut loader = Loader::new();
        for mut batch in batches {
            if let Err(error) = loader.batch(&mut batch) {
                return Err(damaged(space, not_allowed(error)).into());
            }
            // Nobody waits for it once the last row is read.
            drop(emptied.send((batch, loader.batch_bytes(batch_bytes))));
        }
        let leased = reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok((loader.finish(), leased))
    })
}

/// So many rows are worth a thread.
const ROWS_ASIDE: u64 = 50_000;

/// Takes a row of a key.
type Take<'a> = dyn FnMut(&[u8], Revision, &RowHead<'_>) -> Result<(), Damage> + 'a;

fn kind_of(row: &RowHead<'_>) -> Row {
    if row.tombstone { Row::Tombstone } else { Row::Put { created: row.created, version: row.version } }
}

fn not_allowed(_: LoadError) -> Damage {
    Damage::Malformed { what: "a row that no history allows" }
}

/// Shows the rows of a shard, ascending; returns the keys whose newest version names a lease.
fn scan_rows(
    store: &Store,
    space: &SpaceInfo,
    routes: &Routes,
    shard: usize,
    take: &mut Take<'_>,
) -> Result<HashMap<Bytes, i64>> {
    let tree = space.trees[shard].id;
    let mut leased: HashMap<Bytes, i64> = HashMap::new();
    let path = store.tree_stats(tree)?.path;
    let view = store.view(tree)?;
    store.scan(tree, &mut |tree_key, head, _| {
        let damaged = |damage| EngineError::corrupt(&path, Place::File, damage);
        let at = row_revision(tree_key).map_err(damaged)?;
        let row = RowHead::decode(head).map_err(damaged)?;
        let long;
        let key = match row.key {
            Some(key) => key,
            None => {
                let missing = Damage::Malformed { what: "a row that was just seen is not there" };
                long = view.get(tree_key)?.ok_or_else(|| damaged(missing))?.body;
                row.key_in(&long).map_err(damaged)?
            }
        };
        // A file counts only keys that its routes give it (R9).
        if routes.shard_of(key) != shard {
            return Ok(());
        }
        take(key, at, &row).map_err(damaged)?;
        if row.lease != 0 && !row.tombstone {
            leased.insert(Bytes::copy_from_slice(key), row.lease);
        } else if !leased.is_empty() {
            leased.remove(key);
        }
        Ok(())
    })?;
    Ok(leased)
}

fn open_keyspace(
    shared: &Shared,
    info: &SpaceInfo,
    routes: Routes,
    scanned: Vec<Scanned>,
    heir: Option<Heir<'_>>,
) -> Result<Arc<Core>> {
    let Shared { store, options, clock, .. } = shared;
    let state = State::decode(&info.state).map_err(|damage| damaged(info, damage))?;
    let meta = meta_tree(info)?;
    let mut lessor = Lessor::new(options.lease_checkpoint_interval);
    let now = clock.monotonic();
    store.scan(meta, &mut |_, _, _| Ok(()))?;
    let meta_path = store.tree_stats(meta)?.path;
    store.view(meta)?.ascend(Bound::Included(b"l"), &mut |key, _, body| {
        let Some(id) = meta::lease_id(key) else {
            return Ok(false);
        };
        let lease = StoredLease::decode(&body.load()?);
        let lease = lease.map_err(|damage| EngineError::corrupt(&meta_path, Place::File, damage))?;
        lessor.load(id, lease.ttl.max(options.min_lease_ttl), lease.remaining);
        Ok(true)
    })?;
    let mut shards = Vec::with_capacity(scanned.len());
    for (scanned, tree) in scanned.into_iter().zip(&info.trees) {
        for (key, lease) in &scanned.leased {
            lessor.attach(key, *lease);
        }
        shards.push(Shard {
            name: tree.spec.name.clone(),
            tree: tree.id,
            reader: store.reader(tree.id)?,
            volatile: tree.spec.class == TreeClass::Volatile,
            keys: scanned.keys,
            lingering: AtomicUsize::new(0),
        });
    }
    if options.face == Face::Standalone {
        lessor.promote(now, options.lease_extend);
    }
    let hub = heir.map_or_else(
        || {
            let hub = Hub::default();
            hub.publish(state.main);
            Arc::new(hub)
        },
        |heir| Arc::clone(&heir.of.hub),
    );
    let own = || Arc::new(Mutex::new(lessor));
    let lessor = heir.filter(|heir| heir.leases).map_or_else(own, |heir| Arc::clone(&heir.of.lessor));
    let durable = store.durable();
    let at_once = options.durability != Durability::Sync;
    let seen = (state.main, state.compacted, &state.floors[..]);
    let publisher = Publisher::new(seen, durable, at_once, Arc::clone(&hub), shared.work.clone());
    let publisher = Arc::new(publisher);
    let listener: Arc<dyn polybolt_engine::DurableListener> = Arc::<Publisher>::clone(&publisher);
    store.listen(info.id, listener);
    let paces = Paces::new(*shared.pace.lock(), shards.len());
    let core = Core {
        name: keyspace_of(&info.name).0.to_owned(),
        id: info.id,
        store: Arc::clone(store),
        options: Arc::clone(options),
        clock: Arc::clone(clock),
        routes: Arc::new(routes),
        shards,
        meta,
        work: shared.work.clone(),
        writer: Mutex::new(Writer {
            gate: Gate::Open,
            line: Default::default(),
            reserved: state.reserve,
            state,
            last: durable,
            reserving: None,
            scratch: Scratch::new(info.id),
        }),
        in_line: AtomicUsize::new(0),
        lessor,
        publisher,
        hub,
        pins: Arc::default(),
        sweep: Mutex::new(Sweep::default()),
        counts: Counts::default(),
        swept: Arc::new(Watermark::new(Position(0))),
        rounds: Mutex::default(),
        hashes: Mutex::default(),
        dropped: AtomicBool::new(false),
        closed: Arc::clone(&shared.closed),
        defragmenting: AtomicBool::new(false),
        threads: shared.threads,
        quota: Mutex::default(),
        counters: heir.map(|heir| Arc::clone(&heir.of.counters)).unwrap_or_default(),
        paces,
        beside: Beside::new(!shared.threads),
    };
    Ok(Arc::new(core))
}

#[cfg(test)]
mod tests {
    use crate::engine::Engine;
    use crate::error::Error;
    use crate::install::Older;
    use crate::request::{PutRequest, RangeRequest, Span};
    use crate::routes::Routes;
    use crate::snapshot::tests::{row, stream};
    use crate::write::Extra;
    use polybolt_engine::Error as EngineError;

    /// A deletion of nothing, a version that is missing: a reader would trust them, and `check` call them damage.
    #[test]
    fn a_snapshot_whose_rows_do_not_follow_from_each_other_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::open(dir.path(), Default::default()).unwrap();
        let ks = engine.create_keyspace("ks", Routes::single()).unwrap();
        let first = ks.put(PutRequest::new("a", "1")).wait().unwrap().revision;
        for rows in [
            vec![row(2, b"b", 0)],
            vec![row(2, b"b", 1), row(5, b"b", 4)],
            vec![row(5, b"b", 3)],
            vec![row(2, b"b", 1), row(3, b"b", 0), row(4, b"b", 0)],
        ] {
            let stream = stream(&rows, &[]);
            let refusals = [
                engine.restore("copy", None, &stream[..], &mut |_| ()).map(|_| 0),
                engine.install("ks", &stream[..], Older::Refuse).unwrap().wait(),
            ];
            for refused in refusals {
                assert!(matches!(refused, Err(Error::Storage(EngineError::Corrupt { .. }))), "{refused:?}");
            }
            assert_eq!((engine.keyspaces(), ks.revision()), (vec!["ks".to_owned()], first));
        }
        let sound = stream(&[row(2, b"b", 1), row(3, b"b", 2), row(4, b"b", 0), row(6, b"b", 1)], &[]);
        assert_eq!(engine.install("ks", &sound[..], Older::Refuse).unwrap().wait().unwrap(), 9);
        engine.verify(&mut |_| ()).unwrap();
    }

    /// No request makes such a row, but imports and other versions may have.
    #[test]
    fn a_key_of_a_lease_that_is_gone_is_kept_lse_15() {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::open(dir.path(), Default::default()).unwrap();
        let ks = engine.create_keyspace("ks", Routes::single()).unwrap();
        ks.lease_grant(5, 60).wait().unwrap();
        for lease in [99, 5] {
            let put = PutRequest { lease, ..PutRequest::new(format!("of-{lease}"), "v") };
            let unchecked = ks.core().submit(0, move |core, writer| {
                core.evaluate(writer, Extra::default(), |evaluation| evaluation.put(&put))
            });
            unchecked.wait().unwrap();
        }
        drop(ks);
        engine.close().unwrap();
        let engine = Engine::open(dir.path(), Default::default()).unwrap();
        let ks = engine.keyspace("ks").unwrap();
        let kvs = ks.range(&RangeRequest::new(Span::prefix("of-"))).unwrap().kvs;
        let found: Vec<(&[u8], i64)> = kvs.iter().map(|kv| (&kv.key[..], kv.lease)).collect();
        assert_eq!(found, [(&b"of-5"[..], 5), (b"of-99", 99)]);
        assert_eq!(ks.leases(), [5]);
        assert_eq!(ks.lease_time_to_live(5, true).unwrap().keys, ["of-5"]);
        assert!(ks.lease_time_to_live(99, true).is_none());
        // With the lease that it has, it goes; the other stays.
        ks.lease_revoke(5).wait().unwrap();
        assert_eq!(ks.range(&RangeRequest::new(Span::prefix("of-"))).unwrap().count, 1);
    }
}
