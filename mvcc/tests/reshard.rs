//! Keyspaces that are split otherwise while they live: what clients see, crashes at every call, and everything at
//! once.
#![expect(clippy::unwrap_used, reason = "tests")]

use bytes::Bytes;
use polybolt::disk::Disk;
use polybolt::disk::sim::{Fault, SimDisk, Survive, is_crash};
use polybolt::run::seeded::Seeded;
use polybolt::run::{Clock, ManualClock};
use polybolt::{
    Compare, CompareOp, CompareTarget, DeleteRequest, Durability, Engine, Error, KeyValue, Keyspace, Op, Options,
    Pending, PutRequest, PutResponse, RangeRequest, Refusal, ReshardProgress, ReshardStage, Result, Routes, Runtime,
    Span, TableEdit, TxnRequest, WatchItem, WatchRequest, Watcher,
};
use std::collections::BTreeMap;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

const LEASE: i64 = 40;
const BATCH: Durability = Durability::Batch { interval: Duration::from_millis(10), limit: 100 };

fn routes(text: &str) -> Routes {
    Routes::parse(text).unwrap()
}

fn key(n: u64) -> String {
    format!("{}{}", ["a", "m", "x", "m/deep"][(n % 4) as usize], n % 7)
}

/// The `n`th write of a history that has puts, deletes and leases; it makes revision `n`.
fn write(ks: &Keyspace, n: u64) -> Pin<Box<dyn Future<Output = Result<i64>> + Send>> {
    if n % 10 == 9 {
        let deleted = ks.delete_range(DeleteRequest { span: Span::prefix("m"), prev_kv: false });
        return Box::pin(async move { deleted.await.map(|answer| answer.revision) });
    }
    let lease = if n.is_multiple_of(4) { LEASE } else { 0 };
    let put = ks.put(PutRequest { lease, ..PutRequest::new(key(n), format!("{n}-value")) });
    Box::pin(async move { put.await.map(|answer| answer.revision) })
}

fn wait<T>(work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    loop {
        if let Poll::Ready(done) = work.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return done;
        }
        std::thread::yield_now();
    }
}

fn table(ks: &Keyspace, value: u64) -> Pending<()> {
    let (table, key, value) = ("t".to_owned(), Bytes::from_static(b"k"), Some(Bytes::from(value.to_string())));
    ks.table_write(vec![TableEdit { table, key, value }])
}

/// All that clients can ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Facts {
    revision: i64,
    compacted: i64,
    history: u128,
    /// What is there at each revision that can be read.
    states: BTreeMap<i64, Vec<KeyValue>>,
    hash: u32,
    leased: Vec<Bytes>,
    table: Vec<(Bytes, Bytes)>,
}

fn facts(ks: &Keyspace) -> Facts {
    let at = |revision| ks.range(&RangeRequest { revision, ..RangeRequest::new(Span::prefix("")) }).unwrap().kvs;
    let first = ks.floors().into_iter().max().unwrap().max(1);
    Facts {
        revision: ks.revision(),
        compacted: ks.compact_revision(),
        history: ks.history_hash(),
        states: (first..=ks.revision()).map(|revision| (revision, at(revision))).collect(),
        hash: ks.hash_kv(0).unwrap().hash,
        leased: ks.lease_time_to_live(LEASE, true).map(|lease| lease.keys).unwrap_or_default(),
        table: ks.table_list("t").unwrap(),
    }
}

fn watch(ks: &Keyspace, start_revision: i64) -> Watcher {
    let span = Span::prefix("");
    ks.watch(WatchRequest { span, start_revision, no_put: false, no_delete: false, prev_kv: true }).unwrap()
}

/// The revisions that a watcher is shown up to `last`, each once.
fn seen(watcher: &mut Watcher, last: i64) -> Vec<i64> {
    let mut revisions = Vec::new();
    while revisions.last().is_none_or(|newest| *newest < last) {
        match watcher.recv().unwrap().unwrap() {
            WatchItem::Events { events, .. } => {
                let mut mains: Vec<i64> = events.iter().map(|event| event.kv().mod_revision).collect();
                mains.dedup();
                revisions.extend(mains);
            }
            WatchItem::Compacted { compact_revision } => panic!("compacted at {compact_revision}"),
        }
    }
    revisions
}

