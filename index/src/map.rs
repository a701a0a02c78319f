//! The ordered map: a B+tree of keys whose inner nodes count, and know time.
//!
//! Each child slot holds how many keys below it are live now, the newest main at which a key below was
//! born or died, and the newest at which one was written. A count at revision `r` adds a child whole if
//! nothing was born or died below it after `r`, and descends otherwise: exact while newer changes are
//! already applied. A walk over what changed since `r` leaves out children not written since.

use crate::history::{Older, Ring};
use crate::inner::{Child, Inner, Node};
use crate::leaf::{Leaf, State, common};
use crate::packed::{Link, Newest, WIDE, main_of};
use crate::revision::{Hit, Life, Revision};
use std::collections::{BTreeMap, VecDeque};

/// The most keys of a leaf and children of an inner node. Small in tests, so that nodes split.
#[cfg(not(test))]
pub(crate) const FANOUT: usize = 64;
#[cfg(test)]
pub(crate) const FANOUT: usize = 4;

/// A leaf of two keys or more is split above this many bytes.
pub(crate) const LEAF_BYTES_MAX: usize = 32 << 10;

/// The index of one shard.
#[derive(Debug, Default)]
pub struct Index {
    pub(crate) root: Node,
    pub(crate) beside: Beside,
    /// Tombstones below this main are gone.
    pub(crate) swept: u64,
    pub(crate) keys: u64,
    pub(crate) live: u64,
}

/// What an index has beside its tree.
#[derive(Debug, Default)]
pub(crate) struct Beside {
    pub(crate) ring: Ring,
    /// Tombstones in order until compaction passes them.
    pub(crate) graves: VecDeque<Grave>,
    /// The keys whose newest states do not fit a leaf.
    wide: BTreeMap<Box<[u8]>, Newest>,
    /// Bytes that the tree takes.
    pub(crate) tree_bytes: usize,
}

/// A tombstone.
#[derive(Debug)]
pub(crate) struct Grave {
    pub(crate) at: Revision,
    pub(crate) key: Box<[u8]>,
    /// The ring reports it: a put of the same main buried it.
    pub(crate) void: bool,
}

/// Sizes and counts of an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Keys with any revision.
    pub keys: u64,
    /// Keys that are live at the newest revision.
    pub live: u64,
    /// Revisions held.
    pub revisions: u64,
    /// Bytes of memory, but for what the allocator adds.
    pub bytes: u64,
}

/// What a change of one entry means for the counts above it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Change {
    born: bool,
    died: bool,
    at: u64,
    fresh: bool,
    /// The key became the last of its leaf.
    last: bool,
    /// The newest row before, if the key was live.
    before: Option<Revision>,
}

/// What becomes of an entry.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Write {
    /// A put; None counts from what was there.
    Put(Option<Life>),
    /// A tombstone.
    Tombstone,
}

impl Index {
    /// An empty index.
    pub fn new() -> Self {
        Index::default()
    }

    /// A put at `at`; returns the key's life after it. O(log n).
    ///
    /// Requires: `at` is above every revision of the key.
    pub fn put(&mut self, key: &[u8], at: Revision) -> Life {
        self.replace(key, at).0
    }

    /// The same, and the row before it, if the key was live.
    pub fn replace(&mut self, key: &[u8], at: Revision) -> (Life, Option<Revision>) {
        let (newest, change) = self.write_one(key, at, Write::Put(None));
        (Life { created: newest.created, version: newest.version }, change.before)
    }

    /// A delete at `at`; returns what it ended, or None if the key was not live (then nothing
    /// changes). O(log n).
    ///
    /// Requires: `at` is above every revision of the key.
    pub fn tombstone(&mut self, key: &[u8], at: Revision) -> Option<Hit> {
        let hit = self.latest(key)?;
        self.write(key, at, Write::Tombstone);
        Some(hit)
    }

    /// The key's state after all of main `at`, if it was live then. O(log n + newer revisions).
    pub fn get(&self, key: &[u8], at: u64) -> Option<Hit> {
        self.beside.ring.state_at(&self.find(key)?, at)
    }

    /// The key's newest state, if it is live; it has a life. O(log n).
    pub fn latest(&self, key: &[u8]) -> Option<Hit> {
        self.find(key)?.hit()
    }

