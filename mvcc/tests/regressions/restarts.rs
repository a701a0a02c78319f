//! What a restart finds.

use crate::*;

/// A new reserve was forgotten as soon as it was made; and at the last reserved revision, which somebody had
/// seen, a keyspace went on at that revision with another state.
#[test]
fn under_batch_no_revision_that_was_shown_is_used_again() {
    for puts in 1..48 {
        for rots in [false, true] {
            let disk = new_disk(puts);
            let options = || Options { durability: BATCH, reserve_ahead: 6, ..options() };
            let driven = open(&disk, options()).unwrap();
            let ks = driven.engine.create_keyspace("ks", Routes::single()).unwrap();
            for n in 0..puts {
                driven.put(&ks, &format!("k{n}"), vec![1; 40]).unwrap();
            }
            let (shown, had) = (ks.revision(), keys(&ks));
            let disk = disk.after_crash(Survive::Nothing);
            if rots {
                // The other slot of the manifest has to have the reserve too.
                rot(&disk);
            }
            let driven = open(&disk, options()).unwrap();
            let ks = driven.engine.keyspace("ks").unwrap();
            let same = keys(&ks) == had && ks.revision() == shown;
            assert!(same || ks.revision() > shown, "{} after {shown} of {puts}, rotten: {rots}", ks.revision());
        }
    }
}

/// A Volatile shard that could not be written before a clean stop came back empty and without a floor: its
/// watchers would have missed that everything is gone.
#[test]
fn a_volatile_shard_that_comes_back_empty_has_a_floor() {
    let mut emptied = 0;
    for call in 1..40 {
        let disk = new_disk(1);
        let driven = open(&disk, options()).unwrap();
        let ks = driven.engine.create_keyspace("ks", volatile()).unwrap();
        driven.put(&ks, "m", vec![1]).unwrap();
        let shown = ks.revision();
        disk.fail_at(disk.calls() + call, 1, Fault::Eio);
        drop(ks);
        let engine = driven.engine;
        if engine.close().is_err() {
            continue;
        }
        disk.heal();
        let driven = open(&disk, options()).unwrap();
        let ks = driven.engine.keyspace("ks").unwrap();
        if keys(&ks).is_empty() {
            emptied += 1;
            let old = ks.range(&RangeRequest { revision: shown, ..RangeRequest::new(Span::key("m")) });
            assert!(is_compacted(&old) && ks.revision() > shown, "EIO at call {call}: {old:?}");
        }
    }
    assert!(emptied > 0);
}

/// That was also so after a crash at exactly the last revision that was reserved.
#[test]
fn an_emptied_volatile_shard_has_a_floor_at_the_last_reserved_revision() {
    for puts in 1..30 {
        let disk = new_disk(1);
        let options = || Options { reserve_ahead: 5, ..options() };
        let driven = open(&disk, options()).unwrap();
        let ks = driven.engine.create_keyspace("ks", volatile()).unwrap();
        driven.fill(&ks, "m", 1);
        (0..puts).for_each(|_| driven.fill(&ks, "a", 1));
        let shown = ks.revision();
        let driven = open(&disk.after_crash(Survive::Nothing), options()).unwrap();
        let ks = driven.engine.keyspace("ks").unwrap();
        let old = ks.range(&RangeRequest { revision: shown, ..RangeRequest::new(Span::key("m")) });
        assert!(is_compacted(&old) && ks.revision() > shown, "after {puts} puts: {old:?}");
    }
}

/// A Volatile shard's file that was made anew at an open was not in its directory for good: a power cut after a clean
/// stop took it, and the store did not open any more.
#[test]
fn a_volatile_file_that_was_made_anew_is_there_after_a_clean_stop() {
    let disk = new_disk(1);
    let driven = open(&disk, options()).unwrap();
    let ks = driven.engine.create_keyspace("ks", volatile()).unwrap();
    let file = ks.volatile_files().pop_first().unwrap();
    let disk = disk.after_crash(Survive::Nothing);
    assert!(disk.flip_bit(&file, 50, 1), "its header");
    let driven = open(&disk, options()).unwrap();
    let ks = driven.engine.keyspace("ks").unwrap();
    driven.put(&ks, "m", vec![1]).unwrap();
    drop(ks);
    driven.engine.close().unwrap();
    let driven = open(&disk.after_crash(Survive::Nothing), options()).unwrap();
    assert_eq!(keys(&driven.engine.keyspace("ks").unwrap()), ["m"]);
}

