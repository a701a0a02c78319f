//! What `etcdctl` 3.4 is asked to do.

use crate::common::ctl::{Ctl, header_revision};
use crate::common::text;
use crate::{Outcome, PATIENCE, Report, Server};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Stdio;
use std::time::Instant;

type Step = fn(&Server, &Ctl);

const STEPS: [(&str, Step); 24] = [
    ("put: with the previous value, the same value, the same lease, from standard input", put),
    ("get: key, range, prefix, from a key, limit, order, revision", get),
    ("get: keys only, values only, as simple, fields, json, hex", formats),
    ("get: serializable", |_, ctl| assert_eq!(ctl.run(&["get", "--consistency", "s", "gone"]), "")),
    ("del: key, range, prefix, from a key, with what was there", delete),
    ("txn: success, failure, every comparison", txn),
    ("txn -i", txn_interactive),
    ("watch: from an old revision, a prefix, live with the previous value", watch),
    ("watch -i: several on one stream, progress", watch_interactive),
    ("watch: runs a command for each event", watch_command),
    ("lease: grant, put, timetolive, keep-alive, list, revoke", lease),
    ("lease keep-alive: goes on, and ends with its lease", keep_alive),
    ("lock: runs a command, leaves nothing", lock_command),
    ("lock: the second waits for the first", lock),
    ("elect: a leader, who listens, a follower", elect),
    ("compaction: --physical, below and above", compaction),
    ("defrag", |_, ctl| assert!(ctl.run(&["defrag"]).contains("Finished defragmenting"))),
    ("endpoint: health, status, hashkv", endpoint),
    ("member list", member_list),
    ("move-leader", move_leader),
    ("alarm: list, disarm", alarm),
    ("snapshot save", snapshot),
    ("make-mirror: to another server, with another prefix", make_mirror),
    ("the same commands with endpoints that are URLs", urls),
];

pub(crate) fn run() -> Report {
    let server = Server::start();
    let ctl = Ctl::new(server.address());
    let mut report = Report::new("etcdctl");
    let version = ctl.run(&["version"]);
    version.lines().next().unwrap().trim_start_matches("etcdctl version: ").clone_into(&mut report.version);
    for (name, step) in STEPS {
        let outcome = catch_unwind(AssertUnwindSafe(|| step(&server, &ctl))).map_or_else(
            |panic| {
                let why = panic.downcast_ref::<String>().cloned();
                Outcome::Failed(why.or_else(|| panic.downcast_ref::<&str>().map(|&why| why.to_owned())).unwrap())
            },
            |()| Outcome::Passed,
        );
        report.steps.push((name.to_owned(), outcome));
    }
    report
}

fn revision(ctl: &Ctl) -> i64 {
    header_revision(&ctl.run(&["get", "none", "-w", "json"]))
}

fn put(_: &Server, ctl: &Ctl) {
    assert_eq!(ctl.run(&["put", "put/a", "1"]), "OK\n");
    assert_eq!(ctl.run(&["put", "put/a", "2", "--prev-kv"]), "OK\nput/a\n1\n");
    let lease = grant(ctl);
    assert_eq!(ctl.run(&["put", "put/a", "3", "--lease", &lease]), "OK\n");
    assert_eq!(ctl.run(&["put", "put/a", "4", "--ignore-lease"]), "OK\n");
    assert_eq!(ctl.run(&["put", "put/a", "--ignore-value", "--lease", &lease]), "OK\n");
    assert_eq!(ctl.run(&["get", "put/a", "--print-value-only"]), "4\n");
    ctl.run(&["lease", "revoke", &lease]);
    assert!(ctl.fail(&["put", "put/a", "--ignore-value"]).contains("etcdserver: key not found"));
    assert!(ctl.fail(&["put", "put/a", "1", "--lease", &lease]).contains("etcdserver: requested lease not found"));
    assert_eq!(ctl.feed(&["put", "put/b"], "read"), "OK\n");
    assert_eq!(ctl.run(&["put", "--", "-dash", "v"]), "OK\n");
    assert_eq!(ctl.run(&["get", "put/b"]), "put/b\nread\n");
}

