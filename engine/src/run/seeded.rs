//! The test runtime: jobs stepped in an order that a seed decides, over a clock moved by hand.

use super::{Clock, Job, ManualClock, Next};
use std::cell::RefCell;
use std::time::Duration;

/// What runs at a [`pause`] of this thread: is told where, and says whether it did anything.
pub type Meanwhile = Box<dyn FnMut(&'static str) -> bool>;

thread_local! {
    static MEANWHILE: RefCell<Option<Meanwhile>> = const { RefCell::new(None) };
}

/// Sets what runs at the pauses of this thread until this is called again.
pub fn meanwhile(run: Option<Meanwhile>) {
    MEANWHILE.with(|slot| *slot.borrow_mut() = run);
}

/// A place where, with threads, others may come in between: here what [`meanwhile`] set does. False if
/// nothing did. While it runs, pauses are none.
pub fn pause(at: &'static str) -> bool {
    let Some(mut run) = MEANWHILE.with(|slot| slot.borrow_mut().take()) else {
        return false;
    };
    let done = run(at);
    MEANWHILE.with(|slot| *slot.borrow_mut() = Some(run));
    done
}

/// A small pseudo-random generator (splitmix64): the same numbers for the same seed, everywhere.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    /// Begins a sequence.
    pub fn new(seed: u64) -> Self {
        Rng(seed ^ 0x9e37_79b9_7f4a_7c15)
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound` (0 for 0).
    pub fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.next_u64() % bound }
    }

    /// True in one of `n` cases.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// Jobs and what each is waiting for.
pub struct Seeded {
    jobs: Vec<(Box<dyn Job>, Next)>,
    clock: ManualClock,
    rng: Rng,
}

impl std::fmt::Debug for Seeded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<_> = self.jobs.iter().map(|(job, next)| (job.name(), *next)).collect();
        f.debug_struct("Seeded").field("jobs", &names).finish()
    }
}

impl Seeded {
    /// Runs `jobs` over `clock`.
    pub fn new(jobs: Vec<Box<dyn Job>>, clock: ManualClock, seed: u64) -> Self {
        Seeded { jobs: jobs.into_iter().map(|job| (job, Next::Again)).collect(), clock, rng: Rng::new(seed) }
    }

    /// Steps one job that has something to do; false if none has.
    pub fn step_one(&mut self) -> bool {
        let now = self.clock.monotonic();
        let ready: Vec<usize> = (0..self.jobs.len())
            .filter(|&at| {
                let (job, next) = &mut self.jobs[at];
                let signalled = *next != Next::Done && job.signal().take();
                if signalled {
                    *next = Next::Again;
                }
                matches!(*next, Next::Again) || matches!(*next, Next::At(at) if at <= now)
            })
            .collect();
        let Some(&chosen) = usize::try_from(self.rng.below(ready.len() as u64)).ok().and_then(|at| ready.get(at))
        else {
            return false;
        };
        let (job, next) = &mut self.jobs[chosen];
        *next = job.step(now);
        true
    }

    /// Steps until nothing has anything to do, or `limit` steps were made; true if idle.
    pub fn run_until_idle(&mut self, limit: usize) -> bool {
        (0..limit).any(|_| !self.step_one())
    }

    /// Steps a random number of times, at most `most`.
    pub fn run_some(&mut self, most: u64) {
        for _ in 0..self.rng.below(most + 1) {
            if !self.step_one() {
                return;
            }
        }
    }

    /// Moves time forward.
    pub fn advance(&mut self, by: Duration) {
        self.clock.advance(by);
    }
}