    /// True if `row` is what the key was after all of main `at`, and a put.
    pub fn keeps(&self, key: &[u8], row: Revision, at: u64) -> bool {
        self.get(key, at).is_some_and(|hit| hit.modified == row)
    }

    /// True if the key has a change at `row`, put or tombstone, that was not swept.
    pub fn knows(&self, key: &[u8], row: Revision) -> bool {
        let Some(Newest { mut at, mut older, .. }) = self.find(key) else { return false };
        while at > row {
            let Some(state) = self.beside.ring.get(older) else { return false };
            (at, older) = (state.at, state.older);
        }
        at == row
    }

    /// Sizes and counts. O(1).
    pub fn stats(&self) -> Stats {
        let Beside { ring, graves, wide, tree_bytes } = &self.beside;
        // Keys of tombstones as long as others, with an allocator's rounding.
        let a_grave = size_of::<Grave>() + 64;
        let bytes = tree_bytes + ring.heap_bytes() + graves.len() * a_grave + wide.len() * 128;
        Stats { keys: self.keys, live: self.live, revisions: self.keys + ring.len() as u64, bytes: bytes as u64 }
    }

    pub(crate) fn find(&self, key: &[u8]) -> Option<Newest> {
        let mut node = &self.root;
        loop {
            match node {
                Node::Leaf(leaf) => return leaf.search(key).ok().map(|at| self.beside.state(leaf, at)),
                Node::Inner(inner) => node = &inner.children()[inner.child_of(key)].node,
            }
        }
    }

    pub(crate) fn write(&mut self, key: &[u8], at: Revision, write: Write) -> Newest {
        self.write_one(key, at, write).0
    }

    fn write_one(&mut self, key: &[u8], at: Revision, write: Write) -> (Newest, Change) {
        let (newest, change) = self.root.write(key, at, write, &mut self.beside);
        self.live = self.live + u64::from(change.born) - u64::from(change.died);
        self.keys += u64::from(change.fresh);
        if let Some(right) = self.root.split(change, &mut self.beside) {
            let left = Child::of(std::mem::take(&mut self.root), Box::default(), &self.beside);
            let inner = Inner::new(vec![left, right]);
            self.beside.tree_bytes += inner.heap_bytes();
            self.root = Node::Inner(Box::new(inner));
        }
        (newest, change)
    }

    /// Takes a dead key out.
    pub(crate) fn remove(&mut self, key: &[u8]) {
        self.keys -= u64::from(self.root.remove(key, &mut self.beside));
        if let Node::Inner(inner) = &mut self.root
            && inner.children().len() <= 1
        {
            self.beside.tree_bytes -= inner.heap_bytes();
            let only = inner.edit(|children| children.pop());
            self.root = only.map(|child| child.node).unwrap_or_default();
        }
    }
}

impl Beside {
    /// The newest state of a leaf's `at`th key.
    pub(crate) fn state(&self, leaf: &Leaf, at: usize) -> Newest {
        match leaf.state(at) {
            State::Here(newest) => newest,
            State::Wide => {
                let mut key = Vec::new();
                leaf.key(at, &mut key);
                *self.wide.get(&*key).expect("a state is in the leaf or in the map")
            }
        }
    }

    /// The state after a write; what it supersedes goes to the ring.
    fn succeed(&mut self, key: &[u8], before: Option<Newest>, at: Revision, write: Write) -> Newest {
        let older = before.as_ref().map_or(Link::NONE, |state| {
            let superseded = self.superseded(state, at);
            self.ring.push(superseded)
        });
        if matches!(write, Write::Tombstone) {
            self.graves.push_back(Grave { at, key: key.into(), void: false });
        }
        Newest::after(before.as_ref(), at, write, older)
    }

    /// A state as the ring keeps it once a row at `at` supersedes it.
    pub(crate) fn superseded(&mut self, state: &Newest, at: Revision) -> Older {
        debug_assert!(at > state.at, "{at:?} is not after {:?}", state.at);
        let live = state.is_live();
        // A tombstone is reported by its grave, unless the same main buries it: then no
        // compaction may keep it, as it would at a main of its own.
        let report = live || state.at.main == at.main;
        if report && !live {
            let grave = self.graves.binary_search_by_key(&state.at, |grave| grave.at);
            if let Some(grave) = grave.ok().and_then(|place| self.graves.get_mut(place)) {
                grave.void = true;
            }
        }
        Older { at: state.at, live, older: state.older, superseded: at.main, report }
    }

