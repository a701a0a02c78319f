//! Puts and gets at a fixed rate, each timed from when it was due.

use hdrhistogram::Histogram;
use polybolt::{Error, Keyspace, PutRequest, RangeRequest, Span};
use polybolt_benches::dataset::{Numbers, Values};
use polybolt_benches::{now, pause};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// What a window does.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rates {
    /// Puts a second, and as many gets.
    pub(crate) rate: u32,
    /// How long.
    pub(crate) time: Duration,
}

/// What it saw, in microseconds.
#[derive(Debug)]
pub(crate) struct Window {
    pub(crate) puts: Histogram<u64>,
    pub(crate) gets: Histogram<u64>,
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000, 3).expect("valid bounds")
}

fn note(histogram: &mut Histogram<u64>, due: Instant) {
    histogram.saturating_record(u64::try_from(due.elapsed().as_micros()).unwrap_or(u64::MAX).max(1));
}

/// Calls at the times they are due, whatever the calls before took.
fn paced(rates: Rates, begun: Instant, mut call: impl FnMut(Instant) -> Result<(), Error>) -> Result<(), Error> {
    let due = (0..).map(|at| begun + Duration::from_secs(1) * at / rates.rate);
    for due in due.take_while(|due| *due < begun + rates.time) {
        pause(due.saturating_duration_since(now()));
        call(due)?;
    }
    Ok(())
}

/// Runs a window; `meanwhile` begins with it, on this thread.
pub(crate) fn run<T>(
    keyspace: &Keyspace,
    names: &[String],
    rates: Rates,
    seed: u64,
    meanwhile: impl FnOnce() -> Result<T, Error>,
) -> Result<(Window, T), Error> {
    let begun = now();
    let (sender, pending) = mpsc::channel();
    std::thread::scope(|scope| {
        let puts = scope.spawn(move || {
            let (mut numbers, values) = (Numbers::new(seed), Values::new());
            paced(rates, begun, |due| {
                let number = numbers.below(names.len());
                let value = values.of(seed.wrapping_mul(1 << 20).wrapping_add(number as u64)).to_vec();
                // Nobody is left to take it only once a put has failed, which the other thread tells.
                sender.send((due, keyspace.put(PutRequest::new(names[number].clone(), value)))).ok();
                Ok(())
            })
        });
        let done = scope.spawn(move || {
            let mut histogram = histogram();
            for (due, put) in pending {
                put.wait()?;
                note(&mut histogram, due);
            }
            Ok::<_, Error>(histogram)
        });
        let gets = scope.spawn(move || {
            let (mut histogram, mut numbers) = (histogram(), Numbers::new(seed + 1));
            paced(rates, begun, |due| {
                let name = &names[numbers.below(names.len())];
                let answer = keyspace.range(&RangeRequest::new(Span::key(name.clone())))?;
                assert_eq!(answer.kvs.len(), 1, "{name} is there");
                note(&mut histogram, due);
                Ok(())
            })?;
            Ok::<_, Error>(histogram)
        });
        let meanwhile = meanwhile();
        puts.join().expect("the puts")?;
        let window = Window { puts: done.join().expect("the answers")?, gets: gets.join().expect("the gets")? };
        Ok((window, meanwhile?))
    })
}
