//! The Lock and Election services, and what of the others no `etcdctl` asks for.
#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]

mod common;

use common::Served;
use polybolt_frontend::proto::etcdserverpb as pb;
use polybolt_frontend::proto::v3electionpb as election;
use polybolt_frontend::proto::v3electionpb::election_client::ElectionClient;
use polybolt_frontend::proto::v3lockpb as lock;
use polybolt_frontend::proto::v3lockpb::lock_client::LockClient;
use std::time::Duration;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

async fn channel(served: &Served) -> Channel {
    Channel::from_shared(served.url()).unwrap().connect().await.unwrap()
}

async fn grant(channel: &Channel, ttl: i64) -> i64 {
    let mut leases = pb::lease_client::LeaseClient::new(channel.clone());
    leases.lease_grant(pb::LeaseGrantRequest { ttl, id: 0 }).await.unwrap().into_inner().id
}

async fn keys(channel: &Channel) -> i64 {
    let mut kv = pb::kv_client::KvClient::new(channel.clone());
    let all =
        pb::RangeRequest { key: vec![0].into(), range_end: vec![0].into(), count_only: true, ..Default::default() };
    kv.range(all).await.unwrap().into_inner().count
}

#[tokio::test]
async fn a_lock_goes_to_whoever_stood_in_line_first() {
    let dir = tempfile::tempdir().unwrap();
    let served = Served::start(dir.path(), &[]);
    let channel = channel(&served).await;
    let mut locks = LockClient::new(channel.clone());
    let request = |lease| lock::LockRequest { name: "l".into(), lease };
    let (a, b, c) = (grant(&channel, 60).await, grant(&channel, 60).await, grant(&channel, 60).await);
    let first = locks.lock(request(a)).await.unwrap().into_inner();
    assert_eq!(first.key, format!("l/{a:x}"));
    // The same owner has it already.
    assert_eq!(locks.lock(request(a)).await.unwrap().into_inner().key, first.key);
    let waiter = locks.clone();
    let wait = |lease| {
        let mut locks = waiter.clone();
        tokio::spawn(async move { locks.lock(request(lease)).await.map(tonic::Response::into_inner) })
    };
    let second = wait(b);
    while keys(&channel).await < 2 {}
    let third = wait(c);
    while keys(&channel).await < 3 {}
    assert!(!second.is_finished() && !third.is_finished());
    locks.unlock(lock::UnlockRequest { key: first.key }).await.unwrap();
    let second = second.await.unwrap().unwrap();
    assert_eq!(second.key, format!("l/{b:x}"));
    assert!(!third.is_finished());
    // The end of a lease gives the lock up too.
    let mut leases = pb::lease_client::LeaseClient::new(channel.clone());
    leases.lease_revoke(pb::LeaseRevokeRequest { id: b }).await.unwrap();
    assert_eq!(third.await.unwrap().unwrap().key, format!("l/{c:x}"));
    // Somebody who goes away while waiting leaves the line.
    let fourth = wait(grant(&channel, 60).await);
    while keys(&channel).await < 2 {}
    fourth.abort();
    while keys(&channel).await > 1 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let unknown = locks.lock(request(424_242)).await.unwrap_err();
    assert_eq!(unknown.message(), "etcdserver: requested lease not found");
    // Without a lease of the caller's one is granted.
    let own = locks.lock(lock::LockRequest { name: "other".into(), lease: 0 }).await.unwrap().into_inner();
    assert!(own.key.starts_with(b"other/"));
}

