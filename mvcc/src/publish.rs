//! The one place that moves `durable` and `visible`: then the hub, then (by the engine) tickets.
//!
//! The writer notes which position makes which revision durable; the journal tells when a position
//! is. Under `Batch` a revision is visible as soon as it is applied.

use crate::watch::Hub;
use polybolt_engine::run::Signal;
use polybolt_engine::sync::Mutex;
use polybolt_engine::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use polybolt_engine::{DurableListener, Position};
use std::collections::VecDeque;
use std::sync::Arc;

/// What readers may see.
#[derive(Debug)]
pub(crate) struct Publisher {
    /// Held by the writer from before a record is sealed until it is noted here, so that the journal
    /// cannot overtake the note.
    noted: Mutex<Notes>,
    visible: AtomicU64,
    compacted: AtomicI64,
    /// The lowest revision that each shard answers, apart from the compacted one.
    floors: Vec<AtomicI64>,
    /// How often a floor was raised, one above zero at an open included.
    raised: AtomicU64,
    /// True if visible is applied (`Batch`).
    at_once: bool,
    hub: Arc<Hub>,
    /// Raised when there is more to sweep.
    work: Signal,
}

#[derive(Debug, Default)]
struct Notes {
    waiting: VecDeque<Noted>,
    /// The newest position that was told durable.
    durable: Position,
}

/// What a position makes durable.
#[derive(Debug, Clone, Copy)]
struct Noted {
    position: Position,
    main: u64,
    compacted: i64,
    floor: Option<Floor>,
}

/// A shard and the lowest revision that it answers from now on.
pub(crate) type Floor = (usize, i64);

impl Publisher {
    pub(crate) fn new(
        (main, compacted, floors): (u64, i64, &[u64]),
        durable: Position,
        at_once: bool,
        hub: Arc<Hub>,
        work: Signal,
    ) -> Self {
        Publisher {
            noted: Mutex::new(Notes { durable, ..Notes::default() }),
            visible: AtomicU64::new(main),
            compacted: AtomicI64::new(compacted),
            floors: floors.iter().map(|floor| AtomicI64::new(floor.cast_signed())).collect(),
            raised: AtomicU64::new(u64::from(floors.iter().any(|floor| *floor > 0))),
            at_once,
            hub,
            work,
        }
    }

    /// The newest revision that anybody may see.
    pub(crate) fn visible(&self) -> u64 {
        self.visible.load(Ordering::Acquire)
    }

    /// The compacted revision that anybody may see, -1 if never.
    pub(crate) fn compacted(&self) -> i64 {
        self.compacted.load(Ordering::SeqCst)
    }

    /// The lowest revision that a shard answers, as far as anybody may know: the compacted one or its own.
    pub(crate) fn floor(&self, shard: usize) -> i64 {
        self.compacted().max(self.own_floor(shard))
    }

    /// A shard's own floor.
    pub(crate) fn own_floor(&self, shard: usize) -> i64 {
        self.floors[shard].load(Ordering::SeqCst)
    }

    /// How often a shard's own floor was raised.
    pub(crate) fn raised(&self) -> u64 {
        self.raised.load(Ordering::SeqCst)
    }

    /// Seals a batch with `seal`, which returns its position, and notes what that makes durable.
    pub(crate) fn seal(
        &self,
        main: u64,
        compacted: i64,
        floor: Option<Floor>,
        seal: impl FnOnce() -> Position,
    ) -> Position {
        let mut noted = self.noted.lock();
        let position = seal();
        if self.at_once {
            drop(noted);
            self.show(main, compacted, floor);
        } else {
            noted.waiting.push_back(Noted { position, main, compacted, floor });
            // What needs no record has the position of the one before it, which may be durable already.
            self.settle(&mut noted);
        }
        position
    }

    /// Shows what is durable. Under the lock: two journal groups may not publish in the other order.
    fn settle(&self, noted: &mut Notes) {
        let mut newest = None;
        while noted.waiting.front().is_some_and(|next| next.position <= noted.durable) {
            // Of what only rises the newest is enough.
            if let Some(Noted { main, compacted, floor: floor @ Some(_), .. }) = newest {
                self.show(main, compacted, floor);
            }
            newest = noted.waiting.pop_front();
        }
        if let Some(Noted { main, compacted, floor, .. }) = newest {
            self.show(main, compacted, floor);
        }
    }

    /// Leaves the hub to another. Requires: the keyspace's writer is held.
    pub(crate) fn retire(&self) {
        self.noted.lock().waiting.clear();
    }

    /// Shows what its keyspace is at, which another publisher has shown before.
    pub(crate) fn follow(&self, main: u64, compacted: i64, floors: &[u64]) {
        for (shard, floor) in floors.iter().enumerate().filter(|(_, floor)| **floor > 0) {
            self.show(main, compacted, Some((shard, floor.cast_signed())));
        }
        self.show(main, compacted, None);
    }

    fn show(&self, main: u64, compacted: i64, floor: Option<Floor>) {
        if let Some((shard, floor)) = floor {
            self.floors[shard].fetch_max(floor, Ordering::SeqCst);
            self.raised.fetch_add(1, Ordering::SeqCst);
            self.work.raise();
        }
        if self.compacted.fetch_max(compacted, Ordering::SeqCst) < compacted {
            self.work.raise();
        }
        self.visible.fetch_max(main, Ordering::AcqRel);
        self.hub.publish(main);
    }
}

impl DurableListener for Publisher {
    fn durable(&self, upto: Position) {
        let mut noted = self.noted.lock();
        noted.durable = noted.durable.max(upto);
        self.settle(&mut noted);
    }
}
