//! What a crash leaves is no damage: the check finds nothing, whatever the call that was stopped and whatever
//! of the unsynced writes is kept.

use crate::store::{Driven, STORE, check, file_of, open_with, options, read_all};
use polybolt::disk::Disk;
use polybolt::disk::sim::{SimDisk, Survive};
use polybolt::{
    DeleteRequest, Durability, Engine, Error, Op, Options, PutRequest, RangeRequest, Result, Routes, Severity, Span,
    StorageError, TableEdit, TxnRequest,
};
use std::time::Duration;

fn small(durability: Durability) -> Options {
    Options {
        durability,
        buffer_bytes: 40_000,
        journal_bytes: 48 << 10,
        checkpoint_interval: Duration::from_millis(30),
        ..options()
    }
}

fn work(disk: &SimDisk, durability: Durability) -> Result<()> {
    let mut driven = open_with(disk, STORE, small(durability))?;
    let ks = driven.engine.create_keyspace("ks", Routes::parse("low=a,mid=m,gone:volatile=v").unwrap())?;
    let lease = ks.lease_grant(5, 100);
    finish(&mut driven, lease)?;
    for n in 0..50u64 {
        let key = format!("{}{}", ["a", "m", "x", "v"][(n % 4) as usize], n % 13);
        let value = vec![n as u8; if n % 9 == 4 { 9000 } else { 300 }];
        let lease = if n % 7 == 0 { 5 } else { 0 };
        let put = ks.put(PutRequest { lease, ..PutRequest::new(key, value) });
        finish(&mut driven, put)?;
        if n % 10 == 6 {
            let gone = ks.delete_range(DeleteRequest { span: Span::prefix("m1"), prev_kv: false });
            finish(&mut driven, gone)?;
            let edit = TableEdit { table: "t".into(), key: "k".into(), value: Some(vec![1; 70].into()) };
            let table = ks.table_write(vec![edit]);
            finish(&mut driven, table)?;
        }
        if n == 30 || n == 40 {
            let compacted = ks.compact(ks.revision() - 5, false);
            finish(&mut driven, compacted)?;
        }
        driven.jobs.run_some(6);
        driven.jobs.advance(Duration::from_millis(9));
    }
    drop(ks);
    let again = driven.engine.create_keyspace("second", Routes::single())?;
    drop(again);
    driven.engine.drop_keyspace("second")?;
    driven.engine.close()
}

/// An answer, or the crash that no answer comes after.
fn finish<T>(driven: &mut Driven, answer: impl Future<Output = Result<T>>) -> Result<T> {
    driven.finish(answer)
}

fn is_sound(disk: &SimDisk, what: &str) -> bool {
    match check(disk) {
        // Nothing was made yet.
        Err(Error::Storage(StorageError::NotAStore { .. })) => false,
        Err(Error::Storage(error)) if error.is_not_found() => false,
        Err(error) => panic!("{what}: {error}"),
        Ok(report) => {
            let damage = report.findings.list.iter().filter(|finding| finding.severity != Severity::Note);
            for finding in damage {
                // A commit that a power cut has torn: nobody can tell it from a slot that was spoilt later.
                let torn = what.contains("MANIFEST") && what.contains("Mix") && finding.what.contains("power cut");
                assert!(torn, "{what}: {finding}");
            }
            let known = [
                "the manifest does not name it",
                "the unsynced end of the journal",
                "no file of the journal",
                "the store was being made",
            ];
            for note in report.findings.list.iter().filter(|finding| finding.severity == Severity::Note) {
                assert!(known.iter().any(|known| note.what.starts_with(known)), "{what}: {note}");
            }
            true
        }
    }
}

