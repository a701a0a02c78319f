//! Requests from numbers.
//!
//! One number makes one operation, given what the reference's answers said so far. So a sequence is a
//! list of numbers, and any part of it is a sequence too: that is what shrinking needs.

use crate::common::Rng;
use polybolt_frontend::proto::etcdserverpb as pb;
use std::collections::BTreeMap;

/// What operations refer to.
#[derive(Debug, Clone)]
pub(crate) struct Known {
    pub(crate) revision: i64,
    /// -1 before the first compaction.
    pub(crate) compacted: i64,
    /// Live watchers by id.
    pub(crate) watchers: BTreeMap<i64, pb::WatchCreateRequest>,
    pub(crate) alarms: Vec<pb::AlarmRequest>,
}

/// One operation.
#[derive(Debug, Clone)]
pub(crate) enum Op {
    Range(pb::RangeRequest),
    Put(pb::PutRequest),
    Delete(pb::DeleteRangeRequest),
    Txn(pb::TxnRequest),
    Compact(pb::CompactionRequest),
    Grant(pb::LeaseGrantRequest),
    Revoke(pb::LeaseRevokeRequest),
    KeepAlive(i64),
    TimeToLive(pb::LeaseTimeToLiveRequest),
    Leases,
    /// A lease of the shortest time with these keys, which is waited for.
    Expire(Vec<Vec<u8>>),
    HashKv(i64),
    Watch(pb::WatchCreateRequest),
    Cancel(i64),
    /// All events so far, and then a progress request.
    Sync,
    Alarm(pb::AlarmRequest),
    Defragment,
}

impl Op {
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Op::Range(_) => "range",
            Op::Put(_) => "put",
            Op::Delete(_) => "delete",
            Op::Txn(_) => "txn",
            Op::Compact(_) => "compact",
            Op::Grant(_) => "grant",
            Op::Revoke(_) => "revoke",
            Op::KeepAlive(_) => "keep-alive",
            Op::TimeToLive(_) => "time-to-live",
            Op::Leases => "leases",
            Op::Expire(_) => "expire",
            Op::HashKv(_) => "hash-kv",
            Op::Watch(_) => "watch",
            Op::Cancel(_) => "cancel",
            Op::Sync => "sync",
            Op::Alarm(_) => "alarm",
            Op::Defragment => "defragment",
        }
    }
}

/// Keys over several shards of the kubernetes routes, some on their borders.
const KEYS: [&[u8]; 20] = [
    b"/registry/pods/",
    b"/registry/pods/a",
    b"/registry/pods/b",
    b"/registry/pods/b/c",
    b"/registry/pods0",
    b"/registry/events/x",
    b"/registry/events/y/z",
    b"/registry/leases/l",
    b"/registry/leases/m",
    b"/registry/configmaps/c",
    b"/registry/secrets/s",
    b"/registry/minions/n",
    b"/registry/zzz",
    b"\0",
    b"a",
    b"a\0",
    b"zz",
    b"\x7f",
    b"\xff",
    b"\xff\xff",
];

fn key(rng: &mut Rng) -> Vec<u8> {
    KEYS[rng.below(KEYS.len() as u64) as usize].into()
}

fn span(rng: &mut Rng) -> (Vec<u8>, Vec<u8>) {
    match rng.below(24) {
        0 => (Vec::new(), vec![0]),
        1..4 => (vec![0], vec![0]),
        4 => (b"/registry/".into(), b"/registry0".into()),
        5 => (b"/registry/pods/".into(), b"/registry/pods0".into()),
        _ => {
            let end = match rng.below(6) {
                0 => vec![0],
                1 => b"/registry/q".into(),
                2 => key(rng),
                _ => Vec::new(),
            };
            (key(rng), end)
        }
    }
}

/// Zero mostly; else around the revisions that there are, one past either end now and then.
fn revision(rng: &mut Rng, known: &Known, seldom: u64) -> i64 {
    if !rng.one_in(seldom) {
        return 0;
    }
    match rng.below(8) {
        0 => known.revision + rng.below(2) as i64,
        1 => known.compacted + rng.below(3) as i64 - 1,
        2 => -(rng.below(3) as i64),
        _ => known.compacted + rng.below((known.revision - known.compacted + 1).unsigned_abs()) as i64,
    }
}

