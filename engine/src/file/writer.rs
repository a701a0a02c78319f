//! New pages on their way to a tree file: collected, put in the order of the file, and written in large pieces.

use super::{Opened, TreeFile};
use crate::error::Result;
use crate::ids::{PagePtr, UNIT_BYTES};
use crate::page::layout::{self, HEADER_BYTES};
use crate::page::leaf::ExtentRef;
use crate::page::{Head, Kind};
use crate::run::let_others_run;
use crate::space::{Extent, FreeSpace};
use crate::tree::PageSink;
use bytes::Bytes;
use std::sync::Arc;

/// Neighbouring pages are written together, in pieces that end where this many bytes do. As many are a huge page of
/// x86-64: what the system keeps of a file in pieces that were written whole it maps whole, and a lookup that jumps
/// around a large file spends half of its time on the tables of smaller pages.
const PIECE_BYTES: usize = 2 << 20;
/// While a sweep takes rows out, which is meant to go unnoticed, pieces are smaller: where the system does not interrupt
/// a write, whoever wakes up on that processor waits for the whole of it.
const SMALL_PIECE_BYTES: usize = 128 << 10;
/// Pages are streamed out once this much has been collected.
const COLLECT_BYTES_MAX: usize = 4 << 20;

/// After so many pages and pieces, some 0.2 ms, whoever waits for this processor gets it, if that is asked for.
const BREATH: u32 = 8;

/// What a writer did.
#[derive(Debug, Default)]
pub struct Written {
    /// Units it took.
    pub taken: Vec<Extent>,
    /// Units of the old tree that the new one does not reach.
    pub freed: Vec<Extent>,
    /// Bytes written.
    pub bytes: u64,
    /// How many more overflow extents the new tree has than the old one.
    pub extents: i64,
}

/// New pages of one checkpoint on their way to the file. If it is dropped unfinished, what it took
/// is free again.
#[derive(Debug)]
pub struct TreeWriter<'a> {
    tree: &'a TreeFile,
    opened: Arc<Opened>,
    space: &'a mut FreeSpace,
    epoch: u64,
    /// Pieces end at multiples of this.
    piece_bytes: usize,
    /// Pages and pieces for which others are still to run in between.
    breath: u32,
    /// Bytes and where they begin in the file.
    pages: Vec<(u64, Vec<u8>)>,
    collected: usize,
    written: Written,
}

impl<'a> TreeWriter<'a> {
    pub(super) fn new(tree: &'a TreeFile, opened: Arc<Opened>, space: &'a mut FreeSpace, epoch: u64) -> Self {
        TreeWriter {
            tree,
            opened,
            space,
            epoch,
            piece_bytes: PIECE_BYTES,
            breath: 0,
            pages: Vec::new(),
            collected: 0,
            written: Written::default(),
        }
    }
}

impl TreeWriter<'_> {
    /// From now on no write takes long.
    pub fn write_small_pieces(&mut self) {
        self.piece_bytes = SMALL_PIECE_BYTES;
    }

    /// From now on others are let run in between, so often. A scheduler that preempts nobody before the end of its slice, or
    /// before the next tick, else lets whoever wakes up on this processor wait for some milliseconds.
    pub fn give_way(&mut self, breaths: u32) {
        self.breath = BREATH * breaths;
    }

    fn breathe(&mut self) {
        if self.breath > 0 {
            self.breath -= 1;
            if self.breath.is_multiple_of(BREATH) {
                let_others_run();
            }
        }
    }

    /// Writes what is collected. Not synced.
    pub fn finish(mut self) -> Result<Written> {
        self.flush(true)?;
        Ok(std::mem::take(&mut self.written))
    }

    fn put(&mut self, ptr: PagePtr, mut bytes: Vec<u8>, head: Head) -> Result<()> {
        layout::seal(&mut bytes, self.tree.stamp, ptr, head);
        self.collected += bytes.len();
        self.pages.push((u64::from(ptr.unit) * UNIT_BYTES as u64, bytes));
        self.breathe();
        if self.collected >= COLLECT_BYTES_MAX { self.flush(false) } else { Ok(()) }
    }

    /// Writes what is collected, but for a last piece that may get longer, unless that is `all`.
    fn flush(&mut self, all: bool) -> Result<()> {
        self.pages.sort_unstable_by_key(|(start, _)| *start);
        if let Some(mapped) = self.opened.mapped.load().as_ref() {
            // These units hold other pages now; they are checked again before they are used.
            let units = self.pages.iter().map(|(start, _)| (start / UNIT_BYTES as u64) as u32);
            units.for_each(|unit| mapped.set_checked(unit, false));
        }
        let (mut at, mut piece) = (0, Vec::with_capacity(self.piece_bytes));
        for (start, page) in std::mem::take(&mut self.pages) {
            if start != at {
                self.write_before(at, &mut piece)?;
                at = start;
            }
            let mut rest = &page[..];
            while !rest.is_empty() {
                let room = self.piece_bytes - at as usize % self.piece_bytes;
                let (now, later) = rest.split_at(room.min(rest.len()));
                piece.extend_from_slice(now);
                at += now.len() as u64;
                rest = later;
                if now.len() == room {
                    self.write_before(at, &mut piece)?;
                }
            }
        }
        self.collected = 0;
        if all {
            return self.write_before(at, &mut piece);
        }
        if !piece.is_empty() {
            self.collected = piece.len();
            self.pages.push((at - piece.len() as u64, piece));
        }
        Ok(())
    }

    /// Writes a piece that ends at `end`.
    fn write_before(&mut self, end: u64, piece: &mut Vec<u8>) -> Result<()> {
        if piece.is_empty() {
            return Ok(());
        }
        self.written.bytes += piece.len() as u64;
        self.opened.file.write_at(piece, end - piece.len() as u64)?;
        piece.clear();
        self.breathe();
        Ok(())
    }
}

