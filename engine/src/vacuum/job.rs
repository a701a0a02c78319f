//! The vacuum that is always on: looks after each checkpoint for a file of which much is free, and moves its end
//! down at a bounded rate.
//!
//! A file is taken up when more than a share of it is free and left alone once less than half of that is, or
//! once a pass did not make it shorter. In between a file grows before it takes short holes; so neither starts the other.
//!
//! What is moved while a compaction goes over the file would be written once more for nothing. So a file that holds
//! less and less is waited for; what is written meanwhile goes to its low places all the same.
//!
//! While writers wait for room in the buffers it stands still, and what they write goes to long free runs: low places
//! are scattered, and on a disk where each write takes its time that cost two thirds of what it could take in.

use super::removed::Shortening;
use super::{Ends, PIECE_PAUSE, apply, collect, cut};
use crate::batch::AdmitError;
use crate::catalog::{Sizes, Space, Tree};
use crate::core::Core;
use crate::error::Error;
use crate::ids::{TreeId, UNIT_BYTES};
use crate::run::{Job, Next, Signal};
use crate::sync::atomic::Ordering;
use crate::ticket::Ticket;
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

/// How often files are looked at, at most.
const LOOK: Duration = Duration::from_secs(1);
/// How long a file is left alone that does not become shorter: a long read may keep what is free in it.
const REST: Duration = Duration::from_secs(30);
/// How often a file is looked at again that holds less and less.
const LESS_MAX: u32 = 60;
/// Less by one in so many units of the file.
const LESS_SHARE: u32 = 256;
/// How long it stands still once a writer had to wait for room in the buffers.
const BUSY: Duration = Duration::from_secs(3);
/// The longest pause between rounds.
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// How much slower it gets while more than half of the buffers is in use.
const SLOW_MAX: u32 = 32;

/// After so many rounds left out one is tried all the same.
const LEFT_OUT_MAX: u32 = 16;

/// Vacuums a store.
#[derive(Debug)]
pub struct VacuumJob {
    core: Arc<Core>,
    pass: Option<Pass>,
    /// When files are looked at again.
    look_at: Duration,
    /// Files that are left alone, until when.
    resting: BTreeMap<TreeId, Duration>,
    slow: u32,
    left_out: u32,
    busy_until: Duration,
    shortening: Shortening,
}

/// A file whose end is being moved.
#[derive(Debug)]
struct Pass {
    space: Arc<Space>,
    tree: Arc<Tree>,
    stage: Stage,
    /// Where the file ended before it was moved; None before the first time.
    end: Option<u32>,
    /// Units in use when it was looked at last.
    in_use: u32,
    /// How often it is looked at again, and when.
    looks: u32,
    not_before: Duration,
}

#[derive(Debug)]
enum Stage {
    /// Waits for so many checkpoints: what the first gives up is free after the second.
    Settle(u32, Option<Ticket>),
    /// Moves what lies at `target` or behind, from the key `from` on.
    Move { target: u32, from: Vec<u8> },
}

impl Job for VacuumJob {
    fn name(&self) -> &'static str {
        "vacuum"
    }

    fn gives_way(&self) -> bool {
        true
    }

    fn signal(&self) -> Signal {
        self.core.published.clone()
    }

    fn step(&mut self, now: Duration) -> Next {
        match self.core.poison.check() {
            Ok(()) => {}
            Err(Error::Closed) => return Next::Done,
            Err(_) => {
                self.end_pass();
                return Next::Idle;
            }
        }
        let next = self.vacuum(now);
        match (self.shortening.step(&self.core, now), next) {
            (Some(at), Next::Idle) => Next::At(at),
            (Some(at), Next::At(other)) => Next::At(at.min(other)),
            (_, next) => next,
        }
    }
}

impl VacuumJob {
    /// A step of its own.
    fn vacuum(&mut self, now: Duration) -> Next {
        if self.core.full.load(Ordering::Acquire) {
            // Whoever frees space goes first; the checkpoints look for room at the ends of files themselves.
            self.end_pass();
            return Next::At(now + LOOK);
        }
        if self.is_busy(now) {
            return Next::At(now + LOOK / 2);
        }
        match self.pass.take() {
            None => self.look(now),
            Some(pass) if pass.space.is_dropped() => {
                self.pass = Some(pass);
                self.end_pass();
                Next::Again
            }
            Some(mut pass) => match std::mem::replace(&mut pass.stage, Stage::Settle(0, None)) {
                Stage::Settle(left, ticket) => self.settle(now, pass, left, ticket),
                Stage::Move { target, from } => self.round(now, pass, target, from),
            },
        }
    }

