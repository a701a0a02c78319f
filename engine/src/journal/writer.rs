//! Writing: one group written, one group synced.

use super::group::{GROUP_HEAD_BYTES, GroupHead, sectors};
use super::segment::{SEGMENT_DATA, Segment, SegmentHead};
use super::{Journal, Pending};
use crate::defect::{Defect, is_on};
use crate::disk::DiskFile;
use crate::error::{Error, Result};
use crate::ids::SpaceId;
use crate::manifest::JournalStart;
use crate::ticket::Position;
use std::sync::Arc;

/// The largest buffer that is kept for the next group.
const SPARE_BYTES_MAX: usize = 4 << 20;

/// Writes groups. One per journal.
#[derive(Debug)]
pub(super) struct Writer {
    /// The segment in use and the offset of the next group in it; None before the first group.
    tail: Option<Tail>,
    next_number: u64,
    sequence: u64,
    chain: u32,
    written: Option<Written>,
    /// A buffer that went through, for the next group to fill.
    spare: Vec<u8>,
    /// Records of the last group.
    pub(super) records: u32,
    /// True once the journal's job is gone: nothing is written any more.
    pub(super) closed: bool,
}

#[derive(Debug)]
struct Tail {
    segment: Segment,
    number: u64,
    offset: u64,
}

/// A group that is written and not yet synced.
#[derive(Debug)]
struct Written {
    files: Vec<Arc<dyn DiskFile>>,
    after: JournalStart,
    spaces: Vec<SpaceId>,
}

impl Writer {
    /// Writes what follows `start`.
    pub(super) fn new(start: JournalStart) -> Self {
        Writer {
            tail: None,
            next_number: start.segment,
            sequence: start.sequence,
            chain: start.chain,
            written: None,
            spare: Vec::new(),
            records: 0,
            closed: false,
        }
    }

    /// Syncs what is written, or writes what is pending; false if there is neither.
    pub(super) fn write_step(&mut self, journal: &Journal) -> Result<bool> {
        if let Some(written) = self.written.take() {
            if !is_on(Defect::SkipSync) {
                written.files.iter().try_for_each(|file| file.sync_data())?;
            }
            journal.publish(&written);
            return Ok(true);
        }
        let pending = self.take_pending(journal);
        if pending.records == 0 {
            return Ok(false);
        }
        self.records = pending.records;
        let written = self.write(journal, pending)?;
        if is_on(Defect::PublishBeforeDurable) {
            journal.publish(&written);
        }
        self.written = Some(written);
        Ok(true)
    }

    fn take_pending(&mut self, journal: &Journal) -> Pending {
        let mut pending = journal.pending.lock();
        if pending.records == 0 {
            return Pending::default();
        }
        let empty = Pending { bytes: std::mem::take(&mut self.spare), last: pending.last, ..Pending::default() };
        std::mem::replace(&mut *pending, empty)
    }

    /// Writes a group behind the last one, over as many segments as it takes.
    fn write(&mut self, journal: &Journal, pending: Pending) -> Result<Written> {
        let Pending { mut bytes, records, last, charged, spaces } = pending;
        let mut files = Vec::with_capacity(1);
        let (number, offset) = self.place(journal)?;
        let body = &bytes[GROUP_HEAD_BYTES..];
        let head = GroupHead {
            session: session_tag(journal.session, journal.engine),
            segment: number,
            sequence: self.sequence,
            first: Position(last + 1 - u64::from(records)),
            length: body.len() as u64,
            records,
            body: crc32fast::hash(body),
            chain: self.chain,
        };
        let (head, crc) = head.encode();
        bytes[..GROUP_HEAD_BYTES].copy_from_slice(&head);
        let padded = usize::try_from(sectors(bytes.len() as u64)).expect("a group is in memory");
        bytes.resize(padded, 0);

        let mut rest = &bytes[..];
        let mut at = offset;
        while !rest.is_empty() {
            let tail = self.tail.as_mut().expect("place() gave a segment, and so does next_segment()");
            let fits = tail.segment.bytes.saturating_sub(at).min(rest.len() as u64);
            let (now, later) = rest.split_at(usize::try_from(fits).expect("a part of a slice"));
            if at == SEGMENT_DATA {
                // The head of a segment becomes durable with the first bytes in it.
                let mut first = journal.head_of(tail).encode().to_vec();
                first.extend_from_slice(now);
                tail.segment.file.write_at(&first, 0)?;
            } else {
                tail.segment.file.write_at(now, at)?;
            }
            tail.offset = at + fits;
            files.push(Arc::clone(&tail.segment.file));
            rest = later;
            if !rest.is_empty() {
                at = self.next_segment(journal)?;
            }
        }
        self.sequence += 1;
        self.chain = crc;
        let mut room = journal.room.lock();
        room.free = room.free.saturating_sub(padded as u64);
        // That is more than the group took: who was refused may have room now.
        room.charged -= charged;
        room.groups += 1;
        room.written += padded as u64;
        let grew = room.wanted > 0 && !room.is_wanted();
        drop(room);
        if grew {
            journal.room_grew();
        }
        bytes.clear();
        // One large group is no reason to keep so much for ever.
        self.spare = if bytes.capacity() <= SPARE_BYTES_MAX { bytes } else { Vec::new() };
        let tail = self.tail.as_ref().expect("a group was just written to it");
        let after = JournalStart {
            segment: tail.number,
            offset: tail.offset,
            sequence: self.sequence,
            chain: crc,
            position: Position(last),
        };
        Ok(Written { files, after, spaces })
    }

    /// Where the next group goes: behind the last one, or to a fresh segment if that one is full.
    fn place(&mut self, journal: &Journal) -> Result<(u64, u64)> {
        let full = self.tail.as_ref().is_none_or(|tail| tail.offset + SEGMENT_DATA > tail.segment.bytes);
        if full {
            self.next_segment(journal)?;
        }
        let tail = self.tail.as_ref().expect("next_segment() set it");
        Ok((tail.number, tail.offset))
    }

    /// Begins a ready segment; returns the offset of its first group.
    fn next_segment(&mut self, journal: &Journal) -> Result<u64> {
        let mut room = journal.room.lock();
        let segment = room.ready.pop_front().ok_or(Error::Closed)?;
        let number = self.next_number;
        self.next_number += 1;
        room.used.push_back((number, segment.clone()));
        drop(room);
        journal.segments.raise();
        self.tail = Some(Tail { segment, number, offset: SEGMENT_DATA });
        Ok(SEGMENT_DATA)
    }
}

impl Journal {
    fn publish(&self, written: &Written) {
        *self.boundary.lock() = written.after;
        // A checkpoint may make room now that could not when it was asked for some.
        if self.is_short() {
            self.checkpoint.raise();
        }
        (self.on_durable)(&written.spaces, written.after.position);
        self.durable.advance(written.after.position);
    }

    fn head_of(&self, tail: &Tail) -> SegmentHead {
        let Tail { number, segment, .. } = tail;
        SegmentHead { engine: self.engine, session: self.session, number: *number, bytes: segment.bytes }
    }
}

/// The session as groups carry it: mixed with the store's identity, so that a value that holds a
/// piece of another store's journal is never taken for a group.
pub(super) fn session_tag(session: u64, engine: u128) -> u64 {
    let [low, high] = [engine as u64, (engine >> 64) as u64];
    session ^ low.rotate_left(17) ^ high
}
