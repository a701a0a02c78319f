//! Dead rows that stay in their leaves for now: to write a leaf for the few bytes of them costs more than they take.
//!
//! The sweep weighs each leaf that has rows to go. Where they are less than a share of what it holds, and all that lingers
//! a smaller one of the whole tree, they linger: they are out of the index, so nobody finds them, and known here, until
//! more of the leaf is dead, space is short, or a defragmentation asks. Nothing of this is durable: a restart finds them
//! superseded, and the sweep weighs them again.
//!
//! Where little can be dead the leaf is not even read: the table of leaves tells which rows are in one, and a row of a tree
//! without extents has about its average size. The key of such a row is read when it is asked for.
//!
//! So what hides a row that lingers has to stay as well. A later put does, as only one that is later still takes it out of
//! the tree. A tombstone does not: when it goes, all that lingers of its key goes before. Keys are known by a hash
//! here; rows of others that have the same go too, which does no harm.

use crate::row::{self, RowHead};
use polybolt_engine::defect::{Defect, is_on};
use polybolt_engine::view::{LeafEntry, LeafView, View};
use polybolt_engine::{Damage, Error};
use polybolt_index::Revision;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::{Range, RangeInclusive};

/// The hash of a key that is kept of its rows; never [`UNREAD`].
pub(crate) fn hash_of(key: &[u8]) -> u32 {
    crc32fast::hash(key).max(UNREAD + 1)
}

/// The hash of a row whose key nobody has read, or that is with its value.
const UNREAD: u32 = 0;
/// Those of rows that are gone are forgotten once they are as many as all that linger and these.
const UNREAD_MIN: usize = 64;

/// Rows of a tree are alike if none of so many is twice as long as the average.
const MEASURED_MIN: u32 = 64;
/// After so many they are measured anew,
const MEASURED_MAX: u32 = 1 << 16;
/// those of one in so many leaves that need not be read.
const MEASURED_EVERY: u32 = 64;
/// Until enough were measured, so many of a leaf are: to read another costs more.
const MEASURED_OF_LEAF: usize = 16;

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
    /// Those whose keys were not read, and some that went since.
    unread: Vec<Revision>,
    /// How many rows were measured of late, and the longest.
    measured: u32,
    longest: u32,
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
    /// About what a row takes, and a leaf; None where rows may have extents.
    pub(crate) average: Option<Average>,
}

/// What a row of a tree takes, about, and its leaves.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Average {
    pub(crate) row_bytes: u32,
    pub(crate) leaf_bytes: usize,
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
    /// How many rows were measured, and the longest.
    measured: u32,
    longest: u32,
    /// Leaves that were not read, and one that has to be: how many of its rows.
    light: u32,
    soon: usize,
}

impl Weighed {
    /// All of them go.
    pub(crate) fn all(goes: Vec<Revision>) -> Self {
        Weighed { count: goes.len(), goes, ..Weighed::default() }
    }

    fn measure(&mut self, bytes: u32) {
        (self.measured, self.longest) = (self.measured + 1, self.longest.max(bytes));
    }

    /// Those before `end` that were not counted yet are in no leaf: they are in a buffer alone, or gone.
    fn pass(&mut self, dead: &[Revision], end: usize) {
        if self.count < end {
            self.goes.extend_from_slice(&dead[self.count..end]);
            self.count = end;
        }
    }
}

fn bytes_of(entry: LeafEntry<'_>) -> u32 {
    u32::try_from(entry.bytes()).unwrap_or(u32::MAX)
}

impl Lingering {
    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    /// The first `most` of them.
    pub(crate) fn first(&self, most: usize) -> Vec<Revision> {
        self.rows.keys().take(most).copied().collect()
    }

    /// The first `most` of those before a row.
    pub(crate) fn first_before(&self, end: Revision, most: usize) -> Vec<Revision> {
        self.rows.range(..end).take(most).map(|(at, _)| *at).collect()
    }

    /// Bytes of those in a range.
    pub(crate) fn bytes_of(&self, range: RangeInclusive<Revision>) -> u64 {
        if range.is_empty() { 0 } else { self.rows.range(range).map(|(_, row)| u64::from(row.bytes)).sum() }
    }

