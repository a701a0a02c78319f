//! Keys and values.

use crate::{Failure, Outcome, refused};
use etcd_client::{
    Client, CompactionOptions, Compare, CompareOp, DeleteOptions, Error, GetOptions, KeyValue, KvClientPrefix,
    PutOptions, SortOrder, SortTarget, Txn, TxnOp, TxnOpResponse,
};

fn keys(kvs: &[KeyValue]) -> Vec<&str> {
    kvs.iter().map(|kv| kv.key_str().expect("text")).collect()
}

fn values(kvs: &[KeyValue]) -> Vec<&str> {
    kvs.iter().map(|kv| kv.value_str().expect("text")).collect()
}

pub(crate) async fn put_and_get(mut client: Client) -> Outcome {
    let first = client.put("user/ann", "31", None).await?;
    let revision = first.header().expect("a header").revision();
    assert!(first.prev_key().is_none());
    client.put("user/ben", "27", None).await?;
    client.put("user/cid", "29", None).await?;
    client.put("user/ann", "32", None).await?;
    let got = client.get("user/ann", None).await?;
    assert_eq!((got.count(), got.more()), (1, false));
    let kv = &got.kvs()[0];
    assert_eq!((kv.key(), kv.value()), (&b"user/ann"[..], &b"32"[..]));
    assert_eq!((kv.create_revision(), kv.mod_revision()), (revision, revision + 3));
    assert_eq!((kv.version(), kv.lease()), (2, 0));
    assert_eq!(got.header().expect("a header").revision(), revision + 3);
    let all = client.get("", Some(GetOptions::new().with_all_keys())).await?;
    assert!(["user/ann", "user/ben", "user/cid"].iter().all(|key| keys(all.kvs()).contains(key)));
    assert!(client.get("user/dan", None).await?.kvs().is_empty());
    Ok(())
}

pub(crate) async fn ranges(mut client: Client) -> Outcome {
    let mut revisions = Vec::new();
    for (key, value) in [("range/b", "3"), ("range/d", "1"), ("range/a", "4"), ("range/c", "2"), ("range/b", "0")] {
        revisions.push(client.put(key, value, None).await?.header().expect("a header").revision());
    }
    let prefix = || GetOptions::new().with_prefix();
    let mut get = async |key: &str, options: GetOptions| client.get(key, Some(options)).await;
    assert_eq!(keys(get("range/", prefix()).await?.kvs()), ["range/a", "range/b", "range/c", "range/d"]);
    assert_eq!(keys(get("range/b", GetOptions::new().with_range("range/d")).await?.kvs()), ["range/b", "range/c"]);
    assert!(keys(get("range/c", GetOptions::new().with_from_key()).await?.kvs()).contains(&"range/d"));
    let limited = get("range/", prefix().with_limit(3)).await?;
    assert_eq!((limited.kvs().len(), limited.count(), limited.more()), (3, 4, true));
    for (target, expected) in [
        (SortTarget::Key, "dcba"),
        (SortTarget::Value, "acdb"),
        (SortTarget::Create, "cadb"),
        (SortTarget::Mod, "bcad"),
        (SortTarget::Version, "b"),
    ] {
        let sorted = get("range/", prefix().with_sort(target, SortOrder::Descend)).await?;
        let order: String = keys(sorted.kvs()).iter().map(|key| &key[6..]).collect();
        assert!(order.starts_with(expected), "{target:?}: {order}");
    }
    let ascending = get("range/", prefix().with_sort(SortTarget::Value, SortOrder::Ascend).with_limit(2)).await?;
    assert_eq!(values(ascending.kvs()), ["0", "1"]);
    assert_eq!(values(get("range/", prefix().with_keys_only()).await?.kvs()), [""; 4]);
    let counted = get("range/", prefix().with_count_only()).await?;
    assert_eq!((counted.kvs().len(), counted.count()), (0, 4));
    assert_eq!(get("range/", prefix().with_serializable()).await?.count(), 4);
    assert_eq!(values(get("range/b", GetOptions::new().with_revision(revisions[1])).await?.kvs()), ["3"]);
    let modified = get("range/", prefix().with_min_mod_revision(revisions[2]).with_max_mod_revision(revisions[3]));
    assert_eq!(keys(modified.await?.kvs()), ["range/a", "range/c"]);
    let created = get("range/", prefix().with_min_create_revision(revisions[0]).with_max_create_revision(revisions[1]));
    assert_eq!(keys(created.await?.kvs()), ["range/b", "range/d"]);
    Ok(())
}

