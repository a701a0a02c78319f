//! Rows of what was found: read where they lie, checked, and copied once.

use crate::core::{Core, Found, Shard, Views};
use crate::error::{Error, Result};
use crate::record::{self, RowHead};
use crate::request::KeyValue;
use bytes::Bytes;
use polybolt_engine::run::pause;
use polybolt_engine::view::{Lent, LentBody};
use polybolt_engine::{Damage, Error as EngineError};
use polybolt_index::{Life, Revision};
use std::ops::Range;

/// The most bytes of values that share their memory.
const SHARED_BYTES_MAX: usize = 64 << 10;
/// A value of more bytes has memory of its own.
const SHARED_VALUE_MAX: usize = 8 << 10;

impl Core {
    /// The lives of what was found. The index knows those of newest states; others are read.
    pub(crate) fn lives(&self, found: &[Found]) -> Result<Vec<Life>> {
        let older: Vec<Found> = found.iter().filter(|found| found.hit.life.is_none()).cloned().collect();
        let mut rows = self.fetch(&older, true)?.into_iter();
        let mut read = || {
            let kv = rows.next().unwrap_or_default();
            Life { created: kv.create_revision.cast_unsigned(), version: kv.version.cast_unsigned() }
        };
        Ok(found.iter().map(|found| found.hit.life.unwrap_or_else(&mut read)).collect())
    }

    /// The rows of what was found, in the same order; each tree is read in the order of revisions.
    pub(crate) fn fetch(&self, found: &[Found], keys_only: bool) -> Result<Vec<KeyValue>> {
        self.fetch_in(found, keys_only, &Views::new())
    }

    /// The same out of `views`, where there is one.
    pub(crate) fn fetch_in(&self, found: &[Found], keys_only: bool, views: &Views) -> Result<Vec<KeyValue>> {
        let view_of = |shard: &Shard| match views.iter().find(|(of, _)| *of == shard.tree) {
            None => self.store.view(shard.tree),
            Some((_, early)) => Ok(early.clone()),
        };
        if let [found] = found {
            let shard = &self.shards[found.shard];
            let key = record::row_key(found.hit.modified);
            let open = |lent: Lent<'_>| {
                let (mut kv, value) = self.open((found.shard, &found.key, found.hit.modified), &key, &lent)?;
                kv.value = value.into_bytes();
                Ok::<_, Error>(kv)
            };
            let row = if views.is_empty() {
                let now = shard.reader.glance();
                pause("read: view");
                now.show(&key, !keys_only, open)?
            } else {
                view_of(shard)?.show(&key, !keys_only, open)?
            };
            return Ok(vec![row.unwrap_or_else(|| Err(self.missing(shard)))?]);
        }
        let mut kvs = vec![KeyValue::default(); found.len()];
        let mut wanted: Vec<_> = (0..found.len()).map(|at| (found[at].shard, found[at].hit.modified, at)).collect();
        wanted.sort_unstable();
        for wanted in wanted.chunk_by(|(a, ..), (b, ..)| a == b) {
            let shard = &self.shards[wanted[0].0];
            let keys: Vec<_> = wanted.iter().map(|(_, at, _)| record::row_key(*at)).collect();
            let view = view_of(shard)?;
            pause("read: view");
            let mut values = Values::default();
            let mut failed = None;
            let shown = view.get_many(&keys, !keys_only, &mut |which, lent| {
                let place = wanted[which].2;
                let opened = lent.map_or_else(
                    || Err(self.missing(shard)),
                    |lent| {
                        let Found { shard, key, hit, .. } = &found[place];
                        let (kv, value) = self.open((*shard, key, hit.modified), &keys[which], &lent)?;
                        kvs[place] = kv;
                        match value {
                            Value::Lent(value) => values.copy(value, place, wanted.len() - which, &mut kvs),
                            Value::Shared(value) => kvs[place].value = value,
                        }
                        Ok(())
                    },
                );
                opened.map_err(|error| {
                    failed = Some(error);
                    EngineError::Closed
                })
            });
            if let Some(error) = failed {
                return Err(error);
            }
            shown?;
            values.share(&mut kvs);
        }
        Ok(kvs)
    }

    /// The row of a shard's key as it lies in the tree: checked, without its value, and the value. Under `keys_only`
    /// there is none, and nothing that its checksum is of.
    pub(crate) fn open<'a>(
        &self,
        (shard, key, modified): (usize, &Bytes, Revision),
        tree_key: &[u8],
        lent: &'a Lent<'_>,
    ) -> Result<(KeyValue, Value<'a>)> {
        let damaged = |damage| self.damaged(&self.shards[shard], damage);
        let row = RowHead::decode(lent.head).map_err(damaged)?;
        let kv = key_only(key, modified, Life { created: row.created, version: row.version }, row.lease);
        let value = match &lent.body {
            LentBody::Unread => return Ok((kv, Value::Lent(&[]))),
            LentBody::Joined(both) => {
                row.check_joined(tree_key, both).map_err(damaged)?;
                Value::Lent(row.value_in(lent.body()).map_err(damaged)?)
            }
            LentBody::Shared(body) => {
                row.check(tree_key, lent.head, body).map_err(damaged)?;
                let value = row.value_in(body).map_err(damaged)?;
                // Of a small one the memory may be shared with others, which it would keep alive.
                if value.len() > SHARED_VALUE_MAX { Value::Shared(body.slice_ref(value)) } else { Value::Lent(value) }
            }
        };
        if row.key_in(lent.body()).map_err(damaged)? != *key {
            return Err(damaged(Damage::Malformed { what: "a row is not of the key that the index has it for" }).into());
        }
        Ok((kv, value))
    }

    pub(crate) fn missing(&self, shard: &Shard) -> Error {
        self.damaged(shard, Damage::Malformed { what: "a row that the index names is not there" }).into()
    }

    /// [`Defect::ViewBeforeVisible`](polybolt_engine::defect::Defect::ViewBeforeVisible).
    pub(crate) fn views(&self) -> Views {
        self.shards.iter().filter_map(|shard| Some((shard.tree, self.store.view(shard.tree).ok()?))).collect()
    }

    /// One row.
    pub(crate) fn fetch_one(&self, found: &Found) -> Result<KeyValue> {
        let mut kvs = self.fetch(std::slice::from_ref(found), false)?;
        kvs.pop().ok_or(Error::Storage(EngineError::Closed))
    }
}

