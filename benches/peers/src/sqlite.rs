//! SQLite with a table as kine has it: one row a revision, `id` is the revision. WAL, every commit synced, the file
//! mapped, the log checkpointed every 64 MiB. Of kine's indexes only the one that lists use: a single process
//! needs none of the others; of its columns not `old_value`, which repeats a row that is there. Reads and writes have
//! a connection each.

use crate::measure::now;
use crate::peer::{Commit, Got, List, MvccPeer, Next, Result, Row, Session};
use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, params};
use std::path::Path;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

const SCHEMA: &str = "
    PRAGMA journal_mode = WAL;
    PRAGMA synchronous = FULL;
    PRAGMA mmap_size = 17179869184;
    PRAGMA cache_size = -65536;
    PRAGMA wal_autocheckpoint = 16384;
    CREATE TABLE IF NOT EXISTS kine (
        id INTEGER PRIMARY KEY, name BLOB, created INTEGER, deleted INTEGER, create_revision INTEGER,
        prev_revision INTEGER, version INTEGER, lease INTEGER, value BLOB);
    CREATE INDEX IF NOT EXISTS kine_list ON kine (name, id, deleted);
    CREATE TABLE IF NOT EXISTS state (compacted INTEGER);
";
const NEWEST: &str = "SELECT id, deleted, create_revision, version FROM kine WHERE name = ? ORDER BY id DESC LIMIT 1";
const GET: &str =
    "SELECT id, deleted, create_revision, version, value FROM kine WHERE name = ? ORDER BY id DESC LIMIT 1";
const INSERT: &str =
    "INSERT INTO kine (id, name, created, deleted, create_revision, prev_revision, version, lease, value)
    VALUES (?, ?, ?, ?, ?, ?, ?, 0, ?)";
// The inner query comes in the order of the index; what it finds is looked up one by one.
const LIST: &str = "SELECT k.name, k.create_revision, k.id, k.version, k.value FROM
    (SELECT name, MAX(id) AS id, deleted FROM kine WHERE name >= ?1 AND name < ?2 AND id <= ?3 GROUP BY name) AS m
    CROSS JOIN kine AS k ON k.id = m.id WHERE m.deleted = 0 LIMIT ?4";
const COUNT: &str = "SELECT COUNT(*) FROM
    (SELECT MAX(id), deleted FROM kine WHERE name >= ?1 AND name < ?2 AND id <= ?3 GROUP BY name) WHERE deleted = 0";
const HISTORY: &str = "SELECT name, create_revision, id, version, value FROM kine WHERE id >= ? ORDER BY id";
const SWEEP: &str = "DELETE FROM kine WHERE id <= ?1 AND (deleted = 1
    OR EXISTS (SELECT 1 FROM kine AS n WHERE n.name = kine.name AND n.id > kine.id AND n.id <= ?1))";

struct Sqlite {
    reader: Mutex<Connection>,
    writer: Mutex<Connection>,
}

/// Opens it.
pub fn with(dir: &Path, body: &mut dyn FnMut(&dyn MvccPeer) -> Result<()>) -> Result<()> {
    let open = || {
        let connection = Connection::open(dir.join("kine.db"))?;
        connection.execute_batch(SCHEMA)?;
        connection.set_prepared_statement_cache_capacity(32);
        Ok::<_, rusqlite::Error>(Mutex::new(connection))
    };
    body(&Sqlite { writer: open()?, reader: open()? })
}

fn locked(connection: &Mutex<Connection>) -> Result<MutexGuard<'_, Connection>> {
    connection.lock().map_err(|_| "a user of the connection panicked".into())
}

fn number(of: u64) -> Result<i64> {
    Ok(i64::try_from(of)?)
}

fn got(connection: &Connection, key: &[u8]) -> Result<Option<Got>> {
    let mut statement = connection.prepare_cached(GET)?;
    let row = statement.query_row(params![key], |row| {
        let value: Vec<u8> = row.get(4)?;
        let got = Got { modified: row.get(0)?, created: row.get(2)?, version: row.get(3)?, value: Bytes::from(value) };
        Ok((row.get::<_, i64>(1)? == 0).then_some(got))
    });
    Ok(row.optional()?.flatten())
}

fn newest(connection: &Connection, key: &[u8]) -> Result<Option<(u64, u64, u64)>> {
    let mut statement = connection.prepare_cached(NEWEST)?;
    let row = statement.query_row(params![key], |row| {
        Ok((row.get::<_, i64>(1)? == 0).then_some((row.get(0)?, row.get(2)?, row.get(3)?)))
    });
    Ok(row.optional()?.flatten())
}

fn current(connection: &Connection) -> Result<u64> {
    let newest = "SELECT MAX(COALESCE((SELECT MAX(id) FROM kine), 1), COALESCE((SELECT MAX(compacted) FROM state), 1))";
    Ok(connection.query_row(newest, [], |row| row.get(0))?)
}

