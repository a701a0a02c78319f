//! Probes, versions and who may ask, each answer beside a real etcd's where there is one.
#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]

mod common;
#[path = "common/http.rs"]
mod web;
#[path = "common/reference.rs"]
mod reference;

use common::{Served, free_port};
use polybolt_frontend::proto::etcdserverpb as pb;
use reference::Etcd;
use std::collections::BTreeSet;
use web::{Answer, ask, get};

async fn alarm(url: String, action: i32, alarm: pb::AlarmType) {
    let mut client = pb::maintenance_client::MaintenanceClient::connect(url).await.unwrap();
    client.alarm(pb::AlarmRequest { action, member_id: 7, alarm: alarm.into() }).await.unwrap();
}

/// Lines in any order; of variables and versions, the names.
fn body(path: &str, answer: &Answer) -> Vec<String> {
    match path.split('?').next().unwrap() {
        "/version" if answer.status == 200 => answer.json().as_object().unwrap().keys().cloned().collect(),
        "/debug/vars" if answer.status == 200 => answer.json().as_object().unwrap().keys().cloned().collect(),
        "/metrics" => Vec::new(),
        _ => {
            let mut lines: Vec<String> = answer.body.split('\n').map(str::to_owned).collect();
            lines.sort();
            lines
        }
    }
}

/// Where an answer may differ from an etcd's, and why.
fn may_differ(version: (u32, u32), path: &str) -> Option<&'static str> {
    match path.split('?').next().unwrap() {
        path if version < (3, 5) && path.starts_with("/livez") => Some("3.4.23 has no /livez"),
        path if version < (3, 5) && path.starts_with("/readyz") => Some("3.4.23 has no /readyz"),
        "/health" if version < (3, 5) => Some("3.4 gives no reason"),
        "/version" if version < (3, 6) => Some("3.6 tells the version of what is stored"),
        "/debug/vars" => Some("there are no statistics of Go's memory"),
        _ => None,
    }
}

#[tokio::test]
async fn probes_answer_as_etcd_does_http_1_to_4() {
    let dirs = tempfile::tempdir().unwrap();
    let ours = Served::start(&dirs.path().join("ours"), &[]);
    let programs = reference::programs();
    let mut used = BTreeSet::new();
    let paths = [
        "/health",
        "/health?serializable=true",
        "/health?serializable=false",
        "/health?exclude=NOSPACE",
        "/health?exclude=CORRUPT",
        "/health?exclude=NOSPACE&exclude=CORRUPT",
        "/health?exclude=",
        "/health?exclude=NO%53PACE",
        "/health/",
        "/livez",
        "/livez?verbose",
        "/livez?verbose=1&exclude=serializable_read",
        "/livez/serializable_read?verbose",
        "/livez/linearizable_read",
        "/livez/",
        "/readyz",
        "/readyz?verbose",
        "/readyz?verbose&exclude=data_corruption&exclude=no_such&exclude=non_learner",
        "/readyz/data_corruption",
        "/readyz/serializable_read?verbose",
        "/readyz/linearizable_read",
        "/readyz/non_learner",
        "/readyz/no_such",
        "/version",
        "/metrics",
        "/debug/vars",
        "/",
        "/no_such",
    ];
    for (number, program) in programs.iter().enumerate() {
        let etcd = Etcd::start(program, &dirs.path().join(format!("etcd{number}")), &[]);
        // Healthy, then with each alarm; of both an etcd tells either.
        let (nospace, corrupt) = (pb::AlarmType::Nospace, pb::AlarmType::Corrupt);
        for (action, kind) in [(0, nospace), (1, nospace), (2, nospace), (1, corrupt), (2, corrupt)] {
            alarm(ours.url(), action, kind).await;
            alarm(etcd.url(), action, kind).await;
            for path in paths {
                for method in ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"] {
                    let (one, other) =
                        (ask(ours.port, method, path, &[], "").await, ask(etcd.port, method, path, &[], "").await);
                    if let Some(why) = may_differ(etcd.version, path) {
                        used.insert(why);
                        // The status is the same where the path is there.
                        assert!(one.status == other.status || other.status == 404, "{method} {path}");
                        continue;
                    }
                    let what = format!("{method} {path}: {one:?}, {program}: {other:?}");
                    assert_eq!(one.status, other.status, "{what}");
                    assert_eq!(body(path, &one), body(path, &other), "{what}");
                    for header in ["allow", "x-content-type-options", "access-control-allow-origin"] {
                        assert_eq!(one.header(header), other.header(header), "{what}");
                    }
                    let kind = |answer: &Answer| answer.header("content-type").split(';').next().unwrap().to_owned();
                    assert_eq!(kind(&one), kind(&other), "{what}");
                }
            }
        }
    }
    println!("differences used: {used:?}");
}

