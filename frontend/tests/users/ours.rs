//! What no reference of the lockstep says: rules that came later, restarts, races, and the command line.

use crate::calls::{
    READ, READWRITE, WRITE, alarm, change_password, compare, delete, grant, login, put, range, txn, user_add, watch,
};
use crate::common::{Served, has_program, polybolt, succeed, text};
use crate::lockstep::CHEAP;
use crate::side::{Answer, Call, Side, Who};
use polybolt_frontend::proto::etcdserverpb as pb;
use polybolt_frontend::proto::etcdserverpb::auth_client::AuthClient;
use polybolt_frontend::proto::etcdserverpb::kv_client::KvClient;
use polybolt_frontend::proto::v1::ShardsRequest;
use polybolt_frontend::proto::v1::inspect_client::InspectClient;
use polybolt_frontend::proto::v3electionpb as election;
use polybolt_frontend::proto::v3lockpb as lock;
use std::process::Command;
use std::time::Duration;
use tonic::{Code, Request};

const ROOT: Who = Who::User("root");
const ALICE: Who = Who::User("alice");

/// A server with root and alice, who may read and write below `a/` and read below `r/`.
async fn served(dir: &std::path::Path, flags: &[&str]) -> (Served, Side) {
    let served = Served::start(dir, &[&CHEAP, flags].concat());
    let mut side = Side::connect(&served.url()).await;
    let calls = [
        user_add("root", "root", false),
        Call::GrantRole { user: "root", role: "root" },
        user_add("alice", "alice", false),
        Call::RoleAdd("below-a"),
        grant("below-a", READWRITE, "a/", "a0"),
        grant("below-a", READ, "r/", "r0"),
        Call::GrantRole { user: "alice", role: "below-a" },
        Call::Enable,
        login("root"),
        login("alice"),
    ];
    for call in calls {
        side.call(Who::Nobody, &call).await.unwrap();
    }
    (served, side)
}

fn refused(answer: Answer) -> (Code, String) {
    answer.expect_err("it has to be refused")
}

const DENIED: (Code, &str) = (Code::PermissionDenied, "etcdserver: permission denied");
const EMPTY: (Code, &str) = (Code::InvalidArgument, "etcdserver: user name is empty");
const INVALID: (Code, &str) = (Code::Unauthenticated, "etcdserver: invalid auth token");

#[track_caller]
fn assert_refused(answer: Answer, (code, text): (Code, &str)) {
    assert_eq!(refused(answer), (code, text.to_owned()));
}

#[tokio::test]
async fn users_and_roles_outlive_a_restart_and_logins_do_not() {
    let dir = tempfile::tempdir().unwrap();
    let (mut served, mut side) = served(dir.path(), &[]).await;
    let status = side.call(Who::Nobody, &Call::AuthStatus).await.unwrap();
    assert!(status.contains("enabled: true, auth_revision: 8"), "{status}");
    side.call(ALICE, &Call::Put(put("a/1", 0, false))).await.unwrap();
    let status = side.call(Who::Nobody, &Call::AuthStatus).await.unwrap();
    for kill in [true, false] {
        if kill {
            served.kill();
        } else {
            assert!(served.stop());
        }
        served = Served::start(dir.path(), &CHEAP);
        side = Side::connect_as_before(&served.url(), side).await;
        assert_eq!(side.call(Who::Nobody, &Call::AuthStatus).await.unwrap(), status);
        assert_refused(side.call(Who::Nobody, &range("a/1", "")).await, EMPTY);
        assert_refused(side.call(ALICE, &range("a/1", "")).await, INVALID);
        side.call(Who::Nobody, &login("alice")).await.unwrap();
        side.call(ALICE, &range("a/", "a0")).await.unwrap();
        assert_refused(side.call(ALICE, &range("b", "")).await, DENIED);
        assert_refused(side.call(ALICE, &Call::UserList).await, DENIED);
    }
    // As off as it was.
    side.call(Who::Nobody, &login("root")).await.unwrap();
    side.call(ROOT, &Call::Disable).await.unwrap();
    served.kill();
    served = Served::start(dir.path(), &CHEAP);
    side = Side::connect_as_before(&served.url(), side).await;
    side.call(Who::Stranger, &range("b", "")).await.unwrap();
}