impl PageSink for TreeWriter<'_> {
    fn allocate(&mut self, units: u32) -> Result<PagePtr> {
        let unit = self.space.allocate(units)?;
        self.written.taken.push(Extent { unit, units });
        Ok(PagePtr { unit, epoch: self.epoch })
    }

    fn write(&mut self, ptr: PagePtr, page: Vec<u8>, head: Head) -> Result<()> {
        self.put(ptr, page, head)
    }

    fn write_extent(&mut self, ptr: PagePtr, body: &Bytes) -> Result<()> {
        let mut bytes = Vec::with_capacity((HEADER_BYTES + body.len()).next_multiple_of(UNIT_BYTES));
        bytes.resize(HEADER_BYTES, 0);
        bytes.extend_from_slice(body);
        bytes.resize(bytes.len().next_multiple_of(UNIT_BYTES), 0);
        let count = u32::try_from(body.len()).expect("a body is at most BODY_BYTES_MAX");
        self.written.extents += 1;
        self.put(ptr, bytes, Head { kind: Kind::Overflow, height: 0, count })
    }

    fn free_extent(&mut self, extent: ExtentRef) {
        self.written.extents -= 1;
        self.free(extent.ptr, extent.units());
    }

    fn free(&mut self, ptr: PagePtr, units: u32) {
        self.written.freed.push(Extent { unit: ptr.unit, units });
    }
}

impl Drop for TreeWriter<'_> {
    fn drop(&mut self) {
        for extent in self.written.taken.drain(..) {
            self.space.release(extent);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::Disk;
    use crate::disk::sim::SimDisk;
    use crate::file::{FileSpec, ReadMode};
    use crate::ids::TreeId;
    use crate::run::threads::others_ran;
    use std::path::Path;

    /// Whatever the size of pages, and of what is collected before it is written.
    #[test]
    #[cfg_attr(miri, ignore = "megabytes")]
    fn what_is_written_together_ends_where_huge_pages_do() {
        let sim = SimDisk::new(1);
        let disk: Arc<dyn Disk> = Arc::new(sim.clone());
        disk.create_dir(Path::new("/s")).unwrap();
        let file = TreeFile::create(
            &disk,
            FileSpec { path: "/s/t".into(), engine: 77, tree: TreeId(4), page_bytes: 16_384 },
            ReadMode::default(),
        );
        let file = file.unwrap();
        let mut space = FreeSpace::unknown(1);
        let mut writer = file.writer(&mut space, 5).unwrap();
        // From the second unit on, so that pages lie across the ends of pieces.
        let pages = 9 * PIECE_BYTES / 2 / 16_384;
        let writes = sim.writes();
        let write = |writer: &mut TreeWriter<'_>| {
            for _ in 0..pages {
                let ptr = writer.allocate(4).unwrap();
                writer.write(ptr, vec![0; 16_384], Head { kind: Kind::Leaf, height: 0, count: 0 }).unwrap();
            }
        };
        write(&mut writer);
        let written = writer.finish().unwrap();
        assert_eq!(
            (written.bytes, sim.writes() - writes),
            (pages as u64 * 16_384, 5),
            "four that end so, and the rest"
        );
        let mut writer = file.writer(&mut space, 6).unwrap();
        writer.write_small_pieces();
        writer.give_way(9);
        let before = others_ran();
        let writes = sim.writes();
        write(&mut writer);
        assert_eq!(others_ran() - before, 9);
        let written = writer.finish().unwrap();
        let pieces = written.bytes / SMALL_PIECE_BYTES as u64;
        assert!((pieces..pieces + 3).contains(&(sim.writes() - writes)));
    }
}
