//! What a keyspace is asked and what it answers: etcd's requests as plain types.
//!
//! Field meanings are etcd's (`docs/compatibility.md` has the rules). Revisions are `i64` here
//! because etcd's contract speaks of negative ones.

use crate::error::Refusal;
use bytes::Bytes;

/// A key interval: one key, `[key, end)`, or from `key` to the last key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Span {
    /// The first key, inclusive. Never empty in a valid request.
    pub key: Bytes,
    /// Where it ends.
    pub end: SpanEnd,
}

/// Where a [`Span`] ends.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SpanEnd {
    /// It is the one key.
    Single,
    /// Before this key.
    Before(Bytes),
    /// At the last key.
    Open,
}

impl Span {
    /// The one key.
    pub fn key(key: impl Into<Bytes>) -> Self {
        Span { key: key.into(), end: SpanEnd::Single }
    }

    /// All keys from `key` on.
    pub fn from_key(key: impl Into<Bytes>) -> Self {
        Span { key: key.into(), end: SpanEnd::Open }
    }

    /// `[key, end)`.
    pub fn range(key: impl Into<Bytes>, end: impl Into<Bytes>) -> Self {
        Span { key: key.into(), end: SpanEnd::Before(end.into()) }
    }

    /// All keys that start with `prefix`; all keys if it is empty.
    pub fn prefix(prefix: impl Into<Bytes>) -> Self {
        let key: Bytes = prefix.into();
        if key.is_empty() {
            return Span { key: Bytes::from_static(b"\0"), end: SpanEnd::Open };
        }
        let end = key.iter().rposition(|&byte| byte != 0xff).map(|last| {
            let mut end = key[..=last].to_vec();
            end[last] += 1;
            end
        });
        Span { key, end: end.map_or(SpanEnd::Open, |end| SpanEnd::Before(end.into())) }
    }

    /// From the wire: `range_end` empty is one key, a zero byte is open, else exclusive (RNG-2..4).
    pub fn from_wire(key: Bytes, range_end: Bytes) -> Self {
        let end = match &range_end[..] {
            [] => SpanEnd::Single,
            [0] => SpanEnd::Open,
            _ => SpanEnd::Before(range_end),
        };
        Span { key, end }
    }

    /// True if `key` lies in it.
    pub fn contains(&self, key: &[u8]) -> bool {
        match &self.end {
            SpanEnd::Single => key == &self.key[..],
            SpanEnd::Before(end) => key >= &self.key[..] && key < &end[..],
            SpanEnd::Open => key >= &self.key[..],
        }
    }
}

/// One version of one key. The keys and small values of one answer share their memory, pieces of at most 64 KiB:
/// copy out of it what is kept for long.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KeyValue {
    /// The key.
    pub key: Bytes,
    /// The revision at which this life of the key began.
    pub create_revision: i64,
    /// The revision of this version.
    pub mod_revision: i64,
    /// How many puts since creation; 1 at creation.
    pub version: i64,
    /// The value; empty where only keys were asked for.
    pub value: Bytes,
    /// The lease it is attached to, or 0.
    pub lease: i64,
}

/// A [`KeyValue`] where it lies, for as long as somebody looks at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KeyValueRef<'a> {
    /// The key.
    pub key: &'a [u8],
    /// The revision at which this life of the key began.
    pub create_revision: i64,
    /// The revision of this version.
    pub mod_revision: i64,
    /// How many puts since creation; 1 at creation.
    pub version: i64,
    /// The value; empty where only keys were asked for.
    pub value: &'a [u8],
    /// The lease it is attached to, or 0.
    pub lease: i64,
}

impl KeyValueRef<'_> {
    /// A copy of its own.
    pub fn to_owned(&self) -> KeyValue {
        KeyValue {
            key: Bytes::copy_from_slice(self.key),
            create_revision: self.create_revision,
            mod_revision: self.mod_revision,
            version: self.version,
            value: Bytes::copy_from_slice(self.value),
            lease: self.lease,
        }
    }
}

impl KeyValue {
    /// The same, lent.
    pub fn lent(&self) -> KeyValueRef<'_> {
        KeyValueRef {
            key: &self.key,
            create_revision: self.create_revision,
            mod_revision: self.mod_revision,
            version: self.version,
            value: &self.value,
            lease: self.lease,
        }
    }

    /// The same in bytes of its own, if they are parts of something larger.
    pub(crate) fn detached(mut self) -> Self {
        for bytes in [&mut self.key, &mut self.value] {
            if !bytes.is_unique() {
                *bytes = Bytes::copy_from_slice(bytes);
            }
        }
        self
    }
}

