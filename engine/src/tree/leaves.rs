//! The leaves of a tree in a table, so that lookups go through no branches.
//!
//! In a branch a lookup waits for several loads, one after the other. The table has the beginning of each leaf's
//! lowest key, and where the leaf is: 24 bytes of a leaf, and 48 of a lowest branch. A lookup guesses a place in it
//! that is off by a leaf or two. A table shares the leaves of each branch that the tree before had too with the table
//! of that one: after a checkpoint it costs what changed, and one step of each lowest branch.
//!
//! Many lookups go in blocks, each a step behind the next: before the table line, leaf, keys and entry of a lookup are
//! looked at, they are asked for, and come while others are answered. What a block asks for it asks for at once, so
//! that not only loads but also walks of page tables go side by side. Where leaves are not in memory, the reads of those
//! of hundreds of lookups are begun before the first.

use super::{Lent, PageRef, PageSource, Root, seek};
use crate::disk::os::load_soon;
use crate::error::{Error, Result};
use crate::ids::PagePtr;
use crate::page::{Branch, Leaf, layout, search};
use std::ops::Range;
use std::sync::Arc;

/// Lookups of a block.
const TOGETHER: usize = 8;
/// What a block waits for, a turn each: the table, its leaf, the keys there, and its entry.
const WAITS: usize = 4;
/// Lookups under way.
const UNDER_WAY: usize = WAITS * TOGETHER;

/// Leaves of so many keys are read side by side, if some of them are not in memory.
const READ_TOGETHER: usize = 512;
/// Of one in so many of them that is looked at, as it takes a system call.
const KEYS_PER_SAMPLE: usize = 128;
/// Fewer keys are not worth it.
const SAMPLED_MIN: usize = 16;

/// The leaves of a tree as of one commit.
#[derive(Debug, PartialEq, Eq)]
pub struct Leaves {
    root: Root,
    branches: Vec<Lowest>,
    /// The `low` of the first leaf of each branch; of the very first what its lowest key says.
    lows: Vec<Low>,
}

/// A lowest branch.
#[derive(Debug, PartialEq, Eq)]
struct Lowest {
    ptr: PagePtr,
    leaves: Arc<[Listed]>,
}

/// The long ordinal of no key of a leaf is lower, and of none in leaves before higher.
pub type Low = (u64, u32);

/// A leaf, and its `low`: side by side they would take a third more.
#[derive(Debug, PartialEq, Eq)]
struct Listed {
    ordinal: u64,
    epoch: u64,
    next: u32,
    unit: u32,
}

impl Listed {
    fn new((ordinal, next): Low, PagePtr { unit, epoch }: PagePtr) -> Self {
        Listed { ordinal, epoch, next, unit }
    }

    fn low(&self) -> Low {
        (self.ordinal, self.next)
    }

    fn ptr(&self) -> PagePtr {
        PagePtr { unit: self.unit, epoch: self.epoch }
    }
}

/// Where a leaf is in the table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Place {
    branch: usize,
    child: usize,
}

/// A lookup on its way: first its place in the table is a guess, then where in the leaf it is looked for.
struct Lookup<'a> {
    place: Place,
    page: Option<Result<PageRef<'a>>>,
    entry: Result<usize, usize>,
}

/// Makes a table.
struct Lister<'a, S: ?Sized> {
    source: &'a S,
    /// The branches of the table before that were not come by.
    before: &'a [Lowest],
    branches: Vec<Lowest>,
    leaves: u64,
    /// More leaves have only pages that lead in circles.
    leaves_max: u64,
}

