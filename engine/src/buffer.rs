//! Entries of one tree that are applied but not yet in its file.
//!
//! Writers mostly add keys in rising order (revisions), so those go to a vector; a sweep removes keys in rising order
//! below them, which go to another; the rest goes to an ordered map. A key is in one of the three, never in two. One
//! writer at a time adds (the space's lock sees to it); readers take the lock for one lookup or one
//! bounded run of entries and copy handles out, never bytes. What is below all keys is not looked for, and
//! the lock is not taken for it: after a checkpoint most of what is read is. A buffer that was cut for a
//! checkpoint gets no more entries.

use crate::batch::Edit;
use crate::page::search::ordinal;
use crate::sync::RwLock;
use crate::sync::atomic::{AtomicU64, Ordering};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::ops::Bound;

/// Applied entries of one tree, by key.
#[derive(Debug)]
pub struct TreeBuffer {
    entries: RwLock<Entries>,
    /// The lowest ordinal of a key in it.
    low: AtomicU64,
}

impl Default for TreeBuffer {
    fn default() -> Self {
        TreeBuffer { entries: RwLock::default(), low: AtomicU64::new(u64::MAX) }
    }
}

#[derive(Debug, Default)]
struct Entries {
    rising: Vec<(Bytes, Edit)>,
    /// Ascending, and below the first of `rising` when they came.
    removed: Vec<Bytes>,
    rest: BTreeMap<Bytes, Edit>,
}

static REMOVE: Edit = Edit::Remove;

impl TreeBuffer {
    /// Records what becomes of a key. O(1) for a key above all others, else O(log n).
    pub fn set(&self, key: Bytes, edit: Edit) {
        let mut entries = self.entries.write();
        // Before anybody is told of the key, who then looks for it here.
        self.low.fetch_min(ordinal(&key), Ordering::Release);
        entries.set(key, edit);
    }

    /// Records that ascending keys are removed. O(1) for each that is above all that were removed so and below all that
    /// were put, else O(log n).
    pub fn remove_all(&self, keys: Vec<Bytes>) {
        let Some(first) = keys.first() else { return };
        let mut entries = self.entries.write();
        self.low.fetch_min(ordinal(first), Ordering::Release);
        for key in keys {
            entries.remove(key);
        }
    }

    /// What becomes of `key`, if this buffer says. O(log n); O(1) for a key below all others.
    pub fn get(&self, key: &[u8]) -> Option<Edit> {
        if self.is_below(key) { None } else { self.entries.read().get(key).cloned() }
    }

    /// The same for many keys: appends the place of each that is there, counted from `base`, and what becomes of it.
    pub fn get_many<K: AsRef<[u8]>>(&self, keys: &[K], base: usize, out: &mut Vec<(usize, Edit)>) {
        if keys.iter().all(|key| self.is_below(key.as_ref())) {
            return;
        }
        let entries = self.entries.read();
        for (at, key) in (base..).zip(keys) {
            if !self.is_below(key.as_ref()) {
                out.extend(entries.get(key.as_ref()).map(|edit| (at, edit.clone())));
            }
        }
    }

    fn is_below(&self, key: &[u8]) -> bool {
        ordinal(key) < self.low.load(Ordering::Acquire)
    }

    /// Appends to `out` up to `max` entries from `from` on, ascending.
    pub fn ascend(&self, from: Bound<&[u8]>, max: usize, out: &mut Vec<(Bytes, Edit)>) {
        let entries = self.entries.read();
        let start = match from {
            Bound::Included(key) => entries.rising.partition_point(|(have, _)| &have[..] < key),
            Bound::Excluded(key) => entries.rising.partition_point(|(have, _)| &have[..] <= key),
            Bound::Unbounded => 0,
        };
        let rising = entries.rising[start..].iter().map(|(key, edit)| (key, edit));
        let start = match from {
            Bound::Included(key) => entries.removed.partition_point(|have| &have[..] < key),
            Bound::Excluded(key) => entries.removed.partition_point(|have| &have[..] <= key),
            Bound::Unbounded => 0,
        };
        let removed = entries.removed[start..].iter().map(|key| (key, &REMOVE));
        let rest = entries.rest.range::<[u8], _>((from, Bound::Unbounded));
        let all = merge(rising, merge(removed, rest, |a, b| a < b), |a, b| a < b);
        out.extend(all.take(max).map(|(key, edit)| (key.clone(), edit.clone())));
    }

    /// Appends to `out` up to `max` entries from `from` down, descending.
    pub fn descend(&self, from: Bound<&[u8]>, max: usize, out: &mut Vec<(Bytes, Edit)>) {
        let entries = self.entries.read();
        let end = match from {
            Bound::Included(key) => entries.rising.partition_point(|(have, _)| &have[..] <= key),
            Bound::Excluded(key) => entries.rising.partition_point(|(have, _)| &have[..] < key),
            Bound::Unbounded => entries.rising.len(),
        };
        let rising = entries.rising[..end].iter().rev().map(|(key, edit)| (key, edit));
        let end = match from {
            Bound::Included(key) => entries.removed.partition_point(|have| &have[..] <= key),
            Bound::Excluded(key) => entries.removed.partition_point(|have| &have[..] < key),
            Bound::Unbounded => entries.removed.len(),
        };
        let removed = entries.removed[..end].iter().rev().map(|key| (key, &REMOVE));
        let rest = entries.rest.range::<[u8], _>((Bound::Unbounded, from)).rev();
        let all = merge(rising, merge(removed, rest, |a, b| a > b), |a, b| a > b);
        out.extend(all.take(max).map(|(key, edit)| (key.clone(), edit.clone())));
    }