#[tokio::test]
async fn the_whole_forms_http_1_to_4() {
    let dir = tempfile::tempdir().unwrap();
    let metrics = free_port();
    let served = Served::start(dir.path(), &["--listen-metrics-urls", &format!("http://127.0.0.1:{metrics}")]);
    let health = get(served.port, "/health").await;
    assert_eq!((health.status, health.body.as_str()), (200, r#"{"health":"true","reason":""}"#));
    assert_eq!(health.header("content-type"), "text/plain; charset=utf-8");
    alarm(served.url(), 1, pb::AlarmType::Nospace).await;
    let health = get(served.port, "/health").await;
    assert_eq!((health.status, health.body.trim_end()), (503, r#"{"health":"false","reason":"ALARM NOSPACE"}"#));
    assert_eq!(get(served.port, "/health?exclude=NOSPACE").await.status, 200);
    assert_eq!(get(served.port, "/readyz").await.body, "ok\n");
    alarm(served.url(), 1, pb::AlarmType::Corrupt).await;
    let ready = get(served.port, "/readyz").await;
    let lines = "[-]data_corruption failed: alarm activated: CORRUPT\n[+]serializable_read ok\n\
                 [+]linearizable_read ok\n[+]non_learner ok\n\n";
    assert_eq!((ready.status, ready.body.as_str()), (503, lines));
    assert_eq!(get(served.port, "/livez?verbose").await.body, "[+]serializable_read ok\nok\n");
    let posted = ask(served.port, "POST", "/health", &[], "").await;
    assert_eq!((posted.status, posted.header("allow")), (405, "GET"));
    let version = get(served.port, "/version").await;
    assert_eq!(version.header("content-type"), "application/json");
    let version = version.json();
    assert_eq!((&version["etcdcluster"], &version["storage"]), (&"3.6.0".into(), &"3.6.0".into()));
    assert!(version["etcdserver"].as_str().unwrap().starts_with("3.6."));
    let variables = get(served.port, "/debug/vars").await;
    assert_eq!(variables.header("content-type"), "application/json; charset=utf-8");
    let variables = variables.json();
    assert!(variables["cmdline"].as_array().unwrap().iter().any(|part| part == "serve"));
    assert!(variables["file_descriptor_limit"].as_u64().unwrap() > 0);
    assert_eq!(variables["raft.status"]["raftState"], "StateLeader");
    // The listener for metrics: the probes, and nothing else.
    for (path, status) in [
        ("/metrics", 200),
        ("/health?exclude=NOSPACE&exclude=CORRUPT", 200),
        ("/livez", 200),
        ("/readyz/non_learner", 200),
        ("/version", 404),
        ("/debug/vars", 404),
        ("/v3/kv/range", 404),
    ] {
        assert_eq!(get(metrics, path).await.status, status, "{path}");
    }
    let channel = pb::kv_client::KvClient::connect(format!("http://127.0.0.1:{metrics}")).await;
    assert!(channel.unwrap().range(pb::RangeRequest { key: "a".into(), ..Default::default() }).await.is_err());
}

#[tokio::test]
async fn origins_and_hosts_http_5() {
    let dirs = tempfile::tempdir().unwrap();
    let flags = ["--cors", "http://a.example:80,http://b.example:8080", "--host-whitelist", "good.example,127.0.0.1"];
    let mut ports = vec![];
    let ours = Served::start(&dirs.path().join("ours"), &flags);
    ports.push(ours.port);
    let mut etcds = Vec::new();
    for (number, program) in reference::programs().iter().enumerate() {
        etcds.push(Etcd::start(program, &dirs.path().join(format!("etcd{number}")), &flags));
    }
    ports.extend(etcds.iter().map(|etcd| etcd.port));
    for port in ports {
        for (host, allowed) in [
            ("good.example", true),
            ("good.example:99", true),
            ("127.0.0.1", true),
            ("bad.example", false),
            ("", false),
        ] {
            for (origin, shared) in [
                ("http://a.example:80", true),
                ("http://b.example:8080", true),
                ("http://a.example", false),
                ("http://c.example:80", false),
            ] {
                for method in ["GET", "OPTIONS"] {
                    let answer = ask(port, method, "/version", &[("Host", host), ("Origin", origin)], "").await;
                    assert_eq!(answer.status, if allowed { 200 } else { 421 }, "{host} {origin}");
                    let shown = if allowed && shared { origin } else { "" };
                    assert_eq!(answer.header("access-control-allow-origin"), shown, "{host} {origin}");
                    let methods = if shown.is_empty() { "" } else { "POST, GET, OPTIONS, PUT, DELETE" };
                    assert_eq!(answer.header("access-control-allow-methods"), methods);
                    assert!(allowed || answer.body.contains("--host-whitelist"), "{}", answer.body);
                }
            }
        }
    }
    // By default anybody.
    let open = Served::start(&dirs.path().join("open"), &[]);
    let answer = ask(open.port, "GET", "/health", &[("Host", "any"), ("Origin", "http://any")], "").await;
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (200, "*"));
}
