//! LMDB. Default flags: every commit is synced. The map is large and sparse, rows are appended.

use crate::ordered::{EtcdStore, Ordered, Reads, Table, Visit, Writes};
use crate::peer::{MvccPeer, Result};
use heed::types::Bytes;
use heed::{CommitOrAbort, Database, Env, EnvOpenOptions, PutFlags, RoTxn, RwTxn};
use std::ops::Bound;
use std::path::Path;

const MAP_BYTES: usize = 64 << 30;

type Tables<'e> = [Database<'e, Bytes, Bytes>; 3];

struct Lmdb<'e> {
    env: &'e Env,
    tables: Tables<'e>,
}

/// Opens it.
pub fn with(dir: &Path, body: &mut dyn FnMut(&dyn MvccPeer) -> Result<()>) -> Result<()> {
    let mut options = EnvOpenOptions::new();
    options.map_size(MAP_BYTES).max_dbs(3).max_readers(128);
    #[expect(unsafe_code, reason = "heed asks its caller for what a mapping needs")]
    // SAFETY: the directory is this run's own, and no other process changes the file.
    let env = unsafe { options.open(dir)? };
    let txn = env.write_txn()?;
    let tables = env.create_databases_and_commit(txn, |opener, txn| {
        let mut open = |name| opener.create_database::<Bytes, Bytes>(txn, Some(name));
        Ok::<_, heed::Error>(CommitOrAbort::<_, ()>::Commit([open("rows")?, open("index")?, open("state")?]))
    })?;
    let tables = tables.commit().ok_or("the tables were not created")?;
    body(&EtcdStore::new(Lmdb { env: &env, tables })?)
}

struct Reading<'a> {
    tables: &'a Tables<'a>,
    txn: &'a RoTxn<'a>,
}

struct Writing<'a, 'e> {
    tables: &'a Tables<'e>,
    txn: RwTxn<'e>,
}

impl Writing<'_, '_> {
    fn reading(&self) -> Reading<'_> {
        Reading { tables: self.tables, txn: &self.txn }
    }
}

impl Reads for Reading<'_> {
    fn get(&self, table: Table, key: &[u8], visit: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        self.tables[table as usize].get(self.txn, key)?.map_or(Ok(()), visit)
    }

    fn last(&self, table: Table, from: &[u8], to: &[u8], visit: Visit<'_>) -> Result<()> {
        match self.tables[table as usize].get_lower_than_or_equal_to(self.txn, to)? {
            Some((key, value)) if key >= from => visit(key, value).map(drop),
            _ => Ok(()),
        }
    }

    fn ascend(&self, table: Table, from: &[u8], to: &[u8], visit: Visit<'_>) -> Result<()> {
        for entry in self.tables[table as usize].range(self.txn, &(Bound::Included(from), Bound::Excluded(to)))? {
            let (key, value) = entry?;
            if !visit(key, value)? {
                break;
            }
        }
        Ok(())
    }
}

impl Reads for Writing<'_, '_> {
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

impl Writes for Writing<'_, '_> {
    fn insert(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<()> {
        let flags = if table == Table::Rows { PutFlags::APPEND } else { PutFlags::empty() };
        Ok(self.tables[table as usize].put_with_flags(&mut self.txn, flags, key, value)?)
    }

    fn remove(&mut self, table: Table, key: &[u8]) -> Result<()> {
        self.tables[table as usize].delete(&mut self.txn, key)?;
        Ok(())
    }
}

impl Ordered for Lmdb<'_> {
    fn read(&self, body: &mut dyn FnMut(&dyn Reads) -> Result<()>) -> Result<()> {
        let txn = self.env.read_txn()?;
        body(&Reading { tables: &self.tables, txn: &txn })
    }

    fn write(&self, body: &mut dyn FnMut(&mut dyn Writes) -> Result<()>) -> Result<()> {
        let mut writing = Writing { tables: &self.tables, txn: self.env.write_txn()? };
        body(&mut writing)?;
        Ok(writing.txn.commit()?)
    }
}
