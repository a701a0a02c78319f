//! Which keys are attached to which leases: a few bytes beside those of each key.
//!
//! A key lies in a slot with its lease and its neighbours among that lease's keys. Slots of one size are an array
//! without gaps, in chunks: when one goes, the last takes its place, so memory follows what is attached and nothing is
//! allocated for a key of its own. Slots are found by the hash of their keys, in many small tables, so that one that
//! grows is soon done.

use bytes::Bytes;
use hashbrown::HashTable;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Where a slot is: its class, and which of them it is.
type Place = u32;
const INDEX_BITS: u32 = 26;
/// No place: an index that is not used.
const NONE: Place = Place::MAX;
/// So many slots of a class are in use at most.
#[cfg(not(test))]
const INDEX_MAX: usize = (1 << INDEX_BITS) - 1;
#[cfg(test)]
const INDEX_MAX: usize = 3000;

/// In a slot: the lease, the neighbours, the length of the key, the key.
const NEXT: usize = 8;
const PREVIOUS: usize = 12;
const LENGTH: usize = 16;
const KEY: usize = 18;
/// Sizes of slots go up by so many bytes.
const GRAIN: usize = 4;
/// The smallest slot.
const SLOT_MIN: usize = KEY.next_multiple_of(GRAIN);
const CLASSES: usize = 1 << (Place::BITS - INDEX_BITS);
const SLOT_MAX: usize = SLOT_MIN + (CLASSES - 1) * GRAIN;
/// A longer key has memory of its own.
#[cfg(test)]
const KEY_MAX: usize = SLOT_MAX - KEY;
/// The length of a key that has.
const LONG: u16 = u16::MAX;
/// Slots of a chunk. Few of all in tests, so that they fill and empty.
#[cfg(not(test))]
const CHUNK: usize = 64;
#[cfg(test)]
const CHUNK: usize = 2;
#[cfg(not(test))]
const TABLE_BITS: u32 = 8;
#[cfg(test)]
const TABLE_BITS: u32 = 1;

/// Slots of one size.
#[derive(Debug, Default)]
struct Class {
    chunks: Vec<Box<[u8]>>,
    used: usize,
}

/// All slots.
#[derive(Debug, Default)]
struct Slots {
    classes: Vec<Class>,
    long: HashMap<Place, Box<[u8]>>,
}

/// The keys of all leases.
#[derive(Debug)]
pub struct LeasedKeys {
    slots: Slots,
    /// Those of a hash that begins alike; none before there is a key.
    tables: Vec<HashTable<Place>>,
    /// The first key of each lease that has one.
    first: HashMap<i64, Place>,
    seed: u64,
}

fn place_of(class: usize, index: usize) -> Place {
    ((class as u32) << INDEX_BITS) | index as u32
}

fn class_of(place: Place) -> (usize, usize) {
    ((place >> INDEX_BITS) as usize, place as usize & ((1 << INDEX_BITS) - 1))
}

fn slot_bytes(class: usize) -> usize {
    SLOT_MIN + class * GRAIN
}

impl Slots {
    fn slot(&self, place: Place) -> &[u8] {
        let ((class, index), bytes) = (class_of(place), slot_bytes(class_of(place).0));
        &self.classes[class].chunks[index / CHUNK][index % CHUNK * bytes..][..bytes]
    }

    fn slot_mut(&mut self, place: Place) -> &mut [u8] {
        let ((class, index), bytes) = (class_of(place), slot_bytes(class_of(place).0));
        &mut self.classes[class].chunks[index / CHUNK][index % CHUNK * bytes..][..bytes]
    }

    fn array<const N: usize>(&self, place: Place, at: usize) -> [u8; N] {
        *self.slot(place)[at..].first_chunk().expect("all fields lie in the smallest slot")
    }

    fn lease(&self, place: Place) -> i64 {
        i64::from_le_bytes(self.array(place, 0))
    }

    fn link(&self, place: Place, which: usize) -> Place {
        Place::from_le_bytes(self.array(place, which))
    }

