//! What everything here is measured with.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Resident memory of this process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Resident {
    /// Anonymous bytes: what was allocated.
    pub anonymous: u64,
    /// Bytes of mapped files, which the system may take back at any time.
    pub file: u64,
}

/// What is resident now.
pub fn resident() -> Resident {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name));
        let number = line.and_then(|line| line.split_whitespace().nth(1)).and_then(|number| number.parse::<u64>().ok());
        number.unwrap_or(0) * 1024
    };
    Resident { anonymous: field("RssAnon:"), file: field("RssFile:") }
}

/// Waits.
#[expect(clippy::disallowed_methods, reason = "a benchmark paces itself")]
pub fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// Now.
#[expect(clippy::disallowed_methods, reason = "a benchmark measures time")]
pub fn now() -> Instant {
    Instant::now()
}

/// Bytes for people.
pub fn mib(bytes: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let mib = bytes as f64 / f64::from(1 << 20);
    format!("{mib:.1} MiB")
}

/// What machine this is, for the head of a report.
pub fn machine() -> String {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or("?", |(_, name)| name.trim());
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!("{cores} cores, {model}")
}

/// Runs a workload of etcd's own core on so many keys; the lines that it prints, none if it cannot be run.
pub fn etcd_core(program: &Path, keys: usize, arguments: &[&str]) -> String {
    let output =
        Command::new(program).args(["-keys", &keys.to_string()]).args(arguments).stderr(Stdio::null()).output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
}
