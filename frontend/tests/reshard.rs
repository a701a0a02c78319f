//! `polybolt reshard`, of a server under load and of a data directory.
#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]

mod common;

use common::counting::{PREFIXES, all, channel, inspect, objects, put_all};
use common::{Served, polybolt, succeed, text};
use polybolt_frontend::proto::etcdserverpb as pb;
use polybolt_frontend::proto::etcdserverpb::kv_client::KvClient;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio_stream::StreamExt;
use tonic::transport::Channel;

const SPLIT: &str = "events=/registry/events/,pods=/registry/pods/";

async fn shards(channel: &Channel) -> Vec<String> {
    inspect(channel).await.shards.into_iter().map(|shard| shard.name).collect()
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
    put_all(&clients, &objects(1000)).await;
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
