//! The same etcd work on polybolt and on what a user would pick instead, in one run.

// Of the project's own benches, which are no dependency: they need the whole server.
#[path = "../../src/dataset.rs"]
pub mod dataset;
#[path = "../../src/measure.rs"]
pub mod measure;

pub mod peer;

pub mod figure;
pub mod record;

pub mod ordered;

pub mod fjall;
pub mod lmdb;
pub mod polybolt;
pub mod redb;
#[cfg(feature = "rocksdb")]
pub mod rocksdb;
pub mod sqlite;

pub mod cost;
pub mod plan;

pub mod combine;
pub mod later;
pub mod passes;
pub mod raw;

pub mod beside;
pub mod callers;
pub mod durable;
pub mod gets;
pub mod memory;
pub mod rows;
pub mod writes;

pub mod arguments;
pub mod bars;
pub mod child;
pub mod etcd;
pub mod handle;
pub mod report;

pub mod plot;
pub mod run;
