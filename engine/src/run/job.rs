//! What a background job is.

use crate::sync::{Condvar, Mutex};
use std::fmt::Debug;
use std::sync::Arc;
use std::task::{Wake, Waker};
use std::time::Duration;

/// A background state machine. Never blocks but in the one disk call a step may make.
pub trait Job: Send {
    /// A short name, for threads and logs: "journal", "checkpoint".
    fn name(&self) -> &'static str;
    /// True if nobody waits for its steps: threads for whom somebody waits go before its own.
    fn gives_way(&self) -> bool {
        false
    }
    /// Does one bounded piece of work. `now` is [`super::Clock::monotonic`].
    fn step(&mut self, now: Duration) -> Next;
    /// What wakes this job when it is [`Next::Idle`] or waits for [`Next::At`].
    fn signal(&self) -> Signal;
}

/// When a job wants to be stepped again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// At once.
    Again,
    /// When its signal is raised, or at this time at the latest.
    At(Duration),
    /// When its signal is raised.
    Idle,
    /// Never: the job has ended.
    Done,
}

/// A wake-up that is remembered until it is taken. Cloning gives another handle to the same one.
#[derive(Debug, Clone, Default)]
pub struct Signal {
    flag: Arc<Flag>,
}

#[derive(Debug, Default)]
struct Flag {
    raised: Mutex<bool>,
    changed: Condvar,
}

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        Signal { flag: self }.raise();
    }
}

impl Signal {
    /// Raises the signal; cheap if it is raised already.
    pub fn raise(&self) {
        let mut raised = self.flag.raised.lock();
        if !*raised {
            *raised = true;
            self.flag.changed.notify_all();
        }
    }

    /// Raises the signal: for a job that polls a ticket.
    pub fn waker(&self) -> Waker {
        Waker::from(Arc::clone(&self.flag))
    }

    /// Takes the signal down; true if it was raised.
    pub fn take(&self) -> bool {
        std::mem::take(&mut *self.flag.raised.lock())
    }

    /// Waits until raised or until `timeout` has passed, and takes it down.
    pub fn wait(&self, timeout: Option<Duration>) {
        let mut raised = self.flag.raised.lock();
        if !*raised {
            match timeout {
                Some(limit) => {
                    self.flag.changed.wait_for(&mut raised, limit);
                }
                None => self.flag.changed.wait(&mut raised),
            }
        }
        *raised = false;
    }
}
