//! The one codec between the worlds: rows, journal records, and the state of a keyspace.
//!
//! A row's tree key is its revision, big-endian: main (8 bytes), sub (4 bytes). Its head stays in the
//! leaf and says everything but the value, which is the body:
//!
//! | bytes  | field   | meaning                                                        |
//! |--------|---------|----------------------------------------------------------------|
//! | 0      | flags   | 1: tombstone, 2: the key is at the front of the body           |
//! | 1      | codec   | how the value is encoded; 0 is plainly                         |
//! | 2..4   | zero    |                                                                |
//! | 4..8   | crc     | crc32 of the tree key, the rest of the head, and the body      |
//! | 8..12  | key     | its length                                                     |
//! | 12..20 | created | main at which this life of the key began; 0 for a tombstone    |
//! | 20..28 | version | puts since then; 0 for a tombstone                             |
//! | 28..36 | lease   | or 0                                                           |
//! | 36..   | the key, unless flag 2                                                   |
//!
//! The crc is made once, when the row is encoded, and checked whenever its value leaves the engine.
//! A journal record holds rows as tree key, head and body in one piece, so that the edits of the
//! trees are slices of it; behind the rows comes its head, and in a record of version 2 a shard and its new floor.
//! Numbers but revisions are little-endian; nothing decoded is trusted.

use crate::request::KeyValue;
use crate::routes::Routes;
use bytes::Bytes;
use polybolt_engine::codec::{Reader, put_bytes};
use polybolt_engine::{Damage, Edit, TreeEdit, TreeId, limits};
use polybolt_index::Revision;

/// Bytes of a row's tree key.
pub(crate) const ROW_KEY_BYTES: usize = 12;
const HEAD_BYTES: usize = 36;
const TOMBSTONE: u8 = 1;
const KEY_IN_BODY: u8 = 2;
/// The longest key that stays in the leaf.
const INLINE_KEY_MAX: usize = limits::HEAD_BYTES_MAX - HEAD_BYTES;
const RECORD_VERSION: u8 = 1;
/// One that raises a shard's floor; earlier builds do not know it.
const RECORD_VERSION_FLOOR: u8 = 2;
/// The most memory of a record that stays for the next.
const RECORD_KEPT_MAX: usize = 16 << 10;
const STATE_VERSION: u8 = 1;
/// No keyspace gets there; the rest of the numbers is for what is reserved ahead.
const REVISION_MAX: u64 = 1 << 62;

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
}

/// Appends a row as tree key, head and body.
pub(crate) fn encode_row(out: &mut Vec<u8>, row: NewRow<'_>) -> RowPlace {
    let start = out.len();
    out.extend_from_slice(&row_key(row.at));
    let head = out.len();
    let long = row.key.len() > INLINE_KEY_MAX;
    let flags = if row.put.is_none() { TOMBSTONE } else { 0 } | if long { KEY_IN_BODY } else { 0 };
    let key_len = u32::try_from(row.key.len()).expect("requests are bounded by max_request_bytes");
    out.extend_from_slice(&[flags, 0, 0, 0, 0, 0, 0, 0]);
    out.extend_from_slice(&key_len.to_le_bytes());
    let (created, version, lease) = row.put.map_or((0, 0, 0), |put| (put.created, put.version, put.lease));
    out.extend_from_slice(&created.to_le_bytes());
    out.extend_from_slice(&version.to_le_bytes());
    out.extend_from_slice(&lease.to_le_bytes());
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
    out[head + 4..head + 8].copy_from_slice(&crc.to_le_bytes());
    RowPlace { start, head, body, end }
}

fn row_crc(key: &[u8], head: &[u8], body: &[u8]) -> u32 {
    let mut hasher = crc_begun(key, head);
    hasher.update(&head[8..]);
    hasher.update(body);
    hasher.finalize()
}

/// The crc of a row up to its own place.
fn crc_begun(key: &[u8], head: &[u8]) -> crc32fast::Hasher {
    let mut first = [0; ROW_KEY_BYTES + 4];
    let mut hasher = crc32fast::Hasher::new();
    match key.try_into() {
        // In one piece, which is faster.
        Ok(key) => {
            let key: &[u8; ROW_KEY_BYTES] = key;
            first[..ROW_KEY_BYTES].copy_from_slice(key);
            first[ROW_KEY_BYTES..].copy_from_slice(&head[..4]);
            hasher.update(&first);
        }
        Err(_) => {
            hasher.update(key);
            hasher.update(&head[..4]);
        }
    }
    hasher
}

impl<'a> RowHead<'a> {
    /// The head of a row; its crc is checked by [`open_row`], which has the body.
    pub(crate) fn decode(head: &'a [u8]) -> Result<Self, Damage> {
        let short = Damage::Truncated { needed: HEAD_BYTES as u64, found: head.len() as u64 };
        let (fixed, rest) = head.split_first_chunk::<HEAD_BYTES>().ok_or(short)?;
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| fixed[at + byte]));
        let half = |at: usize| u32::from_le_bytes(std::array::from_fn(|byte| fixed[at + byte]));
        let flags = fixed[0];
        if flags & !(TOMBSTONE | KEY_IN_BODY) != 0 || fixed[1..4] != [0; 3] {
            return Err(Damage::Malformed { what: "a row has flags or a codec that this build does not know" });
        }
        let (crc, key_len) = (half(4), half(8) as usize);
        let (created, version, lease) = (word(12), word(20), word(28).cast_signed());
        let key = if flags & KEY_IN_BODY == 0 { Some(rest) } else { None };
        if rest.len() != key.map_or(0, |_| key_len) {
            return Err(Damage::Malformed { what: "a row's head is not as long as its key says" });
        }
        let tombstone = flags & TOMBSTONE != 0;
        if tombstone != (version == 0) {
            return Err(Damage::Malformed { what: "a row is neither a put nor a tombstone" });
        }
        Ok(RowHead { tombstone, key, key_len, created, version, lease, crc })
    }

    /// Checks the crc of the row whose head this is.
    pub(crate) fn check(&self, tree_key: &[u8], head: &[u8], body: &[u8]) -> Result<(), Damage> {
        let computed = row_crc(tree_key, head, body);
        if computed == self.crc { Ok(()) } else { Err(Damage::Checksum { stored: self.crc, computed }) }
    }

    /// The same for head and body in one piece.
    pub(crate) fn check_joined(&self, tree_key: &[u8], both: &[u8]) -> Result<(), Damage> {
        let mut hasher = crc_begun(tree_key, both);
        hasher.update(&both[8..]);
        let computed = hasher.finalize();
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
    let flags = reader.u8()?;
    reader.take(7)?;
    let key_len = reader.u32()? as usize;
    Ok(HEAD_BYTES + if flags & KEY_IN_BODY == 0 { key_len } else { 0 })
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
        let head = u16::try_from(place.body - place.head).expect("a head is at most HEAD_BYTES_MAX");
        let body = u32::try_from(place.end - place.body).expect("requests are bounded by max_request_bytes");
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