impl<S: PageSource + ?Sized> Lister<'_, S> {
    /// Adds the leaves below a page; None if that fails.
    fn add(&mut self, ptr: PagePtr, height: u8, low: Low) -> Option<()> {
        if height <= 1 {
            let leaves = if height == 0 { Arc::new([Listed::new(low, ptr)]) } else { self.children(ptr, low)? };
            self.leaves += leaves.len() as u64;
            self.branches.push(Lowest { ptr, leaves });
            return (self.leaves <= self.leaves_max).then_some(());
        }
        let page = self.source.page(ptr, height).ok()?;
        let branch = Branch::new(&page);
        (0..branch.len()).try_for_each(|at| self.add(branch.child(at), height - 1, low_of(branch, at, low)))
    }

    fn children(&mut self, ptr: PagePtr, low: Low) -> Option<Arc<[Listed]>> {
        self.before = &self.before[self.before.iter().take_while(|before| before.leaves[0].low() < low).count()..];
        if let Some((same, after)) = self.before.split_first()
            && (same.ptr, same.leaves[0].low()) == (ptr, low)
        {
            self.before = after;
            return Some(Arc::clone(&same.leaves));
        }
        let page = self.source.page(ptr, 1).ok()?;
        let branch = Branch::new(&page);
        Some((0..branch.len()).map(|at| Listed::new(low_of(branch, at, low), branch.child(at))).collect())
    }
}

/// The long ordinal of the lowest key that may be in a child of a branch with this `low`.
fn low_of(branch: Branch<'_>, child: usize, low: Low) -> Low {
    // The first key of a branch may be lower than what the branch above says.
    if child == 0 { low } else { search::long_ordinal(branch.key(child)) }
}

impl Leaves {
    /// Lists the leaves of a tree, given the table of one before it. O(branches) steps, and the pages of branches that
    /// are not in that one. If it fails the table is empty, and lookups go through branches, which say what is wrong
    /// with them.
    pub fn list<S: PageSource + ?Sized>(source: &S, root: Root, before: Option<&Leaves>) -> Self {
        let before = before.map_or(&[][..], |before| &before.branches);
        let mut lister = Lister { source, before, branches: Vec::new(), leaves: 0, leaves_max: root.entries };
        if root.ptr.is_none_or(|ptr| lister.add(ptr, root.height, (0, 0)).is_none()) {
            lister.branches.clear();
        }
        let mut branches = lister.branches;
        branches.shrink_to_fit();
        let mut lows: Vec<_> = branches.iter().map(|branch| branch.leaves[0].low()).collect();
        // The lowest bound of a tree may be far below its keys.
        if let (Some(low), Some(first)) = (lows.first_mut(), branches.first())
            && let Ok(page) = source.page(first.leaves[0].ptr(), 0)
        {
            *low = search::long_ordinal(Leaf::new(&page).key(0));
        }
        Leaves { root, branches, lows }
    }

    /// Bytes of memory of this table. O(branches).
    pub fn bytes(&self) -> usize {
        let shared = self.branches.iter().map(|branch| size_of_val(&*branch.leaves)).sum::<usize>();
        shared + size_of_val(&*self.branches) + size_of_val(&*self.lows)
    }

    /// The tree whose leaves these are.
    pub fn root(&self) -> Root {
        self.root
    }

    fn leaf(&self, place: Place) -> PagePtr {
        self.branches[place.branch].leaves[place.child].ptr()
    }

    fn low(&self, place: Place) -> Low {
        if place.child == 0 { self.lows[place.branch] } else { self.branches[place.branch].leaves[place.child].low() }
    }

    /// The branch of the leaf of a key of this long ordinal, and about where in it the leaf is.
    #[inline]
    fn guess(&self, wanted: Low) -> Place {
        let (first, last) = (self.lows[0].0, self.lows[self.lows.len() - 1].0);
        let about = search::guess(self.lows.len(), wanted.0, &(first..last.saturating_add(1)));
        let branch = search::last_not_above(self.lows.len(), about, wanted, |at| self.lows[at]);
        let leaves = &self.branches[branch].leaves;
        let end = self.lows.get(branch + 1).map_or_else(|| leaves[leaves.len() - 1].ordinal, |next| next.0);
        Place { branch, child: search::guess(leaves.len(), wanted.0, &(self.lows[branch].0..end.saturating_add(1))) }
    }

