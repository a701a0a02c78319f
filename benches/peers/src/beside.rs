//! Rows 4 and 15: one writer in `Batch` beside one reader, and each alone.

use crate::dataset::Numbers;
use crate::figure::{Figure, Unit, quantile};
use crate::later::Later;
use crate::measure::{now, pause};
use crate::peer::{Commit, List, MvccPeer, Next, Result, Span};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const PODS: Span<'static> = Span { start: b"/registry/pods/", after: false, end: b"/registry/pods0" };

/// Latencies in seconds of puts, one after the other or at a rate, and the time until they were durable.
struct Puts {
    latencies: Vec<f64>,
    seconds: f64,
}

impl Puts {
    fn rate(&self) -> f64 {
        self.latencies.len() as f64 / self.seconds
    }
}

/// A put that is due counts from then on: one that waits for another does, too. One that is called early by the timer
/// counts from the call.
fn puts(peer: &dyn MvccPeer, later: &Later, time: Duration, rate: Option<f64>, seed: u64) -> Result<Puts> {
    let (mut numbers, mut latencies) = (Numbers::new(seed), Vec::new());
    let step = rate.map(|rate| Duration::from_secs_f64(rate.recip()));
    let begun = now();
    let mut from = Duration::ZERO;
    let before = peer.revision()?;
    peer.session(Commit::Batch, &mut |session| {
        if let Some(step) = step {
            let due = step * u32::try_from(latencies.len())?;
            loop {
                match due.saturating_sub(begun.elapsed()) {
                    Duration::ZERO => break,
                    left if left > Duration::from_micros(200) => pause(left - Duration::from_micros(100)),
                    _ => std::hint::spin_loop(),
                }
            }
            from = due;
        }
        later.put(numbers.below(later.keys()), session)?;
        let answered = begun.elapsed();
        latencies.push((answered - from).as_secs_f64());
        from = answered;
        Ok(if answered < time { Next::More } else { Next::Done })
    })?;
    let seconds = begun.elapsed().as_secs_f64();
    if peer.revision()? != before + latencies.len() as u64 {
        return Err("a put was lost".into());
    }
    latencies.sort_by(f64::total_cmp);
    Ok(Puts { latencies, seconds })
}

/// Runs `work` again and again on a thread of its own while `body` runs: what it did a second.
fn beside<T>(work: &(dyn Fn(usize) -> Result<()> + Sync), body: impl FnOnce() -> Result<T>) -> Result<(T, f64)> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let (begun, mut done) = (now(), 0);
            while !stop.load(Ordering::Relaxed) {
                work(done)?;
                done += 1;
            }
            Ok::<f64, Box<dyn std::error::Error + Send + Sync>>(done as f64 / begun.elapsed().as_secs_f64())
        });
        let outcome = body();
        stop.store(true, Ordering::Relaxed);
        let rate = worker.join().map_err(|_| "a reader panicked")??;
        Ok((outcome?, rate))
    })
}

/// Row 4.
pub fn gets(peer: &dyn MvccPeer, later: &Later, time: Duration) -> Result<Vec<Figure>> {
    let get = |at: usize| later.get(Numbers::new(400 + at as u64).below(later.keys()), peer).map(drop);
    let ((), alone) = beside(&get, || {
        pause(time);
        Ok(())
    })?;
    let puts_alone = puts(peer, later, time, None, 41)?.rate();
    let (both, gets_beside) = beside(&get, || puts(peer, later, time, None, 42))?;
    Ok(vec![
        Figure::new(4, "gets alone", Unit::PerSecond, alone),
        Figure::new(4, "... beside a writer at full speed", Unit::PerSecond, gets_beside),
        Figure::new(4, "... of alone", Unit::Times, gets_beside / alone),
        Figure::new(4, "puts alone", Unit::PerSecond, puts_alone),
        Figure::new(4, "... beside gets at full speed", Unit::PerSecond, both.rate()),
        Figure::new(4, "puts beside gets, of alone", Unit::Times, both.rate() / puts_alone),
    ])
}

/// Row 15.
pub fn ranges(peer: &dyn MvccPeer, later: &Later, time: Duration) -> Result<Vec<Figure>> {
    let pods = later.within(PODS);
    let range = |_| {
        let (mut next, mut wrong, mut wire) = (pods.start, 0, Vec::with_capacity(80 << 10));
        let list = List { span: PODS, at: 0, limit: usize::MAX, count: false };
        peer.list(list, &mut |row| {
            wrong += usize::from(next >= pods.end || !later.is_right(next, &row));
            next += 1;
            if wire.len() > 64 << 10 {
                wire.clear();
            }
            wire.extend_from_slice(row.key);
            wire.extend_from_slice(row.value);
        })?;
        std::hint::black_box(&wire);
        if (next, wrong) == (pods.end, 0) { Ok(()) } else { Err("a range beside puts is wrong".into()) }
    };
    let alone = puts(peer, later, time, None, 151)?.rate();
    let (full, ranges) = beside(&range, || puts(peer, later, time, None, 152))?;
    let mut figures = vec![
        Figure::new(15, "puts alone", Unit::PerSecond, alone),
        Figure::new(15, "puts beside an endless full range", Unit::PerSecond, full.rate()),
        Figure::new(15, "... of alone", Unit::Times, full.rate() / alone),
        Figure::new(15, "... full ranges", Unit::PerSecond, ranges),
    ];
    figures.extend(paced(15, "the range", peer, later, time, alone / 2.0, &range)?);
    Ok(figures)
}

/// Of row 17, puts beside a watcher that catches up from a revision on, again and again.
pub fn history(peer: &dyn MvccPeer, later: &Later, from: u64, time: Duration) -> Result<Vec<Figure>> {
    let history = |_| {
        let (mut next, mut wrong) = (from, 0);
        let upto = peer.revision()?;
        peer.history(from, &mut |row| {
            wrong += usize::from(row.modified != next);
            next += 1;
        })?;
        if next > upto && wrong == 0 { Ok(()) } else { Err("history beside puts is wrong".into()) }
    };
    let alone = puts(peer, later, time / 2, None, 171)?.rate();
    paced(17, "a watcher that catches up", peer, later, time, alone / 2.0, &history)
}

/// Puts at a rate, without and then with something beside them.
fn paced(
    row: u32,
    beside_what: &str,
    peer: &dyn MvccPeer,
    later: &Later,
    time: Duration,
    rate: f64,
    work: &(dyn Fn(usize) -> Result<()> + Sync),
) -> Result<Vec<Figure>> {
    let quiet = puts(peer, later, time * 2, Some(rate), 1000 + u64::from(row))?.latencies;
    let (busy, _) = beside(work, || puts(peer, later, time * 2, Some(rate), 2000 + u64::from(row)))?;
    let busy = busy.latencies;
    let p99 = |what: &str, latencies: &[f64]| {
        Figure::new(row, what, Unit::Us, quantile(latencies, 0.99) * 1e6).with_curve(latencies, 1e6)
    };
    let over =
        |what: &str, share| Figure::new(row, what, Unit::Times, quantile(&busy, share) / quantile(&quiet, share));
    Ok(vec![
        p99("puts at half speed, p99", &quiet),
        p99(&format!("puts at half speed beside {beside_what}, p99"), &busy),
        over("... p99 of without", 0.99),
        over("... p99.9 of without", 0.999),
    ])
}