fn range(rng: &mut Rng, known: &Known) -> pb::RangeRequest {
    let (key, range_end) = span(rng);
    let sorted = rng.one_in(3);
    pb::RangeRequest {
        key: key.into(),
        range_end: range_end.into(),
        limit: if rng.one_in(2) { rng.below(7) as i64 - 1 } else { 0 },
        revision: revision(rng, known, 4),
        // An unknown order or target ends etcd 3.5's process: `semantics` and `services` have them.
        sort_order: if sorted { rng.below(3) as i32 } else { 0 },
        sort_target: if sorted { rng.below(5) as i32 } else { 0 },
        serializable: rng.one_in(3),
        keys_only: rng.one_in(6),
        count_only: rng.one_in(8),
        min_mod_revision: revision(rng, known, 10),
        max_mod_revision: revision(rng, known, 10),
        min_create_revision: revision(rng, known, 10),
        max_create_revision: revision(rng, known, 10),
    }
}

fn lease_id(rng: &mut Rng) -> i64 {
    [1, 2, 3, 4, -5, i64::MAX, i64::MIN][rng.below(7) as usize]
}

fn value(rng: &mut Rng) -> Vec<u8> {
    let len = if rng.one_in(30) { rng.below(20_000) } else { rng.below(40) };
    vec![b'a' + rng.below(3) as u8; len as usize]
}

fn put(rng: &mut Rng) -> pb::PutRequest {
    let key = if rng.one_in(60) { Vec::new() } else { key(rng) };
    let ignore_value = rng.one_in(10);
    let ignore_lease = rng.one_in(10);
    pb::PutRequest {
        key: key.into(),
        value: if ignore_value && !rng.one_in(5) { Vec::new() } else { value(rng) }.into(),
        lease: if rng.one_in(3) && (!ignore_lease || rng.one_in(5)) { lease_id(rng) } else { 0 },
        prev_kv: rng.one_in(2),
        ignore_value,
        ignore_lease,
    }
}

fn delete(rng: &mut Rng) -> pb::DeleteRangeRequest {
    let (key, range_end) = if rng.one_in(3) { span(rng) } else { (key(rng), Vec::new()) };
    pb::DeleteRangeRequest { key: key.into(), range_end: range_end.into(), prev_kv: rng.one_in(2) }
}

fn compare(rng: &mut Rng, known: &Known) -> pb::Compare {
    use pb::compare::TargetUnion;
    let (key, range_end) = span(rng);
    let number = rng.below(known.revision.unsigned_abs() + 1) as i64;
    let target_union = match rng.below(7) {
        0 => Some(TargetUnion::Version(number % 4)),
        1 => Some(TargetUnion::CreateRevision(number)),
        2 => Some(TargetUnion::ModRevision(number)),
        3 => Some(TargetUnion::Value(value(rng).into())),
        4 => Some(TargetUnion::Lease(lease_id(rng))),
        5 => None,
        _ => Some(TargetUnion::Version(0)),
    };
    let strange = rng.one_in(60);
    pb::Compare {
        result: if strange { 9 } else { rng.below(4) as i32 },
        target: if strange && rng.one_in(2) { 9 } else { rng.below(5) as i32 },
        key: key.into(),
        range_end: range_end.into(),
        target_union,
    }
}

fn txn(rng: &mut Rng, known: &Known, depth: u32) -> pb::TxnRequest {
    use pb::request_op::Request;
    let ops = |rng: &mut Rng| {
        // The budget of operations is at 128 (TXN-1).
        let count = if rng.one_in(200) { 127 + rng.below(3) } else { rng.below(4) };
        let many = count > 4;
        let one = |rng: &mut Rng| {
            let request = match rng.below(8) {
                _ if many => Some(Request::RequestRange(range(rng, known))),
                0..3 => Some(Request::RequestPut(put(rng))),
                3..5 => Some(Request::RequestDeleteRange(delete(rng))),
                5 if depth < 3 => Some(Request::RequestTxn(txn(rng, known, depth + 1))),
                6 if rng.one_in(40) => None,
                _ => Some(Request::RequestRange(range(rng, known))),
            };
            pb::RequestOp { request }
        };
        (0..count).map(|_| one(rng)).collect()
    };
    let compares = if rng.one_in(200) { 128 + rng.below(2) } else { rng.below(3) };
    let compare = (0..compares).map(|_| compare(rng, known)).collect();
    pb::TxnRequest { compare, success: ops(rng), failure: ops(rng) }
}

