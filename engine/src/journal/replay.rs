//! Reading the journal back, and telling a torn end from damage.
//!
//! Replay stops at the first group that does not fit: another session, sequence, chain or position,
//! a bad checksum, or the end of the segments. Because a group is written only after the one before
//! it is synced, a good group of the same session *behind* that place proves that something synced
//! is gone: then open refuses. Else what stands there is the unsynced end of the journal.

use super::group::{GROUP_HEAD_BYTES, GroupHead, take_record};
use super::segment::{SEGMENT_DATA, Segment};
use super::writer::session_tag;
use crate::codec::Reader;
use crate::disk::SECTOR_BYTES;
use crate::error::{Damage, Error, Place, Result};
use crate::ids::SpaceId;
use crate::manifest::JournalStart;
use crate::ticket::Position;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// What replay found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Replayed {
    /// Groups read.
    pub groups: u64,
    /// Records in them.
    pub records: u64,
    /// Groups that ran over more than one segment.
    pub spanning: u64,
    /// The last position read.
    pub last: Position,
    /// The highest segment number seen in use.
    pub last_segment: u64,
    /// The unsynced end that was dropped, if there was one.
    pub dropped: Option<Dropped>,
}

/// An unsynced or torn last group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dropped {
    /// The segment file.
    pub file: PathBuf,
    /// Where the group begins.
    pub offset: u64,
    /// How long it says it is.
    pub bytes: u64,
}

/// The segments of one session, read one at a time.
struct Tape<'a> {
    segments: BTreeMap<u64, &'a Segment>,
    loaded: Option<(u64, Vec<u8>)>,
}

#[derive(Debug, Clone, Copy)]
struct Spot {
    segment: u64,
    offset: u64,
}

/// Reads all groups from `start` on and hands their records out in order.
pub fn replay(
    segments: &[(u64, Segment)],
    engine: u128,
    session: u64,
    start: JournalStart,
    each: &mut dyn FnMut(Position, SpaceId, &[u8]) -> Result<()>,
) -> Result<Replayed> {
    let mut tape = Tape::new(segments, engine, session)?;
    let last_segment = tape.segments.keys().next_back().copied().unwrap_or(0).max(start.segment);
    let mut found = Replayed { last: start.position, last_segment, ..Replayed::default() };
    let mut spot = Spot { segment: start.segment, offset: start.offset };
    let (mut sequence, mut chain) = (start.sequence, start.chain);
    let tag = session_tag(session, engine);
    while let Some((head, crc, body, after)) = tape.group(spot)? {
        let fits = head.session == tag
            && head.sequence == sequence
            && head.chain == chain
            && head.first.0 == found.last.0 + 1
            && crc32fast::hash(&body) == head.body;
        if !fits {
            break;
        }
        let mut reader = Reader::new(&body);
        for at in 0..u64::from(head.records) {
            let (space, record) = take_record(&mut reader).map_err(|damage| tape.damage(spot, damage))?;
            each(Position(head.first.0 + at), space, record)?;
        }
        reader.finish().map_err(|damage| tape.damage(spot, damage))?;
        found.groups += 1;
        found.records += u64::from(head.records);
        found.spanning += u64::from(after.segment != spot.segment);
        found.last = Position(head.first.0 + u64::from(head.records) - 1);
        (sequence, chain, spot) = (sequence + 1, crc, after);
    }
    found.dropped = tape.end(spot, tag, sequence)?;
    Ok(found)
}

impl<'a> Tape<'a> {
    fn new(segments: &'a [(u64, Segment)], engine: u128, session: u64) -> Result<Self> {
        let mut of_session = BTreeMap::new();
        for (_, segment) in segments {
            let Some(head) = segment.head else { continue };
            if head.engine != engine {
                let damage = Damage::Malformed { what: "it is a journal segment of another store" };
                return Err(Error::corrupt(segment.file.path(), Place::File, damage));
            }
            if head.session == session {
                of_session.insert(head.number, segment);
            }
        }
        Ok(Tape { segments: of_session, loaded: None })
    }

    /// The bytes of a segment; None if there is no such segment.
    fn load(&mut self, number: u64) -> Result<Option<&[u8]>> {
        let Some(segment) = self.segments.get(&number) else {
            return Ok(None);
        };
        if self.loaded.as_ref().is_none_or(|(have, _)| *have != number) {
            let len = usize::try_from(segment.bytes).map_err(|_| Error::invalid("a journal segment is too large"))?;
            let mut bytes = vec![0; len];
            segment.file.read_at(&mut bytes, 0)?;
            self.loaded = Some((number, bytes));
        }
        Ok(self.loaded.as_ref().map(|(_, bytes)| &bytes[..]))
    }

