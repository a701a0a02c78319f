//! Reading the journal back, and telling a torn end from damage.
//!
//! Replay stops at the first group that does not fit: another session, sequence, chain or position,
//! a bad checksum, or the end of the segments. Because a group is written only after the one before
//! it is synced, the header of a later group of the same session *behind* that place proves that
//! something synced is gone: then open refuses. Else what stands there is the unsynced end of the
//! journal. [`survey`] goes on behind what is gone, for `check` and salvage.
//!
//! A group says itself in which segment it lies, so a segment whose own head is spoilt is read all the
//! same.

use super::group::{Expected, GROUP_HEAD_BYTES, GroupHead, take_record};
use super::segment::{SEGMENT_DATA, Segment, SegmentHead};
use super::writer::session_tag;
use crate::codec::Reader;
use crate::defect::{Defect, is_on};
use crate::disk::SECTOR_BYTES;
use crate::error::{Damage, Error, Place, Result};
use crate::ids::SpaceId;
use crate::manifest::{JournalStart, Manifest};
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

/// Groups that were synced and are gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// The segment file in which they began.
    pub file: PathBuf,
    /// Where.
    pub offset: u64,
    /// How many.
    pub groups: u64,
    /// The first position in them.
    pub first: Position,
    /// The last position in them.
    pub last: Position,
}

