//! etcd's contract on one keyspace, rule by rule (ids as in `docs/compatibility.md`).
#![expect(clippy::unwrap_used, reason = "tests")]

use bytes::Bytes;
use polybolt::{
    Compare, CompareOp, CompareTarget, DeleteRequest, Engine, Error, EventKind, KeyValue, Keyspace, Op, OpResponse,
    Options, PutRequest, RangeRequest, RangeStream, Refusal, Routes, SortOrder, SortTarget, Span, SpanEnd, TxnRequest,
    WatchItem, WatchRequest, Watcher,
};

struct Opened {
    _dir: tempfile::TempDir,
    engine: Engine,
    ks: Keyspace,
}

fn opened() -> Opened {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(dir.path(), Options::default()).unwrap();
    let routes = Routes::parse("low=a,low=b,low=c,volatile-free=x").unwrap();
    let ks = engine.create_keyspace("default", routes).unwrap();
    Opened { _dir: dir, engine, ks }
}

fn put(ks: &Keyspace, key: &str, value: &str) -> i64 {
    ks.put(PutRequest::new(key.to_owned(), value.to_owned())).wait().unwrap().revision
}

fn delete(ks: &Keyspace, span: Span) -> (i64, i64) {
    let response = ks.delete_range(DeleteRequest { span, prev_kv: false }).wait().unwrap();
    (response.revision, response.deleted)
}

fn keys(ks: &Keyspace, request: &RangeRequest) -> Vec<String> {
    let response = ks.range(request).unwrap();
    response.kvs.iter().map(|kv| String::from_utf8(kv.key.to_vec()).unwrap()).collect()
}

fn refusal<T: std::fmt::Debug>(result: Result<T, Error>) -> Refusal {
    match result.unwrap_err() {
        Error::Refused(refusal) => refusal,
        other => panic!("{other}"),
    }
}

fn everything() -> Span {
    Span::prefix("")
}

#[test]
fn revisions_versions_and_lives_rev_1_to_8() {
    let Opened { ks, _dir, .. } = opened();
    assert_eq!((ks.revision(), ks.compact_revision()), (1, -1));
    assert_eq!(put(&ks, "a", "1"), 2);
    assert_eq!(put(&ks, "a", "1"), 3);
    assert_eq!(delete(&ks, Span::key("nope")), (3, 0));
    assert_eq!(delete(&ks, Span::key("a")), (4, 1));
    assert_eq!(put(&ks, "a", "2"), 5);
    let kv = ks.range(&RangeRequest::new(Span::key("a"))).unwrap().kvs.remove(0);
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (5, 5, 1));
    let old = ks.range(&RangeRequest { revision: 3, ..RangeRequest::new(Span::key("a")) }).unwrap();
    assert_eq!(old.revision, 5, "never the requested one");
    assert_eq!((old.kvs[0].create_revision, old.kvs[0].mod_revision, old.kvs[0].version), (2, 3, 2));
    let gone = ks.range(&RangeRequest { revision: 4, ..RangeRequest::new(Span::key("a")) }).unwrap();
    assert_eq!((gone.count, gone.kvs.len()), (0, 0));
}

