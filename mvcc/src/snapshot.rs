//! A keyspace as a stream of checked frames.
//!
//! Frame: length u32, crc32 of kind and payload u32, kind u8, payload. Kinds: 1 header, 2 rows,
//! 3 entries of the meta tree, 4 trailer. The header says what it is of; rows come in revision
//! order; the trailer has counts and the SHA-256 of all bytes before it. A stream that was cut,
//! changed or reordered is refused, and nothing of it is kept.

use crate::core::{Core, ReadPoint};
use crate::error::{Error, Refusal, Result};
use crate::meta;
use crate::pins::Pin;
use crate::record::State;
use crate::routes::Routes;
use crate::row::{self, NewPut, NewRow};
use crate::rows::{Rows, StoredRow};
use bytes::Bytes;
use polybolt_engine::codec::{Reader, put_bytes};
use polybolt_engine::{Damage, Edit, Place};
use polybolt_index::Revision;
use sha2::{Digest, Sha256};
use std::collections::VecDeque;
use std::io::Read;
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;

const MAGIC: &[u8; 8] = b"PBLTSNAP";
const VERSION: u32 = 1;
const HEADER: u8 = 1;
const ROWS: u8 = 2;
const META: u8 = 3;
const TRAILER: u8 = 4;
/// About how large a frame of rows is.
const FRAME_BYTES: usize = 64 << 10;
/// No frame is larger: one row of the largest request fits.
const FRAME_BYTES_MAX: usize = 512 << 20;

/// A stream of one keyspace at one revision. Holds one frame and the metadata (leases and tables) in
/// memory, and compaction back.
#[derive(Debug)]
pub struct Snapshot {
    core: Arc<Core>,
    point: ReadPoint,
    /// Holds the rows above `state.compacted`.
    kept: Pin,
    state: State,
    meta: VecDeque<(Bytes, Bytes)>,
    stage: Stage,
    digest: Sha256,
    rows: u64,
    entries: u64,
    bytes: u64,
}

#[derive(Debug)]
enum Stage {
    Header,
    Rows(Revision),
    Meta,
    Trailer,
    Done,
}

impl Snapshot {
    pub(crate) fn new(core: &Arc<Core>) -> Result<Self> {
        // State and meta entries of one moment; rows are read later, as of its revision.
        // Pinned with them: what is compacted after that, of all or of a shard, is not part of it.
        let (core, mut state, pins, ticket, meta) = core.with_writer(|core, writer| {
            core.check_open()?;
            let mut meta = VecDeque::new();
            core.store.view(core.meta)?.ascend(Bound::Unbounded, &mut |key, _, body| {
                meta.push_back((Bytes::copy_from_slice(key), body.load()?));
                Ok(true)
            })?;
            let state = writer.state.clone();
            let pins = (core.pin(state.main), core.pin(state.compacted.max(0).cast_unsigned()));
            Ok::<_, Error>((Arc::clone(core), state, pins, core.answer_at(writer.last), meta))
        })?;
        ticket.wait()?;
        let (pin, kept) = pins;
        let point = ReadPoint { visible: state.main, at: state.main, pin };
        state.reserve = 0;
        Ok(Snapshot {
            core,
            point,
            kept,
            state,
            meta,
            stage: Stage::Header,
            digest: Sha256::new(),
            rows: 0,
            entries: 0,
            bytes: 0,
        })
    }

    /// The revision it is of.
    pub fn revision(&self) -> i64 {
        self.point.at.cast_signed()
    }

