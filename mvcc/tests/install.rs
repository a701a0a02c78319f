//! Snapshots installed into live keyspaces: what is there after it, what watchers see, crashes at every
//! call, and everything at once.
//!
//! A log of entries says what replicas do. The snapshot is of one that is ahead; the one that it is
//! installed into has applied a part of the same log.
#![expect(clippy::unwrap_used, reason = "tests")]

use bytes::Bytes;
use polybolt::disk::Disk;
use polybolt::disk::sim::{SimDisk, Survive, is_crash};
use polybolt::run::ManualClock;
use polybolt::run::seeded::Seeded;
use polybolt::{
    Command, DeleteRequest, Durability, Engine, Entry, Error, Face, Keyspace, Older, Op, Options, PutRequest,
    RangeRequest, Refusal, Result, Routes, Runtime, Span, TableEdit, WatchItem, WatchRequest, Watcher,
};
use std::collections::BTreeMap;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

const LEASE: i64 = 40;

/// The entry of a log position; from 2 on it makes revision `index`.
fn entry(index: u64) -> Entry {
    let key = |n: u64| format!("{}{}", ["a", "m", "x"][(n % 3) as usize], n % 7);
    let command = match index {
        1 => Command::LeaseGrant { id: LEASE, ttl: 1000 },
        _ if index % 10 == 9 => Command::Op(Op::Delete(DeleteRequest { span: Span::prefix("m"), prev_kv: false })),
        _ => {
            let lease = if index.is_multiple_of(4) { LEASE } else { 0 };
            Command::Op(Op::Put(PutRequest { lease, ..PutRequest::new(key(index), format!("{index}-value")) }))
        }
    };
    // Something to delete is there whenever it is due: revisions follow the log.
    Entry { index, command }
}

fn log(range: std::ops::RangeInclusive<u64>) -> Vec<Entry> {
    range.map(entry).collect()
}

fn options(durability: Durability) -> Options {
    Options { face: Face::Replayed, durability, ..Options::default() }
}

const BATCH: Durability = Durability::Batch { interval: Duration::from_millis(10), limit: 100 };

fn table(upto: u64) -> Vec<TableEdit> {
    let (table, key, value) = ("t".to_owned(), Bytes::from_static(b"k"), Some(Bytes::from(upto.to_string())));
    vec![TableEdit { table, key, value }]
}

struct Opened {
    dir: tempfile::TempDir,
    engine: Engine,
    ks: Keyspace,
}

fn opened(options: Options, upto: u64) -> Opened {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(dir.path(), options).unwrap();
    let ks = engine.create_keyspace("ks", Routes::parse("low=a,mid=m").unwrap()).unwrap();
    assert!(ks.apply(log(1..=upto)).wait().unwrap().iter().all(Result::is_ok));
    ks.table_write(table(upto)).wait().unwrap();
    Opened { dir, engine, ks }
}

fn stream(ks: &Keyspace) -> Vec<u8> {
    ks.snapshot().unwrap().map(|frame| frame.unwrap()).collect::<Vec<_>>().concat()
}

/// A snapshot of a replica that has applied the log up to `upto`, and compacted; and its twin's state.
fn snapshot_at(upto: u64, compacted: i64) -> (Vec<u8>, Facts) {
    let source = opened(options(BATCH), upto);
    if compacted > 0 {
        // At an index of its own that the log of the others has, too.
        source.ks.compact(compacted, true).wait().unwrap();
    }
    (stream(&source.ks), facts(&source.ks))
}

/// Everything that two equal keyspaces have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Facts {
    revision: i64,
    compacted: i64,
    applied: u64,
    history: u128,
    now: Vec<polybolt::KeyValue>,
    hash: u32,
    leased: Vec<Bytes>,
    table: Vec<(Bytes, Bytes)>,
}

fn facts(ks: &Keyspace) -> Facts {
    Facts {
        revision: ks.revision(),
        compacted: ks.compact_revision(),
        applied: ks.applied_index(),
        history: ks.history_hash(),
        now: ks.range(&RangeRequest::new(Span::prefix(""))).unwrap().kvs,
        hash: ks.hash_kv(0).unwrap().hash,
        leased: ks.lease_time_to_live(LEASE, true).map(|lease| lease.keys).unwrap_or_default(),
        table: ks.table_list("t").unwrap(),
    }
}

