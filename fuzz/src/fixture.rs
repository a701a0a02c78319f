//! A store with something of everything, the same each time it is made.

use crate::drive::{self, Driven, STORE};
use bytes::Bytes;
use polybolt::disk::sim::{SimDisk, Survive};
use polybolt::{
    DeleteRequest, Keyspace, Older, Op, Options, PutRequest, Routes, ShardOptions, Span, TableEdit, TxnRequest,
};
use polybolt_engine::manifest::{Manifest, SLOT_NAMES};
use std::path::Path;
use std::time::Duration;

/// The keyspaces of the store.
pub const KEYSPACES: [&str; 2] = ["ks", "other"];

/// Three shards and a Volatile one, with the smallest pages.
pub fn routes() -> Routes {
    let shard = |name: &str| ShardOptions { page_bytes: 4096, ..ShardOptions::new(name) };
    let shards =
        [shard("low").prefix("a"), shard("mid").prefix("m"), shard("vol").prefix("v").volatile(), shard("rest")];
    Routes::new(shards.to_vec()).expect("the routes are sound")
}

fn put(driven: &Driven, ks: &Keyspace, n: u64) {
    let key = format!("{}{}", ["a", "m", "v", "x"][(n % 4) as usize], n % 43);
    let len = if n % 37 == 5 { 9000 } else { 40 + (n * 7 % 300) as usize };
    let lease = if n.is_multiple_of(11) { 1 + (n % 2).cast_signed() } else { 0 };
    let request = PutRequest { lease, ..PutRequest::new(key, vec![n as u8; len]) };
    driven.finish(ks.put(request)).expect("a put");
}

fn fill(driven: &Driven, ks: &Keyspace, from: u64, to: u64) {
    for n in from..to {
        put(driven, ks, n);
        if n.is_multiple_of(9) {
            let key = format!("m{}", n % 43);
            driven.finish(ks.delete_range(DeleteRequest { span: Span::key(key), prev_kv: false })).expect("a delete");
        }
        driven.run(6, Duration::from_millis(7));
    }
    let both = [PutRequest::new("a", "1"), PutRequest::new("x", "2")].map(Op::Put);
    driven.finish(ks.txn(TxnRequest { success: both.into(), ..TxnRequest::default() })).expect("a txn");
}

/// Closed, or stopped in the middle with a journal to replay.
pub fn store(clean: bool) -> SimDisk {
    let disk = drive::disk();
    let driven = Driven::open(&disk, STORE, drive::options(), 7).expect("a new store");
    for (name, routes, rows) in [(KEYSPACES[0], routes(), 100), (KEYSPACES[1], Routes::single(), 12)] {
        let ks = driven.engine.create_keyspace(name, routes).expect("a new keyspace");
        driven.finish(ks.lease_grant(1, 100)).expect("a lease");
        driven.finish(ks.lease_grant(2, 3000)).expect("a lease");
        let edit = |n: u8| TableEdit { table: "t".into(), key: vec![n].into(), value: Some(vec![n; 50].into()) };
        driven.finish(ks.table_write((0..5).map(edit).collect())).expect("a table");
        fill(&driven, &ks, 0, rows);
        driven.finish(ks.compact(ks.revision() / 2, true)).expect("a compaction");
        fill(&driven, &ks, rows, rows + 10);
    }
    if clean {
        driven.close().expect("it closes");
        return disk.after_crash(Survive::Nothing);
    }
    // Their last writes are in the journal alone.
    let ks = driven.engine.keyspace(KEYSPACES[0]).expect("it is there");
    for n in 0..12 {
        put(&driven, &ks, n);
    }
    disk.stop();
    drop((ks, driven));
    disk.after_crash(Survive::Nothing)
}

/// Bytes of a journal segment of [`journal`].
pub const SEGMENT: usize = 4096;

/// A store with small segments that was stopped, each record of its journal still to be replayed.
fn journaled() -> SimDisk {
    let disk = drive::disk();
    let options = Options {
        segment_bytes: SEGMENT as u64,
        journal_bytes: 64 << 10,
        checkpoint_interval: Duration::from_secs(1000),
        ..drive::options()
    };
    let driven = Driven::open(&disk, STORE, options, 7).expect("a new store");
    let ks = driven.engine.create_keyspace("ks", routes()).expect("a new keyspace");
    driven.finish(ks.lease_grant(1, 100)).expect("a lease");
    driven.finish(ks.lease_grant(2, 3000)).expect("a lease");
    for n in 0..20 {
        put(&driven, &ks, n * 4);
    }
    disk.stop();
    drop((ks, driven));
    disk.after_crash(Survive::Nothing)
}

/// What a stopped store opens from.
pub fn manifest() -> Manifest {
    let disk = journaled();
    let read = |name: &&str| {
        let path = Path::new(STORE).join(name);
        let len = disk.files().into_iter().find(|(file, _)| *file == path).map_or(0, |(_, len)| len);
        Manifest::decode(&path, &disk.peek(&path, 0, len as usize)?).ok()
    };
    SLOT_NAMES.iter().filter_map(read).max_by_key(|manifest| manifest.sequence).expect("a slot is whole")
}

/// The segments of its journal, in order.
pub fn journal() -> Vec<Vec<u8>> {
    let disk = journaled();
    let segments = disk.files().into_iter().filter(|(path, _)| path.extension().is_some_and(|kind| kind == "seg"));
    segments.map(|(path, len)| disk.peek(&path, 0, len as usize).expect("it is as long")).collect()
}

/// A store whose keyspace is behind the one of [`stream`].
pub fn receiver() -> SimDisk {
    let disk = drive::disk();
    let driven = Driven::open(&disk, STORE, drive::options(), 7).expect("a new store");
    let ks = driven.engine.create_keyspace("ks", routes()).expect("a new keyspace");
    for id in [1, 2, 9] {
        driven.finish(ks.lease_grant(id, 100)).expect("a lease");
    }
    fill(&driven, &ks, 200, 206);
    driven.close().expect("it closes");
    disk.after_crash(Survive::Nothing)
}

/// A snapshot.
pub fn stream(rows: u64) -> Vec<u8> {
    let disk = drive::disk();
    let driven = Driven::open(&disk, STORE, drive::options(), 7).expect("a new store");
    let ks = driven.engine.create_keyspace("ks", routes()).expect("a new keyspace");
    driven.finish(ks.lease_grant(1, 100)).expect("a lease");
    driven.finish(ks.lease_grant(2, 3000)).expect("a lease");
    let edit = TableEdit { table: "t".into(), key: Bytes::from_static(b"k"), value: Some(Bytes::from_static(b"v")) };
    driven.finish(ks.table_write(vec![edit])).expect("a table");
    fill(&driven, &ks, 0, rows);
    driven.finish(ks.compact(ks.revision() - 3, true)).expect("a compaction");
    let frames = driven.blocking(|| ks.snapshot().expect("a snapshot").collect::<Result<Vec<_>, _>>());
    frames.expect("frames").concat()
}

/// Puts a stream into a keyspace.
pub fn install(driven: &Driven, name: &str, stream: &[u8], older: Older) -> polybolt::Result<i64> {
    let install = driven.engine.install(name, stream, older)?;
    driven.finish(install)
}
