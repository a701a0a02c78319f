//! The offline check of a store: what [`crate::recover`] would trust, looked at without being changed, and
//! all that is wrong with it rather than the first thing.
//!
//! Checked here are the manifest slots against each other and against the files, every page that either
//! slot reaches, and the journal. What keys, heads and records mean is the caller's to check: it is shown
//! them as they are read.

use crate::batch::{SpaceInfo, TreeClass, TreeInfo};
use crate::core::RESERVE_NAME;
use crate::disk::guard::Guard;
use crate::disk::{Disk, DiskLock, OpenMode, SECTOR_BYTES};
use crate::error::{Damage, Error, Place, Result};
use crate::file::{FileSpec, ReadMode, TreeFile};
use crate::finding::{Finding, Findings, Severity};
use crate::ids::{PagePtr, SpaceId, UNIT_BYTES};
use crate::journal::replay::{self, Gap, Replayed};
use crate::journal::segment::{self, SEGMENT_DATA, Segment};
use crate::manifest::{Manifest, SLOT_NAMES, Slots, SpaceEntry, TreeEntry};
use crate::page::Leaf;
use crate::page::leaf::{BodyAt, Entry};
use crate::recover::{self, LOCK_NAME};
use crate::space::Extent;
use crate::ticket::Position;
use crate::tree::{self, Root, Surveyor};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Pages are kept only while their children are read.
const CACHE_BYTES: usize = 256 << 10;

/// A store under check. Holds its lock.
#[derive(Debug)]
pub struct Check {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    _lock: Option<Box<dyn DiskLock>>,
    /// What was found so far.
    pub findings: Findings,
    /// What the store opens from; None if neither slot can be used.
    newest: Option<Manifest>,
    /// What it would fall back on.
    older: Option<Manifest>,
    segments: Vec<(u64, Segment)>,
}

/// What is met in a tree.
#[derive(Debug)]
pub enum Met<'a> {
    /// An entry.
    Entry {
        /// Its leaf.
        leaf: PagePtr,
        /// Its key.
        key: &'a [u8],
        /// Its head.
        head: &'a [u8],
        /// Its body; None if it is lost.
        body: Option<Bytes>,
    },
    /// A page that is lost, and all entries in a range of keys with it.
    Lost {
        /// The page.
        ptr: PagePtr,
        /// No key below this is lost.
        low: &'a [u8],
        /// Nor one from here on.
        high: Option<&'a [u8]>,
    },
}

/// What a tree is made of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TreeReport {
    /// Pages, branches and leaves, with what the older slot alone reaches.
    pub pages: u64,
    /// Overflow extents.
    pub extents: u64,
    /// Entries.
    pub entries: u64,
    /// Entries that its root counts.
    pub counted: u64,
    /// Bytes of its file.
    pub bytes: u64,
    /// Bytes of it that neither slot reaches.
    pub free: u64,
}

/// What a journal is made of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JournalReport {
    /// Segment files.
    pub segments: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Group headers in them.
    pub groups: u64,
    /// Those with their whole body behind them in the same segment.
    pub whole: u64,
    /// What a replay would do.
    pub replay: Replayed,
    /// Groups that are gone.
    pub gaps: Vec<Gap>,
}

impl Check {
    /// Takes the lock of a store and reads its manifest.
    ///
    /// # Errors
    /// If it cannot be checked: it is locked, no store, of another version, or cannot be listed.
    pub fn begin(disk: Arc<dyn Disk>, path: &Path, findings_max: usize) -> Result<Check> {
        recover::is_fresh(&*disk, path, true)?;
        let lock = recover::lock(&*disk, path, true)?;
        let disk: Arc<dyn Disk> = Arc::new(Guard(disk));
        let mut check = Check {
            disk,
            path: path.to_owned(),
            _lock: lock,
            findings: Findings::new(findings_max),
            newest: None,
            older: None,
            segments: Vec::new(),
        };
        check.slots()?;
        check.open_segments()?;
        Ok(check)
    }

    /// Bytes of the files that a whole check reads.
    pub fn bytes(&self) -> u64 {
        let spaces = self.newest.iter().flat_map(|manifest| &manifest.spaces);
        let trees = spaces.flat_map(|space| space.trees.iter().map(move |tree| self.tree_path(&space.name, tree)));
        let len = |path: PathBuf| self.disk.open(&path, OpenMode::Read).and_then(|file| file.len()).unwrap_or(0);
        trees.map(len).sum::<u64>() + self.segments.iter().map(|(_, segment)| segment.bytes).sum::<u64>()
    }

