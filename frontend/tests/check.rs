//! `polybolt check` as an operator runs it: exit status, report, salvage, and nothing written.
#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]

mod common;
#[path = "common/http.rs"]
mod web;

use common::{Served, polybolt, succeed, text};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

fn filled(data: &Path, kill: bool) {
    let served = Served::start(data, &[]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        use polybolt_frontend::proto::etcdserverpb as pb;
        let mut client = pb::kv_client::KvClient::connect(served.url()).await.unwrap();
        for n in 0..200 {
            let key = format!("/registry/{}/{n}", ["pods", "events", "leases", "x"][n % 4]);
            let value = vec![b'v'; if n % 50 == 0 { 30_000 } else { 300 }];
            client.put(pb::PutRequest { key: key.into(), value: value.into(), ..Default::default() }).await.unwrap();
        }
    });
    if kill {
        served.kill();
    } else {
        assert!(served.stop());
    }
}

fn check(data: &Path, more: &[&str]) -> Output {
    polybolt().arg("check").arg("--data-dir").arg(data).args(more).output().unwrap()
}

fn report(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

fn tree_file(data: &Path, shard: &str) -> PathBuf {
    let names = fs::read_dir(data).unwrap().map(|entry| entry.unwrap().path());
    names.into_iter().find(|path| path.to_string_lossy().contains(&format!("default.{shard}."))).unwrap()
}

fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for dir in [dir.to_owned(), dir.join("journal")] {
        for entry in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap()) {
            if entry.file_type().unwrap().is_file() && entry.file_name() != "LOCK" {
                all.insert(entry.path(), fs::read(entry.path()).unwrap());
            }
        }
    }
    all
}

fn flip(file: &Path, at: usize) {
    let mut bytes = fs::read(file).unwrap();
    bytes[at] ^= 0x10;
    fs::write(file, bytes).unwrap();
}

#[test]
fn a_sound_directory_stays_as_it_is_and_is_told_so() {
    let dir = tempfile::tempdir().unwrap();
    for kill in [true, false] {
        let data = dir.path().join(format!("{kill}"));
        filled(&data, kill);
        let before = files(&data);
        let output = check(&data, &["--json"]);
        assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()));
        let report = report(&output);
        assert_eq!((&report["sound"], &report["rows"], &report["keys"]), (&true.into(), &200.into(), &200.into()));
        assert!(kill || report["journal"]["replay_records"] == 0);
        assert!(succeed(polybolt().arg("verify").arg("--data-dir").arg(&data)).contains("sound"), "its older name");
        assert!(before == files(&data), "nothing was written");
    }
}

#[test]
fn what_cannot_be_checked_is_status_2() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let served = Served::start(&data, &[]);
    let output = check(&data, &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("is locked: another process"), "{}", text(&output.stderr));
    assert!(served.stop());
    assert_eq!(check(&dir.path().join("absent"), &["--json"]).status.code(), Some(2));
    // Nor is anything salvaged into a store that exists.
    let other = dir.path().join("other");
    assert!(Served::start(&other, &[]).stop());
    let output = check(&data, &["--salvage", other.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("is a store already"), "{}", text(&output.stderr));
    let output = check(&data, &["--salvage", data.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn all_damage_is_listed_and_the_rest_is_salvaged_and_served() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    filled(&data, false);
    let (pods, events) = (tree_file(&data, "pods"), tree_file(&data, "events"));
    // The header of one file, and a large value of another.
    flip(&pods, 80);
    let bytes = fs::read(&events).unwrap();
    let extent = (1..bytes.len() / 4096).find(|unit| bytes[unit * 4096 + 4] == 4);
    let leaf = (1..bytes.len() / 4096).find(|unit| bytes[unit * 4096 + 4] == 2);
    flip(&events, extent.or(leaf).unwrap() * 4096 + 200);
    let output = check(&data, &["--json"]);
    assert_eq!(output.status.code(), Some(1));
    let listed = report(&output);
    let found = listed["findings"].as_array().unwrap();
    let of = |file: &Path| found.iter().filter(|finding| finding["file"] == file.display().to_string()).count();
    assert_eq!((of(&pods), of(&events), found.len()), (1, 1, 2), "{found:?}");
    assert!(found.iter().all(|finding| finding["unit"].is_u64() && finding["what"] == "checksum"), "{found:?}");
    let stderr = text(&output.stderr);
    assert!(stderr.lines().count() == 1 && stderr.starts_with("polybolt: damaged: "), "{stderr}");
    let new = dir.path().join("new");
    let output = check(&data, &["--salvage", new.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).contains("lost: "), "{}", text(&output.stdout));
    let saved = report(&check(&new, &["--json"]));
    assert_eq!(saved["sound"], true);
    assert!(saved["rows"].as_u64().unwrap() >= 150, "{saved}");
    let served = Served::start(&new, &[]);
    let status = succeed(Command::new(env!("CARGO_BIN_EXE_polybolt")).args(["status", "--endpoint", &served.url()]));
    assert!(status.contains("scrub "), "{status}");
    assert!(served.stop());
}

/// A server finds damage that nobody has read, and tells how far it has looked.
#[tokio::test]
async fn the_scrub_of_a_server_tells_how_far_it_is_and_what_is_damaged() {
    use std::os::unix::fs::FileExt;
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().to_owned();
    tokio::task::spawn_blocking({
        let data = data.clone();
        move || filled(&data, false)
    })
    .await
    .unwrap();
    // A step in some seconds.
    let served = Served::start(&data, &["--scrub-bytes-per-second", "20000"]);
    for shard in ["pods", "events", "leases"] {
        let path = tree_file(&data, shard);
        let bytes = fs::read(&path).unwrap();
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        for unit in (1..bytes.len() / 4096).filter(|unit| bytes[unit * 4096 + 4] == 2) {
            let at = unit * 4096 + 200;
            file.write_all_at(&[bytes[at] ^ 0x10], at as u64).unwrap();
        }
    }
    let until = Instant::now() + Duration::from_secs(120);
    let status = || {
        text(
            &Command::new(env!("CARGO_BIN_EXE_polybolt"))
                .args(["status", "--endpoint", &served.url()])
                .output()
                .unwrap()
                .stdout,
        )
    };
    let (mut under_way, mut metrics, mut told) = (false, false, false);
    while !(under_way && metrics && told) {
        assert!(Instant::now() < until, "under way {under_way}, metrics {metrics}, damage {told}: {}", status());
        let of = web::get(served.port, "/metrics").await.body;
        let gauge = |name: &str| {
            let line =
                of.lines().find(|line| line.split(' ').next() == Some(name)).unwrap_or_else(|| panic!("no {name}"));
            line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()
        };
        metrics |= gauge("polybolt_scrub_damage") > 0.0;
        let (read, round) = (gauge("polybolt_scrub_round_bytes"), gauge("polybolt_scrub_round_of_bytes"));
        assert!(read <= round, "{read} of {round}");
        let now = status();
        under_way |= now.contains(" in the one under way") && read > 0.0;
        told |= now
            .lines()
            .any(|line| line.starts_with("damaged: ") && line.contains(".tree") && line.contains("checksum"));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    served.kill();
}