fn get(_: &Server, ctl: &Ctl) {
    let first = revision(ctl) + 1;
    for (key, value) in [("b", "2"), ("a", "1"), ("c", "0"), ("b", "3")] {
        ctl.run(&["put", &format!("get/{key}"), value]);
    }
    let values = |arguments: &[&str]| ctl.run(&[&["get", "--print-value-only"], arguments].concat());
    assert_eq!(values(&["get/a"]), "1\n");
    assert_eq!(values(&["get/a", "get/c"]), "1\n3\n");
    assert_eq!(values(&["--prefix", "get/"]), "1\n3\n0\n");
    assert!(values(&["--from-key", "get/b"]).starts_with("3\n0\n"));
    assert_eq!(values(&["--prefix", "get/", "--limit", "2"]), "1\n3\n");
    assert_eq!(values(&["get/b", "--rev", &first.to_string()]), "2\n");
    for (by, expected) in
        [("VALUE", "0\n1\n3\n"), ("CREATE", "3\n1\n0\n"), ("MODIFY", "1\n0\n3\n"), ("KEY", "1\n3\n0\n")]
    {
        assert_eq!(values(&["--prefix", "get/", "--sort-by", by, "--order", "ASCEND"]), expected, "{by}");
        let reverse: String = expected.lines().rev().map(|line| format!("{line}\n")).collect();
        assert_eq!(values(&["--prefix", "get/", "--sort-by", by, "--order", "DESCEND"]), reverse, "{by}");
    }
    assert!(values(&["--prefix", "get/", "--sort-by", "VERSION", "--order", "DESCEND"]).starts_with("3\n"));
    assert!(ctl.fail(&["get", "get/a", "--rev", "99999"]).contains("mvcc: required revision is a future revision"));
}

fn formats(_: &Server, ctl: &Ctl) {
    ctl.run(&["del", "--prefix", "form/"]);
    ctl.run(&["put", "form/a", "1"]);
    ctl.run(&["put", "form/b", "2"]);
    let get = |arguments: &[&str]| ctl.run(&[&["get", "--prefix", "form/"], arguments].concat());
    assert_eq!(get(&["--keys-only"]), "form/a\n\nform/b\n\n");
    assert_eq!(get(&["--print-value-only"]), "1\n2\n");
    assert_eq!(get(&["-w", "simple"]), "form/a\n1\nform/b\n2\n");
    assert!(get(&["-w", "json"]).contains("\"kvs\":[{\"key\":\"Zm9ybS9h\",\"create_revision\":"));
    // etcdctl 3.4 has no --count-only; the count is the same whatever the limit.
    let fields = get(&["-w", "fields", "--limit", "1"]);
    for line in ["\"Key\" : \"form/a\"", "\"Version\" : 1", "\"Value\" : \"1\"", "\"More\" : true", "\"Count\" : 2"] {
        assert!(fields.contains(line), "{fields}");
    }
    assert_eq!(get(&["--hex", "--limit", "1"]), "\\x66\\x6f\\x72\\x6d\\x2f\\x61\n\\x31\n");
}

fn delete(_: &Server, ctl: &Ctl) {
    for key in ["a", "b", "c", "d", "e"] {
        ctl.run(&["put", &format!("del/{key}"), key]);
    }
    assert_eq!(ctl.run(&["del", "del/a", "--prev-kv"]), "1\ndel/a\na\n");
    assert_eq!(ctl.run(&["del", "del/a"]), "0\n");
    assert_eq!(ctl.run(&["del", "del/b", "del/d"]), "2\n");
    assert_eq!(ctl.run(&["del", "--prefix", "del/", "--prev-kv"]), "2\ndel/d\nd\ndel/e\ne\n");
    ctl.run(&["put", "~last", "v"]);
    assert_eq!(ctl.run(&["del", "--from-key", "~", "--prev-kv"]), "1\n~last\nv\n");
}

fn txn(_: &Server, ctl: &Ctl) {
    ctl.run(&["put", "txn/a", "m"]);
    let now = revision(ctl);
    let holds = format!(
        "value(\"txn/a\") = \"m\"\nvalue(\"txn/a\") > \"l\"\nver(\"txn/a\") = \"1\"\ncreate(\"txn/a\") = \"{now}\"\n\
         mod(\"txn/a\") < \"{}\"\n\nput txn/b 1\nget txn/a\ndel txn/c\n\nput no no\n\n",
        now + 1
    );
    assert_eq!(ctl.feed(&["txn"], &holds), "SUCCESS\n\nOK\n\ntxn/a\nm\n\n0\n");
    let not = "mod(\"txn/a\") = \"1\"\n\nput no no\n\nget txn/a\n\n";
    assert_eq!(ctl.feed(&["txn"], not), "FAILURE\n\ntxn/a\nm\n");
    let json = ctl.feed(&["txn", "-w", "json"], not);
    assert!(json.contains("\"kvs\":[{\"key\":\"dHhuL2E=\""), "{json}");
}