/// How results are ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SortOrder {
    /// As found: by key.
    #[default]
    None,
    /// Ascending.
    Ascend,
    /// Descending.
    Descend,
}

/// By what results are ordered, or what a compare looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SortTarget {
    /// The key.
    #[default]
    Key,
    /// The version.
    Version,
    /// The create revision.
    Create,
    /// The mod revision.
    Mod,
    /// The value.
    Value,
}

/// A range request (RNG rules).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeRequest {
    /// Which keys.
    pub span: Span,
    /// At most this many; <= 0 is all.
    pub limit: i64,
    /// At this revision; <= 0 is the current one.
    pub revision: i64,
    /// Order.
    pub sort_order: SortOrder,
    /// By what.
    pub sort_target: SortTarget,
    /// Leave out the values.
    pub keys_only: bool,
    /// Only count.
    pub count_only: bool,
    /// Drop those modified before, if not 0.
    pub min_mod_revision: i64,
    /// Drop those modified after, if not 0.
    pub max_mod_revision: i64,
    /// Drop those created before, if not 0.
    pub min_create_revision: i64,
    /// Drop those created after, if not 0.
    pub max_create_revision: i64,
}

impl RangeRequest {
    /// Everything in `span` at the current revision, by key.
    pub fn new(span: Span) -> Self {
        RangeRequest {
            span,
            limit: 0,
            revision: 0,
            sort_order: SortOrder::None,
            sort_target: SortTarget::Key,
            keys_only: false,
            count_only: false,
            min_mod_revision: 0,
            max_mod_revision: 0,
            min_create_revision: 0,
            max_create_revision: 0,
        }
    }
}

/// What a range answers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RangeResponse {
    /// The current revision when it was read (in a txn: REV-10's), never the requested one.
    pub revision: i64,
    /// The keys.
    pub kvs: Vec<KeyValue>,
    /// True if the limit cut something.
    pub more: bool,
    /// Live keys in the span at the read revision, whatever limit and filters say.
    pub count: i64,
}

/// A put (PUT rules).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PutRequest {
    /// The key.
    pub key: Bytes,
    /// Its value.
    pub value: Bytes,
    /// The lease to attach to, or 0.
    pub lease: i64,
    /// Answer with the version before.
    pub prev_kv: bool,
    /// Keep the value.
    pub ignore_value: bool,
    /// Keep the lease.
    pub ignore_lease: bool,
}

impl PutRequest {
    /// Key and value, no lease.
    pub fn new(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        PutRequest { key: key.into(), value: value.into(), ..PutRequest::default() }
    }
}

/// What a put answers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PutResponse {
    /// The put's revision.
    pub revision: i64,
    /// The version before, if asked for and there was one.
    pub prev_kv: Option<KeyValue>,
}

/// A delete (DEL rules).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeleteRequest {
    /// Which keys.
    pub span: Span,
    /// Answer with what was deleted.
    pub prev_kv: bool,
}

/// What a delete answers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeleteResponse {
    /// The revision after it.
    pub revision: i64,
    /// How many keys went.
    pub deleted: i64,
    /// What they were, by key, if asked for.
    pub prev_kvs: Vec<KeyValue>,
}

/// How a stored value relates to the given one: `stored (op) given`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CompareOp {
    /// Equal.
    Equal,
    /// Greater.
    Greater,
    /// Less.
    Less,
    /// Not equal.
    NotEqual,
    /// A relation this version does not know: true (TXN-10).
    Unknown,
}

/// What a compare looks at, with the given operand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CompareTarget {
    /// The version.
    Version(i64),
    /// The create revision.
    Create(i64),
    /// The mod revision.
    Mod(i64),
    /// The value.
    Value(Bytes),
    /// The lease.
    Lease(i64),
    /// A target this version does not know: treated as equal (TXN-10).
    Unknown,
}

/// One guard of a txn (TXN-5..10).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compare {
    /// Which keys; every live one has to satisfy the relation.
    pub span: Span,
    /// What is compared with what.
    pub target: CompareTarget,
    /// How.
    pub op: CompareOp,
}

/// One operation of a txn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// A range.
    Range(RangeRequest),
    /// A put.
    Put(PutRequest),
    /// A delete.
    Delete(DeleteRequest),
    /// A nested txn.
    Txn(TxnRequest),
    /// One that a frontend can make nothing of: in its turn, it is why the txn is refused (TXN-2).
    Invalid(Refusal),
}