#[tokio::test]
async fn a_leader_leads_until_it_resigns() {
    let dir = tempfile::tempdir().unwrap();
    let served = Served::start(dir.path(), &[]);
    let channel = channel(&served).await;
    let mut elections = ElectionClient::new(channel.clone());
    let name = || election::LeaderRequest { name: "e".into() };
    assert_eq!(elections.leader(name()).await.unwrap_err().message(), "election: no leader");
    let campaign =
        |lease, value: &'static str| election::CampaignRequest { name: "e".into(), lease, value: value.into() };
    let (a, b) = (grant(&channel, 60).await, grant(&channel, 60).await);
    let mut observed = elections.observe(name()).await.unwrap().into_inner();
    let leader = elections.campaign(campaign(a, "a1")).await.unwrap().into_inner().leader.unwrap();
    assert_eq!(observed.message().await.unwrap().unwrap().kv.unwrap().value, "a1");
    let mut rival = elections.clone();
    let next = tokio::spawn(async move { rival.campaign(campaign(b, "b1")).await });
    while keys(&channel).await < 2 {}
    elections.proclaim(election::ProclaimRequest { leader: Some(leader.clone()), value: "a2".into() }).await.unwrap();
    assert_eq!(observed.message().await.unwrap().unwrap().kv.unwrap().value, "a2");
    let now = elections.leader(name()).await.unwrap().into_inner().kv.unwrap();
    assert_eq!((&now.value[..], now.create_revision, now.lease), (&b"a2"[..], leader.rev, a));
    assert!(!next.is_finished());
    elections.resign(election::ResignRequest { leader: Some(leader.clone()) }).await.unwrap();
    let second = next.await.unwrap().unwrap().into_inner().leader.unwrap();
    assert_eq!(second.lease, b);
    assert_eq!(observed.message().await.unwrap().unwrap().kv.unwrap().value, "b1");
    let late = elections.proclaim(election::ProclaimRequest { leader: Some(leader), value: "a3".into() }).await;
    assert_eq!(late.unwrap_err().message(), "election: not leader");
}

#[tokio::test]
async fn a_range_comes_in_chunks_that_are_its_whole() {
    let dir = tempfile::tempdir().unwrap();
    let served = Served::start(dir.path(), &[]);
    let channel = channel(&served).await;
    let mut kv = pb::kv_client::KvClient::new(channel);
    for n in 0..300 {
        let key = format!("/registry/{}/{n:03}", ["pods", "leases", "x"][n % 3]);
        kv.put(pb::PutRequest { key: key.into(), value: vec![b'v'; n * 30].into(), ..Default::default() })
            .await
            .unwrap();
    }
    for limit in [0, 1, 150, 300, 500] {
        let request = pb::RangeRequest { key: vec![0].into(), range_end: vec![0].into(), limit, ..Default::default() };
        let whole = kv.range(request.clone()).await.unwrap().into_inner();
        let mut stream = kv.range_stream(request).await.unwrap().into_inner();
        let (mut joined, mut chunks) = (pb::RangeResponse::default(), 0);
        while let Some(chunk) = stream.message().await.unwrap() {
            let mut chunk = chunk.range_response.unwrap();
            assert!(joined.header.is_none(), "the header comes last");
            joined.kvs.append(&mut chunk.kvs);
            (joined.header, joined.more, joined.count) = (chunk.header, chunk.more, chunk.count);
            chunks += 1;
        }
        assert_eq!(joined, whole, "limit {limit}");
        assert!(chunks > 1 || limit == 1 || limit == 150);
    }
    let sorted = pb::RangeRequest { key: "a".into(), sort_order: 2, ..Default::default() };
    let refused = kv.range_stream(sorted).await.unwrap_err();
    assert_eq!(
        (refused.code(), refused.message()),
        (tonic::Code::Unimplemented, "RangeStream does not support custom sort orders")
    );
}

/// What a watch stream answers, request by request.
struct Watching {
    sender: tokio::sync::mpsc::Sender<pb::WatchRequest>,
    responses: tonic::Streaming<pb::WatchResponse>,
}

impl Watching {
    async fn start(channel: &Channel) -> Watching {
        let (sender, receiver) = tokio::sync::mpsc::channel(8);
        let mut client = pb::watch_client::WatchClient::new(channel.clone());
        let responses = client.watch(ReceiverStream::new(receiver)).await.unwrap().into_inner();
        Watching { sender, responses }
    }

    async fn ask(&self, request: pb::watch_request::RequestUnion) {
        self.sender.send(pb::WatchRequest { request_union: Some(request) }).await.unwrap();
    }

    async fn create(&mut self, request: pb::WatchCreateRequest) -> pb::WatchResponse {
        self.ask(pb::watch_request::RequestUnion::CreateRequest(request)).await;
        self.next().await
    }

    async fn next(&mut self) -> pb::WatchResponse {
        tokio::time::timeout(Duration::from_secs(30), self.responses.message()).await.unwrap().unwrap().unwrap()
    }
}

