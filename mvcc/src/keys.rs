//! The keys of a shard: all their revisions in the ordered index, and the newest rows by hash.
//!
//! What changes the newest row of a key changes both, the hash index last; so a reader that has seen a revision finds it
//! in either.

use crate::hash_index::HashIndex;
use polybolt_engine::defect::{Defect, is_on};
use polybolt_engine::sync::ManyReaders;
use polybolt_index::{Hit, Index, KeyRange, Life, Revision, Swept};
use std::ops::{ControlFlow, Deref};

/// The keys of a shard.
#[derive(Debug)]
pub(crate) struct Keys {
    ordered: ManyReaders<Index>,
    hashed: HashIndex,
    /// Of so many live keys a hash index is made.
    hashed_from: u64,
}

impl Keys {
    /// Of what was loaded.
    pub(crate) fn new(index: Index, seed: u64, hashed_from: u64) -> Self {
        let keys = Keys { ordered: ManyReaders::new(index), hashed: HashIndex::new(seed), hashed_from };
        keys.hash_if_many(&keys.ordered.read());
        keys
    }

    /// The ordered index, for a bounded time.
    pub(crate) fn read(&self) -> impl Deref<Target = Index> + '_ {
        self.ordered.read()
    }

    /// As [`Index::put`].
    pub(crate) fn put(&self, key: &[u8], at: Revision) -> Life {
        let mut index = self.ordered.write();
        let (life, before) = index.replace(key, at);
        let before = before.filter(|_| !is_on(Defect::LeaveOverwrittenHashed));
        self.hashed.change(key, before, Some(at));
        self.hash_if_many(&index);
        life
    }

    /// As [`Index::tombstone`].
    pub(crate) fn tombstone(&self, key: &[u8], at: Revision) -> Option<Hit> {
        let mut index = self.ordered.write();
        let ended = index.tombstone(key, at)?;
        if !is_on(Defect::LeaveDeletedHashed) {
            self.hashed.change(key, Some(ended.modified), None);
        }
        Some(ended)
    }

    /// Takes out what no read at `upto` or later can see, as [`Index::sweep_superseded`]. The newest rows of live keys stay.
    pub(crate) fn sweep_superseded(&self, upto: u64, budget: usize, removed: &mut Vec<Revision>) -> Swept {
        self.ordered.write().sweep_superseded(upto, budget, removed)
    }

    /// As [`Index::sweep_tombstones`].
    pub(crate) fn sweep_tombstones(
        &self,
        upto: u64,
        budget: usize,
        removed: &mut Vec<Revision>,
        buried: &mut dyn FnMut(Revision, &[u8]),
    ) -> Swept {
        self.ordered.write().sweep_tombstones(upto, budget, removed, buried)
    }

    /// Shows what may be the newest row of a key as of main `at`, as [`HashIndex::find`].
    pub(crate) fn find_hashed<T>(&self, key: &[u8], at: u64, see: impl FnMut(Revision) -> Option<T>) -> Option<T> {
        self.hashed.find(key, at, see)
    }

    /// The newest state of a key that may be about to change, as [`Index::latest`].
    pub(crate) fn latest(&self, key: &[u8]) -> Option<Hit> {
        self.hashed.load_soon(key);
        self.ordered.read().latest(key)
    }

    /// Bytes of memory of both.
    pub(crate) fn bytes(&self) -> u64 {
        self.ordered.read().stats().bytes + self.hashed.bytes() as u64
    }

    /// Requires: nobody writes to the index meanwhile.
    fn hash_if_many(&self, index: &Index) {
        if self.hashed.is_begun() || index.stats().live < self.hashed_from {
            return;
        }
        self.hashed.begin(index.stats().live, |see| {
            index.walk(KeyRange::ALL, u64::MAX, &mut |key, hit| {
                see(key, hit.modified);
                ControlFlow::Continue(())
            });
        });
    }
}
