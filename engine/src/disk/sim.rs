//! A simulated disk that knows what is synced and what is only written.
//!
//! Every call that changes anything is counted. A test can stop the disk at any call
//! ([`SimDisk::crash_at`]), let calls fail, or fill it up, and then ask what a restarted process
//! would find ([`SimDisk::after_crash`]): all of it, only what was synced, or a seeded mix in which
//! every unsynced sector, length and directory entry is kept or lost on its own. Same seed, same disk.

use super::{Disk, DiskFile, DiskLock, Mapping, OpenMode, SECTOR_BYTES};
use crate::error::{Damage, Error, Place, Result};
use crate::run::seeded::Rng;
use crate::sync::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const CHUNK: usize = 4096;

/// What a crash leaves of the writes that were not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Survive {
    /// Nothing: a power cut that hit before any of it reached the disk.
    Nothing,
    /// Everything: the process was killed, the machine goes on. A power cut may still follow.
    All,
    /// A seeded mix, sector by sector: a power cut.
    Mix(u64),
}

/// How a call fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Input/output error. A failed sync loses some of what it should have made durable.
    Eio,
    /// No space left on device.
    Enospc,
}

/// How a read fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadFault {
    /// Input/output error.
    Eio,
    /// The file seems to end early.
    Short,
}

/// A call that failed because it was told to, or because the disk was full.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fired {
    /// The call: "write", "sync", "preallocate", "truncate", "rename", "remove", "read", and "open" of the rest.
    pub op: &'static str,
    /// The file or directory.
    pub path: PathBuf,
    /// True if the disk was full, or said so.
    pub full: bool,
    /// False if the disk really was full.
    pub told: bool,
    /// True if a read came back too short.
    pub short: bool,
}

/// The simulated disk; clones are handles to the same one.
#[derive(Debug, Clone)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Clone)]
struct State {
    /// What a reader of the running system sees.
    entries: BTreeMap<PathBuf, u64>,
    /// What the directories on disk say.
    durable_entries: BTreeMap<PathBuf, u64>,
    entry_log: Vec<EntryChange>,
    dirs: BTreeSet<PathBuf>,
    files: BTreeMap<u64, Content>,
    locks: BTreeSet<PathBuf>,
    next_file: u64,
    rng: Rng,
    calls: u64,
    syncs: u64,
    writes: u64,
    side_by_side: u64,
    crash_at: Option<u64>,
    /// Stops at this many more calls on files of that name.
    crash_on: Option<(&'static str, u64)>,
    crashed: bool,
    faults: Vec<(u64, u64, Fault)>,
    reads: u64,
    read_faults: Vec<(u64, u64, ReadFault)>,
    fired: Vec<Fired>,
    capacity: Option<u64>,
    last_call: String,
}

#[derive(Debug, Clone)]
enum EntryChange {
    Link(PathBuf, u64),
    Unlink(PathBuf),
    Rename(PathBuf, PathBuf, u64),
}

#[derive(Debug, Clone, Default)]
struct Content {
    durable: Blob,
    current: Blob,
    unsynced: Vec<Change>,
    /// The write under way when the disk stopped: a power cut may leave a part of it, a kill nothing.
    torn: Vec<Change>,
}

#[derive(Debug, Clone)]
enum Change {
    Write { offset: u64, bytes: Arc<[u8]> },
    Resize(u64),
}

/// File contents in shared chunks, so that a disk is cheap to copy.
#[derive(Debug, Clone, Default)]
struct Blob {
    chunks: Vec<Arc<[u8; CHUNK]>>,
    len: u64,
}

#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    id: u64,
    path: PathBuf,
}

#[derive(Debug)]
struct SimLock {
    disk: SimDisk,
    path: PathBuf,
}

