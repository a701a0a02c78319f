//! Stock clients against a served `polybolt`: what each is asked to do, step by step, and whether it passes.
//!
//! `cargo test -p polybolt-frontend --test clients -- --nocapture` prints a table for each client. `frontend/tests/clients/install`
//! installs them, but for `etcdctl`. `POLYBOLT_CLIENTS_AGAINST=etcd` (or a path) asks a real etcd the same instead,
//! which shows that the steps are fair.
//!
//! The clients in other languages, and the Rust one, are programs that get the server's URL and print line by line:
//! `version V`; then for each step `begin NAME` and `pass`, `fail WHY` or `absent WHY`, if the server does not have
//! it; between them `restart`, after which they read a line that says that the server was killed and started again.
#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]

#[path = "../common/mod.rs"]
mod common;
mod etcdctl;

use comfy_table::Table;
use common::{Served, free_port, has_program, polybolt, succeed, text};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// How long a step may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// The server that is asked, in a directory of its own.
pub(crate) struct Server {
    dir: TempDir,
    port: u16,
    served: Option<Served>,
}

/// The etcd that is asked instead, if one is.
fn reference() -> Option<String> {
    std::env::var("POLYBOLT_CLIENTS_AGAINST").ok()
}

impl Server {
    pub(crate) fn start() -> Server {
        let mut server = Server { dir: tempfile::tempdir().unwrap(), port: free_port(), served: None };
        server.serve();
        server
    }

    fn serve(&mut self) {
        let data = self.dir.path().join("data");
        self.served = Some(match reference() {
            Some(program) => Served::etcd(&program, &data, self.port, &[]),
            None => {
                let mut command = polybolt();
                command.arg("serve");
                Served::start_at(command, &data, self.port, &[])
            }
        });
    }

    /// SIGKILL, and a start on the same data and port.
    fn restart(&mut self) {
        self.served.take().expect("it runs").kill();
        self.serve();
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The same without a scheme.
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub(crate) fn scratch(&self) -> &Path {
        self.dir.path()
    }

    fn name() -> String {
        let text = succeed(&mut match reference() {
            Some(program) => {
                let mut command = Command::new(program);
                command.arg("--version");
                command
            }
            None => {
                let mut command = polybolt();
                command.arg("version");
                command
            }
        });
        text.lines().next().unwrap().to_owned()
    }
}

#[derive(Debug, PartialEq)]
pub(crate) enum Outcome {
    Passed,
    /// The server does not have it.
    Absent(String),
    Failed(String),
}

/// What a client was asked, and how it went.
pub(crate) struct Report {
    client: &'static str,
    version: String,
    steps: Vec<(String, Outcome)>,
}

impl Report {
    pub(crate) fn new(client: &'static str) -> Report {
        Report { client, version: "?".into(), steps: Vec::new() }
    }

    /// Prints the table, and fails if a step has.
    fn check(self) {
        let mut table = Table::new();
        table.load_preset(comfy_table::presets::ASCII_MARKDOWN).set_header(["client", "version", "step", "result"]);
        for (step, outcome) in &self.steps {
            let result = match outcome {
                Outcome::Passed => "passed".to_owned(),
                Outcome::Absent(why) => format!("absent: {why}"),
                Outcome::Failed(why) => format!("FAILED: {why}"),
            };
            table.add_row([self.client, &self.version, step, &result]);
        }
        println!("{} against {}\n{table}\n", self.client, Server::name());
        assert!(!self.steps.is_empty());
        let good = |outcome: &Outcome| match outcome {
            Outcome::Passed => true,
            // polybolt has everything that is asked for.
            Outcome::Absent(_) => reference().is_some(),
            Outcome::Failed(_) => false,
        };
        let failed: Vec<_> = self.steps.iter().filter(|(_, outcome)| !good(outcome)).collect();
        assert!(failed.is_empty(), "{}: {failed:?}", self.client);
    }
}

/// The folder into which `install` installs.
fn installed() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join("clients")
}

/// The folder of this test.
fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients")
}

/// True if a client is installed. With `POLYBOLT_REQUIRE_PROGRAMS` set, its absence is a failure.
fn has_client(name: &str, file: &str) -> bool {
    let found = installed().join(file).exists();
    let say = format!("{name} is not installed: run frontend/tests/clients/install");
    assert!(found || std::env::var_os("POLYBOLT_REQUIRE_PROGRAMS").is_none(), "{say}");
    if !found {
        eprintln!("skipped: {say}");
    }
    found
}

/// Runs a program of steps and reads what it says.
fn drive(client: &'static str, mut command: Command) -> Report {
    let mut server = Server::start();
    let mut report = Report::new(client);
    let errors = server.scratch().join("stderr");
    command.arg(server.url()).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.stderr(std::fs::File::create(&errors).unwrap()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let (sender, lines) = std::sync::mpsc::channel();
    let stdout = BufReader::new(child.stdout.take().unwrap());
    std::thread::spawn(move || stdout.lines().map_while(Result::ok).all(|line| sender.send(line).is_ok()));
    let mut begun = None;
    loop {
        let line = match lines.recv_timeout(PATIENCE) {
            Ok(line) => line,
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => break,
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {
                drop(child.kill());
                break;
            }
        };
        let (word, rest) = line.split_once(' ').unwrap_or((&line, ""));
        let outcome = match word {
            "version" => {
                rest.clone_into(&mut report.version);
                continue;
            }
            "begin" => {
                begun = Some(rest.to_owned());
                continue;
            }
            "restart" => {
                server.restart();
                writeln!(stdin).unwrap();
                continue;
            }
            "pass" => Outcome::Passed,
            "absent" => Outcome::Absent(rest.to_owned()),
            _ => Outcome::Failed(line.clone()),
        };
        report.steps.push((begun.take().unwrap_or_default(), outcome));
    }
    let status = child.wait().unwrap();
    if begun.is_some() || !status.success() {
        report.steps.push((begun.unwrap_or_default(), Outcome::Failed(format!("it ended early: {status}"))));
    }
    if report.steps.iter().any(|(_, outcome)| matches!(outcome, Outcome::Failed(_))) {
        eprint!("{}", text(&std::fs::read(&errors).unwrap()));
    }
    report
}

#[test]
fn etcdctl_drives_everything() {
    if has_program("etcdctl") {
        etcdctl::run().check();
    }
}

#[test]
fn the_etcd_client_of_rust_drives_everything() {
    if has_client("the Rust crate etcd-client", "rust/debug/etcd-client-steps") {
        // By cargo: never an old build.
        let mut command = Command::new(env!("CARGO"));
        command.args(["run", "--quiet", "--locked", "--manifest-path"]).arg(folder().join("rust/Cargo.toml"));
        command.arg("--target-dir").arg(installed().join("rust")).arg("--");
        drive("etcd-client (Rust)", command).check();
    }
}

#[test]
fn the_etcd3_of_python_drives_everything() {
    if has_client("the Python package etcd3", "python/bin/python") {
        let mut command = Command::new(installed().join("python/bin/python"));
        command.arg(folder().join("python/steps.py"));
        drive("etcd3 (Python)", command).check();
    }
}

#[test]
fn the_etcd3_of_npm_drives_everything() {
    if has_client("the npm package etcd3", "node/node_modules/etcd3") {
        let mut command = Command::new("node");
        command.env("NODE_PATH", installed().join("node/node_modules")).arg(folder().join("node/steps.js"));
        drive("etcd3 (npm)", command).check();
    }
}
