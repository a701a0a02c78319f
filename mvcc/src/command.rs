//! What a log can ask for, and what it does: compaction, leases and tables, besides operations on keys.

use crate::core::{Core, Round, Writer};
use crate::error::{Error, Refusal, Result};
use crate::lease::{Renewal, TTL_MAX};
use crate::meta::{self, StoredLease};
use crate::options::Face;
use crate::record::{MetaEdit, State};
use crate::request::{DeleteRequest, LeaseGranted, Op, Span, TxnRequest, TxnResponse};
use crate::txn;
use crate::write::{Extra, NotNow};
use bytes::Bytes;
use polybolt_engine::sync::atomic::Ordering;
use polybolt_engine::{Position, limits};

/// A request of a replicated log, with its position there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The log's position; must rise.
    pub index: u64,
    /// What to do.
    pub command: Command,
}

/// What a log can ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// A put, delete, range or txn.
    Op(Op),
    /// A compaction.
    Compact(i64),
    /// A compaction of one shard's history alone.
    CompactShard {
        /// Its name.
        shard: String,
        /// The lowest revision that it answers from then on.
        revision: i64,
    },
    /// A lease with this id and time to live.
    LeaseGrant {
        /// Its id; not 0.
        id: i64,
        /// Seconds.
        ttl: i64,
    },
    /// The end of a lease.
    LeaseRevoke(i64),
    /// How many seconds remain of leases, by id; 0 takes that back (LSE-16). At most
    /// [`LEASES_PER_CHECKPOINT`] of them. What is of no lease is passed over.
    LeaseCheckpoint(Vec<(i64, i64)>),
    /// Changes of metadata tables.
    Table(Vec<TableEdit>),
    /// Nothing: only the index moves.
    Nothing,
}

impl Command {
    /// About how many bytes of keys and values it holds.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Command::Op(op) => op.bytes(),
            Command::LeaseCheckpoint(remaining) => size_of_val(remaining.as_slice()),
            Command::Table(edits) => edits.iter().map(TableEdit::bytes).sum(),
            Command::CompactShard { shard, .. } => shard.len(),
            Command::Compact(_) | Command::LeaseGrant { .. } | Command::LeaseRevoke(_) | Command::Nothing => 0,
        }
    }
}

/// The most leases of one checkpoint.
pub const LEASES_PER_CHECKPOINT: usize = 1000;

/// What a command answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Applied {
    /// To a put, delete, range or txn.
    Txn(TxnResponse),
    /// To a compaction, of all or of a shard, or to a revoke: the revision after it.
    Revision(i64),
    /// To a grant.
    Lease(LeaseGranted),
    /// To the rest.
    Done,
}

/// A change of a metadata table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableEdit {
    /// The table.
    pub table: String,
    /// The key in it.
    pub key: Bytes,
    /// Its value; None removes it.
    pub value: Option<Bytes>,
}

impl TableEdit {
    pub(crate) fn bytes(&self) -> usize {
        self.key.len() + self.value.as_ref().map_or(0, Bytes::len)
    }
}

/// Refuses what the meta tree cannot hold, whatever the state.
pub(crate) fn check_table(edits: &[TableEdit]) -> Result<(), Refusal> {
    for edit in edits {
        let key = meta::table_key(&edit.table, &edit.key).len();
        if key > limits::TREE_KEY_BYTES_MAX || edit.table.contains('\0') {
            let (len, max) = (edit.key.len(), (limits::TREE_KEY_BYTES_MAX + edit.key.len()).saturating_sub(key));
            let why = format!("a key of {len} bytes in table {:?}, where keys have at most {max}", edit.table);
            return Err(Refusal::Invalid { why });
        }
        if edit.value.as_ref().is_some_and(|value| value.len() > limits::BODY_BYTES_MAX) {
            let (size, max) = (edit.value.as_ref().map_or(0, Bytes::len) as u64, limits::BODY_BYTES_MAX as u64);
            return Err(Refusal::TooLarge { size, max });
        }
    }
    Ok(())
}