    /// Keeps a state that does not fit its leaf; forgets what did not before.
    pub(crate) fn keep(&mut self, key: &[u8], newest: &Newest, fits: bool) {
        if !fits {
            self.wide.insert(key.into(), *newest);
        } else if !self.wide.is_empty() {
            self.wide.remove(key);
        }
    }
}

impl Newest {
    /// The state after a write to a key that was `before`.
    pub(crate) fn after(before: Option<&Newest>, at: Revision, write: Write, older: Link) -> Newest {
        let life = match write {
            Write::Tombstone => Life { created: 0, version: 0 },
            Write::Put(Some(stored)) => stored,
            Write::Put(None) => match before.filter(|before| before.is_live()) {
                Some(before) => Life { created: before.created, version: before.version + 1 },
                None => Life { created: at.main, version: 1 },
            },
        };
        Newest { at, version: life.version, created: life.created, older }
    }
}

impl Child {
    pub(crate) fn of(node: Node, low: Box<[u8]>, beside: &Beside) -> Self {
        let (live, changed, written) = node.sums(beside);
        Child { low, live, changed, written, node }
    }
}

impl Node {
    pub(crate) fn len(&self) -> usize {
        match self {
            Node::Leaf(leaf) => leaf.len(),
            Node::Inner(inner) => inner.children().len(),
        }
    }

    pub(crate) fn sums(&self, beside: &Beside) -> (u64, u64, u64) {
        match self {
            Node::Leaf(leaf) => {
                let (mut live, mut written) = (0, 0);
                for (at, packed) in leaf.all_packed(0..leaf.len()).enumerate() {
                    let (main, lives) = match packed {
                        WIDE => {
                            let newest = beside.state(leaf, at);
                            (newest.at.main, newest.is_live())
                        }
                        packed => (main_of(packed), packed & 1 == 0),
                    };
                    live += u64::from(lives);
                    written = written.max(main);
                }
                // A leaf does not keep births: the newest change of any entry is a safe bound.
                (live, written, written)
            }
            Node::Inner(inner) => {
                let children = inner.children();
                let live = children.iter().map(|child| child.live).sum();
                let changed = children.iter().map(|child| child.changed).max().unwrap_or(0);
                (live, changed, children.iter().map(|child| child.written).max().unwrap_or(0))
            }
        }
    }

    /// Changes or adds an entry; tells its new state, and what that means for the counts above it.
    fn write(&mut self, key: &[u8], at: Revision, write: Write, beside: &mut Beside) -> (Newest, Change) {
        match self {
            Node::Leaf(leaf) => {
                let place = leaf.search(key);
                let before = place.ok().map(|place| beside.state(leaf, place));
                let newest = beside.succeed(key, before, at, write);
                let bytes = leaf.heap_bytes();
                let fits = match place {
                    Ok(place) => leaf.set(place, &newest),
                    Err(place) => leaf.insert(place, key, &newest),
                };
                beside.tree_bytes = beside.tree_bytes + leaf.heap_bytes() - bytes;
                beside.keep(key, &newest, fits);
                let was_live = before.is_some_and(|before| before.is_live());
                let (born, died) = (newest.is_live() && !was_live, was_live && !newest.is_live());
                let last = place == Err(leaf.len() - 1);
                let before_live = before.filter(|_| was_live).map(|before| before.at);
                (newest, Change { born, died, at: at.main, fresh: before.is_none(), last, before: before_live })
            }
            Node::Inner(inner) => {
                let which = inner.child_of(key);
                if which == 0 {
                    inner.lower(key);
                }
                let child = inner.child_mut(which);
                let (newest, change) = child.node.write(key, at, write, beside);
                child.written = child.written.max(at.main);
                if change.born || change.died {
                    child.live = child.live + u64::from(change.born) - u64::from(change.died);
                    child.changed = child.changed.max(change.at);
                }
                if change.fresh
                    && let Some(mut right) = child.node.split(change, beside)
                {
                    let changed = child.changed;
                    (child.live, _, child.written) = child.node.sums(beside);
                    // Both halves inherit the bound; either may hold what changed last.
                    right.changed = changed;
                    beside.edit(inner, |children| children.insert(which + 1, right));
                }
                (newest, change)
            }
        }
    }

