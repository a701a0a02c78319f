//! The comparison of servers, from its arguments to its JSON, in turns too short to measure anything.

use serde_json::Value;
use std::path::Path;
use std::process::{Command, Stdio};

fn runs(program: impl AsRef<std::ffi::OsStr>, argument: &str) -> bool {
    let command = &mut Command::new(program);
    command.arg(argument).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

#[test]
fn every_server_is_measured_in_every_row() {
    let program = Path::new(env!("CARGO_BIN_EXE_servers"));
    let missing = if !runs(program.with_file_name("polybolt"), "version") {
        Some("polybolt is not built")
    } else if !runs("etcd", "--version") {
        Some("etcd is not installed")
    } else {
        None
    };
    if let Some(missing) = missing {
        assert!(std::env::var_os("POLYBOLT_REQUIRE_PROGRAMS").is_none(), "{missing}");
        eprintln!("skipped: {missing}");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let json = dir.path().join("result.json");
    let mut command = Command::new(program);
    command.args("--seconds 0.2 --warmup 0 --rounds 2 --clients 8 --conns 2 --keys 5000 --places disk".split(' '));
    let output = command.arg("--disk").arg(dir.path()).arg("--json").arg(&json).output().unwrap();
    let (printed, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    // 1 is that bars were missed, which turns as short say nothing of.
    assert!(matches!(output.status.code(), Some(0 | 1)), "{said}");
    assert_eq!(printed.matches("the requests of etcd").count(), 5, "{printed}");
    let result: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    assert!(result["versions"]["etcd"].as_str().unwrap().starts_with("3."), "{result}");
    let rows = result["places"][0]["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 5);
    for row in rows {
        for side in ["polybolt", "etcd", "idle"] {
            let turns = row["turns"][side].as_array().unwrap();
            assert_eq!(turns.len(), 2, "{row}");
            assert!(turns.iter().all(|turn| turn["requests"].as_u64().unwrap() > 0), "{row}");
        }
    }
}

#[test]
fn what_cannot_be_measured_says_why() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_servers"));
    let output = command.args(["--polybolt", "/nowhere/polybolt"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2));
    assert!(said.contains("/nowhere/polybolt cannot be run") && said.contains("--polybolt"), "{said}");
}
