//! What the store, its jobs and recovery share: the budget, the committer, and who waits for what.

use crate::batch::{AdmitError, Cost, Durability};
use crate::catalog::Catalog;
use crate::disk::{Disk, DiskFile, OpenMode};
use crate::error::{Error, Result};
use crate::file::{ReadMode, Removed};
use crate::finding::Scrubbed;
use crate::ids::{SpaceId, TreeId};
use crate::journal::Journal;
use crate::manifest::{Manifest, Slots, SpaceEntry, TreeEntry};
use crate::poison::Poison;
use crate::run::Signal;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::ticket::{Position, Ticket, Watermark};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// The file of the space reserve.
pub const RESERVE_NAME: &str = "RESERVE";

/// How a store is kept.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// The data directory.
    pub path: PathBuf,
    /// When a write counts as durable.
    pub durability: Durability,
    /// Bytes that write buffers may hold, all spaces together.
    pub buffer_bytes: u64,
    /// Bytes of one journal segment; whole sectors, at least two.
    pub segment_bytes: u64,
    /// The most bytes of journal on disk.
    pub journal_bytes: u64,
    /// The longest time from a write to the checkpoint that has it in its tree file.
    pub checkpoint_interval: Duration,
    /// Bytes that stay allocated so that a full disk can be emptied through the store; 0 is none.
    pub space_reserve_bytes: u64,
    /// How tree files are read.
    pub read_mode: ReadMode,
    /// The most tree files kept open between checkpoints.
    pub open_files_max: usize,
    /// Bytes of tree files that the scrub reads in a second; 0 is no scrub.
    pub scrub_bytes_per_second: u64,
    /// How files are kept short.
    pub vacuum: VacuumOptions,
    /// Write nothing.
    pub read_only: bool,
}

/// How files are kept short in the background.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VacuumOptions {
    /// Bytes of pages that it moves in a second; 0 is no vacuum but when asked for.
    pub bytes_per_second: u64,
    /// About what it moves in one step.
    pub step_bytes: u64,
    /// A file is made shorter if more than so much of it is free; half of that is left.
    pub free_percent: u8,
    /// And if that is no less than so many bytes.
    pub free_bytes_min: u64,
}

impl Default for VacuumOptions {
    fn default() -> Self {
        VacuumOptions { bytes_per_second: 8 << 20, step_bytes: 512 << 10, free_percent: 20, free_bytes_min: 4 << 20 }
    }
}

impl StoreOptions {
    /// The defaults for a directory.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        StoreOptions {
            path: path.into(),
            durability: Durability::Sync,
            buffer_bytes: 64 << 20,
            segment_bytes: 16 << 20,
            journal_bytes: 256 << 20,
            checkpoint_interval: Duration::from_secs(5),
            space_reserve_bytes: 16 << 20,
            read_mode: ReadMode::Mapped,
            open_files_max: 256,
            scrub_bytes_per_second: 0,
            vacuum: VacuumOptions { bytes_per_second: 0, ..VacuumOptions::default() },
            read_only: false,
        }
    }
}

/// What the parts of an open store share.
pub struct Core {
    // Set at open, never changed.
    /// Drawn when the store was created: no other has it.
    pub engine: u128,
    /// The disk.
    pub disk: Arc<dyn Disk>,
    /// How the store is kept.
    pub options: StoreOptions,
    /// The first failure.
    pub poison: Arc<Poison>,
    /// What is open.
    pub catalog: Arc<Catalog>,
    /// The journal; none under `Batch`, read-only, and while the store opens.
    pub journal: OnceLock<Arc<Journal>>,

    /// The one who commits; held over the commit's write and sync.
    pub committer: Mutex<Committer>,
    /// The space reserve.
    pub reserve: Mutex<Reserve>,

    budget: Mutex<Budget>,
    freed: Arc<Watermark>,
    /// Bytes applied since the last cut.
    pub uncut: AtomicU64,
    /// Batches applied since the last cut.
    pub uncut_batches: AtomicU64,
    /// True if a writer waits for budget that only a checkpoint can free.
    pub short: AtomicBool,
    /// True if one had to since the vacuum looked last.
    pub was_short: AtomicBool,
    /// True while the disk is full: only what frees space is admitted.
    pub full: AtomicBool,
    /// True once it was, until the store is opened again: files do not grow while they have free pages.
    pub was_full: AtomicBool,

    /// Counts requests for a checkpoint.
    pub flush_wanted: AtomicU64,
    /// The requests that were served.
    pub flushed: Arc<Watermark>,
    /// Up to where records are durable.
    pub durable: Arc<Watermark>,
    /// The last position given out under `Batch`.
    pub batch_position: AtomicU64,
    /// Raised when the checkpoint job should look again.
    pub signal: Signal,
    /// Raised when a checkpoint was published, the opening scan of a file is over, or a file was removed.
    pub published: Signal,
    /// Files of dropped spaces that are given back a piece at a time.
    pub removed: Mutex<Vec<Removed>>,
    /// Counters for tests and metrics.
    pub counters: Counters,
    /// What the scrub has read.
    pub scrubbed: Mutex<Scrubbed>,
}

