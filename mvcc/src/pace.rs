//! How fast a sweep goes: as fast as those who read and write beside it do not notice.
//!
//! While no sweep runs, times of calls are counted as calm ones, while one does, as busy ones. A few times a second
//! the 99th percentiles of both are compared: within the budget the sweep speeds up by a step, beyond it it slows
//! down by a factor (additive increase, multiplicative decrease; Chiu and Jain, 1989), between its full speed and a
//! floor, so that it always ends.

use polybolt_engine::sync::Mutex;
use polybolt_engine::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::cell::Cell;
use std::time::Duration;

/// How fast what compactions leave behind is taken out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompactionPace {
    /// Revisions that one step removes, at most; at least 1. Default 1000.
    pub batch_limit: usize,
    /// The pause between steps. Default 10 ms.
    pub sleep_interval: Duration,
    /// By how many percent the 99th percentile of reads or writes beside a sweep may rise: it slows down to a third
    /// of its full speed at most where it rises by more. Steps are smaller then, and follow each other sooner.
    /// None is full speed always. Default 10.
    pub budget_percent: Option<u32>,
    /// How long after its begin a sweep should end: it speeds up to that whatever the budget, to its full speed at
    /// most. Default None.
    pub deadline: Option<Duration>,
}

impl Default for CompactionPace {
    fn default() -> Self {
        CompactionPace {
            batch_limit: 1000,
            sleep_interval: Duration::from_millis(10),
            budget_percent: Some(10),
            deadline: None,
        }
    }
}

/// Of so many calls one is timed.
const SAMPLED: u32 = 16;
/// The least that an adaptive sweep does, as a share of its full speed.
const FLOOR: f64 = 1.0 / 3.0;
/// Removals of a step of an adaptive sweep.
const SMALL_STEP: usize = 64;
/// How often times are compared.
const PERIOD: Duration = Duration::from_millis(250);
/// What nobody notices.
const UNNOTICED: Duration = Duration::from_micros(20);
/// Fewer than these say nothing.
const CALLS_MIN: u32 = 64;
/// Times of the past count half once there are so many.
const CALLS_MAX: u32 = 1 << 14;
/// Kinds of times for each doubling.
const FINE: u32 = 8;
const KINDS: usize = 256;

/// Times of calls, told apart by an eighth of a doubling.
#[derive(Debug)]
struct Times([AtomicU32; KINDS]);

impl Default for Times {
    fn default() -> Self {
        Times(std::array::from_fn(|_| AtomicU32::new(0)))
    }
}

impl Times {
    fn add(&self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).max(u64::from(FINE));
        let log = nanos.ilog2();
        let within = (nanos >> (log - FINE.ilog2())) as u32 - FINE;
        let kind = ((log - FINE.ilog2()) * FINE + within) as usize;
        self.0[kind.min(KINDS - 1)].fetch_add(1, Ordering::Relaxed);
    }

    fn count(&self) -> u32 {
        self.0.iter().map(|count| count.load(Ordering::Relaxed)).fold(0, u32::saturating_add)
    }

    /// The 99th percentile: the shortest time of its kind.
    fn p99(&self) -> Option<Duration> {
        let mut above = self.count() / 100;
        let kind = (0..KINDS).rev().find(|kind| {
            let here = self.0[*kind].load(Ordering::Relaxed);
            let found = here > above;
            above = above.saturating_sub(here);
            found
        })?;
        let (log, within) = (kind as u32 / FINE, kind as u32 % FINE);
        Some(Duration::from_nanos(u64::from(FINE + within) << log))
    }

    fn keep(&self, one_in: u32) {
        for count in &self.0 {
            count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| Some(count / one_in)).ok();
        }
    }

    fn clear(&self) {
        self.keep(u32::MAX);
    }
}

/// What calls of a kind take with and without a sweep beside them.
#[derive(Debug, Default)]
struct Compared {
    calm: Times,
    busy: Times,
}

impl Compared {
    /// Whether the busy ones take longer by more than `percent`; None if there are too few to tell. Begins anew.
    fn is_over(&self, percent: u32) -> Option<bool> {
        if self.busy.count() < CALLS_MIN || self.calm.count() < CALLS_MIN {
            return None;
        }
        let (calm, busy) = (self.calm.p99()?, self.busy.p99()?);
        self.busy.clear();
        // Neither is known better than to the next kind.
        let allowed = calm.mul_f64(f64::from(100 + percent) / 100.0 * (1.0 + 1.0 / f64::from(FINE)));
        Some(busy > allowed.max(calm + UNNOTICED))
    }
}

/// Times of the calls of a keyspace.
#[derive(Debug)]
pub(crate) struct Beside {
    reads: Compared,
    writes: Compared,
    sweeping: AtomicBool,
    every: u32,
}

thread_local! {
    static CALLS: Cell<u32> = const { Cell::new(0) };
}

