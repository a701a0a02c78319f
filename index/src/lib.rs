//! An ordered in-memory index: keys to their revisions, with etcd's generations.
//!
//! One [`Index`] serves one shard. It holds the newest revision of each key in a B+tree of our own,
//! whose leaves store what keys share once, and whose inner nodes count live keys and know when a key
//! below them was last born or died, so that counts and limits cost what they return. Older revisions
//! lie in one ring in the order in which they were superseded; compaction pops the ring's tail.
//!
//! What a key costs: its bytes behind what its leaf shares, 21 bytes (8 of revision, 4 of offset, 1 of
//! length, the rest for its part of the nodes), 16 more once it was overwritten; 15 for each older revision.
//!
//! Worked example, one key (the exact rule at the compacted revision is etcd's):
//!
//! ```text
//!            put@2  put@4  del@6  put@8  put@10
//! sweep(5)          put@4  del@6  put@8  put@10   no read at 5 or later sees 2
//! sweep(6)                 del@6  put@8  put@10   a delete at exactly 6 still shows
//! sweep(7)                        put@8  put@10   now nothing is left for it to hide
//! ```
//!
//! No I/O, no clock, no log, no locks: the owner wraps it in one. Reading order: [`revision`],
//! `packed`, `history` (the ring), `leaf`, `inner`, `map` (the tree), `bulk` (many rows at a time), [`walk`], [`changes`], [`sweep`], [`load`].
#![forbid(unsafe_code)]

pub mod revision;
mod packed;
mod history;
mod leaf;
mod inner;
mod map;
mod bulk;
pub mod walk;
pub mod changes;
pub mod sweep;
pub mod load;

pub use bulk::Batch;
pub use changes::Resume;
pub use load::{LoadError, Loader, Row};
pub use map::{Index, Stats};
pub use revision::{Hit, KeyRange, Life, Revision};
pub use sweep::Swept;
