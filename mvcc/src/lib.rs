//! polybolt: an embedded MVCC key-value engine with etcd's data model.
//!
//! [`Engine::open`] opens a data directory with many [`Keyspace`]s; a keyspace is one etcd logical
//! store, split by [`Routes`] over several B+tree files.
#![forbid(unsafe_code)]

pub mod error;
pub mod request;
pub mod options;
