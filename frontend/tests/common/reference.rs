//! A real etcd to compare with.
#![allow(dead_code, clippy::allow_attributes, reason = "each test uses a part of it")]

use crate::common::{free_port, has_program, succeed};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The etcd programs to compare with: those of `POLYBOLT_ETCD`, or the one that is installed, if any.
pub(crate) fn programs() -> Vec<String> {
    match std::env::var("POLYBOLT_ETCD") {
        Ok(programs) => programs.split(':').filter(|program| !program.is_empty()).map(str::to_owned).collect(),
        Err(_) => has_program("etcd").then(|| "etcd".to_owned()).into_iter().collect(),
    }
}

/// A served etcd, killed when dropped.
pub(crate) struct Etcd {
    child: Child,
    pub(crate) port: u16,
    /// Such as (3, 5).
    pub(crate) version: (u32, u32),
}

impl Etcd {
    pub(crate) fn start(program: &str, dir: &Path, flags: &[&str]) -> Etcd {
        let (port, peer) = (free_port(), free_port());
        let (url, peers) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{peer}"));
        let mut command = Command::new(program);
        command.args(["--name", "default", "--log-level", "error", "--data-dir"]).arg(dir);
        command.args(["--listen-client-urls", &url, "--advertise-client-urls", &url, "--listen-peer-urls", &peers]);
        command.args(["--initial-advertise-peer-urls", &peers, "--initial-cluster", &format!("default={peers}")]);
        command.args(flags).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().unwrap();
        let limit = Instant::now() + Duration::from_secs(60);
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < limit, "{program} does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        let text = succeed(Command::new(program).arg("--version"));
        let number = text.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit())).unwrap();
        let mut parts = number.split('.').map(|part| part.parse().unwrap());
        Etcd { child, port, version: (parts.next().unwrap(), parts.next().unwrap()) }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
