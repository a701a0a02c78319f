//! etcd's schema on an ordered map, as its users write it.
//!
//! | table | key | value |
//! |---|---|---|
//! | rows  | main u64, sub u32 | tombstone u8, create u64, version u64, lease u64, key length u16, key, value |
//! | index | key, 0, main u64, sub u32 | tombstone u8, create u64, version u64 |
//! | state | "compacted" | revision u64 |
//!
//! All numbers big-endian. The index has what a put needs to know of the version before, so that it reads no row.

use crate::peer::{Result, Row};

/// Bytes of a revision.
pub const REVISION_BYTES: usize = 12;
/// The only key of the state table.
pub const COMPACTED: &[u8] = b"compacted";

/// A key of the rows table. These workloads have one operation a txn: sub is 0.
pub fn row_key(revision: u64) -> [u8; REVISION_BYTES] {
    let mut key = [0; REVISION_BYTES];
    key[..8].copy_from_slice(&revision.to_be_bytes());
    key
}

/// The main revision of a key of the rows table.
pub fn row_revision(key: &[u8]) -> Result<u64> {
    Ok(u64::from_be_bytes(key.get(..8).ok_or("a row's key is too short")?.try_into()?))
}

/// A key of the index, or with `u64::MAX` a bound behind all of a key's.
pub fn index_key(key: &[u8], revision: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(key.len() + 1 + REVISION_BYTES);
    out.extend_from_slice(key);
    out.push(0);
    out.extend_from_slice(&row_key(revision));
    out
}

/// Key and revision of an index entry.
pub fn split_index_key(entry: &[u8]) -> Result<(&[u8], u64)> {
    let at = entry.len().checked_sub(REVISION_BYTES + 1).ok_or("an index key is too short")?;
    Ok((&entry[..at], row_revision(&entry[at + 1..])?))
}

/// What the index says of a version; version 0 is a tombstone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Life {
    /// The revision at which it was created.
    pub created: u64,
    /// Puts since then.
    pub version: u64,
}

impl Life {
    /// As the index keeps it.
    pub fn encode(self) -> [u8; 17] {
        let mut out = [0; 17];
        out[0] = u8::from(self.version == 0);
        out[1..9].copy_from_slice(&self.created.to_be_bytes());
        out[9..].copy_from_slice(&self.version.to_be_bytes());
        out
    }

    /// Of the first bytes of an index value or a record.
    pub fn decode(value: &[u8]) -> Result<Life> {
        let value = value.get(..17).ok_or("an index value is too short")?;
        Ok(Life {
            created: u64::from_be_bytes(value[1..9].try_into()?),
            version: u64::from_be_bytes(value[9..].try_into()?),
        })
    }
}

/// Appends a record.
pub fn encode(out: &mut Vec<u8>, life: Life, key: &[u8], value: &[u8]) -> Result<()> {
    out.extend_from_slice(&life.encode());
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(&u16::try_from(key.len())?.to_be_bytes());
    out.extend_from_slice(key);
    out.extend_from_slice(value);
    Ok(())
}

/// Takes a record apart.
pub fn decode(modified: u64, record: &[u8]) -> Result<Row<'_>> {
    let Life { created, version } = Life::decode(record)?;
    let len = record.get(25..27).ok_or("a record is too short")?;
    let len = usize::from(u16::from_be_bytes(len.try_into()?));
    let (key, value) = record[27..].split_at_checked(len).ok_or("a record is too short")?;
    Ok(Row { key, created, modified, version, value })
}