/// A txn (TXN rules).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TxnRequest {
    /// All must hold for `success`.
    pub compare: Vec<Compare>,
    /// Run if they do.
    pub success: Vec<Op>,
    /// Run if they do not.
    pub failure: Vec<Op>,
}

impl TxnRequest {
    /// Bytes of its keys and values, compares included, which are held but not written.
    pub(crate) fn bytes(&self) -> usize {
        let compare = |compare: &Compare| {
            let value = if let CompareTarget::Value(value) = &compare.target { value.len() } else { 0 };
            compare.span.key.len() + value
        };
        self.compare.iter().map(compare).sum::<usize>() + self.written_bytes()
    }

    /// Of its operations alone.
    pub(crate) fn written_bytes(&self) -> usize {
        self.success.iter().chain(&self.failure).map(Op::bytes).sum()
    }
}

impl Op {
    /// Bytes of its keys and values.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Op::Put(put) => put.key.len() + put.value.len(),
            Op::Range(range) => range.span.key.len(),
            Op::Delete(delete) => delete.span.key.len(),
            Op::Txn(txn) => txn.written_bytes(),
            Op::Invalid(_) => 0,
        }
    }
}

/// What one operation of a txn answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OpResponse {
    /// To a range.
    Range(RangeResponse),
    /// To a put.
    Put(PutResponse),
    /// To a delete.
    Delete(DeleteResponse),
    /// To a nested txn (its `revision` is 0, as etcd's header there is empty).
    Txn(TxnResponse),
}

/// What a txn answers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TxnResponse {
    /// The revision after it.
    pub revision: i64,
    /// Whether the guard held.
    pub succeeded: bool,
    /// One per operation of the branch that ran.
    pub responses: Vec<OpResponse>,
}

/// What a lease is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseStatus {
    /// Its id.
    pub id: i64,
    /// Seconds it was granted.
    pub granted_ttl: i64,
    /// Whole seconds left, truncated; may be <= 0 until it is revoked.
    pub remaining_ttl: i64,
    /// Its keys, in order, if asked for.
    pub keys: Vec<Bytes>,
}

/// What a grant answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseGranted {
    /// The current revision.
    pub revision: i64,
    /// The lease's id.
    pub id: i64,
    /// Its effective time to live in seconds.
    pub ttl: i64,
}

/// A request to watch (WCH rules).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchRequest {
    /// Which keys.
    pub span: Span,
    /// From this revision on; 0 is what comes next.
    pub start_revision: i64,
    /// Leave out puts.
    pub no_put: bool,
    /// Leave out deletes.
    pub no_delete: bool,
    /// Give the version before.
    pub prev_kv: bool,
}

/// A hash over the keys (HSH rules).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HashKv {
    /// CRC-32C as etcd computes it.
    pub hash: u32,
    /// The current revision.
    pub revision: i64,
    /// The compacted revision, -1 if never.
    pub compact_revision: i64,
    /// The revision hashed at.
    pub hash_revision: i64,
}

/// Sizes and counts of a keyspace.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KeyspaceStatus {
    /// The current (visible) revision.
    pub revision: i64,
    /// The compacted revision, -1 if never.
    pub compact_revision: i64,
    /// The newest applied index.
    pub applied_index: u64,
    /// Bytes allocated on disk for its files.
    pub size: u64,
    /// Bytes of them in use.
    pub size_in_use: u64,
    /// Leases alive.
    pub leases: u64,
    /// Watchers.
    pub watchers: u64,
    /// Places of its files that were damaged when the scrub last read them.
    pub damage: Vec<polybolt_engine::Finding>,
    /// Each shard, in route order.
    pub shards: Vec<ShardStatus>,
}

/// Sizes and counts of a shard.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ShardStatus {
    /// Its name.
    pub name: String,
    /// The prefixes routed to it; empty for the default shard.
    pub prefixes: Vec<Bytes>,
    /// Its file.
    pub file: std::path::PathBuf,
    /// "sync", "batch" or "volatile".
    pub durability: &'static str,
    /// Bytes allocated.
    pub size: u64,
    /// Bytes in use.
    pub size_in_use: u64,
    /// Live keys.
    pub keys: u64,
    /// Revisions held.
    pub revisions: u64,
    /// The lowest revision that it answers.
    pub floor: i64,
    /// Levels of its tree.
    pub depth: u32,
    /// Bytes of memory of its index, and of the table of its tree's leaves.
    pub index_bytes: u64,
}
