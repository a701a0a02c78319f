//! A server that is killed while 16 clients write to it, again and again: nothing that was
//! acknowledged is lost, no txn is torn, and no revision is used twice or goes back.
//!
//! SIGKILL keeps what was written but not synced, so the syncs are counted too: at least one for each
//! journal group; and once the count itself is checked against the system calls.
#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]

mod common;

use common::{Served, has_program, polybolt, text};
use polybolt_frontend::proto::etcdserverpb as pb;
use polybolt_frontend::proto::etcdserverpb::kv_client::KvClient;
use polybolt_frontend::proto::mvccpb::KeyValue;
use polybolt_frontend::proto::v1::inspect_client::InspectClient;
use polybolt_frontend::proto::v1::{ShardsRequest, ShardsResponse};
use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tonic::transport::Channel;

const WRITERS: u64 = 16;
/// One key of each writer in each of three shards, always written together.
const PREFIXES: [&str; 3] = ["/registry/pods/", "/registry/leases/", "/registry/other/"];

fn rounds() -> u64 {
    std::env::var("POLYBOLT_KILL_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(25)
}

fn put(key: String, value: String) -> pb::RequestOp {
    let put = pb::PutRequest { key: key.into(), value: value.into(), ..Default::default() };
    pb::RequestOp { request: Some(pb::request_op::Request::RequestPut(put)) }
}

/// Writes rising numbers under a writer's three keys until the server is gone; the last acknowledged, and the revision
/// of each.
async fn write(url: String, writer: u64, from: u64, tried: Arc<Vec<AtomicU64>>) -> (u64, Vec<i64>) {
    let mut client = KvClient::connect(url).await.unwrap();
    let (mut acknowledged, mut revisions) = (from, Vec::new());
    loop {
        let next = acknowledged + 1;
        tried[writer as usize].store(next, Ordering::SeqCst);
        let padding = "x".repeat((next % 50) as usize * 20);
        let success =
            PREFIXES.iter().map(|prefix| put(format!("{prefix}{writer}"), format!("{next} {padding}"))).collect();
        match client.txn(pb::TxnRequest { success, ..Default::default() }).await {
            Ok(answer) => {
                acknowledged = next;
                revisions.push(answer.into_inner().header.unwrap().revision);
            }
            Err(_) => return (acknowledged, revisions),
        }
    }
}

async fn inspect(url: &str) -> ShardsResponse {
    InspectClient::connect(url.to_owned()).await.unwrap().shards(ShardsRequest {}).await.unwrap().into_inner()
}

/// Each writer's number under each prefix, and the revision of a key of each writer.
async fn numbers(client: &mut KvClient<Channel>) -> (Vec<BTreeMap<u64, u64>>, Vec<i64>, i64) {
    let (mut found, mut revisions, mut newest) = (Vec::new(), Vec::new(), 0);
    for prefix in PREFIXES {
        let end = format!("{}0", prefix.trim_end_matches('/'));
        let request = pb::RangeRequest { key: prefix.into(), range_end: end.into(), ..Default::default() };
        let answer = client.range(request).await.unwrap().into_inner();
        let kvs = answer.kvs;
        newest = answer.header.unwrap().revision;
        revisions.extend(kvs.iter().map(|kv| kv.mod_revision));
        let number = |kv: KeyValue| {
            let writer = text(&kv.key[prefix.len()..]).parse().unwrap();
            (writer, text(&kv.value).split(' ').next().unwrap().parse().unwrap())
        };
        found.push(kvs.into_iter().map(number).collect());
    }
    (found, revisions, newest)
}

/// What is known of revisions.
#[derive(Default)]
struct Revisions {
    /// The newest that a client was told of.
    newest: i64,
    /// Txns of all rounds.
    count: usize,
}

impl Revisions {
    /// Those of a round, which began at one.
    fn take(&mut self, round: u64, began: i64, mut told: Vec<i64>) {
        told.sort_unstable();
        assert!(told.windows(2).all(|pair| pair[0] < pair[1]), "round {round}: a revision was used twice: {told:?}");
        assert!(told.first().is_none_or(|first| *first > began), "round {round}: {told:?} began at {began}");
        self.newest = told.last().copied().unwrap_or(began);
        self.count += told.len();
    }

    /// A restart is at the newest revision that anybody was told at least, and no key is above that.
    fn check(&self, round: u64, found: &[i64], newest: i64) {
        assert!(newest >= self.newest, "round {round}: at {newest}, and {} was told", self.newest);
        assert!(found.iter().all(|revision| *revision <= newest), "round {round}: {found:?} at {newest}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_and_no_txn_is_torn() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = vec![0; WRITERS as usize];
    let tried: Arc<Vec<AtomicU64>> = Arc::new((0..WRITERS).map(|_| AtomicU64::new(0)).collect());
    let (mut total, mut groups, mut syncs) = (0, 0, 0);
    let mut revisions = Revisions::default();
    // The last start looks at what the last kill left.
    for round in 0..=rounds() {
        let served = Served::start(dir.path(), &["--buffer-bytes", "1048576"]);
        let url = served.url();
        // What the last kill left.
        let mut client = KvClient::connect(url.clone()).await.unwrap();
        let (found, of_keys, began) = numbers(&mut client).await;
        revisions.check(round, &of_keys, began);
        for writer in 0..WRITERS {
            let of = |at: usize| found[at].get(&writer).copied().unwrap_or(0);
            assert!(of(0) == of(1) && of(1) == of(2), "round {round}: writer {writer} is torn: {found:?}");
            let (lowest, highest) = (acknowledged[writer as usize], tried[writer as usize].load(Ordering::SeqCst));
            assert!(of(0) >= lowest, "round {round}: writer {writer} lost {lowest}, has {}", of(0));
            assert!(of(0) <= highest);
            acknowledged[writer as usize] = of(0);
        }
        if round == rounds() {
            served.kill();
            break;
        }
        let writing: Vec<_> = (0..WRITERS)
            .map(|writer| tokio::spawn(write(url.clone(), writer, acknowledged[writer as usize], Arc::clone(&tried))))
            .collect();
        // Random enough: what the scheduler and the disk make of it.
        tokio::time::sleep(Duration::from_millis(80 + round * 37 % 400)).await;
        let mut stats = inspect(&url).await;
        while stats.journal_groups == 0 {
            stats = inspect(&url).await;
        }
        served.kill();
        let mut told = Vec::new();
        for (writer, task) in writing.into_iter().enumerate() {
            let (reached, of_writer) = task.await.unwrap();
            assert!(of_writer.windows(2).all(|pair| pair[0] < pair[1]), "round {round}: {of_writer:?} of {writer}");
            told.extend(of_writer);
            total += reached - acknowledged[writer];
            acknowledged[writer] = reached;
        }
        revisions.take(round, began, told);
        assert!(stats.sync_calls >= stats.journal_groups && stats.journal_groups > 0, "{stats:?}");
        groups += stats.journal_groups;
        syncs += stats.sync_calls;
    }
    println!(
        "{} rounds: {total} txns acknowledged, {} revisions, none twice, none back; {groups} journal groups, {syncs} syncs",
        rounds(),
        revisions.count
    );
    let verified = polybolt().arg("verify").arg("--data-dir").arg(dir.path()).output().unwrap();
    assert!(verified.status.success(), "{}", text(&verified.stderr));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_count_of_syncs_is_that_of_the_system() {
    if !has_program("strace") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("strace");
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-e", "trace=fdatasync,fsync,syncfs", "-o"]).arg(&log);
    command.arg(env!("CARGO_BIN_EXE_polybolt")).arg("serve");
    let served = Served::start_with(command, &dir.path().join("data"), &[]);
    let url = served.url();
    let mut client = KvClient::connect(url.clone()).await.unwrap();
    for n in 0..200u64 {
        let request = pb::PutRequest { key: format!("k{n}").into(), value: "v".into(), ..Default::default() };
        client.put(request).await.unwrap();
    }
    let stats = inspect(&url).await;
    // The traced process, not strace: so that it closes in its own time.
    let stopped = Command::new("pkill").args(["-TERM", "-P", &served.pid().to_string()]).status().unwrap();
    assert!(stopped.success());
    served.wait();
    let calls = std::fs::read_to_string(&log).unwrap();
    // A call that was interrupted by another thread's is shown twice, but has its parenthesis once.
    let traced = calls.lines().filter(|line| line.contains("sync(")).count() as u64;
    println!("{traced} traced, {} counted, {} groups", stats.sync_calls, stats.journal_groups);
    assert!(stats.journal_groups >= 200, "one caller at a time: a group each");
    assert!(stats.sync_calls >= stats.journal_groups);
    // Closing syncs a few more after the count was asked for.
    assert!(traced >= stats.sync_calls && traced <= stats.sync_calls + 60, "{traced} {}", stats.sync_calls);
}
