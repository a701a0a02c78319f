//! The calls that are made: a script through every rule, and sequences from a seed.

use crate::common::Rng;
use crate::side::{Call, Who};
use polybolt_frontend::proto::authpb;
use polybolt_frontend::proto::etcdserverpb as pb;
use polybolt_frontend::proto::v3electionpb as election;
use polybolt_frontend::proto::v3lockpb as lock;
use std::collections::VecDeque;

pub(crate) type Step = (Who, Call);

pub(crate) const READ: i32 = 0;
pub(crate) const WRITE: i32 = 1;
pub(crate) const READWRITE: i32 = 2;

const USERS: [&str; 4] = ["root", "alice", "bob", "carol"];
const ROLES: [&str; 4] = ["root", "reader", "writer", "both"];
const EVERYBODY: [Who; 6] =
    [Who::Nobody, Who::Stranger, Who::User("root"), Who::User("alice"), Who::Http("bob"), Who::User("carol")];

pub(crate) fn range(key: &str, end: &str) -> Call {
    Call::Range(pb::RangeRequest { key: key.to_owned().into(), range_end: end.to_owned().into(), ..Default::default() })
}

pub(crate) fn put(key: &str, lease: i64, prev_kv: bool) -> pb::PutRequest {
    pb::PutRequest { key: key.to_owned().into(), value: "v".into(), lease, prev_kv, ..Default::default() }
}

pub(crate) fn delete(key: &str, end: &str, prev_kv: bool) -> pb::DeleteRangeRequest {
    pb::DeleteRangeRequest { key: key.to_owned().into(), range_end: end.to_owned().into(), prev_kv }
}

pub(crate) fn watch(key: &str, end: &str) -> Call {
    let (key, range_end) = (key.to_owned().into(), end.to_owned().into());
    Call::Watch(pb::WatchCreateRequest { key, range_end, ..Default::default() })
}

pub(crate) fn user_add(name: &str, password: &str, no_password: bool) -> Call {
    Call::UserAdd(pb::AuthUserAddRequest {
        name: name.to_owned(),
        password: password.to_owned(),
        options: Some(authpb::UserAddOptions { no_password }),
        // What a client says here is nothing (AUTH-8).
        hashed_password: "bm9oYXNo".to_owned(),
    })
}

pub(crate) fn change_password(name: &str, password: &str) -> Call {
    Call::ChangePassword(pb::AuthUserChangePasswordRequest {
        name: name.to_owned(),
        password: password.to_owned(),
        hashed_password: String::new(),
    })
}

pub(crate) fn grant(role: &str, perm_type: i32, key: &str, end: &str) -> Call {
    let permission = authpb::Permission { perm_type, key: key.to_owned().into(), range_end: end.to_owned().into() };
    Call::GrantPermission(pb::AuthRoleGrantPermissionRequest { name: role.to_owned(), perm: Some(permission) })
}

fn revoke(role: &str, key: &str, end: &str) -> Call {
    let (key, range_end) = (key.to_owned().into(), end.to_owned().into());
    Call::RevokePermission(pb::AuthRoleRevokePermissionRequest { role: role.to_owned(), key, range_end })
}

pub(crate) fn login(name: &'static str) -> Call {
    Call::Login { name, password: name }
}

pub(crate) fn compare(key: &str, end: &str) -> pb::Compare {
    pb::Compare { key: key.to_owned().into(), range_end: end.to_owned().into(), ..Default::default() }
}

fn op(call: &Call) -> pb::RequestOp {
    use pb::request_op::Request;
    let request = match call.clone() {
        Call::Range(request) => Request::RequestRange(request),
        Call::Put(request) => Request::RequestPut(request),
        Call::Delete(request) => Request::RequestDeleteRange(request),
        Call::Txn(request) => Request::RequestTxn(request),
        _ => unreachable!("not in a txn"),
    };
    pb::RequestOp { request: Some(request) }
}

pub(crate) fn txn(compare: Vec<pb::Compare>, success: &[Call], failure: &[Call]) -> Call {
    Call::Txn(pb::TxnRequest {
        compare,
        success: success.iter().map(op).collect(),
        failure: failure.iter().map(op).collect(),
    })
}

pub(crate) fn alarm(action: i32, alarm: i32) -> Call {
    Call::Alarm(pb::AlarmRequest { action, member_id: 7, alarm })
}

/// One of each guarded call that leaves everything as it is, or as it was for the one before.
fn battery() -> Vec<Call> {
    [of_keys(), of_leases(), of_services(), of_users()].concat()
}

