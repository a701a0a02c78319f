//! A keyspace that is stopped at every disk call in turn.
//!
//! Step n is one txn over three shards, with revision n + 1; a sequential model says what every key
//! is at each revision. What is recovered has to be one of these states: not older than what was
//! acknowledged or shown, every key of it, at the newest and at older revisions.
#![expect(clippy::unwrap_used, reason = "tests")]

use bytes::Bytes;
use polybolt::disk::Disk;
use polybolt::disk::sim::{SimDisk, Survive, is_crash};
use polybolt::run::ManualClock;
use polybolt::run::seeded::{Rng, Seeded};
use polybolt::{
    Applied, Command, DeleteRequest, Durability, Engine, Entry, Error, Face, Keyspace, Op, Options, PutRequest,
    RangeRequest, Refusal, Result, Routes, Runtime, Span, TxnRequest, WatchItem, WatchRequest,
};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

const STEPS: u64 = 36;
const LEASE: i64 = 7;

#[derive(Debug, Clone, Copy)]
struct Setup {
    durability: Durability,
    face: Face,
    volatile: bool,
}

impl Setup {
    fn is_sync(self) -> bool {
        self.durability == Durability::Sync
    }

    fn reserves(self) -> bool {
        self.face == Face::Standalone && (!self.is_sync() || self.volatile)
    }
}

/// A live key: value, create and mod revision, version, lease.
type Live = (Bytes, i64, i64, i64, i64);
type State = BTreeMap<Vec<u8>, Live>;

fn value(step: u64) -> Bytes {
    let len = if step % 9 == 4 { 9000 } else { 30 + (step % 7) as usize * 70 };
    vec![step as u8; len].into()
}

fn txn(step: u64) -> TxnRequest {
    let put = |prefix: &str, lease| {
        let key = format!("{prefix}{}", step % 5);
        Op::Put(PutRequest { lease, ..PutRequest::new(key, value(step)) })
    };
    let lease = if step > 3 && step.is_multiple_of(4) { LEASE } else { 0 };
    let middle = match step % 7 {
        3 => Op::Delete(DeleteRequest { span: Span::key(format!("m{}", (step + 2) % 5)), prev_kv: false }),
        _ => put("m", 0),
    };
    TxnRequest { success: vec![put("a", lease), middle, put("x", 0)], ..TxnRequest::default() }
}

/// All states, by revision.
fn model() -> BTreeMap<i64, State> {
    let mut state = State::new();
    let mut states = BTreeMap::from([(1, state.clone())]);
    for step in 1..STEPS * 2 {
        let main = step as i64 + 1;
        for op in txn(step).success {
            match op {
                Op::Put(put) => {
                    let before = state.get(&put.key[..]);
                    let (created, version) = before.map_or((main, 1), |live| (live.1, live.3 + 1));
                    state.insert(put.key.to_vec(), (put.value, created, main, version, put.lease));
                }
                Op::Delete(delete) => drop(state.remove(&delete.span.key[..])),
                _ => unreachable!(),
            }
        }
        states.insert(main, state.clone());
    }
    states
}

struct Driven {
    engine: Engine,
    jobs: Seeded,
}

fn open(disk: &SimDisk, setup: Setup, seed: u64) -> Result<Driven> {
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    let clock = ManualClock::default();
    let options = Options {
        durability: setup.durability,
        face: setup.face,
        buffer_bytes: 60_000,
        segment_bytes: 8192,
        journal_bytes: 48 << 10,
        checkpoint_interval: Duration::from_millis(40),
        space_reserve_bytes: 8192,
        compaction_pace: polybolt::CompactionPace { batch_limit: 7, ..Default::default() },
        vacuum_bytes_per_second: 1 << 20,
        vacuum_step_bytes: 8 << 10,
        vacuum_free_percent: 10,
        vacuum_free_bytes_min: 4096,
        admission_timeout: Duration::from_secs(3600),
        ..Options::default()
    };
    let engine =
        Engine::open_with("/data/store", options, Runtime { disk, clock: Arc::new(clock.clone()), threads: false })?;
    let jobs = Seeded::new(engine.take_jobs(), clock, seed);
    Ok(Driven { engine, jobs })
}