fn txn_interactive(_: &Server, ctl: &Ctl) {
    let said = ctl.feed(&["txn", "-i"], "ver(\"txn/none\") = \"0\"\n\nput txn/d 1\n\n\n");
    assert!(said.starts_with("compares:\n") && said.ends_with("SUCCESS\n\nOK\n"), "{said}");
}

fn watch(_: &Server, ctl: &Ctl) {
    let from = (revision(ctl) + 1).to_string();
    ctl.run(&["put", "watch/a", "1"]);
    ctl.run(&["put", "watch/b", "0"]);
    ctl.run(&["del", "watch/b"]);
    let old = ["PUT", "watch/a", "1", "PUT", "watch/b", "0", "DELETE", "watch/b", ""];
    assert_eq!(ctl.start(&["watch", "--rev", &from, "--prefix", "watch/"]).lines(9), old);
    assert_eq!(ctl.start(&["watch", "--rev", &from, "watch/b", "watch/c"]).lines(6), old[3..]);
    // From the next revision: it does not matter which of the two is first.
    let next = (revision(ctl) + 1).to_string();
    let live = ctl.start(&["watch", "--rev", &next, "--prefix", "watch/", "--prev-kv"]);
    ctl.run(&["put", "watch/a", "2"]);
    assert_eq!(live.lines(5), ["PUT", "watch/a", "1", "watch/a", "2"]);
    live.interrupt();
}

fn watch_interactive(_: &Server, ctl: &Ctl) {
    let next = revision(ctl) + 1;
    let mut watching = ctl.start(&["watch", "-i"]);
    watching.say(&format!("watch --rev {next} inter/a"));
    watching.say(&format!("watch --rev {next} --prefix inter/b"));
    ctl.run(&["put", "inter/a", "1"]);
    assert_eq!(watching.lines(3), ["PUT", "inter/a", "1"]);
    ctl.run(&["put", "inter/b/c", "2"]);
    assert_eq!(watching.lines(3), ["PUT", "inter/b/c", "2"]);
    watching.say("progress");
    assert_eq!(watching.lines(1), [format!("progress notify: {}", next + 1)]);
}

fn watch_command(_: &Server, ctl: &Ctl) {
    let next = revision(ctl) + 1;
    let show = "echo $ETCD_WATCH_EVENT_TYPE $ETCD_WATCH_KEY $ETCD_WATCH_VALUE $ETCD_WATCH_REVISION";
    let watching = ctl.start(&["watch", "exec", "--rev", &next.to_string(), "--", "sh", "-c", show]);
    ctl.run(&["put", "exec", "1"]);
    assert_eq!(watching.lines(4), ["PUT", "exec", "1", &format!("\"PUT\" \"exec\" \"1\" {next}")]);
}

/// The id of a new lease of 300 seconds.
fn grant(ctl: &Ctl) -> String {
    let granted = ctl.run(&["lease", "grant", "300"]);
    assert!(granted.ends_with("granted with TTL(300s)\n"), "{granted}");
    granted.split_whitespace().nth(1).unwrap().to_owned()
}

fn lease(_: &Server, ctl: &Ctl) {
    let lease = grant(ctl);
    assert_eq!(ctl.run(&["put", "--lease", &lease, "leased", "v"]), "OK\n");
    assert!(ctl.run(&["lease", "timetolive", &lease, "--keys"]).contains("attached keys([leased])"));
    assert!(ctl.run(&["lease", "timetolive", &lease, "-w", "json"]).contains("\"granted-ttl\":300"));
    assert!(ctl.run(&["lease", "keep-alive", "--once", &lease]).contains("keepalived with TTL(300)"));
    assert!(ctl.run(&["lease", "list"]).contains(&lease));
    assert_eq!(ctl.run(&["lease", "revoke", &lease]), format!("lease {lease} revoked\n"));
    assert_eq!(ctl.run(&["get", "leased"]), "");
    assert!(ctl.run(&["lease", "timetolive", &lease]).contains("already expired"));
    assert!(ctl.fail(&["lease", "revoke", &lease]).contains("etcdserver: requested lease not found"));
}

