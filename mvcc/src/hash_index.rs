//! The newest rows of a shard's keys by hash: what a get looks up instead of walking down the ordered index.
//!
//! A slot is one word: part of a key's hash, and the revision of its newest row. The row itself says which key it is of,
//! and whoever looks something up has to read it anyhow, so no key is kept here: what is found is a guess until the row
//! confirms it. Of `n` keys about `n` in 2^31 share what is kept of their hashes. Nothing has to be here either: a key that
//! is not found is looked for in the ordered index. So is one whose revision does not fit, as in a txn of many changes,
//! and one that too many crowd out. Nobody gains by keys that are made to have the same hash.
//!
//! Slots lie in stripes, chosen by ten bits of the hash; within one they are probed in line from a place that grows with
//! the next bits (Knuth, TAOCP vol. 3, 6.4, algorithms L and R). So a stripe takes the bits that place a slot out of the slot
//! itself, and grows or shrinks without a look at any key: by a fifth, in time that goes with a thousandth of all keys.
//!
//! There is one writer at a time, and readers take no lock. A reader that asks for what was newest at revision `r`, after it
//! has seen that `r` is visible, finds of a key either that row or a newer one, which it leaves aside: the older ones were
//! taken out before `r` was shown. While slots move it may find nothing, and then asks the ordered index.

use arc_swap::ArcSwap;
use polybolt_engine::disk::os::load_shared_soon;
use polybolt_engine::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use polybolt_index::Revision;
use std::sync::{Arc, OnceLock};
use xxhash_rust::xxh3::xxh3_64_with_seed;

#[cfg(not(any(feature = "loom", feature = "shuttle")))]
const STRIPE_BITS: u32 = 10;
/// Few, as an explorer looks at each.
#[cfg(any(feature = "loom", feature = "shuttle"))]
const STRIPE_BITS: u32 = 1;
const TAG_BITS: u32 = 21;
const MAIN_BITS: u32 = 40;
const SUB_BITS: u32 = u64::BITS - TAG_BITS - MAIN_BITS;
/// Slots of the smallest stripe.
const SLOTS_MIN: usize = 8;
/// So far from where it is looked for first a slot is at most. In a stripe as full as any may be, few would be further.
const PROBES_MAX: usize = 128;
/// So many rows of other keys are read for one at most.
const WRONG_MAX: usize = 4;

/// The newest rows of keys by hash.
#[derive(Debug)]
pub struct HashIndex {
    seed: u64,
    /// None before it is [begun](HashIndex::begin): small indexes need none.
    stripes: OnceLock<Box<[ArcSwap<Stripe>]>>,
}

#[derive(Debug)]
struct Stripe {
    /// 0 is empty.
    slots: Box<[AtomicU64]>,
    used: AtomicUsize,
}

/// A key's hash.
#[derive(Debug, Clone, Copy)]
struct Hash {
    stripe: usize,
    tag: u64,
}

impl Hash {
    fn slot(self, at: Revision) -> Option<u64> {
        let fits = (1..1 << MAIN_BITS).contains(&at.main) && at.sub < 1 << SUB_BITS;
        fits.then_some(self.tag << (MAIN_BITS + SUB_BITS) | at.main << SUB_BITS | u64::from(at.sub))
    }
}

fn tag_of(slot: u64) -> u64 {
    slot >> (MAIN_BITS + SUB_BITS)
}

fn revision_of(slot: u64) -> Revision {
    let sub = (slot & ((1 << SUB_BITS) - 1)) as u32;
    Revision { main: slot >> SUB_BITS & ((1 << MAIN_BITS) - 1), sub }
}

impl Stripe {
    fn new(len: usize) -> Self {
        Stripe { slots: (0..len).map(|_| AtomicU64::new(0)).collect(), used: AtomicUsize::new(0) }
    }

    /// Where a slot is looked for first.
    fn home(&self, tag: u64) -> usize {
        ((tag * self.slots.len() as u64) >> TAG_BITS) as usize
    }

