//! Pages of a tree file with any content under headers that hold: every way through the tree gives the same
//! entries, or an error that names the file; and a tree that is whole can be changed.
//!
//! Input: a number that changes are made of; then pages, from unit 1 on, the root last. Each: height (255 is an extent), count, length (2 bytes), content.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::{Corpus, fuzz_target};
use polybolt_engine::disk::sim::SimDisk;
use polybolt_engine::disk::{Disk, DiskFile};
use polybolt_engine::file::{FileSpec, ReadMode, TreeFile};
use polybolt_engine::page::layout::{self, HEADER_BYTES, Head, Kind, Stamp};
use polybolt_engine::page::leaf::Entry as LeafEntry;
use polybolt_engine::space::{Extent, FreeSpace};
use polybolt_engine::tree::{self, Cursor, Edit, Leaves, Reached, Root, Surveyor};
use polybolt_engine::{Damage, Error, PagePtr, TreeId, UNIT_BYTES, limits};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;

const PATH: &str = "/s/t";
const EPOCH: u64 = 9;
const ENGINE: u128 = 7;
/// Steps of a walk in a tree that is not whole, which may lead in circles.
const STEPS_MAX: usize = 3000;

type Content = BTreeMap<Vec<u8>, (Vec<u8>, Vec<u8>)>;

/// Writes the pages; the root with its height, and the file's end.
fn build(file: &dyn DiskFile, mut input: &[u8]) -> Option<(PagePtr, u8, u32)> {
    let stamp = Stamp { engine: ENGINE as u64, file: TreeId(3) };
    let (mut unit, mut root) = (1, None);
    while let Some(([height, count, low, high], rest)) = input.split_first_chunk() {
        let len = usize::from(u16::from_le_bytes([*low, *high])).min(rest.len());
        let (content, rest) = rest.split_at(len);
        input = rest;
        let mut bytes = vec![0; HEADER_BYTES];
        bytes.extend_from_slice(content);
        let (kind, height, count) = match height {
            255 => (Kind::Overflow, 0, content.len() as u32),
            0 => (Kind::Leaf, 0, u32::from(*count)),
            height => (Kind::Branch, *height, u32::from(*count)),
        };
        let page = if kind == Kind::Overflow { bytes.len().next_multiple_of(UNIT_BYTES) } else { UNIT_BYTES };
        bytes.resize(page, 0);
        layout::seal(&mut bytes, stamp, PagePtr { unit, epoch: EPOCH }, Head { kind, height, count });
        file.write_at(&bytes, u64::from(unit) * UNIT_BYTES as u64).expect("the disk has room");
        if kind != Kind::Overflow {
            root = Some((PagePtr { unit, epoch: EPOCH }, height));
        }
        unit += (page / UNIT_BYTES) as u32;
        if unit > 40 {
            break;
        }
    }
    let (ptr, height) = root?;
    Some((ptr, height, unit))
}

/// Every error is one of this file.
fn named(error: &Error) {
    assert!(error.to_string().contains(PATH), "{error} names no file");
}

/// As the offline check does, no unit is passed twice.
#[derive(Default)]
struct Seen {
    units: BTreeSet<u32>,
    content: Content,
    wrong: bool,
}

impl Surveyor for Seen {
    fn reach(&mut self, extent: Extent, _: PagePtr, _: bool) -> bool {
        let fresh =
            extent.units < 1000 && (0..extent.units).all(|at| self.units.insert(extent.unit.saturating_add(at)));
        self.wrong |= !fresh;
        fresh
    }

    fn entry(&mut self, _: PagePtr, entry: &LeafEntry<'_>, body: Option<Bytes>) {
        self.wrong |= body.is_none();
        self.content.insert(entry.key.to_vec(), (entry.head.to_vec(), body.unwrap_or_default().to_vec()));
    }

    fn lost(&mut self, _: PagePtr, _: &[u8], _: Option<&[u8]>, error: Error) {
        named(&error);
        self.wrong = true;
    }

    fn lost_body(&mut self, _: PagePtr, _: &LeafEntry<'_>, error: Error) {
        named(&error);
        self.wrong = true;
    }

    fn odd(&mut self, _: PagePtr, _: Damage) {
        self.wrong = true;
    }
}

fn reach(file: &TreeFile, root: Root) -> Result<u64, Error> {
    let damaged = |ptr: PagePtr, damage| file.damaged(ptr.unit, damage);
    let shape = tree::reach(file, root, &damaged, &mut |reached| {
        if let Reached::Entry(entry) = reached {
            std::hint::black_box(entry.head.len());
        }
        Ok(())
    })?;
    Ok(shape.entries)
}

fn walk(file: &TreeFile, root: Root, up: bool, max: usize) -> Result<Vec<(Vec<u8>, Vec<u8>, Vec<u8>)>, Error> {
    let mut cursor = Cursor::new(file, root);
    if up {
        cursor.seek(Bound::Unbounded)?
    } else {
        cursor.seek_back(Bound::Unbounded)?
    };
    let mut found = Vec::new();
    while let Some((key, head, body)) = cursor.entry() {
        found.push((key.to_vec(), head.to_vec(), body.load(file)?.to_vec()));
        if found.len() > max {
            break;
        }
        if up {
            cursor.advance()?
        } else {
            cursor.retreat()?
        };
    }
    Ok(found)
}

