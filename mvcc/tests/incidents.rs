//! Incidents that etcd and bbolt have had, played here: each test says what happened there, and why it
//! cannot happen in this engine.
#![expect(clippy::unwrap_used, reason = "tests")]

use polybolt::disk::Disk;
use polybolt::disk::sim::{SimDisk, Survive, is_crash};
use polybolt::run::ManualClock;
use polybolt::run::seeded::Seeded;
use polybolt::{
    Applied, Command, DeleteRequest, Durability, Engine, Entry, Error, EventKind, Face, Keyspace, Op, Options,
    PutRequest, RangeRequest, Refusal, Result, Routes, Runtime, Span, TxnRequest, WatchItem, WatchRequest, Watcher,
};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

const BATCH: Durability = Durability::Batch { interval: Duration::from_millis(20), limit: 5 };

/// A keyspace of three shards on a simulated machine.
struct Machine {
    disk: SimDisk,
    jobs: Seeded,
    ks: Keyspace,
    engine: Engine,
}

impl Machine {
    fn open(disk: &SimDisk, options: Options) -> Result<Machine> {
        let on: Arc<dyn Disk> = Arc::new(disk.clone());
        let clock = ManualClock::default();
        let options = Options {
            buffer_bytes: 60_000,
            segment_bytes: 8192,
            journal_bytes: 48 << 10,
            checkpoint_interval: Duration::from_millis(40),
            space_reserve_bytes: 8192,
            compaction_pace: polybolt::CompactionPace { batch_limit: 3, ..Default::default() },
            admission_timeout: Duration::from_secs(3600),
            ..options
        };
        let runtime = Runtime { disk: on, clock: Arc::new(clock.clone()), threads: false };
        let engine = Engine::open_with("/data/store", options, runtime)?;
        let jobs = Seeded::new(engine.take_jobs(), clock, 7);
        let routes = || Routes::parse("low=a,mid=m").unwrap();
        let ks = engine.keyspace("ks").or_else(|_| engine.create_keyspace("ks", routes()))?;
        Ok(Machine { disk: disk.clone(), jobs, ks, engine })
    }

    fn new(options: Options) -> Machine {
        let disk = SimDisk::new(7);
        disk.create_dir("/data".as_ref()).unwrap();
        Machine::open(&disk, options).unwrap()
    }

    /// Steps jobs until the answer is there; None if the disk has stopped.
    fn finish<T>(&mut self, pending: impl Future<Output = Result<T>>) -> Option<T> {
        let mut pending = pin!(pending);
        for _ in 0..50_000 {
            match pending.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(Ok(answer)) => return Some(answer),
                Poll::Ready(Err(Error::Storage(error) | Error::Unknown(error))) if is_crash(&error) => return None,
                Poll::Ready(Err(error)) => panic!("{error}"),
                Poll::Pending if self.jobs.step_one() => {}
                Poll::Pending => self.jobs.advance(Duration::from_millis(5)),
            }
        }
        panic!("no answer came");
    }

    fn put(&mut self, key: &str, value: impl Into<bytes::Bytes>) -> Option<i64> {
        let pending = self.ks.put(PutRequest::new(key.to_owned(), value.into()));
        self.finish(pending).map(|put| put.revision)
    }

    fn get(&self, key: &str, revision: i64) -> Result<Option<Vec<u8>>> {
        let request = RangeRequest { revision, ..RangeRequest::new(Span::key(key.to_owned())) };
        Ok(self.ks.range(&request)?.kvs.pop().map(|kv| kv.value.to_vec()))
    }

    /// The disk as a crash now would leave it.
    fn power_cut(&self, survive: Survive) -> SimDisk {
        self.disk.after_crash(survive)
    }

    /// Lets background work end.
    fn settle(&mut self) {
        for _ in 0..40 {
            self.jobs.run_until_idle(2000);
            self.jobs.advance(Duration::from_millis(25));
        }
    }
}

fn survivals() -> impl Iterator<Item = Survive> {
    [Survive::Nothing, Survive::All].into_iter().chain((0..6).map(Survive::Mix))
}

