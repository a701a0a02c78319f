//! RocksDB. The log is synced once a batch ends, not before; a block cache that holds the whole store, filters of ten
//! bits a key, index and filter blocks in the cache; blocks are not compressed, as of all peers. An operation is one
//! atomic write.

use crate::ordered::{EtcdStore, Ordered, Reads, Table, Visit, Writes};
use crate::peer::{MvccPeer, Result};
use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB, DBCompressionType, Direction, IteratorMode,
    Options, ReadOptions, Snapshot, WriteBatch, WriteOptions,
};
use std::path::Path;

const CACHE_BYTES: usize = 2 << 30;
const TABLES: [&str; 3] = ["rows", "index", "state"];

struct RocksDb(DB);

impl RocksDb {
    fn table(&self, table: Table) -> Result<&ColumnFamily> {
        self.0.cf_handle(TABLES[table as usize]).ok_or_else(|| "a table is not there".into())
    }
}

/// Opens it.
pub fn with(dir: &Path, body: &mut dyn FnMut(&dyn MvccPeer) -> Result<()>) -> Result<()> {
    let cache = Cache::new_lru_cache(CACHE_BYTES);
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(&cache);
    blocks.set_bloom_filter(10.0, false);
    blocks.set_cache_index_and_filter_blocks(true);
    blocks.set_pin_l0_filter_and_index_blocks_in_cache(true);
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.increase_parallelism(2);
    options.set_compression_type(DBCompressionType::None);
    options.set_block_based_table_factory(&blocks);
    let tables = TABLES.map(|name| ColumnFamilyDescriptor::new(name, options.clone()));
    let database = DB::open_cf_descriptors(&options, dir, tables)?;
    body(&EtcdStore::new(RocksDb(database))?)
}

struct Reading<'a> {
    rocks: &'a RocksDb,
    moment: Snapshot<'a>,
}

impl Reading<'_> {
    fn bounded(from: &[u8], to: &[u8]) -> ReadOptions {
        let mut options = ReadOptions::default();
        options.set_iterate_lower_bound(from);
        options.set_iterate_upper_bound(to);
        options
    }
}

impl Reads for Reading<'_> {
    fn get(&self, table: Table, key: &[u8], visit: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let mut options = ReadOptions::default();
        options.set_snapshot(&self.moment);
        let found = self.rocks.0.get_pinned_cf_opt(self.rocks.table(table)?, key, &options)?;
        found.map_or(Ok(()), |value| visit(&value))
    }

    fn last(&self, table: Table, from: &[u8], to: &[u8], visit: Visit<'_>) -> Result<()> {
        let behind = [to, &[0]].concat();
        let options = Reading::bounded(from, &behind);
        let mode = IteratorMode::From(to, Direction::Reverse);
        match self.moment.iterator_cf_opt(self.rocks.table(table)?, options, mode).next() {
            None => Ok(()),
            Some(entry) => {
                let (key, value) = entry?;
                visit(&key, &value).map(drop)
            }
        }
    }

    fn ascend(&self, table: Table, from: &[u8], to: &[u8], visit: Visit<'_>) -> Result<()> {
        let options = Reading::bounded(from, to);
        let mut at = self.moment.raw_iterator_cf_opt(self.rocks.table(table)?, options);
        at.seek(from);
        while let Some((key, value)) = at.item() {
            if !visit(key, value)? {
                return Ok(());
            }
            at.next();
        }
        Ok(at.status()?)
    }
}

struct Writing<'a> {
    rocks: &'a RocksDb,
    batch: WriteBatch,
}

impl Writing<'_> {
    fn reading(&self) -> Reading<'_> {
        Reading { rocks: self.rocks, moment: self.rocks.0.snapshot() }
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
        self.batch.put_cf(self.rocks.table(table)?, key, value);
        Ok(())
    }

    fn remove(&mut self, table: Table, key: &[u8]) -> Result<()> {
        self.batch.delete_cf(self.rocks.table(table)?, key);
        Ok(())
    }

    fn operation_ends(&mut self) -> Result<()> {
        let batch = std::mem::take(&mut self.batch);
        Ok(self.rocks.0.write_opt(batch, &WriteOptions::default())?)
    }
}

impl Ordered for RocksDb {
    fn read(&self, body: &mut dyn FnMut(&dyn Reads) -> Result<()>) -> Result<()> {
        body(&Reading { rocks: self, moment: self.0.snapshot() })
    }

    fn write(&self, body: &mut dyn FnMut(&mut dyn Writes) -> Result<()>) -> Result<()> {
        body(&mut Writing { rocks: self, batch: WriteBatch::default() })?;
        Ok(self.0.flush_wal(true)?)
    }
}
