//! A disk on which nothing can be changed, for checks of a store that must stay as it is.

use super::{Disk, DiskFile, DiskLock, OpenMode};
use crate::error::{Error, Result};
use std::path::Path;
use std::sync::Arc;

/// Another disk, for reading only.
#[derive(Debug)]
pub struct Guard(pub Arc<dyn Disk>);

impl Disk for Guard {
    fn open(&self, path: &Path, mode: OpenMode) -> Result<Arc<dyn DiskFile>> {
        match mode {
            // The handle cannot write, whoever asks it to.
            OpenMode::Read | OpenMode::Write => self.0.open(path, OpenMode::Read),
            OpenMode::CreateNew => Err(Error::ReadOnly),
        }
    }

    fn list(&self, dir: &Path) -> Result<Vec<String>> {
        self.0.list(dir)
    }

    fn create_dir(&self, _: &Path) -> Result<()> {
        Err(Error::ReadOnly)
    }

    fn remove(&self, _: &Path) -> Result<()> {
        Err(Error::ReadOnly)
    }

    fn rename(&self, _: &Path, _: &Path) -> Result<()> {
        Err(Error::ReadOnly)
    }

    fn sync_dir(&self, _: &Path) -> Result<()> {
        Err(Error::ReadOnly)
    }

    fn lock(&self, path: &Path, holder: &str) -> Result<Box<dyn DiskLock>> {
        self.0.lock(path, holder)
    }

    fn entropy(&self) -> u128 {
        self.0.entropy()
    }

    fn sync_calls(&self) -> u64 {
        self.0.sync_calls()
    }

    fn sync_files(&self, _: &[Arc<dyn DiskFile>], _: bool) -> Result<()> {
        Err(Error::ReadOnly)
    }

    fn is_simulated(&self) -> bool {
        self.0.is_simulated()
    }
}
