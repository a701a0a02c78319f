//! Which units of a tree file are free.
//!
//! Free space is not stored: it is what no page of the tree reaches, found by the opening scan (R8).
//! Until that scan a file only grows. Extents are kept by place and by length, so allocation and
//! release cost O(log n) of the number of free extents, whatever the size of the file. Units that a
//! checkpoint gave up wait in [`pending`] until nobody can reach them any more.

pub mod pending;

use crate::error::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};

/// A run of units.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Extent {
    /// The first unit.
    pub unit: u32,
    /// How many.
    pub units: u32,
}

/// The free extents of one file, and where it ends.
#[derive(Debug)]
pub struct FreeSpace {
    by_place: BTreeMap<u32, u32>,
    by_length: BTreeSet<(u32, u32)>,
    end: u32,
    free: u64,
    known: bool,
    /// Where the last allocation ended.
    next: u32,
    low: bool,
}

/// How many free extents are looked at from the lowest on before a longer one further up is taken.
const LOOKS: usize = 64;
/// A free extent of so many units is long: it takes many pages one after the other, which are written together.
const LONG_UNITS: u32 = 64;
/// While short extents are less than one in so many units, a file that has more than a few long ones' length grows
/// instead of taking them: each would be a write of its own.
const SHORT_SHARE: u64 = 8;
const SMALL_FILE_UNITS: u32 = 16 * LONG_UNITS;

impl FreeSpace {
    /// A file of which nothing is known but its end: it only grows.
    pub fn unknown(end: u32) -> Self {
        FreeSpace {
            by_place: BTreeMap::new(),
            by_length: BTreeSet::new(),
            end,
            free: 0,
            known: false,
            next: 0,
            low: false,
        }
    }

    /// Everything below the end that is in none of `used` is free. `used` need not be sorted; an
    /// extent that is there twice or overlaps another is an error that names it.
    pub fn learn(&mut self, used: &mut [Extent]) -> Result<(), Extent> {
        used.sort_unstable();
        let mut at = 0;
        let mut gaps = Vec::new();
        for extent in used.iter() {
            if extent.unit < at {
                return Err(*extent);
            }
            if extent.unit > at {
                gaps.push(Extent { unit: at, units: extent.unit - at });
            }
            at = extent.unit.saturating_add(extent.units);
        }
        if at > self.end {
            return Err(Extent { unit: self.end, units: at - self.end });
        }
        if at < self.end {
            gaps.push(Extent { unit: at, units: self.end - at });
        }
        self.by_place.clear();
        self.by_length.clear();
        self.free = 0;
        self.known = true;
        for gap in gaps {
            self.release(gap);
        }
        Ok(())
    }

    /// True once the opening scan told what is free.
    pub fn is_known(&self) -> bool {
        self.known
    }

    /// From now on low places are taken before long runs (true), so that the file can be cut at its end, or because
    /// the disk has no room for it to grow.
    pub fn prefer_low(&mut self, low: bool) {
        self.low = low;
    }

    /// Takes `units` in one run: behind the last that was taken, else in the lowest long extent, so that what is
    /// taken together is written together. Without one the end of the file, while little is free in short extents.
    /// Else, or where low places are preferred, the lowest extent that has them; after `LOOKS` that are too short
    /// the shortest that has them, or the end of the file.
    pub fn allocate(&mut self, units: u32) -> Result<u32> {
        let found = if self.low { None } else { self.run(units) };
        let grows = !self.low && self.end > SMALL_FILE_UNITS && self.free * SHORT_SHARE < u64::from(self.end);
        let found = if grows { found } else { found.or_else(|| self.first_of(units)) };
        if let Some((len, unit)) = found {
            self.remove(Extent { unit, units: len });
            if len > units {
                self.insert(Extent { unit: unit + units, units: len - units });
            }
            self.next = unit + units;
            return Ok(unit);
        }
        let unit = self.end;
        let too_large = Error::TooLarge {
            what: "a tree file (in 4 KiB units)",
            size: u64::from(unit) + u64::from(units),
            max: u64::from(u32::MAX),
        };
        self.end = unit.checked_add(units).ok_or(too_large)?;
        Ok(unit)
    }

    fn run(&self, units: u32) -> Option<(u32, u32)> {
        let next = self.by_place.get(&self.next).filter(|len| **len >= units);
        next.map(|&len| (len, self.next)).or_else(|| self.first_of(units.max(LONG_UNITS)))
    }

    /// The length and place of the first extent that has so many units, in the order of [`FreeSpace::allocate`].
    fn first_of(&self, units: u32) -> Option<(u32, u32)> {
        let lowest = self.by_place.iter().take(LOOKS).find(|(_, len)| **len >= units);
        lowest.map(|(&unit, &len)| (len, unit)).or_else(|| self.by_length.range((units, 0)..).next().copied())
    }

    /// Gives units back; they may be taken at once.
    pub fn release(&mut self, extent: Extent) {
        let Extent { mut unit, mut units } = extent;
        if units == 0 {
            return;
        }
        if let Some((&before, &len)) = self.by_place.range(..unit).next_back() {
            assert!(before + len <= unit, "unit {unit} is freed twice");
            if before + len == unit {
                self.remove(Extent { unit: before, units: len });
                unit = before;
                units += len;
            }
        }
        if let Some((&after, &len)) = self.by_place.range(unit..).next() {
            assert!(unit + units <= after, "unit {after} is freed twice");
            if unit + units == after {
                self.remove(Extent { unit: after, units: len });
                units += len;
            }
        }
        self.insert(Extent { unit, units });
    }

    /// Cuts free units off the end; returns the new end.
    pub fn trim(&mut self) -> u32 {
        self.trim_to(0)
    }

