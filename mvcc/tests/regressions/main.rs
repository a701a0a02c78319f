//! One small test for each bug that the simulation found, so that it stays fixed whatever the simulation
//! draws. What was wrong is said above each.
#![expect(clippy::unwrap_used, reason = "tests")]

mod reads;
mod restarts;
mod room;

use polybolt::disk::Disk;
use polybolt::disk::sim::{Fault, Fired, ReadFault, SimDisk, Survive};
use polybolt::run::seeded::{Seeded, meanwhile};
use polybolt::run::{Clock, ManualClock};
use polybolt::{
    Command, CompactionPace, DeleteRequest, Durability, Engine, Entry, Error, Face, Keyspace, Older, Op, Options,
    Place, PutRequest, RangeRequest, Refusal, Result, Routes, Runtime, Span, TxnRequest,
};
use polybolt_engine::manifest::{SLOT_NAMES, Slots};
use std::cell::RefCell;
use std::future::Future;
use std::path::Path;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

pub(crate) const DIR: &str = "/data/store";
pub(crate) const BATCH: Durability = Durability::Batch { interval: Duration::from_millis(10), limit: 4 };

/// An engine whose jobs run when its caller waits.
pub(crate) struct Driven {
    pub(crate) engine: Engine,
    pub(crate) jobs: Rc<RefCell<Seeded>>,
    pub(crate) clock: ManualClock,
}

pub(crate) fn options() -> Options {
    Options {
        buffer_bytes: 60_000,
        segment_bytes: 4096,
        journal_bytes: 32 << 10,
        checkpoint_interval: Duration::from_millis(20),
        space_reserve_bytes: 16 << 10,
        admission_timeout: Duration::from_secs(2),
        scrub_bytes_per_second: 0,
        ..Options::default()
    }
}

pub(crate) fn new_disk(seed: u64) -> SimDisk {
    let disk = SimDisk::new(seed);
    disk.create_dir("/data".as_ref()).unwrap();
    disk
}

pub(crate) fn open(disk: &SimDisk, options: Options) -> Result<Driven> {
    let clock = ManualClock::default();
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    let runtime = Runtime { disk: shared, clock: Arc::new(clock.clone()), threads: false };
    let engine = Engine::open_with(DIR, options, runtime)?;
    let jobs = Rc::new(RefCell::new(Seeded::new(engine.take_jobs(), clock.clone(), 1)));
    Ok(Driven { engine, jobs, clock })
}

impl Driven {
    pub(crate) fn finish<T>(&self, answer: impl Future<Output = T>) -> T {
        let mut answer = pin!(answer);
        for _ in 0..20_000 {
            match answer.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(done) => return done,
                Poll::Pending => self.step(),
            }
        }
        panic!("no answer came");
    }

    pub(crate) fn step(&self) {
        if !self.jobs.borrow_mut().step_one() {
            self.clock.advance(Duration::from_millis(5));
        }
    }

    /// Runs jobs for so long.
    pub(crate) fn pass(&self, time: Duration) {
        let until = self.clock.monotonic() + time;
        for _ in 0..300_000 {
            if self.clock.monotonic() >= until {
                return;
            }
            self.step();
        }
        panic!("there is always something to do: {:?}", self.jobs);
    }

    /// Runs a call that blocks, with jobs while it waits.
    pub(crate) fn block<T>(&self, call: impl FnOnce() -> T) -> T {
        let (jobs, clock) = (Rc::clone(&self.jobs), self.clock.clone());
        meanwhile(Some(Box::new(move |at| {
            let waits = at == "wait";
            if waits && !jobs.borrow_mut().step_one() {
                clock.advance(Duration::from_millis(5));
            }
            waits
        })));
        let done = call();
        meanwhile(None);
        done
    }

    pub(crate) fn put(&self, ks: &Keyspace, key: &str, value: Vec<u8>) -> Result<i64> {
        self.finish(ks.put(PutRequest::new(key.to_owned(), value))).map(|done| done.revision)
    }

    pub(crate) fn fill(&self, ks: &Keyspace, key: &str, bytes: usize) {
        self.put(ks, key, vec![1; bytes]).unwrap();
    }
}

/// Runs `call` with `other` in between, once, when it pauses at `place`.
pub(crate) fn with_other_at<T>(place: &'static str, other: impl FnOnce() + 'static, call: impl FnOnce() -> T) -> T {
    let mut other = Some(other);
    meanwhile(Some(Box::new(move |at| {
        let now = if at == place { other.take() } else { None };
        let runs = now.is_some();
        if let Some(other) = now {
            other();
        }
        runs
    })));
    let done = call();
    meanwhile(None);
    done
}

pub(crate) fn everything() -> RangeRequest {
    RangeRequest::new(Span::prefix(""))
}

pub(crate) fn keys(ks: &Keyspace) -> Vec<String> {
    let kvs = ks.range(&everything()).unwrap().kvs;
    kvs.iter().map(|kv| String::from_utf8_lossy(&kv.key).into_owned()).collect()
}

pub(crate) fn is_compacted<T>(result: &Result<T>) -> bool {
    matches!(result, Err(Error::Refused(Refusal::Compacted { .. })))
}

pub(crate) fn volatile() -> Routes {
    Routes::parse("low=a,mid:volatile=m").unwrap()
}

/// Flips a bit of the newest slot of the manifest.
pub(crate) fn rot(disk: &SimDisk) {
    let [a, b] = [0, 1].map(|slot| Slots::read(disk, Path::new(DIR), slot).unwrap().sequence);
    assert!(disk.flip_bit(&Path::new(DIR).join(SLOT_NAMES[usize::from(b > a)]), 100, 3));
}
