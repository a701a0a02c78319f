//! What a stranger gives the command: each answers with one clear line and a non-zero exit, and nothing
//! is reset or thrown away.
#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]

mod common;

use common::{Served, polybolt, succeed, text};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Runs a command that has to fail; its one line.
fn refused(command: &mut Command) -> String {
    refused_with(1, command)
}

fn refused_with(status: i32, command: &mut Command) -> String {
    let output = command.output().unwrap();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(status), "{command:?}: {stdout}{stderr}");
    let lines: Vec<&str> = stderr.lines().filter(|line| !line.contains(" INFO ") && !line.contains(" WARN ")).collect();
    assert_eq!(lines.len(), 1, "{command:?}: {stderr}");
    assert!(lines[0].starts_with("polybolt: ") && !stderr.contains("panicked"), "{stderr}");
    println!("{}", lines[0]);
    lines[0].to_owned()
}

/// `serve` on a directory, which has to fail before it listens.
fn serve(dir: &Path) -> Command {
    let mut command = polybolt();
    let url = format!("http://127.0.0.1:{}", common::free_port());
    command.arg("serve").arg("--data-dir").arg(dir).arg("--listen-client-urls").arg(url);
    command
}

fn check(dir: &Path) -> Command {
    let mut command = polybolt();
    command.arg("check").arg("--data-dir").arg(dir);
    command
}

/// A data directory with some of everything in it; killed, so that its journal matters, or stopped.
fn filled(dir: &Path, kill: bool) -> PathBuf {
    let data = dir.join("data");
    let served = Served::start(&data, &[]);
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
    data
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn flip(file: &Path, at: usize) {
    let mut bytes = fs::read(file).unwrap();
    bytes[at] ^= 0x10;
    fs::write(file, bytes).unwrap();
}

fn tree_file(dir: &Path, shard: &str) -> PathBuf {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    names.into_iter().find(|path| path.to_string_lossy().contains(&format!("default.{shard}."))).unwrap()
}

#[test]
fn directories_that_are_not_ours() {
    let dir = tempfile::tempdir().unwrap();
    let empty = dir.path().join("empty");
    fs::create_dir(&empty).unwrap();
    assert!(refused_with(2, &mut check(&empty)).contains("there is no manifest in it"));
    assert!(refused_with(2, &mut check(&dir.path().join("absent"))).contains("absent"));
    let foreign = dir.path().join("foreign");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("thesis.tex"), "precious").unwrap();
    assert!(refused(&mut serve(&foreign)).contains("it holds thesis.tex"));
    assert_eq!(fs::read(foreign.join("thesis.tex")).unwrap(), b"precious");
    assert_eq!(fs::read_dir(&foreign).unwrap().count(), 1);
    let file = dir.path().join("file");
    fs::write(&file, "x").unwrap();
    assert!(refused(&mut serve(&file)).contains("file"));
    // An empty one becomes a store.
    assert!(Served::start(&empty, &[]).stop());
}

#[test]
fn a_second_process_and_a_read_only_directory() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let served = Served::start(&data, &[]);
    let line = refused(&mut serve(&data));
    assert!(line.contains("LOCK") && line.contains(&format!("pid {}", served.pid())), "{line}");
    assert!(refused(polybolt().arg("status").arg("--data-dir").arg(&data)).contains("LOCK"));
    assert!(served.stop());
    // As nobody, for root may write everywhere.
    let locked = dir.path().join("read-only");
    fs::create_dir(&locked).unwrap();
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o555)).unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    match serve(&locked).uid(65534).output() {
        Ok(_) => assert!(refused(serve(&locked).uid(65534)).contains("read-only")),
        // Not root, or nobody may not run what was built here.
        Err(error) => eprintln!("skipped: {error}"),
    }
    assert!(refused(&mut serve(Path::new("/proc/polybolt"))).contains("/proc/polybolt"));
}

#[test]
fn a_damaged_manifest() {
    let dir = tempfile::tempdir().unwrap();
    let data = filled(dir.path(), false);
    // One bad slot is what the other is for.
    let one = dir.path().join("one");
    copy(&data, &one);
    flip(&one.join("MANIFEST.0"), 100);
    assert!(refused(&mut check(&one)).contains("MANIFEST.0"));
    assert!(Served::start(&one, &[]).stop());
    assert!(succeed(&mut check(&one)).contains("sound"), "it was written anew");
    for (name, damage) in [("flipped", 0), ("truncated", 1), ("emptied", 2)] {
        let both = dir.path().join(name);
        copy(&data, &both);
        for slot in ["MANIFEST.0", "MANIFEST.1"] {
            let file = both.join(slot);
            match damage {
                0 => flip(&file, 100),
                1 => fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(300).unwrap(),
                _ => fs::write(&file, b"").unwrap(),
            }
        }
        let before = fs::read(both.join("MANIFEST.0")).unwrap();
        assert!(refused(&mut serve(&both)).contains("MANIFEST"));
        assert_eq!(fs::read(both.join("MANIFEST.0")).unwrap(), before);
    }
    let gone = dir.path().join("gone");
    copy(&data, &gone);
    fs::remove_file(gone.join("MANIFEST.0")).unwrap();
    fs::remove_file(gone.join("MANIFEST.1")).unwrap();
    assert!(refused(&mut serve(&gone)).contains("neither MANIFEST.0 nor MANIFEST.1"));
}