/// etcd#13766 (3.5.0 to 3.5.2): the applied index was written by a hook that could run between the changes of
/// an entry and its index, so a crash under load left data whose entry was then skipped, or applied twice.
/// Here an entry's changes and its index are one record, and a checkpoint cuts between records.
#[test]
fn the_applied_index_is_that_of_the_data_etcd_13766() {
    let options = || Options { durability: BATCH, face: Face::Replayed, ..Options::default() };
    let entry = |index: u64| {
        let put = |key: &'static str| Op::Put(PutRequest::new(key, index.to_be_bytes().to_vec()));
        let txn = TxnRequest { success: vec![put("a"), put("m"), put("x")], ..TxnRequest::default() };
        Entry { index, command: Command::Op(Op::Txn(txn)) }
    };
    let run = |calls: u64| {
        let disk = SimDisk::new(7);
        disk.create_dir("/data".as_ref()).unwrap();
        disk.crash_at(calls);
        let Ok(mut machine) = Machine::open(&disk, options()) else { return disk };
        for index in 1..=60 {
            let pending = machine.ks.apply(vec![entry(index)]);
            if machine.finish(pending).is_none() {
                break;
            }
            machine.jobs.run_some(3);
            machine.jobs.advance(Duration::from_millis(7));
        }
        disk
    };
    let calls = run(u64::MAX).calls();
    let mut indexes = std::collections::BTreeSet::new();
    for call in 1..calls {
        let disk = run(call);
        for survive in survivals() {
            let mut machine = Machine::open(&disk.after_crash(survive), options()).unwrap();
            let applied = machine.ks.applied_index();
            indexes.insert(applied);
            for key in ["a", "m", "x"] {
                let value =
                    machine.get(key, 0).unwrap().map_or(0, |value| u64::from_be_bytes(value.try_into().unwrap()));
                assert_eq!(value, applied, "{key} after a crash at call {call}, {survive:?}");
            }
            // Replayed from one too early on: nothing happens twice.
            let pending = machine.ks.apply((applied.max(1)..=applied + 2).map(entry).collect());
            let answers = machine.finish(pending).unwrap();
            let twice =
                |answer: &Result<Applied>| matches!(answer, Err(Error::Refused(Refusal::AlreadyApplied { .. })));
            assert_eq!(answers.iter().filter(|answer| twice(answer)).count(), usize::from(applied > 0));
            assert_eq!(machine.ks.revision(), applied as i64 + 3);
        }
    }
    assert!(indexes.len() > 8, "{indexes:?}");
}

fn events(watcher: &mut Watcher) -> (Vec<(i64, EventKind)>, Option<i64>) {
    let mut seen = Vec::new();
    loop {
        match watcher.try_recv().unwrap() {
            Poll::Ready(Some(WatchItem::Events { events, .. })) => {
                seen.extend(events.iter().map(|event| (event.kv().mod_revision, event.kind())));
            }
            Poll::Ready(Some(WatchItem::Compacted { compact_revision })) => return (seen, Some(compact_revision)),
            Poll::Ready(None) | Poll::Pending => return (seen, None),
        }
    }
}

/// etcd#17529 and etcd#18089: a slow watcher's events, deletes above all, were lost when a compaction came
/// before it had them, and it went on as if nothing were missing. Here what it needs next is pinned before it
/// is compared with the floor: it gets every event, or all up to a point and then one cancel.
#[test]
fn a_slow_watcher_loses_nothing_to_a_compaction_etcd_17529() {
    for reads_before in 0..12 {
        let mut machine = Machine::new(Options { watch_buffer_bytes: 700, ..Options::default() });
        let request =
            WatchRequest { span: Span::prefix(""), start_revision: 0, no_put: false, no_delete: false, prev_kv: true };
        let mut watcher = machine.ks.watch(request).unwrap();
        let mut expected = Vec::new();
        for n in 0..40 {
            let key = ["a", "m", "x"][n % 3];
            let (revision, kind) = if n % 4 == 3 {
                let pending = machine.ks.delete_range(DeleteRequest { span: Span::prefix(key), prev_kv: false });
                (machine.finish(pending).unwrap().revision, EventKind::Delete)
            } else {
                (machine.put(key, vec![n as u8; 60]).unwrap(), EventKind::Put)
            };
            if expected.last().is_none_or(|(last, _)| *last != revision) {
                expected.push((revision, kind));
            }
        }
        let mut seen = Vec::new();
        for _ in 0..reads_before {
            if let Poll::Ready(Some(WatchItem::Events { events, .. })) = watcher.try_recv().unwrap() {
                seen.extend(events.iter().map(|event| (event.kv().mod_revision, event.kind())));
            }
        }
        // At a delete: it is still delivered from there on (CMP-4).
        let compacted = expected.iter().rfind(|(_, kind)| *kind == EventKind::Delete).unwrap().0;
        let pending = machine.ks.compact(compacted, false);
        machine.finish(pending).unwrap();
        machine.settle();
        let (rest, cancelled) = events(&mut watcher);
        seen.extend(rest);
        assert_eq!(seen[..], expected[..seen.len()], "in order, without a gap");
        match cancelled {
            Some(at) => assert!(at == compacted && seen.last().is_none_or(|(last, _)| *last < compacted)),
            None => assert_eq!(seen, expected),
        }
        assert_eq!(events(&mut watcher), (Vec::new(), None), "cancelled once");
    }
}