fn routes(setup: Setup) -> Routes {
    let routes = if setup.volatile { "low=a,mid:volatile=m" } else { "low=a,mid=m" };
    Routes::parse(routes).unwrap()
}

/// What a recovered keyspace is held to.
#[derive(Debug, Default)]
struct Promised {
    applied: i64,
    acknowledged: i64,
    shown: i64,
    compacted: i64,
    reused: u64,
    recycled: u64,
    vacuum_rounds: u64,
}

type Answer = Pin<Box<dyn Future<Output = Result<i64>>>>;

fn poll(answer: &mut Answer) -> Poll<Result<i64>> {
    answer.as_mut().poll(&mut Context::from_waker(Waker::noop()))
}

fn submit(ks: &Keyspace, setup: Setup, step: u64) -> Answer {
    if setup.face == Face::Standalone {
        let pending = ks.txn(txn(step));
        return Box::pin(async { pending.await.map(|done| done.revision) });
    }
    let pending = ks.apply(vec![Entry { index: step, command: Command::Op(Op::Txn(txn(step))) }]);
    Box::pin(async {
        match pending.await?.remove(0)? {
            Applied::Txn(done) => Ok(done.revision),
            other => panic!("{other:?}"),
        }
    })
}

impl Driven {
    /// Steps jobs until `answer` is there; None if the disk has stopped.
    fn finish(&mut self, mut answer: Answer) -> Option<i64> {
        for _ in 0..20_000 {
            match poll(&mut answer) {
                Poll::Ready(Ok(revision)) => return Some(revision),
                Poll::Ready(Err(Error::Refused(refusal))) => panic!("refused: {refusal}"),
                Poll::Ready(Err(Error::Unknown(error) | Error::Storage(error))) => {
                    assert!(is_crash(&error), "{error}");
                    return None;
                }
                Poll::Ready(Err(_)) => unreachable!(),
                Poll::Pending if self.jobs.step_one() => {}
                Poll::Pending => self.jobs.advance(Duration::from_millis(5)),
            }
        }
        panic!("no answer came");
    }

    /// Runs steps; stops early if the disk does.
    fn run(
        &mut self,
        ks: &Keyspace,
        setup: Setup,
        steps: std::ops::RangeInclusive<u64>,
        promised: &mut Promised,
        rng: &mut Rng,
    ) -> Option<()> {
        let request =
            WatchRequest { span: Span::prefix(""), start_revision: 0, no_put: false, no_delete: false, prev_kv: true };
        let mut watcher = ks.watch(request).unwrap();
        let mut next_event = ks.revision() + 1;
        let mut waiting: Vec<Answer> = Vec::new();
        for step in steps {
            let before = ks.history_hash();
            let mut answer = submit(ks, setup, step);
            // Without room nothing is applied before it is polled again.
            for tries in 0.. {
                if ks.history_hash() != before {
                    break;
                }
                if !self.jobs.step_one() {
                    self.jobs.advance(Duration::from_millis(5));
                }
                assert!(tries < 20_000, "room never came");
                if let Poll::Ready(outcome) = poll(&mut answer) {
                    match outcome {
                        Ok(revision) => promised.acknowledged = promised.acknowledged.max(revision),
                        Err(Error::Storage(error) | Error::Unknown(error)) if is_crash(&error) => return None,
                        Err(error) => panic!("{error}"),
                    }
                    answer = Box::pin(std::future::ready(Ok(0)));
                    break;
                }
            }
            promised.applied += 1;
            waiting.push(answer);
            self.jobs.run_some(6);
            if rng.one_in(6) {
                self.jobs.advance(Duration::from_millis(rng.below(60)));
            }
            waiting.retain_mut(|answer| match poll(answer) {
                Poll::Ready(Ok(revision)) => {
                    promised.acknowledged = promised.acknowledged.max(revision);
                    false
                }
                Poll::Ready(Err(_)) => false,
                Poll::Pending => true,
            });
            promised.shown = promised.shown.max(ks.revision());
            while let Poll::Ready(Some(WatchItem::Events { events, .. })) = watcher.try_recv().ok()? {
                for event in events {
                    let at = event.kv().mod_revision;
                    assert!(at == next_event || at == next_event - 1, "event of {at}, expected {next_event}");
                    assert!(at <= ks.revision(), "an event that is not visible yet");
                    next_event = at + 1;
                    promised.shown = promised.shown.max(at);
                }
            }
            if step % 11 == 10 && setup.face == Face::Standalone {
                promised.compacted = ks.revision() - 3;
                let pending = ks.compact(promised.compacted, false);
                self.finish(Box::pin(pending))?;
            }
        }
        let stats = self.engine.stats();
        promised.reused += stats.units_reused;
        promised.recycled += stats.segments_recycled;
        Some(())
    }
}

