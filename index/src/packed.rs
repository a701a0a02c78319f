//! The newest state of a key, and how it is packed.
//!
//! A revision takes 8 bytes: 42 bits of main (139 years at a thousand a second), 21 bits of sub, and whether it is a
//! tombstone. A life (when it began, how many puts, where its history is) takes 16 more, and only where
//! something was overwritten. What does not fit is kept whole, by key, in a map beside the tree.

use crate::revision::{Hit, Life, Revision};

/// A place in the ring of superseded states, or nowhere. Places count modulo [`PLACES`]; as far fewer are
/// held at a time, none is taken for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Link(u64);

/// How many places a link tells apart.
const PLACES: u64 = (1 << LINK_BITS) - 1;

impl Link {
    /// Nothing is older.
    pub(crate) const NONE: Link = Link(0);

    /// The place of the `pushes`th push, counted from 0.
    pub(crate) fn to(pushes: u64) -> Link {
        Link(pushes % PLACES + 1)
    }

    /// How many pushes after the `from`th it was made.
    pub(crate) fn after(self, from: u64) -> Option<u64> {
        let place = self.0.checked_sub(1)?;
        Some((place + PLACES - from % PLACES) % PLACES)
    }
}

/// The newest state of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Newest {
    pub(crate) at: Revision,
    /// 0 versions is a tombstone.
    pub(crate) version: u64,
    pub(crate) created: u64,
    pub(crate) older: Link,
}

impl Newest {
    /// Of a first put.
    pub(crate) fn first(at: Revision) -> Newest {
        Newest { at, version: 1, created: at.main, older: Link::NONE }
    }

    pub(crate) fn is_live(&self) -> bool {
        self.version > 0
    }

    pub(crate) fn hit(&self) -> Option<Hit> {
        let life = Life { created: self.created, version: self.version };
        self.is_live().then_some(Hit { modified: self.at, life: Some(life) })
    }

    /// A first put of which nothing older is known: its revision says it all.
    pub(crate) fn is_plain(&self) -> bool {
        self.version == 1 && self.created == self.at.main && self.older == Link::NONE
    }
}

const SUB_BITS: u32 = 21;
const MAIN_BITS: u32 = 42;

/// Stands where a key's state is in the map beside the tree.
pub(crate) const WIDE: u64 = u64::MAX;

/// A revision, and whether it is live; None if it does not fit.
pub(crate) fn pack(at: Revision, live: bool) -> Option<u64> {
    // The largest main is left out: `WIDE` is in it.
    let fits = at.main < (1 << MAIN_BITS) - 1 && at.sub < 1 << SUB_BITS;
    fits.then_some(at.main << (SUB_BITS + 1) | u64::from(at.sub) << 1 | u64::from(!live))
}

/// Undoes [`pack`]. Not for `WIDE`.
pub(crate) fn unpack(packed: u64) -> (Revision, bool) {
    let sub = u32::try_from(packed >> 1 & ((1 << SUB_BITS) - 1)).expect("21 bits");
    (Revision { main: main_of(packed), sub }, packed & 1 == 0)
}

/// The main of a packed revision.
pub(crate) fn main_of(packed: u64) -> u64 {
    packed >> (SUB_BITS + 1)
}

const CREATED_BITS: u32 = 48;
const LINK_BITS: u32 = 40;
const VERSION_LOW_BITS: u32 = 64 - CREATED_BITS;
const VERSION_BITS: u32 = VERSION_LOW_BITS + 64 - LINK_BITS;

/// What a revision alone does not say; None if it does not fit.
pub(crate) fn pack_life(newest: &Newest) -> Option<[u64; 2]> {
    let Newest { version, created, older, .. } = *newest;
    let fits = created < 1 << CREATED_BITS && version < 1 << VERSION_BITS;
    let low = version & ((1 << VERSION_LOW_BITS) - 1);
    fits.then_some([created << VERSION_LOW_BITS | low, (version >> VERSION_LOW_BITS) << LINK_BITS | older.0])
}

/// Undoes [`pack_life`].
pub(crate) fn unpack_life(at: Revision, [first, second]: [u64; 2]) -> Newest {
    let version = (second >> LINK_BITS) << VERSION_LOW_BITS | first & ((1 << VERSION_LOW_BITS) - 1);
    let older = Link(second & ((1 << LINK_BITS) - 1));
    Newest { at, version, created: first >> VERSION_LOW_BITS, older }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_comes_back_and_what_does_not_is_refused() {
        let mains = [0, 1, (1 << 42) - 2];
        for (main, sub, live) in mains.into_iter().flat_map(|main| [(main, 0, true), (main, (1 << 21) - 1, false)]) {
            let packed = pack(Revision { main, sub }, live).unwrap();
            assert_ne!(packed, WIDE);
            assert_eq!(unpack(packed), (Revision { main, sub }, live));
        }
        assert_eq!(pack(Revision { main: (1 << 42) - 1, sub: 0 }, true), None);
        assert_eq!(pack(Revision { main: 1, sub: 1 << 21 }, true), None);
        let at = Revision { main: 7, sub: 1 };
        for (created, version) in [(0, 0), (5, 1), ((1 << 48) - 1, (1 << 40) - 1), (3, 0x1_2345)] {
            for older in [Link::NONE, Link::to(0), Link::to(PLACES - 1), Link::to(1 << 39)] {
                let newest = Newest { at, version, created, older };
                assert_eq!(unpack_life(at, pack_life(&newest).unwrap()), newest);
            }
        }
        let huge = Newest { at, version: 1 << 40, created: 1, older: Link::NONE };
        assert_eq!(pack_life(&huge), None);
    }

    #[test]
    fn links_count_on_when_places_are_used_again() {
        assert_eq!(Link::NONE.after(9), None);
        assert_eq!(Link::to(9).after(9), Some(0));
        assert_eq!(Link::to(PLACES + 3).after(PLACES - 2), Some(5));
        assert_eq!(Link::to(4).after(5), Some(PLACES - 1), "what was popped is far away");
    }
}
