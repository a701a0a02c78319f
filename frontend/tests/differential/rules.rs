//! Where a reference may answer otherwise: a closed list.
//!
//! Each rule names what differs, and why, and is counted when it is used. For each, a test of our own
//! holds our side; `docs/compatibility.md` names it too, and a test checks that they are the same.

use crate::ops::Op;
use crate::side::Answer;
use polybolt_frontend::proto::etcdserverpb as pb;
use polybolt_frontend::proto::etcdserverpb::request_op::Request;
use polybolt_frontend::proto::mvccpb::KeyValue;
use std::collections::BTreeMap;
use tonic::Code;

/// A way to differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rule {
    /// The reference answers for a compacted revision as it remembers it from its compaction.
    RememberedHash,
    /// 3.4 refuses to hash at exactly the compacted revision.
    HashAtCompacted,
    /// 3.4 forgets a delete at exactly the compacted revision.
    TombstoneAtCompacted,
    /// No key is live: rows that are yet to be erased are hashed. Asked again once they are.
    HashOfNothing,
    /// A txn that fails in more than one way: another of them is reported.
    WhichFailure,
    /// The lease and the key of a put are both missing: the other one is reported.
    WhichIsMissing,
    /// Among equals, more than 12, the order is not defined.
    Ties,
    /// A compaction or hash at a revision that deletes and puts one key loses it in etcd: one lower is asked.
    DeleteAndPut,
    /// A put that keeps the value or lease of a key that its txn has deleted ends etcd: it keeps neither.
    IgnoreAfterDelete,
    /// Before 3.7 puts in nested txns alone do not count under NOSPACE: it is not asked.
    NestedCost,
    /// Of two types of alarm the newer one counts in older versions, not CORRUPT: one at a time is raised.
    TwoAlarms,
    /// 3.4 takes a watch from a negative revision: it is not asked.
    NegativeStart,
    /// 3.4 answers alarms without a header, and may end when one of no type is activated: it is not asked.
    AlarmOfNothing,
    /// Seconds that are left, counted by two clocks.
    Clock,
}

impl Rule {
    /// All of them, each with the rule of the contract, what it says, and the test that holds our side.
    pub(crate) const ALL: [(Rule, &'static str, &'static str); 14] = [
        (Rule::RememberedHash, "HSH-6 remembered hashes", "hash_kv_with_tombstones_and_leases_hsh_10"),
        (
            Rule::HashAtCompacted,
            "HSH-1 hash at the compacted revision (3.4)",
            "hash_kv_with_tombstones_and_leases_hsh_10",
        ),
        (
            Rule::TombstoneAtCompacted,
            "CMP-4 tombstone at the compacted revision (3.4)",
            "compaction_keeps_what_etcd_keeps",
        ),
        (
            Rule::HashOfNothing,
            "HSH-4 rows yet to be erased while no key is live",
            "a_hash_while_no_key_is_live_is_that_of_a_finished_sweep_hsh_4",
        ),
        (Rule::WhichFailure, "TXN-14 which of several failures", "what_is_refused_first_txn_2_txn_14_wch_5"),
        (Rule::WhichIsMissing, "PUT-4 lease or key", "puts_put_1_to_7"),
        (Rule::Ties, "RNG-22 order of equals", "ranges_rng_1_to_24"),
        (
            Rule::DeleteAndPut,
            "TXN-24 compaction or hash at a delete and put",
            "a_delete_and_a_put_under_one_main_keep_the_put",
        ),
        (
            Rule::IgnoreAfterDelete,
            "TXN-14 ignore_value or ignore_lease after a delete",
            "what_is_refused_first_txn_2_txn_14_wch_5",
        ),
        (Rule::NestedCost, "QTA-2 puts in nested txns under NOSPACE", "alarms_qta_2_qta_6_mnt_5_mnt_6_put_8"),
        (Rule::TwoAlarms, "PUT-8 CORRUPT before NOSPACE", "alarms_qta_2_qta_6_mnt_5_mnt_6_put_8"),
        (Rule::NegativeStart, "WCH-5 watch from a negative revision (3.4)", "what_is_refused_first_txn_2_txn_14_wch_5"),
        (Rule::AlarmOfNothing, "MNT-5 alarms without header, of no type (3.4)", "alarms_qta_2_qta_6_mnt_5_mnt_6_put_8"),
        (Rule::Clock, "LSE-9 remaining seconds", "leases_lse_1_to_11"),
    ];