#[test]
fn ranges_rng_1_to_24() {
    let Opened { ks, _dir, .. } = opened();
    for (key, value) in [("a1", "9"), ("a2", "8"), ("b", "7"), ("m", "6"), ("x1", "5"), ("x2", "4")] {
        put(&ks, key, value);
    }
    put(&ks, "b", "1");
    let all = RangeRequest::new(everything());
    assert_eq!(keys(&ks, &all), ["a1", "a2", "b", "m", "x1", "x2"]);
    assert_eq!(keys(&ks, &RangeRequest::new(Span::range("a2", "x1"))), ["a2", "b", "m"]);
    assert_eq!(keys(&ks, &RangeRequest::new(Span::from_key("m"))), ["m", "x1", "x2"]);
    assert!(keys(&ks, &RangeRequest::new(Span::range("x", "a"))).is_empty());
    assert_eq!(refusal(ks.range(&RangeRequest::new(Span::key("")))), Refusal::EmptyKey);
    let down = RangeRequest { sort_order: SortOrder::Descend, limit: 3, ..all.clone() };
    let response = ks.range(&down).unwrap();
    assert_eq!((response.count, response.more, response.kvs.len()), (6, true, 3));
    assert_eq!(keys(&ks, &down), ["x2", "x1", "m"]);
    let by_value = RangeRequest { sort_order: SortOrder::Ascend, sort_target: SortTarget::Value, ..all.clone() };
    assert_eq!(keys(&ks, &by_value), ["b", "x2", "x1", "m", "a2", "a1"]);
    // RNG-22: equals stay in the order of their keys, either way, however many they are.
    for sort_order in [SortOrder::Ascend, SortOrder::Descend] {
        let equals = RangeRequest { sort_order, sort_target: SortTarget::Version, ..all.clone() };
        let mut expected = vec!["a1", "a2", "m", "x1", "x2"];
        expected.insert(if sort_order == SortOrder::Ascend { 5 } else { 0 }, "b");
        assert_eq!(keys(&ks, &equals), expected);
    }
    // RNG-20: without an order the limit comes first.
    let cut_first = RangeRequest { sort_target: SortTarget::Value, limit: 2, ..all.clone() };
    assert_eq!(keys(&ks, &cut_first), ["b", "a2"]);
    let filtered = RangeRequest { min_mod_revision: 4, max_mod_revision: 6, limit: 1, ..all.clone() };
    let response = ks.range(&filtered).unwrap();
    assert_eq!((response.count, response.more, &response.kvs[0].key[..]), (6, true, &b"m"[..]));
    let only = ks.range(&RangeRequest { keys_only: true, ..all.clone() }).unwrap();
    assert!(only.kvs.iter().all(|kv| kv.value.is_empty() && kv.version > 0));
    let counted = ks.range(&RangeRequest { count_only: true, limit: 1, ..all.clone() }).unwrap();
    assert_eq!((counted.count, counted.kvs.len(), counted.more), (6, 0, false));
    assert_eq!(refusal(ks.range(&RangeRequest { revision: 99, ..all })), Refusal::FutureRevision { current: 8 });
}

#[test]
fn a_stream_is_the_range_in_chunks_at_one_revision() {
    let Opened { ks, _dir, .. } = opened();
    for n in 0..700 {
        put(&ks, &format!("{}{n:04}", ["a", "m", "x"][n % 3]), &"v".repeat(n));
    }
    let request = RangeRequest::new(everything());
    let whole = ks.range(&request).unwrap();
    let mut stream = ks.range_stream(&request).unwrap();
    let first = stream.next().unwrap().unwrap();
    delete(&ks, everything());
    ks.compact(ks.revision(), true).wait().map(drop).unwrap_or(());
    let mut kvs = first;
    for chunk in &mut stream {
        kvs.extend(chunk.unwrap());
    }
    assert_eq!((kvs, stream.total()), (whole.kvs, whole.count));
    assert!(matches!(
        ks.range_stream(&RangeRequest { sort_order: SortOrder::Descend, ..request }),
        Err(Error::Refused(Refusal::Unsupported { .. }))
    ));
}

/// The rows of a stream, each chunk lent; at most so many bytes in a chunk but for its last row.
fn lent(mut stream: RangeStream) -> Vec<KeyValue> {
    let mut kvs = Vec::new();
    loop {
        let before = kvs.len();
        match stream.lend(&mut |kv| kvs.push(kv.to_owned())) {
            None => return kvs,
            Some(shown) => assert_eq!(shown.unwrap(), kvs.len() - before),
        }
        let bytes: usize = kvs[before..kvs.len() - 1].iter().map(|kv| kv.key.len() + kv.value.len()).sum();
        assert!(bytes < 256 << 10, "{bytes} bytes before the last row of a chunk");
    }
}

