//! What is intact in a damaged store comes out of it, what is not is listed, and nothing removed comes back
//! unsaid.

use crate::store::{self, Fixture, STORE, bytes_of, check, file_of, fixture, open_with, options, replace};
use polybolt::disk::Disk;
use polybolt::disk::sim::SimDisk;
use polybolt::run::seeded::Rng;
use polybolt::{KeyAt, Lost, PutRequest, RangeRequest, SalvageReport, Span};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

const NEW: &str = "/data/new";
const UNIT: usize = 4096;

type Contents = BTreeMap<Vec<u8>, Vec<u8>>;

fn contents(disk: &SimDisk, path: &str, keyspace: &str) -> Contents {
    let driven = open_with(disk, path, options()).unwrap();
    let ks = driven.engine.keyspace(keyspace).unwrap();
    let kvs = ks.range(&RangeRequest::new(Span::prefix(""))).unwrap().kvs;
    kvs.into_iter().map(|kv| (kv.key.to_vec(), kv.value.to_vec())).collect()
}

/// Salvages, and looks whether the new store is sound and goes on.
fn salvage(disk: &SimDisk, doubtful: bool) -> SalvageReport {
    let report = polybolt::salvage_on(Arc::new(disk.clone()), STORE.as_ref(), NEW.as_ref(), doubtful, &mut |_| ());
    let report = report.unwrap();
    let checked = polybolt::check_on(Arc::new(disk.clone()), NEW.as_ref(), &mut |_| ()).unwrap();
    assert!(checked.findings.is_clean(), "{:#?}", checked.findings.list);
    let copy = disk.fork();
    let mut driven = open_with(&copy, NEW, options()).unwrap();
    driven.engine.verify(&mut |_| ()).unwrap();
    for of in &report.keyspaces {
        let ks = driven.engine.keyspace(&of.name).unwrap();
        assert_eq!(ks.revision(), of.revision);
        let answer = driven.finish(ks.put(PutRequest::new("a-new", "1"))).unwrap();
        assert_eq!(answer.revision, of.revision + 1);
        drop(store::read_all(&driven.engine));
        let now = driven.finish(ks.compact(ks.revision(), true)).unwrap();
        assert!(now > 0);
    }
    let checked = {
        driven.settle();
        drop(driven);
        polybolt::check_on(Arc::new(copy.after_crash(polybolt::disk::sim::Survive::All)), NEW.as_ref(), &mut |_| ())
    };
    assert!(checked.unwrap().findings.is_clean());
    report
}

fn keys(list: &[KeyAt]) -> BTreeSet<Vec<u8>> {
    list.iter().map(|at| at.key.to_vec()).collect()
}

/// Everything that differs from the whole store is listed; nothing is there that never was.
fn is_honest(fixture: &Fixture, disk: &SimDisk, report: &SalvageReport, what: &str) {
    // The last group of a journal whose store was not closed may be dropped; that is said (R11).
    let dropped = report.findings.list.iter().any(|found| found.what.contains("the unsynced end of the journal"));
    for of in &report.keyspaces {
        let before = contents(&fixture.disk.fork(), STORE, &of.name);
        let after = contents(disk, NEW, &of.name);
        let stale = keys(&of.stale.first);
        let doubtful = keys(&of.doubtful.first);
        for (key, value) in &after {
            if before.get(key) == Some(value) {
                continue;
            }
            let name = String::from_utf8_lossy(key);
            let said = stale.contains(key) || doubtful.contains(key) || dropped;
            assert!(said, "{what}: {name} is not what it was, unsaid");
            assert!(fixture.history[&of.name][key].contains(value), "{what}: {name} never was that");
        }
        let missing = before.keys().filter(|key| !after.contains_key(*key)).count();
        assert!(missing == 0 || of.losses.count > 0 || dropped, "{what}: {missing} keys are gone, unsaid");
        if of.losses.count == 0 && !dropped {
            assert_eq!(before, after, "{what}");
        }
    }
}

