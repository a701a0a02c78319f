//! The server under soak: the real command, on a disk made slow, and what can be seen of it from outside.

use serde::Serialize;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A served store, killed when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    pub(crate) port: u16,
    dir: PathBuf,
}

/// How slow the disk is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slow {
    pub(crate) sync: Duration,
    pub(crate) write: Duration,
}

/// What was seen in one second.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Sample {
    /// Seconds since the soak began.
    pub(crate) at: f64,
    /// Seconds that the server took to answer.
    pub(crate) answered_in: f64,
    pub(crate) phase: &'static str,
    /// Allocated bytes that are resident, all that is resident, and the bound at that moment.
    pub(crate) anonymous: u64,
    pub(crate) resident: u64,
    pub(crate) bound: u64,
    /// Bytes of the data directory.
    pub(crate) files: u64,
    pub(crate) gauges: BTreeMap<String, f64>,
}

impl Sample {
    pub(crate) fn gauge(&self, name: &str) -> f64 {
        self.gauges.get(name).copied().unwrap_or(0.0)
    }
}

/// Gauges that are kept.
pub(crate) const GAUGES: [&str; 25] = [
    "etcd_mvcc_db_open_read_transactions",
    "polybolt_pin_oldest_seconds",
    "polybolt_pin_held_revisions",
    "polybolt_pins_let_go_total",
    "polybolt_writes_waiting",
    "polybolt_writes_waiting_bytes",
    "polybolt_buffered_bytes",
    "polybolt_index_bytes",
    "polybolt_connections",
    "polybolt_calls",
    "polybolt_watch_send_bytes",
    "polybolt_snapshot_streams",
    "polybolt_snapshot_send_bytes",
    "polybolt_range_streams",
    "polybolt_range_stream_send_bytes",
    "polybolt_range_unread_bytes",
    "polybolt_journal_bytes",
    "polybolt_checkpoints",
    "etcd_debugging_mvcc_watch_stream_total",
    "etcd_debugging_mvcc_watcher_total",
    "etcd_debugging_mvcc_slow_watcher_total",
    "etcd_debugging_mvcc_pending_events_total",
    "etcd_debugging_mvcc_current_revision",
    "etcd_debugging_mvcc_compact_revision",
    "etcd_mvcc_db_total_size_in_use_in_bytes",
];

fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

impl Server {
    /// Serves `dir`, with every write and sync slower by so much: strace holds the threads that make the
    /// calls for that long after each, so that the server's own write path is what is slow.
    pub(crate) fn start(program: &Path, dir: &Path, slow: Slow, flags: &[String]) -> Result<Server, String> {
        let failed = |error: std::io::Error| format!("{}: {error}", program.display());
        let port = free_port().map_err(failed)?;
        let delay = |call: &str, time: Duration| format!("inject={call}:delay_exit={}", time.as_micros());
        let mut command = Command::new("strace");
        // As a grandchild, so that the server is the child.
        command.args(["-D", "-f", "-qq", "--seccomp-bpf", "-o", "/dev/null", "-e", "trace=fdatasync,pwrite64"]);
        command.args(["-e", &delay("fdatasync", slow.sync), "-e", &delay("pwrite64", slow.write)]);
        command.arg(program).arg("serve").arg("--data-dir").arg(dir).args(flags);
        command.args(["--listen-client-urls", &format!("http://127.0.0.1:{port}"), "--log-level", "warn"]);
        let log = dir.with_extension("log");
        #[expect(clippy::disallowed_methods, reason = "the log of the server")]
        let log = std::fs::File::create(&log).map_err(failed)?;
        let child = command.stdout(Stdio::null()).stderr(log).spawn().map_err(failed)?;
        let mut server = Server { child, port, dir: dir.to_owned() };
        let limit = polybolt_benches::now() + Duration::from_secs(60);
        while server.get("/version").is_err() {
            if server.child.try_wait().is_ok_and(|ended| ended.is_some()) || polybolt_benches::now() > limit {
                return Err(format!("the server does not answer; see {}", dir.with_extension("log").display()));
            }
            polybolt_benches::pause(Duration::from_millis(50));
        }
        Ok(server)
    }

    fn get(&self, path: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    }

    fn status(&self) -> String {
        std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default()
    }

    /// What can be seen now.
    pub(crate) fn sample(&self, begun: Instant, phase: &'static str) -> Result<Sample, String> {
        let asked = polybolt_benches::now();
        let text = self.get("/metrics").map_err(|error| format!("the server does not answer: {error}"))?;
        let values = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.rsplit_once(' '));
        let all: BTreeMap<&str, f64> =
            values.filter_map(|(name, value)| Some((name, value.trim().parse().ok()?))).collect();
        let status = self.status();
        let kib = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|line| line.split_whitespace().next()).and_then(|text| text.parse::<u64>().ok());
            number.unwrap_or(0) * 1024
        };
        let bound = all.get("polybolt_memory_bound_bytes").copied().unwrap_or(0.0);
        Ok(Sample {
            at: begun.elapsed().as_secs_f64(),
            answered_in: asked.elapsed().as_secs_f64(),
            phase,
            anonymous: kib("RssAnon:"),
            resident: kib("VmRSS:"),
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bytes")]
            bound: bound as u64,
            files: bytes_of(&self.dir),
            gauges: GAUGES.iter().filter_map(|name| Some(((*name).to_owned(), *all.get(name)?))).collect(),
        })
    }

    /// SIGTERM; true if it ended well.
    pub(crate) fn stop(mut self) -> bool {
        let pid = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw);
        let told = pid.is_some_and(|pid| rustix::process::kill_process(pid, rustix::process::Signal::TERM).is_ok());
        told && self.child.wait().is_ok_and(|status| status.success())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Bytes that a directory takes on the disk.
fn bytes_of(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    let of = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => bytes_of(&entry.path()),
        Ok(metadata) => metadata.blocks() * 512,
        Err(_) => 0,
    };
    entries.filter_map(Result::ok).map(of).sum()
}
