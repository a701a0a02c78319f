//! Tells in the log when what a compaction left behind is gone.

use polybolt::CompactionWatch;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How often one looks.
const INTERVAL: Duration = Duration::from_millis(250);

/// The compaction that was asked for last: only that one is followed, however many there are.
#[derive(Debug, Default)]
pub(crate) struct Follower {
    newest: Arc<AtomicU64>,
}

impl Follower {
    /// Follows a compaction that was taken and was asked for at `begun`, until it is through, a newer one comes, or the
    /// server stops.
    pub(crate) fn follow(
        &self,
        watch: CompactionWatch,
        (revision, shard): (i64, Option<String>),
        begun: Instant,
        stop: CancellationToken,
    ) {
        let newest = Arc::clone(&self.newest);
        let this = newest.fetch_add(1, Ordering::Relaxed) + 1;
        tokio::spawn(async move {
            while newest.load(Ordering::Relaxed) == this {
                let progress = watch.progress();
                if progress.is_swept {
                    let seconds = begun.elapsed().as_secs_f64();
                    tracing::info!(revision, shard, removed = progress.removed, seconds, "compaction is through");
                    return;
                }
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(INTERVAL) => {}
                }
            }
        });
    }
}
