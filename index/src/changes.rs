//! What changed since a revision: the way to the history of few keys among many.
//!
//! Inner nodes know the newest main written below them, so that a walk leaves out what did not change.
//! A walk stops when its budget is used up, in the middle of a long history too, and goes on from there:
//! its owner lets go of the lock in between.

use crate::history::{Link, Newest};
use crate::map::{Index, Node, child_of};
use crate::revision::{KeyRange, Revision};
use std::ops::ControlFlow;

/// Where a walk over changes stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resume {
    /// The first key that was not begun.
    start: Box<[u8]>,
    /// The next older state of the key before it; 0 if that key was finished.
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
            None => (range.start, 0),
        };
        let range = KeyRange { start, end: range.end };
        let mut walk = Walk { range, from, to, budget, visit };
        let walked = match self.ring.get(older) {
            Some(older) => self.follow(&older.state, || start.into(), &mut walk),
            None => ControlFlow::Continue(()),
        };
        let walked = match walked {
            ControlFlow::Continue(()) if !range.is_empty() => self.changes_in(&self.root, &mut walk),
            walked => walked,
        };
        walked.break_value()
    }

    fn changes_in(&self, node: &Node, walk: &mut Walk<'_>) -> ControlFlow<Resume> {
        let (range, from) = (walk.range, walk.from);
        match node {
            Node::Leaf(entries) => {
                let first = entries.partition_point(|entry| *entry.key < *range.start);
                for entry in entries[first..].iter().take_while(|entry| range.is_below_end(&entry.key)) {
                    if *walk.budget == 0 {
                        return ControlFlow::Break(Resume { start: entry.key.clone(), older: 0 });
                    }
                    *walk.budget -= 1;
                    let after = || [&entry.key[..], b"\0"].concat().into();
                    self.follow(&entry.newest, after, walk)?;
                }
            }
            Node::Inner(children) => {
                let first = child_of(children, range.start);
                let end = children.partition_point(|child| range.is_below_end(&child.low));
                for child in children[first..end.max(first)].iter().filter(|child| child.written >= from) {
                    self.changes_in(&child.node, walk)?;
                }
            }
        }
        ControlFlow::Continue(())
    }

    /// The history of one key, from `state` back. `after` is the first key behind it.
    fn follow(&self, state: &Newest, after: impl Fn() -> Box<[u8]>, walk: &mut Walk<'_>) -> ControlFlow<Resume> {
        let mut state = state;
        while state.at.main >= walk.from {
            if state.at.main <= walk.to && (state.is_live() || state.at.main >= self.swept) {
                (walk.visit)(state.at);
            }
            let Some(older) = self.ring.get(state.older) else { break };
            if *walk.budget == 0 {
                return ControlFlow::Break(Resume { start: after(), older: state.older });
            }
            *walk.budget -= 1;
            state = &older.state;
        }
        ControlFlow::Continue(())
    }
}
