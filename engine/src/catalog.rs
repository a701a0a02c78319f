//! The spaces and trees that are open, and what is published of each.
//!
//! Lock order: a space's `write`, then a tree's `views`. A tree's `room` is held by whoever
//! builds pages for it or scans it, never together with `write`.

use crate::batch::{DurableListener, SpaceInfo, TreeClass, TreeInfo, TreeSpec};
use crate::buffer::TreeBuffer;
use crate::error::Error;
use crate::file::TreeFile;
use crate::ids::{SpaceId, TreeId, UNIT_BYTES};
use crate::manifest::{SpaceEntry, TreeEntry};
use crate::space::pending::Pending;
use crate::space::{Extent, FreeSpace};
use crate::sync::atomic::{AtomicBool, Ordering, fence};
use crate::sync::{Mutex, RwLock};
use crate::ticket::Position;
use crate::tree::Root;
use crate::view::{Published, View};
use arc_swap::ArcSwap;
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Deref;
use std::sync::{Arc, Weak};

/// An open tree.
#[derive(Debug)]
pub struct Tree {
    // Set at open, never changed.
    /// Its id.
    pub id: TreeId,
    /// What it was created with.
    pub spec: TreeSpec,
    /// Its file.
    pub file: Arc<TreeFile>,
    /// True if it is Volatile and begins this session empty.
    pub emptied: bool,

    published: ArcSwap<Published>,
    // What was published and may still be looked at, oldest first, by commit.
    views: Mutex<VecDeque<(u64, Weak<Published>)>>,
    /// Its free units, and those that wait to be free.
    pub room: Mutex<Room>,
    sizes: Mutex<Sizes>,
    // Of a Volatile tree: why it could not be written.
    failed: Mutex<Option<Error>>,
}

/// How many units a tree file has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sizes {
    /// All of them.
    pub all: u64,
    /// Those that hold nothing of the current tree.
    pub unused: u64,
    /// How many overflow extents the tree has; None before the opening scan told.
    pub extents: Option<u64>,
}

/// Units of a tree file.
#[derive(Debug)]
pub struct Room {
    /// Those that are free.
    pub free: FreeSpace,
    /// Those that wait until nobody reaches them.
    pub pending: Pending,
    /// Those of pages that a checkpoint has built and not yet published.
    pub building: Vec<Extent>,
    /// How many wait for what lies at the end to be moved.
    pub vacuums: u32,
    /// True while it is moved in the background: low places are taken first. They are scattered, and each is a write
    /// of its own.
    pub is_moved: bool,
    /// How many overflow extents the tree has, once the opening scan told what is free.
    pub extents: i64,
}

impl Room {
    fn sizes(&self) -> Sizes {
        let extents = self.free.is_known().then(|| self.extents.max(0).cast_unsigned());
        Sizes { all: u64::from(self.free.end()), unused: self.free.free() + self.pending.units(), extents }
    }
}

impl Tree {
    /// A tree as of commit `commit`.
    pub fn new(entry: &TreeEntry, file: TreeFile, commit: u64, emptied: bool) -> Self {
        let root = entry.root.unwrap_or_default();
        let end = if entry.root.is_some() { entry.end_unit } else { 1 };
        let file = Arc::new(file);
        let published = Published { root, commit, file: Some(Arc::clone(&file)), frozen: None, active: Arc::default() };
        Tree {
            id: entry.id,
            spec: entry.spec.clone(),
            file,
            emptied,
            published: ArcSwap::from_pointee(published),
            views: Mutex::default(),
            room: Mutex::new(Room {
                free: FreeSpace::unknown(end),
                pending: Pending::default(),
                building: Vec::new(),
                vacuums: 0,
                is_moved: false,
                extents: 0,
            }),
            sizes: Mutex::new(Sizes { all: u64::from(end), unused: 0, extents: None }),
            failed: Mutex::default(),
        }
    }

    /// Remembers the sizes for whoever asks while the room is held.
    pub fn note_sizes(&self, room: &Room) {
        *self.sizes.lock() = room.sizes();
    }

    /// The sizes now or, while pages are built, as they were before: that takes as long as the disk does, and
    /// writers ask.
    pub fn sizes(&self) -> Sizes {
        if let Some(room) = self.room.try_lock() {
            self.note_sizes(&room);
        }
        *self.sizes.lock()
    }

