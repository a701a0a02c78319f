//! Watch streams.

use crate::{Failure, Outcome, soon};
use etcd_client::{
    Client, CompactionOptions, Error, EventType, Txn, TxnOp, WatchFilterType, WatchOptions, WatchResponse, WatchStream,
};

async fn next(stream: &mut WatchStream) -> Result<WatchResponse, Failure> {
    Ok(soon(stream.message()).await?.expect("the stream goes on"))
}

/// Starts a watch and takes the answer that says so.
async fn start(client: &mut Client, key: &str, options: WatchOptions) -> Result<WatchStream, Failure> {
    let mut stream = client.watch(key, Some(options)).await?;
    let created = next(&mut stream).await?;
    assert!(created.created() && !created.canceled());
    Ok(stream)
}

/// Events as `put key` and `delete key`, as many as are expected.
async fn events(stream: &mut WatchStream, count: usize) -> Result<Vec<String>, Failure> {
    let mut seen = Vec::new();
    while seen.len() < count {
        for event in next(stream).await?.events() {
            let key = event.kv().expect("a key").key_str()?;
            let kind = if event.event_type() == EventType::Put { "put" } else { "delete" };
            seen.push(format!("{kind} {key}"));
        }
    }
    Ok(seen)
}

async fn put(client: &mut Client, key: &str, value: &str) -> Result<i64, Error> {
    Ok(client.put(key, value, None).await?.header().expect("a header").revision())
}

pub(crate) async fn two_on_one_stream(mut client: Client) -> Outcome {
    put(&mut client, "two/a", "1").await?;
    put(&mut client, "two/b", "1").await?;
    let mut stream = client.watch("two/a", Some(WatchOptions::new().with_watch_id(1))).await?;
    let first = next(&mut stream).await?;
    assert_eq!((first.watch_id(), first.created(), first.canceled()), (1, true, false));
    assert!(first.header().expect("a header").revision() > 0);
    put(&mut client, "two/a", "2").await?;
    stream.request_progress().await?;
    client.delete("two/a", None).await?;
    stream.watch("two/b", Some(WatchOptions::new().with_watch_id(2))).await?;
    // Answers to the two may come in any order.
    let (mut created, mut canceled, mut seen) = (false, Vec::new(), Vec::new());
    while canceled.len() < 2 {
        let response = next(&mut stream).await?;
        let id = response.watch_id();
        if response.created() {
            assert_eq!((id, response.canceled()), (2, false));
            created = true;
            put(&mut client, "two/b", "2").await?;
            client.delete("two/b", None).await?;
        }
        if !response.created() && response.canceled() {
            assert_eq!(response.cancel_reason(), "");
            canceled.push(id);
        }
        for event in response.events() {
            seen.push((id, event.event_type(), event.kv().expect("a key").value().to_vec()));
            if event.event_type() == EventType::Delete {
                stream.cancel(id).await?;
            }
        }
    }
    assert!(created);
    seen.sort_by_key(|(id, ..)| *id);
    let (put, delete) = ((EventType::Put, b"2".to_vec()), (EventType::Delete, Vec::new()));
    let of = |id, (kind, value): &(EventType, Vec<u8>)| (id, *kind, value.clone());
    assert_eq!(seen, [of(1, &put), of(1, &delete), of(2, &put), of(2, &delete)]);
    Ok(())
}

pub(crate) async fn history(mut client: Client) -> Outcome {
    let from = put(&mut client, "hist/a", "1").await?;
    put(&mut client, "hist/b", "1").await?;
    put(&mut client, "hist/a", "2").await?;
    client.delete("hist/", Some(etcd_client::DeleteOptions::new().with_prefix())).await?;
    let options = || WatchOptions::new().with_prefix().with_start_revision(from);
    let all = ["put hist/a", "put hist/b", "put hist/a", "delete hist/a", "delete hist/b"];
    let mut stream = start(&mut client, "hist/", options()).await?;
    assert_eq!(events(&mut stream, 5).await?, all);
    let mut stream = start(&mut client, "hist/", options().with_filters([WatchFilterType::NoPut])).await?;
    assert_eq!(events(&mut stream, 2).await?, all[3..]);
    let mut stream = start(&mut client, "hist/", options().with_filters([WatchFilterType::NoDelete])).await?;
    assert_eq!(events(&mut stream, 3).await?, all[..3]);
    let mut stream =
        start(&mut client, "hist/a", WatchOptions::new().with_start_revision(from).with_prev_key()).await?;
    let mut before = Vec::new();
    while before.len() < 3 {
        for event in next(&mut stream).await?.events() {
            before.push(event.prev_kv().map(|kv| kv.value().to_vec()));
        }
    }
    assert_eq!(before, [None, Some(b"1".to_vec()), Some(b"2".to_vec())]);
    Ok(())
}

