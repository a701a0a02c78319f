//! How long files are beside what they hold, without anybody asking for a defragmentation.
#![expect(clippy::unwrap_used, reason = "tests")]

use polybolt::disk::Disk;
use polybolt::disk::sim::SimDisk;
use polybolt::run::seeded::{Rng, Seeded};
use polybolt::run::{Clock, ManualClock};
use polybolt::{DeleteRequest, Durability, Engine, Keyspace, Options, PutRequest, Routes, Runtime, Span};
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

const KEYS: u64 = 12_000;
const VALUE_BYTES: usize = 512;

struct Driven {
    engine: Engine,
    jobs: Seeded,
    clock: ManualClock,
}

fn open(disk: &SimDisk) -> Driven {
    let clock = ManualClock::default();
    let options = Options {
        durability: Durability::Batch { interval: Duration::from_millis(100), limit: 10_000 },
        buffer_bytes: 1 << 20,
        space_reserve_bytes: 0,
        scrub_bytes_per_second: 0,
        vacuum_free_bytes_min: 64 << 10,
        vacuum_step_bytes: 64 << 10,
        ..Options::default()
    };
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    let runtime = Runtime { disk: shared, clock: Arc::new(clock.clone()), threads: false };
    let engine = Engine::open_with("/data/store", options, runtime).unwrap();
    let jobs = Seeded::new(engine.take_jobs(), clock.clone(), 1);
    Driven { engine, jobs, clock }
}

impl Driven {
    fn finish<T>(&mut self, answer: impl Future<Output = polybolt::Result<T>>) -> T {
        let mut answer = pin!(answer);
        for _ in 0..200_000 {
            match answer.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(done) => return done.unwrap(),
                Poll::Pending => {
                    if !self.jobs.step_one() {
                        self.clock.advance(Duration::from_millis(1));
                    }
                }
            }
        }
        panic!("no answer came");
    }

    fn pass(&mut self, time: Duration) {
        let until = self.clock.monotonic() + time;
        while self.clock.monotonic() < until {
            assert!(self.jobs.run_until_idle(100_000), "there is always something to do: {:?}", self.jobs);
            self.clock.advance(Duration::from_millis(5));
        }
    }

    fn put_all(&mut self, ks: &Keyspace, keys: impl Iterator<Item = u64>, round: u64) {
        for key in keys {
            let put = ks.put(PutRequest::new(name(key), vec![(key ^ round) as u8; VALUE_BYTES]));
            if key % 50 == 0 {
                self.finish(put);
            } else {
                drop(put);
                self.jobs.run_until_idle(20);
            }
        }
    }
}

fn name(key: u64) -> String {
    format!("{}{key:06}", ["a", "m", "x"][(key % 3) as usize])
}

/// Overwriting, deleting and compacting goes on for ever in files of about the size of what they hold.
#[test]
fn ten_rounds_of_changes_leave_files_little_longer_than_what_they_hold() {
    let disk = SimDisk::new(1);
    disk.create_dir("/data".as_ref()).unwrap();
    let mut driven = open(&disk);
    let ks = driven.engine.create_keyspace("ks", Routes::parse("low=a,mid=m").unwrap()).unwrap();
    driven.put_all(&ks, 0..KEYS, 0);
    let mut live: Vec<u64> = (0..KEYS).collect();
    let (mut rng, mut fresh) = (Rng::new(7), KEYS);
    let written = |engine: &Engine| engine.stats().page_bytes;
    let (before, mut put) = (written(&driven.engine), 0);
    for round in 1..=10 {
        let mut half: Vec<usize> = (0..live.len()).filter(|_| rng.one_in(2)).collect();
        put += half.len() as u64 * VALUE_BYTES as u64;
        if round % 2 == 0 {
            for at in half.drain(..) {
                let span = Span::key(name(live[at]));
                drop(ks.delete_range(DeleteRequest { span, prev_kv: false }));
                live[at] = fresh;
                driven.put_all(&ks, fresh..=fresh, round);
                fresh += 1;
            }
        } else {
            driven.put_all(&ks, half.iter().map(|at| live[*at]), round);
        }
        driven.pass(Duration::from_millis(200));
        driven.finish(ks.compact(ks.revision(), true));
        driven.pass(Duration::from_secs(10));
        let status = ks.status();
        let bytes: u64 = live.iter().map(|key| (name(*key).len() + VALUE_BYTES) as u64).sum();
        let files: u64 =
            disk.files().iter().filter(|(path, _)| path.to_string_lossy().contains(".tree")).map(|(_, len)| len).sum();
        println!("round {round}: files {files}, live {bytes}, {:?} in use of {}", status.size_in_use, status.size);
        assert_eq!(status.shards.iter().map(|shard| shard.keys).sum::<u64>(), live.len() as u64);
        assert!(files * 100 < bytes * 135, "round {round}: {files} bytes of files, {bytes} live");
    }
    let stats = driven.engine.stats();
    println!("{put} bytes put, {} written, {stats:?}", stats.page_bytes - before);
    assert!(stats.vacuum_cuts > 5 && stats.vacuum_moved_bytes * 2 < stats.page_bytes, "{stats:?}");
    driven.engine.verify(&mut |_| ()).unwrap();
}

/// A shard of which all keys are gone is as short as it was when it was made.
#[test]
fn a_shard_whose_keys_are_gone_shrinks_to_its_header() {
    let disk = SimDisk::new(2);
    disk.create_dir("/data".as_ref()).unwrap();
    let mut driven = open(&disk);
    let ks = driven.engine.create_keyspace("ks", Routes::parse("low=a,mid=m").unwrap()).unwrap();
    driven.put_all(&ks, 0..KEYS, 0);
    driven.pass(Duration::from_secs(1));
    let size = |ks: &Keyspace| ks.status().shards.iter().find(|shard| shard.name == "mid").unwrap().size;
    assert!(size(&ks) > 500_000, "{}", size(&ks));
    let others = ks.status().size - size(&ks);
    driven.finish(ks.delete_range(DeleteRequest { span: Span::prefix("m"), prev_kv: false }));
    // What is deleted by the compacted revision itself is remembered.
    driven.put_all(&ks, 0..1, 1);
    driven.finish(ks.compact(ks.revision(), true));
    driven.pass(Duration::from_secs(40));
    assert_eq!(size(&ks), 4096, "{:?}", ks.status());
    let file = ks.status().shards.iter().find(|shard| shard.name == "mid").unwrap().file.clone();
    assert!(disk.files().iter().any(|(path, len)| *path == file && *len == 4096));
    assert!(ks.status().size < others + 100_000);
    driven.put_all(&ks, 0..100, 5);
    driven.engine.verify(&mut |_| ()).unwrap();
}
