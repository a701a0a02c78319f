//! Everything at once, on real threads: writers, watchers that come at any time, compaction, snapshots
//! and hashes. What is checked does not depend on who wins.
#![expect(clippy::unwrap_used, reason = "tests")]

use polybolt::{
    Engine, Error, Keyspace, Op, Options, PutRequest, RangeRequest, Refusal, Routes, Span, TxnRequest, WatchItem,
    WatchRequest,
};
use std::io::Read;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

const WRITERS: u64 = 3;
const TXNS: u64 = 400;

fn write(ks: &Keyspace, writer: u64, newest: &AtomicI64) {
    for n in 0..TXNS {
        let put = |prefix: &str| {
            Op::Put(PutRequest::new(format!("{prefix}{}", (writer + n) % 17), vec![b'v'; (n % 90) as usize]))
        };
        let request = TxnRequest { success: vec![put("a"), put("m"), put("x")], ..TxnRequest::default() };
        let done = ks.txn(request).wait().unwrap();
        // What is acknowledged is visible.
        assert!(ks.revision() >= done.revision);
        newest.fetch_max(done.revision, Ordering::SeqCst);
    }
}

/// Watches until `last`: each revision from its start on once, in order, with all three of its events.
fn watch(ks: &Keyspace, start_revision: i64, last: i64) {
    let request =
        WatchRequest { span: Span::prefix(""), start_revision, no_put: false, no_delete: false, prev_kv: true };
    let mut watcher = ks.watch(request).unwrap();
    let mut next = if start_revision == 0 { watcher.created_revision() + 1 } else { start_revision };
    while next <= last {
        match watcher.recv().unwrap().unwrap() {
            WatchItem::Events { revision, events } => {
                assert_eq!(events.len() % 3, 0, "whole revisions only");
                for three in events.chunks(3) {
                    assert!(three.iter().all(|event| event.kv().mod_revision == next), "{next}: {three:?}");
                    for event in three {
                        let created = event.kv().create_revision == event.kv().mod_revision;
                        assert!(
                            created || event.prev_kv().is_some_and(|before| before.version + 1 == event.kv().version)
                        );
                    }
                    next += 1;
                }
                assert!(revision >= next - 1);
            }
            WatchItem::Compacted { compact_revision } => {
                assert!(compact_revision > next, "told for nothing: {compact_revision}, {next} is needed");
                return;
            }
        }
        if let Some(progress) = watcher.progress() {
            assert!(progress >= next - 1);
            // Everything up to it was handed out.
            next = next.max(progress + 1);
        }
    }
}

/// A snapshot, as a reader.
struct Stream(polybolt::Snapshot, bytes::Bytes);

impl Read for Stream {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        while self.1.is_empty() {
            match self.0.next() {
                Some(frame) => self.1 = frame.map_err(std::io::Error::other)?,
                None => return Ok(0),
            }
        }
        let len = out.len().min(self.1.len());
        out[..len].copy_from_slice(&self.1.split_to(len));
        Ok(len)
    }
}

fn snapshot(ks: &Keyspace, engine: &Engine, name: &str) {
    let snapshot = ks.snapshot().unwrap();
    let revision = snapshot.revision();
    let restored =
        engine.restore(name, Some(Routes::single()), Stream(snapshot, bytes::Bytes::new()), &mut |_| ()).unwrap();
    assert_eq!(restored.revision(), revision);
    let everything = RangeRequest { revision, ..RangeRequest::new(Span::prefix("")) };
    match ks.range(&everything) {
        Ok(source) => assert_eq!(restored.range(&everything).unwrap().kvs, source.kvs, "at {revision}"),
        Err(Error::Refused(Refusal::Compacted { .. })) => {}
        Err(error) => panic!("{error}"),
    }
    // It is a keyspace like any other.
    let put = restored.put(PutRequest::new("more", "1")).wait().unwrap();
    assert_eq!(put.revision, revision + 1);
    drop(restored);
    engine.drop_keyspace(name).unwrap();
}

