//! What a commit changes, and the memory that it is made in.

use crate::record::RecordBuilder;
use crate::row::RowPlace;
use crate::slab::Slab;
use bytes::Bytes;
use polybolt_engine::{Batch, SpaceId};
use polybolt_index::Hit;

/// A key found in an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) key: Bytes,
    pub(crate) hit: Hit,
    pub(crate) shard: usize,
    /// The change of the running txn that it comes from.
    pub(crate) own: Option<usize>,
}

/// One change, numbered by its place in the list.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    pub(crate) key: Bytes,
    pub(crate) shard: usize,
    /// None is a delete.
    pub(crate) put: Option<Put>,
    /// What was there before.
    pub(crate) before: Option<Found>,
}

/// A put, as it will be stored.
#[derive(Debug, Clone)]
pub(crate) struct Put {
    pub(crate) value: Bytes,
    pub(crate) lease: i64,
    pub(crate) created: u64,
    pub(crate) version: u64,
}

/// What a commit is made in. Kept from one to the next, so that nothing is allocated for each.
#[derive(Debug)]
pub(crate) struct Scratch {
    pub(crate) changes: Vec<Change>,
    pub(crate) record: RecordBuilder,
    /// The rows of Volatile shards.
    pub(crate) aside: RecordBuilder,
    /// Of each change: whether its shard is Volatile, and where in its record its row is.
    pub(crate) places: Vec<(bool, RowPlace)>,
    pub(crate) batch: Batch,
    pub(crate) slab: Slab,
}

/// The most changes that memory is kept for.
const CHANGES_KEPT_MAX: usize = 128;

impl Scratch {
    pub(crate) fn new(space: SpaceId) -> Self {
        Scratch {
            changes: Vec::new(),
            record: RecordBuilder::default(),
            aside: RecordBuilder::default(),
            places: Vec::new(),
            batch: Batch::new(space),
            slab: Slab::default(),
        }
    }

    /// Forgets a commit.
    pub(crate) fn clear(&mut self) {
        self.places.clear();
        self.places.shrink_to(CHANGES_KEPT_MAX);
        self.batch.edits.clear();
        self.batch.edits.shrink_to(CHANGES_KEPT_MAX);
        self.batch.record = Bytes::new();
    }

    /// Takes the list of changes back.
    pub(crate) fn take_back(&mut self, mut changes: Vec<Change>) {
        changes.clear();
        changes.shrink_to(CHANGES_KEPT_MAX);
        self.changes = changes;
    }
}
