//! An answer that waits: in line for room if there is none, then until what it rests on is durable.
//!
//! A request is evaluated and applied when the call is made, if there is room. Without room it stands in
//! line behind the requests before it, so that a caller's writes are applied in the order of its calls
//! whether it waits in between or not; the line moves whenever anybody waits, and by housekeeping. A
//! [`Pending`] that is dropped takes nothing back.

use crate::core::Core;
use crate::error::{Error, Refusal, Result};
use polybolt_engine::Ticket;
use polybolt_engine::run::{Signal, pause};
use polybolt_engine::sync::Mutex;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// Where the answer of a request in line will be, with what it has to wait for.
pub(crate) type Slot<T> = Arc<Mutex<Option<(Result<T>, Ticket)>>>;

/// One more thing to wait for before the answer is given.
type Stage = Box<dyn FnOnce() -> Ticket + Send>;

/// An answer that waits. A `Future` for tasks, [`Pending::wait`] for threads.
#[must_use = "the answer is what tells whether the write was refused"]
pub struct Pending<T> {
    core: Arc<Core>,
    /// Waited for: durability, or room.
    ticket: Option<Ticket>,
    answer: Option<Result<T>>,
    /// Set while in line.
    slot: Option<Slot<T>>,
    /// While in line: resolves when the slot is filled, by whoever moves the line.
    served: Option<Ticket>,
    stages: Vec<Stage>,
}

impl<T> std::fmt::Debug for Pending<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pending").field("answered", &self.answer.is_some()).finish_non_exhaustive()
    }
}

impl<T> Unpin for Pending<T> {}

impl<T> Pending<T> {
    /// An answer that is given once the ticket resolves.
    pub(crate) fn answered(core: &Arc<Core>, answer: Result<T>, ticket: Option<Ticket>) -> Self {
        Pending { core: Arc::clone(core), ticket, answer: Some(answer), slot: None, served: None, stages: Vec::new() }
    }

    /// An answer of a request in line; `room` resolves when the line may move, `served` once the slot is
    /// filled.
    pub(crate) fn in_line(core: &Arc<Core>, slot: Slot<T>, room: Ticket, served: Ticket) -> Self {
        Pending {
            core: Arc::clone(core),
            ticket: Some(room),
            answer: None,
            slot: Some(slot),
            served: Some(served),
            stages: Vec::new(),
        }
    }

    /// Waits for one more ticket after the first.
    pub(crate) fn then(mut self, stage: impl FnOnce() -> Ticket + Send + 'static) -> Self {
        self.stages.insert(0, Box::new(stage));
        self
    }

    /// Whether the request was evaluated, though its answer may still wait: what became of it, or None.
    #[cfg(feature = "model")]
    pub fn outcome(&self) -> Option<Result<()>> {
        let what = |answer: &Result<T>| answer.as_ref().map(|_| ()).map_err(Error::clone);
        match &self.slot {
            Some(slot) => slot.lock().as_ref().map(|(answer, _)| what(answer)),
            None => self.answer.as_ref().map(what),
        }
    }

    /// Blocks until the answer is there.
    ///
    /// # Errors
    /// [`Error::Refused`]: nothing was written. [`Error::Unknown`]: it may be there after a restart.
    pub fn wait(mut self) -> Result<T> {
        if self.slot.is_some() {
            // Room may come, or somebody else may move the line.
            return block_on(self);
        }
        loop {
            let outcome = self.ticket.take().map_or(Ok(()), Ticket::wait);
            if let Some(answer) = self.step(outcome) {
                return answer;
            }
        }
    }

    /// A ticket resolved; Some if that was the last thing to wait for.
    fn step(&mut self, outcome: Result<(), polybolt_engine::Error>) -> Option<Result<T>> {
        if let Some(slot) = &self.slot {
            // Also when the wait for room failed: then the line tells everybody in it.
            let short = self.core.move_line();
            let done = slot.lock().take();
            match (done, short) {
                (Some((answer, ticket)), _) => {
                    (self.answer, self.ticket) = (Some(answer), Some(ticket));
                    (self.slot, self.served) = (None, None);
                }
                (None, short) => self.ticket = short,
            }
            return None;
        }
        if let Err(error) = outcome {
            let written = matches!(self.answer, Some(Ok(_)));
            return Some(Err(if written { Error::Unknown(error) } else { Error::Storage(error) }));
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
            if let Some(served) = &mut self.served
                && Pin::new(served).poll(cx).is_ready()
            {
                (self.served, self.ticket) = (None, None);
            }
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

/// Runs a future on this thread. It waits for tickets and feeds alone.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let signal = Signal::default();
    let waker = signal.waker();
    let mut future = std::pin::pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        if !pause("wait") {
            signal.wait(None);
        }
    }
}
