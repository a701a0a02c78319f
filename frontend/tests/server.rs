//! Limits, metadata, health, membership and leadership: the rules of a server, each beside a real etcd's
//! answer where there is one.
#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]

mod common;
#[path = "common/http.rs"]
mod web;
#[path = "common/reference.rs"]
mod reference;

use common::Served;
use polybolt_frontend::proto::etcdserverpb as pb;
use polybolt_frontend::proto::etcdserverpb::cluster_client::ClusterClient;
use polybolt_frontend::proto::etcdserverpb::kv_client::KvClient;
use polybolt_frontend::proto::etcdserverpb::maintenance_client::MaintenanceClient;
use polybolt_frontend::proto::{v3electionpb, v3lockpb};
use reference::Etcd;
use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

async fn channel(url: String) -> Channel {
    Channel::from_shared(url).unwrap().connect().await.unwrap()
}

/// polybolt first, then every etcd there is.
fn servers(dir: &Path) -> (Served, Vec<Etcd>) {
    let ours = Served::start(&dir.join("ours"), &[]);
    let start = |(number, program): (usize, &String)| Etcd::start(program, &dir.join(format!("etcd{number}")), &[]);
    (ours, reference::programs().iter().enumerate().map(start).collect())
}

fn outcome<T>(answer: Result<Response<T>, Status>) -> (Code, String) {
    answer.map_or_else(|status| (status.code(), status.message().to_owned()), |_| (Code::Ok, String::new()))
}

fn put(key: usize, value: usize) -> pb::PutRequest {
    pb::PutRequest { key: vec![b'k'; key].into(), value: vec![b'v'; value].into(), ..Default::default() }
}

#[tokio::test]
async fn sizes_and_operations_are_limited_srv_1_to_3() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, etcds) = servers(dir.path());
    let too_large = (Code::InvalidArgument, "etcdserver: request is too large".to_owned());
    let ok = (Code::Ok, String::new());
    for url in [ours.url()].into_iter().chain(etcds.iter().map(Etcd::url)) {
        let mut kv = KvClient::new(channel(url.clone()).await).max_encoding_message_size(usize::MAX);
        assert_eq!(outcome(kv.put(put(3, 1_572_700)).await), ok);
        assert_eq!(outcome(kv.put(put(3, 1_572_864)).await), too_large);
        let op = |request| pb::RequestOp { request: Some(request) };
        let txn = |op| pb::TxnRequest { success: vec![op], ..Default::default() };
        let writes = txn(op(pb::request_op::Request::RequestPut(put(3, 1_572_864))));
        assert_eq!(outcome(kv.txn(writes).await), too_large);
        let key = vec![b'k'; 1_600_000];
        let delete = pb::DeleteRangeRequest { key: key.clone().into(), ..Default::default() };
        assert_eq!(outcome(kv.delete_range(delete).await), too_large);
        // Not of what only reads.
        let range = pb::RangeRequest { key: key.into(), ..Default::default() };
        assert_eq!(outcome(kv.range(range.clone()).await), ok);
        assert_eq!(outcome(kv.txn(txn(op(pb::request_op::Request::RequestRange(range)))).await), ok);
        // A whole message, of any service.
        let above = |len: usize| {
            (Code::ResourceExhausted, format!("grpc: received message larger than max ({len} vs. 2097152)"))
        };
        let huge = put(3, 2_200_000);
        assert_eq!(outcome(kv.put(huge.clone()).await), above(prost::Message::encoded_len(&huge)));
        let mut locks = v3lockpb::lock_client::LockClient::new(channel(url.clone()).await);
        let unlock = v3lockpb::UnlockRequest { key: vec![1; 2_097_152].into() };
        assert_eq!(outcome(locks.unlock(unlock.clone()).await), above(prost::Message::encoded_len(&unlock)));
        let mut watch = pb::watch_client::WatchClient::new(channel(url.clone()).await);
        let create = pb::WatchCreateRequest { key: vec![1; 2_097_152].into(), ..Default::default() };
        let create = pb::WatchRequest { request_union: Some(pb::watch_request::RequestUnion::CreateRequest(create)) };
        let len = prost::Message::encoded_len(&create);
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        sender.send(create).await.unwrap();
        let ended = match watch.watch(ReceiverStream::new(receiver)).await {
            Ok(stream) => stream.into_inner().message().await.unwrap_err(),
            Err(status) => status,
        };
        assert_eq!((ended.code(), ended.message().to_owned()), above(len));
        // Operations, of each branch.
        let puts = |count: usize| {
            let put = |n: usize| op(pb::request_op::Request::RequestPut(put(n + 1, 1)));
            pb::TxnRequest { success: (0..count).map(put).collect(), ..Default::default() }
        };
        assert_eq!(outcome(kv.txn(puts(128)).await), ok);
        let many = (Code::InvalidArgument, "etcdserver: too many operations in txn request".to_owned());
        assert_eq!(outcome(kv.txn(puts(129)).await), many);
    }
}