fn refusal<T: std::fmt::Debug>(result: Result<T>) -> Refusal {
    match result.unwrap_err() {
        Error::Refused(refusal) => refusal,
        other => panic!("{other}"),
    }
}

fn tree_files(dir: &Path) -> usize {
    let names = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
    names.filter(|name| name.to_string_lossy().ends_with(".tree")).count()
}

#[test]
fn an_installed_snapshot_replaces_everything_cmp_9() {
    let (snapshot, wanted) = snapshot_at(80, 60);
    for durability in [BATCH, Durability::Sync] {
        let Opened { dir, engine, ks } = opened(options(durability), 30);
        ks.lease_time_to_live(LEASE, false).unwrap();
        let files = tree_files(dir.path());
        let mut old_reader = ks.range_stream(&RangeRequest::new(Span::prefix(""))).unwrap();
        let before = facts(&ks);
        // A stream that was cut or changed leaves what was there.
        for len in [0, 9, 200, snapshot.len() / 2, snapshot.len() - 1] {
            assert!(engine.install("ks", &snapshot[..len], Older::Refuse).unwrap().wait().is_err(), "cut at {len}");
        }
        assert_eq!(facts(&ks), before);
        assert_eq!(engine.install("ks", &snapshot[..], Older::Refuse).unwrap().wait().unwrap(), 80);
        assert_eq!(facts(&ks), wanted, "the handle shows the new state");
        assert_eq!(facts(&engine.keyspace("ks").unwrap()), wanted);
        assert!(
            refusal(ks.range(&RangeRequest { revision: 59, ..RangeRequest::new(Span::key("a")) }))
                == Refusal::Compacted { revision: 60 }
        );
        assert_eq!(ks.log_floor(), 80, "no restart falls back to before it");
        // Who has begun to read the old state ends with it.
        assert!(old_reader.by_ref().all(|chunk| chunk.unwrap().iter().all(|kv| kv.mod_revision <= 30)));
        drop(old_reader);
        // The log goes on where the snapshot ends.
        let again = ks.apply(log(75..=85)).wait().unwrap();
        assert_eq!(again.iter().filter(|answer| answer.is_ok()).count(), 5);
        assert_eq!((ks.revision(), ks.applied_index()), (85, 85));
        let after = facts(&ks);
        // The old files go when nobody reads them: at the latest when it is opened again.
        drop(ks);
        engine.close().unwrap();
        let engine = Engine::open(dir.path(), options(durability)).unwrap();
        assert_eq!(facts(&engine.keyspace("ks").unwrap()), after);
        assert_eq!(engine.keyspaces(), ["ks"]);
        assert_eq!(tree_files(dir.path()), files);
        engine.verify(&mut |_| ()).unwrap();
        // And again: generations follow each other, and nothing of any is left after a drop.
        engine.install("ks", &snapshot_at(90, 0).0[..], Older::Refuse).unwrap().wait().unwrap();
        engine.install("ks", &snapshot_at(95, 0).0[..], Older::Refuse).unwrap().wait().unwrap();
        assert_eq!(engine.keyspace("ks").unwrap().revision(), 95);
        engine.drop_keyspace("ks").unwrap();
        assert_eq!(tree_files(dir.path()), 0);
        engine.close().unwrap();
        let engine = Engine::open(dir.path(), options(durability)).unwrap();
        assert!(engine.keyspaces().is_empty());
        assert!(refusal(engine.create_keyspace("ks+2", Routes::single())).to_string().contains('+'));
    }
}

