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
//! # Under a replicated log
//!
//! With [`Face::Replayed`] durability comes from a log above, Raft's say, and writes come only through
//! [`Keyspace::apply`]: the same entries give the same state, answers and hashes on every replica, in
//! whatever batches they come. An entry that is refused is refused everywhere, and moves the applied
//! index too. After a crash the keyspace is at an earlier entry: replay from [`Keyspace::applied_index`]
//! on; what is replayed twice answers `AlreadyApplied`. The log has to keep everything above
//! [`Keyspace::log_floor`]. Time is not part of the state: the leader calls [`Keyspace::promote`] and
//! proposes a revoke for each of [`Keyspace::due_leases`]; no key goes without one. With
//! [`Options::lease_checkpoint_interval`] it also proposes [`Command::LeaseCheckpoint`] with what
//! [`Keyspace::due_lease_checkpoints`] tells, and one of 0 before it renews a lease that has one. What can be refused
//! without a look at the state ([`Keyspace::validate_txn`] and its like) is best refused before it is proposed.
//!
//! A replica that is too far behind for the log gets another's [`Keyspace::snapshot`] and hands it to
//! [`Engine::install`]: keys and history, leases, tables, applied index and history hash are the
//! snapshot's then, handles and watchers stay, and a crash leaves the old or the new state. An `apply` that
//! waits meanwhile goes on in the new state, where what the snapshot has already answers `AlreadyApplied`.
//! Go on with the entry after [`Keyspace::applied_index`].
//!
//! ```
//! use polybolt::{Applied, Command, Engine, Entry, Error, Face, Op, Options, PutRequest, Refusal, Routes};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let dir = tempfile::tempdir()?;
//! let engine = Engine::open(dir.path(), Options { face: Face::Replayed, ..Options::default() })?;
//! let keyspace = engine.create_keyspace("default", Routes::kubernetes())?;
//! let entry = |index| Entry { index, command: Command::Op(Op::Put(PutRequest::new("a", "1"))) };
//! let answers = keyspace.apply(vec![entry(1), entry(2), entry(2)]).wait()?;
//! assert!(matches!(&answers[0], Ok(Applied::Txn(txn)) if txn.revision == 2));
//! assert!(matches!(&answers[2], Err(Error::Refused(Refusal::AlreadyApplied { applied: 2 }))));
//! assert_eq!(keyspace.applied_index(), 2);
//! engine.close()?;
//! # Ok(())
//! # }
//! ```
//!
//! Reading order: [`request`] and [`event`] (what goes in and out), `record` (the codec), `change` (what a commit changes), `routes` (key prefixes to shards), `publish` (what anybody may
//! see), [`pace`] (how fast a sweep goes), `linger` (dead rows that stay in their leaves for now), `core` (an open keyspace from the inside), `fetch` (rows of what was found), `read`, `stream`, `txn` and `write` (the paths of a
//! request), `history` and `watcher`, `compact`, `snapshot`, [`command`], `reopen`, `install`, `reshard`, `house`
//! (background work), and [`keyspace`] and [`engine`], the face. A file imports only from lines above it.
#![forbid(unsafe_code)]

pub mod error;
pub mod request;
mod wire;
pub mod event;
pub mod pace;
pub mod options;
pub mod routes;
mod row;
mod record;
mod slab;
mod change;
mod pins;
pub mod hash_index;
mod keys;
mod counts;
pub mod stats;
mod watch;
mod publish;
pub mod leased;
mod lease;
mod meta;
mod linger;
mod core;
mod fetch;
mod rows;
mod read;
mod stream;
mod get;
mod txn;
mod pending;
mod write;
mod history;
mod watcher;
mod hash;
mod compact;
mod snapshot;
pub mod command;
mod survey;
mod check;
mod compaction;
mod defragment;
pub mod keyspace;
mod reopen;
mod fill;
mod install;
mod reshard;
mod house;
pub mod engine;
mod salvage;
#[cfg(all(test, feature = "loom"))]
mod models;
#[cfg(feature = "model")]
mod probe;
#[cfg(feature = "model")]
pub mod model;

pub use check::{CheckReport, FINDINGS_MAX, check, check_on};
pub use command::{Applied, Command, Entry, TableEdit};
pub use compaction::{Compaction, CompactionProgress, CompactionWatch};
pub use engine::{Engine, Runtime};
pub use error::{Error, Refusal, Result};
pub use event::{Event, EventKind, WatchItem};
pub use install::{Install, Older, Replacement};
pub use keyspace::Keyspace;
pub use options::{CompactionPace, Durability, Face, Options};
pub use pending::Pending;
pub use polybolt_engine::Error as StorageError;
pub use polybolt_engine::Place;
pub use polybolt_engine::check::JournalReport;
pub use polybolt_engine::disk;
pub use polybolt_engine::finding::{Finding, Findings, Scrubbed, Severity};
pub use polybolt_engine::recover::OpenReport;
pub use polybolt_engine::run;
pub use polybolt_engine::store::StoreStats;
pub use polybolt_engine::verify::VerifyReport;
pub use request::{
    Compare, CompareOp, CompareTarget, DeleteRequest, DeleteResponse, HashKv, KeyValue, KeyValueRef, KeyspaceStatus,
    LeaseGranted, LeaseStatus, Op, OpResponse, PutRequest, PutResponse, RangeRequest, RangeResponse, ShardStatus,
    SortOrder, SortTarget, Span, SpanEnd, TxnRequest, TxnResponse, WatchRequest,
};
pub use reshard::{Reshard, ReshardProgress, ReshardStage};
pub use routes::{Routes, ShardOptions};
pub use salvage::{KeyAt, List, Loss, Lost, SalvageReport, SalvagedKeyspace, salvage, salvage_on};
pub use snapshot::Snapshot;
pub use stats::{KeyspaceStats, TIMING_BOUNDS, TimingStats, Timings};
pub use stream::RangeStream;
pub use survey::Progress;
pub use watcher::Watcher;

/// Decodes bytes as everything that a keyspace reads from a disk or a stream: errors, never panics; what was
/// decoded and is encoded again is the same. For fuzzers.
#[cfg(feature = "model")]
pub fn decode_everything(bytes: &[u8]) {
    drop(record::Record::decode(bytes));
    if let Ok(state) = record::State::decode(bytes) {
        assert_eq!(state.encode(), bytes);
    }
    drop(row::RowHead::decode(bytes));
    drop(row::head_len(bytes));
    if let Ok(at) = row::row_revision(bytes) {
        assert_eq!(row::row_key(at), bytes);
    }
    if let Ok(routes) = Routes::decode_plain(bytes) {
        assert_eq!(routes.encode(), bytes);
    }
    if let Ok(lease) = meta::StoredLease::decode(bytes) {
        assert_eq!(lease.encode(), bytes);
    }
    if let Some(id) = meta::lease_id(bytes) {
        assert_eq!(meta::lease_key(id), bytes);
    }
    let (at, row) = bytes.split_at(bytes.len().min(row::ROW_KEY_BYTES));
    let (head, body) = row.split_at(row::head_len(row).map_or(row.len(), |len| len.min(row.len())));
    let (head, body) = (bytes::Bytes::copy_from_slice(head), bytes::Bytes::copy_from_slice(body));
    drop(row::open_row(at, &head, &body));
    if let Ok((mut reader, _)) = snapshot::SnapshotReader::new(bytes) {
        while let Ok(Some(_)) = reader.next_items() {}
    }
}