    /// Reads the keys of some rows of which they were not; false if there is none. They are needed before
    /// [`Lingering::hidden_by`].
    pub(crate) fn read_some(&mut self, view: &View, most: usize) -> bool {
        let some = self.unread.split_off(self.unread.len().saturating_sub(most));
        if some.is_empty() {
            self.unread = Vec::new();
            return false;
        }
        let mut some: Vec<Revision> = some.into_iter().filter(|at| self.rows.contains_key(at)).collect();
        some.sort_unstable();
        let keys: Vec<_> = some.iter().map(|at| row::row_key(*at)).collect();
        let read = view.get_many(&keys, false, &mut |at, lent| {
            let head = lent.and_then(|lent| RowHead::decode(lent.head).ok());
            if let (Some(row), Some(key)) = (self.rows.get_mut(&some[at]), head.and_then(|head| head.key)) {
                row.hash = hash_of(key);
            }
            Ok::<_, Error>(true)
        });
        // Those that cannot be read are as good as hidden: the checkpoint that writes their leaf will say what is wrong.
        drop(read);
        true
    }

    /// True if keys of some rows were not read.
    pub(crate) fn has_unread(&self) -> bool {
        !self.unread.is_empty()
    }

    /// Those that tombstones hide, of which the newest of each hash is given. O(all of them).
    pub(crate) fn hidden_by(&self, buried: &HashMap<u32, Revision>) -> Vec<Revision> {
        if buried.is_empty() {
            return Vec::new();
        }
        let is_hidden = |(at, row): &(&Revision, &Row)| {
            row.hash == UNREAD || buried.get(&row.hash).is_some_and(|tombstone| *at < tombstone)
        };
        self.rows.iter().filter(is_hidden).map(|(at, _)| *at).collect()
    }

    /// What was weighed lingers, or is to go; how many begin to linger. What lingered and is to go is here until it is gone
    /// ([`Lingering::remove`]): whoever takes out all that lingers meanwhile takes what a tombstone hides with it.
    pub(crate) fn settle(&mut self, weighed: &Weighed) -> usize {
        let before = self.rows.len();
        if self.measured >= MEASURED_MAX {
            (self.measured, self.longest) = (0, 0);
        }
        self.measured += weighed.measured;
        self.longest = self.longest.max(weighed.longest);
        for (at, row) in &weighed.stays {
            if self.rows.insert(*at, *row).is_none() {
                self.bytes += u64::from(row.bytes);
                if row.hash == UNREAD {
                    self.unread.push(*at);
                }
            }
        }
        let new = self.rows.len() - before;
        if is_on(Defect::ForgetWhatGoes) {
            self.remove(&weighed.goes);
        }
        self.prune();
        new
    }

    /// Forgets that keys of rows that went were not read.
    fn prune(&mut self) {
        if self.unread.len() > 2 * self.rows.len() + UNREAD_MIN {
            self.unread.retain(|at| self.rows.get(at).is_some_and(|row| row.hash == UNREAD));
        }
    }

    /// These are gone.
    pub(crate) fn remove(&mut self, rows: &[Revision]) {
        for at in rows {
            self.bytes -= self.rows.remove(at).map_or(0, |row| u64::from(row.bytes));
        }
        self.prune();
    }

