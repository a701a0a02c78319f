//! Reads, and what goes on beside them.

use crate::*;
use polybolt::{KeyValue, OpResponse, RangeStream, ShardOptions};

/// A put that its own txn deletes is a row that no read finds, but the index knows it.
#[test]
fn verify_knows_a_put_that_its_own_txn_deletes() {
    let driven = open(&new_disk(1), options()).unwrap();
    let ks = driven.engine.create_keyspace("ks", Routes::single()).unwrap();
    // From a key on: such a delete clashes with no put (TXN-23).
    let delete = Op::Delete(DeleteRequest { span: Span::from_key("k"), prev_kv: false });
    let txn = TxnRequest { success: vec![Op::Put(PutRequest::new("k1", "v")), delete], ..TxnRequest::default() };
    driven.finish(ks.txn(txn)).unwrap();
    driven.engine.verify(&mut |_| ()).unwrap();
}

/// Between the look at the current revision and the pin a compaction made that revision an old one.
#[test]
fn a_read_of_the_current_revision_is_never_compacted() {
    for place in ["read: visible", "read: pinned"] {
        let driven = open(&new_disk(1), options()).unwrap();
        let ks = driven.engine.create_keyspace("ks", Routes::single()).unwrap();
        driven.put(&ks, "k", vec![1]).unwrap();
        let (jobs, clock, other) = (Rc::clone(&driven.jobs), driven.clock.clone(), ks.clone());
        let writes = move || {
            let driven = |answer: &mut dyn FnMut() -> bool| {
                while !answer() {
                    if !jobs.borrow_mut().step_one() {
                        clock.advance(Duration::from_millis(5));
                    }
                }
            };
            drop(other.put(PutRequest::new("k", "2")));
            drop(other.compact(3, false));
            driven(&mut || other.compact_revision() == 3);
        };
        let found = with_other_at(place, writes, || ks.range(&everything())).unwrap();
        assert_eq!((found.revision, found.kvs[0].mod_revision), (3, 3), "{place}");
    }
}

/// A get pins nothing: all that it looks for may go while it does.
#[test]
fn a_get_beside_a_sweep_is_whole_or_of_a_compacted_revision() {
    for (place, revision) in [("read: visible", 0), ("read: view", 0), ("read: visible", 2), ("read: view", 2)] {
        let driven = open(&new_disk(1), options()).unwrap();
        let ks = driven.engine.create_keyspace("ks", Routes::single()).unwrap();
        driven.put(&ks, "k", vec![1]).unwrap();
        let (jobs, clock, other) = (Rc::clone(&driven.jobs), driven.clock.clone(), ks.clone());
        let writes = move || {
            drop(other.put(PutRequest::new("k", "2")));
            drop(other.compact(3, true));
            for _ in 0..400 {
                if !jobs.borrow_mut().step_one() {
                    clock.advance(Duration::from_millis(5));
                }
            }
            assert_eq!(other.status().shards[0].revisions, 1, "it was swept");
        };
        let request = RangeRequest { revision, ..RangeRequest::new(Span::key("k")) };
        let found = with_other_at(place, writes, || ks.range(&request));
        if revision > 0 {
            assert!(matches!(found, Err(Error::Refused(Refusal::Compacted { revision: 3 }))), "{place}: {found:?}");
        } else {
            let found = found.unwrap();
            assert_eq!((found.revision, found.count, found.kvs[0].mod_revision), (3, 1, 3), "{place}");
        }
    }
}

/// A sweep took the tombstone out while a snapshot was being read that had the row before it already.
#[test]
fn a_deleted_key_does_not_come_back_in_a_snapshot_beside_a_sweep() {
    let driven = open(&new_disk(1), Options { buffer_bytes: 1 << 20, ..options() }).unwrap();
    let ks = driven.engine.create_keyspace("ks", Routes::single()).unwrap();
    driven.put(&ks, "gone", vec![1]).unwrap();
    (0..300).for_each(|n| driven.fill(&ks, &format!("k{n:03}"), 1));
    driven.finish(ks.delete_range(DeleteRequest { span: Span::key("gone"), prev_kv: false })).unwrap();
    driven.put(&ks, "last", vec![1]).unwrap();
    let revision = ks.revision();
    drop(ks.compact(revision, false));
    // Durable, but nothing is swept yet.
    while ks.compact_revision() < revision {
        driven.step();
    }
    let mut snapshot = ks.snapshot().unwrap();
    let jobs = Rc::clone(&driven.jobs);
    let clock = driven.clock.clone();
    let mut runs = 0;
    meanwhile(Some(Box::new(move |at| {
        if at == "rows: view" {
            runs += 1;
            for _ in 0..if runs == 2 { 3000 } else { 0 } {
                if !jobs.borrow_mut().step_one() {
                    clock.advance(Duration::from_millis(5));
                }
            }
        }
        at == "rows: view"
    })));
    let stream = snapshot.by_ref().map(Result::unwrap).collect::<Vec<_>>().concat();
    meanwhile(None);
    drop(snapshot);
    let copy = driven.block(|| driven.engine.restore("copy", None, &stream[..], &mut |_| ())).unwrap();
    assert_eq!(keys(&copy), keys(&ks));
}