#[tokio::test]
async fn a_login_ends_that_is_not_used() {
    let dir = tempfile::tempdir().unwrap();
    let (_served, mut side) = served(dir.path(), &["--auth-token-ttl", "1"]).await;
    let limit = std::time::Instant::now() + Duration::from_secs(60);
    // Each look makes it live on, so they are ever further apart.
    let mut pause = Duration::from_millis(300);
    while side.call(ALICE, &range("a/1", "")).await.is_ok() {
        assert!(std::time::Instant::now() < limit, "it never ends");
        tokio::time::sleep(pause).await;
        pause = pause * 3 / 2;
    }
    assert_refused(side.call(ALICE, &range("a/1", "")).await, INVALID);
}

#[tokio::test]
async fn maintenance_and_members_are_for_users_or_for_root_mnt_9_auth_5() {
    let dir = tempfile::tempdir().unwrap();
    let (served, mut side) = served(dir.path(), &[]).await;
    let for_users = [Call::Status, alarm(0, 0), Call::Members, Call::Grant(pb::LeaseGrantRequest { ttl: 60, id: 0 })];
    let compact = Call::Compact(pb::CompactionRequest { revision: 1, physical: false });
    let for_root = [
        alarm(1, 0),
        alarm(2, 1),
        Call::Defragment,
        Call::Hash,
        Call::HashKv(0),
        Call::Snapshot,
        Call::MoveLeader,
        Call::MemberRemove,
        compact,
        Call::UserList,
        Call::RoleList,
        Call::Enable,
        Call::Disable,
    ];
    for call in for_users.iter().chain(&for_root) {
        assert_refused(side.call(Who::Nobody, call).await, EMPTY);
        assert_refused(side.call(Who::Stranger, call).await, INVALID);
    }
    for call in for_users {
        side.call(ALICE, &call).await.unwrap();
    }
    for call in for_root {
        assert_refused(side.call(ALICE, &call).await, DENIED);
    }
    // Everybody may ask whether it is on (AUTH-3).
    side.call(Who::Nobody, &Call::AuthStatus).await.unwrap();
    side.call(ALICE, &Call::AuthStatus).await.unwrap();
    // The shards are no secret among users.
    let mut inspect = InspectClient::connect(served.url()).await.unwrap();
    inspect.shards(side.of(ALICE, ShardsRequest {})).await.unwrap();
    assert_eq!(inspect.shards(ShardsRequest {}).await.unwrap_err().message(), EMPTY.1);
}

#[tokio::test]
async fn locks_and_elections_need_the_rights_of_their_keys() {
    let dir = tempfile::tempdir().unwrap();
    let (_served, mut side) = served(dir.path(), &[]).await;
    let lease = 7;
    side.call(ALICE, &Call::Grant(pb::LeaseGrantRequest { ttl: 600, id: lease })).await.unwrap();
    let calls = |name: &'static str, key: &'static str| {
        let leader = election::LeaderKey { name: name.into(), key: key.into(), rev: 1 << 40, lease };
        [
            Call::Lock(lock::LockRequest { name: name.into(), lease }),
            Call::Unlock(key),
            Call::Campaign(election::CampaignRequest { name: name.into(), lease, value: "v".into() }),
            Call::Leader(name),
            Call::Observe(name),
            Call::Resign(election::ResignRequest { leader: Some(leader.clone()) }),
            Call::Proclaim(election::ProclaimRequest { leader: Some(leader), value: "v".into() }),
        ]
    };
    for call in calls("b/l", "b/l/7") {
        assert_refused(side.call(Who::Nobody, &call).await, EMPTY);
        assert_refused(side.call(Who::Stranger, &call).await, INVALID);
        assert_refused(side.call(ALICE, &call).await, DENIED);
    }
    // To read is enough to see who leads, and for nothing else.
    for call in calls("r/l", "r/l/7") {
        let leads = matches!(call, Call::Leader(_) | Call::Observe(_));
        match side.call(ALICE, &call).await {
            Err((Code::Unknown, text)) if leads => assert_eq!(text, "election: no leader"),
            Ok(_) if leads => {}
            answer => assert_refused(answer, DENIED),
        }
    }
    let mut allowed = calls("a/l", "a/l/7").into_iter().rev();
    assert_refused(side.call(ALICE, &allowed.next().unwrap()).await, (Code::Unknown, "election: not leader"));
    for call in allowed.rev() {
        side.call(ALICE, &call).await.unwrap();
    }
}

