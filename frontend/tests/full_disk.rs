//! A real file system that is filled to the last byte under load, again and again: writes are refused and
//! nothing of them is applied, reads, deletes and compaction go on, and once there is room writes go on by
//! themselves. Nothing acknowledged is missing, also where the server was killed in between.
//!
//! The file systems are an ext4 on a loop device and a tmpfs; without the right to mount, a tmpfs in a user
//! namespace of its own.
#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]

mod common;
#[path = "common/http.rs"]
mod web;

use common::ctl::Ctl;
use common::{Rng, Served, free_port, has_program, polybolt, succeed, text};
use polybolt_frontend::proto::etcdserverpb as pb;
use polybolt_frontend::proto::etcdserverpb::kv_client::KvClient;
use polybolt_frontend::proto::etcdserverpb::maintenance_client::MaintenanceClient;
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tonic::Code;
use tonic::transport::Channel;

const WRITERS: u64 = 16;
/// Keys of each writer, written in turn.
const SLOTS: u64 = 40;
/// In three shards.
const PREFIXES: [&str; 3] = ["/registry/pods/", "/registry/leases/", "/registry/other/"];
const DISK_MIB: u64 = 256;

fn rounds() -> u64 {
    std::env::var("POLYBOLT_FULL_DISK_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(3)
}

/// A small file system.
struct Disk {
    /// What a command begins with to see it.
    enter: Vec<String>,
    /// Where it is, for such a command and for this process.
    inside: PathBuf,
    outside: PathBuf,
    mounted: bool,
    holder: Option<Child>,
    _scratch: tempfile::TempDir,
}

impl Disk {
    /// An ext4 in a file on a loop device; None without the right to.
    fn ext4() -> Option<Disk> {
        let scratch = tempfile::tempdir().unwrap();
        let (image, mount) = (scratch.path().join("image"), scratch.path().join("mount"));
        std::fs::create_dir(&mount).unwrap();
        std::fs::File::create(&image).unwrap().set_len(DISK_MIB << 20).unwrap();
        succeed(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&image));
        let mounting = Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&mount).output().unwrap();
        Disk::mounted(scratch, mount, &mounting)
    }

    /// A tmpfs; None without the right to.
    fn tmpfs() -> Option<Disk> {
        let scratch = tempfile::tempdir().unwrap();
        let mount = scratch.path().join("mount");
        std::fs::create_dir(&mount).unwrap();
        let size = format!("size={DISK_MIB}m");
        let mounting = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "none"]).arg(&mount).output().unwrap();
        Disk::mounted(scratch, mount, &mounting)
    }

    fn mounted(scratch: tempfile::TempDir, mount: PathBuf, mounting: &std::process::Output) -> Option<Disk> {
        if !mounting.status.success() {
            eprintln!("cannot mount here: {}", text(&mounting.stderr).trim());
            return None;
        }
        let (inside, outside) = (mount.clone(), mount);
        Some(Disk { enter: Vec::new(), inside, outside, mounted: true, holder: None, _scratch: scratch })
    }

    /// A tmpfs in a user and mount namespace of its own, which a process keeps; None where users may not.
    fn namespace() -> Option<Disk> {
        let scratch = tempfile::tempdir().unwrap();
        let mount = scratch.path().join("mount");
        std::fs::create_dir(&mount).unwrap();
        let script = format!("mount -t tmpfs -o size={DISK_MIB}m none \"$0\" && echo mounted && exec sleep 1000000");
        let mut holding = Command::new("unshare");
        holding.args(["-U", "-r", "-m", "sh", "-c", &script]).arg(&mount);
        let mut holder = holding.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut said = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut said).unwrap();
        if said.trim() != "mounted" {
            let output = holder.wait_with_output().unwrap();
            eprintln!("no namespace to mount in: {}", text(&output.stderr).trim());
            return None;
        }
        let pid = holder.id().to_string();
        let enter = ["nsenter", "-t", &pid, "-U", "-m", "--preserve-credentials"].map(str::to_owned).to_vec();
        let outside = Path::new("/proc").join(&pid).join("root").join(mount.strip_prefix("/").unwrap());
        Some(Disk { enter, inside: mount, outside, mounted: false, holder: Some(holder), _scratch: scratch })
    }

    /// A command of polybolt that sees it.
    fn polybolt(&self, argument: &str) -> Command {
        let Some((first, rest)) = self.enter.split_first() else {
            let mut command = polybolt();
            command.arg(argument);
            return command;
        };
        let mut command = Command::new(first);
        command.args(rest).arg(env!("CARGO_BIN_EXE_polybolt")).arg(argument);
        command
    }

    fn filler(&self) -> PathBuf {
        self.outside.join("filler")
    }

    /// Takes what is there, to the last byte; how much that was.
    fn fill(&self) -> u64 {
        let mut file = OpenOptions::new().create(true).append(true).open(self.filler()).unwrap();
        let mut piece = vec![1; 1 << 20];
        while !piece.is_empty() {
            match file.write(&piece) {
                Ok(0) | Err(_) => piece.truncate(piece.len() / 2),
                Ok(_) => {}
            }
        }
        // What was only promised to the file is taken now.
        drop(file.sync_all());
        file.metadata().unwrap().len()
    }

    fn clear(&self) {
        std::fs::remove_file(self.filler()).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.mounted {
            drop(Command::new("umount").arg("-l").arg(&self.outside).status());
        }
        if let Some(holder) = &mut self.holder {
            drop(holder.kill());
            drop(holder.wait());
        }
    }
}

