//! Lookups: one key, or many in order with one shared descent.
//!
//! What is found is lent where it lies. A page's first lines and an entry's are likely not in a cache, so many
//! lookups go through their pages together: the loads of one do not wait for those of another.

use super::{Entry, PageRef, PageSource, Root};
use crate::error::Result;
use crate::ids::PagePtr;
use crate::page::layout;
use crate::page::leaf::BodyAt;
use crate::page::{Branch, Leaf};
use std::ops::Range;

/// A value where it lies in its leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lent<'a> {
    /// The part that always stays in the leaf.
    pub head: &'a [u8],
    /// The rest.
    pub body: BodyAt<'a>,
    /// The head and, if it is in the leaf, the body, in one piece.
    pub joined: &'a [u8],
}

impl<'a> Lent<'a> {
    fn of(leaf: Leaf<'a>, at: usize) -> Self {
        let entry = leaf.entry(at);
        let joined = match entry.body {
            BodyAt::Here(_) => &leaf.raw(at)[leaf.raw(at).len() - entry.head.len() - entry.body_here().len()..],
            BodyAt::There(_) => entry.head,
        };
        Lent { head: entry.head, body: entry.body, joined }
    }
}

/// Shows the value of a key. O(depth) pages.
pub fn find<S: PageSource + ?Sized, T>(
    source: &S,
    root: Root,
    key: &[u8],
    show: impl FnOnce(Lent<'_>) -> T,
) -> Result<Option<T>> {
    let Some(mut ptr) = root.ptr else { return Ok(None) };
    let mut bounds = None;
    for height in (1..=root.height).rev() {
        let page = source.page(ptr, height)?;
        let branch = Branch::new(&page);
        let child = branch.find(key);
        (ptr, bounds) = (branch.child(child), branch.bounds(child));
    }
    let page = source.page(ptr, 0)?;
    let leaf = Leaf::new(&page);
    let first = leaf.guess(key, &bounds.unwrap_or_else(|| leaf.bounds()));
    Ok(leaf.find_from(first, key).ok().map(|at| show(Lent::of(leaf, at))))
}

/// The value of a key. O(depth) pages, one allocation.
pub fn get<S: PageSource + ?Sized>(source: &S, root: Root, key: &[u8]) -> Result<Option<Entry>> {
    find(source, root, key, Entry::copy)
}

/// How many keys go through their leaves together.
const TOGETHER: usize = 32;

/// Looks up keys given in ascending order; shows each by its place in `keys`, in that order.
/// A page is fetched once however many of the keys lie in it.
pub fn get_many<S: PageSource + ?Sized, K: AsRef<[u8]>>(
    source: &S,
    root: Root,
    keys: &[K],
    visit: &mut dyn FnMut(usize, Option<Lent<'_>>) -> Result<()>,
) -> Result<()> {
    debug_assert!(keys.windows(2).all(|pair| pair[0].as_ref() <= pair[1].as_ref()));
    let Some(ptr) = root.ptr else {
        return (0..keys.len()).try_for_each(|at| visit(at, None));
    };
    if root.height == 0 {
        let page = source.page(ptr, 0)?;
        let leaf = Leaf::new(&page);
        let found = |key: &K| leaf.find(key.as_ref()).ok().map(|slot| Lent::of(leaf, slot));
        return keys.iter().enumerate().try_for_each(|(at, key)| visit(at, found(key)));
    }
    let mut lookup = Lookup { source, keys, leaves: Vec::new(), pages: Vec::new(), waiting: 0, visit };
    lookup.descend(ptr, root.height, 0..keys.len())?;
    lookup.finish()
}

/// A leaf to look into.
struct Wanted {
    ptr: PagePtr,
    /// For which keys.
    keys: Range<usize>,
    /// The ordinals of its entries; None if the branch does not say.
    bounds: Option<Range<u64>>,
}

struct Lookup<'a, 'v, S: ?Sized, K> {
    source: &'a S,
    keys: &'a [K],
    leaves: Vec<Wanted>,
    /// The leaves' pages, and where in them each key should be.
    pages: Vec<(PageRef<'a>, usize)>,
    /// How many keys `leaves` are for.
    waiting: usize,
    visit: &'v mut dyn FnMut(usize, Option<Lent<'_>>) -> Result<()>,
}

impl<S: PageSource + ?Sized, K: AsRef<[u8]>> Lookup<'_, '_, S, K> {
    fn descend(&mut self, ptr: PagePtr, height: u8, keys: Range<usize>) -> Result<()> {
        let page = self.source.page(ptr, height)?;
        let branch = Branch::new(&page);
        let mut from = keys.start;
        while from < keys.end {
            let child = branch.find(self.keys[from].as_ref());
            let mut to = from + 1;
            if child + 1 < branch.len() {
                let bound = branch.key(child + 1);
                while to < keys.end && self.keys[to].as_ref() < bound {
                    to += 1;
                }
            } else {
                to = keys.end;
            }
            let ptr = branch.child(child);
            if height > 1 {
                self.descend(ptr, height - 1, from..to)?;
            } else {
                self.waiting += to - from;
                self.leaves.push(Wanted { ptr, keys: from..to, bounds: branch.bounds(child) });
                if self.waiting >= TOGETHER {
                    self.finish()?;
                }
            }
            from = to;
        }
        Ok(())
    }

    /// Looks into the leaves that were collected: loads of all, each kind in a loop that waits for none of them.
    fn finish(&mut self) -> Result<()> {
        self.leaves.iter().for_each(|leaf| self.source.load_ahead(leaf.ptr));
        self.pages.clear();
        for wanted in &self.leaves {
            let page = self.source.page(wanted.ptr, 0)?;
            let leaf = Leaf::new(&page);
            let bounds = wanted.bounds.clone().unwrap_or_else(|| leaf.bounds());
            let guess = leaf.guess(self.keys[wanted.keys.start].as_ref(), &bounds);
            self.pages.push((page, guess));
        }
        self.pages.iter().for_each(|(page, guess)| layout::load_ahead(page, Some(*guess)));
        for (wanted, (page, guess)) in self.leaves.iter().zip(&self.pages) {
            let leaf = Leaf::new(page);
            // The next key of the same leaf is behind this one.
            let mut first = *guess;
            for at in wanted.keys.clone() {
                let place = leaf.find_from(first, self.keys[at].as_ref());
                first = place.map_or_else(|place| place, |place| place + 1);
                (self.visit)(at, place.ok().map(|place| Lent::of(leaf, place)))?;
            }
        }
        self.leaves.clear();
        self.waiting = 0;
        Ok(())
    }
}