#[tokio::test]
async fn metadata_srv_6_wch_12() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, etcds) = servers(dir.path());
    for url in [ours.url()].into_iter().chain(etcds.iter().map(Etcd::url)) {
        let is_etcd = url != ours.url();
        let channel = channel(url).await;
        let mut kv = KvClient::new(channel.clone());
        let mut watch = pb::watch_client::WatchClient::new(channel);
        for (name, value, wanted) in [
            ("client-api-version", &b"3.6"[..], Code::Ok),
            ("client-api-version", b"anything", Code::Ok),
            ("client-api-version", b"\xff\xfe", Code::InvalidArgument),
            ("hasleader", b"true", Code::Ok),
        ] {
            if is_etcd && wanted != Code::Ok {
                // Go's HTTP/2 ends the connection before etcd's own check.
                continue;
            }
            let value = AsciiMetadataValue::try_from(value).unwrap();
            let mut request = Request::new(pb::RangeRequest { key: "a".into(), ..Default::default() });
            request.metadata_mut().insert(name, value.clone());
            let (code, message) = outcome(kv.range(request).await);
            assert_eq!(code, wanted, "{name}: {message}");
            let said = if code == Code::Ok { "" } else { "etcdserver: invalid client api version" };
            assert_eq!(message, said);
            // Streams too.
            let (sender, receiver) = tokio::sync::mpsc::channel(1);
            let create = pb::WatchCreateRequest { key: "a".into(), ..Default::default() };
            let create = pb::watch_request::RequestUnion::CreateRequest(create);
            sender.send(pb::WatchRequest { request_union: Some(create) }).await.unwrap();
            let mut request = Request::new(ReceiverStream::new(receiver));
            request.metadata_mut().insert(name, value);
            let first = match watch.watch(request).await {
                Ok(stream) => stream.into_inner().message().await,
                Err(status) => Err(status),
            };
            match first {
                Ok(response) => assert!(response.unwrap().created && wanted == Code::Ok),
                Err(status) => assert_eq!((status.code(), status.message()), (wanted, said)),
            }
        }
    }
}

#[tokio::test]
async fn a_client_that_asks_for_nothing_more_goes_on_listening() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, etcds) = servers(dir.path());
    for url in [ours.url()].into_iter().chain(etcds.iter().map(Etcd::url)) {
        let channel = channel(url).await;
        let create = pb::WatchCreateRequest { key: "kkk".into(), ..Default::default() };
        let create = pb::watch_request::RequestUnion::CreateRequest(create);
        let asked = tokio_stream::iter([pb::WatchRequest { request_union: Some(create) }]);
        let mut client = pb::watch_client::WatchClient::new(channel.clone());
        let mut responses = client.watch(asked).await.unwrap().into_inner();
        assert!(responses.message().await.unwrap().unwrap().created);
        KvClient::new(channel).put(put(3, 1)).await.unwrap();
        let event = tokio::time::timeout(Duration::from_secs(30), responses.message()).await.unwrap();
        assert_eq!(event.unwrap().unwrap().events.len(), 1);
    }
}

