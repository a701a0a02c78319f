//! The same requests to a real etcd and to the server: the same answers.
//!
//! Operations follow from a seed (`POLYBOLT_DIFF_SEED`, `POLYBOLT_DIFF_OPS`). Answers are compared whole,
//! but for who answers (cluster, member, term); errors by code and message. Both are single members, so
//! revisions have to be equal too.
#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]

mod common;

use common::{Served, free_port, has_program};
use polybolt_frontend::proto::etcdserverpb as pb;
use polybolt_frontend::proto::etcdserverpb::kv_client::KvClient;
use polybolt_frontend::proto::etcdserverpb::lease_client::LeaseClient;
use polybolt_frontend::proto::etcdserverpb::watch_client::WatchClient;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Response, Status};

struct Etcd {
    child: Child,
    url: String,
}

impl Etcd {
    fn start(dir: &Path) -> Etcd {
        let (client, peer) = (free_port(), free_port());
        let (url, peers) = (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
        let mut command = Command::new("etcd");
        command.args(["--name", "default", "--log-level", "error", "--data-dir"]).arg(dir);
        command.args(["--listen-client-urls", &url, "--advertise-client-urls", &url, "--listen-peer-urls", &peers]);
        command.args(["--initial-advertise-peer-urls", &peers, "--initial-cluster", &format!("default={peers}")]);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let limit = Instant::now() + Duration::from_secs(60);
        while std::net::TcpStream::connect(("127.0.0.1", client)).is_err() {
            assert!(Instant::now() < limit, "etcd does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        Etcd { child, url }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// Keys over several shards of the kubernetes routes, some on their borders.
fn key(rng: &mut Rng) -> Vec<u8> {
    const KEYS: [&str; 14] = [
        "/registry/pods/",
        "/registry/pods/a",
        "/registry/pods/b",
        "/registry/pods0",
        "/registry/events/x",
        "/registry/events/y/z",
        "/registry/leases/l",
        "/registry/configmaps/c",
        "/registry/secrets/s",
        "/registry/minions/n",
        "/registry/zzz",
        "a",
        "zz",
        "\u{7f}",
    ];
    KEYS[rng.below(KEYS.len() as u64) as usize].into()
}

fn end(rng: &mut Rng) -> Vec<u8> {
    match rng.below(4) {
        0 => vec![0],
        1 => b"/registry/q".to_vec(),
        2 => key(rng),
        _ => Vec::new(),
    }
}

fn span(rng: &mut Rng) -> (Vec<u8>, Vec<u8>) {
    match rng.below(12) {
        0 => (Vec::new(), vec![0]),
        1 => (vec![0], vec![0]),
        _ => (key(rng), end(rng)),
    }
}

fn range(rng: &mut Rng, revision: i64) -> pb::RangeRequest {
    let (key, range_end) = span(rng);
    let maybe = |rng: &mut Rng, n| if rng.one_in(n) { rng.below(revision.unsigned_abs() + 2) as i64 } else { 0 };
    let mut request = pb::RangeRequest {
        key: key.into(),
        range_end: range_end.into(),
        limit: if rng.one_in(2) { rng.below(6) as i64 } else { 0 },
        revision: maybe(rng, 4),
        serializable: rng.one_in(3),
        // The lease of a key alone is a superset of what newer ones answer; 3.4 has it too.
        keys_only: rng.one_in(6),
        count_only: rng.one_in(8),
        min_mod_revision: maybe(rng, 10),
        max_mod_revision: maybe(rng, 10),
        min_create_revision: maybe(rng, 10),
        max_create_revision: maybe(rng, 10),
        ..Default::default()
    };
    if rng.one_in(3) {
        // Ties are sorted unstably by etcd: only keys and mod revisions of single puts have none.
        request.sort_target = [0, 0, 3][rng.below(3) as usize];
        request.sort_order = 1 + rng.below(2) as i32;
        if request.sort_target == 3 && request.limit != 0 {
            request.limit = 0;
        }
    }
    request
}

fn put(rng: &mut Rng) -> pb::PutRequest {
    let key = if rng.one_in(40) { Vec::new() } else { key(rng) };
    let ignore_value = rng.one_in(10);
    let ignore_lease = rng.one_in(10);
    pb::PutRequest {
        key: key.into(),
        value: if ignore_value && !rng.one_in(5) { Vec::new() } else { vec![b'v'; rng.below(40) as usize] }.into(),
        // etcd 3.4 looks for the key before the lease in a txn, newer ones after (PUT-4): not both.
        lease: if ignore_lease || ignore_value { 0 } else { [0, 0, 0, 1, 2, 3][rng.below(6) as usize] },
        prev_kv: rng.one_in(2),
        ignore_value,
        ignore_lease,
    }
}

fn delete(rng: &mut Rng) -> pb::DeleteRangeRequest {
    let (key, range_end) = if rng.one_in(3) { span(rng) } else { (key(rng), Vec::new()) };
    pb::DeleteRangeRequest { key: key.into(), range_end: range_end.into(), prev_kv: rng.one_in(2) }
}

fn compare(rng: &mut Rng, revision: i64) -> pb::Compare {
    use pb::compare::TargetUnion;
    let (key, range_end) = span(rng);
    let number = rng.below(revision.unsigned_abs() + 1) as i64;
    let target_union = match rng.below(6) {
        0 => TargetUnion::Version(number % 4),
        1 => TargetUnion::CreateRevision(number),
        2 => TargetUnion::ModRevision(number),
        3 => TargetUnion::Value(vec![b'v'; rng.below(40) as usize].into()),
        4 => TargetUnion::Lease(number % 4),
        _ => TargetUnion::Version(0),
    };
    pb::Compare {
        result: rng.below(4) as i32,
        target: rng.below(5) as i32,
        key: key.into(),
        range_end: range_end.into(),
        target_union: Some(target_union),
    }
}

/// etcd 3.4 checks all puts before all ranges, newer ones in order: only one kind may fail in one txn.
fn txn(rng: &mut Rng, revision: i64, depth: u32, at_revisions: bool) -> pb::TxnRequest {
    use pb::request_op::Request;
    let ops = |rng: &mut Rng| {
        (0..rng.below(4))
            .map(|_| {
                let request = match rng.below(8) {
                    0..3 if at_revisions => {
                        let put = put(rng);
                        Request::RequestPut(pb::PutRequest {
                            lease: 0,
                            ignore_value: false,
                            ignore_lease: false,
                            ..put
                        })
                    }
                    0..3 => Request::RequestPut(put(rng)),
                    3..5 => Request::RequestDeleteRange(delete(rng)),
                    5 if depth < 2 => Request::RequestTxn(txn(rng, revision, depth + 1, at_revisions)),
                    _ => {
                        let mut range = range(rng, revision);
                        // A negative or future revision in a txn is refused alike; sorted by key only.
                        range.sort_target = 0;
                        range.revision *= i64::from(at_revisions);
                        Request::RequestRange(range)
                    }
                };
                pb::RequestOp { request: Some(request) }
            })
            .collect()
    };
    let compare = (0..rng.below(3)).map(|_| compare(rng, revision)).collect();
    pb::TxnRequest { compare, success: ops(rng), failure: ops(rng) }
}

/// An answer without who gave it.
trait Anonymous: std::fmt::Debug + PartialEq {
    fn header(&mut self) -> Option<&mut pb::ResponseHeader>;
}

macro_rules! anonymous {
    ($($response:ty),*) => {
        $(impl Anonymous for $response {
            fn header(&mut self) -> Option<&mut pb::ResponseHeader> {
                self.header.as_mut()
            }
        })*
    };
}

anonymous!(
    pb::RangeResponse,
    pb::PutResponse,
    pb::DeleteRangeResponse,
    pb::TxnResponse,
    pb::CompactionResponse,
    pb::LeaseGrantResponse,
    pb::LeaseRevokeResponse,
    pb::LeaseTimeToLiveResponse,
    pb::LeaseLeasesResponse,
    pb::WatchResponse
);

fn plain<T: Anonymous>(answer: Result<Response<T>, Status>) -> Result<T, (tonic::Code, String)> {
    match answer {
        Ok(response) => {
            let mut response = response.into_inner();
            if let Some(header) = response.header() {
                *header = pb::ResponseHeader { revision: header.revision, ..Default::default() };
            }
            Ok(response)
        }
        Err(status) => Err((status.code(), status.message().to_owned())),
    }
}

struct Clients {
    kv: KvClient<Channel>,
    lease: LeaseClient<Channel>,
    watch: WatchClient<Channel>,
}

impl Clients {
    async fn connect(url: &str) -> Clients {
        let channel = Channel::from_shared(url.to_owned()).unwrap().connect().await.unwrap();
        Clients {
            kv: KvClient::new(channel.clone()),
            lease: LeaseClient::new(channel.clone()),
            watch: WatchClient::new(channel),
        }
    }
}

macro_rules! both {
    ($real:expr, $ours:expr, $what:expr, $client:ident . $method:ident($request:expr)) => {{
        let request = $request;
        let real = plain($real.$client.$method(request.clone()).await);
        let ours = plain($ours.$client.$method(request.clone()).await);
        assert_eq!(real, ours, "{}: etcd's answer is on the left, to {request:?}", $what);
        real
    }};
}

/// Every event from `from` on, as one list, until one of revision `last`.
async fn history(clients: &mut Clients, from: i64, last: i64) -> Vec<polybolt_frontend::proto::mvccpb::Event> {
    let create = pb::WatchCreateRequest {
        key: vec![0].into(),
        range_end: vec![0].into(),
        start_revision: from,
        prev_kv: false,
        ..Default::default()
    };
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    let request = pb::WatchRequest { request_union: Some(pb::watch_request::RequestUnion::CreateRequest(create)) };
    sender.send(request).await.unwrap();
    let mut responses = clients.watch.watch(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    let mut events = Vec::new();
    while events
        .last()
        .is_none_or(|event: &polybolt_frontend::proto::mvccpb::Event| event.kv.as_ref().unwrap().mod_revision < last)
    {
        let response = responses.message().await.unwrap().unwrap();
        assert!(!response.canceled, "{response:?}");
        events.extend(response.events);
    }
    events
}

async fn campaign(real: &mut Clients, ours: &mut Clients, seed: u64, ops: u64) {
    let mut rng = Rng(seed);
    let (mut revision, mut compacted) = (1, 0);
    for step in 0..ops {
        let what = format!("seed {seed}, operation {step}");
        let header = match rng.below(20) {
            0..6 => both!(real, ours, what, kv.put(put(&mut rng))).ok().and_then(|put| put.header),
            6..10 => both!(real, ours, what, kv.range(range(&mut rng, revision))).ok().and_then(|range| range.header),
            10..12 => both!(real, ours, what, kv.delete_range(delete(&mut rng))).ok().and_then(|done| done.header),
            12..17 => both!(
                real,
                ours,
                what,
                kv.txn({
                    let at_revisions = rng.one_in(2);
                    txn(&mut rng, revision, 0, at_revisions)
                })
            )
            .ok()
            .and_then(|txn| txn.header),
            17 => {
                let id = 1 + rng.below(4) as i64;
                // Long enough that none expires on its own.
                let grant = pb::LeaseGrantRequest { ttl: if rng.one_in(20) { 9_000_000_001 } else { 5_000 }, id };
                both!(real, ours, what, lease.lease_grant(grant)).ok().and_then(|lease| lease.header)
            }
            18 => {
                let id = 1 + rng.below(4) as i64;
                both!(real, ours, what, lease.lease_revoke(pb::LeaseRevokeRequest { id }))
                    .ok()
                    .and_then(|lease| lease.header)
            }
            _ if !rng.one_in(6) => {
                both!(real, ours, what, kv.range(range(&mut rng, revision))).ok().and_then(|range| range.header)
            }
            _ => {
                let target = compacted - 1 + rng.below((revision - compacted + 3) as u64) as i64;
                let request = pb::CompactionRequest { revision: target, physical: rng.one_in(2) };
                let done = both!(real, ours, what, kv.compact(request));
                if done.is_ok() {
                    compacted = target;
                }
                done.ok().and_then(|done| done.header)
            }
        };
        if let Some(header) = header {
            assert!(header.revision >= revision, "{what}");
            revision = header.revision;
        }
    }
    // Everything that is left, at every revision that may be asked for, and the history in between.
    for at in compacted.max(1)..=revision {
        let request =
            pb::RangeRequest { key: vec![0].into(), range_end: vec![0].into(), revision: at, ..Default::default() };
        both!(real, ours, format!("seed {seed}, at {at}"), kv.range(request)).unwrap();
    }
    let newest = pb::PutRequest { key: "end".into(), ..Default::default() };
    let last = both!(real, ours, "the end", kv.put(newest)).unwrap().header.unwrap().revision;
    let from = compacted.max(1) + 1;
    assert_eq!(history(real, from, last).await, history(ours, from, last).await, "history from {from} on");
    println!("seed {seed}: {ops} operations, {revision} revisions, compacted {compacted}: no difference");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_answers_as_etcd() {
    if !has_program("etcd") {
        return;
    }
    let number = |name, default| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    let (first, ops) = (number("POLYBOLT_DIFF_SEED", 1), number("POLYBOLT_DIFF_OPS", 1500));
    for seed in first..first + 4 {
        let dir = tempfile::tempdir().unwrap();
        let etcd = Etcd::start(&dir.path().join("etcd"));
        let served = Served::start(&dir.path().join("polybolt"), &["--buffer-bytes", "1048576"]);
        let mut real = Clients::connect(&etcd.url).await;
        let mut ours = Clients::connect(&served.url()).await;
        campaign(&mut real, &mut ours, seed, ops).await;
    }
}
