//! Compacting by itself: by age, or by the number of revisions (CMP-18); all shards, or one of them sooner.
//!
//! `Schedule` says when and at what; it knows no clock but the number of samples it was given.

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
/// Samples per interval between compactions by `Period`.
const SAMPLES: u32 = 10;

/// When to compact, and at what revision: samples of the current revision in, [`Schedule::every`] so often.
#[derive(Debug)]
struct Schedule {
    retention: Retention,
    /// The newest ones, oldest first; as many as a period has, and the one before it.
    samples: VecDeque<i64>,
    /// Samples since the last compaction; none yet is as long as needed.
    since: u32,
    /// What it was compacted at last.
    done: i64,
}

impl Schedule {
    fn new(retention: Retention) -> Self {
        Schedule { retention, samples: VecDeque::new(), since: SAMPLES, done: 0 }
    }

    /// The time between samples.
    fn every(&self) -> Duration {
        match self.retention {
            Retention::Revisions(_) => REVISION_INTERVAL,
            Retention::Period(period) => (period.min(HOUR) / SAMPLES).max(Duration::from_nanos(1)),
        }
    }

    /// The current revision; at what to compact now, if at all.
    fn sample(&mut self, revision: i64) -> Option<i64> {
        let target = match self.retention {
            Retention::Revisions(count) => revision - count,
            Retention::Period(period) => {
                // Rounded up: nothing younger than the period goes.
                let steps = period.as_nanos().div_ceil(self.every().as_nanos());
                let steps = usize::try_from(steps).unwrap_or(usize::MAX);
                self.samples.push_back(revision);
                self.since = self.since.saturating_add(1);
                if self.samples.len() <= steps || self.since < SAMPLES {
                    return None;
                }
                self.samples.drain(..self.samples.len() - steps - 1);
                *self.samples.front()?
            }
        };
        (target > 0 && target != self.done).then_some(target)
    }

    /// It was compacted at `revision`. Until this is said, every sample tries again.
    fn compacted(&mut self, revision: i64) {
        (self.done, self.since) = (revision, 0);
    }
}

