//! What a reader holds so that what it may touch stays.
//!
//! A long read pins a revision, never pages. The reader pins first and checks the floor after; the
//! sweep raises the compacted revision first and asks for the oldest pin after: so either the reader
//! sees the floor, or the sweep sees the pin. A pin past its limit holds nothing back any more.

use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// The pins of one keyspace.
#[derive(Debug, Default)]
pub(crate) struct Pins {
    held: Mutex<BTreeMap<(u64, u64), Duration>>,
    next: std::sync::atomic::AtomicU64,
}

/// Holds a revision back until dropped.
#[derive(Debug)]
pub(crate) struct Pin {
    pins: Arc<Pins>,
    key: (u64, u64),
}

impl Pins {
    /// Pins `revision` until `until` at the longest.
    pub(crate) fn pin(self: &Arc<Self>, revision: u64, until: Duration) -> Pin {
        let id = self.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.held.lock().insert((revision, id), until);
        Pin { pins: Arc::clone(self), key: (revision, id) }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.held.lock().len()
    }

    /// The oldest revision that a pin still holds at `now`. Pins past their limit are let go.
    pub(crate) fn oldest(&self, now: Duration) -> Option<u64> {
        let mut held = self.held.lock();
        held.retain(|_, until| *until > now);
        held.keys().next().map(|(revision, _)| *revision)
    }
}

impl Pin {
    /// True while it holds: once let go for its age, what it pinned may be gone.
    pub(crate) fn holds(&self) -> bool {
        self.pins.held.lock().contains_key(&self.key)
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.pins.held.lock().remove(&self.key);
    }
}
