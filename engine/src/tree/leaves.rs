//! The leaves of a tree in a table, so that lookups go through no branches.
//!
//! In a branch a lookup waits for several loads, one after the other. The table has the beginning of each leaf's
//! lowest key, and where the leaf is: 24 bytes of a leaf. A lookup guesses a place in it that is off by a leaf or two.
//!
//! Many lookups go in blocks, each a step behind the next: before the table line, leaf, keys and entry of a lookup are
//! looked at, they are asked for, and come while others are answered. What a block asks for it asks for at once, so
//! that not only loads but also walks of page tables go side by side.

use super::{Lent, PageRef, PageSource, Root, seek};
use crate::disk::os::load_soon;
use crate::error::{Error, Result};
use crate::ids::PagePtr;
use crate::page::{Branch, Leaf, layout, search};

/// Leaves of which the first one stands for the rest when a place is looked for.
#[cfg(not(test))]
const GROUP: usize = 64;
#[cfg(test)]
const GROUP: usize = 4;
/// Lookups of a block.
const TOGETHER: usize = 8;
/// What a block waits for, a turn each: the table, its leaf, the keys there, and its entry.
const WAITS: usize = 4;
/// Lookups under way.
const UNDER_WAY: usize = WAITS * TOGETHER;

/// The leaves of a tree as of one commit.
#[derive(Debug)]
pub struct Leaves {
    root: Root,
    leaves: Vec<Listed>,
    /// The `low` of the first of each group.
    groups: Vec<u64>,
}

/// A leaf.
#[derive(Debug)]
struct Listed {
    /// The ordinal of none of its keys is lower, and of none in leaves before higher.
    low: u64,
    ptr: PagePtr,
}

/// A lookup on its way: first its place in the table is a guess, then where in the leaf it is looked for.
struct Lookup<'a> {
    place: usize,
    page: Option<Result<PageRef<'a>>>,
    entry: Result<usize, usize>,
}

/// Adds the leaves below a page; None if it fails, or if there are more than `max`, as pages that lead in circles have.
fn add<S: PageSource + ?Sized>(
    source: &S,
    (ptr, height, low): (PagePtr, u8, u64),
    max: u64,
    leaves: &mut Vec<Listed>,
) -> Option<()> {
    if height == 0 {
        leaves.push(Listed { low, ptr });
        return (leaves.len() as u64 <= max).then_some(());
    }
    let page = source.page(ptr, height).ok()?;
    let branch = Branch::new(&page);
    (0..branch.len()).try_for_each(|child| {
        // The first key of a branch may be lower than what the branch above says.
        let low = if child == 0 { low } else { search::ordinal(branch.key(child)) };
        add(source, (branch.child(child), height - 1, low), max, leaves)
    })
}

impl Leaves {
    /// Lists the leaves of a tree. O(leaves / children of a branch) pages. If that fails the table is empty, and lookups
    /// go through branches, which say what is wrong with them.
    pub fn list<S: PageSource + ?Sized>(source: &S, root: Root) -> Self {
        let mut leaves = Vec::new();
        let listed =
            root.ptr.is_some_and(|ptr| add(source, (ptr, root.height, 0), root.entries, &mut leaves).is_some());
        match leaves.first_mut().map(|first| (source.page(first.ptr, 0), first)) {
            // The lowest bound of a tree may be far below its keys.
            Some((Ok(page), first)) if listed => first.low = search::ordinal(Leaf::new(&page).key(0)),
            _ => leaves.clear(),
        }
        let groups = leaves.iter().step_by(GROUP).map(|leaf| leaf.low).collect();
        Leaves { root, leaves, groups }
    }

    /// The tree whose leaves these are.
    pub fn root(&self) -> Root {
        self.root
    }

    /// About where the leaf of a key of this ordinal is; 0 if there is no leaf.
    #[inline]
    fn guess(&self, wanted: u64) -> usize {
        let ([first, ..], [.., last]) = (&self.groups[..], &self.groups[..]) else { return 0 };
        let about = search::guess(self.groups.len(), wanted, &(*first..last.saturating_add(1)));
        let group = search::last_not_above(self.groups.len(), about, wanted, |at| self.groups[at]);
        let start = group * GROUP;
        let len = GROUP.min(self.leaves.len() - start);
        let end = self.groups.get(group + 1).copied().unwrap_or_else(|| self.leaves[start + len - 1].low);
        start + search::guess(len, wanted, &(self.groups[group]..end.saturating_add(1)))
    }

    /// The last leaf that may have a key of this ordinal, looked for from a guess on.
    #[inline]
    fn place(&self, guess: usize, wanted: u64) -> usize {
        search::last_not_above(self.leaves.len(), guess, wanted, |at| self.leaves[at].low)
    }

