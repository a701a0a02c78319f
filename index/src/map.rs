//! The ordered map: a B+tree of keys whose inner nodes count, and know time.
//!
//! Each child slot holds how many keys below it are live now, the newest main at which a key below was
//! born or died, and the newest at which one was written. A count at revision `r` adds a child whole if
//! nothing was born or died below it after `r`, and descends otherwise: exact while newer changes are
//! already applied. A walk over what changed since `r` leaves out children not written since.

use crate::history::{Link, Newest, Older, Ring};
use crate::revision::{Hit, Revision};
use std::collections::VecDeque;

/// The most entries of a leaf and children of an inner node. Small in tests, so that nodes split.
#[cfg(not(test))]
pub(crate) const FANOUT: usize = 48;
#[cfg(test)]
pub(crate) const FANOUT: usize = 4;

/// The index of one shard.
#[derive(Debug, Default)]
pub struct Index {
    pub(crate) root: Node,
    pub(crate) ring: Ring,
    /// Tombstones in order, with their keys, until compaction passes them.
    pub(crate) graves: VecDeque<(Revision, Box<[u8]>)>,
    /// Tombstones below this main are gone.
    pub(crate) swept: u64,
    keys: u64,
    live: u64,
    key_bytes: u64,
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
    /// About how many bytes of memory.
    pub bytes: u64,
}

#[derive(Debug)]
pub(crate) enum Node {
    Leaf(Vec<Entry>),
    Inner(Vec<Child>),
}

#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) key: Box<[u8]>,
    pub(crate) newest: Newest,
}

#[derive(Debug)]
pub(crate) struct Child {
    /// No key below is lower; keys of the child before are.
    pub(crate) low: Box<[u8]>,
    pub(crate) live: u64,
    /// The newest main at which a key below was born or died.
    pub(crate) changed: u64,
    /// No key below was written after this main.
    pub(crate) written: u64,
    pub(crate) node: Node,
}

impl Default for Node {
    fn default() -> Self {
        Node::Leaf(Vec::new())
    }
}

/// What a change of one entry means for the counts above it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Change {
    born: bool,
    died: bool,
    at: u64,
}

/// What becomes of an entry.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Write {
    /// A put; None counts from what was there.
    Put(Option<(u64, u64)>),
    /// A tombstone.
    Tombstone,
}

impl Index {
    /// An empty index.
    pub fn new() -> Self {
        Index::default()
    }

    /// A put at `at`; returns the key's state after it. O(log n).
    ///
    /// Requires: `at` is above every revision of the key.
    pub fn put(&mut self, key: &[u8], at: Revision) -> Hit {
        self.write(key, at, Write::Put(None)).hit().expect("a put leaves the key live")
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
        self.ring.at(&self.find(key)?.newest, at)
    }

    /// The key's newest state, if it is live. O(log n).
    pub fn latest(&self, key: &[u8]) -> Option<Hit> {
        self.find(key)?.newest.hit()
    }

    /// True if `row` is what the key was after all of main `at`, and a put.
    pub fn keeps(&self, key: &[u8], row: Revision, at: u64) -> bool {
        self.get(key, at).is_some_and(|hit| hit.modified == row)
    }

    /// True if the key has a change at `row`, put or tombstone, that was not swept.
    pub fn knows(&self, key: &[u8], row: Revision) -> bool {
        let Some(entry) = self.find(key) else { return false };
        let mut state = &entry.newest;
        while state.at > row {
            let Some(older) = self.ring.get(state.older) else { return false };
            state = &older.state;
        }
        state.at == row
    }

    /// Sizes and counts. O(1).
    pub fn stats(&self) -> Stats {
        // Entries and slots of nodes two thirds full, keys with an allocator's rounding.
        let nodes = self.keys * (size_of::<Entry>() as u64 * 3 / 2 + 4) + self.key_bytes + self.keys * 8;
        let graves = self.graves.capacity() * size_of::<(Revision, Box<[u8]>)>();
        Stats {
            keys: self.keys,
            live: self.live,
            revisions: self.keys + self.ring.len() as u64,
            bytes: nodes + (self.ring.heap_bytes() + graves) as u64,
        }
    }