#[test]
fn what_a_stream_lends_is_the_range() {
    let Opened { ks, engine, .. } = &opened();
    for n in 0..900 {
        // In the buffer, in leaves, in extents; some keys are too long for a leaf.
        let key =
            format!("{}{n:04}{}", ["a", "m", "x"][n % 3], if n % 50 == 0 { "-".repeat(3000) } else { String::new() });
        put(ks, &key, &"v".repeat(if n % 90 == 7 { 70_000 } else { n }));
        if n == 600 {
            engine.flush().unwrap();
        }
    }
    let old = ks.revision();
    let older = ks.range(&RangeRequest::new(everything())).unwrap().kvs;
    let stream = ks.range_stream(&RangeRequest::new(everything())).unwrap();
    delete(ks, Span::prefix("m"));
    put(ks, "b", "1");
    assert_eq!(lent(stream), older);
    let all = RangeRequest::new(everything());
    let requests = [
        all.clone(),
        RangeRequest { revision: old, ..all.clone() },
        RangeRequest { keys_only: true, ..all.clone() },
        RangeRequest { count_only: true, ..all.clone() },
        RangeRequest { limit: 1, ..all.clone() },
        RangeRequest { limit: 513, ..all.clone() },
        RangeRequest { limit: 601, ..all.clone() },
        RangeRequest::new(Span::key("b")),
        RangeRequest::new(Span::key("m0001")),
        RangeRequest::new(Span::range("a0900", "x0002")),
        RangeRequest::new(Span::range("b", "a")),
    ];
    for request in requests {
        let (range, stream) = (ks.range(&request).unwrap(), ks.range_stream(&request).unwrap());
        assert_eq!((stream.total(), stream.more()), (range.count, range.more), "{request:?}");
        assert_eq!(lent(stream), range.kvs, "{request:?}");
    }
}

#[test]
fn puts_put_1_to_7() {
    let Opened { ks, _dir, .. } = opened();
    let request = PutRequest::new("k", "v");
    assert_eq!(refusal(ks.put(PutRequest::new("", "v")).wait()), Refusal::EmptyKey);
    let ignore_value = PutRequest { ignore_value: true, ..request.clone() };
    assert_eq!(refusal(ks.put(ignore_value).wait()), Refusal::ValueProvided);
    let ignore_value = PutRequest { ignore_value: true, value: Bytes::new(), ..request.clone() };
    assert_eq!(refusal(ks.put(ignore_value.clone()).wait()), Refusal::KeyNotFound);
    assert_eq!(refusal(ks.put(PutRequest { lease: 5, ..request.clone() }).wait()), Refusal::LeaseNotFound);
    ks.lease_grant(5, 60).wait().unwrap();
    ks.put(PutRequest { lease: 5, ..request.clone() }).wait().unwrap();
    assert_eq!(ks.lease_time_to_live(5, true).unwrap().keys, [Bytes::from("k")]);
    // PUT-5: the value stays, the lease goes.
    let prev = ks.put(PutRequest { prev_kv: true, ..ignore_value }).wait().unwrap().prev_kv.unwrap();
    assert_eq!((prev.lease, &prev.value[..]), (5, &b"v"[..]));
    assert!(ks.lease_time_to_live(5, true).unwrap().keys.is_empty());
    let kv = ks.range(&RangeRequest::new(Span::key("k"))).unwrap().kvs.remove(0);
    assert_eq!((kv.lease, kv.version, &kv.value[..]), (0, 2, &b"v"[..]));
    // Neither lease nor key is there: the lease is looked at first (PUT-4).
    let neither = PutRequest { ignore_value: true, lease: 99, ..PutRequest::new("absent", "") };
    assert_eq!(refusal(ks.put(neither).wait()), Refusal::LeaseNotFound);
    let big = PutRequest::new("k", vec![0; 2 << 20]);
    assert!(matches!(refusal(ks.put(big).wait()), Refusal::TooLarge { .. }));
}

