//! A get: a range of one key, which writes to no memory that others read.
//!
//! It is short, so it pins nothing: a pin all readers would have to share. It reads, and looks at the floor after. What
//! a sweep took out for a compacted revision shows no earlier than that revision does, so a floor that is still not
//! above the revision read says that all that can be seen there was there. Else a pin has to hold it.

use crate::core::Core;
use crate::error::{Error, Result};
use crate::request::{KeyValue, RangeRequest, RangeResponse, SpanEnd};
use crate::row;
use polybolt_engine::defect::{Defect, is_on};
use polybolt_engine::run::pause;
use polybolt_index::Hit;

/// True if the request is a get and nothing else.
pub(crate) fn suits(request: &RangeRequest) -> bool {
    let bounds =
        [request.min_mod_revision, request.max_mod_revision, request.min_create_revision, request.max_create_revision];
    request.span.end == SpanEnd::Single && bounds == [0; 4]
}

/// Answers a get. None if it has to be done with a pin: so has one of a revision that is none or no more, and one that
/// met damage, which may be that the keyspace was replaced or dropped under it.
pub(crate) fn get(core: &Core, request: &RangeRequest) -> Option<RangeResponse> {
    core.check_open().ok()?;
    let key = &request.span.key;
    let which = core.routes.shard_of(key);
    let visible = core.publisher.visible();
    let at = if request.revision <= 0 { visible } else { request.revision.cast_unsigned() };
    if at > visible || core.floor_of(which) > at.cast_signed() {
        return None;
    }
    pause("read: visible");
    let hit = core.shards[which].index.read().get(key, at);
    let kvs = match hit {
        Some(hit) if !request.count_only => row(core, which, request, hit),
        _ => Ok(Vec::new()),
    };
    if core.floor_of(which) > at.cast_signed() && !is_on(Defect::TrustUnpinned) {
        return None;
    }
    let (revision, count) = (visible.cast_signed(), i64::from(hit.is_some()));
    Some(RangeResponse { revision, count, kvs: kvs.ok()?, ..RangeResponse::default() })
}

fn row(core: &Core, shard: usize, request: &RangeRequest, hit: Hit) -> Result<Vec<KeyValue>> {
    let tree_key = row::row_key(hit.modified);
    let now = core.shards[shard].reader.glance();
    pause("read: view");
    let shown = now.show(&tree_key, !request.keys_only, |lent| {
        let (mut kv, value) = core.open((shard, request.span.key.clone(), hit.modified), &tree_key, &lent)?;
        kv.value = value.into_bytes();
        Ok::<_, Error>(vec![kv])
    })?;
    shown.unwrap_or_else(|| Err(core.missing(&core.shards[shard])))
}
