//! Who does background work, and when.
//!
//! A background job is a [`Job`]: a state machine whose `step` is bounded and makes at most one
//! durability call. Production runs each job on a thread of its own ([`threads`]); tests step them
//! in a seeded order over a simulated clock (`seeded`), so that a run is a function of its seed.

pub mod clock;
pub mod job;
pub mod pacer;
pub mod ready;
#[cfg(any(test, feature = "sim"))]
pub mod seeded;
pub mod threads;

pub use clock::{Clock, ManualClock, SystemClock};
pub use job::{Job, Next, Signal};
pub use pacer::Pacer;
pub use ready::ReadyList;
#[cfg(any(test, feature = "sim"))]
pub use seeded::pause;
pub use threads::let_others_run;

/// A place where other threads may come in between; in a simulated run they do. Nothing otherwise.
#[cfg(not(any(test, feature = "sim")))]
#[inline(always)]
pub fn pause(_at: &'static str) -> bool {
    false
}

/// How many processors this process may use. Asking the system takes a dozen calls.
pub fn processors() -> usize {
    static PROCESSORS: std::sync::OnceLock<usize> = std::sync::OnceLock::new();
    *PROCESSORS.get_or_init(|| std::thread::available_parallelism().map_or(2, usize::from))
}
