//! Keys in order, and how many there are, at any revision from the compacted one on.

use crate::inner::{Child, Inner, Node};
use crate::leaf::Leaf;
use crate::map::Index;
use crate::packed::{WIDE, main_of};
use crate::revision::{Hit, KeyRange};
use std::ops::{ControlFlow, Range};

#[cfg(test)]
thread_local! {
    /// Nodes looked at, for the tests of what a walk costs.
    pub(crate) static VISITED: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

fn visited() {
    #[cfg(test)]
    VISITED.with(|count| count.set(count.get() + 1));
}

impl Index {
    /// Shows the keys of `range` that are live at main `at`, ascending, until `visit` breaks.
    /// O(log n + keys shown), but for subtrees whose keys are all newer or dead.
    pub fn walk(&self, range: KeyRange<'_>, at: u64, visit: &mut dyn FnMut(&[u8], Hit) -> ControlFlow<()>) {
        if !range.is_empty() {
            let _stopped = self.ascend(&self.root, range, at, &mut Vec::new(), visit);
        }
    }

    /// Like `walk`, descending.
    pub fn walk_back(&self, range: KeyRange<'_>, at: u64, visit: &mut dyn FnMut(&[u8], Hit) -> ControlFlow<()>) {
        if !range.is_empty() {
            let _stopped = self.descend(&self.root, range, at, &mut Vec::new(), visit);
        }
    }

    /// How many keys of `range` are live at main `at`. O(log n) at the newest revision; at an older
    /// one it looks into what was born or died since.
    pub fn count(&self, range: KeyRange<'_>, at: u64) -> u64 {
        self.count_some(range, at, usize::MAX).0
    }

    /// Counts as [`Index::count`] does, but looks at about `budget` keys one by one at the most, so that it takes no
    /// longer; then the count goes on at the key that is returned.
    pub fn count_some(&self, range: KeyRange<'_>, at: u64, budget: usize) -> (u64, Option<Vec<u8>>) {
        if range.is_empty() {
            return (0, None);
        }
        let mut looks = Looks { left: budget, resume: None };
        let count = self.count_in(&self.root, range, at, &mut looks);
        (count, looks.resume)
    }

    fn ascend(
        &self,
        node: &Node,
        range: KeyRange<'_>,
        at: u64,
        buffer: &mut Vec<u8>,
        visit: &mut dyn FnMut(&[u8], Hit) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        visited();
        match node {
            Node::Leaf(leaf) => leaf.keys(self.hits(leaf, inside(leaf, range), at), buffer, visit),
            Node::Inner(inner) => {
                for child in covered(inner, range).iter().filter(|child| may_show(child, at)) {
                    self.ascend(&child.node, range, at, buffer, visit)?;
                }
                ControlFlow::Continue(())
            }
        }
    }

    fn descend(
        &self,
        node: &Node,
        range: KeyRange<'_>,
        at: u64,
        buffer: &mut Vec<u8>,
        visit: &mut dyn FnMut(&[u8], Hit) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        visited();
        match node {
            Node::Leaf(leaf) => leaf.keys(self.hits(leaf, inside(leaf, range).rev(), at), buffer, visit),
            Node::Inner(inner) => {
                for child in covered(inner, range).iter().rev().filter(|child| may_show(child, at)) {
                    self.descend(&child.node, range, at, buffer, visit)?;
                }
                ControlFlow::Continue(())
            }
        }
    }

    /// Those of a leaf's places whose keys are live at `at`.
    fn hits(&self, leaf: &Leaf, places: impl Iterator<Item = usize>, at: u64) -> impl Iterator<Item = (usize, Hit)> {
        places.filter_map(move |place| Some((place, self.beside.ring.state_at(&self.beside.state(leaf, place), at)?)))
    }

    fn count_in(&self, node: &Node, range: KeyRange<'_>, at: u64, looks: &mut Looks) -> u64 {
        visited();
        match node {
            Node::Leaf(leaf) => {
                let places = inside(leaf, range);
                looks.left = looks.left.saturating_sub(places.len().max(1));
                let live = leaf.all_packed(places.clone()).zip(places).filter(|(packed, place)| {
                    if *packed != WIDE && main_of(*packed) <= at {
                        return packed & 1 == 0;
                    }
                    self.beside.ring.state_at(&self.beside.state(leaf, *place), at).is_some()
                });
                live.count() as u64
            }
            Node::Inner(inner) => {
                let covered = covered(inner, range);
                let last = covered.len().saturating_sub(1);
                let mut count = 0;
                for (which, child) in covered.iter().enumerate() {
                    // All but the outermost lie inside the range; those may stick out.
                    let whole = (which > 0 || *child.low >= *range.start) && (which < last || range.end.is_none());
                    if whole && child.changed <= at {
                        count += child.live;
                        continue;
                    }
                    if looks.left == 0 {
                        looks.resume = Some(child.low.to_vec());
                        break;
                    }
                    count += self.count_in(&child.node, range, at, looks);
                    if looks.resume.is_some() {
                        break;
                    }
                }
                count
            }
        }
    }
}

/// How many keys a count may still look at, and where it goes on once these are none.
struct Looks {
    left: usize,
    resume: Option<Vec<u8>>,
}

/// The places of a leaf whose keys are in the range.
pub(crate) fn inside(leaf: &Leaf, range: KeyRange<'_>) -> Range<usize> {
    let first = leaf.rank(range.start);
    first..range.end.map_or(leaf.len(), |end| leaf.rank(end)).max(first)
}

/// The children that may hold keys of the range.
pub(crate) fn covered<'a>(inner: &'a Inner, range: KeyRange<'_>) -> &'a [Child] {
    let first = inner.child_of(range.start);
    &inner.children()[first..inner.below(range.end).max(first)]
}

/// False if nothing below is live at `at`.
fn may_show(child: &Child, at: u64) -> bool {
    child.live > 0 || child.changed > at
}
