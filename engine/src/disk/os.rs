//! Real files: the only place in the workspace that says `std::fs`.
//!
//! A device error under a mapping is a SIGBUS, not an error value: stores on disks that are not
//! trusted read with `pread` instead (`ReadMode` in `file`).

use super::{Disk, DiskFile, DiskLock, Mapping, OpenMode};
use crate::error::{Damage, Error, Place, Result};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU64, Ordering};
use rustix::fs::{Advice, FallocateFlags, FlockOperation};
use rustix::io::ReadWriteFlags;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, IoSliceMut, Read, Write};
use std::num::NonZeroU64;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Linux begins to read no more than this at a time, however much it is asked for.
const ADVICE_BYTES_MAX: usize = 128 << 10;

/// A file is mapped with room for half as much again, and for so many bytes at least.
const MAPPED_ROOM_MIN: usize = 64 << 20;

/// The operating system's files.
#[derive(Debug, Default)]
pub struct OsDisk {
    syncs: Arc<AtomicU64>,
    /// A directory of each file system that was written to. Open since before the writes: an error of a
    /// write back is told once to each descriptor that was open then.
    file_systems: Mutex<BTreeMap<u64, Arc<File>>>,
}

#[derive(Debug)]
struct OsFile {
    file: File,
    path: PathBuf,
    syncs: Arc<AtomicU64>,
}

#[derive(Debug)]
struct OsLock {
    _file: File,
}

#[derive(Debug)]
struct OsMapping {
    map: memmap2::Mmap,
}

impl OsDisk {
    /// The disk of this machine.
    pub fn new() -> Self {
        OsDisk::default()
    }

    fn know_file_system(&self, file: &File, path: &Path) -> Result<()> {
        let device = file.metadata().map_err(|error| Error::io("stat", path, None, error))?.dev();
        let mut known = self.file_systems.lock();
        if let std::collections::btree_map::Entry::Vacant(unknown) = known.entry(device) {
            let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
            unknown.insert(Arc::new(open(OpenOptions::new().read(true), dir)?));
        }
        Ok(())
    }
}

#[expect(clippy::disallowed_methods, reason = "this is the one place that opens files")]
fn open(options: &OpenOptions, path: &Path) -> Result<File> {
    options.open(path).map_err(|error| Error::io("open", path, None, error))
}

impl Disk for OsDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> Result<Arc<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        options.read(true);
        match mode {
            OpenMode::Read => {}
            OpenMode::Write => {
                options.write(true);
            }
            OpenMode::CreateNew => {
                options.write(true).create_new(true);
            }
        }
        let file = open(&options, path)?;
        if mode != OpenMode::Read {
            self.know_file_system(&file, path)?;
        }
        Ok(Arc::new(OsFile { file, path: path.to_owned(), syncs: Arc::clone(&self.syncs) }))
    }

    fn list(&self, dir: &Path) -> Result<Vec<String>> {
        let failed = |error| Error::io("list", dir, None, error);
        let mut names = Vec::new();
        for entry in std::fs::read_dir(dir).map_err(failed)? {
            names.push(entry.map_err(failed)?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }

    fn create_dir(&self, dir: &Path) -> Result<()> {
        std::fs::create_dir_all(dir).map_err(|error| Error::io("create directory", dir, None, error))
    }

    fn remove(&self, path: &Path) -> Result<()> {
        std::fs::remove_file(path).map_err(|error| Error::io("remove", path, None, error))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        std::fs::rename(from, to).map_err(|error| Error::io("rename", from, None, error))
    }

    fn sync_dir(&self, dir: &Path) -> Result<()> {
        self.syncs.fetch_add(1, Ordering::Relaxed);
        let file = open(OpenOptions::new().read(true), dir)?;
        file.sync_all().map_err(|error| Error::io("sync", dir, None, error))
    }

    fn lock(&self, path: &Path, holder: &str) -> Result<Box<dyn DiskLock>> {
        let mut file = open(OpenOptions::new().read(true).write(true).create(true).truncate(false), path)?;
        if let Err(error) = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            if error != rustix::io::Errno::WOULDBLOCK {
                return Err(Error::io("lock", path, None, error.into()));
            }
            let mut holder = String::new();
            // Only for the message: whoever holds the lock may be writing it now.
            drop(file.read_to_string(&mut holder));
            return Err(Error::Locked { path: path.to_owned(), holder: holder.trim().to_owned() });
        }
        // Only a message, too; on a full disk it may have no room.
        match file.set_len(0).and_then(|()| file.write_all(holder.as_bytes())) {
            Err(error) if error.kind() != ErrorKind::StorageFull => {
                return Err(Error::io("write", path, None, error));
            }
            _ => {}
        }
        Ok(Box::new(OsLock { _file: file }))
    }

    fn entropy(&self) -> u128 {
        let mut bytes = [0; 16];
        let random = open(OpenOptions::new().read(true), Path::new("/dev/urandom"));
        if let Ok(mut file) = random {
            // Short of entropy the id is only less unique; nothing depends on its secrecy.
            drop(file.read_exact(&mut bytes));
        }
        u128::from_le_bytes(bytes)
    }

    fn sync_calls(&self) -> u64 {
        self.syncs.load(Ordering::Relaxed)
    }

    fn sync_files(&self, files: &[Arc<dyn DiskFile>], side_by_side: bool) -> Result<()> {
        if files.len() < 2 || !side_by_side {
            return files.iter().try_for_each(|file| file.sync_data());
        }
        std::thread::scope(|scope| {
            let threads: Vec<_> = files
                .chunks(files.len().div_ceil(8))
                .map(|chunk| scope.spawn(move || chunk.iter().try_for_each(|file| file.sync_data())))
                .collect();
            threads.into_iter().try_for_each(|thread| thread.join().unwrap_or(Err(Error::Closed)))
        })
    }

    fn sync_set(&self, paths: &[PathBuf]) -> Result<()> {
        let mut devices = BTreeSet::new();
        for path in paths {
            match std::fs::metadata(path) {
                Ok(metadata) => drop(devices.insert(metadata.dev())),
                // Removed meanwhile: nothing is left to be made durable.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(Error::io("stat", path, None, error)),
            }
        }
        for device in devices {
            let dir = self.file_systems.lock().get(&device).cloned();
            let dir = dir.ok_or_else(|| Error::invalid("a file to be synced was never opened to be written"))?;
            self.syncs.fetch_add(1, Ordering::Relaxed);
            rustix::fs::syncfs(&*dir).map_err(|error| Error::io("sync", &paths[0], None, error.into()))?;
        }
        Ok(())
    }

    fn is_simulated(&self) -> bool {
        false
    }
}

