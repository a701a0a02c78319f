//! A group: the records that one sync makes durable. No other file knows its bytes.
//!
//! | bytes  | field    | meaning                                                     |
//! |--------|----------|-------------------------------------------------------------|
//! | 0..4   | magic    | `PBJG`                                                      |
//! | 4..8   | checksum | crc32 of the rest of the header                             |
//! | 8..16  | session  | the open-to-close life of the store that wrote it           |
//! | 16..24 | segment  | the segment its header lies in                              |
//! | 24..32 | sequence | counts groups of a session from 1                           |
//! | 32..40 | first    | position of its first record                                |
//! | 40..48 | length   | bytes of its body                                           |
//! | 48..52 | records  | how many                                                    |
//! | 52..56 | body     | crc32 of the body                                           |
//! | 56..60 | chain    | `checksum` of the group before; of the first, the session's |
//! | 60..64 | reserved | zero                                                        |
//!
//! The body is a run of records: space (u32), length (u32), bytes. A group begins at a sector, so
//! that writing it tears no group before it, and may run on over the next segments.

use crate::codec::Reader;
use crate::disk::SECTOR_BYTES;
use crate::error::Damage;
use crate::ids::SpaceId;
use crate::limits;
use crate::ticket::Position;

/// Bytes of a group's header.
pub const GROUP_HEAD_BYTES: usize = 64;
/// Bytes before each record.
pub const RECORD_HEAD_BYTES: usize = 8;
const MAGIC: &[u8; 4] = b"PBJG";

/// A group's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupHead {
    /// The session.
    pub session: u64,
    /// The segment the header lies in.
    pub segment: u64,
    /// Its number in the session.
    pub sequence: u64,
    /// Position of the first record.
    pub first: Position,
    /// Bytes of the body.
    pub length: u64,
    /// How many records.
    pub records: u32,
    /// crc32 of the body.
    pub body: u32,
    /// Checksum of the group before.
    pub chain: u32,
}

impl GroupHead {
    /// The header's bytes; the second value is its checksum, which the next group chains to.
    pub fn encode(&self) -> ([u8; GROUP_HEAD_BYTES], u32) {
        let mut out = [0; GROUP_HEAD_BYTES];
        out[..4].copy_from_slice(MAGIC);
        for (at, word) in [self.session, self.segment, self.sequence, self.first.0, self.length].iter().enumerate() {
            out[8 + at * 8..16 + at * 8].copy_from_slice(&word.to_le_bytes());
        }
        for (at, word) in [self.records, self.body, self.chain].iter().enumerate() {
            out[48 + at * 4..52 + at * 4].copy_from_slice(&word.to_le_bytes());
        }
        let crc = crc32fast::hash(&out[8..]);
        out[4..8].copy_from_slice(&crc.to_le_bytes());
        (out, crc)
    }

    /// A header whose own checksum holds, and that checksum.
    pub fn decode(bytes: &[u8]) -> Result<(Self, u32), Damage> {
        let mut reader = Reader::new(bytes);
        if reader.array::<4>()? != *MAGIC {
            return Err(Damage::Malformed { what: "there is no group header" });
        }
        let stored = reader.u32()?;
        let sealed = reader.rest().get(..GROUP_HEAD_BYTES - 8).unwrap_or_default();
        let computed = crc32fast::hash(sealed);
        if computed != stored {
            return Err(Damage::Checksum { stored, computed });
        }
        let head = GroupHead {
            session: reader.u64()?,
            segment: reader.u64()?,
            sequence: reader.u64()?,
            first: Position(reader.u64()?),
            length: reader.u64()?,
            records: reader.u32()?,
            body: reader.u32()?,
            chain: reader.u32()?,
        };
        reader.zeros(4)?;
        if [head.segment, head.sequence, head.first.0].iter().any(|counter| *counter > limits::COUNTER_MAX) {
            return Err(Damage::Malformed { what: "a group counts further than any journal can" });
        }
        Ok((head, stored))
    }
}

/// What a group's header has to say at a place, whatever it holds.
#[derive(Debug, Clone, Copy)]
pub struct Expected {
    /// The session.
    pub session: u64,
    /// The segment.
    pub segment: u64,
    /// Its number in the session.
    pub sequence: u64,
    /// Position of its first record.
    pub first: Position,
    /// Checksum of the group before.
    pub chain: u32,
}

impl Expected {
    /// True if `bytes` are that group's header with at most two fields spoilt. What an older group left at
    /// the place has its own sequence, position and chain.
    pub fn is_spoilt_in(&self, bytes: &[u8]) -> bool {
        let Some(bytes) = bytes.get(..GROUP_HEAD_BYTES) else { return false };
        let words = [(8, self.session), (16, self.segment), (24, self.sequence), (32, self.first.0)];
        let words = words.iter().filter(|(at, word)| bytes[*at..at + 8] == word.to_le_bytes()).count();
        let chain = usize::from(bytes[56..60] == self.chain.to_le_bytes());
        words + chain + usize::from(bytes[..4] == *MAGIC) >= 4
    }
}

/// Appends a record to a group's body.
pub fn put_record(body: &mut Vec<u8>, space: SpaceId, record: &[u8]) {
    let len = u32::try_from(record.len()).expect("a record is below RECORD_BYTES_MAX");
    body.extend_from_slice(&space.0.to_le_bytes());
    body.extend_from_slice(&len.to_le_bytes());
    body.extend_from_slice(record);
}

/// Takes a record off the front of a body.
pub fn take_record<'a>(body: &mut Reader<'a>) -> Result<(SpaceId, &'a [u8]), Damage> {
    let space = SpaceId(body.u32()?);
    Ok((space, body.bytes()?))
}

/// `bytes` rounded up to whole sectors.
pub fn sectors(bytes: u64) -> u64 {
    bytes.next_multiple_of(SECTOR_BYTES as u64)
}

/// What a record can take of the journal at most: alone in a group, with the tail of a segment lost
/// before it and a padded sector after it.
pub fn charge(record_bytes: u64) -> u64 {
    record_bytes + (RECORD_HEAD_BYTES + GROUP_HEAD_BYTES + 2 * SECTOR_BYTES) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_survives_and_a_flipped_bit_does_not() {
        let head = GroupHead {
            session: 1,
            segment: 2,
            sequence: 3,
            first: Position(4),
            length: 5,
            records: 6,
            body: 7,
            chain: 8,
        };
        let (bytes, crc) = head.encode();
        assert_eq!(GroupHead::decode(&bytes).unwrap(), (head, crc));
        for bit in (0..bytes.len() * 8).step_by(if cfg!(miri) { 13 } else { 1 }) {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(GroupHead::decode(&flipped).is_err(), "bit {bit}");
            let expected = Expected { session: 1, segment: 2, sequence: 3, first: Position(4), chain: 8 };
            assert!(expected.is_spoilt_in(&flipped), "bit {bit}");
            let next = Expected { segment: 9, sequence: 4, first: Position(10), chain: 9, ..expected };
            assert!(!next.is_spoilt_in(&flipped), "bit {bit}");
        }
    }
}
