//! An answer that waits: for room first if there is none, then until what it rests on is durable.
//!
//! The request is evaluated and applied when the call is made, if there is room; a [`Pending`] that
//! is dropped takes nothing back. Without room nothing is applied until the pending answer is polled
//! or waited for: then the request is evaluated again.

use crate::error::{Error, Refusal, Result};
use polybolt_engine::Ticket;
use polybolt_engine::run::Clock;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

/// What one try of a request led to.
pub(crate) enum Attempt<T> {
    /// An answer, once the ticket resolves.
    Answer(Result<T>, Ticket),
    /// No room: try again once the ticket resolves.
    Short(Ticket),
}

/// One more thing to wait for before the answer is given.
type Stage = Box<dyn FnOnce() -> Ticket + Send>;
type Try<T> = Box<dyn FnMut() -> Attempt<T> + Send>;

/// An answer that waits. A `Future` for tasks, [`Pending::wait`] for threads.
#[must_use = "the answer is what tells whether the write was refused"]
pub struct Pending<T> {
    clock: Arc<dyn Clock>,
    deadline: Duration,
    /// Waited for: an answer's ticket, or room.
    ticket: Option<Ticket>,
    answer: Option<Result<T>>,
    retry: Option<Try<T>>,
    stages: Vec<Stage>,
}

impl<T> std::fmt::Debug for Pending<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pending").field("answered", &self.answer.is_some()).finish_non_exhaustive()
    }
}

impl<T> Unpin for Pending<T> {}

impl<T> Pending<T> {
    /// Tries `attempt` now, and again whenever there was no room, for at most `patience`.
    pub(crate) fn start(
        clock: &Arc<dyn Clock>,
        patience: Duration,
        mut attempt: impl FnMut() -> Attempt<T> + Send + 'static,
    ) -> Self {
        let deadline = clock.monotonic().saturating_add(patience);
        let mut pending =
            Pending { clock: Arc::clone(clock), deadline, ticket: None, answer: None, retry: None, stages: Vec::new() };
        match attempt() {
            Attempt::Answer(answer, ticket) => (pending.answer, pending.ticket) = (Some(answer), Some(ticket)),
            Attempt::Short(ticket) => {
                pending.ticket = Some(ticket);
                pending.retry = Some(Box::new(attempt));
            }
        }
        pending
    }

    /// Waits for one more ticket after the first.
    pub(crate) fn then(mut self, stage: impl FnOnce() -> Ticket + Send + 'static) -> Self {
        self.stages.insert(0, Box::new(stage));
        self
    }

    /// Blocks until the answer is there.
    ///
    /// # Errors
    /// [`Error::Refused`]: nothing was written. [`Error::Unknown`]: it may be there after a restart.
    pub fn wait(mut self) -> Result<T> {
        loop {
            let outcome = self.ticket.take().map_or(Ok(()), Ticket::wait);
            if let Some(answer) = self.step(outcome) {
                return answer;
            }
        }
    }

    /// A ticket resolved; Some if that was the last thing to wait for.
    fn step(&mut self, outcome: Result<(), polybolt_engine::Error>) -> Option<Result<T>> {
        if let Err(error) = outcome {
            let written = matches!(self.answer, Some(Ok(_)));
            return Some(Err(if written { Error::Unknown(error) } else { Error::Storage(error) }));
        }
        if let Some(mut attempt) = self.retry.take() {
            if self.clock.monotonic() > self.deadline {
                return Some(Err(Refusal::TooManyRequests.into()));
            }
            match attempt() {
                Attempt::Answer(answer, ticket) => (self.answer, self.ticket) = (Some(answer), Some(ticket)),
                Attempt::Short(ticket) => (self.ticket, self.retry) = (Some(ticket), Some(attempt)),
            }
            return None;
        }
        if matches!(self.answer, Some(Ok(_)))
            && let Some(stage) = self.stages.pop()
        {
            self.ticket = Some(stage());
            return None;
        }
        Some(self.answer.take().unwrap_or_else(|| Err(Refusal::Closed.into())))
    }
}

impl<T> Future for Pending<T> {
    type Output = Result<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<T>> {
        loop {
            let outcome = match &mut self.ticket {
                None => Ok(()),
                Some(ticket) => match Pin::new(ticket).poll(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(outcome) => outcome,
                },
            };
            self.ticket = None;
            if let Some(answer) = self.step(outcome) {
                return Poll::Ready(answer);
            }
        }
    }
}
