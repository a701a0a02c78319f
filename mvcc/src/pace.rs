//! How fast a sweep goes: as fast as those who read and write beside it do not notice.
//!
//! While no sweep runs, times of calls are counted as calm ones, while one does, as busy ones. A few times a second
//! the 99th percentiles of both are compared: within the budget the sweep speeds up by a step, beyond it it slows
//! down by a factor (additive increase, multiplicative decrease; Chiu and Jain, 1989), between its full speed and a
//! floor, so that it always ends. While anybody is there, it goes no faster than it has to in order to end soon.

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
    /// of its full speed at most where it rises by more, and while anybody reads or writes it is no faster than that
    /// unless it would take more than 20 seconds. Steps are smaller then, and follow each other sooner.
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

/// Of so many calls one is timed, but beside a sweep each while they are few.
const SAMPLED: u32 = 16;
/// In a period these are not few.
const MANY: u32 = 2048;
/// The least that an adaptive sweep does, as a share of its full speed.
const FLOOR: f64 = 1.0 / 3.0;
/// How long an adaptive sweep takes, if it can, while anybody is there.
const UNHURRIED: Duration = Duration::from_secs(20);
/// Removals of a step of an adaptive sweep.
const SMALL_STEP: usize = 64;
/// So many revisions taken out of an index cost about what one removal from a leaf does.
const TAKEN_PER_REMOVAL: f64 = 16.0;
/// How often times are compared.
const PERIOD: Duration = Duration::from_millis(250);
/// What nobody notices.
const UNNOTICED: Duration = Duration::from_micros(20);
/// Fewer than these say nothing.
const CALLS_MIN: u32 = 64;
/// Times of the past count half once there are so many.
const CALLS_MAX: u32 = 1 << 14;
/// Kinds of times for each doubling.
const FINE: u32 = 32;
const KINDS: usize = 1024;

/// Times of calls, told apart by a part of a doubling; later ones count more.
#[derive(Debug)]
struct Times {
    kinds: [AtomicU32; KINDS],
    all: AtomicU32,
}

impl Default for Times {
    fn default() -> Self {
        Times { kinds: std::array::from_fn(|_| AtomicU32::new(0)), all: AtomicU32::new(0) }
    }
}

impl Times {
    fn add(&self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).max(u64::from(FINE));
        let log = nanos.ilog2();
        let within = (nanos >> (log - FINE.ilog2())) as u32 - FINE;
        let kind = ((log - FINE.ilog2()) * FINE + within) as usize;
        self.kinds[kind.min(KINDS - 1)].fetch_add(1, Ordering::Relaxed);
        if (self.all.fetch_add(1, Ordering::Relaxed) + 1).is_multiple_of(CALLS_MAX) {
            self.keep(2);
        }
    }

    fn count(&self) -> u32 {
        self.all.load(Ordering::Relaxed)
    }

    /// The 99th percentile: the shortest time of its kind.
    fn p99(&self) -> Option<Duration> {
        let mut above = self.count() / 100;
        let kind = (0..KINDS).rev().find(|kind| {
            let here = self.kinds[*kind].load(Ordering::Relaxed);
            let found = here > above;
            above = above.saturating_sub(here);
            found
        })?;
        let (log, within) = (kind as u32 / FINE, kind as u32 % FINE);
        Some(Duration::from_nanos(u64::from(FINE + within) << log))
    }

    fn keep(&self, one_in: u32) {
        let mut all = 0;
        for count in &self.kinds {
            let before = count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| Some(count / one_in));
            all += before.unwrap_or(0) / one_in;
        }
        self.all.store(all, Ordering::Relaxed);
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
    /// How many busy ones there were when they were looked at last.
    looked: AtomicU32,
}

/// Whether a sweep is noticed; of two kinds of calls the greater holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Noticed {
    /// Nobody is there to notice.
    Nobody,
    /// There are too few to tell.
    Unsure,
    /// What they took without a sweep is not known.
    Unknown,
    No,
    Yes,
}