fn watch(rng: &mut Rng, known: &Known) -> pb::WatchCreateRequest {
    let (key, range_end) = span(rng);
    let start_revision = match rng.below(6) {
        0..2 => 0,
        2 => known.revision + rng.below(6) as i64,
        3 => known.compacted + rng.below(4) as i64 - 2,
        _ => known.compacted + rng.below((known.revision - known.compacted + 1).unsigned_abs()) as i64,
    };
    let filters = (0..rng.below(6) / 4).map(|_| rng.below(3) as i32).collect();
    pb::WatchCreateRequest {
        key: key.into(),
        range_end: range_end.into(),
        start_revision,
        progress_notify: rng.one_in(3),
        filters,
        prev_kv: rng.one_in(2),
        watch_id: if rng.one_in(4) { [3, 7, -2, i64::MAX][rng.below(4) as usize] } else { 0 },
        fragment: rng.one_in(2),
    }
}

fn alarm(rng: &mut Rng, known: &Known) -> pb::AlarmRequest {
    use pb::alarm_request::AlarmAction;
    // One that is on goes off again soon, or little else would happen.
    if let Some(on) = known.alarms.first()
        && !rng.one_in(4)
    {
        return pb::AlarmRequest { action: AlarmAction::Deactivate as i32, ..*on };
    }
    pb::AlarmRequest {
        action: rng.below(3) as i32,
        member_id: [0, 7, u64::MAX][rng.below(3) as usize],
        alarm: rng.below(3) as i32,
    }
}

/// The operation of a number.
pub(crate) fn operation(number: u64, known: &Known) -> Op {
    let mut rng = Rng(number);
    let rng = &mut rng;
    if !known.alarms.is_empty() && rng.one_in(6) {
        return Op::Alarm(alarm(rng, known));
    }
    match rng.below(1000) {
        0..270 => Op::Put(put(rng)),
        270..450 => Op::Range(range(rng, known)),
        450..540 => Op::Delete(delete(rng)),
        540..780 => Op::Txn(txn(rng, known, 0)),
        780..815 => {
            let id = lease_id(rng);
            // Long enough that none expires on its own, and apart from each other.
            let ttl = if rng.one_in(20) { 9_000_000_001 } else { 4_000 + 100 * (id % 8) };
            Op::Grant(pb::LeaseGrantRequest { ttl, id: if rng.one_in(12) { 0 } else { id } })
        }
        815..840 => Op::Revoke(pb::LeaseRevokeRequest { id: lease_id(rng) }),
        840..860 => Op::KeepAlive(lease_id(rng)),
        860..880 => Op::TimeToLive(pb::LeaseTimeToLiveRequest { id: lease_id(rng), keys: rng.one_in(2) }),
        880..890 => Op::Leases,
        890..930 => Op::HashKv(revision(rng, known, 2)),
        930..955 => Op::Watch(watch(rng, known)),
        955..970 => {
            let live: Vec<i64> = known.watchers.keys().copied().collect();
            Op::Cancel(if live.is_empty() || rng.one_in(10) { 99 } else { live[rng.below(live.len() as u64) as usize] })
        }
        970..980 => Op::Sync,
        980..992 => {
            let target = match rng.below(8) {
                0 => known.revision + rng.below(2) as i64,
                1 => known.compacted + rng.below(3) as i64 - 1,
                // Not too far, so that there is history.
                _ => known.compacted + rng.below(1 + (known.revision - known.compacted).unsigned_abs() / 2) as i64,
            };
            Op::Compact(pb::CompactionRequest { revision: target, physical: rng.one_in(2) })
        }
        992..997 => Op::Alarm(alarm(rng, known)),
        997..999 => Op::Defragment,
        _ if rng.one_in(3) => Op::Expire((0..rng.below(4)).map(|_| key(rng)).collect()),
        _ => Op::Sync,
    }
}
