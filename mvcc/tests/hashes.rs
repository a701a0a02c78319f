//! Hashes that are remembered over compactions (HSH-6): which ones, for how long, and which are not.
#![expect(clippy::unwrap_used, reason = "tests")]

use polybolt::disk::Disk;
use polybolt::disk::sim::{SimDisk, Survive};
use polybolt::run::ManualClock;
use polybolt::run::seeded::Seeded;
use polybolt::{
    DeleteRequest, Engine, Error, Keyspace, Op, Options, PutRequest, Refusal, Routes, Runtime, Span, TxnRequest,
};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

fn remembering() -> Options {
    Options { remember_hashes: true, ..Options::default() }
}

fn put(ks: &Keyspace, key: &str, value: &str) -> i64 {
    ks.put(PutRequest::new(key.to_owned(), value.to_owned())).wait().unwrap().revision
}

/// Hash and compacted revision.
fn hash(ks: &Keyspace, revision: i64) -> Result<(u32, i64), Refusal> {
    match ks.hash_kv(revision) {
        Ok(hash) => {
            assert_eq!(hash.revision, ks.revision());
            assert!(revision == 0 || hash.hash_revision == revision);
            Ok((hash.hash, hash.compact_revision))
        }
        Err(Error::Refused(refusal)) => Err(refusal),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn known_answers_with_remembered_hashes_hsh_6_hsh_10() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(dir.path(), remembering()).unwrap();
    let ks = engine.create_keyspace("ks", Routes::parse("low=a,mid=b").unwrap()).unwrap();
    ks.lease_grant(77, 600).wait().unwrap();
    put(&ks, "a", "1");
    ks.put(PutRequest { lease: 77, ..PutRequest::new("b", "2") }).wait().unwrap();
    let delete = |key: &'static str| DeleteRequest { span: Span::key(key), prev_kv: false };
    let success = vec![Op::Put(PutRequest::new("c", "")), Op::Put(PutRequest::new("a", "3")), Op::Delete(delete("b"))];
    ks.txn(TxnRequest { success, ..TxnRequest::default() }).wait().unwrap();
    put(&ks, "b", "9");
    ks.delete_range(delete("c")).wait().unwrap();
    let before = [1, 2, 4, 6].map(|at| hash(&ks, at).unwrap());
    assert_eq!(before, [(1_084_519_789, -1), (2_587_454_935, -1), (2_141_722_172, -1), (1_653_901_410, -1)]);
    ks.compact(4, true).wait().unwrap();
    assert_eq!(hash(&ks, 4), Ok((2_141_722_172, -1)), "as before the compaction (HSH-7)");
    assert_eq!(hash(&ks, 5), Ok((1_705_948_627, 4)));
    assert_eq!(hash(&ks, 6), Ok((3_023_679_336, 4)));
    ks.compact(6, true).wait().unwrap();
    assert_eq!(hash(&ks, 6), Ok((3_023_679_336, 4)));
    assert_eq!(hash(&ks, 0), Ok((2_254_839_582, 6)), "0 is the current revision, as of now");
    assert_eq!(hash(&ks, 4), Ok((2_141_722_172, -1)), "below the compacted revision, too");
    assert_eq!(hash(&ks, 5), Err(Refusal::Compacted { revision: 6 }), "others are gone");
    put(&ks, "z", "z");
    assert_eq!(hash(&ks, 0), Ok((2_821_344_104, 6)));
    drop(ks);
    engine.close().unwrap();
    let engine = Engine::open(dir.path(), remembering()).unwrap();
    let ks = engine.keyspace("ks").unwrap();
    assert_eq!(hash(&ks, 4), Err(Refusal::Compacted { revision: 6 }), "in memory only");
    assert_eq!(hash(&ks, 6).unwrap().1, 6);
}

#[test]
fn ten_hashes_are_remembered_hsh_6() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(dir.path(), remembering()).unwrap();
    let ks = engine.create_keyspace("ks", Routes::single()).unwrap();
    // Legal once; what is hashed at 0 is the current revision all the same, whatever etcd does.
    ks.compact(0, true).wait().unwrap();
    let mut wanted = Vec::new();
    for n in 0..14 {
        let at = put(&ks, &format!("k{}", n % 3), &n.to_string());
        assert_eq!(hash(&ks, 0), hash(&ks, at), "after Compact(0)");
        wanted.push((at, hash(&ks, at).unwrap()));
        assert_eq!(ks.compact(at, true).wait().unwrap(), at);
    }
    let known: Vec<i64> = (1..=ks.revision()).filter(|at| hash(&ks, *at).is_ok()).collect();
    assert_eq!(known.len(), 10, "{known:?}");
    assert_eq!(known.last(), Some(&ks.revision()));
    for (at, before) in wanted.iter().filter(|(at, _)| known.contains(at)) {
        assert_eq!(hash(&ks, *at).unwrap(), *before, "{at}");
    }
}