    fn step(&mut self) -> Result<Option<Bytes>> {
        let (kind, payload) = match std::mem::replace(&mut self.stage, Stage::Done) {
            Stage::Header => {
                self.stage = Stage::Rows(Revision::default());
                (HEADER, self.header())
            }
            Stage::Rows(from) => {
                let (payload, next) = self.rows_from(from)?;
                // Not before: what was let go while it was read may lack rows.
                if !self.point.pin.holds() || !self.kept.holds() {
                    return Err(Refusal::Compacted { revision: self.core.publisher.compacted() }.into());
                }
                self.stage = next.map_or(Stage::Meta, Stage::Rows);
                (ROWS, payload)
            }
            Stage::Meta => {
                let mut payload = Vec::new();
                while payload.len() < FRAME_BYTES
                    && let Some((key, value)) = self.meta.pop_front()
                {
                    put_bytes(&mut payload, &key);
                    put_bytes(&mut payload, &value);
                    self.entries += 1;
                }
                self.stage = if self.meta.is_empty() { Stage::Trailer } else { Stage::Meta };
                (META, payload)
            }
            Stage::Trailer => {
                let mut payload = Vec::with_capacity(48);
                payload.extend_from_slice(&self.rows.to_le_bytes());
                payload.extend_from_slice(&self.entries.to_le_bytes());
                payload.extend_from_slice(&self.digest.clone().finalize());
                (TRAILER, payload)
            }
            Stage::Done => return Ok(None),
        };
        let mut frame = Vec::with_capacity(payload.len() + 9);
        frame.extend_from_slice(&u32::try_from(payload.len()).expect("a frame is bounded").to_le_bytes());
        frame.extend_from_slice(&frame_crc(kind, &payload).to_le_bytes());
        frame.push(kind);
        frame.extend_from_slice(&payload);
        self.digest.update(&frame);
        self.bytes += frame.len() as u64;
        Ok(Some(frame.into()))
    }

    /// False for a row that the sweep may take between two others: a tombstone could be gone when its turn
    /// comes, after the row that it hides was sent.
    fn stays(&self, at: Revision, tombstone: bool, key: &[u8]) -> bool {
        let shard = self.core.routes.shard_of(key);
        let floor = self.state.floors[shard].max(self.state.compacted.max(0).cast_unsigned());
        if at.main > floor {
            return true;
        }
        if tombstone {
            return at.main == floor;
        }
        self.core.shards[shard].keys.read().keeps(key, at, floor)
    }

    fn header(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&[0; 24]); // three feature words
        out.extend_from_slice(&0u64.to_le_bytes()); // since: 0 is everything
        put_bytes(&mut out, &self.state.encode());
        put_bytes(&mut out, &self.core.routes.encode());
        out
    }

    fn rows_from(&mut self, from: Revision) -> Result<(Vec<u8>, Option<Revision>)> {
        let shards = (0..self.core.shards.len()).collect();
        let mut rows = Rows::of_shards(&self.core, shards, from.main, self.point.at);
        let mut out = Vec::with_capacity(FRAME_BYTES + 4096);
        while let Some(StoredRow { at, tombstone, kv }) = rows.next_row()? {
            if at < from || !self.stays(at, tombstone, &kv.key) {
                continue;
            }
            if out.len() >= FRAME_BYTES {
                return Ok((out, Some(at)));
            }
            let put = NewPut {
                value: &kv.value,
                created: kv.create_revision.cast_unsigned(),
                version: kv.version.cast_unsigned(),
                lease: kv.lease,
            };
            let mut row = Vec::new();
            let put = (!tombstone).then_some(put);
            row::encode_row(&mut row, NewRow { at, key: &kv.key, put });
            put_bytes(&mut out, &row);
            self.rows += 1;
        }
        Ok((out, None))
    }
}

impl Iterator for Snapshot {
    type Item = Result<Bytes>;

    fn next(&mut self) -> Option<Result<Bytes>> {
        let frame = self.step();
        if frame.is_err() {
            self.stage = Stage::Done;
        }
        frame.transpose()
    }
}

/// What a stream is of.
#[derive(Debug)]
pub(crate) struct SnapshotHead {
    pub(crate) state: State,
    pub(crate) routes: Routes,
}

impl SnapshotHead {
    /// The floors that a keyspace with these routes has to have.
    pub(crate) fn floors_for(&self, routes: &Routes) -> Vec<u64> {
        routes.floors_from(&self.routes, &self.state.floors)
    }
}

