//! Workloads over polybolt, and what they are measured with.
#![forbid(unsafe_code)]

pub mod dataset;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A key as a Kubernetes API server makes them; `n` below a million gives a million different ones.
pub fn kubernetes_key(n: u64) -> String {
    // Scattered, so that keys do not come in order.
    let id = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
    let namespace = id % 997;
    match n % 20 {
        0..7 => format!("/registry/events/ns-{namespace:03}/web-{n:07}.{id:011x}"),
        7..13 => format!("/registry/pods/ns-{namespace:03}/web-{id:011x}-{n:07}"),
        13..15 => format!("/registry/leases/kube-node-lease/node-{n:07}"),
        15..17 => format!("/registry/configmaps/ns-{namespace:03}/conf-{n:07}"),
        17 => format!("/registry/secrets/ns-{namespace:03}/token-{n:07}"),
        18 => format!("/registry/minions/node-{n:07}"),
        _ => format!("/registry/replicasets/ns-{namespace:03}/web-{id:011x}-{n:07}"),
    }
}

/// A value of `bytes` bytes that compresses badly.
pub fn value(n: u64, bytes: usize) -> Vec<u8> {
    let mut state = n | 1;
    let mut out = Vec::with_capacity(bytes + 8);
    while out.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(bytes);
    out
}

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

/// Samples resident memory every second until it is taken.
#[derive(Debug)]
pub struct Sampler {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Resident>>,
}

impl Sampler {
    /// Begins; each sample is printed with `what`.
    pub fn start(what: &'static str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut samples = Vec::new();
            let mut slept = 0;
            while !stopped.load(Ordering::Acquire) {
                if slept % 20 == 0 {
                    let now = resident();
                    println!(
                        "  {what} {:>3} s: anonymous {}, mapped {}",
                        slept / 20,
                        mib(now.anonymous),
                        mib(now.file)
                    );
                    samples.push(now);
                }
                slept += 1;
                pause(Duration::from_millis(50));
            }
            samples.push(resident());
            samples
        });
        Sampler { stop, thread }
    }

    /// The highest of all samples.
    pub fn finish(self) -> Resident {
        self.stop.store(true, Ordering::Release);
        let samples = self.thread.join().unwrap_or_default();
        Resident {
            anonymous: samples.iter().map(|sample| sample.anonymous).max().unwrap_or(0),
            file: samples.iter().map(|sample| sample.file).max().unwrap_or(0),
        }
    }
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
