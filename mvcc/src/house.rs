//! Housekeeping: one background job for all keyspaces of an engine, which sweeps after compactions,
//! revokes leases past their deadline, and moves the lines of requests that wait for room. It sleeps
//! while there is nothing to do.

use crate::core::Core;
use crate::error::Error;
use crate::keyspace;
use crate::options::{Face, Options};
use crate::write::NotNow;
use parking_lot::RwLock;
use polybolt_engine::run::{Job, Next, Signal};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// The open keyspaces by name.
pub(crate) type Table = RwLock<BTreeMap<String, Arc<Core>>>;

/// Leases past their deadline are looked for this often.
const EXPIRY_INTERVAL: Duration = Duration::from_millis(500);
/// Requests in line whose callers do not wait are tried this often.
const LINE_INTERVAL: Duration = Duration::from_millis(5);
/// Leases that one step revokes, and how long after it the next may: at most 8,000 a second (etcd: 1,000,
/// LSE-12), so that a wave of them leaves most of the writer to others.
const REVOKES_PER_STEP: usize = 32;
const REVOKE_INTERVAL: Duration = Duration::from_millis(4);

/// The job.
pub(crate) struct Housekeeper {
    keyspaces: Arc<Table>,
    options: Arc<Options>,
    work: Signal,
    /// Whose turn to sweep it is.
    turn: usize,
    expire_at: Duration,
    sweep_at: Duration,
}

impl Housekeeper {
    pub(crate) fn new(keyspaces: Arc<Table>, options: Arc<Options>, work: Signal) -> Self {
        work.raise();
        Housekeeper { keyspaces, options, work, turn: 0, expire_at: Duration::ZERO, sweep_at: Duration::ZERO }
    }

    fn open(&self) -> Vec<Arc<Core>> {
        let keyspaces = self.keyspaces.read();
        let open = |core: &&Arc<Core>| !core.dropped.load(Ordering::Acquire) && !core.closed.load(Ordering::Acquire);
        keyspaces.values().filter(open).cloned().collect()
    }

    /// One step of one keyspace's sweep; true if there may be more.
    fn sweep(&mut self, cores: &[Arc<Core>], now: Duration) -> bool {
        let wanting: Vec<&Arc<Core>> = cores.iter().filter(|core| core.wants_sweep()).collect();
        let Some(core) = wanting.get(self.turn % wanting.len().max(1)) else {
            return false;
        };
        self.turn = self.turn.wrapping_add(1);
        match core.sweep_step(now) {
            Ok(more) => more || wanting.len() > 1,
            Err(_) => {
                // The store takes no more writes: whoever waits for a sweep is told.
                if let Some(failure) = core.store.failure() {
                    core.swept.fail(failure);
                }
                false
            }
        }
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
                match keyspace::revoke(core, &mut writer, id, None) {
                    Ok(_) | Err(NotNow::Short(_) | NotNow::Refused(Error::Refused(_))) => {}
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

impl Job for Housekeeper {
    fn name(&self) -> &'static str {
        "housekeeping"
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
        if now >= self.sweep_at {
            if self.sweep(&cores, now) {
                self.sweep_at = now + self.options.compaction_sleep_interval;
                wake(self.sweep_at);
            }
        } else if cores.iter().any(|core| core.wants_sweep()) {
            wake(self.sweep_at);
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
        }
        next.map_or(Next::Idle, Next::At)
    }

    fn signal(&self) -> Signal {
        self.work.clone()
    }
}