    /// What the store opens from.
    pub fn manifest(&self) -> Option<&Manifest> {
        self.newest.as_ref()
    }

    /// A space as callers know it.
    pub fn space_info(entry: &SpaceEntry) -> SpaceInfo {
        let tree = |tree: &TreeEntry| TreeInfo { id: tree.id, spec: tree.spec.clone(), emptied: false };
        SpaceInfo {
            id: entry.id,
            name: entry.name.clone(),
            config: entry.config.clone(),
            state: entry.state.clone(),
            trees: entry.trees.iter().map(tree).collect(),
        }
    }

    /// The path of a tree's file.
    pub fn tree_path(&self, space: &str, tree: &TreeEntry) -> PathBuf {
        recover::tree_path(&self.path, space, tree)
    }

    fn slots(&mut self) -> Result<()> {
        let mut found: [Option<Manifest>; 2] = [None, None];
        let mut unusable = Vec::new();
        for (index, slot) in found.iter_mut().enumerate() {
            let path = self.path.join(SLOT_NAMES[index]);
            match Slots::read(&*self.disk, &self.path, index) {
                Err(error @ Error::Unsupported { .. }) => return Err(error),
                Err(error) => unusable.push(Finding::of(&error, &path)),
                Ok(manifest) => {
                    let mut malformed = |what| {
                        self.findings.push(Finding::damage(&path, Place::File, &Damage::Malformed { what }));
                    };
                    if manifest.spaces.windows(2).any(|pair| pair[0].id >= pair[1].id) {
                        malformed("its spaces are out of order");
                        continue;
                    }
                    if manifest.sequence > 0 && manifest.sequence % 2 != index as u64 {
                        malformed("it is the other slot's");
                    }
                    *slot = Some(manifest);
                }
            }
        }
        for mut finding in unusable {
            if found.iter().flatten().any(|other| other.sequence == 0) {
                finding.severity = Severity::Note;
                finding.what = format!("the store was being made: {}", finding.what);
            } else if found.iter().any(Option::is_some) {
                // Torn or spoilt: its bytes cannot tell.
                let also = "the other slot is used; a power cut during a commit leaves this too";
                finding.what = format!("{} ({also})", finding.what);
            }
            self.findings.push(finding);
        }
        (self.newest, self.older) = match found {
            [Some(a), Some(b)] => {
                let (path, engine) = (self.path.join(SLOT_NAMES[1]), (a.engine, b.engine));
                if engine.0 != engine.1 {
                    let what = "it is of another store than the first slot";
                    self.findings.push(Finding::damage(&path, Place::File, &Damage::Malformed { what }));
                    (None, None)
                } else {
                    let first = a.sequence >= b.sequence;
                    let (newest, older) = if first { (a, b) } else { (b, a) };
                    if newest.sequence - older.sequence > 1 {
                        let path = self.path.join(SLOT_NAMES[usize::from(first)]);
                        let (expected, found) = (newest.sequence - 1, older.sequence);
                        let damage = Damage::Mismatch { field: "commit", expected, found };
                        self.findings.push(Finding::damage(&path, Place::File, &damage));
                    }
                    (Some(newest), Some(older))
                }
            }
            [a, b] => (a.or(b), None),
        };
        Ok(())
    }

    fn open_segments(&mut self) -> Result<()> {
        let dir = segment::directory(&self.path);
        let names = match self.disk.list(&dir) {
            Err(error) if error.is_not_found() => return Ok(()),
            other => other?,
        };
        for name in names {
            let path = dir.join(&name);
            let Some(index) = segment::file_index(&name) else {
                self.findings.push(Finding::new(Severity::Note, &path, Place::File, "no file of the journal"));
                continue;
            };
            match segment::open(&*self.disk, &path, OpenMode::Read) {
                Ok(segment) => self.segments.push((index, segment)),
                Err(error) => self.findings.push(Finding::of(&error, &path)),
            }
        }
        Ok(())
    }

