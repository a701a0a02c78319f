//! An open keyspace from the inside: its shards, its writer's state, and how rows are found.
//!
//! An installed snapshot and a change of routes replace the whole of it: handles hold a [`Current`], which says
//! what a keyspace is now. Who has begun on what was replaced ends there, but for writers, who go on to what replaced it.
//!
//! Lock order: `writer`, then `lessor`, then a shard's index, then the publisher's. Readers take an
//! index lock for a bounded run of keys and hold nothing while they read rows.

pub(crate) use crate::change::Found;
use crate::change::Scratch;
use crate::counts::Counts;
use crate::error::{Refusal, Result};
use crate::keys::Keys;
use crate::lease::Lessor;
use crate::linger::Lingering;
use crate::options::{Durability, Face, Options};
use crate::pace::{Beside, Paces, Speed};
use crate::pins::{Pin, Pins};
use crate::publish::Publisher;
use crate::record::State;
use crate::request::HashKv;
use crate::routes::{Routes, Segment};
use crate::stats::Counters;
use crate::watch::Hub;
use arc_swap::{ArcSwap, Guard};
use bytes::Bytes;
use polybolt_engine::catalog::Reader;
use polybolt_engine::defect::{Defect, is_on};
use polybolt_engine::run::{Clock, Signal, pause};
use polybolt_engine::store::Store;
use polybolt_engine::sync::Mutex;
use polybolt_engine::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use polybolt_engine::view::View;
use polybolt_engine::{Damage, Place, Position, SpaceId, Ticket, TreeId, Watermark};
use polybolt_index::{KeyRange, Revision};
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Keys looked up under one hold of an index lock.
pub(crate) const KEYS_PER_RUN: usize = 512;

/// One shard of an open keyspace.
#[derive(Debug)]
pub(crate) struct Shard {
    pub(crate) name: String,
    pub(crate) tree: TreeId,
    pub(crate) reader: Reader,
    pub(crate) volatile: bool,
    pub(crate) keys: Keys,
    /// How many rows linger; those are in the sweep.
    pub(crate) lingering: AtomicUsize,
}

impl Shard {
    /// About how many bytes of memory those rows take that linger.
    pub(crate) fn lingering_bytes(&self) -> u64 {
        self.lingering.load(Ordering::Relaxed) as u64 * 80
    }
}

/// A request in line, which has its turn when it is called: Some if there is no room yet, and when
/// there may be.
pub(crate) type Turn = Box<dyn FnMut(&Core, &mut Writer, Duration) -> Option<Ticket> + Send>;

/// Requests that wait for room, in the order in which they came, and the bytes that each holds.
#[derive(Default)]
pub(crate) struct Line {
    turns: VecDeque<(Turn, usize)>,
    bytes: usize,
}

impl Line {
    pub(crate) fn len(&self) -> usize {
        self.turns.len()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn join(&mut self, turn: Turn, bytes: usize) {
        self.bytes += bytes;
        self.turns.push_back((turn, bytes));
    }

    pub(crate) fn take_first(&mut self) -> Option<(Turn, usize)> {
        let (turn, bytes) = self.turns.pop_front()?;
        self.bytes -= bytes;
        Some((turn, bytes))
    }

    /// Back to the head of it.
    pub(crate) fn put_back(&mut self, turn: Turn, bytes: usize) {
        self.bytes += bytes;
        self.turns.push_front((turn, bytes));
    }
}

/// Whether a core takes writes.
pub(crate) enum Gate {
    Open,
    /// Not until it is decided whether another takes its place.
    Frozen(Arc<Watermark>),
    /// Another has taken its place.
    Replaced(Arc<Core>),
}

/// What only the writer touches.
pub(crate) struct Writer {
    pub(crate) gate: Gate,
    pub(crate) line: Line,
    pub(crate) state: State,
    /// The newest position anything was computed from.
    pub(crate) last: Position,
    /// What the next commit is made in.
    pub(crate) scratch: Scratch,
    /// Under `Batch`: mains up to here are reserved durably, in both slots of the manifest; and more is being.
    pub(crate) reserved: u64,
    pub(crate) reserving: Option<Reserving>,
}

/// A reserve on its way to the disk.
#[derive(Debug)]
pub(crate) struct Reserving {
    pub(crate) upto: u64,
    /// The position of the state that has it.
    pub(crate) at: Position,
    /// Checkpoints counted when one slot was seen to have it.
    pub(crate) in_one_slot: Option<u64>,
}

/// A hash under way (`hash.rs`).
#[derive(Debug)]
pub(crate) struct Pass {
    /// Hashed as of this revision and compacted revision.
    pub(crate) at: u64,
    pub(crate) compacted: i64,
    /// Of each shard: rows at or below this have to be the newest of their keys, and at which revision.
    pub(crate) kept: Vec<(i64, u64)>,
    pub(crate) next: Revision,
    pub(crate) crc: u32,
}

/// A compaction that is to have a round of the sweep of its own.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Round {
    pub(crate) at: i64,
    /// The compacted revision before it, and whether that one's round was over.
    pub(crate) before: i64,
    pub(crate) was_over: bool,
}