    /// The rule of the contract, and what it says.
    pub(crate) fn text(self) -> &'static str {
        Rule::ALL.iter().find(|(rule, ..)| *rule == self).map_or("a rule that is not in the list", |(_, text, _)| text)
    }
}

/// How often each was used.
pub(crate) type Used = BTreeMap<Rule, u64>;

/// What the rules need of the past.
#[derive(Debug, Default)]
pub(crate) struct Past {
    /// The reference is older than 3.5.
    pub(crate) old: bool,
    /// Our hash at each compacted revision, and the compacted revision before, as of its compaction. None
    /// if no key was live: what etcd remembers then depends on how it compacts.
    pub(crate) hashes: BTreeMap<i64, (Option<u32>, i64)>,
}

/// None if the answers agree, or by which rule they may differ.
pub(crate) fn agree(op: &Op, real: &Answer, ours: &Answer, past: &Past) -> Result<Option<Rule>, ()> {
    if real == ours {
        return Ok(None);
    }
    let rule = match (op, real, ours) {
        (Op::HashKv(_), Answer::HashKv(theirs), Answer::HashKv(_) | Answer::Error(Code::OutOfRange, _)) => past
            .hashes
            .values()
            .any(|(hash, compacted)| {
                hash.is_none_or(|hash| hash == theirs.hash) && theirs.compact_revision == *compacted
            })
            .then_some(Rule::RememberedHash),
        (Op::HashKv(at), Answer::Error(Code::OutOfRange, text), Answer::HashKv(mine)) => {
            (past.old && *at == mine.compact_revision && text.contains("compacted")).then_some(Rule::HashAtCompacted)
        }
        (Op::Put(put), Answer::Error(a, theirs), Answer::Error(b, mine)) => {
            let both = put.lease != 0 && (put.ignore_value || put.ignore_lease);
            (both && is_missing(*a, theirs) && is_missing(*b, mine)).then_some(Rule::WhichIsMissing)
        }
        (Op::Txn(txn), Answer::Error(a, theirs), Answer::Error(b, mine)) => {
            let known = |code, text: &str| is_missing(code, text) || is_elsewhen(code, text);
            (known(*a, theirs) && known(*b, mine) && ways_to_fail(txn) > 1).then_some(Rule::WhichFailure)
        }
        (Op::Range(range), Answer::Range(theirs), Answer::Range(mine)) => {
            same_but_for_ties(range, theirs, mine).then_some(Rule::Ties)
        }
        (Op::Txn(txn), Answer::Txn(theirs), Answer::Txn(mine)) => {
            same_but_for_ties_in(txn, theirs, mine).then_some(Rule::Ties)
        }
        (Op::Alarm(_), Answer::Alarm(theirs), Answer::Alarm(mine)) => {
            (past.old && theirs.header.is_none() && theirs.alarms == mine.alarms).then_some(Rule::AlarmOfNothing)
        }
        (Op::TimeToLive(_), Answer::TimeToLive(theirs), Answer::TimeToLive(mine)) => {
            let aside = pb::LeaseTimeToLiveResponse { ttl: theirs.ttl, ..mine.clone() };
            (aside == *theirs && (theirs.ttl - mine.ttl).abs() <= 2).then_some(Rule::Clock)
        }
        _ => None,
    };
    rule.map(Some).ok_or(())
}

fn is_missing(code: Code, text: &str) -> bool {
    matches!(
        (code, text),
        (Code::NotFound, "etcdserver: requested lease not found")
            | (Code::InvalidArgument, "etcdserver: key not found")
    )
}

fn is_elsewhen(code: Code, text: &str) -> bool {
    code == Code::OutOfRange && text.starts_with("etcdserver: mvcc: required revision")
}

/// Operations that a state can make fail; a put may in two ways.
fn ways_to_fail(txn: &pb::TxnRequest) -> usize {
    let ways = |op: &pb::RequestOp| match &op.request {
        Some(Request::RequestPut(put)) => {
            usize::from(put.lease != 0) + usize::from(put.ignore_value || put.ignore_lease)
        }
        Some(Request::RequestRange(range)) => usize::from(range.revision != 0),
        Some(Request::RequestTxn(txn)) => ways_to_fail(txn),
        _ => 0,
    };
    txn.success.iter().chain(&txn.failure).map(ways).sum()
}

