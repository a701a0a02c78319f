//! B1: writers on a slow disk, watchers that never read, readers that never finish and snapshots that crawl each
//! hold a bounded amount, a metric says how much, and it is gone when they are.
#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]

mod common;
#[path = "common/http.rs"]
mod web;

use common::{Served, has_program};
use polybolt_frontend::proto::etcdserverpb as pb;
use polybolt_frontend::proto::etcdserverpb::kv_client::KvClient;
use polybolt_frontend::proto::etcdserverpb::maintenance_client::MaintenanceClient;
use polybolt_frontend::proto::etcdserverpb::watch_client::WatchClient;
use std::process::Command;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic::transport::Channel;

const MIB: f64 = 1024.0 * 1024.0;

async fn channel(served: &Served) -> Channel {
    Channel::from_shared(served.url()).unwrap().connect().await.unwrap()
}

async fn gauge(served: &Served, name: &str) -> f64 {
    let text = web::get(served.port, "/metrics").await.body;
    let line = text.lines().find(|line| line.split(' ').next() == Some(name));
    line.unwrap_or_else(|| panic!("no {name}")).rsplit_once(' ').unwrap().1.parse().unwrap()
}

/// Waits until a gauge is as wanted.
async fn until(served: &Served, name: &str, wanted: impl Fn(f64) -> bool) {
    let limit = Instant::now() + Duration::from_secs(120);
    loop {
        let value = gauge(served, name).await;
        if wanted(value) {
            return;
        }
        assert!(Instant::now() < limit, "{name} is {value}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn put(key: impl Into<String>, bytes: usize) -> pb::PutRequest {
    pb::PutRequest { key: key.into().into(), value: vec![7; bytes].into(), ..Default::default() }
}

/// `count` keys with values of so many bytes; the last revision.
async fn fill(channel: &Channel, count: usize, bytes: usize) -> i64 {
    let mut revision = 0;
    for first in (0..count).step_by(50) {
        let puts = (first..count.min(first + 50)).map(|n| {
            let mut client = KvClient::new(channel.clone());
            tokio::spawn(async move { client.put(put(format!("key{n:05}"), bytes)).await.unwrap() })
        });
        for put in puts.collect::<Vec<_>>() {
            revision = revision.max(put.await.unwrap().into_inner().header.unwrap().revision);
        }
    }
    revision
}

fn all_keys() -> pb::RangeRequest {
    pb::RangeRequest { key: "key".into(), range_end: "kez".into(), ..Default::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_on_a_slow_disk_wait_and_what_waits_is_bounded() {
    if !asked() {
        return;
    }
    if !has_program("strace") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new("strace");
    command.args(["-D", "-f", "-qq", "--seccomp-bpf", "-o", "/dev/null", "-e", "trace=pwrite64,fdatasync"]);
    command.args(["-e", "inject=pwrite64:delay_exit=200000", "-e", "inject=fdatasync:delay_exit=100000"]);
    command.arg(env!("CARGO_BIN_EXE_polybolt")).arg("serve");
    let served = Served::start_with(command, dir.path(), &["--buffer-bytes", "1048576"]);
    let (most_buffered, most_waiting) = (gauge(&served, "polybolt_buffered_bytes_max").await, 4.0 * MIB);
    let channel = channel(&served).await;
    // Three times as much as may be in buffers and wait.
    let writing: Vec<_> = (0..1500)
        .map(|n| {
            let mut client = KvClient::new(channel.clone());
            tokio::spawn(async move { client.put(put(format!("key{n:05}"), 10_000)).await })
        })
        .collect();
    let (mut buffered, mut waiting, mut waiting_bytes) = (0.0f64, 0.0f64, 0.0f64);
    while !writing.iter().all(tokio::task::JoinHandle::is_finished) {
        buffered = buffered.max(gauge(&served, "polybolt_buffered_bytes").await);
        waiting = waiting.max(gauge(&served, "polybolt_writes_waiting").await);
        waiting_bytes = waiting_bytes.max(gauge(&served, "polybolt_writes_waiting_bytes").await);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let (mut done, mut refused) = (0, 0);
    for put in writing {
        match put.await.unwrap() {
            Ok(_) => done += 1,
            Err(status) => {
                assert_eq!((status.code(), status.message()), (Code::Unknown, "etcdserver: too many requests"));
                refused += 1;
            }
        }
    }
    println!("{done} written, {refused} refused; {waiting} waited at the most, with {waiting_bytes} bytes");
    assert!(done > 0 && refused > 0, "{done} {refused}");
    assert!(waiting > 0.0);
    assert!(buffered <= most_buffered, "{buffered}");
    assert!(waiting_bytes > 0.0 && waiting_bytes <= most_waiting, "{waiting_bytes}");
    until(&served, "polybolt_writes_waiting", |value| value == 0.0).await;
    assert!(gauge(&served, "polybolt_writes_waiting_bytes").await == 0.0);
    until(&served, "polybolt_buffered_bytes", |value| value == 0.0).await;
    let found = KvClient::new(channel).range(pb::RangeRequest { count_only: true, ..all_keys() }).await.unwrap();
    assert_eq!(found.into_inner().count, done, "a refused write was applied, or one done is lost");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watchers_that_never_read_hold_a_bounded_amount() {
    if !asked() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let served = Served::start(dir.path(), &[]);
    let mut streams = Vec::new();
    for _ in 0..4 {
        let (sender, receiver) = mpsc::channel(1);
        let create =
            pb::WatchCreateRequest { key: "key".into(), range_end: "kez".into(), prev_kv: true, ..Default::default() };
        let create = pb::watch_request::RequestUnion::CreateRequest(create);
        sender.send(pb::WatchRequest { request_union: Some(create) }).await.unwrap();
        let mut client = WatchClient::new(channel(&served).await);
        streams.push((client.watch(ReceiverStream::new(receiver)).await.unwrap(), sender));
    }
    until(&served, "etcd_debugging_mvcc_watcher_total", |value| value == 4.0).await;
    let writing = channel(&served).await;
    let alone = gauge(&served, "polybolt_memory_bound_bytes").await - gauge(&served, "polybolt_index_bytes").await;
    // 30 MiB of events for each.
    for _ in 0..3 {
        fill(&writing, 500, 20_000).await;
    }
    until(&served, "etcd_debugging_mvcc_slow_watcher_total", |value| value == 4.0).await;
    // 1 MiB on its way, and one answer that waits to be: at most 1000 revisions, or as much as is queued.
    let held = gauge(&served, "polybolt_watch_send_bytes").await;
    assert!(held > 2.0 * MIB && held < 4.0 * 4.0 * MIB, "{held}");
    // The bound says so.
    drop(streams);
    until(&served, "polybolt_watch_send_bytes", |value| value == 0.0).await;
    until(&served, "etcd_debugging_mvcc_watcher_total", |value| value == 0.0).await;
    until(&served, "polybolt_connections", |value| value <= 2.0).await;
    let now = gauge(&served, "polybolt_memory_bound_bytes").await - gauge(&served, "polybolt_index_bytes").await;
    assert!(alone >= now + 4.0 * 4.0 * MIB, "{alone} {now}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_are_not_read_are_few_bounded_and_let_go() {
    if !asked() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let flags = ["--pin-age-max", "20s", "--compaction-sleep-interval", "1ms"];
    let served = Served::start(dir.path(), &flags);
    let writing = channel(&served).await;
    fill(&writing, 300, 20_000).await;
    let (mut ranges, mut snapshots) = (Vec::new(), Vec::new());
    for _ in 0..4 {
        ranges.push(KvClient::new(channel(&served).await).range_stream(all_keys()).await.unwrap());
    }
    // As many as there may be.
    for _ in 0..16 {
        snapshots.push(MaintenanceClient::new(channel(&served).await).snapshot(pb::SnapshotRequest {}).await.unwrap());
    }
    let more = MaintenanceClient::new(writing.clone()).snapshot(pb::SnapshotRequest {}).await.unwrap_err();
    assert_eq!(more.message(), "etcdserver: too many requests");
    until(&served, "polybolt_range_stream_send_bytes", |value| value > 4.0 * MIB / 2.0).await;
    until(&served, "polybolt_snapshot_send_bytes", |value| value > 8.0 * MIB).await;
    for (name, streams) in [("polybolt_range_stream_send_bytes", 4.0), ("polybolt_snapshot_send_bytes", 16.0)] {
        assert!(gauge(&served, name).await < streams * 3.0 * MIB, "{name}");
    }
    // A range stream has one pin, a snapshot two.
    until(&served, "etcd_mvcc_db_open_read_transactions", |value| value == 36.0).await;
    assert!(gauge(&served, "polybolt_pin_oldest_seconds").await > 0.0);
    // Nobody reads for as long as pins may be held: all are let go, while their clients are still there.
    until(&served, "polybolt_range_streams", |value| value == 0.0).await;
    until(&served, "polybolt_snapshot_streams", |value| value == 0.0).await;
    until(&served, "etcd_mvcc_db_open_read_transactions", |value| value == 0.0).await;
    // What was on its way to them is theirs until they go.
    drop((ranges, snapshots));
    until(&served, "polybolt_range_stream_send_bytes", |value| value == 0.0).await;
    until(&served, "polybolt_snapshot_send_bytes", |value| value == 0.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_holds_back_so_many_revisions_and_is_let_go() {
    if !asked() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let served = Served::start(dir.path(), &["--pin-revisions-max", "1000", "--compaction-sleep-interval", "1ms"]);
    let writing = channel(&served).await;
    let mut kv = KvClient::new(writing.clone());
    fill(&writing, 300, 20_000).await;
    let mut stream = KvClient::new(channel(&served).await).range_stream(all_keys()).await.unwrap().into_inner();
    until(&served, "polybolt_range_stream_send_bytes", |value| value > 0.0).await;
    let mut compact = async || {
        let revision = fill(&writing, 600, 10).await;
        kv.compact(pb::CompactionRequest { revision, physical: false }).await.unwrap();
    };
    compact().await;
    until(&served, "polybolt_pin_held_revisions", |value| value == 600.0).await;
    assert!(gauge(&served, "polybolt_pins_let_go_total").await == 0.0);
    assert!(gauge(&served, "etcd_mvcc_db_open_read_transactions").await == 1.0);
    compact().await;
    until(&served, "polybolt_pins_let_go_total", |value| value == 1.0).await;
    until(&served, "polybolt_pin_held_revisions", |value| value == 0.0).await;
    // What was on its way is right, and then it is told.
    let ended = loop {
        match stream.message().await {
            Ok(Some(chunk)) => {
                let kvs = chunk.range_response.unwrap().kvs;
                assert!(kvs.iter().all(|kv| kv.value.len() == 20_000));
            }
            Ok(None) => panic!("it ended as if it were whole"),
            Err(status) => break status,
        }
    };
    assert_eq!(ended.message(), "etcdserver: mvcc: required revision has been compacted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_are_not_read_are_bounded() {
    if !asked() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let served = Served::start(dir.path(), &["--unread-bytes-max", "5000000"]);
    let writing = channel(&served).await;
    fill(&writing, 300, 20_000).await;
    // A window of which no answer fits: the client library reads on its own, but no further than that.
    let small = Channel::from_shared(served.url()).unwrap().initial_stream_window_size(1).connect().await.unwrap();
    // Whatever its size: a client that refuses it lets it go at once.
    let mut unread = KvClient::new(small).max_decoding_message_size(usize::MAX);
    let asking = tokio::spawn(async move {
        // Its answer comes byte by byte.
        drop(unread.range(all_keys()).await);
    });
    until(&served, "polybolt_range_unread_bytes", |value| value > 5_000_000.0).await;
    let mut kv = KvClient::new(writing);
    let refused = kv.range(all_keys()).await.unwrap_err();
    assert_eq!(refused.message(), "etcdserver: too many requests");
    // One key at a time, and counts, are answered.
    kv.range(pb::RangeRequest { key: "key00001".into(), ..Default::default() }).await.unwrap();
    kv.range(pb::RangeRequest { count_only: true, ..all_keys() }).await.unwrap();
    asking.abort();
    until(&served, "polybolt_range_unread_bytes", |value| value == 0.0).await;
    let kvs = kv.max_decoding_message_size(usize::MAX).range(all_keys()).await.unwrap().into_inner().kvs;
    assert_eq!(kvs.len(), 300);
}

/// These wait for a real disk and for clients in real time, which a busy machine stretches: a command of its own.
fn asked() -> bool {
    let asked = std::env::var_os("POLYBOLT_REAL_TIME").is_some();
    if !asked {
        println!("not run: POLYBOLT_REAL_TIME is not set");
    }
    asked
}
