//! `polybolt reshard`, of a server under load and of a data directory, and a server that is killed in the middle of it.
#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]

mod common;

use common::{Rng, Served, polybolt, succeed, text};
use polybolt_frontend::proto::etcdserverpb as pb;
use polybolt_frontend::proto::etcdserverpb::kv_client::KvClient;
use polybolt_frontend::proto::v1::ShardsRequest;
use polybolt_frontend::proto::v1::inspect_client::InspectClient;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio_stream::StreamExt;
use tonic::transport::Channel;

const PREFIXES: [&str; 3] = ["/registry/pods/", "/registry/events/", "/registry/other/"];
const SPLIT: &str = "events=/registry/events/,pods=/registry/pods/";

async fn channel(served: &Served) -> Channel {
    Channel::from_shared(served.url()).unwrap().connect().await.unwrap()
}

fn put(key: String, value: String) -> pb::RequestOp {
    let put = pb::PutRequest { key: key.into(), value: value.into(), ..Default::default() };
    pb::RequestOp { request: Some(pb::request_op::Request::RequestPut(put)) }
}

fn all(revision: i64) -> pb::RangeRequest {
    pb::RangeRequest { key: "/".into(), range_end: "0".into(), revision, ..Default::default() }
}

/// So many keys under each prefix.
async fn load(channel: &Channel, keys: usize) {
    let mut kv = KvClient::new(channel.clone());
    let names: Vec<String> = (0..keys).flat_map(|n| PREFIXES.map(|prefix| format!("{prefix}object-{n:06}"))).collect();
    for names in names.chunks(100) {
        let success = names.iter().map(|name| put(name.clone(), "v".repeat(500))).collect();
        kv.txn(pb::TxnRequest { success, ..Default::default() }).await.unwrap();
    }
}

async fn shards(channel: &Channel) -> Vec<String> {
    let shards = InspectClient::new(channel.clone()).shards(ShardsRequest {}).await.unwrap().into_inner().shards;
    shards.into_iter().map(|shard| shard.name).collect()
}

async fn hash(channel: &Channel, revision: i64) -> u32 {
    let mut maintenance = pb::maintenance_client::MaintenanceClient::new(channel.clone());
    maintenance.hash_kv(pb::HashKvRequest { revision }).await.unwrap().into_inner().hash
}

async fn reshard(endpoint: String, routes: &'static str) -> String {
    let run = move || succeed(polybolt().args(["reshard", "--endpoint", &endpoint, "--routes", routes]));
    tokio::task::spawn_blocking(run).await.unwrap()
}