#[test]
fn an_older_snapshot_is_refused_unless_asked_for() {
    let (snapshot, wanted) = snapshot_at(40, 0);
    let Opened { engine, ks, dir: _dir } = opened(options(BATCH), 50);
    let before = facts(&ks);
    let install = |older| engine.install("ks", &snapshot[..], older).unwrap().wait();
    assert_eq!(refusal(install(Older::Refuse)), Refusal::OlderSnapshot { snapshot: 40, current: 50 });
    assert_eq!(facts(&ks), before);
    let mut watcher = watch(&ks, 0);
    assert_eq!(install(Older::Install).unwrap(), 40);
    assert_eq!(facts(&ks), wanted);
    // A watcher has seen everything up to 50: it waits for 51.
    ks.apply(log(41..=55)).wait().unwrap();
    assert_eq!(seen(&mut watcher, 55), (51..=55).collect::<Vec<_>>());
    // The same one again is no older one.
    let (same, _) = snapshot_at(55, 0);
    assert_eq!(engine.install("ks", &same[..], Older::Refuse).unwrap().wait().unwrap(), 55);
    assert!(matches!(
        refusal(engine.install("none", &same[..], Older::Refuse).map(drop)),
        Refusal::KeyspaceNotFound { .. }
    ));
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

/// WCH-31: watchers of before the install, by what they had asked for and what they had taken.
#[test]
fn watchers_survive_an_install_wch_31() {
    let (snapshot, _) = snapshot_at(80, 0);
    let Opened { engine, ks, dir: _dir } = opened(options(BATCH), 30);
    // From now on, one that takes nothing before, one that takes all, and one that was behind.
    let (mut idle, mut eager, mut lazy) = (watch(&ks, 0), watch(&ks, 0), watch(&ks, 5));
    let (mut past, mut current, mut next) = (watch(&ks, 3), watch(&ks, 30), watch(&ks, 31));
    let (mut future, mut far) = (watch(&ks, 60), watch(&ks, 85));
    ks.apply(log(31..=40)).wait().unwrap();
    assert_eq!(seen(&mut eager, 40), (31..=40).collect::<Vec<_>>());
    assert_eq!(seen(&mut past, 40).first(), Some(&3));
    engine.install("ks", &snapshot[..], Older::Refuse).unwrap().wait().unwrap();
    let mut late = watch(&ks, 70);
    let mut after = watch(&ks, 0);
    assert_eq!(after.created_revision(), 80);
    ks.apply(log(81..=90)).wait().unwrap();
    let from = |first: i64| (first..=90).collect::<Vec<_>>();
    assert_eq!(seen(&mut idle, 90), from(31));
    assert_eq!(seen(&mut eager, 90), from(41), "nothing twice");
    assert_eq!(seen(&mut lazy, 90), from(5));
    assert_eq!(seen(&mut past, 90), from(41));
    assert_eq!(seen(&mut current, 90), from(30));
    assert_eq!(seen(&mut next, 90), from(31));
    assert_eq!(seen(&mut future, 90), from(60), "a future start that is past now");
    assert_eq!(seen(&mut far, 90), from(85), "and one that still was future");
    assert_eq!(seen(&mut late, 90), from(70));
    assert_eq!(seen(&mut after, 90), from(81));
    for mut watcher in [idle, eager, lazy, past, current, next, future, far, late, after] {
        assert!(matches!(watcher.try_recv().unwrap(), Poll::Pending));
        assert_eq!(watcher.progress(), Some(90));
    }
}

/// WCH-31: where the new state has forgotten what a watcher needs next.
#[test]
fn watchers_below_an_installed_compaction_end_once_wch_31() {
    let (snapshot, _) = snapshot_at(80, 60);
    let Opened { engine, ks, dir: _dir } = opened(options(BATCH), 30);
    let span = Span::key("zzz");
    let quiet = WatchRequest { span, start_revision: 0, no_put: false, no_delete: false, prev_kv: false };
    let mut quiet = ks.watch(quiet).unwrap();
    let (mut behind, mut at, mut queued) = (watch(&ks, 0), watch(&ks, 60), watch(&ks, 0));
    ks.apply(log(31..=40)).wait().unwrap();
    engine.install("ks", &snapshot[..], Older::Refuse).unwrap().wait().unwrap();
    // What was fed before is handed out first.
    assert_eq!(seen(&mut queued, 40), (31..=40).collect::<Vec<_>>());
    for watcher in [&mut queued, &mut quiet] {
        assert_eq!(watcher.recv().unwrap(), Some(WatchItem::Compacted { compact_revision: 60 }));
        assert_eq!(watcher.recv().unwrap(), None, "once");
    }
    seen(&mut behind, 40);
    assert_eq!(behind.recv().unwrap(), Some(WatchItem::Compacted { compact_revision: 60 }));
    assert!(seen(&mut at, 80).iter().all(|revision| *revision >= 60));
    let mut gone = watch(&ks, 59);
    assert_eq!(gone.recv().unwrap(), Some(WatchItem::Compacted { compact_revision: 60 }));
}

/// Requests of all kinds while one snapshot after the other comes in: each is answered out of one state.
#[test]
fn readers_and_writers_go_on_while_snapshots_are_installed() {
    const LAST: u64 = 240;
    let Opened { engine, ks, dir } = opened(Options { buffer_bytes: 4 << 20, ..options(BATCH) }, 20);
    // What the log makes of every key, by revision.
    let truth = opened(options(BATCH), LAST);
    let at = |revision| truth.ks.range(&RangeRequest { revision, ..RangeRequest::new(Span::prefix("")) }).unwrap().kvs;
    let truth: BTreeMap<i64, Vec<polybolt::KeyValue>> = (20..=LAST as i64).map(|main| (main, at(main))).collect();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut newest = 20;
                while !done.load(Ordering::SeqCst) {
                    let all = ks.range(&RangeRequest::new(Span::prefix(""))).unwrap();
                    assert!(all.revision >= newest, "never back: {} after {newest}", all.revision);
                    assert_eq!(all.kvs, truth[&all.revision], "at {}", all.revision);
                    newest = all.revision;
                    let mut stream = ks.range_stream(&RangeRequest::new(Span::prefix(""))).unwrap();
                    let kvs: Vec<_> = stream.by_ref().flat_map(|chunk| chunk.unwrap()).collect();
                    assert_eq!(kvs, truth[&stream.revision()]);
                    assert!(ks.table_get("t", b"k").unwrap().is_some());
                }
            });
        }
        for start in [0, 21, 100] {
            let ks = &ks;
            scope.spawn(move || {
                let mut watcher = watch(ks, start);
                let first = if start == 0 { watcher.created_revision() + 1 } else { start };
                assert_eq!(seen(&mut watcher, LAST as i64), (first..=LAST as i64).collect::<Vec<_>>());
            });
        }
        scope.spawn(|| {
            let mut index = 21;
            while index <= LAST {
                // Some were in a snapshot already: those are applied once all the same.
                for answer in ks.apply(log(index..=(index + 2).min(LAST))).wait().unwrap() {
                    assert!(
                        matches!(answer, Ok(_) | Err(Error::Refused(Refusal::AlreadyApplied { .. }))),
                        "{answer:?}"
                    );
                }
                index += 3;
                std::thread::yield_now();
            }
        });
        scope.spawn(|| {
            for upto in [60, 120, 180, LAST] {
                let (snapshot, _) = snapshot_at(upto, 0);
                match engine.install("ks", &snapshot[..], Older::Refuse).unwrap().wait() {
                    Ok(revision) => assert_eq!(revision, upto as i64),
                    Err(error) => assert!(matches!(refusal(Err::<(), _>(error)), Refusal::OlderSnapshot { .. })),
                }
            }
            while ks.revision() < LAST as i64 {
                std::thread::yield_now();
            }
            done.store(true, Ordering::SeqCst);
        });
    });
    let after = facts(&ks);
    assert_eq!(after.now, truth[&(LAST as i64)]);
    engine.verify(&mut |_| ()).unwrap();
    drop(ks);
    engine.close().unwrap();
    let engine = Engine::open(dir.path(), options(BATCH)).unwrap();
    assert_eq!(facts(&engine.keyspace("ks").unwrap()), after);
}