    fn set_link(&mut self, place: Place, which: usize, to: Place) {
        self.slot_mut(place)[which..which + 4].copy_from_slice(&to.to_le_bytes());
    }

    fn key(&self, place: Place) -> &[u8] {
        match u16::from_le_bytes(self.array(place, LENGTH)) {
            LONG => self.long.get(&place).map_or(&[], |key| key),
            length => &self.slot(place)[KEY..KEY + usize::from(length)],
        }
    }

    /// A slot for a key. A class that is full leaves it to a larger one, or to any with the key elsewhere.
    fn add(&mut self, key: &[u8]) -> Option<Place> {
        if self.classes.is_empty() {
            self.classes.resize_with(CLASSES, Class::default);
        }
        let fits = (KEY + key.len()).saturating_sub(SLOT_MIN).div_ceil(GRAIN).min(CLASSES);
        let number = (fits..CLASSES).chain(0..fits).find(|class| self.classes[*class].used < INDEX_MAX)?;
        let is_long = number < fits;
        let class = &mut self.classes[number];
        if class.used == class.chunks.len() * CHUNK {
            class.chunks.push(vec![0; CHUNK * slot_bytes(number)].into_boxed_slice());
        }
        let place = place_of(number, class.used);
        class.used += 1;
        let length = if is_long { LONG } else { key.len() as u16 };
        let slot = self.slot_mut(place);
        slot[LENGTH..KEY].copy_from_slice(&length.to_le_bytes());
        if is_long {
            self.long.insert(place, key.into());
        } else {
            slot[KEY..KEY + key.len()].copy_from_slice(key);
        }
        Some(place)
    }

    /// Takes a slot away, and says from where another one took its place.
    fn remove(&mut self, place: Place) -> Option<Place> {
        let (number, index) = class_of(place);
        self.long.remove(&place);
        if self.long.len() < self.long.capacity() / 4 {
            self.long.shrink_to(2 * self.long.len());
        }
        let last = place_of(number, self.classes[number].used - 1);
        if last != place {
            let (mut slot, bytes) = ([0; SLOT_MAX], slot_bytes(number));
            slot[..bytes].copy_from_slice(self.slot(last));
            self.slot_mut(place).copy_from_slice(&slot[..bytes]);
            if let Some(key) = self.long.remove(&last) {
                self.long.insert(place, key);
            }
        }
        let class = &mut self.classes[number];
        class.used -= 1;
        class.chunks.truncate(class.used.div_ceil(CHUNK));
        (index != class.used).then_some(last)
    }
}

impl Default for LeasedKeys {
    fn default() -> Self {
        LeasedKeys {
            slots: Slots::default(),
            tables: Vec::new(),
            first: HashMap::new(),
            // Nobody is to choose keys of the same hash.
            seed: RandomState::new().hash_one(0),
        }
    }
}

impl LeasedKeys {
    /// Attaches a key to a lease, and to no other; 0 detaches it. O(1).
    pub fn attach(&mut self, key: &[u8], lease: i64) {
        if lease == 0 && self.first.is_empty() {
            return;
        }
        let hash = self.hash(key);
        match self.find(hash, key) {
            Some(place) if self.slots.lease(place) == lease => {}
            Some(place) => {
                self.unlink(place);
                if lease == 0 { self.remove(hash, place) } else { self.link(place, lease) }
            }
            None if lease == 0 => {}
            None => {
                let place = self.slots.add(key).expect("memory is full long before four billion places are");
                if self.tables.is_empty() {
                    self.tables.resize_with(1 << TABLE_BITS, HashTable::new);
                }
                let (slots, seed) = (&self.slots, self.seed);
                let table = &mut self.tables[table_of(hash)];
                table.insert_unique(hash, place, |place| xxh3_64_with_seed(slots.key(*place), seed));
                self.link(place, lease);
            }
        }
    }

    /// The lease that a key is attached to, or 0. O(1).
    pub fn lease_of(&self, key: &[u8]) -> i64 {
        if self.first.is_empty() {
            return 0;
        }
        self.find(self.hash(key), key).map_or(0, |place| self.slots.lease(place))
    }