#[test]
fn a_whole_store_comes_out_whole() {
    for clean in [true, false] {
        let fixture = fixture(clean);
        let disk = fixture.disk.fork();
        let report = salvage(&disk, false);
        assert!(report.findings.is_clean());
        for of in &report.keyspaces {
            assert_eq!((of.losses.count, of.stale.count, of.recovered.count, of.doubtful.count), (0, 0, 0, 0));
        }
        let driven = open_with(&disk, NEW, options()).unwrap();
        let found = store::read_all(&driven.engine).unwrap();
        for ((name, found), (_, whole)) in found.iter().zip(&fixture.full) {
            assert!(found == whole, "{name}");
        }
    }
}

/// The units that a leaf or branch of a shard begins at, by what the pages say.
fn pages(bytes: &[u8], kind: u8) -> Vec<usize> {
    (1..bytes.len() / UNIT)
        .filter(|unit| bytes[unit * UNIT + 4] == kind && bytes[unit * UNIT + 12] == *unit as u8)
        .collect()
}

#[test]
fn a_spoilt_header_loses_nothing() {
    let fixture = fixture(true);
    let disk = fixture.disk.fork();
    let file = file_of(&disk, "ks.low.");
    assert!(disk.flip_bit(&file, 70, 1));
    assert!(store::open(&disk.fork()).is_err());
    let report = salvage(&disk, false);
    is_honest(&fixture, &disk, &report, "header");
    assert!(report.keyspaces.iter().all(|of| of.losses.count == 0));
    assert_eq!(report.findings.damage, 1);
}

#[test]
fn a_lost_branch_gives_up_its_leaves() {
    let fixture = fixture(true);
    let disk = fixture.disk.fork();
    let file = file_of(&disk, "ks.low.");
    for unit in pages(&bytes_of(&disk, &file), 3) {
        assert!(disk.flip_bit(&file, (unit * UNIT + 100) as u64, 1));
    }
    let with = disk.fork();
    let report = salvage(&disk, false);
    is_honest(&fixture, &disk, &report, "branch");
    let of = report.keyspaces.iter().find(|of| of.name == "ks").unwrap();
    assert!(of.recovered.count > 20, "{of:?}");
    assert!(of.losses.first.iter().any(|loss| loss.file == file && matches!(loss.what, Lost::Revisions { .. })));
    assert!(of.doubtful.count > 0);
    // With what is doubtful there is more, and it is listed all the same.
    let report = salvage(&with, true);
    is_honest(&fixture, &with, &report, "branch, doubtful too");
    let also = report.keyspaces.iter().find(|of| of.name == "ks").unwrap();
    assert_eq!(also.rows, of.rows + of.doubtful.count);
    assert!(contents(&with, NEW, "ks").len() >= contents(&disk, NEW, "ks").len());
}

#[test]
fn a_lost_value_is_named_by_key_and_revision() {
    let fixture = fixture(true);
    let disk = fixture.disk.fork();
    let file = file_of(&disk, "ks.mid.");
    let bytes = bytes_of(&disk, &file);
    let spoilt = pages(&bytes, 4);
    for unit in &spoilt {
        disk.flip_bit(&file, (unit * UNIT + 3000) as u64, 1);
    }
    let report = salvage(&disk, false);
    is_honest(&fixture, &disk, &report, "values");
    let of = report.keyspaces.iter().find(|of| of.name == "ks").unwrap();
    let rows =
        of.losses.first.iter().filter(|loss| matches!(&loss.what, Lost::Row { key, .. } if key.starts_with(b"m")));
    assert!(rows.count() > 0, "{of:?}");
}