/// A restored keyspace whose files could not be read at once stayed, unusable, and its name was taken.
#[test]
fn a_restore_that_fails_leaves_its_name_free() {
    let mut failed = 0;
    for read in 1..60 {
        let disk = new_disk(1);
        let driven = open(&disk, options()).unwrap();
        let ks = driven.engine.create_keyspace("ks", Routes::parse("low=a").unwrap()).unwrap();
        driven.put(&ks, "a", vec![1; 9000]).unwrap();
        let stream = driven.block(|| ks.snapshot().unwrap().map(Result::unwrap).collect::<Vec<_>>().concat());
        let restore = || driven.block(|| driven.engine.restore("copy", None, &stream[..], &mut |_| ()));
        disk.fail_reads(disk.reads() + read, 1, ReadFault::Eio);
        let first = restore();
        disk.heal();
        if first.is_err() {
            failed += 1;
            assert_eq!(keys(&restore().unwrap()), ["a"], "after EIO at read {read}");
        }
    }
    assert!(failed > 0);
}

/// The process is killed between the write and the sync of the manifest; the next one trusted it, wrote the
/// other slot, and a power cut took both.
#[test]
fn a_manifest_that_a_killed_process_left_unsynced_is_not_all_there_is() {
    // Of several sectors, which a power cut tears.
    let routes = Routes::parse("first=a,second=b,third=c,fourth=d,fifth=e,sixth=f,seventh=g,eighth=h").unwrap();
    for killed in 1..10 {
        for cut in 1..12 {
            let disk = new_disk(1);
            let driven = open(&disk, options()).unwrap();
            let ks = driven.engine.create_keyspace("ks", routes.clone()).unwrap();
            disk.crash_on("MANIFEST", killed);
            let put = |n: &u64| {
                driven.pass(Duration::from_millis(8));
                driven.put(&ks, &format!("k{n:02}"), vec![1; 200]).is_ok()
            };
            let kept = (0..12).take_while(put).count();
            drop((ks, driven));
            let disk = disk.after_crash(Survive::All);
            disk.crash_on("MANIFEST", cut);
            drop(open(&disk, options()));
            disk.stop();
            for mix in 0..6 {
                let opened = open(&disk.after_crash(Survive::Mix(killed * 1000 + cut * 10 + mix)), options());
                let opened = opened.unwrap_or_else(|error| panic!("killed at {killed}, cut at {cut}: {error}"));
                let found = keys(&opened.engine.keyspace("ks").unwrap());
                assert!(found.len() >= kept, "{found:?} of {kept}, killed at {killed}, cut at {cut}");
            }
        }
    }
}

/// A Volatile file that could not be read once was replaced while the manifest named a root in it.
#[test]
fn a_volatile_file_that_cannot_be_read_once_is_replaced_after_the_manifest_forgets_it() {
    for read in 1..16 {
        for cut in 1..24 {
            let disk = new_disk(1);
            let driven = open(&disk, options()).unwrap();
            let ks = driven.engine.create_keyspace("ks", volatile()).unwrap();
            driven.put(&ks, "m", vec![1]).unwrap();
            drop(ks);
            driven.engine.close().unwrap();
            disk.fail_reads(disk.reads() + read, 1, ReadFault::Eio);
            disk.crash_at(disk.calls() + cut);
            drop(open(&disk, options()));
            for survive in [Survive::All, Survive::Nothing] {
                let opened = open(&disk.after_crash(survive), options());
                let opened = opened.unwrap_or_else(|error| panic!("EIO at read {read}, cut at {cut}: {error}"));
                opened.engine.verify(&mut |_| ()).unwrap();
            }
        }
    }
}

