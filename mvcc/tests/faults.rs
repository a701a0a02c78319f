//! A disk that fails once, at every call in turn, and a disk that is full (R5).
//!
//! After an error that leaves durability in doubt nothing more is accepted, reads go on, and a restart
//! has everything that was acknowledged. A full disk refuses writes before anything is applied, can be
//! emptied through the engine, and goes on when there is room again.
#![expect(clippy::unwrap_used, reason = "tests")]

use polybolt::disk::Disk;
use polybolt::disk::sim::{Fault, SimDisk, Survive};
use polybolt::run::ManualClock;
use polybolt::run::seeded::Seeded;
use polybolt::{
    DeleteRequest, Engine, Error, Keyspace, Options, PutRequest, RangeRequest, Refusal, Result, Routes, Runtime,
    ShardOptions, Span,
};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

struct Driven {
    engine: Engine,
    jobs: Seeded,
}

fn open(disk: &SimDisk, seed: u64) -> Result<Driven> {
    let clock = ManualClock::default();
    let options = Options {
        buffer_bytes: 60_000,
        segment_bytes: 8192,
        journal_bytes: 48 << 10,
        checkpoint_interval: Duration::from_millis(40),
        space_reserve_bytes: 64 << 10,
        admission_timeout: Duration::from_secs(2),
        ..Options::default()
    };
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    let runtime = Runtime { disk, clock: Arc::new(clock.clone()), threads: false };
    let engine = Engine::open_with("/data/store", options, runtime)?;
    let jobs = Seeded::new(engine.take_jobs(), clock, seed);
    Ok(Driven { engine, jobs })
}

impl Driven {
    fn finish<T>(&mut self, answer: impl Future<Output = T>) -> T {
        let mut answer = pin!(answer);
        for _ in 0..20_000 {
            match answer.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(done) => return done,
                Poll::Pending if self.jobs.step_one() => {}
                Poll::Pending => self.jobs.advance(Duration::from_millis(5)),
            }
        }
        panic!("no answer came");
    }
}

type Contents = BTreeMap<Vec<u8>, Vec<u8>>;

fn contents(ks: &Keyspace) -> Result<Contents> {
    let kvs = ks.range(&RangeRequest::new(Span::prefix("")))?.kvs;
    Ok(kvs.into_iter().map(|kv| (kv.key.to_vec(), kv.value.to_vec())).collect())
}

/// What is known to be there, and what may be.
#[derive(Debug, Default)]
struct Truth {
    acknowledged: Contents,
    /// The one write whose outcome is unknown.
    doubtful: Option<(Vec<u8>, Vec<u8>)>,
    made: bool,
    refused_after_failure: bool,
}

fn work(disk: &SimDisk, seed: u64, truth: &mut Truth) -> Result<()> {
    let mut driven = open(disk, seed)?;
    let ks = driven.engine.create_keyspace("ks", Routes::parse("low=a,mid=m").unwrap())?;
    truth.made = true;
    for n in 0..40u64 {
        let key = format!("{}{}", ["a", "m", "x"][(n % 3) as usize], n % 13).into_bytes();
        let value = vec![n as u8; if n % 9 == 4 { 9000 } else { 300 }];
        let answer = driven.finish(ks.put(PutRequest::new(key.clone(), value.clone())));
        match answer {
            Ok(_) => drop(truth.acknowledged.insert(key, value)),
            Err(Error::Unknown(_)) => truth.doubtful = Some((key, value)),
            // Applied and not durable, or not applied at all: a restart tells.
            Err(Error::Storage(_)) => {}
            Err(Error::Refused(Refusal::DiskFull | Refusal::TooManyRequests)) => {}
            Err(error) => panic!("{error}"),
        }
        if let Some(failure) = driven.engine.failure() {
            assert!(!failure.to_string().is_empty());
            let after = driven.finish(ks.put(PutRequest::new("z", "late")));
            assert!(matches!(after, Err(Error::Storage(_))), "{after:?}");
            truth.refused_after_failure = true;
            // Reads go on, and show nothing that is not durable.
            let found = contents(&ks).unwrap();
            for (key, value) in &truth.acknowledged {
                let doubtful = truth.doubtful.as_ref().is_some_and(|(doubtful, _)| doubtful == key);
                assert!(found.get(key) == Some(value) || doubtful);
            }
            return Ok(());
        }
        driven.jobs.run_some(3);
        driven.jobs.advance(Duration::from_millis(11));
    }
    drop(ks);
    driven.engine.close()
}

fn recovers(disk: &SimDisk, truth: &Truth) {
    let mut driven = open(disk, 77).unwrap();
    let Ok(ks) = driven.engine.keyspace("ks") else {
        assert!(!truth.made);
        return;
    };
    let mut found = contents(&ks).unwrap();
    if let Some((key, value)) = &truth.doubtful
        && found.get(key) == Some(value)
    {
        match truth.acknowledged.get(key) {
            Some(before) => drop(found.insert(key.clone(), before.clone())),
            None => drop(found.remove(key)),
        }
    }
    assert_eq!(found, truth.acknowledged);
    driven.engine.verify(&mut |_| ()).unwrap();
    let put = ks.put(PutRequest::new("new", "1"));
    driven.finish(put).unwrap();
}