#[test]
fn txns_txn_1_to_24() {
    let Opened { ks, _dir, .. } = opened();
    put(&ks, "a", "1");
    put(&ks, "x", "2");
    let put_op = |key: &'static str| Op::Put(PutRequest::new(key, "t"));
    let get_op = |key: &'static str| Op::Range(RangeRequest::new(Span::key(key)));
    let version = |key: &'static str, version| Compare {
        span: Span::key(key),
        target: CompareTarget::Version(version),
        op: CompareOp::Equal,
    };
    // Over three shards, one revision; later operations see earlier ones.
    let delete_x = Op::Delete(DeleteRequest { span: Span::key("x"), prev_kv: true });
    let nested =
        Op::Txn(TxnRequest { compare: vec![version("new", 0)], success: vec![get_op("new")], ..TxnRequest::default() });
    let request = TxnRequest {
        compare: vec![version("a", 1)],
        success: vec![put_op("a"), put_op("new"), delete_x, get_op("new"), nested],
        failure: vec![],
    };
    let response = ks.txn(request).wait().unwrap();
    assert!(response.succeeded);
    assert_eq!(response.revision, 4);
    let OpResponse::Range(seen) = &response.responses[3] else { panic!() };
    assert_eq!((seen.kvs[0].mod_revision, seen.revision), (4, 4));
    // TXN-11: the nested guard saw the state before.
    let OpResponse::Txn(nested) = &response.responses[4] else { panic!() };
    assert!(nested.succeeded && nested.revision == 0);
    // TXN-7: a value compare of an absent key never holds.
    let value = |op| Compare { span: Span::key("zz"), target: CompareTarget::Value(Bytes::new()), op };
    for op in [CompareOp::Equal, CompareOp::NotEqual, CompareOp::Less] {
        let request = TxnRequest { compare: vec![value(op)], ..TxnRequest::default() };
        let response = ks.txn(request).wait().unwrap();
        assert!(!response.succeeded && response.revision == 4);
    }
    // TXN-12: the revision that the txn itself makes is a future one, and nothing is written.
    let future = RangeRequest { revision: 5, ..RangeRequest::new(Span::key("a")) };
    let request = TxnRequest { success: vec![put_op("a"), Op::Range(future)], ..TxnRequest::default() };
    assert_eq!(refusal(ks.txn(request).wait()), Refusal::FutureRevision { current: 4 });
    assert_eq!(ks.revision(), 4);
    let twice = TxnRequest { success: vec![put_op("a"), put_op("a")], ..TxnRequest::default() };
    assert_eq!(refusal(ks.txn(twice).wait()), Refusal::DuplicateKey);
    let many = TxnRequest { success: (0..129).map(|_| get_op("a")).collect(), ..TxnRequest::default() };
    assert_eq!(refusal(ks.txn(many).wait()), Refusal::TooManyOps);
    // TXN-24: delete from a key on, then put it again, then compact at exactly that revision.
    let delete_all = Op::Delete(DeleteRequest { span: Span { key: "a".into(), end: SpanEnd::Open }, prev_kv: false });
    let request = TxnRequest { success: vec![delete_all, put_op("b")], ..TxnRequest::default() };
    assert_eq!(ks.txn(request).wait().unwrap().revision, 5);
    put(&ks, "b", "again");
    ks.compact(5, true).wait().unwrap();
    let b = ks.range(&RangeRequest { revision: 5, ..RangeRequest::new(Span::key("b")) }).unwrap();
    assert_eq!((b.kvs[0].create_revision, b.kvs[0].version), (5, 1));
}

#[test]
fn compaction_cmp_1_to_6() {
    let Opened { ks, engine, _dir } = opened();
    assert!(matches!(refusal(ks.compact(-1, false).wait()), Refusal::Compacted { .. }));
    ks.compact(0, false).wait().unwrap();
    for n in 0..20 {
        put(&ks, "a", &n.to_string());
        put(&ks, &format!("x{n}"), "v");
    }
    delete(&ks, Span::key("a"));
    let last = ks.revision();
    assert_eq!(refusal(ks.compact(last + 1, false).wait()), Refusal::FutureRevision { current: last });
    ks.compact(last, true).wait().unwrap();
    assert_eq!(refusal(ks.compact(last, true).wait()), Refusal::Compacted { revision: last });
    let at = |revision| ks.range(&RangeRequest { revision, ..RangeRequest::new(everything()) });
    assert_eq!(refusal(at(last - 1)), Refusal::Compacted { revision: last });
    assert_eq!(at(last).unwrap().count, 20);
    // One tombstone at exactly C stays (CMP-4).
    let rows: u64 = ks.status().shards.iter().map(|shard| shard.revisions).sum();
    assert_eq!(rows, 21);
    put(&ks, "y", "1");
    ks.compact(last + 1, true).wait().unwrap();
    let rows: u64 = ks.status().shards.iter().map(|shard| shard.revisions).sum();
    assert_eq!(rows, 21);
    engine.verify(&mut |_| ()).unwrap();
}

fn watch(ks: &Keyspace, span: Span, start_revision: i64) -> Watcher {
    ks.watch(WatchRequest { span, start_revision, no_put: false, no_delete: false, prev_kv: true }).unwrap()
}