    /// The group at `spot` if its header is whole and its body is there, and the spot behind it.
    fn group(&mut self, spot: Spot) -> Result<Option<(GroupHead, u32, Vec<u8>, Spot)>> {
        let mut at = spot;
        let Some(bytes) = self.load(at.segment)? else {
            return Ok(None);
        };
        if at.offset + SEGMENT_DATA > bytes.len() as u64 {
            at = Spot { segment: at.segment + 1, offset: SEGMENT_DATA };
        }
        let Some(bytes) = self.load(at.segment)? else {
            return Ok(None);
        };
        let header = bytes.get(at.offset as usize..at.offset as usize + GROUP_HEAD_BYTES).unwrap_or_default();
        let Ok((head, crc)) = GroupHead::decode(header) else {
            return Ok(None);
        };
        if head.segment != at.segment {
            return Ok(None);
        }
        let total: u64 = self.segments.values().map(|segment| segment.bytes).sum();
        if head.length > total {
            return Ok(None);
        }
        let mut body = Vec::with_capacity(head.length as usize);
        let mut from = at.offset as usize + GROUP_HEAD_BYTES;
        let mut segment = at.segment;
        loop {
            let Some(bytes) = self.load(segment)? else {
                return Ok(None);
            };
            let missing = head.length as usize - body.len();
            let part = bytes.get(from..).unwrap_or_default();
            let part = &part[..part.len().min(missing)];
            body.extend_from_slice(part);
            if body.len() as u64 == head.length {
                let end = super::group::sectors((from + part.len()) as u64);
                return Ok(Some((head, crc, body, Spot { segment, offset: end })));
            }
            segment += 1;
            from = SEGMENT_DATA as usize;
        }
    }

    /// What stands at `spot`, where replay stopped: nothing, an unsynced group, or damage.
    fn end(&mut self, spot: Spot, tag: u64, sequence: u64) -> Result<Option<Dropped>> {
        let later: Vec<u64> = self.segments.range(spot.segment..).map(|(number, _)| *number).collect();
        for number in later {
            let len = self.load(number)?.map_or(0, <[u8]>::len) as u64;
            let mut offset = if number == spot.segment { spot.offset + SECTOR_BYTES as u64 } else { SEGMENT_DATA };
            while offset + SECTOR_BYTES as u64 <= len {
                let behind = Spot { segment: number, offset };
                if let Some((head, _, body, _)) = self.candidate(behind)? {
                    let good = head.session == tag && head.sequence > sequence && crc32fast::hash(&body) == head.body;
                    if good {
                        let what = "a group is missing or bad, but a later one is whole";
                        return Err(self.damage(spot, Damage::Malformed { what }));
                    }
                }
                offset += SECTOR_BYTES as u64;
            }
        }
        let Some(bytes) = self.load(spot.segment)? else {
            return Ok(None);
        };
        let header = bytes.get(spot.offset as usize..spot.offset as usize + GROUP_HEAD_BYTES).unwrap_or_default();
        match GroupHead::decode(header) {
            Ok((head, _)) if head.session == tag && head.sequence == sequence => {
                let file = self.segments[&spot.segment].file.path().to_owned();
                Ok(Some(Dropped { file, offset: spot.offset, bytes: head.length + GROUP_HEAD_BYTES as u64 }))
            }
            _ => Ok(None),
        }
    }

    /// Like `group`, but cheap where no header begins.
    fn candidate(&mut self, spot: Spot) -> Result<Option<(GroupHead, u32, Vec<u8>, Spot)>> {
        let Some(bytes) = self.load(spot.segment)? else {
            return Ok(None);
        };
        let header = bytes.get(spot.offset as usize..spot.offset as usize + GROUP_HEAD_BYTES).unwrap_or_default();
        if GroupHead::decode(header).is_err() { Ok(None) } else { self.group(spot) }
    }

    fn damage(&self, spot: Spot, damage: Damage) -> Error {
        let file = self.segments.get(&spot.segment).map(|segment| segment.file.path().to_owned()).unwrap_or_default();
        Error::corrupt(&file, Place::Offset(spot.offset), damage)
    }
}
