//! The same etcd work, whatever does it.

use bytes::Bytes;
use std::error::Error;
use std::path::Path;
use std::time::Duration;

/// Whatever a peer says went wrong.
pub type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

/// One version of a key as a visitor sees it; a tombstone has version 0 and no value.
#[derive(Debug, Clone, Copy)]
pub struct Row<'a> {
    /// Its key.
    pub key: &'a [u8],
    /// The revision at which this life of the key began; 0 of a tombstone.
    pub created: u64,
    /// The revision of this version.
    pub modified: u64,
    /// How many puts since it was created.
    pub version: u64,
    /// Its value.
    pub value: &'a [u8],
}

/// What a point get answers; the value is the caller's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Got {
    /// As [`Row::created`].
    pub created: u64,
    /// As [`Row::modified`].
    pub modified: u64,
    /// As [`Row::version`].
    pub version: u64,
    /// The value.
    pub value: Bytes,
}

/// Keys without zero bytes from `start` on, or behind it, and before `end`.
#[derive(Debug, Clone, Copy)]
pub struct Span<'a> {
    /// The first key.
    pub start: &'a [u8],
    /// True to begin behind `start`: the next page.
    pub after: bool,
    /// The first key that is not in it.
    pub end: &'a [u8],
}

/// What is to be listed.
#[derive(Debug, Clone, Copy)]
pub struct List<'a> {
    /// Which keys.
    pub span: Span<'a>,
    /// At this revision; 0 is the newest.
    pub at: u64,
    /// At most this many.
    pub limit: usize,
    /// True to count the whole span, whatever the limit is.
    pub count: bool,
}

/// When a session makes durable what it did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Commit {
    /// After each operation.
    Each,
    /// As etcd's backend: every 100 ms or 10,000 operations.
    Batch,
    /// When a step says so: a combining writer's.
    Group,
}

/// A key and the value it gets.
#[derive(Debug, Clone, Copy)]
pub struct Pair<'a> {
    /// The key.
    pub key: &'a [u8],
    /// Its value.
    pub value: &'a [u8],
}

/// What a session does after a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Another one.
    More,
    /// What was done so far becomes durable, then another one.
    Commit,
    /// What was done becomes durable, and the session ends.
    Done,
}

/// How a store is opened; polybolt has to know at open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Sessions are [`Commit::Each`] or [`Commit::Group`].
    Sync,
    /// Sessions are [`Commit::Batch`].
    Batch,
}

/// Operations of one caller; each has a revision of its own and sees those before it.
pub trait Session {
    /// Puts a key; answers with its revision.
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<u64>;
    /// Deletes a key that is there; answers with its revision.
    fn delete(&mut self, key: &[u8]) -> Result<u64>;
    /// Puts a key if its newest revision is `expected`, or else reads it: the revision, or None.
    fn compare_and_put(&mut self, key: &[u8], expected: u64, value: &[u8]) -> Result<Option<u64>>;
}

/// An etcd store on some engine.
pub trait MvccPeer: Sync {
    /// The newest version of a key.
    fn get(&self, key: &[u8]) -> Result<Option<Got>>;
    /// Shows live keys in order, at one revision; answers with the count of the span if asked for, or else of
    /// what was shown.
    fn list(&self, list: List<'_>, visit: &mut dyn FnMut(Row<'_>)) -> Result<u64>;
    /// Shows every change from a revision up to now, in order.
    fn history(&self, from: u64, visit: &mut dyn FnMut(Row<'_>)) -> Result<()>;
    /// Runs steps, one operation each; when it returns, all of them are durable.
    fn session(&self, commit: Commit, step: &mut dyn FnMut(&mut dyn Session) -> Result<Next>) -> Result<()>;
    /// Forgets what no read at `revision` or above can see; returns when it is gone.
    fn compact(&self, revision: u64) -> Result<()>;
    /// The current revision.
    fn revision(&self) -> Result<u64>;
    /// Returns once everything that was answered is durable, and where it stays: a session that has ended is.
    fn flush(&self) -> Result<()> {
        Ok(())
    }
    /// Puts by tasks that take turns on this thread, each one put after the other, for some time; how many were done,
    /// or None if it has no such calls. `pair` says what the nth put puts.
    fn tasks<'a>(&self, tasks: usize, time: Duration, pair: &dyn Fn(usize) -> Pair<'a>) -> Result<Option<u64>> {
        let _ = (tasks, time, pair);
        Ok(None)
    }
    /// Syncs since it was opened, if it asks the kernel for them itself.
    fn syncs(&self) -> Option<u64> {
        None
    }
    /// True if callers side by side share a sync.
    fn groups(&self) -> bool {
        false
    }
}

/// Which peers there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// This project, as a library.
    Polybolt,
    /// LMDB by heed, with etcd's schema.
    Lmdb,
    /// redb, with etcd's schema.
    Redb,
    /// fjall, with etcd's schema.
    Fjall,
    /// SQLite by rusqlite, with a table as kine has it.
    Sqlite,
    /// etcd's own core, a program of its own.
    Etcd,
    /// RocksDB, with etcd's schema; built with `--features rocksdb`.
    RocksDb,
    /// No store: what the machine can do.
    #[value(skip)]
    Machine,
}

impl Kind {
    /// Its name on the command line and in results.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Polybolt => "polybolt",
            Kind::Lmdb => "lmdb",
            Kind::Redb => "redb",
            Kind::Fjall => "fjall",
            Kind::Sqlite => "sqlite",
            Kind::Etcd => "etcd",
            Kind::RocksDb => "rocksdb",
            Kind::Machine => "machine",
        }
    }

    /// By its name.
    pub fn of(name: &str) -> Result<Kind> {
        let all = [Kind::Polybolt, Kind::Lmdb, Kind::Redb, Kind::Fjall, Kind::Sqlite, Kind::RocksDb, Kind::Machine];
        all.into_iter().find(|kind| kind.name() == name).ok_or_else(|| format!("{name} is no peer").into())
    }

    /// Those that run here: all but etcd's core.
    pub fn built() -> Vec<Kind> {
        let mut kinds = vec![Kind::Polybolt, Kind::Lmdb, Kind::Redb, Kind::Fjall];
        if cfg!(feature = "rocksdb") {
            kinds.push(Kind::RocksDb);
        }
        kinds.push(Kind::Sqlite);
        kinds
    }
}

/// Opens or creates a store, lends it to `body`, and closes it.
pub fn with(kind: Kind, dir: &Path, mode: Mode, body: &mut dyn FnMut(&dyn MvccPeer) -> Result<()>) -> Result<()> {
    std::fs::create_dir_all(dir)?;
    match kind {
        Kind::Polybolt => crate::polybolt::with(dir, mode, body),
        Kind::Lmdb => crate::lmdb::with(dir, body),
        Kind::Redb => crate::redb::with(dir, body),
        Kind::Fjall => crate::fjall::with(dir, body),
        Kind::Sqlite => crate::sqlite::with(dir, body),
        #[cfg(feature = "rocksdb")]
        Kind::RocksDb => crate::rocksdb::with(dir, body),
        #[cfg(not(feature = "rocksdb"))]
        Kind::RocksDb => Err("built without --features rocksdb".into()),
        Kind::Etcd | Kind::Machine => Err(format!("{} is no store here", kind.name()).into()),
    }
}
