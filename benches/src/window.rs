//! Puts and gets at a fixed rate, each timed from when it was due.

use crate::dataset::{Numbers, Values};
use crate::measure::{now, pause};
use hdrhistogram::Histogram;
use polybolt::{Error, Keyspace, PutRequest, RangeRequest, Span};
use std::future::Future;
use std::pin::Pin;
use std::sync::mpsc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// What a window does.
#[derive(Debug, Clone, Copy)]
pub struct Rates {
    /// Puts a second, and as many gets.
    pub rate: u32,
    /// How long.
    pub time: Duration,
}

/// What it saw, in microseconds.
#[derive(Debug)]
pub struct Window {
    /// Of puts.
    pub puts: Histogram<u64>,
    /// Of gets.
    pub gets: Histogram<u64>,
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000, 3).expect("valid bounds")
}

fn note(histogram: &mut Histogram<u64>, due: Instant) {
    histogram.saturating_record(u64::try_from(due.elapsed().as_micros()).unwrap_or(u64::MAX).max(1));
}

/// Calls at the times they are due, whatever the calls before took. Gets are due half a period after puts: else each would
/// wait for the other where processors are few.
fn paced(rates: Rates, begun: Instant, mut call: impl FnMut(Instant) -> Result<(), Error>) -> Result<(), Error> {
    let due = (0..).map(|at| begun + Duration::from_secs(1) * at / rates.rate);
    for due in due.take_while(|due| *due < begun + rates.time) {
        pause(due.saturating_duration_since(now()));
        call(due)?;
    }
    Ok(())
}

/// Runs a window; `meanwhile` begins with it, on this thread. A put that is not answered at once is waited for by
/// another thread, so that the next is put when it is due.
///
/// # Errors
/// Of the first call that fails.
///
/// # Panics
/// If a key is not there.
pub fn run<T>(
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
            let (mut histogram, mut numbers, values) = (histogram(), Numbers::new(seed), Values::new());
            paced(rates, begun, |due| {
                let number = numbers.below(names.len());
                let value = values.of(seed.wrapping_mul(1 << 20).wrapping_add(number as u64)).to_vec();
                let mut put = keyspace.put(PutRequest::new(names[number].clone(), value));
                match Pin::new(&mut put).poll(&mut Context::from_waker(Waker::noop())) {
                    Poll::Ready(answer) => {
                        answer?;
                        note(&mut histogram, due);
                    }
                    // Nobody is left to take it only once a put has failed, which the other thread tells.
                    Poll::Pending => drop(sender.send((due, put))),
                }
                Ok(())
            })?;
            Ok::<_, Error>(histogram)
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
            let begun = begun + Duration::from_secs(1) / (2 * rates.rate);
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
        let mut puts = puts.join().expect("the puts")?;
        puts.add(done.join().expect("the answers")?).expect("the same bounds");
        let window = Window { puts, gets: gets.join().expect("the gets")? };
        Ok((window, meanwhile?))
    })
}

/// The percentiles that are shown.
pub const PERCENTILES: [f64; 4] = [50.0, 99.0, 99.9, 100.0];

/// Those of a window's puts or gets, in milliseconds.
pub fn percentiles(histogram: &Histogram<u64>) -> [f64; 4] {
    #[expect(clippy::cast_precision_loss, reason = "milliseconds for people")]
    PERCENTILES.map(|percent| histogram.value_at_percentile(percent) as f64 / 1000.0)
}

/// Prints them.
pub fn show(what: &str, window: &Window) {
    for (kind, histogram) in [("puts", &window.puts), ("gets", &window.gets)] {
        let [p50, p99, p999, most] = percentiles(histogram);
        println!(
            "  {what:<12} {kind}: p50 {p50:>7.3} ms, p99 {p99:>7.3}, p99.9 {p999:>7.3}, longest {most:>7.3}; {}",
            histogram.len()
        );
    }
}

/// The middle one.
pub fn median(mut ratios: Vec<f64>) -> f64 {
    ratios.sort_unstable_by(f64::total_cmp);
    ratios[ratios.len() / 2]
}

/// Puts all of these, a thousand under way.
///
/// # Errors
/// Of the first put that fails.
pub fn put_all(keyspace: &Keyspace, puts: impl Iterator<Item = (String, Vec<u8>)>) -> Result<(), Error> {
    let mut under_way = std::collections::VecDeque::new();
    for (key, value) in puts {
        under_way.push_back(keyspace.put(PutRequest::new(key, value)));
        if under_way.len() > 1000 {
            under_way.pop_front().map(polybolt::Pending::wait).transpose()?;
        }
    }
    under_way.into_iter().try_for_each(|put| put.wait().map(drop))
}