/// One thing out of a stream.
pub(crate) enum Item {
    /// A row: tree key and the rest.
    Row { key: Bytes, head: Bytes, body: Bytes },
    /// An entry of the meta tree.
    Meta { key: Bytes, value: Bytes },
}

/// Reads a stream and checks all of it.
pub(crate) struct SnapshotReader<R> {
    input: R,
    digest: Sha256,
    offset: u64,
    rows: u64,
    entries: u64,
    /// The newest main.
    main: u64,
    /// The last row.
    last: Revision,
    /// The key of the last entry.
    last_entry: Bytes,
}

impl<R: Read> SnapshotReader<R> {
    /// Begins with the header.
    pub(crate) fn new(input: R) -> Result<(Self, SnapshotHead)> {
        let mut reader = SnapshotReader {
            input,
            digest: Sha256::new(),
            offset: 0,
            rows: 0,
            entries: 0,
            main: 0,
            last: Revision::default(),
            last_entry: Bytes::new(),
        };
        let (kind, payload) = reader.frame()?;
        let at = reader.offset;
        let damaged = |damage| damaged(at, damage);
        let mut fields = Reader::new(&payload);
        if kind != HEADER || fields.array::<8>().map_err(damaged)? != *MAGIC {
            return Err(damaged(Damage::Malformed { what: "it does not begin like a snapshot" }));
        }
        let version = fields.u32().map_err(damaged)?;
        let features = [fields.u64(), fields.u64(), fields.u64()];
        let since = fields.u64().map_err(damaged)?;
        if version != VERSION || !matches!(features, [Ok(_), Ok(0), Ok(0)]) || since != 0 {
            return Err(Error::Storage(polybolt_engine::Error::Unsupported {
                file: "the snapshot".into(),
                found: format!("snapshot format {version} since revision {since}"),
                supported: format!("whole snapshots of format {VERSION} without features"),
            }));
        }
        let state = State::decode(fields.bytes().map_err(damaged)?).map_err(damaged)?;
        let routes = Routes::decode_plain(fields.bytes().map_err(damaged)?).map_err(damaged)?;
        fields.finish().map_err(damaged)?;
        if state.floors.len() != routes.shards().len() {
            let (expected, found) = (routes.shards().len() as u64, state.floors.len() as u64);
            return Err(damaged(Damage::Mismatch { field: "count of floors", expected, found }));
        }
        reader.main = state.main;
        Ok((reader, SnapshotHead { state, routes }))
    }

    /// What the next frame holds; None at the end of a stream that was whole.
    pub(crate) fn next_items(&mut self) -> Result<Option<Vec<Item>>> {
        let digest = self.digest.clone().finalize();
        let (kind, payload) = self.frame()?;
        let at = self.offset;
        let mut fields = Reader::new(&payload);
        let mut items = Vec::new();
        match kind {
            ROWS => {
                while !fields.rest().is_empty() {
                    let row = fields.bytes().and_then(|row| self.row(row));
                    items.push(row.map_err(|damage| damaged(at, damage))?);
                    self.rows += 1;
                }
            }
            META => {
                while !fields.rest().is_empty() {
                    let entry = fields.bytes().and_then(|key| self.entry(key, fields.bytes()?));
                    items.push(entry.map_err(|damage| damaged(at, damage))?);
                    self.entries += 1;
                }
            }
            TRAILER => {
                let counts = (fields.u64().ok(), fields.u64().ok());
                if counts != (Some(self.rows), Some(self.entries)) || fields.rest() != &digest[..] {
                    let what = "its trailer does not match what came before";
                    return Err(damaged(at, Damage::Malformed { what }));
                }
                return Ok(None);
            }
            _ => return Err(damaged(at, Damage::Malformed { what: "a frame of an unknown kind" })),
        }
        Ok(Some(items))
    }