/// Events until one of revision `last`, as (kind, key, mod revision, previous version's value).
fn events_to(watcher: &mut Watcher, last: i64) -> Vec<(EventKind, String, i64, Option<String>)> {
    let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).unwrap();
    let mut seen = Vec::new();
    while seen.last().is_none_or(|(_, _, revision, _)| *revision < last) {
        match watcher.recv().unwrap().unwrap() {
            WatchItem::Events { events, .. } => {
                for event in events {
                    let prev = event.prev_kv().map(|kv| text(&kv.value));
                    seen.push((event.kind(), text(&event.kv().key), event.kv().mod_revision, prev));
                }
            }
            WatchItem::Compacted { .. } => panic!("compacted"),
        }
    }
    seen
}

#[test]
fn watchers_see_every_revision_once_in_order_live_or_from_history() {
    let Opened { ks, _dir, .. } = opened();
    let mut live = watch(&ks, everything(), 0);
    assert_eq!(live.created_revision(), 1);
    put(&ks, "a", "1");
    put(&ks, "x", "1");
    let both = TxnRequest {
        success: vec![
            Op::Put(PutRequest::new("a", "2")),
            Op::Delete(DeleteRequest { span: Span::key("x"), prev_kv: false }),
            Op::Put(PutRequest::new("m", "1")),
        ],
        ..TxnRequest::default()
    };
    ks.txn(both).wait().unwrap();
    put(&ks, "m", "2");
    let expected = [
        (EventKind::Put, "a".to_owned(), 2, None),
        (EventKind::Put, "x".to_owned(), 3, None),
        (EventKind::Put, "a".to_owned(), 4, Some("1".to_owned())),
        (EventKind::Delete, "x".to_owned(), 4, Some("1".to_owned())),
        (EventKind::Put, "m".to_owned(), 4, None),
        (EventKind::Put, "m".to_owned(), 5, Some("1".to_owned())),
    ];
    assert_eq!(events_to(&mut live, 5), expected);
    assert_eq!(live.progress(), Some(5));
    assert_eq!(events_to(&mut watch(&ks, everything(), 1), 5), expected);
    assert_eq!(events_to(&mut watch(&ks, everything(), 4), 5), expected[2..]);
    assert_eq!(events_to(&mut watch(&ks, Span::key("m"), 2), 5), expected[4..]);
    // WCH-7: below the compacted revision the watcher is told, once.
    ks.compact(4, true).wait().unwrap();
    let mut behind = watch(&ks, everything(), 3);
    assert_eq!(behind.recv().unwrap(), Some(WatchItem::Compacted { compact_revision: 4 }));
    assert_eq!(behind.recv().unwrap(), None);
    // From exactly C the delete there still shows.
    let from = events_to(&mut watch(&ks, everything(), 4), 5);
    assert!(from.iter().any(|event| event.0 == EventKind::Delete && event.2 == 4));
}

#[test]
fn the_previous_version_is_that_before_the_txn_wch_17() {
    let Opened { ks, _dir, .. } = opened();
    let mut live = watch(&ks, everything(), 0);
    put(&ks, "b", "before");
    // Accepted by accident (TXN-22): children that put, and a later sibling that deletes.
    let child = |op| Op::Txn(TxnRequest { success: vec![op], ..TxnRequest::default() });
    let txn = TxnRequest {
        success: vec![
            child(Op::Put(PutRequest::new("a", "1"))),
            child(Op::Put(PutRequest::new("b", "2"))),
            child(Op::Delete(DeleteRequest { span: Span::key("a"), prev_kv: false })),
            child(Op::Delete(DeleteRequest { span: Span::key("b"), prev_kv: false })),
        ],
        ..TxnRequest::default()
    };
    ks.txn(txn).wait().unwrap();
    let before = Some("before".to_owned());
    let expected = [
        (EventKind::Put, "b".to_owned(), 2, None),
        (EventKind::Put, "a".to_owned(), 3, None),
        (EventKind::Put, "b".to_owned(), 3, before.clone()),
        (EventKind::Delete, "a".to_owned(), 3, None),
        (EventKind::Delete, "b".to_owned(), 3, before),
    ];
    assert_eq!(events_to(&mut live, 3), expected);
    assert_eq!(events_to(&mut watch(&ks, everything(), 1), 3), expected);
}

#[test]
fn a_slow_watcher_misses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(dir.path(), Options { watch_buffer_bytes: 2000, ..Options::default() }).unwrap();
    let ks = engine.create_keyspace("default", Routes::kubernetes()).unwrap();
    let mut slow = watch(&ks, everything(), 0);
    let mut last = 0;
    for n in 0..300 {
        last = put(&ks, &format!("/registry/{}/{n}", ["pods", "leases", "x"][n % 3]), &"v".repeat(100));
    }
    let seen = events_to(&mut slow, last);
    let revisions: Vec<i64> = seen.iter().map(|event| event.2).collect();
    assert_eq!(revisions, (2..=last).collect::<Vec<_>>());
}

