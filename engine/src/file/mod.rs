//! One tree file: where its pages live, read and written.
//!
//! Unit 0 is the file header; pages and extents follow. Pages are read through a mapping, or with
//! `pread` and a bounded cache; either way a page is checked before its first use since it was
//! mapped, written or cached, and every use checks that it carries the epoch its pointer expects.
//! Pages are only ever written with `pwrite`, to units that nobody reaches. The file is opened when
//! it is needed and may be closed when idle.

mod writer;

pub use writer::{TreeWriter, Written};

use crate::cached::PageCache;
use crate::codec::Reader;
use crate::defect::{Defect, is_on};
use crate::disk::{Disk, DiskFile, Mapping, OpenMode};
use crate::error::{Damage, Error, Place, Result};
use crate::ids::{PagePtr, TreeId, UNIT_BYTES};
use crate::page::layout::{self, HEADER_BYTES};
use crate::page::leaf::ExtentRef;
use crate::page::{self, Head, Kind, Stamp};
use crate::space::FreeSpace;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use crate::tree::{Leaves, Newest, PageRef, PageSource, Root};
use arc_swap::{ArcSwapOption, Guard};
use bytes::Bytes;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const MAGIC: &[u8; 8] = b"PBLTTREE";
const VERSION: u32 = 1;
/// The cache of a file that cannot be mapped.
const FALLBACK_CACHE_BYTES: usize = 256 << 10;

/// How pages are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReadMode {
    /// Through a mapping. A device error under it is a SIGBUS.
    #[default]
    Mapped,
    /// With `pread` and a cache of this many bytes per file. A device error is an [`Error::Io`].
    Pread {
        /// The most bytes cached.
        cache_bytes: usize,
    },
}

/// A tree file of a store.
#[derive(Debug)]
pub struct TreeFile {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    engine: u128,
    stamp: Stamp,
    page_bytes: usize,
    mode: ReadMode,
    cache: PageCache,
    opened: ArcSwapOption<Opened>,
    /// Held while it is opened.
    opening: Mutex<()>,
    leaves: Newest,
    /// What all who have it open, or mapped, hold a clone of.
    held: Mutex<Arc<()>>,
}

#[derive(Debug)]
struct Opened {
    file: Arc<dyn DiskFile>,
    mapped: ArcSwapOption<Mapped>,
    /// Held while it is mapped.
    mapping: Mutex<()>,
    held: Arc<()>,
}

/// A mapping, and which units in it begin a page that was checked. A mapping that takes the place of a shorter one
/// has the marks themselves of that one, no copies: who takes a mark away while the file is mapped anew takes it away
/// in both.
#[derive(Debug)]
struct Mapped {
    mapping: Arc<dyn Mapping>,
    /// Bytes that the file has, as far as it is known.
    len: AtomicUsize,
    checked: Vec<Arc<[AtomicU64]>>,
    _held: Arc<()>,
}

/// So that whoever holds the mapping alone holds all of it.
impl Mapping for Mapped {
    fn bytes(&self) -> &[u8] {
        &self.mapping.bytes()[..self.len.load(Ordering::Acquire)]
    }
}

/// Words of marks, of a unit a bit, that are allocated together.
const MARK_WORDS: usize = 64;

impl Mapped {
    /// Of a file that has `len` bytes.
    fn new(mapping: Arc<dyn Mapping>, len: u64, before: Option<&Mapped>, held: &Arc<()>) -> Self {
        let blocks = mapping.bytes().len().div_ceil(UNIT_BYTES * 64 * MARK_WORDS);
        let mut checked = before.map_or_else(Vec::new, |before| before.checked.clone());
        checked.resize_with(blocks.max(checked.len()), || (0..MARK_WORDS).map(|_| AtomicU64::new(0)).collect());
        let mapped = Mapped { mapping, len: AtomicUsize::new(0), checked, _held: Arc::clone(held) };
        mapped.grow(len);
        mapped
    }

    /// The file has `len` bytes now; true if there is room for all of them.
    fn grow(&self, len: u64) -> bool {
        let (len, most) = (usize::try_from(len).unwrap_or(usize::MAX), self.mapping.bytes().len());
        self.len.fetch_max(len.min(most), Ordering::AcqRel);
        len <= most
    }

