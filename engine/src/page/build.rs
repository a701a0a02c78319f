//! Filling a leaf or branch with encoded entries.

use super::layout::HEADER_BYTES;

/// A page under construction.
#[derive(Debug)]
pub struct PageBuilder {
    capacity: usize,
    offsets: Vec<usize>,
    entries: Vec<u8>,
}

impl PageBuilder {
    /// An empty page of `page_bytes`.
    pub fn new(page_bytes: usize) -> Self {
        PageBuilder { capacity: page_bytes - HEADER_BYTES, offsets: Vec::new(), entries: Vec::new() }
    }

    /// True if an entry of `len` encoded bytes fits too.
    pub fn fits(&self, len: usize) -> bool {
        self.used() + 2 + len <= self.capacity
    }

    /// Bytes taken by entries and their slots.
    pub fn used(&self) -> usize {
        2 * self.offsets.len() + self.entries.len()
    }

    /// Appends an encoded entry. Requires `fits`.
    pub fn push(&mut self, entry: &[u8]) {
        debug_assert!(self.fits(entry.len()));
        self.offsets.push(self.entries.len());
        self.entries.extend_from_slice(entry);
    }

    /// How many entries.
    pub fn len(&self) -> usize {
        self.offsets.len()
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.offsets.is_empty()
    }

    /// The page's bytes, but for its header, and the count of its entries. Empties the builder.
    pub fn take(&mut self) -> (Vec<u8>, u32) {
        let count = u32::try_from(self.offsets.len()).expect("a page has at most 64 KiB");
        let first = HEADER_BYTES + 2 * self.offsets.len();
        let mut page = vec![0; HEADER_BYTES];
        page.reserve(self.capacity);
        for offset in self.offsets.drain(..) {
            let at = u16::try_from(first + offset).expect("a page has at most 64 KiB");
            page.extend_from_slice(&at.to_le_bytes());
        }
        page.append(&mut self.entries);
        page.resize(HEADER_BYTES + self.capacity, 0);
        (page, count)
    }
}