    pub(crate) fn find(&self, key: &[u8]) -> Option<&Entry> {
        let mut node = &self.root;
        loop {
            match node {
                Node::Leaf(entries) => {
                    let at = entries.binary_search_by(|entry| (*entry.key).cmp(key)).ok()?;
                    return entries.get(at);
                }
                Node::Inner(children) => node = &children[child_of(children, key)].node,
            }
        }
    }

    pub(crate) fn write(&mut self, key: &[u8], at: Revision, write: Write) -> Newest {
        let Index { root, ring, graves, .. } = self;
        let (newest, change, fresh) = root.write(key, at, write, ring, graves);
        self.live = self.live + u64::from(change.born) - u64::from(change.died);
        if fresh {
            self.keys += 1;
            self.key_bytes += key.len() as u64;
        }
        if let Some(right) = self.root.split() {
            let left = std::mem::take(&mut self.root);
            self.root = Node::Inner(vec![Child::of(left), Child::of(right)]);
        }
        newest
    }

    /// Takes a dead key out.
    pub(crate) fn remove(&mut self, key: &[u8]) {
        if self.root.remove(key) {
            self.keys -= 1;
            self.key_bytes -= key.len() as u64;
        }
        if let Node::Inner(children) = &mut self.root {
            match children.len() {
                0 => self.root = Node::default(),
                1 => {
                    let only = children.remove(0);
                    self.root = only.node;
                }
                _ => {}
            }
        }
    }
}

/// The child that has `key` if any has.
pub(crate) fn child_of(children: &[Child], key: &[u8]) -> usize {
    children.partition_point(|child| *child.low <= *key).saturating_sub(1)
}

impl Child {
    fn of(node: Node) -> Self {
        let (live, changed, written) = node.sums();
        Child { low: node.low().into(), live, changed, written, node }
    }
}

impl Node {
    pub(crate) fn len(&self) -> usize {
        match self {
            Node::Leaf(entries) => entries.len(),
            Node::Inner(children) => children.len(),
        }
    }

    fn low(&self) -> &[u8] {
        match self {
            Node::Leaf(entries) => entries.first().map_or(b"", |entry| &entry.key),
            Node::Inner(children) => children.first().map_or(b"", |child| &child.low),
        }
    }

    fn sums(&self) -> (u64, u64, u64) {
        match self {
            Node::Leaf(entries) => {
                let live = entries.iter().filter(|entry| entry.newest.is_live()).count() as u64;
                // A leaf does not keep births: the newest change of any entry is a safe bound.
                let written = entries.iter().map(|entry| entry.newest.at.main).max().unwrap_or(0);
                (live, written, written)
            }
            Node::Inner(children) => {
                let live = children.iter().map(|child| child.live).sum();
                let changed = children.iter().map(|child| child.changed).max().unwrap_or(0);
                (live, changed, children.iter().map(|child| child.written).max().unwrap_or(0))
            }
        }
    }

    /// Changes or adds an entry; tells the entry's new state, what it means for the counts, and
    /// whether the key is new.
    fn write(
        &mut self,
        key: &[u8],
        at: Revision,
        write: Write,
        ring: &mut Ring,
        graves: &mut VecDeque<(Revision, Box<[u8]>)>,
    ) -> (Newest, Change, bool) {
        match self {
            Node::Leaf(entries) => {
                let place = entries.binary_search_by(|entry| (*entry.key).cmp(key));
                let before = place.ok().map(|at| entries[at].newest);
                let newest = succeed(before, at, write, ring, graves);
                if !newest.is_live() {
                    graves.push_back((at, key.into()));
                }
                match place {
                    Ok(at) => entries[at].newest = newest,
                    Err(at) => entries.insert(at, Entry { key: key.into(), newest }),
                }
                let was_live = before.is_some_and(|before| before.is_live());
                let (born, died) = (newest.is_live() && !was_live, was_live && !newest.is_live());
                (newest, Change { born, died, at: at.main }, before.is_none())
            }
            Node::Inner(children) => {
                let which = child_of(children, key);
                let child = &mut children[which];
                if *key < *child.low {
                    child.low = key.into();
                }
                let done = child.node.write(key, at, write, ring, graves);
                let (_, change, _) = done;
                child.written = child.written.max(at.main);
                if change.born || change.died {
                    child.live = child.live + u64::from(change.born) - u64::from(change.died);
                    child.changed = child.changed.max(change.at);
                }
                if let Some(right) = child.node.split() {
                    let changed = child.changed;
                    (child.live, _, child.written) = child.node.sums();
                    let mut right = Child::of(right);
                    // Both halves inherit the bound; either may hold what changed last.
                    right.changed = changed;
                    children.insert(which + 1, right);
                }
                done
            }
        }
    }

