//! Dead rows that stay in their leaves for now: to write a leaf for the few bytes of them costs more than they take.
//!
//! The sweep weighs each leaf that has rows to go. Where they are less than a share of what it holds, and all that lingers
//! a smaller one of the whole tree, they linger: they are out of the index, so nobody finds them, and known here, until
//! more of the leaf is dead, space is short, or a defragmentation asks. Nothing of this is durable: a restart finds them
//! superseded, and the sweep weighs them again.
//!
//! So what hides a row that lingers has to stay as well. A later put does, as only one that is later still takes it out of
//! the tree. A tombstone does not: when it goes, all that lingers of its key goes before. Keys are known by a hash
//! here; rows of others that have the same go too, which does no harm.

use crate::row::{self, RowHead};
use polybolt_engine::Damage;
use polybolt_engine::view::{LeafView, View};
use polybolt_index::Revision;
use std::collections::{BTreeMap, HashMap, HashSet};

/// The hash of a key that is kept of its rows.
pub(crate) fn hash_of(key: &[u8]) -> u32 {
    crc32fast::hash(key)
}

/// A row that lingers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Row {
    /// Of its key.
    hash: u32,
    /// Bytes that it takes.
    bytes: u32,
}

/// What lingers in a shard.
#[derive(Debug, Default)]
pub(crate) struct Lingering {
    rows: BTreeMap<Revision, Row>,
    bytes: u64,
}

/// By what leaves are weighed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scale<'a> {
    /// A leaf of which so many percent are dead is written without them.
    pub(crate) percent: u8,
    /// And one of which something would linger beside so many bytes.
    pub(crate) bytes_max: u64,
    /// And one of these.
    pub(crate) hidden: &'a HashSet<Revision>,
    /// Rows to go and rows to stay that are enough for now.
    pub(crate) enough: usize,
}

/// What becomes of dead rows.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Weighed {
    /// How many of those that were weighed are in here; the first ones.
    pub(crate) count: usize,
    /// They are to be removed, with some that lingered.
    pub(crate) goes: Vec<Revision>,
    /// They begin to linger, or go on, and so many bytes begin.
    pub(crate) stays: Vec<(Revision, Row)>,
    new_bytes: u64,
}

impl Weighed {
    /// All of them go.
    pub(crate) fn all(goes: Vec<Revision>) -> Self {
        Weighed { count: goes.len(), goes, ..Weighed::default() }
    }

    /// Those before `end` that were not counted yet are in no leaf: they are in a buffer alone, or gone.
    fn pass(&mut self, dead: &[Revision], end: usize) {
        if self.count < end {
            self.goes.extend_from_slice(&dead[self.count..end]);
            self.count = end;
        }
    }
}

impl Lingering {
    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    /// The first `most` of them.
    pub(crate) fn first(&self, most: usize) -> Vec<Revision> {
        self.rows.keys().take(most).copied().collect()
    }

    /// Those that tombstones hide, of which the newest of each hash is given. O(all of them).
    pub(crate) fn hidden_by(&self, buried: &HashMap<u32, Revision>) -> Vec<Revision> {
        if buried.is_empty() {
            return Vec::new();
        }
        let is_hidden = |(at, row): &(&Revision, &Row)| buried.get(&row.hash).is_some_and(|tombstone| *at < tombstone);
        self.rows.iter().filter(is_hidden).map(|(at, _)| *at).collect()
    }

    /// What was weighed lingers, or goes; how many begin to linger.
    pub(crate) fn settle(&mut self, weighed: &Weighed) -> usize {
        self.remove(&weighed.goes);
        let before = self.rows.len();
        for (at, row) in &weighed.stays {
            if self.rows.insert(*at, *row).is_none() {
                self.bytes += u64::from(row.bytes);
            }
        }
        self.rows.len() - before
    }