impl Compared {
    /// Whether the busy ones take longer by more than `percent`. Begins anew if that can be told.
    fn look(&self, percent: u32) -> Noticed {
        let count = self.busy.count();
        if self.looked.swap(count, Ordering::Relaxed) == count {
            return Noticed::Nobody;
        }
        if self.calm.count() < CALLS_MIN {
            return Noticed::Unknown;
        }
        if count < CALLS_MIN {
            return Noticed::Unsure;
        }
        let (Some(calm), Some(busy)) = (self.calm.p99(), self.busy.p99()) else { return Noticed::Unsure };
        self.clear();
        // Neither is known better than to the next kind.
        let allowed = calm.mul_f64((100.0 + f64::from(percent)) / 100.0 * (1.0 + 1.0 / f64::from(FINE)));
        if busy > allowed.max(calm + UNNOTICED) { Noticed::Yes } else { Noticed::No }
    }

    /// Busy ones since it was looked at them.
    fn fresh(&self) -> u32 {
        self.busy.count().saturating_sub(self.looked.load(Ordering::Relaxed))
    }

    /// Forgets the busy ones.
    fn clear(&self) {
        self.busy.clear();
        self.looked.store(0, Ordering::Relaxed);
    }
}

/// Times of the calls of a keyspace.
#[derive(Debug)]
pub(crate) struct Beside {
    reads: Compared,
    writes: Compared,
    sweeping: AtomicBool,
    /// Of so many calls one is timed, without a sweep and now.
    calm_every: u32,
    every: AtomicU32,
}

thread_local! {
    static CALLS: Cell<u32> = const { Cell::new(0) };
}

impl Beside {
    /// Times every call, so that a run can be repeated, or one in a few.
    pub(crate) fn new(every_call: bool) -> Self {
        let calm_every = if every_call || cfg!(any(feature = "loom", feature = "shuttle")) { 1 } else { SAMPLED };
        let (reads, writes) = Default::default();
        Beside { reads, writes, sweeping: AtomicBool::new(false), calm_every, every: AtomicU32::new(calm_every) }
    }

