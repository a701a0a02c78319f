//! Ranges: what is found, filtered, sorted, cut, and only then fetched (RNG-24).

use crate::core::{Core, Found, ReadPoint, Views};
use crate::error::{Refusal, Result};
use crate::request::{KeyValue, RangeRequest, RangeResponse, SortOrder, SortTarget, Span, SpanEnd};
use crate::routes::Segment;
use bytes::Bytes;
use polybolt_index::Life;
use std::sync::Arc;

/// Where a range finds its keys and rows: a pinned revision, or a txn with its own changes.
pub(crate) trait Source {
    /// Live keys of the span.
    fn count(&self) -> i64;
    /// The first `max` of them in key order, or the last in reverse order.
    fn keys(&self, max: usize, up: bool) -> Vec<Found>;
    /// Their lives.
    fn lives(&self, found: &[Found]) -> Result<Vec<Life>>;
    /// Their rows.
    fn fetch(&self, found: Vec<Found>, keys_only: bool) -> Result<Vec<KeyValue>>;
}

/// Answers a range. Memory: the result, or all matching keys where they have to be sorted.
pub(crate) fn range(source: &dyn Source, request: &RangeRequest, revision: u64) -> Result<RangeResponse> {
    // Of one key nothing is to be sorted or cut, and its count is whether it is there.
    let single = (request.span.end == SpanEnd::Single).then(|| source.keys(1, true));
    let count = single.as_ref().map_or_else(|| source.count(), |found| found.len().cast_signed() as i64);
    let mut response = RangeResponse { revision: revision.cast_signed(), count, ..RangeResponse::default() };
    if request.count_only {
        return Ok(response);
    }
    let limit = usize::try_from(request.limit).ok().filter(|limit| *limit > 0);
    let filtered =
        [request.min_mod_revision, request.max_mod_revision, request.min_create_revision, request.max_create_revision]
            .iter()
            .any(|bound| *bound != 0);
    let by_key = request.sort_target == SortTarget::Key;
    let down = request.sort_order == SortOrder::Descend && by_key;
    // RNG-20: without an order the limit is applied before the sort.
    let cut_first = !filtered && (request.sort_order == SortOrder::None || by_key);
    let max = limit.filter(|_| cut_first).map_or(usize::MAX, |limit| limit.saturating_add(1));
    let mut found = single.unwrap_or_else(|| source.keys(max, !down));
    if filtered {
        let by_creation = request.min_create_revision != 0 || request.max_create_revision != 0;
        let lives = if by_creation { source.lives(&found)? } else { Vec::new() };
        let mut at = 0..;
        found.retain(|found| {
            let life = at.next().and_then(|at: usize| lives.get(at));
            passes(request, found.hit.modified.main, life.map_or(0, |life| life.created))
        });
    }
    if by_key {
        response.more = cut(&mut found, limit);
        response.kvs = source.fetch(found, request.keys_only)?;
        return Ok(response);
    }
    if request.sort_target == SortTarget::Value {
        let mut kvs = source.fetch(found, false)?;
        kvs.sort_by(|a, b| directed(request.sort_order, a.value.cmp(&b.value)));
        response.more = cut(&mut kvs, limit);
        if request.keys_only {
            kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
        }
        response.kvs = kvs;
        return Ok(response);
    }
    let numbers: Vec<u64> = match request.sort_target {
        SortTarget::Version => source.lives(&found)?.iter().map(|life| life.version).collect(),
        SortTarget::Create => source.lives(&found)?.iter().map(|life| life.created).collect(),
        _ => found.iter().map(|found| found.hit.modified.main).collect(),
    };
    // Stable, so ties stay in key order (RNG-22).
    let mut sorted: Vec<(u64, Found)> = numbers.into_iter().zip(found).collect();
    sorted.sort_by(|a, b| directed(request.sort_order, a.0.cmp(&b.0)));
    let mut found: Vec<Found> = sorted.into_iter().map(|(_, found)| found).collect();
    response.more = cut(&mut found, limit);
    response.kvs = source.fetch(found, request.keys_only)?;
    Ok(response)
}

fn directed(order: SortOrder, ordering: std::cmp::Ordering) -> std::cmp::Ordering {
    if order == SortOrder::Descend { ordering.reverse() } else { ordering }
}

fn cut<T>(items: &mut Vec<T>, limit: Option<usize>) -> bool {
    match limit {
        Some(limit) if items.len() > limit => {
            items.truncate(limit);
            true
        }
        _ => false,
    }
}

/// RNG-14: each bound holds if it is not 0.
fn passes(request: &RangeRequest, modified: u64, created: u64) -> bool {
    let (modified, created) = (modified.cast_signed(), created.cast_signed());
    let above = |bound: i64, value: i64| bound == 0 || value >= bound;
    let below = |bound: i64, value: i64| bound == 0 || value <= bound;
    below(request.max_mod_revision, modified)
        && above(request.min_mod_revision, modified)
        && below(request.max_create_revision, created)
        && above(request.min_create_revision, created)
}