/// What of a shard goes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Half {
    #[default]
    Superseded,
    /// Once nothing is left that they hide.
    Tombstones,
}

/// A sweep under way. Revisions are taken out of a shard's index first, many of them, and then out of its tree, in
/// the order in which they lie there: so each leaf is written once for all that goes out of it.
#[derive(Debug, Default)]
pub(crate) struct Sweep {
    /// Out of the index of `next_shard`. Once they are complete they are sorted, and those before `gone` are out of
    /// the tree too.
    pub(crate) taken: Vec<Revision>,
    pub(crate) complete: bool,
    pub(crate) gone: usize,
    /// Those of them that are to go from the leaves that were weighed last, with what lingered there.
    pub(crate) going: Going,
    /// Nothing more is to be taken in this half.
    pub(crate) last: bool,
    pub(crate) next_shard: usize,
    pub(crate) half: Half,
    /// The newest tombstone that was taken of the keys of each hash, and what lingers that these hide.
    pub(crate) buried: HashMap<u32, Revision>,
    pub(crate) hidden: HashSet<Revision>,
    /// What lingers, by shard.
    pub(crate) lingering: Vec<Lingering>,
    /// How many of those were taken out for want of room since so many checkpoints.
    pub(crate) reclaimed: (u64, usize),
    /// Both halves of a shard go up to the same revision.
    pub(crate) upto: Option<u64>,
    pub(crate) speed: Speed,
    pub(crate) begun: bool,
    /// What the round under way hashes before it takes anything out.
    pub(crate) hashing: Option<Pass>,
    pub(crate) hashed: Option<HashKv>,
    /// The compacted revision that the round under way is for, and whether a pin has held it back.
    pub(crate) round: i64,
    pub(crate) held: bool,
    /// When the round under way began.
    pub(crate) since: Duration,
    /// The compacted revision that the last whole round was for.
    pub(crate) done: i64,
    /// How often a shard's floor had been raised when the round under way began, and when the last whole one did.
    pub(crate) raised: u64,
    pub(crate) raised_done: u64,
    /// Not before then: a pin held it back, or buffers were full.
    pub(crate) not_before: Duration,
}

/// Rows that are to go next, in order. A step may end before all of a leaf are gone.
#[derive(Debug, Default)]
pub(crate) struct Going {
    pub(crate) rows: VecDeque<Revision>,
    /// How many of them have not been counted as removed yet.
    pub(crate) new: usize,
}

impl Sweep {
    /// True if all that was taken was weighed, and gone if it has to.
    pub(crate) fn is_through(&self) -> bool {
        self.gone == self.taken.len() && self.going.rows.is_empty()
    }
}

/// A keyspace by name, for all handles to it.
pub(crate) struct Current {
    // Set at open, never changed.
    pub(crate) name: String,
    core: ArcSwap<Core>,
    /// True while something is on its way to replace it.
    pub(crate) replacing: AtomicBool,
}

