//! A stock `etcdctl` and the command itself, in turns. What else `etcdctl` is asked to do is in `clients`.
#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]

mod common;

use common::ctl::{Ctl, header_revision};
use common::{Served, has_program, polybolt, succeed, text};

#[test]
fn a_snapshot_makes_a_server_of_its_own() {
    if !has_program("etcdctl") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let served = Served::start(&dir.path().join("data"), &[]);
    let ctl = Ctl::new(served.url());
    for (key, value) in [("/registry/pods/a", "1"), ("/registry/leases/b", "2"), ("zz", "old"), ("zz", "newer")] {
        ctl.run(&["put", key, value]);
    }
    ctl.run(&["del", "/registry/pods/a"]);
    let file = dir.path().join("snapshot");
    ctl.run(&["snapshot", "save", file.to_str().unwrap()]);
    ctl.run(&["put", "after", "it"]);
    let restored = dir.path().join("restored");
    succeed(polybolt().args(["snapshot", "restore"]).arg(&file).arg("--data-dir").arg(&restored));
    let again = Served::start(&restored, &[]);
    let second = Ctl::new(again.url());
    assert_eq!(second.run(&["get", "zz", "--print-value-only"]), "newer\n");
    assert_eq!(second.run(&["get", "after"]), "");
    assert_eq!(
        second.run(&["get", "--prefix", "/", "-w", "json"]).split("\"kvs\"").nth(1),
        ctl.run(&["get", "--prefix", "/", "-w", "json"]).split("\"kvs\"").nth(1)
    );
}

#[test]
fn the_shards_are_shown_online_and_offline() {
    let dir = tempfile::tempdir().unwrap();
    let served = Served::start(&dir.path().join("data"), &[]);
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
    let ctl = Ctl::new(served.url());
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
    assert_eq!(Ctl::new(served.url()).run(&["alarm", "list"]), "");
}
