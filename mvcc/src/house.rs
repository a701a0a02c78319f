//! Housekeeping: one background job for all keyspaces of an engine, which sweeps after compactions,
//! revokes leases past their deadline, and moves the lines of requests that wait for room. It sleeps
//! while there is nothing to do.

use crate::command::{self, LEASES_PER_CHECKPOINT};
use crate::core::{Core, Current};
use crate::error::Error;
use crate::options::{Face, Options};
use crate::reopen::{Retired, Shared};
use crate::write::NotNow;
use polybolt_engine::run::{Job, Next, Signal};
use polybolt_engine::store::Store;
use polybolt_engine::sync::atomic::Ordering;
use polybolt_engine::sync::{Mutex, RwLock};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// The open keyspaces by name.
pub(crate) type Table = RwLock<BTreeMap<String, Arc<Current>>>;

/// Leases past their deadline are looked for this often.
const EXPIRY_INTERVAL: Duration = Duration::from_millis(500);
/// Requests in line whose callers do not wait are tried this often.
const LINE_INTERVAL: Duration = Duration::from_millis(5);
/// Leases that one step revokes, and how long after it the next may: at most 8,000 a second (etcd: 1,000,
/// LSE-12), so that a wave of them leaves most of the writer to others.
const REVOKES_PER_STEP: usize = 32;
const REVOKE_INTERVAL: Duration = Duration::from_millis(4);

/// The least time between checkpoints of 1000 leases: 100 such entries a second (etcd: 1000, LSE-16).
const CHECKPOINT_PAUSE: Duration = Duration::from_millis(10);

/// The job.
pub(crate) struct Housekeeper {
    keyspaces: Arc<Table>,
    store: Arc<Store>,
    options: Arc<Options>,
    retired: Arc<Mutex<Vec<Retired>>>,
    work: Signal,
    /// Whose turn to sweep it is.
    turn: usize,
    expire_at: Duration,
    sweep_at: Duration,
    checkpoint_at: Duration,
}

impl Housekeeper {
    pub(crate) fn new(keyspaces: Arc<Table>, shared: Shared) -> Self {
        let Shared { store, options, retired, work, .. } = shared;
        work.raise();
        let at_once = Duration::ZERO;
        let (expire_at, sweep_at, checkpoint_at) = (at_once, at_once, at_once);
        Housekeeper { keyspaces, store, options, retired, work, turn: 0, expire_at, sweep_at, checkpoint_at }
    }

    fn open(&self) -> Vec<Arc<Core>> {
        let keyspaces = self.keyspaces.read();
        let open = |core: &Arc<Core>| !core.dropped.load(Ordering::Acquire) && !core.closed.load(Ordering::Acquire);
        keyspaces.values().map(|current| Arc::clone(&current.core())).filter(open).collect()
    }

    /// Drops one space that an install replaced, once nobody reads it or no pin can hold it any more; true
    /// if there are more.
    fn drop_retired(&self, now: Duration) -> bool {
        let mut retired = self.retired.lock();
        let unused = |old: &Retired| {
            Arc::strong_count(&old.core) == 1 || now.saturating_sub(old.since) > self.options.pin_age_max
        };
        if let Some(at) = retired.iter().position(unused) {
            let old = retired.remove(at);
            // Whoever reads it still is told that its pin was let go.
            old.core.pins.oldest(now, 0);
            // If that fails the next open drops it.
            drop(self.store.drop_space(old.core.id));
        }
        !retired.is_empty()
    }

    /// One step of one keyspace's sweep; when to go on, if there may be more.
    fn sweep(&mut self, cores: &[Arc<Core>], now: Duration) -> Option<Duration> {
        let due: Vec<&Arc<Core>> = cores.iter().filter(|core| core.sweep_at(now) == Some(now)).collect();
        if let Some(core) = due.get(self.turn % due.len().max(1)) {
            self.turn = self.turn.wrapping_add(1);
            let pause = match core.sweep_step(now) {
                Ok(pause) => pause,
                Err(_) => {
                    if let Some(failure) = core.store.failure() {
                        // It takes no more writes: whoever waits for a sweep is told.
                        core.swept.fail(failure);
                        return None;
                    }
                    core.sweep.lock().not_before = now + EXPIRY_INTERVAL;
                    Duration::ZERO
                }
            };
            self.sweep_at = now + pause;
        }
        Self::next_sweep(cores, now).map(|at| at.max(self.sweep_at))
    }