    /// The job of a store.
    pub fn new(core: Arc<Core>) -> Self {
        let (pass, resting) = (None, BTreeMap::new());
        let (look_at, busy_until) = (Duration::ZERO, Duration::ZERO);
        VacuumJob { core, pass, look_at, resting, slow: 1, left_out: 0, busy_until, shortening: Shortening::default() }
    }

    /// True while writers wait for the disk: what they write lies together then, and nothing makes them wait longer.
    fn is_busy(&mut self, now: Duration) -> bool {
        let core = &self.core;
        if core.was_short.swap(false, Ordering::Relaxed) {
            self.busy_until = now + BUSY;
        }
        let busy = now < self.busy_until;
        if let Some(pass) = &self.pass {
            pass.tree.room.lock().is_moved = !busy;
        }
        busy
    }

    /// Takes up a file, if there is one that needs it.
    fn look(&mut self, now: Duration) -> Next {
        if now < self.look_at {
            return Next::At(self.look_at);
        }
        self.look_at = now + LOOK;
        self.resting.retain(|_, until| now < *until);
        let mut next = Next::Idle;
        for space in self.core.catalog.spaces() {
            for tree in space.trees.iter().filter(|tree| self.wants(tree)) {
                if let Some(until) = self.resting.get(&tree.id) {
                    next = match next {
                        Next::At(at) => Next::At(at.min(*until)),
                        _ => Next::At(*until),
                    };
                    continue;
                }
                let (space, tree) = (Arc::clone(&space), Arc::clone(tree));
                let room = tree.room.lock();
                let waits = if room.pending.units() > 0 { 2 } else { 0 };
                drop(room);
                let stage = Stage::Settle(waits, None);
                let (end, in_use, looks, not_before) = (None, u32::MAX, LESS_MAX, now);
                self.pass = Some(Pass { space, tree, stage, end, in_use, looks, not_before });
                return Next::Again;
            }
        }
        next
    }

    fn wants(&self, tree: &Tree) -> bool {
        let Sizes { all, unused, .. } = tree.sizes();
        let options = &self.core.options.vacuum;
        let much = unused * 100 > all * u64::from(options.free_percent);
        (much && unused * UNIT_BYTES as u64 >= options.free_bytes_min)
            || (unused > 0 && tree.published().root.ptr.is_none())
    }

    fn end_pass(&mut self) {
        if let Some(pass) = self.pass.take() {
            pass.tree.room.lock().is_moved = false;
            self.core.close_idle_files();
        }
    }

    /// Ends the pass, and leaves its file alone for a while.
    fn rest(&mut self, now: Duration, pass: Pass) -> Next {
        self.resting.insert(pass.tree.id, now + REST);
        self.pass = Some(pass);
        self.end_pass();
        Next::Again
    }

    fn settle(&mut self, now: Duration, mut pass: Pass, left: u32, ticket: Option<Ticket>) -> Next {
        if left == 0 && now < pass.not_before {
            let at = pass.not_before;
            self.pass = Some(pass);
            return Next::At(at);
        }
        if left == 0 {
            return self.aim(now, pass);
        }
        let mut ticket = ticket.unwrap_or_else(|| self.core.flush());
        let polled = Pin::new(&mut ticket).poll(&mut Context::from_waker(&self.core.published.waker()));
        let next = match polled {
            Poll::Pending => {
                pass.stage = Stage::Settle(left, Some(ticket));
                Next::Idle
            }
            Poll::Ready(Ok(())) => {
                pass.stage = Stage::Settle(left - 1, None);
                Next::Again
            }
            // The next step finds the failure.
            Poll::Ready(Err(_)) => Next::Again,
        };
        self.pass = Some(pass);
        next
    }

