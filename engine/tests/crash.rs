//! A store that is stopped at every disk call in turn.
//!
//! The workload applies batches 1, 2, 3, ... each of which touches three trees and whose contents
//! follow from its number, so the whole truth about a recovered store is one number: the last batch
//! it holds. That number may not be below what was acknowledged, nor above what was applied, and
//! every tree must hold exactly what the batches up to it left.
#![expect(clippy::unwrap_used, reason = "tests")]

use bytes::Bytes;
use polybolt_engine::disk::Disk;
use polybolt_engine::disk::sim::{SimDisk, Survive, is_crash};
use polybolt_engine::run::ManualClock;
use polybolt_engine::run::seeded::{Rng, Seeded};
use polybolt_engine::store::VacuumOptions;
use polybolt_engine::{
    AdmitError, Batch, Cost, Durability, Edit, Error, Replay, Replayed, Result, Runtime, SpaceInfo, SpaceSpec, Store,
    StoreOptions, Ticket, TreeClass, TreeEdit, TreeId, TreeSpec,
};
use std::future::Future;
use std::ops::Bound;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

const BATCHES: u64 = 44;
const KEPT: u64 = 12;
/// From this batch on only two are kept, so that files have an end to give back.
const FEW_FROM: u64 = 60;

/// The first batch of which something is there after this one.
fn first(batch: u64) -> u64 {
    let kept = if batch < FEW_FROM { KEPT } else { 2 };
    batch.saturating_sub(kept) + 1
}

fn body(batch: u64) -> Bytes {
    let len = if batch % 9 == 4 { 9_000 } else { 40 + (batch % 7) as usize * 60 };
    Bytes::from(vec![batch as u8; len])
}

fn edits(batch: u64, trees: &[TreeId]) -> Vec<TreeEdit> {
    let mut edits = Vec::new();
    for tree in trees {
        let put = Edit::Put { head: Bytes::from(batch.to_string()), body: body(batch) };
        edits.push(TreeEdit { tree: *tree, key: Bytes::copy_from_slice(&batch.to_be_bytes()), edit: put });
        for gone in first(batch - 1)..first(batch) {
            let key = Bytes::copy_from_slice(&gone.to_be_bytes());
            edits.push(TreeEdit { tree: *tree, key, edit: Edit::Remove });
        }
    }
    edits
}

fn number(state: &[u8]) -> u64 {
    u64::from_be_bytes(state.try_into().expect("eight bytes"))
}

struct Numbers;

impl Replay for Numbers {
    fn replay(&mut self, space: &SpaceInfo, state: &[u8], record: &[u8]) -> Result<Replayed> {
        let batch = number(&record[..8]);
        assert_eq!(number(state) + 1, batch, "records are replayed in order");
        let trees: Vec<TreeId> = space.trees.iter().map(|tree| tree.id).collect();
        Ok(Replayed { edits: edits(batch, &trees), state: Bytes::copy_from_slice(&record[..8]) })
    }

    fn settled(&mut self, _: &SpaceInfo, _: &[u8], _: bool) -> Result<Option<Bytes>> {
        Ok(None)
    }
}

#[derive(Clone, Copy, Debug)]
struct Setup {
    durability: Durability,
    volatile: bool,
}

fn options(setup: Setup) -> StoreOptions {
    StoreOptions {
        durability: setup.durability,
        buffer_bytes: 40_000,
        segment_bytes: 8192,
        journal_bytes: 48 << 10,
        checkpoint_interval: Duration::from_millis(40),
        space_reserve_bytes: 8192,
        vacuum: VacuumOptions { bytes_per_second: 1 << 20, step_bytes: 8192, free_percent: 10, free_bytes_min: 4096 },
        ..StoreOptions::new("/data/store")
    }
}

fn spec(setup: Setup) -> SpaceSpec {
    let class = |at: usize| {
        if setup.volatile && at == 2 { TreeClass::Volatile } else { TreeClass::Durable }
    };
    let tree = |at: usize| TreeSpec { page_bytes: 4096, class: class(at), ..TreeSpec::new(format!("t{at}")) };
    let state = Bytes::copy_from_slice(&0u64.to_be_bytes());
    SpaceSpec { name: "space".into(), config: Bytes::new(), state, trees: (0..3).map(tree).collect() }
}

/// A store with its jobs in the hands of a seed.
struct Driven {
    store: Store,
    jobs: Seeded,
}

fn open(disk: &SimDisk, setup: Setup, seed: u64) -> Result<Driven> {
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    let store = Store::open(disk, options(setup), Runtime::Manual, &mut Numbers)?;
    let jobs = Seeded::new(store.take_jobs(), ManualClock::default(), seed);
    Ok(Driven { store, jobs })
}

