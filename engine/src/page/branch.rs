//! Branches: children by the lowest key that may be in them.
//!
//! | bytes  | field | meaning                                   |
//! |--------|-------|-------------------------------------------|
//! | 0..2   | key   | its length                                |
//! | 2..6   | unit  | where the child is                        |
//! | 6..14  | epoch | the epoch the child has to carry          |
//! | 14..   | key   | no key in the child is below it, and none in the child before at or above it |

use super::layout::{self, u16_at, u32_at, u64_at};
use super::search;
use crate::error::Damage;
use crate::ids::PagePtr;
use std::ops::Range;

const CHILD_HEAD: usize = 14;

/// A branch that was checked.
#[derive(Debug, Clone, Copy)]
pub struct Branch<'a> {
    page: &'a [u8],
}

impl<'a> Branch<'a> {
    /// A view of a page that passed `check`.
    pub fn new(page: &'a [u8]) -> Self {
        Branch { page }
    }

    /// How many children.
    pub fn len(&self) -> usize {
        layout::count(self.page) as usize
    }

    /// True if it has none; a tree has no such branch.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The lowest key of child `at`.
    pub fn key(&self, at: usize) -> &'a [u8] {
        let from = layout::slot(self.page, at);
        let start = from + CHILD_HEAD;
        &self.page[start..start + usize::from(u16_at(self.page, from))]
    }

    /// Child `at`.
    pub fn child(&self, at: usize) -> PagePtr {
        let from = layout::slot(self.page, at);
        PagePtr { unit: u32_at(self.page, from + 2), epoch: u64_at(self.page, from + 6) }
    }

    /// The child that has `key` if any has: the last whose lowest key is not above it, or the first.
    pub fn find(&self, key: &[u8]) -> usize {
        // The lowest key of the first child may be empty, which says nothing of the others.
        let from = usize::from(self.len() > 2);
        let last = self.len().saturating_sub(1);
        let bounds = search::ordinal(self.key(from))..search::ordinal(self.key(last)).saturating_add(1);
        let first = from + search::guess(self.len() - from, search::ordinal(key), &bounds);
        match search::find(self.len(), first, key, |at| self.key(at)) {
            Ok(at) => at,
            Err(at) => at.saturating_sub(1),
        }
    }

    /// Between which ordinals the keys of child `at` lie, if it is not the last.
    pub fn bounds(&self, at: usize) -> Option<Range<u64>> {
        (at + 1 < self.len())
            .then(|| search::ordinal(self.key(at))..search::ordinal(self.key(at + 1)).saturating_add(1))
    }
}

/// Checks the content of a branch whose header holds: afterwards no access can leave the page.
pub fn check(page: &[u8], count: u32) -> Result<(), Damage> {
    layout::check_slots(page, count)?;
    if count == 0 {
        return Err(Damage::Malformed { what: "a branch is empty" });
    }
    let branch = Branch::new(page);
    for at in 0..count as usize {
        let from = layout::slot(page, at);
        let end = if at + 1 < count as usize { layout::slot(page, at + 1) } else { page.len() };
        if from + CHILD_HEAD > end || from + CHILD_HEAD + usize::from(u16_at(page, from)) > end {
            return Err(Damage::Malformed { what: "a child runs out of its place" });
        }
        if at > 0 && branch.key(at - 1) >= branch.key(at) {
            return Err(Damage::Malformed { what: "its keys are out of order" });
        }
    }
    Ok(())
}

/// Appends a child as a branch holds it.
pub fn encode(out: &mut Vec<u8>, key: &[u8], child: PagePtr) {
    out.extend_from_slice(&u16::try_from(key.len()).expect("limits.rs bounds keys").to_le_bytes());
    out.extend_from_slice(&child.unit.to_le_bytes());
    out.extend_from_slice(&child.epoch.to_le_bytes());
    out.extend_from_slice(key);
}
