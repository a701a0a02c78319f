//! Opening a store: which slot, what the journal adds, and a fresh start from there (R10).
//!
//! Nothing that this session did not sync itself is trusted later: what was replayed is written into
//! fresh pages, the manifest is committed to both slots with a new session, and only then does the
//! store answer. New pages go behind the old end of each file, because what is free is not known
//! before the opening scan.

use crate::batch::{Replay, TreeClass};
use crate::catalog::{Space, Tree};
use crate::checkpoint;
use crate::core::{Committer, Core, RESERVE_NAME, StoreOptions};
use crate::defect::{Defect, is_on};
use crate::disk::{Disk, DiskLock, OpenMode};
use crate::error::{Damage, Error, Place, Result};
use crate::file::{FileSpec, TreeFile};
use crate::ids::TreeId;
use crate::journal::replay::{self, Dropped};
use crate::journal::segment::{self, Segment};
use crate::manifest::{Chosen, JournalStart, Manifest, SLOT_NAMES, Slots, SpaceEntry, TreeEntry};
use crate::ticket::Position;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The lock file.
pub const LOCK_NAME: &str = "LOCK";
/// Epochs may have been used that no manifest tells of; leave them behind.
const EPOCH_SKIP: u64 = 1 << 16;

/// What opening found and did.
#[derive(Debug, Clone, Default)]
pub struct OpenReport {
    /// True if the store was made just now.
    pub created: bool,
    /// True if the last session was closed.
    pub clean: bool,
    /// The manifest slot that was used, 0 or 1.
    pub slot: usize,
    /// What was wrong with the other slot, if anything.
    pub other_slot: Option<String>,
    /// Journal groups replayed.
    pub groups: u64,
    /// Journal records replayed.
    pub records: u64,
    /// Replayed groups that ran over more than one segment.
    pub spanning_groups: u64,
    /// The unsynced end of the journal that was dropped.
    pub dropped: Option<Dropped>,
    /// Volatile trees that begin empty.
    pub emptied: u64,
}

/// An open store, before its jobs run.
pub(crate) struct Opened {
    pub(crate) core: Arc<Core>,
    pub(crate) lock: Option<Box<dyn DiskLock>>,
    pub(crate) report: OpenReport,
    pub(crate) start: JournalStart,
    pub(crate) segments: Vec<(u64, Segment)>,
}

/// The path of a tree's file.
pub(crate) fn tree_path(store: &Path, space: &str, entry: &TreeEntry) -> PathBuf {
    let dir = entry.spec.dir.as_deref().unwrap_or(store);
    dir.join(format!("{space}.{}.{:06}.tree", entry.spec.name, entry.id.0))
}

/// Opens or creates the store in `options.path`.
pub(crate) fn open(disk: Arc<dyn Disk>, options: StoreOptions, replay: &mut dyn Replay) -> Result<Opened> {
    let path = options.path.clone();
    let fresh = is_fresh(&*disk, &path, options.read_only)?;
    let lock = lock(&*disk, &path, options.read_only)?;
    let mut report = OpenReport { created: fresh, ..OpenReport::default() };
    if fresh {
        create(&*disk, &path)?;
    }
    let chosen = choose(&*disk, &path)?;
    report.clean = chosen.manifest.clean;
    report.slot = chosen.slot;
    report.other_slot = chosen.other.as_ref().map(ToString::to_string);
    let slots = if options.read_only { None } else { Some(Slots::open(&*disk, &path, &chosen)?) };
    let older = chosen.manifest.clone();
    let was = chosen.manifest.clone();
    let mut manifest = chosen.manifest;
    manifest.epoch += EPOCH_SKIP;
    let read_only = options.read_only;
    let core = Core::new(disk, options, Committer { slots, manifest, older });
    if !read_only {
        clear_unfinished(&core)?;
    }
    for entry in &was.spaces {
        report.emptied += open_space(&core, entry, &was, read_only)?;
    }
    let mode = if read_only { OpenMode::Read } else { OpenMode::Write };
    let segments = segment::open_all(&*core.disk, &segment::directory(&path), mode)?;
    let last = replay_journal(&core, &was, &segments, &mut report, replay)?;
    settle(&core, was.clean, replay)?;
    let start =
        JournalStart { segment: last.1, offset: segment::SEGMENT_DATA, sequence: 1, chain: 0, position: last.0 };
    if !read_only {
        let session = was.session + 1;
        begin_session(&core, start, session)?;
        // Not before: until then the other slot may name them, and a restart may have to go by that one.
        remove_strays(&core, &was)?;
    }
    core.durable.advance(start.position);
    Ok(Opened { core, lock, report, start, segments })
}