#[test]
fn without_the_option_nothing_is_remembered() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(dir.path(), Options::default()).unwrap();
    let ks = engine.create_keyspace("ks", Routes::single()).unwrap();
    let at = [put(&ks, "a", "1"), put(&ks, "a", "2"), put(&ks, "b", "1")];
    ks.compact(at[1], true).wait().unwrap();
    assert_eq!(hash(&ks, at[1]).unwrap().1, at[1]);
    ks.compact(at[2], true).wait().unwrap();
    assert_eq!(hash(&ks, at[1]), Err(Refusal::Compacted { revision: at[2] }));
}

struct Driven {
    ks: Keyspace,
    jobs: Seeded,
    _engine: Engine,
}

fn driven(disk: &SimDisk) -> Driven {
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    let clock = ManualClock::default();
    // A sweep that is never done while time stands still.
    let options = Options {
        compaction_pace: polybolt::CompactionPace {
            batch_limit: 2,
            sleep_interval: Duration::from_secs(1000),
            ..Default::default()
        },
        checkpoint_interval: Duration::from_millis(1),
        ..remembering()
    };
    let runtime = Runtime { disk, clock: Arc::new(clock.clone()), threads: false };
    let engine = Engine::open_with("/data", options, runtime).unwrap();
    let jobs = Seeded::new(engine.take_jobs(), clock, 5);
    let ks = engine.keyspace("ks").or_else(|_| engine.create_keyspace("ks", Routes::single())).unwrap();
    Driven { ks, jobs, _engine: engine }
}

impl Driven {
    fn finish<T>(&mut self, pending: impl Future<Output = polybolt::Result<T>>) -> polybolt::Result<T> {
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

    fn sweep(&mut self) {
        for _ in 0..40 {
            self.jobs.run_until_idle(1000);
            self.jobs.advance(Duration::from_secs(1001));
        }
    }
}

#[test]
fn a_compaction_that_a_crash_interrupted_is_not_remembered_hsh_6() {
    let disk = SimDisk::new(3);
    let mut run = driven(&disk);
    for n in 0..12 {
        let put = run.ks.put(PutRequest::new("k", n.to_string()));
        run.finish(put).unwrap();
    }
    let compact = run.ks.compact(9, false);
    run.finish(compact).unwrap();
    run.jobs.run_until_idle(1000);
    disk.stop();
    drop(run);
    let disk = disk.after_crash(Survive::Nothing);
    let mut run = driven(&disk);
    assert_eq!(run.ks.compact_revision(), 9);
    let before = hash(&run.ks, 9).unwrap();
    // The one after it comes while it is not finished: etcd does not remember that either.
    let compact = run.ks.compact(10, false);
    run.finish(compact).unwrap();
    run.sweep();
    assert_eq!((hash(&run.ks, 9), before.1), (Err(Refusal::Compacted { revision: 10 }), 9));
    assert_eq!(hash(&run.ks, 10).unwrap().1, 10);
    let now = hash(&run.ks, 12).unwrap();
    let compact = run.ks.compact(12, false);
    run.finish(compact).unwrap();
    run.sweep();
    assert_eq!(hash(&run.ks, 12).unwrap(), now);
    assert_eq!(now.1, 10);
}
