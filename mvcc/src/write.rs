//! The write path: evaluate, admit, apply, seal, answer.
//!
//! One writer at a time. Evaluation reads and may fail; admission takes room and may be short; after
//! that nothing fails and nothing does I/O: the index, the buffers and the hub get the changes, the
//! record is sealed as the last act, and the answer waits for it to be durable. An answer without
//! changes waits for the newest position it was computed from.

use crate::change::{Change, Scratch};
use crate::core::{Core, Gate, Reserving, Turn, Writer};
use crate::error::{Error, Refusal, Result};
use crate::event::{Event, EventKind};
use crate::options::Face;
use crate::pending::{Pending, Slot};
use crate::publish::Floor;
use crate::record::{MetaEdit, RecordHead, State, next_history};
use crate::request::KeyValue;
use crate::row::{NewPut, NewRow, RowPlace};
use crate::txn::Evaluation;
use bytes::Bytes;
use polybolt_engine::defect::{Defect, is_on};
use polybolt_engine::sync::atomic::Ordering;
use polybolt_engine::{Admission, AdmitError, Batch, Cost, Edit, Position, Ticket, TreeEdit, Watermark};
use polybolt_index::Revision;
use std::sync::Arc;

/// What a commit does besides its changes of keys.
#[derive(Debug, Default, Clone)]
pub(crate) struct Extra {
    /// Changes of the meta tree.
    pub(crate) meta: Vec<MetaEdit>,
    /// The frontend's position.
    pub(crate) applied_index: Option<u64>,
    /// A new compacted revision.
    pub(crate) compacted: Option<i64>,
    /// A new floor of a shard.
    pub(crate) floor: Option<Floor>,
    /// True for what may use the reserve of a full store.
    pub(crate) frees_space: bool,
}

/// Why a commit did not happen. Nothing was changed.
pub(crate) enum NotNow {
    /// No room: evaluate again once the ticket resolves.
    Short(Ticket),
    /// It can't be.
    Refused(Error),
}

impl From<Error> for NotNow {
    fn from(error: Error) -> Self {
        NotNow::Refused(error)
    }
}

impl From<AdmitError> for NotNow {
    fn from(error: AdmitError) -> Self {
        match error {
            AdmitError::Short(ticket) => NotNow::Short(ticket),
            AdmitError::Refused(polybolt_engine::Error::NoSpace { .. }) => NotNow::Refused(Refusal::DiskFull.into()),
            AdmitError::Refused(polybolt_engine::Error::Closed) => NotNow::Refused(Refusal::Closed.into()),
            AdmitError::Refused(error) => NotNow::Refused(Error::Storage(error)),
        }
    }
}

/// What etcd's quota counts of a write (QTA-2).
fn quota_cost(changes: &[Change], extra: &Extra) -> u64 {
    let put = |change: &Change| change.put.as_ref().map_or(0, |put| 256 + change.key.len() + put.value.len());
    let granted = extra.meta.iter().filter(|edit| edit.value.is_some()).count() * 64;
    (changes.iter().map(put).sum::<usize>() + granted) as u64
}

/// What a request in line takes besides its bytes: its closure, its answer, and whoever waits for that.
const LINE_OVERHEAD: usize = 4096;
/// However small the buffers are, so many bytes of requests may wait.
const LINE_BYTES_MIN: usize = 4 << 20;
/// What brings no bytes along may wait beyond that bound, up to so much more: compactions and revokes among them
/// are what makes room.
const LINE_RESERVE: usize = 1 << 20;

/// Encoded changes; their edits and their record are in the scratch.
struct Encoded {
    admission: Admission,
    events: Vec<Event>,
    /// Bytes that any of the events keeps alive.
    kept_bytes: usize,
}