pub(crate) async fn put_options(mut client: Client) -> Outcome {
    let lease = client.lease_grant(60, None).await?.id();
    client.put("put/key", "1", Some(PutOptions::new().with_lease(lease))).await?;
    let before = client.put("put/key", "2", Some(PutOptions::new().with_prev_key().with_ignore_lease())).await?;
    assert_eq!(before.prev_key().expect("the previous one").value(), b"1");
    client.put("put/key", "", Some(PutOptions::new().with_ignore_value().with_lease(lease))).await?;
    let got = client.get("put/key", None).await?;
    assert_eq!((got.kvs()[0].value(), got.kvs()[0].lease(), got.kvs()[0].version()), (&b"2"[..], lease, 3));
    let missing = client.put("put/none", "", Some(PutOptions::new().with_ignore_value())).await;
    assert_eq!(refused(missing), "etcdserver: key not found");
    let given = client.put("put/key", "v", Some(PutOptions::new().with_ignore_value())).await;
    assert_eq!(refused(given), "etcdserver: value is provided");
    client.lease_revoke(lease).await?;
    let ended = client.put("put/key", "1", Some(PutOptions::new().with_lease(lease))).await;
    assert_eq!(refused(ended), "etcdserver: requested lease not found");
    Ok(())
}

pub(crate) async fn delete(mut client: Client) -> Outcome {
    for key in ["del/a", "del/b", "del/c", "del/d", "del/e"] {
        client.put(key, "v", None).await?;
    }
    let one = client.delete("del/a", Some(DeleteOptions::new().with_prev_key())).await?;
    assert_eq!((one.deleted(), keys(one.prev_kvs())), (1, vec!["del/a"]));
    assert_eq!(client.delete("del/a", None).await?.deleted(), 0);
    let range = client.delete("del/b", Some(DeleteOptions::new().with_range("del/d").with_prev_key())).await?;
    assert_eq!((range.deleted(), keys(range.prev_kvs())), (2, vec!["del/b", "del/c"]));
    assert_eq!(client.delete("del/", Some(DeleteOptions::new().with_prefix())).await?.deleted(), 2);
    client.put("\u{10ffff}", "last", None).await?;
    assert_eq!(client.delete("\u{10ffff}", Some(DeleteOptions::new().with_from_key())).await?.deleted(), 1);
    Ok(())
}