    /// Splits an overfull node in the middle; returns its upper half.
    fn split(&mut self) -> Option<Node> {
        if self.len() <= FANOUT {
            return None;
        }
        let at = FANOUT / 2 + 1;
        Some(match self {
            Node::Leaf(entries) => {
                let mut right = Vec::with_capacity(FANOUT + 1);
                right.extend(entries.drain(at..));
                Node::Leaf(right)
            }
            Node::Inner(children) => {
                let mut right = Vec::with_capacity(FANOUT + 1);
                right.extend(children.drain(at..));
                Node::Inner(right)
            }
        })
    }

    /// Takes a dead key out; merges what becomes small with a neighbour.
    fn remove(&mut self, key: &[u8]) -> bool {
        match self {
            Node::Leaf(entries) => {
                let place = entries.binary_search_by(|entry| (*entry.key).cmp(key));
                let found = place.is_ok_and(|at| !entries[at].newest.is_live());
                if let (Ok(at), true) = (place, found) {
                    entries.remove(at);
                }
                found
            }
            Node::Inner(children) => {
                let which = child_of(children, key);
                let found = children[which].node.remove(key);
                if children[which].node.len() == 0 {
                    children.remove(which);
                } else if children[which].node.len() < FANOUT / 4 {
                    merge(children, which);
                }
                found
            }
        }
    }
}

/// Joins a small child with its neighbour if both fit one node.
fn merge(children: &mut Vec<Child>, which: usize) {
    let left = which.saturating_sub(1);
    if left + 1 >= children.len() || children[left].node.len() + children[left + 1].node.len() > FANOUT {
        return;
    }
    let right = children.remove(left + 1);
    let into = &mut children[left];
    into.live += right.live;
    into.changed = into.changed.max(right.changed);
    into.written = into.written.max(right.written);
    match (&mut into.node, right.node) {
        (Node::Leaf(entries), Node::Leaf(more)) => entries.extend(more),
        (Node::Inner(children), Node::Inner(more)) => children.extend(more),
        _ => unreachable!("all leaves are at one depth"),
    }
}

/// The state after a write; what it supersedes goes to the ring.
fn succeed(
    before: Option<Newest>,
    at: Revision,
    write: Write,
    ring: &mut Ring,
    graves: &mut VecDeque<(Revision, Box<[u8]>)>,
) -> Newest {
    let older: Link = match before {
        None => 0,
        Some(state) => {
            debug_assert!(at > state.at, "{at:?} is not after {:?}", state.at);
            let mut report = true;
            if !state.is_live() {
                // A tombstone is reported by its grave, unless the same main buries it: then no
                // compaction may keep it, as it would at a main of its own.
                report = state.at.main == at.main;
                if report && let Some(grave) = graves.iter().rposition(|(grave, _)| *grave == state.at) {
                    graves.remove(grave);
                }
            }
            ring.push(Older { state, superseded: at.main, report })
        }
    };
    let live = before.filter(Newest::is_live);
    let (created, version) = match write {
        Write::Tombstone => (0, 0),
        Write::Put(Some(stored)) => stored,
        Write::Put(None) => live.map_or((at.main, 1), |before| (before.created, before.version + 1)),
    };
    Newest { at, version, created, older }
}