fn keep_alive(_: &Server, ctl: &Ctl) {
    let granted = ctl.run(&["lease", "grant", "2"]);
    let lease = granted.split_whitespace().nth(1).unwrap();
    let kept = ctl.start(&["lease", "keep-alive", lease]);
    assert_eq!(kept.lines(3), vec![format!("lease {lease} keepalived with TTL(2)"); 3]);
    ctl.run(&["lease", "revoke", lease]);
    let line = |_| kept.lines(1).remove(0);
    let last = (0..10).map(line).find(|line| !line.contains("keepalived"));
    assert_eq!(last.unwrap(), format!("lease {lease} expired or revoked."));
}

fn lock_command(_: &Server, ctl: &Ctl) {
    let held = ctl.run(&["lock", "lock/a", "--", "sh", "-c", "echo $ETCD_LOCK_KEY $ETCD_LOCK_REV"]);
    assert!(held.starts_with("lock/a/"), "{held}");
    assert_eq!(held.trim_end().split(' ').nth(1).unwrap(), (revision(ctl) - 1).to_string());
    assert_eq!(ctl.run(&["get", "--prefix", "lock/a"]), "");
    let failing = ctl.command(&["lock", "lock/a", "--", "sh", "-c", "exit 3"]).output().unwrap();
    assert!(!failing.status.success(), "its command failed");
    assert_eq!(ctl.run(&["get", "--prefix", "lock/a"]), "");
}

/// Waits until so many keys are there: stand in line, have been copied.
fn wait_for(ctl: &Ctl, prefix: &str, count: usize) {
    let limit = Instant::now() + PATIENCE;
    while ctl.run(&["get", "--prefix", prefix, "--keys-only"]).split_whitespace().count() != count {
        assert!(Instant::now() < limit, "there are not {count} keys at {prefix}");
    }
}

fn lock(_: &Server, ctl: &Ctl) {
    let first = ctl.start(&["lock", "lock/b"]);
    let key = first.lines(1).remove(0);
    assert!(key.starts_with("lock/b/"), "{key}");
    let second = ctl.start(&["lock", "lock/b"]);
    wait_for(ctl, "lock/b/", 2);
    assert!(second.is_quiet());
    first.interrupt();
    let next = second.lines(1).remove(0);
    assert!(next.starts_with("lock/b/") && next != key, "{next}");
    second.interrupt();
    assert_eq!(ctl.run(&["get", "--prefix", "lock/b/"]), "");
}

fn elect(_: &Server, ctl: &Ctl) {
    let leader = ctl.start(&["elect", "elect", "first"]);
    let told = leader.lines(2);
    assert_eq!(told[1], "first");
    let listener = ctl.start(&["elect", "--listen", "elect"]);
    assert_eq!(listener.lines(2), told);
    let follower = ctl.start(&["elect", "elect", "second"]);
    wait_for(ctl, "elect/", 2);
    assert!(follower.is_quiet());
    leader.interrupt();
    assert_eq!(follower.lines(2)[1], "second");
    assert_eq!(listener.lines(2)[1], "second");
    listener.interrupt();
    follower.interrupt();
}

fn compaction(_: &Server, ctl: &Ctl) {
    let now = revision(ctl).to_string();
    ctl.run(&["put", "compacted", "1"]);
    assert_eq!(ctl.run(&["compaction", &now, "--physical"]), format!("compacted revision {now}\n"));
    let compacted = "etcdserver: mvcc: required revision has been compacted";
    assert!(ctl.fail(&["get", "compacted", "--rev", "1"]).contains(compacted));
    assert!(ctl.fail(&["compaction", &now]).contains(compacted));
    assert!(ctl.fail(&["compaction", "99999"]).contains("mvcc: required revision is a future revision"));
    // A watcher from before ends.
    let behind = ctl.command(&["watch", "compacted", "--rev", "1"]).stdin(Stdio::null()).output().unwrap();
    assert!(text(&behind.stderr).contains("required revision has been compacted"));
}

