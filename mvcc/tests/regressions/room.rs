//! Room: full disks, budgets, and who waits for them.

use crate::*;

/// An entry that met a full disk moved the applied index, as if it had been refused on every replica.
#[test]
fn an_entry_that_finds_no_room_is_not_applied() {
    let disk = new_disk(1);
    let driven = open(&disk, Options { face: Face::Replayed, ..options() }).unwrap();
    let ks = driven.engine.create_keyspace("ks", Routes::single()).unwrap();
    driven.pass(Duration::from_millis(100));
    disk.set_capacity(Some(disk.used() + 10_000));
    let entry = |index: u64| {
        let put = PutRequest::new(format!("k{index}"), vec![index as u8; 3000]);
        vec![Entry { index, command: Command::Op(Op::Put(put)) }]
    };
    let refused = (1..100).find(|&index| {
        driven.pass(Duration::from_millis(30));
        match driven.finish(ks.apply(entry(index))) {
            Ok(_) => false,
            Err(Error::Refused(Refusal::DiskFull)) => true,
            Err(error) => panic!("{error}"),
        }
    });
    let refused = refused.expect("the disk fills up");
    assert_eq!(ks.applied_index(), refused - 1);
    disk.set_capacity(None);
    driven.pass(Duration::from_secs(3));
    driven.finish(ks.apply(entry(refused))).unwrap()[0].as_ref().unwrap();
    assert_eq!(ks.applied_index(), refused);
}

/// A manifest that was longer than its slot found the disk full, and that left the store without writes.
#[test]
fn a_manifest_that_outgrows_its_slot_on_a_full_disk_waits_for_room() {
    // The roots of so many trees are more than what a slot has to spare.
    let shards: Vec<String> = (0..300).map(|n| format!("s{n:03}=k{n:03}")).collect();
    let routes = Routes::parse(&shards.join(",")).unwrap();
    let options = || Options { space_reserve_bytes: 0, buffer_bytes: 1 << 20, journal_bytes: 1 << 20, ..options() };
    let trees = |disk: &SimDisk| -> u64 {
        let files = disk.files();
        files.iter().filter(|(path, _)| path.extension().is_some_and(|tree| tree == "tree")).map(|(_, len)| len).sum()
    };
    let fill = |disk: &SimDisk| {
        let slow = Options { checkpoint_interval: Duration::from_secs(60), ..options() };
        let driven = open(disk, slow).unwrap();
        let ks = driven.engine.create_keyspace("ks", routes.clone()).unwrap();
        let put = |n: u64| Op::Put(PutRequest::new(format!("k{n:03}"), "v"));
        for from in [0, 100, 200] {
            let success = (from..from + 100).map(put).collect();
            driven.finish(ks.txn(TxnRequest { success, ..TxnRequest::default() })).unwrap();
        }
        (driven, ks)
    };
    let disk = new_disk(1);
    let (driven, _ks) = fill(&disk);
    let before = trees(&disk);
    driven.pass(Duration::from_secs(61));
    let pages = trees(&disk) - before;
    assert!(pages > 0);
    let mut full = 0;
    for spare in (0..10).map(|units| units * 4096) {
        let disk = new_disk(1);
        let (driven, ks) = fill(&disk);
        disk.set_capacity(Some(disk.used() + pages + spare));
        driven.pass(Duration::from_secs(63));
        full += u64::from(driven.engine.stats().no_space > 0);
        assert_eq!(driven.engine.failure().map(|failure| failure.to_string()), None);
        disk.set_capacity(None);
        driven.pass(Duration::from_secs(2));
        driven.put(&ks, "k", vec![2]).unwrap();
    }
    assert!(full > 0, "there was always room");
}

