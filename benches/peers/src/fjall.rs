//! fjall. The journal is buffered until it is persisted; a block cache that holds the whole store; blocks are not
//! compressed, for values here do not compress. An operation is one atomic batch.

use crate::ordered::{EtcdStore, Ordered, Reads, Table, Visit, Writes};
use crate::peer::{MvccPeer, Result};
use fjall::config::{CompressionPolicy, PinningPolicy};
use fjall::{Database, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch, PersistMode, Readable, Snapshot};
use std::ops::Bound;
use std::path::Path;

const CACHE_BYTES: u64 = 2 << 30;

struct Fjall {
    database: Database,
    tables: [Keyspace; 3],
}

/// Opens it.
pub fn with(dir: &Path, body: &mut dyn FnMut(&dyn MvccPeer) -> Result<()>) -> Result<()> {
    let database = Database::builder(dir).cache_size(CACHE_BYTES).manual_journal_persist(true).open()?;
    let options = || {
        KeyspaceCreateOptions::default()
            .data_block_compression_policy(CompressionPolicy::disabled())
            .index_block_pinning_policy(PinningPolicy::all(true))
            .filter_block_pinning_policy(PinningPolicy::all(true))
    };
    let open = |name| database.keyspace(name, options);
    let tables = [open("rows")?, open("index")?, open("state")?];
    body(&EtcdStore::new(Fjall { database, tables })?)
}

struct Reading<'a> {
    tables: &'a [Keyspace; 3],
    moment: Snapshot,
}

impl Reads for Reading<'_> {
    fn get(&self, table: Table, key: &[u8], visit: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        self.moment.get(&self.tables[table as usize], key)?.map_or(Ok(()), |value| visit(&value))
    }

    fn last(&self, table: Table, from: &[u8], to: &[u8], visit: Visit<'_>) -> Result<()> {
        match self.moment.range(&self.tables[table as usize], from..=to).next_back() {
            None => Ok(()),
            Some(entry) => {
                let (key, value) = entry.into_inner()?;
                visit(&key, &value).map(drop)
            }
        }
    }

    fn ascend(&self, table: Table, from: &[u8], to: &[u8], visit: Visit<'_>) -> Result<()> {
        let bounds = (Bound::Included(from), Bound::Excluded(to));
        for entry in self.moment.range::<&[u8], _>(&self.tables[table as usize], bounds) {
            let (key, value) = entry.into_inner()?;
            if !visit(&key, &value)? {
                break;
            }
        }
        Ok(())
    }
}

struct Writing<'a> {
    fjall: &'a Fjall,
    batch: OwnedWriteBatch,
}

impl Writing<'_> {
    fn reading(&self) -> Reading<'_> {
        Reading { tables: &self.fjall.tables, moment: self.fjall.database.snapshot() }
    }
}

impl Reads for Writing<'_> {
    fn get(&self, table: Table, key: &[u8], visit: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        self.reading().get(table, key, visit)
    }

    fn last(&self, table: Table, from: &[u8], to: &[u8], visit: Visit<'_>) -> Result<()> {
        self.reading().last(table, from, to, visit)
    }

    fn ascend(&self, table: Table, from: &[u8], to: &[u8], visit: Visit<'_>) -> Result<()> {
        self.reading().ascend(table, from, to, visit)
    }
}

impl Writes for Writing<'_> {
    fn insert(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<()> {
        self.batch.insert(&self.fjall.tables[table as usize], key, value);
        Ok(())
    }

    fn remove(&mut self, table: Table, key: &[u8]) -> Result<()> {
        self.batch.remove(&self.fjall.tables[table as usize], key);
        Ok(())
    }

    fn operation_ends(&mut self) -> Result<()> {
        Ok(std::mem::replace(&mut self.batch, self.fjall.database.batch()).commit()?)
    }
}

impl Ordered for Fjall {
    fn read(&self, body: &mut dyn FnMut(&dyn Reads) -> Result<()>) -> Result<()> {
        body(&Reading { tables: &self.tables, moment: self.database.snapshot() })
    }

    fn write(&self, body: &mut dyn FnMut(&mut dyn Writes) -> Result<()>) -> Result<()> {
        body(&mut Writing { fjall: self, batch: self.database.batch() })?;
        Ok(self.database.persist(PersistMode::SyncData)?)
    }
}
