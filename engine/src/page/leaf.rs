//! Leaves: entries of key, head and body, ascending by key.
//!
//! | bytes | field    | meaning                                                   |
//! |-------|----------|-----------------------------------------------------------|
//! | 0     | flags    | 1: the body is in an extent                               |
//! | 1     | reserved | zero                                                      |
//! | 2..4  | key      | its length                                                |
//! | 4..6  | head     | its length                                                |
//! | 6..10 | body     | its length                                                |
//! | 10..  | key, head, then the body, or where it is: unit u32, epoch u64, crc32 u32    |
//!
//! The body goes to an extent when the entry would take more than a quarter of the page.

use super::layout::{self, HEADER_BYTES, u16_at, u32_at, u64_at};
use super::search;
use crate::error::Damage;
use crate::ids::{PagePtr, UNIT_BYTES};
use crate::limits;
use std::ops::Range;

const ENTRY_HEAD: usize = 10;
const EXTENT_REF: usize = 16;
const IN_EXTENT: u8 = 1;

/// Where an entry's body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyAt<'a> {
    /// In the leaf.
    Here(&'a [u8]),
    /// In an extent.
    There(ExtentRef),
}

/// A pointer to an overflow extent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExtentRef {
    /// Where it is.
    pub ptr: PagePtr,
    /// Bytes of the body in it.
    pub len: u32,
    /// crc32 of the body.
    pub crc: u32,
}

impl ExtentRef {
    /// How many units it takes.
    pub fn units(&self) -> u32 {
        extent_units(self.len as usize)
    }
}

/// Units of an extent for a body of `len` bytes.
pub fn extent_units(len: usize) -> u32 {
    u32::try_from((HEADER_BYTES + len).div_ceil(UNIT_BYTES)).expect("a body is at most BODY_BYTES_MAX")
}

/// One entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    /// The key.
    pub key: &'a [u8],
    /// The part of the value that stays here.
    pub head: &'a [u8],
    /// The rest of it.
    pub body: BodyAt<'a>,
}

impl Entry<'_> {
    /// Bytes of its body in the leaf.
    pub fn body_here(&self) -> &[u8] {
        if let BodyAt::Here(body) = self.body { body } else { &[] }
    }
}

/// A leaf that was checked.
#[derive(Debug, Clone, Copy)]
pub struct Leaf<'a> {
    page: &'a [u8],
}

impl<'a> Leaf<'a> {
    /// A view of a page that passed `check`.
    #[inline]
    pub fn new(page: &'a [u8]) -> Self {
        Leaf { page }
    }

    /// How many entries.
    #[inline]
    pub fn len(&self) -> usize {
        layout::count(self.page) as usize
    }

    /// True if it has none; a tree has no such leaf.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The key of entry `at`.
    #[inline]
    pub fn key(&self, at: usize) -> &'a [u8] {
        let from = layout::slot(self.page, at);
        let start = from + ENTRY_HEAD;
        &self.page[start..start + usize::from(u16_at(self.page, from + 2))]
    }

    /// Entry `at`.
    #[inline]
    pub fn entry(&self, at: usize) -> Entry<'a> {
        let from = layout::slot(self.page, at);
        let key = from + ENTRY_HEAD;
        let head = key + usize::from(u16_at(self.page, from + 2));
        let body = head + usize::from(u16_at(self.page, from + 4));
        let len = u32_at(self.page, from + 6);
        let at = if self.page[from] == IN_EXTENT {
            let ptr = PagePtr { unit: u32_at(self.page, body), epoch: u64_at(self.page, body + 4) };
            BodyAt::There(ExtentRef { ptr, len, crc: u32_at(self.page, body + 12) })
        } else {
            BodyAt::Here(&self.page[body..body + len as usize])
        };
        Entry { key: &self.page[key..head], head: &self.page[head..body], body: at }
    }

    /// The bytes of entry `at`, as they can be copied into another leaf.
    #[inline]
    pub fn raw(&self, at: usize) -> &'a [u8] {
        let from = layout::slot(self.page, at);
        let len = entry_len(self.page, from).unwrap_or(0);
        &self.page[from..from + len]
    }

    /// Bytes of all entries; what lies between them counts too.
    pub fn entry_bytes(&self) -> usize {
        let Some(last) = self.len().checked_sub(1) else { return 0 };
        layout::slot(self.page, last) + self.raw(last).len() - layout::slot(self.page, 0)
    }

    /// The place of `key`, or where it would be.
    pub fn find(&self, key: &[u8]) -> Result<usize, usize> {
        self.find_from(usize::midpoint(0, self.len()), key)
    }

    /// The same, looked for from place `first` on.
    #[inline]
    pub fn find_from(&self, first: usize, key: &[u8]) -> Result<usize, usize> {
        search::find(self.len(), first, key, |at| self.key(at))
    }

    /// Where `key` should be, if the ordinals of the entries lie in `bounds`.
    #[inline]
    pub fn guess(&self, key: &[u8], bounds: &Range<u64>) -> usize {
        search::guess(self.len(), search::ordinal(key), bounds)
    }

    /// The ordinals of its first and behind its last key.
    #[inline]
    pub fn bounds(&self) -> Range<u64> {
        let last = self.len().saturating_sub(1);
        search::ordinal(self.key(0))..search::ordinal(self.key(last)).saturating_add(1)
    }
}