    /// Shows all entries, ascending: as they lie, if keys only rose. Whoever adds one meanwhile waits.
    pub fn show<T>(&self, see: impl FnOnce(&[(Bytes, Edit)]) -> T) -> T {
        let entries = self.entries.read();
        if entries.rest.is_empty() && entries.removed.is_empty() {
            return see(&entries.rising);
        }
        drop(entries);
        see(&self.sorted())
    }

    /// All entries, ascending.
    pub fn sorted(&self) -> Vec<(Bytes, Edit)> {
        let mut all = Vec::with_capacity(self.len());
        self.ascend(Bound::Unbounded, usize::MAX, &mut all);
        all
    }

    /// How many entries.
    pub fn len(&self) -> usize {
        let entries = self.entries.read();
        entries.rising.len() + entries.removed.len() + entries.rest.len()
    }

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Entries {
    fn get(&self, key: &[u8]) -> Option<&Edit> {
        if let Ok(at) = self.rising.binary_search_by(|(have, _)| have[..].cmp(key)) {
            return Some(&self.rising[at].1);
        }
        if self.find_removed(key).is_some() {
            return Some(&REMOVE);
        }
        if self.rest.is_empty() { None } else { self.rest.get(key) }
    }

    fn find_removed(&self, key: &[u8]) -> Option<usize> {
        if self.removed.last().is_none_or(|last| &last[..] < key) {
            return None;
        }
        self.removed.binary_search_by(|have| have[..].cmp(key)).ok()
    }

    fn set(&mut self, key: Bytes, edit: Edit) {
        let is_above = self.rising.last().is_none_or(|(last, _)| *last < key);
        if !is_above && let Ok(at) = self.rising.binary_search_by(|(have, _)| have.cmp(&key)) {
            self.rising[at].1 = edit;
            return;
        }
        if let Some(at) = self.find_removed(&key) {
            self.removed.remove(at);
        }
        if is_above {
            if !self.rest.is_empty() {
                self.rest.remove(&key);
            }
            self.rising.push((key, edit));
        } else {
            self.rest.insert(key, edit);
        }
    }

    fn remove(&mut self, key: Bytes) {
        let is_next = self.removed.last().is_none_or(|last| *last < key);
        if !is_next || self.rising.first().is_some_and(|(first, _)| *first <= key) {
            return self.set(key, Edit::Remove);
        }
        if !self.rest.is_empty() {
            self.rest.remove(&key);
        }
        self.removed.push(key);
    }
}

fn merge<'a>(
    left: impl Iterator<Item = (&'a Bytes, &'a Edit)>,
    right: impl Iterator<Item = (&'a Bytes, &'a Edit)>,
    before: impl Fn(&Bytes, &Bytes) -> bool,
) -> impl Iterator<Item = (&'a Bytes, &'a Edit)> {
    let (mut left, mut right) = (left.peekable(), right.peekable());
    std::iter::from_fn(move || match (left.peek(), right.peek()) {
        (Some((a, _)), Some((b, _))) if before(b, a) => right.next(),
        (Some(_), _) => left.next(),
        (None, _) => right.next(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn put(value: u8) -> Edit {
        Edit::Put { head: Bytes::copy_from_slice(&[value]), body: Bytes::new() }
    }

    proptest! {
        #[test]
        fn it_is_an_ordered_map(writes in prop::collection::vec((0u8..40, any::<u8>()), 0..80), probe in 0u8..40) {
            let buffer = TreeBuffer::default();
            let mut model = BTreeMap::new();
            for (key, value) in writes {
                if value % 3 == 0 {
                    let keys: Vec<_> = (key..40).step_by(3).take(4).map(|key| Bytes::copy_from_slice(&[key])).collect();
                    model.extend(keys.iter().map(|key| (key.clone(), Edit::Remove)));
                    buffer.remove_all(keys);
                    continue;
                }
                let edit = if value % 5 == 0 { Edit::Remove } else { put(value) };
                buffer.set(Bytes::copy_from_slice(&[key]), edit.clone());
                model.insert(Bytes::copy_from_slice(&[key]), edit);
            }
            let whole: Vec<_> = model.clone().into_iter().collect();
            prop_assert_eq!(buffer.sorted(), &whole[..]);
            prop_assert!(buffer.show(|entries| entries == &whole[..]));
            prop_assert_eq!(buffer.get(&[probe]), model.get(&[probe][..]).cloned());
            let probes: Vec<[u8; 1]> = (0..40).filter(|key| key % 3 != probe % 3).map(|key| [key * 3 % 40]).collect();
            let mut many = Vec::new();
            buffer.get_many(&probes, 7, &mut many);
            let found = |(at, key): (usize, &[u8; 1])| Some((at, model.get(&key[..])?.clone()));
            prop_assert_eq!(many, (7..).zip(&probes).filter_map(found).collect::<Vec<_>>());
            let mut up = Vec::new();
            buffer.ascend(Bound::Excluded(&[probe]), 3, &mut up);
            let want: Vec<_> = model.iter().filter(|(k, _)| k[0] > probe).take(3).map(|(k, e)| (k.clone(), e.clone())).collect();
            prop_assert_eq!(up, want);
            let mut down = Vec::new();
            buffer.descend(Bound::Included(&[probe]), 3, &mut down);
            let want: Vec<_> = model.iter().rev().filter(|(k, _)| k[0] <= probe).take(3).map(|(k, e)| (k.clone(), e.clone())).collect();
            prop_assert_eq!(down, want);
        }
    }
}