#[tokio::test]
async fn a_permission_is_an_interval_auth_7() {
    let dir = tempfile::tempdir().unwrap();
    let (_served, mut side) = served(dir.path(), &[]).await;
    let invalid = (Code::InvalidArgument, "etcdserver: invalid auth management");
    for (key, end) in [("", ""), ("", "a"), ("", "\0"), ("b", "b"), ("b", "a")] {
        assert_refused(side.call(ROOT, &grant("below-a", READ, key, end)).await, invalid);
    }
    let nothing = pb::AuthRoleGrantPermissionRequest { name: "below-a".into(), perm: None };
    let not_given = (Code::InvalidArgument, "etcdserver: permission not given");
    assert_refused(side.call(ROOT, &Call::GrantPermission(nothing)).await, not_given);
    // What is no interval is said before whose it would be.
    assert_refused(side.call(ROOT, &grant("none", READ, "b", "a")).await, invalid);
}

#[tokio::test]
async fn a_watch_is_judged_by_what_it_asks_for_wch_10() {
    let dir = tempfile::tempdir().unwrap();
    let (_served, mut side) = served(dir.path(), &[]).await;
    side.call(ROOT, &grant("below-a", READ, "x", "")).await.unwrap();
    let mut outcome = async |who, key: &str, end: &str| {
        let created = side.call(who, &watch(key, end)).await.unwrap();
        assert!(created.contains("created: true"));
        let reason = created.split("cancel_reason: \"").nth(1).unwrap().split('"').next().unwrap().to_owned();
        assert_eq!(created.contains("watch_id: -1, created: true, canceled: true"), !reason.is_empty());
        reason
    };
    let denied = "rpc error: code = PermissionDenied desc = etcdserver: permission denied";
    assert_eq!(outcome(ALICE, "x", "").await, "");
    assert_eq!(outcome(ALICE, "a/", "a0").await, "");
    // Not as the one key that its end would leave of it.
    assert_eq!(outcome(ALICE, "x", "\0").await, denied);
    assert_eq!(outcome(ALICE, "", "").await, denied);
    assert_eq!(outcome(ALICE, "a/", "b").await, denied);
    assert_eq!(outcome(ROOT, "", "\0").await, "");
    let empty = "rpc error: code = InvalidArgument desc = etcdserver: user name is empty";
    assert_eq!(outcome(Who::Nobody, "x", "").await, empty);
    let invalid = "rpc error: code = Unauthenticated desc = etcdserver: invalid auth token";
    assert_eq!(outcome(Who::Stranger, "x", "").await, invalid);
}