    /// True if this call is to be timed.
    pub(crate) fn samples(&self) -> bool {
        let every = self.every.load(Ordering::Relaxed);
        every == 1
            || CALLS.with(|calls| {
                calls.set(calls.get().wrapping_add(1));
                calls.get().is_multiple_of(every)
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
        self.every.store(self.calm_every, Ordering::Relaxed);
        self.reads.clear();
        self.writes.clear();
    }

    /// Whether reads or writes take longer than they may.
    fn look(&self, percent: u32) -> Noticed {
        let every = self.every.load(Ordering::Relaxed);
        let calls = self.reads.fresh().max(self.writes.fresh()).saturating_mul(every);
        self.every.store(if calls > MANY { self.calm_every } else { 1 }, Ordering::Relaxed);
        self.reads.look(percent).max(self.writes.look(percent))
    }
}

/// How fast a sweep goes now.
#[derive(Debug)]
pub(crate) struct Speed {
    /// The share of its full speed.
    share: f64,
    looked: Option<Duration>,
}

impl Default for Speed {
    fn default() -> Self {
        Speed { share: FLOOR, looked: None }
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
        if self.looked.is_some_and(|looked| now.saturating_sub(looked) < PERIOD) {
            return;
        }
        let noticed = beside.look(percent);
        let noticed = if self.looked.is_some() { noticed } else { Noticed::Unsure };
        self.looked = Some(now);
        let share = match noticed {
            Noticed::Yes => self.share * 0.7,
            Noticed::Unsure => self.share,
            Noticed::Unknown => 1.0,
            Noticed::No => self.share + 0.05,
            Noticed::Nobody => self.share + 0.2,
        };
        let progress = progress();
        let in_time = |deadline| share_for(pace, deadline, now, progress);
        let enough = if noticed == Noticed::Nobody { 1.0 } else { in_time(UNHURRIED).max(FLOOR) };
        let due = pace.deadline.map_or(0.0, in_time);
        self.share = share.min(enough).max(due).clamp(FLOOR, 1.0);
    }

    /// How many revisions the next step removes, at most.
    pub(crate) fn step(&self, pace: &CompactionPace) -> usize {
        let most = pace.batch_limit.max(1);
        if pace.budget_percent.is_some() { most.min(SMALL_STEP) } else { most }
    }

    /// How many revisions the next step takes out of an index, at most: an adaptive sweep a `few`.
    pub(crate) fn take(&self, pace: &CompactionPace, few: usize) -> usize {
        if pace.budget_percent.is_some() { few } else { pace.batch_limit.max(1) }
    }

    /// The pause after a step that removed and took so many.
    pub(crate) fn pause(&self, pace: &CompactionPace, removed: usize, taken: usize) -> Duration {
        if pace.budget_percent.is_none() {
            return if removed == 0 { Duration::ZERO } else { pace.sleep_interval };
        }
        let work = removed as f64 + taken as f64 / TAKEN_PER_REMOVAL;
        pace.sleep_interval.mul_f64(work / pace.batch_limit.max(1) as f64 / self.share)
    }
}

/// The share of the full speed at which what is left is gone in time.
fn share_for(pace: &CompactionPace, deadline: Duration, now: Duration, progress: Progress) -> f64 {
    let left = progress.began.saturating_add(deadline).saturating_sub(now).as_secs_f64();
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

    /// Changes that of a shard, or that of all of them and each one's own.
    pub(crate) fn change(&self, shard: Option<usize>, mut change: impl FnMut(&mut CompactionPace)) {
        let mut all = self.all.lock();
        let (whole, shards) = &mut *all;
        match shard {
            Some(shard) => change(shards[shard].get_or_insert(*whole)),
            None => {
                change(whole);
                shards.iter_mut().flatten().for_each(&mut change);
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
    fn times_are_told_apart() {
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
            assert!((MICRO * micros * 32 / 33..=MICRO * micros).contains(&at(micros)), "{micros}: {:?}", at(micros));
        }
        times.add(Duration::ZERO);
        times.add(Duration::MAX);
        times.keep(2);
        assert!(times.count() <= 501);
        times.clear();
        assert_eq!((times.count(), times.p99()), (0, None));
        // Of a load that is over nothing is left after a while.
        for micros in [900, 20] {
            (0..8 * CALLS_MAX).for_each(|_| times.add(MICRO * micros));
        }
        assert!(times.count() <= CALLS_MAX && times.p99() == Some(at(20)), "{:?}", times.p99());
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

    struct Watched {
        speed: Speed,
        pace: CompactionPace,
        beside: Beside,
        now: Duration,
        left: u64,
    }

    impl Watched {
        /// A sweep that has begun, beside calls that took a tenth of a millisecond before.
        fn new(left: u64) -> Self {
            let (pace, now) = (CompactionPace::default(), Duration::from_secs(100));
            let mut watched = Watched { speed: Speed::default(), pace, beside: Beside::new(false), now, left };
            (0..1000).for_each(|_| watched.beside.add_read(MICRO * 100));
            watched.beside.sweeps(true);
            watched.looked(0, 0);
            watched
        }

        /// The share after a period with so many calls of so many microseconds.
        fn looked(&mut self, calls: u32, micros: u32) -> f64 {
            (0..calls).filter(|_| self.beside.samples()).for_each(|_| self.beside.add_read(MICRO * micros));
            self.now += PERIOD;
            let progress = || Progress { began: Duration::from_secs(100), left: self.left };
            self.speed.look(&self.pace, &self.beside, self.now, progress);
            self.speed.share
        }
    }

    fn is_floor(share: f64) -> bool {
        (share - FLOOR).abs() < 1e-9
    }

    #[test]
    fn a_sweep_that_is_noticed_slows_down_and_one_that_is_not_speeds_up() {
        // There is so much that it has to hurry.
        let mut sweep = Watched::new(100_000_000);
        assert!(is_floor(sweep.speed.share), "nothing is known yet");
        // Nobody is there.
        for _ in 0..5 {
            sweep.looked(0, 0);
        }
        assert!(sweep.speed.share >= 1.0);
        assert_eq!(
            (sweep.speed.step(&sweep.pace), sweep.speed.pause(&sweep.pace, 50, 0)),
            (64, Duration::from_micros(500))
        );
        assert!(sweep.looked(1000, 130) < 0.75);
        assert!(sweep.looked(1000, 100) > 0.74, "back by a step");
        for _ in 0..9 {
            sweep.looked(1000, 1000);
        }
        assert!(is_floor(sweep.speed.share), "it always goes on");
        assert_eq!(sweep.speed.pause(&sweep.pace, 100, 0).as_micros(), 3000);
        // Not that often.
        (0..1000).for_each(|_| sweep.beside.add_read(MICRO));
        let before = sweep.speed.share;
        sweep.speed.look(&sweep.pace, &sweep.beside, sweep.now + MICRO, || unreachable!());
        assert!((sweep.speed.share - before).abs() < 1e-9);
        let pace = CompactionPace { budget_percent: None, ..sweep.pace };
        sweep.speed.look(&pace, &sweep.beside, sweep.now, || unreachable!());
        assert_eq!((sweep.speed.step(&pace), sweep.speed.pause(&pace, 1, 0)), (1000, Duration::from_millis(10)));
    }

    #[test]
    fn a_few_calls_are_somebody() {
        let mut sweep = Watched::new(100_000_000);
        // Each is timed, so 40 a period are enough after two of them.
        assert!(is_floor(sweep.looked(40, 100)), "too few to tell");
        assert!(sweep.looked(40, 100) > FLOOR);
        for _ in 0..4 {
            sweep.looked(40, 1000);
        }
        assert!(is_floor(sweep.speed.share));
        assert!(sweep.looked(10, 1000) < FLOOR + 0.01, "too few to tell");
        assert!(sweep.looked(0, 0) > FLOOR + 0.1, "they have gone");
        // Of very many a part says enough, for as long as they are.
        sweep.looked(10_000, 100);
        let timed = (0..1600).filter(|_| sweep.beside.samples()).count();
        assert_eq!(timed, 100);
        sweep.looked(1000, 100);
        assert!((0..9).all(|_| sweep.beside.samples()));
        sweep.beside.sweeps(false);
        assert!((0..15).filter(|_| sweep.beside.samples()).count() < 2);
    }

    #[test]
    fn without_anything_to_compare_with_it_goes_as_fast_as_it_has_to() {
        for (left, share) in [(100_000, FLOOR), (100_000_000, 1.0)] {
            let mut sweep = Watched::new(left);
            sweep.beside = Beside::new(false);
            sweep.beside.sweeps(true);
            assert!((sweep.looked(1000, 100) - share).abs() < 1e-9, "{left}");
        }
    }

    #[test]
    fn it_goes_no_faster_than_it_has_to_while_anybody_is_there() {
        let mut sweep = Watched::new(200_000);
        for _ in 0..8 {
            assert!(is_floor(sweep.looked(1000, 100)), "200,000 take six seconds at the slowest");
        }
        sweep.left = 1_000_000;
        for _ in 0..16 {
            sweep.looked(1000, 100);
        }
        // A million at 100,000 a second in what is left of twenty seconds.
        assert!((0.6..0.8).contains(&sweep.speed.share), "{}", sweep.speed.share);
    }

    #[test]
    fn a_deadline_is_kept_whoever_notices() {
        let mut sweep = Watched::new(100_000);
        // 100,000 in what is left of two seconds are a second at full speed.
        sweep.pace.deadline = Some(Duration::from_millis(2250));
        let share = sweep.looked(1000, 1000);
        assert!((0.5..0.7).contains(&share), "{share}");
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
