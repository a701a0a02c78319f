//! Workloads over polybolt, and what they are measured with.
#![forbid(unsafe_code)]

pub mod dataset;
pub mod measure;
pub mod server;
pub mod window;

pub use measure::{Resident, etcd_core, machine, mib, now, pause, resident};

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

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
