//! What a background job is.

use parking_lot::{Condvar, Mutex};
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

/// A background state machine. Never blocks but in the one disk call a step may make.
pub trait Job: Send {
    /// A short name, for threads and logs: "journal", "checkpoint".
    fn name(&self) -> &'static str;
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
    inner: Arc<(Mutex<bool>, Condvar)>,
}

impl Signal {
    /// Raises the signal; cheap if it is raised already.
    pub fn raise(&self) {
        let mut raised = self.inner.0.lock();
        if !*raised {
            *raised = true;
            self.inner.1.notify_all();
        }
    }

    /// Takes the signal down; true if it was raised.
    pub fn take(&self) -> bool {
        std::mem::take(&mut *self.inner.0.lock())
    }

    /// Waits until raised or until `timeout` has passed, and takes it down.
    pub fn wait(&self, timeout: Option<Duration>) {
        let mut raised = self.inner.0.lock();
        if !*raised {
            match timeout {
                Some(limit) => {
                    self.inner.1.wait_for(&mut raised, limit);
                }
                None => self.inner.1.wait(&mut raised),
            }
        }
        *raised = false;
    }
}
