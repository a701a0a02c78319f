//! What a reader holds so that what it may touch stays.
//!
//! A long read pins a revision, never pages. The reader pins first and checks the floor after; the
//! sweep raises the compacted revision first and asks for the oldest pin after: so either the reader
//! sees the floor, or the sweep sees the pin. A pin past its limit, by age or by what it holds back,
//! holds nothing back any more.

use polybolt_engine::sync::Mutex;
use polybolt_engine::sync::atomic::{AtomicU64, Ordering};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// The pins of one keyspace.
#[derive(Debug, Default)]
pub(crate) struct Pins {
    /// By revision and a number of its own: since when, and until when at the longest.
    held: Mutex<BTreeMap<(u64, u64), (Duration, Duration)>>,
    next: AtomicU64,
    let_go: AtomicU64,
}

/// Holds a revision back until dropped.
#[derive(Debug)]
pub(crate) struct Pin {
    pins: Arc<Pins>,
    key: (u64, u64),
}

impl Pins {
    /// Pins `revision` from `now` on, for `age_max` at the longest.
    pub(crate) fn pin(self: &Arc<Self>, revision: u64, now: Duration, age_max: Duration) -> Pin {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.held.lock().insert((revision, id), (now, now.saturating_add(age_max)));
        Pin { pins: Arc::clone(self), key: (revision, id) }
    }

    /// How many there are, the oldest revision, and since when the oldest has been there.
    pub(crate) fn state(&self) -> (usize, Option<u64>, Option<Duration>) {
        let held = self.held.lock();
        let since = held.values().map(|(since, _)| *since).min();
        (held.len(), held.keys().next().map(|(revision, _)| *revision), since)
    }

    /// How many were let go.
    pub(crate) fn let_go(&self) -> u64 {
        self.let_go.load(Ordering::Relaxed)
    }

    /// The oldest revision that a pin still holds at `now`. Pins past their limit, or below `lowest`, are
    /// let go.
    pub(crate) fn oldest(&self, now: Duration, lowest: u64) -> Option<u64> {
        let mut held = self.held.lock();
        let before = held.len();
        held.retain(|(revision, _), (_, until)| *until > now && *revision >= lowest);
        self.let_go.fetch_add((before - held.len()) as u64, Ordering::Relaxed);
        held.keys().next().map(|(revision, _)| *revision)
    }
}

impl Pin {
    /// True while it holds: once let go, what it pinned may be gone.
    pub(crate) fn holds(&self) -> bool {
        self.pins.held.lock().contains_key(&self.key)
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.pins.held.lock().remove(&self.key);
    }
}
