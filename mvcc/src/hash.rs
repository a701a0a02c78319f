//! HashKV, byte for byte as etcd computes it (HSH-1..5).
//!
//! CRC-32C over the bucket name `key`, then over every included row in revision order: its 17-byte
//! row key (18 for a tombstone) and its value as a protobuf `KeyValue`. What is included depends on
//! the compacted revision, not on how far the sweep has come (HSH-8).

use crate::core::{Core, Rows, StoredRow};
use crate::error::{Refusal, Result};
use crate::request::{HashKv, Span};
use crate::wire;

/// Hashes the keyspace at `revision`; 0 is the current one, and before it there was nothing. Reads all rows, in bounded memory.
pub(crate) fn hash_kv(core: &Core, revision: i64) -> Result<HashKv> {
    let everything = Span::prefix("");
    let segments = core.routes.cut(&everything);
    let point = core.read_point(&segments, revision.max(0))?;
    // Rows above the compacted revision stay while it is pinned, whatever is compacted meanwhile.
    let until = core.clock.monotonic().saturating_add(core.options.pin_age_max);
    let (compacted, pin) = loop {
        let compacted = core.publisher.compacted();
        let pin = core.pins.pin(compacted.max(0).cast_unsigned(), until);
        if core.publisher.compacted() == compacted {
            break (compacted, pin);
        }
    };
    if revision >= 0 && point.at.cast_signed() < compacted {
        return Err(Refusal::Compacted { revision: compacted }.into());
    }
    // Below zero nothing was stored, and nothing is refused (HSH-1).
    let h = if revision < 0 { 0 } else { point.at };
    // While no key is live, what a finished compaction has left is hashed (HSH-4).
    let kept_at = if core.count(&segments, h) == 0 { compacted.max(0).cast_unsigned() } else { h };
    let mut crc = crc32c::crc32c(b"key");
    // Volatile shards differ between replicas: they are not part of the hash (R4).
    let shards = (0..core.shards.len()).filter(|at| !core.shards[*at].volatile).collect();
    let mut rows = Rows::of_shards(core, shards, 0, h);
    let mut encoded = Vec::new();
    while let Some(row) = rows.next_row()? {
        if is_included(core, &row, compacted, kept_at) {
            encoded.clear();
            encode(&row, &mut encoded);
            crc = crc32c::crc32c_append(crc, &encoded);
        }
    }
    if !pin.holds() {
        return Err(Refusal::Compacted { revision: core.publisher.compacted() }.into());
    }
    Ok(HashKv {
        hash: crc,
        revision: point.visible.cast_signed(),
        compact_revision: compacted,
        hash_revision: if revision < 0 { revision } else { h.cast_signed() },
    })
}

/// HSH-4.
fn is_included(core: &Core, row: &StoredRow, compacted: i64, kept_at: u64) -> bool {
    if row.at.main.cast_signed() > compacted {
        return true;
    }
    if row.tombstone {
        return false;
    }
    let shard = core.routes.shard_of(&row.kv.key);
    core.shards[shard].index.read().keeps(&row.kv.key, row.at, kept_at)
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
        wire::key_value(&row.kv, out);
    }
}
