//! Keyspaces from the outside of etcd's contract: creating and dropping, reopening, replicated logs,
//! tables, snapshots, large values, and the ways of reading and keeping.
#![expect(clippy::unwrap_used, reason = "tests")]

use bytes::Bytes;
use polybolt::{
    Applied, Command, DeleteRequest, Durability, Engine, Entry, Error, Face, Keyspace, Op, Options, PutRequest,
    RangeRequest, Refusal, Routes, ShardOptions, Span, TableEdit, TxnRequest,
};
use std::time::Duration;

fn put(ks: &Keyspace, key: &str, value: &str) -> i64 {
    ks.put(PutRequest::new(key.to_owned(), value.to_owned())).wait().unwrap().revision
}

fn get(ks: &Keyspace, key: &str) -> Option<Bytes> {
    ks.range(&RangeRequest::new(Span::key(key.to_owned()))).unwrap().kvs.pop().map(|kv| kv.value)
}

fn refusal<T: std::fmt::Debug>(result: Result<T, Error>) -> Refusal {
    match result.unwrap_err() {
        Error::Refused(refusal) => refusal,
        other => panic!("{other}"),
    }
}

#[test]
fn keyspaces_are_created_listed_and_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(dir.path(), Options::default()).unwrap();
    let one = engine.create_keyspace("one", Routes::kubernetes()).unwrap();
    let two = engine.create_keyspace("two", Routes::single()).unwrap();
    assert!(matches!(refusal(engine.create_keyspace("one", Routes::single())), Refusal::KeyspaceExists { .. }));
    assert!(engine.create_keyspace("../up", Routes::single()).is_err());
    // They do not know each other.
    assert_eq!((put(&one, "k", "1"), put(&two, "k", "2"), put(&two, "k", "3")), (2, 2, 3));
    assert_eq!(engine.keyspaces(), ["one", "two"]);
    engine.drop_keyspace("two").unwrap();
    assert!(matches!(refusal(two.put(PutRequest::new("k", "4")).wait()), Refusal::KeyspaceNotFound { .. }));
    assert!(matches!(refusal(two.range(&RangeRequest::new(Span::key("k")))), Refusal::KeyspaceNotFound { .. }));
    assert!(matches!(refusal(engine.keyspace("two")), Refusal::KeyspaceNotFound { .. }));
    // The name is free again, and nothing of the old one is in the new one.
    let two = engine.create_keyspace("two", Routes::single()).unwrap();
    assert_eq!((two.revision(), get(&two, "k")), (1, None));
    let again = engine.keyspace("one").unwrap();
    engine.close().unwrap();
    assert_eq!(refusal(again.put(PutRequest::new("k", "v")).wait()), Refusal::Closed);
    assert_eq!(refusal(again.range(&RangeRequest::new(Span::key("k")))), Refusal::Closed);
    let engine = Engine::open(dir.path(), Options::default()).unwrap();
    assert!(engine.report().clean);
    assert_eq!(*engine.keyspace("one").unwrap().routes(), Routes::kubernetes());
    assert_eq!(get(&engine.keyspace("one").unwrap(), "k").unwrap(), "1");
}

#[test]
fn values_up_to_64_mib_and_keys_longer_than_a_leaf_allows() {
    for read_cache_bytes in [None, Some(1 << 20)] {
        let dir = tempfile::tempdir().unwrap();
        let admission_timeout = Duration::from_secs(300);
        let options =
            Options { max_request_bytes: 100 << 20, read_cache_bytes, admission_timeout, ..Options::default() };
        let engine = Engine::open(dir.path(), options.clone()).unwrap();
        let ks = engine.create_keyspace("ks", Routes::kubernetes()).unwrap();
        let large = Bytes::from((0..64u32 << 20).map(|n| (n % 251) as u8).collect::<Vec<_>>());
        let long = "/registry/pods/".to_owned() + &"k".repeat(5000);
        ks.put(PutRequest::new("large", large.clone())).wait().unwrap();
        ks.put(PutRequest::new(long.clone(), "long")).wait().unwrap();
        ks.put(PutRequest::new(long.clone(), large.slice(..3 << 20))).wait().unwrap();
        assert_eq!(get(&ks, "large").unwrap(), large);
        drop(ks);
        engine.close().unwrap();
        let engine = Engine::open(dir.path(), options).unwrap();
        let ks = engine.keyspace("ks").unwrap();
        assert_eq!(get(&ks, "large").unwrap(), large);
        assert_eq!(get(&ks, &long).unwrap(), large.slice(..3 << 20));
        assert_eq!(
            ks.range(&RangeRequest { revision: 3, ..RangeRequest::new(Span::prefix("/registry/")) }).unwrap().kvs[0]
                .value,
            "long"
        );
        engine.verify(&mut |_| ()).unwrap();
    }
}