fn ready(ticket: &mut Ticket) -> Option<Result<()>> {
    match Pin::new(ticket).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(outcome) => Some(outcome),
        Poll::Pending => None,
    }
}

/// What the run may be held to.
#[derive(Default, Debug)]
struct Promised {
    applied: u64,
    acknowledged: u64,
    reused: u64,
    checkpoints: u64,
    vacuum_rounds: u64,
}

impl Driven {
    fn space(&self) -> SpaceInfo {
        self.store.spaces().remove(0)
    }

    /// Applies the next batch; None if the disk has stopped.
    fn apply_next(&mut self, info: &SpaceInfo, batch: u64) -> Option<Ticket> {
        let trees: Vec<TreeId> = info.trees.iter().map(|tree| tree.id).collect();
        let edits = edits(batch, &trees);
        let record: Vec<u8> = batch.to_be_bytes().into_iter().chain([7; 900]).collect();
        let cost = Cost {
            edit_bytes: edits.iter().map(|edit| (edit.key.len() + edit.edit.len()) as u64).sum(),
            edits: edits.len() as u64,
            record_bytes: record.len() as u64,
            ..Cost::default()
        };
        for _ in 0..10_000 {
            match self.store.admit(cost) {
                Ok(admission) => {
                    let state = batch.to_be_bytes().to_vec();
                    let mut batch = Batch { space: info.id, edits, record: record.into(), state };
                    let position = self.store.apply(admission, &mut batch);
                    return Some(self.store.ticket(position));
                }
                Err(AdmitError::Refused(error)) => {
                    assert!(is_crash(&error), "refused: {error}");
                    return None;
                }
                Err(AdmitError::Short(_)) => {
                    if !self.jobs.step_one() {
                        self.jobs.advance(Duration::from_millis(5));
                    }
                }
            }
        }
        panic!("room never came");
    }

    fn run(&mut self, info: &SpaceInfo, from: u64, to: u64, promised: &mut Promised, rng: &mut Rng) {
        let mut waiting: Vec<(u64, Ticket)> = Vec::new();
        for batch in from..=to {
            let Some(ticket) = self.apply_next(info, batch) else {
                break;
            };
            promised.applied = batch;
            waiting.push((batch, ticket));
            self.jobs.run_some(6);
            if rng.one_in(6) {
                self.jobs.advance(Duration::from_millis(rng.below(60)));
            }
            waiting.retain_mut(|(batch, ticket)| match ready(ticket) {
                Some(Ok(())) => {
                    promised.acknowledged = promised.acknowledged.max(*batch);
                    false
                }
                Some(Err(_)) => false,
                None => true,
            });
        }
        let stats = self.store.stats();
        promised.reused += stats.units_reused;
        promised.checkpoints += stats.checkpoints;
        promised.vacuum_rounds += stats.vacuum_rounds;
    }

    /// Lets the vacuum do what it finds.
    fn rest(&mut self, promised: &mut Promised) {
        let before = self.store.stats().vacuum_rounds;
        for _ in 0..60 {
            self.jobs.run_until_idle(1000);
            self.jobs.advance(Duration::from_millis(100));
        }
        promised.vacuum_rounds += self.store.stats().vacuum_rounds - before;
    }

    /// Exactly what the batches up to `last` left, in every tree.
    fn check(&self, info: &SpaceInfo, last: u64, setup: Setup) {
        for (at, tree) in info.trees.iter().enumerate() {
            let mut found = Vec::new();
            let mut scanned = 0;
            let count = &mut |_: &[u8], _: &[u8], _: u32| {
                scanned += 1;
                Ok(())
            };
            self.store.scan(tree.id, count).unwrap();
            let view = self.store.view(tree.id).unwrap();
            let collect = &mut |key: &[u8], head: &[u8], lazy: polybolt_engine::view::Lazy<'_>| {
                found.push((number(key), head.to_vec(), lazy.load()?));
                Ok(true)
            };
            view.ascend(Bound::Unbounded, collect).unwrap();
            let lost = setup.volatile && at == 2 && tree.emptied;
            let first = if lost { last + 1 } else { first(last) };
            let want: Vec<_> = (first..=last).map(|at| (at, at.to_string().into_bytes(), body(at))).collect();
            assert_eq!(found, want, "tree {at} after batch {last}");
            assert_eq!(scanned, want.len());
        }
        self.store.verify(&mut |_, _| ()).unwrap();
    }
}

#[derive(Default, Debug)]
struct Seen {
    crashes: u64,
    fallbacks: u64,
    spanning: u64,
    replayed: u64,
    dropped: u64,
    recovery_crashes: u64,
    /// Of vacuums: after a round was moved and before the file was cut, and in the cut.
    moved: u64,
    cuts: u64,
    /// The rounds before the last cut.
    rounds_cut: u64,
}