/// What one writer knows of one of its keys.
#[derive(Debug, Default, Clone)]
struct Known {
    /// Its newest acknowledged number and revision.
    number: u64,
    revision: i64,
    /// Numbers after it of which nobody knows.
    unknown: Vec<u64>,
}

#[derive(Debug, Default)]
struct Counts {
    acknowledged: AtomicU64,
    refused: AtomicU64,
    unknown: AtomicU64,
}

/// What all writers share.
#[derive(Default)]
struct Load {
    stop: AtomicBool,
    counts: Counts,
}

fn put(key: String, value: String) -> pb::RequestOp {
    let put = pb::PutRequest { key: key.into(), value: value.into(), ..Default::default() };
    pb::RequestOp { request: Some(pb::request_op::Request::RequestPut(put)) }
}

fn key(prefix: &str, writer: u64, slot: u64) -> String {
    format!("{prefix}{writer:02}/{slot:03}")
}

fn channel(port: u16) -> Channel {
    Channel::from_shared(format!("http://127.0.0.1:{port}")).unwrap().connect_lazy()
}

/// Writes until it is stopped, through refusals and restarts; what it knows of each of its slots.
async fn write(port: u16, writer: u64, load: Arc<Load>) -> BTreeMap<u64, Known> {
    let mut client = KvClient::new(channel(port));
    let mut known: BTreeMap<u64, Known> = BTreeMap::new();
    for number in 1.. {
        if load.stop.load(Ordering::Relaxed) {
            break;
        }
        let slot = number % SLOTS;
        let padding = "x".repeat((number % 7 * 150) as usize);
        let success = PREFIXES.iter().map(|prefix| put(key(prefix, writer, slot), format!("{number} {padding}")));
        let request = pb::TxnRequest { success: success.collect(), ..Default::default() };
        let entry = known.entry(slot).or_default();
        match client.txn(request).await {
            Ok(done) => {
                let revision = done.into_inner().header.unwrap().revision;
                assert!(revision > entry.revision);
                *entry = Known { number, revision, unknown: Vec::new() };
                load.counts.acknowledged.fetch_add(1, Ordering::Relaxed);
            }
            Err(status) if status.code() == Code::ResourceExhausted => {
                assert_eq!(status.message(), "etcdserver: mvcc: database space exceeded");
                load.counts.refused.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            // Waited for room for too long: refused too.
            Err(status) if status.message() == "etcdserver: too many requests" => {}
            Err(_) => {
                entry.unknown.push(number);
                load.counts.unknown.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
    known
}

/// Waits until something holds.
async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let limit = Instant::now() + Duration::from_secs(180);
    while !holds().await {
        assert!(Instant::now() < limit, "{what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn gauge(port: u16, name: &str) -> f64 {
    let text = web::get(port, "/metrics").await.body;
    let line = text.lines().find(|line| line.split(' ').next() == Some(name));
    line.unwrap_or_else(|| panic!("no {name}")).rsplit_once(' ').unwrap().1.parse().unwrap()
}

async fn range(client: &mut KvClient<Channel>, key: &str, end: &str) -> pb::RangeResponse {
    let request =
        pb::RangeRequest { key: key.to_owned().into(), range_end: end.to_owned().into(), ..Default::default() };
    client.range(request).await.unwrap().into_inner()
}

/// What has to be seen while the disk is full.
async fn check_full(port: u16, load: &Load) {
    let (mut kv, mut maintenance) = (KvClient::new(channel(port)), MaintenanceClient::new(channel(port)));
    // What was admitted before may have yet to become visible. Then everybody is refused, and nothing of it applied.
    let mut before = 0;
    until("writers are refused for good", async || {
        let refused = load.counts.refused.load(Ordering::Relaxed);
        before = range(&mut kv, "\0", "").await.header.unwrap().revision;
        until("writers are refused", async || load.counts.refused.load(Ordering::Relaxed) > refused + 5 * WRITERS)
            .await;
        range(&mut kv, "\0", "").await.header.unwrap().revision == before
    })
    .await;
    let found = range(&mut kv, "/registry/", "/registry0").await;
    assert_eq!(found.header.unwrap().revision, before, "a refused write was applied");
    assert!(found.kvs.iter().all(|kv| kv.mod_revision <= before));
    // Everywhere it is said why.
    let status = maintenance.status(pb::StatusRequest {}).await.unwrap().into_inner();
    assert!(status.errors.iter().any(|error| error.starts_with("the disk is full")), "{:?}", status.errors);
    let asked = pb::AlarmRequest { action: 0, member_id: 0, alarm: 0 };
    let alarms = maintenance.alarm(asked).await.unwrap().into_inner().alarms;
    assert_eq!(alarms.len(), 1);
    assert_eq!(alarms[0].alarm, pb::AlarmType::Nospace as i32);
    assert!(gauge(port, "polybolt_disk_full").await == 1.0);
    assert!(gauge(port, "polybolt_checkpoints_no_space_total").await >= 1.0);
    let health = web::get(port, "/health").await;
    assert_eq!((health.status, health.body.contains("ALARM NOSPACE")), (503, true), "{}", health.body);
    if has_program("etcdctl") {
        let ctl = Ctl::new(format!("http://127.0.0.1:{port}"));
        let refused = ctl.fail(&["put", "/registry/one-more", "v"]);
        assert!(refused.contains("etcdserver: mvcc: database space exceeded"), "{refused}");
        assert!(ctl.run(&["alarm", "list"]).contains("alarm:NOSPACE"));
        assert!(ctl.run(&["endpoint", "status", "-w", "json"]).contains("the disk is full"));
    }
    // What frees space goes on: a delete, and a compaction to its end.
    let junk = pb::RangeRequest { key: "/junk/".into(), range_end: "/junk0".into(), limit: 30, ..Default::default() };
    let junk = kv.range(junk).await.unwrap().into_inner().kvs;
    let (first, last) = (&junk[0].key, &junk[29].key);
    let delete = pb::DeleteRangeRequest { key: first.clone(), range_end: last.clone(), ..Default::default() };
    let deleted = kv.delete_range(delete).await.unwrap().into_inner();
    assert!(deleted.deleted > 0);
    let revision = deleted.header.unwrap().revision;
    kv.compact(pb::CompactionRequest { revision, physical: true }).await.unwrap();
}

/// Compares what is there with what the writers know.
async fn check_all(port: u16, known: &[BTreeMap<u64, Known>]) {
    let mut client = KvClient::new(channel(port));
    for prefix in PREFIXES {
        let end = format!("{}0", prefix.trim_end_matches('/'));
        let kvs = range(&mut client, prefix, &end).await.kvs;
        let found: BTreeMap<String, (u64, i64)> = kvs
            .into_iter()
            .map(|kv| (text(&kv.key), (text(&kv.value).split(' ').next().unwrap().parse().unwrap(), kv.mod_revision)))
            .collect();
        for (writer, slots) in known.iter().enumerate() {
            for (slot, Known { number, revision, unknown }) in slots {
                let key = key(prefix, writer as u64, *slot);
                match found.get(&key) {
                    Some((have, at)) if have == number => assert_eq!(at, revision, "{key}"),
                    Some((have, at)) => {
                        assert!(unknown.contains(have) && at > revision, "{key} is {have}, of {number}")
                    }
                    None => assert!(*number == 0, "{key}: {number} is lost"),
                }
            }
        }
    }
}

async fn fill_again_and_again(disk: &Disk, seed: u64) {
    let mut rng = Rng(seed);
    let (data, port) = (disk.inside.join("data"), free_port());
    let flags = ["--buffer-bytes", "4194304"];
    let mut served = Served::start_at(disk.polybolt("serve"), &data, port, &flags);
    // What can be deleted when there is no room.
    let mut kv = KvClient::new(channel(port));
    for n in 0..300 {
        let key = format!("/junk/{:02}/{n:04}", n / 10).into();
        kv.put(pb::PutRequest { key, value: vec![7; 20_000].into(), ..Default::default() }).await.unwrap();
    }
    let load = Arc::new(Load::default());
    let writing: Vec<_> = (0..WRITERS).map(|writer| tokio::spawn(write(port, writer, Arc::clone(&load)))).collect();
    for round in 0..rounds() {
        tokio::time::sleep(Duration::from_millis(300 + rng.below(1500))).await;
        let filled = disk.fill();
        until("the disk is full", async || gauge(port, "polybolt_disk_full").await == 1.0).await;
        check_full(port, &load).await;
        // Whatever that has freed is gone as well.
        disk.fill();
        if round % 3 == 1 {
            served.kill();
            served = Served::start_at(disk.polybolt("serve"), &data, port, &flags);
            let mut kv = KvClient::new(channel(port));
            assert!(range(&mut kv, "/registry/", "/registry0").await.count > 0);
        }
        disk.clear();
        let before = load.counts.acknowledged.load(Ordering::Relaxed);
        until("writes go on", async || load.counts.acknowledged.load(Ordering::Relaxed) > before + 20 * WRITERS).await;
        until("the disk is not full", async || gauge(port, "polybolt_disk_full").await == 0.0).await;
        println!("round {round}: {} KiB filled, then {before} txns acknowledged", filled >> 10);
    }
    load.stop.store(true, Ordering::Relaxed);
    let mut known = Vec::new();
    for task in writing {
        known.push(task.await.unwrap());
    }
    let Counts { acknowledged, refused, unknown } = &load.counts;
    println!("{acknowledged:?} txns acknowledged, {refused:?} refused, {unknown:?} unknown");
    check_all(port, &known).await;
    let health = web::get(port, "/health").await;
    assert_eq!(health.status, 200, "{}", health.body);
    assert!(served.stop());
    succeed(disk.polybolt("check").arg("--data-dir").arg(&data));
    let _served = Served::start_at(disk.polybolt("serve"), &data, port, &flags);
    check_all(port, &known).await;
}

/// The file system of one kind, or of another where that may not be mounted.
fn disk_or_else(first: Option<Disk>) -> Option<Disk> {
    let disk = first.or_else(Disk::namespace);
    if disk.is_none() {
        eprintln!("SKIPPED: no file system can be mounted here, neither as root nor in a user namespace");
    }
    disk
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_ext4_refuses_writes_and_recovers_by_itself() {
    if !asked() {
        return;
    }
    if !has_program("mkfs.ext4") {
        return;
    }
    if let Some(disk) = disk_or_else(Disk::ext4()) {
        fill_again_and_again(&disk, 1).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_tmpfs_refuses_writes_and_recovers_by_itself() {
    if !asked() {
        return;
    }
    if let Some(disk) = disk_or_else(Disk::tmpfs()) {
        fill_again_and_again(&disk, 2).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_tmpfs_of_a_user_namespace_refuses_writes_and_recovers_by_itself() {
    if !asked() {
        return;
    }
    match Disk::namespace() {
        Some(disk) => fill_again_and_again(&disk, 3).await,
        None => eprintln!("SKIPPED: users may make no namespaces here"),
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
