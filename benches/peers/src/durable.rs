//! Row 12, and a slow trickle of row 18: durable puts of one caller.

use crate::callers::put;
use crate::cost::Meter;
use crate::dataset::Numbers;
use crate::figure::{Figure, Unit, median};
use crate::later::Later;
use crate::measure::{now, pause};
use crate::peer::{MvccPeer, Result};
use crate::raw::Preallocated;
use std::path::Path;
use std::time::Duration;

const PUTS: usize = 400;
/// Puts a second of the trickle.
const TRICKLE: u32 = 200;

/// Puts and bare syncs of as many bytes, by turns.
pub fn alternating(peer: &dyn MvccPeer, later: &Later, dir: &Path) -> Result<Vec<Figure>> {
    let file = dir.join("raw");
    let mut raw = Preallocated::create(&file, 16 << 20)?;
    let mut numbers = Numbers::new(12);
    let (mut puts, mut syncs) = (Vec::new(), Vec::new());
    for _ in 0..PUTS {
        let pair = later.pair(numbers.below(later.keys()));
        let begun = now();
        put(peer, pair)?;
        puts.push(begun.elapsed().as_secs_f64());
        let bytes = [pair.key, pair.value].concat();
        let begun = now();
        raw.write_synced(&bytes)?;
        syncs.push(begun.elapsed().as_secs_f64());
    }
    std::fs::remove_file(file)?;
    puts.sort_by(f64::total_cmp);
    syncs.sort_by(f64::total_cmp);
    Ok(vec![
        Figure::new(12, "durable put, 1 caller", Unit::Us, median(&puts) * 1e6).with_curve(&puts, 1e6),
        Figure::new(12, "... a bare fdatasync by turns", Unit::Us, median(&syncs) * 1e6).with_curve(&syncs, 1e6),
        Figure::new(12, "... of it", Unit::Times, median(&puts) / median(&syncs)),
    ])
}

/// A few puts a second, each durable: what is written for them once all of it is where it stays.
pub fn trickle(peer: &dyn MvccPeer, later: &Later, time: Duration) -> Result<Vec<Figure>> {
    peer.flush()?;
    let (meter, mut numbers, begun) = (Meter::start(peer), Numbers::new(18), now());
    let (mut bytes, mut due) = (0, Duration::ZERO);
    while due < time {
        pause(due.saturating_sub(begun.elapsed()));
        let pair = later.pair(numbers.below(later.keys()));
        put(peer, pair)?;
        bytes += pair.key.len() + pair.value.len();
        due += Duration::from_secs(1) / TRICKLE;
    }
    peer.flush()?;
    let (written, _) = meter.since(peer);
    let what = "bytes written a record byte, Sync, 200 puts/s";
    Ok(vec![Figure::new(18, what, Unit::Times, written as f64 / bytes as f64)])
}