    /// Compares the names in the directory with those that the slots give.
    ///
    /// # Errors
    /// If the directory cannot be listed.
    pub fn files(&mut self) -> Result<()> {
        let mut known: BTreeSet<String> = [LOCK_NAME, RESERVE_NAME, "journal", "lost+found"].map(String::from).into();
        known.extend(SLOT_NAMES.map(String::from));
        for manifest in self.newest.iter().chain(&self.older) {
            for space in &manifest.spaces {
                let names = space.trees.iter().map(|tree| recover::tree_path(&self.path, &space.name, tree));
                let ours = names.filter(|path| path.parent() == Some(&self.path));
                known.extend(ours.filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned())));
            }
        }
        for name in self.disk.list(&self.path)? {
            if known.contains(&name) {
                continue;
            }
            let ours = name.ends_with(".tree") || name.ends_with(".new");
            let what = match ours {
                true => "the manifest does not name it; the next open removes it",
                false => "no file of this store",
            };
            self.findings.push(Finding::new(Severity::Note, &self.path.join(&name), Place::File, what));
        }
        Ok(())
    }

    /// Reads all that the newest slot reaches of a tree and shows it, ascending; then what the older slot
    /// alone reaches. `progress` is told the bytes that are read.
    pub fn tree(
        &mut self,
        space: &SpaceEntry,
        entry: &TreeEntry,
        met: &mut dyn FnMut(Met<'_>, &mut Findings),
        progress: &mut dyn FnMut(u64),
    ) -> TreeReport {
        let mut report = TreeReport::default();
        let clean = self.newest.as_ref().is_some_and(|manifest| manifest.clean);
        let volatile = entry.spec.class == TreeClass::Volatile;
        if volatile && !(clean && entry.root.is_some()) {
            // It begins empty whatever the file holds.
            return report;
        }
        let root = entry.root.unwrap_or_default();
        report.counted = root.entries;
        let Some(file) = self.open_tree(space, entry) else {
            if let Some(ptr) = root.ptr {
                met(Met::Lost { ptr, low: b"", high: None }, &mut self.findings);
            }
            return report;
        };
        report.bytes = file.disk_file().and_then(|file| file.len()).unwrap_or(0);
        let older = self.older.as_ref().and_then(|older| find(older, space.id, entry)).filter(|_| !volatile);
        let mut walk = Walk {
            file: &file,
            end: entry.end_unit,
            epoch_max: self.newest.as_ref().map_or(u64::MAX, |manifest| manifest.epoch),
            epochs: vec![NEVER; 1],
            older: None,
            findings: &mut self.findings,
            report: &mut report,
            met,
            progress,
        };
        walk.epochs[0] = INSIDE;
        let entries = tree::survey(&file, root, &mut walk);
        if let Some((older, end)) = older
            && older != root
        {
            walk.end = walk.end.max(end);
            walk.older = Some(std::mem::replace(&mut walk.epochs, vec![INSIDE]));
            tree::survey(&file, older, &mut walk);
        }
        let newest = walk.older.take().unwrap_or_default();
        let used = walk.epochs.iter().enumerate();
        let used = used.filter(|(unit, epoch)| **epoch != NEVER && newest.get(*unit).is_none_or(|at| *at == NEVER));
        let used = used.count() + newest.iter().filter(|epoch| **epoch != NEVER).count();
        report.entries = entries;
        report.free = report.bytes.saturating_sub((used * UNIT_BYTES) as u64);
        report
    }

    /// Shows the entries of every intact leaf in a tree's file, whether anything leads to it or not.
    pub fn leaves(
        &mut self,
        space: &SpaceEntry,
        entry: &TreeEntry,
        each: &mut dyn FnMut(PagePtr, &Entry<'_>, Option<Bytes>),
    ) {
        let before = self.findings.clone();
        let file = self.open_tree(space, entry);
        // What is wrong with its header was found before.
        self.findings = before;
        let Some(file) = file else { return };
        let len = file.disk_file().and_then(|file| file.len()).unwrap_or(0);
        let pages = len.saturating_sub(tree::PageSource::page_bytes(&file) as u64) / UNIT_BYTES as u64;
        for unit in 1..=u32::try_from(pages).unwrap_or(u32::MAX) {
            // What cannot be read holds no leaf.
            let Ok(Some((ptr, page))) = file.leaf_at(unit) else { continue };
            let leaf = Leaf::new(&page);
            for at in 0..leaf.len() {
                let entry = leaf.entry(at);
                let body = match entry.body {
                    BodyAt::Here(bytes) => Some(Bytes::copy_from_slice(bytes)),
                    BodyAt::There(extent) => tree::PageSource::extent(&file, extent).ok(),
                };
                each(ptr, &entry, body);
            }
        }
    }

    /// A tree's file, for reading; a finding if its header is not right.
    fn open_tree(&mut self, space: &SpaceEntry, entry: &TreeEntry) -> Option<TreeFile> {
        let engine = self.newest.as_ref()?.engine;
        let path = recover::tree_path(&self.path, &space.name, entry);
        let spec = FileSpec { path: path.clone(), engine, tree: entry.id, page_bytes: entry.spec.page_bytes };
        let file = TreeFile::new(&self.disk, spec, ReadMode::Pread { cache_bytes: CACHE_BYTES });
        match file.open() {
            Ok(()) => Some(file),
            Err(error) => {
                self.findings.push(Finding::of(&error, &path));
                file.open_unchecked().ok().map(|()| file)
            }
        }
    }

    /// Reads all segments, and hands out the records that a replay would, going on behind what is gone.
    /// `each` is told too how many gaps came before; an error of it is a finding.
    pub fn journal(
        &mut self,
        each: &mut dyn FnMut(usize, Position, SpaceId, &[u8]) -> Result<()>,
        progress: &mut dyn FnMut(u64),
    ) -> JournalReport {
        let mut report = JournalReport::default();
        let Some(manifest) = self.newest.clone() else { return report };
        let mut numbers: BTreeMap<(u64, u64), PathBuf> = BTreeMap::new();
        for (_, segment) in &self.segments {
            let path = segment.file.path();
            report.segments += 1;
            report.bytes += segment.bytes;
            let mut damage = |place, damage: Damage| self.findings.push(Finding::damage(path, place, &damage));
            if let Some(cut) = segment.cut() {
                damage(Place::File, cut);
            }
            if let Some(head) = segment.head {
                if head.engine != manifest.engine {
                    damage(Place::File, Damage::Malformed { what: "it is a journal segment of another store" });
                }
                if let Some(_other) = numbers.insert((head.session, head.number), path.to_owned()) {
                    damage(Place::File, Damage::Malformed { what: "another segment has its number too" });
                }
            }
            match groups(segment) {
                Ok(found) => {
                    // Written whole or not at all: a torn head is none.
                    if segment.head.is_none() && found.head_is_spoilt {
                        damage(Place::Offset(0), Damage::Malformed { what: "the head of the segment is spoilt" });
                    }
                    report.groups += found.groups;
                    report.whole += found.whole;
                }
                Err(error) => self.findings.push(Finding::of(&error, path)),
            }
            progress(segment.bytes);
        }
        let of_store = |segment: &Segment| segment.head.is_none_or(|head| head.engine == manifest.engine);
        let mut segments = self.segments.clone();
        segments.retain(|(_, segment)| of_store(segment));
        let gaps = std::cell::RefCell::new(Vec::new());
        let replayed = replay::survey(
            &segments,
            &manifest,
            &mut |position, space, record| {
                let before = gaps.borrow().len();
                each(before, position, space, record)
            },
            &mut |gap| {
                gaps.borrow_mut().push(gap);
                Ok(())
            },
        );
        report.gaps = gaps.into_inner();
        for gap in &report.gaps {
            let Gap { groups, first, last, .. } = gap;
            let found =
                format!("{groups} groups with records {} to {} are gone, but a later one is there", first.0, last.0);
            let what = "a journal group".to_owned();
            let gone = Finding::new(Severity::Damage, &gap.file, Place::Offset(gap.offset), what);
            self.findings.push(Finding { found, ..gone });
        }
        match replayed {
            Ok(replayed) => report.replay = replayed,
            Err(error) => self.findings.push(Finding::of(&error, &segment::directory(&self.path))),
        }
        if let Some(dropped) = &report.replay.dropped {
            let what = "the unsynced end of the journal, which the next open drops";
            let place = Place::Offset(dropped.offset);
            self.findings.push(Finding::new(Severity::Note, &dropped.file, place, what));
        }
        report
    }
}

fn find(older: &Manifest, space: SpaceId, entry: &TreeEntry) -> Option<(Root, u32)> {
    let space = older.spaces.iter().find(|older| older.id == space)?;
    let tree = space.trees.iter().find(|tree| tree.id == entry.id)?;
    Some((tree.root?, tree.end_unit))
}

#[derive(Default)]
struct Groups {
    groups: u64,
    whole: u64,
    head_is_spoilt: bool,
}

/// Counts what looks like a group in a segment, of whatever session.
fn groups(segment: &Segment) -> Result<Groups> {
    let bytes = replay::read_all(segment)?;
    let head_is_spoilt = bytes.iter().take(SECTOR_BYTES).any(|&byte| byte != 0);
    let mut found = Groups { head_is_spoilt, ..Groups::default() };
    let mut at = usize::try_from(SEGMENT_DATA).expect("a sector is small");
    while at + SECTOR_BYTES <= bytes.len() {
        let mut next = at + SECTOR_BYTES;
        if let Some((len, whole)) = replay::group_at(&bytes[at..]) {
            found.groups += 1;
            if whole {
                found.whole += 1;
                next = at + len.next_multiple_of(SECTOR_BYTES);
            }
        }
        at = next;
    }
    Ok(found)
}

/// Nothing was reached there.
const NEVER: u64 = u64::MAX;
/// A page reaches over it.
const INSIDE: u64 = u64::MAX - 1;

/// One tree under way.
struct Walk<'a> {
    file: &'a TreeFile,
    end: u32,
    epoch_max: u64,
    /// By unit: the epoch of what begins there.
    epochs: Vec<u64>,
    /// Those of the newest slot, while what the older one alone reaches is read.
    older: Option<Vec<u64>>,
    findings: &'a mut Findings,
    report: &'a mut TreeReport,
    met: &'a mut dyn FnMut(Met<'_>, &mut Findings),
    progress: &'a mut dyn FnMut(u64),
}

