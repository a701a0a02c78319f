//! A compaction on its way, for whoever wants to know how far it is.

use crate::core::Current;
use crate::error::Result;
use crate::pending::Pending;
use polybolt_engine::Position;
use polybolt_engine::sync::atomic::Ordering;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

/// A compaction that was asked for. A `Future` for tasks, [`Compaction::wait`] for threads: of the current revision,
/// once the compacted one is durable, or once its rows are gone if it is `physical`. Dropping it changes nothing.
#[must_use = "the answer is what tells whether the compaction was refused"]
#[derive(Debug)]
pub struct Compaction {
    pending: Pending<i64>,
    progress: CompactionWatch,
}

/// Tells how far a compaction is, also once its answer was given.
#[derive(Debug, Clone)]
pub struct CompactionWatch {
    current: Arc<Current>,
    /// None is all of them.
    shard: Option<String>,
    revision: i64,
    swept_before: u64,
}

/// How far a compaction is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompactionProgress {
    /// Revisions that were removed since it was asked for, by whatever compaction.
    pub removed: u64,
    /// About how many are left of all compactions so far.
    pub left: u64,
    /// How long those will take if it goes on as it has so far; None if nobody knows.
    pub time_left: Option<Duration>,
    /// True once this one has gone over all shards: what is left of it a running read holds back. Of a shard alone:
    /// once nothing is left of any.
    pub is_swept: bool,
}

impl Compaction {
    pub(crate) fn new(current: &Arc<Current>, shard: Option<&str>, revision: i64, pending: Pending<i64>) -> Self {
        let swept_before = current.core().counters.swept.load(Ordering::Relaxed);
        let shard = shard.map(ToOwned::to_owned);
        Compaction {
            pending,
            progress: CompactionWatch { current: Arc::clone(current), shard, revision, swept_before },
        }
    }

    /// What tells how far it is, while somebody else waits for it or nobody.
    pub fn watch(&self) -> CompactionWatch {
        self.progress.clone()
    }

    /// How far it is.
    pub fn progress(&self) -> CompactionProgress {
        self.progress.progress()
    }

    /// Blocks until the answer is there.
    ///
    /// # Errors
    /// Those of [`Keyspace::compact`](crate::Keyspace::compact): nothing was compacted. [`crate::Error::Unknown`]: it may be after
    /// a restart.
    pub fn wait(self) -> Result<i64> {
        self.pending.wait()
    }

    #[cfg(feature = "model")]
    pub(crate) fn into_pending(self) -> Pending<i64> {
        self.pending
    }
}

impl Future for Compaction {
    type Output = Result<i64>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<i64>> {
        Pin::new(&mut self.pending).poll(cx)
    }
}

impl CompactionWatch {
    /// How far it is. Cost: one look at each shard's index, under its lock for reading.
    pub fn progress(&self) -> CompactionProgress {
        let core = self.current.core();
        let left = core.garbage();
        let is_swept = match &self.shard {
            None => core.swept.reached() >= Position(self.revision.max(0).cast_unsigned()),
            Some(shard) => {
                let at = core.shards.iter().position(|known| known.name == *shard);
                left == 0 && at.is_none_or(|at| core.floor_of(at) >= self.revision)
            }
        };
        CompactionProgress {
            removed: core.counters.swept.load(Ordering::Relaxed).saturating_sub(self.swept_before),
            left,
            time_left: core.time_for(left).filter(|_| left > 0),
            is_swept,
        }
    }
}
