//! Putting what a snapshot holds into a space that nobody sees yet.

use crate::error::{Error, Refusal, Result};
use crate::record::State;
use crate::reopen::Shared;
use crate::routes::Routes;
use crate::row;
use crate::snapshot::{Item, SnapshotReader};
use bytes::Bytes;
use polybolt_engine::run::{Pacer, Signal};
use polybolt_engine::sync::atomic::{AtomicU64, Ordering};
use polybolt_engine::{AdmitError, Batch, Cost, Edit, Error as EngineError, Place, SpaceInfo, TreeEdit};
use std::future::{Future, poll_fn};
use std::io::Read;
use std::path::Path;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

/// Bytes of rows that go to the store at a time, if nobody is to notice those of a 256th of a second.
const BATCH_BYTES: u64 = 1 << 20;
const BATCH_BYTES_MIN: u64 = 64 << 10;

/// A space on its way to be a keyspace. What it is given is durable with a checkpoint.
pub(crate) struct Filling<'a> {
    pub(crate) shared: &'a Shared,
    pub(crate) info: &'a SpaceInfo,
    pub(crate) routes: &'a Routes,
    /// So many bytes are flushed before more is taken in, so that the write buffers are not full of them, and no sync
    /// is long.
    flush_bytes: AtomicU64,
    unflushed: AtomicU64,
    pacer: Pacer,
}

/// So often one looks whether a wait is to end early.
const REST_MAX: Duration = Duration::from_millis(50);

impl<'a> Filling<'a> {
    /// As fast as it can be, with nobody to notice.
    pub(crate) fn new(shared: &'a Shared, info: &'a SpaceInfo, routes: &'a Routes) -> Self {
        let (flush_bytes, unflushed, pacer) = (AtomicU64::new(u64::MAX), AtomicU64::new(0), Pacer::new(0));
        Filling { shared, info, routes, flush_bytes, unflushed, pacer }
    }

    /// So many bytes of rows a second, 0 for as fast as it can be, beside others that are in use.
    pub(crate) fn beside(self, bytes_per_second: u64) -> Self {
        let rate = if bytes_per_second == 0 { u64::MAX } else { bytes_per_second };
        let flush_bytes = (rate / 8).max(BATCH_BYTES_MIN).min(self.flush_bytes_max());
        Filling { flush_bytes: AtomicU64::new(flush_bytes), pacer: Pacer::new(bytes_per_second), ..self }
    }

    /// Writers need the buffers too.
    fn flush_bytes_max(&self) -> u64 {
        self.shared.options.buffer_bytes / 8
    }

    /// From now on twice as fast, if it was paced.
    pub(crate) fn hurry(&self) {
        let before = self.flush_bytes.load(Ordering::Relaxed);
        self.flush_bytes.store(before.saturating_mul(2).min(self.flush_bytes_max()), Ordering::Relaxed);
        self.pacer.set(self.pacer.rate().saturating_mul(2));
    }

    /// From now on as fast as it can be, and with no flush but that of [`Filling::finish`].
    pub(crate) fn let_go(&self) {
        self.flush_bytes.store(u64::MAX, Ordering::Relaxed);
        self.pacer.set(0);
    }

    /// True if so many bytes are a batch.
    pub(crate) fn is_batch(&self, bytes: usize) -> bool {
        let batch_bytes = match self.pacer.rate() {
            0 => BATCH_BYTES,
            rate => (rate / 256).clamp(BATCH_BYTES_MIN, BATCH_BYTES),
        };
        bytes as u64 >= batch_bytes
    }

