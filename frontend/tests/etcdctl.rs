//! A stock `etcdctl` drives the server through everything that it can ask for.
#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]

mod common;

use common::{Served, has_program, polybolt, succeed, text};
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

struct Ctl {
    port: u16,
}

impl Ctl {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").arg("--endpoints").arg(format!("127.0.0.1:{}", self.port)).args(arguments);
        command
    }

    fn run(&self, arguments: &[&str]) -> String {
        succeed(&mut self.command(arguments))
    }

    fn fail(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().unwrap();
        assert!(!output.status.success());
        text(&output.stderr)
    }

    fn txn(&self, script: &str) -> String {
        let mut child = self.command(&["txn"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        text(&output.stdout)
    }

    /// What a watch prints, up to as much as is expected of it.
    fn watch(&self, arguments: &[&str], expected: &str) -> String {
        let mut child = self.command(arguments).stdout(Stdio::piped()).spawn().unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let (sender, receiver) = std::sync::mpsc::channel();
        let length = expected.len();
        std::thread::spawn(move || {
            let mut printed = vec![0; length];
            drop(sender.send(stdout.read_exact(&mut printed).map(|()| text(&printed))));
        });
        let printed = receiver.recv_timeout(Duration::from_secs(30));
        drop(child.kill());
        drop(child.wait());
        printed.expect("the watch prints in time").unwrap()
    }
}

/// The revision in the header of a JSON answer.
fn header_revision(json: &str) -> i64 {
    json.split("\"revision\":").nth(1).unwrap().split(',').next().unwrap().parse().unwrap()
}

#[test]
fn etcdctl_drives_everything() {
    if !has_program("etcdctl") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let served = Served::start(&dir.path().join("data"), &[]);
    let ctl = Ctl { port: served.port };
    let run = |arguments: &[&str]| ctl.run(arguments);

    // put and get, every way
    for (key, value) in
        [("/registry/pods/b", "2"), ("/registry/pods/a", "1"), ("/registry/pods/c", "0"), ("zz", "last")]
    {
        assert_eq!(run(&["put", key, value]), "OK\n");
    }
    assert_eq!(run(&["put", "zz", "new", "--prev-kv"]), "OK\nzz\nlast\n");
    assert_eq!(run(&["get", "zz"]), "zz\nnew\n");
    assert_eq!(
        run(&["get", "--prefix", "/registry/pods/", "--keys-only"]).replace("\n\n", "\n"),
        "/registry/pods/a\n/registry/pods/b\n/registry/pods/c\n"
    );
    assert_eq!(run(&["get", "--from-key", "/registry/pods/c", "--print-value-only"]), "0\nnew\n");
    assert_eq!(run(&["get", "--prefix", "/registry/", "--limit", "2", "--print-value-only"]), "1\n2\n");
    assert_eq!(
        run(&["get", "--prefix", "/registry/", "--sort-by", "VALUE", "--order", "DESCEND", "--print-value-only"]),
        "2\n1\n0\n"
    );
    assert_eq!(run(&["get", "zz", "--rev", "5", "--print-value-only"]), "last\n");
    // etcdctl 3.4 has no --count-only; the count is the same whatever the limit.
    assert!(run(&["get", "--prefix", "/registry/", "--limit", "1", "-w", "fields"]).contains("\"Count\" : 3"));

    // del and txn
    assert_eq!(run(&["del", "/registry/pods/c", "--prev-kv"]), "1\n/registry/pods/c\n0\n");
    let done = ctl.txn("value(\"zz\") = \"new\"\n\nput /registry/leases/x 1\nget zz\n\nput no no\n\n");
    assert!(done.starts_with("SUCCESS\n"), "{done}");
    assert!(done.ends_with("zz\nnew\n"), "{done}");
    assert!(ctl.txn("mod(\"zz\") = \"1\"\n\nput no no\n\nget zz\n\n").starts_with("FAILURE\n"));

    // watch: from an old revision, a prefix, the version before
    let old = "PUT\n/registry/pods/a\n1\nPUT\n/registry/pods/c\n0\nDELETE\n/registry/pods/c\n\n";
    assert_eq!(ctl.watch(&["watch", "--rev", "3", "--prefix", "/registry/pods/"], old), old);
    let next = header_revision(&run(&["get", "zz", "-w", "json"])) + 1;
    let live = "PUT\nzz\nnew\nzz\nnewer\n";
    std::thread::scope(|scope| {
        let watching =
            scope.spawn(|| ctl.watch(&["watch", "--rev", &next.to_string(), "--prefix", "z", "--prev-kv"], live));
        run(&["put", "zz", "newer"]);
        assert_eq!(watching.join().unwrap(), live);
    });

    // leases
    let granted = run(&["lease", "grant", "300"]);
    let lease = granted.split_whitespace().nth(1).unwrap().to_owned();
    assert_eq!(run(&["put", "--lease", &lease, "leased", "v"]), "OK\n");
    assert!(run(&["lease", "timetolive", &lease, "--keys"]).contains("attached keys([leased])"));
    assert!(run(&["lease", "keep-alive", "--once", &lease]).contains("keepalived with TTL(300)"));
    assert!(run(&["lease", "list"]).contains(&lease));
    assert!(run(&["lease", "revoke", &lease]).contains("revoked"));
    assert_eq!(run(&["get", "leased"]), "");

    // maintenance
    assert!(run(&["compaction", "5", "--physical"]).contains("compacted revision 5"));
    assert!(ctl.fail(&["get", "zz", "--rev", "4"]).contains("etcdserver: mvcc: required revision has been compacted"));
    assert!(run(&["defrag"]).contains("Finished defragmenting"));
    assert!(run(&["endpoint", "status", "-w", "json"]).contains("\"dbSize\""));
    drop(run(&["endpoint", "health"]));
    assert!(run(&["endpoint", "hashkv"]).contains(&served.port.to_string()));
    assert!(run(&["member", "list"]).contains("started, default"));
    assert_eq!(run(&["alarm", "list"]), "");
    assert!(ctl.fail(&["auth", "enable"]).contains("root user does not exist"));

    // a snapshot makes a server of its own
    let file = dir.path().join("snapshot");
    run(&["snapshot", "save", file.to_str().unwrap()]);
    run(&["put", "after", "it"]);
    let restored = dir.path().join("restored");
    succeed(polybolt().args(["snapshot", "restore"]).arg(&file).arg("--data-dir").arg(&restored));
    let again = Served::start(&restored, &[]);
    let second = Ctl { port: again.port };
    assert_eq!(second.run(&["get", "zz", "--print-value-only"]), "newer\n");
    assert_eq!(second.run(&["get", "after"]), "");
    assert_eq!(
        second.run(&["get", "--prefix", "/", "-w", "json"]).split("\"kvs\"").nth(1),
        ctl.run(&["get", "--prefix", "/", "-w", "json"]).split("\"kvs\"").nth(1)
    );

    // the shards, online and offline
    let online = succeed(polybolt().args(["status", "--endpoint", &served.url()]));
    for shard in ["events", "leases", "pods", "nodes", "config", "default"] {
        assert!(online.contains(&format!("default.{shard}.")), "{online}");
    }
    assert!(served.stop());
    let offline = succeed(polybolt().arg("status").arg("--data-dir").arg(dir.path().join("data")));
    assert!(offline.contains("default.pods."), "{offline}");
    assert!(succeed(polybolt().arg("verify").arg("--data-dir").arg(dir.path().join("data"))).contains("sound"));
}

#[test]
fn a_quota_that_is_used_up_raises_an_alarm_and_can_be_freed() {
    if !has_program("etcdctl") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let served = Served::start(dir.path(), &["--quota-backend-bytes", "3000000"]);
    let ctl = Ctl { port: served.port };
    let value = "v".repeat(60_000);
    let mut refused = None;
    for n in 0..2000 {
        let output = ctl.command(&["put", &format!("/registry/pods/{}", n % 10), &value]).output().unwrap();
        if !output.status.success() {
            refused = Some(text(&output.stderr));
            break;
        }
    }
    assert!(refused.unwrap().contains("etcdserver: mvcc: database space exceeded"));
    assert!(ctl.run(&["alarm", "list"]).contains("alarm:NOSPACE"));
    // Reads and deletes work, and so does what makes room.
    assert!(!ctl.run(&["get", "/registry/pods/1"]).is_empty());
    assert_eq!(ctl.run(&["del", "--prefix", "/registry/pods/"]), "10\n");
    let status = ctl.run(&["endpoint", "status", "-w", "json"]);
    ctl.run(&["compaction", &header_revision(&status).to_string(), "--physical"]);
    ctl.run(&["defrag"]);
    ctl.run(&["alarm", "disarm"]);
    assert_eq!(ctl.run(&["put", "again", "1"]), "OK\n");
    // The alarm is gone after a restart too.
    assert!(served.stop());
    let served = Served::start(dir.path(), &["--quota-backend-bytes", "3000000"]);
    assert_eq!(Ctl { port: served.port }.run(&["alarm", "list"]), "");
}
