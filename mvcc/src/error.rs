//! Why a keyspace refused, and whether the write may be there all the same.

use std::fmt;

/// The result of a keyspace operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation has no answer.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Error {
    /// Nothing was written; what to do about it is in the refusal.
    Refused(Refusal),
    /// A write reached the journal but its sync failed: it may or may not be there after a restart.
    Unknown(polybolt_engine::Error),
    /// The storage failed on a read, an open or a background job; nothing was written.
    Storage(polybolt_engine::Error),
}

/// Why a request was refused before anything was written. Messages are etcd's where etcd has them.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// The key is empty.
    EmptyKey,
    /// `ignore_value` or `ignore_lease` on an absent key, or an empty op in a txn.
    KeyNotFound,
    /// `ignore_value` with a value.
    ValueProvided,
    /// `ignore_lease` with a lease.
    LeaseProvided,
    /// Over `max_txn_ops`.
    TooManyOps,
    /// One key is written twice in a txn.
    DuplicateKey,
    /// A sort order or target that does not exist.
    InvalidSortOption,
    /// Below the compacted revision (or a shard's floor).
    Compacted {
        /// The compacted revision, or the floor.
        revision: i64,
    },
    /// Above the current revision.
    FutureRevision {
        /// The current revision.
        current: i64,
    },
    /// The quota is used up.
    NoSpace,
    /// The disk is full. Writes are taken again once it has room; those that free space are taken now.
    DiskFull,
    /// No such lease.
    LeaseNotFound,
    /// The lease id is taken.
    LeaseExists,
    /// Over the longest time to live.
    LeaseTtlTooLarge,
    /// In a replayed engine: the lease has a checkpoint, or one on its way. Propose a checkpoint of 0 for
    /// it, and renew it then.
    LeaseCheckpointed,
    /// The request is over `max_request_bytes`.
    TooLarge {
        /// Its size.
        size: u64,
        /// The maximum.
        max: u64,
    },
    /// No room in the write buffers within the deadline, nor in the line of those that wait for some: the disk
    /// does not keep up.
    TooManyRequests,
    /// The watched range is empty.
    EmptyWatchRange,
    /// No keyspace of that name.
    KeyspaceNotFound {
        /// The name.
        name: String,
    },
    /// A keyspace of that name exists.
    KeyspaceExists {
        /// The name.
        name: String,
    },
    /// This engine (replayed, read-only, or with such routes) does not do that.
    Unsupported {
        /// What and why.
        why: String,
    },
    /// An argument cannot be used.
    Invalid {
        /// What and why.
        why: String,
    },
    /// An applied index not above the last one (BKE-7): the effects are there already.
    AlreadyApplied {
        /// The newest applied index.
        applied: u64,
    },
    /// A snapshot that would take the keyspace back.
    OlderSnapshot {
        /// The revision that it is of.
        snapshot: i64,
        /// The newest revision.
        current: i64,
    },
    /// The engine is closed.
    Closed,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::EmptyKey => f.write_str("etcdserver: key is not provided"),
            Refusal::KeyNotFound => f.write_str("etcdserver: key not found"),
            Refusal::ValueProvided => f.write_str("etcdserver: value is provided"),
            Refusal::LeaseProvided => f.write_str("etcdserver: lease is provided"),
            Refusal::TooManyOps => f.write_str("etcdserver: too many operations in txn request"),
            Refusal::DuplicateKey => f.write_str("etcdserver: duplicate key given in txn request"),
            Refusal::InvalidSortOption => f.write_str("etcdserver: invalid sort option"),
            Refusal::Compacted { .. } => f.write_str("etcdserver: mvcc: required revision has been compacted"),
            Refusal::FutureRevision { .. } => f.write_str("etcdserver: mvcc: required revision is a future revision"),
            // Clients know this one by its text; which of the two it is, the server's status says.
            Refusal::NoSpace | Refusal::DiskFull => f.write_str("etcdserver: mvcc: database space exceeded"),
            Refusal::LeaseNotFound => f.write_str("etcdserver: requested lease not found"),
            Refusal::LeaseExists => f.write_str("etcdserver: lease already exists"),
            Refusal::LeaseTtlTooLarge => f.write_str("etcdserver: too large lease TTL"),
            Refusal::LeaseCheckpointed => f.write_str("the lease's checkpoint has to be taken back first"),
            Refusal::TooLarge { .. } => f.write_str("etcdserver: request is too large"),
            Refusal::TooManyRequests => f.write_str("etcdserver: too many requests"),
            Refusal::EmptyWatchRange => f.write_str("mvcc: watcher range is empty"),
            Refusal::KeyspaceNotFound { name } => write!(f, "there is no keyspace {name:?}"),
            Refusal::KeyspaceExists { name } => write!(f, "keyspace {name:?} exists already"),
            Refusal::Unsupported { why } | Refusal::Invalid { why } => f.write_str(why),
            Refusal::AlreadyApplied { applied } => write!(f, "index {applied} and all before it are applied already"),
            Refusal::OlderSnapshot { snapshot, current } => {
                write!(f, "the snapshot of revision {snapshot} is older than the keyspace, which is at {current}")
            }
            Refusal::Closed => f.write_str("the engine is closed"),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Refused(refusal) => refusal.fmt(f),
            Error::Unknown(cause) => write!(f, "the write may or may not be durable: {cause}"),
            Error::Storage(cause) => cause.fmt(f),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Refused(_) => None,
            Error::Unknown(cause) | Error::Storage(cause) => Some(cause),
        }
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        Error::Refused(refusal)
    }
}

impl From<polybolt_engine::Error> for Error {
    fn from(cause: polybolt_engine::Error) -> Self {
        Error::Storage(cause)
    }
}
