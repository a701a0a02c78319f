//! An ordered store of many copy-on-write B+tree files with atomic commits over all of them.
//!
//! The engine knows bytes, pages and files. It has never heard of a revision: what its callers
//! keep in keys, values and per-space state is theirs.
//!
//! Reading order: [`disk`] (the one door to files), [`run`] (who does background work and when),
//! [`page`] (bytes to meaning), [`space`] (which units of a file are free), [`tree`] (pages to
//! ordered keys), [`file`] (one tree file), [`manifest`] (the one commit point), [`journal`]
//! (sequential durability), [`buffer`] and [`view`] (what is applied but not yet in a file),
//! [`checkpoint`] (the dangerous sequence), [`recover`] and [`verify`], and [`store`], which ties
//! them together. A file imports only from lines above it; `tests/tidy.rs` keeps that true.

pub mod buffer;
pub mod checkpoint;
pub mod disk;
pub mod error;
pub mod file;
pub mod ids;
pub mod journal;
pub mod limits;
pub mod manifest;
pub mod page;
pub mod recover;
pub mod run;
pub mod space;
pub mod store;
pub mod tree;
pub mod verify;
pub mod view;

pub use error::{Damage, Error, Place, Result};
pub use ids::{PagePtr, SpaceId, TreeId, UNIT_BYTES};