fn of_keys() -> Vec<Call> {
    let compact = pb::CompactionRequest { revision: 1 << 40, physical: false };
    vec![
        range("a/1", ""),
        range("a/", "a0"),
        range("b/1", ""),
        range("b/", "b0"),
        range("a/", "c"),
        range("x", "\0"),
        range("\0", "\0"),
        range("b", "a"),
        range("a/5", "a/3"),
        range("a/1", "a/1"),
        range("", ""),
        Call::Range(pb::RangeRequest { key: "a/1".into(), revision: 1 << 40, ..Default::default() }),
        Call::Put(put("a/1", 0, false)),
        Call::Put(put("b/1", 0, false)),
        Call::Put(put("b/1", 0, true)),
        Call::Put(put("b/w", 0, true)),
        Call::Put(put("a/1", 404, false)),
        Call::Put(pb::PutRequest { ignore_value: true, ..put("a/1", 0, false) }),
        Call::Put(pb::PutRequest { value: vec![b'v'; 1_572_864].into(), ..put("a/1", 0, false) }),
        Call::Delete(delete("a/1", "", false)),
        Call::Delete(delete("b/7", "", false)),
        Call::Delete(delete("b/7", "", true)),
        Call::Delete(delete("b/", "b0", true)),
        Call::Delete(delete("", "", true)),
        txn(vec![], &[], &[]),
        txn(vec![compare("a/1", "")], &[], &[]),
        txn(vec![compare("b/", "b0")], &[range("a/1", "")], &[range("b/1", "")]),
        txn(vec![compare("b/", "b0")], &[range("a/1", "")], &[range("x", "")]),
        txn(vec![compare("x", "")], &[range("b/1", "")], &[]),
        txn(vec![], &[Call::Put(put("b/1", 0, false)), range("b/2", "")], &[Call::Delete(delete("b/3", "", false))]),
        txn(vec![], &[Call::Put(put("b/1", 0, false))], &[Call::Put(put("a/1", 0, false))]),
        txn(vec![], &[Call::Put(put("w/1", 0, true))], &[]),
        txn(vec![], &[Call::Put(put("w/1", 0, false))], &[]),
        txn(vec![], &[Call::Delete(delete("w/1", "", true))], &[]),
        txn(vec![], &[txn(vec![], &[Call::Put(put("a/1", 0, false))], &[])], &[]),
        txn(vec![], &[txn(vec![compare("x", "")], &[range("b/1", "")], &[])], &[]),
        txn(vec![], &[txn(vec![], &[Call::Put(put("b/1", 0, false))], &[range("b/1", "")])], &[]),
        txn(vec![], &[range("", "")], &[]),
        Call::Compact(compact),
        watch("a/1", ""),
        watch("a/", "a0"),
        watch("b/1", ""),
        watch("b/", "b0"),
        watch("x", "\0"),
        watch("z", "\0"),
        watch("y", "\0"),
        watch("", ""),
        watch("", "\0"),
        watch("\0", "\0"),
        watch("b/5", "b/1"),
        watch("x", "a"),
    ]
}

fn of_leases() -> Vec<Call> {
    let ttl = |id, keys| Call::TimeToLive(pb::LeaseTimeToLiveRequest { id, keys });
    vec![
        Call::Grant(pb::LeaseGrantRequest { ttl: 1 << 40, id: 9 }),
        Call::Revoke(404),
        Call::KeepAlive(404),
        Call::KeepAlive(1),
        Call::KeepAlive(2),
        ttl(404, false),
        ttl(404, true),
        ttl(1, false),
        ttl(1, true),
        ttl(2, true),
        Call::Leases,
        Call::Put(put("b/2", 1, false)),
        Call::Put(put("b/2", 2, false)),
        txn(vec![], &[Call::Put(put("b/2", 2, false))], &[]),
        txn(vec![], &[Call::Put(put("b/2", 1, false))], &[]),
    ]
}