struct Driven {
    engine: Engine,
    jobs: Seeded,
}

fn open_sim(disk: &SimDisk, durability: Durability, seed: u64) -> Result<Driven> {
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    let clock = ManualClock::default();
    let options = Options {
        buffer_bytes: 20_000,
        segment_bytes: 8192,
        journal_bytes: 48 << 10,
        checkpoint_interval: Duration::from_millis(40),
        space_reserve_bytes: 8192,
        admission_timeout: Duration::from_secs(3600),
        ..options(durability)
    };
    let runtime = Runtime { disk, clock: Arc::new(clock.clone()), threads: false };
    let engine = Engine::open_with("/data/store", options, runtime)?;
    let jobs = Seeded::new(engine.take_jobs(), clock, seed);
    Ok(Driven { engine, jobs })
}

impl Driven {
    /// Steps jobs until the answer is there; None once the disk has stopped.
    fn finish<T>(&mut self, work: impl Future<Output = Result<T>>) -> Option<T> {
        let mut work: Pin<&mut _> = std::pin::pin!(work);
        for _ in 0..100_000 {
            match work.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(Ok(done)) => return Some(done),
                Poll::Ready(Err(Error::Storage(error) | Error::Unknown(error))) => {
                    assert!(is_crash(&error), "{error}");
                    return None;
                }
                Poll::Ready(Err(error)) => panic!("{error}"),
                Poll::Pending if self.jobs.step_one() => {}
                Poll::Pending => self.jobs.advance(Duration::from_millis(5)),
            }
        }
        panic!("no answer came");
    }
}