    /// Splits an overfull node; returns its upper half. Keys that come in order leave full nodes behind.
    fn split(&mut self, change: Change, beside: &mut Beside) -> Option<Child> {
        let len = self.len();
        match self {
            Node::Leaf(leaf) => {
                if len <= FANOUT && (leaf.heap_bytes() <= LEAF_BYTES_MAX || len < 2) {
                    return None;
                }
                let bytes = leaf.heap_bytes();
                let at = if change.last { len - 1 } else { leaf.middle() };
                let right = leaf.split_off(at);
                beside.tree_bytes = beside.tree_bytes + leaf.heap_bytes() + right.heap_bytes() - bytes;
                let (mut below, mut first) = (Vec::new(), Vec::new());
                leaf.key(at - 1, &mut below);
                right.key(0, &mut first);
                first.truncate(common(&below, &first) + 1);
                Some(Child::of(Node::Leaf(right), first.into(), beside))
            }
            Node::Inner(inner) => {
                if len <= FANOUT {
                    return None;
                }
                let right = beside.edit(inner, |children| children.split_off(FANOUT / 2 + 1));
                let low = right[0].low.clone();
                let right = Inner::new(right);
                beside.tree_bytes += right.heap_bytes();
                Some(Child::of(Node::Inner(Box::new(right)), low, beside))
            }
        }
    }

    /// Takes a dead key out; merges what becomes small with a neighbour.
    fn remove(&mut self, key: &[u8], beside: &mut Beside) -> bool {
        match self {
            Node::Leaf(leaf) => {
                let place = leaf.search(key).ok().filter(|place| !beside.state(leaf, *place).is_live());
                if let Some(place) = place {
                    let bytes = leaf.heap_bytes();
                    leaf.remove(place);
                    beside.tree_bytes = beside.tree_bytes + leaf.heap_bytes() - bytes;
                    beside.wide.remove(key);
                }
                place.is_some()
            }
            Node::Inner(inner) => {
                let which = inner.child_of(key);
                let found = inner.child_mut(which).node.remove(key, beside);
                let left = inner.children()[which].node.len();
                if left == 0 {
                    let gone = beside.edit(inner, |children| children.remove(which));
                    if let Node::Inner(inner) = gone.node {
                        beside.tree_bytes -= inner.heap_bytes();
                    }
                } else if left < FANOUT / 4 {
                    beside.merge(inner, which);
                }
                found
            }
        }
    }
}

impl Beside {
    /// Changes which children a node has.
    pub(crate) fn edit<T>(&mut self, inner: &mut Inner, change: impl FnOnce(&mut Vec<Child>) -> T) -> T {
        let bytes = inner.heap_bytes();
        let done = inner.edit(change);
        self.tree_bytes = self.tree_bytes + inner.heap_bytes() - bytes;
        done
    }

    /// Joins a small child with its neighbour if both fit one node.
    fn merge(&mut self, inner: &mut Inner, which: usize) {
        let left = which.saturating_sub(1);
        let children = inner.children();
        if left + 1 >= children.len() || children[left].node.len() + children[left + 1].node.len() > FANOUT {
            return;
        }
        let right = self.edit(inner, |children| children.remove(left + 1));
        let into = inner.child_mut(left);
        into.live += right.live;
        into.changed = into.changed.max(right.changed);
        into.written = into.written.max(right.written);
        match (&mut into.node, right.node) {
            (Node::Leaf(leaf), Node::Leaf(more)) => {
                let bytes = leaf.heap_bytes() + more.heap_bytes();
                leaf.append(&more);
                self.tree_bytes = self.tree_bytes + leaf.heap_bytes() - bytes;
            }
            (Node::Inner(inner), Node::Inner(mut more)) => {
                self.tree_bytes -= more.heap_bytes();
                let moved = more.edit(std::mem::take);
                self.edit(inner, |children| children.extend(moved));
            }
            _ => unreachable!("all leaves are at one depth"),
        }
    }
}