impl Current {
    pub(crate) fn new(core: Arc<Core>) -> Arc<Self> {
        let name = core.name.clone();
        Arc::new(Current { name, core: ArcSwap::new(core), replacing: AtomicBool::new(false) })
    }

    /// What it is now. Cheap.
    pub(crate) fn core(&self) -> Guard<Arc<Core>> {
        self.core.load()
    }

    /// Requires: the writers of both are held.
    pub(crate) fn replace(&self, core: Arc<Core>) {
        self.core.store(core);
    }
}

impl std::fmt::Debug for Current {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Current").field("name", &self.name).finish_non_exhaustive()
    }
}

/// An open keyspace.
pub(crate) struct Core {
    // Set at open, never changed.
    pub(crate) name: String,
    pub(crate) id: SpaceId,
    pub(crate) store: Arc<Store>,
    pub(crate) options: Arc<Options>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) routes: Arc<Routes>,
    pub(crate) shards: Vec<Shard>,
    pub(crate) meta: TreeId,
    /// Raised when there is housekeeping to do.
    pub(crate) work: Signal,

    pub(crate) writer: Mutex<Writer>,
    /// How many requests wait for room in the writer's line.
    pub(crate) in_line: AtomicUsize,
    /// Shared by those who follow each other without a change that clients see.
    pub(crate) lessor: Arc<Mutex<Lessor>>,
    pub(crate) publisher: Arc<Publisher>,
    pub(crate) hub: Arc<Hub>,
    pub(crate) pins: Arc<Pins>,
    pub(crate) sweep: Mutex<Sweep>,
    pub(crate) counts: Counts,
    /// Up to which compacted revision everything was swept.
    pub(crate) swept: Arc<Watermark>,
    /// With `remember_hashes`: compactions that have no round yet, and the newest hashes.
    pub(crate) rounds: Mutex<VecDeque<Round>>,
    pub(crate) hashes: Mutex<BTreeMap<i64, HashKv>>,
    pub(crate) dropped: AtomicBool,
    /// The engine was closed.
    pub(crate) closed: Arc<AtomicBool>,
    /// True while somebody defragments it.
    pub(crate) defragmenting: AtomicBool,
    /// False where somebody steps the jobs.
    pub(crate) threads: bool,
    pub(crate) quota: Mutex<Quota>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) paces: Paces,
    pub(crate) beside: Beside,
}

/// What is known of the room that the quota leaves.
#[derive(Debug, Default)]
pub(crate) struct Quota {
    looked: Option<Duration>,
    /// Bytes of the files when they were looked at.
    size: u64,
    checkpoints: u64,
    /// The cost of what was written since the newest checkpoint that was seen.
    since: u64,
}

/// How long a look at the sizes of the files is good for.
const QUOTA_LOOKS: Duration = Duration::from_millis(100);

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Views of shards.
pub(crate) type Views = Vec<(TreeId, View)>;

/// A revision that a reader may read at, pinned.
#[derive(Debug)]
pub(crate) struct ReadPoint {
    /// The visible revision when the read began.
    pub(crate) visible: u64,
    pub(crate) at: u64,
    pub(crate) pin: Pin,
}

impl Core {
    /// Runs with the writer of this core, or of what has replaced it.
    pub(crate) fn with_writer<T>(self: &Arc<Self>, run: impl FnOnce(&Arc<Self>, &mut Writer) -> T) -> T {
        let mut writer = self.writer.lock();
        match &writer.gate {
            Gate::Replaced(next) => {
                let next = Arc::clone(next);
                drop(writer);
                next.with_writer(run)
            }
            _ => run(self, &mut writer),
        }
    }

    /// True if mains have to be reserved ahead, durably.
    pub(crate) fn reserves(&self) -> bool {
        self.options.face == Face::Standalone && (self.is_batch() || self.shards.iter().any(|shard| shard.volatile))
    }