fn fails_everywhere(fault: Fault, times: u64) {
    let clean = SimDisk::new(5);
    clean.create_dir("/data".as_ref()).unwrap();
    work(&clean, 5, &mut Truth::default()).unwrap();
    let mut refused = 0;
    for call in 2..=clean.calls() {
        let disk = SimDisk::new(5);
        disk.create_dir("/data".as_ref()).unwrap();
        disk.fail_at(call, times, fault);
        let mut truth = Truth::default();
        let outcome = work(&disk, 5, &mut truth);
        eprintln!("call {call} ({}): {outcome:?}", disk.last_call());
        refused += u64::from(truth.refused_after_failure);
        disk.heal();
        disk.stop();
        for survive in [Survive::All, Survive::Nothing, Survive::Mix(call)] {
            recovers(&disk.after_crash(survive), &truth);
        }
    }
    println!("{fault:?}: {} calls, {refused} left the engine without writes", clean.calls());
    assert!(refused > 10, "{refused}");
}

#[test]
fn an_io_error_at_any_call_loses_nothing() {
    fails_everywhere(Fault::Eio, 1);
}

#[test]
fn an_io_error_that_stays_loses_nothing() {
    fails_everywhere(Fault::Eio, u64::MAX / 2);
}

#[test]
fn a_full_disk_refuses_can_be_emptied_and_goes_on() {
    for room in [60_000, 120_000, 250_000] {
        let disk = SimDisk::new(3);
        disk.create_dir("/data".as_ref()).unwrap();
        let mut driven = open(&disk, 3).unwrap();
        // Pages that are small beside the room that is left.
        let shard = ShardOptions { page_bytes: 8192, ..ShardOptions::new("default") };
        let ks = driven.engine.create_keyspace("ks", Routes::new(vec![shard]).unwrap()).unwrap();
        driven.jobs.run_until_idle(1000);
        disk.set_capacity(Some(disk.used() + room));
        let mut kept = Contents::new();
        let mut refused = false;
        for n in 0..400u64 {
            let (key, value) = (format!("k{n}").into_bytes(), vec![n as u8; 3000]);
            match driven.finish(ks.put(PutRequest::new(key.clone(), value.clone()))) {
                Ok(_) => drop(kept.insert(key, value)),
                Err(Error::Refused(Refusal::DiskFull | Refusal::TooManyRequests)) => {
                    refused = true;
                    break;
                }
                Err(error) => panic!("{error}"),
            }
            driven.jobs.advance(Duration::from_millis(10));
        }
        assert!(refused, "{room} bytes never filled up");
        assert_eq!(driven.engine.failure().map(|failure| failure.to_string()), None, "full is not broken");
        assert_eq!(contents(&ks).unwrap(), kept, "reads go on");
        // Emptied through the engine: delete all, forget it, and there is room for more.
        driven.finish(ks.delete_range(DeleteRequest { span: Span::prefix(""), prev_kv: false })).unwrap();
        driven.finish(ks.compact(ks.revision(), true)).unwrap();
        for _ in 0..40 {
            driven.jobs.run_until_idle(1000);
            driven.jobs.advance(Duration::from_millis(500));
        }
        eprintln!("{room}: {:?} used {} {:?}", driven.engine.stats(), disk.used(), ks.status().shards[0]);
        driven.finish(ks.put(PutRequest::new("again", "1"))).unwrap();
        // And when the disk is larger, as much as before.
        disk.set_capacity(None);
        for n in 0..100u64 {
            driven.finish(ks.put(PutRequest::new(format!("more{n}"), vec![1; 3000]))).unwrap();
        }
        driven.engine.verify(&mut |_| ()).unwrap();
    }
}

/// Found by `compaction_cmp_1_to_6` on a slow machine: the sweep said that it was through with a compaction
/// which had come while it was half through the one before.
#[test]
fn a_compaction_that_comes_during_a_sweep_is_whole_when_it_says_so() {
    for steps in 0..60 {
        let disk = SimDisk::new(steps);
        disk.create_dir("/data".as_ref()).unwrap();
        let mut driven = open(&disk, steps).unwrap();
        let ks = driven.engine.create_keyspace("ks", Routes::parse("low=a,mid=m").unwrap()).unwrap();
        let mut last = 0;
        for n in 0..30 {
            // The last shard has nothing to remove.
            let key = ["a", "m"][n % 2];
            last = driven.finish(ks.put(PutRequest::new(key, n.to_string()))).unwrap().revision;
        }
        driven.finish(ks.compact(last - 7, false)).unwrap();
        for _ in 0..steps {
            if !driven.jobs.step_one() {
                driven.jobs.advance(Duration::from_millis(3));
            }
        }
        driven.finish(ks.compact(last, true)).unwrap();
        let rows: u64 = ks.status().shards.iter().map(|shard| shard.revisions).sum();
        assert_eq!(rows, 2, "after {steps} steps");
    }
}
