//! What callers hand to the store: specs of spaces and trees, batches of changes, and their cost.

use crate::error::Error;
use crate::ids::{SpaceId, TreeId};
use crate::limits;
use crate::ticket::Ticket;
use bytes::Bytes;
use std::path::PathBuf;
use std::time::Duration;

/// When a write counts as durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Each write is in the journal and synced before its ticket resolves.
    Sync,
    /// No journal: a checkpoint every `interval` or `limit` operations, whichever is first. A crash
    /// lands on some earlier boundary of all trees at once.
    Batch {
        /// The longest time between checkpoints while there is something to write.
        interval: Duration,
        /// The most batches between checkpoints.
        limit: u64,
    },
}

/// How a tree's bytes are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TreeClass {
    /// Journaled and part of every manifest commit.
    Durable,
    /// Never journaled nor synced; survives a clean close only (R4).
    Volatile,
}

/// A tree to be created.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeSpec {
    /// Its name, unique in its space; also part of its file name. Letters, digits, `-`, `_`.
    pub name: String,
    /// A power of two from 4096 to 65536.
    pub page_bytes: usize,
    /// How its bytes are kept.
    pub class: TreeClass,
    /// Another directory for its file; the store's own if None.
    pub dir: Option<PathBuf>,
}

impl TreeSpec {
    /// A durable tree with the default page size in the store's directory.
    pub fn new(name: impl Into<String>) -> Self {
        TreeSpec { name: name.into(), page_bytes: limits::PAGE_BYTES_DEFAULT, class: TreeClass::Durable, dir: None }
    }
}

/// A space to be created.
#[derive(Debug, Clone)]
pub struct SpaceSpec {
    /// Its name, unique in its store.
    pub name: String,
    /// The caller's own description of it; stored in the manifest, opaque to the engine.
    pub config: Bytes,
    /// The caller's own state of it before the first batch; opaque to the engine.
    pub state: Bytes,
    /// Its trees.
    pub trees: Vec<TreeSpec>,
}

/// A space that exists.
#[derive(Debug, Clone)]
pub struct SpaceInfo {
    /// Its id, never used again after a drop.
    pub id: SpaceId,
    /// Its name.
    pub name: String,
    /// What its creator described.
    pub config: Bytes,
    /// Its state as of the last batch applied before this was asked.
    pub state: Bytes,
    /// Its trees, in the order of the spec.
    pub trees: Vec<TreeInfo>,
}

/// A tree that exists.
#[derive(Debug, Clone)]
pub struct TreeInfo {
    /// Its id.
    pub id: TreeId,
    /// What it was created with.
    pub spec: TreeSpec,
    /// True if it is Volatile and lost its contents because the last session did not end cleanly.
    pub emptied: bool,
}

/// A change of one key in one tree.
#[derive(Debug, Clone)]
pub struct TreeEdit {
    /// The tree.
    pub tree: TreeId,
    /// At most [`limits::TREE_KEY_BYTES_MAX`] bytes.
    pub key: Bytes,
    /// What becomes of the key.
    pub edit: Edit,
}

pub use crate::tree::Edit;

/// Changes of one space that become durable together or not at all. May be filled again once it was applied, so
/// that nothing is allocated for each.
#[derive(Debug, Clone)]
pub struct Batch {
    /// The space.
    pub space: SpaceId,
    /// The changes; of several of one key the last holds.
    pub edits: Vec<TreeEdit>,
    /// What the journal keeps: enough for [`Replay`] to make the edits of Durable trees and the
    /// state again. Empty if nothing needs to survive a crash before the next checkpoint; such a
    /// batch gets the position of the one before it. Unused under [`Durability::Batch`].
    pub record: Bytes,
    /// The space's state after this batch; opaque, at most [`limits::STATE_BYTES_MAX`] bytes.
    pub state: Vec<u8>,
}

impl Batch {
    /// One without changes.
    pub fn new(space: SpaceId) -> Self {
        Batch { space, edits: Vec::new(), record: Bytes::new(), state: Vec::new() }
    }
}

/// What a batch will take: asked for before it is applied, so that applying cannot fail (R5).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cost {
    /// Bytes of keys, heads and bodies of all edits.
    pub edit_bytes: u64,
    /// How many edits.
    pub edits: u64,
    /// Bytes of the journal record.
    pub record_bytes: u64,
    /// True for deletes and compaction, which may use the reserve of a full store.
    pub frees_space: bool,
    /// True if a Volatile tree is touched: refused while that tree cannot be written.
    pub volatile: bool,
}

/// Why a batch was not admitted. Nothing was changed.
#[derive(Debug)]
pub enum AdmitError {
    /// Not enough room now. Await or `wait()` the ticket, then evaluate and ask again.
    Short(Ticket),
    /// It can't be taken: poisoned, full, too large, read-only, closed.
    Refused(Error),
}

/// Turns journal records back into changes when a store is opened. It sees the records of a space
/// in the order in which they were applied.
pub trait Replay {
    /// Makes the edits and the new state of one record. `state` is the state before it.
    fn replay(&mut self, space: &SpaceInfo, state: &[u8], record: &[u8]) -> Result<Replayed, Error>;
    /// Called once per space after its last record and before anything is committed; may give a
    /// new state, which is then durable before the store answers. `clean` tells whether the last
    /// session was closed.
    fn settled(&mut self, space: &SpaceInfo, state: &[u8], clean: bool) -> Result<Option<Bytes>, Error>;
}

/// What one record does.
#[derive(Debug, Clone, Default)]
pub struct Replayed {
    /// The changes.
    pub edits: Vec<TreeEdit>,
    /// The state after them.
    pub state: Bytes,
}

/// Is told what became durable, before tickets resolve.
pub trait DurableListener: Send + Sync {
    /// All records up to `upto` are durable.
    fn durable(&self, upto: crate::ticket::Position);
}