#[tokio::test]
async fn a_call_needs_the_rights_of_all_that_is_in_it_auth_4_lse_19() {
    let dir = tempfile::tempdir().unwrap();
    let (_served, mut side) = served(dir.path(), &[]).await;
    side.call(ROOT, &Call::RoleAdd("drop")).await.unwrap();
    side.call(ROOT, &grant("drop", WRITE, "w/", "w0")).await.unwrap();
    side.call(ROOT, &Call::GrantRole { user: "alice", role: "drop" }).await.unwrap();
    let (mine, other) = (1, 2);
    for (id, key) in [(mine, "a/leased"), (other, "b/leased")] {
        side.call(ROOT, &Call::Grant(pb::LeaseGrantRequest { ttl: 600, id })).await.unwrap();
        side.call(ROOT, &Call::Put(put(key, id, false))).await.unwrap();
    }
    let (good, hidden) = (Call::Put(put("a/1", 0, true)), range("b/1", ""));
    let ttl = |id, keys| Call::TimeToLive(pb::LeaseTimeToLiveRequest { id, keys });
    let denied = [
        txn(vec![compare("b/1", "")], std::slice::from_ref(&good), &[]),
        txn(vec![], std::slice::from_ref(&good), std::slice::from_ref(&hidden)),
        txn(vec![], &[txn(vec![], &[], std::slice::from_ref(&hidden))], &[]),
        txn(vec![], &[txn(vec![compare("b/", "c")], std::slice::from_ref(&good), &[])], &[]),
        Call::Put(put("w/1", 0, true)),
        Call::Delete(delete("w/1", "", true)),
        txn(vec![], &[Call::Put(put("w/1", 0, true))], &[]),
        Call::Put(put("a/1", other, false)),
        txn(vec![], &[Call::Put(put("a/1", other, false))], &[]),
        Call::Revoke(other),
        Call::KeepAlive(other),
        ttl(other, true),
        Call::Leases,
    ];
    for call in denied {
        assert_refused(side.call(ALICE, &call).await, DENIED);
    }
    for call in [Call::KeepAlive(404), Call::Revoke(404), ttl(404, false), Call::Leases] {
        assert_refused(side.call(Who::Nobody, &call).await, EMPTY);
    }
    let allowed = [
        txn(vec![compare("r/", "r0")], &[txn(vec![], std::slice::from_ref(&good), &[])], &[good]),
        Call::Put(put("w/1", 0, false)),
        Call::Delete(delete("w/", "w0", false)),
        ttl(other, false),
        ttl(mine, true),
        Call::Put(put("a/2", mine, false)),
        Call::KeepAlive(mine),
        Call::KeepAlive(404),
        Call::Revoke(mine),
    ];
    for call in allowed {
        side.call(ALICE, &call).await.unwrap();
    }
    side.call(ROOT, &Call::Revoke(other)).await.unwrap();
    side.call(ALICE, &Call::Leases).await.unwrap();
}

