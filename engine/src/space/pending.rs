//! Units that a commit gave up, kept until nobody can reach them.
//!
//! Commit `c` replaces pages of the tree of commit `c - 1`. That tree is still named by the other
//! manifest slot until commit `c + 1`, and looked at by views taken before `c` was published. Units
//! given up by `c` are free once both are past.

use super::{Extent, FreeSpace};
use std::collections::VecDeque;

/// Units by the commit that gave them up.
#[derive(Debug, Default)]
pub struct Pending {
    by_commit: VecDeque<(u64, Vec<Extent>)>,
}

impl Pending {
    /// Remembers what `commit` gave up. Requires: commits rise.
    pub fn add(&mut self, commit: u64, extents: Vec<Extent>) {
        debug_assert!(self.by_commit.back().is_none_or(|(last, _)| *last < commit));
        if !extents.is_empty() {
            self.by_commit.push_back((commit, extents));
        }
    }

    /// Frees what commits up to `commit` gave up. Cost follows what is freed.
    pub fn release_up_to(&mut self, commit: u64, space: &mut FreeSpace) {
        while self.by_commit.front().is_some_and(|(at, _)| *at <= commit) {
            let (_, extents) = self.by_commit.pop_front().expect("front() just saw it");
            extents.into_iter().for_each(|extent| space.release(extent));
        }
    }

    /// All units that wait.
    pub fn extents(&self) -> impl Iterator<Item = Extent> + '_ {
        self.by_commit.iter().flat_map(|(_, extents)| extents.iter().copied())
    }

    /// How many units wait.
    pub fn units(&self) -> u64 {
        self.extents().map(|extent| u64::from(extent.units)).sum()
    }
}