fn trees(dir: &Path) -> usize {
    let names = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
    names.filter(|name| name.to_string_lossy().ends_with(".tree")).count()
}

#[test]
fn a_keyspace_that_is_split_otherwise_answers_as_before() {
    for durability in [BATCH, Durability::Sync] {
        let dir = tempfile::tempdir().unwrap();
        let options = || Options { durability, ..Options::default() };
        let engine = Engine::open(dir.path(), options()).unwrap();
        let ks = engine.create_keyspace("ks", Routes::single()).unwrap();
        ks.lease_grant(LEASE, 1000).wait().unwrap();
        for n in 2..=60 {
            assert_eq!(wait(write(&ks, n)).unwrap(), n as i64);
        }
        table(&ks, 7).wait().unwrap();
        ks.compact(20, true).wait().unwrap();
        let (mut eager, mut idle, mut behind) = (watch(&ks, 0), watch(&ks, 0), watch(&ks, 25));
        wait(write(&ks, 61)).unwrap();
        assert_eq!(seen(&mut eager, 61), [61]);
        let before = facts(&ks);
        let left = ks.lease_time_to_live(LEASE, false).unwrap().remaining_ttl;
        let mut old_reader = ks.range_stream(&RangeRequest::new(Span::prefix(""))).unwrap();

        let split = routes("mid=m,deep=m/deep,low=a");
        let mut stages = Vec::new();
        engine.reshard("ks", split.clone(), |progress| stages.push(progress)).unwrap().wait().unwrap();
        assert_eq!(stages.first().map(|first| first.stage), Some(ReshardStage::Copy));
        let last = stages.last().unwrap();
        assert!(last.stage == ReshardStage::Switch && last.rows > 0 && last.rows <= last.of, "{last:?}");
        assert_eq!((facts(&ks), &*ks.routes()), (before.clone(), &split), "the handle shows the same");
        assert!(ks.lease_time_to_live(LEASE, false).unwrap().remaining_ttl <= left, "nobody renewed it");
        let counted: u64 = ks.status().shards.iter().map(|shard| shard.keys).sum();
        assert_eq!(counted as usize, before.states[&61].len());
        assert!(ks.status().shards.iter().all(|shard| shard.revisions > 0), "each has its rows");
        assert_eq!(old_reader.by_ref().flat_map(|chunk| chunk.unwrap()).count(), before.states[&61].len());
        drop(old_reader);

        // As it is: nothing to do.
        engine.reshard("ks", split.clone(), |_| panic!("nothing is copied")).unwrap().wait().unwrap();
        for n in 62..=70 {
            assert_eq!(wait(write(&ks, n)).unwrap(), n as i64);
        }
        assert_eq!(seen(&mut eager, 70), (62..=70).collect::<Vec<_>>(), "nothing twice");
        assert_eq!(seen(&mut idle, 70), (61..=70).collect::<Vec<_>>());
        assert_eq!(seen(&mut behind, 70), (25..=70).collect::<Vec<_>>());
        let after = facts(&ks);
        drop(ks);
        engine.close().unwrap();
        let engine = Engine::open(dir.path(), options()).unwrap();
        let ks = engine.keyspace("ks").unwrap();
        assert_eq!((facts(&ks), &*ks.routes(), trees(dir.path())), (after.clone(), &split, 5));
        engine.verify(&mut |_| ()).unwrap();

        // And back: what was deleted since stays deleted, and what is compacted goes.
        ks.put(PutRequest::new("m-last", "v")).wait().unwrap();
        ks.delete_range(DeleteRequest { span: Span::prefix("m"), prev_kv: false }).wait().unwrap();
        engine.reshard("ks", Routes::single(), |_| ()).unwrap().wait().unwrap();
        assert_eq!(ks.range(&RangeRequest::new(Span::prefix("m"))).unwrap().count, 0);
        ks.compact(72, true).wait().unwrap();
        let merged = facts(&ks);
        let rows: u64 = ks.status().shards.iter().map(|shard| shard.revisions).sum();
        let deleted_last = 1;
        assert_eq!(rows as usize, merged.states[&72].len() + deleted_last, "the sweep took the rest out");
        drop(ks);
        engine.close().unwrap();
        let engine = Engine::open(dir.path(), options()).unwrap();
        assert_eq!((facts(&engine.keyspace("ks").unwrap()), trees(dir.path())), (merged, 2));
        engine.verify(&mut |_| ()).unwrap();
    }
}

