//! A get: a range of one key, which writes to no memory that others read.
//!
//! It is short, so it pins nothing: a pin all readers would have to share. It reads, and looks at the floor after. What
//! a sweep took out for a compacted revision shows no earlier than that revision does, so a floor that is still not
//! above the revision read says that all that can be seen there was there. Else a pin has to hold it.
//!
//! What is newest it looks for by hash first, and in the ordered index if that does not say or what it says is not there.

use crate::core::Core;
use crate::error::{Error, Result};
use crate::request::{KeyValue, RangeRequest, RangeResponse, SpanEnd};
use crate::row;
use polybolt_engine::defect::{Defect, is_on};
use polybolt_engine::run::pause;
use polybolt_index::{Hit, Revision};

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
    let which = core.routes.shard_of(&request.span.key);
    let visible = core.publisher.visible();
    let at = if request.revision <= 0 { visible } else { request.revision.cast_unsigned() };
    if at > visible || core.floor_of(which) > at.cast_signed() {
        return None;
    }
    pause("read: visible");
    // Of a long key a row without its body does not say.
    let by_hash = !request.count_only && !request.keys_only;
    let (count, kvs) = match by_hash.then(|| hashed(core, which, request, at)).flatten() {
        Some(kv) => (1, Ok(vec![kv])),
        None => ordered(core, which, request, at),
    };
    if core.floor_of(which) > at.cast_signed() && !is_on(Defect::TrustUnpinned) {
        return None;
    }
    Some(RangeResponse { revision: visible.cast_signed(), count, kvs: kvs.ok()?, ..RangeResponse::default() })
}

/// The row by the hash of its key.
fn hashed(core: &Core, shard: usize, request: &RangeRequest, at: u64) -> Option<KeyValue> {
    let key = &request.span.key;
    core.shards[shard].keys.find_hashed(key, at, |row| read(core, shard, request, row).ok()?)
}

/// By the ordered index: whether the key is live, and its row, if it was asked for.
fn ordered(core: &Core, shard: usize, request: &RangeRequest, at: u64) -> (i64, Result<Vec<KeyValue>>) {
    let Some(Hit { modified, .. }) = core.shards[shard].keys.read().get(&request.span.key, at) else {
        return (0, Ok(Vec::new()));
    };
    let missing = |kv: Option<KeyValue>| kv.ok_or_else(|| core.missing(&core.shards[shard]));
    let row = || read(core, shard, request, modified).and_then(missing).map(|kv| vec![kv]);
    (1, if request.count_only { Ok(Vec::new()) } else { row() })
}

/// A row, if it is there and of the key.
fn read(core: &Core, shard: usize, request: &RangeRequest, modified: Revision) -> Result<Option<KeyValue>> {
    let tree_key = row::row_key(modified);
    let now = core.shards[shard].reader.glance();
    pause("read: view");
    let shown = now.show(&tree_key, !request.keys_only, |lent| {
        let opened = core.open_if_of((shard, request.span.key.clone(), modified), &tree_key, &lent)?;
        Ok::<_, Error>(opened.map(|(kv, value)| KeyValue { value: value.into_bytes(), ..kv }))
    })?;
    shown.transpose().map(Option::flatten)
}
