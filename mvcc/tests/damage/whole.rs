//! Damage that leaves every checksum right: pages in each other's place, pages and files of another time or
//! of another store, files that are cut or empty. And both ways of reading, on real files.

use crate::flips::{Outcome, judge, positions};
use crate::store::{PAGE, STORE, bytes_of, check, file_of, files, fixture, open, options, read_all, replace, routes};
use polybolt::disk::Disk;
use polybolt::disk::sim::{SimDisk, Survive};
use polybolt::run::seeded::Rng;
use polybolt::{Engine, Error, Options, PutRequest, RangeRequest, Span, StorageError};
use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const UNIT: usize = 4096;

/// Damaged: by anybody but as a wrong answer.
fn is_found(outcome: Outcome) -> bool {
    matches!(outcome, Outcome::ReportedByOpen | Outcome::ReportedByRead | Outcome::ReportedByCheck)
}

#[test]
fn swapped_pages_are_found() {
    for clean in [true, false] {
        let fixture = fixture(clean);
        let mut outcomes: BTreeMap<Outcome, u64> = BTreeMap::new();
        let mut rng = Rng::new(3);
        for prefix in ["ks.low.", "ks.mid.", "ks.default.", "ks.meta."] {
            let file = file_of(&fixture.disk, prefix);
            let bytes = bytes_of(&fixture.disk, &file);
            let units = bytes.len() / UNIT;
            for _ in 0..12 {
                let [a, b] = [0, 0].map(|_: usize| (1 + rng.below(units as u64 - 2) as usize) * UNIT);
                if a.abs_diff(b) < PAGE {
                    continue;
                }
                let mut swapped = bytes.clone();
                let (low, high) = (a.min(b), a.max(b));
                let (front, back) = swapped.split_at_mut(high);
                front[low..low + PAGE].swap_with_slice(&mut back[..PAGE]);
                let disk = fixture.disk.fork();
                replace(&disk, &file, &swapped);
                *outcomes.entry(judge(&fixture, &disk, &file, prefix)).or_insert(0) += 1;
            }
        }
        println!("swapped: {outcomes:?}");
        let found: u64 = outcomes.iter().filter(|(outcome, _)| is_found(**outcome)).map(|(_, n)| n).sum();
        assert!(found >= 10, "{outcomes:?}");
    }
}

/// A store as it was at two times: after half of what it holds, and after all.
fn two_times() -> (SimDisk, SimDisk) {
    let disk = SimDisk::new(5);
    disk.create_dir("/data".as_ref()).unwrap();
    let mut driven = open(&disk).unwrap();
    let ks = driven.engine.create_keyspace("ks", routes()).unwrap();
    let mut older = None;
    for n in 0..200u64 {
        let key = format!("{}{}", ["a", "m", "x"][(n % 3) as usize], n % 31);
        driven.finish(ks.put(PutRequest::new(key, vec![n as u8; 400]))).unwrap();
        driven.jobs.advance(std::time::Duration::from_millis(6));
        driven.jobs.run_some(8);
        if n == 120 {
            driven.settle();
            older = Some(disk.fork());
        }
    }
    driven.finish(ks.compact(150, true)).unwrap();
    for n in 0..3 {
        driven.settle();
        driven.finish(ks.put(PutRequest::new("a0", format!("{n}")))).unwrap();
    }
    drop(ks);
    driven.engine.clone().close().unwrap();
    drop(driven);
    (older.unwrap(), disk.after_crash(Survive::Nothing))
}

#[test]
fn a_page_or_a_file_of_another_time_is_found() {
    let (older, disk) = two_times();
    let full = read_all(&open(&disk.fork()).unwrap().engine).unwrap();
    let (mut found, mut unused) = (0, 0);
    for prefix in ["ks.low.", "ks.mid.", "ks.default."] {
        let file = file_of(&disk, prefix);
        let (then, now) = (bytes_of(&older, &file), bytes_of(&disk, &file));
        // Every page of then that is another one now, put back where it was.
        for at in (UNIT..then.len().min(now.len()) - PAGE).step_by(UNIT) {
            if then[at..at + PAGE] == now[at..at + PAGE] {
                continue;
            }
            let mut stale = now.clone();
            stale[at..at + PAGE].copy_from_slice(&then[at..at + PAGE]);
            let copy = disk.fork();
            replace(&copy, &file, &stale);
            let report = check(&copy.fork()).unwrap();
            match open(&copy).and_then(|driven| read_all(&driven.engine)) {
                Ok(picture) => {
                    assert!(picture == full, "{prefix} at {at}: wrong answers");
                    unused += 1;
                }
                Err(Error::Storage(StorageError::Corrupt { file: named, .. })) => {
                    assert_eq!(named, file);
                    assert!(!report.findings.is_clean(), "{prefix} at {at}");
                    found += 1;
                }
                Err(error) => panic!("{error}"),
            }
        }
        // And the whole file.
        let copy = disk.fork();
        replace(&copy, &file, &then);
        assert!(check(&copy.fork()).unwrap().findings.list.iter().any(|finding| finding.file == file));
        let error = open(&copy).unwrap_err_or("an older backup of a shard");
        assert!(error.to_string().starts_with(&file.display().to_string()), "{error}");
    }
    println!("pages of an older epoch: {found} found, {unused} where nothing is");
    assert!(found > 10, "{found}");
}

/// `unwrap_err` for what is not `Debug`.
trait UnwrapErr {
    fn unwrap_err_or(self, what: &str) -> Error;
}