#[test]
fn a_missing_a_cut_and_an_empty_file_lose_their_shard_alone() {
    let fixture = fixture(false);
    for how in 0..3 {
        let disk = fixture.disk.fork();
        let file = file_of(&disk, "ks.low.");
        let bytes = bytes_of(&disk, &file);
        match how {
            0 => disk.remove(&file).unwrap(),
            1 => replace(&disk, &file, &bytes[..bytes.len() / 2]),
            _ => replace(&disk, &file, &[]),
        }
        assert!(store::open(&disk.fork()).is_err());
        assert!(check(&disk.fork()).unwrap().findings.damage > 0);
        let report = salvage(&disk, false);
        is_honest(&fixture, &disk, &report, &format!("file {how}"));
        let (before, after) = (contents(&fixture.disk.fork(), STORE, "ks"), contents(&disk, NEW, "ks"));
        for (key, value) in before.iter().filter(|(key, _)| !key.starts_with(b"a")) {
            assert_eq!(after.get(key), Some(value), "another shard");
        }
        // What the journal has of it is there.
        assert!(after.contains_key(&b"a1-12"[..]), "{how}");
    }
}

#[test]
fn groups_behind_a_gap_of_the_journal_are_kept() {
    let fixture = fixture(false);
    let found = check(&fixture.disk.fork()).unwrap().journal;
    assert_eq!(found.gaps, []);
    let mut gaps = 0;
    for (file, len) in store::files(&fixture.disk) {
        if !file.to_string_lossy().ends_with(".seg") {
            continue;
        }
        for at in (512..len).step_by(512) {
            let disk = fixture.disk.fork();
            disk.flip_bit(&file, at + 40, 3);
            if check(&disk.fork()).unwrap().journal.gaps.is_empty() {
                continue;
            }
            gaps += 1;
            assert!(store::open(&disk.fork()).is_err());
            let report = salvage(&disk, false);
            is_honest(&fixture, &disk, &report, &format!("group at {at}"));
            let of = report.keyspaces.iter().find(|of| of.name == "ks").unwrap();
            assert!(of.losses.first.iter().any(|loss| matches!(loss.what, Lost::Records { count: 1 })), "{of:?}");
            assert!(contents(&disk, NEW, "ks").contains_key(&b"m1-13"[..]), "the group behind it");
        }
    }
    assert!(gaps >= 10, "{gaps}");
}

#[test]
fn whatever_is_spoilt_nothing_comes_back_unsaid() {
    let seeds = std::env::var("POLYBOLT_SALVAGES").ok().and_then(|count| count.parse().ok()).unwrap_or(30);
    let fixtures = [fixture(true), fixture(false)];
    let mut lossy = 0;
    for seed in 0..seeds {
        let mut rng = Rng::new(seed);
        let fixture = &fixtures[(seed % 2) as usize];
        let disk = fixture.disk.fork();
        let all: Vec<_> = store::files(&disk).into_iter().filter(|(_, len)| *len > 0).collect();
        for _ in 0..=rng.below(4) {
            let (file, len) = &all[rng.below(all.len() as u64) as usize];
            if file.to_string_lossy().contains("MANIFEST.0") {
                continue;
            }
            spoil(&disk, file, *len, &mut rng);
        }
        let report = salvage(&disk, rng.one_in(3));
        is_honest(fixture, &disk, &report, &format!("seed {seed}"));
        lossy += u64::from(report.keyspaces.iter().any(|of| of.losses.count > 0));
    }
    println!("{seeds} damaged stores salvaged, {lossy} of them with losses");
    assert!(lossy > seeds / 4, "{lossy}");
}

fn spoil(disk: &SimDisk, file: &Path, len: u64, rng: &mut Rng) {
    let at = rng.below(len);
    // The end of a journal that is gone as a whole cannot be told from one that was never written.
    let in_journal = file.to_string_lossy().ends_with(".seg");
    if in_journal || rng.one_in(2) {
        disk.flip_bit(file, at, rng.below(8) as u8);
        return;
    }
    let mut bytes = bytes_of(disk, file);
    let from = at as usize / UNIT * UNIT;
    let to = bytes.len().min(from + UNIT);
    let filler = rng.next_u64() as u8;
    bytes[from..to].fill(filler);
    replace(disk, file, &bytes);
}
