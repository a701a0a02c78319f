//! Rows in the order of revisions: leaf after leaf, each value copied once.
//!
//! A run is read from one view of a shard's tree, without a lookup per row: keys and values go behind each other
//! into one block of bytes, where each row's crc is checked, and what is handed out are parts of that block.
//! A run is bounded in rows and bytes, so a long read holds no view for long (S3).

use crate::core::Core;
use crate::error::Result;
use crate::request::{KeyValue, Span};
use crate::row::{self, RowHead};
use bytes::Bytes;
use polybolt_engine::Damage;
use polybolt_engine::run::pause;
use polybolt_index::Revision;
use std::ops::Bound;

/// Rows that a run looks at, where a whole stretch is wanted, and where the reader may stop any time.
const ROWS_PER_RUN: usize = 2048;
const ROWS_PER_STEP: usize = 128;
/// Bytes of keys and values after which a run ends.
const RUN_BYTES: usize = 256 << 10;

/// A decoded row. Key and value may be parts of a block that holds the rows around it.
#[derive(Debug, Clone)]
pub(crate) struct StoredRow {
    pub(crate) at: Revision,
    pub(crate) tombstone: bool,
    /// Key and value, as stored; of a tombstone the key.
    pub(crate) kv: KeyValue,
}

/// Rows whose keys and values lie in one block.
#[derive(Debug, Default)]
struct Block {
    bytes: Vec<u8>,
    rows: Vec<Packed>,
}

/// A row in a block.
#[derive(Debug, Clone, Copy)]
struct Packed {
    at: Revision,
    created: u64,
    version: u64,
    lease: i64,
    /// Where its key begins, its value, and what comes after it.
    key: usize,
    value: usize,
    end: usize,
}

impl Block {
    /// Adds a row, checked, whose bytes after the head `body` appends; not if its key turns out to be unwanted.
    fn add(
        &mut self,
        (at, tree_key, head): (Revision, &[u8], &[u8]),
        wanted: impl Fn(&[u8]) -> bool,
        damaged: impl Fn(Damage) -> polybolt_engine::Error,
        body: impl FnOnce(&mut Vec<u8>) -> Result<(), polybolt_engine::Error>,
    ) -> Result<(), polybolt_engine::Error> {
        let row = RowHead::decode(head).map_err(&damaged)?;
        if row.key.is_some_and(|key| !wanted(key)) {
            return Ok(());
        }
        let key = self.bytes.len();
        self.bytes.extend_from_slice(row.key.unwrap_or_default());
        let body_at = self.bytes.len();
        body(&mut self.bytes)?;
        row.check(tree_key, head, &self.bytes[body_at..]).map_err(&damaged)?;
        let (value, end) = (key + row.key_len, self.bytes.len());
        if value > end {
            return Err(damaged(Damage::Malformed { what: "a row's body is shorter than its key" }));
        }
        if row.key.is_none() && !wanted(&self.bytes[key..value]) {
            self.bytes.truncate(key);
            return Ok(());
        }
        let RowHead { created, version, lease, .. } = row;
        self.rows.push(Packed { at, created, version, lease, key, value, end });
        Ok(())
    }

    fn finish(mut self) -> Run {
        self.bytes.shrink_to_fit();
        Run { bytes: self.bytes.into(), rows: self.rows.into_iter() }
    }
}

/// What is left of a block.
#[derive(Debug, Default)]
struct Run {
    bytes: Bytes,
    rows: std::vec::IntoIter<Packed>,
}

impl Run {
    fn first(&self) -> Option<Revision> {
        self.rows.as_slice().first().map(|row| row.at)
    }
}

impl Iterator for Run {
    type Item = StoredRow;

    fn next(&mut self) -> Option<StoredRow> {
        let Packed { at, created, version, lease, key, value, end } = self.rows.next()?;
        let kv = KeyValue {
            key: self.bytes.slice(key..value),
            create_revision: created.cast_signed(),
            mod_revision: at.main.cast_signed(),
            version: version.cast_signed(),
            value: self.bytes.slice(value..end),
            lease,
        };
        Some(StoredRow { at, tombstone: version == 0, kv })
    }
}

/// Rows of shards in revision order, a bounded run of each shard at a time.
pub(crate) struct Rows<'a> {
    core: &'a Core,
    /// Rows of keys in it alone.
    span: Option<&'a Span>,
    lanes: Vec<Lane>,
    to: u64,
    rows_per_run: usize,
}

struct Lane {
    shard: usize,
    /// Where the next run begins; None if there is none.
    next: Option<Revision>,
    run: Run,
    /// The first row behind what was asked for, once the lane has come there.
    beyond: Option<Revision>,
}

