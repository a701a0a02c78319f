//! Keys in order, and how many there are, at any revision from the compacted one on.

use crate::map::{Child, Index, Node, child_of};
use crate::revision::{Hit, KeyRange};
use std::ops::ControlFlow;

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
            let _stopped = self.ascend(&self.root, range, at, visit);
        }
    }

    /// Like `walk`, descending.
    pub fn walk_back(&self, range: KeyRange<'_>, at: u64, visit: &mut dyn FnMut(&[u8], Hit) -> ControlFlow<()>) {
        if !range.is_empty() {
            let _stopped = self.descend(&self.root, range, at, visit);
        }
    }

    /// How many keys of `range` are live at main `at`. O(log n) at the newest revision; at an older
    /// one it looks into what was born or died since.
    pub fn count(&self, range: KeyRange<'_>, at: u64) -> u64 {
        if range.is_empty() { 0 } else { self.count_in(&self.root, range, at) }
    }

    fn ascend(
        &self,
        node: &Node,
        range: KeyRange<'_>,
        at: u64,
        visit: &mut dyn FnMut(&[u8], Hit) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        visited();
        match node {
            Node::Leaf(entries) => {
                let first = entries.partition_point(|entry| *entry.key < *range.start);
                for entry in entries[first..].iter().take_while(|entry| range.is_below_end(&entry.key)) {
                    if let Some(hit) = self.ring.at(&entry.newest, at) {
                        visit(&entry.key, hit)?;
                    }
                }
            }
            Node::Inner(children) => {
                for child in covered(children, range).iter().filter(|child| may_show(child, at)) {
                    self.ascend(&child.node, range, at, visit)?;
                }
            }
        }
        ControlFlow::Continue(())
    }

    fn descend(
        &self,
        node: &Node,
        range: KeyRange<'_>,
        at: u64,
        visit: &mut dyn FnMut(&[u8], Hit) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        visited();
        match node {
            Node::Leaf(entries) => {
                for entry in entries.iter().rev().filter(|entry| range.contains(&entry.key)) {
                    if let Some(hit) = self.ring.at(&entry.newest, at) {
                        visit(&entry.key, hit)?;
                    }
                }
            }
            Node::Inner(children) => {
                for child in covered(children, range).iter().rev().filter(|child| may_show(child, at)) {
                    self.descend(&child.node, range, at, visit)?;
                }
            }
        }
        ControlFlow::Continue(())
    }

    fn count_in(&self, node: &Node, range: KeyRange<'_>, at: u64) -> u64 {
        visited();
        match node {
            Node::Leaf(entries) => {
                let first = entries.partition_point(|entry| *entry.key < *range.start);
                let inside = entries[first..].iter().take_while(|entry| range.is_below_end(&entry.key));
                inside.filter(|entry| self.ring.at(&entry.newest, at).is_some()).count() as u64
            }
            Node::Inner(children) => {
                let covered = covered(children, range);
                let last = covered.len().saturating_sub(1);
                let mut count = 0;
                for (which, child) in covered.iter().enumerate() {
                    // All but the outermost lie inside the range; those may stick out.
                    let whole = (which > 0 || *child.low >= *range.start) && (which < last || range.end.is_none());
                    count +=
                        if whole && child.changed <= at { child.live } else { self.count_in(&child.node, range, at) };
                }
                count
            }
        }
    }
}

/// The children that may hold keys of the range.
fn covered<'a>(children: &'a [Child], range: KeyRange<'_>) -> &'a [Child] {
    let first = child_of(children, range.start);
    let end = children.partition_point(|child| range.is_below_end(&child.low));
    &children[first..end.max(first)]
}

/// False if nothing below is live at `at`.
fn may_show(child: &Child, at: u64) -> bool {
    child.live > 0 || child.changed > at
}
