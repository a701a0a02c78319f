//! Figures: what a row measured in one round.

use serde::{Deserialize, Serialize};

/// What a figure counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    /// Nanoseconds.
    Ns,
    /// Microseconds.
    Us,
    /// Milliseconds.
    Ms,
    /// Seconds.
    S,
    /// Operations a second.
    PerSecond,
    /// Bytes.
    Bytes,
    /// A number of times.
    Times,
    /// A number of things.
    Count,
}

impl Unit {
    /// True if less is better.
    pub fn less_is_better(self) -> bool {
        !matches!(self, Unit::PerSecond)
    }

    /// Its name, for people.
    pub fn name(self) -> &'static str {
        match self {
            Unit::Ns => "ns",
            Unit::Us => "us",
            Unit::Ms => "ms",
            Unit::S => "s",
            Unit::PerSecond => "/s",
            Unit::Bytes => "bytes",
            Unit::Times => "x",
            Unit::Count => "",
        }
    }
}

/// One figure.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Figure {
    /// Of which row; those of no row have 0.
    pub row: u32,
    /// What it is.
    pub what: String,
    /// In what.
    pub unit: Unit,
    /// How much.
    pub value: f64,
    /// True if it is what a row held, wrote or synced, not what it measures.
    #[serde(default)]
    pub cost: bool,
    /// Of latencies: a share of all, and the time within which they were answered, in the unit.
    #[serde(default)]
    pub curve: Vec<(f64, f64)>,
}

impl Figure {
    /// A figure.
    pub fn new(row: u32, what: &str, unit: Unit, value: f64) -> Self {
        Figure { row, what: what.to_owned(), unit, value, cost: false, curve: Vec::new() }
    }

    /// What a row held, wrote or synced.
    pub fn cost(row: u32, what: &str, unit: Unit, value: f64) -> Self {
        Figure { cost: true, ..Figure::new(row, what, unit, value) }
    }

    /// With the curve of some latencies in seconds; `factor` is from seconds to the unit.
    #[must_use]
    pub fn with_curve(mut self, sorted: &[f64], factor: f64) -> Self {
        self.curve = SHARES.iter().map(|share| (*share, quantile(sorted, *share) * factor)).collect();
        self
    }
}

/// Where a curve of latencies has its points.
pub const SHARES: [f64; 11] = [0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.995, 0.999, 0.9999, 1.0];

/// The number of a sorted list below which a share of all lies.
pub fn quantile(sorted: &[f64], share: f64) -> f64 {
    let at = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(at.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

/// The middle one of some numbers.
pub fn median(numbers: &[f64]) -> f64 {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        len if len % 2 == 1 => sorted[len / 2],
        len => f64::midpoint(sorted[len / 2 - 1], sorted[len / 2]),
    }
}
