//! Byte layout of pages. No other file knows an offset.
//!
//! Every page and extent begins with this header:
//!
//! | bytes  | field    | meaning                                                        |
//! |--------|----------|----------------------------------------------------------------|
//! | 0..4   | checksum | crc32 of everything after it, to the end of the last unit      |
//! | 4      | kind     | 1 file header, 2 leaf, 3 branch, 4 overflow extent             |
//! | 5      | height   | 0 at a leaf; a branch is one above its children                |
//! | 6      | codec    | how the rest is encoded; 0 is plainly                          |
//! | 7      | flags    | none in use; an unknown one is refused                         |
//! | 8..12  | file     | tree id                                                        |
//! | 12..16 | unit     | where the page lies, in 4 KiB units                            |
//! | 16..24 | engine   | low half of the store's identity                               |
//! | 24..32 | epoch    | the checkpoint that wrote it; pointers to it say the same      |
//! | 32..36 | units    | how many units it takes                                        |
//! | 36..40 | count    | entries of a leaf or branch, body bytes of an extent           |
//! | 40..64 | reserved | zero                                                           |
//!
//! A leaf or branch goes on with `count` u16 offsets of its entries, ascending by key, then the
//! entries. Numbers are little-endian. A page never changes after the epoch that wrote it.

use crate::disk::os::load_soon;
use crate::error::Damage;
use crate::ids::{PagePtr, TreeId, UNIT_BYTES};
use std::ops::Range;

const CHECKSUM: Range<usize> = 0..4;
const KIND: usize = CHECKSUM.end;
const HEIGHT: usize = KIND + 1;
const CODEC: usize = HEIGHT + 1;
const FLAGS: usize = CODEC + 1;
const FILE: Range<usize> = 8..12;
const UNIT: Range<usize> = FILE.end..FILE.end + 4;
const ENGINE: Range<usize> = UNIT.end..UNIT.end + 8;
const EPOCH: Range<usize> = ENGINE.end..ENGINE.end + 8;
const UNITS: Range<usize> = EPOCH.end..EPOCH.end + 4;
const COUNT: Range<usize> = UNITS.end..UNITS.end + 4;
const RESERVED: Range<usize> = COUNT.end..COUNT.end + 24;
/// What one load from memory brings.
const LINE_BYTES: usize = 64;
/// Where a page's own content begins.
pub const HEADER_BYTES: usize = RESERVED.end;

// File format: a change here needs a new format version.
const _: () = assert!(HEADER_BYTES == 64);
const _: () = assert!(FLAGS + 1 == FILE.start);

/// What a page is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The first unit of a tree file.
    FileHeader = 1,
    /// Entries.
    Leaf = 2,
    /// Children.
    Branch = 3,
    /// The body of one large value.
    Overflow = 4,
}

/// Whose page it is; stamped on every page of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Low half of the store's identity.
    pub engine: u64,
    /// The tree.
    pub file: TreeId,
}

/// The rest of a page's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// What it is.
    pub kind: Kind,
    /// 0 at a leaf.
    pub height: u8,
    /// Entries, or body bytes.
    pub count: u32,
}

/// Fills in the header of a page whose content is in place, and seals it with its checksum.
pub fn seal(page: &mut [u8], stamp: Stamp, at: PagePtr, head: Head) {
    debug_assert!(page.len().is_multiple_of(UNIT_BYTES) && !page.is_empty());
    let units = u32::try_from(page.len() / UNIT_BYTES).expect("a page is far below 16 TiB");
    page[KIND] = head.kind as u8;
    page[HEIGHT] = head.height;
    page[FILE].copy_from_slice(&stamp.file.0.to_le_bytes());
    page[UNIT].copy_from_slice(&at.unit.to_le_bytes());
    page[ENGINE].copy_from_slice(&stamp.engine.to_le_bytes());
    page[EPOCH].copy_from_slice(&at.epoch.to_le_bytes());
    page[UNITS].copy_from_slice(&units.to_le_bytes());
    page[COUNT].copy_from_slice(&head.count.to_le_bytes());
    let crc = crc32fast::hash(&page[CHECKSUM.end..]);
    page[CHECKSUM].copy_from_slice(&crc.to_le_bytes());
}

