//! The store: one data directory, many spaces of trees, atomic batches, tickets.
//!
//! Ties the rooms together and has little logic of its own: batches go to buffers and the journal
//! here, `checkpoint.rs` takes them into the trees, `recover.rs` opens.

use crate::batch::{
    AdmitError, Batch, Cost, Durability, DurableListener, Replay, SpaceInfo, SpaceSpec, TreeClass, TreeInfo, TreeSpec,
};
use crate::catalog::{Reader, Space, Tree};
use crate::checkpoint::{self, CheckpointJob};
use crate::core::{Committer, Core};
use crate::defect::{Defect, is_on};
use crate::disk::{Disk, DiskLock};
use crate::error::{Error, Result};
use crate::file::TreeFile;
use crate::finding::Scrubbed;
use crate::ids::{SpaceId, TreeId, UNIT_BYTES};
use crate::journal::{Journal, JournalJob, JournalOptions, JournalParts, SegmentJob, segment};
use crate::limits;
use crate::manifest::{SpaceEntry, TreeEntry};
use crate::page::leaf::{BodyAt, Entry};
use crate::recover::{self, OpenReport, Opened};
use crate::run::threads::Worker;
use crate::run::{Clock, Job};
use crate::scrub::ScrubJob;
use crate::space::Extent;
use crate::space::pending::Pending;
use crate::sync::Mutex;
use crate::sync::atomic::Ordering;
use crate::ticket::{Position, Ticket};
use crate::tree::{self, Reached};
use crate::vacuum::{self, VacuumJob};
use crate::verify::{self, VerifyReport};
use crate::view::View;
use bytes::Bytes;
use std::path::PathBuf;
use std::sync::{Arc, Weak};

pub use crate::core::{Admission, StoreOptions, VacuumOptions};
pub use crate::vacuum::VacuumUser;

/// Who runs the store's jobs.
pub enum Runtime {
    /// A thread per job.
    Threads(Arc<dyn Clock>),
    /// Whoever takes them with [`Store::take_jobs`].
    Manual,
}

/// A longer file of a dropped space is given back a piece at a time. Small in tests.
const REMOVED_AT_ONCE_MAX: u64 = if cfg!(test) { 1 << 20 } else { 16 << 20 };

/// An open store. Closing it by dropping loses nothing that is durable; [`Store::close`] also makes
/// the next open quick and keeps Volatile trees.
pub struct Store {
    core: Arc<Core>,
    report: OpenReport,
    jobs: Mutex<Vec<Box<dyn Job>>>,
    // Dropped in this order: the jobs end before the lock is given back.
    workers: Mutex<Vec<Worker>>,
    lock: Mutex<Option<Box<dyn DiskLock>>>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("path", &self.core.options.path).finish_non_exhaustive()
    }
}

/// Sizes of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeStats {
    /// Its file.
    pub path: PathBuf,
    /// Bytes of the file.
    pub size: u64,
    /// Bytes of it that hold pages of the current tree.
    pub in_use: u64,
    /// Entries as of the last checkpoint.
    pub entries: u64,
    /// Entries in buffers.
    pub buffered: u64,
    /// Levels of pages.
    pub depth: u32,
    /// Bytes of a page.
    pub page_bytes: usize,
    /// Overflow extents as of the last checkpoint; None before a scan has told.
    pub extents: Option<u64>,
}

