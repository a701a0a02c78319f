//! A real etcd to compare with.
#![allow(dead_code, clippy::allow_attributes, reason = "each test uses a part of it")]

use crate::common::{Served, free_port, has_program, succeed};
use std::path::Path;
use std::process::Command;

/// The etcd programs to compare with: those of `POLYBOLT_ETCD`, or the one that is installed, if any.
pub(crate) fn programs() -> Vec<String> {
    match std::env::var("POLYBOLT_ETCD") {
        Ok(programs) => programs.split(':').filter(|program| !program.is_empty()).map(str::to_owned).collect(),
        Err(_) => has_program("etcd").then(|| "etcd".to_owned()).into_iter().collect(),
    }
}

/// A served etcd, killed when dropped.
pub(crate) struct Etcd {
    served: Served,
    pub(crate) port: u16,
    /// Such as (3, 5).
    pub(crate) version: (u32, u32),
}

impl Etcd {
    pub(crate) fn start(program: &str, dir: &Path, flags: &[&str]) -> Etcd {
        let port = free_port();
        let served = Served::etcd(program, dir, port, flags);
        let text = succeed(Command::new(program).arg("--version"));
        let number = text.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit())).unwrap();
        let mut parts = number.split('.').map(|part| part.parse().unwrap());
        Etcd { served, port, version: (parts.next().unwrap(), parts.next().unwrap()) }
    }

    pub(crate) fn url(&self) -> String {
        self.served.url()
    }
}