impl Gap {
    /// As an error.
    pub fn error(&self) -> Error {
        let what = "a group is missing or bad, but a later one is there";
        Error::corrupt(&self.file, Place::Offset(self.offset), Damage::Malformed { what })
    }
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

/// Reads all groups from where `manifest` says on and hands their records out in order.
pub fn replay(
    segments: &[(u64, Segment)],
    manifest: &Manifest,
    each: &mut dyn FnMut(Position, SpaceId, &[u8]) -> Result<()>,
) -> Result<Replayed> {
    for (_, segment) in segments {
        let of = |head: SegmentHead| head.session == manifest.session && head.number >= manifest.journal.segment;
        // Of a closed store nothing is read.
        let is_needed = !manifest.clean && segment.head.is_none_or(of);
        if let Some(damage) = segment.cut().filter(|_| is_needed) {
            return Err(Error::corrupt(segment.file.path(), Place::File, damage));
        }
    }
    survey(segments, manifest, each, &mut |gap| Err(gap.error()))
}

/// Like [`replay`], but tells `gone` of groups that are gone, and goes on behind them if that is fine.
pub fn survey(
    segments: &[(u64, Segment)],
    manifest: &Manifest,
    each: &mut dyn FnMut(Position, SpaceId, &[u8]) -> Result<()>,
    gone: &mut dyn FnMut(Gap) -> Result<()>,
) -> Result<Replayed> {
    let &Manifest { engine, session, journal: start, clean, .. } = manifest;
    let mut found = Replayed { last: start.position, last_segment: start.segment, ..Replayed::default() };
    if clean {
        return Ok(found);
    }
    let tag = session_tag(session, engine);
    let mut tape = Tape::new(segments, engine, session)?;
    if let Some((number, _)) = tape.segments.last_key_value() {
        found.last_segment = found.last_segment.max(*number);
    }
    let JournalStart { segment, offset, mut sequence, mut chain, .. } = start;
    let mut spot = Spot { segment, offset };
    if offset > SEGMENT_DATA && !tape.segments.contains_key(&segment) {
        // It holds the group before, and is kept until both slots are past it.
        let dir = segments.first().and_then(|(_, segment)| segment.file.path().parent()).map(PathBuf::from);
        let gap = Gap {
            file: dir.unwrap_or_else(|| PathBuf::from("journal")),
            offset,
            groups: 1,
            first: Position(start.position.0 + 1),
            last: Position(start.position.0 + 1),
        };
        gone(gap)?;
    }
    loop {
        if let Some((head, crc, body, after)) = tape.group(spot)?
            && head.session == tag
            && head.sequence == sequence
            && head.chain == chain
            && head.first.0 == found.last.0 + 1
            && crc32fast::hash(&body) == head.body
        {
            let mut reader = Reader::new(&body);
            for at in 0..u64::from(head.records) {
                let (space, record) = take_record(&mut reader).map_err(|damage| tape.damage(spot, damage))?;
                each(Position(head.first.0 + at), space, record)?;
                if is_on(Defect::ReplayGroupTwice) {
                    each(Position(head.first.0 + at), space, record)?;
                }
            }
            reader.finish().map_err(|damage| tape.damage(spot, damage))?;
            found.groups += 1;
            found.records += u64::from(head.records);
            found.spanning += u64::from(after.segment != spot.segment);
            found.last = Position(head.first.0 + u64::from(head.records) - 1);
            (sequence, chain, spot) = (sequence + 1, crc, after);
            continue;
        }
        let Some((behind, head)) = tape.later(spot, tag, sequence)? else { break };
        gone(Gap {
            file: tape.file(spot),
            offset: spot.offset,
            groups: head.sequence - sequence,
            first: Position(found.last.0 + 1),
            last: Position(head.first.0.saturating_sub(1)),
        })?;
        found.last = Position(head.first.0.saturating_sub(1));
        (sequence, chain, spot) = (head.sequence, head.chain, behind);
    }
    let first = Position(found.last.0 + 1);
    found.dropped = tape.end(spot, Expected { session: tag, segment: spot.segment, sequence, first, chain })?;
    Ok(found)
}

/// The header of a group of a session in a segment whose own head is spoilt: the newest use of the file, of
/// which what an older one left behind tells a lower number.
fn newest_group(segment: &Segment, tag: u64) -> Result<Option<GroupHead>> {
    let mut bytes = vec![0; 2 * SECTOR_BYTES];
    if segment.bytes < bytes.len() as u64 {
        return Ok(None);
    }
    segment.file.read_at(&mut bytes, 0)?;
    if bytes.iter().all(|&byte| byte == 0) {
        // Never used.
        return Ok(None);
    }
    let bytes = read_all(segment)?;
    let heads = bytes.chunks(SECTOR_BYTES).filter_map(|sector| GroupHead::decode(sector).ok());
    let heads = heads.map(|(head, _)| head).filter(|head| head.session == tag);
    Ok(heads.max_by_key(|head| head.segment))
}

pub(crate) fn read_all(segment: &Segment) -> Result<Vec<u8>> {
    let len = usize::try_from(segment.bytes).map_err(|_| Error::invalid("a journal segment is too large"))?;
    let mut bytes = vec![0; len];
    segment.file.read_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// Whether bytes begin with a group's header; its length with its body, and whether the body is whole.
pub(crate) fn group_at(bytes: &[u8]) -> Option<(usize, bool)> {
    let (head, _) = GroupHead::decode(bytes.get(..GROUP_HEAD_BYTES)?).ok()?;
    let end = usize::try_from(head.length).ok()?.checked_add(GROUP_HEAD_BYTES)?;
    let whole = bytes.get(GROUP_HEAD_BYTES..end).is_some_and(|body| crc32fast::hash(body) == head.body);
    Some((end, whole))
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
        for (_, segment) in segments.iter().filter(|(_, segment)| segment.head.is_none()) {
            if let Some(group) = newest_group(segment, session_tag(session, engine))? {
                of_session.entry(group.segment).or_insert(segment);
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
            self.loaded = Some((number, read_all(segment)?));
        }
        Ok(self.loaded.as_ref().map(|(_, bytes)| &bytes[..]))
    }

    /// Where the group after the one that ends at `spot` begins.
    fn place(&mut self, spot: Spot) -> Result<Spot> {
        let full = self.load(spot.segment)?.is_some_and(|bytes| spot.offset + SEGMENT_DATA > bytes.len() as u64);
        Ok(if full { Spot { segment: spot.segment + 1, offset: SEGMENT_DATA } } else { spot })
    }

    /// What may be a group's header at `spot`; empty if the file ends before.
    fn header(&mut self, spot: Spot) -> Result<&[u8]> {
        let at = spot.offset as usize;
        Ok(self.load(spot.segment)?.and_then(|bytes| bytes.get(at..at + GROUP_HEAD_BYTES)).unwrap_or_default())
    }

    /// The group at `spot` if its header is whole and its body is there, and the spot behind it.
    fn group(&mut self, spot: Spot) -> Result<Option<(GroupHead, u32, Vec<u8>, Spot)>> {
        let at = self.place(spot)?;
        let Ok((head, crc)) = GroupHead::decode(self.header(at)?) else {
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

    /// The header of the first group behind `spot` that was written after the one with `sequence`.
    fn later(&mut self, spot: Spot, tag: u64, sequence: u64) -> Result<Option<(Spot, GroupHead)>> {
        let later: Vec<u64> = self.segments.range(spot.segment..).map(|(number, _)| *number).collect();
        for number in later {
            let len = self.load(number)?.map_or(0, <[u8]>::len) as u64;
            let mut offset = if number == spot.segment { spot.offset + SECTOR_BYTES as u64 } else { SEGMENT_DATA };
            while offset + SECTOR_BYTES as u64 <= len {
                let behind = Spot { segment: number, offset };
                if let Ok((head, _)) = GroupHead::decode(self.header(behind)?)
                    && head.session == tag
                    && head.segment == number
                    && head.sequence > sequence
                {
                    return Ok(Some((behind, head)));
                }
                offset += SECTOR_BYTES as u64;
            }
        }
        Ok(None)
    }

    /// What stands at `spot`, where replay stopped: an unsynced group, or nothing.
    fn end(&mut self, spot: Spot, expected: Expected) -> Result<Option<Dropped>> {
        let spot = self.place(spot)?;
        let expected = Expected { segment: spot.segment, ..expected };
        let header = self.header(spot)?;
        let length = match GroupHead::decode(header) {
            Ok((head, _)) if head.session == expected.session && head.sequence == expected.sequence => head.length,
            Err(_) if expected.is_spoilt_in(header) => 0,
            _ => return Ok(None),
        };
        let bytes = length.saturating_add(GROUP_HEAD_BYTES as u64);
        Ok(Some(Dropped { file: self.file(spot), offset: spot.offset, bytes }))
    }

    fn file(&self, spot: Spot) -> PathBuf {
        let segment = self.segments.get(&spot.segment).or_else(|| self.segments.values().next_back());
        segment.map(|segment| segment.file.path().to_owned()).unwrap_or_default()
    }

    fn damage(&self, spot: Spot, damage: Damage) -> Error {
        Error::corrupt(&self.file(spot), Place::Offset(spot.offset), damage)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::sim::SimDisk;
    use crate::disk::{Disk, OpenMode};
    use crate::journal::segment;
    use std::path::Path;

    const SEGMENT: usize = 4096;

    fn manifest() -> Manifest {
        let journal = JournalStart { segment: 1, offset: SEGMENT_DATA, sequence: 1, chain: 0, position: Position(0) };
        Manifest {
            engine: 7,
            sequence: 1,
            epoch: 1,
            session: 1,
            clean: false,
            journal,
            next_space: 1,
            next_tree: 1,
            spaces: Vec::new(),
        }
    }

    /// A journal of one segment, with a group whose checksums hold.
    fn journal(head: GroupHead, body: &[u8]) -> Vec<(u64, Segment)> {
        segments(1, head, body).unwrap()
    }

    fn segments(number: u64, head: GroupHead, body: &[u8]) -> Result<Vec<(u64, Segment)>> {
        let disk = SimDisk::new(1);
        disk.create_dir(Path::new("/j")).unwrap();
        let path = Path::new("/j").join(segment::file_name(1));
        let file = disk.open(&path, OpenMode::CreateNew).unwrap();
        let mut bytes = SegmentHead { engine: 7, session: 1, number, bytes: SEGMENT as u64 }.encode().to_vec();
        bytes.extend_from_slice(&head.encode().0);
        bytes.extend_from_slice(body);
        bytes.resize(SEGMENT, 0);
        file.write_at(&bytes, 0).unwrap();
        segment::open_all(&disk, Path::new("/j"), OpenMode::Read)
    }

    /// The first group that can be.
    fn first(body: &[u8], records: u32) -> GroupHead {
        GroupHead {
            session: session_tag(1, 7),
            segment: 1,
            sequence: 1,
            first: Position(1),
            length: body.len() as u64,
            records,
            body: crc32fast::hash(body),
            chain: 0,
        }
    }

    #[test]
    fn what_counts_further_than_a_journal_can_is_no_part_of_it() {
        for head in [
            GroupHead { first: Position(u64::MAX), ..first(b"", 1) },
            GroupHead { sequence: u64::MAX, ..first(b"", 1) },
        ] {
            let replayed = replay(&journal(head, b""), &manifest(), &mut |_, _, _| Ok(())).unwrap();
            assert_eq!((replayed.groups, replayed.last), (0, Position(0)), "{head:?}");
        }
        let error = segments(u64::MAX, first(b"", 1), b"").unwrap_err();
        assert!(error.to_string().starts_with("/j/000001.seg, offset 0, is damaged"), "{error}");
    }

    #[test]
    fn a_group_that_says_it_is_longer_than_anything_is_dropped() {
        let segments = journal(GroupHead { length: u64::MAX, ..first(b"", 1) }, b"");
        let replayed = replay(&segments, &manifest(), &mut |_, _, _| Ok(())).unwrap();
        assert_eq!((replayed.groups, replayed.dropped.map(|dropped| dropped.bytes)), (0, Some(u64::MAX)));
    }
}