/// Sizes and counts of a store.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StoreStats {
    /// Bytes of write buffers in use.
    pub buffered_bytes: u64,
    /// Bytes of journal segments on disk.
    pub journal_bytes: u64,
    /// Journal groups written since open, each synced before its tickets resolve.
    pub journal_groups: u64,
    /// Bytes of those groups as they are written.
    pub journal_written_bytes: u64,
    /// Journal segments used again since open.
    pub segments_recycled: u64,
    /// Checkpoints committed since open.
    pub checkpoints: u64,
    /// Bytes of pages that checkpoints wrote since open.
    pub page_bytes: u64,
    /// Units taken again that held a page before.
    pub units_reused: u64,
    /// Pages and extents given up by checkpoints that took entries out of a tree.
    pub leaves_cleaned: u64,
    /// Checkpoints that met a full disk.
    pub no_space: u64,
    /// Bytes of pages that vacuums wrote anew further down, since open.
    pub vacuum_moved_bytes: u64,
    /// Bytes of files that vacuums gave back to the disk, since open.
    pub vacuum_cut_bytes: u64,
    /// Rounds of the vacuum in the background since open.
    pub vacuum_rounds: u64,
    /// Times that it made a file shorter.
    pub vacuum_cuts: u64,
    /// Durability calls of the disk.
    pub sync_calls: u64,
    /// Times that the scrub has read everything since open.
    pub scrub_rounds: u64,
    /// Bytes that it read.
    pub scrub_bytes: u64,
    /// Those of the round under way, and about as many as that has; 0 between rounds.
    pub scrub_round_bytes: u64,
    /// See there.
    pub scrub_round_of: u64,
    /// Places that were damaged when it last read them.
    pub scrub_damage: u64,
    /// Tree files that are open.
    pub open_files: u64,
    /// True while the disk is full: only what frees space is taken, until there is room for the reserve again.
    pub disk_full: bool,
}

impl Store {
    /// Opens or creates a store. `replay` turns journal records into changes.
    ///
    /// # Errors
    /// [`Error::Locked`], [`Error::NotAStore`], [`Error::Unsupported`], [`Error::Corrupt`], or what
    /// the disk says. Nothing is reset or thrown away.
    pub fn open(
        disk: Arc<dyn Disk>,
        options: StoreOptions,
        runtime: Runtime,
        replay: &mut dyn Replay,
    ) -> Result<Store> {
        check_options(&options)?;
        let Opened { core, lock, report, start, segments } = recover::open(disk, options, replay)?;
        let mut jobs: Vec<Box<dyn Job>> = Vec::new();
        if !core.options.read_only {
            core.batch_position.store(start.position.0, Ordering::SeqCst);
            core.take_reserve()?;
            if core.options.durability == Durability::Sync {
                let shared = Arc::downgrade(&core);
                let on_durable = move |spaces: &[SpaceId], upto: Position| {
                    let Some(core) = shared.upgrade() else { return };
                    for space in spaces.iter().filter_map(|id| core.catalog.space(*id)) {
                        if let Some(listener) = space.listener.read().as_ref() {
                            listener.durable(upto);
                        }
                    }
                };
                let (engine, session) = (core.engine, core.committer.lock().manifest.session);
                let journal = Journal::new(JournalParts {
                    disk: Arc::clone(&core.disk),
                    options: JournalOptions {
                        dir: segment::directory(&core.options.path),
                        segment_bytes: core.options.segment_bytes,
                        bytes_max: core.options.journal_bytes,
                    },
                    engine,
                    session,
                    start,
                    segments,
                    poison: Arc::clone(&core.poison),
                    on_durable: Box::new(on_durable),
                    checkpoint: core.signal.clone(),
                    durable: Arc::clone(&core.durable),
                });
                jobs.push(Box::new(JournalJob::new(Arc::clone(&journal))));
                jobs.push(Box::new(SegmentJob::new(Arc::clone(&journal))));
                core.journal.get_or_init(|| journal);
            }
            jobs.push(Box::new(CheckpointJob::new(Arc::clone(&core))));
            if core.options.scrub_bytes_per_second > 0 {
                jobs.push(Box::new(ScrubJob::new(Arc::clone(&core))));
            }
            if core.options.vacuum.bytes_per_second > 0 {
                jobs.push(Box::new(VacuumJob::new(Arc::clone(&core))));
            }
        }
        let mut workers = Vec::new();
        if let Runtime::Threads(clock) = runtime {
            if let Some(journal) = core.journal.get() {
                let journal: Weak<Journal> = Arc::downgrade(journal);
                core.durable.set_mover(journal);
            }
            for job in jobs.drain(..) {
                let poison = Arc::clone(&core.poison);
                let on_panic = move |text: &str| poison.set(&Error::Poisoned { cause: text.into() });
                let worker = Worker::spawn(job, Arc::clone(&clock), Box::new(on_panic));
                if !worker.is_running() {
                    return Err(Error::invalid("the system starts no more threads"));
                }
                workers.push(worker);
            }
        }
        Ok(Store { core, report, jobs: Mutex::new(jobs), workers: Mutex::new(workers), lock: Mutex::new(lock) })
    }

