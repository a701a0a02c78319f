//! Moving what lies at the end of a tree file into free units further down, so that the end can be cut.
//!
//! Nothing is moved in place: entries whose pages or extents lie behind the target go into the write
//! buffer once more as they are, and the next checkpoint writes them where units are free, lowest
//! first. So a vacuum is an ordinary writer and needs nothing of its own from recovery.

use crate::batch::Edit;
use crate::catalog::{Space, Tree};
use crate::error::Result;
use crate::page::leaf::{BodyAt, Entry};
use crate::tree::{self, PageSource, Reached, Root};
use bytes::Bytes;

/// Bytes that one round moves.
pub const ROUND_BYTES: u64 = 4 << 20;

/// Entries to be written again.
#[derive(Debug)]
pub struct Round {
    root: Root,
    entries: Vec<(Bytes, Edit)>,
    /// Bytes of their keys, heads and bodies.
    pub bytes: u64,
}

impl Round {
    /// How many entries it moves.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True if it moves nothing.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// Finds one entry for each page, and each entry with an extent, that lies at `target` or behind, up to
/// [`ROUND_BYTES`]. Reads every leaf.
pub fn collect(tree: &Tree, target: u32) -> Result<Round> {
    let published = tree.published();
    let file = &*tree.file;
    let mut round = Round { root: published.root, entries: Vec::new(), bytes: 0 };
    let mut behind = false;
    let damaged = |ptr: crate::ids::PagePtr, damage| file.damaged(ptr.unit, damage);
    tree::reach(file, published.root, &damaged, &mut |reached| {
        match reached {
            Reached::Page(extent) | Reached::Overflow(extent) => behind |= extent.unit + extent.units > target,
            Reached::Entry(Entry { key, head, body }) => {
                if !std::mem::take(&mut behind) || round.bytes >= ROUND_BYTES {
                    return Ok(());
                }
                let body = match body {
                    BodyAt::Here(bytes) => Bytes::copy_from_slice(bytes),
                    BodyAt::There(extent) => Bytes::copy_from_slice(&file.extent(extent)?),
                };
                let head = Bytes::copy_from_slice(head);
                round.bytes += (key.len() + head.len() + body.len()) as u64;
                round.entries.push((Bytes::copy_from_slice(key), Edit::Put { head, body }));
            }
        }
        Ok(())
    })?;
    Ok(round)
}

/// Puts a round into the buffer; false if the tree has changed since, and nothing was done. What a newer
/// batch has said about a key stays.
pub fn apply(space: &Space, tree: &Tree, round: Round, charged: u64) -> bool {
    // No batch and no cut comes in between.
    let mut write = space.write.lock();
    write.charged += charged;
    // Also if nothing is done: the next cut gives the charge back.
    write.dirty = true;
    let published = tree.published();
    if published.root != round.root {
        return false;
    }
    for (key, edit) in round.entries {
        let newer = published.active.get(&key).is_some()
            || published.frozen.as_ref().is_some_and(|frozen| frozen.get(&key).is_some());
        if !newer {
            published.active.set(key, edit);
        }
    }
    true
}
