//! Rows: what a tree says of one change of a key.
//!
//! A row's tree key is its revision, big-endian: main (8 bytes), sub (4 bytes). Its head stays in the
//! leaf and says everything but the value, which is the body:
//!
//! | bytes  | field   | meaning                                                        |
//! |--------|---------|----------------------------------------------------------------|
//! | 0      | flags   | 1: tombstone, 2: the key is at the front of the body, 4: always |
//! | 1..5   | crc     | crc32 of the tree key, the rest of the head, and the body      |
//! | 5..    | key     | its length                                                     |
//! |        | created | main at which this life of the key began; 0 for a tombstone    |
//! |        | version | puts since then; 0 for a tombstone                             |
//! |        | lease   | or 0                                                           |
//! |        | the key, unless flag 2                                                   |
//!
//! Those four are varints, seven bits a byte, the lowest first. A head without flag 4 is from an earlier build: flags,
//! three zeros, crc, and these numbers in 4, 8, 8 and 8 bytes.
//!
//! The crc is made once, when the row is encoded, and checked whenever its value leaves the engine. Nothing decoded is
//! trusted.

use crate::request::KeyValue;
use bytes::Bytes;
use polybolt_engine::codec::Reader;
use polybolt_engine::{Damage, limits};
use polybolt_index::Revision;
use std::ops::Range;

/// Bytes of a row's tree key.
pub(crate) const ROW_KEY_BYTES: usize = 12;
const TOMBSTONE: u8 = 1;
const KEY_IN_BODY: u8 = 2;
const PACKED: u8 = 4;
const VARINT_BYTES_MAX: usize = 10;
/// The longest key that stays in the leaf.
const INLINE_KEY_MAX: usize = limits::HEAD_BYTES_MAX - 5 - 4 * VARINT_BYTES_MAX;

/// A revision as a tree key.
pub(crate) fn row_key(at: Revision) -> [u8; ROW_KEY_BYTES] {
    let mut key = [0; ROW_KEY_BYTES];
    key[..8].copy_from_slice(&at.main.to_be_bytes());
    key[8..].copy_from_slice(&at.sub.to_be_bytes());
    key
}

/// The revision in a tree key.
pub(crate) fn row_revision(key: &[u8]) -> Result<Revision, Damage> {
    let mut main = [0; 8];
    let mut sub = [0; 4];
    if key.len() != ROW_KEY_BYTES {
        return Err(Damage::Malformed { what: "a row's key is not 12 bytes long" });
    }
    main.copy_from_slice(&key[..8]);
    sub.copy_from_slice(&key[8..]);
    Ok(Revision { main: u64::from_be_bytes(main), sub: u32::from_be_bytes(sub) })
}

/// What a row says, without its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RowHead<'a> {
    pub(crate) tombstone: bool,
    /// None if the key is in the body.
    pub(crate) key: Option<&'a [u8]>,
    pub(crate) key_len: usize,
    pub(crate) created: u64,
    pub(crate) version: u64,
    pub(crate) lease: i64,
    crc: u32,
}

/// A row to be encoded.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NewRow<'a> {
    pub(crate) at: Revision,
    pub(crate) key: &'a [u8],
    /// None is a tombstone.
    pub(crate) put: Option<NewPut<'a>>,
}

/// The rest of a put.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NewPut<'a> {
    pub(crate) value: &'a [u8],
    pub(crate) created: u64,
    pub(crate) version: u64,
    pub(crate) lease: i64,
}

/// Where the parts of an encoded row lie in the buffer it was appended to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RowPlace {
    start: usize,
    head: usize,
    body: usize,
    end: usize,
}

impl RowPlace {
    pub(crate) fn key(&self, record: &Bytes) -> Bytes {
        record.slice(self.start..self.head)
    }

    pub(crate) fn head(&self, record: &Bytes) -> Bytes {
        record.slice(self.head..self.body)
    }

    pub(crate) fn body(&self, record: &Bytes) -> Bytes {
        record.slice(self.body..self.end)
    }