#[test]
fn requests_are_never_larger_than_a_value_can_be() {
    let dir = tempfile::tempdir().unwrap();
    let open = |max_request_bytes| Engine::open(dir.path(), Options { max_request_bytes, ..Options::default() });
    let refused = open((256 << 20) + 1).unwrap_err();
    assert_eq!(refused.to_string(), "max_request_bytes of 268435457 is over the maximum of 268435456");
    open(256 << 20).unwrap();
}

/// It went into a page that it does not fit, cut, and the keyspace did not open any more.
#[test]
fn a_table_key_that_no_page_holds_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(dir.path(), Options::default()).unwrap();
    let ks = engine.create_keyspace("ks", Routes::single()).unwrap();
    let edit = |len: usize| TableEdit { table: "users".into(), key: vec![b'n'; len].into(), value: Some("v".into()) };
    for len in [506, 600, 5000, 70_000] {
        let refused = ks.table_write(vec![edit(1), edit(len)]).wait();
        assert!(matches!(refused, Err(Error::Refused(Refusal::Invalid { .. }))), "{len}: {refused:?}");
    }
    ks.table_write((1..=505).map(edit).collect()).wait().unwrap();
    drop(ks);
    engine.close().unwrap();
    let engine = Engine::open(dir.path(), Options::default()).unwrap();
    let ks = engine.keyspace("ks").unwrap();
    assert_eq!(ks.table_list("users").unwrap().len(), 505);
    engine.verify(&mut |_| ()).unwrap();
}

#[test]
fn a_replicated_log_is_applied_once_bke_7() {
    let dir = tempfile::tempdir().unwrap();
    let batch = Durability::Batch { interval: Duration::from_millis(10), limit: 100 };
    let options = Options { face: Face::Replayed, durability: batch, ..Options::default() };
    let engine = Engine::open(dir.path(), options.clone()).unwrap();
    let ks = engine.create_keyspace("ks", Routes::kubernetes()).unwrap();
    let put = |index, key: &'static str| Entry { index, command: Command::Op(Op::Put(PutRequest::new(key, "v"))) };
    let log = vec![
        put(5, "a"),
        Entry { index: 6, command: Command::LeaseGrant { id: 9, ttl: 60 } },
        Entry { index: 7, command: Command::Op(Op::Put(PutRequest { lease: 99, ..PutRequest::new("b", "v") })) },
        put(8, "c"),
        Entry { index: 9, command: Command::Compact(2) },
        Entry { index: 10, command: Command::LeaseRevoke(9) },
        Entry { index: 11, command: Command::Nothing },
    ];
    let answers = ks.apply(log.clone()).wait().unwrap();
    assert!(matches!(&answers[0], Ok(Applied::Txn(done)) if done.revision == 2));
    assert!(matches!(&answers[1], Ok(Applied::Lease(lease)) if lease.id == 9));
    // A refused entry moves the index too.
    assert!(matches!(&answers[2], Err(Error::Refused(Refusal::LeaseNotFound))));
    assert!(matches!(&answers[3], Ok(Applied::Txn(done)) if done.revision == 3));
    assert!(answers[4].is_ok() && answers[5].is_ok() && answers[6].is_ok());
    let (hash, state) = (ks.history_hash(), (ks.revision(), ks.compact_revision(), ks.applied_index()));
    assert_eq!(state, (3, 2, 11));
    // Again, as after a restart of the frontend: no effect.
    let again = ks.apply(log).wait().unwrap();
    assert!(again.iter().all(|answer| matches!(answer, Err(Error::Refused(Refusal::AlreadyApplied { applied: 11 })))));
    assert_eq!((ks.history_hash(), ks.revision()), (hash, 3));
    drop(ks);
    engine.close().unwrap();
    let engine = Engine::open(dir.path(), options.clone()).unwrap();
    let ks = engine.keyspace("ks").unwrap();
    assert_eq!((ks.revision(), ks.compact_revision(), ks.applied_index(), ks.history_hash()), (3, 2, 11, hash));
    assert_eq!(ks.log_floor(), 11);
    // It expires nothing by itself, and has no shard that nobody refills.
    ks.apply(vec![Entry { index: 12, command: Command::LeaseGrant { id: 3, ttl: 2 } }]).wait().unwrap();
    assert!(ks.due_leases(10).is_empty());
    let volatile = Routes::parse("events:volatile=/registry/events/").unwrap();
    assert!(engine.create_keyspace("v", volatile).is_err());
}