/// Requires: they passed [`check_table`].
pub(crate) fn table_edits(edits: &[TableEdit]) -> Vec<MetaEdit> {
    edits
        .iter()
        .map(|edit| MetaEdit { key: meta::table_key(&edit.table, &edit.key), value: edit.value.clone() })
        .collect()
}

pub(crate) fn compact(
    core: &Core,
    writer: &mut Writer,
    revision: i64,
    applied_index: Option<u64>,
) -> Result<(), NotNow> {
    let (main, compacted) = (writer.state.main.cast_signed(), writer.state.compacted);
    if revision <= compacted {
        return Err(Error::from(Refusal::Compacted { revision: compacted }).into());
    }
    if revision > main {
        return Err(Error::from(Refusal::FutureRevision { current: main }).into());
    }
    let extra = Extra { compacted: Some(revision), applied_index, frees_space: true, ..Extra::default() };
    core.commit(writer, &[], extra)?;
    if core.options.remember_hashes {
        let was_over = core.swept.reached() >= Position(compacted.max(0).cast_unsigned());
        core.rounds.lock().push_back(Round { at: revision, before: compacted, was_over });
    }
    Ok(())
}

/// Raises the floor of a shard.
pub(crate) fn compact_shard(
    core: &Core,
    writer: &mut Writer,
    shard: &str,
    revision: i64,
    applied_index: Option<u64>,
) -> Result<(), NotNow> {
    let Some(at) = core.shards.iter().position(|known| known.name == shard) else {
        let why = format!("keyspace {:?} has no shard {shard:?}", core.name);
        return Err(Error::from(Refusal::Invalid { why }).into());
    };
    let State { main, compacted, floors, .. } = &writer.state;
    let floor = floors[at].cast_signed().max(*compacted);
    if revision <= floor {
        return Err(Error::from(Refusal::Compacted { revision: floor }).into());
    }
    if revision > main.cast_signed() {
        return Err(Error::from(Refusal::FutureRevision { current: main.cast_signed() }).into());
    }
    let floor = Some((at, revision));
    core.commit(writer, &[], Extra { floor, applied_index, frees_space: true, ..Extra::default() })
}

pub(crate) fn grant(
    core: &Core,
    writer: &mut Writer,
    id: i64,
    ttl: i64,
    entropy: u64,
    applied_index: Option<u64>,
) -> Result<LeaseGranted, NotNow> {
    if ttl > TTL_MAX {
        return Err(Error::from(Refusal::LeaseTtlTooLarge).into());
    }
    let ttl = ttl.max(core.options.min_lease_ttl);
    let mut id = id;
    {
        let lessor = core.lessor.lock();
        let mut random = entropy;
        while id == 0 || (random != entropy && lessor.exists(id)) {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            id = (random >> 1).cast_signed();
        }
        if lessor.exists(id) {
            return Err(Error::from(Refusal::LeaseExists).into());
        }
    }
    let value = StoredLease { ttl, remaining: 0 }.encode();
    let meta = vec![MetaEdit { key: meta::lease_key(id), value: Some(value) }];
    core.commit(writer, &[], Extra { meta, applied_index, ..Extra::default() })?;
    let now = core.clock.monotonic();
    core.lessor.lock().grant(id, ttl, now);
    if core.options.face == Face::Standalone {
        core.work.raise();
    }
    Ok(LeaseGranted { revision: writer.state.main.cast_signed(), id, ttl })
}

/// Deletes the keys of a lease, ascending, under one revision, and the lease with them (LSE-5).
pub(crate) fn revoke(core: &Core, writer: &mut Writer, id: i64, applied_index: Option<u64>) -> Result<i64, NotNow> {
    let mut keys = {
        let lessor = core.lessor.lock();
        if !lessor.exists(id) {
            return Err(Error::from(Refusal::LeaseNotFound).into());
        }
        lessor.keys(id)
    };
    keys.sort_unstable();
    let meta = vec![MetaEdit { key: meta::lease_key(id), value: None }];
    let extra = Extra { meta, applied_index, frees_space: true, ..Extra::default() };
    core.evaluate(writer, extra, |evaluation| {
        for key in keys {
            evaluation.delete(&DeleteRequest { span: Span::key(key), prev_kv: false })?;
        }
        Ok(())
    })?;
    core.lessor.lock().revoke(id);
    core.counters.leases_revoked.fetch_add(1, Ordering::Relaxed);
    Ok(writer.state.main.cast_signed())
}