impl Blob {
    fn resize(&mut self, len: u64) {
        let chunks = usize::try_from(len.div_ceil(CHUNK as u64)).expect("simulated files are small");
        if len < self.len {
            let tail = (len % CHUNK as u64) as usize;
            if tail > 0 {
                Arc::make_mut(&mut self.chunks[chunks - 1])[tail..].fill(0);
            }
        }
        self.chunks.resize_with(chunks, || Arc::new([0; CHUNK]));
        self.len = len;
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        let end = offset + bytes.len() as u64;
        if end > self.len {
            self.resize(end);
        }
        let mut at = offset;
        let mut rest = bytes;
        while !rest.is_empty() {
            let (chunk, within) = ((at / CHUNK as u64) as usize, (at % CHUNK as u64) as usize);
            let (now, later) = rest.split_at(rest.len().min(CHUNK - within));
            Arc::make_mut(&mut self.chunks[chunk])[within..within + now.len()].copy_from_slice(now);
            at += now.len() as u64;
            rest = later;
        }
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> bool {
        if offset + out.len() as u64 > self.len {
            return false;
        }
        let mut at = offset;
        let mut rest = out;
        while !rest.is_empty() {
            let (chunk, within) = ((at / CHUNK as u64) as usize, (at % CHUNK as u64) as usize);
            let take = rest.len().min(CHUNK - within);
            let (now, later) = rest.split_at_mut(take);
            now.copy_from_slice(&self.chunks[chunk][within..within + take]);
            at += take as u64;
            rest = later;
        }
        true
    }
}

impl Content {
    fn apply(&mut self, change: Change) {
        match &change {
            Change::Write { offset, bytes } => self.current.write(*offset, bytes),
            Change::Resize(len) => self.current.resize(*len),
        }
        self.unsynced.push(change);
    }

    /// What a power cut leaves, every sector decided on its own.
    fn mix(&self, rng: &mut Rng) -> Blob {
        let mut blob = self.durable.clone();
        for change in self.unsynced.iter().chain(&self.torn) {
            let style = rng.below(4);
            match change {
                Change::Resize(len) => {
                    if style < 2 {
                        blob.resize(*len);
                    }
                }
                Change::Write { offset, bytes } => {
                    let mut at = 0;
                    while at < bytes.len() {
                        let sector_left = SECTOR_BYTES - ((*offset as usize + at) % SECTOR_BYTES);
                        let end = bytes.len().min(at + sector_left);
                        // Whole, not at all, or torn.
                        if style == 0 || (style >= 2 && rng.one_in(2)) {
                            blob.write(*offset + at as u64, &bytes[at..end]);
                        }
                        at = end;
                    }
                }
            }
        }
        blob
    }
}

impl State {
    /// Counts a call that changes something; fails if the disk is or gets stopped, or a fault is due.
    fn call(&mut self, what: &str, path: &Path) -> Result<()> {
        self.check(what, path)?;
        self.calls += 1;
        self.last_call = format!("{what} {}", path.display());
        if let Some((name, left)) = &mut self.crash_on
            && path.to_string_lossy().contains(*name)
        {
            *left = left.saturating_sub(1);
            if *left == 0 {
                self.crash_at = Some(self.calls);
            }
        }
        if self.crash_at.is_some_and(|at| self.calls >= at) {
            self.crashed = true;
            return self.check(what, path);
        }
        let calls = self.calls;
        let due = self.faults.iter().find(|(at, times, _)| calls >= *at && calls - at < *times);
        if let Some((_, _, fault)) = due.copied() {
            let full = fault == Fault::Enospc;
            self.fired.push(Fired { op: op(what), path: path.to_owned(), full, told: true, short: false });
            let kind = match fault {
                Fault::Eio => io::Error::other("simulated input/output error"),
                Fault::Enospc => io::ErrorKind::StorageFull.into(),
            };
            return Err(Error::io(op(what), path, None, kind));
        }
        Ok(())
    }

    fn check(&self, what: &str, path: &Path) -> Result<()> {
        if self.crashed {
            let error = io::Error::new(io::ErrorKind::ConnectionAborted, "simulated crash");
            return Err(Error::io(op(what), path, None, error));
        }
        Ok(())
    }

