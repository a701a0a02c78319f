//! Leaves that hold little, packed together.
//!
//! Where rows went here and there, leaves are a fifth or a half empty, and none so much that it takes in a neighbour. One
//! entry of each of a run of neighbours, written again as it is, makes the next checkpoint write all of them, and those
//! that lie side by side it packs into as few leaves as they need (`tree/edit.rs`).

use super::{ROUND_BYTES, Round, VacuumUser};
use crate::catalog::Tree;
use crate::error::{Error, Result};
use crate::file::TreeFile;
use crate::ids::PagePtr;
use crate::page::layout::HEADER_BYTES;
use crate::page::leaf::BodyAt;
use crate::page::{Branch, Leaf};
use crate::tree::{PageRef, PageSource};

/// So many leaves are looked at together, or as many as a round is of.
const TOGETHER: usize = 64;
/// They are written if one in so many is saved.
const SAVED_SHARE: usize = 20;
/// A leaf of which so much is in use is not written for itself.
const FULL_PERCENT: usize = 97;

/// Finds from the key `from` on an entry for each leaf of runs that fit into fewer, until about `limit` bytes are to be
/// written. Reads each leaf.
pub(super) fn collect(tree: &Tree, from: &[u8], limit: u64, user: &dyn VacuumUser) -> Result<Round> {
    let published = tree.published();
    let round = Round { root: published.root, entries: Vec::new(), bytes: 0, moved: 0, read: 0, next: None };
    let mut sparse = Sparse { file: &tree.file, from, limit, user, round };
    if let Some(ptr) = published.root.ptr.filter(|_| published.root.height > 0) {
        sparse.branch(ptr, published.root.height)?;
    }
    Ok(sparse.round)
}

struct Sparse<'a> {
    file: &'a TreeFile,
    from: &'a [u8],
    limit: u64,
    user: &'a dyn VacuumUser,
    round: Round,
}

impl Sparse<'_> {
    fn is_full(&self) -> bool {
        self.round.moved >= self.limit || self.round.read >= self.limit
    }

    fn branch(&mut self, ptr: PagePtr, height: u8) -> Result<()> {
        let page = self.file.page(ptr, height)?;
        self.round.read += page.len() as u64;
        let branch = Branch::new(&page);
        let together = TOGETHER.min(ROUND_BYTES as usize / self.file.page_bytes()).max(2);
        let (mut at, step) = (branch.find(self.from), if height > 1 { 1 } else { together });
        let first = at;
        while at < branch.len() {
            if at > first && self.is_full() {
                self.round.next = Some(branch.key(at).to_vec());
                return Ok(());
            }
            let end = branch.len().min(at + step);
            if height > 1 {
                self.branch(branch.child(at), height - 1)?;
            } else {
                match self.leaves(&branch, at..end) {
                    // Whoever reads there finds the damage and says so.
                    Err(Error::Corrupt { .. }) => {}
                    other => other?,
                }
            }
            if self.round.next.is_some() {
                return Ok(());
            }
            at = end;
        }
        Ok(())
    }

    /// Takes an entry of each of these leaves, if that saves some.
    fn leaves(&mut self, branch: &Branch<'_>, which: std::ops::Range<usize>) -> Result<()> {
        let mut leaves = Vec::with_capacity(which.len());
        for at in which {
            let page = self.file.page(branch.child(at), 0)?;
            self.round.read += page.len() as u64;
            let leaf = Leaf::new(&page);
            let all = || (0..leaf.len()).map(|at| leaf.entry(at));
            if !all().any(|entry| matches!(entry.body, BodyAt::Here(_))) {
                // To write it an extent would have to be written.
                return Ok(());
            }
            let used: usize = (0..leaf.len()).map(|at| 2 + leaf.raw(at).len()).sum();
            let goes = self.user.goes(leaf.key(0), leaf.key(leaf.len() - 1));
            let stays = used.saturating_sub(usize::try_from(goes).unwrap_or(used));
            leaves.push((page, used, stays));
        }
        let capacity = self.file.page_bytes() - HEADER_BYTES;
        let is_full = |stays: usize| stays * 100 >= capacity * FULL_PERCENT;
        let first = leaves.iter().take_while(|(_, _, stays)| is_full(*stays)).count();
        let last = leaves.iter().rev().take_while(|(_, _, stays)| is_full(*stays)).count();
        let Some(leaves) = leaves.get(first..leaves.len() - last).filter(|leaves| leaves.len() > 1) else {
            return Ok(());
        };
        let sum = |of: fn(&(PageRef<'_>, usize, usize)) -> usize| leaves.iter().map(of).sum::<usize>();
        let (used, stays) = (sum(|leaf| leaf.1), sum(|leaf| leaf.2));
        let lens = || {
            leaves.iter().flat_map(|(page, ..)| (0..Leaf::new(page).len()).map(|at| 2 + Leaf::new(page).raw(at).len()))
        };
        // Of all entries, and as much less as is to go.
        let packed = (packed(used, capacity, lens()) * stays).div_ceil(used.max(1));
        if leaves.len().saturating_sub(packed) < leaves.len().div_ceil(SAVED_SHARE) {
            return Ok(());
        }
        for (page, ..) in leaves {
            self.round.take_shortest(self.file, &Leaf::new(page))?;
            self.round.moved += page.len() as u64;
        }
        Ok(())
    }
}

/// How many leaves entries of these lengths take, `used` in all, as `tree/pack.rs` cuts them.
fn packed(used: usize, capacity: usize, lens: impl Iterator<Item = usize>) -> usize {
    let target = used.div_ceil(used.div_ceil(capacity).max(1));
    let (mut leaves, mut here) = (0, 0);
    for len in lens {
        if here > 0 && (here >= target || here + len > capacity) {
            (leaves, here) = (leaves + 1, 0);
        }
        here += len;
    }
    leaves + usize::from(here > 0)
}
