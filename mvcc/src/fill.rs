//! Putting what a snapshot holds into a space that nobody sees yet.

use crate::error::{Error, Refusal, Result};
use crate::record::State;
use crate::reopen::Shared;
use crate::routes::Routes;
use crate::row;
use crate::snapshot::{Item, SnapshotReader};
use bytes::Bytes;
use polybolt_engine::{AdmitError, Batch, Cost, Edit, Error as EngineError, Place, SpaceInfo, TreeEdit};
use std::future::{Future, poll_fn};
use std::io::Read;
use std::path::Path;
use std::pin::Pin;
use std::task::Poll;

/// Bytes of rows that go to the store at a time.
pub(crate) const BATCH_BYTES: usize = 1 << 20;

/// A space on its way to be a keyspace. What it is given is durable with a checkpoint.
pub(crate) struct Filling<'a> {
    pub(crate) shared: &'a Shared,
    pub(crate) info: &'a SpaceInfo,
    pub(crate) routes: &'a Routes,
    /// So many bytes are flushed before more is taken in, so that the write buffers are not full of them.
    pub(crate) flush_bytes: u64,
}

impl Filling<'_> {
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
        let (mut bytes, mut rows, mut unflushed) = (0, 0, 0);
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
            if bytes >= BATCH_BYTES {
                unflushed += std::mem::take(&mut bytes) as u64;
                self.batch(std::mem::take(&mut edits), state).await?;
                if unflushed >= self.flush_bytes {
                    unflushed = 0;
                    self.checkpoint().await?;
                }
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
        Ok(())
    }
}
