//! The sequential log that makes writes durable before their checkpoint.
//!
//! Writers append records to the pending group, which is memory and cannot fail; one job writes a
//! group with one write and one sync while the next fills. A group is written only after the one
//! before it is synced, so a valid group proves all before it. A thread that waits alone does that
//! itself: two switches of threads less.
//!
//! Room comes first: a record is charged against journal space that is already allocated on disk
//! before it is applied ([`Journal::charge`]), so that no write of a group can meet a full disk.
//! Segments are recycled once both manifest slots are past them; another job makes new ones ahead, zeroed
//! and synced, so that syncing a group changes no file metadata.

pub mod group;
pub mod replay;
pub mod segment;
mod writer;

mod lead;
mod maker;

use crate::batch::AdmitError;
use crate::disk::{Disk, SECTOR_BYTES};
use crate::error::Error;
use crate::ids::SpaceId;
use crate::manifest::JournalStart;
use crate::poison::Poison;
use crate::run::Signal;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::ticket::{Position, Watermark};
use segment::{SEGMENT_DATA, Segment};
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;

pub use lead::JournalJob;
pub use maker::SegmentJob;
use writer::Writer;

/// Segments that stay ready when nothing is written.
const READY_KEPT: usize = 2;

/// Is told the spaces of a group and its last position once it is durable, before tickets resolve.
pub type OnDurable = Box<dyn Fn(&[SpaceId], Position) + Send + Sync>;

/// How a journal is kept.
#[derive(Debug, Clone)]
pub struct JournalOptions {
    /// The directory of its segments.
    pub dir: PathBuf,
    /// Bytes of a new segment; whole sectors.
    pub segment_bytes: u64,
    /// The most bytes on disk, but for one record that needs more alone.
    pub bytes_max: u64,
}

/// The journal of one session.
pub struct Journal {
    // Set at open, never changed.
    disk: Arc<dyn Disk>,
    options: JournalOptions,
    engine: u128,
    session: u64,
    poison: Arc<Poison>,
    on_durable: OnDurable,
    signal: Signal,
    /// Raised when there may be a segment to make, or one to give back.
    segments: Signal,
    /// Raised when room is short and only a checkpoint can make some.
    checkpoint: Signal,

    /// Held over a group's write or sync: by the job, or by a thread that leads.
    writer: Mutex<Writer>,
    // Lock order: `writer`, `pending`, `room`. The latter two are not held over a disk call.
    pending: Mutex<Pending>,
    room: Mutex<Room>,
    boundary: Mutex<JournalStart>,
    /// True while the first record of a group does not wake the job: whoever appended the last ones waited for
    /// them alone, and led. Changes under `pending`.
    lone: AtomicBool,
    /// Set by the job that finds a thread leading: it is to be woken after that.
    passed_by: AtomicBool,

    durable: Arc<Watermark>,
    /// Counts the times that room may have grown; admission waits for the next.
    grown: Arc<Watermark>,
}

/// The group that fills.
#[derive(Debug, Default)]
struct Pending {
    /// Room for the header, then records.
    bytes: Vec<u8>,
    records: u32,
    last: u64,
    charged: u64,
    spaces: Vec<SpaceId>,
}

/// Journal space that is on disk.
#[derive(Debug, Default)]
struct Room {
    /// Bytes not yet written to, in the segment in use and the ready ones.
    free: u64,
    /// Segments made ready again since open.
    recycled: u64,
    /// Groups written since open.
    groups: u64,
    /// Bytes of them, with what fills their last sectors.
    written: u64,
    /// What admitted records may still take of it.
    charged: u64,
    /// The largest charge that was refused since room last grew.
    wanted: u64,
    /// Data bytes of all segments.
    data: u64,
    /// Bytes of all segment files.
    total: u64,
    ready: VecDeque<Segment>,
    /// Segments that replay may need, oldest first; the last is in use.
    used: VecDeque<(u64, Segment)>,
    next_file: u64,
    /// Why the last new segment could not be made.
    failed: Option<Error>,
}

impl Room {
    /// True if a charge was refused for which there is still no room.
    fn is_wanted(&self) -> bool {
        self.wanted > 0 && self.charged + self.wanted > self.free
    }
}

impl std::fmt::Debug for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Journal").field("dir", &self.options.dir).field("session", &self.session).finish()
    }
}

/// What a journal begins with.
pub struct JournalParts {
    /// The disk.
    pub disk: Arc<dyn Disk>,
    /// How it is kept.
    pub options: JournalOptions,
    /// The store's identity.
    pub engine: u128,
    /// The session that begins.
    pub session: u64,
    /// Where the manifest says that this session's journal begins.
    pub start: JournalStart,
    /// Segment files whose contents nobody needs any more, by file index.
    pub segments: Vec<(u64, Segment)>,
    /// Where failures go.
    pub poison: Arc<Poison>,
    /// Who is told.
    pub on_durable: OnDurable,
    /// Raised when only a checkpoint can make room.
    pub checkpoint: Signal,
    /// The mark that tickets wait for.
    pub durable: Arc<Watermark>,
}

impl Journal {
    /// The journal of a new session.
    pub fn new(parts: JournalParts) -> Arc<Self> {
        let mut room = Room { next_file: 0, ..Room::default() };
        for (index, segment) in parts.segments {
            room.next_file = room.next_file.max(index + 1);
            room.total += segment.bytes;
            let data = data_bytes(&segment);
            if data > 0 {
                room.data += data;
                room.free += data;
                room.ready.push_back(Segment { head: None, ..segment });
            }
        }
        let grown = Arc::new(Watermark::default());
        parts.poison.watch(&grown);
        Arc::new(Journal {
            disk: parts.disk,
            options: parts.options,
            engine: parts.engine,
            session: parts.session,
            poison: parts.poison,
            on_durable: parts.on_durable,
            signal: Signal::default(),
            segments: Signal::default(),
            checkpoint: parts.checkpoint,
            writer: Mutex::new(Writer::new(parts.start)),
            pending: Mutex::new(Pending { last: parts.start.position.0, ..Pending::default() }),
            room: Mutex::new(room),
            boundary: Mutex::new(parts.start),
            lone: AtomicBool::new(false),
            passed_by: AtomicBool::new(false),
            durable: parts.durable,
            grown,
        })
    }

