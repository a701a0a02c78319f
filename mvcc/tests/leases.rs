//! Leases on a clock that is moved by hand: when they end, and what ends with them.
#![expect(clippy::unwrap_used, reason = "tests")]

use polybolt::disk::Disk;
use polybolt::disk::sim::{SimDisk, Survive};
use polybolt::run::ManualClock;
use polybolt::run::seeded::Seeded;
use polybolt::{
    Applied, Command, Engine, Entry, EventKind, Face, Keyspace, Op, Options, Pending, PutRequest, RangeRequest, Routes,
    Runtime, Span, WatchItem, WatchRequest, Watcher,
};
use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

struct Driven {
    engine: Engine,
    jobs: Seeded,
    ks: Keyspace,
}

fn open(disk: &SimDisk, face: Face) -> Driven {
    open_with(disk, face, None)
}

fn open_with(disk: &SimDisk, face: Face, lease_checkpoint_interval: Option<Duration>) -> Driven {
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    let clock = ManualClock::default();
    let admission_timeout = Duration::from_secs(3600);
    let options = Options { face, admission_timeout, lease_checkpoint_interval, ..Options::default() };
    let runtime = Runtime { disk, clock: Arc::new(clock.clone()), threads: false };
    let engine = Engine::open_with("/data/store", options, runtime).unwrap();
    let mut jobs = Seeded::new(engine.take_jobs(), clock, 7);
    jobs.run_until_idle(1000);
    let ks = engine.keyspace("ks").or_else(|_| engine.create_keyspace("ks", Routes::kubernetes())).unwrap();
    Driven { engine, jobs, ks }
}

impl Driven {
    /// Steps jobs until the answer is there.
    fn finish<T>(&mut self, pending: Pending<T>) -> polybolt::Result<T> {
        let mut pending = pin!(pending);
        for _ in 0..100_000 {
            if let Poll::Ready(answer) = pending.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                return answer;
            }
            if !self.jobs.step_one() {
                self.jobs.advance(Duration::from_millis(5));
            }
        }
        panic!("no answer came");
    }

    /// Lets time pass in small steps, with the jobs doing what they have to do.
    fn pass(&mut self, time: Duration) {
        let step = Duration::from_millis(4);
        let mut left = time;
        while left > Duration::ZERO {
            self.jobs.advance(step.min(left));
            left = left.saturating_sub(step);
            self.jobs.run_until_idle(10_000);
        }
    }

    fn put(&mut self, key: String, lease: i64) {
        let put = self.ks.put(PutRequest { lease, ..PutRequest::new(key, "v") });
        self.finish(put).unwrap();
    }

    fn count(&self) -> i64 {
        self.ks.range(&RangeRequest::new(Span::prefix(""))).unwrap().count
    }
}

fn watch(ks: &Keyspace) -> Watcher {
    let start_revision = ks.revision() + 1;
    ks.watch(WatchRequest { span: Span::prefix(""), start_revision, no_put: false, no_delete: false, prev_kv: true })
        .unwrap()
}

/// Deleted leased keys by revision: (lease, key).
fn deleted(watcher: &mut Watcher) -> BTreeMap<i64, Vec<(i64, String)>> {
    let mut seen: BTreeMap<i64, Vec<(i64, String)>> = BTreeMap::new();
    while let Poll::Ready(Some(WatchItem::Events { events, .. })) = watcher.try_recv().unwrap() {
        for event in events.into_iter().filter(|event| event.kind() == EventKind::Delete) {
            let lease = event.prev_kv().unwrap().lease;
            let key = String::from_utf8(event.kv().key.to_vec()).unwrap();
            seen.entry(event.kv().mod_revision).or_default().push((lease, key));
        }
    }
    seen
}

