//! `polybolt bench` against a served polybolt, and against a real etcd: what it says it did is what the server
//! says was done.
#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]

mod common;

use common::{Served, free_port, has_program, polybolt, succeed, text};
use polybolt_frontend::proto::etcdserverpb as pb;
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// The server's revision, and how many keys begin with a prefix.
fn asked(url: &str, prefix: &str) -> (i64, i64) {
    runtime().block_on(async {
        let mut kv = pb::kv_client::KvClient::connect(url.to_owned()).await.unwrap();
        let mut end = prefix.as_bytes().to_vec();
        *end.last_mut().unwrap() += 1;
        let request = pb::RangeRequest {
            key: prefix.to_owned().into(),
            range_end: end.into(),
            count_only: true,
            ..Default::default()
        };
        let answer = kv.range(request).await.unwrap().into_inner();
        (answer.header.unwrap().revision, answer.count)
    })
}

fn bench(url: &str, json: &Path, arguments: &str) -> Command {
    let mut command = polybolt();
    command.arg("bench").args(arguments.split_whitespace()).args(["--endpoints", url]).arg("--json").arg(json);
    command
}

/// A load of some server, and what the server's revision moved by.
struct Ran {
    json: Value,
    revisions: i64,
}

impl Ran {
    fn new(url: &str, arguments: &str) -> Ran {
        let json = tempfile::NamedTempFile::new().unwrap();
        let (before, _) = asked(url, "/");
        let printed = succeed(&mut bench(url, json.path(), arguments));
        println!("{printed}");
        let json: Value = serde_json::from_slice(&std::fs::read(json.path()).unwrap()).unwrap();
        assert!(printed.starts_with(json["options"]["load"]["name"].as_str().unwrap()), "{printed}");
        let ran = Ran { json, revisions: asked(url, "/").0 - before };
        assert_eq!((ran.number("/failed"), ran.number("/unsent")), (0, 0));
        assert_eq!(ran.json["errors"].as_object().unwrap().len(), 0);
        ran
    }

    fn number(&self, pointer: &str) -> i64 {
        self.json.pointer(pointer).and_then(Value::as_i64).unwrap_or(0)
    }

    fn count(&self, operation: &str) -> i64 {
        self.number(&format!("/operations/{operation}/count"))
    }
}

fn every_load(url: &str) {
    let ran =
        Ran::new(url, "put --total 200 --clients 8 --conns 2 --sequential-keys --key-space-size 50 --prefix /put/");
    assert_eq!((ran.number("/requests"), ran.count("put"), ran.revisions), (200, 200, 200));
    assert_eq!(asked(url, "/put/").1, 50);
    let latency = |name: &str| ran.json["latency"][name].as_f64().unwrap();
    let order = ["min", "p50", "p90", "p99", "p999", "max"].map(latency);
    assert!(order.is_sorted() && order[0] > 0.0, "{order:?}");

    let overwrite = "overwrite --total 100 --clients 4 --key-space-size 60 --prefix /over/";
    let ran = Ran::new(url, overwrite);
    assert_eq!((ran.number("/filled"), ran.count("put"), ran.revisions), (60, 100, 160));
    let again = Ran::new(url, overwrite);
    assert_eq!((again.number("/filled"), again.revisions, asked(url, "/over/").1), (0, 100, 60));

    for consistency in ["l", "s"] {
        let range =
            format!("range --consistency {consistency} --total 100 --clients 4 --key-space-size 60 --prefix /over/");
        let ran = Ran::new(url, &range);
        assert_eq!((ran.count("get"), ran.number("/filled"), ran.revisions), (100, 0, 0));
        assert_eq!(ran.json["options"]["load"]["serializable"], consistency == "s");
    }
    // Whole groups of keys only: 90 of 100.
    let ran = Ran::new(url, "list --list-keys 30 --total 40 --clients 3 --key-space-size 100 --prefix /list/");
    assert_eq!((ran.count("list"), ran.number("/filled"), ran.revisions), (40, 90, 90));
    assert_eq!(asked(url, "/list/").1, 90);

    let limited = "list --list-keys 30 --limit 7 --total 40 --clients 3 --key-space-size 100 --prefix /list/";
    assert_eq!(Ran::new(url, limited).count("list"), 40);

    let ran = Ran::new(url, "txn --total 100 --key-space-size 20 --prefix /txn/");
    assert_eq!((ran.count("update"), ran.number("/conflicts"), ran.revisions), (100, 0, 120));
    // Many clients on few keys are in each other's way, and no more is written than they say.
    let ran = Ran::new(url, "txn --total 300 --clients 16 --conns 4 --key-space-size 20 --prefix /txn/");
    assert_eq!((ran.count("update"), ran.revisions), (300, 300 - ran.number("/conflicts")));

    let ran = Ran::new(url, "watch --streams 2 --watch-per-stream 3 --total 50 --clients 4 --conns 2 --prefix /watch/");
    assert_eq!((ran.count("put"), ran.revisions), (50, 50));
    assert_eq!((ran.number("/watch/watchers"), ran.number("/watch/events")), (6, 300));
    assert_eq!((ran.number("/watch/missing"), ran.number("/watch/disorder")), (0, 0));
    assert_eq!(ran.number("/watch/latency/count"), 300);

    let ran =
        Ran::new(url, "mixed --list-keys 10 --total 600 --clients 6 --conns 3 --key-space-size 100 --prefix /mixed/");
    let operations = ["get", "list", "update", "create", "delete"].map(|name| ran.count(name));
    let [_, _, updates, creates, deletes] = operations;
    assert!(operations.iter().all(|count| *count > 0), "{operations:?}");
    assert_eq!(operations.iter().sum::<i64>(), 600);
    let (updated, kept) = (updates - ran.number("/conflicts"), ran.number("/kept"));
    assert_eq!(ran.revisions, 100 + updated + creates + deletes);
    assert_eq!((kept, asked(url, "/mixed/").1), (creates - deletes, 100 + kept));
    assert_eq!((ran.number("/watch/watchers"), ran.number("/watch/missing")), (4, 0));
    assert_eq!(ran.number("/watch/events"), 4 * (updated + creates));
}

