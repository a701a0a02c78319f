//! What `polybolt serve` does only if a flag asks for it: remembered hashes, checkpoints of leases, shards with less
//! history.
#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]

mod common;

use common::{Served, polybolt, text};
use polybolt_frontend::proto::etcdserverpb as pb;
use std::path::Path;
use std::time::Duration;
use tokio_stream::StreamExt;
use tonic::transport::Channel;

async fn channel(served: &Served) -> Channel {
    Channel::from_shared(served.url()).unwrap().connect().await.unwrap()
}

/// The compacted revision that HashKV tells of a revision that is compacted right before.
async fn hashed_after_compaction(flags: &[&str]) -> i64 {
    let dir = tempfile::tempdir().unwrap();
    let served = Served::start(dir.path(), flags);
    let channel = channel(&served).await;
    let mut kv = pb::kv_client::KvClient::new(channel.clone());
    for _ in 0..5 {
        let put = pb::PutRequest { key: "k".into(), value: "v".into(), ..Default::default() };
        kv.put(put).await.unwrap();
    }
    kv.compact(pb::CompactionRequest { revision: 4, physical: true }).await.unwrap();
    let mut maintenance = pb::maintenance_client::MaintenanceClient::new(channel);
    let hash = maintenance.hash_kv(pb::HashKvRequest { revision: 4 }).await.unwrap().into_inner();
    assert_eq!(hash.hash_revision, 4);
    hash.compact_revision
}

#[tokio::test]
async fn hashes_are_remembered_if_asked_for_hsh_6() {
    assert_eq!(hashed_after_compaction(&[]).await, 4);
    assert_eq!(hashed_after_compaction(&["--experimental-compact-hash-check-enabled"]).await, -1);
    assert_eq!(hashed_after_compaction(&["--feature-gates=CompactHashCheck=true"]).await, -1);
}

#[tokio::test]
async fn a_shard_keeps_less_history_if_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let flags = ["--routes", "events=e", "--shard-retention", "events=300ms", "--auto-compaction-retention", "1h"];
    let served = Served::start(dir.path(), &flags);
    let channel = channel(&served).await;
    let mut kv = pb::kv_client::KvClient::new(channel.clone());
    for key in ["e", "k", "e", "k"] {
        let put = pb::PutRequest { key: key.into(), value: "v".into(), ..Default::default() };
        kv.put(put).await.unwrap();
    }
    let range = |key: &str, revision| pb::RangeRequest { key: key.to_owned().into(), revision, ..Default::default() };
    let refused = loop {
        match kv.range(range("e", 3)).await {
            Ok(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            Err(refused) => break refused,
        }
    };
    assert_eq!(refused.message(), "etcdserver: mvcc: required revision has been compacted");
    assert_eq!(kv.range(range("k", 3)).await.unwrap().into_inner().kvs[0].mod_revision, 3);
    assert_eq!(kv.range(range("e", 0)).await.unwrap().into_inner().kvs[0].mod_revision, 4);
    // A watch from before is told the floor, once; of the other shard it has all.
    let watch = |key: &str| {
        let create = pb::WatchCreateRequest { key: key.to_owned().into(), start_revision: 2, ..Default::default() };
        let union = pb::watch_request::RequestUnion::CreateRequest(create);
        tokio_stream::once(pb::WatchRequest { request_union: Some(union) }).chain(tokio_stream::pending())
    };
    let mut watches = pb::watch_client::WatchClient::new(channel);
    let mut events = watches.watch(watch("e")).await.unwrap().into_inner();
    assert!(events.message().await.unwrap().unwrap().created);
    let end = events.message().await.unwrap().unwrap();
    assert_eq!((end.canceled, end.compact_revision), (true, 5));
    let mut others = watches.watch(watch("k")).await.unwrap().into_inner();
    assert!(others.message().await.unwrap().unwrap().created);
    assert_eq!(others.message().await.unwrap().unwrap().events.len(), 2);
    let output = polybolt().args(["status", "--endpoint", &served.url()]).output().unwrap();
    let status = text(&output.stdout);
    let line = status.lines().find(|line| line.trim_start().starts_with("events")).unwrap();
    assert_eq!(line.split_whitespace().nth(3), Some("5"), "{status}");
}

async fn remaining(channel: &Channel, id: i64) -> i64 {
    let mut leases = pb::lease_client::LeaseClient::new(channel.clone());
    leases.lease_time_to_live(pb::LeaseTimeToLiveRequest { id, keys: false }).await.unwrap().into_inner().ttl
}

/// What a lease of 1000 seconds has after a kill, some seconds after it was granted.
async fn after_a_kill(dir: &Path, flags: &[&str], renew: bool) -> i64 {
    let served = Served::start(dir, flags);
    let first = channel(&served).await;
    let mut leases = pb::lease_client::LeaseClient::new(first.clone());
    let id = leases.lease_grant(pb::LeaseGrantRequest { ttl: 1000, id: 0 }).await.unwrap().into_inner().id;
    while remaining(&first, id).await > 985 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    if renew {
        let request = tokio_stream::once(pb::LeaseKeepAliveRequest { id });
        let mut answers = leases.lease_keep_alive(request).await.unwrap().into_inner();
        assert_eq!(answers.message().await.unwrap().unwrap().ttl, 1000);
    }
    served.kill();
    let served = Served::start(dir, flags);
    let second = channel(&served).await;
    remaining(&second, id).await
}

#[tokio::test]
async fn leases_are_checkpointed_if_asked_for_lse_16() {
    let dir = || tempfile::tempdir().unwrap();
    let old = ["--experimental-enable-lease-checkpoint", "--experimental-enable-lease-checkpoint-persist"];
    let new = ["--feature-gates=LeaseCheckpoint=true,LeaseCheckpointPersist=true", "--lease-checkpoint-interval=1s"];
    let short = [&old[..], &["--lease-checkpoint-interval=1s"]].concat();
    let (a, b, c, d, e) = (dir(), dir(), dir(), dir(), dir());
    let (none, long, by_flag, by_gate, _) = tokio::join!(
        after_a_kill(a.path(), &[], false),
        after_a_kill(b.path(), &old, false),
        after_a_kill(c.path(), &short, false),
        after_a_kill(d.path(), &new, false),
        after_a_kill(e.path(), &new, true),
    );
    // Without one, or before it is due, a restart gives the whole time again.
    assert!(by_flag <= 988 && by_gate <= 988, "what was left, and what a restart adds: {by_flag}, {by_gate}");
    assert!(none > by_flag && long > by_gate, "{none}, {long}");
}

#[test]
fn gates_that_cannot_be_are_refused() {
    for (flags, why) in [
        (&["--experimental-enable-lease-checkpoint-persist"][..], "requires LeaseCheckpoint"),
        (&["--feature-gates=LeaseCheckpointPersist=true,LeaseCheckpoint=false"], "requires LeaseCheckpoint"),
        (&["--feature-gates=NoSuchGate=true"], "no feature gate"),
        (&["--feature-gates=LeaseCheckpoint"], "name=true"),
        (&["--feature-gates=LeaseCheckpoint=maybe"], "neither true nor false"),
        (&["--lease-checkpoint-interval=0s"], "above 0"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let output = polybolt().arg("serve").arg("--data-dir").arg(dir.path()).args(flags).output().unwrap();
        assert!(!output.status.success());
        assert!(text(&output.stderr).contains(why), "{flags:?}: {}", text(&output.stderr));
    }
}