    #[cfg(test)]
    pub(crate) fn contains(&self, at: Revision) -> bool {
        self.rows.contains_key(&at)
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
        let mut was_whole = false;
        while weighed.count < dead.len() && !is_enough(&weighed) {
            self.pass_light(view, dead, scale, &mut weighed)?;
            if weighed.count == dead.len() || is_enough(&weighed) {
                break;
            }
            let base = weighed.count;
            // The leaf that comes next alone, if those behind it may not have to be read.
            let some = if was_whole || weighed.soon == 0 { scale.enough } else { weighed.soon };
            let end = dead.len().min(base + some);
            let keys: Vec<_> = dead[base..end].iter().map(|row| row::row_key(*row)).collect();
            let (mut damage, mut goes_on) = (None, true);
            let visit = &mut |at: usize, leaf: LeafView<'_>| {
                // Those that are in no leaf before this one are in none.
                weighed.pass(dead, base + at);
                match self.weigh_leaf(leaf, &dead[weighed.count..], scale, &mut weighed) {
                    // Where leaves go as a whole the next does too, more likely than not.
                    Ok(whole) => {
                        was_whole = whole;
                        goes_on = whole || scale.average.is_none();
                    }
                    Err(found) => damage = Some(found),
                }
                damage.is_none() && goes_on && !is_enough(&weighed)
            };
            view.leaves_of(&keys, visit).ok()?;
            if damage.is_some() {
                return None;
            }
            if goes_on && !is_enough(&weighed) {
                weighed.pass(dead, end);
            }
        }
        Some(weighed)
    }

    /// Lets rows linger in the leaves that come next as long as each has clearly too few of them, without reading any.
    fn pass_light(&self, view: &View, dead: &[Revision], scale: Scale<'_>, weighed: &mut Weighed) -> Option<()> {
        weighed.soon = 0;
        let Some(average) = scale.average else { return Some(()) };
        let longest = self.longest.max(weighed.longest);
        if !self.is_measured(weighed) || u64::from(longest) > 2 * u64::from(average.row_bytes) {
            return Some(());
        }
        let base = weighed.count;
        // Mostly those that come are behind all that linger.
        let last = self.rows.last_key_value().map(|(last, _)| *last);
        let soon = &dead[base..dead.len().min(base + scale.enough)];
        let keys: Vec<_> = soon.iter().map(|at| row::row_key(*at)).collect();
        // Half of what would be enough: rows differ, and leaves are not all full.
        let most = u64::from(scale.percent) * average.leaf_bytes as u64 / 200 / u64::from(average.row_bytes);
        let visit = &mut |at: usize, bounds: Option<Range<[u8; row::ROW_KEY_BYTES]>>| {
            let bounds = bounds?;
            let (low, end) = (row::row_revision(&bounds.start).ok()?, row::row_revision(&bounds.end).ok()?);
            let here = dead[base + at..].iter().take_while(|row| **row < end).take(most as usize + 1).count();
            let some = last.is_some_and(|last| last >= low);
            let before = if some { self.rows.range(low..end).take(most as usize + 1).count() } else { 0 };
            let rows = &dead[base + at..base + at + here];
            let bytes = here as u64 * u64::from(average.row_bytes);
            weighed.light += 1;
            weighed.soon = here;
            if here == 0
                || weighed.light.is_multiple_of(MEASURED_EVERY)
                || (here + before) as u64 > most
                || self.bytes + weighed.new_bytes + bytes > scale.bytes_max
                || (!scale.hidden.is_empty() && rows.iter().any(|at| scale.hidden.contains(at)))
            {
                return None;
            }
            weighed.stays.extend(rows.iter().map(|at| (*at, Row { hash: UNREAD, bytes: average.row_bytes })));
            weighed.new_bytes += bytes;
            weighed.count += here;
            Some(at + here)
        };
        view.leaf_bounds_of(&keys, visit).ok()
    }

    /// True if it is known how long rows are.
    fn is_measured(&self, weighed: &Weighed) -> bool {
        self.measured + weighed.measured >= MEASURED_MIN
    }

    /// Weighs a leaf; true if nothing of it stays.
    fn weigh_leaf(
        &self,
        leaf: LeafView<'_>,
        dead: &[Revision],
        scale: Scale<'_>,
        weighed: &mut Weighed,
    ) -> Result<bool, Damage> {
        let [first, last] = leaf.ends();
        let range = row::row_revision(first)?..=row::row_revision(last)?;
        let dead = &dead[..dead.iter().take_while(|row| *row <= range.end()).count()];
        weighed.count += dead.len();
        if dead.is_empty() {
            // The leaf was weighed before.
            return Ok(true);
        }
        let mut here: Vec<_> = self.rows.range(range.clone()).map(|(at, row)| (*at, *row)).collect();
        if dead.len() >= leaf.entries() {
            // Nothing of it stays, or next to nothing.
            weighed.goes.extend(dead.iter().copied().chain(here.iter().map(|(at, _)| *at)));
            return Ok(true);
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
            let bytes = bytes_of(entry);
            new_bytes += u64::from(bytes);
            weighed.measure(bytes);
            here.push((*at, Row { hash: key.map(hash_of).unwrap_or_default(), bytes }));
        }
        if !self.is_measured(weighed) {
            (0..leaf.entries().min(MEASURED_OF_LEAF)).for_each(|at| weighed.measure(bytes_of(leaf.entry(at))));
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
        Ok(false)
    }
}
