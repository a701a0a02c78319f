//! Rows 11 and 13: 64 callers, each with a thread and one put at a time.

use crate::combine;
use crate::cost::Meter;
use crate::dataset::Numbers;
use crate::figure::{Figure, Unit, quantile};
use crate::measure::now;
use crate::peer::{Commit, MvccPeer, Next, Pair, Result};
use std::time::Duration;

/// How many.
pub const CALLERS: usize = 64;

/// How long callers go on.
#[derive(Debug, Clone, Copy)]
pub struct Until {
    /// Until this time,
    pub time: Duration,
    /// or until each has put this often.
    pub puts: u64,
}

/// What callers were served.
pub struct Served {
    /// Seconds from a call to its answer, sorted.
    pub latencies: Vec<f64>,
    /// Bytes of keys and values.
    pub bytes: u64,
    /// Seconds until all of it was durable.
    pub seconds: f64,
}

impl Served {
    fn rate(&self) -> f64 {
        self.latencies.len() as f64 / self.seconds
    }
}

/// What callers put.
#[derive(Clone, Copy)]
pub struct Pairs<'a> {
    /// How many there are.
    pub count: usize,
    /// One of them.
    pub pair: &'a (dyn Fn(usize) -> Pair<'a> + Sync),
}

type PutBy<'a> = &'a (dyn Fn(usize, Pair<'_>) -> Result<()> + Sync);

fn threads(pairs: Pairs<'_>, until: Until, put: PutBy<'_>) -> Result<Served> {
    let begun = now();
    let caller = |at: usize| {
        let mut numbers = Numbers::new(1300 + at as u64);
        let (mut latencies, mut bytes) = (Vec::new(), 0);
        let mut since = Duration::ZERO;
        while since < until.time && (latencies.len() as u64) < until.puts {
            let pair = (pairs.pair)(numbers.below(pairs.count));
            put(at, pair)?;
            let answered = begun.elapsed();
            latencies.push((answered - since).as_secs_f64());
            bytes += (pair.key.len() + pair.value.len()) as u64;
            since = answered;
        }
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>((latencies, bytes))
    };
    std::thread::scope(|scope| {
        let caller = &caller;
        let callers: Vec<_> = (0..CALLERS).map(|at| scope.spawn(move || caller(at))).collect();
        let mut served = Served { latencies: Vec::new(), bytes: 0, seconds: 0.0 };
        for caller in callers {
            let (latencies, bytes) = caller.join().map_err(|_| "a caller panicked")??;
            served.latencies.extend(latencies);
            served.bytes += bytes;
        }
        served.latencies.sort_by(f64::total_cmp);
        served.seconds = begun.elapsed().as_secs_f64();
        Ok(served)
    })
}

/// One put, as durable as the store was opened for.
pub fn put(peer: &dyn MvccPeer, pair: Pair<'_>) -> Result<()> {
    let mut put = false;
    peer.session(Commit::Each, &mut |session| {
        put = session.put(pair.key, pair.value)? > 0;
        Ok(Next::Done)
    })?;
    if put { Ok(()) } else { Err("a put was not done".into()) }
}

fn combined(peer: &dyn MvccPeer, pairs: Pairs<'_>, until: Until, commit: Commit) -> Result<Served> {
    let (puts, taken) = combine::channel();
    let begun = now();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| combine::write(peer, &taken, commit));
        let callers: Vec<combine::Caller> = (0..CALLERS).map(|_| combine::caller(&puts)).collect();
        let served = threads(pairs, until, &|at, Pair { key, value }| callers[at].put(key, value).map(drop));
        drop((puts, callers));
        writer.join().map_err(|_| "the writer panicked")??;
        Ok(Served { seconds: begun.elapsed().as_secs_f64(), ..served? })
    })
}

/// All that was put is there, each under a revision of its own.
fn none_is_lost(peer: &dyn MvccPeer, before: u64, puts: usize) -> Result<()> {
    let (is, expected) = (peer.revision()?, before + puts as u64);
    if is == expected { Ok(()) } else { Err(format!("the revision is {is} where {expected} has to be").into()) }
}