    fn next_sweep(cores: &[Arc<Core>], now: Duration) -> Option<Duration> {
        cores.iter().filter_map(|core| core.sweep_at(now)).min()
    }

    /// Revokes what is due; the next time to look.
    fn expire(cores: &[Arc<Core>], now: Duration) -> Option<Duration> {
        let mut next: Option<Duration> = None;
        let mut wave = false;
        for core in cores {
            let due = core.lessor.lock().due(now, REVOKES_PER_STEP);
            wave |= due.len() == REVOKES_PER_STEP;
            for id in due {
                let mut writer = core.writer.lock();
                // Renewed or revoked since.
                if !core.lessor.lock().is_expired(id, now) {
                    continue;
                }
                match command::revoke(core, &mut writer, id, None) {
                    Ok(_) => drop(core.counters.leases_expired.fetch_add(1, Ordering::Relaxed)),
                    Err(NotNow::Short(_) | NotNow::Refused(Error::Refused(_))) => {}
                    // A store that takes no more writes.
                    Err(NotNow::Refused(_)) => return None,
                }
            }
            if let Some(at) = core.lessor.lock().next_due() {
                next = Some(next.map_or(at, |next| next.min(at)));
            }
        }
        let interval = if wave { REVOKE_INTERVAL } else { EXPIRY_INTERVAL };
        next.map(|next| next.max(now + interval))
    }
}

/// Records what remains of long leases, of a bounded number of them; when to look again.
fn checkpoint_leases(cores: &[Arc<Core>], now: Duration) -> Option<Duration> {
    let mut next: Option<Duration> = None;
    for core in cores {
        let due = core.lessor.lock().next_checkpoint().is_some_and(|at| at <= now);
        if due {
            // The writer first: a renewal has to find it either recorded or on its way.
            let mut writer = core.writer.lock();
            let leases = core.lessor.lock().due_checkpoints(now, LEASES_PER_CHECKPOINT);
            match command::checkpoint(core, &mut writer, &leases, None) {
                Ok(()) | Err(NotNow::Short(_) | NotNow::Refused(Error::Refused(_))) => {}
                // A store that takes no more writes.
                Err(NotNow::Refused(_)) => return None,
            }
        }
        if let Some(at) = core.lessor.lock().next_checkpoint() {
            next = Some(next.map_or(at, |next| next.min(at)));
        }
    }
    next.map(|next| next.max(now + CHECKPOINT_PAUSE))
}

impl Job for Housekeeper {
    fn name(&self) -> &'static str {
        "housekeeping"
    }

    fn gives_way(&self) -> bool {
        true
    }

    fn step(&mut self, now: Duration) -> Next {
        let cores = self.open();
        let mut next: Option<Duration> = None;
        let mut wake = |at: Duration| next = Some(next.map_or(at, |next| next.min(at)));
        // Those whose callers do not wait have their turn too.
        for core in cores.iter().filter(|core| core.in_line.load(Ordering::Acquire) > 0) {
            if core.move_line().is_some() {
                wake(now + LINE_INTERVAL);
            }
        }
        if cores.iter().filter(|core| core.paces.take_changed()).count() > 0 {
            // A pause of the old pace is over.
            self.sweep_at = now;
        }
        let sweep =
            if now >= self.sweep_at { self.sweep(&cores, now) } else { Self::next_sweep(&cores, self.sweep_at) };
        if let Some(at) = sweep {
            wake(at);
        }
        if self.drop_retired(now) {
            wake(now + EXPIRY_INTERVAL);
        }
        if self.options.face == Face::Standalone {
            if now >= self.expire_at {
                if let Some(at) = Self::expire(&cores, now) {
                    self.expire_at = at.min(now + EXPIRY_INTERVAL);
                    wake(at);
                }
            } else {
                wake(self.expire_at);
            }
            if self.options.lease_checkpoint_interval.is_some() {
                if now >= self.checkpoint_at {
                    if let Some(at) = checkpoint_leases(&cores, now) {
                        self.checkpoint_at = at.min(now + EXPIRY_INTERVAL);
                        wake(at);
                    }
                } else {
                    wake(self.checkpoint_at);
                }
            }
        }
        next.map_or(Next::Idle, Next::At)
    }

    fn signal(&self) -> Signal {
        self.work.clone()
    }
}