    fn after(&self, place: usize) -> usize {
        if place + 1 == self.slots.len() { 0 } else { place + 1 }
    }

    /// How far `place` is behind `from`, as slots are probed.
    fn behind(&self, from: usize, place: usize) -> usize {
        if place >= from { place - from } else { place + self.slots.len() - from }
    }

    /// What is in line for a tag, with its place.
    fn probe(&self, tag: u64) -> impl Iterator<Item = (usize, u64)> + '_ {
        let mut next = self.home(tag);
        let mut step = move || {
            let place = next;
            next = self.after(place);
            // With what the writer did before it was shown to anybody.
            let slot = self.slots[place].load(Ordering::Acquire);
            (slot != 0).then_some((place, slot))
        };
        (0..self.slots.len().min(PROBES_MAX)).map_while(move |_| step())
    }

    fn place_of(&self, slot: u64) -> Option<usize> {
        self.probe(tag_of(slot)).find(|(_, other)| *other == slot).map(|(place, _)| place)
    }

    fn put(&self, place: usize, slot: u64) {
        self.slots[place].store(slot, Ordering::Release);
    }

    /// Adds a slot, unless too many are in its line.
    fn insert(&self, slot: u64) {
        let mut place = self.home(tag_of(slot));
        for _ in 0..self.slots.len().min(PROBES_MAX) {
            if self.slots[place].load(Ordering::Relaxed) == 0 {
                self.put(place, slot);
                self.used.fetch_add(1, Ordering::Relaxed);
                return;
            }
            place = self.after(place);
        }
    }

    /// Takes a slot out, and closes the gap in line.
    fn remove(&self, mut gap: usize) {
        let mut place = gap;
        loop {
            place = self.after(place);
            let slot = self.slots[place].load(Ordering::Relaxed);
            if slot == 0 {
                break;
            }
            if self.behind(self.home(tag_of(slot)), place) >= self.behind(gap, place) {
                self.put(gap, slot);
                gap = place;
            }
        }
        self.put(gap, 0);
        self.used.fetch_sub(1, Ordering::Relaxed);
    }

    /// The same slots in a stripe of the right size for them and for `more`; None if this one has it.
    fn sized(&self, more: usize) -> Option<Stripe> {
        let (used, len) = (self.used.load(Ordering::Relaxed) + more, self.slots.len());
        let full = used > len - len / 8;
        if !full && (len == SLOTS_MIN || used >= len / 3) {
            return None;
        }
        let sized = Stripe::new(slots_for(used));
        self.slots
            .iter()
            .map(|slot| slot.load(Ordering::Relaxed))
            .filter(|slot| *slot != 0)
            .for_each(|slot| sized.insert(slot));
        Some(sized)
    }
}

/// Slots of a stripe that has so many to keep.
fn slots_for(used: usize) -> usize {
    used.saturating_add(used / 8 * 3).max(SLOTS_MIN)
}

impl HashIndex {
    /// Of nothing, not begun. Keys that crowd each other under one seed do not under another.
    pub fn new(seed: u64) -> Self {
        HashIndex { seed, stripes: OnceLock::new() }
    }

    /// True once there is something to look up in.
    pub fn is_begun(&self) -> bool {
        self.stripes.get().is_some()
    }

    /// Begins with the newest rows that `keys` shows, about `expected`. Does nothing if it was begun before.
    ///
    /// Requires: the only writer.
    pub fn begin(&self, expected: u64, keys: impl FnOnce(&mut dyn FnMut(&[u8], Revision))) {
        if self.is_begun() {
            return;
        }
        let begun = HashIndex::new(self.seed);
        let each = usize::try_from(expected >> STRIPE_BITS).unwrap_or(usize::MAX);
        let empty = || ArcSwap::from_pointee(Stripe::new(slots_for(each)));
        let stripes = begun.stripes.get_or_init(|| (0..1 << STRIPE_BITS).map(|_| empty()).collect());
        keys(&mut |key, at| begun.change_in(stripes, key, None, Some(at)));
        // Nobody sees it before it is whole.
        if let Some(stripes) = begun.stripes.into_inner() {
            drop(self.stripes.set(stripes));
        }
    }