fn of_services() -> Vec<Call> {
    let leader = || Some(election::LeaderKey { name: "b/l".into(), key: "b/l/9".into(), rev: 1 << 40, lease: 3 });
    vec![
        Call::Members,
        Call::MemberRemove,
        Call::Status,
        alarm(0, 0),
        alarm(0, 1),
        alarm(2, 1),
        Call::Defragment,
        Call::Hash,
        Call::HashKv(1 << 40),
        Call::Snapshot,
        Call::MoveLeader,
        Call::Unlock("a/l"),
        Call::Unlock("b/none"),
        Call::Leader("a"),
        Call::Leader("b/l"),
        Call::Observe("a"),
        Call::Observe("b/l"),
        Call::Lock(lock::LockRequest { name: "a/l".into(), lease: 3 }),
        Call::Campaign(election::CampaignRequest { name: "a/e".into(), lease: 3, value: "v".into() }),
        Call::Proclaim(election::ProclaimRequest { leader: leader(), value: "v".into() }),
        Call::Resign(election::ResignRequest { leader: leader() }),
    ]
}

fn of_users() -> Vec<Call> {
    vec![
        Call::AuthStatus,
        Call::UserGet("alice"),
        Call::UserGet("bob"),
        Call::UserGet("nobody"),
        Call::UserList,
        Call::RoleGet("reader"),
        Call::RoleGet("both"),
        Call::RoleGet("root"),
        Call::RoleGet("norole"),
        Call::RoleList,
        user_add("", "x", false),
        user_add("alice", "x", false),
        Call::UserDelete("nobody"),
        change_password("nobody", "x"),
        Call::GrantRole { user: "nobody", role: "both" },
        Call::GrantRole { user: "alice", role: "norole" },
        Call::RevokeRole { user: "alice", role: "norole" },
        Call::RoleAdd(""),
        Call::RoleAdd("both"),
        Call::RoleDelete("norole"),
        grant("norole", READ, "k", ""),
        grant("both", READ, "", ""),
        grant("both", READ, "k", "k"),
        grant("both", READ, "k", "a"),
        grant("both", READ, "", "\0"),
        Call::GrantPermission(pb::AuthRoleGrantPermissionRequest { name: "both".into(), perm: None }),
        revoke("norole", "k", ""),
        revoke("both", "k", ""),
    ]
}