impl Seen {
    fn note_vacuum(&mut self, rounds: u64, stopped_in: &str) {
        if stopped_in.starts_with("truncate") && stopped_in.ends_with(".tree") {
            self.cuts += 1;
            self.rounds_cut = rounds;
        }
        self.moved += u64::from(rounds > self.rounds_cut);
    }
}

/// Opens what a crash left, checks it, writes on, and opens it once more.
fn recover(disk: &SimDisk, setup: Setup, promised: &Promised, made: bool, seen: &mut Seen) {
    let mut driven = match open(disk, setup, 1) {
        Ok(driven) => driven,
        Err(error) => panic!("a crash must not keep the store from opening: {error}"),
    };
    let report = driven.store.report().clone();
    seen.fallbacks += u64::from(report.other_slot.is_some());
    seen.spanning += report.spanning_groups;
    seen.replayed += report.records;
    seen.dropped += u64::from(report.dropped.is_some());
    if driven.store.spaces().is_empty() {
        assert!(!made, "a space that was created is there");
        return;
    }
    let info = driven.space();
    let last = number(&info.state);
    assert!(last >= promised.acknowledged, "batch {} was acknowledged, {last} is there", promised.acknowledged);
    assert!(last <= promised.applied, "batch {last} was never applied");
    driven.check(&info, last, setup);
    let emptied = info.trees.iter().any(|tree| tree.emptied);
    driven.run(&info, last + 1, last + 3, &mut Promised::default(), &mut Rng::new(5));
    assert!(driven.jobs.run_until_idle(10_000));
    driven.store.close().unwrap();
    drop(driven);
    let driven = open(disk, setup, 2).unwrap();
    let info = driven.space();
    assert!(driven.store.report().clean);
    assert_eq!(number(&info.state), last + 3);
    if !emptied {
        driven.check(&info, last + 3, setup);
    }
}

/// One run up to the `crash`th call; what it promised, and whether the space was made.
fn run_to(crash: u64, setup: Setup, seed: u64) -> (SimDisk, Promised, bool) {
    let disk = SimDisk::new(seed);
    disk.create_dir("/data".as_ref()).unwrap();
    disk.crash_at(crash);
    let mut promised = Promised::default();
    let mut made = false;
    let mut run = || -> Result<()> {
        let mut rng = Rng::new(seed);
        let mut driven = open(&disk, setup, seed)?;
        let info = driven.store.create_space(spec(setup))?;
        made = true;
        driven.run(&info, 1, BATCHES, &mut promised, &mut rng);
        // The rest on a store that was closed and opened.
        driven.store.close()?;
        drop(driven);
        promised.acknowledged = BATCHES;
        let mut driven = open(&disk, setup, seed + 1)?;
        let info = driven.space();
        driven.check(&info, BATCHES, setup);
        driven.run(&info, BATCHES + 1, BATCHES * 3 / 2, &mut promised, &mut rng);
        driven.rest(&mut promised);
        Ok(())
    };
    if let Err(error) = run() {
        assert!(is_crash(&error), "{error}");
    }
    (disk, promised, made)
}

fn at_call(call: u64, setup: Setup, seed: u64, seen: &mut Seen) {
    let (disk, promised, made) = run_to(call, setup, seed);
    assert!(disk.crashed());
    seen.crashes += 1;
    eprintln!("{setup:?}, seed {seed}, call {call} ({}), {promised:?}", disk.last_call());
    seen.note_vacuum(promised.vacuum_rounds, &disk.last_call());
    let kill = disk.after_crash(Survive::All);
    for survive in [Survive::Nothing, Survive::All].into_iter().chain((0..8).map(Survive::Mix)) {
        recover(&disk.after_crash(survive), setup, &promised, made, seen);
    }
    // Killed first, then the power goes while nothing has happened since.
    recover(&kill.after_crash(Survive::Nothing), setup, &promised, made, seen);
    recover(&kill.after_crash(Survive::Mix(call)), setup, &promised, made, seen);
    // A crash while recovering from the crash, at a call that moves with `call`.
    let first = disk.after_crash(Survive::Mix(call));
    first.crash_at(1 + call % 23);
    if open(&first, setup, 3).is_err() {
        seen.recovery_crashes += 1;
        recover(&first.after_crash(Survive::Mix(call + 1)), setup, &promised, made, seen);
        recover(&first.after_crash(Survive::Nothing), setup, &promised, made, seen);
    }
}