    /// The jobs of a store with a [`Runtime::Manual`].
    pub fn take_jobs(&self) -> Vec<Box<dyn Job>> {
        std::mem::take(&mut self.jobs.lock())
    }

    /// What opening found and did.
    pub fn report(&self) -> &OpenReport {
        &self.report
    }

    /// When a write counts as durable.
    pub fn durability(&self) -> Durability {
        self.core.options.durability
    }

    /// The spaces, by id.
    pub fn spaces(&self) -> Vec<SpaceInfo> {
        self.core.catalog.spaces().iter().map(|space| space.info()).collect()
    }

    /// Creates a space with its trees. Its files and both manifest slots are durable before it can
    /// be written to (R12).
    pub fn create_space(&self, spec: SpaceSpec) -> Result<SpaceInfo> {
        check_space(&spec)?;
        self.core.poison.check()?;
        if self.core.options.read_only {
            return Err(Error::ReadOnly);
        }
        let mut committer = self.core.committer.lock();
        if committer.manifest.spaces.iter().any(|space| space.name == spec.name) {
            return Err(Error::invalid(format!("there is a space {:?} already", spec.name)));
        }
        if committer.manifest.spaces.len() >= limits::SPACES_MAX {
            let (size, max) = (committer.manifest.spaces.len() as u64 + 1, limits::SPACES_MAX as u64);
            return Err(Error::TooLarge { what: "a count of spaces", size, max });
        }
        let id = SpaceId(committer.manifest.next_space);
        let entries: Vec<TreeEntry> = spec
            .trees
            .into_iter()
            .map(|spec| TreeEntry { id: recover::next_tree(&mut committer.manifest), spec, root: None, end_unit: 1 })
            .collect();
        committer.manifest.next_space += 1;
        // A journal record of this space can only come later; one of an earlier space is not its own.
        let entry = SpaceEntry {
            id,
            name: spec.name,
            config: spec.config,
            state: spec.state,
            replayed_to: Position(0),
            trees: entries,
        };
        let trees = self.create_files(&entry, committer.manifest.sequence)?;
        let committed = committer.commit(|manifest| manifest.spaces.push(entry.clone()));
        if let Err(error @ Error::NoSpace { .. }) = committed {
            // Best effort: what stays is removed at the next open.
            trees.iter().for_each(|tree| drop(self.core.disk.remove(tree.file.path())));
            return Err(error);
        }
        let committed = committed.and_then(|_| committer.commit(|_| ()));
        if let Err(error) = committed {
            // The slot may or may not name the new space: nothing more may be promised.
            self.core.poison.set(&error);
            return Err(error);
        }
        drop(committer);
        let space = Arc::new(Space::new(&entry, trees));
        let info = space.info();
        self.core.catalog.add(space);
        self.core.close_idle_files();
        Ok(info)
    }

    /// Drawn when it was created: no other store has it.
    pub fn id(&self) -> u128 {
        self.core.engine
    }