/// Row 11 for many callers: `Batch`. A peer that takes callers side by side is called by each; another one has a
/// combining writer.
pub fn overwrites(peer: &dyn MvccPeer, pairs: Pairs<'_>, until: Until) -> Result<Vec<Figure>> {
    let (before, meter, begun) = (peer.revision()?, Meter::start(peer), now());
    let served = if peer.groups() {
        let served = threads(pairs, until, &|_, pair| put(peer, pair))?;
        peer.flush()?;
        Served { seconds: begun.elapsed().as_secs_f64(), ..served }
    } else {
        combined(peer, pairs, until, Commit::Batch)?
    };
    none_is_lost(peer, before, served.latencies.len())?;
    let (written, _) = meter.since(peer);
    Ok(vec![
        Figure::new(11, "overwrites, Batch, 64 callers", Unit::PerSecond, served.rate()),
        Figure::new(11, "... p99", Unit::Us, quantile(&served.latencies, 0.99) * 1e6)
            .with_curve(&served.latencies, 1e6),
        Figure::new(18, "bytes written a record byte, Batch", Unit::Times, written as f64 / served.bytes as f64),
    ])
}

/// Row 13: durable puts; with what groups them, and without.
pub fn durable(peer: &dyn MvccPeer, pairs: Pairs<'_>, time: Duration) -> Result<Vec<Figure>> {
    let until = Until { time, puts: u64::MAX };
    let mut figures = Vec::new();
    let mut before = peer.revision()?;
    if !peer.groups() {
        let alone = threads(pairs, until, &|_, pair| put(peer, pair))?;
        none_is_lost(peer, before, alone.latencies.len())?;
        figures.push(Figure::new(13, "... without a combining writer", Unit::PerSecond, alone.rate()));
        before = peer.revision()?;
    }
    peer.flush()?;
    let meter = Meter::start(peer);
    let grouped = || match peer.groups() {
        true => threads(pairs, until, &|_, pair| put(peer, pair)),
        false => combined(peer, pairs, until, Commit::Group),
    };
    let served = grouped()?;
    let (_, syncs) = meter.since(peer);
    none_is_lost(peer, before, served.latencies.len())?;
    peer.flush()?;
    let (written, _) = meter.since(peer);
    let each = served.latencies.len() as f64 / syncs.max(1) as f64;
    figures.insert(0, Figure::new(13, "durable puts, 64 callers, grouped", Unit::PerSecond, served.rate()));
    figures.push(Figure::new(13, "... puts a sync", Unit::Count, each));
    figures.push(
        Figure::new(13, "... p99", Unit::Us, quantile(&served.latencies, 0.99) * 1e6)
            .with_curve(&served.latencies, 1e6),
    );
    let amplified = written as f64 / served.bytes as f64;
    figures.push(Figure::new(18, "... the first time, Sync", Unit::Times, amplified));
    before = peer.revision()?;
    let (mut numbers, begun) = (Numbers::new(1400), now());
    let keys: Vec<usize> = (0..1 << 12).map(|_| numbers.below(pairs.count)).collect();
    if let Some(puts) = peer.tasks(CALLERS, time, &|at| (pairs.pair)(keys[at % keys.len()]))? {
        none_is_lost(peer, before, usize::try_from(puts)?)?;
        let rate = puts as f64 / begun.elapsed().as_secs_f64();
        figures.push(Figure::new(13, "... 64 tasks on one thread", Unit::PerSecond, rate));
    }
    // By now a log that is used again and again has its size.
    peer.flush()?;
    let (meter, again) = (Meter::start(peer), grouped()?);
    peer.flush()?;
    let (written, _) = meter.since(peer);
    let amplified = written as f64 / again.bytes as f64;
    figures.push(Figure::new(18, "bytes written a record byte, Sync, 64 callers", Unit::Times, amplified));
    Ok(figures)
}

/// What row 16 finds in the journal.
pub fn journal(peer: &dyn MvccPeer, pairs: Pairs<'_>, until: Until) -> Result<Vec<Figure>> {
    if peer.groups() {
        threads(pairs, until, &|_, pair| put(peer, pair))?;
    } else {
        combined(peer, pairs, until, Commit::Group)?;
    }
    Ok(Vec::new())
}
