//! What a consumer of a watch holds.

use crate::core::{Core, Rows};
use crate::error::Result;
use crate::event::{Event, EventKind, WatchItem};
use crate::request::KeyValue;
use crate::watch::{Feed, Take};
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

/// Revisions that one step of catching up looks at.
const MAINS_PER_STEP: u64 = 1000;
/// Bytes of events after which a step of catching up ends at the next revision.
const BYTES_PER_STEP: usize = 1 << 20;
/// Steps taken for one poll before others get their turn.
const STEPS_PER_POLL: usize = 8;

/// A watcher: events of whole revisions, in order, each exactly once, however slowly it is read.
/// Dropping it cancels it.
#[derive(Debug)]
pub struct Watcher {
    core: Arc<Core>,
    id: u64,
    feed: Arc<Feed>,
    created: i64,
    ended: bool,
}

impl Watcher {
    pub(crate) fn new(core: Arc<Core>, id: u64, feed: Arc<Feed>, created: i64) -> Self {
        Watcher { core, id, feed, created, ended: false }
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
        loop {
            match self.try_recv()? {
                Poll::Ready(item) => return Ok(item),
                Poll::Pending => self.feed.wait(Duration::from_millis(100)),
            }
        }
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
                    if next > self.core.publisher.visible() {
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
                    && !matches!(self.feed.take_next(), Some(next) if next > self.core.publisher.visible())
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
        self.core.hub.progress(&self.feed).map(u64::cast_signed)
    }

    /// Reads a bounded piece of history from `next` on. Some ends the watcher.
    fn catch_up(&self, next: u64) -> Result<Option<WatchItem>> {
        let core = &self.core;
        let visible = core.publisher.visible();
        // Pinned first, checked after (S3).
        let until = core.clock.monotonic().saturating_add(core.options.pin_age_max);
        let _pin = core.pins.pin(next.saturating_sub(1), until);
        let span = &self.feed.request.span;
        let floor = core.floor(&core.routes.cut(span));
        if next.cast_signed() < floor {
            core.hub.cancel(self.id);
            return Ok(Some(WatchItem::Compacted { compact_revision: floor }));
        }
        if next <= visible {
            let (upto, events) = self.history(next, visible)?;
            self.feed.caught_up(upto, &events);
        }
        if self.feed.is_to_be_enlisted(visible) {
            let writer = core.writer.lock();
            core.hub.enlist(&self.feed, writer.state.main);
        }
        core.hub.sync(&self.feed);
        Ok(None)
    }

    /// Matching events from `next` on, whole revisions, and up to where everything was looked at.
    fn history(&self, next: u64, visible: u64) -> Result<(u64, Vec<Event>)> {
        let mut rows = Rows::new(&self.core, &self.feed.request.span, next, visible);
        let mut found = Vec::new();
        let (mut bytes, mut mains, mut last) = (0, 0, 0);
        while let Some(row) = rows.next_row()? {
            if row.at.main != last {
                if mains >= MAINS_PER_STEP || bytes >= BYTES_PER_STEP {
                    return Ok((last, found));
                }
                mains += 1;
                last = row.at.main;
            }
            if !self.feed.request.span.contains(&row.kv.key) {
                continue;
            }
            let kind = if row.tombstone { EventKind::Delete } else { EventKind::Put };
            if !self.feed.wants(kind) {
                continue;
            }
            let kv = if row.tombstone {
                let mod_revision = row.kv.mod_revision;
                KeyValue { key: row.kv.key.clone(), mod_revision, ..KeyValue::default() }
            } else {
                row.kv.clone()
            };
            let created = !row.tombstone && row.kv.create_revision == row.kv.mod_revision;
            let prev_kv =
                if self.feed.request.prev_kv && !created { self.before(&row.kv.key, row.at.main)? } else { None };
            bytes += kv.key.len() + kv.value.len();
            found.push(Event::new(kind, kv.detached(), prev_kv.map(KeyValue::detached)));
        }
        Ok((visible, found))
    }

    /// The version of a key before `main`, if compaction has left it.
    fn before(&self, key: &[u8], main: u64) -> Result<Option<KeyValue>> {
        let core = &self.core;
        if (main - 1).cast_signed() < core.publisher.compacted() {
            return Ok(None);
        }
        let shard = core.routes.shard_of(key);
        let Some(hit) = core.shards[shard].index.read().get(key, main - 1) else {
            return Ok(None);
        };
        let found = crate::core::Found { key: bytes::Bytes::copy_from_slice(key), hit, shard, own: None };
        core.fetch_one(&found).map(Some)
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.core.hub.cancel(self.id);
    }
}