    /// The keys of a lease, in no order. O(k) of them.
    pub fn keys(&self, lease: i64) -> Vec<Bytes> {
        let first = self.first.get(&lease).copied();
        let next = |place: &Place| Some(self.slots.link(*place, NEXT)).filter(|next| *next != NONE);
        let all = std::iter::successors(first, next);
        all.map(|place| Bytes::copy_from_slice(self.slots.key(place))).collect()
    }

    /// Detaches all keys of a lease. O(k) of them.
    pub fn detach_all(&mut self, lease: i64) {
        // Each time anew: the one that is next may just have moved.
        while let Some(place) = self.first.get(&lease).copied() {
            let hash = self.hash(self.slots.key(place));
            self.unlink(place);
            self.remove(hash, place);
        }
    }

    fn hash(&self, key: &[u8]) -> u64 {
        xxh3_64_with_seed(key, self.seed)
    }

    fn find(&self, hash: u64, key: &[u8]) -> Option<Place> {
        self.tables.get(table_of(hash))?.find(hash, |place| self.slots.key(*place) == key).copied()
    }

    /// Makes a slot that is in no list the first of a lease.
    fn link(&mut self, place: Place, lease: i64) {
        let next = self.first.insert(lease, place).unwrap_or(NONE);
        self.slots.slot_mut(place)[..NEXT].copy_from_slice(&lease.to_le_bytes());
        self.slots.set_link(place, NEXT, next);
        self.slots.set_link(place, PREVIOUS, NONE);
        if next != NONE {
            self.slots.set_link(next, PREVIOUS, place);
        }
    }

    /// Takes a slot out of its lease's list.
    fn unlink(&mut self, place: Place) {
        let (next, previous) = (self.slots.link(place, NEXT), self.slots.link(place, PREVIOUS));
        if next != NONE {
            self.slots.set_link(next, PREVIOUS, previous);
        }
        if previous != NONE {
            self.slots.set_link(previous, NEXT, next);
        } else if next != NONE {
            self.first.insert(self.slots.lease(place), next);
        } else {
            self.first.remove(&self.slots.lease(place));
            if self.first.len() < self.first.capacity() / 4 {
                self.first.shrink_to(2 * self.first.len());
            }
        }
    }

    /// Takes away a slot that is in no list, and tells those who know the one that moves into its place.
    fn remove(&mut self, hash: u64, place: Place) {
        let table = &mut self.tables[table_of(hash)];
        if let Ok(entry) = table.find_entry(hash, |other| *other == place) {
            entry.remove();
        }
        let moved = self.slots.remove(place);
        let (slots, seed) = (&self.slots, self.seed);
        if table.len() < table.capacity() / 4 {
            let twice = 2 * table.len();
            table.shrink_to(twice, |of| {
                xxh3_64_with_seed(slots.key(if Some(*of) == moved { place } else { *of }), seed)
            });
        }
        let Some(from) = moved else { return };
        let hash = self.hash(self.slots.key(place));
        if let Some(of) = self.tables[table_of(hash)].find_mut(hash, |other| *other == from) {
            *of = place;
        }
        let (next, previous) = (self.slots.link(place, NEXT), self.slots.link(place, PREVIOUS));
        if next != NONE {
            self.slots.set_link(next, PREVIOUS, place);
        }
        if previous != NONE {
            self.slots.set_link(previous, NEXT, place);
        } else {
            self.first.insert(self.slots.lease(place), place);
        }
    }
}

