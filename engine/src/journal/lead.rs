//! Who writes: the journal's job, or a thread that waits alone for the only record there is.
//!
//! A thread that leads saves waking the job and being woken by it, which takes about as long as a fast disk's sync.
//! It writes one group; if records came meanwhile, the job goes on. While threads lead, the job is not
//! woken but looks by itself from time to time, for records that nobody waits for.

use super::Journal;
use super::writer::Writer;
use crate::error::Error;
use crate::run::{Job, Next, Signal};
use crate::sync::MutexGuard;
use crate::sync::atomic::Ordering;
use crate::ticket::{Mover, Position};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::Duration;

/// How often the job looks while threads lead, which bounds how long a record that nobody waits for is not written.
const LOOK: Duration = Duration::from_millis(1);
/// Looks without a group in between until the job wants to be woken again.
const LOOKS: u32 = 50;

/// Writes groups that nobody else does. One per journal.
#[derive(Debug)]
pub struct JournalJob {
    journal: Arc<Journal>,
    /// Groups that there were at the last look, and looks since there were more.
    groups: u64,
    looks: u32,
}

impl JournalJob {
    /// The job of `journal`.
    pub fn new(journal: Arc<Journal>) -> Self {
        JournalJob { journal, groups: 0, looks: 0 }
    }

    /// When to look again, if the job's own work leaves it `next`.
    fn look(&mut self, now: Duration, next: Next) -> Next {
        let journal = &self.journal;
        if next == Next::Again || !journal.lone.load(Ordering::Relaxed) {
            return next;
        }
        let groups = journal.groups();
        self.looks = if groups == self.groups { self.looks + 1 } else { 0 };
        self.groups = groups;
        if self.looks >= LOOKS {
            self.looks = 0;
            return if journal.end_lone(|pending| pending.records == 0) { next } else { Next::Again };
        }
        Next::At(now + LOOK)
    }
}

impl Job for JournalJob {
    fn name(&self) -> &'static str {
        "journal"
    }

    fn signal(&self) -> Signal {
        self.journal.signal.clone()
    }

    fn step(&mut self, now: Duration) -> Next {
        let journal = &self.journal;
        if journal.poison.check().is_err() {
            return Next::Idle;
        }
        let Some(mut writer) = journal.writer_for_job() else {
            return self.look(now, Next::Idle);
        };
        journal.end_lone(|pending| pending.records > 0);
        let outcome = writer.write_step(journal);
        drop(writer);
        match outcome {
            Ok(true) => self.look(now, Next::Again),
            Ok(false) => self.look(now, Next::Idle),
            Err(error) => {
                self.journal.poison.set(&error);
                Next::Idle
            }
        }
    }
}

impl Drop for JournalJob {
    /// Whoever leads ends before; nobody does after.
    fn drop(&mut self) {
        self.journal.writer.lock().closed = true;
    }
}

impl Mover for Journal {
    fn lead(&self, at: Position) {
        let alone = {
            let pending = self.pending.lock();
            pending.records == 1 && pending.last == at.0
        };
        match alone.then(|| self.writer.try_lock()).flatten() {
            None => self.hurry(),
            Some(writer) => self.lead_with(writer, at),
        }
    }

    fn hurry(&self) {
        if self.lone.load(Ordering::Relaxed) && self.end_lone(|_| true) {
            self.signal.raise();
        }
    }
}

impl Journal {
    /// Ends that the job is not woken, if `end` says so of what is pending; false if it does not, or is woken anyway.
    fn end_lone(&self, end: impl FnOnce(&super::Pending) -> bool) -> bool {
        if !self.lone.load(Ordering::Relaxed) {
            return false;
        }
        let pending = self.pending.lock();
        end(&pending) && self.lone.swap(false, Ordering::Relaxed)
    }

