//! Which of many were woken, for a task that polls them all: a wake-up costs what became ready, not what
//! could.

use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, Ordering};
use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::task::{Wake, Waker};

/// Those that were woken, in order, each once.
#[derive(Debug, Default)]
pub struct ReadyList {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Arc<Ready>>,
    task: Option<Waker>,
}

/// One of a list. Its waker puts it there.
#[derive(Debug)]
pub struct Ready {
    /// What it was added as.
    pub key: u64,
    queued: AtomicBool,
    list: Weak<ReadyList>,
}

impl ReadyList {
    /// Adds one, ready: polled once, it leaves its waker.
    pub fn add(self: &Arc<Self>, key: u64) {
        Arc::new(Ready { key, queued: AtomicBool::new(false), list: Arc::downgrade(self) }).wake();
    }

    /// Remembers whom to wake; before it looks at the list.
    pub fn set_waker(&self, waker: &Waker) {
        self.state.lock().task = Some(waker.clone());
    }

    /// How many are ready.
    pub fn len(&self) -> usize {
        self.state.lock().queue.len()
    }

    /// True if none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes the first. It has to be polled after that: it is listed again if it is woken from here on.
    pub fn pop(&self) -> Option<Arc<Ready>> {
        let ready = self.state.lock().queue.pop_front()?;
        ready.queued.swap(false, Ordering::AcqRel);
        Some(ready)
    }
}

impl Wake for Ready {
    fn wake(self: Arc<Self>) {
        if self.queued.swap(true, Ordering::AcqRel) {
            return;
        }
        let Some(list) = self.list.upgrade() else { return };
        let mut state = list.state.lock();
        state.queue.push_back(self);
        let task = state.task.take();
        drop(state);
        if let Some(task) = task {
            task.wake();
        }
    }
}
