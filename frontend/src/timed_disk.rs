//! The machine's disk, with its syncs timed.

use polybolt::disk::os::OsDisk;
use polybolt::disk::{Disk, DiskFile, DiskLock, Mapping, OpenMode};
use polybolt::{StorageError, Timings};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::time::Instant;

type Result<T> = std::result::Result<T, StorageError>;

/// How long syncs take.
#[derive(Debug, Default)]
pub struct SyncTimings {
    /// Of journal segments.
    pub journal: Timings,
    /// Of all files of a checkpoint.
    pub checkpoint: Timings,
}

/// A disk whose syncs are timed.
#[derive(Debug, Default)]
pub struct TimedDisk {
    disk: OsDisk,
    timings: Arc<SyncTimings>,
}

impl TimedDisk {
    /// Where the times are.
    pub fn timings(&self) -> Arc<SyncTimings> {
        Arc::clone(&self.timings)
    }
}

fn timed<T>(timings: &Timings, run: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let done = run();
    timings.add(begun.elapsed());
    done
}

impl Disk for TimedDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> Result<Arc<dyn DiskFile>> {
        let file = self.disk.open(path, mode)?;
        let is_journal = path.parent().and_then(Path::file_name).is_some_and(|dir| dir == "journal");
        // Nobody waits for a segment that is made.
        if !is_journal || path.extension().is_some_and(|fresh| fresh == "new") {
            return Ok(file);
        }
        Ok(Arc::new(Segment { file, timings: Arc::clone(&self.timings) }))
    }

    fn list(&self, dir: &Path) -> Result<Vec<String>> {
        self.disk.list(dir)
    }

    fn create_dir(&self, dir: &Path) -> Result<()> {
        self.disk.create_dir(dir)
    }

    fn remove(&self, path: &Path) -> Result<()> {
        self.disk.remove(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        self.disk.rename(from, to)
    }

    fn sync_dir(&self, dir: &Path) -> Result<()> {
        self.disk.sync_dir(dir)
    }

    fn lock(&self, path: &Path, holder: &str) -> Result<Box<dyn DiskLock>> {
        self.disk.lock(path, holder)
    }

    fn entropy(&self) -> u128 {
        self.disk.entropy()
    }

    fn sync_calls(&self) -> u64 {
        self.disk.sync_calls()
    }

    fn sync_files(&self, files: &[Arc<dyn DiskFile>], side_by_side: bool) -> Result<()> {
        timed(&self.timings.checkpoint, || self.disk.sync_files(files, side_by_side))
    }

    fn sync_set(&self, paths: &[PathBuf]) -> Result<()> {
        timed(&self.timings.checkpoint, || self.disk.sync_set(paths))
    }

    fn is_simulated(&self) -> bool {
        self.disk.is_simulated()
    }
}

/// A journal segment.
#[derive(Debug)]
struct Segment {
    file: Arc<dyn DiskFile>,
    timings: Arc<SyncTimings>,
}

impl DiskFile for Segment {
    fn path(&self) -> &Path {
        self.file.path()
    }

    fn len(&self) -> Result<u64> {
        self.file.len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.file.read_at(buf, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.file.write_at(bytes, offset)
    }

    fn sync_data(&self) -> Result<()> {
        timed(&self.timings.journal, || self.file.sync_data())
    }

    fn preallocate(&self, len: u64) -> Result<()> {
        self.file.preallocate(len)
    }

    fn truncate(&self, len: u64) -> Result<()> {
        self.file.truncate(len)
    }

    fn map(&self) -> Result<Option<Arc<dyn Mapping>>> {
        self.file.map()
    }
}
