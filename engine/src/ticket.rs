//! Waiting for durability, from a thread or from a task.
//!
//! Sealed records are numbered by [`Position`]. A [`Watermark`] says up to which position they are
//! durable; a [`Ticket`] waits for one position. Dropping a ticket changes nothing: what it waited
//! for happens all the same.

use crate::error::{Error, Result};
use crate::run;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Condvar, Mutex};
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock, Weak};
use std::task::{Context, Poll, Waker};

/// The number of a sealed record, counted from 1 over the whole life of a store; 0 is before all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Position(pub u64);

/// What moves a mark, told of those that wait.
pub trait Mover: Debug + Send + Sync {
    /// Somebody waits for `at` with a thread that has nothing else to do, and may be used.
    fn lead(&self, at: Position);
    /// Somebody waits and cannot help.
    fn hurry(&self);
}

/// The highest position reached, and who waits for higher ones.
#[derive(Debug, Default)]
pub struct Watermark {
    // Release after what the position stands for is in place; waiters load with Acquire.
    reached: AtomicU64,
    waiting: Mutex<Waiting>,
    moved: Condvar,
    mover: OnceLock<Weak<dyn Mover>>,
}

#[derive(Debug, Default)]
struct Waiting {
    wakers: BTreeMap<(u64, u64), Waker>,
    tasks: u64,
    failed: Option<Error>,
}

impl Watermark {
    /// A watermark that has reached `at`.
    pub fn new(at: Position) -> Self {
        Watermark { reached: AtomicU64::new(at.0), ..Watermark::default() }
    }

    /// The highest position reached.
    pub fn reached(&self) -> Position {
        Position(self.reached.load(Ordering::Acquire))
    }

    /// Moves the mark up to `to` and wakes who waited for it. A lower `to` changes nothing.
    pub fn advance(&self, to: Position) {
        let mut waiting = self.waiting.lock();
        if to.0 <= self.reached.load(Ordering::Relaxed) {
            return;
        }
        self.reached.store(to.0, Ordering::Release);
        let later = waiting.wakers.split_off(&(to.0 + 1, 0));
        let woken = std::mem::replace(&mut waiting.wakers, later);
        drop(waiting);
        self.moved.notify_all();
        woken.into_values().for_each(Waker::wake);
    }

    /// Fails every ticket above the mark, now and later, with `error`. The first failure stays.
    pub fn fail(&self, error: Error) {
        let mut waiting = self.waiting.lock();
        waiting.failed.get_or_insert(error);
        let woken = std::mem::take(&mut waiting.wakers);
        drop(waiting);
        self.moved.notify_all();
        woken.into_values().for_each(Waker::wake);
    }

    /// Has tasks that wait look again at what else they wait for.
    pub fn nudge(&self) {
        let woken = std::mem::take(&mut self.waiting.lock().wakers);
        woken.into_values().for_each(Waker::wake);
    }

    /// Has `mover` told of those that wait; the first one stays.
    pub fn set_mover(&self, mover: Weak<dyn Mover>) {
        self.mover.get_or_init(|| mover);
    }

    fn mover(&self) -> Option<Arc<dyn Mover>> {
        self.mover.get()?.upgrade()
    }

    /// A ticket for `at`.
    pub fn ticket(self: &Arc<Self>, at: Position) -> Ticket {
        Ticket { mark: Arc::clone(self), at, task: None }
    }

    /// How many tasks wait.
    #[cfg(any(test, feature = "sim"))]
    pub fn tasks_waiting(&self) -> usize {
        self.waiting.lock().wakers.len()
    }

    fn outcome(&self, at: Position, waiting: &Waiting) -> Option<Result<()>> {
        if self.reached() >= at {
            return Some(Ok(()));
        }
        waiting.failed.clone().map(Err)
    }
}

/// A wait for one position: a `Future` for tasks, [`Ticket::wait`] for threads.
#[derive(Debug)]
#[must_use = "a write is durable only once its ticket says so"]
pub struct Ticket {
    mark: Arc<Watermark>,
    at: Position,
    task: Option<u64>,
}

impl Ticket {
    /// The position waited for.
    pub fn position(&self) -> Position {
        self.at
    }

    /// True once the position is reached.
    pub fn is_reached(&self) -> bool {
        self.mark.reached() >= self.at
    }

    /// Blocks until the position is reached, or until it never will be.
    pub fn wait(self) -> Result<()> {
        while !self.is_reached() {
            if let Some(outcome) = self.mark.outcome(self.at, &self.mark.waiting.lock()) {
                return outcome;
            }
            // In a simulated run one thread does everything.
            if !run::pause("wait") {
                break;
            }
        }
        if !self.is_reached()
            && let Some(mover) = self.mark.mover()
        {
            mover.lead(self.at);
        }
        let mut waiting = self.mark.waiting.lock();
        loop {
            if let Some(outcome) = self.mark.outcome(self.at, &waiting) {
                return outcome;
            }
            self.mark.moved.wait(&mut waiting);
        }
    }
}

impl Future for Ticket {
    type Output = Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        if self.is_reached() {
            return Poll::Ready(Ok(()));
        }
        let mark = Arc::clone(&self.mark);
        let mut waiting = mark.waiting.lock();
        if let Some(outcome) = mark.outcome(self.at, &waiting) {
            return Poll::Ready(outcome);
        }
        let task = *self.task.get_or_insert_with(|| {
            waiting.tasks += 1;
            waiting.tasks
        });
        waiting.wakers.insert((self.at.0, task), cx.waker().clone());
        drop(waiting);
        if let Some(mover) = mark.mover() {
            mover.hurry();
        }
        Poll::Pending
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(task) = self.task {
            self.mark.waiting.lock().wakers.remove(&(self.at.0, task));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::atomic::AtomicUsize;
    use std::task::Wake;

    struct Count(AtomicUsize);
    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_task_is_woken_once_its_position_is_reached() {
        let mark = Arc::new(Watermark::default());
        let count = Arc::new(Count(AtomicUsize::new(0)));
        let waker = Waker::from(Arc::clone(&count));
        let mut cx = Context::from_waker(&waker);
        let mut ticket = mark.ticket(Position(3));
        assert!(Pin::new(&mut ticket).poll(&mut cx).is_pending());
        mark.advance(Position(2));
        assert_eq!(count.0.load(Ordering::SeqCst), 0);
        mark.advance(Position(3));
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        assert!(matches!(Pin::new(&mut ticket).poll(&mut cx), Poll::Ready(Ok(()))));
        assert_eq!(mark.reached(), Position(3));
    }

    #[test]
    fn a_failure_reaches_those_above_the_mark_only() {
        let mark = Arc::new(Watermark::new(Position(5)));
        let above = mark.ticket(Position(6));
        let waiter = std::thread::spawn(move || above.wait());
        mark.fail(Error::Closed);
        assert!(matches!(waiter.join().unwrap(), Err(Error::Closed)));
        assert!(mark.ticket(Position(5)).wait().is_ok());
        assert!(mark.ticket(Position(7)).wait().is_err());
    }

    #[test]
    fn a_dropped_ticket_leaves_no_waker() {
        let mark = Arc::new(Watermark::default());
        let mut ticket = mark.ticket(Position(1));
        let mut cx = Context::from_waker(Waker::noop());
        assert!(Pin::new(&mut ticket).poll(&mut cx).is_pending());
        drop(ticket);
        assert_eq!(mark.tasks_waiting(), 0);
    }
}
