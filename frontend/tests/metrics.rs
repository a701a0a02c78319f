//! `/metrics`: etcd's names, with values that move with what they count.
#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]

mod common;
#[path = "common/http.rs"]
mod web;
#[path = "common/reference.rs"]
mod reference;

use common::Served;
use polybolt_frontend::proto::etcdserverpb as pb;
use polybolt_frontend::proto::etcdserverpb::kv_client::KvClient;
use reference::Etcd;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use web::get;

/// The names of MNT-10, CMP-16 and WCH-33, and whether each is a counter, a gauge or a histogram.
const NAMES: [(&str, &str); 63] = [
    ("etcd_server_has_leader", "gauge"),
    ("etcd_server_is_leader", "gauge"),
    ("etcd_server_is_learner", "gauge"),
    ("etcd_server_leader_changes_seen_total", "counter"),
    ("etcd_server_proposals_committed_total", "gauge"),
    ("etcd_server_proposals_applied_total", "gauge"),
    ("etcd_server_proposals_pending", "gauge"),
    ("etcd_server_proposals_failed_total", "counter"),
    ("etcd_server_heartbeat_send_failures_total", "counter"),
    ("etcd_server_slow_apply_total", "counter"),
    ("etcd_server_slow_read_indexes_total", "counter"),
    ("etcd_server_read_indexes_failed_total", "counter"),
    ("etcd_server_health_success", "counter"),
    ("etcd_server_health_failures", "counter"),
    ("etcd_server_quota_backend_bytes", "gauge"),
    ("etcd_server_version", "gauge"),
    ("etcd_server_id", "gauge"),
    ("etcd_cluster_version", "gauge"),
    ("etcd_server_request_duration_seconds", "histogram"),
    ("etcd_server_range_duration_seconds", "histogram"),
    ("etcd_server_apply_duration_seconds", "histogram"),
    ("etcd_server_client_requests_total", "counter"),
    ("etcd_mvcc_db_total_size_in_bytes", "gauge"),
    ("etcd_mvcc_db_total_size_in_use_in_bytes", "gauge"),
    ("etcd_mvcc_db_open_read_transactions", "gauge"),
    ("etcd_mvcc_range_total", "counter"),
    ("etcd_mvcc_put_total", "counter"),
    ("etcd_mvcc_delete_total", "counter"),
    ("etcd_mvcc_txn_total", "counter"),
    ("etcd_mvcc_hash_duration_seconds", "histogram"),
    ("etcd_mvcc_hash_rev_duration_seconds", "histogram"),
    ("etcd_disk_backend_commit_duration_seconds", "histogram"),
    ("etcd_disk_backend_defrag_duration_seconds", "histogram"),
    ("etcd_disk_backend_snapshot_duration_seconds", "histogram"),
    ("etcd_disk_defrag_inflight", "gauge"),
    ("etcd_disk_wal_fsync_duration_seconds", "histogram"),
    ("etcd_network_client_grpc_sent_bytes_total", "counter"),
    ("etcd_network_client_grpc_received_bytes_total", "counter"),
    ("etcd_debugging_mvcc_current_revision", "gauge"),
    ("etcd_debugging_mvcc_compact_revision", "gauge"),
    ("etcd_debugging_mvcc_keys_total", "gauge"),
    ("etcd_debugging_mvcc_total_put_size_in_bytes", "gauge"),
    ("etcd_debugging_mvcc_watcher_total", "gauge"),
    ("etcd_debugging_mvcc_watch_stream_total", "gauge"),
    ("etcd_debugging_mvcc_slow_watcher_total", "gauge"),
    ("etcd_debugging_mvcc_pending_events_total", "gauge"),
    ("etcd_debugging_mvcc_events_total", "counter"),
    ("etcd_debugging_mvcc_db_compaction_keys_total", "counter"),
    ("etcd_debugging_mvcc_db_compaction_last", "gauge"),
    ("etcd_debugging_mvcc_db_compaction_total_duration_milliseconds", "histogram"),
    ("etcd_debugging_mvcc_db_compaction_pause_duration_milliseconds", "histogram"),
    ("etcd_debugging_mvcc_index_compaction_pause_duration_milliseconds", "histogram"),
    ("etcd_debugging_lease_granted_total", "counter"),
    ("etcd_debugging_lease_revoked_total", "counter"),
    ("etcd_debugging_lease_renewed_total", "counter"),
    ("etcd_debugging_lease_ttl_total", "histogram"),
    ("etcd_debugging_server_lease_expired_total", "counter"),
    ("grpc_server_started_total", "counter"),
    ("grpc_server_handled_total", "counter"),
    ("grpc_server_msg_received_total", "counter"),
    ("grpc_server_msg_sent_total", "counter"),
    ("grpc_server_handling_seconds", "histogram"),
    ("etcd_server_learner_promote_successes", "counter"),
];