    /// The row's key, of `key_len` bytes, and its value, as parts of the buffer.
    pub(crate) fn key_and_value(&self, record: &Bytes, key_len: usize) -> (Bytes, Bytes) {
        // In the head the key is last, in the body first.
        let (key, value) =
            if key_len > INLINE_KEY_MAX { (self.body, self.body + key_len) } else { (self.body - key_len, self.body) };
        (record.slice(key..key + key_len), record.slice(value..self.end))
    }

    pub(crate) fn len(&self) -> usize {
        self.end - self.start
    }

    pub(crate) fn head_len(&self) -> usize {
        self.body - self.head
    }

    pub(crate) fn body_len(&self) -> usize {
        self.end - self.body
    }
}

/// Appends a row as tree key, head and body.
pub(crate) fn encode_row(out: &mut Vec<u8>, row: NewRow<'_>) -> RowPlace {
    let start = out.len();
    out.extend_from_slice(&row_key(row.at));
    let head = out.len();
    let long = row.key.len() > INLINE_KEY_MAX;
    let flags = PACKED | if row.put.is_none() { TOMBSTONE } else { 0 } | if long { KEY_IN_BODY } else { 0 };
    out.extend_from_slice(&[flags, 0, 0, 0, 0]);
    let (created, version, lease) = row.put.map_or((0, 0, 0), |put| (put.created, put.version, put.lease));
    for number in [row.key.len() as u64, created, version, lease.cast_unsigned()] {
        put_varint(out, number);
    }
    if !long {
        out.extend_from_slice(row.key);
    }
    let body = out.len();
    if long {
        out.extend_from_slice(row.key);
    }
    out.extend_from_slice(row.put.map_or(b"", |put| put.value));
    let end = out.len();
    let crc = row_crc(&out[start..head], &out[head..body], &out[body..]);
    out[head..body][crc_place(flags)].copy_from_slice(&crc.to_le_bytes());
    RowPlace { start, head, body, end }
}

fn put_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn varint(reader: &mut Reader<'_>) -> Result<u64, Damage> {
    let mut number = 0;
    for shift in (0..u64::BITS).step_by(7) {
        let byte = reader.u8()?;
        let part = u64::from(byte & 0x7f);
        if part << shift >> shift != part || byte == 0 && shift > 0 {
            break;
        }
        number |= part << shift;
        if byte < 0x80 {
            return Ok(number);
        }
    }
    Err(Damage::Malformed { what: "a number of a row is too large, or longer than it has to be" })
}

/// Where the crc is in a head with these flags.
fn crc_place(flags: u8) -> Range<usize> {
    if flags & PACKED != 0 { 1..5 } else { 4..8 }
}

/// Of a head that could be decoded.
fn row_crc(key: &[u8], head: &[u8], body: &[u8]) -> u32 {
    let mut hasher = joined_crc(key, head);
    hasher.update(body);
    hasher.finalize()
}

/// The same of a head, and a body behind it if there is one.
fn joined_crc(key: &[u8], both: &[u8]) -> crc32fast::Hasher {
    let place = crc_place(both[0]);
    let mut first = [0; ROW_KEY_BYTES + 4];
    let mut hasher = crc32fast::Hasher::new();
    match first.split_first_chunk_mut::<ROW_KEY_BYTES>() {
        // In one piece, which is faster.
        Some((first_key, rest)) if key.len() == ROW_KEY_BYTES => {
            first_key.copy_from_slice(key);
            rest[..place.start].copy_from_slice(&both[..place.start]);
            hasher.update(&first[..ROW_KEY_BYTES + place.start]);
        }
        _ => {
            hasher.update(key);
            hasher.update(&both[..place.start]);
        }
    }
    hasher.update(&both[place.end..]);
    hasher
}

