//! Shards that keep less history than the rest.
#![expect(clippy::unwrap_used, reason = "tests")]

use bytes::Bytes;
use polybolt::{
    Applied, Command, DeleteRequest, Durability, Engine, Entry, Error, EventKind, Face, Keyspace, Op, Options,
    PutRequest, RangeRequest, Refusal, Routes, ShardOptions, Span, TxnRequest, WatchItem, WatchRequest,
};

fn routes() -> Routes {
    Routes::parse("low=a,mid=m").unwrap()
}

fn put(ks: &Keyspace, key: &str, value: &str) -> i64 {
    ks.put(PutRequest::new(key.to_owned(), value.to_owned())).wait().unwrap().revision
}

fn read(ks: &Keyspace, span: Span, revision: i64) -> Result<Vec<Bytes>, i64> {
    match ks.range(&RangeRequest { revision, ..RangeRequest::new(span) }) {
        Ok(found) => Ok(found.kvs.into_iter().map(|kv| kv.value).collect()),
        Err(Error::Refused(Refusal::Compacted { revision })) => Err(revision),
        Err(error) => panic!("{error}"),
    }
}

fn refusal<T: std::fmt::Debug>(result: Result<T, Error>) -> Refusal {
    match result.unwrap_err() {
        Error::Refused(refusal) => refusal,
        other => panic!("{other}"),
    }
}

/// Of each of a, m and x three versions and a delete of another key: revisions 2 to 13.
fn fill(ks: &Keyspace) {
    for key in ["a", "m", "x"] {
        for value in ["1", "2", "3"] {
            put(ks, key, value);
        }
        put(ks, &format!("{key}-gone"), "0");
    }
    for key in ["a", "m", "x"] {
        let span = Span::key(format!("{key}-gone"));
        ks.delete_range(DeleteRequest { span, prev_kv: false }).wait().unwrap();
    }
}

/// The first thing that a watcher is told: the compacted revision, or the events of the first revisions.
fn watched(ks: &Keyspace, key: &'static str, start_revision: i64) -> Result<Vec<(EventKind, bool)>, i64> {
    let request =
        WatchRequest { span: Span::prefix(key), start_revision, no_put: false, no_delete: false, prev_kv: true };
    let mut watcher = ks.watch(request).unwrap();
    loop {
        match watcher.try_recv().unwrap() {
            std::task::Poll::Ready(Some(WatchItem::Compacted { compact_revision })) => return Err(compact_revision),
            std::task::Poll::Ready(Some(WatchItem::Events { events, .. })) => {
                return Ok(events.iter().map(|event| (event.kind(), event.prev_kv().is_some())).collect());
            }
            std::task::Poll::Ready(None) => panic!("it ended"),
            std::task::Poll::Pending => std::thread::yield_now(),
        }
    }
}

fn swept(ks: &Keyspace, shard: usize, revisions: u64) {
    while ks.status().shards[shard].revisions != revisions || ks.stats().sweep_left > 0 {
        std::thread::yield_now();
    }
}

fn check(ks: &Keyspace) {
    assert_eq!((ks.floors(), ks.compact_revision()), (vec![15, 0, 0], -1));
    let all = || Span::prefix("");
    for (key, old) in [("a", Err(15)), ("m", Ok(vec![Bytes::from("3")])), ("x", Ok(vec![Bytes::from("3")]))] {
        assert_eq!(read(ks, Span::key(key), 13), old, "{key}");
        assert_eq!(read(ks, Span::key(key), 15).unwrap(), ["3"]);
    }
    assert_eq!((read(ks, all(), 14), read(ks, all(), 15).unwrap().len()), (Err(15), 4));
    assert_eq!(read(ks, all(), 0).unwrap().len(), 3);
    // The history of the others is whole, and the shard's from its floor on.
    assert_eq!(watched(ks, "a", 14), Err(15));
    assert_eq!(watched(ks, "m", 1).unwrap()[..2], [(EventKind::Put, false), (EventKind::Put, true)]);
    let txn = |key: &'static str, revision| {
        let range = RangeRequest { revision, ..RangeRequest::new(Span::key(key)) };
        let success = vec![Op::Range(range), Op::Put(PutRequest::new("x", "3"))];
        ks.txn(TxnRequest { success, ..TxnRequest::default() }).wait()
    };
    assert_eq!(refusal(txn("a", 14)), Refusal::Compacted { revision: 15 });
    txn("m", 14).unwrap();
    assert_eq!(refusal(ks.hash_kv(14).map(drop)), Refusal::Compacted { revision: 15 });
}