/// Go's sort leaves up to 12 in their order.
const SORTED_STABLY: usize = 12;

fn same_but_for_ties(request: &pb::RangeRequest, real: &pb::RangeResponse, ours: &pb::RangeResponse) -> bool {
    let sorted = request.sort_target != 0;
    let by = |kv: &KeyValue| match request.sort_target {
        1 => (kv.version, Vec::new()),
        2 => (kv.create_revision, Vec::new()),
        3 => (kv.mod_revision, Vec::new()),
        _ => (0, kv.value.to_vec()),
    };
    let targets = |range: &pb::RangeResponse| range.kvs.iter().map(by).collect::<Vec<_>>();
    let contents = |range: &pb::RangeResponse| {
        let mut kvs = range.kvs.clone();
        kvs.sort_by(|a, b| a.key.cmp(&b.key));
        kvs
    };
    let rest = |range: &pb::RangeResponse| (range.header, range.count, range.more, range.kvs.len());
    sorted
        && ours.count > SORTED_STABLY as i64
        && rest(real) == rest(ours)
        && targets(real) == targets(ours)
        && (ours.more || contents(real) == contents(ours))
}

fn same_but_for_ties_in(txn: &pb::TxnRequest, real: &pb::TxnResponse, ours: &pb::TxnResponse) -> bool {
    use pb::response_op::Response;
    let ops = if real.succeeded { &txn.success } else { &txn.failure };
    let alike = |(op, (real, ours)): (&pb::RequestOp, (&pb::ResponseOp, &pb::ResponseOp))| match (
        &op.request,
        &real.response,
        &ours.response,
    ) {
        (Some(Request::RequestRange(range)), Some(Response::ResponseRange(a)), Some(Response::ResponseRange(b))) => {
            a == b || same_but_for_ties(range, a, b)
        }
        (Some(Request::RequestTxn(txn)), Some(Response::ResponseTxn(a)), Some(Response::ResponseTxn(b))) => {
            a == b || same_but_for_ties_in(txn, a, b)
        }
        _ => real == ours,
    };
    (real.header, real.succeeded, real.responses.len()) == (ours.header, ours.succeeded, ours.responses.len())
        && ops.iter().zip(real.responses.iter().zip(&ours.responses)).all(alike)
}

/// True if a txn may delete a key and put it again, in one of its branches.
pub(crate) fn deletes_and_puts(txn: &pb::TxnRequest) -> bool {
    let (mut puts, mut deletes) = (Vec::new(), Vec::new());
    collect(txn, &mut puts, &mut deletes);
    let covers = |delete: &pb::DeleteRangeRequest, key: &[u8]| match &delete.range_end[..] {
        [] => delete.key == key,
        [0] => key >= &delete.key[..],
        end => key >= &delete.key[..] && key < end,
    };
    puts.iter().any(|key| deletes.iter().any(|delete| covers(delete, key)))
}

/// True if only nested txns put.
pub(crate) fn puts_below_only(txn: &pb::TxnRequest) -> bool {
    let here = |op: &pb::RequestOp| matches!(op.request, Some(Request::RequestPut(_)));
    let mut puts = Vec::new();
    collect(txn, &mut puts, &mut Vec::new());
    !puts.is_empty() && !txn.success.iter().chain(&txn.failure).any(here)
}

/// Takes `ignore_value` and `ignore_lease` from all puts; true if there were any.
pub(crate) fn ignore_nothing(txn: &mut pb::TxnRequest) -> bool {
    let mut any = false;
    for op in txn.success.iter_mut().chain(&mut txn.failure) {
        match &mut op.request {
            Some(Request::RequestPut(put)) => {
                any |= std::mem::take(&mut put.ignore_value) | std::mem::take(&mut put.ignore_lease);
            }
            Some(Request::RequestTxn(txn)) => any |= ignore_nothing(txn),
            _ => {}
        }
    }
    any
}

fn collect<'a>(txn: &'a pb::TxnRequest, puts: &mut Vec<&'a [u8]>, deletes: &mut Vec<&'a pb::DeleteRangeRequest>) {
    for op in txn.success.iter().chain(&txn.failure) {
        match &op.request {
            Some(Request::RequestPut(put)) => puts.push(&put.key),
            Some(Request::RequestDeleteRange(delete)) => deletes.push(delete),
            Some(Request::RequestTxn(txn)) => collect(txn, puts, deletes),
            _ => {}
        }
    }
}
