//! Whole engines in random orders of threads (shuttle): the journal, checkpoints, housekeeping, writers,
//! readers and watchers on a simulated disk, one after the other as a seed says. Who waits is woken or the
//! run ends with a deadlock; no time helps, but where a clock is moved.
//!
//! `cargo test -p polybolt --features shuttle --test shuttle`; `POLYBOLT_SEEDS=200` runs more, `POLYBOLT_SEED=7
//! POLYBOLT_SEEDS=1` one again. Orders of memory are no part of it: see the loom models.
#![expect(clippy::unwrap_used, reason = "tests")]

use bytes::Bytes;
use polybolt::disk::sim::{Fault, SimDisk, Survive};
use polybolt::run::ManualClock;
use polybolt::{
    DeleteRequest, Durability, Engine, Error, Keyspace, Older, Op, Options, PutRequest, RangeRequest, Refusal, Routes,
    Runtime, Span, TxnRequest, WatchItem, WatchRequest,
};
use shuttle::rand::Rng;
use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use shuttle::thread::{self, JoinHandle};
use shuttle::{Config, FailurePersistence, MaxSteps, Runner};
use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

/// How often a scenario is run with a seed: few preemptions are best placed by who knows how long a run is.
const ORDERS_PER_SEED: usize = 8;

/// Runs a scenario with as many seeds as are asked for, by turns at random and with few preemptions.
fn explore(scenario: fn()) {
    explore_more(1, scenario);
}

/// The same for a small scenario, which is to meet one moment: so many times more seeds.
fn explore_more(times: u64, scenario: fn()) {
    let number = |name: &str, default: u64| {
        std::env::var(name).map_or(default, |text| text.parse().expect("a number of seeds, or a seed"))
    };
    let first = number("POLYBOLT_SEED", 0);
    for seed in first..first + times * number("POLYBOLT_SEEDS", 4) {
        let mut config = Config::new();
        config.stack_size = 8 << 20;
        config.max_steps = MaxSteps::FailAfter(3_000_000);
        config.failure_persistence = FailurePersistence::None;
        let scheduler: Box<dyn Scheduler + Send> = match seed % 2 {
            0 => Box::new(RandomScheduler::new_from_seed(seed, ORDERS_PER_SEED)),
            _ => Box::new(PctScheduler::new_from_seed(seed, 4, ORDERS_PER_SEED)),
        };
        let told = Told(seed);
        Runner::new(scheduler, config).run(scenario);
        std::mem::forget(told);
    }
}

/// Says which seed it was if it is dropped.
struct Told(u64);

impl Drop for Told {
    fn drop(&mut self) {
        eprintln!("POLYBOLT_SEED={} POLYBOLT_SEEDS=1 runs it again", self.0);
    }
}

fn options() -> Options {
    Options {
        buffer_bytes: 3_000,
        segment_bytes: 4096,
        journal_bytes: 16 << 10,
        checkpoint_interval: Duration::from_millis(20),
        space_reserve_bytes: 0,
        compaction_pace: polybolt::CompactionPace {
            batch_limit: 3,
            sleep_interval: Duration::from_millis(1),
            ..Default::default()
        },
        admission_timeout: Duration::from_secs(1_000_000),
        watch_buffer_bytes: 200,
        scrub_bytes_per_second: 0,
        vacuum_bytes_per_second: 0,
        reserve_ahead: 8,
        hash_index_from: 0,
        ..Options::default()
    }
}

/// An engine whose clock moves whenever its thread has a turn.
struct Running {
    disk: SimDisk,
    engine: Engine,
    options: Options,
    ended: Arc<AtomicBool>,
    time: JoinHandle<()>,
}

impl Running {
    fn start(disk: SimDisk, options: Options) -> polybolt::Result<Running> {
        let clock = ManualClock::default();
        let runtime = Runtime { disk: Arc::new(disk.clone()), clock: Arc::new(clock.clone()), threads: true };
        let engine = Engine::open_with("/data", options.clone(), runtime)?;
        let ended = Arc::new(AtomicBool::new(false));
        let time = thread::spawn({
            let ended = Arc::clone(&ended);
            move || {
                while !ended.load(Ordering::SeqCst) {
                    clock.advance(Duration::from_millis(1));
                    thread::yield_now();
                }
            }
        });
        Ok(Running { disk, engine, options, ended, time })
    }

