//! An ordered store of many copy-on-write B+tree files with atomic commits over all of them.
//!
//! The engine knows bytes, pages and files. It has never heard of a revision: what its callers
//! keep in keys, values and per-space state is theirs.
//!
//! Reading order: [`run`] (who does background work and when), [`disk`] (the one door to files),
//! [`page`] (bytes to meaning), [`space`] (which units of a file are free), [`tree`] (pages to
//! ordered keys), [`mod@file`] (one tree file), [`manifest`] (the one commit point), [`journal`]
//! (sequential durability), [`buffer`] and [`view`] (what is applied but not yet in a file),
//! [`checkpoint`] (the dangerous sequence), [`recover`], [`verify`], [`mod@check`], [`vacuum`],
//! [`scrub`], and [`store`], which ties
//! them together. A file imports only from lines above it; `tests/tidy.rs` keeps that true.

#[doc = include_str!("../FORMAT.md")]
pub mod format {}

#[doc(hidden)]
pub mod sync;
pub mod error;
#[doc(hidden)]
pub mod defect;
pub mod ids;
pub mod limits;
pub mod finding;
pub mod codec;
pub mod run;
pub mod disk;
pub mod page;
pub mod space;
pub mod tree;
pub mod cached;
pub mod file;
pub mod ticket;
pub mod poison;
pub mod batch;
pub mod manifest;
pub mod journal;
pub mod buffer;
pub mod view;
pub mod catalog;
pub mod core;
pub mod checkpoint;
pub mod recover;
pub mod verify;
pub mod check;
pub mod vacuum;
pub mod scrub;
pub mod store;

pub use batch::{
    AdmitError, Batch, Cost, Durability, DurableListener, Edit, Replay, Replayed, SpaceInfo, SpaceSpec, TreeClass,
    TreeEdit, TreeInfo, TreeSpec,
};
pub use error::{Damage, Error, Place, Result};
pub use finding::{Finding, Findings, Scrubbed, Severity};
pub use ids::{PagePtr, SpaceId, TreeId, UNIT_BYTES};
pub use store::{Admission, Runtime, Store, StoreOptions};
pub use ticket::{Position, Ticket, Watermark};
