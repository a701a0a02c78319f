//! A store with something of everything, on a simulated disk, and what can be read from it.

use polybolt::disk::sim::{SimDisk, Survive};
use polybolt::disk::{Disk, OpenMode};
use polybolt::run::ManualClock;
use polybolt::run::seeded::Seeded;
use polybolt::{
    CheckReport, DeleteRequest, Engine, Keyspace, Op, Options, PutRequest, RangeRequest, Result, Routes, Runtime,
    ShardOptions, Span, TableEdit, TxnRequest,
};
use std::collections::BTreeMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

pub(crate) const STORE: &str = "/data/store";

pub(crate) struct Driven {
    pub(crate) engine: Engine,
    pub(crate) jobs: Seeded,
}

/// Bytes of a page of [`routes`].
pub(crate) const PAGE: usize = 8192;

pub(crate) fn options() -> Options {
    Options {
        buffer_bytes: 120_000,
        segment_bytes: 8192,
        journal_bytes: 160 << 10,
        checkpoint_interval: Duration::from_millis(80),
        space_reserve_bytes: 0,
        admission_timeout: Duration::from_secs(2),
        ..Options::default()
    }
}

/// Three shards, of pages so small that some of their trees have branches.
pub(crate) fn routes() -> Routes {
    let shard = |name: &str| ShardOptions { page_bytes: PAGE, ..ShardOptions::new(name) };
    Routes::new(vec![shard("low").prefix("a"), shard("mid").prefix("m"), shard("default")]).unwrap()
}

pub(crate) fn open_with(disk: &SimDisk, path: &str, options: Options) -> Result<Driven> {
    let clock = ManualClock::default();
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    let runtime = Runtime { disk, clock: Arc::new(clock.clone()), threads: false };
    let engine = Engine::open_with(path, options, runtime)?;
    let jobs = Seeded::new(engine.take_jobs(), clock, 7);
    Ok(Driven { engine, jobs })
}

pub(crate) fn open(disk: &SimDisk) -> Result<Driven> {
    open_with(disk, STORE, options())
}

pub(crate) fn check(disk: &SimDisk) -> Result<CheckReport> {
    polybolt::check_on(Arc::new(disk.clone()), STORE.as_ref(), &mut |_| ())
}

impl Driven {
    pub(crate) fn finish<T>(&mut self, answer: impl Future<Output = T>) -> T {
        let mut answer = pin!(answer);
        for _ in 0..20_000 {
            match answer.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(done) => return done,
                Poll::Pending if self.jobs.step_one() => {}
                Poll::Pending => self.jobs.advance(Duration::from_millis(5)),
            }
        }
        panic!("no answer came");
    }

    pub(crate) fn settle(&mut self) {
        for _ in 0..20 {
            self.jobs.run_until_idle(1000);
            self.jobs.advance(Duration::from_millis(50));
        }
        self.jobs.run_until_idle(1000);
    }
}

/// A stopped store and what it held.
pub(crate) struct Fixture {
    pub(crate) disk: SimDisk,
    /// All values that each key of each keyspace ever had.
    pub(crate) history: BTreeMap<String, BTreeMap<Vec<u8>, Vec<Vec<u8>>>>,
    pub(crate) full: Picture,
    /// Without the last journal group; None after a clean close.
    pub(crate) without_last: Option<Picture>,
}

/// Everything that can be read.
pub(crate) type Picture = Vec<(String, Vec<u8>)>;