/// A pinned revision of a keyspace.
pub(crate) struct Pinned<'a> {
    pub(crate) core: &'a Core,
    pub(crate) segments: Vec<Segment>,
    pub(crate) at: u64,
}

impl Source for Pinned<'_> {
    fn count(&self) -> i64 {
        self.core.count(&self.segments, self.at).cast_signed()
    }

    fn keys(&self, max: usize, up: bool) -> Vec<Found> {
        if let [segment] = &self.segments[..]
            && let Some(key) = segment.single()
        {
            return self.core.key_in(segment.shard, key, self.at).into_iter().collect();
        }
        let mut found = Vec::new();
        let mut segments: Vec<&Segment> = self.segments.iter().collect();
        if !up {
            segments.reverse();
        }
        for segment in segments {
            if found.len() >= max {
                break;
            }
            self.core.keys_in(segment, self.at, max - found.len(), up, &mut found);
        }
        found
    }

    fn lives(&self, found: &[Found]) -> Result<Vec<Life>> {
        self.core.lives(found)
    }

    fn fetch(&self, found: Vec<Found>, keys_only: bool) -> Result<Vec<KeyValue>> {
        self.core.fetch(found, keys_only)
    }
}

/// [`Defect::ViewBeforeVisible`](polybolt_engine::defect::Defect::ViewBeforeVisible).
pub(crate) struct Early<'a> {
    pub(crate) source: Pinned<'a>,
    pub(crate) views: Views,
}

impl Source for Early<'_> {
    fn count(&self) -> i64 {
        self.source.count()
    }

    fn keys(&self, max: usize, up: bool) -> Vec<Found> {
        self.source.keys(max, up)
    }

    fn lives(&self, found: &[Found]) -> Result<Vec<Life>> {
        self.source.lives(found)
    }

    fn fetch(&self, found: Vec<Found>, keys_only: bool) -> Result<Vec<KeyValue>> {
        self.source.core.fetch_in(found, keys_only, usize::MAX, &self.views)
    }
}

/// Checks a request outside of a txn (RNG-1).
pub(crate) fn check(request: &RangeRequest) -> Result<()> {
    if request.span.key.is_empty() { Err(Refusal::EmptyKey.into()) } else { Ok(()) }
}

/// A range handed out in chunks, at one revision, whatever is written or compacted meanwhile. Holds
/// one chunk in memory.
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
}

/// Chunks begin at this many keys and adapt to their bytes.
const CHUNK_KEYS: usize = 64;
/// About how many bytes a chunk should have.
const CHUNK_BYTES: usize = 256 << 10;
/// The most keys of a chunk.
const CHUNK_KEYS_MAX: usize = 8192;

impl RangeStream {
    /// Begins a stream (RST-1..5). Order has to be by key, ascending, and no revision filters.
    pub(crate) fn new(core: &Arc<Core>, request: &RangeRequest) -> Result<Self> {
        check(request)?;
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

    fn chunk(&mut self, from: Bytes) -> Result<Vec<KeyValue>> {
        if !self.point.pin.holds() {
            let revision = self.core.publisher.compacted();
            return Err(Refusal::Compacted { revision }.into());
        }
        let end = match &self.request.span.end {
            SpanEnd::Single if from == self.request.span.key => SpanEnd::Single,
            SpanEnd::Single => return Ok(Vec::new()),
            end => end.clone(),
        };
        let segments = self.core.routes.cut(&Span { key: from, end });
        let source = Pinned { core: &self.core, segments, at: self.point.at };
        let found = source.keys(self.chunk.min(self.left), true);
        let wanted = found.len();
        let kvs = self.core.fetch_some(found, self.request.keys_only, CHUNK_BYTES);
        // Looked at again: what was let go meanwhile may be missing, in the index or in the tree.
        if !self.point.pin.holds() {
            let revision = self.core.publisher.compacted();
            return Err(Refusal::Compacted { revision }.into());
        }
        let kvs = kvs?;
        self.left -= kvs.len();
        if (wanted == self.chunk || kvs.len() < wanted) && self.left > 0 {
            let mut next = kvs.last().map_or_else(Vec::new, |kv| kv.key.to_vec());
            next.push(0);
            self.next = Some(next.into());
        }
        // As many as there will be bytes for, so that few are looked up in vain.
        let bytes: usize = kvs.iter().map(|kv| kv.key.len() + kv.value.len()).sum();
        let fit = CHUNK_BYTES.saturating_mul(kvs.len()) / bytes.max(1) + 1;
        self.chunk = fit.min(self.chunk * 2).min(CHUNK_KEYS_MAX);
        Ok(kvs)
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