/// Compacts until the server stops: one shard, or all.
pub async fn run(server: Arc<Server>, shard: Option<String>, retention: Retention) {
    let mut schedule = Schedule::new(retention);
    if let Retention::Period(_) = retention {
        schedule.sample(server.keyspace.revision());
    }
    let mut ticks = tokio::time::interval(schedule.every());
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticks.tick().await;
    loop {
        tokio::select! {
            () = server.stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let Some(target) = schedule.sample(server.keyspace.revision()) else {
            continue;
        };
        let begun = tokio::time::Instant::now();
        let compacted = match &shard {
            None => server.keyspace.compact(target, false),
            Some(shard) => server.keyspace.compact_shard(shard, target),
        };
        let watch = compacted.watch();
        match compacted.await {
            Ok(_) => {
                tracing::info!(revision = target, shard, "compacted");
                server.compactions.follow(watch, (target, shard.clone()), begun, server.stop.clone());
                schedule.compacted(target);
            }
            // Somebody else has done it.
            Err(Error::Refused(Refusal::Compacted { .. })) => schedule.compacted(target),
            Err(error) => tracing::warn!(%error, revision = target, shard, "compaction failed; it will be tried again"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    /// Samples a store whose revision is `revision(minutes)` for `hours`: when it was compacted, in minutes, and at what.
    fn run(retention: Retention, hours: u32, revision: fn(f64) -> i64, fails: fn(usize) -> bool) -> Vec<(f64, i64)> {
        let mut schedule = Schedule::new(retention);
        let (every, mut now, mut tries) = (schedule.every(), Duration::ZERO, 0);
        let mut done = Vec::new();
        // By revision there is no sample at the start.
        if let Retention::Revisions(_) = retention {
            now += every;
        }
        while now <= HOUR * hours {
            let minutes = now.as_secs_f64() / 60.0;
            if let Some(target) = schedule.sample(revision(minutes)) {
                tries += 1;
                if !fails(tries) {
                    schedule.compacted(target);
                    done.push((minutes, target));
                }
            }
            now += every;
        }
        done
    }

    /// A revision a minute.
    #[expect(clippy::cast_possible_truncation, reason = "whole and small")]
    fn steady(minutes: f64) -> i64 {
        1 + minutes.round() as i64
    }

    #[test]
    fn the_schedule_by_age_cmp_18() {
        // (period, when first, how often after that, how old what is compacted at is), in minutes.
        for (period, first, interval, age) in [
            (10 * MINUTE, 10.0, 10.0, 10),
            (30 * MINUTE, 30.0, 30.0, 30),
            (HOUR, 60.0, 60.0, 60),
            (2 * HOUR, 120.0, 60.0, 120),
            (5 * HOUR, 300.0, 60.0, 300),
            (24 * HOUR, 1440.0, 60.0, 1440),
            // No multiple of the time between samples, six minutes.
            (65 * MINUTE, 66.0, 60.0, 66),
        ] {
            let done = run(Retention::Period(period), 48, steady, |_| false);
            let mut wanted = Vec::new();
            let mut at = first;
            while at <= 48.0 * 60.0 {
                wanted.push((at, steady(at) - age));
                at += interval;
            }
            assert_eq!(done, wanted, "{period:?}");
        }
        // Nothing new, nothing to do: once at the revision there is.
        assert_eq!(run(Retention::Period(HOUR), 12, |_| 7, |_| false), [(60.0, 7)]);
        // What was written once is compacted when it is as old, at the next sample.
        let step = |minutes: f64| if minutes < 90.0 { 5 } else { 9 };
        assert_eq!(run(Retention::Period(HOUR), 12, step, |_| false), [(60.0, 5), (150.0, 9)]);
        // A failure is tried again at the next sample, and the interval counts from the success.
        let done = run(Retention::Period(HOUR), 3, steady, |tries| tries <= 2);
        assert_eq!(done, [(72.0, 13), (132.0, 73)]);
        // Short ones, in seconds.
        assert_eq!(Schedule::new(Retention::Period(Duration::from_secs(10))).every(), Duration::from_secs(1));
    }

    #[test]
    fn the_schedule_by_revisions_cmp_18() {
        let done = run(Retention::Revisions(10), 1, steady, |_| false);
        // At 5 minutes there are 6 revisions, at 10 minutes 11.
        let wanted: Vec<(f64, i64)> = (2..=12).map(|n| (f64::from(n) * 5.0, steady(f64::from(n) * 5.0) - 10)).collect();
        assert_eq!(done, wanted);
        assert_eq!(run(Retention::Revisions(10), 5, |_| 25, |_| false), [(5.0, 15)]);
        assert_eq!(run(Retention::Revisions(10), 5, |_| 10, |_| false), []);
        assert_eq!(run(Retention::Revisions(10), 1, |_| 25, |tries| tries < 3), [(15.0, 15)]);
    }

    /// The clock is the runtime's, which moves it when everybody waits.
    #[tokio::test(start_paused = true)]
    async fn a_store_is_compacted_at_its_schedule_cmp_18() {
        let dir = tempfile::tempdir().expect("a directory");
        let server = crate::server::tests::start(dir.path());
        // Not awaited: while everybody waits the clock runs.
        let put = |key: &'static str| server.keyspace.put(polybolt::PutRequest::new(key, "v")).wait().expect("put");
        let task = tokio::spawn(super::run(Arc::clone(&server), None, Retention::Period(2 * HOUR)));
        tokio::task::yield_now().await;
        for _ in 0..5 {
            put("a");
        }
        tokio::time::sleep(MINUTE * 119).await;
        assert_eq!(server.keyspace.compact_revision(), -1);
        put("b");
        let compacted_at = async |revision| {
            while server.keyspace.compact_revision() != revision {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        // The first sample was before the puts; an hour later it is the one of an hour later.
        compacted_at(1).await;
        compacted_at(6).await;
        compacted_at(7).await;
        server.stop.cancel();
        task.await.expect("it stops");
    }

    #[tokio::test(start_paused = true)]
    async fn a_shard_keeps_less_history_than_the_rest() {
        let dir = tempfile::tempdir().expect("a directory");
        let server = crate::server::tests::start(dir.path());
        let put = |key: &'static str| server.keyspace.put(polybolt::PutRequest::new(key, "v")).wait().expect("put");
        for _ in 0..5 {
            put("a");
        }
        let shard = server.keyspace.routes().shards()[0].name.clone();
        let keep = |shard, minutes| super::run(Arc::clone(&server), shard, Retention::Period(MINUTE * minutes));
        let tasks = [tokio::spawn(keep(None, 120)), tokio::spawn(keep(Some(shard), 10))];
        let compacted = async |floor, all| {
            while (server.keyspace.floors()[0], server.keyspace.compact_revision()) != (floor, all) {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        compacted(6, -1).await;
        put("a");
        compacted(7, -1).await;
        compacted(7, 6).await;
        server.stop.cancel();
        for task in tasks {
            task.await.expect("it stops");
        }
    }
}
