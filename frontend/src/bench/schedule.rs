//! When requests are due and which of them count: a function of numbers and times, which waits for nothing.

use std::num::NonZeroU32;
use std::time::Duration;

const NANOS_PER_SECOND: u128 = 1_000_000_000;

/// Requests a second, at even distances.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate(NonZeroU32);

impl Rate {
    /// None of 0, which is no rate.
    pub fn new(per_second: u32) -> Option<Rate> {
        NonZeroU32::new(per_second).map(Rate)
    }

    /// Requests a second.
    pub fn per_second(self) -> u32 {
        self.0.get()
    }

    /// When request `n` is due after the first, which is 0; rounded up to a nanosecond.
    pub(super) fn due(self, n: u64) -> Duration {
        let nanos = (u128::from(n) * NANOS_PER_SECOND).div_ceil(u128::from(self.0.get()));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// How many requests are due at `elapsed` or before.
    pub(super) fn due_by(self, elapsed: Duration) -> u64 {
        let past = elapsed.as_nanos() * u128::from(self.0.get()) / NANOS_PER_SECOND;
        u64::try_from(past).unwrap_or(u64::MAX).saturating_add(1)
    }

    /// How many are due earlier than `elapsed`.
    fn due_before(self, elapsed: Duration) -> u64 {
        elapsed.checked_sub(Duration::from_nanos(1)).map_or(0, |before| self.due_by(before))
    }
}

/// How long a run is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    /// Requests before this do not count.
    pub(super) warmup: Duration,
    /// The most requests that count.
    pub(super) total: Option<u64>,
    /// How long after the warm-up requests begin.
    pub(super) duration: Option<Duration>,
    pub(super) rate: Option<Rate>,
}

/// One request to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Turn {
    /// Counted from 0, warm-up included.
    pub(super) n: u64,
    /// When it is due, or was begun if there is no rate, after the run began.
    pub(super) due: Duration,
    /// It counts.
    pub(super) measured: bool,
}

impl Plan {
    /// True if a request that begins at `elapsed` counts.
    pub(super) fn is_measured(&self, elapsed: Duration) -> bool {
        elapsed >= self.warmup
    }

    /// True once nothing begins any more, however few requests there were.
    pub(super) fn is_over(&self, elapsed: Duration) -> bool {
        self.duration.is_some_and(|duration| elapsed >= self.warmup.saturating_add(duration))
    }

    /// How many turns there are at a rate, those of the warm-up included.
    pub(super) fn turns(&self, rate: Rate) -> u64 {
        let counted = self.total.map_or(u64::MAX, |total| rate.due_before(self.warmup).saturating_add(total));
        let timed = self.duration.map_or(u64::MAX, |duration| rate.due_before(self.warmup.saturating_add(duration)));
        counted.min(timed)
    }

    /// Turn `n` at a rate, if there are so many.
    pub(super) fn turn(&self, rate: Rate, n: u64) -> Option<Turn> {
        let due = rate.due(n);
        (n < self.turns(rate)).then(|| Turn { n, due, measured: self.is_measured(due) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rate(per_second: u32) -> Rate {
        Rate::new(per_second).unwrap()
    }

    #[test]
    fn requests_are_due_at_even_distances() {
        let millis = |n| rate(1000).due(n).as_micros();
        assert_eq!((millis(0), millis(1), millis(2500)), (0, 1000, 2_500_000));
        // A third of a second is no whole number of nanoseconds, and nothing drifts.
        assert_eq!(rate(3).due(1), Duration::from_nanos(333_333_334));
        assert_eq!(rate(3).due(3_000_000), Duration::from_secs(1_000_000));
        assert!(Rate::new(0).is_none());
    }

    #[test]
    fn what_was_due_while_nobody_looked_is_due_at_once() {
        assert_eq!(rate(100).due_by(Duration::ZERO), 1);
        assert_eq!(rate(100).due_by(Duration::from_millis(9)), 1);
        assert_eq!(rate(100).due_by(Duration::from_millis(10)), 2);
        assert_eq!(rate(100).due_by(Duration::from_secs(7)), 701);
    }

    #[test]
    fn a_plan_ends_by_count_or_by_time_whichever_is_first() {
        let warmup = Duration::from_millis(500);
        let plan = |total, seconds: Option<u64>| Plan {
            warmup,
            total,
            duration: seconds.map(Duration::from_secs),
            rate: None,
        };
        // 50 turns warm up: those at 0, 10, .., 490 ms.
        assert_eq!(plan(Some(10), None).turns(rate(100)), 60);
        assert_eq!(plan(None, Some(2)).turns(rate(100)), 250);
        assert_eq!(plan(Some(10), Some(2)).turns(rate(100)), 60);
        assert_eq!(plan(Some(1000), Some(2)).turns(rate(100)), 250);
        assert_eq!(plan(None, None).turns(rate(100)), u64::MAX);
        let plan = plan(Some(10), None);
        assert!(!plan.turn(rate(100), 49).unwrap().measured);
        assert_eq!(plan.turn(rate(100), 50).unwrap(), Turn { n: 50, due: warmup, measured: true });
        assert!(plan.turn(rate(100), 59).is_some() && plan.turn(rate(100), 60).is_none());
    }

    #[test]
    fn without_a_rate_a_plan_goes_by_when_requests_begin() {
        let second = Duration::from_secs(1);
        let plan = Plan { warmup: second, total: None, duration: Some(second), rate: None };
        assert!(!plan.is_measured(Duration::from_millis(999)) && plan.is_measured(second));
        assert!(!plan.is_over(Duration::from_millis(1999)) && plan.is_over(2 * second));
        assert!(!Plan { duration: None, ..plan }.is_over(1000 * second));
    }

    proptest! {
        #[test]
        fn turns_are_released_exactly_when_they_are_due(per_second in 1..=u32::MAX, n in 0..1u64 << 40) {
            // More turns than nanoseconds share one.
            let per_second = per_second.min(1_000_000_000);
            let rate = rate(per_second);
            prop_assert_eq!(rate.due_by(rate.due(n)), n + 1);
            prop_assert_eq!(rate.due_before(rate.due(n)), n);
        }

        #[test]
        fn as_many_turns_count_as_were_asked_for(per_second in 1..5000u32, warmup in 0..3000u64, total in 0..2000u64) {
            let warmup = Duration::from_millis(warmup);
            let plan = Plan { warmup, total: Some(total), duration: None, rate: None };
            let turns: Vec<_> = (0..).map_while(|n| plan.turn(rate(per_second), n)).collect();
            prop_assert_eq!(turns.iter().filter(|turn| turn.measured).count() as u64, total);
            prop_assert!(turns.is_sorted_by_key(|turn| turn.due));
        }
    }
}