    /// Creates the files of a space, synced; removes them again if one fails.
    fn create_files(&self, entry: &SpaceEntry, sequence: u64) -> Result<Vec<Arc<Tree>>> {
        let core = &self.core;
        let mut made = Vec::new();
        let mut dirs = Vec::new();
        let mut make = |tree: &TreeEntry| -> Result<Arc<Tree>> {
            let path = recover::tree_path(&core.options.path, &entry.name, tree);
            if let Some(dir) = path.parent() {
                core.disk.create_dir(dir)?;
                if !dirs.contains(&dir.to_owned()) {
                    dirs.push(dir.to_owned());
                }
            }
            let (engine, page_bytes) = (core.engine, tree.spec.page_bytes);
            let spec = crate::file::FileSpec { path: path.clone(), engine, tree: tree.id, page_bytes };
            let file = TreeFile::create(&core.disk, spec, core.options.read_mode)?;
            made.push(path);
            let built = Tree::new(tree, file, sequence, false);
            built.room.lock().free.learn(&mut [Extent { unit: 0, units: 1 }]).map_err(|_| Error::Closed)?;
            Ok(Arc::new(built))
        };
        let trees: Result<Vec<_>> = entry.trees.iter().map(&mut make).collect();
        let trees = trees.and_then(|trees| dirs.iter().try_for_each(|dir| core.disk.sync_dir(dir)).map(|()| trees));
        if trees.is_err() {
            // Best effort: what stays is removed at the next open.
            made.iter().for_each(|path| drop(core.disk.remove(path)));
        }
        trees
    }

    /// Drops a space: out of both manifest slots first, then its files. Of large ones only the names are gone when this
    /// returns; their blocks follow, as fast as others do not notice, or when the store is closed; at once if the vacuum is off.
    pub fn drop_space(&self, id: SpaceId) -> Result<()> {
        self.core.poison.check()?;
        if self.core.options.read_only {
            return Err(Error::ReadOnly);
        }
        let Some(space) = self.core.catalog.space(id) else {
            return Err(Error::invalid(format!("there is no space {id}")));
        };
        space.drop_it();
        let mut committer = self.core.committer.lock();
        let committed = committer.commit(|manifest| manifest.spaces.retain(|entry| entry.id != id));
        let committed = committed.and_then(|_| committer.commit(|_| ()));
        drop(committer);
        if let Err(error) = committed {
            self.core.poison.set(&error);
            return Err(error);
        }
        self.core.catalog.remove(id);
        let charged = std::mem::take(&mut space.write.lock().charged);
        self.core.release(charged);
        for tree in &space.trees {
            let room = tree.room.lock();
            // What is large the vacuum gives back a piece at a time (`vacuum/removed.rs`), for which it has to be open.
            let bytes = u64::from(room.free.end()) * UNIT_BYTES as u64;
            let slowly = self.core.options.vacuum.bytes_per_second > 0;
            let large = slowly && bytes > REMOVED_AT_ONCE_MAX && tree.file.open().is_ok();
            self.core.disk.remove(tree.file.path())?;
            match tree.file.removed() {
                Some(removed) if large => self.core.removed.lock().push(removed),
                _ => tree.file.close_idle(),
            }
        }
        self.core.published.raise();
        self.core.disk.sync_dir(&self.core.options.path)
    }

    /// Takes room for a batch (R5).
    pub fn admit(&self, cost: Cost) -> Result<Admission, AdmitError> {
        self.core.admit(cost)
    }