#[test]
fn the_server_did_what_the_report_says() {
    let dir = tempfile::tempdir().unwrap();
    every_load(&Served::start(&dir.path().join("data"), &[]).url());
}

#[test]
fn a_real_etcd_did_what_the_report_says() {
    if has_program("etcd") {
        let dir = tempfile::tempdir().unwrap();
        every_load(&Served::etcd("etcd", &dir.path().join("data"), free_port(), &[]).url());
    }
}

#[test]
fn a_warmup_does_not_count_and_a_duration_ends_a_run() {
    let dir = tempfile::tempdir().unwrap();
    let served = Served::start(&dir.path().join("data"), &[]);
    let ran = Ran::new(&served.url(), "put --warmup 200ms --duration 300ms --clients 2");
    assert_eq!(ran.number("/requests") + ran.number("/warmup_requests"), ran.revisions);
    assert!(ran.number("/options/total") == 0 && ran.number("/requests") > 0);
    // At a rate both are counts: 40 turns before 200 ms, 60 until 500 ms.
    let ran = Ran::new(&served.url(), "put --warmup 200ms --duration 300ms --clients 2 --rate 200");
    assert_eq!((ran.number("/warmup_requests"), ran.number("/requests"), ran.revisions), (40, 60, 100));
}

/// The last of 60 requests at 200 a second is due after 295 ms, and cannot be answered before.
#[test]
fn a_rate_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let served = Served::start(&dir.path().join("data"), &[]);
    let ran = Ran::new(&served.url(), "put --rate 200 --total 60 --clients 10 --conns 2");
    assert_eq!((ran.count("put"), ran.revisions, ran.number("/options/rate")), (60, 60, 200));
    assert!(ran.json["seconds"].as_f64().unwrap() >= 0.295, "{}", ran.json);
}

fn signal(served: &Served, name: &str) {
    succeed(Command::new("kill").arg(name).arg(served.pid().to_string()));
}

/// Four clients have one request each under way while a server stands still. All others that are due meanwhile
/// wait too, which is what their users would see: a hundredth of all requests is far more than four.
#[test]
fn a_server_that_stalls_does_not_hide_it() {
    let dir = tempfile::tempdir().unwrap();
    let served = Served::start(&dir.path().join("data"), &[]);
    let json = tempfile::NamedTempFile::new().unwrap();
    let arguments = "put --rate 500 --duration 4s --clients 4";
    let child = bench(&served.url(), json.path(), arguments).stdout(std::process::Stdio::null()).spawn().unwrap();
    while asked(&served.url(), "/").0 < 50 {
        std::thread::sleep(Duration::from_millis(5));
    }
    signal(&served, "-STOP");
    std::thread::sleep(Duration::from_millis(600));
    signal(&served, "-CONT");
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let json: Value = serde_json::from_slice(&std::fs::read(json.path()).unwrap()).unwrap();
    assert_eq!(json["requests"], 2000);
    // 250 requests are due in the first 500 ms of the stall, and wait for 100 ms or more.
    assert!(json["latency"]["p90"].as_f64().unwrap() >= 100_000.0, "{json}");
}

