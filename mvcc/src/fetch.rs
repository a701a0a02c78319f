//! Rows of what was found: read where they lie, checked, and copied once.

use crate::core::{Core, Found, Shard, Views};
use crate::error::{Error, Result};
use crate::request::KeyValue;
use crate::row::{self, RowHead};
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
        let mut rows = self.fetch(older, true)?.into_iter();
        let mut read = || {
            let kv = rows.next().unwrap_or_default();
            Life { created: kv.create_revision.cast_unsigned(), version: kv.version.cast_unsigned() }
        };
        Ok(found.iter().map(|found| found.hit.life.unwrap_or_else(&mut read)).collect())
    }

    /// The rows of what was found, in the same order.
    pub(crate) fn fetch(&self, found: Vec<Found>, keys_only: bool) -> Result<Vec<KeyValue>> {
        self.fetch_in(found, keys_only, usize::MAX, &Views::new())
    }

    /// The rows of the first of what was found in the order of keys, until they have so many bytes.
    pub(crate) fn fetch_some(&self, found: Vec<Found>, keys_only: bool, bytes_max: usize) -> Result<Vec<KeyValue>> {
        self.fetch_in(found, keys_only, bytes_max, &Views::new())
    }

    /// The same out of `views`, where there is one.
    pub(crate) fn fetch_in(
        &self,
        mut found: Vec<Found>,
        keys_only: bool,
        bytes_max: usize,
        views: &Views,
    ) -> Result<Vec<KeyValue>> {
        let view_of = |shard: &Shard| match views.iter().find(|(of, _)| *of == shard.tree) {
            None => self.store.view(shard.tree),
            Some((_, early)) => Ok(early.clone()),
        };
        if let [found] = &mut found[..] {
            let shard = &self.shards[found.shard];
            let tree_key = row::row_key(found.hit.modified);
            let key = std::mem::take(&mut found.key);
            let open = |lent: Lent<'_>| {
                let (mut kv, value) = self.open((found.shard, key, found.hit.modified), &tree_key, &lent)?;
                kv.value = value.into_bytes();
                Ok::<_, Error>(kv)
            };
            let row = if views.is_empty() {
                let now = shard.reader.glance();
                pause("read: view");
                now.show(&tree_key, !keys_only, open)?
            } else {
                view_of(shard)?.show(&tree_key, !keys_only, open)?
            };
            return Ok(vec![row.unwrap_or_else(|| Err(self.missing(shard)))?]);
        }
        // Of some it takes the first, and in the order of keys shards take few turns.
        if bytes_max == usize::MAX && found.chunk_by(|a, b| a.shard == b.shard).count() > self.shards.len() {
            return self.fetch_mixed(found, keys_only, views);
        }
        let mut kvs = Vec::with_capacity(found.len());
        let mut bytes = 0;
        for run in found.chunk_by_mut(|a, b| a.shard == b.shard) {
            let shard = &self.shards[run[0].shard];
            let keys: Vec<_> = run.iter().map(|found| row::row_key(found.hit.modified)).collect();
            let view = view_of(shard)?;
            pause("read: view");
            let mut values = Values::default();
            view.get_many(&keys, !keys_only, &mut |which, lent| {
                let lent = lent.ok_or_else(|| self.missing(shard))?;
                let Found { shard, key, hit, .. } = &mut run[which];
                let whose = (*shard, std::mem::take(key), hit.modified);
                let (kv, value) = self.open(whose, &keys[which], &lent)?;
                bytes += kv.key.len() + value.len();
                kvs.push(kv);
                match value {
                    Value::Lent(value) => values.copy(value, keys.len() - which, &mut kvs),
                    Value::Shared(value) => kvs.last_mut().expect("it was just pushed").value = value,
                }
                Ok::<_, Error>(bytes < bytes_max)
            })?;
            values.share(&mut kvs);
            if bytes >= bytes_max {
                break;
            }
        }
        Ok(kvs)
    }

    /// The rows of what was found in an order that goes to and fro between shards: each shard is read once.
    fn fetch_mixed(&self, found: Vec<Found>, keys_only: bool, views: &Views) -> Result<Vec<KeyValue>> {
        let mut kvs = vec![KeyValue::default(); found.len()];
        let mut places: Vec<usize> = (0..found.len()).collect();
        places.sort_by_key(|at| found[*at].shard);
        let mut found: Vec<_> = found.into_iter().map(Some).collect();
        let by_shard = places.iter().filter_map(|at| found[*at].take()).collect();
        let fetched = self.fetch_in(by_shard, keys_only, usize::MAX, views)?;
        places.into_iter().zip(fetched).for_each(|(at, kv)| kvs[at] = kv);
        Ok(kvs)
    }

    /// The row of a shard's key as it lies in the tree: checked, without its value, and the value. Under `keys_only`
    /// there is none, and nothing that its checksum is of.
    pub(crate) fn open<'a>(
        &self,
        whose: (usize, Bytes, Revision),
        tree_key: &[u8],
        lent: &'a Lent<'_>,
    ) -> Result<(KeyValue, Value<'a>)> {
        let shard = whose.0;
        self.open_if_of(whose, tree_key, lent)?.ok_or_else(|| self.not_of_key(&self.shards[shard]))
    }

    /// The same; None if it is the row of another key. Under `keys_only` that shows of a key in the row's head alone.
    pub(crate) fn open_if_of<'a>(
        &self,
        (shard, key, modified): (usize, Bytes, Revision),
        tree_key: &[u8],
        lent: &'a Lent<'_>,
    ) -> Result<Option<(KeyValue, Value<'a>)>> {
        let Some((row, value)) = self.look(shard, &key, tree_key, lent)? else { return Ok(None) };
        let value = match &lent.body {
            // Of a small one the memory may be shared with others, which it would keep alive.
            LentBody::Shared(body) if value.len() > SHARED_VALUE_MAX => Value::Shared(body.slice_ref(value)),
            _ => Value::Lent(value),
        };
        Ok(Some((key_only(key, modified, Life { created: row.created, version: row.version }, row.lease), value)))
    }

    /// The head of a row where it lies and its value, checked; None if it is the row of another key.
    pub(crate) fn look<'a>(
        &self,
        shard: usize,
        key: &[u8],
        tree_key: &[u8],
        lent: &'a Lent<'_>,
    ) -> Result<Option<(RowHead<'a>, &'a [u8])>> {
        let damaged = |damage| self.damaged(&self.shards[shard], damage);
        let row = RowHead::decode(lent.head).map_err(damaged)?;
        // Before it is checked: there is nothing to check of a wrong guess.
        if row.key.is_some_and(|of| of != key) {
            return Ok(None);
        }
        match &lent.body {
            LentBody::Unread => return Ok(Some((row, &[]))),
            LentBody::Joined(both) => row.check_joined(tree_key, both).map_err(damaged)?,
            LentBody::Shared(body) => row.check(tree_key, lent.head, body).map_err(damaged)?,
        }
        let body = lent.body();
        let value = row.value_in(body).map_err(damaged)?;
        let is_of_key = row.key.is_some() || row.key_in(body).map_err(damaged)? == key;
        Ok(is_of_key.then_some((row, value)))
    }

    pub(crate) fn missing(&self, shard: &Shard) -> Error {
        self.damaged(shard, Damage::Malformed { what: "a row that the index names is not there" }).into()
    }

    pub(crate) fn not_of_key(&self, shard: &Shard) -> Error {
        let what = "a row is not of the key that the index has it for";
        self.damaged(shard, Damage::Malformed { what }).into()
    }

    /// [`Defect::ViewBeforeVisible`](polybolt_engine::defect::Defect::ViewBeforeVisible).
    pub(crate) fn views(&self) -> Views {
        self.shards.iter().filter_map(|shard| Some((shard.tree, self.store.view(shard.tree).ok()?))).collect()
    }

    /// One row.
    pub(crate) fn fetch_one(&self, found: &Found) -> Result<KeyValue> {
        let mut kvs = self.fetch(vec![found.clone()], false)?;
        kvs.pop().ok_or(Error::Storage(EngineError::Closed))
    }
}

/// A key without its value.
pub(crate) fn key_only(key: Bytes, modified: Revision, life: Life, lease: i64) -> KeyValue {
    KeyValue {
        key,
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
    fn len(&self) -> usize {
        match self {
            Value::Lent(value) => value.len(),
            Value::Shared(value) => value.len(),
        }
    }

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
    /// Takes the value of the last row; so many are to come, this one included.
    fn copy(&mut self, value: &[u8], to_come: usize, kvs: &mut [KeyValue]) {
        let place = kvs.len() - 1;
        if value.len() > SHARED_VALUE_MAX {
            kvs[place].value = Bytes::copy_from_slice(value);
            return;
        }
        if self.bytes.len() + value.len() > self.bytes.capacity() {
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
