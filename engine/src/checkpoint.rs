//! The dangerous sequence on one screen: cut, wait for the journal, build, sync, commit, publish.
//!
//! ```text
//! cut      every dirty space at a record boundary: its buffers freeze, its state is noted
//! wait     until the journal has made all of that durable: no manifest is ahead of the journal
//! build    new pages of each tree go to units that neither slot nor any view reaches
//! sync     the tree files: a power cut after the commit must find every page it names
//! commit   the other manifest slot, synced: from here a restart finds the new trees
//! publish  new roots to readers, frozen buffers go, the journal's segments are used again
//! ```
//!
//! A full disk is met in `build`, where files grow: all new pages are given back, the frozen buffers stay,
//! and the same cut is built again; and before a manifest is written that outgrows its slot, which is then
//! tried again. Any other failure of a durable file poisons the
//! store. A Volatile tree is built and published without a sync and is no part of the commit; its
//! failures are its own.

use crate::batch::{Durability, Edit};
use crate::buffer::TreeBuffer;
use crate::catalog::{Room, Space, Tree};
use crate::core::{Committer, Core};
use crate::defect::{Defect, is_on};
use crate::error::{Error, Result};
use crate::file::Written;
use crate::ids::UNIT_BYTES;
use crate::manifest::{JournalStart, Manifest};
use crate::run::{Job, Next, Signal, processors};
use crate::sync::MutexGuard;
use crate::sync::atomic::Ordering;
use crate::ticket::{Position, Ticket};
use crate::tree::{self, Root};
use bytes::Bytes;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

/// How long to wait before a full disk is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// What a checkpoint takes into the tree files.
#[derive(Debug, Default)]
pub struct Cut {
    spaces: Vec<CutSpace>,
    trees: Vec<CutTree>,
    /// Where replay begins once this is committed.
    start: JournalStart,
    /// The journal has to be durable up to here first.
    last: Position,
    /// Flush requests that this cut serves.
    serves: Position,
    /// Positions given out under `Batch` that this cut covers.
    covers: Position,
    epoch: u64,
    charged: u64,
    /// It has so little to write that it stays on one thread, and lets others run in between.
    small: bool,
}

#[derive(Debug)]
struct CutSpace {
    space: Arc<Space>,
    state: Bytes,
    last: Position,
}

#[derive(Debug)]
struct CutTree {
    space: Arc<Space>,
    tree: Arc<Tree>,
    frozen: Arc<TreeBuffer>,
    built: Option<Built>,
}

#[derive(Debug)]
struct Built {
    root: Root,
    end: u32,
    written: Written,
}

/// Freezes every dirty space. Cost follows the number of dirty spaces and their trees.
pub fn cut(core: &Core) -> Cut {
    let mut cut = Cut {
        serves: Position(core.flush_wanted.load(Ordering::SeqCst)),
        covers: Position(core.batch_position.load(Ordering::SeqCst)),
        // Before the first freeze: every record of a group before this is in a buffer that freezes.
        start: match core.journal.get() {
            Some(journal) => journal.boundary(),
            None => core.committer.lock().manifest.journal,
        },
        ..Cut::default()
    };
    let short = core.short.swap(false, Ordering::AcqRel) || core.full.load(Ordering::Acquire) || core.is_half_full();
    core.uncut.store(0, Ordering::Relaxed);
    core.uncut_batches.store(0, Ordering::Relaxed);
    for space in core.catalog.spaces() {
        let mut write = space.write.lock();
        if !write.dirty || space.is_dropped() {
            continue;
        }
        write.dirty = false;
        cut.charged += std::mem::take(&mut write.charged);
        for tree in &space.trees {
            if let Some(frozen) = tree.freeze() {
                let (space, tree) = (Arc::clone(&space), Arc::clone(tree));
                cut.trees.push(CutTree { space, tree, frozen, built: None });
            }
        }
        cut.last = cut.last.max(write.last);
        let (state, last) = (Bytes::copy_from_slice(&write.state), write.last);
        drop(write);
        cut.spaces.push(CutSpace { space, state, last });
    }
    let entries: usize = cut.trees.iter().map(|cut| cut.frozen.len()).sum();
    cut.small = !short && cut.charged < SMALL_BYTES && entries < SMALL_ENTRIES;
    cut
}

/// The most files that one checkpoint syncs one by one.
const SYNCS_MAX: usize = 16;

