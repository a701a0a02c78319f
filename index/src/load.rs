//! Building an index from rows: a sorted base, then rows after it.

use crate::bulk::Batch;
use crate::map::{Index, Write};
use crate::revision::{Life, Revision};
use std::fmt;

/// What a stored row says of its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Row {
    /// It was put.
    Put {
        /// The main at which this life of the key began.
        created: u64,
        /// How many puts since.
        version: u64,
    },
    /// It was deleted.
    Tombstone,
}

/// A row that cannot be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadError {
    /// The row's revision.
    pub at: Revision,
    /// What is wrong.
    pub why: &'static str,
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the row at revision {}.{} {}", self.at.main, self.at.sub, self.why)
    }
}

impl std::error::Error for LoadError {}

/// Takes rows in ascending revision order. The first row of a key is believed in what it says of
/// creation and version, since compaction may have removed those before it.
#[derive(Debug, Default)]
pub struct Loader {
    index: Index,
    last: Option<Revision>,
}

impl Loader {
    /// Begins with nothing.
    pub fn new() -> Self {
        Loader::default()
    }

    /// Adds one key's newest row of a base that is sorted by key (an index checkpoint). Base rows
    /// come before all calls of `row`.
    pub fn base(&mut self, key: &[u8], at: Revision, row: Row) -> Result<(), LoadError> {
        if self.index.find(key).is_some() {
            return Err(LoadError { at, why: "is the second of its key in the base" });
        }
        self.last = self.last.max(Some(at));
        self.add(key, at, row)
    }

    /// Adds a row.
    pub fn row(&mut self, key: &[u8], at: Revision, row: Row) -> Result<(), LoadError> {
        if self.last.is_some_and(|last| at <= last) {
            return Err(LoadError { at, why: "is out of order" });
        }
        self.last = Some(at);
        self.add(key, at, row)
    }

    /// Takes in the rows of a batch, which come after all before, and empties it. Much cheaper than row by row.
    /// O(rows log rows), and O(keys) at most.
    pub fn batch(&mut self, batch: &mut Batch) -> Result<(), LoadError> {
        if let Some(at) = batch.first().filter(|first| self.last.is_some_and(|last| *first <= last)) {
            return Err(LoadError { at, why: "is out of order" });
        }
        self.last = batch.last().or(self.last);
        self.index.take(batch);
        Ok(())
    }

    /// Bytes of a batch that is worth to be taken in: as many as may be had in any case, or a small part of what
    /// is loaded so far, so that a leaf gets several of its rows.
    pub fn batch_bytes(&self, bytes: usize) -> usize {
        bytes.max(usize::try_from(self.index.stats().bytes).unwrap_or(usize::MAX) / 10)
    }

    /// The newest row of a key so far: its revision, creation and version; 0 is a tombstone's.
    pub fn newest(&self, key: &[u8]) -> Option<(Revision, u64, u64)> {
        self.index.find(key).map(|newest| (newest.at, newest.created, newest.version))
    }

    /// The index of all rows.
    pub fn finish(self) -> Index {
        self.index
    }

    fn add(&mut self, key: &[u8], at: Revision, row: Row) -> Result<(), LoadError> {
        let write = row.life(at)?.map_or(Write::Tombstone, |life| Write::Put(Some(life)));
        self.index.write(key, at, write);
        Ok(())
    }
}

impl Row {
    /// What a put says of its key's life; None of a tombstone.
    fn life(self, at: Revision) -> Result<Option<Life>, LoadError> {
        match self {
            Row::Tombstone => Ok(None),
            Row::Put { version: 0, .. } => Err(LoadError { at, why: "is a put of version 0" }),
            Row::Put { created, .. } if created > at.main => Err(LoadError { at, why: "was created after itself" }),
            Row::Put { created, version } => Ok(Some(Life { created, version })),
        }
    }
}

impl Batch {
    /// Adds a row.
    pub fn row(&mut self, key: &[u8], at: Revision, row: Row) -> Result<(), LoadError> {
        if self.last().is_some_and(|last| at <= last) {
            return Err(LoadError { at, why: "is out of order" });
        }
        self.add(key, at, row.life(at)?);
        Ok(())
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