/// How far one run came.
#[derive(Debug, Default, Clone, Copy)]
struct Reached {
    prepared: bool,
    installed: bool,
    after: bool,
}

fn run_to(crash: u64, durability: Durability, snapshot: &[u8]) -> (SimDisk, Reached) {
    let disk = SimDisk::new(7);
    disk.create_dir("/data".as_ref()).unwrap();
    disk.crash_at(crash);
    let mut reached = Reached::default();
    let mut run = || -> Option<()> {
        let mut driven = open_sim(&disk, durability, 7).ok()?;
        let ks = driven.engine.create_keyspace("ks", Routes::parse("low=a,mid=m").unwrap()).ok()?;
        driven.finish(ks.apply(log(1..=30)))?;
        driven.finish(ks.table_write(table(30)))?;
        // With it all is durable, in `Batch` too.
        driven.finish(ks.compact(10, true))?;
        reached.prepared = true;
        let install = driven.engine.install("ks", snapshot, Older::Refuse).unwrap();
        let revision = driven.finish(install)?;
        assert_eq!(revision, 80);
        reached.installed = true;
        driven.finish(ks.apply(log(81..=84)))?;
        driven.finish(ks.compact(70, true))?;
        reached.after = true;
        driven.jobs.run_until_idle(3000);
        Some(())
    };
    run();
    (disk, reached)
}

/// One state or the other, whole; and it goes on from there.
fn check_whole(disk: &SimDisk, durability: Durability, reached: Reached, wanted: &[Facts; 2], seen: &mut [u64; 3]) {
    let mut driven = open_sim(disk, durability, 3).unwrap_or_else(|error| panic!("it has to open: {error}"));
    let Ok(ks) = driven.engine.keyspace("ks") else {
        assert!(!reached.prepared);
        return;
    };
    driven.engine.verify(&mut |_| ()).unwrap();
    if !reached.prepared {
        return;
    }
    assert_eq!(driven.engine.keyspaces(), ["ks"]);
    let found = facts(&ks);
    let [old, new] = wanted;
    if found.applied > 80 {
        seen[2] += 1;
        assert!(reached.installed);
    } else if found == *new {
        seen[1] += 1;
    } else {
        assert_eq!(found, *old, "neither the old nor the new state");
        assert!(!reached.installed, "an install that was acknowledged is gone");
        seen[0] += 1;
    }
    assert!(!reached.after || durability != Durability::Sync || found.applied == 84);
    let next = ks.applied_index() + 1;
    let answers = driven.finish(ks.apply(log(next..=next + 3))).unwrap();
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    driven.jobs.run_until_idle(3000);
    let after = facts(&ks);
    drop(ks);
    driven.engine.close().unwrap();
    let driven = open_sim(disk, durability, 4).unwrap();
    assert_eq!(facts(&driven.engine.keyspace("ks").unwrap()), after);
    let left = disk.list("/data/store".as_ref()).unwrap();
    assert_eq!(left.iter().filter(|name| name.ends_with(".tree")).count(), 4, "files are left over: {left:?}");
}

#[test]
fn an_install_survives_a_crash_at_every_call() {
    let (snapshot, new) = snapshot_at(80, 60);
    let old = {
        let replica = opened(options(BATCH), 30);
        replica.ks.compact(10, true).wait().unwrap();
        facts(&replica.ks)
    };
    let wanted = [old, new];
    for durability in [Durability::Sync, BATCH] {
        let mut seen = [0; 3];
        let mut recovery_crashes = 0;
        let (whole, reached) = run_to(u64::MAX, durability, &snapshot);
        assert!(reached.after);
        for call in 1..=whole.calls() {
            let (disk, reached) = run_to(call, durability, &snapshot);
            assert!(disk.crashed());
            eprintln!("{durability:?}, call {call} ({}), {reached:?}", disk.last_call());
            for survive in [Survive::Nothing, Survive::All].into_iter().chain((0..3).map(Survive::Mix)) {
                check_whole(&disk.after_crash(survive), durability, reached, &wanted, &mut seen);
            }
            let first = disk.after_crash(Survive::Mix(call));
            first.crash_at(1 + call % 29);
            if open_sim(&first, durability, 3).is_err() {
                recovery_crashes += 1;
                check_whole(&first.after_crash(Survive::Nothing), durability, reached, &wanted, &mut seen);
            }
        }
        println!("{durability:?}: old, new, after: {seen:?}; {recovery_crashes} crashes while recovering");
        assert!(seen.iter().all(|count| *count > 20) && recovery_crashes > 0, "{seen:?}");
    }
}