/// With less than so many bytes, and entries, a checkpoint that is in no hurry stays on its own thread: side by side its
/// few milliseconds would hold several processors at once, and whoever wakes up meanwhile waits for them.
const SMALL_BYTES: u64 = 8 << 20;
const SMALL_ENTRIES: usize = 8192;
/// So often it lets others run in between, all its trees together: each may take some milliseconds where all processors
/// are busy.
const BREATHS_MAX: u32 = 64;
/// It syncs more files than these side by side.
const SMALL_SYNCS_MAX: usize = 8;

impl Cut {
    /// True if it has nothing to write.
    pub fn is_empty(&self) -> bool {
        self.spaces.is_empty()
    }

    /// Builds the `at`th tree that is not built yet; false if all are.
    fn build_next(&mut self, core: &Core) -> Result<bool> {
        let (epoch, breaths) = (self.epoch, self.breaths());
        let Some(cut) = self.trees.iter_mut().find(|cut| cut.built.is_none() && !cut.space.is_dropped()) else {
            return Ok(false);
        };
        match build(core, cut, epoch, breaths) {
            Ok(built) => {
                if cut.tree.is_volatile() {
                    cut.tree.set_failure(None);
                }
                cut.built = built;
            }
            Err(error) if cut.tree.is_volatile() && !is_on(Defect::VolatileErrorFailsCheckpoint) => {
                // Its entries stay in the frozen buffer, where the next cut finds them.
                cut.tree.set_failure(Some(error));
                let tree = cut.tree.id;
                self.trees.retain(|cut| cut.tree.id != tree);
            }
            Err(error) => return Err(error),
        }
        Ok(true)
    }

    /// How often each tree lets others run.
    fn breaths(&self) -> u32 {
        if self.small { BREATHS_MAX / u32::try_from(self.trees.len()).unwrap_or(u32::MAX).max(1) } else { 0 }
    }

    /// Builds all trees, durable ones first; side by side unless that is little. Not for a run that has to be replayable.
    fn build_all(&mut self, core: &Core) -> Result<()> {
        let (small, breaths) = (self.small, self.breaths());
        let durable: Vec<&mut CutTree> =
            self.trees.iter_mut().filter(|cut| !cut.tree.is_volatile() && cut.built.is_none()).collect();
        // More files than may be open: they are synced with their file systems.
        let many = durable.len() > core.options.open_files_max.max(SYNCS_MAX);
        if durable.len() > 1 {
            let epoch = self.epoch;
            let lanes = if small { 1 } else { processors().min(8) };
            let queue = crossbeam::queue::SegQueue::new();
            durable.into_iter().for_each(|cut| queue.push(cut));
            let work = || -> Result<()> {
                while let Some(cut) = queue.pop() {
                    cut.built = build(core, cut, epoch, breaths)?;
                    if many {
                        cut.tree.file.close_idle();
                    }
                }
                Ok(())
            };
            std::thread::scope(|scope| {
                let lanes: Vec<_> = (1..lanes.min(queue.len())).map(|_| scope.spawn(work)).collect();
                let mine = work();
                lanes.into_iter().fold(mine, |so_far, lane| so_far.and(lane.join().unwrap_or(Err(Error::Closed))))
            })?;
        }
        while self.build_next(core)? {}
        Ok(())
    }

    /// Gives back every page that was built, and to the disk what files grew by, so that the cut can be built again:
    /// then maybe in other places, or of another tree first.
    fn unbuild(&mut self) {
        for cut in &mut self.trees {
            let mut room = cut.tree.room.lock();
            if let Some(built) = cut.built.take() {
                room.building.clear();
                built.written.taken.into_iter().for_each(|extent| room.free.release(extent));
            }
            if room.free.is_known() && !cut.space.is_dropped() {
                let (file, end) = (&cut.tree.file, room.free.trim());
                let len = file.disk_file().and_then(|file| file.len());
                if len.is_ok_and(|len| len > u64::from(end) * UNIT_BYTES as u64) {
                    // If it cannot be cut it is as long as it was.
                    file.cut(end).ok();
                }
            }
        }
    }

    /// Makes the durable files that were written durable: each of them, side by side unless little was written, or, if
    /// they are many, the file systems that they are on.
    fn sync(&self, core: &Core) -> Result<()> {
        let written = || self.trees.iter().filter(|cut| cut.built.is_some() && !cut.tree.is_volatile());
        if written().count() > SYNCS_MAX {
            let paths: Vec<_> = written().map(|cut| cut.tree.file.path().to_owned()).collect();
            return core.disk.sync_set(&paths);
        }
        let mut files = Vec::new();
        for cut in written() {
            match cut.tree.file.disk_file() {
                Ok(file) => files.push(file),
                Err(_) if cut.space.is_dropped() => {}
                Err(error) => return Err(error),
            }
        }
        core.disk.sync_files(&files, !self.small || files.len() > SMALL_SYNCS_MAX)
    }