impl Core {
    /// Runs `request` as the one writer, behind those that wait for room.
    /// It holds about `bytes` of keys and values while it stands in line, which is bounded (B1).
    pub(crate) fn submit<T: Send + 'static>(
        self: &Arc<Self>,
        bytes: usize,
        request: impl FnMut(&Core, &mut Writer) -> Result<T, NotNow> + Send + 'static,
    ) -> Pending<T> {
        let begun = self.beside.samples().then(|| self.clock.monotonic());
        let pending = self.submit_now(bytes, request);
        if let Some(begun) = begun {
            self.beside.add_write(self.clock.monotonic().saturating_sub(begun));
        }
        pending
    }

    fn submit_now<T: Send + 'static>(
        self: &Arc<Self>,
        bytes: usize,
        mut request: impl FnMut(&Core, &mut Writer) -> Result<T, NotNow> + Send + 'static,
    ) -> Pending<T> {
        self.with_writer(move |core, writer| {
            let mut short = core.move_line_of(writer);
            if short.is_none() {
                match core.attempt(writer, &mut request) {
                    Ok((answer, ticket)) => return Pending::answered(core, answer, Some(ticket)),
                    Err(ticket) => short = Some(ticket),
                }
            }
            let most = core.line_bytes_max() + if bytes == 0 { LINE_RESERVE } else { 0 };
            let bytes = bytes + LINE_OVERHEAD;
            if writer.line.len() > 0 && writer.line.bytes() + bytes > most {
                return Pending::answered(core, Err(Refusal::TooManyRequests.into()), None);
            }
            let slot: Slot<T> = Arc::default();
            let place = Arc::clone(&slot);
            let served = Arc::new(Watermark::default());
            let ticket = served.ticket(Position(1));
            let deadline = core.clock.monotonic().saturating_add(core.options.admission_timeout);
            let turn: Turn = Box::new(move |core, writer, now| {
                let answered = if now > deadline {
                    Ok((Err(Refusal::TooManyRequests.into()), core.answer_at(Position(0))))
                } else {
                    core.attempt(writer, &mut request)
                };
                match answered {
                    Ok(answered) => {
                        *place.lock() = Some(answered);
                        served.advance(Position(1));
                        None
                    }
                    Err(ticket) => Some(ticket),
                }
            });
            writer.line.join(turn, bytes);
            core.line_moved(writer);
            core.work.raise();
            Pending::in_line(core, slot, short.unwrap_or_else(|| core.answer_at(Position(0))), ticket)
        })
    }

    /// One try: the answer and what it has to wait for, or when there may be room.
    fn attempt<T>(
        &self,
        writer: &mut Writer,
        request: &mut impl FnMut(&Core, &mut Writer) -> Result<T, NotNow>,
    ) -> Result<(Result<T>, Ticket), Ticket> {
        let before = writer.last;
        let outcome = match self.check_open() {
            Ok(()) => request(self, writer),
            Err(error) => Err(error.into()),
        };
        let at_once = is_on(Defect::AnswerFailedCompareAtOnce) && writer.last == before;
        let ticket = self.answer_at(if at_once { Position(0) } else { writer.last });
        match outcome {
            Ok(answer) => Ok((Ok(answer), ticket)),
            Err(NotNow::Refused(error)) => Ok((Err(error), ticket)),
            Err(NotNow::Short(ticket)) => Err(ticket),
        }
    }

    /// Gives those in line their turns, in order; Some if the first has no room, and when it may have.
    pub(crate) fn move_line(self: &Arc<Self>) -> Option<Ticket> {
        self.with_writer(|core, writer| core.move_line_of(writer))
    }

    fn move_line_of(&self, writer: &mut Writer) -> Option<Ticket> {
        let mut short = None;
        if is_on(Defect::WaitInsideWriter) && writer.line.len() > 0 {
            return Some(self.answer_at(Position(0)));
        }
        while let Some((mut turn, bytes)) = writer.line.take_first() {
            short = turn(self, writer, self.clock.monotonic());
            if short.is_some() {
                writer.line.put_back(turn, bytes);
                break;
            }
        }
        self.line_moved(writer);
        short
    }

    /// Shows what is in line to those without the writer's lock.
    pub(crate) fn line_moved(&self, writer: &Writer) {
        self.in_line.store(writer.line.len(), Ordering::Release);
        self.counters.line_bytes.store(writer.line.bytes() as u64, Ordering::Relaxed);
    }

    /// The most bytes of requests in line: as many as write buffers may hold.
    fn line_bytes_max(&self) -> usize {
        usize::try_from(self.options.buffer_bytes).unwrap_or(usize::MAX).max(LINE_BYTES_MIN)
    }

    /// Evaluates with `evaluate` and commits what it changed.
    pub(crate) fn evaluate<T>(
        &self,
        writer: &mut Writer,
        extra: Extra,
        evaluate: impl FnOnce(&mut Evaluation<'_>) -> Result<T>,
    ) -> Result<T, NotNow> {
        let changes = std::mem::take(&mut writer.scratch.changes);
        let mut evaluation = Evaluation::new(self, &writer.state, changes);
        let answer = evaluate(&mut evaluation);
        let changes = std::mem::take(&mut evaluation.changes);
        let answer = match answer {
            Ok(answer) => self.commit(writer, &changes, extra).map(|()| answer),
            Err(error) => Err(error.into()),
        };
        writer.scratch.take_back(changes);
        answer
    }

    /// Numbers, encodes, admits, applies and seals. Cost follows the changes.
    pub(crate) fn commit(&self, writer: &mut Writer, changes: &[Change], mut extra: Extra) -> Result<(), NotNow> {
        let nothing = changes.is_empty() && extra.meta.is_empty();
        if nothing && extra.applied_index.is_none() && extra.compacted.is_none() && extra.floor.is_none() {
            return Ok(());
        }
        match &writer.gate {
            Gate::Open => {}
            Gate::Frozen(thaw) => return Err(NotNow::Short(thaw.ticket(Position(1)))),
            Gate::Replaced(_) => return Err(NotNow::Short(self.answer_at(Position(0)))),
        }
        extra.frees_space |= changes.iter().all(|change| change.put.is_none());
        let quota_cost = quota_cost(changes, &extra);
        // Replicas differ in their files but not in what they apply: there the frontend asks before it proposes.
        if self.options.face == Face::Standalone && !extra.frees_space && !self.has_room(quota_cost) {
            return Err(Error::from(Refusal::NoSpace).into());
        }
        let main = writer.state.main + u64::from(!changes.is_empty());
        // First: it may seal a state of its own, which this one follows.
        self.reserve(writer, main)?;
        // The list of floors is lent, not copied.
        let floors = std::mem::take(&mut writer.state.floors);
        let mut next = State { main, floors, ..writer.state.clone() };
        next.applied_index = extra.applied_index.unwrap_or(next.applied_index);
        next.compacted = extra.compacted.unwrap_or(next.compacted);
        let floor_before = extra
            .floor
            .map(|(shard, floor)| (shard, std::mem::replace(&mut next.floors[shard], floor.cast_unsigned())));
        if self.reserves() && next.main > next.reserve {
            next.reserve = next.main + self.options.reserve_ahead;
        }
        let Encoded { admission, events, kept_bytes } = match self.encode(&mut next, changes, &extra, writer) {
            Ok(encoded) => encoded,
            Err(why) => {
                if let Some((shard, floor)) = floor_before {
                    next.floors[shard] = floor;
                }
                writer.state.floors = next.floors;
                writer.scratch.clear();
                return Err(why);
            }
        };

        // From here nothing fails.
        self.take_room(quota_cost);
        let put = |change: &Change| change.put.as_ref().map_or(0, |put| change.key.len() + put.value.len());
        self.counters.put_bytes.fetch_add(changes.iter().map(put).sum::<usize>() as u64, Ordering::Relaxed);
        let (main, compacted) = (next.main, next.compacted);
        let batch = &mut writer.scratch.batch;
        let apply = || {
            for (sub, change) in changes.iter().enumerate() {
                self.apply_change(main, sub, change);
            }
            self.hub.queue(main, events, kept_bytes);
        };
        let seal = || self.publisher.seal(main, compacted, extra.floor, || self.store.apply(admission, batch));
        if is_on(Defect::SealBeforeIndex) {
            writer.last = seal();
            apply();
        } else {
            apply();
            writer.last = seal();
        }
        writer.state = next;
        writer.scratch.clear();
        Ok(())
    }

    /// Under `Batch` a main may be used only once it is reserved durably (R3).
    fn reserve(&self, writer: &mut Writer, main: u64) -> Result<(), NotNow> {
        if !(self.reserves() && self.is_batch()) {
            return Ok(());
        }
        if let Some(reserving) = &mut writer.reserving
            && self.store.durable() >= reserving.at
        {
            // The other slot of the manifest has to have it too: the newer one may rot.
            let checkpoints = self.store.checkpoints();
            if checkpoints > *reserving.in_one_slot.get_or_insert(checkpoints) {
                writer.reserved = reserving.upto;
                writer.reserving = None;
            }
        }
        if main + self.options.reserve_ahead / 2 <= writer.reserved {
            return Ok(());
        }
        if writer.reserving.is_none() {
            let mut state = writer.state.clone();
            state.reserve = main + self.options.reserve_ahead;
            let admission = self.store.admit(Cost { frees_space: true, ..Cost::default() })?;
            let upto = state.reserve;
            let mut batch = Batch::new(self.id);
            state.encode_into(&mut batch.state);
            let (main, compacted) = (state.main, state.compacted);
            let position = self.publisher.seal(main, compacted, None, || self.store.apply(admission, &mut batch));
            writer.state = state;
            writer.last = position;
            writer.reserving = Some(Reserving { upto, at: position, in_one_slot: None });
        }
        if main <= writer.reserved {
            return Ok(());
        }
        if let Some(failure) = self.store.failure() {
            return Err(Error::Storage(failure).into());
        }
        Err(NotNow::Short(self.store.flush()))
    }

    /// Encodes into the scratch, and takes room for it.
    fn encode(
        &self,
        next: &mut State,
        changes: &[Change],
        extra: &Extra,
        writer: &mut Writer,
    ) -> Result<Encoded, NotNow> {
        let Writer { state, scratch: Scratch { record, aside, places, batch, slab, .. }, .. } = writer;
        record.begin();
        aside.begin();
        let mut any_volatile = false;
        for (sub, change) in changes.iter().enumerate() {
            let volatile = self.shards[change.shard].volatile;
            any_volatile |= volatile;
            let at = Revision::new(next.main, u32::try_from(sub).expect("a txn has few changes"));
            let put = change.put.as_ref().map(|put| NewPut {
                value: &put.value,
                created: put.created,
                version: put.version,
                lease: put.lease,
            });
            let row = NewRow { at, key: &change.key, put };
            places.push((volatile, if volatile { aside.row(row) } else { record.row(row) }));
        }
        let rows = record.rows_bytes();
        let journaled = !rows.is_empty()
            || !extra.meta.is_empty()
            || extra.applied_index.is_some()
            || extra.compacted.is_some()
            || extra.floor.is_some()
            || next.reserve != state.reserve;
        next.history = if rows.is_empty() { state.history } else { next_history(state.history, rows) };
        let head = RecordHead {
            main: next.main,
            applied_index: next.applied_index,
            compacted: next.compacted,
            reserve: next.reserve,
            history: next.history,
            meta: extra.meta.clone(),
            floor: extra.floor.map(|(shard, floor)| (u32::try_from(shard).expect("few shards"), floor.cast_unsigned())),
        };
        let watched = self.hub.is_watched();
        // An event keeps its record alive for as long as its watcher likes: no other with it.
        let record = slab.keep(record.finish(&head), watched);
        let aside = if any_volatile { slab.keep(aside.finish(&RecordHead::default()), watched) } else { Bytes::new() };
        let mut events = Vec::new();
        for (sub, (volatile, place)) in places.iter().enumerate() {
            let bytes = if *volatile { &aside } else { &record };
            debug_assert!(place.len() >= crate::row::ROW_KEY_BYTES);
            let edit = Edit::Put { head: place.head(bytes), body: place.body(bytes) };
            batch.edits.push(TreeEdit { tree: self.shards[changes[sub].shard].tree, key: place.key(bytes), edit });
            if watched {
                events.extend(self.event(changes, sub, next.main, place, bytes)?);
            }
        }
        let kept_bytes = record.len() + aside.len();
        batch.edits.extend(extra.meta.iter().map(|edit| self.meta_edit(edit)));
        batch.record = if journaled { record } else { Bytes::new() };
        next.encode_into(&mut batch.state);
        if any_volatile {
            self.check_volatile(changes)?;
        }
        let admission = self.store.admit(Cost {
            edit_bytes: batch.edits.iter().map(|edit| (edit.key.len() + edit.edit.len()) as u64).sum(),
            edits: batch.edits.len() as u64,
            record_bytes: batch.record.len() as u64,
            frees_space: extra.frees_space,
            volatile: any_volatile,
        })?;
        Ok(Encoded { admission, events, kept_bytes })
    }

    /// The edit of the meta tree.
    pub(crate) fn meta_edit(&self, edit: &MetaEdit) -> TreeEdit {
        let value = match &edit.value {
            Some(value) => Edit::Put { head: Bytes::new(), body: value.clone() },
            None => Edit::Remove,
        };
        TreeEdit { tree: self.meta, key: edit.key.clone(), edit: value }
    }

    /// The event of a change, if anybody wants it. Key and value are parts of the record, so that a queued
    /// event keeps the record alive and not the buffer that a request came in. `prev_kv` is captured now,
    /// before compaction or a later write can take it away.
    fn event(
        &self,
        changes: &[Change],
        sub: usize,
        main: u64,
        place: &RowPlace,
        record: &Bytes,
    ) -> Result<Option<Event>> {
        let change = &changes[sub];
        let interest = self.hub.interest(&change.key);
        if !interest.any {
            return Ok(None);
        }
        let created = change.put.as_ref().is_some_and(|put| put.created == main);
        let prev_kv = match &change.before {
            Some(before) if interest.prev && !created => match before.own {
                None => Some(self.fetch_one(before)?),
                // Changed twice in this txn: what was there before all of it (WCH-17).
                Some(_) => {
                    let first = changes.iter().find(|first| first.key == change.key);
                    first.and_then(|first| first.before.as_ref()).map(|before| self.fetch_one(before)).transpose()?
                }
            },
            _ => None,
        };
        let (key, value) = place.key_and_value(record, change.key.len());
        let mut kv = KeyValue { key, mod_revision: main.cast_signed(), ..KeyValue::default() };
        let kind = match &change.put {
            None => EventKind::Delete,
            Some(put) => {
                kv.create_revision = put.created.cast_signed();
                kv.version = put.version.cast_signed();
                kv.value = value;
                kv.lease = put.lease;
                EventKind::Put
            }
        };
        Ok(Some(Event::new(kind, kv, prev_kv.map(KeyValue::detached))))
    }

    fn apply_change(&self, main: u64, sub: usize, change: &Change) {
        let at = Revision::new(main, u32::try_from(sub).expect("a txn has few changes"));
        let shard = &self.shards[change.shard];
        let lease = match &change.put {
            Some(put) => {
                let life = shard.keys.put(&change.key, at);
                debug_assert_eq!((life.created, life.version), (put.created, put.version));
                put.lease
            }
            None => {
                shard.keys.tombstone(&change.key, at);
                0
            }
        };
        let mut lessor = self.lessor.lock();
        if lease != 0 || lessor.len() > 0 {
            lessor.attach(&change.key, lease);
        }
    }

    /// A Volatile shard's full disk fails only what touches it (R4).
    fn check_volatile(&self, changes: &[Change]) -> Result<()> {
        for change in changes {
            let shard = &self.shards[change.shard];
            if shard.volatile
                && let Some(error) = self.store.tree_failure(shard.tree)
            {
                return Err(Error::Storage(error));
            }
        }
        Ok(())
    }
}
