//! Servers that are killed while they compact, reclaim leaves, vacuum or change routes under load, at moments drawn at
//! random, on the real disk: each is verified, opened, and brought to the end of what it was at.
//!
//! `POLYBOLT_JOB_ROUNDS` (3) and `POLYBOLT_JOB_SEED` (1).
#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]

mod common;

use common::counting::{Counters, all, channel, delete_all, inspect, objects, put_all};
use common::{Rng, Served, polybolt, succeed};
use polybolt_frontend::proto::etcdserverpb as pb;
use polybolt_frontend::proto::etcdserverpb::kv_client::KvClient;
use polybolt_frontend::proto::etcdserverpb::maintenance_client::MaintenanceClient;
use polybolt_frontend::proto::mvccpb::KeyValue;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};
use tonic::Code;
use tonic::transport::Channel;

const CLIENTS: usize = 8;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// How many rounds, and what moments are drawn with.
fn campaign() -> (u64, Rng) {
    let (rounds, seed) = (number("POLYBOLT_JOB_ROUNDS", 3), number("POLYBOLT_JOB_SEED", 1));
    println!("POLYBOLT_JOB_SEED={seed}");
    (rounds, Rng(seed))
}

/// What a server is killed at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Job {
    /// The sweep after a compaction.
    Sweep,
    /// What lingers in leaves goes, as a defragmentation begins with.
    Reclaim,
    /// Files become shorter.
    Vacuum,
}

impl Job {
    /// Flags with which there is something to do, and it takes a while: with large buffers no row would be in a leaf.
    fn flags(self) -> Vec<&'static str> {
        let own: &[&str] = match self {
            Job::Sweep => &["--compaction-batch-limit", "50", "--compaction-sleep-interval", "2ms"],
            Job::Reclaim => &["--compaction-reclaim-percent", "100", "--vacuum-bytes-per-second", "0"],
            Job::Vacuum => &["--vacuum-bytes-per-second", "0"],
        };
        [&["--buffer-bytes", "1048576"], own].concat()
    }

    /// Makes work for it; the revision after, and everything as of that.
    async fn prepare(self, clients: &Channel, names: &[String], rng: &mut Rng) -> (i64, Vec<KeyValue>) {
        let some = |one_in: u64, rng: &mut Rng| -> Vec<String> {
            names.iter().filter(|_| rng.one_in(one_in)).cloned().collect()
        };
        match self {
            Job::Sweep => put_all(clients, &some(2, rng)).await,
            Job::Reclaim => put_all(clients, &some(30, rng)).await,
            Job::Vacuum => {
                put_all(clients, names).await;
                delete_all(clients, &some(2, rng)).await;
            }
        }
        // A tombstone of the compacted revision would stay.
        put_all(clients, &names[..1]).await;
        let mut kv = KvClient::new(clients.clone());
        let revision = kv.range(all(0)).await.unwrap().into_inner().header.unwrap().revision;
        let kvs = kv.range(all(revision)).await.unwrap().into_inner().kvs;
        if self != Job::Sweep {
            kv.compact(pb::CompactionRequest { revision, physical: true }).await.unwrap();
        }
        if self == Job::Reclaim {
            assert!(inspect(clients).await.compaction_lingering > 0);
        }
        (revision, kvs)
    }

    /// Runs until it is done; false if the server is gone.
    async fn run(self, clients: Channel, revision: i64) -> bool {
        match self {
            Job::Sweep => {
                let request = pb::CompactionRequest { revision, physical: true };
                KvClient::new(clients).compact(request).await.is_ok()
            }
            Job::Reclaim | Job::Vacuum => {
                MaintenanceClient::new(clients).defragment(pb::DefragmentRequest {}).await.is_ok()
            }
        }
    }
}

fn check(dir: &Path) {
    succeed(polybolt().arg("check").arg("--data-dir").arg(dir));
}

