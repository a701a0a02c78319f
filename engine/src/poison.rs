//! After a failed write or sync nothing can be promised any more: the first failure stays, every
//! later write is refused with it, and whoever waits for durability is told.

use crate::error::{Error, Result};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::ticket::Watermark;
use std::sync::Arc;

/// The first failure of a store, if there was one.
#[derive(Debug, Default)]
pub struct Poison {
    // Fast path; set after `cause`.
    set: AtomicBool,
    cause: Mutex<Option<Error>>,
    marks: Mutex<Vec<Arc<Watermark>>>,
}

impl Poison {
    /// Fails `mark` too, when the time comes.
    pub fn watch(&self, mark: &Arc<Watermark>) {
        self.marks.lock().push(Arc::clone(mark));
    }

    /// Records a failure; only the first counts.
    pub fn set(&self, error: &Error) {
        let poisoned = {
            let mut cause = self.cause.lock();
            if cause.is_none() {
                *cause = Some(match error {
                    Error::Poisoned { .. } | Error::Closed => error.clone(),
                    other => Error::Poisoned { cause: other.to_string().into() },
                });
            }
            self.set.store(true, Ordering::Release);
            cause.clone().expect("it was just set")
        };
        for mark in self.marks.lock().iter() {
            mark.fail(poisoned.clone());
        }
    }

    /// Fails once poisoned.
    pub fn check(&self) -> Result<()> {
        if !self.set.load(Ordering::Acquire) {
            return Ok(());
        }
        self.cause.lock().clone().map_or(Ok(()), Err)
    }
}