#[test]
fn histories_are_equal_where_requests_are() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let engines = dirs.each_ref().map(|dir| Engine::open(dir.path(), Options::default()).unwrap());
    // However they are split.
    let routes = [Routes::single(), Routes::kubernetes()];
    let keyspaces = [0, 1].map(|at| engines[at].create_keyspace("ks", routes[at].clone()).unwrap());
    for n in 0..50 {
        for ks in &keyspaces {
            put(ks, &format!("/registry/{}/{n}", ["pods", "events", "x"][n % 3]), "v");
        }
        assert_eq!(keyspaces[0].history_hash(), keyspaces[1].history_hash());
    }
    assert_eq!(keyspaces[0].hash_kv(0).unwrap(), keyspaces[1].hash_kv(0).unwrap());
    put(&keyspaces[0], "x", "1");
    put(&keyspaces[1], "x", "2");
    assert_ne!(keyspaces[0].history_hash(), keyspaces[1].history_hash());
}

#[test]
fn tables_are_kept_beside_the_data() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(dir.path(), Options::default()).unwrap();
    let ks = engine.create_keyspace("ks", Routes::single()).unwrap();
    let edit = |table: &str, key: &'static str, value: Option<&'static str>| TableEdit {
        table: table.into(),
        key: key.into(),
        value: value.map(Bytes::from),
    };
    ks.table_write(vec![edit("alarms", "b", Some("2")), edit("alarms", "a", Some("1")), edit("alarm", "c", Some("3"))])
        .wait()
        .unwrap();
    assert_eq!(ks.revision(), 1, "no revision of the keyspace's");
    ks.table_write(vec![edit("alarms", "b", None)]).wait().unwrap();
    assert_eq!(ks.table_list("alarms").unwrap(), [(Bytes::from("a"), Bytes::from("1"))]);
    drop(ks);
    engine.close().unwrap();
    let engine = Engine::open(dir.path(), Options { read_only: true, ..Options::default() }).unwrap();
    let ks = engine.keyspace("ks").unwrap();
    assert_eq!(ks.table_get("alarm", b"c").unwrap().unwrap(), "3");
    assert_eq!(ks.table_get("alarms", b"b").unwrap(), None);
    assert!(ks.put(PutRequest::new("k", "v")).wait().is_err());
}

#[test]
fn a_snapshot_that_was_cut_or_changed_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(dir.path(), Options::default()).unwrap();
    let ks = engine.create_keyspace("ks", Routes::kubernetes()).unwrap();
    ks.lease_grant(5, 100).wait().unwrap();
    for n in 0..40 {
        let lease = if n % 5 == 0 { 5 } else { 0 };
        let key = format!("/registry/{}/{n}", ["pods", "events", "x"][n % 3]);
        ks.put(PutRequest { lease, ..PutRequest::new(key, vec![n as u8; 200]) }).wait().unwrap();
    }
    ks.delete_range(DeleteRequest { span: Span::key("/registry/x/2"), prev_kv: false }).wait().unwrap();
    ks.compact(30, true).wait().unwrap();
    let stream: Vec<u8> = ks.snapshot().unwrap().flat_map(|frame| frame.unwrap().to_vec()).collect();
    for len in (0..stream.len()).step_by(97) {
        assert!(engine.restore("cut", None, &stream[..len], &mut |_| ()).is_err(), "cut at {len}");
        assert_eq!(engine.keyspaces(), ["ks"]);
    }
    for at in (0..stream.len()).step_by(101) {
        let mut changed = stream.clone();
        changed[at] ^= 4;
        assert!(engine.restore("changed", None, &changed[..], &mut |_| ()).is_err(), "changed at {at}");
    }
    assert_eq!(engine.keyspaces(), ["ks"]);
    let whole = engine.restore("whole", None, &stream[..], &mut |_| ()).unwrap();
    let all = RangeRequest::new(Span::prefix(""));
    assert_eq!(whole.range(&all).unwrap(), ks.range(&all).unwrap());
    assert_eq!((whole.revision(), whole.compact_revision()), (ks.revision(), 30));
    assert_eq!((whole.hash_kv(0).unwrap(), whole.history_hash()), (ks.hash_kv(0).unwrap(), ks.history_hash()));
    assert_eq!(whole.lease_time_to_live(5, true).unwrap().keys, ks.lease_time_to_live(5, true).unwrap().keys);
    assert!(matches!(refusal(whole.range(&RangeRequest { revision: 29, ..all })), Refusal::Compacted { revision: 30 }));
}