impl<'a> Rows<'a> {
    /// Rows with mains in `[from, to]` of the keys of `span`.
    pub(crate) fn of_span(core: &'a Core, span: &'a Span, from: u64, to: u64) -> Self {
        let mut shards: Vec<usize> = core.routes.cut(span).iter().map(|segment| segment.shard).collect();
        shards.sort_unstable();
        shards.dedup();
        Rows { span: Some(span), rows_per_run: ROWS_PER_RUN, ..Rows::of_shards(core, shards, from, to) }
    }

    /// Rows of the given shards.
    pub(crate) fn of_shards(core: &'a Core, shards: Vec<usize>, from: u64, to: u64) -> Self {
        let lane = |shard| Lane { shard, next: Some(Revision::new(from, 0)), run: Run::default(), beyond: None };
        Rows { core, span: None, lanes: shards.into_iter().map(lane).collect(), to, rows_per_run: ROWS_PER_STEP }
    }

    /// The next row of the shards whose key is in the span.
    pub(crate) fn next_row(&mut self) -> Result<Option<StoredRow>> {
        let mut first: Option<(Revision, usize)> = None;
        for at in 0..self.lanes.len() {
            while let (None, Some(from)) = (self.lanes[at].run.first(), self.lanes[at].next) {
                self.fill(at, from)?;
            }
            let here = self.lanes[at].run.first();
            if let Some(here) = here.filter(|here| first.is_none_or(|(first, _)| *here < first)) {
                first = Some((here, at));
            }
        }
        Ok(first.and_then(|(_, lane)| self.lanes[lane].run.next()))
    }

    /// The first main behind `to` of which a shard has a row, whatever its key; None if there is none. All rows
    /// up to `to` were taken.
    pub(crate) fn beyond(&self) -> Option<u64> {
        self.lanes.iter().filter_map(|lane| lane.beyond).map(|at| at.main).min()
    }

    /// Reads the next run of a lane, from `from` on.
    fn fill(&mut self, lane: usize, from: Revision) -> Result<()> {
        let (core, span, to) = (self.core, self.span, self.to);
        let lane = &mut self.lanes[lane];
        let shard = &core.shards[lane.shard];
        let (mut block, mut looked) = (Block::default(), 0);
        lane.next = None;
        let view = core.store.view(shard.tree)?;
        pause("rows: view");
        view.ascend(Bound::Included(&row::row_key(from)), &mut |key, head, body| {
            let damaged = |damage| core.damaged(shard, damage);
            let at = row::row_revision(key).map_err(damaged)?;
            if at.main > to {
                lane.beyond = Some(at);
                return Ok(false);
            }
            if looked >= self.rows_per_run || block.bytes.len() >= RUN_BYTES {
                lane.next = Some(at);
                return Ok(false);
            }
            looked += 1;
            let wanted = |key: &[u8]| span.is_none_or(|span| span.contains(key));
            block.add((at, key, head), wanted, damaged, |out| body.append_to(out))?;
            Ok(true)
        })?;
        lane.run = block.finish();
        Ok(())
    }
}

impl Core {
    /// The rows of these shards and revisions, ascending; None where there is none.
    pub(crate) fn rows_at(&self, wanted: &[(Revision, usize)]) -> Result<Vec<Option<StoredRow>>> {
        let mut rows = vec![None; wanted.len()];
        for (at, shard) in self.shards.iter().enumerate() {
            let places: Vec<usize> = (0..wanted.len()).filter(|&which| wanted[which].1 == at).collect();
            if places.is_empty() {
                continue;
            }
            let keys: Vec<_> = places.iter().map(|&which| row::row_key(wanted[which].0)).collect();
            let (mut block, mut found) = (Block::default(), Vec::with_capacity(places.len()));
            self.store.view(shard.tree)?.get_many(&keys, true, &mut |which, stored| {
                let Some(lent) = stored else { return Ok::<_, polybolt_engine::Error>(true) };
                let (place, damaged) = (places[which], |damage| self.damaged(shard, damage));
                let row = (wanted[place].0, &keys[which][..], lent.head);
                block.add(
                    row,
                    |_| true,
                    damaged,
                    |out| {
                        out.extend_from_slice(lent.body());
                        Ok(())
                    },
                )?;
                found.push(place);
                Ok(true)
            })?;
            for (place, row) in found.into_iter().zip(block.finish()) {
                rows[place] = Some(row);
            }
        }
        Ok(rows)
    }
}
