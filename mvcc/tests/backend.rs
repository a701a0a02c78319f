//! What etcd's contract says of the backend and of the quota (BKE and QTA rules), of ours.
#![expect(clippy::unwrap_used, reason = "tests")]

use polybolt::disk::Disk;
use polybolt::disk::sim::{SimDisk, Survive};
use polybolt::run::ManualClock;
use polybolt::run::seeded::Seeded;
use polybolt::{
    Command, Durability, Engine, Entry, Error, Face, Keyspace, Op, Options, PutRequest, RangeRequest, Refusal, Routes,
    Runtime, Span,
};
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

const QUOTA: u64 = 4 << 20;

fn routes() -> Routes {
    Routes::parse("low=a,mid=m").unwrap()
}

fn opened(options: Options) -> (tempfile::TempDir, Engine, Keyspace) {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(dir.path(), options).unwrap();
    let ks = engine.create_keyspace("ks", routes()).unwrap();
    (dir, engine, ks)
}

fn put(n: u64) -> PutRequest {
    PutRequest::new(format!("{}{n}", ["a", "m", "x"][n as usize % 3]), vec![b'v'; 10_000])
}

#[test]
fn a_burst_does_not_overshoot_the_quota_qta_3_qta_5_qta_8() {
    let (_dir, _engine, ks) = opened(Options { quota_bytes: Some(QUOTA), ..Options::default() });
    let mut accepted = 0;
    let refused = loop {
        match ks.put(put(accepted)).wait() {
            Ok(_) => accepted += 1,
            Err(refused) => break refused,
        }
        assert!(accepted * 10_000 < QUOTA, "more than the quota, whatever is in buffers");
    };
    assert!(matches!(refused, Error::Refused(Refusal::NoSpace)), "{refused}");
    assert!(accepted > 100);
    // Refused is not applied, and costs no revision (QTA-5).
    assert_eq!(ks.revision() as u64, accepted + 1);
    assert_eq!(ks.range(&RangeRequest::new(Span::prefix(""))).unwrap().count as u64, accepted);
    assert!(!ks.has_room(10_000) && ks.has_room(0));
    assert!(matches!(ks.lease_grant(7, 60).wait(), Ok(_) | Err(Error::Refused(Refusal::NoSpace))));
    ks.delete_range(polybolt::DeleteRequest { span: Span::prefix("a"), prev_kv: false }).wait().unwrap();
}

#[test]
fn a_replayed_engine_applies_what_it_is_given_whatever_its_quota_qta_5() {
    let durability = Durability::Batch { interval: Duration::from_millis(5), limit: 10 };
    let options = Options { durability, face: Face::Replayed, quota_bytes: Some(1), ..Options::default() };
    let (_dir, _engine, ks) = opened(options);
    assert!(!ks.has_room(1), "its frontend knows");
    for index in 1..=20 {
        let answers = ks.apply(vec![Entry { index, command: Command::Op(Op::Put(put(index))) }]).wait().unwrap();
        assert!(answers[0].is_ok());
    }
    assert_eq!(ks.revision(), 21);
}

struct Machine {
    disk: SimDisk,
    engine: Engine,
    jobs: Seeded,
    ks: Keyspace,
}

fn machine(durability: Durability) -> Machine {
    let disk = SimDisk::new(3);
    disk.create_dir("/data".as_ref()).unwrap();
    let on: Arc<dyn Disk> = Arc::new(disk.clone());
    let clock = ManualClock::default();
    let runtime = Runtime { disk: on, clock: Arc::new(clock.clone()), threads: false };
    let options = Options { durability, checkpoint_interval: Duration::from_secs(3600), ..Options::default() };
    let engine = Engine::open_with("/data/store", options, runtime).unwrap();
    let jobs = Seeded::new(engine.take_jobs(), clock, 3);
    let ks = engine.create_keyspace("ks", routes()).unwrap();
    Machine { disk, engine, jobs, ks }
}

impl Machine {
    fn checkpoints(&mut self) -> u64 {
        self.jobs.run_until_idle(10_000);
        self.engine.stats().checkpoints
    }

    /// The revision that a power cut now would leave.
    fn durable(&self) -> i64 {
        let on: Arc<dyn Disk> = Arc::new(self.disk.after_crash(Survive::Nothing));
        let runtime = Runtime { disk: on, clock: Arc::new(ManualClock::default()), threads: false };
        let engine = Engine::open_with("/data/store", Options::default(), runtime).unwrap();
        let ks = engine.keyspace("ks").unwrap();
        let kvs = ks.range(&RangeRequest::new(Span::prefix(""))).unwrap().kvs;
        kvs.iter().map(|kv| kv.mod_revision).max().unwrap_or(1)
    }
}

