//! Who makes which request when.

use super::schedule::{Plan, Rate, Turn};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How far behind its rate a run may end: what is not sent by then is reported as not sent.
const BEHIND_MAX: Duration = Duration::from_secs(10);

/// Hands out turns to clients.
///
/// Without a rate a client's next request is due when it asks. With one, requests are due at even distances
/// whatever the server does: a turn that finds all clients busy waits for one, and its wait counts.
#[derive(Debug)]
pub(super) struct Turns {
    begun: Instant,
    plan: Plan,
    taken: AtomicU64,
    /// Those that count, without a rate.
    measured: AtomicU64,
    /// Turns that are due and not taken yet, with a rate.
    due: Semaphore,
    stop: CancellationToken,
}

/// Ends the thread that releases turns, when dropped.
#[derive(Debug)]
pub(super) struct Pacer {
    _end: Sender<()>,
}

impl Turns {
    /// Begins now.
    pub(super) fn begin(plan: Plan, clients: u64, stop: CancellationToken) -> (Arc<Turns>, Pacer) {
        let turns = Arc::new(Turns {
            begun: Instant::now(),
            plan,
            taken: AtomicU64::new(0),
            measured: AtomicU64::new(0),
            due: Semaphore::new(0),
            stop,
        });
        let (end, ended) = channel();
        if let Some(rate) = plan.rate {
            let turns = Arc::clone(&turns);
            // A thread, as timers of the runtime are right to a millisecond only.
            std::thread::spawn(move || turns.release(rate, clients, &ended));
        }
        (turns, Pacer { _end: end })
    }

    /// When the run began.
    pub(super) fn begun(&self) -> Instant {
        self.begun
    }

    /// The time of the run.
    pub(super) fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    /// The next request; none when the run is over.
    pub(super) async fn next(&self) -> Option<Turn> {
        let Some(rate) = self.plan.rate else { return self.next_at_once() };
        let permit = tokio::select! {
            biased;
            () = self.stop.cancelled() => return None,
            permit = self.due.acquire() => permit.ok()?,
        };
        permit.forget();
        let last = rate.due(self.plan.turns(rate));
        if self.now() > last.saturating_add(BEHIND_MAX) {
            return None;
        }
        self.plan.turn(rate, self.taken.fetch_add(1, Ordering::Relaxed))
    }

    fn next_at_once(&self) -> Option<Turn> {
        let due = self.now();
        if self.stop.is_cancelled() || self.plan.is_over(due) {
            return None;
        }
        let measured = self.plan.is_measured(due);
        let count = || self.measured.fetch_add(1, Ordering::Relaxed);
        if measured && self.plan.total.is_some_and(|total| count() >= total) {
            return None;
        }
        Some(Turn { n: self.taken.fetch_add(1, Ordering::Relaxed), due, measured })
    }

    /// Turns that were due by the rate and that nobody took.
    pub(super) fn unsent(&self) -> u64 {
        let Some(rate) = self.plan.rate else { return 0 };
        // A run that was stopped owes only what was due by then.
        let due = self.plan.turns(rate).min(rate.due_by(self.now()));
        due.saturating_sub(self.taken.load(Ordering::Relaxed))
    }

    fn release(&self, rate: Rate, clients: u64, ended: &Receiver<()>) {
        let turns = self.plan.turns(rate);
        let permits = |count: u64| usize::try_from(count).unwrap_or(Semaphore::MAX_PERMITS);
        let mut released = 0;
        while released < turns {
            let due = rate.due_by(self.now()).min(turns);
            self.due.add_permits(permits(due - released));
            released = due;
            let wait = rate.due(released).saturating_sub(self.now());
            if ended.recv_timeout(wait) != Err(RecvTimeoutError::Timeout) {
                return;
            }
        }
        // One more for each, which tells it that there are no more.
        self.due.add_permits(permits(clients));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }

    #[test]
    fn every_turn_is_taken_once_however_slow_the_clients() {
        let plan = Plan { warmup: Duration::ZERO, total: Some(300), duration: None, rate: Rate::new(1_000_000) };
        let (turns, _pacer) = Turns::begin(plan, 3, CancellationToken::new());
        let taken = runtime().block_on(async {
            let client = async || {
                let mut taken = Vec::new();
                while let Some(turn) = turns.next().await {
                    taken.push(turn);
                    tokio::task::yield_now().await;
                }
                taken
            };
            let (a, b, c) = tokio::join!(client(), client(), client());
            [a, b, c].concat()
        });
        let mut numbers: Vec<_> = taken.iter().map(|turn| turn.n).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (0..300).collect::<Vec<_>>());
        // Due when the rate says so, not when a client was free.
        assert!(taken.iter().all(|turn| turn.due == Duration::from_micros(turn.n)));
        assert_eq!(turns.unsent(), 0);
    }

    #[test]
    fn without_a_rate_as_many_are_given_as_asked_for() {
        let plan = Plan { warmup: Duration::ZERO, total: Some(25), duration: None, rate: None };
        let (turns, _pacer) = Turns::begin(plan, 1, CancellationToken::new());
        let count = runtime().block_on(async {
            let mut count = 0;
            while turns.next().await.is_some() {
                count += 1;
            }
            count
        });
        assert_eq!(count, 25);
    }

    #[test]
    fn a_stopped_run_gives_no_turns() {
        for rate in [None, Rate::new(1)] {
            let stop = CancellationToken::new();
            let plan = Plan { warmup: Duration::ZERO, total: Some(25), duration: None, rate };
            let (turns, _pacer) = Turns::begin(plan, 1, stop.clone());
            stop.cancel();
            assert_eq!(runtime().block_on(turns.next()), None);
        }
    }
}