fn shown(row: &rusqlite::Row<'_>, visit: &mut dyn FnMut(Row<'_>)) -> Result<()> {
    visit(Row {
        key: row.get_ref(0)?.as_blob()?,
        created: row.get(1)?,
        modified: row.get(2)?,
        version: row.get(3)?,
        value: row.get_ref(4)?.as_blob()?,
    });
    Ok(())
}

impl MvccPeer for Sqlite {
    fn get(&self, key: &[u8]) -> Result<Option<Got>> {
        got(&*locked(&self.reader)?, key)
    }

    fn list(&self, list: List<'_>, visit: &mut dyn FnMut(Row<'_>)) -> Result<u64> {
        let connection = locked(&self.reader)?;
        let mut start = list.span.start.to_vec();
        if list.span.after {
            start.push(0);
        }
        let at = if list.at == 0 { i64::MAX } else { number(list.at)? };
        let mut listed = 0;
        if list.limit > 0 {
            let limit = i64::try_from(list.limit).unwrap_or(-1);
            let mut statement = connection.prepare_cached(LIST)?;
            let mut rows = statement.query(params![start, list.span.end, at, limit])?;
            while let Some(row) = rows.next()? {
                listed += 1;
                shown(row, visit)?;
            }
        }
        if !list.count {
            return Ok(listed);
        }
        let mut statement = connection.prepare_cached(COUNT)?;
        Ok(statement.query_row(params![start, list.span.end, at], |row| row.get(0))?)
    }

    fn history(&self, from: u64, visit: &mut dyn FnMut(Row<'_>)) -> Result<()> {
        let connection = locked(&self.reader)?;
        let mut statement = connection.prepare_cached(HISTORY)?;
        let mut rows = statement.query(params![from])?;
        while let Some(row) = rows.next()? {
            shown(row, visit)?;
        }
        Ok(())
    }

    fn session(&self, commit: Commit, step: &mut dyn FnMut(&mut dyn Session) -> Result<Next>) -> Result<()> {
        let connection = locked(&self.writer)?;
        let mut writing = Writing { current: current(&connection)?, connection: &connection };
        let mut done = false;
        while !done {
            let begun = now();
            connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
            for operations in 1.. {
                let next = step(&mut writing)?;
                done = next == Next::Done;
                let full = match commit {
                    Commit::Each => true,
                    Commit::Group => false,
                    Commit::Batch => {
                        operations == 10_000 || (operations % 64 == 0 && begun.elapsed() >= Duration::from_millis(100))
                    }
                };
                if done || full || next == Next::Commit {
                    break;
                }
            }
            connection.prepare_cached("COMMIT")?.execute([])?;
        }
        Ok(())
    }

    fn compact(&self, revision: u64) -> Result<()> {
        let connection = locked(&self.writer)?;
        connection.execute_batch("BEGIN IMMEDIATE")?;
        connection.execute("INSERT INTO state (compacted) VALUES (?)", params![revision])?;
        connection.execute(SWEEP, params![revision])?;
        Ok(connection.execute_batch("COMMIT")?)
    }

    fn revision(&self) -> Result<u64> {
        current(&*locked(&self.reader)?)
    }
}

struct Writing<'a> {
    connection: &'a Connection,
    current: u64,
}

impl Writing<'_> {
    fn insert(&mut self, key: &[u8], before: Option<(u64, u64, u64)>, value: Option<&[u8]>) -> Result<u64> {
        self.current += 1;
        let (previous, created, version) = match (before, value) {
            (Some((previous, created, version)), Some(_)) => (previous, created, version + 1),
            (Some((previous, ..)), None) => (previous, 0, 0),
            (None, _) => (0, self.current, 1),
        };
        let (deleted, value) = (value.is_none(), value.unwrap_or_default());
        let mut statement = self.connection.prepare_cached(INSERT)?;
        statement.execute(params![self.current, key, version == 1, deleted, created, previous, version, value])?;
        Ok(self.current)
    }
}

impl Session for Writing<'_> {
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<u64> {
        let before = newest(self.connection, key)?;
        self.insert(key, before, Some(value))
    }

    fn delete(&mut self, key: &[u8]) -> Result<u64> {
        let before = newest(self.connection, key)?.ok_or("a key to delete is not there")?;
        self.insert(key, Some(before), None)
    }

    fn compare_and_put(&mut self, key: &[u8], expected: u64, value: &[u8]) -> Result<Option<u64>> {
        let before = newest(self.connection, key)?;
        if before.is_some_and(|(modified, ..)| modified == expected) {
            return self.insert(key, before, Some(value)).map(Some);
        }
        got(self.connection, key)?;
        Ok(None)
    }
}