#[test]
fn a_shard_forgets_its_history_and_the_others_keep_theirs() {
    for durability in
        [Durability::Sync, Durability::Batch { interval: std::time::Duration::from_millis(5), limit: 100 }]
    {
        let dir = tempfile::tempdir().unwrap();
        let options = || Options { durability, ..Options::default() };
        let engine = Engine::open(dir.path(), options()).unwrap();
        let ks = engine.create_keyspace("ks", routes()).unwrap();
        fill(&ks);
        let last = put(&ks, "a", "3");
        assert_eq!(last, 17);
        let compact = |shard, revision| refusal(ks.compact_shard(shard, revision).wait());
        assert!(matches!(compact("high", 2), Refusal::Invalid { why } if why.contains("high") && why.contains("ks")));
        assert_eq!(compact("low", 18), Refusal::FutureRevision { current: 17 });
        let before = ks.hash_kv(17).unwrap();
        assert_eq!(ks.compact_shard("low", 15).wait().unwrap(), 17);
        assert_eq!(compact("low", 15), Refusal::Compacted { revision: 15 });
        assert_eq!(compact("low", 3), Refusal::Compacted { revision: 15 });
        // Of a the last before the floor, and that after it; nothing of what was deleted.
        swept(&ks, 0, 2);
        assert_eq!(ks.status().shards[1].revisions, 5);
        check(&ks);
        let after = ks.hash_kv(17).unwrap();
        assert_ne!(after.hash, before.hash, "history below the floor is not part of it");
        // Half of the opens are after a stop without a checkpoint.
        let snapshot: Vec<u8> = ks.snapshot().unwrap().flat_map(|frame| frame.unwrap()).collect();
        drop(ks);
        engine.close().unwrap();
        let engine = Engine::open(dir.path(), options()).unwrap();
        let ks = engine.keyspace("ks").unwrap();
        check(&ks);
        assert_eq!(ks.hash_kv(17).unwrap().hash, after.hash);
        let copy = engine.restore("copy", None, &snapshot[..], &mut |_| ()).unwrap();
        check(&copy);
        // Other routes: what has keys of that shard has its floor.
        let other = Routes::parse("first=a1,some=m,more=x").unwrap();
        let copy = engine.restore("other", Some(other), &snapshot[..], &mut |_| ()).unwrap();
        assert_eq!(copy.floors(), [15, 0, 0, 15]);
        assert_eq!(read(&copy, Span::key("m"), 3), Ok(vec![]));
        assert_eq!(read(&copy, Span::key("a"), 3), Err(15));
        engine.verify(&mut |_| ()).unwrap();
    }
}

/// Both go by what is applied, not by what is durable or swept: or they would answer differently.
#[test]
fn replicas_with_the_same_floors_are_the_same() {
    let open = |dir: &tempfile::TempDir| {
        let options = Options { face: Face::Replayed, ..Options::default() };
        let engine = Engine::open(dir.path(), options).unwrap();
        let shard = |name: &str| ShardOptions::new(name);
        let routes = Routes::new(vec![shard("low").prefix("a"), shard("default")]).unwrap();
        let ks = engine.create_keyspace("ks", routes).unwrap();
        (engine, ks)
    };
    let log = |upto: u64| -> Vec<Entry> {
        let command = |index: u64| match index % 8 {
            3 => Command::CompactShard { shard: "low".into(), revision: index.cast_signed() / 2 },
            5 => Command::Compact(index.cast_signed() / 8),
            _ => {
                let key = format!("{}{}", ["a", "x"][(index % 2) as usize], index % 5);
                let revision = (index.cast_signed() / 2 - 3).max(0);
                let range = RangeRequest { revision, ..RangeRequest::new(Span::prefix("a")) };
                let put = Op::Put(PutRequest::new(key, index.to_string()));
                let success = if index % 8 == 4 { vec![Op::Range(range), put] } else { vec![put] };
                Command::Op(Op::Txn(TxnRequest { success, ..TxnRequest::default() }))
            }
        };
        (1..=upto).map(|index| Entry { index, command: command(index) }).collect()
    };
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let (_one, at_once) = open(&dirs[0]);
    let (_other, one_by_one) = open(&dirs[1]);
    let refused =
        |answers: &[Result<Applied, Error>]| answers.iter().map(|done| format!("{done:?}")).collect::<Vec<_>>();
    let all = refused(&at_once.apply(log(200)).wait().unwrap());
    let mut each = Vec::new();
    for entry in log(200) {
        each.extend(refused(&one_by_one.apply(vec![entry]).wait().unwrap()));
    }
    assert_eq!(all, each);
    assert!(all.iter().filter(|done| done.contains("Compacted")).count() > 10);
    assert_eq!(at_once.floors(), one_by_one.floors());
    assert_eq!(at_once.history_hash(), one_by_one.history_hash());
    assert_eq!(at_once.hash_kv(0).unwrap(), one_by_one.hash_kv(0).unwrap());
}