async fn killed_at(job: Job) {
    let (rounds, mut rng) = campaign();
    let dir = tempfile::tempdir().unwrap();
    let mut served = Served::start(dir.path(), &job.flags());
    let mut clients = channel(&served).await;
    let names = objects(2000);
    put_all(&clients, &names).await;
    let (revision, _) = job.prepare(&clients, &names, &mut rng).await;
    let begun = Instant::now();
    assert!(job.run(clients.clone(), revision).await);
    let (mut takes, mut done) = (begun.elapsed(), 0);
    let mut counters = Counters::new(CLIENTS);
    for round in 0..rounds {
        let (revision, kvs) = job.prepare(&clients, &names, &mut rng).await;
        let counting = counters.begin(&clients);
        let (begun, running) = (Instant::now(), tokio::spawn(job.run(clients.clone(), revision)));
        // Beside writers it takes longer than alone; what lingers goes at its begin.
        let most = if job == Job::Reclaim { 400 } else { 2000 };
        tokio::time::sleep(takes.mul_f64(rng.below(most) as f64 / 1000.0)).await;
        let at = begun.elapsed();
        served.kill();
        let was_done = running.await.unwrap();
        done += u64::from(was_done);
        if was_done {
            takes = takes.min(at);
        }
        check(dir.path());
        served = Served::start(dir.path(), &job.flags());
        clients = channel(&served).await;
        counters.check(&clients, counting).await;
        let mut kv = KvClient::new(clients.clone());
        let found = kv.range(all(revision)).await.unwrap().into_inner().kvs;
        assert!(found == kvs, "{job:?}, round {round}: another state at {revision}");
        let before = kv.range(all(revision - 1)).await;
        let is_refused = before.as_ref().is_err_and(|status| status.code() == Code::OutOfRange);
        assert!(is_refused || (job == Job::Sweep && !was_done), "{job:?}, round {round}: {before:?}");
        // To its end.
        if is_refused {
            while inspect(&clients).await.compaction_left > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        assert!(job == Job::Sweep || job.run(clients.clone(), revision).await);
        let found = kv.range(all(revision)).await.unwrap().into_inner().kvs;
        assert!(found == kvs, "{job:?}, round {round}: another state at {revision} at its end");
    }
    println!("{job:?}: {rounds} rounds, {done} done before the kill, {} txns", counters.total());
    let revision = job.prepare(&clients, &names, &mut rng).await.0;
    assert!(job.run(clients.clone(), revision).await && Job::Vacuum.run(clients.clone(), revision).await);
    let state = inspect(&clients).await;
    assert_eq!((state.compaction_left, state.compaction_lingering), (0, 0));
    let (size, in_use) =
        state.shards.iter().fold((0, 0), |(size, in_use), shard| (size + shard.size, in_use + shard.size_in_use));
    assert!(in_use * 10 > size * 8, "{size} bytes of files for {in_use}");
    assert!(served.stop());
    check(dir.path());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_while_it_sweeps_loses_nothing() {
    killed_at(Job::Sweep).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_while_it_reclaims_leaves_loses_nothing() {
    killed_at(Job::Reclaim).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_while_it_vacuums_loses_nothing() {
    killed_at(Job::Vacuum).await;
}

const SPLIT: &str = "events=/registry/events/,pods=/registry/pods/";

fn reshard(served: &Served, routes: &str) -> Child {
    let mut command = polybolt();
    command.args(["reshard", "--endpoint", &served.url(), "--routes", routes]);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

async fn counted(clients: &Channel) -> usize {
    let count = pb::RangeRequest { count_only: true, ..all(0) };
    let count = KvClient::new(clients.clone()).range(count).await.unwrap().into_inner().count;
    usize::try_from(count).unwrap()
}

/// One split or the other, whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_while_a_prefix_moves_loses_nothing() {
    let (rounds, mut rng) = campaign();
    let dir = tempfile::tempdir().unwrap();
    let mut served = Served::start(dir.path(), &["--routes", "single"]);
    let mut clients = channel(&served).await;
    put_all(&clients, &objects(5000)).await;
    let loaded = counted(&clients).await;
    let begun = Instant::now();
    assert!(reshard(&served, SPLIT).wait().unwrap().success());
    let takes = begun.elapsed();
    let (mut is_split, mut moved) = (true, 0);
    let mut counters = Counters::new(CLIENTS);
    for round in 0..rounds {
        let counting = counters.begin(&clients);
        let mut moving = reshard(&served, if is_split { "single" } else { SPLIT });
        // Beside writers it takes longer than alone.
        tokio::time::sleep(takes.mul_f64(rng.below(3000) as f64 / 1000.0)).await;
        served.kill();
        let was_done = moving.wait().unwrap().success();
        check(dir.path());
        served = Served::start(dir.path(), &[]);
        clients = channel(&served).await;
        let was_split = std::mem::replace(&mut is_split, inspect(&clients).await.shards.len() == 3);
        assert!(!was_done || is_split != was_split, "round {round}: a change that was acknowledged is gone");
        moved += u64::from(is_split != was_split);
        counters.check(&clients, counting).await;
    }
    println!("{rounds} rounds: {moved} changes of routes were whole before the kill, {} txns", counters.total());
    // The last one is brought to its end.
    assert!(reshard(&served, "kubernetes").wait().unwrap().success());
    assert_eq!(counted(&clients).await, loaded + counters.keys());
    assert!(served.stop());
    check(dir.path());
}
