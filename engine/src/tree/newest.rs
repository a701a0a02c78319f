//! The table of leaves that lookups in one tree file share.

use super::{Leaves, PageSource, Root};
use crate::page::search;
use crate::sync::Mutex;
use arc_swap::{ArcSwapOption, Guard};
use std::ops::Deref;
use std::sync::Arc;

/// A first table costs about what lookups of one in so many entries gain by it.
const ENTRIES_PER_LOOKUP: u64 = 1024;
/// The same of a table that shares leaves with one before.
const ENTRIES_PER_LOOKUP_AGAIN: u64 = 8 * ENTRIES_PER_LOOKUP;
/// Spreads ordinals.
const DRAW: u64 = 0x9e37_79b9_7f4a_7c15;

/// The leaves of the newest root that was read a lot.
#[derive(Debug, Default)]
pub struct Newest {
    leaves: ArcSwapOption<Leaves>,
    /// Held while they are listed.
    listing: Mutex<()>,
}

impl Newest {
    /// The leaves of a tree for a lookup of so many keys; None if they are not listed. A root that is newer than what
    /// is listed is listed now if that is worth it.
    pub fn of<S: PageSource + ?Sized>(
        &self,
        source: &S,
        root: Root,
        keys: usize,
        first: &[u8],
    ) -> impl Deref<Target = Option<Arc<Leaves>>> + use<S> {
        let is_of = |leaves: &Option<Arc<Leaves>>| leaves.as_ref().is_some_and(|leaves| leaves.root() == root);
        let leaves = self.leaves.load();
        if is_of(&leaves) {
            return leaves;
        }
        drop(leaves);
        self.list(source, root, keys, first);
        let leaves = self.leaves.load();
        if is_of(&leaves) { leaves } else { Guard::from_inner(None) }
    }

    /// Bytes of memory that they take.
    pub fn bytes(&self) -> usize {
        self.leaves.load().as_ref().map_or(0, |leaves| leaves.bytes())
    }

    /// Forgets them.
    pub fn forget(&self) {
        self.leaves.store(None);
    }

    #[cold]
    fn list<S: PageSource + ?Sized>(&self, source: &S, root: Root, keys: usize, first: &[u8]) {
        let before = self.leaves.load_full();
        let worth = if before.is_some() { ENTRIES_PER_LOOKUP_AGAIN } else { ENTRIES_PER_LOOKUP };
        // One lookup of many lists them, or many of one: which of these is drawn by its key, so that nothing is counted.
        let draw = search::ordinal(first).wrapping_mul(DRAW) % root.entries.max(1);
        if draw >= (keys as u64).saturating_mul(worth) {
            return;
        }
        let Some(_one) = self.listing.try_lock() else { return };
        let epoch = |root: Root| root.ptr.map(|ptr| ptr.epoch);
        let before = self.leaves.load_full();
        // An older root is not read for long.
        if before.as_ref().is_some_and(|before| epoch(before.root()) >= epoch(root)) {
            return;
        }
        self.leaves.store(Some(Arc::new(Leaves::list(source, root, before.as_deref()))));
    }
}