/// True if the directory may become a new store; an error if it holds something else.
pub(crate) fn is_fresh(disk: &dyn Disk, path: &Path, read_only: bool) -> Result<bool> {
    let names = match disk.list(path) {
        Err(error) if error.is_not_found() && !read_only => {
            disk.create_dir(path)?;
            if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                disk.sync_dir(parent)?;
            }
            Vec::new()
        }
        other => other?,
    };
    let is_slot = |name: &String| SLOT_NAMES.contains(&name.as_str());
    if names.iter().any(is_slot) {
        return Ok(false);
    }
    let refuse = |why: String| Err(Error::NotAStore { path: path.to_owned(), why });
    if read_only {
        return refuse("there is no manifest in it".to_owned());
    }
    // The lock file, and a first slot that a crash left unfinished.
    let harmless =
        |name: &&String| name.as_str() == LOCK_NAME || name.ends_with(".new") || name.as_str() == "lost+found";
    let ours = |name: &&String| name.ends_with(".tree") || name.as_str() == "journal" || name.as_str() == RESERVE_NAME;
    if let Some(name) = names.iter().find(ours) {
        return refuse(format!("it holds {name} but neither {} nor {}", SLOT_NAMES[0], SLOT_NAMES[1]));
    }
    match names.iter().find(|name| !harmless(name)) {
        None => Ok(true),
        Some(name) => refuse(format!("it holds {name}; choose an empty directory")),
    }
}

/// Takes a directory for this process.
pub(crate) fn lock(disk: &dyn Disk, path: &Path, read_only: bool) -> Result<Option<Box<dyn DiskLock>>> {
    match disk.lock(&path.join(LOCK_NAME), &format!("pid {}", std::process::id())) {
        Ok(lock) => Ok(Some(lock)),
        // A directory that cannot be written needs no lock against writers.
        Err(error) if read_only && error.is_read_only() => Ok(None),
        Err(error) => Err(error),
    }
}

fn create(disk: &dyn Disk, path: &Path) -> Result<()> {
    let manifest = Manifest {
        engine: disk.entropy(),
        sequence: 0,
        epoch: 0,
        session: 0,
        clean: true,
        journal: JournalStart {
            segment: 1,
            offset: segment::SEGMENT_DATA,
            sequence: 1,
            chain: 0,
            position: Position(0),
        },
        next_space: 1,
        next_tree: 1,
        spaces: Vec::new(),
    };
    Slots::create(disk, path, &manifest)
}

fn choose(disk: &dyn Disk, path: &Path) -> Result<Chosen> {
    let chosen = Slots::choose(disk, path)?;
    if chosen.manifest.spaces.windows(2).any(|pair| pair[0].id >= pair[1].id) {
        let damage = Damage::Malformed { what: "its spaces are out of order" };
        return Err(Error::corrupt(&path.join(SLOT_NAMES[chosen.slot]), Place::File, damage));
    }
    Ok(chosen)
}

/// Removes what an unfinished create, drop or journal segment left behind.
/// Removes what a crash left of files in the making.
fn clear_unfinished(core: &Core) -> Result<()> {
    let path = &core.options.path;
    let journal = segment::directory(path);
    core.disk.create_dir(&journal)?;
    for dir in [path, &journal] {
        for name in core.disk.list(dir)?.iter().filter(|name| name.ends_with(".new")) {
            core.disk.remove(&dir.join(name))?;
        }
    }
    // A segment that a killed process renamed may be in use soon, and its name not be on disk (R10).
    core.disk.sync_dir(&journal)?;
    core.disk.sync_dir(path)
}

/// Removes tree files of spaces that are gone, or that never came to be.
fn remove_strays(core: &Core, manifest: &Manifest) -> Result<()> {
    let path = &core.options.path;
    let files = manifest.spaces.iter().flat_map(|space| {
        space.trees.iter().filter_map(|tree| tree_path(path, &space.name, tree).file_name().map(ToOwned::to_owned))
    });
    let known: BTreeSet<_> = files.collect();
    // Other directories may be shared with other stores: only our own is swept.
    let names = core.disk.list(path)?;
    let strays: Vec<_> =
        names.iter().filter(|name| name.ends_with(".tree") && !known.contains(OsStr::new(name.as_str()))).collect();
    if strays.is_empty() {
        return Ok(());
    }
    strays.iter().try_for_each(|name| core.disk.remove(&path.join(name)))?;
    core.disk.sync_dir(path)
}