/// A stream whose pin was let go while it read said that a row was damaged that had been compacted.
#[test]
fn a_stream_whose_pin_is_let_go_while_it_reads_is_compacted() {
    for (next, is_lent) in [(RangeStream::next as fn(&mut _) -> _, false), (lend, true)] {
        let driven = open(&new_disk(1), options()).unwrap();
        let ks = driven.engine.create_keyspace("ks", Routes::single()).unwrap();
        (0..9).for_each(|n| driven.fill(&ks, &format!("k{n}"), 1));
        let before = ks.range(&everything()).unwrap().kvs;
        let mut stream = ks.range_stream(&everything()).unwrap();
        let read = || next(&mut stream);
        let chunk = with_other_at("read: view", all_is_compacted(&driven, &ks), read).expect("there is more");
        // What was lent before the pin was let go is right.
        let is_right = is_lent && chunk.as_ref().is_ok_and(|kvs| *kvs == before);
        assert!(is_right || is_compacted(&chunk), "{chunk:?}");
    }
}

/// The next chunk of a stream as it is lent.
fn lend(stream: &mut RangeStream) -> Option<Result<Vec<KeyValue>>> {
    let mut kvs = Vec::new();
    let shown = stream.lend(&mut |kv| kvs.push(kv.to_owned()))?;
    Some(shown.map(|_| kvs))
}

/// A snapshot whose pin was let go while its last rows were read lacked what was swept meanwhile, and was whole by its
/// trailer.
#[test]
fn a_snapshot_whose_pin_is_let_go_while_it_reads_is_refused() {
    let driven = open(&new_disk(1), options()).unwrap();
    let ks = driven.engine.create_keyspace("ks", Routes::single()).unwrap();
    (0..9).for_each(|n| driven.fill(&ks, &format!("k{n}"), 1));
    let mut snapshot = driven.block(|| ks.snapshot()).unwrap();
    snapshot.next().expect("a header").unwrap();
    let rows = with_other_at("rows: view", all_is_compacted(&driven, &ks), || snapshot.next()).expect("there is more");
    assert!(is_compacted(&rows), "{rows:?}");
    assert!(snapshot.next().is_none());
}

/// Every key is written once more, and what was before goes, whoever reads it.
fn all_is_compacted(driven: &Driven, ks: &Keyspace) -> impl FnOnce() + use<> {
    let (jobs, clock, other) = (Rc::clone(&driven.jobs), driven.clock.clone(), ks.clone());
    move || {
        let run = || {
            for _ in 0..400 {
                if !jobs.borrow_mut().step_one() {
                    clock.advance(Duration::from_millis(5));
                }
            }
        };
        for n in 0..9 {
            drop(other.put(PutRequest::new(format!("k{n}"), "2")));
            run();
        }
        drop(other.compact(other.revision(), false));
        clock.advance(Options::default().pin_age_max + Duration::from_secs(1));
        run();
    }
}

/// The header of a file that is open was never read again, so the scrub passed over its damage.
#[test]
fn the_scrub_reads_the_headers_of_files_too() {
    let disk = new_disk(1);
    let driven = open(&disk, Options { scrub_bytes_per_second: 4 << 20, ..options() }).unwrap();
    let ks = driven.engine.create_keyspace("ks", Routes::single()).unwrap();
    driven.fill(&ks, "k", 1);
    driven.pass(Duration::from_secs(1));
    assert!(driven.engine.stats().scrub_rounds > 0 && driven.engine.scrubbed().damage.is_empty());
    let file = ks.status().shards[0].file.clone();
    assert!(disk.flip_bit(&file, 50, 1));
    driven.clock.advance(Duration::from_secs(3600));
    driven.pass(Duration::from_secs(1));
    let damage = driven.engine.scrubbed().damage;
    assert!(damage.iter().any(|found| found.file == file && found.place == Place::Unit(0)), "{damage:?}");
}