    pub(crate) fn remove(&mut self, rows: &[Revision]) {
        for at in rows {
            self.bytes -= self.rows.remove(at).map_or(0, |row| u64::from(row.bytes));
        }
    }

    #[cfg(feature = "model")]
    pub(crate) fn rows(&self) -> impl Iterator<Item = Revision> {
        self.rows.keys().copied()
    }

    /// Weighs leaves that have rows of `dead`, ascending and not empty, until that is enough. One leaf at least, of each of
    /// which it looks at the dead rows alone. None if one is damaged: the checkpoint that is to write it will say so.
    pub(crate) fn weigh(&self, view: &View, dead: &[Revision], scale: Scale<'_>) -> Option<Weighed> {
        let mut weighed = Weighed::default();
        let is_enough = |weighed: &Weighed| weighed.goes.len() + weighed.stays.len() >= scale.enough;
        while weighed.count < dead.len() && !is_enough(&weighed) {
            let base = weighed.count;
            let end = dead.len().min(base + scale.enough);
            let keys: Vec<_> = dead[base..end].iter().map(|row| row::row_key(*row)).collect();
            let mut damage = None;
            let visit = &mut |at: usize, leaf: LeafView<'_>| {
                // Those that are in no leaf before this one are in none.
                weighed.pass(dead, base + at);
                damage = self.weigh_leaf(leaf, &dead[weighed.count..], scale, &mut weighed).err();
                damage.is_none() && !is_enough(&weighed)
            };
            view.leaves_of(&keys, visit).ok()?;
            if damage.is_some() {
                return None;
            }
            if !is_enough(&weighed) {
                weighed.pass(dead, end);
            }
        }
        Some(weighed)
    }

    fn weigh_leaf(
        &self,
        leaf: LeafView<'_>,
        dead: &[Revision],
        scale: Scale<'_>,
        weighed: &mut Weighed,
    ) -> Result<(), Damage> {
        let [first, last] = leaf.ends();
        let range = row::row_revision(first)?..=row::row_revision(last)?;
        let dead = &dead[..dead.iter().take_while(|row| *row <= range.end()).count()];
        weighed.count += dead.len();
        if dead.is_empty() {
            // The leaf was weighed before.
            return Ok(());
        }
        let mut here: Vec<_> = self.rows.range(range.clone()).map(|(at, row)| (*at, *row)).collect();
        if dead.len() >= leaf.entries() {
            // Nothing of it stays, or next to nothing.
            weighed.goes.extend(dead.iter().copied().chain(here.iter().map(|(at, _)| *at)));
            return Ok(());
        }
        let mut dead_bytes: u64 = here.iter().map(|(_, row)| u64::from(row.bytes)).sum();
        let (mut new_bytes, mut is_heavy) = (0, false);
        for at in dead {
            is_heavy |= scale.hidden.contains(at);
            if range.contains(at) && self.rows.contains_key(at) {
                continue;
            }
            let Some(entry) = leaf.get(&row::row_key(*at)) else {
                // It is in a buffer alone, or gone.
                weighed.goes.push(*at);
                continue;
            };
            let key = RowHead::decode(entry.head)?.key;
            // The key of a row with a long one is with its value: nobody reads that for it.
            is_heavy |= key.is_none();
            let bytes = u32::try_from(entry.leaf_bytes + entry.extent_bytes).unwrap_or(u32::MAX);
            new_bytes += u64::from(bytes);
            here.push((*at, Row { hash: key.map(hash_of).unwrap_or_default(), bytes }));
        }
        dead_bytes += new_bytes;
        let staying = weighed.new_bytes + new_bytes;
        if is_heavy
            || dead_bytes * 100 >= u64::from(scale.percent) * leaf.bytes() as u64
            || self.bytes + staying > scale.bytes_max
        {
            weighed.goes.extend(here.iter().map(|(at, _)| *at));
        } else {
            weighed.stays.append(&mut here);
            weighed.new_bytes = staying;
        }
        Ok(())
    }
}