#[test]
fn a_volatile_shard_survives_a_close_and_lies_where_it_was_told() {
    let (dir, aside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut events = ShardOptions::new("events").prefix("/registry/events/").volatile();
    events.dir = Some(aside.path().to_owned());
    events.page_bytes = 32768;
    let routes = Routes::new(vec![events, ShardOptions::new("default")]).unwrap();
    let engine = Engine::open(dir.path(), Options::default()).unwrap();
    let ks = engine.create_keyspace("ks", routes).unwrap();
    put(&ks, "/registry/events/a", "1");
    put(&ks, "b", "2");
    let last = put(&ks, "/registry/events/c", "3");
    let shard = &ks.status().shards[0];
    assert!(shard.file.starts_with(aside.path()) && shard.durability == "volatile");
    drop(ks);
    engine.close().unwrap();
    let engine = Engine::open(dir.path(), Options::default()).unwrap();
    let ks = engine.keyspace("ks").unwrap();
    assert_eq!((ks.revision(), get(&ks, "/registry/events/c").unwrap()), (last, Bytes::from("3")));
    put(&ks, "/registry/events/a", "4");
    // Not closed: dropped like a process that is killed.
    drop(ks);
    drop(engine);
    let engine = Engine::open(dir.path(), Options::default()).unwrap();
    assert_eq!(engine.report().emptied, 1);
    let ks = engine.keyspace("ks").unwrap();
    assert_eq!((get(&ks, "/registry/events/c"), get(&ks, "b").unwrap()), (None, Bytes::from("2")));
    // Nobody may take the revisions from before for the ones of now.
    assert!(ks.revision() > last + 1);
    let before = RangeRequest { revision: last, ..RangeRequest::new(Span::prefix("/registry/events/")) };
    assert!(matches!(refusal(ks.range(&before)), Refusal::Compacted { .. }));
    assert!(ks.range(&RangeRequest { revision: last, ..RangeRequest::new(Span::key("b")) }).is_ok());
}

#[test]
fn batches_are_visible_at_once_and_durable_after_a_while() {
    let dir = tempfile::tempdir().unwrap();
    let batch = Durability::Batch { interval: Duration::from_millis(5), limit: 1000 };
    let options = Options { durability: batch, ..Options::default() };
    let engine = Engine::open(dir.path(), options.clone()).unwrap();
    let ks = engine.create_keyspace("ks", Routes::kubernetes()).unwrap();
    for n in 0..2000 {
        let revision = put(&ks, &format!("/registry/pods/{}", n % 100), "v");
        assert_eq!((ks.revision(), revision), (n + 2, n + 2));
    }
    let read = TxnRequest { success: vec![Op::Range(RangeRequest::new(Span::prefix("")))], ..TxnRequest::default() };
    assert_eq!(ks.txn(read).wait().unwrap().revision, 2001);
    drop(ks);
    engine.close().unwrap();
    // The other way of keeping, on the same directory.
    let engine = Engine::open(dir.path(), Options::default()).unwrap();
    let ks = engine.keyspace("ks").unwrap();
    assert_eq!((ks.revision(), put(&ks, "k", "v")), (2001, 2002));
}