#[tokio::test]
async fn tokens_come_in_either_header_srv_6() {
    let dir = tempfile::tempdir().unwrap();
    let (served, _) = served(dir.path(), &[]).await;
    let login = pb::AuthenticateRequest { name: "alice".into(), password: "alice".into() };
    let token = AuthClient::connect(served.url()).await.unwrap().authenticate(login).await.unwrap().into_inner().token;
    let mut kv = KvClient::connect(served.url()).await.unwrap();
    let mut code = async |headers: &[(&'static str, &str)]| {
        let mut request = Request::new(pb::RangeRequest { key: "a/1".into(), ..Default::default() });
        for (key, value) in headers {
            request.metadata_mut().insert(*key, value.parse().unwrap());
        }
        kv.range(request).await.map_or_else(|status| status.code(), |_| Code::Ok)
    };
    assert_eq!(code(&[("token", &token)]).await, Code::Ok);
    assert_eq!(code(&[("authorization", &token)]).await, Code::Ok);
    assert_eq!(code(&[("authorization", &format!("Bearer {token}"))]).await, Code::Ok);
    assert_eq!(code(&[("authorization", &format!("Basic {token}"))]).await, Code::Unauthenticated);
    assert_eq!(code(&[("token", ""), ("authorization", &token)]).await, Code::Unauthenticated);
    assert_eq!(code(&[]).await, Code::InvalidArgument);
}

#[tokio::test]
async fn alarms_come_before_rights_and_do_not_replace_them_put_8() {
    let dir = tempfile::tempdir().unwrap();
    let (_served, mut side) = served(dir.path(), &[]).await;
    let full = (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded");
    let corrupt = (Code::DataLoss, "etcdserver: corrupt cluster");
    let empty = (Code::InvalidArgument, "etcdserver: key is not provided");
    let write = |key| Call::Put(put(key, 0, false));
    for (kind, of_put, of_delete) in [(1, full, DENIED), (2, corrupt, corrupt)] {
        side.call(ROOT, &alarm(1, kind)).await.unwrap();
        // What can be refused without a look comes first, then the token, then the alarm.
        assert_refused(side.call(Who::Stranger, &write("")).await, empty);
        assert_refused(side.call(Who::Stranger, &write("b")).await, INVALID);
        assert_refused(side.call(ALICE, &write("b")).await, of_put);
        assert_refused(side.call(ALICE, &Call::Delete(delete("b", "", false))).await, of_delete);
        assert_refused(side.call(ALICE, &txn(vec![], &[Call::Delete(delete("b", "", false))], &[])).await, of_delete);
        assert_refused(side.call(ALICE, &range("b", "")).await, DENIED);
        assert_refused(side.call(ALICE, &Call::RoleAdd("more")).await, DENIED);
        assert_refused(side.call(ALICE, &alarm(2, kind)).await, DENIED);
        side.call(ROOT, &alarm(2, kind)).await.unwrap();
    }
    assert_refused(side.call(ALICE, &write("b")).await, DENIED);
    // A lease that is not there comes after rights.
    assert_refused(side.call(ALICE, &Call::Put(put("b", 404, false))).await, DENIED);
    let missing = (Code::NotFound, "etcdserver: requested lease not found");
    assert_refused(side.call(ALICE, &Call::Put(put("a/1", 404, false))).await, missing);
}

#[tokio::test]
async fn a_range_stream_ends_when_users_change_rst_8() {
    let dir = tempfile::tempdir().unwrap();
    let (served, mut side) = served(dir.path(), &[]).await;
    // Many more chunks than the server and the connection take in before anybody reads.
    for n in 0..400 {
        let mut large = put(&format!("r/{n:03}"), 0, false);
        large.value = vec![b'v'; 100 << 10].into();
        side.call(ROOT, &Call::Put(large)).await.unwrap();
    }
    let mut kv = KvClient::connect(served.url()).await.unwrap().max_decoding_message_size(64 << 20);
    let all = |key: &'static str, range_end: &'static str| pb::RangeRequest {
        key: key.into(),
        range_end: range_end.into(),
        ..Default::default()
    };
    let denied = kv.range_stream(side.of(ALICE, all("r/", "s"))).await.unwrap_err();
    assert_eq!((denied.code(), denied.message()), DENIED);
    let sorted = pb::RangeRequest { sort_order: 2, ..all("r/", "s") };
    assert_eq!(kv.range_stream(sorted).await.unwrap_err().code(), Code::Unimplemented);
    let mut stream = kv.range_stream(side.of(ALICE, all("r/", "r0"))).await.unwrap().into_inner();
    stream.message().await.unwrap().unwrap();
    // A change does not wait for a client that does not read.
    side.call(ROOT, &Call::RoleAdd("more")).await.unwrap();
    let ended = loop {
        match stream.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the stream is whole"),
            Err(status) => break status,
        }
    };
    assert_eq!((ended.code(), ended.message()), (Code::InvalidArgument, "etcdserver: revision of auth store is old"));
}

#[tokio::test]
async fn whoever_waits_for_a_lock_may_lose_the_right_to_it() {
    let dir = tempfile::tempdir().unwrap();
    let (served, mut side) = served(dir.path(), &[]).await;
    let lock_of = |lease| lock::LockRequest { name: "a/l".into(), lease };
    let held = side.call(ROOT, &Call::Lock(lock_of(0))).await.unwrap();
    let key = held.split("b\"").nth(1).unwrap().split('"').next().unwrap().to_owned();
    let waiting = tokio::spawn({
        let request = side.of(ALICE, lock_of(0));
        let mut locks = lock::lock_client::LockClient::connect(served.url()).await.unwrap();
        async move { locks.lock(request).await }
    });
    let count = async |side: &mut Side| {
        let answer = side.call(ROOT, &range("a/l/", "a/l0")).await.unwrap();
        answer.split("count: ").nth(1).unwrap().split(' ').next().unwrap().parse::<u64>().unwrap()
    };
    while count(&mut side).await < 2 {}
    // It holds up no change while it waits.
    side.call(ROOT, &Call::RevokeRole { user: "alice", role: "below-a" }).await.unwrap();
    side.call(ROOT, &Call::Delete(delete(&key, "", false))).await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap_err().message(), DENIED.1);
    // And it has left the line.
    while count(&mut side).await > 0 {}
}