    /// True if visible is applied.
    pub(crate) fn is_batch(&self) -> bool {
        self.options.durability != Durability::Sync
    }

    /// A ticket for everything sealed up to `position`; under `Batch` nobody waits.
    pub(crate) fn answer_at(&self, position: Position) -> Ticket {
        self.store.ticket(if self.is_batch() { Position(0) } else { position })
    }

    /// Fails once the keyspace was dropped or the engine closed.
    pub(crate) fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Refusal::Closed.into());
        }
        if self.dropped.load(Ordering::Acquire) {
            return Err(Refusal::KeyspaceNotFound { name: self.name.clone() }.into());
        }
        Ok(())
    }

    /// How many rows linger.
    pub(crate) fn lingering(&self) -> usize {
        self.shards.iter().map(|shard| shard.lingering.load(Ordering::Relaxed)).sum()
    }

    /// Bytes of all files.
    pub(crate) fn size(&self) -> u64 {
        let trees = self.shards.iter().map(|shard| shard.tree).chain([self.meta]);
        trees.filter_map(|tree| self.store.tree_stats(tree).ok()).map(|stats| stats.size).sum()
    }

    /// True if the quota leaves room for a write of this cost (QTA-2, QTA-3). Counted are the files, and
    /// what was written since they were looked at and checkpointed, so that a burst does not overshoot.
    pub(crate) fn has_room(&self, cost: u64) -> bool {
        let Some(max) = self.options.quota_bytes else {
            return true;
        };
        let now = self.clock.monotonic();
        let mut quota = self.quota.lock();
        if quota.looked.is_none_or(|looked| now.saturating_sub(looked) >= QUOTA_LOOKS) {
            let checkpoints = self.store.stats().checkpoints;
            if quota.checkpoints != checkpoints {
                (quota.checkpoints, quota.since) = (checkpoints, 0);
            }
            (quota.looked, quota.size) = (Some(now), self.size());
        }
        cost == 0 || quota.size + quota.since + cost < max
    }

    /// True if the quota is nearly used up.
    pub(crate) fn is_tight(&self) -> bool {
        self.options.quota_bytes.is_some_and(|max| self.quota.lock().size > max - max / 8)
    }

    /// Counts what a write took.
    pub(crate) fn take_room(&self, cost: u64) {
        if self.options.quota_bytes.is_some() {
            self.quota.lock().since += cost;
        }
    }

    /// The lowest revision that `segments` answer.
    pub(crate) fn floor(&self, segments: &[Segment]) -> i64 {
        let floors = segments.iter().map(|segment| self.floor_of(segment.shard));
        floors.max().unwrap_or_else(|| self.publisher.compacted())
    }

    /// The floor of each shard, without the compacted revision.
    pub(crate) fn own_floors(&self) -> Vec<i64> {
        (0..self.shards.len()).map(|shard| self.publisher.own_floor(shard)).collect()
    }

    /// The lowest revision that a shard answers.
    pub(crate) fn floor_of(&self, shard: usize) -> i64 {
        self.publisher.floor(shard)
    }

    /// The highest of those: what every shard answers.
    pub(crate) fn highest_floor(&self) -> i64 {
        (0..self.shards.len()).map(|shard| self.floor_of(shard)).max().unwrap_or_else(|| self.publisher.compacted())
    }

    /// Pins a revision.
    pub(crate) fn pin(&self, revision: u64) -> Pin {
        self.pins.pin(revision, self.clock.monotonic(), self.options.pin_age_max)
    }

    /// Pins the revision that a request asks for: <= 0 is the visible one.
    pub(crate) fn read_point(&self, segments: &[Segment], revision: i64) -> Result<ReadPoint> {
        self.read_point_above(|| self.floor(segments), revision)
    }

    /// The same of a read of which the floor is known only so.
    pub(crate) fn read_point_above(&self, lowest: impl Fn() -> i64, revision: i64) -> Result<ReadPoint> {
        self.check_open()?;
        loop {
            let visible = self.publisher.visible();
            let at = if revision <= 0 { visible } else { revision.cast_unsigned() };
            if at > visible {
                return Err(Refusal::FutureRevision { current: visible.cast_signed() }.into());
            }
            let (floor, pin);
            if is_on(Defect::PinAfterCheck) {
                floor = lowest();
                pause("read: checked");
                pin = self.pin(at);
            } else {
                pause("read: visible");
                pin = self.pin(at);
                pause("read: pinned");
                floor = lowest();
            }
            if at.cast_signed() >= floor {
                return Ok(ReadPoint { visible, at, pin });
            }
            if revision > 0 {
                return Err(Refusal::Compacted { revision: floor }.into());
            }
            // A compaction came in between: the current revision is a later one.
        }
    }

    /// Pins the compacted revision: rows above it stay, whatever is compacted meanwhile. Those at or below
    /// it that no read can see may go at any time.
    pub(crate) fn pin_compacted(&self) -> (i64, Pin) {
        loop {
            let compacted = self.publisher.compacted();
            let pin = self.pin(compacted.max(0).cast_unsigned());
            if self.publisher.compacted() == compacted {
                return (compacted, pin);
            }
        }
    }

    /// A key, if it is live at `at`.
    pub(crate) fn key_in(&self, shard: usize, key: &Bytes, at: u64) -> Option<Found> {
        let hit = self.shards[shard].keys.read().get(key, at)?;
        Some(Found { key: key.clone(), hit, shard, own: None })
    }

    /// Keys of one segment that are live at `at`, from `from` on; at most `max`.
    pub(crate) fn keys_in(&self, segment: &Segment, at: u64, max: usize, up: bool, out: &mut Vec<Found>) {
        let shard = segment.shard;
        let full = out.len().saturating_add(max);
        let mut start = segment.start.clone();
        let mut end = segment.end.clone();
        // In runs, so that the lock is never held for long.
        loop {
            let run = KEYS_PER_RUN.min(full - out.len());
            let before = out.len();
            let (mut keys, mut ends) = (Vec::new(), Vec::new());
            let visit = &mut |key: &[u8], hit| {
                keys.extend_from_slice(key);
                ends.push(keys.len());
                out.push(Found { key: Bytes::new(), hit, shard, own: None });
                if ends.len() == run { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            };
            let index = self.shards[shard].keys.read();
            let range = KeyRange { start: &start, end: end.as_deref() };
            if up {
                index.walk(range, at, visit)
            } else {
                index.walk_back(range, at, visit)
            }
            drop(index);
            // The keys of a run share their memory.
            let keys = Bytes::from(keys);
            let mut from = 0;
            for (found, to) in out[before..].iter_mut().zip(ends) {
                found.key = keys.slice(std::mem::replace(&mut from, to)..to);
            }
            if out.len() - before < run || out.len() >= full {
                return;
            }
            let Some(last) = out.last() else { return };
            if up {
                let mut next = last.key.to_vec();
                next.push(0);
                start = next.into();
            } else {
                end = Some(last.key.clone());
            }
        }
    }

    /// How many keys of the segments are live at `at`.
    pub(crate) fn count(&self, segments: &[Segment], at: u64) -> u64 {
        let newest = is_on(Defect::CountAtApplied) && at == self.publisher.visible();
        let at = if newest { u64::MAX } else { at };
        let newest = at >= self.publisher.visible();
        let in_segment = |segment: &Segment| {
            let keys = &self.shards[segment.shard].keys;
            if !newest {
                return self.counts.count(keys, segment, at);
            }
            keys.read().count(KeyRange { start: &segment.start, end: segment.end.as_deref() }, at)
        };
        segments.iter().map(in_segment).sum()
    }

    /// An error about a shard's file.
    pub(crate) fn damaged(&self, shard: &Shard, damage: Damage) -> polybolt_engine::Error {
        let path = self.store.tree_stats(shard.tree).map_or_else(|_| PathBuf::from(&shard.name), |stats| stats.path);
        polybolt_engine::Error::corrupt(&path, Place::File, damage)
    }
}