/// An install that is given up half way changes nothing, whenever that happens.
#[test]
fn an_install_that_is_dropped_leaves_the_old_state() {
    let (snapshot, new) = snapshot_at(80, 0);
    let mut outcomes = [0, 0];
    for polls in (0..60).step_by(3) {
        let disk = SimDisk::new(9);
        disk.create_dir("/data".as_ref()).unwrap();
        let mut driven = open_sim(&disk, Durability::Sync, 9).unwrap();
        let ks = driven.engine.create_keyspace("ks", Routes::parse("low=a,mid=m").unwrap()).unwrap();
        driven.finish(ks.apply(log(1..=30))).unwrap();
        let before = facts(&ks);
        let mut install = driven.engine.install("ks", &snapshot[..], Older::Refuse).unwrap();
        let mut installed = false;
        for _ in 0..polls {
            if !driven.jobs.step_one() {
                driven.jobs.advance(Duration::from_millis(5));
            }
            if Pin::new(&mut install).poll(&mut Context::from_waker(Waker::noop())).is_ready() {
                installed = true;
                break;
            }
        }
        if polls > 0 && !installed {
            let second = driven.engine.install("ks", &snapshot[..], Older::Refuse).unwrap().wait();
            assert!(refusal(second).to_string().contains("already"));
        }
        outcomes[usize::from(installed)] += 1;
        drop(install);
        let found = facts(&ks);
        assert!(found == before || found == new);
        // Writes go on, and are there after a restart.
        let next = ks.applied_index() + 1;
        driven.finish(ks.apply(log(next..=next + 2))).unwrap();
        let after = facts(&ks);
        driven.jobs.run_until_idle(3000);
        disk.stop();
        let again = open_sim(&disk.after_crash(Survive::Nothing), Durability::Sync, 10).unwrap();
        assert_eq!(facts(&again.engine.keyspace("ks").unwrap()), after, "given up after {polls} polls");
    }
    assert!(outcomes.iter().all(|count| *count > 2), "{outcomes:?}");
}

/// Requests that stand in line when the new state takes its place are served by it, and their bytes leave
/// the line with them.
#[test]
fn requests_in_line_go_over_to_an_installed_snapshot() {
    let (snapshot, _) = snapshot_at(80, 0);
    let disk = SimDisk::new(9);
    disk.create_dir("/data".as_ref()).unwrap();
    let mut driven = open_sim(&disk, Durability::Sync, 9).unwrap();
    let ks = driven.engine.create_keyspace("ks", Routes::parse("low=a,mid=m").unwrap()).unwrap();
    driven.finish(ks.apply(log(1..=30))).unwrap();
    let mut install = driven.engine.install("ks", &snapshot[..], Older::Refuse).unwrap();
    let mut asked = Vec::new();
    let mut most_waited = 0;
    for step in 0.. {
        if Pin::new(&mut install).poll(&mut Context::from_waker(Waker::noop())).is_ready() {
            break;
        }
        // Not at each step: time goes on when nobody has anything to do.
        if step % 8 == 0 {
            asked.push(ks.table_write(table(step)));
            most_waited = most_waited.max(ks.stats().waiting);
        }
        if !driven.jobs.step_one() {
            driven.jobs.advance(Duration::from_millis(5));
        }
        assert!(step < 100_000, "no answer came");
    }
    assert!(most_waited > 1, "an install that nobody waits for shows nothing");
    for answer in asked {
        driven.finish(answer).unwrap();
    }
    let stats = ks.stats();
    assert_eq!((stats.waiting, stats.waiting_bytes), (0, 0));
}
