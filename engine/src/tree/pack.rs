//! Items of neighbouring nodes on their way into new pages.
//!
//! A [`Run`] lists encoded entries (or children) without copying what stands in old pages or in the
//! batch: an item says where its bytes are. [`Run::pack`] cuts it into pages: full ones where keys
//! only rise, else of even size.

use super::{Edit, PageRef, PageSink};
use crate::error::Result;
use crate::ids::{PagePtr, UNIT_BYTES};
use crate::page::build::PageBuilder;
use crate::page::layout::{HEADER_BYTES, u16_at};
use crate::page::leaf::{BodyAt, Entry};
use crate::page::{Head, Kind, branch, leaf};
use bytes::Bytes;

/// Where the bytes of an item are.
#[derive(Debug, Clone, Copy)]
enum Item {
    /// In an old page.
    Old { page: u32, start: u32, len: u32 },
    /// In the batch: a put whose body stays in the leaf.
    New { edit: u32, len: u32 },
    /// In the run's own memory: a child, or an entry with an extent.
    Made { start: u32, len: u32 },
}

/// Encoded items of one height, ascending.
#[derive(Debug, Default)]
pub(super) struct Run<'a> {
    items: Vec<Item>,
    pages: Vec<PageRef<'a>>,
    made: Vec<u8>,
    bytes: usize,
    /// True if the keys of all new items are above all old ones: pages are filled to the brim.
    pub(super) rising: bool,
}

/// A new page and the lowest key in it.
#[derive(Debug)]
pub(super) struct Packed {
    pub(super) key: Vec<u8>,
    pub(super) ptr: PagePtr,
}

impl<'a> Run<'a> {
    /// An empty run.
    pub(super) fn new(rising: bool) -> Self {
        Run { rising, ..Run::default() }
    }

    /// Bytes that the items and their slots take in pages.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Lets items refer to `page`.
    pub(super) fn hold(&mut self, page: PageRef<'a>) -> u32 {
        self.pages.push(page);
        index(self.pages.len() - 1)
    }

    /// An item of a held page.
    pub(super) fn push_old(&mut self, page: u32, start: usize, len: usize) {
        self.push(Item::Old { page, start: index(start), len: index(len) });
    }

    /// A put of the batch, with its encoded length.
    pub(super) fn push_new(&mut self, edit: usize, len: usize) {
        self.push(Item::New { edit: index(edit), len: index(len) });
    }

    /// An item encoded by `encode`.
    pub(super) fn push_made(&mut self, encode: impl FnOnce(&mut Vec<u8>)) {
        let start = self.made.len();
        encode(&mut self.made);
        self.push(Item::Made { start: index(start), len: index(self.made.len() - start) });
    }

    /// A child.
    pub(super) fn push_child(&mut self, key: &[u8], ptr: PagePtr) {
        self.push_made(|out| branch::encode(out, key, ptr));
    }

    /// Takes the last item off; its key has to be known to the caller.
    pub(super) fn pop(&mut self) {
        if let Some(item) = self.items.pop() {
            self.bytes -= 2 + item.len();
        }
    }

    /// Appends another run's items.
    pub(super) fn absorb(&mut self, other: Run<'a>) {
        let (pages, made) = (index(self.pages.len()), index(self.made.len()));
        self.rising = if self.items.is_empty() { other.rising } else { self.rising && other.rising };
        self.bytes += other.bytes;
        self.pages.extend(other.pages);
        self.made.extend(other.made);
        self.items.extend(other.items.into_iter().map(|item| match item {
            Item::Old { page, start, len } => Item::Old { page: page + pages, start, len },
            Item::Made { start, len } => Item::Made { start: start + made, len },
            new @ Item::New { .. } => new,
        }));
    }

    /// Writes the items into new pages of `height`.
    pub(super) fn pack(
        self,
        height: u8,
        page_bytes: usize,
        edits: &[(Bytes, Edit)],
        sink: &mut dyn PageSink,
    ) -> Result<Vec<Packed>> {
        let capacity = page_bytes - HEADER_BYTES;
        let target = if self.rising { capacity } else { self.bytes.div_ceil(self.bytes.div_ceil(capacity).max(1)) };
        let mut packed = Vec::new();
        let mut builder = PageBuilder::new(page_bytes);
        let mut key = Vec::new();
        let mut encoded = Vec::new();
        for item in &self.items {
            if !builder.is_empty() && (builder.used() >= target || !builder.fits(item.len())) {
                packed.push(flush(&mut builder, std::mem::take(&mut key), height, page_bytes, sink)?);
            }
            let bytes = self.bytes_of(*item, edits, &mut encoded);
            if builder.is_empty() {
                key.extend_from_slice(key_of(bytes, height));
            }
            builder.push(bytes);
        }
        if !builder.is_empty() {
            packed.push(flush(&mut builder, key, height, page_bytes, sink)?);
        }
        Ok(packed)
    }

    /// The only child of a branch that has one.
    pub(super) fn only_child(&self) -> Option<PagePtr> {
        let [item] = self.items[..] else { return None };
        let mut none = Vec::new();
        let bytes = self.bytes_of(item, &[], &mut none);
        let [unit, epoch] = [&bytes[2..6], &bytes[6..14]];
        Some(PagePtr { unit: crate::page::layout::u32_at(unit, 0), epoch: crate::page::layout::u64_at(epoch, 0) })
    }

    fn push(&mut self, item: Item) {
        self.bytes += 2 + item.len();
        self.items.push(item);
    }

    fn bytes_of<'b>(&'b self, item: Item, edits: &[(Bytes, Edit)], encoded: &'b mut Vec<u8>) -> &'b [u8] {
        match item {
            Item::Old { page, start, len } => &self.pages[page as usize][start as usize..][..len as usize],
            Item::Made { start, len } => &self.made[start as usize..][..len as usize],
            Item::New { edit, .. } => {
                encoded.clear();
                if let (key, Edit::Put { head, body }) = &edits[edit as usize] {
                    leaf::encode(encoded, Entry { key, head, body: BodyAt::Here(body) });
                }
                encoded
            }
        }
    }
}

impl Item {
    fn len(self) -> usize {
        match self {
            Item::Old { len, .. } | Item::New { len, .. } | Item::Made { len, .. } => len as usize,
        }
    }
}

fn flush(
    builder: &mut PageBuilder,
    key: Vec<u8>,
    height: u8,
    page_bytes: usize,
    sink: &mut dyn PageSink,
) -> Result<Packed> {
    let (page, count) = builder.take();
    let ptr = sink.allocate(index(page_bytes / UNIT_BYTES))?;
    let kind = if height == 0 { Kind::Leaf } else { Kind::Branch };
    sink.write(ptr, page, Head { kind, height, count })?;
    Ok(Packed { key, ptr })
}

/// The key of an encoded entry or child.
fn key_of(item: &[u8], height: u8) -> &[u8] {
    let (len, start) = if height == 0 { (u16_at(item, 2), 10) } else { (u16_at(item, 0), 14) };
    &item[start..start + usize::from(len)]
}

fn index(value: usize) -> u32 {
    u32::try_from(value).expect("a run is far below 4 GiB: batches are bounded by the write buffers")
}
