//! A defragmentation comes into the middle of a sweep, and then the power goes: whichever step of the sweep that is,
//! nothing comes back.
#![expect(clippy::unwrap_used, reason = "tests")]

use polybolt::disk::Disk;
use polybolt::disk::sim::{SimDisk, Survive};
use polybolt::model::defect::{self, Defect};
use polybolt::run::ManualClock;
use polybolt::run::seeded::{Seeded, meanwhile};
use polybolt::{
    CompactionPace, DeleteRequest, Engine, Keyspace, Options, PutRequest, RangeRequest, Routes, Runtime, Span,
};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// After each step a sweep waits longer than anything else here.
const STEP: Duration = Duration::from_secs(3600);
/// Some of the keys are deleted, each of which is in another leaf than its tombstone.
const KEYS: usize = 400;
const GONE: [usize; 3] = [10, 150, 290];

struct Driven {
    engine: Engine,
    ks: Keyspace,
    jobs: Rc<RefCell<Seeded>>,
}

fn open(disk: &SimDisk) -> Driven {
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    let clock = ManualClock::default();
    let options = Options {
        compaction_pace: CompactionPace { batch_limit: 1, sleep_interval: STEP, budget_percent: None, deadline: None },
        reclaim_percent: 20,
        vacuum_bytes_per_second: 0,
        ..Options::default()
    };
    let runtime = Runtime { disk, clock: Arc::new(clock.clone()), threads: false };
    let engine = Engine::open_with("/data", options, runtime).unwrap();
    let jobs = Rc::new(RefCell::new(Seeded::new(engine.take_jobs(), clock, 1)));
    let ks = engine.keyspace("ks").or_else(|_| engine.create_keyspace("ks", Routes::single())).unwrap();
    Driven { engine, ks, jobs }
}

impl Driven {
    fn block<T>(&self, call: impl FnOnce() -> T) -> T {
        let jobs = Rc::clone(&self.jobs);
        meanwhile(Some(Box::new(move |at| {
            if at == "wait" && !jobs.borrow_mut().step_one() {
                jobs.borrow_mut().advance(Duration::from_millis(5));
            }
            at == "wait"
        })));
        let done = call();
        meanwhile(None);
        done
    }

    fn pass(&self, time: Duration) {
        self.jobs.borrow_mut().advance(time);
        self.jobs.borrow_mut().run_until_idle(10_000);
    }

    fn put(&self, keys: std::ops::Range<usize>) {
        let puts: Vec<_> =
            keys.map(|key| self.ks.put(PutRequest::new(format!("key-{key:05}"), vec![7; 400]))).collect();
        self.block(|| puts.into_iter().for_each(|put| drop(put.wait().unwrap())));
    }

    fn found(&self) -> BTreeSet<usize> {
        let all = self.ks.range(&RangeRequest::new(Span::prefix(""))).unwrap();
        all.kvs.iter().map(|kv| std::str::from_utf8(&kv.key[4..]).unwrap().parse().unwrap()).collect()
    }
}

/// What is there after a crash behind so many steps of a sweep and a defragmentation; with how many rows lingered
/// before, and how many were still to go.
fn after(steps: usize) -> (BTreeSet<usize>, u64, u64) {
    let disk = SimDisk::new(7);
    let driven = open(&disk);
    driven.put(0..KEYS);
    for key in GONE {
        let span = Span::key(format!("key-{key:05}"));
        drop(driven.block(|| driven.ks.delete_range(DeleteRequest { span, prev_kv: false }).wait().unwrap()));
    }
    driven.put(KEYS..2 * KEYS);
    driven.block(|| driven.engine.flush().unwrap());
    drop(driven.ks.compact(driven.ks.revision(), false));
    for _ in 0..steps {
        driven.pass(STEP);
    }
    let (lingering, left) = (driven.ks.stats().lingering, driven.ks.stats().sweep_left);
    driven.block(|| driven.ks.defragment().unwrap());
    let survived = disk.after_crash(Survive::Nothing);
    drop(driven);
    let driven = open(&survived);
    let found = driven.found();
    driven.engine.verify(&mut |_| ()).unwrap();
    (found, lingering, left)
}

#[test]
fn nothing_comes_back_of_what_is_on_its_way_out() {
    let live: BTreeSet<usize> = (0..2 * KEYS).filter(|key| !GONE.contains(key)).collect();
    let (mut between, mut wrong, mut last) = (0, 0, u64::MAX);
    for steps in 0..16 {
        let (found, lingering, left) = after(steps);
        assert_eq!(found, live, "after {steps} steps, {lingering} lingered and {left} were left");
        between += u64::from(lingering > 0 && left > 0);
        last = left;
        // A sweep that forgets what is on its way out is found by this.
        defect::switch(Some(Defect::ForgetWhatGoes));
        let found = after(steps).0;
        wrong += u64::from(GONE.iter().any(|key| found.contains(key)));
        defect::switch(None);
    }
    assert!(between > 0 && wrong > 0 && last == 0, "{between} in the middle of a sweep, {wrong} found, {last} left");
}