    /// The newest row of a key was `before` and is `now`, if it is live. O(1) amortized, O(keys / 1024) when a stripe grows.
    ///
    /// Requires: the only writer; nobody was told yet that `now` is visible.
    pub fn change(&self, key: &[u8], before: Option<Revision>, now: Option<Revision>) {
        if let Some(stripes) = self.stripes.get() {
            self.change_in(stripes, key, before, now);
        }
    }

    fn change_in(&self, stripes: &[ArcSwap<Stripe>], key: &[u8], before: Option<Revision>, now: Option<Revision>) {
        let hash = self.hash(key);
        let of_stripe = &stripes[hash.stripe];
        let stripe = of_stripe.load();
        let place = before.and_then(|before| stripe.place_of(hash.slot(before)?));
        match (place, now.and_then(|now| hash.slot(now))) {
            (Some(place), Some(slot)) => return stripe.put(place, slot),
            (Some(place), None) => stripe.remove(place),
            (None, Some(slot)) => {
                if let Some(sized) = stripe.sized(1) {
                    sized.insert(slot);
                    return of_stripe.store(Arc::new(sized));
                }
                return stripe.insert(slot);
            }
            (None, None) => return,
        }
        if let Some(sized) = stripe.sized(0) {
            of_stripe.store(Arc::new(sized));
        }
    }

    /// Shows `see` what may be the newest row of a key as of main `at`, until it says that it is: a few rows at most. O(1).
    ///
    /// Requires: `at` was visible before.
    pub fn find<T>(&self, key: &[u8], at: u64, see: impl FnMut(Revision) -> Option<T>) -> Option<T> {
        let stripes = self.stripes.get()?;
        let hash = self.hash(key);
        let stripe = stripes[hash.stripe].load();
        let rows =
            stripe.probe(hash.tag).filter(|(_, slot)| tag_of(*slot) == hash.tag).map(|(_, slot)| revision_of(slot));
        rows.filter(|row| row.main <= at).take(WRONG_MAX).find_map(see)
    }

    /// Begins to load what a change of a key will look at: to wait for that takes as long as the rest of a put.
    pub fn load_soon(&self, key: &[u8]) {
        if let Some(stripes) = self.stripes.get() {
            let hash = self.hash(key);
            let stripe = stripes[hash.stripe].load();
            load_shared_soon(&stripe.slots[stripe.home(hash.tag)]);
        }
    }

    /// Bytes of memory, but for what the allocator adds. O(1) of the number of keys.
    pub fn bytes(&self) -> usize {
        let bytes = |stripe: &ArcSwap<Stripe>| {
            // An `Arc` counts twice.
            stripe.load().slots.len() * size_of::<AtomicU64>()
                + size_of::<Stripe>()
                + 2 * size_of::<usize>()
                + size_of_val(stripe)
        };
        self.stripes.get().map_or(0, |stripes| stripes.iter().map(bytes).sum())
    }

    /// In which stripe a key is looked for, and where first.
    #[cfg(all(test, feature = "loom"))]
    pub(crate) fn home(&self, key: &[u8]) -> Option<(usize, usize)> {
        let hash = self.hash(key);
        Some((hash.stripe, self.stripes.get()?[hash.stripe].load().home(hash.tag)))
    }