/// A vacuum that a checkpoint overtook kept its budget, and in the end every writer waited.
#[test]
fn a_vacuum_that_is_overtaken_gives_its_budget_back() {
    for period in 1..10 {
        let driven = open(&new_disk(period), Options { buffer_bytes: 7000, ..options() }).unwrap();
        let ks = driven.engine.create_keyspace("ks", Routes::single()).unwrap();
        for n in 0..60 {
            driven.put(&ks, &format!("k{:02}", n % 20), vec![n; 2500]).unwrap();
        }
        driven.finish(ks.compact(ks.revision(), true)).unwrap();
        let (jobs, clock, other) = (Rc::clone(&driven.jobs), driven.clock.clone(), ks.clone());
        let mut waits = 0u64;
        meanwhile(Some(Box::new(move |at| {
            if at == "wait" {
                waits += 1;
                assert!(waits < 100_000, "it never ends");
                if !jobs.borrow_mut().step_one() {
                    clock.advance(Duration::from_millis(5));
                }
                if waits < 600 && waits.is_multiple_of(period) {
                    drop(other.put(PutRequest::new(format!("k{:02}", waits % 20), vec![7; 2500])));
                }
            }
            at == "wait"
        })));
        ks.defragment().unwrap();
        meanwhile(None);
        driven.pass(Duration::from_secs(3));
        assert_eq!(driven.engine.stats().buffered_bytes, 0, "a put every {period} waits");
    }
}

/// A request in line was refused by whoever moved the line, and its own caller was never told.
#[test]
fn a_request_that_is_refused_in_line_is_told() {
    let disk = new_disk(1);
    // The journal has room, buffers have not.
    let journal = Options { segment_bytes: 64 << 10, journal_bytes: 256 << 10, ..options() };
    let driven = open(&disk, Options { buffer_bytes: 6000, space_reserve_bytes: 0, ..journal }).unwrap();
    let ks = driven.engine.create_keyspace("ks", Routes::single()).unwrap();
    driven.pass(Duration::from_millis(100));
    disk.set_capacity(Some(disk.used()));
    let mut waiting = Vec::new();
    for n in 0..6u8 {
        waiting.push(Box::pin(ks.put(PutRequest::new(format!("k{n}"), vec![n; 2500]))));
    }
    let poll = |waiting: &mut Vec<_>| {
        waiting.retain_mut(|put: &mut std::pin::Pin<Box<polybolt::Pending<_>>>| {
            put.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending()
        });
        waiting.len()
    };
    poll(&mut waiting);
    assert!(ks.probe().line > 0, "there is no line");
    driven.pass(Duration::from_secs(10));
    assert_eq!(ks.probe().line, 0, "the line has moved");
    assert_eq!(poll(&mut waiting), 0, "and everybody knows");
}

/// With no pause between its steps a sweep that a pin held back looked again at once, and again, without end.
#[test]
fn a_sweep_that_is_held_back_lets_the_machine_sleep() {
    let pace = CompactionPace { sleep_interval: Duration::ZERO, ..CompactionPace::default() };
    let options = Options { compaction_pace: pace, ..options() };
    let driven = open(&new_disk(1), options).unwrap();
    let ks = driven.engine.create_keyspace("ks", Routes::parse("low=a,mid=m").unwrap()).unwrap();
    let other = driven.engine.create_keyspace("other", Routes::single()).unwrap();
    driven.fill(&ks, "m", 1);
    let stream = ks.range_stream(&everything()).unwrap();
    for ks in [&ks, &other] {
        (0..3).for_each(|n| driven.fill(ks, "m", n));
        driven.finish(ks.compact(ks.revision(), false)).unwrap();
    }
    driven.pass(Duration::from_millis(400));
    assert!(driven.jobs.borrow_mut().run_until_idle(100), "{:?}", driven.jobs);
    assert!(!ks.probe().is_swept && other.probe().is_swept, "one is held back, and nobody else by it");
    drop(stream);
    driven.pass(Duration::from_millis(400));
    assert!(ks.probe().is_swept, "it is looked after once the pin is gone");
}

/// Opening writes what it replays into fresh pages: on a full disk there was no room for them, though the
/// reserve was there.
#[test]
fn a_store_opens_on_a_full_disk_by_its_reserve() {
    for survive in [Survive::All, Survive::Nothing] {
        let disk = new_disk(1);
        let options = || Options { space_reserve_bytes: 64 << 10, ..options() };
        let slow = Options { checkpoint_interval: Duration::from_secs(3600), ..options() };
        let driven = open(&disk, slow).unwrap();
        let ks = driven.engine.create_keyspace("ks", Routes::parse("low=a,mid=m").unwrap()).unwrap();
        for key in ["a", "m", "x"] {
            driven.fill(&ks, key, 100);
        }
        disk.set_capacity(Some(disk.used()));
        drop((ks, driven));
        let disk = disk.after_crash(survive);
        let driven = open(&disk, options()).unwrap();
        let ks = driven.engine.keyspace("ks").unwrap();
        assert_eq!(keys(&ks), ["a", "m", "x"]);
        if survive == Survive::All {
            // What is left of the reserve is for what frees space.
            let refused = driven.put(&ks, "a", vec![1; 3000]);
            assert!(matches!(refused, Err(Error::Refused(Refusal::DiskFull))), "{refused:?}");
        }
        driven.finish(ks.delete_range(DeleteRequest { span: Span::key("a"), prev_kv: false })).unwrap();
        disk.set_capacity(None);
        driven.pass(Duration::from_secs(2));
        driven.fill(&ks, "a", 3000);
    }
}