#[test]
fn a_wave_of_leases_ends_at_its_time_each_in_one_revision_lse_5_lse_12() {
    const LEASES: i64 = 400;
    let mut driven = open(&SimDisk::new(1), Face::Standalone);
    for id in 1..=LEASES {
        let grant = driven.ks.lease_grant(id, 3600);
        driven.finish(grant).unwrap();
        for n in 0..id % 4 {
            let shard = ["pods", "events", "zzz", "leases"][(id + n) as usize % 4];
            driven.put(format!("/registry/{shard}/{id:03}-{n}"), id);
        }
    }
    driven.put("/registry/pods/kept".into(), 0);
    let keys = driven.count();
    let mut watcher = watch(&driven.ks);
    let before = driven.ks.revision();
    let first = driven.ks.lease_time_to_live(1, false).unwrap().remaining_ttl;
    driven.pass(Duration::from_secs(first.unsigned_abs() - 1));
    assert_eq!((driven.count(), driven.ks.revision()), (keys, before), "none goes before its time");
    // The last one's deadline, and what is allowed after it.
    driven.pass(Duration::from_secs(3600 - first.unsigned_abs() + 3));
    assert_eq!(driven.count(), 1);
    assert!(driven.ks.leases().is_empty());
    let deleted = deleted(&mut watcher);
    let with_keys = (1..=LEASES).filter(|id| id % 4 > 0).count();
    assert_eq!(deleted.len(), with_keys, "one revision for each lease that had keys");
    assert_eq!(driven.ks.revision(), before + with_keys as i64);
    for (revision, keys) in deleted {
        assert!(keys.iter().all(|(lease, _)| *lease == keys[0].0), "{revision} deletes keys of several leases");
        assert_eq!(keys.len() as i64, keys[0].0 % 4, "{revision} deletes a part of a lease's keys");
        assert!(keys.is_sorted(), "{revision}: ascending keys");
    }
    driven.engine.verify(&mut |_| ()).unwrap();
}

#[test]
fn a_replayed_engine_deletes_nothing_without_a_proposed_revoke() {
    let mut driven = open(&SimDisk::new(2), Face::Replayed);
    let mut index = 0;
    let mut log = |driven: &mut Driven, command: Command| {
        index += 1;
        let pending = driven.ks.apply(vec![Entry { index, command }]);
        driven.finish(pending).unwrap().remove(0).unwrap()
    };
    log(&mut driven, Command::LeaseGrant { id: 5, ttl: 10 });
    let put = PutRequest { lease: 5, ..PutRequest::new("/registry/pods/a", "v") };
    log(&mut driven, Command::Op(Op::Put(put)));
    // Not the primary: it has no deadline (LSE-13).
    driven.pass(Duration::from_secs(60));
    assert!(driven.ks.due_leases(10).is_empty());
    driven.ks.promote(Duration::from_secs(1));
    driven.pass(Duration::from_secs(10));
    assert!(driven.ks.due_leases(10).is_empty(), "LSE-14");
    driven.pass(Duration::from_secs(2));
    assert_eq!(driven.ks.due_leases(10), [5]);
    driven.pass(Duration::from_secs(3600));
    assert_eq!((driven.count(), driven.ks.revision()), (1, 2), "it is for the frontend to propose");
    assert_eq!(driven.ks.lease_keep_alive(5).wait().unwrap(), 0, "LSE-7");
    assert!(matches!(log(&mut driven, Command::LeaseRevoke(5)), Applied::Revision(3)));
    assert_eq!(driven.count(), 0);
    assert!(driven.ks.due_leases(10).is_empty());
}

#[test]
fn leases_and_what_they_hold_outlive_a_crash_lse_14_lse_15() {
    let disk = SimDisk::new(3);
    let mut driven = open(&disk, Face::Standalone);
    for id in [-7, 9] {
        let grant = driven.ks.lease_grant(id, 100);
        driven.finish(grant).unwrap();
    }
    driven.put("/registry/pods/a".into(), 9);
    driven.put("/registry/pods/b".into(), -7);
    driven.put("/registry/events/c".into(), 9);
    driven.put("/registry/pods/b".into(), 9);
    driven.put("/registry/pods/a".into(), 0);
    driven.pass(Duration::from_secs(60));
    assert_eq!(driven.ks.lease_time_to_live(9, false).unwrap().remaining_ttl, 40);
    disk.stop();
    let mut driven = open(&disk.after_crash(Survive::Nothing), Face::Standalone);
    let lease = driven.ks.lease_time_to_live(9, true).unwrap();
    assert_eq!(lease.keys, ["/registry/events/c", "/registry/pods/b"], "of the newest versions (IDX-6)");
    assert!(lease.remaining_ttl >= 99, "a restart extends leases: {}", lease.remaining_ttl);
    assert_eq!(driven.ks.lease_time_to_live(-7, true).unwrap().keys, [0u8; 0].map(|_| bytes::Bytes::new()));
    driven.pass(Duration::from_secs(102));
    assert_eq!((driven.count(), driven.ks.leases().len()), (1, 0));
}

