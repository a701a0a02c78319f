//! Everything that a root reaches, once and in order: for the opening scan, `verify` and statistics.

use super::{PageRef, PageSource, Root};
use crate::error::{Damage, Result};
use crate::ids::{PagePtr, UNIT_BYTES};
use crate::page::leaf::{BodyAt, Entry};
use crate::page::{Branch, Leaf};
use crate::space::Extent;

/// What was reached.
#[derive(Debug)]
pub enum Reached<'a> {
    /// The units of a page.
    Page(Extent),
    /// An entry; its extent, if it has one, was shown before and is not read.
    Entry(Entry<'a>),
    /// The units of an overflow extent.
    Overflow(Extent),
}

/// What a tree is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TreeShape {
    /// Leaves.
    pub leaves: u64,
    /// Branches.
    pub branches: u64,
    /// Overflow extents.
    pub extents: u64,
    /// Entries.
    pub entries: u64,
}

/// Shows all that `root` reaches. Keys out of order or out of their branch's bounds are damage,
/// reported with the page through `damaged`. What a branch leads to begins to be read one branch ahead. Memory: two
/// pages per level.
pub fn reach(
    source: &dyn PageSource,
    root: Root,
    damaged: &dyn Fn(PagePtr, Damage) -> crate::error::Error,
    visit: &mut dyn FnMut(Reached<'_>) -> Result<()>,
) -> Result<TreeShape> {
    let mut shape = TreeShape::default();
    let mut walk = Reach { source, damaged, visit, shape: &mut shape, last: None };
    if let Some(ptr) = root.ptr {
        let page = walk.open(ptr, root.height)?;
        walk.node((ptr, &page), root.height, b"", None)?;
    }
    if shape.entries != root.entries {
        let damage = Damage::Mismatch { field: "count of entries", expected: root.entries, found: shape.entries };
        return Err(damaged(root.ptr.unwrap_or(PagePtr { unit: 0, epoch: 0 }), damage));
    }
    Ok(shape)
}

/// What an edit would carry on into new pages.
pub(super) const OUT_OF_BOUNDS: Damage = Damage::Malformed { what: "a key lies outside its page's bounds" };

/// True if the keys of a branch's children lie in `[low, high)`. They ascend.
pub(super) fn is_within(branch: &Branch<'_>, low: &[u8], high: Option<&[u8]>) -> bool {
    branch.key(0) >= low && high.is_none_or(|high| branch.key(branch.len() - 1) < high)
}

struct Reach<'a> {
    source: &'a dyn PageSource,
    damaged: &'a dyn Fn(PagePtr, Damage) -> crate::error::Error,
    visit: &'a mut dyn FnMut(Reached<'_>) -> Result<()>,
    shape: &'a mut TreeShape,
    last: Option<Vec<u8>>,
}

impl<'a> Reach<'a> {
    fn open(&self, ptr: PagePtr, height: u8) -> Result<PageRef<'a>> {
        let page = self.source.page(ptr, height)?;
        if height > 0 {
            let branch = Branch::new(&page);
            self.source.will_read(&mut (0..branch.len()).map(|at| branch.child(at)));
        }
        Ok(page)
    }

    /// Requires: all keys below lie in `[low, high)`.
    fn node(&mut self, (ptr, page): (PagePtr, &[u8]), height: u8, low: &[u8], high: Option<&[u8]>) -> Result<()> {
        let units = u32::try_from(page.len() / UNIT_BYTES).expect("a page has few units");
        (self.visit)(Reached::Page(Extent { unit: ptr.unit, units }))?;
        if height == 0 {
            return self.leaf(ptr, page, low, high);
        }
        self.shape.branches += 1;
        let branch = Branch::new(page);
        if !is_within(&branch, low, high) {
            return Err((self.damaged)(ptr, OUT_OF_BOUNDS));
        }
        let mut child = self.open(branch.child(0), height - 1)?;
        for at in 0..branch.len() {
            let from = if at == 0 { low } else { branch.key(at) };
            let (to, next) = if at + 1 < branch.len() {
                (Some(branch.key(at + 1)), Some(self.open(branch.child(at + 1), height - 1)?))
            } else {
                (high, None)
            };
            self.node((branch.child(at), &child), height - 1, from, to)?;
            let Some(next) = next else { break };
            child = next;
        }
        Ok(())
    }

    fn leaf(&mut self, ptr: PagePtr, page: &[u8], low: &[u8], high: Option<&[u8]>) -> Result<()> {
        self.shape.leaves += 1;
        let leaf = Leaf::new(page);
        for at in 0..leaf.len() {
            let entry = leaf.entry(at);
            let after_last = self.last.as_deref().is_none_or(|last| last < entry.key);
            if !after_last || entry.key < low || high.is_some_and(|high| entry.key >= high) {
                return Err((self.damaged)(ptr, OUT_OF_BOUNDS));
            }
            if let BodyAt::There(extent) = entry.body {
                self.shape.extents += 1;
                (self.visit)(Reached::Overflow(Extent { unit: extent.ptr.unit, units: extent.units() }))?;
            }
            self.shape.entries += 1;
            (self.visit)(Reached::Entry(entry))?;
        }
        self.last = Some(leaf.key(leaf.len() - 1).to_vec());
        Ok(())
    }
}
