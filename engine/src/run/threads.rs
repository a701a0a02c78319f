//! The production runtime: one thread per job.

use super::{Clock, Job, Next, Signal};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::thread::{self, JoinHandle};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// A job's thread. Dropping it stops the job after its current step and joins the thread.
#[derive(Debug)]
pub struct Worker {
    stop: Arc<AtomicBool>,
    signal: Signal,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Runs `job` on a thread of its own. If a step panics, `on_panic` is called with the message
    /// and the job is not stepped again.
    pub fn spawn(mut job: Box<dyn Job>, clock: Arc<dyn Clock>, on_panic: Box<dyn Fn(&str) + Send>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let signal = job.signal();
        let (stopped, wake) = (Arc::clone(&stop), signal.clone());
        let (name, gives_way) = (job.name(), job.gives_way());
        let run = move || {
            if gives_way {
                give_way();
            }
            while !stopped.load(Ordering::Acquire) {
                let now = clock.monotonic();
                match catch_unwind(AssertUnwindSafe(|| job.step(now))) {
                    Ok(Next::Again) => {}
                    Ok(Next::At(at)) => wake.wait(Some(at.saturating_sub(clock.monotonic()))),
                    Ok(Next::Idle) => wake.wait(None),
                    Ok(Next::Done) => return,
                    Err(panic) => {
                        let text = panic.downcast_ref::<String>().map(String::as_str);
                        on_panic(text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a job panicked"));
                        return;
                    }
                }
            }
        };
        let thread = thread::Builder::new().name(format!("polybolt-{name}")).spawn(run);
        Worker { stop, signal, thread: thread.ok() }
    }

    /// True if the thread could be started.
    pub fn is_running(&self) -> bool {
        self.thread.is_some()
    }
}

/// How much this thread gives way, as `nice` counts: a third of the share of the others where processors are short.
#[cfg(all(target_os = "linux", not(any(feature = "loom", feature = "shuttle"))))]
const NICE: i32 = 5;

/// Lowers the priority of this thread. Where the system does not let it, it stays as it is.
#[cfg(all(target_os = "linux", not(any(feature = "loom", feature = "shuttle"))))]
fn give_way() {
    let this = rustix::thread::gettid();
    if let Ok(nice) = rustix::process::getpriority_process(Some(this)) {
        rustix::process::setpriority_process(Some(this), nice + NICE).ok();
    }
}

#[cfg(not(all(target_os = "linux", not(any(feature = "loom", feature = "shuttle")))))]
fn give_way() {}

#[cfg(test)]
std::thread_local! {
    static OTHERS_RAN: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
}

/// How often this thread has let others run.
#[cfg(test)]
pub fn others_ran() -> u32 {
    OTHERS_RAN.get()
}

/// Lets whoever waits for this processor have it. Nothing in a model of threads, where this is no step of its own.
pub fn let_others_run() {
    #[cfg(test)]
    OTHERS_RAN.set(OTHERS_RAN.get() + 1);
    #[cfg(not(any(feature = "loom", feature = "shuttle")))]
    thread::yield_now();
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.signal.raise();
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != thread::current().id()
        {
            // A panic in the job was reported by on_panic.
            drop(thread.join());
        }
    }
}