    /// A row that its keyspace can have after the last one. What its key was before is looked at when all are
    /// there.
    fn row(&mut self, row: &[u8]) -> Result<Item, Damage> {
        let short = || Damage::Malformed { what: "a row is too short" };
        let (key, rest) = row.split_at_checked(row::ROW_KEY_BYTES).ok_or_else(short)?;
        let (head, body) = rest.split_at_checked(row::head_len(rest)?).ok_or_else(short)?;
        let (key, head, body) =
            (Bytes::copy_from_slice(key), Bytes::copy_from_slice(head), Bytes::copy_from_slice(body));
        if !(Edit::Put { head: head.clone(), body: body.clone() }).fits(&key) {
            return Err(Damage::Malformed { what: "a row is larger than any can be" });
        }
        let at = row::row_revision(&key)?;
        if at <= self.last || at.main > self.main {
            return Err(Damage::Malformed { what: "a row is out of order, or above the revision" });
        }
        self.last = at;
        if row::open_row(&key, &head, &body)?.key.is_empty() {
            return Err(Damage::Malformed { what: "a row has no key" });
        }
        Ok(Item::Row { key, head, body })
    }

    /// An entry of the meta tree that can come after the last one.
    fn entry(&mut self, key: &[u8], value: &[u8]) -> Result<Item, Damage> {
        let (key, value) = (Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
        if key <= self.last_entry || !(Edit::Put { head: Bytes::new(), body: value.clone() }).fits(&key) {
            return Err(Damage::Malformed { what: "an entry is out of order, or larger than any can be" });
        }
        meta::entry(&key, &value)?;
        self.last_entry = key.clone();
        Ok(Item::Meta { key, value })
    }

    fn frame(&mut self) -> Result<(u8, Vec<u8>)> {
        let at = self.offset;
        let mut head = [0; 9];
        self.fill(&mut head)?;
        let mut fields = Reader::new(&head);
        let (len, crc) = (fields.u32().unwrap_or(u32::MAX) as usize, fields.u32().unwrap_or(0));
        if len > FRAME_BYTES_MAX {
            return Err(damaged(at, Damage::Malformed { what: "a frame is larger than any can be" }));
        }
        let mut payload = vec![0; len];
        self.fill(&mut payload)?;
        let computed = frame_crc(head[8], &payload);
        if computed != crc {
            return Err(damaged(at, Damage::Checksum { stored: crc, computed }));
        }
        self.digest.update(head);
        self.digest.update(&payload);
        Ok((head[8], payload))
    }

    fn fill(&mut self, buf: &mut [u8]) -> Result<()> {
        let needed = self.offset + buf.len() as u64;
        self.input.read_exact(buf).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => damaged(self.offset, Damage::Truncated { needed, found: self.offset }),
            _ => {
                Error::Storage(polybolt_engine::Error::io("read", Path::new("the snapshot"), Some(self.offset), error))
            }
        })?;
        self.offset = needed;
        Ok(())
    }
}

fn frame_crc(kind: u8, payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&[kind]);
    hasher.update(payload);
    hasher.finalize()
}

