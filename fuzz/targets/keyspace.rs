//! The whole: a keyspace on a simulated disk, its jobs in a seeded order, crashes anywhere; nothing that
//! was acknowledged is lost, and what is read is what a map says.
#![no_main]

use libfuzzer_sys::fuzz_target;
use polybolt::disk::Disk;
use polybolt::disk::sim::{SimDisk, Survive};
use polybolt::run::ManualClock;
use polybolt::run::seeded::Seeded;
use polybolt::{Engine, Options, PutRequest, RangeRequest, Routes, Runtime, Span};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

fn open(disk: &SimDisk, seed: u64) -> (Engine, Seeded) {
    let clock = ManualClock::default();
    let options = Options {
        buffer_bytes: 50_000,
        segment_bytes: 8192,
        journal_bytes: 48 << 10,
        space_reserve_bytes: 8192,
        ..Options::default()
    };
    let runtime = Runtime { disk: Arc::new(disk.clone()), clock: Arc::new(clock.clone()), threads: false };
    let engine = Engine::open_with("/data", options, runtime).expect("it opens");
    let jobs = Seeded::new(engine.take_jobs(), clock, seed);
    (engine, jobs)
}

fn finish<T>(jobs: &mut Seeded, answer: impl Future<Output = T>) -> T {
    let mut answer = pin!(answer);
    for _ in 0..50_000 {
        match answer.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(done) => return done,
            Poll::Pending if jobs.step_one() => {}
            Poll::Pending => jobs.advance(Duration::from_millis(5)),
        }
    }
    panic!("no answer came");
}

fuzz_target!(|input: (u64, Vec<(u8, u8)>)| {
    let (seed, operations) = input;
    let mut disk = SimDisk::new(seed);
    disk.create_dir("/data".as_ref()).expect("a directory");
    let (mut engine, mut jobs) = open(&disk, seed);
    engine.create_keyspace("ks", Routes::parse("low=a,mid=m").expect("routes")).expect("a keyspace");
    let mut model: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for (at, (operation, argument)) in operations.into_iter().take(60).enumerate() {
        let ks = engine.keyspace("ks").expect("it is there");
        let key = format!("{}{}", ["a", "m", "x"][usize::from(argument % 3)], argument % 11);
        match operation % 8 {
            0..4 => {
                let value = vec![argument; usize::from(operation) * 40];
                finish(&mut jobs, ks.put(PutRequest::new(key.clone(), value.clone()))).expect("a put");
                model.insert(key, value);
            }
            4 => {
                let request = polybolt::DeleteRequest { span: Span::key(key.clone()), prev_kv: false };
                finish(&mut jobs, ks.delete_range(request)).expect("a delete");
                model.remove(&key);
            }
            5 => drop(finish(&mut jobs, ks.compact(ks.revision() - i64::from(argument % 4), true))),
            6 => {
                // All of it was acknowledged: whatever the crash takes, it is there.
                drop((ks, engine, jobs));
                disk.stop();
                disk = disk.after_crash(Survive::Mix(seed ^ at as u64));
                (engine, jobs) = open(&disk, seed);
            }
            _ => {
                jobs.run_some(u64::from(argument));
                jobs.advance(Duration::from_millis(u64::from(argument)));
            }
        }
        let ks = engine.keyspace("ks").expect("it is there");
        let found = ks.range(&RangeRequest::new(Span::prefix(""))).expect("a range").kvs;
        let found: Vec<_> = found.into_iter().map(|kv| (kv.key.to_vec(), kv.value.to_vec())).collect();
        let wanted: Vec<_> = model.iter().map(|(key, value)| (key.clone().into_bytes(), value.clone())).collect();
        assert_eq!(found, wanted);
    }
    engine.verify(&mut |_| ()).expect("sound");
});