#[tokio::test]
async fn a_watch_stream_wch_1_to_26() {
    use pb::watch_request::RequestUnion;
    let dir = tempfile::tempdir().unwrap();
    let served = Served::start(dir.path(), &[]);
    let channel = channel(&served).await;
    let mut kv = pb::kv_client::KvClient::new(channel.clone());
    for n in 0..5 {
        kv.put(pb::PutRequest { key: format!("k{n}").into(), value: "v".into(), ..Default::default() }).await.unwrap();
    }
    let mut watching = Watching::start(&channel).await;
    let create = |key: &'static str| pb::WatchCreateRequest { key: key.into(), ..Default::default() };
    // Ids: from 0 on, or the client's; taken ones are refused.
    let first = watching.create(create("a")).await;
    assert_eq!((first.watch_id, first.created, first.header.unwrap().revision), (0, true, 6));
    assert_eq!(watching.create(create("b")).await.watch_id, 1);
    assert_eq!(watching.create(pb::WatchCreateRequest { watch_id: 7, ..create("c") }).await.watch_id, 7);
    let taken = watching.create(pb::WatchCreateRequest { watch_id: 7, ..create("c") }).await;
    assert!(taken.created && taken.canceled && taken.watch_id == -1);
    assert_eq!(taken.cancel_reason, "mvcc: duplicate watch ID provided on the WatchStream");
    let empty = watching.create(pb::WatchCreateRequest { range_end: "a".into(), ..create("b") }).await;
    assert_eq!((empty.canceled, empty.cancel_reason.as_str()), (true, "mvcc: watcher range is empty"));
    let negative = watching.create(pb::WatchCreateRequest { start_revision: -1, ..create("b") }).await;
    assert_eq!(negative.cancel_reason, "etcdserver: mvcc: required revision has been compacted");
    assert_eq!(negative.compact_revision, 0);
    // Progress of all, and none while one waits for the future.
    watching.ask(RequestUnion::ProgressRequest(pb::WatchProgressRequest {})).await;
    let progress = watching.next().await;
    assert_eq!((progress.watch_id, progress.events.len(), progress.header.unwrap().revision), (-1, 0, 6));
    // Events, then a cancel, and none after it.
    kv.put(pb::PutRequest { key: "b".into(), value: "1".into(), ..Default::default() }).await.unwrap();
    let event = watching.next().await;
    assert_eq!((event.watch_id, event.events.len(), event.header.unwrap().revision), (1, 1, 7));
    watching.ask(RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id: 1 })).await;
    let canceled = watching.next().await;
    assert!(canceled.canceled && canceled.watch_id == 1 && canceled.cancel_reason.is_empty());
    kv.put(pb::PutRequest { key: "b".into(), value: "2".into(), ..Default::default() }).await.unwrap();
    kv.put(pb::PutRequest { key: "a".into(), value: "2".into(), ..Default::default() }).await.unwrap();
    assert_eq!(watching.next().await.watch_id, 0);
    // History with filters, below the compacted revision, and told once.
    let all = |start_revision| pb::WatchCreateRequest {
        key: vec![0].into(),
        range_end: vec![0].into(),
        start_revision,
        filters: vec![pb::watch_create_request::FilterType::Nodelete.into()],
        ..Default::default()
    };
    let history = watching.create(all(2)).await.watch_id;
    let mut seen = 0;
    while seen < 8 {
        let response = watching.next().await;
        assert_eq!(response.watch_id, history);
        seen += response.events.len();
    }
    kv.compact(pb::CompactionRequest { revision: 9, physical: true }).await.unwrap();
    let behind = watching.create(all(3)).await;
    assert!(behind.created && !behind.canceled);
    let compacted = watching.next().await;
    assert_eq!((compacted.watch_id, compacted.canceled, compacted.compact_revision), (behind.watch_id, true, 9));
    assert_eq!((compacted.header.unwrap().revision, compacted.cancel_reason.as_str()), (0, ""));
    // The others go on.
    kv.delete_range(pb::DeleteRangeRequest { key: "a".into(), ..Default::default() }).await.unwrap();
    assert_eq!(watching.next().await.watch_id, 0);
    watching.ask(RequestUnion::ProgressRequest(pb::WatchProgressRequest {})).await;
    assert_eq!(watching.next().await.header.unwrap().revision, 10);
    // The server's end is the stream's.
    let stopping = tokio::task::spawn_blocking(move || served.stop());
    let ended = tokio::time::timeout(Duration::from_secs(30), watching.responses.message()).await.unwrap();
    assert_eq!(ended.unwrap_err().message(), "etcdserver: server stopped");
    assert!(stopping.await.unwrap());
}

