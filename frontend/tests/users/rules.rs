//! Where a reference may answer otherwise: a closed list.
//!
//! Each rule names what differs, and why, and is counted when it is used. The rules of the contract are those
//! of the newest etcd; 3.4 and 3.5 were laxer in places, most of which were later fixed as holes.

use crate::side::{Answer, Call};
use polybolt_frontend::proto::etcdserverpb as pb;
use std::collections::BTreeMap;
use tonic::Code;

/// A way to differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rule {
    /// Before 3.6 Maintenance refuses with words of its own and no code.
    MaintenanceWords,
    /// Locks and elections of etcd lose the code of what they meet; the words are the same.
    LineCode,
    /// An election of etcd ends the stream of one who may not observe it, and does not say why.
    SilentObserver,
    /// AuthStatus is for root before 3.7; 3.4 does not have it.
    AuthStatus,
    /// Status is for root in 3.5, and for everybody in 3.4.
    Status,
    /// 3.4 judges tokens while authentication is off: it is asked without one.
    TokenWhileOff,
    /// 3.4 takes permissions that are no interval, and ends if one is missing: such calls are not made.
    NoInterval,
    /// 3.4 hashes an empty new password; later ones take it for none.
    EmptyPassword,
    /// Before 3.7.1 a watch to the end is judged as one of its first key.
    WatchToTheEnd,
    /// 3.4 lets calls through that need rights since: they are not made.
    Lax,
}

impl Rule {
    /// All of them, each with the rule of the contract, what it says, and the test that holds our side.
    pub(crate) const ALL: [(Rule, &'static str, &'static str); 10] = [
        (Rule::MaintenanceWords, "AUTH-3 words of Maintenance (3.4, 3.5)", MAINTENANCE),
        (Rule::LineCode, "11.2 codes of Lock and Election", LINES),
        (Rule::SilentObserver, "11.2 an observer without rights", LINES),
        (Rule::AuthStatus, "AUTH-3 AuthStatus without login (3.4, 3.5)", MAINTENANCE),
        (Rule::Status, "MNT-9 Status for every user (3.4, 3.5)", MAINTENANCE),
        (
            Rule::TokenWhileOff,
            "AUTH-1 tokens are ignored while it is off (3.4)",
            "users_and_roles_outlive_a_restart_and_logins_do_not",
        ),
        (Rule::NoInterval, "AUTH-7 permissions that are no interval (3.4)", "a_permission_is_an_interval_auth_7"),
        (
            Rule::EmptyPassword,
            "AUTH-2 a password that is changed to nothing (3.4)",
            "passwords_are_hashed_and_never_longer_than_what_counts_auth_8",
        ),
        (Rule::WatchToTheEnd, "WCH-10 a watch to the end (3.4, 3.5)", "a_watch_is_judged_by_what_it_asks_for_wch_10"),
        (
            Rule::Lax,
            "AUTH-4, CMP-15, LSE-19, MNT-9 calls without rights (3.4)",
            "a_call_needs_the_rights_of_all_that_is_in_it_auth_4_lse_19",
        ),
    ];

    /// The rule of the contract, and what it says.
    pub(crate) fn text(self) -> &'static str {
        Rule::ALL.iter().find(|(rule, ..)| *rule == self).map_or("a rule that is not in the list", |(_, text, _)| text)
    }
}

const MAINTENANCE: &str = "maintenance_and_members_are_for_users_or_for_root_mnt_9_auth_5";
const LINES: &str = "locks_and_elections_need_the_rights_of_their_keys";

/// How often each was used.
pub(crate) type Used = BTreeMap<Rule, u64>;

/// Why a call is not made to 3.4, given what ours answered: None if it is made.
pub(crate) fn not_asked(call: &Call, ours: &Answer) -> Option<Rule> {
    if let Call::GrantPermission(_) = call
        && matches!(ours, Err((Code::InvalidArgument, text)) if text.contains("management") || text.contains("not given"))
    {
        return Some(Rule::NoInterval);
    }
    let lax = match call {
        Call::Compact(_)
        | Call::Grant(_)
        | Call::Revoke(_)
        | Call::KeepAlive(_)
        | Call::TimeToLive(_)
        | Call::Leases
        | Call::Members
        | Call::Alarm(_)
        | Call::MoveLeader
        // Each puts a key with a lease.
        | Call::Lock(_)
        | Call::Campaign(_)
        | Call::Proclaim(_) => true,
        Call::Txn(txn) => has_more_than_ops(txn),
        Call::Put(put) => put.lease != 0,
        _ => false,
    };
    (lax && is_of_rights(ours)).then_some(Rule::Lax)
}

fn is_of_rights(answer: &Answer) -> bool {
    matches!(answer, Err((Code::PermissionDenied | Code::Unauthenticated, _)))
        || matches!(answer, Err((_, text)) if text == "etcdserver: user name is empty")
}

/// True if a txn has in it what 3.4 does not look at: nested txns, and of puts the lease and `prev_kv`.
fn has_more_than_ops(txn: &pb::TxnRequest) -> bool {
    use pb::request_op::Request;
    txn.success.iter().chain(&txn.failure).any(|op| match &op.request {
        Some(Request::RequestTxn(_)) => true,
        Some(Request::RequestPut(put)) => put.lease != 0 || put.prev_kv,
        _ => false,
    })
}

/// None if the answers agree, or by which rule they may differ.
pub(crate) fn agree(call: &Call, real: &Answer, ours: &Answer) -> Result<Option<Rule>, ()> {
    if real == ours {
        return Ok(None);
    }
    let rule = match (call, real, ours) {
        (
            Call::Defragment | Call::Hash | Call::HashKv(_) | Call::Snapshot,
            Err((Code::Unknown, theirs)),
            Err((_, mine)),
        ) => {
            let same = theirs.strip_prefix("auth: ") == mine.strip_prefix("etcdserver: ");
            (same && is_of_rights(ours)).then_some(Rule::MaintenanceWords)
        }
        (Call::Observe(_), Ok(_), Err(_)) => is_of_rights(ours).then_some(Rule::SilentObserver),
        (
            Call::Lock(_)
            | Call::Unlock(_)
            | Call::Campaign(_)
            | Call::Proclaim(_)
            | Call::Leader(_)
            | Call::Observe(_)
            | Call::Resign(_),
            Err((Code::Unknown, theirs)),
            Err((_, mine)),
        ) => (theirs == mine).then_some(Rule::LineCode),
        (Call::Login { password: "", .. }, Ok(_), Err((_, text))) => {
            text.contains("authentication failed").then_some(Rule::EmptyPassword)
        }
        (Call::Watch(watch), Ok(theirs), Ok(mine)) => {
            (watch.range_end[..] == [0] && theirs.contains("canceled: false") && mine.contains("PermissionDenied"))
                .then_some(Rule::WatchToTheEnd)
        }
        (Call::AuthStatus, Err(_), Ok(_)) => Some(Rule::AuthStatus),
        (Call::AuthStatus, Err((Code::Unimplemented, _)), _) => Some(Rule::AuthStatus),
        (Call::Status, Err((Code::PermissionDenied, _)), Ok(_)) => Some(Rule::Status),
        (Call::Status, Ok(_), Err(_)) => is_of_rights(ours).then_some(Rule::Status),
        _ => None,
    };
    rule.map(Some).ok_or(())
}