    /// Takes everything that `reader` has, a bounded batch at a time; an error if that was not whole.
    /// `progress` is told how many rows are in.
    pub(crate) async fn fill(
        &self,
        state: &State,
        mut reader: SnapshotReader<impl Read>,
        mut progress: impl FnMut(u64),
    ) -> Result<()> {
        let meta = self.info.trees[self.info.trees.len() - 1].id;
        let mut edits = Vec::new();
        let (mut bytes, mut rows) = (0, 0);
        while let Some(items) = reader.next_items()? {
            for item in items {
                let edit = match item {
                    Item::Row { key, head, body } => {
                        rows += 1;
                        let damaged = |damage| EngineError::corrupt(Path::new("the snapshot"), Place::File, damage);
                        let row = row::RowHead::decode(&head).map_err(damaged)?;
                        let shard = self.routes.shard_of(row.key_in(&body).map_err(damaged)?);
                        let edit = Edit::Put { head: head.clone(), body: body.clone() };
                        TreeEdit { tree: self.info.trees[shard].id, key, edit }
                    }
                    Item::Meta { key, value } => {
                        TreeEdit { tree: meta, key, edit: Edit::Put { head: Bytes::new(), body: value } }
                    }
                };
                bytes += edit.key.len() + edit.edit.len();
                edits.push(edit);
            }
            if self.is_batch(bytes) {
                bytes = 0;
                self.batch(std::mem::take(&mut edits), state).await?;
                progress(rows);
            }
        }
        self.batch(edits, state).await?;
        progress(rows);
        Ok(())
    }

    /// Waits until all that it was given is in its files, from where it is scanned.
    pub(crate) async fn flush(&self) -> Result<()> {
        self.checkpoint().await?;
        let store = &self.shared.store;
        // What of a Volatile shard finds no room stays in memory, and fails no checkpoint.
        let failed = self.info.trees.iter().find_map(|tree| store.tree_failure(tree.id));
        failed.map_or(Ok(()), |error| Err(error.into()))
    }

    /// Waits for a checkpoint, but not for room on a full disk: what was filled in is what has to go then.
    pub(crate) async fn checkpoint(&self) -> Result<()> {
        self.unflushed.store(0, Ordering::Relaxed);
        let store = &self.shared.store;
        let mut flush = store.flush();
        poll_fn(|cx| match Pin::new(&mut flush).poll(cx) {
            Poll::Pending if store.is_disk_full() => Poll::Ready(Err(Refusal::DiskFull.into())),
            polled => polled.map_err(Error::from),
        })
        .await
    }

    /// From here it is a keyspace, in both slots of the manifest: what is written to it next must not go with
    /// one of them.
    pub(crate) async fn finish(&self, state: &State) -> Result<()> {
        self.batch(Vec::new(), state).await?;
        for _ in 0..2 {
            self.checkpoint().await?;
        }
        Ok(())
    }

    /// A batch that the next checkpoint makes durable.
    pub(crate) async fn batch(&self, edits: Vec<TreeEdit>, state: &State) -> Result<()> {
        let cost = Cost {
            edit_bytes: edits.iter().map(|edit| (edit.key.len() + edit.edit.len()) as u64).sum(),
            edits: edits.len() as u64,
            ..Cost::default()
        };
        let store = &self.shared.store;
        let admission = loop {
            match store.admit(cost) {
                Ok(admission) => break admission,
                Err(AdmitError::Short(ticket)) => ticket.await?,
                Err(AdmitError::Refused(error)) => return Err(error.into()),
            }
        };
        let mut batch = Batch { edits, ..Batch::new(self.info.id) };
        state.encode_into(&mut batch.state);
        store.apply(admission, &mut batch);
        let unflushed = self.unflushed.fetch_add(cost.edit_bytes, Ordering::Relaxed) + cost.edit_bytes;
        if unflushed >= self.flush_bytes.load(Ordering::Relaxed) {
            self.checkpoint().await?;
        }
        if let Some(at) = self.pacer.after(self.shared.clock.monotonic(), cost.edit_bytes) {
            self.rest(at).await;
        }
        Ok(())
    }

    /// Waits until then, or until the engine is closed. With this thread, which may block: it reads the disk too.
    async fn rest(&self, at: Duration) {
        let Shared { clock, closed, threads, .. } = self.shared;
        poll_fn(|cx| {
            let left = at.saturating_sub(clock.monotonic());
            if left.is_zero() || closed.load(Ordering::Acquire) {
                return Poll::Ready(());
            }
            // Where somebody steps the jobs, the clock is theirs too.
            if *threads {
                Signal::default().wait(Some(left.min(REST_MAX)));
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }
}