#[test]
fn everything_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        buffer_bytes: 400_000,
        watch_buffer_bytes: 20_000,
        compaction_pace: polybolt::CompactionPace { batch_limit: 50, ..Default::default() },
        admission_timeout: std::time::Duration::from_secs(300),
        ..Options::default()
    };
    let engine = Engine::open(dir.path(), options.clone()).unwrap();
    let ks = engine.create_keyspace("ks", Routes::parse("low=a,mid=m").unwrap()).unwrap();
    let last = (WRITERS * TXNS) as i64 + 1;
    let (newest, done) = (AtomicI64::new(1), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (ks, newest) = (&ks, &newest);
                scope.spawn(move || write(ks, writer, newest))
            })
            .collect();
        for watcher in 0..4i64 {
            let (ks, newest) = (&ks, &newest);
            scope.spawn(move || {
                watch(ks, 0, last);
                watch(ks, (newest.load(Ordering::SeqCst) - 30 * watcher).max(2), last);
            });
            scope.spawn(move || {
                while newest.load(Ordering::SeqCst) < last * watcher / 4 {
                    std::thread::yield_now();
                }
                watch(ks, (newest.load(Ordering::SeqCst) - 40).max(2), last);
            });
        }
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                let target = newest.load(Ordering::SeqCst) - 60;
                if target > ks.compact_revision().max(0) {
                    ks.compact(target, target % 2 == 0).wait().unwrap();
                }
                let revision = ks.revision();
                // The hash of a revision is one, whatever goes on.
                if let (Ok(one), Ok(two)) = (ks.hash_kv(revision), ks.hash_kv(revision)) {
                    assert!(one.hash == two.hash || one.compact_revision != two.compact_revision);
                }
                std::thread::yield_now();
            }
        });
        scope.spawn(|| {
            let mut n = 0;
            while !done.load(Ordering::SeqCst) {
                snapshot(&ks, &engine, &format!("copy-{n}"));
                n += 1;
            }
        });
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                let mut stream = ks.range_stream(&RangeRequest::new(Span::prefix(""))).unwrap();
                let kvs: usize = stream.by_ref().map(|chunk| chunk.unwrap().len()).sum();
                assert_eq!(kvs as i64, stream.total());
                drop(ks.defragment());
            }
        });
        for writer in writers {
            writer.join().unwrap();
        }
        done.store(true, Ordering::SeqCst);
    });
    assert_eq!(ks.revision(), last);
    engine.verify(&mut |_| ()).unwrap();
    let before = ks.range(&RangeRequest::new(Span::prefix(""))).unwrap();
    let hash = ks.history_hash();
    drop(ks);
    engine.close().unwrap();
    let engine = Engine::open(dir.path(), options).unwrap();
    let ks = engine.keyspace("ks").unwrap();
    assert_eq!(ks.range(&RangeRequest::new(Span::prefix(""))).unwrap(), before);
    assert_eq!(ks.history_hash(), hash);
    assert_eq!(engine.keyspaces(), ["ks"]);
}

/// Found by a hash that was sometimes another one: what had waited for room was applied after what came later.
#[test]
fn writes_are_applied_in_the_order_of_the_calls_whoever_waits() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        buffer_bytes: 60_000,
        segment_bytes: 16 << 10,
        journal_bytes: 64 << 10,
        admission_timeout: std::time::Duration::from_secs(300),
        ..Options::default()
    };
    let engine = Engine::open(dir.path(), options).unwrap();
    let ks = engine.create_keyspace("ks", Routes::single()).unwrap();
    let put = |n: usize| ks.put(PutRequest::new("k", format!("{n:>200}")));
    // As many as may stand in line.
    let pending: Vec<_> = (0..800).map(put).collect();
    // Waited for backwards.
    let mut revisions: Vec<i64> = pending.into_iter().rev().map(|put| put.wait().unwrap().revision).collect();
    revisions.reverse();
    assert_eq!(revisions, (2..802).collect::<Vec<_>>());
    // Not waited for at all: all of it happens all the same.
    (0..800).for_each(|n| drop(put(n)));
    let last = put(800).wait().unwrap();
    assert_eq!(last.revision, 1602);
    let kv = ks.range(&RangeRequest::new(Span::key("k"))).unwrap().kvs.remove(0);
    assert_eq!((kv.version, &kv.value[..]), (1601, format!("{:>200}", 800).as_bytes()));
}

/// A get looks a key up by its hash, a range of it in the ordered index; both beside puts, deletes and compactions.
#[test]
fn gets_answer_as_ranges_do() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { buffer_bytes: 200_000, hash_index_from: 20, ..Options::default() };
    let engine = Engine::open(dir.path(), options).unwrap();
    let ks = engine.create_keyspace("ks", Routes::parse("low=a").unwrap()).unwrap();
    let (done, key) = (AtomicBool::new(false), |n: usize| format!("{}{:03}", ["a", "z"][n % 2], n % 300));
    std::thread::scope(|scope| {
        for reader in 0..3 {
            let (ks, done) = (&ks, &done);
            scope.spawn(move || {
                let mut n = reader;
                while !done.load(Ordering::SeqCst) {
                    n += 7;
                    let get = ks.range(&RangeRequest::new(Span::key(key(n)))).unwrap();
                    // The end is not the key's own, so that it is no get.
                    let mut range = RangeRequest::new(Span::range(key(n), key(n) + "\0\0"));
                    range.revision = get.revision;
                    match ks.range(&range) {
                        Ok(response) => {
                            assert_eq!((get.count, &get.kvs), (response.count, &response.kvs), "{}", key(n))
                        }
                        Err(Error::Refused(Refusal::Compacted { .. })) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            });
        }
        for n in 0..20_000 {
            let which = n * 13 + n / 1000;
            // Not waited for: readers see what is applied but not visible yet.
            if n % 5 == 4 {
                drop(ks.delete_range(polybolt::DeleteRequest { span: Span::key(key(which)), prev_kv: false }));
            } else {
                drop(ks.put(PutRequest::new(key(which), format!("{n:>50}"))));
            }
            if n % 1000 == 999 {
                let revision = ks.put(PutRequest::new(key(which), "")).wait().unwrap().revision;
                ks.compact(revision - 5, false).wait().unwrap();
            }
        }
        done.store(true, Ordering::SeqCst);
    });
}
