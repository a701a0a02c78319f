//! Moving what lies at the end of a tree file into free units further down, so that the end can be cut.
//!
//! Nothing is moved in place: entries whose pages or extents lie behind the target go into the write
//! buffer once more as they are, and the next checkpoint writes them where units are free, lowest
//! first. So a vacuum is an ordinary writer and needs nothing of its own from recovery.
//!
//! A *pass* goes over the tree once, a bounded round at a time. Branches say where leaves lie, so only leaves
//! that move are read; in a tree with overflow extents all are, once a pass.

mod removed;
mod sparse;
mod asked;
mod job;

pub use asked::{VacuumUser, vacuum};
pub use job::VacuumJob;

use crate::batch::{Cost, Edit};
use crate::catalog::{Space, Tree};
use crate::checkpoint;
use crate::core::{Admission, Core};
use crate::error::Result;
use crate::file::TreeFile;
use crate::ids::{PagePtr, UNIT_BYTES};
use crate::page::leaf::{BodyAt, Entry};
use crate::page::{Branch, Leaf};
use crate::sync::atomic::Ordering;
use crate::tree::{PageSource, Root};
use bytes::Bytes;
use std::time::Duration;

/// About what a round of a vacuum that somebody waits for moves.
pub const ROUND_BYTES: u64 = 1 << 20;
/// A round that moves less reads no more than so many times what it may move.
const READS: u64 = 8;

/// Entries to be written again.
#[derive(Debug)]
pub struct Round {
    root: Root,
    entries: Vec<(Bytes, Edit)>,
    /// Bytes of their keys, heads and bodies.
    bytes: u64,
    /// Bytes of the leaves and extents that they make move.
    pub moved: u64,
    /// Bytes of the pages that were read.
    pub read: u64,
    /// Where the next round goes on; None at the end of the tree.
    pub next: Option<Vec<u8>>,
}

impl Round {
    /// True if it moves nothing.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn take(&mut self, file: &TreeFile, Entry { key, head, body }: Entry<'_>) -> Result<()> {
        let body = match body {
            BodyAt::Here(bytes) => Bytes::copy_from_slice(bytes),
            BodyAt::There(extent) => Bytes::copy_from_slice(&file.extent(extent)?),
        };
        let head = Bytes::copy_from_slice(head);
        self.bytes += (key.len() + head.len() + body.len()) as u64;
        self.entries.push((Bytes::copy_from_slice(key), Edit::Put { head, body }));
        Ok(())
    }

    /// One entry makes a leaf move: the shortest, and none whose extent would move for nothing.
    fn take_shortest(&mut self, file: &TreeFile, leaf: &Leaf<'_>) -> Result<()> {
        let size = |entry: &Entry<'_>| match entry.body {
            BodyAt::Here(body) => body.len(),
            BodyAt::There(extent) => UNIT_BYTES * extent.units() as usize,
        };
        let shortest = (0..leaf.len()).map(|at| leaf.entry(at)).min_by_key(size);
        shortest.map_or(Ok(()), |entry| self.take(file, entry))
    }

    /// What putting it into the buffer takes.
    pub fn cost(&self, tree: &Tree) -> Cost {
        let (edit_bytes, edits) = (self.bytes, self.entries.len() as u64);
        Cost { edit_bytes, edits, frees_space: true, volatile: tree.is_volatile(), ..Cost::default() }
    }
}

/// Finds from the key `from` on an entry for each page, and each entry with an extent, that lies at `target` or
/// behind, until about `limit` bytes move. Cost: the branches on the way, and the leaves that are read.
pub fn collect(tree: &Tree, target: u32, from: &[u8], limit: u64) -> Result<Round> {
    let extents = tree.room.lock().extents > 0;
    // As a view it keeps its pages.
    let published = tree.published();
    let round = Round { root: published.root, entries: Vec::new(), bytes: 0, moved: 0, read: 0, next: None };
    let units = u32::try_from(tree.file.page_bytes() / UNIT_BYTES).expect("a page has few units");
    let mut walk = Walk { file: &tree.file, target, from, limit, extents, units, behind: false, round };
    if let Some(ptr) = published.root.ptr {
        walk.node(ptr, published.root.height)?;
    }
    Ok(walk.round)
}

struct Walk<'a> {
    file: &'a TreeFile,
    target: u32,
    from: &'a [u8],
    limit: u64,
    extents: bool,
    /// Of a page.
    units: u32,
    /// True if a page above has to move, and nothing below it does yet.
    behind: bool,
    round: Round,
}