    /// What is behind `len` bytes is not looked at any more.
    fn shrink(&self, len: u64) {
        self.len.fetch_min(usize::try_from(len).unwrap_or(usize::MAX), Ordering::AcqRel);
    }

    /// The marks that `unit` is among.
    #[inline]
    fn marks(&self, unit: u32) -> Option<&AtomicU64> {
        let word = unit as usize / 64;
        self.checked.get(word / MARK_WORDS)?.get(word % MARK_WORDS)
    }

    #[inline]
    fn is_checked(&self, unit: u32) -> bool {
        self.marks(unit).is_some_and(|word| word.load(Ordering::Acquire) & (1 << (unit % 64)) != 0)
    }

    fn set_checked(&self, unit: u32, checked: bool) {
        let Some(word) = self.marks(unit) else {
            return;
        };
        if checked {
            word.fetch_or(1 << (unit % 64), Ordering::Release);
        } else {
            word.fetch_and(!(1 << (unit % 64)), Ordering::Release);
        }
    }
}

/// A file without a name, whose blocks are not given back yet.
#[derive(Debug)]
pub struct Removed {
    file: Arc<dyn DiskFile>,
    held: Arc<()>,
    len: u64,
}

impl Removed {
    /// True once nothing is left of it.
    pub fn is_gone(&self) -> bool {
        self.len == 0
    }

    /// True while somebody has it open or mapped, or an older mapping of it: then it must not become shorter. Nobody
    /// comes anew.
    pub fn is_read(&mut self) -> bool {
        Arc::get_mut(&mut self.held).is_none()
    }

    /// Gives back the last `bytes` of it. Requires: nobody reads it.
    pub fn shorten(&mut self, bytes: u64) -> Result<()> {
        self.len = self.len.saturating_sub(bytes);
        self.file.truncate(self.len)?;
        // Else the file system gives all of it back with one commit of its own.
        self.file.sync_data()
    }
}

/// What identifies a tree file.
#[derive(Debug, Clone)]
pub struct FileSpec {
    /// Its path.
    pub path: PathBuf,
    /// The store's identity.
    pub engine: u128,
    /// Its tree.
    pub tree: TreeId,
    /// Bytes of a page.
    pub page_bytes: usize,
}

impl TreeFile {
    /// Creates the file with its header, synced. Its directory is the caller's to sync.
    pub fn create(disk: &Arc<dyn Disk>, spec: FileSpec, mode: ReadMode) -> Result<Self> {
        let file = disk.open(&spec.path, OpenMode::CreateNew)?;
        let tree = TreeFile::new(disk, spec, mode);
        file.write_at(&tree.header(), 0)?;
        file.sync_data()?;
        tree.opened.store(Some(tree.with(file)));
        Ok(tree)
    }

    /// A file that exists; its header is checked when it is first used.
    pub fn new(disk: &Arc<dyn Disk>, spec: FileSpec, mode: ReadMode) -> Self {
        let cache_bytes = match mode {
            ReadMode::Mapped => FALLBACK_CACHE_BYTES,
            ReadMode::Pread { cache_bytes } => cache_bytes,
        };
        TreeFile {
            disk: Arc::clone(disk),
            path: spec.path,
            engine: spec.engine,
            stamp: Stamp { engine: spec.engine as u64, file: spec.tree },
            page_bytes: spec.page_bytes,
            mode,
            cache: PageCache::new(cache_bytes),
            opened: ArcSwapOption::empty(),
            opening: Mutex::new(()),
            leaves: Newest::default(),
            held: Mutex::default(),
        }
    }