impl Walk<'_> {
    fn found(&mut self, ptr: PagePtr, damage: &Damage) {
        self.findings.push(Finding::damage(self.file.path(), Place::Unit(ptr.unit), damage));
    }

    fn error(&mut self, error: &Error, ptr: PagePtr) {
        let mut finding = Finding::of(error, self.file.path());
        // A short read names the end that it missed.
        finding.place = Place::Unit(ptr.unit);
        self.findings.push(finding);
    }
}

impl Surveyor for Walk<'_> {
    fn reach(&mut self, extent: Extent, ptr: PagePtr, is_page: bool) -> bool {
        let checked = self.older.as_ref().and_then(|newest| newest.get(extent.unit as usize));
        if checked == Some(&ptr.epoch) {
            return false;
        }
        let end = extent.unit as usize + extent.units as usize;
        if end > self.end as usize {
            self.found(ptr, &Damage::Malformed { what: "a page lies behind the end that the manifest gives the file" });
            return false;
        }
        if ptr.epoch > self.epoch_max {
            let damage = Damage::Mismatch { field: "highest epoch", expected: self.epoch_max, found: ptr.epoch };
            self.found(ptr, &damage);
        }
        if self.epochs.len() < end {
            self.epochs.resize(end, NEVER);
        }
        let units = &mut self.epochs[extent.unit as usize..end];
        if units.iter().any(|epoch| *epoch != NEVER) {
            self.found(ptr, &Damage::Malformed { what: "a unit is used twice" });
            return false;
        }
        units.fill(INSIDE);
        units[0] = ptr.epoch;
        (self.progress)(u64::from(extent.units) * UNIT_BYTES as u64);
        *(if is_page { &mut self.report.pages } else { &mut self.report.extents }) += 1;
        true
    }

    fn entry(&mut self, leaf: PagePtr, entry: &Entry<'_>, body: Option<Bytes>) {
        if self.older.is_none() {
            let met = Met::Entry { leaf, key: entry.key, head: entry.head, body };
            (self.met)(met, self.findings);
        }
    }

    fn lost(&mut self, ptr: PagePtr, low: &[u8], high: Option<&[u8]>, error: Error) {
        self.error(&error, ptr);
        if self.older.is_none() {
            (self.met)(Met::Lost { ptr, low, high }, self.findings);
        }
    }

    fn lost_body(&mut self, ptr: PagePtr, _: &Entry<'_>, error: Error) {
        self.error(&error, ptr);
    }

    fn odd(&mut self, ptr: PagePtr, damage: Damage) {
        self.found(ptr, &damage);
    }
}
