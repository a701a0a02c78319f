//! redb. Immediate durability; a cache that holds the whole store.

use crate::ordered::{EtcdStore, Ordered, Reads, Table, Visit, Writes};
use crate::peer::{MvccPeer, Result};
use redb::{Database, ReadOnlyTable, ReadableDatabase, ReadableTable, TableDefinition};
use std::ops::Bound;
use std::path::Path;

const CACHE_BYTES: usize = 2 << 30;

type Bytes = &'static [u8];

const TABLES: [TableDefinition<'static, Bytes, Bytes>; 3] =
    [TableDefinition::new("rows"), TableDefinition::new("index"), TableDefinition::new("state")];

struct Redb(Database);

/// Opens it.
pub fn with(dir: &Path, body: &mut dyn FnMut(&dyn MvccPeer) -> Result<()>) -> Result<()> {
    let database = Database::builder().set_cache_size(CACHE_BYTES).create(dir.join("redb"))?;
    let txn = database.begin_write()?;
    for table in TABLES {
        txn.open_table(table)?;
    }
    txn.commit()?;
    body(&EtcdStore::new(Redb(database))?)
}

fn get(table: &impl ReadableTable<Bytes, Bytes>, key: &[u8], visit: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
    table.get(key)?.map_or(Ok(()), |value| visit(value.value()))
}

fn last(table: &impl ReadableTable<Bytes, Bytes>, from: &[u8], to: &[u8], visit: Visit<'_>) -> Result<()> {
    match table.range::<&[u8]>(from..=to)?.next_back() {
        None => Ok(()),
        Some(entry) => {
            let (key, value) = entry?;
            visit(key.value(), value.value()).map(drop)
        }
    }
}

fn ascend(table: &impl ReadableTable<Bytes, Bytes>, from: &[u8], to: &[u8], visit: Visit<'_>) -> Result<()> {
    for entry in table.range::<&[u8]>((Bound::Included(from), Bound::Excluded(to)))? {
        let (key, value) = entry?;
        if !visit(key.value(), value.value())? {
            break;
        }
    }
    Ok(())
}

struct Reading([ReadOnlyTable<Bytes, Bytes>; 3]);

impl Reads for Reading {
    fn get(&self, table: Table, key: &[u8], visit: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        get(&self.0[table as usize], key, visit)
    }

    fn last(&self, table: Table, from: &[u8], to: &[u8], visit: Visit<'_>) -> Result<()> {
        last(&self.0[table as usize], from, to, visit)
    }

    fn ascend(&self, table: Table, from: &[u8], to: &[u8], visit: Visit<'_>) -> Result<()> {
        ascend(&self.0[table as usize], from, to, visit)
    }
}

struct Writing<'t>([redb::Table<'t, Bytes, Bytes>; 3]);

impl Reads for Writing<'_> {
    fn get(&self, table: Table, key: &[u8], visit: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        get(&self.0[table as usize], key, visit)
    }

    fn last(&self, table: Table, from: &[u8], to: &[u8], visit: Visit<'_>) -> Result<()> {
        last(&self.0[table as usize], from, to, visit)
    }

    fn ascend(&self, table: Table, from: &[u8], to: &[u8], visit: Visit<'_>) -> Result<()> {
        ascend(&self.0[table as usize], from, to, visit)
    }
}

impl Writes for Writing<'_> {
    fn insert(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<()> {
        self.0[table as usize].insert(key, value)?;
        Ok(())
    }

    fn remove(&mut self, table: Table, key: &[u8]) -> Result<()> {
        self.0[table as usize].remove(key)?;
        Ok(())
    }
}

impl Ordered for Redb {
    fn read(&self, body: &mut dyn FnMut(&dyn Reads) -> Result<()>) -> Result<()> {
        let txn = self.0.begin_read()?;
        let [rows, index, state] = TABLES;
        body(&Reading([txn.open_table(rows)?, txn.open_table(index)?, txn.open_table(state)?]))
    }

    fn write(&self, body: &mut dyn FnMut(&mut dyn Writes) -> Result<()>) -> Result<()> {
        let txn = self.0.begin_write()?;
        let [rows, index, state] = TABLES;
        body(&mut Writing([txn.open_table(rows)?, txn.open_table(index)?, txn.open_table(state)?]))?;
        Ok(txn.commit()?)
    }
}
