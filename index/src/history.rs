//! What one key has been, and the ring of what was superseded.
//!
//! The ring keeps superseded revisions of all keys in the order in which they were superseded. Each
//! links to its key's next older one. Compaction pops the tail; a link that points behind the tail
//! is the end of the key's history, so nothing ever has to be unlinked.

use crate::revision::{Hit, Revision};
use std::collections::VecDeque;

/// A place in the ring: 0 is nowhere, else the count of pushes up to and including its own.
pub(crate) type Link = u64;

/// The newest state of a key.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Newest {
    pub(crate) at: Revision,
    /// 0 versions is a tombstone.
    pub(crate) version: u64,
    pub(crate) created: u64,
    pub(crate) older: Link,
}

impl Newest {
    pub(crate) fn is_live(&self) -> bool {
        self.version > 0
    }

    pub(crate) fn hit(&self) -> Option<Hit> {
        self.is_live().then_some(Hit { modified: self.at, created: self.created, version: self.version })
    }
}

/// A superseded state of a key.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Older {
    pub(crate) state: Newest,
    /// The main that superseded it.
    pub(crate) superseded: u64,
    /// False for a tombstone that the queue of graves reports.
    pub(crate) report: bool,
}

/// Superseded states, oldest superseded first.
#[derive(Debug, Default)]
pub(crate) struct Ring {
    states: VecDeque<Older>,
    popped: Link,
}

impl Ring {
    pub(crate) fn push(&mut self, older: Older) -> Link {
        self.states.push_back(older);
        self.popped + self.states.len() as u64
    }

    pub(crate) fn get(&self, link: Link) -> Option<&Older> {
        let at = link.checked_sub(self.popped + 1)?;
        self.states.get(usize::try_from(at).ok()?)
    }

    pub(crate) fn oldest(&self) -> Option<&Older> {
        self.states.front()
    }

    pub(crate) fn pop(&mut self) -> Option<Older> {
        let older = self.states.pop_front()?;
        self.popped += 1;
        if self.states.len() * 4 < self.states.capacity() && self.states.capacity() > 1024 {
            self.states.shrink_to(self.states.len() * 2);
        }
        Some(older)
    }

    pub(crate) fn len(&self) -> usize {
        self.states.len()
    }

    pub(crate) fn heap_bytes(&self) -> usize {
        self.states.capacity() * size_of::<Older>()
    }

    /// The key's state after all of main `at`, if it was live then.
    pub(crate) fn at(&self, newest: &Newest, at: u64) -> Option<Hit> {
        let mut state = newest;
        while state.at.main > at {
            state = &self.get(state.older)?.state;
        }
        state.hit()
    }
}