/// Records what remains of leases.
pub(crate) fn checkpoint(
    core: &Core,
    writer: &mut Writer,
    leases: &[(i64, i64)],
    applied_index: Option<u64>,
) -> Result<(), NotNow> {
    if leases.len() > LEASES_PER_CHECKPOINT {
        let why = format!("{} leases in one checkpoint: at most {LEASES_PER_CHECKPOINT}", leases.len());
        return Err(Error::from(Refusal::Invalid { why }).into());
    }
    let meta = {
        let lessor = core.lessor.lock();
        let stored = leases.iter().filter_map(|(id, remaining)| {
            let remaining = (*remaining).max(0);
            let value = StoredLease { ttl: lessor.ttl(*id)?, remaining }.encode();
            Some(MetaEdit { key: meta::lease_key(*id), value: Some(value) })
        });
        stored.collect()
    };
    core.commit(writer, &[], Extra { meta, applied_index, frees_space: true, ..Extra::default() })?;
    let now = core.clock.monotonic();
    let mut lessor = core.lessor.lock();
    for (id, remaining) in leases {
        lessor.checkpointed(*id, (*remaining).max(0), now);
    }
    Ok(())
}

/// Takes a lease's checkpoint back and renews it; 0 if it is gone.
pub(crate) fn renew(core: &Core, writer: &mut Writer, id: i64) -> Result<i64, NotNow> {
    let renew = || core.lessor.lock().keep_alive(id, core.clock.monotonic());
    match renew() {
        Renewal::Renewed(ttl) => return Ok(ttl),
        Renewal::Gone => return Ok(0),
        Renewal::Checkpointed if core.options.face == Face::Replayed => {
            return Err(Error::from(Refusal::LeaseCheckpointed).into());
        }
        Renewal::Checkpointed => checkpoint(core, writer, &[(id, 0)], None)?,
    }
    match renew() {
        Renewal::Renewed(ttl) => Ok(ttl),
        Renewal::Gone | Renewal::Checkpointed => Ok(0),
    }
}

pub(crate) fn apply_entry(core: &Core, writer: &mut Writer, entry: &Entry) -> Result<Applied, NotNow> {
    let applied = writer.state.applied_index;
    if entry.index <= applied {
        return Err(Error::from(Refusal::AlreadyApplied { applied }).into());
    }
    let index = Some(entry.index);
    let extra = Extra { applied_index: index, ..Extra::default() };
    match &entry.command {
        Command::Op(op) => {
            let request = match op {
                Op::Txn(txn) => txn.clone(),
                op => TxnRequest { success: vec![op.clone()], ..TxnRequest::default() },
            };
            txn::check_txn(&request, core.options.max_txn_ops).map_err(Error::from)?;
            core.evaluate(writer, extra, |evaluation| evaluation.txn(&request)).map(Applied::Txn)
        }
        Command::Compact(revision) => {
            compact(core, writer, *revision, index)?;
            Ok(Applied::Revision(writer.state.main.cast_signed()))
        }
        Command::CompactShard { shard, revision } => {
            compact_shard(core, writer, shard, *revision, index)?;
            Ok(Applied::Revision(writer.state.main.cast_signed()))
        }
        Command::LeaseGrant { id, ttl } => grant(core, writer, *id, *ttl, 0, index).map(Applied::Lease),
        Command::LeaseRevoke(id) => revoke(core, writer, *id, index).map(Applied::Revision),
        Command::LeaseCheckpoint(leases) => {
            checkpoint(core, writer, leases, index)?;
            Ok(Applied::Done)
        }
        Command::Table(edits) => {
            check_table(edits).map_err(Error::from)?;
            let extra = Extra { meta: table_edits(edits), ..extra };
            core.commit(writer, &[], extra)?;
            Ok(Applied::Done)
        }
        Command::Nothing => {
            core.commit(writer, &[], extra)?;
            Ok(Applied::Done)
        }
    }
}