/// Checks that `page` is what a pointer says: checksum, whose, where, when and what. Content is
/// checked by `leaf::check` and `branch::check`.
pub fn check(page: &[u8], stamp: Stamp, at: PagePtr, kind: Kind, height: u8) -> Result<Head, Damage> {
    if page.len() < HEADER_BYTES {
        return Err(Damage::Truncated { needed: HEADER_BYTES as u64, found: page.len() as u64 });
    }
    let stored = u32_at(page, CHECKSUM.start);
    let computed = crc32fast::hash(&page[CHECKSUM.end..]);
    if stored != computed {
        return Err(Damage::Checksum { stored, computed });
    }
    let same = |field, expected: u64, found: u64| {
        if expected == found { Ok(()) } else { Err(Damage::Mismatch { field, expected, found }) }
    };
    same("page kind", kind as u64, u64::from(page[KIND]))?;
    same("height", u64::from(height), u64::from(page[HEIGHT]))?;
    same("codec", 0, u64::from(page[CODEC]))?;
    same("page flags", 0, u64::from(page[FLAGS]))?;
    same("engine id", stamp.engine, u64_at(page, ENGINE.start))?;
    same("file id", u64::from(stamp.file.0), u64::from(u32_at(page, FILE.start)))?;
    same("unit", u64::from(at.unit), u64::from(u32_at(page, UNIT.start)))?;
    same("epoch", at.epoch, epoch(page))?;
    same("units", (page.len() / UNIT_BYTES) as u64, u64::from(u32_at(page, UNITS.start)))?;
    if page[RESERVED].iter().any(|&byte| byte != 0) {
        return Err(Damage::Malformed { what: "reserved bytes are not zero" });
    }
    Ok(Head { kind, height, count: count(page) })
}

/// The epoch a page says it is of.
#[inline]
pub fn epoch(page: &[u8]) -> u64 {
    u64_at(page, EPOCH.start)
}

/// The height a page says it has.
#[inline]
pub fn height(page: &[u8]) -> u8 {
    page[HEIGHT]
}

/// The kind byte of a page.
pub fn kind_byte(page: &[u8]) -> u8 {
    page[KIND]
}

/// The count in a page's header.
#[inline]
pub fn count(page: &[u8]) -> u32 {
    u32_at(page, COUNT.start)
}

/// The slots of a leaf or branch: the offset of entry `at`. The page was checked.
#[inline]
pub fn slot(page: &[u8], at: usize) -> usize {
    usize::from(u16_at(page, HEADER_BYTES + 2 * at))
}

/// Begins to load the header and the first slots of a page. Whatever it holds: this and the next two only load.
#[inline]
pub fn load_head(page: &[u8]) {
    load_lines(page, 0..HEADER_BYTES + 1);
}

/// Begins to load the keys of entry `at` and of those beside it.
#[inline]
pub fn load_keys(page: &[u8], at: usize) {
    for at in at.saturating_sub(1)..at + 2 {
        if HEADER_BYTES + 2 * at + 2 <= page.len() {
            page.get(slot(page, at)).into_iter().for_each(load_soon);
        }
    }
}

/// Begins to load entry `at`.
#[inline]
pub fn load_entry(page: &[u8], at: usize) {
    if HEADER_BYTES + 2 * at + 4 <= page.len() {
        let (start, next) = (slot(page, at), slot(page, at + 1));
        // Behind the last slot is no other: then it is as many bytes as an entry may have in a leaf.
        load_lines(page, start..if next > start { next } else { start + page.len() / 8 });
    }
}

#[inline]
fn load_lines(page: &[u8], range: Range<usize>) {
    let lines = page.get(range.start..range.end.min(page.len())).unwrap_or(&[]);
    lines.iter().step_by(LINE_BYTES).chain(lines.last()).for_each(load_soon);
}

/// Checks that all slots point behind the slots, ascending, into the page.
pub fn check_slots(page: &[u8], count: u32) -> Result<(), Damage> {
    let count = count as usize;
    let first = HEADER_BYTES + 2 * count;
    if first > page.len() {
        return Err(Damage::Malformed { what: "it says that it has more entries than fit" });
    }
    let mut before = first;
    for at in 0..count {
        let offset = slot(page, at);
        if offset < before || offset >= page.len() {
            return Err(Damage::Malformed { what: "an entry's offset is out of place" });
        }
        before = offset + 1;
    }
    Ok(())
}

/// Two little-endian bytes as a number. The page was checked.
#[inline]
pub fn u16_at(page: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([page[at], page[at + 1]])
}

/// Four little-endian bytes as a number. The page was checked.
#[inline]
pub fn u32_at(page: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]])
}

/// Eight little-endian bytes as a number. The page was checked.
#[inline]
pub fn u64_at(page: &[u8], at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&page[at..at + 8]);
    u64::from_le_bytes(bytes)
}