/// What an install had replaced was dropped under a stream, which then said that its files are damaged.
#[test]
fn a_stream_of_what_an_install_replaced_ends_as_compacted() {
    let options = || Options { face: Face::Replayed, pin_age_max: Duration::from_secs(1), ..options() };
    let driven = open(&new_disk(1), options()).unwrap();
    let ks = driven.engine.create_keyspace("ks", Routes::single()).unwrap();
    driven.finish(ks.put(PutRequest::new("a", "v"))).unwrap();
    let stream = driven.block(|| ks.snapshot().unwrap().map(Result::unwrap).collect::<Vec<_>>().concat());
    let readers = [RangeStream::next, lend].map(|next| (next, ks.range_stream(&everything()).unwrap()));
    driven.block(|| driven.engine.install("ks", &stream[..], Older::Refuse).unwrap().wait()).unwrap();
    driven.pass(Duration::from_secs(3));
    for (next, mut reader) in readers {
        let chunk = next(&mut reader).unwrap();
        assert!(is_compacted(&chunk), "{chunk:?}");
    }
}

/// Where keys go to and fro between shards, a chunk had all the rows that its keys promised, however large.
#[test]
fn a_chunk_of_a_stream_is_as_small_where_shards_take_turns() {
    let driven = open(&new_disk(1), options()).unwrap();
    let turns = ('a'..='h').fold(ShardOptions::new("turns"), |shard, at| shard.prefix(format!("{at}/")));
    let routes = Routes::new(vec![turns, ShardOptions::new("default")]).unwrap();
    let ks = driven.engine.create_keyspace("ks", routes).unwrap();
    for at in 'a'..='h' {
        for place in ["/in", "out"] {
            driven.put(&ks, &format!("{at}{place}"), vec![7; 100 << 10]).unwrap();
        }
    }
    for next in [RangeStream::next, lend] {
        let (mut rows, mut stream) = (0, ks.range_stream(&everything()).unwrap());
        while let Some(chunk) = next(&mut stream) {
            let chunk = chunk.unwrap();
            assert!(chunk.len() <= 3, "{} rows of 100 KiB are one chunk", chunk.len());
            rows += chunk.len();
        }
        assert_eq!(rows, 16);
    }
}

/// Steps jobs until all that was asked for is done.
fn run_jobs(driven: &Driven) -> impl Fn() + use<> {
    let (jobs, clock) = (Rc::clone(&driven.jobs), driven.clock.clone());
    move || {
        for _ in 0..400 {
            if !jobs.borrow_mut().step_one() {
                clock.advance(Duration::from_millis(5));
            }
        }
    }
}

/// Between the look at the current revision and the pin a shard's floor rose above that revision, and the key was
/// swept: a txn that only reads found none.
#[test]
fn a_txn_that_reads_now_is_never_below_the_floor_of_a_shard() {
    let driven = open(&new_disk(1), options()).unwrap();
    let ks = driven.engine.create_keyspace("ks", Routes::parse("low=a").unwrap()).unwrap();
    driven.put(&ks, "a", vec![1]).unwrap();
    let (other, run) = (ks.clone(), run_jobs(&driven));
    let writes = move || {
        drop(other.put(PutRequest::new("a", "2")));
        drop(other.compact_shard("low", 3));
        run();
        assert_eq!(other.status().shards[0].revisions, 1, "it was swept");
    };
    let success = vec![Op::Range(RangeRequest::new(Span::key("a")))];
    let read = || ks.txn(TxnRequest { success, ..TxnRequest::default() }).wait().unwrap();
    let found = with_other_at("read: visible", writes, read);
    assert!(matches!(&found.responses[..], [OpResponse::Range(range)] if range.kvs.len() == 1), "{found:?}");
}

/// A snapshot of one entry of the log had the floors of later ones: who applied these again was refused what they read.
#[test]
fn a_snapshot_has_the_floors_of_its_own_revision() {
    let driven = open(&new_disk(1), options()).unwrap();
    let ks = driven.engine.create_keyspace("ks", Routes::parse("low=a").unwrap()).unwrap();
    driven.put(&ks, "a", vec![1]).unwrap();
    // Not durable yet: the snapshot waits for it.
    drop(ks.put(PutRequest::new("a", "2")));
    let (other, run) = (ks.clone(), run_jobs(&driven));
    let writes = move || {
        drop(other.put(PutRequest::new("a", "3")));
        drop(other.compact_shard("low", 4));
        drop(other.compact(3, false));
        run();
        assert_eq!((other.floors(), other.compact_revision()), (vec![4, 3], 3));
    };
    let snapshot = with_other_at("wait", writes, || ks.snapshot()).unwrap();
    let stream = snapshot.map(Result::unwrap).collect::<Vec<_>>().concat();
    let copy = driven.block(|| driven.engine.restore("copy", None, &stream[..], &mut |_| ())).unwrap();
    assert_eq!((copy.revision(), copy.floors(), copy.compact_revision()), (3, vec![0, 0], -1));
    assert_eq!(copy.range(&RangeRequest { revision: 2, ..everything() }).unwrap().kvs.len(), 1);
}