    /// Cuts the file, and moves on if there is enough left to move.
    fn aim(&mut self, now: Duration, mut pass: Pass) -> Next {
        let Ends { end, unused, is_cut, more } = match cut(&self.core, &pass.space, &pass.tree) {
            Ok(Some(ends)) => ends,
            Ok(None) | Err(Error::NoSpace { .. }) => return self.rest(now, pass),
            // It is its own matter (R4).
            Err(error) if pass.tree.is_volatile() => {
                pass.tree.set_failure(Some(error));
                return self.rest(now, pass);
            }
            Err(error) => {
                self.core.poison.set(&error);
                self.pass = Some(pass);
                return Next::Again;
            }
        };
        self.core.counters.vacuum_cuts.fetch_add(u64::from(is_cut && !more), Ordering::Relaxed);
        if more {
            // The stage is as it was: to look where the file ends.
            pass.not_before = now + PIECE_PAUSE;
            self.pass = Some(pass);
            return Next::At(now + PIECE_PAUSE);
        }
        let options = &self.core.options.vacuum;
        let (all, share) = (u64::from(end), u64::from(options.free_percent));
        let free = u64::from(unused);
        let enough = free * 200 <= all * share || free * UNIT_BYTES as u64 * 2 < options.free_bytes_min;
        let shorter = pass.end.is_none_or(|before| u64::from(before) > all + all / 64);
        if enough && !self.wants(&pass.tree) {
            self.pass = Some(pass);
            self.end_pass();
            return Next::Again;
        }
        if enough || !shorter {
            return self.rest(now, pass);
        }
        let before = std::mem::replace(&mut pass.in_use, end - unused);
        if pass.looks > 0 && pass.in_use < before.saturating_sub(end / LESS_SHARE) {
            (pass.looks, pass.not_before) = (pass.looks - 1, now + LOOK);
            self.pass = Some(pass);
            return Next::Again;
        }
        // Some of it stays free, for what is written meanwhile.
        let stays = all * share / 400;
        let target = u32::try_from(all - free + stays).unwrap_or(end).min(end);
        (pass.end, pass.stage) = (Some(end), Stage::Move { target, from: Vec::new() });
        self.pass = Some(pass);
        Next::Again
    }

    fn round(&mut self, now: Duration, mut pass: Pass, target: u32, from: Vec<u8>) -> Next {
        let core = &self.core;
        if core.buffered() > core.options.buffer_bytes / 2 && self.left_out < LEFT_OUT_MAX {
            pass.stage = Stage::Move { target, from };
            return self.leave_out(now, pass);
        }
        let Ok(round) = collect(&pass.tree, target, &from, core.options.vacuum.step_bytes) else {
            // Whoever reads there finds the damage and says so.
            return self.rest(now, pass);
        };
        let (moved, next) = (round.moved.max(round.read / super::READS), round.next.clone());
        if !round.is_empty() {
            let mut admission = match core.admit(round.cost(&pass.tree)) {
                Ok(admission) => admission,
                Err(AdmitError::Short(_)) => {
                    // That was nobody who waits.
                    core.was_short.store(false, Ordering::Relaxed);
                    pass.stage = Stage::Move { target, from };
                    return self.leave_out(now, pass);
                }
                Err(AdmitError::Refused(_)) => return self.rest(now, pass),
            };
            if !apply(core, &pass.space, &pass.tree, round, &mut admission) {
                pass.stage = Stage::Move { target, from };
                self.pass = Some(pass);
                return Next::Again;
            }
        }
        core.counters.vacuum_rounds.fetch_add(1, Ordering::Relaxed);
        pass.stage = match next {
            Some(from) => Stage::Move { target, from },
            None => Stage::Settle(2, None),
        };
        self.pass = Some(pass);
        let pause = self.pause(moved);
        (self.left_out, self.slow) = (0, (self.slow / 2).max(1));
        Next::At(now + pause)
    }

    /// Writers need the buffers: the next round is later.
    fn leave_out(&mut self, now: Duration, pass: Pass) -> Next {
        self.pass = Some(pass);
        self.left_out = (self.left_out + 1) % (LEFT_OUT_MAX + 1);
        self.slow = (self.slow * 2).min(SLOW_MAX);
        Next::At(now + self.pause(self.core.options.vacuum.step_bytes))
    }

    fn pause(&self, bytes: u64) -> Duration {
        let rate = self.core.options.vacuum.bytes_per_second.max(1);
        (Duration::from_micros(bytes.saturating_mul(1_000_000) / rate) * self.slow).min(PAUSE_MAX)
    }
}