fn refused(arguments: &[&str]) -> String {
    let output = polybolt().arg("reshard").args(arguments).output().unwrap();
    assert!(!output.status.success());
    text(&output.stderr)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prefix_is_split_out_and_merged_back_while_clients_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let served = Served::start(&data, &["--routes", "single"]);
    let clients = channel(&served).await;
    load(&clients, 1000).await;
    let mut kv = KvClient::new(clients.clone());
    let before = kv.range(all(0)).await.unwrap().into_inner();
    let (first, kvs) = (before.header.unwrap().revision, before.kvs);
    let hashed = hash(&clients, first).await;
    let (done, wrote) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));

    // A watcher from before, and writers whose every put has to be answered.
    let create = pb::WatchCreateRequest {
        key: "/".into(),
        range_end: "0".into(),
        start_revision: first + 1,
        ..Default::default()
    };
    let union = pb::watch_request::RequestUnion::CreateRequest(create);
    let create = tokio_stream::once(pb::WatchRequest { request_union: Some(union) }).chain(tokio_stream::pending());
    let mut events = pb::watch_client::WatchClient::new(clients.clone()).watch(create).await.unwrap().into_inner();
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let (mut kv, done, wrote) = (kv.clone(), Arc::clone(&done), Arc::clone(&wrote));
            tokio::spawn(async move {
                for n in 0u64.. {
                    if done.load(Ordering::SeqCst) {
                        break;
                    }
                    let key = format!("{}writer-{writer}", PREFIXES[(n % 3) as usize]);
                    let put = pb::PutRequest { key: key.into(), value: n.to_string().into(), ..Default::default() };
                    kv.put(put).await.unwrap();
                    wrote.fetch_add(1, Ordering::SeqCst);
                }
            })
        })
        .collect();
    // A pager at the revision from before.
    let pager = {
        let (mut kv, done) = (kv.clone(), Arc::clone(&done));
        tokio::spawn(async move {
            while !done.load(Ordering::SeqCst) {
                let (mut found, mut key) = (Vec::new(), b"/".to_vec());
                loop {
                    let page = pb::RangeRequest { key: key.into(), limit: 100, ..all(first) };
                    let page = kv.range(page).await.unwrap().into_inner();
                    found.extend(page.kvs);
                    if !page.more {
                        break;
                    }
                    key = found.last().unwrap().key.to_vec();
                    key.push(0);
                }
                assert!(found == kvs, "the state at {first} changed");
            }
        })
    };

    for (routes, names) in [(SPLIT, &["events", "pods", "default"][..]), ("single", &["default"])] {
        let from = wrote.load(Ordering::SeqCst);
        let said = reshard(served.url(), routes).await;
        assert!(said.contains(&format!("into {} shards", names.len())), "{said}");
        assert_eq!(shards(&clients).await, names);
        assert_eq!(hash(&clients, first).await, hashed, "the contents at {first}");
        while wrote.load(Ordering::SeqCst) < from + 50 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    done.store(true, Ordering::SeqCst);
    for writer in writers {
        writer.await.unwrap();
    }
    pager.await.unwrap();
    let last = first + wrote.load(Ordering::SeqCst).cast_signed();
    let mut next = first + 1;
    while next <= last {
        let response = events.message().await.unwrap().unwrap();
        assert!(!response.canceled, "{response:?}");
        for event in response.events {
            assert_eq!(event.kv.unwrap().mod_revision, next, "each revision once");
            next += 1;
        }
    }
    let hashed = hash(&clients, last).await;
    assert!(served.stop());

    // Of a directory that nobody serves.
    let path = data.to_str().unwrap();
    let said = succeed(polybolt().args(["reshard", "--data-dir", path, "--routes", "kubernetes"]));
    assert!(said.contains("rows copied into 6 shards"), "{said}");
    succeed(polybolt().args(["check", "--data-dir", path]));
    let output = polybolt().args(["serve", "--data-dir", path, "--routes", "single"]).output().unwrap();
    assert!(text(&output.stderr).contains("polybolt reshard"), "{}", text(&output.stderr));
    let served = Served::start(&data, &["--routes", "kubernetes"]);
    assert_eq!(hash(&channel(&served).await, last).await, hashed);
}

#[tokio::test]
async fn routes_that_cannot_be_are_refused_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let served = Served::start(dir.path(), &["--routes", "events=e", "--shard-retention", "events=1h"]);
    let url = served.url();
    let online = |routes| refused(&["--endpoint", &url, "--routes", routes]);
    assert!(online("a=x,b=x").contains("two shards take the prefix"));
    assert!(online("single").contains("--shard-retention"));
    let offline = |path: &Path| refused(&["--data-dir", path.to_str().unwrap(), "--routes", "single"]);
    assert!(offline(dir.path()).contains("has this data directory open"));
    let none = dir.path().join("none");
    offline(&none);
    assert!(!none.exists(), "what is no data directory does not become one");
    assert!(refused(&["--endpoint", "127.0.0.1:1", "--routes", "single"]).contains("no server answers"));
}

/// Counts in three keys, one of each prefix, always together; what was acknowledged last.
async fn count(channel: Channel, writer: u64, from: u64) -> u64 {
    let mut kv = KvClient::new(channel);
    let mut acknowledged = from;
    loop {
        let next = acknowledged + 1;
        let success = PREFIXES.iter().map(|prefix| put(format!("{prefix}count-{writer}"), next.to_string())).collect();
        match kv.txn(pb::TxnRequest { success, ..Default::default() }).await {
            Ok(_) => acknowledged = next,
            Err(_) => return acknowledged,
        }
    }
}

