//! A range in chunks: copied for whoever keeps them, or lent where the rows lie to whoever encodes them anyway.
//!
//! A chunk is two steps: under the index's lock, for bounded runs of keys, where their rows are; then, without a lock,
//! the rows. What is lent lies in the pages of a view, which stay while the chunk is shown (R7).

use crate::core::{Core, KEYS_PER_RUN, ReadPoint};
use crate::error::{Error, Refusal, Result};
use crate::read::{self, Pinned, Source};
use crate::request::{KeyValue, KeyValueRef, RangeRequest, SortOrder, SortTarget, Span, SpanEnd};
use crate::routes::Segment;
use crate::row::{self, ROW_KEY_BYTES};
use bytes::Bytes;
use polybolt_engine::run::pause;
use polybolt_index::{Hit, KeyRange};
use std::ops::ControlFlow;
use std::sync::Arc;

/// Chunks begin at this many keys and adapt to their bytes.
const CHUNK_KEYS: usize = 64;
/// About how many bytes a chunk should have.
const CHUNK_BYTES: usize = 256 << 10;
/// The most keys of a chunk.
const CHUNK_KEYS_MAX: usize = 8192;

/// A range handed out in chunks, at one revision, whatever is written or compacted meanwhile. Holds
/// one chunk in memory; of one that is lent only its keys.
#[derive(Debug)]
pub struct RangeStream {
    core: Arc<Core>,
    request: RangeRequest,
    point: ReadPoint,
    next: Option<Bytes>,
    left: usize,
    chunk: usize,
    count: i64,
    more: bool,
    places: Places,
}

impl RangeStream {
    /// Begins a stream (RST-1..5). Order has to be by key, ascending, and no revision filters.
    pub(crate) fn new(core: &Arc<Core>, request: &RangeRequest) -> Result<Self> {
        read::check(request)?;
        let ordered = request.sort_order == SortOrder::None
            || (request.sort_order == SortOrder::Ascend && request.sort_target == SortTarget::Key);
        if !ordered {
            return Err(Refusal::Unsupported { why: "RangeStream does not support custom sort orders".into() }.into());
        }
        let filters = [
            request.min_mod_revision,
            request.max_mod_revision,
            request.min_create_revision,
            request.max_create_revision,
        ];
        if filters.iter().any(|bound| *bound != 0) {
            return Err(Refusal::Unsupported { why: "RangeStream does not support revision filters".into() }.into());
        }
        let segments = core.routes.cut(&request.span);
        let point = core.read_point(&segments, request.revision)?;
        let count = core.count(&segments, point.at).cast_signed();
        let limit = usize::try_from(request.limit).ok().filter(|limit| *limit > 0);
        Ok(RangeStream {
            core: Arc::clone(core),
            request: request.clone(),
            next: if request.count_only { None } else { Some(request.span.key.clone()) },
            left: limit.unwrap_or(usize::MAX),
            more: limit.is_some_and(|limit| count.cast_unsigned() > limit as u64) && !request.count_only,
            point,
            chunk: CHUNK_KEYS,
            count,
            places: Places::default(),
        })
    }

    /// The current revision when the stream began.
    pub fn revision(&self) -> i64 {
        self.point.visible.cast_signed()
    }

    /// Live keys in the whole span at the revision read: a range's `count`.
    pub fn total(&self) -> i64 {
        self.count
    }

    /// True if the limit cuts something.
    pub fn more(&self) -> bool {
        self.more
    }