#[test]
fn leases_lse_1_to_11() {
    let Opened { ks, _dir, .. } = opened();
    assert_eq!(ks.lease_grant(7, 0).wait().unwrap().ttl, 2);
    assert_eq!(refusal(ks.lease_grant(7, 60).wait()), Refusal::LeaseExists);
    assert_eq!(refusal(ks.lease_grant(8, 9_000_000_001).wait()), Refusal::LeaseTtlTooLarge);
    let picked = ks.lease_grant(0, 600).wait().unwrap();
    assert!(picked.id > 0 && picked.revision == 1);
    assert_eq!([7, 99].map(|id| ks.lease_keep_alive(id).wait().unwrap()), [2, 0]);
    for key in ["x", "b", "a"] {
        ks.put(PutRequest { lease: picked.id, ..PutRequest::new(key, "v") }).wait().unwrap();
    }
    put(&ks, "b", "mine");
    let status = ks.lease_time_to_live(picked.id, true).unwrap();
    assert_eq!((status.granted_ttl, status.keys), (600, vec![Bytes::from("a"), Bytes::from("x")]));
    let mut watcher = watch(&ks, everything(), 6);
    assert_eq!(ks.lease_revoke(picked.id).wait().unwrap(), 6);
    let seen = events_to(&mut watcher, 6);
    let keys: Vec<&str> = seen.iter().map(|event| &event.1[..]).collect();
    assert!(keys == ["a", "x"] || keys == ["a"], "one revision, keys ascending: {keys:?}");
    assert_eq!(refusal(ks.lease_revoke(picked.id).wait()), Refusal::LeaseNotFound);
    assert_eq!(ks.range(&RangeRequest::new(everything())).unwrap().count, 1);
    assert_eq!(ks.leases(), [7]);
    // Expiry deletes within about a second of the deadline.
    ks.put(PutRequest { lease: 7, ..PutRequest::new("short", "v") }).wait().unwrap();
    let mut watcher = watch(&ks, Span::key("short"), 0);
    assert_eq!(events_to(&mut watcher, 8)[0].0, EventKind::Delete);
    assert!(ks.leases().is_empty());
}

#[test]
fn hash_kv_known_answers_hsh_9() {
    let pick = |i: usize| match (i % 142, i % 71) {
        (30, _) => "zenek",
        (_, 30) => "xavery",
        _ => ["alice", "bob", "celine", "dominik", "eve", "frederica", "gorge"][i % 7],
    };
    let a = [
        (4_082_599_214, -1, 35),
        (2_279_933_401, 35, 106),
        (3_284_231_217, 106, 177),
        (126_286_495, 177, 248),
        (900_108_730, 248, 319),
        (2_475_485_232, 319, 390),
        (1_226_296_507, 390, 461),
        (2_503_661_030, 461, 532),
        (4_155_130_747, 532, 603),
        (106_915_399, 603, 674),
        (406_914_006, 674, 745),
        (1_882_211_381, 745, 816),
        (806_177_088, 816, 887),
        (664_311_366, 887, 958),
        (1_496_914_449, 958, 1029),
        (2_434_525_091, 1029, 1100),
        (3_988_652_253, 1100, 1171),
        (1_122_462_288, 1171, 1242),
        (724_436_716, 1242, 1883),
    ];
    let b = [
        (1_913_897_190, -1, 73),
        (224_860_069, 73, 145),
        (1_565_167_519, 145, 217),
        (1_566_261_620, 217, 289),
        (2_037_173_024, 289, 361),
    ];
    for (variant_b, expected) in [(false, &a[..]), (true, &b[..])] {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::open(dir.path(), Options::default()).unwrap();
        let ks = engine.create_keyspace("default", Routes::parse("early=a,early=b,late=g,late=z").unwrap()).unwrap();
        let mut found = Vec::new();
        let mut base = 0;
        let mut round = |ks: &Keyspace, upto: usize, h: usize, base: usize| {
            let pending: Vec<_> = (base..=upto).map(|i| ks.put(PutRequest::new(pick(i), i.to_string()))).collect();
            pending.into_iter().for_each(|put| drop(put.wait().unwrap()));
            let hash = ks.hash_kv(if variant_b { 0 } else { h as i64 }).unwrap();
            found.push((hash.hash, hash.compact_revision, hash.hash_revision));
            hash.hash_revision
        };
        while base < 1210 {
            let h = round(&ks, base + 71, base + 35, base);
            ks.compact(h, true).wait().unwrap();
            base += 71;
        }
        round(&ks, base + 1210, base + 605, base);
        assert_eq!(&found[..expected.len()], expected);
        if variant_b {
            assert_eq!(found[found.len() - 2..], [(1_046_575_299, 1225, 1297), (2_017_735_779, 1297, 2508)]);
        }
    }
}