    fn new(options: Options) -> (Running, Keyspace) {
        let running = Running::start(SimDisk::new(shuttle::rand::thread_rng().gen_range(0..1 << 32)), options).unwrap();
        let ks = running.engine.create_keyspace("ks", Routes::parse("low=a,mid=m").unwrap()).unwrap();
        (running, ks)
    }

    fn close(self) -> (SimDisk, Options, polybolt::Result<()>) {
        let closed = self.engine.close();
        self.ended.store(true, Ordering::SeqCst);
        self.time.join().unwrap();
        (self.disk, self.options, closed)
    }

    /// Closes it, opens it again, and looks at it whole.
    fn reopen(self) -> (Running, Keyspace) {
        let (disk, options, closed) = self.close();
        closed.unwrap();
        let running = Running::start(disk, options).unwrap();
        running.engine.verify(&mut |_| ()).unwrap();
        let ks = running.engine.keyspace("ks").unwrap();
        (running, ks)
    }
}

fn join<T>(threads: Vec<JoinHandle<T>>) -> Vec<T> {
    threads.into_iter().map(|thread| thread.join().unwrap()).collect()
}

/// A txn of both shards.
fn both(key: u64, value: &str) -> TxnRequest {
    let put = |prefix: &str| Op::Put(PutRequest::new(format!("{prefix}{key}"), value.to_owned()));
    TxnRequest { success: vec![put("a"), put("m")], ..TxnRequest::default() }
}

fn all() -> RangeRequest {
    RangeRequest::new(Span::prefix(""))
}

fn contents(ks: &Keyspace) -> BTreeMap<Bytes, Bytes> {
    ks.range(&all()).unwrap().kvs.into_iter().map(|kv| (kv.key, kv.value)).collect()
}

/// What one read sees is of whole txns.
fn check_whole(ks: &Keyspace) {
    let seen = contents(ks);
    for (key, value) in seen.iter().filter(|(key, _)| key.starts_with(b"a")) {
        let other = format!("m{}", std::str::from_utf8(&key[1..]).unwrap());
        assert_eq!(seen.get(other.as_bytes()), Some(value), "{key:?}");
    }
}

/// Watches until `last`: each revision once, in order, with both of its events.
fn watch(ks: &Keyspace, start_revision: i64, last: i64) {
    let request =
        WatchRequest { span: Span::prefix(""), start_revision, no_put: false, no_delete: false, prev_kv: true };
    let mut watcher = ks.watch(request).unwrap();
    let mut next = if start_revision == 0 { watcher.created_revision() + 1 } else { start_revision };
    while next <= last {
        match watcher.recv().unwrap().unwrap() {
            WatchItem::Events { revision, events } => {
                assert_eq!(events.len() % 2, 0, "whole revisions only");
                for two in events.chunks(2) {
                    assert!(two.iter().all(|event| event.kv().mod_revision == next), "{next}: {two:?}");
                    next += 1;
                }
                assert!(revision >= next - 1 && ks.revision() >= next - 1);
            }
            WatchItem::Compacted { compact_revision } => {
                assert!(compact_revision > next, "told for nothing: {compact_revision}, {next} is needed");
                return;
            }
        }
        if let Some(progress) = watcher.progress() {
            assert!(progress >= next - 1);
            next = next.max(progress + 1);
        }
    }
}

const WRITERS: u64 = 2;
const TXNS: u64 = 6;