/// Retention by shard: a key is never answered below a floor that it had.
#[test]
fn floors_go_with_the_keys_that_had_them() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(dir.path(), Options::default()).unwrap();
    let ks = engine.create_keyspace("ks", routes("mid=m,low=a")).unwrap();
    for n in 2..=40 {
        ks.put(PutRequest::new(key(n), "v")).wait().unwrap();
    }
    ks.compact_shard("mid", 30).wait().unwrap();
    let read = |key: &'static str, revision| {
        ks.range(&RangeRequest { revision, ..RangeRequest::new(Span::key(key)) }).map(|answer| answer.count)
    };
    engine.reshard("ks", routes("deep=m/deep,low=a,mid=m"), |_| ()).unwrap().wait().unwrap();
    assert_eq!(ks.floors(), [30, -1, 30, -1].map(|floor: i64| floor.max(ks.floors()[1])));
    for key in ["m1", "m/deep3"] {
        assert!(matches!(read(key, 29), Err(Error::Refused(Refusal::Compacted { revision: 30 }))), "{key}");
    }
    assert!(read("a4", 29).is_ok() && read("m1", 30).is_ok());
    engine.reshard("ks", Routes::single(), |_| ()).unwrap().wait().unwrap();
    assert!(matches!(read("a4", 29), Err(Error::Refused(Refusal::Compacted { revision: 30 }))));
}

#[test]
fn what_cannot_be_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { face: polybolt::Face::Replayed, ..Options::default() };
    let engine = Engine::open(dir.path(), options).unwrap();
    engine.create_keyspace("ks", Routes::single()).unwrap();
    let refused =
        |name: &str, to: Routes| engine.reshard(name, to, |_| ()).and_then(|reshard| reshard.wait()).unwrap_err();
    assert!(matches!(refused("none", Routes::kubernetes()), Error::Refused(Refusal::KeyspaceNotFound { .. })));
    let error = refused("ks", routes("e:volatile=e"));
    assert!(error.to_string().contains("volatile"), "{error}");
    assert_eq!(*engine.keyspace("ks").unwrap().routes(), Routes::single());
}

/// Everything at a revision, in pages.
fn paged(ks: &Keyspace, revision: i64) -> Vec<KeyValue> {
    let (mut start, mut found) = (Bytes::from_static(b"\0"), Vec::new());
    loop {
        let span = Span::range(start, Bytes::from_static(b"\xff"));
        let page = ks.range(&RangeRequest { revision, limit: 100, ..RangeRequest::new(span) }).unwrap();
        found.extend(page.kvs);
        if !page.more {
            return found;
        }
        let mut next = found.last().unwrap().key.to_vec();
        next.push(0);
        start = next.into();
    }
}