const INTERVAL: Duration = Duration::from_secs(300);

impl Driven {
    fn remaining(&self, id: i64) -> i64 {
        self.ks.lease_time_to_live(id, false).unwrap().remaining_ttl
    }

    fn renew(&mut self, id: i64) -> i64 {
        let renewed = self.ks.lease_keep_alive(id);
        self.finish(renewed).unwrap()
    }
}

/// Crashes at once and opens again.
fn crash(disk: &SimDisk, driven: Driven, face: Face, interval: Option<Duration>) -> (SimDisk, Driven) {
    disk.stop();
    let after = disk.after_crash(Survive::Nothing);
    drop(driven);
    let driven = open_with(&after, face, interval);
    (after, driven)
}

#[test]
fn a_restart_extends_long_leases_by_less_with_checkpoints_lse_16() {
    for interval in [None, Some(INTERVAL)] {
        let disk = SimDisk::new(11);
        let mut driven = open_with(&disk, Face::Standalone, interval);
        for (id, ttl) in [(1, 1000), (2, 1000), (3, 200)] {
            let grant = driven.ks.lease_grant(id, ttl);
            driven.finish(grant).unwrap();
        }
        driven.put("/registry/pods/a".into(), 1);
        driven.pass(Duration::from_secs(100));
        assert_eq!(driven.renew(3), 200);
        driven.pass(Duration::from_secs(210 - 10));
        // At 300 seconds. What was recorded is not older than an interval.
        driven.pass(Duration::from_secs(20));
        assert_eq!(driven.remaining(1), 680);
        // A renewal takes a checkpoint back, durably, before it is answered.
        assert_eq!(driven.renew(2), 1000);
        let (disk, driven) = crash(&disk, driven, Face::Standalone, interval);
        let left = |id| driven.remaining(id);
        let whole = 1000..=1001;
        assert!(whole.contains(&left(2)), "renewed: {}", left(2));
        match interval {
            None => assert!(whole.contains(&left(1)), "without checkpoints: {}", left(1)),
            Some(_) => assert!((700..=701).contains(&left(1)), "what it had at the checkpoint: {}", left(1)),
        }
        // The next restart, after the next checkpoint of it.
        let (disk, mut driven) = crash(&disk, driven, Face::Standalone, interval);
        driven.pass(INTERVAL + Duration::from_secs(5));
        let (_, mut driven) = crash(&disk, driven, Face::Standalone, interval);
        match interval {
            None => assert!(whole.contains(&driven.remaining(1))),
            Some(_) => assert!((399..=402).contains(&driven.remaining(1)), "{}", driven.remaining(1)),
        }
        if interval.is_some() {
            driven.pass(Duration::from_secs(404));
            assert_eq!((driven.count(), driven.ks.leases()), (0, vec![2]), "it ends then, its key with it");
        }
    }
}

/// Stopped at every disk call from before the first checkpoint to after a renewal of what it recorded.
#[test]
fn a_renewed_lease_has_its_whole_time_whenever_it_crashes_lse_16() {
    let run = |crash: u64| {
        let disk = SimDisk::new(12);
        let mut driven = open_with(&disk, Face::Standalone, Some(INTERVAL));
        let grant = driven.ks.lease_grant(1, 1000);
        driven.finish(grant).unwrap();
        driven.pass(Duration::from_secs(299));
        let before = disk.calls();
        if crash > 0 {
            disk.crash_at(before + crash);
        }
        driven.pass(Duration::from_secs(2));
        let mut renewed = false;
        if !disk.crashed() {
            let answer = driven.ks.lease_keep_alive(1);
            renewed = matches!(driven.finish(answer), Ok(1000));
        }
        driven.jobs.run_until_idle(1000);
        (disk.calls() - before, disk, renewed)
    };
    let (calls, ..) = run(0);
    let (mut whole, mut shorter) = (0, 0);
    for call in 1..=calls {
        let (_, disk, renewed) = run(call);
        for survive in [Survive::Nothing, Survive::All, Survive::Mix(call)] {
            let driven = open_with(&disk.after_crash(survive), Face::Standalone, Some(INTERVAL));
            let left = driven.remaining(1);
            assert!((700..=701).contains(&left) || (1000..=1001).contains(&left), "{left}");
            assert!(!renewed || left >= 1000, "{left} seconds after a renewal");
            if left >= 1000 { whole += 1 } else { shorter += 1 }
        }
    }
    assert!(whole > 0 && shorter > 0, "{whole} with the whole time, {shorter} with what remained");
}