fn everything(options: Options) {
    let (running, ks) = Running::new(options);
    let last = (WRITERS * TXNS) as i64 + 1;
    let newest = Arc::new(AtomicI64::new(1));
    let mut threads = Vec::new();
    for writer in 0..WRITERS {
        let (ks, newest) = (ks.clone(), Arc::clone(&newest));
        threads.push(thread::spawn(move || {
            for n in 0..TXNS {
                let value = format!("{writer}.{n}{}", "v".repeat((n * 70) as usize));
                let done = ks.txn(both((writer + n) % 3, &value)).wait().unwrap();
                // What is acknowledged is visible.
                assert!(ks.revision() >= done.revision);
                newest.fetch_max(done.revision, Ordering::SeqCst);
            }
        }));
    }
    for start in [0, 2] {
        let ks = ks.clone();
        threads.push(thread::spawn(move || watch(&ks, start, last)));
    }
    threads.push(thread::spawn({
        let (ks, newest) = (ks.clone(), Arc::clone(&newest));
        move || {
            for _ in 0..2 {
                let target = newest.load(Ordering::SeqCst) - 2;
                if target > ks.compact_revision().max(1) {
                    ks.compact(target, target % 2 == 0).wait().unwrap();
                }
                check_whole(&ks);
            }
        }
    }));
    threads.push(thread::spawn({
        let ks = ks.clone();
        move || {
            let stream = ks.range_stream(&all()).unwrap();
            let total = stream.total();
            assert_eq!(stream.map(|chunk| chunk.unwrap().len() as i64).sum::<i64>(), total);
            ks.defragment().unwrap();
            let snapshot = ks.snapshot().unwrap();
            assert!(snapshot.map(|frame| frame.unwrap().len()).sum::<usize>() > 0);
        }
    }));
    join(threads);
    assert_eq!(ks.revision(), last);
    let (before, hash) = (ks.range(&all()).unwrap(), ks.history_hash());
    drop(ks);
    let (running, ks) = running.reopen();
    assert_eq!((ks.range(&all()).unwrap(), ks.history_hash()), (before, hash));
    drop(ks);
    running.close().2.unwrap();
}

#[test]
fn everything_at_once() {
    explore(|| everything(options()));
}

#[test]
fn everything_at_once_in_batches() {
    explore(|| {
        let durability = Durability::Batch { interval: Duration::from_millis(20), limit: 4 };
        everything(Options { durability, ..options() });
    });
}

/// More than there is room for, without waiting: a line forms.
#[test]
fn a_line_of_writers_moves_whoever_waits() {
    explore(|| {
        let (running, ks) = Running::new(Options { buffer_bytes: 1_500, journal_bytes: 8192, ..options() });
        let put = |ks: &Keyspace, key: &'static str, n: usize| ks.put(PutRequest::new(key, format!("{n:>200}")));
        let mut threads = Vec::new();
        threads.push(thread::spawn({
            let ks = ks.clone();
            move || {
                let pending: Vec<_> = (0..8).map(|n| put(&ks, "a", n)).collect();
                // Waited for backwards.
                let revisions: Vec<i64> = pending.into_iter().rev().map(|put| put.wait().unwrap().revision).collect();
                assert!(revisions.is_sorted_by(|a, b| a > b), "{revisions:?}");
            }
        }));
        threads.push(thread::spawn({
            let ks = ks.clone();
            // Not waited for at all.
            move || (0..8).for_each(|n| drop(put(&ks, "m", n)))
        }));
        join(threads);
        let last = put(&ks, "a", 8).wait().unwrap();
        assert_eq!(last.revision, 18);
        let versions: Vec<i64> = ks.range(&all()).unwrap().kvs.iter().map(|kv| kv.version).collect();
        assert_eq!(versions, [9, 8]);
        drop(ks);
        running.close().2.unwrap();
    });
}

/// Bytes of a snapshot, as a reader.
struct Stream(polybolt::Snapshot, Bytes);

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

#[test]
fn a_snapshot_is_installed_under_readers_writers_and_watchers() {
    explore(|| {
        let (running, ks) = Running::new(options());
        let source = running.engine.create_keyspace("source", Routes::single()).unwrap();
        for n in 0..20 {
            source.txn(both(n % 4, "there")).wait().unwrap();
        }
        let mut threads = Vec::new();
        threads.push(thread::spawn({
            let ks = ks.clone();
            move || {
                let mut acknowledged = Vec::new();
                for n in 0..6 {
                    let done = ks.txn(both(n, "here")).wait().unwrap();
                    assert!(ks.revision() >= done.revision);
                    acknowledged.push((n, done.revision));
                }
                // What was written before the install is gone; what came after is there.
                for (n, revision) in acknowledged.into_iter().filter(|(_, revision)| *revision > 21) {
                    let kvs = ks.range(&RangeRequest::new(Span::key(format!("m{n}")))).unwrap().kvs;
                    assert_eq!(kvs[0].mod_revision, revision);
                }
            }
        }));
        threads.push(thread::spawn({
            let ks = ks.clone();
            move || {
                let mut revision = 0;
                for _ in 0..5 {
                    check_whole(&ks);
                    assert!(ks.revision() >= revision);
                    revision = ks.revision();
                }
            }
        }));
        threads.push(thread::spawn({
            let ks = ks.clone();
            move || watch(&ks, 2, 21)
        }));
        threads.push(thread::spawn({
            let engine = running.engine.clone();
            move || {
                let stream = Stream(source.snapshot().unwrap(), Bytes::new());
                let main = engine.install("ks", stream, Older::Refuse).unwrap().wait().unwrap();
                assert_eq!(main, 21);
            }
        }));
        join(threads);
        let before = ks.range(&all()).unwrap();
        drop(ks);
        let (running, ks) = running.reopen();
        assert_eq!(ks.range(&all()).unwrap(), before);
        drop(ks);
        running.close().2.unwrap();
    });
}

