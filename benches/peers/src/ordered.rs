//! An etcd store on any engine that has ordered tables and atomic writes.

use crate::measure::now;
use crate::peer::{Commit, Got, List, MvccPeer, Next, Result, Row, Session, Span};
use crate::record::{self, Life};
use bytes::Bytes;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The tables of [`record`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Table {
    /// Revision to record.
    Rows,
    /// Key and revision to life.
    Index,
    /// The compacted revision.
    State,
}

/// Shows an entry; false ends a walk.
pub type Visit<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> Result<bool>;

/// One moment of the tables.
pub trait Reads {
    /// Shows a value, if the key is there.
    fn get(&self, table: Table, key: &[u8], visit: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()>;
    /// Shows the last entry of `[from, to]`.
    fn last(&self, table: Table, from: &[u8], to: &[u8], visit: Visit<'_>) -> Result<()>;
    /// Shows entries of `[from, to)`, ascending.
    fn ascend(&self, table: Table, from: &[u8], to: &[u8], visit: Visit<'_>) -> Result<()>;
}

/// Tables that are being written; reads see what was written.
pub trait Writes: Reads {
    /// Adds an entry; those of `rows` come in ascending order.
    fn insert(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<()>;
    /// Removes an entry.
    fn remove(&mut self, table: Table, key: &[u8]) -> Result<()>;
    /// What came since the last call is one atomic operation.
    fn operation_ends(&mut self) -> Result<()> {
        Ok(())
    }
}

/// An engine.
pub trait Ordered: Sync {
    /// Lends the newest committed moment.
    fn read(&self, body: &mut dyn FnMut(&dyn Reads) -> Result<()>) -> Result<()>;
    /// Lends the tables to the only writer there is; once this returns, what it did is durable.
    fn write(&self, body: &mut dyn FnMut(&mut dyn Writes) -> Result<()>) -> Result<()>;
}

const BATCH_OPERATIONS: usize = 10_000;
const BATCH_INTERVAL: Duration = Duration::from_millis(100);
/// Index entries that compaction takes at a time, as etcd's does.
const COMPACTION_BATCH: usize = 1000;

/// The store.
#[derive(Debug)]
pub struct EtcdStore<E> {
    engine: E,
    /// The current revision. The one writer holds it.
    current: Mutex<u64>,
    /// The newest one that was committed.
    committed: AtomicU64,
}

impl<E: Ordered> EtcdStore<E> {
    /// On an engine that is open. The current revision is the newest row's: nothing else is written per put.
    pub fn new(engine: E) -> Result<Self> {
        let mut current = 1;
        engine.read(&mut |tables| {
            tables.get(Table::State, record::COMPACTED, &mut |value| {
                current = record::row_revision(value)?;
                Ok(())
            })?;
            tables.last(Table::Rows, &record::row_key(0), &record::row_key(u64::MAX), &mut |key, _| {
                current = current.max(record::row_revision(key)?);
                Ok(false)
            })
        })?;
        Ok(EtcdStore { engine, current: Mutex::new(current), committed: AtomicU64::new(current) })
    }

    fn locked(&self) -> Result<std::sync::MutexGuard<'_, u64>> {
        self.current.lock().map_err(|_| "a writer panicked".into())
    }
}

/// The newest life of a key and its revision.
fn newest(tables: &dyn Reads, key: &[u8]) -> Result<Option<(u64, Life)>> {
    let mut found = None;
    tables.last(Table::Index, &record::index_key(key, 0), &record::index_key(key, u64::MAX), &mut |entry, life| {
        found = Some((record::split_index_key(entry)?.1, Life::decode(life)?));
        Ok(false)
    })?;
    Ok(found.filter(|(_, life)| life.version > 0))
}

fn got(tables: &dyn Reads, key: &[u8]) -> Result<Option<Got>> {
    let Some((modified, Life { created, version })) = newest(tables, key)? else {
        return Ok(None);
    };
    let mut got = None;
    tables.get(Table::Rows, &record::row_key(modified), &mut |record| {
        let value = Bytes::copy_from_slice(record::decode(modified, record)?.value);
        got = Some(Got { created, modified, version, value });
        Ok(())
    })?;
    if got.is_none() { Err("a row that the index names is not there".into()) } else { Ok(got) }
}

/// Walks the newest version at `at` of each key, tombstones left out; false ends the walk. Every version lies in
/// the index side by side, so one ascending scan is the fastest there is.
fn walk(tables: &dyn Reads, span: Span<'_>, at: u64, visit: &mut dyn FnMut(u64) -> Result<bool>) -> Result<()> {
    let mut from = span.start.to_vec();
    if span.after {
        // Its own entries have a 0 there, those of longer keys more.
        from.push(1);
    }
    let mut key: Vec<u8> = Vec::new();
    let mut candidate: Option<(u64, bool)> = None;
    let mut ended = false;
    tables.ascend(Table::Index, &from, span.end, &mut |entry, life| {
        let (of, revision) = record::split_index_key(entry)?;
        if of != key {
            if let Some((modified, true)) = candidate.take()
                && !visit(modified)?
            {
                ended = true;
                return Ok(false);
            }
            key.clear();
            key.extend_from_slice(of);
        }
        if revision <= at {
            candidate = Some((revision, life.first() == Some(&0)));
        }
        Ok(true)
    })?;
    if let (false, Some((modified, true))) = (ended, candidate) {
        visit(modified)?;
    }
    Ok(())
}

impl<E: Ordered> MvccPeer for EtcdStore<E> {
    fn get(&self, key: &[u8]) -> Result<Option<Got>> {
        let mut found = None;
        self.engine.read(&mut |tables| {
            found = got(tables, key)?;
            Ok(())
        })?;
        Ok(found)
    }

    fn list(&self, list: List<'_>, visit: &mut dyn FnMut(Row<'_>)) -> Result<u64> {
        let at = if list.at == 0 { u64::MAX } else { list.at };
        let (mut shown, mut counted) = (0, 0);
        self.engine.read(&mut |tables| {
            walk(tables, list.span, at, &mut |modified| {
                counted += 1;
                if shown < list.limit {
                    shown += 1;
                    tables.get(Table::Rows, &record::row_key(modified), &mut |record| {
                        visit(record::decode(modified, record)?);
                        Ok(())
                    })?;
                }
                Ok(list.count || shown < list.limit)
            })
        })?;
        Ok(counted)
    }

    fn history(&self, from: u64, visit: &mut dyn FnMut(Row<'_>)) -> Result<()> {
        self.engine.read(&mut |tables| {
            let to = record::row_key(u64::MAX);
            tables.ascend(Table::Rows, &record::row_key(from), &to, &mut |key, record| {
                visit(record::decode(record::row_revision(key)?, record)?);
                Ok(true)
            })
        })
    }

    fn session(&self, commit: Commit, step: &mut dyn FnMut(&mut dyn Session) -> Result<Next>) -> Result<()> {
        let mut current = self.locked()?;
        let mut done = false;
        while !done {
            let mut revision = *current;
            self.engine.write(&mut |tables| {
                let begun = now();
                let mut session = Writing { tables, current: revision, record: Vec::new() };
                for operations in 1.. {
                    let next = step(&mut session)?;
                    session.tables.operation_ends()?;
                    done = next == Next::Done;
                    let full = match commit {
                        Commit::Each => true,
                        Commit::Group => false,
                        Commit::Batch => {
                            operations == BATCH_OPERATIONS
                                || (operations % 64 == 0 && begun.elapsed() >= BATCH_INTERVAL)
                        }
                    };
                    if done || full || next == Next::Commit {
                        break;
                    }
                }
                revision = session.current;
                Ok(())
            })?;
            *current = revision;
            self.committed.store(revision, Ordering::Release);
        }
        Ok(())
    }

    fn compact(&self, revision: u64) -> Result<()> {
        let _alone = self.locked()?;
        let mut doomed: Vec<Vec<u8>> = Vec::new();
        self.engine.read(&mut |tables| {
            let mut before: Option<(Vec<u8>, bool)> = None;
            tables.ascend(Table::Index, &[0], &[0xff], &mut |entry, life| {
                let (key, at) = record::split_index_key(entry)?;
                if at > revision {
                    return Ok(true);
                }
                // The one before goes if this one replaces it; a tombstone goes in any case.
                let replaced = |(last, dead): (Vec<u8>, bool)| {
                    let same = record::split_index_key(&last).is_ok_and(|(of, _)| of == key);
                    (same || dead).then_some(last)
                };
                doomed.extend(before.take().and_then(replaced));
                before = Some((entry.to_vec(), life.first() != Some(&0)));
                Ok(true)
            })?;
            doomed.extend(before.and_then(|(last, dead)| dead.then_some(last)));
            Ok(())
        })?;
        self.engine.write(&mut |tables| {
            tables.insert(Table::State, record::COMPACTED, &revision.to_be_bytes())?;
            tables.operation_ends()
        })?;
        for batch in doomed.chunks(COMPACTION_BATCH) {
            self.engine.write(&mut |tables| {
                for entry in batch {
                    tables.remove(Table::Rows, &record::row_key(record::split_index_key(entry)?.1))?;
                    tables.remove(Table::Index, entry)?;
                }
                tables.operation_ends()
            })?;
        }
        Ok(())
    }

    fn revision(&self) -> Result<u64> {
        Ok(self.committed.load(Ordering::Acquire))
    }
}

struct Writing<'a> {
    tables: &'a mut dyn Writes,
    current: u64,
    record: Vec<u8>,
}

impl Writing<'_> {
    fn write(&mut self, key: &[u8], life: Life, value: &[u8]) -> Result<u64> {
        self.current += 1;
        self.record.clear();
        record::encode(&mut self.record, life, key, value)?;
        self.tables.insert(Table::Rows, &record::row_key(self.current), &self.record)?;
        self.tables.insert(Table::Index, &record::index_key(key, self.current), &life.encode())?;
        Ok(self.current)
    }
}

impl Session for Writing<'_> {
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<u64> {
        let life = match newest(self.tables, key)? {
            Some((_, Life { created, version })) => Life { created, version: version + 1 },
            None => Life { created: self.current + 1, version: 1 },
        };
        self.write(key, life, value)
    }

    fn delete(&mut self, key: &[u8]) -> Result<u64> {
        newest(self.tables, key)?.ok_or("a key to delete is not there")?;
        self.write(key, Life::default(), &[])
    }

    fn compare_and_put(&mut self, key: &[u8], expected: u64, value: &[u8]) -> Result<Option<u64>> {
        match newest(self.tables, key)? {
            Some((modified, Life { created, version })) if modified == expected => {
                self.write(key, Life { created, version: version + 1 }, value).map(Some)
            }
            _ => {
                got(self.tables, key)?;
                Ok(None)
            }
        }
    }
}