/// Every rule, one after the other.
pub(crate) fn script() -> Vec<Step> {
    let root = Who::User("root");
    let mut steps: Vec<Step> = Vec::new();
    let mut all = |who, calls: Vec<Call>| steps.extend(calls.into_iter().map(|call| (who, call)));
    // Off: no tokens are looked at, and anybody manages users (AUTH-1, AUTH-2, AUTH-7).
    all(Who::Stranger, vec![login("root"), Call::Disable, Call::Enable, range("a", "")]);
    all(
        Who::Nobody,
        vec![
            user_add("root", "root", false),
            Call::Enable,
            Call::RoleGet("root"),
            Call::GrantRole { user: "root", role: "root" },
            Call::GrantRole { user: "root", role: "root" },
            Call::RoleGet("root"),
            Call::RoleAdd("root"),
            Call::RoleGet("root"),
            user_add("root", "again", false),
            user_add("alice", "alice", false),
            user_add("bob", "bob", false),
            user_add("carol", "", true),
            user_add("dora", "", false),
            Call::RoleAdd("reader"),
            Call::RoleAdd("writer"),
            Call::RoleAdd("both"),
            grant("reader", READ, "b/", "b/5"),
            grant("reader", READ, "b/5", "b0"),
            grant("reader", READ, "z", "\0"),
            grant("reader", READ, "y", ""),
            grant("writer", WRITE, "b/", "b0"),
            grant("writer", WRITE, "w/", "w0"),
            grant("both", READ, "b/", "b0"),
            grant("both", READWRITE, "b/", "b0"),
            grant("both", READ, "k", ""),
            grant("both", 7, "k", "m"),
            Call::RoleGet("both"),
            revoke("both", "k", "m"),
            revoke("both", "k", "m"),
            revoke("both", "k", ""),
            Call::RoleGet("both"),
            Call::GrantRole { user: "alice", role: "reader" },
            Call::GrantRole { user: "alice", role: "writer" },
            Call::GrantRole { user: "bob", role: "both" },
            Call::GrantRole { user: "bob", role: "reader" },
            Call::UserGet("bob"),
            Call::RevokeRole { user: "bob", role: "reader" },
            Call::RevokeRole { user: "bob", role: "reader" },
            Call::Grant(pb::LeaseGrantRequest { ttl: 5000, id: 1 }),
            Call::Grant(pb::LeaseGrantRequest { ttl: 6000, id: 2 }),
            Call::Grant(pb::LeaseGrantRequest { ttl: 7000, id: 3 }),
            Call::Put(put("a/leased", 1, false)),
            Call::Put(put("b/leased", 2, false)),
            Call::AuthStatus,
        ],
    );
    for who in [Who::Nobody, Who::Stranger] {
        all(who, battery());
    }
    all(Who::Nobody, vec![Call::Enable, login("root")]);
    let wrong = |name| Call::Login { name, password: "wrong" };
    all(Who::Stranger, vec![login("alice"), login("bob"), login("carol"), login("nobody"), wrong("root"), wrong("")]);
    all(Who::Nobody, vec![Call::Login { name: "dora", password: "" }, wrong("dora")]);
    for who in EVERYBODY {
        all(who, battery());
    }
    // Leases and their keys (LSE-19).
    let read_only = Call::TimeToLive(pb::LeaseTimeToLiveRequest { id: 2, keys: true });
    all(Who::User("alice"), vec![Call::Revoke(1), read_only, Call::Revoke(2)]);
    all(root, vec![Call::Grant(pb::LeaseGrantRequest { ttl: 6000, id: 2 }), Call::Put(put("x", 2, false))]);
    all(Who::User("bob"), vec![Call::Revoke(2), Call::KeepAlive(2), Call::Put(put("b/1", 2, false)), Call::Leases]);
    all(root, vec![Call::Revoke(2), Call::Leases]);
    // While it is on, root stays (AUTH-7).
    all(
        root,
        vec![
            Call::Enable,
            Call::UserDelete("root"),
            Call::RoleDelete("root"),
            Call::RevokeRole { user: "root", role: "root" },
            Call::GrantRole { user: "alice", role: "root" },
        ],
    );
    all(Who::User("alice"), vec![range("\0", "\0"), Call::RevokeRole { user: "alice", role: "root" }, Call::UserList]);
    // What ends a login (AUTH-2), and what changes rights at once.
    all(root, vec![change_password("alice", "other"), Call::UserGet("alice")]);
    all(Who::User("alice"), vec![range("b/1", ""), login("alice"), Call::Login { name: "alice", password: "other" }]);
    all(Who::User("alice"), vec![range("b/1", "")]);
    all(root, vec![revoke("reader", "b/", "b/5")]);
    all(Who::User("alice"), vec![range("b/1", ""), range("b/7", ""), range("b/", "b0")]);
    all(root, vec![Call::RoleDelete("writer"), Call::UserGet("alice")]);
    all(Who::User("alice"), vec![Call::Put(put("b/1", 0, false)), range("b/7", "")]);
    all(root, vec![change_password("carol", "set"), Call::Login { name: "carol", password: "set" }]);
    all(root, vec![change_password("bob", ""), Call::Login { name: "bob", password: "" }]);
    all(root, vec![Call::UserDelete("alice"), Call::UserDelete("alice"), user_add("alice", "alice", false)]);
    all(Who::User("alice"), vec![range("b/7", ""), login("alice"), range("b/7", ""), Call::UserGet("alice")]);
    all(root, vec![Call::AuthStatus, Call::Disable, Call::Disable]);
    all(Who::Nobody, vec![range("b/7", ""), login("alice"), Call::AuthStatus, Call::UserDelete("root"), Call::Enable]);
    all(Who::Nobody, vec![user_add("root", "root", false), Call::GrantRole { user: "root", role: "root" }]);
    all(Who::Nobody, vec![Call::Enable]);
    all(root, vec![range("b/7", ""), login("root"), range("b/7", ""), Call::AuthStatus]);
    steps
}

/// Before a sequence from a seed: users, roles, and a little of everything, then on.
pub(crate) fn prologue() -> Vec<Step> {
    let mut calls: VecDeque<Call> = VecDeque::new();
    for user in USERS {
        calls.push_back(user_add(user, user, false));
    }
    for role in ROLES {
        calls.push_back(Call::RoleAdd(role));
    }
    calls.extend([
        Call::GrantRole { user: "root", role: "root" },
        Call::GrantRole { user: "alice", role: "reader" },
        Call::GrantRole { user: "bob", role: "both" },
        grant("reader", READ, "a", "b"),
        grant("both", READWRITE, "b", "c"),
        Call::Enable,
    ]);
    calls.extend(USERS.map(login));
    calls.into_iter().map(|call| (Who::Nobody, call)).collect()
}

fn of<T: Copy>(rng: &mut Rng, all: &[T]) -> T {
    all[rng.below(all.len() as u64) as usize]
}

/// Few keys, so that grants meet them, overlap and touch.
fn key(rng: &mut Rng) -> &'static str {
    of(rng, &["a", "a1", "b", "b1", "c", "c1", "d"])
}