pub(crate) async fn spans(mut client: Client) -> Outcome {
    let mut prefix = start(&mut client, "span/", WatchOptions::new().with_prefix()).await?;
    let mut range = start(&mut client, "span/b", WatchOptions::new().with_range("span/d")).await?;
    let mut from = start(&mut client, "span/c", WatchOptions::new().with_from_key()).await?;
    let mut all = start(&mut client, "", WatchOptions::new().with_all_keys()).await?;
    let ops: Vec<TxnOp> = ["a", "b", "c", "d"].map(|key| TxnOp::put(format!("span/{key}"), "v", None)).into();
    client.txn(Txn::new().and_then(ops)).await?;
    let whole = ["put span/a", "put span/b", "put span/c", "put span/d"];
    assert_eq!(events(&mut prefix, 4).await?, whole);
    assert_eq!(events(&mut range, 2).await?, whole[1..3]);
    assert_eq!(events(&mut from, 2).await?, whole[2..]);
    assert_eq!(events(&mut all, 4).await?, whole);
    Ok(())
}

pub(crate) async fn progress(mut client: Client) -> Outcome {
    let mut stream = start(&mut client, "progress", WatchOptions::new().with_progress_notify()).await?;
    let revision = put(&mut client, "other", "1").await?;
    // A server that has not looked at the watcher yet may be silent: asked until it answers.
    loop {
        stream.request_progress().await?;
        let answer = tokio::time::timeout(std::time::Duration::from_millis(500), stream.message()).await;
        if let Ok(answer) = answer {
            let answer = answer?.expect("the stream goes on");
            assert!(answer.events().is_empty() && !answer.created() && !answer.canceled());
            assert!(answer.header().expect("a header").revision() >= revision);
            return Ok(());
        }
    }
}

pub(crate) async fn fragments(mut client: Client) -> Outcome {
    let value = "f".repeat(900_000);
    let from = put(&mut client, "frag/0", &value).await?;
    for n in 1..4 {
        put(&mut client, &format!("frag/{n}"), &value).await?;
    }
    let options = WatchOptions::new().with_prefix().with_start_revision(from).with_fragment();
    let mut stream = start(&mut client, "frag/", options).await?;
    assert_eq!(events(&mut stream, 4).await?, ["put frag/0", "put frag/1", "put frag/2", "put frag/3"]);
    Ok(())
}

pub(crate) async fn compacted(mut client: Client) -> Outcome {
    let old = put(&mut client, "compacted", "1").await?;
    let revision = put(&mut client, "compacted", "2").await?;
    client.compact(revision, Some(CompactionOptions::new().with_physical())).await?;
    let mut stream = start(&mut client, "compacted", WatchOptions::new().with_start_revision(old)).await?;
    let response = next(&mut stream).await?;
    assert_eq!((response.canceled(), response.compact_revision()), (true, revision));
    // What comes after it is all there.
    let mut stream = start(&mut client, "compacted", WatchOptions::new().with_start_revision(revision)).await?;
    assert_eq!(events(&mut stream, 1).await?, ["put compacted"]);
    Ok(())
}

pub(crate) async fn duplicate_id(mut client: Client) -> Outcome {
    let mut stream = start(&mut client, "dup", WatchOptions::new().with_watch_id(5)).await?;
    stream.watch("dup", Some(WatchOptions::new().with_watch_id(5))).await?;
    let response = next(&mut stream).await?;
    assert!(response.created() && response.canceled());
    assert_eq!(response.cancel_reason(), "mvcc: duplicate watch ID provided on the WatchStream");
    put(&mut client, "dup", "1").await?;
    assert_eq!(events(&mut stream, 1).await?, ["put dup"]);
    Ok(())
}

pub(crate) async fn split(mut client: Client) -> Outcome {
    let (mut sender, mut receiver) = client.watch("split", None).await?.split();
    let created = soon(receiver.message()).await?.expect("the stream goes on");
    put(&mut client, "split", "1").await?;
    let event = soon(receiver.message()).await?.expect("the stream goes on");
    assert_eq!(event.events().len(), 1);
    sender.cancel(created.watch_id()).await?;
    let canceled = soon(receiver.message()).await?.expect("the stream goes on");
    assert!(canceled.canceled());
    // Whoever asks for nothing more goes on to be told.
    sender.watch("split", None).await?;
    assert!(soon(receiver.message()).await?.expect("the stream goes on").created());
    drop(sender);
    put(&mut client, "split", "2").await?;
    assert_eq!(soon(receiver.message()).await?.expect("the stream goes on").events().len(), 1);
    Ok(())
}