    /// Puts the new roots and states into the manifest.
    fn note(&self, manifest: &mut Manifest) {
        manifest.epoch = manifest.epoch.max(self.epoch);
        if self.start.sequence > 0 {
            manifest.journal = self.start;
        }
        for cut in &self.spaces {
            if let Some(entry) = Committer::space_mut(manifest, cut.space.id) {
                entry.state = cut.state.clone();
                entry.replayed_to = cut.last;
            }
        }
        let noted = self.trees.len() - usize::from(is_on(Defect::ForgetShardInManifest) && self.trees.len() > 1);
        for cut in &self.trees[..noted] {
            let Some(built) = cut.built.as_ref().filter(|_| !cut.tree.is_volatile()) else {
                continue;
            };
            let space = Committer::space_mut(manifest, cut.space.id);
            if let Some(entry) = space.and_then(|space| Committer::tree_mut(space, cut.tree.id)) {
                entry.root = Some(built.root);
                entry.end_unit = built.end;
            }
        }
    }

    /// Shows the new trees to readers and lets go of what they replace.
    fn publish(self, core: &Core, commit: u64) {
        for cut in self.trees {
            let Some(built) = cut.built else { continue };
            let mut room = cut.tree.room.lock();
            room.building.clear();
            room.pending.add(commit, built.written.freed);
            room.extents += built.written.extents;
            cut.tree.note_sizes(&room);
            cut.tree.publish(built.root, commit);
        }
        if self.charged > 0 {
            core.release(self.charged);
        }
        core.counters.checkpoints.fetch_add(1, Ordering::Relaxed);
        if core.options.durability != Durability::Sync {
            for cut in &self.spaces {
                if let Some(listener) = cut.space.listener.read().as_ref() {
                    listener.durable(cut.last);
                }
            }
            core.durable.advance(self.covers);
        }
        core.flushed.advance(self.serves);
        core.published.raise();
    }
}

/// Frees the units that neither slot nor any view reaches any more.
pub fn reclaim<'a>(core: &Core, tree: &'a Tree) -> MutexGuard<'a, Room> {
    let newest = core.committer.lock().manifest.sequence;
    let both_slots = if is_on(Defect::ReusePageTooEarly) { newest } else { newest.saturating_sub(1) };
    let mut room = tree.room.lock();
    let Room { free, pending, .. } = &mut *room;
    let oldest_view = if is_on(Defect::CutTailUnderView) { newest } else { tree.oldest_view() };
    pending.release_up_to(both_slots.min(oldest_view), free);
    room
}

/// Writes one tree's frozen entries into new pages of its file; None if its space was dropped.
/// Others run so often in between.
fn build(core: &Core, cut: &CutTree, epoch: u64, breaths: u32) -> Result<Option<Built>> {
    let CutTree { tree, frozen, .. } = cut;
    let mut room = reclaim(core, tree);
    // A drop sets its mark first, and takes the file away under this lock.
    if cut.space.is_dropped() {
        return Ok(None);
    }
    if core.full.load(Ordering::Acquire) {
        core.was_full.store(true, Ordering::Release);
    }
    let low = room.vacuums > 0 || room.is_moved || core.was_full.load(Ordering::Acquire);
    let free = &mut room.free;
    free.prefer_low(low);
    let old_end = free.end();
    let root = tree.published().root;
    let mut writer = tree.file.writer(free, epoch)?;
    writer.give_way(breaths);
    let (root, removes) = frozen.show(|edits| {
        let removes = edits.iter().filter(|(_, edit)| matches!(edit, Edit::Remove)).count();
        if 2 * removes > edits.len() {
            writer.write_small_pieces();
        }
        Ok::<_, Error>((tree::edit(&*tree.file, &mut writer, root, edits)?, removes > 0))
    })?;
    let written = writer.finish()?;
    if removes {
        core.counters.leaves_cleaned.fetch_add(written.freed.len() as u64, Ordering::Relaxed);
    }
    let reused = written.taken.iter().filter(|extent| extent.unit < old_end).count();
    core.counters.units_reused.fetch_add(reused as u64, Ordering::Relaxed);
    core.counters.page_bytes.fetch_add(written.bytes, Ordering::Relaxed);
    room.building.clone_from(&written.taken);
    let end = room.free.end();
    Ok(Some(Built { root, end, written }))
}

