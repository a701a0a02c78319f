//! What a keyspace counts while it works, for whoever shows it: moved with one atomic, read at any time.

use polybolt_engine::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How many kinds of durations [`Timings`] tells apart.
pub const TIMING_BOUNDS: usize = 17;
/// The bound of the shortest kind; each of the others is twice the one before, up to 8.192 s.
const SHORTEST: Duration = Duration::from_micros(125);

/// Counts durations by length.
#[derive(Debug, Default)]
pub struct Timings {
    counts: [AtomicU64; TIMING_BOUNDS + 1],
    nanos: AtomicU64,
}

/// How often what took how long.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TimingStats {
    /// How many there were that took no longer than [`TimingStats::bound`] but longer than the one before; last,
    /// those longer than all bounds.
    pub counts: [u64; TIMING_BOUNDS + 1],
    /// All of them together.
    pub total: Duration,
}

impl Timings {
    /// Counts one.
    pub fn add(&self, duration: Duration) {
        let kind = (0..TIMING_BOUNDS).find(|kind| duration <= TimingStats::bound(*kind)).unwrap_or(TIMING_BOUNDS);
        self.counts[kind].fetch_add(1, Ordering::Relaxed);
        self.nanos.fetch_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// The counts now.
    pub fn stats(&self) -> TimingStats {
        let counts = std::array::from_fn(|kind| self.counts[kind].load(Ordering::Relaxed));
        TimingStats { counts, total: Duration::from_nanos(self.nanos.load(Ordering::Relaxed)) }
    }
}

impl TimingStats {
    /// The bound of a kind below [`TIMING_BOUNDS`].
    pub fn bound(kind: usize) -> Duration {
        SHORTEST * (1 << kind)
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

/// Counters of a keyspace since it was opened or installed.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Bytes of requests that wait for room; not counted but set.
    pub(crate) line_bytes: AtomicU64,
    pub(crate) put_bytes: AtomicU64,
    pub(crate) leases_revoked: AtomicU64,
    pub(crate) leases_expired: AtomicU64,
    pub(crate) swept: AtomicU64,
    /// What had been swept when the round under way began, and when that was, in milliseconds since the engine's
    /// clock began; 0 while there is none.
    pub(crate) swept_before: AtomicU64,
    pub(crate) sweep_began: AtomicU64,
    /// Revisions that are out of their index and not yet out of their tree; not counted but set.
    pub(crate) taken: AtomicU64,
    /// Seconds since the Unix epoch; 0 is never.
    pub(crate) sweep_ended: AtomicU64,
    pub(crate) sweeps: Timings,
    pub(crate) index_steps: Timings,
    pub(crate) tree_steps: Timings,
}

impl Counters {
    /// What is known here.
    pub(crate) fn stats(&self) -> KeyspaceStats {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        KeyspaceStats {
            waiting_bytes: count(&self.line_bytes),
            put_bytes: count(&self.put_bytes),
            leases_revoked: count(&self.leases_revoked),
            leases_expired: count(&self.leases_expired),
            swept: count(&self.swept),
            sweep_ended: count(&self.sweep_ended),
            sweeps: self.sweeps.stats(),
            index_steps: self.index_steps.stats(),
            tree_steps: self.tree_steps.stats(),
            ..KeyspaceStats::default()
        }
    }
}

/// What a keyspace did since it was opened or installed, and what waits.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KeyspaceStats {
    /// Bytes of keys and values that were put.
    pub put_bytes: u64,
    /// Requests that wait for room in the write buffers.
    pub waiting: u64,
    /// Bytes that these hold, at most as many as write buffers may.
    pub waiting_bytes: u64,
    /// Reads under way that hold a revision back.
    pub open_reads: u64,
    /// How long the oldest of them has been under way.
    pub oldest_read: Duration,
    /// Revisions below the compacted one that they hold back.
    pub held_revisions: u64,
    /// Reads that held revisions back for too long, or too many, and were let go.
    pub reads_let_go: u64,
    /// Leases that were revoked, by whomever.
    pub leases_revoked: u64,
    /// Those that were revoked because nobody renewed them.
    pub leases_expired: u64,
    /// Watchers that read history, for they are behind.
    pub lagging_watchers: u64,
    /// Events that wait in queues for watchers to take them.
    pub pending_events: u64,
    /// Events that watchers took.
    pub events: u64,
    /// Revisions that compactions removed.
    pub swept: u64,
    /// Those of them whose rows are still in leaves of which too little is dead to write them without.
    pub lingering: u64,
    /// About how many they have yet to remove.
    pub sweep_left: u64,
    /// How long that will take if it goes on as it has so far; None if nobody knows.
    pub sweep_time_left: Option<Duration>,
    /// When a compaction had removed everything last, in seconds since the Unix epoch; 0 is never.
    pub sweep_ended: u64,
    /// Whole removals after a compaction.
    pub sweeps: TimingStats,
    /// Their steps in the index, for whose time nobody else can use it.
    pub index_steps: TimingStats,
    /// Their steps in the trees, for whose time there are no writes.
    pub tree_steps: TimingStats,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_counted_at_their_bounds() {
        let timings = Timings::default();
        let all = [0, 125, 126, 250, 8_192_000, 8_192_001, 60_000_000];
        all.iter().for_each(|micros| timings.add(Duration::from_micros(*micros)));
        let stats = timings.stats();
        assert_eq!((stats.counts[0], stats.counts[1], stats.counts[16], stats.counts[17]), (2, 2, 1, 2));
        assert_eq!((stats.count(), stats.total), (7, Duration::from_micros(all.iter().sum())));
        assert_eq!(TimingStats::bound(3), Duration::from_millis(1));
    }
}