#[test]
fn hash_kv_with_tombstones_and_leases_hsh_10() {
    let Opened { ks, _dir, .. } = opened();
    ks.lease_grant(77, 600).wait().unwrap();
    put(&ks, "a", "1");
    ks.put(PutRequest { lease: 77, ..PutRequest::new("b", "2") }).wait().unwrap();
    let txn = TxnRequest {
        success: vec![
            Op::Put(PutRequest::new("c", "")),
            Op::Put(PutRequest::new("a", "3")),
            Op::Delete(DeleteRequest { span: Span::key("b"), prev_kv: false }),
        ],
        ..TxnRequest::default()
    };
    ks.txn(txn).wait().unwrap();
    let hash = |revision| ks.hash_kv(revision).map(|hash| (hash.hash, hash.compact_revision));
    assert_eq!(hash(1).unwrap(), (1_084_519_789, -1));
    assert_eq!(hash(-2).unwrap(), (1_084_519_789, -1));
    assert_eq!(hash(2).unwrap(), (2_587_454_935, -1));
    assert_eq!(hash(4).unwrap(), (2_141_722_172, -1));
    put(&ks, "b", "9");
    delete(&ks, Span::key("c"));
    assert_eq!(hash(6).unwrap(), (1_653_901_410, -1));
    ks.compact(4, true).wait().unwrap();
    assert_eq!(hash(5).unwrap(), (1_705_948_627, 4));
    assert_eq!(hash(6).unwrap(), (3_023_679_336, 4));
    // HSH-8: the same before and after the sweep.
    ks.compact(6, false).wait().unwrap();
    assert_eq!(hash(0).unwrap(), (2_254_839_582, 6));
    put(&ks, "z", "z");
    assert_eq!(hash(0).unwrap(), (2_821_344_104, 6));
    assert_eq!(refusal(hash(4)), Refusal::Compacted { revision: 6 });
}

#[test]
fn a_hash_while_no_key_is_live_is_that_of_a_finished_sweep_hsh_4() {
    let Opened { ks, _dir, .. } = opened();
    for n in 0..50 {
        put(&ks, &format!("{}{n}", ["a", "m", "x"][n % 3]), "v");
    }
    delete(&ks, everything());
    let last = ks.revision();
    let before = ks.hash_kv(last).unwrap().hash;
    // HSH-7, HSH-8: how far the sweep has come does not show, and rows that it is yet to take do not count.
    ks.compact(last, false).wait().unwrap();
    let during = ks.hash_kv(0).unwrap();
    assert!(matches!(refusal(ks.compact(last, true).wait()), Refusal::Compacted { .. }));
    let after = ks.hash_kv(0).unwrap();
    assert_eq!(during, after);
    assert_ne!(after.hash, before);
    assert_eq!((after.hash, after.compact_revision), (crc32c_of(b"key"), last), "no row is left");
    put(&ks, "a", "again");
    assert_ne!(ks.hash_kv(0).unwrap().hash, after.hash);
}

#[test]
fn the_hash_of_everything_outlives_a_restart_hsh_11() {
    let Opened { ks, engine, _dir } = opened();
    ks.lease_grant(7, 600).wait().unwrap();
    for n in 0..60 {
        put(&ks, &format!("{}{n}", ["a", "m", "x"][n % 3]), &"v".repeat(n * 100));
    }
    delete(&ks, Span::prefix("m"));
    let before = (ks.hash().unwrap(), ks.hash_kv(0).unwrap());
    drop(ks);
    engine.close().unwrap();
    let engine = Engine::open(_dir.path(), Options::default()).unwrap();
    let ks = engine.keyspace("default").unwrap();
    assert_eq!((ks.hash().unwrap(), ks.hash_kv(0).unwrap()), before);
    put(&ks, "a", "more");
    assert_ne!(ks.hash().unwrap(), before.0);
}

