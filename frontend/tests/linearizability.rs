//! A server that is killed under concurrent clients: what they saw is linearizable (Herlihy, Wing:
//! Linearizability, 1990) with respect to etcd's KV, revisions included.
//!
//! A round starts the server, lets 16 clients read, write, delete and compare-and-swap a few keys, kills
//! it, starts it again, and asks it for everything it has and for the history of the round. A call that
//! the kill left unanswered counts if its change is in that history, and else as never made. The history
//! is then searched for an order (by the checker of `todc-utils`) in which each call gives the answer
//! that was seen, begins after every call that had ended before it, and ends in what the server has.
//!
//! `POLYBOLT_LINEARIZABLE_ROUNDS` says how many rounds, `POLYBOLT_LINEARIZABLE_SEED` which keys and calls.
#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]

mod common;

use common::Served;
use polybolt_frontend::proto::etcdserverpb as pb;
use polybolt_frontend::proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use polybolt_frontend::proto::etcdserverpb::kv_client::KvClient;
use polybolt_frontend::proto::etcdserverpb::request_op::Request as Operation;
use polybolt_frontend::proto::etcdserverpb::response_op::Response as Outcome;
use polybolt_frontend::proto::mvccpb::KeyValue;
use polybolt_frontend::proto::mvccpb::event::EventType;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use todc_utils::linearizability::WGLChecker;
use todc_utils::linearizability::history::{Action, History};
use todc_utils::specifications::Specification;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

const CLIENTS: u64 = 16;
/// Few, so that calls meet; over three shards.
const KEYS: [&str; 6] =
    ["/registry/pods/a", "/registry/pods/b", "/registry/leases/a", "/registry/leases/b", "/other/a", "/other/b"];
/// The search is quadratic in the calls of a round.
const CALLS_MAX: u64 = 800;

/// A live key: value, create and mod revision, version.
type Live = (u64, i64, i64, i64);

/// The store, as etcd's contract has it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Store {
    revision: i64,
    live: BTreeMap<usize, Live>,
}

impl Store {
    fn put(&mut self, key: usize, value: u64) -> i64 {
        self.revision += 1;
        let (created, version) = self.live.get(&key).map_or((self.revision, 1), |live| (live.1, live.3 + 1));
        self.live.insert(key, (value, created, self.revision, version));
        self.revision
    }

    fn delete(&mut self, key: usize) -> i64 {
        self.revision += i64::from(self.live.remove(&key).is_some());
        self.revision
    }
}

/// A call and what it answered. Values are written once.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Call {
    /// What the store has when a round begins.
    Begin(Store),
    Put {
        key: usize,
        value: u64,
        revision: i64,
    },
    Delete {
        key: usize,
        revision: i64,
        deleted: bool,
    },
    /// Puts if the key's mod revision is `expected`, else reads it.
    Swap {
        key: usize,
        expected: i64,
        value: u64,
        revision: i64,
        found: Option<Option<Live>>,
    },
    Get {
        key: usize,
        revision: i64,
        found: Option<Live>,
    },
    /// Everything.
    List(Store),
}

struct Kv;

impl Specification for Kv {
    type State = Store;
    type Operation = Call;

    fn init() -> Store {
        Store { revision: 1, live: BTreeMap::new() }
    }

    fn apply(call: &Call, before: &Store) -> (bool, Store) {
        let mut store = before.clone();
        let agrees = match call {
            Call::Begin(begin) => {
                store = begin.clone();
                true
            }
            Call::Put { key, value, revision } => store.put(*key, *value) == *revision,
            Call::Delete { key, revision, deleted } => {
                store.live.contains_key(key) == *deleted && store.delete(*key) == *revision
            }
            Call::Swap { key, expected, value, revision, found } => {
                let live = store.live.get(key).copied();
                if live.map_or(0, |live| live.2) == *expected {
                    found.is_none() && store.put(*key, *value) == *revision
                } else {
                    *found == Some(live) && store.revision == *revision
                }
            }
            Call::Get { key, revision, found } => store.revision == *revision && store.live.get(key).copied() == *found,
            Call::List(found) => store == *found,
        };
        (agrees, store)
    }
}

/// A call with when it was made and answered; None if it never was.
#[derive(Debug, Clone)]
struct Record {
    client: usize,
    call: Call,
    made: Instant,
    answered: Option<Instant>,
}

fn live(kv: &KeyValue) -> Live {
    let value = u64::from_be_bytes(kv.value[..].try_into().unwrap());
    (value, kv.create_revision, kv.mod_revision, kv.version)
}