pub(crate) async fn txn(mut client: Client) -> Outcome {
    client.put("txn/a", "1", None).await?;
    let swap = |from: &str, to: &str| {
        // Every comparison is made before anything is done.
        let inner = Txn::new()
            .when([Compare::value("txn/a", CompareOp::Equal, from)])
            .and_then([TxnOp::put("txn/inner", "yes", None)])
            .or_else([TxnOp::put("txn/inner", "no", None)]);
        Txn::new()
            .when([Compare::value("txn/a", CompareOp::Equal, from)])
            .and_then([
                TxnOp::put("txn/a", to, Some(PutOptions::new().with_ignore_lease().with_prev_key())),
                TxnOp::get("txn/", Some(GetOptions::new().with_prefix())),
                TxnOp::delete("txn/a", Some(DeleteOptions::new().with_prev_key().with_range("txn/a"))),
                TxnOp::txn(inner),
            ])
            .or_else([TxnOp::get("txn/a", None)])
    };
    let done = client.txn(swap("1", "2")).await?;
    assert!(done.succeeded());
    match &done.op_responses()[..] {
        [TxnOpResponse::Put(put), TxnOpResponse::Get(get), TxnOpResponse::Delete(delete), TxnOpResponse::Txn(txn)] => {
            assert_eq!(put.prev_key().expect("the previous one").value(), b"1");
            assert_eq!(values(get.kvs()), ["2"]);
            assert_eq!(delete.deleted(), 0);
            assert!(txn.succeeded());
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(client.get("txn/inner", None).await?.kvs()[0].value(), b"yes");
    let not = client.txn(swap("1", "3")).await?;
    assert!(!not.succeeded());
    assert!(matches!(&not.op_responses()[..], [TxnOpResponse::Get(get)] if values(get.kvs()) == ["2"]));
    let twice = Txn::new().and_then([TxnOp::put("txn/b", "1", None), TxnOp::put("txn/b", "2", None)]);
    assert_eq!(refused(client.txn(twice).await), "etcdserver: duplicate key given in txn request");
    Ok(())
}

pub(crate) async fn compares(mut client: Client) -> Outcome {
    let lease = client.lease_grant(60, None).await?.id();
    let put = client.put("cmp/a", "m", Some(PutOptions::new().with_lease(lease))).await?;
    let revision = put.header().expect("a header").revision();
    client.put("cmp/b", "m", Some(PutOptions::new().with_lease(lease))).await?;
    let mut holds = async |compare: Compare| client.txn(Txn::new().when([compare])).await.map(|txn| txn.succeeded());
    for (op, below, same, above) in [
        (CompareOp::Equal, false, true, false),
        (CompareOp::NotEqual, true, false, true),
        (CompareOp::Greater, true, false, false),
        (CompareOp::Less, false, false, true),
    ] {
        for (with, expected) in [(-1, below), (0, same), (1, above)] {
            let value = ["l", "m", "n"][(with + 1) as usize];
            assert_eq!(holds(Compare::value("cmp/a", op, value)).await?, expected, "{op:?} {value}");
            assert_eq!(holds(Compare::version("cmp/a", op, 1 + with)).await?, expected, "{op:?} version");
            assert_eq!(holds(Compare::create_revision("cmp/a", op, revision + with)).await?, expected, "{op:?} create");
            assert_eq!(holds(Compare::mod_revision("cmp/a", op, revision + with)).await?, expected, "{op:?} mod");
            assert_eq!(holds(Compare::lease("cmp/a", op, lease + with)).await?, expected, "{op:?} lease");
        }
    }
    assert!(holds(Compare::value("cmp/", CompareOp::Equal, "m").with_prefix()).await?);
    assert!(!holds(Compare::create_revision("cmp/a", CompareOp::Equal, revision).with_range("cmp/c")).await?);
    assert!(holds(Compare::version("cmp/none", CompareOp::Equal, 0)).await?);
    Ok(())
}

pub(crate) async fn get_stream(mut client: Client) -> Outcome {
    for n in 0..100 {
        client.put(format!("stream/{n:03}"), vec![b'x'; 2000], None).await?;
    }
    let prefix = || Some(GetOptions::new().with_prefix());
    let whole = client.get("stream/", prefix()).await?;
    let mut kv = client.kv_client();
    let mut received = Vec::new();
    let absent = |error: Error| match error {
        Error::GRpcStatus(status) if status.message().starts_with("unknown method") => {
            Failure::Absent("the server is older than RangeStream".into())
        }
        error => Failure::Error(error),
    };
    let mut chunks = kv.get_stream("stream/", prefix()).await.map_err(absent)?;
    let mut count = 0;
    while let Some(mut chunk) = chunks.message().await.map_err(absent)? {
        received.append(&mut chunk.take_kvs());
        count = chunk.count();
    }
    assert_eq!((count, keys(&received)), (100, keys(whole.kvs())));
    Ok(())
}

pub(crate) async fn namespace(mut client: Client) -> Outcome {
    let mut inside = KvClientPrefix::new(client.kv_client(), "space/".into());
    inside.put("k", "1", None).await?;
    assert_eq!(client.get("space/k", None).await?.kvs()[0].value(), b"1");
    let prefix = || GetOptions::new().with_prefix();
    assert_eq!(keys(inside.get("k", Some(prefix())).await?.kvs()), ["k"]);
    let txn = Txn::new().when([Compare::version("k", CompareOp::Equal, 1)]).and_then([TxnOp::get("k", None)]);
    assert!(inside.txn(txn).await?.succeeded());
    assert_eq!(inside.delete("k", Some(DeleteOptions::new().with_prefix())).await?.deleted(), 1);
    assert!(client.get("space/k", None).await?.kvs().is_empty());
    Ok(())
}

pub(crate) async fn compact(mut client: Client) -> Outcome {
    client.put("compact", "1", None).await?;
    let revision = client.put("compact", "2", None).await?.header().expect("a header").revision();
    let done = client.compact(revision, Some(CompactionOptions::new().with_physical())).await?;
    assert!(done.header().expect("a header").revision() >= revision);
    assert_eq!(client.get("compact", None).await?.kvs()[0].value(), b"2");
    let old = client.get("compact", Some(GetOptions::new().with_revision(revision - 1))).await;
    let compacted = "etcdserver: mvcc: required revision has been compacted";
    assert_eq!(refused(old), compacted);
    assert_eq!(refused(client.compact(revision, None).await), compacted);
    let future = "etcdserver: mvcc: required revision is a future revision";
    assert_eq!(refused(client.compact(revision + 1000, None).await), future);
    Ok(())
}

pub(crate) async fn refusals(mut client: Client) -> Outcome {
    assert_eq!(refused(client.put("", "v", None).await), "etcdserver: key is not provided");
    assert_eq!(refused(client.get("", None).await), "etcdserver: key is not provided");
    let future = client.get("k", Some(GetOptions::new().with_revision(1 << 40))).await;
    assert_eq!(refused(future), "etcdserver: mvcc: required revision is a future revision");
    let large = client.put("k", vec![b'v'; 1_600_000], None).await;
    assert_eq!(refused(large), "etcdserver: request is too large");
    let many: Vec<TxnOp> = (0..129).map(|n| TxnOp::put(format!("many/{n}"), "", None)).collect();
    assert_eq!(refused(client.txn(Txn::new().and_then(many)).await), "etcdserver: too many operations in txn request");
    Ok(())
}
