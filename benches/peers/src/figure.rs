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
    /// A number of things, or of times.
    Times,
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
}

impl Figure {
    /// A figure.
    pub fn new(row: u32, what: &str, unit: Unit, value: f64) -> Self {
        Figure { row, what: what.to_owned(), unit, value }
    }
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