#[test]
fn a_damaged_journal() {
    let dir = tempfile::tempdir().unwrap();
    let data = filled(dir.path(), true);
    let flipped = dir.path().join("flipped");
    copy(&data, &flipped);
    let segment = |dir: &Path| dir.join("journal").join("000000.seg");
    // A group with good ones of the same session behind it: damage, not a torn end.
    flip(&segment(&flipped), 5000);
    let line = refused(&mut serve(&flipped));
    assert!(line.contains("journal") && line.contains("offset"), "{line}");
    assert!(refused(&mut serve(&flipped)).contains("journal"), "refused again, not reset");
    // Cut short: as a torn end, or refused where a whole group is known to be missing; never a panic.
    let cut = dir.path().join("cut");
    copy(&data, &cut);
    fs::OpenOptions::new().write(true).open(segment(&cut)).unwrap().set_len(4000).unwrap();
    let output = check(&cut).output().unwrap();
    assert!(!text(&output.stderr).contains("panicked"));
    assert!(succeed(&mut check(&data)).contains("sound"));
}

#[test]
fn a_damaged_tree_file() {
    let dir = tempfile::tempdir().unwrap();
    let data = filled(dir.path(), false);
    let pods = tree_file(&data, "pods");
    let bytes = fs::read(&pods).unwrap().len();
    let mut found = 0;
    for at in (0..bytes).step_by(1531) {
        let flipped = dir.path().join("flipped");
        copy(&data, &flipped);
        flip(&tree_file(&flipped, "pods"), at);
        let output = check(&flipped).output().unwrap();
        let stderr = text(&output.stderr);
        assert!(!stderr.contains("panicked"), "{stderr}");
        if !output.status.success() {
            found += 1;
            assert!(stderr.contains("pods"), "{stderr}");
        }
        fs::remove_dir_all(&flipped).unwrap();
    }
    // The rest are free units.
    assert!(found > 5, "{found}");
    let short = dir.path().join("short");
    copy(&data, &short);
    fs::OpenOptions::new().write(true).open(tree_file(&short, "pods")).unwrap().set_len(4096).unwrap();
    assert!(refused(&mut serve(&short)).contains("pods"));
    let missing = dir.path().join("missing");
    copy(&data, &missing);
    fs::remove_file(tree_file(&missing, "pods")).unwrap();
    assert!(refused(&mut serve(&missing)).contains("pods"));
}

#[test]
fn flags_and_files_that_cannot_be_used() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    for (flag, value) in [
        ("--durability", "maybe"),
        ("--routes", "a=x,b=x"),
        ("--backend-batch-limit", "0"),
        ("--backend-batch-interval", "soon"),
        ("--max-txn-ops", "-1"),
        ("--auto-compaction-mode", "sometimes"),
        ("--shard-retention", "events"),
        ("--shard-retention", "events=0"),
        ("--shard-retention", "events=soon"),
        ("--no-such-flag", "1"),
    ] {
        let output = serve(&data).arg(format!("{flag}={value}")).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{flag}");
        let stderr = text(&output.stderr);
        assert!(stderr.starts_with("error: ") && stderr.contains(flag), "{stderr}");
    }
    for (flag, value) in [
        ("--auto-compaction-retention", "much"),
        ("--listen-metrics-urls", "https://127.0.0.1:1"),
        ("--listen-metrics-urls", "127.0.0.1:1"),
        ("--watch-progress-notify-interval", "1ms"),
    ] {
        refused(serve(&data).arg(flag).arg(value));
    }
    assert!(!data.exists());
    // Routes are fixed once there is data.
    assert!(Served::start(&data, &["--routes", "single"]).stop());
    assert!(refused(serve(&data).args(["--routes", "kubernetes"])).contains("other routes"));
    let unknown = refused(serve(&data).args(["--shard-retention", "events=5m"]));
    assert!(unknown.contains("no shard \"events\"; there are default"), "{unknown}");
    let twice = refused(serve(&data).args(["--shard-retention", "default=5m,default=1h"]));
    assert!(twice.contains("twice"), "{twice}");
    // Snapshots that were cut or changed leave nothing behind.
    let restore = |file: &Path, to: &Path| {
        let mut command = polybolt();
        command.args(["snapshot", "restore"]).arg(file).arg("--data-dir").arg(to);
        command
    };
    let garbage = dir.path().join("garbage");
    fs::write(&garbage, vec![7; 3000]).unwrap();
    assert!(refused(&mut restore(&garbage, &dir.path().join("r1"))).contains("garbage"));
    assert!(refused(&mut restore(Path::new("/no/such/file"), &dir.path().join("r2"))).contains("/no/such/file"));
}