fn damaged(at: u64, damage: Damage) -> Error {
    Error::Storage(polybolt_engine::Error::corrupt(Path::new("the snapshot"), Place::Offset(at), damage))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::meta::StoredLease;
    use crate::routes::Routes;

    /// A row as a stream has it.
    pub(crate) fn row(main: u64, key: &[u8], version: u64) -> Vec<u8> {
        let put = (version > 0).then_some(NewPut { value: b"v", created: main + 1 - version, version, lease: 0 });
        let mut row = Vec::new();
        row::encode_row(&mut row, NewRow { at: Revision::new(main, 0), key, put });
        row
    }

    /// A stream of a keyspace at revision 9 whose checksums hold, whatever is in it.
    pub(crate) fn stream(rows: &[Vec<u8>], entries: &[(&[u8], &[u8])]) -> Vec<u8> {
        let mut header = MAGIC.to_vec();
        header.extend_from_slice(&VERSION.to_le_bytes());
        header.extend_from_slice(&[0; 32]);
        put_bytes(&mut header, &State { main: 9, ..State::new(1) }.encode());
        put_bytes(&mut header, &Routes::single().encode());
        let (mut of_rows, mut of_entries) = (Vec::new(), Vec::new());
        rows.iter().for_each(|row| put_bytes(&mut of_rows, row));
        for (key, value) in entries {
            put_bytes(&mut of_entries, key);
            put_bytes(&mut of_entries, value);
        }
        let mut out = Vec::new();
        let frame = |kind: u8, payload: &[u8], out: &mut Vec<u8>| {
            out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
            out.extend_from_slice(&frame_crc(kind, payload).to_le_bytes());
            out.push(kind);
            out.extend_from_slice(payload);
        };
        for (kind, payload) in [(HEADER, &header), (ROWS, &of_rows), (META, &of_entries)] {
            frame(kind, payload, &mut out);
        }
        let mut trailer = (rows.len() as u64).to_le_bytes().to_vec();
        trailer.extend_from_slice(&(entries.len() as u64).to_le_bytes());
        trailer.extend_from_slice(&Sha256::digest(&out));
        frame(TRAILER, &trailer, &mut out);
        out
    }

    fn read(stream: &[u8]) -> Result<usize> {
        let (mut reader, _) = SnapshotReader::new(stream)?;
        let mut count = 0;
        while let Some(items) = reader.next_items()? {
            count += items.len();
        }
        Ok(count)
    }

    /// Some of them went into pages that they do not fit, and the keyspace did not open any more.
    #[test]
    fn what_no_sender_can_have_is_refused_though_its_checksums_hold() {
        let lease = StoredLease { ttl: 60, remaining: 0 }.encode();
        let id = meta::lease_key(7);
        let good = [row(2, b"a", 1), row(3, b"b", 1)];
        assert_eq!(read(&stream(&good, &[(&id, &lease), (b"tx\0k", b"v")])).unwrap(), 4);
        // In the head, where the longest keys are not.
        let inline = |head: &[u8], crc_at: usize| {
            let key = row::row_key(Revision::new(2, 0));
            let mut inline = [&key[..], head, &[b'k'; 60_000]].concat();
            let crc = crc32fast::hash(&[&inline[..crc_at], &inline[crc_at + 4..]].concat());
            inline[crc_at..crc_at + 4].copy_from_slice(&crc.to_le_bytes());
            row::RowHead::decode(&inline[12..]).unwrap().check(&key, &inline[12..], b"").unwrap();
            inline
        };
        let packed = inline(&[4, 0, 0, 0, 0, 0xe0, 0xd4, 3, 2, 1, 0], 13);
        let lengths = [&[0; 8][..], &60_000u32.to_le_bytes(), &2u64.to_le_bytes(), &1u64.to_le_bytes(), &[0; 8]];
        let wide = inline(&lengths.concat(), 16);
        let long = [&b"tx\0"[..], &[b'k'; 600]].concat();
        let streams = [
            ("out of order", stream(&[row(3, b"b", 1), row(2, b"a", 1)], &[])),
            ("the same twice", stream(&[row(3, b"b", 1), row(3, b"a", 1)], &[])),
            ("above the revision", stream(&[row(10, b"a", 1)], &[])),
            ("without a key", stream(&[row(2, b"", 1)], &[])),
            ("with a long head", stream(&[packed], &[])),
            ("with a long head that is not packed", stream(&[wide], &[])),
            ("an entry with a long key", stream(&[], &[(&long, b"v")])),
            ("entries out of order", stream(&[], &[(b"tx\0b", b"v"), (b"tx\0a", b"v")])),
            ("an entry of nothing", stream(&[], &[(b"x", b"v")])),
            ("a lease that is none", stream(&[], &[(&id, b"v")])),
        ];
        for (what, stream) in streams {
            let error = read(&stream).expect_err(what);
            let named = error.to_string().starts_with("the snapshot, offset ");
            assert!(named && matches!(error, Error::Storage(_)), "{what}: {error}");
        }
    }
}
