//! The one door to files.
//!
//! Every durable byte goes through [`Disk`] and [`DiskFile`]. [`os`] is the real one and the only
//! file of this workspace that says `std::fs`; `sim` remembers what was synced and what was only
//! written, and can crash, fail or flip bits at any call.
//!
//! What we assume of a disk: after `sync_data` returns Ok all writes to that file issued before it
//! survive a power cut; a 512-byte sector is written whole or not at all; order among unsynced
//! sectors is free; bytes outside a write never change; a rename or create is durable after the
//! directory is synced.

pub mod guard;
pub mod os;
#[cfg(any(test, feature = "sim"))]
pub mod sim;

use crate::error::Result;
use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A sector: the unit that a disk writes whole or not at all.
pub const SECTOR_BYTES: usize = 512;

/// How [`Disk::open`] opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenMode {
    /// An existing file, for reading only.
    Read,
    /// An existing file, for reading and writing.
    Write,
    /// A new file, for reading and writing; an old one of that name is an error.
    CreateNew,
}

/// Directories and the files in them.
pub trait Disk: Send + Sync + Debug {
    /// Opens a file.
    fn open(&self, path: &Path, mode: OpenMode) -> Result<Arc<dyn DiskFile>>;
    /// The names (not paths) in a directory, sorted. A missing directory is an error (`is_not_found`).
    fn list(&self, dir: &Path) -> Result<Vec<String>>;
    /// Creates a directory and its missing parents; an existing one is fine.
    fn create_dir(&self, dir: &Path) -> Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> Result<()>;
    /// Renames a file over another.
    fn rename(&self, from: &Path, to: &Path) -> Result<()>;
    /// Makes creates, renames and removes in a directory durable.
    fn sync_dir(&self, dir: &Path) -> Result<()>;
    /// Takes an exclusive lock on a file, creating it, and writes `holder` into it. The lock is
    /// given back when the guard is dropped or the process ends. [`crate::Error::Locked`] if taken.
    fn lock(&self, path: &Path, holder: &str) -> Result<Box<dyn DiskLock>>;
    /// 128 random bits (seeded in the simulator).
    fn entropy(&self) -> u128;
    /// How many durability calls (`sync_data`, `sync_dir`) were made so far.
    fn sync_calls(&self) -> u64;
    /// Syncs independent files; on several threads if `side_by_side` is true and that is faster.
    fn sync_files(&self, files: &[Arc<dyn DiskFile>], side_by_side: bool) -> Result<()>;
    /// Makes durable what was written to many files, whether or not they are open any more. May sync
    /// more than these files.
    fn sync_set(&self, paths: &[PathBuf]) -> Result<()> {
        paths.iter().try_for_each(|path| self.open(path, OpenMode::Write)?.sync_data())
    }
    /// True if calls are part of a replayable run, so that nothing may be done side by side.
    fn is_simulated(&self) -> bool;
}

/// Holds a lock until dropped.
pub trait DiskLock: Send + Sync + Debug {}

/// An open file. Closed when the last handle is dropped.
pub trait DiskFile: Send + Sync + Debug {
    /// The path it was opened with.
    fn path(&self) -> &Path;
    /// Its length in bytes.
    fn len(&self) -> Result<u64>;
    /// True if it has no bytes.
    fn is_empty(&self) -> Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Fills `buf` from `offset`; a file that ends before is [`crate::Damage::Truncated`].
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()>;
    /// Writes all of `bytes` at `offset`, growing the file if needed.
    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()>;
    /// Makes all earlier writes (and the length) durable.
    fn sync_data(&self) -> Result<()>;
    /// Grows the file to at least `len` bytes that read as zeros, with their space allocated.
    fn preallocate(&self, len: u64) -> Result<()>;
    /// Cuts or extends the file to `len` bytes.
    fn truncate(&self, len: u64) -> Result<()>;
    /// Begins to read these bytes into memory, if that can be done without waiting: what is read there soon is there.
    fn will_read(&self, _offset: u64, _len: u64) {}
    /// False if this byte would have to be read from the device, as far as can be told without waiting.
    fn is_near(&self, _offset: u64) -> bool {
        true
    }
    /// Maps the file for reading, with room to grow; None if this disk has no mappings (the simulated one).
    fn map(&self) -> Result<Option<Arc<dyn Mapping>>>;
}

/// A read-only mapping. Writes made to the file after it was mapped show through it, and so does what it grows by, as far
/// as there is room.
pub trait Mapping: Send + Sync + Debug {
    /// The mapped bytes and the room. Only bytes of the file as it is, and that no one writes while they are borrowed, may be looked
    /// at (R7).
    fn bytes(&self) -> &[u8];
}
