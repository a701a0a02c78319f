//! polybolt: an embedded MVCC key-value engine with etcd's data model.
//!
//! [`Engine::open`] opens a data directory with many [`Keyspace`]s; a keyspace is one etcd logical
//! store, split by [`Routes`] over several copy-on-write B+tree files, with an in-memory revision
//! index, batched group commit and incremental compaction.
//!
//! Writes answer with a [`Pending`]: a `Future` for tasks, and [`Pending::wait`] for threads. There
//! is no async runtime inside. Reads never wait for writers. [`Error::Refused`] means that nothing
//! was written, [`Error::Unknown`] that the write may be there after a restart.
//!
//! Reading order: `record` (the codec), `routes` (key prefixes to shards), `publish` (what anybody may
//! see), `core` (an open keyspace from the inside), `read`, `txn` and `write` (the paths of a
//! request), `watcher`, `compact`, `snapshot`, `reopen`, `house` (background work), and
//! [`keyspace`] and [`engine`], the face. A file imports only from lines above it.
#![forbid(unsafe_code)]

pub mod error;
pub mod request;
pub mod options;
mod record;
pub mod routes;
mod pins;
mod watch;
mod publish;
mod lease;
mod meta;
mod core;
mod read;
mod txn;
mod pending;
mod write;
mod watcher;
mod compact;
mod hash;
mod snapshot;
pub mod keyspace;
mod reopen;
mod house;
pub mod engine;

pub use engine::{Engine, Runtime};
pub use error::{Error, Refusal, Result};
pub use keyspace::{Applied, Command, Entry, Keyspace, TableEdit};
pub use options::{Durability, Face, Options};
pub use pending::Pending;
pub use polybolt_engine::Error as StorageError;
pub use polybolt_engine::disk;
pub use polybolt_engine::recover::OpenReport;
pub use polybolt_engine::run;
pub use polybolt_engine::store::StoreStats;
pub use polybolt_engine::verify::VerifyReport;
pub use read::RangeStream;
pub use request::{
    Compare, CompareOp, CompareTarget, DeleteRequest, DeleteResponse, Event, EventKind, HashKv, KeyValue,
    KeyspaceStatus, LeaseGranted, LeaseStatus, Op, OpResponse, PutRequest, PutResponse, RangeRequest, RangeResponse,
    ShardStatus, SortOrder, SortTarget, Span, SpanEnd, TxnRequest, TxnResponse, WatchItem, WatchRequest,
};
pub use routes::{Routes, ShardOptions};
pub use snapshot::Snapshot;
pub use watcher::Watcher;

/// Decodes bytes as everything that a keyspace reads from a disk or a stream: errors, never panics.
/// For fuzzers.
#[cfg(feature = "model")]
pub fn decode_everything(bytes: &[u8]) {
    drop(record::Record::decode(bytes));
    drop(record::State::decode(bytes));
    drop(record::RowHead::decode(bytes));
    drop(record::head_len(bytes));
    drop(record::row_revision(bytes));
    drop(Routes::decode_plain(bytes));
    drop(meta::StoredLease::decode(bytes));
    let (at, row) = bytes.split_at(bytes.len().min(record::ROW_KEY_BYTES));
    let (head, body) = row.split_at(row.len().min(60));
    drop(record::open_row(at, &bytes::Bytes::copy_from_slice(head), &bytes::Bytes::copy_from_slice(body)));
    if let Ok((reader, _)) = snapshot::SnapshotReader::new(bytes) {
        drop(reader.run(&mut |_| Ok(())));
    }
}
