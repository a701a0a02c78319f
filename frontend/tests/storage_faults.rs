//! R5 on the machine's disk: the real server, with system calls that strace makes fail. A failed write or sync
//! is never passed over: later writes are refused with the reason, reads go on, and a restart finds all that
//! was acknowledged. A full disk is no failure.
#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]

mod common;
#[path = "common/http.rs"]
mod web;

use common::ctl::Ctl;
use common::{Served, has_program, polybolt, succeed, text};
use polybolt_frontend::proto::etcdserverpb as pb;
use polybolt_frontend::proto::etcdserverpb::kv_client::KvClient;
use polybolt_frontend::proto::etcdserverpb::maintenance_client::MaintenanceClient;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use tonic::transport::Channel;
use tonic::{Code, Status};

/// A server of a store that is there, whose calls fail as strace's `inject` says, on files of one kind if so wanted.
/// strace runs as its grandchild, so that the server is the child; it counts the calls of each thread from its
/// start.
fn serve(dir: &Path, inject: &str, kind: Option<&str>, flags: &[&str]) -> Served {
    drop(Served::start(dir, &[]));
    let call = inject.split(':').next().unwrap();
    let mut command = Command::new("strace");
    // Whoever asks is answered by the one thread whose calls were counted.
    command.env("TOKIO_WORKER_THREADS", "1");
    command.args(["-D", "-f", "-qq", "-o"]).arg(dir.with_extension("strace"));
    command.args(["-e", &format!("trace={call}"), "-e", &format!("inject={inject}")]);
    if let Some(kind) = kind {
        let files = [dir.to_owned(), dir.join("journal")];
        let files = files.iter().flat_map(|dir| std::fs::read_dir(dir).unwrap()).map(|entry| entry.unwrap().path());
        let files: Vec<_> = files.filter(|path| path.to_string_lossy().contains(kind)).collect();
        assert!(!files.is_empty());
        files.iter().for_each(|path| {
            command.arg("-P").arg(path);
        });
    }
    command.arg(env!("CARGO_BIN_EXE_polybolt")).arg("serve");
    Served::start_with(command, dir, flags)
}

/// How many calls were made to fail.
fn injected(dir: &Path) -> usize {
    std::fs::read_to_string(dir.with_extension("strace")).unwrap().matches("(INJECTED)").count()
}

fn channel(served: &Served) -> Channel {
    Channel::from_shared(served.url()).unwrap().connect_lazy()
}

/// Puts of numbers, each in two shards at once.
struct Writer {
    client: KvClient<Channel>,
    acknowledged: u64,
    value_bytes: usize,
}

impl Writer {
    fn new(served: &Served, value_bytes: usize) -> Self {
        Writer { client: KvClient::new(channel(served)), acknowledged: 0, value_bytes }
    }

    async fn write(&mut self) -> Result<(), Status> {
        let number = self.acknowledged + 1;
        let put = |prefix: &str| {
            let value = format!("{number}{}", " ".repeat(self.value_bytes));
            let put = pb::PutRequest { key: key(prefix, number).into(), value: value.into(), ..Default::default() };
            pb::RequestOp { request: Some(pb::request_op::Request::RequestPut(put)) }
        };
        let request = pb::TxnRequest { success: PREFIXES.iter().map(|p| put(p)).collect(), ..Default::default() };
        self.client.txn(request).await?;
        self.acknowledged = number;
        Ok(())
    }

    /// Writes until that fails.
    async fn until_it_fails(&mut self) -> Status {
        let limit = Instant::now() + Duration::from_secs(120);
        loop {
            match self.write().await {
                Ok(()) => assert!(Instant::now() < limit, "nothing fails"),
                Err(status) => return status,
            }
        }
    }
}

const PREFIXES: [&str; 2] = ["/registry/pods/", "/registry/other/"];

fn key(prefix: &str, number: u64) -> String {
    format!("{prefix}{number:06}")
}