/// A compaction was refused because puts had filled the line, though it is what makes room; and what replicas apply
/// was not counted in it at all.
#[test]
fn a_compaction_stands_in_a_line_that_is_full() {
    let driven = open(&new_disk(1), options()).unwrap();
    let ks = driven.engine.create_keyspace("ks", Routes::single()).unwrap();
    driven.fill(&ks, "k", 10);
    let revision = ks.revision();
    let put = |n: usize| ks.put(PutRequest::new(format!("k{n}"), vec![1; 20_000]));
    // Nothing is written out meanwhile.
    let mut line: Vec<_> = (0..300).map(|n| Box::pin(put(n))).collect();
    let mut now = |answer: &mut std::pin::Pin<Box<polybolt::Pending<_>>>| {
        answer.as_mut().poll(&mut Context::from_waker(Waker::noop())).map(|answer| answer.is_ok())
    };
    let refused = line.iter_mut().map(&mut now).filter(|now| *now == Poll::Ready(false)).count();
    assert!(refused > 0, "the line is not full");
    let compaction = ks.compact(revision, false);
    drop(line);
    driven.finish(compaction).unwrap();
    assert_eq!(ks.compact_revision(), revision);

    let driven = open(&new_disk(1), Options { face: Face::Replayed, ..options() }).unwrap();
    let ks = driven.engine.create_keyspace("ks", Routes::single()).unwrap();
    let entry = |index: u64| {
        let put = PutRequest::new(format!("k{index}"), vec![1; 20_000]);
        ks.apply(vec![Entry { index, command: Command::Op(Op::Put(put)) }])
    };
    let mut line: Vec<_> = (1..300).map(|index| Box::pin(entry(index))).collect();
    let refused =
        line.iter_mut().filter_map(|entry| match entry.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(answer) => answer.err(),
            Poll::Pending => None,
        });
    let refused: Vec<_> = refused.collect();
    assert!(!refused.is_empty(), "the line has no bound");
    assert!(refused.iter().all(|error| matches!(error, Error::Refused(Refusal::TooManyRequests))), "{refused:?}");
}

/// A full store looks for room at the ends of its files: an error there of a Volatile file left it without writes
/// (seed 109435).
#[test]
fn a_volatile_file_that_cannot_be_cut_fails_nothing_else() {
    let mut cuts = 0;
    for call in 1..60 {
        let disk = new_disk(1);
        let driven = open(&disk, options()).unwrap();
        let ks = driven.engine.create_keyspace("ks", volatile()).unwrap();
        for n in 0..20 {
            driven.put(&ks, &format!("m{n:02}"), vec![n; 2000]).unwrap();
        }
        driven.pass(Duration::from_millis(100));
        driven.finish(ks.delete_range(DeleteRequest { span: Span::prefix("m"), prev_kv: false })).unwrap();
        driven.finish(ks.compact(ks.revision(), true)).unwrap();
        // Its root goes to where it was empty: behind that there is nothing.
        for n in 0..4 {
            driven.put(&ks, "m", vec![n]).unwrap();
            driven.pass(Duration::from_millis(100));
        }
        disk.set_capacity(Some(disk.used()));
        disk.fail_at(disk.calls() + call, 1, Fault::Eio);
        for n in 0..40 {
            drop(driven.put(&ks, &format!("a{n:02}"), vec![n; 2000]));
        }
        driven.pass(Duration::from_secs(1));
        let is_cut = |fired: &Fired| fired.op == "truncate" && fired.path.to_string_lossy().contains(".mid.");
        if !disk.fired().iter().any(is_cut) {
            continue;
        }
        cuts += 1;
        disk.heal();
        disk.set_capacity(None);
        driven.pass(Duration::from_secs(3));
        driven.put(&ks, "a", vec![1]).unwrap_or_else(|error| panic!("call {call}: {error}"));
    }
    assert!(cuts > 0, "no file was cut");
}