    fn with(&self, file: Arc<dyn DiskFile>) -> Arc<Opened> {
        let held = Arc::clone(&self.held.lock());
        Arc::new(Opened { file, mapped: ArcSwapOption::empty(), mapping: Mutex::new(()), held })
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// True while the file is open.
    pub fn is_open(&self) -> bool {
        self.opened.load().is_some()
    }

    /// Bytes of memory of the table of its leaves.
    pub fn leaves_bytes(&self) -> usize {
        self.leaves.bytes()
    }

    /// Closes the file and drops its mapping and cache; the next use opens it again.
    pub fn close_idle(&self) {
        self.opened.store(None);
        self.leaves.forget();
        self.cache.clear();
    }

    /// What is left of the file once its name is gone, if it was open. Whoever reads it goes on.
    pub fn removed(&self) -> Option<Removed> {
        let file = Arc::clone(&self.opened.load_full()?.file);
        self.close_idle();
        // Nobody opens it any more: what has its name later is another file.
        let held = std::mem::take(&mut *self.held.lock());
        let len = file.len().ok()?;
        Some(Removed { file, held, len })
    }

    /// Opens the file if it is closed, and checks its header.
    pub fn open(&self) -> Result<()> {
        self.opened().map(drop)
    }

    /// Reads the header once more and checks it.
    pub fn header_afresh(&self) -> Result<()> {
        let opened = self.opened()?;
        let mut unit = vec![0; UNIT_BYTES];
        opened.file.read_at(&mut unit, 0)?;
        self.check_header(&unit)
    }

    /// The page that `ptr` names, read from the file and checked as if for the first time.
    pub fn page_afresh(&self, ptr: PagePtr, height: u8) -> Result<Vec<u8>> {
        let opened = self.opened()?;
        let mut bytes = vec![0; self.page_bytes];
        opened.file.read_at(&mut bytes, u64::from(ptr.unit) * UNIT_BYTES as u64)?;
        if !is_on(Defect::TrustPages) {
            page::check(&bytes, self.stamp, ptr, height).map_err(|damage| self.damaged(ptr.unit, damage))?;
        }
        Ok(bytes)
    }

    /// Opens the file whatever its header says: every page says itself whose it is.
    pub fn open_unchecked(&self) -> Result<()> {
        let file = self.disk.open(&self.path, OpenMode::Read)?;
        self.opened.store(Some(self.with(file)));
        Ok(())
    }

    /// What lies at `unit`, if it is an intact leaf of this file, of whatever epoch.
    pub fn leaf_at(&self, unit: u32) -> Result<Option<(PagePtr, Vec<u8>)>> {
        let opened = self.opened()?;
        let mut page = vec![0; self.page_bytes];
        opened.file.read_at(&mut page, u64::from(unit) * UNIT_BYTES as u64)?;
        let ptr = PagePtr { unit, epoch: layout::epoch(&page) };
        Ok(page::check(&page, self.stamp, ptr, 0).is_ok().then_some((ptr, page)))
    }

    /// The file itself, for syncs.
    pub fn disk_file(&self) -> Result<Arc<dyn DiskFile>> {
        Ok(Arc::clone(&self.opened()?.file))
    }

    /// Cuts the file behind `end` units. Its mapping stays: whoever maps it anew meets each page as a new one.
    pub fn cut(&self, end: u32) -> Result<()> {
        let opened = self.opened()?;
        let len = u64::from(end) * UNIT_BYTES as u64;
        // Held until it is done: nobody finds that the file is as long as it was.
        let _one = opened.mapping.lock();
        if let Some(mapped) = opened.mapped.load().as_ref() {
            mapped.shrink(len);
        }
        opened.file.truncate(len)
    }

    /// Takes new pages of checkpoint `epoch` into units that `space` has free.
    pub fn writer<'a>(&'a self, space: &'a mut FreeSpace, epoch: u64) -> Result<TreeWriter<'a>> {
        Ok(TreeWriter::new(self, self.opened()?, space, epoch))
    }

    /// An error about a unit of this file.
    pub fn damaged(&self, unit: u32, damage: Damage) -> Error {
        Error::corrupt(&self.path, Place::Unit(unit), damage)
    }

    fn opened(&self) -> Result<Arc<Opened>> {
        if let Some(opened) = self.opened.load_full() {
            return Ok(opened);
        }
        let _one = self.opening.lock();
        if let Some(opened) = self.opened.load_full() {
            return Ok(opened);
        }
        let file = match self.disk.open(&self.path, OpenMode::Write) {
            // A read-only directory is no reason not to read.
            Err(error) if error.is_read_only() => self.disk.open(&self.path, OpenMode::Read)?,
            other => other?,
        };
        let mut unit = vec![0; UNIT_BYTES];
        file.read_at(&mut unit, 0)?;
        self.check_header(&unit)?;
        let opened = self.with(file);
        self.opened.store(Some(Arc::clone(&opened)));
        Ok(opened)
    }

    fn header(&self) -> Vec<u8> {
        let mut unit = vec![0; HEADER_BYTES];
        unit.extend_from_slice(MAGIC);
        unit.extend_from_slice(&VERSION.to_le_bytes());
        unit.extend_from_slice(&[0; 24]); // three feature words: compatible, read-only compatible, incompatible
        unit.extend_from_slice(&self.engine.to_le_bytes());
        unit.extend_from_slice(&self.stamp.file.0.to_le_bytes());
        let page_bytes = u32::try_from(self.page_bytes).expect("a page has at most 64 KiB");
        unit.extend_from_slice(&page_bytes.to_le_bytes());
        unit.extend_from_slice(&[1, 0]); // checksums are crc32, the codec is plain
        unit.resize(UNIT_BYTES, 0);
        let at = PagePtr { unit: 0, epoch: 0 };
        layout::seal(&mut unit, self.stamp, at, Head { kind: Kind::FileHeader, height: 0, count: 0 });
        unit
    }

    fn check_header(&self, unit: &[u8]) -> Result<()> {
        let damaged = |damage| self.damaged(0, damage);
        let mut reader = Reader::new(&unit[HEADER_BYTES..]);
        if reader.array::<8>().map_err(damaged)? != *MAGIC {
            return Err(damaged(Damage::Malformed { what: "it does not begin like a tree file" }));
        }
        let version = reader.u32().map_err(damaged)?;
        let features = [reader.u64(), reader.u64(), reader.u64()];
        let [_, Ok(read_only), Ok(incompatible)] = features else {
            return Err(damaged(Damage::Malformed { what: "its header is short" }));
        };
        let engine = reader.u128().map_err(damaged)?;
        let tree = reader.u32().map_err(damaged)?;
        let page_bytes = reader.u32().map_err(damaged)?;
        if version != VERSION || read_only | incompatible != 0 {
            return Err(Error::Unsupported {
                file: self.path.clone(),
                found: format!("tree format {version} with features {read_only:#x}/{incompatible:#x}"),
                supported: format!("format {VERSION} without features"),
            });
        }
        if page_bytes as usize != self.page_bytes {
            return Err(Error::Unsupported {
                file: self.path.clone(),
                found: format!("pages of {page_bytes} bytes"),
                supported: format!("{} here, as the manifest says", self.page_bytes),
            });
        }
        let same = |field, expected: u64, found: u64| {
            if expected == found { Ok(()) } else { Err(damaged(Damage::Mismatch { field, expected, found })) }
        };
        same("engine id", self.engine as u64, engine as u64)?;
        same("file id", u64::from(self.stamp.file.0), u64::from(tree))?;
        let at = PagePtr { unit: 0, epoch: 0 };
        layout::check(unit, self.stamp, at, Kind::FileHeader, 0).map_err(damaged)?;
        Ok(())
    }

    /// The mapping, if it reaches `end` bytes; None where pages are read with `pread`.
    fn mapped(&self, opened: &Opened, end: usize) -> Result<Option<Arc<Mapped>>> {
        if self.mode != ReadMode::Mapped {
            return Ok(None);
        }
        let reaches = || opened.mapped.load_full().filter(|mapped| mapped.bytes().len() >= end);
        if let Some(mapped) = reaches() {
            return Ok(Some(mapped));
        }
        let _one = opened.mapping.lock();
        if let Some(mapped) = reaches() {
            return Ok(Some(mapped));
        }
        let before = opened.mapped.load_full();
        if let Some(mapped) = &before
            && mapped.grow(opened.file.len()?)
            && mapped.bytes().len() >= end
        {
            return Ok(before);
        }
        let Some(mapping) = opened.file.map()? else {
            return Ok(None);
        };
        let mapped = Mapped::new(mapping, opened.file.len()?, before.as_deref(), &opened.held);
        let found = mapped.bytes().len();
        if found < end {
            let damage = Damage::Truncated { needed: end as u64, found: found as u64 };
            return Err(Error::corrupt(&self.path, Place::File, damage));
        }
        let mapped = Arc::new(mapped);
        opened.mapped.store(Some(Arc::clone(&mapped)));
        Ok(Some(mapped))
    }

    /// A page in a mapping, checked if it was not yet.
    #[inline]
    fn page_in<'a>(&self, mapped: &'a Mapped, ptr: PagePtr, height: u8) -> Result<&'a [u8]> {
        let start = ptr.unit as usize * UNIT_BYTES;
        let bytes = &mapped.bytes()[start..start + self.page_bytes];
        let mismatch = layout::epoch(bytes) != ptr.epoch || layout::height(bytes) != height;
        if mismatch || !mapped.is_checked(ptr.unit) {
            page::check(bytes, self.stamp, ptr, height).map_err(|damage| self.damaged(ptr.unit, damage))?;
            mapped.set_checked(ptr.unit, true);
        }
        Ok(bytes)
    }

    #[inline]
    fn page_end(&self, ptr: PagePtr) -> usize {
        ptr.unit as usize * UNIT_BYTES + self.page_bytes
    }

    /// The file for one read of several pages: what is looked up once for all of them.
    pub fn pages(&self) -> Result<Pages<'_>> {
        let mapped = match self.opened.load().as_ref() {
            Some(opened) => opened.mapped.load(),
            None => self.opened()?.mapped.load(),
        };
        Ok(Pages { file: self, mapped })
    }
}