/// Readers, pagers at old revisions, writers, txns, watchers and compactions while a prefix is split out and merged back
/// again and again: no request fails, and nothing is lost, torn or shown twice.
#[test]
fn everybody_goes_on_while_a_prefix_moves_to_and_fro() {
    const MOVES: u64 = 8;
    let dir = tempfile::tempdir().unwrap();
    // A short line and small buffers, so that writers meet the copy.
    let options = || Options { buffer_bytes: 2 << 20, ..Options::default() };
    let engine = Engine::open(dir.path(), options()).unwrap();
    let ks = engine.create_keyspace("ks", Routes::single()).unwrap();
    let names: Vec<String> = (0..1500).map(|n| format!("{}{n:04}", ["a/", "m/", "x/"][n % 3])).collect();
    for names in names.chunks(100) {
        let puts = names.iter().map(|name| Op::Put(PutRequest::new(name.clone(), "0"))).collect();
        ks.txn(TxnRequest { compare: Vec::new(), success: puts, failure: Vec::new() }).wait().unwrap();
    }
    let first = ks.revision();
    let at_first = ks.range(&RangeRequest::new(Span::prefix(""))).unwrap().kvs;
    let (done, all_written, wrote) = (AtomicBool::new(false), AtomicBool::new(false), AtomicU64::new(0));
    let mut watcher = watch(&ks, first + 1);
    std::thread::scope(|scope| {
        let writers = [0, 1].map(|writer| {
            let (ks, names, done, wrote) = (&ks, &names, &done, &wrote);
            scope.spawn(move || {
                // Each writer counts in keys of its own, of all three prefixes at once.
                for round in 1u64.. {
                    if done.load(Ordering::SeqCst) {
                        break;
                    }
                    let mine: Vec<&String> =
                        (0..3).map(|at| &names[(round as usize * 6 + writer * 3 + at) % 1500]).collect();
                    let ops = mine.iter().map(|name| Op::Put(PutRequest::new((*name).clone(), round.to_string())));
                    let compare = vec![Compare {
                        span: Span::key(mine[0].clone()),
                        op: CompareOp::Greater,
                        target: CompareTarget::Version(0),
                    }];
                    let txn = TxnRequest { compare, success: ops.collect(), failure: Vec::new() };
                    let answer = ks.txn(txn).wait().unwrap();
                    assert!(answer.succeeded);
                    wrote.fetch_add(1, Ordering::SeqCst);
                    for kv in ks.range(&RangeRequest::new(Span::key(mine[2].clone()))).unwrap().kvs {
                        assert!(kv.mod_revision >= answer.revision, "a write that was answered is gone");
                    }
                }
            })
        });
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                assert!(paged(&ks, first) == at_first, "the state at {first} changed");
            }
        });
        let watching = scope.spawn(|| {
            let mut keys: BTreeMap<Bytes, i64> = BTreeMap::new();
            let mut last = first;
            let mut revisions = 0u64;
            loop {
                match watcher.try_recv().unwrap() {
                    Poll::Ready(Some(WatchItem::Events { events, .. })) => {
                        for event in &events {
                            let main = event.kv().mod_revision;
                            assert!(main == last || main == last + 1, "{main} after {last}");
                            revisions += u64::from(main > last);
                            last = main;
                            keys.insert(event.kv().key.clone(), main);
                        }
                    }
                    Poll::Ready(other) => panic!("{other:?}"),
                    Poll::Pending if all_written.load(Ordering::SeqCst) && last == ks.revision() => {
                        return (revisions, keys);
                    }
                    Poll::Pending => std::thread::yield_now(),
                }
            }
        });
        for n in 0..MOVES {
            let to = if n % 2 == 0 { routes("mid=m/,low=a/") } else { Routes::single() };
            engine.reshard("ks", to.clone(), |_| ()).unwrap().wait().unwrap();
            assert_eq!(*ks.routes(), to);
            let before = wrote.load(Ordering::SeqCst);
            while wrote.load(Ordering::SeqCst) < before + 20 {
                std::thread::yield_now();
            }
        }
        done.store(true, Ordering::SeqCst);
        for writer in writers {
            writer.join().unwrap();
        }
        all_written.store(true, Ordering::SeqCst);
        let (revisions, keys) = watching.join().unwrap();
        assert_eq!(revisions, wrote.load(Ordering::SeqCst), "each txn was shown once");
        for kv in ks.range(&RangeRequest::new(Span::prefix(""))).unwrap().kvs {
            assert_eq!(keys.get(&kv.key).copied().unwrap_or(kv.mod_revision), kv.mod_revision);
        }
    });
    engine.verify(&mut |_| ()).unwrap();
    let hash = ks.hash_kv(0).unwrap();
    drop(ks);
    engine.close().unwrap();
    let engine = Engine::open(dir.path(), options()).unwrap();
    assert_eq!(engine.keyspace("ks").unwrap().hash_kv(0).unwrap(), hash);
    engine.verify(&mut |_| ()).unwrap();
}

struct Driven {
    engine: Engine,
    jobs: Seeded,
}

