//! Journal records and the state of a keyspace, as bytes.
//!
//! A journal record holds rows ([`crate::row`]) as tree key, head and body in one piece, so that the edits of the
//! trees are slices of it; behind the rows comes its head, and in a record of version 2 a shard and its new floor.
//! Numbers but revisions are little-endian; nothing decoded is trusted.

use crate::routes::Routes;
use crate::row::{NewRow, ROW_KEY_BYTES, RowHead, RowPlace, encode_row};
use bytes::Bytes;
use polybolt_engine::codec::{Reader, put_bytes};
use polybolt_engine::{Damage, Edit, TreeEdit, TreeId};

const RECORD_VERSION: u8 = 1;
/// One that raises a shard's floor; earlier builds do not know it.
const RECORD_VERSION_FLOOR: u8 = 2;
/// The most memory of a record that stays for the next.
const RECORD_KEPT_MAX: usize = 16 << 10;
const STATE_VERSION: u8 = 1;
/// No keyspace gets there; the rest of the numbers is for what is reserved ahead.
const REVISION_MAX: u64 = 1 << 62;

/// A change of the meta tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MetaEdit {
    pub(crate) key: Bytes,
    /// None removes it.
    pub(crate) value: Option<Bytes>,
}

/// Everything a record says but its rows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RecordHead {
    /// The main of its rows, or the newest one before it.
    pub(crate) main: u64,
    /// The frontend's position, 0 if it has none.
    pub(crate) applied_index: u64,
    /// The compacted revision after it, -1 if never.
    pub(crate) compacted: i64,
    /// Mains up to here may be in use after it.
    pub(crate) reserve: u64,
    /// The history hash after it.
    pub(crate) history: u128,
    pub(crate) meta: Vec<MetaEdit>,
    /// A shard, in the order of the routes, and its floor after it.
    pub(crate) floor: Option<(u32, u64)>,
}

/// A journal record under construction: rows first, then its head.
#[derive(Debug, Default)]
pub(crate) struct RecordBuilder {
    bytes: Vec<u8>,
}

impl RecordBuilder {
    /// Begins a record in the memory of the one before.
    pub(crate) fn begin(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(RECORD_KEPT_MAX);
        self.bytes.push(RECORD_VERSION);
    }

    /// Adds a row: head length, body length, then the row itself.
    pub(crate) fn row(&mut self, row: NewRow<'_>) -> RowPlace {
        let lengths = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 6]);
        let place = encode_row(&mut self.bytes, row);
        let head = u16::try_from(place.head_len()).expect("a head is at most HEAD_BYTES_MAX");
        let body = u32::try_from(place.body_len()).expect("requests are bounded by max_request_bytes");
        self.bytes[lengths..lengths + 2].copy_from_slice(&head.to_le_bytes());
        self.bytes[lengths + 2..lengths + 6].copy_from_slice(&body.to_le_bytes());
        place
    }

    /// Encoded rows, for the history hash.
    pub(crate) fn rows_bytes(&self) -> &[u8] {
        &self.bytes[1..]
    }

    /// The whole record.
    pub(crate) fn finish(&mut self, head: &RecordHead) -> &[u8] {
        let rows_end = u32::try_from(self.bytes.len()).expect("a record is below RECORD_BYTES_MAX");
        let out = &mut self.bytes;
        for word in [head.main, head.applied_index, head.compacted.cast_unsigned(), head.reserve] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out.extend_from_slice(&head.history.to_le_bytes());
        out.extend_from_slice(&u32::try_from(head.meta.len()).expect("few").to_le_bytes());
        for edit in &head.meta {
            out.push(u8::from(edit.value.is_some()));
            put_bytes(out, &edit.key);
            put_bytes(out, edit.value.as_deref().unwrap_or_default());
        }
        if let Some((shard, floor)) = head.floor {
            out[0] = RECORD_VERSION_FLOOR;
            out.extend_from_slice(&shard.to_le_bytes());
            out.extend_from_slice(&floor.to_le_bytes());
        }
        // Last, where it is found without knowing the rows.
        out.extend_from_slice(&rows_end.to_le_bytes());
        out
    }
}

/// A decoded record.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) head: RecordHead,
    /// Tree key, head and body of each row.
    pub(crate) rows: Vec<(Bytes, Bytes, Bytes)>,
    /// What the history hash was made of.
    pub(crate) rows_bytes: Bytes,
}

