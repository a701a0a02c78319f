//! An inner node: children in key order, found by the first bytes of their bounds.

use crate::leaf::{HEAD, Leaf, common, head_of};
use std::cmp::Ordering;
use std::ops::Range;

#[derive(Debug)]
pub(crate) enum Node {
    Leaf(Leaf),
    Inner(Box<Inner>),
}

/// Children, and an array that finds the right one.
#[derive(Debug, Default)]
pub(crate) struct Inner {
    /// What the bounds of all children but the first begin with.
    prefix: Box<[u8]>,
    /// The first 8 bytes of each child's bound after the prefix, 0 for the first child; then the next 8 of each.
    /// Bounds are short: few are alike in both, so they are hardly ever looked at themselves.
    heads: Vec<u64>,
    children: Vec<Child>,
}

/// One child of an inner node, and what it sums up.
#[derive(Debug)]
pub(crate) struct Child {
    /// No key below is lower; keys of the child before are. As short as tells them apart.
    pub(crate) low: Box<[u8]>,
    pub(crate) live: u64,
    /// The newest main at which a key below was born or died.
    pub(crate) changed: u64,
    /// No key below was written after this main.
    pub(crate) written: u64,
    pub(crate) node: Node,
}

impl Default for Node {
    fn default() -> Self {
        Node::Leaf(Leaf::default())
    }
}

/// Where the heads equal to `head` are within `range`, of heads that ascend there.
fn equal_to(head: u64, heads: &[u64], range: Range<usize>) -> (usize, usize) {
    // Counted without a branch for each.
    let from = range.start + heads[range.clone()].iter().map(|other| usize::from(*other < head)).sum::<usize>();
    let same = heads[from..range.end].iter().take_while(|other| **other == head).count();
    (from, from + same)
}

impl Inner {
    pub(crate) fn new(children: Vec<Child>) -> Self {
        let mut inner = Inner { children, ..Inner::default() };
        inner.learn();
        inner
    }

    pub(crate) fn children(&self) -> &[Child] {
        &self.children
    }

    /// A child whose bound stays.
    pub(crate) fn child_mut(&mut self, at: usize) -> &mut Child {
        &mut self.children[at]
    }

    /// The child that has `key` if any has.
    pub(crate) fn child_of(&self, key: &[u8]) -> usize {
        let Some(suffix) = key.strip_prefix(&*self.prefix) else {
            return if *key < *self.prefix { 0 } else { self.children.len() - 1 };
        };
        let (first, second) = self.heads.split_at(self.children.len());
        let (head, next) = (head_of(suffix), head_of(suffix.get(HEAD..).unwrap_or(&[])));
        // The first child is for all that is lower than the others.
        let (from, to) = equal_to(head, first, 1..first.len());
        let (from, to) = equal_to(next, second, from..to);
        from - 1 + self.children[from..to].partition_point(|child| *child.low <= *key)
    }

    /// How many children hold keys below the end of a range.
    pub(crate) fn below(&self, end: Option<&[u8]>) -> usize {
        let Some(end) = end else { return self.children.len() };
        let at = self.child_of(end);
        if self.children[at].low.as_ref().cmp(end) == Ordering::Less { at + 1 } else { at }
    }

    /// Lets the first child hold lower keys.
    pub(crate) fn lower(&mut self, key: &[u8]) {
        let first = &mut self.children[0];
        if *key < *first.low {
            first.low = key.into();
        }
    }

    /// Changes which children there are.
    pub(crate) fn edit<T>(&mut self, change: impl FnOnce(&mut Vec<Child>) -> T) -> T {
        let done = change(&mut self.children);
        self.learn();
        done
    }

    fn learn(&mut self) {
        let bounded = self.children.get(1..).unwrap_or(&[]);
        let prefix = match (bounded.first(), bounded.last()) {
            (Some(first), Some(last)) => &first.low[..common(&first.low, &last.low)],
            _ => &[],
        };
        self.heads.clear();
        for skip in [0, HEAD] {
            self.heads.extend(self.children.first().map(|_| 0));
            let suffix = |child: &Child| head_of(child.low.get(prefix.len() + skip..).unwrap_or(&[]));
            self.heads.extend(bounded.iter().map(suffix));
        }
        self.prefix = prefix.into();
    }

    /// Bytes of the node itself and its children's bounds.
    pub(crate) fn heap_bytes(&self) -> usize {
        let lows: usize = self.children.iter().map(|child| child.low.len()).sum();
        let slots = self.children.capacity() * size_of::<Child>() + self.heads.capacity() * size_of::<u64>();
        size_of::<Inner>() + self.prefix.len() + lows + slots
    }
}
