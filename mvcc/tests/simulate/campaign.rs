//! Many seeds, on all processors.

use crate::coverage::Table;
use crate::run::{Violation, keep_panics, run};
use parking_lot::Mutex;
use polybolt::run::{Clock, SystemClock};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Which seeds, and how.
#[derive(Debug, Clone)]
pub(crate) struct Campaign {
    pub(crate) first: u64,
    pub(crate) seeds: Option<u64>,
    pub(crate) seconds: Option<u64>,
    pub(crate) default_seeds: u64,
    pub(crate) skip: BTreeSet<u64>,
    pub(crate) trace: bool,
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) table: Table,
    pub(crate) took: Duration,
    /// Of the lowest seed that broke a promise.
    pub(crate) violation: Option<Violation>,
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seconds = self.took.as_secs_f64().max(0.001);
        let seeds = self.table.seeds;
        writeln!(f, "{seeds} seeds in {seconds:.1} s, {:.1} seeds/s", seeds as f64 / seconds)?;
        write!(f, "{}", self.table)
    }
}

impl Campaign {
    pub(crate) fn run(&self) -> Report {
        keep_panics();
        let clock = SystemClock::default();
        let began = clock.monotonic();
        let until = self.seconds.map(|seconds| began + Duration::from_secs(seconds));
        let count = self.seeds.or(self.seconds.is_none().then_some(self.default_seeds)).unwrap_or(u64::MAX);
        let next = AtomicU64::new(0);
        let stop = AtomicBool::new(false);
        let table = Mutex::new(Table::default());
        let violation: Mutex<Option<Violation>> = Mutex::default();
        let work = || {
            while !stop.load(Ordering::Relaxed) && until.is_none_or(|until| clock.monotonic() < until) {
                let at = next.fetch_add(1, Ordering::Relaxed);
                if at >= count {
                    return;
                }
                match run(self.first + at, &self.skip, self.trace) {
                    Ok(coverage) => table.lock().take(&coverage),
                    Err(found) => {
                        stop.store(true, Ordering::Relaxed);
                        let mut slot = violation.lock();
                        if slot.as_ref().is_none_or(|known| found.seed < known.seed) {
                            *slot = Some(found);
                        }
                    }
                }
            }
        };
        let lanes = std::thread::available_parallelism().map_or(1, usize::from);
        std::thread::scope(|scope| {
            (0..lanes).for_each(|_| drop(scope.spawn(work)));
        });
        drop(std::panic::take_hook());
        let took = clock.monotonic() - began;
        Report { table: table.into_inner(), took, violation: violation.into_inner() }
    }

    /// How to replay a violation, with as few operations as are needed to see it.
    pub(crate) fn explain(&self, violation: &Violation) -> String {
        let Violation { seed, operation, what } = violation;
        let skip = shorten(violation, &self.skip);
        let kept = (0..=*operation).filter(|operation| !skip.contains(operation)).count();
        format!(
            "seed {seed}, operation {operation}: {what}\n\
             {kept} operations are enough. Replay with:\n\
             POLYBOLT_SIM_SEED={seed} POLYBOLT_SIM_SEEDS=1 POLYBOLT_SIM_TRACE=1 POLYBOLT_SIM_SKIP={} \
             cargo test --release -p polybolt --test simulate -- --nocapture",
            runs(&skip)
        )
    }
}

/// Leaves out ever smaller runs of operations, as long as a promise is still broken.
fn shorten(violation: &Violation, skip: &BTreeSet<u64>) -> BTreeSet<u64> {
    keep_panics();
    let mut skip = skip.clone();
    let last = violation.operation;
    let mut tries = 0;
    let mut size = (last / 2).max(1);
    loop {
        let mut from = 0;
        while from <= last && tries < 400 {
            let more: BTreeSet<u64> = skip.iter().copied().chain(from..(from + size).min(last + 1)).collect();
            if more.len() > skip.len() {
                tries += 1;
                let still = run(violation.seed, &more, false);
                if still.is_err_and(|still| still.operation <= last && same(&still.what, &violation.what)) {
                    skip = more;
                }
            }
            from += size;
        }
        if size == 1 || tries >= 400 {
            drop(std::panic::take_hook());
            return skip;
        }
        size /= 2;
    }
}

/// True if two violations come from the same line.
fn same(a: &str, b: &str) -> bool {
    let place = |text: &str| text.rsplit(" (").next().unwrap_or_default().to_owned();
    place(a) == place(b)
}

/// A number in the environment.
pub(crate) fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

/// `3-40,50` as numbers.
pub(crate) fn skipped(text: &str) -> BTreeSet<u64> {
    let mut skip = BTreeSet::new();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        skip.extend(from.parse::<u64>().unwrap()..=to.parse().unwrap());
    }
    skip
}

fn runs(skip: &BTreeSet<u64>) -> String {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for &at in skip {
        match runs.last_mut() {
            Some((_, to)) if *to + 1 == at => *to = at,
            _ => runs.push((at, at)),
        }
    }
    runs.iter().map(|(from, to)| format!("{from}-{to}")).collect::<Vec<_>>().join(",")
}