/// Things that happened since the store was opened.
#[derive(Debug, Default)]
pub struct Counters {
    /// Checkpoints committed.
    pub checkpoints: AtomicU64,
    /// Bytes of pages written by checkpoints.
    pub page_bytes: AtomicU64,
    /// Units that held a page before and were taken again.
    pub units_reused: AtomicU64,
    /// Pages given up by checkpoints that took entries out.
    pub leaves_cleaned: AtomicU64,
    /// Checkpoints that met a full disk.
    pub no_space: AtomicU64,
    /// Bytes of pages that vacuums wrote anew further down.
    pub vacuum_moved: AtomicU64,
    /// Bytes of files that vacuums gave back to the disk.
    pub vacuum_cut: AtomicU64,
    /// Rounds of the vacuum in the background.
    pub vacuum_rounds: AtomicU64,
    /// Times that it made a file shorter.
    pub vacuum_cuts: AtomicU64,
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core").field("path", &self.options.path).finish_non_exhaustive()
    }
}

/// Bytes of write buffers.
#[derive(Debug, Default)]
struct Budget {
    used: u64,
}

/// The manifest of the last commit, and the slots it goes to.
#[derive(Debug)]
pub struct Committer {
    /// None if nothing may be written.
    pub slots: Option<Slots>,
    /// What the newest slot holds.
    pub manifest: Manifest,
    /// What the slot before holds.
    pub older: Manifest,
}

impl Committer {
    /// Commits the manifest with `change` applied. Requires: what it names is durable.
    pub fn commit(&mut self, change: impl FnOnce(&mut Manifest)) -> Result<u64> {
        let mut next = self.manifest.clone();
        change(&mut next);
        next.sequence += 1;
        self.slots.as_ref().ok_or(Error::ReadOnly)?.commit(&next)?;
        self.older = std::mem::replace(&mut self.manifest, next);
        Ok(self.manifest.sequence)
    }

    /// The entry of a space.
    pub fn space_mut(manifest: &mut Manifest, id: SpaceId) -> Option<&mut SpaceEntry> {
        manifest.spaces.iter_mut().find(|space| space.id == id)
    }

    /// The entry of a tree.
    pub fn tree_mut(space: &mut SpaceEntry, id: TreeId) -> Option<&mut TreeEntry> {
        space.trees.iter_mut().find(|tree| tree.id == id)
    }
}

/// Allocated bytes that a full store falls back on.
#[derive(Debug, Default)]
pub struct Reserve {
    file: Option<Arc<dyn DiskFile>>,
    /// Bytes of it that are allocated.
    held: u64,
    /// The most that there were in this session.
    most: u64,
}

/// Room for one batch, taken before it is applied; given back if it is dropped unused.
#[derive(Debug)]
pub struct Admission {
    core: Arc<Core>,
    /// Budget taken.
    pub(crate) bytes: u64,
    /// Journal room taken.
    pub(crate) journal: u64,
}

impl Drop for Admission {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.core.release(self.bytes);
        }
        if self.journal > 0
            && let Some(journal) = self.core.journal.get()
        {
            journal.uncharge(self.journal);
        }
    }
}

/// What an edit takes of the budget besides its bytes: its places in the buffer.
const EDIT_OVERHEAD: u64 = 160;

impl Core {
    /// What a store that opens shares.
    pub fn new(disk: Arc<dyn Disk>, options: StoreOptions, committer: Committer) -> Arc<Self> {
        let poison = Arc::new(Poison::default());
        let durable = Arc::new(Watermark::new(committer.manifest.journal.position));
        let (freed, flushed) = (Arc::new(Watermark::default()), Arc::new(Watermark::default()));
        for mark in [&durable, &freed, &flushed] {
            poison.watch(mark);
        }
        Arc::new(Core {
            engine: committer.manifest.engine,
            disk,
            options,
            poison,
            catalog: Arc::default(),
            journal: OnceLock::new(),
            committer: Mutex::new(committer),
            reserve: Mutex::default(),
            budget: Mutex::default(),
            freed,
            uncut: AtomicU64::new(0),
            uncut_batches: AtomicU64::new(0),
            short: AtomicBool::new(false),
            was_short: AtomicBool::new(false),
            full: AtomicBool::new(false),
            was_full: AtomicBool::new(false),
            flush_wanted: AtomicU64::new(0),
            flushed,
            durable,
            batch_position: AtomicU64::new(0),
            signal: Signal::default(),
            published: Signal::default(),
            removed: Mutex::default(),
            counters: Counters::default(),
            scrubbed: Mutex::default(),
        })
    }