/// Runs a cut through to its commit at once, with `also` applied to the manifest: for opening and
/// closing, when no job runs. On a full disk the space reserve is what it falls back on.
pub fn write_through(core: &Core, mut cut: Cut, also: impl Fn(&mut Manifest)) -> Result<u64> {
    // What was replayed is not charged, and nobody else is to run.
    cut.small = false;
    let commit = loop {
        match try_through(core, &mut cut, &also) {
            Err(Error::NoSpace { .. }) if core.spend_reserve()? => {
                core.full.store(true, Ordering::Release);
                cut.unbuild();
            }
            other => break other?,
        }
    };
    cut.publish(core, commit);
    Ok(commit)
}

fn try_through(core: &Core, cut: &mut Cut, also: &impl Fn(&mut Manifest)) -> Result<u64> {
    cut.epoch = next_epoch(core);
    if core.disk.is_simulated() {
        while cut.build_next(core)? {}
    } else {
        cut.build_all(core)?;
    }
    if !is_on(Defect::ExposeReplayedUnsynced) {
        cut.sync(core)?;
    }
    core.committer.lock().commit(|manifest| {
        cut.note(manifest);
        also(manifest);
    })
}

fn next_epoch(core: &Core) -> u64 {
    let mut committer = core.committer.lock();
    committer.manifest.epoch += 1;
    committer.manifest.epoch
}

/// Writes buffers into tree files, again and again.
#[derive(Debug)]
pub struct CheckpointJob {
    core: Arc<Core>,
    stage: Stage,
    /// When the oldest entry that is not cut yet was seen.
    dirty_since: Option<Duration>,
    retry_at: Option<Duration>,
    /// While the disk is full: when to look for room again.
    room_at: Duration,
}

#[derive(Debug)]
enum Stage {
    Idle,
    /// With what says when the journal is durable so far, if there is a journal.
    Wait(Cut, Option<Ticket>),
    Build(Cut),
    Sync(Cut),
    Commit(Cut),
}

impl Job for CheckpointJob {
    fn name(&self) -> &'static str {
        "checkpoint"
    }

    fn gives_way(&self) -> bool {
        true
    }

    fn signal(&self) -> Signal {
        self.core.signal.clone()
    }

    fn step(&mut self, now: Duration) -> Next {
        if self.core.poison.check().is_err() {
            return Next::Idle;
        }
        match self.advance(now) {
            Ok(next) => next,
            Err(error) => {
                self.core.poison.set(&error);
                Next::Idle
            }
        }
    }
}

impl CheckpointJob {
    /// The job of a store.
    pub fn new(core: Arc<Core>) -> Self {
        CheckpointJob { core, stage: Stage::Idle, dirty_since: None, retry_at: None, room_at: Duration::ZERO }
    }

    fn advance(&mut self, now: Duration) -> Result<Next> {
        if let Some(at) = self.retry_at.take_if(|at| now < *at) {
            self.retry_at = Some(at);
            return Ok(Next::At(at));
        }
        self.stage = match std::mem::replace(&mut self.stage, Stage::Idle) {
            Stage::Idle => {
                let full = self.core.full.load(Ordering::Acquire);
                if full && now >= self.room_at {
                    self.room_at = now + RETRY;
                    self.look_for_room()?;
                }
                if let Some(later) = self.not_due(now) {
                    return Ok(if full && later == Next::Idle { Next::At(self.room_at) } else { later });
                }
                self.dirty_since = None;
                let cut = cut(&self.core);
                let journaled = self.core.journal.get().is_some();
                let ticket = journaled.then(|| self.core.durable.ticket(cut.last));
                Stage::Wait(cut, ticket)
            }
            Stage::Wait(mut cut, mut ticket) => {
                if let Some(journaled) = &mut ticket {
                    match Pin::new(journaled).poll(&mut Context::from_waker(&self.core.signal.waker())) {
                        Poll::Pending => {
                            self.stage = Stage::Wait(cut, ticket);
                            return Ok(Next::Idle);
                        }
                        Poll::Ready(outcome) => outcome?,
                    }
                }
                cut.epoch = next_epoch(&self.core);
                Stage::Build(cut)
            }
            Stage::Build(cut) => self.build(cut, now)?,
            Stage::Sync(cut) => {
                if !is_on(Defect::CommitBeforeSync) {
                    cut.sync(&self.core)?;
                }
                Stage::Commit(cut)
            }
            Stage::Commit(cut) => self.commit(cut, now)?,
        };
        Ok(Next::Again)
    }