    /// Applies an admitted batch: its edits are in the buffers and its record is sealed when this
    /// returns. Cannot fail and does no I/O. Batches of one space must come one at a time. Leaves no edits in the
    /// batch, and the state before it.
    ///
    /// # Panics
    /// If the space or a tree is not one of this store's.
    pub fn apply(&self, mut admission: Admission, batch: &mut Batch) -> Position {
        let core = &self.core;
        let space = core.catalog.space(batch.space).expect("a batch names a space of its store");
        let mut write = space.write.lock();
        let mut buffer: Option<(TreeId, Arc<crate::buffer::TreeBuffer>)> = None;
        for edit in batch.edits.drain(..) {
            if buffer.as_ref().is_none_or(|(tree, _)| *tree != edit.tree) {
                let tree = space.trees.iter().find(|tree| tree.id == edit.tree);
                buffer = Some((edit.tree, tree.expect("a batch names trees of its space").active()));
            }
            let (_, active) = buffer.as_ref().expect("it was just set");
            debug_assert!(edit.edit.fits(&edit.key), "limits.rs bounds keys, heads and bodies");
            active.set(edit.key, edit.edit);
        }
        let bytes = std::mem::take(&mut admission.bytes);
        write.charged += bytes;
        std::mem::swap(&mut write.state, &mut batch.state);
        write.dirty = true;
        if core.options.durability == Durability::Sync {
            if !batch.record.is_empty()
                && let Some(journal) = core.journal.get()
            {
                let charge = std::mem::take(&mut admission.journal);
                write.last = journal.append(space.id, &batch.record, charge);
            }
        } else {
            write.last = Position(core.batch_position.fetch_add(1, Ordering::SeqCst) + 1);
        }
        let position = write.last;
        drop(write);
        self.note_applied(bytes);
        position
    }

    /// Removes ascending keys from a tree, as a batch would that has no record; the space's state stays as it is. The
    /// lock that writers of the space take is held for a few nanoseconds each, but when the buffer's vector grows. False if the space or the
    /// tree is gone.
    pub fn remove(&self, mut admission: Admission, space: SpaceId, tree: TreeId, keys: Vec<Bytes>) -> bool {
        let core = &self.core;
        let Some(space) = core.catalog.space(space) else { return false };
        let Some(tree) = space.trees.iter().find(|of_space| of_space.id == tree) else { return false };
        let mut write = space.write.lock();
        // A drop sets its mark first, and gives back what is charged under this lock.
        if space.is_dropped() {
            return false;
        }
        tree.active().remove_all(keys);
        let bytes = std::mem::take(&mut admission.bytes);
        write.charged += bytes;
        write.dirty = true;
        if core.options.durability != Durability::Sync {
            write.last = Position(core.batch_position.fetch_add(1, Ordering::SeqCst) + 1);
        }
        drop(write);
        self.note_applied(bytes);
        true
    }

    /// A batch of so many bytes is in the buffers: perhaps a checkpoint is due.
    fn note_applied(&self, bytes: u64) {
        let core = &self.core;
        let uncut = core.uncut.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let batches = core.uncut_batches.fetch_add(1, Ordering::Relaxed) + 1;
        let limit = match core.options.durability {
            Durability::Sync => u64::MAX,
            Durability::Batch { limit, .. } => limit,
        };
        if batches == 1
            || batches == limit
            || (uncut >= core.options.buffer_bytes / 2 && uncut - bytes < core.options.buffer_bytes / 2)
        {
            core.signal.raise();
        }
    }

    /// Up to where records are durable.
    pub fn durable(&self) -> Position {
        self.core.durable.reached()
    }

    /// A ticket for a position.
    pub fn ticket(&self, at: Position) -> Ticket {
        self.core.durable.ticket(at)
    }

    /// Tells `listener` what becomes durable of a space, before tickets resolve.
    pub fn listen(&self, space: SpaceId, listener: Arc<dyn DurableListener>) {
        if let Some(space) = self.core.catalog.space(space) {
            *space.listener.write() = Some(listener);
        }
    }

    /// A view of a tree.
    pub fn view(&self, tree: TreeId) -> Result<View> {
        self.tree(tree).map(|tree| tree.view())
    }

    /// A tree for looking up a key at a time.
    pub fn reader(&self, tree: TreeId) -> Result<Reader> {
        self.tree(tree).map(Reader::new)
    }