fn key_number(key: &[u8]) -> usize {
    KEYS.iter().position(|known| known.as_bytes() == key).unwrap()
}

/// A small generator: the same calls for the same seed, as far as the answers are the same.
struct Rng(u64);

impl Rng {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

struct Client {
    kv: KvClient<Channel>,
    number: usize,
    rng: Rng,
    values: Arc<AtomicU64>,
    records: Vec<Record>,
    /// The mod revisions that it knows of.
    known: [i64; KEYS.len()],
}

impl Client {
    /// Calls until the server is gone.
    async fn run(mut self, calls: Arc<AtomicU64>) -> Vec<Record> {
        while calls.fetch_add(1, Ordering::Relaxed) < CALLS_MAX {
            if self.call().await.is_err() {
                break;
            }
        }
        self.records
    }

    async fn call(&mut self) -> Result<(), tonic::Status> {
        let key = self.rng.below(KEYS.len() as u64) as usize;
        let value = self.values.fetch_add(1, Ordering::Relaxed);
        let bytes = value.to_be_bytes().to_vec();
        let put = pb::PutRequest { key: KEYS[key].into(), value: bytes.into(), ..Default::default() };
        let get = pb::RangeRequest { key: KEYS[key].into(), ..Default::default() };
        let made = Instant::now();
        let unanswered = |call| Record { client: self.number, call, made, answered: None };
        let (record, answer) = match self.rng.below(10) {
            0..3 => {
                let mut record = unanswered(Call::Put { key, value, revision: 0 });
                let answer = self.kv.put(put).await.map(|answer| {
                    let revision = answer.into_inner().header.unwrap().revision;
                    record.call = Call::Put { key, value, revision };
                });
                (record, answer)
            }
            3 => {
                let mut record = unanswered(Call::Delete { key, revision: 0, deleted: true });
                let request = pb::DeleteRangeRequest { key: KEYS[key].into(), ..Default::default() };
                let answer = self.kv.delete_range(request).await.map(|answer| {
                    let answer = answer.into_inner();
                    let revision = answer.header.unwrap().revision;
                    record.call = Call::Delete { key, revision, deleted: answer.deleted > 0 };
                });
                (record, answer)
            }
            4..7 => {
                let expected = self.known[key];
                let mut record = unanswered(Call::Swap { key, expected, value, revision: 0, found: None });
                let guard = pb::Compare {
                    key: KEYS[key].into(),
                    result: CompareResult::Equal.into(),
                    target: CompareTarget::Mod.into(),
                    target_union: Some(TargetUnion::ModRevision(expected)),
                    ..Default::default()
                };
                let op = |request| vec![pb::RequestOp { request: Some(request) }];
                let request = pb::TxnRequest {
                    compare: vec![guard],
                    success: op(Operation::RequestPut(put)),
                    failure: op(Operation::RequestRange(get)),
                };
                let known = &mut self.known[key];
                let answer = self.kv.txn(request).await.map(|answer| {
                    let mut answer = answer.into_inner();
                    let revision = answer.header.unwrap().revision;
                    let found = match answer.responses.remove(0).response.unwrap() {
                        Outcome::ResponseRange(range) => Some(range.kvs.first().map(live)),
                        _ => None,
                    };
                    assert_eq!(answer.succeeded, found.is_none());
                    *known = found.map_or(revision, |found| found.map_or(0, |live| live.2));
                    record.call = Call::Swap { key, expected, value, revision, found };
                });
                (record, answer)
            }
            7..9 => {
                let mut record = unanswered(Call::Get { key, revision: 0, found: None });
                let known = &mut self.known[key];
                let answer = self.kv.range(get).await.map(|answer| {
                    let answer = answer.into_inner();
                    let found = answer.kvs.first().map(live);
                    *known = found.map_or(0, |live| live.2);
                    record.call = Call::Get { key, revision: answer.header.unwrap().revision, found };
                });
                (record, answer)
            }
            _ => {
                let mut record = unanswered(Call::List(Kv::init()));
                let answer = list(&mut self.kv).await.map(|store| record.call = Call::List(store));
                (record, answer)
            }
        };
        let answered = answer.is_ok().then(Instant::now);
        self.records.push(Record { answered, ..record });
        answer
    }
}

async fn list(kv: &mut KvClient<Channel>) -> Result<Store, tonic::Status> {
    let everything = pb::RangeRequest { key: vec![0].into(), range_end: vec![0].into(), ..Default::default() };
    let answer = kv.range(everything).await?.into_inner();
    assert_eq!(answer.count, answer.kvs.len() as i64);
    let live = answer.kvs.iter().map(|kv| (key_number(&kv.key), live(kv))).collect();
    Ok(Store { revision: answer.header.unwrap().revision, live })
}

/// Changes by revision: the key, and the value of a put. One change a revision.
type Changes = BTreeMap<i64, (usize, Option<u64>)>;

/// What the server says happened after `from`, up to `to`.
async fn history(url: &str, from: i64, to: i64) -> Changes {
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    let request = pb::WatchCreateRequest {
        key: vec![0].into(),
        range_end: vec![0].into(),
        start_revision: from + 1,
        ..Default::default()
    };
    let union = Some(pb::watch_request::RequestUnion::CreateRequest(request));
    sender.send(pb::WatchRequest { request_union: union }).await.unwrap();
    let mut client = pb::watch_client::WatchClient::connect(url.to_owned()).await.unwrap();
    let mut responses = client.watch(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    let mut changes = Changes::new();
    while changes.keys().next_back().copied().unwrap_or(from) < to {
        let response = tokio::time::timeout(Duration::from_secs(30), responses.message()).await.unwrap();
        for event in response.unwrap().unwrap().events {
            let put = event.r#type() == EventType::Put;
            let kv = event.kv.unwrap();
            let value = put.then(|| live(&kv).0);
            let twice = changes.insert(kv.mod_revision, (key_number(&kv.key), value));
            assert!(twice.is_none(), "revision {} has two changes", kv.mod_revision);
        }
    }
    assert_eq!(changes.len() as i64, to - from, "every revision has its change");
    changes
}

/// Gives the calls that were never answered what the server's history says of them, and drops those that
/// it does not know. Every change of an answered call has to be in that history.
fn settle(records: Vec<Record>, changes: &Changes) -> Vec<Record> {
    let change_of = |call: &Call| match *call {
        Call::Put { key, value, revision } => Some((revision, (key, Some(value)))),
        Call::Swap { key, value, revision, found: None, .. } => Some((revision, (key, Some(value)))),
        Call::Delete { key, revision, deleted: true } => Some((revision, (key, None))),
        _ => None,
    };
    let mut unclaimed = changes.clone();
    let (answered, mut unanswered): (Vec<_>, Vec<_>) =
        records.into_iter().partition(|record| record.answered.is_some());
    // Deletes of one key look alike. If any of them can have made a change, the one that was asked for first can.
    unanswered.sort_by_key(|record| record.made);
    for record in &answered {
        if let Some((revision, change)) = change_of(&record.call) {
            assert_eq!(unclaimed.remove(&revision), Some(change), "acknowledged, and not what happened: {record:?}");
        }
    }
    let mut settled = answered;
    for mut record in unanswered {
        let Some((_, change)) = change_of(&record.call) else { continue };
        let Some(at) = unclaimed.iter().find(|(_, left)| **left == change).map(|(revision, _)| *revision) else {
            continue;
        };
        unclaimed.remove(&at);
        match &mut record.call {
            Call::Put { revision, .. } | Call::Swap { revision, .. } | Call::Delete { revision, .. } => *revision = at,
            _ => {}
        }
        settled.push(record);
    }
    assert!(unclaimed.is_empty(), "changes that nobody asked for: {unclaimed:?}");
    settled
}

/// True if the calls can have happened one after the other, from `begin` to `end`.
fn is_linearizable(begin: &Store, records: &[Record], end: &Store) -> bool {
    let mut moments = Vec::new();
    for record in records {
        moments.push((record.made, record.client, Action::Call(record.call.clone())));
        if let Some(answered) = record.answered {
            moments.push((answered, record.client, Action::Response(record.call.clone())));
        }
    }
    moments.sort_by_key(|(at, ..)| *at);
    let edge = CLIENTS as usize;
    let whole = |call: &Call| [(edge, Action::Call(call.clone())), (edge, Action::Response(call.clone()))];
    let mut actions = Vec::from(whole(&Call::Begin(begin.clone())));
    actions.extend(moments.into_iter().map(|(_, client, action)| (client, action)));
    let unanswered = records.iter().filter(|record| record.answered.is_none());
    actions.extend(unanswered.map(|record| (record.client, Action::Response(record.call.clone()))));
    actions.extend(whole(&Call::List(end.clone())));
    WGLChecker::<Kv>::is_linearizable(History::from_actions(actions))
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// A round: what clients saw from start to kill, begun with `begin`.
async fn round(dir: &Path, seed: u64, values: &Arc<AtomicU64>) -> (Store, Vec<Record>) {
    let served = Served::start(dir, &["--buffer-bytes", "1048576"]);
    let url = served.url();
    let begin = list(&mut KvClient::connect(url.clone()).await.unwrap()).await.unwrap();
    let calls: Arc<AtomicU64> = Arc::default();
    let mut clients = Vec::new();
    for client in 0..CLIENTS {
        let client = Client {
            kv: KvClient::connect(url.clone()).await.unwrap(),
            number: client as usize,
            rng: Rng((seed * CLIENTS + client + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)),
            values: Arc::clone(values),
            records: Vec::new(),
            known: [0; KEYS.len()],
        };
        clients.push(tokio::spawn(client.run(Arc::clone(&calls))));
    }
    // In the middle of it, whatever the machine's pace.
    let until = CALLS_MAX / 4 + seed.wrapping_mul(7919) % (CALLS_MAX / 2);
    while calls.load(Ordering::Relaxed) < until {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    served.kill();
    let mut records = Vec::new();
    for client in clients {
        records.extend(client.await.unwrap());
    }
    (begin, records)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_clients_of_a_killed_server_saw_is_linearizable() {
    let (rounds, seed) = (number("POLYBOLT_LINEARIZABLE_ROUNDS", 5), number("POLYBOLT_LINEARIZABLE_SEED", 1));
    let dir = tempfile::tempdir().unwrap();
    let values: Arc<AtomicU64> = Arc::default();
    let (mut calls, mut unanswered, mut counted) = (0, 0, 0);
    let mut before: Option<Store> = None;
    for round_seed in seed..seed + rounds {
        let (begin, records) = round(dir.path(), round_seed, &values).await;
        assert!(before.is_none_or(|before| before == begin), "round {round_seed}: a kill of an idle server loses");
        let served = Served::start(dir.path(), &[]);
        let end = list(&mut KvClient::connect(served.url()).await.unwrap()).await.unwrap();
        let changes = history(&served.url(), begin.revision, end.revision).await;
        calls += records.len();
        unanswered += records.iter().filter(|record| record.answered.is_none()).count();
        let settled = settle(records, &changes);
        counted += settled.iter().filter(|record| record.answered.is_none()).count();
        assert!(is_linearizable(&begin, &settled, &end), "round {round_seed}: {begin:?} {end:?} {settled:#?}");
        before = Some(end);
        served.kill();
    }
    println!(
        "{rounds} rounds, {calls} calls of {CLIENTS} clients: linearizable; {unanswered} were not answered, {counted} of them had taken effect"
    );
}

/// The checker finds what it is there for.
#[test]
fn a_stale_read_a_lost_write_and_a_reused_revision_are_found() {
    let start = Instant::now();
    let at = |client, call, made: u64, answered: u64| Record {
        client,
        call,
        made: start + Duration::from_micros(made),
        answered: Some(start + Duration::from_micros(answered)),
    };
    let begin = Kv::init();
    let one = (7, 2, 2, 1);
    let put = |value, revision, made, answered| at(0, Call::Put { key: 0, value, revision }, made, answered);
    let get = |revision, found, made, answered| at(1, Call::Get { key: 0, revision, found }, made, answered);
    let store = |revision, live| Store { revision, live: BTreeMap::from([(0, live)]) };
    let end = store(2, one);
    assert!(is_linearizable(&begin, &[put(7, 2, 0, 9), get(1, None, 1, 8)], &end), "at the same time: either order");
    assert!(is_linearizable(&begin, &[put(7, 2, 0, 9), get(2, Some(one), 1, 8)], &end));
    assert!(!is_linearizable(&begin, &[put(7, 2, 0, 3), get(1, None, 4, 8)], &end), "a stale read");
    assert!(!is_linearizable(&begin, &[put(7, 2, 0, 3)], &begin), "a lost write");
    let two = store(2, (8, 2, 2, 1));
    assert!(!is_linearizable(&begin, &[put(7, 2, 0, 3), put(8, 2, 4, 5)], &two), "a revision used twice");
    // Of two deletes that were not answered the first one asked for counts, in whatever order they are recorded.
    let delete =
        |made| Record { answered: None, ..at(0, Call::Delete { key: 0, revision: 0, deleted: true }, made, 0) };
    let settled = settle(vec![delete(9), delete(5)], &Changes::from([(3, (0, None))]));
    assert_eq!((settled.len(), settled[0].made), (1, delete(5).made));
    let unanswered = Record { answered: None, ..put(8, 3, 4, 0) };
    let last = store(3, (8, 2, 3, 2));
    assert!(is_linearizable(&begin, &[put(7, 2, 0, 3), unanswered], &last));
}