    /// Counts a read; fails if the disk is stopped or a fault is due.
    fn read_call(&mut self, path: &Path, offset: u64, len: usize) -> Result<()> {
        self.check("read", path)?;
        self.reads += 1;
        let reads = self.reads;
        let due = self.read_faults.iter().find(|(at, times, _)| reads >= *at && reads - at < *times);
        let Some((_, _, fault)) = due.copied() else { return Ok(()) };
        let short = fault == ReadFault::Short;
        self.fired.push(Fired { op: "read", path: path.to_owned(), full: false, told: true, short });
        Err(match fault {
            ReadFault::Eio => Error::io("read", path, Some(offset), io::Error::other("simulated input/output error")),
            ReadFault::Short => {
                let damage = Damage::Truncated { needed: offset + len as u64, found: offset + len as u64 / 2 };
                Error::corrupt(path, Place::Offset(offset), damage)
            }
        })
    }

    fn room(&mut self, path: &Path, id: u64, len: u64) -> Result<()> {
        let have = self.files.get(&id).map_or(0, |file| file.current.len);
        let used: u64 = self.entries.values().filter_map(|id| self.files.get(id)).map(|file| file.current.len).sum();
        if len > have && self.capacity.is_some_and(|max| used + (len - have) > max) {
            self.fired.push(Fired { op: "write", path: path.to_owned(), full: true, told: false, short: false });
            return Err(Error::NoSpace { path: path.to_owned() });
        }
        Ok(())
    }

    fn sync_failed(&mut self, id: u64) {
        let mut rng = self.rng.clone();
        if let Some(file) = self.files.get_mut(&id) {
            // The kernel forgets that it has to write what it could not write.
            file.durable = file.mix(&mut rng);
            file.unsynced.clear();
        }
        self.rng = rng;
    }
}

fn op(what: &str) -> &'static str {
    match what {
        "write" => "write",
        "sync" => "sync",
        "preallocate" => "preallocate",
        "truncate" => "truncate",
        "rename" => "rename",
        "remove" => "remove",
        "read" => "read",
        _ => "open",
    }
}

impl SimDisk {
    /// An empty disk.
    pub fn new(seed: u64) -> Self {
        let state = State {
            entries: BTreeMap::new(),
            durable_entries: BTreeMap::new(),
            entry_log: Vec::new(),
            dirs: BTreeSet::new(),
            files: BTreeMap::new(),
            locks: BTreeSet::new(),
            next_file: 1,
            rng: Rng::new(seed),
            calls: 0,
            syncs: 0,
            writes: 0,
            side_by_side: 0,
            crash_at: None,
            crash_on: None,
            crashed: false,
            faults: Vec::new(),
            reads: 0,
            read_faults: Vec::new(),
            fired: Vec::new(),
            capacity: None,
            last_call: String::new(),
        };
        SimDisk { state: Arc::new(Mutex::new(state)) }
    }

    /// A copy that lives on its own.
    pub fn fork(&self) -> SimDisk {
        SimDisk { state: Arc::new(Mutex::new(self.state.lock().clone())) }
    }

    /// Stops the disk at the `call`th call from its beginning: that call and all later ones fail;
    /// a write that is stopped may be torn.
    pub fn crash_at(&self, call: u64) {
        self.state.lock().crash_at = Some(call);
    }

    /// Stops the disk at the `call`th call from now on files whose path has `name` in it.
    pub fn crash_on(&self, name: &'static str, call: u64) {
        self.state.lock().crash_on = Some((name, call));
    }

    /// True once the disk has stopped.
    pub fn crashed(&self) -> bool {
        self.state.lock().crashed
    }

    /// Stops the disk now.
    pub fn stop(&self) {
        self.state.lock().crashed = true;
    }

    /// Lets `times` calls from the `call`th on fail.
    pub fn fail_at(&self, call: u64, times: u64, fault: Fault) {
        self.state.lock().faults.push((call, times, fault));
    }

    /// Lets `times` reads from the `read`th on fail.
    pub fn fail_reads(&self, read: u64, times: u64, fault: ReadFault) {
        self.state.lock().read_faults.push((read, times, fault));
    }

    /// Reads counted so far.
    pub fn reads(&self) -> u64 {
        self.state.lock().reads
    }

    /// The calls that failed as told, in order.
    pub fn fired(&self) -> Vec<Fired> {
        self.state.lock().fired.clone()
    }

    /// Forgets planned faults.
    pub fn heal(&self) {
        let mut state = self.state.lock();
        state.faults.clear();
        state.read_faults.clear();
    }

