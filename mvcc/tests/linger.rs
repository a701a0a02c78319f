//! Dead rows stay in leaves of which little is dead: how many, how long, and that nobody ever sees them.
#![expect(clippy::unwrap_used, reason = "tests")]

use polybolt::{DeleteRequest, Engine, Keyspace, Options, PutRequest, RangeRequest, Routes, Span};
use std::path::Path;

const KEYS: usize = 2000;

fn open(dir: &Path, options: Options) -> (Engine, Keyspace) {
    let engine = Engine::open(dir, options).unwrap();
    let ks = engine.keyspace("ks").or_else(|_| engine.create_keyspace("ks", Routes::single())).unwrap();
    (engine, ks)
}

fn put(ks: &Keyspace, keys: impl Iterator<Item = usize>) {
    let puts: Vec<_> = keys.map(|n| ks.put(PutRequest::new(format!("key-{n:05}"), vec![7; 400]))).collect();
    puts.into_iter().for_each(|put| drop(put.wait().unwrap()));
}

/// Compacts to now and waits until everything is done; pages' bytes that were written meanwhile.
fn compact(engine: &Engine, ks: &Keyspace) -> u64 {
    // Twice: not what was written before, nor any part of it.
    (0..2).for_each(|_| engine.flush().unwrap());
    let before = engine.stats().page_bytes;
    ks.compact(ks.revision(), true).wait().unwrap();
    (0..2).for_each(|_| engine.flush().unwrap());
    engine.stats().page_bytes - before
}

fn rows(ks: &Keyspace) -> usize {
    ks.stored_rows().unwrap().len()
}

fn found(ks: &Keyspace, revision: i64) -> Vec<(i64, i64)> {
    let all = RangeRequest { revision, ..RangeRequest::new(Span::prefix("")) };
    ks.range(&all).unwrap().kvs.iter().map(|kv| (kv.mod_revision, kv.version)).collect()
}

#[test]
fn a_leaf_is_written_without_its_dead_rows_once_there_are_enough() {
    let written = [0, 20].map(|reclaim_percent| {
        let dir = tempfile::tempdir().unwrap();
        let (engine, ks) = open(dir.path(), Options { reclaim_percent, ..Options::default() });
        put(&ks, 0..KEYS);
        let mut written = 0;
        for round in 0..12 {
            // Another one of the keys of each leaf.
            put(&ks, (round..KEYS).step_by(30));
            written += compact(&engine, &ks);
            let stats = ks.stats();
            let dead = rows(&ks) - KEYS;
            assert_eq!((stats.lingering as usize, stats.sweep_left), (dead, 0));
            assert_eq!(ks.status().shards[0].revisions as usize, KEYS, "nobody finds them");
            assert!(dead <= KEYS / 4 && (dead == 0) == (reclaim_percent == 0), "{dead} in round {round}");
        }
        let (at, dead) = (found(&ks, 0), ks.stats().lingering);
        drop(ks);
        engine.close().unwrap();
        // A restart finds them again, and weighs them.
        let (engine, ks) = open(dir.path(), Options { reclaim_percent, ..Options::default() });
        ks.compact(ks.revision(), true).wait().unwrap_err();
        put(&ks, 0..1);
        ks.compact(ks.revision(), true).wait().unwrap();
        assert_eq!((found(&ks, 0).len(), ks.stats().lingering.abs_diff(dead) < 10), (KEYS, true));
        assert_eq!(ks.stats().lingering as usize, rows(&ks) - KEYS);
        assert_eq!(found(&ks, 0)[1..], at[1..]);
        ks.defragment().unwrap();
        assert_eq!((ks.stats().lingering, rows(&ks)), (0, KEYS), "a defragmentation takes all of them");
        engine.verify(&mut |_| ()).unwrap();
        written
    });
    assert!(written[1] < written[0] / 2, "{written:?} bytes");
}

#[test]
fn what_a_tombstone_hides_does_not_outlive_it() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, ks) = open(dir.path(), Options { reclaim_percent: 90, ..Options::default() });
    put(&ks, 0..KEYS);
    let first = ks.revision();
    put(&ks, (0..KEYS).step_by(100));
    compact(&engine, &ks);
    assert_eq!(ks.stats().lingering, 20);
    // Each other of those is deleted, and then again put.
    for n in (0..KEYS).step_by(200) {
        ks.delete_range(DeleteRequest { span: Span::key(format!("key-{n:05}")), prev_kv: false }).wait().unwrap();
    }
    ks.put(PutRequest::new("other", "v")).wait().unwrap();
    let deleted = ks.revision();
    compact(&engine, &ks);
    put(&ks, (0..KEYS).step_by(200));
    let stored = ks.stored_rows().unwrap();
    let old = stored.keys().filter(|(_, main, _)| *main <= first).count();
    assert_eq!(old, KEYS - 20 + 10, "those of the others linger");
    let before = (found(&ks, deleted), found(&ks, 0), ks.hash_kv(0).unwrap().hash);
    assert_eq!((before.0.len(), before.1.len()), (KEYS - 10 + 1, KEYS + 1));
    drop(ks);
    engine.close().unwrap();
    let (_engine, ks) = open(dir.path(), Options { reclaim_percent: 90, ..Options::default() });
    assert_eq!((found(&ks, deleted), found(&ks, 0), ks.hash_kv(0).unwrap().hash), before);
}

/// Of a leaf that is met twice, once for a row that is in a buffer alone, nothing lingers that was taken out.
#[test]
fn what_lingers_is_in_a_leaf() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, ks) = open(dir.path(), Options { reclaim_percent: 30, ..Options::default() });
    // Some of them in the last leaf.
    let keys = KEYS + 8;
    put(&ks, 0..keys);
    put(&ks, keys - 1..keys);
    compact(&engine, &ks);
    assert_eq!(ks.stats().lingering, 1);
    // The same leaf, now with two: and behind it one that was never in a leaf, before and after another checkpoint.
    put(&ks, keys - 2..keys - 1);
    put(&ks, [0, 0, 1].into_iter());
    ks.compact(ks.revision(), true).wait().unwrap();
    for _ in 0..2 {
        engine.flush().unwrap();
        let (stored, lingering) = (ks.stored_rows().unwrap(), ks.probe().lingering);
        assert!(lingering.iter().all(|row| stored.contains_key(row)), "{lingering:?}");
        assert_eq!((lingering.len(), stored.len()), (ks.stats().lingering as usize, keys + lingering.len()));
    }
}

#[test]
fn nothing_lingers_where_the_quota_is_nearly_used_up() {
    let dir = tempfile::tempdir().unwrap();
    let quota_bytes = Some(4 << 20);
    let (engine, ks) = open(dir.path(), Options { quota_bytes, ..Options::default() });
    put(&ks, 0..KEYS);
    put(&ks, (0..KEYS).step_by(50));
    compact(&engine, &ks);
    assert!(ks.stats().lingering > 30, "{:?}", ks.stats());
    // Until it looks at the files again.
    let mut more = KEYS;
    while ks.stats().lingering > 0 {
        let puts = (more..more + 100).map(|n| ks.put(PutRequest::new(format!("key-{n:05}"), vec![7; 400])));
        let refused = puts.filter(|put| !matches!(put.outcome(), Some(Ok(())))).count();
        engine.flush().unwrap();
        more += 100;
        assert!(more < 1_000_000, "{refused} refused, {:?}", ks.stats());
    }
    assert!(found(&ks, 0).len() > KEYS);
}