impl<T> UnwrapErr for Result<T, Error> {
    fn unwrap_err_or(self, what: &str) -> Error {
        match self {
            Ok(_) => panic!("{what} was opened"),
            Err(error) => error,
        }
    }
}

#[test]
fn an_older_manifest_slot_is_found_and_the_newer_one_used() {
    let (older, disk) = two_times();
    let full = read_all(&open(&disk.fork()).unwrap().engine).unwrap();
    for slot in 0..2 {
        let file = PathBuf::from(STORE).join(format!("MANIFEST.{slot}"));
        let copy = disk.fork();
        replace(&copy, &file, &bytes_of(&older, &file));
        let report = check(&copy.fork()).unwrap();
        assert!(report.findings.list.iter().any(|finding| finding.file == file), "{:?}", report.findings.list);
        assert!(read_all(&open(&copy).unwrap().engine).unwrap() == full, "slot {slot}");
    }
}

#[test]
fn a_cut_file_an_empty_file_and_one_of_another_store_are_found() {
    let other = {
        let (_, disk) = two_times();
        // The same names and ids, another engine.
        disk
    };
    for clean in [true, false] {
        let fixture = fixture(clean);
        let mut outcomes: BTreeMap<(&str, Outcome), u64> = BTreeMap::new();
        for (file, len) in files(&fixture.disk) {
            if len == 0 {
                continue;
            }
            let name = file.file_name().unwrap().to_string_lossy().into_owned();
            let kind = crate::flips::kind_of(&file);
            for cut in [0, 1, len / 2, len - 1] {
                let disk = fixture.disk.fork();
                replace(&disk, &file, &bytes_of(&fixture.disk, &file)[..cut as usize]);
                let outcome = judge(&fixture, &disk, &file, &format!("{name} cut to {cut}"));
                assert!(clean || kind != "journal" || outcome != Outcome::LastGroupDropped, "{name} cut to {cut}");
                *outcomes.entry((kind, outcome)).or_insert(0) += 1;
            }
            if let Some(theirs) = files(&other).iter().find(|(path, _)| *path == file) {
                let disk = fixture.disk.fork();
                replace(&disk, &file, &bytes_of(&other, &theirs.0));
                let outcome = judge(&fixture, &disk, &file, &format!("{name} of another store"));
                assert!(is_found(outcome), "{name} of another store: {outcome:?}");
            }
        }
        println!("cut: {outcomes:?}");
    }
}

/// Writes a simulated store to a real directory.
fn to_real(disk: &SimDisk, dir: &Path) {
    std::fs::create_dir_all(dir.join("journal")).unwrap();
    for (path, _) in files(disk) {
        std::fs::write(dir.join(path.strip_prefix(STORE).unwrap()), bytes_of(disk, &path)).unwrap();
    }
}

fn read_real(dir: &Path, cache: Option<u64>) -> Result<(Vec<u8>, bool), Error> {
    let options = Options { read_only: true, read_cache_bytes: cache, ..options() };
    let engine = Engine::open(dir, options)?;
    let mut all = Vec::new();
    for name in engine.keyspaces() {
        let ks = engine.keyspace(&name)?;
        for revision in [0, ks.compact_revision().max(2)] {
            let kvs = ks.range(&RangeRequest { revision, ..RangeRequest::new(Span::prefix("")) })?.kvs;
            all.extend_from_slice(format!("{kvs:?} {:?}", ks.table_list("things")?).as_bytes());
        }
    }
    Ok((all, engine.report().dropped.is_some()))
}

#[test]
#[expect(clippy::disallowed_methods, reason = "it damages files from outside")]
fn mapped_and_pread_files_with_a_flipped_bit_are_read_right_or_not_at_all() {
    for clean in [true, false] {
        let fixture = fixture(clean);
        let dir = tempfile::tempdir().unwrap();
        to_real(&fixture.disk, dir.path());
        let (full, _) = read_real(dir.path(), None).unwrap();
        assert!(polybolt::check(dir.path(), &mut |_| ()).unwrap().findings.is_clean());
        let trees: Vec<_> = files(&fixture.disk).into_iter().filter(|(_, len)| *len > 0).collect();
        let mut rng = Rng::new(9);
        let (mut right, mut refused, mut dropped) = (0, 0, 0);
        for n in 0..positions(60) / 10 + 60 {
            let (path, len) = &trees[rng.below(trees.len() as u64) as usize];
            let path = dir.path().join(path.strip_prefix(STORE).unwrap());
            let at = rng.below(*len);
            let file = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ (1 << (n % 8))], at).unwrap();
            for cache in [None, Some(64 << 10)] {
                match read_real(dir.path(), cache) {
                    Ok((found, _)) if found == full => right += 1,
                    Ok((_, true)) => dropped += 1,
                    Ok(_) => panic!("{} at {at}: wrong answers", path.display()),
                    Err(Error::Storage(
                        StorageError::Corrupt { file, .. } | StorageError::Unsupported { file, .. },
                    )) => {
                        let journal = dir.path().join("journal");
                        assert!(file == path || (file.starts_with(&journal) && path.starts_with(&journal)));
                        refused += 1;
                    }
                    Err(error) => panic!("{} at {at}: {error}", path.display()),
                }
            }
            file.write_all_at(&byte, at).unwrap();
        }
        println!(
            "real files, both ways of reading: {right} right, {refused} refused, {dropped} without the last group"
        );
        assert!(right > 10 && refused > 10 && (!clean || dropped == 0));
    }
}
