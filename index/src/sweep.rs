//! What compaction removes, in budgeted steps.
//!
//! Of each key's rows with main <= C the newest stays if it is a put, or a tombstone of exactly C.
//! So a superseded row goes once what superseded it is at or below C, and a tombstone once it is
//! below C. Superseded rows go first: then no crash between two steps can leave a key's older put
//! without the tombstone that hides it.

use crate::map::{Grave, Index};
use crate::revision::Revision;

/// Whether a sweep is finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Swept {
    /// Call again.
    More,
    /// Nothing is left to remove.
    Done,
}

impl Index {
    /// Removes up to `budget` revisions that no read at `upto` or later can see and appends them to
    /// `removed`: superseded ones first. Cost follows what is removed. Reads at `upto` and later answer as before.
    pub fn sweep(&mut self, upto: u64, budget: usize, removed: &mut Vec<Revision>) -> Swept {
        let before = removed.len();
        match self.sweep_superseded(upto, budget, removed) {
            Swept::More => Swept::More,
            Swept::Done => self.sweep_tombstones(upto, budget - (removed.len() - before), removed, &mut |_, _| ()),
        }
    }

    /// The first half of [`Index::sweep`]: rows that others superseded, in the order in which that was.
    pub fn sweep_superseded(&mut self, upto: u64, budget: usize, removed: &mut Vec<Revision>) -> Swept {
        let full = removed.len() + budget;
        while self.beside.ring.oldest().is_some_and(|older| older.superseded <= upto) {
            if removed.len() >= full {
                return Swept::More;
            }
            let older = self.beside.ring.pop().expect("oldest() just saw it");
            if older.report {
                removed.push(older.at);
            }
        }
        Swept::Done
    }

    /// The second half: tombstones. Nothing that they hide may be left, so the first half is over for the same `upto`.
    /// `buried` is shown them and their keys.
    pub fn sweep_tombstones(
        &mut self,
        upto: u64,
        budget: usize,
        removed: &mut Vec<Revision>,
        buried: &mut dyn FnMut(Revision, &[u8]),
    ) -> Swept {
        let full = removed.len() + budget;
        while self.beside.graves.front().is_some_and(|grave| grave.at.main < upto) {
            if removed.len() >= full {
                return Swept::More;
            }
            let Grave { at, key, void } = self.beside.graves.pop_front().expect("front() just saw it");
            if void {
                continue;
            }
            removed.push(at);
            buried(at, &key);
            self.swept = self.swept.max(at.main + 1);
            if self.find(&key).is_some_and(|newest| newest.at == at) {
                self.remove(&key);
            }
        }
        Swept::Done
    }

    /// True if a sweep up to `upto` would remove something.
    pub fn has_garbage(&self, upto: u64) -> bool {
        self.beside.ring.oldest().is_some_and(|older| older.superseded <= upto)
            || self.beside.graves.front().is_some_and(|grave| grave.at.main < upto)
    }

    /// About how many revisions a sweep up to `upto` would remove: some tombstones are counted twice. O(log n).
    pub fn garbage(&self, upto: u64) -> usize {
        self.beside.ring.superseded_by(upto) + self.beside.graves.partition_point(|grave| grave.at.main < upto)
    }
}