    /// Takes room for a batch of this cost (R5).
    pub fn admit(self: &Arc<Self>, cost: Cost) -> Result<Admission, AdmitError> {
        self.poison.check().map_err(AdmitError::Refused)?;
        if self.options.read_only {
            return Err(AdmitError::Refused(Error::ReadOnly));
        }
        if self.full.load(Ordering::Acquire) && !cost.frees_space {
            return Err(AdmitError::Refused(Error::NoSpace { path: self.options.path.clone() }));
        }
        if cost.record_bytes > crate::limits::RECORD_BYTES_MAX as u64 {
            let (size, max) = (cost.record_bytes, crate::limits::RECORD_BYTES_MAX as u64);
            return Err(AdmitError::Refused(Error::TooLarge { what: "a journal record", size, max }));
        }
        let bytes = cost.edit_bytes + cost.edits * EDIT_OVERHEAD;
        let mut admission = self.take_budget(bytes)?;
        if cost.record_bytes > 0
            && let Some(journal) = self.journal.get()
        {
            admission.journal = journal.charge(cost.record_bytes)?;
        }
        Ok(admission)
    }

    /// A batch larger than the whole budget is admitted alone.
    fn take_budget(self: &Arc<Self>, bytes: u64) -> Result<Admission, AdmitError> {
        let mut budget = self.budget.lock();
        if budget.used > 0 && budget.used + bytes > self.options.buffer_bytes {
            let ticket = self.freed.ticket(Position(self.freed.reached().0 + 1));
            drop(budget);
            self.short.store(true, Ordering::Release);
            self.was_short.store(true, Ordering::Relaxed);
            self.signal.raise();
            return Err(AdmitError::Short(ticket));
        }
        budget.used += bytes;
        drop(budget);
        Ok(Admission { core: Arc::clone(self), bytes, journal: 0 })
    }

    /// Gives budget back.
    pub fn release(&self, bytes: u64) {
        let mut budget = self.budget.lock();
        budget.used -= bytes;
        // Under the lock: whoever was refused before has its ticket for this advance.
        self.freed.advance(Position(self.freed.reached().0 + 1));
    }

    /// Bytes of budget in use.
    pub fn buffered(&self) -> u64 {
        self.budget.lock().used
    }

    /// True if so much is applied that a checkpoint should begin while writers go on.
    pub fn is_half_full(&self) -> bool {
        self.uncut.load(Ordering::Relaxed) >= self.options.buffer_bytes / 2
    }

    /// Asks for a checkpoint of everything applied so far; the ticket waits for it.
    pub fn flush(&self) -> Ticket {
        let wanted = self.flush_wanted.fetch_add(1, Ordering::SeqCst) + 1;
        self.signal.raise();
        self.flushed.ticket(Position(wanted))
    }

    /// Allocates the space reserve as far as it is not there: all of it, a half or a quarter, whatever
    /// the disk has room for; false if that is nothing, or less than there was before the disk was full.
    pub fn take_reserve(&self) -> Result<bool> {
        let bytes = self.options.space_reserve_bytes;
        let mut reserve = self.reserve.lock();
        if reserve.held >= bytes {
            return Ok(true);
        }
        if reserve.file.is_none() {
            let path = self.options.path.join(RESERVE_NAME);
            let file = match self.disk.open(&path, OpenMode::Write) {
                Err(error) if error.is_not_found() => self.disk.open(&path, OpenMode::CreateNew),
                other => other,
            };
            match file {
                Err(Error::NoSpace { .. }) => return Ok(false),
                other => reserve.file = Some(other?),
            }
        }
        let Some(file) = reserve.file.clone() else { return Ok(false) };
        for part in [bytes, bytes / 2, bytes / 4] {
            if part <= reserve.held {
                break;
            }
            match file.preallocate(part) {
                Err(Error::NoSpace { .. }) => {}
                other => {
                    other?;
                    reserve.held = part;
                }
            }
        }
        reserve.most = reserve.most.max(reserve.held);
        Ok(reserve.held > 0 && reserve.held >= reserve.most)
    }

    /// Gives the space reserve, or what an earlier session has left of it, to whoever writes next, also while
    /// the store opens; false if there was none.
    pub fn spend_reserve(&self) -> Result<bool> {
        let mut reserve = self.reserve.lock();
        if reserve.file.is_none() {
            match self.disk.open(&self.options.path.join(RESERVE_NAME), OpenMode::Write) {
                Err(error) if error.is_not_found() => return Ok(false),
                other => {
                    let file = other?;
                    reserve.held = file.len()?;
                    reserve.most = reserve.held.min(self.options.space_reserve_bytes);
                    reserve.file = Some(file);
                }
            }
        }
        let held = std::mem::take(&mut reserve.held);
        match &reserve.file {
            Some(file) if held > 0 => file.truncate(0).map(|()| true),
            _ => Ok(false),
        }
    }

    /// Closes tree files that are open beyond the limit.
    pub fn close_idle_files(&self) {
        let spaces = self.catalog.spaces();
        let open = spaces.iter().flat_map(|space| &space.trees).filter(|tree| tree.file.is_open());
        for tree in open.skip(self.options.open_files_max) {
            tree.file.close_idle();
        }
    }
}
