//! A small store whose jobs are in the hands of an explorer's threads.

use bytes::Bytes;
use polybolt_engine::disk::Disk;
use polybolt_engine::disk::sim::SimDisk;
use polybolt_engine::ids::SpaceId;
use polybolt_engine::journal::{Journal, JournalJob, JournalOptions, JournalParts, SegmentJob};
use polybolt_engine::manifest::JournalStart;
use polybolt_engine::poison::Poison;
use polybolt_engine::run::{Job, Next, Signal};
use polybolt_engine::ticket::Watermark;
use polybolt_engine::{
    AdmitError, Batch, Cost, Edit, Position, Replay, Replayed, Result, Runtime, SpaceInfo, SpaceSpec, Store,
    StoreOptions, TreeEdit, TreeSpec,
};
use std::sync::Arc;
use std::time::Duration;

struct Nothing;

impl Replay for Nothing {
    fn replay(&mut self, _: &SpaceInfo, _: &[u8], _: &[u8]) -> Result<Replayed> {
        unreachable!("the store is new")
    }

    fn settled(&mut self, _: &SpaceInfo, _: &[u8], _: bool) -> Result<Option<Bytes>> {
        Ok(None)
    }
}

/// Jobs of a store.
pub(crate) struct Jobs {
    pub(crate) journal: Box<dyn Job>,
    pub(crate) segments: Box<dyn Job>,
    pub(crate) checkpoint: Box<dyn Job>,
}

/// A store whose jobs have nothing to do: a segment is ready and nothing is dirty.
pub(crate) fn store() -> (Arc<Store>, SpaceInfo, Jobs) {
    store_of(1000, 8192)
}

/// The same with so large buffers, and so large a journal.
pub(crate) fn store_of(buffer_bytes: u64, journal_bytes: u64) -> (Arc<Store>, SpaceInfo, Jobs) {
    let disk: Arc<dyn Disk> = Arc::new(SimDisk::new(1));
    let options = StoreOptions {
        buffer_bytes,
        segment_bytes: 4096,
        journal_bytes,
        space_reserve_bytes: 0,
        ..StoreOptions::new("/data/store")
    };
    let store = Store::open(disk, options, Runtime::Manual, &mut Nothing).unwrap();
    let tree = TreeSpec { page_bytes: 4096, ..TreeSpec::new("t".to_owned()) };
    let spec = SpaceSpec { name: "space".into(), config: Bytes::new(), state: Bytes::new(), trees: vec![tree] };
    let space = store.create_space(spec).unwrap();
    let mut jobs: [Box<dyn Job>; 3] = store.take_jobs().try_into().ok().unwrap();
    for _ in 0..2 {
        jobs.iter_mut().for_each(|job| while job.step(Duration::ZERO) == Next::Again {});
    }
    for job in &jobs {
        job.signal().take();
    }
    let [journal, segments, checkpoint] = jobs;
    (Arc::new(store), space, Jobs { journal, segments, checkpoint })
}

/// An edit of so many bytes, with a record of so many.
pub(crate) fn write(
    store: &Store,
    space: &SpaceInfo,
    bytes: usize,
    record_bytes: u64,
) -> std::result::Result<Position, AdmitError> {
    let admission = store.admit(Cost { edit_bytes: bytes as u64, edits: 1, record_bytes, ..Cost::default() })?;
    let edit = Edit::Put { head: Bytes::new(), body: Bytes::from(vec![0; bytes - 1]) };
    let edits = vec![TreeEdit { tree: space.trees[0].id, key: Bytes::from_static(b"k"), edit }];
    let record = Bytes::from(vec![b's'; record_bytes as usize]);
    Ok(store.apply(admission, &mut Batch { space: space.id, edits, record, state: Vec::new() }))
}

/// Runs a job as a thread does, until it has nothing to do now and `done` says so. No time passes: whoever
/// is not woken waits for ever.
pub(crate) fn run(job: &mut dyn Job, done: impl Fn() -> bool) {
    loop {
        match job.step(Duration::ZERO) {
            Next::Again => {}
            Next::Idle | Next::At(_) if done() => return,
            Next::Idle | Next::At(_) => job.signal().wait(None),
            Next::Done => panic!("the jobs of a store do not end"),
        }
    }
}

/// A journal that threads may lead, with a segment ready and a job that has nothing to do.
pub(crate) fn journal() -> (Arc<Journal>, Arc<Watermark>, JournalJob) {
    let disk: Arc<dyn Disk> = Arc::new(SimDisk::new(1));
    disk.create_dir("/j".as_ref()).unwrap();
    let durable = Arc::new(Watermark::default());
    let journal = Journal::new(JournalParts {
        disk,
        options: JournalOptions { dir: "/j".into(), segment_bytes: 32 << 10, bytes_max: 1 << 20 },
        engine: 1,
        session: 1,
        start: JournalStart { segment: 1, offset: 0, sequence: 1, chain: 0, position: Position(0) },
        segments: Vec::new(),
        poison: Arc::new(Poison::default()),
        on_durable: Box::new(|_, _| ()),
        checkpoint: Signal::default(),
        durable: Arc::clone(&durable),
    });
    let mover: std::sync::Weak<Journal> = Arc::downgrade(&journal);
    durable.set_mover(mover);
    let (mut job, mut segments) = (JournalJob::new(Arc::clone(&journal)), SegmentJob::new(Arc::clone(&journal)));
    for at in 0..2 {
        while segments.step(Duration::ZERO) == Next::Again {}
        while job.step(Duration::ZERO) == Next::Again {}
        if at == 0 {
            append(&journal);
        }
    }
    journal.signal().take();
    (journal, durable, job)
}

pub(crate) fn append(journal: &Journal) -> Position {
    let charge = journal.charge(4).unwrap();
    journal.append(SpaceId(1), b"some", charge)
}
