//! Rows 2 and 3: point gets of the newest revision.

use crate::dataset::Numbers;
use crate::figure::{Figure, Unit};
use crate::later::same;
use crate::measure::now;
use crate::passes::repeat_of;
use crate::peer::{MvccPeer, Result, Row};
use crate::plan::Fold;
use crate::rows::Expected;
use std::time::Duration;

/// Short enough that most runs are not interrupted on a busy machine, long enough that the clock costs nothing.
const RUN: usize = 100;

/// Rows to ask for. They are looked at once, so that what they are asked with and compared with is near: a get may take
/// less than to come by that.
fn draw<'a>(expected: &'a Expected, numbers: &mut Numbers) -> Vec<Row<'a>> {
    let draw = |_| expected.newest.row(&expected.plan, expected.live[numbers.below(expected.live.len())]);
    let rows: Vec<Row<'_>> = (0..RUN).map(draw).collect();
    let mut near = Fold::default();
    rows.iter().for_each(|row| near.add(row));
    std::hint::black_box(near);
    rows
}

fn all(rows: &[Row<'_>], peer: &dyn MvccPeer) -> Result<()> {
    for row in rows {
        let got = peer.get(row.key)?.ok_or("a key is not there")?;
        let right = (got.created, got.modified, got.version) == (row.created, row.modified, row.version)
            && same(&got.value, row.value);
        if !right {
            return Err("a get answers wrong".into());
        }
    }
    Ok(())
}

/// Row 2.
pub fn gets(expected: &Expected, peer: &dyn MvccPeer) -> Result<Vec<Figure>> {
    let mut numbers = Numbers::new(2);
    // As many as there are keys come in once, up to a time, so that what the system maps on first use is there.
    let begun = now();
    for _ in 0..expected.live.len() / RUN {
        all(&draw(expected, &mut numbers), peer)?;
        if begun.elapsed() > expected.time * 2 {
            break;
        }
    }
    let times = repeat_of(expected.time, || draw(expected, &mut numbers), |rows| all(&rows, peer))?;
    Ok(times.figures(2, "point get", Unit::Ns, 1e9 / RUN as f64))
}

/// Gets a second by some threads at once.
fn by(threads: usize, expected: &Expected, peer: &dyn MvccPeer, time: Duration, seed: u64) -> Result<f64> {
    let begun = now();
    let thread = |at: usize| {
        let (mut numbers, mut done) = (Numbers::new(seed + at as u64), 0u64);
        while begun.elapsed() < time {
            all(&draw(expected, &mut numbers), peer)?;
            done += RUN as u64;
        }
        Ok::<f64, Box<dyn std::error::Error + Send + Sync>>(done as f64 / begun.elapsed().as_secs_f64())
    };
    std::thread::scope(|scope| {
        let thread = &thread;
        let all: Vec<_> = (0..threads).map(|at| scope.spawn(move || thread(at))).collect();
        all.into_iter().map(|thread| thread.join().map_err(|_| "a reader panicked")?).sum()
    })
}

/// Row 3: two threads and one take turns.
pub fn threads(expected: &Expected, peer: &dyn MvccPeer) -> Result<Vec<Figure>> {
    const TURNS: u32 = 3;
    let (mut one, mut two) = (0.0, 0.0);
    for turn in 0..TURNS {
        one += by(1, expected, peer, expected.time / TURNS, 300 + u64::from(turn))?;
        two += by(2, expected, peer, expected.time / TURNS, 310 + u64::from(turn))?;
    }
    let turns = f64::from(TURNS);
    Ok(vec![
        Figure::new(3, "point gets, 1 thread", Unit::PerSecond, one / turns),
        Figure::new(3, "point gets, 2 threads", Unit::PerSecond, two / turns),
        Figure::new(3, "... over 1", Unit::Times, two / one),
    ])
}