/// Writes until it is refused, or has written enough; what was acknowledged.
fn write_on(ks: &Keyspace, writer: u64) -> BTreeMap<String, String> {
    let mut acknowledged = BTreeMap::new();
    for n in 0..10 {
        let (key, value) = (format!("{}{writer}", if n % 2 == 0 { "a" } else { "m" }), format!("{n}"));
        match ks.put(PutRequest::new(key.clone(), value.clone())).wait() {
            Ok(_) => drop(acknowledged.insert(key, value)),
            Err(Error::Unknown(_) | Error::Storage(_)) => break,
            Err(Error::Refused(Refusal::Closed | Refusal::KeyspaceNotFound { .. })) => break,
            Err(error) => panic!("{error}"),
        }
    }
    acknowledged
}

fn check_acknowledged(ks: &Keyspace, acknowledged: Vec<BTreeMap<String, String>>) {
    let there = contents(ks);
    for (key, value) in acknowledged.into_iter().flatten() {
        let have: u64 = std::str::from_utf8(&there[key.as_bytes()]).unwrap().parse().unwrap();
        // The one after it may have come through unanswered.
        assert!(have >= value.parse().unwrap(), "{key}: {have}, acknowledged {value}");
    }
}

#[test]
fn everybody_is_told_when_the_engine_closes() {
    explore(|| {
        let (running, ks) = Running::new(options());
        let writers: Vec<_> = (0..2)
            .map(|writer| {
                let ks = ks.clone();
                thread::spawn(move || write_on(&ks, writer))
            })
            .collect();
        let watcher = thread::spawn({
            let ks = ks.clone();
            move || {
                let request = WatchRequest {
                    span: Span::prefix(""),
                    start_revision: 0,
                    no_put: false,
                    no_delete: false,
                    prev_kv: false,
                };
                match ks.watch(request) {
                    Ok(mut watcher) => while let Ok(Some(_)) = watcher.recv() {},
                    Err(error) => assert!(matches!(error, Error::Refused(Refusal::Closed)), "{error}"),
                }
            }
        });
        drop(ks);
        let (disk, options, closed) = running.close();
        closed.unwrap();
        let acknowledged = join(writers);
        watcher.join().unwrap();
        let running = Running::start(disk, options).unwrap();
        check_acknowledged(&running.engine.keyspace("ks").unwrap(), acknowledged);
        running.close().2.unwrap();
    });
}

#[test]
fn everybody_is_told_when_a_keyspace_is_dropped() {
    explore(|| {
        let (running, ks) = Running::new(options());
        let other = running.engine.create_keyspace("other", Routes::single()).unwrap();
        let writers: Vec<_> = (0..2)
            .map(|writer| {
                let ks = ks.clone();
                thread::spawn(move || write_on(&ks, writer))
            })
            .collect();
        let compaction = thread::spawn({
            let ks = ks.clone();
            move || drop(ks.compact(2, true).wait())
        });
        running.engine.drop_keyspace("ks").unwrap();
        join(writers);
        compaction.join().unwrap();
        // The others go on, and the name is free.
        other.put(PutRequest::new("k", "v")).wait().unwrap();
        drop((ks, other));
        running.engine.create_keyspace("ks", Routes::single()).unwrap();
        let (running, ks) = running.reopen();
        assert_eq!((ks.revision(), running.engine.keyspace("other").unwrap().revision()), (1, 2));
        drop(ks);
        running.close().2.unwrap();
    });
}