/// What is granted: one interval a key, as etcd mixes up several that begin at one.
fn interval(rng: &mut Rng) -> (&'static str, &'static str) {
    of(rng, &[("a", "b"), ("a1", ""), ("b", "c"), ("b1", "c1"), ("c", "\0"), ("c1", "d"), ("d", "")])
}

/// A key, and mostly the end of an interval from it on. Of intervals without any key etcd answers by the
/// shape of its tree: the script has a few.
fn span(rng: &mut Rng) -> (&'static str, &'static str) {
    let (key, end) = (key(rng), of(rng, &["", "", "", "\0", "a1", "b", "c", "d", "e"]));
    (key, if key < end || end == "\0" { end } else { "" })
}

fn data(rng: &mut Rng, depth: u32) -> Call {
    let lease = |rng: &mut Rng| if rng.one_in(3) { of(rng, &[1, 2, 3]) } else { 0 };
    let (key, end) = span(rng);
    match rng.below(if depth < 2 { 4 } else { 3 }) {
        0 => range(key, end),
        1 => Call::Put(put(key, lease(rng), rng.one_in(3))),
        2 => Call::Delete(delete(key, end, rng.one_in(3))),
        _ => {
            let compares = if rng.one_in(2) { vec![compare(key, end)] } else { Vec::new() };
            let success: Vec<_> = (0..rng.below(3)).map(|_| data(rng, depth + 1)).collect();
            let failure: Vec<_> = (0..rng.below(3)).map(|_| data(rng, depth + 1)).collect();
            txn(compares, &success, &failure)
        }
    }
}

fn management(rng: &mut Rng) -> Call {
    let (user, role) = (of(rng, &USERS), of(rng, &ROLES));
    match rng.below(17) {
        0 => Call::Enable,
        1 if rng.one_in(8) => Call::Disable,
        2 => user_add(user, user, rng.one_in(5)),
        3 if rng.one_in(2) => Call::UserDelete(user),
        4 if rng.one_in(2) => change_password(user, user),
        5 => Call::UserGet(user),
        6 => Call::GrantRole { user, role },
        7 => Call::RevokeRole { user, role },
        8 => Call::RoleAdd(role),
        9 => Call::RoleGet(role),
        10 if rng.one_in(2) => Call::RoleDelete(role),
        11 => Call::UserList,
        12 => Call::RoleList,
        13..15 => {
            let (key, end) = interval(rng);
            grant(role, of(rng, &[READ, WRITE, READWRITE]), key, end)
        }
        15 => {
            let (key, end) = interval(rng);
            revoke(role, key, end)
        }
        _ => login(user),
    }
}

/// The call of a number.
pub(crate) fn step(number: u64, enabled: bool) -> Step {
    let mut rng = Rng(number);
    let rng = &mut rng;
    let anybody = of(rng, &EVERYBODY);
    // Most of it is about what is refused while it is on.
    if !enabled && rng.one_in(4) {
        let grant = Call::GrantRole { user: "root", role: "root" };
        let on = [user_add("root", "root", false), grant, Call::Enable, Call::Enable];
        return (Who::Nobody, on[rng.below(4) as usize].clone());
    }
    let lease = of(rng, &[1, 2, 3]);
    match rng.below(100) {
        // Mostly by somebody who may, or little would change.
        0..35 => {
            let who = if rng.one_in(4) { anybody } else { Who::User("root") };
            (who, management(rng))
        }
        35..43 => (anybody, login(of(rng, &USERS))),
        43..80 => (anybody, data(rng, 0)),
        80..84 => {
            let (key, end) = span(rng);
            (anybody, watch(if rng.one_in(5) { "" } else { key }, end))
        }
        84..86 => (anybody, Call::Grant(pb::LeaseGrantRequest { ttl: 4000 + 100 * lease, id: lease })),
        86 => (anybody, Call::Revoke(lease)),
        87..89 => (anybody, Call::KeepAlive(lease)),
        89..92 => (anybody, Call::TimeToLive(pb::LeaseTimeToLiveRequest { id: lease, keys: rng.one_in(2) })),
        92..94 => (anybody, Call::Leases),
        94 => (anybody, Call::Compact(pb::CompactionRequest { revision: 1 + rng.below(50) as i64, physical: true })),
        _ => {
            let calls = [Call::Members, Call::Status, alarm(0, 0), Call::HashKv(0), Call::AuthStatus, Call::MoveLeader];
            (anybody, calls[rng.below(6) as usize].clone())
        }
    }
}