/// A segment that a killed process had renamed was written to before its name was on disk.
#[test]
fn a_segment_that_a_killed_process_made_has_its_name_on_disk_before_it_is_used() {
    for killed in 1..30 {
        let disk = new_disk(1);
        let driven = open(&disk, options()).unwrap();
        let ks = driven.engine.create_keyspace("ks", Routes::single()).unwrap();
        disk.crash_on("journal", killed);
        let kept = (0..12).take_while(|n| driven.put(&ks, &format!("k{n:02}"), vec![1; 900]).is_ok()).count();
        drop((ks, driven));
        let disk = disk.after_crash(Survive::All);
        let driven = open(&disk, Options { checkpoint_interval: Duration::from_secs(60), ..options() }).unwrap();
        let ks = driven.engine.keyspace("ks").unwrap();
        (0..3).for_each(|n| driven.fill(&ks, &format!("more{n}"), 900));
        let opened = open(&disk.after_crash(Survive::Nothing), options()).unwrap();
        let found = keys(&opened.engine.keyspace("ks").unwrap());
        assert!(found.len() >= kept + 3, "{found:?} of {kept} and 3, killed at {killed}");
    }
}

/// A restored or installed keyspace took writes while one slot of the manifest said that it is unfinished: had
/// the other slot rotted, the writes would have gone with it.
#[test]
fn a_restored_and_an_installed_keyspace_are_in_both_slots_before_they_take_writes() {
    let source = open(&new_disk(2), Options { face: Face::Replayed, ..options() }).unwrap();
    let ks = source.engine.create_keyspace("ks", Routes::single()).unwrap();
    let put =
        |index: u64, key: &str| Entry { index, command: Command::Op(Op::Put(PutRequest::new(key.to_owned(), "v"))) };
    source.finish(ks.apply(vec![put(1, "a"), put(2, "b")])).unwrap();
    let stream = source.block(|| ks.snapshot().unwrap().map(Result::unwrap).collect::<Vec<_>>().concat());
    for durability in [Durability::Sync, BATCH] {
        for installs in [false, true] {
            let disk = new_disk(1);
            let options = || Options { face: Face::Replayed, durability, ..options() };
            let driven = open(&disk, options()).unwrap();
            let ks = if installs {
                let ks = driven.engine.create_keyspace("ks", Routes::single()).unwrap();
                driven.finish(ks.apply(vec![put(1, "a")])).unwrap();
                let done = driven.block(|| driven.engine.install("ks", &stream[..], Older::Refuse).unwrap().wait());
                assert_eq!(done.unwrap(), 3);
                ks
            } else {
                driven.block(|| driven.engine.restore("ks", None, &stream[..], &mut |_| ())).unwrap()
            };
            driven.finish(ks.apply(vec![put(3, "c")])).unwrap();
            let disk = disk.after_crash(Survive::Nothing);
            rot(&disk);
            let driven = open(&disk, options()).unwrap();
            let found = keys(&driven.engine.keyspace("ks").unwrap());
            let wanted: &[&str] = if durability == BATCH { &["a", "b"] } else { &["a", "b", "c"] };
            assert_eq!(found, wanted, "{durability:?}, installed: {installs}");
        }
    }
}

/// An open took files for strays which the other slot of the manifest still named: if the newer slot rotted
/// before the open had written both, nothing opened any more.
#[test]
fn files_of_a_dropped_keyspace_stay_while_a_slot_names_them() {
    let mut rotten = 0;
    for drop_call in 1..20 {
        for open_call in 1..40 {
            let disk = new_disk(1);
            let driven = open(&disk, options()).unwrap();
            let ks = driven.engine.create_keyspace("ks", Routes::single()).unwrap();
            driven.put(&ks, "a", vec![1]).unwrap();
            drop(ks);
            disk.crash_at(disk.calls() + drop_call);
            drop(driven.engine.drop_keyspace("ks"));
            drop(driven);
            let disk = disk.after_crash(Survive::All);
            disk.crash_at(disk.calls() + open_call);
            let opened = open(&disk, options()).is_ok();
            let disk = disk.after_crash(Survive::All);
            rot(&disk);
            rotten += 1;
            if let Err(error) = open(&disk, options()) {
                panic!("crashes at call {drop_call} of the drop and {open_call} of the open: {error}");
            }
            if opened {
                break;
            }
        }
    }
    assert!(rotten > 20, "{rotten}");
}