/// A tree file as it is mapped now.
#[derive(Debug)]
pub struct Pages<'a> {
    file: &'a TreeFile,
    mapped: Guard<Option<Arc<Mapped>>>,
}

impl Pages<'_> {
    /// The leaves of the tree, for a lookup of so many keys; None if they are not listed.
    pub fn leaves(&self, root: Root, keys: usize, first: &[u8]) -> impl Deref<Target = Option<Arc<Leaves>>> + use<'_> {
        self.file.leaves.of(self, root, keys, first)
    }
}

impl PageSource for Pages<'_> {
    #[inline]
    fn page(&self, ptr: PagePtr, height: u8) -> Result<PageRef<'_>> {
        let end = self.file.page_end(ptr);
        match self.mapped.as_deref().filter(|mapped| mapped.bytes().len() >= end) {
            Some(mapped) => Ok(PageRef::Lent(self.file.page_in(mapped, ptr, height)?)),
            // Not mapped yet, or not so far.
            None => self.file.page(ptr, height),
        }
    }

    #[inline]
    fn load_ahead(&self, ptr: PagePtr) {
        let start = ptr.unit as usize * UNIT_BYTES;
        let mapped = self.mapped.as_deref().map_or(&[][..], Mapped::bytes);
        if let Some(page) = mapped.get(start..start + self.file.page_bytes) {
            layout::load_head(page);
        }
    }

    fn is_near(&self, ptr: PagePtr) -> bool {
        self.file.is_near(ptr)
    }

    fn will_read(&self, pages: &mut dyn Iterator<Item = PagePtr>) {
        self.file.will_read(pages);
    }

    fn extent(&self, extent: ExtentRef) -> Result<Bytes> {
        self.file.extent(extent)
    }

    fn page_bytes(&self) -> usize {
        self.file.page_bytes
    }
}