    /// The files and their lengths, by path.
    pub fn files(&self) -> Vec<(PathBuf, u64)> {
        let state = self.state.lock();
        let len = |id| state.files.get(id).map_or(0, |file| file.current.len);
        state.entries.iter().map(|(path, id)| (path.clone(), len(id))).collect()
    }

    /// What lies in a file; None if it does not reach so far.
    pub fn peek(&self, path: &Path, offset: u64, len: usize) -> Option<Vec<u8>> {
        let state = self.state.lock();
        let mut bytes = vec![0; len];
        let file = state.files.get(state.entries.get(path)?)?;
        file.current.read(offset, &mut bytes).then_some(bytes)
    }

    /// Puts bytes into a file behind everybody's back, as a misdirected or lost write would, or rot; false
    /// if it does not reach so far.
    pub fn poke(&self, path: &Path, offset: u64, bytes: &[u8]) -> bool {
        let mut state = self.state.lock();
        let Some(id) = state.entries.get(path).copied() else { return false };
        let Some(file) = state.files.get_mut(&id) else { return false };
        let end = offset + bytes.len() as u64;
        if end > file.current.len {
            return false;
        }
        file.current.write(offset, bytes);
        if end <= file.durable.len {
            file.durable.write(offset, bytes);
        }
        // What is on its way to the disk too: a later power cut must not undo rot.
        for change in &mut file.unsynced {
            if let Change::Write { offset: from, bytes: written } = change {
                let (low, high) = ((*from).max(offset), (*from + written.len() as u64).min(end));
                if low < high {
                    let mut spoilt = written.to_vec();
                    let part = &bytes[(low - offset) as usize..(high - offset) as usize];
                    spoilt[(low - *from) as usize..(high - *from) as usize].copy_from_slice(part);
                    *written = spoilt.into();
                }
            }
        }
        true
    }

    /// Sets how many bytes the files may have together.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.state.lock().capacity = bytes;
    }

    /// True if the files may not have more than so many bytes together.
    pub fn is_limited(&self) -> bool {
        self.state.lock().capacity.is_some()
    }

    /// Bytes of all files together.
    pub fn used(&self) -> u64 {
        let state = self.state.lock();
        state.entries.values().filter_map(|id| state.files.get(id)).map(|file| file.current.len).sum()
    }

    /// Calls counted so far.
    pub fn calls(&self) -> u64 {
        self.state.lock().calls
    }

    /// Write calls so far.
    pub fn writes(&self) -> u64 {
        self.state.lock().writes
    }

    /// How often files were to be synced side by side.
    pub fn synced_side_by_side(&self) -> u64 {
        self.state.lock().side_by_side
    }

    /// The last counted call, for messages.
    pub fn last_call(&self) -> String {
        self.state.lock().last_call.clone()
    }

    /// Flips one bit of a file, as rot would; false if there is no such byte.
    pub fn flip_bit(&self, path: &Path, offset: u64, bit: u8) -> bool {
        match self.peek(path, offset, 1) {
            Some(byte) => self.poke(path, offset, &[byte[0] ^ (1 << (bit % 8))]),
            None => false,
        }
    }

    /// The disk that a restarted process finds.
    pub fn after_crash(&self, survive: Survive) -> SimDisk {
        let mut state = self.state.lock().clone();
        state.locks.clear();
        state.crashed = false;
        state.crash_at = None;
        state.crash_on = None;
        state.faults.clear();
        state.read_faults.clear();
        state.fired.clear();
        state.calls = 0;
        state.reads = 0;
        match survive {
            Survive::All => {}
            Survive::Nothing => {
                state.entries = state.durable_entries.clone();
                for file in state.files.values_mut() {
                    file.current = file.durable.clone();
                    file.unsynced.clear();
                }
                state.entry_log.clear();
            }
            Survive::Mix(seed) => {
                let mut rng = Rng::new(seed);
                let mut entries = state.durable_entries.clone();
                for change in std::mem::take(&mut state.entry_log) {
                    if rng.one_in(2) {
                        change.apply(&mut entries);
                    }
                }
                for file in state.files.values_mut() {
                    file.durable = file.mix(&mut rng);
                    file.current = file.durable.clone();
                    file.unsynced.clear();
                }
                state.durable_entries = entries.clone();
                state.entries = entries;
            }
        }
        state.files.values_mut().for_each(|file| file.torn.clear());
        SimDisk { state: Arc::new(Mutex::new(state)) }
    }

    fn link(&self, path: &Path) -> Result<u64> {
        let mut state = self.state.lock();
        if state.entries.contains_key(path) {
            return Err(Error::io("create", path, None, io::ErrorKind::AlreadyExists.into()));
        }
        if !path.parent().is_some_and(|dir| state.dirs.contains(dir)) {
            return Err(Error::io("create", path, None, io::ErrorKind::NotFound.into()));
        }
        state.call("create", path)?;
        let id = state.next_file;
        state.next_file += 1;
        state.files.insert(id, Content::default());
        state.entries.insert(path.to_owned(), id);
        state.entry_log.push(EntryChange::Link(path.to_owned(), id));
        Ok(id)
    }
}

