//! What was superseded, in the order in which it was.
//!
//! One ring for all keys. Each state links to its key's next older one. Compaction pops the tail; a link
//! that points behind the tail is the end of the key's history, so nothing ever has to be unlinked.
//!
//! A state takes 16 bytes: its revision packed, then the link and how far what superseded it is above its
//! block's first. Blocks are freed one by one, so the ring grows and shrinks without being copied.

use crate::packed::{LINK_BITS, Link, Newest, pack, unpack};
use crate::revision::{Hit, Revision};
use std::collections::{BTreeMap, VecDeque};

/// States of a block. Small in tests, so that there are several.
#[cfg(not(test))]
const BLOCK: usize = 1024;
#[cfg(test)]
const BLOCK: usize = 4;

/// A superseded state of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Older {
    pub(crate) at: Revision,
    pub(crate) live: bool,
    pub(crate) older: Link,
    /// The main that superseded it.
    pub(crate) superseded: u64,
    /// False for a tombstone that the queue of graves reports.
    pub(crate) report: bool,
}

/// Superseded states, oldest superseded first.
#[derive(Debug, Default)]
pub(crate) struct Ring {
    /// Each is full but the last.
    blocks: VecDeque<Block>,
    /// States of the first block that were popped.
    gone: usize,
    len: usize,
    popped: u64,
    /// States that do not fit 16 bytes, by the count of pushes before them.
    wide: BTreeMap<u64, Older>,
}

#[derive(Debug)]
struct Block {
    /// No state of the block was superseded earlier.
    base: u64,
    states: Vec<[u64; 2]>,
}

const DELTA_BITS: u32 = 64 - LINK_BITS - 1;
const WIDE_STATE: u64 = u64::MAX;

fn pack_state(state: &Older, base: u64) -> Option<[u64; 2]> {
    let delta = state.superseded.checked_sub(base).filter(|delta| *delta < 1 << DELTA_BITS)?;
    let first = pack(state.at, state.live)?;
    Some([first, delta << (LINK_BITS + 1) | u64::from(state.report) << LINK_BITS | state.older.bits()])
}

impl Ring {
    pub(crate) fn push(&mut self, state: Older) -> Link {
        let pushes = self.pushes();
        if self.blocks.back().is_none_or(|block| block.states.len() == BLOCK) {
            self.blocks.push_back(Block { base: state.superseded, states: Vec::with_capacity(BLOCK) });
        }
        let block = self.blocks.back_mut().expect("it was just looked at");
        let packed = pack_state(&state, block.base).unwrap_or_else(|| {
            self.wide.insert(pushes, state);
            [WIDE_STATE; 2]
        });
        block.states.push(packed);
        self.len += 1;
        Link::to(pushes)
    }

    /// How many states were ever pushed.
    pub(crate) fn pushes(&self) -> u64 {
        self.popped + self.len as u64
    }

    fn at_place(&self, place: usize) -> Option<Older> {
        let at = place + self.gone;
        let block = self.blocks.get(at / BLOCK)?;
        let [first, second] = *block.states.get(at % BLOCK)?;
        if first == WIDE_STATE {
            return self.wide.get(&(self.popped + place as u64)).copied();
        }
        let (at, live) = unpack(first);
        let older = Link::from_bits(second & ((1 << LINK_BITS) - 1));
        let superseded = block.base + (second >> (LINK_BITS + 1));
        Some(Older { at, live, older, superseded, report: second >> LINK_BITS & 1 == 1 })
    }

    pub(crate) fn get(&self, link: Link) -> Option<Older> {
        let after = link.after(self.popped)?;
        self.at_place(usize::try_from(after).ok().filter(|place| *place < self.len)?)
    }

    pub(crate) fn oldest(&self) -> Option<Older> {
        self.at_place(0)
    }

    pub(crate) fn pop(&mut self) -> Option<Older> {
        let state = self.at_place(0)?;
        self.wide.remove(&self.popped);
        self.popped += 1;
        self.gone += 1;
        self.len -= 1;
        if self.gone == BLOCK {
            self.blocks.pop_front();
            self.gone = 0;
        }
        Some(state)
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// How many states were superseded at `main` or before. O(log n).
    pub(crate) fn superseded_by(&self, main: u64) -> usize {
        let (mut low, mut high) = (0, self.len);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.at_place(middle).is_some_and(|state| state.superseded <= main) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    pub(crate) fn heap_bytes(&self) -> usize {
        let blocks = self.blocks.len() * BLOCK * size_of::<[u64; 2]>() + self.blocks.capacity() * size_of::<Block>();
        blocks + self.wide.len() * size_of::<(u64, Older)>() * 3 / 2
    }

    /// What the key was after all of main `at`, if it was live then and `older` leads to it.
    pub(crate) fn at(&self, mut older: Link, at: u64) -> Option<Hit> {
        loop {
            let state = self.get(older)?;
            if state.at.main <= at {
                return state.live.then_some(Hit { modified: state.at, life: None });
            }
            older = state.older;
        }
    }

    /// What the key of which `newest` is the newest state was after all of main `at`.
    pub(crate) fn state_at(&self, newest: &Newest, at: u64) -> Option<Hit> {
        if newest.at.main <= at { newest.hit() } else { self.at(newest.older, at) }
    }
}