/// Opens a space's files; returns how many Volatile trees begin empty.
fn open_space(core: &Arc<Core>, entry: &SpaceEntry, manifest: &Manifest, read_only: bool) -> Result<u64> {
    let mut trees = Vec::with_capacity(entry.trees.len());
    let mut emptied = 0;
    for tree in &entry.trees {
        let volatile = tree.spec.class == TreeClass::Volatile;
        let mut keeps = !volatile || (manifest.clean && tree.root.is_some());
        let spec = file_spec(core, &entry.name, tree);
        let file = TreeFile::new(&core.disk, spec.clone(), core.options.read_mode);
        let file = match file.open() {
            // Only its clean mark made it worth anything.
            Err(_) if volatile && !read_only => {
                if std::mem::take(&mut keeps) {
                    // Before its file goes: no manifest may name a root in the new one.
                    core.committer.lock().commit(|manifest| {
                        let space = Committer::space_mut(manifest, entry.id);
                        if let Some(tree) = space.and_then(|space| Committer::tree_mut(space, tree.id)) {
                            tree.root = None;
                        }
                    })?;
                }
                match core.disk.remove(&spec.path) {
                    Err(error) if !error.is_not_found() => return Err(error),
                    _ => {}
                }
                let dir = spec.path.parent().map(Path::to_owned);
                let file = TreeFile::create(&core.disk, spec, core.options.read_mode)?;
                // A close that keeps what is in it syncs no more than the file.
                dir.map_or(Ok(()), |dir| core.disk.sync_dir(&dir))?;
                file
            }
            // Nothing of it is read.
            Err(_) if volatile && !keeps => file,
            Err(error) if error.is_not_found() => {
                let damage = Damage::Malformed { what: "the manifest names it, but it is not there" };
                return Err(Error::corrupt(&spec.path, Place::File, damage));
            }
            other => other.map(|()| file)?,
        };
        // Thousands of trees: the opening scan opens each again, and closes it.
        file.close_idle();
        let kept = TreeEntry { root: tree.root.filter(|_| keeps), ..tree.clone() };
        emptied += u64::from(volatile && !keeps);
        trees.push(Arc::new(Tree::new(&kept, file, manifest.sequence, volatile && !keeps)));
    }
    core.catalog.add(Arc::new(Space::new(entry, trees)));
    Ok(emptied)
}

/// How a tree's file identifies itself.
pub(crate) fn file_spec(core: &Core, space: &str, tree: &TreeEntry) -> FileSpec {
    FileSpec {
        path: tree_path(&core.options.path, space, tree),
        engine: core.engine,
        tree: tree.id,
        page_bytes: tree.spec.page_bytes,
    }
}

/// Puts the journal's records into the buffers; returns the last position and the next segment.
fn replay_journal(
    core: &Core,
    manifest: &Manifest,
    segments: &[(u64, Segment)],
    report: &mut OpenReport,
    replay: &mut dyn Replay,
) -> Result<(Position, u64)> {
    let replayed_to: BTreeMap<_, _> = manifest.spaces.iter().map(|space| (space.id, space.replayed_to)).collect();
    // Asked once of each: there may be a record for every put.
    let mut infos = BTreeMap::new();
    let mut each = |position: Position, id, record: &[u8]| {
        // Records of a dropped space, and those that its trees have already.
        let Some(space) = core.catalog.space(id).filter(|_| replayed_to[&id] < position) else {
            return Ok(());
        };
        let info = infos.entry(id).or_insert_with(|| space.info());
        let done = replay.replay(info, &info.state, record)?;
        let mut write = space.write.lock();
        for edit in done.edits {
            let tree = space.trees.iter().find(|tree| tree.id == edit.tree && !tree.is_volatile());
            if let Some(tree) = tree {
                tree.active().set(edit.key, edit.edit);
            }
        }
        write.state = done.state.into();
        info.state = Bytes::copy_from_slice(&write.state);
        write.last = position;
        write.dirty = true;
        Ok(())
    };
    let found = replay::replay(segments, manifest, &mut each)?;
    report.groups = found.groups;
    report.records = found.records;
    report.spanning_groups = found.spanning;
    report.dropped = found.dropped;
    let last = replayed_to.values().copied().max().unwrap_or_default().max(found.last);
    let highest = segments.iter().filter_map(|(_, segment)| segment.head).map(|head| head.number).max().unwrap_or(0);
    Ok((last, highest.max(found.last_segment) + 1))
}

/// Lets the owner of each space have the last word on its state.
fn settle(core: &Core, clean: bool, replay: &mut dyn Replay) -> Result<()> {
    for space in core.catalog.spaces() {
        let info = space.info();
        if let Some(state) = replay.settled(&info, &info.state, clean)? {
            let mut write = space.write.lock();
            write.state = state.into();
            write.dirty = true;
        }
    }
    Ok(())
}

/// Writes what was replayed and commits it to both slots, with a new session.
fn begin_session(core: &Arc<Core>, start: JournalStart, session: u64) -> Result<()> {
    let change = |manifest: &mut Manifest| {
        manifest.session = session;
        manifest.clean = false;
        manifest.journal = start;
        for tree in manifest.spaces.iter_mut().flat_map(|space| &mut space.trees) {
            if tree.spec.class == TreeClass::Volatile {
                tree.root = None;
            }
        }
    };
    if is_on(Defect::NoNewSession) {
        return Ok(());
    }
    checkpoint::write_through(core, checkpoint::cut(core), change)?;
    if !is_on(Defect::ReusePageOfOlderSlotAfterReopen) {
        core.committer.lock().commit(|_| ())?;
    }
    Ok(())
}

/// The id of the next tree, taken.
pub(crate) fn next_tree(manifest: &mut Manifest) -> TreeId {
    let id = TreeId(manifest.next_tree);
    manifest.next_tree += 1;
    id
}
