//! What changed since a revision: the way to the history of few keys among many.
//!
//! Inner nodes know the newest main written below them, so that a walk leaves out what did not change.
//! A walk stops when its budget is used up, in the middle of a long history too, and goes on from there:
//! its owner lets go of the lock in between.

use crate::inner::Node;
use crate::map::Index;
use crate::packed::Link;
use crate::revision::{KeyRange, Revision};
use crate::walk::{covered, inside};
use std::ops::ControlFlow;

/// Where a walk over changes stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resume {
    /// The first key that was not begun.
    start: Box<[u8]>,
    /// The next older state of the key before it; none if that key was finished.
    older: Link,
}

/// The walk under way.
struct Walk<'a> {
    range: KeyRange<'a>,
    from: u64,
    to: u64,
    budget: &'a mut usize,
    visit: &'a mut dyn FnMut(Revision),
}

impl Index {
    /// Shows the surviving revisions of the keys of `range` with mains in `[from, to]`, tombstones too,
    /// key by key and of each key the newest first. Looks at `budget` keys and revisions at most and takes
    /// them off it; Some is where to go on. O(log n) for each leaf that was written since `from`, and O(1)
    /// for each revision since then.
    ///
    /// Between two calls the index may change; what the walk is sure to show is what stays meanwhile.
    pub fn changes(
        &self,
        range: KeyRange<'_>,
        resume: Option<Resume>,
        (from, to): (u64, u64),
        budget: &mut usize,
        visit: &mut dyn FnMut(Revision),
    ) -> Option<Resume> {
        let (start, older) = match &resume {
            Some(resume) => (&*resume.start, resume.older),
            None => (range.start, Link::NONE),
        };
        let range = KeyRange { start, end: range.end };
        let mut walk = Walk { range, from, to, budget, visit };
        let walked = match self.beside.ring.get(older) {
            Some(state) => self.follow((state.at, state.live, state.older), || start.into(), &mut walk),
            None => ControlFlow::Continue(()),
        };
        let walked = match walked {
            ControlFlow::Continue(()) if !range.is_empty() => self.changes_in(&self.root, &mut Vec::new(), &mut walk),
            walked => walked,
        };
        walked.break_value()
    }

    fn changes_in(&self, node: &Node, buffer: &mut Vec<u8>, walk: &mut Walk<'_>) -> ControlFlow<Resume> {
        match node {
            Node::Leaf(leaf) => {
                let states = inside(leaf, walk.range).map(|place| (place, self.beside.state(leaf, place)));
                leaf.keys(states, buffer, |key, newest| {
                    if *walk.budget == 0 {
                        return ControlFlow::Break(Resume { start: key.into(), older: Link::NONE });
                    }
                    *walk.budget -= 1;
                    self.follow((newest.at, newest.is_live(), newest.older), || [key, b"\0"].concat().into(), walk)
                })
            }
            Node::Inner(inner) => {
                let from = walk.from;
                for child in covered(inner, walk.range).iter().filter(|child| child.written >= from) {
                    self.changes_in(&child.node, buffer, walk)?;
                }
                ControlFlow::Continue(())
            }
        }
    }

    /// The history of one key, from a state (when, whether live, what is older) back. `after` is the first key
    /// behind it.
    fn follow(
        &self,
        (mut at, mut live, mut older): (Revision, bool, Link),
        after: impl Fn() -> Box<[u8]>,
        walk: &mut Walk<'_>,
    ) -> ControlFlow<Resume> {
        while at.main >= walk.from {
            if at.main <= walk.to && (live || at.main >= self.swept) {
                (walk.visit)(at);
            }
            let Some(state) = self.beside.ring.get(older) else { break };
            if *walk.budget == 0 {
                return ControlFlow::Break(Resume { start: after(), older });
            }
            *walk.budget -= 1;
            (at, live, older) = (state.at, state.live, state.older);
        }
        ControlFlow::Continue(())
    }
}