#[test]
fn everybody_is_told_when_the_disk_fails() {
    explore(|| {
        let (running, ks) = Running::new(options());
        let calls = running.disk.calls();
        running.disk.fail_at(calls + shuttle::rand::thread_rng().gen_range(1..60), 1, Fault::Eio);
        let writers: Vec<_> = (0..2)
            .map(|writer| {
                let ks = ks.clone();
                thread::spawn(move || write_on(&ks, writer))
            })
            .collect();
        let compaction = thread::spawn({
            let ks = ks.clone();
            move || drop(ks.compact(2, true).wait())
        });
        let acknowledged = join(writers);
        compaction.join().unwrap();
        check_acknowledged(&ks, acknowledged.clone());
        drop(ks);
        let (disk, options, _) = running.close();
        let running = Running::start(disk.after_crash(Survive::Nothing), options).unwrap();
        running.engine.verify(&mut |_| ()).unwrap();
        check_acknowledged(&running.engine.keyspace("ks").unwrap(), acknowledged);
        running.close().2.unwrap();
    });
}

/// Small, so that the moment between the look at a revision and the pin is met often.
#[test]
fn a_read_is_whole_or_refused_while_what_it_reads_is_compacted() {
    explore_more(4, || {
        let (running, ks) = Running::new(options());
        ks.txn(both(1, "0")).wait().unwrap();
        let reader = thread::spawn({
            let ks = ks.clone();
            move || {
                for _ in 0..3 {
                    let now = ks.revision();
                    match ks.range(&RangeRequest { revision: now, ..all() }) {
                        Ok(seen) => assert_eq!(seen.kvs.len(), 2, "at {now}: {:?}", seen.kvs),
                        Err(error) => assert!(matches!(error, Error::Refused(Refusal::Compacted { .. })), "{error}"),
                    }
                    check_whole(&ks);
                }
            }
        });
        for n in 1..3 {
            let done = ks.txn(both(1, &n.to_string())).wait().unwrap();
            ks.compact(done.revision, true).wait().unwrap();
        }
        reader.join().unwrap();
        drop(ks);
        running.close().2.unwrap();
    });
}

#[test]
fn a_watcher_from_the_past_catches_up_with_a_write_on_its_way() {
    explore_more(4, || {
        let (running, ks) = Running::new(options());
        ks.txn(both(0, "0")).wait().unwrap();
        let watcher = thread::spawn({
            let ks = ks.clone();
            move || watch(&ks, 2, 3)
        });
        ks.txn(both(1, "1")).wait().unwrap();
        watcher.join().unwrap();
        drop(ks);
        running.close().2.unwrap();
    });
}

#[test]
fn a_watch_that_begins_while_the_engine_closes_ends_or_is_refused() {
    explore_more(4, || {
        let (running, ks) = Running::new(options());
        let watchers: Vec<_> = (0..2)
            .map(|_| {
                let ks = ks.clone();
                thread::spawn(move || {
                    let span = Span::prefix("");
                    let request =
                        WatchRequest { span, start_revision: 0, no_put: false, no_delete: false, prev_kv: false };
                    match ks.watch(request) {
                        Ok(mut watcher) => assert!(watcher.recv().unwrap().is_none()),
                        Err(error) => assert!(matches!(error, Error::Refused(Refusal::Closed)), "{error}"),
                    }
                })
            })
            .collect();
        drop(ks);
        running.close().2.unwrap();
        join(watchers);
    });
}

#[test]
fn a_lease_ends_once_however_it_ends() {
    explore(|| {
        let (running, ks) = Running::new(options());
        let lease = ks.lease_grant(7, 2).wait().unwrap().id;
        ks.put(PutRequest { lease, ..PutRequest::new("a", "1") }).wait().unwrap();
        let mut threads = Vec::new();
        threads.push(thread::spawn({
            let ks = ks.clone();
            move || (0..5).for_each(|_| assert!(ks.lease_keep_alive(lease).wait().is_ok()))
        }));
        threads.push(thread::spawn({
            let ks = ks.clone();
            move || drop(ks.lease_revoke(lease).wait())
        }));
        threads.push(thread::spawn({
            let ks = ks.clone();
            move || {
                let put = ks.put(PutRequest { lease, ..PutRequest::new("m", "1") }).wait();
                assert!(matches!(put, Ok(_) | Err(Error::Refused(Refusal::LeaseNotFound))), "{put:?}");
                drop(ks.delete_range(DeleteRequest { span: Span::key("m"), prev_kv: false }).wait());
            }
        }));
        join(threads);
        assert_eq!((ks.leases(), contents(&ks).len()), (Vec::new(), 0));
        drop(ks);
        let (running, ks) = running.reopen();
        assert_eq!((ks.leases(), contents(&ks).len()), (Vec::new(), 0));
        drop(ks);
        running.close().2.unwrap();
    });
}