    /// Shows the rows of the next chunk where they lie, each checked, and says how many there were; None once there are
    /// none. Nothing is copied, and nothing allocated for a row: this is how to encode an answer. `visit` should not wait
    /// for anybody: while a chunk is shown, pages that others replace are not used again.
    ///
    /// # Errors
    /// As those of a chunk that is copied. Rows that were shown before are right.
    pub fn lend(&mut self, visit: &mut dyn FnMut(KeyValueRef<'_>)) -> Option<Result<usize>> {
        let from = self.next.take()?;
        match self.lend_from(from, visit) {
            Ok(0) => None,
            other => Some(other),
        }
    }

    fn lend_from(&mut self, from: Bytes, visit: &mut dyn FnMut(KeyValueRef<'_>)) -> Result<usize> {
        self.check_pin()?;
        let (wanted, mut places) = (self.chunk.min(self.left), std::mem::take(&mut self.places));
        for segment in &self.rest(from) {
            places.add(&self.core, segment, self.point.at, wanted);
        }
        // What was let go meanwhile may be missing, in the index or in the tree.
        self.check_pin()?;
        let lent = places.lend(&self.core, self.request.keys_only, CHUNK_BYTES, visit);
        let (shown, bytes) = match lent {
            Err(_) if !self.point.pin.holds() => return Err(self.compacted()),
            lent => lent?,
        };
        let is_last = places.len() < wanted && shown == places.len();
        if let Some(last) = shown.checked_sub(1) {
            self.took(shown, bytes, (!is_last).then(|| places.key(last)));
        }
        places.clear();
        self.places = places;
        Ok(shown)
    }

    fn chunk(&mut self, from: Bytes) -> Result<Vec<KeyValue>> {
        self.check_pin()?;
        let source = Pinned { core: &self.core, segments: self.rest(from), at: self.point.at };
        let wanted = self.chunk.min(self.left);
        let found = source.keys(wanted, true);
        let is_whole = found.len() == wanted;
        let places = found.len();
        let kvs = self.core.fetch_some(found, self.request.keys_only, CHUNK_BYTES);
        // Looked at again: what was let go meanwhile may be missing, in the index or in the tree.
        self.check_pin()?;
        let kvs = kvs?;
        let bytes = kvs.iter().map(|kv| kv.key.len() + kv.value.len()).sum();
        if let Some(last) = kvs.last() {
            self.took(kvs.len(), bytes, (is_whole || kvs.len() < places).then_some(&last.key));
        }
        Ok(kvs)
    }

    /// Notes that so many rows of so many bytes were handed out, and behind which key it goes on.
    fn took(&mut self, rows: usize, bytes: usize, last: Option<&[u8]>) {
        self.left -= rows;
        self.next = last.filter(|_| self.left > 0).map(|last| after(last).into());
        // As many as there will be bytes for, so that few are looked up in vain.
        let fit = CHUNK_BYTES.saturating_mul(rows) / bytes.max(1) + 1;
        self.chunk = fit.min(self.chunk * 2).min(CHUNK_KEYS_MAX);
    }

    /// What is left of the span.
    fn rest(&self, from: Bytes) -> Vec<Segment> {
        let end = match &self.request.span.end {
            SpanEnd::Single if from == self.request.span.key => SpanEnd::Single,
            SpanEnd::Single => return Vec::new(),
            end => end.clone(),
        };
        self.core.routes.cut(&Span { key: from, end })
    }

    fn check_pin(&self) -> Result<()> {
        if self.point.pin.holds() { Ok(()) } else { Err(self.compacted()) }
    }

    fn compacted(&self) -> Error {
        Refusal::Compacted { revision: self.core.publisher.compacted() }.into()
    }
}

impl Iterator for RangeStream {
    type Item = Result<Vec<KeyValue>>;

    fn next(&mut self) -> Option<Result<Vec<KeyValue>>> {
        let from = self.next.take()?;
        match self.chunk(from) {
            Ok(kvs) if kvs.is_empty() => None,
            other => Some(other),
        }
    }
}

/// The least key above another.
fn after(key: &[u8]) -> Vec<u8> {
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.push(0);
    next
}

/// Keys that are to be shown, behind each other, and where their rows are. Its memory is used again for each chunk.
#[derive(Debug, Default)]
struct Places {
    keys: Vec<u8>,
    /// Of each key.
    ends: Vec<usize>,
    rows: Vec<[u8; ROW_KEY_BYTES]>,
    /// Shards in turn, and how many keys there are up to the last of each.
    shards: Vec<(usize, usize)>,
}

impl Places {
    /// Forgets them. Of long keys the memory goes too.
    fn clear(&mut self) {
        self.keys.clear();
        self.keys.shrink_to(CHUNK_BYTES);
        self.ends.clear();
        self.rows.clear();
        self.shards.clear();
    }

    fn len(&self) -> usize {
        self.rows.len()
    }

    fn key(&self, at: usize) -> &[u8] {
        let start = at.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.keys[start..self.ends[at]]
    }

    /// Adds keys of a segment that are live at main `at`, until there are `full` in all.
    fn add(&mut self, core: &Core, segment: &Segment, at: u64, full: usize) {
        let mut start = segment.start.clone();
        // In runs, so that the lock is never held for long.
        while self.len() < full {
            let run_ends = full.min(self.len() + KEYS_PER_RUN);
            let visit = &mut |key: &[u8], hit: Hit| {
                self.keys.extend_from_slice(key);
                self.ends.push(self.keys.len());
                self.rows.push(row::row_key(hit.modified));
                if self.rows.len() == run_ends { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            };
            let range = KeyRange { start: &start, end: segment.end.as_deref() };
            core.shards[segment.shard].keys.read().walk(range, at, visit);
            if self.len() < run_ends {
                break;
            }
            start = after(self.key(run_ends - 1)).into();
        }
        self.shards.push((segment.shard, self.len()));
    }

    /// Shows their rows until those have so many bytes; how many rows and bytes were shown.
    fn lend(
        &self,
        core: &Core,
        keys_only: bool,
        bytes_max: usize,
        visit: &mut dyn FnMut(KeyValueRef<'_>),
    ) -> Result<(usize, usize)> {
        let (mut shown, mut bytes) = (0, 0);
        for &(which, end) in &self.shards {
            if shown == end || bytes >= bytes_max {
                continue;
            }
            let (shard, rows) = (&core.shards[which], &self.rows[shown..end]);
            let first = shown;
            let view = core.store.view(shard.tree)?;
            pause("read: view");
            view.get_many(rows, !keys_only, &mut |at, lent| {
                let lent = lent.ok_or_else(|| core.missing(shard))?;
                let (key, tree_key) = (self.key(first + at), &rows[at]);
                let row = core.look(which, key, tree_key, &lent)?;
                let (row, value) = row.ok_or_else(|| core.not_of_key(shard))?;
                let modified = row::row_revision(tree_key).map_err(|damage| core.damaged(shard, damage))?;
                shown += 1;
                bytes += key.len() + value.len();
                visit(KeyValueRef {
                    key,
                    create_revision: row.created.cast_signed(),
                    mod_revision: modified.main.cast_signed(),
                    version: row.version.cast_signed(),
                    value,
                    lease: row.lease,
                });
                Ok::<_, Error>(bytes < bytes_max)
            })?;
        }
        Ok((shown, bytes))
    }
}