impl Beside {
    /// Times every call, so that a run can be repeated, or one in a few.
    pub(crate) fn new(every_call: bool) -> Self {
        let every = if every_call || cfg!(any(feature = "loom", feature = "shuttle")) { 1 } else { SAMPLED };
        Beside { reads: Compared::default(), writes: Compared::default(), sweeping: AtomicBool::new(false), every }
    }

    /// True if this call is to be timed.
    pub(crate) fn samples(&self) -> bool {
        self.every == 1
            || CALLS.with(|calls| {
                calls.set(calls.get().wrapping_add(1));
                calls.get().is_multiple_of(self.every)
            })
    }

    fn add(&self, compared: &Compared, time: Duration) {
        if self.sweeping.load(Ordering::Relaxed) {
            compared.busy.add(time);
        } else {
            compared.calm.add(time);
        }
    }

    pub(crate) fn add_read(&self, time: Duration) {
        self.add(&self.reads, time);
    }

    pub(crate) fn add_write(&self, time: Duration) {
        self.add(&self.writes, time);
    }

    /// A sweep begins or ends.
    pub(crate) fn sweeps(&self, sweeping: bool) {
        if self.sweeping.swap(sweeping, Ordering::Relaxed) == sweeping {
            return;
        }
        for compared in [&self.reads, &self.writes] {
            compared.busy.clear();
            if sweeping && compared.calm.count() > CALLS_MAX {
                compared.calm.keep(2);
            }
        }
    }

    /// Whether reads or writes take longer than they may; None if nobody can tell.
    fn is_over(&self, percent: u32) -> Option<bool> {
        match (self.reads.is_over(percent), self.writes.is_over(percent)) {
            (None, None) => None,
            (reads, writes) => Some(reads == Some(true) || writes == Some(true)),
        }
    }
}

/// How fast a sweep goes now.
#[derive(Debug)]
pub(crate) struct Speed {
    /// The share of its full speed.
    share: f64,
    looked: Duration,
}

impl Default for Speed {
    fn default() -> Self {
        Speed { share: FLOOR, looked: Duration::ZERO }
    }
}

/// The progress of a sweep.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Progress {
    pub(crate) began: Duration,
    pub(crate) left: u64,
}

impl Speed {
    /// Looks at what calls take, now and then.
    pub(crate) fn look(
        &mut self,
        pace: &CompactionPace,
        beside: &Beside,
        now: Duration,
        progress: impl Fn() -> Progress,
    ) {
        let Some(percent) = pace.budget_percent else {
            self.share = 1.0;
            return;
        };
        if now.saturating_sub(self.looked) < PERIOD {
            return;
        }
        self.looked = now;
        self.share = match beside.is_over(percent) {
            Some(true) => self.share * 0.7,
            Some(false) => self.share + 0.05,
            // Nobody is there to notice.
            None => self.share + 0.2,
        };
        let due = pace.deadline.map_or(0.0, |deadline| share_for(pace, deadline, now, progress()));
        self.share = self.share.max(due).clamp(FLOOR, 1.0);
    }

    /// How many revisions the next step removes, at most.
    pub(crate) fn step(&self, pace: &CompactionPace) -> usize {
        let most = pace.batch_limit.max(1);
        if pace.budget_percent.is_some() { most.min(SMALL_STEP) } else { most }
    }

    /// The pause after a step that removed so many.
    pub(crate) fn pause(&self, pace: &CompactionPace, removed: usize) -> Duration {
        if removed == 0 {
            return Duration::ZERO;
        }
        if pace.budget_percent.is_none() {
            return pace.sleep_interval;
        }
        pace.sleep_interval.mul_f64(removed as f64 / pace.batch_limit.max(1) as f64 / self.share)
    }
}

/// The share of the full speed at which what is left is gone in time.
fn share_for(pace: &CompactionPace, deadline: Duration, now: Duration, progress: Progress) -> f64 {
    let left = (progress.began + deadline).saturating_sub(now).as_secs_f64();
    let steps = progress.left as f64 / pace.batch_limit.max(1) as f64;
    let takes = steps * pace.sleep_interval.as_secs_f64();
    if takes <= 0.0 { 0.0 } else { takes / left.max(f64::MIN_POSITIVE) }
}

/// The paces of a keyspace: of all shards, and of those that have their own.
#[derive(Debug)]
pub(crate) struct Paces {
    all: Mutex<(CompactionPace, Vec<Option<CompactionPace>>)>,
    changed: AtomicBool,
}

impl Paces {
    pub(crate) fn new(pace: CompactionPace, shards: usize) -> Self {
        Paces { all: Mutex::new((pace, vec![None; shards])), changed: AtomicBool::new(false) }
    }

    /// Of a shard, or of all of them whatever they had.
    pub(crate) fn set(&self, shard: Option<usize>, pace: CompactionPace) {
        let mut all = self.all.lock();
        match shard {
            Some(shard) => all.1[shard] = Some(pace),
            None => {
                let shards = all.1.len();
                *all = (pace, vec![None; shards]);
            }
        }
        self.changed.store(true, Ordering::Release);
    }

