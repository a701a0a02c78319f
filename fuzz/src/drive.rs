//! An engine on a simulated disk: its jobs run while somebody waits, and at no other time.

use polybolt::disk::Disk;
use polybolt::disk::sim::SimDisk;
use polybolt::run::ManualClock;
use polybolt::run::seeded::{Seeded, meanwhile};
use polybolt::{Engine, Options, Result, Runtime};
use std::cell::RefCell;
use std::future::Future;
use std::path::Path;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// Where stores are.
pub const STORE: &str = "/data/store";
/// Steps after which nobody may wait any more.
const STEPS_MAX: usize = 50_000;

/// Small bounds, so that little data reaches every part.
pub fn options() -> Options {
    Options {
        buffer_bytes: 60_000,
        segment_bytes: 8192,
        journal_bytes: 96 << 10,
        space_reserve_bytes: 8192,
        checkpoint_interval: Duration::from_millis(80),
        compaction_pace: polybolt::CompactionPace {
            batch_limit: 20,
            sleep_interval: Duration::from_millis(1),
            ..Default::default()
        },
        reserve_ahead: 50,
        hash_index_from: 4,
        ..Options::default()
    }
}

/// An empty disk.
pub fn disk() -> SimDisk {
    let disk = SimDisk::new(1);
    disk.create_dir("/data".as_ref()).expect("an empty disk takes a directory");
    disk
}

/// An open engine and its jobs.
pub struct Driven {
    pub engine: Engine,
    jobs: Rc<RefCell<Seeded>>,
}

impl Driven {
    pub fn open(disk: &SimDisk, path: impl AsRef<Path>, options: Options, seed: u64) -> Result<Driven> {
        let clock = ManualClock::default();
        let disk: Arc<dyn Disk> = Arc::new(disk.clone());
        let runtime = Runtime { disk, clock: Arc::new(clock.clone()), threads: false };
        let engine = Engine::open_with(path, options, runtime)?;
        let jobs = Rc::new(RefCell::new(Seeded::new(engine.take_jobs(), clock, seed)));
        Ok(Driven { engine, jobs })
    }

    /// Steps one job; if none has anything to do, some time passes.
    pub fn step(&self) {
        let mut jobs = self.jobs.borrow_mut();
        if !jobs.step_one() {
            jobs.advance(Duration::from_millis(5));
        }
    }

    /// Jobs, and time.
    pub fn run(&self, steps: u64, by: Duration) {
        let mut jobs = self.jobs.borrow_mut();
        jobs.run_some(steps);
        jobs.advance(by);
    }

    /// Runs jobs until an answer comes.
    pub fn finish<T>(&self, answer: impl Future<Output = T>) -> T {
        let mut answer = pin!(answer);
        for _ in 0..STEPS_MAX {
            match answer.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(done) => return done,
                Poll::Pending => self.step(),
            }
        }
        panic!("no answer came");
    }

    /// Runs `call`, which blocks, with the jobs at its waits.
    pub fn blocking<T>(&self, call: impl FnOnce() -> T) -> T {
        let (jobs, mut steps) = (Rc::clone(&self.jobs), 0);
        meanwhile(Some(Box::new(move |at| {
            if at != "wait" {
                return false;
            }
            steps += 1;
            assert!(steps < STEPS_MAX, "a call waits for ever");
            let mut jobs = jobs.borrow_mut();
            if !jobs.step_one() {
                jobs.advance(Duration::from_millis(5));
            }
            true
        })));
        let done = call();
        meanwhile(None);
        done
    }

    pub fn close(self) -> Result<()> {
        self.engine.clone().close()
    }
}