/// Bytes of the entry at `from`, if it ends within the page.
#[inline]
fn entry_len(page: &[u8], from: usize) -> Option<usize> {
    if from + ENTRY_HEAD > page.len() {
        return None;
    }
    let body = if page[from] == IN_EXTENT { EXTENT_REF } else { u32_at(page, from + 6) as usize };
    let fixed = ENTRY_HEAD + usize::from(u16_at(page, from + 2)) + usize::from(u16_at(page, from + 4));
    let len = fixed.checked_add(body)?;
    (from.checked_add(len)? <= page.len()).then_some(len)
}

/// Checks the content of a leaf whose header holds: afterwards no access can leave the page.
pub fn check(page: &[u8], count: u32) -> Result<(), Damage> {
    layout::check_slots(page, count)?;
    if count == 0 {
        return Err(Damage::Malformed { what: "a leaf is empty" });
    }
    let leaf = Leaf::new(page);
    for at in 0..count as usize {
        let from = layout::slot(page, at);
        if page[from] > IN_EXTENT || page.get(from + 1) != Some(&0) {
            return Err(Damage::Malformed { what: "an entry has unknown flags" });
        }
        let Some(len) = entry_len(page, from) else {
            return Err(Damage::Malformed { what: "an entry runs out of its page" });
        };
        if at + 1 < count as usize && from + len > layout::slot(page, at + 1) {
            return Err(Damage::Malformed { what: "two entries overlap" });
        }
        if let BodyAt::There(extent) = leaf.entry(at).body
            && extent.len as usize > limits::BODY_BYTES_MAX
        {
            return Err(Damage::Malformed { what: "a body is larger than any can be" });
        }
        if at > 0 && leaf.key(at - 1) >= leaf.key(at) {
            return Err(Damage::Malformed { what: "its keys are out of order" });
        }
    }
    Ok(())
}

/// Appends an entry as a leaf holds it.
pub fn encode(out: &mut Vec<u8>, entry: Entry<'_>) {
    let (flags, len) = match entry.body {
        BodyAt::Here(body) => (0, u32::try_from(body.len()).expect("an inline body fits its page")),
        BodyAt::There(extent) => (IN_EXTENT, extent.len),
    };
    out.extend_from_slice(&[flags, 0]);
    for part in [entry.key, entry.head] {
        out.extend_from_slice(&u16::try_from(part.len()).expect("limits.rs bounds keys and heads").to_le_bytes());
    }
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(entry.key);
    out.extend_from_slice(entry.head);
    match entry.body {
        BodyAt::Here(body) => out.extend_from_slice(body),
        BodyAt::There(extent) => {
            out.extend_from_slice(&extent.ptr.unit.to_le_bytes());
            out.extend_from_slice(&extent.ptr.epoch.to_le_bytes());
            out.extend_from_slice(&extent.crc.to_le_bytes());
        }
    }
}

/// True if an entry of these lengths keeps its body out of a page of `page_bytes`.
pub fn overflows(key: usize, head: usize, body: usize, page_bytes: usize) -> bool {
    body > EXTENT_REF && 2 + ENTRY_HEAD + key + head + body > (page_bytes - HEADER_BYTES) / 4
}

// Four entries with the longest key and head and a body elsewhere fit the smallest page.
const _: () = assert!(
    4 * (2 + ENTRY_HEAD + limits::TREE_KEY_BYTES_MAX + limits::HEAD_BYTES_MAX + EXTENT_REF)
        <= limits::PAGE_BYTES_MIN - HEADER_BYTES
);