#[tokio::test]
async fn health_and_every_service_are_on_one_port_srv_8_srv_10_srv_11() {
    let dir = tempfile::tempdir().unwrap();
    let ours = Served::start(dir.path(), &[]);
    let channel = channel(ours.url()).await;
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel.clone());
    let check = |service: &str| tonic_health::pb::HealthCheckRequest { service: service.into() };
    let serving = tonic_health::pb::health_check_response::ServingStatus::Serving;
    assert_eq!(health.check(check("")).await.unwrap().into_inner().status(), serving);
    assert_eq!(outcome(health.check(check("no.such")).await).0, Code::NotFound);
    let mut watched = health.watch(check("")).await.unwrap().into_inner();
    assert_eq!(watched.message().await.unwrap().unwrap().status(), serving);
    KvClient::new(channel.clone()).put(put(1, 1)).await.unwrap();
    let mut leases = pb::lease_client::LeaseClient::new(channel.clone());
    leases.lease_leases(pb::LeaseLeasesRequest {}).await.unwrap();
    for linearizable in [false, true] {
        let list = pb::MemberListRequest { linearizable };
        let list = ClusterClient::new(channel.clone()).member_list(list).await.unwrap().into_inner();
        assert_eq!(list.members.len(), 1);
    }
    MaintenanceClient::new(channel.clone()).status(pb::StatusRequest {}).await.unwrap();
    let mut auth = pb::auth_client::AuthClient::new(channel.clone());
    auth.auth_status(pb::AuthStatusRequest {}).await.unwrap();
    let mut locks = v3lockpb::lock_client::LockClient::new(channel.clone());
    locks.lock(v3lockpb::LockRequest { name: "l".into(), lease: 0 }).await.unwrap();
    let mut elections = v3electionpb::election_client::ElectionClient::new(channel.clone());
    let leader = elections.leader(v3electionpb::LeaderRequest { name: "e".into() }).await;
    assert_eq!(outcome(leader), (Code::Unknown, "election: no leader".to_owned()));
    // And HTTP/1, which is told apart by the content type.
    assert_eq!(web::get(ours.port, "/readyz").await.body, "ok\n");
    assert_eq!(web::ask(ours.port, "POST", "/etcdserverpb.KV/Range", &[], "").await.status, 404);
}

#[test]
fn silent_connections_are_pinged_and_closed_srv_5() {
    let dir = tempfile::tempdir().unwrap();
    let flags = ["--grpc-keepalive-interval", "100ms", "--grpc-keepalive-timeout", "200ms"];
    let ours = Served::start(dir.path(), &flags);
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", ours.port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    // HTTP/2's preface and empty settings; nothing is answered after that.
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    let (mut at, mut pings) = (0, 0);
    while at + 9 <= bytes.len() {
        let len = u32::from_be_bytes([0, bytes[at], bytes[at + 1], bytes[at + 2]]) as usize;
        pings += usize::from(bytes[at + 3] == 6);
        at += 9 + len;
    }
    assert!(pings >= 1, "it was asked before it was closed: {bytes:?}");
    // One that answers pings stays, and one that pings often is not sent away.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let endpoint = Channel::from_shared(ours.url()).unwrap().http2_keep_alive_interval(Duration::from_millis(20));
        let channel = endpoint.keep_alive_while_idle(true).connect().await.unwrap();
        let mut kv = KvClient::new(channel);
        for _ in 0..10 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            kv.put(put(1, 1)).await.unwrap();
        }
    });
}