impl Record {
    /// Decodes a journal record.
    pub(crate) fn decode(record: &[u8]) -> Result<Self, Damage> {
        let record = Bytes::copy_from_slice(record);
        let tail = record.len().checked_sub(4).ok_or(Damage::Malformed { what: "a record is too short" })?;
        let rows_end = Reader::new(&record[tail..]).u32()? as usize;
        let raises = record.first() == Some(&RECORD_VERSION_FLOOR);
        if !raises && record.first() != Some(&RECORD_VERSION) || rows_end < 1 || rows_end > tail {
            return Err(Damage::Malformed { what: "a record of an unknown version or shape" });
        }
        let mut rows = Vec::new();
        let mut at = 1;
        while at < rows_end {
            let mut reader = Reader::new(&record[at..rows_end]);
            let (head, body) = (usize::from(reader.u16()?), reader.u32()? as usize);
            reader.take(ROW_KEY_BYTES + head)?;
            reader.take(body)?;
            let key = at + 6;
            let head_at = key + ROW_KEY_BYTES;
            let body_at = head_at + head;
            rows.push((
                record.slice(key..head_at),
                record.slice(head_at..body_at),
                record.slice(body_at..body_at + body),
            ));
            at = body_at + body;
        }
        let mut reader = Reader::new(&record[rows_end..tail]);
        let (main, applied_index) = (reader.u64()?, reader.u64()?);
        let (compacted, reserve) = (reader.u64()?.cast_signed(), reader.u64()?);
        let history = reader.u128()?;
        let count = reader.u32()?;
        let mut meta = Vec::new();
        for _ in 0..count {
            let present = reader.u8()? == 1;
            let (key, value) = (Bytes::copy_from_slice(reader.bytes()?), Bytes::copy_from_slice(reader.bytes()?));
            meta.push(MetaEdit { key, value: present.then_some(value) });
        }
        let floor = if raises { Some((reader.u32()?, reader.u64()?)) } else { None };
        reader.finish()?;
        let head = RecordHead { main, applied_index, compacted, reserve, history, meta, floor };
        Ok(Record { head, rows, rows_bytes: record.slice(1..rows_end) })
    }
}

impl Record {
    /// True if it comes right after a record with this history hash.
    pub(crate) fn follows(&self, before: u128) -> bool {
        let history = if self.rows.is_empty() { before } else { next_history(before, &self.rows_bytes) };
        history == self.head.history
    }

    /// The edits that it stands for. `trees` are the keyspace's: its shards in the order of its routes, then
    /// the meta tree.
    pub(crate) fn edits(self, routes: &Routes, trees: &[TreeId]) -> Result<Vec<TreeEdit>, Damage> {
        let missing = || Damage::Malformed { what: "a keyspace without trees" };
        let (meta, shards) = trees.split_last().ok_or_else(missing)?;
        let mut edits = Vec::with_capacity(self.rows.len() + self.head.meta.len());
        for (key, head, body) in self.rows {
            let shard = routes.shard_of(RowHead::decode(&head)?.key_in(&body)?);
            let tree = *shards.get(shard).ok_or_else(missing)?;
            edits.push(TreeEdit { tree, key, edit: Edit::Put { head, body } });
        }
        for edit in self.head.meta {
            let value = match edit.value {
                Some(body) => Edit::Put { head: Bytes::new(), body },
                None => Edit::Remove,
            };
            edits.push(TreeEdit { tree: *meta, key: edit.key, edit: value });
        }
        Ok(edits)
    }
}

/// What a keyspace is after a batch; the engine keeps it with the trees, opaque.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct State {
    /// The newest main.
    pub(crate) main: u64,
    /// The compacted revision, -1 if never.
    pub(crate) compacted: i64,
    /// The frontend's position.
    pub(crate) applied_index: u64,
    /// Mains up to here may have been shown to somebody; 0 if nothing is reserved.
    pub(crate) reserve: u64,
    /// 128 bits over all records, without Volatile shards.
    pub(crate) history: u128,
    /// The lowest revision that each shard answers.
    pub(crate) floors: Vec<u64>,
    /// True while a snapshot is being restored into it: it is dropped at the next open.
    pub(crate) unfinished: bool,
}

impl State {
    /// The state of a new keyspace.
    pub(crate) fn new(shards: usize) -> Self {
        State {
            main: 1,
            compacted: -1,
            applied_index: 0,
            reserve: 0,
            history: 0,
            floors: vec![0; shards],
            unfinished: false,
        }
    }

    /// Becomes what it is after a record.
    pub(crate) fn follow(&mut self, head: &RecordHead) -> Result<(), Damage> {
        if let Some((shard, floor)) = head.floor {
            let known = self.floors.get_mut(shard as usize);
            *known.ok_or(Damage::Malformed { what: "a record of a shard that is not there" })? = floor;
        }
        self.main = head.main;
        self.compacted = head.compacted;
        self.applied_index = head.applied_index;
        self.reserve = head.reserve;
        self.history = head.history;
        Ok(())
    }

    fn is_possible(&self) -> bool {
        let highest = self.floors.iter().copied().max().unwrap_or(0).max(self.compacted.max(0).cast_unsigned());
        (1..=REVISION_MAX).contains(&self.main)
            && highest <= self.main
            && self.compacted >= -1
            && self.reserve <= REVISION_MAX
    }

    pub(crate) fn encode(&self) -> Bytes {
        let mut out = Vec::new();
        self.encode_into(&mut out);
        out.into()
    }