impl EntryChange {
    fn apply(self, entries: &mut BTreeMap<PathBuf, u64>) {
        match self {
            EntryChange::Link(path, id) => {
                entries.insert(path, id);
            }
            EntryChange::Unlink(path) => {
                entries.remove(&path);
            }
            EntryChange::Rename(from, to, id) => {
                entries.remove(&from);
                entries.insert(to, id);
            }
        }
    }

    fn dir(&self) -> Option<&Path> {
        match self {
            EntryChange::Link(path, _) | EntryChange::Unlink(path) | EntryChange::Rename(_, path, _) => path.parent(),
        }
    }
}

/// True if the error is the simulated crash itself.
pub fn is_crash(error: &Error) -> bool {
    match error {
        Error::Io { source, .. } => source.kind() == io::ErrorKind::ConnectionAborted,
        Error::Poisoned { cause } => cause.contains("simulated crash"),
        _ => false,
    }
}

impl Disk for SimDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> Result<Arc<dyn DiskFile>> {
        let id = match mode {
            OpenMode::CreateNew => self.link(path)?,
            OpenMode::Read | OpenMode::Write => {
                let state = self.state.lock();
                state.check("open", path)?;
                let missing = || Error::io("open", path, None, io::ErrorKind::NotFound.into());
                *state.entries.get(path).ok_or_else(missing)?
            }
        };
        Ok(Arc::new(SimFile { disk: self.clone(), id, path: path.to_owned() }))
    }

    fn list(&self, dir: &Path) -> Result<Vec<String>> {
        let state = self.state.lock();
        state.check("list", dir)?;
        if !state.dirs.contains(dir) {
            return Err(Error::io("list", dir, None, io::ErrorKind::NotFound.into()));
        }
        let files = state.entries.keys().chain(state.dirs.iter());
        let mut names: Vec<String> = files
            .filter(|path| path.parent() == Some(dir))
            .filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
            .collect();
        names.sort();
        Ok(names)
    }

    fn create_dir(&self, dir: &Path) -> Result<()> {
        let mut state = self.state.lock();
        if state.dirs.contains(dir) {
            return state.check("create", dir);
        }
        state.call("create", dir)?;
        // A lost directory is like a lost first file in it, so directories are durable at once.
        for parent in dir.ancestors() {
            state.dirs.insert(parent.to_owned());
        }
        Ok(())
    }

    fn remove(&self, path: &Path) -> Result<()> {
        let mut state = self.state.lock();
        if !state.entries.contains_key(path) {
            return Err(Error::io("remove", path, None, io::ErrorKind::NotFound.into()));
        }
        state.call("remove", path)?;
        state.entries.remove(path);
        state.entry_log.push(EntryChange::Unlink(path.to_owned()));
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        let mut state = self.state.lock();
        let missing = || Error::io("rename", from, None, io::ErrorKind::NotFound.into());
        let id = *state.entries.get(from).ok_or_else(missing)?;
        state.call("rename", from)?;
        let change = EntryChange::Rename(from.to_owned(), to.to_owned(), id);
        change.clone().apply(&mut state.entries);
        state.entry_log.push(change);
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> Result<()> {
        let mut state = self.state.lock();
        state.syncs += 1;
        state.call("sync", dir)?;
        let (synced, rest) =
            std::mem::take(&mut state.entry_log).into_iter().partition(|change| change.dir() == Some(dir));
        state.entry_log = rest;
        let synced: Vec<EntryChange> = synced;
        for change in synced {
            change.apply(&mut state.durable_entries);
        }
        Ok(())
    }

    fn lock(&self, path: &Path, _holder: &str) -> Result<Box<dyn DiskLock>> {
        let mut state = self.state.lock();
        state.check("lock", path)?;
        if !state.locks.insert(path.to_owned()) {
            return Err(Error::Locked { path: path.to_owned(), holder: String::new() });
        }
        Ok(Box::new(SimLock { disk: self.clone(), path: path.to_owned() }))
    }

    fn entropy(&self) -> u128 {
        let mut state = self.state.lock();
        let high = u128::from(state.rng.next_u64());
        high << 64 | u128::from(state.rng.next_u64())
    }

    fn sync_calls(&self) -> u64 {
        self.state.lock().syncs
    }

    fn sync_files(&self, files: &[Arc<dyn DiskFile>], side_by_side: bool) -> Result<()> {
        self.state.lock().side_by_side += u64::from(side_by_side);
        files.iter().try_for_each(|file| file.sync_data())
    }

    fn is_simulated(&self) -> bool {
        true
    }
}