/// All ways through a tree that is whole.
fn whole(file: &TreeFile, root: Root, content: &Content) {
    let listed: Vec<_> = content.iter().map(|(key, (head, body))| (key.clone(), head.clone(), body.clone())).collect();
    let count = listed.len();
    assert_eq!(walk(file, root, true, count).expect("it is whole"), listed);
    let mut back = walk(file, root, false, count).expect("it is whole");
    back.reverse();
    assert_eq!(back, listed);
    let keys: Vec<&[u8]> = content.keys().map(|key| &key[..]).collect();
    let mut many = Vec::new();
    let visit = &mut |at: usize, entry: Option<tree::Lent<'_>>| {
        many.push((at, entry.map(|entry| entry.head.to_vec())));
        Ok::<_, Error>(true)
    };
    Leaves::list(file, root, None).get_many(file, &keys, visit).expect("it is whole");
    for (at, (key, (head, body))) in content.iter().enumerate() {
        assert_eq!(many[at], (at, Some(head.clone())));
        let found = tree::get(file, root, key).expect("it is whole").expect("it is there");
        assert_eq!((&found.head[..], &found.body.load(file).expect("it is whole")[..]), (&head[..], &body[..]));
        let absent = [&key[..], &[0]].concat();
        if !content.contains_key(&absent) {
            assert_eq!(tree::get(file, root, &absent).expect("it is whole"), None);
        }
        let mut cursor = Cursor::new(file, root);
        cursor.seek(Bound::Excluded(key)).expect("it is whole");
        assert_eq!(cursor.key(), keys.get(at + 1).copied());
        cursor.seek_back(Bound::Excluded(key)).expect("it is whole");
        assert_eq!(cursor.key(), at.checked_sub(1).map(|before| keys[before]));
    }
}

/// Puts over some entries, removes others, and adds some.
fn change(file: &TreeFile, root: Root, end: u32, content: &Content, salt: u8) {
    let within =
        |key: &Vec<u8>, head: &Vec<u8>| key.len() <= limits::TREE_KEY_BYTES_MAX && head.len() <= limits::HEAD_BYTES_MAX;
    // What no writer wrote through the limits need not be taken on.
    if !content.iter().all(|(key, (head, _))| within(key, head)) {
        return;
    }
    let mut edits: BTreeMap<Vec<u8>, Edit> = BTreeMap::new();
    for (at, key) in content.keys().enumerate() {
        match (at + usize::from(salt)) % 5 {
            0 => drop(edits.insert(key.clone(), Edit::Remove)),
            1 => {
                let body = vec![salt; usize::from(salt) * 20];
                edits.insert(key.clone(), Edit::Put { head: Bytes::new(), body: body.into() });
            }
            2 if key.len() < limits::TREE_KEY_BYTES_MAX => {
                let put = Edit::Put { head: vec![1; 40].into(), body: vec![2; usize::from(salt)].into() };
                edits.insert([&key[..], &[salt]].concat(), put);
            }
            _ => {}
        }
    }
    let edits: Vec<(Bytes, Edit)> = edits.into_iter().map(|(key, edit)| (key.into(), edit)).collect();
    let mut expected = content.clone();
    for (key, edit) in &edits {
        match edit {
            Edit::Put { head, body } => drop(expected.insert(key.to_vec(), (head.to_vec(), body.to_vec()))),
            Edit::Remove => drop(expected.remove(&key[..])),
        }
    }
    let mut space = FreeSpace::unknown(end);
    let mut writer = file.writer(&mut space, EPOCH + 1).expect("it is open");
    let changed = tree::edit(file, &mut writer, root, &edits).expect("a tree that is whole is changed");
    writer.finish().expect("the disk has room");
    assert_eq!(changed.entries, expected.len() as u64);
    assert_eq!(reach(file, changed).expect("what was written is whole"), changed.entries);
    whole(file, changed, &expected);
}

fuzz_target!(|input: &[u8]| -> Corpus {
    let Some((&salt, input)) = input.split_first() else { return Corpus::Reject };
    let disk: Arc<dyn Disk> = Arc::new(SimDisk::new(1));
    disk.create_dir(Path::new("/s")).expect("an empty disk");
    let spec = FileSpec { path: PATH.into(), engine: ENGINE, tree: TreeId(3), page_bytes: UNIT_BYTES };
    let mode = ReadMode::Pread { cache_bytes: 64 << 10 };
    let file = TreeFile::create(&disk, spec, mode).expect("an empty disk");
    let raw = file.disk_file().expect("it is open");
    let Some((ptr, height, end)) = build(&*raw, input) else { return Corpus::Reject };
    let mut root = Root { ptr: Some(ptr), height, entries: 0 };
    let mut seen = Seen::default();
    root.entries = tree::survey(&file, root, &mut seen);
    let mut seen = Seen::default();
    tree::survey(&file, root, &mut seen);
    let reached = reach(&file, root);
    match &reached {
        // Extents are not read, and no unit is counted.
        Ok(entries) => assert_eq!(*entries, root.entries),
        Err(error) => {
            named(error);
            assert!(seen.wrong, "{error}, and the survey finds nothing");
        }
    }
    if reached.is_ok() && !seen.wrong {
        whole(&file, root, &seen.content);
        change(&file, root, end, &seen.content, salt);
        return Corpus::Keep;
    }
    for up in [true, false] {
        drop(walk(&file, root, up, STEPS_MAX).inspect_err(named));
    }
    for key in [&b""[..], b"a", b"m", &[255; 600]] {
        drop(tree::get(&file, root, key).inspect_err(named));
    }
    Corpus::Keep
});