fn every_call(setup: Setup, seed: u64) {
    let mut seen = Seen::default();
    let (whole, promised, _) = run_to(u64::MAX, setup, seed);
    assert_eq!(promised.applied, BATCHES * 3 / 2);
    for call in 1..=whole.calls() {
        at_call(call, setup, seed, &mut seen);
    }
    println!("{setup:?}, seed {seed}: {seen:?}; {promised:?}");
    assert!(seen.moved > 0 && seen.cuts > 0, "{seen:?}");
    assert!(seen.fallbacks > 0 && seen.recovery_crashes > 0, "{seen:?}");
    assert!(promised.reused > 0 && promised.checkpoints > 4, "{promised:?}");
    if setup.durability == Durability::Sync {
        assert!(seen.spanning > 0 && seen.replayed > 0 && seen.dropped > 0, "{seen:?}");
    }
}

const SYNC: Durability = Durability::Sync;
const BATCH: Durability = Durability::Batch { interval: Duration::from_millis(20), limit: 5 };

#[test]
fn sync_survives_every_call() {
    every_call(Setup { durability: SYNC, volatile: false }, 11);
}

#[test]
fn batch_survives_every_call() {
    every_call(Setup { durability: BATCH, volatile: false }, 12);
}

#[test]
fn a_volatile_tree_is_whole_or_empty_and_never_harms_the_others() {
    every_call(Setup { durability: SYNC, volatile: true }, 13);
}

#[test]
fn a_dropped_space_stays_dropped() {
    let disk = SimDisk::new(1);
    disk.create_dir("/data".as_ref()).unwrap();
    let setup = Setup { durability: SYNC, volatile: false };
    let mut driven = open(&disk, setup, 1).unwrap();
    let info = driven.store.create_space(spec(setup)).unwrap();
    driven.run(&info, 1, 9, &mut Promised::default(), &mut Rng::new(1));
    driven.store.drop_space(info.id).unwrap();
    driven.jobs.run_until_idle(1000);
    drop(driven);
    let driven = open(&disk.after_crash(Survive::Nothing), setup, 1).unwrap();
    assert!(driven.store.spaces().is_empty());
    let again = driven.store.create_space(spec(setup)).unwrap();
    assert!(again.id > info.id);
    driven.check(&again, 0, setup);
}

#[test]
fn errors_name_themselves() {
    let error = Error::NotAStore { path: "/x".into(), why: "it holds y".into() };
    assert_eq!(error.to_string(), "/x is not a polybolt data directory: it holds y");
}

/// Found by the fuzz target `keyspace`: what a checkpoint had built and not yet published was called lost.
#[test]
fn a_store_is_sound_between_any_two_steps() {
    let disk = SimDisk::new(9);
    disk.create_dir("/data".as_ref()).unwrap();
    let setup = Setup { durability: SYNC, volatile: true };
    let mut driven = open(&disk, setup, 9).unwrap();
    let info = driven.store.create_space(spec(setup)).unwrap();
    for tree in &info.trees {
        driven.store.scan(tree.id, &mut |_, _, _| Ok(())).unwrap();
    }
    for batch in 1..=30 {
        drop(driven.apply_next(&info, batch).unwrap());
        while driven.jobs.step_one() {
            driven.store.verify(&mut |_, _| ()).unwrap();
        }
        driven.jobs.advance(Duration::from_millis(30));
    }
    assert!(driven.store.stats().checkpoints > 5);
}

/// Found by `everything_at_once` of the crate above: a checkpoint met the files of a space that was
/// dropped while it was under way, and took no more writes.
#[test]
fn a_space_may_be_dropped_at_any_moment_of_a_checkpoint() {
    let mut dropped_in_between = 0;
    for steps in 0..40 {
        let disk = SimDisk::new(steps);
        disk.create_dir("/data".as_ref()).unwrap();
        let setup = Setup { durability: SYNC, volatile: false };
        let mut driven = open(&disk, setup, steps).unwrap();
        let kept = driven.store.create_space(spec(setup)).unwrap();
        let dropped = driven.store.create_space(SpaceSpec { name: "other".into(), ..spec(setup) }).unwrap();
        for batch in 1..=6 {
            drop(driven.apply_next(&kept, batch).unwrap());
            drop(driven.apply_next(&dropped, batch).unwrap());
        }
        let mut flushed = driven.store.flush();
        for _ in 0..steps {
            driven.jobs.step_one();
        }
        dropped_in_between += u64::from(ready(&mut flushed).is_none());
        driven.store.drop_space(dropped.id).unwrap();
        assert!(driven.jobs.run_until_idle(1000));
        assert!(driven.store.failure().is_none(), "after {steps} steps: {:?}", driven.store.failure());
        drop(driven.apply_next(&kept, 7).unwrap());
        driven.store.close().unwrap();
        drop(driven);
        let driven = open(&disk, setup, 1).unwrap();
        assert_eq!(driven.store.spaces().len(), 1);
        driven.check(&kept, 7, setup);
    }
    assert!(dropped_in_between > 10, "{dropped_in_between}");
}
