//! What the machine itself can do: the limits beside the figures.

use crate::dataset::{Numbers, VALUE_BYTES, Values};
use crate::measure::now;
use crate::peer::Result;
use rustix::fs::{FallocateFlags, OFlags, fallocate, fdatasync};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Condvar, Mutex};
use std::time::Duration;

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

/// Bytes a second of a file written in pieces of 1 MiB and synced at the end.
pub fn sequential(path: &Path, bytes: u64) -> Result<f64> {
    let values = Values::new();
    let piece: Vec<u8> = (0..(1 << 20) / VALUE_BYTES as u64).flat_map(|number| values.of(number).to_vec()).collect();
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    let file = File::from(rustix::fs::open(path, OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC, mode)?);
    let begun = now();
    for at in (0..bytes).step_by(piece.len()) {
        file.write_all_at(&piece, at)?;
    }
    fdatasync(&file)?;
    let took = begun.elapsed().as_secs_f64();
    drop(file);
    std::fs::remove_file(path)?;
    Ok(bytes as f64 / took)
}

/// Nanoseconds of one of many reads in memory of which each says where the next one is.
pub fn dependent_reads(bytes: usize, reads: usize) -> f64 {
    // One word a cache line, in one cycle through all of them (Sattolo).
    let lines = (bytes / 64).max(2);
    let mut next: Vec<[u64; 8]> = (0..lines as u64).map(|line| [line; 8]).collect();
    let mut numbers = Numbers::new(3);
    for at in (1..lines).rev() {
        next.swap(at, numbers.below(at));
    }
    let begun = now();
    let mut at = 0;
    for _ in 0..reads {
        at = next[at as usize][0];
    }
    std::hint::black_box(at);
    begun.elapsed().as_secs_f64() * 1e9 / reads as f64
}

#[derive(Default)]
struct Group {
    waiting: Vec<u8>,
    next: u64,
    synced: u64,
    leading: bool,
    failed: bool,
}

/// Puts a second of a bare group-commit loop: whoever finds nobody writing takes all that waits, writes and syncs it.
pub fn group_commit(path: &Path, callers: usize, time: Duration, record: &[u8]) -> Result<f64> {
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
    Ok(puts as f64 / took)
}
