//! Two engines under one log: the same state, whatever happens to one of them on the way.
#![expect(clippy::unwrap_used, reason = "tests")]

use polybolt::disk::Disk;
use polybolt::disk::sim::{SimDisk, Survive};
use polybolt::run::ManualClock;
use polybolt::run::seeded::{Rng, Seeded};
use polybolt::{
    Applied, Command, Compare, CompareOp, CompareTarget, DeleteRequest, Durability, Engine, Entry, Error, Face,
    Keyspace, Op, Options, PutRequest, RangeRequest, Refusal, Result, Routes, Runtime, Span, TxnRequest,
};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

const LOG: u64 = 160;

struct Replica {
    disk: SimDisk,
    engine: Engine,
    jobs: Seeded,
    ks: Keyspace,
}

impl Replica {
    fn open(disk: SimDisk, seed: u64) -> Replica {
        let on: Arc<dyn Disk> = Arc::new(disk.clone());
        let clock = ManualClock::default();
        let options = Options {
            durability: Durability::Batch { interval: Duration::from_millis(20), limit: 5 },
            face: Face::Replayed,
            buffer_bytes: 60_000,
            segment_bytes: 8192,
            journal_bytes: 48 << 10,
            checkpoint_interval: Duration::from_millis(40),
            space_reserve_bytes: 8192,
            compaction_pace: polybolt::CompactionPace { batch_limit: 7, ..Default::default() },
            admission_timeout: Duration::from_secs(3600),
            ..Options::default()
        };
        let runtime = Runtime { disk: on, clock: Arc::new(clock.clone()), threads: false };
        let engine = Engine::open_with("/data/store", options, runtime).unwrap();
        let jobs = Seeded::new(engine.take_jobs(), clock, seed);
        let routes = || Routes::parse("low=a,mid=m").unwrap();
        let ks = engine.keyspace("ks").or_else(|_| engine.create_keyspace("ks", routes())).unwrap();
        Replica { disk, engine, jobs, ks }
    }

    fn apply(&mut self, entries: Vec<Entry>) -> Vec<Result<Applied>> {
        let mut pending = pin!(self.ks.apply(entries));
        for _ in 0..100_000 {
            if let Poll::Ready(answers) = pending.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                return answers.unwrap();
            }
            if !self.jobs.step_one() {
                self.jobs.advance(Duration::from_millis(5));
            }
        }
        panic!("no answer came");
    }

    /// A crash, at which `survive` says what of the unsynced writes is there.
    fn crash(self, survive: Survive, seed: u64) -> Replica {
        self.disk.stop();
        let disk = self.disk.after_crash(survive);
        drop((self.ks, self.jobs, self.engine));
        Replica::open(disk, seed)
    }
}

/// The entry of a log position.
fn entry(index: u64, seed: u64) -> Entry {
    let mut rng = Rng::new(seed.wrapping_mul(1000).wrapping_add(index));
    let key = |rng: &mut Rng| format!("{}{}", ["a", "m", "x"][rng.below(3) as usize], rng.below(6));
    let put = |rng: &mut Rng| {
        let (lease, size) = (i64::try_from(rng.below(4)).unwrap(), 1 + rng.below(900) as usize);
        Op::Put(PutRequest { lease, ..PutRequest::new(key(rng), vec![b'v'; size]) })
    };
    let delete = |rng: &mut Rng| Op::Delete(DeleteRequest { span: Span::key(key(rng)), prev_kv: true });
    let lease = i64::try_from(1 + index % 3).unwrap();
    let command = match rng.below(16) {
        0 | 1 => Command::LeaseGrant { id: lease, ttl: 100 },
        2 => Command::LeaseRevoke(lease),
        // Some of these are refused, on every replica.
        3 => Command::Compact(i64::try_from(index / 3).unwrap()),
        4 => Command::Nothing,
        5..8 => Command::Op(put(&mut rng)),
        8 => Command::Op(delete(&mut rng)),
        _ => {
            let number = i64::try_from(rng.below(3)).unwrap();
            let target = CompareTarget::Version(number);
            let compare = vec![Compare { span: Span::key(key(&mut rng)), target, op: CompareOp::Less }];
            let success = vec![put(&mut rng), delete(&mut rng)];
            let failure = vec![delete(&mut rng), Op::Range(RangeRequest::new(Span::prefix("")))];
            Command::Op(Op::Txn(TxnRequest { compare, success, failure }))
        }
    };
    Entry { index, command }
}

fn shown(answers: &[Result<Applied>]) -> Vec<String> {
    answers.iter().map(|answer| format!("{answer:?}")).collect()
}

#[test]
fn a_replica_that_crashes_and_replays_is_equal_to_one_that_did_not() {
    let mut replayed = 0;
    for seed in 1..=12 {
        let mut steady = Replica::open(SimDisk::new(seed), seed);
        let answers: Vec<String> = (1..=LOG).flat_map(|index| shown(&steady.apply(vec![entry(index, seed)]))).collect();
        assert!(answers.iter().any(|answer| answer.starts_with("Err")), "some are refused");

        let mut rng = Rng::new(seed);
        let mut other = Replica::open(SimDisk::new(seed + 100), seed + 100);
        let mut next = 1;
        let mut crashes = 4;
        while next <= LOG {
            // In other batches than the steady one's.
            let upto = (next + rng.below(9)).min(LOG);
            let batch = (next..=upto).map(|index| entry(index, seed)).collect();
            let found = shown(&other.apply(batch));
            assert_eq!(found, answers[next as usize - 1..upto as usize], "seed {seed}, entries {next} to {upto}");
            next = upto + 1;
            if crashes > 0 && rng.below(6) == 0 {
                crashes -= 1;
                let floor = other.ks.log_floor();
                let survive = [Survive::Nothing, Survive::All, Survive::Mix(seed)][rng.below(3) as usize];
                other = other.crash(survive, seed + 200 + crashes);
                let applied = other.ks.applied_index();
                assert!(applied >= floor && applied < next, "{applied} of {next}, the log was kept above {floor}");
                // A log that does not know how far it was begins too early: nothing happens twice (BKE-7).
                if applied > 0 {
                    let again = other.apply(vec![entry(applied, seed)]);
                    assert!(matches!(again[..], [Err(Error::Refused(Refusal::AlreadyApplied { .. }))]), "{again:?}");
                }
                replayed += next - 1 - applied;
                next = applied + 1;
            }
        }
        assert_eq!(other.ks.history_hash(), steady.ks.history_hash(), "seed {seed}");
        assert_eq!(other.ks.revision(), steady.ks.revision());
        assert_eq!(other.ks.compact_revision(), steady.ks.compact_revision());
        let first = steady.ks.compact_revision().max(1);
        for revision in first..=steady.ks.revision() {
            let (a, b) = (steady.ks.hash_kv(revision).unwrap(), other.ks.hash_kv(revision).unwrap());
            assert_eq!(a, b, "seed {seed}, revision {revision}");
        }
        assert_eq!(other.ks.leases().len(), steady.ks.leases().len());
        other.engine.verify(&mut |_| ()).unwrap();
    }
    assert!(replayed > 50, "{replayed} entries were replayed");
}
