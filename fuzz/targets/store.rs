//! A store with bytes of its files changed and the checksums put right again, as by a writer with a bug: it is
//! refused with an error that names a file, or opens, answers and takes writes; whatever `open` refuses, `check`
//! finds; and what salvage makes of it is sound.
//!
//! Input: flags, then changes: file, offset (3 bytes), kind, length, bytes.
#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};
use polybolt::disk::Disk;
use polybolt::disk::OpenMode;
use polybolt::disk::sim::SimDisk;
use polybolt::{Error, Keyspace, Options, PutRequest, RangeRequest, Severity, Span, StorageError, WatchRequest};
use polybolt_fuzz::drive::{self, Driven, STORE};
use polybolt_fuzz::{fixture, repair};
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

const UNCLEAN: u8 = 1;
const AS_IT_IS: u8 = 2;
const WRITES: u8 = 4;
const SALVAGE: u8 = 8;
const READ_ONLY: u8 = 16;

/// A file of the store.
struct Sound {
    path: PathBuf,
    bytes: Vec<u8>,
    /// Of a tree file.
    pages: Vec<(usize, usize)>,
}

struct Template {
    disk: SimDisk,
    files: Vec<Sound>,
}

static TEMPLATES: LazyLock<[Template; 2]> = LazyLock::new(|| {
    [true, false].map(|clean| {
        let disk = fixture::store(clean);
        let files = disk.files().into_iter().filter(|(path, _)| !path.ends_with("LOCK"));
        let files = files.map(|(path, len)| {
            let bytes = disk.peek(&path, 0, len as usize).expect("it is as long");
            let is_tree = path.extension().is_some_and(|kind| kind == "tree");
            let pages = if is_tree { repair::pages_of(&bytes) } else { Vec::new() };
            Sound { path, bytes, pages }
        });
        Template { files: files.collect(), disk }
    })
});

/// Makes one change; what is left of the input.
fn change<'a>(template: &Template, now: &mut [Option<Vec<u8>>], repairs: bool, input: &'a [u8]) -> Option<&'a [u8]> {
    let ([file, a, b, c, kind, len], rest) = input.split_first_chunk()?;
    let (bytes, rest) = rest.split_at(usize::from(*len).min(rest.len()));
    let at = usize::from(*file) % template.files.len();
    let sound = &template.files[at];
    let file = now[at].get_or_insert_with(|| sound.bytes.clone());
    let offset = u32::from_le_bytes([*a, *b, *c, 0]) as usize % sound.bytes.len().max(1);
    match kind % 8 {
        6 => {
            file.truncate(offset);
            return Some(rest);
        }
        // A page in another's place.
        7 if sound.pages.len() > 1 => {
            let (from, len) = sound.pages[usize::from(*len) % sound.pages.len()];
            let (to, room) = sound.pages[offset % sound.pages.len()];
            if len <= room && file.len() >= to + len {
                file[to..to + len].copy_from_slice(&sound.bytes[from..from + len]);
            }
            return Some(rest);
        }
        _ => {}
    }
    for (byte, new) in file.iter_mut().skip(offset).zip(bytes) {
        *byte = *new;
    }
    if repairs {
        let name = sound.path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("MANIFEST") {
            repair::manifest(file);
        } else if name.ends_with(".seg") {
            repair::segment(file);
        } else if file.len() == sound.bytes.len() {
            repair::pages(file, &sound.pages, offset, bytes.len().max(1));
        }
    }
    Some(rest)
}

fn replace(disk: &SimDisk, path: &PathBuf, bytes: &[u8]) {
    let file = disk.open(path, OpenMode::Write).expect("it is there");
    file.truncate(bytes.len() as u64).expect("the disk has room");
    file.write_at(bytes, 0).expect("the disk has room");
    file.sync_data().expect("it works");
}

/// The error says where the damage is, or what cannot be.
fn typed(error: &Error) {
    match error {
        Error::Storage(StorageError::Corrupt { file, .. }) => assert!(!file.as_os_str().is_empty()),
        Error::Unknown(_) | Error::Storage(_) | Error::Refused(_) => assert!(!error.to_string().is_empty()),
        _ => {}
    }
}

