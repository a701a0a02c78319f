//! How a read is repeated, and what is done with its rows.

use crate::figure::{Figure, Unit, median};
use crate::measure::now;
use crate::peer::{Result, Row};
use crate::plan::Fold;
use std::time::Duration;

/// Passes that were measured.
pub struct Passes {
    /// Seconds of each.
    pub times: Vec<f64>,
    /// Seconds that this thread had a CPU in all of them: on a busy machine the fairer figure.
    pub cpu: f64,
}

/// Seconds that this thread has had a CPU.
pub fn cpu() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Runs `pass` until the time is up.
pub fn repeat(time: Duration, mut pass: impl FnMut() -> Result<()>) -> Result<Passes> {
    repeat_of(time, || (), |()| pass())
}

/// The same, with what `prepare` makes for each pass while no clock runs.
pub fn repeat_of<T>(
    time: Duration,
    mut prepare: impl FnMut() -> T,
    mut pass: impl FnMut(T) -> Result<()>,
) -> Result<Passes> {
    let begun = now();
    let (mut times, mut cpu_passes) = (Vec::new(), 0.0);
    while times.len() < 3 || (begun.elapsed() < time && times.len() < 100_000) {
        let prepared = prepare();
        let (pass_begun, cpu_begun) = (now(), cpu());
        pass(prepared)?;
        times.push(pass_begun.elapsed().as_secs_f64());
        cpu_passes += cpu() - cpu_begun;
        if begun.elapsed() > time * 20 {
            break;
        }
    }
    Ok(Passes { times, cpu: cpu_passes })
}

impl Passes {
    /// The median of a pass, and the CPU that one takes; `factor` is from seconds to the unit.
    pub fn figures(&self, row: u32, what: &str, unit: Unit, factor: f64) -> Vec<Figure> {
        let each = self.cpu / self.times.len() as f64 * factor;
        let cpu = Figure::new(row, "... of CPU", unit, each);
        vec![Figure::new(row, what, unit, median(&self.times) * factor), cpu]
    }
}

/// What a frontend does with a row: it encodes it into a buffer that goes out when it is full.
pub struct Sink {
    /// Of the rows until now.
    pub fold: Fold,
    wire: Vec<u8>,
}

impl Sink {
    /// An empty one.
    #[expect(clippy::new_without_default, reason = "nobody needs that")]
    pub fn new() -> Self {
        Sink { fold: Fold::default(), wire: Vec::with_capacity(80 << 10) }
    }

    /// Takes a row.
    pub fn take(&mut self, row: &Row<'_>) {
        self.fold.add(row);
        if self.wire.len() > 64 << 10 {
            self.wire.clear();
        }
        self.wire.extend_from_slice(row.key);
        self.wire.extend_from_slice(row.value);
    }

    /// Whether what it took since the last time is right.
    pub fn check(&mut self, expected: Fold, what: &str) -> Result<()> {
        std::hint::black_box(&self.wire);
        let fold = std::mem::take(&mut self.fold);
        if fold == expected {
            return Ok(());
        }
        Err(format!("{what}: wrong, {} rows where {} have to be", fold.rows, expected.rows).into())
    }
}