    /// The opening scan: shows every entry of a tree once, ascending, without bodies, and learns
    /// what is free in its file. Reads the whole file but for its overflow extents.
    pub fn scan(&self, tree: TreeId, visit: &mut dyn FnMut(&[u8], &[u8], u32) -> Result<()>) -> Result<()> {
        let tree = self.tree(tree)?;
        if self.core.options.read_only {
            return tree.view().ascend(std::ops::Bound::Unbounded, &mut |key, head, body| {
                visit(key, head, u32::try_from(body.len()).expect("a body is at most BODY_BYTES_MAX"))?;
                Ok(true)
            });
        }
        let mut room = tree.room.lock();
        let published = tree.published();
        let file = &*tree.file;
        if is_on(Defect::ReusePageOfOlderSlotAfterReopen) {
            room.pending = Pending::default();
        }
        let mut used = vec![Extent { unit: 0, units: 1 }];
        used.extend(room.pending.extents());
        used.extend(&room.building);
        let mut extents = 0;
        let damaged = |ptr: crate::ids::PagePtr, damage| file.damaged(ptr.unit, damage);
        tree::reach(file, published.root, &damaged, &mut |reached| {
            match reached {
                Reached::Page(extent) => used.push(extent),
                Reached::Overflow(extent) => {
                    extents += 1;
                    used.push(extent);
                }
                Reached::Entry(Entry { key, head, body }) => {
                    let len = match body {
                        BodyAt::Here(bytes) => u32::try_from(bytes.len()).expect("an inline body fits its page"),
                        BodyAt::There(extent) => extent.len,
                    };
                    visit(key, head, len)?;
                }
            }
            Ok(())
        })?;
        let twice = |extent: Extent| {
            let what = "a unit is used twice, or lies behind the end of the file";
            file.damaged(extent.unit, crate::error::Damage::Malformed { what })
        };
        room.free.learn(&mut used).map_err(twice)?;
        room.extents = extents;
        tree.note_sizes(&room);
        drop(room);
        self.core.published.raise();
        self.core.close_idle_files();
        Ok(())
    }

    /// Asks for a checkpoint of all that is applied; the ticket waits for it.
    pub fn flush(&self) -> Ticket {
        self.core.flush()
    }

    /// Sizes of a tree.
    pub fn tree_stats(&self, tree: TreeId) -> Result<TreeStats> {
        let tree = self.tree(tree)?;
        let published = tree.published();
        let (sizes, unit) = (tree.sizes(), UNIT_BYTES as u64);
        let buffered = published.active.len() + published.frozen.as_ref().map_or(0, |frozen| frozen.len());
        Ok(TreeStats {
            path: tree.file.path().to_owned(),
            size: sizes.all * unit,
            in_use: tree.in_use(),
            entries: published.root.entries,
            buffered: buffered as u64,
            depth: published.root.depth(),
            page_bytes: tree.spec.page_bytes,
            extents: sizes.extents,
        })
    }

    /// Sizes and counts of the store.
    pub fn stats(&self) -> StoreStats {
        let counters = &self.core.counters;
        let scrubbed = self.core.scrubbed.lock();
        let scrub = Scrubbed { damage: Vec::new(), ..*scrubbed };
        let scrub_damage = scrubbed.damage.len() as u64;
        drop(scrubbed);
        let spaces = self.core.catalog.spaces();
        StoreStats {
            buffered_bytes: self.core.buffered(),
            journal_bytes: self.core.journal.get().map_or(0, |journal| journal.disk_bytes()),
            journal_groups: self.core.journal.get().map_or(0, |journal| journal.groups()),
            journal_written_bytes: self.core.journal.get().map_or(0, |journal| journal.written()),
            segments_recycled: self.core.journal.get().map_or(0, |journal| journal.recycled()),
            checkpoints: counters.checkpoints.load(Ordering::Relaxed),
            page_bytes: counters.page_bytes.load(Ordering::Relaxed),
            units_reused: counters.units_reused.load(Ordering::Relaxed),
            leaves_cleaned: counters.leaves_cleaned.load(Ordering::Relaxed),
            no_space: counters.no_space.load(Ordering::Relaxed),
            vacuum_moved_bytes: counters.vacuum_moved.load(Ordering::Relaxed),
            vacuum_cut_bytes: counters.vacuum_cut.load(Ordering::Relaxed),
            vacuum_rounds: counters.vacuum_rounds.load(Ordering::Relaxed),
            vacuum_cuts: counters.vacuum_cuts.load(Ordering::Relaxed),
            sync_calls: self.core.disk.sync_calls(),
            scrub_rounds: scrub.rounds,
            scrub_bytes: scrub.bytes,
            scrub_round_bytes: scrub.round_bytes,
            scrub_round_of: scrub.round_of,
            scrub_damage,
            disk_full: self.is_disk_full(),
            open_files: spaces.iter().flat_map(|space| &space.trees).filter(|tree| tree.file.is_open()).count() as u64,
        }
    }

