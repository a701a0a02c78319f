//! A vacuum that somebody waits for: packs leaves that hold little, and then moves what lies at the end of the file, until
//! that makes it no shorter.

use super::{Ends, PIECE_BYTES, READS, ROUND_BYTES, Round, apply, collect, cut, sparse};
use crate::batch::AdmitError;
use crate::catalog::{Space, Tree};
use crate::core::Core;
use crate::error::{Error, Result};
use crate::ids::UNIT_BYTES;
use crate::tree::PageSource;
use std::sync::Arc;

/// It writes no more between two checkpoints: a long sync would hold up others.
const CHECKPOINT_BYTES: u64 = 4 << 20;

/// Whoever waits for a vacuum of a tree, and knows more about it.
pub trait VacuumUser {
    /// Bytes of entries that lie between these keys, both included, and that [`VacuumUser::take_out`] would take.
    fn goes(&self, first: &[u8], last: &[u8]) -> u64;

    /// Takes out what is to go, up to the key `next` or to the end; how many entries.
    ///
    /// # Errors
    /// End the vacuum.
    fn take_out(&mut self, next: Option<&[u8]>) -> Result<u64>;

    /// About so many more bytes are to be written.
    fn wrote(&mut self, bytes: u64);

    /// So many bytes were given back to the disk, and there is more.
    fn gave_back(&mut self, bytes: u64);
}

/// Knows nothing, and goes as fast as it can.
impl VacuumUser for () {
    fn goes(&self, _: &[u8], _: &[u8]) -> u64 {
        0
    }

    fn take_out(&mut self, _: Option<&[u8]>) -> Result<u64> {
        Ok(0)
    }

    fn wrote(&mut self, _: u64) {}

    fn gave_back(&mut self, _: u64) {}
}

/// Where the file ends then, in bytes.
pub fn vacuum(core: &Arc<Core>, space: &Space, tree: &Tree, user: &mut dyn VacuumUser) -> Result<u64> {
    tree.room.lock().vacuums += 1;
    let mut asked = Asked { core, space, tree, user, unwritten: 0 };
    let end = asked.pack().and_then(|()| asked.shorten());
    tree.room.lock().vacuums -= 1;
    end
}

struct Asked<'a> {
    core: &'a Arc<Core>,
    space: &'a Space,
    tree: &'a Tree,
    user: &'a mut dyn VacuumUser,
    /// Bytes that the next checkpoint is to write for it.
    unwritten: u64,
}

impl Asked<'_> {
    /// Goes over the tree once.
    fn pack(&mut self) -> Result<()> {
        let (mut from, mut limit) = (Vec::new(), ROUND_BYTES);
        let mut left = Left::new(self.tree.in_use());
        loop {
            self.make_room()?;
            let round = sparse::collect(self.tree, &from, limit, self.user)?;
            let (packed, read, next) = (round.moved, round.read, round.next.clone());
            if !self.put(round, &mut limit)? {
                continue;
            }
            let taken = self.user.take_out(next.as_deref())?;
            // A leaf is written once, whatever goes of it.
            let written = packed.max(read.min(taken.saturating_mul(self.tree.file.page_bytes() as u64)));
            self.note(written, read);
            match next {
                Some(key) if left.is_more(read) => from = key,
                _ => return Ok(()),
            }
        }
    }

    /// Passes over the tree, as long as each makes its file shorter.
    fn shorten(&mut self) -> Result<u64> {
        let mut end_before = u32::MAX;
        loop {
            // Twice: what the first checkpoint gives up is free after the second.
            (0..2).try_for_each(|_| self.core.flush().wait())?;
            self.unwritten = 0;
            let Ends { end, unused, .. } = self.cut()?;
            // Not for the last few units, which others take meanwhile.
            let shorter = end_before.saturating_sub(end) > end / 128;
            if unused == 0 || !shorter || !self.pass(end, end - unused)? {
                return Ok(u64::from(end) * UNIT_BYTES as u64);
            }
            end_before = end;
        }
    }

    /// Gives back all that is free at the end of the file.
    fn cut(&mut self) -> Result<Ends> {
        loop {
            self.core.poison.check()?;
            let ends = cut(self.core, self.space, self.tree)?;
            let ends = ends.ok_or_else(|| Error::invalid("the tree is dropped"))?;
            if !ends.more {
                return Ok(ends);
            }
            self.user.gave_back(PIECE_BYTES);
        }
    }

    /// Moves what lies at `target` or behind in a file that ends at `end`; false if there is nothing.
    fn pass(&mut self, end: u32, target: u32) -> Result<bool> {
        let (mut from, mut moves, mut limit) = (Vec::new(), false, ROUND_BYTES);
        let mut left = Left::new(u64::from(end - target) * UNIT_BYTES as u64);
        loop {
            self.make_room()?;
            let round = collect(self.tree, target, &from, limit)?;
            let (moved, read, is_empty, next) = (round.moved, round.read, round.is_empty(), round.next.clone());
            if !self.put(round, &mut limit)? {
                continue;
            }
            moves |= !is_empty;
            self.note(moved, read);
            match next {
                Some(key) if left.is_more(moved) => from = key,
                _ => return Ok(moves),
            }
        }
    }

    /// So many bytes are to be written, and some were read.
    fn note(&mut self, written: u64, read: u64) {
        self.unwritten += written;
        self.user.wrote(written.max(read / READS));
    }

    /// Has what was collected so far written, once that is enough.
    fn make_room(&mut self) -> Result<()> {
        self.core.poison.check()?;
        if self.space.is_dropped() {
            return Err(Error::invalid("the tree is dropped"));
        }
        if self.unwritten >= CHECKPOINT_BYTES || self.core.buffered() > self.core.options.buffer_bytes / 2 {
            self.core.flush().wait()?;
            self.unwritten = 0;
        }
        Ok(())
    }

    /// Puts a round into the buffer; false if the tree has changed since: then the next is to be half as long.
    fn put(&self, round: Round, limit: &mut u64) -> Result<bool> {
        if round.is_empty() {
            return Ok(true);
        }
        let cost = round.cost(self.tree);
        let mut admission = loop {
            match self.core.admit(cost) {
                Ok(admission) => break admission,
                Err(AdmitError::Short(ticket)) => ticket.wait()?,
                Err(AdmitError::Refused(error)) => return Err(error),
            }
        };
        let done = apply(self.core, self.space, self.tree, round, &mut admission);
        *limit = if done { ROUND_BYTES } else { (*limit / 2).max(1) };
        Ok(done)
    }
}

/// How much a pass may still come upon: what others write meanwhile lies behind it, and it would never end.
struct Left(u64);

impl Left {
    /// Of a pass that is of about so much.
    fn new(bytes: u64) -> Self {
        Left(bytes.saturating_mul(2) + ROUND_BYTES)
    }

    fn is_more(&mut self, bytes: u64) -> bool {
        self.0 = self.0.saturating_sub(bytes);
        self.0 > 0
    }
}