/// Membership changes, in words; with `me` known to the server asked.
async fn memberships(url: String) -> Vec<(String, (Code, String))> {
    let mut client = ClusterClient::new(channel(url).await);
    let list = client.member_list(pb::MemberListRequest::default()).await.unwrap().into_inner();
    let header = list.header.unwrap();
    let [me] = &list.members[..] else { panic!("{list:?}") };
    // One member, known by its id and its URLs, and a header without a revision.
    assert_eq!((me.id, header.revision, me.name.as_str(), me.is_learner), (header.member_id, 0, "default", false));
    assert!(me.id != 0 && header.cluster_id != 0);
    assert!(me.peer_ur_ls.len() == 1 && me.client_ur_ls.len() == 1, "{me:?}");
    let (id, mine) = (me.id, me.peer_ur_ls[0].clone());
    let mut outcomes = Vec::new();
    let urls = [
        "",
        "x",
        "1.2.3.4:5",
        "ftp://1.2.3.4:5",
        "http://1.2.3.4",
        "http://1.2.3.4:5/",
        "http://1.2.3.4:5/path",
        "http://1.2.3.4:port",
        "http://[::1]:5",
        "https://h:5",
        "unix://a",
        "http://:5",
        "HTTP://1.2.3.4:5",
    ];
    for url in urls {
        // Beside one that is there already, so that nobody is added.
        let add = pb::MemberAddRequest { peer_ur_ls: vec![url.into(), mine.clone()], is_learner: false };
        outcomes.push((format!("add {url}"), outcome(client.member_add(add).await)));
    }
    let add = pb::MemberAddRequest { peer_ur_ls: vec![mine.clone()], is_learner: true };
    outcomes.push(("add mine".to_owned(), outcome(client.member_add(add).await)));
    outcomes.push(("add nothing".to_owned(), outcome(client.member_add(pb::MemberAddRequest::default()).await)));
    for (name, id) in [("unknown", 5), ("me", id)] {
        let removed = client.member_remove(pb::MemberRemoveRequest { id }).await;
        outcomes.push((format!("remove {name}"), outcome(removed)));
        let promoted = client.member_promote(pb::MemberPromoteRequest { id }).await;
        outcomes.push((format!("promote {name}"), outcome(promoted)));
        let update = pb::MemberUpdateRequest { id, peer_ur_ls: vec!["http://1.2.3.4:5".into()] };
        outcomes.push((format!("update {name}"), outcome(client.member_update(update).await)));
    }
    let list = client.member_list(pb::MemberListRequest::default()).await.unwrap().into_inner();
    assert_eq!(list.members[0].peer_ur_ls, ["http://1.2.3.4:5"]);
    outcomes
}

#[tokio::test]
async fn a_cluster_of_one_clu_1_to_3() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, etcds) = servers(dir.path());
    let answers = memberships(ours.url()).await;
    for etcd in &etcds {
        for (one, other) in answers.iter().zip(memberships(etcd.url()).await) {
            // 3.4 takes no sockets with names.
            assert!(*one == other || (etcd.version < (3, 5) && one.0.contains("unix")), "{one:?} {other:?}");
        }
    }
    let said = |what: &str| answers.iter().find(|(name, _)| name == what).unwrap().1.clone();
    let invalid = (Code::InvalidArgument, "etcdserver: given member URLs are invalid".to_owned());
    assert_eq!(said("add x"), invalid);
    assert_eq!(said("add mine"), (Code::FailedPrecondition, "etcdserver: Peer URLs already exists".to_owned()));
    assert_eq!(said("remove unknown"), (Code::NotFound, "etcdserver: member not found".to_owned()));
    let alone = "etcdserver: re-configuration failed due to not enough started members";
    assert_eq!(said("remove me"), (Code::Unknown, alone.to_owned()));
    let voter = "etcdserver: can only promote a learner member";
    assert_eq!(said("promote me"), (Code::FailedPrecondition, voter.to_owned()));
    // What an etcd would do, and a single member cannot.
    let mut client = ClusterClient::new(channel(ours.url()).await);
    let add = pb::MemberAddRequest { peer_ur_ls: vec!["http://9.9.9.9:9".into()], is_learner: true };
    assert_eq!(outcome(client.member_add(add).await).0, Code::Unimplemented);
    // Ids and URLs outlive a restart.
    let before = client.member_list(pb::MemberListRequest::default()).await.unwrap().into_inner();
    assert!(!before.members[0].is_learner);
    assert!(ours.stop());
    let ours = Served::start(&dir.path().join("ours"), &["--name", "other"]);
    let mut client = ClusterClient::new(channel(ours.url()).await);
    let after = client.member_list(pb::MemberListRequest::default()).await.unwrap().into_inner();
    assert_eq!((after.header, after.members[0].id), (before.header, before.members[0].id));
    assert_eq!(after.members[0].peer_ur_ls, before.members[0].peer_ur_ls);
    assert_eq!((after.members[0].name.as_str(), &after.members[0].client_ur_ls[..]), ("other", &[ours.url()][..]));
}