    /// None while a thread leads. If the job does not look again by itself, that one wakes it after that.
    fn writer_for_job(&self) -> Option<MutexGuard<'_, Writer>> {
        let writer = self.writer.try_lock();
        if writer.is_some() || self.lone.load(Ordering::Relaxed) {
            return writer;
        }
        self.passed_by.store(true, Ordering::SeqCst);
        // It may have looked just before.
        self.writer.try_lock()
    }

    /// Makes `at` durable, if that is not for the job, and leaves what came meanwhile to the job.
    fn lead_with(&self, mut writer: MutexGuard<'_, Writer>, at: Position) {
        // Among many it is chance that a group begins with one.
        let leads = writer.records <= 1 && !writer.closed;
        let write = || {
            while leads && self.durable.reached() < at && self.poison.check().is_ok() {
                match writer.write_step(self) {
                    Ok(true) => {}
                    Ok(false) => return,
                    Err(error) => self.poison.set(&error),
                }
            }
        };
        let outcome = catch_unwind(AssertUnwindSafe(write));
        if outcome.is_err() {
            self.poison.set(&Error::Poisoned { cause: "writing the journal panicked".into() });
        }
        drop(writer);
        let passed_by = self.passed_by.swap(false, Ordering::SeqCst);
        let pending = self.pending.lock();
        let more = passed_by || pending.records > 0;
        let was_lone = self.lone.swap(!more, Ordering::Relaxed);
        drop(pending);
        // Once more as it begins: the job is to look by itself from now on.
        if more || !was_lone {
            self.signal.raise();
        }
        if let Err(panic) = outcome {
            resume_unwind(panic);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::AdmitError;
    use crate::disk::sim::{Fault, SimDisk};
    use crate::disk::{Disk, SECTOR_BYTES};
    use crate::ids::SpaceId;
    use crate::journal::{JournalOptions, JournalParts, SegmentJob};
    use crate::manifest::JournalStart;
    use crate::ticket::Watermark;
    use std::path::PathBuf;
    use std::task::{Context, Waker};

    struct Fixture {
        disk: Arc<SimDisk>,
        journal: Arc<Journal>,
        job: JournalJob,
        durable: Arc<Watermark>,
        poison: Arc<crate::poison::Poison>,
    }

    /// A journal with a segment ready, whose job has nothing to do.
    fn fixture() -> Fixture {
        let (disk, dir) = (Arc::new(SimDisk::new(1)), PathBuf::from("/j"));
        disk.create_dir(&dir).unwrap();
        let (poison, durable) = (Arc::new(crate::poison::Poison::default()), Arc::new(Watermark::default()));
        poison.watch(&durable);
        let journal = Journal::new(JournalParts {
            disk: Arc::clone(&disk) as Arc<dyn Disk>,
            options: JournalOptions { dir, segment_bytes: 64 * SECTOR_BYTES as u64, bytes_max: 1 << 20 },
            engine: 7,
            session: 1,
            start: JournalStart { segment: 1, offset: 0, sequence: 1, chain: 0, position: Position(0) },
            segments: Vec::new(),
            poison: Arc::clone(&poison),
            on_durable: Box::new(|_, _| ()),
            checkpoint: Signal::default(),
            durable: Arc::clone(&durable),
        });
        let mover: std::sync::Weak<Journal> = Arc::downgrade(&journal);
        durable.set_mover(mover);
        let (mut job, mut segments) = (JournalJob::new(Arc::clone(&journal)), SegmentJob::new(Arc::clone(&journal)));
        // Two segments: one that is begun, and one that is ready then.
        for _ in 0..2 {
            while segments.step(Duration::ZERO) == Next::Again {}
            while job.step(Duration::ZERO) == Next::Again {}
            if journal.groups() == 0 {
                append(&journal);
            }
        }
        journal.signal.take();
        Fixture { disk, journal, job, durable, poison }
    }

    fn append(journal: &Journal) -> Position {
        let charge = journal.charge(4).unwrap_or_else(|refused: AdmitError| panic!("{refused:?}"));
        journal.append(SpaceId(1), b"some", charge)
    }

    #[test]
    fn whoever_waits_alone_writes_and_wakes_nobody() {
        let Fixture { journal, durable, job: _job, .. } = fixture();
        let first = append(&journal);
        assert!(journal.signal.take(), "the job is woken");
        durable.ticket(first).wait().unwrap();
        assert!(journal.signal.take(), "told to look by itself from now on");
        for _ in 0..3 {
            let (groups, next) = (journal.groups(), append(&journal));
            durable.ticket(next).wait().unwrap();
            assert_eq!(journal.groups(), groups + 1);
            assert!(!journal.signal.take(), "nobody is woken");
        }
    }

    #[test]
    fn what_nobody_waits_for_is_written_at_a_look() {
        let Fixture { journal, durable, mut job, .. } = fixture();
        durable.ticket(append(&journal)).wait().unwrap();
        assert_eq!(job.step(Duration::ZERO), Next::At(LOOK));
        journal.signal.take();
        let at = append(&journal);
        assert!(!journal.signal.take());
        while job.step(LOOK) == Next::Again {}
        assert_eq!(durable.reached(), at);
        append(&journal);
        assert!(journal.signal.take(), "it is woken again");
    }

    #[test]
    fn a_job_with_nothing_to_look_at_wants_to_be_woken() {
        let Fixture { journal, durable, mut job, .. } = fixture();
        durable.ticket(append(&journal)).wait().unwrap();
        let mut now = Duration::ZERO;
        let mut looks = 0;
        while let Next::At(at) = job.step(now) {
            assert_eq!(at, now + LOOK);
            (now, looks) = (at, looks + 1);
        }
        assert_eq!(looks, LOOKS, "the first one saw a group, the last one ends it");
        journal.signal.take();
        append(&journal);
        assert!(journal.signal.take());
    }

    #[test]
    fn tasks_and_second_ones_wake_the_job() {
        let Fixture { journal, durable, mut job, .. } = fixture();
        durable.ticket(append(&journal)).wait().unwrap();
        journal.signal.take();
        let mut ticket = durable.ticket(append(&journal));
        assert!(!journal.signal.take());
        let mut cx = Context::from_waker(Waker::noop());
        assert!(std::pin::Pin::new(&mut ticket).poll(&mut cx).is_pending());
        assert!(journal.signal.take());
        while job.step(Duration::ZERO) == Next::Again {}
        assert!(ticket.is_reached());

        durable.ticket(append(&journal)).wait().unwrap();
        journal.signal.take();
        append(&journal);
        let second = append(&journal);
        assert!(journal.signal.take());
        // Whoever waits for one of many leaves them to it.
        journal.lead(second);
        assert!(durable.reached() < second);
    }

    #[test]
    fn no_group_waits_for_a_segment_that_is_made() {
        let Fixture { disk, journal, mut job, durable, .. } = fixture();
        let mut segments = SegmentJob::new(Arc::clone(&journal));
        while !journal.wants_segment() {
            append(&journal);
            while job.step(Duration::ZERO) == Next::Again {}
        }
        assert!(journal.segments.take(), "it is woken once none is ready");
        (0..3).for_each(|_| assert_eq!(segments.step(Duration::ZERO), Next::Again));
        let (calls, at) = (disk.calls(), append(&journal));
        while job.step(Duration::ZERO) == Next::Again {}
        assert_eq!(durable.reached(), at);
        assert_eq!(disk.calls() - calls, 2, "a write and a sync");
        while segments.step(Duration::ZERO) == Next::Again {}
        assert!(!journal.wants_segment());
    }

    #[test]
    fn if_no_segment_can_be_made_a_checkpoint_is_asked_for_room() {
        let Fixture { disk, journal, mut job, .. } = fixture();
        let mut segments = SegmentJob::new(Arc::clone(&journal));
        disk.set_capacity(Some(disk.used()));
        let mut now = Duration::ZERO;
        while journal.charge(4).map(|charge| journal.append(SpaceId(1), b"some", charge)).is_ok() {
            assert!(!journal.is_short(), "there is room yet");
            while job.step(now) == Next::Again {}
            while segments.step(now) == Next::Again {}
            now += Duration::from_secs(1);
        }
        assert!(journal.is_short());
        disk.set_capacity(None);
        now += Duration::from_secs(1);
        while segments.step(now) == Next::Again {}
        append(&journal);
    }

    #[test]
    fn nobody_leads_without_a_job() {
        let Fixture { journal, durable, job, .. } = fixture();
        let at = append(&journal);
        drop(job);
        journal.lead(at);
        assert!(durable.reached() < at);
    }

    #[test]
    fn what_a_leader_meets_is_everybodys() {
        let Fixture { disk, journal, durable, poison, job: _job } = fixture();
        let at = append(&journal);
        disk.fail_at(disk.calls() + 1, 1, Fault::Eio);
        assert!(durable.ticket(at).wait().is_err());
        assert!(poison.check().is_err());
    }
}