/// Every sample by its name with labels, and every family's type.
struct Scraped {
    samples: BTreeMap<String, f64>,
    types: BTreeMap<String, String>,
}

async fn scrape(port: u16) -> Scraped {
    let text = get(port, "/metrics").await.body;
    let (mut samples, mut types) = (BTreeMap::new(), BTreeMap::new());
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(types.insert(name.to_owned(), kind.to_owned()).is_none(), "{name} twice");
        } else if !line.starts_with('#') {
            let (name, value) = line.rsplit_once(' ').unwrap();
            assert!(samples.insert(name.to_owned(), value.parse().unwrap()).is_none(), "{name} twice");
        }
    }
    Scraped { samples, types }
}

impl Scraped {
    fn value(&self, name: &str) -> f64 {
        self.samples.get(name).copied().unwrap_or(0.0)
    }
}

/// Scrapes until a value is as wanted.
async fn wait_for(port: u16, name: &str, wanted: f64) -> Scraped {
    let until = std::time::Instant::now() + Duration::from_secs(60);
    loop {
        let scraped = scrape(port).await;
        if scraped.value(name) == wanted {
            return scraped;
        }
        assert!(std::time::Instant::now() < until, "{name} is {}", scraped.value(name));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn channel(served: &Served) -> Channel {
    Channel::from_shared(served.url()).unwrap().connect().await.unwrap()
}

fn op(request: pb::request_op::Request) -> pb::RequestOp {
    pb::RequestOp { request: Some(request) }
}

#[tokio::test]
async fn the_names_are_there_mnt_10_cmp_16_wch_33() {
    let dir = tempfile::tempdir().unwrap();
    let served = Served::start(&dir.path().join("ours"), &[]);
    let mut kv = KvClient::new(channel(&served).await);
    kv.put(pb::PutRequest { key: "a".into(), ..Default::default() }).await.unwrap();
    kv.range(pb::RangeRequest { key: "a".into(), ..Default::default() }).await.unwrap();
    let ours = scrape(served.port).await;
    for (name, kind) in NAMES {
        assert_eq!(ours.types.get(name).map(String::as_str), Some(kind), "{name}");
    }
    // As an etcd has them, where it has them.
    for (number, program) in reference::programs().iter().enumerate() {
        let etcd = Etcd::start(program, &dir.path().join(format!("etcd{number}")), &["--metrics", "extensive"]);
        let theirs = scrape(etcd.port).await;
        let mut common = BTreeSet::new();
        for (name, kind) in NAMES {
            if let Some(has) = theirs.types.get(name) {
                assert_eq!(has, kind, "{name}");
                common.insert(name);
            }
        }
        assert!(common.len() > 50, "{common:?}");
    }
}

/// A little of everything.
async fn exercise(channel: &Channel) {
    let mut kv = KvClient::new(channel.clone());
    let put = |key: &'static str| pb::PutRequest { key: key.into(), value: "12345".into(), ..Default::default() };
    let range = |key: &'static str| pb::RangeRequest { key: key.into(), ..Default::default() };
    for _ in 0..4 {
        kv.put(put("abc")).await.unwrap();
    }
    kv.range(range("abc")).await.unwrap();
    kv.range(range("")).await.unwrap_err();
    use pb::request_op::Request::{RequestDeleteRange, RequestPut, RequestRange, RequestTxn};
    let delete = pb::DeleteRangeRequest { key: "abc".into(), ..Default::default() };
    let inner = pb::TxnRequest { success: vec![op(RequestPut(put("d")))], ..Default::default() };
    let success = vec![op(RequestRange(range("abc"))), op(RequestDeleteRange(delete.clone())), op(RequestTxn(inner))];
    kv.txn(pb::TxnRequest { success, failure: vec![op(RequestPut(put("never")))], ..Default::default() })
        .await
        .unwrap();
    let single = pb::TxnRequest { success: vec![op(RequestPut(put("e")))], ..Default::default() };
    kv.txn(single).await.unwrap();
    kv.delete_range(delete).await.unwrap();
    kv.compact(pb::CompactionRequest { revision: 7, physical: true }).await.unwrap();
    let mut leases = pb::lease_client::LeaseClient::new(channel.clone());
    for id in [5, 6] {
        leases.lease_grant(pb::LeaseGrantRequest { id, ttl: 600 }).await.unwrap();
    }
    leases.lease_revoke(pb::LeaseRevokeRequest { id: 6 }).await.unwrap();
    leases.lease_grant(pb::LeaseGrantRequest { id: 7, ttl: 1 }).await.unwrap();
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    let mut alive = leases.lease_keep_alive(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    sender.send(pb::LeaseKeepAliveRequest { id: 5 }).await.unwrap();
    assert_eq!(alive.message().await.unwrap().unwrap().ttl, 600);
    drop((sender, alive));
    let mut maintenance = pb::maintenance_client::MaintenanceClient::new(channel.clone());
    maintenance.hash(pb::HashRequest {}).await.unwrap();
    maintenance.hash_kv(pb::HashKvRequest::default()).await.unwrap();
    maintenance.defragment(pb::DefragmentRequest {}).await.unwrap();
    let mut snapshot = maintenance.snapshot(pb::SnapshotRequest {}).await.unwrap().into_inner();
    while snapshot.message().await.unwrap().is_some() {}
}

#[tokio::test]
async fn values_move_with_what_they_count_mnt_10_cmp_16() {
    let dir = tempfile::tempdir().unwrap();
    let served = Served::start(dir.path(), &[]);
    let channel = channel(&served).await;
    exercise(&channel).await;
    let mut kv = KvClient::new(channel.clone());
    let mut maintenance = pb::maintenance_client::MaintenanceClient::new(channel.clone());
    let range = |key: &'static str| pb::RangeRequest { key: key.into(), ..Default::default() };
    get(served.port, "/health").await;
    wait_for(served.port, "etcd_debugging_server_lease_expired_total", 1.0).await;
    let scraped = wait_for(served.port, "etcd_disk_backend_snapshot_duration_seconds_count", 1.0).await;
    let of = |name: &str| scraped.value(&format!("polybolt_{name}"));
    let (journal, pages) = (of("journal_written_bytes_total"), of("page_bytes_total"));
    let put = scraped.value("etcd_debugging_mvcc_total_put_size_in_bytes");
    assert!(journal >= 512.0 * of("journal_groups") && pages > 0.0, "{journal} {pages}");
    assert!((of("write_amplification") * put / (journal + pages) - 1.0).abs() < 0.1);
    let grpc = |kind: &str, service: &str, method: &str| {
        format!("grpc_method=\"{method}\",grpc_service=\"etcdserverpb.{service}\",grpc_type=\"{kind}\"")
    };
    for (name, wanted) in [
        ("etcd_mvcc_put_total", 6.0),
        ("etcd_mvcc_range_total", 2.0),
        ("etcd_mvcc_delete_total", 2.0),
        ("etcd_mvcc_txn_total", 1.0),
        ("etcd_debugging_mvcc_total_put_size_in_bytes", 4.0 * 8.0 + 6.0 + 6.0),
        ("etcd_debugging_mvcc_current_revision", 7.0),
        ("etcd_server_proposals_applied_total", 7.0),
        ("etcd_debugging_mvcc_compact_revision", 7.0),
        ("etcd_debugging_mvcc_keys_total", 2.0),
        // Four versions and the delete of "abc", whose own revision is before the last.
        ("etcd_debugging_mvcc_db_compaction_keys_total", 5.0),
        ("etcd_debugging_mvcc_db_compaction_total_duration_milliseconds_count", 1.0),
        ("etcd_debugging_lease_granted_total", 3.0),
        ("etcd_debugging_lease_revoked_total", 2.0),
        ("etcd_debugging_lease_renewed_total", 1.0),
        ("etcd_debugging_lease_ttl_total_count", 3.0),
        ("etcd_mvcc_hash_duration_seconds_count", 1.0),
        ("etcd_mvcc_hash_rev_duration_seconds_count", 1.0),
        ("etcd_disk_backend_defrag_duration_seconds_count", 1.0),
        ("etcd_disk_defrag_inflight", 0.0),
        ("etcd_server_health_success", 1.0),
        ("etcd_server_health_failures", 0.0),
        ("etcd_server_proposals_pending", 0.0),
        ("etcd_server_proposals_failed_total", 0.0),
        ("etcd_server_apply_duration_seconds_count{op=\"Put\",success=\"true\",version=\"v3\"}", 4.0),
        ("etcd_server_request_duration_seconds_count{success=\"true\",type=\"Txn\"}", 2.0),
        ("etcd_server_range_duration_seconds_count{success=\"true\"}", 1.0),
        ("etcd_mvcc_db_open_read_transactions", 0.0),
        (&format!("grpc_server_started_total{{{}}}", grpc("unary", "KV", "Put")), 4.0),
        (&format!("grpc_server_handling_seconds_count{{{}}}", grpc("unary", "KV", "Put")), 4.0),
        (&format!("grpc_server_handled_total{{grpc_code=\"OK\",{}}}", grpc("unary", "KV", "Put")), 4.0),
        (&format!("grpc_server_handled_total{{grpc_code=\"InvalidArgument\",{}}}", grpc("unary", "KV", "Range")), 1.0),
        (&format!("grpc_server_msg_received_total{{{}}}", grpc("bidi_stream", "Lease", "LeaseKeepAlive")), 1.0),
        (&format!("grpc_server_msg_sent_total{{{}}}", grpc("bidi_stream", "Lease", "LeaseKeepAlive")), 1.0),
        ("etcd_server_client_requests_total{client_api_version=\"unknown\",type=\"stream\"}", 2.0),
    ] {
        assert_eq!(scraped.value(name), wanted, "{name}");
    }
    for name in [
        "etcd_debugging_mvcc_db_compaction_last",
        "etcd_debugging_mvcc_db_compaction_pause_duration_milliseconds_count",
        "etcd_debugging_mvcc_index_compaction_pause_duration_milliseconds_count",
        "etcd_disk_wal_fsync_duration_seconds_count",
        "etcd_disk_backend_commit_duration_seconds_count",
        "etcd_network_client_grpc_sent_bytes_total",
        "etcd_network_client_grpc_received_bytes_total",
        "etcd_mvcc_db_total_size_in_bytes",
        "etcd_mvcc_db_total_size_in_use_in_bytes",
        "etcd_server_quota_backend_bytes",
    ] {
        assert!(scraped.value(name) > 0.0, "{name}");
    }
    assert_eq!(scraped.value("etcd_cluster_version{cluster_version=\"3.6\"}"), 1.0);
    let id = maintenance.status(pb::StatusRequest {}).await.unwrap().into_inner().header.unwrap().member_id;
    assert_eq!(scraped.value(&format!("etcd_server_id{{server_id=\"{id:x}\"}}")), 1.0);
    // What a client thinks up becomes no label.
    let mut request = tonic::Request::new(range("a"));
    request.metadata_mut().insert("client-api-version", "made-up".parse().unwrap());
    kv.range(request).await.unwrap();
    let mut request = tonic::Request::new(range("a"));
    request.metadata_mut().insert("client-api-version", "3.5".parse().unwrap());
    kv.range(request).await.unwrap();
    let scraped = scrape(served.port).await;
    assert!(scraped.samples.keys().all(|name| !name.contains("made-up")));
    assert_eq!(scraped.value("etcd_server_client_requests_total{client_api_version=\"3.5\",type=\"unary\"}"), 1.0);
}

#[tokio::test]
async fn watchers_are_counted_until_they_are_gone_wch_33_wch_12() {
    use pb::watch_request::RequestUnion;
    let dir = tempfile::tempdir().unwrap();
    let served = Served::start(dir.path(), &[]);
    let channel = channel(&served).await;
    let mut kv = KvClient::new(channel.clone());
    let mut client = pb::watch_client::WatchClient::new(channel.clone());
    let mut streams = Vec::new();
    for _ in 0..3 {
        let (sender, receiver) = tokio::sync::mpsc::channel(8);
        let mut responses = client.watch(ReceiverStream::new(receiver)).await.unwrap().into_inner();
        for _ in 0..4 {
            let create = pb::WatchCreateRequest { key: "a".into(), ..Default::default() };
            let create = pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
            sender.send(create).await.unwrap();
            assert!(responses.message().await.unwrap().unwrap().created);
        }
        streams.push((sender, responses));
    }
    let (watchers, open) = ("etcd_debugging_mvcc_watcher_total", "etcd_debugging_mvcc_watch_stream_total");
    let scraped = scrape(served.port).await;
    assert_eq!((scraped.value(watchers), scraped.value(open)), (12.0, 3.0));
    kv.put(pb::PutRequest { key: "a".into(), ..Default::default() }).await.unwrap();
    let scraped = wait_for(served.port, "etcd_debugging_mvcc_events_total", 12.0).await;
    assert_eq!(scraped.value("etcd_debugging_mvcc_pending_events_total"), 0.0);
    assert_eq!(scraped.value("etcd_debugging_mvcc_slow_watcher_total"), 0.0);
    // Cancelled twice, and an id that there never was.
    for watch_id in [1, 1, 99] {
        let cancel = RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id });
        streams[0].0.send(pb::WatchRequest { request_union: Some(cancel) }).await.unwrap();
    }
    wait_for(served.port, watchers, 11.0).await;
    // A cancel that races with the end of its stream, and a client that goes.
    for watch_id in [0, 2, 3] {
        let cancel = RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id });
        streams[1].0.send(pb::WatchRequest { request_union: Some(cancel) }).await.unwrap();
    }
    drop(streams.remove(1));
    let scraped = wait_for(served.port, watchers, 7.0).await;
    assert_eq!(scraped.value(open), 2.0);
    drop(streams);
    wait_for(served.port, watchers, 0.0).await;
    let scraped = wait_for(served.port, open, 0.0).await;
    let labels = "grpc_method=\"Watch\",grpc_service=\"etcdserverpb.Watch\",grpc_type=\"bidi_stream\"";
    let canceled = scraped.value(&format!("grpc_server_handled_total{{grpc_code=\"Canceled\",{labels}}}"));
    assert_eq!(canceled, 3.0, "a client that goes cancels");
}
