//! How fast somebody goes beside others who are not to notice.

use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// So many bytes a second, in turns: after each it says until when to wait.
#[derive(Debug)]
pub struct Pacer {
    /// 0 is as fast as it can be.
    rate: AtomicU64,
    /// When what was done so far is due.
    due: Mutex<Duration>,
}

/// Waits that would be shorter are left out, and added to the next.
const WAIT_MIN: Duration = Duration::from_millis(1);
/// What it may be late by and make up for: a checkpoint or two.
const LATE_MAX: Duration = Duration::from_millis(250);

impl Pacer {
    /// One of so many bytes a second; 0 is as fast as it can be.
    pub fn new(bytes_per_second: u64) -> Self {
        Pacer { rate: AtomicU64::new(bytes_per_second), due: Mutex::new(Duration::ZERO) }
    }

    /// Bytes a second; 0 is as fast as it can be.
    pub fn rate(&self) -> u64 {
        self.rate.load(Ordering::Relaxed)
    }

    /// From now on so many.
    pub fn set(&self, bytes_per_second: u64) {
        self.rate.store(bytes_per_second, Ordering::Relaxed);
    }

    /// Until when to wait once so many more bytes are done; None if that is now.
    pub fn after(&self, now: Duration, bytes: u64) -> Option<Duration> {
        let takes = bytes.saturating_mul(1_000_000).checked_div(self.rate())?;
        let mut due = self.due.lock();
        // What was slower than it had to be for long is not made up for.
        *due = (*due).max(now.saturating_sub(LATE_MAX)) + Duration::from_micros(takes);
        (*due >= now + WAIT_MIN).then_some(*due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLI: Duration = Duration::from_millis(1);

    #[test]
    fn it_waits_and_makes_up_for_a_short_delay_only() {
        let pacer = Pacer::new(1 << 20);
        let second = 1000 * MILLI;
        // A 128th of a second each, from 250 ms before on.
        let mut now = second;
        let waits = |now, times: u64| (0..times).find_map(|_| pacer.after(now, 8192));
        assert_eq!(waits(now, 32), None, "what was late");
        let at = waits(now, 8).expect("it is early");
        assert!(at > now && at < now + 16 * MILLI, "{at:?}");
        // After a long delay no more than before.
        now += 100 * second;
        assert_eq!((waits(now, 32), waits(now, 8).is_some()), (None, true));
        now += second;
        pacer.set(2 * pacer.rate());
        assert_eq!((waits(now, 64), waits(now, 8).is_some()), (None, true));
        pacer.set(0);
        assert_eq!(waits(now, 1000), None);
    }
}
