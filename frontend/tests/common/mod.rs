//! A served `polybolt`, as a process.
#![expect(dead_code, reason = "each test uses a part of it")]

pub(crate) mod counting;
pub(crate) mod ctl;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// The command under test.
pub(crate) fn polybolt() -> Command {
    Command::new(env!("CARGO_BIN_EXE_polybolt"))
}

/// A free port of this machine, below those that the system gives to whoever asks for any: between now and
/// the server's start nobody gets it as the near end of a connection.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        // Other processes begin elsewhere.
        let at = std::process::id().wrapping_mul(7919).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = u16::try_from(12_000 + at % 20_000).unwrap();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// A server, killed when dropped.
pub(crate) struct Served {
    child: Child,
    pub(crate) port: u16,
    /// What it says.
    log: tempfile::NamedTempFile,
}

impl Served {
    /// Serves `dir` and waits until it answers.
    pub(crate) fn start(dir: &Path, flags: &[&str]) -> Served {
        let mut command = polybolt();
        command.arg("serve");
        Served::start_with(command, dir, flags)
    }

    /// The same, with the command up to and including `serve`.
    pub(crate) fn start_with(command: Command, dir: &Path, flags: &[&str]) -> Served {
        Served::start_at(command, dir, free_port(), flags)
    }

    /// The same, on a port.
    pub(crate) fn start_at(mut command: Command, dir: &Path, port: u16, flags: &[&str]) -> Served {
        let url = format!("http://127.0.0.1:{port}");
        command.arg("--data-dir").arg(dir).args(["--listen-client-urls", &url]).args(flags);
        let log = tempfile::NamedTempFile::new().unwrap();
        let child = command.stdout(Stdio::null()).stderr(log.reopen().unwrap()).spawn().unwrap();
        let mut served = Served { child, port, log };
        served.wait_ready();
        served
    }

    /// A real etcd of one member instead.
    pub(crate) fn etcd(program: &str, dir: &Path, port: u16, flags: &[&str]) -> Served {
        let (url, peers) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{}", free_port()));
        let mut command = Command::new(program);
        command.args(["--name", "default", "--log-level", "error", "--advertise-client-urls", &url]);
        command.args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers]);
        command.args(["--initial-cluster", &format!("default={peers}")]);
        Served::start_at(command, dir, port, flags)
    }

    /// Until it answers: that it listens could be somebody else, or not be for long.
    fn wait_ready(&mut self) {
        let limit = Instant::now() + Duration::from_secs(60);
        while !self.answers() {
            if self.child.try_wait().unwrap().is_some() {
                panic!("the server ended: {}", std::fs::read_to_string(self.log.path()).unwrap());
            }
            assert!(Instant::now() < limit, "the server does not answer");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn answers(&self) -> bool {
        let ask = || -> std::io::Result<bool> {
            let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            stream.write_all(b"GET /version HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")?;
            let mut answer = [0; 5];
            stream.read_exact(&mut answer)?;
            Ok(answer == *b"HTTP/")
        };
        ask().unwrap_or(false)
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM; true if it ended well.
    pub(crate) fn stop(mut self) -> bool {
        let done = Command::new("kill").arg("-TERM").arg(self.child.id().to_string()).status().unwrap();
        assert!(done.success());
        self.child.wait().unwrap().success()
    }

    /// Waits for the process to end by itself.
    pub(crate) fn wait(mut self) -> bool {
        self.child.wait().unwrap().success()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
#[derive(Debug, Clone)]
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// True if a program is there. With `POLYBOLT_REQUIRE_PROGRAMS` set, its absence is a failure.
pub(crate) fn has_program(name: &str) -> bool {
    let found = Command::new("which").arg(name).stdout(Stdio::null()).status().is_ok_and(|status| status.success());
    assert!(found || std::env::var_os("POLYBOLT_REQUIRE_PROGRAMS").is_none(), "{name} is not installed");
    if !found {
        eprintln!("skipped: {name} is not installed");
    }
    found
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs a command; its output if it succeeded.
pub(crate) fn succeed(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    assert!(status.success(), "{command:?}: {}{}", text(&stdout), text(&stderr));
    text(&stdout)
}
