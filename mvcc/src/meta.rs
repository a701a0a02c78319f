//! The keyspace's own tree: leases, and a frontend's metadata tables.
//!
//! Lease keys are `l` and the id, big-endian; table keys are `t`, the table's name, a zero byte and
//! the key. Written in the same records as rows, so that they change atomically with data.

use bytes::Bytes;
use polybolt_engine::Damage;
use polybolt_engine::codec::Reader;

/// A lease as stored: granted and remaining seconds (0 if never checkpointed).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StoredLease {
    pub(crate) ttl: i64,
    pub(crate) remaining: i64,
}

impl StoredLease {
    pub(crate) fn encode(self) -> Bytes {
        let mut out = Vec::with_capacity(24);
        out.extend_from_slice(&self.ttl.to_le_bytes());
        out.extend_from_slice(&self.remaining.to_le_bytes());
        out.extend_from_slice(&[0; 8]); // room
        out.into()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Damage> {
        let mut reader = Reader::new(bytes);
        let ttl = i64::from_le_bytes(reader.array()?);
        let remaining = i64::from_le_bytes(reader.array()?);
        reader.zeros(8)?;
        reader.finish()?;
        Ok(StoredLease { ttl, remaining })
    }
}

/// The key of a lease.
pub(crate) fn lease_key(id: i64) -> Bytes {
    let mut key = vec![b'l'];
    key.extend_from_slice(&id.to_be_bytes());
    key.into()
}

/// The id in a lease's key.
pub(crate) fn lease_id(key: &[u8]) -> Option<i64> {
    Some(i64::from_be_bytes(key.strip_prefix(b"l")?.try_into().ok()?))
}

/// Where a table's keys begin.
pub(crate) fn table_prefix(table: &str) -> Vec<u8> {
    let mut key = vec![b't'];
    key.extend_from_slice(table.as_bytes());
    key.push(0);
    key
}

/// The key of a table's entry.
pub(crate) fn table_key(table: &str, key: &[u8]) -> Bytes {
    let mut whole = table_prefix(table);
    whole.extend_from_slice(key);
    whole.into()
}

/// What an entry of the tree is of.
pub(crate) enum MetaEntry {
    Lease(i64),
    Table,
}

/// Checks an entry.
pub(crate) fn entry(key: &[u8], value: &[u8]) -> Result<MetaEntry, Damage> {
    if let Some(id) = lease_id(key) {
        StoredLease::decode(value)?;
        return Ok(MetaEntry::Lease(id));
    }
    if key.first() == Some(&b't') && key.contains(&0) {
        return Ok(MetaEntry::Table);
    }
    Err(Damage::Malformed { what: "an entry that is neither a lease nor of a table" })
}