/// A key without its value.
pub(crate) fn key_only(key: &Bytes, modified: Revision, life: Life, lease: i64) -> KeyValue {
    KeyValue {
        key: key.clone(),
        create_revision: life.created.cast_signed(),
        mod_revision: modified.main.cast_signed(),
        version: life.version.cast_signed(),
        value: Bytes::new(),
        lease,
    }
}

/// A value where it lies.
pub(crate) enum Value<'a> {
    Lent(&'a [u8]),
    Shared(Bytes),
}

impl Value<'_> {
    pub(crate) fn into_bytes(self) -> Bytes {
        match self {
            Value::Lent(value) => Bytes::copy_from_slice(value),
            Value::Shared(value) => value,
        }
    }
}

/// Values on their way into rows. Small ones share their memory, so that there is no allocation for each.
#[derive(Debug, Default)]
struct Values {
    bytes: Vec<u8>,
    /// Whose they are, and where.
    places: Vec<(usize, Range<usize>)>,
}

impl Values {
    /// Takes a value; so many are to come, this one included.
    fn copy(&mut self, value: &[u8], place: usize, to_come: usize, kvs: &mut [KeyValue]) {
        if value.len() > SHARED_VALUE_MAX {
            kvs[place].value = Bytes::copy_from_slice(value);
            return;
        }
        let from = self.bytes.len();
        if from + value.len() > self.bytes.capacity() {
            self.share(kvs);
            let room = value.len().saturating_mul(to_come).clamp(value.len(), SHARED_BYTES_MAX);
            self.bytes.reserve_exact(room);
        }
        let from = self.bytes.len();
        self.bytes.extend_from_slice(value);
        self.places.push((place, from..self.bytes.len()));
    }

    /// Gives the rows what was copied.
    fn share(&mut self, kvs: &mut [KeyValue]) {
        let bytes = Bytes::from(std::mem::take(&mut self.bytes));
        for (place, range) in self.places.drain(..) {
            kvs[place].value = bytes.slice(range);
        }
    }
}