#[test]
fn a_batch_is_committed_by_time_by_count_and_when_it_has_to_be_bke_3() {
    let mut machine = machine(Durability::Batch { interval: Duration::from_millis(100), limit: 50 });
    drop(machine.ks.put(put(1)));
    // The first write reserves its revisions.
    let mut before = machine.checkpoints();
    drop(machine.ks.put(put(2)));
    assert_eq!(machine.checkpoints(), before, "not yet");
    machine.jobs.advance(Duration::from_millis(100));
    assert!(machine.checkpoints() > before, "by time");
    before = machine.checkpoints();
    machine.jobs.advance(Duration::from_secs(10));
    assert_eq!(machine.checkpoints(), before, "nothing is pending");
    (0..50).for_each(|n| drop(machine.ks.put(put(n))));
    assert!(machine.checkpoints() > before, "by count");
    before = machine.checkpoints();
    drop(machine.ks.put(put(3)));
    let mut compacted = pin!(machine.ks.compact(machine.ks.revision(), false));
    let mut context = Context::from_waker(Waker::noop());
    while compacted.as_mut().poll(&mut context).is_pending() {
        assert!(machine.jobs.step_one(), "it waits for something that nobody does");
    }
    assert!(machine.checkpoints() > before, "a compaction is committed before it is acknowledged (CMP-7)");
    assert_eq!(machine.durable(), machine.ks.revision());
}

#[test]
fn a_finished_txn_is_read_before_it_is_on_disk_bke_4_bke_5() {
    let mut machine = machine(Durability::Batch { interval: Duration::from_secs(3600), limit: 1_000_000 });
    drop(machine.ks.put(put(1)));
    machine.checkpoints();
    (2..40).for_each(|n| drop(machine.ks.put(put(n))));
    let everything = RangeRequest::new(Span::prefix(""));
    let seen = machine.ks.range(&everything).unwrap();
    assert_eq!((seen.count, seen.revision), (39, 40));
    assert!(machine.durable() < 40);
    // A read that has begun holds no lock, and does not see what comes after.
    let mut stream = machine.ks.range_stream(&everything).unwrap();
    drop(machine.ks.put(put(40)));
    assert_eq!(machine.ks.revision(), 41);
    let kvs: Vec<_> = (&mut stream).flat_map(Result::unwrap).collect();
    assert_eq!((kvs, stream.total()), (seen.kvs, 39));
}

#[test]
fn sizes_are_those_of_the_files_and_the_files_are_ours_bke_1_bke_2_bke_9() {
    let (dir, engine, ks) = opened(Options::default());
    for n in 0..500 {
        ks.put(put(n)).wait().unwrap();
    }
    ks.lease_grant(7, 60).wait().unwrap();
    drop(ks);
    engine.close().unwrap();
    let engine = Engine::open(dir.path(), Options::default()).unwrap();
    let ks = engine.keyspace("ks").unwrap();
    let status = ks.status();
    let names = || std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path());
    let is_tree = |path: &Path| path.extension().is_some_and(|extension| extension == "tree");
    let trees: Vec<_> = names().filter(|path| is_tree(path)).collect();
    // Three shards, and the tree of leases, tables and alarms.
    assert_eq!(trees.len(), 4);
    let on_disk: u64 = trees.iter().map(|path| path.metadata().unwrap().len()).sum();
    assert!(status.size > 0 && status.size <= on_disk, "{} of {on_disk}", status.size);
    assert!(status.size_in_use > 500 * 10_000 && status.size_in_use <= status.size);
    // As engine/FORMAT.md has them.
    for slot in ["MANIFEST.0", "MANIFEST.1"] {
        assert_eq!(&std::fs::read(dir.path().join(slot)).unwrap()[..12], b"PBLTMNFT\x01\0\0\0");
    }
    for tree in trees {
        assert_eq!(&std::fs::read(tree).unwrap()[64..76], b"PBLTTREE\x01\0\0\0");
    }
    // Others are allocated ahead.
    let segments = std::fs::read_dir(dir.path().join("journal")).unwrap();
    let begun = |path: &Path| std::fs::read(path).unwrap().starts_with(b"PBLTJRNL");
    assert!(segments.filter(|entry| begun(&entry.as_ref().unwrap().path())).count() > 0);
}

#[test]
fn defaults_are_those_of_etcd_bke_12_srv_3_cmp_10() {
    let options = Options::default();
    assert_eq!((options.max_txn_ops, options.max_request_bytes), (128, 1_572_864));
    let pace = options.compaction_pace;
    assert_eq!((pace.batch_limit, pace.sleep_interval), (1000, Duration::from_millis(10)));
    assert_eq!((options.min_lease_ttl, options.lease_extend), (2, Duration::from_secs(1)));
    assert_eq!(options.quota_bytes, None, "of a library; the server has etcd's (QTA-1)");
}