    /// Bytes of its file that are in use, header included.
    pub fn in_use(&self) -> u64 {
        let sizes = self.sizes();
        (sizes.all - sizes.unused) * UNIT_BYTES as u64
    }

    /// True if it takes no part in the journal and the manifest.
    pub fn is_volatile(&self) -> bool {
        self.spec.class == TreeClass::Volatile
    }

    /// What readers see now.
    pub fn view(&self) -> View {
        View::new(self.published())
    }

    /// What is published now.
    pub fn published(&self) -> Arc<Published> {
        self.published.load_full()
    }

    /// The buffer that takes new entries. Requires: the space's `write` is held.
    pub fn active(&self) -> Arc<TreeBuffer> {
        Arc::clone(&self.published.load().active)
    }

    /// Swaps in a new buffer and gives the full one. Swaps pointers, nothing else, unless an
    /// unfinished checkpoint left a frozen buffer: then the two become one. Requires: the space's
    /// `write` is held.
    pub fn freeze(&self) -> Option<Arc<TreeBuffer>> {
        let now = self.published();
        let frozen = match &now.frozen {
            None if now.active.is_empty() => return None,
            None => Arc::clone(&now.active),
            Some(older) => {
                let both = TreeBuffer::default();
                for (key, edit) in older.sorted().into_iter().chain(now.active.sorted()) {
                    both.set(key, edit);
                }
                Arc::new(both)
            }
        };
        let (root, commit, file) = (now.root, now.commit, now.file.clone());
        drop(now);
        self.replace(Published { root, commit, file, frozen: Some(Arc::clone(&frozen)), active: Arc::default() });
        Some(frozen)
    }

    /// Publishes the root of a finished checkpoint; its buffer goes.
    pub fn publish(&self, root: Root, commit: u64) {
        // The active buffer may not be swapped meanwhile: only `freeze` does that, and the one
        // checkpoint that runs calls both.
        let active = self.active();
        self.replace(Published { root, commit, file: Some(Arc::clone(&self.file)), frozen: None, active });
    }

    fn replace(&self, next: Published) {
        let mut views = self.views.lock();
        let old = self.published.swap(Arc::new(next));
        views.push_back((old.commit, Arc::downgrade(&old)));
        while views.front().is_some_and(|(_, view)| view.strong_count() == 0) {
            views.pop_front();
        }
    }

    /// The lowest commit that a live view is of.
    pub fn oldest_view(&self) -> u64 {
        let views = self.views.lock();
        let current = self.published.load().commit;
        let alive = views.iter().filter(|(_, view)| view.strong_count() > 0).map(|(commit, _)| *commit);
        let oldest = alive.min().unwrap_or(current).min(current);
        // The counts are read relaxed: what readers of a view did comes before what is done to its pages.
        fence(Ordering::Acquire);
        oldest
    }

    /// Why a Volatile tree takes no writes.
    pub fn failure(&self) -> Option<Error> {
        self.failed.lock().clone()
    }

    /// A Volatile tree could not be written (or could again).
    pub fn set_failure(&self, error: Option<Error>) {
        *self.failed.lock() = error;
    }
}

/// A tree for those who look up a key at a time: it is not searched for, and no count is touched that others touch.
#[derive(Debug, Clone)]
pub struct Reader(Arc<Tree>);

impl Reader {
    /// Reads from this tree.
    pub fn new(tree: Arc<Tree>) -> Self {
        Reader(tree)
    }

    /// What is published now, for one short look. As a view it keeps its pages while it lives.
    pub fn glance(&self) -> impl Deref<Target = Arc<Published>> + use<> {
        self.0.published.load()
    }
}

/// An open space.
pub struct Space {
    // Set at open, never changed.
    /// Its id.
    pub id: SpaceId,
    /// Its name.
    pub name: String,
    /// Its creator's description.
    pub config: Bytes,
    /// Its trees, in the order of its spec.
    pub trees: Vec<Arc<Tree>>,

    /// Writers of the space, one at a time.
    pub write: Mutex<SpaceWrite>,
    /// Who wants to know what became durable.
    pub listener: RwLock<Option<Arc<dyn DurableListener>>>,
    dropped: AtomicBool,
}