/// Two keyspaces of several shards, with history, deletes, a compaction, long keys, overflow values, leases
/// and tables; what is not clean has a journal of many groups, one of them over two segments, to be replayed.
pub(crate) fn fixture(clean: bool) -> Fixture {
    let disk = SimDisk::new(11);
    let mut history: BTreeMap<String, BTreeMap<Vec<u8>, Vec<Vec<u8>>>> = BTreeMap::new();
    let mut note = |keyspace: &str, put: PutRequest| {
        let keys = history.entry(keyspace.to_owned()).or_default();
        keys.entry(put.key.to_vec()).or_default().push(put.value.to_vec());
        put
    };
    disk.create_dir("/data".as_ref()).unwrap();
    let mut driven = open(&disk).unwrap();
    let ks = driven.engine.create_keyspace("ks", routes()).unwrap();
    let other = driven.engine.create_keyspace("other", Routes::single()).unwrap();
    for (id, ttl) in [(7, 1000), (8, 2000)] {
        driven.finish(ks.lease_grant(id, ttl)).unwrap();
    }
    for n in 0..160u64 {
        let key = format!("{}{}", ["a", "m", "x"][(n % 3) as usize], n % 41);
        let key = if n % 20 == 3 { format!("{key}{}", "k".repeat(500)) } else { key };
        let value = vec![n as u8; if n % 9 == 4 { 9000 } else { 200 }];
        let lease = if n % 11 == 0 { 7 } else { 0 };
        driven.finish(ks.put(note("ks", PutRequest { lease, ..PutRequest::new(key, value) }))).unwrap();
        if n % 17 == 5 {
            let gone = format!("m{}", n % 41);
            driven.finish(ks.delete_range(DeleteRequest { span: Span::key(gone), prev_kv: false })).unwrap();
        }
        driven.jobs.advance(Duration::from_millis(6));
        driven.jobs.run_some(8);
    }
    for n in 0..30u64 {
        let put = note("other", PutRequest::new(format!("t{n}"), vec![n as u8; 100]));
        driven.finish(other.put(put)).unwrap();
    }
    let edits = (0..20).map(|n: u8| TableEdit {
        table: "things".into(),
        key: vec![n].into(),
        value: Some(vec![n; if n == 9 { 5000 } else { 60 }].into()),
    });
    driven.finish(ks.table_write(edits.collect())).unwrap();
    driven.finish(ks.compact(60, true)).unwrap();
    for round in 0..3 {
        // What the sweep took away is away in both slots.
        driven.settle();
        driven.finish(ks.put(note("ks", PutRequest::new("a0", format!("{round}"))))).unwrap();
    }
    driven.settle();
    let mut without_last = None;
    if clean {
        drop((ks, other));
        driven.engine.clone().close().unwrap();
    } else {
        for n in 0..14u64 {
            let key = ["a1", "m1", "x1"][(n % 3) as usize];
            let mut put = |key: &str, len| Op::Put(note("ks", PutRequest::new(key.to_owned(), vec![n as u8; len])));
            let success = vec![put(key, if n == 6 { 9000 } else { 100 }), put(&format!("{key}-{n}"), 20)];
            if n == 13 {
                without_last = Some(picture(&disk.after_crash(Survive::All)).unwrap().0);
            }
            driven.finish(ks.txn(TxnRequest { compare: vec![], success, failure: vec![] })).unwrap();
        }
        drop((ks, other));
    }
    drop(driven);
    let disk = disk.after_crash(Survive::Nothing);
    let (full, report) = picture(&disk.fork()).unwrap();
    assert_eq!(report.0, clean);
    if !clean {
        assert!(report.1 >= 14, "{report:?}");
    }
    Fixture { disk, history, full, without_last }
}

/// Opens a store and reads all of it; with the answers whether it was closed, the groups replayed, and
/// whether the end of the journal was dropped.
pub(crate) fn picture(disk: &SimDisk) -> Result<(Picture, (bool, u64, bool))> {
    let driven = open(disk)?;
    let report = driven.engine.report();
    let report = (report.clean, report.groups, report.dropped.is_some());
    Ok((read_all(&driven.engine)?, report))
}

/// Everything that can be read of an engine.
pub(crate) fn read_all(engine: &Engine) -> Result<Picture> {
    let mut picture = Picture::new();
    for name in engine.keyspaces() {
        let ks = engine.keyspace(&name)?;
        let mut all = Vec::new();
        for frame in ks.snapshot()? {
            all.extend_from_slice(&frame?);
        }
        picture.push((format!("{name}: snapshot"), all));
        for revision in [0, ks.revision() - 20, ks.compact_revision().max(2)] {
            let kvs = ks.range(&RangeRequest { revision, ..RangeRequest::new(Span::prefix("")) })?;
            picture.push((format!("{name}: range at {revision}"), format!("{kvs:?}").into_bytes()));
        }
        picture.push((format!("{name}: rest"), rest(&ks)?.into_bytes()));
    }
    Ok(picture)
}

fn rest(ks: &Keyspace) -> Result<String> {
    let leases: Vec<_> = ks.leases().iter().map(|id| ks.lease_time_to_live(*id, true).map(|of| of.keys)).collect();
    Ok(format!("{leases:?} {:?} {:?}", ks.table_list("things")?, ks.hash_kv(0)?))
}

/// The names of all files of a store and their lengths.
pub(crate) fn files(disk: &SimDisk) -> Vec<(PathBuf, u64)> {
    let mut files = Vec::new();
    for dir in [STORE.to_owned(), format!("{STORE}/journal")] {
        for name in disk.list(dir.as_ref()).unwrap() {
            let path = Path::new(&dir).join(name);
            if let Ok(file) = disk.open(&path, OpenMode::Read) {
                files.push((path, file.len().unwrap()));
            }
        }
    }
    files
}

/// The file of a shard.
pub(crate) fn file_of(disk: &SimDisk, prefix: &str) -> PathBuf {
    let named = |path: &Path| path.file_name().unwrap().to_string_lossy().starts_with(prefix);
    files(disk).into_iter().map(|(path, _)| path).find(|path| named(path)).unwrap()
}

/// All bytes of a file.
pub(crate) fn bytes_of(disk: &SimDisk, path: &Path) -> Vec<u8> {
    let file = disk.open(path, OpenMode::Read).unwrap();
    let mut bytes = vec![0; file.len().unwrap() as usize];
    file.read_at(&mut bytes, 0).unwrap();
    bytes
}

/// Replaces a file.
pub(crate) fn replace(disk: &SimDisk, path: &Path, bytes: &[u8]) {
    let file = disk.open(path, OpenMode::Write).unwrap();
    file.truncate(bytes.len() as u64).unwrap();
    file.write_at(bytes, 0).unwrap();
    file.sync_data().unwrap();
}