impl PageSource for TreeFile {
    fn page(&self, ptr: PagePtr, height: u8) -> Result<PageRef<'_>> {
        let opened = self.opened()?;
        if let Some(mapped) = self.mapped(&opened, self.page_end(ptr))? {
            self.page_in(&mapped, ptr, height)?;
            let start = ptr.unit as usize * UNIT_BYTES;
            let end = start + self.page_bytes;
            return Ok(PageRef::Mapped(mapped, start..end));
        }
        if let Some(page) = self.cache.get(ptr.unit, ptr.epoch)
            && layout::height(&page) == height
        {
            return Ok(PageRef::Owned(page));
        }
        let page: Arc<[u8]> = self.page_afresh(ptr, height)?.into();
        self.cache.put(ptr.unit, ptr.epoch, &page);
        Ok(PageRef::Owned(page))
    }

    fn is_near(&self, ptr: PagePtr) -> bool {
        self.opened().is_ok_and(|opened| opened.file.is_near(u64::from(ptr.unit) * UNIT_BYTES as u64))
    }

    fn will_read(&self, pages: &mut dyn Iterator<Item = PagePtr>) {
        let Ok(opened) = self.opened() else { return };
        let (mut start, mut end) = (0, 0);
        let read = |start: u64, end: u64| opened.file.will_read(start, end - start);
        for ptr in pages {
            let at = u64::from(ptr.unit) * UNIT_BYTES as u64;
            if at != end {
                read(start, end);
                start = at;
            }
            end = at + self.page_bytes as u64;
        }
        read(start, end);
    }

    fn extent(&self, extent: ExtentRef) -> Result<Bytes> {
        let opened = self.opened()?;
        let mut bytes = vec![0; extent.units() as usize * UNIT_BYTES];
        opened.file.read_at(&mut bytes, u64::from(extent.ptr.unit) * UNIT_BYTES as u64)?;
        let damaged = |damage| self.damaged(extent.ptr.unit, damage);
        let head = layout::check(&bytes, self.stamp, extent.ptr, Kind::Overflow, 0).map_err(damaged)?;
        if head.count != extent.len {
            let (expected, found) = (u64::from(extent.len), u64::from(head.count));
            return Err(damaged(Damage::Mismatch { field: "length of a body", expected, found }));
        }
        let body = Bytes::from(bytes).slice(HEADER_BYTES..HEADER_BYTES + extent.len as usize);
        let computed = crc32fast::hash(&body);
        if computed != extent.crc {
            return Err(damaged(Damage::Checksum { stored: extent.crc, computed }));
        }
        Ok(body)
    }

    fn page_bytes(&self) -> usize {
        self.page_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::os::OsDisk;
    use crate::disk::sim::SimDisk;
    use crate::tree::PageSink;
    use crate::tree::{self, Edit, Root};

    /// Miri has less time.
    const ENTRIES: u32 = if cfg!(miri) { 110 } else { 500 };

    fn spec(path: PathBuf) -> FileSpec {
        FileSpec { path, engine: 77, tree: TreeId(4), page_bytes: 4096 }
    }

    fn filled(disk: &Arc<dyn Disk>, path: PathBuf, mode: ReadMode) -> (TreeFile, FreeSpace, Root) {
        let file = TreeFile::create(disk, spec(path), mode).unwrap();
        let mut space = FreeSpace::unknown(1);
        let edits: Vec<_> = (0..ENTRIES)
            .map(|at| {
                let body = vec![at as u8; if at == 100 { 9000 } else { 40 }];
                (Bytes::copy_from_slice(&at.to_be_bytes()), Edit::Put { head: Bytes::new(), body: body.into() })
            })
            .collect();
        let mut writer = file.writer(&mut space, 5).unwrap();
        let root = tree::edit(&file, &mut writer, Root::default(), &edits).unwrap();
        writer.finish().unwrap();
        (file, space, root)
    }

    fn read_all(file: &TreeFile, root: Root) -> Result<()> {
        for at in 0..ENTRIES {
            let entry = tree::get(file, root, &at.to_be_bytes())?.expect("it is there");
            assert_eq!(entry.body.load(file)?[0], at as u8);
        }
        Ok(())
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri maps no files")]
    fn both_ways_of_reading_find_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let disk: Arc<dyn Disk> = Arc::new(OsDisk::new());
        let (file, _, root) = filled(&disk, dir.path().join("t"), ReadMode::Mapped);
        read_all(&file, root).unwrap();
        file.close_idle();
        assert!(!file.is_open());
        read_all(&file, root).unwrap();
        let mode = ReadMode::Pread { cache_bytes: 8192 };
        read_all(&TreeFile::new(&disk, spec(dir.path().join("t")), mode), root).unwrap();
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri maps no files")]
    fn a_removed_file_is_read_as_long_as_any_mapping_of_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let disk: Arc<dyn Disk> = Arc::new(OsDisk::new());
        let (file, mut space, root) = filled(&disk, dir.path().join("t"), ReadMode::Mapped);
        read_all(&file, root).unwrap();
        let first = file.pages().unwrap();
        // Longer, and mapped again: nobody but a walk under way has the first mapping.
        let mut writer = file.writer(&mut space, 6).unwrap();
        let ptr = writer.allocate(1).unwrap();
        writer.write(ptr, vec![0; 4096], Head { kind: Kind::Leaf, height: 0, count: 0 }).unwrap();
        writer.finish().unwrap();
        file.mapped(&file.opened().unwrap(), file.page_end(ptr)).unwrap().unwrap();
        disk.remove(&dir.path().join("t")).unwrap();
        let mut removed = file.removed().unwrap();
        assert!(removed.is_read());
        assert!(first.page(root.ptr.unwrap(), root.height).is_ok());
        drop(first);
        assert!(!removed.is_read());
        removed.shorten(u64::MAX).unwrap();
        assert!(removed.is_gone() && file.open().is_err());
    }

    /// The mapping, once it shows a page that was written behind all others.
    fn grown(file: &TreeFile, space: &mut FreeSpace, epoch: u64, bytes: usize) -> Arc<Mapped> {
        let mut writer = file.writer(space, epoch).unwrap();
        let mut last = writer.allocate(1).unwrap();
        let head = Head { kind: Kind::Overflow, height: 0, count: 1 };
        for _ in 0..bytes / UNIT_BYTES {
            writer.write(last, vec![7; UNIT_BYTES], head).unwrap();
            last = writer.allocate(1).unwrap();
        }
        writer.write(last, vec![7; UNIT_BYTES], head).unwrap();
        writer.finish().unwrap();
        let opened = file.opened().unwrap();
        let mapped = file.mapped(&opened, file.page_end(last)).unwrap().unwrap();
        assert_eq!(mapped.bytes()[file.page_end(last) - 1], 7);
        mapped
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri maps no files")]
    fn a_file_that_grows_is_seldom_mapped_anew() {
        let dir = tempfile::tempdir().unwrap();
        let disk: Arc<dyn Disk> = Arc::new(OsDisk::new());
        let (file, mut space, root) = filled(&disk, dir.path().join("t"), ReadMode::Mapped);
        read_all(&file, root).unwrap();
        let first = grown(&file, &mut space, 6, 0);
        for epoch in 7..10 {
            let len = first.bytes().len();
            assert!(Arc::ptr_eq(&first, &grown(&file, &mut space, epoch, 4 << 20)));
            assert!(first.bytes().len() > len);
        }
        let beyond = first.bytes().len() + UNIT_BYTES;
        let error = file.mapped(&file.opened().unwrap(), beyond).unwrap_err();
        assert!(error.to_string().contains("bytes are needed"), "{error}");
        // More than there was room for.
        assert!(!Arc::ptr_eq(&first, &grown(&file, &mut space, 10, 64 << 20)));
        read_all(&file, root).unwrap();
        // What was given up to the system is not looked at, and the rest is as it was.
        let end = space.end() - 1000;
        let before = file.mapped(&file.opened().unwrap(), 1).unwrap().unwrap();
        before.set_checked(end, true);
        file.cut(end).unwrap();
        let after = file.mapped(&file.opened().unwrap(), 1).unwrap().unwrap();
        assert!(Arc::ptr_eq(&before, &after) && after.bytes().len() == end as usize * UNIT_BYTES);
        assert!(file.mapped(&file.opened().unwrap(), end as usize * UNIT_BYTES + 1).is_err());
        assert!(after.is_checked(root.ptr.unwrap().unit));
        read_all(&file, root).unwrap();
        // What comes behind the cut later is shown, and is to be checked.
        let again = grown(&file, &mut FreeSpace::unknown(end), 11, 0);
        assert!(Arc::ptr_eq(&before, &again) && !again.is_checked(end));
        assert_eq!(again.bytes().len(), (end as usize + 1) * UNIT_BYTES);
    }

    #[test]
    fn every_flipped_byte_is_found_and_named() {
        let sim = SimDisk::new(1);
        let disk: Arc<dyn Disk> = Arc::new(sim.clone());
        disk.create_dir(Path::new("/s")).unwrap();
        let (_, space, root) = filled(&disk, "/s/t".into(), ReadMode::default());
        for at in (0..u64::from(space.end()) * UNIT_BYTES as u64).step_by(if cfg!(miri) { 4999 } else { 37 }) {
            let fork = sim.fork();
            assert!(fork.flip_bit(Path::new("/s/t"), at, (at % 8) as u8));
            let disk: Arc<dyn Disk> = Arc::new(fork);
            let error = read_all(&TreeFile::new(&disk, spec("/s/t".into()), ReadMode::default()), root).unwrap_err();
            assert!(matches!(error, Error::Corrupt { .. } | Error::Unsupported { .. }), "byte {at}: {error}");
            assert!(error.to_string().starts_with("/s/t"), "{error}");
        }
    }

    #[test]
    fn stale_misplaced_and_foreign_pages_are_found() {
        let disk: Arc<dyn Disk> = Arc::new(SimDisk::new(1));
        disk.create_dir(Path::new("/s")).unwrap();
        let (file, _, root) = filled(&disk, "/s/t".into(), ReadMode::default());
        let ptr = root.ptr.unwrap();
        assert!(file.page(PagePtr { epoch: 6, ..ptr }, root.height).is_err());
        let raw = file.disk_file().unwrap();
        let mut page = vec![0; 4096];
        raw.read_at(&mut page, u64::from(ptr.unit) * 4096).unwrap();
        raw.write_at(&page, u64::from(ptr.unit + 1) * 4096).unwrap();
        assert!(file.page(PagePtr { unit: ptr.unit + 1, ..ptr }, root.height).is_err());
        let other = FileSpec { tree: TreeId(5), ..spec("/s/t".into()) };
        let error = TreeFile::new(&disk, other, ReadMode::default()).open().unwrap_err();
        assert_eq!(error.to_string(), "/s/t, unit 0 (offset 0), is damaged: file id is 4, expected 5");
        let other = FileSpec { page_bytes: 8192, ..spec("/s/t".into()) };
        let error = TreeFile::new(&disk, other, ReadMode::default()).open().unwrap_err();
        assert!(error.to_string().contains("pages of 4096 bytes"), "{error}");
    }

    /// Marks were copied: one that a writer took away while the file was mapped anew came back, and what lay in its
    /// unit then passed unchecked.
    #[test]
    fn a_mark_that_is_taken_away_while_the_file_is_mapped_anew_is_gone() {
        #[derive(Debug)]
        struct Zeros(Vec<u8>);
        impl Mapping for Zeros {
            fn bytes(&self) -> &[u8] {
                &self.0
            }
        }
        let zeros = |units: usize| Arc::new(Zeros(vec![0; units * UNIT_BYTES]));
        let held = Arc::default();
        let before = Mapped::new(zeros(100), u64::MAX, None, &held);
        before.set_checked(70, true);
        let after = Mapped::new(zeros(5000), u64::MAX, Some(&before), &held);
        assert!(after.is_checked(70) && !after.is_checked(71));
        before.set_checked(70, false);
        assert!(!after.is_checked(70));
        after.set_checked(4999, true);
        assert!(after.is_checked(4999) && !before.is_checked(4999));
    }

    #[test]
    fn a_writer_that_fails_gives_back_what_it_took() {
        let sim = SimDisk::new(1);
        let disk: Arc<dyn Disk> = Arc::new(sim.clone());
        disk.create_dir(Path::new("/s")).unwrap();
        let (file, mut space, root) = filled(&disk, "/s/t".into(), ReadMode::default());
        let before = space.end();
        sim.set_capacity(Some(sim.used() + 4096));
        let edits = vec![(Bytes::from_static(b"z"), Edit::Put { head: Bytes::new(), body: vec![1; 50_000].into() })];
        let mut writer = file.writer(&mut space, 6).unwrap();
        tree::edit(&file, &mut writer, root, &edits).unwrap();
        assert!(matches!(writer.finish(), Err(Error::NoSpace { .. })));
        assert_eq!(space.trim(), before);
        read_all(&file, root).unwrap();
    }
}
