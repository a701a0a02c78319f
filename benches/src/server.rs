//! The servers, each a process of its own, and what can be seen of them from outside.

use crate::measure::{now, pause};
use serde::Serialize;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Who is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// `polybolt serve`.
    Polybolt,
    /// etcd, Debian's or another.
    Etcd,
    /// Answers without a store.
    Idle,
}

impl Side {
    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Side::Polybolt => "polybolt",
            Side::Etcd => "etcd",
            Side::Idle => "idle",
        }
    }
}

/// What starts a server: where its data is and its port come behind.
#[derive(Debug, Clone)]
pub struct Program {
    /// Who it is.
    pub side: Side,
    /// What is run.
    pub path: PathBuf,
    /// Those that do not say where.
    pub flags: Vec<String>,
}

/// A server, killed when dropped.
#[derive(Debug)]
pub struct Server {
    child: Child,
    /// Who it is.
    pub side: Side,
    /// Where clients find it.
    pub port: u16,
    log: PathBuf,
}

/// What a process has used since it began.
#[derive(Debug, Clone, Copy, Default)]
pub struct Used {
    /// Of all threads, those that ended too, in seconds.
    pub cpu: f64,
    /// Bytes that went to a disk.
    pub written: f64,
    /// Those of the journal and of the tree files, or of the WAL and the backend.
    pub syncs: f64,
}

/// Histograms of syncs, at both.
const SYNCS: [&str; 2] =
    ["etcd_disk_wal_fsync_duration_seconds_count", "etcd_disk_backend_commit_duration_seconds_count"];

/// What a program says of its version, in one line; None if it cannot be run.
pub fn version(program: &Path, argument: &str) -> Option<String> {
    let output = Command::new(program).arg(argument).output().ok().filter(|output| output.status.success())?;
    let text = String::from_utf8_lossy(&output.stdout);
    let words: Vec<&str> = text.lines().next()?.split_whitespace().filter(|word| !word.ends_with(':')).collect();
    Some(words.join(" "))
}

fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

impl Program {
    /// The flags that say where: the data in `dir`, clients at `port`.
    fn place(&self, dir: &Path, port: u16) -> std::io::Result<Vec<String>> {
        let url = format!("http://127.0.0.1:{port}");
        let dir = dir.display().to_string();
        let flags = match self.side {
            Side::Idle => vec![format!("--idle={port}")],
            Side::Polybolt => vec![format!("--data-dir={dir}"), format!("--listen-client-urls={url}")],
            Side::Etcd => {
                let peers = format!("http://127.0.0.1:{}", free_port()?);
                vec![
                    format!("--data-dir={dir}"),
                    format!("--listen-client-urls={url}"),
                    format!("--advertise-client-urls={url}"),
                    format!("--listen-peer-urls={peers}"),
                    format!("--initial-advertise-peer-urls={peers}"),
                    format!("--initial-cluster=default={peers}"),
                ]
            }
        };
        Ok(flags)
    }

    /// Starts it and waits until it answers.
    ///
    /// # Errors
    /// If it cannot be run, or ends; with what it said.
    pub fn start(&self, dir: &Path) -> Result<Server, String> {
        let failed = |error: std::io::Error| format!("{}: {error}", self.path.display());
        let port = free_port().map_err(failed)?;
        let log = dir.join(self.side.name()).with_extension("log");
        #[expect(clippy::disallowed_methods, reason = "the log of the server")]
        let file = std::fs::File::create(&log).map_err(failed)?;
        let mut command = Command::new(&self.path);
        command.args(&self.flags).args(self.place(&dir.join(self.side.name()), port).map_err(failed)?);
        let child = command.stdout(Stdio::null()).stderr(file).spawn().map_err(failed)?;
        let mut server = Server { child, side: self.side, port, log };
        let limit = now() + Duration::from_secs(60);
        while !server.answers() {
            if server.child.try_wait().is_ok_and(|ended| ended.is_some()) || now() > limit {
                let said = std::fs::read_to_string(&server.log).unwrap_or_default();
                return Err(format!("{} does not answer: {}", self.path.display(), said.trim()));
            }
            pause(Duration::from_millis(20));
        }
        Ok(server)
    }
}

impl Server {
    fn answers(&self) -> bool {
        match self.side {
            Side::Idle => TcpStream::connect(("127.0.0.1", self.port)).is_ok(),
            _ => self.get("/version").is_ok_and(|text| text.contains("etcdserver")),
        }
    }

    fn get(&self, path: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    }

    fn proc(&self, file: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{file}", self.child.id())).unwrap_or_default()
    }

    /// What it has used by now.
    pub fn used(&self) -> Used {
        let metrics = if self.side == Side::Idle { String::new() } else { self.get("/metrics").unwrap_or_default() };
        Used {
            cpu: cpu_seconds(&self.proc("stat")),
            written: number(&self.proc("io"), "write_bytes:"),
            syncs: SYNCS.iter().map(|name| number(&metrics, name)).sum(),
        }
    }

    /// Bytes of memory that are resident.
    pub fn resident(&self) -> f64 {
        number(&self.proc("status"), "VmRSS:") * 1024.0
    }

    /// SIGTERM, and waits for its end.
    ///
    /// # Errors
    /// If it does not end.
    pub fn stop(mut self) -> Result<(), String> {
        let pid = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw);
        let told = pid.is_some_and(|pid| rustix::process::kill_process(pid, rustix::process::Signal::TERM).is_ok());
        let ended = told && self.child.wait().is_ok();
        if ended { Ok(()) } else { Err(format!("{} does not end", self.side.name())) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The number behind a name in lines of names and numbers; 0 if it is not there.
fn number(text: &str, name: &str) -> f64 {
    let value = text.lines().find_map(|line| line.strip_prefix(name));
    value.and_then(|value| value.split_whitespace().next()?.parse().ok()).unwrap_or(0.0)
}

/// User and system time in `/proc/PID/stat`: the 14th and 15th field. The second, a name, may hold anything.
fn cpu_seconds(stat: &str) -> f64 {
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
    let ticks: f64 = fields.skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
    #[expect(clippy::cast_precision_loss, reason = "a hundred")]
    let per_second = rustix::param::clock_ticks_per_second() as f64;
    ticks / per_second
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_found_behind_any_name() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194304 100 0 0 0 250 50 9 9 20 0 4 0 100 1000 10";
        let per_second = rustix::param::clock_ticks_per_second();
        assert!((cpu_seconds(stat) * per_second as f64 - 300.0).abs() < 1e-6);
        assert!(cpu_seconds(&std::fs::read_to_string("/proc/self/stat").unwrap()) >= 0.0);
    }

    #[test]
    fn numbers_are_found_by_name() {
        let text = "# HELP\nrchar: 1\nwrite_bytes: 4096\nVmRSS:\t  12 kB\n";
        assert!((number(text, "write_bytes:") - 4096.0).abs() < 1e-9 && (number(text, "VmRSS:") - 12.0).abs() < 1e-9);
        assert!(number(text, "missing").abs() < 1e-9);
    }
}