fn endpoint(server: &Server, ctl: &Ctl) {
    let healthy = ctl.command(&["endpoint", "health"]).output().unwrap();
    assert!(healthy.status.success());
    assert!(text(&[healthy.stdout, healthy.stderr].concat()).contains("is healthy"));
    assert!(ctl.run(&["endpoint", "health", "-w", "json"]).contains("\"health\":true"));
    assert!(ctl.run(&["endpoint", "health", "--cluster", "-w", "json"]).contains("\"health\":true"));
    let status = ctl.run(&["endpoint", "status", "-w", "json"]);
    for field in ["dbSize", "leader", "raftIndex", "raftTerm", "version"] {
        assert!(status.contains(&format!("\"{field}\":")), "{status}");
    }
    assert_eq!(header_revision(&status), revision(ctl));
    assert!(ctl.run(&["endpoint", "status", "-w", "table"]).contains(" IS LEADER "));
    assert!(ctl.run(&["endpoint", "status", "-w", "fields"]).contains("\"IsLearner\" : false"));
    let simple = ctl.run(&["endpoint", "status"]);
    assert_eq!(simple.split(", ").nth(4), Some("true"), "it leads: {simple}");
    let hash = || ctl.run(&["endpoint", "hashkv"]);
    let before = hash();
    assert!(before.starts_with(&server.address()), "{before}");
    assert_eq!(hash(), before);
    ctl.run(&["put", "hashed", "1"]);
    assert_ne!(hash(), before);
}

fn member_list(server: &Server, ctl: &Ctl) {
    let list = ctl.run(&["member", "list"]);
    let fields: Vec<&str> = list.trim_end().split(", ").collect();
    assert_eq!(
        (fields.len(), fields[1], fields[2], fields[4], fields[5]),
        (6, "started", "default", &*server.url(), "false")
    );
    assert!(ctl.run(&["member", "list", "-w", "table"]).contains(" CLIENT ADDRS "));
    assert!(ctl.run(&["member", "list", "-w", "fields"]).contains("\"Name\" : \"default\""));
    assert!(ctl.run(&["member", "list", "-w", "json"]).contains("\"clientURLs\":["));
}

fn move_leader(_: &Server, ctl: &Ctl) {
    let list = ctl.run(&["member", "list"]);
    let id = list.split(',').next().unwrap();
    assert_eq!(ctl.run(&["move-leader", id]), format!("Leadership transferred from {id} to {id}\n"));
    assert!(ctl.fail(&["move-leader", "1234"]).contains("etcdserver: bad leader transferee"));
}

/// Raising one takes a full server: `a_quota_that_is_used_up_raises_an_alarm_and_can_be_freed`.
fn alarm(_: &Server, ctl: &Ctl) {
    assert_eq!(ctl.run(&["alarm", "list"]), "");
    assert_eq!(ctl.run(&["alarm", "disarm"]), "");
}

fn snapshot(server: &Server, ctl: &Ctl) {
    let file = server.scratch().join("saved");
    let said = ctl.run(&["snapshot", "save", file.to_str().unwrap()]);
    assert!(said.contains("Snapshot saved at"), "{said}");
    // Whole sectors, and a hash.
    assert_eq!(file.metadata().unwrap().len() % 512, 32);
}

fn make_mirror(_: &Server, ctl: &Ctl) {
    let other = Server::start();
    let there = Ctl::new(other.address());
    ctl.run(&["put", "from/a", "1"]);
    let mirroring = ctl.start(&["make-mirror", "--prefix", "from/", "--dest-prefix", "to/", &other.address()]);
    wait_for(&there, "to/", 1);
    ctl.run(&["put", "from/b", "2"]);
    wait_for(&there, "to/", 2);
    assert_eq!(there.run(&["get", "--prefix", "to/"]), "to/a\n1\nto/b\n2\n");
    ctl.run(&["del", "from/a"]);
    wait_for(&there, "to/a", 0);
    drop(mirroring);
}

/// As URLs are given, some commands of etcdctl 3.4 send the whole of them as the request's authority.
fn urls(server: &Server, _: &Ctl) {
    let ctl = Ctl::new(server.url());
    for step in [formats, watch, lease, endpoint_by_url, member_list, move_leader, snapshot] {
        step(server, &ctl);
    }
    assert!(ctl.run(&["defrag"]).contains("Finished defragmenting"));
}

fn endpoint_by_url(server: &Server, ctl: &Ctl) {
    assert!(ctl.run(&["endpoint", "status"]).starts_with(&server.url()));
    assert!(ctl.run(&["endpoint", "hashkv"]).starts_with(&server.url()));
    assert!(ctl.run(&["endpoint", "health", "-w", "json"]).contains("\"health\":true"));
}