/// The state at `revision` (0 is now), of the shards that are not Volatile or of all.
fn state_at(ks: &Keyspace, revision: i64, prefixes: &[&str]) -> Result<State> {
    let mut state = State::new();
    for prefix in prefixes {
        let request = RangeRequest { revision, ..RangeRequest::new(Span::prefix(prefix.to_string())) };
        for kv in ks.range(&request)?.kvs {
            let live = (kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease);
            state.insert(kv.key.to_vec(), live);
        }
    }
    Ok(state)
}

fn only(state: &State, prefixes: &[&str]) -> State {
    let wanted = |key: &&Vec<u8>| prefixes.iter().any(|prefix| key.starts_with(prefix.as_bytes()));
    state.iter().filter(|(key, _)| wanted(key)).map(|(key, live)| (key.clone(), live.clone())).collect()
}

const DURABLE: [&str; 2] = ["a", "x"];

/// Compares a keyspace with the model as of `last`, at it and shortly before.
fn check(ks: &Keyspace, setup: Setup, last: i64, states: &BTreeMap<i64, State>) {
    let prefixes: &[&str] = if setup.volatile { &DURABLE } else { &["a", "m", "x"] };
    assert_eq!(state_at(ks, 0, prefixes).unwrap(), only(&states[&last], prefixes), "at {last}");
    let middle = state_at(ks, 0, &["m"]).unwrap();
    assert!(middle.is_empty() && setup.volatile || middle == only(&states[&last], &["m"]));
    for revision in (last - 6).max(1)..=last {
        match state_at(ks, revision, prefixes) {
            Ok(found) => assert_eq!(found, only(&states[&revision], prefixes), "at {revision} of {last}"),
            Err(Error::Refused(Refusal::Compacted { revision: floor })) => assert!(floor > revision),
            Err(error) => panic!("{error}"),
        }
    }
    let leased: Vec<Bytes> = state_at(ks, 0, &["a"])
        .unwrap()
        .into_iter()
        .filter(|(_, live)| live.4 == LEASE)
        .map(|(key, _)| key.into())
        .collect();
    match ks.lease_time_to_live(LEASE, true) {
        Some(lease) => assert_eq!(lease.keys, leased),
        None => assert!(leased.is_empty()),
    }
}

#[derive(Debug, Default)]
struct Seen {
    crashes: u64,
    fallbacks: u64,
    spanning: u64,
    replayed: u64,
    dropped: u64,
    recovery_crashes: u64,
    emptied: u64,
    overflow: u64,
}