/// As `grpcurl` and gateways do.
#[tokio::test]
async fn a_watch_goes_on_after_the_client_has_asked_its_last() {
    let dir = tempfile::tempdir().unwrap();
    let served = Served::start(dir.path(), &[]);
    let channel = channel(&served).await;
    let mut kv = pb::kv_client::KvClient::new(channel.clone());
    let Watching { sender, mut responses } = Watching::start(&channel).await;
    let create = pb::WatchCreateRequest { key: "k".into(), ..Default::default() };
    let request = pb::watch_request::RequestUnion::CreateRequest(create);
    sender.send(pb::WatchRequest { request_union: Some(request) }).await.unwrap();
    drop(sender);
    assert!(responses.message().await.unwrap().unwrap().created);
    for n in 0..3 {
        kv.put(pb::PutRequest { key: "k".into(), value: format!("{n}").into(), ..Default::default() }).await.unwrap();
        let response = tokio::time::timeout(Duration::from_secs(30), responses.message()).await.unwrap();
        assert_eq!(response.unwrap().expect("the stream goes on").events[0].kv.as_ref().unwrap().value, format!("{n}"));
    }
}

#[tokio::test]
async fn alarms_qta_2_qta_6_mnt_5_mnt_6_put_8() {
    let dir = tempfile::tempdir().unwrap();
    let served = Served::start(dir.path(), &[]);
    let channel = channel(&served).await;
    let mut maintenance = pb::maintenance_client::MaintenanceClient::new(channel.clone());
    let mut kv = pb::kv_client::KvClient::new(channel.clone());
    let mut alarm = async |action, member_id, alarm| {
        let request = pb::AlarmRequest { action, member_id, alarm };
        maintenance.alarm(request).await.map(|answer| answer.into_inner().alarms)
    };
    let nospace = pb::AlarmMember { member_id: 7, alarm: pb::AlarmType::Nospace as i32 };
    assert_eq!(alarm(1, 7, 0).await.unwrap(), [], "one of no type is none");
    assert!(alarm(9, 7, 1).await.is_err(), "an action that there is not");
    assert_eq!(alarm(1, 7, 1).await.unwrap(), [nospace]);
    assert_eq!(alarm(2, 0, 1).await.unwrap(), [], "member 0 is nobody else");
    assert_eq!(alarm(0, 3, 0).await.unwrap(), [nospace]);
    let put = |key: &'static str| pb::PutRequest { key: key.into(), value: "v".into(), ..Default::default() };
    let op = |request| pb::RequestOp { request: Some(request) };
    let nested = |below: Vec<pb::RequestOp>| {
        let child = pb::TxnRequest { success: below, ..Default::default() };
        let success = vec![op(pb::request_op::Request::RequestTxn(child))];
        pb::TxnRequest { success, ..Default::default() }
    };
    let puts = || nested(vec![op(pb::request_op::Request::RequestPut(put("a")))]);
    let full = "etcdserver: mvcc: database space exceeded";
    assert_eq!(kv.put(put("a")).await.unwrap_err().message(), full);
    assert_eq!(kv.put(put("")).await.unwrap_err().message(), "etcdserver: key is not provided");
    assert_eq!(kv.txn(puts()).await.unwrap_err().message(), full);
    let deletes = pb::DeleteRangeRequest { key: "a".into(), ..Default::default() };
    kv.txn(nested(vec![op(pb::request_op::Request::RequestDeleteRange(deletes.clone()))])).await.unwrap();
    kv.delete_range(deletes.clone()).await.unwrap();
    assert_eq!(alarm(2, 7, 1).await.unwrap(), [nospace]);
    kv.put(put("a")).await.unwrap();
    alarm(1, 7, 2).await.unwrap();
    for status in [kv.put(put("a")).await.unwrap_err(), kv.delete_range(deletes).await.unwrap_err()] {
        assert_eq!((status.code(), status.message()), (tonic::Code::DataLoss, "etcdserver: corrupt cluster"));
    }
    assert_eq!(keys(&channel).await, 1, "it can be read");
    // Both: CORRUPT counts.
    alarm(1, 7, 1).await.unwrap();
    assert_eq!(kv.put(put("a")).await.unwrap_err().code(), tonic::Code::DataLoss);
}
