//! Walking a tree in order, both ways.

use super::{Body, PageRef, PageSource, Root};
use crate::error::Result;
use crate::ids::PagePtr;
use crate::page::leaf::{BodyAt, Entry};
use crate::page::{Branch, Leaf};
use bytes::Bytes;
use std::ops::Bound;

/// A place in a tree: at an entry, or past either end. Holds one page per level.
pub struct Cursor<'a> {
    source: &'a dyn PageSource,
    root: Root,
    /// From the root down; the last is a leaf. Empty when past an end.
    path: Vec<(PageRef<'a>, usize)>,
}

impl std::fmt::Debug for Cursor<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cursor").field("root", &self.root).field("key", &self.key()).finish()
    }
}

impl<'a> Cursor<'a> {
    /// A cursor at no entry yet.
    pub fn new(source: &'a dyn PageSource, root: Root) -> Self {
        Cursor { source, root, path: Vec::new() }
    }

    /// Moves to the first entry from `from` on.
    pub fn seek(&mut self, from: Bound<&[u8]>) -> Result<()> {
        let (key, skip) = match from {
            Bound::Unbounded => (&b""[..], false),
            Bound::Included(key) => (key, false),
            Bound::Excluded(key) => (key, true),
        };
        let Some((page, at)) = self.descend_to(key)? else {
            return Ok(());
        };
        let leaf = Leaf::new(&page);
        let (slot, past) = match at {
            Ok(slot) => (slot + usize::from(skip), slot + usize::from(skip) >= leaf.len()),
            Err(slot) => (slot, slot >= leaf.len()),
        };
        self.path.push((page, slot));
        if past { self.step_over(true) } else { Ok(()) }
    }

    /// Moves to the last entry from `from` down.
    pub fn seek_back(&mut self, from: Bound<&[u8]>) -> Result<()> {
        let (key, skip) = match from {
            Bound::Unbounded => return self.last(),
            Bound::Included(key) => (key, false),
            Bound::Excluded(key) => (key, true),
        };
        let Some((page, at)) = self.descend_to(key)? else {
            return Ok(());
        };
        let slot = match at {
            Ok(slot) if !skip => Some(slot),
            Ok(slot) | Err(slot) => slot.checked_sub(1),
        };
        self.path.push((page, slot.unwrap_or(0)));
        if slot.is_none() { self.step_over(false) } else { Ok(()) }
    }

    /// Moves to the last entry.
    pub fn last(&mut self) -> Result<()> {
        self.path.clear();
        let Some(ptr) = self.root.ptr else { return Ok(()) };
        self.descend_edge(ptr, self.root.height, false)
    }

    /// The key here.
    pub fn key(&self) -> Option<&[u8]> {
        let (page, slot) = self.path.last()?;
        Some(Leaf::new(page).key(*slot))
    }

    /// The entry here, as it lies in its leaf.
    pub fn entry_here(&self) -> Option<Entry<'_>> {
        let (page, slot) = self.path.last()?;
        Some(Leaf::new(page).entry(*slot))
    }

    /// Key, head and body here. An inline body is copied, one in an extent is not read.
    pub fn entry(&self) -> Option<(&[u8], &[u8], Body)> {
        let entry = self.entry_here()?;
        let body = match entry.body {
            BodyAt::Here(bytes) => Body::Inline(Bytes::copy_from_slice(bytes)),
            BodyAt::There(extent) => Body::Extent(extent),
        };
        Some((entry.key, entry.head, body))
    }

    /// Moves to the next entry.
    pub fn advance(&mut self) -> Result<()> {
        match self.path.last_mut() {
            Some((page, slot)) if *slot + 1 < Leaf::new(page).len() => {
                *slot += 1;
                Ok(())
            }
            Some(_) => self.step_over(true),
            None => Ok(()),
        }
    }

    /// Moves to the entry before.
    pub fn retreat(&mut self) -> Result<()> {
        match self.path.last_mut() {
            Some((_, slot)) if *slot > 0 => {
                *slot -= 1;
                Ok(())
            }
            Some(_) => self.step_over(false),
            None => Ok(()),
        }
    }

    /// Fills the path down to the leaf that may have `key`, but for the leaf itself.
    fn descend_to(&mut self, key: &[u8]) -> Result<Option<(PageRef<'a>, Result<usize, usize>)>> {
        self.path.clear();
        let Some(mut ptr) = self.root.ptr else { return Ok(None) };
        for height in (1..=self.root.height).rev() {
            let page = self.source.page(ptr, height)?;
            let branch = Branch::new(&page);
            let child = branch.find(key);
            ptr = branch.child(child);
            self.path.push((page, child));
        }
        let page = self.source.page(ptr, 0)?;
        let at = Leaf::new(&page).find(key);
        Ok(Some((page, at)))
    }

    /// Leaves the leaf for the next one (or the one before), or past the end.
    fn step_over(&mut self, up: bool) -> Result<()> {
        self.path.pop();
        while let Some((page, child)) = self.path.last_mut() {
            let branch = Branch::new(page);
            let next = if up { Some(*child + 1).filter(|at| *at < branch.len()) } else { child.checked_sub(1) };
            if let Some(at) = next {
                *child = at;
                let ptr = branch.child(at);
                let height = self.root.height - u8::try_from(self.path.len()).expect("a tree has few levels");
                return self.descend_edge(ptr, height, up);
            }
            self.path.pop();
        }
        Ok(())
    }

    /// Goes down to the first (or last) entry below `ptr`.
    fn descend_edge(&mut self, mut ptr: PagePtr, height: u8, first: bool) -> Result<()> {
        for height in (1..=height).rev() {
            let page = self.source.page(ptr, height)?;
            let branch = Branch::new(&page);
            let child = if first { 0 } else { branch.len() - 1 };
            ptr = branch.child(child);
            self.path.push((page, child));
        }
        let page = self.source.page(ptr, 0)?;
        let slot = if first { 0 } else { Leaf::new(&page).len() - 1 };
        self.path.push((page, slot));
        Ok(())
    }
}