impl Walk<'_> {
    fn is_full(&self) -> bool {
        self.round.moved >= self.limit || self.round.read >= self.limit.saturating_mul(READS)
    }

    fn is_behind(&self, ptr: PagePtr) -> bool {
        ptr.unit + self.units > self.target
    }

    fn node(&mut self, ptr: PagePtr, height: u8) -> Result<()> {
        let page = self.file.page(ptr, height)?;
        self.round.read += page.len() as u64;
        if height == 0 {
            return self.leaf(ptr, &page);
        }
        let branch = Branch::new(&page);
        let first = branch.find(self.from);
        // Else the round before has met it.
        self.behind |= first == 0 && self.is_behind(ptr);
        for at in first..branch.len() {
            if at > first && self.is_full() {
                self.round.next = Some(branch.key(at).to_vec());
                return Ok(());
            }
            let child = branch.child(at);
            if height > 1 || self.extents || self.behind || self.is_behind(child) {
                self.node(child, height - 1)?;
            }
            if self.round.next.is_some() {
                return Ok(());
            }
        }
        Ok(())
    }

    fn leaf(&mut self, ptr: PagePtr, page: &[u8]) -> Result<()> {
        let leaf = Leaf::new(page);
        let first = leaf.find(self.from).unwrap_or_else(|at| at);
        let mut moves = false;
        for at in first..leaf.len() {
            if at > first && self.round.moved >= self.limit {
                self.round.next = Some(leaf.key(at).to_vec());
                break;
            }
            let entry = leaf.entry(at);
            if let BodyAt::There(extent) = entry.body
                && extent.ptr.unit + extent.units() > self.target
            {
                self.round.moved += u64::from(extent.units()) * UNIT_BYTES as u64;
                self.round.take(self.file, entry)?;
                moves = true;
            }
        }
        if !moves && (self.behind || self.is_behind(ptr)) {
            self.round.take_shortest(self.file, &leaf)?;
            moves = true;
        }
        if moves {
            self.behind = false;
            self.round.moved += page.len() as u64;
        }
        Ok(())
    }
}

/// Puts a round into the buffer; false if the tree has changed since, and nothing was done. What a newer
/// batch has said about a key stays.
pub fn apply(core: &Core, space: &Space, tree: &Tree, round: Round, admission: &mut Admission) -> bool {
    // No batch and no cut comes in between, and no drop, which gives back what is charged.
    let mut write = space.write.lock();
    if space.is_dropped() {
        return false;
    }
    let charged = std::mem::take(&mut admission.bytes);
    write.charged += charged;
    // Also if nothing is done: the next cut gives the charge back.
    write.dirty = true;
    let published = tree.published();
    let same = published.root == round.root;
    if same {
        for (key, edit) in round.entries {
            let newer = published.active.get(&key).is_some()
                || published.frozen.as_ref().is_some_and(|frozen| frozen.get(&key).is_some());
            if !newer {
                published.active.set(key, edit);
            }
        }
        core.counters.vacuum_moved.fetch_add(round.moved, Ordering::Relaxed);
    }
    drop(write);
    core.uncut.fetch_add(charged, Ordering::Relaxed);
    if core.uncut_batches.fetch_add(1, Ordering::Relaxed) == 0 {
        core.signal.raise();
    }
    same
}

/// Where a file ends.
#[derive(Debug, Clone, Copy)]
pub struct Ends {
    /// The first unit after the last one in use.
    pub end: u32,
    /// How many units before it are not in use.
    pub unused: u32,
    /// True if the file is shorter than it was.
    pub is_cut: bool,
    /// True if more is to be given back; after a pause, so that nobody waits for all of it.
    pub more: bool,
}

/// What is given back in one step: a file system frees all blocks of it with one commit of its journal, and some tell the
/// disk of each of them meanwhile.
pub const PIECE_BYTES: u64 = if cfg!(test) { 64 << 10 } else { 2 << 20 };
/// The pause after it: 100 MiB a second.
const PIECE_PAUSE: Duration = Duration::from_millis(20);

/// Gives what is free at the end of a file back to the disk, or a piece of it. None if it is of a dropped space, or nobody
/// knows what is free in it.
pub fn cut(core: &Core, space: &Space, tree: &Tree) -> Result<Option<Ends>> {
    let mut room = checkpoint::reclaim(core, tree);
    // Once a store is closed others may have its files.
    core.poison.check()?;
    // A drop sets its mark first, and takes the file away under this lock.
    if space.is_dropped() || !room.free.is_known() {
        return Ok(None);
    }
    let before = tree.file.disk_file()?.len()?;
    // What is left for later is still free in the file: whoever looks for room finds it.
    let low = before.saturating_sub(PIECE_BYTES).div_ceil(UNIT_BYTES as u64);
    let end = room.free.trim_to(u32::try_from(low).unwrap_or(u32::MAX));
    tree.note_sizes(&room);
    let len = u64::from(end) * UNIT_BYTES as u64;
    if before > len {
        tree.file.cut(end)?;
        core.counters.vacuum_cut.fetch_add(before - len, Ordering::Relaxed);
    }
    let unused = u32::try_from(room.free.free() + room.pending.units()).unwrap_or(end);
    let more = room.free.trimmed() < end;
    Ok(Some(Ends { end, unused: unused.min(end), is_cut: before > len, more }))
}

#[cfg(test)]
mod tests;