/// The answers to moves of the lead and to downgrades, whose targets are counted from the cluster's version.
async fn leadership(url: String) -> Vec<(String, (Code, String))> {
    let mut client = MaintenanceClient::new(channel(url).await);
    let status = client.status(pb::StatusRequest {}).await.unwrap().into_inner();
    let minor: u32 = status.version.split('.').nth(1).unwrap().parse().unwrap();
    let mut outcomes = Vec::new();
    for (name, target_id) in [("unknown", 5), ("nobody", 0), ("me", status.header.unwrap().member_id)] {
        let moved = client.move_leader(pb::MoveLeaderRequest { target_id }).await;
        outcomes.push((format!("move to {name}"), outcome(moved)));
    }
    let below = format!("3.{}", minor - 1);
    for (name, version) in [
        ("below", below.clone()),
        ("below.0", format!("{below}.0")),
        ("below.7", format!("{below}.7")),
        ("below with a suffix", format!("{below}.0-rc.1")),
        ("the same", format!("3.{minor}.0")),
        ("two below", format!("3.{}.0", minor - 2)),
        ("above", format!("3.{}.0", minor + 1)),
        ("another major", "4.0.0".to_owned()),
        ("nothing", String::new()),
        ("letters", "x".to_owned()),
        ("one number", "3".to_owned()),
        ("four numbers", format!("{below}.0.0")),
        ("an empty number", format!("{below}.")),
        ("a v", format!("v{below}.0")),
    ] {
        let validate = pb::DowngradeRequest { action: 0, version };
        let answer = client.downgrade(validate).await;
        if let Ok(answer) = &answer {
            assert_eq!(answer.get_ref().version, format!("3.{minor}.0"), "that of the cluster");
        }
        outcomes.push((format!("downgrade to {name}"), outcome(answer)));
    }
    for (name, action, version) in
        [("enable two below", 1, format!("3.{}.0", minor - 2)), ("cancel", 2, String::new()), ("what", 9, below)]
    {
        let answer = client.downgrade(pb::DowngradeRequest { action, version }).await;
        outcomes.push((name.to_owned(), outcome(answer)));
    }
    outcomes
}

#[tokio::test]
async fn the_lead_and_downgrades_mnt_7_mnt_8() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, etcds) = servers(dir.path());
    let answers = leadership(ours.url()).await;
    for etcd in etcds {
        for (one, other) in answers.iter().zip(leadership(etcd.url()).await) {
            // 3.4 has no downgrades.
            assert!(*one == other || other.1.0 == Code::Unimplemented, "{one:?} {other:?}");
        }
    }
    let said = |what: &str| answers.iter().find(|(name, _)| name == what).unwrap().1.clone();
    let nobody = (Code::FailedPrecondition, "etcdserver: bad leader transferee".to_owned());
    assert_eq!((said("move to unknown"), said("move to me").0), (nobody, Code::Ok));
    assert_eq!(said("downgrade to below").0, Code::Ok);
    let format = (Code::InvalidArgument, "etcdserver: wrong downgrade target version format".to_owned());
    assert_eq!(said("downgrade to letters"), format);
    let target = (Code::InvalidArgument, "etcdserver: invalid downgrade target version".to_owned());
    assert_eq!(said("downgrade to the same"), target);
    assert_eq!(said("cancel"), (Code::FailedPrecondition, "etcdserver: no inflight downgrade job".to_owned()));
    // Valid, and not possible here.
    let mut client = MaintenanceClient::new(channel(ours.url()).await);
    let enable = pb::DowngradeRequest { action: 1, version: "3.5".into() };
    assert_eq!(outcome(client.downgrade(enable).await).0, Code::Unimplemented);
    let info = client.status(pb::StatusRequest {}).await.unwrap().into_inner().downgrade_info;
    assert_eq!(info, Some(pb::DowngradeInfo::default()));
}