    /// About where in its leaf a key is.
    #[inline]
    fn guess_in(&self, place: usize, leaf: Leaf<'_>, key: &[u8]) -> usize {
        let next = self.leaves.get(place + 1);
        let bounds = next.map(|next| self.leaves[place].low..next.low.saturating_add(1));
        leaf.guess(key, &bounds.unwrap_or_else(|| leaf.bounds()))
    }

    /// Shows the value of a key by what was found in its leaf.
    fn show<S: PageSource + ?Sized, T>(
        &self,
        source: &S,
        (place, page, entry): (usize, &PageRef<'_>, Result<usize, usize>),
        key: &[u8],
        show: impl FnOnce(Option<Lent<'_>>) -> T,
    ) -> Result<T> {
        match entry {
            Ok(at) => Ok(show(Some(Lent::of(Leaf::new(page), at)))),
            // Keys that begin alike may lie in leaves before: branches tell them apart.
            Err(0) if place > 0 && self.leaves[place].low == search::ordinal(key) => {
                let mut show = Some(show);
                let mut see = |lent: Option<Lent<'_>>| show.take().map(|show| show(lent));
                let seen = seek::find(source, self.root, key, |lent| see(Some(lent)))?;
                Ok(seen.unwrap_or_else(|| see(None)).expect("it is shown once"))
            }
            Err(_) => Ok(show(None)),
        }
    }

    /// Shows the value of a key. One page.
    pub fn find<S: PageSource + ?Sized, T>(
        &self,
        source: &S,
        key: &[u8],
        show: impl FnOnce(Lent<'_>) -> T,
    ) -> Result<Option<T>> {
        if self.leaves.is_empty() {
            return seek::find(source, self.root, key, show);
        }
        let wanted = search::ordinal(key);
        let place = self.place(self.guess(wanted), wanted);
        let ptr = self.leaves[place].ptr;
        source.load_ahead(ptr);
        let page = source.page(ptr, 0)?;
        let leaf = Leaf::new(&page);
        let first = self.guess_in(place, leaf, key);
        // The guess may be off by one.
        layout::load_entry(&page, first);
        layout::load_keys(&page, first);
        let entry = leaf.find_from(first, key);
        self.show(source, (place, &page, entry), key, |lent| lent.map(show))
    }

    /// Looks up keys in the order in which they are given, and shows each by its place in `keys`, until `visit` says
    /// false. It costs the least if keys that are near each other are in the same leaf.
    pub fn get_many<S: PageSource + ?Sized, K: AsRef<[u8]>, E: From<Error>>(
        &self,
        source: &S,
        keys: &[K],
        visit: &mut impl FnMut(usize, Option<Lent<'_>>) -> Result<bool, E>,
    ) -> Result<(), E> {
        if self.leaves.is_empty() {
            return seek::get_many(source, self.root, keys, visit);
        }
        let mut lookups: [_; UNDER_WAY] = std::array::from_fn(|_| Lookup { place: 0, page: None, entry: Err(0) });
        for turn in 0..keys.len().div_ceil(TOGETHER) + WAITS {
            let in_turn = |waits: usize| {
                let start = turn.checked_sub(waits).map_or(keys.len(), |block| block * TOGETHER);
                start..keys.len().min(start.saturating_add(TOGETHER))
            };
            for at in in_turn(WAITS) {
                let Lookup { place, page, entry } = &mut lookups[at % UNDER_WAY];
                // What is wrong with a page is told in its turn.
                let page = page.take().unwrap_or(Err(Error::Closed))?;
                if !self.show(source, (*place, &page, *entry), keys[at].as_ref(), |lent| visit(at, lent))?? {
                    return Ok(());
                }
            }
            for at in in_turn(3) {
                let Lookup { page, entry, .. } = &mut lookups[at % UNDER_WAY];
                if let (Some(Ok(page)), Err(first)) = (page, *entry) {
                    *entry = Leaf::new(page).find_from(first, keys[at].as_ref());
                    entry.iter().for_each(|at| layout::load_entry(page, *at));
                }
            }
            for at in in_turn(2) {
                let Lookup { place, page, entry } = &mut lookups[at % UNDER_WAY];
                let opened = source.page(self.leaves[*place].ptr, 0);
                if let Ok(page) = &opened {
                    let first = self.guess_in(*place, Leaf::new(page), keys[at].as_ref());
                    layout::load_keys(page, first);
                    *entry = Err(first);
                }
                *page = Some(opened);
            }
            for at in in_turn(1) {
                let place = &mut lookups[at % UNDER_WAY].place;
                *place = self.place(*place, search::ordinal(keys[at].as_ref()));
                source.load_ahead(self.leaves[*place].ptr);
            }
            for at in in_turn(0) {
                let guess = self.guess(search::ordinal(keys[at].as_ref()));
                let about = guess.saturating_sub(1)..self.leaves.len().min(guess + 2);
                self.leaves[about].iter().for_each(|leaf| load_soon(&leaf.low));
                lookups[at % UNDER_WAY].place = guess;
            }
        }
        Ok(())
    }
}