    fn hash(&self, key: &[u8]) -> Hash {
        let hash = xxh3_64_with_seed(key, self.seed);
        let tag = hash >> (u64::BITS - STRIPE_BITS - TAG_BITS) & ((1 << TAG_BITS) - 1);
        Hash { stripe: (hash >> (u64::BITS - STRIPE_BITS)) as usize, tag }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn found(index: &HashIndex, key: &[u8], at: u64) -> Vec<Revision> {
        let mut all = Vec::new();
        assert_eq!(
            index.find(key, at, |row| {
                all.push(row);
                None::<()>
            }),
            None
        );
        all
    }

    #[test]
    fn what_does_not_fit_is_not_there() {
        let index = HashIndex::new(7);
        index.change(b"early", None, Some(Revision::new(1, 0)));
        assert!(!index.is_begun() && index.bytes() == 0 && found(&index, b"early", 9).is_empty());
        index.begin(0, |see| see(b"k", Revision::new(2, 0)));
        index.begin(1, |_| panic!("it was begun"));
        assert_eq!(found(&index, b"k", 2), [Revision::new(2, 0)]);
        assert!(found(&index, b"k", 1).is_empty(), "a newer one is left aside");
        for wide in [Revision::new(1 << MAIN_BITS, 0), Revision::new(3, 1 << SUB_BITS), Revision::new(0, 0)] {
            index.change(b"k", Some(Revision::new(2, 0)), Some(wide));
            assert!(found(&index, b"k", u64::MAX).is_empty());
            index.change(b"k", Some(wide), Some(Revision::new(2, 0)));
            assert_eq!(found(&index, b"k", 2), [Revision::new(2, 0)]);
        }
        let widest = Revision::new((1 << MAIN_BITS) - 1, (1 << SUB_BITS) - 1);
        index.change(b"k", Some(Revision::new(2, 0)), Some(widest));
        assert_eq!(found(&index, b"k", u64::MAX), [widest]);
    }

    #[test]
    fn it_takes_twelve_bytes_a_key_at_most_and_gives_them_back() {
        const KEYS: u64 = 200_000;
        let index = HashIndex::new(1);
        index.begin(0, |_| ());
        let empty = index.bytes();
        for n in 0..KEYS {
            index.change(&n.to_be_bytes(), None, Some(Revision::new(n + 1, 0)));
            assert!(
                n % 10_000 != 9_999 || index.bytes() < 12 * n as usize + empty,
                "{} bytes of {n} keys",
                index.bytes()
            );
        }
        let (mut probes, mut wrong, mut left_out) = (0, 0, 0);
        for n in 0..KEYS {
            let hash = index.hash(&n.to_be_bytes());
            let stripe = index.stripes.get().unwrap()[hash.stripe].load();
            let slot = hash.slot(Revision::new(n + 1, 0)).unwrap();
            match stripe.probe(hash.tag).position(|(_, other)| other == slot) {
                Some(before) => probes += 1 + before as u64,
                None => left_out += 1,
            }
            wrong += found(&index, &n.to_be_bytes(), KEYS).iter().filter(|row| row.main != n + 1).count() as u64;
        }
        assert!(probes < 5 * KEYS, "{probes} probes");
        assert!(left_out < KEYS / 1000, "{left_out} keys are left out");
        assert!(wrong < KEYS / 1000, "{wrong} rows of other keys");
        for n in 0..KEYS {
            index.change(&n.to_be_bytes(), Some(Revision::new(n + 1, 0)), None);
        }
        assert_eq!(index.bytes(), empty);
    }

    /// Stripes grow, slots move and stripes shrink under readers. Revisions tell which key they are of.
    #[test]
    fn readers_find_what_is_newest_or_nothing_while_all_is_moved() {
        const KEYS: u64 = 30_000;
        let (index, visible, found) = (HashIndex::new(9), AtomicU64::new(0), AtomicU64::new(0));
        index.begin(0, |_| ());
        let row = |round: u64, key: u64| Revision::new(round * KEYS + key + 1, 0);
        std::thread::scope(|scope| {
            for reader in 0..2 {
                let (index, visible, found) = (&index, &visible, &found);
                scope.spawn(move || {
                    let mut n = reader;
                    loop {
                        let at = visible.load(Ordering::Acquire);
                        if at == 3 * KEYS {
                            return;
                        }
                        n += 1;
                        let key = n * 7919 % KEYS;
                        // Put in round 0, overwritten in round 1, deleted in round 2.
                        let newest = (0..3).rev().find(|round| row(*round, key).main <= at);
                        index.find(&key.to_be_bytes(), at, |seen| {
                            let of_key = (seen.main - 1) % KEYS == key;
                            if of_key {
                                assert_eq!(Some(seen), newest.filter(|round| *round < 2).map(|round| row(round, key)));
                                found.fetch_add(1, Ordering::Relaxed);
                            }
                            of_key.then_some(())
                        });
                    }
                });
            }
            for (round, key) in (0..3).flat_map(|round| (0..KEYS).map(move |key| (round, key))) {
                let before = (round > 0).then(|| row(round - 1, key));
                index.change(&key.to_be_bytes(), before, (round < 2).then(|| row(round, key)));
                visible.store(row(round, key).main, Ordering::Release);
                if key % 1024 == 0 {
                    std::thread::yield_now();
                }
            }
        });
        assert!(found.load(Ordering::Relaxed) > 0);
    }

    #[test]
    fn keys_that_crowd_are_left_out() {
        let stripe = Stripe::new(4 * PROBES_MAX);
        (1..=2 * PROBES_MAX as u64).for_each(|slot| stripe.insert(slot));
        assert_eq!(stripe.used.load(Ordering::Relaxed), PROBES_MAX);
        assert!(stripe.place_of(PROBES_MAX as u64).is_some() && stripe.place_of(PROBES_MAX as u64 + 1).is_none());
        stripe.remove(stripe.place_of(1).unwrap());
        assert_eq!(stripe.probe(0).count(), PROBES_MAX - 1);
        assert!((2..=PROBES_MAX as u64).all(|slot| stripe.place_of(slot).is_some()));
    }

    proptest! {
        /// Of each key exactly its newest row is found, among those of keys that share its part of the hash.
        #[test]
        fn it_finds_what_a_map_has(
            changes in prop::collection::vec((0u8..60, any::<bool>(), 0u32..10), 1..400),
            early in 0usize..100,
        ) {
            let index = HashIndex::new(3);
            let mut model: HashMap<u8, Revision> = HashMap::new();
            for (n, (key, live, sub)) in changes.into_iter().enumerate() {
                if n == early {
                    index.begin(model.len() as u64, |see| model.iter().for_each(|(key, at)| see(&[*key], *at)));
                }
                let now = live.then_some(Revision::new(n as u64 + 1, sub));
                let before = match now {
                    Some(now) => model.insert(key, now),
                    None => model.remove(&key),
                };
                index.change(&[key], before, now);
                if n >= early {
                    for key in 0..60 {
                        let row = model.get(&key).filter(|row| row.sub < 1 << SUB_BITS);
                        let all = found(&index, &[key], u64::MAX);
                        prop_assert!(row.is_none_or(|row| all.contains(row)));
                        prop_assert!(all.iter().all(|row| model.values().any(|other| other == row)));
                    }
                }
            }
        }
    }

    proptest! {
        /// Slots of one stripe, whose places crowd.
        #[test]
        fn a_stripe_keeps_what_is_in_line_together(tags in prop::collection::vec((0u64..64, any::<bool>()), 1..100)) {
            let mut stripe = Stripe::new(SLOTS_MIN);
            let mut model = std::collections::BTreeSet::new();
            for (n, (tag, keep)) in (1..).zip(tags) {
                // All at the end and the beginning.
                let tag = ((tag << (TAG_BITS - 3)) % (1 << TAG_BITS)) | (tag & 1);
                let slot = tag << (MAIN_BITS + SUB_BITS) | n;
                stripe = stripe.sized(1).unwrap_or(stripe);
                stripe.insert(slot);
                model.insert(slot);
                if !keep {
                    let gone = *model.iter().nth(n as usize % model.len()).unwrap();
                    model.remove(&gone);
                    stripe.remove(stripe.place_of(gone).unwrap());
                    stripe = stripe.sized(0).unwrap_or(stripe);
                }
                prop_assert_eq!(stripe.used.load(Ordering::Relaxed), model.len());
                prop_assert!(stripe.slots.len() == SLOTS_MIN || model.len() * 3 >= stripe.slots.len());
                for slot in &model {
                    prop_assert!(stripe.place_of(*slot).is_some());
                }
            }
        }
    }
}