#[test]
fn a_server_that_goes_away_is_counted_by_code() {
    let dir = tempfile::tempdir().unwrap();
    let served = Served::start(&dir.path().join("data"), &[]);
    let (url, json) = (served.url(), tempfile::NamedTempFile::new().unwrap());
    let mut command = bench(&url, json.path(), "put --rate 200 --total 400 --clients 4");
    let child = command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap();
    while asked(&url, "/").0 < 20 {
        std::thread::sleep(Duration::from_millis(5));
    }
    served.kill();
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    assert_eq!(status.code(), Some(1));
    let json: Value = serde_json::from_slice(&std::fs::read(json.path()).unwrap()).unwrap();
    let number = |name: &str| json[name].as_u64().unwrap();
    assert!(number("requests") >= 19 && number("failed") > 0, "{json}");
    assert_eq!(number("requests") + number("failed"), 400);
    let errors: u64 = json["errors"].as_object().unwrap().values().map(|of| of["count"].as_u64().unwrap()).sum();
    assert_eq!(errors, number("failed"));
    let (printed, said) = (text(&stdout), text(&stderr));
    assert!(printed.contains("UNAVAILABLE: ") || printed.contains("UNKNOWN: "), "{printed}");
    assert!(said.contains(&url) && said.contains(" requests failed"), "{said}");
}

/// Its one line.
fn refused(command: &mut Command) -> String {
    let Output { status, stderr, .. } = command.output().unwrap();
    let said = text(&stderr);
    assert!(status.code() == Some(1) && said.lines().count() == 1 && said.starts_with("polybolt: "), "{said}");
    said
}

#[test]
fn what_cannot_be_run_says_where_and_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let json = dir.path().join("report.json");
    let nobody = format!("127.0.0.1:{}", free_port());
    let said = refused(&mut bench(&nobody, &json, "put"));
    assert!(said.contains(&nobody) && said.contains("Connection refused") && said.contains("--endpoints"), "{said}");
    let said = refused(&mut bench("https://127.0.0.1:1", &json, "put"));
    assert!(said.contains("https://127.0.0.1:1") && said.contains("has no TLS"), "{said}");
    let said = refused(&mut bench("no address", &json, "put"));
    assert!(said.contains("no address is not an address like"), "{said}");
    let said = refused(&mut bench(&nobody, &json, "put --key-size 8"));
    assert!(said.contains("--key-size 8 has no room"), "{said}");
    let said = refused(&mut bench(&nobody, &json, "watch --val-size 8"));
    assert!(said.contains("--val-size is 8"), "{said}");
    let said = refused(&mut bench(&nobody, &json, "put --clients 0"));
    assert!(said.contains("--clients"), "{said}");

    let served = Served::start(&dir.path().join("data"), &[]);
    let fill = |arguments: &str| succeed(&mut bench(&served.url(), &json, arguments));
    fill("overwrite --total 1 --key-space-size 10 --val-size 100");
    let said = refused(&mut bench(&served.url(), &json, "range --total 1 --key-space-size 10 --val-size 200"));
    assert!(said.contains("WRONG_ANSWER") && said.contains("another --val-size"), "{said}");
    fill("put --total 9 --sequential-keys --key-space-size 10 --key-size 33");
    let said = refused(&mut bench(&served.url(), &json, "range --total 1 --key-space-size 10"));
    assert!(said.contains(&served.url()) && said.contains("another --prefix"), "{said}");
}

#[test]
fn a_server_with_users_is_asked_as_one() {
    let dir = tempfile::tempdir().unwrap();
    let served = Served::start(&dir.path().join("data"), &["--bcrypt-cost", "4"]);
    runtime().block_on(async {
        let mut auth = pb::auth_client::AuthClient::connect(served.url()).await.unwrap();
        let (name, password) = ("root".to_owned(), "secret".to_owned());
        auth.user_add(pb::AuthUserAddRequest { name: name.clone(), password, ..Default::default() }).await.unwrap();
        auth.role_add(pb::AuthRoleAddRequest { name: name.clone() }).await.unwrap();
        auth.user_grant_role(pb::AuthUserGrantRoleRequest { user: name.clone(), role: name }).await.unwrap();
        auth.auth_enable(pb::AuthEnableRequest {}).await.unwrap();
    });
    let json = dir.path().join("report.json");
    let said = refused(&mut bench(&served.url(), &json, "overwrite --total 5 --key-space-size 5"));
    assert!(said.contains(&served.url()) && said.contains("--user name:password"), "{said}");
    let said = refused(&mut bench(&served.url(), &json, "put --total 5 --user root:wrong"));
    assert!(said.contains("the login"), "{said}");
    succeed(&mut bench(&served.url(), &json, "overwrite --total 5 --key-space-size 5 --user root:secret"));
    succeed(&mut bench(&served.url(), &json, "watch --total 5 --user root:secret"));
}
