//! What pages mean together: a copy-on-write B+tree of keys to (head, body).
//!
//! Never does I/O: pages come from a [`PageSource`] and go to a [`PageSink`]. A tree is its
//! [`Root`]; [`edit()`] gives a new root and leaves the old tree whole. All leaves are at the same
//! depth, no node is empty, and nodes at the right edge of a rising tree are full.

mod cursor;
mod edit;
mod pack;
mod reach;
mod seek;
mod leaves;
mod newest;
mod survey;

pub use cursor::Cursor;
pub use edit::edit;
pub use leaves::{Leaves, Low, Place};
pub use newest::Newest;
pub use reach::{Reached, TreeShape, reach};
pub use seek::{Lent, find, get, get_many, leaves_of};
pub use survey::{Surveyor, survey};

use crate::codec::Reader;
use crate::disk::Mapping;
use crate::error::{Damage, Result};
use crate::ids::PagePtr;
use crate::limits;
use crate::page::leaf::{BodyAt, ExtentRef};
use bytes::Bytes;
use std::ops::{Deref, Range};
use std::sync::Arc;

/// What becomes of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Edit {
    /// It gets this value.
    Put {
        /// The part that always stays in the leaf, at most `HEAD_BYTES_MAX` bytes.
        head: Bytes,
        /// The part that may overflow, at most `BODY_BYTES_MAX` bytes.
        body: Bytes,
    },
    /// It goes.
    Remove,
}

impl Edit {
    /// The bytes it holds.
    pub fn len(&self) -> usize {
        match self {
            Edit::Put { head, body } => head.len() + body.len(),
            Edit::Remove => 0,
        }
    }

    /// True if it holds no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// True if a tree can hold it under `key`.
    pub fn fits(&self, key: &[u8]) -> bool {
        let value = match self {
            Edit::Put { head, body } => head.len() <= limits::HEAD_BYTES_MAX && body.len() <= limits::BODY_BYTES_MAX,
            Edit::Remove => true,
        };
        value && key.len() <= limits::TREE_KEY_BYTES_MAX
    }
}

/// A tree as of one commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Root {
    /// The top page; None for an empty tree.
    pub ptr: Option<PagePtr>,
    /// The height of the top page: 0 if it is a leaf.
    pub height: u8,
    /// How many entries.
    pub entries: u64,
}

impl Root {
    /// Appends its 22 bytes: present u8, height u8, unit u32, epoch u64, entries u64.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let ptr = self.ptr.unwrap_or(PagePtr { unit: 0, epoch: 0 });
        out.extend_from_slice(&[u8::from(self.ptr.is_some()), self.height]);
        out.extend_from_slice(&ptr.unit.to_le_bytes());
        out.extend_from_slice(&ptr.epoch.to_le_bytes());
        out.extend_from_slice(&self.entries.to_le_bytes());
    }

    /// Reads what `encode` wrote.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, Damage> {
        let (present, height) = (reader.u8()?, reader.u8()?);
        let ptr = PagePtr { unit: reader.u32()?, epoch: reader.u64()? };
        let entries = reader.u64()?;
        match present {
            0 => Ok(Root::default()),
            1 => Ok(Root { ptr: Some(ptr), height, entries }),
            _ => Err(Damage::Malformed { what: "a root is neither there nor absent" }),
        }
    }

    /// Levels of pages.
    pub fn depth(&self) -> u32 {
        if self.ptr.is_some() { u32::from(self.height) + 1 } else { 0 }
    }
}

/// The bytes of a checked page.
#[derive(Debug, Clone)]
pub enum PageRef<'a> {
    /// In a mapping that the source keeps.
    Lent(&'a [u8]),
    /// In a mapping that this keeps.
    Mapped(Arc<dyn Mapping>, Range<usize>),
    /// In memory of its own.
    Owned(Arc<[u8]>),
}

impl Deref for PageRef<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            PageRef::Lent(bytes) => bytes,
            PageRef::Mapped(mapping, range) => &mapping.bytes()[range.clone()],
            PageRef::Owned(bytes) => bytes,
        }
    }
}

/// Where a tree reads its pages.
pub trait PageSource: Send + Sync {
    /// The checked page that `ptr` names, of this height.
    fn page(&self, ptr: PagePtr, height: u8) -> Result<PageRef<'_>>;
    /// Begins to load the first lines of a page that is asked for next, if that can be done without waiting.
    fn load_ahead(&self, _ptr: PagePtr) {}
    /// False if the page would have to be read from a device, as far as can be told without waiting.
    fn is_near(&self, _ptr: PagePtr) -> bool {
        true
    }
    /// Begins to read pages that are asked for soon, if that can be done without waiting.
    fn will_read(&self, _pages: &mut dyn Iterator<Item = PagePtr>) {}
    /// The checked body in an overflow extent.
    fn extent(&self, extent: ExtentRef) -> Result<Bytes>;
    /// Bytes of a page.
    fn page_bytes(&self) -> usize;
}

/// Where an edit puts new pages.
pub trait PageSink {
    /// Takes room for a page or extent of `units`.
    fn allocate(&mut self, units: u32) -> Result<PagePtr>;
    /// Takes a tree page with everything but its header in place.
    fn write(&mut self, ptr: PagePtr, page: Vec<u8>, head: crate::page::Head) -> Result<()>;
    /// Takes the body of an overflow extent.
    fn write_extent(&mut self, ptr: PagePtr, body: &Bytes) -> Result<()>;
    /// Gives up a page or extent of the old tree.
    fn free(&mut self, ptr: PagePtr, units: u32);
    /// Gives up an extent of the old tree.
    fn free_extent(&mut self, extent: ExtentRef) {
        self.free(extent.ptr, extent.units());
    }
}

/// A body, in memory or in an extent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// Copied out of its leaf.
    Inline(Bytes),
    /// Still in its extent.
    Extent(ExtentRef),
}

impl Body {
    /// Bytes of it.
    pub fn len(&self) -> u32 {
        match self {
            Body::Inline(bytes) => u32::try_from(bytes.len()).expect("an inline body fits its page"),
            Body::Extent(extent) => extent.len,
        }
    }

    /// True if it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Its bytes.
    pub fn load(&self, source: &dyn PageSource) -> Result<Bytes> {
        match self {
            Body::Inline(bytes) => Ok(bytes.clone()),
            Body::Extent(extent) => source.extent(*extent),
        }
    }
}

/// A value found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The part that stays in the leaf.
    pub head: Bytes,
    /// The rest.
    pub body: Body,
}

impl Entry {
    /// A copy: one allocation for head and inline body.
    pub fn copy(lent: Lent<'_>) -> Self {
        let mut head = Bytes::copy_from_slice(lent.joined);
        let body = head.split_off(lent.head.len());
        Entry {
            head,
            body: if let BodyAt::There(extent) = lent.body { Body::Extent(extent) } else { Body::Inline(body) },
        }
    }
}

#[cfg(test)]
mod tests;