impl DiskLock for SimLock {}

impl Drop for SimLock {
    fn drop(&mut self) {
        self.disk.state.lock().locks.remove(&self.path);
    }
}

impl SimFile {
    fn change(&self, what: &'static str, change: Change) -> Result<()> {
        let mut state = self.disk.state.lock();
        let end = match &change {
            Change::Write { offset, bytes } => offset + bytes.len() as u64,
            Change::Resize(len) => *len,
        };
        let was_crashed = state.crashed;
        let called = state.call(what, &self.path);
        let torn = !was_crashed && state.crashed && matches!(change, Change::Write { .. });
        if called.is_ok() {
            state.room(&self.path, self.id, end)?;
            state.writes += 1;
        }
        let Some(file) = state.files.get_mut(&self.id) else {
            return Err(Error::io(what, &self.path, None, io::ErrorKind::NotFound.into()));
        };
        if called.is_ok() {
            file.apply(change);
        } else if torn {
            file.torn.push(change);
        }
        called
    }
}

impl DiskFile for SimFile {
    fn path(&self) -> &Path {
        &self.path
    }

    fn len(&self) -> Result<u64> {
        let state = self.disk.state.lock();
        state.check("read", &self.path)?;
        Ok(state.files.get(&self.id).map_or(0, |file| file.current.len))
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let mut state = self.disk.state.lock();
        state.read_call(&self.path, offset, buf.len())?;
        let found = state.files.get(&self.id).map_or(0, |file| file.current.len);
        if state.files.get(&self.id).is_some_and(|file| file.current.read(offset, buf)) {
            return Ok(());
        }
        let damage = Damage::Truncated { needed: offset + buf.len() as u64, found };
        Err(Error::corrupt(&self.path, Place::Offset(offset), damage))
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.change("write", Change::Write { offset, bytes: bytes.into() })
    }

    fn sync_data(&self) -> Result<()> {
        let mut state = self.disk.state.lock();
        state.syncs += 1;
        if let Err(error) = state.call("sync", &self.path) {
            if !state.crashed {
                state.sync_failed(self.id);
            }
            return Err(error);
        }
        if let Some(file) = state.files.get_mut(&self.id) {
            file.durable = file.current.clone();
            file.unsynced.clear();
        }
        Ok(())
    }

    fn preallocate(&self, len: u64) -> Result<()> {
        if len <= self.len()? {
            return Ok(());
        }
        self.change("preallocate", Change::Resize(len))
    }

    fn truncate(&self, len: u64) -> Result<()> {
        self.change("truncate", Change::Resize(len))
    }

    fn map(&self) -> Result<Option<Arc<dyn Mapping>>> {
        Ok(None)
    }
}

#[cfg(test)]
#[path = "sim_tests.rs"]
mod tests;
