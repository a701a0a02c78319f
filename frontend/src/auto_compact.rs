//! Compacting by itself: by age, or by the number of revisions (CMP-18).

use crate::server::Server;
use polybolt::{Error, Refusal};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// What to keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retention {
    /// Revisions younger than this.
    Period(Duration),
    /// This many revisions.
    Revisions(i64),
}

/// How often `Revisions` looks.
const REVISION_INTERVAL: Duration = Duration::from_secs(300);
const HOUR: Duration = Duration::from_secs(3600);
/// Samples per interval of `Period`.
const SAMPLES: u32 = 10;

/// Compacts until the server stops.
pub async fn run(server: Arc<Server>, retention: Retention) {
    let mut samples = VecDeque::new();
    let (every, keep) = match retention {
        Retention::Revisions(_) => (REVISION_INTERVAL, 0),
        Retention::Period(period) => {
            let every = period.min(HOUR) / SAMPLES;
            (every, usize::try_from(period.as_nanos() / every.as_nanos().max(1)).unwrap_or(usize::MAX))
        }
    };
    let (mut done, mut since) = (0, 0);
    loop {
        tokio::select! {
            () = server.stop.cancelled() => return,
            () = tokio::time::sleep(every) => {}
        }
        let revision = server.keyspace.revision();
        let target = match retention {
            Retention::Revisions(count) => revision - count,
            Retention::Period(_) => {
                samples.push_back(revision);
                since += 1;
                // The sample that is one period old, and an interval after the last compaction.
                if samples.len() <= keep || since < SAMPLES {
                    continue;
                }
                samples.drain(..samples.len() - keep - 1);
                since = 0;
                samples.front().copied().unwrap_or(0)
            }
        };
        if target <= done.max(0) {
            continue;
        }
        match server.keyspace.compact(target, false).await {
            Ok(_) | Err(Error::Refused(Refusal::Compacted { .. })) => {
                tracing::info!(revision = target, "compacted");
                done = target;
            }
            Err(error) => tracing::warn!(%error, revision = target, "compaction failed; it will be tried again"),
        }
    }
}