/// Everything that can be read of a keyspace; the first damage.
fn read(driven: &Driven, ks: &Keyspace) -> Result<(), Error> {
    let everything = RangeRequest::new(Span::prefix(""));
    let newest = ks.range(&everything)?;
    let from = ks.compact_revision().max(1);
    // A revision that a header made up may be far away.
    for revision in from..=ks.revision().min(from.saturating_add(30)) {
        drop(ks.range(&RangeRequest { revision, ..everything.clone() }).inspect_err(typed));
    }
    drop(ks.hash_kv(0).inspect_err(typed));
    let watch =
        WatchRequest { span: Span::prefix(""), start_revision: from, no_put: false, no_delete: false, prev_kv: true };
    if let Ok(mut watcher) = ks.watch(watch).inspect_err(typed) {
        for _ in 0..300 {
            match watcher.try_recv().inspect_err(typed) {
                Ok(std::task::Poll::Ready(Some(_))) => {}
                _ => break,
            }
        }
    }
    for id in ks.leases() {
        drop(ks.lease_time_to_live(id, true));
    }
    for kv in newest.kvs.iter().take(20) {
        ks.range(&RangeRequest::new(Span::key(kv.key.clone())))?;
    }
    driven.blocking(|| ks.table_list("t")).map(drop)
}

fn write(driven: &Driven, ks: &Keyspace) {
    for n in 0..12 {
        let put = PutRequest::new(format!("{}{n}", ["a", "m", "v", "x"][n % 4]), vec![n as u8; 30 + 900 * (n % 3)]);
        drop(driven.finish(ks.put(put)).inspect_err(typed));
        driven.run(4, Duration::from_millis(30));
    }
    drop(driven.finish(ks.compact(ks.revision(), true)).inspect_err(typed));
    drop(driven.finish(ks.lease_revoke(1)).inspect_err(typed));
    drop(driven.blocking(|| ks.defragment()).inspect_err(typed));
    for _ in 0..20 {
        driven.run(60, Duration::from_millis(50));
    }
}

fn salvage(disk: &SimDisk) {
    let report = polybolt::salvage_on(Arc::new(disk.clone()), STORE.as_ref(), "/data/new".as_ref(), true, &mut |_| ());
    if report.inspect_err(typed).is_err() {
        return;
    }
    let report =
        polybolt::check_on(Arc::new(disk.clone()), "/data/new".as_ref(), &mut |_| ()).expect("it was just made");
    let wrong = report.findings.list.iter().find(|finding| finding.severity != Severity::Note);
    assert!(wrong.is_none(), "what was salvaged is damaged: {wrong:?}");
    let driven = Driven::open(disk, "/data/new", drive::options(), 3).expect("what was salvaged opens");
    driven.engine.verify(&mut |_| ()).expect("what was salvaged is sound");
}

fuzz_target!(|input: &[u8]| -> Corpus {
    let Some((&flags, mut input)) = input.split_first() else { return Corpus::Reject };
    let template = &TEMPLATES[usize::from(flags & UNCLEAN != 0)];
    let mut now: Vec<Option<Vec<u8>>> = template.files.iter().map(|_| None).collect();
    for _ in 0..24 {
        let Some(rest) = change(template, &mut now, flags & AS_IT_IS == 0, input) else { break };
        input = rest;
    }
    let disk = template.disk.fork();
    for (sound, bytes) in template.files.iter().zip(now) {
        if let Some(bytes) = bytes {
            replace(&disk, &sound.path, &bytes);
        }
    }
    let report = polybolt::check_on(Arc::new(disk.fork()), STORE.as_ref(), &mut |_| ());
    let sound = match &report {
        Ok(report) => report.findings.list.iter().all(|finding| finding.severity == Severity::Note),
        Err(error) => {
            typed(error);
            false
        }
    };
    if flags & SALVAGE != 0 {
        salvage(&disk.fork());
    }
    let options = Options { read_only: flags & READ_ONLY != 0, ..drive::options() };
    let driven = match Driven::open(&disk, STORE, options, 5) {
        Ok(driven) => driven,
        Err(error) => {
            typed(&error);
            assert!(!sound, "check finds nothing, but it does not open: {error}");
            return Corpus::Keep;
        }
    };
    if let Err(error) = driven.engine.verify(&mut |_| ()) {
        typed(&error);
        assert!(!sound, "check finds nothing, but verify does: {error}");
    }
    for name in driven.engine.keyspaces() {
        let ks = driven.engine.keyspace(&name).expect("it is listed");
        if let Err(error) = read(&driven, &ks) {
            typed(&error);
            assert!(!sound || matches!(error, Error::Refused(_)), "check finds nothing, but a read does: {error}");
        }
        if flags & (WRITES | READ_ONLY) == WRITES {
            write(&driven, &ks);
        }
    }
    drop(driven.close().inspect_err(typed));
    Corpus::Keep
});