#[tokio::test]
async fn passwords_are_hashed_and_never_longer_than_what_counts_auth_8() {
    let dir = tempfile::tempdir().unwrap();
    let (served, mut side) = served(dir.path(), &[]).await;
    let long: &'static str = Box::leak("x".repeat(73).into_boxed_str());
    let too_long = (Code::Unknown, "bcrypt: password length exceeds 72 bytes");
    assert_refused(side.call(ROOT, &user_add("bob", long, false)).await, too_long);
    assert_refused(side.call(ROOT, &change_password("alice", long)).await, too_long);
    side.call(ROOT, &user_add("bob", &long[..72], false)).await.unwrap();
    let login = Call::Login { name: "bob", password: &long[..72] };
    side.call(Who::Nobody, &login).await.unwrap();
    // Without a password nobody logs in, not even with none.
    side.call(ROOT, &change_password("bob", "")).await.unwrap();
    let failed = (Code::InvalidArgument, "etcdserver: authentication failed, invalid user ID or password");
    assert_refused(side.call(Who::Nobody, &Call::Login { name: "bob", password: "" }).await, failed);
    assert!(served.stop());
    // Nowhere in the files.
    for entry in walk(dir.path()) {
        let bytes = std::fs::read(&entry).unwrap();
        assert!(!bytes.windows(72).any(|part| part == &long.as_bytes()[..72]), "{}", entry.display());
    }
}

fn walk(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

#[test]
fn etcdctl_manages_users() {
    if !has_program("etcdctl") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let served = Served::start(dir.path(), &CHEAP);
    let ctl = |arguments: &[&str]| {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").args(["--endpoints", &format!("127.0.0.1:{}", served.port)]).args(arguments);
        command
    };
    let run = |arguments: &[&str]| succeed(&mut ctl(arguments));
    let fail = |arguments: &[&str]| {
        let output = ctl(arguments).output().unwrap();
        assert!(!output.status.success(), "{arguments:?}");
        text(&output.stderr)
    };
    assert_eq!(run(&["user", "add", "root:pw"]), "User root created\n");
    assert_eq!(run(&["user", "add", "alice", "--new-user-password", "geheim"]), "User alice created\n");
    assert_eq!(run(&["role", "add", "reader"]), "Role reader created\n");
    run(&["role", "grant-permission", "reader", "read", "pub/", "--prefix"]);
    run(&["user", "grant-role", "alice", "reader"]);
    run(&["user", "grant-role", "root", "root"]);
    run(&["put", "pub/1", "one"]);
    assert_eq!(run(&["auth", "enable"]), "Authentication Enabled\n");
    let (root, alice) = (["--user", "root:pw"], ["--user", "alice:geheim"]);
    let with = |user: [&'static str; 2], rest: &[&'static str]| [&user[..], rest].concat();
    assert_eq!(run(&with(root, &["get", "pub/1"])), "pub/1\none\n");
    assert_eq!(run(&with(alice, &["get", "pub/", "--prefix", "--print-value-only"])), "one\n");
    assert!(fail(&with(alice, &["put", "pub/1", "two"])).contains("permission denied"));
    assert!(fail(&with(alice, &["get", "other"])).contains("permission denied"));
    assert!(fail(&["get", "pub/1"]).contains("user name is empty"));
    assert!(fail(&["--user", "alice:wrong", "get", "pub/1"]).contains("authentication failed"));
    assert_eq!(run(&with(alice, &["user", "get", "alice"])), "User: alice\nRoles: reader\n");
    assert!(run(&with(root, &["role", "get", "reader"])).contains("[pub/, pub0) (prefix pub/)"));
    assert_eq!(run(&with(root, &["user", "list"])), "alice\nroot\n");
    assert_eq!(run(&with(root, &["role", "list"])), "reader\n");
    assert!(fail(&with(root, &["user", "delete", "root"])).contains("invalid auth management"));
    let saved = dir.path().join("saved.db");
    run(&["--user", "root:pw", "snapshot", "save", saved.to_str().unwrap()]);
    let status = |user: &[&str]| polybolt().args(["status", "--endpoint", &served.url()]).args(user).output().unwrap();
    assert!(text(&status(&[]).stderr).contains("user name is empty"));
    assert!(text(&status(&alice).stdout).starts_with("keyspace default"));
    // A snapshot has the users too.
    let restored = dir.path().join("restored");
    succeed(polybolt().args(["snapshot", "restore"]).arg(&saved).arg("--data-dir").arg(&restored));
    let again = Served::start(&restored, &CHEAP);
    let status = polybolt().args(["status", "--endpoint", &again.url()]).args(alice).output().unwrap();
    assert!(text(&status.stdout).starts_with("keyspace default"), "{status:?}");
    assert_eq!(run(&with(root, &["auth", "disable"])), "Authentication Disabled\n");
    assert_eq!(run(&["put", "other", "1"]), "OK\n");
}