    /// Checkpoints committed since open.
    pub fn checkpoints(&self) -> u64 {
        self.core.counters.checkpoints.load(Ordering::Relaxed)
    }

    /// What the scrub has read since the store was opened, and what of it is damaged.
    pub fn scrubbed(&self) -> Scrubbed {
        self.core.scrubbed.lock().clone()
    }

    /// Why the store takes no more writes, if it does not.
    pub fn failure(&self) -> Option<Error> {
        self.core.poison.check().err()
    }

    /// True while the disk is full: only what frees space is taken, until there is room for the reserve again.
    pub fn is_disk_full(&self) -> bool {
        self.core.full.load(Ordering::Acquire)
    }

    /// Why a Volatile tree takes no more writes, if it does not.
    pub fn tree_failure(&self, tree: TreeId) -> Option<Error> {
        self.core.catalog.tree(tree).and_then(|tree| tree.failure())
    }

    /// 64 unpredictable bits; a function of the seed on a simulated disk.
    pub fn entropy(&self) -> u64 {
        let wide = self.core.disk.entropy();
        (wide ^ (wide >> 64)) as u64
    }

    /// A space's state as the older manifest slot has it: a restart may fall back to it.
    pub fn older_state(&self, space: SpaceId) -> Option<Bytes> {
        let committer = self.core.committer.lock();
        let entry = committer.older.spaces.iter().find(|entry| entry.id == space);
        entry.map(|entry| entry.state.clone())
    }

    /// Packs leaves of a tree that hold little, moves what lies at the end of its file further down, a bounded round and a
    /// checkpoint at a time, and gives the end back to the disk. Writes go on meanwhile. Returns the bytes left.
    pub fn vacuum(&self, space: SpaceId, tree: TreeId, user: &mut dyn VacuumUser) -> Result<u64> {
        let core = &self.core;
        let tree = self.tree(tree)?;
        let space = core.catalog.space(space).ok_or_else(|| Error::invalid(format!("there is no space {space}")))?;
        vacuum::vacuum(core, &space, &tree, user)
    }

    /// Takes no more writes from here on, because of `error`.
    pub fn fail(&self, error: &Error) {
        self.core.poison.set(error);
    }

    /// Checks every page of every tree. `progress` is told each tree before it is read.
    pub fn verify(&self, progress: &mut dyn FnMut(&str, &TreeInfo)) -> Result<VerifyReport> {
        verify::verify(&self.core, progress)
    }

    /// Writes everything into the tree files and leaves a clean mark. What was durable before stays
    /// so if this fails. Later calls are refused.
    pub fn close(&self) -> Result<()> {
        self.workers.lock().clear();
        self.jobs.lock().clear();
        let result = self.close_files();
        self.core.poison.set(&Error::Closed);
        // Nobody who vacuums is in the middle of cutting a file, or begins to.
        for tree in self.core.catalog.spaces().iter().flat_map(|space| &space.trees) {
            drop(tree.room.lock());
        }
        // Only now may another process have the directory.
        self.lock.lock().take();
        result
    }

