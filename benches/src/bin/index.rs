//! What the index costs: bytes per key in each state of its life, and how long its operations take.
//!
//! ```text
//! cargo run --release -p polybolt-benches --bin index -- --keys 1000000
//! ```

use clap::Parser;
use peak_alloc::PeakAlloc;
use polybolt_benches::{dataset, machine, now};
use polybolt_index::{Index, KeyRange, Revision, Swept};
use std::hint::black_box;
use std::ops::ControlFlow;

#[global_allocator]
static ALLOCATED: PeakAlloc = PeakAlloc;

/// What the index costs.
#[derive(Debug, Parser)]
struct Args {
    /// Keys, shaped as in Kubernetes.
    #[arg(long, default_value_t = 1_000_000)]
    keys: usize,
}

struct Run {
    keys: Vec<String>,
    index: Index,
    main: u64,
    /// Bytes before the index.
    base: usize,
}

impl Run {
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    fn say(&self, what: &str, took: std::time::Duration, operations: usize) {
        let bytes = (ALLOCATED.current_usage() - self.base) as f64;
        let keys = self.keys.len() as f64;
        let peak = (ALLOCATED.peak_usage() - self.base) as f64;
        println!(
            "{what:<34} {:>7.1} bytes a key, {:>7.1} at most, {:>7.1} by its own count; {:>6.0} ns each",
            bytes / keys,
            peak / keys,
            self.index.stats().bytes as f64 / keys,
            took.as_nanos() as f64 / operations.max(1) as f64
        );
    }

    /// Puts every key once, in a scattered order.
    fn put_all(&mut self) -> std::time::Duration {
        ALLOCATED.reset_peak_usage();
        let began = now();
        for at in dataset::scattered(self.keys.len()) {
            self.main += 1;
            self.index.put(self.keys[at].as_bytes(), Revision::new(self.main, 0));
        }
        began.elapsed()
    }

    fn sweep(&mut self) -> (std::time::Duration, usize) {
        ALLOCATED.reset_peak_usage();
        let (mut removed, mut count) = (Vec::with_capacity(1000), 0);
        let began = now();
        loop {
            let swept = self.index.sweep(self.main, 1000, &mut removed);
            count += removed.len();
            removed.clear();
            if swept == Swept::Done {
                return (began.elapsed(), count);
            }
        }
    }
}

fn main() {
    let args = Args::parse();
    println!("{}", machine());
    let keys = dataset::keys(args.keys);
    let mean = keys.iter().map(String::len).sum::<usize>() / keys.len();
    println!("{} keys of {mean} bytes each", keys.len());
    let base = ALLOCATED.current_usage();
    let mut run = Run { keys, index: Index::new(), main: 1, base };
    let count = run.keys.len();
    let took = run.put_all();
    run.say("put new", took, count);
    let began = now();
    let found = dataset::scattered(count).filter(|at| run.index.get(run.keys[*at].as_bytes(), u64::MAX).is_some());
    let found = found.count();
    run.say("get", began.elapsed(), found);
    let began = now();
    let mut seen = 0;
    run.index.walk(KeyRange::ALL, u64::MAX, &mut |key, hit| {
        seen += black_box(key.len() + hit.modified.sub as usize).min(1);
        ControlFlow::Continue(())
    });
    run.say("walk", began.elapsed(), seen);
    let began = now();
    let pods = KeyRange { start: b"/registry/pods/", end: Some(b"/registry/pods0") };
    let counts = (0..10_000).map(|_| run.index.count(black_box(pods), u64::MAX)).sum::<u64>();
    run.say(&format!("count {}", counts / 10_000), began.elapsed(), 10_000);
    for round in 1..=2 {
        let took = run.put_all();
        run.say(&format!("overwrite, {round} revisions more"), took, count);
    }
    let (took, removed) = run.sweep();
    run.say("swept", took, removed);
}
