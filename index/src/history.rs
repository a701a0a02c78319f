//! What was superseded, in the order in which it was.
//!
//! One ring for all keys. Each state links to its key's next older one. Compaction pops the tail; a link
//! that points behind the tail is the end of the key's history, so nothing ever has to be unlinked.
//!
//! A state takes 15 bytes: its revision packed, then how many pushes before its own the older one was, and how far what
//! superseded it is above its block's first. Blocks are freed one by one, so the ring grows and shrinks without being copied.

use crate::packed::{Link, Newest, pack, unpack};
use crate::revision::{Hit, Revision};
use std::collections::{BTreeMap, VecDeque};

/// States of a block: as many as take 14 KiB, which allocators have. Few in tests, so that there are several blocks.
#[cfg(not(test))]
const BLOCK: usize = (14 << 10) / size_of::<Packed>();
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
    /// States that do not fit 15 bytes, by the count of pushes before them.
    wide: BTreeMap<u64, Older>,
}

#[derive(Debug)]
struct Block {
    /// No state of the block was superseded earlier.
    base: u64,
    states: Vec<Packed>,
}

/// The revision, then [`BACK_BITS`] of how far back the older one is, a bit, and the rest.
type Packed = [u8; 15];

const BACK_BITS: u32 = 32;
const DELTA_BITS: u32 = 8 * (size_of::<Packed>() as u32 - 8) - BACK_BITS - 1;
const WIDE_STATE: Packed = [u8::MAX; 15];

/// A state, the older one of which was pushed `back` before it, 0 if there is none.
fn pack_state(state: &Older, base: u64, back: u64) -> Option<Packed> {
    let delta = state.superseded.checked_sub(base).filter(|delta| *delta < 1 << DELTA_BITS)?;
    let first = pack(state.at, state.live)?;
    if back >= 1 << BACK_BITS {
        return None;
    }
    let second = delta << (BACK_BITS + 1) | u64::from(state.report) << BACK_BITS | back;
    let mut packed = Packed::default();
    packed[..8].copy_from_slice(&first.to_le_bytes());
    packed[8..].copy_from_slice(&second.to_le_bytes()[..7]);
    Some(packed)
}

/// Both halves of a state.
fn halves(packed: Packed) -> (u64, u64) {
    let mut second = [0; 8];
    second[..7].copy_from_slice(&packed[8..]);
    let (first, _) = packed.split_first_chunk::<8>().expect("15 bytes");
    (u64::from_le_bytes(*first), u64::from_le_bytes(second))
}

impl Ring {
    pub(crate) fn push(&mut self, state: Older) -> Link {
        let pushes = self.pushes();
        if self.blocks.back().is_none_or(|block| block.states.len() == BLOCK) {
            self.blocks.push_back(Block { base: state.superseded, states: Vec::with_capacity(BLOCK) });
        }
        let block = self.blocks.back_mut().expect("it was just looked at");
        // What was popped is as good as none.
        let older = state.older.after(self.popped).filter(|place| *place < self.len as u64);
        let back = older.map_or(0, |place| self.len as u64 - place);
        let packed = pack_state(&state, block.base, back).unwrap_or_else(|| {
            self.wide.insert(pushes, state);
            WIDE_STATE
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
        let packed = *block.states.get(at % BLOCK)?;
        let pushes = self.popped + place as u64;
        if packed == WIDE_STATE {
            return self.wide.get(&pushes).copied();
        }
        let (first, second) = halves(packed);
        let (at, live) = unpack(first);
        let back = second & ((1 << BACK_BITS) - 1);
        let older = if back == 0 { Link::NONE } else { Link::to(pushes - back) };
        let superseded = block.base + (second >> (BACK_BITS + 1));
        Some(Older { at, live, older, superseded, report: second >> BACK_BITS & 1 == 1 })
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
        let blocks = self.blocks.len() * BLOCK * size_of::<Packed>() + self.blocks.capacity() * size_of::<Block>();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_comes_back_or_is_kept_whole() {
        let far = Older {
            at: Revision::new((1 << 42) - 2, (1 << 21) - 1),
            live: true,
            older: Link::NONE,
            superseded: (1 << DELTA_BITS) + 6,
            report: true,
        };
        let (first, second) = halves(pack_state(&far, 7, (1 << BACK_BITS) - 1).unwrap());
        assert_eq!((unpack(first), second), ((far.at, true), (1 << 56) - 1));
        assert_eq!(pack_state(&far, 6, 1), None, "superseded too late");
        assert_eq!(pack_state(&far, 7, 1 << BACK_BITS), None, "the older one too far back");
        let mut ring = Ring::default();
        for n in 0..3 * BLOCK as u64 {
            let older = if n == 0 { Link::NONE } else { Link::to(n - 1) };
            // Every other one waits for longer than fits.
            let superseded = if n % 2 == 0 { n + 1 } else { 1 << 40 };
            ring.push(Older { at: Revision::new(n, 0), live: n % 3 > 0, older, superseded, report: n % 5 > 0 });
            if n % 4 == 3 {
                assert_eq!(ring.pop().map(|state| state.at.main), Some(n / 4));
            }
        }
        let gone = 3 * BLOCK as u64 / 4;
        for n in gone..3 * BLOCK as u64 {
            let state = ring.get(Link::to(n)).unwrap();
            assert_eq!((state.at.main, state.live, state.report), (n, n % 3 > 0, n % 5 > 0));
            let older = ring.get(state.older).map(|older| older.at.main);
            assert_eq!(older, (n > gone).then(|| n - 1));
        }
    }
}