impl<'a> RowHead<'a> {
    /// The head of a row; its crc is checked by [`open_row`], which has the body.
    pub(crate) fn decode(head: &'a [u8]) -> Result<Self, Damage> {
        let mut reader = Reader::new(head);
        let (flags, crc, key_len) = begin_head(&mut reader)?;
        let (created, version, lease) = if flags & PACKED != 0 {
            (varint(&mut reader)?, varint(&mut reader)?, varint(&mut reader)?)
        } else {
            (reader.u64()?, reader.u64()?, reader.u64()?)
        };
        let rest = reader.rest();
        let key = if flags & KEY_IN_BODY == 0 { Some(rest) } else { None };
        if rest.len() != key.map_or(0, |_| key_len) {
            return Err(Damage::Malformed { what: "a row's head is not as long as its key says" });
        }
        let tombstone = flags & TOMBSTONE != 0;
        if tombstone != (version == 0) {
            return Err(Damage::Malformed { what: "a row is neither a put nor a tombstone" });
        }
        Ok(RowHead { tombstone, key, key_len, created, version, lease: lease.cast_signed(), crc })
    }

    /// Checks the crc of the row whose head this is.
    pub(crate) fn check(&self, tree_key: &[u8], head: &[u8], body: &[u8]) -> Result<(), Damage> {
        let computed = row_crc(tree_key, head, body);
        if computed == self.crc { Ok(()) } else { Err(Damage::Checksum { stored: self.crc, computed }) }
    }

    /// The same for head and body in one piece.
    pub(crate) fn check_joined(&self, tree_key: &[u8], both: &[u8]) -> Result<(), Damage> {
        let computed = joined_crc(tree_key, both).finalize();
        if computed == self.crc { Ok(()) } else { Err(Damage::Checksum { stored: self.crc, computed }) }
    }

    /// The row's key; from the body if it is there.
    pub(crate) fn key_in(&self, body: &'a [u8]) -> Result<&'a [u8], Damage> {
        match self.key {
            Some(key) => Ok(key),
            None => body.get(..self.key_len).ok_or(Damage::Malformed { what: "a row's body is shorter than its key" }),
        }
    }
}

impl RowHead<'_> {
    /// The row's value in its body.
    pub(crate) fn value_in<'b>(&self, body: &'b [u8]) -> Result<&'b [u8], Damage> {
        let from = if self.key.is_some() { 0 } else { self.key_len };
        body.get(from..).ok_or(Damage::Malformed { what: "a row's body is shorter than its key" })
    }
}

/// How long the head is at the front of a row's bytes after its tree key.
pub(crate) fn head_len(bytes: &[u8]) -> Result<usize, Damage> {
    let mut reader = Reader::new(bytes);
    let (flags, _, key_len) = begin_head(&mut reader)?;
    if flags & PACKED != 0 {
        (0..3).try_for_each(|_| varint(&mut reader).map(drop))?;
    } else {
        reader.take(24)?;
    }
    let fixed = bytes.len() - reader.rest().len();
    Ok(fixed.saturating_add(if flags & KEY_IN_BODY == 0 { key_len } else { 0 }))
}

/// Flags, crc, and how long the key is: what a head begins with.
fn begin_head(reader: &mut Reader<'_>) -> Result<(u8, u32, usize), Damage> {
    let flags = reader.u8()?;
    if flags & !(TOMBSTONE | KEY_IN_BODY | PACKED) != 0 {
        return Err(Damage::Malformed { what: "a row has flags that this build does not know" });
    }
    if flags & PACKED != 0 {
        let crc = reader.u32()?;
        let key_len = u32::try_from(varint(reader)?);
        let too_long = |_| Damage::Malformed { what: "a row's key is longer than any can be" };
        return Ok((flags, crc, key_len.map_err(too_long)? as usize));
    }
    reader.zeros(3)?;
    Ok((flags, reader.u32()?, reader.u32()? as usize))
}

