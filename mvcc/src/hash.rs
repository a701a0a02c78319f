//! HashKV, byte for byte as etcd computes it (HSH-1..5).
//!
//! CRC-32C over the bucket name `key`, then over every included row in revision order: its 17-byte
//! row key (18 for a tombstone) and its value as a protobuf `KeyValue`. What is included depends on
//! the compacted revision, not on how far the sweep has come (HSH-8).

use crate::core::{Core, Pass};
use crate::error::{Refusal, Result};
use crate::request::{HashKv, Span};
use crate::rows::{Rows, StoredRow};
use crate::wire;
use polybolt_index::Revision;

/// The most hashes that are remembered (HSH-6).
const REMEMBERED_MAX: usize = 10;

/// Hashes the keyspace at `revision`; 0 is the current one, and before it there was nothing. Reads all
/// rows, in bounded memory, unless it is remembered.
pub(crate) fn hash_kv(core: &Core, revision: i64) -> Result<HashKv> {
    if let Some(known) = core.hashes.lock().get(&revision) {
        core.check_open()?;
        return Ok(HashKv { revision: core.publisher.visible().cast_signed(), ..*known });
    }
    let everything = Span::prefix("");
    let segments = core.routes.cut(&everything);
    let point = core.read_point(&segments, revision.max(0))?;
    let (compacted, pin) = core.pin_compacted();
    if revision >= 0 && point.at.cast_signed() < compacted {
        return Err(Refusal::Compacted { revision: compacted }.into());
    }
    // Below zero nothing was stored, and nothing is refused (HSH-1).
    let at = if revision < 0 { 0 } else { point.at };
    let mut pass = Pass::new(core, at, compacted);
    // A shard's floor may have risen since.
    let floor = pass.kept.iter().map(|(floor, _)| *floor).max().unwrap_or(compacted);
    if revision >= 0 && floor > at.cast_signed() {
        return Err(Refusal::Compacted { revision: floor }.into());
    }
    pass.step(core, usize::MAX)?;
    if !pin.holds() {
        return Err(Refusal::Compacted { revision: core.publisher.compacted() }.into());
    }
    let hash_revision = if revision < 0 { revision } else { at.cast_signed() };
    Ok(HashKv { revision: point.visible.cast_signed(), hash_revision, ..pass.hash() })
}

/// Keeps the newest ones.
pub(crate) fn remember(core: &Core, hash: HashKv) {
    let mut hashes = core.hashes.lock();
    hashes.insert(hash.hash_revision, hash);
    while hashes.len() > REMEMBERED_MAX {
        hashes.pop_first();
    }
}

impl Pass {
    pub(crate) fn new(core: &Core, at: u64, compacted: i64) -> Self {
        let segments = core.routes.cut(&Span::prefix(""));
        // While no key is live, what a finished compaction has left is hashed (HSH-4).
        let is_empty = core.count(&segments, at) == 0;
        let kept = core.own_floors().into_iter().map(|floor| {
            let floor = floor.max(compacted);
            (floor, if is_empty { floor.max(0).cast_unsigned() } else { at })
        });
        Pass { at, compacted, kept: kept.collect(), next: Revision::default(), crc: crc32c::crc32c(b"key") }
    }

    /// True if no shard that is hashed has a floor above `compacted`.
    pub(crate) fn is_of_all(&self, core: &Core, compacted: i64) -> bool {
        self.kept.iter().zip(&core.shards).all(|((floor, _), shard)| shard.volatile || *floor <= compacted.max(0))
    }

    /// Hashes up to `max` rows more; true once that were all.
    pub(crate) fn step(&mut self, core: &Core, max: usize) -> Result<bool> {
        // Volatile shards differ between replicas: they are not part of the hash (R4).
        let shards = (0..core.shards.len()).filter(|at| !core.shards[*at].volatile).collect();
        let mut rows = Rows::of_shards(core, shards, self.next.main, self.at);
        let mut encoded = Vec::new();
        let mut seen = 0;
        while let Some(row) = rows.next_row()? {
            if row.at < self.next {
                continue;
            }
            if seen == max {
                self.next = row.at;
                return Ok(false);
            }
            seen += 1;
            if is_included(core, &row, &self.kept) {
                encoded.clear();
                encode(&row, &mut encoded);
                self.crc = crc32c::crc32c_append(self.crc, &encoded);
            }
        }
        Ok(true)
    }

    pub(crate) fn hash(&self) -> HashKv {
        let (hash_revision, compact_revision) = (self.at.cast_signed(), self.compacted);
        HashKv { hash: self.crc, revision: 0, compact_revision, hash_revision }
    }
}

/// HSH-4, by shard.
fn is_included(core: &Core, row: &StoredRow, kept: &[(i64, u64)]) -> bool {
    let shard = core.routes.shard_of(&row.kv.key);
    let (floor, kept_at) = kept[shard];
    if row.at.main.cast_signed() > floor {
        return true;
    }
    if row.tombstone {
        return false;
    }
    core.shards[shard].keys.read().keeps(&row.kv.key, row.at, kept_at)
}

/// REV-15, REV-16.
fn encode(row: &StoredRow, out: &mut Vec<u8>) {
    out.extend_from_slice(&row.at.main.to_be_bytes());
    out.push(b'_');
    out.extend_from_slice(&u64::from(row.at.sub).to_be_bytes());
    if row.tombstone {
        out.push(b't');
        wire::tombstone(&row.kv.key, out);
    } else {
        row.kv.lent().encode(out);
    }
}