    /// None if a checkpoint is due, else when to look again.
    fn not_due(&mut self, now: Duration) -> Option<Next> {
        let core = &self.core;
        let batches = core.uncut_batches.load(Ordering::Relaxed);
        let asked = core.flush_wanted.load(Ordering::SeqCst) > core.flushed.reached().0;
        let short = core.journal.get().is_some_and(|journal| journal.is_short() && self.can_recycle());
        if asked || short || core.is_half_full() {
            return None;
        }
        if batches == 0 {
            return Some(Next::Idle);
        }
        if core.short.load(Ordering::Acquire) {
            return None;
        }
        let (interval, limit) = match core.options.durability {
            Durability::Sync => (core.options.checkpoint_interval, u64::MAX),
            Durability::Batch { interval, limit } => (interval, limit),
        };
        let due = *self.dirty_since.get_or_insert(now) + interval;
        (batches < limit && now < due).then_some(Next::At(due))
    }

    /// True if a commit would let the journal use segments again.
    fn can_recycle(&self) -> bool {
        let older = self.core.committer.lock().older.journal;
        self.core.journal.get().is_some_and(|journal| journal.boundary().segment > older.segment)
    }

    fn build(&mut self, mut cut: Cut, now: Duration) -> Result<Stage> {
        let built = if self.core.disk.is_simulated() {
            cut.build_next(&self.core)
        } else {
            cut.build_all(&self.core).map(|()| false)
        };
        match built {
            Ok(true) => Ok(Stage::Build(cut)),
            Ok(false) => Ok(Stage::Sync(cut)),
            Err(Error::NoSpace { .. }) => {
                cut.unbuild();
                self.meet_full_disk(now)?;
                // What was built is given back; later attempts must not share its epoch.
                cut.epoch = next_epoch(&self.core);
                Ok(Stage::Build(cut))
            }
            Err(error) => Err(error),
        }
    }

    fn meet_full_disk(&mut self, now: Duration) -> Result<()> {
        self.core.full.store(true, Ordering::Release);
        self.core.counters.no_space.fetch_add(1, Ordering::Relaxed);
        self.core.flushed.nudge();
        if !self.core.spend_reserve()? {
            self.retry_at = Some(now + RETRY);
        }
        Ok(())
    }

    fn commit(&mut self, cut: Cut, now: Duration) -> Result<Stage> {
        let core = Arc::clone(&self.core);
        let mut committer = core.committer.lock();
        let commit = match committer.commit(|manifest| cut.note(manifest)) {
            Err(Error::NoSpace { .. }) => {
                drop(committer);
                self.meet_full_disk(now)?;
                return Ok(Stage::Commit(cut));
            }
            other => other?,
        };
        let newer = committer.manifest.journal.segment;
        let older = if is_on(Defect::RecycleByNewerSlotOnly) { newer } else { committer.older.journal.segment };
        drop(committer);
        cut.publish(&core, commit);
        if let Some(journal) = core.journal.get() {
            journal.recycle(older.min(newer));
        }
        if !core.full.load(Ordering::Acquire) {
            core.take_reserve()?;
        }
        core.close_idle_files();
        Ok(Stage::Idle)
    }

    /// The disk is full: gives back what is free at the ends of files, and takes the reserve again. Only
    /// then is more admitted than what frees space.
    fn look_for_room(&self) -> Result<()> {
        let core = &self.core;
        let spaces = core.catalog.spaces();
        let trees = || spaces.iter().flat_map(|space| space.trees.iter().map(move |tree| (space, tree)));
        if trees().any(|(_, tree)| tree.room.lock().pending.units() > 0) {
            // What the older slot reaches is free once that slot is overwritten.
            match core.committer.lock().commit(|_| ()) {
                Err(Error::NoSpace { .. }) => return Ok(()),
                other => other?,
            };
        }
        for (space, tree) in trees() {
            let mut room = reclaim(core, tree);
            let end = room.free.end();
            if !space.is_dropped() && room.free.is_known() && room.free.trim() < end {
                match tree.file.cut(room.free.end()) {
                    // It is its own matter (R4).
                    Err(error) if tree.is_volatile() => tree.set_failure(Some(error)),
                    // It is as long as it was.
                    Err(Error::NoSpace { .. }) => {}
                    other => other?,
                }
            }
        }
        if core.take_reserve()? {
            core.full.store(false, Ordering::Release);
        }
        Ok(())
    }
}
