//! Everything that a root reaches, as far as it can be read: for `check` and salvage, which go on behind
//! damage.

use super::reach::{OUT_OF_BOUNDS, is_within};
use super::{PageSource, Root};
use crate::error::{Damage, Error};
use crate::ids::{PagePtr, UNIT_BYTES};
use crate::page::leaf::{BodyAt, Entry};
use crate::page::{Branch, Leaf};
use crate::space::Extent;
use bytes::Bytes;

/// Is shown what a survey meets.
pub trait Surveyor {
    /// The units of a page, or of an extent, that is about to be read; false to pass over it.
    fn reach(&mut self, extent: Extent, ptr: PagePtr, is_page: bool) -> bool;
    /// An entry of the leaf at `leaf`. Its body is None if its extent is lost.
    fn entry(&mut self, leaf: PagePtr, entry: &Entry<'_>, body: Option<Bytes>);
    /// A page that cannot be used: all entries in `[low, high)` are lost.
    fn lost(&mut self, ptr: PagePtr, low: &[u8], high: Option<&[u8]>, error: Error);
    /// The extent of an entry that cannot be used.
    fn lost_body(&mut self, ptr: PagePtr, entry: &Entry<'_>, error: Error);
    /// A page that is whole, but not what its place asks for.
    fn odd(&mut self, ptr: PagePtr, damage: Damage);
}

/// Shows `visitor` all that `root` reaches; returns how many entries. Memory: one page per level.
pub fn survey(source: &dyn PageSource, root: Root, visitor: &mut dyn Surveyor) -> u64 {
    let Some(ptr) = root.ptr else { return 0 };
    let mut walk = Survey { source, visitor, entries: 0, last: None, lost: false };
    walk.node(ptr, root.height, b"", None);
    if !walk.lost && walk.entries != root.entries {
        let damage = Damage::Mismatch { field: "count of entries", expected: root.entries, found: walk.entries };
        walk.visitor.odd(ptr, damage);
    }
    walk.entries
}

struct Survey<'a> {
    source: &'a dyn PageSource,
    visitor: &'a mut dyn Surveyor,
    entries: u64,
    last: Option<Vec<u8>>,
    lost: bool,
}

impl Survey<'_> {
    fn node(&mut self, ptr: PagePtr, height: u8, low: &[u8], high: Option<&[u8]>) {
        let units = u32::try_from(self.source.page_bytes() / UNIT_BYTES).expect("a page has few units");
        if !self.visitor.reach(Extent { unit: ptr.unit, units }, ptr, true) {
            self.lost = true;
            return;
        }
        let page = match self.source.page(ptr, height) {
            Ok(page) => page,
            Err(error) => {
                self.lost = true;
                return self.visitor.lost(ptr, low, high, error);
            }
        };
        if height == 0 {
            return self.leaf(ptr, &page, low, high);
        }
        let branch = Branch::new(&page);
        if !is_within(&branch, low, high) {
            self.visitor.odd(ptr, OUT_OF_BOUNDS);
        }
        for at in 0..branch.len() {
            let from = if at == 0 { low } else { branch.key(at) };
            let to = if at + 1 < branch.len() { Some(branch.key(at + 1)) } else { high };
            self.node(branch.child(at), height - 1, from, to);
        }
    }

    fn leaf(&mut self, ptr: PagePtr, page: &[u8], low: &[u8], high: Option<&[u8]>) {
        let leaf = Leaf::new(page);
        let mut outside = false;
        for at in 0..leaf.len() {
            let entry = leaf.entry(at);
            let after_last = self.last.as_deref().is_none_or(|last| last < entry.key);
            outside |= !after_last || entry.key < low || high.is_some_and(|high| entry.key >= high);
            let body = match entry.body {
                BodyAt::Here(bytes) => Some(Bytes::copy_from_slice(bytes)),
                BodyAt::There(extent) => {
                    let units = Extent { unit: extent.ptr.unit, units: extent.units() };
                    if self.visitor.reach(units, extent.ptr, false) {
                        let body = self.source.extent(extent);
                        body.map_err(|error| self.visitor.lost_body(extent.ptr, &entry, error)).ok()
                    } else {
                        None
                    }
                }
            };
            self.entries += 1;
            self.visitor.entry(ptr, &entry, body);
        }
        self.last = Some(leaf.key(leaf.len() - 1).to_vec());
        if outside {
            self.visitor.odd(ptr, OUT_OF_BOUNDS);
        }
    }
}
