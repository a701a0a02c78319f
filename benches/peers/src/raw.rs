//! What the machine itself can do: the limits beside the figures.

use crate::dataset::Numbers;
use crate::figure::{Figure, Unit};
use crate::later::Later;
use crate::measure::now;
use crate::peer::Result;
use crate::plan::Plan;
use rustix::fs::{Advice, FallocateFlags, OFlags, fadvise, fallocate, fdatasync};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex};
use std::time::Duration;

/// What writing in a row is called.
pub const SEQUENTIAL: &str = "... the same bytes written in a row";

/// A file whose bytes were all written once, so that a sync of it is of data alone.
#[derive(Debug)]
pub struct Preallocated {
    file: File,
    bytes: u64,
    at: u64,
}

impl Preallocated {
    /// Makes it.
    pub fn create(path: &Path, bytes: u64) -> Result<Self> {
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        let file = File::from(rustix::fs::open(path, OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC, mode)?);
        fallocate(&file, FallocateFlags::empty(), 0, bytes)?;
        let zeros = vec![0; 1 << 20];
        for at in (0..bytes).step_by(zeros.len()) {
            file.write_all_at(&zeros[..zeros.len().min((bytes - at) as usize)], at)?;
        }
        file.sync_all()?;
        Ok(Preallocated { file, bytes, at: 0 })
    }

    /// Writes behind the last write, from the start again at the end, and syncs.
    pub fn write_synced(&mut self, bytes: &[u8]) -> Result<()> {
        if self.at + bytes.len() as u64 > self.bytes {
            self.at = 0;
        }
        self.file.write_all_at(bytes, self.at)?;
        fdatasync(&self.file)?;
        self.at += bytes.len() as u64;
        Ok(())
    }
}

/// Row 10: as many bytes as are loaded, written in pieces of 1 MiB and synced at the end, as keys a second.
pub fn load(path: &Path, plan: &Plan) -> Result<Vec<Figure>> {
    let piece: Vec<u8> = (0..).flat_map(|number| plan.values.of(number).to_vec()).take(1 << 20).collect();
    let bytes = plan.loaded_bytes();
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    let file = File::from(rustix::fs::open(path, OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC, mode)?);
    let begun = now();
    for at in (0..bytes).step_by(piece.len()) {
        file.write_all_at(&piece[..piece.len().min((bytes - at) as usize)], at)?;
    }
    fdatasync(&file)?;
    let took = begun.elapsed().as_secs_f64();
    drop(file);
    std::fs::remove_file(path)?;
    Ok(vec![
        Figure::new(10, SEQUENTIAL, Unit::PerSecond, plan.keys as f64 / took),
        Figure::new(10, "... bytes a second of that", Unit::Bytes, bytes as f64 / took),
    ])
}

/// Row 2: one of many reads in memory of which each says where the next one is.
pub fn dependent(bytes: usize) -> Result<Vec<Figure>> {
    const READS: usize = 1_000_000;
    // One word a cache line, in one cycle through all of them (Sattolo).
    let lines = (bytes / 64).max(2);
    let mut next: Vec<[u64; 8]> = (0..lines as u64).map(|line| [line; 8]).collect();
    let mut numbers = Numbers::new(3);
    for at in (1..lines).rev() {
        next.swap(at, numbers.below(at));
    }
    let begun = now();
    let mut at = 0;
    for _ in 0..READS {
        at = next[at as usize][0];
    }
    std::hint::black_box(at);
    let each = begun.elapsed().as_secs_f64() * 1e9 / READS as f64;
    Ok(vec![Figure::new(2, "... a dependent read in as much memory", Unit::Ns, each)])
}

/// Lets go of what the system has in memory of all files in a directory.
pub fn forget(dir: &Path) -> Result<()> {
    for file in files(dir)? {
        let file = rustix::fs::open(&file, OFlags::RDONLY, rustix::fs::Mode::empty())?;
        rustix::fs::fsync(&file)?;
        fadvise(&file, 0, None, Advice::DontNeed)?;
    }
    Ok(())
}

/// Row 16: reads all files in a directory once.
pub fn read_once(dir: &Path) -> Result<Figure> {
    let mut buffer = vec![0; 1 << 20];
    let begun = now();
    for path in files(dir)? {
        let file = File::from(rustix::fs::open(&path, OFlags::RDONLY, rustix::fs::Mode::empty())?);
        fadvise(&file, 0, None, Advice::Sequential)?;
        let mut at = 0;
        loop {
            match file.read_at(&mut buffer, at)? {
                0 => break,
                read => at += read as u64,
            }
        }
    }
    Ok(Figure::new(16, "... its files read once, cold", Unit::Ms, begun.elapsed().as_secs_f64() * 1e3))
}

/// All files below a directory.
pub fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            found.extend(files(&entry.path())?);
        } else if kind.is_file() {
            found.push(entry.path());
        }
    }
    Ok(found)
}

#[derive(Default)]
struct Group {
    waiting: Vec<u8>,
    next: u64,
    synced: u64,
    leading: bool,
    failed: bool,
}

/// Row 13: a bare group-commit loop: whoever finds nobody writing takes all that waits, writes and syncs it.
pub fn group(path: &Path, callers: usize, time: Duration, later: &Later) -> Result<Vec<Figure>> {
    let pair = later.pair(0);
    let record = &[pair.key, pair.value].concat()[..];
    let file = Mutex::new(Preallocated::create(path, 64 << 20)?);
    let (group, changed) = (Mutex::new(Group::default()), Condvar::new());
    let begun = now();
    let put = || -> Option<()> {
        let mut mine = group.lock().ok()?;
        mine.waiting.extend_from_slice(record);
        let ticket = mine.next;
        mine.next += 1;
        while mine.synced <= ticket {
            if mine.leading {
                mine = changed.wait(mine).ok()?;
                continue;
            }
            mine.leading = true;
            let (bytes, upto) = (std::mem::take(&mut mine.waiting), mine.next);
            drop(mine);
            let written = file.lock().is_ok_and(|mut file| file.write_synced(&bytes).is_ok());
            mine = group.lock().ok()?;
            (mine.leading, mine.failed) = (false, !written);
            mine.synced = upto;
            changed.notify_all();
        }
        (!mine.failed).then_some(())
    };
    let puts: u64 = std::thread::scope(|scope| {
        let caller = || {
            let mut puts = 0;
            while begun.elapsed() < time && put().is_some() {
                puts += 1;
            }
            puts
        };
        let callers: Vec<_> = (0..callers).map(|_| scope.spawn(caller)).collect();
        callers.into_iter().map(|caller| caller.join().unwrap_or(0)).sum()
    });
    let took = begun.elapsed().as_secs_f64();
    drop(file);
    std::fs::remove_file(path)?;
    Ok(vec![Figure::new(13, "... a bare group-commit loop", Unit::PerSecond, puts as f64 / took)])
}