fn recover(
    disk: &SimDisk,
    setup: Setup,
    promised: &Promised,
    made: bool,
    states: &BTreeMap<i64, State>,
    seen: &mut Seen,
) {
    let mut driven =
        open(disk, setup, 1).unwrap_or_else(|error| panic!("a crash must not keep it from opening: {error}"));
    let report = driven.engine.report().clone();
    seen.fallbacks += u64::from(report.other_slot.is_some());
    seen.spanning += report.spanning_groups;
    seen.replayed += report.records;
    seen.dropped += u64::from(report.dropped.is_some());
    seen.emptied += report.emptied;
    let Ok(ks) = driven.engine.keyspace("ks") else {
        assert!(!made, "a keyspace that was created is there");
        return;
    };
    // Every step puts a key under x: the newest one is the last step that is there.
    let newest = state_at(&ks, 0, &DURABLE).unwrap().values().map(|live| live.2).max();
    let last = newest.unwrap_or(1);
    assert!(last <= promised.applied, "{last} was never applied");
    if setup.is_sync() {
        assert!(last >= promised.acknowledged, "{last} is there, {} was acknowledged", promised.acknowledged);
        assert!(last >= promised.shown, "{last} is there, {} was shown", promised.shown);
    }
    if setup.reserves() {
        assert!(ks.revision() >= promised.shown);
    } else {
        assert_eq!(ks.revision(), last);
    }
    if setup.face == Face::Replayed {
        assert_eq!(ks.applied_index() as i64, last - 1, "a boundary, with its applied index");
        assert!(ks.log_floor() <= ks.applied_index());
    }
    if ks.compact_revision() > 0 {
        assert!(ks.compact_revision() <= promised.compacted);
        assert!(state_at(&ks, ks.compact_revision() - 1, &["a"]).is_err());
    }
    check(&ks, setup, last, states);
    let report = driven.engine.verify(&mut |_| ()).unwrap();
    seen.overflow += report.extents;
    // It takes writes, at revisions that nobody saw.
    if setup.face == Face::Replayed {
        let mut again = Promised { applied: last, ..Promised::default() };
        let from = last as u64;
        driven.run(&ks, setup, from..=from + 2, &mut again, &mut Rng::new(5)).unwrap();
        check(&ks, setup, last + 3, states);
    } else {
        let put = ks.put(PutRequest::new("y", "1"));
        let revision = driven.finish(Box::pin(async { put.await.map(|put| put.revision) })).unwrap();
        assert!(revision > promised.shown && revision > last);
    }
    driven.jobs.run_until_idle(3000);
    drop(ks);
    driven.engine.close().unwrap();
    drop(driven.jobs);
    let driven = open(disk, setup, 2).unwrap();
    assert!(driven.engine.report().clean);
    let ks = driven.engine.keyspace("ks").unwrap();
    let last = if setup.face == Face::Replayed { last + 3 } else { last };
    let found = state_at(&ks, 0, &DURABLE).unwrap();
    assert_eq!(found, only(&states[&last], &DURABLE));
}