    /// Takes over those of another keyspace; `from` tells which of its shards one of these was.
    pub(crate) fn take_over(&self, other: &Paces, from: impl Fn(usize) -> Option<usize>) {
        let (all, shards) = &*other.all.lock();
        let mut mine = self.all.lock();
        mine.0 = *all;
        for (at, pace) in mine.1.iter_mut().enumerate() {
            *pace = from(at).and_then(|from| shards[from]);
        }
    }

    /// True if one was set since this was asked last.
    pub(crate) fn take_changed(&self) -> bool {
        self.changed.swap(false, Ordering::AcqRel)
    }

    pub(crate) fn of(&self, shard: usize) -> CompactionPace {
        let all = self.all.lock();
        all.1[shard].unwrap_or(all.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MICRO: Duration = Duration::from_micros(1);

    #[test]
    fn times_are_told_apart_by_a_tenth() {
        let times = Times::default();
        for micros in 1..=1000 {
            times.add(MICRO * micros);
        }
        let at = |micros| {
            let one = Times::default();
            one.add(MICRO * micros);
            one.p99().expect("it was counted")
        };
        assert_eq!((times.count(), times.p99()), (1000, Some(at(990))));
        for micros in [1, 7, 99, 1000, 123_456] {
            assert!((MICRO * micros * 8 / 9..=MICRO * micros).contains(&at(micros)), "{micros}: {:?}", at(micros));
        }
        times.add(Duration::ZERO);
        times.add(Duration::MAX);
        times.keep(2);
        assert!(times.count() <= 501);
        times.clear();
        assert_eq!(times.p99(), None);
    }

    #[test]
    fn paces_go_over_with_their_shards() {
        let of = |batch_limit| CompactionPace { batch_limit, ..CompactionPace::default() };
        let (old, new) = (Paces::new(of(1), 2), Paces::new(of(9), 3));
        old.set(None, of(2));
        old.set(Some(1), of(3));
        // Its last shard is the first one now, and one is new.
        new.take_over(&old, |at| [Some(1), None, Some(0)][at]);
        assert_eq!([0, 1, 2].map(|shard| new.of(shard).batch_limit), [3, 2, 2]);
    }

    fn looked(speed: &mut Speed, pace: &CompactionPace, beside: &Beside, now: &mut Duration) -> f64 {
        *now += PERIOD;
        speed.look(pace, beside, *now, || Progress { began: Duration::ZERO, left: 100_000 });
        speed.share
    }

    #[test]
    fn a_sweep_that_is_noticed_slows_down_and_one_that_is_not_speeds_up() {
        let (pace, mut now) = (CompactionPace::default(), Duration::ZERO);
        let (beside, mut speed) = (Beside::new(true), Speed::default());
        // Nobody is there.
        for _ in 0..5 {
            looked(&mut speed, &pace, &beside, &mut now);
        }
        assert!(speed.share >= 1.0);
        assert_eq!((speed.step(&pace), speed.pause(&pace, 50)), (64, Duration::from_micros(500)));
        let calls = |micros| (0..1000).for_each(|_| beside.add_read(MICRO * micros));
        calls(100);
        beside.sweeps(true);
        calls(130);
        assert!(looked(&mut speed, &pace, &beside, &mut now) < 0.75);
        calls(100);
        assert!(looked(&mut speed, &pace, &beside, &mut now) > 0.74, "back by a step");
        for _ in 0..9 {
            calls(1000);
            looked(&mut speed, &pace, &beside, &mut now);
        }
        assert!((speed.share - FLOOR).abs() < 1e-9, "it always goes on");
        assert_eq!(speed.pause(&pace, 100).as_micros(), 3000);
        // Not that often.
        calls(1000);
        let before = speed.share;
        speed.look(&pace, &beside, now + MICRO, || unreachable!());
        assert!((speed.share - before).abs() < 1e-9);
        // In time, whoever notices: 100,000 in what is left of two seconds are a second at full speed.
        let pace = CompactionPace { deadline: Some(now + Duration::from_secs(2)), ..pace };
        calls(1000);
        let share = looked(&mut speed, &pace, &beside, &mut now);
        assert!((0.5..0.7).contains(&share), "{share}");
        let pace = CompactionPace { budget_percent: None, ..pace };
        looked(&mut speed, &pace, &beside, &mut now);
        assert_eq!((speed.step(&pace), speed.pause(&pace, 1)), (1000, Duration::from_millis(10)));
    }

    #[test]
    fn a_shard_may_have_its_own_pace() {
        let paces = Paces::new(CompactionPace::default(), 2);
        let slow = CompactionPace { batch_limit: 10, ..CompactionPace::default() };
        paces.set(Some(1), slow);
        assert_eq!((paces.of(0), paces.of(1)), (CompactionPace::default(), slow));
        paces.set(None, slow);
        assert_eq!((paces.of(0), paces.of(1)), (slow, slow));
    }
}