    /// The same, down to `low` at most.
    pub fn trim_to(&mut self, low: u32) -> u32 {
        if let Some((&unit, &units)) = self.by_place.last_key_value()
            && unit + units == self.end
            && low < self.end
        {
            self.remove(Extent { unit, units });
            self.end = unit.max(low);
            if low > unit {
                self.insert(Extent { unit, units: low - unit });
            }
        }
        self.end
    }

    /// The end that [`FreeSpace::trim`] would leave.
    pub fn trimmed(&self) -> u32 {
        let last = self.by_place.last_key_value().filter(|(unit, units)| *unit + *units == self.end);
        last.map_or(self.end, |(unit, _)| *unit)
    }

    /// The first unit after the last one in use.
    pub fn end(&self) -> u32 {
        self.end
    }

    /// How many units are free below the end.
    pub fn free(&self) -> u64 {
        self.free
    }

    /// The free extents by place.
    pub fn extents(&self) -> impl Iterator<Item = Extent> + '_ {
        self.by_place.iter().map(|(&unit, &units)| Extent { unit, units })
    }

    fn insert(&mut self, extent: Extent) {
        self.by_place.insert(extent.unit, extent.units);
        self.by_length.insert((extent.units, extent.unit));
        self.free += u64::from(extent.units);
    }

    fn remove(&mut self, extent: Extent) {
        self.by_place.remove(&extent.unit);
        self.by_length.remove(&(extent.units, extent.unit));
        self.free -= u64::from(extent.units);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::seeded::Rng;

    #[test]
    fn units_are_free_or_taken_exactly_once() {
        let mut space = FreeSpace::unknown(1);
        let mut rng = Rng::new(3);
        let mut taken: Vec<Extent> = Vec::new();
        for _ in 0..if cfg!(miri) { 200 } else { 5_000 } {
            if rng.one_in(2) || taken.is_empty() {
                let units = 1 + rng.below(5) as u32;
                taken.push(Extent { unit: space.allocate(units).unwrap(), units });
            } else {
                let at = rng.below(taken.len() as u64) as usize;
                space.release(taken.swap_remove(at));
            }
            let used: u64 = taken.iter().map(|extent| u64::from(extent.units)).sum();
            assert_eq!(used + space.free() + 1, u64::from(space.end()));
        }
        let mut all = taken.clone();
        all.push(Extent { unit: 0, units: 1 });
        let mut learned = FreeSpace::unknown(space.end());
        learned.learn(&mut all).unwrap();
        assert!(learned.extents().eq(space.extents()));
        all.push(taken[0]);
        assert!(learned.learn(&mut all).is_err());
    }

    #[test]
    fn what_is_taken_together_lies_together_unless_low_places_are_preferred() {
        let mut space = FreeSpace::unknown(1000);
        (0..20).for_each(|n| space.release(Extent { unit: 10 + 4 * n, units: 2 }));
        space.release(Extent { unit: 200, units: LONG_UNITS });
        space.release(Extent { unit: 400, units: LONG_UNITS + 10 });
        let mut take = |low, units| {
            space.prefer_low(low);
            space.allocate(units).unwrap()
        };
        assert_eq!([take(false, 2), take(false, 2), take(false, 30), take(false, 30)], [200, 202, 204, 234]);
        assert_eq!([take(false, 2), take(false, 2)], [400, 402]);
        assert_eq!([take(true, 2), take(true, 2), take(true, 3)], [10, 14, 404]);
        // Behind that there is room, though the extent is long no more.
        assert_eq!([take(false, 2), take(false, 60)], [407, 409]);
        // Where that was goes on after the end of the file was needed.
        assert_eq!([take(false, 2), take(false, 4), take(false, 2)], [469, 1000, 471]);
    }

    #[test]
    fn a_large_file_grows_before_what_is_written_together_is_scattered_over_holes() {
        let end = 2 * SMALL_FILE_UNITS;
        let mut space = FreeSpace::unknown(end);
        let holes = end / SHORT_SHARE as u32 / 2;
        (0..holes).for_each(|n| space.release(Extent { unit: 10 + 4 * n, units: 2 }));
        let taken = |space: &mut FreeSpace| space.allocate(2).unwrap();
        assert_eq!(taken(&mut space), 10, "an eighth of the file is free");
        assert_eq!([taken(&mut space), taken(&mut space)], [end, end + 2]);
        space.prefer_low(true);
        assert_eq!(taken(&mut space), 14);
        let mut small = FreeSpace::unknown(SMALL_FILE_UNITS);
        small.release(Extent { unit: 10, units: 2 });
        assert_eq!(taken(&mut small), 10);
    }

    #[test]
    fn the_lowest_extent_that_fits_is_taken_or_the_shortest() {
        let mut space = FreeSpace::unknown(100);
        space.release(Extent { unit: 10, units: 8 });
        space.release(Extent { unit: 40, units: 3 });
        assert_eq!(space.allocate(3).unwrap(), 10);
        assert_eq!(space.allocate(9).unwrap(), 100);
        space.release(Extent { unit: 100, units: 9 });
        assert_eq!(space.trim(), 100);
        assert_eq!(space.allocate(5).unwrap(), 13);
        let far = 200 + 3 * u32::try_from(LOOKS).unwrap();
        let mut space = FreeSpace::unknown(2 * far);
        (0..LOOKS as u32).for_each(|n| space.release(Extent { unit: 2 + 2 * n, units: 1 }));
        space.release(Extent { unit: far, units: 9 });
        space.release(Extent { unit: far + 20, units: 2 });
        assert_eq!(space.allocate(2).unwrap(), far + 20);
    }
}