/// One run up to the `crash`th call; what it promised, and whether the keyspace was made.
fn run_to(crash: u64, setup: Setup, seed: u64) -> (SimDisk, Promised, bool) {
    let disk = SimDisk::new(seed);
    disk.create_dir("/data".as_ref()).unwrap();
    disk.crash_at(crash);
    let mut promised = Promised { applied: 1, ..Promised::default() };
    let mut made = false;
    let mut run = || -> Result<Option<()>> {
        let mut rng = Rng::new(seed);
        let mut driven = open(&disk, setup, seed)?;
        let ks = driven.engine.create_keyspace("ks", routes(setup))?;
        made = true;
        if setup.face == Face::Standalone {
            let pending = ks.lease_grant(LEASE, 1_000_000);
            if driven.finish(Box::pin(async { pending.await.map(|lease| lease.revision) })).is_none() {
                return Ok(None);
            }
        }
        if setup.face == Face::Replayed {
            // Index 0 is what no log has: the lease comes outside of it.
            let pending = ks.lease_grant(LEASE, 1_000_000);
            if driven.finish(Box::pin(async { pending.await.map(|lease| lease.revision) })).is_none() {
                return Ok(None);
            }
        }
        if driven.run(&ks, setup, 1..=STEPS, &mut promised, &mut rng).is_none() {
            return Ok(None);
        }
        drop(ks);
        driven.engine.close()?;
        drop(driven.jobs);
        promised.acknowledged = STEPS as i64 + 1;
        let mut driven = open(&disk, setup, seed + 1)?;
        let ks = driven.engine.keyspace("ks")?;
        let done = driven.run(&ks, setup, STEPS + 1..=STEPS + 12, &mut promised, &mut rng);
        // Time for the vacuum.
        for _ in 0..40 {
            driven.jobs.run_until_idle(1000);
            driven.jobs.advance(Duration::from_millis(100));
        }
        promised.vacuum_rounds = driven.engine.stats().vacuum_rounds;
        Ok(done)
    };
    match run() {
        Ok(_) => {}
        Err(Error::Storage(error) | Error::Unknown(error)) => assert!(is_crash(&error), "{error}"),
        Err(error) => panic!("{error}"),
    }
    (disk, promised, made)
}

fn every_call(setup: Setup, seed: u64) {
    let states = model();
    let mut seen = Seen::default();
    let (whole, promised, _) = run_to(u64::MAX, setup, seed);
    assert_eq!(promised.applied, STEPS as i64 + 13);
    assert!(promised.vacuum_rounds > 0, "{promised:?}");
    for call in 1..=whole.calls() {
        let (disk, promised, made) = run_to(call, setup, seed);
        assert!(disk.crashed());
        seen.crashes += 1;
        eprintln!("{setup:?}, seed {seed}, call {call} ({}), {promised:?}", disk.last_call());
        let mut recover = |disk: &SimDisk| recover(disk, setup, &promised, made, &states, &mut seen);
        for survive in [Survive::Nothing, Survive::All].into_iter().chain((0..8).map(Survive::Mix)) {
            recover(&disk.after_crash(survive));
        }
        // Killed first, then the power goes.
        let kill = disk.after_crash(Survive::All);
        recover(&kill.after_crash(Survive::Nothing));
        recover(&kill.after_crash(Survive::Mix(call)));
        // A crash while recovering from the crash, at a call that moves with `call`.
        let first = disk.after_crash(Survive::Mix(call));
        first.crash_at(1 + call % 29);
        if open(&first, setup, 3).is_err() {
            recover(&first.after_crash(Survive::Mix(call + 1)));
            recover(&first.after_crash(Survive::Nothing));
            seen.recovery_crashes += 1;
        }
    }
    println!("{setup:?}, seed {seed}: {seen:?}; {promised:?}");
    assert!(seen.fallbacks > 0 && seen.recovery_crashes > 0 && seen.overflow > 0, "{seen:?}");
    assert!(promised.reused > 0, "{promised:?}");
    if setup.is_sync() {
        assert!(
            seen.spanning > 0 && seen.replayed > 0 && seen.dropped > 0 && promised.recycled > 0,
            "{seen:?} {promised:?}"
        );
    }
    assert_eq!(seen.emptied > 0, setup.volatile);
}

const BATCH: Durability = Durability::Batch { interval: Duration::from_millis(20), limit: 5 };

#[test]
fn sync_survives_every_call() {
    every_call(Setup { durability: Durability::Sync, face: Face::Standalone, volatile: false }, 21);
}

#[test]
fn standalone_batch_survives_every_call() {
    every_call(Setup { durability: BATCH, face: Face::Standalone, volatile: false }, 22);
}

#[test]
fn replayed_batch_survives_every_call() {
    every_call(Setup { durability: BATCH, face: Face::Replayed, volatile: false }, 23);
}

#[test]
fn a_volatile_shard_survives_every_call() {
    every_call(Setup { durability: Durability::Sync, face: Face::Standalone, volatile: true }, 24);
}