/// What changes with every batch.
#[derive(Debug, Default)]
pub struct SpaceWrite {
    /// The owner's state after the last batch.
    pub state: Vec<u8>,
    /// The position of its last record.
    pub last: Position,
    /// True if something was applied since the last cut.
    pub dirty: bool,
    /// Budget that the buffers hold.
    pub charged: u64,
}

impl std::fmt::Debug for Space {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Space").field("id", &self.id).field("name", &self.name).finish_non_exhaustive()
    }
}

impl Space {
    /// A space as the manifest has it.
    pub fn new(entry: &SpaceEntry, trees: Vec<Arc<Tree>>) -> Self {
        let write = SpaceWrite { state: entry.state.to_vec(), last: entry.replayed_to, ..SpaceWrite::default() };
        Space {
            id: entry.id,
            name: entry.name.clone(),
            config: entry.config.clone(),
            trees,
            write: Mutex::new(write),
            listener: RwLock::new(None),
            dropped: AtomicBool::new(false),
        }
    }

    /// What callers are told about it.
    pub fn info(&self) -> SpaceInfo {
        let trees =
            self.trees.iter().map(|tree| TreeInfo { id: tree.id, spec: tree.spec.clone(), emptied: tree.emptied });
        SpaceInfo {
            id: self.id,
            name: self.name.clone(),
            config: self.config.clone(),
            state: Bytes::copy_from_slice(&self.write.lock().state),
            trees: trees.collect(),
        }
    }

    /// True once it was dropped; checkpoints pass over it.
    pub fn is_dropped(&self) -> bool {
        self.dropped.load(Ordering::Acquire)
    }

    /// Marks it as dropped.
    pub fn drop_it(&self) {
        self.dropped.store(true, Ordering::Release);
    }
}

/// All open spaces and trees, by id.
#[derive(Debug, Default)]
pub struct Catalog {
    spaces: RwLock<BTreeMap<SpaceId, Arc<Space>>>,
    trees: RwLock<BTreeMap<TreeId, Arc<Tree>>>,
}

impl Catalog {
    /// Adds a space and its trees.
    pub fn add(&self, space: Arc<Space>) {
        let mut trees = self.trees.write();
        for tree in &space.trees {
            trees.insert(tree.id, Arc::clone(tree));
        }
        self.spaces.write().insert(space.id, space);
    }

    /// Takes a space out.
    pub fn remove(&self, id: SpaceId) -> Option<Arc<Space>> {
        let space = self.spaces.write().remove(&id)?;
        let mut trees = self.trees.write();
        for tree in &space.trees {
            trees.remove(&tree.id);
        }
        Some(space)
    }

    /// A space.
    pub fn space(&self, id: SpaceId) -> Option<Arc<Space>> {
        self.spaces.read().get(&id).cloned()
    }

    /// A tree.
    pub fn tree(&self, id: TreeId) -> Option<Arc<Tree>> {
        self.trees.read().get(&id).cloned()
    }

    /// All spaces, by id.
    pub fn spaces(&self) -> Vec<Arc<Space>> {
        self.spaces.read().values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::Disk;
    use crate::disk::sim::SimDisk;
    use crate::file::{FileSpec, ReadMode};

    #[test]
    fn sizes_are_told_while_the_room_is_held() {
        let disk: Arc<dyn Disk> = Arc::new(SimDisk::new(1));
        let spec = FileSpec { path: "/s/t".into(), engine: 1, tree: TreeId(1), page_bytes: 4096 };
        let file = TreeFile::new(&disk, spec, ReadMode::default());
        let entry = TreeEntry { id: TreeId(1), spec: TreeSpec::new("t"), root: None, end_unit: 1 };
        let tree = Arc::new(Tree::new(&entry, file, 0, false));
        assert_eq!(tree.sizes(), Sizes { all: 1, ..Sizes::default() });
        let held = tree.room.lock();
        let (sender, sizes) = std::sync::mpsc::channel();
        let asked = Arc::clone(&tree);
        std::thread::spawn(move || sender.send(asked.sizes()));
        let told = sizes.recv_timeout(std::time::Duration::from_secs(60)).expect("it does not wait");
        assert_eq!(told, Sizes { all: 1, ..Sizes::default() });
        drop(held);
    }
}