    /// The same, in place of what is in `out`.
    pub(crate) fn encode_into(&self, out: &mut Vec<u8>) {
        out.clear();
        out.push(STATE_VERSION);
        for word in [self.main, self.compacted.cast_unsigned(), self.applied_index, self.reserve] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out.extend_from_slice(&self.history.to_le_bytes());
        out.extend_from_slice(&u32::try_from(self.floors.len()).expect("few shards").to_le_bytes());
        for floor in &self.floors {
            out.extend_from_slice(&floor.to_le_bytes());
        }
        out.push(u8::from(self.unfinished));
        out.extend_from_slice(&[0; 15]); // room
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Damage> {
        let mut reader = Reader::new(bytes);
        if reader.u8()? != STATE_VERSION {
            return Err(Damage::Malformed { what: "a keyspace state of an unknown version" });
        }
        let (main, compacted) = (reader.u64()?, reader.u64()?.cast_signed());
        let (applied_index, reserve, history) = (reader.u64()?, reader.u64()?, reader.u128()?);
        let count = reader.u32()?;
        let floors = (0..count).map(|_| reader.u64()).collect::<Result<_, _>>()?;
        let unfinished = match reader.u8()? {
            0 => false,
            1 => true,
            _ => {
                return Err(Damage::Malformed { what: "a keyspace state has flags that this build does not know" });
            }
        };
        reader.zeros(15)?;
        reader.finish()?;
        let state = State { main, compacted, applied_index, reserve, history, floors, unfinished };
        if state.is_possible() { Ok(state) } else { Err(Damage::Malformed { what: "a keyspace state that cannot be" }) }
    }
}

/// The next link of the history hash.
pub(crate) fn next_history(before: u128, rows: &[u8]) -> u128 {
    let mut hasher = xxhash_rust::xxh3::Xxh3::new();
    hasher.update(&before.to_le_bytes());
    hasher.update(rows);
    hasher.digest128()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row::{NewPut, open_row};
    use polybolt_index::Revision;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_record_survives(keys in prop::collection::vec((prop::collection::vec(any::<u8>(), 1..900), any::<bool>(), any::<i64>()), 0..5), main in 1u64.., compacted in -1i64.., floor in any::<Option<(u32, u64)>>()) {
            let mut builder = RecordBuilder::default();
            builder.begin();
            let mut places = Vec::new();
            for (sub, (key, put, lease)) in keys.iter().enumerate() {
                let put = put.then_some(NewPut { value: &key[..key.len() / 2], created: 3, version: 4, lease: *lease });
                places.push(builder.row(NewRow { at: Revision::new(main, sub as u32), key, put }));
            }
            let meta = vec![MetaEdit { key: Bytes::from_static(b"k"), value: None }];
            let head = RecordHead { main, applied_index: 7, compacted, reserve: 9, history: 1 << 90, meta, floor };
            let bytes = Bytes::copy_from_slice(builder.finish(&head));
            let record = Record::decode(&bytes).unwrap();
            prop_assert_eq!(&record.head, &head);
            for (((key, put, lease), place), row) in keys.iter().zip(&places).zip(&record.rows) {
                prop_assert_eq!(&place.key(&bytes), &row.0);
                let (own_key, value) = place.key_and_value(&bytes, key.len());
                prop_assert_eq!(&own_key[..], &key[..]);
                prop_assert_eq!(&value[..], if *put { &key[..key.len() / 2] } else { b"" });
                let kv = open_row(&row.0, &row.1, &row.2).unwrap();
                prop_assert_eq!(&kv.key[..], &key[..]);
                prop_assert_eq!(kv.lease, if *put { *lease } else { 0 });
                let mut flipped = row.2.to_vec();
                if let Some(byte) = flipped.last_mut() {
                    *byte ^= 1;
                    prop_assert!(open_row(&row.0, &row.1, &flipped.into()).is_err());
                }
            }
            for len in 0..bytes.len() {
                let _ = Record::decode(&bytes[..len]);
            }
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Record::decode(&bytes);
            let _ = State::decode(&bytes);
            let _ = RowHead::decode(&bytes);
        }
    }

    #[test]
    fn a_state_that_cannot_be_is_refused() {
        let sound = State { reserve: 100, floors: vec![0, 9], ..State { main: 9, ..State::new(2) } };
        assert!(State::decode(&sound.encode()).is_ok());
        for state in [
            State { main: u64::MAX, ..sound.clone() },
            State { main: 0, floors: vec![0], ..sound.clone() },
            State { reserve: u64::MAX - 1, ..sound.clone() },
            State { compacted: 10, ..sound.clone() },
            State { compacted: i64::MIN, ..sound.clone() },
            State { floors: vec![10], ..sound.clone() },
        ] {
            assert!(State::decode(&state.encode()).is_err(), "{state:?}");
        }
    }

    #[test]
    fn a_state_survives() {
        let state = State {
            main: 9,
            compacted: -1,
            applied_index: 3,
            reserve: 100,
            history: 5,
            floors: vec![0, 7],
            unfinished: true,
        };
        assert_eq!(State::decode(&state.encode()).unwrap(), state);
    }
}