#[test]
fn what_a_crash_leaves_at_any_call_is_sound() {
    let batch = Durability::Batch { interval: Duration::from_millis(20), limit: 9 };
    let mut looked = 0;
    for durability in [Durability::Sync, batch] {
        let whole = SimDisk::new(5);
        whole.create_dir("/data".as_ref()).unwrap();
        work(&whole, durability).unwrap();
        assert!(is_sound(&whole, "closed"));
        for call in (2..=whole.calls()).step_by(3) {
            let disk = SimDisk::new(5);
            disk.create_dir("/data".as_ref()).unwrap();
            disk.crash_at(call);
            drop(work(&disk, durability));
            for survive in [Survive::All, Survive::Nothing, Survive::Mix(call), Survive::Mix(call + 1000)] {
                let crashed = disk.after_crash(survive);
                let what = format!("{durability:?}, call {call} ({}), {survive:?}", disk.last_call());
                looked += u64::from(is_sound(&crashed, &what));
                // And what opening makes of it.
                if call % 4 == 0 {
                    let driven = open_with(&crashed, STORE, small(durability)).unwrap();
                    // Revisions below a floor are refused.
                    assert!(matches!(read_all(&driven.engine), Ok(_) | Err(Error::Refused(_))), "{what}");
                    drop(driven);
                    is_sound(&crashed.after_crash(Survive::Nothing), &what);
                }
            }
        }
    }
    println!("{looked} crashed stores checked");
    assert!(looked > 500, "{looked}");
}

/// It was called damage.
#[test]
fn a_key_that_a_txn_deletes_and_puts_again_is_sound() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(dir.path(), Options::default()).unwrap();
    let ks = engine.create_keyspace("ks", Routes::single()).unwrap();
    ks.put(PutRequest::new("a", "1")).wait().unwrap();
    // TXN-23: to the end is the one way to delete a key that is put too.
    let delete = DeleteRequest { span: Span::from_key("a"), prev_kv: false };
    let txn =
        TxnRequest { success: vec![Op::Delete(delete), Op::Put(PutRequest::new("a", "2"))], ..TxnRequest::default() };
    ks.txn(txn).wait().unwrap();
    ks.put(PutRequest::new("a", "3")).wait().unwrap();
    let frames: Result<Vec<_>> = ks.snapshot().unwrap().collect();
    let copy = engine.restore("copy", None, &frames.unwrap().concat()[..], &mut |_| ()).unwrap();
    let kvs = copy.range(&RangeRequest::new(Span::key("a"))).unwrap().kvs;
    assert_eq!((kvs[0].create_revision, kvs[0].version), (3, 2));
    drop((ks, copy));
    engine.close().unwrap();
    let report = polybolt::check(dir.path(), &mut |_| ()).unwrap();
    assert!(report.findings.is_clean(), "{:?}", report.findings);
}

/// It begins empty whatever its file holds, and check says so; but whoever only looked was refused.
#[test]
fn a_volatile_file_that_nothing_is_read_of_may_be_damaged() {
    let disk = SimDisk::new(1);
    disk.create_dir("/data".as_ref()).unwrap();
    let mut driven = open_with(&disk, STORE, small(Durability::Sync)).unwrap();
    let ks = driven.engine.create_keyspace("ks", Routes::parse("gone:volatile=v").unwrap()).unwrap();
    for key in ["a", "v"] {
        driven.finish(ks.put(PutRequest::new(key, "1"))).unwrap();
    }
    disk.stop();
    drop((ks, driven));
    let disk = disk.after_crash(Survive::Nothing);
    assert!(disk.flip_bit(&file_of(&disk, "ks.gone."), 100, 1));
    for options in [Options { read_only: true, ..options() }, options()] {
        assert!(check(&disk.fork()).unwrap().findings.is_clean());
        let driven = open_with(&disk.fork(), STORE, options).unwrap();
        driven.engine.verify(&mut |_| ()).unwrap();
        let kvs = driven.engine.keyspace("ks").unwrap().range(&RangeRequest::new(Span::prefix(""))).unwrap().kvs;
        assert_eq!(kvs.iter().map(|kv| &kv.key[..]).collect::<Vec<_>>(), [b"a"]);
    }
}