    fn close_files(&self) -> Result<()> {
        let core = &self.core;
        if core.options.read_only {
            return Ok(());
        }
        core.poison.check()?;
        // A checkpoint that was under way is abandoned: what it had cut is cut again.
        core.catalog.spaces().iter().for_each(|space| space.write.lock().dirty = true);
        let cut = checkpoint::cut(core);
        checkpoint::write_through(core, cut, |_| ())?;
        let spaces = core.catalog.spaces();
        let volatile: Vec<_> = spaces
            .iter()
            .flat_map(|space| space.trees.iter().map(move |tree| (space, tree)))
            .filter(|(_, tree)| tree.is_volatile() && tree.failure().is_none())
            .collect();
        for (_, tree) in &volatile {
            tree.file.disk_file()?.sync_data()?;
        }
        core.committer.lock().commit(|manifest| {
            manifest.clean = true;
            manifest.journal.position = Position(manifest.journal.position.0.max(core.durable.reached().0));
            for (space, tree) in volatile {
                let entry =
                    Committer::space_mut(manifest, space.id).and_then(|entry| Committer::tree_mut(entry, tree.id));
                if let Some(entry) = entry {
                    entry.root = Some(tree.published().root);
                    entry.end_unit = tree.room.lock().free.end();
                }
            }
        })?;
        Ok(())
    }

    /// What its parts share.
    #[cfg(test)]
    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.core
    }

    fn tree(&self, id: TreeId) -> Result<Arc<Tree>> {
        self.core.catalog.tree(id).ok_or_else(|| Error::invalid(format!("there is no tree {id}")))
    }
}

fn check_options(options: &StoreOptions) -> Result<()> {
    let sector = crate::disk::SECTOR_BYTES as u64;
    if !options.segment_bytes.is_multiple_of(sector) || options.segment_bytes < 2 * sector {
        return Err(Error::invalid("segment_bytes has to be a multiple of 512, at least 1024"));
    }
    if options.journal_bytes < 2 * options.segment_bytes {
        return Err(Error::invalid("journal_bytes has to allow two segments"));
    }
    if let Durability::Batch { limit: 0, .. } = options.durability {
        return Err(Error::invalid("a batch limit of 0 would never write"));
    }
    Ok(())
}

fn check_space(spec: &SpaceSpec) -> Result<()> {
    check_name("space", &spec.name)?;
    if spec.state.len() > limits::STATE_BYTES_MAX {
        let (size, max) = (spec.state.len() as u64, limits::STATE_BYTES_MAX as u64);
        return Err(Error::TooLarge { what: "a space's state", size, max });
    }
    for (at, tree) in spec.trees.iter().enumerate() {
        check_tree(tree)?;
        if spec.trees[..at].iter().any(|other| other.name == tree.name) {
            return Err(Error::invalid(format!("two trees are named {:?}", tree.name)));
        }
    }
    Ok(())
}

fn check_tree(spec: &TreeSpec) -> Result<()> {
    check_name("tree", &spec.name)?;
    if !limits::is_page_bytes(spec.page_bytes) {
        return Err(Error::invalid(format!(
            "a page of {} bytes cannot be: it is a power of two from 4096 to 65536",
            spec.page_bytes
        )));
    }
    if spec.dir.is_some() && spec.class == TreeClass::Durable && spec.dir.as_ref().is_some_and(|dir| dir.is_relative())
    {
        return Err(Error::invalid("the directory of a durable tree has to be absolute"));
    }
    Ok(())
}

fn check_name(what: &str, name: &str) -> Result<()> {
    if !limits::is_name(name) {
        let rule = "1 to 120 letters, digits, '-', '_', '+' and '.', not beginning with '.'";
        return Err(Error::invalid(format!("a {what} cannot be named {name:?}: {rule}")));
    }
    Ok(())
}
