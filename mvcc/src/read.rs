//! Ranges: what is found, filtered, sorted, cut, and only then fetched (RNG-24).

use crate::core::{Core, Found, Views};
use crate::error::{Refusal, Result};
use crate::request::{KeyValue, RangeRequest, RangeResponse, SortOrder, SortTarget, SpanEnd};
use crate::routes::Segment;
use bytes::Bytes;
use polybolt_index::Life;

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