#[test]
fn checkpoints_of_many_leases_come_in_bounded_entries_lse_16() {
    const LEASES: i64 = 2300;
    let disk = SimDisk::new(13);
    let mut driven = open_with(&disk, Face::Replayed, Some(INTERVAL));
    let grants =
        (1..=LEASES).map(|id| Entry { index: id.cast_unsigned(), command: Command::LeaseGrant { id, ttl: 100_000 } });
    let granted = driven.ks.apply(grants.collect());
    driven.finish(granted).unwrap();
    driven.ks.promote(Duration::ZERO);
    driven.pass(Duration::from_secs(310));
    let mut index = LEASES.cast_unsigned();
    let mut recorded = Vec::new();
    loop {
        let hash = driven.ks.hash().unwrap();
        let due = driven.ks.due_lease_checkpoints();
        if due.is_empty() {
            break;
        }
        recorded.push(due.len());
        assert_eq!(driven.ks.hash().unwrap(), hash, "it proposes only (S4)");
        // On its way it is not renewed behind the log's back.
        let renewed = driven.ks.lease_keep_alive(due[0].0);
        let refused = driven.finish(renewed).unwrap_err();
        assert!(matches!(refused, polybolt::Error::Refused(polybolt::Refusal::LeaseCheckpointed)), "{refused}");
        index += 1;
        let entry = Entry { index, command: Command::LeaseCheckpoint(due) };
        let applied = driven.ks.apply(vec![entry]);
        assert!(matches!(driven.finish(applied).unwrap()[..], [Ok(Applied::Done)]));
        assert_ne!(driven.ks.hash().unwrap(), hash);
    }
    assert_eq!(recorded, [1000, 1000, 300]);
    let taken_back = Entry { index: index + 1, command: Command::LeaseCheckpoint(vec![(1, 0), (99_999, 5)]) };
    let applied = driven.ks.apply(vec![taken_back]);
    assert!(matches!(driven.finish(applied).unwrap()[..], [Ok(Applied::Done)]), "what is of no lease is passed over");
    assert_eq!(driven.renew(1), 100_000);
    let many = Command::LeaseCheckpoint((1..=1001).map(|id| (id, 5)).collect());
    let applied = driven.ks.apply(vec![Entry { index: index + 2, command: many }]);
    assert!(driven.finish(applied).unwrap()[0].is_err());
    // Another replica, promoted after a crash of this one.
    let (_, driven) = crash(&disk, driven, Face::Replayed, Some(INTERVAL));
    driven.ks.promote(Duration::ZERO);
    let left: Vec<i64> = (1..=LEASES).map(|id| driven.remaining(id)).collect();
    assert!(left[0] >= 100_000, "renewed");
    assert_eq!(left.iter().filter(|left| **left < 100_000).count(), 2299);
}

/// The standalone engine records them itself.
#[test]
fn many_leases_are_recorded_within_moments_lse_16() {
    let disk = SimDisk::new(14);
    let mut driven = open_with(&disk, Face::Standalone, Some(Duration::from_secs(20)));
    for id in 1..=1200 {
        let grant = driven.ks.lease_grant(id, 5000);
        driven.finish(grant).unwrap();
    }
    driven.pass(Duration::from_secs(30));
    let (_, driven) = crash(&disk, driven, Face::Standalone, None);
    let left = (1..=1200).map(|id| driven.remaining(id));
    assert!(left.clone().all(|left| left < 4990), "{:?}", left.max());
}