async fn numbers(client: &mut KvClient<Channel>, prefix: &str) -> Vec<String> {
    let end = format!("{}0", prefix.trim_end_matches('/'));
    let request = pb::RangeRequest {
        key: prefix.to_owned().into(),
        range_end: end.into(),
        keys_only: true,
        ..Default::default()
    };
    let kvs = client.range(request).await.unwrap().into_inner().kvs;
    kvs.iter().map(|kv| text(&kv.key[prefix.len()..])).collect()
}

async fn gauge(served: &Served, name: &str) -> f64 {
    let text = web::get(served.port, "/metrics").await.body;
    let line = text.lines().find(|line| line.split(' ').next() == Some(name));
    line.unwrap_or_else(|| panic!("no {name}")).rsplit_once(' ').unwrap().1.parse().unwrap()
}

/// A store that takes no more writes says so everywhere, for as long as it runs; after a restart all that was
/// acknowledged is there, and at most the one txn more of which nobody knew.
async fn check_failed_for_good(served: Served, dir: &Path, mut writer: Writer, first: Status, says: &[&str]) {
    // Written, but nobody knows whether it is durable; or not written at all.
    assert!(matches!(first.code(), Code::Unavailable | Code::Internal), "{first:?}");
    let mut client = writer.client.clone();
    for _ in 0..3 {
        let later = writer.write().await.unwrap_err();
        assert_eq!(later.code(), Code::Internal, "{later:?}");
        for part in says.iter().chain(&["takes no more writes", "reopen it to recover"]) {
            assert!(later.message().contains(part), "{:?} does not say {part:?}", later.message());
        }
    }
    let delete = pb::DeleteRangeRequest { key: key(PREFIXES[0], 1).into(), ..Default::default() };
    assert_eq!(client.delete_range(delete).await.unwrap_err().code(), Code::Internal);
    // Reads go on.
    let before = numbers(&mut client, PREFIXES[0]).await;
    assert!(before.len() as u64 >= writer.acknowledged);
    let status = MaintenanceClient::new(channel(&served)).status(pb::StatusRequest {}).await.unwrap().into_inner();
    assert!(status.errors.iter().any(|error| error.contains("takes no more writes")), "{:?}", status.errors);
    assert!(gauge(&served, "polybolt_storage_failed").await == 1.0);
    assert!(gauge(&served, "polybolt_disk_full").await == 0.0);
    for path in ["/health", "/readyz"] {
        let answer = web::get(served.port, path).await;
        assert_eq!(answer.status, 503, "{path}: {}", answer.body);
        assert!(answer.body.contains("takes no more writes"), "{path}: {}", answer.body);
    }
    // It lives, and can be read.
    assert_eq!(web::get(served.port, "/livez").await.status, 200);
    assert_eq!(web::get(served.port, "/health?serializable=true").await.status, 200);
    if has_program("etcdctl") {
        let ctl = Ctl::new(served.url());
        let refused = ctl.fail(&["put", "/registry/pods/x", "v"]);
        assert!(
            refused.contains("takes no more writes") && says.iter().all(|part| refused.contains(part)),
            "{refused}"
        );
        assert!(ctl.run(&["get", &key(PREFIXES[0], 1)]).contains('1'));
        assert!(ctl.run(&["endpoint", "status", "-w", "json"]).contains("takes no more writes"));
        // That asks for a read.
        ctl.run(&["endpoint", "health"]);
    }
    served.kill();
    let served = Served::start(dir, &[]);
    let mut client = KvClient::new(channel(&served));
    let found = [numbers(&mut client, PREFIXES[0]).await, numbers(&mut client, PREFIXES[1]).await];
    assert_eq!(found[0], found[1], "a torn txn");
    let have = found[0].len() as u64;
    assert!(have == writer.acknowledged || have == writer.acknowledged + 1, "{have} of {}", writer.acknowledged);
    assert!(found[0].iter().enumerate().all(|(at, number)| number.parse() == Ok(at + 1)));
    let mut writer = Writer { client, acknowledged: have, value_bytes: 10 };
    writer.write().await.unwrap();
    assert_eq!(web::get(served.port, "/readyz").await.status, 200);
    assert!(served.stop());
    succeed(polybolt().arg("check").arg("--data-dir").arg(dir));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_sync_ends_writes_for_good_and_a_restart_recovers() {
    if !asked() {
        return;
    }
    if !has_program("strace") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let served = serve(&dir.path().join("data"), "fdatasync:error=EIO:when=4", Some(".seg"), &[]);
    let mut writer = Writer::new(&served, 100);
    let failed = writer.until_it_fails().await;
    assert!(writer.acknowledged > 0);
    check_failed_for_good(
        served,
        &dir.path().join("data"),
        writer,
        failed,
        &["cannot sync ", "/journal/", ".seg: Input/output"],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_write_ends_writes_for_good_and_a_restart_recovers() {
    if !asked() {
        return;
    }
    if !has_program("strace") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let served = serve(&dir.path().join("data"), "pwrite64:error=EIO:when=4", Some(".seg"), &[]);
    let mut writer = Writer::new(&served, 100);
    let failed = writer.until_it_fails().await;
    assert!(writer.acknowledged > 0);
    let says = ["cannot write ", "/journal/", " at offset ", "Input/output"];
    check_failed_for_good(served, &dir.path().join("data"), writer, failed, &says).await;
}

/// The journal's room is on the disk before anything is promised: being told that there is none is a failure.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_space_for_the_journal_that_was_there_ends_writes_for_good() {
    if !asked() {
        return;
    }
    if !has_program("strace") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let served = serve(&dir.path().join("data"), "pwrite64:error=ENOSPC:when=4", Some(".seg"), &[]);
    let mut writer = Writer::new(&served, 100);
    let failed = writer.until_it_fails().await;
    check_failed_for_good(served, &dir.path().join("data"), writer, failed, &["no space left to grow ", "/journal/"])
        .await;
}

/// Pages and the manifest are no other than the journal.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_that_fails_ends_writes_for_good_and_a_restart_recovers() {
    if !asked() {
        return;
    }
    if !has_program("strace") {
        return;
    }
    // Opening writes the manifest too, four times at most; each tree file is synced by a thread of its own.
    for (call, when, kind, says) in [
        ("pwrite64", 2, ".tree", ["cannot write ", ".tree"]),
        ("fdatasync", 1, ".pods.", ["cannot sync ", ".pods."]),
        ("pwrite64", 5, "MANIFEST", ["cannot write ", "MANIFEST"]),
        ("fdatasync", 5, "MANIFEST", ["cannot sync ", "MANIFEST"]),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let inject = format!("{call}:error=EIO:when={when}");
        let served = serve(&data, &inject, Some(kind), &["--buffer-bytes", "1048576"]);
        let mut writer = Writer::new(&served, 20_000);
        let failed = writer.until_it_fails().await;
        assert!(writer.acknowledged > 0 && injected(&data) > 0, "{call} of {kind}");
        println!("{call} of {kind}: {} written", writer.acknowledged);
        check_failed_for_good(served, &data, writer, failed, &[says[0], says[1], "Input/output"]).await;
    }
}

/// A checkpoint that meets a full disk is made again; nothing fails for good, and nothing is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_space_for_a_checkpoint_passes_and_writes_go_on() {
    if !asked() {
        return;
    }
    if !has_program("strace") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let served = serve(&data, "pwrite64:error=ENOSPC:when=2..4", Some(".tree"), &["--buffer-bytes", "1048576"]);
    let mut writer = Writer::new(&served, 20_000);
    let limit = Instant::now() + Duration::from_secs(120);
    let (mut refused, mut since) = (0, 0);
    while since < 100 {
        assert!(Instant::now() < limit, "{refused} refused");
        match writer.write().await {
            Ok(()) => since += u64::from(gauge(&served, "polybolt_checkpoints_no_space_total").await > 0.0),
            Err(status) => {
                assert_eq!(status.message(), "etcdserver: mvcc: database space exceeded", "{status:?}");
                refused += 1;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    println!("{} written, {refused} refused", writer.acknowledged);
    assert!(gauge(&served, "polybolt_storage_failed").await == 0.0);
    served.kill();
    let served = Served::start(&data, &[]);
    let mut client = KvClient::new(channel(&served));
    for prefix in PREFIXES {
        assert_eq!(numbers(&mut client, prefix).await.len() as u64, writer.acknowledged);
    }
    assert!(served.stop());
    succeed(polybolt().arg("check").arg("--data-dir").arg(&data));
}

/// Journal segments are made ahead: one that cannot be made is tried again, whatever the error is. Writes that find
/// none are refused meanwhile, with the reason.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_segment_that_cannot_be_made_is_tried_again() {
    if !asked() {
        return;
    }
    if !has_program("strace") {
        return;
    }
    let errors = [("ENOSPC", "etcdserver: mvcc: database space exceeded"), ("EIO", "cannot preallocate ")];
    for (error, says) in errors {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        // A new store has its reserve and its manifest's room: what is left are segments.
        let served = serve(&data, &format!("fallocate:error={error}:when=1..3"), None, &[]);
        let mut writer = Writer::new(&served, 100_000);
        let limit = Instant::now() + Duration::from_secs(120);
        while injected(&data) < 3 || writer.acknowledged < 100 {
            assert!(Instant::now() < limit, "{} injected", injected(&data));
            match writer.write().await {
                Ok(()) => {}
                Err(status) => {
                    assert!(status.message().contains(says), "{status:?}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
        assert!(gauge(&served, "polybolt_storage_failed").await == 0.0);
        assert!(gauge(&served, "polybolt_disk_full").await == 0.0);
        served.kill();
        let served = Served::start(&data, &[]);
        let mut client = KvClient::new(channel(&served));
        assert_eq!(numbers(&mut client, PREFIXES[0]).await.len() as u64, writer.acknowledged);
    }
}

/// With `--read-cache-bytes` a device error is an error of the one read, which names its file and page.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_error_names_its_file_and_ends_nothing() {
    if !asked() {
        return;
    }
    if !has_program("strace") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let served = Served::start(&data, &[]);
    let mut writer = Writer::new(&served, 20_000);
    while writer.acknowledged < 100 {
        writer.write().await.unwrap();
    }
    assert!(served.stop());
    // Of each thread all but the first, with which the store is opened.
    let flags = ["--read-cache-bytes", "65536", "--scrub-bytes-per-second", "0"];
    let served = serve(&data, "pread64:error=EIO:when=1000+", Some(".pods."), &flags);
    let mut client = KvClient::new(channel(&served));
    let limit = Instant::now() + Duration::from_secs(120);
    let failed = 'failed: loop {
        for number in 1..=100 {
            assert!(Instant::now() < limit, "no read fails");
            let request = pb::RangeRequest { key: key(PREFIXES[0], number).into(), ..Default::default() };
            if let Err(status) = client.range(request).await {
                break 'failed status;
            }
        }
    };
    assert_eq!(failed.code(), Code::Internal);
    for part in ["cannot read ", "/data/default.pods.", ".tree at offset ", "Input/output error"] {
        assert!(failed.message().contains(part), "{failed:?}");
    }
    // Other files are read, and what is in memory.
    let request = pb::RangeRequest { key: key(PREFIXES[1], 1).into(), ..Default::default() };
    assert_eq!(client.range(request).await.unwrap().into_inner().count, 1);
    assert!(gauge(&served, "polybolt_storage_failed").await == 0.0);
    writer.client = client;
    writer.write().await.unwrap();
    if has_program("etcdctl") {
        let ctl = Ctl::new(served.url());
        let mut seen = String::new();
        for number in 1..=100 {
            let output = ctl.command(&["get", &key(PREFIXES[0], number)]).output().unwrap();
            if !output.status.success() {
                seen = text(&output.stderr);
            }
        }
        assert!(seen.contains("cannot read ") && seen.contains("Input/output error"), "{seen}");
    }
}

/// These wait for a real disk and for clients in real time, which a busy machine stretches: a command of its own.
fn asked() -> bool {
    let asked = std::env::var_os("POLYBOLT_REAL_TIME").is_some();
    if !asked {
        println!("not run: POLYBOLT_REAL_TIME is not set");
    }
    asked
}