fn begin(url: &str, routes: &str) -> Child {
    let mut command = polybolt();
    command.args(["reshard", "--endpoint", url, "--routes", routes]);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// Killed at a moment of a change of routes drawn at random, on the real disk: one split or the other, whole, and
/// nothing that was acknowledged is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_while_a_prefix_moves_loses_nothing() {
    const WRITERS: u64 = 8;
    let (rounds, seed) = (number("POLYBOLT_RESHARD_ROUNDS", 5), number("POLYBOLT_RESHARD_SEED", 1));
    println!("POLYBOLT_RESHARD_SEED={seed}");
    let mut rng = Rng(seed);
    let dir = tempfile::tempdir().unwrap();
    let mut served = Served::start(dir.path(), &["--routes", "single"]);
    let mut clients = channel(&served).await;
    load(&clients, 5000).await;
    let loaded = KvClient::new(clients.clone()).range(pb::RangeRequest { count_only: true, ..all(0) }).await;
    let loaded = loaded.unwrap().into_inner().count;
    let begun = Instant::now();
    reshard(served.url(), SPLIT).await;
    let takes = begun.elapsed();
    let (mut is_split, mut moved) = (true, 0);
    let mut acknowledged = vec![0; WRITERS as usize];
    for round in 0..rounds {
        let writing: Vec<_> = (0..WRITERS)
            .map(|writer| tokio::spawn(count(clients.clone(), writer, acknowledged[writer as usize])))
            .collect();
        let mut moving = begin(&served.url(), if is_split { "single" } else { SPLIT });
        // Beside writers it takes longer than alone.
        tokio::time::sleep(takes.mul_f64(rng.below(3000) as f64 / 1000.0)).await;
        served.kill();
        let completed = moving.wait().unwrap().success();
        for (writer, task) in writing.into_iter().enumerate() {
            acknowledged[writer] = task.await.unwrap();
        }
        succeed(polybolt().arg("check").arg("--data-dir").arg(dir.path()));
        served = Served::start(dir.path(), &[]);
        clients = channel(&served).await;
        let was_split = std::mem::replace(&mut is_split, shards(&clients).await.len() == 3);
        assert!(!completed || is_split != was_split, "round {round}: a change that was acknowledged is gone");
        moved += u64::from(is_split != was_split);
        let mut kv = KvClient::new(clients.clone());
        for (writer, acknowledged) in acknowledged.iter_mut().enumerate() {
            let mut found = Vec::new();
            for prefix in PREFIXES {
                let key = format!("{prefix}count-{writer}").into();
                let kvs = kv.range(pb::RangeRequest { key, ..Default::default() }).await.unwrap().into_inner().kvs;
                found.push(kvs.first().map_or(0, |kv| text(&kv.value).parse::<u64>().unwrap()));
            }
            assert!(found.iter().all(|number| *number == found[0]), "round {round}: torn: {found:?}");
            assert!(found[0] >= *acknowledged && found[0] <= *acknowledged + 1, "round {round}: {found:?}");
            *acknowledged = found[0];
        }
    }
    println!(
        "{rounds} rounds: {moved} changes of routes were whole before the kill, {} txns",
        acknowledged.iter().sum::<u64>()
    );
    // The last one is brought to its end.
    reshard(served.url(), "kubernetes").await;
    let count = KvClient::new(clients).range(pb::RangeRequest { count_only: true, ..all(0) }).await.unwrap();
    let counted = acknowledged.iter().filter(|count| **count > 0).count() as i64 * 3;
    assert_eq!(count.into_inner().count, loaded + counted);
    assert!(served.stop());
    succeed(polybolt().arg("check").arg("--data-dir").arg(dir.path()));
}