fn table_of(hash: u64) -> usize {
    // A table goes by the bits at both ends.
    (hash >> 32) as usize & ((1 << TABLE_BITS) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    impl LeasedKeys {
        fn room(&self) -> usize {
            self.tables.iter().map(HashTable::capacity).sum()
        }

        fn chunks(&self) -> usize {
            self.slots.classes.iter().map(|class| class.chunks.len()).sum()
        }
    }

    fn sorted(mut keys: Vec<Bytes>) -> Vec<Bytes> {
        keys.sort_unstable();
        keys
    }

    #[derive(Debug, Clone)]
    enum Step {
        Attach(usize, i64),
        DetachAll(i64),
    }

    /// Keys of all lengths; those that differ in length only, too.
    fn key(number: usize) -> Vec<u8> {
        let long = [0, 1, 2, 3, 60, KEY_MAX - 1, KEY_MAX, KEY_MAX + 1, 70_000][number % 9];
        [vec![b'x'; long], vec![number as u8 / 9; usize::from(number >= 9)]].concat()
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            12 => (0..90usize, 0..6i64).prop_map(|(key, lease)| Step::Attach(key, lease)),
            1 => (1..6i64).prop_map(Step::DetachAll),
        ]
    }

    proptest! {
        #[test]
        fn keys_are_where_they_were_attached_last(steps in prop::collection::vec(step(), 1..300)) {
            let (mut leased, mut model) = (LeasedKeys::default(), BTreeMap::new());
            for step in steps {
                match step {
                    Step::Attach(number, lease) => {
                        leased.attach(&key(number), lease);
                        model.insert(key(number), lease);
                    }
                    Step::DetachAll(lease) => {
                        leased.detach_all(lease);
                        model.retain(|_, of| *of != lease);
                    }
                }
            }
            model.retain(|_, lease| *lease != 0);
            for number in 0..90 {
                let expected = model.get(&key(number)).copied().unwrap_or(0);
                prop_assert_eq!(leased.lease_of(&key(number)), expected);
            }
            for lease in 0..6 {
                let of = |(key, of): (&Vec<u8>, &i64)| (*of == lease).then(|| Bytes::copy_from_slice(key));
                let expected: Vec<Bytes> = model.iter().filter_map(of).collect();
                prop_assert_eq!(sorted(leased.keys(lease)), expected);
                leased.detach_all(lease);
            }
            prop_assert_eq!(leased.chunks() + leased.slots.long.len() + leased.first.len(), 0);
            prop_assert!(leased.tables.iter().all(HashTable::is_empty));
        }
    }

    #[test]
    fn memory_follows_what_is_attached() {
        let mut leased = LeasedKeys::default();
        let key = |number: i64| format!("/registry/events/namespace-{:03}/event-{number:020}", number % 200);
        let lease = |number: i64| 1 + number % 20;
        (0..2000).for_each(|number| leased.attach(key(number).as_bytes(), lease(number)));
        let slot = slot_bytes(class_of(leased.first[&1]).0);
        assert!(slot < KEY + key(0).len() + GRAIN, "{slot} bytes");
        assert_eq!(leased.chunks(), 2000_usize.div_ceil(CHUNK));
        // Tables shrink meanwhile.
        let room = leased.room();
        for number in 0..1900 {
            leased.attach(key(number).as_bytes(), 0);
            let all = [0, number, number + 1, 1999];
            let leases = all.map(|other| leased.lease_of(key(other).as_bytes()));
            assert_eq!(leases, all.map(|other| if other <= number { 0 } else { lease(other) }));
        }
        assert!(leased.room() < room / 4, "{} of {room}", leased.room());
        assert_eq!(leased.chunks(), 100_usize.div_ceil(CHUNK));
        for of in 1..=20 {
            let expected = (1900..2000).filter(|number| lease(*number) == of).map(|number| key(number).into());
            assert_eq!(sorted(leased.keys(of)), sorted(expected.collect()));
        }
    }

    #[test]
    fn a_class_that_is_full_leaves_keys_to_others() {
        let mut leased = LeasedKeys::default();
        let key = |number: usize| format!("{number:0KEY_MAX$}");
        (0..INDEX_MAX + 10).for_each(|number| leased.attach(key(number).as_bytes(), 1 + number as i64 % 3));
        assert_eq!(leased.slots.long.len(), 10);
        for number in 0..INDEX_MAX + 10 {
            assert_eq!(leased.lease_of(key(number).as_bytes()), 1 + number as i64 % 3);
        }
        (1..4).for_each(|lease| leased.detach_all(lease));
        assert_eq!(leased.chunks() + leased.slots.long.len(), 0);
    }
}