/// etcd#17780: after a compaction at the newest revision had erased its rows (all of them tombstones) and a crash
/// came before it was recorded as finished, the store counted on from an older revision. Here the revision is
/// part of the state that every record and checkpoint carries, not the newest row.
#[test]
fn the_revision_does_not_go_back_etcd_17780() {
    for crash in 0..60 {
        let mut machine = Machine::new(Options::default());
        for n in 0..9 {
            machine.put(["a", "m", "x"][n % 3], "v").unwrap();
        }
        let pending = machine.ks.delete_range(DeleteRequest { span: Span::prefix(""), prev_kv: false });
        let deleted = machine.finish(pending).unwrap().revision;
        let pending = machine.ks.compact(deleted, false);
        machine.finish(pending).unwrap();
        // Moves on, so that the tombstones are below the next compaction and go.
        let put = machine.put("a", "again").unwrap();
        let pending = machine.ks.delete_range(DeleteRequest { span: Span::key("a"), prev_kv: false });
        let last = machine.finish(pending).unwrap().revision;
        assert_eq!((put, last), (deleted + 1, deleted + 2));
        let pending = machine.ks.compact(last, false);
        machine.finish(pending).unwrap();
        machine.disk.crash_at(machine.disk.calls() + crash);
        machine.settle();
        for survive in survivals() {
            let mut after = Machine::open(&machine.power_cut(survive), Options::default()).unwrap();
            assert_eq!((after.ks.revision(), after.ks.compact_revision()), (last, last), "{crash} {survive:?}");
            assert!(matches!(
                after.get("a", last - 1),
                Err(Error::Refused(Refusal::Compacted { revision })) if revision == last
            ));
            assert_eq!(after.put("b", "next"), Some(last + 1));
        }
    }
}

/// etcd#14370: a single member acknowledged a write before its own log had it on disk, and lost it with the
/// power. Here an answer waits for the sync of its journal group: whatever the disk keeps of what was not
/// synced, what was acknowledged is there.
#[test]
fn an_acknowledged_write_outlives_the_power_etcd_14370() {
    let mut machine = Machine::new(Options::default());
    for n in 0..80i64 {
        let (key, value) = (["a", "m", "x"][n as usize % 3], format!("{n} {}", "v".repeat(n as usize * 7)));
        let revision = machine.put(key, value.clone()).unwrap();
        assert_eq!(revision, n + 2);
        for survive in [Survive::Nothing, Survive::Mix(n as u64)] {
            let after = Machine::open(&machine.power_cut(survive), Options::default()).unwrap();
            assert_eq!(after.get(key, 0).unwrap(), Some(value.clone().into_bytes()), "{survive:?}");
            assert_eq!(after.ks.revision(), revision);
        }
        if n % 5 == 0 {
            machine.settle();
        }
    }
}

/// bbolt#701 and bbolt#492: pages that a reader or the other meta page still needed were handed out again and
/// overwritten. Here a page that a checkpoint frees waits until both manifest slots and all views are past it,
/// and every pointer carries the epoch of the page that it means, so that a mistake would be an error and no data.
#[test]
fn a_freed_page_waits_for_readers_and_both_slots_bbolt_701_bbolt_492() {
    let mut machine = Machine::new(Options::default());
    for n in 0..60 {
        machine.put(&format!("{}{}", ["a", "m", "x"][n % 3], n % 20), vec![n as u8; 500]).unwrap();
    }
    machine.settle();
    let before = machine.ks.range(&RangeRequest::new(Span::prefix(""))).unwrap();
    // A read that has begun, and a file that is written over many times under it.
    let mut stream = machine.ks.range_stream(&RangeRequest::new(Span::prefix(""))).unwrap();
    let mut kvs = stream.next().unwrap().unwrap();
    for round in 0..12 {
        for n in 0..20 {
            machine.put(&format!("{}{n}", ["a", "m", "x"][n % 3]), vec![round; 700]).unwrap();
        }
        let pending = machine.ks.compact(machine.ks.revision(), false);
        machine.finish(pending).unwrap();
        machine.settle();
        let count = machine.ks.range(&RangeRequest::new(Span::prefix(""))).unwrap();
        // Falling back to the older slot at any time: a mix loses the newer one in some of these.
        for survive in survivals() {
            let after = Machine::open(&machine.power_cut(survive), Options::default()).unwrap();
            after.engine.verify(&mut |_| ()).unwrap();
            assert_eq!(after.ks.range(&RangeRequest::new(Span::prefix(""))).unwrap().kvs, count.kvs);
        }
    }
    for chunk in &mut stream {
        kvs.extend(chunk.unwrap());
    }
    assert_eq!((kvs, stream.total()), (before.kvs, before.count), "as it was when the read began");
    drop(stream);
    machine.settle();
    assert!(machine.engine.stats().units_reused > 0, "pages were used again meanwhile");
    machine.engine.verify(&mut |_| ()).unwrap();
}