/// The key-value of a stored row, after checking its crc.
pub(crate) fn open_row(tree_key: &[u8], head: &Bytes, body: &Bytes) -> Result<KeyValue, Damage> {
    let row = RowHead::decode(head)?;
    row.check(tree_key, head, body)?;
    let (key, value) = match row.key {
        Some(key) => (head.slice_ref(key), body.clone()),
        None if body.len() >= row.key_len => (body.slice(..row.key_len), body.slice(row.key_len..)),
        None => {
            return Err(Damage::Malformed { what: "a row's body is shorter than its key" });
        }
    };
    let at = row_revision(tree_key)?;
    Ok(KeyValue {
        key,
        create_revision: row.created.cast_signed(),
        mod_revision: at.main.cast_signed(),
        version: row.version.cast_signed(),
        value,
        lease: row.lease,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A row as earlier builds wrote it.
    fn wide(at: Revision, key: &[u8], put: Option<NewPut<'_>>) -> (Vec<u8>, Vec<u8>, Vec<u8>) {
        let (created, version, lease) = put.map_or((0, 0, 0), |put| (put.created, put.version, put.lease));
        let mut head = vec![u8::from(put.is_none()), 0, 0, 0, 0, 0, 0, 0];
        head.extend_from_slice(&(key.len() as u32).to_le_bytes());
        for word in [created, version, lease.cast_unsigned()] {
            head.extend_from_slice(&word.to_le_bytes());
        }
        assert_eq!(head.len(), 36);
        head.extend_from_slice(key);
        let (tree_key, body) = (row_key(at).to_vec(), put.map_or(Vec::new(), |put| put.value.to_vec()));
        let crc = crc32fast::hash(&[&tree_key[..], &head[..4], &head[8..], &body].concat());
        head[4..8].copy_from_slice(&crc.to_le_bytes());
        (tree_key, head, body)
    }

    #[test]
    fn rows_of_earlier_builds_are_read() {
        let put = NewPut { value: b"value", created: 5, version: 1 << 40, lease: -7 };
        for put in [Some(put), None] {
            let at = Revision::new(9, 2);
            let (tree_key, head, body) = wide(at, b"key", put);
            let joined = [&head[..], &body].concat();
            assert_eq!(head_len(&joined), Ok(head.len()));
            RowHead::decode(&head).unwrap().check_joined(&tree_key, &joined).unwrap();
            let old = open_row(&tree_key, &Bytes::from(head.clone()), &Bytes::from(body.clone())).unwrap();
            let mut bytes = Vec::new();
            let place = encode_row(&mut bytes, NewRow { at, key: b"key", put });
            let bytes = Bytes::from(bytes);
            assert_eq!(open_row(&place.key(&bytes), &place.head(&bytes), &place.body(&bytes)).unwrap(), old);
            for at in 0..head.len() {
                let mut head = head.clone();
                head[at] ^= 1;
                assert!(open_row(&tree_key, &head.into(), &Bytes::from(body.clone())).is_err(), "byte {at}");
            }
        }
    }

    #[test]
    fn heads_are_short_and_never_too_long() {
        let head = |key: &[u8], created, version, lease| {
            let mut bytes = Vec::new();
            let put = Some(NewPut { value: b"", created, version, lease });
            let place = encode_row(&mut bytes, NewRow { at: Revision::new(1, 0), key, put });
            let bytes = Bytes::from(bytes);
            let joined = bytes.slice(ROW_KEY_BYTES..);
            let head = place.head(&bytes);
            assert_eq!(head_len(&joined), Ok(head.len()));
            let row = RowHead::decode(&head).unwrap();
            row.check_joined(&place.key(&bytes), &joined).unwrap();
            assert_eq!((row.key_in(&place.body(&bytes)).unwrap(), row.created, row.version), (key, created, version));
            assert_eq!(row.lease, lease);
            for at in 0..head.len() {
                let mut head = head.to_vec();
                head[at] ^= 0x81;
                assert!(open_row(&place.key(&bytes), &head.into(), &place.body(&bytes)).is_err(), "byte {at}");
            }
            head.len()
        };
        assert_eq!(head(b"0123456789", 1_000_000, 1, 0), 10 + 11);
        for key_len in [0, 1, 127, 128, INLINE_KEY_MAX, INLINE_KEY_MAX + 1, 5000] {
            assert!(head(&vec![7; key_len], u64::MAX, u64::MAX, -1) <= limits::HEAD_BYTES_MAX);
        }
        let endless = [&[PACKED | KEY_IN_BODY, 0, 0, 0, 0][..], &[0xff; 9], &[1, 2, 1, 0]].concat();
        assert!(RowHead::decode(&endless).is_err() && head_len(&endless).is_err());
        for bad in [&[0x80, 0][..], &[0xff; 11], &[0x80; 3], &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2]]
        {
            assert!(varint(&mut Reader::new(bad)).is_err(), "{bad:?}");
        }
    }
}