/// Bit by bit, as the polynomial says (HSH-2).
fn crc32c_of(bytes: &[u8]) -> u32 {
    !bytes
        .iter()
        .fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82F6_3B78 * (crc & 1))))
}

#[test]
fn defragmentation_gives_space_back_while_everything_stays() {
    let Opened { ks, engine, _dir } = opened();
    for n in 0..600 {
        put(&ks, &format!("{}{n}", ["a", "m", "x"][n % 3]), &"v".repeat(if n % 10 == 0 { 20_000 } else { 700 }));
        if n % 150 == 0 {
            ks.defragment().unwrap();
        }
    }
    for n in (0..600).filter(|n| n % 20 != 7) {
        delete(&ks, Span::key(format!("{}{n}", ["a", "m", "x"][n % 3])));
    }
    ks.compact(ks.revision(), true).wait().unwrap();
    let kept = ks.range(&RangeRequest::new(everything())).unwrap();
    let before = ks.status();
    ks.defragment().unwrap();
    let after = ks.status();
    assert!(
        after.size < before.size / 4,
        "{} bytes of {} are left, {} in use",
        after.size,
        before.size,
        after.size_in_use
    );
    assert_eq!(ks.range(&RangeRequest::new(everything())).unwrap().kvs, kept.kvs);
    assert_eq!(kept.count, 30);
    engine.verify(&mut |_| ()).unwrap();
}

#[test]
fn what_is_refused_first_txn_2_txn_14_wch_5() {
    let Opened { ks, _dir, .. } = opened();
    let both = Op::Put(PutRequest { ignore_value: true, ..PutRequest::new("a", "given") });
    let nothing = Op::Invalid(Refusal::KeyNotFound);
    for (success, expected) in [
        (vec![both.clone(), nothing.clone()], Refusal::ValueProvided),
        (vec![nothing, both], Refusal::KeyNotFound),
        (vec![Op::Invalid(Refusal::InvalidSortOption)], Refusal::InvalidSortOption),
    ] {
        let txn = TxnRequest { success, ..TxnRequest::default() };
        assert_eq!(refusal(ks.validate_txn(&txn)), expected);
        assert_eq!(refusal(ks.txn(txn).wait()), expected);
    }
    // Of what a state makes fail, the first operation in the list is told (TXN-12, TXN-13).
    let future = Op::Range(RangeRequest { revision: 99, ..RangeRequest::new(Span::key("a")) });
    let missing = Op::Put(PutRequest { lease: 99, ..PutRequest::new("b", "v") });
    for (success, expected) in [
        (vec![future.clone(), missing.clone()], Refusal::FutureRevision { current: 1 }),
        (vec![missing, future], Refusal::LeaseNotFound),
    ] {
        let txn = TxnRequest { success, ..TxnRequest::default() };
        assert_eq!(refusal(ks.txn(txn).wait()), expected);
        assert_eq!(ks.revision(), 1, "nothing is written");
    }
    // What passes the checks before the first change goes through: etcd ends here.
    put(&ks, "a", "there");
    let txn = TxnRequest {
        success: vec![
            Op::Delete(DeleteRequest { span: Span { key: "a".into(), end: SpanEnd::Open }, prev_kv: false }),
            Op::Put(PutRequest { ignore_value: true, ..PutRequest::new("a", "") }),
        ],
        ..TxnRequest::default()
    };
    assert_eq!(ks.txn(txn).wait().unwrap().revision, 3);
    let kv = ks.range(&RangeRequest::new(Span::key("a"))).unwrap().kvs.remove(0);
    assert_eq!((&kv.value[..], kv.create_revision, kv.version), (&b""[..], 3, 1));
    let request = |start_revision| WatchRequest {
        span: Span { key: "b".into(), end: SpanEnd::Before("a".into()) },
        start_revision,
        no_put: false,
        no_delete: false,
        prev_kv: false,
    };
    assert!(matches!(refusal(ks.watch(request(-1))), Refusal::Compacted { .. }));
    assert_eq!(refusal(ks.watch(request(0))), Refusal::EmptyWatchRange);
}
