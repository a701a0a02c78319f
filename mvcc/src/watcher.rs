//! What a consumer of a watch holds.

use crate::core::{Core, Current};
use crate::error::Result;
use crate::event::WatchItem;
use crate::history::{self, Pace};
use crate::pending::block_on;
use crate::watch::{Feed, Take};
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};

/// Steps taken for one poll before others get their turn.
const STEPS_PER_POLL: usize = 8;

/// A watcher: events of whole revisions, in order, each exactly once, however slowly it is read.
/// Dropping it cancels it.
#[derive(Debug)]
pub struct Watcher {
    current: Arc<Current>,
    id: u64,
    feed: Arc<Feed>,
    created: i64,
    pace: Pace,
    ended: bool,
}

impl Watcher {
    pub(crate) fn new(current: Arc<Current>, id: u64, feed: Arc<Feed>, created: i64) -> Self {
        Watcher { current, id, feed, created, pace: Pace::default(), ended: false }
    }

    /// The current revision when it was registered: every matching event above it is delivered.
    pub fn created_revision(&self) -> i64 {
        self.created
    }

    /// Blocks until there is something; None once it has ended.
    ///
    /// # Errors
    /// If history cannot be read.
    pub fn recv(&mut self) -> Result<Option<WatchItem>> {
        block_on(self.next())
    }

    /// What is there now, if anything: `Ready(None)` once it has ended.
    ///
    /// # Errors
    /// If history cannot be read.
    pub fn try_recv(&mut self) -> Result<Poll<Option<WatchItem>>> {
        for _ in 0..STEPS_PER_POLL {
            if self.ended {
                return Ok(Poll::Ready(None));
            }
            match self.feed.take() {
                Take::Ended => self.ended = true,
                Take::Nothing => return Ok(Poll::Pending),
                Take::Events { upto, events } => {
                    return Ok(Poll::Ready(Some(WatchItem::Events { revision: upto.cast_signed(), events })));
                }
                Take::Behind(next) => {
                    if let Some(item) = self.catch_up(next)? {
                        self.ended = true;
                        return Ok(Poll::Ready(Some(item)));
                    }
                    if next > self.current.core().publisher.visible() {
                        // What it needs is applied but not visible yet: publishing wakes it.
                        return Ok(Poll::Pending);
                    }
                }
            }
        }
        Ok(Poll::Pending)
    }

    /// For tasks.
    ///
    /// # Errors
    /// If history cannot be read.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<WatchItem>>> {
        self.feed.set_waker(cx.waker());
        match self.try_recv() {
            Err(error) => Poll::Ready(Err(error)),
            Ok(Poll::Ready(item)) => Poll::Ready(Ok(item)),
            Ok(Poll::Pending) => {
                // More history to read: come back, but let others have their turn.
                if !self.feed.is_idle()
                    && !matches!(self.feed.take_next(), Some(next) if next > self.current.core().publisher.visible())
                {
                    cx.waker().wake_by_ref();
                }
                Poll::Pending
            }
        }
    }

    /// The next item, for tasks.
    ///
    /// # Errors
    /// If history cannot be read.
    pub async fn next(&mut self) -> Result<Option<WatchItem>> {
        poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// The current revision if every matching event up to it was handed out, else None (WCH-21).
    pub fn progress(&self) -> Option<i64> {
        self.current.core().hub.progress(&self.feed).map(u64::cast_signed)
    }

    /// Reads a bounded piece of history from `next` on. Some ends the watcher.
    fn catch_up(&mut self, next: u64) -> Result<Option<WatchItem>> {
        let core = self.current.core();
        let visible = core.publisher.visible();
        // Pinned first, checked after (S3).
        let pin = core.pin(next.saturating_sub(1));
        let segments = core.routes.cut(&self.feed.request.span);
        let floor = core.floor(&segments);
        if next.cast_signed() < floor {
            return Ok(Some(self.compacted(&core, floor)));
        }
        if next <= visible {
            let (upto, events) = history::read(&core, &self.feed, next, visible, &mut self.pace)?;
            let floor = core.floor(&segments);
            if !pin.holds() && next.cast_signed() < floor {
                return Ok(Some(self.compacted(&core, floor)));
            }
            self.feed.caught_up(upto, events);
        }
        if self.feed.is_to_be_enlisted(visible) {
            // The writer that begins the next revision, whatever has replaced this core.
            core.with_writer(|core, writer| core.hub.enlist(&self.feed, writer.state.main));
        }
        core.hub.sync(&self.feed);
        Ok(None)
    }

    fn compacted(&self, core: &Core, compact_revision: i64) -> WatchItem {
        core.hub.cancel(self.id);
        WatchItem::Compacted { compact_revision }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.current.core().hub.cancel(self.id);
    }
}