    /// The last leaf that may have a key of this long ordinal, looked for from a guess on.
    #[inline]
    fn place(&self, guess: Place, wanted: Low) -> Place {
        let leaves = &self.branches[guess.branch].leaves;
        Place { child: search::last_not_above(leaves.len(), guess.child, wanted, |at| leaves[at].low()), ..guess }
    }

    /// About where in its leaf a key is.
    #[inline]
    fn guess_in(&self, place: Place, leaf: Leaf<'_>, key: &[u8]) -> usize {
        let next = self.branches[place.branch].leaves.get(place.child + 1).map(|next| next.ordinal);
        let next = next.or_else(|| self.lows.get(place.branch + 1).map(|next| next.0));
        let bounds = next.map(|next| self.low(place).0..next.saturating_add(1));
        leaf.guess(key, &bounds.unwrap_or_else(|| leaf.bounds()))
    }

    /// Shows the value of a key by what was found in its leaf.
    fn show<S: PageSource + ?Sized, T>(
        &self,
        source: &S,
        (place, page, entry): (Place, &PageRef<'_>, Result<usize, usize>),
        key: &[u8],
        show: impl FnOnce(Option<Lent<'_>>) -> T,
    ) -> Result<T> {
        match entry {
            Ok(at) => Ok(show(Some(Lent::of(Leaf::new(page), at)))),
            // Keys that begin alike may lie in leaves before: branches tell them apart.
            Err(0) if place != Place::default() && self.low(place) == search::long_ordinal(key) => {
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
        if self.branches.is_empty() {
            return seek::find(source, self.root, key, show);
        }
        let wanted = search::long_ordinal(key);
        let place = self.place(self.guess(wanted), wanted);
        let ptr = self.leaf(place);
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

    /// Where the leaf begins and ends in which a key lies or would, by long ordinals: none of its keys is below the first,
    /// and those of the next are not below the second. None for the last leaf and for what is below all keys. No page.
    /// It costs the least behind the place of the key before, which `near` is.
    pub fn bounds_of(&self, key: &[u8], near: &mut Place) -> Option<Range<Low>> {
        let wanted = search::long_ordinal(key);
        let low = self.lows.get(near.branch).filter(|low| **low <= wanted);
        let is_here = low.is_some() && self.lows.get(near.branch + 1).is_none_or(|next| wanted < *next);
        let guess = || if is_here { Place { child: near.child + 1, ..*near } } else { self.guess(wanted) };
        let place = self.branches.first().map(|_| self.place(guess(), wanted))?;
        *near = place;
        let next = self.branches[place.branch].leaves.get(place.child + 1).map(Listed::low);
        let next = next.or_else(|| self.lows.get(place.branch + 1).copied())?;
        let low = self.low(place);
        (low <= wanted).then_some(low..next)
    }

    /// Begins to read the leaves of keys if they seem to be on the device: one after the other each would be waited for.
    fn read_ahead<S: PageSource + ?Sized, K: AsRef<[u8]>>(&self, source: &S, keys: &[K]) {
        let leaf = |key: &K| {
            let wanted = search::long_ordinal(key.as_ref());
            self.leaf(self.place(self.guess(wanted), wanted))
        };
        if keys.len() < SAMPLED_MIN || keys.iter().step_by(KEYS_PER_SAMPLE).all(|key| source.is_near(leaf(key))) {
            return;
        }
        let mut leaves: Vec<PagePtr> = keys.iter().map(leaf).collect();
        leaves.sort_unstable_by_key(|leaf| leaf.unit);
        leaves.dedup();
        source.will_read(&mut leaves.into_iter());
    }

    /// Shows the leaves where ascending keys lie or would, until `visit` says false, each with the place in `keys` of the
    /// first that may be in it. One page a leaf; those of a block are loaded side by side.
    pub fn leaves_of<S: PageSource + ?Sized, K: AsRef<[u8]>>(
        &self,
        source: &S,
        keys: &[K],
        visit: &mut impl FnMut(usize, Leaf<'_>) -> bool,
    ) -> Result<()> {
        if self.branches.is_empty() {
            return seek::leaves_of(source, self.root, keys, visit);
        }
        let mut before = None;
        for (base, block) in (0..).step_by(UNDER_WAY).zip(keys.chunks(UNDER_WAY)) {
            if base % READ_TOGETHER == 0 {
                self.read_ahead(source, &keys[base..keys.len().min(base + READ_TOGETHER)]);
            }
            let mut found = Vec::with_capacity(block.len());
            for (at, key) in (base..).zip(block) {
                let wanted = search::long_ordinal(key.as_ref());
                let place = self.place(self.guess(wanted), wanted);
                if before.replace(place) != Some(place) {
                    source.load_ahead(self.leaf(place));
                    found.push((at, place));
                }
            }
            let open = |(at, place): (usize, Place)| {
                let page = source.page(self.leaf(place), 0);
                if let Ok(page) = &page {
                    let leaf = Leaf::new(page);
                    layout::load_keys(page, self.guess_in(place, leaf, keys[at].as_ref()));
                    layout::load_keys(page, leaf.len() - 1);
                }
                (at, place, page)
            };
            let opened: Vec<_> = found.into_iter().map(open).collect();
            for (at, place, page) in opened {
                // What is wrong with a page is told in its turn.
                let page = page?;
                let (leaf, key) = (Leaf::new(&page), keys[at].as_ref());
                // Keys that begin alike may lie in leaves before: branches tell them apart.
                let is_alike = |key: &&K| self.low(place) == search::long_ordinal(key.as_ref());
                if place != Place::default() && leaf.find(key) == Err(0) {
                    let (end, mut more) = (at + keys[at..].iter().take_while(is_alike).count(), true);
                    seek::leaves_of(source, self.root, &keys[at..end], &mut |before, leaf| {
                        more = visit(at + before, leaf);
                        more
                    })?;
                    if !more {
                        return Ok(());
                    }
                }
                if !visit(at, leaf) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Looks up keys in the order in which they are given, and shows each by its place in `keys`, until `visit` says
    /// false. It costs the least if keys that are near each other are in the same leaf.
    pub fn get_many<S: PageSource + ?Sized, K: AsRef<[u8]>, E: From<Error>>(
        &self,
        source: &S,
        keys: &[K],
        visit: &mut impl FnMut(usize, Option<Lent<'_>>) -> Result<bool, E>,
    ) -> Result<(), E> {
        if self.branches.is_empty() {
            return seek::get_many(source, self.root, keys, visit);
        }
        let mut lookups: [_; UNDER_WAY] =
            std::array::from_fn(|_| Lookup { place: Place::default(), page: None, entry: Err(0) });
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
                let opened = source.page(self.leaf(*place), 0);
                if let Ok(page) = &opened {
                    let first = self.guess_in(*place, Leaf::new(page), keys[at].as_ref());
                    layout::load_keys(page, first);
                    *entry = Err(first);
                }
                *page = Some(opened);
            }
            for at in in_turn(1) {
                let place = &mut lookups[at % UNDER_WAY].place;
                *place = self.place(*place, search::long_ordinal(keys[at].as_ref()));
                source.load_ahead(self.leaf(*place));
            }
            if turn % (READ_TOGETHER / TOGETHER) == 0 {
                let soon = keys.get(turn * TOGETHER..).unwrap_or(&[]);
                self.read_ahead(source, &soon[..soon.len().min(READ_TOGETHER)]);
            }
            for at in in_turn(0) {
                let guess = self.guess(search::long_ordinal(keys[at].as_ref()));
                let leaves = &self.branches[guess.branch].leaves;
                let about = guess.child.saturating_sub(1)..leaves.len().min(guess.child + 2);
                leaves[about].iter().for_each(|leaf| load_soon(&leaf.ordinal));
                lookups[at % UNDER_WAY].place = guess;
            }
        }
        Ok(())
    }
}