impl DiskLock for OsLock {}

impl OsFile {
    fn failed(&self, op: &'static str, offset: Option<u64>) -> impl Fn(std::io::Error) -> Error + '_ {
        move |error| Error::io(op, &self.path, offset, error)
    }
}

impl DiskFile for OsFile {
    fn path(&self) -> &Path {
        &self.path
    }

    fn len(&self) -> Result<u64> {
        Ok(self.file.metadata().map_err(self.failed("stat", None))?.len())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.file.read_exact_at(buf, offset).map_err(|error| {
            if error.kind() == ErrorKind::UnexpectedEof {
                let found = self.file.metadata().map_or(0, |meta| meta.len());
                let damage = Damage::Truncated { needed: offset + buf.len() as u64, found };
                return Error::corrupt(&self.path, Place::Offset(offset), damage);
            }
            Error::io("read", &self.path, Some(offset), error)
        })
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.file.write_all_at(bytes, offset).map_err(self.failed("write", Some(offset)))
    }

    fn sync_data(&self) -> Result<()> {
        self.syncs.fetch_add(1, Ordering::Relaxed);
        self.file.sync_data().map_err(self.failed("sync", None))
    }

    fn preallocate(&self, len: u64) -> Result<()> {
        let have = self.len()?;
        if len <= have {
            return Ok(());
        }
        match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), have, len - have) {
            Ok(()) => Ok(()),
            Err(rustix::io::Errno::OPNOTSUPP) => self.file.set_len(len).map_err(self.failed("preallocate", None)),
            Err(error) => Err(Error::io("preallocate", &self.path, None, error.into())),
        }
    }

    fn truncate(&self, len: u64) -> Result<()> {
        self.file.set_len(len).map_err(self.failed("truncate", None))
    }

    fn will_read(&self, offset: u64, len: u64) {
        let end = offset + len;
        for start in (offset..end).step_by(ADVICE_BYTES_MAX) {
            let len = NonZeroU64::new((end - start).min(ADVICE_BYTES_MAX as u64));
            // It is advice: failure is fine.
            let _advised = rustix::fs::fadvise(&self.file, start, len, Advice::WillNeed);
        }
    }

    fn is_near(&self, offset: u64) -> bool {
        let byte = &mut [0];
        let buf = &mut [IoSliceMut::new(byte)];
        // Not every file system can tell.
        rustix::io::preadv2(&self.file, buf, offset, ReadWriteFlags::NOWAIT) != Err(rustix::io::Errno::AGAIN)
    }

    fn map(&self) -> Result<Option<Arc<dyn Mapping>>> {
        let len = usize::try_from(self.len()?).unwrap_or(usize::MAX);
        // Where it is mapped anew, each page that is read is a page fault again.
        let room = len.saturating_add((len / 2).max(MAPPED_ROOM_MIN));
        #[expect(unsafe_code, reason = "mapping a file has no safe face")]
        // SAFETY: the mapped bytes change only where the store writes pages, and it never writes a
        // page that a reader may still look at (R7: pages of either manifest slot and of any live
        // view are neither overwritten nor cut off, and a removed file is shortened only once nobody
        // has it open or mapped); the directory lock keeps other processes out. Nobody looks at what is
        // behind the end of the file: no page is there.
        let map = |bytes| unsafe { memmap2::MmapOptions::new().len(bytes).map(&self.file) };
        // Addresses may be limited.
        let map = map(room).or_else(|_| map(len)).map_err(self.failed("map", None))?;
        // Lookups jump around; read-ahead would only fill memory. It is advice: failure is fine.
        drop(map.advise(memmap2::Advice::Random));
        Ok(Some(Arc::new(OsMapping { map })))
    }
}

/// Begins to load the line of memory in which this begins, and goes on.
#[inline]
pub fn load_soon<T: Copy>(first: &T) {
    prefetch(first);
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    std::hint::black_box(*first);
}

/// The same of what others write.
#[inline]
pub fn load_shared_soon(shared: &AtomicU64) {
    prefetch(shared);
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    std::hint::black_box(shared.load(crate::sync::atomic::Ordering::Relaxed));
}

#[inline]
fn prefetch<T>(first: &T) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    #[expect(unsafe_code, reason = "the instruction has no safe face")]
    // SAFETY: it is a hint, of memory that is borrowed; every x86-64 has it.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(std::ptr::from_ref(first).cast());
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = first;
}

impl Mapping for OsMapping {
    fn bytes(&self) -> &[u8] {
        &self.map
    }
}
