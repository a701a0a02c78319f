//! Entries of one tree that are applied but not yet in its file.
//!
//! Writers mostly add keys in rising order (revisions), so those go to a vector; the rest, and
//! removals of old keys, go to an ordered map. A key is in one of the two, never in both. One
//! writer at a time adds (the space's lock sees to it); readers take the lock for one lookup or one
//! bounded run of entries and copy handles out, never bytes. A buffer that was cut for a checkpoint
//! gets no more entries.

use crate::batch::Edit;
use crate::sync::RwLock;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::ops::Bound;

/// Applied entries of one tree, by key.
#[derive(Debug, Default)]
pub struct TreeBuffer {
    entries: RwLock<Entries>,
}

#[derive(Debug, Default)]
struct Entries {
    rising: Vec<(Bytes, Edit)>,
    rest: BTreeMap<Bytes, Edit>,
}

impl TreeBuffer {
    /// Records what becomes of a key. O(1) for a key above all others, else O(log n).
    pub fn set(&self, key: Bytes, edit: Edit) {
        self.entries.write().set(key, edit);
    }

    /// What becomes of `key`, if this buffer says. O(log n).
    pub fn get(&self, key: &[u8]) -> Option<Edit> {
        let entries = self.entries.read();
        if let Ok(at) = entries.rising.binary_search_by(|(have, _)| have[..].cmp(key)) {
            return Some(entries.rising[at].1.clone());
        }
        if entries.rest.is_empty() { None } else { entries.rest.get(key).cloned() }
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
        let rest = entries.rest.range::<[u8], _>((from, Bound::Unbounded));
        out.extend(merge(rising, rest, |a, b| a < b).take(max).map(|(key, edit)| (key.clone(), edit.clone())));
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
        let rest = entries.rest.range::<[u8], _>((Bound::Unbounded, from)).rev();
        out.extend(merge(rising, rest, |a, b| a > b).take(max).map(|(key, edit)| (key.clone(), edit.clone())));
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
        entries.rising.len() + entries.rest.len()
    }

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Entries {
    fn set(&mut self, key: Bytes, edit: Edit) {
        if self.rising.last().is_none_or(|(last, _)| *last < key) {
            if !self.rest.is_empty() {
                self.rest.remove(&key);
            }
            self.rising.push((key, edit));
            return;
        }
        match self.rising.binary_search_by(|(have, _)| have.cmp(&key)) {
            Ok(at) => self.rising[at].1 = edit,
            Err(_) => {
                self.rest.insert(key, edit);
            }
        }
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
                let edit = if value % 5 == 0 { Edit::Remove } else { put(value) };
                buffer.set(Bytes::copy_from_slice(&[key]), edit.clone());
                model.insert(Bytes::copy_from_slice(&[key]), edit);
            }
            let whole: Vec<_> = model.clone().into_iter().collect();
            prop_assert_eq!(buffer.sorted(), whole);
            prop_assert_eq!(buffer.get(&[probe]), model.get(&[probe][..]).cloned());
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