fn open_sim(disk: &SimDisk, durability: Durability, seed: u64) -> Result<Driven> {
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    let clock = ManualClock::default();
    let options = Options {
        durability,
        buffer_bytes: 20_000,
        segment_bytes: 8192,
        journal_bytes: 48 << 10,
        checkpoint_interval: Duration::from_millis(40),
        space_reserve_bytes: 8192,
        reserve_ahead: 4,
        admission_timeout: Duration::from_secs(3600),
        ..Options::default()
    };
    let runtime = Runtime { disk, clock: Arc::new(clock.clone()), threads: false };
    let engine = Engine::open_with("/data/store", options, runtime)?;
    let jobs = Seeded::new(engine.take_jobs(), clock, seed);
    Ok(Driven { engine, jobs })
}

impl Driven {
    /// Steps jobs until the answer is there.
    fn outcome<T>(&mut self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let mut work = std::pin::pin!(work);
        for _ in 0..100_000 {
            match work.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(outcome) => return outcome,
                Poll::Pending if self.jobs.step_one() => {}
                Poll::Pending => self.jobs.advance(Duration::from_millis(5)),
            }
        }
        panic!("no answer came");
    }

    /// The same; None once the disk has stopped.
    fn finish<T>(&mut self, work: impl Future<Output = Result<T>>) -> Option<T> {
        match self.outcome(work) {
            Ok(done) => Some(done),
            Err(Error::Storage(error) | Error::Unknown(error)) => {
                assert!(is_crash(&error), "{error}");
                None
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// Beside a server that nobody is to notice it takes the time that it is given; writes go on meanwhile.
#[test]
fn a_change_of_routes_keeps_its_pace() {
    const ROWS: u64 = 400;
    let disk = SimDisk::new(5);
    disk.create_dir("/data".as_ref()).unwrap();
    let clock = ManualClock::default();
    let options = Options { reshard_bytes_per_second: 100_000, ..Options::default() };
    let runtime = Runtime { disk: Arc::new(disk), clock: Arc::new(clock.clone()), threads: false };
    let engine = Engine::open_with("/data/store", options, runtime).unwrap();
    let jobs = Seeded::new(engine.take_jobs(), clock.clone(), 5);
    let mut driven = Driven { engine: engine.clone(), jobs };
    let ks = engine.create_keyspace("ks", Routes::single()).unwrap();
    for n in 0..ROWS {
        driven.finish(ks.put(PutRequest::new(format!("a{n}"), vec![7; 1000]))).unwrap();
    }
    let begun = clock.monotonic();
    {
        let mut dropped = Box::pin(engine.reshard("ks", routes("low=a"), |_| ()).unwrap());
        assert!(dropped.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    }
    let mut work = std::pin::pin!(engine.reshard("ks", routes("low=a"), |_| ()).unwrap());
    let (mut under_way, mut answered) = (Vec::<Pending<PutResponse>>::new(), 0);
    loop {
        match work.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(done) => break done.unwrap(),
            Poll::Pending if driven.jobs.step_one() => continue,
            Poll::Pending => driven.jobs.advance(Duration::from_millis(50)),
        }
        let before = under_way.len();
        under_way.retain_mut(|put| Pin::new(put).poll(&mut Context::from_waker(Waker::noop())).is_pending());
        answered += before - under_way.len();
        under_way.push(ks.put(PutRequest::new("b", answered.to_string())));
        assert!(answered < 1000, "it ends");
    }
    // 400 kB and more at 100 kB a second, but for what it may make up for, and for the last batch.
    let took = clock.monotonic() - begun;
    assert!(took > Duration::from_secs(3) && took < Duration::from_secs(9), "{took:?}");
    assert!(answered > 30, "{answered}");
    under_way.into_iter().for_each(|put| drop(driven.finish(put).unwrap()));
    assert_eq!(ks.range(&RangeRequest::new(Span::prefix(""))).unwrap().count, ROWS as i64 + 1);
    assert_eq!(ks.routes().shards().len(), 2);
}

/// Whoever waits for a change of routes that takes its time does not keep an engine from closing.
#[test]
fn a_slow_change_of_routes_ends_with_its_engine() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { reshard_bytes_per_second: 50_000, ..Options::default() };
    let engine = Engine::open(dir.path(), options).unwrap();
    let ks = engine.create_keyspace("ks", Routes::single()).unwrap();
    for n in 0..500 {
        drop(ks.put(PutRequest::new(format!("a{n}"), vec![7; 1000])));
    }
    ks.put(PutRequest::new("a", "v")).wait().unwrap();
    let (copied, seen) = std::sync::mpsc::channel();
    let changing = {
        let engine = engine.clone();
        let told = move |progress: ReshardProgress| _ = copied.send(progress.rows);
        std::thread::spawn(move || engine.reshard("ks", routes("low=a"), told).unwrap().wait())
    };
    while seen.recv().unwrap() == 0 {}
    engine.close().unwrap();
    assert!(changing.join().unwrap().is_err());
    let engine = Engine::open(dir.path(), Options::default()).unwrap();
    let ks = engine.keyspace("ks").unwrap();
    assert_eq!(ks.range(&RangeRequest::new(Span::prefix(""))).unwrap().count, 501);
    assert_eq!(ks.routes().shards().len(), 1);
}

/// A disk that is full for one call, whichever that is: of Volatile shards, too, nothing is missing then, whether the
/// routes changed or not.
#[test]
fn a_full_disk_at_any_call_loses_nothing() {
    let (mut changed, mut failed, mut stopped) = (0, 0, 0);
    for call in 1.. {
        let disk = SimDisk::new(7);
        disk.create_dir("/data".as_ref()).unwrap();
        let mut driven = open_sim(&disk, Durability::Sync, 7).unwrap();
        let ks = driven.engine.create_keyspace("ks", routes("temp:volatile=t,low=a")).unwrap();
        for key in ["a1", "t1", "t2", "x1"] {
            driven.finish(ks.put(PutRequest::new(key, "v"))).unwrap();
        }
        let state = |ks: &Keyspace| ks.range(&RangeRequest::new(Span::prefix(""))).unwrap().kvs;
        let before = state(&ks);
        let begun = disk.calls();
        disk.fail_at(begun + call, 1, Fault::Enospc);
        let to = routes("temp:volatile=t");
        let engine = driven.engine.clone();
        match driven.outcome(engine.reshard("ks", to, |_| ()).unwrap()) {
            Ok(()) => changed += 1,
            Err(Error::Refused(Refusal::DiskFull)) => failed += 1,
            Err(Error::Storage(error)) => {
                // A sync that fails stops all writes, whatever its reason; reads go on.
                assert!(error.to_string().contains("space"), "{error}");
                stopped += u64::from(error.to_string().contains("reopen"));
                failed += 1;
            }
            Err(error) => panic!("{error}"),
        }
        assert_eq!(state(&ks), before, "call {call}");
        driven.jobs.run_until_idle(3000);
        if let Err(error) = driven.outcome(ks.put(PutRequest::new("t3", "v"))) {
            assert!(error.to_string().contains("reopen"), "call {call}: {error}");
            continue;
        }
        let before = state(&ks);
        drop((ks, engine));
        if begun + call > disk.calls() {
            break;
        }
        driven.engine.close().unwrap();
        let driven = open_sim(&disk, Durability::Sync, 4).unwrap();
        assert_eq!(state(&driven.engine.keyspace("ks").unwrap()), before, "call {call}, after a clean close");
    }
    println!("{changed} changed, {failed} failed, {stopped} of them stopped writes");
    assert!(changed > 10 && failed > stopped + 3 && stopped > 0);
}

/// A disk that has no room for a copy, and gets none.
#[test]
fn a_change_of_routes_on_a_full_disk_is_given_up() {
    let disk = SimDisk::new(7);
    disk.create_dir("/data".as_ref()).unwrap();
    let mut driven = open_sim(&disk, Durability::Sync, 7).unwrap();
    let ks = driven.engine.create_keyspace("ks", routes("low=a")).unwrap();
    for n in 0..60 {
        driven.finish(ks.put(PutRequest::new(format!("a{n}"), vec![n as u8; 2000]))).unwrap();
    }
    driven.jobs.run_until_idle(3000);
    let used: u64 = disk.files().iter().map(|(_, len)| len).sum();
    for more in [0, 30_000, 60_000, 90_000, 120_000] {
        disk.set_capacity(Some(used + more));
        let engine = driven.engine.clone();
        let error = driven.outcome(engine.reshard("ks", Routes::single(), |_| ()).unwrap()).unwrap_err();
        assert!(matches!(error, Error::Refused(Refusal::DiskFull) | Error::Storage(_)), "{error}");
        assert_eq!(*ks.routes(), routes("low=a"));
        // What the copy took is given back, which is enough to go on.
        driven.jobs.run_until_idle(3000);
        let key = format!("a{}", more % 60);
        let mut tries = 0;
        while driven.outcome(ks.put(PutRequest::new(key.clone(), "v"))).is_err() {
            tries += 1;
            assert!(tries < 100 || more < 30_000, "with {more} bytes of room");
            if more < 30_000 {
                break;
            }
            driven.jobs.advance(Duration::from_millis(100));
            driven.jobs.run_until_idle(3000);
        }
    }
    disk.set_capacity(None);
    driven.jobs.advance(Duration::from_secs(1));
    driven.jobs.run_until_idle(3000);
    let engine = driven.engine.clone();
    driven.finish(engine.reshard("ks", Routes::single(), |_| ()).unwrap()).unwrap();
    assert_eq!(ks.range(&RangeRequest::new(Span::prefix("a"))).unwrap().count, 60);
}

/// How far one run came.
#[derive(Debug, Default, Clone, Copy)]
struct Reached {
    /// Writes that were acknowledged.
    wrote: i64,
    split: bool,
    merged: bool,
}

const SPLIT: &str = "mid=m,low=a";

/// Splits, with a write for every few steps, and merges.
fn run_to(crash: u64, durability: Durability) -> (SimDisk, Reached) {
    let disk = SimDisk::new(7);
    disk.create_dir("/data".as_ref()).unwrap();
    disk.crash_at(crash);
    let mut reached = Reached::default();
    let mut run = || -> Option<()> {
        let mut driven = open_sim(&disk, durability, 7).ok()?;
        let ks = driven.engine.create_keyspace("ks", Routes::single()).ok()?;
        driven.finish(ks.lease_grant(LEASE, 1000))?;
        for n in 2..=24 {
            reached.wrote = driven.finish(write(&ks, n))?;
        }
        driven.finish(ks.compact(10, true))?;
        let engine = driven.engine.clone();
        for (to, first) in [(routes(SPLIT), 25), (Routes::single(), 35)] {
            let mut moving = engine.reshard("ks", to, |_| ()).unwrap();
            let (mut next, mut writing, mut moved) = (first, None, false);
            // Writes beside it, one at a time.
            for step in 0.. {
                assert!(step < 100_000, "no answer came");
                if !moved {
                    match Pin::new(&mut moving).poll(&mut Context::from_waker(Waker::noop())) {
                        Poll::Ready(Ok(())) => moved = true,
                        Poll::Ready(Err(Error::Storage(error) | Error::Unknown(error))) => {
                            assert!(is_crash(&error), "{error}");
                            return None;
                        }
                        Poll::Ready(Err(error)) => panic!("{error}"),
                        Poll::Pending => {}
                    }
                }
                if writing.is_none() && next < first + 10 && (moved || step % 3 == 0) {
                    writing = Some(write(&ks, next));
                    next += 1;
                }
                if let Some(work) = &mut writing
                    && let Poll::Ready(done) = work.as_mut().poll(&mut Context::from_waker(Waker::noop()))
                {
                    reached.wrote = done.ok()?;
                    writing = None;
                }
                if moved && writing.is_none() && next == first + 10 {
                    break;
                }
                if !driven.jobs.step_one() {
                    driven.jobs.advance(Duration::from_millis(5));
                }
            }
            reached.merged = reached.split;
            reached.split = true;
        }
        driven.jobs.run_until_idle(3000);
        Some(())
    };
    run();
    (disk, reached)
}

/// The states of the same history without any change of routes.
fn truth() -> BTreeMap<i64, Vec<KeyValue>> {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(dir.path(), Options { durability: BATCH, ..Options::default() }).unwrap();
    let ks = engine.create_keyspace("ks", routes("other=x")).unwrap();
    ks.lease_grant(LEASE, 1000).wait().unwrap();
    for n in 2..=44 {
        wait(write(&ks, n)).unwrap();
    }
    facts(&ks).states
}

/// The history up to some point, whole, split in one way or the other; and it goes on from there.
fn check_whole(
    disk: &SimDisk,
    durability: Durability,
    reached: Reached,
    truth: &BTreeMap<i64, Vec<KeyValue>>,
    seen: &mut [u64; 2],
) {
    let mut driven = open_sim(disk, durability, 3).unwrap_or_else(|error| panic!("it has to open: {error}"));
    let Ok(ks) = driven.engine.keyspace("ks") else {
        assert_eq!(reached.wrote, 0);
        return;
    };
    driven.engine.verify(&mut |_| ()).unwrap();
    assert_eq!(driven.engine.keyspaces(), ["ks"]);
    let is_split = *ks.routes() == routes(SPLIT);
    assert!(is_split || *ks.routes() == Routes::single(), "routes that nobody asked for");
    assert!(
        is_split || !reached.split || reached.merged || reached.wrote >= 34,
        "a split that was acknowledged is gone"
    );
    assert!(!is_split || !reached.merged, "a merge that was acknowledged is gone");
    seen[usize::from(is_split)] += 1;
    let now = ks.range(&RangeRequest::new(Span::prefix(""))).unwrap().kvs;
    // `Batch` may lose the end, and revisions jump then.
    let same = truth.iter().rev().find(|(_, state)| **state == now);
    let (at, _) = same.unwrap_or_else(|| panic!("a state that never was: {now:?}"));
    if durability == Durability::Sync {
        assert!(*at >= reached.wrote || truth.get(&reached.wrote) == Some(&now), "{at} after {}", reached.wrote);
        for (revision, state) in facts(&ks).states {
            assert_eq!(truth.get(&revision), Some(&state), "at {revision}");
        }
    }
    let next = driven.finish(ks.put(PutRequest::new("m-next", "v"))).unwrap().revision;
    assert!(next > reached.wrote, "a revision is used twice");
    // Routes can change again.
    let to = if is_split { Routes::single() } else { routes(SPLIT) };
    let engine = driven.engine.clone();
    driven.finish(engine.reshard("ks", to.clone(), |_| ()).unwrap()).unwrap();
    driven.jobs.run_until_idle(3000);
    let after = facts(&ks);
    drop((ks, engine));
    driven.engine.close().unwrap();
    let driven = open_sim(disk, durability, 4).unwrap();
    let ks = driven.engine.keyspace("ks").unwrap();
    assert_eq!((facts(&ks), &*ks.routes()), (after, &to));
    let left = disk.list("/data/store".as_ref()).unwrap();
    let files = left.iter().filter(|name| name.ends_with(".tree")).count();
    assert_eq!(files, to.shards().len() + 1, "files are left over: {left:?}");
}

#[test]
fn a_change_of_routes_survives_a_crash_at_every_call() {
    let truth = truth();
    for durability in [Durability::Sync, BATCH] {
        let mut seen = [0; 2];
        let mut recovery_crashes = 0;
        let (whole, reached) = run_to(u64::MAX, durability);
        assert!(reached.merged && reached.wrote == 44, "{reached:?}");
        for call in 1..=whole.calls() {
            let (disk, reached) = run_to(call, durability);
            assert!(disk.crashed());
            eprintln!("{durability:?}, call {call} ({}), {reached:?}", disk.last_call());
            for survive in [Survive::Nothing, Survive::All, Survive::Mix(call)] {
                check_whole(&disk.after_crash(survive), durability, reached, &truth, &mut seen);
            }
            let first = disk.after_crash(Survive::Mix(call));
            first.crash_at(1 + call % 29);
            if open_sim(&first, durability, 3).is_err() {
                recovery_crashes += 1;
                check_whole(&first.after_crash(Survive::Nothing), durability, reached, &truth, &mut seen);
            }
        }
        println!("{durability:?}: single, split: {seen:?}; {recovery_crashes} crashes while recovering");
        assert!(seen.iter().all(|count| *count > 20) && recovery_crashes > 0, "{seen:?}");
    }
}