    /// Takes room for a record of `record_bytes` out of space that is on disk; returns the charge.
    pub fn charge(&self, record_bytes: u64) -> Result<u64, AdmitError> {
        let charge = group::charge(record_bytes);
        let mut room = self.room.lock();
        if room.charged + charge <= room.free {
            room.charged += charge;
            return Ok(charge);
        }
        room.wanted = room.wanted.max(charge);
        let ticket = self.grown.ticket(Position(self.grown.reached().0 + 1));
        let stuck = room.failed.clone().filter(|_| room.charged == 0 && room.used.len() <= 1);
        drop(room);
        self.segments.raise();
        self.checkpoint.raise();
        match stuck {
            Some(error) => Err(AdmitError::Refused(error)),
            None => Err(AdmitError::Short(ticket)),
        }
    }

    /// Gives back a charge that was not used.
    pub fn uncharge(&self, charge: u64) {
        let mut room = self.room.lock();
        room.charged -= charge;
        let waited_for = room.wanted > 0;
        drop(room);
        if waited_for {
            self.room_grew();
        }
    }

    /// Seals a record into the pending group. Cannot fail: its charge is on disk.
    pub fn append(&self, space: SpaceId, record: &[u8], charge: u64) -> Position {
        let mut pending = self.pending.lock();
        if pending.bytes.is_empty() {
            pending.bytes.resize(group::GROUP_HEAD_BYTES, 0);
        }
        group::put_record(&mut pending.bytes, space, record);
        pending.records += 1;
        pending.last += 1;
        pending.charged += charge;
        if !pending.spaces.contains(&space) {
            pending.spaces.push(space);
        }
        let position = Position(pending.last);
        let silent = pending.records == 1 && self.lone.load(Ordering::Relaxed);
        drop(pending);
        if !silent {
            self.signal.raise();
        }
        position
    }

    /// The position of the newest sealed record.
    pub fn last(&self) -> Position {
        Position(self.pending.lock().last)
    }

    /// Where replay would begin if all durable groups were in the trees.
    pub fn boundary(&self) -> JournalStart {
        *self.boundary.lock()
    }

    /// Makes segments ready again that lie before `segment`, the lowest that either slot needs.
    pub fn recycle(&self, segment: u64) {
        let mut room = self.room.lock();
        while let Some((number, _)) = room.used.front() {
            if *number >= segment {
                break;
            }
            let (_, segment) = room.used.pop_front().expect("front() just gave it");
            room.free += data_bytes(&segment);
            room.recycled += 1;
            room.ready.push_back(segment);
        }
        drop(room);
        self.room_grew();
        self.segments.raise();
    }

    /// True if writers wait for room that only a checkpoint can make: there may be no more segments, or the last one
    /// could not be made.
    pub fn is_short(&self) -> bool {
        let room = self.room.lock();
        room.is_wanted() && (room.failed.is_some() || !self.may_grow(&room))
    }

    /// Groups written since open.
    pub fn groups(&self) -> u64 {
        self.room.lock().groups
    }

    /// Bytes of those groups.
    pub fn written(&self) -> u64 {
        self.room.lock().written
    }

    /// Segments made ready again since open.
    pub fn recycled(&self) -> u64 {
        self.room.lock().recycled
    }

    /// Bytes of all segment files.
    pub fn disk_bytes(&self) -> u64 {
        self.room.lock().total
    }

    /// Raised when there is a group to write.
    pub fn signal(&self) -> &Signal {
        &self.signal
    }

    /// A ready segment beyond what is kept, taken out.
    fn take_surplus(&self) -> Option<Segment> {
        let mut room = self.room.lock();
        if room.ready.len() <= READY_KEPT || room.wanted > 0 {
            return None;
        }
        let data = room.ready.back().map(data_bytes)?;
        if room.charged + data > room.free {
            return None;
        }
        let segment = room.ready.pop_back()?;
        room.free -= data;
        room.data -= data;
        room.total -= segment.bytes;
        Some(segment)
    }

    fn has_surplus(&self) -> bool {
        self.room.lock().ready.len() > READY_KEPT
    }

    fn room_grew(&self) {
        let mut room = self.room.lock();
        room.wanted = 0;
        drop(room);
        self.grown.advance(Position(self.grown.reached().0 + 1));
    }

    /// Within the limit, or for a record that does not fit all of today's segments.
    fn may_grow(&self, room: &Room) -> bool {
        let in_limit = room.total + self.options.segment_bytes <= self.options.bytes_max;
        in_limit || room.data < room.wanted + self.options.segment_bytes
    }

    /// True if a segment should be made now: someone waits for it, or none is ready.
    fn wants_segment(&self) -> bool {
        let room = self.room.lock();
        let in_limit = room.total + self.options.segment_bytes <= self.options.bytes_max;
        let ahead = room.ready.is_empty() && in_limit;
        ahead || (room.is_wanted() && self.may_grow(&room))
    }
}

fn data_bytes(segment: &Segment) -> u64 {
    let whole = segment.bytes - segment.bytes % SECTOR_BYTES as u64;
    whole.saturating_sub(SEGMENT_DATA)
}
